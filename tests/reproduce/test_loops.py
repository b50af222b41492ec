"""Finite samples: the theory against moments followed round by round, and the simulation against the theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.influence.finite_samples import curvature_term
from crossfeed.influence.paths import moment_path
from crossfeed.reproduce import loops
from crossfeed.reproduce.gaussian import gaussian_ecosystem


@pytest.mark.parametrize("n", [1, 4])
def test_theory_is_the_moments_followed_round_by_round(n):
    strengths, shares = [0.9, 0.2], [0.4, 0.7]
    law = loops.expected(strengths, shares, rounds=8, discarded=5)
    eco = gaussian_ecosystem(strengths, shares, per_round=n)
    program = compile_ecosystem(eco)
    start = torch.zeros(program.num_params, dtype=torch.float64)
    path = list(moment_path(program, start, eco.update, eco.samples, 8))[5:]
    values = [program.alignment(mean) + curvature_term(program, mean, cov) for mean, cov in path]
    expected = torch.stack(values).mean(0)[program.primary].reshape(-1, 2)
    np.testing.assert_allclose(law.mean(n), expected, rtol=0, atol=1e-12)


def test_simulation_agrees_with_the_theory():
    """400 runs of three pairs; z² summed over the six alignments stays below the 99.9 % point of its law."""
    strengths, shares, n, runs = [0.3, 0.6, 0.9], [0.4, 0.4, 0.7], 5, 400
    law = loops.expected(strengths, shares, rounds=30, discarded=20)
    found = loops.simulate(strengths, shares, n, runs, seed=7, rounds=30, discarded=20).reshape(runs, -1)
    gap = found.mean(0) - law.mean(n).reshape(-1)
    cov = np.cov(found.T) / runs
    assert gap @ np.linalg.solve(cov, gap) < chi2.isf(0.001, 6)
    ratio = found.std(0, ddof=1) / (law.std.reshape(-1) / np.sqrt(n))
    assert np.all(
        np.abs(ratio - 1) < 0.15
    )  # four standard errors of a standard deviation of 400 runs, and terms in 1/n²


def test_simulation_follows_its_seed():
    def run(seed):
        return loops.simulate([0.5], [0.4], 4, 3, seed, rounds=3, discarded=1)

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).all()
    first = loops.simulate([0.5], [0.4], 4, 2, 1, rounds=3, discarded=1)
    np.testing.assert_array_equal(first, run(1)[:2])


def test_an_endless_run_forgets_its_start():
    law = loops.expected([0.5], [0.4], rounds=300, discarded=290)
    np.testing.assert_allclose(law.population, law.value, rtol=0, atol=1e-10)
    np.testing.assert_allclose(law.shift, law.stationary, rtol=0, atol=1e-10)
