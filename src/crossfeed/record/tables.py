"""Samples and metrics as Parquet: training sets to tables and back without loss, for anyone's tools to read.

Texts are strings, vectors fixed-size lists of float32, images the hub's image schema (PNG bytes and a path), which
`datasets` decodes because the file says so in its metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from crossfeed.errors import DataError
from crossfeed.networks.base import Outputs
from crossfeed.record.pool import Pool

if TYPE_CHECKING:
    from crossfeed.networks.world import World

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
METRICS = pa.schema(
    [
        ("round", pa.int32()),
        ("model", pa.string()),
        ("metric", pa.string()),
        ("domain", pa.string()),
        ("value", pa.float64()),
        ("standard_error", pa.float64()),
    ]
)
_KEY = b"crossfeed"
_PNG_LEVEL = 2
_IMAGE_ROWS = 1024


@dataclass(frozen=True)
class Metric:
    """One number of one round.

    Attributes:
        model: Whose.
        metric: What, e.g. ``alignment``.
        domain: Evaluation or part; None where there is only one.
        value: The number.
        standard_error: None where it is not known.
    """

    model: str
    metric: str
    domain: str | None
    value: float
    standard_error: float | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """Outputs of an evaluation that are kept for showing.

    Attributes:
        model: Who answered.
        domain: The evaluation's name.
        prompts: (n,) int64.
        outputs: n outputs.
        rewards: n rewards.
    """

    model: str
    domain: str
    prompts: Tensor
    outputs: Outputs
    rewards: list[float]


def sample_table(pool: Pool, round: int, model: str, world: World) -> pa.Table:
    """A training set as a table, one row a sample; :func:`pool_of` is the way back.

    Args:
        pool: The training set, on any device.
        round: The round it was made in.
        model: The model it was made for.
        world: For the words of the prompts.
    """
    outputs = _column(pool.outputs)
    candidates = None if pool.candidates is None else _nested(_column(pool.candidates), pool.num_candidates)
    n = len(pool)
    columns: dict[str, Any] = {
        "sample_id": pa.array(pool.ids, pa.string()),
        "round": pa.repeat(pa.scalar(round, pa.int32()), n),
        "model": _constant(model, n),
        **_prompt_columns(pool.prompts, world),
        "output": outputs,
        "source": pa.array(pool.source, pa.string()),
        "kind": pa.array(pool.kind, pa.string()),
        "producer": pa.array(pool.producer, pa.string()),
        "producer_round": pa.array(pool.producer_round, pa.int32()),
        "data": pa.array(pool.data, pa.string()),
        "row": pa.array(pool.row, pa.int64()),
        "parent": pa.array(pool.parent, pa.string()),
        "num_candidates": pa.array(pool.num_candidates, pa.int32()),
        "rewards": pa.array(pool.rewards, pa.list_(pa.float64())),
        "picked": pa.array(pool.picked, pa.int32()),
        "picker": pa.array(pool.picker, pa.string()),
        "why": pa.array(pool.why, pa.string()),
        "candidates": pa.nulls(n, pa.list_(outputs.type)) if candidates is None else candidates,
    }
    about = {"format": "crossfeed-samples", "version": 1, "candidates": candidates is not None}
    return _with_metadata(pa.table(columns), about | _kind(pool.outputs), world)


def pool_of(table: pa.Table, file: str) -> Pool:
    """The training set that :func:`sample_table` made a table of, bit for bit.

    Raises:
        DataError: the table is no such table.
    """
    about = _about(table, "crossfeed-samples", file)
    lists: dict[str, list[Any]] = {
        name: table.column(name).to_pylist()
        for name in (
            *("source", "kind", "producer", "producer_round", "data", "row", "parent"),
            *("num_candidates", "rewards", "picked", "picker", "why"),
        )
    }
    candidates = table.column("candidates").combine_chunks().flatten() if about["candidates"] else None
    return Pool(
        ids=table.column("sample_id").to_pylist(),
        prompts=torch.from_numpy(table.column("prompt_id").to_numpy().copy()),
        outputs=_outputs(table.column("output").combine_chunks(), about, file),
        candidates=None if candidates is None else _outputs(candidates, about, file),
        **lists,
    )


def shown_table(shown: Sequence[Shown], round: int, world: World) -> pa.Table:
    """Evaluation outputs of one model as a table; at least one entry."""
    parts = []
    for entry in shown:
        n = len(entry.rewards)
        columns = {
            "round": pa.repeat(pa.scalar(round, pa.int32()), n),
            "model": _constant(entry.model, n),
            "domain": _constant(entry.domain, n),
            **_prompt_columns(entry.prompts, world, domain=False),
            "output": _column(entry.outputs),
            "reward": pa.array(entry.rewards, pa.float64()),
        }
        parts.append(pa.table(columns))
    about = {"format": "crossfeed-shown", "version": 1} | _kind(shown[0].outputs)
    return _with_metadata(pa.concat_tables(parts), about, world)


def metrics_table(round: int, metrics: Sequence[Metric]) -> pa.Table:
    """Metrics of a round as a table."""
    columns = [
        pa.repeat(pa.scalar(round, pa.int32()), len(metrics)),
        pa.array([m.model for m in metrics], pa.string()),
        pa.array([m.metric for m in metrics], pa.string()),
        pa.array([m.domain for m in metrics], pa.string()),
        pa.array([m.value for m in metrics], pa.float64()),
        pa.array([m.standard_error for m in metrics], pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=METRICS)


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    images = any(field.type == IMAGE for field in table.schema)
    rows = _IMAGE_ROWS if images else None  # viewers read a row group at a time
    pq.write_table(table, sink, compression="zstd", row_group_size=rows)
    return sink.getvalue()


def decode(data: bytes, file: str, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file.

    Raises:
        DataError: the bytes are no Parquet file, or lack a column.
    """
    try:  # not pq.read_table: its scanner's threads can outlive the read and abort the interpreter when it exits
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            missing = set(columns or ()) - set(parquet.schema_arrow.names)
            if missing:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            return parquet.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: is no whole Parquet file ({reason}); need one that a run wrote") from None


