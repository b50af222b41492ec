r"""Global certificate: one stable point, reached from every start in every update order.

L_i(·; Θ) is γ_i-strongly convex and θ_j ↦ ∇₁L_i(θ; Θ) is Λ_ij-Lipschitz, hence with a = T_i(Θ), b = T_i(Θ′)

    γ_i ‖a − b‖² ≤ ⟨∇₁L_i(b; Θ′) − ∇₁L_i(b; Θ), a − b⟩   ⇒   ‖T_i(Θ) − T_i(Θ′)‖ ≤ Σ_j M_ij ‖θ_j − θ′_j‖

with M_ij = Λ_ij/γ_i. ρ(M) < 1 for this nonnegative matrix makes T a contraction in a weighted max norm: one stable
point, and simultaneous, every sequential and totally asynchronous updates converge to it. Simultaneous errors shrink by
ρ(M) a round, sequential ones by ρ((I − L)⁻¹U) ≤ ρ(M) < 1, L the strictly lower part of M in update order. k gradient
steps of size η ≤ 2/(γ_i + smoothness_i) replace M by C + (I − C)M, C = diag((1 − ηγ_i)^k), which is below 1 exactly
when ρ(M) is. Where Λ and γ come from is in :mod:`crossfeed.dynamics.lipschitz`; Perdomo's ε_ij is Λ_ij/β_i.

References: Bertsekas and Tsitsiklis 1989, chapter 6 (asynchronous contractions); Varga, Matrix Iterative Analysis
(Stein–Rosenberg); Perdomo et al. 2020 (one model); Zhang, Wei and Zhang 2026, Theorem 3.6 (two models). More than two
models are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.describe.wording import known, short
from crossfeed.dynamics.growth import Growth, growth
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.lipschitz import EUCLIDEAN, TOTAL_VARIATION, ModelConstants, edge_bounds, model_constants
from crossfeed.dynamics.local import LocalCertificate, all_orders, deltas, local_radius, observed_rate, update_jacobian
from crossfeed.dynamics.program import Program
from crossfeed.errors import SettingError

__all__ = [
    "GlobalCertificate",
    "LocalCertificate",
    "all_orders",
    "deltas",
    "global_certificate",
    "local_radius",
    "observed_rate",
]

LISTED_REASONS = 3


@dataclass(frozen=True)
class GlobalCertificate:
    """Whether one stable point is reached from every start.

    Kind: global, a worst case over all Θ and over population data. A factor of 1 or more proves nothing, in particular
    no divergence.

    Attributes:
        names: Models; matrices are [consumer, producer] in this order.
        available: Whether all constants are known.
        reason: Why not; or what the certificate rests on beyond the families (constants that the user gave); or empty.
        constants: γ, β and the norm of each model.
        assumptions: What is taken for granted, in words.
        unchecked: Those of them that cannot be checked here.
        matrix: M (N, N), for the spec's own retraining (exact or k gradient steps).
        radius: ρ(M): factor per simultaneous round.
        contracts: Whether ρ(M) < 1, checked by v > 0 with Mv < v.
        sequential: Factor per round one after another: in the spec's sequential order, else as listed.
        in_order: Factor per round in the spec's own update order (an estimate where that is random).
        norm_weights: v (N,): T contracts max_i ‖θ_i − θ′_i‖/v_i by ``norm_rate``, a little above ρ(M); None unless it
            contracts.
        norm_rate: See ``norm_weights``.
        lipschitz: Λ (N, N): of gradients, or of mixtures where the consumer is measured in total variation.
        at_point: ‖∂T_i/∂θ_j‖ (N, N) in Euclidean norms at a given Θ: how much of M is worst case; None unless a point
            was given.
    """

    names: list[str]
    available: bool
    reason: str
    constants: list[ModelConstants]
    assumptions: list[str]
    unchecked: list[str]
    matrix: scipy.sparse.csr_array | None = None
    radius: float | None = None
    contracts: bool | None = None
    sequential: float | None = None
    in_order: float | None = None
    norm_weights: np.ndarray | None = None
    norm_rate: float | None = None
    lipschitz: scipy.sparse.csr_array | None = None
    at_point: scipy.sparse.csr_array | None = None

    def rate(self, order: schema.Order) -> float:
        """Factor per round that M guarantees in an update order; an estimate for random orders.

        Raises:
            SettingError: when the certificate is not available.
        """
        if self.matrix is None:
            raise SettingError(f"global certificate: found none ({self.reason}); need its matrix for a rate")
        return _grow(self.matrix, order, self.names).radius

    def gaps(self, program: Program, theta: Tensor, other: Tensor) -> Tensor:
        """How far two states are apart, model by model, in the norms of the certificate: (..., N)."""
        theta, other = theta + 0 * other, other + 0 * theta
        out = torch.zeros(*theta.shape[:-1], program.num_models, dtype=theta.dtype)
        for group in program.model_groups:
            a, b = theta[..., group.theta_index], other[..., group.theta_index]
            gap = (a - b).norm(dim=-1)
            variation = torch.tensor([self.constants[i].norm == TOTAL_VARIATION for i in group.members.tolist()])
            if bool(variation.any()):
                apart = 0.5 * (group.family.log_probs(a).exp() - group.family.log_probs(b).exp()).abs().sum(-1)
                gap = torch.where(variation, apart, gap)
            out[..., group.members] = gap
        return out

    def distance(self, program: Program, theta: Tensor, other: Tensor) -> Tensor:
        """The weighted max norm max_i gap_i / v_i in which T contracts by ``norm_rate``.

        Raises:
            SettingError: when the certificate does not contract.
        """
        if self.norm_weights is None:
            raise SettingError("global certificate: found no contraction; need one for its norm")
        return (self.gaps(program, theta, other) / torch.from_numpy(self.norm_weights)).amax(-1)

    def summary(self) -> dict[str, Any]:
        """The certificate as ``audit.json`` shows it."""
        constants = [
            {"model": name, "gamma": c.gamma, "beta": c.beta}
            for name, c in zip(self.names, self.constants, strict=True)
        ]
        return {
            "available": self.available,
            "radius": self.radius if self.radius is None or math.isfinite(self.radius) else None,
            "contracts": self.contracts,
            "reason": self.reason,
            "constants": constants if any(c["gamma"] is not None for c in constants) else None,
        }


def global_certificate(
    eco: schema.Ecosystem,
    program: Program,
    theta: Tensor | None = None,
    constants: Mapping[str, Mapping[Any, float]] | None = None,
) -> GlobalCertificate:
    """Bound the retraining map of a whole ecosystem, and say whether it contracts.

    Args:
        eco: The ecosystem; its update order and gradient steps are used.
        program: The same, compiled, with unbatched settings.
        theta: (D,) a point at which to compare M with the actual derivative.
        constants: The user's own: ``{"gamma": {model: γ_i}, "lipschitz": {(consumer, producer): Λ_ij}}``, Λ for all
            sources between the two together, weights included, both in Euclidean norms of the parameters. They are not
            checked.

    Raises:
        SettingError: constants for unknown models, or that are no constants.

    Example:
        One Gaussian mean, half real data, half its own outputs: each round halves the distance to the real mean.

        >>> from crossfeed.describe.schema import (
        ...     Ecosystem, GaussianMean, LinearReward, Model, MomentsData, Raw, Real, Vectors)
        >>> from crossfeed.dynamics.compile import compile_ecosystem
        >>> sources = [Real(data="web", weight=0.5), Raw(producer="p", weight=0.5)]
        >>> eco = Ecosystem(
        ...     space=Vectors(dim=1),
        ...     data={"web": MomentsData(mean=[0], cov=1)},
        ...     rewards={"r": LinearReward(vector=[1])},
        ...     models={"p": Model(family=GaussianMean(), reward="r", sources=sources)},
        ... )
        >>> found = global_certificate(eco, compile_ecosystem(eco))
        >>> found.radius, found.contracts
        (0.5, True)
    """
    given = _Given(program.names, constants or {})
    steps = eco.update.steps
    models = model_constants(program, exact=steps is None, euclidean=given.models)
    models = [
        ModelConstants(given.gamma[i], c.smoothness, c.beta, EUCLIDEAN) if i in given.gamma else c
        for i, c in enumerate(models)
    ]
    count, why = program.num_models, _Reasons(program)
    lipschitz: dict[tuple[int, int], float] = dict(given.lipschitz)
    moves: dict[tuple[int, int], float] = {}
    fed = set()
    for bound in edge_bounds(program, models):
        pair = (bound.consumer, bound.producer)
        fed.add(bound.consumer)
        if pair in given.lipschitz:
            continue
        c = models[bound.consumer]
        if c.reason:  # said below, once
            continue
        if bound.lipschitz is None:
            why.add(bound.consumer, f"source {program.sources[bound.source].name!r}: {bound.reason}")
            continue
        lipschitz[pair] = lipschitz.get(pair, 0.0) + bound.lipschitz
        if c.norm == TOTAL_VARIATION:
            move = bound.lipschitz
        elif bound.move is not None and steps is None and bound.consumer not in given.gamma:
            move = bound.move
        else:
            move = bound.lipschitz / c.gamma if c.gamma else math.inf
        moves[pair] = moves.get(pair, 0.0) + move
    for (i, j), value in given.lipschitz.items():
        gamma = models[i].gamma
        moves[i, j] = value / gamma if gamma else math.inf
        fed.add(i)
    kept = np.zeros(count)
    for i, c in enumerate(models):
        if c.gamma is None and c.norm == EUCLIDEAN and (i in fed or steps is not None):
            why.add(i, c.reason)
        elif steps is not None and c.gamma is not None:
            kept[i] = (1 - steps.size * c.gamma) ** steps.count
            if c.smoothness is None or steps.size > 2 / (c.gamma + c.smoothness) * (1 + 1e-12):
                limit = "" if c.smoothness is None else f" {2 / (c.gamma + c.smoothness):.3g}"
                why.add(
                    i, f"its gradient steps of {steps.size:g} are longer than{limit or ' a bound that is not known'}"
                )
    found = GlobalCertificate(
        program.names,
        not why.found,
        str(why) if why.found else " ".join(given.words()),
        models,
        _assumptions(program, models, steps, fed),
        given.words(),
        at_point=None if theta is None else _point(program, theta, steps),
    )
    if why.found:
        return found
    diagonal, rest = scipy.sparse.diags_array(kept), scipy.sparse.diags_array(1 - kept)
    matrix = scipy.sparse.csr_array(diagonal + rest @ _matrix(moves, count))
    together = _grow(matrix, schema.Simultaneous(), program.names)
    weights, rate = _contraction(matrix, together.radius)
    order = eco.update.order
    sequential = order if isinstance(order, schema.Sequential) else schema.Sequential(models=program.names)
    return replace(
        found,
        matrix=matrix,
        radius=together.radius,
        contracts=weights is not None,
        sequential=_grow(matrix, sequential, program.names).radius,
        in_order=_grow(matrix, order, program.names).radius,
        norm_weights=weights,
        norm_rate=rate,
        lipschitz=_matrix(lipschitz, count),
    )


class _Given:
    """The user's constants, checked for form."""

    def __init__(self, names: list[str], constants: Mapping[str, Mapping[Any, float]]) -> None:
        self.names = names
        for key in constants:
            if key not in ("gamma", "lipschitz"):
                raise SettingError(f"constants: found {short(key)}; {known(['gamma', 'lipschitz'], key)}")
        self.gamma = {
            self.index("gamma", n): self.number("gamma", n, v, 0.0) for n, v in constants.get("gamma", {}).items()
        }
        self.lipschitz: dict[tuple[int, int], float] = {}
        for pair, value in constants.get("lipschitz", {}).items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise SettingError(f"constants.lipschitz: found the key {short(pair)}; need (consumer, producer)")
            i, j = (self.index("lipschitz", name) for name in pair)
            self.lipschitz[i, j] = self.number("lipschitz", pair, value, -1.0)

    @property
    def models(self) -> frozenset[int]:
        """Models that the given constants measure in parameters."""
        return frozenset([*self.gamma, *(i for pair in self.lipschitz for i in pair)])

    def index(self, key: str, name: Any) -> int:
        if name not in self.names:
            raise SettingError(f"constants.{key}: found no model {short(name)}; {known(self.names, name)}")
        return self.names.index(name)

    def number(self, key: str, name: Any, value: Any, above: float) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (value > above if above == 0 else value >= 0):
            need = "a finite number > 0" if above == 0 else "a finite number ≥ 0"
            raise SettingError(f"constants.{key}[{name!r}]: found {short(value)}; need {need}")
        return float(value)

    def words(self) -> list[str]:
        out = [f"γ of {self.names[i]} = {v:g} was given and is not checked." for i, v in self.gamma.items()]
        pairs = self.lipschitz.items()
        return out + [
            f"Λ of {self.names[i]} by {self.names[j]} = {v:g} was given and is not checked." for (i, j), v in pairs
        ]


