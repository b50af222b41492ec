"""The loop as users run it: what is recorded, how it ends, how it resumes, what it writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crossfeed.describe import schema as s
from crossfeed.dynamics import run as running
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.measures import Measures, wasserstein
from crossfeed.dynamics.rounds import State, population_round
from crossfeed.dynamics.run import run
from crossfeed.dynamics.stable import solve
from crossfeed.dynamics.state import load_state, save_state
from crossfeed.errors import DataError, NotAvailableError, SettingError
from ecosystems import FAMILIES, random_ecosystem

ORDERS = [s.Simultaneous(), s.Cycle(rounds=[[["m0"], ["m1", "m2"]], [["m1"]]]), s.RandomOrder(probability=0.6)]


def small(family, seed=1, **options):
    fields = {"num_feeds": (1, 3), "candidates": (1, 2), "rewards": ("linear",), "stages": 1, "best": False}
    return random_ecosystem(family, 3, seed, **{**fields, **options})


def follower(slope, curvature=0.0, start=1.0):
    """One Gaussian mean that trains on ``slope`` times its own outputs, with real data at 0 of no weight."""
    return s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[0], cov=4)},
        rewards={"r": s.QuadraticReward(matrix=-curvature, vector=[1])},
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="r",
                sources=[
                    s.Raw(producer="p", weight=1, map=s.Affine(matrix=slope)),
                    s.Real(data="web", weight=0),
                ],
                start=[start],
            )
        },
    )


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_the_record_of_a_population_is_what_rounds_give():
    eco = small("mixed_finite", order=ORDERS[1])
    found = run(eco, rounds=7)
    program = found.program
    theta = [program.start]
    for t in range(7):
        theta.append(population_round(program, theta[-1], eco.update, t))
    assert found.rounds.tolist() == list(range(8))
    for t, now in enumerate(theta):
        assert np.allclose(found.alignment[t, 0], program.alignment(now), atol=1e-12)
        assert np.allclose(found.entropy[t, 0], program.entropy(now), atol=1e-12)
    for t in range(1, 8):
        for i in range(3):
            old, new = theta[t - 1][program.span(i)], theta[t][program.span(i)]
            if float(old.norm()) > 1e-9:
                assert found.delta[t, 0, i] == pytest.approx(float((new - old).norm() / old.norm()), abs=1e-10)
    assert found.delta[2, 0, 2] == 0  # stale in the second round
    assert np.isnan(found.delta[0]).all()
    assert torch.allclose(found.state.theta[0], theta[-1], atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_distance_and_spread_by_family(family):
    eco = small(family, 3, num_without_real=1)
    program = compile_ecosystem(eco)
    measures = Measures(program)
    theta = program.start + 0.1
    distance, spread = measures.distance(theta), measures.spread(theta)
    own, shares = [], []
    for model in list(eco.models.values())[:2]:
        real = [x for x in model.sources if isinstance(x, s.Real)]
        total = sum(x.weight for x in real)
        shares.append([x.weight / total for x in real])
        own.append([eco.data[x.data] for x in real])
    if "finite" in family or family in ("categorical", "loglinear"):
        families = {int(i): (g.family, g.theta_index[k]) for g in program.model_groups for k, i in enumerate(g.members)}
        for i in range(2):
            p = sum(w * d.weights / d.weights.sum() for w, d in zip(shares[i], own[i], strict=True))
            row = {int(m): k for g in program.model_groups for k, m in enumerate(g.members)}[i]
            found, at = families[i]
            q = found.take(torch.tensor([row])).log_probs(theta[at][None])[0].exp().numpy()
            assert float(distance[i]) == pytest.approx(0.5 * np.abs(q - p).sum(), abs=1e-12)
            y = eco.space.coordinates
            assert float(spread[i]) == pytest.approx(math.sqrt((q @ (y - q @ y) ** 2).sum()), abs=1e-10)
        assert "total variation" in measures.distance_name
    elif family == "linear_gaussian":
        assert torch.isnan(spread).all()
        assert float(measures.distance(program.start)[:2].max()) < 1.0
        assert "least-squares" in measures.distance_name
    else:
        at_start = measures.distance(program.start)
        full = [
            i for i, m in enumerate(eco.models.values()) if isinstance(m.family, s.Gaussian) and i < 2 and not m.ridge
        ]
        assert all(float(at_start[i]) < 1e-6 for i in full)  # the start is fitted to those very data
        assert [bool(torch.isnan(x)) for x in spread] == [
            not isinstance(m.family, s.Gaussian) for m in eco.models.values()
        ]
        assert "Wasserstein" in measures.distance_name
    if "mixed" not in family:
        assert bool(torch.isfinite(distance).all())  # the model without real data is held against the others'


def test_wasserstein_against_its_one_dimensional_formula():
    a, b = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[[4.0]], [[0.0]]]).double()
    found = wasserstein(a, b, torch.zeros(1).double(), torch.ones(1, 1).double())
    assert torch.allclose(found, torch.tensor([math.sqrt(1 + (2 - 1) ** 2), 1.0]).double())


def test_seeds_differ_and_a_part_of_them_is_the_same_run(monkeypatch):
    """Up to rounding: with fewer samples some outcome may have none, and rounding then moves NumPy's stream."""
    eco = small("categorical", 4)
    found = run(eco, rounds=6, samples=500, seeds=7)
    fewer = run(eco, rounds=6, samples=500, seeds=3)
    assert np.allclose(found.alignment[:, :3], fewer.alignment, atol=1e-12)
    assert len({tuple(row) for row in found.alignment[-1].round(9).tolist()}) == 7
    monkeypatch.setattr(running, "seeds_at_once", lambda program, samples: 2)
    chunked = run(eco, rounds=6, samples=500, seeds=7)
    assert np.allclose(chunked.alignment, found.alignment, atol=1e-12)
    assert torch.allclose(chunked.state.theta, found.state.theta, atol=1e-12)
    other = run(eco.model_copy(update={"seed": eco.seed + 1}), rounds=6, samples=500, seeds=7)
    assert not np.isclose(other.alignment[-1], found.alignment[-1]).any()


