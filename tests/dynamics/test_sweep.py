"""Grids: batched equals one by one, for every family and every kind of setting; failures, words, files."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crossfeed.describe import schema as s
from crossfeed.describe import settings
from crossfeed.dynamics import batch
from crossfeed.dynamics.batch import blocks, round_radius, solve_batch
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.rounds import population_round
from crossfeed.dynamics.stable import solve
from crossfeed.dynamics.sweep import sweep
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.influence.matrix import influence
from ecosystems import FAMILIES, random_ecosystem

ORDERS = [
    s.Simultaneous(),
    s.Sequential(models=["m1", "m0"]),
    s.Cycle(rounds=[[["m0", "m1"]], [["m1"]]]),
]


def pair(family="loglinear", seed=1, **options):
    fields = {
        "num_feeds": (2, 3),
        "rewards": ("linear",),
        "stages": 1,
        "curation": True,
        "real": 0.4,
        "sampling": False,
    }
    return random_ecosystem(family, 2, seed, **{**fields, **options})


def two_loglinear(num=30, dim=3):
    """Two models that pick from themselves and from each other."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((num, dim))

    def sources(a, b):
        return [
            s.Real(name="real", data="d", weight=0.4),
            s.Curated(name="own", producer=a, weight=0.3, candidates=4),
            s.Curated(name="cross", producer=b, weight=0.3, candidates=4),
        ]

    return s.Ecosystem(
        space=s.Outcomes(count=num),
        data={"d": s.DistributionData(weights=np.ones(num))},
        rewards={n: s.TableReward(values=rng.standard_normal(num)) for n in "ab"},
        models={
            "p": s.Model(family=s.LogLinear(features=features), reward="a", sources=sources("p", "q")),
            "q": s.Model(family=s.LogLinear(features=features), reward="b", sources=sources("q", "p")),
        },
    )


def one_by_one(eco, found, k):
    """The same point by the single-ecosystem functions."""
    placed = eco
    for path, value in zip(found.paths, found.points[k], strict=True):
        placed = settings.put(placed, path, float(value))
    program = compile_ecosystem(placed)
    point = solve(program, found.program.start)
    return placed, program, point


def agrees(eco, found, points=None):
    """Alignment, influence, isolated effect and verdicts at these points, against the single-ecosystem functions."""
    for k in range(len(found.points)) if points is None else points:
        placed, program, point = one_by_one(eco, found, k)
        assert point.result == "converged" == found.results[k], (k, point.result, found.results[k])
        assert torch.allclose(found.theta[k], point.theta, atol=1e-8)
        assert np.allclose(found.alignment[k], program.alignment(point.theta), atol=1e-8)
        single = influence(placed, program, point.theta)
        rows = program.primary
        assert np.allclose(found.influence[k][rows], single.matrix, atol=1e-6, equal_nan=True)
        assert np.allclose(found.isolated[k][rows], single.isolated, atol=1e-6, equal_nan=True)
        expected = [single.verdicts[i][i] for i in range(program.num_models)]
        assert [found.verdicts[k][v] for v in rows.tolist()] == expected


# --- batched equals one by one --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_of_weights_equals_one_by_one(family):
    eco = pair(family, 2)
    found = sweep(eco, {"m0.curation": [0.15, 0.4], "m1.ridge": [0.0, 0.2]})
    assert found.shape == (2, 2)
    assert found.points.tolist() == [[0.15, 0.0], [0.15, 0.2], [0.4, 0.0], [0.4, 0.2]]
    agrees(eco, found, [0, 3] if family == "gaussian" else None)


@pytest.mark.parametrize("family", ["categorical", "loglinear", "gaussian_mean", "gaussian"])
def test_candidates_through_one_and_infinity(family):
    eco = pair(family, 3, candidates=(3,), best=False, curators=False)
    model = eco.models["m0"]
    name = next(n for n, x in zip(s.source_names(model), model.sources, strict=True) if isinstance(x, s.Curated))
    stem = f"m0.sources.{name}"
    candidates = [1, 2.5, math.inf] if family == "gaussian" else [1, 2.5, 40, math.inf]
    found = sweep(eco, {f"{stem}.candidates": candidates, f"{stem}.temperature": [0.7, 1.3]})
    agrees(eco, found, [0, 3, 4] if family == "gaussian" else None)
    assert np.ptp(found.alignment[:2, 0]) < 1e-10  # one candidate: the temperature does not matter


