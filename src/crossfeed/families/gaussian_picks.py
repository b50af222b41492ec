r"""Curators before Gaussian outcomes: mean and covariance of the pick, and picks one by one.

Given the reward, only the outcome's projection on the directions the reward looks at matters. With U an orthonormal
basis of those directions, u = Uᵀy is Gaussian, its pick is worked out on quadrature nodes by the exact finite
operator of :mod:`crossfeed.families.picks`, and the rest follows by Gaussian regression of y on u:

    E[pick] = m + ΣU G⁻¹ (ū − Uᵀm),    Cov[pick] = Σ − ΣU G⁻¹UᵀΣ + ΣU G⁻¹ Cov(u_pick) G⁻¹UᵀΣ,    G = UᵀΣU.

Closed forms are used where they exist: best of K by a linear reward (order statistics of the normal) and exponential
tilting by a quadratic one (Σ' = (Σ⁻¹ − Q/τ)⁻¹, m' = Σ'(Σ⁻¹m + g/τ)).
Nodes: one direction, the trapezoid rule on ±9 standard deviations (geometric convergence); two or three, the same on a
ball; more, 4,096 scrambled Sobol points (seeded quasi-Monte Carlo).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.families.base import cholesky
from crossfeed.families.picks import operator

SOBOL_POINTS = 4096


@dataclass(frozen=True)
class VectorReward:
    """r(y) = g·y + ½ yᵀQy (constants drop out of picks), or any function of y.

    Args:
        g: (..., d).
        Q: (..., d, d) or None.
        fn: (m, d) ↦ (m,), or None; when given, g and Q are not used.
        U: (..., d, e) its :func:`directions`, when worked out beforehand.
    """

    g: Tensor
    Q: Tensor | None = None
    fn: Callable[[Tensor], Tensor] | None = None
    U: Tensor | None = None

    def take(self, index: Tensor) -> VectorReward:
        """Rewards at ``index`` of the leading dimension."""
        Q, U = (None if x is None else x[index] for x in (self.Q, self.U))
        return VectorReward(self.g[index], Q, self.fn, U)

    def on(self, U: Tensor, u: Tensor) -> Tensor:
        """Values (..., n) at nodes u (..., n, e), coordinates in the basis U (..., d, e)."""
        if self.fn is not None:
            y = torch.einsum("...de,...ne->...nd", U, u)
            return self.fn(y.reshape(-1, y.shape[-1])).reshape(y.shape[:-1])
        value = torch.einsum("...d,...de,...ne->...n", self.g, U, u)
        if self.Q is not None:
            reduced = U.transpose(-1, -2) @ self.Q @ U
            value = value + 0.5 * torch.einsum("...ne,...ef,...nf->...n", u, reduced, u)
        return value


@dataclass(frozen=True)
class Stage:
    """One stage of picking: its kind (``plackett_luce``, ``best``, ``tilt``), reward, and another reward or None."""

    kind: str
    reward: VectorReward
    other: VectorReward | None = None

    def take(self, index: Tensor) -> Stage:
        """Stages of the sources at ``index``."""
        return Stage(self.kind, self.reward.take(index), None if self.other is None else self.other.take(index))


def directions(rewards: list[VectorReward], dim: int) -> Tensor:
    """(..., dim, e) orthonormal basis of what the rewards look at; e is the largest over the stack."""
    if any(r.fn is not None for r in rewards):
        return torch.eye(dim, dtype=torch.float64).expand(*rewards[0].g.shape[:-1], dim, dim)
    columns = [r.g[..., None] for r in rewards]
    columns += [r.Q.expand(*r.g.shape[:-1], dim, dim) for r in rewards if r.Q is not None]
    left, values, _ = torch.linalg.svd(torch.cat(columns, -1), full_matrices=True)
    rank = int((values > 1e-12 * values[..., :1].clamp_min(1e-300)).sum(-1).max())
    basis: Tensor = left[..., : max(rank, 1)]
    return basis


@cache
def nodes_and_weights(dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal nodes (n, dim) and weights (n,); rules as the module says."""
    if dim == 1:
        z = np.linspace(-9.0, 9.0, 257)[:, None]
        w = np.exp(-0.5 * z[:, 0] ** 2)
    elif dim <= 3:
        radius, count = {2: (8.5, 61), 3: (7.5, 27)}[dim]
        z = np.stack(np.meshgrid(*[np.linspace(-radius, radius, count)] * dim, indexing="ij"), -1).reshape(-1, dim)
        z = z[(z**2).sum(-1) <= radius**2 * (1 + 1e-12)]
        w = np.exp(-0.5 * (z**2).sum(-1))
    else:
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
        u = engine.draw(SOBOL_POINTS, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        z = torch.special.ndtri(u).numpy()
        w = np.ones(SOBOL_POINTS)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def gaussian_pick(
    mean: Tensor, cov: Tensor, stages: list[Stage], at: dict[str, Tensor], U: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what curators pick from N(mean, cov).

    Args:
        mean: (..., d).
        cov: (..., d, d).
        stages: In order; each stage's independent picks are the next one's candidates.
        at: Settings by key, ``"0.candidates"`` and so on, (...) each.
        U: (..., d, e) from :func:`directions` of all stages' rewards; needed for more than one stage only.
        seed: Of the Sobol scrambling.

    Returns:
        (..., d) and (..., d, d).
    """
    if len(stages) > 1:
        assert U is not None
        return _on_nodes(mean, cov, stages, at, U, seed)
    stage = stages[0]
    noise, share = at["0.noise"][..., None], at["0.other_share"][..., None]
    parts = [(1 - noise - share, _component(mean, cov, stage.kind, stage.reward, at, seed)), (noise, (mean, cov))]
    if stage.other is not None:
        parts.append((share, _component(mean, cov, stage.kind, stage.other, at, seed)))
    total = sum((w * m for w, (m, _) in parts), torch.zeros_like(mean))
    spread = torch.zeros_like(cov)
    for w, (m, c) in parts:
        off = m - total
        spread = spread + w[..., None] * (c + off[..., :, None] * off[..., None, :])
    return total, spread


def _component(
    mean: Tensor, cov: Tensor, kind: str, reward: VectorReward, at: dict[str, Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    tau, k = at["0.temperature"], at["0.candidates"]
    if kind == "best":
        return _best_linear(mean, cov, reward.g, k)
    if kind == "tilt" and reward.fn is None:
        return _tilt_quadratic(mean, cov, reward, tau)
    pure = Stage(kind, reward)
    U = directions([reward], mean.shape[-1]) if reward.U is None else reward.U
    zero = torch.zeros_like(tau)
    return _on_nodes(mean, cov, [pure], {**at, "0.noise": zero, "0.other_share": zero}, U, seed)


def _best_linear(mean: Tensor, cov: Tensor, g: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    z, w = nodes_and_weights(1)
    z = z[:, 0]
    weight = w * k[..., None] * torch.exp((k[..., None] - 1) * torch.special.log_ndtr(z))
    first, second = (weight * z).sum(-1), (weight * z * z).sum(-1)
    towards = torch.einsum("...de,...e->...d", cov, g)
    variance = torch.einsum("...d,...d->...", towards, g)[..., None]
    indifferent = variance <= 0  # a reward that is constant: any pick is as good
    towards = torch.where(indifferent, 0.0, towards) / torch.where(indifferent, 1.0, variance).sqrt()
    change = (second - first**2 - 1)[..., None, None]
    return mean + first[..., None] * towards, cov + change * towards[..., :, None] * towards[..., None, :]


def _tilt_quadratic(mean: Tensor, cov: Tensor, reward: VectorReward, tau: Tensor) -> tuple[Tensor, Tensor]:
    if reward.Q is None:
        return mean + torch.einsum("...de,...e->...d", cov, reward.g) / tau[..., None], cov
    # Σ' = L(I − LᵀQL/τ)⁻¹Lᵀ with Σ = LLᵀ needs no Σ⁻¹; where e^{r/τ} outgrows the Gaussian there is no Σ', hence NaN
    scale = cholesky(cov)
    bend = scale.transpose(-1, -2) @ reward.Q @ scale / tau[..., None, None]
    inner = cholesky(torch.eye(cov.shape[-1], dtype=cov.dtype) - 0.5 * (bend + bend.transpose(-1, -2)))
    half = torch.linalg.solve_triangular(inner, scale.transpose(-1, -2), upper=False)
    tilted = half.transpose(-1, -2) @ half
    slope = (reward.g + torch.einsum("...de,...e->...d", reward.Q, mean)) / tau[..., None]
    return mean + torch.einsum("...de,...e->...d", tilted, slope), tilted


def _on_nodes(
    mean: Tensor, cov: Tensor, stages: list[Stage], at: dict[str, Tensor], U: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    z, w = nodes_and_weights(U.shape[-1], seed)
    G = U.transpose(-1, -2) @ cov @ U
    centre = torch.einsum("...de,...d->...e", U, mean)
    u = centre[..., None, :] + torch.einsum("...ef,nf->...ne", cholesky(G), z)
    p = w.expand(u.shape[:-1])
    for number, stage in enumerate(stages):
        k, tau, noise, share = (at[f"{number}.{key}"] for key in ("candidates", "temperature", "noise", "other_share"))
        shape = torch.broadcast_shapes(p.shape[:-1], k.shape)
        p, k = p.expand(*shape, p.shape[-1]), k.expand(shape)
        picked = (1 - noise - share)[..., None] * operator(stage.kind, stage.reward.on(U, u), k, tau)(p)
        picked = picked + noise[..., None] * p
        if stage.other is not None:
            picked = picked + share[..., None] * operator(stage.kind, stage.other.on(U, u), k, tau)(p)
        p = picked
    base_mean = torch.einsum("n,...ne->...e", w, u)
    base = u - base_mean[..., None, :]
    picked_mean = torch.einsum("...n,...ne->...e", p, u)
    off = u - picked_mean[..., None, :]
    picked_cov = torch.einsum("...n,...ne,...nf->...ef", p, off, off)
    base_cov = torch.einsum("n,...ne,...nf->...ef", w, base, base)
    gain = torch.linalg.solve(G, U.transpose(-1, -2) @ cov).transpose(-1, -2)
    new_mean = mean + torch.einsum("...de,...e->...d", gain, picked_mean - base_mean)
    return new_mean, cov + gain @ (picked_cov - base_cov) @ gain.transpose(-1, -2)


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


def pick_samples(
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
