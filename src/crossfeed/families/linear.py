r"""Linear-Gaussian models of answers given inputs: y | x ~ N(W x, noise), loss ½‖y − W x‖².

θ = vec(W) row by row. Moments are (E[y xᵀ], E[x xᵀ]); the gradient is W E[xxᵀ] − E[yxᵀ], so the curvature E[xxᵀ] ⊗
I depends on *where the inputs come from*: each source and each evaluation has a domain of its own, and a model
moves on its own evaluation domain only through the directions that its training domains share with it (preference
domain mismatch).
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.families.base import EXPECTATION, LIKELIHOOD, RSAMPLE, masked_mean
from crossfeed.families.gaussian import log_normal
from crossfeed.families.gaussian_picks import (
    Stage,
    VectorReward,
    directions,
    gaussian_pick,
    pick_samples,
    whole_candidates,
)


class LinearGaussian:
    """A stack of y | x ~ N(W x, noise); θ is (..., G, outputs · inputs), noise (G, outputs, outputs).

    Outcomes z are concatenated (x, y).
    """

    capabilities = frozenset({LIKELIHOOD, RSAMPLE, EXPECTATION})

    def __init__(self, noise: Tensor, inputs: int) -> None:
        self.noise, self.inputs, self.outputs = noise, inputs, noise.shape[-1]
        self.num_params = self.inputs * self.outputs
        self.num_moments = self.num_params + self.inputs**2

    def take(self, index: Tensor) -> Self:
        """Members at ``index``."""
        return type(self)(self.noise[index], self.inputs)

    def weights(self, theta: Tensor) -> Tensor:
        """W (..., G, outputs, inputs)."""
        out: Tensor = theta.unflatten(-1, (self.outputs, self.inputs))
        return out

    def answer(self, theta: Tensor, x: Tensor) -> Tensor:
        """W x for x (..., G, n, inputs): (..., G, n, outputs)."""
        return torch.einsum("...oi,...ni->...no", self.weights(theta), x)

    def log_prob(self, theta: Tensor, z: Tensor) -> Tensor:
        """Log-density log q(y | x; θ) for z = (x, y)."""
        x, y = z[..., : self.inputs], z[..., self.inputs :]
        return log_normal(y, self.answer(theta, x), self.noise)

    def sample_at(self, theta: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """One answer at each input x (..., G, n, inputs), as z = (x, y); differentiable in θ."""
        mean = self.answer(theta, x)
        noise = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
        y = mean + torch.einsum("...de,...ne->...nd", torch.linalg.cholesky(self.noise), noise)
        return torch.cat([x.expand(*y.shape[:-1], -1), y], -1)

    def sample(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Answers at standard normal inputs; use :meth:`sample_at` for a domain."""
        x = torch.randn(*theta.shape[:-1], num, self.inputs, dtype=theta.dtype, generator=generator)
        return self.sample_at(theta, x, generator)

    def loss(self, theta: Tensor, z: Tensor) -> Tensor:
        """½‖y − W x‖²."""
        x, y = z[..., : self.inputs], z[..., self.inputs :]
        return 0.5 * (y - self.answer(theta, x)).square().sum(-1)

    def statistic(self, z: Tensor) -> Tensor:
        """T(z) = (vec yxᵀ, vec xxᵀ)."""
        x, y = z[..., : self.inputs], z[..., self.inputs :]
        return torch.cat(
            [(y[..., :, None] * x[..., None, :]).flatten(-2), (x[..., :, None] * x[..., None, :]).flatten(-2)], -1
        )

    def _split(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        cross = moments[..., : self.num_params].unflatten(-1, (self.outputs, self.inputs))
        return cross, moments[..., self.num_params :].unflatten(-1, (self.inputs, self.inputs))

    def gradient(self, theta: Tensor, moments: Tensor) -> Tensor:
        """vec(W E[xxᵀ] − E[yxᵀ])."""
        cross, second = self._split(moments)
        return (self.weights(theta) @ second - cross).flatten(-2)

    def fit(self, moments: Tensor, ridge: Tensor, start: Tensor) -> Tensor:
        """E[yxᵀ] (E[xxᵀ] + ridge)⁻¹."""
        cross, second = self._split(moments)
        matrix = second + ridge[..., None, None] * torch.eye(self.inputs, dtype=second.dtype)
        sizes = torch.linalg.eigvalsh(torch.nan_to_num(matrix))
        if bool((sizes[..., 0] <= 1e-14 * sizes[..., -1]).any()):
            raise NotAvailableError(
                "linear_gaussian: the inputs that a model is trained on do not span their space, so that its matrix is "
                "not determined; give it a ridge, or inputs (samples) in more directions"
            )
        out: Tensor = torch.linalg.solve(matrix, cross, left=False).flatten(-2)
        return out

    def entropy(self, theta: Tensor) -> Tensor:
        """(..., G) entropy of an answer given its input; constant, since the noise is known."""
        d = self.outputs
        value = d / 2 * np.log(2 * np.pi * np.e) + 0.5 * torch.linalg.slogdet(self.noise)[1]
        out: Tensor = value.expand(theta.shape[:-1])
        return out


class Inputs:
    """A stack of E input domains as nodes (E, m, inputs) with weights (E, m), exact where the domain lists points.

    ``cov`` (E, inputs, inputs) with ``mean`` (E, inputs) marks Gaussian domains, from which finite samples are drawn.
    """

    def __init__(self, nodes: Tensor, weights: Tensor, mean: Tensor | None = None, cov: Tensor | None = None) -> None:
        self.nodes, self.weights, self.mean, self.cov = nodes, weights, mean, cov

    def take(self, index: Tensor) -> Inputs:
        """Domains at ``index``."""
        return Inputs(
            self.nodes[index],
            self.weights[index],
            None if self.mean is None else self.mean[index],
            None if self.cov is None else self.cov[index],
        )

    def draw(self, batch: tuple[int, ...], num: int, rng: np.random.Generator) -> Tensor:
        """(*batch, E, num, inputs)."""
        count, m = self.weights.shape
        if self.cov is not None and self.mean is not None:
            noise = torch.from_numpy(rng.standard_normal((*batch, count, num, self.nodes.shape[-1])))
            return self.mean[:, None] + torch.einsum("eij,...enj->...eni", torch.linalg.cholesky(self.cov), noise)
        at = [torch.from_numpy(rng.choice(m, size=(*batch, num), p=w.numpy())) for w in self.weights]
        return torch.stack([self.nodes[e][index] for e, index in enumerate(at)], -3)


class LinearSource:
    """A stack of E sources of (x, y): x from a domain, y from a producing model, picked given x, then mapped.

    Rewards act on y; ``rewards_on_x`` (E, outputs, inputs) per stage reward adds Q_yx x to g for rewards on (x, y).
    """

    def __init__(
        self,
        producer: LinearGaussian,
        consumer: LinearGaussian,
        inputs: Inputs,
        stages: list[Stage],
        cross: list[tuple[Tensor | None, Tensor | None]],
        U: Tensor | None,
        matrix: Tensor | None,
        shift: Tensor | None,
        slots: dict[str, Tensor],
        seed: int = 0,
    ) -> None:
        self.producer, self.consumer, self.inputs, self.stages, self.cross = producer, consumer, inputs, stages, cross
        self.U, self.matrix, self.shift, self.slots, self.seed = U, matrix, shift, slots, seed

    def take(self, index: Tensor) -> LinearSource:
        """Sources at ``index``."""

        def at(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return LinearSource(
            self.producer.take(index),
            self.consumer.take(index),
            self.inputs.take(index),
            [s.take(index) for s in self.stages],
            [(at(a), at(b)) for a, b in self.cross],
            at(self.U),
            at(self.matrix),
            at(self.shift),
            {key: value[index] for key, value in self.slots.items()},
            self.seed,
        )

    def _conditioned(self, x: Tensor) -> list[Stage]:
        """Rewards as functions of y at inputs x (..., E, m, inputs)."""

        def given(reward: VectorReward | None, cross: Tensor | None) -> VectorReward | None:
            if reward is None:
                return None
            if reward.fn is not None:
                raise NotAvailableError("callable rewards on regression picks; use a linear or quadratic reward")
            g = reward.g[..., None, :]
            g = g if cross is None else g + torch.einsum("eoi,...emi->...emo", cross, x)
            return VectorReward(g, None if reward.Q is None else reward.Q[..., None, :, :])

        out = []
        for stage, (a, b) in zip(self.stages, self.cross, strict=True):
            main = given(stage.reward, a)
            assert main is not None
            out.append(Stage(stage.kind, main, given(stage.other, b)))
        return out

    def answer_mean_cov(self, theta: Tensor, settings: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., E, m, outputs) and covariance of delivered answers at inputs x (E, m, inputs)."""
        at = {key: settings[..., slot][..., None] for key, slot in self.slots.items()}
        mean = self.producer.answer(theta, x)
        cov = self.producer.noise[:, None] * at["sampling_temperature"][..., None, None]
        if self.stages:
            stages = self._conditioned(x)
            flat = all(r is None or r.Q is None for s in self.stages for r in (s.reward, s.other)) and all(
                c is None for pair in self.cross for c in pair
            )
            centre = torch.zeros_like(mean[..., :1, :]) if flat else mean  # a linear reward moves every answer alike
            shape = torch.broadcast_shapes(centre.shape[:-1], cov.shape[:-2])
            U = None if self.U is None else _all_directions(stages, mean.shape[-1])
            picked, cov = gaussian_pick(centre.expand(*shape, -1), cov.expand(*shape, -1, -1), stages, at, U, self.seed)
            mean = mean + (picked - centre)
        if self.matrix is not None:
            mean = torch.einsum("eop,...emp->...emo", self.matrix, mean)
            cov = self.matrix[:, None] @ cov @ self.matrix[:, None].transpose(-1, -2)
        return (mean if self.shift is None else mean + self.shift[:, None]), cov

    def moments(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M) expected sufficient statistic."""
        x, w = self.inputs.nodes, self.inputs.weights
        mean, _ = self.answer_mean_cov(theta, settings, x)
        cross = torch.einsum("em,...emo,emi->...eoi", w, mean, x).flatten(-2)
        second = torch.einsum("em,emi,emj->eij", w, x, x).flatten(-2)
        return torch.cat([cross, second.expand(*cross.shape[:-1], -1)], -1)

    def sample(self, theta: Tensor, settings: Tensor, num: int, rng: np.random.Generator) -> Tensor:
        """(..., E, num, inputs + outputs) delivered pairs (x, y), drawn, picked and mapped one by one."""
        batch = torch.broadcast_shapes(theta.shape[:-2], settings.shape[:-1])
        x = self.inputs.draw(tuple(batch), num, rng)
        at = {key: settings[..., slot] for key, slot in self.slots.items()}
        total = num
        for number in range(len(self.stages)):
            total *= whole_candidates(at[f"{number}.candidates"])
        repeat = total // max(num, 1)
        mean = self.producer.answer(theta, x).repeat_interleave(repeat, -2)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape)))
        scale = torch.linalg.cholesky(self.producer.noise * at["sampling_temperature"][..., None, None])
        y = mean + torch.einsum("...de,...ne->...nd", scale, noise)
        for number, (stage, cross) in enumerate(zip(self.stages, self.cross, strict=True)):
            keys = ("candidates", "temperature", "noise", "other_share")
            wide = x.repeat_interleave(y.shape[-2] // max(num, 1), -2)
            main, other = (None if c is None else torch.einsum("...no,...oi,...ni->...n", y, c, wide) for c in cross)
            y = pick_samples(y, stage, {key: at[f"{number}.{key}"] for key in keys}, rng, (main, other))
        if self.matrix is not None:
            y = torch.einsum("eop,...enp->...eno", self.matrix, y)
        if self.shift is not None:
            y = y + self.shift[:, None]
        return torch.cat([x, y], -1)

    def sample_moments(self, theta: Tensor, settings: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """(..., E, M) mean statistic of ``counts`` samples, drawn one by one."""
        z = self.sample(theta, settings, int(counts.max()), rng)
        return masked_mean(self.consumer.statistic(z), counts)

    def moments_cov(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M, M) covariance of the statistic of one sample."""
        mean, cov = self.answer_mean_cov(theta, settings, self.inputs.nodes)
        return _statistic_cov(self.consumer, self.inputs.nodes, self.inputs.weights, mean, cov)


class LinearReal:
    """A stack of real sources of (x, y): nodes x (E, m, inputs) with weights, mean answers and covariance at each."""

    def __init__(self, consumer: LinearGaussian, inputs: Inputs, mean: Tensor, cov: Tensor) -> None:
        self.consumer, self.inputs, self.mean, self.cov = consumer, inputs, mean, cov

    def take(self, index: Tensor) -> LinearReal:
        """Sources at ``index``."""
        return LinearReal(self.consumer.take(index), self.inputs.take(index), self.mean[index], self.cov[index])

    def moments(self) -> Tensor:
        """(E, M)."""
        x, w = self.inputs.nodes, self.inputs.weights
        cross = torch.einsum("em,emo,emi->eoi", w, self.mean, x).flatten(-2)
        return torch.cat([cross, torch.einsum("em,emi,emj->eij", w, x, x).flatten(-2)], -1)

    def sample(self, batch: tuple[int, ...], num: int, rng: np.random.Generator) -> Tensor:
        """(*batch, E, num, inputs + outputs) pairs (x, y) drawn with replacement, answers with their noise."""
        size, m = self.inputs.weights.shape
        out = []
        for e in range(size):
            at = torch.from_numpy(rng.choice(m, size=(*batch, num), p=self.inputs.weights[e].numpy()))
            noise = torch.from_numpy(rng.standard_normal((*batch, num, self.mean.shape[-1])))
            scale = (
                torch.linalg.cholesky_ex(self.cov[e])[0]
                if bool((self.cov[e] != 0).any())
                else torch.zeros_like(self.cov[e])
            )
            y = self.mean[e][at] + torch.einsum("...mde,...me->...md", scale.expand(m, -1, -1)[at], noise)
            out.append(torch.cat([self.inputs.nodes[e][at], y], -1))
        return torch.stack(out, -3)

    def sample_moments(self, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """(..., E, M) mean statistic of ``counts`` pairs."""
        z = self.sample(tuple(counts.shape[:-1]), int(counts.max()), rng)
        return masked_mean(self.consumer.statistic(z), counts)

    def moments_cov(self) -> Tensor:
        """(E, M, M)."""
        cov = self.cov.expand(*self.mean.shape, self.mean.shape[-1])
        return _statistic_cov(self.consumer, self.inputs.nodes, self.inputs.weights, self.mean, cov)


def _all_directions(stages: list[Stage], dim: int) -> Tensor:
    """Basis of what the rewards of all stages look at, given the inputs: with Q_yx it turns with x."""
    rewards = [r for s in stages for r in (s.reward, s.other) if r is not None]
    shape = torch.broadcast_shapes(*(r.g.shape for r in rewards))
    return directions([VectorReward(r.g.expand(shape), r.Q) for r in rewards], dim)


def _statistic_cov(consumer: LinearGaussian, x: Tensor, w: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    statistic = consumer.statistic(torch.cat([x.expand(*mean.shape[:-1], -1), mean], -1))
    average = torch.einsum("em,...emk->...ek", w, statistic)
    off = statistic - average[..., None, :]
    total = torch.einsum("em,...emk,...eml->...ekl", w, off, off)
    within = torch.einsum("em,...emop,emi,emj->...eoipj", w, cov.expand(*mean.shape, mean.shape[-1]), x, x)
    d = consumer.num_params
    within = within.reshape(*within.shape[:-4], d, d)
    total = total.clone()
    total[..., :d, :d] = total[..., :d, :d] + within
    return total
