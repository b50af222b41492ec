"""The page: numbers as in the audit, nothing unescaped, nothing external, small enough, every null shown."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from crossfeed.report import words
from crossfeed.report.html import html, search_index, vega_bundle
from report.fakes import HOSTILE, fake, hostile, refused, with_gallery

VOID = {"meta", "link", "input", "br", "img", "rect", "path", "polyline", "polygon"}


class Outline(HTMLParser):
    """Tags, attributes and the text of numbers; complains about tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.data = ""
        self._number: dict[str, str | None] | None = None
        self._raw = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        self._number = found if "data-value" in found else None
        self._raw = found.get("id") or "" if tag == "script" else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._number is not None:
            self.numbers.append((self._number, data))
            self._number = None
        if self._raw == "data":
            self.data += data

    def values(self, of: str) -> list[tuple[dict[str, str | None], float]]:
        return [(a, float(a["data-value"] or "")) for a, _ in self.numbers if a.get("data-of") == of]


def numbers_read(text: str) -> float:
    """What a reader reads off a number on the page."""
    plain = text.replace(words.MINUS, "-").replace(",", "").lstrip("+")
    mantissa, _, power = plain.partition("×10")
    exponent = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(mantissa) * 10 ** int(exponent or 0)


@pytest.fixture(scope="module", params=[1, 2, 3, 12])
def small(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Outline]:
    audit = fake(request.param)
    return audit, Outline(html(audit))


def test_numbers_shown_are_those_of_the_audit(small: tuple[dict[str, Any], Outline]) -> None:
    audit, page = small
    matrix = audit["influence"]["matrix"]
    shown = {(int(a["data-affected"]), int(a["data-intervened"])): v for a, v in page.values("influence")}  # type: ignore[arg-type]
    assert shown == {(k, i): v for k, row in enumerate(matrix) for i, v in enumerate(row) if v is not None}
    alignment = {int(a["data-model"] or ""): v for a, v in page.values("alignment")}
    assert alignment == {k: m["alignment"][0]["value"] for k, m in enumerate(audit["models"])}
    isolated = {int(a["data-model"] or ""): v for a, v in page.values("isolated")}
    assert isolated == {k: v for k, v in enumerate(audit["influence"]["isolated"]) if v is not None}
    for key, of in (("before", "before"), ("after", "after"), ("first_order", "first")):
        found = {(int(a["data-change"] or ""), int(a["data-model"] or "")): v for a, v in page.values(of)}
        assert found == {(c, k): v for c, change in enumerate(audit["changes"]) for k, v in enumerate(change[key])}
    roots = [v for _, v in page.values("root")]
    assert roots == [r for t in audit["thresholds"] for r in t["roots"]]
    radii = [v for _, v in page.values("radius")]
    assert radii == [audit["stability"]["local"][0]["radius"], *(o["radius"] for o in audit["stability"]["local"])]
    assert [v for _, v in page.values("rho")] == [d["rho"] for d in audit["direction"]]


def test_every_number_reads_as_its_value(small: tuple[dict[str, Any], Outline]) -> None:
    for attributes, text in small[1].numbers:
        assert numbers_read(text) == pytest.approx(float(attributes["data-value"] or ""), rel=6e-3, abs=1e-12)


def test_charts_hold_the_numbers_of_the_audit() -> None:
    audit = fake(2)
    charts = json.loads(Outline(html(audit)).data)["charts"]
    cells = charts["influence-0"]["data"]["values"]
    assert [c["value"] for c in cells] == [v for row in audit["influence"]["matrix"] for v in row]
    line = [row["value"] for row in charts["alignment-0"]["data"]["values"] if row["model"] == "q"]
    assert line == pytest.approx(audit["trajectory"]["alignment"][1], rel=1e-4)


