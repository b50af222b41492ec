r"""How mean and covariance of Θ pass through one update on n samples; the theory here is ours.

An update of model i is φ_i(θ_i, u_i) with u_i = m_i(Θ) + e_i: the mixture's moments m_i = Σ_s w_s E_{P_s}[T] plus
their sampling error, E[e_i] = 0, Cov[e_i] = C_i(Θ)/n, independent across models and rounds. φ is the exact fit, which
depends on u alone, or k gradient steps. With Cov[Θ] = Σ/n before the update, to order 1/n,

    Cov[Θ'] = (G Σ Gᵀ + P C Pᵀ)/n,
    E[Θ'] = Ψ(E[Θ]) + (P · ½ m″[Σ] + ½ φ″[K])/n,    K = Cov(θ_i, u_i) · n,    P = ∂φ/∂u,    G = ∂φ/∂θ + P ∂m/∂Θ.

Each source sees one producer, so m″[Σ] needs diagonal blocks of Σ only, and second derivatives are taken along
eigenvectors of small matrices. Models that update later in a round are further updates of this kind: their Σ already
holds the earlier errors.

C_i = Σ_s w_s (Cov_s + (μ_s − m_i)(μ_s − m_i)ᵀ) with multinomial counts, Σ_s w_s Cov_s with fixed ones. A loop with
fixed counts n_s is one with the weights n_s/n, which differ from w_s by less than a sample a source: the bias's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.program import ModelGroup, Program, SourceGroup
from crossfeed.errors import NotAvailableError
from crossfeed.families.base import jacobian
from crossfeed.families.gaussian import GaussianMean
from crossfeed.families.gaussian_sources import VectorReal, VectorSource


def second_along(fn: Callable[[Tensor], Tensor], x: Tensor, cov: Tensor) -> Tensor:
    """Σ_{ab} cov_ab ∂²fn/∂x_a∂x_b of a map that acts on each member of a stack alone.

    Args:
        fn: (G, k) ↦ (G, m).
        x: (G, k) where.
        cov: (G, k, k) symmetric positive semidefinite.

    Returns:
        (G, m).

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 2, dtype=torch.float64)
        >>> cov = torch.tensor([[[3.0, 1.0], [1.0, 2.0]]]).double()
        >>> round(float(second_along(lambda x: x[:, :1] ** 2 + x[:, :1] * x[:, 1:], x, cov)), 9)  # 2 · 3 + 2 · 1
        8.0
    """
    values, vectors = torch.linalg.eigh(0.5 * (cov + cov.transpose(-1, -2)))
    along = (vectors * values.clamp_min(0.0).sqrt()[..., None, :]).movedim(-1, 0)  # (k, G, k)
    along = along[(values > 1e-15 * values.amax(-1, keepdim=True)).any(0)]

    def first(v: Tensor) -> Callable[[Tensor], Tensor]:
        def tangent(t: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(fn, (t,), (v,))[1]
            return out

        return tangent

    def twice(v: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(first(v), (x,), (v,))[1]
        return out

    if not len(along):
        return torch.zeros_like(fn(x))
    total: Tensor = torch.vmap(twice, chunk_size=8)(along).sum(0)
    return total


@dataclass(frozen=True)
class _Source:
    """Sources at a point: means (E, M), covariances (E, M, M), Jacobians (E, M, d) or None, weights (E,)."""

    group: SourceGroup
    mean: Tensor
    cov: Tensor
    by_theta: Tensor | None
    weight: Tensor


@dataclass(frozen=True)
class _Models:
    """One group of models that update: φ and what it sees, at a point.

    Attributes:
        group: Which.
        moments: (G, M) m.
        spread: (G, M, M) C.
        by_all: (G, M, D) ∂m/∂Θ.
        by_moments: (G, d, M) P.
        by_self: (G, d, d) ∂φ/∂θ_i, or None for the exact fit.
        bend: K ↦ φ″[K] (G, d); K is (G, M, M) for the exact fit and (G, d + M, d + M) for gradient steps.
    """

    group: ModelGroup
    moments: Tensor
    spread: Tensor
    by_all: Tensor
    by_moments: Tensor
    by_self: Tensor | None
    bend: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Expansion:
    """One update, expanded at a point to second order; only the rows of the models that update are kept.

    Attributes:
        theta: (D,) the point.
        mean: (D,) where the update sends it on population data.
        rows: (r,) parameters that move.
        block: (r, D) rows of G; all other rows are the identity's.
        noise: (r, r) P C Pᵀ, block diagonal: n times the covariance that sampling adds.
        multinomial: Whether counts are.
        program: What was expanded.
    """

    theta: Tensor
    mean: Tensor
    rows: Tensor
    block: Tensor
    noise: Tensor
    multinomial: bool
    program: Program
    sources: list[_Source]
    models: list[_Models]

    def push(self, X: Tensor) -> Tensor:
        """G X for X (D, R)."""
        out = X.clone()
        out[self.rows] = self.block @ X
        return out

    def spread(self, cov: Tensor, noise: Tensor | None = None) -> Tensor:
        """G Σ Gᵀ + P C Pᵀ for Σ (D, D)."""
        moved = self.block @ cov
        out = cov.clone()
        out[self.rows] = moved
        out[:, self.rows] = moved.T
        out[self.rows[:, None], self.rows] = moved @ self.block.T + (self.noise if noise is None else noise)
        return out

    def bias(self, cov: Tensor) -> Tensor:
        """(D,) P · ½ m″[Σ] + ½ φ″[K]: n times how far E[Θ'] lies from Ψ(E[Θ])."""
        bent = [torch.zeros_like(m.moments) for m in self.models]
        for s in self.sources:
            if s.by_theta is None or affine_source(s.group.kernel):
                continue
            index, kernel = s.group.theta_index, s.group.kernel
            assert index is not None
            own = cov[index[:, :, None], index[:, None, :]]
            through = partial(_source_moments, kernel, self.program.settings)
            moved = second_along(through, self.theta[index], own)
            bent[s.group.group].index_add_(0, s.group.row, moved * s.weight[:, None])
        out = torch.zeros_like(self.theta)
        for m, b in zip(self.models, bent, strict=True):
            size, moments, whole = m.by_all.shape
            across = (m.by_all.reshape(-1, whole) @ cov).reshape(size, moments, whole)
            joint = across @ m.by_all.transpose(-1, -2) + m.spread
            if m.by_self is not None:
                index = m.group.theta_index
                own = cov[index[:, :, None], index[:, None, :]]
                cross = across.gather(-1, index[:, None, :].expand(-1, moments, -1))  # Cov(u, θ)
                joint = torch.cat([torch.cat([own, cross.transpose(-1, -2)], -1), torch.cat([cross, joint], -1)], -2)
            out[m.group.theta_index] = 0.5 * (torch.einsum("gdm,gm->gd", m.by_moments, b) + m.bend(joint))
        return out

    def drift_noise(self, cov: Tensor) -> Tensor:
        """(r, r) what Cov[Θ] = cov adds to E[P C(Θ) Pᵀ], for constant covariances of the sources and means affine in Θ.

        Multinomial counts see means move apart: Σ_s w_s (M_s − M) cov (M_s − M)ᵀ, M_s = ∂μ_s/∂Θ, M = Σ_s w_s M_s.
        """
        if not self.multinomial:
            return torch.zeros_like(self.noise)
        added = []
        for number, m in enumerate(self.models):
            total = -(m.by_all @ cov @ m.by_all.transpose(-1, -2))
            for s in self.sources:
                if s.group.group == number and s.by_theta is not None:
                    index = s.group.theta_index
                    assert index is not None
                    own = s.by_theta @ cov[index[:, :, None], index[:, None, :]] @ s.by_theta.transpose(-1, -2)
                    total = total.index_add(0, s.group.row, own * s.weight[:, None, None])
            added.append(m.by_moments @ total @ m.by_moments.transpose(-1, -2))
        return _block_diagonal(added)


def expand(
    program: Program,
    theta: Tensor,
    models: Sequence[int],
    steps: schema.GradientSteps | None = None,
    counts: str = "multinomial",
    like: Expansion | None = None,
) -> Expansion:
    """Expand one update of ``models`` at Θ.

    Args:
        program: Compiled ecosystem with unbatched settings.
        theta: (D,).
        models: Which update, at the same time.
        steps: Gradient steps; None for the exact minimum.
        counts: ``multinomial`` or ``fixed``.
        like: The same update expanded elsewhere, where the map is affine: its Jacobians are used again.

    Raises:
        NotAvailableError: when a source has no covariance in closed form, or a model's curvature is singular.
    """
    part = program.block(models)
    sources = [
        _source(part, g, theta, like.sources[k].by_theta if like else None) for k, g in enumerate(part.source_groups)
    ]
    moments = part.moments(theta)
    moved = part.retrain(theta, moments) if steps is None else part.descend(theta, moments, steps.count, steps.size)
    found = []
    for number, (group, m) in enumerate(zip(part.model_groups, moments, strict=True)):
        here = [s for s in sources if s.group.group == number]
        spread = torch.zeros(*m.shape, m.shape[-1], dtype=m.dtype)
        by_all = torch.zeros(*m.shape, program.num_params, dtype=m.dtype)
        for s in here:
            off = s.mean - m[s.group.row]
            between = off[:, :, None] * off[:, None, :] if counts == "multinomial" else 0.0
            spread.index_add_(0, s.group.row, (s.cov + between) * s.weight[:, None, None])
            if s.by_theta is not None and like is None:
                index = s.group.theta_index
                assert index is not None
                place = (s.group.row[:, None, None], torch.arange(m.shape[-1])[None, :, None], index[:, None, :])
                by_all.index_put_(place, s.by_theta * s.weight[:, None, None], accumulate=True)
        if like is not None:
            old = like.models[number]
            found.append(_Models(group, m, spread, old.by_all, old.by_moments, old.by_self, old.bend))
            continue
        ridge = part.settings[group.ridge_slot]
        t = moved[group.theta_index] if steps is None else theta[group.theta_index]
        by_self, by_moments, bend = _update(group.family, t, m, ridge, steps, [program.names[i] for i in group.members])
        found.append(_Models(group, m, spread, by_all, by_moments, by_self, bend))
    rows = torch.cat([m.group.theta_index.flatten() for m in found])
    noise = _block_diagonal(m.by_moments @ m.spread @ m.by_moments.transpose(-1, -2) for m in found)
    block = like.block if like else torch.cat([_rows_of_jacobian(m) for m in found])
    return Expansion(theta, moved, rows, block, noise, counts == "multinomial", program, sources, found)


def _source_moments(kernel: Any, settings: Tensor, theta: Tensor) -> Tensor:
    out: Tensor = kernel.moments(theta, settings)
    return out


def _block_diagonal(stacks: Iterable[Tensor]) -> Tensor:
    out: Tensor = torch.block_diag(*(block for stack in stacks for block in stack))
    return out


def _rows_of_jacobian(m: _Models) -> Tensor:
    rows = m.by_moments @ m.by_all
    if m.by_self is not None:
        size, d, _ = rows.shape
        place = (torch.arange(size)[:, None, None], torch.arange(d)[None, :, None], m.group.theta_index[:, None, :])
        rows = rows.index_put(place, m.by_self, accumulate=True)
    return rows.flatten(0, 1)


def _source(part: Program, group: SourceGroup, theta: Tensor, by_theta: Tensor | None) -> _Source:
    weight = part.settings[group.weight_slot]
    if group.theta_index is None:
        return _Source(group, group.kernel.moments(), group.kernel.moments_cov(), None, weight)
    at, kernel = theta[group.theta_index], group.kernel
    mean = kernel.moments(at, part.settings)
    cov = kernel.moments_cov(at, part.settings)
    if by_theta is None:
        by_theta = jacobian(partial(_source_moments, kernel, part.settings), at)
    return _Source(group, mean, cov, by_theta, weight)


def _update(
    family: Any, theta: Tensor, moments: Tensor, ridge: Tensor, steps: schema.GradientSteps | None, names: list[str]
) -> tuple[Tensor | None, Tensor, Callable[[Tensor], Tensor]]:
    """∂φ/∂θ, ∂φ/∂u and K ↦ φ″[K] of a stack of models; for the exact fit by differentiating h(θ, u) = 0 twice."""
    d = family.num_params
    x = torch.cat([theta, moments], -1)

    def push(x: Tensor) -> Tensor:
        out: Tensor = family.gradient(x[..., :d], x[..., d:]) + ridge[:, None] * x[..., :d]
        return out

    if steps is None:
        slope = jacobian(push, x)
        curvature, by_moments = slope[..., :d], slope[..., d:]
        factor, info = torch.linalg.inv_ex(curvature)
        if bool((info != 0).any()) or not bool(torch.isfinite(factor).all()):
            raise NotAvailableError(
                f"finite-sample theory: the curvature of {', '.join(names)} is singular, so the estimator has no "
                "expansion; add a ridge"
            )
        respond = -factor @ by_moments

        def bend(cov: Tensor) -> Tensor:
            both = torch.cat([respond, torch.eye(moments.shape[-1], dtype=cov.dtype).expand(len(cov), -1, -1)], -2)
            return -torch.einsum("gde,ge->gd", factor, second_along(push, x, both @ cov @ both.transpose(-1, -2)))

        return None, respond, bend

    def descend(x: Tensor) -> Tensor:
        t, u = x[..., :d], x[..., d:]
        for _ in range(steps.count):
            t = t - steps.size * push(torch.cat([t, u], -1))
        return t

    slope = jacobian(descend, x)
    return slope[..., :d], slope[..., d:], lambda cov: second_along(descend, x, cov)


def affine_source(kernel: Any) -> bool:
    """Whether a vector source's mean is affine in the producer's θ and its covariance constant."""
    if isinstance(kernel, VectorReal):
        return True
    if not isinstance(kernel, VectorSource) or not isinstance(kernel.producer, GaussianMean):
        return False
    rewards = [r for s in kernel.stages for r in (s.reward, s.other) if r is not None]
    return isinstance(kernel.consumer, GaussianMean) and all(r.fn is None and r.Q is None for r in rewards)


def share_errors(program: Program, num: int) -> Tensor:
    """(S,) n_s/n − w_s of every source when ``num`` samples are divided by largest remainder."""
    out = torch.zeros(len(program.sources), dtype=torch.float64)
    counts = program._counts(torch.Size(), num, np.random.default_rng(0), fixed=True).to(torch.float64)
    for g in program.source_groups:
        out[g.source] = counts[g.source] / num - program.settings[g.weight_slot]
    return out


def refuse_regime(samples: schema.Samples) -> None:
    """Only fresh samples make a stationary law."""
    if samples.regime != "replace":
        raise NotAvailableError(
            f"finite-sample theory for samples.regime {samples.regime!r}: old samples stay in use, so the noise is not "
            "fresh each round; use `replace`, or simulate"
        )
