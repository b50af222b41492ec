"""Finite outcome sets: categorical coordinates, faces of the simplex, log-linear fits that hardly exist."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.families.base import newton_fit
from crossfeed.families.finite import FLOOR, Finite, FiniteReal

ZERO = torch.zeros(1, dtype=torch.float64)


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def probabilities(family: Finite, theta: Tensor) -> np.ndarray:
    out: np.ndarray = family.log_probs(theta).exp()[0].numpy()
    return out


def test_categorical_coordinates_are_isometric_log_ratios() -> None:
    family = Finite.categorical(5)
    p = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    theta = family.fit(family.mean_statistic(real(p)[None]), ZERO, torch.zeros(1, 4).double())
    np.testing.assert_allclose(probabilities(family, theta), p, rtol=1e-14)
    # Aitchison's distance of log-ratios is the Euclidean distance of parameters, whichever outcome is named first
    other = p[[3, 1, 4, 0, 2]]
    moved = family.fit(family.mean_statistic(real(other)[None]), ZERO, torch.zeros(1, 4).double())
    clr = [np.log(q) - np.log(q).mean() for q in (p, other)]
    assert float((theta - moved).norm()) == pytest.approx(np.linalg.norm(clr[0] - clr[1]), rel=1e-13)


def test_two_outcomes_are_a_logit() -> None:
    family = Finite.categorical(2)
    for p in (0.5, 0.9, 1e-12):
        theta = family.fit(family.mean_statistic(real([[1 - p, p]])), ZERO, ZERO[None])
        assert abs(float(theta[0, 0])) == pytest.approx(abs(math.log(p / (1 - p))) / math.sqrt(2), rel=1e-4, abs=1e-15)


def test_an_outcome_without_mass_gets_the_floor() -> None:
    family = Finite.categorical(3)
    theta = family.fit(family.mean_statistic(real([[0.5, 0.5, 0.0]])), ZERO, torch.zeros(1, 2).double())
    assert bool(torch.isfinite(theta).all())
    p = probabilities(family, theta)
    assert p[2] <= 1e-16
    assert p[2] == pytest.approx(FLOOR) or p[2] > FLOOR
    np.testing.assert_allclose(p[:2], 0.5, rtol=1e-12)


def test_impossible_outcomes_have_probability_zero_and_no_say() -> None:
    live = torch.tensor([[True, False, True, True]])
    family = Finite.categorical(4, live)
    theta = real([[0.4, -0.3, 7.0]])
    p = probabilities(family, theta)
    assert p[1] == 0
    small = Finite.categorical(3)
    np.testing.assert_allclose(p[[0, 2, 3]], probabilities(small, theta[:, :2]), rtol=1e-14)
    assert float(family.entropy(theta)) == pytest.approx(float(small.entropy(theta[:, :2])), rel=1e-13)
    # the idle coordinate is told to rest at zero, and touches nothing
    gradient = family.gradient(theta, family.mean_statistic(real([[0.2, 0.0, 0.3, 0.5]])))
    assert float(gradient[0, 2]) == 7.0
    fitted = family.fit(family.mean_statistic(real([[0.2, 0.0, 0.3, 0.5]])), ZERO, theta)
    np.testing.assert_allclose(probabilities(family, fitted), [0.2, 0, 0.3, 0.5], atol=1e-15)
    assert float(fitted[0, 2]) == 0
    np.testing.assert_array_equal(family.log_probs(theta, real([3.0])).exp()[0, 1], 0.0)


def test_a_single_possible_outcome() -> None:
    family = Finite.categorical(3, torch.tensor([[False, True, False]]))
    theta = family.fit(family.mean_statistic(real([[0.0, 1.0, 0.0]])), ZERO, torch.ones(1, 2).double())
    np.testing.assert_array_equal(probabilities(family, theta), [0, 1, 0])
    assert float(family.entropy(theta)) == 0


def test_sampling_temperature_is_a_power_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    family = Finite(real(rng.normal(size=(1, 5, 2))), real(rng.normal(size=(1, 5))))
    theta = real(rng.normal(size=(1, 2)))
    p = probabilities(family, theta)
    for temperature in (0.3, 1.0, 4.0):
        q = family.log_probs(theta, real([temperature])).exp()[0].numpy()
        np.testing.assert_allclose(q, p ** (1 / temperature) / (p ** (1 / temperature)).sum(), rtol=1e-13)


FEATURES = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])


@pytest.mark.parametrize("edge", [1e-3, 1e-8, 1e-13, 0.0])
def test_log_linear_fits_of_distributions_on_a_face_end(edge: float) -> None:
    """Moments on a face of the marginal polytope have no finite fit; nearly there, the fit is far out. Both end, finite."""
    family = Finite(real(FEATURES)[None], torch.zeros(1, 5).double())
    p = np.array([0.5 - edge, 0.0, 0.5 - edge, 2 * edge, 0.0])
    moments = family.mean_statistic(real(p)[None])
    for start in (torch.zeros(1, 2).double(), real([[5.0, -5.0]]), real([[-20.0, 20.0]])):
        theta = family.fit(moments, ZERO, start)
        assert bool(torch.isfinite(theta).all())
        assert float(family.gradient(theta, moments).norm()) < 1e-12 * (1 + float(theta.norm()))
        assert float(theta.norm()) < 60


def test_a_ridge_makes_the_fit_on_a_face_unique() -> None:
    family = Finite(real(FEATURES)[None], torch.zeros(1, 5).double())
    moments = family.mean_statistic(real([[0.5, 0.0, 0.5, 0.0, 0.0]]))
    found = [family.fit(moments, real([1e-4]), start) for start in (torch.zeros(1, 2).double(), real([[9.0, -9.0]]))]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [3, 12])
def test_collinear_features_fit_without_moving_what_nothing_determines(width: int) -> None:
    rng = np.random.default_rng(width)
    features = rng.normal(size=(20, width))
    features[:, -1] = features[:, 0] + features[:, 1]
    family = Finite(real(features)[None], torch.zeros(1, 20).double())
    moments = family.mean_statistic(real(rng.dirichlet(np.ones(20)))[None])
    start = real(rng.normal(size=(1, width)))
    theta = family.fit(moments, ZERO, start)
    assert float(family.gradient(theta, moments).norm()) < 1e-12
    free = np.zeros(width)
    free[[0, 1, -1]] = 1.0, 1.0, -1.0
    assert float((theta - start)[0] @ real(free)) == pytest.approx(0, abs=1e-9)


def test_newton_gives_back_what_it_cannot_use() -> None:
    family = Finite(real(FEATURES)[None], torch.zeros(1, 5).double())
    broken = newton_fit(family, real([[math.nan, 0.5]]), ZERO, torch.zeros(1, 2).double())
    np.testing.assert_array_equal(broken, 0.0)
    outside = family.fit(real([[2.0, 0.5]]), ZERO, torch.zeros(1, 2).double())  # no distribution has these moments
    assert bool(torch.isfinite(outside).all())


def test_a_stack_fits_each_member_to_its_own_moments() -> None:
    rng = np.random.default_rng(3)
    family = Finite(real(rng.normal(size=(8, 6, 2))), torch.zeros(8, 6).double())
    moments = family.mean_statistic(real(rng.dirichlet(np.full(6, 0.3), size=8)))
    ridge = real(rng.choice([0.0, 0.1], size=8))
    start = torch.zeros(8, 2).double()
    whole = family.fit(moments, ridge, start)
    for i in range(8):
        at = torch.tensor([i])
        alone = family.take(at).fit(moments[at], ridge[at], start[at])
        torch.testing.assert_close(whole[at], alone, rtol=1e-6, atol=1e-7)


def test_real_samples_are_multinomial() -> None:
    """Mean and covariance of 20,000 sampled moments against their exact values, 5 standard errors."""
    family = Finite.categorical(4)
    p = real([[0.1, 0.2, 0.3, 0.4]])
    source = FiniteReal(family, p)
    counts = torch.full((20_000, 1), 7.0).double()
    drawn = source.sample_moments(counts, np.random.default_rng(0))[:, 0].numpy()
    want, cov = source.moments()[0].numpy(), source.moments_cov()[0].numpy() / 7
    assert (np.abs(drawn.mean(0) - want) < 5 * np.sqrt(np.diag(cov) / 20_000)).all()
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=5 * cov.max() * math.sqrt(2 / 20_000))
    none = source.sample_moments(torch.zeros(1, 1).double(), np.random.default_rng(0))
    np.testing.assert_array_equal(none, 0.0)
