"""f(H) b by Lanczos against the whole eigendecomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.estimate.lanczos import KrylovInverse, apply_function
from crossfeed.estimate.steps import Spectrum, Steps

SIZE = 60


def matrix(condition: float = 1e4, rank: int = SIZE, ridge: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=random))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), SIZE, dtype=torch.float64)
    values[rank:] = 0
    return (Q * (values + ridge)) @ Q.T


def vector(seed: int = 1) -> Tensor:
    return torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


RESPONSES = {
    "minimum": Steps(None),
    "gradient steps": Steps(Training(steps=30, optimizer="sgd", learning_rate=0.5, gradient_clip=None)),
    "momentum": Steps(Training(steps=30, optimizer="sgd", learning_rate=0.2, momentum=0.9, gradient_clip=None)),
    "adamw": Steps(Training(steps=30, learning_rate=0.5, schedule="cosine", warmup=3)),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_functions_of_a_matrix(name: str) -> None:
    H, b, steps = matrix(), vector(), RESPONSES[name]
    spectrum = Spectrum(H)
    want = spectrum.apply(steps.respond(spectrum.values, 0), b[:, None])[:, 0]
    found = apply_function(lambda x: H @ x, b, lambda values: steps.respond(values, 0), tolerance=1e-9)
    assert found.result == "converged"
    assert float((found.value - want).norm() / want.norm()) < 1e-7
    if name == "gradient steps":  # a polynomial of degree 29
        assert found.steps <= 30 + 4


def test_few_eigenvalues_take_few_steps() -> None:
    """Seven directions and a ridge: the space is complete after eight steps, or nine where rounding adds a direction."""
    H, b = matrix(100.0, rank=7, ridge=1e-3), vector()
    found = apply_function(lambda x: H @ x, b, lambda values: 1 / values)
    assert (found.result, found.residual) == ("converged", 0.0)
    assert found.steps in (8, 9)
    torch.testing.assert_close(H @ found.value, b, rtol=0, atol=1e-8)


def test_a_budget_is_reported() -> None:
    H, b = matrix(1e6), vector()
    found = apply_function(lambda x: H @ x, b, lambda values: 1 / values, most=10)
    assert (found.result, found.steps) == ("budget", 10)
    assert found.residual > 1e-6


def test_nothing_in_nothing_out() -> None:
    found = apply_function(lambda x: x, torch.zeros(3), lambda values: 1 / values)
    assert (found.value.tolist(), found.result, found.steps) == ([0, 0, 0], "converged", 0)


def test_ritz_values_below_the_floor_are_raised() -> None:
    """A matrix that rounding has made indefinite."""
    H = torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64))
    b = torch.ones(2, dtype=torch.float64)
    found = apply_function(lambda x: H @ x, b, lambda values: 1 / values, floor=0.5)
    torch.testing.assert_close(found.value, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_a_krylov_inverse_is_symmetric_positive_and_takes_large_eigenvalues_away() -> None:
    H = matrix(1e4)
    P = KrylovInverse(lambda x: H @ x, vector(), 20, 1e-4)(torch.eye(SIZE, dtype=torch.float64))
    torch.testing.assert_close(P, P.T)
    assert float(torch.linalg.eigvalsh(P)[0]) > 0
    whole = KrylovInverse(lambda x: H @ x, vector(), SIZE, 1e-5)(torch.eye(SIZE, dtype=torch.float64))
    torch.testing.assert_close(whole @ H, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-6)
