"""The paper's Gaussian experiment, simulated: by the library, and by loops that do one run at a time in NumPy.

Finite-sample derivatives: 18 values of t × n in {4, 12, 64} × λ ± 0.02 × 40 seeds; λ sweep: 17 λ × n in {4, 32} × t in
{0.2, 0.9} × 20 seeds; 100 rounds each, the alignment averaged over the last 20.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import State, sampled_round

ROUNDS, DISCARDED = 100, 80


@dataclass(frozen=True)
class Constants:
    """The published constants: A(t) = t · A, and everything else as in the paper."""

    A: np.ndarray
    a: np.ndarray
    g_p: np.ndarray
    g_q: np.ndarray
    eta_p: float
    eta_q: float
    sigma: float
    t: np.ndarray
    lambdas: np.ndarray
    lambda_0: float


@dataclass(frozen=True)
class Job:
    """Runs that belong together: every t × λ × seed at one n."""

    name: str
    t: np.ndarray
    lambdas: np.ndarray
    num_samples: int
    num_seeds: int

    @property
    def num_runs(self) -> int:
        return len(self.t) * len(self.lambdas) * self.num_seeds


def constants() -> Constants:
    path = files("crossfeed") / "reproduce" / "gaussian_mechanism.npz"
    with path.open("rb") as file:
        k = dict(np.load(file))
    return Constants(
        k["A"],
        k["a"],
        k["g_p"],
        k["g_q"],
        float(k["eta_p"]),
        float(k["eta_q"]),
        float(k["sigma"]),
        k["finite_t"],
        k["lambda_grid"],
        float(k["lambda0"]),
    )


def jobs(c: Constants, share: float = 1.0) -> list[Job]:
    """The published runs, or a share of their seeds."""
    around = np.array([c.lambda_0 - 0.02, c.lambda_0 + 0.02])
    finite = [Job("derivative", c.t, around, n, max(2, round(40 * share))) for n in (4, 12, 64)]
    sweep = [Job("sweep", np.array([0.2, 0.9]), c.lambdas, n, max(2, round(20 * share))) for n in (4, 32)]
    return finite + sweep


# --- the library -------------------------------------------------------------------------------------------------------


def ecosystem(c: Constants, ts: np.ndarray) -> s.Ecosystem:
    """All values of t as pairs p, q that have nothing to do with each other, in one ecosystem.

    q sees M y with y from p, M = t A. The published loop gives it noise σ² in every direction, so p's own is σ² M⁻¹M⁻ᵀ.
    """
    models: dict[str, s.Model] = {}
    rewards: dict[str, s.Reward] = {}

    def reward(g: np.ndarray, eta: float, cov: np.ndarray) -> s.QuadraticReward:
        return s.QuadraticReward(vector=g, matrix=-eta, constant=0.5 * eta * float(np.trace(cov)))

    cov_q = c.sigma**2 * np.eye(len(c.a))
    rewards["q"] = reward(c.g_q, c.eta_q, cov_q)
    for k, t in enumerate(ts):
        inverse = np.linalg.inv(t * c.A)
        cov_p = c.sigma**2 * inverse @ inverse.T
        rewards[f"p{k}"] = reward(c.g_p, c.eta_p, cov_p)
        raw = s.Raw(name="raw", producer=f"q{k}", weight=1 - c.lambda_0)
        curated = s.Curated(producer=f"q{k}", name="curated", weight=c.lambda_0, candidates=1, map=s.Affine(shift=c.a))
        turned = s.Raw(producer=f"p{k}", weight=1.0, map=s.Affine(matrix=t * c.A))
        models[f"p{k}"] = s.Model(family=s.GaussianMean(cov=cov_p), reward=f"p{k}", sources=[raw, curated])
        models[f"q{k}"] = s.Model(family=s.GaussianMean(cov=cov_q), reward="q", sources=[turned])
    first, second = ([f"{m}{k}" for k in range(len(ts))] for m in "pq")
    order = s.Cycle(rounds=[[first, second]])
    return s.Ecosystem(space=s.Vectors(dim=len(c.a)), rewards=rewards, models=models, update=s.Update(order=order))


def with_ratios(program: Program, lambdas: np.ndarray, num_pairs: int) -> Program:
    """The program at several curation ratios at once."""
    settings = program.settings.expand(len(lambdas), -1).clone()
    for k in range(num_pairs):
        settings[:, program.slots[f"p{k}.sources.curated.weight"]] = torch.from_numpy(lambdas)
        settings[:, program.slots[f"p{k}.sources.raw.weight"]] = torch.from_numpy(1 - lambdas)
    return program.with_settings(settings)


def by_library(c: Constants, job: Job, seed: int = 0) -> np.ndarray:
    """(seeds, λ, t, 2) mean alignment of p and q over the last rounds; all runs of the job advance together."""
    eco = ecosystem(c, job.t)
    program = with_ratios(compile_ecosystem(eco), job.lambdas, len(job.t))
    state = State(torch.zeros(job.num_seeds, len(job.lambdas), program.num_params, dtype=torch.float64))
    samples = s.Samples(per_round=job.num_samples)
    total = torch.zeros(job.num_seeds, len(job.lambdas), 2 * len(job.t), dtype=torch.float64)
    for number in range(ROUNDS):
        state = sampled_round(program, state, eco.update, samples, seed)
        if number >= DISCARDED:
            total += program.alignment(state.theta)
    return (total / (ROUNDS - DISCARDED)).unflatten(-1, (-1, 2)).numpy()


# --- one run at a time ---------------------------------------------------------------------------------------------------


def every_sample(c: Constants, A: np.ndarray, ratio: float, n: int, seed: int) -> tuple[float, float]:
    """One run that draws the n samples of each model and round."""
    rng = np.random.default_rng(seed)
    dim = len(c.a)
    phi = np.zeros(dim)
    J_p = J_q = 0.0
    for number in range(ROUNDS):
        z = phi + c.sigma * rng.standard_normal((n, dim))
        z[rng.random(n) < ratio] += c.a
        theta = z.mean(0)
        phi = (A @ theta + c.sigma * rng.standard_normal((n, dim))).mean(0)
        if number >= DISCARDED:
            J_p += c.g_p @ theta - 0.5 * c.eta_p * theta @ theta
            J_q += c.g_q @ phi - 0.5 * c.eta_q * phi @ phi
    return J_p / (ROUNDS - DISCARDED), J_q / (ROUNDS - DISCARDED)


def sample_means(c: Constants, A: np.ndarray, ratio: float, n: int, seed: int) -> tuple[float, float]:
    """One run that draws the mean of the n samples of each model and round from its exact law."""
    rng = np.random.default_rng(seed)
    dim, scale = len(c.a), c.sigma / np.sqrt(n)
    phi = np.zeros(dim)
    J_p = J_q = 0.0
    for number in range(ROUNDS):
        theta = phi + (rng.binomial(n, ratio) / n) * c.a + scale * rng.standard_normal(dim)
        phi = A @ theta + scale * rng.standard_normal(dim)
        if number >= DISCARDED:
            J_p += c.g_p @ theta - 0.5 * c.eta_p * theta @ theta
            J_q += c.g_q @ phi - 0.5 * c.eta_q * phi @ phi
    return J_p / (ROUNDS - DISCARDED), J_q / (ROUNDS - DISCARDED)


def one_at_a_time(c: Constants, job: Job, run: Any, num_seeds: int) -> np.ndarray:
    """(seeds, λ, t, 2) as :func:`by_library`, by one of the functions above."""
    return np.array(
        [
            [[run(c, t * c.A, float(x), job.num_samples, seed) for t in job.t] for x in job.lambdas]
            for seed in range(num_seeds)
        ]
    )


# --- what all of them must agree with ------------------------------------------------------------------------------------


def exact_mean(c: Constants, job: Job) -> np.ndarray:
    """(λ, t, 2) expected alignment over the same rounds: mean and covariance of θ and φ, round by round."""
    out = np.zeros((len(job.lambdas), len(job.t), 2))
    eye, n = np.eye(len(c.a)), job.num_samples
    for i, x in enumerate(job.lambdas):
        for k, t in enumerate(job.t):
            mean, cov = np.zeros(len(c.a)), np.zeros_like(eye)
            for number in range(ROUNDS):
                theta = mean + x * c.a
                spread = cov + (x * (1 - x) * np.outer(c.a, c.a) + c.sigma**2 * eye) / n
                mean, cov = t * c.A @ theta, t * c.A @ spread @ (t * c.A).T + c.sigma**2 / n * eye
                if number >= DISCARDED:
                    out[i, k, 0] += c.g_p @ theta - 0.5 * c.eta_p * (theta @ theta + np.trace(spread))
                    out[i, k, 1] += c.g_q @ mean - 0.5 * c.eta_q * (mean @ mean + np.trace(cov))
    return out / (ROUNDS - DISCARDED)


def worst_gap(found: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of (mean over seeds − exact) in standard errors over seeds; 1 when the simulation is right."""
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    return float(np.sqrt(np.mean(((found.mean(0) - exact) / error) ** 2)))
