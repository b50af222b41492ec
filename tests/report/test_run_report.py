"""The page and the summary of a run: numbers as in the record, every kind of outcome, unfinished and damaged runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from crossfeed.errors import DataError
from crossfeed.record.folder import Metric, RunFolder
from crossfeed.report import run_data, run_people, run_words
from crossfeed.report.run_report import plain_summary, run_page, save_page
from crossfeed.report.run_samples import said
from report.fake_runs import made, records, spec, written
from report.fakes import fake
from report.test_page import Outline, numbers_read

LIMIT = 3_000_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    home = tmp_path_factory.mktemp("runs")
    return {
        "vectors": made("vectors", 2, home / "vectors"),
        "images": made("images", 2, home / "images", rounds=4),
        "text": made("text", 2, home / "text"),
    }


@pytest.fixture(scope="module")
def pages(runs: dict[str, RunFolder]) -> dict[str, Outline]:
    return {kind: Outline(run_page(run)) for kind, run in runs.items()}


def metric(run: RunFolder, t: int, model: str, name: str, domain: str | None) -> float:
    rows = run.metrics().to_pylist()
    return next(
        r["value"] for r in rows if (r["round"], r["model"], r["metric"], r["domain"]) == (t, model, name, domain)
    )


@pytest.mark.parametrize("kind", ["vectors", "images", "text"])
def test_numbers_shown_are_those_of_the_record(
    runs: dict[str, RunFolder], pages: dict[str, Outline], kind: str
) -> None:
    run, page = runs[kind], pages[kind]
    for of, t in (("first", 0), ("last", run.rounds[-1])):
        shown = page.values(of)
        assert len(shown) == (4 if kind == "text" else 2)
        for attributes, value in shown:
            assert value == metric(run, t, str(attributes["data-model"]), "alignment", attributes["data-domain"])
    for attributes, text in page.numbers:
        assert numbers_read(text) == pytest.approx(float(attributes["data-value"] or ""), rel=6e-3, abs=1e-12)


def test_curves_hold_every_round(runs: dict[str, RunFolder], pages: dict[str, Outline]) -> None:
    charts = json.loads(pages["text"].data)["charts"]
    rows = [r for r in charts["alignment-1"]["data"]["values"] if r["model"] == "q"]
    assert [r["round"] for r in rows] == list(range(11))
    assert [r["value"] for r in rows] == pytest.approx(
        [metric(runs["text"], t, "q", "alignment", "on p") for t in range(11)], rel=1e-4
    )
    assert all(r["low"] < r["value"] < r["high"] for r in rows)
    assert {r["dash"] for r in charts["training-1"]["data"]["values"]} == {"last steps", "first steps"}


def test_own_and_cross_domain_are_told_apart(runs: dict[str, RunFolder], pages: dict[str, Outline]) -> None:
    facts = run_data.read(runs["text"])
    assert [(e.model, e.name, e.cross, e.whose) for e in facts.evaluations] == [
        ("p", "own", False, ()),
        ("p", "on q", True, ("q",)),
        ("q", "own", False, ()),
        ("q", "on p", True, ("p",)),
    ]
    page = run_page(runs["text"])
    assert "Alignment on its own inputs" in page
    assert "Alignment on other inputs than its own" in page
    assert "on q’s inputs" in page


def test_differences_are_paired_where_the_record_allows(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    facts = run_data.read(runs["vectors"])
    found = run_words.change(facts, facts.evaluations[0])
    assert found is not None
    assert found.paired
    ends = [runs["vectors"].shown(t, "p").column("reward").to_pylist() for t in (0, 10)]
    gaps = [b - a for a, b in zip(*ends, strict=True)]
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps))
    assert found.difference == pytest.approx(mean)
    assert found.half == pytest.approx(2.0227 * error, rel=1e-4)  # Student's t, 39 degrees of freedom

    partly = made("vectors", 2, tmp_path, rounds=3, shown=10)  # rewards of 10 of 40 outputs were kept
    facts = run_data.read(partly)
    found = run_words.change(facts, facts.evaluations[0])
    assert found is not None
    assert not found.paired
    assert found.half == pytest.approx(2.0227 * math.sqrt(2 * 0.05**2 / 40), rel=1e-4)
    assert "taken as independent" in run_page(partly)


def test_answers_to_one_text_count_once(tmp_path: Path) -> None:
    run = made("text", 2, tmp_path, rounds=1)  # 40 answers to 12 inputs
    facts = run_data.read(run)
    found = run_words.change(facts, facts.evaluations[0])
    rows = [[r for r in run.shown(t, "p").to_pylist() if r["domain"] == "own"] for t in (0, 1)]
    off: dict[int, float] = {}
    for a, b in zip(*rows, strict=True):
        assert a["prompt_id"] == b["prompt_id"]
        off[a["prompt_id"]] = off.get(a["prompt_id"], 0.0) + b["reward"] - a["reward"] - found.difference  # type: ignore[union-attr]
    assert len(off) == 12
    error = math.sqrt(12 / 11 * sum(u * u for u in off.values())) / 40
    assert found is not None
    assert found.half == pytest.approx(2.20099 * error, rel=1e-4)  # Student's t, 11 degrees of freedom


def test_all_rewards_may_stand_in_the_notes_of_a_round(tmp_path: Path) -> None:
    from crossfeed.describe.schema import Ecosystem

    eco = Ecosystem(**spec("vectors", 1, tmp_path))
    rounds = records(eco, 1, shown=10)
    level = [next(m.value for m in r.metrics if m.metric == "alignment") for r in rounds]
    for record, value in zip(rounds, level, strict=True):
        rewards = [value - 1, value + 1] * 20
        record.info["evaluations"] = {"p": {"own": {"prompts": [0] * 40, "rewards": rewards}}}
    facts = run_data.read(written(eco, rounds, tmp_path / "run", None))
    found = run_words.change(facts, facts.evaluations[0])
    assert found is not None
    assert found.paired
    assert found.half == pytest.approx(0, abs=1e-12)


def test_words_follow_the_interval() -> None:
    point = run_data.Point(0, 1.0, 0.1)
    changes = [
        run_words.Change(point, point, d, h, False) for d, h in ((0.2, 0.1), (-0.2, 0.1), (0.05, 0.1), (0.2, None))
    ]
    assert [c.verb for c in changes] == ["rose", "fell", "did not change measurably", "rose"]
    assert run_words.interval(changes[0]) == "+0.20; 95 % interval 0.10 to 0.30"


def test_picks_are_counted(runs: dict[str, RunFolder], pages: dict[str, Outline]) -> None:
    run = runs["vectors"]
    pool = run.pool(10, "p")
    mine = [i for i, source in enumerate(pool.source) if source == "curated_p"]
    offered = sum(sum(pool.rewards[i]) / 4 for i in mine) / len(mine)
    picked = sum(pool.rewards[i][pool.picked[i]] for i in mine) / len(mine)
    best = sum(pool.picked[i] == max(range(4), key=pool.rewards[i].__getitem__) for i in mine) / len(mine)
    item = next(p for p in run_data.read(run).curation if (p.model, p.source, p.round) == ("p", "curated_p", 10))
    assert (item.offered, item.picked, item.ranks[0]) == pytest.approx((offered, picked, best))
    assert sum(item.ranks) == pytest.approx(1)
    assert item.pickers == {"p_people": pytest.approx(1)}
    assert offered in [pytest.approx(v) for _, v in pages["vectors"].values("offered")]


def test_lineage_shares_sum_to_one(runs: dict[str, RunFolder], pages: dict[str, Outline]) -> None:
    charts = json.loads(pages["vectors"].data)["charts"]
    for t in range(1, 11):
        rows = [r for r in charts["lineage-0"]["data"]["values"] if r["round"] == t]
        assert sum(r["share"] for r in rows) == pytest.approx(1, abs=1e-3)
    assert [v for _, v in pages["vectors"].values("real")] == pytest.approx([0.5, 0.5])


def test_every_fact_of_the_making_is_told(runs: dict[str, RunFolder]) -> None:
    page, about = run_page(runs["text"]), runs["text"].about
    for part in (
        about["command"],
        about["spec_sha256"],
        about["libraries"]["torch"],
        f"{about['hardware']['cores']} cores",
    ):
        assert part in page
    for part in ("crossfeed run run --resume", "RunFolder.open(&#x27;run&#x27;)", "Scale “smoke”", "one seed (0)"):
        assert part in page


def test_pictures_stand_in_rows_of_rounds(pages: dict[str, Outline]) -> None:
    pictures = [a for tag, a in pages["images"].tags if tag == "img"]
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for a in pictures)
    real = [a for a in pictures if (a["alt"] or "").startswith("real data: ")]
    made_up = [a for a in pictures if a not in real]
    assert 0 < len(real) <= 2 * 10
    assert pictures[0] is real[0]
    assert len(made_up) == 2 * 5 * 10
    assert re.fullmatch(r"p, start: airplane, reward −?[\d.]+", made_up[0]["alt"] or "")
    assert "round 4: truck" in (made_up[49]["alt"] or "")


def test_answers_are_cut_and_folded() -> None:
    assert said("short") == '<p class="said" dir="auto">short</p>'
    long = said("word " * 2000)
    assert "10,000 characters; the first 4,000" in long
    assert len(long) < 5000
    assert "2,000 characters</summary>" in said("ab" * 1000)
    assert "the record has them" in said("ab" * 1000, 0)


@pytest.mark.parametrize("dim", [1, 3])
def test_vectors_of_any_dimension(tmp_path: Path, dim: int) -> None:
    run = made("vectors", 1, tmp_path, rounds=2, more={"dim": dim})
    page = run_page(run)
    assert "cloud0-2" in page
    assert ("two are drawn along which real data vary most" in page) == (dim == 3)


def test_no_rounds_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    run = made("vectors", 1, tmp_path, rounds=-1, result=None)
    with pytest.raises(DataError, match=r"found no finished round; need at least the start .* --resume"):
        run_page(run)
    with pytest.raises(DataError, match="found no finished round"):
        plain_summary(run)


def test_start_alone(tmp_path: Path) -> None:
    run = made("vectors", 2, tmp_path, rounds=0, result=None)
    page = run_page(run)
    assert "Only the start is recorded" in page
    assert "0 of 10 rounds are finished" in page
    assert "Only the start is recorded" in plain_summary(run)


def test_one_round_of_a_running_run(tmp_path: Path) -> None:
    run = made("text", 2, tmp_path, rounds=1, result=None)
    assert "It was stopped: 1 of 10 rounds are finished" in run_page(run)
    with run.writing():
        assert "It is still running: 1 of 10 rounds are finished" in run_page(RunFolder.open(run.path))


def test_collapse_and_divergence_come_first(tmp_path: Path) -> None:
    collapsed = made("vectors", 2, tmp_path / "c", rounds=3, result="collapsed", reason="p and q make one output")
    page = run_page(collapsed)
    assert "It ended early, after round 3, because it collapsed: p and q make one output." in page
    assert "the models collapsed onto few outputs" in page
    diverged = made("vectors", 2, tmp_path / "d", rounds=3, result="diverged", reason="the loss of p is not finite")
    assert "then the run diverged" in plain_summary(diverged)
    failed = made("vectors", 2, tmp_path / "f", rounds=3, result="failed", reason="rewards are not finite")
    assert "It stopped with an error: rewards are not finite. 3 of 10 rounds" in plain_summary(failed)


def test_metrics_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    from crossfeed.describe.schema import Ecosystem

    eco = Ecosystem(**spec("vectors", 1, tmp_path))
    rounds = records(eco, 2)
    rounds[2].metrics = [Metric(m.model, m.metric, m.domain, math.nan, None) for m in rounds[2].metrics]
    run = written(eco, rounds, tmp_path / "run", "diverged", "the loss is not finite")
    page = run_page(run)
    assert "NaN" not in Outline(page).data
    assert "then the run diverged" in page


@pytest.mark.parametrize("kind", ["vectors", "images", "text"])
def test_twelve_models(tmp_path: Path, kind: str) -> None:
    run = made(kind, 12, tmp_path, rounds=1, candidates=False)
    page = run_page(run)
    assert len(page) < LIMIT
    outline = Outline(page)
    shown = {a["data-model"] for a, _ in outline.values("first")}
    assert len(shown) == 12
    assert len(plain_summary(run).splitlines()) < 40


def test_missing_candidates_leave_the_rewards(tmp_path: Path) -> None:
    run = made("text", 2, tmp_path, rounds=2, candidates=False)
    assert run.pool(2, "p").candidates is None
    assert "What people picked" in run_page(run)


def test_damage_is_named_and_the_rest_shown(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    shutil.copytree(runs["vectors"].path, tmp_path / "run")
    victim = next((tmp_path / "run" / "rounds" / "0004").glob("samples-q*"))
    victim.write_bytes(victim.read_bytes()[:-7])
    page = run_page(RunFolder.open(tmp_path / "run"))
    assert "Part of the record is damaged and was left out" in page
    assert victim.name in page
    assert "Alignment, round by round" in page


def _audit(run: RunFolder, **changes: Any) -> dict[str, Any]:
    from crossfeed.report.audit import digest

    return {**fake(2), "spec_sha256": digest(run.eco), **changes}


def test_prediction_stands_beside_what_happened(runs: dict[str, RunFolder]) -> None:
    run = runs["vectors"]
    up, down = [0.1, 0.2, 0.3], [0.4, 0.3, 0.2]
    trajectory = {"rounds": [0, 1, 2], "models": ["p", "q"], "alignment": [up, up], "delta": [], "entropy": []}
    page = run_page(run, _audit(run, trajectory=trajectory))
    assert "Of 2 models with a measurable change, the audit foresaw the direction of 1." in page
    assert "another spec" not in page
    outline = Outline(page)
    assert [v for _, v in outline.values("foreseen")] == pytest.approx([0.2, 0.2])
    both = run_page(run, _audit(run, trajectory={**trajectory, "alignment": [up, down]}))
    assert "foresaw the direction of 2." in both
    assert "The audit is of another spec" in run_page(run, _audit(run, spec_sha256="0" * 64))
    assert "What the audit predicts" not in run_page(run)


def test_audit_of_other_models_says_so(runs: dict[str, RunFolder]) -> None:
    assert "no model of this run" in run_page(runs["vectors"], fake(12))


def test_page_is_complete_in_itself(pages: dict[str, Outline]) -> None:
    for page in pages.values():
        for tag, attributes in page.tags:
            for name in ("src", "href", "action", "srcset", "data"):
                value = attributes.get(name)
                assert value is None or value.startswith(("data:image/", "#")), (tag, value)
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))
        places = {(i or "").removeprefix("chart-") for i in ids if (i or "").startswith("chart-")}
        assert places == set(json.loads(page.data)["charts"])


def test_page_is_small(runs: dict[str, RunFolder]) -> None:
    assert all(len(run_page(run).encode()) < LIMIT for run in runs.values())


def test_page_is_saved_into_the_folder(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    run = runs["text"]
    assert save_page(run) == run.path / "report.html"
    assert save_page(run, tmp_path / "x.html").read_text(encoding="utf-8") == run_page(run)
    assert run.verify() == []


def test_summary_says_it_all(runs: dict[str, RunFolder]) -> None:
    lines = plain_summary(runs["text"]).splitlines()
    assert lines[0] == "a summariser and a paraphraser"
    assert lines[1].startswith("Over 10 rounds p became more aligned and q became less aligned")
    text = "\n".join(lines)
    for part in ("q’s inputs", "It did all 10 rounds", "diversity left", "one run, one seed", "crossfeed report "):
        assert part in text
    assert re.search(r"p +its own inputs +0\.\d+ +0\.\d+ +\+0\.\d+ ± 0\.\d+ +rose", text)


def _one(folder: Path, change: Any) -> dict[str, Any]:
    """The charts of a run of one flow, ten rounds, whose records were changed."""
    from crossfeed.describe.schema import Ecosystem

    eco = Ecosystem(**spec("vectors", 1, folder))
    rounds = records(eco, 10)
    for record in rounds:
        record.metrics = [change(record.round, m) for m in record.metrics]
    return dict(json.loads(Outline(run_page(written(eco, rounds, folder / "run", None))).data)["charts"])


def test_a_band_ends_where_no_error_is_known(tmp_path: Path) -> None:
    errors = {0: 0.1, 1: 0.1, 2: None, 3: 0.0, 4: 0.1, 5: None, 6: 0.1, 7: None, 8: None, 9: None, 10: None}

    def change(t: int, m: Metric) -> Metric:
        return Metric("p", m.metric, None, m.value, errors[t]) if m.metric == "distance_to_data" else m

    layers = _one(tmp_path, change)["outputs-1"]["layer"]
    shown = [[r["round"] for r in layer["data"]["values"]] for layer in layers if "data" in layer]
    assert shown == [[0, 1, 3, 4], [6]]  # an area through what is known side by side, a bar for what stands alone
    assert len({r["band"] for r in layers[0]["data"]["values"]}) == 2
    sure = next(r for r in layers[0]["data"]["values"] if r["round"] == 3)
    assert sure["low"] == sure["value"] == sure["high"]


def test_shares_and_diversity_are_drawn_from_zero(tmp_path: Path) -> None:
    def change(t: int, m: Metric) -> Metric:
        return Metric(
            "p", "empty" if m.metric == "gradient_norm" else m.metric, m.domain, m.value * (m.metric != "gradient_norm")
        )

    charts = _one(tmp_path, change)
    diversity = charts["outputs-0"]["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert diversity == [0.0, pytest.approx(2.12)]
    assert charts["extras-0"]["layer"][-1]["encoding"]["y"]["scale"]["domain"] == [0.0, 1.0]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 3), (1, 2), (0, 16), (1, 55), (3, 1000), (7, 7)])
def test_rounds_are_marked_at_whole_numbers(first: int, last: int) -> None:
    from crossfeed.report.run_charts import over_rounds

    axis = over_rounds(first, last)["axis"]
    assert axis["values"] == sorted({int(v) for v in axis["values"]})
    assert 1 <= len(axis["values"]) <= 11
    assert axis["tickCount"] >= len(axis["values"])  # otherwise Vega leaves some out


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"kind": "linear", "vector": [1, 0]}, "outputs far in the direction (1, 0)"),
        ({"kind": "quadratic", "matrix": [-2, -2], "vector": [4, 0]}, "outputs near (2, 0)"),
        ({"kind": "quadratic", "matrix": [2, -2]}, "what the reward “x” gives much for"),
        ({"kind": "summary", "length": 12}, "summaries of about 12 words"),
        ({"kind": "paraphrase"}, "formal paraphrases"),
        ({"kind": "hue_band", "bands": [[0, 0.5]]}, "hue 0° to 180°"),
        ({"kind": "callable", "function": "a.b:c"}, "the Python function a.b:c"),
    ],
)
def test_what_people_like_is_said_in_words(tmp_path: Path, reward: dict[str, Any], said: str) -> None:
    from types import SimpleNamespace

    from pydantic import TypeAdapter

    from crossfeed.describe.schema import Ecosystem, Reward

    space = Ecosystem(**spec("vectors", 1, tmp_path)).space
    eco: Any = SimpleNamespace(space=space, rewards={"x": TypeAdapter(Reward).validate_python(reward)})
    assert said in run_people.liked(eco, "x")


def test_sameness_is_told_at_once(runs: dict[str, RunFolder]) -> None:
    line = run_words.bottom_line(run_data.read(runs["vectors"]))
    assert re.search(r"; only [\d.]+ % of p’s diversity and [\d.]+ % of q’s diversity are left\.$", line)


def test_lineage_is_traced_back_to_data(runs: dict[str, RunFolder]) -> None:
    page = run_page(runs["text"])
    assert re.search(r"p, round 10: 50&nbsp;% of the training set is real data\.", page)
    assert "78&nbsp;% goes back to p_pairs, 22&nbsp;% to q_pairs and less than 1&nbsp;% to the start." in page
    facts = run_data.read(runs["text"])
    assert sum(facts.origins["p"].values()) == pytest.approx(1)


def test_real_data_stand_beside_answers(runs: dict[str, RunFolder]) -> None:
    page = run_page(runs["text"])
    assert "<dt>In the real data</dt>" in page


def test_candidates_drawn_otherwise_are_told(tmp_path: Path) -> None:
    from crossfeed.describe.schema import Ecosystem

    plain = spec("images", 1, tmp_path)
    assert run_people.drawn_otherwise(Ecosystem(**plain)) == ""
    family = plain["models"]["p"]["family"] | {"sampling_steps": 5, "evaluation_steps": 10}
    plain["models"]["p"]["family"] = family
    assert "(in 5 steps, not 10)" in run_people.drawn_otherwise(Ecosystem(**plain))
