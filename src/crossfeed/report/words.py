"""What an audit says in words, and how its names and numbers are written. Shared by the page and the terminal.

Everything that comes from a spec passes through :func:`clean` before it is shown anywhere.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Audit = Mapping[str, Any]
MINUS = "\u2212"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# What a terminal obeys: CSI … final byte, OSC/DCS/SOS/PM/APC … string terminator, and two-byte sequences.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ "
    r"-/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?"
)
BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")


class Verdict(NamedTuple):
    """How a verdict is shown: never by colour alone."""

    key: str
    symbol: str
    style: str


VERDICTS = {
    "helps": Verdict("helps", "▲", "helps"),
    "dampened": Verdict("dampened", "↑", "dampened"),
    "no effect": Verdict("no effect", "○", "no-effect"),
    "backfires": Verdict("backfires", "▼", "backfires"),
}


def clean(text: Any, limit: int | None = None) -> str:
    """Text from a spec without escape sequences, control, direction-changing, private-use or unpaired characters."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        kept = " ".join(plain.split())
        return kept if limit is None or len(kept) <= limit else kept[: limit - 1].rstrip() + "…"
    plain = ESCAPES.sub("", plain)
    kept = "".join(
        " " if ch in "\n\t\r" else ch
        for ch in plain
        if ch in "\n\t\r" or (unicodedata.category(ch) not in {"Cc", "Cs", "Co"} and ch not in BIDI)
    )
    kept = " ".join(kept.split())
    return kept if limit is None or len(kept) <= limit else kept[: limit - 1].rstrip() + "…"


