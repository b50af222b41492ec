r"""Does curation push the right way, and how far can the ecosystem turn the push?

The paper's Corollary 4.7 and Example 4.6.

ρ_i = cos(∇J_i, m_i) is the raw alignment of the push with the reward. The ecosystem turns the push v = m_i into S v, S = [D⁻¹]_{ii}. If
the turn is at most φ, the sign of ⟨∇J, Sv⟩ is that of ⟨∇J, v⟩ whenever |ρ| > sin φ. Three values of sin φ:

* the paper's: if ⟨Sv,v⟩ ≥ m‖v‖² and the part of Sv orthogonal to v is at most ‖v‖/τ, then tan φ ≤ 1/(mτ), so
  |ρ| > 1/√(1 + m²τ²). m is the smallest eigenvalue of the symmetric part; 1/τ = min_c ‖S − cI‖₂ bounds the orthogonal part;
* the sharp one (ours): the largest turn of S has cosine μ = min_v ⟨Sv,v⟩/(‖Sv‖‖v‖), its first antieigenvalue, and by Gustafson's
  min–max theorem √(1−μ²) = min_{ε>0} ‖εS − I‖₂, a convex problem in one variable;
* the actual turn of the actual v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from crossfeed.influence.matrix import Influence


@dataclass(frozen=True)
class Direction:
    """How one model's curation pushes and how the ecosystem turns it.

    Attributes:
        model: Its index.
        rho: ρ = cos(∇J, m).
        paper_bound: |ρ| above this keeps its sign (Corollary 4.7); None when S is not accretive, so that nothing is guaranteed.
        sharp_bound: The same by the first antieigenvalue; never above the paper's.
        turning_angle: Actual angle between m and S m, in radians.
        sign_guaranteed: |ρ| > sharp bound.
        flip_angle: Smallest turn of the reward's gradient, in radians, that changes the sign of the self-influence.
    """

    model: int
    rho: float
    paper_bound: float | None
    sharp_bound: float | None
    turning_angle: float
    sign_guaranteed: bool
    flip_angle: float


def direction(found: Influence, model: int, max_dim: int = 400) -> Direction:
    """ρ, the bounds and the actual turn for one model; bounds need dense S and are left out above ``max_dim`` parameters."""
    span = found.program.span(model)
    v, w = found.push[span, model], found.response[span, model]
    g = found.alignment_gradient[found.program.primary[model]][span]
    paper = sharp = None
    if span.stop - span.start <= max_dim:
        paper, sharp = sine_bounds(found.sensitivity(model))
    rho = cosine(g, v)
    return Direction(
        model,
        rho,
        paper,
        sharp,
        angle(v, w),
        sharp is not None and abs(rho) > sharp,
        abs(math.pi / 2 - angle(g, w)),
    )


def cosine(a: Tensor, b: Tensor) -> float:
    """Cos of the angle between two vectors; 0 if one of them is zero."""
    size = float(a.norm() * b.norm())
    return 0.0 if size == 0 else max(-1.0, min(1.0, float(a @ b) / size))


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two vectors in radians, accurate also when it is tiny; 0 if one of them is zero."""
    if float(a.norm() * b.norm()) == 0:
        return 0.0
    u, v = a / a.norm(), b / b.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def sine_bounds(S: Tensor) -> tuple[float | None, float | None]:
    r"""The paper's and the sharp bound on the sine of S's turning angle; None when S is not accretive.

    Example:
        A rotation by φ turns everything by φ, and both bounds say so.

        >>> import torch
        >>> c, s = math.cos(0.3), math.sin(0.3)
        >>> paper, sharp = sine_bounds(torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
        >>> abs(paper - s) < 1e-8, abs(sharp - s) < 1e-8
        (True, True)

    Reference: Gustafson 1968 and Asplund and Pták 1971 (min–max); the paper's Corollary 4.7.
    """
    m = float(torch.linalg.eigvalsh((S + S.T) / 2)[0])
    if m <= 0:
        return None, None
    eye = torch.eye(len(S), dtype=S.dtype)
    size = float(torch.linalg.matrix_norm(S, 2))

    def off(c: float) -> float:
        return float(torch.linalg.matrix_norm(S - c * eye, 2))

    def sine(log_eps: float) -> float:
        return float(torch.linalg.matrix_norm(math.exp(log_eps) * S - eye, 2))

    inverse_tau = float(
        minimize_scalar(off, bounds=(0.0, 2 * size), method="bounded", options={"xatol": 1e-12 * size}).fun
    )
    # the minimiser lies in [m/‖S‖², 1/m]: there ε²‖Sv‖² − 2ε⟨Sv,v⟩ + 1 turns for every v
    low, high = math.log(m / size**2), math.log(1 / m)
    sharp = min(sine(low), sine(high))
    if high > low:
        sharp = min(
            sharp, float(minimize_scalar(sine, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).fun)
        )
    paper = inverse_tau / math.hypot(m, inverse_tau)
    return paper, min(sharp, 1.0)


