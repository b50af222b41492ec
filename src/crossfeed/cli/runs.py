"""The verbs on runs: run a loop, draw its report, follow a sample back, export what was picked."""

from __future__ import annotations

import math
import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from crossfeed.cli.arguments import AllowCode, Out, Quiet, Scale, Set, count, load_spec, samples_of, say, spec_options
from crossfeed.errors import CrossfeedError, SettingError
from crossfeed.report.output import read_audit, results_folder, write_whole
from crossfeed.report.progress import progress

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of networks.")]


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
    dtype: Annotated[
        Dtype | None, typer.Option(help="Networks: what forward passes compute in.  [default: float32]")
    ] = None,
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
    size = None if samples is None else samples_of(samples)
    if seed is not None:
        change = [*(change or []), f"seed={seed}"]
    if spec.is_dir():
        _resume_folder(
            spec, rounds, resume, device, dtype, regime, track, allow_code, quiet, [scale, change, out, size]
        )
        return
    if size is not None and size != math.inf:
        change = [*(change or []), f"samples.per_round={int(size)}"]
    eco = load_spec(spec, allow_code, scale, change)
    if eco.networks:
        if size == math.inf:
            raise SettingError("--samples: found inf; networks need a whole number of samples")
        if seeds > 1:
            raise SettingError(
                f"--seeds: found {seeds}; networks run one seed at a time: use --seed and a folder each (--out)"
            )
        options = spec_options(allow_code, scale, change)
        for name, value, default in (
            ("--rounds", rounds, None),
            ("--regime", regime, None),
            ("--device", device, "auto"),
            ("--dtype", dtype, None),
        ):
            options += [] if value == default else [name, str(value)]
        _run_networks(
            eco,
            out or Path(f"crossfeed-{spec.stem}-run"),
            quiet,
            rounds=rounds,
            resume=resume,
            device=device,
            dtype=None if dtype is None else dtype.value,
            regime=None if regime is None else regime.value,
            track=tuple(track or ()),
            spec_text=spec.read_text(encoding="utf-8-sig"),
            spec_file=spec.name,
            command=shlex.join(["crossfeed", "run", str(spec), *options]),
        )
        return
    if resume or track or device != "auto" or dtype is not None:
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
    if data["format"] == "crossfeed-estimate":
        from crossfeed.report.estimate_html import html
    else:
        from crossfeed.report.html import html

    page = html(data)
    write_whole(target, lambda path: Path(path).write_text(page, encoding="utf-8", errors="replace"))
    print(f"report: {target}")


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
    number = export_preferences(
        run_folder, to, rounds=rounds, models=model, pairs=pairs.value, conversational=conversational
    )
    print(f"file: {to} ({count(number, 'pair')})")


def _run_networks(eco: Any, folder: Path, quiet: bool, **options: Any) -> None:
    """The loop of real networks into a folder, with its report at the end, also of a run that was stopped."""
    from crossfeed.record.folder import RunFolder
    from crossfeed.report.run_report import run_summary, save_page
    from crossfeed.retraining.run import run_networks

    with progress(quiet) as report:
        told = None if quiet else (lambda summary: say(str(summary)))
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
    dtype: Dtype | None,
    regime: Regime | None,
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
        there.eco,
        folder,
        quiet,
        rounds=rounds,
        resume=True,
        device=device,
        dtype=None if dtype is None else dtype.value,
        regime=None if regime is None else regime.value,
        track=tuple(track or ()),
    )


def _audit_file(path: Path) -> Path:
    return path / "audit.json" if os.path.isdir(path) else path


def _not_a_folder(target: Path, source: Path | None = None) -> None:
    if os.path.exists(target) and (target.is_dir() or (source is not None and target.samefile(source))):
        what = "a folder" if target.is_dir() else "the audit itself"
        raise CrossfeedError(f"--out: found {target}, which is {what}; give the name of an .html file")
