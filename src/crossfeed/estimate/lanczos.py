r"""Functions of a symmetric matrix that is known by its products only: f(H) b by Lanczos.

m steps give an orthonormal basis V of span{b, Hb, …, H^(m−1) b} and the tridiagonal T = Vᵀ H V = S diag(ϑ) Sᵀ, whose ϑ are the Ritz values;

    f(H) b ≈ ‖b‖ V S f(ϑ) Sᵀ e₁,

exact for polynomials f of degree below m, and once m is the number of different eigenvalues that b meets. Every new vector is
orthogonalised against all before it, twice, so that none comes back. f = 1/λ is conjugate gradients.

Reference: Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 4; Saad 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MatVec = Callable[[Tensor], Tensor]
"""x (d,) to H x (d,)."""

_WINDOW = 4


@dataclass(frozen=True, eq=False)
class Applied:
    """f(H) b.

    Attributes:
        value: (d,).
        result: ``converged`` or ``budget``.
        residual: ‖change of the answer over the last four steps‖ / ‖answer‖; 0 once the basis spans all that b meets.
        steps: Products with H.
    """

    value: Tensor
    result: str
    residual: float
    steps: int


class Lanczos:
    """A Krylov basis that grows step by step.

    Args:
        matvec: Products with H, symmetric.
        start: (d,) b, not zero.
        most: Most steps; memory is as many vectors, taken as they are needed.
    """

    def __init__(self, matvec: MatVec, start: Tensor, most: int) -> None:
        self._matvec, self._most = matvec, min(most, len(start))
        self.norm = float(start.norm())
        self.basis = start.new_empty(min(self._most, 15) + 1, len(start))
        self.basis[0] = start / self.norm
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        self.complete = False
        self.done = False

    @property
    def size(self) -> int:
        """M, steps so far."""
        return len(self.diagonal)

    def step(self) -> None:
        """One product with H; ``done`` says that the space is complete or the budget used up."""
        m = self.size
        known = self.basis[: m + 1]
        w = self._matvec(known[m]).to(known)
        self.diagonal.append(float(known[m] @ w))
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beta = float(w.norm())
        self.beside.append(beta)
        size = max(map(abs, self.diagonal)) + max(self.beside)
        self.complete = beta <= 100 * torch.finfo(w.dtype).eps * size
        self.done = self.complete or m + 1 == self._most
        if not self.done:
            if m + 2 > len(self.basis):
                more = min(2 * len(self.basis), self._most) - len(self.basis)
                self.basis = torch.cat([self.basis, self.basis.new_empty(more, len(w))])
            self.basis[m + 1] = w / beta

    def ritz(self) -> tuple[Tensor, Tensor]:
        """ϑ (m,) ascending and S (m, m), float64 on the CPU."""
        T = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        off = torch.tensor(self.beside[:-1], dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(T)
        return values, vectors


def apply_function(
    matvec: MatVec,
    b: Tensor,
    f: Callable[[Tensor], Tensor],
    *,
    tolerance: float = 1e-6,
    most: int = 200,
    floor: float | None = None,
) -> Applied:
    """f(H) b.

    Args:
        matvec: Products with H, symmetric.
        b: (d,).
        f: Ritz values (m,) float64 to f (m,).
        tolerance: On the change of the answer over four steps, relative to it.
        most: Most products with H; memory is as many vectors (d,).
        floor: A number that no eigenvalue is below; Ritz values that rounding has put below are raised to it.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> found = apply_function(lambda x: H @ x, torch.ones(3, dtype=torch.float64), lambda ritz: 1 / ritz)
        >>> found.value.round(decimals=6), found.steps
        (tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64), 3)
    """
    if not bool(b.any()):
        return Applied(torch.zeros_like(b), "converged", 0.0, 0)
    run = Lanczos(matvec, b, most)
    before: list[Tensor] = []
    residual = 1.0
    while True:
        run.step()
        values, vectors = run.ritz()
        if floor is not None:
            values = values.clamp_min(floor)
        found = run.norm * (vectors @ (f(values) * vectors[0]))
        size = float(found.norm())
        if run.size > _WINDOW:
            old = torch.nn.functional.pad(before[-_WINDOW], (0, _WINDOW))
            residual = float((found - old).norm()) / max(size, 1e-300)
        before.append(found)
        exact = run.complete or run.size == len(b)
        if exact or residual <= tolerance or run.done:
            break
    value = run.basis[: run.size].T @ found.to(b)
    if exact:
        residual = 0.0
    return Applied(value, "converged" if residual <= tolerance else "budget", residual, run.size)


class KrylovInverse:
    r"""A fixed approximation of H⁻¹ from one Krylov space: P = V T⁻¹ Vᵀ + (1 − V Vᵀ)/ϑ₁, ϑ₁ the smallest Ritz value.

    Symmetric and positive; a preconditioner: it takes the large eigenvalues, which Lanczos finds first, out of the way. The form is
    that of Nyström preconditioners (Frangella, Tropp and Udell 2023) with a Krylov space for the sketch.

    Args:
        matvec: Products with H, symmetric and positive definite.
        start: (d,), best a random vector.
        most: Products with H.
        floor: A number that no eigenvalue is below, above 0.
    """

    def __init__(self, matvec: MatVec, start: Tensor, most: int, floor: float) -> None:
        run = Lanczos(matvec, start, most)
        while not run.done:
            run.step()
        values, vectors = run.ritz()
        self.steps = run.size
        self._values = values.clamp_min(floor).to(start)
        self._basis = vectors.T.to(start) @ run.basis[: run.size]

    def __call__(self, b: Tensor) -> Tensor:
        """P b for b (d, c)."""
        inside = self._basis @ b
        rest = (b - self._basis.T @ inside) / self._values[0]
        return self._basis.T @ (inside / self._values[:, None]) + rest
