r"""The influence matrix without a bank: the loop followed forward for every setting, by passes over samples.

    I[e, c] = dJ_e/dλ_c = ⟨∇J_e, x_c⟩,

as :mod:`crossfeed.estimate.influence` has it, for any model whose likelihood or sampler is at hand. Alignment moves along x by the score
route, ∇J = E[(r − b) s], or pathwise, dJ = mean ṙ with ṙ the reward's change along the sampler's tangent
(:mod:`crossfeed.estimate.pathwise`), for which a reward needs no derivative. Nothing is solved backwards. There are no standard errors
here: those take per-sample gradients; independent draws give them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.bank import EvaluationRows
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.draws import Draws, EvaluationDraw
from crossfeed.estimate.horizon import Path, forward
from crossfeed.estimate.legs import Horizon
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.pathwise import RewardRates
from crossfeed.estimate.solver import Solve, Solver, StableSolution
from crossfeed.estimate.system import advantages, group_weights


@dataclass(frozen=True, eq=False)
class FreeAnswer:
    """The influence matrix at one mixture.

    Attributes:
        matrix: (E, C) dJ_e/dλ_c.
        isolated: (E, C) the same with every coupling between different models dropped.
        push: (E, C) one unit step along the push, ⟨∇J_e, v_c⟩.
        values: (E,) J of every evaluation.
        loop: The blocks.
        pushes: By model, (d_i, C).
        path: Forward; None at the stable point.
        response: By model, x (d_i, C) at the end, in the loop's coordinates.
        result: ``converged``, or ``budget`` if a solve ran out of steps.
        residual: The worst of all solves.
    """

    matrix: Tensor
    isolated: Tensor
    push: Tensor
    values: Tensor
    loop: MatrixFree
    pushes: list[Tensor]
    path: Path | None
    response: list[Tensor]
    result: str
    residual: float


class Outcomes:
    """J of every evaluation and how it moves with the parameters.

    Args:
        loop: The blocks.

    Raises:
        NotAvailableError: a model that is taken pathwise, without start noise or the name of its reward.
    """

    def __init__(self, loop: MatrixFree) -> None:
        self.loop, self.draws = loop, loop.draws.evaluations
        self.values = torch.stack([draw.rewards.double().mean() for draw in self.draws])
        self._gradients: dict[int, Tensor] = {}
        for draw in self.draws:
            if draw.model in loop.pathwise and (draw.noise is None or draw.reward is None):
                raise NotAvailableError(
                    f"models.{draw.model}.evaluate.{draw.name}: found answers without the noise that they were made from, or "
                    f"without their reward's name; draw with `network_draws(…, pathwise={{{draw.model!r}}})`"
                )

    def along(self, x: Sequence[Tensor]) -> Tensor:
        """(E, C) how every J moves along the columns of x_i (d_i, C): a tangent each, or nothing where ∇J is kept."""
        out = torch.zeros(len(self.draws), x[0].shape[1], dtype=torch.float64)
        for e, draw in enumerate(self.draws):
            k = self.loop.names.index(draw.model)
            if draw.model not in self.loop.pathwise or draw.reward in self.loop.rates.smooth:
                out[e] = (self.gradient(e) @ x[k]).cpu().double()
                continue
            for c, column in enumerate(x[k].T):
                if bool(column.any()):
                    out[e, c] = self._moved(k, draw, column)
        return out

    def gradient(self, e: int) -> Tensor:
        """∇J_e (d_k,), by one gradient of every answer; kept.

        Raises:
            NotAvailableError: pathwise, with a reward that was not given as a differentiable function.
        """
        if e not in self._gradients:
            draw = self.draws[e]
            k = self.loop.names.index(draw.model)
            model, num = self.loop.models[k], draw.rewards.numel()
            if draw.model in self.loop.pathwise:
                noise, reward, outputs = _parts(draw)
                slope = self.loop.rates.gradient(reward, draw.all_prompts, outputs)
                found = model.pull(draw.all_prompts, noise, slope / num, evaluating=True)
            else:
                p = group_weights(draw.clusters, None)
                part = advantages(EvaluationRows(draw, k, torch.zeros(0)), p) / num
                found = model.score_gradient(draw.all_prompts, draw.outputs, 1.0, part.flatten())
            self._gradients[e] = found
        return self._gradients[e]

    def _moved(self, k: int, draw: EvaluationDraw, x: Tensor) -> float:
        noise, reward, outputs = _parts(draw)
        tangents = self.loop.models[k].tangent(draw.all_prompts, noise, x, evaluating=True)
        return float(self.loop.rates.along(reward, draw.all_prompts, outputs, tangents).mean())


def _parts(draw: EvaluationDraw) -> tuple[Tensor, str, Tensor]:
    """Noise, reward and outputs of answers that are taken pathwise."""
    assert draw.noise is not None
    assert draw.reward is not None
    assert isinstance(draw.outputs, Tensor)
    return draw.noise, draw.reward, draw.outputs


def solve_matrix_free(
    models: Mapping[str, Differentiable],
    draws: Draws,
    horizon: Horizon,
    directions: Sequence[Mapping[int, float]],
    *,
    rates: RewardRates | None = None,
    mixture: Sequence[float] | None = None,
    pathwise: Collection[str] | None = None,
    solver: Solver | None = None,
    trainings: Mapping[str, Training | None] | None = None,
) -> FreeAnswer:
    """The influence matrix; the counterpart of :func:`crossfeed.estimate.influence.solve`.

    Args:
        models: By name, in the order of the spec.
        draws: Samples at the models' parameters.
        horizon: How far ahead; ridges are absolute (:meth:`MatrixFree.mean_eigenvalue` gives the scale).
        directions: By column, d(weight)/dλ by the source's number in the draws.
        rates: Rewards as functions; where picks or alignment are taken pathwise.
        mixture: Weight of every source; None: the draws'.
        pathwise: Models that are taken by their sampler; None: those without a likelihood.
        solver: Tolerances and budgets.
        trainings: By name, whose AdamW scale the coordinates have; None: those of the horizon's steps.

    Raises:
        NotAvailableError: as :class:`MatrixFree` and :class:`Outcomes` say.
    """
    loop = MatrixFree(
        models,
        draws,
        horizon.steps,
        horizon.ridge,
        mixture,
        rates=rates,
        pathwise=pathwise,
        solver=solver,
        trainings=trainings,
        fisher=horizon.fisher,
    )
    outcomes = Outcomes(loop)
    pushes, alone, path = loop.pushes(directions), MatrixFree.alone(loop), None
    solves: list[Solve | StableSolution] = []
    if horizon.rounds is None:
        found, other = loop.stable(pushes), alone.stable(pushes)
        response, apart, solves = found.value, other.value, [found, other]
    else:
        path = forward(loop, horizon.rounds, pushes)
        response, apart = path.end, forward(alone, horizon.rounds, pushes).end
    solves += loop.solves
    return FreeAnswer(
        outcomes.along(response),
        outcomes.along(apart),
        outcomes.along(pushes),
        outcomes.values,
        loop,
        pushes,
        path,
        response,
        "converged" if all(solve.result == "converged" for solve in solves) else "budget",
        max((solve.residual for solve in solves), default=0.0),
    )
