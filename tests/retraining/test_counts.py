"""Counts of a training set's sources: exact, in order, seeded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfeed.describe.schema import Model, Real, Samples
from crossfeed.retraining.counts import rows_per_round, source_counts
from retraining.fakes import plane

WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-3)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 5000))
def test_fixed_counts_sum_and_are_within_one(weights, num):
    counts = source_counts(weights, num)
    shares = np.array(weights) / sum(weights)
    assert sum(counts) == num
    assert np.abs(np.array(counts) - num * shares).max() < 1 + 1e-6
    assert all(count == 0 for count, weight in zip(counts, weights, strict=True) if weight == 0)


@pytest.mark.parametrize(
    ("weights", "num", "counts"),
    [
        ([1 / 3, 1 / 3, 1 / 3], 10, [4, 3, 3]),  # ties go to the earlier source
        ([0.5, 0.5], 3, [2, 1]),
        ([0.25, 0.75], 10, [3, 7]),  # 2.5 and 7.5: a tie
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),  # exact in decimals, not in binary
        ([0.0, 1.0], 7, [0, 7]),
        ([0.5, 0.3, 0.2], 1024, [512, 307, 205]),
    ],
)
def test_fixed_counts_by_hand(weights, num, counts):
    assert source_counts(weights, num, "fixed") == counts
    assert source_counts(weights, num, None) == counts


def test_multinomial_counts_are_seeded_and_have_the_right_mean():
    one = source_counts([0.5, 0.3, 0.2], 100, "multinomial", seed=1)
    assert one == source_counts([0.5, 0.3, 0.2], 100, "multinomial", seed=1)
    many = np.array([source_counts([0.5, 0.3, 0.2], 100, "multinomial", seed=s) for s in range(2000)])
    assert (many.sum(1) == 100).all()
    assert len({tuple(row) for row in many}) > 100
    # five standard errors of the mean of 2,000 draws: false alarm below 1e-5
    assert np.abs(many.mean(0) - [50, 30, 20]).max() < 5 * 5 / np.sqrt(2000)


def test_a_models_own_number_of_rows_wins():
    eco = plane({"p": [Real(data="ring", weight=1)], "q": [Real(data="ring", weight=1)]}, samples=Samples(per_round=9))
    fewer: Model = eco.models["q"].model_copy(update={"per_round": 4})
    eco = eco.model_copy(update={"models": {"p": eco.models["p"], "q": fewer}})
    assert (rows_per_round(eco, "p"), rows_per_round(eco, "q")) == (9, 4)
