"""What certificates promise, held against actual retraining in every update order."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.certificates import (
    GlobalCertificate,
    deltas,
    global_certificate,
    local_radius,
    observed_rate,
)
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.local import update_jacobian
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import cycle_length, population_round, round_map, steps_of_round, update_block
from crossfeed.dynamics.stable import solve
from ecosystems import random_ecosystem

THREE = ["m0", "m1", "m2"]
SEQUENTIAL = [s.Sequential(models=list(order)) for order in itertools.permutations(THREE)]
FAST: dict[str, Any] = {"rewards": ("linear",), "num_feeds": (1, 3), "candidates": (2, 4), "stages": 1, "best": False}
CONTRACTING = [
    ("gaussian_mean", 1, FAST),
    ("linear_gaussian", 3, FAST | {"dim": 2}),
    ("loglinear", 4, FAST | {"ridge": 5.0}),
    ("categorical", 5, {"kinds": ("raw",), "ridge": 0.0, "sampling": False}),
    ("mixed_finite", 6, FAST | {"ridge": 2.5}),
]
contracting = pytest.mark.parametrize(("family", "seed", "options"), CONTRACTING)


def certified(family: str, seed: int, options: dict[str, Any]) -> tuple[Program, GlobalCertificate, Tensor]:
    eco = random_ecosystem(family, 3, seed, **options)
    program = compile_ecosystem(eco)
    found = global_certificate(eco, program)
    assert found.contracts, (found.reason, found.radius)
    return program, found, solve(program).require()


def starts(program: Program, seed: int, num: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(num, program.num_params, dtype=torch.float64, generator=generator)


def rounds_needed(rate: float) -> int:
    return math.ceil(math.log(1e-11) / math.log(max(rate, 0.05))) + 3


@contracting
def test_simultaneous_errors_shrink_at_the_certified_rate(family: str, seed: int, options: dict[str, Any]) -> None:
    program, found, star = certified(family, seed, options)
    assert found.norm_rate is not None
    theta = starts(program, seed)
    gap = found.distance(program, theta, star)
    for _ in range(rounds_needed(found.norm_rate)):
        theta = round_map(program, theta)
        new = found.distance(program, theta, star)
        assert bool((new <= found.norm_rate * gap * (1 + 1e-9) + 1e-12).all())
        gap = new
    assert float(gap.max()) < 1e-8


@contracting
@pytest.mark.parametrize("order", SEQUENTIAL)
def test_sequential_rounds_in_every_order_reach_the_one_point(
    family: str, seed: int, options: dict[str, Any], order: s.Sequential
) -> None:
    program, found, star = certified(family, seed, options)
    assert found.norm_rate is not None
    assert found.radius is not None
    assert found.rate(order) <= found.radius + 1e-9
    theta = starts(program, seed)
    first = found.distance(program, theta, star)
    count = rounds_needed(found.norm_rate)
    for number in range(count):
        theta = population_round(program, theta, s.Update(order=order), number)
    assert bool((found.distance(program, theta, star) <= found.norm_rate**count * first + 1e-9).all())


@contracting
def test_random_subsets_reach_the_one_point(family: str, seed: int, options: dict[str, Any]) -> None:
    program, found, star = certified(family, seed, options)
    update = s.Update(order=s.RandomOrder(probability=0.5, seed=seed))
    theta = starts(program, seed)
    first = found.distance(program, theta, star)
    for number in range(12 * rounds_needed(found.norm_rate or 1)):
        theta = population_round(program, theta, update, number)
        if float((theta - star).abs().max()) < 1e-10:
            break
    assert float((found.distance(program, theta, star) / first).max()) < 1e-8


@contracting
def test_totally_asynchronous_updates_reach_the_one_point(family: str, seed: int, options: dict[str, Any]) -> None:
    """Each model is retrained at times of its own, on outputs of versions that are up to five updates old."""
    program, found, star = certified(family, seed, options)
    rng = np.random.default_rng(seed)
    history = [starts(program, seed, 1)[0]]
    first = float(found.distance(program, history[0], star))
    delay = 5
    for _ in range(3 * (delay + 1) * rounds_needed(found.norm_rate or 1)):
        model = int(rng.integers(program.num_models))
        seen = torch.empty_like(star)
        for j in range(program.num_models):
            age = int(rng.integers(1, min(delay, len(history)) + 1))
            seen[program.span(j)] = history[-age][program.span(j)]
        new = history[-1].clone()
        new[program.span(model)] = update_block(program, seen, [model], None)[program.span(model)]
        history = [*history[-delay:], new]
        if float((torch.stack(history) - star).abs().max()) < 1e-10:
            break
    assert float(found.distance(program, history[-1], star)) < 1e-8 * first


def test_without_contraction_nothing_is_promised_but_the_loop_may_settle() -> None:
    """The factor is a worst case: best of eight on itself is above 1, and yet real data holds the loop."""
    options: dict[str, Any] = {"ridge": 0.0, "sampling": False, "candidates": (8,), "rewards": ("table",)}
    eco = random_ecosystem("categorical", 2, 3, kinds=("curated",), **options)
    program = compile_ecosystem(eco)
    found = global_certificate(eco, program)
    assert found.available
    assert found.contracts is False
    assert found.norm_weights is None
    assert local_radius(program, linearise(program, solve(program).require()), s.Simultaneous()).stable


# --- local radius against observed rate -----------------------------------------------------------------------------

ORDERS: list[s.Order] = [
    s.Simultaneous(),
    s.Sequential(),
    s.Sequential(models=["m2", "m0", "m1"]),
    s.Cycle(rounds=[[["m0", "m1", "m2"]], [["m1"], ["m2", "m0"]], [["m2"]]]),
]
STEPS = [None, s.GradientSteps(count=1, size=0.4), s.GradientSteps(count=5, size=0.25)]
LONGER = [None, s.GradientSteps(count=1, size=1.8), s.GradientSteps(count=6, size=1.2)]
LOOPS = [
    ("gaussian_mean", 0, FAST, STEPS),
    ("gaussian_mean", 3, FAST, STEPS),
    ("linear_gaussian", 1, FAST | {"dim": 2}, STEPS),
    ("loglinear", 2, {"ridge": 0.3}, STEPS),
    ("categorical", 0, {"ridge": 0.0}, LONGER),
    ("mixed_finite", 1, {"ridge": 0.2}, STEPS),
    ("gaussian", 3, FAST | {"kinds": ("raw",)}, STEPS[:2]),
    ("mixed_vectors", 1, FAST, STEPS),
]


def cycle_jacobian(program: Program, star: Tensor, update: s.Update) -> np.ndarray:
    """Dense product over a cycle, by an implementation apart from the one under test."""
    simultaneous = update_jacobian(linearise(program, star), update.steps).toarray()
    product = np.eye(program.num_params)
    for number in range(cycle_length(update.order)):
        for step in steps_of_round(update.order, program.names, number):
            partial = np.eye(program.num_params)
            for i in step:
                partial[program.span(i)] = simultaneous[program.span(i)]
            product = partial @ product
    return product


@pytest.mark.parametrize(("family", "seed", "options", "many_steps"), LOOPS)
def test_local_radius_is_the_observed_rate(
    family: str, seed: int, options: dict[str, Any], many_steps: list[s.GradientSteps | None]
) -> None:
    """To 1e-3 where the dominant eigenvalue is real and a tenth above the next; elsewhere its logarithm to 12 %.

    There, runs start near the dominant eigenvector, so that what dies out sooner is gone; elsewhere anywhere near.
    """
    program = compile_ecosystem(random_ecosystem(family, 3, seed, **options))
    star = solve(program).require()
    lin = linearise(program, star)
    rng = np.random.default_rng(seed)
    sharp = 0
    for order, steps in itertools.product(ORDERS, many_steps):
        update = s.Update(order=order, steps=steps)
        local = local_radius(program, lin, order, steps)
        product = cycle_jacobian(program, star, update)
        values = np.linalg.eigvals(product)
        values = values[np.argsort(-np.abs(values))]
        assert local.stable
        assert local.cycle_radius == pytest.approx(abs(values[0]), rel=1e-6, abs=1e-9)
        apart = abs(values[0].imag) < 1e-9 and abs(values[1]) < 0.9 * abs(values[0])
        direction = rng.standard_normal(program.num_params)
        if apart:
            direction = np.linalg.matrix_power(product / abs(values[0]), 30) @ direction
        start = star + torch.from_numpy(0.02 * direction / np.linalg.norm(direction))
        rate, error = observed_rate(program, update, start, star, 1000)
        assert rate is not None
        assert error is not None
        if apart:
            sharp += 1
            assert rate == pytest.approx(local.radius, rel=1e-3)
        else:
            assert math.log(rate) == pytest.approx(math.log(local.radius), rel=0.12)
    assert sharp > 0 or family in ("gaussian_mean", "categorical", "mixed_vectors")  # dominant pairs are close there


# --- the paper's Theorem 3.6 ----------------------------------------------------------------------------------------

ROUNDS = {"together": [["m0", "m1"]], "first m0": [["m0"], ["m1"]], "first m1": [["m1"], ["m0"]]}
NINE = list(itertools.product(ROUNDS, ROUNDS))


@pytest.mark.parametrize("family", ["gaussian_mean", "loglinear", "categorical"])
@pytest.mark.parametrize("rounds", NINE)
def test_nine_orders_of_two_models_reach_one_stable_point(family: str, rounds: tuple[str, str]) -> None:
    """Theorem 3.6: two models, each of two rounds simultaneous, or one model before the other."""
    options = FAST | {"ridge": 6.0 if family == "loglinear" else 0.0, "sampling": False}
    if family == "categorical":
        options["kinds"] = ("raw",)
    program = compile_ecosystem(eco := random_ecosystem(family, 2, 8, **options))
    assert global_certificate(eco, program).contracts
    star = solve(program).require()
    order = s.Cycle(rounds=[ROUNDS[name] for name in rounds])
    theta = starts(program, 1)
    for number in range(150):
        theta = population_round(program, theta, s.Update(order=order), number)
    assert float((theta - star).abs().max()) < 1e-9
    assert local_radius(program, linearise(program, star), order).stable


@pytest.mark.parametrize("family", ["gaussian_mean", "gaussian", "mixed_finite", "linear_gaussian"])
@pytest.mark.parametrize("seed", [1, 2])
def test_stable_points_do_not_depend_on_the_order(family: str, seed: int) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, seed, **(FAST | {"dim": 2})))
    star = solve(program).require()
    for order, steps in itertools.product([*ORDERS, s.RandomOrder(probability=0.5)], STEPS):
        for number in range(cycle_length(order)):
            moved = population_round(program, star, s.Update(order=order, steps=steps), number)
            assert float((moved - star).norm()) < 1e-9 * (1 + float(star.norm()))


# --- empirical ------------------------------------------------------------------------------------------------------


def halving() -> tuple[Program, Tensor]:
    """One Gaussian mean, half real data: the error halves each round."""
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=np.array([1.0]), cov=np.array(1.0))},
        rewards={"r": s.LinearReward(vector=np.array([1.0]))},
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="r",
                sources=[s.Real(data="web", weight=0.5), s.Raw(producer="p", weight=0.5)],
            )
        },
    )
    return compile_ecosystem(eco), torch.ones(1, dtype=torch.float64)


def test_observed_rate_of_a_loop_that_halves() -> None:
    program, star = halving()
    rate, error = observed_rate(program, s.Update(), star + 3, star)
    assert rate == pytest.approx(0.5, abs=1e-6)
    assert error is not None
    assert error < 1e-5


def test_observed_rate_has_answers_for_short_and_for_no_runs() -> None:
    program, star = halving()
    assert observed_rate(program, s.Update(), star, star) == (None, None)
    rate, error = observed_rate(program, s.Update(), star + 1, star, 1)
    assert rate == pytest.approx(0.5)
    assert error is None
    rate, error = observed_rate(program, s.Update(), star + 1, star, 6)
    assert rate == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-9)
    apart = observed_rate(program, s.Update(steps=s.GradientSteps(count=1, size=8.0)), star + 1, star, 20)
    assert apart[0] == pytest.approx(3.0)


def test_deltas_are_relative_moves_of_each_model() -> None:
    program, _ = halving()
    history = [torch.tensor([x], dtype=torch.float64) for x in (2.0, 3.0, 0.0, 0.0, 1.0)]
    found = deltas(history, program)
    assert found.shape == (1, 4)
    assert found[0, :3].tolist() == [0.5, 1.0, 0.0]
    assert math.isnan(float(found[0, 3]))


def test_random_orders_are_estimated_within_their_error() -> None:
    """The estimate from the Jacobians against a long run of the loop itself on the same schedule."""
    program = compile_ecosystem(random_ecosystem("categorical", 3, 2, ridge=0.0))
    star = solve(program).require()
    order = s.RandomOrder(probability=0.7, seed=3)
    local = local_radius(program, linearise(program, star), order)
    assert local.estimated
    assert local.standard_error is not None
    theta, logs = star + 1e-3, []
    for number in range(400):
        before = float((theta - star).norm())
        theta = population_round(program, theta, s.Update(order=order), number)
        after = float((theta - star).norm())
        logs.append(math.log(after / before))
        theta = star + (theta - star) * (1e-5 / after)
    mean, spread = float(np.mean(logs[50:])), float(np.std(logs[50:])) / 350**0.5
    assert abs(mean - math.log(local.radius)) < 4 * (spread + local.standard_error / local.radius)
