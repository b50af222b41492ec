r"""Coordinates in which a model's gradients are kept: its parameters, an orthonormal basis of its samples' span, or a projection.

Retraining moves θ_i by combinations of gradients of its own samples, so nothing outside their span matters to it, and what other
rows (scores, evaluations) have outside the span meets nothing. Gauss–Newton rows and weight decay are kept as far as they lie in
the span. With rows Φ (n, d) and the Gram matrix ΦΦᵀ = U Λ Uᵀ, the basis is V = Λ^(−1/2) Uᵀ Φ, and a row a has coordinates
V a = Λ^(−1/2) Uᵀ Φ a: inner products with anything in the span are exact, and only inner products of rows are ever needed (the
dual, or Woodbury, form). Rows may be in files: no more than a block of their columns is in memory at a time.

A random projection P (m, d) (:mod:`crossfeed.estimate.projection`) keeps inner products in the mean only, but needs no row but the one at
hand. Its coordinates are those of models that are trained along the rows of P alone. The way back is not Pᵀ x, which is √(d/m) times as
long as what x stands for, nearly all of it noise: x = P Φᵀ w is solved for the weights w of the model's own samples, and Φᵀ w is
one weighted gradient over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossfeed.estimate.projection import Projection

_RANK = 1e-6
_BLOCK = 1 << 24
_NARROW = 1 << 12
"""Fewest columns of a block: files are not read well in smaller pieces."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A linear map from gradients (d,) to coordinates (r,).

    Attributes:
        scale: (d,) the optimiser's scale of every parameter; None for 1.
        basis: (r, n) Λ^(−1/2) Uᵀ; None: the parameters are the coordinates, or a projection of them.
        rows: Φ, whose rows (scaled) span; with a projection P Φᵀ, transposed; empty with the parameters themselves.
        size: r.
        projection: P; None: there is none.
        combine: With a projection, weights (n,) of ``rows`` to Σ w_n ∇ℓ_n (d,).
    """

    scale: Tensor | None
    basis: Tensor | None
    rows: Sequence[Tensor]
    size: int
    projection: Projection | None = None
    combine: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

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
        """(r,) to the change of θ (d,) that it stands for; with a projection, the closest one that the model's samples could have made."""
        if self.projection is not None:
            return self._way_back(x)
        if self.basis is None:
            return x.float() if self.scale is None else x.float() * self.scale
        weights = (self.basis.T @ x.double()).float()
        sizes = [len(row) for row in self.rows]
        out = sum((w @ row.float() for w, row in zip(weights.split(sizes), self.rows, strict=True)), torch.zeros(()))
        return out if self.scale is None else out * self.scale.square()

    def to_gradients(self, y: Tensor) -> Tensor:
        """(r,) how something answers to the coordinates, to how it answers to θ (d,); without a projection the transpose of
        :meth:`of_parameters`.
        """
        out = self.to_parameters(y)
        return out if self.scale is None else out / self.scale.square()

    def _way_back(self, x: Tensor) -> Tensor:
        assert self.combine is not None
        own = torch.cat(list(self.rows)).double()
        values, vectors = torch.linalg.eigh(own @ own.T if len(own) <= self.size else own.T @ own)
        inverse = torch.where(values > _RANK * values[-1], 1 / values, 0)

        def solved(b: Tensor) -> Tensor:
            return vectors @ (inverse * (vectors.T @ b))

        weights = solved(own @ x.double()) if len(own) <= self.size else own @ solved(x.double())
        out = self.combine(weights).float().cpu()
        return out if self.scale is None else out * self.scale.square()

    def _turn(self, values: Tensor, power: int) -> Tensor:
        if self.basis is None:
            return values if self.scale is None else values * self.scale**power
        # the scale enters twice on gradients (theirs and the rows'), and cancels on parameters
        square = None if self.scale is None or power < 0 else self.scale.square()
        products = _products(values, self.rows, square)
        return (products.double() @ self.basis.T).to(products.dtype)


def hand_over(left: Coordinates, right: Coordinates, x: Tensor) -> Tensor:
    """Changes of parameters (r, c) in other coordinates (r′, c), as far as these have them."""
    if left is right:
        return x
    if left.plain and right.plain:
        return x if left.scale is None or right.scale is None else x * (left.scale / right.scale).to(x)[:, None]
    columns = [right.of_parameters(left.to_parameters(column).to(x)).to(x) for column in x.T]
    return torch.stack(columns, 1) if columns else x.new_zeros(right.size, 0)


def hand_back(left: Coordinates, right: Coordinates, y: Tensor) -> Tensor:
    """How outcomes answer to coordinates on the right (r′, e), to how they answer to those on the left (r, e): the transpose."""
    if left is right:
        return y
    if left.plain and right.plain:
        return y if left.scale is None or right.scale is None else y * (left.scale / right.scale).to(y)[:, None]
    columns = [left.of_gradients(right.to_gradients(column)[None].to(y))[0].to(y) for column in y.T]
    return torch.stack(columns, 1) if columns else y.new_zeros(left.size, 0)


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
    return Coordinates(scale, basis, unique, int(keep.sum()))


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
