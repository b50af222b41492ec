r"""The ecosystem linearised at a point: D = ∂F/∂Θ in blocks, its products and its solves.

    D_ij = δ_ij H_i + B_ij,    H_i = ∇₁²L_i,    B_ij = Σ_s w_s ∂_{θ_j} E_{P_s}[∇ℓ_i]

Only the blocks of edges that exist are kept. Products serve many vectors at once. Solves are direct while D is
small; when it is not, block Gauss–Seidel for many right-hand sides at once, and for few, or where it does not
converge, batched GMRES, preconditioned by the diagonal blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from crossfeed.dynamics.gauss_seidel import BlockRow, block_rows, gauss_seidel
from crossfeed.dynamics.krylov import LinearSolution, gmres
from crossfeed.dynamics.program import Program, SourceGroup
from crossfeed.errors import NotStableError
from crossfeed.families.base import jacobian

DIRECT_LIMIT = 3000
CHUNK_DOUBLES = 40_000_000
MANY = 16


@dataclass(frozen=True)
class EdgeBlocks:
    """Blocks w·B of the sources of one group: (E, d_i, d_j), with the consumers' and producers' parameter positions."""

    group: SourceGroup
    rows: Tensor
    cols: Tensor
    value: Tensor


@dataclass(frozen=True)
class Linearisation:
    """D at a point, by blocks.

    Attributes:
        program: What was linearised.
        theta: (D,) where.
        curvature: H by model group, (G, d, d).
        edges: w·B by source group.
        mean_gradient: By source group: E_{P_s}[∇ℓ_i] (E, d_i), real sources included; Σ_s w_s of them (+ ridge θ) is F.
    """

    program: Program
    theta: Tensor
    curvature: list[Tensor]
    edges: list[EdgeBlocks]
    mean_gradient: list[Tensor]

    def sparse(self, keep: Callable[[int], bool] | None = None) -> scipy.sparse.csr_array:
        """D as a SciPy matrix; with ``keep``, only the edges whose source index passes."""
        data: list[np.ndarray] = []
        row: list[np.ndarray] = []
        col: list[np.ndarray] = []
        for group, h in zip(self.program.model_groups, self.curvature, strict=True):
            _append(data, row, col, h, group.theta_index, group.theta_index)
        for e in self.edges:
            chosen = slice(None) if keep is None else torch.tensor([keep(int(s)) for s in e.group.source])
            _append(data, row, col, e.value[chosen], e.rows[chosen], e.cols[chosen])
        n = self.program.num_params
        entries = (np.concatenate(data), (np.concatenate(row), np.concatenate(col)))
        return scipy.sparse.csr_array(scipy.sparse.coo_array(entries, shape=(n, n)))

    @cached_property
    def matrix(self) -> scipy.sparse.csr_array:
        """D."""
        return self.sparse()

    @cached_property
    def diagonal(self) -> list[Tensor]:
        """D_ii = H_i + B_ii by model group, self-loops included."""
        out = [h.clone() for h in self.curvature]
        for e in self.edges:
            infos = [self.program.sources[int(s)] for s in e.group.source]
            loops = torch.tensor([i for i, s in enumerate(infos) if s.consumer == s.producer], dtype=torch.long)
            if len(loops):
                out[e.group.group].index_add_(0, e.group.row[loops], e.value[loops])
        return out

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        lu, pivots, _ = torch.linalg.lu_factor_ex(torch.from_numpy(self.matrix.toarray()))
        return lu, pivots

    @cached_property
    def _inverse_diagonal(self) -> list[Tensor]:
        return self._inverses(self.diagonal, "D_ii")

    def _inverses(self, blocks: list[Tensor], name: str) -> list[Tensor]:
        out = []
        for group, block in zip(self.program.model_groups, blocks, strict=True):
            inverse, failed = torch.linalg.inv_ex(block)
            if bool((failed != 0).any()):
                model = self.program.names[int(group.members[int(failed.nonzero()[0, 0])])]
                raise NotStableError(
                    f"models.{model}: {name} is singular at this point, so that derivatives do not exist; some "
                    "parameter is not determined by its training data: give it a ridge or real data, or drop collinear features"
                )
            out.append(inverse)
        return out

    def apply(self, X: Tensor, transpose: bool = False) -> Tensor:
        """D X, or Dᵀ X, for X (D, R), block by block."""
        out = torch.zeros_like(X)
        for group, h in zip(self.program.model_groups, self.curvature, strict=True):
            out[group.theta_index] = (h.transpose(-1, -2) if transpose else h) @ X[group.theta_index]
        for e in self.edges:
            block, to, at = (e.value.transpose(-1, -2), e.cols, e.rows) if transpose else (e.value, e.rows, e.cols)
            out.index_add_(0, to.flatten(), (block @ X[at]).flatten(0, 1))
        return out

    def precondition(self, X: Tensor, transpose: bool = False) -> Tensor:
        """Block-diagonal (D_ii)⁻¹ X."""
        out = torch.zeros_like(X)
        for group, inverse in zip(self.program.model_groups, self._inverse_diagonal, strict=True):
            m = inverse.transpose(-1, -2) if transpose else inverse
            out[group.theta_index] = m @ X[group.theta_index]
        return out

    def solve(self, B: Tensor, transpose: bool = False, tolerance: float = 1e-12) -> LinearSolution:
        """X with D X = B (or Dᵀ X = B), for B (D, R); the residual is always measured."""
        if self.program.num_params <= DIRECT_LIMIT:
            lu, pivots = self._factor
            X = torch.linalg.lu_solve(lu, pivots, B, adjoint=transpose)
            gap = (self.apply(X, transpose) - B).norm(dim=0) / B.norm(dim=0).clamp_min(1e-300)
            residual = float(torch.nan_to_num(gap, nan=torch.inf).max()) if gap.numel() else 0.0
            return LinearSolution(X, "converged" if residual < 1e-6 else "budget", residual, 1)
        many = B.shape[1] >= MANY
        width = max(1, CHUNK_DOUBLES // (self.program.num_params * (10 if many else 40)))
        X, ok, residual, steps = torch.empty_like(B), True, 0.0, 0
        matrix = self.matrix.T if transpose else self.matrix
        for x, b in zip(X.split(width, dim=1), B.split(width, dim=1), strict=True):
            part = (self._sweeps if many else self._krylov)(b, transpose, tolerance)
            x.copy_(part.value)
            gap = torch.from_numpy(matrix @ part.value.numpy()).sub_(b).norm(dim=0) / b.norm(dim=0).clamp_min(1e-300)
            residual = max(residual, float(torch.nan_to_num(gap, nan=torch.inf).max()))
            ok, steps = ok and part.result == "converged", steps + part.steps
        return LinearSolution(X, "converged" if ok and residual < 1e-6 else "budget", residual, steps)

    def _krylov(self, B: Tensor, transpose: bool, tolerance: float) -> LinearSolution:
        right = self.precondition(B, transpose)
        return gmres(lambda x: self.precondition(self.apply(x, transpose), transpose), right, tolerance)

    def _sweeps(self, B: Tensor, transpose: bool, tolerance: float) -> LinearSolution:
        matrix, rows = self._block_rows_transposed if transpose else self._block_rows
        found = gauss_seidel(matrix, rows, B.contiguous(), tolerance)
        if found.result == "converged":
            return found
        width = max(1, CHUNK_DOUBLES // (self.program.num_params * 40))
        parts = [self._krylov(b, transpose, tolerance) for b in B.split(width, dim=1)]
        ok = all(p.result == "converged" for p in parts)
        residual, steps = max(p.residual for p in parts), sum(p.steps for p in parts)
        return LinearSolution(torch.cat([p.value for p in parts], 1), "converged" if ok else "budget", residual, steps)

    @cached_property
    def _block_rows(self) -> tuple[scipy.sparse.csr_array, list[BlockRow]]:
        return self.matrix, block_rows(self.matrix, self.program.offsets)

    @cached_property
    def _block_rows_transposed(self) -> tuple[scipy.sparse.csr_array, list[BlockRow]]:
        transposed = self.matrix.T.tocsr()
        return transposed, block_rows(transposed, self.program.offsets)

    def isolated(self, B: Tensor, transpose: bool = False) -> Tensor:
        """Block-diagonal solve: every other model frozen (all B_ij, i ≠ j, set to 0)."""
        return self.precondition(B, transpose)

    def round_jacobian(self) -> scipy.sparse.csr_array:
        """G = I − H⁻¹D, the Jacobian of one simultaneous exact round."""
        blocks: list[np.ndarray] = []
        row: list[np.ndarray] = []
        col: list[np.ndarray] = []
        inverse = self._inverses(self.curvature, "the curvature H")
        for e in self.edges:
            _append(blocks, row, col, -inverse[e.group.group][e.group.row] @ e.value, e.rows, e.cols)
        n = self.program.num_params
        if not blocks:
            return scipy.sparse.csr_array((n, n))
        entries = (np.concatenate(blocks), (np.concatenate(row), np.concatenate(col)))
        return scipy.sparse.csr_array(scipy.sparse.coo_array(entries, shape=(n, n)))

    def setting_gradient(self, path: str) -> Tensor:
        """(D,) ∂F/∂(one scalar setting) at fixed Θ; for a weight, the mean gradient of its source."""
        slot = self.program.slots[path]
        out = torch.zeros(self.program.num_params, dtype=self.theta.dtype)
        for models in self.program.model_groups:
            for row in torch.nonzero(models.ridge_slot == slot)[:, 0].tolist():
                out[models.theta_index[row]] += self.theta[models.theta_index[row]]
        for number, source in enumerate(self.program.source_groups):
            rows = self.program.model_groups[source.group].theta_index[source.row]
            for e in torch.nonzero(source.weight_slot == slot)[:, 0].tolist():
                out[rows[e]] += self.mean_gradient[number][e]
            slots = getattr(source.kernel, "slots", {})
            if any(bool((where == slot).any()) for where in slots.values()):
                moved = self._through_setting(source, slot)
                out.index_add_(0, rows.flatten(), moved.flatten())
        return out

    def _through_setting(self, group: SourceGroup, slot: int) -> Tensor:
        """(E, d_i) w·∂E[∇ℓ]/∂setting by one forward-mode pass."""
        settings = self.program.settings
        tangent = torch.zeros_like(settings)
        tangent[slot] = 1.0
        theta_i = self.theta[self.program.model_groups[group.group].theta_index][group.row]
        theta_j = self.theta[group.theta_index]
        fn = lambda s: group.kernel.consumer.gradient(theta_i, group.kernel.moments(theta_j, s))  # noqa: E731
        change: Tensor = torch.func.jvp(fn, (settings,), (tangent,))[1]
        return change * settings[group.weight_slot][:, None]


def linearise(program: Program, theta: Tensor) -> Linearisation:
    """All blocks of D at Θ, by forward-mode passes that each serve a whole stack of models or sources.

    Args:
        program: Compiled ecosystem with unbatched settings (S,).
        theta: (D,).
    """
    curvature = program.curvature(theta)
    edges, gradients = [], []
    for group in program.source_groups:
        consumer = program.model_groups[group.group]
        rows = consumer.theta_index[group.row]
        theta_i = theta[rows]
        gradients.append(
            group.kernel.consumer.gradient(theta_i, program.source_moments(group, theta, program.settings))
        )
        if group.theta_index is None:
            continue
        moments = group.kernel.moments

        def through(t: Tensor, k: object = group.kernel, ti: Tensor = theta_i, m: object = moments) -> Tensor:
            out: Tensor = k.consumer.gradient(ti, m(t, program.settings))  # type: ignore[attr-defined,operator]
            return out

        block = jacobian(through, theta[group.theta_index]) * program.settings[group.weight_slot][:, None, None]
        edges.append(EdgeBlocks(group, rows, group.theta_index, block))
    return Linearisation(program, theta, curvature, edges, gradients)


def _append(
    data: list[np.ndarray], row: list[np.ndarray], col: list[np.ndarray], value: Tensor, rows: Tensor, cols: Tensor
) -> None:
    if value.numel():
        data.append(value.flatten().numpy())
        row.append(rows[:, :, None].expand(value.shape).flatten().numpy())
        col.append(cols[:, None, :].expand(value.shape).flatten().numpy())
