"""Charts of the loop itself: stability, finite samples, and how it moves from round to round."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from crossfeed.report import words
from crossfeed.report.marks import MANY, Panel, Spec, category, padded, palette, quantity, rule, tooltip, view
from crossfeed.report.theme import DASHES, SERIES, token

LINES = 6


def stability(audit: words.Audit) -> list[Panel]:
    """Growth factor of a disturbance per round, by update order, with the global certificate and the observed rate."""
    found = audit.get("stability") or {}
    rows: list[dict[str, Any]] = [
        {"what": words.clean(item["order"], 50), "value": item["radius"], "kind": "local: near the stable point"}
        for item in found.get("local") or []
        if item.get("radius") is not None
    ]
    certificate = found.get("global") or {}
    if certificate.get("available") and certificate.get("radius") is not None:
        rows.append({"what": "from any start", "value": certificate["radius"], "kind": "global: worst case"})
    if found.get("observed_rate") is not None:
        rows.append({"what": "observed in the run", "value": found["observed_rate"], "kind": "observed"})
    if not rows:
        return []
    for position, row in enumerate(rows):
        row["zero"] = 0
        row["state"] = "settles" if row["value"] < 1 else "does not settle"
        row["what"] = (
            row["what"]
            if [r["what"] for r in rows].index(row["what"]) == position
            else f"{row['what']} #{position + 1}"
        )
    colours = {"local: near the stable point": "first", "global: worst case": "fourth", "observed": "sixth"}
    colours = {k: v for k, v in colours.items() if any(r["kind"] == k for r in rows)}
    order = [r["what"] for r in rows]
    limit = [0.0, max(1.12, 1.08 * max(r["value"] for r in rows))]
    bars = {
        "mark": {"type": "bar", "cornerRadiusEnd": 2, "height": {"band": 0.58}},
        "encoding": {
            "y": category("what", order),
            "x": quantity("value", "growth of a disturbance per round", scale={"domain": limit, "nice": False}),
            "x2": {"field": "zero"},
            "color": palette(colours),
            "tooltip": tooltip(what="Case", kind="Kind", value="Factor per round #", state="Below 1 it settles"),
        },
    }
    alt = "Growth of a disturbance per round: " + "; ".join(f"{r['what']} {words.number(r['value'])}" for r in rows[:8])
    return [
        Panel("Growth per round", alt, view(rows, max(70, 32 * len(rows)), layer=[bars, rule("x", 1, colour="ink")]))
    ]


def finite_samples(audit: words.Audit, most: int = 16) -> list[Panel]:
    """Mean and spread of alignment from round to round with n samples a round, beside J at the stable point."""
    found = audit.get("finite_samples") or {}
    if not found.get("available"):
        return []
    names = words.namer(audit)
    exact = {m["name"]: (m.get("alignment") or [{}])[0].get("value") for m in audit["models"]}
    rows = [
        {
            "model": words.called(names, m["name"]),
            "exact": exact[m["name"]],
            "mean": exact[m["name"]] + m["mean_shift"],
            "std": m["std"],
            "lo": exact[m["name"]] + m["mean_shift"] - m["std"],
            "hi": exact[m["name"]] + m["mean_shift"] + m["std"],
        }
        for m in found.get("models") or []
        if exact.get(m["name"]) is not None and m.get("mean_shift") is not None and m.get("std") is not None
    ]
    if not rows:
        return []
    kept = sorted(rows, key=lambda r: -r["std"])[:most]
    rows = [r for r in rows if r in kept]
    scale = {"domain": padded([r[k] for r in rows for k in ("lo", "hi", "exact")]), "zero": False}
    hints = tooltip(
        model="Model", exact="Infinite samples #", mean="Mean with n samples #", std="Round-to-round deviation #"
    )
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": 9, "cornerRadius": 4, "color": token("up")},
            "encoding": {"x": quantity("lo", "alignment", scale=scale), "x2": {"field": "hi"}, "tooltip": hints},
        },
        {
            "mark": {"type": "tick", "thickness": 3, "size": 20, "color": token("up-strong")},
            "encoding": {"x": quantity("mean", "alignment", scale=scale), "tooltip": hints},
        },
        {
            "mark": {
                "type": "point",
                "shape": "diamond",
                "filled": True,
                "size": 70,
                "opacity": 1,
                "color": token("ink"),
            },
            "encoding": {"x": quantity("exact", "alignment", scale=scale), "tooltip": hints},
        },
    ]
    encoding = {"y": category("model", [r["model"] for r in rows], axis={"grid": True})}
    alt = "Alignment with finite samples: " + "; ".join(
        f"{r['model']} {words.number(r['mean'])} ± {words.number(r['std'])}" for r in rows[:8]
    )
    return [
        Panel("Spread from round to round", alt, view(rows, max(70, 34 * len(rows)), layer=layers, encoding=encoding))
    ]


def alignment(audit: words.Audit) -> list[Panel]:
    """Alignment of each model over the rounds."""
    return _over_rounds(audit, "alignment", "Alignment by round", "alignment", log=False)


def movement(audit: words.Audit) -> list[Panel]:
    """Δ_t, the relative step of each model's parameters, over the rounds (logarithmic)."""
    return _over_rounds(audit, "delta", "Size of a round’s step, Δ", "Δ, relative step", log=True)


