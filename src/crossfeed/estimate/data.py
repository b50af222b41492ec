"""Everything that an audit of networks found, as one plain dictionary: what audit.json holds; see docs/estimate-format.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

import crossfeed
from crossfeed.describe.schema import Curated, Ecosystem, Evaluation, Real, candidates_label, source_names
from crossfeed.describe.settings import get
from crossfeed.estimate.audit import NetworkAudit
from crossfeed.estimate.bank import Bank
from crossfeed.estimate.checks import effective, worst
from crossfeed.estimate.data_people import examples, mismatches, pickers, sources
from crossfeed.estimate.influence import outcomes
from crossfeed.record.spec_copy import digest

FORMAT = "crossfeed-estimate"
UNIT = "change of alignment per unit of curation ratio, to first order, after the horizon"


def data_of(
    audit: NetworkAudit,
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
        "route": "score function",
        "solver": "gradient bank",
        "samples": _samples(audit, chosen),
        "models": [_model(audit, i) for i in range(len(eco.names))],
        "evaluations": _evaluations(audit),
        "settings": [
            {"path": path, "model": path.partition(".")[0], "value": get(eco, path)} for path in audit.estimate.paths
        ],
        "influence": _influence(audit),
        "trajectory": _trajectory(audit),
    }
    main = [e for e, found in enumerate(data["evaluations"]) if found["main"]]
    data["examples"] = examples(audit, main)
    data["sources"] = sources(audit)
    data["pickers"] = pickers(audit)
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


def rounds_of(audit: NetworkAudit) -> int:
    """Rounds of the horizon."""
    return len(audit.estimate.horizon.rounds or ())


def is_own(eco: Ecosystem, model: str, evaluation: Evaluation | None) -> bool:
    """Whether an evaluation asks a model on inputs of its own data by its own people."""
    if evaluation is None:
        return True
    own = {source.data for source in eco.models[model].sources if isinstance(source, Real)}
    same_people = evaluation.reward in (None, eco.models[model].reward)
    return same_people and (evaluation.data is None or evaluation.data in own)


# --- parts ----------------------------------------------------------------------------------------------------------


def _samples(audit: NetworkAudit, chosen: str | None) -> dict[str, Any]:
    bank, size = audit.bank, audit.size
    made = {id(rows.draw.outputs): len(rows.draw.outputs) for rows in bank.sources if rows.producer is not None}
    answered = sum(len(rows.draw.outputs) for rows in bank.evaluations)
    worked = {rows.loss.data_ptr(): len(rows.loss) for rows in bank.sources}
    worked |= {rows.score.data_ptr(): len(rows.score) for rows in bank.sources if rows.score is not None}
    worked |= {rows.score.data_ptr(): len(rows.score) for rows in bank.evaluations}
    return {
        "outputs": size.outputs,
        "evaluation": size.evaluation,
        "answers": size.answers if audit.point.world.medium == "text" else 1,
        "generated": sum(made.values()) + answered,
        "gradients": sum(worked.values()) + sum(len(rows.curvature) for rows in bank.sources),
        "clusters": audit.estimate.num_clusters,
        "cluster": "prompt" if audit.point.world.medium == "text" else "group of candidates",
        "bytes": bank.nbytes,
        "chosen": chosen,
    }


def _model(audit: NetworkAudit, i: int) -> dict[str, Any]:
    eco, bank = audit.eco, audit.bank
    name = eco.names[i]
    model, rows = eco.models[name], bank.models[i]
    curated = [s.weight for s in model.sources if s.kind in ("curated", "picks")]
    spectrum = audit.estimate.answer.system.spectrum(i)
    return {
        "name": name,
        "family": model.family.kind,
        "reward": model.reward,
        "num_params": rows.num_params,
        "coordinates": rows.basis.size,
        "coordinates_are": "parameters" if rows.basis.basis is None else "span of its samples' gradients",
        "curation": math.fsum(curated),
        "largest_curvature": float(spectrum[-1]),
        "sources": [_source(eco, bank, name, label) for label in source_names(model)],
    }


def _source(eco: Ecosystem, bank: Bank, consumer: str, label: str) -> dict[str, Any]:
    model = eco.models[consumer]
    node = model.sources[source_names(model).index(label)]
    rows = next(r for r in bank.sources if (r.draw.consumer, r.draw.name) == (consumer, label))
    out = {
        "name": label,
        "kind": node.kind,
        "producer": rows.draw.producer,
        "data": getattr(node, "data", None),
        "weight": node.weight,
        "curator": None,
        "temperature": None,
        "groups": len(rows.draw.clusters),
        "candidates": rows.draw.candidates,
        "rule": None,
        "effective": effective(rows),
    }
    if isinstance(node, Curated):
        out["curator"] = " then ".join(p.curator or eco.models[node.producer].reward for p in node.stages)
        out["rule"] = " then ".join(candidates_label(p.candidates) for p in node.stages)
        out["temperature"] = node.temperature
    return out


def _evaluations(audit: NetworkAudit) -> list[dict[str, Any]]:
    eco, out = audit.eco, []
    for e, judged in enumerate(audit.bank.evaluations):
        name = judged.draw.model
        node = next((n for n in eco.models[name].evaluate or [] if n.name == judged.draw.name), None)
        now, error = audit.now[e] if audit.now else (audit.estimate.answer.judged[e].value, None)
        reward = (node.reward if node is not None else None) or eco.models[name].reward
        out.append(
            {
                "model": name,
                "name": judged.draw.name,
                "reward": reward,
                "data": None if node is None else node.data,
                "own": is_own(eco, name, node),
                "main": False,
                "now": now,
                "error": error,
                "halfway": audit.estimate.answer.judged[e].value,
                "spread": float(judged.draw.rewards.double().std()),
            }
        )
    for name in eco.names:  # the first on its own inputs by its own people, else the first
        mine = [found for found in out if found["model"] == name]
        if mine:
            min(mine, key=lambda found: not found["own"])["main"] = True
    return out


def _influence(audit: NetworkAudit) -> dict[str, Any]:
    answer, half = audit.estimate.answer, audit.half_width
    return {
        "matrix": answer.matrix,
        "errors": audit.estimate.errors,
        "linearisation": audit.linearisation,
        "low": answer.matrix - half,
        "high": answer.matrix + half,
        "isolated": answer.isolated,
        "verdict": audit.verdicts(),
        "needed": audit.needed(),
        "confidence": audit.confidence,
        "unit": UNIT,
    }


def _trajectory(audit: NetworkAudit) -> dict[str, Any]:
    answer, start = audit.estimate.answer, audit.point.round
    goals = outcomes(audit.bank, answer.judged, answer.system.sizes)
    influence = []
    for state in [] if answer.path is None else answer.path.after_rounds:
        influence.append(sum((g.T @ x for g, x in zip(goals, state, strict=True)), torch.zeros(())))
    now = torch.tensor([value for value, _ in audit.now] or [found.value for found in answer.judged])
    course = audit.course.alignment + now
    return {
        "rounds": list(range(start, start + len(course))),
        "base": course,
        "influence": influence,
        "observed": _observed(audit),
    }


def _observed(audit: NetworkAudit) -> list[dict[str, Any]]:
    """What the run recorded from this round on, where it did go on."""
    folder, start = audit.point.folder, audit.point.round
    if folder is None or folder.rounds[-1] <= start:
        return []
    table = folder.metrics()
    columns = [table.column(c).to_pylist() for c in ("round", "model", "metric", "domain", "value", "standard_error")]
    index = {(r.draw.model, r.draw.name): e for e, r in enumerate(audit.bank.evaluations)}
    found: dict[int, list[tuple[int, float, float | None]]] = {}
    for t, model, metric, domain, value, error in zip(*columns, strict=True):
        e = index.get((model, domain))
        if metric == "alignment" and e is not None and t >= start and value is not None:
            found.setdefault(e, []).append((int(t), float(value), None if error is None else float(error)))
    return [
        {
            "evaluation": e,
            "rounds": [t for t, _, _ in sorted(points)],
            "value": [value for _, value, _ in sorted(points)],
            "error": [error for _, _, error in sorted(points)],
        }
        for e, points in sorted(found.items())
    ]


def _warnings(audit: NetworkAudit) -> list[str]:
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
