"""Audits of networks made up by hand: as many models as wanted, all verdicts, hostile names and texts."""

from __future__ import annotations

from typing import Any

from report.fake_runs import HOSTILE

VERDICTS = ("helps", "backfires", "dampened", "cannot tell", "no effect")


def fake(
    num: int = 2,
    *,
    space: str = "vectors",
    texts: list[str] | None = None,
    names: list[str] | None = None,
    rounds: int = 6,
) -> dict[str, Any]:
    """An audit of ``num`` models in a ring, as in docs/estimate-format.md."""
    names = names or [f"model {k}" if num > 4 else "pqrs"[k] for k in range(num)]
    texts = texts or ["a short answer", "another answer, somewhat longer " * 20]
    evaluations, models = [], []
    for k, name in enumerate(names):
        before = names[k - 1]
        models.append(_model(name, before))
        for own in (True, False) if num <= 4 else (True,):
            evaluations.append(
                {
                    "model": name,
                    "name": "own" if own else "cross",
                    "reward": f"r{k}",
                    "data": None,
                    "own": own,
                    "main": own,
                    "now": 0.1 * k,
                    "error": 0.01,
                    "there": 0.1 * k + 0.02,
                    "spread": 0.5,
                }
            )
    E, C = len(evaluations), num
    own = [[names[c] == found["model"] for c in range(C)] for found in evaluations]
    verdict = [[_verdict(e + 2 * c, own[e][c]) for c in range(C)] for e in range(E)]
    sign = {"helps": 1, "dampened": 0.4, "backfires": -1, "harms": -0.7, "cannot tell": 0.05, "no effect": 0}
    matrix = [[sign[v] * (0.2 + 0.1 * ((e + c) % 5)) for c, v in enumerate(row)] for e, row in enumerate(verdict)]
    errors = [[0.0 if v == "no effect" else 0.05 for v in row] for row in verdict]
    low, high = (
        [[v + s * 1.96 * r for v, r in zip(*pair, strict=True)] for pair in zip(matrix, errors, strict=True)]
        for s in (-1, 1)
    )
    course = [[found["now"] + 0.03 * t * (-1) ** e for e, found in enumerate(evaluations)] for t in range(rounds + 1)]
    shown = [[1.5, -0.25], [0.1, 0.2]] if space == "vectors" else texts
    examples = [
        {
            "evaluation": e,
            "consumer": names[0],
            "source": "curated",
            "producer": names[-1],
            "effect": 0.01 if k % 2 == 0 else -0.02,
            "probability": 0.7,
            "input": "" if space == "vectors" else texts[k % len(texts)],
            "output": output,
            "candidate": 1,
            "rewards": {texts[0][:40] or "r": [0.1, 0.9]},
        }
        for e, found in enumerate(evaluations)
        if found["main"]
        for k, output in enumerate(shown)
    ]
    change = [0.02 * (-1) ** e for e in range(E)]
    return {
        "format": "crossfeed-estimate",
        "version": 1,
        "crossfeed": "0.1.0",
        "spec_name": "made up" if texts[0] == "a short answer" else texts[0][:60] or "made up",
        "spec_file": "made.yaml",
        "spec_sha256": "0" * 64,
        "description": "",
        "seed": 0,
        "command": "crossfeed audit made.yaml",
        "seconds": {"sampling": 3.0, "gradients": 60.0},
        "space": space,
        "point": {"words": "round 2 of the run in made", "round": 2, "run": "made"},
        "horizon": {"rounds": rounds, "first": 3},
        "route": "score function",
        "solver": "gradient bank",
        "samples": {
            **{"outputs": 1000, "evaluation": 1000, "answers": 4, "generated": 4000, "gradients": 9000},
            **{"clusters": 250, "cluster": "prompt", "bytes": 2**24, "chosen": None},
        },
        "models": models,
        "evaluations": evaluations,
        "settings": [{"path": f"{name}.curation", "model": name, "value": 0.5} for name in names],
        "influence": {
            **{"matrix": matrix, "errors": errors, "low": low, "high": high, "verdict": verdict},
            "asked": [[0.25 * v for v in row] for row in matrix],
            "isolated": [[v if own[e][c] else 0.0 for c, v in enumerate(row)] for e, row in enumerate(matrix)],
            "needed": [[3000 if v == "cannot tell" else 40 for v in row] for row in verdict],
            "confidence": 0.95,
            "unit": "per unit",
        },
        "trajectory": {
            "rounds": list(range(2, rounds + 3)),
            "places": [2, 2 + rounds],
            "base": course,
            "influence": [[[v * t / rounds for v in row] for row in matrix] for t in range(rounds + 1)],
            "observed": [
                {"evaluation": 0, "rounds": [2, 3, 4], "value": [0.0, 0.04, 0.05], "error": [0.01, None, 0.02]}
            ],
        },
        "examples": examples,
        "sources": [
            {"consumer": m["name"], "source": s["name"], "producer": s["producer"], "weight": 0.5, "effects": [0.1] * E}
            for m in models
            for s in m["sources"]
        ],
        "pickers": [
            {
                **{"consumer": names[0], "source": "curated", "producer": names[-1], "picker": who, "reward": reward},
                **{"share": share, "effects": [effect] * E},
            }
            for who, reward, share, effect in (("curator", "r0", 0.8, 0.02), ("random picks", None, 0.2, -0.02))
        ],
        "mismatch": [
            {
                **{
                    "model": names[0],
                    "path": f"{names[0]}.curation",
                    "index": 0.9,
                    "main": 0,
                    "largest": min(1, E - 1),
                },
                **{"movement": {"main": 0.01, "largest": 0.1}, "sure": True},
            }
        ],
        "checks": [
            {"name": "gradients", "result": "passed", "words": "All are finite."},
            {"name": "samples", "result": "warning", "words": f"Few prompts: {texts[0][:50]}."},
            {"name": "scores", "result": "failed", "words": "The mean score is not zero."},
        ],
        "changes": [
            {
                **{"path": f"{names[0]}.curation", "from": 0.5, "to": 0.6, "change": change, "errors": [0.005] * E},
                **{"low": [c - 0.01 for c in change], "high": [c + 0.01 for c in change]},
                **{"verdict": ["rises" if c > 0 else "falls" for c in change], "matrix": matrix, "note": None},
            },
            {
                **dict.fromkeys(("change", "errors", "low", "high", "verdict", "matrix")),
                **{"path": f"{names[0]}.sources.x.candidates", "from": 4.0, "to": 9.0, "note": texts[0][:80] or "no"},
            },
        ],
        "warnings": ["A check failed: do not rely on the numbers before it is mended; see the checks."],
    }


def hostile(space: str = "text") -> dict[str, Any]:
    """Names and texts that try to become markup or to steer a terminal."""
    return fake(3, space=space, texts=list(HOSTILE), names=[HOSTILE[0], HOSTILE[1] or "x", "n" * 300])


def _verdict(k: int, own: bool) -> str:
    found = VERDICTS[k % len(VERDICTS)]
    return found if own or found not in ("backfires", "dampened") else "harms"


def _model(name: str, before: str) -> dict[str, Any]:
    shared = {"weight": 0.5, "groups": 100, "effective": 99.5}
    return {
        **{"name": name, "family": "flow", "reward": "r", "num_params": 700, "coordinates": 700},
        **{"coordinates_are": "parameters", "curation": 0.5, "largest_curvature": 12.5},
        "sources": [
            {
                **{"name": "real", "kind": "real", "producer": None, "data": "web", "curator": None},
                **{"temperature": None, "rule": None, "candidates": 1, **shared},
            },
            {
                **{"name": "curated", "kind": "curated", "producer": before, "data": None, "curator": "r"},
                **{"temperature": 1.0, "rule": "4", "candidates": 4, **shared},
            },
        ],
    }