def test_a_raised_number_of_candidates_keeps_the_quadrature_exact():
    eco = two_loglinear(12, 2)
    found = sweep(eco, {"p.sources.own.candidates": [2, 3000], "p.sources.own.temperature": [0.05, 4.0]})
    agrees(eco, found)


def test_every_kind_of_setting_moves():
    eco = pair("loglinear", 4, curators=False, best=False, candidates=(3,), num_feeds=(2, 2))
    for path in settings.paths(eco):
        if path.endswith(".candidates"):
            continue
        low, high = settings.bounds(eco, path)
        agrees(eco, sweep(eco, {path: [low + 0.3 * (min(high, 1.0) - low)]}))


def test_large_ecosystems_are_solved_one_by_one(monkeypatch):
    eco = two_loglinear(12, 2)
    dense = sweep(eco, {"p.curation": [0.2, 0.5]})
    monkeypatch.setattr(batch, "DENSE_LIMIT", 3)
    monkeypatch.setattr("crossfeed.dynamics.sweep.DENSE_LIMIT", 3)
    alone = sweep(eco, {"p.curation": [0.2, 0.5]}, what=["alignment", "influence"])
    assert torch.allclose(alone.theta, dense.theta, atol=1e-9)
    assert np.allclose(alone.influence, dense.influence, atol=1e-7)
    assert alone.verdicts == dense.verdicts
    assert np.isnan(sweep(eco, {"p.curation": [0.2, 0.5]}).influence).all()


def test_a_grid_is_solved_together(monkeypatch):
    """100 points of two log-linear models: some rounds a batch, not a solve a point."""
    calls = []
    inner = batch.round_map
    monkeypatch.setattr(batch, "round_map", lambda program, theta: calls.append(len(theta)) or inner(program, theta))
    found = sweep(two_loglinear(), {"p.curation": np.linspace(0, 0.9, 10), "q.cross_share": np.linspace(0, 1, 10)})
    assert found.results == ["converged"] * 100
    assert len(calls) < 60
    assert sum(calls) < 3000
    assert np.isfinite(found.influence).all()
    assert found.residual.max() <= 1e-12
    assert (found.radius < 1).all()
    agrees(two_loglinear(), found, [11, 47, 98])


# --- the pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_blocks_equal_the_linearisation(family):
    eco = pair(family, 5)
    program = compile_ecosystem(eco)
    other = program.settings.clone()
    other[program.slots["m0.ridge"]] += 0.3
    table = torch.stack([program.settings, other])
    theta = torch.stack([program.start, program.start + 0.05])
    found = blocks(program.with_settings(table), theta)
    for k in range(2):
        lin = linearise(program.with_settings(table[k]), theta[k])
        assert np.allclose(found.matrix[k], lin.matrix.toarray(), atol=1e-9)
        place = 0
        for group, h, d in zip(program.model_groups, lin.curvature, lin.diagonal, strict=True):
            for row, index in enumerate(group.theta_index):
                assert torch.allclose(found.curvature[k][index[:, None], index], h[row], atol=1e-9)
                assert torch.allclose(found.diagonal[k][index[:, None], index], d[row], atol=1e-9)
                place += len(index)
        assert place == program.num_params


@pytest.mark.parametrize("steps", [None, s.GradientSteps(count=4, size=0.3)], ids=["exact", "steps"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda o: o.kind)
def test_growth_of_a_disturbance_is_that_of_the_rounds(order, steps):
    eco = pair("loglinear", 6, order=order, steps=steps)
    program = compile_ecosystem(eco)
    point = solve(program).require()
    length = len(order.rounds) if isinstance(order, s.Cycle) else 1

    def cycle(theta):
        for number in range(length):
            theta = population_round(program, theta, eco.update, number)
        return theta

    step = 1e-5
    columns = [(cycle(point + step * e) - cycle(point - step * e)) / (2 * step) for e in torch.eye(len(point)).double()]
    measured = torch.linalg.eigvals(torch.stack(columns, 1)).abs().max() ** (1 / length)
    one = program.with_settings(program.settings[None])
    assert float(round_radius(one, blocks(one, point[None]), eco.update)) == pytest.approx(float(measured), abs=1e-6)


# --- where there is no answer ---------------------------------------------------------------------------------------


def looped(slope, real=0.0):
    sources = [
        s.Raw(name="own", producer="p", weight=1 - real, map=s.Affine(matrix=slope, shift=[1.0])),
        s.Real(name="web", data="web", weight=real),
        s.Curated(name="picked", producer="p", weight=0),
    ]
    return s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[0], cov=1)},
        rewards={"r": s.LinearReward(vector=[1])},
        models={"p": s.Model(family=s.GaussianMean(), reward="r", sources=sources)},
    )


