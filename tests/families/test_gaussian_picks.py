"""Picks among Gaussian outcomes against independent quadrature and seeded Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.errors import NotAvailableError
from crossfeed.families.gaussian_picks import Stage, VectorReward, directions, gaussian_pick, nodes_and_weights

DRAWS = 1_000_000
# Bands of 5 standard errors: about 150 numbers are compared, so a false alarm in 150 · 5.7e-7 = 0.009 % of seeds; seeds are fixed.
BAND = 5.0


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def settings(k: float, tau: float = 1.0, noise: float = 0.0, share: float = 0.0, stage: int = 0) -> dict[str, Tensor]:
    values = {"candidates": k, "temperature": tau, "noise": noise, "other_share": share}
    return {f"{stage}.{key}": real([v]) for key, v in values.items()}


def reward(g: object, Q: object = None, fn: Callable[[Tensor], Tensor] | None = None) -> VectorReward:
    return VectorReward(real(g)[None], None if Q is None else real(Q)[None], fn)


def picked(
    mean: object, cov: object, stages: list[Stage], at: dict[str, Tensor], U: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    m, c = gaussian_pick(real(mean)[None], real(cov)[None], stages, at, U)
    return m[0].numpy(), c[0].numpy()


def simulated(
    mean: np.ndarray,
    cov: np.ndarray,
    k: int,
    value: Callable[[np.ndarray], np.ndarray],
    tau: float,
    seed: int,
    num: int = DRAWS,
) -> np.ndarray:
    """(num, d) picks made one by one: K draws, Gumbel noise, the best."""
    rng = np.random.default_rng(seed)
    y = mean + rng.standard_normal((num, k, len(mean))) @ np.linalg.cholesky(cov).T
    score = value(y) / tau + rng.gumbel(size=(num, k)) if tau > 0 else value(y)
    return y[np.arange(num), score.argmax(1)]


def inside(sample: np.ndarray, mean: np.ndarray, cov: np.ndarray, extra: float = 0.0) -> None:
    """Mean and covariance of a sample within BAND standard errors (plus ``extra`` of stated quadrature error)."""
    n = len(sample)
    off = np.abs(sample.mean(0) - mean) - extra
    assert (off <= BAND * sample.std(0) / math.sqrt(n)).all()
    centred = sample - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(0) - cov) - extra <= BAND * products.std(0) / math.sqrt(n)).all()


MEAN = np.array([0.3, -0.5, 0.8])
ROOT = np.array([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 0.6]])
COV = ROOT @ ROOT.T
G = np.array([0.7, -0.4, 0.5])
BEND = np.array([[-0.9, 0.2, 0.0], [0.2, -0.5, 0.1], [0.0, 0.1, -0.3]])


# --- one dimension, two candidates: double integrals ----------------------------------------------------------------


def two_candidates(mean: float, sd: float, value: Callable[[float], float]) -> tuple[float, float]:
    """Mean and variance of the pick among two, by SciPy's adaptive rules: q(x) = 2 p(x) ∫ p(y) σ(r(x) − r(y)) dy."""

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v)) if v > -700 else 0.0

    def density(x: float, y: float) -> float:
        a, b = (x - mean) / sd, (y - mean) / sd
        return math.exp(-0.5 * (a * a + b * b)) / (2 * math.pi * sd * sd) * 2 * sigmoid(value(x) - value(y))

    low, high = mean - 8 * sd, mean + 8 * sd
    moments = [
        integrate.dblquad(lambda y, x, p=power: x**p * density(x, y), low, high, low, high, epsabs=1e-9, epsrel=1e-9)[0]
        for power in (1, 2)
    ]
    return moments[0], moments[1] - moments[0] ** 2


