"""Stable points: three solvers, one answer, and honest words where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import round_map
from crossfeed.dynamics.stable import StablePoint, anderson, distinct_points, newton, plain, solve
from crossfeed.errors import NotStableError
from ecosystems import FAMILIES, random_ecosystem


def residual(program: Program, theta: Tensor) -> float:
    """‖T(Θ) − Θ‖ / (1 + ‖Θ‖) of the undamped simultaneous round."""
    return float((round_map(program, theta) - theta).norm() / (1 + theta.norm()))


def loop(
    matrix: object, real: float = 0.0, family: s.Family | None = None, start: list[float] | None = None, dim: int = 2
) -> Program:
    """One model fed its own outputs, mapped by a matrix."""
    sources: list[s.Source] = [s.Raw(producer="p", weight=1 - real, map=s.Affine(matrix=matrix))]
    if real:
        sources.append(s.Real(data="web", weight=real))
    eco = s.Ecosystem(
        space=s.Vectors(dim=dim),
        data={"web": s.MomentsData(mean=np.ones(dim), cov=1.0)},
        rewards={"r": s.LinearReward(vector=np.ones(dim))},
        models={"p": s.Model(family=family or s.GaussianMean(), reward="r", sources=sources, start=start)},
    )
    return compile_ecosystem(eco)


def bistable(real: float) -> Program:
    """A coin that is retrained on its own outputs sampled cold: whichever side is common is made more common still."""
    eco = s.Ecosystem(
        space=s.Outcomes(count=2),
        data={"web": s.DistributionData(weights=[1.0, 1.0])},
        rewards={"r": s.TableReward(values=[1.0, 0.0])},
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="r",
                sources=[
                    s.Real(data="web", weight=real),
                    s.Raw(producer="p", weight=1 - real, sampling_temperature=0.5),
                ],
            )
        },
    )
    return compile_ecosystem(eco)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_solvers_find_the_same_point(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, 0, real=0.3))
    found = [solve(program, method=method, max_steps=3000) for method in ("auto", "plain", "anderson", "newton")]  # type: ignore[arg-type]
    for point in found:
        assert point.result == "converged", point.method
        assert point.residual <= 1e-12
        assert residual(program, point.theta) == pytest.approx(point.residual, abs=1e-13)
        torch.testing.assert_close(point.theta, found[0].theta, rtol=1e-7, atol=1e-8)
    assert float(program.gradient(found[0].theta).abs().max()) < 1e-10


def test_a_point_solved_by_hand() -> None:
    """θ = w A θ + (1 − w) 1: the paper's Gaussian loop, one model."""
    A = np.array([[0.3, -0.5], [0.6, 0.2]])
    program = loop(A, real=0.4)
    want = np.linalg.solve(np.eye(2) - 0.6 * A, 0.4 * np.ones(2))
    for method in ("auto", "plain", "anderson", "newton"):
        point = solve(program, method=method)  # type: ignore[arg-type]
        np.testing.assert_allclose(point.require(), want, atol=1e-11)


def test_a_started_solver_ends_where_it_started_when_that_is_stable() -> None:
    program = loop(0.5, real=0.4)
    first = solve(program)
    again = solve(program, start=first.theta)
    assert again.result == "converged"
    assert again.steps <= 3
    torch.testing.assert_close(again.theta, first.theta, rtol=0, atol=1e-13)


# --- where there is no stable point, or none that rounds lead to -----------------------------------------------------


@pytest.mark.parametrize("family", [s.GaussianMean(), s.Gaussian()], ids=["mean", "full"])
def test_outputs_that_are_stretched_diverge(family: s.Family) -> None:
    point = plain(loop(1.2, family=family, start=None), torch.ones(loop(1.2, family=family).num_params).double())
    assert point.result == "diverged"
    with pytest.raises(
        NotStableError, match=r"no stable point: the plain solver ended 'diverged'.*Add real data or a ridge"
    ):
        point.require()


