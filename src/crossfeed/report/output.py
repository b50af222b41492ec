"""Where results go and where they are read back: folders that can be written, whole files, finished audits."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crossfeed.errors import CrossfeedError, DataError

_AUDIT_KEYS = ("spec_name", "models", "edges", "stable", "stability", "influence", "direction", "changes", "thresholds")
_KEYS = {
    "crossfeed-audit": _AUDIT_KEYS,
    "crossfeed-estimate": (
        *("spec_name", "space", "point", "horizon", "samples", "models", "evaluations", "settings", "influence"),
        *("trajectory", "examples", "sources", "pickers", "mismatch", "checks", "changes", "seconds", "warnings"),
    ),
}
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


@contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """A folder for results, made and tried before the work that takes long.

    If the block fails and leaves a new folder empty, the folder is removed.

    Args:
        folder: New, or existing with whatever is in it.

    Yields:
        The folder.

    Raises:
        CrossfeedError: The folder cannot be made or written to, beforehand or in the block.
    """
    made = not os.path.exists(folder)  # Path.exists raises on some bad names
    probe = folder / f".crossfeed-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise CrossfeedError(f"--out: found {folder}, which is a file; give a folder, new or existing") from None
    except OSError as error:
        raise _cannot_write(folder, error) from None
    try:
        yield folder
    except BaseException as error:
        if made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in _STORAGE:
            raise _cannot_write(folder, error) from None
        raise


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file beside ``path``, then move it there: a reader never sees half a file.

    Args:
        path: The file to make or replace.
        save: Called with the temporary file, whose name ends like ``path``'s.

    Raises:
        CrossfeedError: The file cannot be written; an existing one is as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> write_whole(path, lambda file: file.write_text("42"))
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('42', 1)
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        save(partial)
        os.replace(partial, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def save_result(path: str | Path, json: Callable[[], str], html: Callable[[], str], errors: str = "strict") -> Path:
    """Write a result's page (.html) or its data (.json), by the suffix of ``path``.

    Args:
        path: The file to make or replace.
        json: Gives the data's text.
        html: Gives the page.
        errors: What becomes of characters that no file can hold, as :meth:`Path.write_text` has it.

    Raises:
        DataError: the path cannot be written or its suffix is unknown.
    """
    path = Path(path)
    if path.suffix not in (".json", ".html", ".htm"):
        raise DataError(f"{path}: cannot tell what to write; use a name that ends in .html or .json")
    text = json() if path.suffix == ".json" else html()
    try:
        path.write_text(text, encoding="utf-8", errors=errors)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    return path


def _cannot_write(path: Path, error: OSError) -> CrossfeedError:
    return CrossfeedError(f"{path}: cannot be written ({error.strerror}); give --out a place you can write")


def read_audit(path: Path) -> dict[str, Any]:
    """The contents of an audit.json, checked to be an audit of closed forms (``crossfeed-audit``) or of networks (``crossfeed-estimate``).

    Args:
        path: The file.

    Returns:
        What the audit's ``.data`` was.

    Raises:
        DataError: No such file, no JSON, another format or version, or parts are missing.
    """
    again = "make it again with `crossfeed audit SPEC`"
    try:
        data = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the audit.json that an audit wrote") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON file ({error}); {again}") from None
    if not isinstance(data, dict) or data.get("format") not in _KEYS:
        raise DataError(
            f"{path}: is JSON, but no audit: its `format` is not `crossfeed-audit` or `crossfeed-estimate`; {again}"
        )
    if data.get("version") != 1:
        raise DataError(f"{path}: found audit version {data.get('version')!r}; this Crossfeed reads version 1; {again}")
    missing = [key for key in _KEYS[data["format"]] if key not in data]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; {again}")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
