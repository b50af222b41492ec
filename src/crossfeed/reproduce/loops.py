r"""The Gaussian experiment on finite samples: simulated with the library's rounds, and exactly.

A run is 100 rounds from Θ = 0, alignments are averaged over the last 20. Seeds, strengths t and curation ratios are
all run at once: pairs of models are stacked into one ecosystem, seeds are the leading dimension of Θ.

With n samples a round the loop is Θ ← Θ* + G (Θ − Θ*) + noise, Cov[noise] = V/n, and V does not depend on Θ. So the
mean after r rounds is Θ* + Gʳ(Θ⁰ − Θ*), the covariance Σ_{k<r} Gᵏ V Gᵏᵀ / n, and

    E[J after r rounds] = J(mean) + ½ tr(∇²J Cov),

exactly and at every n, since J is quadratic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.rounds import State, sampled_round
from crossfeed.dynamics.stable import solve
from crossfeed.influence.finite_samples import FiniteSamples, curvature_term, finite_sample_theory
from crossfeed.reproduce.gaussian import gaussian_ecosystem
from crossfeed.reproduce.theorem import stacks

ROUNDS = 100
DISCARDED = 80
PAIRS_IN_THEORY = 4


def simulate(
    t: Sequence[float],
    curation: Sequence[float],
    n: int,
    num_seeds: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    rounds: int = ROUNDS,
    discarded: int = DISCARDED,
) -> np.ndarray:
    """Alignments averaged over the rounds that are kept, (num_seeds, pairs, 2) for p and q.

    Args:
        t: (pairs,) strengths.
        curation: (pairs,) curation ratios.
        n: Samples a model and round.
        num_seeds: Independent runs of each pair; pairs are independent as well.
        seed: Root seed.
        progress: Called with (rounds done, rounds).
        rounds: Rounds of a run.
        discarded: How many of them are left out of the average.
    """
    eco = gaussian_ecosystem(t, curation, per_round=n, seed=seed)
    program = compile_ecosystem(eco)
    state = State(torch.zeros(num_seeds, program.num_params, dtype=torch.float64))
    total = torch.zeros(num_seeds, program.num_models, dtype=torch.float64)
    for number in range(rounds):
        state = sampled_round(program, state, eco.update, eco.samples, seed)
        if number >= discarded:
            total += program.alignment(state.theta)[:, program.primary]
        if progress:
            progress(number + 1, rounds)
    return np.asarray((total / (rounds - discarded)).reshape(num_seeds, -1, 2).numpy())


@dataclass(frozen=True)
class Expected:
    """What :func:`simulate` gives on average; all (pairs, 2).

    Attributes:
        population: Without sampling noise, n → ∞.
        shift: E = population + shift / n.
        std: Standard deviation of one run, std / √n to leading order.
        stationary: E at stationarity minus J(Θ*), times n: what an endless run would have in place of ``shift``.
        value: J(Θ*); what ``population`` lacks to it is left of the start.
    """

    population: np.ndarray
    shift: np.ndarray
    std: np.ndarray
    stationary: np.ndarray
    value: np.ndarray

    def mean(self, n: int) -> np.ndarray:
        """E of the average, at n samples a round."""
        return self.population + self.shift / n


def expected(
    t: Sequence[float],
    curation: Sequence[float],
    rounds: int = ROUNDS,
    discarded: int = DISCARDED,
    progress: Callable[[int, int], None] | None = None,
) -> Expected:
    """The theory of :func:`simulate`, same conventions: start at 0, average over the rounds that are kept.

    Args:
        t: (pairs,) strengths.
        curation: (pairs,) curation ratios.
        rounds: Rounds of a run.
        discarded: How many of them are left out of the average.
        progress: Called with (pairs done, pairs).
    """
    rows = []
    for part in stacks(len(t), PAIRS_IN_THEORY):
        eco = gaussian_ecosystem(t[part], curation[part])
        program = compile_ecosystem(eco)
        law = finite_sample_theory(program, solve(program).require(), eco.update, eco.samples)
        population, shift = over_rounds(law, torch.zeros_like(law.theta), rounds, discarded)
        values = (population, shift, law.time_average_std(1, rounds - discarded, discarded), law.shift, law.value)
        rows.append(torch.stack(values)[:, program.primary].reshape(len(values), -1, 2).numpy())
        if progress:
            progress(part.stop, len(t))
    return Expected(*np.concatenate(rows, axis=1))


def over_rounds(
    law: FiniteSamples, start: torch.Tensor, rounds: int, discarded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of J(E[Θ]) and of ½ tr(∇²J Cov[Θ])·n over the rounds that are kept, (V,) each, for an affine loop.

    Args:
        law: Of an order that repeats every round.
        start: (D,) known start.
        rounds: Rounds of a run.
        discarded: How many of them are left out.
    """
    G, V = law.rounds[0].jacobian, law.rounds[0].noise
    offset, cov = start - law.theta, torch.zeros_like(G)
    means, total = [], torch.zeros_like(G)
    for number in range(rounds):
        offset, cov = G @ offset, G @ cov @ G.T + V
        if number >= discarded:
            means.append(law.theta + offset)
            total += cov
    kept = rounds - discarded
    population = law.program.alignment(torch.stack(means)).mean(0)
    return population, curvature_term(law.program, law.theta, total / kept)
