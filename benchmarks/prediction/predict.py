"""Predicted influence beside what retraining showed, with baselines and costs.

``python -m benchmarks.prediction.predict FOLDER [--out FILE]`` reads what ``benchmarks.prediction.truth`` wrote into FOLDER, estimates
every ecosystem from its starting checkpoint, and prints the tables of benchmarks/README.md; per-ecosystem results go to FILE as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.prediction.ecosystems import HELD_OUT, NUM, ROUNDS, ecosystem, kind_of
from benchmarks.prediction.truth import settle, settled
from crossfeed.estimate.audit import audit_networks
from crossfeed.estimate.influence import outcomes
from crossfeed.estimate.network_draws import Size

METHODS = ("estimate", "from the start", "isolated", "raw alignment", "one round")


def measured(truth: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) central differences of J at the last round by curation ratio, and their standard errors over seeds."""
    up, down = (np.array([[run[-1] for run in truth[key][name]] for name in truth["names"]]) for key in ("up", "down"))
    slopes = (up - down) / (2 * truth["step"])  # (intervened, seed, affected)
    return slopes.mean(1).T, (slopes.std(1, ddof=1) / math.sqrt(slopes.shape[1])).T


def predicted(truth: dict[str, Any], folder: Path, seed: int, outputs: int | None = None) -> dict[str, Any]:
    """All methods' matrices for one ecosystem; ``outputs``: of each model at each place, instead of the default."""
    number = truth["number"]
    eco = ecosystem(number, folder)
    eco = settled(eco, settle(eco, folder / f"settled-{number:02d}"))
    start = time.process_time()
    if outputs is None and kind_of(number) == "language":
        outputs = 2000  # small models give the same texts again and again
    size = None if outputs is None else Size(outputs, outputs)
    audit = audit_networks(eco, rounds=ROUNDS, seed=seed, device="cpu", size=size)
    seconds = time.process_time() - start
    now = audit.estimate  # for baselines, at no cost of ours
    if audit.findings.places != [0]:
        now = audit_networks(eco, rounds=ROUNDS, seed=seed, device="cpu", look_ahead=False).estimate
    assert now.answer.path is not None
    goals = outcomes(now.bank, now.answer.judged, now.answer.system.sizes)
    first = sum((g.T @ x for g, x in zip(goals, now.answer.path.after_rounds[1], strict=True)), torch.zeros(()))
    return {
        "estimate": audit.findings.matrix.tolist(),
        "errors": (audit.half_width / 1.959964).tolist(),
        "sampling errors": audit.findings.errors.tolist(),
        "isolated": audit.findings.isolated.tolist(),
        "raw alignment": now.answer.push.tolist(),
        "one round": (first * ROUNDS).tolist(),
        "from the start": now.answer.matrix.tolist(),
        "verdicts": audit.verdicts(),
        "warnings": [check.name for check in audit.checks if check.result != "passed"],
        "fisher": [leg.horizon.fisher for leg in audit.estimate.legs],
        "course": audit.course.alignment[-1].tolist(),
        "seconds": seconds,
        "stages": audit.seconds,
    }


