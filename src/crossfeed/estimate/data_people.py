"""Who is behind an influence, as plain values: examples, sources, those who pick; and evaluations that miss the movement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Pick, source_names
from crossfeed.estimate.attribution import Example, source_effects, top_examples
from crossfeed.estimate.audit import NetworkAudit
from crossfeed.estimate.audited import Audited
from crossfeed.estimate.bank import Bank
from crossfeed.estimate.legs import total_weights
from crossfeed.estimate.picks import pick_probabilities
from crossfeed.estimate.system import group_weights

TOP = 5
"""Examples that push an evaluation up most, and as many that push it down most."""
TEXT = 4000
"""Characters of an input or output that are kept."""
NOT_ATTRIBUTED = "Which examples, sources and pickers are behind it: telling takes a gradient of every sample, and this solver keeps none."


def behind(audit: Audited, evaluations: list[int]) -> dict[str, Any]:
    """Examples, sources and pickers; or why there are none."""
    if isinstance(audit, NetworkAudit):
        found = {"examples": examples(audit, evaluations), "sources": sources(audit), "pickers": pickers(audit)}
        return {**found, "not_attributed": None}
    return {"examples": [], "sources": [], "pickers": [], "not_attributed": NOT_ATTRIBUTED}


def examples(audit: NetworkAudit, evaluations: list[int]) -> list[dict[str, Any]]:
    """For each of these evaluations the picked examples, of those that the models give now, that push it up and down most."""
    estimate, out = audit.estimate, []
    first = estimate.legs[0]
    answer = replace(estimate.answers[0], weight=total_weights(estimate.legs, [a.weight for a in estimate.answers]))
    for e in evaluations:
        for found in top_examples(first.bank, answer, e, TOP):
            out.append(_example(audit, first.bank, found))
    return out


def _example(audit: NetworkAudit, bank: Bank, found: Example) -> dict[str, Any]:
    draw = bank.sources[found.source].draw
    group, candidate = divmod(found.sample, draw.candidates)
    table = audit.point.world.prompts
    asked = table.inputs[int(draw.prompts[group])] if len(table) else ""
    return {
        "evaluation": found.evaluation,
        "consumer": draw.consumer,
        "source": draw.name,
        "producer": draw.producer,
        "effect": found.effect,
        "probability": found.probability,
        "input": asked[:TEXT],
        "output": _output(draw.outputs, found.sample),
        "candidate": candidate,
        "rewards": {name: values[group].tolist() for name, values in draw.rewards.items()},
    }


def _output(outputs: Any, number: int) -> Any:
    """An output as JSON: text, or the numbers of a vector; None for pictures."""
    one = outputs[number]
    if isinstance(one, str):
        return one[:TEXT]
    return [float(f"{v:.6g}") for v in one.tolist()] if isinstance(one, Tensor) and one.dim() == 1 else None


def sources(audit: NetworkAudit) -> list[dict[str, Any]]:
    """By source, dJ of every evaluation per unit of weight that moves to it from the rest of its model's mixture."""
    found = zip(audit.estimate.legs, audit.estimate.answers, strict=True)
    effects = sum((source_effects(leg, answer) for leg, answer in found), torch.zeros(()))
    return [
        {
            "consumer": rows.draw.consumer,
            "source": rows.draw.name,
            "producer": rows.draw.producer,
            "weight": rows.draw.weight,
            "effects": effects[s],
        }
        for s, rows in enumerate(audit.bank.sources)
    ]


def pickers(audit: NetworkAudit) -> list[dict[str, Any]]:
    """By curated source and by who picks (in its last stage), the sum of the effects of what they pick.

    An example's effect is split among those who may pick it by their shares of its probability; summed over a source's
    pickers it is 0: those above 0 push an evaluation up compared with the source as a whole.
    """
    out = []
    for s, rows in enumerate(audit.bank.sources):
        model = audit.eco.models[rows.draw.consumer]
        node = model.sources[source_names(model).index(rows.draw.name)]
        if not isinstance(node, Curated) or rows.draw.candidates < 2:
            continue
        people = audit.eco.models[node.producer].reward
        for who, reward, share, rule in _who(node, people):
            effects = share * _picking(audit, s, rule, people)
            out.append(
                {
                    "consumer": rows.draw.consumer,
                    "source": rows.draw.name,
                    "producer": rows.draw.producer,
                    "picker": who,
                    "reward": reward,
                    "share": share,
                    "effects": effects,
                }
            )
    return out


def _picking(audit: NetworkAudit, s: int, rule: Pick, people: str) -> Tensor:
    """(E,) what picks of source ``s`` by a rule do to every evaluation, over the horizon, less what its picks as they are do."""
    total = torch.zeros(())
    for leg, answer in zip(audit.estimate.legs, audit.estimate.answers, strict=True):
        rows = leg.bank.sources[s]
        pull = -answer.system.mixture[s] * (rows.loss.double() @ answer.weight[rows.consumer])
        p = group_weights(rows.draw.clusters, None)
        chances = pick_probabilities(rule, people, rows.draw.rewards).expand(len(p), -1).double()
        change = (chances - rows.draw.probabilities) * p[:, None]
        total = total + change.flatten() @ pull
    return total


def _who(node: Curated, people: str) -> list[tuple[str, str | None, float, Pick]]:
    """Who decides the last stage: name, reward, share, and the rule if they alone did."""
    last = node.stages[-1]
    curator = last.curator or people
    main = 1 - last.noise - last.other_share
    parts: list[tuple[str, str | None, float, dict[str, Any]]] = [
        ("curator", curator, main, {"noise": 0.0, "other_share": 0.0}),
        (
            "other curator",
            last.other_curator,
            last.other_share,
            {"curator": last.other_curator, "noise": 0.0, "other_share": 0.0},
        ),
        ("random picks", None, last.noise, {"noise": 1.0, "other_share": 0.0}),
    ]
    return [(who, reward, share, _last(node, change)) for who, reward, share, change in parts if share > 1e-12]


def _last(node: Pick, change: dict[str, Any]) -> Pick:
    """The rule with its last stage changed."""
    if node.then is None:
        return node.model_copy(update=change)
    return node.model_copy(update={"then": _last(node.then, change)})


def mismatches(data: dict[str, Any], half: Tensor) -> list[dict[str, Any]]:
    """By model with several evaluations and by setting, how blind its main evaluation is to what moves.

    1 − |dJ_main| / max_e |dJ_e|, each in units of the spread of its rewards: 0 where its own evaluation sees the largest
    movement, 1 where it sees none of it. ``sure``: the largest movement's interval leaves out 0.
    """
    out = []
    matrix = data["influence"]["matrix"]
    for model in data["models"]:
        mine = [e for e, found in enumerate(data["evaluations"]) if found["model"] == model["name"]]
        if len(mine) < 2:
            continue
        main = next(e for e in mine if data["evaluations"][e]["main"])
        for c, setting in enumerate(data["settings"]):
            sizes = {e: _spreads(float(matrix[e][c]), data["evaluations"][e]["spread"]) for e in mine}
            top = max(mine, key=lambda e: sizes[e])
            if sizes[top] == 0:
                continue
            out.append(
                {
                    "model": model["name"],
                    "path": setting["path"],
                    "index": 1 - sizes[main] / sizes[top],
                    "main": main,
                    "largest": top,
                    "movement": {"main": sizes[main], "largest": sizes[top]},
                    "sure": abs(float(matrix[top][c])) > float(half[top, c]),
                }
            )
    return out


def _spreads(value: float, spread: float) -> float:
    return abs(value) / spread if spread > 0 else 0.0
