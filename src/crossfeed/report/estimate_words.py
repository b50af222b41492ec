"""What an audit of networks says in words: verdicts with their intervals, sentences, names of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from crossfeed.report.words import MINUS, Audit, Clause, clean, join, labels, number, plural

STEP = 0.1
"""Influence is a slope; sentences and charts give it for 10 percentage points more of a curation ratio."""
POINTS = "10 points"
CROWDED = 4
MANY = 6
"""With more models, the headline counts them."""
MOST = 10_000_000
"""More outputs than this are not worth naming."""


class Shown(NamedTuple):
    """How a verdict is shown: never by colour alone."""

    symbol: str
    style: str
    terminal: str


VERDICTS = {
    "helps": Shown("▲", "helps", "blue"),
    "dampened": Shown("↑", "dampened", "cyan"),
    "no effect": Shown("○", "no-effect", "dim"),
    "harms": Shown("▼", "backfires", "red"),
    "backfires": Shown("▼", "backfires", "bold red"),
    "cannot tell": Shown("?", "no-effect", "yellow"),
    "rises": Shown("▲", "helps", "blue"),
    "falls": Shown("▼", "backfires", "bold red"),
}


def fixed(values: Sequence[float], half: float | None, sign: bool = False) -> list[str]:
    """Numbers to the second digit of their uncertainty; three significant digits where there is none, or too small."""
    digits = 1 - math.floor(math.log10(half)) if half else 9
    if not 0 <= digits <= 5:
        return [number(v, sign=sign) for v in values]
    rounded = [round(v, digits) + 0.0 for v in values]  # + 0.0 turns −0.0 into 0.0
    return [f"{v:{'+' if sign and v else ''},.{digits}f}".replace("-", MINUS) for v in rounded]


def span(value: float | None, low: float | None, high: float | None, scale: float = 1.0) -> str:
    """``+0.150; 0.120 to 0.180``."""
    if value is None or low is None or high is None:
        return "–"
    half = scale * (high - low) / 2
    ends = fixed([scale * low, scale * high], half)
    return f"{fixed([scale * value], half, sign=True)[0]}; {ends[0]} to {ends[1]}"


def percent(audit: Audit) -> str:
    """``95 %``."""
    return f"{100 * audit['influence']['confidence']:g} %"


def rounds(audit: Audit) -> str:
    """``12 rounds``."""
    return plural(int(audit["horizon"]["rounds"]), "round")


def mains(audit: Audit) -> dict[str, int]:
    """By model, the number of the evaluation that speaks for it."""
    return {found["model"]: e for e, found in enumerate(audit["evaluations"]) if found["main"]}


def called(audit: Audit, limit: int = 40) -> dict[str, str]:
    """From a model's name to what it is called on the page."""
    return dict(zip([m["name"] for m in audit["models"]], labels(audit, limit), strict=True))


def evaluation_labels(audit: Audit, limit: int = 40) -> list[str]:
    """What each evaluation is called: its model, and its own name where the model has several; unique."""
    names, taken, out = called(audit, limit), dict[str, int](), []
    count: dict[str, int] = {}
    for found in audit["evaluations"]:
        count[found["model"]] = count.get(found["model"], 0) + 1
    for found in audit["evaluations"]:
        label = names[found["model"]]
        label += f", {clean(found['name'], limit)}" if count[found["model"]] > 1 else ""
        taken[label] = taken.get(label, 0) + 1
        out.append(label if taken[label] == 1 else f"{label} #{taken[label]}")
    return out


def column_labels(audit: Audit, limit: int = 40) -> list[str]:
    """The models whose curation is raised, by column of the matrix."""
    names = called(audit, limit)
    return [names[setting["model"]] for setting in audit["settings"]]


def entry(audit: Audit, e: int, c: int) -> dict[str, Any]:
    """One entry of the matrix with everything that belongs to it."""
    found = audit["influence"]
    keys = ("matrix", "errors", "low", "high", "isolated", "verdict", "needed")
    asked = found.get("asked")
    return {key: found[key][e][c] for key in keys} | {"asked": None if asked is None else asked[e][c]}


# --- sentences ------------------------------------------------------------------------------------------------------

