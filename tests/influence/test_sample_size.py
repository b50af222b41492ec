"""The smallest n that shows an influence's sign: by simulation, and what it says where there is none."""

import math

import loops
import pytest
import torch

from crossfeed.describe import settings
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.rounds import State, sampled_round
from crossfeed.errors import SettingError
from crossfeed.influence.finite_samples import finite_sample_theory
from crossfeed.influence.sample_size import sign_test, smallest_n

STEP, ROUNDS, BURN_IN, SEEDS = 0.1, 4, 10, 3


def _fraction(n: int, trials: int, affected: int) -> float:
    """How often a simulated central difference is positive."""
    sides = []
    for seed, sign in ((1, 1), (2, -1)):
        eco = settings.put(loops.means(n), "p.curation", 0.3 + sign * STEP)
        program = compile_ecosystem(eco)
        state = State(program.start.expand(trials * SEEDS, -1).clone())
        total = torch.zeros(trials * SEEDS, dtype=torch.float64)
        for number in range(BURN_IN + ROUNDS):
            state = sampled_round(program, state, eco.update, eco.samples, seed)
            if number >= BURN_IN:
                total += program.alignment(state.theta)[:, affected] / ROUNDS
        sides.append(total.reshape(trials, SEEDS).mean(1))
    return float((sides[0] > sides[1]).double().mean())


@pytest.mark.parametrize("affected", ["p", "q"])
def test_at_the_smallest_n_simulated_signs_are_right_that_often(affected) -> None:
    trials = 300
    test = sign_test(loops.means(100), "p", STEP, ROUNDS, BURN_IN, SEEDS)
    k = test.names.index(affected)
    n, note = test.smallest_n(affected, 0.9)
    assert n is not None
    assert n > 1
    assert note.startswith("difference ")
    assert test.probability(affected, n) >= 0.9 > test.probability(affected, n - 1)
    positive = _fraction(n, trials, k)
    right = positive if float(test.influence[k]) > 0 else 1 - positive
    # four binomial standard errors: a fresh seed fails once in 16,000
    assert abs(right - test.probability(affected, n)) < 4 * math.sqrt(0.9 * 0.1 / trials)


def test_more_confidence_and_fewer_seeds_take_more_samples() -> None:
    eco = loops.means(100)
    plain = smallest_n(eco, "p", "p", STEP, confidence=0.9).n
    sure = smallest_n(eco, "p", "p", STEP, confidence=0.99).n
    fewer = smallest_n(eco, "p", "p", STEP, seeds=10, confidence=0.9).n
    assert plain is not None
    assert sure is not None
    assert fewer is not None
    assert sure > plain
    assert fewer == pytest.approx(4 * plain, abs=6)


def test_the_difference_tends_to_the_influence() -> None:
    test = sign_test(loops.means(100), "p", 1e-3, burn_in=200)
    assert torch.allclose(test.limit, test.influence, rtol=1e-5)


def test_the_slope_is_the_derivative_of_the_shift() -> None:
    test = sign_test(loops.means(100), "p", 0.05)
    up, down = test.theories
    assert torch.allclose(test.slope, (up.shift - down.shift) / 0.1)
    assert finite_sample_theory(up.program, up.theta, loops.means(100).update, loops.means(100).samples).num == 100


def test_fixed_counts_take_rounding_into_account() -> None:
    fixed = sign_test(loops.means(100, "fixed"), "p", STEP)
    assert bool((fixed.rounding > 0).all())
    assert bool((sign_test(loops.means(100), "p", STEP).rounding == 0).all())


def test_no_influence_has_no_sign() -> None:
    eco = loops.means(100)
    flat = {
        **eco.rewards,
        "u": eco.rewards["u"].model_copy(update={"matrix": 0.0 * eco.rewards["u"].matrix, "vector": None}),
    }
    found = smallest_n(eco.model_copy(update={"rewards": flat}), "q", "p", STEP)
    assert found == (None, "the influence of p's curation on q is 0")


def test_a_protocol_that_measures_the_wrong_sign_is_named() -> None:
    """One round from afar: more of q's picks pull p to where q stands, which is not where it will stand."""
    test = sign_test(loops.means(100, start=-20.0), "p", STEP, rounds=1, burn_in=0)
    assert float(test.influence[0]) > 0 > float(test.limit[0])
    n, note = test.smallest_n("p")
    assert n is None
    assert "even on unlimited samples: take a smaller step or a longer burn-in" in note


def test_impossible_protocols_are_refused() -> None:
    with pytest.raises(SettingError, match="need a step > 0"):
        sign_test(loops.means(100), "p", 0.0)
    with pytest.raises(SettingError, match=r"p\.curation: found -0\.2"):
        sign_test(loops.means(100), "p", 0.5)