def test_page_asks_nothing_of_a_network(small: tuple[dict[str, Any], Outline]) -> None:
    for tag, attributes in small[1].tags:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    policy = next(a["content"] for t, a in small[1].tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_page_is_accessible_in_structure(small: tuple[dict[str, Any], Outline]) -> None:
    tags = small[1].tags
    assert ("html", {"lang": "en"}) in tags
    levels = [int(t[1]) for t, _ in tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for tag, attributes in tags:
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in {"row", "col"}
        if tag == "a" and (attributes.get("href") or "").startswith("#"):
            assert any(a.get("id") == attributes["href"][1:] for _, a in tags)  # type: ignore[index]
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    places = {a["id"] for _, a in tags if a.get("class") == "chart"}
    assert places == {f"chart-{key}" for key in json.loads(small[1].data)["charts"]}


def test_hostile_text_stays_text() -> None:
    audit = hostile()
    page = html(audit)
    outline = Outline(page)
    assert [a for t, a in outline.tags if t == "script"] == [{"type": "application/json", "id": "data"}, {}, {}]
    assert not any(t == "img" for t, _ in outline.tags)
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert "javascript:" not in page.replace(vega_bundle(), "")
    for bad in ("\x1b", "\u2028", "\u202e", "\x07"):
        assert bad not in page.replace(vega_bundle(), "")
    names = {row["intervened"] for row in json.loads(outline.data)["charts"]["influence-0"]["data"]["values"]}
    assert names == set(words.labels(audit))
    assert HOSTILE[0] in names


def test_template_marks_in_a_spec_are_not_filled_in() -> None:
    audit = fake(2)
    audit["description"] = "before {{bundle}} after"
    assert "before {{bundle}} after" in html(audit)


def test_refused_influence_gives_the_reason_first() -> None:
    audit = refused()
    page = html(audit)
    assert page.index(audit["influence_refused"]) < page.index('id="flows"')
    assert 'id="influence"' not in page
    assert "no stable point" in page
    Outline(page)


def _with_nulls(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of an audit, each with all values at one kind of place replaced by null."""
    places = [
        "models.entropy",
        "models.alignment.value",
        "edges.curator",
        "edges.candidates",
        "edges.data",
        "edges.temperature",
        "stable.residual",
        "stability.local.radius",
        "stability.local.rounds_to_halve",
        "stability.global.constants",
        "stability.observed_rate",
        "direction.rho",
        "direction.sharp_bound",
        "direction.turning_angle_deg",
        "direction.flip_angle_deg",
        "changes.isolated",
        "changes.after",
        "changes.verdict",
        "changes.first_order",
        "thresholds.current",
        "thresholds.influence",
        "edge_attribution.without",
        "edge_attribution.share",
        "walks.rest",
        "walks.total",
        "finite_samples.models.std",
        "finite_samples.smallest_n.n",
        "trajectory.entropy",
        "trajectory.delta",
        "influence.direct",
        "contributions.items.raw",
        "finite_samples",
        "trajectory",
        "stability",
        "thresholds",
        "direction",
        "changes",
        "walks",
        "edge_attribution",
        "contributions",
        "seconds",
        "spec_file",
        "description",
        "warnings",
        "assumptions",
    ]
    for place in places:
        changed = copy.deepcopy(value)
        *parents, last = place.split(".")
        holders = [changed]
        for parent in parents:
            found = [h[parent] for h in holders]
            holders = [x for f in found for x in (f if isinstance(f, list) else [f])]
        for holder in holders:
            holder[last] = None
        yield place, changed


@pytest.mark.parametrize(("place", "audit"), list(_with_nulls(fake(3))), ids=lambda v: v if isinstance(v, str) else "")
def test_nulls_are_shown_not_stumbled_over(place: str, audit: dict[str, Any]) -> None:
    page = html(audit)
    Outline(page)
    body = page[page.index("<main>") : page.index("</main>")]
    assert "None" not in body
    assert ">nan" not in body


def test_models_without_curation_have_empty_columns() -> None:
    audit = fake(3)
    for key in ("matrix", "direct", "verdict"):
        for row in audit["influence"][key]:
            row[1] = None
    audit["influence"]["isolated"][1] = None
    outline = Outline(html(audit))
    assert {a["data-intervened"] for a, _ in outline.values("influence")} == {"0", "2"}


def test_thousand_models_fit_in_five_megabytes() -> None:
    audit = fake(1000)
    page = html(audit)
    assert len(page.encode()) < 5e6
    outline = Outline(page)
    data = json.loads(outline.data)
    assert len(data["charts"]["influence-0"]["data"]["values"]) <= 2500
    assert len([1 for tag, _ in outline.tags if tag == "tr"]) < 4000
    for attributes, value in outline.values("pair"):
        k, i = int(attributes["data-affected"] or ""), int(attributes["data-intervened"] or "")
        assert value == audit["influence"]["matrix"][k][i]
    assert "16 of 1,000 models" in page


def test_search_index_holds_the_strongest_influences() -> None:
    audit = fake(40)
    index = search_index(audit)
    assert index is not None
    matrix = audit["influence"]["matrix"]
    for model in range(40):
        values = sorted(
            (abs(matrix[k][model]) for k in range(40) if k != model and matrix[k][model] is not None), reverse=True
        )
        kept = index["out"][model]
        assert [abs(v) for v in kept[1::3]] == pytest.approx(values[:20], rel=1e-3)
        assert all(
            v == pytest.approx(matrix[other][model], rel=1e-3) for other, v in zip(kept[::3], kept[1::3], strict=True)
        )
        incoming = index["in"][model]
        assert all(
            v == pytest.approx(matrix[model][i], rel=1e-3) for i, v in zip(incoming[::3], incoming[1::3], strict=True)
        )
    assert search_index(fake(12)) is None


def test_gallery_shows_inline_images_only() -> None:
    audit = with_gallery(fake(2))
    assert html(audit).count('<img src="data:image/jpeg;base64,') == 24
    audit["gallery"][0]["images"] = ["https://example.org/a.png", "data:image/svg+xml;base64,AAAA", "file:///etc/hosts"]
    page = html(audit).replace(vega_bundle(), "")
    assert page.count("<img") == 12
    assert "example.org" not in page


def test_names_that_read_the_same_stay_apart() -> None:
    audit = json.loads(json.dumps(fake(2)).replace('"q"', '"p\\u0007"'))
    assert words.labels(audit) == ["p", "p #2"]
