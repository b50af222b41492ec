"""Charts of an audit of networks: the influence matrix with intervals, alone and together, courses by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crossfeed.report import words
from crossfeed.report.estimate_words import (
    POINTS,
    STEP,
    VERDICTS,
    called,
    column_labels,
    entry,
    evaluation_labels,
    fixed,
    mains,
    span,
)
from crossfeed.report.influence_charts import DIVERGING
from crossfeed.report.marks import Panel, Spec, category, padded, palette, quantity, rule, tooltip, view
from crossfeed.report.run_charts import over_rounds
from crossfeed.report.theme import DASHES, SERIES, token

LARGE = 60
"""With more rows or columns there is no heat map, only the strongest entries."""
COLOURED = len(SERIES)


def influence_matrix(audit: words.Audit) -> list[Panel]:
    """Heat map: a row an evaluation, a column a model whose curation is raised; coloured where the sign is told."""
    across, down = column_labels(audit), evaluation_labels(audit)
    if not across or max(len(across), len(down)) > LARGE:
        return []
    found = audit["influence"]
    told = [
        abs(STEP * v)
        for row, said in zip(found["matrix"], found["verdict"], strict=True)
        for v, verdict in zip(row, said, strict=True)
        if verdict != "cannot tell"
    ]
    largest = max(told, default=0) or 1.0
    rows = [_cell(audit, e, c, down[e], across[c], largest) for e in range(len(down)) for c in range(len(across))]
    count = len(across)
    low, wide = (50, 118) if count <= 4 else (40, 56) if count <= 12 else (20, 22)
    colour = {"condition": {"test": "abs(datum.shade) > 0.72", "value": token("on-strong")}, "value": token("ink")}
    enough = f"width >= {count * wide}"

    def text(field: str, dy: int, size: float, shown: str, weight: int = 400) -> Spec:
        mark = {"type": "text", "dy": dy, "fontSize": size, "fontWeight": weight}
        mark["opacity"] = {"expr": f"{shown} ? 1 : 0"}
        return {"mark": mark, "encoding": {"text": {"field": field, "type": "nominal"}, "color": colour}}

    signs = "(datum.value < 0 ? '−' : datum.value > 0 ? '+' : '')"
    heat = {
        "field": "shade",
        "type": "quantitative",
        "scale": {"domain": [-1, -0.5, 0, 0.5, 1], "range": DIVERGING, "type": "linear", "interpolate": "rgb"},
        "legend": {
            "title": "change",
            "values": [-1, 0, 1],
            "labelExpr": f"{signs} + format(datum.value * datum.value * {largest!r}, '.2~g')",
        }
        if told and any(told)
        else None,
    }
    hints = {"column": "Raise the curation of", "row": "Effect on", "value": f"By {POINTS} #", "interval": "Interval"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": token("page"), "strokeWidth": 2, "cornerRadius": 3},
            "encoding": {"color": heat, "tooltip": tooltip(**hints, word="Verdict", alone="Alone #")},
        }
    ]
    if count <= 4:
        layers += [
            text("text", -9, 14, enough, 600),
            text("ends", 11, 12, enough),
            text("symbol", 0, 16, f"!({enough})"),
        ]
    elif count <= 12:
        layers += [text("number", 8, 11, enough), text("symbol", -8, 11, enough), text("symbol", 0, 13, f"!({enough})")]
    else:
        layers += [text("symbol", 0, 10, "true")]
    slant = {"labelAngle": -40, "labelAlign": "left", "labelBaseline": "bottom"} if count > 4 else {"labelAngle": 0}
    encoding = {
        "x": category(
            "column",
            across,
            "model whose curation is raised",
            axis={**slant, "orient": "top", "labelLimit": 110, "labelOverlap": False},
        ),
        "y": category("row", down, "alignment of", axis={"labelOverlap": False}),
    }
    alt = f"Heat map of what {POINTS} more of each model’s curation do to every alignment."
    longest = max(map(len, down))
    return [
        Panel("Influence matrix", alt, view(rows, max(low * len(down), 70), layer=layers, encoding=encoding), longest)
    ]


def _cell(audit: words.Audit, e: int, c: int, row: str, column: str, largest: float) -> dict[str, Any]:
    one = entry(audit, e, c)
    value, verdict = STEP * one["matrix"], one["verdict"]
    half = STEP * (one["high"] - one["low"]) / 2
    shade = 0.0 if verdict == "cannot tell" else math.copysign(math.sqrt(min(1.0, abs(value) / largest)), value)
    shown = fixed([value], half, sign=True)[0] if half else words.number(value, 2, sign=True)
    ends = fixed([STEP * one["low"], STEP * one["high"]], half)
    symbol = VERDICTS[verdict].symbol
    return {
        "row": row,
        "column": column,
        "value": float(f"{value:.4g}"),
        "shade": round(shade, 3),
        "interval": "" if not half else f"{ends[0]} to {ends[1]}",
        "ends": verdict if not half else f"{ends[0]} to {ends[1]}",
        "word": verdict,
        "alone": float(f"{STEP * one['isolated']:.4g}"),
        "symbol": symbol,
        "number": shown,
        "text": f"{symbol} {shown}",
    }


def together(audit: words.Audit) -> list[Panel]:
    """Own influence in the ecosystem with its interval, beside what it would be if the other models stood still."""
    names, main, found = called(audit), mains(audit), []
    for c, setting in enumerate(audit["settings"]):
        if setting["model"] in main:
            found.append((names[setting["model"]], entry(audit, main[setting["model"]], c)))
    if not found or len(audit["models"]) < 2:
        return []
    rows = []
    for name, one in found[:LARGE]:
        shared = {"model": name, "word": one["verdict"]}
        rows.append(
            {
                **shared,
                "kind": "together",
                "value": STEP * one["matrix"],
                "low": STEP * one["low"],
                "high": STEP * one["high"],
            }
        )
        rows.append({**shared, "kind": "alone (others stand still)", "value": STEP * one["isolated"]})
    order = [name for name, _ in found[:LARGE]]
    limits = padded([r[k] for r in rows for k in ("value", "low", "high") if k in r], [0.0])
    x = quantity("value", f"change of own alignment by {POINTS} more", scale={"domain": limits, "nice": False})
    y = category("model", order, scale={"paddingInner": 0.3, "paddingOuter": 0.2})
    kinds = {"together": "first", "alone (others stand still)": "real"}
    offset: Spec = {"field": "kind", "type": "nominal", "sort": list(kinds)}
    colour = palette(kinds, legend={"symbolOpacity": 1})
    bars = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.4},
        "encoding": {"y": y, "yOffset": offset, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
        "encoding": {
            "y": y,
            "yOffset": offset,
            "x": x,
            "color": colour,
            "shape": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": list(kinds), "range": ["circle", "diamond"]},
                "title": None,
            },
            "tooltip": tooltip(model="Model", kind="Setting", value=f"By {POINTS} #", word="Verdict together"),
        },
    }
    alt = "Influence of each model’s curation on itself, together and alone: " + "; ".join(
        f"{n} {span(o['matrix'], o['low'], o['high'], STEP)} together, {words.number(STEP * o['isolated'])} alone"
        for n, o in found[:5]
    )
    high = max(70, (40 if len(order) <= 12 else 26) * len(order))
    return [
        Panel("Alone and together", alt, view(rows, high, layer=[rule("x", 0), bars, points]), max(map(len, order)))
    ]


# --- by round -------------------------------------------------------------------------------------------------------


def drawn(audit: words.Audit) -> list[str]:
    """Models that get a curve: those whose alignment is predicted to move most."""
    base, main = audit["trajectory"]["base"], mains(audit)
    moves = {m: abs((base[-1][e] or 0.0) - (base[0][e] or 0.0)) for m, e in main.items()}
    kept = sorted(moves, key=lambda m: -moves[m])[:COLOURED]
    return [m for m in main if m in kept]


def courses(audit: words.Audit) -> list[Panel]:
    """Predicted alignment by round if nothing changes, and what the run showed where it went on."""
    names, main, shown = called(audit), mains(audit), drawn(audit)
    trajectory = audit["trajectory"]
    if len(trajectory["rounds"]) < 2 or not shown:
        return []
    rows, seen = [], []
    for m in shown:
        for t, line in zip(trajectory["rounds"], trajectory["base"], strict=True):
            rows.append({"model": names[m], "round": t, "value": line[main[m]], "kind": "predicted"})
    reach = _reach(audit)
    for found in trajectory["observed"]:
        m = audit["evaluations"][found["evaluation"]]["model"]
        if m not in shown or main[m] != found["evaluation"]:
            continue
        for t, value, error in zip(found["rounds"], found["value"], found["error"], strict=True):
            if t <= trajectory["rounds"][-1]:
                half = reach * (error or 0.0)
                seen.append(
                    {
                        "model": names[m],
                        "round": t,
                        "value": value,
                        "low": value - half,
                        "high": value + half,
                        "kind": "the run",
                    }
                )
    values = [r[k] for r in [*rows, *seen] for k in ("value", "low", "high") if k in r]
    layers = _lines(audit, shown, padded(values), "alignment")
    if seen:
        x, y, colour = layers[0]["encoding"]["x"], layers[0]["encoding"]["y"], layers[0]["encoding"]["color"]
        ends = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
        hints = tooltip(model="Model", kind="Which", round="Round #", value="Alignment #", low="From #", high="to #")
        layers += [
            {"data": {"values": seen}, "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5}, "encoding": ends},
            {
                "data": {"values": seen},
                "mark": {"type": "point", "filled": True, "size": 46, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": hints},
            },
        ]
    told = "; ".join(
        f"{names[m]} from {words.number(trajectory['base'][0][main[m]])} to {words.number(trajectory['base'][-1][main[m]])}"
        for m in shown
    )
    return [
        Panel("Alignment if nothing changes", f"Predicted alignment by round: {told}.", view(rows, 230, layer=layers))
    ]


def unfolding(audit: words.Audit) -> list[Panel]:
    """What more curation of each model does to itself, by round."""
    names, main, shown = called(audit), mains(audit), drawn(audit)
    column = {setting["model"]: c for c, setting in enumerate(audit["settings"])}
    trajectory = audit["trajectory"]
    kept = [m for m in shown if m in column]
    if len(trajectory["influence"]) < 2 or not kept:
        return []
    rows = [
        {"model": names[m], "round": t, "value": STEP * table[main[m]][column[m]], "kind": "predicted"}
        for m in kept
        for t, table in zip(trajectory["rounds"], trajectory["influence"], strict=True)
    ]
    layers = _lines(audit, shown, padded([r["value"] for r in rows], [0.0]), f"change by {POINTS} more", kept)
    ends = "; ".join(
        f"{r['model']} {words.number(r['value'], sign=True)}" for r in rows if r["round"] == trajectory["rounds"][-1]
    )
    alt = f"Effect of {POINTS} more curation of each model on itself, by round; at the end {ends}."
    return [Panel("What more curation does to itself", alt, view(rows, 230, layer=[rule("y", 0), *layers][::-1]))]


def _lines(
    audit: words.Audit, shown: Sequence[str], limits: Sequence[float], title: str, kept: Sequence[str] | None = None
) -> list[Spec]:
    """Curves by round, a colour and a dash a model; the same colours whichever of them are kept."""
    names = called(audit)
    tone = dict(zip(shown, SERIES, strict=False))
    present = {names[m]: tone[m] for m in kept or shown}
    dash = {names[m]: list(DASHES[k % len(DASHES)]) for k, m in enumerate(shown)}
    rounds = audit["trajectory"]["rounds"]
    legend = {"symbolType": "stroke", "symbolOpacity": 1} if len(audit["models"]) > 1 else None
    encoding = {
        "x": over_rounds(rounds[0], rounds[-1]),
        "y": quantity(
            "value", title, scale={"zero": False, "domain": list(limits), "nice": False}, axis={"tickCount": 5}
        ),
        "color": palette(present, field="model", legend=legend),
        "strokeDash": {
            "field": "model",
            "type": "nominal",
            "sort": None,
            "title": None,
            "scale": {"domain": list(present), "range": [dash[name] for name in present]},
            "legend": legend,
        },
        "tooltip": tooltip(model="Model", kind="Which", round="Round #", value=f"{title.capitalize()} #"),
    }
    return [{"mark": {"type": "line", "strokeWidth": 2.2}, "encoding": encoding}]


def _reach(audit: words.Audit) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + audit["influence"]["confidence"] / 2))
