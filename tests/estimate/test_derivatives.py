"""Generic derivatives against loops of autograd, finite differences and dot tests, on a flow, a UNet and language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import NUM, PROMPTS, Case, case, diffusion, direction, flow, grey, relative, seeded, stepped
from torch import Tensor

from crossfeed.estimate.derivatives import (
    flatten,
    gradient_rows,
    hessian_product,
    in_order,
    indexed_rows,
    mixed_gradient,
    mixed_pull,
    products,
    rows_at_once,
    sampler_pull,
    sampler_tangent,
    unflatten,
    weighted_gradient,
)
from crossfeed.estimate.networks import differentiable

WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, 0.25], dtype=torch.float64)
EXACT = {"flow": 1e-10}  # float64; the others are float32


@pytest.fixture(scope="module", params=["flow", "diffusion", "lora", "whole"])
def made(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


def rows_of(made: Case, chunk: int = 4) -> Tensor:
    return torch.cat([*gradient_rows(made.model.losses, made.model.parameters(), made.batch(), chunk)])


# --- one function of the samples ------------------------------------------------------------------------------------


def test_rows_are_autograds(made: Case) -> None:
    """Against the network's own training loss, sample by sample."""
    live = list(made.network.parameters().values())
    losses = made.live_losses()
    want = []
    for i in range(NUM):
        slopes = torch.autograd.grad(losses[i], live, retain_graph=True, materialize_grads=True)
        want.append(torch.cat([slope.flatten() for slope in slopes]))
    found = rows_of(made)
    assert found.shape == (NUM, sum(v.numel() for v in live))
    assert not found.requires_grad
    assert float(found.norm(dim=1).min()) > 0
    assert relative(found, torch.stack(want)) < EXACT.get(made.kind, 1e-4)


def test_rows_come_in_chunks_and_in_order(made: Case) -> None:
    theta, batch = made.model.parameters(), made.batch()
    sizes = [len(part) for part in gradient_rows(made.model.losses, theta, batch, 4)]
    assert sizes == [4, 2]
    assert relative(rows_of(made, 1), rows_of(made, NUM)) < EXACT.get(made.kind, 1e-4)


def test_products_and_weighted_gradients_are_those_of_the_rows(made: Case) -> None:
    theta, batch, rows, limit = made.model.parameters(), made.batch(), rows_of(made), EXACT.get(made.kind, 1e-4)
    v = direction(theta)
    found = products(made.model.losses, theta, batch, v, 4)
    assert found.shape == (NUM,)
    assert not found.requires_grad
    assert relative(found, rows @ v) < 10 * limit
    total = weighted_gradient(made.model.losses, theta, batch, WEIGHTS, 4)
    assert not total.requires_grad
    assert relative(total, rows.T @ WEIGHTS.to(rows)) < limit


def test_hessian_products_are_differences_of_gradients(made: Case) -> None:
    theta, batch = made.model.parameters(), made.batch()
    v, h = direction(theta), 1e-4 if made.kind == "flow" else 3e-3
    ends = [weighted_gradient(made.model.losses, stepped(theta, v, s * h), batch, WEIGHTS, 4) for s in (1, -1)]
    found = hessian_product(made.model.losses, theta, batch, WEIGHTS, v, 4)
    assert not found.requires_grad
    assert relative(found, (ends[0] - ends[1]) / (2 * h)) < (1e-5 if made.kind == "flow" else 1e-2)
    w = direction(theta, seed=8)
    other = hessian_product(made.model.losses, theta, batch, WEIGHTS, w, 3)
    assert float(found @ w) == pytest.approx(float(other @ v), rel=1e-8 if made.kind == "flow" else 1e-2)


