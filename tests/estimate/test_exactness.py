"""Estimates from samples of closed-form ecosystems against their exact influence matrices.

Statistical tests are seeded and state what they would raise in false alarms if the seed were drawn; no seed or bound was chosen by
its outcome. Bounds on many numbers at once are Bonferroni's.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from exact_cases import CASES, Truth, covered, repeat, sampled, slope, truth, winners_only, z_scores
from scipy.stats import binom, norm
from scipy.stats import t as student
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.linearise import linearise
from crossfeed.errors import NotStableError
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.closed_form_draws import closed_form_samples
from crossfeed.estimate.coordinates import coordinates
from crossfeed.estimate.estimator import Estimate, estimate
from crossfeed.estimate.influence import bootstrap, solve
from crossfeed.influence.matrix import influence
from ecosystems import FAMILIES

FALSE_ALARM = 1e-4  # of one test, over all entries that it compares
LARGE = 20_000
COVERED = [name for name in CASES if "K =" in name or "best" in name or "edges" in name]
QUICK = ["finite, K = 2", "vectors, K = 8", "finite, best of 4", "finite, curated edges", "vectors, raw edges"]
every = pytest.mark.parametrize("name", CASES)
families = pytest.mark.parametrize("name", FAMILIES)


@cache
def known(name: str) -> Truth:
    return truth(CASES[name]())


def excess(found: Estimate, exact: Tensor) -> float:
    """Largest |z| as a multiple of the Bonferroni bound; entries without any error must agree but for rounding."""
    bound = float(norm.isf(FALSE_ALARM / (2 * exact.numel())))
    scale = 1e-9 * (1 + exact.abs())
    return float(((found.answer.matrix - exact).abs() / (bound * found.errors + scale)).max())


# --- one estimate from many samples -----------------------------------------------------------------------------------


@every
def test_the_exact_matrix_is_within_the_stated_error(name: str) -> None:
    """At n = 20,000, where the O(1/n) bias is below a tenth of a standard error (the test of the bias measures it)."""
    _, found = sampled(known(name), LARGE, 11)
    assert excess(found, known(name).matrix) < 1


@pytest.mark.parametrize("name", ["categorical", "finite, best of 4", "vectors, K = 4", "vectors, best of 8"])
def test_the_winners_score_alone_would_be_noticed(name: str) -> None:
    """Where picks are sharp or the couplings matter; with weak preferences the mistake is smaller than the error at this n."""
    _, found = sampled(known(name), LARGE, 11, winners_only)
    assert excess(found, known(name).matrix) > 1


@pytest.mark.parametrize("name", ["finite, ridge", "vectors, ridge"])
def test_a_ridge_that_is_left_out_would_be_noticed(name: str) -> None:
    here = known(name)
    bank, found = sampled(here, LARGE, 11)
    assert all(r == 0 for r in found.horizon.ridge)  # the share that networks get
    assert [steps.ridge for steps in found.horizon.steps] == [m.ridge for m in here.eco.models.values()]
    models = {n: m.model_copy(update={"ridge": 0.0}) for n, m in here.eco.models.items()}
    assert excess(estimate(here.eco.model_copy(update={"models": models}), bank), here.matrix) > 1


@pytest.mark.parametrize("name", ["finite, K = 4", "vectors, raw edges", "linear_gaussian"])
def test_three_rounds_and_very_many(name: str) -> None:
    """x₃ = (I − G³) D⁻¹v for simultaneous exact rounds, and the stable point's answer at the end."""
    here = known(name)
    lin = linearise(here.program, here.theta)
    exact = influence(here.eco, here.program, here.theta, lin)
    G, x = lin.round_jacobian().toarray(), exact.response[:, exact.intervened].numpy()
    want = exact.alignment_gradient.numpy() @ (x - np.linalg.matrix_power(G, 3) @ x)
    bank, _ = sampled(here, LARGE, 12)
    assert excess(estimate(here.eco, bank, rounds=3), torch.from_numpy(want)) < 1
    bank, found = sampled(here, 200, 12)
    end = estimate(here.eco, bank, rounds=150)
    torch.testing.assert_close(end.answer.matrix, found.answer.matrix, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(end.errors, found.errors, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["finite, K = 2", "vectors, raw edges", "categorical"])
def test_isolated_influence(name: str) -> None:
    """Every other model frozen: means of 20 estimates, n = 2000, Student's t."""
    here = known(name)
    exact = influence(here.eco, here.program, here.theta).isolated
    samples = torch.stack([sampled(here, 2000, 40 + k)[1].answer.isolated for k in range(20)])
    bound = float(student.isf(FALSE_ALARM / (2 * len(exact)), 19))
    assert float(z_scores(samples.diagonal(dim1=1, dim2=2), exact).abs().max()) < bound
    assert float((samples - torch.diag_embed(samples.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-12


def test_rounds_of_gradient_steps() -> None:
    """x₃ = (I − (I − QD)³) D⁻¹v with Q = (I − (I − ηH)ᵏ) H⁻¹, ridge included."""
    here = known("finite, ridge")
    update = here.eco.update.model_copy(update={"steps": s.GradientSteps(count=4, size=0.5)})
    lin = linearise(here.program, here.theta)
    exact = influence(here.eco, here.program, here.theta, lin)
    H = torch.block_diag(*(block for blocks in lin.curvature for block in blocks)).numpy()
    eye = np.eye(len(H))
    Q = (eye - np.linalg.matrix_power(eye - 0.5 * H, 4)) @ np.linalg.inv(H)
    rest = np.linalg.matrix_power(eye - Q @ lin.matrix.toarray(), 3)
    want = exact.alignment_gradient.numpy() @ (eye - rest) @ exact.response.numpy()
    bank, _ = sampled(here, LARGE, 13)
    assert excess(estimate(here.eco.model_copy(update={"update": update}), bank, rounds=3), torch.from_numpy(want)) < 1


# --- what is exact in samples of any size ---------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("rounds", [None, 3])
def test_effects_are_derivatives_by_the_weights_of_clusters(name: str, rounds: int | None) -> None:
    here = known(name)
    bank, _ = sampled(here, 12, 3)
    found = estimate(here.eco, bank, rounds=rounds)
    num, h = found.effects.shape[0], 1e-4
    for c in range(0, num, 29):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(num, dtype=torch.float64)
            weights[c] += sign * h
            ends.append(solve(bank, found.horizon, found.directions, weights=weights).matrix)
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(
            difference, found.effects[c], rtol=1e-5, atol=1e-6 * float(found.effects.abs().max())
        )


@pytest.mark.parametrize("name", ["categorical", "loglinear", "outcomes that models lack", "finite, ridge"])
def test_curvature_of_finite_models_is_exact(name: str) -> None:
    """Fisher's matrix at θ, idle coordinates and ridge included, whatever the samples are."""
    here = known(name)
    _, found = sampled(here, 5, 0)
    want = linearise(here.program, here.theta).curvature
    for group, matrices in zip(here.program.model_groups, want, strict=True):
        for member, matrix in zip(group.members.tolist(), matrices, strict=True):
            eye = torch.eye(len(matrix), dtype=torch.float64)
            torch.testing.assert_close(found.answer.system.curvature(member, eye), matrix, rtol=1e-12, atol=1e-12)


def test_rows_and_coordinates_stay_in_double_precision() -> None:
    bank, _ = sampled(known("gaussian"), 5, 0)
    kept = [*(r.loss for r in bank.sources), *(r.score for r in bank.sources if r.score is not None)]
    assert {rows.dtype for rows in [*kept, *(r.score for r in bank.evaluations)]} == {torch.float64}
    wide = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 40)))
    basis = coordinates([wide], None, 0)
    inside = basis.of_gradients(wide)
    assert (basis.size, inside.dtype) == (6, torch.float64)
    torch.testing.assert_close(inside @ inside.T, wide @ wide.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["finite, K = 2", "vectors, K = 2", "gaussian"])
def test_answers_on_their_own_beat_pairs(name: str) -> None:
    """Var of ∇J from N answers: 2 Var((r₁ − r₂)(s₁ − s₂)/2)/N in pairs is never less than Var((r − J) s)/N (Hoeffding)."""
    bank, _ = sampled(known(name), LARGE, 0)
    for rows in bank.evaluations:
        r, score = rows.draw.rewards - rows.draw.rewards.mean(), rows.score
        pairs = (r[::2] - r[1::2]) * (score[::2] - score[1::2]) / 2
        assert bool((2 * pairs.var(0) > 1.2 * (r * score).var(0)).all())


def test_undetermined_directions_are_refused() -> None:
    """Two equal features: the exact code refuses too."""
    eco = CASES["finite, K = 2"]()
    models = {}
    for name, model in eco.models.items():
        column = np.asarray(model.family.features)[:, :1]
        models[name] = model.model_copy(update={"family": s.LogLinear(features=np.hstack([column, column]))})
    eco = eco.model_copy(update={"models": models})
    theta = torch.zeros(4, dtype=torch.float64)
    found, draws = closed_form_samples(eco, theta, 50, 0)
    with pytest.raises(NotStableError, match="estimated D is singular"):
        estimate(eco, build_bank(found, draws, dict.fromkeys(found)))


# --- standard errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finite, K = 2", "vectors, best of 4", "linear_gaussian"])
def test_bootstrap_and_jackknife_agree(name: str) -> None:
    """Ratios of 200 bootstraps' standard deviations have errors of 5 %; bounds are four of them."""
    bank, found = sampled(known(name), 1000, 5)
    num = found.effects.shape[0]
    spread = bootstrap(bank, found.horizon, found.directions, num, 200, 6).std(0)
    free = found.errors > 1e-12  # others are zero by the graph alone, in every bootstrap too
    assert float(spread[~free].sum()) < 1e-12
    ratio = spread[free] / found.errors[free]
    assert float((ratio - 1).abs().max()) < 0.2


@pytest.mark.parametrize("name", QUICK)
def test_intervals_cover_roughly(name: str) -> None:
    """95 % intervals of 60 repetitions, n = 500: no less often than what a binomial of 95 % falls short of with probability FALSE_ALARM.

    Coverage is averaged over entries, which at worst hang together as one.
    """
    share = float(covered(repeat(known(name), 500, 60, 100)).mean())
    assert share >= binom.ppf(FALSE_ALARM, 60, 0.95) / 60


@pytest.mark.parametrize("name", ["finite, K = 4", "vectors, best of 4"])
def test_errors_fall_with_the_root_of_n_roughly(name: str) -> None:
    """RMSE at n = 100 and 3200, 40 repetitions: the slope's error is .046 if entries hang together as one; false alarm 3 % then."""
    found = {n: repeat(known(name), n, 40, 300) for n in (100, 3200)}
    assert -0.6 < slope(found) < -0.4


# --- many repetitions ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every
def test_bias_is_within_the_error_of_the_mean(name: str) -> None:
    """Mean of 100 estimates at n = 1000 with their O(1/n) bias taken out (by halves of the samples)."""
    found = repeat(known(name), 1000, 100, 2000, corrected=100)
    bound = float(student.isf(FALSE_ALARM / (2 * len(found.exact)), 99))
    assert float(z_scores(found.corrected, found.exact).abs().max()) < bound
    bias = (found.plain - found.corrected).mean(0) / found.plain.std(0)
    assert float(bias.abs().max()) < 0.4  # so at n = LARGE less than a tenth of a standard error


@pytest.mark.slow
@every
def test_errors_fall_with_the_root_of_n(name: str) -> None:
    """RMSE at n = 250, 1000 and 4000, 150 repetitions each: the slope's error is .03 if entries hang together as one, false alarm .1 %.

    With 60 it is .045: one of 29 ecosystems then falls outside by chance more often than not.
    """
    found = {n: repeat(known(name), n, 150, 3000 + n) for n in (250, 1000, 4000)}
    assert -0.6 < slope(found) < -0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover(name: str) -> None:
    """95 % intervals of 400 repetitions, n = 1000: 92 to 98 % averaged over entries (false alarm 0.6 % where they hang together).

    Single entries: within what a binomial leaves with probability FALSE_ALARM.
    """
    found = repeat(known(name), 1000, 400, 4000)
    shares = covered(found)
    assert 0.92 <= float(shares.mean()) <= 0.98
    tail = FALSE_ALARM / (2 * len(shares))
    assert float(shares.min()) >= binom.ppf(tail, 400, 0.95) / 400
    assert float(shares.max()) <= binom.isf(tail, 400, 0.95) / 400
    narrow = covered(found._replace(errors=found.errors / 2**0.5))
    assert float(narrow.mean()) < 0.92  # the test would notice errors that are too small
