"""Training: what a step follows, the learning rate, the optimiser's state, and what goes wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, Pretraining, Training
from crossfeed.errors import CheckFailedError, CrossfeedError, DataError
from crossfeed.networks.base import Outputs
from crossfeed.networks.flow import SplineFlow
from crossfeed.networks.training import Trained, learning_rate, train


class Point:
    """The smallest network: one parameter θ, loss ½(θ − y)²; remembers which samples each pass saw."""

    def __init__(self, lengths: Tensor | None = None, fits: int | None = None, bad_step: int | None = None) -> None:
        self.name, self.device, self.capabilities = "p", torch.device("cpu"), frozenset[str]()
        self.theta = torch.zeros(1, requires_grad=True)
        self.seen: list[Tensor] = []
        self.tried: list[int] = []
        self.mode: bool | None = None
        self._lengths, self._fits, self._bad_step = lengths, fits, bad_step
        self.out_of_memory: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def parameters(self) -> dict[str, Tensor]:
        return {"layers.theta": self.theta}

    def lengths(self, prompts: Tensor, outputs: Outputs) -> Tensor | None:
        return self._lengths

    def train(self, mode: bool) -> None:
        self.mode = mode

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        assert isinstance(outputs, Tensor)
        assert self.mode is True
        self.tried.append(len(prompts))
        if self._fits is not None and len(prompts) > self._fits:
            raise self.out_of_memory
        self.seen.append(prompts)
        loss = 0.5 * (self.theta - outputs[:, 0]).square()
        return loss * math.inf if len(self.seen) == self._bad_step else loss


def go(network: Any, training: Training, num: int = 12, seed: int = 0, **options: Any) -> Trained:
    """Train on ``num`` samples; prompts number the samples, so that a Point's record says who was seen."""
    outputs = torch.linspace(-1.0, 2.0, num)[:, None].expand(num, 2).contiguous()
    random = torch.Generator().manual_seed(seed)
    return train(network, torch.arange(num), outputs, training, options.pop("round", 1), random, **options)


def sgd(**settings: Any) -> Training:
    return Training(**({"optimizer": "sgd", "learning_rate": 0.1, "gradient_clip": None, "batch_size": 4} | settings))


# --- what a step follows --------------------------------------------------------------------------------------------


def test_full_batch_descent_is_the_known_sequence() -> None:
    """θ_k = ȳ (1 − (1 − η)^k) from θ_0 = 0; loss ½(θ − ȳ)² + ½ Var; the gradient is θ − ȳ."""
    network, mean = Point(), 0.5
    done = go(network, sgd(steps=7, batch_size=12))
    assert float(network.theta.detach()) == pytest.approx(mean * (1 - 0.9**7), rel=1e-5)
    assert done.moved == done.norm == pytest.approx(mean * (1 - 0.9**7), rel=1e-5)
    variance = float(torch.linspace(-1.0, 2.0, 12).var(correction=0))
    losses = [0.5 * (mean * 0.9**k) ** 2 + variance / 2 for k in range(7)]
    assert (done.first_loss, done.last_loss) == pytest.approx((losses[0], losses[-1]), rel=1e-5)
    assert done.mean_loss == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert done.gradient_norm == pytest.approx(sum(mean * 0.9**k for k in range(7)) / 7, rel=1e-5)
    assert done.samples_seen == 84
    assert network.mode is False


def test_every_pass_uses_every_sample_once() -> None:
    network = Point()
    go(network, sgd(steps=10, batch_size=5))  # 50 samples, 12 a pass: passes do not end with batches
    stream = torch.cat(network.seen)
    assert all(len(batch) == 5 for batch in network.seen)
    for start in range(0, 48, 12):
        assert sorted(stream[start : start + 12].tolist()) == list(range(12))
    assert not torch.equal(stream[:12], stream[12:24])


def test_a_batch_larger_than_the_training_set_goes_round() -> None:
    network = Point()
    go(network, sgd(steps=2, batch_size=7), num=3)
    assert torch.cat(network.seen)[:12].bincount().tolist() == [4, 4, 4]


def test_accumulation_is_one_step_on_the_whole_batch() -> None:
    whole, parts = Point(), Point()
    one = go(whole, sgd(steps=6, batch_size=8))
    two = go(parts, sgd(steps=6, batch_size=2, accumulate=4))
    assert torch.equal(torch.cat(whole.seen), torch.cat(parts.seen))
    torch.testing.assert_close(whole.theta, parts.theta, rtol=1e-6, atol=0)
    assert one.mean_loss == pytest.approx(two.mean_loss, rel=1e-6)
    assert one.samples_seen == two.samples_seen == 48