def score(rows: Sequence[dict[str, Any]], method: str, which: str = "all") -> dict[str, float]:
    """Sign accuracy, correlation, median relative error and calibration over ecosystems."""
    T, S, P, E, seeds = [], [], [], [], 4
    for row in rows:
        value, error = measured(row["truth"])
        seeds = len(row["truth"]["base"])
        keep = np.ones_like(value, bool)
        if which != "all":
            keep = np.eye(len(value), dtype=bool) if which == "self" else ~np.eye(len(value), dtype=bool)
        T.append(value[keep])
        S.append(error[keep])
        P.append(np.array(row["found"][method])[keep])
        E.append(np.array(row["found"]["errors"])[keep])
    t, s, p, e = (np.concatenate(parts) for parts in (T, S, P, E))
    out: dict[str, float] = {"entries": len(t)}
    for label, limit in (("2 SE", 2.0), ("95 %", float(student.ppf(0.975, seeds - 1)))):
        sure = np.abs(t) > limit * s
        out[f"significant, {label}"] = int(sure.sum())
        out[f"signs, {label}"] = float((np.sign(t) == np.sign(p))[sure].mean())
        told = sure & (np.abs(p) > 1.96 * e)
        out[f"signs told, {label}"] = float((np.sign(t) == np.sign(p))[told].mean())
        out[f"told, {label}"] = float(told[sure].mean())
    out["correlation"] = float(np.corrcoef(t, p)[0, 1])
    sure = np.abs(t) > 2 * s
    out["median relative error"] = float(np.median(np.abs(p - t)[sure] / np.abs(t)[sure]))
    out["slope"] = float((t * p).sum() / (p * p).sum())
    both = s**2 + e**2
    freedom = np.clip(both**2 / np.maximum(s**4 / (seeds - 1), 1e-300), seeds - 1, 1e6)  # Welch and Satterthwaite
    out["inside 95 %"] = float((np.abs(t - p) <= student.ppf(0.975, freedom) * np.sqrt(both)).mean())
    return out


def table(rows: Sequence[dict[str, Any]], title: str) -> str:
    """One group of ecosystems as Markdown."""
    lines = [f"### {title}: {len(rows)} ecosystems", ""]
    lines += [
        "| method | entries | significant (2 SE) | signs right | significant (t, 95 %) | signs right | signs right where it tells | "
        "correlation | median relative error | truth inside 95 % interval |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        for which in ("all", "self", "cross"):
            if method in ("isolated", "raw alignment") and which != "self":
                continue  # these say nothing about other models
            found = score(rows, method, which)
            inside = f"{100 * found['inside 95 %']:.0f} %" if method == "estimate" else ""
            told = f"{100 * found['signs told, 95 %']:.1f} %" if method == "estimate" else ""
            error = "" if method == "raw alignment" else f"{found['median relative error']:.2f}"
            lines.append(
                f"| {method}, {which} | {found['entries']:.0f} | {found['significant, 2 SE']:.0f} | {100 * found['signs, 2 SE']:.1f} % | "
                f"{found['significant, 95 %']:.0f} | {100 * found['signs, 95 %']:.1f} % | {told} | {found['correlation']:.3f} | {error} | "
                f"{inside} |"
            )
    cost = [row["found"]["seconds"] / row["truth"]["cpu_seconds"] for row in rows]
    one = [c * len(row["truth"]["base"]) for c, row in zip(cost, rows, strict=True)]
    lines += [
        "",
        f"Cost: {100 * float(np.median(cost)):.1f} % (median) of the processor time of the retraining it is compared with, "
        f"{100 * float(np.median(one)):.1f} % of a single seed of it.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Estimate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outputs", type=int, help="of each model at each place; the default: 1500, texts 2000")
    parser.add_argument("--kinds", default="sgd,adamw,language", help="which ecosystems, by commas")
    parser.add_argument("--development", action="store_true", help="leave the held-out ecosystems alone")
    args = parser.parse_args()
    rows = []
    for number in range(NUM):
        file = args.folder / f"truth-{number:02d}.json"
        if (
            not file.exists()
            or (args.development and number in HELD_OUT)
            or kind_of(number) not in args.kinds.split(",")
        ):
            continue
        truth = json.loads(file.read_text())
        rows.append({"truth": truth, "found": predicted(truth, args.folder, args.seed, args.outputs)})
        print(f"{number}: {rows[-1]['found']['seconds']:.1f} s", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows) + "\n")
    for kind in ("sgd", "adamw", "language"):
        mine = [row for row in rows if row["truth"]["kind"] == kind]
        for title, held in (("development", False), ("held out", True)):
            some = [row for row in mine if (row["truth"]["number"] in HELD_OUT) == held]
            if some:
                print(table(some, f"{kind}, {title}"))


if __name__ == "__main__":
    main()
