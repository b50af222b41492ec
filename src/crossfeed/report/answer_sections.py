"""The sections of the page that answer: what happens, between whom, by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfeed.report import charts, graph, words
from crossfeed.report.marks import MANY
from crossfeed.report.markup import Page, fold, num, paragraph, sentence, table, text, verdict

LISTED = 12


def answer(audit: words.Audit, page: Page) -> str:
    """The headline in words, one sentence a model, the planned changes, and what to beware of."""
    parts = [paragraph(text(words.bottom_line(audit)), "lead")]
    if not audit.get("influence"):
        reason = text(audit.get("influence_refused") or "no reason was recorded").rstrip(".")
        parts.append(
            f'<div class="refused" role="alert"><p><strong>Influence was refused:</strong> {reason}.</p>'
            "<p>The effect of curation is the slope at which a stable point moves. Where the loop does not come "
            "to rest there is no such slope, "
            "and a number would mislead. More real data, less data from other models or a weaker pick usually "
            "makes a loop stable.</p></div>"
        )
    else:
        parts.append(_per_model(audit))
    plans = audit.get("changes") or []
    if plans:
        items = "".join(f"<li>{sentence(words.changed(audit, change))}</li>" for change in plans[:LISTED])
        more = f"<li>{len(plans) - LISTED:,} more stand below.</li>" if len(plans) > LISTED else ""
        parts.append(f'<h3>Planned changes</h3><ul class="answers">{items}{more}</ul>')
    parts.append(_facts(audit))
    warnings = audit.get("warnings") or []
    if warnings:
        items = "".join(f"<li>{text(w)}</li>" for w in warnings)
        parts.append(f'<div class="warnings"><h3>Beware</h3><ul>{items}</ul></div>')
    parts.append(
        paragraph(
            "<dfn>Curation</dfn>: people pick the output they like best among several candidates, and the picks "
            "become training data. "
            "A model’s <dfn>curation ratio</dfn> is the share of its training data that was picked. Its "
            "<dfn>alignment</dfn> is the average reward "
            "that its own people give its outputs. <dfn>Dampened</dfn> means that curation still helps, but "
            "less than it would if the other models "
            "stood still; <dfn>backfires</dfn>, that alignment falls.",
            "note",
        )
    )
    return "".join(parts)


def _per_model(audit: words.Audit) -> str:
    names, columns = words.labels(audit), words.curated_models(audit)
    if not columns:
        return ""
    matrix = audit["influence"]["matrix"]
    shown = columns
    if len(columns) > LISTED:
        order = {"backfires": 0, "no effect": 1, "dampened": 2, "helps": 3}
        rows = words.verdicts(audit)
        shown = sorted(columns, key=lambda i: (order.get(rows[i][i] or "", 4), matrix[i][i] or 0.0))[:8]
    items = "".join(f"<li>{sentence(words.raising(audit, i, names))}</li>" for i in shown)
    more = ""
    if len(shown) < len(columns):
        own, cross = words.verdict_counts(audit)
        more = paragraph(
            f"These are the {len(shown)} least favourable of {len(columns):,} models that have picked data. All "
            f"together:",
            "note",
        )
        more += counts_table(own, cross)
    return f'<ul class="answers">{items}</ul>{more}'


def counts_table(own: dict[str, int], cross: dict[str, int]) -> str:
    """How often each verdict occurs."""
    rows = [[verdict(name), num(own[name], 7), num(cross[name], 7)] for name in words.VERDICTS]
    return table(
        ["Raising a model’s curation …", "the model itself", "another model"], rows, "How often each verdict occurs"
    )


def _facts(audit: words.Audit) -> str:
    facts = [("Models", f"{len(audit['models']):,}"), ("Data flows", f"{len(audit['edges']):,}")]
    local = (audit.get("stability") or {}).get("local") or []
    if local and local[0].get("radius") is not None:
        facts.append(
            (
                "Growth of a disturbance per round",
                num(local[0]["radius"], of="radius") + (" (settles)" if local[0]["stable"] else " (does not settle)"),
            )
        )
    if audit.get("influence"):
        _, cross = words.verdict_counts(audit)
        facts.append(("Pairs in which another model is harmed", f"{cross['backfires']:,} of {sum(cross.values()):,}"))
    body = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return f'<dl class="facts">{body}</dl>'


def flows(audit: words.Audit, page: Page) -> str:
    """The data-flow graph and what it is made of."""
    names = words.namer(audit)
    left = graph.left_out(audit)
    caption = (
        "An arrow runs from whoever makes the data to the model that is trained on it, and is as wide as its "
        "share of that model’s training data. "
        "Squares are real data; a data set used by several models is drawn at each. Point at an arrow for its details."
    )
    drawing = (
        f'<figure class="single"><div class="scroll graph-frame" tabindex="0" role="region" '
        f'aria-label="Data-flow '
        f'graph">{graph.svg(audit)}</div><figcaption>{caption}{" " + left if left else ""}</figcaption></figure>'
    )
    rows = []
    for k, (model, label) in enumerate(zip(audit["models"], names.values(), strict=True)):
        values = model.get("alignment") or []
        aligned = "<br>".join(
            num(a["value"], of="alignment", model=k)
            + (f' <span class="note">{text(a["name"], 40)}</span>' if len(values) > 1 else "")
            for a in values
        )
        more = [num(model.get(key)) for key in ("entropy", "distance_to_data")]
        rows.append(
            [
                text(label),
                text(model["family"], 30),
                text(model["reward"], 40),
                num(model["curation"], of="curation", model=k),
                aligned or "–",
                *more,
            ]
        )
    models = table(
        ["Model", "Family", "Its people’s reward", "Curation ratio", "Alignment", "Entropy", "Distance to real data"],
        rows,
        "Models at the stable point",
        100,
    )
    edges = sorted(audit["edges"], key=lambda e: -e["weight"]) if len(audit["models"]) > MANY else audit["edges"]
    flows_table = edges_table(edges, names)
    own = models if len(audit["models"]) <= LISTED else fold("The models in numbers", models)
    return drawing + own + fold("All data flows", flows_table)


def edges_table(edges: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Data flows as a table; ``names`` maps models to what they are called."""
    listed = [
        [
            text(words.called(names, e["consumer"])),
            text(words.called(names, e["producer"]))
            + (f' <span class="note">{text(e["data"], 40)}</span>' if e.get("data") else ""),
            text({"raw": "as they come", "curated": "picked", "picks": "picked before"}.get(e["kind"], e["kind"])),
            num(e["weight"], of="weight"),
            text(e["curator"], 40) if e.get("curator") else "–",
            text(e["candidates"], 20) if e.get("candidates") else "–",
            num(e.get("temperature")),
        ]
        for e in edges
    ]
    return table(
        ["Trained model", "Data from", "Outputs", "Share", "Picked by", "Candidates", "Temperature"],
        listed,
        "Data flows",
    )


