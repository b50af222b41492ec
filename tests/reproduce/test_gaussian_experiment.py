"""The Gaussian experiment as an ecosystem: published constants, explicit formulas, what the models are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossfeed.describe.load import load
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.rounds import population_round
from crossfeed.dynamics.stable import solve
from crossfeed.errors import SettingError
from crossfeed.reproduce.gaussian import CURATION, NOISE, alignments, constants, explicit, gaussian_ecosystem, published

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gaussian.yaml"


def test_explicit_formulas_give_the_published_arrays():
    d = published()
    found = explicit(d["t"])
    np.testing.assert_allclose(found.influence[:, 0], d["dJp_dlambda"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.influence[:, 1], d["dJq_dlambda"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.rho_p_published, d["rho_p_published"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.rho_q, d["rho_q"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_alignment_over_curation(t):
    d = published()
    key = f"{t:g}".replace(".", "")
    found = alignments(t, d["lambda_grid"])
    np.testing.assert_allclose(found, np.stack([d[f"Jp_t{key}"], d[f"Jq_t{key}"]], -1), rtol=0, atol=1e-10)
    one = gaussian_ecosystem([t] * len(d["lambda_grid"]), d["lambda_grid"].tolist())
    program = compile_ecosystem(one)
    values = program.alignment(solve(program).require())[program.primary].reshape(-1, 2)
    np.testing.assert_allclose(values, found, rtol=0, atol=1e-10)


def test_a_round_is_the_papers():
    """θ ← φ + λa, then φ ← Aθ with the new θ, in every pair of a stack."""
    c, strengths, shares = constants(), [0.3, 0.9], [0.1, 0.7]
    eco = gaussian_ecosystem(strengths, shares)
    program = compile_ecosystem(eco)
    start = torch.from_numpy(np.random.default_rng(0).standard_normal(program.num_params))
    after = population_round(program, start, eco.update).reshape(2, 2, c.dim).numpy()
    for k, (t, share) in enumerate(zip(strengths, shares, strict=True)):
        theta = start.reshape(2, 2, c.dim)[k, 1].numpy() + share * c.a
        np.testing.assert_allclose(after[k], [theta, t * c.A @ theta], atol=1e-14)


def test_models_see_the_papers_noise():
    """Every source delivers covariance σ²I, the mapped one too."""
    program = compile_ecosystem(gaussian_ecosystem(0.4))
    for group in program.source_groups:
        theta = program.start[group.theta_index]
        cov = group.kernel.moments_cov(theta, program.settings)
        np.testing.assert_allclose(cov, NOISE**2 * np.eye(constants().dim)[None].repeat(len(cov), 0), atol=1e-14)


def test_alignment_has_no_part_from_the_models_spread():
    program = compile_ecosystem(gaussian_ecosystem(0.4))
    np.testing.assert_allclose(program.alignment(torch.zeros(program.num_params, dtype=torch.float64)), 0, atol=1e-12)


def test_strength_must_be_positive():
    with pytest.raises(SettingError, match="t: found 0; need strengths above 0"):
        gaussian_ecosystem([0.5, 0.0])


def test_the_example_is_the_experiment():
    one, other = compile_ecosystem(load(EXAMPLE)), compile_ecosystem(gaussian_ecosystem(0.9, CURATION))
    theta = solve(one).require()
    np.testing.assert_allclose(theta, solve(other).require(), atol=1e-12)
    np.testing.assert_allclose(one.alignment(theta), other.alignment(theta), atol=1e-12)
    for mine, theirs in zip(one.source_groups, other.source_groups, strict=True):
        at = theta[mine.theta_index]
        np.testing.assert_allclose(
            mine.kernel.moments_cov(at, one.settings), theirs.kernel.moments_cov(at, other.settings), atol=1e-14
        )
