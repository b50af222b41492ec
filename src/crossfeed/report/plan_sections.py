"""The sections of the page about decisions: planned changes, thresholds, and how sure the answer is."""

from __future__ import annotations

from typing import Any

from crossfeed.report import charts, words
from crossfeed.report.marks import MANY
from crossfeed.report.markup import Page, fold, num, paragraph, table, text, verdict, without_empty


def plans(audit: words.Audit, page: Page) -> str:
    """Planned changes."""
    found = audit.get("changes") or []
    if not found:
        return ""
    names = words.labels(audit)
    rows: list[list[str]] = []
    for c, change in enumerate(found):
        title = f"{text(change['path'], 60)}: {num(change['from'])} → {num(change['to'])}"
        before, after = change.get("before") or [], change.get("after") or []
        first, verdicts = change.get("first_order") or [], change.get("verdict") or []
        alone = words.alone(audit, change)
        if not after:
            rows.append([title, text(change.get("note") or f"no result: {change.get('result')}"), *["–"] * 6])
        order = sorted(range(min(len(before), len(after))), key=lambda k: -abs((after[k] or 0) - (before[k] or 0)))
        for k in sorted(order[: 50 if len(names) > MANY else None]):
            at: dict[str, Any] = {"change": c, "model": k}

            def cell(values: list[Any], k: int = k) -> float | None:
                return values[k] if k < len(values) else None

            moved = None if before[k] is None or after[k] is None else after[k] - before[k]
            rows.append(
                [
                    title,
                    text(names[k]),
                    num(before[k], of="before", **at),
                    num(after[k], of="after", **at),
                    num(moved, sign=True),
                    num(cell(first), sign=True, of="first", **at),
                    num(cell(alone), sign=True),
                    verdict(verdicts[k] if k < len(verdicts) else None),
                ]
            )
    drawing = page.figure(
        "changes",
        charts.changes(audit),
        "The ecosystem was solved again with each change made. Bars: how far alignment moves; on the right, its "
        "values before and after. "
        "Black line: what influence alone foretold (first order). Diamond: the change if the other models stood still.",
        titled=True,
    )
    head = ["Change", "Model", "Before", "After", "Moved", "First order", "Alone", "Verdict"]
    cut = " For each change, the 50 models that move most." if len(names) > MANY else ""
    return drawing + fold("The numbers", table(head, rows, "Planned changes." + cut, 400))


def flips(audit: words.Audit, page: Page) -> str:
    """Thresholds."""
    found = audit.get("thresholds") or []
    if not found:
        return ""
    names, panels = words.namer(audit), charts.thresholds(audit)
    left = f" {len(panels)} of {len(found)} are drawn, those with a flip first." if len(panels) < len(found) else ""
    drawing = page.figure(
        "thresholds",
        panels,
        "Influence while one setting moves and all else stays. A diamond marks where it crosses zero: beyond it "
        "the answer is the opposite. "
        f"The dashed line is the setting’s present value.{left}",
        titled=True,
    )
    rows = [
        [
            text(t["path"], 60),
            text(words.called(names, t["intervened"])),
            text(words.called(names, t["affected"])),
            f"{num(t['low'])} to {num(t['high'])}",
            num(t.get("current")),
            words.join([num(r, 4, of="root", query=q) for r in t.get("roots") or []]) or "none",
            text(t.get("note") or ""),
        ]
        for q, t in enumerate(found)
    ]
    head = ["Setting", "Raised", "Affected", "Searched", "Now", "Flips at", "Note"]
    return drawing + table(*without_empty(head, rows), "Where influence changes sign")


def surety(audit: words.Audit, page: Page) -> str:
    """Finite samples."""
    found = audit.get("finite_samples")
    if not found:
        return ""
    if not found.get("available"):
        return paragraph(f"Not available: {text(found.get('reason') or 'no reason was recorded')}.", "unavailable")
    names, position = words.namer(audit), {m["name"]: k for k, m in enumerate(audit["models"])}
    drawing = page.figure(
        "finite",
        charts.finite_samples(audit),
        f"Real rounds draw a finite number of samples, here n = {found['n']:,} a model and round, so alignment "
        f"never rests. Bar: its mean with n samples, plus and minus one "
        "standard deviation from round to round; line: the mean; diamond: the value with endless samples, at "
        "the stable point. " + ("The models with the widest spread." if len(names) > 16 else ""),
    )
    smallest = found.get("smallest_n") or []
    rows = [
        [
            text(words.called(names, s["intervened"])),
            text(words.called(names, s["affected"])),
            num(
                s.get("n"),
                4,
                of="n",
                affected=position.get(s["affected"], ""),
                intervened=position.get(s["intervened"], ""),
            )
            if s.get("n") is not None
            else "no n found",
            text(s.get("note") or ""),
        ]
        for s in smallest
    ]
    level = f"{100 * found['confidence']:g} %" if found.get("confidence") else "the chosen level"
    intro = paragraph(
        f"To tell the sign of an influence in a real experiment at {level} confidence, at least this many "
        f"samples a round are needed. Protocol: {text(found.get('protocol') or 'not recorded')}."
    )
    needed = (
        intro + table(*without_empty(["Raised", "Affected", "Smallest n", "Note"], rows), "Smallest sample sizes")
        if rows
        else ""
    )
    if len(rows) > 9:
        needed = fold("Smallest sample that shows the sign of an influence", needed)
    spread = [
        [
            text(words.called(names, m["name"])),
            num(m.get("mean_shift"), sign=True, of="shift", model=position.get(m["name"], "")),
            num(m.get("std"), of="std", model=position.get(m["name"], "")),
        ]
        for m in found.get("models") or []
    ]
    return (
        drawing
        + needed
        + fold(
            "The numbers",
            table(["Model", "Shift of the mean", "Standard deviation"], spread, "Alignment with finite samples"),
        )
    )
