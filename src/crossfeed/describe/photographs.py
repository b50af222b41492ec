"""Reading photographs: Parquet in the hub's image schema, NumPy files, and the sample that ships with the package."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossfeed.describe.colour import Statistics, statistics
from crossfeed.describe.hub import HUB, open_hub
from crossfeed.describe.schema import Images
from crossfeed.errors import DataError, Problem, SpecError

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
_BATCH = 1024
_ROWS_PURPOSE = int.from_bytes(b"rows", "big")
_EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}


@dataclass(frozen=True, eq=False)
class Photographs:
    """Images of one size, in memory.

    Args:
        pixels: (n, h, w, 3) red, green, blue: uint8 in 0..255, or float32 in [0, 1]. Read-only.
        labels: (n,) int64, nonnegative; None where the file has none.
        rows: (n,) int64, each image's row in the file, counted from 0.
        label_names: Names of the labels, by label; empty where the file names none.
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    rows: npt.NDArray[np.int64]
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def statistics(self) -> Statistics:
        """Colour statistics of every image, computed at first use and kept in memory."""
        return statistics(self.pixels)


def read_images(space: Images, folder: str | Path | None = None, seed: int = 0) -> Photographs:
    """Read the photographs of an ``images`` space.

    Parquet columns may hold encoded images (the hub's struct of bytes and path, or plain bytes) or pixels (nested
    lists). Grayscale becomes RGB, an alpha channel is dropped, and images are taken as stored (no EXIF rotation). NumPy
    files hold (n, h, w, 3), (n, h, w, 1) or (n, h, w); an .npz names its arrays as ``image_column`` and
    ``label_column`` do, or holds a single array. When the spec does not write ``label_column``, the file may lack it.

    Args:
        space: The space; ``rows`` draws that many rows without replacement and keeps their order, ``size`` resizes.
        folder: Where a relative ``file`` starts; None for the working directory.
        seed: Seed of the draw of ``rows``.

    Returns:
        The photographs, one size, in the order of the file.

    Raises:
        SpecError: At ``space.file``, ``space.image_column``, ``space.label_column`` or ``space.rows``: what the spec
            asks for is not there.
        DataError: Something in the file cannot be used; names the file, the row and what it holds.

    Example:
        >>> photographs = read_images(Images(file="sample:cifar10"))
        >>> photographs.pixels.shape, int((photographs.labels == 3).sum())
        ((2000, 32, 32, 3), 200)
    """
    if space.file.startswith(HUB):
        found = _read_hub(space, seed)
    elif (path := _locate(space.file, folder)).suffix == ".parquet":
        found = _read_parquet(path, space, seed)
    elif path.suffix in {".npy", ".npz"}:
        found = _read_numpy(path, space, seed)
    else:
        raise _refuse("space.file", f"found {space.file}", "need a .parquet, .npy or .npz file, or sample:cifar10")
    if space.size is not None:
        found = replace(found, pixels=resized(found.pixels, space.size))
    for array in (found.pixels, found.rows, found.labels):
        if array is not None:
            array.setflags(write=False)
    return found


