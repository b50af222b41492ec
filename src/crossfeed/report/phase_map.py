"""A finished sweep shown: its table, lines for one setting, maps for two, a page, and a summary in words."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfeed.errors import NotAvailableError
from crossfeed.report import still
from crossfeed.report.marks import Panel, Spec, palette, quantity, rule, tooltip, view
from crossfeed.report.output import write_whole
from crossfeed.report.theme import DASHES, SERIES, token
from crossfeed.report.trajectory import labels
from crossfeed.report.words import VERDICTS, clean, join, number, plural

if TYPE_CHECKING:
    import pyarrow

    from crossfeed.dynamics.sweep import Sweep

SHOWN = 6
"""Models drawn: those whose settings move first, then those whose alignment moves most."""
WIDE = 12
"""Up to this many models, the table has a column for the influence of each."""
FAILED = {
    "unstable": "a stable point that retraining moves away from",
    "budget": "no stable point within the allowed rounds",
    "diverged": "diverged",
    "oscillating": "went back and forth",
    "non-finite": "numbers that are not finite",
}


def sweep_table(sweep: Sweep) -> pyarrow.Table:
    """One row a point and evaluation."""
    import pyarrow as pa

    program = sweep.program
    evaluations, width = program.evaluations, len(program.evaluations)
    count = len(sweep.points)

    def repeated(values: Any) -> Any:
        return np.repeat(np.asarray(values), width, axis=0)

    columns: dict[str, Any] = {path: repeated(sweep.points[:, k]) for k, path in enumerate(sweep.paths)}
    columns["model"] = [program.names[e.model] for e in evaluations] * count
    columns["domain"] = [e.name for e in evaluations] * count
    columns["alignment"] = _holes(sweep.alignment.reshape(-1))
    own = np.stack([sweep.influence[:, v, e.model] for v, e in enumerate(evaluations)], 1)
    columns["self_influence"] = _holes(own.reshape(-1))
    columns["isolated"] = _holes(sweep.isolated.reshape(-1))
    columns["verdict"] = pa.array([v for row in sweep.verdicts for v in row], pa.string())
    columns["result"] = repeated(sweep.results).tolist()
    columns["residual"] = repeated(sweep.residual)
    columns["radius"] = _holes(repeated(sweep.radius))
    if program.num_models <= WIDE:
        for i, name in enumerate(program.names):
            columns[f"influence of {name}"] = _holes(sweep.influence[:, :, i].reshape(-1))
    return pa.table(columns)


def _holes(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.float64(), mask=~np.isfinite(values))


def record(sweep: Sweep) -> dict[str, Any]:
    """What sweep.json holds."""
    import crossfeed
    from crossfeed.report.audit import digest

    return {
        "format": "crossfeed-sweep",
        "version": 1,
        "crossfeed": crossfeed.__version__,
        "spec_name": sweep.eco.name,
        "spec_sha256": digest(sweep.eco),
        "vary": {
            p: ["inf" if math.isinf(v) else v for v in vs.tolist()]
            for p, vs in zip(sweep.paths, sweep.values, strict=True)
        },
        "points": len(sweep.points),
        "results": dict(Counter(sweep.results)),
        "seconds": round(sweep.seconds, 3),
        "spec": sweep.eco.model_dump(mode="json"),
    }


def save(sweep: Sweep, folder: Path) -> Path:
    """Write sweep.parquet, sweep.json and sweep.html."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    table, facts = sweep_table(sweep), json.dumps(record(sweep), ensure_ascii=False, allow_nan=False, indent=1)
    shown = page(sweep)
    write_whole(folder / "sweep.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
    write_whole(folder / "sweep.json", lambda path: path.write_text(facts + "\n", encoding="utf-8"))
    write_whole(folder / "sweep.html", lambda path: path.write_text(shown, encoding="utf-8", errors="replace"))
    return folder


# --- charts ---------------------------------------------------------------------------------------------------------


def shown_models(sweep: Sweep) -> list[int]:
    """The models that are drawn."""
    primary = sweep.program.primary.numpy()
    moved = np.nan_to_num(np.nanmax(_filled(sweep), 0) - np.nanmin(_filled(sweep), 0))[primary]
    touched = {path.split(".", 1)[0] for path in sweep.paths}
    order = sorted(range(len(primary)), key=lambda i: (sweep.program.names[i] not in touched, -moved[i]))
    return sorted(order[:SHOWN])


def _filled(sweep: Sweep) -> np.ndarray:
    """Alignments, with 0 in columns that have none at all."""
    empty = np.isnan(sweep.alignment).all(0)
    return np.where(empty, 0.0, sweep.alignment)


def panels(sweep: Sweep) -> dict[str, Panel]:
    """Every chart that this sweep has something to draw for, by name."""
    if not np.isfinite(sweep.points).all() or len(sweep.paths) > 2:
        moving = [k for k, v in enumerate(sweep.values) if len(v) > 1 and np.isfinite(v).all()]
    else:
        moving = [k for k, v in enumerate(sweep.values) if len(v) > 1] or [0]
    if any(len(v) > 1 for k, v in enumerate(sweep.values) if k not in moving) or not 1 <= len(moving) <= 2:
        return {}
    return _lines(sweep, moving[0]) if len(moving) == 1 else _maps(sweep, moving[0], moving[1])


def chart(sweep: Sweep, name: str) -> Any:
    """A chart as an ``altair`` chart."""
    import altair as alt

    found = panels(sweep)
    if name not in found:
        have = (
            f"it has {join(list(found))}" if found else "it draws one or two settings with finite values; use table()"
        )
        raise NotAvailableError(f"chart {name!r}: this sweep has nothing to draw for it; {have}")
    return alt.Chart.from_dict(still.vega_lite(found[name]))


def _lines(sweep: Sweep, k: int) -> dict[str, Panel]:
    """Alignment and self-influence over one setting."""
    models, x = shown_models(sweep), sweep.points[:, k]
    primary = sweep.program.primary.tolist()
    names = labels(sweep.program.names)
    path = clean(sweep.paths[k], 80)
    own = {i: sweep.influence[:, primary[i], i] for i in models}
    drawn = {
        "alignment": _line_panel(
            f"Alignment by {path}", "alignment", path, x, {names[i]: sweep.alignment[:, primary[i]] for i in models}
        )
    }
    if any(np.isfinite(v).any() for v in own.values()):
        title = f"What more curation of a model does to itself, by {path}"
        series = {names[i]: v for i, v in own.items() if np.isfinite(v).any()}
        drawn["influence"] = _line_panel(title, "self-influence", path, x, series, zero=True)
    crossed = {
        f"{names[i]}’s curation on {names[j]}": sweep.influence[:, primary[j], i]
        for i in models
        for j in models
        if i != j and np.isfinite(sweep.influence[:, primary[j], i]).any()
    }
    if 0 < len(crossed) <= SHOWN:
        drawn["cross"] = _line_panel(
            f"What more curation does to the other, by {path}", "cross-influence", path, x, crossed, zero=True
        )
    return {name: panel for name, panel in drawn.items() if panel is not None}


def _line_panel(
    title: str, axis: str, path: str, x: np.ndarray, series: dict[str, np.ndarray], zero: bool = False
) -> Panel | None:
    rows = [
        {"x": float(a), "value": float(f"{b:.6g}"), "model": name}
        for name, values in series.items()
        for a, b in zip(x, values, strict=True)
        if np.isfinite(b)
    ]
    if not rows:
        return None
    domain = list(series)
    colour = palette(
        dict(zip(domain, SERIES, strict=False)), field="model", legend={"columns": 3, "symbolType": "stroke"}
    )
    dash = {
        "field": "model",
        "type": "nominal",
        "scale": {"domain": domain, "range": list(DASHES[: len(domain)])},
        "sort": None,
        "title": None,
    }
    encoding = {
        "x": quantity("x", path, scale={"nice": False, "zero": False}, axis={"grid": False}),
        "y": quantity("value", axis, scale={"zero": zero}),
        "color": colour,
        "strokeDash": dash,
        "tooltip": tooltip(model="Model", x=f"{path} #", value=f"{axis} #"),
    }
    layers: list[Spec] = [rule("y", 0.0)] if zero else []
    layers.append({"mark": {"type": "line", "strokeWidth": 2.2, "point": len(x) < 30}, "encoding": encoding})
    said = "; ".join(
        f"{n} from {number(float(v[0]))} to {number(float(v[-1]))}"
        for n, v in ((n, v[np.isfinite(v)]) for n, v in series.items())
        if len(v)
    )
    return Panel(title, f"{title}: {said}.", view(rows, 260, layer=layers))


def _edges(values: np.ndarray) -> dict[float, tuple[float, float]]:
    """The cell around each value: halfway to its neighbours."""
    ordered = np.unique(values)
    middle = (ordered[1:] + ordered[:-1]) / 2
    first, last = 2 * ordered[0] - middle[0], 2 * ordered[-1] - middle[-1]
    bounds = np.concatenate([[first], middle, [last]])
    return {float(v): (float(a), float(b)) for v, a, b in zip(ordered, bounds[:-1], bounds[1:], strict=True)}


def _maps(sweep: Sweep, kx: int, ky: int) -> dict[str, Panel]:
    """A map of verdicts and one of alignment for each model shown."""
    xs, ys = _edges(sweep.values[kx]), _edges(sweep.values[ky])
    names, primary = labels(sweep.program.names), sweep.program.primary.tolist()
    px, py = clean(sweep.paths[kx], 80), clean(sweep.paths[ky], 80)
    out: dict[str, Panel] = {}
    for i in shown_models(sweep):
        rows = []
        for p, (x, y) in enumerate(sweep.points[:, [kx, ky]].tolist()):
            verdict, value = sweep.verdicts[p][primary[i]], sweep.alignment[p, primary[i]]
            failed = sweep.results[p] != "converged"
            state = (
                "no stable point" if failed else f"{VERDICTS[verdict].symbol} {verdict}" if verdict else "not defined"
            )
            rows.append(
                {
                    "x": xs[x][0], "x2": xs[x][1], "y": ys[y][0], "y2": ys[y][1], "at_x": x, "at_y": y, "state": state,
                    "value": float(f"{value:.6g}") if np.isfinite(value) else None,
                    "influence": _or_none(sweep.influence[p, primary[i], i]),
                }
            )  # fmt: skip
        place = {
            "x": quantity("x", px, scale={"nice": False, "zero": False}, axis={"grid": False}),
            "x2": {"field": "x2"},
            "y": quantity("y", py, scale={"nice": False, "zero": False}, axis={"grid": False}),
            "y2": {"field": "y2"},
            "tooltip": tooltip(
                at_x=f"{px} #", at_y=f"{py} #", state="More curation", value="Alignment #", influence="Self-influence #"
            ),
        }
        mark = {"type": "rect"}
        present = {row["state"] for row in rows}
        styles = {f"{v.symbol} {k}": v.style for k, v in VERDICTS.items()} | {
            "not defined": "grid",
            "no stable point": "line",
        }
        styles = {k: v for k, v in styles.items() if k in present}
        if present - {"not defined", "no stable point"}:
            colours = palette(styles, None, "state")
            spec = view(rows, 320, mark=mark, encoding={**place, "color": colours})
            counts = Counter(row["state"] for row in rows)
            said = ", ".join(f"{k} at {n} of {len(rows)} points" for k, n in counts.most_common())
            title = f"More curation of {names[i]}: what it does to {names[i]} itself"
            out[f"verdict:{sweep.program.names[i]}"] = Panel(title, f"{title}: {said}.", spec)
        known = [row for row in rows if row["value"] is not None]
        if known:
            low, high = min(row["value"] for row in known), max(row["value"] for row in known)
            scale = {"range": [token("zero"), token("up"), token("up-strong")], "domain": [low, high]}
            shade = {
                "field": "value",
                "type": "quantitative",
                "title": "alignment",
                "scale": scale,
                "legend": {"gradientLength": 200},
            }
            spec = view(known, 320, mark=mark, encoding={**place, "color": shade})
            title = f"Alignment of {names[i]}"
            out[f"alignment:{sweep.program.names[i]}"] = Panel(
                title, f"{title}: from {number(low)} to {number(high)}.", spec
            )
    return out


def _or_none(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


# --- words ----------------------------------------------------------------------------------------------------------


def lines(sweep: Sweep) -> list[str]:
    """What was found, one line a model that is shown."""
    count, names = len(sweep.points), labels(sweep.program.names)
    over = " × ".join(f"{clean(p, 80)} ({_span(v)})" for p, v in zip(sweep.paths, sweep.values, strict=True))
    counts = Counter(sweep.results)
    out = [f"{clean(sweep.eco.name, 120)}: {plural(count, 'point')} over {over}."]
    bad = [f"{FAILED[r]} at {plural(n, 'point')}" for r, n in counts.items() if r != "converged"]
    settled = counts.get("converged", 0)
    out.append(
        "A stable point everywhere." if not bad else f"A stable point at {plural(settled, 'point')}; {join(bad)}."
    )
    primary = sweep.program.primary.tolist()
    for i in shown_models(sweep):
        column = sweep.alignment[:, primary[i]]
        if not np.isfinite(column).any():
            continue
        best, worst = int(np.nanargmax(column)), int(np.nanargmin(column))
        ends = [f"{number(float(column[p]))} ({_where(sweep, p)})" for p in (worst, best)]
        said = f"{names[i]}: alignment from {ends[0]} to {ends[1]}"
        found = Counter(v for row in sweep.verdicts if (v := row[primary[i]]) is not None)
        if found:
            parts = [f"{verdict} at {found[verdict]:,}" for verdict in VERDICTS if found[verdict]]
            said += f"; more curation of it {join(parts)} of {plural(sum(found.values()), 'point')}"
        out.append(said + ".")
    rest = sweep.program.num_models - len(shown_models(sweep))
    return [*out, f"{plural(rest, 'other model')} in the table only."] if rest else out


def _span(values: np.ndarray) -> str:
    if len(values) == 1:
        return _value(values[0])
    return f"{plural(len(values), 'value')} from {_value(values.min())} to {_value(values.max())}"


def _value(value: float) -> str:
    return "∞" if math.isinf(value) else number(float(value))


def _where(sweep: Sweep, p: int) -> str:
    return ", ".join(f"{clean(path, 60)} {_value(v)}" for path, v in zip(sweep.paths, sweep.points[p], strict=True))


def summary(sweep: Sweep) -> str:
    """A sweep in a few lines of plain text."""
    return "\n".join(lines(sweep))


def body(sweep: Sweep) -> str:
    """For notebooks: the summary and the first charts."""
    from crossfeed.report.markup import text

    said = "".join(f"<p>{text(line)}</p>" for line in lines(sweep))
    return said + still.figures(list(panels(sweep).values())[:2])


def page(sweep: Sweep) -> str:
    """The whole sweep as one self-contained page."""
    import crossfeed

    drawn = list(panels(sweep).values())
    more = [] if drawn else ["Charts show one or two settings that move; all numbers are in sweep.parquet."]
    foot = f"Crossfeed {crossfeed.__version__}; {plural(len(sweep.points), 'point')}; numbers in sweep.parquet."
    return still.page(f"Sweep: {clean(sweep.eco.name, 120)}", [*lines(sweep), *more], drawn, foot)
