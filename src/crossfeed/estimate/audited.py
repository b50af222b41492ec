"""What every audit of networks found, by whatever solver, and what follows from it: intervals, verdicts, samples needed."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.estimate.checks import Check
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point
from crossfeed.estimate.what_if import WhatIf

Progress = Callable[[str, int, int], None]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Judgement:
    """An evaluation in the samples.

    Attributes:
        model: Whose.
        name: The evaluation's.
        there: Its alignment where the gradient of it was taken: at the predicted end of the horizon; half-way, or now, where
            gradients were taken in one place.
        spread: Standard deviation of its rewards.
    """

    model: str
    name: str
    there: float
    spread: float


@dataclass(frozen=True)
class Groups:
    """A source in the samples.

    Attributes:
        groups: How many groups of candidates, or rows.
        candidates: In each group.
        effective: How many of the groups are independent of each other (Kish).
    """

    groups: int
    candidates: int
    effective: float


@dataclass(frozen=True)
class Seen:
    """A model as the estimate sees it.

    Attributes:
        num_params: d.
        coordinates: Numbers a gradient is kept in.
        words: What these are.
        largest_curvature: Largest eigenvalue of its loss's curvature, ridge and weight decay included.
        route: How its parameters' effect on its outputs was found: ``score function`` or ``pathwise``.
    """

    num_params: int
    coordinates: int
    words: str
    largest_curvature: float
    route: str


@dataclass(frozen=True)
class Work:
    """What an estimate took.

    Attributes:
        generated: Outputs that were made.
        gradients: Gradients and tangents of samples that were worked out.
        clusters: Independent parts of the samples.
        bytes: Of the gradients, or vectors, that were kept.
    """

    generated: int
    gradients: int
    clusters: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Findings:
    """The influence of settings on alignment with everything that intervals and verdicts need.

    Attributes:
        paths: Settings, by column.
        matrix: (E, C) dJ_e/dλ_c.
        isolated: (E, C) the same with every coupling between different models dropped.
        errors: (E, C) standard errors.
        quantile: Half an interval's width in standard errors: normal, or Student's where errors come from few batches.
        rounds: Horizon.
        places: After which rounds of the course gradients were taken; 0: now.
        shown: Rounds after which the course is known, from 0 (now) to ``rounds``.
        course: (shown, E) predicted change of alignment if nothing is changed.
        unfolding: (shown, E, C) influence after so many rounds.
        judged: By evaluation.
        sources: By source, in the order of models and their sources.
        models: By model.
        work: What it took.
        asked: (E, C) of ``matrix``, what curation does by moving what models are asked; None where that does not, or is not told apart.
    """

    paths: list[str]
    matrix: Tensor
    isolated: Tensor
    errors: Tensor
    quantile: float
    rounds: int
    places: list[int]
    shown: list[int]
    course: Tensor
    unfolding: Tensor
    judged: list[Judgement]
    sources: list[Groups]
    models: list[Seen]
    work: Work
    asked: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Audited(ABC):
    """An audit of networks.

    Attributes:
        eco: The ecosystem.
        point: Where the models were.
        findings: Numbers.
        checks: What was checked.
        size: How many samples.
        seconds: By stage.
        confidence: Level of the intervals.
        now: (E,) present alignment and its standard error over clusters.
        seed: Of all draws.
        rougher: (E, C) the influence matrix from gradients at fewer places of the course: at its ends alone, or, where the estimate is
            from its middle, at its start by the smaller samples that told where the loop goes; None without looking ahead.
        solver: How the loop was solved, in words.
    """

    eco: Ecosystem
    point: Point
    findings: Findings
    checks: list[Check]
    size: Size
    seconds: dict[str, float]
    confidence: float = 0.95
    now: list[tuple[float, float]] = field(default_factory=list)
    seed: int = 0
    rougher: Tensor | None = None
    solver: str = ""

    @abstractmethod
    def what_if(self, changed: Ecosystem) -> WhatIf:
        """Answer for another spec from the same samples.

        Raises:
            SettingError: something else than weights and picks differs, or the samples do not serve the new rule.
        """

    @property
    def linearisation(self) -> Tensor:
        """(E, C) how far the estimate hangs on where gradients are taken."""
        matrix = self.findings.matrix
        return torch.zeros_like(matrix) if self.rougher is None else (matrix - self.rougher).abs()

    @property
    def half_width(self) -> Tensor:
        """(E, C) half the width of the intervals: q √(SE² + linearisation²), q the findings' quantile."""
        return self.findings.quantile * torch.hypot(self.findings.errors, self.linearisation)

    def verdicts(self) -> list[list[str]]:
        """(E, C) per pair: ``helps``, ``dampened``, ``no effect``, ``backfires`` (own curation) or ``harms``, or ``cannot tell``.

        ``no effect`` where no path leads from the curation to the evaluation. ``dampened``: the own influence is positive but smaller than
        the isolated counterfactual by more than the interval.
        """
        out = []
        matrix, alone, half = self.findings.matrix, self.findings.isolated, self.half_width
        for e, judged in enumerate(self.findings.judged):
            row = []
            for c, path in enumerate(self.findings.paths):
                own = path.partition(".")[0] == judged.model
                row.append(_verdict(float(matrix[e, c]), float(half[e, c]), float(alone[e, c]) if own else None))
            out.append(row)
        return out

    def needed(self) -> list[list[int | None]]:
        """(E, C) outputs per producer at which the samples would tell the sign; None where nothing moves, or where they do
        already and only the linearisation hides it.
        """
        reach = self.findings.quantile
        out: list[list[int | None]] = []
        rows = zip(*(t.tolist() for t in (self.findings.matrix, self.findings.errors, self.half_width)), strict=True)
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


def mean_reward(rewards: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean reward of answers (n, K), and its standard error over clusters (n,)."""
    _, index = clusters.unique(return_inverse=True)
    num, mean = int(index.max()) + 1, float(rewards.mean())
    sums = torch.zeros(num, dtype=torch.float64).index_add(0, index, rewards.double().mean(1) - mean)
    return mean, float((sums.square().sum() * num / max(1, num - 1)).sqrt()) / len(rewards)


class Stages:
    """Seconds by stage, and progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.seconds = progress, dict[str, float]()

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Advance]:
        """A stage of so many parts, of which the block reports those that are done."""
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


def route_words(seen: Sequence[Seen]) -> str:
    """The routes of all models in a few words.

    Example:
        >>> one = Seen(3, 3, "parameters", 1.0, "pathwise")
        >>> route_words([one, one])
        'pathwise'
    """
    return ", ".join(sorted({model.route for model in seen}, reverse=True))
