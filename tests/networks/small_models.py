"""Pretrained language models small enough for tests, saved to folders as a hub would hold them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from crossfeed.describe.network_nodes import CausalLM, FreshLM, Lora
from crossfeed.networks.fresh import fresh_network, fresh_tokenizer
from crossfeed.networks.language import LanguageModel, build_all
from crossfeed.networks.world import DataSet, Prompts, World

INPUTS = [
    f"Tool {i} {'sorts' if i % 2 else 'counts'} {'files' if i % 3 else 'cards of several kinds'}." for i in range(12)
]
ANSWERS = [f"{'sorts' if i % 2 else 'counts'} things {i}" for i in range(12)]
CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SIZES = FreshLM(width=32, layers=2, heads=4, vocabulary=300)


def world(inputs: list[str] = INPUTS, template: str = "Shorten: {input}\nShort:", seed: int = 0) -> World:
    """Texts, their answers, and nothing else."""
    prompts = Prompts()
    rows = list(range(len(inputs)))
    index = prompts.add("tools", inputs, [template.replace("{input}", text) for text in inputs], rows)
    data = DataSet("tools", len(inputs), rows, index, ANSWERS[: len(inputs)])
    return World(SimpleNamespace(seed=seed), prompts, {"tools": data}, "text", ())  # type: ignore[arg-type]


def family(**changes: Any) -> CausalLM:
    fields: dict[str, Any] = {
        "fresh": SIZES,
        "lora": Lora(rank=2, alpha=4),
        "max_prompt_tokens": 64,
        "max_new_tokens": 8,
        "attention": "eager",
    }
    return CausalLM(**(fields | changes))


def models(
    names: str = "p", seeds: dict[str, int] | None = None, over: World | None = None, **changes: Any
) -> dict[str, LanguageModel]:
    seeds = seeds or {name: i + 1 for i, name in enumerate(names)}
    dtype = changes.pop("dtype", torch.float32)
    return build_all(dict.fromkeys(names, family(**changes)), over or world(), seeds, dtype=dtype)


def shake(model: LanguageModel, size: float, seed: int = 0) -> None:
    """Move every trained parameter."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters().values():
            value += size * torch.randn(value.shape, generator=random)


def save_tokenizer(folder: Path, chat: str | None = CHAT) -> Any:
    tokenizer = fresh_tokenizer(INPUTS + ANSWERS, SIZES.vocabulary - 2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|stop|>"]})
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, chat: str | None = CHAT, seed: int = 0) -> Any:
    """A tiny Llama with random weights and its tokenizer, as a folder with safetensors."""
    network = fresh_network(SIZES, save_tokenizer(folder, chat), seed, "sdpa")
    network.save_pretrained(folder)
    return network


def save_reward_model(folder: Path, chat: str | None = CHAT, labels: int = 1) -> Any:
    """A tiny Llama with a classifier's head."""
    from transformers import LlamaForSequenceClassification

    config = fresh_network(SIZES, save_tokenizer(folder, chat), 0, "sdpa").config
    config.num_labels = labels
    torch.manual_seed(1)
    network = LlamaForSequenceClassification(config).eval()
    network.save_pretrained(folder)
    return network
