"""Live checks: every fault is caught in the round it happens in, and finished rounds stay."""

from __future__ import annotations

import pytest
import torch

from crossfeed.describe.schema import Curated, Real
from crossfeed.errors import CheckFailedError
from crossfeed.retraining.checks import check_trained
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.run import run_networks
from retraining.fakes import Points, plane, rewards_of


def go(fault: str, **options):
    eco = plane({"p": [Real(data="ring", weight=1)], "q": [Real(data="ring", weight=1)]})
    memory = Memory("all")
    networks = {"p": Points("p", (1.0, 0.0), 1.0), "q": Points("q", (0.0, 1.0), 1.0, fault)}
    rewards = rewards_of(eco) | options.pop("rewards", {})
    try:
        run_networks(eco, memory, device="cpu", networks=networks, rewards=rewards, **options)
    except CheckFailedError as error:
        return str(error), memory
    return "", memory


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("frozen", "training moved no parameter; see that the family has trainable parameters"),
        ("unused", "what generates did not change: generation does not use the trained parameters"),
        ("nan", "outputs are not finite; lower train.learning_rate"),
    ],
)
def test_faults_stop_the_run_in_their_round(fault, words):
    message, memory = go(fault)
    assert message.startswith("round 1, models.q: ")
    assert words in message
    assert memory.rounds == [0]  # the start stays, the broken round is not there
    assert memory.status == {"result": "failed", "reason": message}


def test_healthy_networks_pass_and_the_record_says_so():
    message, memory = go("", rounds=2)
    assert message == ""
    checks = memory.round_info(2)["checks"]
    assert checks == {name: {"generation_changed": True, "differs_from_base": None} for name in "pq"}


class Adapter(Points):
    """A network with a frozen base; the adapter may be left unused."""

    def __init__(self, live: bool) -> None:
        super().__init__("q")
        self.live, self.calls = live, 0

    def probe(self):
        self.calls += 1  # something else changes, e.g. another adapter of the same base
        return self.mean.detach().clone() if self.live else torch.full((2,), float(self.calls))

    def base_probe(self):
        return self.start.clone() if self.live else torch.full((2,), float(self.calls))


@pytest.mark.parametrize("live", [True, False])
def test_an_adapter_that_does_not_generate_is_caught(live):
    network = Adapter(live)
    before = network.probe()
    network.mean.data += 1
    if live:
        assert check_trained(network, 2, 1.4, 1.0, before)["differs_from_base"] is True
    else:
        with pytest.raises(CheckFailedError, match=r"round 2, models\.q: generation gives what the frozen base gives"):
            check_trained(network, 2, 1.4, 1.0, before)


def test_steps_too_small_for_the_probe_are_no_fault():
    network = Points("q", (1.0, 0.0), fault="unused")
    assert check_trained(network, 50, 1e-6, 1.0, network.probe())["generation_changed"] is False


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_named(bad):
    network = Points("q")
    before = network.probe()
    network.mean.data[1] = bad
    with pytest.raises(CheckFailedError, match=r"round 7, models\.q: parameters are not finite.*first mean; lower"):
        check_trained(network, 7, 1.0, 1.0, before)


def test_rewards_that_break_stop_the_run_where_they_do():
    calls = []

    def reward(prompts, outputs):
        calls.append(len(prompts))
        values = outputs[:, 1].double()
        return values / 0 * 0 if len(calls) > 2 else values

    message, memory = go("", rewards={"up": reward}, rounds=3)
    assert message.startswith("round 2, models.q.evaluate.own: 16 of 16 rewards by up are not finite")
    assert memory.rounds == [0, 1]


def test_rewards_that_break_in_curation_name_the_source():
    eco = plane({"p": [Real(data="ring", weight=0.5), Curated(producer="p", weight=0.5, candidates=3)]})

    def reward(prompts, outputs):
        return outputs[:, 0].double() * (torch.nan if len(prompts) == 30 else 1)

    with pytest.raises(
        CheckFailedError, match=r"round 1, models\.p\.sources\.curated_p: rewards\.right: 30 of 30 rewards"
    ):
        run_networks(eco, None, device="cpu", networks={"p": Points("p", spread=1.0)}, rewards={"right": reward})
