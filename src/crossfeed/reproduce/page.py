"""The reproduction as a page: the figure, its deviations from the published numbers, and what disagrees.

Panels are inline SVG with the page's CSS variables for colours, so that the page needs no script.
"""

from __future__ import annotations

import re
from importlib import resources

from crossfeed.report.markup import fold, num, paragraph, table, text
from crossfeed.report.theme import css
from crossfeed.report.words import number
from crossfeed.reproduce.figure import panel_svg
from crossfeed.reproduce.numbers import MODELS, Numbers
from crossfeed.reproduce.panels import panels

TITLE = "Figure 3, redone"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = (
    ".panels .cells svg{display:block;width:100%;height:auto}"
    "@media (min-width:1180px){main>section>figure{margin-right:-70px}}"
)


def html(numbers: Numbers) -> str:
    """The whole page, complete in itself; it follows the reader's light or dark scheme and the width of the window."""
    parts = {
        "answer": ("What came out", _answer(numbers)),
        "figure": ("The figure", _figure(numbers)),
        "deviations": ("Against the published numbers", _deviations(numbers)),
        "samples": ("Finite samples", _samples(numbers)),
        "zeros": ("Where signs change", _zeros(numbers)),
        "differences": ("What differs from the paper", _differences(numbers)),
        "method": ("How it was computed", _method(numbers)),
    }
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in parts.items())
    sections = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{title}</h2>{body}</section>'
        for key, (title, body) in parts.items()
    )
    style = css() + resources.files("crossfeed.report").joinpath("template.css").read_text(encoding="utf-8") + STYLE
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{TITLE} – Crossfeed</title><style>{style}</style></head><body>"
        '<a class="skip" href="#answer">Skip to the answer</a><div class="layout"><header>'
        f'<p class="brand">Crossfeed reproduction</p><h1>{TITLE}</h1>'
        '<p class="description">Two Gaussian models that keep copying each other, and what happens '
        "when more of what one "
        f'of them learns from is shifted by people.</p><p class="meta">{text(numbers["source"])}</p></header>'
        f'<nav aria-label="Contents"><details open><summary>Contents</summary><ol>{links}</ol></details></nav>'
        f"<main>{sections}</main><footer><p>Written by Crossfeed {text(numbers['crossfeed'])}. This "
        "page is complete in "
        "itself: it loads nothing from anywhere.</p></footer></div></body></html>"
    )


def worst(numbers: Numbers, *ways: str) -> float:
    """Largest absolute deviation among the rows of the given ways."""
    return float(max(row["largest"] for row in numbers["deviations"] if row["how"] in ways))


def _answer(numbers: Numbers) -> str:
    theirs, ours = numbers["agreement"]["published"], numbers["agreement"]["simulated"]
    exact = worst(numbers, "influence matrix", "explicit formula", "library")
    return paragraph(
        f"Every published exact number comes out again, to {num(exact, 2)} at worst: the influence "
        "matrix, the explicit "
        "formula and central differences of stable points solved anew give the published curves.",
        "lead",
    ) + paragraph(
        f"Of the {theirs['count']} published derivatives on finite samples, {theirs['within_2']} lie within 2 and "
        f"{theirs['within_3']} within 3 of their own standard errors of the finite-sample theory; "
        f"{theirs['expected_2']:.1f} and {theirs['expected_3']:.1f} are to be expected of a true "
        "theory. The same holds "
        f"of this run's own simulation: {ours['within_2']} and {ours['within_3']} of {ours['count']}."
    )


