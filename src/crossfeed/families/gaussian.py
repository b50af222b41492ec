r"""Gaussian models of vectors: unknown mean, or unknown mean and covariance.

``GaussianMean``: N(θ, Σ) with Σ known, loss ½‖z − θ‖²; the argmin is the mean of the data (the paper's experiment).
``GaussianFull``: N(m, LLᵀ), loss −log q; θ = (m, log of L's diagonal, L's strictly lower part), so that every θ is
a model.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from crossfeed.families.base import EXPECTATION, LIKELIHOOD, RSAMPLE, cholesky, newton_fit


def log_normal(z: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Log-density log N(z; mean, cov) for z (..., n, d), mean (..., n or 1, d), cov (..., d, d): (..., n)."""
    scale = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(scale, (z - mean).transpose(-1, -2), upper=False)
    log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    out: Tensor = -0.5 * white.square().sum(-2) - log_det[..., None] - 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return out


class GaussianMean:
    """A stack of N(θ, cov) with known covariance (G, d, d); θ is (..., G, d)."""

    capabilities = frozenset({LIKELIHOOD, RSAMPLE, EXPECTATION})

    def __init__(self, cov: Tensor) -> None:
        self.cov = cov
        self.num_params = self.num_moments = self.dim = cov.shape[-1]

    def take(self, index: Tensor) -> Self:
        """Members at ``index``."""
        return type(self)(self.cov[index])

    def mean_cov(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., G, d) and covariance (..., G, d, d)."""
        return theta, self.cov.expand(*theta.shape, self.dim)

    def mean_scale(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., G, d) and a square root (G, d, d) of the covariance."""
        return theta, self._scale

    @cached_property
    def _scale(self) -> Tensor:
        return square_root(self.cov)

    def log_prob(self, theta: Tensor, z: Tensor) -> Tensor:
        """Log-density log N(z; θ, cov) for z (..., G, n, d)."""
        return log_normal(z, theta[..., None, :], self.cov)

    def sample(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """(..., G, num, d), differentiable in θ."""
        return _draw(*self.mean_cov(theta), num, generator)

    def loss(self, theta: Tensor, z: Tensor) -> Tensor:
        """½‖z − θ‖²."""
        return 0.5 * (z - theta[..., None, :]).square().sum(-1)

    def statistic(self, z: Tensor) -> Tensor:
        """T(z) = z."""
        return z

    def gradient(self, theta: Tensor, moments: Tensor) -> Tensor:
        """θ − E[z]."""
        return theta - moments

    def fit(self, moments: Tensor, ridge: Tensor, start: Tensor) -> Tensor:
        """E[z] / (1 + ridge)."""
        return moments / (1 + ridge[..., None])

    def entropy(self, theta: Tensor) -> Tensor:
        """(..., G) differential entropy in nats."""
        return _entropy(self.mean_cov(theta)[1])


class GaussianFull:
    """A stack of G models N(m, LLᵀ) with both unknown."""

    capabilities = frozenset({LIKELIHOOD, RSAMPLE, EXPECTATION})

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.num_params = dim + dim * (dim + 1) // 2
        self.num_moments = dim + dim * dim
        rows, cols = torch.tril_indices(dim, dim, -1)
        self._rows, self._cols = rows, cols

    def take(self, index: Tensor) -> Self:
        """Members at ``index``; the family has no constants, so itself."""
        return self

    def pack(self, mean: Tensor, cov: Tensor) -> Tensor:
        """θ of N(mean, cov)."""
        scale = cholesky(cov)
        lower = scale[..., self._rows, self._cols]
        return torch.cat([mean, scale.diagonal(dim1=-2, dim2=-1).log(), lower], -1)

    def mean_scale(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and lower Cholesky factor."""
        d = self.dim
        scale = torch.diag_embed(theta[..., d : 2 * d].exp())
        place = torch.zeros(len(self._rows), d, d, dtype=theta.dtype)
        place[torch.arange(len(self._rows)), self._rows, self._cols] = 1.0
        return theta[..., :d], scale + torch.einsum("...k,kij->...ij", theta[..., 2 * d :], place)

    def mean_cov(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., G, d) and covariance (..., G, d, d)."""
        mean, scale = self.mean_scale(theta)
        return mean, scale @ scale.transpose(-1, -2)

    def log_prob(self, theta: Tensor, z: Tensor) -> Tensor:
        """Log-density log N(z; m, LLᵀ) for z (..., G, n, d)."""
        mean, cov = self.mean_cov(theta)
        return log_normal(z, mean[..., None, :], cov)

    def sample(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """(..., G, num, d), differentiable in θ."""
        return _draw(*self.mean_cov(theta), num, generator)

    def loss(self, theta: Tensor, z: Tensor) -> Tensor:
        """−log q(z; θ)."""
        return -self.log_prob(theta, z)

    def statistic(self, z: Tensor) -> Tensor:
        """T(z) = (z, vec(zzᵀ))."""
        return torch.cat([z, (z[..., :, None] * z[..., None, :]).flatten(-2)], -1)

    def gradient(self, theta: Tensor, moments: Tensor) -> Tensor:
        """∇ E[−log q]: Λ(m − E z) for the mean; for L, with S = E(z−m)(z−m)ᵀ, the lower part of L⁻ᵀ(I − L⁻¹S L⁻ᵀ)."""
        d = self.dim
        mean, scale = self.mean_scale(theta)
        first, second = moments[..., :d], moments[..., d:].unflatten(-1, (d, d))
        cross = mean[..., :, None] * first[..., None, :]
        spread = second - cross - cross.transpose(-1, -2) + mean[..., :, None] * mean[..., None, :]
        inverse = torch.linalg.inv(scale)
        precision = inverse.transpose(-1, -2) @ inverse
        by_mean = torch.einsum("...de,...e->...d", precision, mean - first)
        inner = torch.eye(d, dtype=theta.dtype) - inverse @ spread @ inverse.transpose(-1, -2)
        by_scale = inverse.transpose(-1, -2) @ inner
        by_log = by_scale.diagonal(dim1=-2, dim2=-1) * scale.diagonal(dim1=-2, dim2=-1)
        return torch.cat([by_mean, by_log, by_scale[..., self._rows, self._cols]], -1)

    def fit(self, moments: Tensor, ridge: Tensor, start: Tensor) -> Tensor:
        """Mean and covariance of the data (closed form); Newton with a ridge."""
        d = self.dim
        mean, second = moments[..., :d], moments[..., d:].unflatten(-1, (d, d))
        cov = second - mean[..., :, None] * mean[..., None, :]
        failed = torch.linalg.cholesky_ex(cov)[1] != 0
        if bool(failed.any()):  # a collapsed model: keep going, with the smallest variance doubles can carry
            failed &= torch.isfinite(cov).all(-1).all(-1)
            values, vectors = torch.linalg.eigh(cov[failed])
            values = torch.maximum(values, 1e-13 * values[..., -1:].clamp_min(1e-250))
            cov = cov.clone()
            cov[failed] = vectors * values[..., None, :] @ vectors.transpose(-1, -2)
        theta = self.pack(mean, cov)
        return newton_fit(self, moments, ridge, theta) if bool((ridge > 0).any()) else theta

    def entropy(self, theta: Tensor) -> Tensor:
        """(..., G) differential entropy in nats; falls without bound on collapse."""
        return self.dim / 2 * math.log(2 * math.pi * math.e) + theta[..., self.dim : 2 * self.dim].sum(-1)


def square_root(cov: Tensor) -> Tensor:
    """L (..., dim, dim) with LLᵀ the covariance: Cholesky's, or the symmetric one where nearly singular; NaN if not finite."""
    scale, failed = torch.linalg.cholesky_ex(cov)
    if bool((failed != 0).any()):
        broken = ~torch.isfinite(cov).all(-1).all(-1)[..., None, None]
        values, vectors = torch.linalg.eigh(torch.where(broken, torch.zeros_like(cov), cov))
        other = torch.where(broken, torch.nan, vectors * values.clamp_min(0.0).sqrt()[..., None, :])
        scale = torch.where((failed != 0)[..., None, None], other, scale)
    return scale


def _draw(mean: Tensor, cov: Tensor, num: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(*mean.shape[:-1], num, mean.shape[-1], dtype=mean.dtype, generator=generator)
    return mean[..., None, :] + torch.einsum("...de,...ne->...nd", torch.linalg.cholesky(cov), noise)


def _entropy(cov: Tensor) -> Tensor:
    d = cov.shape[-1]
    out: Tensor = d / 2 * math.log(2 * math.pi * math.e) + 0.5 * torch.linalg.slogdet(cov)[1]
    return out
