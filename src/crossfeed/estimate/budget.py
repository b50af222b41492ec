"""How many samples an audit can afford: the memory that a bank takes, and the time, from a timed pilot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crossfeed.describe.schema import Curated, Ecosystem, Picks, Raw, Real, Source, source_names
from crossfeed.errors import SettingError
from crossfeed.estimate.bank import CURVATURE, LIMIT, build_bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.estimator import estimate
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import Point
from crossfeed.retraining.picking import outputs_a_row

LEAST, MOST = 64, 1_000_000
"""Outputs a producer that a budget may buy."""
SPARE = 1.5
"""Times as long as foreseen that an audit may take before a budget of time is overdrawn."""
SHARE = 0.8
"""Of the free memory that a bank may take."""


@dataclass(frozen=True)
class Need:
    """What a bank takes.

    Attributes:
        gradients: By model, how many rows.
        coordinates: By model, numbers a row.
        bytes: At most at one time, raw gradients, the pilot's bank and the matrices included.
    """

    gradients: dict[str, int]
    coordinates: dict[str, int]
    bytes: int


def need_of(point: Point, size: Size, limit: int = LIMIT, look_ahead: bool = True) -> Need:
    """What the bank of this many samples takes."""
    eco = point.world.eco
    params = {n: sum(t.numel() for t in network.parameters().values()) for n, network in point.networks.items()}
    rows, own = _rows(point, size)
    coordinates = {n: d if d <= max(limit, own[n]) else min(d, own[n]) for n, d in params.items()}
    kept = sum(4 * rows[n] * (coordinates[n] + (params[n] if coordinates[n] < params[n] else 0)) for n in rows)
    largest = max(coordinates.values())
    squares = sum(8 * coordinates[n] ** 2 * (len(eco.models[n].sources) + 4) for n in rows) + 16 * largest**2
    before = need_of(point, size.pilot, limit, False).bytes if look_ahead else 0
    return Need(rows, coordinates, kept + squares + before)


def _rows(point: Point, size: Size) -> tuple[dict[str, int], dict[str, int]]:
    """By model, gradients that are worked out, and those of its own training samples."""
    eco, text = point.world.eco, point.world.medium == "text"
    rows = dict.fromkeys(eco.names, 0)
    own = dict.fromkeys(eco.names, 0)
    for name, model in eco.models.items():
        seen: set[object] = set()
        for label, source in zip(source_names(model), model.sources, strict=True):
            num, groups = _outputs(point, eco, source, size, f"models.{name}.sources.{label}")
            key = (getattr(source, "producer", label), getattr(source, "inputs", None), num)
            if key not in seen:
                own[name] += num
            seen.add(key)
            rows[name] += num + min(groups, CURVATURE)
            if isinstance(source, (Raw, Curated)):
                rows[source.producer] += num
        answers = size.answers if text else 1
        rows[name] += max(1, len(model.evaluate or [0])) * max(1, size.evaluation // answers) * answers
    return rows, own


def _outputs(point: Point, eco: Ecosystem, source: Source, size: Size, where: str) -> tuple[int, int]:
    """Outputs of a source, and groups of candidates."""
    if isinstance(source, (Real, Picks)):
        have = point.world.data[source.data].size
        num = size.outputs if have is None else min(size.outputs, have)
        return num, num
    candidates = outputs_a_row(source, where)
    groups = max(2, size.outputs // candidates)
    return groups * candidates, groups


def free_memory() -> int | None:
    """Bytes of memory that are free here, by the machine and its container; None where neither tells."""
    found = []
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        top = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        found.append(top - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def sized(outputs: int, like: Size) -> Size:
    """So many outputs a producer, and as many evaluation answers."""
    return Size(outputs, outputs, like.answers)


def most_that_fit(point: Point, like: Size, free: int, look_ahead: bool = True) -> int:
    """The most outputs a producer whose bank fits; 0 where not even :data:`LEAST` do."""
    low, high = 0, MOST
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        fits = need_of(point, sized(middle, like), look_ahead=look_ahead).bytes <= SHARE * free
        low, high = (middle, high) if fits else (low, middle)
    return rounded(low) if low >= LEAST else 0


def check_memory(point: Point, size: Size, look_ahead: bool = True) -> Need:
    """The memory that the bank will take, if there is as much.

    Raises:
        SettingError: there is not; says how many samples fit.
    """
    need, free = need_of(point, size, look_ahead=look_ahead), free_memory()
    if free is not None and need.bytes > SHARE * free:
        fits = most_that_fit(point, size, free, look_ahead)
        advice = (
            f"--samples {fits} would fit"
            if fits
            else "not even the fewest samples fit: use a machine with more memory, or LoRA of a lower rank"
        )
        raise SettingError(
            f"--samples: found {size.outputs:,} outputs of every model, whose gradients take {gib(need.bytes)} of memory, and "
            f"{gib(free)} are free; {advice}"
        )
    return need


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

    def seconds(self, outputs: int, look_ahead: bool = True) -> float:
        """About how long an audit with so many outputs takes."""
        solve = self.solving * self.growth(outputs)
        early = self.solving * self.growth(outputs // 2) if look_ahead else 0.0
        return (1.5 if look_ahead else 1.0) * outputs * self.output + solve + early

    def affordable(self, seconds: float, most: int = MOST, look_ahead: bool = True) -> int:
        """The most outputs that take at most so long with some to spare, at least :data:`LEAST`."""
        low, high, seconds = LEAST, max(LEAST, most), seconds / SPARE
        if self.seconds(high, look_ahead) <= seconds:
            return high
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle, look_ahead) <= seconds else (low, middle)
        return max(LEAST, rounded(low))


def pace_of(
    point: Point,
    rounds: int,
    like: Size,
    budget: float,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Pace:
    """Time a pilot: a few samples through everything, then four times as many, while that is a small part of the budget.

    Args:
        point: The models.
        rounds: Horizon.
        like: How many answers to one prompt of an evaluation.
        budget: Seconds.
        seed: Of the draws.
        progress: Called with (stage, done, in all).
    """
    begun = time.perf_counter()
    models = {name: differentiable(network) for name, network in point.networks.items()}
    number = LEAST // 2  # what only the first call costs is not counted
    while True:
        if progress is not None:
            progress(f"timing {number} samples", 0, 1)
        marks = _timed(point, models, rounds, sized(number, like), seed)
        width = _width(point, number, like)

        def growth(outputs: int, width: int = width, number: int = number) -> float:
            wider = max(1.0, _width(point, outputs, like) / width)
            return wider**2 * max(wider, outputs / number)

        spent = time.perf_counter() - begun
        pace = Pace(marks[0] / number, marks[1], number, growth, spent)
        if number >= 2 * LEAST and (number >= 8192 or spent + pace.seconds(4 * number, False) > budget / 12):
            return pace
        number *= 4


def _timed(
    point: Point, models: Mapping[str, Differentiable], rounds: int, size: Size, seed: int
) -> tuple[float, float]:
    """Seconds of sampling and gradients, and of solving."""
    trainings = {name: model.train for name, model in point.world.eco.models.items()}
    start = time.perf_counter()
    draws = network_draws(point.world, point.networks, point.rewards, point.prompts, size, seed)
    bank = build_bank(models, draws, trainings, seed=seed, limit=LIMIT)
    middle = time.perf_counter()
    estimate(point.world.eco, bank, rounds=rounds, first_round=point.round + 1)
    return middle - start, time.perf_counter() - middle


def _width(point: Point, outputs: int, like: Size) -> int:
    """Most coordinates of a model."""
    return max(need_of(point, sized(outputs, like), look_ahead=False).coordinates.values())
