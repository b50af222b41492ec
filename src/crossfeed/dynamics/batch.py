r"""Stable points of many settings at once, and D = ∂F/∂Θ at all of them as one dense stack.

Θ and the settings carry a leading batch dimension through the very functions that serve one ecosystem, so a grid costs
some batched rounds instead of a solve a point. Each point converges or fails on its own.
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
from crossfeed.dynamics.stable import _verdict as verdict_of
from crossfeed.families.base import jacobian
from crossfeed.families.finite import FiniteSource

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
NEAR = (12, 24, 60)
"""Plain rounds before each attempt with Newton."""
NEWTON_STEPS = 30
PLAIN_STEPS = 400
TOO_FAR = 1e8
ROUNDING = 1e-10
"""Where Newton stops helping at this residual or below, the rest is rounding of the retraining map itself."""
DENSE_LIMIT = 1500
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

    Twelve plain rounds, then Newton, as :func:`crossfeed.dynamics.stable.solve` does for one; points that this leaves
    open get more plain rounds and Newton again; those still open get plain rounds to the end, which say how they fail.
    An ecosystem too large for dense derivatives is solved point by point.

    Args:
        program: Compiled ecosystem; its own settings are not used.
        settings: (B, S).
        start: (D,) or (B, D); the program's start by default.
        tolerance: On the residual; where Newton stops at rounding, 1e-10 counts as converged.
        progress: Called with the number of points done.
    """
    count = len(settings)
    begin = (program.start if start is None else start).expand(count, -1)
    together = _solve_together if program.num_params <= DENSE_LIMIT else _solve_apart
    parts = []
    for rows in torch.split(torch.arange(count), points_at_once(program)):
        parts.append(together(program, settings[rows].contiguous(), begin[rows], tolerance))
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
    theta, followed, enough = start.clone(), start.clone(), max(tolerance, ROUNDING)
    residual = torch.full((len(settings),), torch.inf, dtype=theta.dtype)
    steps = torch.zeros(len(settings), dtype=torch.long)
    left = torch.arange(len(settings))
    for rounds in NEAR:
        part, now, more = program.with_settings(settings[left].contiguous()), followed[left], steps[left] + rounds
        for _ in range(rounds):
            new = _retrained(part, now)
            now = torch.where(torch.isfinite(new).all(-1, keepdim=True), new, now)
        followed[left] = now
        theta[left], residual[left] = _newton(part, now, more, tolerance)
        steps[left] = more
        left = left[~(residual[left] <= enough)]
        if not len(left):
            break
    results: list[Result] = ["converged"] * len(settings)
    if len(left):
        part = program.with_settings(settings[left].contiguous())
        theta[left], residual[left], found = _plain(part, start[left], tolerance)
        steps[left] += PLAIN_STEPS
        closer = [k for k, result in enumerate(found) if result in ("budget", "oscillating")]
        if closer:
            rows, more = left[closer], torch.zeros(len(closer), dtype=torch.long)
            again = program.with_settings(settings[rows].contiguous())
            theta[rows], residual[rows] = _newton(again, theta[rows], more, tolerance)
            steps[rows] += more
        for row, result in zip(left.tolist(), found, strict=True):
            results[row] = "converged" if bool(residual[row] <= enough) else result
    return BatchPoints(theta, results, residual, steps)


def _solve_apart(program: Program, settings: Tensor, start: Tensor, tolerance: float) -> BatchPoints:
    found = [solve(program.with_settings(s), t, tolerance=tolerance) for s, t in zip(settings, start, strict=True)]
    return BatchPoints(
        torch.stack([p.theta for p in found]),
        [p.result for p in found],
        torch.tensor([p.residual for p in found], dtype=torch.float64),
        torch.tensor([p.steps for p in found]),
    )


