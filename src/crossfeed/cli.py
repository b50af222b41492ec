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


Scale = Annotated[str | None, typer.Option(metavar="NAME", help="One of the spec's scales, e.g. smoke.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change the spec, e.g. p.curation=0.6 or run.rounds=3; may be repeated."
    ),
]


class Dtype(StrEnum):
    """What networks compute with."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Pairs(StrEnum):
    """Which losers a pick is set against."""

    ALL = "all"
    WORST = "worst"


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
    scale: Scale = None,
    change: Set = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Say what more curation does to every model, and how sure that is.

    Writes report.html (one file that opens anywhere) and audit.json (all its numbers).
    """
    eco = _load(spec, allow_code, scale, change)
    from crossfeed.report.audit import audit as work_out

    command = shlex.join(["crossfeed", "audit", str(spec), *_spec_options(allow_code, scale, change)])
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
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The ecosystem, a YAML file; or the folder of a run.")],
    rounds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rounds.  [default: the spec's]")] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="N|inf", help="New samples a model and round.  [default: the spec's]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="S", help="Seed.  [default: the spec's]")] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="S", help="Closed forms: repeat with this many seeds.")] = 1,
    regime: Annotated[
        Regime | None, typer.Option(help="Train on new samples, all so far, or some of all.  [default: the spec's]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Networks: go on after the last finished round.")] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="Networks: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Networks: what forward passes compute in.")] = Dtype.FLOAT32,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Networks: also log to wandb, mlflow or trackio.")
    ] = None,
    scale: Scale = None,
    change: Set = None,
    out: Out = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Run the retraining loop itself.

    Models in closed form are run on populations or samples. Networks are trained for real: the folder then holds every
    round's metrics, samples with their lineage and checkpoints, and a run that was stopped goes on with --resume.
    """
    size = None if samples is None else _samples(samples)
    if seed is not None:
        change = [*(change or []), f"seed={seed}"]
    if spec.is_dir():
        _resume_folder(spec, rounds, resume, device, dtype.value, track, allow_code, quiet, [scale, change, out, size])
        return
    if size is not None and size != math.inf:
        change = [*(change or []), f"samples.per_round={int(size)}"]
    eco = _load(spec, allow_code, scale, change)
    if eco.networks:
        if size == math.inf:
            raise SettingError("--samples: found inf; networks need a whole number of samples")
        if seeds > 1:
            raise SettingError(
                f"--seeds: found {seeds}; networks run one seed at a time: use --seed and a folder each (--out)"
            )
        options = _spec_options(allow_code, scale, change)
        _run_networks(
            eco,
            out or Path(f"crossfeed-{spec.stem}-run"),
            quiet,
            rounds=rounds,
            resume=resume,
            device=device,
            dtype=dtype.value,
            regime=None if regime is None else regime.value,
            track=tuple(track or ()),
            spec_text=spec.read_text(encoding="utf-8-sig"),
            spec_file=spec.name,
            command=shlex.join(["crossfeed", "run", str(spec), *options]),
        )
        return
    if resume or track or device != "auto" or dtype is not Dtype.FLOAT32:
        raise SettingError(
            "--resume, --track, --device, --dtype: are for networks; these models are closed forms, which take seconds"
        )
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
    scale: Scale = None,
    change: Set = None,
    out: Out = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Map where curation helps and where it backfires, over a grid.

    Example: crossfeed sweep SPEC --vary p.curation=0:0.9:10 --vary q.curation=0:0.9:10
    """
    grid = _grid(vary)
    eco = _load(spec, allow_code, scale, change)
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
    eco = _load(spec, allow_code, scale, change)
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
    source: Annotated[
        Path, typer.Argument(metavar="RESULT", help="The folder of a run or of an audit, or an audit.json.")
    ],
    audit_json: Annotated[
        Path | None,
        typer.Option("--audit", metavar="AUDIT_JSON", help="For a run: what an audit of its spec predicts."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page.  [default: report.html beside it]")
    ] = None,
) -> None:
    """Draw the report of a finished audit, or of a run of networks, running or finished."""
    from crossfeed.record.folder import is_run

    if is_run(source):
        from crossfeed.record.folder import RunFolder
        from crossfeed.report.run_report import save_page

        predicted = None if audit_json is None else read_audit(_audit_file(audit_json))
        if out is not None:
            _not_a_folder(out)
        print(f"report: {save_page(RunFolder.open(source, allow_code=True), out, predicted)}")
        return
    if audit_json is not None:
        raise SettingError(f"--audit: goes with the folder of a run; {source} is none")
    file = _audit_file(source)
    data = read_audit(file)
    target = file.with_name("report.html") if out is None else out
    _not_a_folder(target, file)
    from crossfeed.report.html import html

    page = html(data)
    write_whole(target, lambda path: Path(path).write_text(page, encoding="utf-8", errors="replace"))
    print(f"report: {target}")


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of networks.")]


