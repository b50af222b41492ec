"""One update on n samples: the sampling covariance, its second-order bias, and exact paths of affine loops."""

import loops
import numpy as np
import pytest
import torch

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.rounds import State, sampled_round, streams
from crossfeed.dynamics.stable import solve
from crossfeed.errors import NotAvailableError
from crossfeed.influence.finite_samples import curvature_term, finite_sample_theory
from crossfeed.influence.moments import expand, second_along
from crossfeed.influence.paths import is_affine, moment_path
from ecosystems import random_ecosystem

CASES = [
    ("gaussian_mean", ("raw", "curated")),
    ("gaussian", ("raw",)),
    ("categorical", ("raw", "curated")),
    ("loglinear", ("raw", "curated")),
    ("linear_gaussian", ("raw", "curated")),
    ("mixed_vectors", ("raw",)),
    ("mixed_finite", ("raw", "curated")),
]


def _case(family, kinds, **more):
    eco = random_ecosystem(family, 2, 3, kinds=kinds, candidates=(1, 2, 3), stages=1, **more)
    return compile_ecosystem(eco)


def test_second_along_is_the_trace_with_the_hessian() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 3)))
    root = torch.from_numpy(rng.normal(size=(2, 3, 3)))
    cov = root @ root.transpose(-1, -2)
    got = second_along(lambda v: torch.stack([v.prod(-1), v.exp().sum(-1)], -1), x, cov)
    for g in range(2):
        for k, fn in enumerate((lambda v: v.prod(), lambda v: v.exp().sum())):
            hessian = torch.autograd.functional.hessian(fn, x[g])
            assert torch.allclose(got[g, k], (hessian * cov[g]).sum(), rtol=1e-12)


@pytest.mark.parametrize("counts", ["multinomial", "fixed"])
@pytest.mark.parametrize(("family", "kinds"), CASES)
def test_sampling_covariance_is_that_of_sampled_moments(family, kinds, counts) -> None:
    # 1,100 entries in all at 5 standard errors: a fresh seed fails about once in 1,500 runs
    program = _case(family, kinds)
    theta, n, size = program.start, 50, 3000
    found = expand(program, theta, [0, 1], None, counts)
    rngs = streams(7, 0, 0, len(program.source_groups) + 1)
    drawn = program.sampled_moments(theta.expand(size, -1), n, rngs, counts == "fixed")
    for models, x in zip(found.models, drawn, strict=True):
        for g in range(x.shape[1]):
            off = x[:, g] - x[:, g].mean(0)
            products = n * off[:, :, None] * off[:, None, :]
            error = products.std(0) / size**0.5
            gap = (products.mean(0) * size / (size - 1) - models.spread[g]).abs()
            assert bool((gap <= 5 * error + 1e-9).all()), (family, g, float((gap / (error + 1e-9)).max()))


@pytest.mark.parametrize("steps", [None, s.GradientSteps(count=3, size=0.3)], ids=["exact", "steps"])
@pytest.mark.parametrize(("family", "kinds"), CASES)
def test_bias_and_spread_are_those_of_the_update_itself(family, kinds, steps) -> None:
    """Triangulation: second differences of the real update along every direction of Σ and of the sampling errors."""
    program = _case(family, kinds)
    theta = program.start + 0.05
    models = [1]
    found = expand(program, theta, models, steps)
    part = program.block(models)
    root = torch.from_numpy(np.random.default_rng(1).normal(size=(program.num_params, 4)))
    sigma = root @ root.T

    def update(by, error):
        at = theta + by
        moments = [m + e for m, e in zip(part.moments(at), error, strict=True)]
        return part.retrain(at, moments) if steps is None else part.descend(at, moments, steps.count, steps.size)

    still = [torch.zeros_like(m.moments) for m in found.models]
    h = 2e-3
    bent, spread = torch.zeros_like(theta), torch.zeros_like(sigma)
    moves = [(v, still) for v in root.T]
    values, vectors = torch.linalg.eigh(found.models[0].spread[0])
    moves += [(0 * theta, [(v * x.clamp_min(0).sqrt())[None]]) for x, v in zip(values, vectors.T, strict=True)]
    middle = update(0 * theta, still)
    for by, error in moves:
        up, down = (update(sign * h * by, [sign * h * e for e in error]) for sign in (1, -1))
        bent += 0.5 * (up + down - 2 * middle) / h**2
        slope = (up - down) / (2 * h)
        spread += slope[:, None] * slope[None, :]
    assert torch.allclose(found.mean, middle, atol=1e-12)
    assert torch.allclose(found.spread(sigma), spread, rtol=1e-3, atol=1e-4 * float(spread.abs().max()))
    assert torch.allclose(found.bias(sigma), bent, rtol=1e-3, atol=1e-4 * float(bent.abs().max()) + 1e-6)


