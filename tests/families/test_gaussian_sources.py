"""Sources of vectors: sampled moments and their covariance, raw and real."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stacks import covariance, moments_of, real

from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.gaussian_sources import VectorReal, VectorSource


def raw(producer: GaussianMean | GaussianFull, consumer: GaussianMean | GaussianFull) -> VectorSource:
    return VectorSource(producer, consumer, [], None, None, None, {"sampling_temperature": torch.tensor([0])})


@pytest.mark.parametrize("count", [1, 2, 3, 40])
@pytest.mark.parametrize("family", [GaussianMean(torch.eye(2).double()[None]), GaussianFull(2)], ids=["mean", "full"])
def test_raw_sample_moments_have_the_law_of_drawn_samples(count: int, family: GaussianMean | GaussianFull) -> None:
    """Mean and covariance of 100,000 sampled moments against exact ones (5 standard errors), also for fewer than d + 1."""
    rng = np.random.default_rng(1)
    producer, cov, mean = GaussianMean(real(covariance(rng, 2))[None]), None, real([[0.4, -0.8]])
    source = raw(producer, family)
    temperature = real([1.5])
    counts = torch.full((100_000, 1), float(count)).double()
    drawn = source.sample_moments(mean, temperature, counts, np.random.default_rng(2))[:, 0].numpy()
    want = source.moments(mean, temperature)[0].numpy()
    cov = source.moments_cov(mean, temperature)[0].numpy() / count
    scale = np.sqrt(np.diag(cov))
    assert (np.abs(drawn.mean(0) - want) < 5 * scale / math.sqrt(len(drawn))).all()
    off = drawn - want
    products = off[:, :, None] * off[:, None, :]
    assert (np.abs(products.mean(0) - cov) <= 5 * products.std(0) / math.sqrt(len(drawn))).all()


def test_covariance_of_second_moments_is_that_of_samples() -> None:
    rng = np.random.default_rng(3)
    family = GaussianFull(3)
    producer = GaussianMean(real(covariance(rng, 3))[None])
    mean = real(rng.normal(size=(1, 3)))
    exact = raw(producer, family).moments_cov(mean, real([1.0]))[0]
    z = producer.sample(mean, 400_000, torch.Generator().manual_seed(0))
    statistic = family.statistic(z)[0].numpy()
    off = statistic - statistic.mean(0)
    products = off[:, :, None] * off[:, None, :]
    band = 5 * products.std(0) / math.sqrt(len(off))
    assert (np.abs(products.mean(0) - exact.numpy()) <= band).all()


def test_batched_settings_meet_unbatched_parameters() -> None:
    """Raw sources of covariance models: the temperature varies, the parameters do not."""
    family = GaussianFull(2)
    source = raw(family, family)
    theta = family.pack(real([[1.0, 2.0]]), torch.eye(2).double()[None])
    temperatures = real([[0.5], [1.0], [2.0]])
    whole = source.moments(theta, temperatures)
    assert whole.shape == (3, 1, 6)
    for row, t in zip(whole, temperatures, strict=True):
        torch.testing.assert_close(row, source.moments(theta, t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("family", [GaussianMean(torch.eye(2).double()[None]), GaussianFull(2)], ids=["mean", "full"])
def test_rows_are_drawn_with_replacement_even_if_they_are_flat(family: GaussianMean | GaussianFull) -> None:
    """Rows on a line have no Gaussian density; they are resampled as they are."""
    rows = real([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    source = VectorReal(family, rows.mean(0)[None], torch.cov(rows.T, correction=0)[None], [rows])
    counts = torch.full((20_000, 1), 4.0).double()
    drawn = source.sample_moments(counts, np.random.default_rng(0))[:, 0].numpy()
    want, cov = source.moments()[0].numpy(), source.moments_cov()[0].numpy() / 4
    assert (np.abs(drawn.mean(0) - want) <= 5 * np.sqrt(np.diag(cov) / 20_000) + 1e-12).all()
    np.testing.assert_allclose(drawn.var(0), np.diag(cov), rtol=0.1, atol=1e-12)
    assert set(np.unique(source.sample((2,), 50, np.random.default_rng(1))[..., 0])) == {0.0, 1.0, 3.0}


def test_real_moments_are_a_gaussian() -> None:
    rng = np.random.default_rng(4)
    mean, cov = real([[1.0, -1.0]]), real(covariance(rng, 2))[None]
    source = VectorReal(GaussianFull(2), mean, cov, [None])
    torch.testing.assert_close(source.moments(), moments_of(mean[0].numpy(), cov[0].numpy()), rtol=1e-14, atol=1e-14)
    z = source.sample((), 200_000, np.random.default_rng(5))
    torch.testing.assert_close(torch.cov(z[0].T), cov[0], rtol=0.03, atol=0.02)
