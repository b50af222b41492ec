r"""What is watched while a loop runs: diversity, spread and distance to the real data, for every model and any batch.

Distance to the real data, by family, chosen so that it is finite for every model the family can be:

    finite outcome sets     total variation  ½ Σ_y |q(y) − p_real(y)|, from 0 to 1
    Gaussian vectors        2-Wasserstein to the Gaussian with the real data's mean m_r and covariance Σ_r:
                            W₂² = ‖m − m_r‖² + tr Σ + tr Σ_r − 2 tr (Σ_r^{1/2} Σ Σ_r^{1/2})^{1/2}
    linear regression       Frobenius distance ‖W − W_r‖ to the least-squares fit W_r of the real data

A model's real data are its own real sources in proportion to their weights (equally where all are 0). A model without
real sources is held against the average of what the ecosystem's other models of its kind have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.dynamics.program import ModelGroup, Program
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.linear import LinearGaussian

COLLAPSED_ENTROPY = 1e-6
COLLAPSED_SPREAD = 1e-6


@dataclass(frozen=True)
class _Target:
    """Real data of a model group: a distribution (G, n), or mean (G, d) and covariance (G, d, d), or weights (G, d)."""

    first: Tensor
    second: Tensor | None = None


class Measures:
    """Diagnostics of a compiled ecosystem: methods take Θ (..., D), give (..., N), NaN where there is none."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._targets = [_target(program, number) for number in range(len(program.model_groups))]
        coordinates = getattr(program.outcomes, "coordinates", None)
        self._coordinates: Tensor | None = coordinates
        self._first_scale = self._scales(program.start)

    @property
    def distance_name(self) -> str:
        """The distance in words."""
        family = self.program.model_groups[0].family
        if isinstance(family, Finite):
            return "total variation distance to the real data"
        if isinstance(family, LinearGaussian):
            return "parameter distance to the least-squares fit of the real data"
        return "2-Wasserstein distance to the real data"

    @property
    def spread_name(self) -> str:
        """The spread in words."""
        return "standard deviation of the outputs, all coordinates together"

    def distance(self, theta: Tensor) -> Tensor:
        """Distance of each model to its real data."""
        out = self._nothing(theta)
        for group, target in zip(self.program.model_groups, self._targets, strict=True):
            if target is not None:
                out[..., group.members] = _distance(group, target, theta[..., group.theta_index])
        return out

    def spread(self, theta: Tensor) -> Tensor:
        """√tr of the outputs' covariance, where a model's covariance can change and outcomes have coordinates."""
        out = self._nothing(theta)
        for group in self.program.model_groups:
            t = theta[..., group.theta_index]
            if isinstance(group.family, GaussianFull):
                total = group.family.mean_cov(t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)
            elif isinstance(group.family, Finite) and self._coordinates is not None:
                q = group.family.log_probs(t).exp()
                mean = q @ self._coordinates
                total = (q @ self._coordinates.square() - mean.square()).clamp_min(0.0).sum(-1)
            else:
                continue
            out[..., group.members] = total.sqrt()
        return out

    def entropy(self, theta: Tensor) -> Tensor:
        """Entropy of each model's outputs in nats."""
        return self.program.entropy(theta)

    def collapsed(self, theta: Tensor) -> Tensor:
        """Whether each model has collapsed, as (..., N) booleans.

        On a finite outcome set: its entropy is below 1e-6 nats. A Gaussian with its own covariance: its smallest
        standard deviation has fallen to 1e-6 of its largest at the start, where double precision no longer carries its
        covariance. Other models cannot collapse.
        """
        out = torch.zeros(*theta.shape[:-1], self.program.num_models, dtype=torch.bool)
        scales = self._scales(theta)
        for number, group in enumerate(self.program.model_groups):
            t = theta[..., group.theta_index]
            if isinstance(group.family, Finite):
                out[..., group.members] = group.family.entropy(t) < COLLAPSED_ENTROPY
            elif isinstance(group.family, GaussianFull):
                first = self._first_scale[number]
                now = scales[number]
                assert first is not None
                assert now is not None
                out[..., group.members] = now[..., 0] < COLLAPSED_SPREAD * first[..., -1]
        return out

    def _scales(self, theta: Tensor) -> list[Tensor | None]:
        """Standard deviations along the principal axes, ascending, of Gaussians with their own covariance."""
        out: list[Tensor | None] = []
        for group in self.program.model_groups:
            if isinstance(group.family, GaussianFull):
                _, factor = group.family.mean_scale(theta[..., group.theta_index])
                finite = torch.isfinite(factor).all(-1).all(-1)[..., None, None]
                out.append(torch.linalg.svdvals(torch.where(finite, factor, torch.ones_like(factor))).flip(-1))
            else:
                out.append(None)
        return out

    def _nothing(self, theta: Tensor) -> Tensor:
        return torch.full((*theta.shape[:-1], self.program.num_models), torch.nan, dtype=theta.dtype)


