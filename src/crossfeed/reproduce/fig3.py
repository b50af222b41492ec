"""``crossfeed reproduce fig3``: the paper's Gaussian experiment, number by number against the published arrays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from crossfeed.report.output import write_whole
from crossfeed.reproduce import figure, page
from crossfeed.reproduce.numbers import Numbers, Progress, gather

ENDINGS = ("svg", "pdf", "png")


def run(out: Path, progress: Progress) -> dict[str, Any]:
    """Compute everything, and write the figure, the page and the numbers.

    Args:
        out: Folder, existing.
        progress: Called with (stage, done, total).

    Returns:
        ``files`` written and ``summary`` lines.
    """
    begin = time.perf_counter()
    with one_thread():
        numbers = gather(progress)
    targets = [out / f"fig3.{ending}" for ending in ENDINGS]
    for number, target in enumerate(targets):
        progress("Drawing", number, len(targets) + 1)
        write_whole(target, lambda file: figure.save(numbers, file))
    markup = page.html(numbers)
    progress("Drawing", len(targets) + 1, len(targets) + 1)
    numbers["seconds"]["all"] = round(time.perf_counter() - begin, 3)
    write_whole(out / "fig3.html", lambda file: file.write_text(markup, encoding="utf-8"))
    write_whole(out / "fig3.json", lambda file: file.write_text(as_json(numbers), encoding="utf-8"))
    return {"files": [out / "fig3.html", *targets, out / "fig3.json"], "summary": summary(numbers)}


def as_json(numbers: Numbers) -> str:
    """The numbers as JSON; NaN and infinity, which JSON has not, are refused."""
    return json.dumps(numbers, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def summary(numbers: Numbers) -> list[str]:
    """What came out, in a few lines for the terminal."""
    exact = page.worst(numbers, "influence matrix", "explicit formula", "library")
    steps = page.worst(numbers, "central differences")
    theirs, ours = numbers["agreement"]["published"], numbers["agreement"]["simulated"]
    return [
        f"exact numbers: largest deviation from the published ones {exact:.1e}; by central differences {steps:.1e}",
        f"finite samples, published: {theirs['within_2']} of {theirs['count']} within 2 and "
        f"{theirs['within_3']} within 3 "
        f"standard errors of the theory (expected {theirs['expected_2']:.1f} and {theirs['expected_3']:.1f})",
        f"finite samples, simulated here: {ours['within_2']} and {ours['within_3']} of {ours['count']}",
        f"the influence of p's curation on q changes sign at t = {numbers['zero']['t']['library']:.10f}",
        f"took {numbers['seconds']['all']:.1f} s",
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: matrices are small here, and threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
