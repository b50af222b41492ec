"""The page in Chromium, offline: drawn, quiet, responsive, light and dark, searchable, and deaf to hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfeed.report.html import html
from report.fakes import fake, hostile, refused, with_gallery

pytestmark = pytest.mark.browser
PATIENCE = 30_000
AUDITS = {
    "1": lambda: fake(1),
    "2": lambda: with_gallery(fake(2)),
    "3": lambda: fake(3),
    "12": lambda: fake(12),
    "1000": lambda: fake(1000),
    "hostile": hostile,
    "refused": refused,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, audit in AUDITS.items():
        (folder / f"{name}.html").write_text(html(audit()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in AUDITS}


def _check_charts(page: Any) -> None:
    sizes = page.evaluate(
        """[...document.querySelectorAll('.chart')].map((place) => {
             const drawing = place.querySelector('svg, canvas');
             const box = drawing ? drawing.getBoundingClientRect() : {width: 0, height: 0};
             return [place.id, box.width, box.height, place.querySelectorAll('path, text, line').length];
           })"""
    )
    assert sizes
    for name, width, height, marks in sizes:
        assert width > 100, name
        assert height > 40, name
        assert marks > 3, name


@pytest.mark.parametrize("width", [360, 390, 1280, 1600])
@pytest.mark.parametrize("name", list(AUDITS))
def test_every_chart_is_drawn_within_the_page(visit: Any, name: str, width: int) -> None:
    page = visit(name, "dark" if width == 390 else "light", width)
    _check_charts(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelector('svg.graph').getBoundingClientRect().height") > 80
    outside = page.evaluate(
        """[...document.querySelectorAll('.chart svg')].filter((svg) =>
             svg.getBoundingClientRect().right > svg.parentElement.getBoundingClientRect().right + 1).length"""
    )
    assert outside == 0


def test_no_name_is_run(visit: Any) -> None:
    page = visit("hostile")
    page.hover("#chart-influence-0 svg", position={"x": 400, "y": 220})
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0


def test_colours_follow_the_scheme_while_open(visit: Any) -> None:
    page = visit("2", "light")
    fill = "getComputedStyle(document.querySelector('#chart-isolated-0 svg text')).fill"
    before, ground = page.evaluate(fill), page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]")
    assert page.evaluate(fill) != before
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    _check_charts(page)


def test_charts_follow_the_width(visit: Any) -> None:
    page = visit("2", "light", 1280)
    wide = page.evaluate("document.querySelector('#chart-influence-0 svg').getBoundingClientRect().width")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(900)
    narrow = page.evaluate("document.querySelector('#chart-influence-0 svg').getBoundingClientRect().width")
    assert wide > 700
    assert narrow < 380
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_search_finds_a_model_and_follows_links(visit: Any) -> None:
    audit = AUDITS["1000"]()
    page = visit("1000")
    matrix = audit["influence"]["matrix"]
    page.fill("#search-box", "model-0123")
    page.wait_for_selector(".found[data-model='123']")
    shown = page.locator(".two > div").first.locator("tr")
    assert shown.count() == 20
    strongest = max((k for k in range(1000) if k != 123), key=lambda k: abs(matrix[k][123]))
    assert shown.first.locator("button").inner_text() == f"model-{strongest:04d}"
    assert float(shown.first.locator("td.num").get_attribute("data-value")) == pytest.approx(
        matrix[strongest][123], rel=1e-3
    )
    shown.first.locator("button").click()
    page.wait_for_selector(f".found[data-model='{strongest}']")
    page.fill("#search-box", "no such model")
    assert "No model has this" in page.locator("#search-list").inner_text()
    page.fill("#search-box", "model-05")
    assert page.locator("#search-list button").count() == 12
    assert "88 more" in page.locator("#search-list").inner_text()
    page.press("#search-box", "Enter")
    page.wait_for_selector(".found[data-model='500']")


def test_tooltip_tells_the_number(visit: Any) -> None:
    page = visit("2")
    page.hover("#chart-influence-0 svg", position={"x": 250, "y": 120})
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "Influence" in page.inner_text("#vg-tooltip-element")


def test_page_prints(visit: Any, tmp_path: Path) -> None:
    page = visit("2", "dark")
    assert page.pdf(path=str(tmp_path / "page.pdf"))[:4] == b"%PDF"


def test_numbers_fold_out_by_keyboard(visit: Any) -> None:
    page = visit("2")
    page.locator("#influence summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#influence details table").first.is_visible()
