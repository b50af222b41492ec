"""Run the benchmarks: python -m benchmarks [--quick] [--only NAME] [--threads T]."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.suite import SUITE

FOLDER = Path(__file__).parent
HEADS = ("", "seconds", "peak MB", "ratio or exponent", "of")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats")
    parser.add_argument("--only", choices=SUITE, action="append", help="this benchmark; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default 1)")
    chosen = parser.parse_args()
    console = Console()
    results: dict[str, Any] = {"machine": machine(chosen.threads), "quick": chosen.quick, "benchmarks": {}}
    for name in chosen.only or SUITE:
        found = SUITE[name](chosen.threads, chosen.quick) | {"what": SUITE[name].__doc__}
        results["benchmarks"][name] = found
        table = Table(*HEADS, title=f"{name}: {found['what']}", title_justify="left")
        for line in found["rows"]:
            table.add_row(*_cells(line))
        console.print(table)
        for note in found["notes"]:
            console.print(note, markup=False)
    if chosen.only or chosen.quick:
        console.print("Nothing is written: benchmarks/results/latest.json holds whole runs only.")
        return
    (FOLDER / "results").mkdir(exist_ok=True)
    (FOLDER / "results" / "latest.json").write_text(json.dumps(results, indent=1) + "\n")
    (FOLDER / "README.md").write_text(markdown(results))


def _cells(line: dict[str, Any]) -> list[str]:
    seconds = "" if line["seconds"] is None else f"{line['seconds']:.3g}"
    peak = "" if line["peak_mb"] is None else f"{line['peak_mb']:,.0f}"
    return [line["what"], seconds, peak, line["number"], line["of"]]


def markdown(results: dict[str, Any]) -> str:
    """The tables, with what they were measured on."""
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    out = [
        "# Benchmarks",
        "Written by `make bench`; all numbers are in `results/latest.json`. Ratios are within one run; absolute seconds are "
        "this machine's.",
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}; {m['threads']} thread(s) a process, load "
        f"{m['load_before']:.1f} before. Python {m['python']}, {versions}. Commit {m['commit']}, {m['date']}.",
    ]
    for name, found in results["benchmarks"].items():
        lines = [f"## {name}", str(found["what"]), "", "| " + " | ".join(HEADS) + " |", "|---|--:|--:|--:|---|"]
        lines += ["| " + " | ".join(_cells(line)) + " |" for line in found["rows"]]
        out += ["\n".join(lines), *found["notes"]]
    return "\n\n".join(out) + "\n"


if __name__ == "__main__":
    main()
