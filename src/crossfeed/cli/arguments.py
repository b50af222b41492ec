"""What the verbs of the command line share: options, and what their texts mean."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from crossfeed.errors import SettingError
from crossfeed.report.progress import plain

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The ecosystem, a YAML file.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.  [default: named after SPEC]")
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the spec name Python functions as rewards.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary: only where the results are.")]
Scale = Annotated[str | None, typer.Option(metavar="NAME", help="One of the spec's scales, e.g. smoke.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change the spec, e.g. p.curation=0.6 or run.rounds=3; may be repeated."
    ),
]


def load_spec(spec: Path, allow_code: bool, scale: str | None = None, change: Sequence[str] | None = None) -> Any:
    """The ecosystem of a spec, at a scale and with changes."""
    from crossfeed.describe.load import load

    return load(spec, allow_code=allow_code, scale=scale, overrides=overrides(change))


def overrides(change: Sequence[str] | None) -> dict[str, Any]:
    """``PATH=VALUE`` texts as {path: value}; a value is what YAML makes of it."""
    from crossfeed.describe.reader import ReadError, read

    found: dict[str, Any] = {}
    for text in change or ():
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise SettingError(f"--set: found {text!r}; need PATH=VALUE, e.g. p.curation=0.6")
        try:
            found[path.strip()] = read(value)[0]
        except ReadError:
            raise SettingError(f"--set: found {text!r}, whose value is no YAML; need e.g. run.rounds=3") from None
    return found


def spec_options(allow_code: bool, scale: str | None, change: Sequence[str] | None) -> list[str]:
    """The options that change what a spec means, as they are typed."""
    chosen = [] if scale is None else ["--scale", scale]
    changes = [part for text in change or () for part in ("--set", text)]
    return [*chosen, *changes, *(["--allow-code"] if allow_code else [])]


def samples_of(text: str) -> float:
    """A number of samples: a whole number, 1 or more, or inf."""
    if text.strip().lower() in {"inf", "infinity", "∞"}:
        return math.inf
    if not text.strip().isdecimal() or int(text) < 1:
        raise SettingError(f"--samples: found {text!r}; need a whole number, 1 or more, or inf for exact retraining")
    return int(text)


def grid_of(vary: Sequence[str]) -> dict[str, list[float]]:
    """``PATH=A:B:N`` texts as {path: N values from A to B, both included}."""
    grid: dict[str, list[float]] = {}
    for text in vary:
        path, _, span = text.rpartition("=")
        problem = f"--vary: found {text!r}; need PATH=A:B:N"
        try:
            low, high, number = (kind(part) for kind, part in zip((float, float, int), span.split(":"), strict=True))
        except ValueError:
            raise SettingError(f"{problem} with numbers A, B and a whole number N, e.g. p.curation=0:0.9:10") from None
        if not path.strip():
            raise SettingError(f"{problem} with the setting that moves before '=', e.g. p.curation=0:0.9:10")
        if not math.isfinite(low) or not math.isfinite(high):
            raise SettingError(f"{problem} with finite A and B")
        if not 2 <= number <= 100_000 and not (number == 1 and low == high):
            raise SettingError(f"{problem} with N from 2 to 100,000 (or N = 1 and A = B for a single value)")
        if path.strip() in grid:
            raise SettingError(f"--vary: found {path.strip()!r} twice; give each setting once")
        steps = max(int(number) - 1, 1)
        grid[path.strip()] = [low + (high - low) * k / steps for k in range(int(number))]
    return grid


def count(number: int, noun: str) -> str:
    """A number of things in words, e.g. ``3 models``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """Print on stderr, without anything a terminal would obey."""
    with suppress(OSError, ValueError, AttributeError):
        print(plain(text), file=sys.stderr)
