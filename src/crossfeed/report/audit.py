"""The main job: everything there is to say about an ecosystem's next retraining, as one plain dictionary and its displays."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import crossfeed
from crossfeed.describe import schema, settings
from crossfeed.describe.schema import Ecosystem
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import StablePoint, distinct_points, solve
from crossfeed.errors import CrossfeedError, NotStableError, SettingError
from crossfeed.influence.matrix import Influence, curation_ratio, influence, verdict
from crossfeed.influence.threshold import Mover, threshold
from crossfeed.report import sections
from crossfeed.report.output import save_result

Progress = Callable[[str, int, int], None]
MANY = 30


@dataclass(frozen=True)
class Audit:
    """An audit's results.

    Attributes:
        data: What audit.json holds; see docs/audit-format.md.
        influence: The influence object, for further questions; None when it was refused.
    """

    data: dict[str, Any]
    influence: Influence | None = None

    def save(self, path: str | Path) -> Path:
        """Write the report (.html), the data (.json), or one chart into a folder's worth of formats by name.

        Raises:
            DataError: when the path cannot be written or its suffix is unknown.
        """
        from crossfeed.report.html import html

        return save_result(path, self.json, lambda: html(self.data))

    def save_chart(self, name: str, path: str | Path) -> Path:
        """Export one chart as SVG, PDF or PNG, by the suffix of ``path``; names in ``crossfeed.report.charts.CHARTS``."""
        from crossfeed.report.charts import save_chart

        save_chart(self.data, name, path)
        return Path(path)

    def json(self) -> str:
        """audit.json's text."""
        return (
            json.dumps(
                self.data, ensure_ascii=False, allow_nan=False, indent=None if len(self.data["models"]) > MANY else 1
            )
            + "\n"
        )

    def __str__(self) -> str:
        from crossfeed.report.terminal import plain

        return plain(self.data)

    def _repr_html_(self) -> str:
        import html as escape

        from crossfeed.report.html import html

        page = escape.escape(html(self.data), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:900px;border:0" title="Crossfeed audit"></iframe>'


def audit(eco: Ecosystem, progress: Progress | None = None, command: str = "", spec_file: str | None = None) -> Audit:
    """Audit an ecosystem: will more curation help, be dampened, do nothing or backfire, for whom, and how sure is that.

    Args:
        eco: The ecosystem.
        progress: Called with (stage, done, total).
        command: How to reproduce it, for the report.
        spec_file: Name of the spec's file, for the report.

    Returns:
        The audit. When no stable point is found, influence is None in it and the reason is given instead.
    """
    began = time.monotonic()
    say = progress or (lambda stage, done, total: None)
    say("reading the data", 0, 1)
    program = compile_ecosystem(eco)
    say("finding the stable point", 0, 1)
    point = solve(program)
    found, refused = None, None
    try:
        found = influence(eco, program, point.require())
    except NotStableError as error:
        refused = str(error)
    data: dict[str, Any] = {
        "format": "crossfeed-audit",
        "version": 1,
        "crossfeed": crossfeed.__version__,
        "spec_name": eco.name,
        "spec_file": spec_file,
        "spec_sha256": digest(eco),
        "description": eco.description,
        "seed": eco.seed,
        "command": command,
        "seconds": 0.0,
        "space": program.space,
    }
    data["models"] = sections.models(eco, program, point)
    data["edges"] = sections.edges(eco, program)
    say("looking for other stable points", 0, 1)
    data["stable"] = _stable(eco, program, point)
    say("certificates", 0, 1)
    data["stability"] = sections.stability(eco, program, point, found)
    own = data["stability"]["local"][:1]
    if own and not own[0]["stable"]:
        found = None
        refused = (
            f"the stable point repels the loop ({own[0]['order']}: a round multiplies a small disturbance by "
            f"{own[0]['radius']:.3g}), so runs do not stay near it and derivatives there say nothing about them; add real "
            "data or a ridge, or start elsewhere"
        )
    data |= _influence(eco, found, refused, say)
    data["changes"] = _changes(eco, program, point, found, say)
    data["thresholds"] = _thresholds(eco, program, point, say)
    say("finite samples", 0, 1)
    data["finite_samples"] = sections.finite_samples(eco, program, point, found)
    say("trajectory", 0, 1)
    data["trajectory"] = sections.trajectory(eco, program)
    data["gallery"] = sections.gallery(eco, program, point)
    data["assumptions"] = sections.assumptions(eco, program)
    data["warnings"] = sections.warnings(data)
    data["seconds"] = round(time.monotonic() - began, 3)
    return Audit(clean(data), found)


def digest(eco: Ecosystem) -> str:
    """SHA-256 of the spec as validated, arrays included, so that equal ecosystems have equal digests."""
    text = json.dumps(eco.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def clean(value: Any) -> Any:
    """JSON-safe: tensors and NumPy scalars to Python numbers, NaN and infinities to null."""
    if isinstance(value, dict):
        return {key: clean(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, torch.Tensor):
        return clean(value.tolist())
    if hasattr(value, "tolist"):
        return clean(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _stable(eco: Ecosystem, program: Program, point: StablePoint) -> dict[str, Any]:
    starts = 4 if program.num_params <= 500 else 0
    others, failed = distinct_points(program, starts, eco.seed) if starts else ([], 0)
    here = point.theta
    far = [p for p in others if float((p.theta - here).norm()) > 1e-6 * (1 + float(here.norm()))]
    return {
        "result": point.result,
        "residual": point.residual,
        "steps": point.steps,
        "method": point.method,
        "starts": starts,
        "starts_without": failed,
        "others": [
            {
                "residual": p.residual,
                "alignment": program.alignment(p.theta)[program.primary],
                "distance": float((p.theta - here).norm()),
            }
            for p in far
        ],
    }


def _influence(eco: Ecosystem, found: Influence | None, refused: str | None, say: Progress) -> dict[str, Any]:
    if found is None:
        empty: list[Any] = []
        return {
            "influence": None,
            "influence_refused": refused,
            "direction": empty,
            "edge_attribution": empty,
            "walks": empty,
            "contributions": empty,
        }
    say("influence", 0, 1)
    many = found.program.num_models > MANY
    return {
        "influence": {
            "matrix": found.matrix,
            "isolated": found.isolated,
            "direct": found.direct,
            "verdict": found.verdicts,
            "domains": sections.domain_influence(found),
            "unit": "change of alignment per unit of curation ratio",
        },
        "influence_refused": None,
        "direction": sections.directions(found),
        "edge_attribution": sections.edge_attribution(found, many),
        "walks": sections.walk_lists(found, many),
        "contributions": sections.contribution_lists(found),
    }


def _changes(
    eco: Ecosystem, program: Program, point: StablePoint, found: Influence | None, say: Progress
) -> list[dict[str, Any]]:
    out = []
    before = program.alignment(point.theta)[program.primary]
    for number, change in enumerate(eco.audit.changes):
        say("planned changes", number, len(eco.audit.changes))
        model = eco.names.index(change.path.split(".", 1)[0])
        entry: dict[str, Any] = {
            "path": change.path,
            "from": settings.get(eco, change.path),
            "to": change.to,
            "before": before,
        }
        entry |= {"after": None, "first_order": None, "verdict": None, "isolated": None}
        mover = Mover(eco, program, point.theta)
        try:
            _, moved = mover.moved({change.path: change.to})
            new = solve(moved, point.theta)
            entry["result"] = new.result
            after = moved.alignment(new.require())[program.primary]
        except (NotStableError, SettingError) as error:
            out.append(entry | {"result": entry.get("result", "refused"), "note": str(error)})
            continue
        alone = sections.frozen_change(moved, point.theta, model)
        delta = after - before
        baseline = [alone if k == model and alone is not None else math.inf for k in range(program.num_models)]
        size = float(before.abs().max() + after.abs().max())
        entry |= {"after": after, "isolated": alone}
        entry["verdict"] = [
            verdict(float(d), b if math.isfinite(b) else float(d), 1e-10 * (1 + size))
            for d, b in zip(delta, baseline, strict=True)
        ]
        if found is not None:
            entry["first_order"] = sections.first_order(eco, found, change.path) * (change.to - entry["from"])
        out.append(entry)
    return out


def _thresholds(eco: Ecosystem, program: Program, point: StablePoint, say: Progress) -> list[dict[str, Any]]:
    queries = eco.audit.thresholds or sections.default_thresholds(eco)
    by_range: dict[tuple[str, float, float], Any] = {}
    out = []
    if point.result != "converged":
        return []
    for number, q in enumerate(queries):
        say("thresholds", number, len(queries))
        affected = range(program.num_models) if q.affected is None else [eco.names.index(q.affected)]
        holders = [i for i, m in enumerate(eco.models.values()) if curation_ratio(m) > 0]
        intervened = holders if q.intervened is None else [eco.names.index(q.intervened)]
        key = (q.path, q.low, q.high)
        pairs = [(k, i) for k in affected for i in intervened]
        every = [
            (k, i)
            for other in queries
            if (other.path, other.low, other.high) == key
            for k in (range(program.num_models) if other.affected is None else [eco.names.index(other.affected)])
            for i in (holders if other.intervened is None else [eco.names.index(other.intervened)])
        ]
        try:
            if key not in by_range:
                by_range[key] = threshold(eco, *key, sorted(set(every)), 13, Mover(eco, program, point.theta))
            result = by_range[key]
        except CrossfeedError as error:
            out += [sections.no_threshold(q, eco, pair, str(error)) for pair in pairs]
            continue
        out += [sections.threshold_entry(q, eco, pair, result) for pair in pairs]
    return out


__all__ = ["Audit", "Progress", "audit", "clean", "digest", "schema"]
