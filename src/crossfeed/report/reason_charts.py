"""Charts of the reasons: direction of alignment, walks, edges, contributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import Panel, Spec, category, padded, palette, quantity, rule, tooltip, view
from crossfeed.report.theme import token

BOUNDS = {
    "safe by the paper’s bound": "fourth",
    "safe by the sharp bound": "third",
    "safe given the actual turn": "first",
}


def direction(audit: words.Audit, most: int = 16) -> list[Panel]:
    """ρ of each model on −1 … 1, with the zones in which the sign of its self-influence is certain, by three bounds."""
    names = words.namer(audit)
    found = [d for d in audit.get("direction") or [] if d.get("rho") is not None]
    kept = sorted(found, key=lambda d: abs(d["rho"]))[:most]
    found = [d for d in found if d in kept]
    if not found:
        return []
    zones, points = [], []
    for d in found:
        name = words.called(names, d["model"])
        angle = d.get("turning_angle_deg")
        actual = None if angle is None else math.sin(math.radians(min(angle, 90)))
        bounds = (d.get("paper_bound"), d.get("sharp_bound"), actual)
        for kind, bound in zip(BOUNDS, bounds, strict=True):
            if bound is not None and bound < 1:
                zones += [
                    {"model": name, "kind": kind, "lo": bound, "hi": 1, "bound": bound},
                    {"model": name, "kind": kind, "lo": -1, "hi": -bound, "bound": bound},
                ]
        sure = "certain" if d.get("sign_guaranteed") else "not guaranteed"
        points.append({"model": name, "rho": d["rho"], "angle": angle, "flip": d.get("flip_angle_deg"), "sure": sure})
    order = [p["model"] for p in points]
    scale = {"domain": [-1, 1], "nice": False}
    shared = {"y": category("model", order, scale={"paddingInner": 0.35, "paddingOuter": 0.2})}
    layers: list[Spec] = [
        {
            "data": {"values": zones},
            "mark": {"type": "bar", "opacity": 0.55, "cornerRadius": 2},
            "encoding": {
                **shared,
                "yOffset": {"field": "kind", "type": "nominal", "sort": list(BOUNDS)},
                "x": quantity("lo", "ρ: direction of alignment", scale=scale),
                "x2": {"field": "hi"},
                "color": palette(BOUNDS, legend={"columns": 1}),
                "tooltip": tooltip(model="Model", kind="Zone", bound="Sign is certain beyond ± #"),
            },
        },
        rule("x", 0),
        {
            "mark": {
                "type": "point",
                "filled": True,
                "size": 130,
                "opacity": 1,
                "color": token("ink"),
                "stroke": token("page"),
            },
            "encoding": {
                **shared,
                "x": quantity("rho", "ρ: direction of alignment", scale=scale),
                "tooltip": tooltip(
                    model="Model",
                    rho="ρ #",
                    angle="The ecosystem turns the push by (degrees) #",
                    flip="Flips after a turn of (degrees) #",
                    sure="Sign",
                ),
            },
        },
    ]
    alt = "Direction of alignment: " + "; ".join(f"{p['model']} {words.number(p['rho'])}" for p in points[:8])
    return [Panel("Direction of alignment", alt, view(points, max(84, 52 * len(order)), layer=layers))]


def _ranked(
    items: Sequence[Mapping[str, Any]], most: int, names: Mapping[str, str], values: Mapping[tuple[str, str], float]
) -> list[Any]:
    """Pairs (affected, intervened) with their items: pairs of negative influence first, then the strongest."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault((item["affected"], item["intervened"]), []).append(item)

    def rank(pair: tuple[str, str]) -> tuple[bool, float]:
        value = values.get(pair, 0.0)
        return value >= 0, -abs(value)

    return [
        (f"{words.called(names, pair[1])}’s curation → {words.called(names, pair[0])}", groups[pair])
        for pair in sorted(groups, key=rank)[:most]
    ]


def _influences(audit: words.Audit) -> dict[tuple[str, str], float]:
    """Influence by the names of (affected, intervened), for pairs that the walks and edges speak of."""
    if not audit.get("influence"):
        return {}
    position = {model["name"]: k for k, model in enumerate(audit["models"])}
    pairs = {
        (item["affected"], item["intervened"]) for key in ("walks", "edge_attribution") for item in audit.get(key) or []
    }
    values = {}
    for affected, intervened in pairs:
        if affected in position and intervened in position:
            value = audit["influence"]["matrix"][position[affected]][position[intervened]]
            if value is not None:
                values[affected, intervened] = value
    return values


VISIBLE = 0.004
"""Paths that carry less than this part of the strongest join the others: their bars could not be seen."""


def route(path: Sequence[str], names: Mapping[str, str]) -> str:
    """A walk in words."""
    shown = " → ".join(words.called(names, n) for n in path)
    return shown if len(path) > 1 else f"{shown}, directly"


def walks(audit: words.Audit, most: int = 6, show: int = 10) -> list[Panel]:
    """How much of an influence travels along each path through the data-flow graph, one panel a pair."""
    names, panels = words.namer(audit), []
    for title, group in _ranked(audit.get("walks") or [], most, names, _influences(audit)):
        item = group[0]
        parts = sorted((w for w in item["walks"] if w.get("value") is not None), key=lambda w: -abs(w["value"]))
        rows = [
            {"path": words.clean(route(w["path"], names), 90), "value": w["value"], "zero": 0, "kind": "one path"}
            for w in parts[:show]
            if abs(w["value"]) > VISIBLE * abs(parts[0]["value"])
        ]
        rest = (item.get("rest") or 0.0) + sum(w["value"] for w in parts[len(rows) :])
        if rest:
            rows.append({"path": "all other paths", "value": rest, "zero": 0, "kind": "one path"})
        if item.get("total") is not None:
            rows.append({"path": "total", "value": item["total"], "zero": 0, "kind": "total"})
        if rows:
            alt = f"{title}: " + "; ".join(f"{r['path']} {words.number(r['value'], sign=True)}" for r in rows)
            longest = max(len(r["path"]) for r in rows)
            panels.append(Panel(title, alt, _signed_bars(rows, "path", "influence along the path"), longest))
    return panels


