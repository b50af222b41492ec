"""Ecosystems for the matrix-free solver, with the loops around their parameters."""

from __future__ import annotations

from typing import Any

import torch
from free_systems import Bent, Common, Source
from small_networks import flow, move, seeded
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.describe.schema import Affine, Ecosystem, Pick
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.closed_form import ClosedForm
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates
from crossfeed.estimate.steps import Steps
from crossfeed.families.gaussian import GaussianFull
from crossfeed.networks.build import build
from crossfeed.networks.rewards import build_reward
from crossfeed.networks.world import open_world

SGD = Training(steps=20, batch_size=10, optimizer="sgd", learning_rate=0.05, gradient_clip=None, weight_decay=0.1)
ADAM = Training(steps=20, batch_size=10, learning_rate=3e-3, weight_decay=0.01)
TWO_ROUNDS = [[[0, 1]], [[1], [0]]]


def right(prompts: Tensor, y: Tensor) -> Tensor:
    return y[:, 0] + 0.3 * y[:, 1] ** 2


def up(prompts: Tensor, y: Tensor) -> Tensor:
    return y[:, 1] - 0.2 * (y[:, 0] - 1) ** 2


REWARDS = {"right": right, "up": up}
PEOPLE = {"p": "right", "q": "up"}
TWO_STAGES = Pick(candidates=2, noise=0.1, temperature=0.7, then=Pick(candidates=2, curator="up"))


def moved_flow(name: str, seed: int) -> Differentiable:
    network = flow(bins=3)
    move(network, 0.2, seed=seed)
    model = differentiable(network)
    model.name = name
    return model


def gaussian(name: str) -> ClosedForm:
    return ClosedForm(name, GaussianFull(2), torch.tensor([0.3, -0.2, 0.1, -0.3, 0.2], dtype=torch.float64))


DATA = 2 * torch.randn(40, 2, generator=seeded(50), dtype=torch.float64)
TURNED = Affine(matrix=[[0.9, 0.2], [-0.1, 0.8]], shift=[0.1, 0.0])
OTHERS = Pick(candidates=2, other_curator="right", other_share=0.3)


def flows(num: int = 30) -> Common:
    """p takes data, its own curated outputs and q's, mapped; q p's raw ones and its own, curated by two kinds of people."""
    sources = [
        Source("p", 0.4, data=DATA),
        Source("p", 0.3, "p", TWO_STAGES),
        Source("p", 0.3, "q", Pick(candidates=3), map=TURNED),
        Source("q", 0.3, data=-DATA),
        Source("q", 0.4, "p"),
        Source("q", 0.3, "q", OTHERS),
    ]
    return Common({name: moved_flow(name, k) for k, name in enumerate("pq", 1)}, sources, PEOPLE, REWARDS, num)


def beside(num: int = 40) -> Common:
    """p is a flow on data and q's picks; q a Gaussian on p's raw and curated outputs, mapped, and on its own."""
    sources = [
        Source("p", 0.6, data=DATA),
        Source("p", 0.4, "q", Pick(candidates=2)),
        Source("q", 0.2, data=-DATA),
        Source("q", 0.2, "p"),
        Source("q", 0.4, "p", TWO_STAGES, map=TURNED),
        Source("q", 0.2, "q", OTHERS),
    ]
    return Common({"p": moved_flow("p", 1), "q": gaussian("q")}, sources, PEOPLE, REWARDS, num)


def smooth(num: int = 40) -> Common:
    """Two models that are smooth in everything: a small network and a Gaussian."""
    sources = [
        Source("p", 0.5, data=DATA),
        Source("p", 0.2, "p", TWO_STAGES),
        Source("p", 0.3, "q", Pick(candidates=2), map=TURNED),
        Source("q", 0.4, data=-DATA),
        Source("q", 0.3, "p"),
        Source("q", 0.3, "p", Pick(candidates=3, noise=0.1)),
    ]
    return Common({"p": Bent("p", 0), "q": gaussian("q")}, sources, PEOPLE, REWARDS, num, decay=0.3)


def free(common: Common, *, pathwise: Any = None, steps: Any = None, ridge: float = 1e-3, **rest: Any) -> MatrixFree:
    rates = rest.pop("rates", None) or RewardRates(smooth=common.rewards)
    steps = steps or [Steps(None)] * len(common.models)
    ridges = [ridge] * len(common.models)
    return MatrixFree(common.models, common.draws(), steps, ridges, rates=rates, pathwise=pathwise, **rest)


def vectors(loop: MatrixFree, seed: int, columns: int = 1) -> Tensor:
    return torch.randn(sum(loop.sizes), columns, generator=seeded(seed), dtype=torch.float64)


def drawn(eco: Ecosystem, size: Size, shift: float, **rest: Any) -> tuple[dict[str, Differentiable], Draws, Any]:
    world = open_world(eco)
    networks = build(world)
    for k, network in enumerate(networks.values()):
        move(network, shift, seed=k)
    rewards = {name: build_reward(node, world, name=name) for name, node in eco.rewards.items()}
    prompts = {name: torch.zeros(20, dtype=torch.int64) for name in eco.models}
    if world.medium == "text":
        prompts = {name: torch.arange(20) for name in eco.models}
    draws = network_draws(world, networks, rewards, prompts, size, 0, **rest)
    return {name: differentiable(network) for name, network in networks.items()}, draws, rewards


def differences(common: Common, x: list[Tensor], h: float) -> list[Tensor]:
    """How F moves when everything that makes samples moves along x, by model."""
    ends = [common.force(common.moved([c[:, 0] for c in x], sign * h), own=common.here) for sign in (1, -1)]
    return [(one - other).double() / (2 * h) for one, other in zip(*ends, strict=True)]
