"""Charts of the answer: the influence matrix, alone and together, planned changes, thresholds."""

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
            "gradientLength": 280,
            "gradientThickness": 10,
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
                    "word": verdict or "no curation to raise",
                    "symbol": symbol,
                    "text": symbol if value is None else f"{symbol} {words.number(value, 3 if count <= 6 else 2, sign=True)}",
                }
            )
    low, wide = (46, 92) if count <= 4 else (34, 62) if count <= 12 else (20, 26)
    colour = {"condition": {"test": "abs(datum.shade) > 0.72", "value": token("on-strong")}, "value": token("ink")}
    enough = f"width >= {count * wide}"

    def text(field: str, dy: int, size: float, shown: str, weight: int = 400) -> Spec:
        mark = {"type": "text", "dy": dy, "fontSize": size, "fontWeight": weight, "opacity": {"expr": f"{shown} ? 1 : 0"}}
        return {"mark": mark, "encoding": {"text": {"field": field, "type": "nominal"}, "color": colour}}

    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": token("page"), "strokeWidth": 2, "cornerRadius": 3},
            "encoding": {
                "color": {**_heat_colour(largest), "condition": {"test": "datum.value === null", "value": token("panel")}},
                "tooltip": tooltip(intervened="Raise the curation of", affected="Effect on", value="Influence #", word="Verdict"),
            },
        }
    ]
    if count <= 4:
        layers += [text("text", -8, 14, enough, 600), text("word", 12, 12, enough), text("symbol", 0, 16, f"!({enough})")]
    elif count <= 12:
        layers += [text("text", 0, 11.5, enough), text("symbol", 0, 13, f"!({enough})")]
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
        "tooltip": tooltip(x="Raised: from model #", y="Affected: from model #", value="Strongest influence in block #"),
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
    alt = f"Histogram of the self-influence of {words.plural(len(found), 'model')}, from {words.number(low)} to {words.number(high)}."
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
        {"model": n, "alone": float(f"{a:.4g}"), "together": float(f"{t:.4g}"), "verdict": verdict_label(v)} for n, a, t, v in found
    ]
    low, high = padded([r[key] for r in rows for key in ("alone", "together")], [0.0])
    same = {"data": {"values": [{"a": low}, {"a": high}]}, "mark": {"type": "line", "color": token("line"), "strokeDash": [4, 3]}}
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
                "scale": {"domain": [verdict_label(v) for v in words.VERDICTS], "range": ["triangle-up", "diamond", "circle", "triangle-down"]},
                "legend": None,
            },
            "tooltip": tooltip(model="Model", alone="Alone #", together="Together #", verdict="Verdict"),
        },
    }
    alt = f"Scatter of self-influence alone against together for {words.plural(len(found), 'model')}; on the dashed line both are equal."
    return Panel("Alone and together", alt, view(rows, 340, layer=[same, rule("x", 0), rule("y", 0), points]))


def changes(audit: words.Audit, most: int = 14) -> list[Panel]:
    """How far each planned change moves alignment, with the values before and after, one panel a change."""
    return [p for change in audit.get("changes") or [] if (p := _change(audit, change, most))]


def _change(audit: words.Audit, change: dict[str, Any], most: int) -> Panel | None:
    names, rows = words.labels(audit), []
    verdicts, first, alone = (change.get(key) or [None] * len(names) for key in ("verdict", "first_order", "isolated"))
    for k, (before, after) in enumerate(zip(change.get("before") or [], change.get("after") or [], strict=False)):
        if before is None or after is None:
            continue
        rows.append(
            {
                "model": names[k],
                "before": before,
                "after": after,
                "moved": after - before,
                "zero": 0,
                "tip": max(0.0, after - before),
                "text": f"{words.number(before)} → {words.number(after)}",
                "predicted": first[k],
                "alone": alone[k],
                "verdict": verdict_label(verdicts[k]),
            }
        )
    if not rows:
        return None
    kept = sorted(rows, key=lambda r: -abs(r["moved"]))[:most]
    rows = [r for r in rows if r in kept]
    low, high = padded([r[key] for r in rows for key in ("moved", "predicted", "alone")], [0.0])
    scale = {"domain": [low, high + 0.3 * (high - low)], "nice": False}
    y = {"y": category("model", [r["model"] for r in rows])}
    moved = quantity("moved", "change of alignment", scale=scale)
    hints = tooltip(
        model="Model", before="Before #", after="After #", predicted="First-order prediction #", alone="If the others stood still #", verdict="Verdict"
    )
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": {"band": 0.55}, "cornerRadiusEnd": 2},
            "encoding": {**y, "x": moved, "x2": {"field": "zero"}, "color": verdict_colour(verdicts), "tooltip": hints},
        },
        rule("x", 0),
        {
            "mark": {"type": "tick", "thickness": 2.5, "size": 22, "color": token("ink")},
            "encoding": {**y, "x": quantity("predicted", None, scale=scale), "tooltip": hints},
        },
        {
            "mark": {"type": "point", "shape": "diamond", "size": 60, "strokeWidth": 2, "color": token("ink"), "fill": token("page"), "opacity": 1},
            "transform": [{"filter": "datum.alone !== null"}],
            "encoding": {**y, "x": quantity("alone", None, scale=scale), "tooltip": hints},
        },
        {
            "mark": {"type": "text", "align": "right", "color": token("muted"), "x": {"expr": "width - 4"}},
            "encoding": {**y, "text": {"field": "text", "type": "nominal"}},
        },
    ]
    title = f"{words.clean(change['path'], 60)}: {words.number(change['from'])} → {words.number(change['to'])}"
    alt = "".join(c.text for c in words.changed(audit, change))
    return Panel(title, alt, view(rows, max(60, 34 * len(rows)), layer=layers))


