r"""Functions of a curvature of few samples, exactly: f(RᵀR + σ) b from the rows R that make it.

With R (r, d), r rows for d parameters, and the small matrix R Rᵀ = S diag(γ) Sᵀ,

    f(RᵀR + σ) b = f(σ) b + Rᵀ S diag((f(γ + σ) − f(σ))/γ) Sᵀ R b,

because every direction that no row has is an eigenvector with eigenvalue σ. Keeping R takes as much memory as r vectors, and after
that no product costs a pass over samples. The sample's counterpart of the Woodbury identity, for any f.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor


class LowRank:
    """H = RᵀR + σ.

    Args:
        rows: R (r, d).
        floor: σ, above 0 where f is 1/λ.

    Example:
        >>> H = LowRank(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64), 1.0)
        >>> H.apply(lambda values: 1 / values, torch.ones(3, dtype=torch.float64)).tolist()
        [0.5, 0.5, 1.0]
    """

    def __init__(self, rows: Tensor, floor: float) -> None:
        self.rows, self.floor = rows, floor

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        """γ (r,) and S (r, r), float64 on the CPU, without what is zero but for rounding."""
        values, vectors = torch.linalg.eigh((self.rows @ self.rows.T).cpu().double())
        size = torch.finfo(self.rows.dtype).eps * len(values) * float(values.abs().max().clamp_min(1e-300))
        keep = values > size
        return values[keep], vectors[:, keep]

    @property
    def largest(self) -> float:
        """The largest eigenvalue, σ included."""
        values, _ = self._parts
        return self.floor + (float(values[-1]) if len(values) else 0.0)

    def product(self, x: Tensor) -> Tensor:
        """RᵀR x, (d,): without σ."""
        return self.rows.T @ (self.rows @ x)

    def apply(self, f: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        """f(H) b, (d,)."""
        values, vectors = self._parts
        rest = f(torch.tensor([self.floor], dtype=torch.float64))[0]
        slope = (f(values + self.floor) - rest) / values
        inside = (vectors.T @ (self.rows @ b).cpu().double()) * slope
        return float(rest) * b + self.rows.T @ (vectors @ inside).to(self.rows)
