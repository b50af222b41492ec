"""Sampling from causal language models: one prefill a prompt, a key-value cache that does not move, rows that leave when done.

Each output has its own stream of uniform numbers, and token t is the inverse distribution function at the stream's number t.
So what is drawn for an output does not depend on which other outputs share its batch, beyond rounding.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.errors import CheckFailedError
from crossfeed.networks.base import Advance
from crossfeed.networks.extras import need

_BLOCK = 128
_ROOM = 32
_KEEP = 0.8
_FIRST_BEST = 64
_MORE = 16


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: Longest output.
        stop: Tokens that end an output; they are not part of it.
        pad: A token for places that are not looked at.
        temperature: Logits are divided by it.
        top_p: Only the most probable tokens, of this much mass together, are drawn.
    """

    max_new_tokens: int
    stop: Sequence[int]
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    uniforms: Tensor | None,
    how: Sampling,
    *,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> list[list[int]]:
    """``counts[i]`` continuations of prompt i, all of prompt 0 first.

    Prompts are sorted by length; those of one batch are padded on the left and read once, then their cache is repeated for
    the outputs. Rows that have ended leave the batch.

    Args:
        model: A transformers causal language model, in evaluation mode.
        prompts: Token ids, at least one each.
        counts: Outputs of each prompt.
        uniforms: (Σ counts, max_new_tokens) float64 in [0, 1), one row an output; None takes the most probable token.
        how: How tokens are drawn.
        batch_size: Outputs at once.
        advance: Called with the number of outputs that were just finished.

    Returns:
        Token ids of Σ counts outputs, without the token that ended them.

    Raises:
        CheckFailedError: the network gives numbers that are not finite.
    """
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    out: list[list[int]] = [[] for _ in range(starts[-1])]
    order = sorted((i for i in range(len(prompts)) if counts[i]), key=lambda i: (len(prompts[i]), i))
    rows = [(i, row) for i in order for row in range(starts[i], starts[i + 1])]
    for begin in range(0, len(rows), batch_size):
        chosen = rows[begin : begin + batch_size]
        owners = list(dict.fromkeys(i for i, _ in chosen))
        place = {owner: k for k, owner in enumerate(owners)}
        index = [row for _, row in chosen]
        mine = None if uniforms is None else uniforms[index]
        found = _decode(model, [prompts[i] for i in owners], [place[i] for i, _ in chosen], mine, how)
        for row, tokens in zip(index, found, strict=True):
            out[row] = tokens
        if advance is not None:
            advance(len(chosen))
    return out


@torch.inference_mode()
def first_logits(model: Any, prompts: Sequence[Sequence[int]], token: int, pad: int) -> Tensor:
    """Logits after each prompt, and after one further token through the cache: (2, prompts, vocabulary) float32."""
    state = _State(model, prompts, pad)
    first = state.logits
    state.step(torch.full((len(prompts),), token, device=first.device))
    return torch.stack([first, state.logits]).float()


@torch.inference_mode()
def _decode(
    model: Any, prompts: Sequence[Sequence[int]], owner: Sequence[int], uniforms: Tensor | None, how: Sampling
) -> list[list[int]]:
    """Outputs of one batch; output r continues prompt ``owner[r]``."""
    state = _State(model, prompts, how.pad)
    device = state.logits.device
    state.select(torch.tensor(owner, device=device))
    num = len(owner)
    tokens = torch.full((num, how.max_new_tokens), -1, dtype=torch.int64, device=device)
    uniforms = None if uniforms is None else uniforms.to(device)
    stop = torch.tensor(how.stop, device=device)
    rows = torch.arange(num, device=device)  # which output each row of the batch is
    alive = torch.ones(num, dtype=torch.bool, device=device)
    for t in range(how.max_new_tokens):
        drawn = draw(state.logits, None if uniforms is None else uniforms[rows, t], how.temperature, how.top_p)
        alive &= ~torch.isin(drawn, stop)
        tokens[rows[alive], t] = drawn[alive]
        left = int(alive.sum())
        if not left or t + 1 == how.max_new_tokens:
            break
        if left <= _KEEP * len(rows):
            index = alive.nonzero().squeeze(1)
            state.select(index)
            rows, drawn, alive = rows[index], drawn[index], alive[index]
        state.step(drawn)
    ends = (tokens >= 0).sum(1).tolist()
    return [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]


