r"""Retraining rounds: population and finite-sample, in any update order and data regime.

A round maps a state to the next. The state is exactly what resuming needs: parameters, the round's number and, for data
regimes that keep old data, what was kept. Random numbers come from streams keyed by (root seed, round, step, purpose,
replicate), so nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.pool import Pool, accumulated, subsampled
from crossfeed.dynamics.program import Program


@dataclass(frozen=True)
class State:
    """Joint parameters (..., D), the number of finished rounds, and what data regimes that look back have kept."""

    theta: Tensor
    round: int = 0
    pool: Pool | None = None

    def take(self, rows: Tensor) -> State:
        """The state of some seeds; ``rows`` indexes the leading dimension."""
        return State(self.theta[rows], self.round, None if self.pool is None else self.pool.take(rows))


def steps_of_round(order: schema.Order, names: Sequence[str], number: int) -> list[list[int]]:
    """Which models update together, and in what sequence, in round ``number`` (from 0).

    Example:
        >>> steps_of_round(schema.Sequential(models=["q", "p"]), ["p", "q"], 0)
        [[1], [0]]
    """
    place = {name: i for i, name in enumerate(names)}
    if isinstance(order, schema.Simultaneous):
        return [list(range(len(names)))]
    if isinstance(order, schema.Sequential):
        return [[place[name]] for name in order.models or names]
    if isinstance(order, schema.Cycle):
        return [[place[name] for name in step] for step in order.rounds[number % len(order.rounds)]]
    rng = np.random.default_rng(np.random.SeedSequence([order.seed, number]))
    chosen = np.flatnonzero(rng.random(len(names)) < order.probability)
    return [[int(i)] for i in rng.permutation(chosen)]


def cycle_length(order: schema.Order) -> int:
    """Rounds after which the order repeats; 1 for random orders, which never do."""
    return len(order.rounds) if isinstance(order, schema.Cycle) else 1


def update_block(program: Program, theta: Tensor, models: Sequence[int], steps: schema.GradientSteps | None) -> Tensor:
    """Retrain ``models`` at once on population data made by the current Θ."""
    part = program.block(models)
    return _train(part, theta, part.moments(theta), steps)


def population_round(
    program: Program, theta: Tensor, update: schema.Update, number: int = 0, order: schema.Order | None = None
) -> Tensor:
    """One round of the retraining map T (or of k gradient steps) on population data; (..., D) to (..., D)."""
    for step in steps_of_round(order or update.order, program.names, number):
        theta = update_block(program, theta, step, update.steps)
    return theta


def round_map(program: Program, theta: Tensor) -> Tensor:
    """T(Θ): every model at its exact minimum, simultaneously. Stable points are its fixed points in every order."""
    return program.retrain(theta, program.moments(theta))


class SeedStreams:
    """One generator a replicate: each draws its own slice of the leading dimension, whatever the others do."""

    def __init__(self, key: Sequence[int], replicates: Sequence[int]) -> None:
        self._key, self._replicates = key, replicates

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """Made when they are first drawn from."""
        return child_generators(self._key, self._replicates)

    def _each(self, name: str, size: Sequence[int], *args: Any, **options: Any) -> np.ndarray:
        return np.stack([getattr(g, name)(*args, size=tuple(size)[1:], **options) for g in self.generators])

    def standard_normal(self, size: Sequence[int]) -> np.ndarray:
        """(replicates, ...)."""
        out = np.empty(size)
        for g, one in zip(self.generators, out, strict=True):
            g.standard_normal(out=one)
        return out

    def random(self, size: Sequence[int]) -> np.ndarray:
        """(replicates, ...)."""
        return self._each("random", size)

    def gumbel(self, size: Sequence[int]) -> np.ndarray:
        """(replicates, ...)."""
        return self._each("gumbel", size)

    def integers(self, low: int, high: int, size: Sequence[int]) -> np.ndarray:
        """(replicates, ...)."""
        return self._each("integers", size, low, high)

    def choice(self, num: int, size: Sequence[int], p: np.ndarray) -> np.ndarray:
        """(replicates, ...)."""
        return self._each("choice", size, num, p=p)

    def chisquare(self, df: np.ndarray) -> np.ndarray:
        """(replicates, ...), the shape of ``df``."""
        return np.stack([g.chisquare(one) for g, one in zip(self.generators, df, strict=True)])

    def multinomial(self, n: Any, pvals: np.ndarray) -> np.ndarray:
        """(replicates, ..., outcomes); ``pvals`` of one dimension serve all replicates."""
        many = len(self._replicates)
        sizes = n if np.ndim(n) else [n] * many
        p = pvals if pvals.ndim > 1 else [pvals] * many
        return np.stack([g.multinomial(a, b) for g, a, b in zip(self.generators, sizes, p, strict=True)])


class _Hashed(ISeedSequence):
    """Words hashed beforehand, so that a generator costs less than a microsecond instead of twenty-five."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._words


