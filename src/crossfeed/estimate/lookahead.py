r"""Where to look from: the models' parameters in the middle of the horizon, as the loop is predicted to take them there.

A derivative along R rounds is that of the rounds' own states. Where models are still moving, those are not the present ones: the
linearised loop says where they go, Θ(t) = Θ + x(t) with x from :func:`crossfeed.estimate.horizon.forward` under −F, and
the midpoint rule takes gradients at Θ(R/2), which leaves an error of second order in how far the loop moves, instead of first.
Ours. At a stable point nothing moves and both are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.estimate.bank import Bank
from crossfeed.estimate.derivatives import unflatten
from crossfeed.estimate.horizon import Path, forward
from crossfeed.estimate.influence import Horizon, outcomes
from crossfeed.estimate.system import System, judge
from crossfeed.networks.base import Network


@dataclass(frozen=True, eq=False)
class Course:
    """Where the loop is predicted to go if nothing changes.

    Attributes:
        path: x by round.
        alignment: (R + 1, E) predicted alignment of every evaluation, minus its present value.
    """

    path: Path
    alignment: Tensor


def drift(bank: Bank, system: System) -> list[Tensor]:
    """By model, −F_i (r_i, 1) with what is noise taken out.

    Along eigenvector a of the curvature, F_a has a variance of about v_a = Σ_s w_s² (C_s)_aa/n_s from finitely many samples
    (gradients vary as the curvature, where the loss is a log-likelihood), and is multiplied by (1 − v_a/F_a²)₊: positive-part
    shrinkage, James and Stein 1961, one direction at a time. Without it, noise in flat directions, in which nothing holds a model
    back, would carry it away.
    """
    out = []
    for i, force in enumerate(system.drift):
        noise = torch.zeros(len(force), len(force), dtype=torch.float64)
        for rows, part, weight in zip(bank.sources, system.found, system.mixture, strict=True):
            if rows.consumer == i:
                noise += weight**2 / len(rows.draw.clusters) * part.curvature
        out.append(system.shrink(i, force, noise))
    return out


def course(bank: Bank, system: System, horizon: Horizon) -> Course:
    """Follow the present mean gradients, as far as they are more than noise, through the horizon."""
    assert horizon.rounds is not None
    path = forward(system, horizon.rounds, drift(bank, system))
    goals = outcomes(bank, [judge(rows) for rows in bank.evaluations], system.sizes)
    change = [sum((g.T @ x for g, x in zip(goals, state, strict=True)), torch.zeros(())) for state in path.after_rounds]
    return Course(path, torch.stack([c[:, 0] for c in change]))


def moved(bank: Bank, state: list[Tensor]) -> dict[str, Tensor]:
    """By model, the change of its parameters (d,) that coordinates (r_i, 1) stand for."""
    return {model.name: model.basis.to_parameters(x[:, 0]) for model, x in zip(bank.models, state, strict=True)}


@contextmanager
def shifted(networks: Mapping[str, Network], shift: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, the networks' parameters are moved by these vectors (d,); afterwards they are as they were."""
    before = {
        name: {k: v.detach().clone() for k, v in network.parameters().items()} for name, network in networks.items()
    }
    try:
        for name, network in networks.items():
            if name in shift:
                step = unflatten(before[name], shift[name])
                network.load({key: value + step[key] for key, value in before[name].items()})
        yield
    finally:
        for name, network in networks.items():
            network.load(before[name])