def test_paths_of_the_published_loop_are_its_explicit_recursion() -> None:
    d, n, lam, t = loops.published(), 4, 0.4, 0.9
    eco = loops.gaussian_mechanism(t, lam, n)
    program = compile_ecosystem(eco)
    assert is_affine(program)
    A, a, var = t * d["A"], d["a"], float(d["sigma"]) ** 2 / n * np.eye(24)
    phi, cov = np.zeros(24), np.zeros((24, 24))
    for mean, spread in moment_path(program, program.start, eco.update, eco.samples, 6):
        theta, theta_cov = phi + lam * a, cov + lam * (1 - lam) / n * np.outer(a, a) + var
        phi, cov, across = A @ theta, A @ theta_cov @ A.T + var, A @ theta_cov
        assert np.allclose(mean, np.concatenate([theta, phi]), atol=1e-12)
        assert np.allclose(spread, np.block([[theta_cov, across.T], [across, cov]]), atol=1e-12)


@pytest.mark.parametrize("counts", ["multinomial", "fixed"])
def test_paths_of_affine_loops_are_exact_at_three_samples(counts) -> None:
    # 28 numbers at 4.5 standard errors: a fresh seed fails about once in 5,000 runs
    eco, size = loops.means(3, counts, start=-2.0), 8_000
    program = compile_ecosystem(eco)
    assert is_affine(program)
    state = State(program.start.expand(size, -1).clone())
    for _ in range(3):
        state = sampled_round(program, state, eco.update, eco.samples, 5)
    *_, (mean, cov) = moment_path(program, program.start, eco.update, eco.samples, 3)
    off = state.theta - mean
    assert bool((off.mean(0).abs() < 4.5 * off.std(0) / size**0.5).all())
    products = off[:, :, None] * off[:, None, :]
    assert bool(((products.mean(0) - cov).abs() < 4.5 * products.std(0) / size**0.5).all())
    value = program.alignment(state.theta)
    exact = program.alignment(mean) + curvature_term(program, mean, cov)
    assert bool(((value.mean(0) - exact).abs() < 4.5 * value.std(0) / size**0.5).all())


@pytest.mark.parametrize("make", [loops.gaussian, loops.regression])
def test_paths_end_in_the_stationary_law(make) -> None:
    n = 10**7
    eco = make(s.Sequential(), "multinomial", n)
    program = compile_ecosystem(eco)
    theta = solve(program).require()
    theory = finite_sample_theory(program, theta, eco.update, eco.samples)
    *_, (mean, cov) = moment_path(program, theta, eco.update, eco.samples, 25)
    assert torch.allclose(n * cov, theory.sigma, rtol=1e-4, atol=1e-5)
    assert torch.allclose(n * (mean - theta), theory.delta, rtol=1e-3, atol=1e-4)


def test_old_samples_are_refused() -> None:
    eco = loops.means(10).model_copy(update={"samples": s.Samples(regime="accumulate")})
    program = compile_ecosystem(eco)
    with pytest.raises(NotAvailableError, match="'accumulate': old samples stay in use"):
        next(moment_path(program, program.start, eco.update, eco.samples, 1))
