"""From words to tokens and back: prompts in the model's own format, answers, and the batches to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import CausalLM
from crossfeed.errors import DataError

_MARK = "⟦CROSSFEED⟧"  # stands for a text while a template is filled in
_ANSWERS_KEPT = 1 << 17


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts with their answers, padded on the right. Causal attention never looks right, so no mask is needed.

    Attributes:
        inputs: (n, t) token ids, the last one left out, as it predicts nothing.
        targets: (n, k) the answers' tokens.
        places: (n, k) where in ``inputs`` each of them is predicted.
        answer: (n, k) float, 1 where there is a target, 0 behind a shorter answer.
    """

    inputs: Tensor
    targets: Tensor
    places: Tensor
    answer: Tensor


def plain_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts in which nothing is special: ``<|im_end|>`` written out is eight characters or so, no command."""
    safe = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates cannot be encoded
    if not safe:
        return []
    out: list[list[int]] = tokenizer(
        safe, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]
    return out


def chat_tokens(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> list[int]:
    """Tokens of a conversation in the tokenizer's chat template; special tokens come from the template alone.

    Args:
        tokenizer: With a chat template.
        messages: ``role`` and ``content`` each.
        options: For ``apply_chat_template``.
    """
    contents = [message["content"].encode("utf-8", "replace").decode() for message in messages]
    known = list(tokenizer.added_tokens_encoder)
    if not any(token in content for content in contents for token in known):
        clean = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return _with_special(tokenizer, tokenizer.apply_chat_template(clean, tokenize=False, **options))
    marked = [{**message, "content": f"{_MARK}{i}{_MARK}"} for i, message in enumerate(messages)]
    rest, out = tokenizer.apply_chat_template(marked, tokenize=False, **options), []
    for message, content in zip(marked, contents, strict=True):
        before, found, rest = rest.partition(message["content"])
        out += _with_special(tokenizer, before) + (plain_tokens(tokenizer, [content])[0] if found else [])
    return out + _with_special(tokenizer, rest)


def _with_special(tokenizer: Any, text: str) -> list[int]:
    out: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return out


class Answer(str):
    """A sampled text that remembers the tokens it was sampled as.

    Attributes:
        tokens: With the end token, as :meth:`Tokens.closed` gives them.
        tokenizer: Whose tokens they are.
    """

    tokens: list[int]
    tokenizer: Any


class Tokens:
    """The tokens of a run's prompts and of answers to them, for one model.

    A prompt is the tokenizer's chat template around the text (with ``chat``), or the text as it is. An answer is its own tokens
    and the end token; one of ``max_new_tokens`` tokens or more is cut there and has no end token, exactly as sampling would
    have left it. Special tokens written out in a text (``<|im_end|>``) are plain characters here, never the tokens.

    Args:
        name: The model's name in the spec, for errors.
        family: Template, system message and limits.
        tokenizer: A transformers tokenizer.
        texts: The prompts, template filled in.
        inputs: The part of each that may be cut when the prompt is too long; elsewhere the words of the template stay.
        stop: Further tokens that end an answer.

    Attributes:
        end: The token that ends an answer.
        stop: All tokens that do, ``end`` first.
        pad: A token for places that are not looked at.

    Raises:
        DataError: ``chat`` without a chat template, no end token, or a template that alone is too long.
    """

    def __init__(
        self,
        name: str,
        family: CausalLM,
        tokenizer: Any,
        texts: Sequence[str],
        inputs: Sequence[str],
        stop: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._path = f"models.{name}.family"
        self._family, self._texts, self._inputs = family, texts, inputs
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.chat = has_template and family.pretrained is not None if family.chat is None else family.chat
        if self.chat and not has_template:
            raise DataError(
                f"{self._path}.chat: found true, but the tokenizer has no chat template; need chat: false, or an "
                "instruction-tuned model"
            )
        if family.system is not None and not self.chat:
            raise DataError(
                f"{self._path}.system: found a system message, but no chat template is used; need chat: true, or the words "
                "in the template of the data"
            )
        self.end = self._find_end()
        self.stop = list(dict.fromkeys([self.end, *stop, *_known(tokenizer.eos_token_id)]))
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._prompts: dict[int, list[int]] = {}
        self._answers: dict[str, list[int]] = {}

    def prompt(self, index: int) -> list[int]:
        """Tokens of a prompt, at least one and at most ``max_prompt_tokens``; worked out once.

        A longer one loses the beginning or the end of its input; template, system message and closing stay.
        """
        found = self._prompts.get(index)
        if found is None:
            found = self._prompts[index] = self._fit(self._texts[index], self._inputs[index])
        return found

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of answers, end token included."""
        new = [text for text in dict.fromkeys(texts) if text not in self._answers]
        if len(self._answers) + len(new) > _ANSWERS_KEPT:
            self._answers.clear()
            new = list(dict.fromkeys(texts))
        if new:
            for text, ids in zip(new, plain_tokens(self.tokenizer, new), strict=True):
                self._answers[text] = self.closed(ids)
        return [self._answers[text] for text in texts]

    def sampled(self, answers: Sequence[Sequence[int]]) -> list[Answer]:
        """Sampled tokens as texts that remember them."""
        out = []
        for text, ids in zip(self.texts(answers), answers, strict=True):
            answer = Answer(text)
            answer.tokens, answer.tokenizer = self.closed(ids), self.tokenizer
            out.append(answer)
        return out

    def remembered(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of answers, end token included; of sampled ones, those they were sampled as."""
        out = self.answers(texts)
        for i, text in enumerate(texts):
            if isinstance(text, Answer) and text.tokenizer is self.tokenizer:
                out[i] = text.tokens
        return out

    def closed(self, ids: Sequence[int]) -> list[int]:
        """An answer's tokens with the end token, or cut to ``max_new_tokens`` without it."""
        most = self._family.max_new_tokens
        return [*ids, self.end] if len(ids) < most else list(ids[:most])

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Words of sampled tokens, special tokens left out."""
        if not answers:
            return []
        out: list[str] = self.tokenizer.batch_decode(
            [list(ids) for ids in answers], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return out

    def lengths(self, prompts: Tensor, texts: Sequence[str]) -> Tensor:
        """Tokens of prompt and answer together, (n,) int64."""
        pairs = zip(prompts.tolist(), self.answers(texts), strict=True)
        return torch.tensor([len(self.prompt(i)) + len(ids) for i, ids in pairs], dtype=torch.int64)

    def batch(self, prompts: Tensor, answers: Sequence[Sequence[int]], device: torch.device) -> Batch:
        """Prompts and the tokens of their answers as one batch."""
        firsts = [self.prompt(i) for i in prompts.tolist()]
        starts = torch.tensor([len(first) for first in firsts], dtype=torch.int64)
        sizes = torch.tensor([len(last) for last in answers], dtype=torch.int64)
        longest = int((starts + sizes).max()) if len(firsts) else 1
        ids = torch.full((len(firsts), longest), self.pad, dtype=torch.int64)
        for row, (first, last) in enumerate(zip(firsts, answers, strict=True)):
            ids[row, : len(first) + len(last)] = torch.tensor([*first, *last])
        steps = torch.arange(int(sizes.max()) if len(firsts) else 0)
        answer = steps < sizes[:, None]
        places = torch.where(answer, starts[:, None] - 1 + steps, 0)
        targets = ids.gather(1, (places + 1).clamp(max=longest - 1))
        return Batch(*(part.to(device) for part in (ids[:, :-1], targets, places, answer.float())))

    def _encode(self, text: str) -> list[int]:
        """Tokens of a whole prompt."""
        if not self.chat:
            return [*self._special_start(), *plain_tokens(self.tokenizer, [text])[0]] or [self.end]
        system = [] if self._family.system is None else [{"role": "system", "content": self._family.system}]
        try:
            return chat_tokens(self.tokenizer, [*system, {"role": "user", "content": text}], add_generation_prompt=True)
        except Exception as error:  # a template is a small program and may raise anything
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self._path}.chat: the tokenizer's chat template cannot be filled in ({reason}); need a template that takes "
                "a user's message, and a system's message where `system` is given; or chat: false"
            ) from None

    def _special_start(self) -> list[int]:
        """The token that the tokenizer itself puts first, where it does."""
        first = self.tokenizer("", return_attention_mask=False)["input_ids"][:1]
        return [int(i) for i in first if i == self.tokenizer.bos_token_id]

    def _fit(self, text: str, part: str) -> list[int]:
        most, ids = self._family.max_prompt_tokens, self._encode(text)
        before, found, after = text.partition(part) if part else (text, "", "")
        words = plain_tokens(self.tokenizer, [part])[0] if len(ids) > most and found else []
        drop = 0
        while len(ids) > most:
            drop += len(ids) - most
            if self._family.cut == "beginning":
                rest = "".join(self.texts([words[drop:]])).lstrip("\ufffd")
            else:
                rest = "".join(self.texts([words[: max(0, len(words) - drop)]])).rstrip("\ufffd")
            ids = self._encode(before + rest + after)
            if drop >= len(words) and len(ids) > most:
                raise DataError(
                    f"{self._path}.max_prompt_tokens: found {most}, but the template alone, without any input, takes "
                    f"{len(ids)} tokens; need more than that"
                )
        return ids

    def _find_end(self) -> int:
        """The token a chat template closes an answer with, else the tokenizer's own end token."""
        if self.chat:
            messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARK}]
            try:
                closing = self.tokenizer.apply_chat_template(messages, tokenize=False).partition(_MARK)[2]
            except Exception:  # a template may refuse; the tokenizer's own end token then
                closing = ""
            first = _with_special(self.tokenizer, closing)[:1]
            if first and first[0] in set(self.tokenizer.added_tokens_encoder.values()):
                return int(first[0])
        if self.tokenizer.eos_token_id is None:
            raise DataError(f"{self._path}: the tokenizer has no end token (eos_token); need one that has")
        return int(self.tokenizer.eos_token_id)


def _known(token: int | None) -> list[int]:
    return [] if token is None else [int(token)]
