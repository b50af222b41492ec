r"""How fast products of partial updates grow: the spectral core of the certificates.

One round updates blocks of coordinates one after another. With G the Jacobian of updating everything at once, updating
block b alone is P_b = I − E_b(I − G): rows b of G, identity elsewhere. A round is the product of its P_b, a cycle the
product of its rounds, and a disturbance grows by ρ(cycle)^{1/rounds} a round. Rounds in random order have no cycle;
theirs is the top Lyapunov exponent of a product of random matrices.

Coordinates that do not feed back on each other are taken apart first (strongly connected components of G): every P_b is
block triangular in them, so ρ is the largest over the components, and chains without feedback are exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

from crossfeed.describe import schema
from crossfeed.dynamics.rounds import cycle_length, steps_of_round

DENSE_LIMIT = 1500
RESIDUAL = 1e-6
BATCHES = 20
Steps = list[tuple[np.ndarray, scipy.sparse.csr_array]]


@dataclass(frozen=True)
class Growth:
    """Growth of a disturbance.

    Attributes:
        radius: Factor per round.
        cycle: Rounds after which the order repeats; 1 for random orders.
        leading: The dominant eigenvalue of a cycle (of each conjugate pair the one above the real axis); None where
            only its size was estimated.
        method: How it was found: ``components`` (read off), ``dense`` eigenvalues, ``arnoldi`` (residual checked),
            ``power`` (an estimate) or ``random product`` (an estimate).
        standard_error: Of ``radius``, for random products.
    """

    radius: float
    cycle: int
    leading: complex | None
    method: str
    standard_error: float | None = None

    @property
    def estimated(self) -> bool:
        """Whether the number comes without a check."""
        return self.method in ("power", "random product")


def growth(
    jacobian: scipy.sparse.csr_array,
    order: schema.Order,
    names: Sequence[str],
    blocks: Sequence[np.ndarray],
    seed: int = 0,
    dense_limit: int = DENSE_LIMIT,
) -> Growth:
    """Growth per round of a disturbance in any update order.

    Args:
        jacobian: G (D, D), of one simultaneous update.
        order: Update order.
        names: Models.
        blocks: By model, its coordinates.
        seed: Of start vectors.
        dense_limit: Components up to this size by dense eigenvalues, larger ones by Arnoldi.

    Example:
        Two models that copy half of each other. At once: ρ = 1/2. One after the other: the second sees the first's
        news, and the pair shrinks by 1/4 a round.

        >>> half = scipy.sparse.csr_array([[0.0, 0.5], [0.5, 0.0]])
        >>> apart = [np.array([0]), np.array([1])]
        >>> round(growth(half, schema.Simultaneous(), ["p", "q"], apart).radius, 12)
        0.5
        >>> round(growth(half, schema.Sequential(), ["p", "q"], apart).radius, 12)
        0.25
    """
    matrix = scipy.sparse.csr_array(jacobian)
    matrix.eliminate_zeros()
    if isinstance(order, schema.RandomOrder):
        return _random_product(matrix, order, names, blocks, seed)
    cycle = cycle_length(order)
    sequence = [
        np.concatenate([blocks[i] for i in step]) for r in range(cycle) for step in steps_of_round(order, names, r)
    ]
    best, leading, method = 0.0, complex(0.0), "components"
    count, label = connected_components(matrix, directed=True, connection="strong")
    sizes = np.bincount(label, minlength=count)
    alone = sizes[label] == 1
    if alone.any():
        updates = np.bincount(np.concatenate(sequence), minlength=len(label))
        value = matrix.diagonal() ** updates
        at = int(np.argmax(np.abs(np.where(alone, value, 0))))
        best, leading = abs(float(value[at])), complex(value[at])
    for component in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(label == component)
        inside = matrix[members][:, members]
        place = np.full(len(label), -1)
        place[members] = np.arange(len(members))
        rows = [place[s][place[s] >= 0] for s in sequence]
        size, eigenvalue, how = _leading(inside, [r for r in rows if len(r)], seed, dense_limit)
        if size > best or method == "components":
            method = how
        if size > best:
            best, leading = size, complex(np.nan) if eigenvalue is None else eigenvalue
    return Growth(float(best) ** (1 / cycle), cycle, None if np.isnan(leading) else leading, method)


def _leading(
    matrix: scipy.sparse.csr_array, rows: list[np.ndarray], seed: int, dense_limit: int
) -> tuple[float, complex | None, str]:
    """Spectral radius of a product of partial updates, its eigenvalue, and how it was found."""
    size = matrix.shape[0]
    if size <= dense_limit:
        dense, product = matrix.toarray(), np.eye(size)
        for r in rows:
            product[r] = dense[r] @ product
        values = np.linalg.eigvals(product)
        top = values[np.argmax(np.abs(values) + 1e-12 * (values.imag > 0))]
        return float(abs(top)), complex(top), "dense"
    steps: Steps = [(r, matrix[r]) for r in rows]
    rng = np.random.default_rng(np.random.SeedSequence([seed, size]))
    start = rng.standard_normal(size)
    operator = LinearOperator((size, size), matvec=lambda x: _apply(steps, x), dtype=np.float64)
    try:
        values, vectors = eigs(operator, k=6, v0=start, ncv=min(size, 60), tol=1e-10, maxiter=300)
    except ArpackNoConvergence as partial:
        values, vectors = partial.eigenvalues, partial.eigenvectors
    except ArpackError:
        values, vectors = np.zeros(0), np.zeros((size, 0))
    if len(values):
        at = int(np.argmax(np.abs(values) + 1e-12 * (values.imag > 0)))
        vector, value = vectors[:, at], values[at]
        image = _apply(steps, vector.real) + 1j * _apply(steps, vector.imag)
        if np.linalg.norm(image - value * vector) <= RESIDUAL * max(abs(value), 1e-12):
            return float(abs(value)), complex(value), "arnoldi"
    return _power(steps, start), None, "power"


def _apply(steps: Steps, x: np.ndarray) -> np.ndarray:
    x = np.array(x, dtype=np.float64).reshape(-1)
    for rows, part in steps:
        x[rows] = part @ x
    return x


def _power(steps: Steps, x: np.ndarray, rounds: int = 400) -> float:
    """Geometric mean growth over the second half of ``rounds`` products; averages out rotation."""
    logs = []
    x = x / np.linalg.norm(x)
    for _ in range(rounds):
        x = _apply(steps, x)
        norm = float(np.linalg.norm(x))
        if norm < 1e-280:
            return 0.0
        logs.append(np.log(norm))
        x = x / norm
    return float(np.exp(np.mean(logs[rounds // 2 :])))


def _random_product(
    matrix: scipy.sparse.csr_array,
    order: schema.RandomOrder,
    names: Sequence[str],
    blocks: Sequence[np.ndarray],
    seed: int,
) -> Growth:
    """Exp of the top Lyapunov exponent along the order's own schedule, with batch means for its standard error."""
    parts = [matrix[b] for b in blocks]
    rounds = int(np.clip(100_000 // max(len(names), 1), 200, 4000)) // BATCHES * BATCHES
    x = np.random.default_rng(np.random.SeedSequence([seed, len(names), 1])).standard_normal(matrix.shape[0])
    logs = np.zeros(rounds)
    burn = rounds // 10
    for number in range(burn + rounds):
        for (i,) in steps_of_round(order, names, number):
            x[blocks[i]] = parts[i] @ x
        norm = float(np.linalg.norm(x))
        if norm < 1e-280:
            return Growth(0.0, 1, None, "random product", 0.0)
        x = x / norm
        if number >= burn:
            logs[number - burn] = np.log(norm)
    means = logs.reshape(BATCHES, -1).mean(1)
    rate = float(np.exp(means.mean()))
    return Growth(rate, 1, None, "random product", rate * float(means.std(ddof=1)) / BATCHES**0.5)
