r"""Which inputs models answer in the rounds to come: those of their last training sets, which hold other models' answers to theirs.

A model's outputs answer inputs of its last training set, unless a source names others. Where q is trained on p's answers, q's next outputs
answer p's inputs too, and so inputs spread through the loop within a few rounds, whatever the models learn. With weights w of sources,
π_m the shares of where the inputs of model m's training set come from,

    π_m ← Σ_s w_s (its data, or π of its producer),

round by round in the spec's order. Samples are asked inputs as they are on average over the rounds that they stand for. A setting λ
that moves weights moves what is asked as well, from the next round on, by the derivative of the same recursion:

    dπ_m ← Σ_s (dw_s/dλ) (its data, or π of its producer) + Σ_s w_s dπ of its producer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Ecosystem, Picks, Raw, Real, Source
from crossfeed.estimate.horizon import Rounds
from crossfeed.networks.world import World

MOST = 4096
"""Inputs in a list in which several places stand by their shares."""

Origin = tuple[str, str]
Shares = dict[Origin, float]


@dataclass(frozen=True, eq=False)
class Asked:
    """What models are asked, and how it moves with the mixtures.

    Attributes:
        eco: The ecosystem.
        rounds: Who updates when, by round of the horizon.
        parts: By model and origin, (n,) inputs from there, as many as its share says.
        words: (m,) by input, the first one with the same words.
    """

    eco: Ecosystem
    rounds: Rounds
    parts: dict[str, dict[Origin, Tensor]]
    words: Tensor = field(repr=False)

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """By model, (n,) what its outputs answer."""
        return {name: torch.cat(list(lists.values())) for name, lists in self.parts.items()}

    @cached_property
    def moving(self) -> set[int]:
        """Numbers of the sources whose outputs' inputs move with their producer's training sets, from one origin to another."""
        sources = [source for model in self.eco.models.values() for source in model.sources]
        return {s for s, x in enumerate(sources) if _hands_on(x) and len(self.parts.get(x.producer, ())) > 1}

    def moves(
        self, slopes: Mapping[int, float], mixture: Sequence[float] | None = None, alone: bool = False
    ) -> list[dict[str, dict[str, Shares]]]:
        """By round of the horizon and model that is trained in it, dπ/dλ of every producer as that training meets it.

        Args:
            slopes: dw/dλ by the source's number, in the order of models and their sources.
            mixture: w by source; None: the spec's.
            alone: Leave out what reaches a model through others.
        """
        found = spread(self.eco, self.rounds, mixture, slopes, alone)
        return [{name: step.moved for step in steps for name in step.who} for steps in found]

    def ratios(self, producer: str, prompts: Tensor, shares: Sequence[Shares]) -> Tensor:
        """(t, n) Σ_o shares(o) P(x | o)/P(x) of a producer's answers to inputs x (n,): how much more often each would be asked."""
        lists = self.parts[producer]
        own = self.words[prompts]
        mean = self._chances(self.prompts[producer])[own]
        table = torch.stack([self._chances(part)[own] / mean for part in lists.values()])
        weights = [[part.get(origin, 0.0) for origin in lists] for part in shares]
        return torch.tensor(weights, dtype=torch.float64) @ table

    def _chances(self, prompts: Tensor) -> Tensor:
        """(m,) how often each text is asked."""
        counts = torch.bincount(self.words[prompts], minlength=len(self.words))
        return counts.double() / len(prompts)


def composed(
    world: World,
    prompts: Mapping[str, Tensor],
    rounds: Rounds,
    first: int,
    stop: int,
    recorded: Collection[str] = (),
) -> Asked:
    """By model, inputs of its outputs on average over rounds ``first`` to ``stop`` − 1 of the horizon.

    Args:
        world: Data and the ecosystem.
        prompts: By model, (n,) what its last training set asked, now.
        rounds: Who updates when, by round.
        first: The first round, from 0.
        stop: The first round that does not count.
        recorded: Models whose outputs come from files, and answer what these say.
    """
    eco = world.eco
    total = {name: Shares() for name in prompts}
    if all(len(own.unique()) == 1 for own in prompts.values()):
        total = {name: {("start", name): 1.0} for name in prompts}
    else:
        for steps in spread(eco, rounds[:stop])[first:]:
            for name in prompts:
                _add(total[name], steps[0].shares[name], 1 / (stop - first))
    parts = {name: _listed(world, prompts, total[name]) for name in prompts if name not in recorded}
    return Asked(eco, rounds, parts, first_of_each(world.prompts.texts))


@dataclass(frozen=True)
class Step:
    """Models that are trained at the same time.

    Attributes:
        who: Their names.
        shares: π of every model, as they meet it.
        moved: dπ/dλ of every model, as they meet it.
    """

    who: list[str]
    shares: dict[str, Shares]
    moved: dict[str, Shares]


def spread(
    eco: Ecosystem,
    rounds: Rounds,
    mixture: Sequence[float] | None = None,
    slopes: Mapping[int, float] | None = None,
    alone: bool = False,
) -> list[list[Step]]:
    """What is asked, by round and step; arguments as for :meth:`Asked.moves`."""
    slopes, out = slopes or {}, list[list[Step]]()
    numbered = list(enumerate((name, source) for name, model in eco.models.items() for source in model.sources))
    weights = [source.weight for _, (_, source) in numbered] if mixture is None else mixture
    shares: dict[str, Shares] = {name: {("start", name): 1.0} for name in eco.names}
    moved: dict[str, Shares] = {name: {} for name in eco.names}
    for steps in rounds:
        made: list[Step] = []
        out.append(made)
        for step in steps:
            made.append(Step([eco.names[i] for i in step], shares, moved))
            new, slope = ({name: Shares() for name in made[-1].who} for _ in range(2))
            for s, (name, source) in numbered:
                if name not in new:
                    continue
                asked = _asked(source, shares)
                _add(new[name], asked, weights[s])
                _add(slope[name], asked, slopes.get(s, 0.0))
                if _hands_on(source) and not (alone and source.producer != name):
                    _add(slope[name], moved[source.producer], weights[s])
            shares, moved = shares | new, moved | slope
    return out


def _hands_on(source: Source) -> TypeGuard[Raw | Curated]:
    """Whether a source's inputs are those of its producer's last training set."""
    return isinstance(source, (Raw, Curated)) and source.inputs is None


def _asked(source: Source, shares: Mapping[str, Shares]) -> Shares:
    """Where a source's inputs come from."""
    if isinstance(source, (Real, Picks)):
        return {("data", source.data): 1.0}
    return shares[source.producer] if source.inputs is None else {("data", source.inputs): 1.0}


def _add(total: Shares, part: Mapping[Origin, float], weight: float) -> None:
    for origin, share in part.items():
        if weight * share:
            total[origin] = total.get(origin, 0.0) + weight * share


def _listed(world: World, prompts: Mapping[str, Tensor], shares: Shares) -> dict[Origin, Tensor]:
    """By origin, (n,) inputs, every origin's as often as its share says."""
    lists = {o: prompts[o[1]] if o[0] == "start" else world.data[o[1]].inputs() for o in shares}
    if len(lists) == 1:
        return lists
    num, whole = min(MOST, 8 * sum(len(part) for part in lists.values())), sum(shares.values())
    return {
        origin: part[torch.arange(max(1, round(num * shares[origin] / whole))) % len(part)]
        for origin, part in lists.items()
    }


def first_of_each(texts: Sequence[str]) -> Tensor:
    """(m,) where each text stands first."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(text, at) for at, text in enumerate(texts)], dtype=torch.int64)
