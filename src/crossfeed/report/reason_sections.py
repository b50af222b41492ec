"""The sections of the page that explain: whether the loop settles, why the answer is what it is, and its limits."""

from __future__ import annotations

import re

from crossfeed.report import charts, words
from crossfeed.report.marks import MANY
from crossfeed.report.markup import Page, fold, num, paragraph, table, text
from crossfeed.report.reason_charts import route

IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def rest(audit: words.Audit, page: Page) -> str:
    """Stable point and certificates."""
    found, stable = audit.get("stability") or {}, audit["stable"]
    intro = paragraph(text(words.settles(audit))) + paragraph(
        "A <dfn>stable point</dfn> is a state of all models that one more round of retraining leaves as it is. "
        f"Sought by {text(stable.get('method') or 'repeated retraining')}; after "
        f"{words.plural(stable.get('steps') or 0, 'step')} a residual of "
        f"{num(stable.get('residual'), of='residual')} was left."
        + (
            f" {words.plural(stable['starts'], 'start')} led to no other stable point."
            if stable.get("starts") and not stable.get("others")
            else ""
        )
    )
    drawing = page.figure(
        "stability",
        charts.stability(audit),
        "Factor by which one round multiplies a small disturbance. Left of the line at 1 the loop settles, "
        "right of it it does not. "
        "The local factor holds near the stable point and depends on who is retrained when.",
    )
    certificate, parts = found.get("global") or {}, []
    reason = f" Reason: {text(certificate['reason']).rstrip('.')}." if certificate.get("reason") else ""
    if certificate.get("available") and certificate.get("contracts"):
        parts.append(
            f"The global certificate holds (factor {num(certificate.get('radius'))}): the loop settles at this "
            f"one point from any start.{reason}"
        )
    elif certificate.get("available"):
        parts.append(
            f"The global certificate does not hold (factor {num(certificate.get('radius'))}). That is a worst "
            f"case: the loop may still settle, "
            f"but it is not proved for every start.{reason}"
        )
    elif certificate:
        parts.append(f"No global certificate is available.{reason}")
    names = words.namer(audit)
    others = stable.get("others") or []
    if others:
        parts.append(
            f"{words.plural(len(others), 'other stable point')} found: where the loop ends depends on where it "
            f"starts. All numbers here are for the first."
        )
    rows = [
        [
            text(o["order"], 60),
            num(o.get("radius"), of="radius"),
            "yes" if o.get("stable") else "no",
            num(o.get("rounds_to_halve")),
        ]
        for o in found.get("local") or []
    ]
    numbers = table(
        ["Update order", "Factor per round", "Settles", "Rounds to halve"], rows, "Local stability by update order"
    )
    constants = [
        [text(words.called(names, c["model"])), num(c.get("gamma")), num(c.get("beta"))]
        for c in certificate.get("constants") or []
    ]
    if constants:
        numbers += table(
            ["Model", "γ: strong convexity", "β: Lipschitz constant"],
            constants,
            "Constants of the global certificate",
            50,
        )
    if others:
        points = [
            [str(n + 1), num(o.get("distance")), words.join([num(v) for v in (o.get("alignment") or [])[:12]])]
            for n, o in enumerate(others)
        ]
        numbers += table(["Other stable point", "Distance", "Alignment of each model"], points, "Other stable points")
    return intro + drawing + "".join(map(paragraph, parts)) + fold("The numbers", numbers)


