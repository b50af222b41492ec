"""What a run says in words: what happened to every model, how it ended, and text of models made safe to show."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from crossfeed.report.run_data import Facts, Measured, Point
from crossfeed.report.words import MINUS, Clause, apart, clean, join, labels, number, plural

CONFIDENCE = 0.95
MARKS = 3
"""Combining marks kept on one character."""
ROSE, FELL, STAYED = "rose", "fell", "did not change measurably"
VERDICT = {ROSE: "helps", FELL: "backfires", STAYED: "no effect"}
SAID = {ROSE: "became more aligned", FELL: "became less aligned", STAYED: "did not change measurably"}
HALVED = 0.5


def visible(value: Any, limit: int, *, breaks: bool = True) -> str:
    r"""Text of a model as it can be shown anywhere: what a terminal or browser would obey becomes a visible sign.

    Control characters and those that turn or hide text become their code in brackets, unpaired surrogates and private
    characters �; of a tower of combining marks three are kept.

    Args:
        value: The text, of any length.
        limit: Characters that are looked at; a longer text ends in ``…``.
        breaks: Keep line breaks; else they are shown as ↵.

    Example:
        >>> visible("a\x1b[31mb\n<i>" + "\u202e", 50, breaks=False)
        'a⟨ESC⟩[31mb↵<i>⟨U+202E⟩'
    """
    whole = str(value)
    out, marks = [], 0
    for character in whole[:limit].replace("\r\n", "\n"):
        category = unicodedata.category(character)
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if marks > MARKS:
            continue
        out.append(_sign(character, category, breaks))
    return "".join(out) + ("…" if len(whole) > limit else "")


def _sign(character: str, category: str, breaks: bool) -> str:
    code = ord(character)
    if character == "\n":
        return "\n" if breaks else "↵"
    if character == "\t":
        return " "
    if category == "Cc":
        return {0: "⟨NUL⟩", 27: "⟨ESC⟩"}.get(code, f"⟨U+{code:04X}⟩")
    if category in {"Cs", "Co"}:
        return "\ufffd"
    if (category == "Cf" and character not in "\u200c\u200d\u00ad") or category in {"Zl", "Zp"}:
        return f"⟨U+{code:04X}⟩"
    return character


def nothing(value: str) -> str | None:
    """What to say of a text in which nothing can be seen; None where something can."""
    if value == "":
        return "(empty)"
    size = plural(len(value), "character")
    if value.isspace():
        return f"(only white space, {size})"
    unseen = {"Cf", "Cc", "Cs", "Co", "Mn", "Zl", "Zp", "Zs"}
    return f"(nothing that can be seen, {size})" if all(unicodedata.category(c) in unseen for c in value) else None


# --- change from start to end ---------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Alignment at the start and at the end, and the difference's 95 % interval.

    ``paired``: from differences input by input; otherwise from two standard errors as if independent.
    """

    first: Point
    last: Point
    difference: float
    half: float | None
    paired: bool

    @property
    def verb(self) -> str:
        """``rose``, ``fell``, or neither where the interval holds zero; without an interval the sign decides."""
        rounding = 1e-12 * (1 + abs(self.first.value))
        if abs(self.difference) <= max(rounding, self.half or 0.0):
            return STAYED
        return ROSE if self.difference > 0 else FELL


def quantile(count: int) -> float:
    """How many standard errors reach to either side of a 95 % interval from ``count`` values (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, count - 1), 0.5 + CONFIDENCE / 2))


def change(facts: Facts, e: Measured) -> Change | None:
    """What happened to one alignment; None before a second value is there."""
    points = facts.points(e.model, "alignment", e.name)
    if len(points) < 2:
        return None
    first, last = points[0], points[-1]
    pair = facts.paired.get((e.model, e.name))
    if pair is not None:
        return Change(first, last, pair[0], quantile(pair[2]) * pair[1], True)
    half = None
    if first.error is not None and last.error is not None:
        half = quantile(e.num) * math.hypot(first.error, last.error)
    return Change(first, last, last.value - first.value, half, False)


def called(facts: Facts) -> dict[str, str]:
    """From a model's name to what it is called on the page."""
    return dict(zip(facts.names, labels({"models": [{"name": n} for n in facts.names]}), strict=True))


def where(e: Measured, names: Mapping[str, str]) -> str:
    """On which inputs and by whose reward an evaluation measures, in words."""
    on = "its own inputs"
    if e.cross:
        on = f"{join([names[n] + '’s' for n in e.whose])} inputs" if e.whose else "other inputs"
    by = f" by the reward {clean(e.reward, 40)}" if e.other_people else ""
    return f"{on}{by}"


def fixed(values: Sequence[float], half: float | None, sign: bool = False) -> list[str]:
    """Numbers to the second digit of their uncertainty; three significant digits where there is none."""
    digits = 1 - math.floor(math.log10(half)) if half else 9
    if not 0 <= digits <= 6:
        return [number(v, sign=sign) for v in values]
    return [f"{v:{'+' if sign else ''},.{digits}f}".replace("-", MINUS) for v in values]