def entropy(audit: words.Audit) -> list[Panel]:
    """Entropy of each model's outputs over the rounds."""
    return _over_rounds(audit, "entropy", "Diversity of outputs by round", "entropy (nats)", log=False)


def _over_rounds(audit: words.Audit, key: str, title: str, axis: str, log: bool) -> list[Panel]:
    trajectory = audit.get("trajectory") or {}
    series, rounds = trajectory.get(key), trajectory.get("rounds") or []
    if not series or not rounds:
        return []
    names = words.labels(audit)

    def usable(value: float | None) -> bool:
        return value is not None and not (log and value <= 0)

    lines = {k: [(t, v) for t, v in zip(rounds, one or [], strict=False) if usable(v)] for k, one in enumerate(series)}
    lines = {k: line for k, line in lines.items() if line}
    if not lines:
        return []
    named = sorted(sorted(lines, key=lambda k: -abs(lines[k][-1][1] - lines[k][0][1]))[:LINES])
    y_scale: Spec = {"type": "log"} if log else {"zero": False}
    y = quantity("value", axis, scale=y_scale, axis={"values": _decades(lines.values())} if log else {"tickCount": 5})
    x = quantity(
        "round",
        "round",
        scale={"nice": False, "domain": [rounds[0], rounds[-1] or 1]},
        axis={"grid": False, "tickMinStep": 1},
    )
    layers: list[Spec] = []
    others = [k for k in lines if k not in named]
    if len(lines) > MANY:
        columns: dict[float, list[float]] = {}
        for line in lines.values():
            for t, v in line:
                columns.setdefault(t, []).append(v)
        band = [_quantiles(t, sorted(columns[t])) for t in sorted(columns)]
        ends: Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        ends["tooltip"] = tooltip(
            round="Round #", low="10 % of models lie below #", middle="Median #", high="10 % lie above #"
        )
        layers.append(
            {
                "data": {"values": band},
                "mark": {"type": "area", "opacity": 0.25, "color": token("sixth")},
                "encoding": ends,
            }
        )
        middle: Spec = {"x": x, "y": {**y, "field": "middle"}}
        layers.append(
            {
                "data": {"values": band},
                "mark": {"type": "line", "color": token("sixth"), "strokeWidth": 1.5},
                "encoding": middle,
            }
        )
    elif others:
        grey = [{"round": t, "value": v, "model": names[k]} for k in others for t, v in lines[k]]
        quiet = {
            "x": x,
            "y": y,
            "detail": {"field": "model", "type": "nominal"},
            "tooltip": tooltip(model="Model", round="Round #", value=f"{axis} #"),
        }
        layers.append(
            {
                "data": {"values": grey},
                "mark": {"type": "line", "color": token("line"), "strokeWidth": 1.3},
                "encoding": quiet,
            }
        )
    rows = [{"round": t, "value": float(f"{v:.5g}"), "model": names[k]} for k in named for t, v in lines[k]]
    domain = [names[k] for k in named]
    strong = {
        "x": x,
        "y": y,
        "color": palette(
            dict(zip(domain, SERIES, strict=False)), field="model", legend={"columns": 3, "symbolType": "stroke"}
        ),
        "strokeDash": {
            "field": "model",
            "type": "nominal",
            "scale": {"domain": domain, "range": list(DASHES[: len(domain)])},
            "sort": None,
            "title": None,
        },
        "tooltip": tooltip(model="Model", round="Round #", value=f"{axis} #"),
    }
    layers.append({"mark": {"type": "line", "strokeWidth": 2.2}, "encoding": strong})
    alt = f"{title}: " + "; ".join(
        f"{names[k]} from {words.number(lines[k][0][1])} to {words.number(lines[k][-1][1])}" for k in named
    )
    return [Panel(title, alt, view(rows, 240, layer=layers))]


def _quantiles(t: float, values: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return float(f"{values[round(share * (len(values) - 1))]:.4g}") if values else 0.0

    return {"round": t, "low": at(0.1), "middle": at(0.5), "high": at(0.9)}


def _decades(lines: Iterable[list[tuple[float, float]]]) -> list[float]:
    """Powers of ten within the values, at most about six."""
    logs = [math.log10(v) for line in lines for _, v in line]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    step = max(1, -(-(high - low) // 6))
    return [float(f"1e{power}") for power in range(low, high + 1, step)]
