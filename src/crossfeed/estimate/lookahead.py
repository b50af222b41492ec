r"""Where to look from: the models' parameters along the horizon, as the loop is predicted to take them there.

The linearised loop says where models go, Θ(t) = Θ + x(t) with x from :func:`crossfeed.estimate.horizon.forward` under −F. Gradients that
are taken on the way (:mod:`crossfeed.estimate.legs`) correct it: near the k-th place, at Θ + c_k, the force is −F_k − D_k (x − c_k) with
F_k and D_k measured there. Ours. At a stable point nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossfeed.estimate.bank import Bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.derivatives import flatten, unflatten
from crossfeed.estimate.draws import marginal
from crossfeed.estimate.horizon import forward
from crossfeed.estimate.influence import outcomes
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.system import judge
from crossfeed.networks.base import Network

STEEPER = 3.0
"""Times the quadratic's rise that a loss may rise along a predicted way."""
LEAST = 1 / 64
"""Of a way, below which it is not gone at all."""


@dataclass(frozen=True, eq=False)
class Course:
    """Where the loop is predicted to go if nothing changes.

    Attributes:
        alignment: (R + 1, E) predicted alignment of every evaluation, minus its present value.
    """

    alignment: Tensor


def course(leg: Leg) -> Course:
    """Follow the present mean gradients, as far as they are more than noise, through the horizon of one leg; alignment to first order."""
    path = forward(leg.system, leg.rounds, leg.drift)
    goals = outcomes(leg.bank, [judge(rows) for rows in leg.bank.evaluations], leg.system.sizes)
    change = [sum((g.T @ x for g, x in zip(goals, state, strict=True)), torch.zeros(())) for state in path.after_rounds]
    return Course(torch.stack([c[:, 0] for c in change]))


def between(places: Sequence[int], rounds: int, values: Tensor) -> Course:
    """The course of alignments (K, E) measured on models moved to where they are predicted to be after these rounds: straight lines."""
    columns = [np.interp(range(rounds + 1), places, column) for column in (values - values[0]).T.tolist()]
    return Course(torch.tensor(np.array(columns)).T.reshape(rounds + 1, -1))


def position(legs: Sequence[Leg], centres: Sequence[Mapping[str, Tensor]], until: int) -> dict[str, Tensor]:
    """By model, how far (d,) its parameters are from the present ones after ``until`` rounds.

    Args:
        legs: Those that there are so far; the last serves all later rounds.
        centres: By leg and model, where its gradients were taken, from the present parameters (d,); no entry: at these.
        until: Number of rounds.
    """
    names = legs[0].bank.names
    there = {model.name: torch.zeros(model.num_params, dtype=torch.float64) for model in legs[0].bank.models}
    for k, (leg, centre) in enumerate(zip(legs, centres, strict=True)):
        stop = until if k == len(legs) - 1 else min(until, leg.stop)
        if stop <= leg.first:
            break
        assert leg.horizon.rounds is not None
        bases = [model.basis for model in leg.bank.models]
        off = [there[name] - centre[name] if name in centre else there[name] for name in names]
        start = [basis.of_parameters(x).double()[:, None] for basis, x in zip(bases, off, strict=True)]
        rounds = leg.horizon.rounds[leg.first : stop]
        end = forward(leg.system, rounds, leg.drift, start, leg.first).end
        for name, basis, x, z in zip(names, bases, start, end, strict=True):
            there[name] = there[name] + basis.to_parameters((z - x)[:, 0])
    return there


def held_back(
    leg: Leg, models: Mapping[str, Differentiable], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, float]:
    """By model, the share of its predicted way that its loss, on the samples of the place before, lets it go.

    Along the way Δ the loss is ℓ + g·Δ + ½ ΔᵀHΔ with the leg's own g and H, as long as its quadratic is one. A way is halved while what
    the loss adds to ℓ + g·Δ is more than :data:`STEEPER` times what the quadratic adds: then it leaves the valley that H describes,
    which retraining, as it looks at the loss at every step, does not. The ratio test of trust regions (Conn, Gould and Toint 2000).

    Args:
        leg: At the place before.
        models: By name, with their present parameters.
        before: By model, where the leg's gradients were taken, from the present parameters (d,); no entry: at these.
        after: By model, where it is predicted to be, from the present parameters (d,).
    """
    out = {}
    for i, rows in enumerate(leg.bank.models):
        model, start = models[rows.name], before.get(rows.name, torch.zeros(()))
        way = after[rows.name] - start
        z = rows.basis.of_parameters(way).double()[:, None]
        slope = float(-leg.system.drift[i][:, 0] @ z[:, 0])
        bend = float(z[:, 0] @ leg.system.curvature(i, z)[:, 0]) / 2
        loss = _loss(leg.bank, i, model)
        here, share = loss(start), 1.0
        while share > LEAST and bend > 0:
            added = loss(start + share * way) - here - share * slope
            if added <= STEEPER * share**2 * bend:
                break
            share /= 2
        out[rows.name] = share if share > LEAST else 0.0
    return out


def _loss(bank: Bank, i: int, model: Differentiable) -> Callable[[Tensor], float]:
    """Mean loss of model i on the mixture of its samples, by how far (d,) its present parameters are moved."""
    draws = [rows.draw for rows in bank.sources if rows.consumer == i and rows.draw.weight]
    parts = [(draw.weight, marginal(draw), id(draw.outputs)) for draw in draws]
    batches = {
        key: model.loss_batch(draw.all_prompts, draw.outputs, torch.Generator(model.device))
        for key, draw in {id(draw.outputs): draw for draw in draws}.items()
    }
    present = model.parameters()
    flat = flatten(present)

    def loss(shift: Tensor) -> float:
        there = unflatten(present, flat + shift.to(flat))
        with torch.no_grad():
            losses = {key: model.losses(there, batch).double().cpu() for key, batch in batches.items()}
        total = sum(weight * float(share @ losses[key]) for weight, share, key in parts)
        return total if math.isfinite(total) else math.inf

    return loss


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
