"""Everything that an audit of networks found, as one plain dictionary: what audit.json holds; see docs/estimate-format.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

import crossfeed
from crossfeed.describe.schema import Curated, Ecosystem, Evaluation, Real, Source, candidates_label, source_names
from crossfeed.describe.settings import get
from crossfeed.estimate.audited import Audited, Groups, route_words
from crossfeed.estimate.checks import worst
from crossfeed.estimate.data_people import behind, mismatches
from crossfeed.record.spec_copy import digest

FORMAT = "crossfeed-estimate"
UNIT = "change of alignment per unit of curation ratio, to first order, after the horizon"


def data_of(
    audit: Audited,
    command: str = "",
    spec_file: str | None = None,
    changes: Sequence[dict[str, Any]] = (),
    chosen: str | None = None,
) -> dict[str, Any]:
    """The audit as plain values that JSON can hold.

    Args:
        audit: Of :func:`crossfeed.estimate.audit.audit_networks`.
        command: How to reproduce it.
        spec_file: Name of the spec's file.
        changes: Answered what-ifs, of :func:`crossfeed.estimate.changes.answer_changes`.
        chosen: How the number of samples was chosen, in words; None: it was given, or the default.
    """
    eco = audit.eco
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "crossfeed": crossfeed.__version__,
        "spec_name": eco.name,
        "spec_file": spec_file,
        "spec_sha256": digest(eco),
        "description": eco.description,
        "seed": audit.seed,
        "command": command,
        "seconds": {stage: round(value, 3) for stage, value in audit.seconds.items()},
        "space": eco.space.kind,
        "point": {
            "words": audit.point.words,
            "round": audit.point.round,
            "run": None if audit.point.folder is None else str(audit.point.folder.path),
        },
        "horizon": {"rounds": rounds_of(audit), "first": audit.point.round + 1},
        "route": route_words(audit.findings.models),
        "solver": audit.solver,
        "samples": _samples(audit, chosen),
        "models": [_model(audit, i) for i in range(len(eco.names))],
        "evaluations": _evaluations(audit),
        "settings": [
            {"path": path, "model": path.partition(".")[0], "value": get(eco, path)} for path in audit.findings.paths
        ],
        "influence": _influence(audit),
        "trajectory": _trajectory(audit),
    }
    main = [e for e, found in enumerate(data["evaluations"]) if found["main"]]
    data |= behind(audit, main)
    data["mismatch"] = mismatches(data, audit.half_width)
    data["checks"] = [{"name": c.name, "result": c.result, "words": c.words} for c in audit.checks]
    data["changes"] = list(changes)
    data["warnings"] = _warnings(audit)
    found: dict[str, Any] = plain_values(data)
    return found


def plain_values(value: Any) -> Any:
    """JSON-safe: tensors to lists, NaN and infinities to null."""
    if isinstance(value, dict):
        return {str(key): plain_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    if isinstance(value, torch.Tensor):
        return plain_values(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a model's text may hold half a surrogate pair
    return value


def rounds_of(audit: Audited) -> int:
    """Rounds of the horizon."""
    return audit.findings.rounds


def is_own(eco: Ecosystem, model: str, evaluation: Evaluation | None) -> bool:
    """Whether an evaluation asks a model on inputs of its own data by its own people."""
    if evaluation is None:
        return True
    own = {source.data for source in eco.models[model].sources if isinstance(source, Real)}
    same_people = evaluation.reward in (None, eco.models[model].reward)
    return same_people and (evaluation.data is None or evaluation.data in own)


# --- parts ----------------------------------------------------------------------------------------------------------


def _samples(audit: Audited, chosen: str | None) -> dict[str, Any]:
    size, work = audit.size, audit.findings.work
    return {
        "outputs": size.outputs,
        "evaluation": size.evaluation,
        "answers": size.answers if audit.point.world.medium == "text" else 1,
        "generated": work.generated,
        "gradients": work.gradients,
        "clusters": work.clusters,
        "cluster": "prompt" if audit.point.world.medium == "text" else "group of candidates",
        "bytes": work.bytes,
        "chosen": chosen,
    }


def _model(audit: Audited, i: int) -> dict[str, Any]:
    name, seen = audit.eco.names[i], audit.findings.models[i]
    model = audit.eco.models[name]
    curated = [s.weight for s in model.sources if s.kind in ("curated", "picks")]
    return {
        "name": name,
        "family": model.family.kind,
        "reward": model.reward,
        "route": seen.route,
        "num_params": seen.num_params,
        "coordinates": seen.coordinates,
        "coordinates_are": seen.words,
        "curation": math.fsum(curated),
        "largest_curvature": seen.largest_curvature,
        "sources": _sources(audit, name),
    }


def _sources(audit: Audited, consumer: str) -> list[dict[str, Any]]:
    eco = audit.eco
    labels = [(name, label) for name, model in eco.models.items() for label in source_names(model)]
    groups = dict(zip(labels, audit.findings.sources, strict=True))
    model = eco.models[consumer]
    return [
        _source(eco, label, node, groups[consumer, label])
        for label, node in zip(source_names(model), model.sources, strict=True)
    ]


def _source(eco: Ecosystem, label: str, node: Source, sampled: Groups) -> dict[str, Any]:
    out = {
        "name": label,
        "kind": node.kind,
        "producer": getattr(node, "producer", None),
        "data": getattr(node, "data", None),
        "weight": node.weight,
        "curator": None,
        "temperature": None,
        "groups": sampled.groups,
        "candidates": sampled.candidates,
        "rule": None,
        "effective": sampled.effective,
    }
    if isinstance(node, Curated):
        out["curator"] = " then ".join(p.curator or eco.models[node.producer].reward for p in node.stages)
        out["rule"] = " then ".join(candidates_label(p.candidates) for p in node.stages)
        out["temperature"] = node.temperature
    return out


def _evaluations(audit: Audited) -> list[dict[str, Any]]:
    eco, out = audit.eco, []
    for judged, (now, error) in zip(audit.findings.judged, audit.now, strict=True):
        name = judged.model
        node = next((n for n in eco.models[name].evaluate or [] if n.name == judged.name), None)
        reward = (node.reward if node is not None else None) or eco.models[name].reward
        out.append(
            {
                "model": name,
                "name": judged.name,
                "reward": reward,
                "data": None if node is None else node.data,
                "own": is_own(eco, name, node),
                "main": False,
                "now": now,
                "error": error,
                "there": judged.there,
                "spread": judged.spread,
            }
        )
    for name in eco.names:  # the first on its own inputs by its own people, else the first
        mine = [found for found in out if found["model"] == name]
        if mine:
            min(mine, key=lambda found: not found["own"])["main"] = True
    return out


def _influence(audit: Audited) -> dict[str, Any]:
    found, half = audit.findings, audit.half_width
    return {
        "matrix": found.matrix,
        "errors": found.errors,
        "linearisation": audit.linearisation,
        "low": found.matrix - half,
        "high": found.matrix + half,
        "isolated": found.isolated,
        "asked": found.asked,
        "verdict": audit.verdicts(),
        "needed": audit.needed(),
        "confidence": audit.confidence,
        "unit": UNIT,
    }


def _trajectory(audit: Audited) -> dict[str, Any]:
    found, start = audit.findings, audit.point.round
    now = torch.tensor([value for value, _ in audit.now])
    return {
        "rounds": [start + t for t in found.shown],
        "places": [start + t for t in found.places],
        "base": found.course + now,
        "influence": list(found.unfolding),
        "observed": _observed(audit),
    }


def _observed(audit: Audited) -> list[dict[str, Any]]:
    """What the run recorded from this round on, where it did go on."""
    folder, start = audit.point.folder, audit.point.round
    if folder is None or folder.rounds[-1] <= start:
        return []
    table = folder.metrics()
    columns = [table.column(c).to_pylist() for c in ("round", "model", "metric", "domain", "value", "standard_error")]
    index = {(found.model, found.name): e for e, found in enumerate(audit.findings.judged)}
    seen: dict[int, list[tuple[int, float, float | None]]] = {}
    for t, model, metric, domain, value, error in zip(*columns, strict=True):
        e = index.get((model, domain))
        if metric == "alignment" and e is not None and t >= start and value is not None:
            seen.setdefault(e, []).append((int(t), float(value), None if error is None else float(error)))
    return [
        {
            "evaluation": e,
            "rounds": [t for t, _, _ in sorted(points)],
            "value": [value for _, value, _ in sorted(points)],
            "error": [error for _, _, error in sorted(points)],
        }
        for e, points in sorted(seen.items())
    ]


def _warnings(audit: Audited) -> list[str]:
    out: list[str] = []
    if worst(audit.checks) == "failed":
        out.append("A check failed: do not rely on the numbers before it is mended; see the checks.")
    words = [word for row in audit.verdicts() for word in row]
    unsure = words.count("cannot tell")
    if unsure:
        out.append(f"{unsure} of {len(words)} signs cannot be told at this number of samples.")
    if len(words) > 20:
        miss = (1 - audit.confidence) * len(words)
        out.append(f"Each interval holds by itself; of {len(words)}, about {miss:.0f} miss the truth by chance.")
    return out
