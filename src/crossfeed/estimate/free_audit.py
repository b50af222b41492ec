r"""The audit of networks by the matrix-free solver, in independent batches: for models without a likelihood, or where asked for.

As :func:`crossfeed.estimate.audit.audit_networks` has it with a gradient bank: a pilot follows the drift and tells where the
models will be half-way (unless that is farther than a line can be trusted); there the audit proper is made; how far both answers
differ counts into the intervals. The drift is shrunk by what its batches disagree on: model i's mean x̄ of m batches is multiplied by
(1 − s²/‖x̄‖²)₊, s² = Σ_b ‖x_b − x̄‖²/(m (m − 1)) (positive-part James–Stein, the whole vector at once), and so is the course of every
alignment. Errors and intervals: :mod:`crossfeed.estimate.free_batches`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import t as student
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.estimate.audited import Audited, Findings, Groups, Judgement, Seen, Stages, Work, mean_reward
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw
from crossfeed.estimate.estimator import curation_paths
from crossfeed.estimate.free_batches import BATCHES, Plan, Solved, fisher_share, parts_of, solve_batch
from crossfeed.estimate.free_checks import Facts, all_checks, facts_of, kish_of, of_pilot, of_reach
from crossfeed.estimate.free_what_if import what_if_by_batches
from crossfeed.estimate.lookahead import shifted
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point
from crossfeed.estimate.what_if import WhatIf

SOLVER = f"matrix-free, {BATCHES} independent batches"
FREE_SIZE = Size(360, 360)
"""Samples of an audit that is not told how many: passes through samplers cost."""
FARTHEST = 0.5
"""Lengths of a model's parameters that it may be moved to the middle of the horizon; with more it stays where it is."""
LOOKING, SOLVING = "looking ahead", "solving"


@dataclass(frozen=True, eq=False, kw_only=True)
class FreeAudit(Audited):
    """What an audit without a gradient bank found.

    Attributes:
        plan: What all batches have in common.
        draws: By batch.
        shift: By model, the change of its parameters (d,) at which the batches were drawn; empty: none.
        fisher: Share of the empirical Fisher matrix in the curvature.
        batches: (m, E, C) the influence matrix by batch.
        start_errors: (E, C) standard errors of ``rougher``; None without looking ahead.
    """

    plan: Plan
    draws: list[Draws]
    shift: dict[str, Tensor]
    fisher: float
    batches: Tensor = field(repr=False)
    start_errors: Tensor | None = None

    @property
    def linearisation(self) -> Tensor:
        """(E, C) √(Δ² − SE² − SE₀²)₊: how far the estimates half-way and at the start differ beyond the errors that both have.

        The pilot's own errors can be large, where its loop grows; they are no sign of a curved course, and are taken out.
        """
        if self.rougher is None or self.start_errors is None:
            return super().linearisation
        off = (self.findings.matrix - self.rougher).square()
        return (off - self.findings.errors.square() - self.start_errors.square()).clamp_min(0).sqrt()

    def what_if(self, changed: Ecosystem) -> WhatIf:
        """By solving every batch again, before and after the change."""
        with shifted(self.point.networks, self.shift):
            return what_if_by_batches(self.plan, self.draws, self.size, self.fisher, changed)