def _figure(numbers: Numbers) -> str:
    cells = []
    for position, (letter, panel) in enumerate(zip("abcdefgh", panels(numbers), strict=True)):
        svg = panel_svg(panel).replace("<svg ", f'<svg role="img" aria-label="{text(panel.alt, 600)}" ', 1)
        svg = re.sub(r'\bid="', f'id="panel{position}-', svg).replace("url(#", f"url(#panel{position}-")
        cells.append(f'<div class="panel"><p class="panel-title">({letter}) {text(panel.title)}</p>{svg}</div>')
    by_row = [cells[k] for k in (0, 4, 1, 5, 2, 6, 3, 7)]
    caption = (
        "Lines and filled marks: this run. Hollow marks: published. <b>(a)</b> Cosine between a "
        "model's reward gradient "
        "and the push of p's curation; violet is what the published script plots for p. <b>(e)</b> Change of alignment "
        "per unit of p's curation ratio λ: influence matrix (pale line), explicit formula (dashes), "
        "central differences "
        "(crosses). <b>(b, f)</b> The same on n samples a model and round: line exact, bands ± 2 standard errors by "
        "theory, dots simulated. <b>(c, g)</b> Contributions of the 12 blocks of coordinates, of the push itself and "
        "after the loop has turned it. <b>(d, h)</b> Alignment over λ: lines exact, long dashes n = "
        "32 and short dashes "
        "n = 4 by theory, dots (n = 32) and triangles (n = 4) simulated."
    )
    return (
        f'<figure class="panels"><div class="cells">{"".join(by_row)}</div><figcaption>{caption}</figcaption></figure>'
    )


def _deviations(numbers: Numbers) -> str:
    rows = [
        [
            text(r["what"]),
            text(r["how"]),
            f"{r['count']:,}",
            num(r["size"], 4),
            num(r["largest"], 2),
            num(r["relative"], 2),
        ]
        for r in numbers["deviations"]
    ]
    head = ["Quantity", "Ours by", "Numbers", "Largest published", "Largest deviation", "Relative to that"]
    return paragraph(
        "Deviations are absolute; the last column divides by the largest published value. Central differences are of "
        "alignments at stable points solved anew at λ ± 0.02; alignment is quadratic in λ, so they have no truncation "
        "error. The published zero is that of a cubic spline through the published curve, whose "
        "error is what its row shows."
    ) + table(head, rows, "Largest deviation from each published array")


def _samples(numbers: Numbers) -> str:
    a, s = numbers["agreement"], numbers["settings"]
    names = {
        "published": "published derivatives",
        "simulated": "derivatives simulated here",
        "sweep": "alignments over λ simulated here",
    }
    rows = [
        [
            names[key],
            f"{a[key]['count']}",
            f"{a[key]['within_2']} ({a[key]['expected_2']:.1f})",
            f"{a[key]['within_3']} ({a[key]['expected_3']:.1f})",
            f"{a[key]['mean_square']:.3f} ({a[key]['expected_mean_square']:.3f})",
            f"{a[key]['largest']:.2f}",
        ]
        for key in names
    ]
    head = ["Means", "Number", "Within 2", "Within 3", "Mean square", "Largest"]
    found = []
    for n, models in numbers["finite"]["n"].items():
        for model in MODELS:
            v = models[model]
            for k, t in enumerate(numbers["finite"]["t"]):
                pair = [
                    f"{v[way][k]:.2f} ± {v[f'{way}_std_error'][k]:.2f}" for way in ("theory", "simulated", "published")
                ]
                found.append([f"t = {t:.3f}", n, model, *pair])
    return (
        paragraph(
            f"A run starts at 0 and has {s['rounds']} rounds, of which the first {s['discarded']} are discarded; the "
            f"derivative is (J at λ + {s['step']:g} minus J at λ − {s['step']:g}) / {2 * s['step']:g}, means are over "
            f"{s['seeds']} seeds for each t, n and sign. The theory is exact for the mean (the loop "
            "is affine and alignment "
            "quadratic), start and averaging included, and to order 1/n for the standard error. "
            "Deviations are counted in "
            "the means' own standard errors; what Student's t with the runs' degrees of freedom lets expect stands in "
            "brackets."
        )
        + table(head, rows, "Deviations from the finite-sample theory, in standard errors")
        + paragraph(
            f"Published standard errors are {a['published_std_error_over_theory']:.3f} times the predicted ones, ours "
            f"{a['simulated_std_error_over_theory']:.3f} times (root mean square). The start moves a derivative by "
            f"{num(numbers['finite']['start_effect'], 2)} at most after {s['discarded']} rounds: "
            "where the published runs "
            "began cannot be told from their numbers, and does not matter."
        )
        + fold(
            "All derivatives on finite samples",
            table(["", "n", "model", "theory", "here", "published"], found, "∂J/∂λ"),
        )
    )


