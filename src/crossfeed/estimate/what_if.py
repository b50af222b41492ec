r"""What a changed mixture or pick rule does, from the same bank: no new samples, no new gradients.

The spec changes from one set of weights w and picks π to another, w′ and π′. The change pulls every model with v_i = −(F′_i − F_i),
F_i = Σ_s w_s Σ_k E[π_k ∇ℓ_i], and

    ΔJ = ½ ⟨∇J, x⟩ + ½ ⟨∇J, x′⟩,

x the response to v of the loop as it is and x′ of the loop as it will be: the trapezoid rule along the change, of second order
in its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Ecosystem, Source, source_names
from crossfeed.errors import SettingError
from crossfeed.estimate.draws import Rule, SourceDraw, marginal
from crossfeed.estimate.estimator import Estimate, course_noise, directions_of, occurring
from crossfeed.estimate.influence import Answer, cluster_effects, solve, solve_legs, standard_errors
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.picks import pick_candidates, pick_probabilities, pick_rewards
from crossfeed.estimate.swings import Swings, swings
from crossfeed.estimate.system import System, moments
from crossfeed.record.spec_copy import comparable

MOVABLE = ("weight", "candidates", "temperature", "noise", "other_share", "curator", "other_curator", "then")


@dataclass(frozen=True, eq=False)
class WhatIf:
    """What a change does.

    Attributes:
        change: (E,) predicted change of every alignment at the end of the horizon.
        errors: (E,) standard errors of it, from the samples.
        first_order: (E,) ⟨∇J, x⟩: what the loop as it is makes of it.
        matrix: (E, C) the influence matrix after the change; None where it was not worked out.
    """

    change: Tensor
    errors: Tensor
    first_order: Tensor
    matrix: Tensor | None


def what_if(estimate: Estimate, changed: Ecosystem) -> WhatIf:
    """Answer for another spec from the same bank.

    Args:
        estimate: Of the spec as it is.
        changed: The same with other weights of sources, or other pick rules with at most as many candidates.

    Raises:
        SettingError: something else differs, or the bank lacks rewards or candidates for the new rule; says what to do.
    """
    nodes = changed_sources(estimate.eco, changed)
    mixture = [after.weight for _, after in nodes]
    then, pushes, ruled = [], [], []
    slopes = {s: w - before.weight for s, (w, (before, _)) in enumerate(zip(mixture, nodes, strict=True))}
    for leg, answer in zip(estimate.legs, estimate.answers, strict=True):
        rows_of, system = leg.bank.sources, answer.system
        rules = [
            new_rule(rows.draw, before, after, changed) for rows, (before, after) in zip(rows_of, nodes, strict=True)
        ]
        found = [
            part if rule is None else moments(rows, rule=rule)
            for rows, part, rule in zip(rows_of, system.found, rules, strict=True)
        ]
        push = [torch.zeros(size, 1, dtype=torch.float64) for size in system.sizes]
        for s, rows in enumerate(rows_of):
            push[rows.consumer][:, 0] -= mixture[s] * found[s].mean - system.mixture[s] * system.found[s].mean
        steps, fixed = leg.horizon.steps, leg.horizon.ridge
        then.append(replace(leg, system=System(leg.bank, found, steps, fixed, mixture, leg.horizon.fisher)))
        pushes.append(push)
        ruled.append(rules)
    now = _solved(estimate.legs, pushes, [swings(leg, [slopes]) for leg in estimate.legs])
    after = _solved(then, pushes, [swings(leg, [slopes], rules) for leg, rules in zip(then, ruled, strict=True)])
    effects = sum(
        (
            _effects(leg, answer, len(estimate.effects), mixture, rules)
            for leg, answer, rules in zip(estimate.legs, now, ruled, strict=True)
        ),
        torch.zeros(()),
    )
    directions = directions_of(changed, estimate.bank.draws, estimate.paths)
    moved = [swings(leg, directions, rules) for leg, rules in zip(then, ruled, strict=True)]
    matrix = _solved(then, [leg.system.pushes(directions) for leg in then], moved)[-1].matrix
    first, change = now[-1].matrix[:, 0], (now[-1].matrix + after[-1].matrix)[:, 0] / 2
    errors = course_noise(estimate.legs) * standard_errors(effects, occurring(estimate.effects))
    return WhatIf(change, errors[:, 0], first, matrix)


def _solved(legs: Sequence[Leg], pushes: Sequence[list[Tensor]], moved: Sequence[Swings | None]) -> list[Answer]:
    """By legs, or at the stable point."""
    one = legs[0]
    if one.horizon.rounds is None:
        return [solve(one.bank, one.horizon, [{}], system=one.system, pushes=pushes[0])]
    return solve_legs(legs, pushes, swings=moved)


def _effects(leg: Leg, now: Answer, num: int, mixture: Sequence[float], rules: Sequence[Rule | None]) -> Tensor:
    """(clusters, E, 1) derivative of ⟨∇J, x⟩ by the weight of every cluster, as far as it is this leg's."""
    bank = leg.bank
    out = cluster_effects(bank, now, [{}], num)
    for s, (rows, rule) in enumerate(zip(bank.sources, rules, strict=True)):
        pulled = (rows.loss @ now.weight[rows.consumer].to(rows.loss.dtype)).double()
        clusters = rows.draw.clusters.repeat_interleave(rows.draw.candidates)
        before, after = marginal(rows.draw), marginal(rows.draw, rule=rule)
        for chance, weight in ((before, -now.system.mixture[s]), (after, mixture[s])):
            effect = -weight * chance[:, None] * (pulled - chance @ pulled)
            out.index_add_(0, clusters, effect[:, :, None])
    return out


