"""A Chromium for the pages of reports, offline, and what opening one of them must not do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DRAWN = "html[data-drawn]"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open one of the module's ``pages`` and wait until its charts are drawn, at most ``PATIENCE`` milliseconds of the module.

    At the end nothing may have been said, thrown or fetched.
    """
    opened, trouble = [], []

    def go(name: str, scheme: str = "light", width: int = 1280) -> Any:
        context = chromium.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: trouble.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto(pages[name].as_uri())
        page.wait_for_selector(DRAWN, timeout=request.module.PATIENCE)
        return page

    yield go
    for context in opened:
        context.close()
    assert trouble == []
