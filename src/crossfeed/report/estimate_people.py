"""The sections on who is behind an influence, on evaluations that miss the movement, on checks and on how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfeed.estimate.budget import gib
from crossfeed.report import words
from crossfeed.report.estimate_words import (
    called,
    column_labels,
    duration,
    evaluation_labels,
    mains,
    percent,
    places,
    rounds,
)
from crossfeed.report.markup import Page, fold, num, paragraph, table, text, without_empty
from crossfeed.report.run_samples import said

BATCHED = (
    "Errors come from a few independent batches of samples. What is not linear in a batch’s samples, its curvature say, has a bias "
    "that grows as batches get smaller, and that intervals do not hold."
)
OPEN = 4
"""Models whose examples stand open on the page."""
LONG = 4_000
TEXTS = 400_000
"""Characters of markup for examples; when they are spent, the rest is left out."""
LISTED = 12


def people(audit: words.Audit, page: Page) -> str:
    """Examples, pickers and sources behind every model's alignment."""
    if audit.get("not_attributed"):
        return paragraph(text(audit["not_attributed"], 400), "note")
    parts = [_examples(audit), _pickers(audit), _sources(audit)]
    return "".join(part for part in parts if part)


def _examples(audit: words.Audit) -> str:
    out: list[str] = []
    names, spent, left = called(audit), 0, 0
    for name, e in mains(audit).items():
        mine = [x for x in audit["examples"] if x["evaluation"] == e]
        body = "".join(
            _side(audit, [x for x in mine if (x["effect"] > 0) == up], title)
            for up, title in ((True, "Push it up most"), (False, "Push it down most"))
        )
        if not body:
            continue
        if spent + len(body) > TEXTS:
            left += 1
            continue
        spent += len(body)
        head = f"What moves {names[name]}’s alignment"
        out.append(f"<h3>{text(head)}</h3>{body}" if len(out) < OPEN else fold(head, body))
    if not out:
        return ""
    note = (
        "Picked outputs that training meets, by what they do to an alignment in the long run, through whatever models it takes. The "
        "effect is the change of alignment if that one example had twice its weight among its source’s samples. Outputs are those of "
        "the models as predicted for the middle of the horizon. Control and invisible characters are shown by their code in brackets."
    )
    more = paragraph(f"The examples of {words.plural(left, 'more model')} stand in audit.json.", "note") if left else ""
    return paragraph(note, "note") + "".join(out) + more


def _side(audit: words.Audit, found: Sequence[Mapping[str, Any]], title: str) -> str:
    if not found:
        return ""
    names, items = called(audit), []
    if audit["space"] == "vectors":
        rows = [
            [
                text(_point(x["output"]), 60),
                num(x["effect"], sign=True, of="effect"),
                _path(x, names),
                f"{100 * x['probability']:.0f} %",
                text(_rewards(x), 200),
            ]
            for x in found
        ]
        head = ["Output", "Effect", "Trains", "Chance of the pick", "Rewards of the candidates, its own in brackets"]
        return table(*without_empty(head, rows), title)
    for x in found:
        top = f'<dt>{_path(x, names)}<span class="note"> · effect {num(x["effect"], sign=True, of="effect")}'
        top += f" · picked with chance {100 * x['probability']:.0f} %</span></dt>"
        asked = f'<dd class="asked">{said(x["input"], LONG)}</dd>' if x["input"] else ""
        shown = said(x["output"], LONG) if isinstance(x["output"], str) else '<p class="note">a picture</p>'
        items.append(
            f"{top}{asked}<dd>{shown}</dd>"
            + (
                f'<dd class="note">Rewards of the candidates, its own in brackets: {text(_rewards(x), 200)}</dd>'
                if x["rewards"]
                else ""
            )
        )
    return paragraph(text(title), "panel-title") + f'<dl class="answered">{"".join(items)}</dl>'


def _path(x: Mapping[str, Any], names: Mapping[str, str]) -> str:
    made = "picked in records" if x["producer"] is None else f"made by {words.called(names, x['producer'])}"
    return f"{text(words.called(names, x['consumer']))}, {text(made)}"


def _point(value: Any) -> str:
    numbers = value if isinstance(value, list) else []
    shown = ", ".join(words.number(v) for v in numbers[:6])
    return f"({shown}{', …' if len(numbers) > 6 else ''})"


def _rewards(x: Mapping[str, Any]) -> str:
    parts = []
    for name, values in x["rewards"].items():
        listed = [f"[{words.number(v)}]" if k == x["candidate"] else words.number(v) for k, v in enumerate(values[:8])]
        parts.append(f"{words.clean(name, 30)}: {', '.join(listed)}{', …' if len(values) > 8 else ''}")
    return "; ".join(parts)