def interval(found: Change) -> str:
    """The difference with its interval: ``+0.150; 95 % interval 0.12 to 0.18``."""
    if found.half is None:
        return f"{number(found.difference, sign=True)}; no interval was recorded"
    low, high = found.difference - found.half, found.difference + found.half
    ends = fixed([low, high], found.half)
    return f"{fixed([found.difference], found.half, sign=True)[0]}; 95 % interval {ends[0]} to {ends[1]}"


def happened(facts: Facts, model: str, names: Mapping[str, str]) -> list[Clause]:
    """What happened to one model's alignment on every domain, as a sentence of clauses."""
    clauses = [Clause(f"{names[model]}: ")]
    parts = [(e, change(facts, e)) for e in facts.evaluations if e.model == model]
    told = [(e, c) for e, c in parts if c is not None]
    if not told:
        first = facts.primary(model)
        if first is None:
            return [*clauses, Clause("its alignment was not recorded.")]
        at = facts.points(model, "alignment", first.name)[-1]
        return [*clauses, Clause(f"alignment {number(at.value)} at round {at.round}; there is nothing to compare yet.")]
    several: dict[tuple[bool, bool], int] = {}
    for e, _ in told:
        several[e.cross, e.other_people] = several.get((e.cross, e.other_people), 0) + 1
    for position, (e, found) in enumerate(told):
        name = f" ({clean(e.name, 40)})" if several[e.cross, e.other_people] > 1 else ""
        on = f" on {where(e, names)}{name}" if len(told) > 1 or e.cross or e.other_people else ""
        start, end = fixed([found.first.value, found.last.value], found.half)
        if start == end:
            start, end = apart(found.first.value, found.last.value)
        clauses += [Clause(f"{'; ' if position else 'alignment'}{on if not position else on.strip()} ")]
        verb = found.verb
        tail = f" from {start} to {end} ({interval(found)})"
        clauses += [
            Clause(verb, VERDICT[verb]),
            Clause(tail if verb != STAYED else f": {start} to {end} ({interval(found)})"),
        ]
    kept = diversity_kept(facts, model)
    if kept is not None and kept < HALVED:
        clauses.append(Clause(f"; of its diversity {number(100 * kept, 2)} % is left"))
    return [*clauses, Clause(".")]


def diversity_kept(facts: Facts, model: str) -> float | None:
    """Diversity at the end as a share of that at the start."""
    points = facts.points(model, "diversity")
    return points[-1].value / points[0].value if len(points) > 1 and points[0].value > 0 else None


def collapsed(facts: Facts) -> list[str]:
    """Models whose diversity is below the spec's share of the start's."""
    limit = facts.eco.run.stop.collapse
    return [n for n in facts.names if (kept := diversity_kept(facts, n)) is not None and kept < limit]


def bottom_line(facts: Facts) -> str:
    """What happened, in one sentence or two."""
    names = called(facts)
    if facts.last == 0:
        return "Only the start is recorded: no round of retraining has been finished yet."
    verbs = {}
    for name in facts.names:
        e = facts.primary(name)
        found = None if e is None else change(facts, e)
        if found is not None:
            verbs[name] = found.verb
    over = f"Over {plural(facts.last, 'round')} "
    groups = {v: [n for n in verbs if verbs[n] == v] for v in (ROSE, FELL, STAYED)}
    present = [verb for verb in groups if groups[verb]]
    if not verbs:
        text = f"{over}no alignment was recorded"
    elif len(facts.names) <= 3:
        text = over + join([f"{join([names[n] for n in groups[verb]])} {SAID[verb]}" for verb in present])
    else:
        counts = join([f"{len(groups[verb])} {SAID[verb]}" for verb in present])
        text = f"{over.rstrip()}, of {len(facts.names)} models, {counts}"
    return f"{text}; {_health(facts, names)}."


def _health(facts: Facts, names: Mapping[str, str]) -> str:
    result = facts.status.get("result")
    gone = collapsed(facts)
    if result == "diverged":
        return "then the run diverged"
    if result == "collapsed":
        return "the models collapsed onto few outputs"
    if gone:
        return f"{join([names[n] for n in gone[:4]])} collapsed onto few outputs"
    thin = {n: kept for n in facts.names if (kept := diversity_kept(facts, n)) is not None and kept < HALVED}
    if thin and len(facts.names) <= 3:
        left = join([f"{number(100 * kept, 2)} % of {names[n]}’s diversity" for n, kept in thin.items()])
        return f"only {left} {'is' if len(thin) == 1 else 'are'} left"
    if thin:
        return f"{len(thin)} lost more than half of their diversity"
    return "nothing collapsed or diverged"


# --- how it ended, at which scale -----------------------------------------------------------------------------------