def _zeros(numbers: Numbers) -> str:
    zero = numbers["zero"]
    rows = [
        [f"λ, at t = {t}", "p", ", ".join(num(x, 5) for x in models[who]) or "none", f"J_{who}"]
        for t, models in zero["curation"].items()
        for who in MODELS
    ]
    rows = [[f"t, at λ = {numbers['settings']['curation']:g}", "p", num(zero["t"]["library"], 10), "J_q"], *rows]
    turn = numbers["blocks"]["direction"]
    return (
        paragraph(
            "Beyond these values more curation of p lowers the alignment. At t = 0.9 that begins for q at a curation "
            f"ratio of {number(zero['curation']['0.9']['q'][0], 3)}, long before it begins for p, at "
            f"{number(zero['curation']['0.9']['p'][0], 3)}: p's curation backfires on its neighbour first."
        )
        + table(["Moved", "Curated", "Zero of the influence", "Affected"], rows, "Where influences change sign")
        + paragraph(
            "Direction alone does not decide this. At t = 0.9 the push on p has ρ = "
            f"{number(turn['rho'], 3)}; the loop "
            f"turns it by {number(turn['turning_angle_deg'], 3)}°. Corollary 4.7 would guarantee the sign only above "
            f"|ρ| = {number(turn['paper_bound'], 3)}, the sharp form of the bound above "
            f"{number(turn['sharp_bound'], 3)}: "
            "the sign stays, but no bound on the turn alone can promise it."
        )
    )


def _differences(numbers: Numbers) -> str:
    c, b = numbers["curves"], numbers["blocks"]
    sums = {model: sum(b[model]["distorted"]["library"]) for model in MODELS}
    return (
        "<h3>Direction of alignment of p</h3>"
        + paragraph(
            "The theory's ρ_p is the cosine between ∇J_p and the push a. The published script plots the cosine between "
            "∇J_p and θ*. But θ* = λ ∂θ*/∂λ in this experiment, so that quantity is the influence itself, divided by "
            "positive lengths: it has the sign of ∂J_p/∂λ whatever the loop does, and cannot show that direction and "
            f"influence come apart. At t = 1 it is {number(c['rho_p_published']['explicit'][-1], 3)}; "
            f"the theory's ρ_p is {number(c['rho_p']['library'][-1], 3)} there and hardly changes "
            "over t. Both are drawn."
        )
        + "<h3>Blocks</h3>"
        + paragraph(
            "The published contributions use the reward's linear part, g·a and g·Sa, as if the "
            "models stood at 0, and so "
            "are the library's at λ = 0. At the stable point of λ = 0.4 the gradient is g − ηθ*. For q the difference "
            "decides the sign: the published blocks after the loop sum to "
            f"{number(sums['q'], 3, sign=True)}, the influence "
            f"on q at t = 0.9 is {number(b['q']['influence'], 3, sign=True)} "
            f"(p: {number(sums['p'], 3, sign=True)} and {number(b['p']['influence'], 3, sign=True)}). "
            "fig3.json holds the "
            "contributions at λ = 0.4 as well; those sum to the influences."
        )
        + "<h3>The noise that q sees</h3>"
        + paragraph(
            "In the experiment q is trained on N(Aθ, σ²I). If p generates N(θ, σ²I) and A maps its outputs, q sees "
            "N(Aθ, σ²AAᵀ) instead, and on finite samples its alignment scatters less than published, ten times less "
            "at t = 0.05. The ecosystem here lets p generate N(θ, σ²(AᵀA)⁻¹), which A turns into the published noise; "
            "on population data, panels a, c, d, e, g, h, it makes no difference."
        )
    )


def _method(numbers: Numbers) -> str:
    seconds = ", ".join(f"{text(key)} {value:.1f} s" for key, value in numbers["seconds"].items())
    return paragraph(
        "The experiment is an ordinary ecosystem (crossfeed.reproduce.gaussian.gaussian_ecosystem; "
        "examples/gaussian.yaml is the same at t = 0.9). Values of t and λ are pairs of models side by side in one "
        "ecosystem; seeds are one batch. The panels are those of the paper's experiment; their "
        "division into eight is ours."
    ) + paragraph(f"Time: {seconds}. Again: <code>crossfeed reproduce fig3</code>. All numbers: fig3.json.")