def resized(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """(n, size, size, 3) of the same kind of number: averages over boxes where it shrinks, else bilinear; not cropped.

    Example:
        >>> black_and_white = np.array([[[[0] * 3, [255] * 3]] * 2], np.uint8)
        >>> resized(black_and_white, 1).tolist()
        [[[[128, 128, 128]]]]
    """
    from PIL import Image

    height, width = pixels.shape[1:3]
    if (height, width) == (size, size):
        return pixels
    rule = Image.Resampling.BOX if size <= min(height, width) else Image.Resampling.BILINEAR
    out = np.empty((len(pixels), size, size, 3), pixels.dtype)
    for image, target in zip(pixels, out, strict=True):
        if pixels.dtype == np.uint8:
            target[:] = np.asarray(Image.fromarray(image).resize((size, size), rule))
        else:
            for channel in range(3):
                target[..., channel] = np.asarray(Image.fromarray(image[..., channel]).resize((size, size), rule))
    return out


def _refuse(path: str, found: str, need: str) -> SpecError:
    return SpecError([Problem(path, found, need)])


def _bad_row(space: Images, row: int, found: str, need: str) -> DataError:
    return DataError(f"space.file: {space.file}, row {row} (counted from 0): {found}; {need}")


def _locate(file: str, folder: str | Path | None) -> Path:
    if file.startswith("sample:"):
        samples = {f"sample:{path.stem}": path for path in sorted(SAMPLES.glob("*.parquet"))}
        if file not in samples:
            raise _refuse("space.file", f"found {file}", f"the samples that ship with Crossfeed: {', '.join(samples)}")
        return samples[file]
    path = Path(folder or ".") / Path(file).expanduser()
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise _refuse("space.file", f"{path} {state}", "need a file; relative names start at the spec's folder")
    return path


def _draw_rows(space: Images, total: int, seed: int) -> npt.NDArray[np.int64]:
    if total == 0:
        raise DataError(f"space.file: {space.file} holds no images; need at least one row")
    if space.rows is None:
        return np.arange(total, dtype=np.int64)
    if space.rows > total:
        raise _refuse("space.rows", f"found {space.rows}", f"{space.file} has {total} rows; ask for at most that many")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ROWS_PURPOSE,)))
    return np.sort(rng.choice(total, space.rows, replace=False)).astype(np.int64)


def _label_column(space: Images, columns: list[str], kind: str) -> str | None:
    """The label column to read; None when there is none and the spec did not ask for one by name."""
    name = space.label_column
    if name is None or name in columns:
        return name
    if "label_column" in space.model_fields_set:
        need = f"{space.file} has the {kind} {', '.join(columns)}; name one of them, or null for no labels"
        raise _refuse("space.label_column", f"found {name}", need)
    return None


def _read_parquet(path: Path, space: Images, seed: int) -> Photographs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            if space.image_column not in columns:
                need = f"{space.file} has the columns {', '.join(columns)}; name the one with the images"
                raise _refuse("space.image_column", f"found {space.image_column}", need)
            label_column = _label_column(space, columns, "columns")
            rows = _draw_rows(space, file.metadata.num_rows, seed)
            wanted = [space.image_column, *([label_column] if label_column else [])]
            labels = np.empty(len(rows), np.int64) if label_column else None
            pixels: npt.NDArray[Any] | None = None
            start = filled = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                here = rows[(rows >= start) & (rows < start + len(batch))]
                if len(here):
                    batch_taken = batch.take(pa.array(here - start))
                    block = _images(batch_taken.column(space.image_column), here, space)
                    pixels = _allocate(pixels, block, len(rows), here, space)
                    pixels[filled : filled + len(here)] = block
                    if labels is not None:
                        values = _labels(batch_taken.column(str(label_column)), here, space)
                        labels[filled : filled + len(here)] = values
                    filled += len(here)
                start += len(batch)
            names = _label_names(file.schema_arrow.metadata, label_column)
    except (pa.ArrowException, OSError) as error:
        message = f"space.file: {space.file} cannot be read as Parquet ({error}); need a whole Parquet file"
        raise DataError(message) from error
    assert pixels is not None  # _draw_rows returns at least one row
    return Photographs(pixels, labels, rows, names)


def _read_hub(space: Images, seed: int) -> Photographs:
    """A data set on a hub, as its Parquet file would be read."""
    import datasets

    try:
        dataset = open_hub(space.file)
    except DataError as error:
        raise DataError(f"space.file: {error}") from None
    columns = list(dataset.column_names)
    if space.image_column not in columns:
        need = f"{space.file} has the columns {', '.join(columns)}; name the one with the images"
        raise _refuse("space.image_column", f"found {space.image_column}", need)
    label_column = _label_column(space, columns, "columns")
    names = tuple(getattr(dataset.features.get(label_column), "names", None) or ())
    rows = _draw_rows(space, len(dataset), seed)
    if isinstance(dataset.features[space.image_column], datasets.Image):
        dataset = dataset.cast_column(space.image_column, datasets.Image(decode=False))
    dataset = dataset.with_format("arrow")
    pixels: npt.NDArray[Any] | None = None
    labels = np.empty(len(rows), np.int64) if label_column else None
    for start in range(0, len(rows), _BATCH):
        here = rows[start : start + _BATCH]
        table = dataset[here.tolist()].combine_chunks()
        block = _images(table.column(space.image_column).chunk(0), here, space)
        pixels = _allocate(pixels, block, len(rows), here, space)
        pixels[start : start + len(here)] = block
        if labels is not None:
            labels[start : start + len(here)] = _labels(table.column(str(label_column)).chunk(0), here, space)
    assert pixels is not None  # _draw_rows returns at least one row
    return Photographs(pixels, labels, rows, names)


