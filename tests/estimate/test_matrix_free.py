"""The matrix-free loop against dense matrices, the bank, finite differences, and models that are in fact solved anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from free_systems import Bent, Common, Flat, Source, dense, own_rows, product
from scipy.stats import t as student
from small_networks import diffusion, flow, grey, move, relative, seeded
from torch import Tensor

from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.describe.schema import Affine, Ecosystem, Pick
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.closed_form import ClosedForm
from crossfeed.estimate.couplings import Couplings
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.free_influence import Outcomes, solve_matrix_free
from crossfeed.estimate.horizon import adjoint, forward
from crossfeed.estimate.influence import Horizon, solve
from crossfeed.estimate.matrix_free import MatrixFree, Solver
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates
from crossfeed.estimate.steps import Steps
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.networks.build import build
from crossfeed.networks.rewards import build_reward
from crossfeed.networks.world import open_world
from networks import tiny

SGD = Training(steps=20, batch_size=10, optimizer="sgd", learning_rate=0.05, gradient_clip=None, weight_decay=0.1)
ADAM = Training(steps=20, batch_size=10, learning_rate=3e-3, weight_decay=0.01)
TWO_ROUNDS = [[[0, 1]], [[1], [0]]]


def right(prompts: Tensor, y: Tensor) -> Tensor:
    return y[:, 0] + 0.3 * y[:, 1] ** 2


def up(prompts: Tensor, y: Tensor) -> Tensor:
    return y[:, 1] - 0.2 * (y[:, 0] - 1) ** 2


REWARDS = {"right": right, "up": up}
PEOPLE = {"p": "right", "q": "up"}
TWO_STAGES = Pick(candidates=2, noise=0.1, temperature=0.7, then=Pick(candidates=2, curator="up"))


def moved_flow(name: str, seed: int) -> Differentiable:
    network = flow(bins=3)
    move(network, 0.2, seed=seed)
    model = differentiable(network)
    model.name = name
    return model


def gaussian(name: str) -> ClosedForm:
    return ClosedForm(name, GaussianFull(2), torch.tensor([0.3, -0.2, 0.1, -0.3, 0.2], dtype=torch.float64))


DATA = 2 * torch.randn(40, 2, generator=seeded(50), dtype=torch.float64)
TURNED = Affine(matrix=[[0.9, 0.2], [-0.1, 0.8]], shift=[0.1, 0.0])
OTHERS = Pick(candidates=2, other_curator="right", other_share=0.3)


def flows(num: int = 30) -> Common:
    """p takes data, its own curated outputs and q's, mapped; q p's raw ones and its own, curated by two kinds of people."""
    sources = [
        Source("p", 0.4, data=DATA),
        Source("p", 0.3, "p", TWO_STAGES),
        Source("p", 0.3, "q", Pick(candidates=3), map=TURNED),
        Source("q", 0.3, data=-DATA),
        Source("q", 0.4, "p"),
        Source("q", 0.3, "q", OTHERS),
    ]
    return Common({name: moved_flow(name, k) for k, name in enumerate("pq", 1)}, sources, PEOPLE, REWARDS, num)


def beside(num: int = 40) -> Common:
    """p is a flow on data and q's picks; q a Gaussian on p's raw and curated outputs, mapped, and on its own."""
    sources = [
        Source("p", 0.6, data=DATA),
        Source("p", 0.4, "q", Pick(candidates=2)),
        Source("q", 0.2, data=-DATA),
        Source("q", 0.2, "p"),
        Source("q", 0.4, "p", TWO_STAGES, map=TURNED),
        Source("q", 0.2, "q", OTHERS),
    ]
    return Common({"p": moved_flow("p", 1), "q": gaussian("q")}, sources, PEOPLE, REWARDS, num)


def smooth(num: int = 40) -> Common:
    """Two models that are smooth in everything: a small network and a Gaussian."""
    sources = [
        Source("p", 0.5, data=DATA),
        Source("p", 0.2, "p", TWO_STAGES),
        Source("p", 0.3, "q", Pick(candidates=2), map=TURNED),
        Source("q", 0.4, data=-DATA),
        Source("q", 0.3, "p"),
        Source("q", 0.3, "p", Pick(candidates=3, noise=0.1)),
    ]
    return Common({"p": Bent("p", 0), "q": gaussian("q")}, sources, PEOPLE, REWARDS, num, decay=0.3)


def free(common: Common, *, pathwise: Any = None, steps: Any = None, ridge: float = 1e-3, **rest: Any) -> MatrixFree:
    rates = rest.pop("rates", None) or RewardRates(smooth=common.rewards)
    steps = steps or [Steps(None)] * len(common.models)
    ridges = [ridge] * len(common.models)
    return MatrixFree(common.models, common.draws(), steps, ridges, rates=rates, pathwise=pathwise, **rest)


def vectors(loop: MatrixFree, seed: int, columns: int = 1) -> Tensor:
    return torch.randn(sum(loop.sizes), columns, generator=seeded(seed), dtype=torch.float64)


def transposes(loop: MatrixFree, limit: float) -> None:
    """⟨u, B v⟩ = ⟨Bᵀ u, v⟩."""
    u, v = (list(vectors(loop, seed).split(loop.sizes)) for seed in (1, 2))
    one = sum(float((u[i] * loop.coupling(i, v)).sum()) for i in range(len(u)))
    back = [loop.coupling_transpose(i, part) for i, part in enumerate(u)]
    other = sum(float((found * v[j]).sum()) for parts in back for j, found in parts.items())
    assert one == pytest.approx(other, rel=limit)


# --- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["exact", "adamw"])
def test_flows_by_their_likelihood_are_the_dense_matrix(optimizer: str) -> None:
    common = flows()
    steps = [Steps(None), Steps(None)] if optimizer == "exact" else [Steps(ADAM), Steps(SGD)]
    loop = free(common, pathwise=(), steps=steps)
    assert (loop.models[0].scale is None) == (optimizer == "exact")
    D, v = dense(loop, common.models), vectors(loop, 3, 2)
    assert relative(product(loop, v), D @ v) < 1e-10
    assert relative(product(loop, v, transpose=True), D.T @ v) < 1e-10
    transposes(loop, 1e-9)
    H = dense(loop, common.models, coupled=False)[: loop.sizes[0], : loop.sizes[0]]
    added = loop.ridge[0] + loop.steps[0].decay
    assert loop.trace(0) == pytest.approx(float(H.trace()) - added * loop.sizes[0])


def test_language_models_are_the_dense_matrix(tmp_path: Path) -> None:
    eco = tiny.languages(tmp_path)
    models, draws, _ = drawn(eco, Size(24, 12, 2), shift=0.1)
    loop = MatrixFree(models, draws, [Steps(ADAM), Steps(None)], [1e-3, 1e-3])
    D, v = dense(loop, models), vectors(loop, 3)
    assert relative(product(loop, v), D @ v) < 1e-4
    assert relative(product(loop, v, transpose=True), D.T @ v) < 1e-4
    transposes(loop, 1e-3)


def differences(common: Common, x: list[Tensor], h: float) -> list[Tensor]:
    """How F moves when everything that makes samples moves along x, by model."""
    ends = [common.force(common.moved([c[:, 0] for c in x], sign * h), own=common.here) for sign in (1, -1)]
    return [(one - other).double() / (2 * h) for one, other in zip(*ends, strict=True)]


@pytest.mark.parametrize("make", [beside, smooth])
def test_samplers_are_differences_of_the_mean_gradient(make: Any) -> None:
    """With common noise F is a smooth function of the makers' parameters, and B its derivative."""
    common = make()
    keep = [k for k, s in enumerate(common.sources) if not (make is beside and s.consumer == "p" and s.producer)]
    common.sources, common.noises = [common.sources[k] for k in keep], [common.noises[k] for k in keep]
    loop = free(common, pathwise={"p", "q"})
    x = list(vectors(loop, 4).split(loop.sizes))
    for i, want in enumerate(differences(common, x, 1e-6)):
        found = loop.coupling(i, x)[:, 0]
        assert float((found - want).norm()) <= 1e-5 * float(want.norm())
    transposes(loop, 1e-9)
    measured = free(common, pathwise={"p", "q"}, rates=RewardRates(common.rewards))
    for i in range(2):  # the rewards are quadratic: differences of them are exact
        torch.testing.assert_close(measured.coupling(i, x), loop.coupling(i, x), rtol=1e-6, atol=1e-8)
    with pytest.raises(NotAvailableError, match="solve forward"):
        measured.coupling_transpose(1, x[1])


