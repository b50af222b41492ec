"""Alignment J = E[r] in closed form against sampling, and for functions of outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from stacks import covariance
from torch import Tensor

from crossfeed.families.alignment import FiniteAlignment, LinearAlignment, VectorAlignment
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.linear import Inputs, LinearGaussian

DRAWS = 300_000


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def within(sample: np.ndarray, value: float) -> None:
    """5 standard errors."""
    assert abs(sample.mean() - value) <= 5 * sample.std() / math.sqrt(len(sample))


def test_finite() -> None:
    family = Finite.categorical(3)
    table = real([[1.0, 2.0, 4.0]])
    p = real([[0.2, 0.3, 0.5]])
    theta = family.fit(family.mean_statistic(p), torch.zeros(1).double(), torch.zeros(1, 2).double())
    assert float(FiniteAlignment(family, table).value(theta)) == pytest.approx(0.2 + 0.6 + 2.0, rel=1e-14)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_vectors_by_formula_by_function_and_by_sampling(dim: int) -> None:
    rng = np.random.default_rng(dim)
    g, root = rng.normal(size=dim), rng.normal(size=(dim, dim))
    Q, mean, cov = root + root.T, rng.normal(size=dim), covariance(rng, dim)
    full = GaussianFull(dim)
    theta = full.pack(real(mean)[None], real(cov)[None])

    def fn(y: Tensor) -> Tensor:
        return 0.7 + y @ real(g) + 0.5 * ((y @ real(Q)) * y).sum(-1)

    constant = real([0.7])
    value = float(VectorAlignment(full, real(g)[None], real(Q)[None], constant).value(theta))
    assert value == pytest.approx(0.7 + g @ mean + 0.5 * (mean @ Q @ mean + np.trace(Q @ cov)), rel=1e-12)
    by_nodes = float(VectorAlignment(full, real(g)[None], None, constant, fn).value(theta))
    assert by_nodes == pytest.approx(value, abs=1e-8 if dim <= 3 else 0.05)
    z = full.sample(theta, DRAWS, torch.Generator().manual_seed(0))[0]
    within(fn(z).numpy(), value)
    known = GaussianMean(real(cov)[None])
    assert float(
        VectorAlignment(known, real(g)[None], real(Q)[None], constant).value(real(mean)[None])
    ) == pytest.approx(value)


@pytest.mark.parametrize("kind", ["quadratic", "function"])
def test_answers_over_a_domain(kind: str) -> None:
    rng = np.random.default_rng(6)
    noise, points, weights = covariance(rng, 2), rng.normal(size=(5, 3)), rng.dirichlet(np.ones(5))
    family = LinearGaussian(real(noise)[None], 3)
    theta = real(rng.normal(size=(1, 6)))
    g, root = rng.normal(size=5), rng.normal(size=(5, 5)) * 0.5
    Q = root + root.T

    def quadratic(z: Tensor) -> Tensor:
        return 0.3 + z @ real(g) + 0.5 * ((z @ real(Q)) * z).sum(-1)

    def wavy(z: Tensor) -> Tensor:
        return torch.cos(z @ real(g)) * torch.tanh(z[:, 0])

    fn: Callable[[Tensor], Tensor] = quadratic if kind == "quadratic" else wavy
    inputs = Inputs(real(points)[None], real(weights)[None])
    kernel = LinearAlignment(
        family, inputs, real(g)[None], real(Q)[None], real([0.3]), None if kind == "quadratic" else fn
    )
    x = real(points[rng.choice(5, size=DRAWS, p=weights)])[None]
    z = family.sample_at(theta, x, torch.Generator().manual_seed(1))[0]
    within(fn(z).numpy(), float(kernel.value(theta)))
    if kind == "quadratic":
        by_nodes = LinearAlignment(family, inputs, real(g)[None], None, real([0.3]), fn)
        assert float(by_nodes.value(theta)) == pytest.approx(float(kernel.value(theta)), abs=1e-10)


def test_stacks_of_evaluations_broadcast_over_leading_dimensions() -> None:
    rng = np.random.default_rng(7)
    family = LinearGaussian(torch.eye(1).double().expand(3, 1, 1), 2)
    inputs = Inputs(real(rng.normal(size=(3, 4, 2))), torch.full((3, 4), 0.25).double())
    g, Q = real(rng.normal(size=(3, 3))), real(rng.normal(size=(3, 3, 3)))
    kernel = LinearAlignment(family, inputs, g, Q, torch.zeros(3).double(), None)
    theta = real(rng.normal(size=(5, 2, 3, 2)))
    whole = kernel.value(theta)
    assert whole.shape == (5, 2, 3)
    torch.testing.assert_close(whole[4, 1], kernel.value(theta[4, 1]), rtol=1e-13, atol=0)
