r"""What finite samples do to a loop at its stable point: spread and shift of Θ and of every alignment; ours.

With n fresh samples a model and round, Θ ends up in a stationary law around Θ* with, to order 1/n,

    Cov[Θ] = Σ/n,    Σ = G Σ Gᵀ + V,
    E[Θ] = Θ* + δ/n,    δ = (I − G)⁻¹ b(Σ),
    E[J] = J(Θ*) + (∇J·δ + ½ tr(∇²J Σ))/n,    Var[J] = ∇Jᵀ Σ ∇J / n,

G, V and b those of one whole round (of one cycle, where rounds take turns), composed from its updates one after
another as :mod:`crossfeed.influence.moments` says. For an affine map, a quadratic J and sampling errors whose
covariance does not depend on Θ, E[J] and Cov[Θ] are exact at every n; otherwise they hold where the terms in 1/n are
small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.linearise import Linearisation, linearise
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import cycle_length, steps_of_round
from crossfeed.errors import NotAvailableError, NotStableError
from crossfeed.families.finite import Finite
from crossfeed.influence.moments import Expansion, expand, refuse_regime, second_along, share_errors

LARGEST = 1500
SQUARINGS = 36


@dataclass(frozen=True)
class Round:
    """One round of a cycle in the stationary law, for n = 1.

    Attributes:
        jacobian: (D, D) G.
        noise: (D, D) V, what the round's own samples add.
        sigma: (D, D) Σ after the round.
        delta: (D,) δ after the round.
    """

    jacobian: Tensor
    noise: Tensor
    sigma: Tensor
    delta: Tensor


@dataclass(frozen=True)
class FiniteSamples:
    """The stationary law of a loop on finite samples; all coefficients are for n = 1.

    Attributes:
        program: The compiled ecosystem.
        theta: (D,) Θ*.
        value: (V,) J(Θ*) of every evaluation.
        gradient: (V, D) ∇J.
        shift: (V,) E[J] = J(Θ*) + shift/n, averaged over the rounds of a cycle (fixed counts: see :meth:`at`).
        std: (V,) the standard deviation of J from round to round is std/√n.
        delta: (D,) E[Θ] = Θ* + delta/n after the last round of a cycle.
        sigma: (D, D) Cov[Θ] = sigma/n, likewise.
        rounds: The rounds of a cycle; one, unless the order is a cycle.
        radius: Spectral radius of a whole cycle.
        num: n of the spec.
        by_share: (D, S) dΘ*/d(share of a source, moved alone) under fixed counts; None for multinomial ones.
        rarest: By name of a categorical model, the probability of its rarest outcome.
    """

    program: Program
    theta: Tensor
    value: Tensor
    gradient: Tensor
    shift: Tensor
    std: Tensor
    delta: Tensor
    sigma: Tensor
    rounds: tuple[Round, ...]
    radius: float
    num: int
    by_share: Tensor | None
    rarest: dict[str, float]

    def at(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """E[J] and the standard deviation of J from round to round, (V,) each, at n samples (the spec's by default).

        Fixed counts are whole, so that shares differ from the weights by up to 1/n; what that does to J is included.
        """
        n = n or self.num
        mean = self.value + self.shift / n
        if self.by_share is not None:
            mean = mean + self.gradient @ self.by_share @ share_errors(self.program, n)
        return mean, self.std / n**0.5

    def mean(self, n: int | None = None) -> Tensor:
        """(D,) E[Θ] after the last round of a cycle, at n samples a round."""
        n = n or self.num
        mean = self.theta + self.delta / n
        return mean if self.by_share is None else mean + self.by_share @ share_errors(self.program, n)

    @property
    def largest_rounding(self) -> Tensor:
        """(V,) n times the most that fixed counts, being whole, can move J; zero for multinomial counts."""
        if self.by_share is None:
            return torch.zeros_like(self.value)
        consumer = torch.tensor([s.consumer for s in self.program.sources])
        effect = self.gradient @ self.by_share
        shares = [effect[:, consumer == i] for i in range(self.program.num_models)]
        # errors of one model's shares are below 1/n and sum to zero, so they pair off around the median
        return torch.stack([(b - b.median(-1, keepdim=True).values).abs().sum(-1) for b in shares]).sum(0)

    def notes(self, n: int | None = None) -> list[str]:
        """What to bear in mind at n samples a round, in words.

        Categorical models estimate log-probabilities one by one; that has an expansion only where counts are not small.
        """
        n = n or self.num
        few = {name: n * p for name, p in self.rarest.items() if n * p < 5}
        return [
            f"{name} expects {count:.2g} samples a round of its rarest outcome; below about 5 the terms beyond 1/n "
            "are not small"
            for name, count in few.items()
        ]

    def time_average_cov(self, rounds: int, burn_in: int | None = None) -> Tensor:
        """(V, V) n times the covariance of the evaluations' averages over consecutive rounds.

        Args:
            rounds: How many rounds are averaged.
            burn_in: Rounds discarded after a start without spread; None for a loop that is stationary from the first.
        """
        skip, cycle = burn_in or 0, len(self.rounds)
        ahead = torch.zeros_like(self.gradient)  # what an error made now adds to the sum, all later rounds included
        total = torch.zeros(len(ahead), len(ahead), dtype=ahead.dtype)
        for number in reversed(range(skip + rounds)):
            ahead = ahead + self.gradient if number >= skip else ahead
            total = total + ahead @ self.rounds[number % cycle].noise @ ahead.T
            ahead = ahead @ self.rounds[number % cycle].jacobian
        if burn_in is None:
            total = total + ahead @ self.sigma @ ahead.T
        return total / rounds**2

    def time_average_std(self, n: int, rounds: int, burn_in: int | None = None) -> Tensor:
        """(V,) standard deviation of the mean of J over consecutive rounds, which are correlated."""
        return (self.time_average_cov(rounds, burn_in).diagonal().clamp_min(0.0) / n).sqrt()


def finite_sample_theory(
    program: Program,
    theta_star: Tensor,
    update: schema.Update,
    samples: schema.Samples,
    lin: Linearisation | None = None,
) -> FiniteSamples:
    """The stationary law around a stable point, to order 1/n.

    Args:
        program: Compiled ecosystem with unbatched settings.
        theta_star: (D,) stable point.
        update: Order of the updates, and gradient steps if any.
        samples: n, how counts are drawn; only the ``replace`` regime.
        lin: The linearisation at Θ*, when there is one already; used for fixed counts.

    Raises:
        NotAvailableError: where there is no stationary law (a cycle's spectral radius ≥ 1, old samples kept), no closed
            form (random orders, picks of vectors for a model with unknown covariance), or D > 1,500.
        NotStableError: when Θ is not a fixed point of the loop.
    """
    refuse_regime(samples)
    if isinstance(update.order, schema.RandomOrder):
        raise NotAvailableError(
            "finite-sample theory for a random order: no closed form is stated; use another order, or simulate"
        )
    if program.num_params > LARGEST:
        raise NotAvailableError(
            f"finite-sample theory with {program.num_params:,} parameters: it keeps matrices of that size and stops at "
            f"{LARGEST:,}; use fewer features or outcomes, or simulate"
        )
    rarest = _rarest(program, theta_star)
    known: dict[tuple[int, ...], Expansion] = {}
    cycle: list[list[Expansion]] = []
    for number in range(cycle_length(update.order)):
        cycle.append([])
        for models in steps_of_round(update.order, program.names, number):
            key = tuple(models)
            if key not in known:
                known[key] = expand(program, theta_star, models, update.steps, samples.counts or "multinomial")
            cycle[-1].append(known[key])
    for e in known.values():
        gap = float((e.mean - theta_star).norm() / (1 + theta_star.norm()))
        if not gap < 1e-7:
            raise NotStableError(
                f"an update moves the given point by {gap:.2g} of its size; solve for a stable point first"
            )
    rounds, radius = _stationary(cycle, program.num_params)
    gradient = program.alignment_gradient(theta_star)
    shift = torch.stack([gradient @ r.delta + curvature_term(program, theta_star, r.sigma) for r in rounds]).mean(0)
    variance = torch.stack([torch.einsum("vd,de,ve->v", gradient, r.sigma, gradient) for r in rounds]).mean(0)
    by_share = None
    if samples.counts == "fixed":
        by_share = _effect_of_shares(lin or linearise(program, theta_star))
    return FiniteSamples(
        program,
        theta_star,
        program.alignment(theta_star),
        gradient,
        shift,
        variance.clamp_min(0.0).sqrt(),
        rounds[-1].delta,
        rounds[-1].sigma,
        tuple(rounds),
        radius,
        samples.per_round,
        by_share,
        rarest,
    )


def curvature_term(program: Program, theta: Tensor, cov: Tensor) -> Tensor:
    """(V,) ½ tr(∇²J Σ) of every evaluation."""
    out = torch.zeros(len(program.evaluations), dtype=theta.dtype)
    for g in program.alignment_groups:
        index = g.theta_index
        own = cov[index[:, :, None], index[:, None, :]]
        out[g.evaluation] = 0.5 * second_along(lambda t, k=g.kernel: k.value(t)[..., None], theta[index], own)[:, 0]  # type: ignore[misc]
    return out


def lyapunov(G: Tensor, V: Tensor) -> tuple[Tensor, float]:
    """Σ = G Σ Gᵀ + V by doubling, and the spectral radius of G.

    Σ = Σ_k Gᵏ V Gᵏᵀ: each step doubles the number of terms (Smith's method), X ← X + A X Aᵀ, A ← A². All terms are
    positive semidefinite, so nothing cancels. The radius is Gelfand's, ‖G^(2ᵏ)‖^(1/2ᵏ), from the last powers.

    Args:
        G: (D, D).
        V: (D, D) symmetric positive semidefinite.

    Raises:
        NotAvailableError: where the radius is 1 or more.

    Example:
        >>> import torch
        >>> G, V = torch.tensor([[0.5]]).double(), torch.tensor([[3.0]]).double()
        >>> [round(float(x), 6) for x in lyapunov(G, V)]  # 3 / (1 − 1/4)
        [4.0, 0.5]
    """
    A, X, radius = G, V, 0.0
    for k in range(SQUARINGS):
        size = float(torch.linalg.matrix_norm(A))
        if not np.isfinite(size) or size > 1e150:
            break
        radius = size ** (0.5**k)
        if size < 1e-40:
            return X, radius
        X, A = X + A @ X @ A.T, A @ A
    raise NotAvailableError(
        f"finite-sample theory: a round's spectral radius is {radius:.6g} ≥ 1 (to working precision), so the samples' "
        "noise piles up without bound and there is no stationary law; add real data or a ridge"
    )


def _stationary(cycle: Sequence[Sequence[Expansion]], size: int) -> tuple[list[Round], float]:
    eye, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    single = []
    for steps in cycle:
        G, V = eye, zero
        for e in steps:
            G, V = e.push(G), e.spread(V)
        single.append((G, V))
    G, V = eye, zero
    for g, v in single:
        G, V = g @ G, g @ V @ g.T + v
    sigma, radius = lyapunov(G, V)
    own, total, sigmas = [], torch.zeros(size, 1, dtype=torch.float64), []
    for steps in cycle:
        for e in steps:
            own.append(e.bias(sigma)[:, None])
            total, sigma = e.push(total) + own[-1], e.spread(sigma)
        sigmas.append(0.5 * (sigma + sigma.T))
    delta = torch.linalg.solve(eye - G, total)
    rounds, biases = [], iter(own)
    for steps, (g, v), after in zip(cycle, single, sigmas, strict=True):
        for e in steps:
            delta = e.push(delta) + next(biases)
        rounds.append(Round(g, v, after, delta[:, 0]))
    return rounds, radius


def _effect_of_shares(lin: Linearisation) -> Tensor:
    """(D, S) −D⁻¹ E_s[∇ℓ_i], column by column."""
    program = lin.program
    pushes = torch.zeros(program.num_params, len(program.sources), dtype=lin.theta.dtype)
    for g, mean in zip(program.source_groups, lin.mean_gradient, strict=True):
        pushes[program.model_groups[g.group].theta_index[g.row], g.source[:, None]] = -mean
    return lin.solve(pushes).value


def _rarest(program: Program, theta: Tensor) -> dict[str, float]:
    """Probability of the rarest outcome of each categorical model, of those that it can have at all."""
    found: dict[str, float] = {}
    for g in program.model_groups:
        if not isinstance(g.family, Finite) or not g.family.full:
            continue
        p = g.family.log_probs(theta[g.theta_index]).exp()
        p = p if g.family.live is None else torch.where(g.family.live, p, 1.0)
        found |= zip([program.names[i] for i in g.members], p.amin(-1).tolist(), strict=True)
    for name, p_min in found.items():
        if p_min < 1e-9:
            raise NotAvailableError(
                f"finite-sample theory: {name} gives an outcome probability {p_min:.1g}, whose logarithm cannot be "
                "estimated from samples; merge outcomes, add real data that covers them, or use a loglinear model"
            )
    return found
