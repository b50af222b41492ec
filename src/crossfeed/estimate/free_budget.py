"""How many samples a matrix-free audit can afford: the memory of a batch, and the time, from a timed round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from crossfeed.errors import SettingError
from crossfeed.estimate.budget import LEAST, MOST, Timed, gib, rounded, sized
from crossfeed.estimate.estimator import SHARES, curation_paths
from crossfeed.estimate.free_batches import BATCHES, CURVED, FEW_SHARES, KRYLOV, TRIED, Plan, parts_of, solve_batch
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point
from crossfeed.estimate.spill import SHARE, free_memory
from crossfeed.networks.base import LIKELIHOOD

TEXT = 512
"""Numbers that a text counts for."""
FIRST, LARGEST = 4, 1024
"""Outputs of the smallest and of the largest batch that is timed."""


@dataclass(frozen=True)
class FreeBudget:
    """What samples a matrix-free audit can afford.

    Attributes:
        plan: What all batches have in common.
        look_ahead: Whether there is a pilot.
    """

    plan: Plan
    look_ahead: bool

    @classmethod
    def of(cls, point: Point, rounds: int, look_ahead: bool, seed: int) -> FreeBudget:
        """For an open ecosystem."""
        pathwise = frozenset(name for name, network in point.networks.items() if LIKELIHOOD not in network.capabilities)
        return cls(Plan.of(point, pathwise, rounds, curation_paths(point.world.eco), seed), look_ahead and rounds > 1)

    def bytes(self, size: Size) -> int:
        """About what a batch and the samples of all take, besides what derivatives of one chunk of samples keep for a moment."""
        plan, part = self.plan, max(2, size.outputs // BATCHES)
        item, columns = plan.dtype.itemsize, len(plan.paths) + 1
        numbers = TEXT if plan.point.world.medium == "text" else math.prod(plan.point.world.shape)
        sources = [len(model.sources) for model in plan.eco.models.values()]
        answers = sum(len(model.evaluate or [0]) for model in plan.eco.models.values()) * size.evaluation
        samples = 4 * numbers * (3 * (BATCHES + 2) * part * sum(sources) + 2 * answers)
        vectors = item * sum(d * (8 * columns + count + 4) for d, count in zip(plan.sizes, sources, strict=True))
        basis = plan.rows_bytes(size) if plan.keeps_rows(size) else item * 2 * KRYLOV * max(plan.sizes)
        return samples + vectors + basis

    def fits(self, like: Size, free: int) -> int:
        """The most outputs a producer that fit into memory; 0 where not even the fewest do."""
        low, high = 0, MOST
        while high - low > max(1, low // 50):
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes(sized(middle, like)) <= SHARE * free else (low, middle)
        return rounded(low) if low >= LEAST else 0

    def check(self, size: Size) -> tuple[str, None]:
        """The memory that it will take, in words; nothing is kept in files.

        Raises:
            SettingError: there is not as much; says how many samples fit.
        """
        need, free = self.bytes(size), free_memory()
        if free is not None and need > SHARE * free:
            fits = self.fits(size, free)
            advice = (
                f"--samples {fits} would fit"
                if fits
                else "not even the fewest samples fit: use a machine with more memory"
            )
            raise SettingError(
                f"--samples: found {size.outputs:,} outputs of every model, whose batches take {gib(need)} of memory, and {gib(free)} "
                f"are free; {advice}"
            )
        rows = (
            f"rows of up to {CURVED} curvature samples a source"
            if self.plan.keeps_rows(size)
            else f"{KRYLOV} Krylov vectors"
        )
        words = (
            f"memory: samples in {BATCHES} batches, and of one at a time vectors of {max(self.plan.sizes):,} parameters"
        )
        return f"{words} with {rows}, will take about {gib(need)}", None

    def pace(self, like: Size, budget: float, progress: Callable[[str, int, int], None] | None) -> Timed:
        """Time one round of a small batch, then of one four times as large, while that is a small part of the budget.

        What a batch costs is taken to grow as its outputs from the last one on, which is a little too much where calls cost by themselves.
        """
        begun = time.perf_counter()
        plan, number = replace(self.plan, rounds=self.plan.rounds[:1]), FIRST
        while True:
            if progress is not None:
                progress(f"timing {number * BATCHES} samples", 0, 1)
            size = sized(number * BATCHES, like)
            start = time.perf_counter()
            loop = plan.loop(plan.draws(size, 0, 0), plan.keeps_rows(size))
            middle = time.perf_counter()
            solve_batch(plan, loop, course=True, isolated=False)
            once, end = middle - start, time.perf_counter()
            each = (end - middle) / parts_of(plan, course=True, isolated=False)
            if number > FIRST and (number >= LARGEST or end - begun + 4 * (end - start) > budget / 12):
                break
            number *= 4

        def batch(outputs: float, parts: int) -> float:
            return max(1.0, outputs / number) * (once + parts * each)

        def seconds(outputs: int) -> float:
            main = BATCHES * batch(outputs / BATCHES, parts_of(self.plan, course=not self.look_ahead, isolated=True))
            pilot = BATCHES * batch(outputs / 2 / BATCHES, parts_of(self.plan, course=True, isolated=False))
            shares = len(FEW_SHARES if plan.pathwise else SHARES) * min(TRIED, len(self.plan.rounds)) * len(plan.models)
            return main + (pilot if self.look_ahead else 0.0) + batch(outputs / BATCHES, shares)

        return Timed(seconds, number * BATCHES, time.perf_counter() - begun)
