"""Collapse and divergence: found when they happen, said in words, the same after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossfeed.describe.load import load
from crossfeed.describe.schema import Raw, Real, RunOptions, Stop, Training
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.run import run_networks
from crossfeed.retraining.stopping import Watch
from retraining.fakes import Points, plane, rewards_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ONE = {"p": 1.0, "q": 1.0}


def watch(diversities, losses=None, **stop):
    """What a watch says, round by round."""
    it = Watch()
    it.begin(ONE)
    losses = losses or [ONE] * len(diversities)
    return [
        it.after(Stop(**stop), t + 1, d, loss, dict.fromkeys(ONE, 0.0))
        for t, (d, loss) in enumerate(zip(diversities, losses, strict=True))
    ]


def test_collapse_needs_every_model_for_some_rounds_in_a_row():
    low, half, high = {"p": 0.01, "q": 0.015}, {"p": 0.01, "q": 0.5}, {"p": 0.5, "q": 0.5}
    assert watch([low, half, low, high, low]) == [None] * 5
    said = watch([half, low, low])
    assert said[:2] == [None, None]
    result, reason = said[2]
    assert result == "collapsed"
    assert reason == (
        "every model's outputs have had less than 0.02 of round 0's diversity for 2 rounds (at most 0.015 of it in round 3)"
    )
    assert watch([low], patience=1)[0][0] == "collapsed"
    assert watch([low] * 9, collapse=0) == [None] * 9


def test_divergence_is_measured_against_each_models_first_round():
    said = watch([ONE] * 3, [{"p": 0.1, "q": 1.0}, {"q": 9.0, "p": 0.9}, {"p": 1.1}], divergence=10)
    assert said[:2] == [None, None]
    result, reason = said[2]
    assert result == "diverged"
    assert "p's training loss rose to 1.1 in round 3, above 10 times its first round's (0.1)" in reason


def test_log_losses_are_compared_on_a_scale_of_nats():
    it = Watch()
    it.begin({"p": 1.0})
    nat = {"p": 1.0}
    assert it.after(Stop(divergence=10), 1, {"p": 1.0}, {"p": -0.01}, nat) is None
    assert it.after(Stop(divergence=10), 2, {"p": 1.0}, {"p": 9.0}, nat) is None  # 900 times 0.01, but 9 nats
    assert it.after(Stop(divergence=10), 3, {"p": 1.0}, {"p": 11.0}, nat)[0] == "diverged"


def test_what_is_watched_survives_as_json():
    it = Watch()
    it.begin({"p": 2.0})
    it.after(Stop(), 1, {"p": 0.01}, {"p": 3.0}, {"p": 0.0})
    assert vars(Watch.read(it.info())) == vars(it)
    assert it.collapsed_rounds == 1


class Shrinking(Points):
    """Its outputs draw together in each round it is trained."""

    def train(self, mode: bool) -> None:
        self.spread *= 0.1 if mode else 1.0


def shrinking(rounds, memory, resume=False):
    eco = plane({"p": [Real(data="ring", weight=0.1), Raw(producer="p", weight=0.9)]})
    run = run_networks(
        eco,
        memory,
        rounds=rounds,
        resume=resume,
        device="cpu",
        networks={"p": Shrinking("p", spread=10.0 ** -(max(memory.rounds or [0])))},
        rewards=rewards_of(eco),
    )
    return run


def test_a_collapsed_run_ends_early_and_stays_ended():
    memory = Memory("all")
    run = shrinking(9, memory)
    assert run.result == "collapsed"
    assert memory.rounds == [0, 1, 2, 3]  # below 2 % in rounds 2 and 3
    assert "for 2 rounds" in run.reason
    assert memory.status == {"result": "collapsed", "reason": run.reason}
    assert str(run.summaries[-1]).endswith(f"collapsed: {run.reason}")
    assert run.summary().count(run.reason) == 1
    again = shrinking(20, memory, resume=True)
    assert (again.result, again.reason) == ("collapsed", run.reason)
    assert memory.rounds == [0, 1, 2, 3]


def test_patience_survives_a_resume():
    memory = Memory("all")
    assert shrinking(2, memory).result == "finished"
    run = shrinking(9, memory, resume=True)
    assert run.result == "collapsed"
    assert memory.rounds == [0, 1, 2, 3]


def test_a_diverging_run_ends_with_its_last_round_on_record():
    eco = plane({"p": [Real(data="ring", weight=1)]}, run=RunOptions(rounds=50, evaluation_samples=8))
    wild = eco.models["p"].model_copy(
        update={"train": Training(steps=3, batch_size=8, optimizer="sgd", learning_rate=2.5, gradient_clip=None)}
    )
    eco = eco.model_copy(update={"models": {"p": wild}})
    memory = Memory("all")
    networks = {"p": Points("p", spread=1.0)}
    run = run_networks(eco, memory, device="cpu", networks=networks, rewards=rewards_of(eco))
    assert run.result == "diverged"
    assert "lower its learning rate, or add real data" in run.reason
    assert 1 < memory.rounds[-1] < 10
    assert torch.isfinite(memory.parameters(memory.rounds[-1], "p")["mean"]).all()


def ended(name):
    changes = {"run.stop.collapse": 0.2, "run.rounds": 12, "run.stop.patience": 2}
    return run_networks(load(EXAMPLES / name, scale="smoke", overrides=changes), None, device="cpu")


def test_without_real_data_curation_collapses():
    """The exact loop leaves 12 % of the diversity (docs/findings.md); 20 % ends a run."""
    alone = ended("eight_gaussians.yaml")
    assert alone.result == "collapsed"
    assert "less than 0.2 of round 0's diversity for 2 rounds" in alone.reason


@pytest.mark.slow
def test_with_real_data_curation_does_not_collapse():
    """The exact loop leaves 84 %."""
    assert ended("eight_gaussians_real.yaml").result == "finished"