def _signed_bars(rows: list[dict[str, Any]], field: str, title: str) -> Spec:
    order = list(dict.fromkeys(r[field] for r in rows))
    colour = {
        "condition": [
            {"test": "datum.kind === 'total'", "value": token("ink")},
            {"test": "datum.value < 0", "value": token("down-strong")},
        ],
        "value": token("up-strong"),
    }
    bars = {
        "mark": {"type": "bar", "cornerRadiusEnd": 2, "height": {"band": 0.62}},
        "encoding": {
            "y": category(field, order),
            "x": quantity("value", title, scale={"domain": padded([r["value"] for r in rows], [0.0])}),
            "x2": {"field": "zero"},
            "color": colour,
            "tooltip": tooltip(**{field: "Path", "value": "Influence #"}),
        },
    }
    return view(rows, max(70, 30 * len(order)), layer=[bars, rule("x", 0)])


def edges(audit: words.Audit, most: int = 6, show: int = 12) -> list[Panel]:
    """Influence with each data flow in place and with it cut, one panel a pair."""
    names, panels = words.namer(audit), []
    for title, group in _ranked(audit.get("edge_attribution") or [], most, names, _influences(audit)):
        rows = []
        for item in sorted(group, key=lambda e: -abs((e.get("with") or 0) - (e.get("without") or 0)))[:show]:
            if item.get("with") is not None and item.get("without") is not None:
                flow = f"{words.called(names, item['producer'])} → {words.called(names, item['consumer'])}"
                name = f"{flow} ({words.clean(item['name'], 30)})"
                flips = item["with"] * item["without"] < 0
                sign = (
                    "turns helpful without it"
                    if flips and item["with"] < 0
                    else "turns harmful without it"
                    if flips
                    else "keeps its sign"
                )
                rows.append(
                    {
                        "edge": name,
                        "with": item["with"],
                        "without": item["without"],
                        "share": item.get("share"),
                        "kind": sign,
                    }
                )
        if not rows:
            continue
        order = list(dict.fromkeys(r["edge"] for r in rows))
        colours = {
            "keeps its sign": "sixth",
            "turns helpful without it": "helps",
            "turns harmful without it": "backfires",
        }
        colours = {k: v for k, v in colours.items() if any(r["kind"] == k for r in rows)}
        scale = {"domain": padded([r[k] for r in rows for k in ("with", "without")], [0.0])}
        hints = tooltip(
            edge="Data flow",
            **{"with": "Influence as it is #", "without": "Influence without this flow #"},
            share="First-order share #",
        )
        colour = palette(colours, legend={"columns": 1} if len(colours) > 1 else None)
        layers: list[Spec] = [
            rule("x", 0),
            {
                "mark": {"type": "rule", "strokeWidth": 2.5},
                "encoding": {"x": quantity("with", "influence", scale=scale), "x2": {"field": "without"}},
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 16},
                "encoding": {"x": quantity("with", "influence", scale=scale)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {"x": quantity("without", "influence", scale=scale)},
            },
        ]
        for layer in layers[1:]:
            layer["encoding"] |= {"y": category("edge", order, axis={"grid": True}), "color": colour, "tooltip": hints}
        alt = f"{title}: " + "; ".join(f"without {r['edge']} {words.number(r['without'], sign=True)}" for r in rows)
        panels.append(Panel(title, alt, view(rows, max(70, 32 * len(order)), layer=layers), max(map(len, order))))
    return panels


def contributions(audit: words.Audit, most: int = 6, show: int = 12) -> list[Panel]:
    """What each direction adds to self-influence: as people push it, and after the ecosystem has turned it."""
    names, panels = words.namer(audit), []
    kinds = {"as pushed by the picks": "real", "after the ecosystem": "first"}
    for item in (audit.get("contributions") or [])[:most]:
        parts = [p for p in item["items"] if p.get("raw") is not None and p.get("distorted") is not None]
        kept = sorted(parts, key=lambda p: -max(abs(p["raw"]), abs(p["distorted"])))[:show]
        parts = [p for p in parts if p in kept]
        if not parts:
            continue
        order = [words.clean(p["label"], 40) for p in parts]
        rows = [
            {"label": label, "kind": kind, "value": p[key], "zero": 0}
            for label, p in zip(order, parts, strict=True)
            for kind, key in zip(kinds, ("raw", "distorted"), strict=True)
        ]
        encoding = {
            "y": category("label", order, scale={"paddingInner": 0.3}),
            "yOffset": {"field": "kind", "type": "nominal", "sort": list(kinds)},
            "x": quantity(
                "value", "contribution to self-influence", scale={"domain": padded([r["value"] for r in rows], [0.0])}
            ),
            "x2": {"field": "zero"},
            "color": palette(kinds),
            "tooltip": tooltip(label="Direction", kind="Contribution", value="Value #"),
        }
        title = words.called(names, item["model"])
        layers = [{"mark": {"type": "bar", "cornerRadiusEnd": 2}, "encoding": encoding}, rule("x", 0)]
        alt = f"Contributions to the self-influence of {title} by direction, as pushed and after the ecosystem."
        panels.append(Panel(title, alt, view(rows, max(80, 34 * len(order)), layer=layers)))
    return panels
