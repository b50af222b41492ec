"""The sections of the page of an audit of networks that answer: what curation does, where the loop goes, what-ifs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from crossfeed.report import graph, words
from crossfeed.report.answer_sections import edges_table
from crossfeed.report.estimate_charts import LARGE, courses, influence_matrix, together, unfolding
from crossfeed.report.estimate_words import (
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
    not_passed,
    percent,
    raising,
    rounds,
)
from crossfeed.report.markup import Page, fold, num, paragraph, table, text, without_empty
from crossfeed.report.words import Clause

LISTED = 12


def said(clauses: Iterable[Clause]) -> str:
    """A sentence whose verdicts are marked by colour and symbol."""
    parts = []
    for clause in clauses:
        shown = VERDICTS.get(clause.verdict or "")
        body = escape(clause.text, quote=True)
        if shown:
            symbol = f'<span class="symbol" aria-hidden="true">{shown.symbol}</span>&nbsp;'
            body = f'<strong class="{shown.style}">{symbol}{body}</strong>'
        parts.append(body)
    return "".join(parts)


def mark(verdict: str | None) -> str:
    """Symbol and word of a verdict in its colour."""
    if verdict not in VERDICTS:
        return '<span class="none">–</span>'
    shown = VERDICTS[verdict]
    return f'<span class="verdict {shown.style}"><span aria-hidden="true">{shown.symbol}</span> {verdict}</span>'


def answer(audit: words.Audit, page: Page) -> str:
    """The headline, a sentence a model, what-ifs, what to beware of."""
    parts = [paragraph(text(bottom_line(audit)), "lead")]
    failed = [check for check in audit["checks"] if check["result"] == "failed"]
    if failed:
        lines = "".join(f"<p><strong>{text(c['name'])}:</strong> {text(c['words'])}</p>" for c in failed)
        parts.append(
            f'<div class="refused" role="alert"><p><strong>A check failed: do not rely on these numbers.</strong></p>{lines}</div>'
        )
    names = called(audit)
    listed = _order(audit)
    items = "".join(f"<li>{said(raising(audit, c, names))}</li>" for c in listed[:LISTED])
    if items:
        parts.append(f'<ul class="answers">{items}</ul>')
    if len(listed) > LISTED:
        more = "".join(f"<li>{said(raising(audit, c, names))}</li>" for c in listed[LISTED : 20 * LISTED])
        parts.append(fold(f"The other {len(listed) - LISTED:,} models", f'<ul class="answers">{more}</ul>'))
    if audit["changes"]:
        plans = "".join(f"<li>{said(changed(audit, change))}</li>" for change in audit["changes"][:LISTED])
        parts.append(f'<h3>What if</h3><ul class="answers">{plans}</ul>')
    parts.append(_facts(audit))
    beware = [
        *audit["warnings"],
        *(f"{c['name'].capitalize()}: {c['words']}" for c in not_passed(audit) if c not in failed),
    ]
    if beware:
        items = "".join(f"<li>{text(line, 700)}</li>" for line in beware)
        parts.append(f'<div class="warnings"><h3>Beware</h3><ul>{items}</ul></div>')
    parts.append(paragraph(_glossary(audit), "note"))
    return "".join(parts)


def _glossary(audit: words.Audit) -> str:
    return (
        "<dfn>Curation</dfn>: people pick the output they like best among several candidates, and the picks become training "
        "data. A model’s <dfn>curation ratio</dfn> is the share of its training data that was picked; "
        f"{POINTS} more are 0.1 more of it, with the rest of the mixture giving way. A model’s <dfn>alignment</dfn> is the mean "
        "reward that its own people give its outputs. Nothing was retrained: the effects are estimated from samples of the "
        f"models and their gradients, to first order, for {rounds(audit)} of retraining. In brackets stand {percent(audit)} "
        "intervals of what the samples leave open and of how far the answer hangs on where gradients are taken; a sign is told "
        "where the interval leaves out zero. <dfn>Dampened</dfn> means "
        "that curation helps, but less than it would if the other models stood still; <dfn>backfires</dfn>, that alignment falls."
    )


def _order(audit: words.Audit) -> list[int]:
    """Columns, least favourable first where they are many."""
    count = len(audit["settings"])
    if count <= LISTED:
        return list(range(count))
    rank = {"backfires": 0, "dampened": 1, "helps": 2, "no effect": 3, "cannot tell": 4}
    main = {found["model"]: e for e, found in enumerate(audit["evaluations"]) if found["main"]}

    def key(c: int) -> tuple[int, float]:
        e = main.get(audit["settings"][c]["model"])
        one = None if e is None else entry(audit, e, c)
        return (5, 0.0) if one is None else (rank.get(one["verdict"], 5), one["matrix"])

    return sorted(range(count), key=key)


def _facts(audit: words.Audit) -> str:
    flat = [verdict for row in audit["influence"]["verdict"] for verdict in row]
    told = sum(verdict != "cannot tell" for verdict in flat)
    shown = [
        ("Models", f"{len(audit['models']):,}"),
        ("Looks ahead", text(rounds(audit))),
        ("Signs told", f"{told:,} of {len(flat):,}"),
        ("Outputs of every model", f"{audit['samples']['outputs']:,}"),
        ("Time", text(duration(sum(audit["seconds"].values())))),
    ]
    return '<dl class="facts">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in shown) + "</dl>"


def flows(audit: words.Audit, page: Page) -> str:
    """The data-flow graph of the spec."""
    edges = [
        {**source, "consumer": model["name"], "candidates": source["rule"]}
        for model in audit["models"]
        for source in model["sources"]
    ]
    shown: dict[str, Any] = {"models": [{"name": m["name"]} for m in audit["models"]], "edges": edges}
    left = graph.left_out(shown)
    caption = (
        "An arrow runs from whoever makes the data to the model that is trained on it, and is as wide as its share of that "
        "model’s training data. Point at an arrow for its details."
    )
    return (
        '<figure class="single"><div class="scroll graph-frame" tabindex="0" role="region" aria-label="Data-flow graph">'
        f"{graph.svg(shown)}</div><figcaption>{caption}{' ' + text(left) if left else ''}</figcaption></figure>"
        + fold("All data flows", edges_table(edges, called(audit)))
    )


def influence(audit: words.Audit, page: Page) -> str:
    """The matrix, as a heat map and in numbers."""
    if not audit["settings"]:
        return ""
    caption = (
        f"A column raises one model’s curation ratio by {POINTS}; a row shows what that does to an alignment after "
        f"{rounds(audit)}, with its {percent(audit)} interval. Coloured where the sign is told: blue rises, orange falls; "
        "? where it cannot be told."
    )
    if audit["influence"].get("asked") is not None:
        caption += (
            " Part of it comes from what models are asked: a change of a mixture moves the inputs of its model’s next training set, and "
            "so those of others that learn from it; the numbers say how much."
        )
    drawing = page.figure("matrix", influence_matrix(audit), caption)
    if not drawing:
        drawing = paragraph(
            f"The matrix has more than {LARGE} rows or columns and is not drawn; these are its strongest entries.",
            "note",
        )
    numbers = table(*without_empty(*_matrix_rows(audit)), "Influence of curation", cut=400)
    return drawing + (fold("The numbers", numbers) if len(audit["settings"]) <= LARGE else numbers)


def _matrix_rows(audit: words.Audit) -> tuple[list[str], list[list[str]]]:
    down, across = evaluation_labels(audit), column_labels(audit)
    pairs = [(e, c) for c in range(len(across)) for e in range(len(down))]
    if len(pairs) > 400:
        pairs.sort(key=lambda pair: -abs(audit["influence"]["matrix"][pair[0]][pair[1]]))
    rows = []
    for e, c in pairs:
        one = entry(audit, e, c)
        needed = one["needed"]
        rows.append(
            [
                text(across[c]),
                text(down[e]),
                num(STEP * one["matrix"], sign=True, of="influence", evaluation=e, setting=c),
                f"{num(STEP * one['low'], sign=True)} to {num(STEP * one['high'], sign=True)}",
                mark(one["verdict"]),
                num(STEP * one["isolated"], sign=True) if _own(audit, e, c) else "",
                "" if one["asked"] is None else num(STEP * one["asked"], sign=True),
                num(needed) if one["verdict"] == "cannot tell" and needed else "",
            ]
        )
    head = [
        "Raise",
        "Effect on",
        f"By {POINTS}",
        f"{percent(audit)} interval",
        "Verdict",
        "Alone",
        "By what is asked",
        "Outputs that would tell",
    ]
    return head, rows


def _own(audit: words.Audit, e: int, c: int) -> bool:
    return bool(audit["settings"][c]["model"] == audit["evaluations"][e]["model"])


def alone(audit: words.Audit, page: Page) -> str:
    """Ecosystem beside isolated."""
    caption = (
        "Alone: what more curation of a model would do to it if the other models stood still. Together: what it does in the "
        f"ecosystem, with its {percent(audit)} interval. The difference is what interaction does."
    )
    return page.figure("together", together(audit), caption)


def course(audit: words.Audit, page: Page) -> str:
    """Predicted trajectories, beside what the run showed."""
    seen = bool(audit["trajectory"]["observed"])
    caption = f"Left as it is, alignment is predicted to go this way from {text(audit['point']['words'], 200)}. {_measured(audit)}"
    if seen:
        caption += f" Dots are what the run recorded, with {percent(audit)} intervals."
    caption += f" What more curation does builds up round by round: by {POINTS}, for each model on itself."
    if len(audit["models"]) > 6:
        caption += " Drawn are the six models predicted to move most."
    panels = [*courses(audit), *unfolding(audit)]
    drawing = page.figure("course", panels, caption, titled=True)
    return drawing + (fold("The numbers", _course_table(audit)) if drawing else "")


def _measured(audit: words.Audit) -> str:
    """How the course was found."""
    at = audit["trajectory"]["places"]
    if len(at) < 2:
        return "The prediction follows the loop linearised in one place, so it is best in the first rounds."
    rounds = f"{', '.join(str(t) for t in at[:-1])} and {at[-1]}"
    return (
        f"It was measured on the models moved to where the linearised loop takes them after rounds {rounds}, where gradients were taken "
        "again; between are straight lines."
    )


def _course_table(audit: words.Audit) -> str:
    trajectory, labels = audit["trajectory"], evaluation_labels(audit)
    last = trajectory["rounds"][-1]
    seen = {
        found["evaluation"]: dict(zip(found["rounds"], found["value"], strict=True)) for found in trajectory["observed"]
    }
    rows = []
    for e, label in enumerate(labels):
        found = audit["evaluations"][e]
        rows.append(
            [
                text(label),
                num(found["now"], of="now", evaluation=e),
                num(found["error"]),
                num(trajectory["base"][-1][e], of="predicted", evaluation=e),
                num(seen[e][last], of="seen", evaluation=e) if last in seen.get(e, {}) else "",
            ]
        )
    head = ["Alignment of", "Now", "Standard error", f"Predicted for round {last}", f"The run at round {last}"]
    return table(*without_empty(head, rows), "Alignment now and at the end of the horizon")


def what_ifs(audit: words.Audit, page: Page) -> str:
    """Planned changes, answered from the same samples."""
    if not audit["changes"]:
        return ""
    labels, parts = evaluation_labels(audit), []
    for change in audit["changes"]:
        parts.append(f"<h3>{_title(change)}</h3>")
        if change.get("change") is None:
            parts.append(paragraph(f"Not answered: {text(change.get('note') or 'no reason was recorded', 600)}"))
        else:
            parts.append(_change_table(audit, change, labels))
    note = (
        "Each change is answered by itself, from the samples of this audit: nothing new was generated or trained. "
        "The further a change goes, the rougher its answer."
    )
    return paragraph(note, "note") + "".join(parts)


def _title(change: Mapping[str, Any]) -> str:
    return f"{text(change['path'], 80)}: {words.number(change['from'])} → {words.number(change['to'])}"


def _change_table(audit: words.Audit, change: Mapping[str, Any], labels: Sequence[str]) -> str:
    rows = [
        [
            text(label),
            num(audit["evaluations"][e]["now"]),
            num(change["change"][e], sign=True, of="change", evaluation=e),
            f"{num(change['low'][e], sign=True)} to {num(change['high'][e], sign=True)}",
            mark(change["verdict"][e]),
        ]
        for e, label in enumerate(labels)
    ]
    head = ["Alignment of", "Now", "Change", f"{percent(audit)} interval", "It"]
    caption = f"After {rounds(audit)}, compared with leaving it as it is"
    found = table(head, rows, caption)
    return found if len(rows) <= LISTED else fold("The numbers", found)
