"""From a spec and its networks as they are now to the influence matrix with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.describe.schema import Ecosystem
from crossfeed.describe.settings import weight_direction
from crossfeed.dynamics.rounds import steps_of_round
from crossfeed.errors import SettingError
from crossfeed.estimate.bank import Bank
from crossfeed.estimate.draws import SourceDraw
from crossfeed.estimate.horizon import Rounds
from crossfeed.estimate.influence import Answer, cluster_effects, solve, solve_legs, standard_errors
from crossfeed.estimate.legs import Horizon, Leg
from crossfeed.estimate.steps import Steps, clip_factor
from crossfeed.estimate.swings import swings
from crossfeed.estimate.system import Moments, System, moments

SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
GROWTH = 3.0
"""Most that anything may be multiplied by while the same blocks serve."""


COURSE_NOISE = 1.55
"""Times as wide as the clusters of its samples say that an estimate in legs spreads: noise in where the models are predicted to be, which
all legs share. Root mean square of the spread over 6 seeds by stated error, 24 entries of 6 small ecosystems of flows
(benchmarks/README.md); not derived."""


def most_expansion(rounds: int) -> float:
    """Most that one round may multiply anything by, where its blocks are followed for so many rounds.

    Example:
        >>> [round(most_expansion(rounds), 2) for rounds in (1, 4, 12)]
        [3.0, 1.32, 1.1]
    """
    return float(GROWTH ** (1 / max(1, rounds)))


def rounds_ahead(eco: Ecosystem, rounds: int, first: int = 1) -> Rounds:
    """Who updates when in ``rounds`` rounds from round ``first`` on, models by number."""
    order = eco.update.order
    return [steps_of_round(order, eco.names, first - 1 + t) for t in range(rounds)]


def directions_of(eco: Ecosystem, draws: Sequence[SourceDraw], paths: Sequence[str]) -> list[dict[int, float]]:
    """d(weight)/d(setting) by number of the source among these, for settings that move weights.

    Raises:
        SettingError: no such setting, or one that moves no weight.
    """
    out = []
    for path in paths:
        slopes = weight_direction(eco, path)
        if slopes is None:
            raise SettingError(f"{path}: found a setting that moves no weight of a mixture; need one that does")
        model = path.partition(".")[0]
        number = {draw.name: s for s, draw in enumerate(draws) if draw.consumer == model}
        out.append({number[name]: slope for name, slope in slopes.items() if slope})
    return out


def curation_paths(eco: Ecosystem) -> list[str]:
    """``NAME.curation`` of every model whose curation ratio can move."""
    out = []
    for name in eco.names:
        try:
            weight_direction(eco, f"{name}.curation")
        except SettingError:
            continue
        out.append(f"{name}.curation")
    return out


def training_steps(eco: Ecosystem, bank: Bank, found: Sequence[Moments], first_round: int = 1) -> list[Steps]:
    """How a round trains each model, clipping included."""
    out = []
    for i, name in enumerate(eco.names):
        training = eco.models[name].train
        if training is None:
            out.append(_closed_form_steps(eco, name))
            continue
        if training.optimizer == "adamw":  # its steps do not know their gradients' size
            out.append(Steps(training, first_round))
            continue
        mean, second = torch.zeros(bank.models[i].basis.size, dtype=torch.float64), 0.0
        for rows, part in zip(bank.sources, found, strict=True):
            if rows.consumer == i:
                mean += rows.draw.weight * part.mean
                second += rows.draw.weight * float(part.curvature.trace())
        samples = training.batch_size * training.accumulate
        factor = clip_factor(training.gradient_clip, float(mean.square().sum()), second, samples)
        out.append(Steps(training, first_round, factor))
    return out


def _closed_form_steps(eco: Ecosystem, name: str) -> Steps:
    """Exact retraining, or the full-batch gradient steps of the spec; with the model's own ridge."""
    own, steps = eco.models[name].ridge, eco.update.steps
    if steps is None:
        return Steps(None, ridge=own)
    plain = Training(steps=steps.count, optimizer="sgd", learning_rate=steps.size, weight_decay=own, gradient_clip=None)
    return Steps(plain)


@dataclass(frozen=True, eq=False)
class Estimate:
    """The influence of settings on alignment, estimated from samples.

    Attributes:
        eco: The ecosystem.
        legs: Gradients, blocks and rounds of every part of the horizon; every what-if comes from them. One where there is one bank.
        paths: Settings, by column.
        directions: How they move the mixtures.
        answers: Point estimates, by leg.
        errors: (E, C) standard errors.
        effects: (clusters, E, C) what each cluster contributes to the error.
    """

    eco: Ecosystem
    legs: list[Leg]
    paths: list[str]
    directions: list[dict[int, float]]
    answers: list[Answer]
    errors: Tensor
    effects: Tensor = field(repr=False)

    @property
    def bank(self) -> Bank:
        """The last leg's gradients."""
        return self.legs[-1].bank

    @property
    def horizon(self) -> Horizon:
        """The horizon as the last leg has it."""
        return self.legs[-1].horizon

    @property
    def answer(self) -> Answer:
        """The last leg's answer."""
        return self.answers[-1]

    @property
    def num_clusters(self) -> int:
        """Clusters that occur in the samples."""
        return occurring(self.effects)


def occurring(effects: Tensor) -> int:
    """How many clusters have effects (clusters, E, C)."""
    return int((effects.abs().sum((1, 2)) > 0).sum())


