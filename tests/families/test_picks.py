"""Pick operators against enumeration of every set of candidates, and their limits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossfeed.families.picks import PlackettLuce, best_of, num_nodes, operator, plackett_luce, tilt


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def enumerated(p: np.ndarray, r: np.ndarray, candidates: int) -> np.ndarray:
    """The pick's distribution by going through all n^K candidate sets."""
    at = np.indices((len(p),) * candidates).reshape(candidates, -1)
    votes = np.exp(r[at] - r[at].max(0))
    return np.bincount(at.ravel(), (p[at].prod(0) * votes / votes.sum(0)).ravel(), len(p))


def enumerated_best(p: np.ndarray, r: np.ndarray, candidates: int) -> np.ndarray:
    at = np.indices((len(p),) * candidates).reshape(candidates, -1)
    winner = r[at] == r[at].max(0)
    return np.bincount(at.ravel(), (p[at].prod(0) * winner / winner.sum(0)).ravel(), len(p))


def pick(p: object, r: object, k: float, tau: float = 1.0) -> np.ndarray:
    return operator("plackett_luce", real(r), real(k), real(tau))(real(p)).numpy()


@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("spread", [0.1, 1.0, 7.0, 40.0, 600.0])
def test_plackett_luce_is_what_enumeration_says(candidates: int, spread: float) -> None:
    rng = np.random.default_rng(candidates)
    for n in (2, 4, 6):
        p, r = rng.dirichlet(np.ones(n)), rng.normal(size=n)
        r = 3.0 + spread * r / np.ptp(r)
        q, want = pick(p, r, candidates), enumerated(p, r, candidates)
        np.testing.assert_allclose(q, want, rtol=1e-12, atol=1e-14)


def test_plackett_luce_batches_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    p, r = rng.dirichlet(np.ones(4), size=(3, 1, 2)), rng.normal(size=(2, 4)) * [[1.0], [30.0]]
    k = np.array([[2.0, 5.0], [3.0, 3.0]])
    tau = np.array([[1.0, 2.0], [0.5, 4.0]])
    got = operator("plackett_luce", real(r), real(k), real(tau))(real(p))
    assert got.shape == (3, 2, 2, 4)
    for a, b, e in itertools.product(range(3), range(2), range(2)):
        np.testing.assert_allclose(got[a, b, e], pick(p[a, 0, e], r[e], k[b, e], tau[b, e]), atol=1e-13)


def test_large_stacks_take_the_same_road_as_small_ones() -> None:
    rng = np.random.default_rng(2)
    p, r = real(rng.dirichlet(np.ones(3), size=80)), real(rng.normal(size=(80, 3)))
    k = real(np.full(80, 3.0))
    whole = plackett_luce(p, r, k, num_nodes(8.0, 3.0))
    parts = torch.cat(
        [plackett_luce(p[i : i + 40], r[i : i + 40], k[i : i + 40], num_nodes(8.0, 3.0)) for i in (0, 40)]
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-15)


@pytest.mark.parametrize("spread", [650.0, 720.0, 1500.0, 20_000.0])
def test_no_spread_of_rewards_overflows(spread: float) -> None:
    p = np.array([0.2, 0.3, 0.5])
    q = pick(p, np.array([0.0, 1.0, 1.0]) * spread, 3)
    best = enumerated_best(p, np.array([0.0, 1.0, 1.0]), 3)
    np.testing.assert_allclose(q, best, atol=1e-12 if spread < 2000 else 1e-2)


def test_lower_temperature_at_run_time_costs_no_accuracy() -> None:
    """Nodes follow the temperature as it is: a threshold search may move it far from the spec's."""
    p, r = np.array([0.2, 0.3, 0.5]), np.array([0.0, 0.4, 1.0])
    for tau in (10.0, 1.0, 0.01, 0.002):
        np.testing.assert_allclose(pick(p, r, 3, tau), enumerated(p, r / tau, 3), atol=1e-13)


