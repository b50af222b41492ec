"""Matrix-free products against dense matrices and finite differences; score route against pathwise route."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from free_examples import (
    ADAM,
    DATA,
    PEOPLE,
    REWARDS,
    SGD,
    TURNED,
    TWO_STAGES,
    beside,
    differences,
    drawn,
    flows,
    free,
    smooth,
    vectors,
)
from free_systems import Common, Source, dense, own_rows, product
from scipy.stats import t as student
from small_networks import diffusion, grey, move, relative, seeded
from torch import Tensor

from crossfeed.describe.schema import Pick
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.couplings import Couplings
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.free_influence import Outcomes
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates
from crossfeed.estimate.steps import Steps
from networks import tiny


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