@pytest.mark.parametrize(
    ("g", "q", "tau"),
    [(0.8, 0.0, 1.0), (0.8, 0.0, 0.4), (0.5, -1.2, 1.0), (-0.3, 0.6, 2.0)],
    ids=["linear", "cold", "down", "up"],
)
def test_two_candidates_in_one_dimension_against_a_double_integral(g: float, q: float, tau: float) -> None:
    mean, sd = 0.4, 1.3
    want = two_candidates(mean, sd, lambda x: (g * x + 0.5 * q * x * x) / tau)
    m, c = picked([mean], [[sd**2]], [Stage("plackett_luce", reward([g], [[q]] if q else None))], settings(2, tau))
    np.testing.assert_allclose([m[0], c[0, 0]], want, atol=2e-8)


def test_a_function_gives_what_its_formula_gives() -> None:
    for dim in (1, 2):
        g, Q = real(G[:dim]), real(BEND[:dim, :dim])
        written = reward(np.zeros(dim), fn=lambda y, g=g, Q=Q: y @ g + 0.5 * ((y @ Q) * y).sum(-1))
        a, b = (
            picked(MEAN[:dim], COV[:dim, :dim], [Stage("plackett_luce", r)], settings(3))
            for r in (reward(g, Q), written)
        )
        np.testing.assert_allclose(a[0], b[0], atol=1e-11)
        np.testing.assert_allclose(a[1], b[1], atol=1e-11)


# --- Monte Carlo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "tau"), [(2, 1.0), (4, 0.1)])
def test_linear_reward_against_monte_carlo(k: int, tau: float) -> None:
    m, c = picked(MEAN, COV, [Stage("plackett_luce", reward(G))], settings(k, tau))
    inside(simulated(MEAN, COV, k, lambda y: y @ G, tau, seed=k), m, c)


@pytest.mark.parametrize("k", [2, 4])
def test_best_of_linear_against_monte_carlo_and_order_statistics(k: int) -> None:
    m, c = picked(MEAN, COV, [Stage("best", reward(G))], settings(k, 0.0))
    inside(simulated(MEAN, COV, k, lambda y: y @ G, 0.0, seed=10 + k), m, c)
    sd = math.sqrt(G @ COV @ G)
    top = [
        integrate.quad(lambda z, p=p: z**p * k * stats.norm.pdf(z) * stats.norm.cdf(z) ** (k - 1), -9, 9, epsabs=1e-13)[
            0
        ]
        for p in (1, 2)
    ]
    assert m @ G == pytest.approx(MEAN @ G + sd * top[0], abs=1e-12)
    assert G @ c @ G == pytest.approx(sd**2 * (top[1] - top[0] ** 2), abs=1e-12)


def test_best_of_very_many_is_extreme_value_theory() -> None:
    k = 1e6
    m, _ = picked([0.0], [[1.0]], [Stage("best", reward([2.0]))], settings(k, 0.0))
    want = integrate.quad(
        lambda z: z * k * stats.norm.pdf(z) * math.exp((k - 1) * stats.norm.logcdf(z)), 2, 9, epsabs=1e-12
    )[0]
    assert m[0] == pytest.approx(want, abs=1e-10)


def test_an_indifferent_curator_leaves_everything_as_it_is() -> None:
    for stage, at in (
        (Stage("best", reward([0.0] * 3)), settings(4, 0.0)),
        (Stage("plackett_luce", reward([0.0] * 3)), settings(4)),
        (Stage("tilt", reward([0.0] * 3)), settings(math.inf)),
    ):
        m, c = picked(MEAN, COV, [stage], at)
        np.testing.assert_allclose(m, MEAN, atol=1e-13)
        np.testing.assert_allclose(c, COV, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3])
def test_quadratic_reward_in_several_directions_against_monte_carlo(dim: int) -> None:
    g, Q, mean, cov = G[:dim], BEND[:dim, :dim], MEAN[:dim], COV[:dim, :dim]
    m, c = picked(mean, cov, [Stage("plackett_luce", reward(g, Q))], settings(3, 0.7))
    sample = simulated(
        mean, cov, 3, lambda y: y @ g + 0.5 * np.einsum("...i,ij,...j->...", y, Q, y), 0.7, seed=20 + dim
    )
    inside(sample, m, c, extra=1e-6)


