"""Points, draws and banks of tiny ecosystems of networks, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from crossfeed.describe.network_nodes import Training
from crossfeed.describe.schema import Curated, Ecosystem, Raw, Real, Vectors
from crossfeed.estimate.bank import Bank, build_bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.estimator import Estimate, estimate
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import Point, open_point
from networks import tiny

SGD = Training(steps=20, batch_size=50, optimizer="sgd", learning_rate=0.02, gradient_clip=None)


@dataclass(frozen=True)
class Made:
    """An ecosystem, where its models are, samples of them and their gradients."""

    eco: Ecosystem
    point: Point
    draws: Draws
    bank: Bank

    def estimate(self, **options: Any) -> Estimate:
        return estimate(self.eco, self.bank, **({"rounds": 3} | options))


def opened(eco: Ecosystem, double: bool = True, shift: float = 0.1) -> Point:
    """The models as they start; flows in float64 and moved by a random vector, so that no two are alike."""
    point = open_point(eco, device="cpu")
    random = torch.Generator().manual_seed(5)
    for network in point.networks.values():
        if double and isinstance(eco.space, Vectors):
            network.module.double()  # type: ignore[attr-defined]
        with torch.no_grad():
            for value in network.parameters().values():
                value += shift * torch.randn(value.shape, generator=random).to(value)
    return point


def drawn(point: Point, outputs: int = 400, evaluation: int = 200, answers: int = 2, seed: int = 0) -> Draws:
    size = Size(outputs, evaluation, answers)
    return network_draws(point.world, point.networks, point.rewards, point.prompts, size, seed)


def made(
    eco: Ecosystem,
    outputs: int = 400,
    evaluation: int = 200,
    *,
    answers: int = 2,
    seed: int = 0,
    limit: int = 3000,
    point: Point | None = None,
    change: Callable[[Draws], Draws] | None = None,
    model: Callable[[Any], Differentiable] = differentiable,
) -> Made:
    point = opened(eco) if point is None else point
    draws = drawn(point, outputs, evaluation, answers, seed)
    draws = draws if change is None else change(draws)
    models = {name: model(network) for name, network in point.networks.items()}
    trainings = {name: node.train for name, node in eco.models.items()}
    return Made(eco, point, draws, build_bank(models, draws, trainings, limit=limit))


def trained_by(eco: Ecosystem, training: Training) -> Ecosystem:
    """The same with this training for every model."""
    models = {name: model.model_copy(update={"train": training}) for name, model in eco.models.items()}
    return eco.model_copy(update={"models": models})


def with_source(draws: Draws, number: int, **changes: Any) -> Draws:
    """The same with one source changed."""
    sources = list(draws.sources)
    sources[number] = replace(sources[number], **changes)
    return replace(draws, sources=sources)


def crossed(folder: Path, **more: object) -> Ecosystem:
    """p: half its own data, half q's answers; q: its own data, p's answers and answers to p's data, which are named."""
    eco = trained_by(tiny.languages(folder, lora=False), SGD)
    data = {n: next(s.data for s in m.sources if isinstance(s, Real)) for n, m in eco.models.items()}
    sources = {
        "p": [Real(data=data["p"], weight=0.5), Raw(producer="q", weight=0.5)],
        "q": [
            Real(data=data["q"], weight=0.25),
            Curated(producer="p", weight=0.25, candidates=2),
            Raw(producer="q", weight=0.5, inputs=data["p"], name="named"),
        ],
    }
    models = {n: m.model_copy(update={"sources": sources[n]}) for n, m in eco.models.items()}
    return Ecosystem.model_validate(eco.model_copy(update={"models": models} | more).model_dump())
