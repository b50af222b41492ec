r"""Stable points: Θ* with T(Θ*) = Θ*, equivalently ∇₁L_i(θ*_i; Θ*) = 0 for every model.

Three solvers, one answer object. Convergence is always measured on ‖T(Θ) − Θ‖ of the undamped simultaneous map, so
that a damped or accelerated step cannot look converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import round_map
from crossfeed.errors import NotStableError

Method = Literal["auto", "plain", "anderson", "newton"]
Result = Literal["converged", "budget", "diverged", "oscillating", "non-finite"]


@dataclass(frozen=True)
class StablePoint:
    """What a solver found.

    Attributes:
        theta: (D,) the last, best iterate.
        result: ``converged``, ``budget`` (steps used up while still improving), ``diverged`` (‖Θ‖ grows without
            bound), ``oscillating`` (bounded, not improving), ``non-finite``.
        residual: ‖T(Θ) − Θ‖ / (1 + ‖Θ‖).
        steps: Evaluations of T.
        method: Which solver gave it.
    """

    theta: Tensor
    result: Result
    residual: float
    steps: int
    method: str

    def require(self) -> Tensor:
        """Θ*, or an error that says why there is none.

        Raises:
            NotStableError: when the solver did not converge.
        """
        if self.result != "converged":
            raise NotStableError(
                f"no stable point: the {self.method} solver ended '{self.result}' after {self.steps} rounds with "
                f"residual {self.residual:.2g}; derivatives exist at a stable point only. Add real data or a ridge, "
                "or start elsewhere"
            )
        return self.theta


def solve(
    program: Program,
    start: Tensor | None = None,
    method: Method = "auto",
    tolerance: float = 1e-12,
    max_steps: int = 2000,
) -> StablePoint:
    """A stable point near where retraining from ``start`` leads.

    ``auto`` iterates twelve plain rounds to come near, then Newton, then Anderson, then plain rounds to the end of
    the budget; the first that converges is polished by one more Newton step.

    Args:
        program: Compiled ecosystem with unbatched settings.
        start: (D,); the program's start by default.
        method: Solver.
        tolerance: On ‖T(Θ) − Θ‖ / (1 + ‖Θ‖).
        max_steps: Budget of evaluations of T for each solver.
    """
    theta = program.start if start is None else start
    if method == "plain":
        return plain(program, theta, tolerance, max_steps)
    if method == "anderson":
        return anderson(program, theta, tolerance, max_steps)
    if method == "newton":
        return newton(program, theta, tolerance)
    near = plain(program, theta, tolerance, 12)
    begin = near.theta if bool(torch.isfinite(near.theta).all()) else theta
    tried = []
    attempts: list[Callable[[], StablePoint]] = [
        lambda: near,
        lambda: newton(program, begin, tolerance, 10),
        lambda: anderson(program, begin, tolerance, min(max_steps, 200)),
        lambda: plain(program, theta, tolerance, max_steps),
    ]
    for attempt in attempts:
        point = attempt()
        if point.result == "converged":
            point = _polished(program, point)
        if point.result == "converged":
            return point
        tried.append(point)
    return replace(min(tried, key=lambda p: p.residual), result=tried[-1].result)


def _polished(program: Program, point: StablePoint) -> StablePoint:
    """One more Newton step, kept when it lowers the residual: the error of Θ* is the residual over 1 − ρ.

    A fit that got stuck leaves parameters where they are and looks converged; the mean gradient tells.
    """
    better = newton(program, point.theta, 0.0, 1)
    if better.residual < point.residual:
        point = replace(point, theta=better.theta, residual=better.residual)
    gap = float(program.gradient(point.theta).norm())
    size = 1 + sum(float(m.norm()) for m in program.moments(point.theta))
    return point if gap <= 1e-6 * size else replace(point, result="budget", residual=gap / size)


def plain(program: Program, theta: Tensor, tolerance: float = 1e-12, max_steps: int = 2000) -> StablePoint:
    """Repeated retraining, Θ ← T(Θ)."""
    lengths: list[float] = []
    bound, residual, corner = _bound(theta), np.inf, theta
    for step in range(1, max_steps + 1):
        new = _retrained(program, theta)
        if not bool(torch.isfinite(new).all()):
            return StablePoint(theta, "non-finite", np.inf, step, "plain")
        if step == max_steps - max(max_steps // 4, 4):
            corner = theta
        lengths.append(float((new - theta).norm()))
        residual = _residual(new, theta)
        theta = new
        if residual <= tolerance:
            residual = _residual(_retrained(program, theta), theta)
            if residual <= tolerance:
                return StablePoint(theta, "converged", residual, step + 1, "plain")
        if float(theta.norm()) > bound:
            return StablePoint(theta, "diverged", residual, step, "plain")
    tail = lengths[-max(max_steps // 4, 4) - 1 :]
    return StablePoint(theta, _verdict(tail, float((theta - corner).norm())), residual, max_steps, "plain")


def _verdict(lengths: list[float], way: float) -> Result:
    """What steps of these lengths do that end ``way`` from where they began.

    Steps that shrink are ``budget``; steps that grow or lead away, ``diverged``; steps that lead back, ``oscillating``.
    """
    if len(lengths) < 4 or lengths[-1] < 0.9 * lengths[0]:
        return "budget"
    return "diverged" if way > 0.5 * sum(lengths) or lengths[-1] > 1.5 * lengths[0] else "oscillating"


def _retrained(program: Program, theta: Tensor) -> Tensor:
    """T(Θ); NaN where a factorisation fails, so that no solver ends in an exception."""
    try:
        return round_map(program, theta)
    except LinAlgError:
        return torch.full_like(theta, torch.nan)


def anderson(
    program: Program, theta: Tensor, tolerance: float = 1e-12, max_steps: int = 200, memory: int = 8
) -> StablePoint:
    """Anderson acceleration (type II) of repeated retraining.

    Reference: Walker and Ni 2011, Anderson acceleration for fixed-point iterations.
    """
    points: list[Tensor] = []
    steps: list[Tensor] = []
    best, best_residual, bound = theta, np.inf, _bound(theta)
    for number in range(1, max_steps + 1):
        new = _retrained(program, theta)
        if not bool(torch.isfinite(new).all()):
            return StablePoint(best, "non-finite", best_residual, number, "anderson")
        residual = _residual(new, theta)
        if float(theta.norm()) > bound:
            return StablePoint(best, "diverged", best_residual, number, "anderson")
        if residual < best_residual:
            best, best_residual = theta, residual
        if residual <= tolerance:
            return StablePoint(theta, "converged", residual, number, "anderson")
        if number > 30 and residual > 1e6 * best_residual:
            return StablePoint(best, "diverged", best_residual, number, "anderson")
        points, steps = [*points, new][-memory - 1 :], [*steps, new - theta][-memory - 1 :]
        if len(points) == 1:
            theta = new
            continue
        differences = torch.stack([b - a for a, b in pairwise(steps)], -1)
        moves = torch.stack([b - a for a, b in pairwise(points)], -1)
        gamma = torch.linalg.lstsq(differences, steps[-1][:, None], driver="gelsd").solution
        theta = new - (moves @ gamma)[:, 0]
    return StablePoint(best, "budget", best_residual, max_steps, "anderson")


def newton(program: Program, theta: Tensor, tolerance: float = 1e-12, max_steps: int = 30) -> StablePoint:
    """Newton–Krylov on T(Θ) − Θ = 0 with I − G = H⁻¹D; a step that does not help is halved, or a plain round."""
    new = _retrained(program, theta)
    residual = _residual(new, theta)
    evaluations, bound = 1, _bound(theta)
    for _ in range(max_steps):
        if residual <= tolerance:
            return StablePoint(theta, "converged", residual, evaluations, "newton")
        if not bool(torch.isfinite(new).all()):
            return StablePoint(theta, "non-finite", np.inf, evaluations, "newton")
        # (I − G) δ = T(Θ) − Θ, or D δ = −F
        try:
            lin = linearise(program, theta)
            step = lin.solve(-program.gradient(theta)[:, None]).value[:, 0]
        except (LinAlgError, NotStableError):
            return StablePoint(theta, "non-finite", residual, evaluations, "newton")
        if not bool(torch.isfinite(step).all()):
            return StablePoint(theta, "non-finite", residual, evaluations, "newton")
        trials = [theta + 0.5**k * step for k in range(14)] + [new]
        accepted = False
        for trial in trials:
            mapped = _retrained(program, trial)
            evaluations += 1
            size = _residual(mapped, trial)
            if np.isfinite(size) and size < residual and float(trial.norm()) <= bound:
                theta, new, residual, accepted = trial, mapped, size, True
                break
        if not accepted:
            break
        # a second step with the same D costs little and makes a pair converge with order three (Shamanskii)
        trial = theta - lin.solve(program.gradient(theta)[:, None]).value[:, 0]
        if residual > tolerance and bool(torch.isfinite(trial).all()) and float(trial.norm()) <= bound:
            mapped = _retrained(program, trial)
            evaluations += 1
            if (size := _residual(mapped, trial)) < residual:
                theta, new, residual = trial, mapped, size
    result: Result = "converged" if residual <= tolerance else "budget"
    return StablePoint(theta, result, residual, evaluations, "newton")


def _bound(start: Tensor) -> float:
    """‖Θ‖ beyond which a solver has run away: far out, the relative residual of any drift is small."""
    return 1e8 * (1 + float(start.norm()))


def _residual(new: Tensor, theta: Tensor) -> float:
    return float((new - theta).norm() / (1 + theta.norm()))


def distinct_points(
    program: Program, starts: int, seed: int, spread: float = 1.0, tolerance: float = 1e-12
) -> tuple[list[StablePoint], int]:
    """Stable points from several random starts, without repeats, and how many starts ended in none.

    Starts are N(Θ_0, (spread · scale)²), scale the root mean square of Θ_0 or 1 if that is larger.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    scale = spread * max(1.0, float(program.start.square().mean().sqrt()))
    found: list[StablePoint] = []
    failed = 0
    for _ in range(starts):
        noise = torch.from_numpy(rng.standard_normal(program.num_params))
        point = solve(program, program.start + scale * noise, tolerance=tolerance, max_steps=300)
        if point.result != "converged":
            failed += 1
        elif all(float((point.theta - p.theta).norm()) > 1e-6 * (1 + float(p.theta.norm())) for p in found):
            found.append(point)
    return found, failed
