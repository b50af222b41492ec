"""Samples' span as coordinates: exact inner products, its way back to the parameters, and the same estimates as in the parameters."""

from __future__ import annotations

import pytest
import torch
from tiny_estimates import Made, made, opened, trained_by
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.estimate.coordinates import Coordinates, coordinates
from crossfeed.estimate.estimator import mean_eigenvalue
from crossfeed.estimate.system import moments
from networks import tiny

D = 40


def drawn(num: int, seed: int) -> Tensor:
    return torch.randn(num, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scale_of(scaled: bool) -> Tensor | None:
    return drawn(1, 9)[0].abs() + 0.2 if scaled else None


def spanned(scale: Tensor | None) -> tuple[list[Tensor], Coordinates]:
    rows = [drawn(7, 1), drawn(5, 2)]
    return rows, coordinates(rows, scale, 0)


@pytest.mark.parametrize("scaled", [False, True])
def test_inner_products_with_the_span_are_exact(scaled: bool) -> None:
    """In the optimiser's units a gradient is g·s, and Σ_k weights_k g_k·s is in the span."""
    scale = scale_of(scaled)
    rows, basis = spanned(scale)
    assert basis.size == 12
    s = torch.ones(D, dtype=torch.float64) if scale is None else scale
    inside, outside = drawn(3, 4)[:, :12] @ torch.cat(rows), drawn(4, 5)
    for a, b in ((inside, outside), (inside, inside), (torch.cat(rows), outside)):
        found = basis.of_gradients(a) @ basis.of_gradients(b).T
        torch.testing.assert_close(found, (a * s) @ (b * s).T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("limit", [0, D])
def test_to_parameters_is_the_way_back(limit: int, scaled: bool) -> None:
    """Parameters are in units of s: a step along a gradient g·s moves θ by s·(g·s), and to and fro is the identity."""
    scale = scale_of(scaled)
    rows = [drawn(7, 1), drawn(5, 2)]
    basis = coordinates(rows, scale, limit)
    s = torch.ones(D, dtype=torch.float64) if scale is None else scale
    x = basis.of_gradients(rows[0])[2]
    moved = basis.to_parameters(x).double()
    torch.testing.assert_close(moved, s.square() * rows[0][2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(basis.of_parameters(moved), x, rtol=1e-5, atol=1e-5)
    other = drawn(1, 6)
    change = float((basis.of_gradients(other)[0] * x).sum())
    assert change == pytest.approx(float(other[0] @ moved), rel=1e-4)  # ⟨∇J, Δθ⟩ is the same in both


def test_the_projection_of_parameters() -> None:
    """What θ has outside the span meets nothing; inside, ⟨θ/s, g·s⟩ = ⟨θ, g⟩."""
    scale = scale_of(True)
    rows, basis = spanned(scale)
    theta = drawn(1, 7)[0]
    found = basis.of_gradients(torch.cat(rows)) @ basis.of_parameters(theta)
    torch.testing.assert_close(found, torch.cat(rows) @ theta, rtol=1e-10, atol=1e-10)


def test_when_parameters_are_the_coordinates() -> None:
    rows = [drawn(7, 1)]
    assert coordinates(rows, None, D).basis is None
    assert coordinates([drawn(50, 1)], None, 0).basis is None  # the span has no fewer dimensions
    assert coordinates(rows, None, D - 1).size == 7
    assert coordinates([rows[0], rows[0]], None, 0).size == 7  # shared rows count once
    twice = coordinates([rows[0], rows[0][:3].clone()], None, 0)
    assert twice.size == 7  # and repeated ones span nothing new


# --- the same estimate ----------------------------------------------------------------------------------------------

WIDE = Flow(width=12, bins=8)
ADAM = Training(steps=10, batch_size=50, learning_rate=1e-3, weight_decay=0.1)
PLAIN = Training(steps=10, batch_size=50, learning_rate=0.01, optimizer="sgd", momentum=0.5, gradient_clip=None)


def both(training: Training) -> tuple[Made, Made]:
    """Models with more parameters than samples, by their parameters and by their samples' span."""
    eco = trained_by(tiny.flows(samples=100), training)
    models = {name: model.model_copy(update={"family": WIDE}) for name, model in eco.models.items()}
    eco = eco.model_copy(update={"models": models})
    point = opened(eco)
    return tuple(made(eco, 48, 40, limit=limit, point=point) for limit in (100_000, 0))  # type: ignore[return-value]


@pytest.mark.parametrize("rank", [1e-6, 1e-12])
@pytest.mark.parametrize("training", [ADAM, PLAIN], ids=["adamw", "sgd"])
def test_estimates_are_the_same_in_the_span(training: Training, rank: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the empirical Fisher matrix, whose rows span.

    The basis leaves out what is below 1e-6 of the largest eigenvalue, gradients of 1e-3: so much may differ; 1e-5 where it keeps more.

    The Gauss–Newton matrix has rows outside of the span, which it loses: within a tenth of a standard error here.
    """
    monkeypatch.setattr("crossfeed.estimate.coordinates._RANK", rank)
    off = 4 * rank**0.5 if rank > 1e-9 else 1e-5
    whole, span = both(training)
    assert all(model.basis.basis is None for model in whole.bank.models)
    assert all(model.basis.basis is not None and model.basis.size < model.num_params for model in span.bank.models)
    left, right = ridges(whole), ridges(span)
    a, b = whole.estimate(ridge=left, fisher=1.0), span.estimate(ridge=right, fisher=1.0)
    torch.testing.assert_close(torch.tensor(a.horizon.ridge), torch.tensor(b.horizon.ridge), rtol=1e-9, atol=0)
    small = off * float(a.errors.min())
    torch.testing.assert_close(a.answer.matrix, b.answer.matrix, rtol=off, atol=small)
    torch.testing.assert_close(a.answer.isolated, b.answer.isolated, rtol=off, atol=small)
    torch.testing.assert_close(a.errors, b.errors, rtol=off, atol=0)
    for x, y, one, two in zip(a.answer.response, b.answer.response, whole.bank.models, span.bank.models, strict=True):
        shift, found = one.basis.to_parameters(x[:, 0]), two.basis.to_parameters(y[:, 0])
        assert float((shift - found).norm() / shift.norm()) < 10 * off
    a, b = whole.estimate(ridge=left, fisher=0.0), span.estimate(ridge=right, fisher=0.0)
    assert bool(((a.answer.matrix - b.answer.matrix).abs() < 0.1 * a.errors).all())


def ridges(made: Made) -> list[float]:
    """Shares of the mean eigenvalue that are the same ridge in all coordinates."""
    found = [moments(rows) for rows in made.bank.sources]
    return [1e-3 / mean_eigenvalue(made.bank, found, i) for i in range(len(made.bank.models))]
