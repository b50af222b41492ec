r"""The retraining loop itself: round after round, on populations or on finite samples, many seeds at once.

    Θ^{t+1} = T(Θ^t; data of round t),    Δ_t = ‖θ_i^{t} − θ_i^{t−1}‖ / ‖θ_i^{t−1}‖ per model i.

A run ends early for a seed whose parameters are no longer finite or grow without bound, or whose models have all
collapsed for good; the other seeds go on. What resuming needs is :attr:`Run.state`; a resumed run equals an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.compile import compile_ecosystem
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
from crossfeed.errors import SettingError

if TYPE_CHECKING:
    import pyarrow

Result = Literal["converged", "budget", "diverged", "oscillating", "non-finite", "collapsed"]
Regime = Literal["replace", "accumulate", "subsample"]
Progress = Callable[[str, int, int], None]

SETTLED = 1e-9
TOO_FAR = 1e8
DOUBLES_AT_ONCE = 30_000_000
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
METRICS = ("alignment", "entropy", "spread", "distance_to_data", "delta")


@dataclass(frozen=True)
class Run:
    """What happened, round by round.

    Attributes:
        eco: The ecosystem.
        program: The same, compiled.
        samples: n, samples a model and round; None for populations.
        regime: ``replace``, ``accumulate`` or ``subsample``.
        rounds: (T,) the rounds that are recorded; round 0 is the start.
        alignment: (T, S, V) alignment of every evaluation, NaN after a seed has ended; as all that follow.
        entropy: (T, S, N) entropy of the outputs in nats.
        spread: (T, S, N) standard deviation of the outputs, all coordinates together; NaN where a family has none.
        distance: (T, S, N) distance to the real data, ``distance_name`` in words; NaN where there are none.
        delta: (T, S, N) Δ of the step into the round; NaN for a step from the origin.
        results: Per seed: ``converged`` (populations only: ‖T(Θ) − Θ‖ ≤ 1e-9 (1 + ‖Θ‖)), ``budget`` (all rounds done),
            ``diverged``, ``oscillating``, ``non-finite``, ``collapsed`` (every model, for good).
        last: Per seed: the last round that was run.
        collapse: (S, N) the round in which a model was first found collapsed; −1 if never.
        residual: ‖T(Θ) − Θ‖ / (1 + ‖Θ‖) at the end of a run on populations; None with finite samples.
        state: What resuming needs.
        seconds: Wall time.
    """

    eco: schema.Ecosystem
    program: Program
    samples: int | None
    regime: Regime
    rounds: np.ndarray
    alignment: np.ndarray
    entropy: np.ndarray
    spread: np.ndarray
    distance: np.ndarray
    delta: np.ndarray
    results: list[Result]
    last: list[int]
    collapse: np.ndarray
    residual: float | None
    state: State
    seconds: float
    distance_name: str = field(default="distance to the real data")

    @property
    def seeds(self) -> int:
        """S."""
        return len(self.results)

    def reason(self, seed: int) -> str:
        """Why a seed's run ended, in words."""
        from crossfeed.report.trajectory import reason

        return reason(self, seed)

    def table(self) -> pyarrow.Table:
        """All numbers as one long table: round, seed, model, metric, domain (evaluation, else null), value."""
        from crossfeed.report.trajectory import metrics_table

        return metrics_table(self)

    def save(self, folder: str | Path) -> Path:
        """Write metrics.parquet, run.json, state.npz (for resuming) and run.html, each whole or not at all.

        Args:
            folder: New or existing.

        Returns:
            The folder.

        Raises:
            CrossfeedError: it cannot be written.
        """
        from crossfeed.report.trajectory import save

        return save(self, Path(folder))

    def chart(self, name: str = "alignment") -> Any:
        """An ``altair`` chart of ``alignment``, ``distance``, ``entropy``, ``spread`` or ``movement`` over the rounds.

        Raises:
            NotAvailableError: no such chart, or nothing to draw.
        """
        from crossfeed.report.trajectory import chart

        return chart(self, name)

    def summary(self) -> str:
        """What happened, in words."""
        from crossfeed.report.trajectory import summary

        return summary(self)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from crossfeed.report.trajectory import body

        return body(self)


