"""The data-flow graph as SVG: who is trained on whose outputs, with what weight and of which kind.

Models stand on a ring, real data as squares outside it. More than :data:`DRAWN` models: the most strongly linked
part is drawn, the others as one box in the middle, and :func:`left_out` says so.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from crossfeed.report import words
from crossfeed.report.geometry import Arrow, Box, Point, arrow, between, loop
from crossfeed.report.theme import FONT

DRAWN = 16
KINDS = {
    "real": "real data",
    "raw": "outputs as they come",
    "curated": "outputs picked by people",
    "picks": "picks from a file",
}
DASH = {"real": "", "raw": "5 4", "curated": "", "picks": ""}
OTHERS = object()
BOLD = 'font-weight="600"'


@dataclass(frozen=True)
class _Flow:
    """An edge as drawn; a producer of None is real data."""

    consumer: Any
    producer: Any
    kind: str
    weight: float
    title: str
    label: str
    data: str = ""


def chosen(audit: words.Audit) -> list[str]:
    """Models that are drawn: all, or a part grown from the most used one by adding the most strongly linked."""
    names = [m["name"] for m in audit["models"]]
    if len(names) <= DRAWN:
        return names
    weight: dict[str, dict[str, float]] = {name: {} for name in names}
    sent = dict.fromkeys(names, 0.0)
    for edge in audit["edges"]:
        a, b = edge["consumer"], edge["producer"]
        if b in weight and a in weight and a != b:
            sent[b] += edge["weight"]
            weight[a][b] = weight[a].get(b, 0.0) + edge["weight"]
            weight[b][a] = weight[b].get(a, 0.0) + edge["weight"]
    part = [max(names, key=lambda n: sent[n])]
    pull = dict(weight[part[0]])
    while len(part) < DRAWN:
        free = [n for n in names if n not in part]
        part.append(max(free, key=lambda n: (pull.get(n, 0.0), sent[n])))
        for name, value in weight[part[-1]].items():
            pull[name] = pull.get(name, 0.0) + value
    return [n for n in names if n in set(part)]


def left_out(audit: words.Audit) -> str | None:
    """What the drawing leaves out, in a sentence; None when it shows everything."""
    total = len(audit["models"])
    part = set(chosen(audit))
    if len(part) == total:
        return None
    inside = sum(e["consumer"] in part and (e["producer"] is None or e["producer"] in part) for e in audit["edges"])
    return (
        f"Drawn are {len(part)} of {total:,} models, a strongly linked part, and {inside:,} of "
        f"{len(audit['edges']):,} data flows. "
        f"The box in the middle stands for the other {total - len(part):,} models: its arrows sum what the "
        f"drawn models receive "
        "from them. What the others receive is not drawn."
    )


def _flows(audit: words.Audit, part: set[str]) -> list[_Flow]:
    names, flows = words.namer(audit), []
    summed: dict[tuple[str, str], float] = {}
    for edge in audit["edges"]:
        consumer, producer, kind, weight = edge["consumer"], edge["producer"], edge["kind"], edge["weight"]
        if consumer not in part:
            continue
        if producer is not None and producer not in part:
            summed[consumer, kind] = summed.get((consumer, kind), 0.0) + weight
            continue
        flows.append(
            _Flow(
                consumer,
                producer,
                kind,
                weight,
                describe(edge, names),
                words.number(weight, 2),
                words.clean(edge.get("data") or "", 18),
            )
        )
    for (consumer, kind), weight in summed.items():
        title = (
            f"{words.number(weight)} of {names[consumer]}’s training data: {KINDS.get(kind, kind)} of models not drawn"
        )
        flows.append(_Flow(consumer, OTHERS, kind, weight, title, words.number(weight, 2)))
    return flows


def describe(edge: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A data flow in words."""
    consumer, share = words.called(names, edge["consumer"]), words.number(edge["weight"])
    if edge["producer"] is None:
        data = f" ({words.clean(edge['data'], 60)})" if edge.get("data") else ""
        if edge["kind"] == "picks":
            return f"{share} of {consumer}’s training data: picks that people made before{data}"
        return f"{share} of {consumer}’s training data is real data{data}"
    producer = "its own" if edge["producer"] == edge["consumer"] else f"{words.called(names, edge['producer'])}’s"
    if edge["kind"] != "curated":
        return f"{share} of {consumer}’s training data: {producer} outputs as they come"
    of = f", one of {words.clean(edge['candidates'], 20)}" if edge.get("candidates") else ""
    by = f" by {words.clean(edge['curator'], 40)}" if edge.get("curator") else ""
    heat = f", temperature {words.number(edge['temperature'])}" if edge.get("temperature") is not None else ""
    return f"{share} of {consumer}’s training data: {producer} outputs, picked{by}{of}{heat}"


