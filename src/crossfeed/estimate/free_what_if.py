r"""What a changed mixture or pick rule does, without a gradient bank: every batch solved again, before and after the change.

As :mod:`crossfeed.estimate.what_if`: the change pulls every model with v_i = −(F′_i − F_i), the difference of mean gradients on the same
outputs, and

    ΔJ = ½ ⟨∇J, x⟩ + ½ ⟨∇J, x′⟩,

x the response to v of the loop as it is and x′ of the loop as it will be. Errors by batches, as for the influence itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Ecosystem, Source
from crossfeed.errors import SettingError
from crossfeed.estimate.draws import Draws, SourceDraw
from crossfeed.estimate.free_batches import Plan, end_of
from crossfeed.estimate.free_influence import Outcomes
from crossfeed.estimate.free_swings import free_swings
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.pathwise import smooth_pick
from crossfeed.estimate.picks import pick_rewards
from crossfeed.estimate.what_if import WhatIf, changed_sources, new_probabilities
from crossfeed.record.pool import take


def what_if_by_batches(plan: Plan, draws: Sequence[Draws], size: Size, fisher: float, changed: Ecosystem) -> WhatIf:
    """Answer for another spec from the same batches.

    Args:
        plan: What all batches have in common; its models at the parameters of the batches.
        draws: By batch.
        size: Of all batches together.
        fisher: Share of the empirical Fisher matrix in the curvature.
        changed: The spec with other weights of sources, or other pick rules with at most as many candidates.

    Raises:
        SettingError: something else differs, or the samples lack rewards or candidates for the new rule.
        NotAvailableError: the best of K (τ = 0) from a producer that is taken pathwise.
    """
    nodes = changed_sources(plan.eco, changed)
    found = [_answer(plan, batch, size, fisher, nodes, changed) for batch in draws]
    first = torch.stack([before for before, _ in found])
    both = torch.stack([(before + after) / 2 for before, after in found])
    return WhatIf(both.mean(0), both.std(0) / len(both) ** 0.5, first.mean(0), None)


def _answer(
    plan: Plan, draws: Draws, size: Size, fisher: float, nodes: Sequence[tuple[Source, Source]], changed: Ecosystem
) -> tuple[Tensor, Tensor]:
    """(E,) what one batch makes of the change by the loop before and after it."""
    mixture = [after.weight for _, after in nodes]
    sources = [
        _picked(plan, draw, before, after, changed) for draw, (before, after) in zip(draws.sources, nodes, strict=True)
    ]
    now = plan.loop(draws, plan.keeps_rows(size), fisher)
    then = now.changed(Draws(sources, draws.evaluations), mixture)
    pushes = [torch.zeros_like(model.theta)[:, None] for model in now.models]
    for s, draw in enumerate(draws.sources):
        i = now.names.index(draw.consumer)
        for loop, sign in ((now, 1), (then, -1)):
            if loop.mixture[s]:
                pushes[i][:, 0] += sign * loop.mixture[s] * loop.mean(s)
    outcomes = Outcomes(now)
    slopes = {s: w - before.weight for s, (w, (before, _)) in enumerate(zip(mixture, nodes, strict=True))}
    return _moved(plan, now, outcomes, pushes, slopes), _moved(plan, then, outcomes, pushes, slopes)


def _moved(
    plan: Plan, loop: MatrixFree, outcomes: Outcomes, pushes: list[Tensor], slopes: Mapping[int, float]
) -> Tensor:
    swing = free_swings(loop, plan.asked, [slopes])
    return outcomes.along(end_of(loop, plan.rounds, pushes, swing=swing))[:, 0]


def _picked(plan: Plan, draw: SourceDraw, before: Source, after: Source, changed: Ecosystem) -> SourceDraw:
    """The same groups under the new rule, of which a smaller K sees the first candidates."""
    chances = new_probabilities(draw, before, after, changed)
    if chances is None:
        return draw
    assert isinstance(after, Curated)
    people, keep = changed.models[after.producer].reward, chances.shape[1]
    if draw.producer in plan.pathwise:
        smooth_pick(after, people, f"models.{draw.consumer}.sources.{draw.name}")
    missing = [name for name in pick_rewards(after, people) if name not in draw.rewards]
    if missing:
        raise SettingError(
            f"{draw.consumer}.sources.{draw.name}: the new rule asks a reward that the samples do not hold; audit the changed spec instead"
        )
    rewards = {name: values[:, :keep] for name, values in draw.rewards.items()}
    if keep == draw.candidates:
        return replace(draw, probabilities=chances, pick=after, people=people)
    rows = torch.arange(len(draw.probabilities))[:, None] * draw.candidates + torch.arange(keep)
    at = rows.flatten()
    return replace(
        draw,
        probabilities=chances,
        pick=after if keep > 1 else None,
        people=people,
        rewards=rewards,
        outputs=take(draw.outputs, at),
        made=None if draw.made is None else take(draw.made, at),
        noise=None if draw.noise is None else draw.noise[at],
    )
