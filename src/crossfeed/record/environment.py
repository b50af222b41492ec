"""What a run was made with: versions, commit, hardware. No user names, host names or home folders."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = (
    *("torch", "numpy", "scipy", "pyarrow", "pydantic", "pillow", "transformers", "tokenizers", "peft", "accelerate"),
    *("diffusers", "datasets", "safetensors", "gguf"),
)


def environment() -> dict[str, Any]:
    """Versions of Crossfeed, Python and libraries, and the machine; never fails, and leaves out what it cannot find.

    Example:
        >>> sorted(environment())
        ['commit', 'crossfeed', 'hardware', 'libraries', 'platform', 'python']
    """
    import crossfeed

    return {
        "crossfeed": crossfeed.__version__,
        "commit": commit(Path(crossfeed.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, and the GPUs' names."""
    import torch

    try:
        memory: float | None = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        memory = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError):
        gpus = []
    return {"cpu": _processor(), "cores": cores, "threads": torch.get_num_threads(), "memory_gib": memory, "gpus": gpus}


def commit(package: Path) -> dict[str, Any] | None:
    """The commit of the checkout that the package is run from; None when it is not run from one.

    Args:
        package: The package's folder. A repository that merely has an environment with the package inside is not meant.
    """

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return found.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return {"id": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
