"""What the protocol promises, for every family: one sweep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stacks import Stack, stacks
from torch import Tensor

from crossfeed.families.base import EXPECTATION, LIKELIHOOD, RSAMPLE, Family, hessian_of, jacobian
from crossfeed.families.finite import Finite
from crossfeed.families.linear import LinearGaussian

STACKS = stacks()
every = pytest.mark.parametrize("stack", STACKS, ids=[s.name for s in STACKS])


def explicit_loss(stack: Stack, theta: Tensor) -> Tensor:
    """(2,) mean loss over the data."""
    loss: Tensor = stack.family.loss(theta, stack.data).mean(-1)
    return loss


@every
def test_has_the_protocol_and_true_sizes(stack: Stack) -> None:
    f = stack.family
    assert isinstance(f, Family)
    assert f.capabilities <= {LIKELIHOOD, RSAMPLE, EXPECTATION}
    assert stack.theta.shape == (2, f.num_params)
    assert f.statistic(stack.data).shape == (2, stack.data.shape[1], f.num_moments)
    assert f.gradient(stack.theta, stack.moments).shape == stack.theta.shape
    assert f.log_prob(stack.theta, stack.data).shape == stack.data.shape[:2]
    assert f.entropy(stack.theta).shape == (2,)


@every
def test_gradient_from_moments_is_the_gradient_of_the_mean_loss(stack: Stack) -> None:
    slope = torch.func.grad(lambda t: explicit_loss(stack, t).sum())(stack.theta)
    torch.testing.assert_close(stack.family.gradient(stack.theta, stack.moments), slope, rtol=1e-11, atol=1e-12)


@every
def test_gradient_is_affine_in_the_moments(stack: Stack) -> None:
    f, m = stack.family, stack.moments
    other = f.statistic(stack.data[:, :50]).mean(-2)
    mixed = f.gradient(stack.theta, 0.3 * m + 0.7 * other)
    apart = 0.3 * f.gradient(stack.theta, m) + 0.7 * f.gradient(stack.theta, other)
    torch.testing.assert_close(mixed, apart, rtol=1e-11, atol=1e-12)


@every
def test_hessian_is_that_of_the_mean_loss(stack: Stack) -> None:
    hessian = hessian_of(stack.family, stack.theta, stack.moments)
    for member in range(2):

        def loss(t: Tensor, member: int = member) -> Tensor:
            return explicit_loss(stack, torch.stack([t, t]))[member]

        want = torch.func.hessian(loss)(stack.theta[member])
        torch.testing.assert_close(hessian[member], want, rtol=1e-9, atol=1e-10)


@every
def test_jacobian_by_forward_mode_is_the_hessian(stack: Stack) -> None:
    by_columns = jacobian(lambda t: stack.family.gradient(t, stack.moments), stack.theta)
    torch.testing.assert_close(by_columns, hessian_of(stack.family, stack.theta, stack.moments), rtol=1e-10, atol=1e-11)


@every
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_fit_is_the_minimum_from_anywhere(stack: Stack, ridge: float) -> None:
    f, m = stack.family, stack.moments
    mu = torch.full((2,), ridge, dtype=torch.float64)
    rng = np.random.default_rng(1)
    found = []
    for size in (0.0, 1.0, 4.0):
        start = torch.from_numpy(size * rng.normal(size=tuple(stack.theta.shape)))
        theta = f.fit(m, mu, start)
        rest = f.gradient(theta, m) + ridge * theta
        assert float(rest.abs().max()) < 1e-11
        found.append(theta)
    best = explicit_loss(stack, found[0]) + 0.5 * ridge * found[0].square().sum(-1)
    for theta in found[1:]:
        torch.testing.assert_close(theta, found[0], rtol=1e-7, atol=1e-8)
    for _ in range(20):
        near = found[0] + torch.from_numpy(0.1 * rng.normal(size=tuple(stack.theta.shape)))
        assert bool((explicit_loss(stack, near) + 0.5 * ridge * near.square().sum(-1) > best).all())


@every
def test_fit_of_members_with_and_without_ridge_is_as_one_by_one(stack: Stack) -> None:
    f, m, start = stack.family, stack.moments, torch.zeros_like(stack.theta)
    both = f.fit(m, torch.tensor([0.0, 0.2], dtype=torch.float64), start)
    for member, ridge in enumerate((0.0, 0.2)):
        alone = f.take(torch.tensor([member])).fit(
            m[[member]], torch.tensor([ridge], dtype=torch.float64), start[[member]]
        )
        torch.testing.assert_close(both[[member]], alone, rtol=1e-8, atol=1e-9)


@every
def test_batches_are_as_one_by_one(stack: Stack) -> None:
    f = stack.family
    rng = np.random.default_rng(2)
    theta = stack.theta + torch.from_numpy(0.1 * rng.normal(size=(4, 3, *stack.theta.shape)))
    moments = stack.moments.expand(4, 3, -1, -1)
    gradient = f.gradient(theta, moments)
    hessian = hessian_of(f, theta, moments)
    ridge = torch.full((4, 3, 2), 0.1, dtype=torch.float64)
    fitted = f.fit(moments, ridge, theta)
    for a, b in ((0, 0), (3, 2), (1, 1)):
        torch.testing.assert_close(gradient[a, b], f.gradient(theta[a, b], stack.moments), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(hessian[a, b], hessian_of(f, theta[a, b], stack.moments), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(fitted[a, b], f.fit(stack.moments, ridge[0, 0], theta[a, b]), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(f.entropy(theta)[a, b], f.entropy(theta[a, b]), rtol=1e-13, atol=0)


@every
def test_take_selects_and_repeats_members(stack: Stack) -> None:
    f, at = stack.family, torch.tensor([1, 0, 1])
    torch.testing.assert_close(
        f.take(at).log_prob(stack.theta[at], stack.data[at]), f.log_prob(stack.theta, stack.data)[at], rtol=0, atol=0
    )


@every
def test_log_prob_is_normalised(stack: Stack) -> None:
    """Finite: the sum is 1. Continuous: E_g[q/g] = 1 under a wider Gaussian g, 400,000 draws, 5 standard errors."""
    f, theta = stack.family, stack.theta
    if isinstance(f, Finite):
        z = torch.arange(6).expand(2, 6)
        torch.testing.assert_close(f.log_prob(theta, z).exp().sum(-1), torch.ones(2).double(), rtol=0, atol=1e-14)
        return
    rng = np.random.default_rng(3)
    if isinstance(f, LinearGaussian):
        x = torch.from_numpy(rng.normal(size=3)).expand(2, 1, 3)
        mean, cov = f.answer(theta, x)[:, 0], f.noise
    else:
        x, (mean, cov) = None, f.mean_cov(theta)
    num, dim = 400_000, mean.shape[-1]
    white = torch.from_numpy(rng.normal(size=(2, num, dim)))
    y = mean[:, None] + 1.5 * torch.einsum("gde,gne->gnd", torch.linalg.cholesky(cov), white)
    log_g = (
        -0.5 * white.square().sum(-1)
        - dim * math.log(1.5)
        - 0.5 * torch.logdet(cov)[:, None]
        - 0.5 * dim * math.log(2 * math.pi)
    )
    z = y if x is None else torch.cat([x.expand(2, num, 3), y], -1)
    ratio = (f.log_prob(theta, z) - log_g).exp()
    assert bool(((ratio.mean(-1) - 1).abs() < 5 * ratio.std(-1) / math.sqrt(num)).all())


@every
def test_sample_has_the_moments_of_log_prob(stack: Stack) -> None:
    """Mean statistic of 200,000 samples against its exact value, 5 standard errors."""
    f, theta, num = stack.family, stack.theta, 200_000
    z = f.sample(theta, num, torch.Generator().manual_seed(0))
    statistic = f.statistic(z)
    if isinstance(f, Finite):
        want = f.mean_statistic(f.log_probs(theta).exp())
    elif isinstance(f, LinearGaussian):  # standard normal inputs
        want = torch.cat([theta, torch.eye(3, dtype=torch.float64).flatten().expand(2, -1)], -1)
    else:
        mean, cov = f.mean_cov(theta)
        second = cov + mean[:, :, None] * mean[:, None, :]
        want = mean if f.num_moments == f.dim else torch.cat([mean, second.flatten(-2)], -1)
    off = (statistic.mean(-2) - want).abs()
    assert bool((off <= 5 * statistic.std(-2) / math.sqrt(num) + 1e-12).all())
    # score identity E[∇ log q] = 0 ties the sampler to the density itself
    score = torch.func.grad(lambda t: f.log_prob(t, z).mean(-1).sum())(theta)
    assert float(score.abs().max()) < 0.05


@every
def test_entropy_is_minus_the_mean_log_density(stack: Stack) -> None:
    f, theta, num = stack.family, stack.theta, 200_000
    log_q = f.log_prob(theta, f.sample(theta, num, torch.Generator().manual_seed(1)))
    assert bool(((f.entropy(theta) + log_q.mean(-1)).abs() <= 5 * log_q.std(-1) / math.sqrt(num)).all())


@every
def test_sampling_is_seeded_and_the_seed_matters(stack: Stack) -> None:
    a, b, c = (stack.family.sample(stack.theta, 50, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@every
def test_declared_samplers_are_differentiable_and_others_are_not(stack: Stack) -> None:
    theta = stack.theta.clone().requires_grad_(True)
    z = stack.family.sample(theta, 2000, torch.Generator().manual_seed(2))
    if RSAMPLE not in stack.family.capabilities:
        assert not z.is_floating_point()
        return
    # d/dθ E[|z|²] by the pathwise derivative against central differences of the same sample
    slope = torch.autograd.grad(z.square().sum(-1).mean(), theta)[0]
    for i in range(theta.shape[1]):
        step = torch.zeros_like(stack.theta)
        step[0, i] = 1e-6
        up, down = (
            stack.family.sample(stack.theta + sign * step, 2000, torch.Generator().manual_seed(2))
            .square()
            .sum(-1)
            .mean()
            for sign in (1, -1)
        )
        assert float(slope[0, i]) == pytest.approx(float(up - down) / 2e-6, rel=1e-6, abs=1e-8)


@every
def test_the_models_own_moments_fit_it(stack: Stack) -> None:
    """A model trained on its own outputs stays where it is: the first fixed point of any self-consuming loop."""
    f, theta = stack.family, stack.theta
    if isinstance(f, Finite):
        own = f.mean_statistic(f.log_probs(theta).exp())
        theta = theta if f.idle is None else theta * (1 - f.idle)
    elif isinstance(f, LinearGaussian):
        second = 2.0 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        own = torch.cat([(f.weights(theta) @ second).flatten(-2), second.flatten(-2)], -1)
    else:
        mean, cov = f.mean_cov(theta)
        flat = (cov + mean[:, :, None] * mean[:, None, :]).flatten(-2)
        own = mean if f.num_moments == f.dim else torch.cat([mean, flat], -1)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(f.fit(own, zero, torch.zeros_like(theta)), theta, rtol=1e-9, atol=1e-9)
