r"""Coordinates in which a model's gradients are kept: its parameters, an orthonormal basis of its samples' span, or a projection.

Retraining moves θ_i by combinations of gradients of its own samples, so nothing outside their span matters to it, and what other
rows (scores, evaluations) have outside the span meets nothing. Gauss–Newton rows and weight decay are kept as far as they lie in
the span. With rows Φ (n, d) and the Gram matrix ΦΦᵀ = U Λ Uᵀ, the basis is V = Λ^(−1/2) Uᵀ Φ, and a row a has coordinates
V a = Λ^(−1/2) Uᵀ Φ a: inner products with anything in the span are exact, and only inner products of rows are ever needed (the
dual, or Woodbury, form). Rows may be in files: no more than a block of their columns is in memory at a time.

A random projection P (m, d) (:mod:`crossfeed.estimate.projection`) keeps inner products in the mean only, but needs no row but the one at
hand. Its coordinates are those of models that are trained along the rows of P alone. There is no way back to the parameters: Pᵀ x is
√(d/m) times as long as what x stands for, nearly all of it noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.estimate.projection import Projection

_RANK = 1e-6
AXES = 1 << 30
"""Bytes of the basis that are worked out; a larger one stays a combination of rows."""
_BLOCK = 1 << 24
_NARROW = 1 << 12
"""Fewest columns of a block: files are not read well in smaller pieces."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A linear map from gradients (d,) to coordinates (r,).

    Attributes:
        scale: (d,) the optimiser's scale of every parameter; None for 1.
        basis: (r, n) Λ^(−1/2) Uᵀ; None: the parameters are the coordinates, or a projection of them.
        rows: Φ, whose rows (scaled) span; empty otherwise, and where ``axes`` are there.
        size: r.
        projection: P; None: there is none.
        axes: (r, d) Λ^(−1/2) Uᵀ Φ, where it fits: what everything else is multiplied by.
        own: Coordinates of the rows that span, one tensor each.
    """

    scale: Tensor | None
    basis: Tensor | None
    rows: Sequence[Tensor]
    size: int
    projection: Projection | None = None
    axes: Tensor | None = None
    own: Sequence[Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether they are the parameters themselves, each in its unit."""
        return self.basis is None and self.projection is None

    @property
    def words(self) -> str:
        """What the coordinates are."""
        if self.projection is not None:
            return f"random projection of {self.projection.num_params:,} parameters"
        return "parameters" if self.basis is None else "span of its samples' gradients"

    def of_gradients(self, gradients: Tensor) -> Tensor:
        """(m, d) to (m, r), float64 if they are, else float32 at least."""
        if self.projection is not None:
            return self.projection(gradients, self.scale).cpu()
        return self._turn(gradients.cpu(), 1)

    def of_parameters(self, theta: Tensor) -> Tensor:
        """(d,) to (r,): the projection of θ, measured in the optimiser's units."""
        if self.projection is not None:
            return self.projection((theta if self.scale is None else theta / self.scale.to(theta))[None])[0].cpu()
        return self._turn(theta.cpu()[None], -1)[0]

    def to_parameters(self, x: Tensor) -> Tensor:
        """(r,) to the change of θ (d,) that it stands for; not with a projection."""
        assert self.projection is None
        if self.basis is None:
            return x.float() if self.scale is None else x.float() * self.scale
        if self.axes is not None:
            out = x.to(self.axes) @ self.axes
            return out if self.scale is None else out * self.scale.square()
        weights = (self.basis.T @ x.double()).float()
        sizes = [len(row) for row in self.rows]
        out = sum((w @ row.float() for w, row in zip(weights.split(sizes), self.rows, strict=True)), torch.zeros(()))
        return out if self.scale is None else out * self.scale.square()

    def _turn(self, values: Tensor, power: int) -> Tensor:
        if self.basis is None:
            return values if self.scale is None else values * self.scale**power
        # the scale enters twice on gradients (theirs and the rows'), and cancels on parameters
        square = None if self.scale is None or power < 0 else self.scale.square()
        if self.axes is not None:
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            return (values if square is None else values * square.to(values.dtype)) @ self.axes.to(values.dtype).T
        products = _products(values, self.rows, square)
        return (products.double() @ self.basis.T).to(products.dtype)


def units(left: Coordinates, right: Coordinates) -> Tensor | None:
    """(d, 1) that changes of parameters are multiplied by where the optimiser's units change, and adjoints on the way back; None for 1.

    Both are the parameters themselves, each in its unit, or one and the same.
    """
    if left is right:
        return None
    assert left.plain
    assert right.plain
    if left.scale is None or right.scale is None:
        return None
    return (left.scale / right.scale).double()[:, None]


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
    gram = _products(None, unique, None if scale is None else scale.square()).double()
    gram = (gram + gram.T).div_(2)
    values, vectors = torch.linalg.eigh(gram)
    keep = values > _RANK * values[-1]
    basis = (vectors[:, keep] * values[keep].rsqrt()).T
    own = (vectors[:, keep] * values[keep].sqrt()).to(unique[0].dtype).split([len(row) for row in unique])
    if len(basis) * d * unique[0].element_size() > AXES:
        return Coordinates(scale, basis, unique, len(basis), own=own)
    parts = zip(basis.split([len(row) for row in unique], 1), unique, strict=True)
    axes = sum((part.to(row.dtype) @ row for part, row in parts), torch.zeros(()))
    return Coordinates(scale, basis, [], len(basis), axes=axes, own=own)


def _products(a: Tensor | None, rows: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """(m, n) inner products Σ weights·a·b of rows a (m, d) and b (n, d), block by block of d; float64 if one of them is, else float32.

    Without ``a`` those of ``rows`` with each other. Every number is read once.
    """
    num = sum(len(row) for row in rows)
    tall = num if a is None else max(len(a), num)
    width = max(_NARROW, _BLOCK // max(1, tall))
    kinds = {row.dtype for row in rows} | (set() if a is None else {a.dtype})
    dtype = torch.float64 if torch.float64 in kinds else torch.float32
    out = torch.zeros(num if a is None else len(a), num, dtype=dtype)
    for start in range(0, rows[0].shape[1], width):
        block = slice(start, start + width)
        right = torch.cat([row[:, block].to(dtype) for row in rows])
        left = right if a is None else a[:, block].to(dtype)
        out.addmm_(left if weights is None else left * weights[block].to(dtype), right.T)
    return out