def _pickers(audit: words.Audit) -> str:
    if not any(found["picker"] != "curator" for found in audit["pickers"]):
        return ""  # one kind of picker a source: there is nobody to compare
    names, main = called(audit), mains(audit)
    rows = []
    for found in audit["pickers"]:
        e = main.get(found["consumer"])
        effect = None if e is None else found["effects"][e]
        who = found["picker"] + (f" ({words.clean(found['reward'], 40)})" if found["reward"] else "")
        rows.append(
            [
                text(words.called(names, found["consumer"])),
                text(found["source"], 40),
                text(who),
                f"{100 * found['share']:.0f} %",
                num(effect, sign=True, of="picks"),
                _strongest(audit, found["effects"], e),
            ]
        )
    note = (
        "Where several kinds of people pick, what the picks of each do to the alignment of the model that is trained on them, compared "
        "with its source as a whole; over a source they sum to zero. Below zero: these picks pull the model away from its people."
    )
    head = ["Trains", "Source", "Who picks", "Share", "Effect on its alignment", "Strongest elsewhere"]
    return "<h3>Who picks</h3>" + paragraph(note, "note") + table(*without_empty(head, rows), "Effects by who picks")


def _sources(audit: words.Audit) -> str:
    names, main, rows = called(audit), mains(audit), []
    for found in audit["sources"]:
        e = main.get(found["consumer"])
        rows.append(
            [
                text(words.called(names, found["consumer"])),
                text(found["source"], 40),
                text(words.called(names, found["producer"])),
                num(found["weight"]),
                num(None if e is None else 0.1 * found["effects"][e], sign=True, of="source"),
                _strongest(audit, [0.1 * v for v in found["effects"]], e),
            ]
        )
    head = ["Trains", "Source", "Made by", "Weight", "10 points more of it: own alignment", "Strongest elsewhere"]
    shown = table(head, rows, "What each source does, at the cost of the rest of its model’s mixture")
    return "<h3>Which data</h3>" + (shown if len(rows) <= LISTED else fold("What each source does", shown))


def _strongest(audit: words.Audit, effects: Sequence[float | None], own: int | None) -> str:
    labels = evaluation_labels(audit)
    others = [(abs(v), e, v) for e, v in enumerate(effects) if v and e != own]
    if not others:
        return ""
    _, e, value = max(others)
    return f"{num(value, sign=True)} on {text(labels[e])}"


def mismatch(audit: words.Audit, page: Page) -> str:
    """Evaluations that are blind to what moves."""
    if not audit["mismatch"]:
        return ""
    labels, across = evaluation_labels(audit), column_labels(audit)
    column = {setting["path"]: across[c] for c, setting in enumerate(audit["settings"])}
    rows = []
    for found in sorted(audit["mismatch"], key=lambda f: (not f["sure"], -f["index"])):
        rows.append(
            [
                text(labels[found["main"]]),
                text(column[found["path"]]),
                num(found["index"], 2, of="mismatch"),
                num(found["movement"]["main"]),
                f"{num(found['movement']['largest'])} on {text(labels[found['largest']])}",
                "yes" if found["sure"] else "no",
            ]
        )
    note = (
        "A model’s own evaluation can miss what a change does to it elsewhere. The index compares how far each of a model’s evaluations "
        "moves with curation, in units of the spread of its rewards: 0, its own evaluation sees the largest movement; 1, it sees none of "
        "it. Told: the interval of the largest movement leaves out zero; where it does not, the index says nothing."
    )
    head = ["Judged by", "Raised", "Index", "Movement there", "Largest movement", "Told"]
    return paragraph(note, "note") + table(head, rows, "How blind each model’s own evaluation is", cut=100)


# --- checks, how it was made ----------------------------------------------------------------------------------------

RESULTS = {
    "passed": ("✓", "helps"),
    "warning": ("!", "dampened"),
    "failed": ("✗", "backfires"),
}


def checks(audit: words.Audit, page: Page) -> str:
    """What was checked, the failed first."""
    order = {"failed": 0, "warning": 1, "passed": 2}
    items = []
    for check in sorted(audit["checks"], key=lambda c: order.get(c["result"], 3)):
        symbol, style = RESULTS.get(check["result"], ("·", "none"))
        shown = f'<span class="verdict {style}"><span aria-hidden="true">{symbol}</span> {text(check["result"])}</span>'
        items.append(
            f"<li>{shown} · <strong>{text(check['name'].capitalize())}</strong>: {text(check['words'], 900)}</li>"
        )
    return f'<ul class="answers">{"".join(items)}</ul>'


