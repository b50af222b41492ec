"""Figure 3 as a whole: a chart, files, and single panels for a page.

Columns from left to right: population (direction of alignment above, derivatives below), derivatives on finite
samples, block contributions, alignment over λ; in the last three p stands above and q below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossfeed.report.marks import Panel, Spec
from crossfeed.report.theme import PALETTES, Scheme, config, paint
from crossfeed.reproduce.numbers import Numbers
from crossfeed.reproduce.panels import SIZE_DASHES, fixed, mark_of, panels


def _sized(panel: Panel, width: float, height: float) -> Spec:
    return {**panel.spec, "width": width, "height": height}


def vega_lite(numbers: Numbers, scheme: Scheme = "light", width: float = 196, height: float = 150) -> Spec:
    """The figure as one Vega-Lite spec: four panels a row, two rows.

    Args:
        numbers: Of :func:`crossfeed.reproduce.numbers.gather`.
        scheme: ``light`` or ``dark``.
        width: Of a panel, in pixels.
        height: Of a panel, in pixels.
    """
    cells = []
    for letter, panel in zip("abcdefgh", panels(numbers), strict=True):
        title = {"text": f"({letter}) {panel.title}", "anchor": "start", "frame": "group", "offset": 8}
        cells.append({**_sized(panel, width, height), "title": title, "description": panel.alt})
    rows = [{"hconcat": cells[:4], "spacing": 22}, {"hconcat": cells[4:], "spacing": 22}]
    whole: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": {**_config(), "background": PALETTES[scheme]["page"]},
        "padding": 8,
        "vconcat": [*rows, _key(4 * width + 3 * 70)],
        "spacing": 24,
        "resolve": {"scale": {"color": "independent", "strokeDash": "independent"}},
    }
    for row in rows:
        row["resolve"] = whole["resolve"]
    return dict(paint(whole, PALETTES[scheme]))


def _config(title_padding: float = 5) -> Spec:
    whole = config()
    legend = {**whole["legend"], "offset": 4, "labelLimit": 260, "padding": 0}
    axis = {**whole["axis"], "titlePadding": title_padding, "labelPadding": 4}
    return {**whole, "axis": axis, "legend": legend, "title": {**whole["title"], "fontSize": 14}}


def _key(width: float) -> Spec:
    """What lines and marks mean, in one row under the panels."""
    entries = [
        ("exact", {"type": "rule", "strokeWidth": 1.6}),
        ("theory, n = 32", {"type": "rule", "strokeWidth": 1.6, "strokeDash": SIZE_DASHES[32]}),
        ("theory, n = 4", {"type": "rule", "strokeWidth": 1.6, "strokeDash": SIZE_DASHES[4]}),
        ("theory ± 2 s.e.", {"type": "bar", "height": 11, "opacity": 0.25}),
        ("simulated", mark_of("circle", 22)),
        ("simulated, n = 4 (d, h)", mark_of("triangle-up", 24)),
        ("central difference", mark_of("cross", 30)),
        ("published", {"type": "point", "filled": False, "size": 34, "strokeWidth": 1.1, "opacity": 1}),
    ]
    layers: list[Spec] = []
    x = 10.0
    for words, mark in entries:
        line = mark["type"] != "point"
        ends = {"x": {"value": x}, "x2": {"value": x + 24}} if line else {"x": {"value": x + 17}}
        layers.append({"mark": mark, "encoding": {**ends, "y": {"value": 8}, "color": fixed("ink")}})
        text = {"type": "text", "align": "left", "baseline": "middle", "text": words}
        layers.append({"mark": text, "encoding": {"x": {"value": x + 30}, "y": {"value": 8}, "color": fixed("ink")}})
        x += 44 + 6.1 * len(words)
    return {"data": {"values": [{}]}, "width": width, "height": 16, "layer": layers}


def chart(numbers: Numbers, scheme: Scheme = "light") -> Any:
    """The figure as an Altair chart, to display or change."""
    import altair as alt

    return alt.VConcatChart.from_dict(vega_lite(numbers, scheme))


def save(numbers: Numbers, path: Path, scheme: Scheme = "light") -> Path:
    """Write the figure; the path's ending chooses SVG, PDF or PNG (at 300 dpi of its size in print)."""
    import vl_convert as vlc

    svg = vlc.vegalite_to_svg(vega_lite(numbers, scheme), vl_version=vlc.get_vegalite_versions()[-1])
    if path.suffix == ".svg":
        path.write_text(svg, encoding="utf-8")
    else:
        path.write_bytes(vlc.svg_to_pdf(svg) if path.suffix == ".pdf" else vlc.svg_to_png(svg, scale=2.5))
    return path


def panel_svg(panel: Panel, width: float = 350, height: float = 230) -> str:
    """A panel as SVG for a page; its colours are the page's CSS variables, so that it follows the colour scheme."""
    import vl_convert as vlc

    # more room beside the axis: the reader's typeface may be wider than the one that is measured here
    names = {name: f"var(--{name})" for name in PALETTES["light"]}
    spec = paint({"config": _config(11), **_sized(panel, width, height)}, names)
    svg: str = vlc.vegalite_to_svg(spec, vl_version=vlc.get_vegalite_versions()[-1])
    return svg