def moves(audit: words.Audit, page: Page) -> str:
    """The trajectory."""
    found = audit.get("trajectory") or {}
    many = len(audit["models"]) > MANY
    others = (
        " Grey: the middle four fifths of all models, with their median."
        if many
        else " Grey: the other models."
        if len(audit["models"]) > 6
        else ""
    )
    spread = charts.entropy(audit)
    parts = [
        page.figure("alignment", charts.alignment(audit), f"Each model’s alignment from round to round.{others}"),
        page.figure(
            "movement",
            [*charts.movement(audit), *spread],
            "Δ, the size of a round’s step relative to the size of the parameters, on a logarithmic axis: a "
            "straight line down is a loop that settles."
            + (
                " Diversity: a line that falls to its floor is a model that collapses onto few outputs."
                if spread
                else ""
            ),
        ),
    ]
    drawn = "".join(parts)
    if not drawn:
        return ""
    names, series = words.labels(audit), found.get("alignment") or []
    rows = [
        [
            text(names[k]),
            num(line[0], of="start", model=k),
            num(line[-1], of="end", model=k),
            num((found.get("delta") or [[None]] * len(names))[k][-1]),
        ]
        for k, line in enumerate(series)
        if line
    ]
    return drawn + fold(
        "The numbers",
        table(
            ["Model", "Alignment, first round", "Alignment, last round", "Last Δ"], rows, "First and last round", 100
        ),
    )


def turn(audit: words.Audit, page: Page) -> str:
    """Direction of alignment."""
    found = audit.get("direction") or []
    if not found:
        return ""
    names = words.namer(audit)
    intro = paragraph(
        "Curation pushes a model in one direction; its alignment rises fastest in another. The <dfn>direction "
        "of alignment</dfn> ρ is the cosine of the angle "
        "between the two: 1 is the same way, 0 across, −1 against. The ecosystem then turns the push. If ρ is "
        "far enough from 0, no turn of that kind can "
        "change the sign of self-influence."
    )
    left = " Those nearest to zero are drawn." if len(found) > 16 else ""
    drawing = page.figure(
        "direction",
        charts.direction(audit),
        "Dot: ρ. Bars: where ρ must lie for the sign to be certain, by the bound of the paper, by the sharp "
        "bound (the largest turn that this "
        f"ecosystem can make), and given the turn it makes.{left}",
    )
    rows = [
        [
            text(words.called(names, d["model"])),
            num(d.get("rho"), of="rho", row=k),
            num(d.get("paper_bound")),
            num(d.get("sharp_bound")),
            num(d.get("turning_angle_deg")),
            num(d.get("flip_angle_deg")),
            "yes" if d.get("sign_guaranteed") else "no",
        ]
        for k, d in enumerate(found)
    ]
    head = ["Model", "ρ", "Paper’s bound", "Sharp bound", "Turn, degrees", "Flips after, degrees", "Sign certain"]
    return intro + drawing + fold("The numbers", table(head, rows, "Direction of alignment", 100))


def paths(audit: words.Audit, page: Page) -> str:
    """Walks."""
    found, panels = audit.get("walks") or [], charts.walks(audit)
    if not panels:
        return ""
    names = words.namer(audit)
    left = f" {len(panels)} of {len(found):,} pairs are drawn, harms first." if len(panels) < len(found) else ""
    drawing = page.figure(
        "walks",
        panels,
        f"An influence is the sum of what travels along every path from the raised model to the affected one. "
        f"Bars right of zero help, left of zero harm.{left}",
        titled=True,
    )
    rows = []
    for item in found:
        pair = f"{text(words.called(names, item['intervened']))} → {text(words.called(names, item['affected']))}"
        rows += [
            [pair, text(route(w["path"], names)), num(w.get("value"), sign=True, of="walk")] for w in item["walks"]
        ]
        rows.append([pair, "all other paths", num(item.get("rest"), sign=True)])
        rows.append([pair, "total", num(item.get("total"), sign=True)])
    return drawing + fold("The numbers", table(["Pair", "Path", "Influence"], rows, "Paths that carry the influence"))