def run(
    eco: schema.Ecosystem,
    rounds: int | None = None,
    samples: float | None = None,
    seeds: int = 1,
    regime: Regime | None = None,
    progress: Progress | None = None,
    *,
    history: bool = True,
    resume: State | None = None,
    program: Program | None = None,
) -> Run:
    """Run the retraining loop.

    Args:
        eco: The ecosystem; its update order, gradient steps and ``samples.counts`` hold.
        rounds: The last round, counted from 0, also when resuming; the spec's ``audit.rounds`` by default.
        samples: n, new samples a model and round; None or inf for whole populations.
        seeds: How many replicates; each has random streams of its own. Populations need one.
        regime: ``replace``, ``accumulate`` or ``subsample``; the spec's by default. With populations the last two are
            one: every round so far counts alike.
        progress: Called with (stage, rounds done, rounds in all).
        history: Record every round; otherwise the first and the last only.
        resume: :attr:`Run.state` of a run with the same ecosystem, samples, seeds and regime; the record begins there.
        program: The ecosystem compiled, when it is already.

    Raises:
        SettingError: an argument that is out of range, or a state of another ecosystem.
        NotAvailableError: finite samples of a source that has none (K = inf on vectors).

    Example:
        >>> from crossfeed.describe.schema import Categorical, Curated, Ecosystem, Model, Outcomes, TableReward
        >>> picked = Curated(producer="p", weight=1, candidates="inf")
        >>> model = Model(family=Categorical(), reward="r", sources=[picked], start=[0.0])
        >>> eco = Ecosystem(space=Outcomes(count=2), rewards={"r": TableReward(values=[0, 1])}, models={"p": model})
        >>> found = run(eco, rounds=2)
        >>> found.alignment[:, 0, 0].round(6).tolist()  # p ∝ e^{t r}: 1/2, e/(1+e), e²/(1+e²)
        [0.5, 0.731059, 0.880797]
    """
    last, size, kind = _checked(eco, rounds, samples, seeds, regime)
    begun = time.perf_counter()
    program = program or compile_ecosystem(eco)
    state = _begin(program, seeds, resume, last)
    loop = _Loop(eco, program, size, kind, last, history, progress)
    width = seeds_at_once(program, size)
    parts = [loop.follow(state.take(torch.arange(a, min(a + width, seeds))), a, seeds) for a in range(0, seeds, width)]
    recorded = max(int(p.last.max()) for p in parts)
    keep = loop.recorded <= recorded
    series = {key: np.concatenate([p.series[key] for p in parts], 1)[keep] for key in METRICS}
    return Run(
        eco,
        program,
        size,
        kind,
        loop.recorded[keep],
        series["alignment"],
        series["entropy"],
        series["spread"],
        series["distance_to_data"],
        series["delta"],
        [r for p in parts for r in p.results],
        [int(t) for p in parts for t in p.last],
        np.concatenate([p.collapse for p in parts]),
        parts[0].residual,
        _join([p.state for p in parts]),
        time.perf_counter() - begun,
        loop.measures.distance_name,
    )


def _checked(
    eco: schema.Ecosystem, rounds: int | None, samples: float | None, seeds: int, regime: str | None
) -> tuple[int, int | None, Regime]:
    last = eco.audit.rounds if rounds is None else rounds
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:
        raise SettingError(f"rounds: found {rounds!r}; need a whole number, 1 or more")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise SettingError(f"seeds: found {seeds!r}; need a whole number, 1 or more")
    kind: Any = eco.samples.regime if regime is None else regime
    if kind not in ("replace", "accumulate", "subsample"):
        raise SettingError(f"regime: found {regime!r}; need replace, accumulate or subsample")
    if samples is None or samples == math.inf:
        if seeds > 1:
            raise SettingError(
                f"seeds: found {seeds} with whole populations, where nothing is random; need 1, or finite `samples`"
            )
        return last, None, kind
    if isinstance(samples, bool) or not samples >= 1 or samples != int(samples):
        raise SettingError(f"samples: found {samples!r}; need a whole number, 1 or more, or inf for whole populations")
    return last, int(samples), kind