def test_both_kinds_of_makers_in_one_ecosystem() -> None:
    """The flow by its sampler, the Gaussian by its likelihood; transposes, drift, and the trace of an exact curvature."""
    common = beside()
    loop = free(common, pathwise={"p"}, ridge=0.1)
    transposes(loop, 1e-9)
    for found, want in zip(loop.drift(), common.force(common.here), strict=True):
        assert relative(-found[:, 0], want) < 1e-10
    e = torch.eye(5, dtype=torch.float64)
    assert loop.trace(1) == pytest.approx(float(loop.curvature(1, e).trace()) - 0.5)
    found = loop.respond(1, e, 0)
    torch.testing.assert_close(loop.curvature(1, found), e)


def test_alignment_is_a_difference_too() -> None:
    common = beside()
    loop = free(common, pathwise={"p"})
    x, h = list(vectors(loop, 5, 2).split(loop.sizes)), 1e-5
    ends = [
        torch.stack([common.values(common.moved([c[:, k] for c in x], sign * h)) for k in range(2)], 1)
        for sign in (1, -1)
    ]
    want = ((ends[0] - ends[1]) / (2 * h))[0]
    torch.testing.assert_close(Outcomes(loop).along(x)[0], want, rtol=1e-6, atol=1e-8)
    measured = free(common, pathwise={"p"}, rates=RewardRates(common.rewards))
    torch.testing.assert_close(Outcomes(measured).along(x)[0], want, rtol=1e-6, atol=1e-8)


