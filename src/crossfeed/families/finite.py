r"""Finite outcome sets: the full simplex and log-linear models.

Both are q(y; θ) ∝ base(y) exp(φ(y)·θ), trained by −log q, whose gradient is E_q[φ] − E_P[φ] and whose Hessian is the
Fisher matrix Cov_q(φ). For the categorical family φ is an orthonormal basis of the vectors that sum to zero (isometric
log-ratio coordinates), so that every strictly positive distribution is reached, by exactly one θ, without singling out
an outcome.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from scipy.linalg import helmert
from torch import Tensor

from crossfeed.families.base import EXPECTATION, LIKELIHOOD, Kept, newton_fit
from crossfeed.families.picks import operator

FLOOR = 1e-30
DEAD = -1e5
STAGE_KEYS = ("candidates", "temperature", "noise", "other_share")


class Finite:
    """A stack of log-linear models on one finite outcome set.

    Args:
        features: (G, n, d) φ, or (1, n, d) shared by the stack.
        log_base: (G, n) or (1, n) logarithm of the base measure.
        full: Whether φ spans all log-ratios (categorical); the fit is then closed form. An outcome without any mass is
            given FLOOR = 1e-30, so that parameters stay finite; it can only come back through another source.
        live: (G, n) or (1, n) outcomes a categorical model can have, or None for all. The others have probability zero;
            as many coordinates of θ are idle: they enter nothing but the loss, by ½θ², and so rest at 0.
    """

    capabilities = frozenset({LIKELIHOOD, EXPECTATION})

    def __init__(self, features: Tensor, log_base: Tensor, full: bool = False, live: Tensor | None = None) -> None:
        self.features, self.log_base, self.full, self.live = features, log_base, full, live
        self.num_outcomes, self.num_params = features.shape[-2:]
        self.num_moments = self.num_params
        self.idle: Tensor | None = None
        if live is not None:
            self.idle = (torch.arange(self.num_params) >= live.sum(-1, keepdim=True) - 1).to(features.dtype)

    @classmethod
    def categorical(cls, num_outcomes: int, live: Tensor | None = None) -> Self:
        """The full simplex on ``num_outcomes`` outcomes, or on those that are ``live`` (G, n); d = num_outcomes − 1."""
        if live is None or bool(live.all()):
            basis = torch.from_numpy(np.ascontiguousarray(helmert(num_outcomes).T))
            return cls(basis[None], torch.zeros(1, num_outcomes, dtype=basis.dtype), full=True)
        if bool((live == live[:1]).all()):
            live = live[:1]
        basis = torch.zeros(*live.shape, num_outcomes - 1, dtype=torch.float64)
        for member, mask in zip(basis, live, strict=True):
            size = int(mask.sum())
            member[mask, : size - 1] = torch.from_numpy(np.ascontiguousarray(helmert(size).T))
        return cls(basis, torch.where(live, 0.0, DEAD).to(basis.dtype), full=True, live=live)

    def take(self, index: Tensor) -> Self:
        """Members at ``index``; shared features stay shared."""
        if self.features.shape[0] == 1:
            return self
        live = None if self.live is None else self.live[index]
        return type(self)(self.features[index], self.log_base[index], self.full, live)

    def log_probs(self, theta: Tensor, temperature: Tensor | None = None) -> Tensor:
        """(..., G, n) log q^(1/T), normalised."""
        logits = self._logits(theta)
        if temperature is not None:
            logits = logits / temperature[..., None]
        return torch.log_softmax(logits, -1)

    def _logits(self, theta: Tensor) -> Tensor:
        if len(self.features) == 1:  # shared features: one plain product, also under vmap
            return theta @ self.features[0].T + self.log_base
        return torch.einsum("gnd,...gd->...gn", self.features, theta) + self.log_base

    def mean_statistic(self, p: Tensor) -> Tensor:
        """E_p[φ] for distributions p (..., G, n)."""
        if len(self.features) == 1:
            return p @ self.features[0]
        return torch.einsum("gnd,...gn->...gd", self.features, p)

    def log_prob(self, theta: Tensor, z: Tensor) -> Tensor:
        """Log-probability log q(z; θ) for outcome indices z (..., G, n)."""
        return self.log_probs(theta).gather(-1, z)

    def sample(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """(..., G, num) outcome indices."""
        p = self.log_probs(theta).exp()
        flat = torch.multinomial(p.reshape(-1, p.shape[-1]), num, replacement=True, generator=generator)
        return flat.reshape(*p.shape[:-1], num)

    def loss(self, theta: Tensor, z: Tensor) -> Tensor:
        """−log q(z; θ)."""
        loss = -self.log_prob(theta, z)
        return loss if self.idle is None else loss + 0.5 * (self.idle * theta.square()).sum(-1, keepdim=True)

    def statistic(self, z: Tensor) -> Tensor:
        """φ(z) for outcome indices z (..., G, n): (..., G, n, d)."""
        member = torch.arange(z.shape[-2])[:, None].expand(z.shape[-2:])
        return self.features.expand(z.shape[-2], -1, -1)[member, z]

    def gradient(self, theta: Tensor, moments: Tensor) -> Tensor:
        """E_q[φ] − moments."""
        gradient = self.mean_statistic(self.log_probs(theta).exp()) - moments
        return gradient if self.idle is None else gradient + self.idle * theta

    def objective(self, theta: Tensor, moments: Tensor) -> Tensor:
        """Expected loss up to a constant, log Z(θ) − θ·moments, (..., G)."""
        logits = self._logits(theta)
        value = torch.logsumexp(logits, -1) - (theta * moments).sum(-1)
        return value if self.idle is None else value + 0.5 * (self.idle * theta.square()).sum(-1)

    def hessian(self, theta: Tensor, moments: Tensor) -> Tensor:
        """Fisher matrix Cov_q(φ), (..., G, d, d)."""
        fisher = _cov(self, self.log_probs(theta).exp())
        return fisher if self.idle is None else fisher + torch.diag_embed(self.idle)

    def fit(self, moments: Tensor, ridge: Tensor, start: Tensor) -> Tensor:
        """Maximum likelihood, with ridge; closed form for the full simplex without ridge, Newton otherwise."""
        if self.full and not bool((ridge > 0).any()):
            return self._closed_form(moments)
        found = newton_fit(self, moments, ridge, start)
        return torch.where((ridge > 0)[..., None], found, self._closed_form(moments)) if self.full else found

    def _closed_form(self, moments: Tensor) -> Tensor:
        p = torch.einsum("gnd,...gd->...gn", self.features.expand(moments.shape[-2], -1, -1), moments)
        if self.live is None:
            return self.mean_statistic(torch.log((p + 1 / self.num_outcomes).clamp_min(FLOOR)))
        p = p + self.live.to(p.dtype) / self.live.sum(-1, keepdim=True)
        return self.mean_statistic(torch.where(self.live, p.clamp_min(FLOOR), 1.0).log())

    def entropy(self, theta: Tensor) -> Tensor:
        """(..., G) Shannon entropy in nats; falls to 0 on collapse."""
        log_p = self.log_probs(theta)
        return -(log_p.exp() * log_p).sum(-1)


class FiniteSource:
    """A stack of E sources that deliver outcomes of finite models, raw or picked.

    Args:
        producer: The producing models, one a source.
        consumer: The consuming models, one a source.
        stages: A stage: (kind, table (E, n), other table or None); kinds as in :func:`crossfeed.families.picks.pick`.
        slots: Position of each scalar setting of each source in the settings vector, by key; (E,) each.
    """

    def __init__(self, producer: Finite, consumer: Finite, stages: list[Any], slots: dict[str, Tensor]) -> None:
        self.producer, self.consumer, self.stages, self.slots = producer, consumer, stages, slots
        self._kept = Kept()

    def take(self, index: Tensor) -> FiniteSource:
        """Sources at ``index``."""
        stages = [(kind, a[index], None if b is None else b[index]) for kind, a, b in self.stages]
        slots = {key: value[index] for key, value in self.slots.items()}
        return FiniteSource(self.producer.take(index), self.consumer.take(index), stages, slots)

    def _stages_at(self, settings: Tensor) -> list[Any]:
        """Each stage's operators and shares at the given settings; kept for the settings tensor last seen."""
        found: list[Any] = self._kept.get(settings, lambda: self._made_stages(settings))
        return found

    def _made_stages(self, settings: Tensor) -> list[Any]:
        out = []
        for number, (kind, table, other) in enumerate(self.stages):
            k, tau, noise, share = (settings[..., self.slots[f"{number}.{key}"]] for key in STAGE_KEYS)
            main = operator(kind, table, k, tau)
            second = None if other is None else operator(kind, other, k, tau)
            out.append((main, second, noise[..., None], share[..., None]))
        return out

    def distribution(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, n) what the sources deliver when their producers have parameters θ (..., E, d)."""
        p = self.producer.log_probs(theta, settings[..., self.slots["sampling_temperature"]]).exp()
        for main, second, noise, share in self._stages_at(settings):
            shape = torch.broadcast_shapes(p.shape, noise.shape)
            p = p.expand(shape)
            picked = (1 - noise - share) * main(p) + noise * p
            p = picked if second is None else picked + share * second(p)
        return p

    def moments(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M) expected sufficient statistic of the consumers."""
        return self.consumer.mean_statistic(self.distribution(theta, settings))

    def sample_moments(self, theta: Tensor, settings: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """(..., E, M) mean statistic of ``counts`` (..., E) samples: exact, by one multinomial draw a source."""
        return self.consumer.mean_statistic(_empirical(self.distribution(theta, settings), counts, rng))

    def moments_cov(self, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M, M) covariance of the statistic of one sample."""
        return _cov(self.consumer, self.distribution(theta, settings))


class FiniteReal:
    """A stack of real sources: fixed distributions (E, n) as the consumers see them."""

    def __init__(self, consumer: Finite, p: Tensor) -> None:
        self.consumer, self.p = consumer, p

    def take(self, index: Tensor) -> FiniteReal:
        """Sources at ``index``."""
        return FiniteReal(self.consumer.take(index), self.p[index])

    def moments(self) -> Tensor:
        """(E, M)."""
        return self.consumer.mean_statistic(self.p)

    def sample_moments(self, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """As in :class:`FiniteSource`."""
        return self.consumer.mean_statistic(_empirical(self.p.expand(*counts.shape, -1), counts, rng))

    def moments_cov(self) -> Tensor:
        """(E, M, M)."""
        return _cov(self.consumer, self.p)


def _empirical(p: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
    shape = torch.broadcast_shapes(p.shape[:-1], counts.shape)
    pvals = p.expand(*shape, -1).double().numpy()
    drawn = rng.multinomial(counts.expand(shape).numpy().astype(np.int64), pvals / pvals.sum(-1, keepdims=True))
    return torch.from_numpy(drawn / np.maximum(counts.expand(shape).numpy(), 1)[..., None])


def _cov(consumer: Finite, p: Tensor) -> Tensor:
    features = consumer.features.expand(p.shape[-2], -1, -1)
    mean = consumer.mean_statistic(p)
    off = features - mean[..., None, :]  # centred first: E[φφᵀ] − E[φ]E[φ]ᵀ would cancel near collapse
    return torch.einsum("...gnd,...gn,...gne->...gde", off, p, off)
