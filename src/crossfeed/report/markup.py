"""HTML by small functions. Every text goes through :func:`text`; numbers carry their exact value in ``data-value``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import Panel, Spec


def text(value: Any, limit: int | None = None) -> str:
    """Cleaned and escaped, for element content and attribute values."""
    return escape(words.clean(value, limit), quote=True)


def num(value: float | None, digits: int = 3, *, sign: bool = False, of: str = "", **key: Any) -> str:
    """A number with its exact value, and what it is (``of``), as attributes."""
    if value is None:
        return '<span class="none">–</span>'
    what = "".join(f' data-{name}="{text(v)}"' for name, v in {"of": of, **key}.items() if v != "")
    return f'<span class="num" data-value="{value!r}"{what}>{words.number(value, digits, sign)}</span>'


def verdict(name: str | None) -> str:
    """Symbol and word in the verdict's colour."""
    if name not in words.VERDICTS:
        return '<span class="none">–</span>'
    shown = words.VERDICTS[name]
    return f'<span class="verdict {shown.style}"><span aria-hidden="true">{shown.symbol}</span> {name}</span>'


def sentence(clauses: Iterable[words.Clause]) -> str:
    """A sentence whose verdicts are marked by colour and symbol."""
    parts = []
    for clause in clauses:
        shown = words.VERDICTS.get(clause.verdict or "")
        body = escape(clause.text, quote=True)
        if shown:
            body = (
                f'<strong class="{shown.style}"><span class="symbol" '
                f'aria-hidden="true">{shown.symbol}</span>&nbsp;{body}</strong>'
            )
        parts.append(body)
    return "".join(parts)


def paragraph(content: str, kind: str = "") -> str:
    """A paragraph of markup."""
    return f'<p class="{kind}">{content}</p>' if kind else f"<p>{content}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, cut: int = 200) -> str:
    """A table of markup cells; the first cell of a row names the row. Long tables are cut, and say so."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[:cut]
    )
    more = (
        paragraph(f"The first {cut:,} of {len(rows):,} rows; audit.json holds all.", "note") if len(rows) > cut else ""
    )
    frame = f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
    head_and_body = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f"{frame}<table><caption>{text(caption)}</caption>{head_and_body}</table></div>{more}"


def without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without columns that are empty throughout."""
    kept = [c for c in range(len(head)) if any(row[c] for row in rows)]
    return [head[c] for c in kept], [[row[c] for c in kept] for row in rows]


def fold(summary: str, content: str) -> str:
    """Content behind a summary line."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


@dataclass
class Page:
    """Collects the charts that sections draw."""

    charts: dict[str, Spec] = field(default_factory=dict)

    def figure(self, name: str, panels: Sequence[Panel], caption: str, titled: bool | None = None) -> str:
        """A figure with a place for each panel's chart; titles where there are several panels."""
        if not panels:
            return ""
        shown, cells = len(panels) > 1 if titled is None else titled, []
        for position, panel in enumerate(panels):
            key = f"{name}-{position}"
            self.charts[key] = panel.spec
            title = f'<p class="panel-title">{text(panel.title)}</p>' if shown else ""
            height = int(panel.spec["height"]) + 50
            drawing = (
                f'<div class="chart" id="chart-{key}" role="img" aria-label="{text(panel.alt, 600)}" '
                f'style="min-height:{height}px"></div>'
            )
            cells.append(f'<div class="panel">{title}{drawing}</div>')
        kind = "panels" if len(panels) > 1 and max(p.longest for p in panels) <= 24 else "single"
        return (
            f'<figure class="{kind}"><div '
            f'class="cells">{"".join(cells)}</div><figcaption>{caption}</figcaption></figure>'
        )


def script_json(value: Any) -> str:
    """JSON that cannot end a script element or start a comment in it, in ASCII."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return body.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
