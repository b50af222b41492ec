"""Rewards and picks along tangents, draws that keep their start noise, and what cannot be taken pathwise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from free_systems import Bent, Common, Source
from scipy.stats import norm
from small_networks import flow, seeded
from torch import Tensor

from crossfeed.describe.schema import Ecosystem, LinearReward, Pick, QuadraticReward
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate.draws import SourceDraw
from crossfeed.estimate.free_influence import Outcomes
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates, pick_pull, pick_tangent, smooth_rewards
from crossfeed.estimate.picks import pick_probabilities
from crossfeed.estimate.steps import Steps
from crossfeed.networks.build import build
from crossfeed.networks.image_rewards import hue_band
from crossfeed.networks.rewards import build_reward
from crossfeed.networks.world import open_world
from networks import tiny

EXACT = [Steps(None), Steps(None)]
WARM = [(0.92, 1.0), (0.0, 0.17)]


def tilt(prompts: Tensor, y: Tensor) -> Tensor:
    return torch.sin(y[:, 0]) + y[:, 1] ** 2


# --- rewards and picks ----------------------------------------------------------------------------------------------


def test_differences_and_gradients_of_smooth_rewards_agree() -> None:
    y, dy = (torch.randn(50, 2, generator=seeded(k), dtype=torch.float64) for k in (0, 1))
    dy[7] = 0
    prompts = torch.zeros(50, dtype=torch.int64)
    exact = RewardRates(smooth={"r": tilt}).along("r", prompts, y, dy)
    found = RewardRates({"r": tilt}).along("r", prompts, y, dy)
    torch.testing.assert_close(exact, torch.cos(y[:, 0]) * dy[:, 0] + 2 * y[:, 1] * dy[:, 1])
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert float(found[7]) == 0
    assert float((RewardRates({"r": tilt}, step=1.0).along("r", prompts, y, dy) - exact).abs().max()) > 1e-2


def test_hue_bands_jump_and_differences_see_it_on_average() -> None:
    """The mean reward's own change is (mean r(y + t v) − mean r(y − t v))/2t; automatic differentiation of hue bands misses the jumps.

    Both sides are means over the same 40,000 images of 2 × 2 pixels; z-test of their paired difference, false-alarm rate 1e-4.
    """
    y = 0.2 + 0.6 * torch.rand(40_000, 3, 2, 2, generator=seeded(0), dtype=torch.float64)
    v = torch.tensor([1.0, -0.2, -1.0], dtype=torch.float64).view(3, 1, 1).expand_as(y)

    def band(prompts: Tensor, images: Tensor) -> Tensor:
        return hue_band(images, WARM, realism_weight=0.0)

    prompts, t = torch.zeros(len(y), dtype=torch.int64), 0.05
    found = RewardRates({"r": band}).along("r", prompts, y, v)
    whole = (band(prompts, y + t * v) - band(prompts, y - t * v)) / (2 * t)
    off = found - whole
    z = float(off.mean() / (off.std() / math.sqrt(len(off))))
    assert abs(z) < norm.isf(1e-4 / 2)
    missed = RewardRates(smooth={"r": band}).along("r", prompts, y, v)
    gap = missed - whole
    assert abs(float(gap.mean() / (gap.std() / math.sqrt(len(gap))))) > 20


def test_moved_images_stay_images() -> None:
    seen: list[Tensor] = []

    def watch(prompts: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return y.mean((1, 2, 3))

    y = torch.rand(4, 3, 2, 2, generator=seeded(0)).round()
    RewardRates({"r": watch}).along(
        "r", torch.zeros(4, dtype=torch.int64), y, torch.randn(y.shape, generator=seeded(1))
    )
    assert all(float(part.min()) >= 0 and float(part.max()) <= 1 for part in seen)
    assert float((seen[0] - y).abs().max()) == pytest.approx(4 / 255)


PICKS = {
    "softmax": Pick(candidates=4, temperature=0.5),
    "two stages": Pick(candidates=2, noise=0.1, then=Pick(candidates=2, curator="b")),
    "two people": Pick(candidates=4, other_curator="b", other_share=0.3),
    "noise": Pick(candidates=4, noise=1.0),
}


@pytest.mark.parametrize("name", PICKS)
def test_picks_move_with_their_rewards(name: str) -> None:
    pick, names = PICKS[name], {"two stages": "ab", "two people": "ab", "softmax": "a", "noise": ""}[name]
    r, dr = (
        {n: torch.randn(5, 4, generator=seeded(k + s), dtype=torch.float64) for k, n in enumerate("ab")} for s in (0, 9)
    )
    draw = SourceDraw(
        "p",
        "s",
        1.0,
        "q",
        torch.arange(5),
        torch.zeros(5),
        torch.zeros(20, 1),
        torch.ones(5, 4) / 4,
        rewards=r,
        pick=pick,
        people="a",
    )
    if not names:
        return
    along = {n: dr[n] for n in names}
    found, h = pick_tangent(draw, along), 1e-6
    ends = [pick_probabilities(pick, "a", {n: r[n] + s * h * dr[n] for n in "ab"}) for s in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    c = torch.randn(5, 4, generator=seeded(20), dtype=torch.float64)
    back = pick_pull(draw, list(names), c)
    assert float((c * found).sum()) == pytest.approx(sum(float((back[n] * along[n]).sum()) for n in names))


def test_smooth_rewards_of_a_spec() -> None:
    eco = tiny.flows(
        rewards={"right": LinearReward(vector=[1.0, 0.5]), "up": QuadraticReward(matrix=-1.0, vector=[0.0, 2.0])}
    )
    y = torch.randn(6, 2, generator=seeded(0), dtype=torch.float64)
    world, prompts = open_world(eco), torch.zeros(6, dtype=torch.int64)
    for name, fn in smooth_rewards(eco).items():
        torch.testing.assert_close(fn(prompts, y), build_reward(eco.rewards[name], world)(prompts, y))
        slope = RewardRates(smooth={name: fn}).gradient(name, prompts, y)
        want = torch.tensor([1.0, 0.5]).expand(6, 2) if name == "right" else torch.tensor([0.0, 2.0]) - y
        torch.testing.assert_close(slope, want.double())
    assert smooth_rewards(tiny.diffusions()) == {}


# --- draws ----------------------------------------------------------------------------------------------------------


def drawn(eco: Ecosystem, **rest: Any) -> Any:
    world = open_world(eco)
    networks = build(world)
    rewards = {name: build_reward(node, world, name=name) for name, node in eco.rewards.items()}
    table = len(world.prompts)
    prompts = {name: torch.arange(20) % table for name in eco.models}
    return networks, rewards, network_draws(world, networks, rewards, prompts, Size(24, 8), 0, **rest)


def test_pathwise_draws_are_what_the_sampler_makes_of_their_noise() -> None:
    eco = tiny.diffusions()
    networks, rewards, draws = drawn(eco, pathwise={"p"})
    for draw in draws.sources:
        if draw.producer != "p":
            assert draw.noise is None
            assert draw.outputs.dtype == torch.uint8
            continue
        model = differentiable(networks["p"])
        again = model.rsample(model.parameters(), draw.all_prompts, draw.noise)
        torch.testing.assert_close(draw.outputs, again.detach(), rtol=0, atol=1e-5)
        assert draw.outputs.dtype == torch.float32
        assert (draw.pick.candidates, draw.people) == (2, "warm")
        torch.testing.assert_close(draw.rewards["warm"].flatten(), rewards["warm"](draw.all_prompts, draw.outputs))
        assert draw.all_prompts.view(-1, 2).unique(dim=1).shape[1] == 1  # candidates share their label
        assert len(draw.noise.flatten(1).unique(dim=0)) == len(draw.noise)
    mine, theirs = draws.evaluations
    model = differentiable(networks["p"])
    again = model.rsample(model.parameters(), mine.all_prompts, mine.noise, evaluating=True)
    torch.testing.assert_close(mine.outputs, again.detach(), rtol=0, atol=1e-5)
    assert (mine.reward, theirs.reward, theirs.noise) == ("warm", "cool", None)


def test_sources_share_noise_and_outputs() -> None:
    eco = tiny.flows()
    _, _, draws = drawn(eco, pathwise={"p", "q"})
    by = {(d.consumer, d.name): d for d in draws.sources}
    one, other = by["p", "curated_p"], by["q", "raw_p"]
    assert one.outputs is other.outputs
    assert one.noise is other.noise
    assert one.pick == eco.models["p"].sources[1]
    assert other.pick is None


def test_draws_that_cannot_be(tmp_path: Any) -> None:
    with pytest.raises(NotAvailableError, match="leave it out of `pathwise`"):
        drawn(tiny.languages(tmp_path), pathwise={"p"})
    eco = tiny.flows()
    sources = [s.model_copy(update={"sampling_temperature": 0.5}) for s in eco.models["q"].sources[1:]]
    model = eco.models["q"].model_copy(update={"sources": [eco.models["q"].sources[0], *sources]})
    with pytest.raises(SettingError, match="at temperature 1 only"):
        drawn(eco.model_copy(update={"models": {"p": eco.models["p"], "q": model}}), pathwise={"p"})


# --- what is refused ------------------------------------------------------------------------------------------------


def bent(rule: Pick | None, **changes: Any) -> tuple[Any, Any]:
    models = {"p": Bent("p", 0), "q": Bent("q", 1)}
    sources = [Source("p", 1.0, "q", rule), Source("q", 1.0, data=torch.zeros(3, 2).double())]
    common = Common(models, sources, {"p": "r", "q": "r"}, {"r": tilt}, 10)
    draws = common.draws()
    return models, replace(draws, sources=[replace(draws.sources[0], **changes), draws.sources[1]])


@pytest.mark.parametrize(
    ("pick", "changes", "message"),
    [
        (Pick(candidates=2, temperature=0), {}, "set τ above 0"),
        (Pick(candidates=2, then=Pick(candidates=2, temperature=0)), {}, "no pathwise derivative"),
        (Pick(candidates=2), {"noise": None}, "without the noise"),
        (Pick(candidates=2), {"pick": None}, "without the rule"),
    ],
)
def test_sources_that_have_no_pathwise_derivative(pick: Pick, changes: dict[str, Any], message: str) -> None:
    models, draws = bent(pick, **changes)
    with pytest.raises(NotAvailableError, match=message):
        MatrixFree(models, draws, EXACT, [0.1, 0.1], rates=RewardRates({"r": tilt}))
    MatrixFree(models, draws, EXACT, [0.1, 0.1], [0.0, 1.0])  # a source of weight 0 does not matter


def test_picks_that_nobody_makes_do_not_move() -> None:
    models, draws = bent(Pick(candidates=2, temperature=0, noise=1.0))
    loop = MatrixFree(models, draws, EXACT, [0.1, 0.1])
    x = [torch.ones(size, 1, dtype=torch.float64) for size in loop.sizes]
    assert bool(loop.coupling(0, x).any())


def test_models_that_cannot_be_taken_that_way() -> None:
    models, draws = bent(None)
    with pytest.raises(NotAvailableError, match=r"without a likelihood; put it into `pathwise`"):
        MatrixFree(models, draws, EXACT, [0.1, 0.1], pathwise={"p"})
    flows = {"p": differentiable(flow()), "q": Bent("q", 1)}
    with pytest.raises(NotAvailableError, match="gradients jump as outputs move"):
        MatrixFree(flows, draws, EXACT, [0.1, 0.1])


def test_rewards_that_are_missing() -> None:
    models, draws = bent(Pick(candidates=2))
    loop = MatrixFree(models, draws, EXACT, [0.1, 0.1])
    x = [torch.ones(size, 1, dtype=torch.float64) for size in loop.sizes]
    with pytest.raises(NotAvailableError, match=r"rewards\.r: found no function for it"):
        loop.coupling(0, x)
    nameless = replace(draws, evaluations=[replace(draw, reward=None) for draw in draws.evaluations])
    with pytest.raises(NotAvailableError, match="without their reward's name"):
        Outcomes(MatrixFree(models, nameless, EXACT, [0.1, 0.1]))
