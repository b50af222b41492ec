"""UNet2DModel and its noise schedule: made new from a spec's sizes, or read from a diffusers checkpoint.

Weights are read from safetensors only, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crossfeed.describe.network_nodes import Diffusion
from crossfeed.errors import DataError, NotAvailableError, Problem, SpecError
from crossfeed.networks.extras import need

Shape = tuple[int, int, int]


def new_unet(family: Diffusion, shape: Shape, num_classes: int | None, seed: int, path: str) -> torch.nn.Module:
    """A network with random parameters; torch's global generators are left as they were.

    A head of attention is ``family.head_dim`` channels wide, or the largest common divisor with the channels where that
    does not divide them. The block in the middle has attention if any level has.

    Args:
        family: Sizes.
        shape: (3, h, w) of an image.
        num_classes: Labels that it knows; None for a network without labels.
        seed: Of the parameters.
        path: Where the family stands in the spec, for errors.

    Raises:
        SpecError: sizes that do not fit each other or the images.
    """
    channels, attention = family.channels, _attention(family, path)
    by = 2 ** (len(channels) - 1)
    if shape[1] % by or shape[2] % by:
        most = min((side & -side).bit_length() for side in shape[1:])
        found = f"{len(channels)} levels halve the image {len(channels) - 1} times, but it is {shape[1]} × {shape[2]}"
        raise SpecError([Problem(f"{path}.channels", found, f"need at most {most} levels, or another space.size")])
    for level, width in enumerate(channels):
        if width % family.norm_groups:
            found = f"{family.norm_groups} groups do not divide the {width} channels of level {level}"
            need_words = f"need a divisor of {math.gcd(*channels)}"
            raise SpecError([Problem(f"{path}.norm_groups", found, need_words)])
    attended = [width for width, on in zip(channels, attention, strict=True) if on]
    head_dim = math.gcd(family.head_dim, *attended, channels[-1])
    diffusers = need("diffusers", "diffusion")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = diffusers.UNet2DModel(
            sample_size=shape[1] if shape[1] == shape[2] else shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(channels),
            layers_per_block=family.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in attention),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
            add_attention=bool(attended),
            attention_head_dim=head_dim,
            norm_num_groups=family.norm_groups,
            num_class_embeds=num_classes,
        )
    return module


def _attention(family: Diffusion, path: str) -> list[bool]:
    """Attention by level."""
    levels = len(family.channels)
    if family.attention is None:
        return [0 < level < levels - 1 for level in range(levels)]
    if len(family.attention) != levels:
        found = f"{len(family.attention)} entries for {levels} levels"
        raise SpecError([Problem(f"{path}.attention", found, "need one a level, as in `channels`")])
    return family.attention


def new_scheduler(family: Diffusion) -> Any:
    """The DDIMScheduler of the spec's forward process.

    The linear schedule's β runs from .1/T to 20/T with T noise levels (.0001 to .02 at 1000), so that images end as
    nearly pure noise whatever T is; above .999 it is cut.
    """
    levels = family.noise_levels
    return need("diffusers", "diffusion").DDIMScheduler(
        num_train_timesteps=levels,
        beta_start=min(0.1 / levels, 0.999),
        beta_end=min(20.0 / levels, 0.999),
        beta_schedule=family.schedule,
    )


def load_unet(name: str, shape: Shape, num_classes: int | None, path: str) -> torch.nn.Module:
    """The network of a checkpoint: a folder or hub repository of a UNet2DModel, or of a pipeline with a ``unet``.

    Raises:
        DataError: there is none, its weights are not safetensors, or it is made for other images or labels than the
            spec's; names both.
    """
    model = need("diffusers", "diffusion").UNet2DModel
    where = f"{path}.pretrained: {name}"
    subfolder, config = _config(model, name, ("unet", None))
    if config is None:
        wanted = "need config.json of a UNet2DModel there, or a pipeline with a unet folder"
        raise DataError(f"{where} has no diffusers network; {wanted}{_hint(name)}")
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise DataError(f"{where} is a {kind}; need a UNet2DModel, which works on pixels")
    _check_config(config, shape, num_classes, where, path)
    try:
        module = model.from_pretrained(name, subfolder=subfolder, use_safetensors=True, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        wanted = "need diffusion_pytorch_model.safetensors; pickled weights (.bin, .ckpt) are never read, convert them"
        raise DataError(f"{where}: its weights cannot be read ({reason}); {wanted}") from error
    return module


def _check_config(config: dict[str, Any], shape: Shape, num_classes: int | None, where: str, path: str) -> None:
    """Refuse a network made for other images or labels than the spec's."""
    size = config.get("sample_size")
    size = (size, size) if isinstance(size, int) else None if size is None else tuple(size)
    if size is not None and size != shape[1:]:
        want = f"the spec's images are {shape[1]} × {shape[2]}"
        raise DataError(f"{where} makes images of {size[0]} × {size[1]}, but {want}; set space.size: {size[0]}")
    for key in ("in_channels", "out_channels"):
        channels = config.get(key, 3)
        if channels != shape[0]:
            raise DataError(f"{where} has {key} {channels}, but the spec's images have {shape[0]}; use another network")
    known = config.get("num_class_embeds")
    if config.get("class_embed_type") is not None:
        raise DataError(f"{where} takes labels as {config['class_embed_type']}; need an embedding (num_class_embeds)")
    if known != num_classes:
        have = "takes no labels" if known is None else f"has {known} classes"
        want = f"the spec's images have {num_classes} labels" if num_classes else "the spec asks for none"
        fix = (
            f"set {path}.conditional: {'false' if known is None else 'true'}, " if None in (known, num_classes) else ""
        )
        raise DataError(f"{where} {have}, but {want}; {fix}or use photographs with the network's labels")