def _text_width(text: str, size: float = 14) -> float:
    return sum(size if unicodedata.east_asian_width(ch) in "WF" else 0.58 * size for ch in text)


def _boxes(
    part: list[str], names: Mapping[str, str], others: int
) -> tuple[dict[Any, Box], dict[Any, str], dict[Any, float]]:
    """Boxes, their captions, and the direction that points outwards from each."""
    longest = 24 if len(part) <= 3 else 13
    captions: dict[Any, str] = {name: words.clean(names[name], longest) for name in part}
    halves = {name: max(24.0, _text_width(captions[name]) / 2 + 14) for name in part}
    widest, count = max(halves.values()), len(part)
    boxes: dict[Any, Box] = {}
    outward: dict[Any, float] = {}
    if count <= 2:
        for position, name in enumerate(part):
            boxes[name] = Box((position - (count - 1) / 2) * (2 * widest + 170), 0, halves[name], 19)
            outward[name] = -math.pi / 2
    else:
        across = max(130.0 if count <= 4 else 190.0, (2 * widest + 24) / (2 * math.sin(math.pi / count)))
        along = max(110.0 if count <= 4 else 150.0, 0.74 * across)
        for position, name in enumerate(part):
            turn = 2 * math.pi * position / count - math.pi / 2
            boxes[name] = Box(across * math.cos(turn), along * math.sin(turn), halves[name], 17)
            outward[name] = math.atan2(math.sin(turn) * along, math.cos(turn) * across)
    if others:
        captions[OTHERS] = f"{others:,} others"
        boxes[OTHERS] = Box(0, 0, _text_width(captions[OTHERS]) / 2 + 16, 19)
    return boxes, captions, outward


def _draw(
    flows: list[_Flow], boxes: Mapping[Any, Box], outward: Mapping[Any, float]
) -> tuple[list[tuple[_Flow, Arrow]], list[tuple[_Flow, Box]]]:
    """Arrows of all flows, and the squares of real data."""
    arrows, squares = [], []
    slots: dict[tuple[Any, Any], int] = {}
    few = len(boxes) <= 3
    bows: dict[frozenset[Any], int] = {}
    for flow in sorted(flows, key=lambda f: -f.weight):
        slot = slots.get((flow.consumer, flow.producer), 0)
        slots[flow.consumer, flow.producer] = slot + 1
        box, width = boxes[flow.consumer], _stroke(flow.weight)
        out = outward[flow.consumer]
        if flow.producer is None:
            pair = len(outward) <= 2
            angle = math.pi / 2 + 0.7 * slot if pair else out + 0.42 + 0.4 * slot
            reach = box.reach(angle) + (62 if pair else 40)
            square = Box(box.x + reach * math.cos(angle), box.y + reach * math.sin(angle), 9, 9)
            squares.append((flow, square))
            arrows.append((flow, arrow(between((square.x, square.y), (box.x, box.y), 0), square, box, width)))
        elif flow.producer == flow.consumer:
            angle = out if len(outward) <= 2 else out - 0.42
            height, spread = (52 + 46 * slot, 0.52 + 0.1 * slot) if few else (34 + 30 * slot, 0.52)
            arrows.append((flow, arrow(loop(box, angle, height, spread), box, box, width)))
        else:
            source = boxes[flow.producer]
            if few:
                bend = 30.0 + 34 * slot
            else:
                both = frozenset((flow.producer, flow.consumer))
                bows[both] = bows.get(both, -1) + 1
                bend = (14 + 20 * bows[both]) * _inward((source.x, source.y), (box.x, box.y))
            arrows.append((flow, arrow(between((source.x, source.y), (box.x, box.y), bend), source, box, width)))
    return arrows, squares


def _inward(start: Point, end: Point) -> int:
    """The side of a chord of the ring on which the centre lies: 1 for its right, −1 for its left."""
    turn = start[0] * end[1] - start[1] * end[0]
    return 1 if turn >= 0 else -1


def _stroke(weight: float) -> float:
    return 1.2 + 8.0 * min(1.0, max(0.0, weight))


def _pair(point: Point) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"


