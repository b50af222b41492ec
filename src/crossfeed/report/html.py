"""The report page: one HTML file with everything in it, that asks nothing of any network.

The page allows itself only its own two scripts, by hash (Content-Security-Policy), so that no text of a spec can
run even if it should get past the escaping. Charts are Vega-Lite, drawn in the browser by the Vega that vl-convert
carries.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from crossfeed.report import answer_sections, plan_sections, reason_sections, words
from crossfeed.report.marks import MANY
from crossfeed.report.markup import Page, script_json, text
from crossfeed.report.theme import PALETTES, config, css

SECTIONS: list[tuple[str, str, Callable[[words.Audit, Page], str]]] = [
    ("answer", "The answer", answer_sections.answer),
    ("flows", "Who is trained on whom", answer_sections.flows),
    ("influence", "What more curation does", answer_sections.influence),
    ("together", "Alone and together", answer_sections.together),
    ("changes", "Planned changes", plan_sections.plans),
    ("thresholds", "Where the answer flips", plan_sections.flips),
    ("sure", "How sure this is", plan_sections.surety),
    ("stability", "Whether the loop settles", reason_sections.rest),
    ("rounds", "How the loop moves", reason_sections.moves),
    ("direction", "Why: push and turn", reason_sections.turn),
    ("paths", "Paths that carry the effect", reason_sections.paths),
    ("edges", "What each data flow does", reason_sections.cuts),
    ("contributions", "What arrives of the push", reason_sections.shares),
    ("gallery", "What the models make", reason_sections.gallery),
    ("limits", "Assumptions and limits", reason_sections.limits),
    ("reproduce", "How to reproduce this", reason_sections.again),
]
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill="none" stroke-width="3.4" '
    'stroke-linecap="round">'
    '<path d="M6 11c6-7 14-7 19-1" stroke="#0b5a9c"/><path d="M26 21c-6 7-14 7-19 1" stroke="#b04508"/></g>'
    '<path d="M27.5 4.500v8h-8z" fill="#0b5a9c"/><path d="M4.500 27.500v-8h8z" fill="#b04508"/></svg>'
)
TOP = 20


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (about 0.9 MB); the first call takes about a second."""
    import vl_convert

    # A script element ends at the first "</script", and "<!--" changes how it is read; neither may stand in it.
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _asset(name: str) -> str:
    return resources.files("crossfeed.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def search_index(audit: words.Audit, top: int = TOP) -> dict[str, Any] | None:
    """For each model its self-influence and its strongest influences in and out; None for small ecosystems.

    ``out[i]`` and ``in[i]`` are flat lists: other model, influence, verdict, and so on; verdicts are numbered as in
    ``verdicts``, −1 for none.
    """
    influence = audit.get("influence")
    if not influence or len(audit["models"]) <= MANY:
        return None
    import numpy as np

    names = list(words.VERDICTS)
    number = {name: position for position, name in enumerate(names)}
    matrix = np.array(influence["matrix"], dtype=float)
    sizes = np.abs(np.nan_to_num(matrix))
    np.fill_diagonal(sizes, 0.0)

    def strongest(line: Any, entry: Callable[[int], tuple[int, int]]) -> list[float]:
        found: list[float] = []
        for other in np.argsort(-line, kind="stable")[:top].tolist():
            if line[other] > 0:
                k, i = entry(other)
                found += [other, float(f"{matrix[k, i]:.4g}"), number.get(influence["verdict"][k][i] or "", -1)]
        return found

    count = len(matrix)
    return {
        "verdicts": [[v.symbol, v.key, v.style] for v in words.VERDICTS.values()],
        "names": words.labels(audit),
        "self": [influence["matrix"][i][i] for i in range(count)],
        "isolated": influence["isolated"],
        "verdict": [number.get(influence["verdict"][i][i] or "", -1) for i in range(count)],
        "out": [strongest(sizes[:, i], lambda other, i=i: (other, i)) for i in range(count)],  # type: ignore[misc]
        "in": [strongest(sizes[k], lambda other, k=k: (k, other)) for k in range(count)],  # type: ignore[misc]
    }


def html(audit: words.Audit) -> str:
    """Write the report of an audit as one self-contained HTML page.

    Args:
        audit: The contents of audit.json.

    Returns:
        The page; it opens offline, follows the reader's light or dark scheme, and prints.
    """
    page, parts = Page(), []
    for anchor, title, section in SECTIONS:
        parts.append((anchor, title, section(audit, page)))
    facts = [
        words.clean(audit.get("space") or ""),
        words.plural(len(audit["models"]), "model"),
        words.plural(len(audit["edges"]), "data flow"),
    ]
    return assemble(
        "audit",
        audit["spec_name"],
        audit.get("description") or "",
        facts,
        parts,
        page,
        version=audit.get("crossfeed") or "",
        search=search_index(audit),
    )


def assemble(
    kind: str,
    title: str,
    description: str,
    facts: Sequence[str],
    sections: Sequence[tuple[str, str, str]],
    page: Page,
    *,
    version: str,
    search: dict[str, Any] | None = None,
) -> str:
    """Put sections and charts into the template.

    Args:
        kind: What the page is: ``audit`` or ``run``.
        title: The headline.
        description: A paragraph below it, if any.
        facts: Short facts in one line.
        sections: (anchor, title, markup); those without markup are left out.
        page: The charts that the sections drew.
        version: The Crossfeed that made what is shown.
        search: Of :func:`search_index`.

    Returns:
        The page.
    """
    body, links = [], []
    for anchor, heading, content in sections:
        if content:
            body.append(
                f'<section id="{anchor}" aria-labelledby="h-{anchor}"><h2 '
                f'id="h-{anchor}">{heading}</h2>{content}</section>'
            )
            links.append(f'<li><a href="#{anchor}">{heading}</a></li>')
    bundle, script = vega_bundle(), _asset("template.js")
    data = {"charts": page.charts, "palettes": PALETTES, "config": config(), "search": search}
    policy = (
        f"default-src 'none'; script-src {_hash(bundle)} {_hash(script)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "kind": text(kind),
        "title": text(title, 120),
        "icon": "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode(),
        "style": css() + _asset("template.css"),
        "description": f'<p class="description">{text(description)}</p>' if description else "",
        "facts": " · ".join(text(f) for f in facts if f),
        "contents": "".join(links),
        "sections": "".join(body),
        "version": text(version),
        "bundle": bundle,
        "data": script_json(data),
        "script": script,
    }
    # One pass, so that nothing that is filled in is searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("template.html"))