def test_nothing_of_the_network_changes(made: Case) -> None:
    def state() -> list[Tensor]:
        kept = [v.detach().clone() for v in made.network.parameters().values()]
        return [*kept, made.live_losses().detach(), made.network.probe()]

    theta, batch, before = made.model.parameters(), made.batch(), state()
    v = direction(theta)
    list(gradient_rows(made.model.losses, theta, batch, 4))
    products(made.model.losses, theta, batch, v, 4)
    hessian_product(made.model.losses, theta, batch, WEIGHTS, v, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert all(v.requires_grad and v.grad is None for v in made.network.parameters().values())
    assert not any(v.requires_grad for v in made.model.parameters().values())
    assert theta.keys() == made.network.parameters().keys()


def test_no_samples_no_gradient(made: Case) -> None:
    theta, none = made.model.parameters(), tuple(part[:0] for part in made.batch())
    v = direction(theta)
    assert list(gradient_rows(made.model.losses, theta, none, 4)) == []
    assert products(made.model.losses, theta, none, v, 4).shape == (0,)
    assert not weighted_gradient(made.model.losses, theta, none, WEIGHTS[:0], 4).any()


@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_sorted_and_trimmed_chunks_change_nothing(kind: str) -> None:
    made = case(kind)
    model: Any = made.model
    theta, batch, rows = model.parameters(), made.batch(), rows_of(made)
    seen = torch.zeros_like(rows)
    for index, part in indexed_rows(model.losses, theta, batch, 2, split=model.chunks):
        seen[index] = part
    assert relative(seen, rows) < 1e-4
    v = direction(theta)
    for split in (in_order, model.chunks):
        assert relative(products(model.losses, theta, batch, v, 2, split), rows @ v) < 1e-3
        assert (
            relative(weighted_gradient(model.losses, theta, batch, WEIGHTS, 2, split), rows.T @ WEIGHTS.float()) < 1e-4
        )
    hessians = [hessian_product(model.losses, theta, batch, WEIGHTS, v, 2, split) for split in (in_order, model.chunks)]
    assert relative(hessians[1], hessians[0]) < 1e-3


def test_vectors_go_to_parameters_and_back() -> None:
    theta = flow().parameters()
    v = torch.randn(sum(p.numel() for p in theta.values()), dtype=torch.float64, generator=seeded())
    assert torch.equal(flatten(unflatten(theta, v)), v)
    assert torch.equal(flatten(theta), torch.cat([p.detach().flatten() for p in theta.values()]))


def test_what_does_not_fit_is_refused() -> None:
    made = case("flow")
    theta, batch = made.model.parameters(), made.batch()
    with pytest.raises(ValueError, match=r"v: found shape \(3,\); need \(\d+,\), one number a parameter"):
        products(made.model.losses, theta, batch, torch.zeros(3), 4)
    with pytest.raises(ValueError, match=r"weights: found shape \(2,\); need \(6,\), one a sample"):
        weighted_gradient(made.model.losses, theta, batch, torch.ones(2), 4)
    with pytest.raises(ValueError, match="chunk: found 0; need at least 1"):
        list(gradient_rows(made.model.losses, theta, batch, 0))
    with pytest.raises(ValueError, match=r"batch: found tensors of \[2, 3\] samples"):
        list(in_order((torch.zeros(2), torch.zeros(3)), 1))


def test_chunks_fit_into_memory() -> None:
    assert rows_at_once({"a": torch.zeros(1 << 20)}, 1000) == 64  # 4 MiB a row
    assert rows_at_once({"a": torch.zeros(1)}, 1000) == 1000
    assert rows_at_once({"a": torch.zeros(1, device="meta").expand(1 << 40)}, 1000) == 1


def test_language_models_take_fewer_long_texts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the activations that they keep; never none, and never more than asked for."""
    made = case("whole")
    model, batch = made.model, made.batch()
    longest = int(batch[2].max()) + 1
    whole = [len(index) for index, _ in model.chunks(batch, 3)]
    assert max(whole) == 3
    monkeypatch.setattr("crossfeed.estimate.language.ACTIVATIONS", 2 * model._activations(longest))
    some = [(len(index), int(part[0].shape[1])) for index, part in model.chunks(batch, 3)]
    assert sum(size for size, _ in some) == sum(whole)
    assert all(size * model._activations(length) <= 2 * model._activations(longest) for size, length in some)
    monkeypatch.setattr("crossfeed.estimate.language.ACTIVATIONS", 1)
    assert [len(index) for index, _ in model.chunks(batch, 3)] == [1] * sum(whole)
    assert model._activations(2 * longest) > 2 * model._activations(longest)


# --- samplers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["flow", "diffusion"])
def sampler(request: pytest.FixtureRequest) -> Any:
    """A model with a smooth sampler, and its start noise."""
    network: Any = flow() if request.param == "flow" else grey(diffusion(clip=False))
    model = differentiable(network)
    return model, model.noise(NUM, seeded(5)) * (1 if request.param == "flow" else 1e-3)


@pytest.mark.parametrize("evaluating", [False, True])
def test_sampler_tangents_are_differences_of_outputs(sampler: Any, evaluating: bool) -> None:
    model, noise = sampler
    exact, theta = noise.dtype == torch.float64, model.parameters()
    v, h = direction(theta), 1e-5 if exact else 1e-2  # float32 outputs are rounded to 3e-8
    outputs, tangents = sampler_tangent(model, theta, PROMPTS, noise, v, 4, evaluating)
    assert torch.allclose(outputs, model.rsample(theta, PROMPTS, noise, evaluating=evaluating), atol=1e-6)
    assert not outputs.requires_grad
    assert not tangents.requires_grad
    ends = [model.rsample(stepped(theta, v, s * h), PROMPTS, noise, evaluating=evaluating) for s in (1, -1)]
    assert relative(tangents, (ends[0] - ends[1]) / (2 * h)) < (1e-7 if exact else 5e-3)


@pytest.mark.parametrize("evaluating", [False, True])
def test_sampler_pull_is_the_transpose(sampler: Any, evaluating: bool) -> None:
    model, noise = sampler
    exact, theta = noise.dtype == torch.float64, model.parameters()
    v, c = direction(theta), torch.randn(noise.shape, generator=seeded(6)).to(noise)
    _, tangents = sampler_tangent(model, theta, PROMPTS, noise, v, 4, evaluating)
    back = sampler_pull(model, theta, PROMPTS, noise, c, 5, evaluating)
    assert back.shape == v.shape
    assert float(back @ v) == pytest.approx(float((c * tangents).sum()), rel=1e-10 if exact else 1e-3)


def test_clipping_samplers_have_matching_transposes() -> None:
    model = differentiable(diffusion())
    theta, noise = model.parameters(), model.noise(NUM, seeded(5))
    v, c = direction(theta), torch.randn(noise.shape, generator=seeded(6))
    outputs, tangents = sampler_tangent(model, theta, PROMPTS, noise, v, 4)
    cut = (outputs == 0) | (outputs == 1)
    assert 0 < float(cut.float().mean()) < 1
    assert not tangents[cut].any()
    back = sampler_pull(model, theta, PROMPTS, noise, c, 4)
    assert float(back @ v) == pytest.approx(float((c * tangents).sum()), rel=1e-3)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_mixed_derivatives(kind: str) -> None:
    """Against differences of gradients when outputs move, and each other's transpose."""
    made = case(kind)
    model, theta, batch, exact = made.model, made.model.parameters(), made.batch(), kind == "flow"
    y = batch[0] if exact else batch[0].float() / 255
    dy = torch.randn(y.shape, generator=seeded(6)).to(y)
    h = 1e-6 if exact else 1e-2
    ends = [
        weighted_gradient(model.losses, theta, model.replace_outputs(batch, y + s * h * dy), WEIGHTS, 4)
        for s in (1, -1)
    ]
    found = mixed_gradient(model, theta, batch, y, dy, WEIGHTS, 4)
    assert not found.requires_grad
    assert relative(found, (ends[0] - ends[1]) / (2 * h)) < (1e-6 if exact else 1e-2)
    v = direction(theta)
    pulled = mixed_pull(model, theta, batch, y, v, 4)
    assert pulled.shape == y.shape
    want = (WEIGHTS * (dy * pulled).flatten(1).sum(1)).sum()
    assert float(found @ v) == pytest.approx(float(want), rel=1e-10 if exact else 1e-3)
