"""Ancestry and descent on runs made by hand, whose answers can be counted."""

from __future__ import annotations

import dataclasses
import time

import made_runs as made
import pytest
import torch

from crossfeed.errors import DataError
from crossfeed.record.folder import RoundRecord, RunFolder
from crossfeed.record.lineage import ancestry, descent, origins
from crossfeed.record.pool import Pool
from crossfeed.record.tables import from_png


def rows(round: int, model: str, parts: list[tuple[int, str, str | None, int | None]]) -> Pool:
    """(rows, kind, producer or data set, producer's round) by source."""
    kinds = [(kind, who, at) for count, kind, who, at in parts for _ in range(count)]
    n = len(kinds)
    made_by = [who if kind in ("raw", "curated") else None for kind, who, _ in kinds]
    return Pool(
        ids=[f"r{round:04d}-{model}-{i:06d}" for i in range(n)],
        prompts=torch.zeros(n, dtype=torch.int64),
        outputs=torch.zeros(n, 2),
        source=[kind for kind, _, _ in kinds],
        kind=[kind for kind, _, _ in kinds],
        producer=made_by,
        producer_round=[at for _, _, at in kinds],
        data=[None if kind in ("raw", "curated") else who for kind, who, _ in kinds],
        row=[None] * n,
        parent=[None] * n,
        num_candidates=[0] * n,
        rewards=[[]] * n,
        picked=[-1] * n,
        picker=[None] * n,
        why=[None] * n,
    )


def run(path, rounds: list[dict[str, list]], recipes: dict[int, dict] | None = None) -> RunFolder:
    """A run whose round t has these rows; round 0 is a start."""
    folder = made.folder(path)
    with folder.writing():
        for number, parts in enumerate([{"p": [(1, "real", "ring", None)], "q": [(1, "real", "ring", None)]}, *rounds]):
            pools = {model: rows(number, model, part) for model, part in parts.items()}
            info = {"training_sets": recipes[number]} if recipes and number in recipes else {}
            folder.commit(RoundRecord(number, pools=pools, info=info))
    return folder


def shares(table, key="generation"):
    return {(r["round"], r["model"], r[key]): r["share"] for r in table.to_pylist()}


def test_one_model_on_half_real_and_half_its_own(tmp_path):
    """Generation d has share 2^-(d+1) but the last two, 2^-t each, as with tosses of a coin."""
    folder = run(tmp_path / "run", [{"p": [(2, "real", "ring", None), (2, "raw", "p", t)]} for t in range(4)])
    found = shares(descent(folder))
    for t in range(1, 5):
        for d in range(t + 1):
            assert found[t, "p", d] == 2.0 ** -(d + 1 if d < t else t)
    assert len(found) == 2 + 3 + 4 + 5


def test_two_models_at_the_same_time(tmp_path):
    """p has 3/4 real rows and 1/4 from q, q all from p: q_t = 1 + p_(t-1)."""
    folder = run(
        tmp_path / "run",
        [{"p": [(3, "real", "ring", None), (1, "curated", "q", t)], "q": [(4, "raw", "p", t)]} for t in range(2)],
    )
    assert shares(descent(folder)) == {
        (1, "p", 0): 0.75,
        (1, "p", 1): 0.25,
        (1, "q", 1): 1.0,
        (2, "p", 0): 0.75,
        (2, "p", 2): 0.25,  # q_1 is all of generation 1
        (2, "q", 1): 0.75,
        (2, "q", 2): 0.25,
    }


def test_one_after_another_sees_the_same_round(tmp_path):
    """p first, then q from the p of the same round; also when the spec lists the producer last."""
    parts = {"p": [(1, "real", "ring", None), (1, "raw", "q", 0)], "q": [(1, "raw", "p", 1)]}
    assert shares(descent(run(tmp_path / "a" / "run", [parts]))) == {
        (1, "p", 0): 0.5,
        (1, "p", 1): 0.5,
        (1, "q", 1): 0.5,
        (1, "q", 2): 0.5,
    }
    turned = {"p": [(1, "raw", "q", 1)], "q": [(1, "real", "ring", None), (1, "raw", "p", 0)]}
    found = shares(descent(run(tmp_path / "b" / "run", [turned])))
    assert found[1, "p", 1] == found[1, "p", 2] == 0.5


