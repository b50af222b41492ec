"""Figure 3 redrawn in eight panels, ours and published on top of each other.

Columns from left to right: population (direction of alignment above, derivatives below), derivatives on finite
samples, block contributions, alignment over λ; in the last three p stands above and q below. Lines and filled marks
are ours, hollow marks are the published numbers. Labels keep to letters that common typefaces have: no ∇, no
subscripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossfeed.report.marks import Panel, Spec
from crossfeed.report.theme import PALETTES, Scheme, config, paint, token
from crossfeed.reproduce.numbers import MODELS, SIZES, Numbers

EVERY = 14
SIZE_COLOURS = {4: "second", 12: "third", 64: "first"}
MODEL_COLOURS = {"p": "first", "q": "second"}
STRENGTH_COLOURS = {"0.2": "first", "0.9": "second"}
SIZE_MARKS = {4: "triangle-up", 32: "circle"}
SIZE_DASHES = {32: [6, 2], 4: [2, 2]}

Rows = Sequence[Mapping[str, Any]]


def panels(numbers: Numbers) -> list[Panel]:
    """The eight panels, row by row of the figure."""
    return [
        direction(numbers),
        *(panel(numbers, "p") for panel in (finite, blocks, sweep)),
        derivatives(numbers),
        *(panel(numbers, "q") for panel in (finite, blocks, sweep)),
    ]


def direction(numbers: Numbers) -> Panel:
    """ρ over t."""
    c = numbers["curves"]
    words = {"p": "p", "q": "q", "script": "p by the script"}
    colours = {words["p"]: "first", words["q"]: "second", words["script"]: "fourth"}
    lines = (
        _rows(c["t"], c["rho_p"]["library"], words["p"])
        + _rows(c["t"], c["rho_q"]["library"], words["q"])
        + _rows(c["t"], c["rho_p_published"]["explicit"], words["script"])
    )
    theirs = _rows(c["t"], c["rho_q"]["published"], words["q"], EVERY) + _rows(
        c["t"], c["rho_p_published"]["published"], words["script"], EVERY
    )
    xy = _xy("ρ", limits=[0.05, 0.25])
    spec = {
        "layer": [
            {"data": {"values": lines}, "mark": {"type": "line", "strokeWidth": 2}, "encoding": xy},
            _hollow(theirs, xy),
        ],
        "encoding": {"color": _colour(colours)},
    }
    alt = "Direction of alignment over t: both stay near 0.2; what the published script calls ρ_p falls to 0.08."
    return Panel("Direction of alignment", alt, spec)


def derivatives(numbers: Numbers) -> Panel:
    """∂J/∂λ over t: influence matrix, explicit formula, central differences, published."""
    c = numbers["curves"]
    words = {model: f"on {model}" for model in MODELS}
    ways = (("theorem", 1, 0), ("explicit", 1, 0), ("difference", EVERY, EVERY // 2), ("published", EVERY, 0))
    theorem, hand, steps, theirs = (
        [row for m in MODELS for row in _rows(c["t"], c[f"influence_{m}"][way], words[m], every, start)]
        for way, every, start in ways
    )
    root = numbers["zero"]["t"]["library"]
    at = {"data": {"values": [{"x": root, "y": 0.0, "label": f"t = {root:.4f}"}]}}
    xy = _xy("∂J/∂λ")
    spec = {
        "layer": [
            _zero(),
            {"data": {"values": theorem}, "mark": {"type": "line", "strokeWidth": 3.4, "opacity": 0.4}, "encoding": xy},
            {"data": {"values": hand}, "mark": {"type": "line", "strokeWidth": 1.2, "strokeDash": [5, 3]}, "encoding": xy},
            {"data": {"values": steps}, "mark": _mark("cross", 30), "encoding": xy},
            _hollow(theirs, xy),
            {
                **at,
                "mark": {"type": "rule", "strokeDash": [2, 2]},
                "encoding": {"x": xy["x"], "color": _fixed("muted")},
            },
            {
                **at,
                "mark": {"type": "text", "align": "right", "dx": -5, "dy": 30},
                "encoding": {**xy, "text": {"field": "label"}, "color": _fixed("ink")},
            },
        ],
        "encoding": {"color": _colour({words[m]: MODEL_COLOURS[m] for m in MODELS})},
    }
    alt = f"Derivatives of alignment by p's curation over t, four ways that agree; q's changes sign at t = {root:.4f}."
    return Panel("Influence of p's curation", alt, spec)


def finite(numbers: Numbers, model: str) -> Panel:
    """Derivatives on finite samples: bands are the theory's mean ± 2 standard errors."""
    f, c = numbers["finite"], numbers["curves"]
    names = {n: f"n = {n}" for n in SIZES}
    bands, ours, theirs = [], [], []
    for place, n in enumerate(SIZES):
        v = f["n"][str(n)][model]
        shift = (place - 2) * 0.011
        for k, t in enumerate(f["t"]):
            mean, error = v["theory"][k], 2 * v["theory_std_error"][k]
            bands.append({"x": t, "low": mean - error, "high": mean + error, "kind": names[n]})
            ours.append({"x": t + shift, "y": v["simulated"][k], "kind": names[n]})
            theirs.append({"x": t + shift, "y": v["published"][k], "kind": names[n]})
    exact = _rows(c["t"], c[f"influence_{model}"]["theorem"], "exact")
    xy = _xy("∂J/∂λ")
    low, high = {"field": "low", "type": "quantitative", "title": "∂J/∂λ"}, {"field": "high"}
    spec = {
        "layer": [
            _zero(),
            {"data": {"values": bands}, "mark": {"type": "area", "opacity": 0.2}, "encoding": {"x": xy["x"], "y": low, "y2": high}},
            {
                "data": {"values": exact},
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {**xy, "color": _fixed("ink")},
            },
            {"data": {"values": ours}, "mark": _mark("circle", 15), "encoding": xy},
            _hollow(theirs, xy, 24),
        ],
        "encoding": {"color": _colour({names[n]: SIZE_COLOURS[n] for n in SIZES})},
    }
    alt = f"Derivative of J_{model} on finite samples: simulated and published means scatter about the exact line."
    return Panel(f"Finite samples, {model}", alt, spec)


