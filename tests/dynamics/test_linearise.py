"""D and everything made of it against automatic and numerical differentiation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow import ECOSYSTEMS
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics import linearise as module
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import population_round, round_map
from crossfeed.dynamics.stable import solve
from crossfeed.errors import NotStableError
from ecosystems import FAMILIES, random_ecosystem

every_family = pytest.mark.parametrize("family", FAMILIES)


def somewhere(program: Program, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return program.start + torch.from_numpy(0.3 * rng.normal(size=program.num_params))


def dense(program: Program, theta: Tensor) -> Tensor:
    """∂F/∂Θ by differentiating the whole gradient, in reverse mode, a row at a time."""
    at = theta.clone().requires_grad_(True)
    F = program.gradient(at)
    return torch.stack([torch.autograd.grad(f, at, retain_graph=True)[0] for f in F])


@every_family
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_and_products_are_the_jacobian_of_the_gradient(family: str, seed: int) -> None:
    program = compile_ecosystem(random_ecosystem(family, 4, seed))
    theta = somewhere(program, seed)
    lin, want = linearise(program, theta), dense(program, theta)
    torch.testing.assert_close(torch.from_numpy(lin.matrix.toarray()), want, rtol=1e-9, atol=1e-10)
    X = torch.from_numpy(np.random.default_rng(seed).normal(size=(program.num_params, 3)))
    torch.testing.assert_close(lin.apply(X), want @ X, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lin.apply(X, transpose=True), want.T @ X, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(ECOSYSTEMS))
def test_blocks_are_a_central_difference_of_the_gradient(kind: str) -> None:
    program = compile_ecosystem(ECOSYSTEMS[kind]())
    theta, h = somewhere(program, 2), 1e-5
    eye = h * torch.eye(program.num_params, dtype=torch.float64)
    slope = (program.gradient(theta + eye) - program.gradient(theta - eye)).T / (2 * h)
    torch.testing.assert_close(
        torch.from_numpy(linearise(program, theta).matrix.toarray()), slope, rtol=1e-6, atol=1e-8
    )


@every_family
def test_mean_gradients_add_up_to_the_gradient(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, 2))
    theta = somewhere(program, 3)
    lin = linearise(program, theta)
    total = torch.zeros_like(theta)
    for group in program.model_groups:
        ridge = program.settings[group.ridge_slot][:, None]
        total[group.theta_index] += ridge * theta[group.theta_index]
    for group, mean in zip(program.source_groups, lin.mean_gradient, strict=True):
        rows = program.model_groups[group.group].theta_index[group.row]
        total.index_add_(0, rows.flatten(), (program.settings[group.weight_slot][:, None] * mean).flatten())
    torch.testing.assert_close(total, program.gradient(theta), rtol=1e-11, atol=1e-11)


def setting_slope(program: Program, theta: Tensor, slot: int) -> Tensor:
    """Central difference of F by one setting, extrapolated."""

    def slope(h: float) -> Tensor:
        step = torch.zeros_like(program.settings)
        step[slot] = h
        return (program.gradient(theta, program.settings + step) - program.gradient(theta, program.settings - step)) / (
            2 * h
        )

    return (4 * slope(1e-4) - slope(2e-4)) / 3


@pytest.mark.parametrize("name", [*ECOSYSTEMS, *FAMILIES])
def test_every_setting_has_its_gradient(name: str) -> None:
    eco = ECOSYSTEMS[name]() if name in ECOSYSTEMS else random_ecosystem(name, 3, 4)
    program = compile_ecosystem(eco)
    theta = somewhere(program, 5)
    lin = linearise(program, theta)
    first: dict[str, str] = {}
    for path, slot in program.slots.items():
        value = float(program.settings[slot])
        if math.isinf(value) or (path.endswith("temperature") and value == 0):
            continue  # the rule itself is a limit there, not a number to move
        got, want = lin.setting_gradient(path), setting_slope(program, theta, slot)
        if path.endswith(".weight"):  # shares sum to 1: only moves of weight from one source to another have a meaning
            other = first.setdefault(path.split(".")[0], path)
            got = got - lin.setting_gradient(other)
            want = want - setting_slope(program, theta, program.slots[other])
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-8, msg=lambda m, p=path: f"{p}: {m}")


@every_family
def test_direct_and_iterative_solves_agree(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_ecosystem(random_ecosystem(family, 5, 5, real=0.5))
    theta = solve(program).require()
    B = torch.from_numpy(np.random.default_rng(0).normal(size=(program.num_params, 7)))
    B[:, 2] = 0
    for transpose in (False, True):
        direct = linearise(program, theta).solve(B, transpose)
        with monkeypatch.context() as patch:
            patch.setattr(module, "DIRECT_LIMIT", 0)
            patch.setattr(module, "CHUNK_DOUBLES", program.num_params * 40 * 3)
            iterative = linearise(program, theta).solve(B, transpose)
        assert direct.result == iterative.result == "converged"
        assert direct.residual < 1e-9
        assert iterative.residual < 1e-9
        assert iterative.steps > 1
        torch.testing.assert_close(direct.value, iterative.value, rtol=1e-7, atol=1e-8)
        want = torch.linalg.solve(dense(program, theta).T if transpose else dense(program, theta), B)
        torch.testing.assert_close(direct.value, want, rtol=1e-7, atol=1e-8)


@every_family
def test_round_jacobian_is_the_derivative_of_a_round(family: str) -> None:
    """G = I − H⁻¹D holds at a stable point, where T(Θ) = Θ."""
    program = compile_ecosystem(random_ecosystem(family, 4, 6))
    theta, h = solve(program).require(), 1e-4
    eye = h * torch.eye(program.num_params, dtype=torch.float64)

    def slope(k: float) -> Tensor:
        return (round_map(program, theta + k * eye) - round_map(program, theta - k * eye)).T / (2 * k * h)

    G = linearise(program, theta).round_jacobian()
    torch.testing.assert_close(torch.from_numpy(G.toarray()), (4 * slope(1) - slope(2)) / 3, rtol=1e-6, atol=1e-7)


@every_family
def test_isolated_solve_freezes_the_other_models(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 4, 7))
    theta = solve(program).require()
    lin = linearise(program, theta)
    D = torch.from_numpy(lin.matrix.toarray())
    frozen = torch.zeros_like(D)
    for i in range(program.num_models):
        frozen[program.span(i), program.span(i)] = D[program.span(i), program.span(i)]
    B = torch.from_numpy(np.random.default_rng(1).normal(size=(program.num_params, 4)))
    torch.testing.assert_close(lin.isolated(B), torch.linalg.solve(frozen, B), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(lin.isolated(B, transpose=True), torch.linalg.solve(frozen.T, B), rtol=1e-8, atol=1e-9)


def test_edges_can_be_left_out_one_by_one() -> None:
    program = compile_ecosystem(ECOSYSTEMS["finite"]())
    theta = somewhere(program, 8)
    lin = linearise(program, theta)
    whole = lin.matrix.toarray()
    pieces = [
        lin.sparse(lambda s, k=k: s == k).toarray() - lin.sparse(lambda s: False).toarray()
        for k in range(len(program.sources))
    ]
    np.testing.assert_allclose(sum(pieces) + lin.sparse(lambda s: False).toarray(), whole, atol=1e-14)
    for info, piece in zip(program.sources, pieces, strict=True):
        if info.producer is None:
            assert not piece.any()
        else:
            inside = np.zeros_like(piece)
            inside[program.span(info.consumer), program.span(info.producer)] = piece[
                program.span(info.consumer), program.span(info.producer)
            ]
            np.testing.assert_array_equal(piece, inside)
            assert piece.any()


def test_an_ecosystem_without_feedback_has_no_round_jacobian() -> None:
    eco = s.Ecosystem(
        space=s.Vectors(dim=2),
        data={"web": s.MomentsData(mean=[0.0, 1.0], cov=1.0)},
        rewards={"r": s.LinearReward(vector=[1.0, 0.0])},
        models={"p": s.Model(family=s.GaussianMean(), reward="r", sources=[s.Real(data="web", weight=1.0)])},
    )
    program = compile_ecosystem(eco)
    lin = linearise(program, program.start)
    assert lin.round_jacobian().nnz == 0
    np.testing.assert_array_equal(lin.matrix.toarray(), np.eye(2))


def copies(weight: float) -> Program:
    """One model fed ``weight`` of its own outputs as they are, the rest real."""
    sources: list[s.Source] = [s.Raw(producer="p", weight=weight)]
    if weight < 1:
        sources.append(s.Real(data="web", weight=1 - weight))
    eco = s.Ecosystem(
        space=s.Vectors(dim=2),
        data={"web": s.MomentsData(mean=[1.0, -1.0], cov=1.0)},
        rewards={"r": s.LinearReward(vector=[1.0, 0.0])},
        models={"p": s.Model(family=s.GaussianMean(), reward="r", sources=sources)},
    )
    return compile_ecosystem(eco)


@pytest.mark.parametrize("limit", [3000, 0], ids=["direct", "iterative"])
def test_a_singular_system_gives_no_solution(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that only copies itself stands still everywhere: D = 0."""
    monkeypatch.setattr(module, "DIRECT_LIMIT", limit)
    program = copies(1.0)
    lin = linearise(program, program.start)
    np.testing.assert_array_equal(lin.matrix.toarray(), 0)
    B = torch.ones(2, 1).double()
    if limit:
        found = lin.solve(B)
        assert found.result == "budget"
        assert found.residual == math.inf
    else:
        with pytest.raises(NotStableError, match=r"models\.p: D_ii is singular.*give it a ridge or real data"):
            lin.solve(B)


