"""The audit of an ecosystem of networks from samples: what `crossfeed audit` does where models are networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import norm
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import SettingError
from crossfeed.estimate.audited import Audited, Findings, Groups, Judgement, Progress, Seen, Stages, Work, mean_reward
from crossfeed.estimate.bank import LIMIT, Bank
from crossfeed.estimate.checks import all_checks, effective, way
from crossfeed.estimate.estimator import Estimate, estimate_legs
from crossfeed.estimate.free_audit import FREE_SIZE, FreeAudit, audit_free
from crossfeed.estimate.influence import meet, outcomes
from crossfeed.estimate.legs import over, travel
from crossfeed.estimate.lookahead import Course, between, course
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point, open_point
from crossfeed.estimate.recorded import Recorded, read_recorded
from crossfeed.estimate.route import Route, choose_route
from crossfeed.estimate.swings import swings
from crossfeed.estimate.walk import Walking, places_of, walk
from crossfeed.estimate.what_if import WhatIf, what_if


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkAudit(Audited):
    """What an audit of networks with a gradient bank found.

    Attributes:
        estimate: Influence matrix, standard errors, gradients: for further questions.
        course: Where the loop is predicted to go without any change, from the present parameters.
    """

    estimate: Estimate
    course: Course

    @property
    def bank(self) -> Bank:
        """Gradients at the last place."""
        return self.estimate.bank

    def what_if(self, changed: Ecosystem) -> WhatIf:
        """From the bank."""
        return what_if(self.estimate, changed)


def audit_networks(
    eco: Ecosystem,
    *,
    run: str | Path | None = None,
    round: int | None = None,
    rounds: int | None = None,
    size: Size | None = None,
    seed: int | None = None,
    device: str = "auto",
    look_ahead: bool = True,
    limit: int = LIMIT,
    projection: int | None = None,
    spill: Path | None = None,
    memory: int | None = None,
    point: Point | None = None,
    outputs: Mapping[str, str | Path] | None = None,
    estimator: str = "auto",
    progress: Progress | None = None,
) -> NetworkAudit | FreeAudit:
    """Estimate the influence of curation on every alignment, without retraining.

    Args:
        eco: The ecosystem; all its models are networks.
        run: A run folder, to audit its models after a round; None: the models as they start.
        round: Of the run; None: its last.
        rounds: Horizon; None: the spec's ``run.rounds``, or what is left of the run if that is more than nothing.
        size: How many samples at each place; None: :func:`default_size`.
        seed: Of all draws; None: the spec's.
        device: As for running.
        look_ahead: Take gradients along the course that the models are predicted to take, in :data:`PLACES` places, if their parameters
            are not more than ``limit`` (matrix-free: in its middle); else where they are now.
        limit: Models with more parameters are kept in their samples' span.
        projection: Or in so many random coordinates, where they have more parameters than that.
        spill: Folder for gradients that do not fit into memory; None: that of temporary files.
        memory: Bytes of memory that gradients which could be in files may take; None: 40 % of what is free.
        point: Where the models are, if they have been opened; ``run``, ``round`` and ``device`` are then not looked at.
        outputs: Files with outputs that models gave as they are now, by model, to take instead of new ones
            (:mod:`crossfeed.estimate.recorded`); gradients are then taken at the present parameters, without looking ahead.
        estimator: ``bank``, which needs a likelihood of every model; ``matrix-free``, which takes those without one by their sampler;
            ``auto``: the bank where it can.
        progress: Called with (stage, done, in all).

    Raises:
        NotAvailableError: what the estimator cannot do (:func:`crossfeed.estimate.route.choose_route`), before any model is opened.
        CheckFailedError: rewards or gradients that are not finite, or all gradients of a model zero.
    """
    route = choose_route(eco, estimator, outputs or {})
    clock = Stages(progress)
    if point is None:
        with clock.stage("opening the models"):
            point = open_point(eco, run, round, device, progress)
    rounds = rounds or point.rounds_left
    if rounds < 1:
        raise SettingError(f"rounds: found {rounds}; need at least 1")
    seed = eco.seed if seed is None else seed
    if route.solver == "matrix-free":
        size = size or FREE_SIZE
        return audit_free(eco, point, route.pathwise, rounds, size, seed, look_ahead, clock)
    recorded = _recorded(outputs or {}, point)
    at = places_of(point, rounds, look_ahead and not recorded, limit)
    size = size or default_size(point, route, len(at))
    keeping = {"limit": limit, "projection": projection, "spill": spill, "memory": memory}
    work = Walking(eco, point, seed, keeping, recorded, clock)
    legs, seen, held = walk(work, at, rounds, size)
    with clock.stage("solving"):
        found = estimate_legs(eco, legs)
        values = [[mean_reward(draw.rewards, draw.clusters) for draw in answers] for answers in seen]
        means = torch.tensor([[value for value, _ in row] for row in values], dtype=torch.float64)
        ahead = between(at, rounds, means) if len(at) > 1 else course(legs[0])
    with clock.stage("checking"):
        checks = all_checks(found.legs, found.answers, ahead, found.errors)
        if len(at) > 1:
            checks.append(way(held))
    return NetworkAudit(
        eco=eco,
        point=point,
        findings=_findings(found, ahead, at),
        checks=checks,
        size=size,
        seconds=clock.seconds,
        confidence=eco.audit.confidence,
        now=values[0],
        seed=seed,
        rougher=_rougher(found) if len(legs) > 1 else None,
        solver="gradient bank",
        estimate=found,
        course=ahead,
    )


def _rougher(found: Estimate) -> Tensor:
    """The influence matrix from the first and the last place alone; where there are no others, from the last."""
    first, last = found.legs[0], found.legs[-1]
    middle = (first.first + last.stop) // 2 if len(found.legs) > 2 else first.first
    legs, pushes = [replace(last, first=middle)], [found.answer.pushes]
    if middle > first.first:
        legs, pushes = [replace(first, stop=middle), *legs], [found.answers[0].pushes, *pushes]
    end = travel(legs, pushes, [swings(leg, found.directions) for leg in legs])[-1].end
    goals = outcomes(found.bank, found.answer.judged, found.answer.system.sizes)
    return meet(goals, end)


def default_size(point: Point, route: Route, number: int) -> Size:
    """Samples at each of ``number`` places of an audit that is not told how many."""
    if route.solver == "matrix-free":
        return FREE_SIZE
    if point.world.medium == "text":
        return Size(1000, 1000)
    return Size() if number > 1 else Size(4000, 4000)


def _findings(found: Estimate, ahead: Course, at: list[int]) -> Findings:
    """What the bank's estimate says, as every solver says it."""
    answer, bank = found.answer, found.bank
    rounds = len(found.horizon.rounds or ())
    every = [rows for leg in found.legs for rows in leg.bank.sources]
    made = {id(rows.draw.outputs): len(rows.draw.outputs) for rows in every if rows.producer is not None}
    worked = {rows.loss.data_ptr(): len(rows.loss) for rows in every}
    worked |= {rows.score.data_ptr(): len(rows.score) for rows in every if rows.score is not None}
    worked |= {rows.score.data_ptr(): len(rows.score) for rows in bank.evaluations}
    return Findings(
        paths=found.paths,
        matrix=answer.matrix,
        isolated=answer.isolated,
        errors=found.errors,
        quantile=float(norm.ppf(0.5 + found.eco.audit.confidence / 2)),
        rounds=rounds,
        places=at,
        shown=list(range(rounds + 1)),
        course=ahead.alignment,
        unfolding=torch.stack(_unfolding(found)),
        judged=[
            Judgement(rows.draw.model, rows.draw.name, judged.value, float(rows.draw.rewards.double().std()))
            for rows, judged in zip(bank.evaluations, answer.judged, strict=True)
        ],
        sources=[Groups(len(rows.draw.clusters), rows.draw.candidates, effective(rows)) for rows in bank.sources],
        models=[
            Seen(
                rows.num_params,
                rows.basis.size,
                rows.basis.words,
                float(answer.system.spectrum(i)[-1]),
                "score function",
            )
            for i, rows in enumerate(bank.models)
        ],
        asked=_asked(found),
        work=Work(
            sum(made.values()) + sum(len(rows.draw.outputs) for rows in bank.evaluations),
            sum((worked | {rows.curvature.data_ptr(): len(rows.curvature) for rows in every}).values()),
            found.num_clusters,
            sum(leg.bank.nbytes for leg in found.legs),
        ),
    )


def _asked(found: Estimate) -> Tensor | None:
    parts = [part for part in (answer.asked for answer in found.answers) if part is not None]
    return torch.stack(parts).sum(0) if parts else None


def _unfolding(found: Estimate) -> list[Tensor]:
    """(E, C) influence after every round from 0, by ∇J at the end of the horizon."""
    goals = outcomes(found.bank, found.answer.judged, found.answer.system.sizes)
    out: list[Tensor] = []
    for k in reversed(range(len(found.legs))):
        path = found.answers[k].path
        assert path is not None
        states = path.after_rounds[1:] if k else path.after_rounds
        out[:0] = [meet(goals, state) for state in states]
        if k:
            goals = over(found.legs[k - 1].bank, found.legs[k].bank, goals)
    return out


def _recorded(outputs: Mapping[str, str | Path], point: Point) -> dict[str, Recorded]:
    for name in outputs:
        if name not in point.networks:
            need = f"need one of {', '.join(point.networks)}"
            raise SettingError(f"outputs of {name}: found no such model; {need}")
    return {name: read_recorded(name, file, point.world) for name, file in outputs.items()}
