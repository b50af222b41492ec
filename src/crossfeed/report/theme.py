"""Colours and type of the report, for light and dark, and how a chart receives them.

A chart names a colour by a token, ``token("helps")``. :func:`paint` replaces tokens by the colours of a palette; the
page does the same in the browser when the reader's colour scheme changes. Tokens begin with a private-use character,
which :func:`crossfeed.report.words.clean` removes from all text that comes from a spec, so that no name can be
mistaken for one.

Blue and orange stay apart under every common colour blindness; each verdict also has a symbol and a word.
"""

from __future__ import annotations

from typing import Any, Literal

Scheme = Literal["light", "dark"]

TOKEN = "\ue000"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

PALETTES: dict[Scheme, dict[str, str]] = {
    "light": {
        "page": "#ffffff",
        "panel": "#f6f7f9",
        "ink": "#19212b",
        "muted": "#55606c",
        "line": "#c9d0d8",
        "grid": "#e8ecf0",
        "helps": "#0b5a9c",
        "dampened": "#1f7488",
        "no-effect": "#5b6570",
        "backfires": "#b04508",
        "real": "#68737f",
        "raw": "#0b7a6f",
        "curated": "#7d3fa3",
        "zero": "#eff1f4",
        "down": "#e9a473",
        "down-strong": "#a84206",
        "up": "#86b8de",
        "up-strong": "#0b5394",
        "on-strong": "#ffffff",
        "first": "#0b5a9c",
        "second": "#b04508",
        "third": "#0b7a5c",
        "fourth": "#7d3fa3",
        "fifth": "#8d6c00",
        "sixth": "#55606c",
        "picks": "#8d6c00",
        "generation-0": "#8e99a5",
        "generation-1": "#c9e1f2",
        "generation-2": "#93c3e4",
        "generation-3": "#5499cc",
        "generation-4": "#1f6cab",
        "generation-5": "#0a3f73",
    },
    "dark": {
        "page": "#12171d",
        "panel": "#1a2129",
        "ink": "#e8edf2",
        "muted": "#a6b1bc",
        "line": "#3b4652",
        "grid": "#27303a",
        "helps": "#7fbdf3",
        "dampened": "#7fd0df",
        "no-effect": "#a6b1bc",
        "backfires": "#ffa369",
        "real": "#9aa7b4",
        "raw": "#4fc9bd",
        "curated": "#cda0ea",
        "zero": "#27303a",
        "down": "#9a5426",
        "down-strong": "#ff9c5c",
        "up": "#2c6596",
        "up-strong": "#7dbff8",
        "on-strong": "#10151a",
        "first": "#7fbdf3",
        "second": "#ffa369",
        "third": "#56d3a7",
        "fourth": "#cda0ea",
        "fifth": "#e3c14a",
        "sixth": "#a6b1bc",
        "picks": "#e3c14a",
        "generation-0": "#6b7783",
        "generation-1": "#16324a",
        "generation-2": "#1f5178",
        "generation-3": "#3179ad",
        "generation-4": "#5ea8dc",
        "generation-5": "#b5dcf8",
    },
}

SERIES = ("first", "second", "third", "fourth", "fifth", "sixth")
DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4])


def token(name: str) -> str:
    """The stand-in for a colour of the palette."""
    return TOKEN + name


def paint(spec: Any, palette: dict[str, str]) -> Any:
    """Replace every colour token in a nested spec by the palette's colour."""
    if isinstance(spec, dict):
        return {key: paint(value, palette) for key, value in spec.items()}
    if isinstance(spec, list):
        return [paint(value, palette) for value in spec]
    if isinstance(spec, str) and spec.startswith(TOKEN):
        return palette[spec[1:]]
    return spec


def config(label_limit: int = 230) -> dict[str, Any]:
    """Vega-Lite config with tokens: type, axes and legends of every chart.

    ``label_limit`` is the room for labels beside the chart in pixels; the page sets it from its own width.
    """
    ink, muted = token("ink"), token("muted")
    return {
        "background": "transparent",
        "font": FONT,
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "gridColor": token("grid"),
            "domainColor": token("line"),
            "tickColor": token("line"),
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "labelPadding": 6,
            "tickSize": 4,
            "labelSeparation": 6,
        },
        "axisY": {"labelLimit": label_limit},
        "legend": {
            "labelColor": ink,
            "titleColor": muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "orient": "top",
            "direction": "horizontal",
            "labelLimit": 220,
            "symbolStrokeWidth": 2.5,
            "offset": 10,
            "gradientLength": 280,
            "gradientThickness": 10,
        },
        "text": {"color": ink, "fontSize": 12},
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
    }


def css() -> str:
    """The palettes as CSS variables; dark by ``prefers-color-scheme``, paper always light."""
    light, dark = ("".join(f"--{key}:{value};" for key, value in PALETTES[s].items()) for s in ("light", "dark"))
    return (
        f":root{{color-scheme:light;--font:{FONT};{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
    )
