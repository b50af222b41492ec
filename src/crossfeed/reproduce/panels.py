"""The eight panels of Figure 3, ours and published on top of each other.

Lines and filled marks are ours, hollow marks are the published numbers. Labels keep to letters that common typefaces
have: no ∇, no subscripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfeed.report.marks import Panel, Spec
from crossfeed.report.theme import token
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
    wide = {"type": "line", "strokeWidth": 3.4, "opacity": 0.4}
    spec = {
        "layer": [
            _zero(),
            {"data": {"values": theorem}, "mark": wide, "encoding": xy},
            {
                "data": {"values": hand},
                "mark": {"type": "line", "strokeWidth": 1.2, "strokeDash": [5, 3]},
                "encoding": xy,
            },
            {"data": {"values": steps}, "mark": mark_of("cross", 30), "encoding": xy},
            _hollow(theirs, xy),
            {
                **at,
                "mark": {"type": "rule", "strokeDash": [2, 2]},
                "encoding": {"x": xy["x"], "color": fixed("muted")},
            },
            {
                **at,
                "mark": {"type": "text", "align": "right", "dx": -5, "dy": 30},
                "encoding": {**xy, "text": {"field": "label"}, "color": fixed("ink")},
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
            {
                "data": {"values": bands},
                "mark": {"type": "area", "opacity": 0.2},
                "encoding": {"x": xy["x"], "y": low, "y2": high},
            },
            {
                "data": {"values": exact},
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {**xy, "color": fixed("ink")},
            },
            {"data": {"values": ours}, "mark": mark_of("circle", 15), "encoding": xy},
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
    scale = {"paddingInner": 0.22}
    x = {"field": "x", "type": "nominal", "sort": order, "title": "block", "axis": axis, "scale": scale}
    y = {"field": "y", "type": "quantitative", "title": "contribution", "axis": {"tickCount": 5}}
    side = {"field": "kind", "sort": list(words.values())}
    data = {"values": rows}
    colours = {"raw": "up" if model == "p" else "down", words["distorted"]: MODEL_COLOURS[model]}
    spec = {
        "layer": [
            {
                "data": data,
                "mark": {"type": "bar"},
                "encoding": {"x": x, "xOffset": side, "y": y},
            },
            {
                "data": data,
                "mark": {**mark_of("circle", 15), "stroke": token("ink"), "strokeWidth": 0.9},
                "encoding": {
                    "x": x,
                    "xOffset": side,
                    "y": {"field": "theirs", "type": "quantitative"},
                    "color": fixed("page"),
                },
            },
            _zero("muted"),
        ],
        "encoding": {"color": _colour(colours, "square")},
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
            {"data": {"values": ours}, "mark": mark_of(None, 17), "encoding": {**xy, "shape": _silent("n", shape)}},
            _hollow(theirs, xy),
        ],
        "encoding": {"color": _colour({f"t = {t}": STRENGTH_COLOURS[t] for t in s["t"]})},
    }
    alt = f"J_{model} over p's curation ratio λ at t = 0.2 and 0.9: exact, and on 32 and 4 samples a round."
    return Panel(f"Alignment of {model} over λ", alt, spec)


# --- pieces ---


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
    legend = {"symbolType": symbol, "symbolSize": 100, "columnPadding": 14, "symbolOpacity": 1}
    return {"field": "kind", "type": "nominal", "scale": scale, "title": None, "sort": None, "legend": legend}


def _silent(field: str, values: Mapping[str, Any]) -> Spec:
    """A channel without legend: the key under the figure explains it."""
    scale = {"domain": list(values), "range": list(values.values())}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def fixed(name: str) -> Spec:
    """A colour that no data decide."""
    return {"value": token(name)}


def mark_of(shape: str | None, size: int) -> Spec:
    """A filled point."""
    return {"type": "point", "filled": True, "size": size, "opacity": 1, **({"shape": shape} if shape else {})}


def _hollow(rows: Rows, xy: Spec, size: int = 34) -> Spec:
    """Published numbers."""
    mark = {"type": "point", "filled": False, "fill": "transparent", "size": size, "strokeWidth": 1.1, "opacity": 1}
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": xy}


def _zero(colour: str = "line") -> Spec:
    encoding = {"y": {"field": "y", "type": "quantitative"}, "color": fixed(colour)}
    return {"data": {"values": [{"y": 0}]}, "mark": {"type": "rule", "strokeWidth": 1}, "encoding": encoding}
