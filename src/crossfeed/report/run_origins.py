"""What training sets were made of: what people picked, and how far from real data it all is."""

from __future__ import annotations

from crossfeed.report import run_charts, words
from crossfeed.report.markup import Page, fold, num, paragraph, table, text, without_empty
from crossfeed.report.run_data import Facts, Picked
from crossfeed.report.run_people import drawn_otherwise
from crossfeed.report.run_words import called, quantile

TABLE = 40
SAID = 6


def curation(facts: Facts, page: Page) -> str:
    """What people picked."""
    if not facts.curation:
        return ""
    names = called(facts)
    latest: dict[tuple[str, str], Picked] = {(p.model, p.source): p for p in facts.curation}
    intro = paragraph(
        "People are offered candidates and pick one. The further the reward of what they pick lies above the mean of "
        "what they were offered, the harder curation pulls; where candidates become alike, nothing is left to choose."
    )
    caption = (
        "Mean reward, by the people who picked (the first, where several picked in turn). If the best candidate were always "
        "taken, “picked” would lie on “best candidate”; if people picked at random, on “offered”, the mean of all "
        "candidates. The band or bar around “picked” is the 95 % interval of its distance from “offered”."
    )
    caption += f" {text(drawn_otherwise(facts.eco))}"
    panels = run_charts.picks(facts)
    if len(latest) > len(panels):
        caption += f" Drawn are the {len(panels)} of {len(latest):,} sources where picking moved the mean most."
    drawing = page.figure("picks", panels, caption, titled=True)
    among = run_charts.picks_of(facts)
    rows = []
    for (model, source), p in latest.items():
        half = None if p.gain[1] is None else quantile(p.rows) * p.gain[1]
        gain = num(p.gain[0], sign=True, of="gain", model=model)
        pickers = [f"{text(who, 30)} {100 * share:.0f}&nbsp;%" for who, share in list(p.pickers.items())[:4]]
        rows.append(
            [
                text(names[model]),
                text(among[model, source], 80),
                num(p.rows, 7),
                num(p.offered, of="offered", model=model),
                num(p.picked, of="picked", model=model),
                gain if half is None else f"{gain}&nbsp;±&nbsp;{num(half)}",
                f'<span class="num">{100 * p.ranks[0]:.0f}&nbsp;%&nbsp;(of&nbsp;{len(p.ranks)})</span>',
                text(next(iter(p.pickers)), 30) if len(p.pickers) == 1 else ", ".join(pickers),
            ]
        )
    head = ["Model", "Picks among", "Picks", "Offered", "Picked", "Gain", "Took the best", "By the reward"]
    note = paragraph(
        "Offered and picked: mean rewards. Gain: picked minus offered, with its 95 % interval. Took the best: how often the "
        "best candidate was picked (of how many).",
        "note",
    )
    return intro + drawing + _cut(head, rows, "Picks in the last round that has any") + note


def _cut(head: list[str], rows: list[list[str]], caption: str) -> str:
    """A table of the first rows, which says how many there are."""
    more = len(rows) - TABLE
    left = paragraph(f"{words.plural(more, 'more row')} in the record.", "note") if more > 0 else ""
    return table(head, rows[:TABLE], caption) + left


def lineage(facts: Facts, page: Page) -> str:
    """Generations from real data."""
    panels = run_charts.descent(facts)
    if not panels:
        return ""
    caption = (
        "Each bar is the training set of one round. Generation 0 is real data, or what people picked before; an output is "
        "one generation further than the samples its maker was trained on. Whatever a model was trained on before round 1, "
        "the start, counts as real."
    )
    names = called(facts)
    rows: list[list[str]] = []
    said: dict[str, list[str]] = {}
    for name in facts.names:
        found = facts.descent.get(name)
        if found:
            at = max(found)
            real = found[at].get(0, 0.0)
            mean = sum(d * share for d, share in found[at].items())
            most = max((d for d, share in found[at].items() if share > 0), default=0)
            back = _back(facts, name)
            line = (
                f", round {at}: {100 * real:.0f} % of the training set is real data. On average a sample is "
                f"{'1 generation' if mean == 1 else f'{words.number(mean, 2)} generations'} from real data, at most {most}."
            )
            line += f" Traced back through all generations, {back}." if back else ""
            said.setdefault(line, []).append(names[name])
            rows.append(
                [
                    text(names[name]),
                    num(real, of="real", model=name),
                    num(mean, of="generations", model=name),
                    num(most),
                    text(back),
                ]
            )
    items = "".join(
        f"<li>{text(_some(who) + line).replace(' %', '&nbsp;%')}</li>" for line, who in list(said.items())[:SAID]
    )
    head = ["Model", "Real share", "Mean generations", "Most", "Goes back to"]
    numbers = _cut(*without_empty(head, rows), "Training sets of the last round")
    more = len(facts.descent) - len(panels)
    left = paragraph(f"The other {more:,} models stand in the table only.", "note") if more > 0 else ""
    how = paragraph(
        "<code>crossfeed lineage RUN SAMPLE</code> shows where one sample came from: who made it, who picked it and why, "
        "back to real data.",
        "note",
    )
    drawing = page.figure("lineage", panels, caption, titled=len(facts.names) > 1)
    return f"<ul>{items}</ul>{drawing}{left}{fold('The numbers', numbers)}{how}"


def _some(who: list[str], most: int = 6) -> str:
    return words.join(who if len(who) <= most else [*who[: most - 1], f"{len(who) - most + 1:,} more"])


def _back(facts: Facts, name: str) -> str:
    """What a model’s last training set goes back to: ``75 % goes back to photographs and 25 % to the start``."""
    shares = sorted(facts.origins.get(name, {}).items(), key=lambda item: -item[1])
    told = [(_percent(share), "the start" if data is None else words.clean(data, 40)) for data, share in shares[:6]]
    rest = ["the rest to other data"] if len(shares) > len(told) else []
    return words.join(
        [f"{share}{' goes back' if not k else ''} to {data}" for k, (share, data) in enumerate(told)] + rest
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share > 0.01 or share == 0 else "less than 1 %"
