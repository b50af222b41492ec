"""Charts of a run of networks: curves over the rounds with intervals, what was picked, generations from real data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import Panel, Spec, padded, palette, quantity, tooltip, view
from crossfeed.report.run_data import Facts, Picked, Point
from crossfeed.report.run_words import called, ordered, quantile, where
from crossfeed.report.theme import DASHES, SERIES, token

COLOURED = len(SERIES)
"""Models with a colour of their own: those whose alignment moved most. The others are grey."""
DEEPEST = 5
"""Generations from here on are drawn as one."""
TITLES = {
    "diversity": ("Diversity of outputs", "diversity"),
    "distance_to_data": ("Distance to real data", "distance"),
    "delta": ("Size of a round’s step, Δ", "Δ, relative step"),
    "gradient_norm": ("Gradient norm in training", "norm"),
    "words": ("Words per answer", "words"),
    "empty": ("Share of answers without a word", "share"),
    "copied": ("Share of answers that repeat their input", "share"),
    "saturation": ("Saturation of the pictures", "saturation"),
    "brightness": ("Brightness of the pictures", "brightness"),
}
FROM_ZERO = {"diversity", "words", "empty", "copied"}
"""Metrics that cannot be negative and whose distance to zero matters: their axes begin there."""
KNOWN = {
    "alignment",
    "loss",
    "diversity",
    "distance_to_data",
    "delta",
    "moved",
    "gradient_norm",
    "curation",
    "distinct_2",
}


@dataclass(frozen=True)
class Line:
    """One curve: whose, what it is called in tooltips, its points, and which dash tells it from the model's others."""

    model: str
    label: str
    points: Sequence[Point]
    dash: str = ""
    num: int = 0


def colours(facts: Facts) -> dict[str, str]:
    """From a model's name to its colour token, the same in every chart; models without one are not in it."""
    kept = set(ordered(facts)[:COLOURED])
    return dict(zip([n for n in facts.names if n in kept], SERIES, strict=False))


