r"""How many samples a round it takes to see the sign of an influence in runs; ours.

The sign of dJ_k/dλ_i is read off a central difference: at λ_i + h and at λ_i − h the loop is run with n samples a model
and round, from as many seeds, J_k is averaged over the last rounds and over the seeds, and the two are subtracted. To
order 1/n the outcome is normal with

    mean a + b/n,    a = (J̄₊ − J̄₋)/2h on population data, burn-in and finite h included,    b = (shift₊ − shift₋)/2h,
    variance c²/n,   c² = (v₊ + v₋)/(4h² · seeds),    v: n times the variance of a time average,

so that its sign is that of the influence with a confidence of Φ(z) at least, for this and every larger n, from

    n = x²,    |a| x² − z c x + s b = 0 (larger root),    s the sign of the influence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from crossfeed.describe import schema, settings
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import population_round
from crossfeed.dynamics.stable import solve
from crossfeed.errors import SettingError
from crossfeed.influence.finite_samples import FiniteSamples, finite_sample_theory
from crossfeed.influence.matrix import ZERO
from crossfeed.influence.threshold import Mover

LARGEST_N = 10**12


class SmallestN(NamedTuple):
    """An n, or None, and why."""

    n: int | None
    note: str


@dataclass(frozen=True)
class SignTest:
    """The central difference that tells the sign of dJ_k/dλ_i, as a random number, for every affected model k.

    Attributes:
        names: The models.
        intervened: Which model's curation ratio moves.
        influence: (N,) dJ_k/dλ_i.
        zero: (N,) influences up to this size are rounding.
        limit: (N,) a.
        slope: (N,) b.
        rounding: (N,) what largest remainders can take away at most, over n; zero for multinomial counts.
        spread: (N,) c.
        theories: The loop at λ_i + h and at λ_i − h.
        protocol: What is done, in words.
    """

    names: list[str]
    intervened: str
    influence: Tensor
    zero: Tensor
    limit: Tensor
    slope: Tensor
    rounding: Tensor
    spread: Tensor
    theories: tuple[FiniteSamples, FiniteSamples]
    protocol: str

    def probability(self, affected: str, n: int) -> float:
        """Probability that the sign comes out right at n samples (fixed counts: as if shares were the weights)."""
        k = self.names.index(affected)
        towards = math.copysign(1.0, self.influence[k]) * float(self.limit[k] + self.slope[k] / n)
        return float(ndtr(towards * math.sqrt(n) / max(float(self.spread[k]), 1e-300)))

    def smallest_n(self, affected: str, confidence: float = 0.95) -> SmallestN:
        """The smallest n from which on the sign is right with the given confidence, and what to know about it."""
        k = self.names.index(affected)
        value, sign = float(self.influence[k]), math.copysign(1.0, self.influence[k])
        pair = f"the influence of {self.intervened}'s curation on {affected}"
        if abs(value) <= float(self.zero[k]):
            return SmallestN(None, f"{pair} is 0")
        a, b = sign * float(self.limit[k]), sign * float(self.slope[k]) - float(self.rounding[k])
        if a <= float(self.zero[k]):
            return SmallestN(
                None,
                f"{pair} is {value:.3g}, but this protocol measures {sign * a:.3g} even on unlimited samples: "
                "take a smaller step or a longer burn-in",
            )
        z, c = float(ndtri(confidence)), float(self.spread[k])
        inside = (z * c) ** 2 - 4 * a * b
        root = (z * c + math.sqrt(inside)) / (2 * a) if inside >= 0 else 1.0
        n = max(1, math.ceil(root**2 * (1 - 1e-12)))
        if n > LARGEST_N:
            return SmallestN(None, f"{pair} is {value:.3g}, too weak to be seen with {LARGEST_N:.0e} samples a round")
        beyond = math.ceil(abs(b) / a) if math.isfinite(b) else n
        notes = []
        if beyond > n:  # a term in 1/n that exceeds the difference itself is not to be trusted
            n = min(beyond, LARGEST_N)
            notes.append(
                "fewer might do: from here on the shift by finite samples is smaller than the difference itself"
            )
        notes = [f"difference {sign * (a + b / n):.3g} ± {c / math.sqrt(n):.2g}", *notes]
        notes += sorted({note for theory in self.theories for note in theory.notes(n)})
        return SmallestN(n, "; ".join(notes))


def sign_test(
    eco: schema.Ecosystem,
    intervened: str,
    step: float = 0.02,
    rounds: int = 20,
    burn_in: int = 80,
    seeds: int = 40,
    mover: Mover | None = None,
) -> SignTest:
    """The law of the central difference of every alignment when ``intervened``'s curation ratio moves by ± ``step``.

    Runs start at the ecosystem's start, have independent seeds on both sides, and follow its update order and way of
    counting. Terms of order 1/n are those of the stationary law.

    Args:
        eco: The ecosystem.
        intervened: A model with curated sources.
        step: h; λ ± h must be possible.
        rounds: Rounds that are averaged.
        burn_in: Rounds before them.
        seeds: Runs on each side.
        mover: To use a compiled ecosystem, and a stable point, again.

    Raises:
        SettingError: where λ ± h is out of bounds, or nothing can be raised.
        NotStableError, NotAvailableError: as the solver and :func:`finite_sample_theory` say.
    """
    path = f"{intervened}.curation"
    if not step > 0 or min(rounds, seeds) < 1 or burn_in < 0:
        raise SettingError(
            f"sign test: found step {step}, {rounds} rounds, {seeds} seeds, burn-in {burn_in}; need a step > 0, at "
            "least one round and one seed, and a burn-in of 0 or more"
        )
    mover = mover or Mover(eco)
    here = settings.get(eco, path)
    _, found = mover.at({path: here})
    theta, program = found.theta, found.program
    column = program.names.index(intervened)
    sides = [mover.moved({path: here + sign * step})[1] for sign in (1.0, -1.0)]
    theories = tuple(
        finite_sample_theory(side, solve(side, theta).require(), eco.update, eco.samples) for side in sides
    )
    primary = program.primary
    runs = [_population_average(side, eco.update, rounds, burn_in)[primary] for side in sides]
    variance = [t.time_average_cov(rounds, burn_in).diagonal()[primary] for t in theories]
    rows = found.alignment_gradient[primary]
    zero = ZERO * rows.norm(dim=1) * found.response[:, column].norm()
    up, down = theories
    return SignTest(
        program.names,
        intervened,
        found.by_evaluation[primary, column],
        zero,
        (runs[0] - runs[1]) / (2 * step),
        (up.shift - down.shift)[primary] / (2 * step),
        (up.largest_rounding + down.largest_rounding)[primary] / (2 * step),
        ((variance[0] + variance[1]) / seeds).clamp_min(0.0).sqrt() / (2 * step),
        (up, down),
        f"central difference at λ ± {step:g}, {seeds} runs on each side, J averaged over {rounds} rounds after a "
        f"burn-in of {burn_in}",
    )


def smallest_n(
    eco: schema.Ecosystem,
    affected: str,
    intervened: str,
    step: float = 0.02,
    rounds: int = 20,
    burn_in: int = 80,
    seeds: int = 40,
    confidence: float = 0.95,
    mover: Mover | None = None,
) -> SmallestN:
    """The smallest n that shows the sign of dJ_affected/dλ_intervened; :func:`sign_test` serves many models at once."""
    return sign_test(eco, intervened, step, rounds, burn_in, seeds, mover).smallest_n(affected, confidence)


def _population_average(program: Program, update: schema.Update, rounds: int, burn_in: int) -> Tensor:
    """(V,) J averaged over the observed rounds on population data."""
    theta, total = program.start, torch.zeros(len(program.evaluations), dtype=torch.float64)
    for number in range(burn_in + rounds):
        theta = population_round(program, theta, update, number)
        if number >= burn_in:
            total = total + program.alignment(theta)
    return total / rounds
