"""Inputs of outputs in the rounds to come, against the inputs that a real run hands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_estimates import crossed, opened

from crossfeed.describe.schema import Cycle, Real, Update
from crossfeed.estimate.composition import composed
from crossfeed.estimate.estimator import rounds_ahead
from crossfeed.estimate.free_batches import Plan
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point, open_point
from networks import tiny


@pytest.fixture
def point(tmp_path: Path) -> Point:
    return open_point(crossed(tmp_path), device="cpu")


def share(point: Point, asked: torch.Tensor, name: str) -> float:
    """Of a list of inputs, those that are in the data of a model."""
    own = next(s.data for s in point.world.eco.models[name].sources if isinstance(s, Real))
    texts = {point.world.prompts.texts[i] for i in point.world.data[own].inputs().tolist()}
    return sum(point.world.prompts.texts[i] in texts for i in asked.tolist()) / len(asked)


def test_inputs_spread_round_by_round(point: Point) -> None:
    """By hand: (share of p's data in p's inputs, in q's): (1, 0), then (½·1 + ½·0, ½ + ¼·1 + …)."""
    rounds = rounds_ahead(point.world.eco, 6)
    p, q = 1.0, 0.0
    for number in range(6):
        found = composed(point.world, point.prompts, rounds, number, number + 1).prompts
        assert share(point, found["p"], "p") == pytest.approx(p, abs=0.02)
        assert share(point, found["q"], "p") == pytest.approx(q, abs=0.02)
        p, q = 0.5 + 0.5 * q, 0.25 * p + 0.5
    whole = composed(point.world, point.prompts, rounds, 0, 2).prompts
    assert share(point, whole["p"], "p") == pytest.approx((1 + 0.5) / 2, abs=0.02)


def test_only_models_that_update_hand_on(tmp_path: Path) -> None:
    """q alone is trained in the first round, so p asks what it did."""
    eco = crossed(tmp_path, update=Update(order=Cycle(rounds=[[["q"]], [["p"]]])))
    point = open_point(eco, device="cpu")
    found = composed(point.world, point.prompts, rounds_ahead(eco, 2), 1, 2).prompts
    assert torch.equal(found["p"], point.prompts["p"])
    assert share(point, found["q"], "p") == pytest.approx(0.75, abs=0.02)


def test_the_matrix_free_solver_asks_them_too(point: Point) -> None:
    """Of p's outputs in its batches as many answer p's data as the recursion of the first test says, averaged over 6 rounds.

    Binomial standard error .018; a right share is beyond 4.5 of them once in 100,000 seeds.
    """
    plan = Plan.of(point, frozenset(), 6, ["p.curation"], 0)
    batches = [plan.draws(Size(960, 12), 1, number).sources for number in range(6)]
    asked = torch.cat(
        [draw.prompts for batch in batches for draw in batch if draw.producer == "p" and draw.name != "named"]
    )
    p, q, total = 1.0, 0.0, 0.0
    for _ in range(6):
        total += p / 6
        p, q = 0.5 + 0.5 * q, 0.25 * p + 0.5
    assert share(point, asked, "p") == pytest.approx(total, abs=4.5 * (total * (1 - total) / len(asked)) ** 0.5)


def test_without_inputs_nothing_changes() -> None:
    point = opened(tiny.flows(samples=50))
    found = composed(point.world, point.prompts, rounds_ahead(point.world.eco, 3), 0, 3).prompts
    assert all(torch.equal(found[name], own) for name, own in point.prompts.items())
