"""What sources of vectors deliver: outputs of Gaussian models, raw or picked, then mapped; and real data.

Each stack of sources gives the moments its consumers train on, exactly and sampled, and their covariance.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.families.base import Kept, masked_mean
from crossfeed.families.gaussian import GaussianFull, GaussianMean, square_root
from crossfeed.families.gaussian_picks import Stage, gaussian_pick, pick_samples, whole_candidates

PICKED_AT_ONCE = 32


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
        scale = square_root(cov * at["sampling_temperature"][..., None, None])
        total = num
        for number in range(len(self.stages)):
            total *= whole_candidates(at[f"{number}.candidates"])
        shape = torch.broadcast_shapes(mean.shape[:-1], settings.shape[:-1] + (mean.shape[-2],))
        noise = torch.from_numpy(rng.standard_normal((*shape, total, mean.shape[-1])))
        y = mean[..., None, :] + torch.einsum("...de,...ne->...nd", scale, noise)
        for number, stage in enumerate(self.stages):
            y = pick_samples(
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
            return masked_mean(self.consumer.statistic(y), counts)
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
                out.append(self.mean[e] + noise @ square_root(self.cov[e]).T)
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
        return square_root(self.cov)

    def moments_cov(self) -> Tensor:
        """(E, M, M)."""
        out = _moments_cov(self.consumer, self.mean, self.cov)
        for e, rows in enumerate(self.rows):
            if rows is not None:
                out[e] = torch.cov(self.consumer.statistic(rows[None])[0].T, correction=0).reshape(out[e].shape)
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
