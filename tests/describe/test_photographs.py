"""Reading photographs: formats, errors, the sample that ships with the package."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crossfeed.describe.photographs import SAMPLES, read_images
from crossfeed.describe.schema import Images
from crossfeed.errors import CrossfeedError, DataError, SpecError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def hub_table(encoded, labels=None, metadata=None):
    img = pa.array([None if data is None else {"bytes": data, "path": f"{k}.png"} for k, data in enumerate(encoded)],
                   pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    columns = {"img": img} | ({} if labels is None else {"label": pa.array(labels)})
    return pa.table(columns).replace_schema_metadata(metadata)


def write(folder, table, **options):
    pq.write_table(table, folder / "x.parquet", **options)
    return folder


def read(folder, file="x.parquet", seed=0, **fields):
    return read_images(Images(file=file, **fields), folder, seed)


def message(error, folder, **fields):
    with pytest.raises(error) as caught:
        read(folder, **fields)
    return str(caught.value)


def test_hub_schema_round_trips_across_row_groups(tmp_path):
    names = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}})
    table = hub_table([png(p) for p in PIXELS], [0, 1, 0, 1, 1], {"huggingface": names})
    found = read(write(tmp_path, table, row_group_size=2))
    np.testing.assert_array_equal(found.pixels, PIXELS)
    assert found.labels.tolist() == [0, 1, 0, 1, 1]
    assert found.label_names == ("cat", "dog")
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert not found.pixels.flags.writeable


def test_more_images_than_one_batch(tmp_path):
    many = np.random.default_rng(1).integers(0, 256, (2100, 2, 2, 3), dtype=np.uint8)
    write(tmp_path, hub_table([png(p) for p in many], np.arange(2100)))
    found = read(tmp_path)
    np.testing.assert_array_equal(found.pixels, many)
    some = read(tmp_path, rows=40, seed=3)
    assert some.rows.tolist() == some.labels.tolist() == sorted(set(some.rows.tolist()))
    np.testing.assert_array_equal(some.pixels, many[some.rows])
    assert read(tmp_path, rows=40, seed=3).rows.tolist() == some.rows.tolist()
    assert read(tmp_path, rows=40, seed=4).rows.tolist() != some.rows.tolist()


@pytest.mark.parametrize("kind", ["list", "fixed", "bytes", "npy", "npz", "npz_one", "float_npy"])
def test_other_formats_hold_the_same_pixels(tmp_path, kind):
    file, fields = "x.parquet", {}
    if kind == "list":
        write(tmp_path, pa.table({"img": pa.array(PIXELS.tolist()), "label": [0, 1, 2, 3, 4]}))
    elif kind == "fixed":
        column = pa.array(PIXELS.ravel())
        for length in (3, 6, 4):
            column = pa.FixedSizeListArray.from_arrays(column, length)
        write(tmp_path, pa.table({"img": column, "label": [0, 1, 2, 3, 4]}))
    elif kind == "bytes":
        write(tmp_path, pa.table({"img": [png(p) for p in PIXELS], "label": [0, 1, 2, 3, 4]}))
    elif kind == "npz":
        file = "x.npz"
        np.savez(tmp_path / file, img=PIXELS, label=np.arange(5))
    elif kind == "npz_one":
        file = "x.npz"
        np.savez(tmp_path / file, anything=PIXELS)
    else:
        file = "x.npy"
        np.save(tmp_path / file, PIXELS if kind == "npy" else PIXELS / 255)
    found = read(tmp_path, file, **fields)
    scale = 255 if found.pixels.dtype == np.float32 else 1
    np.testing.assert_allclose(found.pixels * scale, PIXELS, rtol=1e-6)
    assert (found.labels is None) == (kind in {"npz_one", "npy", "float_npy"})
    two = read(tmp_path, file, rows=2)
    np.testing.assert_array_equal(two.pixels, found.pixels[two.rows])


def test_grayscale_palette_and_alpha_become_rgb(tmp_path):
    gray = PIXELS[0, ..., 0]
    alpha = np.concatenate([PIXELS[1], np.full((4, 6, 1), 7, np.uint8)], axis=2)
    write(tmp_path, hub_table([png(gray), png(alpha), png(PIXELS[2], "P")]))
    found = read(tmp_path)
    np.testing.assert_array_equal(found.pixels[0], np.stack([gray] * 3, axis=-1))
    np.testing.assert_array_equal(found.pixels[1], PIXELS[1])
    assert found.pixels.shape == (3, 4, 6, 3)
    assert found.labels is None
    np.save(tmp_path / "gray.npy", PIXELS[..., 0])
    np.testing.assert_array_equal(read(tmp_path, "gray.npy").pixels, np.stack([PIXELS[..., 0]] * 3, axis=-1))


def test_missing_files_and_samples(tmp_path):
    assert "space.file" in message(SpecError, tmp_path, file="none.parquet")
    assert "is a folder" in message(SpecError, tmp_path, file=".")
    assert "sample:cifar10" in message(SpecError, tmp_path, file="sample:imagenet")
    (tmp_path / "x.csv").write_text("1")
    assert ".parquet, .npy or .npz" in message(SpecError, tmp_path, file="x.csv")
    for name in ("x.parquet", "x.npy", "x.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nonsense")
        assert f"space.file: {name} cannot be read" in message(DataError, tmp_path, file=name)


def test_truncated_parquet(tmp_path):
    write(tmp_path, hub_table([png(p) for p in PIXELS]))
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[: len(data) // 2])
    assert "need a whole Parquet file" in message(DataError, tmp_path)


def test_missing_columns_name_what_there_is(tmp_path):
    write(tmp_path, hub_table([png(p) for p in PIXELS], [0] * 5))
    text = message(SpecError, tmp_path, image_column="image")
    assert "space.image_column: found image" in text
    assert "img, label" in text
    assert "null for no labels" in message(SpecError, tmp_path, label_column="class")
    assert read(tmp_path, label_column=None).labels is None
    assert "holds int64" in message(SpecError, tmp_path, image_column="label")
    assert "has 5 rows" in message(SpecError, tmp_path, rows=6)
    np.savez(tmp_path / "x.npz", a=PIXELS, b=np.arange(5))
    assert "the arrays a, b" in message(SpecError, tmp_path, file="x.npz")


@pytest.mark.parametrize(
    ("replacement", "text"),
    [
        (b"\xff\xd8 not a jpeg", "row 3 (counted from 0): found bytes that are no readable image"),
        (png(PIXELS[0])[:60], "row 3 (counted from 0): found bytes that are no readable image"),
        (b"", "row 3 (counted from 0): found no image bytes"),
        (None, "row 3 (counted from 0): found no image bytes"),
        (png(PIXELS[0, :3]), "row 3 (counted from 0): found 3 x 6 pixels (height x width)"),
        (png(PIXELS[0, ..., 0].astype(np.uint16) * 200), "found an image of mode I;16; need 8 bits"),
    ],
)
@pytest.mark.parametrize("as_rows", [None, 5])
def test_bad_images_are_named_by_row(tmp_path, replacement, text, as_rows):
    encoded = [png(p) for p in PIXELS]
    encoded[3] = replacement
    write(tmp_path, hub_table(encoded))
    assert text in message(DataError, tmp_path, rows=as_rows)


def test_sizes_that_differ_between_batches(tmp_path):
    write(tmp_path, hub_table([png(PIXELS[0])] * 1024 + [png(PIXELS[0, :3])]))
    assert "row 1024 (counted from 0): found 3 x 6" in message(DataError, tmp_path)


def test_bad_pixel_lists(tmp_path):
    lists = PIXELS.tolist()
    lists[2] = lists[2][:3]
    write(tmp_path, pa.table({"img": pa.array(lists)}))
    assert "row 2 (counted from 0): found pixels of another shape" in message(DataError, tmp_path)
    lists = PIXELS.tolist()
    lists[4][1][2][0] = None
    write(tmp_path, pa.table({"img": pa.array(lists)}))
    assert "row 4 (counted from 0): found a null" in message(DataError, tmp_path)
    write(tmp_path, pa.table({"img": pa.array([PIXELS[0].tolist(), None])}))
    assert "row 1 (counted from 0)" in message(DataError, tmp_path)
    write(tmp_path, pa.table({"img": [["a"], ["b"]]}))
    assert "need lists of numbers" in message(SpecError, tmp_path)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([0.5, 1, 255, 0]).repeat(72).reshape(4, 4, 6, 3), "row 2 (counted from 0): found the value 255"),
        (np.full((2, 3, 3, 3), np.nan), "row 0 (counted from 0): found the value nan"),
        (np.full((2, 3, 3, 3), 256), "need integers in 0..255"),
        (np.zeros((2, 3, 8, 8)), "need channels last"),
        (np.zeros((2, 8, 8, 4)), "need (n, h, w, 3)"),
        (np.zeros((2, 8)), "need (n, h, w, 3)"),
        (np.zeros((0, 8, 8, 3)), "holds no images"),
        (np.zeros((2, 8, 8, 3), bool), "array of bool"),
    ],
)  # fmt: skip
def test_bad_arrays(tmp_path, array, text):
    np.save(tmp_path / "x.npy", array)
    assert text in message(CrossfeedError, tmp_path, file="x.npy")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, None, 1, 2, 3], "row 1 (counted from 0): found label null"),
        ([0, 1, -1, 2, 3], "row 2 (counted from 0): found label -1"),
        (["a", "b", "c", "d", "e"], "space.label_column: column label of x.parquet holds string"),
    ],
)
def test_bad_labels(tmp_path, labels, text):
    write(tmp_path, hub_table([png(p) for p in PIXELS], labels))
    assert text in message(CrossfeedError, tmp_path)
    assert read(tmp_path, label_column=None).labels is None


def test_bad_labels_in_an_archive(tmp_path):
    np.savez(tmp_path / "x.npz", img=PIXELS, label=np.array([0, 1, 2, -3, 4]))
    assert "row 3 (counted from 0): found label -3" in message(DataError, tmp_path, file="x.npz")
    np.savez(tmp_path / "x.npz", img=PIXELS, label=np.arange(4))
    assert "need one integer an image: (5,)" in message(SpecError, tmp_path, file="x.npz")


def test_shipped_sample():
    path = SAMPLES / "cifar10.parquet"
    assert path.stat().st_size <= 2_000_000
    table = pq.read_table(path)
    assert table.schema.field("img").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert table.schema.field("label").type == pa.int64()
    assert b"Krizhevsky" in table.schema.metadata[b"source"]
    assert len(set(table["img"].combine_chunks().field("bytes").to_pylist())) == 2000
    sample = read(Path(), "sample:cifar10")
    assert sample.pixels.shape == (2000, 32, 32, 3)
    assert np.bincount(sample.labels).tolist() == [200] * 10
    assert sample.label_names[3] == "cat"
    assert (np.diff(sample.labels) != 0).mean() > 0.85, "shuffled"
    np.testing.assert_allclose(sample.statistics.mean.mean(0), [0.4914, 0.4822, 0.4465], atol=0.01)
