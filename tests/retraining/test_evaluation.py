"""Evaluation: fixed inputs, fresh outputs, standard errors that cover, and what is shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crossfeed.describe.schema import Evaluation, MixtureData, Raw, Real
from crossfeed.errors import CheckFailedError
from crossfeed.networks.world import open_world
from crossfeed.retraining.evaluation import Evaluator, degenerate, finite_rewards, standard_error
from crossfeed.retraining.timing import Clock
from retraining.fakes import Points, plane, rewards_of


def ecosystem(evaluate=None, **changes):
    eco = plane({"p": [Real(data="ring", weight=1)]}, **changes)
    return eco.model_copy(update={"models": {"p": eco.models["p"].model_copy(update={"evaluate": evaluate})}})


def evaluator(eco, **options):
    return Evaluator(open_world(eco), rewards_of(eco), **options)


def test_alignment_is_the_mean_reward_with_its_standard_error():
    found = evaluator(ecosystem([Evaluation(name="own", samples=400)])).of(Points("p", (2.0, 5.0), 1.5), 1, Clock(1))
    (alignment,) = [m for m in found.metrics if m.metric == "alignment"]
    assert (alignment.model, alignment.domain) == ("p", "own")
    assert alignment.standard_error == pytest.approx(1.5 / 20, rel=0.15)
    assert abs(alignment.value - 2) < 4.5 * 1.5 / 20  # false alarm below 1e-5


def test_evaluations_on_the_same_inputs_share_their_outputs():
    network = Points("p", spread=1.0)
    nodes = [Evaluation(name="own"), Evaluation(name="theirs", reward="up"), Evaluation(name="more", samples=40)]
    found = evaluator(ecosystem(nodes)).of(network, 1, Clock(1))
    assert [len(call[0]) for call in network.asked] == [16, 40]
    assert all(call[3] for call in network.asked)  # evaluating
    own, theirs, more = found.shown
    assert torch.equal(own.outputs, theirs.outputs)
    assert own.rewards == pytest.approx(own.outputs[:, 0].tolist())
    assert theirs.rewards == pytest.approx(theirs.outputs[:, 1].tolist())
    assert not torch.equal(own.outputs, more.outputs[:16])
    assert len(own.rewards) == 16
    assert len(more.rewards) == 40
    assert found.counts == {"own": {"outputs": 16, "distinct": 16}, "more": {"outputs": 40, "distinct": 40}}


def test_inputs_are_fixed_and_outputs_fresh():
    judge, network = evaluator(ecosystem()), Points("p", spread=1.0)
    one, two = (judge.of(network, t, Clock(3)) for t in (1, 2))
    assert torch.equal(network.asked[0][0], network.asked[1][0])
    assert not torch.equal(one.shown[0].outputs, two.shown[0].outputs)
    again = evaluator(ecosystem()).of(network, 2, Clock(3))
    assert torch.equal(again.shown[0].outputs, two.shown[0].outputs)
    other = evaluator(ecosystem(seed=1)).of(network, 2, Clock(3))
    assert not torch.equal(other.shown[0].outputs, two.shown[0].outputs)


def test_inputs_go_round_before_they_repeat():
    judge = evaluator(plane({"p": [Real(data="ring", weight=1)]}))
    judge.world.data["ring"].prompts = torch.arange(10)
    prompts = judge.inputs(("ring",), 25)
    assert sorted(prompts[:10].tolist()) == sorted(prompts[10:20].tolist()) == list(range(10))
    assert len(set(prompts[20:].tolist())) == 5


def test_models_are_held_against_their_own_real_data():
    near, far = MixtureData(means=[[0.0, 0.0]], std=1.0), MixtureData(means=[[9.0, 0.0]], std=1.0)
    sources = {
        "p": [Real(data="near", weight=1)],
        "q": [Real(data="far", weight=1)],
        "both": [Real(data="near", weight=0.5), Real(data="far", weight=0.5)],
        "last": [Raw(producer="p", weight=1), Real(data="far", weight=0)],
    }
    judge = evaluator(plane(sources, data={"near": near, "far": far}))
    found = {
        name: next(
            m.value for m in judge.of(Points(name, spread=1.0), 1, Clock(1)).metrics if m.metric == "distance_to_data"
        )
        for name in sources
    }
    assert abs(found["p"]) < 0.5
    assert found["q"] > 10
    assert found["p"] + 1 < found["both"] < found["q"] - 1
    assert found["last"] > 10


def test_minimal_measures_alignment_and_diversity():
    found = evaluator(ecosystem(), minimal=True).of(Points("p", spread=1.0), 1, Clock(1))
    assert [m.metric for m in found.metrics] == ["alignment", "diversity"]
    assert found.shown == []
    assert found.diversity == found.metrics[1].value


def test_standard_error_of_single_answers_is_the_usual_one():
    values = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    usual = float(values.std()) / math.sqrt(50)
    assert standard_error(values) == pytest.approx(usual)
    assert standard_error(values, torch.arange(50)) == pytest.approx(usual)
    assert standard_error(values[:1]) is None
    assert standard_error(values, torch.zeros(50, dtype=torch.int64)) is None


def test_standard_error_over_prompts_covers_where_the_usual_one_does_not():
    # 30 prompts with an effect of their own (variance 1), 8 answers each (variance 1): Var(mean) = 1/30 + 1/240
    rng = np.random.default_rng(0)
    prompts = torch.arange(30).repeat_interleave(8)
    hits, naive = 0, 0
    for _ in range(1000):
        values = torch.from_numpy(rng.normal(size=30).repeat(8) + rng.normal(size=240))
        hits += abs(float(values.mean())) < 2.045 * standard_error(values, prompts)  # t with 29 degrees of freedom
        naive += abs(float(values.mean())) < 2.045 * standard_error(values)
    assert abs(hits / 1000 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 1000)  # false alarm below 1e-6
    assert naive / 1000 < 0.7


def test_degenerate_outputs_are_counted():
    assert degenerate(["a", "b", "a", "  "]) == {"outputs": 4, "distinct": 3, "empty": 1}
    assert degenerate(torch.zeros(5, 3, 2, 2, dtype=torch.uint8)) == {"outputs": 5, "distinct": 1}


def test_outputs_that_are_not_finite_stop_the_run():
    network = Points("p", spread=1.0, fault="nan")
    network.mean.data += 1
    with pytest.raises(
        CheckFailedError, match=r"round 4, models\.p: outputs are not finite; lower train\.learning_rate"
    ):
        evaluator(ecosystem()).of(network, 4, Clock(9))


def test_rewards_that_are_not_finite_are_named():
    def reward(prompts, outputs):
        return torch.tensor([1.0, float("nan"), float("inf")])

    with pytest.raises(
        CheckFailedError, match=r"here: 2 of 3 rewards by warm are not finite, the first of output 1; mend"
    ):
        finite_rewards(reward, "warm", "here", torch.zeros(3), torch.zeros(3, 2))

    def raising(prompts, outputs):
        raise CheckFailedError("rewards.warm: broken")

    with pytest.raises(CheckFailedError, match=r"here: rewards\.warm: broken"):
        finite_rewards(raising, "warm", "here", torch.zeros(3), torch.zeros(3, 2))
