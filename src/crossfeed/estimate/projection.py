r"""A sparse random projection of gradients, drawn from a seed block by block, so that no (m, d) matrix is ever there.

The m coordinates are s = 4 blocks of m/s. Every parameter a has one place h_k(a) in each block and a sign σ_k(a) = ±1 there:

    (P g)_{h_k(a)} += σ_k(a) g_a / √s,        E[⟨P g, P h⟩] = ⟨g, h⟩,    Var ⟨P g, P h⟩ ≤ (‖g‖² ‖h‖² + ⟨g, h⟩²)/m.

So inner products are right in the mean, each to about ‖g‖ ‖h‖/√m (Johnson and Lindenstrauss 1984), at s additions a number. This is
the block form of Kane and Nelson 2014 (Sparser Johnson–Lindenstrauss transforms, section 3), the count sketch with s = 1.

The mean is right for what is linear or bilinear in gradients: couplings, pushes, ∇J. The answers of a curvature are not:
(P H Pᵀ)⁻¹ has to fit what all directions of H add up to into m of them, so that a tail of small eigenvalues looks like a ridge of
tail-sum/m, and the estimate is biased towards what that ridge would give; it is small where m is much larger than the sum of eigenvalues
over the ones that matter. docs/networks.md has it measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

PLACES = 4
"""s: places of a parameter among the coordinates."""
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Projection:
    """P (m, d).

    Args:
        num_params: d.
        size: m, at least 4.
        seed: Of places and signs.

    Raises:
        ValueError: fewer than 4 coordinates.

    Example:
        >>> g = torch.eye(3)
        >>> found = Projection(3, 10_000, seed=0)(g)
        >>> torch.allclose(found.square().sum(1), torch.ones(3))  # lengths of single parameters are kept exactly
        True
    """

    num_params: int
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < PLACES:
            raise ValueError(f"projection: found {self.size} coordinates; need at least {PLACES}")

    def __call__(self, gradients: Tensor, scale: Tensor | None = None) -> Tensor:
        """(n, d) to (n, m): P applied to every row times ``scale`` (d,); on the rows' device, in their precision."""
        out = gradients.new_zeros(self.size, len(gradients))
        for start, end, places, signs in self._blocks():
            part = gradients[:, start:end].T
            if scale is not None:
                part = part * scale[start:end, None].to(part)
            for place, sign in zip(places, signs, strict=True):
                out.index_add_(0, place.to(out.device), part * sign[:, None].to(part))
        return out.T / math.sqrt(PLACES)

    def transpose(self, x: Tensor) -> Tensor:
        """(m,) to (d,): Pᵀ x. Its mean over P, for x = P g, is g; its length about √(d/m) times that of g."""
        out = x.new_empty(self.num_params)
        for start, end, places, signs in self._blocks():
            parts = [sign.to(x) * x[place.to(x.device)] for place, sign in zip(places, signs, strict=True)]
            out[start:end] = torch.stack(parts).sum(0)
        return out / math.sqrt(PLACES)

    def _blocks(self) -> Iterator[tuple[int, int, list[Tensor], list[Tensor]]]:
        """Parameters ``start`` to ``end``, their places and signs, from a seed of the block's own."""
        edges = [k * self.size // PLACES for k in range(PLACES + 1)]
        for number, start in enumerate(range(0, self.num_params, _BLOCK)):
            end = min(start + _BLOCK, self.num_params)
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number * 7919 + 11) % 2**63)
            places, signs = [], []
            for low, high in pairwise(edges):
                places.append(torch.randint(low, high, (end - start,), generator=generator))
                signs.append(2.0 * torch.randint(0, 2, (end - start,), generator=generator) - 1)
            yield start, end, places, signs
