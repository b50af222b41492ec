r"""Constants behind the global certificate: how convex each loss is, and how far each source carries a change.

Contents: γ_i, strong convexity of L_i in the trained argument; for every source s of model i that model j feeds, Λ_s, a
Lipschitz constant of θ_j ↦ w_s E_{P_s}[∇ℓ_i(θ; z)] in Euclidean norms, the same for every θ. Derivations by family:

*Gaussian mean.* ∇ℓ = θ − z: γ = 1 + ridge, and Λ = w ‖A S‖₂ with A the source's map and S a bound of how far the mean
of what is delivered moves when the producer's mean m moves. Raw: S = I. Picks by linear rewards: shifting all
candidates changes no difference of rewards, so the pick shifts as they do and S = I, at any K, τ, noise, mixture of
curators and number of stages. Tilting by a quadratic reward: S = (Σ⁻¹ − Q/τ)⁻¹Σ⁻¹. K candidates m + ξ_k and a quadratic
reward **[ours]**: with π the softmax, dE[pick] = (I + C Q/τ) dm, C = E[Cov_π(ξ)] (the part of dr that all candidates
share cancels). Cov_π is at most Σ_k (ξ_k − ξ̄)(ξ_k − ξ̄)ᵀ, and Σ_{k<l} π_kπ_l (ξ_k − ξ_l)(ξ_k − ξ_l)ᵀ with π_kπ_l ≤
1/4, hence 0 ⪯ C ⪯ κΣ, κ = (K − 1) min(1, K/4). Around the middle C = κΣ/2, ‖A(I + CQ/τ)‖ ≤ ‖A(I + κΣQ/2τ)‖ + (κ/2τ)
‖AΣ^{1/2}‖ ‖Σ^{1/2}Q‖.

*Linear answers.* L_i is quadratic with curvature H_i = Σ_s w_s C_s + ridge, C_s = E_s[xxᵀ]: γ = λ_min(H_i), Λ = w ‖AS‖₂
λ_max(C_s), given x as above. Since H_i is constant, the minimum itself moves at most w ‖AS‖ ‖C_s H_i⁻¹‖ (S the same for
all x), or w sup‖AS‖ ‖C_s^{1/2}H_i⁻¹‖ ‖C_s^{1/2}‖: less than Λ/γ where inputs are uneven **[ours]**.

*Finite outcomes.* ∇ℓ = E_q φ − φ(z), curvature Cov_q(φ) + ridge, which tends to the ridge as q concentrates: γ = ridge.
Since ‖E_P φ − E_P′ φ‖ ≤ diam(φ) TV(P, P′), Λ = w diam(φ_i) · (TV per unit of θ_j). A producer that samples from
q^{1/T}: |dq| = q |(φ − φ̄)·v|/T and E|X − EX| ≤ range/2, so TV moves by at most diam(φ_j)/4T per unit. Picks multiply
that by

    c(K, R) = K / (1 + (K − 1) e^{−R}),    R = (max r − min r)/τ,

**[ours]** (best of K: R = ∞, c = K; K = 1 or R = 0: c = 1; K = ∞: c = e^R), because moving mass from b to a moves the
pick's distribution by at most K E[w_a/(w_a + Σ w_l)], w = e^{r/τ} ∈ [e^{−R}, 1], at any real K ≥ 1. Noise and several
curators average the factors, stages multiply them. Right after an exponential family there are two better ones: tilting
leaves an exponential family with the same φ (factor 1), and picks that look at K independent candidates in all cost at
most √K, since the derivative is Cov(1[pick ∈ B], Σ_k s(y_k)) ≤ ½ √K sd(s) (Cauchy–Schwarz, whole K) **[ours]**.

*Categorical without ridge.* γ = 0 in θ, but retraining returns the mixture itself, q_i′ = Σ_s w_s P_s. In total
variation, M_ij = Σ_s w_s · (TV(P_s) per unit): per TV(q_j) the factors c alone (sampling at T < 1: times n^{1/T−1}/T;
at T > 1 roots are not Lipschitz) **[ours]**.

*Gaussian with unknown covariance.* No γ: −log q is not convex in (m, log L).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.dynamics.program import Program
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianMean
from crossfeed.families.gaussian_picks import VectorReward
from crossfeed.families.linear import LinearGaussian

PAIRWISE_LIMIT = 4000
EUCLIDEAN = "euclidean"
TOTAL_VARIATION = "total variation"


@dataclass(frozen=True)
class ModelConstants:
    """Constants of one model.

    Attributes:
        gamma: γ, or None (with ``reason``), also where ``norm`` is total variation.
        smoothness: Largest curvature of the loss, or None.
        beta: Lipschitz constant of z ↦ ∇ℓ(θ; z): for vectors in ‖z‖, for finite outcomes diam φ (two outcomes are 1
            apart); or None.
        norm: In what differences of this model are measured: ``euclidean`` or ``total variation``.
        reason: Why there is no γ.
    """

    gamma: float | None
    smoothness: float | None
    beta: float | None
    norm: str = EUCLIDEAN
    reason: str = ""


@dataclass(frozen=True)
class EdgeBound:
    """One source that a model feeds.

    Attributes:
        source: Position in ``Program.sources``.
        consumer: The model it trains.
        producer: The model that feeds it.
        lipschitz: Λ, weight included; None, with ``reason``, where no bound is known.
        move: How far the consumer's exact minimum moves per unit, where that is known to be less than Λ/γ.
        reason: Why there is no Λ.
    """

    source: int
    consumer: int
    producer: int
    lipschitz: float | None
    move: float | None
    reason: str = ""


def model_constants(
    program: Program, exact: bool = True, euclidean: frozenset[int] = frozenset()
) -> list[ModelConstants]:
    """γ, smoothness, β and the norm of every model.

    Args:
        program: Compiled ecosystem with unbatched settings.
        exact: Whether models are trained to the exact minimum.
        euclidean: Models to be measured in parameters in any case.
    """
    found: dict[int, ModelConstants] = {}
    for number, group in enumerate(program.model_groups):
        ridges = program.settings[group.ridge_slot].tolist()
        curvature = _input_curvature(program, number)
        for row, (model, ridge) in enumerate(zip(group.members.tolist(), ridges, strict=True)):
            family = group.family
            if isinstance(family, GaussianMean):
                found[model] = ModelConstants(1 + ridge, 1 + ridge, 1.0)
            elif isinstance(family, LinearGaussian):
                assert curvature is not None
                low, high = torch.linalg.eigvalsh(curvature[row])[[0, -1]].tolist()
                spanned = low > 1e-12 * high
                reason = "" if spanned else "its training inputs do not span the input space; give it a ridge > 0"
                found[model] = ModelConstants(low if spanned else None, high, None, reason=reason)
            elif isinstance(family, Finite):
                found[model] = _finite(family, row, ridge, exact and model not in euclidean)
            else:
                reason = "−log q of a Gaussian with unknown covariance is not convex in its parameters"
                found[model] = ModelConstants(None, None, None, reason=reason)
    return [found[i] for i in range(program.num_models)]


def _input_curvature(program: Program, number: int) -> Tensor | None:
    """H_i = Σ_s w_s C_s + ridge, (G, inputs, inputs), of linear models: the same at every Θ."""
    group = program.model_groups[number]
    if not isinstance(group.family, LinearGaussian):
        return None
    inputs = group.family.inputs
    second = program.moments(program.start)[number][..., group.family.num_params :].reshape(-1, inputs, inputs)
    ridge: Tensor = program.settings[group.ridge_slot]
    curvature: Tensor = second + ridge[:, None, None] * torch.eye(inputs, dtype=second.dtype)
    return curvature


def _finite(family: Finite, row: int, ridge: float, exact: bool) -> ModelConstants:
    diameter = feature_diameter(family, row)
    if ridge > 0:
        idle = family.idle is not None
        top = max(diameter**2 / 4, 1.0) if idle else diameter**2 / 4
        return ModelConstants(ridge, ridge + top, diameter)
    if family.full and exact:
        return ModelConstants(None, None, None, TOTAL_VARIATION)
    reason = "no strong convexity without ridge: curvature vanishes as a distribution concentrates; give it a ridge > 0"
    return ModelConstants(None, diameter**2 / 4, diameter, reason=reason)


def feature_diameter(family: Finite, row: int) -> float:
    """Max ‖φ(y) − φ(y′)‖ over outcomes, or above 4,000 outcomes the diagonal of their bounding box.

    Example:
        >>> round(feature_diameter(Finite.categorical(5), 0), 12) == round(2**0.5, 12)
        True
    """
    own = row if family.features.shape[0] > 1 else 0
    features = family.features[own]
    if family.live is not None:
        features = features[family.live[own if family.live.shape[0] > 1 else 0]]
    if len(features) > PAIRWISE_LIMIT:
        return float((features.amax(0) - features.amin(0)).norm())
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.max())


def edge_bounds(program: Program, constants: list[ModelConstants]) -> list[EdgeBound]:
    """Λ of every source of positive weight that a model feeds, and how far it moves the consumer's exact minimum."""
    out: list[EdgeBound] = []
    diameters: dict[int, float] = {}

    def diameter(model: int) -> float:
        if model not in diameters:
            group = next(g for g in program.model_groups if model in g.members)
            diameters[model] = feature_diameter(group.family, int(torch.nonzero(group.members == model)[0, 0]))
        return diameters[model]

    for group in program.source_groups:
        if group.theta_index is None:
            continue
        kernel: Any = group.kernel
        at = {key: program.settings[slot].tolist() for key, slot in kernel.slots.items()}
        weights = program.settings[group.weight_slot].tolist()
        family = program.model_groups[group.group].family
        curvature = _input_curvature(program, group.group)
        for e, source in enumerate(group.source.tolist()):
            info = program.sources[source]
            if weights[e] <= 0 or info.producer is None:
                continue
            here = {key: values[e] for key, values in at.items()}
            lipschitz: float | None
            move: float | None = None
            if isinstance(family, Finite):
                producer, consumer = constants[info.producer], constants[info.consumer]
                base = None if producer.norm == TOTAL_VARIATION else diameter(info.producer)
                factor, reason = _finite_factor(kernel, here, e, base)
                lipschitz = None if factor is None else factor * weights[e]
                if lipschitz is not None and consumer.norm == EUCLIDEAN:
                    lipschitz *= diameter(info.consumer)
            elif curvature is not None:
                shift, alike, reason = _shift(kernel, here, e, kernel.producer.noise[e])
                lipschitz, move = _linear(kernel, e, curvature[int(group.row[e])], shift, alike, weights[e])
            elif isinstance(family, GaussianMean) and (isinstance(kernel.producer, GaussianMean) or not kernel.stages):
                cov = kernel.producer.cov[e] if kernel.stages else torch.eye(family.dim, dtype=torch.float64)
                shift, _, reason = _shift(kernel, here, e, cov)
                lipschitz = None if shift is None else shift * weights[e]
            elif isinstance(family, GaussianMean):
                lipschitz, reason = (
                    None,
                    "how far its picks shift grows with a spread that is itself learnt and has no bound",
                )
            else:
                lipschitz, reason = None, "the gradient of −log q in mean and covariance is not Lipschitz"
            out.append(EdgeBound(source, info.consumer, info.producer, lipschitz, move, reason))
    return sorted(out, key=lambda b: b.source)


