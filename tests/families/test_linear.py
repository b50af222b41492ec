"""Answers to inputs: domains, picks given the input, sampled moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotAvailableError

W = np.array([[0.6, -0.2, 0.3], [0.1, 0.5, -0.4]])
POINTS = np.array([[1.0, 0.0, 1.0], [0.5, -1.0, 1.0], [-1.0, 0.4, 1.0], [0.0, 2.0, 1.0]])
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
NOISE = np.array([[0.5, 0.1], [0.1, 0.3]])
DRAWS = 300_000


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def program(
    source: s.Raw | s.Curated, rewards: dict[str, s.Reward] | None = None, domain: s.Domain | None = None
) -> Program:
    return compile_ecosystem(
        s.Ecosystem(
            space=s.Regression(inputs=3, outputs=2),
            domains={"x": domain or s.PointsDomain(points=POINTS, weights=WEIGHTS)},
            data={"web": s.TeacherData(matrix=W, noise=0.2, domain="x")},
            rewards=rewards or {"people": s.LinearReward(vector=[0.8, -0.5])},
            models={
                "p": s.Model(
                    family=s.LinearGaussian(noise=NOISE),
                    reward="people",
                    domain="x",
                    sources=[s.Real(data="web", weight=0.5), source],
                )
            },
        )
    )


CROSS = np.zeros((5, 5))
CROSS[3:, :3] = [[0.5, -0.3, 0.2], [0.0, 0.7, -0.4]]
CROSS = CROSS + CROSS.T
BENT = CROSS - np.diag([0.0, 0.0, 0.0, 0.9, 0.4])
REWARDS: dict[str, s.Reward] = {
    "people": s.LinearReward(vector=[0.8, -0.5]),
    "both": s.LinearReward(vector=[3.0, -2.0, 1.0, 0.8, -0.5]),
    "cross": s.QuadraticReward(matrix=CROSS, vector=[0.0] * 5),
    "bent": s.QuadraticReward(matrix=BENT, vector=[0.0, 0.0, 0.0, 0.3, 0.0]),
}
SCORES = {
    "people": lambda x, y: y @ [0.8, -0.5],
    "both": lambda x, y: y @ [0.8, -0.5] + x @ [3.0, -2.0, 1.0],
    "cross": lambda x, y: np.einsum("...o,oi,...i->...", y, CROSS[3:, :3], x),
    "bent": lambda x, y: (
        np.einsum("...o,oi,...i->...", y, CROSS[3:, :3], x)
        - 0.45 * y[..., 0] ** 2
        - 0.2 * y[..., 1] ** 2
        + 0.3 * y[..., 0]
    ),
}


def simulated(x: np.ndarray, stages: list[tuple[str, int, float]], temperature: float, seed: int) -> np.ndarray:
    """(num, outputs) picks given inputs x (num, inputs), one by one; stages of (reward, K, τ), τ = 0 the best."""
    rng = np.random.default_rng(seed)
    repeat = math.prod(k for _, k, _ in stages)
    x = np.repeat(x[:, None], repeat, 1)
    y = x @ W.T + rng.standard_normal((*x.shape[:2], 2)) @ np.linalg.cholesky(temperature * NOISE).T
    for name, k, tau in stages:
        y = y.reshape(len(y), -1, k, 2)
        score = SCORES[name](x[:, :1, None], y)
        score = score / tau + rng.gumbel(size=score.shape) if tau > 0 else score
        y = np.take_along_axis(y, score.argmax(-1)[..., None, None], 2)[:, :, 0]
    return np.asarray(y[:, 0])


@pytest.mark.parametrize(
    ("source", "stages"),
    [
        (s.Raw(producer="p", weight=0.5), []),
        (s.Curated(producer="p", weight=0.5, candidates=3, temperature=0.5), [("people", 3, 0.5)]),
        (s.Curated(producer="p", weight=0.5, candidates=3, curator="both"), [("both", 3, 1.0)]),
        (s.Curated(producer="p", weight=0.5, candidates=4, temperature=0), [("people", 4, 0.0)]),
        (s.Curated(producer="p", weight=0.5, candidates=3, curator="cross"), [("cross", 3, 1.0)]),
        (s.Curated(producer="p", weight=0.5, candidates=2, curator="bent"), [("bent", 2, 1.0)]),
        (
            s.Curated(
                producer="p", weight=0.5, candidates=2, curator="cross", then=s.Pick(candidates=3, curator="people")
            ),
            [("cross", 2, 1.0), ("people", 3, 1.0)],
        ),
    ],
    ids=["raw", "linear", "reward on x and y", "best", "cross", "bent", "two stages"],
)
def test_moments_of_picks_given_the_input(source: s.Raw | s.Curated, stages: list[tuple[str, int, float]]) -> None:
    """E[yxᵀ] against one-by-one simulation, 5 standard errors."""
    compiled = program(source, REWARDS)
    group = next(g for g in compiled.source_groups if g.theta_index is not None)
    theta = real(W.reshape(1, -1))
    moments = group.kernel.moments(theta, compiled.settings)[0].numpy()
    rng = np.random.default_rng(7)
    x = POINTS[rng.choice(4, size=DRAWS, p=WEIGHTS)]
    y = simulated(x, stages, 1.0, seed=8)
    products = y[:, :, None] * x[:, None, :]
    band = 5 * products.std(0) / math.sqrt(DRAWS) + 1e-12
    assert (np.abs(products.mean(0) - moments[:6].reshape(2, 3)) <= band).all()
    np.testing.assert_allclose(moments[6:].reshape(3, 3), np.einsum("m,mi,mj->ij", WEIGHTS, POINTS, POINTS), atol=1e-14)


def test_sampled_picks_have_these_moments_and_covariance() -> None:
    source = s.Curated(producer="p", weight=0.5, candidates=3, temperature=0.5, noise=0.2, sampling_temperature=1.4)
    compiled = program(source)
    kernel = next(g for g in compiled.source_groups if g.theta_index is not None).kernel
    theta, counts = real(W.reshape(1, -1)), torch.full((1,), float(DRAWS)).double()
    drawn = kernel.consumer.statistic(kernel.sample(theta, compiled.settings, DRAWS, np.random.default_rng(9)))[
        0
    ].numpy()
    want = kernel.moments(theta, compiled.settings)[0].numpy()
    cov = kernel.moments_cov(theta, compiled.settings)[0].numpy()
    assert (np.abs(drawn.mean(0) - want) <= 5 * np.sqrt(np.diag(cov) / DRAWS) + 1e-12).all()
    off = drawn - want
    products = off[:, :, None] * off[:, None, :]
    assert (np.abs(products.mean(0) - cov) <= 5 * products.std(0) / math.sqrt(DRAWS) + 1e-10).all()
    mean = kernel.sample_moments(theta, compiled.settings, counts, np.random.default_rng(9))[0].numpy()
    np.testing.assert_allclose(mean, drawn.mean(0), atol=1e-12)


def test_real_pairs_and_teachers_are_sampled_with_their_noise() -> None:
    compiled = program(s.Raw(producer="p", weight=0.5))
    kernel = next(g for g in compiled.source_groups if g.theta_index is None).kernel
    counts = torch.full((4000, 1), 25.0).double()
    drawn = kernel.sample_moments(counts, np.random.default_rng(10))[:, 0].numpy()
    want, cov = kernel.moments()[0].numpy(), kernel.moments_cov()[0].numpy() / 25
    assert (np.abs(drawn.mean(0) - want) <= 5 * np.sqrt(np.diag(cov) / 4000) + 1e-12).all()
    np.testing.assert_allclose(drawn.var(0), np.diag(cov), rtol=0.15, atol=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_gaussian_domains_have_their_moments(dim: int) -> None:
    from crossfeed.families.spaces import inputs_of

    rng = np.random.default_rng(dim)
    root = np.tril(rng.normal(size=(dim, dim))) + np.eye(dim)
    mean, cov = rng.normal(size=dim), root @ root.T
    inputs = inputs_of(s.GaussianDomain(mean=mean, cov=cov), dim)
    x, w = inputs.nodes[0].numpy(), inputs.weights[0].numpy()
    np.testing.assert_allclose(w @ x, mean, atol=1e-12)
    np.testing.assert_allclose(np.einsum("n,ni,nj->ij", w, x - mean, x - mean), cov, atol=1e-11)
    drawn = inputs.draw((), 200_000, np.random.default_rng(0))[0].numpy()
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.02 * np.abs(cov).max())


def test_a_linear_pick_moves_every_answer_alike() -> None:
    """A reward linear in y shifts answers by the same vector at every input: one quadrature serves the whole domain."""
    compiled = program(s.Curated(producer="p", weight=0.5, candidates=3, temperature=0.5))
    kernel = next(g for g in compiled.source_groups if g.theta_index is not None).kernel
    mean, _ = kernel.answer_mean_cov(real(W.reshape(1, -1)), compiled.settings, kernel.inputs.nodes)
    shift = mean[0].numpy() - POINTS @ W.T
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-13)


def test_different_numbers_of_candidates_are_not_drawn_in_one_batch() -> None:
    compiled = program(s.Curated(producer="p", weight=0.5, candidates=3))
    settings = compiled.settings.repeat(2, 1)
    settings[1, compiled.slots["p.sources.curated_p.candidates"]] = 5.0
    batch = compiled.with_settings(settings)
    with pytest.raises(NotAvailableError, match="different K in one batch: run them one by one"):
        batch.sampled_moments(batch.start.expand(2, -1), 10, [np.random.default_rng(i) for i in range(5)])


def test_inputs_that_do_not_span_their_space_are_refused_with_a_remedy() -> None:
    eco = s.Ecosystem(
        space=s.Regression(inputs=2, outputs=1),
        domains={"x": s.PointsDomain(points=[[1.0, 2.0], [2.0, 4.0]])},
        data={"web": s.TeacherData(matrix=[[1.0, 1.0]], domain="x")},
        rewards={"r": s.LinearReward(vector=[1.0])},
        models={
            "p": s.Model(family=s.LinearGaussian(), reward="r", domain="x", sources=[s.Real(data="web", weight=1.0)])
        },
    )
    compiled = compile_ecosystem(eco)
    with pytest.raises(NotAvailableError, match=r"do not span their space.*ridge"):
        compiled.retrain(compiled.start, compiled.moments(compiled.start))
    eco = eco.model_copy(update={"models": {"p": eco.models["p"].model_copy(update={"ridge": 1e-3})}})
    compiled = compile_ecosystem(eco)
    assert bool(torch.isfinite(compiled.retrain(compiled.start, compiled.moments(compiled.start))).all())
