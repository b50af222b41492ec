"""Samples that are equal have equal gradients: which of them differ, so that the others need no pass of their own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.record.pool import take

COPIES = 4
"""Directions in which the curvature of one text is worked out, where it stands so often."""


@dataclass(frozen=True, eq=False)
class Kinds:
    """Which of some samples differ; None where all do.

    Attributes:
        first: (m,) the first of each kind.
        kind: (n,) the kind of each sample.
    """

    first: Tensor | None = None
    kind: Tensor | None = None

    def every(self, rows: Tensor) -> Tensor:
        """Rows of kinds (m, r) as rows of samples (n, r)."""
        return rows if self.kind is None else rows[self.kind]

    def summed(self, shares: Tensor) -> Tensor:
        """Shares of samples (n,) as shares of kinds (m,)."""
        if self.kind is None or self.first is None:
            return shares
        return torch.zeros(len(self.first), dtype=shares.dtype).index_add(0, self.kind, shares)


def kinds_of(clusters: Tensor, outputs: Any, copies: int = 1, sampled: bool = False) -> Kinds:
    """Texts that stand several times for the same prompt have the same likelihood, whose gradients need no second pass.

    Args:
        clusters: (n,) of samples, which texts share that answer the same words.
        outputs: n outputs.
        copies: Most of one kind that count as different, where something random is worked out of each.
        sampled: As they were sampled: the same words may be of other tokens.
    """
    if not isinstance(outputs, list):
        return Kinds()
    kinds: dict[tuple[Any, ...], int] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    numbers = []
    for cluster, text in zip(clusters.tolist(), outputs, strict=True):
        one = (cluster, text, tuple(getattr(text, "tokens", ())) if sampled else ())
        numbers.append(kinds.setdefault((*one, seen[one] % copies), len(kinds)))
        seen[one] += 1
    kind = torch.tensor(numbers)
    if len(kinds) == len(kind):
        return Kinds()
    first = torch.full((len(kinds),), len(kind)).scatter_reduce(0, kind, torch.arange(len(kind)), "amin")
    return Kinds(first, kind)


def some_of(prompts: Tensor, outputs: Any, some: Tensor | None) -> tuple[Tensor, Any]:
    """Prompts and outputs, all of them or some (m,)."""
    return (prompts, outputs) if some is None else (prompts[some], take(outputs, some))
