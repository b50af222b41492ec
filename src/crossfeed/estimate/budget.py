"""How many samples an audit can afford: the memory that a bank takes, and the time, from a timed pilot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from crossfeed.describe.schema import Curated, Ecosystem, Picks, Raw, Real, Source, source_names
from crossfeed.errors import SettingError
from crossfeed.estimate.bank import CURVATURE, LIMIT, build_bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.derivatives import ROWS_BYTES
from crossfeed.estimate.estimator import estimate
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import Point
from crossfeed.estimate.rows import HELD
from crossfeed.estimate.spill import SHARE, free_disk, spill_folder
from crossfeed.estimate.spill import free_memory as free_memory
from crossfeed.estimate.walk import places_of
from crossfeed.retraining.picking import outputs_a_row

LEAST, MOST = 64, 1_000_000
"""Outputs a producer that a budget may buy."""
SPARE = 1.5
"""Times as long as foreseen that an audit may take before a budget of time is overdrawn."""


@dataclass(frozen=True)
class Need:
    """What a bank takes.

    Attributes:
        gradients: By model, how many rows.
        coordinates: By model, numbers a row.
        bytes: At most at one time in memory, raw gradients, banks of all places and the matrices included, if nothing is in files.
        spillable: Of these, what may be in files instead: gradients of models that are kept in their samples' span.
        disk: What is in files.
    """

    gradients: dict[str, int]
    coordinates: dict[str, int]
    bytes: int
    spillable: int = 0
    disk: int = 0

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        return self.bytes - self.disk

    @property
    def kept(self) -> int:
        """Bytes of memory that gradients which could be in files may take."""
        return 0 if self.disk else self.spillable

    def placed(self, free: int | None, disk: int) -> Need | None:
        """The same in memory, or else in files as far as it may be; None where neither has the room."""
        if free is None or self.bytes <= SHARE * free:
            return self
        fits = self.bytes - self.spillable <= SHARE * free and 0 < self.spillable <= SHARE * disk
        return replace(self, disk=self.spillable) if fits else None


def need_of(point: Point, size: Size, limit: int = LIMIT, number: int = 1, projection: int | None = None) -> Need:
    """What the banks of this many samples at each of ``number`` places take."""
    eco = point.world.eco
    params = {n: sum(t.numel() for t in network.parameters().values()) for n, network in point.networks.items()}
    rows, own = _rows(point, size)
    coordinates, kept, spillable, passing = {}, 0, 0, 0
    for n, d in params.items():
        spans, whole = d > max(limit, own[n]), 4 * rows[n] * d
        if d > limit and projection is not None and d > projection:
            coordinates[n] = projection
            kept += 4 * rows[n] * projection
            passing = max(passing, 2 * min(ROWS_BYTES, whole) + 56 * min(own[n], projection) ** 2)
        elif d > limit:
            coordinates[n] = min(d, own[n])
            spillable += 4 * rows[n] * coordinates[n] + (4 * own[n] * d if spans else 0)
            passing = max(passing, 3 * min(HELD, whole) + 56 * own[n] ** 2 if spans else 0)
        else:
            coordinates[n] = d
            kept += whole
    largest = max(coordinates.values())
    squares = sum(8 * coordinates[n] ** 2 * (len(eco.models[n].sources) + 4) for n in rows) + 16 * largest**2
    total = spillable + number * kept + max(number * squares, passing)
    return Need({name: number * count for name, count in rows.items()}, coordinates, total, spillable)


def _rows(point: Point, size: Size) -> tuple[dict[str, int], dict[str, int]]:
    """By model, gradients that are worked out, and those of its own training samples."""
    eco, text = point.world.eco, point.world.medium == "text"
    rows = dict.fromkeys(eco.names, 0)
    own = dict.fromkeys(eco.names, 0)
    for name, model in eco.models.items():
        seen: set[object] = set()
        for label, source in zip(source_names(model), model.sources, strict=True):
            num = _outputs(point, eco, source, size, f"models.{name}.sources.{label}")
            shared = [getattr(source, field, None) for field in ("inputs", "sampling_temperature")]
            key = (getattr(source, "producer", label), *shared, num)
            if key not in seen:  # sources share what one producer made
                own[name] += num
                rows[name] += num + min(num, CURVATURE)
            seen.add(key)
            if isinstance(source, (Raw, Curated)):
                rows[source.producer] += num
        answers = size.answers if text else 1
        rows[name] += max(1, len(model.evaluate or [0])) * max(1, size.evaluation // answers) * answers
    return rows, own


def _outputs(point: Point, eco: Ecosystem, source: Source, size: Size, where: str) -> int:
    """Outputs of a source."""
    if isinstance(source, (Real, Picks)):
        have = point.world.data[source.data].size
        num = size.outputs if have is None else min(size.outputs, have)
        return num
    candidates = outputs_a_row(source, where)
    return max(2, size.outputs // candidates) * candidates


def sized(outputs: int, like: Size) -> Size:
    """So many outputs a producer, and as many evaluation answers."""
    return Size(outputs, outputs, like.answers)


def most_that_fit(
    point: Point,
    like: Size,
    free: int,
    number: int = 1,
    projection: int | None = None,
    spill: Path | None = None,
) -> int:
    """The most outputs a producer whose bank fits into memory and disk; 0 where not even :data:`LEAST` do."""
    low, high, disk = 0, MOST, free_disk(spill)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        need = need_of(point, sized(middle, like), number=number, projection=projection)
        low, high = (low, middle) if need.placed(free, disk) is None else (middle, high)
    return rounded(low) if low >= LEAST else 0


def check_memory(
    point: Point,
    size: Size,
    number: int = 1,
    projection: int | None = None,
    spill: Path | None = None,
) -> Need:
    """The memory that the bank will take, and the disk where memory is not enough, if there is as much.

    Raises:
        SettingError: there is not; says how many samples fit.
    """
    free = free_memory()
    need = need_of(point, size, number=number, projection=projection)
    placed = need.placed(free, free_disk(spill))
    if placed is not None:
        return placed
    assert free is not None
    fits = most_that_fit(point, size, free, number, projection, spill)
    advice = (
        f"--samples {fits} would fit"
        if fits
        else "not even the fewest samples fit: use a machine with more memory, or LoRA of a lower rank"
    )
    take, have = gib(need.bytes) + " of memory", gib(free)
    if need.spillable:
        folder = str(spill_folder(spill))
        take += f", or {gib(need.bytes - need.spillable)} and {gib(need.spillable)} of files in {folder!r}"
        have += f" and {gib(free_disk(spill))}"
        if projection is None:
            advice += (
                "; --projection 2000 keeps so many random coordinates instead; TMPDIR names a folder on another disk"
            )
    raise SettingError(
        f"--samples: found {size.outputs:,} outputs of every model, whose gradients take {take}, and {have} are free, of which "
        f"{SHARE:.0%} may be taken; {advice}"
    )


def gib(value: float) -> str:
    """Bytes in words: ``3.2 GiB``, ``45 MiB``."""
    return (
        f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.{0 if value >= 10 * 2**20 else 1}f} MiB"
    )


def rounded(number: int) -> int:
    """Down to two significant digits."""
    step = 10 ** max(0, len(str(number)) - 2)
    return number // step * step


# --- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How long an audit takes, from a timed pilot.

    Attributes:
        output: Seconds of sampling and of gradients for one more output of every producer and evaluation.
        solving: Seconds of one solve.
        outputs: At so many outputs.
        growth: From outputs to how many times as long a solve takes with them: samples times the square of the coordinates.
        spent: Seconds that finding out took.
    """

    output: float
    solving: float
    outputs: int
    growth: Callable[[int], float]
    spent: float

    def seconds(self, outputs: int, number: int = 1) -> float:
        """About how long an audit with so many outputs at each of ``number`` places takes."""
        return number * (outputs * self.output + self.solving * self.growth(outputs))

    def affordable(self, seconds: float, most: int = MOST, number: int = 1) -> int:
        """The most outputs that take at most so long with some to spare, at least :data:`LEAST`."""
        return affordable(lambda outputs: self.seconds(outputs, number), seconds, most)