def antieigenvector(S: Tensor, restarts: int = 20, seed: int = 0) -> Tensor:
    """A unit vector that S turns the most, by seeded gradient descent; certifies the sharp bound from below."""
    generator = torch.Generator().manual_seed(seed)
    best, best_cos = torch.zeros(len(S), dtype=S.dtype), 2.0
    for _ in range(restarts):
        v = torch.randn(len(S), dtype=S.dtype, generator=generator).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [v], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def turn(v: Tensor = v, optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
            optimiser.zero_grad()
            w = S @ v
            value: Tensor = (w @ v) / (w.norm() * v.norm())
            value.backward()
            return value

        optimiser.step(turn)
        value = float(turn().detach())
        if value < best_cos:
            best, best_cos = (v / v.norm()).detach(), value
    return best


def flipping_reward(v: Tensor, w: Tensor) -> Tensor | None:
    """Example 4.6: a reward gradient g with ⟨g, v⟩ > 0 (curation points the right way) but ⟨g, w⟩ < 0 (it backfires).

    g = v/‖v‖ − w/‖w‖ has ⟨g, v⟩ = ‖v‖(1 − cos φ) and ⟨g, w⟩ = −‖w‖(1 − cos φ). None when v and w are parallel: no such reward exists.

    Args:
        v: (d,) the push m_i.
        w: (d,) the response S m_i.
    """
    g = v / v.norm() - w / w.norm()
    return None if float(g.norm()) < 1e-9 else g


def nearest_flip(g: Tensor, w: Tensor) -> Tensor:
    """The closest reward gradient to ``g`` at which the influence ⟨g, w⟩ vanishes; a step beyond it flips the sign."""
    return g - (g @ w) / (w @ w) * w


def example_two_models(dim: int, rotation: float, strength: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Example 4.6 for the paper's two-model loop θ = φ + λa, φ = Aθ: (A, a, g) with g·a > 0 and g·(I−A)⁻¹a < 0.

    A is block diagonal, rotations by ``rotation`` times ``strength``; S = (I − A)⁻¹ turns a, and g is :func:`flipping_reward`.

    Args:
        dim: Even dimension d.
        rotation: Of each block, in radians; not a multiple of π.
        strength: Factor in (0, 1).
        seed: Of a.
    """
    c, s = math.cos(rotation), math.sin(rotation)
    A = torch.block_diag(*[strength * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)] * (dim // 2))
    a = torch.randn(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    g = flipping_reward(a, torch.linalg.solve(torch.eye(dim, dtype=torch.float64) - A, a))
    if g is None:
        raise ValueError("rotation is a multiple of π, so S does not turn a; choose another one")
    return A, a, g


@dataclass(frozen=True)
class Contribution:
    """One block's or eigenspace's share of a self-influence: raw ⟨g, v⟩ and distorted ⟨g, Sv⟩ parts."""

    label: str
    raw: float
    distorted: float


def contributions(found: Influence, model: int, basis: str = "blocks", size: int = 2) -> list[Contribution]:
    """Raw against distorted contributions to a model's self-influence, which they sum to (distorted) or would without S (raw).

    Args:
        found: The influence.
        model: Its index.
        basis: ``blocks`` of ``size`` consecutive parameters, or ``eigen``: eigenspaces of S, complex pairs taken together.
        size: Block size.
    """
    span = found.program.span(model)
    v, w = found.push[span, model], found.response[span, model]
    g = found.alignment_gradient[found.program.primary[model]][span]
    if basis == "blocks":
        starts = range(0, len(v), size)
        return [
            Contribution(str(k + 1), float(g[b : b + size] @ v[b : b + size]), float(g[b : b + size] @ w[b : b + size]))
            for k, b in enumerate(starts)
        ]
    values, right = torch.linalg.eig(found.sensitivity(model))
    left = torch.linalg.solve(right, v.to(right.dtype))
    along = (g.to(right.dtype) @ right) * left
    out = []
    for k in torch.argsort(values.real, descending=True).tolist():
        if values[k].imag < -1e-12 * values.abs().max():
            continue
        pair = values[k].imag > 1e-12 * values.abs().max()
        factor = 2.0 if pair else 1.0
        label = f"{float(values[k].real):.3g}" + (f" ± {float(values[k].imag):.3g}i" if pair else "")
        out.append(Contribution(label, factor * float(along[k].real), factor * float((values[k] * along[k]).real)))
    return out
