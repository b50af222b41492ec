"""The parts of audit.json, one function each; plain values only (tensors are turned into lists when the audit is finished)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe import schema, settings
from crossfeed.describe.schema import Ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import population_round, update_block
from crossfeed.dynamics.stable import StablePoint
from crossfeed.errors import CrossfeedError
from crossfeed.influence.direction import contributions, direction
from crossfeed.influence.edges import edge_effects, walks
from crossfeed.influence.finite_samples import finite_sample_theory
from crossfeed.influence.matrix import Influence, curation_ratio, setting_response
from crossfeed.influence.sample_size import sign_test
from crossfeed.influence.threshold import Mover, Threshold

STRONGEST = 40


def models(eco: Ecosystem, program: Program, point: StablePoint) -> list[dict[str, Any]]:
    """One entry a model: family, curation ratio, alignments and collapse indicators at the stable point."""
    values = program.alignment(point.theta)
    entropy = program.entropy(point.theta)
    distance = distance_to_data(program, point.theta)
    out = []
    for i, (name, model) in enumerate(eco.models.items()):
        span = program.span(i)
        out.append(
            {
                "name": name,
                "family": model.family.kind,
                "num_params": span.stop - span.start,
                "reward": model.reward,
                "curation": curation_ratio(model),
                "ridge": model.ridge,
                "alignment": [
                    {"name": e.name, "reward": e.reward, "value": values[k]}
                    for k, e in enumerate(program.evaluations)
                    if e.model == i
                ],
                "entropy": entropy[i],
                "spread": math.exp(float(entropy[i])) if model.family.kind in ("categorical", "loglinear") else None,
                "distance_to_data": distance[i],
            }
        )
    return out


def distance_to_data(program: Program, theta: Tensor) -> list[float | None]:
    """Per model ‖E_q[T] − E_real[T]‖ of its sufficient statistics' means, against its own real data; None without any."""
    out: list[float | None] = [None] * program.num_models
    for number, group in enumerate(program.model_groups):
        total = torch.zeros(len(group.members), group.family.num_moments, dtype=torch.float64)
        mass = torch.zeros(len(group.members), dtype=torch.float64)
        for s in program.source_groups:
            if s.group == number and s.theta_index is None:
                w = program.settings[s.weight_slot]
                total.index_add_(0, s.row, s.kernel.moments() * w[:, None])
                mass.index_add_(0, s.row, w)
        gradient = group.family.gradient(theta[group.theta_index], total / mass.clamp_min(1e-300)[:, None])
        for row, member in enumerate(group.members.tolist()):
            if mass[row] > 0:
                out[member] = float(gradient[row].norm())
    return out


def edges(eco: Ecosystem, program: Program) -> list[dict[str, Any]]:
    """One entry a source, in the order of the spec."""
    out = []
    flat = [(name, model, s) for name, model in eco.models.items() for s in model.sources]
    for info, (name, _, source) in zip(program.sources, flat, strict=True):
        entry: dict[str, Any] = {
            "consumer": name,
            "producer": None if info.producer is None else program.names[info.producer],
            "name": info.name,
            "kind": info.kind,
            "weight": source.weight,
            "curator": None,
            "candidates": None,
            "temperature": None,
            "data": source.data if isinstance(source, schema.Real) else None,
        }
        if isinstance(source, schema.Curated):
            entry["curator"] = " then ".join(p.curator or eco.models[source.producer].reward for p in source.stages)
            entry["candidates"] = " then ".join(schema.candidates_label(p.candidates) for p in source.stages)
            entry["temperature"] = source.temperature
        out.append(entry)
    return out


def domain_influence(found: Influence) -> list[dict[str, Any]]:
    """dJ/dλ by evaluation, where a model has several."""
    program = found.program
    return [
        {"model": program.names[e.model], "name": e.name, "reward": e.reward, "by_intervened": found.by_evaluation[k]}
        for k, e in enumerate(program.evaluations)
        if len(program.evaluations) > program.num_models
    ]