def test_without_history_only_the_ends_are_kept():
    eco = small("gaussian_mean", 5)
    whole, ends = run(eco, rounds=9), run(eco, rounds=9, history=False)
    assert ends.rounds.tolist() == [0, 9]
    assert np.array_equal(ends.alignment, whole.alignment[[0, 9]])


def test_defaults_come_from_the_spec():
    eco = small("gaussian_mean", 5).model_copy(update={"audit": s.AuditOptions(rounds=4)})
    assert run(eco).rounds[-1] == 4
    eco = eco.model_copy(update={"samples": s.Samples(regime="accumulate")})
    assert run(eco).regime == run(eco, samples=20).regime == "accumulate"
    assert run(eco, samples=20, regime="replace").regime == "replace"
    calls = []
    run(eco, samples=20, seeds=2, progress=lambda *call: calls.append(call))
    assert calls[0] == ("retraining", 0, 8)
    assert calls[-1] == ("retraining", 8, 8)


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "curvature", "start", "result"),
    [(0.5, 0, 1.0, "converged"), (0.97, 0, 1.0, "budget"), (2.0, 0, 1.0, "diverged"), (-1.0, 0, 1.0, "oscillating")],
)
def test_a_population_ends_with_its_reason(slope, curvature, start, result):
    found = run(follower(slope, curvature, start), rounds=60)
    assert found.results == [result]
    if result == "diverged":
        assert 20 < found.last[0] < 40
        assert found.rounds[-1] == found.last[0]
        assert "without bound" in found.summary()
    else:
        assert found.residual == pytest.approx(abs(slope - 1) * abs(slope) ** 60 / (1 + abs(slope) ** 60), abs=1e-12)
        assert found.last == [60]


def test_a_run_settles_where_the_solver_does():
    for family in ("categorical", "gaussian_mean"):
        eco = small(family, 6, real=0.6)
        found = run(eco, rounds=200)
        assert found.results == ["converged"]
        assert found.residual <= 1e-9
        point = solve(found.program)
        assert torch.allclose(found.state.theta[0], point.require(), atol=1e-8)


