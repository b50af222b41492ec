"""The sections of a run's page, in the order in which a reader needs them; what models make is in run_samples, what
they were trained on in run_origins.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from crossfeed.report import graph, run_charts, words
from crossfeed.report.answer_sections import edges_table
from crossfeed.report.markup import Page, fold, num, paragraph, sentence, table, text, without_empty
from crossfeed.report.run_data import Facts, edges
from crossfeed.report.run_people import liked
from crossfeed.report.run_words import (
    HALVED,
    VERDICT,
    bottom_line,
    called,
    change,
    diversity_kept,
    duration,
    ending,
    happened,
    limits,
    ordered,
    planned,
    scale,
    seconds,
    where,
)

if TYPE_CHECKING:
    from crossfeed.record.folder import RunFolder

LISTED = 12


def answer(facts: Facts, page: Page) -> str:
    """What happened to every model, how it ended, at which scale."""
    names = called(facts)
    parts = [paragraph(text(bottom_line(facts)), "lead")]
    early = facts.status.get("result") in {"diverged", "collapsed", "failed"}
    if early:
        parts.append(f'<div class="refused" role="alert"><p>{text(ending(facts))}</p></div>')
    listed = ordered(facts)[:LISTED]
    items = "".join(f"<li>{sentence(happened(facts, n, names))}</li>" for n in facts.names if n in listed)
    parts.append(f'<ul class="answers">{items}</ul>')
    if len(facts.names) > LISTED:
        parts.append(
            paragraph(f"The {len(facts.names) - LISTED:,} models that moved less stand in the table below.", "note")
        )
    took = seconds(facts)
    shown = [
        ("Rounds", f"{facts.last:,} of {planned(facts):,}"),
        ("Models", f"{len(facts.names):,}"),
        ("Time", text(duration(sum(took.values()))) if took else "–"),
    ]
    parts.append('<dl class="facts">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in shown) + "</dl>")
    parts.append(paragraph(text(" ".join([*([] if early else [ending(facts)]), *scale(facts)]))))
    thin = [n for n in facts.names if (kept := diversity_kept(facts, n)) is not None and kept < HALVED]
    beware = []
    if thin:
        which = words.join([names[n] for n in thin[:6]] + ([f"{len(thin) - 6} more"] if len(thin) > 6 else []))
        beware.append(
            f"{which} lost more than half of the diversity of the start: a rise there is bought with sameness."
        )
    beware += [f"Part of the record is damaged and was left out: {problem}" for problem in facts.damaged[:5]]
    if beware:
        items = "".join(f"<li>{text(line, 600)}</li>" for line in beware)
        parts.append(f'<div class="warnings"><h3>Beware</h3><ul>{items}</ul></div>')
    parts.append(
        paragraph(
            "<dfn>Alignment</dfn> says how well a model’s outputs please its own people: it is the mean of their reward, a "
            "formula that gives each output a number. The start is the model before any retraining. Alignment rose or fell "
            "where the 95 % interval of the difference from start to end leaves out zero. One run with one seed cannot tell "
            'what <a href="#limits">other runs would do</a>.',
            "note",
        )
    )
    people = "".join(
        f"<li>{text(names[n])}’s people like {text(liked(facts.eco, facts.eco.models[n].reward), 300)}.</li>"
        for n in facts.names
        if n in listed
    )
    parts.append(f'<ul class="note">{people}</ul>')
    return "".join(parts)


def flows(facts: Facts, page: Page) -> str:
    """The data-flow graph of the spec."""
    drawn: dict[str, Any] = {"models": [{"name": n} for n in facts.names], "edges": edges(facts.eco)}
    left = graph.left_out(drawn)
    caption = (
        "An arrow runs from whoever makes the data to the model that is trained on it, and is as wide as its share of that "
        "model’s training data. Point at an arrow for its details."
    )
    return (
        '<figure class="single"><div class="scroll graph-frame" tabindex="0" role="region" aria-label="Data-flow graph">'
        f"{graph.svg(drawn)}</div><figcaption>{caption}{' ' + text(left) if left else ''}</figcaption></figure>"
        + fold("All data flows", edges_table(drawn["edges"], called(facts)))
    )


def alignment(facts: Facts, page: Page) -> str:
    """Curves of alignment and the table of differences."""
    several = len(facts.evaluations) > len(facts.names)
    caption = "Round 0 is the start, before any retraining. "
    caption += (
        "Bands are 95 % intervals of each measurement; where none is seen, it is narrower than the line."
        if _sure(facts)
        else "No intervals were recorded."
    )
    if several:
        caption += (
            " Own inputs are those of the real data that a model is trained on. Other inputs show what training on "
            "each other’s outputs does elsewhere."
        )
    if len(facts.names) > run_charts.COLOURED:
        caption += f" In colour the {run_charts.COLOURED} models that moved most, in grey the others."
    drawing = page.figure("alignment", run_charts.alignment(facts), caption, titled=several)
    names, rows = called(facts), []
    for e in facts.evaluations:
        found = change(facts, e)
        if found is None:
            continue
        low, high = (
            (None, None) if found.half is None else (found.difference - found.half, found.difference + found.half)
        )
        rows.append(
            [
                text(names[e.model]),
                text(e.name, 40),
                text(where(e, names)),
                num(found.first.value, of="first", model=e.model, domain=e.name),
                num(found.last.value, of="last", model=e.model, domain=e.name),
                num(found.difference, sign=True, of="difference", model=e.model, domain=e.name),
                "–" if low is None else f"{num(low, sign=True, of='low')} to {num(high, sign=True, of='high')}",
                "input by input" if found.paired else "independent",
                verdict_of(found.verb),
            ]
        )
    head = ["Model", "Evaluation", "On", "Start", "End", "Difference", "95 % interval", "Taken", "It"]
    numbers = table(*without_empty(head, rows), "Alignment at the start and at the end") if rows else ""
    return drawing + (fold("The numbers", numbers) if numbers else "")


def verdict_of(verb: str) -> str:
    """What alignment did, with the symbol and colour of the verdict that goes with it."""
    shown = words.VERDICTS[VERDICT[verb]]
    said = "stayed" if VERDICT[verb] == "no effect" else verb
    return f'<span class="verdict {shown.style}"><span aria-hidden="true">{shown.symbol}</span> {said}</span>'


def _sure(facts: Facts) -> bool:
    return any(p.error is not None for _, _, points in facts.of("alignment") for p in points)


def outputs(facts: Facts, page: Page) -> str:
    """Diversity and distance to real data."""
    panels = [*run_charts.metric(facts, "diversity"), *run_charts.metric(facts, "distance_to_data")]
    kind = facts.eco.space.kind
    caption = {
        "text": "Diversity is the share of pairs of neighbouring words that are distinct. Distance compares how often "
        "words occur in the outputs and in real data (Jensen–Shannon divergence): 0 where equally often, 0.69 where they "
        "have no word in common.",
        "images": "Pictures are compared by their colours: means and spreads of red, green and blue, hues, saturation, "
        "brightness. Diversity is the mean distance between two outputs. Distance to real data is the energy distance: "
        "about 0 where both are distributed alike.",
    }.get(
        kind,
        "Diversity is the mean distance between two outputs. Distance to real data is the energy distance: about 0 where "
        "both are distributed alike.",
    )
    note = "A model whose diversity falls towards zero makes the same output again and again: it has collapsed."
    if any(p.error is not None for _, _, points in facts.of("distance_to_data") for p in points):
        note += " The band is the 95 % interval; none is recorded for diversity."
    return page.figure("outputs", panels, f"{caption} {note}", titled=True)


def training(facts: Facts, page: Page) -> str:
    """Loss, Δ and gradient norms."""
    panels = [
        *run_charts.metric(facts, "delta", log=True),
        *run_charts.loss(facts),
        *run_charts.metric(facts, "gradient_norm", log=True),
    ]
    caption = (
        "Δ is how far a round moves a model’s parameters, as a share of their size, ‖θ′ − θ‖/‖θ‖; where it goes to zero "
        "the loop comes to rest. The loss is what training makes small, here in the first and the last steps of each round. "
        "The gradient norm is how strongly the training data pull. Δ and the gradient norm are on logarithmic axes."
    )
    return page.figure("training", panels, caption, titled=True)


def extras(facts: Facts, page: Page) -> str:
    """Whatever else was measured of the outputs."""
    return page.figure(
        "extras", run_charts.extras(facts), "Measured on the outputs of each round’s evaluation.", titled=True
    )


# --- limits, how it was made ----------------------------------------------------------------------------------------


def bounds(facts: Facts, page: Page) -> str:
    """What the run does not show."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in limits(facts)) + "</ul>"