def cuts(audit: words.Audit, page: Page) -> str:
    """Edge attribution."""
    found, panels = audit.get("edge_attribution") or [], charts.edges(audit)
    if not panels:
        return ""
    names = words.namer(audit)
    pairs = len({(e["affected"], e["intervened"]) for e in found})
    left = f" {len(panels)} of {pairs:,} pairs are drawn, harms first." if len(panels) < pairs else ""
    drawing = page.figure(
        "edges",
        panels,
        f"What each influence would be without one data flow: the bar is the influence as it is, the dot the "
        f"influence with that flow cut.{left}",
        titled=True,
    )
    rows = [
        [
            f"{text(words.called(names, e['intervened']))} → {text(words.called(names, e['affected']))}",
            f"{text(words.called(names, e['producer']))} → {text(words.called(names, e['consumer']))} "
            f"({text(e['name'], 40)})",
            num(e.get("with"), sign=True, of="with"),
            num(e.get("without"), sign=True, of="without"),
            num(e.get("share"), sign=True, of="share"),
        ]
        for e in found
    ]
    caption = "Influence with and without each data flow. First-order shares need not add up to the influence"
    return drawing + fold(
        "The numbers", table(["Pair", "Data flow", "As it is", "Without", "First-order share"], rows, caption)
    )


def shares(audit: words.Audit, page: Page) -> str:
    """Contributions by direction."""
    found, panels = audit.get("contributions") or [], charts.contributions(audit)
    if not panels:
        return ""
    names = words.namer(audit)
    left = f" The first {len(panels)} of {len(found):,} models are drawn." if len(panels) < len(found) else ""
    drawing = page.figure(
        "contributions",
        panels,
        "Self-influence split by direction of parameter space. Grey: what the picks push for; blue: what "
        "remains of it after the ecosystem has answered. "
        f"Where grey and blue point opposite ways, the ecosystem turns a gain into a loss.{left}",
        titled=True,
    )
    rows = [
        [
            text(words.called(names, c["model"])),
            text(i["label"], 60),
            num(i.get("raw"), sign=True, of="raw"),
            num(i.get("distorted"), sign=True, of="distorted"),
        ]
        for c in found
        for i in c["items"]
    ]
    return drawing + fold(
        "The numbers", table(["Model", "Direction", "As pushed", "After the ecosystem"], rows, "Contributions")
    )


def gallery(audit: words.Audit, page: Page) -> str:
    """Pictures of outcomes; only inline images are shown."""
    names, parts = words.namer(audit), []
    for item in audit.get("gallery") or []:
        who, title = words.called(names, item["model"]), words.clean(item["title"], 120)
        images = [uri for uri in item["images"][:12] if isinstance(uri, str) and IMAGE.fullmatch(uri)]
        if images:
            shown = "".join(
                f'<img src="{uri}" alt="{text(who)}: {text(title)}, picture {n + 1}">' for n, uri in enumerate(images)
            )
            parts.append(
                f'<figure class="gallery"><div>{shown}</div><figcaption>{text(who)}: '
                f"{text(title)}.</figcaption></figure>"
            )
    return "".join(parts)


def limits(audit: words.Audit, page: Page) -> str:
    """Assumptions."""
    items = "".join(f"<li>{text(a)}</li>" for a in audit.get("assumptions") or [])
    always = (
        "<li>The numbers describe the ecosystem as the spec describes it. Flows, rewards or models that are "
        "missing there are missing here.</li>"
        "<li>Influence is a slope: it tells what small changes do. For large ones, list them as planned "
        "changes; these are solved in full.</li>"
    )
    return f"<ul>{items}{always}</ul>"


def again(audit: words.Audit, page: Page) -> str:
    """How to reproduce."""
    rows = [
        ("Command", f"<code>{text(audit.get('command') or 'not recorded')}</code>"),
        (
            "Spec",
            text(audit["spec_name"])
            + (f" (<code>{text(audit['spec_file'])}</code>)" if audit.get("spec_file") else ""),
        ),
        ("SHA-256 of the spec", f"<code>{text(audit.get('spec_sha256') or 'not recorded')}</code>"),
        ("Crossfeed", text(audit.get("crossfeed") or "unknown")),
        ("Seed", f'<code data-seed="{text(audit.get("seed"))}">{text(audit.get("seed"))}</code>'),
        ("Computed in", f"{words.number(audit.get('seconds'))} s"),
    ]
    return (
        '<dl class="reproduce">'
        + "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in rows)
        + "</dl>"
    )
