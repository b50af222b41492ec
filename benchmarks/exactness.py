"""Influence estimated from samples against the exact matrix: python -m benchmarks.exactness [--quick] [--processes P] [--seed S]

The ecosystems are those of ``tests/estimate/exact_cases.py``: closed-form ones, at their stable points, whose influence matrix is
known. Each is estimated from many independent sets of samples through the same calls that networks are. Columns:

- entries: how many of the matrix are not zero by the graph alone; what follows is over these;
- z, from the first 100 repetitions: largest error of the mean estimate in its own standard errors, and the Bonferroni bound that
  a right estimator exceeds with probability 1e-4. An inverse of estimated moments has a bias of order 1/n; it is taken out by
  T → 2 T(all) − (T(first half) + T(second half))/2, which leaves an error of order 1/n² and the same first-order variance;
- bias: largest part taken out by that, in standard deviations of one estimate;
- slope: of log RMSE against log n, over n/4, n and 4n (40 repetitions at the ends);
- coverage: share of the normal 95 % intervals that cover the exact value: mean over entries, least to most;
- width: mean width of an interval over the mean size of an entry.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.machine import ROOT, machine

NUM, SEED, FALSE_ALARM = 1000, 20261121, 1e-4
HEADS = ("ecosystem", "K", "n", "repetitions", "entries", "z (bound)", "bias", "slope", "coverage", "width")


def cases() -> Any:
    """The module of the tests that has the ecosystems and repeats estimates."""
    for folder in (ROOT / "tests", ROOT / "tests" / "estimate"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module("exact_cases")


def repetitions(name: str, quick: bool) -> int:
    """400 where coverage is the point (K, best of K, kinds of edges), 100 elsewhere."""
    full = 400 if any(word in name for word in ("K =", "best", "edges")) else 100
    return full // 20 if quick else full


def measure(name: str, seed: int, quick: bool) -> list[str]:
    """One line of the table."""
    torch.set_num_threads(1)
    found, repeats = cases(), repetitions(name, quick)
    known = found.truth(found.CASES[name]())
    candidates = sorted({s.candidates for m in known.eco.models.values() for s in m.sources if s.kind == "curated"})
    main = found.repeat(known, NUM, repeats, seed, corrected=min(100, repeats))
    ends = {n: found.repeat(known, n, 4 if quick else 40, seed + 1000 * n) for n in (NUM // 4, 4 * NUM)}
    entries = len(main.exact)
    few = len(main.corrected)
    bound = float(student.isf(FALSE_ALARM / (2 * entries), few - 1))
    bias = ((main.plain[:few] - main.corrected).mean(0) / main.plain.std(0)).abs().max()
    shares = 100 * found.covered(main)
    width = 2 * 1.959964 * float(main.errors.mean() / main.exact.abs().mean())
    return [
        name,
        ", ".join(f"{k:g}" for k in candidates),
        f"{NUM:,}",
        str(repeats),
        str(entries),
        f"{float(found.z_scores(main.corrected, main.exact).abs().max()):.2f} ({bound:.2f})",
        f"{float(bias):.2f}",
        f"{found.slope({NUM: main, **ends}):.3f}",
        f"{float(shares.mean()):.1f} % ({float(shares.min()):.1f}–{float(shares.max()):.1f})",
        f"{width:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the repetitions")
    parser.add_argument("--processes", type=int, default=2, help="at once, of one thread each (default 2)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of all samples (default {SEED})")
    chosen = parser.parse_args()
    m, begin = machine(1), time.perf_counter()
    names = list(cases().CASES)
    with ProcessPoolExecutor(chosen.processes, mp_context=get_context("spawn")) as pool:
        lines = list(pool.map(partial(measure, seed=chosen.seed, quick=chosen.quick), names))
    print(f"Seed {chosen.seed}. {m['cpu']}, load {m['load_before']:.1f} before. Python {m['python']}, torch ", end="")
    print(f"{m['versions']['torch']}. Commit {m['commit']}, {m['date']}; {time.perf_counter() - begin:,.0f} s.\n")
    print("| " + " | ".join(HEADS) + " |\n|---|" + "--:|" * (len(HEADS) - 1))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    error = math.sqrt(0.05 * 0.95 / 400)
    print(f"\nOne entry's coverage has a standard error of {error:.1%} with 400 repetitions, {2 * error:.1%} with 100.")


if __name__ == "__main__":
    main()
