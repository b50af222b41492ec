"""Drawings as pictures and a page made of them: no script, one file, light and dark by the reader's scheme."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossfeed.errors import NotAvailableError
from crossfeed.report.marks import Panel, Spec
from crossfeed.report.markup import text
from crossfeed.report.theme import PALETTES, Scheme, config, css, paint

WIDTH = 640
_STYLE = (
    "body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 var(--font)}"
    "main{max-width:46rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.6rem;line-height:1.2}"
    "figure{margin:2rem 0}img{max-width:100%;height:auto}p{white-space:pre-line}"
    "footer{color:var(--muted);font-size:.85rem;margin-top:3rem}"
)


def vega_lite(panel: Panel, scheme: Scheme = "light", width: int = WIDTH) -> Spec:
    """One panel as a Vega-Lite spec of fixed width, painted."""
    one: dict[str, Any] = {**panel.spec, "width": width, "title": panel.title, "description": panel.alt}
    one.pop("autosize", None)
    shown = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": config(), **one}
    shown["config"]["background"] = PALETTES[scheme]["page"]
    return dict(paint(shown, PALETTES[scheme]))


def svg(panel: Panel, scheme: Scheme = "light", width: int = WIDTH) -> str:
    """One panel as SVG."""
    import vl_convert as vlc

    drawn: str = vlc.vegalite_to_svg(vega_lite(panel, scheme, width), vl_version=vlc.get_vegalite_versions()[-1])
    return drawn


def save_panel(panel: Panel, path: str | Path, scheme: Scheme = "light", width: int = WIDTH) -> Path:
    """Write one panel as .svg, .pdf or .png (at twice its size).

    Raises:
        NotAvailableError: a file ending that is none of these.
    """
    import vl_convert as vlc

    target, ending = Path(path), Path(path).suffix.lower()
    if ending not in {".svg", ".pdf", ".png"}:
        raise NotAvailableError(f"{target}: found the ending {ending!r}; need .svg, .pdf or .png")
    drawn = svg(panel, scheme, width)
    if ending == ".svg":
        target.write_text(drawn, encoding="utf-8")
    else:
        target.write_bytes(vlc.svg_to_pdf(drawn) if ending == ".pdf" else vlc.svg_to_png(drawn, scale=2))
    return target


def figures(panels: Sequence[Panel]) -> str:
    """Panels as HTML figures, each a picture in both schemes with its description as alternative text."""
    out = []
    for panel in panels:
        light, dark = (base64.b64encode(svg(panel, scheme).encode()).decode() for scheme in ("light", "dark"))
        out.append(
            '<figure><picture><source media="(prefers-color-scheme: dark)" '
            f'srcset="data:image/svg+xml;base64,{dark}">'
            f'<img src="data:image/svg+xml;base64,{light}" alt="{text(panel.alt)}"></picture></figure>'
        )
    return "".join(out)


def page(title: str, lines: Sequence[str], panels: Sequence[Panel], foot: str) -> str:
    """A self-contained page: a title, paragraphs, drawings, and a line at the end."""
    body = "".join(f"<p>{text(line)}</p>" for line in lines)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{css()}{_STYLE}</style></head><body><main><h1>{text(title)}</h1>"
        f"{body}{figures(panels)}<footer>{text(foot)}</footer></main></body></html>\n"
    )
