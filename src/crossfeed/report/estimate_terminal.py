"""The audit of networks in a terminal: the answer in words, verdicts with intervals, checks that did not pass.

Text from a spec or a model only enters ``Text`` objects, cleaned: it is never read as Rich markup or by the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossfeed.report import words
from crossfeed.report.estimate_words import (
    MOST,
    POINTS,
    STEP,
    VERDICTS,
    bottom_line,
    called,
    changed,
    column_labels,
    duration,
    entry,
    evaluation_labels,
    fixed,
    not_passed,
    percent,
    places,
    raising,
    rounds,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

SENTENCES = 6
"""Up to this many models, one sentence each."""
ROWS = 16


def _text(clauses: list[words.Clause]) -> Text:
    from rich.text import Text

    line = Text()
    for clause in clauses:
        shown = VERDICTS.get(clause.verdict or "")
        line.append(clause.text.replace(words.MINUS, "-"), style=shown.terminal if shown else "")
    return line


def _table(audit: words.Audit) -> list[RenderableType]:
    """Verdicts with their intervals, the clearest first where they are many."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    down, across = evaluation_labels(audit, 26), column_labels(audit, 26)
    pairs = [(e, c) for c in range(len(across)) for e in range(len(down))]
    if len(pairs) > ROWS:
        pairs.sort(key=lambda pair: _clarity(audit, *pair))
    title = f"What raising a model’s curation by {POINTS} does"
    title += f": the {ROWS} clearest of {len(pairs):,} effects" if len(pairs) > ROWS else ""
    shown: Table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("raise", "effect on", "change", f"{percent(audit)} interval", ""):
        shown.add_column(head, justify="right" if head == "change" else "left")
    for e, c in pairs[:ROWS]:
        one = entry(audit, e, c)
        half = STEP * (one["high"] - one["low"]) / 2
        value = fixed([STEP * one["matrix"]], half, sign=True)[0]
        low, high = fixed([STEP * one["low"], STEP * one["high"]], half)
        verdict = Text(one["verdict"], style=VERDICTS[one["verdict"]].terminal)
        if one["verdict"] == "cannot tell" and one["needed"] and one["needed"] <= MOST:
            needed = words.number(one["needed"], 2)
            verdict.append(f" (about {needed} outputs would)", style="dim")
        shown.add_row(
            Text(across[c]), Text(down[e]), _plain(value), _plain(f"{low} to {high}" if half else ""), verdict
        )
    return [Text(title, style="bold"), shown]


def _clarity(audit: words.Audit, e: int, c: int) -> float:
    one = entry(audit, e, c)
    return -abs(one["matrix"]) / one["errors"] if one["errors"] else 0.0


def _plain(value: str) -> Text:
    from rich.text import Text

    return Text(value.replace(words.MINUS, "-"))


def _facts(audit: words.Audit) -> list[tuple[str, str]]:
    samples, seconds = audit["samples"], audit["seconds"]
    stages = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    took = ", ".join(f"{words.clean(stage, 30)} {duration(value)}" for stage, value in stages)
    passed = sum(check["result"] == "passed" for check in audit["checks"])
    return [
        ("audited", words.clean(audit["point"]["words"], 120)),
        ("looks ahead", f"{rounds(audit)}; nothing was retrained"),
        ("how", f"{words.clean(audit['route'], 60)}, {words.clean(audit['solver'], 60)}"),
        (
            "samples",
            f"{samples['outputs']:,} outputs of every model{places(audit)}, {samples['gradients']:,} {_worked(audit)}",
        ),
        ("checks", f"{passed} of {len(audit['checks'])} passed"),
        ("time", f"{duration(sum(seconds.values()))} ({took})"),
    ]


def _worked(audit: words.Audit) -> str:
    return "passes of a sample" if audit.get("not_attributed") else "gradients"


def summary(audit: words.Audit) -> RenderableType:
    """The audit as a Rich renderable: answer, verdicts, what-ifs, checks that did not pass, key facts.

    Args:
        audit: The contents of audit.json, format ``crossfeed-estimate``.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [
        Text(words.clean(audit["spec_name"], 120), style="bold"),
        Text(bottom_line(audit).replace(words.MINUS, "-")),
        Text(),
    ]
    count = len(audit["settings"])
    if count:
        if count <= SENTENCES:
            names = called(audit)
            parts += [Padding(_text(raising(audit, c, names)), (0, 0, 0, 2)) for c in range(count)]
            parts.append(Text())
        parts += [*_table(audit), Text()]
    if audit["changes"]:
        parts.append(Text("What if", style="bold"))
        parts += [Padding(_text(changed(audit, change)), (0, 0, 0, 2)) for change in audit["changes"][:ROWS]]
        parts.append(Text())
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for term, value in _facts(audit):
        grid.add_row(term, Text(value.replace(words.MINUS, "-")))
    parts.append(grid)
    bad = not_passed(audit)
    if bad:
        parts.append(Text())
    for check in bad:
        style = "bold red" if check["result"] == "failed" else "yellow"
        line = f"{check['result'].capitalize()}, {check['name']}: {check['words']}"
        parts.append(Text(words.clean(line), style=style))
    whole: Group = Group(*parts)
    return whole


def plain(audit: words.Audit, width: int = 100) -> str:
    """The same summary as text without colour or control characters."""
    from crossfeed.report.run_report import plain as written

    return written(summary(audit), width)
