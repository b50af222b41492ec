"""Gaussian models: density, parameters, collapse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stacks import covariance, moments_of, real

from crossfeed.families.gaussian import GaussianFull, log_normal

NONE = torch.zeros(1, dtype=torch.float64)


def test_log_density_is_scipys() -> None:
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    cov, mean, z = covariance(rng, 3), rng.normal(size=3), rng.normal(size=(5, 3))
    np.testing.assert_allclose(
        log_normal(real(z), real(mean)[None], real(cov)), multivariate_normal(mean, cov).logpdf(z), rtol=1e-12
    )


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_parameters_and_moments_are_one_to_one(dim: int) -> None:
    rng = np.random.default_rng(dim)
    family = GaussianFull(dim)
    mean, cov = rng.normal(size=dim), covariance(rng, dim)
    theta = family.fit(moments_of(mean, cov), NONE, torch.zeros(1, family.num_params).double())
    got_mean, got_cov = family.mean_cov(theta)
    np.testing.assert_allclose(got_mean[0], mean, atol=1e-13)
    np.testing.assert_allclose(got_cov[0], cov, atol=1e-13)
    torch.testing.assert_close(family.pack(real(mean)[None], real(cov)[None]), theta, rtol=1e-12, atol=1e-12)


def test_a_collapsing_model_keeps_going_and_a_broken_one_says_so() -> None:
    family = GaussianFull(2)
    flat = family.fit(moments_of(np.zeros(2), np.diag([1.0, 0.0])), NONE, torch.zeros(1, 5).double())
    assert bool(torch.isfinite(flat).all())
    assert float(family.mean_cov(flat)[1][0, 1, 1]) < 1e-12
    broken = family.fit(torch.full((1, 6), math.nan).double(), NONE, torch.zeros(1, 5).double())
    assert bool(torch.isnan(broken).any())
    pair = torch.cat([moments_of(np.zeros(2), np.eye(2)), torch.full((1, 6), math.nan).double()])
    assert bool(torch.isfinite(family.fit(pair, torch.zeros(2).double(), torch.zeros(2, 5).double())[0]).all())
