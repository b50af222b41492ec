r"""Stable points of many settings at once, and D = ∂F/∂Θ at all of them as one dense stack.

Θ and the settings carry a leading batch dimension through the very functions that serve one ecosystem, so a grid costs a few
batched rounds instead of a solve a point. Each point converges or fails on its own: it leaves the batch when it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import round_map, steps_of_round
from crossfeed.dynamics.stable import Result, solve
from crossfeed.families.base import jacobian

NEAR = 12
MEMORY = 6
PLAIN_STEPS = 400
DOUBLES_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class BatchPoints:
    """What a batched solve found.

    Attributes:
        theta: (B, D) the last, best iterates.
        results: Per point, as in :class:`crossfeed.dynamics.stable.StablePoint`.
        residual: (B,) ‖T(Θ) − Θ‖ / (1 + ‖Θ‖).
        steps: (B,) evaluations of T.
    """

    theta: Tensor
    results: list[Result]
    residual: Tensor
    steps: Tensor


def solve_batch(
    program: Program,
    settings: Tensor,
    start: Tensor | None = None,
    tolerance: float = 1e-12,
    progress: Callable[[int], None] | None = None,
) -> BatchPoints:
    """A stable point for each row of ``settings``, near where retraining from the start leads.

    Twelve plain rounds, then batched Newton, as :func:`crossfeed.dynamics.stable.solve` does for one; points that this
    leaves open are given to that function, which also says how they fail.

    Args:
        program: Compiled ecosystem; its own settings are not used.
        settings: (B, S).
        start: (D,) or (B, D); the program's start by default.
        tolerance: On the residual.
        progress: Called with the number of points done.
    """
    count = len(settings)
    begin = (program.start if start is None else start).expand(count, -1)
    parts = []
    for rows in torch.arange(count).split(points_at_once(program)):
        parts.append(_solve_together(program, settings[rows].contiguous(), begin[rows], tolerance))
        if progress is not None:
            progress(int(rows[-1]) + 1)
    return BatchPoints(
        torch.cat([p.theta for p in parts]),
        [r for p in parts for r in p.results],
        torch.cat([p.residual for p in parts]),
        torch.cat([p.steps for p in parts]),
    )


def points_at_once(program: Program) -> int:
    """How many settings fit into memory together, by the largest array that a derivative of one round makes."""
    largest = program.num_params**2
    for group in program.source_groups:
        outcomes = getattr(group.kernel.consumer, "num_outcomes", None)
        inputs = getattr(getattr(group.kernel, "inputs", None), "nodes", None)
        stages = len(getattr(group.kernel, "stages", []))
        width = 8 * outcomes * max(stages, 1) * 10 if outcomes else 4000 * stages + 1
        width *= 1 if inputs is None else inputs.shape[-2]
        largest = max(largest, len(group.source) * width)
    return max(1, min(64, DOUBLES_AT_ONCE // largest))


def _solve_together(program: Program, settings: Tensor, start: Tensor, tolerance: float) -> BatchPoints:
    count = len(settings)
    every = program.with_settings(settings)
    theta, steps = start.clone(), torch.full((count,), NEAR)
    for _ in range(NEAR):
        new = round_map(every, theta)
        theta = torch.where(torch.isfinite(new).all(-1, keepdim=True), new, theta)
    theta, residual, steps = _newton(every, theta, steps, tolerance)
    results: list[Result] = ["converged"] * count
    for row in torch.nonzero(~(residual <= tolerance))[:, 0].tolist():
        point = solve(program.with_settings(settings[row]), start[row], tolerance=tolerance, max_steps=PLAIN_STEPS)
        theta[row], residual[row], results[row] = point.theta, point.residual, point.result
        steps[row] += point.steps
    return BatchPoints(theta, results, residual, steps)


def _newton(
    program: Program, theta: Tensor, steps: Tensor, tolerance: float, most: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton on T(Θ) − Θ for every row, halving a row's step until it helps; rows that converged are polished once."""
    residual = _residual(round_map(program, theta), theta)
    steps = steps + 1
    todo = torch.nonzero(torch.isfinite(residual))[:, 0]
    polish = False
    for _ in range(most):
        if not len(todo):
            break
        part = program.with_settings(program.settings[todo].contiguous())
        now = theta[todo]
        step = torch.linalg.solve_ex(dense(part, now), -part.gradient(now)[..., None])[0][..., 0]
        scale = torch.ones(len(todo), 1, dtype=theta.dtype)
        moved = torch.zeros(len(todo), dtype=torch.bool)
        for _ in range(14):
            trial = torch.where(moved[:, None], theta[todo], now + scale * step)
            size = _residual(round_map(part, trial), trial)
            better = ~moved & (size < residual[todo])
            rows = todo[better]
            theta[rows], residual[rows] = trial[better], size[better]
            steps[todo[~moved]] += 1
            moved |= better | (residual[todo] <= tolerance)
            if bool(moved.all()):
                break
            scale = torch.where(moved[:, None], scale, scale / 2)
        done = residual[todo] <= tolerance
        stuck = ~moved
        todo = todo[~stuck & ~done] if polish else todo[~stuck & ~done]
    return theta, residual, steps


