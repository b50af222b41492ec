"""What the command line writes while it works: a progress bar on stderr, and text that is safe to print.

Nothing here touches stdout, so that ``--json`` can be piped. Rich is imported only when there is a terminal to draw on.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with (stage in words, steps done, steps in all; 0 when not known)."""

_NUMBER = re.compile(r"[0-9]+")


def plain(text: object) -> str:
    r"""Text without what a terminal would obey: control characters and marks that reorder text are dropped.

    Names and values of a spec end up in messages, and a spec may come from anyone. Newlines and tabs stay.

    Args:
        text: Anything; ``str`` is taken of it.

    Returns:
        The text, printable as it stands.

    Example:
        >>> plain("red \x1b[31mteam\x07\u202e!")
        'red [31mteam!'
    """
    return "".join(c for c in str(text) if c in "\n\t" or not _obeyed(c))


def _obeyed(character: str) -> bool:
    return (
        unicodedata.category(character) == "Cc"
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
    )


def _ignore(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}
    except (AttributeError, ValueError):  # stderr closed or absent
        return False


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr while the block runs; nothing when stderr is no terminal.

    Stages appear one under another in the order they are first named, and the bars vanish when the block ends. Stages that
    differ only in numbers, or in what follows `` · ``, share a line: ``round 3/10 · p: generating`` takes the place of
    ``round 2/10 · q: training``.

    Args:
        quiet: Draw nothing in any case.

    Yields:
        A function (stage, done, total) that may be called as often as wanted.

    Example:
        >>> with progress(quiet=True) as report:
        ...     report("retraining", 1, 40)
    """
    if quiet or not _is_terminal():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="dim"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # else what is printed to stdout would land on stderr
        redirect_stderr=False,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        line = _NUMBER.sub("", stage.split(" · ")[0])
        if line not in tasks:
            tasks[line] = bars.add_task(plain(stage), total=total or None)
        bars.update(tasks[line], description=plain(stage), completed=done, total=total or None)

    with bars:
        yield report
