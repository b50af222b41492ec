"""What the checks of an estimate catch, and what they let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_cases import pair, sampled, truth
from scipy.stats import binom
from tiny_estimates import SGD, Made, drawn, made, opened, trained_by, with_source
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, MixtureData, Training
from crossfeed.describe.schema import Ecosystem, LinearReward
from crossfeed.errors import CheckFailedError
from crossfeed.estimate import checks
from crossfeed.estimate.base import Batch, Parameters
from crossfeed.estimate.checks import Check, all_checks, score_test
from crossfeed.estimate.derivatives import gradient_rows
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.estimator import prepare
from crossfeed.estimate.flow import DifferentiableFlow
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.lookahead import course
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.steps import Steps
from crossfeed.networks.base import Outputs
from networks import tiny


def ecosystem(**changes: Any) -> Ecosystem:
    eco = trained_by(tiny.flows(samples=200, **changes), SGD)
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=4)}) for name, model in eco.models.items()}
    return eco.model_copy(update={"models": small})


def flows(**options: Any) -> Made:
    return made(ecosystem(), 320, 160, **options)


def failing(found: Made, name: str) -> Check:
    """The one of the checks on the bank alone."""
    return {c.name: c for c in (checks.scores(found.bank), checks.samples(found.bank), checks.rewards(found.bank))}[
        name
    ]


def everything(found: Made, **options: Any) -> dict[str, Check]:
    estimated = found.estimate(**options)
    ahead = course(estimated.legs[0])
    return {c.name: c for c in all_checks(estimated.legs, estimated.answers, ahead, estimated.errors)}


# --- gradients ------------------------------------------------------------------------------------------------------


class Frozen(DifferentiableFlow):
    """What is trained has no part in the loss, as when an adapter is not in use."""

    def losses(self, parameters: Parameters, batch: Batch) -> Tensor:
        return super().losses({name: value.detach() for name, value in parameters.items()}, batch) + 0 * sum(
            value.sum() for value in parameters.values()
        )


@pytest.mark.parametrize("limit", [3000, 0])
def test_a_frozen_adapter_is_found(limit: int) -> None:
    with pytest.raises(
        CheckFailedError, match=r"models\.p: all gradients of its loss are zero; its adapter is frozen or not"
    ):
        everything(made(ecosystem(), 20, 20, model=Frozen, limit=limit))


def test_gradients_that_are_not_finite_are_named() -> None:
    def spoilt(draws: Draws) -> Draws:
        outputs = draws.sources[0].outputs
        assert isinstance(outputs, Tensor)
        outputs = outputs.clone()
        outputs[[3, 5]] = float("nan")
        return with_source(draws, 0, outputs=outputs)

    words = r"models\.p: gradients of its losses on real are not finite for 2 of 320 samples; look at the checkpoint"
    with pytest.raises(CheckFailedError, match=words):
        flows(change=spoilt)


# --- sampler and likelihood -----------------------------------------------------------------------------------------


def test_scores_pass_for_right_samples() -> None:
    """12 draws of two flows; a false alarm in one of 12 × 1e-4 ≈ 1e-3 of such tests, if the χ² holds."""
    point = opened(ecosystem())
    for seed in range(12):
        check = failing(made(ecosystem(), 320, 8, point=point, seed=seed), "scores")
        assert check.result == "passed", check.words


def test_score_test_keeps_its_level() -> None:
    """Of 1,000 tests of means that are zero 5 % have p < .05: by a binomial at 1e-6 between 2.2 and 8.8 %.

    Rows of unequal spread in 30 directions, some heavy-tailed (Student's t with 8 degrees of freedom), in clusters of one to four.
    """
    random = torch.Generator().manual_seed(1)
    spread = torch.logspace(-2, 0, 30, dtype=torch.float64)
    clusters = torch.arange(200).repeat_interleave(torch.arange(200) % 4 + 1)
    hits, num = 0, 1000
    for _ in range(num):
        rows = torch.randn(len(clusters), 30, generator=random, dtype=torch.float64) * spread
        tails = torch.randn(len(clusters), 8, generator=random, dtype=torch.float64).square().mean(1)
        rows[::2] /= tails[::2, None].sqrt()
        hits += score_test(rows, clusters)[1] < 0.05
    low, high = binom.ppf(1e-6, num, 0.05), binom.isf(1e-6, num, 0.05)
    assert low < hits < high, hits


def test_score_test_by_hand() -> None:
    """One number, four clusters: T = C mean²/mean square = 4 · 1²/1.5 with one degree of freedom."""
    score = torch.tensor([[2.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    t, chance = score_test(score, torch.arange(4))
    assert t == pytest.approx(4 / 1.5)
    assert chance == pytest.approx(0.10247, abs=1e-5)
    together = score_test(score.repeat_interleave(3, 0), torch.arange(4).repeat_interleave(3))
    assert together[1] == pytest.approx(chance)  # repeats in a cluster are no further evidence
    assert score_test(torch.zeros(4, 1), torch.arange(4)) == (0.0, 1.0)


def test_samples_of_another_checkpoint_are_found() -> None:
    point = opened(ecosystem())
    draws = drawn(point, 320, 40)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in point.networks["p"].parameters().values():
            value += 0.1 * torch.randn(value.shape, generator=random)
    check = failing(made(ecosystem(), point=point, change=lambda _: draws), "scores")
    assert check.result == "failed"
    assert "what p sampled is not zero" in check.words
    assert "Look at the sampling temperature" in check.words


def languages(folder: Path, change: Callable[[Draws], Draws] | None = None, **options: Any) -> Made:
    """With larger logits than a new network has, so that temperatures matter."""
    eco = tiny.languages(folder, **options)
    point = opened(eco, shift=0.3)
    base: Any = point.networks["p"]
    with torch.no_grad():
        base.base.network.get_output_embeddings().weight.mul_(12)  # all models share it
    return made(eco, 96, 8, point=point, change=change)


def at(temperature: float) -> Callable[[Draws], Draws]:
    """What was sampled at 1 is said to be sampled at this temperature."""
    return lambda draws: with_source(with_source(draws, 1, temperature=temperature), 5, temperature=temperature)


@pytest.mark.parametrize(("temperature", "result"), [(1.0, "passed"), (2.0, "failed"), (0.5, "failed")])
def test_another_temperature_than_sampled_is_found(tmp_path: Path, temperature: float, result: str) -> None:
    """At the right one a false alarm in 1e-4 of such tests."""
    assert failing(languages(tmp_path, at(temperature)), "scores").result == result


def test_dropout_left_on_changes_nothing(tmp_path: Path) -> None:
    """A network in training mode, dropout .3: its gradients are the same every time, and those without dropout."""
    eco = tiny.languages(tmp_path, dropout=0.3)
    network = opened(eco, shift=0.3).networks["p"]
    prompts = torch.tensor([0, 1])
    answers = network.sample(prompts, torch.ones(2, dtype=torch.int64), torch.Generator().manual_seed(1))
    network.train(False)
    quiet = network.losses(prompts, answers)
    network.train(True)
    noisy = network.losses(prompts, answers, torch.Generator().manual_seed(1))
    assert not torch.allclose(quiet, noisy)
    model = differentiable(network)
    parameters = model.parameters()
    batches = model.loss_batch(prompts, answers, torch.Generator()), model.score_batch(prompts, answers)
    for fn, batch in zip((model.losses, model.log_probs), batches, strict=True):
        found = []
        for mode in (False, True, True):
            network.train(mode)
            found.append(torch.cat([*gradient_rows(fn, parameters, batch, 2)]))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[1], found[2])
        assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(model.losses(parameters, batches[0]), quiet.detach(), rtol=1e-5, atol=1e-5)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "groups", "each", "words"),
    [
        (320, 80, 1, "Every source has enough different prompts or groups."),
        (320, 80, 16, "Fewer than 30 different prompts or groups: p.curated_p (5); "),
        (1280, 320, 8, "Prompts repeat, so fewer count: p.curated_p (40 of 320). "),
    ],
)
def test_repeated_prompts_count_once(outputs: int, groups: int, each: int, words: str) -> None:
    """The groups of p's own picks, ``each`` of them of one prompt."""
    changes = {
        "clusters": 100_000 + torch.arange(groups) // each,
        "prompts": torch.arange(groups),
        "interchangeable": False,
    }
    found = made(ecosystem(), outputs, 40, change=lambda draws: with_source(draws, 1, **changes))
    assert checks.effective(found.bank.sources[1]) == pytest.approx(groups / each)
    check = failing(found, "samples")
    assert check.result == ("passed" if each == 1 else "warning")
    assert check.words.startswith(words)


def test_effective_number_by_hand() -> None:
    """Three groups of one prompt and one of another: 4²/(3² + 1²)."""
    rows = flows().bank.sources[1]
    clusters = torch.tensor([7, 7, 7, 9])
    draws = with_source(drawn(opened(ecosystem()), 16, 8), 1, clusters=clusters, interchangeable=False)
    draw = draws.sources[1]
    assert checks.effective(replace(rows, draw=draw)) == pytest.approx(1.6)


# --- rewards --------------------------------------------------------------------------------------------------------


def test_constant_rewards_are_told() -> None:
    rewards = {"right": LinearReward(vector=[1.0, 0.0]), "up": LinearReward(vector=[0.0, 0.0], constant=3.0)}
    eco = ecosystem().model_copy(update={"rewards": rewards})
    check = failing(made(eco, 64, 32, point=opened(eco)), "rewards")
    assert check.result == "warning"
    assert check.words.startswith("Constant: up on candidates of p.curated_q, the reward of evaluation q.own.")
    assert failing(flows(), "rewards").result == "passed"


@pytest.mark.parametrize(
    ("reward", "place"), [("right", r"models\.p\.sources\.curated_p"), ("up", r"models\.p\.sources\.curated_q")]
)
def test_rewards_that_are_not_finite_are_named(reward: str, place: str) -> None:
    point = opened(ecosystem())

    def spoilt(prompts: Tensor, outputs: Outputs) -> Tensor:
        values = torch.zeros(len(outputs), dtype=torch.float64)
        values[4:7] = float("inf")
        return values

    rewards = dict(point.rewards) | {reward: spoilt}
    words = rf"{place}: 3 of 64 rewards by {reward} are not finite, the first of output 4; mend the reward"
    with pytest.raises(CheckFailedError, match=words):
        drawn(replace(point, rewards=rewards), 64, 32)


# --- the loop -------------------------------------------------------------------------------------------------------


def test_far_from_a_stable_point_is_told() -> None:
    """Flows as they start, which are not yet like their data, trained long."""
    away = {"ring": MixtureData(means=[[3.0, 0.0], [3.0, 1.0]], std=0.2)}
    eco = trained_by(ecosystem(data=away), SGD.model_copy(update={"steps": 400, "learning_rate": 0.01}))
    found = made(eco, 640, 640, point=opened(eco))
    check = everything(found, rounds=10)["stable point"]
    assert check.result == "warning"
    assert check.words.startswith("Far from a stable point")
    assert "Audit again after some rounds" in check.words


def test_near_a_stable_point_passes() -> None:
    """Closed forms at their stable point: −F is noise of the samples alone, of 2,000 groups a source."""
    bank, estimated = sampled(truth(pair(candidates=3)), 2000, 1)
    horizon, system = prepare(estimated.eco, bank, rounds=5)
    found = checks.settled(bank, course(Leg(bank, horizon, system, 0, 5)))
    assert found.result == "passed", found.words


def test_an_ordinary_estimate_passes_everything() -> None:
    gentle = trained_by(ecosystem(), SGD.model_copy(update={"learning_rate": 1e-3}))
    found = everything(made(gentle, 320, 160, point=opened(gentle)))
    assert set(found) == {
        "gradients",
        "scores",
        "samples",
        "rewards",
        "solver",
        "step size",
        "expansion",
        "ridge",
        "clipping",
        "stable point",
    }
    assert {name for name, check in found.items() if check.result != "passed"} <= {"stable point"}, found


@pytest.mark.parametrize(
    ("optimizer", "more", "edge"), [("sgd", 0.0, 2.0), ("sgd", 0.9, 3.8), ("adamw", 0.9, 38.0), ("adamw", 0.0, 2.0)]
)
def test_the_edge_of_stability(optimizer: str, more: float, edge: float) -> None:
    """Told where directions count as trained to the end, and only there: ηλ beyond 2(1 + β), over 1 − β for AdamW's averages.

    In few steps AdamW overshoots before that, as its first averages are corrected up; these are many.
    """
    found = flows()
    estimated = found.estimate(fisher=0.0)
    values = estimated.answer.system.spectrum(0)[-1:]
    for factor, result in ((0.9, "passed"), (1.2, "warning")):
        fields: dict[str, Any] = {"momentum": more} if optimizer == "sgd" else {"betas": (more, 0.999)}
        rate = factor * edge / float(values)
        training = Training(steps=1000, optimizer=optimizer, learning_rate=rate, gradient_clip=None, **fields)
        horizon = replace(
            estimated.horizon, steps=[Steps(training), Steps(SGD.model_copy(update={"learning_rate": 1e-4}))]
        )
        check = checks.stability([(replace(estimated.legs[0], horizon=horizon), estimated.answer)])
        assert check.result == result, (factor, check.words)
        assert bool(horizon.steps[0].beyond(values, 0)) == (result == "warning")


def test_clipping_is_told() -> None:
    clipped = trained_by(ecosystem(), SGD.model_copy(update={"gradient_clip": 0.01}))
    check = everything(made(clipped, 160, 80, point=opened(clipped)))["clipping"]
    assert check.result == "failed"
    assert "p (× " in check.words
    assert "raise `gradient_clip`" in check.words


@pytest.mark.parametrize(("factor", "result"), [(1.0, "passed"), (0.6, "passed"), (0.3, "warning"), (0.1, "failed")])
def test_how_much_clipping_matters(factor: float, result: str) -> None:
    assert checks.of_clipping({"p": factor, "q": 1.0}).result == result


def test_the_worst_of_all() -> None:
    some = [Check("a", "passed", ""), Check("b", "warning", "")]
    assert (checks.worst([]), checks.worst(some[:1]), checks.worst(some)) == ("passed", "passed", "warning")
    assert checks.worst([Check("c", "failed", ""), *some]) == "failed"


def test_the_effect_of_the_ridge_is_that_of_doubling_it() -> None:
    """Against a central difference over 6 rounds: what is left out, the ridge within a round, is about a sixth to a quarter."""
    eco = trained_by(ecosystem(), SGD.model_copy(update={"learning_rate": 1e-5}))
    found = made(eco, 320, 160)
    at, low, high = (found.estimate(rounds=6, ridge=ridge, fisher=0.2) for ridge in (1.0, 0.99, 1.01))
    effect = checks.ridge_effect(at.legs[0], at.answer)
    slope = (high.answer.matrix - low.answer.matrix) / 0.02
    assert float((effect - slope).abs().max() / slope.abs().max()) < 0.3
    assert checks.ridge(effect, effect.abs() / 2).result == "warning"
    assert checks.ridge(effect, effect.abs() * 2).result == "passed"
