r"""Retraining rounds: population and finite-sample, in any update order.

A round maps (state, generators) to the next state. The state is exactly what resuming needs: parameters, the round's number
and, for data regimes that keep old data, the accumulated moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotAvailableError


@dataclass(frozen=True)
class State:
    """Joint parameters (..., D), the number of finished rounds, and accumulated moments by model group where kept."""

    theta: Tensor
    round: int = 0
    pool: tuple[Tensor, ...] | None = None


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
    moments = part.moments(theta)
    return part.retrain(theta, moments) if steps is None else part.descend(theta, moments, steps.count, steps.size)


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


def streams(seed: int, number: int, step: int, count: int) -> list[np.random.Generator]:
    """Generators for one update: child seeds from (root seed, round, step, purpose) by a stable hash."""
    return [np.random.default_rng(np.random.SeedSequence([seed, number, step, purpose])) for purpose in range(count)]


def sampled_round(program: Program, state: State, update: schema.Update, samples: schema.Samples, seed: int) -> State:
    """One round on ``samples.per_round`` fresh samples a model.

    Regimes: ``replace`` trains on the new samples; ``accumulate`` on all samples so far (moments are averaged exactly);
    ``subsample`` on n drawn with replacement from all so far.
    """
    if samples.regime == "subsample":
        raise NotAvailableError("regime subsample needs the samples themselves; use crossfeed.dynamics.pool.subsampled_round")
    theta, pool = state.theta, state.pool
    fresh: list[Tensor | None] = [None] * len(program.model_groups)
    for index, step in enumerate(steps_of_round(update.order, program.names, state.round)):
        part = program.block(step)
        rngs = streams(seed, state.round, index, len(part.source_groups) + 1)
        moments = part.sampled_moments(theta, samples.per_round, rngs, samples.counts == "fixed")
        if samples.regime == "accumulate":
            moments = [_blend(program, part, g, m, pool, state.round) for g, m in enumerate(moments)]
            for g, m in enumerate(moments):
                _store(program, part, g, m, fresh)
        if update.steps is None:
            theta = part.retrain(theta, moments)
        else:
            theta = part.descend(theta, moments, update.steps.count, update.steps.size)
    if samples.regime == "accumulate":
        old = pool or tuple(torch.zeros(()) for _ in fresh)
        pool = tuple(o if f is None else f for o, f in zip(old, fresh, strict=True))
    return State(theta, state.round + 1, pool)


def _rows(program: Program, part: Program, group: int) -> tuple[int, Tensor]:
    """Where a block's group stands in the whole program: group number and rows."""
    first = int(part.model_groups[group].members[0])
    for number, g in enumerate(program.model_groups):
        members = g.members.tolist()
        if first in members:
            return number, torch.tensor([members.index(i) for i in part.model_groups[group].members.tolist()])
    raise AssertionError("a block's models are the program's")


def _blend(program: Program, part: Program, group: int, m: Tensor, pool: tuple[Tensor, ...] | None, number: int) -> Tensor:
    if pool is None or number == 0:
        return m
    whole, rows = _rows(program, part, group)
    return (number * pool[whole][..., rows, :] + m) / (number + 1)


def _store(program: Program, part: Program, group: int, m: Tensor, fresh: list[Tensor | None]) -> None:
    whole, rows = _rows(program, part, group)
    size = len(program.model_groups[whole].members)
    old = fresh[whole]
    base = torch.zeros(*m.shape[:-2], size, m.shape[-1], dtype=m.dtype) if old is None else old.clone()
    base[..., rows, :] = m
    fresh[whole] = base
