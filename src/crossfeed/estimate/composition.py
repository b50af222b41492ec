"""Which inputs models answer in the rounds to come: those of their last training sets, which hold other models' answers to theirs.

A model's outputs answer inputs of its last training set, unless a source names others. Where q is trained on p's answers, q's next outputs
answer p's inputs too, and so inputs spread through the loop within a few rounds, whatever the models learn. With weights w of sources,
π_m the shares of where the inputs of model m's training set come from,

    π_m ← Σ_s w_s (its data, or π of its producer),

round by round in the spec's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Picks, Raw, Real
from crossfeed.estimate.horizon import Rounds
from crossfeed.networks.world import World

MOST = 4096
"""Inputs in a list in which several places stand by their shares."""

Origin = tuple[str, str]
Shares = dict[Origin, float]


def composed(world: World, prompts: Mapping[str, Tensor], rounds: Rounds, first: int, stop: int) -> dict[str, Tensor]:
    """By model, inputs of its outputs on average over rounds ``first`` to ``stop`` − 1 of the horizon.

    Args:
        world: Data and the ecosystem.
        prompts: By model, (n,) what its last training set asked, now.
        rounds: Who updates when, by round.
        first: The first round, from 0.
        stop: The first round that does not count.
    """
    if all(len(own.unique()) == 1 for own in prompts.values()):
        return dict(prompts)
    names, total = list(prompts), {name: Shares() for name in prompts}
    shares: dict[str, Shares] = {name: {("start", name): 1.0} for name in names}
    for number in range(stop):
        if number >= first:
            for name in names:
                _add(total[name], shares[name], 1 / (stop - first))
        for step in rounds[number]:
            shares = shares | {names[i]: _next(world, shares, names[i]) for i in step}
    return {name: _listed(world, prompts, total[name]) for name in names}


def _next(world: World, shares: Mapping[str, Shares], name: str) -> Shares:
    """Where the inputs of a model's next training set come from."""
    out: Shares = {}
    for source in world.eco.models[name].sources:
        if isinstance(source, (Real, Picks)):
            _add(out, {("data", source.data): 1.0}, source.weight)
        elif isinstance(source, (Raw, Curated)):
            asked = shares[source.producer] if source.inputs is None else {("data", source.inputs): 1.0}
            _add(out, asked, source.weight)
    return out


def _add(total: Shares, part: Mapping[Origin, float], weight: float) -> None:
    for origin, share in part.items():
        if weight * share:
            total[origin] = total.get(origin, 0.0) + weight * share


def _listed(world: World, prompts: Mapping[str, Tensor], shares: Shares) -> Tensor:
    """(n,) inputs, every origin's as often as its share says."""
    lists = {o: prompts[o[1]] if o[0] == "start" else world.data[o[1]].inputs() for o in shares}
    if len(lists) == 1:
        return next(iter(lists.values()))
    num = min(MOST, 8 * sum(len(part) for part in lists.values()))
    whole = sum(shares.values())
    parts: Sequence[Tensor] = [
        part[torch.arange(max(1, round(num * shares[origin] / whole))) % len(part)] for origin, part in lists.items()
    ]
    return torch.cat(list(parts))
