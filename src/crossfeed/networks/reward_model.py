"""Rewards from a network: a sequence classifier with one output, from a hub or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import RewardModel
from crossfeed.errors import CrossfeedError, DataError
from crossfeed.networks.extras import need
from crossfeed.networks.pretrained import check_folder, opened, quiet
from crossfeed.networks.text_rewards import Judge
from crossfeed.networks.tokens import chat_tokens

_BATCH = 32


def reward_model(reward: RewardModel, device: torch.device | str = "cpu", where: str = "reward") -> Judge:
    """The network's logit for each prompt and answer, times ``scale``, as a function of lists of prompts and answers.

    The text it reads is the tokenizer's chat template filled in with the prompt as the user's message and the answer as the
    assistant's; without a chat template, prompt and answer as the tokenizer joins a pair of texts. A text of more than
    ``max_tokens`` tokens loses its beginning. Batches of 32 of similar length, in the type the weights are stored in.

    Args:
        reward: The node.
        device: Where the network goes.
        where: The reward in the spec, for errors.

    Raises:
        DataError: no such model, pickled weights, more than one output, or a head that is not in the checkpoint.
        NotAvailableError: transformers is missing.
    """
    transformers = need("transformers", "lm")
    name, device = reward.pretrained, torch.device(device)
    check_folder(where, name, None)
    with quiet():
        config = opened(where, name, lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
        if config.num_labels != 1:
            raise DataError(
                f"{where}.pretrained: found {config.num_labels} outputs in {name!r}; need a reward model, a sequence classifier with one"
            )
        tokenizer = opened(
            where, name, lambda: transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        )
        kind = transformers.AutoModelForSequenceClassification
        network, loaded = opened(
            where,
            name,
            lambda: kind.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, dtype="auto", output_loading_info=True
            ),
        )
    if loaded["missing_keys"]:
        raise DataError(
            f"{where}.pretrained: {name!r} lacks the weights {sorted(loaded['missing_keys'])[0]} of a sequence classifier; need a trained "
            "reward model"
        )
    if network.config.pad_token_id is None:
        network.config.pad_token_id = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
    if network.config.pad_token_id is None:
        raise DataError(
            f"{where}.pretrained: found neither a padding nor an end token in {name!r}; need a tokenizer with one"
        )
    network = network.to(device).eval()
    limits = (reward.max_tokens, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    most = int(min(limit for limit in limits if isinstance(limit, (int, float)) and limit > 0))
    tokenizer.truncation_side = "left"

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        ids = [_ids(tokenizer, prompt, answer, most) for prompt, answer in zip(prompts, answers, strict=True)]
        values = torch.empty(len(ids), dtype=torch.float64)
        order = torch.tensor([len(tokens) for tokens in ids]).argsort(stable=True).tolist()
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            try:
                values[chosen] = _logits(network, [ids[i] for i in chosen], device).double().cpu()
            except torch.OutOfMemoryError:
                raise CrossfeedError(
                    f"{where}: {len(chosen)} texts of up to {len(ids[chosen[-1]]):,} tokens do not fit into the memory of {device}; "
                    f"lower {where}.max_tokens ({reward.max_tokens:,})"
                ) from None
        return np.asarray(reward.scale * values.numpy(), dtype=np.float64)

    return judge


def _ids(tokenizer: Any, prompt: str, answer: str, most: int) -> list[int]:
    """What the network reads of a prompt and an answer."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return chat_tokens(tokenizer, messages)[-most:]
    prompt, answer = (text.encode("utf-8", "replace").decode() for text in (prompt, answer))
    out: list[int] = tokenizer(
        prompt, answer, truncation=True, max_length=most, split_special_tokens=True, verbose=False
    )["input_ids"]
    return out


@torch.inference_mode()
def _logits(network: Any, ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, ids))
    pad = network.config.pad_token_id
    padded = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in ids], device=device)
    size = torch.tensor([len(tokens) for tokens in ids], device=device)
    mask = (torch.arange(longest, device=device) < size[:, None]).long()
    out: Tensor = network(input_ids=padded, attention_mask=mask).logits[:, 0]
    return out
