"""A finished run shown: its numbers as a table, charts with bands over the seeds, a page, and a summary in words."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfeed.errors import NotAvailableError
from crossfeed.report import still
from crossfeed.report.marks import Panel, Spec, palette, quantity, tooltip, view
from crossfeed.report.output import write_whole
from crossfeed.report.theme import DASHES, SERIES
from crossfeed.report.words import clean, join, number, plural

if TYPE_CHECKING:
    import pyarrow

    from crossfeed.dynamics.run import Run

LINES = 6
"""Models with a line of their own; those that move most."""
REASONS = {
    "converged": "settled at a stable point",
    "budget": "did all rounds",
    "diverged": "went on growing without bound",
    "oscillating": "went back and forth without settling",
    "non-finite": "produced numbers that are not finite",
    "collapsed": "collapsed: every model makes practically one output only",
}


def reason(run: Run, seed: int) -> str:
    """Why a seed's run ended, in words."""
    return f"{REASONS[run.results[seed]]} (round {run.last[seed]})"


# --- tables and files -----------------------------------------------------------------------------------------------


def metrics_table(run: Run) -> pyarrow.Table:
    """All numbers of a run as one long table; what is not defined is left out."""
    import pyarrow as pa

    names = run.program.names
    evaluations = run.program.evaluations
    columns: list[tuple[str, list[str], list[str | None], np.ndarray]] = [
        ("alignment", [names[e.model] for e in evaluations], [e.name for e in evaluations], run.alignment),
        ("entropy", names, [None] * len(names), run.entropy),
        ("spread", names, [None] * len(names), run.spread),
        ("distance_to_data", names, [None] * len(names), run.distance),
        ("delta", names, [None] * len(names), run.delta),
    ]
    parts = []
    for metric, models, domains, values in columns:
        t, s, k = np.nonzero(np.isfinite(values))
        models_of = pa.DictionaryArray.from_arrays(pa.array(k, pa.int32()), pa.array(models, pa.string()))
        domains_of = pa.array(domains, pa.string()).take(pa.array(k))
        parts.append(
            pa.table(
                {
                    "round": pa.array(run.rounds[t], pa.int32()),
                    "seed": pa.array(s, pa.int32()),
                    "model": models_of.cast(pa.string()),
                    "metric": pa.array([metric] * len(t), pa.string()),
                    "domain": domains_of,
                    "value": pa.array(values[t, s, k], pa.float64()),
                }
            )
        )
    return pa.concat_tables(parts)


def record(run: Run) -> dict[str, Any]:
    """What run.json holds: the spec, versions, seeds and how each ended."""
    import torch

    import crossfeed
    from crossfeed.report.audit import digest

    spec = run.eco.model_dump(mode="json")
    results = [
        {
            "seed": s,
            "result": result,
            "reason": reason(run, s),
            "last_round": run.last[s],
            "collapsed": {run.program.names[i]: int(t) for i, t in enumerate(run.collapse[s]) if t >= 0},
        }
        for s, result in enumerate(run.results)
    ]
    return {
        "format": "crossfeed-run",
        "version": 1,
        "crossfeed": crossfeed.__version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "spec_name": run.eco.name,
        "spec_sha256": digest(run.eco),
        "root_seed": run.eco.seed,
        "seeds": run.seeds,
        "rounds": int(run.state.round),
        "samples": run.samples,
        "regime": run.regime,
        "distance_to_data": run.distance_name,
        "residual": run.residual,
        "results": results,
        "seconds": round(run.seconds, 3),
        "spec": spec,
    }


