"""Charts of what would change: planned changes, and where the answer flips while a setting moves."""

from __future__ import annotations

from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import (
    Panel,
    Spec,
    category,
    padded,
    quantity,
    rule,
    tooltip,
    verdict_colour,
    verdict_label,
    view,
)
from crossfeed.report.theme import token


def changes(audit: words.Audit, most: int = 14) -> list[Panel]:
    """How far each planned change moves alignment, with the values before and after, one panel a change."""
    return [p for change in audit.get("changes") or [] if (p := _change(audit, change, most))]


def _change(audit: words.Audit, change: dict[str, Any], most: int) -> Panel | None:
    names, rows = words.labels(audit), []
    verdicts, first = (change.get(key) or [None] * len(names) for key in ("verdict", "first_order"))
    alone = words.alone(audit, change)
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
                "text": " → ".join(words.apart(before, after)),
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
    scale = {"domain": [low, high + 0.55 * (high - low)], "nice": False}
    y = {"y": category("model", [r["model"] for r in rows])}
    moved = quantity("moved", "change of alignment", scale=scale)
    hints = tooltip(
        model="Model",
        before="Before #",
        after="After #",
        predicted="First-order prediction #",
        alone="If the others stood still #",
        verdict="Verdict",
    )
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": {"band": 0.55}, "cornerRadiusEnd": 2},
            "encoding": {**y, "x": moved, "x2": {"field": "zero"}, "color": verdict_colour(verdicts), "tooltip": hints},
        },
        rule("x", 0),
        {
            "mark": {"type": "tick", "thickness": 2.5, "size": 22, "color": token("ink")},
            "encoding": {**y, "x": quantity("predicted", "change of alignment", scale=scale), "tooltip": hints},
        },
        {
            "mark": {
                "type": "point",
                "shape": "diamond",
                "size": 60,
                "strokeWidth": 2,
                "color": token("ink"),
                "fill": token("page"),
                "opacity": 1,
            },
            "transform": [{"filter": "datum.alone !== null"}],
            "encoding": {**y, "x": quantity("alone", "change of alignment", scale=scale), "tooltip": hints},
        },
        {
            "mark": {
                "type": "text",
                "align": "right",
                "color": token("muted"),
                "x": {"expr": "width - 4"},
                "opacity": {"expr": "width > 250 ? 1 : 0"},
            },
            "encoding": {**y, "text": {"field": "text", "type": "nominal"}},
        },
    ]
    title = f"{words.clean(change['path'], 60)}: {words.number(change['from'])} → {words.number(change['to'])}"
    alt = "".join(c.text for c in words.changed(audit, change))
    return Panel(title, alt, view(rows, max(60, 34 * len(rows)), layer=layers))


def thresholds(audit: words.Audit, most: int = 8) -> list[Panel]:
    """Influence while a setting moves, with the values at which it changes sign, one panel a pair and setting."""
    found = [
        t
        for t in audit.get("thresholds") or []
        if t.get("values") and any(v is not None for v in t.get("influence") or [])
    ]
    found.sort(key=lambda t: not t.get("roots"))
    names = words.namer(audit)
    return [_threshold(t, names) for t in found[:most]]


def _threshold(t: dict[str, Any], names: dict[str, str]) -> Panel:
    setting = words.clean(t["path"], 60)
    rows = [
        {"at": a, "value": v, "side": "helps" if v >= 0 else "harms"}
        for a, v in zip(t["values"], t["influence"], strict=False)
        if v is not None
    ]
    domain = padded([r["value"] for r in rows], [0.0])
    x: Spec = {"title": setting, "scale": {"domain": [t["low"], t["high"]], "nice": False}}
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
        diamond = {
            "type": "point",
            "shape": "diamond",
            "filled": True,
            "size": 110,
            "color": token("ink"),
            "opacity": 1,
        }
        layers.append(
            {
                "data": {"values": marked},
                "mark": diamond,
                "encoding": {**at, "tooltip": tooltip(at=f"{setting} #", label="Here")},
            }
        )
        for one in marked[:3]:
            mark = {"type": "text", "fontWeight": 600, **_beside(one["at"], rows, t["low"], t["high"])}
            layers.append(
                {
                    "data": {"values": [one]},
                    "mark": mark,
                    "encoding": {**at, "text": {"field": "label", "type": "nominal"}},
                }
            )
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
    """Where a label at a root is clear of the curve: above the axis where the curve is below it, or the reverse."""
    before = [r["value"] for r in rows if r["at"] < root]
    falling = bool(before) and before[-1] > 0
    place = (root - low) / ((high - low) or 1.0)
    right = (falling and place < 0.7) or (not falling and place < 0.3)
    above = right == falling
    return {"align": "left" if right else "right", "dx": 9 if right else -9, "dy": -12 if above else 13}
