"""Networks as the estimator sees them: pure functions of their parameters."""

from __future__ import annotations

from typing import Any

from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Differentiable
from crossfeed.networks.base import Network


def differentiable(network: Network, chunk: int | None = None) -> Differentiable:
    """The adapter of a network's kind.

    Args:
        network: A flow, diffusion network or language model; it is not changed, and must not be trained while derivatives are taken.
        chunk: Samples whose gradients are worked out at once; None: as many as 256 MiB of gradients hold, within limits by kind.

    Raises:
        NotAvailableError: a network of another kind.

    Example:
        >>> import torch
        >>> from crossfeed.describe.network_nodes import Flow
        >>> from crossfeed.networks.flow import SplineFlow
        >>> model = differentiable(SplineFlow("p", Flow(width=8), dim=2, seed=0))
        >>> batch = model.loss_batch(torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.Generator())
        >>> model.losses(model.parameters(), batch).shape
        torch.Size([3])
    """
    from crossfeed.networks.diffusion import DiffusionNetwork
    from crossfeed.networks.flow import SplineFlow
    from crossfeed.networks.language import LanguageModel

    if isinstance(network, SplineFlow):
        from crossfeed.estimate.flow import DifferentiableFlow

        return DifferentiableFlow(network, chunk)
    if isinstance(network, DiffusionNetwork):
        from crossfeed.estimate.diffusion import DifferentiableDiffusion

        return DifferentiableDiffusion(network, chunk)
    if isinstance(network, LanguageModel):
        from crossfeed.estimate.language import DifferentiableLanguage

        return DifferentiableLanguage(network, chunk)
    raise NotAvailableError(
        f"models.{network.name}: found a {type(network).__name__}; need a flow, a diffusion network or a language model"
    )


def adapter(family: Any) -> type[Differentiable]:
    """The adapter's class for a family of the spec; what it can do is known without any network.

    Args:
        family: ``models.NAME.family``.

    Raises:
        NotAvailableError: a family without an adapter, a closed form for instance.
    """
    from crossfeed.describe.schema import CausalLM, Diffusion, Flow

    if isinstance(family, Flow):
        from crossfeed.estimate.flow import DifferentiableFlow

        return DifferentiableFlow
    if isinstance(family, Diffusion):
        from crossfeed.estimate.diffusion import DifferentiableDiffusion

        return DifferentiableDiffusion
    if isinstance(family, CausalLM):
        from crossfeed.estimate.language import DifferentiableLanguage

        return DifferentiableLanguage
    raise NotAvailableError(f"family: found {family.kind}; need a flow, a diffusion network or a language model")
