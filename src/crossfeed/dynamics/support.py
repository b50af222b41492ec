"""Which outcomes a categorical model can ever give mass to.

An outcome that no real data, no log-linear model and no given start brings into a model's training, directly or through
other models, keeps probability zero for ever. Such outcomes are taken out of the model's simplex: left in, at some tiny
probability, their log-probabilities would be made of rounding errors, which a curator who likes them multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def live_outcomes(
    brought: Sequence[np.ndarray | None], edges: Sequence[tuple[int, int]], default: np.ndarray
) -> np.ndarray:
    """(N, n) whether each model can give mass to each outcome.

    Args:
        brought: By model: (n,) outcomes that its own real data (or its start) has; None for no such source.
        edges: (consumer, producer) pairs, whatever their weight.
        default: (n,) outcomes of a model that nothing is brought to, not even through others.

    Example:
        >>> real = np.array([True, True, False])
        >>> live_outcomes([real, None, None], [(1, 0), (0, 1)], np.array([True, True, True])).tolist()
        [[True, True, False], [True, True, False], [True, True, True]]
    """
    live = np.stack([np.zeros_like(default) if b is None else b for b in brought]).astype(bool)
    _spread(live, edges)
    live[~live.any(1)] = default
    _spread(live, edges)
    return live


def _spread(live: np.ndarray, edges: Sequence[tuple[int, int]]) -> None:
    consumers, producers = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    while True:
        before = int(live.sum())
        np.logical_or.at(live, consumers, live[producers])
        if int(live.sum()) == before:
            return