class _Reasons:
    """Why a certificate is not available, by model; equal reasons are said once."""

    def __init__(self, program: Program) -> None:
        self.program, self.found = program, dict[str, list[str]]()

    def add(self, model: int, reason: str) -> None:
        names = self.found.setdefault(reason, [])
        if self.program.names[model] not in names:
            names.append(self.program.names[model])

    def __str__(self) -> str:
        parts = []
        for reason, names in list(self.found.items())[:LISTED_REASONS]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{', '.join(names[:3])}{more}: {reason}")
        rest = len(self.found) - LISTED_REASONS
        return "; ".join(parts) + (f"; and {rest} more reasons" if rest > 0 else "")


def _assumptions(
    program: Program, models: list[ModelConstants], steps: schema.GradientSteps | None, fed: set[int]
) -> list[str]:
    how = "the exact minimum" if steps is None else f"{steps.count} full-batch gradient steps of {steps.size:g}"
    out = [f"Every model is retrained to {how} on population data: no sampling noise."]
    variation = [n for n, c in zip(program.names, models, strict=True) if c.norm == TOTAL_VARIATION]
    if variation:
        out.append(f"Measured in total variation: {', '.join(variation)}.")
    alone = [
        n
        for i, n in enumerate(program.names)
        if i not in fed and models[i].gamma is None and models[i].norm == EUCLIDEAN
    ]
    if alone and steps is None:
        out.append(f"Fed by no model, so that their best fit is taken to exist and to stay: {', '.join(alone)}.")
    return out


