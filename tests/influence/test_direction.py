from __future__ import annotations

import math

import pytest
import torch

from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.stable import solve
from crossfeed.influence.direction import (
    angle,
    antieigenvector,
    contributions,
    cosine,
    direction,
    example_two_models,
    flipping_reward,
    nearest_flip,
    sine_bounds,
)
from crossfeed.influence.matrix import Influence, influence
from ecosystems import random_ecosystem


def accretive(dim: int, seed: int, skew: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    b = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    return torch.eye(dim, dtype=torch.float64) + 0.3 * a @ a.T / dim + skew * (b - b.T)


def found_for(family: str, num_models: int, seed: int) -> Influence:
    eco = random_ecosystem(family, num_models, seed=seed, curation=True)
    program = compile_ecosystem(eco)
    return influence(eco, program, solve(program).require())


@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("skew", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_sharp_bound_is_attained_and_below_the_papers(dim: int, skew: float, seed: int) -> None:
    S = accretive(dim, seed, skew)
    paper, sharp = sine_bounds(S)
    assert paper is not None
    assert sharp is not None
    v = antieigenvector(S)
    attained = math.sin(angle(v, S @ v))
    assert sharp <= paper + 1e-9
    assert attained <= sharp + 1e-9
    assert attained == pytest.approx(sharp, abs=2e-6)


def test_positive_definite_matrices_have_kantorovichs_angle() -> None:
    # for symmetric S the antieigenvalue is 2√(ab)/(a+b), Kantorovich
    _, sharp = sine_bounds(torch.diag(torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)))
    assert sharp == pytest.approx(math.sqrt(1 - (2 * 3 / 10) ** 2), abs=1e-7)  # a minimum with a kink, found to √ε


def test_no_guarantee_without_accretivity() -> None:
    assert sine_bounds(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)) == (None, None)


@pytest.mark.parametrize("family", ["gaussian_mean", "loglinear", "linear_gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_a_guaranteed_sign_is_the_sign(family: str, seed: int) -> None:
    found = found_for(family, 3, seed)
    for i in found.intervened:
        d = direction(found, i)
        if d.sign_guaranteed:
            assert math.copysign(1, d.rho) == math.copysign(1, float(found.matrix[i, i]))
        if d.sharp_bound is not None:
            assert math.sin(min(d.turning_angle, math.pi / 2)) <= d.sharp_bound + 1e-8


def test_flip_angle_is_where_the_nearest_flip_lies() -> None:
    found = found_for("loglinear", 2, 1)
    span = found.program.span(0)
    g = found.alignment_gradient[found.program.primary[0], span]
    w = found.response[span, 0]
    flip = nearest_flip(g, w)
    assert float(flip @ w) == pytest.approx(0, abs=1e-12)
    assert math.acos(cosine(g, flip)) == pytest.approx(direction(found, 0).flip_angle, abs=1e-7)


@pytest.mark.parametrize("rotation", [0.5, 1.5, 2.5])
def test_example_4_6_points_right_and_backfires(rotation: float) -> None:
    A, a, g = example_two_models(6, rotation, 0.8)
    S = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - A)
    assert float(g @ a) > 0
    assert float(g @ S @ a) < 0


def test_no_reward_flips_a_push_that_is_not_turned() -> None:
    v = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert flipping_reward(v, 3 * v) is None
    with pytest.raises(ValueError, match="multiple of π"):
        example_two_models(4, 0.0, 0.5)


@pytest.mark.parametrize("basis", ["blocks", "eigen"])
def test_contributions_add_up(basis: str) -> None:
    found = found_for("loglinear", 3, 2)
    for i in found.intervened:
        span = found.program.span(i)
        g = found.alignment_gradient[found.program.primary[i], span]
        parts = contributions(found, i, basis)
        assert sum(c.distorted for c in parts) == pytest.approx(float(found.matrix[i, i]), rel=1e-9)
        assert sum(c.raw for c in parts) == pytest.approx(float(g @ found.push[span, i]), rel=1e-9)
