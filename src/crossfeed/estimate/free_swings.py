"""What settings do by moving what models are asked (:mod:`crossfeed.estimate.swings`), without a gradient bank: by weighted gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from crossfeed.estimate.bank import mirrors
from crossfeed.estimate.composition import Asked, Origin
from crossfeed.estimate.couplings import merged, shares_of
from crossfeed.estimate.horizon import Swing
from crossfeed.estimate.matrix_free import MatrixFree


def free_swings(
    loop: MatrixFree, asked: Asked, directions: Sequence[Mapping[int, float]], *, alone: bool = False
) -> Swing | None:
    """One gradient of every sample by producer and origin, worked out when a round asks for it; None where inputs do not move.

    Args:
        loop: Samples and mixture.
        asked: What the samples' outputs answer.
        directions: By column, dw/dλ by the source's number.
        alone: Leave out what reaches a model through others.
    """
    if not asked.moving:
        return None
    moved = [asked.moves(slopes, loop.mixture, alone) for slopes in directions]

    @cache
    def part(i: int, producer: str, origin: Origin) -> Tensor:
        """(d_i,) Σ_s w_s E[P(x | o)/P(x) φ] over what the producer makes for the model, its mean over inputs taken out."""
        pairs = []
        for s in sorted(asked.moving):
            draw, weight = loop.draws.sources[s], loop.mixture[s]
            if (draw.consumer, draw.producer) != (loop.names[i], producer) or not weight:
                continue
            if mirrors(loop.models[i].model, draw):  # mean gradients on own raw outputs are 0, whatever is asked
                continue
            ratio = asked.ratios(producer, draw.prompts, [{origin: 1.0}])[0]
            shares = shares_of(draw).view(len(ratio), -1)
            pairs.append((draw, (weight * (ratio - ratio.mean())[:, None] * shares).flatten()))
        found = [loop.models[i].loss_gradient(draw, weights) for draw, weights in merged(pairs)]
        return sum(found, torch.zeros(loop.sizes[i], dtype=loop.solver.dtype, device=loop.device))

    def swing(number: int, i: int) -> Tensor:
        out = torch.zeros(loop.sizes[i], len(moved), dtype=loop.solver.dtype, device=loop.device)
        for c, column in enumerate(moved):
            for producer, shares in column[number].get(loop.names[i], {}).items():
                if alone and producer != loop.names[i]:
                    continue
                for origin, share in shares.items():
                    if origin in asked.parts.get(producer, {}):
                        out[:, c] -= share * part(i, producer, origin)
        return out

    return swing