def made(facts: Facts, folder: RunFolder) -> str:
    """Command, versions, hardware, seconds, folder, and how to go on."""
    found, name = facts.made, folder.path.name
    command = str(found.get("command") or "")
    resume = f"crossfeed run {shlex.quote(words.clean(name))} --resume"
    rows = [("Command", f"<code>{text(command or 'not recorded', 400)}</code>")]
    rows += [
        (
            "Spec",
            f"{text(facts.eco.name, 120)}"
            + (f" (<code>{text(found['spec_file'], 120)}</code>)" if found.get("spec_file") else ""),
        )
    ]
    for key, term in (("spec_sha256", "SHA-256 of the spec"), ("created", "Started")):
        if found.get(key):
            rows.append((term, f"<code>{text(found[key], 80)}</code>"))
    version = words.clean(found.get("crossfeed") or "unknown", 40)
    commit = found.get("commit") or {}
    changed = ", with changes" if commit.get("modified") else ""
    rows.append(
        ("Crossfeed", text(version + (f", commit {str(commit['id'])[:12]}{changed}" if commit.get("id") else "")))
    )
    rows.append(("Seed", f"<code>{facts.eco.seed}</code>"))
    if found.get("libraries"):
        rows.append(("Versions", text(_listed({"Python": found.get("python"), **found["libraries"]}), 600)))
    if found.get("hardware"):
        rows.append(("Hardware", text(_hardware(found), 400)))
    if facts.options:
        rows.append(("Options", text(_listed(facts.options), 400)))
    rows.append(("Go on with it", f"<code>{text(resume)}</code>"))
    took = seconds(facts)
    total = sum(took.values())
    stages = [
        [text(stage, 40), text(duration(value)), f"{100 * value / total:.0f} %" if total else "–"]
        for stage, value in sorted(took.items(), key=lambda item: -item[1])
    ]
    spent = table(["Stage", "Time", "Share"], stages, "Time by stage, all rounds") if stages else ""
    listing = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in rows)
    return f'<dl class="reproduce">{listing}</dl>{spent}<h3>What is in the folder</h3>{_folder(facts, name)}'