def test_a_drift_diverges_though_its_steps_stay_the_same() -> None:
    """z ↦ z + 1 moves on for ever by the same step."""
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        rewards={"r": s.LinearReward(vector=[1.0])},
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="r",
                sources=[s.Raw(producer="p", weight=1.0, map=s.Affine(shift=[1.0]))],
            )
        },
    )
    program = compile_ecosystem(eco)
    assert plain(program, program.start, max_steps=200).result == "diverged"
    assert solve(program, max_steps=200).result == "diverged"


@pytest.mark.parametrize("order", [2, 3, 7])
def test_outputs_that_are_turned_oscillate(order: int) -> None:
    angle = 2 * math.pi / order
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    program = loop(turn, start=[1.0, 2.0])
    point = plain(program, program.start, max_steps=300)
    assert point.result == "oscillating"
    assert point.residual > 0.1
    # the fixed point 0 exists, and Newton finds it: whether rounds lead there is a question of local stability
    assert solve(program).result == "converged"
    assert float(solve(program).theta.norm()) < 1e-12


def test_a_collapsing_variance_is_a_drift_of_its_logarithm() -> None:
    program = loop(0.5, family=s.Gaussian())
    point = plain(program, program.start, max_steps=200)
    assert point.result == "diverged"
    assert float(point.theta[2]) < -100


def test_slow_progress_is_a_budget_and_more_rounds_end_it() -> None:
    program = loop(1.0, real=0.01, start=[5.0, -5.0])
    short = plain(program, program.start, max_steps=100)
    assert short.result == "budget"
    assert short.steps == 100
    assert residual(program, short.theta) < short.residual
    assert plain(program, program.start, max_steps=4000).result == "converged"
    assert solve(program, max_steps=50).result == "converged"  # Newton needs no patience


def test_numbers_that_break_are_called_non_finite() -> None:
    program = loop(1.2, family=s.Gaussian())
    broken = torch.full_like(program.start, math.nan)
    for solver in (plain, anderson, newton):
        assert solver(program, broken).result == "non-finite"
    huge = torch.full_like(program.start, 400.0)  # e^800 overflows
    for solver in (plain, anderson, newton):
        assert solver(program, huge).result == "non-finite"
    tiny = torch.full_like(program.start, -800.0)  # e^-1600 is zero, which has no inverse: no exception, some result
    assert newton(program, tiny).result == "non-finite"
    for solver in (plain, anderson):
        assert solver(program, tiny, 1e-12, 50).steps > 0


def test_tilting_that_outgrows_a_learned_gaussian_is_non_finite() -> None:
    """Σ grows until e^{r/τ} has no expectation; no covariance is made up."""
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[0.0], cov=1.5)},
        rewards={"r": s.QuadraticReward(matrix=0.6)},
        models={
            "p": s.Model(
                family=s.Gaussian(),
                reward="r",
                sources=[s.Real(data="web", weight=0.1), s.Curated(producer="p", weight=0.9, candidates=math.inf)],
            )
        },
    )
    program = compile_ecosystem(eco)
    assert plain(program, program.start, max_steps=100).result == "non-finite"
    assert solve(program, max_steps=100).result != "converged"


def test_a_singular_newton_step_ends_without_an_exception() -> None:
    """z ↦ z + 1: D = 0 and no stable point anywhere."""
    program = loop(1.0, start=[1.0, 1.0])
    assert newton(program, program.start).result == "converged"  # every point of a copying loop stands still
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        rewards={"r": s.LinearReward(vector=[1.0])},
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="r",
                sources=[s.Raw(producer="p", weight=1.0, map=s.Affine(shift=[1.0]))],
            )
        },
    )
    drift = compile_ecosystem(eco)
    assert newton(drift, drift.start).result == "non-finite"