def _begin(program: Program, seeds: int, resume: State | None, last: int) -> State:
    if resume is None:
        return State(program.start.expand(seeds, -1).clone())
    if resume.theta.shape != (seeds, program.num_params):
        found = " × ".join(map(str, resume.theta.shape))
        need = f"{seeds} × {program.num_params} (seeds × parameters)"
        raise SettingError(f"resume: found a state of {found} parameters; need {need}, the state of a run like this")
    if resume.round >= last:
        raise SettingError(f"resume: found a state after round {resume.round}; need `rounds` above that, not {last}")
    return resume


def seeds_at_once(program: Program, samples: int | None) -> int:
    """How many seeds fit into memory together: by the largest array that one round of one seed makes."""
    largest = 1
    for group in program.source_groups:
        kernel, count = group.kernel, len(group.source)
        outcomes = getattr(kernel.consumer, "num_outcomes", None)
        if outcomes is not None:
            largest = max(largest, 8 * count * outcomes)
        elif samples is not None:
            candidates = 1.0
            for number in range(len(getattr(kernel, "stages", []))):
                k = float(program.settings[kernel.slots[f"{number}.candidates"]].max())
                candidates *= k if math.isfinite(k) else 1.0
            size = candidates * program.num_params / program.num_models + kernel.consumer.num_moments
            largest = max(largest, int(count * samples * size))
    return max(1, DOUBLES_AT_ONCE // largest)


@dataclass
class _Part:
    """What a batch of seeds gave."""

    series: dict[str, np.ndarray]
    results: list[Result]
    last: np.ndarray
    collapse: np.ndarray
    residual: float | None
    state: State


class _Loop:
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

    def follow(self, state: State, first: int, seeds: int) -> _Part:
        """Run a batch whose first replicate is ``first`` to the last round."""
        count, begin = len(state.theta), state.round
        self.recorded = np.arange(begin, self.last + 1) if self.history else np.array([begin, self.last])
        part = self._empty(count, state)
        live = torch.arange(count)
        whole, steps = state.theta.clone(), _Steps(cycle_length(self.eco.update.order), state.theta)
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
        part.state = State(whole, self.last, _spread_pool(state.pool, live, count))
        return part

    def _empty(self, count: int, state: State) -> _Part:
        num, evaluations = self.program.num_models, len(self.program.evaluations)
        widths = {key: evaluations if key == "alignment" else num for key in METRICS}
        series = {key: np.full((len(self.recorded), count, width), np.nan) for key, width in widths.items()}
        results: list[Result] = ["budget"] * count
        return _Part(series, results, np.full(count, state.round), np.full((count, num), -1), None, state)

    def _advance(self, state: State, live: Tensor, first: int, part: _Part) -> tuple[Tensor, Tensor, State]:
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

    def _end(self, part: _Part, number: int, live: Tensor, state: State) -> tuple[Tensor, State]:
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

    def _record(self, part: _Part, number: int, live: Tensor, theta: Tensor, old: Tensor | None) -> None:
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


class _Steps:
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


def _spread_pool(pool: Pool | None, live: Tensor, count: int) -> Pool | None:
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


def _join(states: list[State]) -> State:
    pools = [s.pool for s in states if s.pool is not None]
    pool = None
    if pools:
        kept = zip(*(p.kept for p in pools), strict=True)
        pool = Pool(pools[0].sizes, tuple(torch.cat(k) if k[0].ndim else k[0] for k in kept))
    return State(torch.cat([s.theta for s in states]), states[0].round, pool)