def affordable(seconds_of: Callable[[int], float], seconds: float, most: int = MOST) -> int:
    """The most outputs, at least :data:`LEAST`, that take at most so long with some to spare, by a function that grows with them."""
    low, high, seconds = LEAST, max(LEAST, most), seconds / SPARE
    if seconds_of(high) <= seconds:
        return high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if seconds_of(middle) <= seconds else (low, middle)
    return max(LEAST, rounded(low))


def pace_of(
    point: Point,
    rounds: int,
    like: Size,
    budget: float,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    projection: int | None = None,
) -> Pace:
    """Time a pilot: a few samples through everything, then four times as many, while that is a small part of the budget.

    What only the first call costs should not count, so more than a few are timed unless that would take a quarter of the budget.

    Args:
        point: The models.
        rounds: Horizon.
        like: How many answers to one prompt of an evaluation.
        budget: Seconds.
        seed: Of the draws.
        progress: Called with (stage, done, in all).
        projection: As for the bank.
    """
    begun = time.perf_counter()
    models = {name: differentiable(network) for name, network in point.networks.items()}
    number = LEAST // 4
    while True:
        if progress is not None:
            progress(f"timing {number} samples", 0, 1)
        marks = _timed(point, models, rounds, sized(number, like), seed, projection)
        width = _width(point, number, like, projection)

        def growth(outputs: int, width: int = width, number: int = number) -> float:
            wider = max(1.0, _width(point, outputs, like, projection) / width)
            return wider**2 * max(wider, outputs / number)

        spent = time.perf_counter() - begun
        pace = Pace(marks[0] / number, marks[1], number, growth, spent)
        enough = number > LEAST and (number >= 8192 or spent + pace.seconds(4 * number) > budget / 12)
        if enough or 4 * spent > budget / 4:
            return pace
        number *= 4


