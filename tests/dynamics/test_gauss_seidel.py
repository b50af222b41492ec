"""Block Gauss–Seidel against dense solves; what it does where it does not converge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch

from crossfeed.dynamics import linearise as module
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.gauss_seidel import block_rows, gauss_seidel
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.stable import solve
from ecosystems import random_ecosystem


def system(sizes, coupling, seed, degree=3):
    """A block system with dense diagonal blocks and a few couplings a row, of the given strength."""
    rng = np.random.default_rng(seed)
    offsets = [0, *np.cumsum(sizes).tolist()]
    A = np.zeros((offsets[-1], offsets[-1]))
    for i, (a, b) in enumerate(itertools.pairwise(offsets)):
        A[a:b, a:b] = np.eye(b - a) + 0.1 * rng.standard_normal((b - a, b - a))
        for j in rng.choice(len(sizes), min(degree, len(sizes)), replace=False):
            if i != j:
                c, d = offsets[j], offsets[j + 1]
                block = rng.standard_normal((b - a, d - c))
                A[a:b, c:d] = coupling / degree * block / np.linalg.norm(block, 2)
    return A, offsets


@pytest.mark.parametrize("sizes", [[1], [4], [1, 2, 3], [5] * 12, [2, 7, 1, 1, 4] * 4])
def test_solves_what_numpy_solves(sizes):
    A, offsets = system(sizes, 0.8, seed=len(sizes))
    matrix = scipy.sparse.csr_array(A)
    B = torch.from_numpy(np.random.default_rng(1).standard_normal((len(A), 7)))
    B[:, 3] = 0
    found = gauss_seidel(matrix, block_rows(matrix, offsets), B)
    assert found.result == "converged"
    assert found.residual <= 1e-12
    assert np.allclose(found.value, np.linalg.solve(A, B), atol=1e-10)
    assert bool((found.value[:, 3] == 0).all())


def test_couplings_that_point_forward_only_need_no_second_round():
    A, offsets = system([3] * 6, 0.8, seed=2)
    matrix = scipy.sparse.csr_array(np.tril(A) + np.kron(np.eye(6), np.triu(np.ones((3, 3)), 1)) * np.triu(A, 1))
    B = torch.ones(len(A), 2, dtype=torch.float64)
    found = gauss_seidel(matrix, block_rows(matrix, offsets), B)
    assert found.result == "converged"
    assert found.steps == 8  # the first look at the residual
    assert np.allclose(matrix @ found.value.numpy(), B)


def test_gives_up_where_sweeps_do_not_help():
    A, offsets = system([3] * 8, 6.0, seed=3)
    matrix = scipy.sparse.csr_array(A)
    found = gauss_seidel(matrix, block_rows(matrix, offsets), torch.ones(len(A), 2, dtype=torch.float64))
    assert found.result == "budget"
    assert found.steps < 150


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("gives_up", [False, True])
def test_large_ecosystems_solve_as_small_ones(monkeypatch, transpose, gives_up):
    eco = random_ecosystem("gaussian_mean", 9, 4, dim=3)
    program = compile_ecosystem(eco)
    theta = solve(program).require()
    B = torch.from_numpy(np.random.default_rng(0).standard_normal((program.num_params, 20)))
    direct = linearise(program, theta).solve(B, transpose)
    monkeypatch.setattr(module, "DIRECT_LIMIT", 0)
    monkeypatch.setattr(module, "CHUNK_DOUBLES", 10 * program.num_params * 6)  # six columns at a time
    if gives_up:
        monkeypatch.setattr("crossfeed.dynamics.gauss_seidel.SLOWEST", 0.0)
    swept = linearise(program, theta).solve(B, transpose)
    assert swept.result == direct.result == "converged"
    assert torch.allclose(swept.value, direct.value, atol=1e-9)
