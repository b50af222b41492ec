"""Run the README's commands as a reader would: in order, in one fresh folder, stopping at the first that fails.

A fenced block is run when its opening line carries the word `run`: ```bash run, ```console run or ```python run (a page
shows only the language). Of a console block the lines after `$ ` are commands, the others what they print. The folder
starts with a copy of `examples/`, and `crossfeed` and `python` are those of the environment that runs this script.

Usage: python tools/readme_commands.py [README.md]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 900
LANGUAGES = ("bash", "console", "python")


@dataclass(frozen=True)
class Command:
    line: int
    language: str
    text: str

    @property
    def argv(self) -> list[str]:
        if self.language == "python":
            return [sys.executable, "-c", self.text]
        return ["bash", "-euo", "pipefail", "-c", self.text]


def commands(markdown: str) -> list[Command]:
    """The commands of every block marked `run`, with the lines they stand on."""
    found: list[Command] = []
    block: list[tuple[int, str]] | None = None
    language = fence = ""
    for number, line in enumerate(markdown.splitlines(), start=1):
        opening = re.match(r"^(`{3,}|~{3,})\s*(\w+)\s+(.*)$", line)
        if block is None:
            if opening and opening[2] in LANGUAGES and "run" in opening[3].split():
                block, fence, language = [], opening[1], opening[2]
        elif line.strip() == fence:
            found += _of_block(language, block)
            block = None
        else:
            block.append((number, line))
    if block is not None:
        raise SystemExit(f"README.md: the block that ends the file is not closed; add {fence}")
    return found


def _of_block(language: str, block: list[tuple[int, str]]) -> list[Command]:
    if language == "python":
        return [Command(block[0][0], language, "\n".join(line for _, line in block))] if block else []
    found: list[Command] = []
    more = False
    for number, line in block:
        if more:
            last = found.pop()
            found.append(Command(last.line, language, f"{last.text}\n{line}"))
        elif language == "console" and line.startswith("$ "):
            found.append(Command(number, language, line[2:]))
        elif language == "bash" and line.strip() and not line.lstrip().startswith("#"):
            found.append(Command(number, language, line))
        else:
            continue
        more = line.endswith("\\")
    return found


def run(command: Command, folder: Path) -> bool:
    print(f"README.md:{command.line}: {command.text}", flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    start = time.monotonic()
    try:
        done = subprocess.run(
            command.argv,
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            text=True,
            errors="replace",
        )
        code, output = str(done.returncode), done.stdout
    except subprocess.TimeoutExpired as late:
        raw = late.stdout or b""
        output = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        code = f"none after {SECONDS} s"
    if code == "0":
        print(f"  ok, {time.monotonic() - start:.1f} s")
        return True
    print(f"{output}\nREADME.md:{command.line}: failed with exit code {code}:\n{command.text}", file=sys.stderr)
    return False


def main(argv: list[str]) -> int:
    readme = Path(argv[0]) if argv else ROOT / "README.md"
    todo = commands(readme.read_text(encoding="utf-8"))
    if not todo:
        print(f"{readme}: no block is marked to be run; write ```bash run", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="crossfeed-readme-") as name:
        folder = Path(name)
        if (ROOT / "examples").is_dir():
            shutil.copytree(ROOT / "examples", folder / "examples")
        if not all(run(command, folder) for command in todo):
            return 1
    print(f"{len(todo)} commands of {readme.name} ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