def blocks(numbers: Numbers, model: str) -> Panel:
    """Contributions of the twelve blocks before and after the loop turns the push."""
    b = numbers["blocks"]
    words = {"raw": "raw", "distorted": "after the loop"}
    rows = [
        {"x": str(k + 1), "y": ours, "theirs": theirs, "kind": words[kind]}
        for kind in words
        for k, (ours, theirs) in enumerate(zip(b[model][kind]["library"], b[model][kind]["published"], strict=True))
    ]
    order = [str(k + 1) for k in range(len(rows) // 2)]
    axis = {"labelAngle": 0, "ticks": False, "domain": False, "grid": False}
    x = {"field": "x", "type": "nominal", "sort": order, "title": "block", "axis": axis, "scale": {"paddingInner": 0.22}}
    side = {"field": "kind", "sort": list(words.values())}
    data = {"values": rows}
    spec = {
        "layer": [
            {
                "data": data,
                "mark": {"type": "bar"},
                "encoding": {"x": x, "xOffset": side, "y": {"field": "y", "type": "quantitative", "title": "contribution", "axis": {"tickCount": 5}}},
            },
            {
                "data": data,
                "mark": {"type": "point", "size": 15, "filled": True, "stroke": token("ink"), "strokeWidth": 0.9, "opacity": 1},
                "encoding": {
                    "x": x,
                    "xOffset": side,
                    "y": {"field": "theirs", "type": "quantitative"},
                    "color": _fixed("page"),
                },
            },
            _zero("muted"),
        ],
        "encoding": {
            "color": _colour({"raw": "up" if model == "p" else "down", words["distorted"]: MODEL_COLOURS[model]}, "square")
        },
    }
    alt = f"Contributions of 12 blocks to J_{model} at t = {b['t']:g}, raw and after the loop; published lie on ours."
    return Panel(f"Blocks of {model} at t = {b['t']:g}", alt, spec)


def sweep(numbers: Numbers, model: str) -> Panel:
    """J over λ: at the stable point, and on finite samples."""
    s = numbers["sweep"]
    lines, ours, theirs = [], [], []
    for t, models in s["t"].items():
        v, kind = models[model], f"t = {t}"
        lines += [{**row, "n": "exact"} for row in _rows(s["curation"], v["library"], kind)]
        theirs += _rows(s["curation"], v["published"], kind, 2)
        for n, values in v["n"].items():
            lines += [{**row, "n": n} for row in _rows(s["curation"], values["theory"], kind)]
            ours += [{**row, "n": n} for row in _rows(s["curation"], values["simulated"], kind)]
    xy = _xy("J", "λ", [0, 0.8])
    dash = {"exact": [1, 0], **{str(n): d for n, d in SIZE_DASHES.items()}}
    shape = {str(n): m for n, m in SIZE_MARKS.items()}
    spec = {
        "layer": [
            _zero(),
            {
                "data": {"values": lines},
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {**xy, "strokeDash": _silent("n", dash)},
            },
            {"data": {"values": ours}, "mark": _mark(None, 17), "encoding": {**xy, "shape": _silent("n", shape)}},
            _hollow(theirs, xy),
        ],
        "encoding": {"color": _colour({f"t = {t}": STRENGTH_COLOURS[t] for t in s["t"]})},
    }
    alt = f"J_{model} over p's curation ratio λ at t = 0.2 and 0.9: exact, and on 32 and 4 samples a round."
    return Panel(f"Alignment of {model} over λ", alt, spec)


# --- pieces
-----------------------------------------------------------------------------------------------------------


def _rows(x: Sequence[float], y: Sequence[float], kind: str, every: int = 1, start: int = 0) -> list[dict[str, Any]]:
    return [{"x": a, "y": b, "kind": kind} for a, b in list(zip(x, y, strict=True))[start::every]]


def _xy(y: str, x: str = "t", domain: Sequence[float] = (0, 1), limits: Sequence[float] | None = None) -> Spec:
    scale: Spec = {"zero": False} if limits is None else {"domain": list(limits), "zero": False}
    return {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "scale": {"domain": list(domain), "nice": False},
            "axis": {"tickCount": 5, "grid": False, "labelFlush": False, "format": "~g"},
        },
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": scale, "axis": {"tickCount": 5}},
    }


def _colour(names: Mapping[str, str], symbol: str = "stroke") -> Spec:
    scale = {"domain": list(names), "range": [token(name) for name in names.values()]}
    legend = {"symbolType": symbol, "symbolSize": 100, "columnPadding": 9, "symbolOpacity": 1}
    return {"field": "kind", "type": "nominal", "scale": scale, "title": None, "sort": None, "legend": legend}


def _silent(field: str, values: Mapping[str, Any]) -> Spec:
    """A channel without legend: the key under the figure explains it."""
    scale = {"domain": list(values), "range": list(values.values())}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def _fixed(name: str) -> Spec:
    return {"value": token(name)}


def _mark(shape: str | None, size: int) -> Spec:
    return {"type": "point", "filled": True, "size": size, "opacity": 1, **({"shape": shape} if shape else {})}


def _hollow(rows: Rows, xy: Spec, size: int = 34) -> Spec:
    """Published numbers."""
    mark = {"type": "point", "filled": False, "fill": "transparent", "size": size, "strokeWidth": 1.1, "opacity": 1}
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": xy}


def _zero(colour: str = "line") -> Spec:
    encoding = {"y": {"field": "y", "type": "quantitative"}, "color": _fixed(colour)}
    return {"data": {"values": [{"y": 0}]}, "mark": {"type": "rule", "strokeWidth": 1}, "encoding": encoding}


# --- the whole
--------------------------------------------------------------------------------------------------------


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


def _config() -> Spec:
    whole = config()
    legend = {**whole["legend"], "offset": 4, "labelLimit": 260, "padding": 0}
    axis = {**whole["axis"], "titlePadding": 5, "labelPadding": 4}
    return {**whole, "axis": axis, "legend": legend, "title": {**whole["title"], "fontSize": 14}}


def _key(width: float) -> Spec:
    """What lines and marks mean, in one row under the panels."""
    entries = [
        ("exact", {"type": "rule", "strokeWidth": 1.6}),
        ("theory, n = 32", {"type": "rule", "strokeWidth": 1.6, "strokeDash": SIZE_DASHES[32]}),
        ("theory, n = 4", {"type": "rule", "strokeWidth": 1.6, "strokeDash": SIZE_DASHES[4]}),
        ("theory ± 2 s.e.", {"type": "bar", "height": 11, "opacity": 0.25}),
        ("simulated", _mark("circle", 22)),
        ("simulated, n = 4 (d, h)", _mark("triangle-up", 24)),
        ("central difference", _mark("cross", 30)),
        ("published", {"type": "point", "filled": False, "size": 34, "strokeWidth": 1.1, "opacity": 1}),
    ]
    layers: list[Spec] = []
    x = 10.0
    for words, mark in entries:
        line = mark["type"] != "point"
        ends = {"x": {"value": x}, "x2": {"value": x + 24}} if line else {"x": {"value": x + 17}}
        layers.append({"mark": mark, "encoding": {**ends, "y": {"value": 8}, "color": _fixed("ink")}})
        text = {"type": "text", "align": "left", "baseline": "middle", "text": words}
        layers.append({"mark": text, "encoding": {"x": {"value": x + 30}, "y": {"value": 8}, "color": _fixed("ink")}})
        x += 44 + 6.1 * len(words)
    return {"data": {"values": [{}]}, "width": width, "height": 16, "layer": layers}


def chart(numbers: Numbers, scheme: Scheme = "light") -> Any:
    """The figure as an Altair chart, to display or change."""
    import altair as alt

    return alt.Chart.from_dict(vega_lite(numbers, scheme))


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
    """A panel as SVG for a page: colours are the page's CSS variables, so that it follows the reader's colour scheme."""
    import vl_convert as vlc

    names = {name: f"var(--{name})" for name in PALETTES["light"]}
    spec = paint({"config": _config(), **_sized(panel, width, height)}, names)
    svg: str = vlc.vegalite_to_svg(spec, vl_version=vlc.get_vegalite_versions()[-1])
    return svg
