"""What a run folder holds, read once into plain values: the run report's only input besides samples and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from crossfeed.describe.schema import Curated, Ecosystem, Picks, Real, candidates_label, source_names
from crossfeed.errors import DataError

if TYPE_CHECKING:
    from crossfeed.record.folder import RunFolder

CURATION_COLUMNS = ("source", "kind", "producer", "rewards", "picked", "picker")


class Point(NamedTuple):
    """A metric after one round; round 0 is the start."""

    round: int
    value: float
    error: float | None


@dataclass(frozen=True)
class Measured:
    """One evaluation of one model.

    Attributes:
        model: Whose outputs.
        name: The evaluation's name, the metric's domain.
        cross: On inputs of other models' data, not the model's own.
        whose: Models that have these inputs in their own data, where they are not this model's.
        reward: Name of the reward.
        other_people: The reward is not that of the model's own people.
        num: Outputs a round.
    """

    model: str
    name: str
    cross: bool
    whose: tuple[str, ...]
    reward: str
    other_people: bool
    num: int


@dataclass(frozen=True)
class Picked:
    """What the curators of one source did in one round.

    Attributes:
        rows: Picks made.
        offered: Mean reward of all candidates.
        best: Mean reward of the best candidate of each offer.
        picked: Mean reward of what was picked.
        gain: Mean of picked minus offered, and its standard error.
        ranks: Share of picks by rank, the best candidate first; equal rewards share their ranks.
        pickers: Share of picks by who picked.
    """

    model: str
    source: str
    producer: str | None
    round: int
    rows: int
    offered: float
    best: float
    picked: float
    gain: tuple[float, float | None]
    ranks: tuple[float, ...]
    pickers: Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """A run in plain values; names are as in the spec, uncleaned."""

    eco: Ecosystem
    rounds: list[int]
    series: dict[tuple[str, str, str | None], list[Point]]
    evaluations: list[Measured]
    status: dict[str, Any]
    options: dict[str, Any]
    made: dict[str, Any]
    infos: dict[int, dict[str, Any]]
    curation: list[Picked] = field(default_factory=list)
    descent: dict[str, dict[int, dict[int, float]]] = field(default_factory=dict)
    origins: dict[str, dict[str | None, float]] = field(default_factory=dict)
    paired: dict[tuple[str, str], tuple[float, float, int]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The models, in the order of the spec."""
        return self.eco.names

    @property
    def last(self) -> int:
        """The last finished round."""
        return self.rounds[-1]

    def points(self, model: str, metric: str, domain: str | None = None) -> list[Point]:
        """A metric's finite values by round."""
        return self.series.get((model, metric, domain), [])

    def of(self, metric: str) -> Iterator[tuple[str, str | None, list[Point]]]:
        """(model, domain, points) of one metric, in the order of the spec's models."""
        for name in self.names:
            for (model, found, domain), points in self.series.items():
                if model == name and found == metric and points:
                    yield model, domain, points

    def primary(self, model: str) -> Measured | None:
        """The evaluation that speaks for a model: on its own inputs by its own people, if there is one."""
        own = [e for e in self.evaluations if e.model == model and self.points(model, "alignment", e.name)]
        return min(own, key=lambda e: (e.cross, e.other_people), default=None)


def read(folder: RunFolder) -> Facts:
    """Read a run, finished, running or killed.

    Args:
        folder: With at least the start (round 0) recorded.

    Raises:
        DataError: no round is finished yet.
    """
    rounds = sorted(folder.rounds)
    if not rounds:
        raise DataError(
            f"{folder.path}: found no finished round; need at least the start (round 0) to report on; wait for it, or "
            f"go on with `crossfeed run {folder.path} --resume`"
        )
    eco = folder.eco
    series = _series(folder.metrics())
    evaluations = measured(eco)
    facts = Facts(
        eco=eco,
        rounds=rounds,
        series=series,
        evaluations=evaluations,
        status=dict(folder.status),
        options=dict(folder.options),
        made=dict(folder.about),
        infos={t: dict(folder.round_info(t)) for t in rounds},
    )
    facts.curation.extend(_curation(folder, facts))
    facts.paired.update(_paired(folder, facts))
    try:
        facts.descent.update(_descent(folder))
        facts.origins.update(_origins(folder))
    except DataError as error:
        facts.damaged.append(str(error))
    return facts


