"""Errors a user can cause. Each names what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CrossfeedError(Exception):
    """Base class of every error raised on purpose; the command line prints it and exits with code 2."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec.

    Args:
        path: Where in the spec, e.g. ``models.p.sources[1].weight``.
        found: What stands there.
        need: What is needed, and how to get there.
        file: The spec file, where there is one.
        line: Its line, counted from 1.
    """

    path: str
    found: str
    need: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = "".join(f"{p}:" for p in (self.file, self.line) if p is not None)
        return f"{place + ' ' if place else ''}{self.path or 'spec'}: {self.found}; {self.need}"


class SpecError(CrossfeedError):
    """A spec that cannot be run; lists every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class DataError(CrossfeedError):
    """A data file that cannot be read or does not hold what was asked of it."""


class SettingError(CrossfeedError):
    """A path that names no scalar setting, or a value that the setting cannot take."""


class NotStableError(CrossfeedError):
    """A derivative was asked for where none exists: an unconverged or non-hyperbolic point."""


class NotAvailableError(CrossfeedError):
    """A quantity that has no stated closed form for this ecosystem; says why and what to use."""


class CheckFailedError(CrossfeedError):
    """A live check of a retraining run was violated: says which, in which round and model, and what to do."""