class _State:
    """Rows of a batch in the middle of being continued: their cache, mask and the logits of the next token."""

    logits: Tensor

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        device = model.get_input_embeddings().weight.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
        blank = torch.tensor([longest - len(p) for p in prompts], device=device)
        self._mask = (torch.arange(longest, device=device) >= blank[:, None]).long()
        self._next = longest - blank  # position of the next token
        self._model = model
        self._cache = _cache(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._forward(ids, (self._mask.cumsum(1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> None:
        """Append one token a row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._forward(tokens[:, None], self._next[:, None])
        self._next = self._next + 1

    def select(self, index: Tensor) -> None:
        """Keep, repeat or drop rows."""
        if len(index) == len(self._mask) and bool((index == torch.arange(len(index), device=index.device)).all()):
            return
        self._cache.batch_select_indices(index)
        self._mask, self._next, self.logits = self._mask[index], self._next[index], self.logits[index]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        more = {"position_ids": positions} if self._takes_positions else {}
        found = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **more,
        )
        self.logits = found.logits[:, -1]


def draw(logits: Tensor, uniforms: Tensor | None, temperature: float, top_p: float) -> Tensor:
    """One token a row: the inverse distribution function of softmax(logits/temperature), cut to ``top_p``, at a number.

    The distribution function runs over the tokens in the order of their ids. The nucleus holds every token that is at least as probable
    as the last one needed to reach ``top_p``; equal ones stay together.

    Args:
        logits: (rows, tokens).
        uniforms: (rows,) in [0, 1); None for the most probable token.
        temperature: Above 0.
        top_p: In (0, 1].

    Returns:
        (rows,) int64.

    Raises:
        CheckFailedError: logits that are not finite.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> [int(draw(logits, torch.tensor([u]), 1.0, 1.0)) for u in (0.1, 0.6, 0.9)]
        [0, 1, 2]
        >>> [int(draw(logits, torch.tensor([u]), 1.0, 0.7)) for u in (0.1, 0.6, 0.9)]
        [0, 0, 1]
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise CheckFailedError("the network's logits are not finite")
    if uniforms is None:
        return logits.argmax(-1)
    mass = (logits - top).mul_(1 / temperature).exp_()
    if top_p < 1:
        mass.masked_fill_(mass < _nucleus(mass, top_p), 0.0)
    rows, tokens = mass.shape
    short = -tokens % _BLOCK
    blocks = (torch.nn.functional.pad(mass, (0, short)) if short else mass).view(rows, -1, _BLOCK)
    upto = blocks.sum(-1).double().cumsum(-1)
    goal = uniforms.double() * upto[:, -1]
    block = (upto <= goal[:, None]).sum(-1).clamp(max=upto.shape[1] - 1)
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp(min=0)[:, None]).squeeze(1), 0.0)
    inside = blocks[torch.arange(rows, device=block.device), block].double().cumsum(-1)
    place = (inside <= (goal - before)[:, None]).sum(-1)
    # rounding may lead past the last token that has any mass
    last = (inside < inside[:, -1:]).sum(-1)
    return block * _BLOCK + torch.minimum(place, last)


def _nucleus(mass: Tensor, top_p: float) -> Tensor:
    """The least mass that a token of the nucleus has, (rows, 1)."""
    needed = top_p * mass.sum(-1).double()
    rows, tokens = mass.shape
    out = torch.zeros(rows, 1, dtype=mass.dtype, device=mass.device)
    left, num = torch.arange(rows, device=mass.device), min(_FIRST_BEST, tokens)
    while len(left):
        best = (mass if len(left) == rows else mass[left]).topk(num, dim=-1).values
        upto = best.double().cumsum(-1)
        last = (upto < needed[left, None]).sum(-1).clamp(max=num - 1)
        out[left] = best.gather(1, last[:, None])
        if num == tokens:
            break
        left = left[upto[:, -1] < needed[left]]  # rows whose nucleus holds more
        num = min(_MORE * num, tokens)
    return out


def _cache(model: Any) -> Any:
    """A cache of the model's own kind, whose full-attention layers grow in place instead of being copied at every token."""
    utils = need("transformers.cache_utils", "lm")
    cache = utils.DynamicCache(config=model.config)
    cache.layers = [_growing()() if type(layer) is utils.DynamicLayer else layer for layer in cache.layers]
    return cache


@functools.cache
def _growing() -> Any:
    utils = need("transformers.cache_utils", "lm")

    class Growing(utils.DynamicLayer):  # type: ignore[misc, name-defined]
        """Keys and values at the front of a buffer with some room behind."""

        _layer_type = None
        is_initialized: bool

        def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.dtype, self.device = keys.dtype, keys.device
                self.is_initialized = True
                self._room = (keys[:, :, :0], values[:, :, :0])
                self.keys, self.values = self._room
            old, new = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
            if new > self._room[0].shape[2]:
                self._room = (_roomy(self.keys, new), _roomy(self.values, new))
            self._room[0][:, :, old:new] = keys
            self._room[1][:, :, old:new] = values
            self.keys, self.values = self._room[0][:, :, :new], self._room[1][:, :, :new]
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            self._room = (
                _roomy(self.keys, self.keys.shape[2], indices),
                _roomy(self.values, self.keys.shape[2], indices),
            )
            self.keys, self.values = (room[:, :, : self.keys.shape[2]] for room in self._room)

    return Growing


def _roomy(old: Tensor, length: int, index: Tensor | None = None) -> Tensor:
    """A copy with room behind for more than ``length`` places, of some rows or of all."""
    rows = len(old) if index is None else len(index)
    new = old.new_empty((rows, old.shape[1], length + max(_ROOM, length // 8), old.shape[3]))
    if index is None:
        new[:, :, : old.shape[2]] = old
    else:
        new[:, :, : old.shape[2]] = old.index_select(0, index)
    return new
