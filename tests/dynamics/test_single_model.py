"""One model alone, retrained on itself: exact results of Ferbach et al. 2024, of Wishart, and of Wright and Fisher."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.rounds import population_round
from crossfeed.dynamics.run import run
from crossfeed.dynamics.stable import solve


def log_ratios(p):
    """θ of a categorical model with probabilities p."""
    from scipy.linalg import helmert

    return helmert(len(p)) @ np.log(p)


def curated_model(reward, candidates, start=None, real=0.0, data=None):
    """One categorical model on its own curated outputs, with a share of real data."""
    sources = [s.Curated(producer="p", weight=1 - real, candidates=candidates)]
    given_data = {}
    if real:
        sources.append(s.Real(data="web", weight=real))
        given_data = {"web": s.DistributionData(weights=data)}
    return s.Ecosystem(
        space=s.Outcomes(count=len(reward)),
        data=given_data,
        rewards={"r": s.TableReward(values=reward)},
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="r",
                sources=sources,
                start=None if start is None else log_ratios(start),
            )
        },
    )


def probabilities(program, theta):
    return program.model_groups[0].family.log_probs(theta[..., None, :])[..., 0, :].exp().numpy()


def next_p(p, reward, candidates):
    program = compile_ecosystem(curated_model(reward, candidates, p))
    return probabilities(program, population_round(program, program.start, s.Update()))


def random_case(seed, num=5):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(num)) + 1e-3, rng.normal(size=num)


# --- fully curated, fully synthetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 2, 3, 4])
def test_a_round_is_the_sum_over_all_candidate_sets(candidates):
    p, reward = random_case(candidates)
    p /= p.sum()
    picked = np.zeros(5)
    formula = np.zeros(5)
    for drawn in itertools.product(range(5), repeat=candidates):
        chance = np.prod(p[list(drawn)])
        w = np.exp(reward[list(drawn)])
        np.add.at(picked, list(drawn), chance * w / w.sum())
    for others in itertools.product(range(5), repeat=candidates - 1):
        rest = np.exp(reward[list(others)]).sum()
        formula += p * np.prod(p[list(others)]) * candidates * np.exp(reward) / (np.exp(reward) + rest)
    assert np.allclose(picked, formula, atol=1e-14)
    assert np.abs(next_p(p, reward, candidates) - picked).max() < 1e-12


def test_infinitely_many_candidates_tilt_by_the_exponential_reward():
    p, reward = random_case(9)
    p /= p.sum()
    tilted = p * np.exp(reward) / (p * np.exp(reward)).sum()
    assert np.abs(next_p(p, reward, math.inf) - tilted).max() < 1e-13
    gaps = [np.abs(next_p(p, reward, k) - tilted).max() for k in (100, 1_000, 10_000)]
    assert gaps[1] / gaps[0] == pytest.approx(0.1, rel=0.1)  # the limit is approached like 1/K
    assert gaps[2] / gaps[1] == pytest.approx(0.1, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), candidates=st.sampled_from([1, 2, 3, 8, math.inf]), size=st.floats(0.1, 3.0))
def test_the_mean_exponential_reward_grows_at_least_with_its_variance(seed, candidates, size):
    p, reward = random_case(seed)
    reward = size * reward
    program = compile_ecosystem(curated_model(reward, candidates, p / p.sum()))
    theta, gain = program.start, np.exp(reward)
    share = 1.0 if math.isinf(candidates) else (candidates - 1) / candidates
    for _ in range(6):
        before = probabilities(program, theta)
        theta = population_round(program, theta, s.Update())
        mean = before @ gain
        variance = before @ (gain - mean) ** 2
        assert probabilities(program, theta) @ gain >= mean + share * variance / gain.max() - 1e-11 * gain.max()


def test_the_loop_collapses_onto_the_best_outcomes():
    p = np.array([0.3, 0.05, 0.25, 0.15, 0.25])
    reward = np.array([0.0, 1.0, 0.4, 1.0, -1.0])  # two are best
    eco = curated_model(reward, 4, p)
    found = run(eco, rounds=120)
    q = probabilities(found.program, found.state.theta[0])
    assert q[[1, 3]].sum() > 1 - 1e-12
    assert q[1] / q[3] == pytest.approx(0.05 / 0.15, rel=1e-9)  # equals are treated alike
    assert q @ np.exp(reward) ** 2 - (q @ np.exp(reward)) ** 2 < 1e-10
    assert (np.diff(found.alignment[:, 0, 0]) > -1e-14).all()
    assert found.entropy[-1, 0, 0] == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs=1e-9)


def test_a_run_ends_when_one_outcome_is_left():
    found = run(curated_model(np.array([0.0, 2.0, 0.5]), math.inf, np.full(3, 1 / 3)), rounds=500)
    assert found.results == ["collapsed"]
    assert 5 < found.last[0] < 30
    assert found.rounds[-1] == found.last[0] == found.collapse[0, 0]
    assert found.state.round == 500
    assert "collapsed" in found.reason(0)
    assert "p: alignment" in found.summary()


# --- with real data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("curated", "candidates"), [(0.2, 2), (0.3, 3), (0.6, 4), (0.9, math.inf)])
def test_real_data_keep_the_loop_near_them(curated, candidates):
    """p_{t+1} = (1 − λ) p_data + λ P(p_t), whatever P, gives at every round from the second on

        TV(p_t, p_data) ≤ λ,    KL(p_data ‖ p_t) ≤ −log(1 − λ)      (p_t ≥ (1 − λ) p_data),

    and, as no pick of K makes an outcome more than K times as likely, p_t / p_data ≤ (1 − λ)/(1 − λK) where λK < 1.
    """
    data, reward = random_case(3, 6)
    data /= data.sum()
    eco = curated_model(2 * reward, candidates, real=1 - curated, data=data)
    program = compile_ecosystem(eco)
    theta = program.start
    for _ in range(60):
        theta = population_round(program, theta, s.Update())
        p = probabilities(program, theta)
        assert 0.5 * np.abs(p - data).sum() <= curated + 1e-12
        assert data @ np.log(data / p) <= -math.log(1 - curated) + 1e-12
        if curated * candidates < 1:
            assert (p / data).max() <= (1 - curated) / (1 - curated * candidates) + 1e-12
    point = solve(program)
    assert point.result == "converged"
    assert np.abs(probabilities(program, point.theta) - p).max() < 1e-6
    found = run(eco, rounds=3)
    expected = [0.5 * np.abs(probabilities(program, program.start) - data).sum()]
    theta = program.start
    for _ in range(3):
        theta = population_round(program, theta, s.Update())
        expected.append(0.5 * np.abs(probabilities(program, theta) - data).sum())
    assert np.allclose(found.distance[:, 0, 0], expected, atol=1e-13)


def test_little_curation_is_a_contraction_from_everywhere():
    """Two sets of K candidates differ with probability ≤ K TV, so TV(Tp, Tp′) ≤ λK TV(p, p′)."""
    data, reward = random_case(4, 6)
    eco = curated_model(3 * reward, 3, real=0.75, data=data)
    program = compile_ecosystem(eco)
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(3 * rng.normal(size=5)) for _ in range(2))
    gap = 0.5 * np.abs(probabilities(program, a) - probabilities(program, b)).sum()
    for _ in range(30):
        a, b = (population_round(program, t, s.Update()) for t in (a, b))
        smaller = 0.5 * np.abs(probabilities(program, a) - probabilities(program, b)).sum()
        assert smaller <= 0.75 * gap + 1e-14
        gap = smaller
    assert gap < 1e-6


# --- finite samples, raw: collapse at the exact rate ----------------------------------------------------------------

START = np.array([[1.0, 0.4], [0.4, 0.5]])


def raw_gaussian(counts="multinomial"):
    scale = np.linalg.cholesky(START)
    start = [0.3, -0.2, *np.log(np.diag(scale)), scale[1, 0]]
    return s.Ecosystem(
        space=s.Vectors(dim=2),
        rewards={"r": s.LinearReward(vector=[1, 0])},
        models={"p": s.Model(family=s.Gaussian(), reward="r", sources=[s.Raw(producer="p", weight=1)], start=start)},
        samples=s.Samples(counts=counts),
    )


def raw_categorical(p):
    model = s.Model(
        family=s.Categorical(), reward="r", sources=[s.Raw(producer="p", weight=1)], start=log_ratios(np.array(p))
    )
    return s.Ecosystem(
        space=s.Outcomes(count=len(p)),
        rewards={"r": s.TableReward(values=np.arange(len(p), dtype=float))},
        models={"p": model},
    )


def within(values, exact, errors=4.0):
    """The mean over seeds lies within this many standard errors of the exact value."""
    error = values.std(0, ddof=1) / math.sqrt(len(values))
    assert (np.abs(values.mean(0) - exact) <= errors * error + 1e-12).all(), (values.mean(0), exact, error)


def test_a_gaussian_collapses_at_the_wishart_rate():
    n, rounds = 20, 30
    found = run(raw_gaussian(), rounds=rounds, samples=n, seeds=300)
    log_det = 2 * (found.entropy[:, :, 0] - 2 / 2 * math.log(2 * math.pi * math.e))
    drift = sum(digamma((n - j) / 2) - math.log(n / 2) for j in (1, 2))
    within((log_det[-1] - log_det[0]) / rounds, drift)
    total = found.spread[:, :, 0] ** 2
    for t in (1, 2, 5, 12):
        within(total[t], (1 - 1 / n) ** t * np.trace(START))
    once = run(raw_gaussian(), rounds=1, samples=n, seeds=300)
    family = once.program.model_groups[0].family
    mean, cov = family.mean_cov(once.state.theta[:, None])
    within(cov[:, 0].reshape(-1, 4).numpy(), (1 - 1 / n) * START.reshape(-1))
    within(mean[:, 0].numpy(), [0.3, -0.2])
    within(((mean[:, 0] - torch.tensor([0.3, -0.2])) ** 2).numpy(), np.diag(START) / n)


def test_fewer_samples_than_dimensions_still_have_the_right_scatter():
    once = run(raw_gaussian(), rounds=1, samples=2, seeds=600)  # two points in the plane: a scatter of rank one
    _, cov = once.program.model_groups[0].family.mean_cov(once.state.theta[:, None])
    within(cov[:, 0].reshape(-1, 4).numpy(), 0.5 * START.reshape(-1))
    assert (torch.linalg.eigvalsh(cov[:, 0])[:, 0] < 1e-6).all()


def test_a_collapsed_gaussian_ends_its_seed_only():
    found = run(raw_gaussian(), rounds=400, samples=4, seeds=6)
    assert set(found.results) == {"collapsed"}
    assert len(set(found.last)) > 1
    for seed, last in enumerate(found.last):
        assert np.isfinite(found.entropy[: last + 1, seed]).all()
        assert np.isnan(found.entropy[last + 1 :, seed]).all()
    assert "6 of 6 seeds collapsed" in found.summary()


KEPT = {
    # E[variance of the model] / start, by round: what is lost in a round is the variance of the pool's mean
    "replace": lambda n, t: (1 - 1 / n) ** t,
    "accumulate": lambda n, t: math.prod(1 - 1 / (n * k * k) for k in range(1, t + 1)),
    "subsample": lambda n, t: (1 - 1 / n) ** 2 * math.prod(1 - (2 - 1 / n) / (n * k * k) for k in range(2, t + 1)),
}


@pytest.mark.parametrize("regime", KEPT)
def test_variance_kept_by_each_data_regime(regime):
    r"""With all samples so far pooled, E Σ_t = Σ_0 Π_k (1 − 1/(n k²)) → Σ_0 sin(π/√n)/(π/√n): no collapse.

    Derivation: the pool's second moment is a martingale, its mean moves by a step of variance Σ/(n k²) in round k.
    With n drawn from the pool the model's own mean and covariance add to that step, (2 − 1/n)/(n k²).
    The same law holds for the chance that two outcomes differ, 1 − Σ p², on a finite outcome set.
    """
    n, rounds = 5, 25
    p = np.array([0.4, 0.3, 0.2, 0.1])
    finite = run(raw_categorical(p), rounds=rounds, samples=n, seeds=400, regime=regime)
    many = 12  # so that n draws from the pool do span the plane
    vectors = run(raw_gaussian(), rounds=rounds, samples=many, seeds=250, regime=regime)
    for t in (1, 2, 4, 8):
        within(vectors.spread[t, :, 0] ** 2, KEPT[regime](many, t) * np.trace(START))
    if regime == "replace":
        assert (np.array(finite.results) == "collapsed").mean() > 0.9
        assert vectors.spread[-1].mean() < 0.4
        return
    q = probabilities(finite.program, finite.state.theta)
    within(1 - (q**2).sum(1), KEPT[regime](n, rounds) * (1 - p @ p))
    within(finite.alignment[-1, :, 0], p @ np.arange(4))  # nothing is preferred
    within(vectors.spread[-1, :, 0] ** 2, KEPT[regime](many, rounds) * np.trace(START))
    assert set(finite.results) == set(vectors.results) == {"budget"}
    if regime == "accumulate":
        limit = math.sin(math.pi / math.sqrt(n)) / (math.pi / math.sqrt(n))
        assert KEPT[regime](n, 4000) == pytest.approx(limit, rel=1e-3)
