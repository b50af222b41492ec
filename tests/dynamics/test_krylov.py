"""Batched GMRES against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.dynamics.krylov import gmres


def problem(kind: str, size: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    matrix = {
        "near identity": np.eye(size) + 0.5 * root,
        "rotation": np.linalg.qr(root)[0] + 2.2 * np.eye(size),
        "definite": root @ root.T + 0.3 * np.eye(size),
        "defective": np.eye(size) + 0.6 * np.diag(np.ones(size - 1), 1),
        "spread": np.diag(np.linspace(0.5, 20.0, size)) + 0.1 * root,
    }[kind]
    return matrix, rng.normal(size=(size, columns))


def times(matrix: np.ndarray) -> object:
    A = torch.from_numpy(matrix)
    return lambda X: A @ X


@pytest.mark.parametrize("kind", ["near identity", "rotation", "definite", "defective", "spread"])
@pytest.mark.parametrize(("size", "columns"), [(1, 1), (7, 3), (30, 40), (120, 5)])
def test_solves_what_numpy_solves(kind: str, size: int, columns: int) -> None:
    matrix, B = problem(kind, size, columns, seed=size)
    found = gmres(times(matrix), torch.from_numpy(B), restart=60)
    assert found.result == "converged"
    assert found.residual < 1e-11
    np.testing.assert_allclose(found.value, np.linalg.solve(matrix, B), rtol=1e-7, atol=1e-8)


def test_reports_the_true_residual() -> None:
    matrix, B = problem("spread", 80, 4, seed=0)
    found = gmres(times(matrix), torch.from_numpy(B), tolerance=1e-5, restart=15)
    gap = np.linalg.norm(matrix @ found.value.numpy() - B, axis=0) / np.linalg.norm(B, axis=0)
    assert found.residual == pytest.approx(gap.max(), rel=1e-6)
    assert found.residual < 1e-4


def test_many_restarts_reach_the_solution() -> None:
    matrix, B = problem("spread", 100, 6, seed=1)
    found = gmres(times(matrix), torch.from_numpy(B), restart=20)
    assert found.result == "converged"
    assert found.steps > 20
    np.testing.assert_allclose(found.value, np.linalg.solve(matrix, B), atol=1e-9)


def test_columns_do_not_disturb_each_other() -> None:
    """Zero columns, an eigenvector, huge and tiny right-hand sides, all at once as one by one."""
    matrix, B = problem("definite", 40, 6, seed=2)
    B[:, 1] = 0
    B[:, 2] = np.linalg.eigh(matrix)[1][:, 3]
    B[:, 3] *= 1e120
    B[:, 4] *= 1e-120
    together = gmres(times(matrix), torch.from_numpy(B))
    assert together.result == "converged"
    np.testing.assert_array_equal(together.value[:, 1], 0)
    want = np.linalg.solve(matrix, B)
    for column in range(6):
        scale = max(np.abs(want[:, column]).max(), 1e-300)
        np.testing.assert_allclose(together.value[:, column] / scale, want[:, column] / scale, atol=1e-9)


def test_nothing_to_do_is_done_at_once() -> None:
    found = gmres(times(np.eye(4)), torch.zeros(4, 3).double())
    assert (found.result, found.steps, found.residual) == ("converged", 0, 0.0)
    exact = gmres(times(np.eye(4)), torch.ones(4, 1).double())
    assert exact.result == "converged"
    assert exact.steps <= 2


def test_a_singular_system_is_not_called_solved() -> None:
    matrix = np.diag([1.0, 2.0, 0.0])
    outside = gmres(times(matrix), torch.ones(3, 1).double())
    assert outside.result == "budget"
    assert outside.residual > 0.1
    inside = gmres(times(matrix), torch.tensor([[1.0], [4.0], [0.0]]).double())
    assert inside.result == "converged"
    np.testing.assert_allclose(inside.value[:, 0], [1, 2, 0], atol=1e-12)


def test_a_cyclic_shift_needs_the_whole_space_and_a_short_memory_says_budget() -> None:
    """The classic hard case: GMRES makes no progress before step n."""
    shift = np.roll(np.eye(30), 1, axis=0)
    B = torch.zeros(30, 1).double()
    B[0] = 1.0
    assert gmres(times(shift), B, restart=30).result == "converged"
    short = gmres(times(shift), B, restart=10)
    assert short.result == "budget"
    assert short.residual == pytest.approx(1.0, abs=1e-9)


def test_non_finite_products_end() -> None:
    def broken(X: Tensor) -> Tensor:
        return X * torch.nan

    assert gmres(broken, torch.ones(3, 1).double()).result == "budget"
