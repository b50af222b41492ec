"""Reading arrays from files: .npz, .npy, .csv and .parquet, never with pickle; and functions named in a spec."""

from __future__ import annotations

import csv
import importlib
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfeed.describe.wording import data_error, did_you_mean, known, shape_text, short
from crossfeed.errors import DataError, Problem, SpecError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (".npz", ".npy", ".csv", ".parquet")
MAX_CSV_BYTES = 1 << 28
MAX_ARRAY_BYTES = 1 << 33
_KEYS = ("file", "key", "columns")


def read_array(spec: dict[str, Any], folder: str | Path | None = None, *, text: bool = False) -> np.ndarray:
    r"""Read the array that ``{file: …, key: …, columns: […]}`` names.

    A table (.csv with or without a header, .parquet) becomes (rows, columns), or (rows,) when it is one column. A
    Parquet column may hold lists of equal length, which become the columns. Nothing is ever unpickled.

    Args:
        spec: ``file``; ``key``, the array's name in an .npz (needed when it holds several); ``columns``, the columns
            of a table, all by default.
        folder: Where a relative file name starts; None for the working directory.
        text: Allow one column of text, as labels.

    Returns:
        The numbers as the file holds them (callers make them float64 and refuse what is not finite).

    Raises:
        DataError: what was found and what is needed; callers add where in the spec.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.csv").write_text("x,y\n1,2\n3,4\n")
        >>> read_array({"file": "a.csv", "columns": ["y"]}, folder).tolist()
        [2.0, 4.0]
    """
    name, key, columns = _request(spec)
    path = Path(folder or ".") / Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise data_error(f"the file {name!r}", f"a file that ends in {', '.join(KINDS)}")
    if key is not None and suffix != ".npz":
        raise data_error(f"`key` with the file {name!r}", "`key` for .npz only (tables take `columns`)")
    if columns is not None and suffix in {".npz", ".npy"}:
        raise data_error(f"`columns` with the file {name!r}", "`columns` for .csv and .parquet only")
    check_file(path, name)
    if suffix == ".csv":
        return _read_csv(path, name, columns, text)
    if suffix == ".parquet":
        return _read_parquet(path, name, columns, text)
    return _read_numpy(path, name, key)


def _request(spec: dict[str, Any]) -> tuple[str, str | None, list[str] | None]:
    for word in spec:
        if word not in _KEYS:
            raise data_error(f"an unknown key {short(word)} beside `file`", known(_KEYS, word).removeprefix("need "))
    name, key, columns = (spec.get(word) for word in _KEYS)
    if not isinstance(name, str) or not name.strip():
        found = f"`file: {short(name)}`" if "file" in spec else "a mapping without `file`"
        raise data_error(found, "`file: NAME`, or the numbers themselves")
    if not (key is None or isinstance(key, str)):
        raise data_error(f"`key: {short(key)}`", "the name of an array in the file, as text")
    if isinstance(columns, str):
        columns = [columns]
    if columns is not None:
        if not isinstance(columns, list) or not columns or not all(isinstance(c, str) for c in columns):
            raise data_error(f"`columns: {short(columns)}`", "a list of column names, as text")
        twice = [c for i, c in enumerate(columns) if c in columns[:i]]
        if twice:
            raise data_error(f"the column {short(twice[0])} twice", "each column once")
    return name, key, columns


