"""The resolved spec inside a run folder: everything filled in, reloadable from anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from crossfeed.describe.node import Node, beside, hub_or_folder
from crossfeed.describe.schema import Ecosystem
from crossfeed.describe.translate import complaints_of
from crossfeed.errors import DataError, SpecError


def to_json(eco: Ecosystem, folder: Path) -> bytes:
    """The ecosystem as JSON, arrays as lists.

    Files are named relative to ``folder``, as those of a spec in that folder are, so that the copy means the same wherever it is
    read from and a project can be moved as a whole. Those that share no folder with it but the root keep absolute names.
    """
    start = os.path.realpath(folder)

    def rename(file: str) -> str:
        real = os.path.realpath(file)
        apart = len(Path(os.path.commonpath([start, real])).parts) < 2
        return real if apart else os.path.relpath(real, start)

    value = _dump(eco, rename)
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def from_json(data: bytes, file: Path) -> Ecosystem:
    """The ecosystem that :func:`to_json` wrote. Nothing is executed, and its data need not be there any more.

    Raises:
        SpecError: it is no valid spec; lists what is wrong.
        DataError: it is no JSON.
    """
    eco = Ecosystem.__new__(Ecosystem)
    try:  # as BaseModel.__init__ does, but with the folder that file names start from
        value = json.loads(data)
        Ecosystem.__pydantic_validator__.validate_python(value, self_instance=eco, context={"folder": str(file.parent)})
    except ValidationError as error:
        raise SpecError([c.problem(str(file)) for c in complaints_of(error, Ecosystem)]) from None
    except (ValueError, RecursionError):
        raise DataError(f"{file}: is no JSON file; restore it from a copy") from None
    return eco


def comparable(eco: Ecosystem) -> dict[str, Any]:
    """The ecosystem as plain values with every file by its real path: equal for specs that mean the same files."""
    return _dump(eco, os.path.realpath)


def digest(eco: Ecosystem) -> str:
    """SHA-256 of the validated spec with its arrays, as in audit.json; equal ecosystems have equal digests."""
    text = json.dumps(eco.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _dump(eco: Ecosystem, rename: Callable[[str], str]) -> dict[str, Any]:
    """The ecosystem as plain values, with the names of its files changed."""
    value = eco.model_dump(mode="json")
    _rename_files(eco, value, rename)
    return value


def _rename_files(node: Any, value: Any, rename: Callable[[str], str]) -> None:
    """Change file names in ``value``, the dump of ``node``."""
    if isinstance(node, Node):
        for name, field in type(node).model_fields.items():
            inside = getattr(node, name)
            if not isinstance(inside, str):
                _rename_files(inside, value[name], rename)
            elif _is_file(field, inside):
                value[name] = rename(inside)
    elif isinstance(node, dict):
        for key in node:
            _rename_files(node[key], value[key], rename)
    elif isinstance(node, (list, tuple)):
        for inside, dumped in zip(node, value, strict=True):
            _rename_files(inside, dumped, rename)


def _is_file(field: FieldInfo, name: str) -> bool:
    """Whether a field holds the name of a file or folder, and not that of a sample or of something on a hub."""
    found = [*field.metadata, *(m for part in get_args(field.annotation) for m in getattr(part, "__metadata__", ()))]
    meant = {getattr(mark, "func", None) for mark in found}
    if beside in meant:
        return not name.startswith(("sample:", "hub:"))
    return hub_or_folder in meant and os.path.isdir(name)
