"""The Gaussian experiment by the library: influence for every t, central differences, blocks, and where signs change.

Pairs of models that have nothing to do with each other are stacked into one ecosystem, ten pairs at a time: larger
stacks would pay for the zeros of their joint matrix, smaller ones for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import solve
from crossfeed.influence.direction import Direction, contributions, cosine, direction
from crossfeed.influence.matrix import Influence, influence
from crossfeed.influence.threshold import threshold
from crossfeed.reproduce.gaussian import CURATION, gaussian_ecosystem

PAIRS_AT_ONCE = 10
STEP = 0.02


def stacks(count: int, size: int = PAIRS_AT_ONCE) -> Iterator[slice]:
    """Slices of at most ``size`` that cover 0, …, count − 1."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class Curves:
    """What the library finds for each t.

    Attributes:
        theorem: (T, 2) ∂J_p/∂λ and ∂J_q/∂λ, λ p's curation ratio, by the influence matrix.
        difference: (T, 2) the same by central differences of stable points solved anew at λ ± 0.02.
        rho_p: (T,) cos(∇J_p, m_p), m_p the push of curation on p.
        rho_q: (T,) cos(∇J_q, what of that push reaches q over the edge p → q).
    """

    theorem: np.ndarray
    difference: np.ndarray
    rho_p: np.ndarray
    rho_q: np.ndarray


def at_strength(t: float | Sequence[float], curation: float = CURATION) -> Influence:
    """The influence at the stable point of the experiment at one t, or of several side by side."""
    eco = gaussian_ecosystem(t, curation)
    program = compile_ecosystem(eco)
    return influence(eco, program, solve(program).require())


def curves(t: np.ndarray, progress: Callable[[int, int], None] | None = None) -> Curves:
    """Influence, central differences and directions for every t.

    Args:
        t: (T,).
        progress: Called with (done, total).
    """
    theorem, difference = np.empty((len(t), 2)), np.empty((len(t), 2))
    rho = np.empty((len(t), 2))
    for part in stacks(len(t)):
        found = at_strength(t[part].tolist())
        pairs = range(found.program.num_models // 2)
        matrix = found.matrix.numpy()
        theorem[part] = [[matrix[2 * k, 2 * k], matrix[2 * k + 1, 2 * k]] for k in pairs]
        difference[part] = _central(found)
        rho[part] = [[direction(found, 2 * k, max_dim=0).rho, _rho_across(found, 2 * k + 1, 2 * k)] for k in pairs]
        if progress:
            progress(part.stop, len(t))
    return Curves(theorem, difference, rho[:, 0], rho[:, 1])


def with_curation(program: Program, curation: float) -> Program:
    """The compiled experiment with every p's λ at another value."""
    values = program.settings.clone()
    for name in program.names[0::2]:
        values[program.slots[f"{name}.sources.curated.weight"]] = curation
        values[program.slots[f"{name}.sources.raw.weight"]] = 1 - curation
    return program.with_settings(values)


def _central(found: Influence, curation: float = CURATION) -> np.ndarray:
    """(pairs, 2) (J(λ + h) − J(λ − h)) / 2h; J is quadratic in λ, so only rounding and residuals are off."""
    values = []
    for share in (curation + STEP, curation - STEP):
        program = with_curation(found.program, share)
        theta = solve(program, found.theta).require()
        values.append(program.alignment(theta)[program.primary].numpy())
    return np.asarray((values[0] - values[1]) / (2 * STEP)).reshape(-1, 2)


def _across(found: Influence, affected: int, intervened: int) -> torch.Tensor:
    """−B_ki push_i: what of a push on one model reaches another over direct edges."""
    own = torch.zeros_like(found.push[:, intervened])
    span = found.program.span(intervened)
    own[span] = found.push[span, intervened]
    return -found.lin.apply(own[:, None])[found.program.span(affected), 0]


def _gradient(found: Influence, model: int) -> torch.Tensor:
    return found.alignment_gradient[found.program.primary[model]][found.program.span(model)]


def _rho_across(found: Influence, affected: int, intervened: int) -> float:
    return cosine(_gradient(found, affected), _across(found, affected, intervened))


@dataclass(frozen=True)
class AtOne:
    """The experiment at one t in detail; blocks are the 12 pairs of coordinates that A turns.

    Attributes:
        theta: (d,) θ*.
        phi: (d,) φ*.
        raw: (2, 12) contributions of the blocks to p's and q's alignment by the push itself, ∇J_p·a and ∇J_q·Aa.
        distorted: (2, 12) the same after the loop has turned the push, ∇J_p·Sa and ∇J_q·ASa; they sum to the
            influences.
        direction: Of p: ρ, the bounds of Corollary 4.7, and by how much the loop turns the push.
        influence: (2,) ∂J_p/∂λ and ∂J_q/∂λ.
    """

    theta: np.ndarray
    phi: np.ndarray
    raw: np.ndarray
    distorted: np.ndarray
    direction: Direction
    influence: np.ndarray


def at_one(t: float, curation: float = CURATION) -> AtOne:
    """Stable point, block contributions and direction at one t; at λ = 0 the stable point is 0, where ∇J = g."""
    found = at_strength(t, curation)
    p, q = found.program.span(0), found.program.span(1)
    blocks = contributions(found, 0, "blocks", 2)
    g = _gradient(found, 1)
    across = [(g * v).reshape(-1, 2).sum(-1).numpy() for v in (_across(found, 1, 0), found.response[q, 0])]
    return AtOne(
        found.theta[p].numpy(),
        found.theta[q].numpy(),
        np.array([[b.raw for b in blocks], across[0]]),
        np.array([[b.distorted for b in blocks], across[1]]),
        direction(found, 0),
        found.matrix[:, 0].numpy(),
    )


def zero_over_strength(low: float, high: float, affected: int = 1) -> float:
    """The t at which p's curation stops helping a model: a root of the influence, solved anew at each t.

    t scales a whole matrix and is no setting of the spec, hence a root over compiled ecosystems instead of
    :func:`crossfeed.influence.threshold.threshold`.

    Args:
        low: A t on one side.
        high: A t on the other.
        affected: 0 for p, 1 for q.
    """
    return float(brentq(lambda t: float(at_strength(float(t)).matrix[affected, 0]), low, high, xtol=1e-13))


def zeros_over_curation(t: float, low: float = 0.01, high: float = 0.99) -> dict[str, list[float]]:
    """The curation ratios beyond which more of it lowers p's and q's alignment, at one t."""
    found = threshold(gaussian_ecosystem(t), "p.curation", low, high, pairs=[(0, 0), (1, 0)], grid=15)
    return {"p": found.roots[0, 0], "q": found.roots[1, 0]}