@pytest.mark.parametrize("candidates", [1e2, 1e4, 1e6])
def test_many_candidates_approach_tilting(candidates: float) -> None:
    rng = np.random.default_rng(3)
    p, r = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    limit = tilt(real(p), real(r)).numpy()
    np.testing.assert_allclose(limit, p * np.exp(r) / (p * np.exp(r)).sum(), rtol=1e-14)
    gap = np.abs(pick(p, r, candidates) - limit).max()
    assert gap < 3.0 / candidates
    assert gap > 0.01 / candidates  # the difference itself is of order 1/K: the operator does not just return the limit


def test_two_outcomes_and_many_candidates_are_a_binomial_sum() -> None:
    """n = 2, K = 200: the number of high candidates is binomial, so the exact answer is a finite sum."""
    from scipy.stats import binom

    k, p, gap = 200, 0.03, 2.5
    high = np.arange(k + 1)
    share = high * np.exp(gap) / (high * np.exp(gap) + (k - high))
    want = float((binom.pmf(high, k, p) * share).sum())
    assert abs(pick([1 - p, p], [0.0, gap], k)[1] - want) < 1e-13


def test_cold_curators_pick_the_best() -> None:
    rng = np.random.default_rng(4)
    p, r = rng.dirichlet(np.ones(5)), np.array([0.3, 1.0, -2.0, 0.6, 0.0])
    for k in (2, 3, 5):
        best = best_of(real(p), real(r), real(k)).numpy()
        np.testing.assert_allclose(best, enumerated_best(p, r, k), atol=1e-15)
        np.testing.assert_allclose(pick(p, r, k, 0.004), best, atol=1e-13)


@pytest.mark.parametrize("r", [[1.0, 1.0, 0.0, 2.0, 0.0], [3.0] * 5, [0.0, 0.0, 0.0, 0.0, 1.0]])
def test_best_of_breaks_ties_evenly(r: list[float]) -> None:
    p = np.array([0.1, 0.25, 0.3, 0.05, 0.3])
    for k in (1, 2, 4):
        np.testing.assert_allclose(best_of(real(p), real(r), real(k)), enumerated_best(p, np.array(r), k), atol=1e-15)
        cold = pick(p, np.array(r), k, 1e-3)
        np.testing.assert_allclose(cold, enumerated_best(p, np.array(r), k), atol=1e-13)


def test_best_of_with_outcomes_that_never_occur() -> None:
    p, r = np.array([0.0, 0.4, 0.0, 0.6, 0.0]), np.array([-1.0, 0.0, 0.5, 0.5, 2.0])
    q = best_of(real(p), real(r), real(3.0)).numpy()
    np.testing.assert_allclose(q, [0, 0.4**3, 0, 1 - 0.4**3, 0], atol=1e-15)


@pytest.mark.parametrize("k", [2.0, 5.0, 1e6])
def test_equal_rewards_change_nothing(k: float) -> None:
    p = real([0.1, 0.2, 0.7])
    for q in (plackett_luce(p, real([5.0] * 3), real(k), num_nodes(0.0, k)), best_of(p, real([5.0] * 3), real(k))):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-13)
    torch.testing.assert_close(tilt(p, real([5.0] * 3)), p, rtol=0, atol=1e-15)


def test_impossible_outcomes_stay_impossible() -> None:
    p, r = np.array([0.0, 0.4, 0.6, 0.0]), np.array([9.0, 0.0, 1.0, -3.0])
    q = pick(p, r, 3)
    assert q[0] == q[3] == 0
    np.testing.assert_allclose(q[1:3], enumerated(p[1:3], r[1:3], 3), atol=1e-14)


@pytest.mark.parametrize("gap", [50.0, 900.0])
def test_tilt_ignores_the_rewards_of_impossible_outcomes(gap: float) -> None:
    q = tilt(real([0.5, 0.5, 0.0]), real([0.0, 1.0, gap]))
    torch.testing.assert_close(q, real([1.0, math.e, 0.0]) / (1 + math.e), rtol=1e-13, atol=0)


def test_a_dominating_outcome() -> None:
    for eps in (1e-3, 1e-9, 1e-200):
        p, r = np.array([1 - eps, eps]), np.array([0.0, 4.0])
        q = pick(p, r, 4)
        np.testing.assert_allclose(q, enumerated(p, r, 4), rtol=1e-12)
        assert q[1] > eps