def audit_free(
    eco: Ecosystem,
    point: Point,
    pathwise: frozenset[str],
    rounds: int,
    size: Size,
    seed: int,
    look_ahead: bool,
    clock: Stages,
) -> FreeAudit:
    """Arguments as for :func:`crossfeed.estimate.audit.audit_networks`.

    Args:
        eco: The ecosystem.
        point: Its models.
        pathwise: Models that are taken by their sampler.
        rounds: Horizon.
        size: How many samples, of all batches together.
        seed: Of all draws.
        look_ahead: Whether to estimate where the models are predicted to be in the middle of the horizon.
        clock: Progress and seconds.
    """
    plan = Plan.of(point, pathwise, rounds, curation_paths(eco), seed)
    run = _Run(plan, clock)
    first: _Batches | None = None
    shift: dict[str, Tensor] = {}
    reach: list[float] = []
    if look_ahead and rounds > 1:
        first = run.batches(LOOKING, size.pilot, 0, course=True, isolated=False)
        shift, reach = first.shift(plan), first.reach(plan)
    with shifted(point.networks, shift):
        found = run.batches(SOLVING, size, 1, course=first is None, isolated=True)
        ahead = first or found
        course = ahead.course()
        with clock.stage("checking"):
            checks = all_checks(plan, found.facts, found.draws, course, found.grown, run.fisher)
            checks.append(of_reach(list(plan.models), reach, FARTHEST))
            if first is not None:
                checks.append(of_pilot(first.grown))
    last = found.influence[:, -1]
    judged = [
        Judgement(
            draws[0].model, draws[0].name, float(value), float(torch.cat([d.rewards for d in draws]).double().std())
        )
        for draws, value in zip(
            zip(*(d.evaluations for d in found.draws), strict=True), found.values.mean(0), strict=True
        )
    ]
    findings = Findings(
        paths=plan.paths,
        matrix=last.mean(0),
        isolated=found.isolated.mean(0),
        errors=batch_errors(last),
        quantile=float(student.ppf(0.5 + eco.audit.confidence / 2, BATCHES - 1)),
        rounds=rounds,
        places=[rounds // 2 if first is not None else 0],
        shown=plan.shown,
        course=course,
        unfolding=found.influence.mean(0),
        judged=judged,
        sources=[
            _groups(point, [batch.sources[s] for batch in found.draws]) for s in range(len(found.draws[0].sources))
        ],
        models=_seen(plan, found.facts),
        work=_work(point, found),
    )
    return FreeAudit(
        eco=eco,
        point=point,
        findings=findings,
        checks=checks,
        size=size,
        seconds=clock.seconds,
        confidence=eco.audit.confidence,
        now=ahead.now(plan),
        seed=seed,
        rougher=None if first is None else first.influence[:, -1].mean(0),
        start_errors=None if first is None else batch_errors(first.influence[:, -1]),
        solver=SOLVER,
        plan=plan,
        draws=found.draws,
        shift=shift,
        fisher=run.fisher,
        batches=last,
    )


def batch_errors(found: Tensor) -> Tensor:
    """Standard errors of the mean over the first dimension."""
    return found.std(0) / len(found) ** 0.5


class _Batches:
    """What all batches of one set gave; of vectors only sums are kept."""

    def __init__(self) -> None:
        self.draws: list[Draws] = []
        self.facts: list[Facts] = []
        self.grown = 0.0
        self._solved: list[Solved] = []
        self._sums: list[Tensor] = []
        self._squares: list[float] = []

    def add(self, draws: Draws, solved: Solved, facts: Facts) -> None:
        if not self._sums:
            self._sums = [torch.zeros_like(part) for part in solved.half]
            self._squares = [0.0] * len(solved.half)
        for i, part in enumerate(solved.half):
            self._sums[i] += part
            self._squares[i] += float(part.double().square().sum())
        solved.half = []
        self.draws.append(draws)
        self.facts.append(facts)
        self.grown = max(self.grown, solved.grown)
        self._solved.append(solved)

    @property
    def influence(self) -> Tensor:
        """(m, shown, E, C)."""
        return torch.stack([solved.influence for solved in self._solved])

    @property
    def isolated(self) -> Tensor:
        """(m, E, C)."""
        return torch.stack([solved.isolated for solved in self._solved if solved.isolated is not None])

    @property
    def values(self) -> Tensor:
        """(m, E)."""
        return torch.stack([solved.values for solved in self._solved])

    def factors(self) -> list[float]:
        """By model, the share of the mean drift that is more than noise."""
        m, out = len(self.draws), []
        for total, squares in zip(self._sums, self._squares, strict=True):
            mean = float((total.double() / m).square().sum())
            noise = max(0.0, squares - m * mean) / (m * (m - 1))
            out.append(max(0.0, 1 - noise / mean) if 0 < mean < math.inf else 0.0)
        return out

    def reach(self, plan: Plan) -> list[float]:
        """By model, how far the shrunk course goes to the middle of the horizon, in lengths of the model's parameters."""
        out = []
        for model, total, factor in zip(plan.models.values(), self._sums, self.factors(), strict=True):
            own = float(flatten(model.parameters()).norm())
            out.append(factor * float(total.double().norm()) / len(self.draws) / max(own, 1e-300))
        return out

    def shift(self, plan: Plan) -> dict[str, Tensor]:
        """By model, the shrunk mean state half-way (d,); none of a model that would go farther than a line is a guide."""
        parts = zip(plan.models, self._sums, self.factors(), self.reach(plan), strict=True)
        return {name: factor * total / len(self.draws) for name, total, factor, reach in parts if 0 < reach <= FARTHEST}

    def course(self) -> Tensor:
        """(shown, E) change of alignment if nothing changes: each number's mean c̄ over batches times (1 − SE²/c̄²)₊."""
        found = torch.stack([solved.course for solved in self._solved if solved.course is not None])
        mean, noise = found.mean(0), batch_errors(found).square()
        return mean * (1 - noise / mean.square().clamp_min(1e-300)).clamp_min(0)

    def now(self, plan: Plan) -> list[tuple[float, float]]:
        """(E,) mean reward of all batches, and its standard error over clusters."""
        sets: list[tuple[EvaluationDraw, ...]] = list(zip(*(draws.evaluations for draws in self.draws), strict=True))
        return [
            mean_reward(torch.cat([draw.rewards for draw in draws]), _clusters(plan.point, draws)) for draws in sets
        ]


class _Run:
    """Draws batches and solves them, at the models' parameters of the moment."""

    def __init__(self, plan: Plan, clock: Stages) -> None:
        self.plan, self.clock = plan, clock
        self.fisher: float = -1.0

    def batches(self, stage: str, size: Size, number: int, *, course: bool, isolated: bool) -> _Batches:
        found, plan = _Batches(), self.plan
        total = BATCHES * parts_of(plan, course=course, isolated=isolated)
        keep = plan.keeps_rows(size)
        with self.clock.stage(stage, total) as advance:
            for batch in range(BATCHES):
                draws = plan.draws(size, number, batch)
                loop = plan.loop(draws, keep, max(0.0, self.fisher))
                if self.fisher < 0:
                    self.fisher = fisher_share(plan, loop)
                solved = solve_batch(plan, loop, course=course, isolated=isolated, advance=advance)
                found.add(draws, solved, facts_of(loop))
        return found


def _clusters(point: Point, draws: Sequence[EvaluationDraw]) -> Tensor:
    """Of all batches: prompts are the same everywhere, other groups stand alone."""
    if point.world.medium == "text":
        return torch.cat([draw.clusters for draw in draws])
    return torch.arange(sum(len(draw.clusters) for draw in draws))


def _groups(point: Point, draws: Sequence[SourceDraw]) -> Groups:
    """A source in all batches together."""
    groups = kish_of([draw.clusters for draw in draws], point.world.medium == "text")
    return Groups(sum(len(draw.clusters) for draw in draws), draws[0].candidates, groups)


def _seen(plan: Plan, facts: Sequence[Facts]) -> list[Seen]:
    out = []
    for i, (name, size) in enumerate(zip(plan.models, plan.sizes, strict=True)):
        curvature = sum(fact.curvature[i] for fact in facts) / len(facts)
        out.append(Seen(size, size, "parameters", curvature, "pathwise" if name in plan.pathwise else "score function"))
    return out


def _work(point: Point, found: _Batches) -> Work:
    made = 0
    for draws in found.draws:
        outputs = {id(d.outputs if d.made is None else d.made): d for d in draws.sources if d.producer is not None}
        made += sum(len(draw.outputs) for draw in outputs.values())
        made += sum(len(draw.outputs) for draw in draws.evaluations)
    together = [
        torch.cat([*(d.clusters for d in draws.sources), *(d.clusters for d in draws.evaluations)])
        for draws in found.draws
    ]
    text = point.world.medium == "text"
    clusters = len(torch.cat(together).unique()) if text else sum(len(part.unique()) for part in together)
    work = sum(fact.passes for fact in found.facts)
    return Work(made, work, clusters, max(fact.bytes for fact in found.facts))
