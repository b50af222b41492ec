"""Networks that do exactly what is expected of them, or that fail in one known way; ecosystems for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.schema import (
    Ecosystem,
    Flow,
    LinearReward,
    MixtureData,
    Model,
    RunOptions,
    Samples,
    Source,
    Training,
    Vectors,
)
from crossfeed.networks.base import LIKELIHOOD, Advance, Outputs


class Points:
    """N(mean, spread²) on the plane with loss ½‖y − mean‖²; remembers what it was asked to sample.

    Args:
        name: The model's name.
        mean: Where it starts.
        spread: Standard deviation of its outputs.
        fault: ``frozen``: nothing trains; ``unused``: generation ignores what was trained; ``base``: generation is the
            frozen base's; ``nan``: outputs are NaN once it was trained.
    """

    capabilities = frozenset({LIKELIHOOD})
    device = torch.device("cpu")

    def __init__(self, name: str, mean: Sequence[float] = (0.0, 0.0), spread: float = 0.0, fault: str = "") -> None:
        self.name, self.spread, self.fault = name, spread, fault
        self.mean = torch.tensor(mean, requires_grad=True)
        self.start = self.mean.detach().clone()
        self.asked: list[tuple[Tensor, Tensor, float, bool]] = []

    def parameters(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    @torch.no_grad()
    def load(self, parameters: dict[str, Tensor]) -> None:
        self.mean.copy_(parameters["mean"])

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        assert isinstance(outputs, Tensor)
        mean = self.start + 0 * self.mean if self.fault == "frozen" else self.mean
        return 0.5 * (outputs - mean).square().sum(-1)

    def lengths(self, prompts: Tensor, outputs: Outputs) -> None:
        return None

    def train(self, mode: bool) -> None:
        pass

    @torch.no_grad()
    def sample(
        self,
        prompts: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        evaluating: bool = False,
        batch_size: int = 64,
        advance: Advance | None = None,
    ) -> Tensor:
        self.asked.append((prompts, candidates, temperature, evaluating))
        noise = torch.randn(int(candidates.sum()), 2, generator=generator)
        outputs = self.mean + self.spread * noise
        broken = self.fault == "nan" and not torch.equal(self.mean, self.start)
        return outputs * torch.nan if broken else outputs

    def probe(self) -> Tensor:
        return self.start.clone() if self.fault in ("unused", "base") else self.mean.detach().clone()

    def base_probe(self) -> Tensor | None:
        return self.mean.detach().clone() if self.fault == "base" else None


def plane(sources: dict[str, list[Source]], **changes: Any) -> Ecosystem:
    """Models on the plane, one entry of ``sources`` each; `right` rewards the first coordinate, `up` the second."""
    train = Training(steps=5, batch_size=8, optimizer="sgd", learning_rate=0.5, gradient_clip=None)
    rewards = ["right", "up"]
    fields: dict[str, Any] = {
        "space": Vectors(dim=2),
        "data": {"ring": MixtureData(means=[[0.0, 3.0], [3.0, 0.0]], std=0.1)},
        "rewards": {"right": LinearReward(vector=[1.0, 0.0]), "up": LinearReward(vector=[0.0, 1.0])},
        "models": {
            name: Model(family=Flow(width=4, layers=1, bins=4), reward=rewards[i % 2], train=train, sources=mine)
            for i, (name, mine) in enumerate(sources.items())
        },
        "samples": Samples(per_round=20),
        "run": RunOptions(rounds=3, evaluation_samples=16),
    }
    return Ecosystem(**(fields | changes))


def rewards_of(eco: Ecosystem) -> dict[str, Any]:
    """The linear rewards of an ecosystem."""
    vectors = {n: torch.tensor(node.vector) for n, node in eco.rewards.items() if isinstance(node, LinearReward)}
    return {name: lambda prompts, outputs, v=vector: outputs.double() @ v for name, vector in vectors.items()}