@pytest.mark.parametrize("dim", [5])
def test_quasi_monte_carlo_in_many_directions(dim: int) -> None:
    """4,096 Sobol points: within 0.004 standard deviations of a Monte Carlo run of a million picks."""
    rng = np.random.default_rng(dim)
    root = np.tril(rng.normal(size=(dim, dim)) * 0.3) + np.eye(dim)
    cov, g = root @ root.T, rng.normal(size=dim) * 0.5
    Q = -np.diag(rng.uniform(0.2, 1.0, size=dim))
    m, c = picked(np.zeros(dim), cov, [Stage("plackett_luce", reward(g, Q))], settings(2))
    sample = simulated(
        np.zeros(dim),
        cov,
        2,
        lambda y: y @ g + 0.5 * np.einsum("...i,ij,...j->...", y, Q, y),
        1.0,
        seed=dim,
        num=400_000,
    )
    scale = np.sqrt(np.diag(cov))
    assert (np.abs(sample.mean(0) - m) <= 0.004 * scale + BAND * sample.std(0) / math.sqrt(len(sample))).all()
    assert (np.abs(np.cov(sample.T) - c) <= 0.012 * np.outer(scale, scale)).all()
    again = picked(np.zeros(dim), cov, [Stage("plackett_luce", reward(g, Q))], settings(2))
    np.testing.assert_array_equal(m, again[0])  # the points are seeded


def test_tilting_by_a_quadratic_reward_is_a_product_of_gaussians() -> None:
    tau = 0.7
    m, c = picked(MEAN, COV, [Stage("tilt", reward(G, BEND))], settings(math.inf, tau))
    precision = np.linalg.inv(COV) - BEND / tau
    np.testing.assert_allclose(c, np.linalg.inv(precision), atol=1e-13)
    np.testing.assert_allclose(m, np.linalg.solve(precision, np.linalg.solve(COV, MEAN) + G / tau), atol=1e-13)
    m, c = picked(MEAN, COV, [Stage("tilt", reward(G))], settings(math.inf, tau))
    np.testing.assert_allclose(m, MEAN + COV @ G / tau, atol=1e-14)
    np.testing.assert_allclose(c, COV, atol=0)


def test_tilting_that_outgrows_the_gaussian_is_not_a_number() -> None:
    """Σ⁻¹ − Q/τ is not positive definite: the expectation is infinite, and no covariance may come out."""
    m, c = picked([0.0], [[1.0]], [Stage("tilt", reward([1.0], [[1.5]]))], settings(math.inf))
    assert np.isnan(m).all()
    assert np.isnan(c).all()


def test_many_candidates_on_nodes_approach_the_closed_form_of_tilting() -> None:
    """Two roads to one limit: the operator on quadrature nodes, and the product of Gaussians."""
    stage = reward(G[:2], BEND[:2, :2])
    many = picked(MEAN[:2], COV[:2, :2], [Stage("plackett_luce", stage)], settings(1e7))
    limit = picked(MEAN[:2], COV[:2, :2], [Stage("tilt", stage)], settings(math.inf))
    np.testing.assert_allclose(many[0], limit[0], atol=2e-6)
    np.testing.assert_allclose(many[1], limit[1], atol=2e-6)


def test_cold_curators_approach_best_of() -> None:
    best = picked(MEAN, COV, [Stage("best", reward(G))], settings(4, 0.0))
    gaps = [
        np.abs(picked(MEAN, COV, [Stage("plackett_luce", reward(G))], settings(4, tau))[0] - best[0]).max()
        for tau in (0.2, 0.1, 0.05)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.2)  # τ²: the first order cancels between the two sides of a tie
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.07)


