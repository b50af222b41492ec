"""Picks as preferences in TRL's format."""

from __future__ import annotations

import dataclasses
import json

import made_runs as made
import pyarrow.parquet as pq
import pytest

from crossfeed.errors import CrossfeedError, NotAvailableError, SettingError
from crossfeed.record.folder import RoundRecord
from crossfeed.record.preferences import export_preferences


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made.folder(tmp_path_factory.mktemp("texts") / "run", "text", rounds=3, text=TEXTS)


TEXTS = """\
space: {kind: text}
data:
  news: {kind: texts, file: news.jsonl, answer_column: answer}
rewards:
  right: {kind: summary}
models:
  p: &model
    family: {kind: causal_lm, fresh: {}}
    reward: right
    train: {steps: 1}
    sources: [{kind: real, data: news, weight: 1}]
  q: *model
"""


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.ParquetFile(path).read(use_threads=False).to_pylist()


def expected(run, number, model, row):
    """All pairs of one pick."""
    pool = run.pool(number, model)
    start = sum(pool.num_candidates[:row])
    offered = pool.candidates[start : start + 3]
    return [
        {
            "prompt": f"prompt {pool.prompts[row]}",
            "chosen": pool.outputs[row],
            "rejected": offered[k],
            "reward_chosen": pool.rewards[row][pool.picked[row]],
            "reward_rejected": pool.rewards[row][k],
            "sample_id": pool.ids[row],
            "round": number,
            "model": model,
        }
        for k in range(3)
        if k != pool.picked[row] and offered[k] != pool.outputs[row]
    ]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_pick_is_set_against_every_loser(run, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    count = export_preferences(run, path)
    found = read(path)
    wanted = [
        pair for model in "pq" for number in (1, 2) for row in (2, 5) for pair in expected(run, number, model, row)
    ]
    assert found == wanted
    assert count == len(wanted) > 12
    assert list(found[0])[:3] == ["prompt", "chosen", "rejected"]


def test_or_against_the_worst(run, tmp_path):
    count = export_preferences(run, tmp_path / "a.jsonl", pairs="worst")
    found = read(tmp_path / "a.jsonl")
    assert count == len(found) == 8
    for row in found:
        number, model, index = int(row["sample_id"][1:5]), row["model"], int(row["sample_id"][-6:])
        assert row["reward_rejected"] == min(p["reward_rejected"] for p in expected(run, number, model, index))


def test_rounds_and_models_can_be_chosen(run, tmp_path):
    export_preferences(run, tmp_path / "a.jsonl", rounds=[2], models=["q"])
    assert {(row["round"], row["model"]) for row in read(tmp_path / "a.jsonl")} == {(2, "q")}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("conversational", [False, True])
def test_datasets_reads_it(run, tmp_path, monkeypatch, suffix, conversational):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    path = tmp_path / f"out.{suffix}"
    export_preferences(run, path, conversational=conversational)
    kind = {"parquet": "parquet", "jsonl": "json"}[suffix]
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    first = expected(run, 1, "p", 2)[0]
    if conversational:
        assert loaded[0]["prompt"] == [{"role": "user", "content": first["prompt"]}]
        assert loaded[0]["chosen"] == [{"role": "assistant", "content": first["chosen"]}]
        assert loaded[0]["rejected"] == [{"role": "assistant", "content": first["rejected"]}]
    else:
        assert loaded[0]["chosen"] == first["chosen"]
    assert len(loaded) == len(read(path))


def test_answers_equal_to_the_pick_are_left_out(tmp_path):
    folder = made.folder(tmp_path / "run", "text", rounds=1, text=TEXTS)
    pool = made.pool("text", 1, "p", "q", num=3)
    pool = dataclasses.replace(pool, outputs=["a", "b", "c"], candidates=["c", "c", "d"], picked=[-1, -1, 0])
    with folder.writing():
        folder.commit(RoundRecord(1, pools={"p": pool}))
    assert export_preferences(folder, tmp_path / "a.jsonl") == 1
    assert read(tmp_path / "a.jsonl")[0]["rejected"] == "d"


def test_exported_picks_are_data_of_the_next_run(run, tmp_path):
    """What is exported can be a source of kind `picks`."""
    from crossfeed.networks.world import open_world

    export_preferences(run, tmp_path / "a.parquet")
    text = TEXTS.replace("rewards:", "  mine: {kind: preferences, file: a.parquet}\nrewards:").replace(
        "{kind: real, data: news, weight: 1}",
        "{kind: picks, data: mine, weight: 1}, {kind: real, data: news, weight: 0}",
    )
    (tmp_path / "news.jsonl").write_text('{"input": "a", "answer": "b"}\n')
    mine = open_world(made.ecosystem(tmp_path, text)).data["mine"]
    rows = read(tmp_path / "a.parquet")
    assert mine.outputs == [row["chosen"] for row in rows]
    assert mine.rejected == [row["rejected"] for row in rows]


def test_what_cannot_be_exported_says_why(run, tmp_path):
    vectors = made.folder(tmp_path / "vectors" / "run", rounds=2)
    with pytest.raises(NotAvailableError, match=r"its outcomes are vectors; the preference format .* holds texts"):
        export_preferences(vectors, tmp_path / "a.jsonl")
    with pytest.raises(SettingError, match=r"ends in '.csv'; need a name that ends in .parquet or .jsonl"):
        export_preferences(run, tmp_path / "a.csv")
    with pytest.raises(SettingError, match="found no round 9; need one of 0, 1, 2"):
        export_preferences(run, tmp_path / "a.jsonl", rounds=[9])
    with pytest.raises(SettingError, match="found no model 'z'; need one of p, q"):
        export_preferences(run, tmp_path / "a.jsonl", models=["z"])
    with pytest.raises(CrossfeedError, match="holds no picks in the chosen rounds"):
        export_preferences(run, tmp_path / "a.jsonl", rounds=[0])
    with pytest.raises(CrossfeedError, match=r"the preferences cannot be written \(No such file or directory\)"):
        export_preferences(run, tmp_path / "missing" / "a.jsonl")
    bare = made.folder(tmp_path / "bare" / "run", "text", rounds=1, text=TEXTS)
    with bare.writing():
        bare.commit(RoundRecord(1, pools={"p": made.pool("text", 1, "p", "q", keep=False)}))
    with pytest.raises(
        NotAvailableError, match="were not kept, so there is nothing to set its pick against; run again with"
    ):
        export_preferences(bare, tmp_path / "a.parquet")
    assert not list(tmp_path.glob("a.*"))
    assert not list(tmp_path.glob(".partial*"))


def test_an_older_file_stays_when_the_export_fails(run, tmp_path):
    (tmp_path / "a.jsonl").write_text("old")
    with pytest.raises(CrossfeedError):
        export_preferences(run, tmp_path / "a.jsonl", rounds=[0])
    assert (tmp_path / "a.jsonl").read_text() == "old"
