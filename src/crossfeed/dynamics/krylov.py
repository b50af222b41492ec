"""Linear solves with many right-hand sides: batched GMRES, each column with its own Krylov space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearSolution:
    """Solution of A X = B.

    Attributes:
        value: (D, R).
        result: ``converged`` or ``budget``.
        residual: Largest relative residual of a column.
        steps: Products with A.
    """

    value: Tensor
    result: str
    residual: float
    steps: int


def gmres(
    matvec: Callable[[Tensor], Tensor], B: Tensor, tolerance: float = 1e-12, restart: int = 40, max_restarts: int = 25
) -> LinearSolution:
    """Restarted GMRES for A X = B, all columns at once; every column has its own Krylov space.

    Modified Gram–Schmidt in blocks of columns; Givens rotations give the residuals. Memory: restart · D · R doubles.

    Args:
        matvec: X (D, R) to A X.
        B: (D, R).
        tolerance: On ‖B − A X‖ / ‖B‖, by column.
        restart: Krylov dimension.
        max_restarts: Budget.

    Reference: Saad and Schultz 1986.
    """
    X = torch.zeros_like(B)
    norm_b = B.norm(dim=0)
    norm_b = torch.where(norm_b > 0, norm_b, torch.ones_like(norm_b))
    R, steps = B.clone(), 0
    residual = float((R.norm(dim=0) / norm_b).max())
    for _ in range(max_restarts):
        if residual <= tolerance:
            break
        X, used = _cycle(matvec, X, R, tolerance * norm_b, restart)
        R = B - matvec(X)
        steps += used + 1
        previous, residual = residual, float((R.norm(dim=0) / norm_b).max())
        if residual > 0.5 * previous:
            break
    return LinearSolution(X, "converged" if residual <= max(tolerance, 1e-13) * 10 else "budget", residual, steps)


def _cycle(
    matvec: Callable[[Tensor], Tensor], X: Tensor, R: Tensor, target: Tensor, restart: int
) -> tuple[Tensor, int]:
    D, columns = R.shape
    beta = R.norm(dim=0)
    safe = torch.where(beta > 0, beta, torch.ones_like(beta))
    basis = [R / safe]
    H = torch.zeros(restart + 1, restart, columns, dtype=R.dtype)
    cs, sn = torch.zeros(restart, columns, dtype=R.dtype), torch.zeros(restart, columns, dtype=R.dtype)
    g = torch.zeros(restart + 1, columns, dtype=R.dtype)
    g[0] = beta
    used = 0
    for j in range(min(restart, D)):
        w = matvec(basis[j])
        for i in range(j + 1):
            H[i, j] = (basis[i] * w).sum(0)
            w = w - basis[i] * H[i, j]
        height = w.norm(dim=0)
        H[j + 1, j] = height
        basis.append(w / torch.where(height > 0, height, torch.ones_like(height)))
        for i in range(j):
            a, b = H[i, j].clone(), H[i + 1, j].clone()
            H[i, j], H[i + 1, j] = cs[i] * a + sn[i] * b, -sn[i] * a + cs[i] * b
        length = torch.sqrt(H[j, j] ** 2 + H[j + 1, j] ** 2)
        length = torch.where(length > 0, length, torch.ones_like(length))
        cs[j], sn[j] = H[j, j] / length, H[j + 1, j] / length
        H[j, j], H[j + 1, j] = cs[j] * H[j, j] + sn[j] * H[j + 1, j], torch.zeros_like(length)
        g[j + 1] = -sn[j] * g[j]
        g[j] = cs[j] * g[j]
        used = j + 1
        if bool((g[used].abs() <= target).all()):
            break
    triangle = H[:used, :used].permute(2, 0, 1).clone()
    diagonal = triangle.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_(torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal))
    y = torch.linalg.solve_triangular(triangle, g[:used].T[..., None], upper=True)[..., 0]
    for i in range(used):
        X = X + basis[i] * y[:, i]
    return X, used
