"""One small network of each kind with samples, and what its own autograd says about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Diffusion, Flow
from crossfeed.estimate.base import Differentiable, Parameters
from crossfeed.estimate.networks import differentiable
from crossfeed.networks.base import Network, Outputs
from crossfeed.networks.diffusion import DiffusionNetwork
from crossfeed.networks.flow import SplineFlow
from networks import small_models

NUM = 6
PROMPTS = torch.tensor([0, 1, 2, 0, 1, 2])
ANSWERS = ["", "sorts", "counts things 3 and many more", "sorts things", "x", "counts things"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(dim: int = 2, bins: int = 4, shift: float = 0.3, double: bool = True) -> SplineFlow:
    network = SplineFlow("p", Flow(width=8, bins=bins), dim, seed=0)
    if double:
        network.module.double()
    move(network, shift)
    return network


def diffusion(*, dtype: torch.dtype = torch.float32, conditional: bool = True, **family: Any) -> DiffusionNetwork:
    sizes = {"channels": [4, 8], "attention": [False, True], "norm_groups": 2, "noise_levels": 50, "sampling_steps": 3}
    node = Diffusion(**({**sizes, "head_dim": 4, "evaluation_steps": 2} | family))  # type: ignore[arg-type]
    return DiffusionNetwork("p", node, (3, 8, 8), torch.arange(3), 3 if conditional else None, 0, dtype=dtype)


def grey(network: DiffusionNetwork) -> DiffusionNetwork:
    """Outputs near the middle of their range, so that no cut bends finite differences; for start noise of size 1e-3."""
    with torch.no_grad():
        network.module.conv_out.weight.mul_(1e-4)  # type: ignore[union-attr, operator]
        network.module.conv_out.bias.mul_(1e-4)  # type: ignore[union-attr, operator]
    return network


def move(network: Network, size: float, seed: int = 0) -> None:
    random = seeded(seed)
    with torch.no_grad():
        for value in network.parameters().values():
            value += size * torch.randn(value.shape, generator=random).to(value)


@dataclass
class Case:
    kind: str
    network: Any
    model: Differentiable
    outputs: Outputs

    def batch(self) -> tuple[Tensor, ...]:
        return self.model.loss_batch(PROMPTS, self.outputs, seeded(3))

    def live_losses(self) -> Tensor:
        """By the network's own training loss."""
        return self.network.losses(PROMPTS, self.outputs, seeded(3))


def case(kind: str) -> Case:
    network: Any
    outputs: Outputs
    if kind == "flow":
        network = flow()
        outputs = 2 * torch.randn(NUM, 2, generator=seeded(1), dtype=torch.float64)
    elif kind == "diffusion":
        network = diffusion()
        network.module.eval()
        outputs = torch.randint(0, 256, (NUM, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    else:
        lora = {} if kind != "whole" else {"lora": None}
        network = small_models.models("pq" if kind != "whole" else "p", attention="sdpa", **lora)["p"]
        move(network, 0.2 if kind != "whole" else 0.01)
        outputs = ANSWERS
    return Case(kind, network, differentiable(network), outputs)


def direction(parameters: Parameters, seed: int = 7) -> Tensor:
    """(d,) a random direction, as long in each tensor as the tensor itself."""
    random = seeded(seed)
    parts = []
    for value in parameters.values():
        part = torch.randn(value.shape, generator=random).to(value)
        parts.append((part * value.norm() / part.norm()).flatten())
    return torch.cat(parts)


def stepped(parameters: Parameters, v: Tensor, h: float) -> dict[str, Tensor]:
    """θ + h v."""
    out, at = {}, 0
    for name, value in parameters.items():
        out[name] = value + h * v[at : at + value.numel()].view_as(value)
        at += value.numel()
    return out


def relative(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())
