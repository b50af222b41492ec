"""Words, numbers and the terminal: right sentences, no control characters, eighty columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from crossfeed.report import words
from crossfeed.report.terminal import plain, summary
from report.fakes import fake, hostile, refused


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.41234, "0.412"),
        (-0.5, "−0.5"),
        (12840, "12,800"),
        (3.1e-13, "3.10×10⁻¹³"),
        (0.00012, "0.00012"),
        (2.5e7, "2.50×10⁷"),
        (0.9999, "1"),
        (1234567, "1.23×10⁶"),
        (100, "100"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


def test_signs() -> None:
    assert words.number(0.2, sign=True) == "+0.2"
    assert words.number(-0.2, sign=True, minus="-") == "-0.2"
    assert words.number(2e-7, minus="-") == "2.00e-7"
    assert words.apart(0.76212, 0.76241) == ("0.7621", "0.7624")
    assert words.apart(0.5, 0.5) == ("0.5", "0.5")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\link", "alink"),
        ("a\x9b31mb", "ab"),
        ("a\x90payload\x9cb", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x00\x08\x7fb", "ab"),
        ("a\u202eb\u2066c\ufeff", "abc"),
        ("a\nb\tc\u2028d", "a b cd"),
        ("a\ue000b\ud800c", "abc"),
        ("日本語 é 👩\u200d💻", "日本語 é 👩\u200d💻"),
    ],
)
def test_clean_takes_out_what_a_terminal_or_page_obeys(text: str, kept: str) -> None:
    assert words.clean(text) == kept


def test_clean_shortens() -> None:
    assert words.clean("x" * 50, 10) == "x" * 9 + "…"


def _said(clauses: list[words.Clause]) -> str:
    return "".join(c.text for c in clauses)


def test_sentences_of_two_models() -> None:
    audit = fake(2)
    assert _said(words.raising(audit, 0)) == (
        "Raising p’s curation helps p itself, though less than it would if the others stood still; it helps q."
    )
    assert _said(words.raising(audit, 1)) == "Raising q’s curation backfires: it harms q itself; it also harms p."
    assert words.bottom_line(audit) == "More curation backfires for q: the model it is spent on ends up less aligned."
    assert [c.verdict for c in words.raising(audit, 1) if c.verdict] == ["backfires", "backfires"]


def _two(own: tuple[str | None, str | None], cross: tuple[str, str] = ("no effect", "no effect")) -> dict[str, Any]:
    audit = fake(2)
    audit["influence"]["verdict"] = [[own[0], cross[1]], [cross[0], own[1]]]
    return audit


@pytest.mark.parametrize(
    ("own", "cross", "said"),
    [
        (
            ("helps", "helps"),
            ("helps", "no effect"),
            "More curation helps the model it is spent on, and harms no other model.",
        ),
        (
            ("helps", "helps"),
            ("backfires", "helps"),
            "More curation helps the model it is spent on, but raising p’s curation harms q.",
        ),
        (
            ("helps", "helps"),
            ("backfires", "backfires"),
            "More curation helps the model it is spent on, but it "
            "harms other models, in 2 pairs, through the curation of p and q.",
        ),
        (
            ("dampened", "helps"),
            ("helps", "helps"),
            "More curation helps, but interaction with other models dampens it for p, and harms no other model.",
        ),
        (
            ("no effect", "no effect"),
            ("helps", "helps"),
            "More curation does nothing for the model it is spent on, and harms no other model.",
        ),
        (
            ("backfires", "backfires"),
            ("helps", "helps"),
            "More curation backfires for q and p: the model it is spent on ends up less aligned.",
        ),
    ],
)
def test_bottom_lines(own: tuple[str, str], cross: tuple[str, str], said: str) -> None:
    assert words.bottom_line(_two(own, cross)) == said


def test_bottom_line_without_curation_or_without_an_answer() -> None:
    audit = fake(2)
    audit["influence"]["verdict"] = [[None, None], [None, None]]
    assert "no curation to raise" in words.bottom_line(audit)
    assert words.bottom_line(refused()).startswith("No answer can be given")


def test_changes_in_words() -> None:
    audit = fake(2)
    audit["changes"][0] |= {"before": [0.35, 0.2], "after": [0.43, 0.1], "verdict": ["helps", "backfires"]}
    assert _said(words.changed(audit, audit["changes"][0])) == (
        "p.curation from 0.4 to 0.5: q falls from 0.2 to 0.1; p rises from 0.35 to 0.43."
    )
    audit["changes"][0] |= {"after": None, "verdict": None, "result": "diverged"}
    assert _said(words.changed(audit, audit["changes"][0])).endswith("no new stable point was found (diverged).")


def test_isolated_change_as_a_number_or_a_list() -> None:
    audit = fake(2)
    change = {**audit["changes"][0], "isolated": 0.5}
    assert words.alone(audit, change) == [0.5, None]
    assert words.alone(audit, {**change, "isolated": [None, 0.1]}) == [None, 0.1]
    assert words.alone(audit, {**change, "isolated": None}) == [None, None]


@pytest.mark.parametrize(
    "audit", [fake(1), fake(2), fake(3), fake(12), fake(1000), hostile(), refused()], ids=lambda a: a["spec_name"][:12]
)
def test_terminal_summary_fits_and_is_clean(audit: dict[str, Any]) -> None:
    text = plain(audit)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 80
    assert all(ch == "\n" or ch.isprintable() for ch in text)
    assert " ".join(words.bottom_line(audit).split()) in " ".join(text.split())
    for warning in audit["warnings"]:
        assert words.clean(warning) in " ".join(text.split())


def test_terminal_shows_markup_as_it_is_written() -> None:
    text = plain(hostile())
    assert "[bold]x[/bold]" in text
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(summary(hostile()))
    assert "\x1b]0;" not in capture.get()


def test_terminal_gives_verdicts_with_numbers_and_reasons() -> None:
    text = plain(fake(2))
    assert "backfires -0.0612" in text
    assert "dampened +0.412" in text
    assert "p on p flips at 0.62" in text
    assert "Influence was refused: the loop is not stable" in plain(refused())


def test_width_is_kept() -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    with console.capture() as capture:
        console.print(summary(fake(2), width=60))
    assert max(len(line.rstrip()) for line in capture.get().splitlines()) <= 60
