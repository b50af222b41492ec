"""The benchmarks: each returns rows of (what, seconds, peak MB, ratio or exponent, of what) and notes."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import diffusion_loop, language_loop
from benchmarks.machine import ROOT, child, timed

Rows = list[dict[str, Any]]
Result = dict[str, Any]


def row(
    what: str, seconds: float | None, peak_mb: float | None = None, number: str = "", of: str = ""
) -> dict[str, Any]:
    """One line of a table; ``number`` is a ratio or an exponent, ``of`` says of what."""
    return {"what": what, "seconds": seconds, "peak_mb": peak_mb, "number": number, "of": of}


def simulate(threads: int, quick: bool) -> Result:
    """The Gaussian experiment's 5,680 runs of 100 rounds, together and one at a time."""
    seeds = 0.05 if quick else 0.25
    library = child("simulated", threads, method="library", seeds=1.0)
    rows = [row("library, all runs together", library["seconds"], library["peak_mb"])]
    raw = {"library": library}
    for method, words in (
        ("every_sample", "one run at a time, every sample drawn"),
        ("sample_means", "one run at a time, sample means drawn"),
    ):
        raw[method] = found = child("simulated", threads, method=method, seeds=seeds)
        faster = f"{found['seconds'] / library['seconds']:.1f}×"
        rows.append(row(words, found["seconds"], found["peak_mb"], faster, "the library's time"))
    off = library["standard_errors_off"]
    notes = [
        f"Loops are timed on {raw['every_sample']['share_timed']:.0%} of the seeds or more, and scaled.",
        f"The library's means over seeds are {off:.2f} standard errors (root mean square, worst of five jobs) from the exact ones.",
    ]
    return {"rows": rows, "notes": notes, "raw": raw}


def growth(threads: int, quick: bool) -> Result:
    """The whole influence matrix of N models of 16 parameters with 5 producers each."""
    sizes = (10, 100) if quick else (10, 30, 100, 300, 1000)
    raw = {n: child("grown", threads, num_models=n) for n in sizes}
    rows, before = [], None
    for n in sizes:
        found, number, of = raw[n], "", ""
        if before is not None:
            number, of = f"N^{_exponent(before, n, raw, 'seconds'):.2f}", f"seconds from N = {before}"
        rows.append(row(f"N = {n:,}", found["seconds"], found["peak_mb"], number, of))
        before = n
    largest = raw[sizes[-1]]
    for name, seconds in largest["stages"].items():
        part = f"{seconds / largest['seconds']:.0%}"
        rows.append(row(f"· {name}", seconds, largest["stage_peaks_mb"][name], part, f"N = {sizes[-1]:,}"))
    notes = [
        f"Fresh process each, after one ecosystem of 6 models, which makes torch load what it needs for derivatives "
        f"(1 to 2 s); {largest['start_mb']:.0f} MB of the peak are there before. Three dense "
        f"(N × parameters) matrices at N = {sizes[-1]:,} hold {3 * largest['gigabyte_of_matrices']:.2f} GB.",
    ]
    return {"rows": rows, "notes": notes, "raw": raw}


def _exponent(a: int, b: int, raw: dict[int, dict[str, Any]], key: str) -> float:
    return math.log(raw[b][key] / raw[a][key]) / math.log(b / a)


def differences(threads: int, quick: bool) -> Result:
    """The influence matrix of 10 models against solving for their stable point, and against differences of such."""
    rows: Rows = []
    raw, notes = {}, []
    for kind, words in (
        ("gaussian", "Gaussian, 160 parameters"),
        ("log_linear", "log-linear, 160 parameters, four picked sources of K = 4 each"),
    ):
        raw[kind] = found = child("differences", threads, kind=kind, num_models=10)
        times = found["times"]
        matrix = times["influence matrix"]
        rows.append(row(f"{words}: influence matrix", matrix, found["peak_mb"]))
        for name in ("stable point, auto", "stable point, plain rounds"):
            rows.append(row(f"· {name}", times[name], None, f"{matrix / times[name]:.2f}×", "its time: the matrix"))
        central = times["influence matrix by central differences"]
        rows.append(row("· by central differences", central, None, f"{central / matrix:.0f}×", "the matrix's time"))
        notes.append(
            f"{words}: plain rounds take {found['plain_steps']}; the two matrices differ by {found['largest_gap']:.1e} of the "
            "largest entry. Differences start from the known stable point and use Newton."
        )
    return {"rows": rows, "notes": notes, "raw": raw}


def start_up(threads: int, quick: bool) -> Result:
    """What a user waits for."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        cli = [python, "-m", "crossfeed"]
        commands = {
            "python, nothing else": [python, "-c", "pass"],
            "import torch": [python, "-c", "import torch"],
            "import crossfeed": [python, "-c", "import crossfeed"],
            "crossfeed --help": [*cli, "--help"],
            "crossfeed audit examples/cifar10/A4.yaml": [
                *cli,
                "audit",
                str(ROOT / "examples" / "cifar10" / "A4.yaml"),
                "--out",
                f"{folder}/report",
            ],
        }
        rows: Rows = []
        raw, notes, bare = {}, [], None
        for name, command in commands.items():
            repeats = 1 if "audit" in name or quick else 5
            runs = [timed(command, threads) for _ in range(repeats)]
            raw[name] = found = min(runs, key=lambda r: r["seconds"])
            bare = bare or found["seconds"]
            rows.append(row(name, found["seconds"], found["peak_mb"], f"{found['seconds'] / bare:.1f}×", "bare python"))
            if found["code"]:
                notes.append(f"`{name}` ended with code {found['code']}: {found['complaint']}")
            found.pop("output")
    return {"rows": rows, "notes": notes, "raw": raw}


SUITE: dict[str, Callable[[int, bool], Result]] = {
    "simulate": simulate,
    "growth": growth,
    "differences": differences,
    "start-up": start_up,
    "diffusion": diffusion_loop.measure,
    "language": language_loop.measure,
}