SELF = {
    "helps": ("helps", " {name} itself"),
    "dampened": ("helps", " {name} itself, though less than it would if the others stood still"),
    "no effect": ("does nothing", " for {name} itself"),
    "backfires": ("backfires", ": it harms {name} itself"),
}


def _numbers(one: Mapping[str, Any], tell: bool = False) -> str:
    """Value and interval in brackets, with what would tell the sign."""
    needed = one["needed"] if tell else None
    more = ""
    if needed is not None:
        enough = f"about {number(float(f'{needed:.2g}'))} outputs of every model would tell"
        more = f"; {enough if needed <= MOST else 'no affordable number of outputs would tell'}"
    return f" ({span(one['matrix'], one['low'], one['high'], STEP)}{more})"


def raising(audit: Audit, c: int, names: Mapping[str, str] | None = None) -> list[Clause]:
    """What more curation of one model does to it and to the others, as a sentence of clauses."""
    names = names or called(audit)
    who, main = audit["settings"][c]["model"], mains(audit)
    clauses = [Clause(f"Raising {names[who]}’s curation by {POINTS} ")]
    if who in main:
        one = entry(audit, main[who], c)
        if one["verdict"] == "cannot tell":
            clauses[0] = Clause(
                f"Whether raising {names[who]}’s curation by {POINTS} helps or harms {names[who]} itself "
            )
            clauses += [Clause("cannot be told", "cannot tell"), Clause(_numbers(one, tell=True))]
        else:
            verb, rest = SELF[one["verdict"]]
            clauses += [Clause(verb, one["verdict"]), Clause(rest.format(name=names[who]))]
            clauses.append(Clause(_numbers(one) if one["verdict"] != "no effect" else ""))
    groups = _others(audit, c, who, main, names)
    for position, group in enumerate(groups):
        start = "; " if position or who in main else ""
        start += "it " if group[0].verdict and not any(c.text.endswith("it ") for c in clauses) else ""
        clauses += [Clause(start), *group]
    return [*clauses, Clause(".")]


def _others(audit: Audit, c: int, who: str, main: Mapping[str, int], names: Mapping[str, str]) -> list[list[Clause]]:
    found = {n: entry(audit, e, c) for n, e in main.items() if n != who}
    crowded = len(found) > CROWDED
    out = []
    for verdict, verb in (("harms", "harms"), ("helps", "helps")):
        members = sorted((n for n in found if found[n]["verdict"] == verdict), key=lambda n: -abs(found[n]["matrix"]))
        if members and crowded:
            others = plural(len(members), "other model")
            out.append(
                [Clause(verb, verdict), Clause(f" {others}, most of all {join([names[n] for n in members[:2]])}")]
            )
        elif members:
            out.append([Clause(verb, verdict), Clause(f" {join([names[n] + _numbers(found[n]) for n in members])}")])
    still = [n for n in found if found[n]["verdict"] == "no effect"]
    if still and not crowded:
        out.append([Clause("does nothing", "no effect"), Clause(f" for {join([names[n] for n in still])}")])
    unsure = [n for n in found if found[n]["verdict"] == "cannot tell"]
    if unsure:
        named = [names[n] + _numbers(found[n], tell=True) for n in unsure]
        what = plural(len(unsure), "other model") if crowded else join(named)
        out.append([Clause("for "), Clause(what), Clause(" the sign "), Clause("cannot be told", "cannot tell")])
    return out


def bottom_line(audit: Audit) -> str:
    """The answer in one sentence or two."""
    if not audit["settings"]:
        return (
            "No model here has a curation ratio that can be raised, so there is no influence of curation to estimate."
        )
    names, main = called(audit), mains(audit)
    own: dict[str, list[str]] = {}
    for c, setting in enumerate(audit["settings"]):
        if setting["model"] in main:
            verdict = audit["influence"]["verdict"][main[setting["model"]]][c]
            own.setdefault(verdict, []).append(names[setting["model"]])
    if len(audit["settings"]) > MANY:
        return _counted(audit, own)
    parts = []
    for verdict, words in (
        ("backfires", "backfires for {who}: it lowers the alignment of the model it is spent on"),
        ("dampened", "helps {who}, though less than if the other models stood still"),
        ("helps", "helps {who}"),
        ("no effect", "does nothing for {who}"),
    ):
        if own.get(verdict):
            parts.append(words.format(who=_some(own[verdict])))
    first = f"Over {rounds(audit)}, more curation " + "; it ".join(parts) if parts else ""
    unsure = own.get("cannot tell", [])
    if unsure and not parts:
        first = f"From these samples it cannot be told whether more curation helps or harms {_some(unsure)} over {rounds(audit)}"
    elif unsure:
        first += f"; for {_some(unsure)} the sign cannot be told from these samples"
    harmed = {
        names[m]
        for m, e in main.items()
        for c, setting in enumerate(audit["settings"])
        if setting["model"] != m and audit["influence"]["verdict"][e][c] == "harms"
    }
    second = f" It also harms others: {_some(sorted(harmed))}." if harmed else ""
    return f"{first}.{second}"


