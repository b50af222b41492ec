"""Training sets from what a model has collected: only the new rows, all so far, or n drawn from all so far.

A model collects when it is retrained; a model left out of a round neither trains nor collects. What round 0 holds is where
the first prompts come from and is never trained on. The regimes are those of :mod:`crossfeed.dynamics.pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from crossfeed.networks.base import Outputs
from crossfeed.record.pool import Pool, concatenate, take

Regime = Literal["replace", "accumulate", "subsample"]
_LISTS = (
    *("ids", "source", "kind", "producer", "producer_round", "data", "row", "parent"),
    *("num_candidates", "rewards", "picked", "picker", "why"),
)


@dataclass(frozen=True)
class Recipe:
    """Which recorded rows a training set is made of; what the record keeps instead of the rows themselves.

    Attributes:
        rounds: Rounds whose new rows are in it, one after another.
        index: Rows of those, in the order of training; None for all.
    """

    rounds: list[int]
    index: list[int] | None = None

    def of(self, new_rows: Callable[[int], Pool]) -> Pool:
        """The training set, given the new rows of each round."""
        whole = join([new_rows(number) for number in self.rounds])
        return whole if self.index is None else select(whole, torch.tensor(self.index))

    def info(self) -> dict[str, Any]:
        """As JSON."""
        return {"rounds": self.rounds} | ({} if self.index is None else {"index": self.index})

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Recipe:
        """From JSON."""
        return cls(list(info["rounds"]), info.get("index"))


def recipe(regime: Regime, before: Sequence[int], now: int, sizes: Sequence[int], seed: int) -> Recipe:
    """What a model trains on in round ``now``.

    Args:
        regime: ``replace``: the new rows; ``accumulate``: all so far; ``subsample``: as many as are new, drawn with
            replacement from all so far.
        before: Earlier rounds in which the model was retrained.
        now: This round.
        sizes: New rows of those rounds and, last, of this one.
        seed: Of the draw.

    Example:
        >>> recipe("accumulate", [1, 2], 4, [10, 10, 10], seed=0)
        Recipe(rounds=[1, 2, 4], index=None)
    """
    if regime == "replace":
        return Recipe([now])
    rounds = [*before, now]
    if regime == "accumulate":
        return Recipe(rounds)
    drawn = torch.randint(sum(sizes), (sizes[-1],), generator=torch.Generator().manual_seed(seed))
    return Recipe(rounds, drawn.tolist())


def join(pools: Sequence[Pool]) -> Pool:
    """Rows of all pools, one pool after another; candidates only if every pool with picks kept them."""
    if len(pools) == 1:
        return pools[0]
    lists: dict[str, Any] = {name: [x for pool in pools for x in getattr(pool, name)] for name in _LISTS}
    return Pool(
        prompts=torch.cat([pool.prompts for pool in pools]),
        outputs=concatenate([pool.outputs for pool in pools]),
        candidates=join_candidates([(pool.num_candidates, pool.candidates) for pool in pools]),
        **lists,
    )


def join_candidates(parts: Sequence[tuple[Sequence[int], Outputs | None]]) -> Outputs | None:
    """Candidates of several parts in one; None when a part with picks did not keep them, or nobody picked."""
    found = [outputs for counts, outputs in parts if any(counts)]
    kept = [outputs for outputs in found if outputs is not None]
    return concatenate(kept) if kept and len(kept) == len(found) else None


def select(pool: Pool, index: Tensor) -> Pool:
    """Rows at ``index`` (n,), with repeats."""
    rows = index.tolist()
    lists: dict[str, Any] = {name: [getattr(pool, name)[i] for i in rows] for name in _LISTS}
    candidates = None
    if pool.candidates is not None:
        counts = torch.tensor(pool.num_candidates)
        starts = counts.cumsum(0) - counts
        spans = [torch.arange(int(starts[i]), int(starts[i] + counts[i])) for i in rows]
        candidates = take(pool.candidates, torch.cat(spans))
    return Pool(prompts=pool.prompts[index], outputs=take(pool.outputs, index), candidates=candidates, **lists)
