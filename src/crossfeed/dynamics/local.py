r"""Local and empirical convergence: spectral radii by update order, and the rate a run shows.

Near a stable point the disturbance δ = Θ − Θ* follows the round's Jacobian. Updating model i alone changes

    δ_i ← ((I − QD) δ)_i,    Q_i = H_i⁻¹ (exact minimum),    Q_i = (I − (I − ηH_i)^k) H_i⁻¹ (k gradient steps of size
    η),

with D = ∂F/∂Θ. The loop is locally stable iff the product over a round (a cycle of rounds) has spectral radius < 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.growth import DENSE_LIMIT, growth
from crossfeed.dynamics.linearise import Linearisation
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import cycle_length, population_round

SHOWN_NAMES = 4


@dataclass(frozen=True)
class LocalCertificate:
    """Stability near a stable point in one update order.

    Kind: local. It assumes that the point is a stable point, that the retraining map is differentiable there, and exact
    population data; it says nothing about starts far away. Where ``estimated`` is true the number itself is an
    estimate.

    Attributes:
        order: The order in words.
        radius: Factor by which a round multiplies a small disturbance, in the long run: ρ(cycle)^{1/cycle}.
        cycle: Rounds after which the order repeats.
        stable: Whether ``radius`` < 1.
        rounds_to_halve: ln 2 / −ln radius; 0 when the radius is 0, None when not stable.
        method: See :class:`crossfeed.dynamics.growth.Growth`.
        estimated: Whether ``radius`` is an estimate (random orders; Arnoldi without convergence).
        standard_error: Of ``radius``, for random orders.
        leading: Dominant eigenvalue of a cycle, or None.
    """

    order: str
    radius: float
    cycle: int
    stable: bool
    rounds_to_halve: float | None
    method: str
    estimated: bool
    standard_error: float | None
    leading: complex | None

    @property
    def rate(self) -> float:
        """Same as ``radius``: the factor per round."""
        return self.radius

    @property
    def cycle_radius(self) -> float:
        """ρ of the Jacobian of a whole cycle."""
        return self.radius**self.cycle


def local_radius(
    program: Program,
    lin: Linearisation,
    order: schema.Order,
    steps: schema.GradientSteps | None = None,
    *,
    dense_limit: int = DENSE_LIMIT,
) -> LocalCertificate:
    """Growth per round of a small disturbance of a stable point, in one update order.

    Args:
        program: Compiled ecosystem.
        lin: Its linearisation at the stable point.
        order: Update order.
        steps: Gradient steps a round; None for the exact minimum.
        dense_limit: Components of more parameters than this are left to Arnoldi.

    Raises:
        NotStableError: exact retraining where a curvature H_i is singular.
    """
    blocks = [np.arange(*program.span(i).indices(program.num_params)) for i in range(program.num_models)]
    found = growth(update_jacobian(lin, steps), order, program.names, blocks, dense_limit=dense_limit)
    stable = found.radius < 1
    halve = None if not stable else 0.0 if found.radius == 0 else -math.log(2) / math.log(found.radius)
    return LocalCertificate(
        order_in_words(order, program.names, steps),
        found.radius,
        found.cycle,
        stable,
        halve,
        found.method,
        found.estimated,
        found.standard_error,
        found.leading,
    )


def all_orders(program: Program, lin: Linearisation, update: schema.Update) -> list[LocalCertificate]:
    """The spec's own order first, then simultaneous, sequential as listed and sequential reversed; no order twice."""
    names = program.names
    wanted: list[schema.Order] = [update.order, schema.Simultaneous()]
    if len(names) > 1:
        wanted += [schema.Sequential(models=list(names)), schema.Sequential(models=list(reversed(names)))]
    seen, out = set(), []
    for order in wanted:
        key = _key(order, names)
        if key not in seen:
            seen.add(key)
            out.append(local_radius(program, lin, order, update.steps))
    return out


def update_jacobian(lin: Linearisation, steps: schema.GradientSteps | None = None) -> scipy.sparse.csr_array:
    """I − QD (D, D), the Jacobian of one simultaneous round; rows of a model are those of its update alone."""
    if steps is None:
        return lin.round_jacobian()
    data, row, col = [], [], []

    def place(value: Tensor, rows: Tensor, cols: Tensor) -> None:
        data.append(value.flatten().numpy())
        row.append(rows[:, :, None].expand(value.shape).flatten().numpy())
        col.append(cols[:, None, :].expand(value.shape).flatten().numpy())

    reach = []
    for group, curvature in zip(lin.program.model_groups, lin.curvature, strict=True):
        kept, q = _landweber(curvature, steps)
        reach.append(q)
        place(kept, group.theta_index, group.theta_index)
    for e in lin.edges:
        place(-reach[e.group.group][e.group.row] @ e.value, e.rows, e.cols)
    n = lin.program.num_params
    entries = (np.concatenate(data), (np.concatenate(row), np.concatenate(col)))
    return scipy.sparse.csr_array(scipy.sparse.coo_array(entries, shape=(n, n)))


def _landweber(curvature: Tensor, steps: schema.GradientSteps) -> tuple[Tensor, Tensor]:
    """(I − ηH)^k and Q = η Σ_{m<k} (I − ηH)^m by binary doubling, without inverting H."""
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype).expand(curvature.shape)
    power, total = eye, torch.zeros_like(curvature)
    square, part = eye - steps.size * curvature, eye
    count = steps.count
    while count:
        if count & 1:
            total, power = total + power @ part, power @ square
        square, part, count = square @ square, part + square @ part, count >> 1
    return power, steps.size * total


