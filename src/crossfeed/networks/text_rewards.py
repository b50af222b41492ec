r"""What people like about summaries and paraphrases: the two rewards of the paper's language experiment.

Words are runs of letters with at most one apostrophe inside, ``[A-Za-z]+('[A-Za-z]+)?``, or runs of digits, in lower case.
The copied share is that of the answer's 4-grams, repeats counted, that occur in the source. A contraction is a word with an
apostrophe. Where there is nothing to divide by:

- an answer of fewer than four words has copied nothing (share 0);
- a source without words has nothing to cover (coverage 0), and counts as one word in the ratio of lengths;
- an answer without words is not formal (0): saying nothing is no way to please.

Work and memory are linear in the texts.

Reference: Zhang, Wei and Zhang 2026 (arXiv 2605.29267), Figure 5. The rules for empty texts are ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from crossfeed.describe.network_nodes import ParaphraseReward, SummaryReward

Floats = npt.NDArray[np.float64]
Judge = Callable[[Sequence[str], Sequence[str]], Floats]
"""Sources and answers, n each, to n rewards."""

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?|[0-9]+")
_GRAM = 4
_SOURCES_KEPT = 4096


def words(text: str) -> list[str]:
    """The words of a text, in lower case.

    Example:
        >>> words("It's 2026: Don't panic—o'er 1,000 naïve 'users'.")
        ["it's", '2026', "don't", 'panic', "o'er", '1', '000', 'na', 've', 'users']
    """
    return [word.lower() for word in _WORD.findall(text)]


def text_reward(reward: SummaryReward | ParaphraseReward) -> Judge:
    """The reward as a function of lists of sources and answers.

    Example:
        >>> judge = text_reward(SummaryReward(length=3))
        >>> judge(["the cat sat on the mat"], ["the cat sat"]).round(4).tolist()  # 0.55 + 0.55 · 3/5
        [0.88]
    """
    one = _summary(reward) if isinstance(reward, SummaryReward) else _paraphrase(reward)

    def judge(sources: Sequence[str], answers: Sequence[str]) -> Floats:
        pairs = zip(sources, answers, strict=True)
        return np.array([one(_source(source), words(answer)) for source, answer in pairs], dtype=np.float64)

    return judge


@dataclass(frozen=True, eq=False)
class _Source:
    """A source text, read once for all answers to it."""

    num_words: int
    ranked: list[str]  # distinct words, most frequent first, equally frequent ones as they come
    grams: frozenset[tuple[str, ...]]


@lru_cache(maxsize=_SOURCES_KEPT)
def _source(text: str) -> _Source:
    found = words(text)
    ranked = [word for word, _ in Counter(found).most_common()]
    return _Source(len(found), ranked, frozenset(_grams(found)))


def _summary(reward: SummaryReward) -> Callable[[_Source, list[str]], float]:
    def one(source: _Source, answer: list[str]) -> float:
        length = np.exp(-abs(len(answer) - reward.length) / reward.width)
        top = source.ranked[: reward.top_words]
        coverage = len(set(answer).intersection(top)) / len(top) if top else 0.0
        copied = _copied(source, answer)
        return float(reward.length_weight * length + reward.coverage_weight * coverage - reward.copy_weight * copied)

    return one


def _paraphrase(reward: ParaphraseReward) -> Callable[[_Source, list[str]], float]:
    def one(source: _Source, answer: list[str]) -> float:
        ratio = len(answer) / max(1, source.num_words)
        contractions = sum("'" in word for word in answer)
        formality = 1 - contractions / len(answer) if answer else 0.0
        copied = _copied(source, answer)
        return float(
            reward.length_weight * np.exp(-abs(ratio - 1) / reward.length_width)
            + reward.formality_weight * formality
            + reward.copy_weight * np.exp(-abs(copied - reward.copy_target) / reward.copy_width)
        )

    return one


def _copied(source: _Source, answer: list[str]) -> float:
    grams = _grams(answer)
    return sum(gram in source.grams for gram in grams) / len(grams) if grams else 0.0


def _grams(found: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(found[i:] for i in range(_GRAM)), strict=False))
