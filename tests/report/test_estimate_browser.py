"""The page of an audit of networks in Chromium, offline: drawn, quiet, within its width, light and dark, deaf to hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfeed.report.estimate_html import html
from report.fake_estimates import fake, hostile
from report.test_browser import _check_charts
from report.test_run_browser import FAINT

pytestmark = pytest.mark.browser
PATIENCE = 60_000
LONG = ["the first of the models with a long name, fine-tuned on everything there is", "b", "c" * 120]
AUDITS = {
    "1": lambda: fake(1),
    "2": lambda: fake(2),
    "30": lambda: fake(30, rounds=20),
    "long": lambda: fake(3, names=LONG),
    "text": lambda: fake(2, space="text"),
    "hostile": hostile,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("estimates")
    for name, make in AUDITS.items():
        (folder / f"{name}.html").write_text(html(make()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in AUDITS}


@pytest.mark.parametrize(("scheme", "width"), [("dark", 360), ("light", 1440)])
@pytest.mark.parametrize("name", list(AUDITS))
def test_everything_is_drawn_within_the_page(visit: Any, name: str, scheme: str, width: int) -> None:
    page = visit(name, scheme, width)
    assert page.evaluate("document.documentElement.dataset.drawn") == scheme
    _check_charts(page)
    for folded in (True, False):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), folded
        page.evaluate("document.querySelectorAll('main details').forEach((fold) => { fold.open = true; })")
    outside = page.evaluate(
        """[...document.querySelectorAll('.chart svg')].filter((svg) =>
             svg.getBoundingClientRect().right > svg.parentElement.getBoundingClientRect().right + 1).length"""
    )
    assert outside == 0
    faint = "[...document.querySelectorAll('#chart-matrix-0 svg text')].forEach((label) => label.remove())"
    page.evaluate(faint)  # numbers on coloured cells have the cell as their ground
    assert page.evaluate(FAINT) == []


def test_no_text_is_run(visit: Any) -> None:
    page = visit("hostile")
    page.evaluate("document.querySelectorAll('main details').forEach((fold) => { fold.open = true; })")
    page.hover("#chart-matrix-0 svg", position={"x": 400, "y": 100})
    page.wait_for_timeout(200)
    assert page.evaluate("[window.hacked, window.hacked2]") == [None, None]
    assert page.locator("main img").count() == 0
    assert page.locator("main script, main style, main iframe, main link").count() == 0
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
