"""Rewards of closed-form spaces as functions of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.families import spaces


def reward_function(
    eco: schema.Ecosystem, name: str, outcomes: Any = None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A reward as a function of outputs (n, ·) and inputs (n, inputs) or None: (n,), constants included.

    Differentiable in vectors and answers.

    Args:
        eco: The ecosystem.
        name: Under ``rewards``.
        outcomes: ``Program.outcomes``, for finite outcome sets.
    """
    reward = eco.rewards[name]
    if outcomes is not None:
        table = spaces.reward_table(eco, name, outcomes)
        return lambda y, x: table[y]
    if isinstance(reward, schema.CallableReward):
        fn = spaces.callable_reward(reward, name)
        return lambda y, x: fn(y if x is None else torch.cat([x, y], -1))
    assert isinstance(reward, (schema.LinearReward, schema.QuadraticReward))  # others need outcomes
    vector = None if reward.vector is None else spaces.tensor(reward.vector).reshape(-1)
    matrix = spaces.tensor(reward.matrix) if isinstance(reward, schema.QuadraticReward) else None
    constant = reward.constant

    def value(y: Tensor, x: Tensor | None) -> Tensor:
        def part(size: int) -> Tensor:
            return y if x is None or size == y.shape[-1] else torch.cat([x, y], -1)

        total = torch.full(y.shape[:1], constant, dtype=y.dtype)
        if vector is not None:
            total = total + part(len(vector)) @ vector
        if matrix is not None:
            z = part(len(matrix) if matrix.ndim else y.shape[-1])
            total = total + 0.5 * torch.einsum("ni,ij,nj->n", z, spaces.as_matrix(matrix, z.shape[-1]), z)
        return total

    return value