def test_both_routes_estimate_the_same() -> None:
    """Three projections uᵀB v from a flow to a Gaussian, 16 draws each: t-tests at a false-alarm rate of 1e-4 in all."""
    off, size = [], []
    models = beside(2).models
    sources = [Source("q", 0.4, "p"), Source("q", 0.6, "p", TWO_STAGES, map=TURNED), Source("p", 1.0, data=DATA)]
    for seed in range(16):
        common = Common(models, sources, PEOPLE, REWARDS, 200)
        for k in range(2):
            made = common.noises[k]
            assert made is not None
            common.noises[k] = torch.randn(made.shape, generator=seeded(1000 + 2 * seed + k), dtype=torch.float64)
        routes = [free(common, pathwise=pathwise) for pathwise in ((), ("p",))]
        u, v = vectors(routes[0], 8, 3).split(routes[0].sizes)[1], vectors(routes[0], 9, 3)
        both = [(u * loop.coupling(1, list(v.split(loop.sizes)))).sum(0) for loop in routes]
        off.append(both[0] - both[1])
        size.append(both[1])
    found = torch.stack(off)
    error = found.std(0) / len(off) ** 0.5
    assert float((found.mean(0) / error).abs().max()) < student.isf(1e-4 / 2 / 3, len(off) - 1)
    assert float((torch.stack(size).mean(0) / error).abs().max()) > 10  # there is something to tell apart


def test_gradients_of_flows_jump_which_samplers_miss() -> None:
    """Why a flow may not be trained on what is taken pathwise: differences that cross knots side with the likelihood."""
    common = Common(flows(2).models, [Source("q", 1.0, "p")], PEOPLE, REWARDS, 4000)
    x = list(vectors(free(common, pathwise=()), 4).split([168, 168]))
    x = [part / part.norm() for part in x]
    want = differences(common, x, 0.03)[1]
    found = {
        pathwise: Couplings("pq", free(common, pathwise=()).models, common.draws(), [1.0], pathwise, RewardRates())
        for pathwise in ("", "p")
    }
    assert relative(found[""].along(1, x)[:, 0], want) < 0.4
    assert relative(found["p"].along(1, x)[:, 0], want) > 1.5


