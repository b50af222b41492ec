"""How many rows of a training set come from each source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from crossfeed.describe.schema import Ecosystem
from crossfeed.dynamics.program import largest_remainder


def source_counts(
    weights: Sequence[float], num: int, how: Literal["fixed", "multinomial"] | None = None, seed: int = 0
) -> list[int]:
    """Whole counts that sum to ``num``, by the sources' weights.

    ``fixed``: n·w rounded down, and what is missing goes to the largest remainders, ties to the earlier source, so every
    count is within one of n·w. ``multinomial``: every row's source is drawn by weight.

    Args:
        weights: One a source, nonnegative, not all 0; normalised here.
        num: n ≥ 0.
        how: None means ``fixed``.
        seed: Of the multinomial draw.

    Returns:
        Counts in the order of the weights.

    Example:
        >>> source_counts([0.5, 0.25, 0.25], 10)  # 5, 2.5, 2.5
        [5, 3, 2]
    """
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    if how == "multinomial":
        return [int(c) for c in np.random.default_rng(seed).multinomial(num, shares)]
    return [int(c) for c in largest_remainder(shares, num)]


def rows_per_round(eco: Ecosystem, model: str) -> int:
    """n: how many new rows a model gets in a round."""
    return eco.models[model].per_round or eco.samples.per_round