def _key(order: schema.Order, names: Sequence[str]) -> tuple[object, ...]:
    """Equal for orders that update the same models in the same sequence."""
    if isinstance(order, schema.RandomOrder):
        return ("random", order.probability, order.seed)
    if isinstance(order, schema.Cycle):
        rounds = [[sorted(step) for step in steps] for steps in order.rounds]
    elif isinstance(order, schema.Sequential):
        rounds = [[[name] for name in order.models or names]]
    else:
        rounds = [[sorted(names)]]
    return (repr(rounds),)


def order_in_words(order: schema.Order, names: Sequence[str], steps: schema.GradientSteps | None = None) -> str:
    """An update order in words.

    Example:
        >>> order_in_words(schema.Sequential(), ["p", "q"], schema.GradientSteps(count=3, size=0.1))
        'sequential: p, q; 3 steps of 0.1'
    """
    if isinstance(order, schema.Simultaneous):
        text = "simultaneous"
    elif isinstance(order, schema.Sequential):
        listed = list(order.models or names)
        short = len(listed) <= SHOWN_NAMES
        way = "as listed" if listed == list(names) else "reversed" if listed == list(reversed(names)) else "own order"
        text = f"sequential: {', '.join(listed) if short else way}"
    elif isinstance(order, schema.Cycle):
        text = f"cycle of {len(order.rounds)} round{'s' if len(order.rounds) > 1 else ''}"
    else:
        text = "random order" + (f", each with probability {order.probability:g}" if order.probability < 1 else "")
    if steps is not None:
        text += f"; {steps.count} step{'s' if steps.count > 1 else ''} of {steps.size:g}"
    return text


def observed_rate(
    program: Program, update: schema.Update, theta_start: Tensor, theta_star: Tensor, rounds: int = 400
) -> tuple[float | None, float | None]:
    """Factor per round at which a run on population data comes closer to Θ*, from its tail.

    Kind: empirical, of this one run. Least squares of log ‖Θ^t − Θ*‖ on t, over the part between 1e-3 and 1e-11 of the
    start; where fewer than four rounds lie there, over the second half of all rounds above rounding error. In cycles of
    rounds, each round of the cycle has an intercept of its own.

    Args:
        program: Compiled ecosystem.
        update: Order and gradient steps.
        theta_start: (D,).
        theta_star: (D,) the stable point, to rounding error.
        rounds: Budget; the run stops early at 1e-11.

    Returns:
        (rate, its standard error from the fit's residuals, which takes them for independent); the error is None with
        fewer than three rounds, both are None with fewer than two, for a start at Θ* or a run that leaves the numbers.
    """
    floor = 1e-14 * (1 + float(theta_star.norm()))
    theta, sizes = theta_start, [float((theta_start - theta_star).norm())]
    for number in range(rounds):
        if sizes[-1] <= max(1e-11 * sizes[0], floor):
            break
        theta = population_round(program, theta, update, number)
        sizes.append(float((theta - theta_star).norm()))
        if not math.isfinite(sizes[-1]):
            return None, None
    error = np.array(sizes)
    above = np.flatnonzero(error > max(1e-11 * sizes[0], floor))
    tail = above[error[above] <= 1e-3 * sizes[0]]
    if len(tail) < 4:
        tail = above[len(above) // 2 :] if len(above) > 3 else above
    if len(tail) < 2:
        return None, None
    phase = tail % cycle_length(update.order)  # rounds of a cycle differ: each has its own intercept
    if np.bincount(phase).max() < 2:
        phase = np.zeros_like(tail)
    t, y = _within(tail.astype(np.float64), phase), _within(np.log(error[tail]), phase)
    slope = float(t @ y / (t @ t))
    free = len(tail) - len(np.unique(phase)) - 1
    if free < 1:
        return math.exp(slope), None
    residual = y - slope * t
    return math.exp(slope), math.exp(slope) * math.sqrt(float(residual @ residual) / free / float(t @ t))


def _within(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Differences from the mean of the own group."""
    centred: np.ndarray = x - (np.bincount(group, x) / np.bincount(group).clip(1))[group]
    return centred


def deltas(history: Sequence[Tensor] | Tensor, program: Program) -> Tensor:
    """Δ_t = ‖θ_i^{t+1} − θ_i^t‖ / ‖θ_i^t‖ of every model and round, (N, R).

    Args:
        history: R + 1 states Θ^0, …, Θ^R, (D,) each.
        program: Compiled ecosystem.

    Returns:
        (N, R); NaN where θ_i^t = 0 and the model moves, 0 where it does not move.

    Reference: Zhang, Wei and Zhang 2026, Figure 4 (left), there for all parameters of one model.
    """
    states = torch.stack(list(history))
    out = torch.zeros(program.num_models, len(states) - 1, dtype=states.dtype)
    for i in range(program.num_models):
        block = states[:, program.span(i)]
        move, size = (block[1:] - block[:-1]).norm(dim=-1), block[:-1].norm(dim=-1)
        ratio = move / torch.where(size > 0, size, torch.nan)
        out[i] = torch.where(move == 0, 0.0, ratio)
    return out