# --- finite outcomes -------------------------------------------------------------------------------------------------


def pick_factor(candidates: float, spread: float) -> float:
    """c(K, R) = K / (1 + (K − 1) e^{−R}): how much a pick can widen a difference in total variation.

    Args:
        candidates: K ≥ 1, inf for tilting.
        spread: R, the reward's range over τ; inf for best of K.

    Example:
        >>> pick_factor(2, float("inf")), pick_factor(2, 0.0), round(pick_factor(float("inf"), 1.0), 6)
        (2.0, 1.0, 2.718282)
    """
    if candidates == 1 or spread == 0:
        return 1.0
    if math.isinf(candidates):
        return math.exp(spread) if spread < 700 else math.inf
    return candidates / (1 + (candidates - 1) * math.exp(-spread))


def _finite_factor(kernel: Any, at: dict[str, float], e: int, diameter: float | None) -> tuple[float | None, str]:
    """Total variation of what a source delivers per unit of the producer's θ, or of its TV where ``diameter`` is None."""
    warm = at["sampling_temperature"]
    exponential = diameter is not None
    factor = 1.0 if diameter is None else diameter / (4 * warm)
    if diameter is None and warm > 1:
        return None, "a producer without ridge that samples at a temperature above 1 has no bound; give it a ridge > 0"
    if diameter is None and warm < 1:
        factor = kernel.producer.num_outcomes ** (1 / warm - 1) / warm
    first, drawn = factor, 1.0
    for number, (kind, table, other) in enumerate(kernel.stages):
        k, tau, noise, share = (at[f"{number}.{key}"] for key in ("candidates", "temperature", "noise", "other_share"))
        shares = [(1 - noise - share, table[e])] + ([(share, other[e])] if other is not None else [])
        if exponential and kind == "tilt":
            exponential = (
                noise == 0 and sum(w > 0 for w, _ in shares) == 1
            )  # a mixture of tilts is no exponential family
            drawn = 1.0 if exponential else math.inf
            continue
        wide = noise
        for weight, values in [(w, v) for w, v in shares if w > 0]:
            reach = float(values.amax() - values.amin())
            spread = 0.0 if reach == 0 else math.inf if tau == 0 else reach / tau
            wide += weight * pick_factor(k, spread)
        factor *= wide
        drawn = drawn * k if k % 1 == 0 else math.inf  # inf % 1 is nan
        exponential = False
    if diameter is not None and math.isfinite(drawn):
        factor = min(factor, first * math.sqrt(drawn))
    return (factor, "") if math.isfinite(factor) else (None, "its picks have no finite bound: rewards far apart for τ")


