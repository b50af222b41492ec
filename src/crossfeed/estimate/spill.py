"""Room for gradients: in memory while they fit, else in files that are mapped into it and vanish with the tensors."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from crossfeed.errors import SettingError

SHARE = 0.8
"""Of the free memory, and of the free room of a disk, that a bank may take."""
_IN_MEMORY = {"tmpfs", "ramfs"}


class Room:
    """Where gradients are put.

    A file has its whole size reserved before anything is written, so that a full disk is an error here and no crash later. Where the
    system allows it, it has no name from then on, so that nothing is left whatever happens to the process; elsewhere it is deleted with the
    tensor.

    Args:
        memory: Bytes that may be taken in memory; what does not fit any more goes to files. None: half of :data:`SHARE` of what is free.
        folder: Of the files; None: the system's for temporary files (``TMPDIR``).

    Attributes:
        on_disk: Bytes in files so far.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        free = free_memory() if memory is None else None
        self.left = memory if memory is not None else None if free is None else int(SHARE * free / 2)
        self.folder, self.on_disk = folder, 0

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU, its values not set.

        Raises:
            SettingError: the disk is too small.
        """
        size = prod(shape) * dtype.itemsize
        if self.left is None or size <= self.left:
            if self.left is not None:
                self.left -= size
            return torch.empty(*shape, dtype=dtype)
        self.on_disk += size
        return mapped(shape, dtype, spill_folder(self.folder))


def mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """A tensor in a file of its own, which vanishes with it.

    Raises:
        SettingError: the folder's disk is too small, or the folder cannot be written to.
    """
    size = prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(*shape, dtype=dtype)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix="crossfeed-", suffix=".gradients", dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
            else:
                os.truncate(handle, size)
        finally:
            os.close(handle)
        flat = torch.from_file(name, shared=True, size=prod(shape), dtype=dtype)
    except (OSError, RuntimeError) as error:
        _delete(name)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(
            f"spill: {size / 2**30:,.1f} GiB of gradients do not go into {str(folder)!r} ({reason}); take fewer samples, a "
            "random projection (--projection), or set TMPDIR to a folder on a larger disk"
        ) from None
    except BaseException:
        _delete(name)
        raise
    try:
        os.unlink(name)
    except OSError:  # Windows keeps mapped files
        weakref.finalize(flat.untyped_storage(), _delete, name)
    return flat.view(shape)


def spill_folder(folder: Path | None) -> Path:
    """The folder of the files."""
    return Path(tempfile.gettempdir()) if folder is None else folder


def free_disk(folder: Path | None = None) -> int:
    """Bytes that are free for files; 0 where the folder is itself in memory (tmpfs), or not there."""
    where = spill_folder(folder)
    if _kind(where) in _IN_MEMORY:
        return 0
    try:
        return shutil.disk_usage(where).free
    except OSError:
        return 0


def free_memory() -> int | None:
    """Bytes of memory that are free here, by the machine and its container; None where neither tells."""
    found = []
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        top = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        found.append(top - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def _kind(folder: Path) -> str:
    """Kind of file system, where Linux tells."""
    best, kind = -1, ""
    with suppress(OSError):
        where = str(folder.resolve())
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            top = fields[1].rstrip("/")
            if (where == top or where.startswith(top + "/")) and len(top) >= best:
                best, kind = len(top), fields[2]
    return kind


def _delete(name: str) -> None:
    with suppress(OSError):
        if name:
            os.unlink(name)
