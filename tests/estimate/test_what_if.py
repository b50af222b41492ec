"""What-ifs from the bank: against the influence matrix, re-weighting by hand, and a fresh estimate of the changed spec."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_estimates import SGD, Made, made, opened, trained_by

from crossfeed.describe.network_nodes import Flow
from crossfeed.describe.schema import Ecosystem, LinearReward
from crossfeed.describe.settings import put, weight_direction
from crossfeed.errors import SettingError
from crossfeed.estimate.estimator import Estimate, estimate
from crossfeed.estimate.what_if import what_if
from networks import tiny

TEMPERATURE = "p.sources.curated_q.temperature"
CANDIDATES = "p.sources.curated_q.candidates"


def ecosystem() -> Ecosystem:
    eco = trained_by(tiny.flows(samples=200), SGD)
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=4)}) for name, model in eco.models.items()}
    return eco.model_copy(update={"models": small})


@pytest.fixture(scope="module")
def bank() -> Made:
    eco = ecosystem()
    return made(eco, 300, 200, point=opened(eco))


@pytest.fixture(scope="module")
def found(bank: Made) -> Estimate:
    return bank.estimate(fisher=0.3)


def test_nothing_changed_changes_nothing(found: Estimate) -> None:
    same = what_if(found, found.eco.model_copy(deep=True))
    zero = torch.zeros_like(same.change)
    assert torch.equal(same.change, zero)
    assert torch.equal(same.first_order, zero)
    torch.testing.assert_close(same.errors, zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(same.matrix, found.answer.matrix, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("horizon", [3, None])
def test_small_changes_are_the_matrix_times_the_change(bank: Made, horizon: int | None) -> None:
    found = bank.estimate(fisher=0.3, rounds=horizon)
    h = 1e-5
    changed = what_if(found, put(found.eco, "p.curation", 0.5 + h))
    slope, errors = found.answer.matrix[:, 0], found.errors[:, 0]
    torch.testing.assert_close(changed.first_order, slope * h, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(changed.change, slope * h, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(changed.errors, errors * h, rtol=1e-6, atol=1e-12)


def test_weights_of_single_sources(bank: Made) -> None:
    """Every weight by itself, the others giving way as the settings say."""
    found = bank.estimate(fisher=0.3)
    for path in ("p.sources.curated_q.weight", "q.sources.raw_p.weight", "p.sources.real.weight"):
        column = estimate(found.eco, bank.bank, rounds=3, fisher=0.3, paths=[path])
        assert weight_direction(found.eco, path) is not None
        now = {"p.sources.curated_q.weight": 0.25}.get(path, 0.5)
        changed = what_if(found, put(found.eco, path, now + 1e-4))
        torch.testing.assert_close(changed.first_order, column.answer.matrix[:, 0] * 1e-4, rtol=1e-8, atol=1e-13)


def test_the_trapezoid_is_of_second_order(found: Estimate) -> None:
    """The change out and back agree, and both are the mean of the two ends: half the step, an eighth of what is left.

    What is left out of the trapezoid rule along a path λ is of third order, so ΔJ(h) − ΔJ(h/2) − ΔJ'(h/2) shrinks eightfold.
    """

    def gap(h: float) -> torch.Tensor:
        half, whole = put(found.eco, "p.curation", 0.5 + h / 2), put(found.eco, "p.curation", 0.5 + h)
        one = what_if(found, whole).change
        slopes = torch.stack(
            [found.answer.matrix[:, 0], what_if(found, half).matrix[:, 0], what_if(found, whole).matrix[:, 0]]
        )
        simpson = h * (slopes[0] + 4 * slopes[1] + slopes[2]) / 6
        return (one - simpson).abs()

    ratio = gap(0.2) / gap(0.1)
    assert bool((ratio > 5).all()), ratio


# --- pick rules -----------------------------------------------------------------------------------------------------


def test_temperature_agrees_with_reweighting(found: Estimate, bank: Made) -> None:
    """The derivative by τ, from what-ifs of ± h, against that of the push worked out from the rewards by hand."""
    h = 1e-3
    up, down = (what_if(found, put(found.eco, TEMPERATURE, 1 + s * h)).change for s in (1, -1))
    slope = (up - down) / (2 * h)
    rows = bank.bank.sources[2]
    rewards = rows.draw.rewards["up"]
    mean = (rows.draw.probabilities * rewards).sum(1, keepdim=True)
    rates = -rows.draw.probabilities * (rewards - mean)  # dπ/dτ at τ = 1
    push = -rows.draw.weight * (rates.flatten() @ rows.loss.double()) / len(rewards)
    want = found.answer.weight[rows.consumer].T @ push
    torch.testing.assert_close(slope, want, rtol=1e-4, atol=1e-9)


def test_the_matrix_after_the_change_is_that_of_the_changed_spec(bank: Made) -> None:
    """An estimate of the changed spec, whose samples are the same as the seeds are the same.

    The Gauss–Newton rows stay on the picks of the old rule: with the empirical Fisher matrix, which follows the new one, both agree.
    """
    found = bank.estimate(fisher=1.0, ridge=1e-9)
    for path, value in ((TEMPERATURE, 0.3), ("p.sources.curated_p.noise", 0.4), ("p.curation", 0.8)):
        changed = put(found.eco, path, value)
        fresh = made(changed, 300, 200, point=opened(changed)).estimate(fisher=1.0, ridge=1e-9)
        answer = what_if(found, found.eco.model_validate(changed.model_dump()))  # as if read from a file
        torch.testing.assert_close(answer.matrix, fresh.answer.matrix, rtol=1e-6, atol=1e-9)


def test_fewer_candidates(found: Estimate, bank: Made) -> None:
    """The first two of each group of four: one is as if nobody picked, and less choice moves alignment less."""
    two = what_if(found, put(found.eco, CANDIDATES, 2))
    one = what_if(found, put(found.eco, CANDIDATES, 1))
    rows = bank.bank.sources[2]
    for changed, size in ((two, 2), (one, 1)):
        pick = torch.softmax(rows.draw.rewards["up"][:, :size], 1)
        loss = rows.loss.double().unflatten(0, (-1, 4))
        moved = (pick[:, :, None] * loss[:, :size]).sum(1) - (rows.draw.probabilities[:, :, None] * loss).sum(1)
        want = found.answer.weight[rows.consumer].T @ (-rows.draw.weight * moved.mean(0))
        torch.testing.assert_close(changed.first_order, want, rtol=1e-4, atol=1e-9)
    uniform = what_if(found, put(found.eco, "p.sources.curated_q.noise", 1.0))
    gap = (uniform.change - one.change).abs()
    assert bool((gap < 4 * (uniform.errors + one.errors)).all())  # the same but for which candidates stand for all
    assert bool(torch.isfinite(torch.cat([two.change, two.errors, two.matrix.flatten()])).all())


def test_a_change_in_words_of_another_kind(found: Estimate) -> None:
    """Softer picks of q's outputs by those who want them up: q's people see p less high up."""
    softer = what_if(found, put(found.eco, TEMPERATURE, 50.0))
    random = what_if(found, put(found.eco, "p.sources.curated_q.noise", 1.0))
    torch.testing.assert_close(softer.change, random.change, rtol=0.1, atol=0.1 * float(random.change.abs().max()))


# --- refused --------------------------------------------------------------------------------------------------------


def edited(eco: Ecosystem, model: str, **fields: Any) -> Ecosystem:
    return eco.model_copy(update={"models": {**eco.models, model: eco.models[model].model_copy(update=fields)}})


def test_refused_changes_say_what_and_what_to_do(found: Estimate) -> None:
    eco = found.eco
    p, q = eco.models["p"].sources, eco.models["q"].sources
    hot = edited(eco, "q", sources=[q[0], q[1].model_copy(update={"sampling_temperature": 0.7})])
    elsewhere = edited(eco, "q", sources=[q[0], q[1].model_copy(update={"producer": "q"})])
    third = edited(eco, "q", sources=[*q, q[1].model_copy(update={"weight": 0.0, "name": "more"})])
    more = edited(eco, "p", sources=[*p[:2], p[2].model_copy(update={"candidates": 8})])
    stranger = edited(eco, "p", sources=[*p[:2], p[2].model_copy(update={"curator": "right"})])
    seed = eco.model_copy(update={"seed": 99})
    rewards = eco.model_copy(update={"rewards": {**eco.rewards, "up": LinearReward(vector=[1.0, 1.0])}})
    family = edited(eco, "p", family=Flow(width=7, bins=4))
    people = edited(eco, "q", reward="right")
    alone = eco.model_copy(update={"models": {"p": eco.models["p"]}})
    training = edited(eco, "p", train=SGD.model_copy(update={"steps": 21}))
    for changed, words in (
        (
            hot,
            r"q\.sources\.raw_p\.sampling_temperature: found a change that needs new samples; audit the changed spec",
        ),
        (elsewhere, r"q\.sources\.raw_p\.producer: found a change that needs new samples"),
        (third, r"models\.q: found other sources; a what-if changes weights and picks only: audit the new spec"),
        (more, r"p\.sources\.curated_q\.candidates: found 8; the samples have 4 a group: audit the changed spec"),
        (
            stranger,
            r"p\.sources\.curated_q: the new rule asks a reward that the samples do not hold; audit the changed",
        ),
        (seed, r"what-if: found changes outside of the models' sources; audit the changed spec"),
        (rewards, r"what-if: found changes outside of the models' sources"),
        (family, r"models\.p\.family: found a change of the model; .* audit the changed spec"),
        (training, r"models\.p\.train: found a change of the model; .* audit the changed spec"),
        (people, r"models\.q\.reward: found a change of the model; .* audit the changed spec"),
        (alone, r"models: found other models; .* audit the new spec"),
    ):
        with pytest.raises(SettingError, match=words):
            what_if(found, changed)


def test_errors_of_small_and_large_changes(found: Estimate) -> None:
    """Standard errors grow with the change, and are never zero where something changes."""
    some, more = (what_if(found, put(found.eco, "p.curation", value)) for value in (0.55, 0.7))
    assert bool((some.errors > 0).all())
    torch.testing.assert_close(more.errors, 4 * some.errors, rtol=1e-6, atol=0)
    assert math.isclose(float(more.first_order[0] / some.first_order[0]), 4, rel_tol=1e-6)
