"""Charts: every one exports, valid by Altair's schema, with the audit's numbers; the graph shows what the edges say."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from crossfeed.errors import NotAvailableError
from crossfeed.report import graph
from crossfeed.report.charts import CHARTS, chart, chart_names, save_chart, vega_lite
from crossfeed.report.influence_charts import influence_matrix, isolated, self_influence
from crossfeed.report.theme import PALETTES, TOKEN, paint, token
from report.fakes import fake, hostile, refused

SVG = "{http://www.w3.org/2000/svg}"


def test_names_are_those_with_something_to_draw() -> None:
    assert set(chart_names(fake(2))) == {"graph", *CHARTS} - {"self_influence"}
    assert set(chart_names(fake(40))) == {"graph", *CHARTS}
    assert chart_names(refused()) == ["graph", "stability", "alignment", "movement"]


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_every_chart_is_valid_vega_lite(count: int) -> None:
    audit = fake(count)
    for name in chart_names(audit)[1:]:
        made = chart(audit, name, "dark")
        assert isinstance(made, alt.TopLevelMixin)
        assert TOKEN not in json.dumps(made.to_dict(), ensure_ascii=False)


@pytest.mark.parametrize("name", ["graph", "influence_matrix", "walks"])
@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_charts_export(tmp_path: Path, name: str, ending: str) -> None:
    written = save_chart(fake(2), name, tmp_path / f"chart.{ending}")
    start = written.read_bytes()[:8]
    assert start.startswith({"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}[ending])


def test_every_chart_draws_marks(tmp_path: Path) -> None:
    for audit in (fake(12), hostile()):
        for name in chart_names(audit):
            root = ElementTree.fromstring(save_chart(audit, name, tmp_path / "c.svg").read_text(encoding="utf-8"))
            assert len(list(root.iter(f"{SVG}path"))) + len(list(root.iter(f"{SVG}polyline"))) > 1, name


def test_saved_vega_lite_is_the_chart(tmp_path: Path) -> None:
    audit = fake(2)
    path = save_chart(audit, "isolated", tmp_path / "c.json")
    assert json.loads(path.read_text(encoding="utf-8")) == vega_lite(audit, "isolated")


def test_errors_name_the_charts_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="no such chart; choose one of graph, influence_matrix"):
        chart(fake(2), "heatmap")
    with pytest.raises(NotAvailableError, match="nothing to draw for it; it has graph, stability"):
        save_chart(refused(), "walks", tmp_path / "c.svg")
    with pytest.raises(NotAvailableError, match=r"ending '\.gif'; need \.svg, \.pdf, \.png"):
        save_chart(fake(2), "walks", tmp_path / "c.gif")


def test_matrix_cells_are_the_influences() -> None:
    audit = fake(12)
    (panel,) = influence_matrix(audit)
    cells = panel.spec["data"]["values"]
    assert [c["value"] for c in cells] == [v for row in audit["influence"]["matrix"] for v in row]
    assert all((c["shade"] or 0) * (c["value"] or 0) >= 0 for c in cells)


def test_blocks_show_the_strongest_influence_of_each_block() -> None:
    audit = fake(200)
    (panel,) = influence_matrix(audit)
    matrix = audit["influence"]["matrix"]
    for cell in panel.spec["data"]["values"]:
        rows, columns = range(cell["y"] - 1, cell["y2"] - 1), range(cell["x"] - 1, cell["x2"] - 1)
        inside = [matrix[k][i] for k in rows for i in columns if k != i and matrix[k][i] is not None]
        assert cell["value"] == pytest.approx(max(inside, key=abs), rel=1e-3)


def test_histogram_counts_every_model_once() -> None:
    audit = fake(100)
    (panel,) = self_influence(audit)
    curated = [v for v in audit["influence"]["isolated"] if v is not None]
    assert sum(row["count"] for row in panel.spec["data"]["values"]) == len(curated)


def test_scatter_holds_every_curated_model() -> None:
    audit = fake(100)
    (panel,) = isolated(audit)
    assert len(panel.spec["data"]["values"]) == sum(v is not None for v in audit["influence"]["isolated"])


def test_tokens_become_colours_and_names_cannot_be_tokens() -> None:
    assert paint({"a": [token("ink"), "ink"]}, PALETTES["light"]) == {"a": [PALETTES["light"]["ink"], "ink"]}
    audit = json.loads(json.dumps(fake(2)).replace('"q"', '"\\ue000ink"'))
    assert "\ue000" not in json.dumps(vega_lite(audit, "isolated"), ensure_ascii=False)


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: Any) -> None:
    colours = PALETTES[scheme]
    for ground in ("page", "panel"):
        for name in ("ink", "muted", "helps", "dampened", "no-effect", "backfires"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("first", "second", "third", "fourth", "fifth", "sixth", "real", "raw", "curated"):
        assert _contrast(colours[name], colours["page"]) >= 3, name
    for name in ("zero", "up", "down"):
        assert _contrast(colours["ink"], colours[name]) >= 4.5, name
    for name in ("up-strong", "down-strong"):
        assert _contrast(colours["on-strong"], colours[name]) >= 4.5, name


def _titles(svg: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(svg).iter(f"{SVG}title")]


@pytest.mark.parametrize("count", [1, 2, 3, 12, 16])
def test_graph_draws_every_edge_once_and_names_every_model(count: int) -> None:
    audit = fake(count)
    titles = _titles(graph.svg(audit))
    flows = [t for t in titles if "training data" in t]
    real = sum(e["producer"] is None for e in audit["edges"])
    assert len(flows) == len(audit["edges"]) + real
    assert {m["name"] for m in audit["models"]} <= set(titles)
    assert graph.left_out(audit) is None


def test_graph_width_follows_the_weight() -> None:
    audit = fake(2)
    for edge in audit["edges"]:
        edge["weight"] = 0.25
    audit["edges"][0]["weight"] = 0.75
    widths = [float(w) for w in re.findall(r'<polyline[^>]*stroke-width="([\d.]+)"', graph.svg(audit))]
    assert max(widths) == pytest.approx(1.2 + 8 * 0.75, abs=0.05)
    assert sorted(widths)[-2] == pytest.approx(1.2 + 8 * 0.25, abs=0.05)


def test_graph_boxes_do_not_overlap() -> None:
    for count in (2, 3, 5, 8, 12, 16, 1000):
        audit = fake(count)
        part = graph.chosen(audit)
        boxes, _, _ = graph._boxes(part, {n: n for n in part}, count - len(part))
        placed = list(boxes.values())
        for a, one in enumerate(placed):
            for other in placed[:a]:
                apart_x = abs(one.x - other.x) - one.half_width - other.half_width
                apart_y = abs(one.y - other.y) - one.half_height - other.half_height
                assert max(apart_x, apart_y) > 4, (count, one, other)


def test_graph_of_many_models_says_what_it_leaves_out() -> None:
    audit = fake(1000)
    part = graph.chosen(audit)
    assert len(part) == graph.DRAWN
    assert "16 of 1,000 models" in (graph.left_out(audit) or "")
    svg = graph.svg(audit, PALETTES["light"])
    assert "984 others" in svg
    assert "var(--" not in svg
    inside = sum(e["consumer"] in part and (e["producer"] is None or e["producer"] in part) for e in audit["edges"])
    assert f"and {inside:,} of {len(audit['edges']):,} data flows" in (graph.left_out(audit) or "")