def planned(facts: Facts) -> int:
    """Rounds the run was to do."""
    return int(facts.options.get("rounds") or facts.status.get("rounds") or facts.eco.run.rounds)


def ending(facts: Facts) -> str:
    """Why the run ended, or that it has not."""
    result = facts.status.get("result")
    reason = clean(facts.status.get("reason") or "", 300).rstrip(".")
    done = f"{facts.last:,} of {planned(facts):,} rounds are finished"
    if result == "finished":
        return f"It did all {plural(facts.last, 'round')} that were asked for."
    if result in {"collapsed", "diverged"}:
        return f"It ended early, after round {facts.last}, because it {result}{': ' + reason if reason else ''}."
    if result == "failed":
        return f"It stopped with an error: {reason}. {done}; it can be resumed."
    if facts.status.get("state") == "running":
        return f"It is still running: {done}."
    return f"It was stopped: {done}. It can be resumed."


def scale(facts: Facts) -> list[str]:
    """At which scale it ran, as sentences."""
    eco, out = facts.eco, []
    named = facts.options.get("scale") or _option(str(facts.made.get("command") or ""), "--scale")
    models = []
    names = called(facts)
    for name, model in eco.models.items():
        count = model.per_round or eco.samples.per_round
        train = model.train
        size = "" if train is None else plural(train.batch_size * train.accumulate, "sample")
        seen = "" if train is None else f", in {plural(train.steps, 'training step')} of {size} each"
        models.append((names[name], f"{plural(count, 'new sample')} a round{seen}"))
    same = {what for _, what in models}
    first = f"Scale “{clean(named, 40)}”: " if named else ""
    if len(same) == 1:
        who = "the model" if len(models) == 1 else "each model"
        line = f"{first}{who} is trained on {models[0][1]}."
        out.append(line[0].upper() + line[1:])
    else:
        out.append(
            first + "; ".join(f"{n}: {what}" for n, what in models[:6]) + ("; …" if len(models) > 6 else "") + "."
        )
    if facts.options.get("device"):
        out.append(f"It ran on {_device(facts)} in {clean(facts.options.get('dtype') or 'float32', 20)}.")
    return out


def _device(facts: Facts) -> str:
    device = clean(facts.options["device"], 60)
    gpus = (facts.made.get("hardware") or {}).get("gpus") or []
    return (
        f"{clean(gpus[0], 60)} ({device})"
        if gpus and device.startswith("cuda")
        else f"the {device.upper()}"
        if device == "cpu"
        else device
    )


def _option(command: str, name: str) -> str | None:
    """The value of an option in a command line."""
    parts = command.replace("=", " ").split()
    return parts[parts.index(name) + 1] if name in parts[:-1] else None


def seconds(facts: Facts) -> dict[str, float]:
    """Seconds by stage over all rounds."""
    total: dict[str, float] = {}
    for info in facts.infos.values():
        for stage, value in (info.get("seconds") or {}).items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                total[stage] = total.get(stage, 0.0) + float(value)
    return total


def duration(value: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if value < 60:
        return f"{number(value, 2)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def limits(facts: Facts) -> list[str]:
    """What the run does not show, as sentences."""
    alone = (
        "from the standard errors at both, taken as independent, which errs on the wide side as the inputs are the same"
    )
    how = "input by input, as the same inputs were answered at both" if facts.paired else alone
    if facts.paired and len(facts.paired) < len(facts.evaluations):
        how += f"; where the record does not hold every reward, {alone}"
    out = [
        f"One run with one seed ({facts.eco.seed}). The intervals say how well each alignment was measured, from a finite "
        "number of outputs. They do not say how another run, with other random draws in training and generation, would "
        "have ended; for that, run other seeds.",
        f"Differences between start and end were taken {how}. Each interval holds at 95 % by itself; among many, some miss.",
        "Alignment is the mean of a reward function that stands for people; no person was asked.",
        "Distance to real data and diversity are summary statistics. Outputs can differ in ways these do not see.",
    ]
    if facts.last < 5:
        out.append(f"{plural(facts.last, 'round')} of retraining show where the loop sets out, not where it ends up.")
    if (
        any(not e.cross for e in facts.evaluations)
        and not any(e.cross for e in facts.evaluations)
        and len(facts.names) > 1
    ):
        out.append("Every model was judged on its own inputs only. Effects on other inputs would not be seen.")
    return out


def ordered(facts: Facts) -> list[str]:
    """Models by how far their alignment moved, most first."""

    def size(name: str) -> float:
        e = facts.primary(name)
        found = None if e is None else change(facts, e)
        return abs(found.difference) if found is not None else 0.0

    return sorted(facts.names, key=lambda n: -size(n))


def chosen_rounds(rounds: Sequence[int], most: int) -> list[int]:
    """The start, some rounds between at even distances, and the last."""
    if len(rounds) <= most:
        return list(rounds)
    at = [round(i * (len(rounds) - 1) / (most - 1)) for i in range(most)]
    return [rounds[i] for i in dict.fromkeys(at)]