def limits(audit: words.Audit, page: Page) -> str:
    """What the estimate does not say."""
    lines = [
        f"It is a derivative: what a small change of curation does after {rounds(audit)}, in proportion. Large changes may do otherwise.",
        f"Intervals ({percent(audit)}) hold what the finite sample leaves open, and how far the answer differs from the one by "
        "gradients at the present parameters. They do not hold all errors of the linearised loop: models "
        "that move far in the horizon, training beyond its stable step sizes, rules of training that are not smooth.",
        *([BATCHED] if audit.get("not_attributed") else []),
        "How training shortens a round (steps, learning rate, optimiser) is taken from the spec; its randomness averages out.",
        "Alignment is the mean of a reward function that stands for people; no person was asked.",
        "The test of a prediction is retraining: run the spec with another curation ratio (crossfeed run SPEC --set p.curation=0.6) "
        "from the same start, and compare.",
    ]
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def made(audit: words.Audit, page: Page) -> str:
    """Route, solver, samples, seconds, memory, models, command."""
    samples, kept = audit["samples"], not audit.get("not_attributed")
    rows = [
        ("Command", f"<code>{text(audit['command'] or 'in Python', 600)}</code>"),
        ("Models audited", text(audit["point"]["words"], 300)),
        ("Looks ahead", f"{text(rounds(audit))}, from round {audit['horizon']['first']}"),
        (
            "How",
            f"{text(audit['route'])}, {text(audit['solver'])}{': gradients of every sample are worked out once and kept' if kept else ''}",
        ),
        (
            "Samples",
            f"{samples['outputs']:,} outputs of every model{places(audit)} and {samples['evaluation']:,} answers an evaluation; "
            f"{samples['generated']:,} outputs and {samples['gradients']:,} {'gradients' if kept else 'passes of a sample'} in all, in "
            f"{samples['clusters']:,} independent {'prompts' if samples['cluster'] == 'prompt' else 'groups of candidates or rows'}",
        ),
        ("Number of samples", text(samples["chosen"] or "as asked for, or the default", 400)),
        ("Memory of the gradients" if kept else "Memory of vectors", text(gib(samples["bytes"]))),
        ("Seed", f"<code>{audit['seed']}</code>"),
        (
            "Spec",
            text(audit["spec_name"], 120)
            + (f" (<code>{text(audit['spec_file'], 120)}</code>)" if audit["spec_file"] else ""),
        ),
        ("SHA-256 of the spec", f"<code>{text(audit['spec_sha256'], 80)}</code>"),
        ("Crossfeed", text(audit["crossfeed"], 40)),
    ]
    listing = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in rows)
    total = sum(audit["seconds"].values())
    stages = [
        [text(stage.capitalize(), 60), text(duration(value)), f"{100 * value / total:.0f} %" if total else "–"]
        for stage, value in sorted(audit["seconds"].items(), key=lambda item: -item[1])
    ]
    names = called(audit)
    models = [
        [
            text(names[m["name"]]),
            text(m["family"], 30),
            text(m.get("route") or audit["route"], 30),
            text(m["reward"], 40),
            num(m["curation"]),
            num(m["num_params"], 7),
            num(m["coordinates"], 7),
            text(m["coordinates_are"], 60),
            num(m["largest_curvature"]),
        ]
        for m in audit["models"]
    ]
    head = [
        "Model",
        "Family",
        "Route",
        "Its people’s reward",
        "Curation ratio",
        "Parameters",
        "Coordinates",
        "These are",
        "Largest curvature",
    ]
    shown = table(head, models, "The models as the estimate sees them", 100)
    return (
        f'<dl class="reproduce">{listing}</dl>{table(["Stage", "Time", "Share"], stages, "Time by stage")}'
        + (shown if len(models) <= LISTED else fold("The models", shown))
        + fold("The sources", _samples_table(audit))
    )


def _samples_table(audit: words.Audit) -> str:
    names, rows = called(audit), []
    for model in audit["models"]:
        for s in model["sources"]:
            made = words.called(names, s["producer"])
            rows.append(
                [
                    text(names[model["name"]]),
                    text(s["name"], 40),
                    text(s["kind"]),
                    text(made),
                    num(s["weight"]),
                    num(s["groups"], 7),
                    num(s["candidates"], 7),
                    num(round(s["effective"], 1), 5),
                ]
            )
    head = ["Trains", "Source", "Kind", "Made by", "Weight", "Groups", "Candidates", "Independent groups"]
    return table(head, rows, "Samples of every source", 300)