def plain_text(text: str) -> str:
    r"""Text that any file can hold: what is no valid Unicode (half of a surrogate pair) becomes ``?``.

    Example:
        >>> plain_text("a\ud800b")
        'a?b'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def to_png(pixels: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as PNG, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """PNG as (h, w, 3) uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


# --- columns --------------------------------------------------------------------------------------------------------


def _column(outputs: Outputs) -> Any:
    """Outputs as an Arrow array."""
    if isinstance(outputs, list):
        return pa.array([plain_text(text) for text in outputs], pa.string())
    array = outputs.detach().cpu().contiguous().numpy()
    if array.ndim == 4 and array.dtype == np.uint8:
        pictures = [to_png(pixels) for pixels in np.ascontiguousarray(array.transpose(0, 2, 3, 1))]
        fields = [pa.array(pictures, pa.binary()), pa.nulls(len(pictures), pa.string())]
        return pa.StructArray.from_arrays(fields, fields=list(IMAGE))
    if array.ndim == 2 and array.dtype == np.float32:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    raise TypeError(
        f"outputs of shape {array.shape} and type {array.dtype}; need texts, float32 vectors or uint8 images"
    )


def _nested(values: Any, counts: Sequence[int]) -> Any:
    """Values as lists, the first ``counts[0]`` in the first row."""
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _outputs(array: Any, about: dict[str, Any], file: str) -> Outputs:
    """Arrow array to outputs."""
    kind, shape = about["outputs"], about["shape"]
    if kind == "text":
        texts: list[str] = array.to_pylist()
        return texts
    if kind == "vectors":
        return torch.from_numpy(array.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape).copy())
    pictures = [from_png(data) for data in array.field("bytes").to_pylist()]
    wrong = [p.shape for p in pictures if [p.shape[2], *p.shape[:2]] != shape]
    if wrong:
        raise DataError(f"{file}: found an image of shape {wrong[0]}; need {shape} as its metadata says")
    stacked = np.stack(pictures) if pictures else np.zeros((0, *shape[1:], shape[0]), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))


def _constant(value: str, n: int) -> Any:
    return pa.repeat(pa.scalar(value, pa.string()), n)


def _prompt_columns(prompts: Tensor, world: World, domain: bool = True) -> dict[str, Any]:
    """Prompts by index and in words."""
    table, index = world.prompts, prompts.tolist()
    columns = {"prompt_id": pa.array(index, pa.int64())}
    if domain:
        columns["domain"] = pa.array([table.domain[i] for i in index], pa.string())
    columns["prompt"] = pa.array([plain_text(table.texts[i]) for i in index], pa.string())
    if world.medium == "images":
        columns["label"] = pa.array(table.labels[prompts.cpu()].tolist(), pa.int64())
    return columns


# --- metadata -------------------------------------------------------------------------------------------------------


def _kind(outputs: Outputs) -> dict[str, Any]:
    if isinstance(outputs, list):
        return {"outputs": "text", "shape": []}
    return {"outputs": "images" if outputs.ndim == 4 else "vectors", "shape": list(outputs.shape[1:])}


def _with_metadata(table: pa.Table, about: dict[str, Any], world: World) -> pa.Table:
    """What the table is, for the way back; and for `datasets`, which columns are images or class labels."""
    features: dict[str, Any] = {}
    if about["outputs"] == "images":
        features["output"] = {"_type": "Image"}
        if "candidates" in table.column_names:
            features["candidates"] = [{"_type": "Image"}]
        names = list(world.label_names)
        if names and len(set(names)) == len(names) and len(names) >= (world.num_classes or 0):
            features["label"] = {"names": names, "_type": "ClassLabel"}
    metadata = {_KEY: json.dumps(about).encode()}
    if features:
        metadata[b"huggingface"] = json.dumps({"info": {"features": features}}).encode()
    return table.replace_schema_metadata(metadata)


def _about(table: pa.Table, format: str, file: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
    except (KeyError, ValueError):
        about = {}
    if about.get("format") != format or about.get("version") != 1:
        raise DataError(f"{file}: found no table of the kind {format}, version 1; need one that a run wrote")
    return about
