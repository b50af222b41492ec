"""The audit of an ecosystem of networks from samples: what `crossfeed audit` does where models are networks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate.bank import LIMIT, Bank, build_bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.checks import Check, all_checks
from crossfeed.estimate.estimator import Estimate, curation_paths, directions_of, estimate, prepare
from crossfeed.estimate.influence import solve
from crossfeed.estimate.lookahead import Course, course, moved, shifted
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import Point, open_point
from crossfeed.estimate.recorded import Recorded, read_recorded
from crossfeed.networks.base import LIKELIHOOD

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class NetworkAudit:
    """What an audit of networks found.

    Attributes:
        estimate: Influence matrix, standard errors, bank: for further questions.
        point: Where the models were.
        course: Where the loop is predicted to go without any change, from the present parameters.
        checks: What was checked.
        size: How many samples.
        seconds: By stage.
        confidence: Level of the intervals.
        now: (E,) present alignment and its standard error over clusters.
        seed: Of all draws.
        start: (E, C) the influence matrix from gradients at the present parameters, by the smaller samples that told where the loop
            goes; None without looking ahead.
    """

    estimate: Estimate
    point: Point
    course: Course
    checks: list[Check]
    size: Size
    seconds: dict[str, float]
    confidence: float = 0.95
    now: list[tuple[float, float]] = field(default_factory=list)
    seed: int = 0
    start: Tensor | None = None

    @property
    def linearisation(self) -> Tensor:
        """(E, C) how far the estimate hangs on where gradients are taken: half-way along the course against at its start."""
        matrix = self.estimate.answer.matrix
        return torch.zeros_like(matrix) if self.start is None else (matrix - self.start).abs()

    @property
    def eco(self) -> Ecosystem:
        """The ecosystem."""
        return self.estimate.eco

    @property
    def bank(self) -> Bank:
        """Gradients where they were taken."""
        return self.estimate.bank

    @property
    def half_width(self) -> Tensor:
        """(E, C) half the width of the intervals: z √(SE² + linearisation²)."""
        return float(norm.ppf(0.5 + self.confidence / 2)) * torch.hypot(self.estimate.errors, self.linearisation)

    def verdicts(self) -> list[list[str]]:
        """(E, C) per pair: ``helps``, ``dampened``, ``no effect``, ``backfires`` (own curation) or ``harms``, or ``cannot tell``.

        ``no effect`` where no path leads from the curation to the evaluation. ``dampened``: the own influence is positive but smaller than
        the isolated counterfactual by more than the interval.
        """
        out = []
        matrix, alone, half = self.estimate.answer.matrix, self.estimate.answer.isolated, self.half_width
        for e, judged in enumerate(self.bank.evaluations):
            row = []
            for c, path in enumerate(self.estimate.paths):
                own = path.partition(".")[0] == judged.draw.model
                row.append(_verdict(float(matrix[e, c]), float(half[e, c]), float(alone[e, c]) if own else None))
            out.append(row)
        return out

    def needed(self) -> list[list[int | None]]:
        """(E, C) outputs per producer at which the samples would tell the sign; None where nothing moves, or where they do
        already and only the linearisation hides it.
        """
        reach = float(norm.ppf(0.5 + self.confidence / 2))
        out: list[list[int | None]] = []
        rows = zip(
            *(t.tolist() for t in (self.estimate.answer.matrix, self.estimate.errors, self.half_width)), strict=True
        )
        for values, errors, halves in rows:
            row: list[int | None] = []
            for v, e, h in zip(values, errors, halves, strict=True):
                hidden = reach * e < abs(v) <= h
                alone = v == 0 or e == 0
                row.append(
                    None if hidden or alone else min(10**12, math.ceil(self.size.outputs * (reach * e / v) ** 2))
                )
            out.append(row)
        return out


def _verdict(value: float, half: float, alone: float | None) -> str:
    if value == 0 and half == 0:
        return "no effect"
    if abs(value) <= half:
        return "cannot tell"
    if value < 0:
        return "harms" if alone is None else "backfires"
    return "dampened" if alone is not None and value + half < alone else "helps"


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
    point: Point | None = None,
    outputs: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> NetworkAudit:
    """Estimate the influence of curation on every alignment, without retraining.

    Args:
        eco: The ecosystem; all its models are networks.
        run: A run folder, to audit its models after a round; None: the models as they start.
        round: Of the run; None: its last.
        rounds: Horizon; None: the spec's ``run.rounds``, or what is left of the run if that is more than nothing.
        size: How many samples; None: 4,000 outputs a producer for vectors and images, 1,000 for texts.
        seed: Of all draws; None: the spec's.
        device: As for running.
        look_ahead: Take gradients where the models are predicted to be in the middle of the horizon.
        limit: Models with more parameters are kept in their samples' span.
        point: Where the models are, if they have been opened; ``run``, ``round`` and ``device`` are then not looked at.
        outputs: Files with outputs that models gave as they are now, by model, to take instead of new ones
            (:mod:`crossfeed.estimate.recorded`); gradients are then taken at the present parameters, without looking ahead.
        progress: Called with (stage, done, in all).

    Raises:
        NotAvailableError: models without a likelihood.
        CheckFailedError: rewards or gradients that are not finite, or all gradients of a model zero.
    """
    clock = _Clock(progress)
    if point is None:
        with clock.stage("opening the models"):
            point = open_point(eco, run, round, device, progress)
    rounds = rounds or point.rounds_left
    if rounds < 1:
        raise SettingError(f"rounds: found {rounds}; need at least 1")
    size = size or (Size(1000, 1000) if point.world.medium == "text" else Size())
    seed = eco.seed if seed is None else seed
    models = {name: differentiable(network) for name, network in point.networks.items()}
    for name, model in models.items():
        if LIKELIHOOD not in model.capabilities:
            raise NotAvailableError(
                f"models.{name}: a {eco.models[name].family.kind} network has no likelihood, and the gradient bank needs one; "
                "use the matrix-free solver"
            )
    recorded = _recorded(outputs or {}, point)
    look_ahead = look_ahead and not recorded
    work = _Work(eco, point, models, seed, limit, recorded, clock)
    ahead: Course | None = None
    first: Bank | None = None
    start: Tensor | None = None
    shift: dict[str, Tensor] = {}
    if look_ahead and rounds > 1:
        first = work.bank(size.pilot, 0)
        with clock.stage("solving"):
            horizon, system = prepare(eco, first, rounds=rounds, first_round=point.round + 1)
            ahead = course(first, system, horizon)
            shift = moved(first, ahead.path.after_rounds[rounds // 2])
            start = solve(first, horizon, directions_of(eco, first, curation_paths(eco)), system=system).matrix
    with shifted(point.networks, shift):
        bank = work.bank(size, 1)
    with clock.stage("solving"):
        found = estimate(eco, bank, rounds=rounds, first_round=point.round + 1)
        ahead = ahead or course(bank, found.answer.system, found.horizon)
    with clock.stage("checking"):
        checks = all_checks(found.bank, found.answer, found.horizon, ahead, found.errors)
    now = [_mean(rows.draw.rewards, rows.draw.clusters) for rows in (first or bank).evaluations]
    return NetworkAudit(
        found, point, ahead, checks, size, clock.seconds, eco.audit.confidence, now=now, seed=seed, start=start
    )


def _recorded(outputs: Mapping[str, str | Path], point: Point) -> dict[str, Recorded]:
    for name in outputs:
        if name not in point.networks:
            need = f"need one of {', '.join(point.networks)}"
            raise SettingError(f"outputs of {name}: found no such model; {need}")
    return {name: read_recorded(name, file, point.world) for name, file in outputs.items()}


def _mean(rewards: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean reward of answers (n, K), and its standard error over clusters."""
    _, index = clusters.unique(return_inverse=True)
    num, mean = int(index.max()) + 1, float(rewards.mean())
    sums = torch.zeros(num, dtype=torch.float64).index_add(0, index, rewards.double().mean(1) - mean)
    return mean, float((sums.square().sum() * num / max(1, num - 1)).sqrt()) / len(rewards)


