r"""Coordinates in which a model's gradients are kept: its parameters, or an orthonormal basis of its samples' span.

Retraining moves θ_i by combinations of gradients of its own samples, so nothing outside their span matters to it, and what other
rows (scores, evaluations) have outside the span meets nothing. Gauss–Newton rows and weight decay are kept as far as they lie in
the span. With rows Φ (n, d) and the Gram matrix ΦΦᵀ = U Λ Uᵀ, the basis is V = Λ^(−1/2) Uᵀ Φ, and a row a has coordinates
V a = Λ^(−1/2) Uᵀ Φ a: inner products with anything in the span are exact, and only inner products of rows are ever needed (the
dual, or Woodbury, form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_RANK = 1e-6
_BLOCK = 1 << 24


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A linear map from gradients (d,) to coordinates (r,).

    Attributes:
        scale: (d,) the optimiser's scale of every parameter; None for 1.
        basis: (r, n) Λ^(−1/2) Uᵀ; None: the parameters are the coordinates.
        rows: Φ, whose rows (scaled) span; empty with the parameters themselves.
        size: r.
    """

    scale: Tensor | None
    basis: Tensor | None
    rows: Sequence[Tensor]
    size: int

    def of_gradients(self, gradients: Tensor) -> Tensor:
        """(m, d) to (m, r), float64 if they are, else float32 at least."""
        return self._turn(gradients, 1)

    def of_parameters(self, theta: Tensor) -> Tensor:
        """(d,) to (r,): the projection of θ, measured in the optimiser's units."""
        return self._turn(theta[None], -1)[0]

    def to_parameters(self, x: Tensor) -> Tensor:
        """(r,) to the change of θ (d,) that it stands for."""
        if self.basis is None:
            return x.float() if self.scale is None else x.float() * self.scale
        weights = (self.basis.T @ x.double()).float()
        sizes = [len(row) for row in self.rows]
        out = sum((w @ row.float() for w, row in zip(weights.split(sizes), self.rows, strict=True)), torch.zeros(()))
        return out if self.scale is None else out * self.scale.square()

    def _turn(self, values: Tensor, power: int) -> Tensor:
        if self.basis is None:
            return values if self.scale is None else values * self.scale**power
        # the scale enters twice on gradients (theirs and the rows'), and cancels on parameters
        inner = values if self.scale is None else values * self.scale ** (1 + power)
        products = torch.cat([_products(inner, row) for row in self.rows], 1)
        return (products.double() @ self.basis.T).to(products.dtype)


def coordinates(rows: Sequence[Tensor], scale: Tensor | None, limit: int) -> Coordinates:
    """Coordinates for a model whose own samples have these gradients.

    Args:
        rows: (n_s, d) each.
        scale: (d,) of the optimiser; None for 1.
        limit: Up to so many parameters they are the coordinates.
    """
    unique = list({id(row): row for row in rows}.values())
    d, n = unique[0].shape[1], sum(len(row) for row in unique)
    if d <= max(limit, 0) or d <= n:
        return Coordinates(scale, None, [], d)
    square = None if scale is None else scale.square()
    gram = torch.cat(
        [torch.cat([_products(a if square is None else a * square, b) for b in unique], 1) for a in unique]
    ).double()
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    keep = values > _RANK * values[-1]
    basis = (vectors[:, keep] * values[keep].rsqrt()).T
    return Coordinates(scale, basis, unique, int(keep.sum()))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """(m, n) inner products of rows (m, d) and (n, d), block by block of d; float64 if one of them is, else float32."""
    width = max(1, _BLOCK // max(len(a), len(b)))
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    out = torch.zeros(len(a), len(b), dtype=dtype)
    for start in range(0, a.shape[1], width):
        out += a[:, start : start + width].to(dtype) @ b[:, start : start + width].to(dtype).T
    return out
