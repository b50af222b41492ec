r"""The model protocol: what a family of models must offer, and what it may.

A family here is a *stack* of G models of one kind and size; θ is (..., G, d) and every method broadcasts over the
leading dimensions (seeds, settings). Closed-form families declare the capability ``expectation``: their expected loss
is linear in the mean of a sufficient statistic T(z),

    ∇_θ E_P[ℓ(θ; z)] = gradient(θ, E_P[T(z)]),

so that a whole mixture enters training through one vector of moments. Networks declare ``likelihood`` or ``rsample``
instead, and estimators are chosen from what is declared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

LIKELIHOOD = "likelihood"
RSAMPLE = "rsample"
EXPECTATION = "expectation"


@runtime_checkable
class Family(Protocol):
    """A stack of G models of one kind.

    Attributes:
        num_params: d, length of one model's parameter vector.
        num_moments: M, length of the sufficient statistic.
        capabilities: Subset of ``likelihood`` (log_prob), ``rsample`` (reparameterised samples), ``expectation``
            (gradient of the expected loss from moments, and an exact fit).
    """

    num_params: int
    num_moments: int
    capabilities: frozenset[str]

    def take(self, index: Tensor) -> Self:
        """The stack of the models at ``index``, repeats allowed."""
        ...

    def log_prob(self, theta: Tensor, z: Tensor) -> Tensor:
        """Log-density log q(z; θ) for outcomes z (..., G, n, ·), as (..., G, n)."""
        ...

    def sample(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """``num`` outcomes of each model, (..., G, num, ·)."""
        ...

    def loss(self, theta: Tensor, z: Tensor) -> Tensor:
        """Training loss ℓ(θ; z) per outcome, (..., G, n)."""
        ...

    def statistic(self, z: Tensor) -> Tensor:
        """Sufficient statistic T(z) per outcome, (..., G, n, M)."""
        ...

    def gradient(self, theta: Tensor, moments: Tensor) -> Tensor:
        """∇_θ of the expected loss, (..., G, d), from moments (..., G, M); affine in the moments."""
        ...

    def fit(self, moments: Tensor, ridge: Tensor, start: Tensor) -> Tensor:
        """argmin_θ E[ℓ] + (ridge/2)‖θ‖², (..., G, d)."""
        ...


def jacobian(fn: object, x: Tensor) -> Tensor:
    """Jacobian of a map that acts on each member of a stack alone: (..., G, d) ↦ (..., G, m), as (..., G, m, d).

    One forward-mode pass a parameter serves all members at once.
    """

    def column(v: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(fn, (x,), (v.expand_as(x),))[1]  # type: ignore[arg-type]
        return tangent

    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.vmap(column, out_dims=-1, chunk_size=8 if x.numel() > 10_000 else None)(eye)


def hessian_of(family: Family, theta: Tensor, moments: Tensor) -> Tensor:
    """∇² of the expected loss, (..., G, d, d): the family's own formula where it has one, else by forward mode."""
    own = getattr(family, "hessian", None)
    found: Tensor = own(theta, moments) if own else jacobian(lambda t: family.gradient(t, moments), theta)
    return found


class Kept:
    """What was worked out for the tensor last seen; asked for by identity, and worked out anew if it was written to.

    Tensors that record derivatives are never kept: their graph may be freed.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Any] | None = None

    def get(self, key: Tensor, make: Callable[[], Any]) -> Any:
        """``make()``, or what it gave last time for the same tensor."""
        last = self._last
        if last is not None and last[0] is key and last[1] == key._version:
            return last[2]
        made = make()
        self._last = None if key.requires_grad else (key, key._version, made)
        return made


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; NaN where there is none, so that a broken member of a stack does not stop the others."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed != 0)[..., None, None], torch.nan, factor)


def masked_mean(statistic: Tensor, counts: Tensor) -> Tensor:
    """Mean (..., E, M) of the first ``counts`` (..., E) of n drawn statistics (..., E, n, M)."""
    keep = torch.arange(statistic.shape[-2]) < counts[..., None]
    return (statistic * keep[..., None]).sum(-2) / counts.clamp_min(1)[..., None]


def newton_fit(family: Family, moments: Tensor, ridge: Tensor, start: Tensor, max_steps: int = 100) -> Tensor:
    """Damped Newton on the expected loss; stops at machine precision or when no step helps.

    A step helps when it lowers the expected loss (``family.objective``, where the family has one: convex families then
    always get there) or the norm of its gradient. Runs without recording derivatives. Callers that differentiate use
    the implicit function theorem.
    """
    with torch.no_grad():
        theta = start.expand(*moments.shape[:-1], family.num_params).clone()
        eye = torch.eye(family.num_params, dtype=theta.dtype)

        def residual(t: Tensor) -> Tensor:
            return family.gradient(t, moments) + ridge[..., None] * t

        objective = getattr(family, "objective", None)

        def loss(t: Tensor) -> Tensor:
            if objective is None:
                return torch.zeros(*t.shape[:-1], 1, dtype=t.dtype)
            value: Tensor = objective(t, moments) + 0.5 * ridge * t.square().sum(-1)
            return value[..., None]

        g, value = residual(theta), loss(theta)
        norm = g.norm(dim=-1, keepdim=True)
        for _ in range(max_steps):
            if not bool((norm > 1e-14 * (1 + theta.norm(dim=-1, keepdim=True))).any()):
                break
            hessian = hessian_of(family, theta, moments) + ridge[..., None, None] * eye
            step = _newton_step(hessian, g, bool((ridge > 0).all()))
            step = step * (20.0 / step.norm(dim=-1, keepdim=True).clamp_min(20.0))
            scale = torch.ones_like(norm)
            improved = torch.zeros_like(norm, dtype=torch.bool)
            for _ in range(12):
                trial = theta - scale * step
                g_trial = residual(trial)
                norm_trial = g_trial.norm(dim=-1, keepdim=True)
                value_trial = loss(trial)
                level = value_trial <= value + 1e-14 * (1 + value.abs())
                better = ((value_trial < value) | ((norm_trial < norm) & level)) & ~improved
                theta, value = torch.where(better, trial, theta), torch.where(better, value_trial, value)
                g, norm = torch.where(better, g_trial, g), torch.where(better, norm_trial, norm)
                improved = improved | better
                if bool(improved.all()):
                    break
                scale = torch.where(improved, scale, scale / 2)
            if not bool(improved.any()):
                break
    return theta


def _newton_step(hessian: Tensor, g: Tensor, regular: bool) -> Tensor:
    """H⁻¹g; directions without curvature (collinear features, a distribution on a face) are left where they are."""
    if regular or not bool(torch.isfinite(hessian).all()):
        step, _ = torch.linalg.solve_ex(hessian, g[..., None])
        solved: Tensor = step[..., 0]
        return solved
    values, vectors = torch.linalg.eigh(hessian)
    size = values.abs()
    inverse = torch.where(size > 1e-14 * size.amax(-1, keepdim=True), 1 / values, 0.0)
    return torch.einsum("...ij,...j,...kj,...k->...i", vectors, inverse, vectors, g)