@app.command()
def lineage(
    folder: Run,
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="A sample's id, e.g. r0003-p-000017.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images: also write them as PNG into this folder.")
    ] = None,
) -> None:
    """Show where one training sample came from: who made it, who picked it and why, back to real data."""
    from rich.console import Console

    from crossfeed.record.folder import RunFolder
    from crossfeed.record.lineage import ancestry
    from crossfeed.report.lineage_view import lineage_json, lineage_text, save_pictures

    chain = ancestry(RunFolder.open(folder, allow_code=True), sample)
    if as_json:
        print(lineage_json(chain))
    else:
        Console(soft_wrap=False).print(lineage_text(chain))
    if save is not None:
        with results_folder(save) as pictures:
            for file in save_pictures(chain, pictures):
                print(f"file: {file}")


@app.command()
def export(
    folder: Run,
    to: Annotated[Path, typer.Option(metavar="FILE", help="The file to write: .parquet or .jsonl.")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only what this model was trained on; may be repeated.")
    ] = None,
    rounds: Annotated[
        list[int] | None, typer.Option("--round", metavar="N", help="Only this round; may be repeated.")
    ] = None,
    pairs: Annotated[Pairs, typer.Option(help="Set a pick against all losers, or the worst.")] = Pairs.ALL,
    conversational: Annotated[bool, typer.Option("--conversational", help="Lists of messages, not texts.")] = False,
) -> None:
    """Write the picks of a run as preferences (prompt, chosen, rejected), as TRL reads them."""
    from crossfeed.record.folder import RunFolder
    from crossfeed.record.preferences import export_preferences

    run_folder = RunFolder.open(folder, allow_code=True)
    count = export_preferences(
        run_folder, to, rounds=rounds, models=model, pairs=pairs.value, conversational=conversational
    )
    print(f"file: {to} ({_count(count, 'pair')})")


# --- arguments -------------------------------------------------------------------------------------------------------


def _load(spec: Path, allow_code: bool, scale: str | None = None, change: Sequence[str] | None = None) -> Any:
    from crossfeed.describe.load import load

    return load(spec, allow_code=allow_code, scale=scale, overrides=_overrides(change))


def _overrides(change: Sequence[str] | None) -> dict[str, Any]:
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


def _spec_options(allow_code: bool, scale: str | None, change: Sequence[str] | None) -> list[str]:
    """The options that change what a spec means, as they are typed."""
    chosen = [] if scale is None else ["--scale", scale]
    changes = [part for text in change or () for part in ("--set", text)]
    return [*chosen, *changes, *(["--allow-code"] if allow_code else [])]


def _run_networks(eco: Any, folder: Path, quiet: bool, **options: Any) -> None:
    """The loop of real networks into a folder, with its report at the end, also of a run that was stopped."""
    from crossfeed.record.folder import RunFolder
    from crossfeed.report.run_report import run_summary, save_page
    from crossfeed.retraining.run import run_networks

    with progress(quiet) as report:
        told = None if quiet else (lambda summary: _say(str(summary)))
        run_networks(eco, folder, progress=report, report=told, **options)
    done = RunFolder.open(folder, allow_code=True)
    page = save_page(done)
    if not quiet:
        from rich.console import Console

        Console(soft_wrap=False).print(run_summary(done))
    print(f"results: {folder}")
    print(f"report: {page}")


def _resume_folder(
    folder: Path,
    rounds: int | None,
    resume: bool,
    device: str,
    dtype: str,
    track: list[str] | None,
    allow_code: bool,
    quiet: bool,
    others: list[Any],
) -> None:
    """Go on with the run in a folder, by the spec that is in it."""
    from crossfeed.record.folder import RunFolder

    if not resume:
        raise SettingError(f"{folder}: is a folder; give a spec file, or --resume to go on with the run in it")
    if any(value is not None for value in others):
        raise SettingError(
            "--resume with a folder: goes on with the spec in it; leave out --scale, --set, --seed, --out"
        )
    there = RunFolder.open(folder, allow_code=allow_code)
    _run_networks(
        there.eco, folder, quiet, rounds=rounds, resume=True, device=device, dtype=dtype, track=tuple(track or ())
    )


def _audit_file(path: Path) -> Path:
    return path / "audit.json" if os.path.isdir(path) else path


def _not_a_folder(target: Path, source: Path | None = None) -> None:
    if os.path.exists(target) and (target.is_dir() or (source is not None and target.samefile(source))):
        what = "a folder" if target.is_dir() else "the audit itself"
        raise CrossfeedError(f"--out: found {target}, which is {what}; give the name of an .html file")


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