def svg(audit: words.Audit, colours: Mapping[str, str] | None = None) -> str:
    """Draw the graph.

    Args:
        audit: The contents of audit.json.
        colours: A palette of :mod:`crossfeed.report.theme` for a file of its own; None uses the page's variables.

    Returns:
        An SVG element.
    """
    part = chosen(audit)
    names = words.namer(audit)
    flows = _flows(audit, set(part))
    others = len(audit["models"]) - len(part)
    boxes, captions, outward = _boxes(part, names, others)
    arrows, squares = _draw(flows, boxes, outward)

    def colour(name: str) -> str:
        return f"var(--{name})" if colours is None else colours[name]

    halo = f'stroke="{colour("page")}" stroke-width="8" paint-order="stroke" stroke-linejoin="round"'
    body: list[str] = []
    for flow, drawn in arrows:
        tone, width = colour(flow.kind if flow.kind in KINDS else "real"), _stroke(flow.weight)
        dash = f' stroke-dasharray="{DASH[flow.kind]}"' if DASH.get(flow.kind) else ""
        opacity = "" if len(part) <= 4 else ' opacity="0.82"'
        body.append(
            f"<g{opacity}><title>{escape(flow.title)}</title>"
            f'<polyline points="{" ".join(map(_pair, drawn.line))}" fill="none" stroke="{tone}" '
            f'stroke-width="{width:.1f}"{dash}/>'
            f'<polygon points="{" ".join(map(_pair, drawn.head))}" fill="{tone}"/></g>'
        )
    for flow, square in squares:
        body.append(
            f'<g><title>{escape(flow.title)}</title><rect x="{square.x - 9:.1f}" y="{square.y - 9:.1f}" '
            f'width="18" height="18" rx="2" '
            f'fill="{colour("page")}" stroke="{colour("real")}" stroke-width="2"/><path d="M{square.x - 5:.1f} '
            f'{square.y - 3:.1f}h10m-10 3.2h10m-10 3.2h10" '
            f'stroke="{colour("real")}" stroke-width="1.4"/></g>'
        )
        if len(part) <= 6 and flow.data:
            up = square.y < boxes[flow.consumer].y - 4
            caption = f"{flow.data} {flow.label}" if len(part) <= 3 else flow.data
            body.append(_label(square.x, square.y + (-16 if up else 24), caption, 12, colour("muted"), halo))
    for key, box in boxes.items():
        title = escape(captions[key] if key is OTHERS else names[key])
        dash = ' stroke-dasharray="4 3"' if key is OTHERS else ""
        body.append(
            f'<g><title>{title}</title><rect x="{box.x - box.half_width:.1f}" y="{box.y - box.half_height:.1f}" '
            f'width="{2 * box.half_width:.1f}" '
            f'height="{2 * box.half_height:.1f}" rx="{box.half_height:.1f}" fill="{colour("panel")}" '
            f'stroke="{colour("ink")}" stroke-width="1.4"{dash}/>'
            f"{_label(box.x, box.y + 5, captions[key], 14, colour('ink'), BOLD)}</g>"
        )
    if len(part) <= 3:
        body += [
            _label(a.label[0], a.label[1] + 4, f.label, 12, colour("ink"), halo)
            for f, a in arrows
            if not (f.producer is None and f.data)
        ]
    points = [p for _, a in arrows for p in (*a.line, *a.head)]
    corners = [(b.x + s * b.half_width, b.y + s * b.half_height) for b in boxes.values() for s in (-1, 1)]
    corners += [
        (s.x + d * (_text_width(f.data + " 0.00", 12) / 2 if len(part) <= 6 else 12), s.y + d * 28)
        for f, s in squares
        for d in (-1, 1)
    ]
    xs, ys = zip(*(points + corners), strict=True)
    left, top, right, bottom = min(xs) - 16, min(ys) - 16, max(xs) + 16, max(ys) + 16
    key = [k for k in KINDS if any(f.kind == k for f in flows)]
    wide = max((_text_width(KINDS[k], 12.5) for k in key), default=0) + 46
    centre = (left + right) / 2
    left, right = min(left, centre - wide / 2 - 8), max(right, centre + wide / 2 + 8)
    for position, kind in enumerate(key):
        y, x = bottom + 12 + 21 * position, centre - wide / 2
        dash = f' stroke-dasharray="{DASH[kind]}"' if DASH[kind] else ""
        body.append(f'<path d="M{x:.1f} {y:.1f}h30" stroke="{colour(kind)}" stroke-width="4"{dash}/>')
        body.append(
            f'<text x="{x + 40:.1f}" y="{y + 4:.1f}" font-size="12.5" fill="{colour("ink")}">{KINDS[kind]}</text>'
        )
    bottom += 21 * len(key) + 8
    width, height = right - left, bottom - top
    ground = (
        ""
        if colours is None
        else f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colours["page"]}"/>'
    )
    grow = max(1.0, min(1.4, 560 / width))
    size = f'class="graph{" wide" if width > 520 else ""}" width="{grow * width:.0f}" height="{grow * height:.0f}"'
    shown = words.plural(len(part), "model")
    about = f"Data-flow graph of {shown} and {words.plural(len(flows), 'data flow')}; the table below lists them."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.1f} {top:.1f} {width:.1f} {height:.1f}" '
        f'{size} role="img" '
        f'aria-label="{escape(about)}" font-family="{escape(FONT)}">{ground}{"".join(body)}</svg>'
    )


def _label(x: float, y: float, text: str, size: float, tone: str, more: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="middle" fill="{tone}" '
        f"{more}>{escape(text)}</text>"
    )
