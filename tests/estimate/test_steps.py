"""What a round of an optimiser makes of a constant force: against torch's own optimisers, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.estimate.steps import ADAM_EPS, Spectrum, Steps, adam_scale, clip_factor
from crossfeed.networks.training import learning_rate

CURVATURE = torch.tensor([0.0, 0.3, 2.0, 7.0], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sgd(training: Training, curvature: Tensor, number: int, force: Tensor) -> Tensor:
    """Where torch's SGD takes x from 0 on ½ Σ λ x² − force·x, weight decay by torch's own."""
    x = torch.zeros_like(curvature).requires_grad_()
    optimizer = torch.optim.SGD(
        [x], training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
    for step in range(training.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(training, number, step)
        optimizer.zero_grad()
        (0.5 * curvature * x.square() - force * x).sum().backward()
        optimizer.step()
    return x.detach()


SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "one step": {"steps": 1},
    "momentum": {"momentum": 0.9, "learning_rate": 0.01},
    "linear": {"schedule": "linear"},
    "cosine": {"schedule": "cosine", "momentum": 0.5},
    "warm-up": {"warmup": 5},
    "warm-up longer than the round": {"warmup": 20},
    "warm-up, then linear": {"warmup": 4, "schedule": "linear", "momentum": 0.8, "learning_rate": 0.02},
    "weight decay": {"weight_decay": 0.4},
    "all of it": {
        "warmup": 3,
        "schedule": "cosine",
        "momentum": 0.7,
        "weight_decay": 0.2,
        "decay_from": 5,
        "decay": 0.3,
        "learning_rate": 0.03,
    },
}


@pytest.mark.parametrize("case", SGD)
def test_sgd_is_torchs(case: str) -> None:
    fields = {"steps": 12, "learning_rate": 0.1, "optimizer": "sgd", "gradient_clip": None}
    training = Training(**(fields | SGD[case]))
    steps = Steps(training, first_round=4)
    force = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for round in range(4):
        found = steps.respond(CURVATURE + steps.decay, round) * force
        torch.testing.assert_close(found, sgd(training, CURVATURE, 4 + round, force), rtol=1e-12, atol=1e-14)


def test_decay_over_rounds_of_the_loop() -> None:
    fields: dict[str, Any] = {"steps": 1, "optimizer": "sgd", "learning_rate": 0.1}
    decaying = Steps(Training(**fields, decay_from=6, decay=0.5), first_round=5)
    flat = torch.zeros(1, dtype=torch.float64)
    assert decaying.changes
    assert [float(decaying.respond(flat, round)) for round in range(4)] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    steady = Steps(Training(**fields), first_round=5)
    assert not steady.changes
    assert [float(steady.respond(flat, round)) for round in (0, 9)] == pytest.approx([0.1, 0.1])


def test_clipping_shortens_every_step() -> None:
    training = Training(steps=5, optimizer="sgd", learning_rate=0.1, momentum=0.5)
    half = Training(steps=5, optimizer="sgd", learning_rate=0.04, momentum=0.5)
    short = Steps(training, shorten=0.4).respond(CURVATURE, 0)
    torch.testing.assert_close(short, Steps(half).respond(CURVATURE, 0))


def test_exact_retraining() -> None:
    values = CURVATURE[1:]
    assert torch.equal(Steps(None).respond(values, 3), 1 / values)
    assert (Steps(None, ridge=0.2).decay, Steps(None).largest_rate, Steps(None).changes) == (0.2, 0.0, False)


def test_many_steps_become_exact_retraining() -> None:
    values = CURVATURE[1:]
    for optimizer, momentum in (("sgd", 0.0), ("sgd", 0.8), ("adamw", 0.0)):
        many = Training(steps=3000, optimizer=optimizer, learning_rate=0.03, momentum=momentum, gradient_clip=None)
        torch.testing.assert_close(Steps(many).respond(values, 0), 1 / values, rtol=1e-9, atol=0)


# --- AdamW ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_adamw_at_fixed_second_moment(schedule: str, decay: float) -> None:
    """x ← x − η (m̂/√v + decay · x) in the parameters is the plain recursion in units of v^¼, coupled curvatures included.

    Decoupled decay is not smoothed by momentum in torch, but is in the prediction: tested at β₁ = 0, where they are the same, and where
    v = 1 in the mean, as decay is added in the optimiser's units.
    """
    beta = 0.9 if decay == 0 else 0.0
    training = Training(steps=25, learning_rate=0.02, betas=(beta, 0.999), schedule=schedule, weight_decay=decay)
    random = seeded(1)
    half = torch.randn(4, 4, generator=random, dtype=torch.float64)
    H, force = half @ half.T, torch.randn(4, generator=random, dtype=torch.float64)
    v = torch.rand(4, generator=random, dtype=torch.float64) + 0.1
    x, m = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for step in range(training.steps):
        m = beta * m + (1 - beta) * (H @ x - force)
        rate = learning_rate(training, 1, step)
        x = x - rate * (m / (1 - beta ** (step + 1)) / (v.sqrt() + ADAM_EPS) + decay * x)
    scale = adam_scale(torch.zeros(4, dtype=torch.float64), v, 1)
    steps = Steps(training)
    spectrum = Spectrum(scale[:, None] * H * scale + steps.decay * torch.eye(4, dtype=torch.float64))
    found = scale * spectrum.apply(steps.respond(spectrum.values, 0), (scale * force)[:, None])[:, 0]
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-12)


def test_adam_scale_by_hand() -> None:
    """Mean 0.6 and second moment 1.36 leave a variance of 1; of four samples a step v = 0.36 + 1/4."""
    found = adam_scale(torch.tensor([0.6, 0.0]), torch.tensor([1.36, 0.0]), 4)
    assert float(found[0]) == pytest.approx(0.61**-0.25, rel=1e-6)
    assert float(found[1]) == pytest.approx(ADAM_EPS**-0.5)  # a parameter without gradients: Adam's ε alone


def test_adamw_on_a_noisy_quadratic() -> None:
    """Torch's AdamW with gradient noise 4 to 30 times the mean gradient; the mean of 4,000 runs within 4 % of the prediction.

    The noise of these means is 0.6 % at most; the rest is v's own noise and its start: measured 1 to 2 %.
    """
    runs, samples = 4000, 16
    training = Training(steps=60, learning_rate=0.01, betas=(0.9, 0.999), batch_size=samples)
    curvature, force = torch.tensor([0.2, 1.0, 4.0]), torch.tensor([0.3, -0.2, 0.1])
    spread = torch.tensor([5.0, 12.0, 12.0])  # of single samples: 1.25 to 3 a step
    x = torch.zeros(runs, 3).requires_grad_()
    optimizer = torch.optim.AdamW([x], training.learning_rate, betas=training.betas, weight_decay=0.0)
    random = seeded(2)
    for _ in range(training.steps):
        noise = spread / samples**0.5 * torch.randn(runs, 3, generator=random)
        x.grad = (curvature * x - force).detach() + noise
        optimizer.step()
    scale = adam_scale(-force, force.square() + spread.square(), samples)
    found = scale.square() * force * Steps(training).respond(scale.square() * curvature, 0)
    gap = (x.detach().mean(0) / found - 1).abs()
    assert float(gap.max()) < 0.04, gap


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "size"), [(0.3, 1.0), (1.0, 0.2), (3.0, 2.0), (2.0, 5.0), (50.0, 1.0)])
def test_clip_factor_is_the_mean_of_clipped_steps(limit: float, size: float) -> None:
    """Gradients of 40 parameters, batches of 8: the shortened mean step along the mean gradient, within 4 %.

    The formula takes ‖g‖ for its root mean square, which is right where many parameters share the noise.
    """
    samples, width, num = 8, 40, 20_000
    random = seeded(3)
    mean = torch.zeros(width, dtype=torch.float64)
    mean[0] = size
    spread = 1.0
    g = mean + spread / samples**0.5 * torch.randn(num, width, generator=random, dtype=torch.float64)
    shorter = (limit / g.norm(dim=1)).clamp_max(1)
    found = clip_factor(limit, size**2, size**2 + width * spread**2, samples)
    assert found == pytest.approx(float(shorter.mean()), rel=0.04)
    assert found == pytest.approx(float((shorter[:, None] * g).mean(0)[0]) / size, rel=0.06)


def test_no_limit_does_not_clip() -> None:
    assert clip_factor(None, 1e9, 1e12, 1) == 1.0
    assert clip_factor(2.0, 1.0, 1.0, 4) == 1.0
    assert clip_factor(2.0, 16.0, 16.0, 4) == 0.5


# --- the edge of stability ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_directions_beyond_the_edge_count_as_trained_to_the_end(momentum: float) -> None:
    fields: dict[str, Any] = {"steps": 400, "optimizer": "sgd", "learning_rate": 0.1, "gradient_clip": None}
    steps = Steps(Training(**fields, momentum=momentum))
    edge = 2 * (1 + momentum) / 0.1  # of gradient descent with momentum (Polyak 1964)
    values = edge * torch.tensor([0.5, 0.99, 1.05, 1.5, 40.0], dtype=torch.float64)
    found = steps.respond(values, 0)
    assert steps.beyond(values, 0).tolist() == [False, False, True, True, True]
    assert torch.equal(found[2:], 1 / values[2:])
    assert bool(torch.isfinite(found).all())
    assert float((1 - values * found)[:2].abs().max()) < 1


def test_steps_that_overflow_count_as_trained_to_the_end() -> None:
    """1,000 steps at ηλ = 100 go beyond the largest double, and on to NaN with momentum."""
    for momentum in (0.0, 0.9):
        steps = Steps(Training(steps=1000, optimizer="sgd", learning_rate=1.0, momentum=momentum))
        values = torch.tensor([0.5, 100.0], dtype=torch.float64)
        assert steps.beyond(values, 0).tolist() == [False, True]
        assert float(steps.respond(values, 0)[1]) == 0.01


def test_rounding_below_zero_is_no_edge() -> None:
    """Curvatures that are negative by rounding do not become huge answers."""
    steps = Steps(Training(steps=10, optimizer="sgd", learning_rate=0.1))
    found = steps.respond(torch.tensor([-1e-10, 0.0], dtype=torch.float64), 0)
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.float64))
    assert not bool(Steps(None).beyond(found, 0).any())
