"""What the numbers were measured on, and how a command's seconds and peak memory are taken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("crossfeed", "torch", "numpy", "scipy", "pydantic")


def machine(threads: int) -> dict[str, Any]:
    """Hardware, versions and commit."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py", "examples")
        return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def timed(command: list[str], threads: int) -> dict[str, Any]:
    """Run a command to its end: seconds, CPU seconds, peak MB, exit code, output and the last line of what it complained."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=complaints)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, complaints):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
        "code": process.returncode,
        "output": texts[0],
        "complaint": (texts[1].strip().splitlines() or [""])[-1],
    }


def child(task: str, threads: int, **arguments: Any) -> dict[str, Any]:
    """A task of :mod:`benchmarks.tasks` in a process of its own: what it returns, with that process's peak memory."""
    found = timed([sys.executable, "-m", "benchmarks.tasks", task, json.dumps(arguments)], threads)
    if found["code"]:
        raise RuntimeError(f"{task} {arguments} ended with code {found['code']}: {found['complaint']}")
    result: dict[str, Any] = json.loads(found["output"].splitlines()[-1])
    return {"peak_mb": found["peak_mb"]} | result
