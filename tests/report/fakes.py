"""Audits that look real, of any size, without computing anything: the report's only input."""

from __future__ import annotations

import json
import random
from typing import Any

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "</script><script>window.hacked=3</script>",
    "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold]",
    "a\u2028b\u202ec {{style}} ${x}",
    "datum.value'); window.hacked=4; ('",
]
FAMILIES = ["categorical", "gaussian_mean", "loglinear"]


def _verdict(total: float, base: float) -> str:
    if abs(total) < 1e-3:
        return "no effect"
    return "backfires" if total < 0 else "dampened" if total < base else "helps"


def names_of(count: int) -> list[str]:
    if count <= 3:
        return ["p", "q", "r"][:count]
    if count <= 12:
        known = (
            "summariser paraphraser coder tutor critic translator draughtsman novelist archivist planner reviewer clerk"
        )
        return known.split()[:count]
    return [f"model-{k:04d}" for k in range(count)]


def _edges(names: list[str], rng: random.Random) -> list[dict[str, Any]]:
    edges = []
    for k, name in enumerate(names):
        others = rng.sample([n for n in names if n != name], min(len(names) - 1, 1 if len(names) <= 3 else 2))
        uncurated = len(names) > 3 and k % 9 == 8
        flows: list[tuple[str | None, str]] = [(None, "real"), (name, "raw" if uncurated else "curated")]
        flows += [(o, "raw") for o in others] + ([(others[0], "curated")] if others and not uncurated else [])
        cuts = [rng.uniform(0.3, 1) for _ in flows]
        for (producer, kind), cut in zip(flows, cuts, strict=True):
            edges.append(
                {
                    "consumer": name,
                    "producer": producer,
                    "name": kind if producer is None else f"{kind}_{producer}",
                    "kind": kind,
                    "weight": cut / sum(cuts),
                    "curator": f"{producer}'s people" if kind == "curated" else None,
                    "candidates": rng.choice(["2", "4", "6", "∞"]) if kind == "curated" else None,
                    "temperature": 1.0 if kind == "curated" else None,
                    "data": "photographs" if kind == "real" else None,
                }
            )
    return edges


