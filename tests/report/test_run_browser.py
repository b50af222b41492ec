"""The page of a run in Chromium, offline: drawn, quiet, within its width, light and dark, deaf to hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfeed.report.run_report import run_page
from report.fake_runs import hostile, made
from report.test_browser import _check_charts

pytestmark = pytest.mark.browser
PATIENCE = 60_000
RUNS = {
    "vectors": lambda folder: made("vectors", 2, folder, rounds=5),
    "images": lambda folder: made("images", 2, folder, rounds=3),
    "text": lambda folder: made("text", 2, folder, rounds=4),
    "one": lambda folder: made("vectors", 1, folder, rounds=1),
    "start": lambda folder: made("text", 2, folder, rounds=0, result=None),
    "twelve": lambda folder: made("images", 12, folder, rounds=1),
    "hostile": hostile,
}
FAINT = """() => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const words = [...document.querySelectorAll('main p, main li, main dt, main dd, main th, main td, main figcaption')];
  const labels = [...document.querySelectorAll('.chart svg text, svg.graph text')];
  const colours = [...words.map((e) => getComputedStyle(e).color), ...labels.map((e) => getComputedStyle(e).fill)];
  return [...new Set(colours)].filter((colour) => colour.startsWith('rgb(')).filter((colour) => {
    const [low, high] = [light(colour), ground].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05) < 4.5;
  });
}"""
"""Colours of text that stand out from the page by less than 4.5 : 1."""
ROUNDS = """() => [...document.querySelectorAll('.chart svg g.role-axis')]
  .filter((axis) => axis.querySelector('.role-axis-title text')?.textContent === 'round')
  .map((axis) => [...axis.querySelectorAll('.role-axis-label text')]
    .filter((label) => getComputedStyle(label).opacity > 0).map((label) => label.textContent))"""
"""Labels of every axis of rounds."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, make in RUNS.items():
        (folder / f"{name}.html").write_text(run_page(make(folder / name)), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in RUNS}


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        *(
            (name, *how)
            for name in ("vectors", "images", "text", "hostile")
            for how in (("dark", 360), ("light", 1440))
        ),
        ("one", "light", 360),
        ("start", "dark", 1440),
        ("twelve", "light", 360),
    ],
)
def test_everything_is_drawn_within_the_page(visit: Any, name: str, scheme: str, width: int) -> None:
    page = visit(name, scheme, width)
    assert page.evaluate("document.documentElement.dataset.drawn") == scheme
    _check_charts(page)
    for folded in (True, False):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), folded
        page.evaluate("document.querySelectorAll('main details').forEach((fold) => { fold.open = true; })")
    assert page.evaluate("document.querySelector('svg.graph').getBoundingClientRect().height") > 60
    outside = page.evaluate(
        """[...document.querySelectorAll('.chart svg')].filter((svg) =>
             svg.getBoundingClientRect().right > svg.parentElement.getBoundingClientRect().right + 1).length"""
    )
    assert outside == 0
    assert page.evaluate(FAINT) == []
    axes = page.evaluate(ROUNDS)
    assert axes
    for axis in axes:
        shown = [int(label) for label in axis]
        assert shown == sorted(set(shown))


def test_no_text_is_run(visit: Any) -> None:
    page = visit("hostile")
    for summary in page.locator("main summary").all():
        if summary.is_visible():
            summary.click()
    page.wait_for_timeout(200)
    assert page.evaluate("[window.hacked, window.hacked2]") == [None, None]
    assert page.locator("main img").count() == 0
    assert page.locator("main script, main style, main iframe, main link").count() == 0
    assert page.evaluate("getComputedStyle(document.body).display") != "none"


def test_a_tower_of_marks_stays_in_its_box(visit: Any) -> None:
    page = visit("hostile")
    tallest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.said')].map((p) => p.getBoundingClientRect().height))"
    )
    assert tallest < 1000


def test_pictures_are_seen(visit: Any) -> None:
    page = visit("images")
    assert page.evaluate(
        "[...document.querySelectorAll('.pictures img')].every((p) => p.complete && p.naturalWidth === 32)"
    )


def test_colours_follow_the_scheme_while_open(visit: Any) -> None:
    page = visit("vectors")
    fill = "getComputedStyle(document.querySelector('#chart-lineage-0 svg path[fill]')).fill"
    label = "getComputedStyle(document.querySelector('#chart-alignment-0 svg text')).fill"
    before = page.evaluate(label), page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]")
    assert page.evaluate(label) != before[0]


def test_numbers_fold_out_and_page_prints(visit: Any, tmp_path: Path) -> None:
    page = visit("text")
    page.locator("#alignment summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#alignment details table").first.is_visible()
    assert page.pdf(path=str(tmp_path / "page.pdf"))[:4] == b"%PDF"