def _matrix(entries: dict[tuple[int, int], float], count: int) -> scipy.sparse.csr_array:
    rows, cols = [i for i, _ in entries], [j for _, j in entries]
    return scipy.sparse.csr_array(scipy.sparse.coo_array((list(entries.values()), (rows, cols)), shape=(count, count)))


def _grow(matrix: scipy.sparse.csr_array, order: schema.Order, names: list[str]) -> Growth:
    return growth(matrix, order, names, [np.array([i]) for i in range(len(names))])


def _contraction(matrix: scipy.sparse.csr_array, radius: float) -> tuple[np.ndarray | None, float | None]:
    """Weights v > 0 and r < 1 with Mv ≤ rv: v = (I − M/r)⁻¹1 is positive iff ρ(M) < r; None where no r will do."""
    if not radius < 1:
        return None, None
    rate = radius + 1e-3 * (1 - radius)
    count = matrix.shape[0]
    try:
        v = splu(scipy.sparse.csc_array(scipy.sparse.eye_array(count) - matrix / rate)).solve(np.ones(count))
    except RuntimeError:  # singular: r is an eigenvalue
        return None, None
    good = bool(np.isfinite(v).all()) and bool((v > 0).all()) and bool((matrix @ v <= rate * v * (1 + 1e-9)).all())
    return (v, rate) if good else (None, None)


def _point(program: Program, theta: Tensor, steps: schema.GradientSteps | None) -> scipy.sparse.csr_array:
    """Norms of the blocks of the actual derivative at Θ."""
    jacobian = update_jacobian(linearise(program, theta), steps)
    pairs = {(s.consumer, s.producer) for s in program.sources if s.producer is not None}
    if steps is not None:
        pairs |= {(i, i) for i in range(program.num_models)}
    norms = {
        (i, j): float(np.linalg.norm(jacobian[program.span(i)][:, program.span(j)].toarray(), 2)) for i, j in pairs
    }
    return _matrix(norms, program.num_models)
