"""The command ``crossfeed``: one verb a function, everything heavy imported inside the verb that needs it.

Exit codes: 0 done; 1 a bug in Crossfeed; 2 something to mend in the command, the spec or a file; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

import crossfeed
from crossfeed.cli import audits, runs
from crossfeed.cli.arguments import (
    AllowCode,
    Out,
    Quiet,
    Scale,
    Set,
    SpecPath,
    count,
    grid_of,
    load_spec,
    say,
)
from crossfeed.errors import CrossfeedError
from crossfeed.report.output import results_folder
from crossfeed.report.progress import progress

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


app.command()(audits.audit)
app.command()(runs.run)


@app.command()
def sweep(
    spec: SpecPath,
    vary: Annotated[
        list[str],
        typer.Option(metavar="PATH=A:B:N", help="N values of a setting from A to B; give it again for a grid."),
    ],
    scale: Scale = None,
    change: Set = None,
    out: Out = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Map where curation helps and where it backfires, over a grid.

    Example: crossfeed sweep SPEC --vary p.curation=0:0.9:10 --vary q.curation=0:0.9:10
    """
    grid = grid_of(vary)
    eco = load_spec(spec, allow_code, scale, change)
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
def validate(spec: SpecPath, scale: Scale = None, change: Set = None, allow_code: AllowCode = False) -> None:
    """Check a spec without running it."""
    eco = load_spec(spec, allow_code, scale, change)
    sources = [source for model in eco.models.values() for source in model.sources]
    parts = [
        count(len(eco.models), "model"),
        f"{count(len(sources), 'source')} ({sum(s.kind == 'curated' for s in sources)} curated)",
        count(len(eco.rewards), "reward"),
        f"outcomes: {eco.space.kind}",
    ]
    print(f"OK: {', '.join(parts)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors and generators."""
    from crossfeed.describe.load import schema as spec_schema

    print(json.dumps(spec_schema(), indent=2))


for verb in (runs.report, runs.lineage, runs.export):
    app.command()(verb)


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
            say("crossfeed: interrupted")
    except CrossfeedError as error:
        say(traceback.format_exc() if debug else f"crossfeed: error: {error}")
        code = 2
    except Exception as error:
        detail = traceback.format_exc() if debug else f"{type(error).__name__}: {error}"
        say(f"crossfeed: this is a bug in Crossfeed, not in your spec: {detail}")
        if not debug:
            say("Run it again with --debug and report what it prints.")
        code = 1
    return code if _flush() else max(code, 1)


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