def test_noise_and_another_curator_are_a_mixture() -> None:
    """20 % at random, 30 % by an adversary, the rest by the people: law of total covariance, and Monte Carlo."""
    other = -2.0 * G + np.array([0.0, 1.0, 0.0])
    m, c = picked(MEAN, COV, [Stage("plackett_luce", reward(G), reward(other))], settings(4, 0.5, 0.2, 0.3))
    shares = np.random.default_rng(30).multinomial(DRAWS, [0.5, 0.3, 0.2])
    parts = [
        simulated(MEAN, COV, 4, lambda y: y @ G, 0.5, seed=31, num=shares[0]),
        simulated(MEAN, COV, 4, lambda y: y @ other, 0.5, seed=32, num=shares[1]),
        simulated(MEAN, COV, 1, lambda y: y @ G, 0.5, seed=33, num=shares[2]),
    ]
    inside(np.concatenate(parts), m, c)


def test_two_stages_are_picks_among_picks() -> None:
    """3 candidates by one reward, then 2 of those picks by another, against Monte Carlo of 6 candidates a pick."""
    second = np.array([-0.5, 0.9, 0.0])
    stages = [Stage("plackett_luce", reward(G)), Stage("plackett_luce", reward(second))]
    U = directions([s.reward for s in stages], 3)
    at = settings(3, 0.5) | settings(2, 1.0, 0.25, stage=1)
    m, c = picked(MEAN, COV, stages, at, U)
    first = simulated(MEAN, COV, 3, lambda y: y @ G, 0.5, seed=40, num=2 * DRAWS).reshape(DRAWS, 2, 3)
    rng = np.random.default_rng(41)
    score = first @ second + rng.gumbel(size=(DRAWS, 2))
    at_random = rng.random(DRAWS) < 0.25
    chosen = np.where(at_random, 0, score.argmax(1))
    inside(first[np.arange(DRAWS), chosen], m, c, extra=1e-8)


def test_two_stages_in_one_direction_by_nested_quadrature() -> None:
    """Both stages by K = 2 and one reward; the second stage's candidates have density q(x) = 2 p(x) s(x)."""
    x = np.linspace(-9, 9, 1601)
    p = stats.norm.pdf(x) * (x[1] - x[0])
    for _ in range(2):
        p = 2 * p * (p[None, :] / (1 + np.exp(-0.9 * (x[:, None] - x[None, :])))).sum(1)
    stages = [Stage("plackett_luce", reward([0.9])), Stage("plackett_luce", reward([0.9]))]
    m, c = picked([0.0], [[1.0]], stages, settings(2) | settings(2, stage=1), directions([s.reward for s in stages], 1))
    np.testing.assert_allclose([m[0], c[0, 0]], [p @ x, p @ x**2 - (p @ x) ** 2], atol=1e-12)


# --- accuracy of the rules ----------------------------------------------------------------------------------------------


def exact_mean(sharpness: float) -> float:
    """K = 2, r = s·z: the pick's mean is ∫ √2 d · tanh(s d/√2)/2 dΦ(d), split where the tanh bends."""

    def f(d: float) -> float:
        return math.sqrt(2) * d * math.tanh(sharpness * d / math.sqrt(2)) / 2 * stats.norm.pdf(d)

    bend = min(2 / sharpness, 10.0)
    return 2 * sum(integrate.quad(f, a, b, epsabs=1e-15, epsrel=1e-13)[0] for a, b in ((0, bend), (bend, bend + 30)))


@pytest.mark.parametrize(
    ("sharpness", "error"),
    [(0.1, 1e-14), (0.3, 1e-14), (1.0, 1e-14), (3.0, 1e-14), (5.0, 1e-14), (10.0, 1e-12), (20.0, 1e-7)],
)
def test_quadrature_error_in_one_direction(sharpness: float, error: float) -> None:
    """σ_r/τ up to 10 to 1e-12; 20 to 1e-7 (colder curators are closer to best-of-K, which has a closed form)."""
    m, _ = picked([0.0], [[1.0]], [Stage("plackett_luce", reward([1.0]))], settings(2, 1 / sharpness))
    assert abs(m[0] - exact_mean(sharpness)) < error


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_rules_integrate_what_a_gaussian_has(dim: int) -> None:
    z, w = (x.numpy() for x in nodes_and_weights(dim))
    assert w.sum() == pytest.approx(1, abs=1e-12)
    tolerance = 1e-9 if dim <= 3 else 2e-2
    np.testing.assert_allclose(w @ z, 0, atol=tolerance)
    np.testing.assert_allclose(np.einsum("n,ni,nj->ij", w, z, z), np.eye(dim), atol=tolerance)
    assert w @ z[:, 0] ** 4 == pytest.approx(3, abs=1e-8 if dim <= 3 else 0.1)
    assert w @ np.cos(1.5 * z.sum(-1)) == pytest.approx(math.exp(-0.5 * 2.25 * dim), abs=1e-9 if dim <= 3 else 2e-2)


