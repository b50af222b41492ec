r"""How rewards and picks move when outputs move: what pathwise derivatives need besides the sampler's tangent.

Along tangents ẏ of the outputs, a reward changes by

    ṙ_n = ⟨∇_y r(y_n), ẏ_n⟩                                    where the reward is a differentiable function (exact), or
    ṙ_n ≈ (r(y_n + h_n ẏ_n) − r(y_n − h_n ẏ_n)) / 2h_n          for any reward,

and picks by π̇ = Σ_r (∂π/∂r) ṙ, exactly. The step h_n makes the largest number of h_n ẏ_n, in absolute value, equal to ``step``: of
images (floats in [0, 1]) 4/255, four of the 256 levels, of vectors 10⁻³ times the standard deviation of all their numbers.

Rewards may jump in single numbers (hue bands do): their derivative at a given output is zero or infinite, that of their mean is
neither, and central differences of finite size estimate the latter with a bias of order ``step``² and a variance of order 1/``step``.
Automatic differentiation would miss the jumps altogether, so only rewards without jumps belong among the differentiable ones. Moved
images are cut to [0, 1], as the sampler cuts them.

Ours: the paper has no such estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jvp, vjp

from crossfeed.describe.schema import Ecosystem, LinearReward, Pick, QuadraticReward, Vectors
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.draws import SourceDraw
from crossfeed.estimate.picks import pick_probabilities, pick_rewards
from crossfeed.estimate.reward_functions import reward_function
from crossfeed.families.spaces import as_matrix

TensorReward = Callable[[Tensor, Tensor], Tensor]
"""Prompts (n,) and outputs (n, …), floats, to rewards (n,): every :data:`crossfeed.networks.rewards.RewardFn` is one."""

IMAGE_STEP = 4 / 255
VECTOR_STEP = 1e-3


class RewardRates:
    """Rewards and how they change along tangents of outputs; see the module.

    Args:
        rewards: By name: prompts (n,) and outputs (n, …) to (n,) float64; central differences of these.
        smooth: By name, rewards that are differentiable functions of the outputs, through which derivatives are taken.
        step: Size of the differences, in the outputs' own units; None: by the rule of the module.
    """

    def __init__(
        self,
        rewards: Mapping[str, TensorReward] | None = None,
        smooth: Mapping[str, TensorReward] | None = None,
        step: float | None = None,
    ) -> None:
        self.rewards, self.smooth, self.step = dict(rewards or {}), dict(smooth or {}), step

    def along(self, name: str, prompts: Tensor, outputs: Tensor, tangents: Tensor) -> Tensor:
        """ṙ (n,) float64 on the CPU.

        Raises:
            NotAvailableError: no such reward was given.
        """
        if name in self.smooth:
            slope = self.gradient(name, prompts, outputs)
            return (slope * tangents.cpu().to(slope)).flatten(1).sum(1)
        if name not in self.rewards:
            raise NotAvailableError(
                f"rewards.{name}: found no function for it; pass it in `rewards` (any function of prompts and outputs) or in "
                "`smooth` (one that is differentiable in the outputs)"
            )
        y, moved = outputs.double(), tangents.to(outputs.device).double()
        largest = moved.flatten(1).abs().amax(1)
        h = torch.where(largest > 0, self._size(y) / largest.clamp_min(torch.finfo(y.dtype).tiny), 0.0)
        aside = moved * h.view(-1, *[1] * (y.ndim - 1))
        ends = [self.rewards[name](prompts, self._kept(y + sign * aside)).cpu().double() for sign in (1, -1)]
        return (ends[0] - ends[1]) / torch.where(h > 0, 2 * h, 1.0).cpu()

    def gradient(self, name: str, prompts: Tensor, outputs: Tensor) -> Tensor:
        """∇_y r (n, …) float64 on the CPU.

        Raises:
            NotAvailableError: the reward was not given as a differentiable function.
        """
        if name not in self.smooth:
            raise NotAvailableError(
                f"rewards.{name}: its change along one direction can be measured, but not its gradient, which adjoints need; "
                "solve forward (solve_matrix_free does), or pass the reward in `smooth` as a differentiable function of the outputs"
            )
        y = outputs.detach().cpu().double().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.smooth[name](prompts, y).sum(), y)
        return slope

    def _size(self, outputs: Tensor) -> Tensor:
        if self.step is not None:
            return torch.tensor(self.step, dtype=torch.float64, device=outputs.device)
        if outputs.ndim == 4:
            return torch.tensor(IMAGE_STEP, dtype=torch.float64, device=outputs.device)
        return VECTOR_STEP * outputs.std()

    def _kept(self, outputs: Tensor) -> Tensor:
        return outputs.clamp(0, 1) if outputs.ndim == 4 else outputs


def smooth_rewards(eco: Ecosystem) -> dict[str, TensorReward]:
    """The rewards of a spec that are differentiable functions of vectors: linear and quadratic ones."""
    if not isinstance(eco.space, Vectors):
        return {}
    out: dict[str, TensorReward] = {}
    for name, reward in eco.rewards.items():
        if isinstance(reward, (LinearReward, QuadraticReward)):
            value = reward_function(eco, name)
            out[name] = lambda prompts, y, value=value: value(y, None)  # type: ignore[misc]
    return out


def moving_rewards(draw: SourceDraw) -> list[str]:
    """The rewards whose change moves a source's picks.

    Raises:
        NotAvailableError: τ = 0 somewhere, where picks jump; or a rule that is not known.
    """
    if not draw.curated:
        return []
    pick, people = _rule(draw)
    return smooth_pick(pick, people, f"models.{draw.consumer}.sources.{draw.name}")


def smooth_pick(pick: Pick, people: str, where: str) -> list[str]:
    """The rewards that have a say in a pick, if picks move smoothly with them.

    Raises:
        NotAvailableError: τ = 0 in some stage.
    """
    names = pick_rewards(pick, people)
    for stage in pick.stages:
        if names and stage.candidates != 1 and stage.temperature == 0 and stage.noise < 1:
            raise NotAvailableError(
                f"{where}: temperature: found 0; the best of K candidates jumps as they move, so that it has no pathwise "
                "derivative: set τ above 0, or take a producer that has a likelihood (score route)"
            )
    return names


def pick_tangent(draw: SourceDraw, rates: Mapping[str, Tensor]) -> Tensor:
    """π̇ (n, K) from the rewards' ṙ (n, K), by name."""
    pick, people = _rule(draw)
    values = {name: draw.rewards[name] for name in rates}
    found: Tensor = jvp(lambda r: pick_probabilities(pick, people, r), (values,), (dict(rates),))[1]
    return found


def pick_pull(draw: SourceDraw, names: list[str], cotangents: Tensor) -> dict[str, Tensor]:
    """(∂π/∂r)ᵀ c, (n, K) by reward, for c (n, K): the transpose of :func:`pick_tangent`."""
    pick, people = _rule(draw)
    values = {name: draw.rewards[name] for name in names}
    pull = vjp(lambda r: pick_probabilities(pick, people, r), values)[1]
    found: dict[str, Tensor] = pull(cotangents)[0]
    return found


def _rule(draw: SourceDraw) -> tuple[Pick, str]:
    if draw.pick is None or draw.people is None:
        raise NotAvailableError(
            f"models.{draw.consumer}.sources.{draw.name}: found picks without the rule behind them; use `with_rules`, or draws "
            "of `network_draws`"
        )
    return draw.pick, draw.people


def through_map(draw: SourceDraw, tangents: Tensor, transpose: bool = False) -> Tensor:
    """Tangents of what a producer made as tangents of what its consumer sees; or the transpose."""
    if draw.map is None or draw.map.matrix is None:
        return tangents
    matrix = as_matrix(draw.map.matrix, tangents.shape[-1]).to(tangents)
    return tangents @ (matrix if transpose else matrix.T)