def test_a_seed_whose_numbers_end_leaves_the_others_alone():
    """A fit that fails above 0.6: seeds get there at different times, or never."""
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        rewards={"r": s.LinearReward(vector=[1])},
        models={
            "p": s.Model(family=s.Gaussian(), reward="r", sources=[s.Raw(producer="p", weight=1)], start=[0.0, 0.0])
        },
    )
    program = compile_ecosystem(eco)
    inner = program.model_groups[0].family.fit

    def fit(moments, ridge, start):
        theta = inner(moments, ridge, start)
        return torch.where(theta[..., :1] > 0.6, torch.nan, theta)

    program.model_groups[0].family.fit = fit
    found = run(eco, rounds=12, samples=30, seeds=12, program=program)
    ended = [k for k, r in enumerate(found.results) if r == "non-finite"]
    assert 0 < len(ended) < 12
    assert set(found.results) == {"non-finite", "budget"}
    for k in range(12):
        last = found.last[k]
        assert np.isfinite(found.alignment[: last - (k in ended) + 1, k]).all()
        assert np.isnan(found.alignment[last + 1 :, k]).all()
    assert bool(torch.isfinite(found.state.theta[[k for k in range(12) if k not in ended]]).all())
    assert f"{len(ended)} of 12 seeds produced numbers that are not finite" in found.summary()


def test_a_failing_factorisation_ends_its_seed_only():
    eco = small("gaussian_mean", 5, ridge=0.0)
    program = compile_ecosystem(eco)
    family = program.model_groups[0].family
    inner = family.fit
    limit = float(run(eco, rounds=10, samples=6, seeds=10).state.theta[:, 0].sort()[0][7:9].mean())

    def fit(moments, ridge, start):
        if bool((moments[..., 0, 0] > limit).any()):
            raise torch.linalg.LinAlgError("singular")
        return inner(moments, ridge, start)

    family.fit = fit
    found = run(eco, rounds=10, samples=6, seeds=10, program=program)
    assert set(found.results) == {"non-finite", "budget"}
    alone = [k for k, r in enumerate(found.results) if r == "budget"]
    assert np.isfinite(found.alignment[-1, alone]).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rounds": 0}, "rounds: found 0; need a whole number, 1 or more"),
        ({"rounds": 2.5}, "rounds: found 2.5"),
        ({"seeds": 0}, "seeds: found 0; need a whole number"),
        ({"seeds": 3}, "seeds: found 3 with whole populations, where nothing is random; need 1, or finite `samples`"),
        ({"samples": 0.5}, "samples: found 0.5; need a whole number, 1 or more, or inf"),
        ({"samples": math.nan}, "samples: found nan"),
        ({"samples": 10, "regime": "forget"}, "regime: found 'forget'; need replace, accumulate or subsample"),
        ({"samples": 10, "seeds": 2, "resume": State(torch.zeros(1, 3))}, "resume: found a state of 1 × 3 parameters"),
        (
            {"rounds": 5, "resume": State(torch.zeros(1, 1), 5)},
            "resume: found a state after round 5; need `rounds` above",
        ),
    ],
)
def test_arguments_out_of_range(options, text):
    with pytest.raises(SettingError, match=text.replace("(", r"\(")):
        run(follower(0.5), **options)


def test_infinite_samples_are_a_population():
    assert run(follower(0.5), rounds=3, samples=math.inf).samples is None


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: o.kind)
@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
@pytest.mark.parametrize("family", ["mixed_finite", "mixed_vectors", "linear_gaussian"])
def test_resumed_equals_uninterrupted_bit_for_bit(family, regime, order, tmp_path):
    eco = small(family, 7, order=order)
    options = {"samples": 12, "seeds": 3, "regime": regime}
    whole = run(eco, rounds=9, **options)
    half = run(eco, rounds=4, **options)
    save_state(half.state, tmp_path / "state.npz")
    for state in (half.state, load_state(tmp_path)):
        rest = run(eco, rounds=9, resume=state, **options)
        assert torch.equal(rest.state.theta, whole.state.theta)
        assert rest.rounds.tolist() == [4, 5, 6, 7, 8, 9]
        assert np.array_equal(rest.alignment, whole.alignment[4:])
        assert rest.state.round == 9
        if whole.state.pool is not None:
            assert torch.equal(rest.state.pool.sizes, whole.state.pool.sizes)
            assert all(torch.equal(a, b) for a, b in zip(rest.state.pool.kept, whole.state.pool.kept, strict=True))


@pytest.mark.parametrize("regime", ["replace", "accumulate"])
def test_a_population_resumes_too(regime):
    eco = small("loglinear", 8, order=ORDERS[1], steps=s.GradientSteps(count=3, size=0.2))
    whole = run(eco, rounds=9, regime=regime)
    rest = run(eco, rounds=9, regime=regime, resume=run(eco, rounds=5, regime=regime).state)
    assert torch.equal(rest.state.theta, whole.state.theta)