def test_words_come_with_every_failure() -> None:
    for result in ("budget", "diverged", "oscillating", "non-finite"):
        point = StablePoint(torch.zeros(1), result, 0.5, 7, "plain")  # type: ignore[arg-type]
        with pytest.raises(NotStableError, match=f"ended '{result}' after 7 rounds with residual 0.5"):
            point.require()


def test_residual_is_that_of_the_undamped_map() -> None:
    """Damped or extrapolated iterates are judged by a full round from where they are."""
    program = compile_ecosystem(random_ecosystem("categorical", 3, 2))
    for solver, budget in ((anderson, 4), (newton, 2)):
        point = solver(program, program.start, 1e-15, budget)
        assert residual(program, point.theta) == pytest.approx(point.residual, rel=1e-6, abs=1e-15)


# --- several stable points ---------------------------------------------------------------------------------------------


def test_sharpened_self_consumption_has_three_fixed_points() -> None:
    """x ↦ (1 − w) x² / (x² + (1 − x)²) + w/2 at w = 0.2: a fair coin and two camps, found here by bisection."""
    program = bistable(0.2)

    def excess(x: float) -> float:
        return 0.2 * 0.5 + 0.8 * x**2 / (x**2 + (1 - x) ** 2) - x

    low, high = 0.55, 0.999
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    family = program.model_groups[0].family
    found, failed = distinct_points(program, 24, seed=0, spread=3.0)
    assert failed == 0
    shares = sorted(float(family.log_probs(point.theta[None]).exp()[0, 0]) for point in found)
    assert shares[0] == pytest.approx(1 - low, abs=1e-10)
    assert shares[-1] == pytest.approx(low, abs=1e-10)
    assert all(abs(excess(x)) < 1e-12 for x in shares)
    assert 2 <= len(shares) <= 3  # the coin is unstable: Newton may find it, rounds do not
    ends = set()
    for start in (-1.0, -0.2, 0.2, 1.0):
        point = plain(program, torch.tensor([start], dtype=torch.float64))
        assert point.result == "converged"
        ends.add(round(float(family.log_probs(point.theta[None]).exp()[0, 0]), 8))
    assert ends == {round(low, 8), round(1 - low, 8)}


def test_enough_real_data_leaves_one_point() -> None:
    found, failed = distinct_points(bistable(0.6), 12, seed=0, spread=3.0)
    assert failed == 0
    assert len(found) == 1
    np.testing.assert_allclose(found[0].theta, 0.0, atol=1e-12)


def test_curated_camps() -> None:
    """A cooperating pair: one model samples the other cold, the other is curated against the first one's base measure."""
    eco = s.Ecosystem(
        space=s.Outcomes(count=2),
        data={"web": s.DistributionData(weights=[1.0, 1.0])},
        rewards={"zero": s.TableReward(values=[1.0, 0.0])},
        models={
            "p": s.Model(
                family=s.LogLinear(features=[1.0, -1.0], base=[1.0, 20.0]),
                reward="zero",
                sources=[
                    s.Real(data="web", weight=0.05),
                    s.Raw(producer="q", weight=0.95, sampling_temperature=0.4),
                ],
            ),
            "q": s.Model(
                family=s.Categorical(),
                reward="zero",
                sources=[
                    s.Real(data="web", weight=0.05),
                    s.Curated(producer="p", weight=0.95, candidates=2, temperature=3.0),
                ],
            ),
        },
    )
    program = compile_ecosystem(eco)
    found, _ = distinct_points(program, 16, seed=1, spread=3.0)
    values = program.alignment(torch.stack([point.theta for point in found]))[:, 0]
    assert len(found) >= 2
    assert float(values.max() - values.min()) > 0.5
    for point in found:
        assert residual(program, point.theta) < 1e-12


def test_distinct_points_are_seeded() -> None:
    program = bistable(0.2)
    a, b = (distinct_points(program, 6, seed=3, spread=2.0)[0] for _ in range(2))
    assert [x.theta.tolist() for x in a] == [x.theta.tolist() for x in b]
