"""The page and the terminal summary of an audit of networks: numbers as in the audit, every verdict, nothing obeyed."""

from __future__ import annotations

import copy
import json
import re

import pytest

from crossfeed.errors import DataError
from crossfeed.report.estimate_audit import EstimateAudit, budget_seconds
from crossfeed.report.estimate_html import html
from crossfeed.report.estimate_terminal import plain, summary
from crossfeed.report.estimate_words import bottom_line, changed, raising
from crossfeed.report.output import read_audit
from report.fake_estimates import fake, hostile
from report.test_hostile import harmful, on_terminal
from report.test_page import Outline


def told(clauses) -> str:
    return "".join(clause.text for clause in clauses)


def test_numbers_are_those_of_the_audit():
    data = fake(3)
    found = Outline(html(data)).values("influence")
    assert len(found) == 6 * 3
    for attributes, value in found:
        e, c = int(attributes["data-evaluation"]), int(attributes["data-setting"])
        assert value == pytest.approx(0.1 * data["influence"]["matrix"][e][c])


def test_every_verdict_in_words():
    data = fake(2)
    data["influence"]["verdict"] = [["backfires", "harms"]] * 2 + [["cannot tell", "dampened"]] * 2
    data["influence"]["matrix"] = [[-1.0, -0.5]] * 2 + [[0.1, 0.5]] * 2
    data["influence"]["low"] = [[-2.0, -1.0]] * 2 + [[-0.8, 0.2]] * 2
    data["influence"]["high"] = [[0.0, 0.0]] * 2 + [[1.0, 0.8]] * 2
    assert told(raising(data, 0)) == (
        "Raising p’s curation by 10 points backfires: it harms p itself (−0.10; −0.20 to 0.00); for q (+0.010; −0.080 to 0.100; "
        "about 40 outputs of every model would tell) the sign cannot be told."
    )
    second = told(raising(data, 1))
    assert (
        "helps q itself, though less than it would if the others stood still (+0.050; 0.020 to 0.080); it harms p"
        in second
    )
    assert bottom_line(data) == (
        "Over 6 rounds, more curation backfires for p: it lowers the alignment of the model it is spent on; it helps q, though less "
        "than if the other models stood still. It also harms others: p."
    )


def test_what_ifs_in_words():
    data = fake(2)
    assert told(changed(data, data["changes"][0])) == (
        "p.curation from 0.5 to 0.6: p’s alignment rises (+0.020; 0.010 to 0.030), q’s alignment rises (+0.020; 0.010 to 0.030)."
    )
    assert told(changed(data, data["changes"][1])).endswith("from 4 to 9: not answered: a short answer.")


def test_nothing_can_be_told_at_all():
    data = fake(2)
    data["influence"]["verdict"] = [["cannot tell"] * 2] * 4
    assert bottom_line(data) == (
        "From these samples it cannot be told whether more curation helps or harms p and q over 6 rounds."
    )
    assert "would tell" in plain(data)


def test_failed_checks_come_first():
    page = html(fake(2))
    assert page.index("A check failed: do not rely on these numbers") < page.index("Raising p")
    text = plain(fake(2))
    assert text.index("Failed, scores") < text.index("Warning, samples")
    assert "1 of 3 passed" in text


@pytest.mark.parametrize("space", ["text", "vectors"])
def test_texts_of_models_are_not_obeyed(space):
    page = html(hostile(space))
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "input"}
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert harmful(text.replace("\t", " ")) == set()
    assert len(page.encode()) < 3_000_000
    if space == "text":
        assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in text


def test_terminal_is_not_steered():
    shown = on_terminal(summary(hostile()))
    left = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert harmful(left) == set()
    assert "[red]" not in left or "rich" in left


def test_many_models():
    data = fake(30, rounds=12)
    text = plain(data)
    assert "the 16 clearest of 900 effects" in text
    assert len(text.splitlines()) < 80
    page = html(data)
    assert "The other 18 models" in page
    assert len(page.encode()) < 3_000_000
    assert "is not drawn" in html(fake(70, rounds=2))


def test_nulls_are_shown():
    data = copy.deepcopy(fake(2))
    data["influence"]["needed"] = [[None, None] for _ in data["evaluations"]]
    data["evaluations"][0]["error"] = None
    data["samples"]["chosen"] = None
    data |= {"changes": [], "mismatch": [], "pickers": [], "examples": [], "spec_file": None}
    Outline(html(data))
    plain(data)


def test_saved_and_read_back(tmp_path):
    audit = EstimateAudit(fake(2))
    assert read_audit(audit.save(tmp_path / "audit.json")) == audit.data
    assert audit.save(tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(DataError, match=r"ends in \.html or \.json"):
        audit.save(tmp_path / "r.pdf")
    assert "made up" in str(audit)
    assert audit._repr_html_().startswith("<iframe")
    (tmp_path / "half.json").write_text(json.dumps({"format": "crossfeed-estimate", "version": 1, "models": []}))
    with pytest.raises(DataError, match="lacks spec_name, space, point"):
        read_audit(tmp_path / "half.json")


@pytest.mark.parametrize("text", ["", "m", "10", "-5m", "0s", "1d", "nan m", "1"])
def test_budgets(text):
    if text == "10":
        assert budget_seconds(text) is None
        return
    from crossfeed.errors import SettingError

    with pytest.raises(SettingError, match="10m or 90s"):
        budget_seconds(text)
