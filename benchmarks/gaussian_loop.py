"""The paper's Gaussian experiment, simulated: by the library, and by loops that do one run at a time in NumPy.

Finite-sample derivatives: 18 values of t × n in {4, 12, 64} × λ ± 0.02 × 40 seeds; λ sweep: 17 λ × n in {4, 32} × t in
{0.2, 0.9} × 20 seeds; 100 rounds each, the alignment averaged over the last 20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossfeed.reproduce.gaussian import CURATION, NOISE, constants, published
from crossfeed.reproduce.loops import DISCARDED, ROUNDS, simulate

Run = Callable[[np.ndarray, float, int, int], tuple[float, float]]


@dataclass(frozen=True)
class Job:
    """Runs that belong together: every t × λ × seed at one n."""

    t: np.ndarray
    curation: np.ndarray
    num_samples: int
    num_seeds: int

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(t, λ) in the order of all results."""
        return [(float(t), float(x)) for t in self.t for x in self.curation]


def jobs() -> list[Job]:
    """All published runs: 5,680 of 100 rounds."""
    data = published()
    around = np.array([CURATION - 0.02, CURATION + 0.02])
    finite = [Job(data["finite_t"], around, n, 40) for n in (4, 12, 64)]
    return finite + [Job(np.array([0.2, 0.9]), data["lambda_grid"], n, 20) for n in (4, 32)]


def by_library(job: Job, seed: int = 0) -> np.ndarray:
    """(seeds, pairs, 2) mean alignment of p and q over the last rounds; all runs of the job advance together."""
    t, curation = zip(*job.pairs, strict=True)
    return simulate(np.array(t), np.array(curation), job.num_samples, job.num_seeds, seed)


def one_at_a_time(job: Job, run: Run, num_seeds: int) -> np.ndarray:
    """The same, by one of the two functions below."""
    c = constants()
    return np.array([[run(t * c.A, x, job.num_samples, seed) for t, x in job.pairs] for seed in range(num_seeds)])


def every_sample(A: np.ndarray, ratio: float, n: int, seed: int) -> tuple[float, float]:
    """One run that draws the n samples of each model and round."""
    c, rng = constants(), np.random.default_rng(seed)
    phi, J_p, J_q = np.zeros(c.dim), 0.0, 0.0
    for number in range(ROUNDS):
        z = phi + NOISE * rng.standard_normal((n, c.dim))
        z[rng.random(n) < ratio] += c.a
        theta = z.mean(0)
        phi = (A @ theta + NOISE * rng.standard_normal((n, c.dim))).mean(0)
        if number >= DISCARDED:
            J_p += c.g_p @ theta - 0.5 * c.eta_p * theta @ theta
            J_q += c.g_q @ phi - 0.5 * c.eta_q * phi @ phi
    return J_p / (ROUNDS - DISCARDED), J_q / (ROUNDS - DISCARDED)


def sample_means(A: np.ndarray, ratio: float, n: int, seed: int) -> tuple[float, float]:
    """One run that draws the mean of the n samples of each model and round from its exact law."""
    c, rng = constants(), np.random.default_rng(seed)
    scale = NOISE / np.sqrt(n)
    phi, J_p, J_q = np.zeros(c.dim), 0.0, 0.0
    for number in range(ROUNDS):
        theta = phi + (rng.binomial(n, ratio) / n) * c.a + scale * rng.standard_normal(c.dim)
        phi = A @ theta + scale * rng.standard_normal(c.dim)
        if number >= DISCARDED:
            J_p += c.g_p @ theta - 0.5 * c.eta_p * theta @ theta
            J_q += c.g_q @ phi - 0.5 * c.eta_q * phi @ phi
    return J_p / (ROUNDS - DISCARDED), J_q / (ROUNDS - DISCARDED)


def exact_mean(job: Job) -> np.ndarray:
    """(pairs, 2) expected alignment over the same rounds, from the mean and covariance of θ and φ round by round."""
    c, n, out = constants(), job.num_samples, []
    eye = np.eye(c.dim)
    for t, x in job.pairs:
        mean, cov, J_p, J_q = np.zeros(c.dim), np.zeros_like(eye), 0.0, 0.0
        for number in range(ROUNDS):
            theta = mean + x * c.a
            spread = cov + (x * (1 - x) * np.outer(c.a, c.a) + NOISE**2 * eye) / n
            mean, cov = t * c.A @ theta, t * c.A @ spread @ (t * c.A).T + NOISE**2 / n * eye
            if number >= DISCARDED:
                J_p += c.g_p @ theta - 0.5 * c.eta_p * (theta @ theta + np.trace(spread))
                J_q += c.g_q @ mean - 0.5 * c.eta_q * (mean @ mean + np.trace(cov))
        out.append((J_p, J_q))
    return np.array(out) / (ROUNDS - DISCARDED)


def standard_errors_off(found: np.ndarray, job: Job) -> float:
    """Root mean square of (mean over seeds − exact) in standard errors; near 1 when the simulation is right."""
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    return float(np.sqrt(np.mean(((found.mean(0) - exact_mean(job)) / error) ** 2)))