def check_file(path: Path, name: str, holds: str = "numbers") -> None:
    """Raise a DataError unless ``path`` is an ordinary, readable, non-empty file."""
    try:
        if path.is_dir():
            raise data_error(f"{name!r}, which is a folder", "a file")
        if not path.exists():
            others = sorted(p.name for p in path.parent.iterdir())[:500] if path.parent.is_dir() else []
            need = f"a file; relative names start at the spec's folder{did_you_mean(path.name, others)}"
            raise data_error(f"{name!r}, which does not exist", need)
        if not path.is_file():
            raise data_error(f"{name!r}, which is no ordinary file", "a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise data_error(f"{name!r}, which is empty", f"a file with {holds}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise data_error(f"{name!r}, which cannot be read ({reason})", "a readable file") from None


def _read_numpy(path: Path, name: str, key: str | None) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        if key is None and len(sizes) != 1:
            raise data_error(f"{name!r} without `key`", f"`key`, {known(sizes).removeprefix('need ')}")
        key = next(iter(sizes)) if key is None else key
        if key not in sizes:
            raise data_error(f"no array {short(key)} in {name!r}", known(sizes, key).removeprefix("need "))
        if sizes[key] > MAX_ARRAY_BYTES:
            raise data_error(f"{sizes[key]:,} bytes under {key!r} in {name!r}", f"at most {MAX_ARRAY_BYTES:,}")
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[key]  # bytes when the archive's entry is no array
        if isinstance(array, np.ndarray):
            return array
        raise ValueError("not an array")
    except DataError:
        raise
    except Exception as error:  # damaged archives raise many kinds
        if "Python objects" in str(error) or "Object arrays" in str(error):
            need = "numbers: save with a numeric dtype; pickles are never read"
            raise data_error(f"Python objects in {name!r}", need) from None
        found = f"{name!r}, which is no readable {path.suffix.lower()} file ({_reason(error)})"
        raise data_error(found, "a whole NumPy file of numbers") from None


def _reason(error: Exception) -> str:
    """The first words of an error, on one line and without a semicolon."""
    return " ".join(str(error).replace(";", ",").split())[:120] or type(error).__name__


def _read_csv(path: Path, name: str, columns: list[str] | None, text: bool) -> np.ndarray:
    if path.stat().st_size > MAX_CSV_BYTES:
        need = f"at most {MAX_CSV_BYTES:,}; use .npy or .parquet"
        raise data_error(f"{path.stat().st_size:,} bytes in {name!r}", need)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError:
        raise data_error(f"{name!r}, which is not UTF-8 text", "a CSV file saved as UTF-8") from None
    except csv.Error as error:
        found = f"{name!r}, line {reader.line_num}, which is no CSV ({_reason(error)})"
        raise data_error(found, "comma-separated numbers") from None
    header = [cell.strip() for cell in rows[0][1]] if rows and not all(map(_is_number, rows[0][1])) else None
    if header is None and columns is not None:
        raise data_error(f"no header line in {name!r}", "names in its first line when `columns` is given")
    body = rows if header is None else rows[1:]
    if not body:
        raise data_error(f"no numbers in {name!r}", "at least one line of them")
    width = len(header if header is not None else body[0][1])
    for line, row in body:
        if len(row) != width:
            raise data_error(f"{len(row)} cells in {name!r}, line {line}", f"{width}, as in its first line")
    picked = list(range(width)) if header is None else _positions(header, columns or header, name)
    cells = [[row[at] for at in picked] for _, row in body]
    try:
        table = np.array(cells, dtype=np.float64)
    except ValueError:
        if text and len(picked) == 1:
            if columns is None:
                need = "a header line and `columns: [ITS NAME]` to read labels, so that it is clear what is a label"
                raise data_error(f"labels in {name!r} without `columns`", need) from None
            return np.array([row[0].strip() for row in cells])
        for (line, _), row in zip(body, cells, strict=True):
            for at, cell in zip(picked, row, strict=True):
                if not _is_number(cell):
                    what = short(cell) if cell.strip() else "an empty cell"
                    column = f"column {header[at]!r}" if header is not None else f"column {at + 1}"
                    raise data_error(f"{what} in {name!r}, line {line}, {column}", "a number") from None
        raise
    return table[:, 0] if len(picked) == 1 else table


def _positions(header: list[str], columns: list[str], name: str) -> list[int]:
    for column in columns:
        if header.count(column) != 1:
            times = "no column" if column not in header else "more than one column"
            raise data_error(f"{times} {short(column)} in {name!r}", known(header, column).removeprefix("need "))
    return [header.index(column) for column in columns]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, name: str, columns: list[str] | None, text: bool) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            wanted = names if columns is None else columns
            for column in wanted:
                if column not in names:
                    need = known(names, column).removeprefix("need ")
                    raise data_error(f"no column {short(column)} in {name!r}", need)
            if not wanted or not file.metadata.num_rows:
                raise data_error(f"no rows in {name!r}", "at least one")
            table = file.read(columns=wanted)
    except (pa.ArrowException, OSError, ValueError) as error:
        found = f"{name!r}, which is no readable Parquet file ({_reason(error)})"
        raise data_error(found, "a whole Parquet file") from None
    text = text and len(wanted) == 1
    arrays = [_column(table.column(column).combine_chunks(), column, name, text) for column in wanted]
    if len(arrays) == 1:
        return arrays[0]
    for column, array in zip(wanted, arrays, strict=True):
        if array.ndim != 1:
            need = "single numbers, or that column alone in `columns`"
            raise data_error(f"lists in the column {column!r} of {name!r}", need)
    return np.stack(arrays, axis=1)


def _column(column: Any, label: str, name: str, text: bool) -> np.ndarray:
    import pyarrow as pa

    where = f"in the column {label!r} of {name!r}"
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        found = f"{column.null_count:,} nulls {where} (first in row {row}, counted from 0)"
        raise data_error(found, "a value in every row")
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        rows = len(column)
        lengths = np.array(column.value_lengths() if not pa.types.is_fixed_size_list(kind) else [kind.list_size])
        if len(np.unique(lengths)) != 1:
            raise data_error(f"lists of different lengths {where}", "lists of one length")
        inner = _column(column.flatten(), label, name, False)
        return inner.reshape(rows, -1)
    if text and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return np.array(column.to_pylist(), dtype=np.str_)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise data_error(f"values of type {kind} {where}", "numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def load_callable(name: str, path: str = "function") -> Callable[[Tensor], Tensor]:
    """Import the function that a callable reward names. This runs code: call it only where code is allowed.

    Args:
        name: ``module:function``; modules in the working directory are found too.
        path: Where in the spec it stands, for errors.

    Returns:
        The function: outcomes (m, …) to rewards (m,).

    Raises:
        SpecError: the module is not found or fails on import, or has no such function.

    Example:
        >>> load_callable("math:sqrt")(4.0)
        2.0
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise _refuse(path, f"found {short(name)}", "need `module:function`")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(f"{missing}.")
        through = "" if own else f", which {module_name!r} imports"
        need = "need a module that is installed or lies in the working directory"
        raise _refuse(path, f"found no module {missing!r}{through}", need) from error
    except Exception as error:  # a user's module may raise anything
        found = f"found a module {module_name!r} that fails: {type(error).__name__}: {_reason(error)}"
        raise _refuse(path, found, "need one that imports") from error
    finally:
        if added:
            sys.path.remove(here)
    if not hasattr(module, attribute):
        options = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _refuse(path, f"found no {attribute!r} in {module_name!r}", known(options, attribute))
    function = getattr(module, attribute)
    if not callable(function):
        raise _refuse(path, f"found {name!r}, {shape_of(function)}", "need a function")
    return function


def shape_of(value: object) -> str:
    """What a thing is, in words."""
    return shape_text(value.shape) if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _refuse(path: str, found: str, need: str) -> SpecError:
    return SpecError([Problem(path, found, need)])