def _series(table: Any) -> dict[tuple[str, str, str | None], list[Point]]:
    out: dict[tuple[str, str, str | None], list[Point]] = {}
    columns = [table.column(c).to_pylist() for c in ("round", "model", "metric", "domain", "value", "standard_error")]
    for t, model, metric, domain, value, error in sorted(zip(*columns, strict=True), key=lambda row: row[0]):
        if value is not None and math.isfinite(value):
            sure = error if error is not None and math.isfinite(error) else None
            out.setdefault((model, metric, domain), []).append(Point(int(t), float(value), sure))
    return out


def table_of(folder: RunFolder, facts: Facts, t: int, model: str, what: str, columns: list[str] | None = None) -> Any:
    """``samples`` or ``shown`` of one model in one round; None where there are none, or the file is damaged.

    Damage is noted in :attr:`Facts.damaged`.
    """
    if what not in (facts.infos[t].get("models") or {}).get(model, {}):
        return None
    try:
        return folder.samples(t, model, columns) if what == "samples" else folder.shown(t, model)
    except DataError as error:
        if str(error) not in facts.damaged:
            facts.damaged.append(str(error))
        return None


# --- the spec -------------------------------------------------------------------------------------------------------


def own_data(eco: Ecosystem, model: str) -> set[str]:
    """Data sets that are a model's own: its real sources, its picks, what it was pretrained on."""
    node = eco.models[model]
    own = {s.data for s in node.sources if isinstance(s, (Real, Picks))}
    if node.pretrain is not None and node.pretrain.data is not None:
        own.add(node.pretrain.data)
    return own


def measured(eco: Ecosystem) -> list[Measured]:
    """Every evaluation of every model, and whether it is on the model's own inputs."""
    own = {name: own_data(eco, name) for name in eco.models}
    out = []
    for name, model in eco.models.items():
        if not model.evaluate:
            out.append(Measured(name, "own", False, (), model.reward, False, eco.run.evaluation_samples))
        for e in model.evaluate or []:
            whose = tuple(n for n in eco.models if n != name and e.data in own[n])
            cross = e.data is not None and e.data not in own[name] and bool(own[name] or whose)
            reward = e.reward or model.reward
            num = e.samples or eco.run.evaluation_samples
            out.append(Measured(name, e.name, cross, whose if cross else (), reward, reward != model.reward, num))
    return out


def edges(eco: Ecosystem) -> list[dict[str, Any]]:
    """Every source as an edge, as in audit.json."""
    out = []
    for name, model in eco.models.items():
        for source, called in zip(model.sources, source_names(model), strict=True):
            edge: dict[str, Any] = {
                "consumer": name,
                "producer": getattr(source, "producer", None),
                "name": called,
                "kind": source.kind,
                "weight": source.weight,
                "curator": None,
                "candidates": None,
                "temperature": None,
                "data": getattr(source, "data", None),
            }
            if isinstance(source, Curated):
                edge["curator"] = " then ".join(p.curator or eco.models[source.producer].reward for p in source.stages)
                edge["candidates"] = " then ".join(candidates_label(p.candidates) for p in source.stages)
                edge["temperature"] = source.temperature
            out.append(edge)
    return out


# --- curation and lineage -------------------------------------------------------------------------------------------


def _curation(folder: RunFolder, facts: Facts) -> list[Picked]:
    curated = [n for n, m in facts.eco.models.items() if any(isinstance(s, Curated) for s in m.sources)]
    out = []
    for t in facts.rounds:
        for model in curated:
            table = table_of(folder, facts, t, model, "samples", list(CURATION_COLUMNS))
            if table is not None:
                out += _picks_of(table, model, t)
    return out


def _picks_of(table: Any, model: str, t: int) -> list[Picked]:
    """One entry a curated source, from the columns of one training set."""
    rows: dict[tuple[str, str | None], list[tuple[list[float], int, str]]] = {}
    columns = [table.column(c).to_pylist() for c in CURATION_COLUMNS]
    for source, kind, producer, rewards, picked, picker in zip(*columns, strict=True):
        if kind == "curated" and rewards and picked is not None and 0 <= picked < len(rewards):
            rows.setdefault((source, producer), []).append((rewards, picked, picker or "not recorded"))
    return [_summed(model, source, producer, t, found) for (source, producer), found in rows.items()]


