import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfeed.describe.network_nodes import ParaphraseReward, SummaryReward
from crossfeed.networks.text_rewards import text_reward, words

SUMMARY, PARAPHRASE = SummaryReward(), ParaphraseReward()
SOURCE = "the cat sat on the mat and the dog sat on the cat's rug because it didn't rain today"


def summary(source: str, answer: str, **changes: float) -> float:
    return float(text_reward(SUMMARY.model_copy(update=changes))([source], [answer])[0])


def paraphrase(source: str, answer: str, **changes: float) -> float:
    return float(text_reward(PARAPHRASE.model_copy(update=changes))([source], [answer])[0])


def test_the_defaults_are_the_papers() -> None:
    assert (SUMMARY.length, SUMMARY.width, SUMMARY.top_words) == (12, 2, 20)
    assert (SUMMARY.length_weight, SUMMARY.coverage_weight, SUMMARY.copy_weight) == (0.55, 0.55, 0.60)
    assert (PARAPHRASE.length_width, PARAPHRASE.copy_target, PARAPHRASE.copy_width) == (0.25, 0.2, 0.1)
    assert (PARAPHRASE.length_weight, PARAPHRASE.formality_weight, PARAPHRASE.copy_weight) == (0.45, 0.35, 0.30)


def test_a_summary_by_hand() -> None:
    # 6 words; the source has 14 distinct words: the, sat, on, cat, mat, and, dog, cat's, rug, because, it, didn't, rain, today
    answer = "The cat sat on a sofa"
    length, coverage, copied = math.exp(-6 / 2), 4 / 14, 1 / 3  # of "the cat sat on", "cat sat on a", "sat on a sofa"
    assert summary(SOURCE, answer) == pytest.approx(0.55 * length + 0.55 * coverage - 0.60 * copied, abs=1e-12)


def test_a_paraphrase_by_hand() -> None:
    answer = "The cat sat on it's sofa, isn't it"  # 8 words, 2 contractions, 5 4-grams of which 1 is copied
    source_words = 19
    want = (
        0.45 * math.exp(-abs(8 / source_words - 1) / 0.25)
        + 0.35 * (1 - 2 / 8)
        + 0.30 * math.exp(-abs(1 / 5 - 0.2) / 0.1)
    )
    assert len(words(SOURCE)) == source_words
    assert paraphrase(SOURCE, answer) == pytest.approx(want, abs=1e-12)


def test_coverage_is_of_the_most_frequent_words_and_ties_go_to_the_first() -> None:
    source = "one one one two two three four"
    only = {"length_weight": 0.0, "copy_weight": 0.0, "coverage_weight": 1.0, "top_words": 3}
    assert summary(source, "one two three", **only) == 1
    assert summary(source, "four two one", **only) == pytest.approx(2 / 3)


def test_repeated_copies_count_every_time() -> None:
    only = {"length_weight": 0.0, "coverage_weight": 0.0, "copy_weight": 1.0}
    assert summary("a b c d e", "a b c d a b c d", **only) == pytest.approx(-2 / 5)
    assert summary("a b c d e", "A, B? C! D", **only) == -1


def test_words_are_the_papers() -> None:
    assert words("Don't; rock'n'roll 3.14 O’Neill naïve x1y 'quoted'") == [
        *["don't", "rock'n", "roll", "3", "14", "o", "neill", "na", "ve", "x", "1", "y", "quoted"]
    ]
    assert words("") == words("¡日本語! — …") == []
    assert words("KELVIN \u212a") == ["kelvin"]  # the Kelvin sign lowers to k but is no letter A to Z


@pytest.mark.parametrize("empty", ["", "   ", "?!", "日本語", "\ud800", "\x1b"])
def test_answers_without_words(empty: str) -> None:
    assert summary(SOURCE, empty) == pytest.approx(0.55 * math.exp(-6))
    assert paraphrase(SOURCE, empty) == pytest.approx(0.45 * math.exp(-4) + 0.30 * math.exp(-2))


@pytest.mark.parametrize("empty", ["", "—"])
def test_sources_without_words(empty: str) -> None:
    assert summary(empty, "one two three four") == pytest.approx(0.55 * math.exp(-8 / 2))
    assert paraphrase(empty, "fine") == pytest.approx(0.45 + 0.35 + 0.30 * math.exp(-2))


def test_answers_of_three_words_copy_nothing() -> None:
    assert summary("a b c", "a b c", length_weight=0.0, coverage_weight=0.0) == 0
    assert paraphrase("a b c", "a b c", length_weight=0.0, formality_weight=0.0) == pytest.approx(0.3 * math.exp(-2))


def test_a_huge_answer_costs_time_in_proportion() -> None:
    begin = time.perf_counter()
    assert np.isfinite(summary(SOURCE, "the cat's " * 100_000))
    assert np.isfinite(paraphrase("word " * 100_000, "x" * 1_000_000))
    assert time.perf_counter() - begin < 5


def test_lists_are_judged_pair_by_pair() -> None:
    judge = text_reward(SUMMARY)
    sources, answers = ["a b", "c d", "a b"], ["a", "c d e", "b b b b b"]
    together = judge(sources, answers)
    assert together.dtype == np.float64
    assert together.tolist() == [float(judge([s], [a])[0]) for s, a in zip(sources, answers, strict=True)]
    assert judge([], []).shape == (0,)
    with pytest.raises(ValueError, match="shorter"):
        judge(["a"], [])


text = st.text(st.sampled_from("abA' 1.\n'é"), max_size=60)


@given(text, text)
def test_rewards_stay_in_their_ranges_and_ignore_case(source: str, answer: str) -> None:
    assert -0.60 <= summary(source, answer) <= 1.10
    assert 0 <= paraphrase(source, answer) <= 1.10 + 1e-12
    assert summary(source.upper(), answer.upper()) == pytest.approx(summary(source.lower(), answer.lower()), abs=1e-12)