def test_batches_are_of_similar_length_and_still_passes() -> None:
    lengths = torch.arange(64).flip(0) * 10
    network = Point(lengths)
    go(network, sgd(steps=128, batch_size=4), num=64)
    for start in range(0, 128, 16):
        part = network.seen[start : start + 16]  # a pass over 64 samples, all of them sorted together
        assert sorted(torch.cat(part).tolist()) == list(range(64))
    spans = [int(lengths[batch].max() - lengths[batch].min()) for batch in network.seen]
    assert max(spans) == 30  # four neighbours
    firsts = [int(batch.max()) for batch in network.seen[:16]]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


@pytest.mark.parametrize(("num", "size", "steps"), [(48, 4, 12), (50, 4, 25), (1024, 2, 512), (3, 2, 6)])
def test_no_batch_sorted_by_length_holds_a_sample_twice(num: int, size: int, steps: int) -> None:
    network = Point(torch.randint(1, 40, (num,), generator=torch.Generator().manual_seed(1)))
    go(network, sgd(steps=steps, batch_size=size), num=num)
    counts = torch.cat(network.seen).bincount(minlength=num)
    assert int(counts.max() - counts.min()) <= (2 if num % size else 1)  # sorted groups may reach into the next pass
    if num % size == 0:
        assert all(len(set(batch.tolist())) == size for batch in network.seen)


def test_clipping_bounds_the_step_and_not_the_report() -> None:
    network = Point()
    done = go(network, sgd(steps=1, batch_size=12, gradient_clip=0.2))
    assert float(network.theta.detach()) == pytest.approx(0.1 * 0.2, rel=1e-4)
    assert done.gradient_norm == pytest.approx(0.5, rel=1e-5)


def test_adamw_first_step_is_the_learning_rate_and_decays_weights() -> None:
    network = Point()
    with torch.no_grad():
        network.theta.fill_(2.0)
    go(network, Training(steps=1, batch_size=12, learning_rate=0.01, weight_decay=0.5))
    assert float(network.theta.detach()) == pytest.approx(2.0 * (1 - 0.01 * 0.5) - 0.01, rel=1e-5)


def test_sgd_with_momentum_and_decay() -> None:
    network, theta, momentum = Point(), 0.0, 0.0
    go(network, sgd(steps=3, batch_size=12, momentum=0.9, weight_decay=0.1))
    for _ in range(3):
        momentum = 0.9 * momentum + (theta - 0.5) + 0.1 * theta
        theta -= 0.1 * momentum
    assert float(network.theta.detach()) == pytest.approx(theta, rel=1e-5)


# --- learning rate --------------------------------------------------------------------------------------------------


