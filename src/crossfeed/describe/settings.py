"""Every scalar setting of a spec by its path: read it, change it, and which way the mixture moves when it does.

``p.curation`` (λ, the share of curated data, picks from files among it), ``p.cross_share`` (the share of the curated data
made by models that other models made), ``p.ridge`` (closed-form families), ``p.sources.NAME.weight``, and of one source
``sampling_temperature``, ``candidates``, ``temperature``, ``noise``, ``other_share`` and, of its later stages,
``then.temperature`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crossfeed.describe.schema import (
    CausalLM,
    Curated,
    Diffusion,
    Ecosystem,
    Flow,
    Model,
    Pick,
    Picks,
    Raw,
    Source,
    source_names,
)
from crossfeed.describe.wording import did_you_mean, known, short
from crossfeed.errors import SettingError

_TINY = 1e-12
_STAGE = ("candidates", "temperature", "noise", "other_share")


@dataclass(frozen=True)
class _Setting:
    """A resolved path: its model, and its source and stages where it has them."""

    path: str
    model: str
    key: str
    index: int = -1
    depth: int = 0


@dataclass(frozen=True)
class _Group:
    """A share of the mixture that moves as one: sources by index, and their share now."""

    members: list[int]
    total: float

    def split(self, model: Model) -> dict[int, float]:
        """How a change of the total divides among the members: in proportion, equally when all are 0."""
        if self.total > 0:
            return {i: model.sources[i].weight / self.total for i in self.members}
        return {i: 1 / len(self.members) for i in self.members}


def paths(eco: Ecosystem) -> list[str]:
    """Every setting that :func:`put` can move, models in the order of the spec.

    ``curation`` is listed where a model has curated sources and others that can give way; ``cross_share`` where it has
    curated data of its own and of others, with some weight; ``weight`` where there are two sources.

    Example:
        >>> from crossfeed.describe.schema import Categorical, Curated, Outcomes, Real, DistributionData, TableReward
        >>> people = Real(data="web", weight=0.6)
        >>> picked = Curated(producer="p", weight=0.4)
        >>> eco = Ecosystem(
        ...     space=Outcomes(count=2),
        ...     data={"web": DistributionData(weights=[1, 1])},
        ...     rewards={"r": TableReward(values=[0, 1])},
        ...     models={"p": Model(family=Categorical(), reward="r", sources=[people, picked])},
        ... )
        >>> paths(eco)[:3]
        ['p.curation', 'p.ridge', 'p.sources.real.weight']
        >>> moved = put(eco, "p.curation", 0.5)
        >>> [source.weight for source in moved.models["p"].sources]
        [0.5, 0.5]
        >>> weight_direction(eco, "p.curation")
        {'real': -1.0, 'curated_p': 1.0}
    """
    return [f"{name}.{rest}" for name, model in eco.models.items() for rest in _of_model(name, model)]


def _of_model(name: str, model: Model) -> list[str]:
    out = []
    curated, others = _curation_groups(model)
    if curated.members and others.members:
        out.append("curation")
    if curated.total > 0 and all(group.members for group in _cross_groups(name, model)):
        out.append("cross_share")
    if not isinstance(model.family, (Flow, Diffusion, CausalLM)):
        out.append("ridge")
    for label, source in zip(source_names(model), model.sources, strict=True):
        stem = f"sources.{label}."
        out += [stem + key for key in _of_source(source) if key != "weight" or len(model.sources) > 1]
    return out


def _of_source(source: Source) -> list[str]:
    out = ["weight"]
    if isinstance(source, (Raw, Curated)):
        out.append("sampling_temperature")
    if isinstance(source, Curated):
        for depth, stage in enumerate(source.stages):
            keys = [key for key in _STAGE if key != "other_share" or stage.other_curator is not None]
            out += ["then." * depth + key for key in keys]
    return out


def get(eco: Ecosystem, path: str) -> float:
    """The setting's value; ``curation`` is 0 for a model without curated sources.

    Raises:
        SettingError: no such setting, with the nearest one; or a cross share of no curated data.
    """
    setting = _resolve(eco, path)
    model = eco.models[setting.model]
    if setting.key == "curation":
        return _curation_groups(model)[0].total
    if setting.key == "cross_share":
        own, cross = _cross_groups(setting.model, model)
        if own.total + cross.total <= 0:
            raise SettingError(f"{path}: found a model without curated data; need some, or there is nothing to share")
        return cross.total / (own.total + cross.total)
    if setting.index < 0:
        return float(model.ridge)
    return float(getattr(_stage(model.sources[setting.index], setting.depth), setting.key))


def bounds(eco: Ecosystem, path: str) -> tuple[float, float]:
    """The least and the greatest value that :func:`put` takes; a temperature reaches 0 only where it is 0 already."""
    setting = _resolve(eco, path)
    model = eco.models[setting.model]
    if setting.key == "curation" and model.gives_way != "proportional":
        return 0.0, min(1.0, get(eco, path) + model.sources[source_names(model).index(model.gives_way)].weight)
    if setting.key in ("curation", "cross_share", "weight"):
        return 0.0, 1.0
    if setting.index < 0:
        return 0.0, math.inf
    stage = _stage(model.sources[setting.index], setting.depth)
    if setting.key in ("noise", "other_share"):
        other = "other_share" if setting.key == "noise" else "noise"
        return 0.0, 1.0 - float(getattr(stage, other))
    if setting.key == "temperature" and stage.temperature == 0:
        return 0.0, 0.0
    return (1.0 if setting.key == "candidates" else 0.0), math.inf


def put(eco: Ecosystem, path: str, value: float) -> Ecosystem:
    """The same ecosystem with one setting changed; what must give way does.

    ``curation`` scales the curated sources in proportion (equally when all are 0) and shrinks the rest in
    proportion, or the model's ``gives_way`` alone. ``cross_share`` moves curated weight between the model's own outputs
    and others'.
    ``candidates`` takes any real K ≥ 1, for root finding.

    Args:
        eco: The ecosystem; it stays as it is.
        path: The setting.
        value: Its new value.

    Raises:
        SettingError: no such setting; a value out of bounds; a temperature that becomes 0 or leaves it.
    """
    setting = _resolve(eco, path)
    model = eco.models[setting.model]
    value = _checked(eco, setting, value)
    if setting.key in ("curation", "cross_share", "weight"):
        moves = _moves(setting, model)
        weights: dict[int, float] = {}
        for group, share in zip(moves.groups, moves.shares(value), strict=True):
            weights |= {i: max(share * part, 0.0) for i, part in group.split(model).items()}
        sources = [
            source if i not in weights else source.model_copy(update={"weight": weights[i]})
            for i, source in enumerate(model.sources)
        ]
        changed = model.model_copy(update={"sources": sources})
    elif setting.index < 0:
        changed = model.model_copy(update={setting.key: value})
    else:
        sources = list(model.sources)
        sources[setting.index] = _with(sources[setting.index], setting.depth, setting.key, value)
        changed = model.model_copy(update={"sources": sources})
    return eco.model_copy(update={"models": {**eco.models, setting.model: changed}})


def weight_direction(eco: Ecosystem, path: str) -> dict[str, float] | None:
    """d(weight of each of the model's sources) / d(setting) at its present value, exactly; they sum to 0.

    Returns:
        By source name, zeros included; None for settings that move no weight.

    Raises:
        SettingError: no such setting, or one that cannot move.
    """
    setting = _resolve(eco, path)
    if setting.key not in ("curation", "cross_share", "weight"):
        return None
    model = eco.models[setting.model]
    moves = _moves(setting, model)
    slopes = dict.fromkeys(range(len(model.sources)), 0.0)
    for group, slope in zip(moves.groups, moves.slopes, strict=True):
        slopes |= {i: slope * part for i, part in group.split(model).items()}
    return dict(zip(source_names(model), slopes.values(), strict=True))


# --- how weights move -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moves:
    """Two groups of sources, their shares as functions of the setting, and the slopes of those."""

    groups: tuple[_Group, _Group]
    shares: Callable[[float], tuple[float, float]]
    slopes: tuple[float, float]


def _group(model: Model, members: list[int]) -> _Group:
    return _Group(members, math.fsum(model.sources[i].weight for i in members))


def _curation_groups(model: Model) -> tuple[_Group, _Group]:
    curated = [i for i, source in enumerate(model.sources) if isinstance(source, (Curated, Picks))]
    others = [i for i in range(len(model.sources)) if i not in curated]
    return _group(model, curated), _group(model, others)


def _cross_groups(name: str, model: Model) -> tuple[_Group, _Group]:
    curated = [(i, source.producer) for i, source in enumerate(model.sources) if isinstance(source, Curated)]
    own = [i for i, producer in curated if producer == name]
    return _group(model, own), _group(model, [i for i, producer in curated if producer != name])


def _moves(setting: _Setting, model: Model) -> _Moves:
    if setting.key == "weight":
        rest = [i for i in range(len(model.sources)) if i != setting.index]
        if not rest:
            raise SettingError(f"{setting.path}: found the model's only source; need another one that can give way")
        groups = _group(model, [setting.index]), _group(model, rest)
        return _Moves(groups, lambda v: (v, 1 - v), (1.0, -1.0))
    if setting.key == "cross_share":
        own, cross = _cross_groups(setting.model, model)
        total = own.total + cross.total
        if not own.members or not cross.members or total <= 0:
            need = "need curated data of the model itself and of another model, of which some has weight"
            raise SettingError(f"{setting.path}: found no share that can move; {need}")
        return _Moves((cross, own), lambda v: (v * total, (1 - v) * total), (total, -total))
    curated, others = _curation_groups(model)
    if not curated.members or not others.members:
        found = "no curated source" if not curated.members else "curated sources only"
        raise SettingError(f"{setting.path}: found {found}; need curated sources and others that give way")
    if model.gives_way == "proportional":
        return _Moves((curated, others), lambda v: (v, 1 - v), (1.0, -1.0))
    index = source_names(model).index(model.gives_way)
    alone = _group(model, [index])
    return _Moves((curated, alone), lambda v: (v, alone.total + curated.total - v), (1.0, -1.0))


def _checked(eco: Ecosystem, setting: _Setting, value: float) -> float:
    """The value as a float, if the setting can take it."""
    path, model = setting.path, eco.models[setting.model]
    stage: Any = None if setting.index < 0 else _stage(model.sources[setting.index], setting.depth)
    low, high = bounds(eco, path)

    def refuse(need: str) -> SettingError:
        return SettingError(f"{path}: found {short(value)}; need {need}")

    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise refuse("a number")
    if setting.key == "temperature" and high == 0 and value != 0:
        raise refuse("0, because the best is picked, which is another rule: change it in the spec")
    if setting.key == "temperature" and high > 0 and value == 0:
        raise refuse("a number > 0, because 0 picks the best, which is another rule: change it in the spec")
    if setting.key == "candidates" and value == math.inf:
        if stage.temperature == 0:
            raise refuse("a finite number of candidates at temperature 0")
        return math.inf
    if setting.key == "sampling_temperature" and not 0 < value < math.inf:
        raise refuse("a finite number > 0")
    if not low - _TINY <= value <= high + _TINY or value == math.inf:
        why = ""
        if setting.key == "curation" and high < value <= 1:
            why = f": {model.gives_way!r}, which gives way, would become negative"
        raise refuse(
            (f"a finite number ≥ {low:g}" if high == math.inf else f"a number from {low:g} to {high:.10g}") + why
        )
    return min(max(float(value), low), high)


# --- paths ----------------------------------------------------------------------------------------------------------


def _resolve(eco: Ecosystem, path: str) -> _Setting:
    parts = path.split(".") if isinstance(path, str) else [""]
    model = eco.models.get(parts[0])
    if model is None:
        raise SettingError(f"{short(path)}: found no model {short(parts[0])}; {known(eco.models, parts[0])}")
    if parts[1:] in (["curation"], ["cross_share"]) or (
        parts[1:] == ["ridge"] and "ridge" in _of_model(parts[0], model)
    ):
        return _Setting(path, parts[0], parts[1])
    if len(parts) >= 4 and parts[1] == "sources":
        names = source_names(model)
        if parts[2] not in names:
            raise SettingError(f"{path}: found no source {short(parts[2])} of {parts[0]!r}; {known(names, parts[2])}")
        index = names.index(parts[2])
        if ".".join(parts[3:]) in _of_source(model.sources[index]):
            return _Setting(path, parts[0], parts[-1], index, len(parts) - 4)
    options = _of_model(parts[0], model)
    listed = ", ".join(options[:6]) + (", …" if len(options) > 6 else "")
    near = did_you_mean(".".join(parts[1:]), options)
    raise SettingError(f"{short(path)}: found no such setting; need one of {parts[0]!r}'s: {listed}{near}")


def _stage(source: Source, depth: int) -> Any:
    stage: Any = source
    for _ in range(depth):
        stage = stage.then
    return stage


def _with(stage: Any, depth: int, key: str, value: float) -> Any:
    if depth == 0:
        return stage.model_copy(update={key: value})
    inner: Pick = _with(stage.then, depth - 1, key, value)
    return stage.model_copy(update={"then": inner})