def _hardware(found: Mapping[str, Any]) -> str:
    machine = found["hardware"]
    parts = [
        machine.get("cpu"),
        f"{machine.get('cores')} cores",
        f"{words.plural(int(machine.get('threads') or 0), 'thread')} used",
    ]
    parts += [f"{machine['memory_gib']} GiB of memory"] if machine.get("memory_gib") else []
    return ", ".join(str(p) for p in [*parts, *(machine.get("gpus") or []), found.get("platform")] if p)


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_listed(v)}" for k, v in value.items() if v not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


def _folder(facts: Facts, name: str) -> str:
    at, model = facts.last, words.clean(facts.names[0], 60)
    where_ = f"rounds/{at:04d}/"
    contents = [
        ("run.json", "command, versions, hardware, seed"),
        ("spec.yaml, spec.json", "the spec as given, and resolved"),
        ("status.json", "how the run ended"),
        ("metrics.parquet", "every number of every round"),
        (f"{where_}round.json", "checksums, seconds, counts"),
        (f"{where_}samples-*.parquet", "every training sample with its origin"),
        (f"{where_}shown-*.parquet", "outputs kept for showing"),
        (f"{where_}parameters-*.safetensors", "what was trained"),
    ]
    width = 2 + max(len(file) for file, _ in contents)
    layout = "\n".join(f"{file:<{width}}{what}" for file, what in contents)
    calls = [
        ("run.metrics()", "a table: round, model, metric, domain, value, standard_error"),
        (f"run.samples({at}, {model!r})", "the new training samples of a round, one row each"),
        (f"run.parameters({at}, {model!r})", "tensors by name"),
    ]
    width = 2 + max(len(call) for call, _ in calls)
    code = f"from crossfeed.record.folder import RunFolder\n\nrun = RunFolder.open({words.clean(name, 120)!r})\n"
    code += "\n".join(f"{call:<{width}}# {what}" for call, what in calls)
    shown = (f'<pre class="folder">{escape(lines, quote=True)}</pre>' for lines in (layout, code))
    return "<p>In Python:</p>".join(shown)


