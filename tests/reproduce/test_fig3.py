"""The whole reproduction: files, numbers against the published arrays, the figure and the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.stats import binom

from crossfeed.reproduce import fig3, figure, numbers, page
from crossfeed.reproduce.gaussian import published
from crossfeed.reproduce.panels import panels


@pytest.fixture(scope="module")
def small():
    """All numbers, with 4 seeds instead of 40 and 20."""
    with fig3.one_thread():
        return numbers.gather(lambda stage, done, total: None, seeds=4, sweep_seeds=4)


def test_exact_numbers_are_the_published_ones(small):
    for row in small["deviations"]:
        allowed = {"central differences": 1e-6 * row["size"], "root over t; published: spline": 1e-8}.get(
            row["how"], 1e-10
        )
        assert row["largest"] <= allowed, row
    assert sum(row["count"] for row in small["deviations"]) == 6 * 250 + 2 * 250 + 2 * 24 + 4 * 12 + 4 * 17 + 1


def test_published_finite_samples_agree_with_the_theory(small):
    """Counts within 2 and 3 standard errors are as Student's t with 39 degrees of freedom lets expect.

    Values of p and q at one t share their noise, so that 54 of the 108 are taken for independent.
    """
    found = small["agreement"]["published"]
    assert found["count"] == 108
    for k in (2, 3):
        share = found[f"expected_{k}"] / 108
        assert found[f"within_{k}"] / 2 >= binom.ppf(0.01, 54, share)
    assert found["mean_square"] == pytest.approx(found["expected_mean_square"], abs=3 * np.sqrt(2 / 54) * 1.1)
    assert small["agreement"]["published_std_error_over_theory"] == pytest.approx(
        1, abs=4 / np.sqrt(2 * 39 * 54) + 0.02
    )


def test_published_numbers_are_not_touched(small):
    d = published()
    assert small["curves"]["influence_q"]["published"] == d["dJq_dlambda"].tolist()
    assert small["finite"]["n"]["12"]["p"]["published"] == d["finite_n12_jp_mean"].tolist()


def test_numbers_are_json(small):
    again = json.loads(fig3.as_json(small))
    assert again["zero"]["t"]["library"] == pytest.approx(0.86215, abs=5e-6)  # the published script's figure of it
    assert set(again) >= {
        "curves",
        "zero",
        "blocks",
        "finite",
        "sweep",
        "deviations",
        "agreement",
        "seconds",
        "settings",
    }


def test_figure_has_eight_panels_and_no_stray_tokens(small, tmp_path):
    assert len(panels(small)) == 8
    for scheme in ("light", "dark"):
        assert "\ue000" not in json.dumps(figure.vega_lite(small, scheme), ensure_ascii=False)
    heads = {"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}
    for ending, head in heads.items():
        assert figure.save(small, tmp_path / f"a.{ending}").read_bytes().startswith(head)


def test_page_is_complete_in_itself(small):
    markup = page.html(small)
    assert markup.count("<svg ") == 8
    assert "<script" not in markup
    assert not re.search(r"""(?:src|href)=["'](?!#)""", markup)
    assert "\ue000" not in markup
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    for row in small["deviations"]:
        assert f'data-value="{row["largest"]!r}"' in markup


@pytest.mark.slow
def test_full_run(tmp_path):
    stages = set()
    result = fig3.run(tmp_path, lambda stage, done, total: stages.add(stage))
    assert sorted(f.name for f in result["files"]) == sorted(f.name for f in tmp_path.iterdir())
    assert "Simulation, n = 64" in stages
    found = json.loads((tmp_path / "fig3.json").read_text())
    for key, pairs in (("simulated", 54), ("sweep", 68)):
        a = found["agreement"][key]
        for k in (2, 3):
            assert a[f"within_{k}"] / 2 >= binom.ppf(0.01, pairs, a[f"expected_{k}"] / a["count"])
    assert found["agreement"]["simulated_std_error_over_theory"] == pytest.approx(
        1, abs=4 / np.sqrt(2 * 39 * 54) + 0.02
    )
    assert len(result["summary"]) == 5
    rows = figure.chart(found).to_dict()["vconcat"]
    assert [len(row["hconcat"]) for row in rows[:2]] == [4, 4]