@pytest.mark.parametrize("weight", [0.9, 0.999, 1 - 1e-9])
def test_nearly_copying_is_solved_and_amplifies(weight: float) -> None:
    program = copies(weight)
    found = linearise(program, program.start).solve(torch.ones(2, 1).double())
    assert found.result == "converged"
    torch.testing.assert_close(found.value, torch.full((2, 1), 1 / (1 - weight)).double(), rtol=1e-6, atol=0)


def test_a_flat_curvature_is_named() -> None:
    """Log-linear features that never vary: nothing determines their parameter."""
    eco = s.Ecosystem(
        space=s.Outcomes(count=3),
        data={"web": s.DistributionData(weights=[1, 2, 3])},
        rewards={"r": s.TableReward(values=[0, 1, 2])},
        models={
            "good": s.Model(
                family=s.LogLinear(features=[0.0, 1.0, 3.0]), reward="r", sources=[s.Real(data="web", weight=1.0)]
            ),
            "flat": s.Model(
                family=s.LogLinear(features=[2.0, 2.0, 2.0]),
                reward="r",
                sources=[s.Real(data="web", weight=0.5), s.Raw(producer="good", weight=0.5)],
            ),
        },
    )
    program = compile_ecosystem(eco)
    with pytest.raises(NotStableError, match=r"models\.flat: the curvature H is singular.*collinear features"):
        linearise(program, program.start).round_jacobian()


def test_orders_change_the_round_but_not_the_point() -> None:
    program = compile_ecosystem(random_ecosystem("categorical", 4, 9))
    theta = solve(program).require()
    for order in (s.Simultaneous(), s.Sequential(), s.Sequential(models=["m3", "m1", "m0", "m2"])):
        after = population_round(program, theta, s.Update(order=order))
        torch.testing.assert_close(after, theta, rtol=0, atol=1e-11)