def _counted(audit: Audit, own: Mapping[str, Sequence[str]]) -> str:
    """The answer of many models, in numbers of them."""
    total = sum(map(len, own.values()))
    told = [
        words.format(n=f"{len(own[verdict]):,}")
        for verdict, words in (
            ("backfires", "backfires for {n}"),
            ("dampened", "helps {n}, though less than if the others stood still"),
            ("helps", "helps {n}"),
            ("no effect", "does nothing for {n}"),
        )
        if own.get(verdict)
    ]
    unsure = f"for {len(own['cannot tell']):,} the sign cannot be told" if own.get("cannot tell") else ""
    first = f"Over {rounds(audit)}, of {total:,} models: more curation of a model {'; '.join(told)}" if told else ""
    line = "; ".join(part for part in (first, unsure) if part)
    line = line[0].upper() + line[1:]
    pairs = [
        audit["influence"]["verdict"][e][c]
        for m, e in mains(audit).items()
        for c, setting in enumerate(audit["settings"])
        if setting["model"] != m
    ]
    harmed = f" It harms another model in {pairs.count('harms'):,} of {len(pairs):,} pairs." if "harms" in pairs else ""
    return f"{line}.{harmed}"


def _some(members: Sequence[str]) -> str:
    return join([*members[:3], f"{len(members) - 3:,} more"] if len(members) > 4 else list(members))


def changed(audit: Audit, change: Mapping[str, Any], most: int = 4) -> list[Clause]:
    """What a what-if does, as a sentence of clauses."""
    names, main = called(audit), mains(audit)
    start = f"{clean(change['path'], 80)} from {number(change['from'])} to {number(change['to'])}: "
    if change.get("change") is None:
        reason = clean(change.get("note") or "no reason was recorded", 300).rstrip(".")
        return [Clause(f"{start}not answered: {reason}.")]
    clauses, unsure = [Clause(start)], []
    listed = sorted(main.items(), key=lambda item: -abs(change["change"][item[1]] or 0.0))
    told = [(n, e) for n, e in listed if change["verdict"][e] in ("rises", "falls")]
    for n, e in told[:most]:
        comma = ", " if len(clauses) > 1 else ""
        clauses += [Clause(f"{comma}{names[n]}’s alignment "), Clause(change["verdict"][e], change["verdict"][e])]
        clauses.append(Clause(f" ({span(change['change'][e], change['low'][e], change['high'][e])})"))
    if len(told) > most:
        clauses.append(Clause(f", and that of {len(told) - most:,} more moves"))
    unsure = [names[n] for n, e in listed if change["verdict"][e] == "cannot tell"]
    if unsure:
        comma = "; " if len(clauses) > 1 else ""
        clauses += [Clause(f"{comma}for {_some(unsure)} the sign "), Clause("cannot be told", "cannot tell")]
    if len(clauses) == 1:
        clauses.append(Clause("no alignment moves", "no effect"))
    return [*clauses, Clause(".")]


def duration(value: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    from crossfeed.report.run_words import duration as written

    return written(value)


def not_passed(audit: Audit) -> list[Mapping[str, Any]]:
    """Checks that did not pass, the failed ones first."""
    return sorted((c for c in audit["checks"] if c["result"] != "passed"), key=lambda c: c["result"] != "failed")


def places(audit: Audit) -> str:
    """Where samples were taken: nothing where it is one place."""
    number = len(audit["trajectory"]["places"])
    return f" at each of {number} places of the course" if number > 1 else ""
