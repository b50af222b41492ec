"""A horizon in legs: it is the plain one where all gradients are the same, and its matrix, adjoint, errors and what-ifs go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_estimates import SGD, Made, drawn, made, opened, trained_by
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.describe.schema import Cycle, Ecosystem, Update
from crossfeed.describe.settings import get, put
from crossfeed.estimate import rows as rows_of_models
from crossfeed.estimate.audit import NetworkAudit, audit_networks
from crossfeed.estimate.bank import Bank, build_bank
from crossfeed.estimate.checks import consistency, way
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.estimator import COURSE_NOISE, Estimate, estimate_legs, prepare
from crossfeed.estimate.kinds import Kinds, kinds_of
from crossfeed.estimate.legs import Leg, borders, places, total_weights
from crossfeed.estimate.lookahead import between, held_back, position
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.walk import gradients_of
from crossfeed.estimate.what_if import what_if
from crossfeed.networks.tokens import Answer
from networks import tiny

ADAM = Training(steps=10, batch_size=50, learning_rate=1e-3, weight_decay=0.1)
ROUNDS = 6


def ecosystem(training: Training = SGD) -> Ecosystem:
    eco = trained_by(tiny.flows(samples=200), training)
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=4)}) for name, model in eco.models.items()}
    return eco.model_copy(update={"models": small})


def in_legs(eco: Ecosystem, found: Sequence[Bank], rounds: int = ROUNDS) -> Estimate:
    """Banks at even distances; only the last keeps its evaluations."""
    ends = borders([k * rounds // max(1, len(found) - 1) for k in range(len(found))], rounds)
    legs = []
    for k, bank in enumerate(found):
        mine = bank if k == len(found) - 1 else replace(bank, evaluations=[])
        legs.append(Leg(mine, *prepare(eco, mine, rounds=rounds, fisher=0.3), ends[k], ends[k + 1]))
    return estimate_legs(eco, legs)


@pytest.fixture(scope="module", params=[SGD, ADAM], ids=["sgd", "adamw"])
def models(request: pytest.FixtureRequest) -> Made:
    eco = ecosystem(request.param)
    return made(eco, 320, 160, point=opened(eco, double=False))


def elsewhere(here: Made, seed: int) -> Bank:
    """Gradients of independent samples, where the models are moved by a little; AdamW's units are others."""
    point = opened(here.eco, double=False, shift=0.1 + 0.02 * seed)
    after = 1 + max(int(draw.clusters.max()) for draw in (*here.draws.sources, *here.draws.evaluations))
    draws = network_draws(
        point.world, point.networks, point.rewards, point.prompts, Size(320, 160), seed, first_cluster=seed * after
    )
    return made(here.eco, point=point, change=lambda _: draws).bank


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 12, 40])
def test_every_round_is_in_one_leg(rounds: int, number: int) -> None:
    at = places(rounds, number)
    ends = borders(at, rounds)
    assert len(at) == min(number, rounds // 2 + 1) == len(ends) - 1
    assert (at[0], ends[0], ends[-1]) == (0, 0, rounds)
    assert at[-1] == (rounds if len(at) > 1 else 0)
    assert all(a < b for a, b in pairwise(ends))
    assert all(a <= place <= b for place, (a, b) in zip(at, pairwise(ends), strict=True))


def test_legs_of_one_bank_are_the_plain_horizon(models: Made) -> None:
    plain = models.estimate(rounds=ROUNDS, fisher=0.3)
    found = in_legs(models.eco, [models.bank] * 3)
    assert [(leg.first, leg.stop) for leg in found.legs] == [(0, 1), (1, 4), (4, 6)]
    torch.testing.assert_close(found.answer.matrix, plain.answer.matrix, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.answer.isolated, plain.answer.isolated, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.errors / COURSE_NOISE, plain.errors, rtol=1e-5, atol=1e-9)
    whole = total_weights(found.legs, [answer.weight for answer in found.answers])
    for one, two in zip(whole, plain.answer.weight, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_forward_and_adjoint_agree_across_legs(models: Made) -> None:
    found = in_legs(models.eco, [models.bank, elsewhere(models, 1), elsewhere(models, 2)])
    scales = [leg.bank.models[0].basis.scale for leg in found.legs]
    if scales[0] is not None:
        assert not torch.equal(scales[0], scales[2])  # type: ignore[arg-type]
    assert consistency(found.answers).result == "passed"
    assert not torch.allclose(found.answer.matrix, models.estimate(rounds=ROUNDS, fisher=0.3).answer.matrix, rtol=1e-3)


def test_errors_add_up_over_legs(models: Made) -> None:
    """Clusters of different legs are independent of each other; what noise of the course adds is a factor."""
    found = in_legs(models.eco, [models.bank, elsewhere(models, 1)])
    alone = [int(rows.draw.clusters.max()) for rows in models.bank.sources]
    assert len(found.effects) > 1 + max(alone)  # the second leg's clusters are others
    assert bool((found.effects[: 1 + max(alone)].abs().sum((1, 2)) > 0).any())
    assert bool((found.effects[1 + max(alone) :].abs().sum((1, 2)) > 0).any())
    parts = torch.stack(
        [found.effects[: 1 + max(alone)].square().sum(0), found.effects[1 + max(alone) :].square().sum(0)]
    )
    num = found.num_clusters
    torch.testing.assert_close(found.errors, COURSE_NOISE * (parts.sum(0) * num / (num - 1)).sqrt())


def test_what_ifs_follow_the_legs(models: Made) -> None:
    found = in_legs(models.eco, [models.bank, elsewhere(models, 1), elsewhere(models, 2)])
    value = get(models.eco, found.paths[0])
    for step in (1e-4, -1e-4):
        answer = what_if(found, put(models.eco, found.paths[0], value + step))
        torch.testing.assert_close(answer.first_order, found.answer.matrix[:, 0] * step, rtol=1e-7, atol=1e-13)
    same = what_if(found, models.eco)
    assert float(same.change.abs().max()) == 0
    torch.testing.assert_close(same.matrix, found.answer.matrix, rtol=1e-10, atol=1e-13)


def test_a_model_that_waits_through_a_leg() -> None:
    """One model a round: some legs have no round of p's."""
    turns = Update(order=Cycle(rounds=[[["p"]], [["q"]]]))
    eco = ecosystem().model_copy(update={"update": turns})
    models = made(eco, 160, 80, point=opened(eco, double=False))
    plain, found = models.estimate(rounds=2, fisher=0.3), in_legs(eco, [models.bank] * 2, rounds=2)
    torch.testing.assert_close(found.answer.matrix, plain.answer.matrix, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.errors / COURSE_NOISE, plain.errors, rtol=1e-5, atol=1e-9)


def test_where_models_are_predicted_to_be(models: Made) -> None:
    """Two legs by hand: each follows its own mean gradient, measured at its own place."""
    found = in_legs(models.eco, [models.bank, elsewhere(models, 1)])
    torch.manual_seed(0)
    centre = {model.name: 0.01 * torch.randn(model.num_params, dtype=torch.float64) for model in models.bank.models}
    there = position(found.legs, [{}, centre], ROUNDS)
    names = models.bank.names
    x = {name: torch.zeros(len(centre[name]), dtype=torch.float64) for name in names}
    for leg, at in zip(found.legs, ({}, centre), strict=True):
        scale = {m.name: torch.ones(()) if m.basis.scale is None else m.basis.scale.double() for m in leg.bank.models}
        for number in range(leg.first, leg.stop):
            z = [((x[name] - at.get(name, 0)) / scale[name])[:, None] for name in names]
            step = [f - leg.system.curvature(i, z[i]) - leg.system.coupling(i, z) for i, f in enumerate(leg.drift)]
            for i, name in enumerate(names):
                x[name] = x[name] + leg.system.respond(i, step[i], number)[:, 0] * scale[name]
    for name in names:
        torch.testing.assert_close(there[name], x[name], rtol=1e-4, atol=1e-7)
        assert float(there[name].norm()) > 1e-4


def test_ways_out_of_the_valley_are_not_gone(models: Made) -> None:
    """Small ways are gone whole, as a loss is quadratic along them; one far beyond is cut until it is, or not gone."""
    found = in_legs(models.eco, [models.bank] * 2)
    there = {name: differentiable(network) for name, network in models.point.networks.items()}
    step = position(found.legs[:1], [{}], 1)
    assert held_back(found.legs[0], there, {}, step) == {"p": 1.0, "q": 1.0}
    first = found.legs[0]
    flattest = torch.linalg.eigh(
        first.system.curvature(0, torch.eye(first.system.sizes[0], dtype=torch.float64))
    ).eigenvectors
    away = first.bank.models[0].basis.to_parameters(flattest[:, 0]).double()
    far = {"p": away * (20 / float(away.norm())), "q": step["q"]}
    share = held_back(found.legs[0], there, {}, far)
    assert share["q"] == 1
    assert share["p"] < 1
    again = held_back(found.legs[0], there, {}, {"p": far["p"] * max(share["p"], 1 / 128), "q": step["q"]})
    assert again == {"p": 1.0, "q": 1.0}
    assert way(share).result == "warning"
    assert f"p ({100 * share['p']:.0f} %)" in way(share).words
    assert way(again).result == "passed"


def test_courses_are_straight_between_places() -> None:
    found = between([0, 2, 4], 4, torch.tensor([[1.0, 5.0], [2.0, 5.0], [0.0, 7.0]], dtype=torch.float64)).alignment
    torch.testing.assert_close(found, torch.tensor([[0, 0], [0.5, 0], [1, 0], [0, 1], [-1, 2]], dtype=torch.float64))


@pytest.mark.parametrize("limit", [3000, 0])
def test_gradients_that_are_shared_count_once(models: Made, limit: int) -> None:
    counted: list[int] = []
    there = {name: differentiable(network) for name, network in models.point.networks.items()}
    trainings = {name: node.train for name, node in models.eco.models.items()}
    draws = replace(models.draws, sources=models.draws.sources + [replace(d, name="x") for d in models.draws.sources])
    build_bank(there, draws, trainings, limit=limit, advance=counted.append)
    assert sum(counted) == gradients_of(there, draws) == gradients_of(there, models.draws)


def test_an_audit_in_legs() -> None:
    eco = ecosystem()
    point = opened(eco, double=False)
    before = {name: flatten(network.parameters()) for name, network in point.networks.items()}
    audit = audit_networks(eco, point=point, rounds=ROUNDS, size=Size(128, 128), seed=3)
    assert isinstance(audit, NetworkAudit)
    assert audit.findings.places == [0, 2, 4, 6]
    assert [(leg.first, leg.stop) for leg in audit.estimate.legs] == [(0, 1), (1, 3), (3, 5), (5, 6)]
    assert [len(leg.bank.evaluations) for leg in audit.estimate.legs] == [0, 0, 0, 2]
    found: list[set[int]] = [
        {int(c) for rows in leg.bank.sources for c in rows.draw.clusters} for leg in audit.estimate.legs
    ]
    assert not any(a & b for k, a in enumerate(found) for b in found[:k])
    torch.testing.assert_close(audit.findings.unfolding[-1], audit.findings.matrix)
    assert float(audit.findings.unfolding[0].abs().max()) == 0
    assert audit.findings.course.shape == (ROUNDS + 1, 2)
    assert audit.rougher is not None
    assert bool((audit.half_width >= audit.findings.quantile * audit.findings.errors).all())
    assert all(torch.equal(flatten(x.parameters()), before[name]) for name, x in point.networks.items())
    still = audit_networks(eco, point=point, rounds=ROUNDS, size=Size(128, 128), seed=3, look_ahead=False)
    assert isinstance(still, NetworkAudit)
    assert (still.findings.places, len(still.estimate.legs), still.rougher) == ([0], 1, None)


def test_equal_texts_are_gone_through_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows as one by one, from fewer passes."""
    eco = tiny.languages(tmp_path_factory.mktemp("texts"), lora=False)
    point = opened(eco, double=False)
    draws = drawn(point, 24, 8)
    draws = replace(
        draws,
        sources=[
            replace(
                d,
                prompts=d.prompts * 0 + d.prompts[0],
                clusters=d.clusters * 0 + d.clusters[0],
                outputs=d.outputs[:1] * (len(d.outputs) - 1) + d.outputs[-1:],
            )
            for d in draws.sources
        ],
    )
    counts: list[int] = []

    def rows(copies: bool) -> list[Tensor]:
        passes = [0]

        def advance(count: int) -> None:
            passes[0] += count

        with monkeypatch.context() as patch:
            if copies:
                patch.setattr(rows_of_models, "kinds_of", lambda *_, **__: Kinds())
            models = {name: differentiable(network) for name, network in point.networks.items()}
            trainings = {name: node.train for name, node in eco.models.items()}
            bank = build_bank(models, draws, trainings, limit=10**9, advance=advance)
        counts.append(passes[0])
        return [rows.loss for rows in bank.sources] + [rows.score for rows in bank.sources if rows.score is not None]

    for one, two in zip(rows(False), rows(True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert counts[0] < counts[1] / 2


def test_equal_words_of_other_tokens_have_their_own_scores() -> None:
    one, two = Answer("ab"), Answer("ab")
    one.tokens, two.tokens = [5, 6, 0], [7, 0]
    asked, texts = torch.zeros(4, dtype=torch.int64), [one, two, one, "ab"]
    assert kinds_of(asked, texts).kind.tolist() == [0, 0, 0, 0]  # type: ignore[union-attr]
    found = kinds_of(asked, texts, sampled=True)
    assert found.kind.tolist() == [0, 1, 0, 2]  # type: ignore[union-attr]
    assert found.first.tolist() == [0, 1, 3]  # type: ignore[union-attr]
    assert found.summed(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [4, 2, 4]
    assert kinds_of(asked, texts, copies=2).kind.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]
    assert kinds_of(torch.arange(4), texts).kind is None