def thresholds(audit: words.Audit, most: int = 8) -> list[Panel]:
    """Influence while a setting moves, with the values at which it changes sign, one panel a pair and setting."""
    found = [t for t in audit.get("thresholds") or [] if t.get("values") and any(v is not None for v in t.get("influence") or [])]
    found.sort(key=lambda t: not t.get("roots"))
    names = words.namer(audit)
    return [_threshold(t, names) for t in found[:most]]


def _threshold(t: dict[str, Any], names: dict[str, str]) -> Panel:
    setting = words.clean(t["path"], 60)
    rows = [{"at": a, "value": v, "side": "helps" if v >= 0 else "harms"} for a, v in zip(t["values"], t["influence"], strict=False) if v is not None]
    domain = padded([r["value"] for r in rows], [0.0])
    x = {"title": setting, "scale": {"domain": [t["low"], t["high"]], "nice": False}}
    y = quantity("value", "influence", scale={"domain": domain})
    hints = tooltip(at=f"{setting} #", value="Influence #", side="More curation")
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.16, "color": token("up-strong"), "clip": True},
            "transform": [{"calculate": "max(0, datum.value)", "as": "above"}],
            "encoding": {"x": quantity("at", **x), "y": {"field": "above", "type": "quantitative"}},
        },
        {
            "mark": {"type": "area", "opacity": 0.2, "color": token("down-strong"), "clip": True},
            "transform": [{"calculate": "min(0, datum.value)", "as": "below"}],
            "encoding": {"x": quantity("at", **x), "y": {"field": "below", "type": "quantitative"}},
        },
        rule("y", 0),
        {
            "mark": {"type": "line", "strokeWidth": 2.2, "color": token("ink"), "clip": True, "tooltip": True},
            "encoding": {"x": quantity("at", **x), "y": y, "tooltip": hints},
        },
    ]
    marked = [{"at": r, "value": 0, "label": f"flips at {words.number(r)}"} for r in t.get("roots") or []]
    if marked:
        at = {"x": quantity("at", **x), "y": {"field": "value", "type": "quantitative"}}
        diamond = {"type": "point", "shape": "diamond", "filled": True, "size": 110, "color": token("ink"), "opacity": 1}
        layers.append(
            {"data": {"values": marked}, "mark": diamond, "encoding": {**at, "tooltip": tooltip(at=f"{setting} #", label="Here")}}
        )
        for one in marked[:3]:
            mark = {"type": "text", "fontWeight": 600, **_beside(one["at"], rows, t["low"], t["high"])}
            layers.append({"data": {"values": [one]}, "mark": mark, "encoding": {**at, "text": {"field": "label", "type": "nominal"}}})
    if t.get("current") is not None and t["low"] <= t["current"] <= t["high"]:
        layers.append(rule("x", t["current"], [5, 4]))
        mark = {"type": "text", "align": "left", "dx": 5, "baseline": "top", "color": token("muted"), "y": 2}
        now = {"data": {"values": [{"at": t["current"], "label": "now"}]}, "mark": mark}
        now["encoding"] = {"x": quantity("at", **x), "text": {"field": "label", "type": "nominal"}}
        layers.append(now)
    who = f"{words.called(names, t['intervened'])}’s curation → {words.called(names, t['affected'])}"
    roots = words.join([words.number(r) for r in t.get("roots") or []])
    alt = f"Influence of {who} as {setting} moves from {words.number(t['low'])} to {words.number(t['high'])}: "
    alt += f"it changes sign at {roots}." if roots else "it keeps its sign."
    return Panel(f"{who}, as {setting} moves", alt, view(rows, 220, layer=layers))


def _beside(root: float, rows: list[dict[str, Any]], low: float, high: float) -> dict[str, Any]:
    """Where a label at a root does not lie on the curve: above the axis on the side where the curve is below it, or the reverse."""
    before = [r["value"] for r in rows if r["at"] < root]
    falling = bool(before) and before[-1] > 0
    place = (root - low) / ((high - low) or 1.0)
    right = (falling and place < 0.7) or (not falling and place < 0.3)
    above = right == falling
    return {"align": "left" if right else "right", "dx": 9 if right else -9, "dy": -12 if above else 13}