def estimate(
    eco: Ecosystem,
    bank: Bank,
    *,
    rounds: int | None = None,
    ridge: float | Sequence[float] = 1e-4,
    fisher: float | None = None,
    first_round: int = 1,
    paths: Sequence[str] | None = None,
) -> Estimate:
    """The influence matrix of an ecosystem from its bank.

    Args:
        eco: The ecosystem.
        bank: Gradients at its current parameters.
        rounds: Horizon; None: the stable point of exact retraining.
        ridge: On the curvature of networks, as a share of its mean eigenvalue; by model or one for all. Closed-form models
            get none: their curvature is exact, and their own ``ridge`` of the spec is part of it.
        fisher: Share of the empirical Fisher matrix in the curvature of networks; None: by :func:`fisher_share`.
        first_round: Number of the horizon's first round, for orders and learning rates that depend on it.
        paths: Settings; None: every curation ratio.
    """
    paths = curation_paths(eco) if paths is None else list(paths)
    directions = directions_of(eco, bank.draws, paths)
    horizon, system = prepare(eco, bank, rounds=rounds, ridge=ridge, fisher=fisher, first_round=first_round)
    answer = solve(bank, horizon, directions, system=system)
    return _with_errors(eco, [Leg(bank, horizon, system, 0, len(horizon.rounds or ()))], [answer], paths, directions)


def estimate_legs(eco: Ecosystem, legs: Sequence[Leg]) -> Estimate:
    """The influence matrix of every curation ratio from legs, whose banks hold independent samples of the same sources.

    Args:
        eco: The ecosystem.
        legs: In order; banks hold no evaluations but for the last.
    """
    paths = curation_paths(eco)
    directions = directions_of(eco, legs[-1].bank.draws, paths)
    pushes = [leg.system.pushes(directions) for leg in legs]
    answers = solve_legs(legs, pushes, swings=[swings(leg, directions) for leg in legs])
    return _with_errors(eco, list(legs), answers, paths, directions)


def _with_errors(
    eco: Ecosystem, legs: list[Leg], answers: list[Answer], paths: list[str], directions: list[dict[int, float]]
) -> Estimate:
    num = 1 + max(
        int(rows.draw.clusters.max())
        for leg in legs
        for kind in (leg.bank.sources, leg.bank.evaluations)
        for rows in kind
    )
    effects = sum(
        (cluster_effects(leg.bank, answer, directions, num) for leg, answer in zip(legs, answers, strict=True)),
        torch.zeros(()),
    )
    errors = course_noise(legs) * standard_errors(effects, occurring(effects))
    return Estimate(eco, legs, paths, directions, answers, errors, effects)


def course_noise(legs: Sequence[Leg]) -> float:
    """:data:`COURSE_NOISE`, or 1 where nothing hangs on a predicted course."""
    return COURSE_NOISE if len(legs) > 1 else 1.0


def prepare(
    eco: Ecosystem,
    bank: Bank,
    *,
    rounds: int | None,
    ridge: float | Sequence[float] = 1e-4,
    fisher: float | None = None,
    first_round: int = 1,
    reach: int | None = None,
) -> tuple[Horizon, System]:
    """The horizon and the blocks at equal weights; arguments as for :func:`estimate`; the blocks serve ``reach`` rounds (None: all)."""
    found = [moments(rows) for rows in bank.sources]
    shares = [ridge] * len(bank.models) if isinstance(ridge, float) else list(ridge)
    kinds = [eco.models[name] for name in bank.names]
    ridges = [
        0.0 if kind.train is None else share * mean_eigenvalue(bank, found, i)
        for i, (kind, share) in enumerate(zip(kinds, shares, strict=True))
    ]
    if rounds is None:
        own = [Steps(None, ridge=kind.ridge) for kind in kinds]  # networks have none in the spec
        horizon = Horizon(None, own, ridges, fisher or 0.0)
        return horizon, System(bank, found, own, ridges, fisher=horizon.fisher)
    horizon = Horizon(rounds_ahead(eco, rounds, first_round), training_steps(eco, bank, found, first_round), ridges)
    system = (
        not_expanding(bank, horizon, found, most_expansion(reach or rounds))
        if fisher is None
        else System(bank, found, horizon.steps, ridges, fisher=fisher)
    )
    return replace(horizon, fisher=system.fisher), system


def not_expanding(bank: Bank, horizon: Horizon, found: Sequence[Moments], most: float) -> System:
    """The blocks with the smallest share of the empirical Fisher matrix at which the linearised loop does not expand.

    The Gauss–Newton matrix is the better curvature, but single outliers can push in directions in which it is small, so that from finitely
    many samples the loop seems to explode. In the empirical Fisher matrix of the very samples that push, every push has its
    curvature. So it is mixed in, by as little of :data:`SHARES` as keeps a round from multiplying anything by more than ``most``
    (:func:`most_expansion`); ours.
    """
    for share in SHARES:
        system = System(bank, found, horizon.steps, horizon.ridge, fisher=share)
        if all(part.work_out_fisher is None for part in found) or system.expansion <= most:
            break
    return system


def mean_eigenvalue(bank: Bank, found: Sequence[Moments], i: int) -> float:
    """Trace of model i's curvature over its number of coordinates."""
    total = math.fsum(
        rows.draw.weight * float(part.curvature.trace())
        for rows, part in zip(bank.sources, found, strict=True)
        if rows.consumer == i
    )
    return total / bank.models[i].basis.size