def test_a_fixed_point_that_retraining_leaves_is_called_unstable():
    found = sweep(looped(-3.0), {"p.sources.web.weight": [0.0, 0.5, 0.9]})
    assert found.results == ["unstable", "unstable", "converged"]
    assert found.radius.tolist() == pytest.approx([3.0, 1.5, 0.3])
    assert found.alignment[:, 0].tolist() == pytest.approx([1 / 4, 0.5 / 2.5, 0.1 / 1.3])
    assert np.isnan(found.influence[:2]).all()
    assert found.verdicts[0] == [None]
    assert found.verdicts[2] == ["helps"]
    assert "A stable point at 1 point; a stable point that retraining moves away from at 2 points." in found.summary()


def test_points_without_a_stable_point_say_why():
    found = sweep(looped(1.0), {"p.sources.web.weight": [0.0, 0.5]})
    assert found.results == ["diverged", "converged"]
    assert np.isnan(found.alignment[0]).all()
    assert found.alignment[1, 0] == pytest.approx(1.0)
    assert "diverged at 1 point" in found.summary()


def test_a_batch_with_failing_rows_equals_each_alone():
    eco = looped(1.0, 0.5)
    program = compile_ecosystem(eco)
    rows = [settings.put(eco, "p.sources.web.weight", w) for w in (0.0, 0.2, 0.6)]
    table = torch.stack([compile_ecosystem(e).settings for e in rows])
    together = solve_batch(program, table, program.start)
    apart = [solve_batch(program, table[k : k + 1], program.start) for k in range(3)]
    assert together.results == [p.results[0] for p in apart] == ["diverged", "converged", "converged"]
    assert torch.allclose(together.theta, torch.cat([p.theta for p in apart]))


def test_a_row_that_cannot_be_factorised_does_not_stop_the_others():
    eco = looped(0.5, 0.5)
    program = compile_ecosystem(eco)
    family, slot = program.model_groups[0].family, program.slots["p.ridge"]
    inner = family.fit

    def fit(moments, ridge, start):
        if bool((ridge > 0.4).any()):
            raise torch.linalg.LinAlgError("singular")
        return inner(moments, ridge, start)

    family.fit = fit
    table = program.settings.expand(3, -1).clone()
    table[:, slot] = torch.tensor([0.0, 0.5, 0.1])
    found = solve_batch(program, table)
    assert found.results == ["converged", "non-finite", "converged"]
    assert found.residual[1] == math.inf


def test_own_data_picked_from_one_candidate_have_no_effect():
    """The push of real data and own outputs cancels at the stable point; what is left is rounding, not a verdict."""
    rng = np.random.default_rng(3)
    sources = [
        s.Real(data="d", weight=0.3),
        s.Real(data="e", weight=0.3),
        s.Curated(name="own", producer="p", weight=0.4, candidates=3),
    ]
    eco = s.Ecosystem(
        space=s.Outcomes(count=8),
        data={n: s.DistributionData(weights=rng.random(8) + 0.1) for n in "de"},
        rewards={"r": s.TableReward(values=rng.standard_normal(8))},
        models={"p": s.Model(family=s.LogLinear(features=rng.standard_normal((8, 3))), reward="r", sources=sources)},
    )
    found = sweep(eco, {"p.sources.own.candidates": [1, 2]})
    assert found.verdicts == [["no effect"], ["helps"]]
    agrees(eco, found)


