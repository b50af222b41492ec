r"""Derivatives of diffusion networks: a random loss that is drawn once, and the DDIM sampler as a smooth map of the parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Batch, Parameters
from crossfeed.estimate.derivatives import rows_at_once
from crossfeed.estimate.pure import pure
from crossfeed.networks.base import Outputs
from crossfeed.networks.diffusion import DiffusionNetwork

_MOST = 32


class DifferentiableDiffusion:
    r"""A :class:`~crossfeed.networks.diffusion.DiffusionNetwork` as a :class:`~crossfeed.estimate.base.Differentiable`.

    ℓ(θ; x, t, ε) = mean over the P numbers of an image of (target − prediction)², at a level t and a noise ε that :meth:`loss_batch` draws
    once: gradients are unbiased for the loss that training sees, and the same for every question about the same batch. Loss
    batches are (images, t, ε) and, for networks with labels, the labels.

    Outputs of :meth:`rsample` are floats in [0, 1]; :meth:`DiffusionNetwork.sample` rounds them to 256 levels, which derivatives pass
    over. Wherever the sampler cuts (``clip`` at each step, the range of an image at the end) its derivative is zero: the true derivative of
    what is sampled almost everywhere, but finite differences that move a number across the cut differ from it.

    Precision: everything is float32. A network with ``dtype`` bfloat16 is trained and sampled under autocast, of which these derivatives
    do not take part: they are those of the same network without its rounding.

    Args:
        network: The diffusion network.
        chunk: Samples whose gradients are worked out at once; None: as many as 256 MiB of gradients hold, at most 32.
    """

    capabilities = DiffusionNetwork.capabilities
    loss_is_score = False
    smooth_in_outputs = True

    def __init__(self, network: DiffusionNetwork, chunk: int | None = None) -> None:
        self.name, self.device, self._network = network.name, network.device, network
        self.chunk = rows_at_once(self.parameters(), _MOST) if chunk is None else chunk
        self._losses = pure(network.module, network.losses_at)
        self._predict = pure(network.module, network.predict_at)
        self._rsample = pure(network.module, network.rsample)

    def parameters(self) -> dict[str, Tensor]:
        """The trained ones, detached; they share memory with the network and follow it when it is trained or loaded."""
        return {name: value.detach() for name, value in self._network.parameters().items()}

    def loss_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """(images (n, 3, h, w), levels (n,), noise (n, 3, h, w)[, labels (n,)]); levels and noise are drawn here.

        Raises:
            TypeError: outputs that are no tensor.
            DataError: a prompt is not in the table of inputs.
        """
        if not isinstance(outputs, Tensor):
            raise TypeError("diffusion networks take images as outcomes")
        levels, noise = self._network.draw(len(outputs), generator)
        labels = self._network.labels(prompts)
        parts = (outputs.detach(), levels, noise, *(() if labels is None else (labels,)))
        return tuple(part.to(self.device) for part in parts)

    def losses(self, parameters: Parameters, batch: Batch) -> Tensor:
        """ℓ at the batch's levels and noise, (n,)."""
        images, levels, noise, *labels = batch
        with self._network.derivatives():
            return self._losses(parameters, labels[0] if labels else None, images, levels, noise)

    def score_batch(self, prompts: Tensor, outputs: Outputs) -> Batch:
        """Not available: raises NotAvailableError."""
        raise self._no_likelihood()

    def log_probs(self, parameters: Parameters, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Not available: raises NotAvailableError."""
        raise self._no_likelihood()

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, 3, h, w) standard normal."""
        drawn = torch.randn((num, *self._network.shape), generator=generator, device=generator.device)
        return drawn.to(self.device)

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """Images (n, 3, h, w), floats in [0, 1], by as many DDIM steps as training or evaluation samples have."""
        return self._rsample(parameters, prompts, noise, evaluating=evaluating)

    def replace_outputs(self, batch: Batch, outputs: Tensor) -> Batch:
        """The batch with these images, floats in [0, 1]."""
        return (outputs, *batch[1:])

    def curvature_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """A loss batch with, before the labels, u (n, 3, h, w) standard normal."""
        images, levels, noise, *labels = self.loss_batch(prompts, outputs, generator)
        return (images, levels, noise, self.noise(len(images), generator), *labels)

    def curvature_terms(self, parameters: Parameters, batch: Batch) -> Tensor:
        """√(2/P)⟨prediction, u⟩, (n,): E[h hᵀ] = (2/P) E[JᵀJ] with J the prediction's Jacobian."""
        images, levels, noise, u, *labels = batch
        with self._network.derivatives():
            found, _ = self._predict(parameters, labels[0] if labels else None, images, levels, noise)
        return math.sqrt(2 / u[0].numel()) * (found * u).flatten(1).sum(1)

    def _no_likelihood(self) -> NotAvailableError:
        return NotAvailableError(
            f"models.{self.name}: a diffusion network has no tractable likelihood; use its sampler (rsample)"
        )
