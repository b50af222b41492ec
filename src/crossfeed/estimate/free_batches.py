r"""An audit's samples in independent batches, each solved wholly by :mod:`crossfeed.estimate.matrix_free`.

Standard errors take per-sample gradients, which no batch keeps; they come from the batches instead. With I_b the influence matrix from
batch b of m, drawn by its own seed,

    I = mean_b I_b,      SE² = Σ_b (I_b − I)²/(m (m − 1)),      interval I ± t SE,  t Student's with m − 1 degrees of freedom.

All batches together cost the passes of one solve on all samples, and as little memory as one of them. What is not linear in
the samples (H⁻¹ of a curvature from few samples, AdamW's scale, ratios in picks) has a bias of order 1/(samples of a batch), where one
solve on all has 1/m of it; intervals hold the noise, not that bias. Where inputs are texts, every batch is
evaluated on the same prompts, as many as it has room for. Batch means: Schmeiser 1982, here of independent batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.composition import Asked, composed
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.estimator import SHARES, directions_of, most_expansion, rounds_ahead
from crossfeed.estimate.free_influence import Outcomes
from crossfeed.estimate.free_swings import free_swings
from crossfeed.estimate.horizon import LinearLoop, Rounds, Swing, follow
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.pathwise import RewardRates, smooth_rewards
from crossfeed.estimate.points import Point
from crossfeed.estimate.solver import Solver
from crossfeed.estimate.steps import Steps

Advance = Callable[[int], None]

BATCHES = 6
"""m: with fewer, Student's t is wide; with more, each batch has too few samples for its curvature."""
RIDGE = 1e-4
"""On the curvature, as a share of its mean eigenvalue; as for the bank."""
CURVED = 64
"""Most curvature samples of a source and batch."""
KEEP = 4 * 2**30
"""Bytes of curvature rows, of all models, that are kept; beyond, functions of the curvature go by Lanczos."""
TRIED = 6
"""Rounds that are tried for a share of the empirical Fisher matrix."""
KRYLOV = 40
"""Most Lanczos steps there; memory is as many vectors."""
TOLERANCE = 1e-2
"""Of these, on the change over four steps; the error itself is about a tenth of it, far below the sampling error."""
LARGE = 1_000_000
"""Parameters from which on vectors are kept in float32."""
FEW_SHARES = (0.0, 0.2, 0.5)
"""Of the empirical Fisher matrix, tried where models are taken pathwise."""
SHOWN = 4
"""Rounds of the course that are worked out besides the present, where each takes passes through a sampler."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What all batches have in common.

    Attributes:
        eco: The ecosystem.
        point: Its models.
        models: As the estimator sees them.
        pathwise: Models that are taken by their sampler.
        rates: Rewards as functions.
        rounds: Who updates when.
        paths: Settings, by column.
        seed: Of all draws.
    """

    eco: Ecosystem
    point: Point
    models: Mapping[str, Differentiable]
    pathwise: frozenset[str]
    rates: RewardRates
    rounds: Rounds
    paths: list[str]
    seed: int

    @classmethod
    def of(cls, point: Point, pathwise: frozenset[str], rounds: int, paths: Sequence[str], seed: int) -> Plan:
        """The plan for an open ecosystem."""
        eco = point.world.eco
        models = {name: differentiable(network) for name, network in point.networks.items()}
        rates = RewardRates(point.rewards, smooth_rewards(eco))
        return cls(eco, point, models, pathwise, rates, rounds_ahead(eco, rounds, point.round + 1), list(paths), seed)

    @cached_property
    def asked(self) -> Asked:
        """What outputs answer, over the whole horizon."""
        return composed(self.point.world, self.point.prompts, self.rounds, 0, len(self.rounds))

    @property
    def sizes(self) -> list[int]:
        """d_i by model."""
        return [sum(value.numel() for value in model.parameters().values()) for model in self.models.values()]

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors."""
        return torch.float32 if max(self.sizes) > LARGE else torch.float64

    def rows_bytes(self, size: Size) -> int:
        """Most bytes that the curvature's rows of all models take in a batch, those of the empirical Fisher matrix included."""
        part = max(2, size.outputs // BATCHES)
        pairs = zip(self.eco.models.values(), self.sizes, strict=True)
        return sum(len(model.sources) * (min(part, CURVED) + part) * d for model, d in pairs) * self.dtype.itemsize

    def keeps_rows(self, size: Size) -> bool:
        """Whether they are kept."""
        return self.rows_bytes(size) <= KEEP

    @property
    def shown(self) -> list[int]:
        """Rounds after which the course is worked out: all, or few where each takes passes through a sampler."""
        last = len(self.rounds)
        if not self.pathwise:
            return list(range(last + 1))
        return sorted({round(k * last / SHOWN) for k in range(SHOWN + 1)} | {last // 2})

    def draws(self, size: Size, number: int, batch: int) -> Draws:
        """One batch of samples of the models as they are at the moment.

        Args:
            size: Of all batches together.
            number: Of the set of batches: 0 for the pilot's, 1 for the audit's.
            batch: Its number.
        """
        part = Size(max(2, size.outputs // BATCHES), max(2, size.evaluation // BATCHES), size.answers)
        point, seed = self.point, self.seed + 7919 * (number + 2 * batch)
        asked = self.asked.prompts
        return network_draws(point.world, point.networks, point.rewards, asked, part, seed, pathwise=self.pathwise)

    def loop(self, draws: Draws, keep: bool, fisher: float = 0.0) -> MatrixFree:
        """The linearised loop of a batch, with clipping and ridges as the bank has them; ``keep``: the curvature's rows."""
        trainings = [model.train for model in self.eco.models.values()]
        first = self.point.round + 1
        loop = MatrixFree(
            self.models,
            draws,
            [Steps(training, first) for training in trainings],
            [0.0] * len(trainings),
            rates=self.rates,
            pathwise=self.pathwise,
            solver=Solver(self.seed, CURVED, TOLERANCE, KRYLOV, dtype=self.dtype),
        )
        if keep:
            loop.keep_curvature()
        for i, training in enumerate(trainings):
            loop.ridge[i] = RIDGE * loop.mean_eigenvalue(i)
            if training is not None and training.optimizer == "sgd" and training.gradient_clip is not None:
                loop.steps[i] = Steps(training, first, loop.clipping(i, training))
        loop.take_over(fisher)
        return loop


# --- the horizon, round by round ------------------------------------------------------------------------------------


def end_of(
    loop: LinearLoop,
    rounds: Rounds,
    pushes: Sequence[Tensor],
    advance: Advance | None = None,
    swing: Swing | None = None,
) -> list[Tensor]:
    """The states after the last round of :func:`crossfeed.estimate.horizon.follow`."""
    return deque(follow(loop, rounds, pushes, advance, swing=swing), 1)[0][1]


def updates(eco: Ecosystem, rounds: Rounds, pushed: Sequence[set[int]], isolated: bool = False) -> int:
    """How many updates of one column :func:`crossfeed.estimate.horizon.follow` makes: those that anything reaches.

    Args:
        eco: Whose models train whom.
        rounds: Who updates when.
        pushed: By column, the numbers of the models that are pushed.
        isolated: Models reach only themselves.
    """
    makers = [
        {eco.names.index(p) for p in (getattr(s, "producer", None) for s in model.sources if s.weight) if p is not None}
        for model in eco.models.values()
    ]
    total = 0
    for column in pushed:
        reached: set[int] = set()
        for step in (step for steps in rounds for step in steps):
            now = {i for i in step if i in column or i in reached or (not isolated and makers[i] & reached)}
            total += len(now)
            reached = reached | now
    return total


@dataclass
class Grown:
    """How fast a linear recursion grows: ‖x(t+1) − x(t)‖ against the round before, for the column that grows most.

    Increments under a constant push obey δ(t+1) = M δ(t), M a round without push: power iteration that costs nothing.
    """

    factor: float = 0.0
    _before: list[Tensor] = field(default_factory=list)
    _size: Tensor | None = None

    def add(self, x: list[Tensor]) -> None:
        """The state after another round."""
        moved = [now - then for now, then in zip(x, self._before, strict=True)] if self._before else x
        size = torch.stack([part.double().square().sum(0) for part in moved]).sum(0).sqrt()
        if self._size is not None and bool((self._size > 0).any()):
            known = self._size > 0
            self.factor = float((size[known] / self._size[known]).max())
        self._before, self._size = x, size


# --- one batch ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Solved:
    """What one batch gave.

    Attributes:
        values: (E,) J.
        influence: (shown, E, C).
        isolated: (E, C), without couplings between different models; None where it was not asked for.
        course: (shown, E) change of alignment under the batch's own mean gradients; None where it was not asked for.
        half: By model, the change of its parameters (d_i,) half-way along that course; empty where it was not asked for.
        grown: By how much a round multiplied what moved, in the last round.
    """

    values: Tensor
    influence: Tensor
    isolated: Tensor | None
    course: Tensor | None
    half: list[Tensor]
    grown: float


def solve_batch(
    plan: Plan, loop: MatrixFree, *, course: bool, isolated: bool, advance: Advance | None = None
) -> Solved:
    """Follow every setting's push, and the drift, through the horizon.

    Args:
        plan: What all batches have in common.
        loop: The blocks of the batch.
        course: Whether to follow the drift too.
        isolated: Whether to follow the pushes without couplings too.
        advance: Called with the number of columns that were just updated or looked at.
    """
    draws = loop.draws
    outcomes, shown, num = Outcomes(loop), plan.shown, len(plan.paths)
    directions = directions_of(plan.eco, draws.sources, plan.paths)
    pushes = loop.pushes(directions)
    swing = free_swings(loop, plan.asked, [*directions, {}] if course else directions)
    columns = [torch.cat(pair, 1) for pair in zip(pushes, loop.drift(), strict=True)] if course else pushes
    found = [torch.zeros(len(draws.evaluations), columns[0].shape[1], dtype=torch.float64)]
    half: list[Tensor] = []
    grown = Grown()
    for number, (_, x) in enumerate(follow(loop, plan.rounds, columns, advance, swing=swing), 1):
        grown.add(x)
        if course and number == len(plan.rounds) // 2:
            half = [loop.to_parameters(i, part[:, -1]).float().clone() for i, part in enumerate(x)]
        if number in shown:
            found.append(outcomes.along(x))
            if advance is not None:
                advance(looked(plan, found[-1].shape[1]))
    alone = None
    if isolated:
        swing = free_swings(loop, plan.asked, directions, alone=True)
        alone = outcomes.along(end_of(MatrixFree.alone(loop), plan.rounds, pushes, advance, swing))
        if advance is not None:
            advance(looked(plan, num) // max(1, len(plan.eco.names)))
    moved = torch.stack(found)
    return Solved(outcomes.values, moved[..., :num], alone, moved[..., num] if course else None, half, grown.factor)


def looked(plan: Plan, columns: int) -> int:
    """What looking at all evaluations along so many columns counts for, in updates of one column."""
    return columns * sum(len(model.evaluate or [0]) for name, model in plan.eco.models.items() if name in plan.pathwise)


def parts_of(plan: Plan, *, course: bool, isolated: bool) -> int:
    """What :func:`solve_batch` counts in all."""
    own = [{plan.eco.names.index(path.partition(".")[0])} for path in plan.paths]
    everyone = [set(range(len(plan.eco.names)))] if course else []
    total = updates(plan.eco, plan.rounds, own + everyone) + (len(plan.shown) - 1) * looked(plan, len(own + everyone))
    if isolated:
        total += updates(plan.eco, plan.rounds, own, isolated=True)
        total += looked(plan, len(own)) // max(1, len(plan.eco.names))
    return total


def fisher_share(plan: Plan, loop: MatrixFree) -> float:
    """The smallest share of the empirical Fisher matrix at which what moves does not grow from round to round; the loop takes it.

    As :func:`crossfeed.estimate.estimator.not_expanding`, along the very pushes and drift that are followed, all in one column. That
    matrix has the curvature of every single loss gradient, which is what feeds growth along scores; where models are taken
    pathwise, growth comes from mixed derivatives too, against which it may not help: then few shares are tried, and if none
    does, none is taken.
    """
    pushes = loop.pushes(directions_of(plan.eco, loop.draws.sources, plan.paths))
    column = [push.sum(1, keepdim=True) + drift for push, drift in zip(pushes, loop.drift(), strict=True)]
    shares = FEW_SHARES if plan.pathwise else SHARES
    for share in shares:
        loop.take_over(share)
        grown = Grown()
        for _, x in follow(loop, plan.rounds[:TRIED], column):
            grown.add(x)
        if grown.factor <= most_expansion(len(plan.rounds)):
            return share
    share = 0.0 if plan.pathwise else shares[-1]
    loop.take_over(share)
    return share
