"""The rewards of a spec as functions on batches of prompts and outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.describe.files import load_callable
from crossfeed.errors import CheckFailedError, NotAvailableError
from crossfeed.families.spaces import as_matrix, tensor
from crossfeed.networks.base import Outputs
from crossfeed.networks.world import World

RewardFn = Callable[[Tensor, Outputs], Tensor]
"""Prompts (n,) and n outputs to rewards (n,) float64 on the CPU; more is better."""


def build_reward(reward: s.Reward, world: World, device: torch.device | str = "cpu", name: str = "reward") -> RewardFn:
    """A reward of the spec, checked to give one finite number an output.

    Vectors are judged in float64; images batch by batch on the device they are on; texts with their source texts.

    Args:
        reward: The node.
        world: Where prompts come from.
        device: Where a reward model's network goes.
        name: What errors call it.

    Returns:
        The function; it raises CheckFailedError for rewards that are not finite, with how many and an example.

    Raises:
        NotAvailableError: this kind of reward does not judge these outcomes.
    """
    score = _score(reward, world, torch.device(device), name)

    def checked(prompts: Tensor, outputs: Outputs) -> Tensor:
        if not len(outputs):
            return torch.zeros(0, dtype=torch.float64)
        values = torch.as_tensor(score(prompts, outputs)).detach().to("cpu", torch.float64)
        if values.shape != (len(outputs),):
            found = f"found rewards of shape {tuple(values.shape)} for {len(outputs):,} outputs"
            raise CheckFailedError(f"rewards.{name}: {found}; need one number an output")
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            first = int(bad[0])
            what = repr(outputs[first][:80]) if isinstance(outputs, list) else f"output {first} of the batch"
            raise CheckFailedError(
                f"rewards.{name}: found {len(bad):,} of {len(values):,} rewards not finite, the first ({float(values[first])}) for "
                f"{what}; mend the reward so that every output gets a finite number"
            )
        return values

    return checked


def _score(reward: s.Reward, world: World, device: torch.device, name: str) -> RewardFn:
    if world.medium == "vectors":
        return _of_vectors(reward, world.shape[0], name)
    if world.medium == "images":
        return _of_images(reward, name)
    return _of_text(reward, world, device, name)


def _of_vectors(reward: s.Reward, dim: int, name: str) -> RewardFn:
    if isinstance(reward, (s.LinearReward, s.QuadraticReward)):
        vector = None if reward.vector is None else tensor(reward.vector)
        matrix = as_matrix(reward.matrix, dim) if isinstance(reward, s.QuadraticReward) else None
        constant = reward.constant

        def score(prompts: Tensor, outputs: Outputs) -> Tensor:
            y = _tensor(outputs).to("cpu", torch.float64)
            value = torch.full((len(y),), constant, dtype=torch.float64)
            value = value if vector is None else value + y @ vector
            return value if matrix is None else value + 0.5 * ((y @ matrix) * y).sum(-1)

        return score
    if isinstance(reward, s.CallableReward):
        function = load_callable(reward.function, f"rewards.{name}.function")
        return lambda prompts, outputs: function(_tensor(outputs).to(torch.float64))
    raise _unfit(reward, name, "vectors")


def _of_images(reward: s.Reward, name: str) -> RewardFn:
    from crossfeed.networks.image_rewards import hue_band, in_batches, unit

    if isinstance(reward, s.HueBandReward):
        bands, a, b = reward.bands, reward.band_weight, reward.realism_weight
        return lambda prompts, outputs: hue_band(_tensor(outputs), bands, a, b)
    if isinstance(reward, s.CallableReward):
        function = load_callable(reward.function, f"rewards.{name}.function")
        return lambda prompts, outputs: in_batches(_tensor(outputs), lambda part: function(unit(part)))
    raise _unfit(reward, name, "images")


def _of_text(reward: s.Reward, world: World, device: torch.device, name: str) -> RewardFn:
    inputs = world.prompts.inputs
    if isinstance(reward, (s.SummaryReward, s.ParaphraseReward)):
        from crossfeed.networks.text_rewards import text_reward

        judge = text_reward(reward)
        return lambda prompts, outputs: torch.as_tensor(judge([inputs[i] for i in prompts.tolist()], list(outputs)))
    if isinstance(reward, s.RewardModel):
        from crossfeed.networks.reward_model import reward_model

        judge = reward_model(reward, device, f"rewards.{name}")
        texts = world.prompts.texts
        return lambda prompts, outputs: torch.as_tensor(judge([texts[i] for i in prompts.tolist()], list(outputs)))
    if isinstance(reward, s.CallableReward):
        function: Callable[..., object] = load_callable(reward.function, f"rewards.{name}.function")
        return lambda prompts, outputs: torch.as_tensor(
            function([inputs[i] for i in prompts.tolist()], list(outputs)), dtype=torch.float64
        )
    raise _unfit(reward, name, "text")


def _tensor(outputs: Outputs) -> Tensor:
    assert isinstance(outputs, Tensor)
    return outputs


def _unfit(reward: s.Reward, name: str, what: str) -> NotAvailableError:
    return NotAvailableError(f"rewards.{name}: found a reward of kind {reward.kind!r}, which does not judge {what}")
