"""Influence by passes against the bank, the adjoint, and models that are in fact solved anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from free_examples import (
    ADAM,
    REWARDS,
    SGD,
    TWO_ROUNDS,
    beside,
    differences,
    drawn,
    free,
    smooth,
    vectors,
)
from free_systems import Common, Flat, Source, own_rows, product
from small_networks import diffusion, grey, move, relative, seeded
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.describe.schema import Pick
from crossfeed.estimate.bank import Bank, build_bank
from crossfeed.estimate.closed_form import ClosedForm
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.draws import some_picks
from crossfeed.estimate.free_influence import Outcomes, solve_matrix_free
from crossfeed.estimate.horizon import adjoint, forward
from crossfeed.estimate.influence import Horizon, solve
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates
from crossfeed.estimate.solver import Solver
from crossfeed.estimate.steps import Steps
from crossfeed.families.gaussian import GaussianMean
from networks import tiny


def as_passes_do(bank: Bank, models: dict[str, Any], fisher: float) -> Bank:
    """The bank with the curvature and couplings of :mod:`crossfeed.estimate.passes`."""
    sources = []
    for rows in bank.sources:
        draw, name = rows.draw, bank.names[rows.consumer]
        groups, pick = some_picks(draw, 60, 0)
        batch = models[name].curvature_batch(
            draw.prompts[groups], draw.outputs[groups * draw.candidates + pick], seeded(0)
        )
        h = own_rows(models[name], models[name].curvature_terms, batch).double()
        scale = bank.models[rows.consumer].basis.scale
        h = h if scale is None else h * scale.double()
        share = (draw.probabilities / len(draw.probabilities)).flatten()
        phi = rows.loss.double()
        matrix = (1 - fisher) * h.T @ h / len(h) + fisher * phi.T @ (share[:, None] * phi)
        sources.append(replace(rows, hessian=lambda weights, matrix=matrix: matrix, mirrored=False))
    return replace(bank, sources=sources)


@pytest.mark.parametrize("rounds", [TWO_ROUNDS, None])
def test_bank_and_passes_give_the_same_influence(rounds: Any) -> None:
    """Flows in float32, AdamW on one side: same samples, same curvature rows, same answer.

    Passes take one pick of every group for the curvature and B as the samples have it, where a bank weighs all candidates and knows that
    B = −C on a model's own raw outputs; here it is told to do as they do.
    """
    eco = tiny.flows()
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=3)}) for name, model in eco.models.items()}
    models, draws, _ = drawn(eco.model_copy(update={"models": small}), Size(120, 60), shift=0.1)
    trainings = {"p": ADAM, "q": SGD} if rounds else {"p": None, "q": None}
    steps = [Steps(training) for training in trainings.values()]
    fisher = 0.4 if rounds else 0.0
    bank = as_passes_do(build_bank(models, draws, trainings, limit=10**6), models, fisher)
    horizon = Horizon(rounds, steps, [0.3, 0.3], fisher)
    directions: list[dict[int, float]] = [{0: -1.0, 1: 1.0}, {3: -1.0, 4: 1.0}]
    want = solve(bank, horizon, directions)
    solver = Solver(curvature_samples=60, tolerance=1e-5)
    found = solve_matrix_free(models, draws, horizon, directions, solver=solver)
    assert found.result == "converged"
    scale = want.matrix.abs().max()
    for mine, theirs in ((found.matrix, want.matrix), (found.isolated, want.isolated), (found.push, want.push)):
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=1e-3, atol=1e-4)
    assert relative(found.values, torch.tensor([j.value for j in want.judged], dtype=torch.float64)) < 1e-6
    assert not torch.allclose(want.matrix, want.isolated, rtol=1e-2)


@pytest.mark.parametrize("make", [smooth, beside])
def test_forward_and_backward_agree(make: Any) -> None:
    """⟨∇J, x⟩ = ⟨dJ/dv, v⟩ over a horizon."""
    loop = free(make(20), pathwise={"p"}, steps=[Steps(ADAM), Steps(SGD)], solver=Solver(tolerance=1e-9))
    pushes = loop.pushes([{0: -1.0, 1: 1.0}])
    goals = [torch.zeros(loop.sizes[0], 1, dtype=torch.float64), Outcomes(loop).gradient(1)[:, None]]
    ahead = forward(loop, TWO_ROUNDS, pushes).end
    back = adjoint(loop, TWO_ROUNDS, goals).total
    one = sum(float((g * x).sum()) for g, x in zip(goals, ahead, strict=True))
    other = sum(float((c * v).sum()) for c, v in zip(back, pushes, strict=True))
    assert one == pytest.approx(other, rel=1e-6)


def test_a_network_beside_a_closed_form_model_solved_anew() -> None:
    """Both are brought to their stable point, then again at shifted mixtures, with common noise."""
    common = smooth()
    steps = [Steps(Training(steps=1, optimizer="sgd", weight_decay=0.3))] * 2
    there, D = settle(common, steps)
    loop = free(common, pathwise={"p", "q"}, steps=steps, ridge=0.0)
    assert max(float(part.abs().max()) for part in loop.drift()) < 1e-9
    directions: list[dict[int, float]] = [{0: -1.0, 1: 1.0}, {3: -1.0, 5: 1.0}]
    h, want = 1e-4, []
    for slopes in directions:
        ends = []
        for sign in (1, -1):
            mixture = [s.weight + sign * h * slopes.get(k, 0.0) for k, s in enumerate(common.sources)]
            ends.append(common.values(settle(common, steps, mixture, D)[0]))
        want.append((ends[0] - ends[1]) / (2 * h))
    common.models["p"].theta, common.models["q"]._theta = there["p"], there["q"]["theta"]  # type: ignore[attr-defined]
    horizon = Horizon(None, steps, [0.0, 0.0])
    for rates, limit in ((RewardRates(smooth=REWARDS), 1e-6), (RewardRates(REWARDS), 1e-6)):
        found = solve_matrix_free(common.models, common.draws(), horizon, directions, rates=rates, pathwise={"p", "q"})
        assert found.result == "converged"
        torch.testing.assert_close(found.matrix, torch.stack(want, 1), rtol=limit, atol=1e-7)
        assert not torch.allclose(found.matrix, found.isolated, rtol=0.05)
    back = loop.stable([x for x in vectors(loop, 2).split(loop.sizes)], transpose=True)
    ahead = loop.stable([x for x in vectors(loop, 1).split(loop.sizes)])
    one = float((torch.cat(ahead.value) * vectors(loop, 2)).sum())
    assert one == pytest.approx(float((torch.cat(back.value) * vectors(loop, 1)).sum()), rel=1e-6)


def settle(common: Common, steps: Any, mixture: Any = None, D: Tensor | None = None) -> tuple[Any, Tensor]:
    """A stable point, at which the models are afterwards, and D at it or near it; by Newton steps that keep D for a while, or for good."""
    p, q, kept = common.models["p"], common.models["q"], D
    for k in range(60):
        F = torch.cat(common.force(common.here, mixture))
        if D is not None and float(F.abs().max()) < 1e-12:
            return common.here, D
        loop = free(common, pathwise={"p", "q"}, steps=steps, ridge=0.0, mixture=mixture)
        if kept is None and k % 4 == 0:
            D = product(loop, torch.eye(len(F), dtype=torch.float64))
        step = torch.linalg.solve(D, -F)
        at = common.moved(list(step.split(loop.sizes)), min(1.0, 1 / float(step.norm())))
        p.theta, q._theta = at["p"], at["q"]["theta"]  # type: ignore[attr-defined]
    raise AssertionError(f"not settled: {float(F.abs().max()):.1e}")


def test_a_diffusion_network_beside_a_gaussian_on_its_pixels() -> None:
    """q is a Gaussian on 192 pixels, trained on p's picked images, p on q's; p by its sampler, q by its likelihood."""
    network = diffusion(evaluation_steps=None, sampling_steps=2)
    move(grey(network), 0.003)
    shape = (3, 8, 8)
    family = GaussianMean(0.01 * torch.eye(192, dtype=torch.float64)[None])
    models: Any = {
        "p": Flat(differentiable(network), shape),
        "q": ClosedForm("q", family, torch.full((192,), 0.5, dtype=torch.float64)),
    }
    rewards = {"red": lambda prompts, y: 50 * (y[:, :64].mean(1) - y[:, 128:].mean(1))}
    data = torch.rand(6, 192, generator=seeded(1), dtype=torch.float64)
    sources = [
        Source("p", 0.5, data=data),
        Source("p", 0.5, "q", Pick(candidates=2)),
        Source("q", 0.4, data=data),
        Source("q", 0.6, "p", Pick(candidates=2)),
    ]
    common = Common(models, sources, {"p": "red", "q": "red"}, rewards, 6, noise=1e-3)
    both = free(common, pathwise={"p", "q"}, rates=RewardRates(rewards))
    sizes = flatten(models["p"].parameters()).abs().double()
    x = list(vectors(both, 4).split(both.sizes))
    x[0] = x[0] * sizes[:, None]
    assert relative(both.coupling(1, x)[:, 0], differences(common, x, 3e-3)[1]) < 5e-2
    steps = [Steps(ADAM), Steps(None)]
    found = solve_matrix_free(
        models,
        common.draws(),
        Horizon([[[0], [1]]], steps, [1e-3, 1e-3]),
        [{0: -1.0, 1: 1.0}, {2: -1.0, 3: 1.0}],
        rates=RewardRates(rewards),
        solver=Solver(tolerance=1e-2),
    )
    assert found.loop.pathwise == {"p"}
    assert bool(found.matrix.isfinite().all())
    assert found.matrix[1, 1] > 0  # more of p's picked images
    assert found.isolated[0, 1] == 0
