"""Numbers and arrays in a spec: finite, float64, read from files beside the spec.

An array is written in place (a number, a list, nested lists) or read from a file: ``{file: x.npz, key: a}`` with
.npz, .npy, .csv or .parquet; ``columns`` names the columns of a table.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from crossfeed.describe.wording import parts, short
from crossfeed.errors import DataError

_FLOAT_BITS = 1024


def refuse(found: str, need: str, index: tuple[int, ...] = ()) -> PydanticCustomError:
    """What a validator raises: what stands there, what is needed, and where inside an array."""
    return PydanticCustomError("spec", "{found}; {need}", {"found": found, "need": need, "index": index})


def _plain(value: Any) -> Any:
    """Numbers only: no true and false, no text that looks like a number; NumPy and torch scalars become Python's."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        raise refuse(f"found {short(value)}", "need a number")
    if isinstance(value, (str, bytes)):
        hint = " without quotes" if isinstance(value, str) and _is_number(value) else ""
        raise refuse(f"found the text {short(value)}", f"need a number{hint}")
    if isinstance(value, int) and value.bit_length() > _FLOAT_BITS:
        raise refuse(f"found {short(value)}", "need a number of ordinary size")
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _finite(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise refuse(f"found {value}", "need a finite number")
    return value


FINITE = BeforeValidator(_finite)
"""Put it after the bounds, ``Annotated[float, Field(ge=0), FINITE]``, or the JSON Schema loses them."""
Number = Annotated[float, FINITE]
Share = Annotated[float, Field(ge=0, le=1), FINITE]
Positive = Annotated[float, Field(gt=0), FINITE]
Whole = Annotated[int, FINITE]
Count = Annotated[int, Field(ge=1), FINITE]


def _candidates(value: Any) -> float:
    if isinstance(value, str) and value.strip().lower() in {"inf", "infinity", ".inf", "∞"}:
        return math.inf
    need = "need a whole number of candidates, 1 or more, or inf"
    if isinstance(value, (str, bytes)) or value is None:
        raise refuse(f"found {short(value)}", need)
    value = _plain(value)
    if not isinstance(value, (int, float)) or not (value == math.inf or (value >= 1 and value == value // 1)):
        raise refuse(f"found {short(value)}", need)
    return float(value)


Candidates = Annotated[
    float,
    BeforeValidator(_candidates),
    PlainSerializer(lambda k: "inf" if math.isinf(k) else int(k) if k == int(k) else k),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "inf"}]}),
]


def _read(value: Any, info: ValidationInfo, text: bool) -> np.ndarray:
    in_place, source = not isinstance(value, dict), ""
    if not in_place:
        from crossfeed.describe.files import read_array

        source = f" in {value.get('file')!r}"
        try:
            value = read_array(value, (info.context or {}).get("folder"), text=text)
        except DataError as error:
            raise refuse(*parts(str(error))) from None
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    need = "need a number, a list of numbers, or a file with them"
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        if isinstance(value, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in value):
            raise refuse(*_ragged(value)) from None
        raise refuse(f"found {short(value)}", need) from None
    if in_place and isinstance(value, (list, tuple)):
        _only_numbers(value, text)
    if array.dtype.kind == "O" and isinstance(value, (int, list, tuple)):  # whole numbers beyond 64 bits
        try:
            array = np.array(value, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise refuse(f"found {short(value)}", f"{need} of ordinary size") from None
    kind = array.dtype.kind
    if kind in "US" and text and array.ndim == 1:
        array = array.astype(np.str_)
    elif kind in "iuf":
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            index = tuple(map(int, bad[0]))
            place = f" at [{', '.join(map(str, index))}]" if index else ""
            more = f" ({len(bad):,} such entries)" if len(bad) > 1 else ""
            raise refuse(f"found {array[index]}{place}{more}{source}", "need finite numbers", index if in_place else ())
    else:
        inside = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else short(value)
        raise refuse(f"found {inside}", need)
    array.setflags(write=False)
    return array


def _ragged(rows: list[Any] | tuple[Any, ...]) -> tuple[str, str, tuple[int, ...]]:
    """Where a nested list stops being rectangular."""
    need = "need a rectangular array"
    length = len(rows[0]) if isinstance(rows[0], (list, tuple)) else None
    for index, row in enumerate(rows):
        here = len(row) if isinstance(row, (list, tuple)) else None
        if here != length:
            one, other = ("a single value" if n is None else f"{n} entries" for n in (length, here))
            return f"found rows of different lengths: [0] has {one}, [{index}] has {other}", need, (index,)
    return "found rows of different lengths", need, ()


def _only_numbers(value: list[Any] | tuple[Any, ...], text: bool) -> None:
    """Refuse true, false, null and text among the entries of nested lists."""
    todo: list[tuple[Any, tuple[int, ...]]] = [(value, ())]
    words = text and all(isinstance(entry, str) for entry in value)
    while todo:
        rows, index = todo.pop()
        for at, entry in enumerate(rows):
            if isinstance(entry, (list, tuple)):
                if len(index) < 8:
                    todo.append((entry, (*index, at)))
            elif entry is None or isinstance(entry, (bool, np.bool_, dict)) or (isinstance(entry, str) and not words):
                need = "need numbers only, or labels only" if text else "need a number"
                raise refuse(f"found {short(entry)}", need, (*index, at))


def _numbers(value: Any, info: ValidationInfo) -> np.ndarray:
    return _read(value, info, text=False)


def _numbers_or_labels(value: Any, info: ValidationInfo) -> np.ndarray:
    return _read(value, info, text=True)


def _columns(array: np.ndarray) -> np.ndarray:
    return array[:, None] if array.ndim == 1 else array


def _summary(array: np.ndarray) -> Any:
    return array.tolist()


_FILE_SCHEMA = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "description": ".npz, .npy, .csv or .parquet; relative to the spec."},
        "key": {"type": "string", "description": "Name of the array in an .npz."},
        "columns": {
            "type": ["array", "string"],
            "items": {"type": "string"},
            "description": "Columns of a table; all by default.",
        },
    },
    "required": ["file"],
    "additionalProperties": False,
}


def _schema(*entries: str) -> WithJsonSchema:
    rows = {"type": "array", "items": {"type": ["number", "array"], "items": {"type": "number"}}}
    lists = [{"type": "array", "items": {"type": kind}} for kind in entries]
    description = "A number, a list, nested lists, or a file beside the spec."
    return WithJsonSchema({"description": description, "anyOf": [{"type": "number"}, rows, *lists, _FILE_SCHEMA]})


_AS_LISTS = PlainSerializer(_summary)

Array = Annotated[np.ndarray, BeforeValidator(_numbers), _AS_LISTS, _schema()]
Labels = Annotated[np.ndarray, BeforeValidator(_numbers_or_labels), _AS_LISTS, _schema("string")]
"""An array of numbers, or a list of labels."""
Columns = Annotated[np.ndarray, BeforeValidator(_numbers), AfterValidator(_columns), _AS_LISTS, _schema()]
"""An array (n, c); a list of n numbers is one column."""
