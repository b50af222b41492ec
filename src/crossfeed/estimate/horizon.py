r"""The linearised loop: what a change of the mixtures does in R rounds, and its adjoint.

With x_i the change of θ_i, v_i = −∂F_i/∂λ the push of the setting, a round of the models that update together is

    x_i ← x_i + Q_i (v_i − H_i x_i − Σ_j B_ij x_j),

Q_i = f(H_i) what the model's own optimiser makes of a round (:mod:`crossfeed.estimate.steps`). After R rounds of all models at
once this is x = (I − (I − QD)^R) D⁻¹ v; R → ∞ is the paper's Theorem 4.5, x = D⁻¹ v. The adjoint runs the same rounds backwards:
from y = ∇J it gives c_i, summed over rounds, with dJ/dv_i = c_i for every push at once.

Ours: the finite-horizon form for any order of updates, and its adjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LinearLoop(Protocol):
    """The blocks of D as operators on columns: every x_i is (r_i, c).

    Attributes:
        sizes: r_i by model.
    """

    sizes: list[int]

    def curvature(self, i: int, x: Tensor) -> Tensor:
        """H_i x, ridge and weight decay included."""
        ...

    def coupling(self, i: int, x: Sequence[Tensor]) -> Tensor:
        """Σ_j B_ij x_j, j = i included."""
        ...

    def coupling_transpose(self, i: int, c: Tensor) -> dict[int, Tensor]:
        """B_ijᵀ c by j."""
        ...

    def respond(self, i: int, b: Tensor, round: int) -> Tensor:
        """Q_i b in a round of the horizon, from 0."""
        ...


Rounds = Sequence[Sequence[Sequence[int]]]
"""By round, its steps; a step is a list of models that update at the same time."""

Swing = Callable[[int, int], Tensor]
"""By round of the horizon and model, (r_i, c) what pushes it in that round besides its constant push."""


@dataclass(frozen=True, eq=False)
class Path:
    """What every update of a horizon, or of a part of it, saw and did.

    Attributes:
        updates: (round of the horizon, model) of each update, in order; updates of one step follow each other.
        before: By update, all x_j that it saw.
        force: By update, v_i − H_i x_i − Σ_j B_ij x_j.
        after_rounds: By round, all x_j after it; the first entry is the start.
    """

    updates: list[tuple[int, int]]
    before: list[list[Tensor]]
    force: list[Tensor]
    after_rounds: list[list[Tensor]]

    @property
    def end(self) -> list[Tensor]:
        """All x_j after the last round."""
        return self.after_rounds[-1]


def forward(
    loop: LinearLoop,
    rounds: Rounds,
    pushes: Sequence[Tensor],
    start: Sequence[Tensor] | None = None,
    first: int = 0,
    swing: Swing | None = None,
) -> Path:
    """Follow a constant push, and one that changes from round to round.

    Args:
        loop: The blocks.
        rounds: Who updates when.
        pushes: By model, v_i (r_i, c): one column a setting.
        start: By model, x (r_i, c) before the first of these rounds; None: 0.
        first: Number of the first of these rounds in the horizon.
        swing: What pushes besides, by round.
    """
    path = Path([], [], [], [[torch.zeros_like(v) for v in pushes] if start is None else list(start)])
    for made, x in follow(loop, rounds, pushes, start=start, first=first, swing=swing):
        path.updates.extend((update.round, update.model) for update in made)
        path.before.extend(update.seen for update in made)
        path.force.extend(update.force for update in made)
        path.after_rounds.append(x)
    return path


@dataclass(frozen=True, eq=False)
class Update:
    """One model's update in a round.

    Attributes:
        round: From 0.
        model: Number.
        seen: All x_j that it saw.
        force: v_i − H_i x_i − Σ_j B_ij x_j.
    """

    round: int
    model: int
    seen: list[Tensor]
    force: Tensor


def follow(
    loop: LinearLoop,
    rounds: Rounds,
    pushes: Sequence[Tensor],
    advance: Callable[[int], None] | None = None,
    start: Sequence[Tensor] | None = None,
    first: int = 0,
    swing: Swing | None = None,
) -> Iterator[tuple[list[Update], list[Tensor]]]:
    """The updates of every round of :func:`forward`, and the states x after it; nothing is kept.

    Args:
        loop: The blocks.
        rounds: Who updates when.
        pushes: By model, v_i (r_i, c).
        advance: Called with the number of columns that anything reaches, whenever a model is updated.
        start: As for :func:`forward`.
        first: As for :func:`forward`.
        swing: As for :func:`forward`.
    """
    x = [torch.zeros_like(v) for v in pushes] if start is None else list(start)
    for number, steps in enumerate(rounds, first):
        made = []
        for step in steps:
            seen, new = x, list(x)
            for i in step:
                push = pushes[i] if swing is None else pushes[i] + swing(number, i)
                force = push - loop.curvature(i, seen[i]) - loop.coupling(i, seen)
                made.append(Update(number, i, seen, force))
                new[i] = seen[i] + loop.respond(i, force, number)
                if advance is not None:
                    advance(int(force.any(0).sum()))
            x = new
        yield made, x


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The adjoint of a horizon.

    Attributes:
        updates: As in :class:`Path`.
        answer: By update, c = Q_i y_i (r_i, e): how the outcomes weigh that update's force.
        weight: By update, y_i (r_i, e): how they weigh what the update does.
        total: By model, Σ c over its updates: dJ/dv_i.
        start: By model, dJ/dx_i (r_i, e) before the first round.
    """

    updates: list[tuple[int, int]]
    answer: list[Tensor]
    weight: list[Tensor]
    total: list[Tensor]
    start: list[Tensor]


def adjoint(loop: LinearLoop, rounds: Rounds, outcomes: Sequence[Tensor], first: int = 0) -> Adjoint:
    """Follow the horizon backwards.

    Args:
        loop: The blocks.
        rounds: Who updates when.
        outcomes: By model, ∇J (r_i, e) by the model's x after the last round: one column an outcome.
        first: Number of the first of these rounds in the horizon.
    """
    y = list(outcomes)
    total = [torch.zeros_like(g) for g in outcomes]
    updates: list[tuple[int, int]] = []
    answers: list[Tensor] = []
    weights: list[Tensor] = []
    for number in reversed(range(len(rounds))):
        for step in reversed(rounds[number]):
            seen = y
            found = {i: loop.respond(i, seen[i], first + number) for i in step}
            y = list(seen)
            for i, c in found.items():
                y[i] = y[i] - loop.curvature(i, c)
                total[i] = total[i] + c
                for j, part in loop.coupling_transpose(i, c).items():
                    y[j] = y[j] - part
            for i in reversed(step):
                updates.append((first + number, i))
                answers.append(found[i])
                weights.append(seen[i])
    return Adjoint(updates[::-1], answers[::-1], weights[::-1], total, y)
