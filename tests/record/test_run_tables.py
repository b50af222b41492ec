"""Samples as Parquet: exact both ways, the same bytes each time, and readable by datasets and pandas."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import made_runs as made
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from crossfeed.errors import DataError
from crossfeed.record import tables
from crossfeed.record.tables import Metric, Shown

MEDIA = ("vectors", "images", "text")


def there_and_back(pool, medium):
    data = tables.encode(tables.sample_table(pool, 3, "p", made.world(medium)))
    return tables.pool_of(tables.decode(data, "x"), "x")


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("num", [0, 1, 7])
def test_pools_come_back_bit_for_bit(medium, keep, num):
    pool = made.pool(medium, 3, "p", "q", num=num, keep=keep)
    back = there_and_back(pool, medium)
    assert made.equal_pools(back, pool)
    assert len(back) == num


def test_numbers_that_are_hard_to_write_come_back():
    pool = made.pool("vectors", 3, "p", "q", num=6)
    pool.outputs[:, 0] = torch.tensor([math.inf, -math.inf, -0.0, 1e-45, 3.4e38, 1 / 3])
    pool.rewards[2] = [1 / 3, -0.0, 5e-324]
    back = there_and_back(pool, "vectors")
    assert torch.equal(back.outputs.view(torch.int32), pool.outputs.view(torch.int32))
    assert np.array(back.rewards[2]).tobytes() == np.array(pool.rewards[2]).tobytes()


def test_hostile_text_comes_back():
    pool = made.pool("text", 3, "p", "q", num=6)
    hard = ["", "\x00", "\x1b]0;x\x07\u202e", "a\r\n\u2028b", "\U0001f600" * 1000, "</script>"]
    pool.outputs[:] = hard
    back = there_and_back(pool, "text")
    assert back.outputs == hard


def test_half_a_surrogate_pair_becomes_a_question_mark():
    pool = made.pool("text", 3, "p", "q", num=6)
    pool.outputs[0] = "a\ud800b"
    pool.candidates[0] = "\udfff"
    back = there_and_back(pool, "text")
    assert back.outputs[0] == "a?b"
    assert back.candidates[0] == "?"


@pytest.mark.parametrize("medium", MEDIA)
def test_the_same_rows_give_the_same_bytes(medium):
    one, two = (
        tables.encode(tables.sample_table(made.pool(medium, 3, "p", "q"), 3, "p", made.world(medium))) for _ in range(2)
    )
    assert one == two


def test_prompts_are_in_words():
    pool = made.pool("images", 3, "p", "q")
    table = tables.sample_table(pool, 3, "p", made.world("images"))
    assert table.column("prompt").to_pylist() == [f"prompt {i}" for i in pool.prompts.tolist()]
    assert table.column("label").to_pylist() == pool.prompts.tolist()
    table = tables.sample_table(made.pool("text", 3, "p", "q"), 3, "p", made.world("text"))
    assert set(table.column("domain").to_pylist()) == {"news"}
    assert set(table.column("round").to_pylist()) == {3}
    assert set(table.column("model").to_pylist()) == {"p"}


@pytest.mark.parametrize("medium", MEDIA)
def test_pandas_reads_it(tmp_path, medium):
    (tmp_path / "x.parquet").write_bytes(
        tables.encode(tables.sample_table(made.pool(medium, 3, "p", "q"), 3, "p", made.world(medium)))
    )
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame.kind.tolist() == ["real", "raw", "curated"] * 2
    assert frame.num_candidates.tolist() == [0, 0, 3] * 2


@pytest.fixture
def load_dataset(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    return lambda file: datasets.load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("medium", MEDIA)
def test_datasets_loads_training_sets(tmp_path, load_dataset, medium):
    pool = made.pool(medium, 3, "p", "q")
    table = tables.sample_table(pool, 3, "p", made.world(medium))
    (tmp_path / "x.parquet").write_bytes(tables.encode(table))
    loaded = load_dataset(tmp_path / "x.parquet")
    assert loaded["sample_id"][:] == pool.ids
    if medium == "images":
        pixels = np.stack([np.asarray(image) for image in loaded["output"]])
        assert np.array_equal(pixels.transpose(0, 3, 1, 2), pool.outputs.numpy())
        assert np.array_equal(np.asarray(loaded[2]["candidates"][1]).transpose(2, 0, 1), pool.candidates[1].numpy())
        assert loaded.features["label"].names == [f"prompt {i}" for i in range(5)]
    elif medium == "vectors":
        assert np.allclose(loaded["output"][:], pool.outputs)
    else:
        assert loaded["output"][:] == pool.outputs
        assert loaded[2]["candidates"] == pool.candidates[:3]


@pytest.mark.parametrize("medium", MEDIA)
def test_shown_outputs_become_rows(medium):
    g = torch.Generator().manual_seed(0)
    shown = [
        Shown("p", name, torch.zeros(2, dtype=torch.int64), made.outputs(medium, 2, g), [0.5, 1.5]) for name in "ab"
    ]
    table = tables.decode(tables.encode(tables.shown_table(shown, 4, made.world(medium))), "x")
    assert table.column("domain").to_pylist() == ["a", "a", "b", "b"]
    assert table.column("reward").to_pylist() == [0.5, 1.5] * 2
    assert table.column("prompt").to_pylist() == ([""] if medium == "vectors" else ["prompt 0"]) * 4
    if medium == "images":
        png = table.column("output")[0].as_py()["bytes"]
        assert np.array_equal(tables.from_png(png).transpose(2, 0, 1), shown[0].outputs[0].numpy())


def test_metrics_have_their_columns():
    table = tables.metrics_table(2, [Metric("p", "alignment", "own", 1.5, 0.1), Metric("p", "delta", None, math.nan)])
    back = tables.decode(tables.encode(table), "x").to_pylist()
    assert back[0] == {
        "round": 2,
        "model": "p",
        "metric": "alignment",
        "domain": "own",
        "value": 1.5,
        "standard_error": 0.1,
    }
    assert math.isnan(back[1]["value"])
    assert back[1]["domain"] is None


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all"])
def test_what_is_no_parquet_is_refused(data):
    with pytest.raises(DataError, match=r"some/file: is no whole Parquet file"):
        tables.decode(data, "some/file")


def test_other_tables_are_refused():
    other = tables.decode(tables.encode(pa.table({"a": [1]})), "x")
    with pytest.raises(DataError, match="found no table of the kind crossfeed-samples, version 1"):
        tables.pool_of(other, "x")
    with pytest.raises(DataError, match="no column b"):
        tables.decode(tables.encode(pa.table({"a": [1]})), "x", ["b"])
    table = tables.sample_table(made.pool("images", 1, "p", "q"), 1, "p", made.world("images"))
    about = json.loads(table.schema.metadata[b"crossfeed"]) | {"shape": [3, 4, 4]}
    wrong = table.replace_schema_metadata({b"crossfeed": json.dumps(about)})
    with pytest.raises(DataError, match=r"found an image of shape \(8, 8, 3\); need \[3, 4, 4\]"):
        tables.pool_of(wrong, "x")


def test_outputs_of_other_types_are_refused():
    pool = dataclasses.replace(made.pool("vectors", 1, "p", "q"), outputs=torch.zeros(6, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"need texts, float32 vectors or uint8 images"):
        tables.sample_table(pool, 1, "p", made.world("vectors"))


def test_images_are_written_and_read_quickly():
    """A quarter of a round of 8,000; processor time, so that a busy machine does not fail it."""
    n = 2000
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pool = made.pool("images", 1, "p", "q", num=n, keep=False)
    pool = dataclasses.replace(pool, outputs=pixels)
    start = time.process_time()
    data = tables.encode(tables.sample_table(pool, 1, "p", made.world("images")))
    assert time.process_time() - start < 0.75
    start = time.process_time()
    tables.pool_of(tables.decode(data, "x"), "x")
    assert time.process_time() - start < 0.75
