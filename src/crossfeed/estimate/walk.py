"""Samples and gradients along the course that a loop is predicted to take, which these very gradients predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.estimate.audited import Stages
from crossfeed.estimate.bank import CURVATURE, LIMIT, Bank, build_bank, plain
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.composition import composed
from crossfeed.estimate.draws import Draws, EvaluationDraw
from crossfeed.estimate.estimator import prepare, rounds_ahead
from crossfeed.estimate.legs import PLACES, Leg, borders, places
from crossfeed.estimate.lookahead import held_back, position, shifted
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.outliers import shortened
from crossfeed.estimate.points import Point
from crossfeed.estimate.recorded import Recorded
from crossfeed.networks.base import Outputs


def places_of(point: Point, rounds: int, look_ahead: bool = True, limit: int = LIMIT) -> list[int]:
    """After which rounds an audit with a bank takes gradients; now alone (0), if some model is kept in its samples' span."""
    models = [differentiable(network) for network in point.networks.values()]
    return places(rounds, PLACES) if look_ahead and all(plain(model, limit) for model in models) else [0]


def walk(
    work: Walking, at: Sequence[int], rounds: int, size: Size
) -> tuple[list[Leg], list[list[EvaluationDraw]], dict[str, float]]:
    """Take gradients along the course that these very gradients predict: legs, answers to evaluations by place, and the smallest
    share of a predicted way that a model was let go.
    """
    ends, networks = borders(at, rounds), work.point.networks
    ahead = rounds_ahead(work.eco, rounds, work.point.round + 1)
    reach = max(stop - first for first, stop in pairwise(ends))
    legs: list[Leg] = []
    seen: list[list[EvaluationDraw]] = []
    held: dict[str, float] = {}
    centres: list[dict[str, Tensor]] = [{}]
    for k, place in enumerate(at):
        if k:
            with work.clock.stage("solving"):
                there = position(legs, centres, place)
                for name, share in held_back(legs[-1], work.models, centres[-1], there).items():
                    was = centres[-1].get(name, torch.zeros(()))
                    there[name] = was + share * (there[name] - was)
                    held[name] = min(held.get(name, 1.0), share)
                centres.append(there)
        last = k == len(at) - 1
        asked = composed(work.point.world, work.point.prompts, ahead, ends[k], ends[k + 1], work.recorded)
        with shifted(networks, centres[-1]):
            bank, answers = work.bank(size if last else size.on_the_way, k, last, asked.prompts)
        seen.append(answers)
        with work.clock.stage("solving"):
            horizon, system = prepare(work.eco, bank, rounds=rounds, first_round=work.point.round + 1, reach=reach)
            legs.append(Leg(bank, horizon, system, ends[k], ends[k + 1], asked))
    return legs, seen, held


class Walking:
    """Samples and gradients of the models as they are at the moment."""

    def __init__(
        self,
        eco: Ecosystem,
        point: Point,
        seed: int,
        keeping: Mapping[str, Any],
        recorded: Mapping[str, Recorded],
        clock: Stages,
    ) -> None:
        self.eco, self.point, self.seed = eco, point, seed
        self.models = {name: differentiable(network) for name, network in point.networks.items()}
        self.keeping, self.clock = keeping, clock
        self.recorded, self.clusters = recorded, 0

    def bank(
        self, size: Size, number: int, judge: bool, prompts: Mapping[str, Tensor]
    ) -> tuple[Bank, list[EvaluationDraw]]:
        """Gradients of new samples, and answers to the evaluations; gradients of these, too, if asked for."""
        point, clock = self.point, self.clock
        with clock.stage("sampling", outputs_of(self.eco, size)) as advance:
            draws = network_draws(
                point.world,
                point.networks,
                point.rewards,
                prompts,
                size,
                self.seed + 7919 * number,
                advance,
                recorded=self.recorded,
                first_cluster=self.clusters,
            )
        clusters = [d.clusters for d in draws.sources] + [d.clusters for d in draws.evaluations]
        self.clusters = max(self.clusters, *(1 + int(found.max()) for found in clusters))
        judged = draws.evaluations
        draws = draws if judge else Draws(draws.sources, [])
        count = gradients_of(self.models, draws)
        with clock.stage("gradients", count) as advance:
            trainings = {name: model.train for name, model in self.eco.models.items()}
            bank = build_bank(self.models, draws, trainings, seed=self.seed, advance=advance, **self.keeping)
            return shortened(bank, self.seed), judged


def outputs_of(eco: Ecosystem, size: Size) -> int:
    """About how many outputs are generated."""
    producers = {(s.producer, s.inputs) for m in eco.models.values() for s in m.sources if s.kind in ("raw", "curated")}
    return len(producers) * size.outputs + sum(len(m.evaluate or [0]) for m in eco.models.values()) * size.evaluation


def gradients_of(models: Mapping[str, Differentiable], draws: Draws) -> int:
    """About how many gradients are worked out: losses, scores and curvature, once for all who share them."""
    out: dict[tuple[object, ...], int] = {}

    def score(name: str, outputs: Outputs, temperature: float) -> None:
        kind = "loss" if models[name].loss_is_score and temperature == 1 else f"score at {temperature}"
        out[name, kind, id(outputs)] = len(outputs)

    for draw in draws.sources:
        out[draw.consumer, "loss", id(draw.outputs)] = len(draw.outputs)
        out[draw.consumer, "curvature", id(draw.outputs)] = min(len(draw.outputs), CURVATURE)
        if draw.producer is not None:
            score(draw.producer, draw.outputs if draw.made is None else draw.made, draw.temperature)
    for answers in draws.evaluations:
        score(answers.model, answers.outputs, 1.0)
    return sum(out.values())
