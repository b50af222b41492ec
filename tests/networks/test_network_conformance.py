"""What the protocol promises, for every network: one sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import scipy.stats
import tiny
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import DataError
from crossfeed.networks.base import LIKELIHOOD, RSAMPLE, Network, Outputs
from crossfeed.networks.build import build
from crossfeed.networks.training import train
from crossfeed.networks.world import World, open_world

KINDS = ["flow", "diffusion", "language-lora", "language"]


@dataclass
class Stack:
    """One network away from its start, with real data of its world."""

    kind: str
    world: World
    network: Network
    prompts: Tensor
    outputs: Outputs
    start: dict[str, Tensor]

    def part(self, num: int) -> tuple[Tensor, Outputs]:
        return self.prompts[:num], self.outputs[:num]


_made: dict[str, Stack] = {}


def shake(network: Network, size: float, seed: int = 0) -> None:
    """Move every parameter a little."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters().values():
            value += size * torch.randn(value.shape, generator=random)


def copies(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.parameters().items()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=KINDS)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Made once a kind; every test starts from the same parameters in evaluation mode."""
    kind = request.param
    if kind not in _made:
        if kind == "flow":
            eco = tiny.flows()
        elif kind == "diffusion":
            eco = tiny.diffusions()
        else:
            lora = kind == "language-lora"
            eco = tiny.languages(tmp_path_factory.mktemp(kind), lora=lora, dropout=0.3 if lora else 0.0)
        world = open_world(eco)
        network = build(world)["p"]
        shake(network, 0.05)
        _, prompts, outputs = next(iter(world.data.values())).draw(24, seeded(0))
        _made[kind] = Stack(kind, world, network, prompts, outputs, copies(network))
    made = _made[kind]
    made.network.load(made.start)
    made.network.train(False)
    yield made
    for value in made.network.parameters().values():
        value.grad = None


def equal(first: Outputs, second: Outputs) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return first == second


# --- parameters -----------------------------------------------------------------------------------------------------


def test_has_the_protocol(stack: Stack) -> None:
    network = stack.network
    assert isinstance(network, Network)
    assert network.name == "p"
    assert network.capabilities <= {LIKELIHOOD, RSAMPLE}
    assert network.capabilities
    assert network.device == torch.device("cpu")


def test_parameters_are_live_ordered_and_trained(stack: Stack) -> None:
    network = stack.network
    first, second = network.parameters(), network.parameters()
    assert list(first) == list(second)
    assert all(first[name].data_ptr() == second[name].data_ptr() for name in first)
    assert all(value.requires_grad and value.is_leaf and value.dtype == torch.float32 for value in first.values())
    before = network.probe()
    shake(network, 0.1)
    assert not torch.equal(network.probe(), before)


def test_the_two_models_of_a_world_share_no_trained_parameter(stack: Stack) -> None:
    networks = build(stack.world)
    places = [{value.data_ptr() for value in network.parameters().values()} for network in networks.values()]
    assert not places[0] & places[1]
    before = networks["q"].probe()
    shake(networks["p"], 0.1)
    assert torch.equal(networks["q"].probe(), before)


def test_a_world_gives_the_same_networks_again(stack: Stack) -> None:
    first, second = build(stack.world), build(stack.world)
    for name in first:
        mine, other = first[name].parameters(), second[name].parameters()
        assert list(mine) == list(other)
        assert all(torch.equal(mine[key], other[key]) for key in mine)
        assert torch.equal(first[name].probe(), second[name].probe())


def test_load_is_a_round_trip(stack: Stack) -> None:
    network, before = stack.network, stack.network.probe()
    saved = copies(network)
    shake(network, 0.1)
    network.load(dict(reversed(saved.items())))
    assert all(torch.equal(value, saved[name]) for name, value in network.parameters().items())
    assert all(value.data_ptr() != saved[name].data_ptr() for name, value in network.parameters().items())
    assert torch.equal(network.probe(), before)


def test_load_refuses_what_does_not_fit(stack: Stack) -> None:
    saved = copies(stack.network)
    name = next(iter(saved))
    for wrong in (
        {key: value for key, value in saved.items() if key != name},
        saved | {"unknown": torch.zeros(1)},
        saved | {name: torch.zeros(1, 2, 3, 4, 5)},
    ):
        with pytest.raises(DataError, match=r"models\.p"):
            stack.network.load(wrong)
    assert all(torch.equal(value, saved[key]) for key, value in stack.network.parameters().items())


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_one_number_a_sample_with_a_gradient(stack: Stack) -> None:
    network = stack.network
    prompts, outputs = stack.part(8)
    losses = network.losses(prompts, outputs, seeded(0))
    assert losses.shape == (8,)
    assert bool(losses.isfinite().all())
    assert torch.equal(losses, network.losses(prompts, outputs, seeded(0)))
    losses.mean().backward()
    gradients = [value.grad for value in network.parameters().values()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0


def test_a_samples_loss_does_not_depend_on_its_companions(stack: Stack) -> None:
    if stack.kind == "diffusion":  # draws noise for the batch as a whole; the rest of its loss is in test_diffusion
        return
    prompts, outputs = stack.part(6)
    together = stack.network.losses(prompts, outputs)
    for i in range(6):
        alone = stack.network.losses(prompts[i : i + 1], outputs[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


def test_lengths_are_none_or_one_a_sample(stack: Stack) -> None:
    prompts, outputs = stack.part(8)
    lengths = stack.network.lengths(prompts, outputs)
    assert (lengths is None) == (not isinstance(outputs, list))
    if lengths is not None:
        assert lengths.shape == (8,)
        assert bool((lengths > 0).all())


def test_training_lowers_the_loss_and_moves_what_generates(stack: Stack) -> None:
    network, before = stack.network, stack.network.probe()

    def loss() -> float:
        with torch.no_grad():
            return float(sum(network.losses(stack.prompts, stack.outputs, seeded(i)).mean() for i in range(8)) / 8)

    start = loss()
    how = Training(steps=40, batch_size=12, learning_rate=5e-3)
    done = train(network, stack.prompts, stack.outputs, how, 1, seeded(1))
    assert loss() < start
    assert done.moved > 0
    assert not torch.equal(network.probe(), before)


def test_training_is_decided_by_the_generator(stack: Stack) -> None:
    ends = []
    for seed in (3, 3, 4):
        stack.network.load(stack.start)
        torch.manual_seed(seed + len(ends))  # the global generator plays no part
        how = Training(steps=3, batch_size=5, learning_rate=5e-3)
        train(stack.network, stack.prompts, stack.outputs, how, 1, seeded(seed))
        ends.append(copies(stack.network))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


# --- samples --------------------------------------------------------------------------------------------------------


def draw(stack: Stack, candidates: list[int], seed: int = 0, **options: object) -> Outputs:
    counts = torch.tensor(candidates)
    return stack.network.sample(stack.prompts[: len(counts)], counts, seeded(seed), **options)  # type: ignore[arg-type]


def test_samples_have_the_form_of_the_medium(stack: Stack) -> None:
    done: list[int] = []
    outputs = draw(stack, [2, 0, 3], batch_size=2, advance=done.append)
    assert len(outputs) == sum(done) == 5
    if stack.world.medium == "text":
        assert isinstance(outputs, list)
        assert all(isinstance(text, str) for text in outputs)
        assert all(text == text.encode("utf-8").decode("utf-8") for text in outputs)
        return
    assert isinstance(outputs, Tensor)
    assert outputs.shape == (5, *stack.world.shape)
    assert outputs.dtype == (torch.float32 if stack.world.medium == "vectors" else torch.uint8)
    assert not outputs.requires_grad
    assert outputs.device == stack.network.device


def test_no_candidates_is_no_output(stack: Stack) -> None:
    assert len(draw(stack, [0, 0])) == 0


@pytest.mark.parametrize("evaluating", [False, True])
def test_the_generator_decides_the_samples(stack: Stack, evaluating: bool) -> None:
    first = draw(stack, [3, 2, 3], seed=5, evaluating=evaluating)
    torch.manual_seed(99)
    assert equal(first, draw(stack, [3, 2, 3], seed=5, evaluating=evaluating))
    assert not equal(first, draw(stack, [3, 2, 3], seed=6, evaluating=evaluating))
    outputs = first.float() if isinstance(first, Tensor) else first
    assert not equal(outputs[:1], outputs[1:2])  # candidates of one prompt are different draws


def test_samples_do_not_change_the_network(stack: Stack) -> None:
    before, saved = stack.network.probe(), copies(stack.network)
    draw(stack, [2, 2])
    assert torch.equal(stack.network.probe(), before)
    assert all(torch.equal(value, saved[name]) for name, value in stack.network.parameters().items())
    assert all(value.grad is None for value in stack.network.parameters().values())


def test_dropout_is_off_while_sampling(stack: Stack) -> None:
    resting = draw(stack, [3, 3])
    probe = stack.network.probe()
    stack.network.train(True)
    assert equal(draw(stack, [3, 3]), resting)
    assert torch.equal(stack.network.probe(), probe)
    stack.network.train(False)


def test_dropout_is_on_in_training_mode_where_there_is_some(stack: Stack) -> None:
    prompts, outputs = stack.part(8)
    with torch.no_grad():
        resting = stack.network.losses(prompts, outputs, seeded(0))
        stack.network.train(True)
        torch.manual_seed(0)
        training = stack.network.losses(prompts, outputs, seeded(0))
        stack.network.train(False)
    assert torch.equal(resting, training) == (stack.kind != "language-lora")


# --- probes ---------------------------------------------------------------------------------------------------------


def test_probe_changes_iff_parameters_do(stack: Stack) -> None:
    network = stack.network
    first = network.probe()
    assert first.ndim == 1
    assert bool(first.isfinite().all())
    assert not first.requires_grad
    assert torch.equal(network.probe(), first)
    network.load(stack.start)
    assert torch.equal(network.probe(), first)
    shake(network, 1e-3)
    assert not torch.equal(network.probe(), first)


def test_base_probe_is_what_the_adapter_starts_from(stack: Stack) -> None:
    network = stack.network
    base = network.base_probe()
    assert (base is not None) == (stack.kind == "language-lora")
    if base is None:
        return
    assert base.shape == network.probe().shape
    assert not torch.equal(base, network.probe())
    shake(network, 0.1)
    again = network.base_probe()
    assert again is not None
    assert torch.equal(again, base)
    fresh = build(stack.world)["p"]  # an adapter that was never trained does nothing
    fresh_base = fresh.base_probe()
    assert fresh_base is not None
    torch.testing.assert_close(fresh.probe(), fresh_base)


# --- likelihood and pathwise derivatives ----------------------------------------------------------------------------


def test_log_prob_is_the_negative_loss(stack: Stack) -> None:
    if LIKELIHOOD not in stack.network.capabilities:
        return
    prompts, outputs = stack.part(8)
    log_prob = stack.network.log_prob(prompts, outputs)
    assert log_prob.shape == (8,)
    assert log_prob.requires_grad
    torch.testing.assert_close(log_prob, -stack.network.losses(prompts, outputs), rtol=1e-4, atol=1e-4)


def test_log_prob_is_that_of_the_sampler(stack: Stack) -> None:
    """E[∇ log q(y)] = 0 under the sampler, along 16 directions of the parameters; false alarm 1 in 10,000 a network."""
    network, num, directions = stack.network, 200, 16
    if LIKELIHOOD not in network.capabilities:
        return
    prompts = stack.prompts[:1]
    outputs = network.sample(prompts, torch.tensor([num]), seeded(8))
    parameters = list(network.parameters().values())
    random = seeded(9)
    along = [torch.randn(directions, value.numel(), generator=random) for value in parameters]
    scores = torch.zeros(num, directions)
    for i in range(num):
        log_prob = network.log_prob(prompts, outputs[i : i + 1]).sum()
        slopes = torch.autograd.grad(log_prob, parameters)
        scores[i] = sum(v @ slope.flatten() for v, slope in zip(along, slopes, strict=True))
    t = scores.mean(0) / (scores.std(0) / num**0.5)
    assert float(t.abs().max()) < scipy.stats.norm.isf(1e-4 / 2 / directions)


def test_rsample_is_differentiable_at_fixed_noise(stack: Stack) -> None:
    network = stack.network
    if RSAMPLE not in network.capabilities:
        return
    noise = torch.randn(4, *stack.world.shape, generator=seeded(0))
    outputs = network.rsample(stack.prompts[:4], noise)
    assert outputs.shape == noise.shape
    assert torch.equal(outputs, network.rsample(stack.prompts[:4], noise))
    slopes = torch.autograd.grad(outputs.square().sum(), list(network.parameters().values()), allow_unused=True)
    found = [slope for slope in slopes if slope is not None]
    assert all(bool(slope.isfinite().all()) for slope in found)
    assert sum(float(slope.abs().sum()) for slope in found) > 0