def curves(
    facts: Facts,
    lines: Sequence[Line],
    title: str,
    axis: str,
    *,
    log: bool = False,
    limits: Sequence[float] | None = None,
) -> list[Panel]:
    """Curves over the rounds, with a band of 95 % where a standard error is known; ``limits`` of the axis."""
    names, tone = called(facts), colours(facts)
    lines = [
        Line(line.model, line.label, usable, line.dash, line.num)
        for line in lines
        if (usable := [p for p in line.points if not log or p.value > 0])
    ]
    if not lines:
        return []
    strong = [line for line in lines if line.model in tone]
    quiet = [line for line in lines if line.model not in tone]
    dashes = list(dict.fromkeys(line.dash for line in strong))
    few = len({p.round for line in lines for p in line.points}) < 4
    rows = [_row(line, p, names) for line in strong for p in line.points]
    bands, alone = _bands(lines, names)
    hints = {"model": "Model", "round": "Round #", "value": f"{axis} #"}
    if any(line.label for line in lines):
        hints = {"model": "Model", "label": "Measured", "round": "Round #", "value": f"{axis} #"}
    if any(r["low"] != r["high"] for r in rows):
        hints |= {"low": "95 % from #", "high": "to #"}
    x = over_rounds(0, max(1, facts.last))
    values = [v for line in lines for p in line.points for v in _ends(line, p)]
    scale: Spec = (
        {"type": "log"} if log else {"zero": False, "domain": limits or padded(values), "nice": False, "clamp": True}
    )
    y = quantity("value", axis, scale=scale, axis={"values": _decades(values)} if log else {"tickCount": 5})
    present = {names[line.model]: tone[line.model] for line in strong}
    colour = palette(
        present, field="model", legend={"symbolType": "stroke", "symbolOpacity": 1} if len(facts.names) > 1 else None
    )
    series: Spec = {"field": "series", "type": "nominal"}
    layers: list[Spec] = []
    if quiet:
        grey = [_row(line, p, names) for line in quiet for p in line.points]
        layers.append(
            {
                "data": {"values": grey},
                "mark": {"type": "line", "color": token("line"), "strokeWidth": 1.3, "point": few},
                "encoding": {"x": x, "y": y, "detail": series, "tooltip": tooltip(**hints)},
            }
        )
    if few:
        bands, alone = [], bands + alone
    area, bar = {"type": "area", "opacity": 0.18}, {"type": "rule", "strokeWidth": 2, "opacity": 0.55}
    for found, mark in ((bands, area), (alone, bar)):
        if not log and any(r["low"] != r["high"] for r in found):
            ends: Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
            ends["detail"] = {"field": "band", "type": "nominal"}
            layers.append({"data": {"values": found}, "mark": mark, "encoding": ends})
    main: Spec = {"x": x, "y": y, "color": colour, "detail": series, "tooltip": tooltip(**hints)}
    told_by, kinds = ("dash", dashes) if len(dashes) > 1 else ("model", list(present))
    main["strokeDash"] = {
        "field": told_by,
        "type": "nominal",
        "sort": None,
        "title": None,
        "scale": {"domain": kinds, "range": [list(DASHES[i % len(DASHES)]) for i in range(len(kinds))]},
    }
    if told_by == "dash":
        main["strokeDash"]["legend"] = {
            "symbolType": "stroke",
            "symbolStrokeColor": token("ink"),
            "symbolOpacity": 1,
            "orient": "bottom",
        }
    if len(facts.names) == 1 and told_by == "model":
        main["strokeDash"]["legend"] = None
    layers.append({"mark": {"type": "line", "strokeWidth": 2.2}, "encoding": main})
    if few:
        dots = {key: main[key] for key in ("x", "y", "color", "detail", "tooltip")}
        layers.append({"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}, "encoding": dots})
    told = "; ".join(
        f"{names[line.model]}{' ' + line.label if line.label else ''} from {words.number(line.points[0].value)} "
        f"to {words.number(line.points[-1].value)}"
        for line in (strong or lines)[:8]
    )
    return [Panel(title, f"{title} by round: {told}.", view(rows, 230, layer=layers))]


def _ends(line: Line, point: Point) -> tuple[float, float]:
    half = quantile(line.num or 10_000) * (point.error or 0.0)
    return point.value - half, point.value + half


def _row(line: Line, point: Point, names: Mapping[str, str]) -> dict[str, Any]:
    low, high = _ends(line, point)
    return {
        "model": names[line.model],
        "series": f"{line.model}/{line.dash}",
        "dash": line.dash,
        "label": line.label,
        "round": point.round,
        "value": _short(point.value),
        "low": _short(low),
        "high": _short(high),
    }


def _bands(lines: Sequence[Line], names: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Points whose standard error is known: those that stand beside another such point, and those that stand alone."""
    joined: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    for line in lines:
        run: list[dict[str, Any]] = []
        for k, point in enumerate([*line.points, Point(-1, 0.0, None)]):
            if point.error is None:
                (joined if len(run) > 1 else alone).extend(run)
                run = []
            else:
                row = _row(line, point, names)
                run.append({**row, "band": run[0]["band"] if run else f"{row['series']}/{k}"})
    return joined, alone


def over_rounds(first: int, last: int, margin: float = 0.0) -> Spec:
    """The axis of rounds, marked at whole numbers."""
    steps = (m * 10**e for e in range(12) for m in (1, 2, 5))
    step = next(s for s in steps if (last - first) // s <= 10)
    marked = [t for t in range(first, last + 1) if t % step == 0]
    return quantity(
        "round",
        "round",
        scale={"nice": False, "domain": [first - margin, last + margin]},
        axis={"grid": False, "values": marked, "tickCount": len(marked), "format": "d"},
    )


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _decades(values: Sequence[float]) -> list[float]:
    logs = [math.log10(v) for v in values if v > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    if high - low <= 2:
        return [float(f"{m}e{p}") for p in range(low, high + 1) for m in (1, 2, 5)]
    step = -(-(high - low) // 6)
    return [float(f"1e{power}") for power in range(low, high + 1, step)]


# --- what is drawn --------------------------------------------------------------------------------------------------


def alignment(facts: Facts) -> list[Panel]:
    """Alignment by model: on its own inputs, on other models' inputs, and by other people's rewards."""
    names = called(facts)
    groups: dict[str, list[Line]] = {}
    for e in facts.evaluations:
        points = facts.points(e.model, "alignment", e.name)
        title = "Alignment on other inputs than its own" if e.cross else "Alignment on its own inputs"
        if e.other_people:
            title = "Reward of other people" + (", on other inputs than its own" if e.cross else "")
        name = words.clean(e.name, 40)
        mine = groups.setdefault(title, [])
        dash = name if any(line.model == e.model for line in mine) else ""
        mine.append(Line(e.model, f"{name}: on {where(e, names)}", points, dash, e.num))
    order = sorted(groups, key=lambda t: ("other" in t, "people" in t))
    own = [v for t in order if "people" not in t for line in groups[t] for p in line.points for v in _ends(line, p)]
    limits = padded(own) if own else None
    drawn = []
    for t in order:
        drawn += curves(facts, groups[t], t, "alignment", limits=None if "people" in t else limits)
    return drawn


def metric(facts: Facts, name: str, *, log: bool = False) -> list[Panel]:
    """One metric by model, and by domain where it has several."""
    title, axis = TITLES.get(name, (words.clean(name.replace("_", " "), 60).capitalize(), words.clean(name, 30)))
    lines, found = [], list(facts.of(name))
    if name == "gradient_norm":
        found = [(model, domain, _rounds(points)) for model, domain, points in found]
    domains = list(dict.fromkeys(domain for _, domain, _ in found))
    for model, domain, points in found:
        label = words.clean(domain or "", 40)
        lines.append(Line(model, label, points, label if len(domains) > 1 else ""))
    limits = None
    if name in FROM_ZERO:
        top = max((v for line in lines for p in line.points for v in _ends(line, p)), default=0.0)
        limits = [0.0, 1.06 * top if top > 0 else 1.0]
    return curves(facts, lines, title, axis.replace("_", " "), log=log, limits=limits)


def loss(facts: Facts) -> list[Panel]:
    """Training loss in the last steps of each round, and in its first steps dashed."""
    ends = {"last": "last steps", "first": "first steps"}
    lines = [
        Line(model, ends.get(domain or "", ""), _rounds(points), ends.get(domain or "", ""))
        for model, domain, points in sorted(facts.of("loss"), key=lambda f: f[1] != "last")
    ]
    return curves(facts, lines, "Training loss in a round", "loss")


def _rounds(points: Sequence[Point]) -> list[Point]:
    """Without round 0, which is training of another kind, or none."""
    return [p for p in points if p.round > 0]


def extras(facts: Facts) -> list[Panel]:
    """Every other metric of the run."""
    found = dict.fromkeys(m for _, m, _ in facts.series if m not in KNOWN and not m.startswith("generation"))
    return [panel for name in list(found)[:12] for panel in metric(facts, name)]


def picks(facts: Facts, most: int = 6) -> list[Panel]:
    """By curated source: mean reward of what was offered, picked, and of the best candidate, by round."""
    by: dict[tuple[str, str], list[Picked]] = {}
    for item in facts.curation:
        by.setdefault((item.model, item.source), []).append(item)
    names, out = called(facts), []
    kept = sorted(by, key=lambda k: -max(abs(i.gain[0]) for i in by[k]))[:most]
    kinds = {"best candidate": "sixth", "picked": "curated", "offered": "first"}
    titles = picks_of(facts)
    for model, source in [k for k in by if k in kept]:
        rows = []
        for item in by[model, source]:
            half = quantile(item.rows) * (item.gain[1] or 0.0)
            shown = {"best candidate": item.best, "picked": item.picked, "offered": item.offered}
            for kind, value in shown.items():
                reach = half if kind == "picked" else 0.0
                rows.append(
                    {
                        "round": item.round,
                        "kind": kind,
                        "value": _short(value),
                        "low": _short(value - reach),
                        "high": _short(value + reach),
                    }
                )
        out.append(_picks_panel(f"For {names[model]}: picks among {titles[model, source]}", rows, kinds))
    return out


def picks_of(facts: Facts) -> dict[tuple[str, str], str]:
    """By model and curated source: among whose outputs people picked, in words; with the source's name if need be."""
    names = called(facts)
    makers: dict[tuple[str, str], str | None] = {(p.model, p.source): p.producer for p in facts.curation}
    out = {}
    for (model, source), maker in makers.items():
        out[model, source] = "its own outputs" if maker == model else f"{words.called(names, maker)}’s outputs"
        if sum(m == model and other == maker for (m, _), other in makers.items()) > 1:
            out[model, source] += f" ({words.clean(source, 40)})"
    return out


def _picks_panel(title: str, rows: list[dict[str, Any]], kinds: dict[str, str]) -> Panel:
    span = {r["round"] for r in rows}
    x = over_rounds(min(span), max(span), 1.0 if len(span) == 1 else 0.0)
    scale = {"zero": False, "domain": padded([v for r in rows for v in (r["low"], r["high"])]), "nice": False}
    y = quantity("value", "mean reward", scale=scale, axis={"tickCount": 5})
    colour = palette(kinds, legend={"symbolType": "stroke", "symbolOpacity": 1})
    few = len(span) < 4
    picked = [r for r in rows if r["kind"] == "picked"]
    ends: Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    mark: Spec = {"type": "rule", "strokeWidth": 2} if few else {"type": "area", "opacity": 0.2}
    dash = {
        "field": "kind",
        "type": "nominal",
        "sort": None,
        "title": None,
        "scale": {"domain": list(kinds), "range": [list(DASHES[2]), list(DASHES[0]), list(DASHES[1])]},
    }
    hints = tooltip(kind="Reward of", round="Round #", value="Mean #")
    line: Spec = {"x": x, "y": y, "color": colour, "strokeDash": dash, "tooltip": hints}
    points: Any = {"filled": True, "size": 45} if few else False
    layers: list[Spec] = [
        {"data": {"values": picked}, "mark": mark, "encoding": ends},
        {"mark": {"type": "line", "strokeWidth": 2, "point": points}, "encoding": line},
    ]
    at_end = [f"{r['kind']} {words.number(r['value'])}" for r in rows if r["round"] == max(span)]
    return Panel(
        title, f"{title}: mean reward in round {max(span)}: {', '.join(at_end)}.", view(rows, 200, layer=layers)
    )


def descent(facts: Facts, most: int = 12) -> list[Panel]:
    """By model: share of each round's training set by generations from real data, stacked."""
    names, out = called(facts), []
    kept = [n for n in facts.names if facts.descent.get(n)][:most]
    deepest = max((d for n in kept for shares in facts.descent[n].values() for d in shares), default=0)
    labels = [_generation(d) for d in range(min(deepest, DEEPEST) + 1)]
    kinds = {label: f"generation-{d}" for d, label in enumerate(labels)}
    for name in kept:
        span = sorted(facts.descent[name])
        reach = 0.42 if span[-1] - span[0] < 30 else 0.5
        rows: list[dict[str, Any]] = []
        for t in span:
            summed = [0.0] * len(labels)
            for d, share in facts.descent[name][t].items():
                summed[min(d, DEEPEST)] += share
            ends = [0.0, *itertools.accumulate(summed)]
            rows += [
                {
                    "round": t,
                    "kind": label,
                    "share": _short(share),
                    "left": t - reach,
                    "right": t + reach,
                    "low": _short(ends[d]),
                    "high": _short(ends[d + 1]),
                }
                for d, (label, share) in enumerate(zip(labels, summed, strict=True))
            ]
        y = quantity("low", "share of training set", scale={"domain": [0, 1]}, axis={"format": ".0%", "tickCount": 5})
        y["axis"].pop("labelExpr")
        encoding: Spec = {
            "x": {**over_rounds(span[0], span[-1], 0.5), "field": "left"},
            "x2": {"field": "right"},
            "y": y,
            "y2": {"field": "high"},
            "color": palette(kinds, "generations from real data"),
            "tooltip": tooltip(kind="Generations", round="Round #", share="Share #"),
        }
        real = facts.descent[name][span[-1]].get(0, 0.0)
        alt = f"{names[name]}: in round {span[-1]}, {100 * real:.0f} % of the training set is real data."
        out.append(Panel(names[name], alt, view(rows, 190, mark="rect", encoding=encoding)))
    return out


def _generation(d: int) -> str:
    return "0 (real)" if d == 0 else f"{d} or more" if d == DEEPEST else str(d)
