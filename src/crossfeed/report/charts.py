"""Every chart of an audit by name: as Vega-Lite for the page, as an Altair chart, and as an SVG, PDF or PNG file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossfeed.errors import NotAvailableError
from crossfeed.report import graph as graphs
from crossfeed.report import words
from crossfeed.report.change_charts import changes, thresholds
from crossfeed.report.influence_charts import influence_matrix, isolated, self_influence
from crossfeed.report.loop_charts import alignment, entropy, finite_samples, movement, stability
from crossfeed.report.marks import Panel, Spec
from crossfeed.report.reason_charts import contributions, direction, edges, walks
from crossfeed.report.theme import PALETTES, Scheme, config, paint

__all__ = [
    "CHARTS",
    "alignment",
    "changes",
    "chart",
    "chart_names",
    "contributions",
    "direction",
    "edges",
    "entropy",
    "finite_samples",
    "influence_matrix",
    "isolated",
    "movement",
    "save_chart",
    "self_influence",
    "stability",
    "thresholds",
    "vega_lite",
    "walks",
]

CHARTS: dict[str, Callable[[words.Audit], list[Panel]]] = {
    "influence_matrix": influence_matrix,
    "self_influence": self_influence,
    "isolated": isolated,
    "changes": changes,
    "thresholds": thresholds,
    "finite_samples": finite_samples,
    "stability": stability,
    "alignment": alignment,
    "movement": movement,
    "entropy": entropy,
    "direction": direction,
    "walks": walks,
    "edges": edges,
    "contributions": contributions,
}
"""Every chart but the graph: a function from an audit to its panels, none where the audit has nothing to draw."""


def chart_names(audit: words.Audit) -> list[str]:
    """Names of the charts that this audit has something to draw for; ``graph`` is always one."""
    return ["graph", *(name for name, draw in CHARTS.items() if draw(audit))]


def _no_such(audit: words.Audit, name: str) -> NotAvailableError:
    if name in CHARTS:
        return NotAvailableError(
            f"chart {name!r}: this audit has nothing to draw for it; it has {', '.join(chart_names(audit))}"
        )
    return NotAvailableError(f"chart {name!r}: no such chart; choose one of {', '.join(['graph', *CHARTS])}")


def vega_lite(audit: words.Audit, name: str, scheme: Scheme = "light", width: int = 640) -> Spec:
    """A chart as one Vega-Lite spec of fixed width, its panels below one another.

    Args:
        audit: The contents of audit.json.
        name: One of :func:`chart_names`, but ``graph``, which is drawn as SVG.
        scheme: ``light`` or ``dark``.
        width: Width of each panel in pixels.

    Raises:
        NotAvailableError: no such chart, or nothing to draw; names the charts there are.
    """
    panels = CHARTS[name](audit) if name in CHARTS else []
    if not panels:
        raise _no_such(audit, name)
    specs = []
    for panel in panels:
        one: dict[str, Any] = {**panel.spec, "width": width, "title": panel.title, "description": panel.alt}
        del one["autosize"]
        specs.append(one)
    whole: Spec = (
        {"vconcat": specs, "spacing": 28, "resolve": {"scale": {"color": "independent"}}}
        if len(specs) > 1
        else specs[0]
    )
    return dict(
        paint(
            {
                "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
                "config": {**config(), "background": PALETTES[scheme]["page"]},
                **whole,
            },
            PALETTES[scheme],
        )
    )


def chart(audit: words.Audit, name: str, scheme: Scheme = "light", width: int = 640) -> Any:
    """A chart as an ``altair.Chart`` (or a layered or concatenated one), to display, change or save.

    Args:
        audit: The contents of audit.json.
        name: One of :func:`chart_names`, but ``graph``: :func:`crossfeed.report.graph.svg` draws that.
        scheme: ``light`` or ``dark``.
        width: Width of each panel in pixels.

    Raises:
        NotAvailableError: no such chart, or nothing to draw; names the charts there are.
    """
    import altair as alt

    if name == "graph":
        raise NotAvailableError(
            "chart 'graph': it is drawn as SVG, not by Altair; use save_chart or crossfeed.report.graph.svg"
        )
    return alt.Chart.from_dict(vega_lite(audit, name, scheme, width))


def save_chart(audit: words.Audit, name: str, path: str | Path, scheme: Scheme = "light", width: int = 640) -> Path:
    """Write a chart to a file: .svg, .pdf, .png (at twice its size) or .json (its Vega-Lite).

    Args:
        audit: The contents of audit.json.
        name: One of :func:`chart_names`.
        path: Where to write; its ending chooses the format.
        scheme: ``light`` or ``dark``.
        width: Width of each panel in pixels.

    Returns:
        The path written.

    Raises:
        NotAvailableError: no such chart, nothing to draw, or a file ending that is none of these.
    """
    import json

    import vl_convert as vlc

    target, ending = Path(path), Path(path).suffix.lower()
    if ending not in {".svg", ".pdf", ".png"} and not (ending == ".json" and name != "graph"):
        raise NotAvailableError(
            f"{target}: found the ending {ending!r}; need .svg, .pdf, .png, or .json for a chart other than the graph"
        )
    if name == "graph":
        svg = graphs.svg(audit, PALETTES[scheme])
    else:
        spec = vega_lite(audit, name, scheme, width)
        if ending == ".json":
            target.write_text(json.dumps(spec, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            return target
        svg = vlc.vegalite_to_svg(spec, vl_version=vlc.get_vegalite_versions()[-1])
    if ending == ".svg":
        target.write_text(svg, encoding="utf-8")
    else:
        target.write_bytes(vlc.svg_to_pdf(svg) if ending == ".pdf" else vlc.svg_to_png(svg, scale=2))
    return target
