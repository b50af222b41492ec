"""A small language model made on the spot: a Llama of stated sizes with a byte-pair vocabulary trained on the run's texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from crossfeed.describe.network_nodes import FreshLM
from crossfeed.networks.extras import need

END, PAD = "<|end|>", "<|pad|>"
_CONTEXT = 8192


def fresh_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level byte-pair tokenizer trained on these texts; any text can be encoded, and it has no chat template.

    The same texts, in any order and any number of times each, give the same tokenizer.

    Args:
        texts: What to learn the vocabulary from.
        vocabulary: Tokens at most: 256 bytes, an end token, a padding token and merges.

    Returns:
        A transformers tokenizer.

    Example:
        >>> tokenizer = fresh_tokenizer(["the cat and the hat"], 260)
        >>> tokenizer.decode(tokenizer("the cat ☃").input_ids)
        'the cat ☃'
    """
    tokenizers = need("tokenizers", "lm")
    transformers = need("transformers", "lm")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    known = {text.encode("utf-8", "replace").decode() for text in texts if text}  # lone surrogates cannot be encoded
    backend.train_from_iterator(sorted(known), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD)


def fresh_network(family: FreshLM, tokenizer: Any, seed: int, attention: str) -> Any:
    """A Llama with random weights.

    Args:
        family: Sizes.
        tokenizer: Its vocabulary is the network's.
        seed: Of the weights; nothing else enters, and the global random state is left as it was.
        attention: ``sdpa`` or ``eager``.

    Returns:
        A transformers causal language model on the CPU, float32.
    """
    transformers = need("transformers", "lm")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=family.width,
        intermediate_size=4 * family.width,
        num_hidden_layers=family.layers,
        num_attention_heads=family.heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=min(
            0.02 * (576 / family.width) ** 0.5, 0.1
        ),  # so that narrow networks start as lively as wide ones
    )
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)
