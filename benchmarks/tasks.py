"""What is timed, each task in a fresh process: python -m benchmarks.tasks TASK JSON prints its result as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks import ecosystems, gaussian_loop
from crossfeed.describe import schema
from crossfeed.describe.settings import put
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import solve
from crossfeed.influence.matrix import influence
from crossfeed.influence.threshold import with_settings_of

T = TypeVar("T")
STEP = 1e-4


def simulated(method: str, seeds: float) -> dict[str, Any]:
    """All published runs of the Gaussian experiment, or a share of their seeds; seconds are those of all of them."""
    seconds, off, share = 0.0, [], []
    for job in gaussian_loop.jobs():
        count = max(2, round(seeds * job.num_seeds))
        begin = time.perf_counter()
        if method == "library":
            found = gaussian_loop.by_library(job)
        else:
            found = gaussian_loop.one_at_a_time(job, getattr(gaussian_loop, method), count)
        seconds += (time.perf_counter() - begin) * job.num_seeds / len(found)
        share.append(len(found) / job.num_seeds)
        if len(found) >= 20:
            off.append(gaussian_loop.standard_errors_off(found, job))
    return {"seconds": seconds, "share_timed": min(share), "standard_errors_off": max(off) if off else None}


def grown(num_models: int) -> dict[str, Any]:
    """The whole way from Python objects to the influence matrix and its verdicts, stage by stage."""
    stages: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def stage(name: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        found = work()
        stages[name], peaks[name] = time.perf_counter() - begin, _peak()
        return found

    _warm()
    before = _peak()
    eco = stage("describe and check", lambda: ecosystems.gaussian(num_models))
    program = stage("compile", lambda: compile_ecosystem(eco))
    theta = stage("stable point", lambda: solve(program).require())
    lin = stage("linearise", lambda: linearise(program, theta))
    found = stage("solve", lambda: influence(eco, program, theta, lin))
    stage("matrix and verdicts", lambda: found.verdicts)
    return {
        "seconds": sum(stages.values()),
        "stages": stages,
        "stage_peaks_mb": peaks,
        "start_mb": before,
        "peak_mb": _peak(),
        "gigabyte_of_matrices": 8 * num_models * program.num_params / 2**30,
    }


def differences(kind: str, num_models: int) -> dict[str, Any]:
    """One influence matrix by implicit differentiation and by central differences, against one stable-point solve."""
    eco = getattr(ecosystems, kind)(num_models)
    program = compile_ecosystem(eco)
    point = solve(program)
    theta = point.require()
    times = {
        "stable point, auto": _best(lambda: solve(_fresh(program))),
        "stable point, plain rounds": _best(lambda: solve(_fresh(program), method="plain")),
        "influence matrix": _best(lambda: influence(eco, _fresh(program), theta).matrix),
    }
    exact = influence(eco, program, theta).matrix
    begin = time.perf_counter()
    columns = [_central(eco, program, theta, i) for i in range(num_models)]
    times["influence matrix by central differences"] = time.perf_counter() - begin
    gap = torch.stack(columns, 1) - exact
    return {
        "times": times,
        "plain_steps": solve(program, method="plain").steps,
        "largest_gap": float(gap.abs().max() / exact.abs().max()),
    }


def _central(eco: schema.Ecosystem, program: Program, theta: torch.Tensor, model: int) -> torch.Tensor:
    """dJ/dλ of one model by two stable points re-solved from the one that is known."""
    path = f"{program.names[model]}.curation"
    ratio = sum(s.weight for s in eco.models[program.names[model]].sources if isinstance(s, schema.Curated))
    values = []
    for value in (ratio + STEP, ratio - STEP):
        moved = with_settings_of(program, eco, put(eco, path, value))
        values.append(moved.alignment(solve(moved, theta, "newton").require())[program.primary])
    return (values[0] - values[1]) / (2 * STEP)


def _fresh(program: Program) -> Program:
    """The same program without what kernels keep for settings they have seen."""
    return program.with_settings(program.settings.clone())


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of several times, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _warm() -> None:
    """A small ecosystem first: torch loads two seconds' worth of modules when a process takes its first derivative."""
    eco = ecosystems.gaussian(6)
    program = compile_ecosystem(eco)
    influence(eco, program, solve(program).require())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


TASKS = {"simulated": simulated, "grown": grown, "differences": differences}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
