r"""Picks among candidates: who picks, by which rule, and what was picked.

Every group of K candidates meets one picker. A share ``noise`` of the groups is picked uniformly at random, a share
``other_share`` by the other curator, the rest by the curator:

    P(pick k) = exp(r(x, y_k)/τ) / Σ_l exp(r(x, y_l)/τ)        (Plackett–Luce; drawn as argmax of r/τ + Gumbel noise)

and τ = 0 picks the best, ties uniformly. A second stage picks among the first stage's picks. In distribution this is what
:mod:`crossfeed.families.picks` works out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Pick, Source
from crossfeed.errors import CheckFailedError, NotAvailableError

UNIFORM = "uniform"

Rewards = Callable[[str, Tensor], Tensor]
"""(name of a reward, indices of candidates (m,)) to rewards (m,) float64."""


@dataclass(frozen=True)
class Picked:
    """What people picked out of n groups of K candidates; K counts the candidates of all stages.

    Attributes:
        index: (n,) which of a group's K candidates was picked.
        rewards: (n, K) rewards by the first stage's curator.
        picker: (n,) who made the last stage's pick: the name of a reward, or ``uniform``.
        why: (n,) by which rule, in words; of every stage on the way to the pick.
    """

    index: Tensor
    rewards: Tensor
    picker: list[str]
    why: list[str]


def whole_candidates(pick: Pick, where: str) -> list[int]:
    """K of every stage.

    Raises:
        NotAvailableError: K = inf, of which no candidates can be drawn.
    """
    for stage in pick.stages:
        if stage.candidates == float("inf"):
            raise NotAvailableError(
                f"{where}: found candidates: inf; networks are known by their samples: give a whole number"
            )
    return [int(stage.candidates) for stage in pick.stages]


def outputs_a_row(source: Source, where: str) -> int:
    """Outputs to generate for one row of a source: the candidates of all stages for picks, else 1.

    Raises:
        NotAvailableError: as :func:`whole_candidates`.
    """
    return math.prod(whole_candidates(source, where)) if isinstance(source, Curated) else 1


def pick_among(pick: Pick, people: str, num: int, rewards: Rewards, generator: torch.Generator) -> Picked:
    """One pick out of each of ``num`` groups.

    Candidate j of group i has index i·K + j. Each curator's reward of a candidate is asked for at most once, and the other
    curator's only in groups where it decides.

    Args:
        pick: The rule, with the stages that follow.
        people: Reward of the producer's people, who pick where no curator is named.
        num: n, groups.
        rewards: Gives rewards of candidates.
        generator: On the CPU; of noise, shares, Gumbel draws and ties.

    Raises:
        CheckFailedError: a reward that is not finite.
    """
    sizes = whole_candidates(pick, "source")
    total = 1
    for size in sizes:
        total *= size
    everything = torch.arange(num * total)
    seen = _Seen(rewards, num * total)
    first = pick.curator or people
    seen.fill(first, everything)
    alive = everything  # candidates that are still in, group by group
    names: list[list[str]] = []  # by stage: pickers and reasons of the groups
    reasons: list[list[str]] = []
    for stage, size in zip(pick.stages, sizes, strict=True):
        groups = alive.view(-1, size)
        local, who = _stage(stage, stage.curator or people, groups, seen, generator)
        alive = groups.gather(1, local[:, None])[:, 0]
        kinds = [stage.curator or people, stage.other_curator or "", UNIFORM]
        names.append([kinds[w] for w in who.tolist()])
        rule = _rule(stage)
        reasons.append([UNIFORM if w == 2 else rule for w in who.tolist()])
    index = alive - total * torch.arange(num)
    return Picked(index, seen.of[first].view(num, total), names[-1], _why(names, reasons, sizes, index))


def _stage(stage: Pick, curator: str, groups: Tensor, seen: _Seen, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of each group (m, size) is picked, and who picks: 0 the curator, 1 the other, 2 nobody in particular."""
    count, size = groups.shape
    how = torch.rand(count, dtype=torch.float64, generator=generator)
    who = torch.where(how < stage.noise, 2, torch.where(how < stage.noise + stage.other_share, 1, 0))
    if size == 1:  # one candidate is no choice
        return torch.zeros(count, dtype=torch.int64), who
    chance = torch.rand(count, size, dtype=torch.float64, generator=generator)
    chosen = (chance[:, 0] * size).long().clamp_max(size - 1)
    for number, name in enumerate((curator, stage.other_curator)):
        mine = (who == number).nonzero()[:, 0]
        if name is None or not len(mine):
            continue
        candidates = groups[mine]
        values = seen.fill(name, candidates.flatten()).view(candidates.shape)
        if stage.temperature > 0:
            gumbel = -torch.log(-torch.log(chance[mine].clamp(1e-300, 1 - 2**-53)))
            chosen[mine] = (values / stage.temperature + gumbel).argmax(1)
        else:
            best = values == values.amax(1, keepdim=True)
            chosen[mine] = torch.where(best, chance[mine], -1.0).argmax(1)
    return chosen, who


class _Seen:
    """Rewards that were worked out, by curator; NaN where they were not."""

    def __init__(self, rewards: Rewards, size: int) -> None:
        self._rewards, self._size = rewards, size
        self.of: dict[str, Tensor] = {}

    def fill(self, name: str, index: Tensor) -> Tensor:
        """Rewards (m,) of candidates at ``index`` (m,), working out those that are new."""
        known = self.of.setdefault(name, torch.full((self._size,), torch.nan, dtype=torch.float64))
        new = index[torch.isnan(known[index])]
        if len(new):
            values = self._rewards(name, new).to("cpu", torch.float64)
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                raise CheckFailedError(
                    f"rewards.{name}: {bad:,} of {len(values):,} rewards are not finite, the first of candidate "
                    f"{int(new[~torch.isfinite(values)][0])}; mend the reward so that every output gets a finite number"
                )
            known[new] = values
        return known[index]


def _rule(stage: Pick) -> str:
    if stage.candidates == 1:
        return "one candidate"
    return f"best of {stage.candidates:g}" if stage.temperature == 0 else f"Plackett–Luce, τ = {stage.temperature:g}"


def _why(names: list[list[str]], reasons: list[list[str]], sizes: list[int], index: Tensor) -> list[str]:
    """The rule; with several stages, who and by which rule at every stage the pick went through."""
    if len(sizes) == 1:
        return reasons[0]
    out = []
    for row, at in enumerate(index.tolist()):
        group, parts = row, []
        for depth in reversed(range(len(sizes))):
            who, rule = names[depth][group], reasons[depth][group]
            parts.append(rule if who == UNIFORM else f"{who} ({rule})")
            if depth:
                inner = 1
                for size in sizes[:depth]:
                    inner *= size
                group = group * sizes[depth] + at // inner % sizes[depth]
        out.append(", then ".join(reversed(parts)))
    return out