def test_ended_seeds_stay_ended_when_resumed():
    model = s.Model(family=s.Categorical(), reward="r", sources=[s.Raw(producer="p", weight=1)], start=[0.0, 0.0])
    eco = s.Ecosystem(space=s.Outcomes(count=3), rewards={"r": s.TableReward(values=[0, 1, 2])}, models={"p": model})
    whole = run(eco, rounds=30, samples=6, seeds=10)
    half = run(eco, rounds=6, samples=6, seeds=10)
    assert 0 < half.results.count("collapsed") < 10
    rest = run(eco, rounds=30, samples=6, seeds=10, resume=half.state)
    assert torch.equal(rest.state.theta, whole.state.theta)
    assert rest.results == whole.results


def test_a_state_that_is_none(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_state(tmp_path / "state.npz")
    for text in (b"", b"not a zip"):
        (tmp_path / "state.npz").write_bytes(text)
        with pytest.raises(DataError, match=r"is no state of a run; give the state\.npz that a run wrote"):
            load_state(tmp_path)
    np.savez(tmp_path / "state.npz", other=np.zeros(2))
    with pytest.raises(DataError, match="is no state of a run"):
        load_state(tmp_path)


# --- what it writes -------------------------------------------------------------------------------------------------


def test_saved_files_hold_the_run(tmp_path):
    eco = small("mixed_finite", 9)
    model = eco.models["m0"]
    twice = [s.Evaluation(name="own"), s.Evaluation(name="other <b>", reward="r1")]
    eco = eco.model_copy(update={"models": {**eco.models, "m0": model.model_copy(update={"evaluate": twice})}})
    found = run(eco, rounds=5, samples=40, seeds=3)
    assert found.save(tmp_path / "deep" / "out") == tmp_path / "deep" / "out"
    files = sorted(f.name for f in (tmp_path / "deep" / "out").iterdir())
    assert files == ["metrics.parquet", "run.html", "run.json", "state.npz"]
    table = pq.read_table(tmp_path / "deep" / "out" / "metrics.parquet")
    assert table.column_names == ["round", "seed", "model", "metric", "domain", "value"]
    rows = table.to_pylist()
    kept = {(r["round"], r["seed"], r["model"], r["metric"], r["domain"]): r["value"] for r in rows}
    assert len(kept) == len(rows)
    assert kept[5, 2, "m0", "alignment", "other <b>"] == found.alignment[5, 2, 1]
    assert kept[5, 2, "m1", "alignment", "own"] == found.alignment[5, 2, 2]
    assert kept[0, 1, "m2", "entropy", None] == found.entropy[0, 1, 2]
    assert kept[3, 1, "m2", "distance_to_data", None] == found.distance[3, 1, 2]
    assert {r["metric"] for r in rows} == {"alignment", "entropy", "spread", "distance_to_data", "delta"}
    assert torch.equal(load_state(tmp_path / "deep" / "out").theta, found.state.theta)
    facts = json.loads((tmp_path / "deep" / "out" / "run.json").read_text())
    assert facts["format"] == "crossfeed-run"
    assert facts["seeds"] == 3
    assert facts["results"][1]["result"] == "budget"
    assert facts["spec"]["models"]["m0"]["reward"] == model.reward
    assert len(facts["spec_sha256"]) == 64
    page = (tmp_path / "deep" / "out" / "run.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "other <b>" not in page
    assert page.count("<figure>") >= 5


def test_charts_and_words():
    found = run(small("mixed_finite", 9), rounds=5, samples=40, seeds=12)
    spec = found.chart("alignment").to_dict()
    assert "middle 80 %" in json.dumps(spec, ensure_ascii=False)
    with pytest.raises(
        NotAvailableError, match="chart 'colour': this run has nothing to draw for it; it has alignment"
    ):
        found.chart("colour")
    text = found.summary()
    assert "3 models, 5 rounds, 40 new samples a model and round, 12 seeds." in text
    assert "12 of 12 seeds did all rounds (round 5)." in text
    assert "±" in text
    assert str(found) == text
    assert "<img" in found._repr_html_()
    single = run(follower(0.5), rounds=60)
    assert "The loop settled at a stable point (round 60" in single.summary()


def test_a_big_ecosystem_lists_what_moves_most():
    found = run(random_ecosystem("gaussian_mean", 40, 1, rewards=("linear",), stages=1, best=False), rounds=3)
    assert "28 models that move less are not listed." in found.summary()
    assert "34 models that move less are not drawn" in found.chart("alignment").to_dict()["description"]
