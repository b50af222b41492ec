"""A run of networks, running or finished, shown: a page, a summary for the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfeed.report import run_origins, run_samples, run_sections, words
from crossfeed.report.html import assemble
from crossfeed.report.markup import Page
from crossfeed.report.output import write_whole
from crossfeed.report.run_data import Facts, read
from crossfeed.report.run_words import (
    bottom_line,
    called,
    change,
    diversity_kept,
    duration,
    ending,
    fixed,
    ordered,
    seconds,
    where,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from crossfeed.record.folder import RunFolder

ROWS = 16
STYLES = {"rose": "blue", "fell": "bold red"}


def run_page(folder: RunFolder, audit: Mapping[str, Any] | None = None) -> str:
    """A run as one self-contained HTML page; works on running and killed runs too.

    Args:
        folder: The run.
        audit: The contents of an audit.json of the same spec, for what it predicts.

    Returns:
        The page; it opens offline, follows the reader's light or dark scheme, and prints.

    Raises:
        DataError: no round is finished yet.
    """
    facts, page = read(folder), Page()
    made = [
        ("answer", "What happened", run_sections.answer(facts, page)),
        ("alignment", "Alignment, round by round", run_sections.alignment(facts, page)),
        ("samples", "What the models make", run_samples.samples(facts, folder, page)),
        ("flows", "Who is trained on whom", run_sections.flows(facts, page)),
        ("outputs", "Diversity and distance to real data", run_sections.outputs(facts, page)),
        ("curation", "What people picked", run_origins.curation(facts, page)),
        ("lineage", "How far from real data", run_origins.lineage(facts, page)),
        ("training", "How the models moved", run_sections.training(facts, page)),
        ("extras", "What else changed in the outputs", run_sections.extras(facts, page)),
        ("audit", "What the audit predicts", run_sections.predicted(facts, audit, page)),
        ("limits", "What this does not show", run_sections.bounds(facts, page)),
        ("made", "How it was made", run_sections.made(facts, folder)),
    ]
    return assemble(
        "run",
        facts.eco.name,
        facts.eco.description,
        _facts(facts),
        made,
        page,
        version=str(facts.made.get("crossfeed") or ""),
    )


def _facts(facts: Facts) -> list[str]:
    space: Any = facts.eco.space
    medium = {"text": "answers in words", "images": "pictures"}.get(space.kind)
    return [
        medium or f"points with {words.plural(space.dim, 'coordinate')}",
        words.plural(len(facts.names), "model"),
        words.plural(facts.last, "round"),
    ]


def save_page(folder: RunFolder, out: Path | None = None, audit: Mapping[str, Any] | None = None) -> Path:
    """Write the page.

    Args:
        folder: The run.
        out: The file; None for report.html in the run's folder.
        audit: As in :func:`run_page`.

    Returns:
        The file written.

    Raises:
        CrossfeedError: no round is finished yet, or the file cannot be written.
    """
    page, target = run_page(folder, audit), folder.path / "report.html" if out is None else out
    write_whole(target, lambda path: Path(path).write_text(page, encoding="utf-8", errors="replace"))
    return target


# --- terminal -------------------------------------------------------------------------------------------------------


def run_summary(folder: RunFolder) -> RenderableType:
    """How a run went, as a Rich renderable: the answer, a table of alignments, how it ended, what to do next."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = read(folder)
    names = called(facts)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("model", "alignment on", "start", "end", "difference", ""):
        shown.add_column(title, justify="left" if title in {"model", "alignment on", ""} else "right")
    kept = ordered(facts)[:ROWS]
    for e in facts.evaluations:
        found = change(facts, e)
        if e.model in kept and found is not None and shown.row_count < ROWS:
            shown.add_row(
                Text(words.clean(names[e.model], 26)),
                Text(words.clean(where(e, names) + (f" ({e.name})" if e.cross and not e.whose else ""), 60)),
                *(Text(v.replace(words.MINUS, "-")) for v in fixed([found.first.value, found.last.value], found.half)),
                Text(_plus_minus(found.difference, found.half)),
                Text(
                    found.verb if found.verb in STYLES else "no measurable change", style=STYLES.get(found.verb, "dim")
                ),
            )
    parts: list[RenderableType] = [
        Text(words.clean(facts.eco.name, 120), style="bold"),
        Text(bottom_line(facts).replace(words.MINUS, "-")),
        Text(),
    ]
    parts += [shown, Text()] if shown.row_count else []
    if len(facts.names) > len(kept):
        parts += [Text(f"{len(facts.names) - len(kept):,} models that moved less are not listed.", style="dim"), Text()]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for term, value in _terms(facts, folder, names):
        grid.add_row(term, value)
    return Group(*parts, grid)


def _plus_minus(value: float, half: float | None) -> str:
    """``+0.150 ± 0.031``, both to the digit that the interval allows."""
    if half is None or half <= 1e-9 * abs(value):
        return words.number(value, sign=True, minus="-")
    shown, reach = fixed([value], half, sign=True)[0], fixed([half], half)[0]
    return f"{shown} ± {reach}".replace(words.MINUS, "-")


def _terms(facts: Facts, folder: RunFolder, names: Mapping[str, str]) -> list[tuple[str, Text]]:
    from rich.text import Text

    out = [("ended", Text(ending(facts)))]
    kept = {n: k for n in facts.names if (k := diversity_kept(facts, n)) is not None}
    if kept:
        least = sorted(kept, key=lambda n: kept[n])[:4]
        out.append(("diversity left", Text(", ".join(f"{names[n]} {100 * kept[n]:.0f} %" for n in least))))
    took = seconds(facts)
    if took:
        stages = ", ".join(
            f"{words.clean(s, 20)} {duration(v)}" for s, v in sorted(took.items(), key=lambda i: -i[1])[:4]
        )
        out.append(("time", Text(f"{duration(sum(took.values()))} ({stages})")))
    out.append(("note", Text("one run, one seed: the ± are 95 % intervals of the measurement, not of other runs")))
    out.append(("next", Text(f"crossfeed report {words.clean(folder.path, 120)}")))
    return out


def plain_summary(folder: RunFolder, width: int = 100) -> str:
    """The same as text without colour or control characters."""
    return plain(run_summary(folder), width)


def plain(shown: RenderableType, width: int = 100) -> str:
    """A Rich renderable as text without colour or control characters."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
