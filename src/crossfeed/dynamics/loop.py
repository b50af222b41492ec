"""The loop behind :func:`crossfeed.dynamics.run.run`: a batch of seeds from round to round, each until it ends."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.measures import Measures
from crossfeed.dynamics.pool import Pool
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import (
    State,
    accumulated_round,
    cycle_length,
    population_round,
    round_map,
    sampled_round,
)

Result = Literal["converged", "budget", "diverged", "oscillating", "non-finite", "collapsed"]
Regime = Literal["replace", "accumulate", "subsample"]
Progress = Callable[[str, int, int], None]

SETTLED = 1e-9
TOO_FAR = 1e8
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
METRICS = ("alignment", "entropy", "spread", "distance_to_data", "delta")


@dataclass
class Part:
    """What a batch of seeds gave."""

    series: dict[str, np.ndarray]
    results: list[Result]
    last: np.ndarray
    collapse: np.ndarray
    residual: float | None
    state: State


class Loop:
    """One run's fixed parts: what a round does and what is recorded."""

    def __init__(
        self,
        eco: schema.Ecosystem,
        program: Program,
        samples: int | None,
        regime: Regime,
        last: int,
        history: bool,
        progress: Progress | None,
    ) -> None:
        self.eco, self.program, self.samples, self.last, self.progress = eco, program, samples, last, progress
        self.regime, self.history = regime, history
        self.measures = Measures(program)
        sizes = torch.diff(torch.tensor(program.offsets))
        self.block = torch.repeat_interleave(torch.arange(program.num_models), sizes)
        self.limit = TOO_FAR * (1 + float(program.start.norm()))
        self.recorded = np.arange(0)

    def round(self, state: State, replicates: Sequence[int]) -> State:
        """One round of a batch."""
        update = self.eco.update
        if self.samples is not None:
            fields = {"per_round": self.samples, "regime": self.regime}
            samples = self.eco.samples.model_copy(update=fields)
            return sampled_round(self.program, state, update, samples, self.eco.seed, replicates)
        if self.regime == "replace":
            theta = population_round(self.program, state.theta, update, state.round)
            return State(theta, state.round + 1)
        return accumulated_round(self.program, state, update)

    def follow(self, state: State, first: int, seeds: int) -> Part:
        """Run a batch whose first replicate is ``first`` to the last round."""
        count, begin = len(state.theta), state.round
        self.recorded = np.arange(begin, self.last + 1) if self.history else np.array([begin, self.last])
        part = self._empty(count, state)
        live = torch.arange(count)
        whole, steps = state.theta.clone(), Steps(cycle_length(self.eco.update.order), state.theta)
        for number in range(begin, self.last + 1):
            if number > begin:
                moved, live, state = self._advance(state, live, first, part)
                steps.add(moved)
                whole[live] = state.theta
            self._record(part, number, live, state.theta, None if number == begin else moved)
            live, state = self._end(part, number, live, state)
            if self.progress is not None:
                done = first * (self.last - begin) + (number - begin) * count
                self.progress("retraining", done, seeds * (self.last - begin))
            if not len(live):
                break
        for row in live.tolist():
            part.results[row] = "budget"
        if self.samples is None and len(live):
            part.residual = float((round_map(self.program, whole) - whole).norm() / (1 + whole.norm()))
            part.results[0] = "converged" if part.residual <= SETTLED else steps.verdict()
        part.state = State(whole, self.last, spread_pool(state.pool, live, count))
        return part

    def _empty(self, count: int, state: State) -> Part:
        num, evaluations = self.program.num_models, len(self.program.evaluations)
        widths = {key: evaluations if key == "alignment" else num for key in METRICS}
        series = {key: np.full((len(self.recorded), count, width), np.nan) for key, width in widths.items()}
        results: list[Result] = ["budget"] * count
        return Part(series, results, np.full(count, state.round), np.full((count, num), -1), None, state)

    def _advance(self, state: State, live: Tensor, first: int, part: Part) -> tuple[Tensor, Tensor, State]:
        """One round of the live seeds: their old Θ, who is still alive, and the new state."""
        try:
            return state.theta, live, self.round(state, (live + first).tolist())
        except LinAlgError:
            keep = torch.tensor([self._survives(state, row, int(live[row]) + first) for row in range(len(live))])
            if bool(keep.all()):
                raise
            for row in live[~keep].tolist():
                part.results[row] = "non-finite"
            rows = torch.nonzero(keep)[:, 0]
            state, live = state.take(rows), live[rows]
            return state.theta, live, self.round(state, (live + first).tolist()) if len(live) else state

    def _survives(self, state: State, row: int, replicate: int) -> bool:
        try:
            self.round(state.take(torch.tensor([row])), [replicate])
        except LinAlgError:
            return False
        return True

    def _end(self, part: Part, number: int, live: Tensor, state: State) -> tuple[Tensor, State]:
        """Take out the seeds that ended in this round, with the reason."""
        if not len(live):
            return live, state
        theta = state.theta
        finite = torch.isfinite(theta).all(-1)
        far = finite & (theta.norm(dim=-1) > self.limit)
        gone = self.measures.collapsed(theta)
        fallen = finite & ~far & gone.all(-1)
        if self.regime != "replace":
            fallen &= False  # what was kept brings other outputs back
        elif bool(fallen.any()):
            fallen[fallen.clone()] = self.measures.collapsed(round_map(self.program, theta[fallen])).all(-1)
        fresh = (part.collapse[live.numpy()] < 0) & gone.numpy() & finite.numpy()[:, None]
        part.collapse[live.numpy()] = np.where(fresh, number, part.collapse[live.numpy()])
        part.last[live.numpy()] = number
        named: list[tuple[Tensor, Result]] = [(~finite, "non-finite"), (far, "diverged"), (fallen, "collapsed")]
        for which, why in named:
            for row in live[which].tolist():
                part.results[row] = why
        stay = finite & ~far & ~fallen
        return (live, state) if bool(stay.all()) else (live[stay], state.take(torch.nonzero(stay)[:, 0]))

    def _record(self, part: Part, number: int, live: Tensor, theta: Tensor, old: Tensor | None) -> None:
        at = np.flatnonzero(self.recorded == number)
        if not len(at) or not len(live):
            return
        values = {
            "alignment": self.program.alignment(theta),
            "entropy": self.measures.entropy(theta),
            "spread": self.measures.spread(theta),
            "distance_to_data": self.measures.distance(theta),
        }
        if old is not None:
            step, before = self._norms(theta - old), self._norms(old)
            values["delta"] = torch.where(before > 1e-9 * step, step / before, torch.nan)
        for key, value in values.items():
            finite = torch.where(torch.isfinite(value), value, torch.nan)
            part.series[key][at[0], live.numpy()] = finite.expand(len(live), -1).numpy()

    def _norms(self, theta: Tensor) -> Tensor:
        """(S, N) norm of each model's parameters."""
        zero = torch.zeros(len(theta), self.program.num_models, dtype=theta.dtype)
        return zero.index_add(1, self.block, theta.square()).sqrt()


