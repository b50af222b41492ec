r"""The retraining loop itself: round after round, on populations or on finite samples, many seeds at once.

    Θ^{t+1} = T(Θ^t; data of round t),    Δ_t = ‖θ_i^{t} − θ_i^{t−1}‖ / ‖θ_i^{t−1}‖ per model i.

A run ends early for a seed whose parameters are no longer finite or grow without bound, or whose models have all
collapsed for good; the other seeds go on. What resuming needs is :attr:`Run.state`; a resumed run equals an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crossfeed.describe import schema
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.loop import METRICS, Loop, Progress, Regime, Result
from crossfeed.dynamics.pool import Pool
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import State
from crossfeed.errors import SettingError

if TYPE_CHECKING:
    import pyarrow

DOUBLES_AT_ONCE = 30_000_000


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
    loop = Loop(eco, program, size, kind, last, history, progress)
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


def _join(states: list[State]) -> State:
    pools = [s.pool for s in states if s.pool is not None]
    pool = None
    if pools:
        kept = zip(*(p.kept for p in pools), strict=True)
        pool = Pool(pools[0].sizes, tuple(torch.cat(k) if k[0].ndim else k[0] for k in kept))
    return State(torch.cat([s.theta for s in states]), states[0].round, pool)
