"""The audit in a terminal: the answer in words, verdicts, key numbers, warnings.

Text from a spec is cleaned of escape sequences and never read as Rich markup: it only enters ``Text`` objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossfeed.report import words

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

STYLES = {"helps": "blue", "dampened": "cyan", "no effect": "dim", "backfires": "bold red"}
SENTENCES = 6
"""Up to this many models, one sentence each."""
ROWS = 12


def _text(clauses: list[words.Clause]) -> Text:
    from rich.text import Text

    line = Text()
    for clause in clauses:
        style = STYLES.get(clause.verdict or "", "")
        line.append(clause.text.replace(words.MINUS, "-"), style=style)
    return line


def _verdict(name: str | None, value: float | None = None) -> Text:
    from rich.text import Text

    if name not in words.VERDICTS:
        return Text("-", style="dim")
    number = "" if value is None else f" {words.number(value, sign=True, minus='-')}"
    return Text(f"{name}{number}", style=STYLES[name])


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _matrix(audit: words.Audit) -> list[RenderableType]:
    from rich.text import Text

    names, influence = words.labels(audit, 18), audit["influence"]
    shown = _table()
    shown.add_column("")
    for name in names:
        shown.add_column(Text(name))
    for k, row in enumerate(influence["matrix"]):
        cells = [_verdict(influence["verdict"][k][i], value) for i, value in enumerate(row)]
        shown.add_row(Text(names[k]), *cells)
    return [Text("What raising the curation of a column does to a row", style="bold"), shown]


def _rows(audit: words.Audit) -> list[RenderableType]:
    from rich.text import Text

    names, influence, columns = words.labels(audit, 26), audit["influence"], words.curated_models(audit)
    order = {"backfires": 0, "no effect": 1, "dampened": 2, "helps": 3}
    listed = sorted(columns, key=lambda i: (order.get(influence["verdict"][i][i], 4), influence["matrix"][i][i] or 0.0))
    title = "What raising a model’s curation does"
    title += f": the {ROWS} least favourable of {len(columns):,}" if len(columns) > ROWS else ""
    shown = _table()
    shown.add_column("model")
    shown.add_column("does to itself")
    shown.add_column("alone", justify="right")
    shown.add_column("helps others", justify="right")
    shown.add_column("harms others", justify="right")
    for i in listed[:ROWS]:
        others = [influence["verdict"][k][i] for k in range(len(names)) if k != i]
        shown.add_row(
            Text(names[i]),
            _verdict(influence["verdict"][i][i], influence["matrix"][i][i]),
            words.number(influence["isolated"][i], sign=True, minus="-"),
            f"{sum(v in {'helps', 'dampened'} for v in others):,}",
            f"{others.count('backfires'):,}",
        )
    return [Text(title, style="bold"), shown]


def _facts(audit: words.Audit) -> list[tuple[str, str]]:
    space = words.clean(audit.get("space") or "", 60)
    size = f"{words.plural(len(audit['models']), 'model')}, {words.plural(len(audit['edges']), 'data flow')}"
    facts = [("ecosystem", f"{size}{'; ' + space if space else ''}")]
    facts.append(("loop", words.settles(audit)))
    certificate = (audit.get("stability") or {}).get("global") or {}
    if certificate.get("available"):
        holds = "holds" if certificate.get("contracts") else "does not hold"
        facts.append(("certificate", f"global: {holds} (factor {words.number(certificate.get('radius'), minus='-')})"))
    names = words.namer(audit)
    for query in (audit.get("thresholds") or [])[:4]:
        roots = [words.number(r, 4, minus="-") for r in query.get("roots") or []]
        who = f"{words.called(names, query['intervened'])} on {words.called(names, query['affected'])}"
        where = f"flips at {words.join(roots)}" if roots else "does not flip"
        now = query.get("current")
        present = "" if now is None else f" (now {words.number(now, minus='-')})"
        facts.append(("threshold", f"{words.clean(query['path'], 40)}{present}: {who} {where}"))
    samples = audit.get("finite_samples") or {}
    found = [s["n"] for s in samples.get("smallest_n") or [] if s.get("n") is not None]
    if samples.get("available") and found:
        low, high = words.number(min(found), 4), words.number(max(found), 4)
        span = low if low == high else f"{low} to {high}"
        facts.append(("samples", f"{span} a round to tell the signs at {100 * samples['confidence']:g} % confidence"))
    return facts


def summary(audit: words.Audit, width: int | None = None) -> RenderableType:
    """The audit as a Rich renderable: answer, verdicts, key numbers, warnings.

    Args:
        audit: The contents of audit.json.
        width: Columns to keep within; None for the console's.

    Returns:
        What ``rich.console.Console.print`` takes.
    """
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(words.clean(audit["spec_name"], 120), style="bold"),
        Text(words.bottom_line(audit)),
        Text(),
    ]
    if audit.get("influence"):
        names, columns = words.labels(audit, 26), words.curated_models(audit)
        if len(names) <= SENTENCES:
            parts += [Padding(_text(words.raising(audit, i, names)), (0, 0, 0, 2)) for i in columns]
        if columns:
            parts += [Text()] if len(names) <= SENTENCES else []
            parts += [*(_matrix(audit) if len(names) <= 4 else _rows(audit)), Text()]
    else:
        reason = words.clean(audit.get("influence_refused") or "no reason was recorded")
        parts += [Text(f"Influence was refused: {reason}.", style="bold red"), Text()]
    plans = audit.get("changes") or []
    if plans:
        parts.append(Text("Planned changes", style="bold"))
        parts += [Padding(_text(words.changed(audit, change, most=3)), (0, 0, 0, 2)) for change in plans[:ROWS]]
        parts.append(Text())
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for term, value in _facts(audit):
        grid.add_row(term, Text(value.replace(words.MINUS, "-")))
    parts.append(grid)
    warnings = audit.get("warnings") or []
    if warnings:
        parts += [Text(), *(Text(f"Beware: {words.clean(w)}", style="yellow") for w in warnings)]
    whole: Group = Group(*parts)
    return whole if width is None else Constrain(whole, width)


def plain(audit: words.Audit, width: int = 80) -> str:
    """The same summary as text without colour or control characters.

    Args:
        audit: The contents of audit.json.
        width: Columns to keep within.
    """
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(summary(audit))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