def test_diffusion_networks_by_their_sampler() -> None:
    """Float32, and start noise so small that nothing is cut; picks by a smooth reward, by differences as by autograd."""
    models: dict[str, Differentiable] = {}
    for k, name in enumerate("pq"):
        network = diffusion(evaluation_steps=None, sampling_steps=2)
        move(grey(network), 0.003, seed=k)
        models[name] = differentiable(network)
        models[name].name = name

    def warm(prompts: Tensor, y: Tensor) -> Tensor:
        return 60 * (y[:, 0].mean((1, 2)) - y[:, 2].mean((1, 2))) + prompts * y.square().mean((1, 2, 3))

    data = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    sources = [
        Source("p", 0.5, data=data),
        Source("p", 0.5, "q", Pick(candidates=2)),
        Source("q", 0.6, "p"),
        Source("q", 0.4, "q", Pick(candidates=2, curator="warm")),
    ]
    common = Common(models, sources, {"p": "warm", "q": "warm"}, {"warm": warm}, 6, noise=1e-3)
    loop = free(common)
    assert loop.pathwise == {"p", "q"}
    sizes = torch.cat([flatten(model.parameters()).abs() for model in models.values()])
    x, h = list((vectors(loop, 4) * sizes[:, None]).split(loop.sizes)), 3e-3
    for i, want in enumerate(differences(common, x, h)):
        assert relative(loop.coupling(i, x)[:, 0], want) < 5e-2
    measured = free(common, rates=RewardRates(common.rewards, step=1e-2))
    for i in range(2):
        assert relative(measured.coupling(i, x), loop.coupling(i, x)) < 1e-3
    values = [common.values(common.moved([c[:, 0] for c in x], sign * h)) for sign in (1, -1)]
    torch.testing.assert_close(
        Outcomes(measured).along(x)[:, 0], (values[0] - values[1]) / (2 * h), rtol=2e-2, atol=1e-3
    )
    transposes(loop, 1e-3)
    i, c = 0, x[0]
    rows = own_rows(
        models["p"], models["p"].curvature_terms, models["p"].curvature_batch(torch.arange(6) % 3, data, seeded(0))
    )
    alone = replace(common.draws(), sources=common.draws().sources[:1])
    one = MatrixFree({"p": models["p"]}, Draws(alone.sources, []), [Steps(None)], [0.0])
    assert relative(one.curvature(i, c)[:, 0], 0.5 * (rows.T @ (rows @ c[:, 0].float())).double() / 6) < 1e-3


# --- influence ------------------------------------------------------------------------------------------------------


def drawn(eco: Ecosystem, size: Size, shift: float, **rest: Any) -> tuple[dict[str, Differentiable], Draws, Any]:
    world = open_world(eco)
    networks = build(world)
    for k, network in enumerate(networks.values()):
        move(network, shift, seed=k)
    rewards = {name: build_reward(node, world, name=name) for name, node in eco.rewards.items()}
    prompts = {name: torch.zeros(20, dtype=torch.int64) for name in eco.models}
    if world.medium == "text":
        prompts = {name: torch.arange(20) for name in eco.models}
    draws = network_draws(world, networks, rewards, prompts, size, 0, **rest)
    return {name: differentiable(network) for name, network in networks.items()}, draws, rewards


@pytest.mark.parametrize("rounds", [TWO_ROUNDS, None])
def test_bank_and_passes_give_the_same_influence(rounds: Any) -> None:
    """Flows in float32, AdamW on one side: same samples, same curvature rows, same answer."""
    eco = tiny.flows()
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=3)}) for name, model in eco.models.items()}
    models, draws, _ = drawn(eco.model_copy(update={"models": small}), Size(120, 60), shift=0.1)
    trainings = {"p": ADAM, "q": SGD} if rounds else {"p": None, "q": None}
    steps = [Steps(training) for training in trainings.values()]
    bank = build_bank(models, draws, trainings, limit=10**6, curvature_samples=60)
    horizon = Horizon(rounds, steps, [0.3, 0.3])
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