@pytest.mark.parametrize("kind", ["plackett_luce", "best", "tilt"])
@pytest.mark.parametrize("k", [2.0, 3.7, 40.0])
def test_derivatives_are_central_differences_in_both_modes(kind: str, k: float) -> None:
    rng = np.random.default_rng(5)
    n = 4
    r = rng.normal(size=n) * 2
    x = np.concatenate([rng.dirichlet(np.ones(n)), r, [k, 0.7]])
    weight = real(rng.normal(size=n))

    def value(v: Tensor) -> Tensor:
        q = operator(kind, v[n : 2 * n], v[2 * n], v[2 * n + 1])(v[:n])
        return (q * weight).sum()

    at = real(x)
    forward, reverse = torch.func.jacfwd(value)(at), torch.func.grad(value)(at)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-12)
    for i in range(len(x)):
        h = 1e-6 * max(1.0, abs(x[i]))
        step = torch.zeros_like(at)
        step[i] = h
        slope = float(value(at + step) - value(at - step)) / (2 * h)
        if kind == "best" and n <= i < 2 * n:
            assert float(reverse[i]) == 0 == slope  # only the order of the rewards matters
        else:
            assert float(reverse[i]) == pytest.approx(slope, rel=2e-7, abs=2e-9)


def test_derivative_by_an_absent_outcome_sees_it_as_a_rival() -> None:
    r, k, h = real([0.0, 1.0, 2.0]), real(3.0), 1e-7

    def share(eps: Tensor) -> Tensor:
        p = torch.stack([torch.full_like(eps, 0.5), 0.5 - eps, eps])
        return PlackettLuce.of(r, k, num_nodes(2.0, 3.0))(p)[0]

    zero = real(0.0)
    slope = float(share(real(h)) - share(zero)) / h
    assert float(torch.func.grad(share)(zero)) == pytest.approx(slope, rel=1e-5)


probabilities = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=7).map(lambda v: np.array(v) / np.sum(v))


@given(probabilities, st.data(), st.floats(1.0, 1e4), st.floats(0.02, 50.0))
@settings(max_examples=150, deadline=None)
def test_curation_never_lowers_the_expected_reward(p: np.ndarray, data: st.DataObject, k: float, tau: float) -> None:
    r = np.array(data.draw(st.lists(st.floats(-20, 20), min_size=len(p), max_size=len(p))))
    for kind in ("plackett_luce", "best", "tilt"):
        q = operator(kind, real(r), real(k), real(tau))(real(p)).numpy()
        assert abs(q.sum() - 1) < 1e-12
        assert (q >= 0).all()
        assert q @ r >= p @ r - 1e-9
        assert q @ np.exp(r / 20) >= p @ np.exp(r / 20) - 1e-9  # and every increasing function of it


@given(probabilities, st.floats(1.0, 30.0), st.floats(0.1, 20.0))
@settings(max_examples=60, deadline=None)
def test_more_candidates_pick_more_sharply(p: np.ndarray, k: float, more: float) -> None:
    r = np.linspace(-1, 1, len(p))
    assert pick(p, r, k + more) @ r >= pick(p, r, k) @ r - 1e-12


@given(probabilities, st.permutations(range(7)))
@settings(max_examples=40, deadline=None)
def test_names_of_outcomes_do_not_matter(p: np.ndarray, order: list[int]) -> None:
    at = [i for i in order if i < len(p)]
    r = np.sin(np.arange(len(p)) * 2.0)
    for kind in ("plackett_luce", "best", "tilt"):
        q = operator(kind, real(r), real(3.0), real(0.5))(real(p))
        moved = operator(kind, real(r[at]), real(3.0), real(0.5))(real(p[at]))
        np.testing.assert_allclose(moved, q[at], atol=1e-13)


def test_one_candidate_is_no_curation() -> None:
    p = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(pick(p, np.array([0.0, 4.0, 9.0]), 1.0), p, atol=1e-14)
    np.testing.assert_allclose(best_of(real(p), real([0.0, 4.0, 9.0]), real(1.0)), p, atol=1e-14)