# --- vectors and answers ----------------------------------------------------------------------------------------------


def _shift(kernel: Any, at: dict[str, float], e: int, cov: Tensor) -> tuple[float | None, bool, str]:
    """‖A S‖: move of the delivered mean per unit of the producer's; whether S is known exactly; why not."""
    dim = cov.shape[-1]
    eye = torch.eye(dim, dtype=cov.dtype)
    cov = cov * at["sampling_temperature"]
    A = eye if kernel.matrix is None else kernel.matrix[e]
    S, radius, gaussian = eye, 0.0, True
    for number, stage in enumerate(kernel.stages):
        k, tau, noise, share = (at[f"{number}.{key}"] for key in ("candidates", "temperature", "noise", "other_share"))
        rewards = [(1 - noise - share, stage.reward)] + ([(share, stage.other)] if stage.other is not None else [])
        rewards = [(w, r) for w, r in rewards if w > 0]
        if any(r.fn is not None for _, r in rewards):
            return None, False, "no bound is known for picks by a Python function"
        pure = stage.kind == "tilt" and noise == 0 and len(rewards) == 1
        if all(_curvature_of(r, e) is None for _, r in rewards):
            gaussian = gaussian and pure
            continue
        if not gaussian:
            return (
                None,
                False,
                "no bound is known for a quadratic reward after another stage: its candidates are not Gaussian",
            )
        if stage.kind == "best" or (stage.kind != "tilt" and k % 1 != 0):
            return None, False, "no bound is known for a quadratic reward and this rule of picking"
        middle, after = noise * eye, cov
        for weight, reward in rewards:
            Q = _curvature_of(reward, e)
            if Q is None:
                middle = middle + weight * eye
            elif stage.kind == "tilt":
                precision = torch.linalg.inv(cov)
                after = torch.linalg.inv(precision - Q / tau)
                middle = middle + weight * after @ precision
            else:
                kappa = (k - 1) * min(1.0, k / 4)
                root = torch.linalg.cholesky(cov)
                middle = middle + weight * (eye + 0.5 * kappa / tau * cov @ Q)
                radius += weight * 0.5 * kappa / tau * _norm(A @ root) * _norm(root.mT @ Q @ S)
        S, gaussian, cov = middle @ S, pure, after
    return _norm(A @ S) + radius, radius == 0, ""


def _curvature_of(reward: VectorReward, e: int) -> Tensor | None:
    if reward.Q is None:
        return None
    Q = reward.Q[e]
    return Q if bool((Q != 0).any()) else None


def _linear(
    kernel: Any, e: int, H: Tensor, shift: float | None, alike: bool, weight: float
) -> tuple[float | None, float | None]:
    """Λ and the move of the exact minimum for a source of answers."""
    if shift is None:
        return None, None
    x, w = kernel.inputs.nodes[e], kernel.inputs.weights[e]
    C = torch.einsum("m,mi,mj->ij", w, x, x)
    values, vectors = torch.linalg.eigh(C)
    lipschitz = weight * shift * float(values[-1])
    inverse, failed = torch.linalg.inv_ex(H)
    if int(failed):
        return lipschitz, None
    if alike:
        return lipschitz, weight * shift * _norm(C @ inverse)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return lipschitz, weight * shift * _norm(root @ inverse) * _norm(root)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))
