"""The verb ``audit``: closed forms are solved, networks are estimated from samples; a run's folder is audited as it stands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from crossfeed.cli.arguments import AllowCode, Out, Quiet, Scale, Set, load_spec, say, spec_options
from crossfeed.errors import SettingError
from crossfeed.report.output import results_folder, write_whole
from crossfeed.report.progress import progress


def audit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The ecosystem, a YAML file; or the folder of a run.")],
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only audit.json on stdout.")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Networks: rounds to look ahead.  [default: those left]")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Networks: outputs of every model at each place.  [default: 1500; texts 1000; images 360]",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="N|TIME", help="Networks: samples, or a time to fit them into: 10m, 90s.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="PATH=VALUE",
            help="Networks: also answer a change, e.g. p.curation=0.6; may be repeated.",
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=FILE",
            help="Networks: a model's outputs on file (prompt, candidates, rewards or picks; TRL preferences); may be repeated.",
        ),
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Networks: bank (needs likelihoods), matrix-free (also without), or auto: the bank where it can.",
        ),
    ] = "auto",
    round_: Annotated[
        int | None,
        typer.Option("--round", min=0, metavar="N", help="A run: audit it after this round.  [default: its last]"),
    ] = None,
    projection: Annotated[
        int | None,
        typer.Option(min=4, metavar="M", help="Networks: keep gradients of large models in M random coordinates."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="S", help="Networks: seed.  [default: the spec's]")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Networks: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    scale: Scale = None,
    change: Set = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Say what more curation does to every model, and how sure that is.

    Models in closed form are solved. For networks it is estimated from samples and gradients, without retraining; give the
    folder of a run to audit its models. Writes report.html (one file that opens anywhere) and audit.json (all its numbers).
    """
    asked: dict[str, Any] = {
        "--rounds": rounds,
        "--samples": samples,
        "--budget": budget,
        "--round": round_,
        "--projection": projection,
        "--seed": seed,
        "--device": None if device == "auto" else device,
        "--what-if": what_if or None,
        "--outputs": outputs or None,
        "--estimator": None if estimator == "auto" else estimator,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    is_folder = spec.is_dir()
    eco = _of_run(spec, allow_code, scale, change) if is_folder else load_spec(spec, allow_code, scale, change)
    options: dict[str, Any] = {}
    if eco.networks:
        options = {
            "run": spec if is_folder else None,
            "round": round_,
            "rounds": rounds,
            "samples": samples,
            "budget": budget,
            "projection": projection,
            "seed": seed,
            "device": device,
            "what_if": what_ifs(what_if),
            "outputs": files_of(outputs),
            "estimator": estimator,
            "tell": None if quiet else say,
        }
    elif given:
        raise SettingError(
            f"{', '.join(given)}: for networks; these models are closed forms, which are solved exactly: leave it out"
            + (", and put changes into the spec's `audit.changes`" if what_if else "")
        )
    command = shlex.join(["crossfeed", "audit", str(spec), *_typed(given), *spec_options(allow_code, scale, change)])
    name = f"{spec.resolve().name}-audit" if is_folder else f"crossfeed-{spec.stem}"
    from crossfeed.verbs import audit as work_out

    with results_folder(out or Path(name)) as folder:
        if is_folder and folder.resolve() == spec.resolve():
            raise SettingError(
                f"--out: found the folder of the run itself, {spec}, whose report.html it would replace; give another"
            )
        with progress(quiet) as report:
            spec_file = _spec_file(spec) if is_folder else spec.name
            result = work_out(eco, progress=report, command=command, spec_file=spec_file, **options)
        write_whole(folder / "audit.json", result.save)
        write_whole(folder / "report.html", result.save)
    if as_json:
        print(json.dumps(result.data, allow_nan=False, indent=1))
        say(f"report: {folder / 'report.html'}")
        return
    if not quiet:
        from rich.console import Console

        if eco.networks:
            from crossfeed.report.estimate_terminal import summary
        else:
            from crossfeed.report.terminal import summary

        Console(soft_wrap=False).print(summary(result.data))
    print(f"report: {folder / 'report.html'}")


def what_ifs(given: Sequence[str] | None) -> dict[str, float]:
    """``PATH=VALUE`` texts as {path: number}.

    Raises:
        SettingError: no ``=``, no number, or a path that is given twice.
    """
    found: dict[str, float] = {}
    for text in given or ():
        path, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not path.strip() or math.isnan(number):
            raise SettingError(f"--what-if: found {text!r}; need PATH=NUMBER, e.g. p.curation=0.6")
        if path.strip() in found:
            raise SettingError(
                f"--what-if: found {path.strip()!r} twice; each change is answered by itself, so give it once"
            )
        found[path.strip()] = number
    return found


def files_of(given: Sequence[str] | None) -> dict[str, Path]:
    """``MODEL=FILE`` texts as {model: file}.

    Raises:
        SettingError: no ``=``, or a model that is given twice.
    """
    found: dict[str, Path] = {}
    for text in given or ():
        model, equals, file = text.partition("=")
        if not equals or not model.strip() or not file.strip():
            raise SettingError(f"--outputs: found {text!r}; need MODEL=FILE, e.g. p=candidates.parquet")
        if model.strip() in found:
            raise SettingError(f"--outputs: found {model.strip()!r} twice; put the rows into one file")
        found[model.strip()] = Path(file.strip())
    return found


def _typed(given: dict[str, Any]) -> list[str]:
    """Options as they are typed."""
    out: list[str] = []
    for name, value in given.items():
        out += [part for one in (value if isinstance(value, list) else [value]) for part in (name, str(one))]
    return out


def _of_run(folder: Path, allow_code: bool, scale: str | None, change: Sequence[str] | None) -> Any:
    """The ecosystem of a run."""
    if scale is not None or change:
        raise SettingError(
            f"--scale, --set: found with {folder}, the folder of a run, which has its spec; try changes with --what-if"
        )
    from crossfeed.record.folder import RunFolder

    return RunFolder.open(folder, allow_code=allow_code).eco


def _spec_file(folder: Path) -> str | None:
    """Name of the spec's file that a run was started with."""
    try:
        about = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return about.get("spec_file") if isinstance(about, dict) else None
