"""Texts of models are hostile: nothing in them becomes markup, reaches a terminal as a command, or blows up a page."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from crossfeed.errors import NotAvailableError
from crossfeed.record.folder import RunFolder
from crossfeed.report.lineage_view import lineage_json, lineage_plain, lineage_text, save_pictures
from crossfeed.report.run_report import plain_summary, run_page, run_summary
from crossfeed.report.run_samples import said
from crossfeed.report.run_words import nothing, visible
from report.fake_runs import HOSTILE, hostile, made
from report.test_page import Outline

TAGS = (
    "html head meta title link style body a div header p h1 h2 h3 nav details summary ol ul li main noscript section strong "
    "span dl dt dd dfn figure figcaption svg g polyline polygon rect path text table caption thead tbody tr th td br pre "
    "code footer script title"
)
HIDDEN = {"Cc", "Cs", "Co"}
OURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Rich itself writes to a terminal: colours."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def page(run: RunFolder) -> str:
    return run_page(run)


def harmful(text: str) -> set[str]:
    """Characters that a terminal or a browser would obey."""
    bad = {c for c in set(text) if unicodedata.category(c) in HIDDEN and c != "\n"}
    return bad | (
        set(text) & set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    )


def on_terminal(shown: Any) -> str:
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def entries(table: Any) -> list[dict[str, Any]]:
    """Rows of a training set in the form of an ancestry."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        kept = row["candidates"] or [None] * len(row["rewards"])
        row["output"], *kept = [o["bytes"] if isinstance(o, dict) else o for o in (row["output"], *kept)]
        row["candidates"] = [
            {"reward": r, "picked": k == row["picked"], "output": o}
            for k, (r, o) in enumerate(zip(row["rewards"], kept, strict=True))
        ]
    return rows


def chain_of(run: RunFolder) -> list[dict[str, Any]]:
    """An entry for every hostile text, most of them picked among hostile candidates."""
    return entries(run.samples(run.rounds[-1], run.eco.names[0]).slice(15, 45))


def test_no_element_or_attribute_comes_from_a_text(page: str) -> None:
    outline = Outline(page)
    assert {tag for tag, _ in outline.tags} <= set(TAGS.split())
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert set(attributes) <= ALLOWED, (tag, set(attributes) - ALLOWED)
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), tag
        if "style" in attributes:
            assert re.fullmatch(r"min-height:\d+px", attributes["style"] or "")
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert sum(tag == "style" for tag, _ in outline.tags) == 1


ATTRIBUTES = """
    lang charset http-equiv content name rel href class aria-label aria-labelledby aria-hidden id type role tabindex style
    data-value data-of data-model data-domain dir scope xmlns viewbox width height font-family points fill stroke
    stroke-width stroke-dasharray stroke-linejoin paint-order x y rx d font-size font-weight text-anchor opacity
"""
ALLOWED = set(ATTRIBUTES.split())


def test_page_holds_nothing_that_is_obeyed(page: str) -> None:
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert harmful(text.replace("\t", " ")) == set()
    assert "window.hacked=1" in text  # shown, as text
    assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in text
    data = json.loads(Outline(page).data)
    assert "hacked" not in json.dumps(data["config"])


def test_page_stays_small(page: str) -> None:
    assert len(page.encode("utf-8")) < 3_000_000


def test_texts_can_still_be_read(page: str) -> None:
    assert "שלום עולם, مرحبا بالعالم" in page
    assert "(empty)" in page
    assert "⟨ESC⟩]52;c;aGFja2Vk⟨U+0007⟩" in page
    assert "safe⟨U+202E⟩txt.exe" in page
    assert "[red]rich[/red]" in page
    assert "5,000,000 characters" in page
    for text in HOSTILE:
        shown = said(text)
        Outline(shown)
        assert len(shown) < 30_000
        assert harmful(shown) == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a⟨ESC⟩[31mb"),
        ("\x00\x07\x9b", "⟨NUL⟩⟨U+0007⟩⟨U+009B⟩"),
        ("x\u202ey\u2066", "x⟨U+202E⟩y⟨U+2066⟩"),
        ("\ud800\ue000", "\ufffd\ufffd"),
        ("Z" + "\u0351" * 50, "Z" + "\u0351" * 3),
        ("a\r\nb\rc\td", "a\nb⟨U+000D⟩c d"),
        ("👩\u200d💻 naïve שלום", "👩\u200d💻 naïve שלום"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
    ],
)
def test_signs_are_made_visible(text: str, shown: str) -> None:
    assert visible(text, 100) == shown


def test_nothing_is_said_to_be_nothing() -> None:
    assert nothing("") == "(empty)"
    assert nothing(" \n ") == "(only white space, 3 characters)"
    assert nothing("\u200b\ufeff") == "(nothing that can be seen, 2 characters)"
    assert nothing("a") is None
    assert nothing(" " * 30_000 + "a") is None


