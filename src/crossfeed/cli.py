"""The command ``crossfeed``: one verb a function, everything heavy imported inside the verb that needs it.

Exit codes: 0 done; 1 a bug in Crossfeed; 2 something to mend in the command, the spec or a file; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import crossfeed
from crossfeed.errors import CrossfeedError, SettingError
from crossfeed.report.output import read_audit, results_folder, write_whole
from crossfeed.report.progress import plain, progress

REPRODUCTIONS = {"fig3": "crossfeed.reproduce.fig3"}
"""Figures that can be reproduced: name, and the module whose ``run(out, progress)`` does it."""

app = typer.Typer(
    help="Will more human curation of a generative model help it, do nothing, or backfire, when models are retrained "
    "on each other's outputs?",
    epilog="Start with: crossfeed audit SPEC",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing Rich would double the time it takes
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The ecosystem, a YAML file.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.  [default: named after SPEC]")
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the spec name Python functions as rewards.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary: only where the results are.")]


class Regime(StrEnum):
    """What a model is trained on in a round."""

    REPLACE = "replace"
    ACCUMULATE = "accumulate"
    SUBSAMPLE = "subsample"


# --- verbs -----------------------------------------------------------------------------------------------------------


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"crossfeed {crossfeed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    pass


@app.command()
def audit(
    spec: SpecPath,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only audit.json on stdout.")] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Say what more curation does to every model, and how sure that is.

    Writes report.html (one file that opens anywhere) and audit.json (all its numbers).
    """
    eco = _load(spec, allow_code)
    from crossfeed.report.audit import audit as work_out

    command = shlex.join(["crossfeed", "audit", str(spec), *(["--allow-code"] if allow_code else [])])
    with results_folder(out or Path(f"crossfeed-{spec.stem}")) as folder:
        with progress(quiet) as report:
            result = work_out(eco, progress=report, command=command, spec_file=spec.name)
        write_whole(folder / "audit.json", result.save)
        write_whole(folder / "report.html", result.save)
    if as_json:
        print(json.dumps(result.data, allow_nan=False, indent=1))
        _say(f"report: {folder / 'report.html'}")
        return
    if not quiet:
        from rich.console import Console

        from crossfeed.report.terminal import summary

        Console(soft_wrap=False).print(summary(result.data))
    print(f"report: {folder / 'report.html'}")


@app.command()
def run(
    spec: SpecPath,
    rounds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rounds.  [default: the spec's]")] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="N|inf", help="New samples a model and round.  [default: the spec's]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="S", help="Repeat with this many seeds.")] = 1,
    regime: Annotated[
        Regime | None, typer.Option(help="Train on new samples, all so far, or some of all.  [default: the spec's]")
    ] = None,
    out: Out = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Run the retraining loop itself."""
    size = None if samples is None else _samples(samples)
    eco = _load(spec, allow_code)
    from crossfeed.dynamics.run import run as run_loop

    with results_folder(out or Path(f"crossfeed-{spec.stem}-run")) as folder:
        with progress(quiet) as report:
            result = run_loop(
                eco,
                rounds=eco.audit.rounds if rounds is None else rounds,
                samples=eco.samples.per_round if size is None else size,
                seeds=seeds,
                regime=eco.samples.regime if regime is None else regime.value,
                progress=report,
            )
        result.save(folder)
    if not quiet:
        print(result.summary())
    print(f"results: {folder}")


@app.command()
def sweep(
    spec: SpecPath,
    vary: Annotated[
        list[str],
        typer.Option(metavar="PATH=A:B:N", help="N values of a setting from A to B; give it again for a grid."),
    ],
    out: Out = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Map where curation helps and where it backfires, over a grid.

    Example: crossfeed sweep SPEC --vary p.curation=0:0.9:10 --vary q.curation=0:0.9:10
    """
    grid = _grid(vary)
    eco = _load(spec, allow_code)
    from crossfeed.dynamics.sweep import sweep as sweep_over

    with results_folder(out or Path(f"crossfeed-{spec.stem}-sweep")) as folder:
        with progress(quiet) as report:
            result = sweep_over(eco, grid, progress=report)
        result.save(folder)
    if not quiet:
        print(result.summary())
    print(f"results: {folder}")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(REPRODUCTIONS)}.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.  [default: crossfeed-NAME]"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Redo a paper's figure, side by side with the published numbers."""
    if name not in REPRODUCTIONS:
        near = get_close_matches(name, REPRODUCTIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(REPRODUCTIONS)}"
        raise CrossfeedError(f"reproduce: found {name!r}, which is no figure Crossfeed can reproduce; {hint}")
    module = importlib.import_module(REPRODUCTIONS[name])
    with results_folder(out or Path(f"crossfeed-{name}")) as folder, progress(quiet) as report:
        result = module.run(folder, report)
    if not quiet:
        for line in result["summary"]:
            print(line)
    for file in result["files"]:
        print(f"file: {file}")


