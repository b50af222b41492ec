r"""The paper's Gaussian experiment: its published constants, the ecosystem, and what it does, by explicit formulas.

Two models of vectors in R²⁴ keep copying each other. p is retrained on q's outputs, of which people shift a share λ
by a fixed vector a; q is retrained on p's outputs, turned and scaled by A(t) = t·A, A block diagonal with 12 blocks
of 2:

    p sees  N(φ, σ²I) with probability 1 − λ, N(φ + a, σ²I) with probability λ;    q sees  N(A(t)θ, σ²I).

Both minimise E ½‖z − θ‖², so a round sets

    θ = φ + λ a,    φ = A(t) θ,    hence θ* = λ (I − A(t))⁻¹ a,    φ* = A(t) θ*,

and alignments are quadratic, J_p = g_p·θ − ½ η_p ‖θ‖², J_q = g_q·φ − ½ η_q ‖φ‖².

Reference: arXiv 2605.29267, section 5 and Figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from crossfeed.describe import schema
from crossfeed.errors import SettingError

CURATION = 0.4
NOISE = 0.2


@dataclass(frozen=True)
class Constants:
    """What the published script fixes: A at t = 1, the curators' shift a, reward directions g and curvatures η."""

    A: np.ndarray
    a: np.ndarray
    g_p: np.ndarray
    g_q: np.ndarray
    eta_p: float
    eta_q: float

    @property
    def dim(self) -> int:
        """24."""
        return len(self.a)


@cache
def published() -> dict[str, np.ndarray]:
    """Constants and results of the published script, by name; README.md beside the file says what each is."""
    with resources.files("crossfeed.reproduce").joinpath("gaussian_mechanism.npz").open("rb") as file:
        return dict(np.load(file))


@cache
def constants() -> Constants:
    """The experiment's constants."""
    d = published()
    return Constants(d["A"], d["a"], d["g_p"], d["g_q"], float(d["eta_p"]), float(d["eta_q"]))


def gaussian_ecosystem(
    t: float | Sequence[float],
    curation: float | Sequence[float] = CURATION,
    *,
    noise: float = NOISE,
    per_round: int = 1000,
    seed: int = 0,
) -> schema.Ecosystem:
    """The experiment as an ecosystem, or several of them side by side that have nothing to do with each other.

    p has two sources with q as producer: raw with weight 1 − λ, and curated with weight λ: one candidate, so that
    nothing is picked, shifted by a. q's one source is p, mapped by A(t). The map acts on outcomes, their spread
    included: for q to see N(Aθ, σ²I), p's own covariance is σ²(AᵀA)⁻¹, and q's is σ²I. It matters on finite samples
    only. Rewards carry the constant ½η·trace(covariance), which cancels the model's own spread, so that J = g·θ −
    (η/2)‖θ‖² exactly. p is retrained first, then q on the new p.

    Args:
        t: Strength of the loop, above 0; several make one pair of models each, named p0, q0, p1, q1, …; one makes p
            and q.
        curation: λ, one or as many as there are t.
        noise: σ, the standard deviation of what the models are trained on, in every direction.
        per_round: n, samples a model and round, where the loop is run on finite samples.
        seed: Root seed of such runs.

    Raises:
        SettingError: a t that is not above 0.

    Example:
        >>> list(gaussian_ecosystem(0.9).models), gaussian_ecosystem([0.1, 0.2]).num_models
        (['p', 'q'], 4)
    """
    c = constants()
    strengths = np.atleast_1d(np.asarray(t, dtype=np.float64))
    if not (strengths > 0).all():
        raise SettingError(f"t: found {strengths.min():g}; need strengths above 0, or q does not hear of p at all")
    shares = np.broadcast_to(np.asarray(curation, dtype=np.float64), strengths.shape)
    several = np.ndim(t) > 0
    rewards: dict[str, schema.QuadraticReward] = {"q's people": _reward(c.g_q, c.eta_q, c.dim * noise**2)}
    models: dict[str, schema.Model] = {}
    for k, (strength, share) in enumerate(zip(strengths.tolist(), shares.tolist(), strict=True)):
        p, q = (f"p{k}", f"q{k}") if several else ("p", "q")
        A = strength * c.A
        cov = noise**2 * np.linalg.inv(A.T @ A)
        rewards[f"{p}'s people"] = _reward(c.g_p, c.eta_p, float(np.trace(cov)))
        models[p] = schema.Model(
            family=schema.GaussianMean(cov=0.5 * (cov + cov.T)),
            reward=f"{p}'s people",
            sources=[
                schema.Raw(name="raw", producer=q, weight=1 - share),
                schema.Curated(name="curated", producer=q, weight=share, candidates=1, map=schema.Affine(shift=c.a)),
            ],
        )
        models[q] = schema.Model(
            family=schema.GaussianMean(cov=np.asarray(noise**2)),
            reward="q's people",
            sources=[schema.Raw(name="turned", producer=p, weight=1, map=schema.Affine(matrix=A))],
        )
    names = list(models)
    return schema.Ecosystem(
        name=f"{len(strengths)} Gaussian experiments" if several else f"Gaussian experiment at t = {t:g}",
        seed=seed,
        space=schema.Vectors(dim=c.dim),
        rewards=rewards,
        models=models,
        update=schema.Update(order=schema.Cycle(rounds=[[names[0::2], names[1::2]]])),
        samples=schema.Samples(per_round=per_round),
    )


