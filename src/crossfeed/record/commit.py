"""Writes that are there as a whole or not at all: files, folders, and the lock that keeps a second writer out.

The order is always the same: write under a name that nobody reads, make the disk have it (fsync), give it its real name
(rename, the one step that counts), make the disk have that. So a process may be killed and the power may fail at any
moment.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from crossfeed.errors import CrossfeedError, NotAvailableError

PARTIAL = ".partial-"
LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_PATIENCE = 1.0


def write_new(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file that is not there yet, down to the disk.

    Returns:
        ``{"sha256": …, "bytes": …}`` of what was written.
    """
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def replace_file(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``; a reader sees the old contents or the new, never half of them."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``path`` when the block ends; when it fails, ``path`` is as it was."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the disk have the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems have no fsync of folders
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when the block ends, and vanishes when it fails.

    Args:
        target: Must not exist; its parent must.

    Yields:
        The folder to fill. Files in it must be synced by who writes them (:func:`write_new` does).
    """
    partial = target.with_name(f"{PARTIAL}{target.name}-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        sync_folder(partial)
        os.rename(partial, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what killed writers left in a folder; call it only while holding the lock."""
    for path in folder.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The system releases it when the process ends, however it ends.

    Raises:
        CrossfeedError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        message = "run folders can be read, but not written, on this system; need Linux or macOS"
        raise NotAvailableError(message) from None
    with open(folder / LOCK, "a+", encoding="ascii") as file:
        deadline = time.monotonic() + _PATIENCE  # who asks whether a run is active holds the lock for an instant
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read(20).strip() or "unknown"
                    raise CrossfeedError(
                        f"{folder}: another run is writing here (process {owner}); wait until it ends, or stop it"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                warnings.warn(
                    f"{folder}: the file system has no locks; see to it yourself that only one run writes here",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
        file.seek(0)
        file.truncate()
        with suppress(OSError):  # a full disk is no reason to refuse: the number is for people
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process, this one included, is writing."""
    try:
        import fcntl

        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


@contextmanager
def storage(folder: Path, what: str, after: str) -> Iterator[None]:
    """Turn an OSError of the block into one clear error.

    Args:
        folder: The run folder.
        what: What is being written, e.g. ``round 7``.
        after: What is safe and how to go on.

    Raises:
        CrossfeedError: names the folder, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            need = "make room (`run.checkpoints: last` keeps fewer checkpoints)"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            need = "make the folder writable"
        else:
            need = "see to the disk"
        raise CrossfeedError(f"{folder}: {what} cannot be written ({reason}); {need}{after}") from error
