"""Charts of the answer: the influence matrix, self-influence, alone and together."""

from __future__ import annotations

import math
from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import (
    MANY,
    Panel,
    Spec,
    category,
    padded,
    palette,
    quantity,
    rule,
    tooltip,
    verdict_colour,
    verdict_label,
    view,
)
from crossfeed.report.theme import token

BLOCKS = 50
DIVERGING = [token(t) for t in ("down-strong", "down", "zero", "up", "up-strong")]


def _shade(value: float, largest: float) -> float:
    """Square root with the value's sign, so that small influences keep a visible colour."""
    return math.copysign(math.sqrt(min(1.0, abs(value) / largest)), value)


def _heat_colour(largest: float) -> Spec:
    signs = "(datum.value < 0 ? '−' : datum.value > 0 ? '+' : '')"
    return {
        "field": "shade",
        "type": "quantitative",
        "scale": {"domain": [-1, -0.5, 0, 0.5, 1], "range": DIVERGING, "type": "linear", "interpolate": "rgb"},
        "legend": {
            "title": "influence",
            "values": [-1, -0.7071, 0, 0.7071, 1],
            "labelExpr": f"{signs} + format(datum.value * datum.value * {largest!r}, '.2~g')",
        },
    }


def influence_matrix(audit: words.Audit) -> list[Panel]:
    """Heat map of the influence matrix: a row an affected model, a column a model whose curation is raised."""
    influence = audit.get("influence")
    if not influence:
        return []
    return [_blocks(audit) if len(audit["models"]) > MANY else _cells(audit)]


def _cells(audit: words.Audit) -> Panel:
    names, influence = words.labels(audit), audit["influence"]
    count = len(names)
    largest = max((abs(v) for row in influence["matrix"] for v in row if v is not None), default=0) or 1.0
    rows = []
    for k, row in enumerate(influence["matrix"]):
        for i, value in enumerate(row):
            verdict = influence["verdict"][k][i]
            symbol = words.VERDICTS[verdict].symbol if verdict in words.VERDICTS else "·"
            rows.append(
                {
                    "affected": names[k],
                    "intervened": names[i],
                    "value": value,
                    "shade": None if value is None else _shade(value, largest),
                    "word": verdict or "",
                    "symbol": symbol,
                    "number": "" if value is None else words.number(value, 2, sign=True),
                    "text": symbol if value is None else f"{symbol} {words.number(value, sign=True)}",
                }
            )
    low, wide = (46, 92) if count <= 4 else (38, 46) if count <= 12 else (20, 26)
    colour = {"condition": {"test": "abs(datum.shade) > 0.72", "value": token("on-strong")}, "value": token("ink")}
    enough = f"width >= {count * wide}"

    def text(field: str, dy: int, size: float, shown: str, weight: int = 400) -> Spec:
        mark = {
            "type": "text",
            "dy": dy,
            "fontSize": size,
            "fontWeight": weight,
            "opacity": {"expr": f"{shown} ? 1 : 0"},
        }
        return {"mark": mark, "encoding": {"text": {"field": field, "type": "nominal"}, "color": colour}}

    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": token("page"), "strokeWidth": 2, "cornerRadius": 3},
            "encoding": {
                "color": {
                    **_heat_colour(largest),
                    "condition": {"test": "datum.value === null", "value": token("panel")},
                },
                "tooltip": tooltip(
                    intervened="Raise the curation of", affected="Effect on", value="Influence #", word="Verdict"
                ),
            },
        }
    ]
    if count <= 4:
        layers += [
            text("text", -8, 14, enough, 600),
            text("word", 12, 12, enough),
            text("symbol", 0, 16, f"!({enough})"),
        ]
    elif count <= 12:
        layers += [text("number", 8, 11, enough), text("symbol", -7, 11, enough), text("symbol", 0, 13, f"!({enough})")]
    else:
        layers += [text("symbol", 0, 10, "true")]
    slant = {"labelAngle": -40, "labelAlign": "left", "labelBaseline": "bottom"} if count > 4 else {"labelAngle": 0}
    across = {**slant, "orient": "top", "labelLimit": 110, "labelOverlap": False}
    encoding = {
        "x": category("intervened", names, "model whose curation is raised", axis=across),
        "y": category("affected", names, "model affected", axis={"labelOverlap": False}),
    }
    alt = f"Heat map of the influence of each model’s curation on each model’s alignment. {words.bottom_line(audit)}"
    return Panel("Influence matrix", alt, view(rows, max(low * count, 60), layer=layers, encoding=encoding))