def _reward(g: np.ndarray, eta: float, spread: float) -> schema.QuadraticReward:
    return schema.QuadraticReward(vector=g, matrix=np.asarray(-eta), constant=0.5 * eta * spread)


@dataclass(frozen=True)
class Explicit:
    """The experiment solved by hand, for every t at once.

    Attributes:
        theta: (T, d) θ*.
        phi: (T, d) φ*.
        influence: (T, 2) ∂J_p/∂λ and ∂J_q/∂λ.
        rho_p: (T,) cos(∇J_p, a).
        rho_p_published: (T,) cos(∇J_p, θ*), which the published script plots as ρ_p.
        rho_q: (T,) cos(∇J_q, A a).
    """

    theta: np.ndarray
    phi: np.ndarray
    influence: np.ndarray
    rho_p: np.ndarray
    rho_p_published: np.ndarray
    rho_q: np.ndarray


def explicit(t: np.ndarray, curation: float = CURATION) -> Explicit:
    """θ* = λ(I − A)⁻¹a, φ* = Aθ*; ∂J_p/∂λ = (g_p − η_pθ*)·θ*/λ, ∂J_q/∂λ = (g_q − η_qφ*)·φ*/λ.

    Args:
        t: (T,).
        curation: λ > 0.
    """
    c = constants()
    A = np.asarray(t)[:, None, None] * c.A
    by_share = np.linalg.solve(np.eye(c.dim) - A, np.broadcast_to(c.a[:, None], (len(t), c.dim, 1)))[..., 0]
    turned = np.einsum("tde,te->td", A, by_share)
    theta, phi = curation * by_share, curation * turned
    grad_p, grad_q = c.g_p - c.eta_p * theta, c.g_q - c.eta_q * phi
    influence = np.stack([(grad_p * by_share).sum(-1), (grad_q * turned).sum(-1)], -1)
    return Explicit(theta, phi, influence, _cos(grad_p, c.a), _cos(grad_p, theta), _cos(grad_q, A @ c.a))


def alignments(t: float, curation: np.ndarray) -> np.ndarray:
    """(L, 2) J_p and J_q at the stable point for each λ."""
    c = constants()
    theta = np.linalg.solve(np.eye(c.dim) - t * c.A, c.a) * np.asarray(curation)[:, None]
    phi = theta @ (t * c.A).T
    return np.stack([_quadratic(theta, c.g_p, c.eta_p), _quadratic(phi, c.g_q, c.eta_q)], -1)


def _quadratic(theta: np.ndarray, g: np.ndarray, eta: float) -> np.ndarray:
    return np.asarray(theta @ g - 0.5 * eta * (theta**2).sum(-1))


def _cos(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)))
