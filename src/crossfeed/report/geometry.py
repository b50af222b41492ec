"""Curves between boxes: where an edge leaves one box, where its arrow enters the next. Pure geometry for the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]
STEPS = 120


@dataclass(frozen=True)
class Box:
    """A box around a centre, with half its width and half its height."""

    x: float
    y: float
    half_width: float
    half_height: float

    def holds(self, point: Point, gap: float) -> bool:
        """Whether a point lies inside, or within ``gap`` of, the box with rounded ends."""
        core = max(0.0, self.half_width - self.half_height)
        across = max(0.0, abs(point[0] - self.x) - core)
        return math.hypot(across, point[1] - self.y) <= self.half_height + gap

    def reach(self, angle: float) -> float:
        """Distance from the centre to the border in a direction."""
        step = 1.0
        while self.holds((self.x + step * math.cos(angle), self.y + step * math.sin(angle)), 0):
            step += 1.0
        return step


@dataclass(frozen=True)
class Curve:
    """A cubic Bézier curve."""

    a: Point
    b: Point
    c: Point
    d: Point

    def at(self, t: float) -> Point:
        """Its point at t in [0, 1]."""
        s = 1 - t
        weights = (s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t)
        points = (self.a, self.b, self.c, self.d)
        x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
        return x, y

    def part(self, start: float, end: float) -> list[Point]:
        """Points along the curve from ``start`` to ``end``."""
        count = max(2, round(24 * (end - start)) + 1)
        return [self.at(start + (end - start) * k / (count - 1)) for k in range(count)]


@dataclass(frozen=True)
class Arrow:
    """A drawn edge: its line, its head (tip, left, right) and where a label belongs."""

    line: list[Point]
    head: tuple[Point, Point, Point]
    label: Point


def between(start: Point, end: Point, bend: float) -> Curve:
    """A curve that bows to its right by about ``bend``."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy) or 1.0
    off = (-dy / length * bend * 4 / 3, dx / length * bend * 4 / 3)
    near = (start[0] + dx / 3 + off[0], start[1] + dy / 3 + off[1])
    far = (start[0] + 2 * dx / 3 + off[0], start[1] + 2 * dy / 3 + off[1])
    return Curve(start, near, far, end)


def loop(box: Box, angle: float, height: float, spread: float = 0.52) -> Curve:
    """A curve that leaves the box ``spread`` beside ``angle``, rises ``height`` above its border and returns."""
    length = (box.reach(angle) + height) / (0.75 * math.cos(spread))
    near, far = (
        (box.x + length * math.cos(angle + s * spread), box.y + length * math.sin(angle + s * spread)) for s in (-1, 1)
    )
    return Curve((box.x, box.y), near, far, (box.x, box.y))


def arrow(curve: Curve, source: Box, target: Box, width: float, gap: float = 4.0) -> Arrow:
    """Cut a curve at the two boxes and put a head on its end."""
    head = 7.0 + 1.1 * width
    grid = [k / STEPS for k in range(STEPS + 1)]
    start = next((t for t in grid if not source.holds(curve.at(t), gap)), 0.0)
    tip = next((t for t in reversed(grid) if not target.holds(curve.at(t), gap)), 1.0)
    base = next((t for t in reversed(grid) if t < tip and math.dist(curve.at(t), curve.at(tip)) >= head), start)
    base = max(base, start)
    (x0, y0), (x1, y1) = curve.at(base), curve.at(tip)
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    side = (3.5 + 0.85 * width) / length
    left, right = ((x0 - s * side * (y1 - y0), y0 + s * side * (x1 - x0)) for s in (1, -1))
    return Arrow(curve.part(start, base), ((x1, y1), left, right), curve.at((start + base) / 2))