def _allocate(
    pixels: npt.NDArray[Any] | None, block: npt.NDArray[Any], total: int, rows: npt.NDArray[np.int64], space: Images
) -> npt.NDArray[Any]:
    if pixels is None:
        return np.empty((total, *block.shape[1:]), block.dtype)
    if pixels.shape[1:] != block.shape[1:]:
        raise _other_size(space, int(rows[0]), block.shape[1:3], pixels.shape[1:3])
    return pixels


def _other_size(space: Images, row: int, found: tuple[int, ...], first: tuple[int, ...]) -> DataError:
    sizes = f"found {found[0]} x {found[1]} pixels (height x width)"
    return _bad_row(space, row, sizes, f"the images before it have {first[0]} x {first[1]}; resize all to one size")


def _images(column: Any, rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[Any]:
    """One batch of the image column as (m, h, w, 3)."""
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        import pyarrow.compute as pc

        column = pc.struct_field(column, "bytes")
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _decode_all(column, rows, space)
    if _is_list(kind):
        return _as_pixels(_unnest(column, rows, space), rows, space)
    need = "need encoded images (a struct with `bytes`, or bytes) or pixels (nested lists)"
    raise _refuse("space.image_column", f"column {space.image_column} of {space.file} holds {kind}", need)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _decode_all(column: Any, rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[np.uint8]:
    images: list[npt.NDArray[np.uint8]] = []
    for row, scalar in zip(rows.tolist(), column, strict=True):
        data = scalar.as_py()
        if not data:
            raise _bad_row(space, row, "found no image bytes", "need the encoded image itself, not only its path")
        images.append(_decode(data, row, space))
        if images[-1].shape != images[0].shape:
            raise _other_size(space, row, images[-1].shape, images[0].shape)
    return np.stack(images)


def _decode(data: bytes, row: int, space: Images) -> npt.NDArray[np.uint8]:
    import io
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a palette with transparency, odd EXIF: the pixels are fine
            with Image.open(io.BytesIO(data)) as image:
                if image.mode in _EIGHT_BIT_MODES:
                    return np.asarray(image.convert("RGB"))
                mode = image.mode
    except Exception as error:  # Pillow's decoders raise many kinds on corrupt input
        reason = f"{type(error).__name__}: {error}".split("<_io")[0].strip()
        found = f"found bytes that are no readable image ({reason})"
        raise _bad_row(space, row, found, "repair or remove the row") from error
    raise _bad_row(space, row, f"found an image of mode {mode}", "need 8 bits a channel; convert it first")


def _unnest(column: Any, rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[Any]:
    """Nested lists of numbers as an array; every image in the batch must have one shape."""
    import pyarrow.compute as pc
    import pyarrow.types

    shape: list[int] = [len(column)]
    while _is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~(lengths == lengths[0]) | (lengths < 1))
        if len(wrong) or column.null_count:
            at = int(wrong[0]) // max(1, len(column) // shape[0]) if len(wrong) else 0
            need = "need the same nested lists [height][width][3] in every row, with no nulls; resize all to one size"
            raise _bad_row(space, int(rows[at]), "found pixels of another shape than in the rows before, or none", need)
        shape.append(int(lengths[0]))
        column = column.flatten()
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        need = "need lists of numbers: pixels [height][width][3]"
        raise _refuse("space.image_column", f"found lists of {column.type}", need)
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) // int(np.prod(shape[1:]))
        raise _bad_row(space, int(rows[at]), "found a null among the pixels", "need a number for every channel")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def _as_pixels(array: npt.NDArray[Any], rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[Any]:
    """(n, h, w, 3) as uint8 or float32, from any numbers of the right range."""
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        need = "need channels last; use transpose(0, 2, 3, 1)"
        raise _refuse("space.file", f"{space.file} has shape {array.shape}", need)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or 0 in array.shape:
        need = "need (n, h, w, 3), or (n, h, w) for grayscale"
        raise _refuse("space.file", f"{space.file} has an array of shape {array.shape}", need)
    if array.dtype.kind not in "uif":
        raise _refuse("space.file", f"{space.file} has an array of {array.dtype}", "need uint8, or floats in [0, 1]")
    fractions = array.dtype.kind == "f"
    high, need = (1, "need floats in [0, 1]; divide by 255") if fractions else (255, "need integers in 0..255")
    if array.dtype != np.uint8:
        for start in range(0, len(array), _BATCH):
            part = array[start : start + _BATCH]
            bad = np.argwhere(~((part >= 0) & (part <= high)))
            if len(bad):
                raise _bad_row(space, int(rows[start + bad[0][0]]), f"found the value {part[tuple(bad[0])]}", need)
    if array.ndim == 3:
        array = array[..., None]
    full = np.broadcast_to(array, (*array.shape[:3], 3))
    return np.array(full, dtype=np.float32 if fractions else np.uint8, order="C")


def _labels(column: Any, rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[np.int64]:
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        need = "need integers from 0; encode the classes as numbers, or set label_column: null"
        raise _refuse("space.label_column", f"column {space.label_column} of {space.file} holds {column.type}", need)
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise _bad_row(space, int(rows[at]), "found label null", "need an integer from 0, or label_column: null")
    return _nonnegative(column.to_numpy(zero_copy_only=False), rows, space)


def _nonnegative(labels: npt.NDArray[Any], rows: npt.NDArray[np.int64], space: Images) -> npt.NDArray[np.int64]:
    bad = np.flatnonzero(labels < 0)
    if len(bad):
        need = "need an integer from 0; remove unlabelled rows, or set label_column: null"
        raise _bad_row(space, int(rows[bad[0]]), f"found label {labels[bad[0]]}", need)
    return labels.astype(np.int64)


def _label_names(metadata: dict[bytes, bytes] | None, label_column: str | None) -> tuple[str, ...]:
    """Class names from the hub's metadata; empty where it names none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _arrays(path: Path, space: Images) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """The arrays that are needed from a NumPy file, and the names of all; a lone array counts as the image column."""
    if path.suffix == ".npy":
        return {space.image_column: np.lib.format.open_memmap(path, mode="r")}, [space.image_column]
    with path.open("rb") as handle, zipfile.ZipFile(handle):
        handle.seek(0)
        archive = np.load(handle, allow_pickle=False)
        names = list(archive.files)
        if len(names) == 1 and names[0] != space.image_column:
            return {space.image_column: archive[names[0]]}, [space.image_column]
        return {name: archive[name] for name in names if name in (space.image_column, space.label_column)}, names


def _read_numpy(path: Path, space: Images, seed: int) -> Photographs:
    try:
        arrays, names = _arrays(path, space)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        message = f"space.file: {space.file} cannot be read ({error}); need an .npy or .npz of plain numbers"
        raise DataError(message) from error
    if space.image_column not in arrays:
        need = f"{space.file} has the arrays {', '.join(names)}; name the one with the images"
        raise _refuse("space.image_column", f"found {space.image_column}", need)
    array = arrays[space.image_column]
    if array.ndim < 3:
        raise _refuse("space.file", f"{space.file} has an array of shape {array.shape}", "need (n, h, w, 3)")
    rows = _draw_rows(space, len(array), seed)
    name = _label_column(space, names, "arrays")
    labels = None
    if name is not None and name != space.image_column:
        labels = arrays[name]
        if labels.shape != array.shape[:1] or labels.dtype.kind not in "iu":
            found = f"{name} of {space.file} has {labels.dtype} of shape {labels.shape}"
            raise _refuse("space.label_column", found, f"need one integer an image: ({len(array)},)")
        labels = _nonnegative(labels[rows], rows, space)
    return Photographs(_as_pixels(array[rows] if space.rows else array, rows, space), labels, rows)
