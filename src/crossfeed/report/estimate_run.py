"""On the page of a run: what an audit of its networks predicted, beside what the run did."""

from __future__ import annotations

from crossfeed.report import words
from crossfeed.report.estimate_sections import said
from crossfeed.report.estimate_words import bottom_line, called, fixed, mains, raising
from crossfeed.report.markup import num, paragraph, table, text
from crossfeed.report.run_data import Facts

LISTED = 12


def predicted(facts: Facts, audit: words.Audit) -> str:
    """Alignment as predicted for the rounds after the audit's, and as recorded, for every evaluation that both have."""
    from crossfeed.report.audit import digest

    parts, rows = [], []
    trajectory, names = audit["trajectory"], called(audit)
    known = {(found["model"], found["name"]): e for e, found in enumerate(audit["evaluations"])}
    start = trajectory["rounds"][0]
    last = min(trajectory["rounds"][-1], facts.last)
    if audit.get("spec_sha256") not in {digest(facts.eco), facts.made.get("spec_sha256")}:
        parts.append(
            f'<div class="warnings"><ul><li>The audit is of another spec ({text(audit["spec_name"], 80)}). Models and evaluations '
            "are matched by name: compare directions, not sizes.</li></ul></div>"
        )
    for found in facts.evaluations:
        e = known.get((found.model, found.name))
        at = {p.round: p for p in facts.points(found.model, "alignment", found.name)}
        if e is None or start not in at or last not in at or last <= start:
            continue
        foreseen = trajectory["base"][last - start][e] - trajectory["base"][0][e]
        seen = at[last].value - at[start].value
        rows.append(
            [
                text(names[found.model]),
                text(found.name, 40),
                num(foreseen, sign=True, of="foreseen", model=found.model),
                num(seen, sign=True, of="seen", model=found.model),
                text(_error(at[start].error, at[last].error)),
            ]
        )
    parts.append(paragraph(f"The audit of {text(audit['point']['words'], 200)}: {text(bottom_line(audit))}"))
    if rows:
        head = ["Model", "Evaluation", "The audit: alignment changes by", "The run: by", "± standard error"]
        parts.append(table(head, rows, f"Change of alignment from round {start} to round {last}, predicted and seen"))
    else:
        parts.append(
            paragraph(
                "The run has no rounds after the audit’s, or no evaluation of the same name, so there is nothing to compare.",
                "note",
            )
        )
    columns = [c for c, setting in enumerate(audit["settings"]) if setting["model"] in mains(audit)][:LISTED]
    if columns:
        items = "".join(f"<li>{said(raising(audit, c, names))}</li>" for c in columns)
        parts.append(
            paragraph(
                "It also predicts what more curation would do. One run cannot show that: run the spec again with a higher curation "
                "ratio, e.g. <code>--set p.curation=0.6</code>, and compare."
            )
            + f'<ul class="answers">{items}</ul>'
        )
    return "".join(parts)


def _error(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return "–"
    whole = float((first**2 + last**2) ** 0.5)
    return fixed([whole], whole)[0]