class Steps:
    """The sizes and turns of a single loop's steps, over whole cycles of the update order, and what they say."""

    def __init__(self, cycle: int, theta: Tensor) -> None:
        self.past: deque[Tensor] = deque([theta], maxlen=cycle)
        self.sizes: list[float] = []
        self.turns: list[float] = []
        self.step: Tensor | None = None

    def add(self, theta: Tensor) -> None:
        """Take in the next Θ (1, D)."""
        if len(theta) != 1:
            return
        if len(self.past) == self.past.maxlen:
            step = theta - self.past[0]
            self.sizes.append(float(step.norm() / (1 + theta.norm())))
            if self.step is not None:
                self.turns.append(float((step * self.step).sum() / (step.norm() * self.step.norm()).clamp_min(1e-300)))
            self.step = step
        self.past.append(theta)

    def verdict(self) -> Result:
        """``budget`` while steps shrink; else ``oscillating`` when they turn back, ``diverged`` when they go on."""
        tail = np.array(self.sizes[-max(len(self.sizes) // 4, 4) :])
        if len(tail) < 4 or tail[-1] <= 0:
            return "budget"
        rate = (tail[-1] / tail[0]) ** (1 / (len(tail) - 1)) if tail[0] > 0 else math.inf
        if rate < 1 - 1e-3:
            return "budget"
        return "oscillating" if np.mean(self.turns[-len(tail) :]) < 0 else "diverged"


def spread_pool(pool: Pool | None, live: Tensor, count: int) -> Pool | None:
    """A pool of the live seeds as one of all seeds; what ended seeds had collected is not needed any more."""
    if pool is None or len(live) == count:
        return pool
    kept = []
    for k in pool.kept:
        whole = torch.full((count, *k.shape[1:]), torch.nan, dtype=k.dtype) if k.ndim else k
        if k.ndim:
            whole[live] = k
        kept.append(whole)
    return Pool(pool.sizes, tuple(kept))