@app.command()
def validate(spec: SpecPath, allow_code: AllowCode = False) -> None:
    """Check a spec without running it."""
    eco = _load(spec, allow_code)
    sources = [source for model in eco.models.values() for source in model.sources]
    parts = [
        _count(len(eco.models), "model"),
        f"{_count(len(sources), 'source')} ({sum(s.kind == 'curated' for s in sources)} curated)",
        _count(len(eco.rewards), "reward"),
        f"outcomes: {eco.space.kind}",
    ]
    print(f"OK: {', '.join(parts)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors and generators."""
    from crossfeed.describe.load import schema as spec_schema

    print(json.dumps(spec_schema(), indent=2))


@app.command()
def report(
    audit_json: Annotated[Path, typer.Argument(metavar="AUDIT_JSON", help="An audit.json, or the folder it is in.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page.  [default: report.html beside it]")
    ] = None,
) -> None:
    """Draw the report of a finished audit again."""
    source = audit_json / "audit.json" if os.path.isdir(audit_json) else audit_json
    data = read_audit(source)
    target = source.with_name("report.html") if out is None else out
    if os.path.exists(target) and (target.is_dir() or target.samefile(source)):
        what = "a folder" if target.is_dir() else "the audit itself"
        raise CrossfeedError(f"--out: found {target}, which is {what}; give the name of an .html file")
    from crossfeed.report.html import html

    page = html(data)
    write_whole(target, lambda path: Path(path).write_text(page, encoding="utf-8", errors="replace"))
    print(f"report: {target}")


# --- arguments -------------------------------------------------------------------------------------------------------


def _load(spec: Path, allow_code: bool) -> Any:
    from crossfeed.describe.load import load

    return load(spec, allow_code=allow_code)


def _samples(text: str) -> float:
    """A number of samples: a whole number, 1 or more, or inf."""
    if text.strip().lower() in {"inf", "infinity", "∞"}:
        return math.inf
    if not text.strip().isdecimal() or int(text) < 1:
        raise SettingError(f"--samples: found {text!r}; need a whole number, 1 or more, or inf for exact retraining")
    return int(text)


def _grid(vary: Sequence[str]) -> dict[str, list[float]]:
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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- the entry point -------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; null for those of the process.

    Returns:
        The exit code: 0 done, 1 a bug, 2 something to mend, 130 interrupted. Nothing is raised.
    """
    # Tensors are small: threads cost more than they give, and on a busy machine turn seconds into minutes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args = list(sys.argv[1:] if argv is None else argv)
    end = args.index("--") if "--" in args else len(args)
    debug = "--debug" in args[:end]
    args = [arg for index, arg in enumerate(args) if arg != "--debug" or index > end]
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a C locale has no Θ
    code = 0
    try:
        typer.main.get_command(app).main(args=args, prog_name="crossfeed")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
        if code == 130:
            _say("crossfeed: interrupted")
    except CrossfeedError as error:
        _say(traceback.format_exc() if debug else f"crossfeed: error: {error}")
        code = 2
    except Exception as error:
        detail = traceback.format_exc() if debug else f"{type(error).__name__}: {error}"
        _say(f"crossfeed: this is a bug in Crossfeed, not in your spec: {detail}")
        if not debug:
            _say("Run it again with --debug and report what it prints.")
        code = 1
    return code if _flush() else max(code, 1)


def _say(text: str) -> None:
    """Print on stderr, without anything a terminal would obey."""
    with suppress(OSError, ValueError, AttributeError):
        print(plain(text), file=sys.stderr)


def _flush() -> bool:
    """Flush stdout; when its reader has left, send the rest nowhere, or Python complains about it on exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    except (AttributeError, ValueError):
        pass
    return True