# --- what the audit predicts ----------------------------------------------------------------------------------------


def predicted(facts: Facts, audit: words.Audit | None, page: Page) -> str:
    """What an audit of the spec predicts, next to what the run did."""
    if audit is None:
        return ""
    if audit.get("format") == "crossfeed-estimate":
        from crossfeed.report.estimate_run import predicted as of_networks

        return of_networks(facts, audit)
    names, rows = called(facts), []
    by_name = {m["name"]: k for k, m in enumerate(audit["models"])}
    trajectory = (audit.get("trajectory") or {}).get("alignment") or []
    agreed = told = 0
    for name in facts.names:
        e, k = facts.primary(name), by_name.get(name)
        found = None if e is None else change(facts, e)
        if k is None or found is None:
            continue
        line = [v for v in (trajectory[k] if k < len(trajectory) else None) or [] if v is not None]
        stable = (audit["models"][k].get("alignment") or [{}])[0].get("value")
        start, end = (line[0], line[-1]) if len(line) > 1 else (None, stable)
        gap = None if end is None else end - (found.first.value if start is None else start)
        foreseen = None if gap is None else "rose" if gap > 0 else "fell" if gap < 0 else "did not change measurably"
        if foreseen in {"rose", "fell"} and VERDICT[found.verb] != "no effect":
            told += 1
            agreed += foreseen == found.verb
        rows.append(
            [
                text(names[name]),
                "–" if foreseen is None else verdict_of(foreseen).replace("rose", "rises").replace("fell", "falls"),
                num(gap, sign=True, of="foreseen", model=name),
                verdict_of(found.verb),
                num(found.difference, sign=True, of="seen", model=name),
            ]
        )
    parts = []
    if _other_spec(facts, audit):
        parts.append(
            '<div class="warnings"><ul><li>'
            f"The audit is of another spec ({text(audit['spec_name'], 80)}): it solves closed-form models, not networks. "
            "Models are matched by name, and rewards may have another scale: compare directions, not sizes.</li></ul></div>"
        )
    if not rows:
        return "".join(parts) + paragraph("The audit has no model of this run, so there is nothing to compare.", "note")
    if told:
        parts.append(
            paragraph(
                f"Of {words.plural(told, 'model')} with a measurable change, the audit foresaw the direction of {agreed}."
            )
        )
    head = ["Model", "The audit: alignment", "by", "The run: it", "by"]
    parts.append(table(head, rows, "Direction of alignment from the start, predicted and seen"))
    parts.append(paragraph(f"On whether the loop settles, the audit says: {text(words.settles(audit))}"))
    columns = words.curated_models(audit)
    if columns:
        labels = words.labels(audit)
        items = "".join(f"<li>{sentence(words.raising(audit, i, labels))}</li>" for i in columns[:LISTED])
        parts.append(
            paragraph(
                "The audit also predicts what more curation would do. One run cannot show that: run the spec again with a "
                "higher curation ratio, e.g. <code>--set p.curation=0.6</code>, and compare.",
            )
            + f'<ul class="answers">{items}</ul>'
        )
    return "".join(parts)


def _other_spec(facts: Facts, audit: words.Audit) -> bool:
    from crossfeed.report.audit import digest

    return audit.get("spec_sha256") not in {digest(facts.eco), facts.made.get("spec_sha256")}
