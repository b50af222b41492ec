r"""What a setting does by moving what models are asked: a push that changes from round to round.

With φ = ∇ℓ_i, π_m what producer m's outputs answer, P(x) how often samples were asked input x and P(x | o) how often inputs of origin
o are x,

    v_i(t) = −Σ_s (dw_s/dλ) a_s − Σ_s w_s E[ρ_s(x, t) Σ_k π_k φ_k],     ρ_s(x, t) = Σ_o dπ_m(o; t)/dλ · P(x | o)/P(x),

dπ of round t from :mod:`crossfeed.estimate.composition`. The first part is :meth:`crossfeed.estimate.system.System.pushes`. More curation
of q makes q's next inputs more like those of the models that it takes picks from, and so changes what others learn of it, even if
q's parameters stayed the same. Ours. E[ρ] = 0, so its sample mean is taken out; on a model's own raw outputs E[φ | x] = 0, and nothing
is to be estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossfeed.estimate.draws import Rule, marginal
from crossfeed.estimate.horizon import Adjoint
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.system import group_weights


@dataclass(frozen=True, eq=False)
class Swings:
    """Of one leg; as a :data:`crossfeed.estimate.horizon.Swing`, what pushes a model in a round.

    Attributes:
        first: Number of the leg's first round.
        forces: By round of the leg and model, (r_i, c).
        alone: The same, without what reaches a model through others.
        ratios: By source, (rounds, n, c) ρ of its groups.
    """

    first: int
    forces: list[list[Tensor]]
    alone: list[list[Tensor]]
    ratios: dict[int, Tensor] = field(repr=False)

    def __call__(self, number: int, i: int) -> Tensor:
        """(r_i, c) in a round of the horizon."""
        return self.forces[number - self.first][i]

    def effect(self, back: Adjoint) -> Tensor:
        """(E, c) what they do to outcomes in the leg's rounds."""
        pairs = zip(back.updates, back.answer, strict=True)
        return torch.stack([c.T @ self(number, i) for (number, i), c in pairs]).sum(0)

    def isolated(self, number: int, i: int) -> Tensor:
        """(r_i, c) without what reaches the model through others."""
        return self.alone[number - self.first][i]


def swings(
    leg: Leg,
    directions: Sequence[Mapping[int, float]],
    rules: Sequence[Rule | None] | None = None,
    weights: Tensor | None = None,
) -> Swings | None:
    """What settings do by moving what is asked; None where it does not move.

    Args:
        leg: Its samples, what they were asked and its mixture.
        directions: By column, dw/dλ by the source's number.
        rules: By source, another pick rule; None: the draws'.
        weights: (C,) of clusters; None for equal ones.
    """
    asked = leg.asked
    if asked is None or not asked.moving:
        return None
    system, num = leg.system, leg.stop - leg.first
    forces, alone = ([system.zeros(len(directions)) for _ in range(num)] for _ in range(2))
    ratios = {}
    for isolated, out in ((False, forces), (True, alone)):
        moved = [asked.moves(slopes, system.mixture, isolated)[leg.first : leg.stop] for slopes in directions]
        for s in sorted(asked.moving):
            rows, weight = leg.bank.sources[s], system.mixture[s]
            name, producer = rows.draw.consumer, rows.draw.producer
            if not weight or rows.mirrored or (isolated and name != producer):
                continue
            assert producer is not None
            shares = [part.get(name, {}).get(producer, {}) for column in moved for part in column]
            ratio = asked.ratios(producer, rows.draw.prompts, shares)
            p = group_weights(rows.draw.clusters, weights)
            ratio = ratio - (ratio @ p)[:, None]
            chance = marginal(rows.draw, p, None if rules is None else rules[s]).view(ratio.shape[1], -1)
            share = (ratio[:, :, None] * chance).flatten(1)
            found = (share.to(rows.loss.dtype) @ rows.loss).double().unflatten(0, (len(directions), num))
            for t in range(num):
                out[t][rows.consumer] -= weight * found[:, t].T
            if not isolated:
                ratios[s] = ratio.unflatten(0, (len(directions), num)).permute(1, 2, 0)
    return Swings(leg.first, forces, alone, ratios)