def _blocks(audit: words.Audit) -> Panel:
    matrix, count = audit["influence"]["matrix"], len(audit["models"])
    size = math.ceil(count / BLOCKS)
    strongest: dict[tuple[int, int], float] = {}
    for k, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None and k != i and abs(value) > abs(strongest.get((k // size, i // size), 0.0)):
                strongest[k // size, i // size] = value
    ordered = sorted(abs(v) for v in strongest.values())
    largest = (ordered[int(0.98 * (len(ordered) - 1))] if ordered else 0) or 1.0
    rows = [
        {
            "y": k * size + 1,
            "y2": min((k + 1) * size, count) + 1,
            "x": i * size + 1,
            "x2": min((i + 1) * size, count) + 1,
            "value": float(f"{value:.4g}"),
            "shade": round(_shade(value, largest), 3),
        }
        for (k, i), value in strongest.items()
    ]
    scale = {"domain": [1, count + 1], "nice": False}
    encoding = {
        "x": quantity("x", "position of the model whose curation is raised", scale=scale, axis={"grid": False}),
        "x2": {"field": "x2"},
        "y": quantity("y", "position of the model affected", scale={**scale, "reverse": True}, axis={"grid": False}),
        "y2": {"field": "y2"},
        "color": _heat_colour(largest),
        "tooltip": tooltip(
            x="Raised: from model #", y="Affected: from model #", value="Strongest influence in block #"
        ),
    }
    alt = f"Heat map of the strongest influence between different models in blocks of {size} by {size} models."
    return Panel("Influence between models, in blocks", alt, view(rows, 460, mark={"type": "rect"}, encoding=encoding))


def self_influence(audit: words.Audit) -> list[Panel]:
    """Histogram of all self-influences, by verdict; for ecosystems too large for one bar a model."""
    if not audit.get("influence") or len(audit["models"]) <= MANY:
        return []
    pairs = [(audit["influence"]["matrix"][i][i], words.verdicts(audit)[i][i]) for i in words.curated_models(audit)]
    found = [(v, verdict) for v, verdict in pairs if v is not None]
    if not found:
        return []
    low, high = min(v for v, _ in found), max(v for v, _ in found)
    step = (high - low) / 40 or 1.0
    counts: dict[int, dict[str | None, int]] = {}
    for value, verdict in found:
        column = counts.setdefault(math.floor(value / step), {})
        column[verdict] = column.get(verdict, 0) + 1
    rows = []
    for bin_index, column in sorted(counts.items()):
        below = 0
        for verdict in words.VERDICTS:
            if count := column.get(verdict, 0):
                edges = {"lo": bin_index * step, "hi": (bin_index + 1) * step, "from": below, "to": below + count}
                rows.append({**edges, "count": count, "verdict": verdict_label(verdict)})
                below += count
    encoding = {
        "x": quantity("lo", "self-influence"),
        "x2": {"field": "hi"},
        "y": quantity("from", "models", axis={"tickMinStep": 1}),
        "y2": {"field": "to"},
        "color": verdict_colour(v for _, v in found),
        "tooltip": tooltip(lo="From #", hi="To #", count="Models #", verdict="Verdict"),
    }
    bars = {"mark": {"type": "rect", "stroke": token("page"), "strokeWidth": 1}, "encoding": encoding}
    alt = (
        f"Histogram of the self-influence of {words.plural(len(found), 'model')}, from {words.number(low)} to "
        f"{words.number(high)}."
    )
    return [Panel("Self-influence of all models", alt, view(rows, 260, layer=[bars, rule("x", 0)]))]


def isolated(audit: words.Audit) -> list[Panel]:
    """Self-influence in the ecosystem beside what it would be if the other models stood still."""
    influence = audit.get("influence")
    if not influence:
        return []
    names = words.labels(audit)
    found = [
        (names[i], influence["isolated"][i], influence["matrix"][i][i], influence["verdict"][i][i])
        for i in words.curated_models(audit)
        if influence["isolated"][i] is not None and influence["matrix"][i][i] is not None
    ]
    if not found:
        return []
    if len(names) > MANY:
        return [_isolated_scatter(found)]
    kinds = {"alone (others stand still)": "real", "together (in the ecosystem)": "first"}
    rows = [
        {"model": name, "kind": kind, "value": value, "zero": 0, "word": verdict}
        for name, alone, together, verdict in found
        for kind, value in zip(kinds, (alone, together), strict=True)
    ]
    order = [name for name, *_ in found]
    encoding = {
        "y": category("model", order, scale={"paddingInner": 0.3, "paddingOuter": 0.15}),
        "yOffset": {"field": "kind", "type": "nominal", "sort": list(kinds)},
        "x": quantity("value", "self-influence", scale={"domain": padded([r["value"] for r in rows], [0.0])}),
        "x2": {"field": "zero"},
        "color": palette(kinds),
        "tooltip": tooltip(model="Model", kind="Setting", value="Self-influence #", word="Verdict together"),
    }
    layers = [{"mark": {"type": "bar", "cornerRadiusEnd": 2}, "encoding": encoding}, rule("x", 0)]
    alt = "Bars of each model’s self-influence alone and together: " + "; ".join(
        f"{n} {words.number(a)} alone, {words.number(t)} together" for n, a, t, _ in found[:6]
    )
    return [Panel("Alone and together", alt, view(rows, max(70, 44 * len(order)), layer=layers))]


def _isolated_scatter(found: list[tuple[str, float, float, str | None]]) -> Panel:
    rows: list[dict[str, Any]] = [
        {"model": n, "alone": float(f"{a:.4g}"), "together": float(f"{t:.4g}"), "verdict": verdict_label(v)}
        for n, a, t, v in found
    ]
    low, high = padded([r[key] for r in rows for key in ("alone", "together")], [0.0])
    same = {
        "data": {"values": [{"a": low}, {"a": high}]},
        "mark": {"type": "line", "color": token("line"), "strokeDash": [4, 3]},
    }
    same["encoding"] = {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "a", "type": "quantitative"}}
    points = {
        "mark": {"type": "point", "filled": True, "size": 24, "opacity": 0.65},
        "encoding": {
            "x": quantity("alone", "alone (others stand still)", scale={"domain": [low, high]}),
            "y": quantity("together", "together", scale={"domain": [low, high]}),
            "color": verdict_colour(v for *_, v in found),
            "shape": {
                "field": "verdict",
                "type": "nominal",
                "scale": {
                    "domain": [verdict_label(v) for v in words.VERDICTS],
                    "range": ["triangle-up", "diamond", "circle", "triangle-down"],
                },
                "legend": None,
            },
            "tooltip": tooltip(model="Model", alone="Alone #", together="Together #", verdict="Verdict"),
        },
    }
    alt = (
        f"Scatter of self-influence alone against together for {words.plural(len(found), 'model')}; on the "
        f"dashed line both are equal."
    )
    return Panel("Alone and together", alt, view(rows, 340, layer=[same, rule("x", 0), rule("y", 0), points]))