def _summed(model: str, source: str, producer: str | None, t: int, rows: list[tuple[list[float], int, str]]) -> Picked:
    most = max(len(rewards) for rewards, _, _ in rows)
    ranks = [0.0] * most
    pickers: dict[str, float] = {}
    gains = []
    for rewards, picked, picker in rows:
        mine = rewards[picked]
        above, equal = sum(r > mine for r in rewards), sum(r == mine for r in rewards)
        for rank in range(above, above + equal):
            ranks[rank] += 1 / equal / len(rows)
        pickers[picker] = pickers.get(picker, 0.0) + 1 / len(rows)
        gains.append(mine - sum(rewards) / len(rewards))
    count = len(rows)
    gain = sum(gains) / count
    spread = math.sqrt(sum((g - gain) ** 2 for g in gains) / (count - 1) / count) if count > 1 else None
    return Picked(
        model=model,
        source=source,
        producer=producer,
        round=t,
        rows=count,
        offered=sum(sum(r) / len(r) for r, _, _ in rows) / count,
        best=sum(max(r) for r, _, _ in rows) / count,
        picked=sum(r[p] for r, p, _ in rows) / count,
        gain=(gain, spread),
        ranks=tuple(ranks),
        pickers=dict(sorted(pickers.items(), key=lambda item: -item[1])),
    )


def _descent(folder: RunFolder) -> dict[str, dict[int, dict[int, float]]]:
    """By model and round: share of the training set by generations from real data."""
    from crossfeed.record.lineage import descent

    out: dict[str, dict[int, dict[int, float]]] = {}
    table = descent(folder)
    columns = [table.column(c).to_pylist() for c in ("round", "model", "generation", "share")]
    for t, model, generation, share in zip(*columns, strict=True):
        found = out.setdefault(model, {}).setdefault(int(t), {})
        found[int(generation)] = found.get(int(generation), 0.0) + share
    return out


def _origins(folder: RunFolder) -> dict[str, dict[str | None, float]]:
    """By model: share of its last training set that goes back to each data set; None: to what came before round 1."""
    from crossfeed.record.lineage import origins

    latest: dict[str, tuple[int, dict[str | None, float]]] = {}
    table = origins(folder)
    columns = [table.column(c).to_pylist() for c in ("round", "model", "data", "share")]
    for t, model, data, share in zip(*columns, strict=True):
        if latest.get(model, (0, {}))[0] != t:
            latest[model] = t, {}
        latest[model][1][data] = share
    return {model: shares for model, (_, shares) in latest.items()}


# --- pairs ----------------------------------------------------------------------------------------------------------


def _paired(folder: RunFolder, facts: Facts) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Change of alignment input by input: (mean, standard error, inputs), where the record holds every reward.

    It does when the same inputs were answered in the same order and the recorded rewards average to the metric. Answers
    to one text count as one observation; pictures and vectors are drawn independently, also those of one label.
    """
    out: dict[tuple[str, str], tuple[float, float, int]] = {}
    for e in facts.evaluations:
        points = facts.points(e.model, "alignment", e.name)
        if len(points) < 2:
            continue
        ends = points[0], points[-1]
        before, after = (_rewards(folder, facts, point.round, e) for point in ends)
        if not before or [p for p, _ in before] != [p for p, _ in after]:
            continue
        if not all(_is_mean(found, point.value) for found, point in zip((before, after), ends, strict=True)):
            continue
        gaps = [b - a for (_, a), (_, b) in zip(before, after, strict=True)]
        mean = sum(gaps) / len(gaps)
        groups: dict[int, float] = {}
        for i, ((prompt, _), gap) in enumerate(zip(before, gaps, strict=True)):
            key = prompt if facts.eco.space.kind == "text" else i
            groups[key] = groups.get(key, 0.0) + gap - mean
        count = len(groups)
        if count > 1:
            spread = math.sqrt(count / (count - 1) * sum(u * u for u in groups.values()))
            out[e.model, e.name] = mean, spread / len(gaps), count
    return out


def _is_mean(found: list[tuple[int, float]], value: float) -> bool:
    return math.isclose(sum(r for _, r in found) / len(found), value, rel_tol=1e-6, abs_tol=1e-9)


def _rewards(folder: RunFolder, facts: Facts, t: int, e: Measured) -> list[tuple[int, float]]:
    """(prompt, reward) of every output that is recorded: all of them in the round's notes, or those kept for showing."""
    noted = ((facts.infos[t].get("evaluations") or {}).get(e.model) or {}).get(e.name)
    if noted:
        return list(zip(noted["prompts"], noted["rewards"], strict=True))
    table = table_of(folder, facts, t, e.model, "shown")
    if table is None:
        return []
    columns = [table.column(c).to_pylist() for c in ("domain", "prompt_id", "reward")]
    return [(p, r) for d, p, r in zip(*columns, strict=True) if d == e.name and r is not None and math.isfinite(r)]