def test_a_stale_producer_is_that_of_its_last_round(tmp_path):
    """q is trained in round 1 only; p of round 3 learns from that q."""
    folder = run(
        tmp_path / "run",
        [
            {"q": [(1, "raw", "p", 0)]},
            {"p": [(1, "real", "ring", None), (1, "raw", "q", 1)]},
            {"p": [(1, "raw", "p", 2), (1, "raw", "q", 1)]},
        ],
    )
    assert shares(descent(folder)) == {
        (1, "q", 1): 1.0,
        (2, "p", 0): 0.5,
        (2, "p", 2): 0.5,
        (3, "p", 1): 0.25,
        (3, "p", 3): 0.25,
        (3, "p", 2): 0.5,
    }


def test_picks_that_people_made_are_real(tmp_path):
    folder = run(tmp_path / "run", [{"p": [(1, "picks", "ring", None), (1, "real", "ring", None), (2, "raw", "p", 0)]}])
    assert shares(descent(folder)) == {(1, "p", 0): 0.5, (1, "p", 1): 0.5}


def test_training_sets_that_reach_back(tmp_path):
    """Accumulate: round 2 trains on the rows of both rounds, and round 3's producer is that mixture."""
    new = [{"p": [(1, "real", "ring", None), (1, "raw", "p", t)]} for t in range(3)]
    recipes = {t: {"p": {"rounds": list(range(1, t + 1))}} for t in (1, 2, 3)}
    found = shares(descent(run(tmp_path / "run", new, recipes)))
    # round 1: (1/2, 1/2). Its outputs: (0, 1/2, 1/2). Round 2: half of it is round 1's rows.
    assert found[2, "p", 0] == 0.5
    assert found[2, "p", 1] == pytest.approx(0.25 + 0.125)
    assert found[2, "p", 2] == pytest.approx(0.125)
    # round 3's raw rows are one more than that; a third of all rows is new.
    assert found[3, "p", 3] == pytest.approx(0.125 / 6)
    assert sum(v for (t, _, _), v in found.items() if t == 3) == pytest.approx(1)


def test_training_sets_that_are_drawn(tmp_path):
    """Subsample: only the rows drawn count, each as often as it was drawn."""
    new = [{"p": [(1, "real", "ring", None), (1, "raw", "p", t)]} for t in range(2)]
    recipes = {1: {"p": {"rounds": [1], "index": [1, 1]}}, 2: {"p": {"rounds": [1, 2], "index": [0, 3, 3, 1]}}}
    found = shares(descent(run(tmp_path / "run", new, recipes)))
    assert found == {
        (1, "p", 1): 1.0,
        (2, "p", 0): 0.25,
        (2, "p", 1): 0.25,
        (2, "p", 2): 0.5,  # an output of round 1's training set, which is all of generation 1
    }


def test_which_data_it_goes_back_to(tmp_path):
    """p has data of its own; q has other data and half from p, whose start counts as unknown."""
    folder = run(
        tmp_path / "run",
        [
            {
                "p": [(3, "real", "ring", None), (1, "raw", "p", t)],
                "q": [(1, "real", "other", None), (1, "raw", "p", t)],
            }
            for t in range(2)
        ],
    )
    assert shares(origins(folder), "data") == {
        (1, "p", "ring"): 0.75,
        (1, "p", None): 0.25,
        (1, "q", "other"): 0.5,
        (1, "q", None): 0.5,
        (2, "p", "ring"): 0.75 + 0.25 * 0.75,
        (2, "p", None): 0.25 * 0.25,
        (2, "q", "other"): 0.5,
        (2, "q", "ring"): 0.5 * 0.75,
        (2, "q", None): 0.5 * 0.25,
    }


def test_a_circle_is_refused(tmp_path):
    folder = run(tmp_path / "run", [{"p": [(1, "raw", "q", 1)], "q": [(1, "raw", "p", 1)]}])
    with pytest.raises(DataError, match="p of round 1 descends from itself"):
        descent(folder)


def test_no_rounds_no_shares(tmp_path):
    assert descent(run(tmp_path / "run", [])).num_rows == 0
    assert descent(made.folder(tmp_path / "other" / "run")).column_names == ["round", "model", "generation", "share"]