def directions(found: Influence) -> list[dict[str, Any]]:
    """ρ, the three bounds and the flip angle of each intervened model; bounds are left out for large models and ecosystems."""
    out = []
    limit = 400 if found.program.num_models <= 50 else 0
    for i in found.intervened:
        d = direction(found, i, limit)
        out.append(
            {
                "model": found.program.names[i],
                "rho": d.rho,
                "paper_bound": d.paper_bound,
                "sharp_bound": d.sharp_bound,
                "turning_angle_deg": math.degrees(d.turning_angle),
                "sign_guaranteed": d.sign_guaranteed,
                "flip_angle_deg": math.degrees(d.flip_angle),
            }
        )
    return out


def _pairs(found: Influence, many: bool) -> list[tuple[int, int]]:
    n = found.program.num_models
    pairs = [(k, i) for k in range(n) for i in found.intervened]
    if not many:
        return pairs
    size = found.matrix.abs().nan_to_num(0.0)
    order = size.flatten().argsort(descending=True)[:STRONGEST].tolist()
    return [(p // n, p % n) for p in order]


def edge_attribution(found: Influence, many: bool) -> list[dict[str, Any]]:
    """Every edge's effect on every influence (strongest pairs and edges only in large ecosystems)."""
    exact = found.program.num_params <= 3000
    top = None if found.program.num_models <= 4 else 5
    program = found.program
    return [
        {
            "consumer": program.names[program.sources[e.source].consumer],
            "producer": program.names[program.sources[e.source].producer or 0],
            "name": program.sources[e.source].name,
            "affected": program.names[e.affected],
            "intervened": program.names[e.intervened],
            "share": e.share,
            "without": e.without,
            "with": e.value,
            "exact": exact,
        }
        for e in edge_effects(found, _pairs(found, many), exact, top)
    ]


def walk_lists(found: Influence, many: bool) -> list[dict[str, Any]]:
    """The strongest walks of every pair (strongest pairs only in large ecosystems)."""
    pairs = _pairs(found, many)[: 10 if many else 400]
    names = found.program.names
    out = []
    for k, i in pairs:
        w = walks(found, k, i, max_length=6 if many else 8, width=50 if many else 200)
        out.append(
            {
                "affected": names[k],
                "intervened": names[i],
                "walks": [{"path": [names[m] for m in walk.path], "value": walk.value} for walk in w.walks],
                "rest": w.rest,
                "total": found.matrix[k, i],
                "converges": w.converges,
            }
        )
    return out


def contribution_lists(found: Influence) -> list[dict[str, Any]]:
    """Raw against distorted contributions in S's eigenbasis (or in blocks for larger models)."""
    out = []
    if found.program.num_models > 30:
        return []
    for i in found.intervened:
        span = found.program.span(i)
        size = span.stop - span.start
        basis = "eigen" if size <= 64 else "blocks"
        items = contributions(found, i, basis, max(1, size // 24))
        out.append(
            {
                "model": found.program.names[i],
                "basis": basis,
                "items": [{"label": c.label, "raw": c.raw, "distorted": c.distorted} for c in items],
            }
        )
    return out


def frozen_change(program: Program, theta: Tensor, model: int) -> float | None:
    """Change of a model's alignment under the program's settings when all other models stay at Θ; None if it does not settle."""
    now = theta
    for _ in range(2000):
        new = update_block(program, now, [model], None)
        gap = float((new - now).norm())
        now = new
        if gap <= 1e-12 * (1 + float(theta.norm())):
            row = program.primary[model]
            return float(program.alignment(now)[row] - program.alignment(theta)[row])
    return None


def first_order(eco: Ecosystem, found: Influence, path: str) -> Tensor:
    """(N,) dJ/d(setting), first evaluation of each model."""
    rows = found.alignment_gradient[found.program.primary]
    return rows @ setting_response(eco, found, path)


def default_thresholds(eco: Ecosystem) -> list[schema.ThresholdQuery]:
    """Without questions in the spec: each model's cross share if it has one, else its curation ratio, for the first four models."""
    known = set(settings.paths(eco))
    out = []
    for name in eco.names[:4] if len(eco.names) <= 12 else []:
        if f"{name}.cross_share" in known:
            out.append(schema.ThresholdQuery(path=f"{name}.cross_share", low=0.02, high=0.98, intervened=name))
        elif f"{name}.curation" in known:
            out.append(schema.ThresholdQuery(path=f"{name}.curation", low=0.02, high=0.9, intervened=name))
    return out


def threshold_entry(
    q: schema.ThresholdQuery, eco: Ecosystem, pair: tuple[int, int], found: Threshold
) -> dict[str, Any]:
    """One influence along one setting, with its sign changes."""
    series = found.influence[:, pair[0], pair[1]]
    missing = len(found.notes)
    note = f"{missing} of {len(found.values)} values left out: {next(iter(found.notes.values()))}" if missing else ""
    return _threshold(q, eco, pair) | {
        "roots": found.roots.get(pair, []),
        "values": found.values,
        "influence": series,
        "alignment": found.alignment[:, pair[0]],
        "note": note,
    }


def no_threshold(q: schema.ThresholdQuery, eco: Ecosystem, pair: tuple[int, int], why: str) -> dict[str, Any]:
    """A question without an answer, and why."""
    return _threshold(q, eco, pair) | {"roots": [], "values": [], "influence": [], "alignment": [], "note": why}


def _threshold(q: schema.ThresholdQuery, eco: Ecosystem, pair: tuple[int, int]) -> dict[str, Any]:
    try:
        current: float | None = settings.get(eco, q.path)
    except CrossfeedError:
        current = None
    return {
        "path": q.path,
        "low": q.low,
        "high": q.high,
        "affected": eco.names[pair[0]],
        "intervened": eco.names[pair[1]],
        "current": current,
    }


def trajectory(eco: Ecosystem, program: Program) -> dict[str, Any]:
    """Population rounds from the start, in the spec's update order: alignment, Δ_t = ‖θ^{t+1} − θ^t‖/‖θ^t‖, entropy."""
    theta = program.start
    points = [theta]
    for number in range(eco.audit.rounds):
        theta = population_round(program, theta, eco.update, number)
        if not bool(torch.isfinite(theta).all()):
            break
        points.append(theta)
    path = torch.stack(points)
    spans = [program.span(i) for i in range(program.num_models)]
    step = (path[1:] - path[:-1]).abs()
    size = [path[:-1, s].norm(dim=1) for s in spans]
    delta = [
        torch.where(n > 1e-9, step[:, s].norm(dim=1) / n.clamp_min(1e-9), torch.nan)
        for s, n in zip(spans, size, strict=True)
    ]
    many = program.num_models > STRONGEST
    keep = slice(0, STRONGEST) if many else slice(None)
    return {
        "rounds": list(range(len(points))),
        "models": program.names[keep],
        "alignment": program.alignment(path)[:, program.primary].T[keep],
        "delta": torch.stack(delta)[keep],
        "entropy": program.entropy(path).T[keep],
    }


def gallery(eco: Ecosystem, program: Program, point: StablePoint) -> list[dict[str, Any]] | None:
    """For photographs: those each model makes most often at the stable point, beside those it made at the start."""
    if not isinstance(eco.space, schema.Images) or program.num_models > 8:
        return None
    from crossfeed.describe.images import thumbnail

    out = []
    for group in program.model_groups:
        now = group.family.log_probs(point.theta[group.theta_index]).exp()
        for row, member in enumerate(group.members.tolist()):
            best = torch.argsort(now[row], descending=True)[:12].tolist()
            share = float(now[row][best].sum())
            out.append(
                {
                    "model": program.names[member],
                    "title": f"the twelve outcomes {program.names[member]} makes most often: {share:.1%} of all, "
                    f"{12 / now.shape[-1]:.1%} if all were equally likely",
                    "images": [thumbnail(program.outcomes.images, k) for k in best],
                }
            )
    return sorted(out, key=lambda entry: program.names.index(entry["model"]))


def assumptions(eco: Ecosystem, program: Program) -> list[str]:
    """What the numbers rest on, in words."""
    kinds = {m.family.kind for m in eco.models.values()}
    out = [
        "Influence is a derivative at the stable point: what small changes of the curation ratio do in the long run, after every "
        "model has been retrained again and again. Planned changes are worked out by solving again, not by extrapolation.",
        "Mixture weights, rewards and update rules stay as the spec says; people's picks follow the Plackett–Luce rule with the "
        "spec's rewards, and every candidate is drawn independently.",
    ]
    if eco.update.steps is not None:
        out.append(
            f"Rounds are inexact: {eco.update.steps.count} gradient steps of {eco.update.steps.size:g}. This does not move stable "
            "points; it changes how fast, and whether, the loop reaches them."
        )
    else:
        out.append("Each retraining reaches the exact minimum of its loss.")
    if isinstance(eco.space, schema.Images):
        out.append(
            f"Models are log-linear or categorical distributions over {program.space}; they stand in for image generators and "
            "cannot draw anything that is not in the sample. A diffusion network has other curvature and may answer differently."
        )
    if kinds <= {"categorical", "loglinear"}:
        out.append(
            "Curated distributions are exact for every number of candidates (one-dimensional quadrature, error below 1e-12)."
        )
    elif any(isinstance(s, schema.Curated) and s.candidates > 1 for m in eco.models.values() for s in m.sources):
        out.append(
            "Picks among Gaussian outcomes are worked out by quadrature over the directions the reward looks at (257 nodes in one "
            "direction, 2,304 in two, 8,000 in three, 4,096 quasi-Monte Carlo points in more)."
        )
    return out


def warnings(data: dict[str, Any]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    out = []
    if data["influence"] is None:
        out.append(f"No influence is given: {data['influence_refused']}")
    if data["stable"]["others"]:
        n = len(data["stable"]["others"])
        out.append(
            f"{n} other stable point{'s' if n > 1 else ''} found from random starts: which one is reached depends on the start."
        )
    for t in data["thresholds"]:
        if t["note"]:
            out.append(f"Threshold in {t['path']}: {t['note']}")
    return list(dict.fromkeys(out))


def stability(eco: Ecosystem, program: Program, point: StablePoint, found: Influence | None) -> dict[str, Any]:
    """Local radii by update order, the global certificate, and the rate the loop shows."""
    from crossfeed.dynamics.certificates import global_certificate
    from crossfeed.dynamics.local import all_orders, observed_rate

    local: list[dict[str, Any]] = []
    rate = None
    if found is not None:
        for c in all_orders(program, found.lin, eco.update):
            local.append(
                {
                    "order": c.order,
                    "radius": c.radius,
                    "stable": c.stable,
                    "rounds_to_halve": c.rounds_to_halve,
                    "method": c.method,
                }
            )
        if program.num_models <= 50:
            rate, _ = observed_rate(program, eco.update, program.start, found.theta)
    certificate = global_certificate(eco, program)
    return {
        "local": local,
        "global": certificate.summary(),
        "observed_rate": rate,
    }


def finite_samples(eco: Ecosystem, program: Program, point: StablePoint, found: Influence | None) -> dict[str, Any]:
    """Mean shift and spread of alignment with n samples a round, and the smallest n that tells each influence's sign."""
    out: dict[str, Any] = {
        "available": False,
        "reason": "",
        "n": eco.samples.per_round,
        "counts": eco.samples.counts or "multinomial",
        "models": [],
        "smallest_n": [],
        "confidence": eco.audit.confidence,
        "protocol": "",
    }
    if found is None:
        return out | {"reason": "There is no stable point to work it out at."}
    try:
        theory = finite_sample_theory(program, found.theta, eco.update, eco.samples, found.lin)
    except CrossfeedError as error:
        return out | {"reason": str(error)}
    mean, std = theory.at()
    out |= {
        "available": True,
        "reason": "; ".join(theory.notes()),
        "models": [
            {"name": name, "mean_shift": mean[row] - theory.value[row], "std": std[row]}
            for name, row in zip(program.names, program.primary.tolist(), strict=True)
        ],
    }
    if program.num_params <= 150:
        mover = Mover(eco, program, found.theta)
        for i in found.intervened:
            try:
                test = sign_test(eco, program.names[i], mover=mover)
            except CrossfeedError as error:
                out["smallest_n"] += [_smallest(name, program.names[i], None, str(error)) for name in program.names]
                continue
            out["protocol"] = test.protocol
            for name in program.names:
                n, note = test.smallest_n(name, eco.audit.confidence)
                out["smallest_n"].append(_smallest(name, program.names[i], n, note))
    return out


def _smallest(affected: str, intervened: str, n: int | None, note: str) -> dict[str, Any]:
    return {"affected": affected, "intervened": intervened, "n": n, "note": note}