def fake(count: int = 2, seed: int = 0) -> dict[str, Any]:
    """An audit of ``count`` models with every part filled."""
    rng = random.Random(seed + 7 * count)
    names = names_of(count)
    edges = _edges(names, rng)
    has_curation = [any(e["consumer"] == n and e["kind"] == "curated" for e in edges) for n in names]
    isolated = [rng.uniform(0.1, 0.9) if c else None for c in has_curation]
    matrix: list[list[float | None]] = [[None] * count for _ in names]
    direct: list[list[float | None]] = [[None] * count for _ in names]
    verdict: list[list[str | None]] = [[None] * count for _ in names]
    for i in range(count):
        if not has_curation[i]:
            continue
        for k in range(count):
            base = isolated[i] if k == i else rng.gauss(0, 0.12) * (1 if rng.random() < 12 / count else 0.05)
            value = base * rng.choice([1.15, 0.6, 0.8, -0.3]) if k == i else base * rng.uniform(0.5, 1.4)
            matrix[k][i], direct[k][i], verdict[k][i] = value, base, _verdict(value, base)
    if count == 2:
        matrix = [[0.412, -0.087], [0.143, -0.0612]]
        direct = [[0.613, -0.11], [0.102, 0.2271]]
        isolated = [0.613, 0.2271]
        verdict = [["dampened", "backfires"], ["helps", "backfires"]]
    level = [rng.uniform(0.1, 0.9) for _ in names]
    pairs = sorted(
        ((k, i) for k in range(count) for i in range(count) if matrix[k][i] is not None),
        key=lambda p: -abs(matrix[p[0]][p[1]] or 0),
    )[: 60 if count > 30 else 144]
    rounds = list(range(41))
    curated = [i for i in range(count) if has_curation[i]]

    def along(k: int, t: int) -> float:
        return level[k] - 0.5 * (0.82**t) * (1 if k % 3 else -0.6) + 0.02 * (0.5**t) * (-1) ** t

    def change(i: int, to: float) -> dict[str, Any]:
        first = [0.1 * (matrix[k][i] or 0.0) for k in range(count)]
        after = [level[k] + first[k] * 0.93 for k in range(count)]
        return {
            "path": f"{names[i]}.curation",
            "from": 0.4,
            "to": to,
            "before": level,
            "after": after,
            "first_order": first,
            "verdict": [verdict[k][i] or "no effect" for k in range(count)],
            "isolated": [0.1 * (isolated[i] or 0) if k == i else None for k in range(count)],
            "result": "converged",
        }

    def threshold(i: int, k: int, root: float | None) -> dict[str, Any]:
        grid = [0.05 + 0.9 * s / 60 for s in range(61)]
        curve = [
            0.4 * ((root or 1.3) - g) + 0.1 * (g - 0.3) ** 2 - 0.1 * ((root or 0) - 0.3) ** 2 * bool(root) for g in grid
        ]
        return {
            "path": f"{names[i]}.cross_share",
            "low": 0.05,
            "high": 0.95,
            "affected": names[k],
            "intervened": names[i],
            "current": 0.4,
            "roots": [] if root is None else [root],
            "values": grid,
            "influence": curve,
            "note": "",
        }

    def cut(k: int, i: int) -> list[dict[str, Any]]:
        total = matrix[k][i] or 0.0
        near = [e for e in edges if e["producer"] is not None and names[i] in (e["consumer"], e["producer"])][:6]
        return [
            {
                "consumer": e["consumer"],
                "producer": e["producer"],
                "name": e["name"],
                "affected": names[k],
                "intervened": names[i],
                "share": total * rng.uniform(-0.3, 0.6),
                "without": total + rng.gauss(0, 0.2),
                "with": total,
            }
            for e in near
        ]

    def walk(k: int, i: int) -> dict[str, Any]:
        total, j = matrix[k][i] or 0.0, names[(i + 1) % count]
        paths = [[names[i], names[k]], [names[i], names[i], names[k]], [names[i], j, names[k]]]
        paths = [[names[i]], [names[i], j, names[i]], [names[i], names[i]]] if k == i else paths
        seen = [list(p) for p in dict.fromkeys(map(tuple, paths))]
        values = [total * f for f in (1.4, -0.5, 0.15)][: len(seen)]
        return {
            "affected": names[k],
            "intervened": names[i],
            "total": total,
            "rest": total - sum(values),
            "walks": [{"path": p, "value": v} for p, v in zip(seen, values, strict=True)],
        }

    ordered = ["simultaneous", "sequential", "random"]
    return {
        "format": "crossfeed-audit",
        "version": 1,
        "crossfeed": "0.1.0",
        "spec_name": f"warm and cool photographs, {count} models",
        "spec_file": f"examples/photographs-{count}.yaml",
        "spec_sha256": "9f2c1a7b" * 8,
        "description": "Image models that are retrained on real photographs, on their own picked outputs and on "
        "each other’s. "
        "The people behind each model like other colours.",
        "seed": 7,
        "command": f"crossfeed audit examples/photographs-{count}.yaml",
        "seconds": 1.84,
        "space": "1,934 photographs as outcomes",
        "models": [
            {
                "name": n,
                "family": FAMILIES[k % 3],
                "num_params": 1933,
                "reward": f"likes-{n}",
                "curation": sum(e["weight"] for e in edges if e["consumer"] == n and e["kind"] == "curated"),
                "ridge": 0.0,
                "alignment": [{"name": "own people", "reward": f"likes-{n}", "value": level[k]}],
                "entropy": 5 + rng.random(),
                "spread": rng.random(),
                "distance_to_data": rng.random(),
            }
            for k, n in enumerate(names)
        ],
        "edges": edges,
        "stable": {
            "result": "converged",
            "residual": 3.1e-13,
            "steps": 41,
            "method": "Anderson",
            "others": [],
            "starts": 5,
        },
        "stability": {
            "local": [
                {"order": o, "radius": r, "stable": r < 1, "rounds_to_halve": 3.6 if r < 1 else None}
                for o, r in zip(ordered, (0.824, 0.711, 0.769), strict=True)
            ],
            "global": {
                "available": True,
                "radius": 1.31,
                "contracts": False,
                "reason": "the worst case over all parameters exceeds 1",
                "constants": [{"model": n, "gamma": 1.0, "beta": 1.0} for n in names[:12]],
            },
            "observed_rate": 0.826,
        },
        "influence": {
            "matrix": matrix,
            "isolated": isolated,
            "direct": direct,
            "verdict": verdict,
            "unit": "change of alignment per unit of curation ratio",
        },
        "direction": [
            {
                "model": names[i],
                "rho": rng.uniform(0.2, 0.95),
                "paper_bound": rng.uniform(0.8, 0.97) if k % 4 else None,
                "sharp_bound": rng.uniform(0.5, 0.8),
                "turning_angle_deg": rng.uniform(5, 50),
                "sign_guaranteed": rng.random() < 0.5,
                "flip_angle_deg": rng.uniform(4, 60),
            }
            for k, i in enumerate(curated)
        ],
        "changes": [change(i, 0.5) for i in curated[:2]],
        "thresholds": [threshold(i, i, 0.62 if n == 0 else None) for n, i in enumerate(curated[:2])],
        "edge_attribution": [row for k, i in (pairs if count <= 30 else pairs[:12]) for row in cut(k, i)],
        "walks": [walk(k, i) for k, i in pairs],
        "contributions": [
            {
                "model": names[i],
                "basis": "eigen",
                "items": [
                    {"label": f"direction {b + 1}", "raw": rng.gauss(0.05, 0.05), "distorted": rng.gauss(0.03, 0.07)}
                    for b in range(8)
                ],
            }
            for i in curated[:12]
        ],
        "finite_samples": {
            "available": True,
            "reason": "",
            "n": 1000,
            "counts": "multinomial",
            "confidence": 0.95,
            "models": [{"name": n, "mean_shift": rng.gauss(0, 0.01), "std": rng.uniform(0.005, 0.05)} for n in names],
            "smallest_n": [
                {"affected": names[k], "intervened": names[i], "n": rng.choice([None, 80, 412, 12840]), "note": ""}
                for k, i in pairs
            ],
            "protocol": "two loops that differ by 0.1 in the curation ratio, 20 rounds averaged after the loop "
            "has settled",
        },
        "trajectory": {
            "rounds": rounds,
            "alignment": [[along(k, t) for t in rounds] for k in range(count)],
            "delta": [[(0.4 + 0.05 * (k % 7)) * 0.82**t for t in rounds] for k in range(count)],
            "entropy": [[6 - 0.6 * (1 - 0.85**t) * (1 + 0.1 * (k % 5)) for t in rounds] for k in range(count)],
        },
        "gallery": None,
        "assumptions": [
            "Retraining finds the exact minimum of the training loss each round.",
            "Influence is a derivative: it speaks of small changes around the present curation.",
        ],
        "warnings": ["The global certificate does not hold; stability is certain near the stable point only."]
        if count > 1
        else [],
    }


