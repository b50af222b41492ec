"""Frozen base networks in memory, each with the adapters of all models that share it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from crossfeed.describe.network_nodes import CausalLM, Lora
from crossfeed.errors import DataError, Problem, SpecError
from crossfeed.networks.extras import need

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Base:
    """A causal language model in memory: frozen under the adapters of several models, or trained whole by one.

    Args:
        network: A transformers causal language model on the CPU, float32.
        tokenizer: Its tokenizer.
        device: Where it goes.
        dtype: What forward passes compute in. The frozen weights are kept in it; whatever is trained stays float32.
        frozen: Adapters are trained, not the network.

    Attributes:
        gathers: The network can give its logits at chosen places of each row alone, which saves time and much memory.
    """

    def __init__(self, network: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype, frozen: bool) -> None:
        self.tokenizer = tokenizer
        self.device, self.dtype, self.frozen = device, dtype, frozen
        self.network = network.to(device=device, dtype=dtype if frozen else torch.float32).eval()
        self.network.requires_grad_(not frozen)
        self.gathers = _gathers(self.network)
        self._peft: Any = None
        self._layers: list[Any] = []
        self._names: dict[str, str] = {}  # model name to the adapter's name inside peft
        self._inside: dict[str, dict[str, str]] = {}
        self._parameters: dict[str, dict[str, Tensor]] = {}
        self._active: str | None = None
        self._training = False

    def add(self, model: str, lora: Lora, seed: int) -> None:
        """Put a new adapter of this model into the network: A random by ``seed`` alone, B zero, so that nothing changes yet.

        Raises:
            SpecError: ``target`` names no layer that can be adapted.
        """
        peft = need("peft", "lm")
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target,
            bias="none",
            task_type="CAUSAL_LM",
        )
        inside = self._names[model] = f"m{len(self._names)}"  # a model may have a name that a module cannot have
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # peft warns of tied weights, and asks transformers for things by old names
                if self._peft is None:
                    self._peft = peft.get_peft_model(self.network, config, adapter_name=inside)
                else:
                    self._peft.add_adapter(inside, config)
        except ValueError as error:
            raise SpecError(
                [
                    Problem(
                        f"models.{model}.family.lora.target",
                        f"found {lora.target!r}, which peft cannot adapt ({' '.join(str(error).split())[:160]})",
                        "need `all-linear`, or names of linear layers such as q_proj",
                    )
                ]
            ) from None
        layer = need("peft.tuners.lora", "lm").LoraLayer
        self._layers = [module for module in self.network.modules() if isinstance(module, layer)]
        for module in self._layers:  # under autocast, peft's cast of every input to float32 would only be undone
            module.cast_input_dtype_enabled = self.dtype == torch.float32
        mark, prefix = f".{inside}", "base_model.model."  # peft names what is inside its wrapper so
        mine = {name: v for name, v in self.network.named_parameters() if f"{mark}." in name or name.endswith(mark)}
        self._inside[model] = {prefix + name.replace(mark, ""): name for name in mine}
        self._parameters[model] = {prefix + name.replace(mark, ""): value for name, value in mine.items()}
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self._parameters[model].items():
                value.copy_(_initial(name, value, random))
        self.network.eval()  # peft's new layers come in training mode
        self._active, self._training = None, False
        self.use(model)

    def read_adapter(self, model: str, lora: Lora, folder: str) -> None:
        """Copy the weights of a peft adapter's folder into this model's adapter.

        Raises:
            DataError: no such adapter, or one of another kind or size than the spec's.
        """
        where, path = f"models.{model}.family.adapter", Path(folder).expanduser()
        for file in _ADAPTER_FILES:
            if not (path / file).is_file():
                raise DataError(
                    f"{where}: found no {file} in {folder!r}; need a peft adapter's folder with {' and '.join(_ADAPTER_FILES)}"
                )
        try:
            config = json.loads((path / _ADAPTER_FILES[0]).read_text("utf-8"))
            stored = load_file(path / _ADAPTER_FILES[1])
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{where}: {folder!r} cannot be read ({reason}); need a whole peft adapter") from None
        unlike = (
            "use_dora",
            "use_rslora",
            "modules_to_save",
            "alpha_pattern",
            "rank_pattern",
            "lora_bias",
            "use_qalora",
        )
        other = [k for k in (*unlike, "layer_replication") if config.get(k)]
        if config.get("peft_type") != "LORA" or other or config.get("bias", "none") != "none":
            kind = f"LoRA with {other[0]}" if other else f"{config.get('peft_type')} with bias {config.get('bias')!r}"
            raise DataError(f"{where}: found {kind} in {folder!r}; need plain LoRA adapters")
        if (
            config.get("r") != lora.rank
            or config.get("lora_alpha") != lora.alpha
            or stored.keys() != self._parameters[model].keys()
        ):
            target = json.dumps(config.get("target_modules"))
            raise DataError(
                f"{where}: {folder!r} has r {config.get('r')}, alpha {config.get('lora_alpha')} and {len(stored)} tensors, the "
                f"spec's adapter r {lora.rank}, alpha {lora.alpha:g} and {len(self._parameters[model])}; need `lora: {{rank: "
                f"{config.get('r')}, alpha: {config.get('lora_alpha')}, target: {target}}}` and the same base"
            )
        copy_into(self._parameters[model], stored, where)

    def parameters(self, model: str) -> dict[str, Tensor]:
        """What this model trains, by name: its adapter's weights as a peft file names them, or the network's."""
        return self._parameters[model] if self.frozen else dict(self.network.named_parameters())

    def inside(self, model: str, name: str) -> str:
        """A parameter's name inside ``network``, for torch.func.functional_call."""
        return self._inside[model][name] if self.frozen else name

    def use(self, model: str | None, training: bool = False) -> Any:
        """The network with this model's adapter switched on, and all others off; None switches all off.

        Every forward pass goes through here, so no model ever sees another's adapter.
        """
        if self._training != training:
            self.network.train(training)
            self._training = training
        if self.frozen and model != self._active:
            with temporarily_clear_interpreter_stack():  # torch.func lets nothing set requires_grad inside a transform
                self._switch(model)
            self._active = model
        return self.network

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it attention is written out, whatever the spec says: the fused kernels have no derivatives beyond the first."""
        before = self.network.config._attn_implementation
        if before != "eager":
            self.network.set_attn_implementation("eager")
        try:
            yield
        finally:
            if before != "eager":
                self.network.set_attn_implementation(before)

    def _switch(self, model: str | None) -> None:
        for layer in self._layers:
            if model is not None:
                layer.set_adapter([self._names[model]])
            layer.enable_adapters(model is not None)
        for parameters in self._parameters.values():  # peft freezes what it switches off; optimisers hold them all
            for value in parameters.values():
                value.requires_grad_(True)

    @contextmanager
    def generating(self, model: str | None) -> Iterator[Any]:
        """The network as it generates: this model's adapter added into the weights, all in the compute type.

        The frozen tensors themselves are set aside and come back afterwards, untouched, so nothing is lost by rounding. Twice as fast as
        adapters beside the weights, at the price of a copy of the adapted weights while it lasts.
        """
        network = self.use(model)
        aside: list[tuple[nn.Module, str, Tensor]] = []
        beside = model is not None and self.frozen  # adapters run beside the weights
        try:
            if beside and self._can_merge():
                for layer in self._layers:
                    self._merge(layer, self._names[model or ""], aside)
                self.use(None)
                beside = False
            if not self.frozen and self.dtype != torch.float32:
                self._cast(aside)
            with torch.autocast(self.device.type, self.dtype, enabled=beside and self.dtype != torch.float32):
                yield network
        finally:
            for module, name, value in aside:
                module._parameters[name] = value  # type: ignore[assignment]

    def _can_merge(self) -> bool:
        return all(
            hasattr(layer, "get_delta_weight") and hasattr(layer.get_base_layer(), "weight") for layer in self._layers
        )

    @torch.no_grad()
    def _merge(self, layer: Any, adapter: str, aside: list[tuple[nn.Module, str, Tensor]]) -> None:
        if adapter not in layer.lora_A and adapter not in layer.lora_embedding_A:
            return
        inner = layer.get_base_layer()
        old = inner._parameters["weight"]
        aside.append((inner, "weight", old))
        new = (old.float() + layer.get_delta_weight(adapter).float()).to(old.dtype)
        inner._parameters["weight"] = nn.Parameter(new, requires_grad=False)

    @torch.no_grad()
    def _cast(self, aside: list[tuple[nn.Module, str, Tensor]]) -> None:
        seen: dict[int, nn.Parameter] = {}
        for module in self.network.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    aside.append((module, name, old))
                    seen.setdefault(id(old), nn.Parameter(old.to(self.dtype), requires_grad=False))
        for module, name, old in aside:
            module._parameters[name] = seen[id(old)]


def copy_into(mine: dict[str, Tensor], stored: dict[str, Tensor], where: str) -> None:
    """Copy stored values into parameters.

    Raises:
        DataError: names or shapes differ; says which.
    """
    for name in sorted(mine.keys() | stored.keys()):
        have = tuple(stored[name].shape) if name in stored else "nothing"
        want = tuple(mine[name].shape) if name in mine else "nothing"
        if have != want:
            raise DataError(
                f"{where}: the stored parameters do not fit this network, first {name}: found {have}, need {want}; need "
                "parameters of the same family, base and sizes"
            )
    with torch.no_grad():
        for name, value in mine.items():
            value.copy_(stored[name])


def share_key(family: CausalLM) -> str:
    """Equal for families whose frozen base is the same."""
    fields = {"pretrained", "gguf_file", "fresh", "attention"}
    return json.dumps(family.model_dump(mode="json", include=fields), sort_keys=True)


@torch.inference_mode()
def _gathers(network: Any) -> bool:
    device = network.get_input_embeddings().weight.device
    ids, places = torch.tensor([[0, 1, 2], [2, 1, 0]], device=device), torch.tensor([[0, 2], [1, 1]], device=device)
    try:
        some = network(input_ids=ids, logits_to_keep=places).logits
    except (IndexError, RuntimeError, TypeError, ValueError):  # older versions take a number only
        return False
    found = torch.take_along_dim(network(input_ids=ids).logits, places[..., None], dim=1)
    return bool(some.shape == found.shape and torch.allclose(some.float(), found.float(), rtol=1e-2, atol=1e-2))


def _initial(name: str, value: Tensor, random: torch.Generator) -> Tensor:
    """Adapters start as peft's do: one factor uniform, ±1/√(inputs) (embeddings: normal), the other zero."""
    if "lora_embedding_B" in name:
        return torch.randn(value.shape, generator=random)
    if "lora_A" in name:
        bound = value[0].numel() ** -0.5
        return (2 * torch.rand(value.shape, generator=random) - 1) * bound
    return torch.zeros(value.shape)
