"""One finished round as a folder: what is written into it, and how it is read back and checked."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torch import Tensor

from crossfeed.errors import DataError
from crossfeed.record import checkpoints, tables
from crossfeed.record.commit import write_new
from crossfeed.record.pool import Pool
from crossfeed.record.tables import Metric, Shown

if TYPE_CHECKING:
    from crossfeed.networks.world import World

__all__ = ["Metric", "RoundRecord", "Shown", "file_names", "read_info", "read_whole", "write_round"]

INFO = "round.json"
METRICS = "metrics.parquet"
CHECKPOINTS = ("parameters", "optimizer")
_LONGEST = 100


@dataclass(eq=False)
class RoundRecord:
    """What a finished round hands to the record.

    Attributes:
        round: Its number; 0 for the start.
        metrics: Numbers of all models.
        pools: By model, its new rows; models that were left out of the round are missing here and below.
        parameters: By model, the parameters after the round.
        optimizers: By model, the optimiser's state after the round, where it is kept.
        shown: Outputs to show.
        seconds: By stage.
        info: Anything else, as JSON; numbers that are not finite become null.
    """

    round: int
    metrics: list[Metric] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)
    parameters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def file_names(models: Iterable[str]) -> dict[str, str]:
    """A file name for each model: percent-encoded, not too long, different also where capitals do not count.

    Example:
        >>> file_names(["p", "my model", "q/2"])
        {'p': 'p', 'my model': 'my%20model', 'q/2': 'q%2F2'}
    """
    out: dict[str, str] = {}
    for model in models:
        name = quote(model, safe="")
        if len(name) > _LONGEST or name.lower() in {other.lower() for other in out.values()}:
            name = f"{name[:_LONGEST]}-{hashlib.sha256(model.encode('utf-8', 'replace')).hexdigest()[:16]}"
        out[model] = name
    return out


def write_round(folder: Path, record: RoundRecord, names: Mapping[str, str], world: World | None) -> None:
    """Write every file of a round into a folder, round.json last.

    Args:
        folder: Empty.
        record: The round.
        names: File names of the models.
        world: For the words of prompts; needed when there are pools or outputs to show.
    """
    files: dict[str, Any] = {}
    models: dict[str, dict[str, str]] = {}

    def put(model: str, what: str, suffix: str, data: bytes) -> None:
        file = f"{what}-{names[model]}.{suffix}"
        files[file] = write_new(folder / file, data)
        models.setdefault(model, {})[what] = file

    files[METRICS] = write_new(folder / METRICS, tables.encode(tables.metrics_table(record.round, record.metrics)))
    for model in names:
        if model in record.pools:
            table = tables.sample_table(record.pools[model], record.round, model, _needed(world))
            put(model, "samples", "parquet", tables.encode(table))
        shown = [entry for entry in record.shown if entry.model == model]
        if shown:
            put(model, "shown", "parquet", tables.encode(tables.shown_table(shown, record.round, _needed(world))))
        for what, tensors in zip(CHECKPOINTS, (record.parameters, record.optimizers), strict=True):
            if model in tensors:
                put(model, what, "safetensors", checkpoints.encode(tensors[model]))
    about = {
        "format": "crossfeed-round",
        "version": 1,
        "round": record.round,
        "models": models,
        "files": files,
        "seconds": _plain(record.seconds),
        "info": _plain(record.info),
    }
    write_new(folder / INFO, to_json(about | {"sha256": _digest(about)}))


def read_info(folder: Path) -> dict[str, Any]:
    """round.json, checked by its own checksum.

    Raises:
        DataError: it is missing, cut short or changed; the message has no advice, callers add it.
    """
    file = folder / INFO
    try:
        about = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: is missing, so this is no finished round") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: was cut short or changed ({str(error)[:100]})") from None
    if not isinstance(about, dict) or about.get("format") != "crossfeed-round":
        raise DataError(f"{file}: describes no round")
    if about.get("version") != 1:
        raise DataError(f"{file}: found version {about.get('version')!r}; this Crossfeed reads version 1")
    claimed = about.pop("sha256", None)
    if claimed != _digest(about):
        raise DataError(f"{file}: was changed or damaged: its SHA-256 is not the one it names")
    named = [name for files in about["models"].values() for name in files.values()]
    for name in [*named, *about["files"]]:  # checksums are no signatures: a folder may come from anybody
        if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
            raise DataError(f"{file}: names {name!r}, which is no file of this folder")
    if not set(named) <= set(about["files"]):
        raise DataError(f"{file}: names a file that it does not list")
    return about


def read_whole(path: Path, expected: Mapping[str, Any]) -> bytes:
    """A file's bytes, checked against size and SHA-256 from round.json.

    Raises:
        DataError: as :func:`read_info`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: is missing, though round.json lists it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) != expected["bytes"]:
        raise DataError(f"{path}: holds {len(data):,} bytes, but was written with {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DataError(f"{path}: was changed or damaged: its SHA-256 is not the one in round.json")
    return data


def to_json(value: Any) -> bytes:
    """Readable JSON, as bytes."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")


def _digest(about: Mapping[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    """Values that JSON has: names as text, tensors and arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inside) for inside in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _needed(world: World | None) -> World:
    if world is None:
        raise ValueError("samples are written with the words of their prompts; give the world")
    return world