def refused(count: int = 2) -> dict[str, Any]:
    """An audit whose stable point is not stable: no influence, and as little else as the format allows."""
    audit = fake(count)
    audit.update(
        influence=None,
        influence_refused="the loop is not stable: a round multiplies a small disturbance by 1.08",
        direction=[],
        changes=[],
        thresholds=[],
        edge_attribution=[],
        walks=[],
        contributions=[],
        gallery=None,
        assumptions=[],
        warnings=[],
        description="",
        spec_file=None,
    )
    audit["stable"]["result"] = "oscillating"
    audit["stability"] = {
        "local": [{"order": "simultaneous", "radius": 1.08, "stable": False, "rounds_to_halve": None}],
        "global": {
            "available": False,
            "radius": None,
            "contracts": None,
            "reason": "no Lipschitz constant is known",
            "constants": None,
        },
        "observed_rate": None,
    }
    audit["finite_samples"] = {"available": False, "reason": "no stable point", "models": [], "smallest_n": []}
    audit["trajectory"]["entropy"] = None
    for model in audit["models"]:
        model.update(entropy=None, spread=None, distance_to_data=None)
    return audit


def hostile() -> dict[str, Any]:
    """An audit of six models whose names, description and every other free text try to break out."""
    plain = fake(6)
    text = json.dumps(plain)
    for name, evil in zip(names_of(6), HOSTILE, strict=True):
        text = text.replace(f'"{name}"', json.dumps(evil)).replace(f"{name}.", json.dumps(evil)[1:-1] + ".")
    audit: dict[str, Any] = json.loads(text)
    audit.update(
        spec_name=HOSTILE[0],
        description=" ".join(HOSTILE),
        space=HOSTILE[1],
        command=f"crossfeed audit {HOSTILE[2]}",
        spec_file=HOSTILE[1],
        assumptions=list(HOSTILE),
        warnings=list(HOSTILE),
        crossfeed=HOSTILE[0],
        gallery=[
            {
                "model": HOSTILE[1],
                "title": HOSTILE[2],
                "images": ["javascript:window.hacked=5", 'data:image/png;base64,AA" onerror="window.hacked=6'],
            }
        ],
    )
    audit["finite_samples"]["protocol"] = HOSTILE[1]
    audit["stability"]["global"]["reason"] = HOSTILE[0]
    for edge in audit["edges"]:
        edge["data"] = HOSTILE[2] if edge["data"] else None
        edge["curator"] = HOSTILE[1] if edge["curator"] else None
    return audit


def with_gallery(audit: dict[str, Any]) -> dict[str, Any]:
    """Add a gallery of small flat images."""
    import base64
    import io

    from PIL import Image

    images = []
    for k in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (20 * k, 90, 255 - 20 * k)).save(buffer, "JPEG")
        images.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    shown = [
        {"model": m["name"], "title": f"most likely outcomes of {m['name']}", "images": images}
        for m in audit["models"][:2]
    ]
    return {**audit, "gallery": shown}
