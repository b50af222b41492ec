r"""A horizon in legs: gradients taken at several places of the loop's predicted course, each serving the rounds around it.

A derivative along R rounds is that of the rounds' own states, Θ(t), and where models are still moving these are not the present ones.
So the blocks of D and the pushes are taken at K places Θ(t_k) of the course, t_k = 0 … R, and the rounds nearest to t_k use
those: the linearised loop of :mod:`crossfeed.estimate.horizon` with piecewise constant blocks, whose error is of second order in
R/(K − 1). ∇J is taken at the last place, where the outcome is. Ours. At a stable point all places are one.

Models that are kept in their samples' span stay in one leg: n samples cannot tell a course in more than n dimensions. AdamW's units
move with the models, so states change units from one leg to the next (:func:`~crossfeed.estimate.coordinates.units`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from crossfeed.estimate.bank import Bank
from crossfeed.estimate.composition import Asked
from crossfeed.estimate.coordinates import units
from crossfeed.estimate.horizon import Adjoint, Path, Rounds, Swing, adjoint, forward
from crossfeed.estimate.steps import Steps
from crossfeed.estimate.system import System

PLACES = 4
"""Places of the predicted course at which gradients are taken."""


@dataclass(frozen=True)
class Horizon:
    """How far ahead to look.

    Attributes:
        rounds: Who updates when, round by round; None: the stable point.
        steps: By model, how a round trains it.
        ridge: By model, added to the curvature.
        fisher: Share of the empirical Fisher matrix in the curvature of networks.
    """

    rounds: Rounds | None
    steps: Sequence[Steps]
    ridge: Sequence[float]
    fisher: float = 0.0


@dataclass(frozen=True, eq=False)
class Leg:
    """Rounds of a horizon, and the gradients that serve them.

    Attributes:
        bank: Gradients at one place of the course. Only the last leg's evaluations count.
        horizon: The whole.
        system: The blocks.
        first: Number of its first round.
        stop: Number of the first round that is not its own.
        asked: What the samples' outputs answer; None: it does not move with the mixtures.
    """

    bank: Bank
    horizon: Horizon
    system: System
    first: int
    stop: int
    asked: Asked | None = None

    @property
    def rounds(self) -> Rounds:
        """Its own rounds."""
        assert self.horizon.rounds is not None
        return self.horizon.rounds[self.first : self.stop]

    @cached_property
    def drift(self) -> list[Tensor]:
        """By model, −F_i (r_i, 1) with what is noise taken out.

        Along eigenvector a of the curvature, F_a has a variance of about v_a = Σ_s w_s² (C_s)_aa/n_s from finitely many samples
        (gradients vary as the curvature, where the loss is a log-likelihood), and is multiplied by (1 − v_a/F_a²)₊: positive-part
        shrinkage, James and Stein 1961, one direction at a time. Without it, noise in flat directions, in which nothing holds a model
        back, would carry it away.
        """
        out, system = [], self.system
        for i, force in enumerate(system.drift):
            noise = torch.zeros(len(force), len(force), dtype=torch.float64)
            for rows, part, weight in zip(self.bank.sources, system.found, system.mixture, strict=True):
                if rows.consumer == i:
                    noise += weight**2 / len(rows.draw.clusters) * part.curvature
            out.append(system.shrink(i, force, noise))
        return out


def places(rounds: int, number: int) -> list[int]:
    """After which rounds gradients are taken, from 0 to ``rounds``, in at most ``number`` places, two rounds apart at least.

    Example:
        >>> places(12, 4), places(3, 4), places(1, 4)
        ([0, 4, 8, 12], [0, 3], [0])
    """
    number = min(number, rounds // 2 + 1)
    return [0] if number < 2 else [round(k * rounds / (number - 1)) for k in range(number)]


def borders(at: Sequence[int], rounds: int) -> list[int]:
    """Where legs begin and end: half-way between places, later ones taking a round that is in the middle.

    Example:
        >>> borders([0, 4, 8, 12], 12)
        [0, 2, 6, 10, 12]
    """
    return [0, *((a + b) // 2 for a, b in pairwise(at)), rounds]


def travel(
    legs: Sequence[Leg],
    pushes: Sequence[Sequence[Tensor]],
    swings: Sequence[Swing | None] | None = None,
    *,
    alone: bool = False,
) -> list[Path]:
    """Follow pushes through all legs from x = 0: the path of each, in its coordinates.

    Args:
        legs: In order.
        pushes: By leg and model, v_i (r_i, c).
        swings: By leg, what pushes besides, by round; None: nothing.
        alone: Without the couplings between different models.
    """
    paths: list[Path] = []
    start: list[Tensor] | None = None
    for k, leg in enumerate(legs):
        if k:
            start = over(legs[k - 1].bank, leg.bank, paths[-1].end)
        system = System.alone(leg.system) if alone else leg.system
        swing = None if swings is None else swings[k]
        paths.append(forward(system, leg.rounds, pushes[k], start, leg.first, swing))
    return paths


def return_(legs: Sequence[Leg], outcomes: Sequence[Tensor]) -> list[Adjoint]:
    """Follow outcomes, ∇J (r_i, e) by model in the last leg's coordinates, backwards through all legs."""
    found: list[Adjoint] = []
    y = list(outcomes)
    for k in reversed(range(len(legs))):
        found.append(adjoint(legs[k].system, legs[k].rounds, y, legs[k].first))
        if k:
            y = over(legs[k - 1].bank, legs[k].bank, found[-1].start)
    return found[::-1]


def total_weights(legs: Sequence[Leg], weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """By model, what all legs together weigh a constant force with, Σ c (r_i, e), in the coordinates of the first.

    Args:
        legs: In order.
        weights: By leg and model, dJ/dv_i (r_i, e) of the leg's own rounds.
    """
    there = legs[0].bank
    parts = [over(leg.bank, there, weight) for leg, weight in zip(legs, weights, strict=True)]
    return [sum(mine, torch.zeros(())) for mine in zip(*parts, strict=True)]


def over(left: Bank, right: Bank, x: Sequence[Tensor]) -> list[Tensor]:
    """States of all models, or adjoints on the way back, between banks whose coordinates are the parameters in the optimiser's units.

    A state in units s is θ/s, and answers to it turn by the transpose, which is the same factor: back is
    ``over(left, right, y)`` too, with the same order of banks.
    """
    factors = [units(a.basis, b.basis) for a, b in zip(left.models, right.models, strict=True)]
    return [part if factor is None else part * factor for part, factor in zip(x, factors, strict=True)]