def test_a_long_run_takes_a_moment(tmp_path):
    """20 rounds of 2 × 8,000 rows; processor time (55 rounds: 1.5 s on a slow core)."""
    parts = {"p": [(4000, "real", "ring", None), (4000, "raw", "q", 0)], "q": [(8000, "raw", "p", 0)]}
    folder = made.folder(tmp_path / "run")
    pools = {model: rows(0, model, part) for model, part in parts.items()}
    with folder.writing():
        for number in range(21):
            moved = {
                m: dataclasses.replace(x, producer_round=[number - 1 if p else None for p in x.producer])
                for m, x in pools.items()
            }
            folder.commit(RoundRecord(number, pools=moved if number else pools))
    start = time.process_time()
    found = shares(descent(RunFolder.open(tmp_path / "run")))
    assert time.process_time() - start < 2
    assert sum(v for (t, m, _), v in found.items() if (t, m) == (20, "p")) == pytest.approx(1)


# --- one sample -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", ["vectors", "images", "text"])
def test_ancestry_goes_back_to_real_data(tmp_path, medium):
    folder = made.folder(tmp_path / "run", medium, rounds=4)
    pool = folder.pool(3, "p")
    found = ancestry(folder, "r0003-p-000002")
    ids = ["r0003-p-000002", "r0002-q-000002", "r0001-p-000002", "r0000-q-000002"]
    assert [entry["sample_id"] for entry in found] == ids
    assert found[-1]["kind"] == "real"
    assert (found[-1]["data"], found[-1]["row"]) == ("ring", 2)
    assert found[-1]["candidates"] == []
    first = found[0]
    assert (first["round"], first["model"], first["kind"], first["producer"], first["picker"]) == (
        3,
        "p",
        "curated",
        "q",
        "right",
    )
    assert first["why"] == "Plackett–Luce, τ = 1"
    assert [c["reward"] for c in first["candidates"]] == pool.rewards[2]
    assert [c["picked"] for c in first["candidates"]] == [i == pool.picked[2] for i in range(3)]
    if medium == "images":
        assert torch.equal(torch.from_numpy(from_png(first["output"]).transpose(2, 0, 1).copy()), pool.outputs[2])
        assert isinstance(first["candidates"][0]["output"], bytes)
    elif medium == "vectors":
        assert first["output"] == pool.outputs[2].tolist()
    else:
        assert first["output"] == pool.outputs[2]
        assert first["candidates"][1]["output"] == pool.candidates[1]


def test_ancestry_without_candidates_has_their_rewards(tmp_path):
    folder = made.folder(tmp_path / "run")
    record = made.record(0)
    with folder.writing():
        folder.commit(record)
        folder.commit(dataclasses.replace(made.record(1), pools={"p": made.pool("vectors", 1, "p", "q", keep=False)}))
    first = ancestry(folder, "r0001-p-000002")[0]
    assert [c["output"] for c in first["candidates"]] == [None] * 3
    assert [c["reward"] for c in first["candidates"]] == folder.pool(1, "p").rewards[2]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("nonsense", r"found no sample 'nonsense'; ids look like r0003-p-000017; the models are p, q"),
        ("r0001-z-000000", r"found no sample 'r0001-z-000000'; ids look like"),
        ("r0001-p-000099", r"p has r0001-p-000000 to r0001-p-000005 in round 1"),
        ("r0007-p-000000", r"found no round 7; need one of 0 to 1"),
    ],
)
def test_samples_that_are_not_there(tmp_path, sample, message):
    folder = made.folder(tmp_path / "run", rounds=2)
    with pytest.raises(DataError, match=message):
        ancestry(folder, sample)


def test_an_ancestry_that_goes_in_a_circle_is_refused(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=1)
    pool = dataclasses.replace(made.pool("vectors", 1, "p", "p"), parent=["r0001-p-000001", "r0001-p-000000"] * 3)
    with folder.writing():
        folder.commit(RoundRecord(1, pools={"p": pool}))
    with pytest.raises(DataError, match="goes in a circle at r0001-p-000000"):
        ancestry(folder, "r0001-p-000000")