def test_summary_is_safe_on_a_terminal(run: RunFolder) -> None:
    assert harmful(plain_summary(run)) == set()
    assert harmful(OURS.sub("", on_terminal(run_summary(run)))) == set()
    assert "<b>x</b>" in plain_summary(run, 400)


def test_lineage_is_safe_on_a_terminal(run: RunFolder) -> None:
    chain = chain_of(run)
    for shown in (lineage_plain(chain), OURS.sub("", on_terminal(lineage_text(chain)))):
        assert harmful(shown) == set()
        assert len(shown) < 200_000
    plain = lineage_plain(chain, 400)
    assert "[red]rich[/red] [link=file:///etc/passwd]x[/link]" in plain
    assert "⟨ESC⟩]52;c;aGFja2Vk⟨U+0007⟩" in plain
    assert "(5,000,000 characters)" in plain
    assert "(empty)" in plain
    plain.encode("utf-8")


def test_lines_of_a_text_cannot_pose_as_ours(run: RunFolder) -> None:
    entry = {
        "sample_id": "r0001-p-000000",
        "round": 1,
        "model": "p",
        "kind": "raw",
        "output": "x\n└ real data: the line ends here",
    }
    lines = lineage_plain([entry]).splitlines()
    assert lines[2] == "  sample  x↵└ real data: the line ends here"
    assert lines[-1].strip() == "└ no parent was recorded"


def test_ancestry_goes_back_to_real_data(run: RunFolder, tmp_path: Path) -> None:
    from crossfeed.record.lineage import ancestry

    calm = made("text", 2, tmp_path, rounds=3)
    row = next(r for r in calm.samples(3, "p").to_pylist() if r["source"] == "curated_q")
    chain = ancestry(calm, row["sample_id"])
    lines = lineage_plain(chain, 95).splitlines()
    assert lines[0] == f"{row['sample_id']}, p’s training set of round 3"
    origin = "output of q as trained in round 2 (source curated_q), picked by q_people: Plackett–Luce, τ = 1"
    assert origin in " ".join(" ".join(lines).split())
    assert sum(line.startswith("  > ") or line.startswith("     > ") for line in lines) == sum(
        bool(e["candidates"]) for e in chain
    )
    assert lines[-1].strip() == "└ real data: the line ends here"
    hostile_chain = ancestry(run, run.samples(3, run.eco.names[1]).column("sample_id")[-1].as_py())
    assert harmful(lineage_plain(hostile_chain)) == set()


def test_lineage_as_json_is_ascii(run: RunFolder) -> None:
    text = lineage_json(chain_of(run))
    assert text.isascii()
    assert harmful(text) == set()
    assert len(json.loads(text)) == 45


def test_the_record_keeps_texts_as_they_are(run: RunFolder) -> None:
    for name in run.eco.names:
        outputs = run.pool(2, name).outputs
        assert isinstance(outputs, list)
        for i, text in enumerate(outputs):
            assert text == HOSTILE[i % len(HOSTILE)].encode("utf-8", "replace").decode("utf-8")
    assert run.verify() == []


def test_pictures_are_saved_under_harmless_names(tmp_path: Path) -> None:
    run = made("images", 1, tmp_path, rounds=1)
    rows = entries(run.samples(1, "p").slice(8, 5))
    rows[0]["sample_id"] = "../../etc/\x1b[31mpasswd"
    (tmp_path / "pictures").mkdir()
    files = save_pictures(rows, tmp_path / "pictures")
    assert files[0].name == "..%2F..%2Fetc%2F%1B%5B31mpasswd.png"
    assert sorted(f.name for f in (tmp_path / "pictures").iterdir()) == sorted(f.name for f in files)
    assert files[0].read_bytes() == rows[0]["output"]
    assert sum("-candidate-" in f.name for f in files) == sum(len(r["candidates"] or []) for r in rows) > 0
    assert "picture, 32 × 32 pixels" in lineage_plain(rows)
    with pytest.raises(NotAvailableError, match="no pictures"):
        save_pictures([{"sample_id": "a", "output": "text"}], tmp_path)


def test_bytes_that_are_no_picture_are_left_out(tmp_path: Path) -> None:
    from crossfeed.report.run_samples import Shown, _picture

    assert _picture(Shown(0, "", {"bytes": b"\x89PNG no"}, None)) is None
    assert _picture(Shown(0, "", None, None)) is None
    assert "11 bytes that are no picture" in lineage_plain([{"sample_id": "a", "output": b"\x89PNG no pic"}])


def test_vectors_are_shown_as_numbers() -> None:
    entry = {
        "sample_id": "a",
        "kind": "real",
        "data": "ring",
        "row": None,
        "source": "real",
        "output": [0.5, float("nan"), -2.0],
    }
    plain = lineage_plain([entry])
    assert "(0.5, nan, -2)" in plain
    assert "real data: drawn afresh from ring" in plain