def changed_sources(eco: Ecosystem, changed: Ecosystem) -> list[tuple[Source, Source]]:
    """Every source before and after, in the order of the samples.

    Raises:
        SettingError: anything but what :data:`MOVABLE` says differs.
    """
    was, now = comparable(eco), comparable(changed)
    if list(was["models"]) != list(now["models"]):
        raise SettingError("models: found other models; a what-if changes weights and picks only: audit the new spec")
    pairs: list[tuple[Source, Source]] = []
    for name, model in eco.models.items():
        other = changed.models[name]
        if len(other.sources) != len(model.sources):
            raise SettingError(
                f"models.{name}: found other sources; a what-if changes weights and picks only: audit the new spec"
            )
        rows = zip(was["models"][name]["sources"], now["models"][name]["sources"], strict=True)
        for label, (left, right) in zip(source_names(model), rows, strict=True):
            differ = [key for key in left | right if key not in MOVABLE and left.get(key) != right.get(key)]
            if differ:
                raise SettingError(
                    f"{name}.sources.{label}.{differ[0]}: found a change that needs new samples; audit the changed spec instead"
                )
        pairs += zip(model.sources, other.sources, strict=True)
        left, right = was["models"][name], now["models"][name]
        differ = [key for key in left if key not in ("sources", "gives_way") and left[key] != right[key]]
        if differ:
            raise SettingError(
                f"models.{name}.{differ[0]}: found a change of the model; a what-if changes weights and picks only: audit the changed "
                "spec instead"
            )
    if any(was[key] != now[key] for key in was if key not in ("models", "audit")):
        raise SettingError("what-if: found changes outside of the models' sources; audit the changed spec instead")
    return pairs


def new_probabilities(draw: SourceDraw, before: Source, after: Source, changed: Ecosystem) -> Tensor | None:
    """(n, K′) picks of a source under the new rule; None where it is the old one. Raises as :func:`new_rule`."""
    rule = new_rule(draw, before, after, changed)
    return None if rule is None else rule(draw.rewards)


def new_rule(draw: SourceDraw, before: Source, after: Source, changed: Ecosystem) -> Rule | None:
    """Rewards (n, K) of a source's groups to picks (n, K′) under the new rule; None where it is the old one.

    Raises:
        SettingError: it asks for more candidates than there are, or for a reward that is not known.
    """
    if not isinstance(before, Curated) or not isinstance(after, Curated):
        return None
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    if all(old[key] == new[key] for key in old if key != "weight"):
        return None
    where = f"{draw.consumer}.sources.{draw.name}"
    size = pick_candidates(after, where)
    if size > draw.candidates:
        raise SettingError(
            f"{where}.candidates: found {size}; the samples have {draw.candidates} a group: audit the changed spec instead"
        )
    people = changed.models[after.producer].reward
    if any(name not in draw.rewards for name in pick_rewards(after, people)):
        raise SettingError(
            f"{where}: the new rule asks a reward that the samples do not hold; audit the changed spec instead"
        )

    def rule(rewards: Mapping[str, Tensor]) -> Tensor:
        first = {name: values[:, :size] for name, values in rewards.items()}
        return pick_probabilities(after, people, first, where).expand(len(draw.clusters), -1)

    return rule
