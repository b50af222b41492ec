"""How problems are worded: what was found in short, the nearest known names, paths such as ``models.p.sources[1]``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from crossfeed.errors import DataError, Problem

Loc = tuple[str | int, ...]

_LONGEST = 60


class Complaint(NamedTuple):
    """A problem before it has a file and a line: the keys and indices that lead there, what is found and needed."""

    loc: Loc
    found: str
    need: str

    def problem(self, file: str | None = None, line: int | None = None) -> Problem:
        """The same as a :class:`~crossfeed.errors.Problem`."""
        return Problem(path_text(self.loc), self.found, self.need, file, line)


def path_text(loc: Sequence[str | int]) -> str:
    """Keys joined by dots, indices in brackets."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            part = part if part.isprintable() and part and len(part) <= 2 * _LONGEST else short(part)
            text += f".{part}" if text else part
    return text


def short(value: Any) -> str:
    """A value as a person would name it, on one line."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, str):
        return _cut(repr(value)) if value else "an empty text"
    if isinstance(value, int):
        return _cut(str(value)) if abs(value) < 10**40 else f"a whole number of about {digits(value):,} digits"
    if isinstance(value, float):
        return f"{value:.10g}" if math.isfinite(value) else str(float(value))
    if isinstance(value, dict):
        keys = ", ".join(_cut(str(key), 20) for key in list(value)[:4] if isinstance(key, str))
        return f"a mapping with the keys {keys}{', …' if len(value) > 4 else ''}" if keys else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value):,}" if value else "an empty list"
    if isinstance(value, np.ndarray):
        return shape_text(value.shape)
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return _cut(" ".join(text.split()))


def digits(value: int) -> int:
    """About how many decimal digits a whole number has, without writing it out."""
    return int((value.bit_length() - 1) * math.log10(2)) + 1


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shape_text(shape: Sequence[int]) -> str:
    """An array's shape in words."""
    if not shape:
        return "a single number"
    return f"an array of shape ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def known(names: Iterable[str], name: object = None, what: str = "one of") -> str:
    """``need one of a, b, c; did you mean 'a'?`` for a name that is not among them."""
    options = list(names)
    if not options:
        return "need one that is defined, and none is"
    listed = ", ".join(options) if len(options) <= 12 else f"{', '.join(options[:8])}, … ({len(options):,} in all)"
    return f"need {what} {listed}{did_you_mean(name, options)}"


def did_you_mean(name: object, options: Sequence[str]) -> str:
    """``; did you mean 'a'?`` where an option is near, else nothing."""
    if not isinstance(name, str) or len(name) > 200:
        return ""
    lower = {option.lower(): option for option in reversed(options)}
    near = get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def data_error(found: str, need: str) -> DataError:
    """A data error in the two parts that :func:`parts` takes apart again."""
    return DataError(f"found {found}; need {need}")


def parts(text: str) -> tuple[str, str]:
    """``found …`` and ``need …`` of a message."""
    found, _, need = text.partition("; need ")
    return (found, f"need {need}") if need else (f"found {short(re.sub(r'^found ', '', text))}", "need something else")