def influence(audit: words.Audit, page: Page) -> str:
    """The influence matrix."""
    if not audit.get("influence"):
        return ""
    names, found = words.labels(audit), audit["influence"]
    intro = paragraph(
        "<dfn>Influence</dfn> is how fast one model’s alignment changes when a model’s curation ratio is raised "
        "a little and the whole ecosystem "
        f"settles anew. Its unit is: {text(found['unit'])}; raising the ratio by 0.01 changes alignment by "
        f"about a hundredth of the number. "
        "On the diagonal stands <dfn>self-influence</dfn>, what curation does for the model it is spent on; "
        "beside it, what it does to others."
    )
    if len(names) > MANY:
        return intro + _influence_summary(audit, page)
    caption = (
        "Columns: whose curation is raised. Rows: who is affected. Blue helps, orange harms; the colour "
        "grows with the square root of the size."
    )
    drawing = page.figure("influence", charts.influence_matrix(audit), caption)
    rows = [
        [
            text(names[k]),
            *(
                num(value, sign=True, of="influence", affected=k, intervened=i) + " " + verdict(found["verdict"][k][i])
                if value is not None
                else "–"
                for i, value in enumerate(row)
            ),
        ]
        for k, row in enumerate(found["matrix"])
    ]
    grid = table(["Affected \\ raised", *names], rows, "Influence matrix")
    direct = [
        [text(names[k]), *(num(value, sign=True) for value in row)] for k, row in enumerate(found.get("direct") or [])
    ]
    more = (
        fold(
            "Along direct data flows only",
            table(["Affected \\ raised", *names], direct, "Influence along direct data flows only"),
        )
        if direct
        else ""
    )
    pairs = fold("Strongest effects on other models", pairs_table(audit, 20)) if len(names) > 4 else ""
    return intro + drawing + pairs + fold("The numbers", grid) + more


def _influence_summary(audit: words.Audit, page: Page) -> str:
    count = len(audit["models"])
    histogram = page.figure(
        "self",
        charts.self_influence(audit),
        "How many models have which self-influence. Left of zero, more curation backfires.",
    )
    blocks = page.figure(
        "influence",
        charts.influence_matrix(audit),
        f"The matrix of {count:,} × {count:,} influences, summed up: each cell shows the one strongest "
        f"influence between two different models in a block "
        "of neighbouring models, in the order of the spec. Weaker ones in the block, and the diagonal, are not "
        "shown; the strongest two in a hundred "
        "blocks share the darkest colour.",
    )
    search = (
        '<div class="search" id="search"><label for="search-box">Look up a model</label>'
        '<input id="search-box" type="search" autocomplete="off" spellcheck="false" placeholder="Type a part of '
        'its name">'
        '<ul id="search-list" class="matches" aria-label="Matching models"></ul><div id="search-model" '
        'aria-live="polite"></div></div>'
    )
    return (
        f"{histogram}<h3>One model at a time</h3>{search}<h3>Strongest effects on other "
        f"models</h3>{pairs_table(audit, 30)}{blocks}"
    )


def pairs_table(audit: words.Audit, most: int) -> str:
    """The strongest influences between different models."""
    names, found = words.labels(audit), audit["influence"]
    rows = [
        [
            text(names[i]),
            text(names[k]),
            num(found["matrix"][k][i], sign=True, of="pair", affected=k, intervened=i),
            verdict(found["verdict"][k][i]),
        ]
        for k, i in words.strongest_pairs(audit, most)
    ]
    return table(
        ["Raise the curation of", "Effect on", "Influence", "Verdict"], rows, "Strongest influences between models"
    )


def together(audit: words.Audit, page: Page) -> str:
    """Self-influence isolated and in the ecosystem."""
    panels = charts.isolated(audit)
    if not panels:
        return ""
    names, found = words.labels(audit), audit["influence"]
    drawing = page.figure(
        "isolated",
        panels,
        "Each model’s self-influence if all other models stood still (<dfn>isolated</dfn>), and as it is in the "
        "ecosystem. "
        "The gap is what interaction does: others learn from the model, and it learns from them.",
    )
    rows = [
        [
            text(names[i]),
            num(found["isolated"][i], sign=True, of="isolated", model=i),
            num(found["matrix"][i][i], sign=True, of="self", model=i),
            verdict(found["verdict"][i][i]),
        ]
        for i in words.curated_models(audit)
    ]
    numbers = table(["Model", "Alone", "Together", "Verdict"], rows, "Self-influence alone and together")
    return drawing + fold("The numbers", numbers)