def save(run: Run, folder: Path) -> Path:
    """Write metrics.parquet, run.json, state.npz and run.html."""
    import pyarrow.parquet as pq

    from crossfeed.dynamics.state import save_state

    folder.mkdir(parents=True, exist_ok=True)
    table, facts = metrics_table(run), json.dumps(record(run), ensure_ascii=False, allow_nan=False, indent=1)
    shown = page(run)
    write_whole(folder / "metrics.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
    write_whole(folder / "run.json", lambda path: path.write_text(facts + "\n", encoding="utf-8"))
    write_whole(folder / "state.npz", lambda path: save_state(run.state, path))
    write_whole(folder / "run.html", lambda path: path.write_text(shown, encoding="utf-8", errors="replace"))
    return folder


# --- charts ---------------------------------------------------------------------------------------------------------


def panels(run: Run) -> dict[str, Panel]:
    """Every chart that this run has something to draw for, by name."""
    primary = run.alignment[:, :, run.program.primary.numpy()]
    drawn = {
        "alignment": _over_rounds(run, primary, "Alignment by round", "alignment"),
        "distance": _over_rounds(run, run.distance, f"{run.distance_name.capitalize()}", "distance"),
        "entropy": _over_rounds(run, run.entropy, "Diversity of outputs by round", "entropy (nats)"),
        "spread": _over_rounds(run, run.spread, "Spread of outputs by round", "standard deviation"),
        "movement": _over_rounds(run, run.delta, "Size of a round’s step, Δ", "Δ, relative step", log=True),
    }
    for number_, info in enumerate(run.program.evaluations):
        if number_ not in run.program.primary.tolist() and len(drawn) < 11:
            one = np.full_like(primary, np.nan)
            one[:, :, info.model] = run.alignment[:, :, number_]
            title = f"Alignment on {clean(info.name, 40)} by round"
            key = f"alignment:{run.program.names[info.model]}:{info.name}"
            drawn[key] = _over_rounds(run, one, title, "alignment")
    return {name: panel for name, panel in drawn.items() if panel is not None}


def chart(run: Run, name: str) -> Any:
    """A chart as an ``altair`` chart."""
    import altair as alt

    found = panels(run)
    if name not in found:
        raise NotAvailableError(f"chart {name!r}: this run has nothing to draw for it; it has {join(list(found))}")
    return alt.Chart.from_dict(still.vega_lite(found[name]))


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, mean and high over seeds (axis 1): all seeds below ten of them, else the middle 80 %."""
    with np.errstate(all="ignore"):
        share = 0.0 if values.shape[1] < 10 else 0.1
        none = np.isnan(values).all(1)
        filled = np.where(none[:, None], 0.0, values)
        low, high = np.nanquantile(filled, [share, 1 - share], axis=1)
        mean = np.nanmean(filled, axis=1)
    return tuple(np.where(none, np.nan, v) for v in (low, mean, high))  # type: ignore[return-value]


def _over_rounds(run: Run, values: np.ndarray, title: str, axis: str, log: bool = False) -> Panel | None:
    """Lines of the models that move most, with a band over the seeds."""
    values = np.where(values > 0, values, np.nan) if log else values
    low, mean, high = band(values)
    shown = [k for k in range(mean.shape[1]) if np.isfinite(mean[:, k]).any()]
    if not shown:
        return None
    finite = {k: mean[np.isfinite(mean[:, k]), k] for k in shown}
    if not log and all(np.ptp(v) <= 1e-12 * (1 + abs(v[0])) for v in finite.values()) and axis != "alignment":
        return None
    kept = sorted(sorted(shown, key=lambda k: -abs(finite[k][-1] - finite[k][0]))[:LINES])
    names = labels(run.program.names)
    rows = [
        {
            "round": int(t),
            "model": names[k],
            "low": _short(low[i, k]),
            "value": _short(mean[i, k]),
            "high": _short(high[i, k]),
        }
        for k in kept
        for i, t in enumerate(run.rounds)
        if np.isfinite(mean[i, k])
    ]
    scale: Spec = {"type": "log"} if log else {"zero": False}
    domain = [names[k] for k in kept]
    colour = palette(
        dict(zip(domain, SERIES, strict=False)),
        field="model",
        legend={"columns": 3, "symbolType": "stroke", "symbolOpacity": 1},
    )
    last = int(run.rounds[-1]) or 1
    x = quantity(
        "round",
        "round",
        scale={"nice": False, "domain": [int(run.rounds[0]), last]},
        axis={"grid": False, "tickMinStep": 1},
    )
    y = quantity("low", axis, scale=scale)
    layers: list[Spec] = []
    if run.seeds > 1:
        ends = {"x": x, "y": y, "y2": {"field": "high"}, "color": colour}
        layers.append({"mark": {"type": "area", "opacity": 0.22}, "encoding": ends})
    dash = {
        "field": "model",
        "type": "nominal",
        "scale": {"domain": domain, "range": list(DASHES[: len(domain)])},
        "sort": None,
        "title": None,
    }
    line = {
        "x": x,
        "y": {**y, "field": "value"},
        "color": colour,
        "strokeDash": dash,
        "tooltip": tooltip(model="Model", round="Round #", value=f"{axis} #"),
    }
    layers.append({"mark": {"type": "line", "strokeWidth": 2.2, "point": len(run.rounds) < 4}, "encoding": line})
    over = (
        ""
        if run.seeds == 1
        else f"; mean and range of {run.seeds} seeds"
        if run.seeds < 10
        else f"; mean and middle 80 % of {run.seeds} seeds"
    )
    said = "; ".join(f"{names[k]} from {number(finite[k][0])} to {number(finite[k][-1])}" for k in kept)
    rest = len(shown) - len(kept)
    more = f" The {rest:,} models that move less are not drawn." if rest else ""
    return Panel(f"{title}{over}", f"{title}: {said}.{more}", view(rows, 240, layer=layers))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def labels(names: list[str], limit: int = 40) -> list[str]:
    """Names as they are shown: cleaned, kept short, unique."""
    from crossfeed.report.words import labels as of_audit

    return of_audit({"models": [{"name": name} for name in names]}, limit)


# --- words ----------------------------------------------------------------------------------------------------------


def opening(run: Run) -> str:
    """What was run."""
    models = plural(run.program.num_models, "model")
    last = int(run.state.round)
    data = "whole populations" if run.samples is None else f"{plural(run.samples, 'new sample')} a model and round"
    kept = {
        "replace": "",
        "accumulate": ", all earlier ones kept",
        "subsample": ", trained on as many drawn from all so far",
    }[run.regime]
    if run.samples is None and run.regime != "replace":
        kept = ", every earlier round counting alike"
    seeds = "" if run.seeds == 1 else f", {run.seeds} seeds"
    return f"{models}, {plural(last, 'round')}, {data}{kept}{seeds}."


def ending(run: Run) -> str:
    """How it ended."""
    counts = {r: [s for s, found in enumerate(run.results) if found == r] for r in dict.fromkeys(run.results)}
    if run.seeds == 1:
        only, last = run.results[0], run.last[0]
        what = REASONS[only]
        if only == "budget" and run.samples is None:
            what = "was still moving after the last round"
        gap = "" if run.residual is None else f"; one more round would move it by {number(run.residual)} of its size"
        return f"The loop {what} (round {last}{gap})."
    parts = []
    for result, members in counts.items():
        when = sorted(run.last[s] for s in members)
        span = f"round {when[0]}" if when[0] == when[-1] else f"rounds {when[0]} to {when[-1]}"
        parts.append(f"{len(members)} of {run.seeds} seeds {REASONS[result]} ({span})")
    return join(parts) + "."


def lines(run: Run) -> list[str]:
    """One line a model, those that move most first: alignment, diversity, distance, collapse."""
    names = labels(run.program.names)
    primary = run.alignment[:, :, run.program.primary.numpy()]
    first = _ends(primary)[0]
    order = sorted(
        range(len(names)), key=lambda k: -abs(_ends(primary)[1][k] - first[k]) if math.isfinite(first[k]) else 0.0
    )
    out = []
    for k in sorted(order[:12]):
        parts = [f"alignment {_change(primary, k)}"]
        for title, values in (("entropy", run.entropy), ("spread", run.spread), (run.distance_name, run.distance)):
            column = values[:, :, k]
            if np.isfinite(column).any() and np.nanmax(column) - np.nanmin(column) > 1e-12 * (
                1 + np.nanmax(np.abs(column))
            ):
                parts.append(f"{title} {_change(values, k)}")
        gone = run.collapse[:, k]
        if (gone >= 0).any():
            when = sorted(gone[gone >= 0].tolist())
            span = f"round {when[0]}" if when[0] == when[-1] else f"rounds {when[0]} to {when[-1]}"
            seeds = "" if run.seeds == 1 else f" in {len(when)} of {run.seeds} seeds"
            parts.append(f"collapsed{seeds} ({span})")
        out.append(f"{names[k]}: " + "; ".join(parts) + ".")
    if len(names) > 12:
        out.append(f"{len(names) - 12:,} models that move less are not listed.")
    return out


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds of the first and of each seed's last value, and the last ones' standard deviation; (K,) each."""
    rounds, seeds, width = values.shape
    last = np.full((seeds, width), np.nan)
    for t in range(rounds):
        last = np.where(np.isfinite(values[t]), values[t], last)
    one = last[:1] if seeds == 1 else last
    with np.errstate(all="ignore"):
        spread = np.zeros(width) if seeds == 1 else one.std(0, ddof=1)
    return values[0].mean(0), one.mean(0), spread


def _change(values: np.ndarray, k: int) -> str:
    first, last, spread = (v[k] for v in _ends(values))
    error = f" ± {number(spread, 2)}" if spread > 0 else ""
    return f"{_said(first)} → {_said(last)}{error}"


def _said(value: float) -> str:
    return number(float(value)) if math.isfinite(value) else "–"


def summary(run: Run) -> str:
    """A run in a few lines of plain text."""
    spread = ["± is the standard deviation over seeds."] if run.seeds > 1 else []
    return "\n".join([f"{clean(run.eco.name, 120)}: {opening(run)}", ending(run), *lines(run), *spread])


def body(run: Run) -> str:
    """For notebooks: the summary and the chart of alignment."""
    from crossfeed.report.markup import text

    said = "".join(f"<p>{text(line)}</p>" for line in summary(run).split("\n"))
    found = panels(run)
    return said + still.figures([found[name] for name in ("alignment", "distance") if name in found])


def page(run: Run) -> str:
    """The whole run as one self-contained page."""
    import crossfeed

    said = summary(run).split("\n")
    foot = f"Crossfeed {crossfeed.__version__}; root seed {run.eco.seed}; numbers in metrics.parquet and run.json."
    return still.page(f"Run: {clean(run.eco.name, 120)}", said, list(panels(run).values()), foot)
