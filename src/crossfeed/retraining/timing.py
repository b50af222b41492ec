"""Where the time goes: seconds by kind of work, rates and the time that is left, said while it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crossfeed.networks.base import Advance

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, done, in all)."""

_EVERY = 0.1


class Clock:
    """Measures the stages of a round and reports them.

    Args:
        rounds: The last round.
        progress: Told ``round 3/10 · p: generating · 41/s`` with what is done and what there is; None for nobody.

    Attributes:
        seconds: Of the current round, by kind of work.
    """

    def __init__(self, rounds: int, progress: Progress | None = None) -> None:
        self.rounds, self.seconds = rounds, dict[str, float]()
        self._progress, self._round, self._begun = progress, 0, time.perf_counter()
        self._past: list[float] = []

    def begin(self, round: int) -> None:
        """A round begins."""
        self._round, self.seconds, self._begun = round, {}, time.perf_counter()
        self._say_rounds(round - 1)

    def end(self) -> float:
        """The round is over; its seconds."""
        took = time.perf_counter() - self._begun
        if self._round > 0:
            self._past.append(took)
        self._say_rounds(self._round)
        return took

    @property
    def left(self) -> float | None:
        """Seconds until the last round is over, by the median of the last ten rounds; None before one is over."""
        if not self._past:
            return None
        recent = sorted(self._past[-10:])
        return recent[len(recent) // 2] * (self.rounds - self._round)

    @contextmanager
    def stage(self, kind: str, what: str, total: int = 0) -> Iterator[Advance]:
        """Time a stage, and give the function that is told how many are done."""
        begun = said = time.perf_counter()
        done = 0
        label = f"round {self._round}/{self.rounds} · {what}"

        def advance(number: int) -> None:
            nonlocal done, said
            done += number
            now = time.perf_counter()
            if self._progress is not None and (now - said >= _EVERY):
                said = now
                rate = done / max(now - begun, 1e-9)
                self._progress(f"{label} · {rate:,.{0 if rate >= 10 else 1}f}/s", min(done, total or done), total)

        if self._progress is not None:
            self._progress(label, 0, total)
        try:
            yield advance
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - begun

    def _say_rounds(self, done: int) -> None:
        if self._progress is not None and done >= 0:
            left = self.left
            self._progress("rounds" if not left else f"rounds · about {in_words(left)} left", done, self.rounds)


def in_words(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> in_words(0.21), in_words(42.4), in_words(150), in_words(8000)
        ('0.2 s', '42 s', '2.5 min', '2.2 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