def test_learning_rates() -> None:
    paper = Training(steps=10, learning_rate=2e-4, decay_from=40, decay=0.5)
    assert [learning_rate(paper, r, 3) / 2e-4 for r in (0, 39, 40, 41, 43)] == [1, 1, 0.5, 0.25, 0.0625]
    warm = Training(steps=10, learning_rate=1.0, warmup=4, schedule="cosine")
    rates = [learning_rate(warm, 1, step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))
    assert all(rates[i] > rates[i + 1] > 0 for i in range(4, 9))
    only_warm = Training(steps=3, learning_rate=1.0, warmup=6, schedule="linear")
    assert [learning_rate(only_warm, 1, step) for step in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_steps_use_the_learning_rate_of_their_round_and_step() -> None:
    training = sgd(steps=2, batch_size=12, warmup=2, decay_from=3)
    network, theta = Point(), 0.0
    go(network, training, round=4)
    for step in range(2):
        theta -= learning_rate(training, 4, step) * (theta - 0.5)
    assert float(network.theta.detach()) == pytest.approx(theta, rel=1e-5)


# --- the same again -------------------------------------------------------------------------------------------------


def flow(seed: int = 1) -> SplineFlow:
    return SplineFlow("p", Flow(width=8, bins=4), 2, seed)


def values(network: Any) -> list[Tensor]:
    return [value.detach().clone() for value in network.parameters().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_generator_decides() -> None:
    networks = [flow() for _ in range(3)]
    training = Training(steps=5, batch_size=4)
    results = [go(network, training, seed=seed) for network, seed in zip(networks, (0, 0, 1), strict=True)]
    assert results[0] == results[1]
    assert same(values(networks[0]), values(networks[1]))
    assert not same(values(networks[0]), values(networks[2]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_optimizer_goes_on_bit_for_bit(optimizer: str) -> None:
    """2k steps are k steps, and k more from the saved state in a new network: order, moments and step count."""
    half = Training(steps=6, batch_size=12, optimizer=optimizer, momentum=0.9, keep_optimizer=True)
    whole = flow()
    go(whole, half.model_copy(update={"steps": 12}), num=12)  # the whole set each step, but its order differs by pass
    first = flow()
    random = torch.Generator().manual_seed(0)
    outputs = torch.linspace(-1.0, 2.0, 12)[:, None].expand(12, 2).contiguous()
    done = train(first, torch.arange(12), outputs, half, 1, random)
    assert done.optimizer_state
    second = flow(seed=9)
    second.load({name: value.detach().clone() for name, value in first.parameters().items()})
    stored = {name: value.clone() for name, value in done.optimizer_state.items()}
    after = train(second, torch.arange(12), outputs, half, 2, random, optimizer_state=stored)
    assert same(values(second), values(whole))
    assert after.optimizer_state is not None
    assert after.optimizer_state.keys() == stored.keys()
    assert all(torch.equal(stored[name], done.optimizer_state[name]) for name in stored)  # not changed in place


def test_the_optimizer_starts_afresh_unless_kept() -> None:
    plain = Training(steps=3, batch_size=12)
    assert go(flow(), plain).optimizer_state is None
    kept = go(flow(), plain.model_copy(update={"keep_optimizer": True})).optimizer_state
    assert kept is not None
    names = set(flow().parameters())
    assert set(kept) == {f"{name}.{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}


def test_refuses_the_optimizer_state_of_another_network() -> None:
    state = go(Point(), Training(steps=1, keep_optimizer=True)).optimizer_state
    with pytest.raises(
        DataError, match=r"models\.p: the optimiser state has layers\.theta\.step of shape \(\), which belongs"
    ):
        go(flow(), Training(steps=1), optimizer_state=state)


def test_bfloat16_learns_and_keeps_float32_parameters() -> None:
    network = flow()
    done = go(network, Training(steps=60, batch_size=12, learning_rate=0.02), dtype=torch.bfloat16)
    assert done.last_loss < done.first_loss - 0.5
    assert all(value.dtype == torch.float32 for value in network.parameters().values())


def test_gradients_left_behind_by_others_play_no_part() -> None:
    network, clean = Point(), Point()
    network.theta.grad = torch.full((1,), 1e3)
    go(network, sgd(steps=2))
    go(clean, sgd(steps=2))
    assert torch.equal(network.theta, clean.theta)


def test_progress_adds_up() -> None:
    steps: list[int] = []
    go(flow(), Training(steps=37, batch_size=4), advance=steps.append)
    assert sum(steps) == 37


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_loss_that_is_not_finite_is_found_with_its_step(step: int) -> None:
    network = Point(bad_step=step)
    with pytest.raises(
        CheckFailedError, match=rf"models\.p: the loss is inf at step {step} of 9 in round 3; lower models"
    ):
        go(network, sgd(steps=9), round=3)
    assert network.mode is False


def test_a_gradient_that_is_not_finite_is_found_too() -> None:
    class Corner(Point):
        def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
            return super().losses(prompts, outputs) + 0 * self.theta.abs().sqrt()

    with pytest.raises(
        CheckFailedError, match=r"models\.p: the gradient's norm is nan at step 1 of 3 in round 1; lower"
    ):
        go(Corner(), sgd(steps=3))


def test_pretraining_has_its_own_words() -> None:
    with pytest.raises(
        CheckFailedError, match=r"at step 2 of 9 in pretraining; lower models\.p\.pretrain\.learning_rate"
    ):
        go(Point(bad_step=2), Pretraining(steps=9), round=0)


@pytest.mark.parametrize(
    ("batch", "accumulate", "fits", "advice"),
    [
        (32, 1, 11, "8 do; set models.p.train.batch_size: 8 and accumulate: 4 for the same result"),
        (32, 2, 16, "16 do; set models.p.train.batch_size: 16 and accumulate: 4 for the same result"),
        (10, 1, 4, "2 do; set models.p.train.batch_size: 2 and accumulate: 5 for the same result"),
        (7, 1, 4, "3 do; set models.p.train.batch_size: 3 and accumulate: 3 for nearly the same result"),
    ],
)
def test_out_of_memory_names_a_batch_size_that_fits(batch: int, accumulate: int, fits: int, advice: str) -> None:
    network = Point(fits=fits)
    with pytest.raises(CrossfeedError) as caught:
        go(network, sgd(steps=3, batch_size=batch, accumulate=accumulate), num=50)
    start = f"models.p.train.batch_size: {batch} samples do not fit into the memory of cpu, "
    assert str(caught.value) == start + advice
    assert network.mode is False


def test_out_of_memory_even_for_one_sample() -> None:
    with pytest.raises(
        CrossfeedError, match=r"models\.p\.pretrain\.batch_size: 4 samples .* and not even 1 does; use a sm"
    ):
        go(Point(fits=0), Pretraining(steps=3, batch_size=4))


def test_out_of_memory_in_the_words_of_the_cpu() -> None:
    network = Point(fits=2)
    network.out_of_memory = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with pytest.raises(CrossfeedError, match=r"2 do; set models\.p\.train\.batch_size: 2 and accumulate: 2"):
        go(network, sgd(steps=3))


def test_other_errors_are_not_hidden() -> None:
    network = Point(fits=2)
    network.out_of_memory = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        go(network, sgd(steps=3))


def test_refuses_an_empty_training_set() -> None:
    with pytest.raises(DataError, match=r"models\.p: the training set is empty; need at least one sample"):
        go(Point(), sgd(steps=3), num=0)