# --- derivatives, compiled sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bend"),
    [("plackett_luce", False), ("plackett_luce", True), ("best", False), ("tilt", False), ("tilt", True)],
)
def test_derivatives_are_central_differences(kind: str, bend: bool) -> None:
    r = reward(G[:2], BEND[:2, :2] if bend else None)

    def value(x: Tensor) -> Tensor:
        at = {
            "0.candidates": x[None, 5],
            "0.temperature": x[None, 6],
            "0.noise": x[None, 7],
            "0.other_share": x[None, 8],
        }
        root = torch.stack([x[2], 0 * x[2], x[3], x[4]]).reshape(2, 2)
        stage = Stage(kind, r, reward([0.3, 0.9]))
        m, c = gaussian_pick(x[None, :2], (root @ root.T)[None], [stage], at)
        return (m * real([1.0, -0.7])).sum() + (c * real([[0.3, 0.5], [0.5, -1.0]])).sum()

    x = real([0.3, -0.5, 1.0, 0.4, 0.8, 3.5, 0.8, 0.1, 0.25])
    forward, reverse = torch.func.jacfwd(value)(x), torch.func.grad(value)(x)
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)
    for i in range(len(x)):
        step = torch.zeros_like(x)
        step[i] = 1e-5
        slope = float(value(x + step) - value(x - step)) / 2e-5
        assert float(reverse[i]) == pytest.approx(slope, rel=1e-7, abs=1e-9)


def vector_loop(source: s.Raw | s.Curated, dim: int = 2, rewards: dict[str, s.Reward] | None = None) -> s.Ecosystem:
    return s.Ecosystem(
        space=s.Vectors(dim=dim),
        data={"web": s.MomentsData(mean=np.zeros(dim), cov=1.0)},
        rewards=rewards or {"people": s.LinearReward(vector=G[:dim])},
        models={
            "p": s.Model(
                family=s.GaussianMean(cov=COV[:dim, :dim]), reward="people", sources=[s.Real(data="web", weight=1)]
            ),
            "q": s.Model(family=s.Gaussian(), reward="people", sources=[s.Real(data="web", weight=0.5), source]),
        },
    )


def test_a_compiled_source_samples_hot_picks_then_maps() -> None:
    """Sampling temperature scales the covariance, people pick, the map acts on what they picked."""
    matrix, shift = np.array([[0.8, -0.3], [0.2, 1.1]]), np.array([0.5, -1.0])
    source = s.Curated(
        producer="p",
        weight=0.5,
        candidates=3,
        temperature=0.6,
        sampling_temperature=1.7,
        map=s.Affine(matrix=matrix, shift=shift),
    )
    program = compile_ecosystem(vector_loop(source))
    group = next(g for g in program.source_groups if g.theta_index is not None)
    moments = group.kernel.moments(real(MEAN[None, :2]), program.settings)[0].numpy()
    mean, second = moments[:2], moments[2:].reshape(2, 2)
    y = simulated(MEAN[:2], 1.7 * COV[:2, :2], 3, lambda y: y @ G[:2], 0.6, seed=50)
    inside(y @ matrix.T + shift, mean, second - np.outer(mean, mean))


