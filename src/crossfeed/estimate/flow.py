"""Derivatives of spline flows: they have a likelihood and a sampler, and both are smooth in the parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from crossfeed.errors import SettingError
from crossfeed.estimate.base import Batch, Parameters
from crossfeed.estimate.derivatives import rows_at_once
from crossfeed.estimate.pure import pure
from crossfeed.networks.base import Outputs
from crossfeed.networks.flow import SplineFlow

_MOST = 1024


class DifferentiableFlow:
    """A :class:`~crossfeed.networks.flow.SplineFlow` as a :class:`~crossfeed.estimate.base.Differentiable`.

    ℓ(θ; y) = −log q(y; θ), so losses and log-probabilities share their gradients. Batches are (y (n, dim),), in the precision of the
    network; prompts play no part. A spline's slope jumps at no knot, but its second derivative does: there, second and mixed
    derivatives are one-sided.

    Args:
        network: The flow; ``network.module.double()`` before makes derivatives exact to 1e-10.
        chunk: Samples whose gradients are worked out at once; None: as many as 256 MiB of gradients hold, at most 1024.
    """

    capabilities = SplineFlow.capabilities
    loss_is_score = True
    smooth_in_outputs = False  # slopes of splines jump at knots

    def __init__(self, network: SplineFlow, chunk: int | None = None) -> None:
        self.name, self.device, self._network = network.name, network.device, network
        self.chunk = rows_at_once(self.parameters(), _MOST) if chunk is None else chunk
        self._log_prob = pure(network.module, network.module.forward)
        self._rsample = pure(network.module, network.rsample)
        self._to_noise = pure(network.module, network.module.to_noise)

    def parameters(self) -> dict[str, Tensor]:
        """All of them, detached; they share memory with the network and follow it when it is trained or loaded."""
        return {name: value.detach() for name, value in self._network.parameters().items()}

    def loss_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """(y (n, dim),); nothing is random."""
        return self.score_batch(prompts, outputs)

    def losses(self, parameters: Parameters, batch: Batch) -> Tensor:
        """−log q(y; θ), (n,)."""
        return -self.log_probs(parameters, batch)

    def score_batch(self, prompts: Tensor, outputs: Outputs) -> Batch:
        """(y (n, dim),).

        Raises:
            TypeError: outputs that are no tensor.
        """
        if not isinstance(outputs, Tensor):
            raise TypeError("flows take vectors as outcomes")
        return (outputs.detach().to(self.device, self._network.module.first.dtype),)

    def log_probs(self, parameters: Parameters, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log q(y; θ), (n,).

        Raises:
            SettingError: a temperature other than 1, at which a flow does not sample.
        """
        if temperature != 1.0:
            raise SettingError(
                f"models.{self.name}: a flow samples at temperature 1 only, found {temperature:g}; "
                "set the sources' sampling_temperature to 1"
            )
        return self._log_prob(parameters, batch[0])

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, dim) standard normal."""
        module = self._network.module
        drawn = torch.randn(num, module.dim, generator=generator, device=generator.device)
        return drawn.to(self.device, module.first.dtype)

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """Outputs (n, dim) at fixed noise (n, dim); smooth in the parameters."""
        return self._rsample(parameters, prompts, noise)

    def replace_outputs(self, batch: Batch, outputs: Tensor) -> Batch:
        """(outputs (n, dim),)."""
        return (outputs,)

    def curvature_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """(y (n, dim), u (n, 2·dim)): the samples themselves, and a standard-normal vector for each."""
        (y,) = self.score_batch(prompts, outputs)
        u = torch.randn(len(y), 2 * y.shape[1], generator=generator, device=generator.device)
        return y, u.to(y)

    def curvature_terms(self, parameters: Parameters, batch: Batch) -> Tensor:
        """⟨(z, log s), u⟩, (n,): ℓ = Σ ½z² − log s is convex in noise z and slope s, with second derivatives 1 and 1/s².

        So the generalised Gauss–Newton matrix is Σ_i ∇z_i ∇z_iᵀ + ∇log s_i ∇log s_iᵀ: what the Fisher matrix is on the flow's own
        outputs, but on the samples that it is trained on, and linear in outliers where their squared gradient is quadratic.
        """
        y, u = batch
        noise, log_slope = self._to_noise(parameters, y)
        return (torch.cat([noise, log_slope], -1) * u).sum(-1)
