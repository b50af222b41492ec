"""Every network of an ecosystem, by its family."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from crossfeed.describe.schema import CausalLM, Diffusion, Flow
from crossfeed.errors import DataError, NotAvailableError
from crossfeed.networks.base import Network
from crossfeed.networks.randomness import child_seed
from crossfeed.networks.world import World


def build(world: World, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Network]:
    """Make every model of the spec, at its start.

    New parameters depend on the spec's seed and the model's name alone. Language models are made together, so that those
    with the same base share it. A model's ``checkpoint`` is loaded last.

    Args:
        world: The open world.
        device: Where the parameters go.
        dtype: bfloat16 for autocast in forward passes; parameters are float32 always.

    Returns:
        The networks by name, in the order of the spec.

    Raises:
        NotAvailableError: a library is missing, or a model is of a closed-form family.
        DataError: a checkpoint cannot be used.
    """
    eco, device = world.eco, torch.device(device)
    seeds = {name: child_seed(eco.seed, 0, name, "parameters") for name in eco.models}
    networks: dict[str, Network] = {}
    languages: dict[str, CausalLM] = {}
    for name, model in eco.models.items():
        family = model.family
        if isinstance(family, Flow):
            from crossfeed.networks.flow import SplineFlow

            networks[name] = SplineFlow(name, family, world.shape[0], seeds[name], device)
        elif isinstance(family, Diffusion):
            from crossfeed.networks import diffusion

            networks[name] = diffusion.build(name, family, world, seeds[name], device, dtype)
        elif isinstance(family, CausalLM):
            languages[name] = family
        else:
            found = f"models.{name}: found the closed-form family {family.kind!r}"
            raise NotAvailableError(f"{found}; `run_networks` needs networks: flow, diffusion or causal_lm")
    if languages:
        from crossfeed.networks import language

        own = {name: seeds[name] for name in languages}
        networks.update(language.build_all(languages, world, own, device, dtype))
    for name, model in eco.models.items():
        if model.checkpoint is not None:
            _start_from(networks[name], model.checkpoint)
    return {name: networks[name] for name in eco.models}


def _start_from(network: Network, file: str) -> None:
    """Load a model's parameters from a safetensors file."""
    where = f"models.{network.name}.checkpoint: {file}"
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"{where}: found no such file; need a .safetensors file of an earlier run")
    try:
        parameters = load_file(path)
    except Exception as error:  # damaged files raise many kinds
        reason = " ".join(str(error).replace(";", ",").split())[:200]
        raise DataError(f"{where}: found no readable safetensors file ({reason}); need a whole one") from None
    try:
        network.load(parameters)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