@pytest.mark.parametrize(
    "source",
    [
        s.Raw(producer="p", weight=0.5, sampling_temperature=0.5, map=s.Affine(matrix=[0.5, 2.0])),
        s.Curated(producer="p", weight=0.5, candidates=3, temperature=0, noise=0.3),
        s.Curated(producer="p", weight=0.5, candidates=2, other_curator="foes", other_share=0.4, noise=0.2),
        s.Curated(producer="p", weight=0.5, candidates=2, then=s.Pick(candidates=3, curator="foes", temperature=0.5)),
        s.Curated(producer="p", weight=0.5, candidates=3, curator="bent"),
    ],
    ids=["raw", "best", "foes", "two stages", "quadratic"],
)
def test_drawn_candidates_have_the_moments_that_were_worked_out(source: s.Raw | s.Curated) -> None:
    rewards: dict[str, s.Reward] = {
        "people": s.LinearReward(vector=G[:2]),
        "foes": s.LinearReward(vector=[-1.0, 0.5]),
        "bent": s.QuadraticReward(matrix=BEND[:2, :2], vector=G[:2]),
    }
    program = compile_ecosystem(vector_loop(source, rewards=rewards))
    kernel = next(g for g in program.source_groups if g.theta_index is not None).kernel
    theta = real(MEAN[None, :2])
    moments = kernel.moments(theta, program.settings)[0].numpy()
    mean, second = moments[:2], moments[2:].reshape(2, 2)
    drawn = kernel.sample(theta, program.settings, 300_000, np.random.default_rng(60))[0].numpy()
    inside(drawn, mean, second - np.outer(mean, mean))


@pytest.mark.parametrize("space", ["vectors", "regression"])
def test_infinitely_many_candidates_cannot_be_drawn(space: str) -> None:
    tilted = s.Curated(producer="p", weight=0.5, candidates=math.inf)
    if space == "vectors":
        eco = vector_loop(tilted)
    else:
        eco = s.Ecosystem(
            space=s.Regression(inputs=1, outputs=1),
            domains={"x": s.PointsDomain(points=[[1.0], [2.0]])},
            data={"web": s.TeacherData(matrix=[[1.0]], domain="x")},
            rewards={"r": s.LinearReward(vector=[1.0])},
            models={
                "p": s.Model(
                    family=s.LinearGaussian(), reward="r", domain="x", sources=[s.Real(data="web", weight=0.5), tilted]
                )
            },
        )
    program = compile_ecosystem(eco)
    with pytest.raises(
        NotAvailableError, match="K = inf on continuous outcomes: no candidates can be drawn; use a finite K"
    ):
        program.sampled_moments(program.start, 10, [np.random.default_rng(i) for i in range(9)])


def test_a_source_does_not_depend_on_what_it_is_stacked_with() -> None:
    """A reward that looks one way keeps its one-dimensional rule beside one that looks four ways."""
    flat, round_ = np.diag([-1.0, 0, 0, 0]), -0.5 * np.eye(4)

    def program(names: list[str]) -> tuple[Tensor, list[str]]:
        picks = [s.Curated(producer="p", weight=0.5 / len(names), curator=n, name=n) for n in names]
        eco = s.Ecosystem(
            space=s.Vectors(dim=4),
            data={"web": s.MomentsData(mean=np.zeros(4), cov=1.0)},
            rewards={
                "flat": s.QuadraticReward(matrix=flat, vector=[1.0, 0, 0, 0]),
                "round": s.QuadraticReward(matrix=round_),
            },
            models={
                "p": s.Model(family=s.GaussianMean(), reward="flat", sources=[s.Real(data="web", weight=0.5), *picks])
            },
        )
        compiled = compile_ecosystem(eco)
        theta = real([0.1, 0.2, -0.3, 0.4])
        for g in compiled.source_groups:
            infos = [compiled.sources[int(i)].name for i in g.source]
            if "flat" in infos:
                return g.kernel.moments(theta[g.theta_index], compiled.settings)[infos.index("flat")], infos
        raise AssertionError("the source is compiled")

    alone, _ = program(["flat"])
    beside, _ = program(["flat", "round"])
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-14)