def _plain(program: Program, start: Tensor, tolerance: float) -> tuple[Tensor, Tensor, list[Result]]:
    """Plain rounds for every row, with how each ended; rows whose next round is not finite stay where they were."""
    theta, corner = start.clone(), start
    first, count = start.norm(dim=-1), len(start)
    results: list[Result] = ["budget"] * count
    lengths: list[Tensor] = []
    live = torch.ones(count, dtype=torch.bool)
    tail = max(PLAIN_STEPS // 4, 4)
    for step in range(PLAIN_STEPS):
        corner = theta if step == PLAIN_STEPS - tail else corner
        new = _retrained(program, theta)
        finite = torch.isfinite(new).all(-1)
        for row in torch.nonzero(live & ~finite)[:, 0].tolist():
            results[row] = "non-finite"
        live &= finite
        new = torch.where(live[:, None], new, theta)
        lengths.append((new - theta).norm(dim=-1))
        theta = new
        far = live & (theta.norm(dim=-1) > TOO_FAR * (1 + first))
        for row in torch.nonzero(far)[:, 0].tolist():
            results[row] = "diverged"
        live &= ~far
        if not bool((live & (lengths[-1] > tolerance * (1 + theta.norm(dim=-1)))).any()):
            break
    residual = _residual(_retrained(program, theta), theta)
    last = torch.stack(lengths[-tail - 1 :])
    for row in torch.nonzero(live)[:, 0].tolist():
        way = float((theta[row] - corner[row]).norm())
        results[row] = "converged" if bool(residual[row] <= tolerance) else verdict_of(last[:, row].tolist(), way)
    return theta, torch.nan_to_num(residual, nan=torch.inf), results


def _newton(program: Program, theta: Tensor, steps: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Newton on T(Θ) − Θ for every row, halving a row's step until it helps; counts evaluations into ``steps``."""
    theta = theta.clone()
    residual = torch.nan_to_num(_residual(_retrained(program, theta), theta), nan=torch.inf)
    steps += 1
    todo = torch.nonzero(torch.isfinite(residual) & (residual > tolerance))[:, 0]
    for _ in range(NEWTON_STEPS):
        if not len(todo):
            break
        part = program.with_settings(program.settings[todo].contiguous())
        now = theta[todo]
        try:
            step = torch.linalg.solve_ex(blocks(part, now).matrix, -part.gradient(now)[..., None])[0][..., 0]
        except LinAlgError:  # some row has no derivative here; plain rounds go on
            break
        scale = torch.ones(len(todo), 1, dtype=theta.dtype)
        moved = torch.zeros(len(todo), dtype=torch.bool)
        for _ in range(14):
            trial = now + scale * step
            size = _residual(_retrained(part, trial), trial)
            better = ~moved & (size < residual[todo])
            steps[todo[~moved]] += 1
            theta[todo[better]], residual[todo[better]] = trial[better], size[better]
            moved |= better
            if bool((moved | (residual[todo] <= ROUNDING)).all()):
                break
            scale = torch.where(moved[:, None], scale, scale / 2)
        todo = todo[moved & (residual[todo] > tolerance)]
    return theta, residual


def _retrained(program: Program, theta: Tensor) -> Tensor:
    """T(Θ) of every row; NaN for rows where a factorisation fails, which then do not stop the others."""
    try:
        return round_map(program, theta)
    except LinAlgError:
        if len(theta) == 1:
            return torch.full_like(theta, torch.nan)
        rows = [
            _retrained(program.with_settings(program.settings[k : k + 1]), theta[k : k + 1]) for k in range(len(theta))
        ]
        return torch.cat(rows)


def _residual(new: Tensor, theta: Tensor) -> Tensor:
    size: Tensor = (new - theta).norm(dim=-1) / (1 + theta.norm(dim=-1))
    return size


@dataclass(frozen=True)
class DenseBlocks:
    """D at a stack of points, (B, D, D), its block diagonal, the curvature H, and mean gradients by source (B, D)."""

    matrix: Tensor
    diagonal: Tensor
    curvature: Tensor
    mean_gradient: dict[int, Tensor]


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

        derivative = _columns if isinstance(source.kernel, FiniteSource) else jacobian
        weighted = (
            derivative(through, theta[:, source.theta_index]) * program.settings[:, source.weight_slot, None, None]
        )
        for e, s in enumerate(source.source.tolist()):
            i, j = rows[e], source.theta_index[e]
            matrix[:, i[:, None], j] += weighted[:, e]
            if program.sources[s].consumer == program.sources[s].producer:
                own[:, i[:, None], j] += weighted[:, e]
    return DenseBlocks(matrix, own, curvature, gradients)


def _columns(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As :func:`crossfeed.families.base.jacobian`, with the columns as one more leading dimension.

    Pick operators differ from point to point here, and mapping over columns would copy them for each.
    """
    size = x.shape[-1]
    along = torch.eye(size, dtype=x.dtype).reshape(size, *[1] * (x.ndim - 1), size)
    tangent: Tensor = torch.func.jvp(fn, (x.repeat(size, *[1] * x.ndim),), (along.repeat(1, *x.shape[:-1], 1),))[1]
    return tangent.movedim(0, -1)


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
