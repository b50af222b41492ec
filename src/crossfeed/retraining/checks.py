"""Live checks of a round: what is trained moves, stays finite, and is what generates.

The faults they catch run without an error otherwise: adapters that are loaded but not used in generation, parameters
frozen by a wrapper, rewards or weights that are NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crossfeed.errors import CheckFailedError
from crossfeed.networks.base import Network

NEGLIGIBLE = 1e-4
"""A relative step below this may be too small for the probe's precision."""


def check_trained(
    network: Network, round: int, moved: float, norm_before: float, probe_before: Tensor
) -> dict[str, Any]:
    """Check a network that was just trained.

    Args:
        network: The network.
        round: The round, 0 for pretraining.
        moved: ‖θ' − θ‖.
        norm_before: ‖θ‖.
        probe_before: What :meth:`Network.probe` gave before training.

    Returns:
        What was found, for the record: whether generation changed, and whether it differs from the frozen base.

    Raises:
        CheckFailedError: a check was violated; says what to do.
    """
    place = f"round {round}, models.{network.name}"
    broken = [name for name, value in network.parameters().items() if not bool(torch.isfinite(value).all())]
    if broken or not math.isfinite(moved):
        raise CheckFailedError(
            f"{place}: parameters are not finite after training, first {broken[0] if broken else 'their step'}; lower "
            "train.learning_rate or set train.gradient_clip. Finished rounds are kept; another spec needs a run of its own"
        )
    if moved == 0:
        raise CheckFailedError(
            f"{place}: training moved no parameter; see that the family has trainable parameters and that "
            "train.learning_rate (with its decay) is not vanishing. Finished rounds are kept; another spec needs a run of its own"
        )
    probe = network.probe()
    if not bool(torch.isfinite(probe).all()):
        raise CheckFailedError(
            f"{place}: the network generates numbers that are not finite; lower train.learning_rate or use "
            "--dtype float32. Finished rounds are kept; another spec needs a run of its own"
        )
    changed = not torch.equal(probe, probe_before)
    if not changed and moved > NEGLIGIBLE * max(norm_before, 1e-30):
        raise CheckFailedError(
            f"{place}: training moved the parameters by {moved:.3g}, but what generates did not change: generation does not "
            "use the trained parameters. See that the adapter in use is the trained one; please report this as a bug"
        )
    base = network.base_probe()
    live = None if base is None else not torch.equal(probe, base)
    if live is False and changed:
        raise CheckFailedError(
            f"{place}: generation gives what the frozen base gives: the trained adapter is not in use. See that "
            "models of one base do not switch each other's adapters off; please report this as a bug"
        )
    return {"generation_changed": changed, "differs_from_base": live}