def load_scheduler(name: str, family: Diffusion, path: str) -> Any:
    """The schedule of a checkpoint, or the spec's where it has none.

    Raises:
        NotAvailableError: it asks for something that this sampler does not do.
    """
    ddim = need("diffusers", "diffusion").DDIMScheduler
    _, config = _config(ddim, name, ("scheduler", None))
    if config is None:
        return new_scheduler(family)
    known = set(inspect.signature(ddim.__init__).parameters)
    scheduler = ddim(**{key: value for key, value in config.items() if key in known})
    for key in ("thresholding", "rescale_betas_zero_snr"):
        if scheduler.config.get(key):
            need_words = f"the scheduler of {name} sets {key}, which this sampler does not do; use another checkpoint"
            raise NotAvailableError(f"{path}.pretrained: {need_words}")
    return scheduler


def _config(cls: Any, name: str, folders: tuple[str | None, ...]) -> tuple[str | None, dict[str, Any] | None]:
    """The first of these subfolders with a configuration file for ``cls``, and the configuration."""
    local = Path(name).is_dir()
    for subfolder in folders:
        if local and not (Path(name) / (subfolder or "") / cls.config_name).is_file():
            continue
        try:
            return subfolder, dict(cls.load_config(name, subfolder=subfolder))
        except OSError:
            continue
    return None, None


def _hint(name: str) -> str:
    """What else may be wrong with a name that leads nowhere."""
    return "" if Path(name).is_dir() else "; there is no such folder, and no hub repository of this name could be read"


class Attend:
    """Self-attention over the pixels of a (n, channels, h, w) tensor, as diffusers' attention modules have it.

    Group norms, here and after it, see contiguous tensors (their forward-mode derivative needs that), and with ``plain`` attention is
    written out, so that forward-mode and second derivatives exist; the fused kernel has neither.
    """

    def __init__(self) -> None:
        self.plain = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend, and add the input where the module is residual; the last three are diffusers' and play no part."""
        n, channels, height, width = hidden_states.shape
        flat = hidden_states.reshape(n, channels, height * width)
        if attn.group_norm is not None:
            flat = attn.group_norm(flat)
        tokens = flat.transpose(1, 2)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self.plain:
            mixed = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1).to(value.dtype) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        out = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        out = out.transpose(1, 2).contiguous().view(n, channels, height, width)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def set_attention(module: torch.nn.Module) -> Attend:
    """Give every attention module of the network one shared :class:`Attend`; returns it."""
    attention = need("diffusers.models.attention_processor", "diffusion").Attention
    shared = Attend()
    for part in module.modules():
        if isinstance(part, attention):
            part.set_processor(shared)
    return shared
