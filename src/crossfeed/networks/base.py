"""The protocol of networks: what an adapter of a real network must offer, and what it declares.

The counterpart of :mod:`crossfeed.families.base` for models that are trained by an optimiser and known by their samples. A
network is one file: flow.py, diffusion.py and language.py are the three that ship.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crossfeed.families.base import LIKELIHOOD, RSAMPLE

__all__ = ["LIKELIHOOD", "RSAMPLE", "Advance", "Network", "Outputs"]

Outputs = Tensor | list[str]
"""Outcomes of n samples: vectors (n, dim) float32, images (n, 3, h, w) uint8, or n texts."""

Advance = Callable[[int], None]
"""Called with the number of outputs or steps that were just finished."""


@runtime_checkable
class Network(Protocol):
    """One model of an ecosystem, as a network.

    Prompts are indices into the run's table of inputs (:class:`crossfeed.networks.world.Prompts`), (n,) int64 on the CPU.

    Attributes:
        name: The model's name in the spec.
        capabilities: Subset of ``likelihood`` (:meth:`log_prob`) and ``rsample`` (:meth:`rsample`).
        device: Where its parameters are.
    """

    name: str
    capabilities: frozenset[str]
    device: torch.device

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name, live (not copies), in a fixed order; frozen ones are not among them."""
        ...

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Copy these values into the trained parameters.

        Raises:
            DataError: names or shapes differ; says which.
        """
        ...

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        """Training loss ℓ(θ; z) per sample, (n,), differentiable in the parameters; random where the loss is."""
        ...

    def lengths(self, prompts: Tensor, outputs: Outputs) -> Tensor | None:
        """Work per sample, (n,), for batches of equal work; None when all samples cost the same."""
        ...

    def train(self, mode: bool) -> None:
        """Switch dropout and the like on or off."""
        ...

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
    ) -> Outputs:
        """``candidates[i]`` outputs of prompt i, all of prompt 0 first: Σ candidates outputs.

        Tensors stay on the network's device. The draw depends on the arguments and the generator's state alone.
        """
        ...

    def log_prob(self, prompts: Tensor, outputs: Outputs) -> Tensor:
        """Log q(y | x; θ) per sample, (n,), differentiable in the parameters (capability ``likelihood``)."""
        ...

    def rsample(self, prompts: Tensor, noise: Tensor) -> Tensor:
        """Outputs as a differentiable function of the parameters at fixed noise (capability ``rsample``)."""
        ...

    def probe(self) -> Tensor:
        """Numbers that the path used for generation gives on a fixed input without randomness: change iff the model does."""
        ...

    def base_probe(self) -> Tensor | None:
        """The same with the adapter switched off; None where every parameter is trained."""
        ...