def test_at_the_ends_of_the_range_shares_are_those_just_inside():
    """At λ = 0 no curated data say how more would be shared; the grid does, and the derivative is continuous."""
    eco = two_loglinear(12, 2)
    found = sweep(eco, {"p.curation": [0.0, 1e-6], "p.cross_share": [0.0, 0.5, 1.0]})
    slopes = found.influence[:, 0, 0].reshape(2, 3)
    assert np.allclose(slopes[0], slopes[1], rtol=1e-4)
    assert np.ptp(slopes[0]) > 1e-3
    ends = sweep(eco, {"p.curation": [0.0, 1.0]}).influence[:, 0, 0]
    assert np.isfinite(ends).all()


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ({}, "sweep: found nothing to vary; give settings and their values"),
        ({"p.curation": []}, "p.curation: found no values; need at least one"),
        ({"p.curation": [0.2, 1.5]}, r"p.curation: found 1.5; need a number from 0 to 1"),
        ({"p.colour": [0.2]}, "p.colour.*found no such setting"),
        (
            {"p.curation": [0.2], "p.sources.real.weight": [0.5]},
            "p.curation: found 0.2, but p.sources.real.weight moves it",
        ),
    ],
)
def test_grids_that_cannot_be(grid, text):
    with pytest.raises(SettingError, match=text):
        sweep(two_loglinear(12, 2), grid)


def test_unknown_quantities_are_refused():
    with pytest.raises(SettingError, match="what: found 'speed'; need some of alignment, influence"):
        sweep(two_loglinear(12, 2), {"p.curation": [0.2]}, what=["speed"])
    found = sweep(two_loglinear(12, 2), {"p.curation": [0.2]}, what=["alignment"])
    assert np.isnan(found.influence).all()
    assert np.isfinite(found.alignment).all()


# --- what it writes -------------------------------------------------------------------------------------------------


def test_saved_files_hold_the_sweep(tmp_path):
    calls = []
    found = sweep(
        two_loglinear(12, 2),
        {"p.curation": [0.1, 0.5, 0.9], "q.cross_share": [0.0, 1.0]},
        progress=lambda *c: calls.append(c),
    )
    assert calls[-1] == ("influence", 6, 6)
    assert ("stable points", 6, 6) in calls
    found.save(tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["sweep.html", "sweep.json", "sweep.parquet"]
    rows = pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist()
    assert len(rows) == 12
    third = next(r for r in rows if (r["p.curation"], r["q.cross_share"], r["model"]) == (0.5, 1.0, "q"))
    assert third["alignment"] == found.alignment[3, 1]
    assert third["self_influence"] == third["influence of q"] == found.influence[3, 1, 1]
    assert third["influence of p"] == found.influence[3, 1, 0]
    assert third["verdict"] == found.verdicts[3][1]
    assert third["result"] == "converged"
    facts = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert facts["vary"] == {"p.curation": [0.1, 0.5, 0.9], "q.cross_share": [0.0, 1.0]}
    assert facts["results"] == {"converged": 6}
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "<script" not in page
    assert page.count("<figure>") == 4


def test_charts_and_words():
    eco = two_loglinear(12, 2)
    line = sweep(eco, {"p.curation": np.linspace(0.1, 0.9, 5)})
    assert line.chart("influence").to_dict()["description"].startswith("What more curation of a model does to itself")
    assert "p.curation (5 values from 0.1 to 0.9)" in line.summary()
    assert "A stable point everywhere." in line.summary()
    assert "of 5 points" in str(line)
    assert "<img" in line._repr_html_()
    area = sweep(eco, {"p.curation": [0.1, 0.5], "q.cross_share": [0.0, 1.0]})
    assert "backfires at 2 of 4 points" in area.chart("verdict:p").to_dict()["description"]
    with pytest.raises(NotAvailableError, match="chart 'x': this sweep has nothing to draw for it; it has verdict:p"):
        area.chart("x")
    cube = sweep(eco, {"p.curation": [0.1, 0.5], "q.cross_share": [0.0, 1.0], "p.ridge": [0.0, 0.1]})
    with pytest.raises(NotAvailableError, match="it draws one or two settings with finite values"):
        cube.chart("alignment")
    picks = sweep(eco, {"p.sources.own.candidates": [1, math.inf]})
    assert "2 values from 1 to ∞" in picks.summary()
    assert picks.table().num_rows == 4