def _target(program: Program, number: int) -> _Target | None:
    """What the models of one group are held against; None where the ecosystem has no real data for them."""
    group = program.model_groups[number]
    size = len(group.members)
    kept = [s for s in program.source_groups if s.group == number and s.theta_index is None]
    weights, given = torch.zeros(2, size, dtype=torch.float64)
    total: Tensor | None = None
    for s in kept:
        given.index_add_(0, s.row, program.settings[s.weight_slot])
    for s in kept:
        w = program.settings[s.weight_slot]
        w = torch.where(given[s.row] > 0, w, torch.ones_like(w))
        value = _real_parts(group, s.kernel)
        total = torch.zeros(size, value.shape[-1], dtype=torch.float64) if total is None else total
        total.index_add_(0, s.row, value * w[:, None])
        weights.index_add_(0, s.row, w)
    if total is None:
        return None
    have = weights > 0
    average = total[have] / weights[have, None]
    parts = average.mean(0).expand(size, -1).clone()
    parts[have] = average
    if isinstance(group.family, Finite):
        return _Target(parts)
    if isinstance(group.family, LinearGaussian):
        fitted = group.family.fit(parts, torch.full((size,), 1e-12, dtype=torch.float64), parts)
        return _Target(fitted)
    d = group.family.dim
    mean, second = parts[:, :d], parts[:, d:].unflatten(-1, (d, d))
    return _Target(mean, second - mean[:, :, None] * mean[:, None, :])


def _real_parts(group: ModelGroup, kernel: object) -> Tensor:
    """(E, ·) what averages over real sources: probabilities, first and second moments, or regression moments."""
    if isinstance(group.family, Finite):
        p: Tensor = kernel.p  # type: ignore[attr-defined]
        return p
    if isinstance(group.family, LinearGaussian):
        moments: Tensor = kernel.moments()  # type: ignore[attr-defined]
        return moments
    mean, cov = kernel.mean, kernel.cov  # type: ignore[attr-defined]
    return torch.cat([mean, (cov + mean[:, :, None] * mean[:, None, :]).flatten(1)], 1)


def _distance(group: ModelGroup, target: _Target, theta: Tensor) -> Tensor:
    family = group.family
    if isinstance(family, Finite):
        return 0.5 * (family.log_probs(theta).exp() - target.first).abs().sum(-1)
    if isinstance(family, LinearGaussian):
        gap: Tensor = (theta - target.first).norm(dim=-1)
        return gap
    assert isinstance(family, (GaussianMean, GaussianFull))
    assert target.second is not None
    mean, cov = family.mean_cov(theta)
    return wasserstein(mean, cov, target.first, target.second)


def wasserstein(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """2-Wasserstein distance between Gaussians, (...), from means (..., d) and covariances (..., d, d).

    Example:
        >>> one, two = torch.zeros(2).double(), torch.tensor([3.0, 4.0]).double()
        >>> eye = torch.eye(2).double()
        >>> float(wasserstein(one, eye, two, 4 * eye))  # √(25 + 2·(2 − 1)²)
        5.196152422706632
    """
    values, vectors = torch.linalg.eigh(other_cov)
    root = vectors * values.clamp_min(0.0).sqrt()[..., None, :] @ vectors.transpose(-1, -2)
    inner = root @ cov @ root
    overlap = torch.linalg.eigvalsh(0.5 * (inner + inner.transpose(-1, -2))).clamp_min(0.0).sqrt().sum(-1)
    traces = (cov + other_cov).diagonal(dim1=-2, dim2=-1).sum(-1)
    squared: Tensor = (mean - other_mean).square().sum(-1) + (traces - 2 * overlap).clamp_min(0.0)
    return squared.sqrt()
