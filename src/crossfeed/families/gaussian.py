r"""Gaussian models of vectors: unknown mean, or unknown mean and covariance.

``GaussianMean``: N(θ, Σ) with Σ known, loss ½‖z − θ‖²; the argmin is the mean of the data (the paper's experiment).
``GaussianFull``: N(m, LLᵀ), loss −log q; θ = (m, log of L's diagonal, L's strictly lower part), so that every θ is
a model.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.families.base import EXPECTATION, LIKELIHOOD, RSAMPLE, Kept, cholesky, newton_fit
from crossfeed.families.gaussian_picks import Stage, VectorReward, gaussian_pick

PICKED_AT_ONCE = 32


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
        return _root(self.cov)

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


class VectorSource:
    """A stack of E sources that deliver vectors of Gaussian models: raw or picked, then mapped.

    Args:
        producer: The producing models, one a source.
        consumer: The consuming models, one a source.
        stages: Picking stages with (E, ·) rewards; empty for raw.
        U: (E, d, e) directions of all stages' rewards, for several stages.
        matrix: (E, d, d) or None.
        shift: (E, d) or None.
        slots: Positions of the scalar settings, (E,) each.
        seed: Of quasi-Monte Carlo nodes.
    """

    def __init__(
        self,
        producer: GaussianMean | GaussianFull,
        consumer: GaussianMean | GaussianFull,
        stages: list[Stage],
        U: Tensor | None,
        matrix: Tensor | None,
        shift: Tensor | None,
        slots: dict[str, Tensor],
        seed: int = 0,
    ) -> None:
        self.producer, self.consumer, self.stages, self.U = producer, consumer, stages, U
        self.matrix, self.shift, self.slots, self.seed = matrix, shift, slots, seed
        rewards = [r for stage in stages for r in (stage.reward, stage.other) if r is not None]
        fixed = isinstance(producer, GaussianMean) and all(r.fn is None and r.Q is None for r in rewards)
        self._moves_along = (
            bool(stages) and fixed
        )  # linear rewards: the pick's law is that at mean 0, moved by the mean
        self._kept = Kept()

    def take(self, index: Tensor) -> VectorSource:
        """Sources at ``index``."""

        def at(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return VectorSource(
            self.producer.take(index),
            self.consumer.take(index),
            [s.take(index) for s in self.stages],
            at(self.U),
            at(self.matrix),
            at(self.shift),
            {key: value[index] for key, value in self.slots.items()},
            self.seed,
        )

    def _at(self, settings: Tensor) -> dict[str, Tensor]:
        return {key: settings[..., slot] for key, slot in self.slots.items()}

    def mean_cov(self, theta: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., E, d) and covariance (..., E, d, d) of what the sources deliver."""
        at = self._at(settings)
        mean, cov = self.producer.mean_cov(theta)
        if self._moves_along:
            centre, cov = self._picked_at_zero(settings)
            mean = mean + centre
            cov = cov.expand(*mean.shape, -1)
        elif self.stages and len(self._parts) > 1:
            found = [part.mean_cov(theta[..., rows, :], settings) for rows, part in self._parts]
            return torch.cat([m for m, _ in found], -2), torch.cat([c for _, c in found], -3)
        else:
            cov = cov * at["sampling_temperature"][..., None, None]
        if self.stages and not self._moves_along:
            shape = torch.broadcast_shapes(mean.shape[:-1], settings.shape[:-1] + (mean.shape[-2],))
            mean, cov = mean.expand(*shape, -1), cov.expand(*shape, -1, -1)
            mean, cov = gaussian_pick(mean, cov, self.stages, at, self.U, self.seed)
        if self.matrix is not None:
            mean = torch.einsum("...de,...e->...d", self.matrix, mean)
            cov = self.matrix @ cov @ self.matrix.transpose(-1, -2)
        return (mean if self.shift is None else mean + self.shift), cov

    @cached_property
    def _parts(self) -> list[tuple[Tensor, VectorSource]]:
        """The sources a few at a time: picks take some 10⁵ doubles each while they are worked out."""
        rows = torch.arange(len(self.slots["sampling_temperature"])).split(PICKED_AT_ONCE)
        return [(r, self.take(r)) for r in rows] if len(rows) > 1 else [(rows[0], self)]

    def _picked_at_zero(self, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., E, d) and covariance of what is picked from N(0, cov); kept for the settings tensor last seen."""
        found: tuple[Tensor, Tensor] = self._kept.get(settings, lambda: self._made_at_zero(settings))
        return found

    def _made_at_zero(self, settings: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for _, part in self._parts:
            assert isinstance(part.producer, GaussianMean)
            at = part._at(settings)
            cov = part.producer.cov * at["sampling_temperature"][..., None, None]
            found.append(gaussian_pick(torch.zeros_like(cov[..., 0]), cov, part.stages, at, part.U, part.seed))
        return torch.cat([m for m, _ in found], -2), torch.cat([c for _, c in found], -3)

    def moments(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M) expected sufficient statistic of the consumers."""
        if isinstance(self.consumer, GaussianMean) and (not self.stages or self._moves_along):
            mean = self.producer.mean_cov(theta)[0]
            mean = mean + self._picked_at_zero(settings)[0] if self.stages else mean
            mean = mean if self.matrix is None else torch.einsum("...de,...e->...d", self.matrix, mean)
            return mean if self.shift is None else mean + self.shift
        return _moments(self.consumer, *self.mean_cov(theta, settings))

    def sample(self, theta: Tensor, settings: Tensor, num: int, rng: np.random.Generator) -> Tensor:
        """(..., E, num, d) delivered samples: candidates drawn, picked and mapped one by one."""
        at = self._at(settings)
        mean, cov = self.producer.mean_cov(theta)
        scale = _root(cov * at["sampling_temperature"][..., None, None])
        total = num
        for number in range(len(self.stages)):
            total *= whole_candidates(at[f"{number}.candidates"])
        shape = torch.broadcast_shapes(mean.shape[:-1], settings.shape[:-1] + (mean.shape[-2],))
        noise = torch.from_numpy(rng.standard_normal((*shape, total, mean.shape[-1])))
        y = mean[..., None, :] + torch.einsum("...de,...ne->...nd", scale, noise)
        for number, stage in enumerate(self.stages):
            y = _pick_samples(
                y,
                stage,
                {key: at[f"{number}.{key}"] for key in ("candidates", "temperature", "noise", "other_share")},
                rng,
            )
        if self.matrix is not None:
            y = torch.einsum("...de,...ne->...nd", self.matrix, y)
        return y if self.shift is None else y + self.shift[..., None, :]

    def sample_moments(self, theta: Tensor, settings: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """(..., E, M) mean statistic of ``counts`` samples.

        Without picking the statistic is drawn from its exact law (normal mean, Wishart scatter), at a cost that
        does not depend on the counts; picked samples are drawn one by one.
        """
        if self.stages:
            y = self.sample(theta, settings, int(counts.max()), rng)
            return _masked_mean(self.consumer.statistic(y), counts)
        mean, scale = self.producer.mean_scale(theta)
        scale = scale * settings[..., self.slots["sampling_temperature"]].sqrt()[..., None, None]
        if self.matrix is not None:
            mean, scale = torch.einsum("...de,...e->...d", self.matrix, mean), self.matrix @ scale
        mean = mean if self.shift is None else mean + self.shift
        return _sampled_moments(self.consumer, mean, scale, counts, rng)

    def moments_cov(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M, M) covariance of the statistic of one sample."""
        if self.stages and isinstance(self.consumer, GaussianFull):
            raise NotAvailableError(
                "covariance of (z, zzᵀ) for picked Gaussian outcomes: no closed form is known to us; simulate finite "
                "samples instead"
            )
        return _moments_cov(self.consumer, *self.mean_cov(theta, settings))


class VectorReal:
    """A stack of real sources by mean and covariance (E, d), (E, d, d); Gaussian unless ``rows`` are given."""

    def __init__(
        self, consumer: GaussianMean | GaussianFull, mean: Tensor, cov: Tensor, rows: list[Tensor | None]
    ) -> None:
        self.consumer, self.mean, self.cov, self.rows = consumer, mean, cov, rows

    def take(self, index: Tensor) -> VectorReal:
        """Sources at ``index``."""
        return VectorReal(
            self.consumer.take(index), self.mean[index], self.cov[index], [self.rows[int(i)] for i in index]
        )

    def moments(self) -> Tensor:
        """(E, M)."""
        return _moments(self.consumer, self.mean, self.cov)

    def sample(self, batch: tuple[int, ...], num: int, rng: np.random.Generator) -> Tensor:
        """(*batch, E, num, d) samples; rows are drawn with replacement."""
        out = []
        for e, rows in enumerate(self.rows):
            if rows is None:
                noise = torch.from_numpy(rng.standard_normal((*batch, num, self.mean.shape[-1])))
                out.append(self.mean[e] + noise @ _root(self.cov[e]).T)
            else:
                out.append(rows[torch.from_numpy(rng.integers(0, len(rows), size=(*batch, num)))])
        return torch.stack(out, -3)

    def sample_moments(self, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """As in :class:`VectorSource`; rows are drawn with replacement."""
        out = _sampled_moments(self.consumer, self.mean.expand(*counts.shape, -1), self._scale, counts, rng)
        for e, rows in enumerate(self.rows):
            if rows is not None:
                p = np.full(len(rows), 1 / len(rows))
                drawn = rng.multinomial(counts[..., e].numpy().astype(np.int64), p) / np.maximum(
                    counts[..., e : e + 1].numpy(), 1
                )
                out[..., e, :] = torch.from_numpy(drawn) @ self.consumer.statistic(rows[None])[0]
        return out

    @cached_property
    def _scale(self) -> Tensor:
        return _root(self.cov)

    def moments_cov(self) -> Tensor:
        """(E, M, M)."""
        out = _moments_cov(self.consumer, self.mean, self.cov)
        for e, rows in enumerate(self.rows):
            if rows is not None:
                out[e] = torch.cov(self.consumer.statistic(rows[None])[0].T, correction=0).reshape(out[e].shape)
        return out


def _root(cov: Tensor) -> Tensor:
    """A square root of a covariance: Cholesky's, or the symmetric one where nearly singular; NaN if not finite."""
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


def _moments(consumer: GaussianMean | GaussianFull, mean: Tensor, cov: Tensor) -> Tensor:
    if isinstance(consumer, GaussianMean):
        return mean
    second = (cov + mean[..., :, None] * mean[..., None, :]).flatten(-2)
    return torch.cat([mean.expand(*second.shape[:-1], -1), second], -1)


def _moments_cov(consumer: GaussianMean | GaussianFull, mean: Tensor, cov: Tensor) -> Tensor:
    """Covariance of z, or of (z, vec zzᵀ) by Isserlis' theorem."""
    if isinstance(consumer, GaussianMean):
        return cov
    d = mean.shape[-1]
    mixed = torch.einsum("...ij,...k->...ijk", cov, mean)
    first = (mixed + mixed.transpose(-1, -2)).flatten(-2)
    cc = torch.einsum("...ik,...jl->...ijkl", cov, cov) + torch.einsum("...il,...jk->...ijkl", cov, cov)
    m2 = mean[..., :, None] * mean[..., None, :]
    parts = [
        torch.einsum(f"...{a},...{b}->...ijkl", m2, cov)
        for a, b in (("ik", "jl"), ("il", "jk"), ("jk", "il"), ("jl", "ik"))
    ]
    second = (cc + sum(parts)).reshape(*mean.shape[:-1], d * d, d * d)
    return torch.cat([torch.cat([cov, first], -1), torch.cat([first.transpose(-1, -2), second], -1)], -2)


def _masked_mean(statistic: Tensor, counts: Tensor) -> Tensor:
    keep = torch.arange(statistic.shape[-2]) < counts[..., None]
    return (statistic * keep[..., None]).sum(-2) / counts.clamp_min(1)[..., None]


def _sampled_moments(
    consumer: GaussianMean | GaussianFull, mean: Tensor, scale: Tensor, counts: Tensor, rng: np.random.Generator
) -> Tensor:
    """Mean statistic of ``counts`` draws from N(mean, scale scaleᵀ); ``scale`` may have fewer leading dimensions."""
    shape = torch.broadcast_shapes(mean.shape[:-1], counts.shape)
    d = mean.shape[-1]
    size = counts.expand(shape).clamp_min(1)[..., None]
    noise = torch.from_numpy(rng.standard_normal((*shape, d)))
    average = mean + torch.einsum("...de,...e->...d", scale, noise) / size.sqrt()
    if isinstance(consumer, GaussianMean):
        return average
    root = torch.zeros(*shape, d, d, dtype=mean.dtype)  # Bartlett: scatter = L R Rᵀ Lᵀ with Wishart(n − 1) factor R
    freedom = size - 1 - torch.arange(d)
    root.diagonal(dim1=-2, dim2=-1).copy_(torch.from_numpy(rng.chisquare(freedom.clamp_min(1).numpy())).sqrt())
    rows, cols = torch.tril_indices(d, d, -1)
    root[..., rows, cols] = torch.from_numpy(rng.standard_normal((*shape, len(rows))))
    root = root * (freedom > 0)[..., None, :]  # n ≤ d samples: R has n − 1 columns
    factor = scale @ root
    return _moments(consumer, average, factor @ factor.transpose(-1, -2) / size[..., None])


def whole_candidates(k: Tensor) -> int:
    """The one K of a batch of sources whose candidates are drawn."""
    first = float(k.reshape(-1)[0])
    if not bool(torch.isfinite(k).all()):
        raise NotAvailableError(
            "finite samples from K = inf on continuous outcomes: no candidates can be drawn; use a finite K"
        )
    if not bool((k == first).all()):
        raise NotAvailableError("finite samples with different K in one batch: run them one by one")
    if first != int(first):
        raise NotAvailableError(f"finite samples from K = {first:g} candidates: need a whole number")
    return int(first)


def _pick_samples(
    y: Tensor,
    stage: Stage,
    at: dict[str, Tensor],
    rng: np.random.Generator,
    more: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Groups of K consecutive candidates (..., n·K, d) to picks (..., n, d); ``more`` (..., n·K) adds to rewards."""
    k = int(at["candidates"].reshape(-1)[0])
    groups = y.unflatten(-2, (-1, k))
    eye = torch.eye(y.shape[-1], dtype=y.dtype)

    def choice(reward: VectorReward, add: Tensor | None) -> Tensor:
        values = reward.on(eye, y) if add is None else reward.on(eye, y) + add
        values = values.unflatten(-1, (-1, k))
        if stage.kind != "best":
            gumbel = torch.from_numpy(rng.gumbel(size=tuple(values.shape)))
            values = values / at["temperature"][..., None, None] + gumbel
        first: Tensor = values.argmax(-1)
        return first

    chosen = choice(stage.reward, more[0])
    how = torch.from_numpy(rng.random(tuple(chosen.shape)))
    noise, share = at["noise"][..., None], at["other_share"][..., None]
    if stage.other is not None:
        chosen = torch.where(how < noise + share, choice(stage.other, more[1]), chosen)
    anyone = torch.from_numpy(rng.integers(0, k, size=tuple(chosen.shape)))
    chosen = torch.where(how < noise, anyone, chosen)
    picked: Tensor = groups.gather(-2, chosen[..., None, None].expand(*chosen.shape, 1, y.shape[-1]))[..., 0, :]
    return picked
