"""The page of an audit of networks: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Callable

from crossfeed.report import estimate_people, estimate_sections, words
from crossfeed.report.html import assemble
from crossfeed.report.markup import Page

SECTIONS: list[tuple[str, str, Callable[[words.Audit, Page], str]]] = [
    ("answer", "The answer", estimate_sections.answer),
    ("flows", "Who is trained on whom", estimate_sections.flows),
    ("influence", "What more curation does", estimate_sections.influence),
    ("together", "Alone and together", estimate_sections.alone),
    ("course", "Where the loop goes", estimate_sections.course),
    ("changes", "What if", estimate_sections.what_ifs),
    ("people", "Who is behind it", estimate_people.people),
    ("mismatch", "Where evaluations look away", estimate_people.mismatch),
    ("checks", "Checks", estimate_people.checks),
    ("limits", "What this does not say", estimate_people.limits),
    ("made", "How it was made", estimate_people.made),
]
MEDIA = {"text": "answers in words", "images": "pictures", "vectors": "points"}


def html(audit: words.Audit) -> str:
    """Write the report of an audit of networks as one self-contained HTML page.

    Args:
        audit: The contents of audit.json, format ``crossfeed-estimate``.

    Returns:
        The page; it opens offline, follows the reader's light or dark scheme, and prints.
    """
    page = Page()
    parts = [(anchor, title, section(audit, page)) for anchor, title, section in SECTIONS]
    facts = [
        MEDIA.get(audit["space"], ""),
        words.plural(len(audit["models"]), "model"),
        words.plural(sum(len(m["sources"]) for m in audit["models"]), "data flow"),
        words.clean(audit["point"]["words"], 160),
    ]
    version = audit.get("crossfeed") or ""
    return assemble("audit", audit["spec_name"], audit.get("description") or "", facts, parts, page, version=version)
