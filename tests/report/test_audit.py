from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import crossfeed as cf
from crossfeed.errors import DataError
from crossfeed.report.audit import digest
from ecosystems import random_ecosystem


@pytest.fixture(scope="module")
def audited() -> cf.Audit:
    return cf.audit(
        cf.load(Path(__file__).parents[2] / "examples" / "two_models.yaml"), command="crossfeed audit two_models.yaml"
    )


def test_every_field_is_documented(audited: cf.Audit) -> None:
    text = (Path(__file__).parents[2] / "docs" / "audit-format.md").read_text()
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {k for v in value.values() for k in keys(v)}
        if isinstance(value, list):
            return {k for v in value for k in keys(v)}
        return set()

    assert not keys(audited.data) - documented


def test_it_is_plain_json_and_comes_back_equal(audited: cf.Audit, tmp_path: Path) -> None:
    path = audited.save(tmp_path / "audit.json")
    assert json.loads(path.read_text()) == audited.data
    assert "NaN" not in path.read_text()


def test_changes_agree_with_solving_again(audited: cf.Audit) -> None:
    eco = cf.load(Path(__file__).parents[2] / "examples" / "two_models.yaml")
    from crossfeed.describe import settings

    moved = cf.compile_ecosystem(settings.put(eco, "p.curation", 0.6))
    after = moved.alignment(cf.solve(moved).require())[moved.primary].tolist()
    (change,) = audited.data["changes"]
    assert change["after"] == pytest.approx(after, rel=1e-9)
    # the derivative foretells a change of 0.1 to second order
    for k in range(2):
        assert change["first_order"][k] == pytest.approx(change["after"][k] - change["before"][k], abs=0.02)


def test_an_ecosystem_without_stable_point_is_refused_in_words() -> None:
    eco = cf.Ecosystem(
        space=cf.Vectors(dim=1),
        rewards={"r": cf.LinearReward(vector=[1.0])},
        models={
            "p": cf.Model(
                family=cf.GaussianMean(),
                reward="r",
                start=[1.0],
                sources=[cf.Curated(producer="p", weight=1.0, candidates=3)],
            )
        },
    )
    data = cf.audit(eco).data
    assert data["influence"] is None
    assert data["stable"]["result"] == "diverged"
    assert "no stable point" in data["influence_refused"]
    assert any("No influence" in w for w in data["warnings"])
    assert "no stable point" in str(cf.audit(eco)).lower().replace("\n", " ")


def test_relabelling_models_permutes_the_audit() -> None:
    eco = random_ecosystem("loglinear", 3, seed=11, curation=True)
    turned = cf.Ecosystem(**(dict(eco) | {"models": dict(reversed(eco.models.items()))}))
    one, two = cf.audit(eco).data, cf.audit(turned).data
    for k in range(3):
        for i in range(3):
            a, b = one["influence"]["matrix"][k][i], two["influence"]["matrix"][2 - k][2 - i]
            assert a == pytest.approx(b, rel=1e-7, abs=1e-10)
            assert one["influence"]["verdict"][k][i] == two["influence"]["verdict"][2 - k][2 - i]


def test_equal_specs_have_equal_digests() -> None:
    assert digest(random_ecosystem("gaussian", 2, 1)) == digest(random_ecosystem("gaussian", 2, 1))
    assert digest(random_ecosystem("gaussian", 2, 1)) != digest(random_ecosystem("gaussian", 2, 2))


def test_saving_elsewhere_says_what_is_wrong(audited: cf.Audit, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.html or \.json"):
        audited.save(tmp_path / "audit.docx")
    with pytest.raises(DataError, match="cannot be written"):
        audited.save(tmp_path / "none" / "audit.html")


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_charts_can_be_saved(audited: cf.Audit, tmp_path: Path, suffix: str) -> None:
    for name in ("graph", "influence_matrix"):
        assert audited.save_chart(name, tmp_path / f"{name}.{suffix}").stat().st_size > 1000


def test_it_shows_itself(audited: cf.Audit) -> None:
    assert "<iframe" in audited._repr_html_()
    assert "helps" in str(audited)


def test_a_point_that_repels_the_loop_gets_no_verdict() -> None:
    model = cf.Model(
        family=cf.GaussianMean(),
        reward="r",
        sources=[
            cf.Real(data="web", weight=0.1),
            cf.Curated(producer="p", weight=0.9, candidates=2, map=cf.Affine(matrix=1.5)),
        ],
    )
    eco = cf.Ecosystem(
        space=cf.Vectors(dim=1),
        data={"web": cf.MomentsData(mean=[0.0], cov=1.0)},
        rewards={"r": cf.LinearReward(vector=[1.0])},
        models={"p": model},
    )
    data = cf.audit(eco).data
    assert data["stability"]["local"][0]["radius"] == pytest.approx(1.35)
    assert data["influence"] is None
    assert "repels the loop" in data["influence_refused"]