class _Work:
    """Samples and gradients of the models as they are at the moment."""

    def __init__(
        self,
        eco: Ecosystem,
        point: Point,
        models: Mapping[str, Differentiable],
        seed: int,
        limit: int,
        recorded: Mapping[str, Recorded],
        clock: _Clock,
    ) -> None:
        self.eco, self.point, self.models, self.seed, self.limit, self.clock = eco, point, models, seed, limit, clock
        self.recorded = recorded

    def bank(self, size: Size, number: int) -> Bank:
        point, clock = self.point, self.clock
        total = outputs_of(self.eco, size)
        with clock.stage("sampling", total) as advance:
            draws = network_draws(
                point.world,
                point.networks,
                point.rewards,
                point.prompts,
                size,
                self.seed + 7919 * number,
                advance,
                recorded=self.recorded,
            )
        count = gradients_of(draws.sources, draws.evaluations)
        with clock.stage("gradients", count) as advance:
            trainings = {name: model.train for name, model in self.eco.models.items()}
            return build_bank(self.models, draws, trainings, seed=self.seed, limit=self.limit, advance=advance)


def outputs_of(eco: Ecosystem, size: Size) -> int:
    """About how many outputs are generated."""
    producers = {(s.producer, s.inputs) for m in eco.models.values() for s in m.sources if s.kind in ("raw", "curated")}
    return len(producers) * size.outputs + sum(len(m.evaluate or [0]) for m in eco.models.values()) * size.evaluation


def gradients_of(sources: Sequence[Any], evaluations: Sequence[Any]) -> int:
    """About how many gradients are worked out: losses, scores and curvature."""
    return sum(2 * len(d.outputs) for d in sources) + sum(len(d.outputs) for d in evaluations)


class _Clock:
    """Seconds by stage, and progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.seconds = progress, dict[str, float]()

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        done, start = 0, time.perf_counter()

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(name, min(done, total), total)

        if self.progress is not None:
            self.progress(name, 0, total)
        try:
            yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
