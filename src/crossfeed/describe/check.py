"""Everything about a spec that takes two places to see: names, sums, dimensions, what goes with what.

One mistake is one problem: what hangs on something that is already wrong is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ValidationError

from crossfeed.describe import schema as s
from crossfeed.describe import settings
from crossfeed.describe.curation import pick_complaints
from crossfeed.describe.networks import mixed, model_complaints, whole_complaints
from crossfeed.describe.sizes import (
    Layout,
    data_complaints,
    domain_complaints,
    family_complaints,
    layout_of,
    map_complaints,
    reward_complaints,
)
from crossfeed.describe.translate import complaints_of
from crossfeed.describe.wording import Complaint, Loc, known, parts, path_text, short
from crossfeed.errors import SettingError, SpecError

_SUM = 1e-9
_GUESSES = 20


def check(eco: s.Ecosystem) -> None:
    """Refuse an ecosystem whose parts do not go together.

    Args:
        eco: An ecosystem whose fields are valid one by one.

    Raises:
        SpecError: with every problem found, paths included; without file and line.
    """
    found = complaints(eco)
    if found:
        raise SpecError([complaint.problem() for complaint in found])


def problems_of(error: ValidationError, node: type[BaseModel] | None = None) -> SpecError:
    """Pydantic's errors in this package's words.

    Args:
        error: What pydantic raised when it validated ``node``.
        node: The node; None for a whole ecosystem. Paths inside another node start with its class's name.
    """
    top = node or s.Ecosystem
    prefix: Loc = () if issubclass(top, s.Ecosystem) else (top.__name__,)
    found = complaints_of(error, top)
    return SpecError([complaint._replace(loc=(*prefix, *complaint.loc)).problem() for complaint in found])


def complaints(eco: s.Ecosystem) -> list[Complaint]:
    """Every problem of an ecosystem whose fields are valid one by one."""
    layout, found = layout_of(eco.space, bool(eco.networks))
    notes, families = _Notes(found), _Notes([])
    fitting = {name for name in eco.models if layout is not None and _family(families, eco, name, layout)}
    both = mixed(eco, fitting)
    sound = {} if layout is None or both else _definitions(notes, eco, layout)
    notes.found += families.found + both
    people = {name: model.reward for name, model in eco.models.items() if model.reward in eco.rewards}
    for name in eco.models:
        _model(notes, eco, name, layout, sound, fitting, people)
        if name in fitting and not both:
            notes.found += model_complaints(eco, name)
    if layout is not None:
        _domains(notes, eco, layout)
    _order(notes, eco)
    if fitting and not both:
        notes.found += whole_complaints(eco)
    if not eco.networks:
        _audit(notes, eco, layout, sound, fitting, people)
    return notes.all()


@dataclass
class _Notes:
    """Complaints so far; the same unknown name in several places is one complaint."""

    found: list[Complaint]
    unknown_names: dict[tuple[str, str], list[Loc]] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)

    def add(self, loc: Loc, found: str, need: str) -> None:
        self.found.append(Complaint(loc, f"found {found}", f"need {need}"))

    def name(self, loc: Loc, name: str, table: str, options: Iterable[str]) -> None:
        """An unknown name of what stands under ``table``."""
        self.unknown_names.setdefault((table, name), []).append(loc)
        if table not in self.options:
            self.options[table] = list(options)

    def under(self, *loc: str) -> bool:
        """Whether something at or under ``loc`` is wrong."""
        places = [complaint.loc for complaint in self.found] + [p for v in self.unknown_names.values() for p in v]
        return any(place[: len(loc)] == loc for place in places)

    def all(self) -> list[Complaint]:
        """Everything found."""
        out = list(self.found)
        for number, ((table, name), places) in enumerate(self.unknown_names.items()):
            more = f" (also at {path_text(places[1])}" if len(places) > 1 else ""
            more += f" and {len(places) - 2:,} more places)" if len(places) > 2 else ")" if more else ""
            guess = name if number < _GUESSES else None  # near names take time among thousands
            need = known(self.options[table], guess, f"a name under `{table}`:")
            out.append(Complaint(places[0], f"found the unknown name {short(name)}{more}", need))
        return out


def _definitions(notes: _Notes, eco: s.Ecosystem, layout: Layout) -> dict[str, s.Reward]:
    """Check data, domains and rewards; return the rewards that are sound."""
    for name, data in eco.data.items():
        notes.found += data_complaints(("data", name), data, eco.space, layout)
        if isinstance(data, s.TeacherData) and layout.kind == "regression" and data.domain not in eco.domains:
            notes.name(("data", name, "domain"), data.domain, "domains", eco.domains)
    if layout.kind == "regression":
        for name, domain in eco.domains.items():
            notes.found += domain_complaints(("domains", name), domain, layout)
    sound = {}
    for name, reward in eco.rewards.items():
        wrong = reward_complaints(("rewards", name), reward, layout)
        notes.found += wrong
        if not wrong:
            sound[name] = reward
    return sound


def _family(notes: _Notes, eco: s.Ecosystem, name: str, layout: Layout) -> bool:
    wrong = family_complaints(("models", name), eco.models[name], eco.space, layout)
    notes.found += wrong
    return not wrong


# --- one model ------------------------------------------------------------------------------------------------------


def _model(
    notes: _Notes,
    eco: s.Ecosystem,
    name: str,
    layout: Layout | None,
    sound: dict[str, s.Reward],
    fitting: set[str],
    people: dict[str, str],
) -> None:
    model, loc = eco.models[name], ("models", name)
    if model.reward not in eco.rewards:
        notes.name((*loc, "reward"), model.reward, "rewards", eco.rewards)
    _weights(notes, (*loc, "sources"), model)
    _source_names(notes, loc, model)
    for index, source in enumerate(model.sources):
        at: Loc = (*loc, "sources", index)
        if isinstance(source, s.Real):
            if source.data not in eco.data:
                notes.name((*at, "data"), source.data, "data", eco.data)
            continue
        if isinstance(source, s.Picks):
            _picks(notes, eco, at, source)
            continue
        if source.producer not in eco.models:
            notes.name((*at, "producer"), source.producer, "models", eco.models)
        if source.inputs is not None and source.inputs not in eco.data:
            notes.name((*at, "inputs"), source.inputs, "data", eco.data)
        if source.map is not None and layout is not None:
            notes.found += map_complaints((*at, "map"), source.map, layout)
        if isinstance(source, s.Curated):
            for depth, stage in enumerate(source.stages):
                for key, curator in (("curator", stage.curator), ("other_curator", stage.other_curator)):
                    if curator is not None and curator not in eco.rewards:
                        notes.name((*at, *["then"] * depth, key), curator, "rewards", eco.rewards)
            if layout is not None:
                producer = eco.models[source.producer] if source.producer in fitting else None
                notes.found += pick_complaints(at, source, people.get(source.producer), producer, sound, layout)
    _evaluations(notes, eco, loc, model)
    pretrain = model.pretrain
    if pretrain is not None and pretrain.data is not None and pretrain.data not in eco.data:
        notes.name((*loc, "pretrain", "data"), pretrain.data, "data", eco.data)


def _picks(notes: _Notes, eco: s.Ecosystem, at: Loc, source: s.Picks) -> None:
    """Picks that people made before are answers in words, in data of their own kind."""
    if not isinstance(eco.space, s.Text):
        notes.add(
            (*at, "kind"), f"'picks' with a space of {eco.space.kind}", "a space of text, or another kind of source"
        )
    elif source.data not in eco.data:
        notes.name((*at, "data"), source.data, "data", eco.data)
    elif not isinstance(eco.data[source.data], s.PreferencesData):
        found = f"{short(source.data)}, which is of kind {eco.data[source.data].kind!r}"
        notes.add((*at, "data"), found, "data of kind 'preferences', or a source of kind 'real'")


def _weights(notes: _Notes, loc: Loc, model: s.Model) -> None:
    weights = [source.weight for source in model.sources]
    total = math.fsum(weights)
    if abs(total - 1) <= _SUM:
        return
    last, names = weights[-1] + 1 - total, s.source_names(model)
    if total == 0:
        fix = "give at least one source a weight"
    elif 0 <= last <= 1:
        fix = f"divide each by {total:.10g}, or give {names[-1]!r} {last:.10g}"
    else:
        fix = f"divide each by {total:.10g}"
    notes.add(loc, f"weights that sum to {total:.12g}", f"a sum of 1: {fix}")


def _source_names(notes: _Notes, loc: Loc, model: s.Model) -> None:
    seen: set[str] = set()
    for index, source in enumerate(model.sources):
        if source.name is None:
            continue
        if source.name in seen:
            notes.add(
                (*loc, "sources", index, "name"), f"{short(source.name)} a second time", "a name of its own a source"
            )
        if source.name == "proportional":
            notes.add((*loc, "sources", index, "name"), "'proportional', which `gives_way` uses", "another name")
        seen.add(source.name)
    if model.gives_way == "proportional":
        return
    names = s.source_names(model)
    if model.gives_way not in names:
        options = [
            n for n, source in zip(names, model.sources, strict=True) if not isinstance(source, (s.Curated, s.Picks))
        ]
        need = known(["proportional", *options], model.gives_way).removeprefix("need ")
        notes.add((*loc, "gives_way"), f"the unknown source {short(model.gives_way)}", need)
    elif isinstance(model.sources[names.index(model.gives_way)], (s.Curated, s.Picks)):
        found = f"the curated source {short(model.gives_way)}"
        notes.add(
            (*loc, "gives_way"), found, "a source that is not curated, or `proportional`: curated data grows instead"
        )


def _evaluations(notes: _Notes, eco: s.Ecosystem, loc: Loc, model: s.Model) -> None:
    if model.evaluate is not None and not model.evaluate:
        notes.add(
            (*loc, "evaluate"), "an empty list", "one evaluation or more; leave it out for the model's own reward"
        )
    seen: set[str] = set()
    for index, evaluation in enumerate(model.evaluate or []):
        at: Loc = (*loc, "evaluate", index)
        if evaluation.name in seen:
            notes.add((*at, "name"), f"{short(evaluation.name)} a second time", "a name of its own an evaluation")
        seen.add(evaluation.name)
        if evaluation.reward is not None and evaluation.reward not in eco.rewards:
            notes.name((*at, "reward"), evaluation.reward, "rewards", eco.rewards)
        if evaluation.data is not None and evaluation.data not in eco.data:
            notes.name((*at, "data"), evaluation.data, "data", eco.data)


def _domains(notes: _Notes, eco: s.Ecosystem, layout: Layout) -> None:
    """Regression needs a domain wherever inputs are drawn; other spaces have none."""
    regression = layout.kind == "regression"
    if not regression and eco.domains:
        notes.add(("domains",), f"domains with a space of {layout.kind}", "none: only a regression has inputs")
        return
    needed: dict[str, str] = {}
    for name, model in eco.models.items():
        loc = ("models", name)
        named: list[tuple[Loc, str | None]] = [((*loc, "domain"), model.domain)]
        for index, source in enumerate(model.sources):
            at: Loc = (*loc, "sources", index)
            if isinstance(source, (s.Real, s.Picks)):
                if source.domain is not None and regression:
                    notes.add(
                        (*at, "domain"), f"{short(source.domain)} for real data", "none: real data has its own inputs"
                    )
                    continue
            elif source.domain is None:
                needed.setdefault(source.producer, path_text(at))
            named.append(((*at, "domain"), source.domain))
        for index, evaluation in enumerate(model.evaluate or []):
            named.append(((*loc, "evaluate", index, "domain"), evaluation.domain))
        if model.evaluate is None or any(evaluation.domain is None for evaluation in model.evaluate):
            needed.setdefault(name, "its evaluation")
        for place, domain in named:
            if domain is None:
                continue
            if not regression:
                notes.add(
                    place, f"{short(domain)} with a space of {layout.kind}", "no domain: only a regression has inputs"
                )
            elif domain not in eco.domains:
                notes.name(place, domain, "domains", eco.domains)
    for name, use in needed.items() if regression else ():
        if name in eco.models and eco.models[name].domain is None:
            need = f"`domain: …`, one of {', '.join(eco.domains) or 'those defined under `domains`'}"
            notes.add(("models", name, "domain"), f"no domain, which {use} needs", need)


# --- order and audit ------------------------------------------------------------------------------------------------


def _order(notes: _Notes, eco: s.Ecosystem) -> None:
    order = eco.update.order
    loc: Loc = ("update", "order")
    if isinstance(order, s.Sequential) and order.models is not None:
        named: list[tuple[Loc, str]] = [((*loc, "models", i), name) for i, name in enumerate(order.models)]
        whole: Loc = (*loc, "models")
    elif isinstance(order, s.Cycle):
        whole = (*loc, "rounds")
        named = []
        for r, steps in enumerate(order.rounds):
            if not steps or not all(steps):
                empty = next((i for i, step in enumerate(steps) if not step), None)
                notes.add(
                    (*whole, r) if empty is None else (*whole, r, empty),
                    "an empty list",
                    "a round of one step or more, and a step of one model or more",
                )
                return
            for i, step in enumerate(steps):
                twice = next((k for k, name in enumerate(step) if name in step[:k]), None)
                if twice is not None:
                    notes.add(
                        (*whole, r, i, twice), f"{short(step[twice])} twice in one step", "each model once a step"
                    )
                    return
                named += [((*whole, r, i, k), name) for k, name in enumerate(step)]
    else:
        return
    unknown = [(place, name) for place, name in named if name not in eco.models]
    for place, name in unknown:
        notes.name(place, name, "models", eco.models)
    if unknown:
        return
    names = [name for _, name in named]
    if isinstance(order, s.Sequential) and len(set(names)) < len(names):
        twice = next(k for k, name in enumerate(names) if name in names[:k])
        notes.add((*whole, twice), f"{short(names[twice])} a second time", "every model exactly once")
        return
    missing = [name for name in eco.models if name not in set(names)]
    if missing:
        listed = ", ".join(map(short, missing[:5])) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
        where = "every model once" if isinstance(order, s.Sequential) else "every model in at least one round"
        notes.add(whole, f"no {listed}", where)


def _audit(
    notes: _Notes,
    eco: s.Ecosystem,
    layout: Layout | None,
    sound: dict[str, s.Reward],
    fitting: set[str],
    people: dict[str, str],
) -> None:
    for index, change in enumerate(eco.audit.changes):
        loc: Loc = ("audit", "changes", index)
        if not _setting(notes, eco, (*loc, "path"), change.path):
            continue
        try:
            moved = settings.put(eco, change.path, change.to)
        except SettingError as error:
            notes.add((*loc, "to"), *_two_parts(error))
            continue
        name = change.path.split(".")[0]
        after = _Notes([])
        _model(after, moved, name, layout, sound, fitting, people)
        for complaint in after.all()[:1]:
            found = (
                f"{change.to:g}, which leads to {path_text(complaint.loc)}: {complaint.found.removeprefix('found ')}"
            )
            notes.add((*loc, "to"), found, complaint.need.removeprefix("need "))
    for index, query in enumerate(eco.audit.thresholds):
        _threshold(notes, eco, ("audit", "thresholds", index), query)


def _setting(notes: _Notes, eco: s.Ecosystem, loc: Loc, path: str) -> bool:
    """Whether a setting can move; False too when its model has problems of its own."""
    name = path.split(".")[0]
    if name in eco.models and notes.under("models", name):
        return False
    try:
        settings.bounds(eco, path)
        settings.weight_direction(eco, path)
    except SettingError as error:
        found, need = _two_parts(error)
        notes.add(loc, f"{short(path)}: {found}", need)
        return False
    return True


def _threshold(notes: _Notes, eco: s.Ecosystem, loc: Loc, query: s.ThresholdQuery) -> None:
    for key, name in (("affected", query.affected), ("intervened", query.intervened)):
        if name is not None and name not in eco.models:
            notes.name((*loc, key), name, "models", eco.models)
        elif key == "intervened" and name is not None and not notes.under("models", name):
            try:
                settings.weight_direction(eco, f"{name}.curation")
            except SettingError as error:
                found, need = _two_parts(error)
                notes.add((*loc, key), f"{short(name)}, where curation cannot rise: {found}", need)
    if not _setting(notes, eco, (*loc, "path"), query.path):
        return
    if query.low >= query.high:
        notes.add((*loc, "high"), f"{query.high:g}, not above low = {query.low:g}", "low < high")
        return
    for key, value in (("low", query.low), ("high", query.high)):
        try:
            settings.put(eco, query.path, value)
        except SettingError as error:
            notes.add((*loc, key), *_two_parts(error))
            return


def _two_parts(error: SettingError) -> tuple[str, str]:
    """What was found and what is needed, of an error that names its setting first."""
    text = str(error)
    found, need = parts(text[text.index(": found ") + 2 :])
    return found.removeprefix("found "), need.removeprefix("need ")