def number(value: float | None, digits: int = 3, sign: bool = False, minus: str = MINUS) -> str:
    """A number for reading: ``digits`` significant digits, a true minus sign, ``–`` where there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        body = (
            f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
            if minus == MINUS
            else f"{mantissa}e{int(exponent)}"
        )
    else:
        body = f"{float(f'{size:.{digits}g}'):,.10f}".rstrip("0").rstrip(".")
    return (minus if value < 0 else "+" if sign else "") + body


def apart(before: float, after: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart, six at most."""
    for digits in (3, 4, 5, 6):
        pair = number(before, digits), number(after, digits)
        if pair[0] != pair[1]:
            break
    return pair


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 model``, ``1,934 models``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def join(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def labels(audit: Audit, limit: int = 40) -> list[str]:
    """What each model is called on charts: its cleaned name, kept short, made unique where two would read the same."""
    taken: dict[str, int] = {}
    result = []
    for model in audit["models"]:
        name = clean(model["name"], limit) or "(unnamed)"
        taken[name] = taken.get(name, 0) + 1
        result.append(name if taken[name] == 1 else f"{name} #{taken[name]}")
    return result


def namer(audit: Audit) -> dict[str, str]:
    """From a model's name in the audit to what it is called on the page."""
    return {model["name"]: label for model, label in zip(audit["models"], labels(audit), strict=True)}


def called(names: Mapping[str, str], name: Any) -> str:
    """What a model is called on the page; ``real data`` for none."""
    return "real data" if name is None else names.get(name, clean(name, 40))


def verdicts(audit: Audit) -> list[list[str | None]]:
    """Verdicts ``[affected][intervened]``; empty when the influence was refused."""
    influence = audit.get("influence")
    return influence["verdict"] if influence else []


def curated_models(audit: Audit) -> list[int]:
    """Models whose curation can be raised: those whose column of the influence matrix is filled."""
    rows = verdicts(audit)
    return [i for i in range(len(rows)) if rows[i][i] is not None]


@dataclass(frozen=True)
class Clause:
    """A piece of a sentence and the verdict it states, if any."""

    text: str
    verdict: str | None = None


SELF = {
    "helps": ("helps", " {name} itself"),
    "dampened": ("helps", " {name} itself, though less than it would if the others stood still"),
    "no effect": ("does nothing", " for {name} itself"),
    "backfires": ("backfires", ": it harms {name} itself"),
}
OTHERS = {
    "helps": ("helps", " {names}"),
    "dampened": ("helps", " {names}, though less than its direct effect"),
    "no effect": ("leaves", " {names} unchanged"),
    "backfires": ("harms", " {names}"),
}
CROWDED = 4


def raising(audit: Audit, i: int, names: Sequence[str] | None = None) -> list[Clause]:
    """What raising model ``i``'s curation does, as a sentence of clauses.

    Among more than :data:`CROWDED` models, dampened help to others counts as help, and unchanged others go unsaid.
    """
    names = names or labels(audit)
    column = [row[i] for row in verdicts(audit)]
    values = [row[i] for row in audit["influence"]["matrix"]]
    crowded, most = len(names) > CROWDED, 4 if len(names) <= 12 else 2
    verb, rest = SELF.get(column[i] or "", ("does nothing known", " to {name} itself"))
    clauses = [Clause(f"Raising {names[i]}’s curation "), Clause(verb, column[i]), Clause(rest.format(name=names[i]))]
    if crowded:
        column = ["helps" if v == "dampened" else None if v == "no effect" else v for v in column]
    groups = []
    for verdict in ("backfires", "helps", "dampened", "no effect"):
        members = sorted(
            (k for k, v in enumerate(column) if v == verdict and k != i), key=lambda k: -abs(values[k] or 0)
        )
        if members:
            more = [f"{len(members) - most:,} more"] if len(members) > most else []
            verb, rest = OTHERS[verdict]
            groups.append(
                (Clause(verb, verdict), Clause(rest.format(names=join([*(names[k] for k in members[:most]), *more]))))
            )
    again = bool(groups) and groups[0][0].text == "harms" and verdicts(audit)[i][i] == "backfires"
    for position, group in enumerate(groups):
        start = "; it also " if again else "; it "
        clauses += [Clause(start if position == 0 else ", and " if position == len(groups) - 1 else ", "), *group]
    return [*clauses, Clause(".")]


def bottom_line(audit: Audit) -> str:
    """The answer in one sentence."""
    influence = audit.get("influence")
    if not influence:
        return "No answer can be given: the loop has no stable point at which the effect of curation is defined."
    names, rows, columns = labels(audit), verdicts(audit), curated_models(audit)
    if not columns:
        return "No model here is trained on curated data, so there is no curation to raise."
    own = {i: rows[i][i] for i in columns}
    harmed = [(k, i) for i in columns for k in range(len(rows)) if k != i and rows[k][i] == "backfires"]

    def some(members: Sequence[int]) -> str:
        shown = [names[i] for i in members[:3]]
        return join([*shown, f"{len(members) - 3:,} more"] if len(members) > 3 else shown)

    bad = sorted((i for i in columns if own[i] == "backfires"), key=lambda i: influence["matrix"][i][i] or 0.0)
    if len(bad) > 3:
        which = f"{len(bad):,} of {len(columns):,} models, most for {names[bad[0]]}"
        return f"More curation backfires for {which}: the models it is spent on end up less aligned."
    if bad:
        return f"More curation backfires for {some(bad)}: the model it is spent on ends up less aligned."
    weak = [i for i in columns if own[i] == "dampened"]
    idle = [i for i in columns if own[i] == "no effect"]
    if len(idle) == len(columns):
        first = "More curation does nothing for the model it is spent on"
    elif idle:
        first = f"More curation does nothing for {some(idle)}"
    elif weak:
        which = "" if len(weak) == len(columns) else f" for {some(weak)}"
        first = f"More curation helps, but interaction with other models dampens it{which}"
    else:
        first = "More curation helps the model it is spent on"
    if not harmed:
        return first + (", and harms no other model." if len(rows) > 1 else ".")
    sources = list(dict.fromkeys(i for _, i in harmed))
    but = ", but" if first.endswith("spent on") else ";"
    if len(harmed) == 1:
        return f"{first}{but} raising {names[harmed[0][1]]}’s curation harms {names[harmed[0][0]]}."
    return (
        f"{first}{but} it harms other models, in {plural(len(harmed), 'pair')}, through the curation of "
        f"{some(sources)}."
    )


def alone(audit: Audit, change: Mapping[str, Any]) -> list[float | None]:
    """A change's effect if the other models stood still, a number a model; given for the changed model only."""
    given = change.get("isolated")
    if isinstance(given, Sequence):
        return list(given)
    changed_model = str(change["path"]).split(".", 1)[0]
    return [given if model["name"] == changed_model else None for model in audit["models"]]


CHANGE = {"helps": "rises", "dampened": "rises", "backfires": "falls", "no effect": "stays"}


def changed(audit: Audit, change: Mapping[str, Any], most: int = 4) -> list[Clause]:
    """What a planned change does to the models it moves most, as a sentence of clauses."""
    names = labels(audit)
    clauses = [Clause(f"{clean(change['path'], 120)} from {number(change['from'])} to {number(change['to'])}: ")]
    pairs = [
        (abs(after - before), k, before, after)
        for k, (before, after) in enumerate(zip(change.get("before") or [], change.get("after") or [], strict=False))
        if before is not None and after is not None
    ]
    if not pairs:
        why = clean(change.get("note") or change.get("result") or "unknown").rstrip(".")
        return [*clauses, Clause(f"no new stable point was found ({why}).")]
    pairs.sort(reverse=True)
    for position, (_, k, before, after) in enumerate(pairs[:most]):
        verdict = (change.get("verdict") or [None] * len(names))[k]
        verb = CHANGE.get(verdict or "", "rises" if after > before else "falls" if after < before else "stays")
        start, end = apart(before, after)
        tail = f" at {end}" if verb == "stays" else f" from {start} to {end}"
        clauses += [Clause(f"{'; ' if position else ''}{names[k]} "), Clause(verb, verdict), Clause(tail)]
    rest = len(pairs) - most
    return [*clauses, Clause(f"; {rest:,} others move less." if rest > 0 else ".")]


def settles(audit: Audit) -> str:
    """Whether the loop comes to rest, in one sentence."""
    stable = audit["stable"]
    result = {
        "converged": "The loop has a stable point",
        "budget": "No stable point was reached within the allowed steps",
        "diverged": "The loop diverges",
        "oscillating": "The loop oscillates",
        "non-finite": "The loop produced numbers that are not finite",
    }.get(stable["result"], clean(stable["result"]))
    local = (audit.get("stability") or {}).get("local") or []
    if stable["result"] != "converged" or not local or local[0].get("radius") is None:
        return result + "."
    radius = local[0]["radius"]
    if not local[0]["stable"]:
        return (
            f"{result}, but retraining moves away from it: each round multiplies a small disturbance by "
            f"{number(radius)}."
        )
    half = local[0].get("rounds_to_halve")
    tail = f", so it halves in about {plural(max(1, round(half)), 'round')}" if half else ""
    return (
        f"{result}, and retraining returns to it: each round multiplies a small disturbance by {number(radius)}{tail}."
    )


def verdict_counts(audit: Audit) -> tuple[dict[str, int], dict[str, int]]:
    """How often each verdict occurs on models themselves, and on other models."""
    own, cross = dict.fromkeys(VERDICTS, 0), dict.fromkeys(VERDICTS, 0)
    for k, row in enumerate(verdicts(audit)):
        for i, verdict in enumerate(row):
            if verdict in VERDICTS:
                (own if k == i else cross)[verdict] += 1
    return own, cross


def strongest_pairs(audit: Audit, most: int, cross: bool = True) -> list[tuple[int, int]]:
    """Pairs (affected, intervened) by size of influence; of different models only, unless ``cross`` is false."""
    matrix = audit["influence"]["matrix"] if audit.get("influence") else []
    pairs = [
        (abs(value), k, i)
        for k, row in enumerate(matrix)
        for i, value in enumerate(row)
        if value is not None and not (cross and k == i)
    ]
    return [(k, i) for _, k, i in heapq.nlargest(most, pairs)]
