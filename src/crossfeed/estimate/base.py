"""What the estimator needs of a model: its loss, likelihood or sampler as pure functions of its parameters.

Everything else (per-sample gradients, products with them, tangents of samplers) is worked out from these by torch.func in
:mod:`crossfeed.estimate.derivatives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crossfeed.networks.base import Outputs

Parameters = Mapping[str, Tensor]
"""Parameters by name, in a fixed order. Flat vectors (d,) are their concatenation in this order."""

Batch = tuple[Tensor, ...]
"""Samples as tensors whose first dimension is n; what they mean is between the methods of one model."""


class Differentiable(Protocol):
    """One model of an ecosystem at its current parameters.

    Attributes:
        name: The model's name in the spec.
        capabilities: Subset of ``likelihood`` (:meth:`log_probs`) and ``rsample`` (:meth:`rsample`).
        loss_is_score: Whether ℓ(θ; z) = −log q(y | x; θ) at temperature 1 for sampled z, so that both share their gradients.
        smooth_in_outputs: Whether ∇_θ ℓ(θ; y) is continuous in the output y: what following outputs through a sampler needs of those
            who are trained on them.
        device: Where its tensors are.
        chunk: Samples whose gradients are worked out at once.
    """

    name: str
    capabilities: frozenset[str]
    loss_is_score: bool
    smooth_in_outputs: bool
    device: torch.device
    chunk: int

    def parameters(self) -> dict[str, Tensor]:
        """θ: the trained parameters, detached; not to be written to."""
        ...

    def loss_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """Samples z = (x, y) ready for :meth:`losses`; what is random in the loss is drawn here, once and for all."""
        ...

    def losses(self, parameters: Parameters, batch: Batch) -> Tensor:
        """Training loss ℓ(θ; z) per sample, (n,); without dropout. Works under vmap, grad, jvp and their compositions."""
        ...

    def score_batch(self, prompts: Tensor, outputs: Outputs) -> Batch:
        """Outputs that this model sampled, ready for :meth:`log_probs` (capability ``likelihood``)."""
        ...

    def log_probs(self, parameters: Parameters, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log-probability (n,) under which outputs are in fact sampled at this temperature, nucleus included."""
        ...

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """Start noise of ``num`` outputs for :meth:`rsample`, first dimension ``num`` (capability ``rsample``)."""
        ...

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """Outputs (n, …), floats, as a differentiable function of the parameters at fixed noise."""
        ...

    def replace_outputs(self, batch: Batch, outputs: Tensor) -> Batch:
        """The same loss batch with other outputs, as a differentiable function of them (for pathwise estimates)."""
        ...

    def curvature_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """Samples z that the model is trained on, ready for :meth:`curvature_terms`; what is random there is drawn here."""
        ...

    def curvature_terms(self, parameters: Parameters, batch: Batch) -> Tensor:
        """(n,) numbers whose gradients h have E[h hᵀ] = the generalised Gauss–Newton matrix of the loss at z.

        With ℓ = c(f(θ; z)), c convex, it is Jᵀ ∇²c J, J the Jacobian of f; so h = ∇⟨f, (∇²c)^½ u⟩ with E[u uᵀ] = 1. Mean squared
        losses over P numbers: √(2/P) ⟨prediction, u⟩. Language models: Σ_t log q(ŷ_t | x, y_<t) with every token ŷ_t drawn by the
        model itself after the sample's own tokens.
        """
        ...


@runtime_checkable
class ExactCurvature(Protocol):
    """What closed-form models offer besides: the curvature itself."""

    def mean_hessian(self, parameters: Parameters, batch: Batch, weights: Tensor) -> Tensor:
        """Σ_n w_n ∇²ℓ(θ; z_n), (d, d)."""
        ...