def _residual(new: Tensor, theta: Tensor) -> Tensor:
    return (new - theta).norm(dim=-1) / (1 + theta.norm(dim=-1))


@dataclass(frozen=True)
class DenseBlocks:
    """D at a stack of points: (B, D, D), its block diagonal D_ii, the curvature H, and mean gradients by source (B, D)."""

    matrix: Tensor
    diagonal: Tensor
    curvature: Tensor
    mean_gradient: dict[int, Tensor]


def dense(program: Program, theta: Tensor) -> Tensor:
    """D = ∂F/∂Θ at each Θ of a batch, (B, D, D); the settings are a batch of the same length."""
    return blocks(program, theta).matrix


def blocks(program: Program, theta: Tensor) -> DenseBlocks:
    """All blocks of D at a batch of Θ (B, D) with settings (B, S)."""
    batch, size = theta.shape
    matrix, curvature, own = (torch.zeros(batch, size, size, dtype=theta.dtype) for _ in range(3))
    gradients: dict[int, Tensor] = {}
    for group, h in zip(program.model_groups, program.curvature(theta), strict=True):
        for k in range(len(group.members)):
            at = group.theta_index[k]
            curvature[:, at[:, None], at] += h[:, k]
    matrix += curvature
    own += curvature
    for source in program.source_groups:
        rows = program.model_groups[source.group].theta_index[source.row]
        theta_i = theta[:, rows]
        moments = program.source_moments(source, theta, program.settings)
        pushed = source.kernel.consumer.gradient(theta_i, moments)
        for e, s in enumerate(source.source.tolist()):
            gradients[s] = torch.zeros(batch, size, dtype=theta.dtype)
            gradients[s][:, rows[e]] = pushed[:, e]
        if source.theta_index is None:
            continue

        def through(t: Tensor, kernel: object = source.kernel, ti: Tensor = theta_i) -> Tensor:
            out: Tensor = kernel.consumer.gradient(ti, kernel.moments(t, program.settings))  # type: ignore[attr-defined]
            return out

        weighted = jacobian(through, theta[:, source.theta_index]) * program.settings[:, source.weight_slot, None, None]
        for e, s in enumerate(source.source.tolist()):
            i, j = rows[e], source.theta_index[e]
            matrix[:, i[:, None], j] += weighted[:, e]
            if program.sources[s].consumer == program.sources[s].producer:
                own[:, i[:, None], j] += weighted[:, e]
    return DenseBlocks(matrix, own, curvature, gradients)


def round_radius(program: Program, found: DenseBlocks, update: schema.Update) -> Tensor:
    """(B,) spectral radius of one round of the spec's own order and gradient steps; the growth of a small disturbance.

    A cycle's radius is that of the whole cycle, to the power 1/length. A random order has no Jacobian of its own: the
    sequential one in the order of the spec stands for it.
    """
    order = schema.Sequential() if isinstance(update.order, schema.RandomOrder) else update.order
    rounds = len(order.rounds) if isinstance(order, schema.Cycle) else 1
    batch, size = found.matrix.shape[:2]
    eye = torch.eye(size, dtype=found.matrix.dtype)
    if update.steps is None:
        moved = torch.linalg.solve_ex(found.curvature, found.matrix)[0]
    else:
        shrink = torch.linalg.matrix_power(eye - update.steps.size * found.curvature, update.steps.count)
        moved = torch.linalg.solve_ex(found.curvature, (eye - shrink) @ found.matrix)[0]
    total = eye.expand(batch, -1, -1)
    for number in range(rounds):
        for models in steps_of_round(order, program.names, number):
            rows = torch.cat([torch.arange(program.offsets[i], program.offsets[i + 1]) for i in models])
            step = eye.repeat(batch, 1, 1)
            step[:, rows] -= moved[:, rows]
            total = step @ total
    values = torch.linalg.eigvals(torch.nan_to_num(total)).abs().amax(-1)
    return torch.where(torch.isfinite(total).all(-1).all(-1), values ** (1 / rounds), torch.nan)