def _timed(
    point: Point,
    models: Mapping[str, Differentiable],
    rounds: int,
    size: Size,
    seed: int,
    projection: int | None,
) -> tuple[float, float]:
    """Seconds of sampling and gradients, and of solving."""
    trainings = {name: model.train for name, model in point.world.eco.models.items()}
    start = time.perf_counter()
    draws = network_draws(point.world, point.networks, point.rewards, point.prompts, size, seed)
    bank = build_bank(models, draws, trainings, seed=seed, limit=LIMIT, projection=projection)
    middle = time.perf_counter()
    estimate(point.world.eco, bank, rounds=rounds, first_round=point.round + 1)
    return middle - start, time.perf_counter() - middle


def _width(point: Point, outputs: int, like: Size, projection: int | None) -> int:
    """Most coordinates of a model."""
    return max(need_of(point, sized(outputs, like), projection=projection).coordinates.values())


@dataclass(frozen=True)
class BankBudget:
    """What samples an audit with a gradient bank can afford.

    Attributes:
        point: The models.
        rounds: Horizon.
        look_ahead: Whether gradients are taken along the course.
        seed: Of the draws that are timed.
        projection: As for the bank.
        spill: As for the bank.
    """

    point: Point
    rounds: int
    look_ahead: bool
    seed: int
    projection: int | None = None
    spill: Path | None = None

    @property
    def number(self) -> int:
        """Places at which gradients are taken."""
        return len(places_of(self.point, self.rounds, self.look_ahead))

    def pace(self, like: Size, budget: float, progress: Callable[[str, int, int], None] | None) -> Timed:
        """Time a pilot."""
        number = self.number
        found = pace_of(self.point, self.rounds, like, budget, self.seed, progress, self.projection)
        return Timed(lambda outputs: found.seconds(outputs, number), found.outputs, found.spent)

    def fits(self, like: Size, free: int) -> int:
        """The most outputs a producer that fit into memory and files."""
        return most_that_fit(self.point, like, free, self.number, self.projection, self.spill)

    def check(self, size: Size) -> tuple[str, int | None]:
        """What it will take, in words; and the memory that gradients which could be in files may take.

        Raises:
            SettingError: there is not as much.
        """
        need = check_memory(self.point, size, self.number, self.projection, self.spill)
        words = (
            f"memory: gradients of {sum(need.gradients.values()):,} samples in up to {max(need.coordinates.values()):,} coordinates, "
            f"4 bytes each, will take at most {gib(need.memory)} besides what the networks take"
        )
        if need.disk:
            words += f", and {gib(need.disk)} of files in {str(spill_folder(self.spill))!r}"
        return words, need.kept


@dataclass(frozen=True)
class Timed:
    """How long an audit takes.

    Attributes:
        seconds: From outputs a producer to seconds.
        outputs: So many were timed.
        spent: Seconds that finding out took.
    """

    seconds: Callable[[int], float]
    outputs: int
    spent: float
