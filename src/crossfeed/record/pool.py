"""A round's training set of one model, with the origin of every sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.networks.base import Outputs


@dataclass(frozen=True, eq=False)
class Pool:
    """Columns of equal length n: what a model was trained on in a round, and where each row came from.

    Attributes:
        ids: Unique in the run: ``r0003-p-000017`` is row 17 of p's training set of round 3.
        prompts: (n,) int64, indices into the run's table of inputs.
        outputs: What was trained on, on the CPU.
        source: Name of the source in the model's mixture.
        kind: ``real``, ``raw``, ``curated`` or ``picks``.
        producer: The model that generated the row; None for real data and picks.
        producer_round: The round in which the producer had been trained last (0: its start); None as above.
        data: Data set of real rows and picks; of generated rows, the data set whose inputs the source names; else None.
        row: Row of that data set; None where there is none, and for data that is drawn afresh.
        parent: Id of the row of the producer's training set whose input was used; None for real rows, picks and named inputs.
        num_candidates: (n,) K candidates offered to curators; 0 for rows nobody picked.
        rewards: K rewards by the first curator; empty for rows nobody picked.
        picked: Which candidate was picked; −1 for rows nobody picked.
        picker: Who picked: name of a reward, or ``uniform`` for noise; None for rows nobody picked.
        why: How, in words: ``Plackett–Luce, τ = 1``, ``best of K``, ``uniform``…; None as above.
        candidates: All candidates, Σ num_candidates outputs in the order of the rows; None when they were not kept.
    """

    ids: list[str]
    prompts: Tensor
    outputs: Outputs
    source: list[str]
    kind: list[str]
    producer: list[str | None]
    producer_round: list[int | None]
    data: list[str | None]
    row: list[int | None]
    parent: list[str | None]
    num_candidates: list[int]
    rewards: list[list[float]]
    picked: list[int]
    picker: list[str | None]
    why: list[str | None]
    candidates: Outputs | None = None

    def __len__(self) -> int:
        return len(self.ids)


def take(outputs: Outputs, index: Tensor) -> Outputs:
    """Outputs at ``index`` (n,) int64."""
    if isinstance(outputs, list):
        return [outputs[i] for i in index.tolist()]
    return outputs[index.to(outputs.device)]


def concatenate(parts: list[Outputs]) -> Outputs:
    """Outputs one after another; at least one part."""
    if isinstance(parts[0], list):
        return [text for part in parts for text in part]
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
