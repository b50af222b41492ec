"""The point of it all: what the estimate says more curation does is what it does when the models are really retrained."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, RunOptions, Training
from crossfeed.describe.schema import Ecosystem, Samples
from crossfeed.describe.settings import put
from crossfeed.estimate.audit import NetworkAudit, audit_networks
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import open_point
from crossfeed.networks.base import Network
from crossfeed.networks.build import build
from crossfeed.networks.world import open_world
from crossfeed.retraining.run import run_networks
from networks import tiny

ROUNDS, STEP = 3, 0.25
State = dict[str, dict[str, Tensor]]


def ecosystem(samples: int = 4000) -> Ecosystem:
    """Half real data; p takes its own and q's curated outputs, q takes p's raw ones."""
    eco = tiny.flows(samples=samples)
    train = Training(steps=15, batch_size=250, optimizer="sgd", learning_rate=0.008, gradient_clip=None)
    fields = {"family": Flow(width=6, bins=5), "train": train}
    models = {name: model.model_copy(update=fields) for name, model in eco.models.items()}
    run = RunOptions(rounds=ROUNDS, evaluation_samples=5000, generation_batch=5000)
    changed = eco.model_copy(update={"models": models, "run": run, "samples": Samples(per_round=samples)})
    return Ecosystem.model_validate(changed.model_dump())


def settled(eco: Ecosystem, rounds: int) -> State:
    """Parameters after so many rounds, near the stable point."""
    longer = eco.model_copy(update={"run": eco.run.model_copy(update={"evaluation_samples": 16})})
    done = run_networks(longer, None, rounds=rounds, device="cpu", minimal=True)
    return {name: copied(network) for name, network in done.networks.items()}


def copied(network: Network) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.parameters().items()}


def started(eco: Ecosystem, state: State) -> dict[str, Network]:
    networks = dict(build(open_world(eco), torch.device("cpu")))
    for name, network in networks.items():
        network.load({key: value.clone() for key, value in state[name].items()})
    return networks


def alignment(eco: Ecosystem, state: State, seed: int) -> Tensor:
    """(E,) after :data:`ROUNDS` rounds of really retraining."""
    mine = eco.model_copy(update={"seed": seed})
    done = run_networks(mine, None, device="cpu", minimal=True, networks=started(mine, state))
    table = done.metrics().to_pylist()
    last = {r["model"]: r["value"] for r in table if r["metric"] == "alignment" and r["round"] == ROUNDS}
    return torch.tensor([last[name] for name in eco.names], dtype=torch.float64)


@dataclass
class Compared:
    """Central differences by p's curation, their standard errors over seeds, and the audit."""

    slope: Tensor
    error: Tensor
    audit: NetworkAudit


def compared(settling: int, seeds: int, samples: int, outputs: int) -> Compared:
    eco = ecosystem(samples)
    state = settled(eco, settling)
    up, down = put(eco, "p.curation", 0.5 + STEP), put(eco, "p.curation", 0.5 - STEP)
    slopes = [(alignment(up, state, s) - alignment(down, state, s)) / (2 * STEP) for s in range(101, 101 + seeds)]
    point = open_point(eco, device="cpu")
    for name, network in point.networks.items():
        network.load(state[name])
    audit = audit_networks(eco, rounds=ROUNDS, size=Size(outputs, outputs), seed=7, point=point)
    found = torch.stack(slopes)
    return Compared(found.mean(0), found.std(0) / seeds**0.5, audit)


def agrees(found: Compared, noise: float) -> None:
    """Signs are right, and values within three standard errors of both and a quarter, for the width of the difference.

    Args:
        found: Both.
        noise: Standard error of the retraining at least, as few seeds know little of it.
    """
    predicted, error = found.audit.estimate.answer.matrix[:, 0], found.audit.estimate.errors[:, 0]
    spread = found.error.clamp_min(noise)
    band = 3 * (spread.square() + error.square()).sqrt() + 0.25 * found.slope.abs()
    said = f"retraining {found.slope} ± {spread}; estimate {predicted} ± {error}"
    assert bool((found.slope > 3 * spread).all()), f"retraining cannot tell: {said}"
    assert bool((predicted > 3 * error).all()), said
    assert bool(((predicted - found.slope).abs() < band).all()), said
    # q's alignment moves through p alone, which the isolated counterfactual does not know
    assert float(found.audit.estimate.answer.isolated[1, 0]) == 0
    assert {check.name for check in found.audit.checks if check.result != "passed"} <= {"step size"}, found.audit.checks


def test_predicted_influence_is_what_retraining_shows() -> None:
    """Retraining at p's curation .25 and .75, two seeds each; .05 is the standard error that eight seeds found for two."""
    agrees(compared(4, 2, 2000, 1500), noise=0.05)


@pytest.mark.slow
def test_predicted_influence_is_what_more_retraining_shows() -> None:
    """Eight seeds and more samples."""
    agrees(compared(8, 8, 4000, 4000), noise=0.0)