def child_generators(key: Sequence[int], replicates: Sequence[int]) -> list[np.random.Generator]:
    """One generator a replicate: the SeedSequence of (key, replicate // 1024) gives replicate % 1024 its own 256 bits.

    Example:
        Replicate 0 has the stream that NumPy gives the key itself; no stream depends on which others are made.

        >>> first, other = child_generators([1, 2], [0, 5])
        >>> first.random() == np.random.default_rng([1, 2, 0]).random()
        True
        >>> other.random() == child_generators([1, 2], [5])[0].random()
        True
    """
    blocks: dict[int, np.ndarray] = {}
    for r in replicates:
        blocks.setdefault(r // 1024, np.empty(0))
    for block in blocks:
        most = max(r % 1024 for r in replicates if r // 1024 == block) + 1
        words = np.random.SeedSequence([*key, block]).generate_state(4 * most, np.uint64)
        blocks[block] = words.reshape(most, 4)
    bits = [np.random.PCG64(cast(Any, _Hashed(blocks[r // 1024][r % 1024]))) for r in replicates]
    return [np.random.Generator(b) for b in bits]


def streams(
    seed: int, number: int, step: int, count: int, replicates: Sequence[int] | None = None
) -> list[np.random.Generator]:
    """Generators for one update: child seeds from (root seed, round, step, purpose, replicate) by a stable hash.

    Args:
        seed: Root seed.
        number: Round, from 0.
        step: Step in the round.
        count: How many purposes.
        replicates: One stream each for the leading dimension of a batch; None for an unbatched state: replicate 0.
    """
    keys = [[seed, number, step, purpose] for purpose in range(count)]
    if replicates is None:
        return [child_generators(key, [0])[0] for key in keys]
    return [cast(np.random.Generator, SeedStreams(key, replicates)) for key in keys]


def sampled_round(
    program: Program,
    state: State,
    update: schema.Update,
    samples: schema.Samples,
    seed: int,
    replicates: Sequence[int] | None = None,
) -> State:
    """One round on ``samples.per_round`` fresh samples a model.

    Regimes: ``replace`` trains on the new samples; ``accumulate`` on all samples the model has drawn so far (their
    moments are averaged exactly); ``subsample`` on n drawn with replacement from all so far.

    Args:
        program: Compiled ecosystem.
        state: Where the round begins; the leading dimension of a batched Θ are replicates.
        update: Order and, for inexact retraining, gradient steps.
        samples: n, how counts arise, and the regime.
        seed: Root seed.
        replicates: Which replicates the leading dimension holds; 0, 1, … by default. Each has streams of its own.
    """
    theta, pool = state.theta, state.pool
    who = None if theta.ndim == 1 else range(theta.shape[0]) if replicates is None else replicates
    fixed = samples.counts == "fixed"
    for index, step in enumerate(steps_of_round(update.order, program.names, state.round)):
        part = program.block(step)
        rngs = streams(seed, state.round, index, len(part.source_groups) + 2, who)
        if samples.regime == "subsample":
            moments, pool = subsampled(program, part, theta, samples.per_round, rngs, fixed, pool)
        else:
            moments = part.sampled_moments(theta, samples.per_round, rngs[:-1], fixed)
            if samples.regime == "accumulate":
                moments, pool = accumulated(program, part, moments, pool)
        theta = _train(part, theta, moments, update.steps)
    return State(theta, state.round + 1, pool)


def accumulated_round(program: Program, state: State, update: schema.Update) -> State:
    """One round on all populations a model has been trained on so far: ``accumulate`` and ``subsample`` as n → ∞."""
    theta, pool = state.theta, state.pool
    for step in steps_of_round(update.order, program.names, state.round):
        part = program.block(step)
        fresh = [m.expand(*theta.shape[:-1], *m.shape[-2:]) for m in part.moments(theta)]
        moments, pool = accumulated(program, part, fresh, pool)
        theta = _train(part, theta, moments, update.steps)
    return State(theta, state.round + 1, pool)


def _train(part: Program, theta: Tensor, moments: list[Tensor], steps: schema.GradientSteps | None) -> Tensor:
    return part.retrain(theta, moments) if steps is None else part.descend(theta, moments, steps.count, steps.size)
