"""Pieces that the charts share: a panel, and the Vega-Lite for bars, points, rules and tooltips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossfeed.report.theme import token
from crossfeed.report.words import VERDICTS

Spec = dict[str, Any]
MANY = 30
"""Above this many models, charts show summaries and the strongest parts."""
PLAIN = (
    "datum.value != 0 && (abs(datum.value) < 1e-4 || abs(datum.value) >= 1e6) ? format(datum.value, '.2~e') "
    ": datum.label"
)


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Args:
        title: What it is called.
        alt: What it shows, in a sentence.
        spec: Vega-Lite, as wide as its container.
        longest: Letters of the longest label beside it; long ones ask for the full width of the page.
    """

    title: str
    alt: str
    spec: Spec
    longest: int = 0


def view(rows: Sequence[Mapping[str, Any]], height: float, **parts: Any) -> Spec:
    """A single or layered view on ``rows`` that follows its container's width."""
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(rows)},
        **parts,
    }


def quantity(field: str, title: str | None, **parts: Any) -> Spec:
    """A quantitative channel; very small and very large numbers are written with an exponent."""
    axis = {"labelExpr": PLAIN, "tickCount": 6, "labelOverlap": True, **parts.pop("axis", {})}
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, **parts}


def category(field: str, order: Sequence[str], title: str | None = None, **parts: Any) -> Spec:
    """A nominal channel in the given order."""
    axis = {"ticks": False, "domain": False, "grid": False, **parts.pop("axis", {})}
    return {"field": field, "type": "nominal", "sort": list(order), "title": title, "axis": axis, **parts}


def palette(mapping: Mapping[str, str], title: str | None = None, field: str = "kind", **parts: Any) -> Spec:
    """A colour channel from category to colour token."""
    scale = {"domain": list(mapping), "range": [token(t) for t in mapping.values()]}
    return {"field": field, "type": "nominal", "scale": scale, "title": title, "sort": None, **parts}


def verdict_colour(present: Iterable[str | None]) -> Spec:
    """Colour by verdict, with the symbol in the legend."""
    seen = set(present)
    shown = {f"{v.symbol} {name}": v.style for name, v in VERDICTS.items() if name in seen}
    return palette(shown, None, "verdict")


def verdict_label(verdict: str | None) -> str:
    """Symbol and word of a verdict."""
    return f"{VERDICTS[verdict].symbol} {verdict}" if verdict in VERDICTS else "–"


def tooltip(**titles: str) -> list[Spec]:
    """Tooltip rows: ``field="Title"``; a title that ends in ``#`` is a number."""
    return [
        {"field": field, "title": title.rstrip("#").strip(), "type": "quantitative", "format": ".4~g"}
        if title.endswith("#")
        else {"field": field, "title": title, "type": "nominal"}
        for field, title in titles.items()
    ]


def rule(axis: str, at: float, dash: Sequence[int] | None = None, colour: str = "muted") -> Spec:
    """A line across the chart at a value."""
    mark: Spec = {"type": "rule", "color": token(colour), "strokeWidth": 1}
    if dash:
        mark["strokeDash"] = list(dash)
    return {"data": {"values": [{"at": at}]}, "mark": mark, "encoding": {axis: {"field": "at", "type": "quantitative"}}}


def padded(values: Iterable[float | None], include: Sequence[float] = (), share: float = 0.06) -> list[float]:
    """Limits that hold all values with a margin."""
    found = [float(v) for v in (*values, *include) if v is not None]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    margin = (high - low) * share or abs(high) * share or 1.0
    return [low - margin, high + margin]
