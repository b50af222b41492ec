r"""What k steps of a model's own optimiser make of a constant force, when the loss is quadratic.

In a round the samples are fixed, so a model that is off by x and whose mean gradient is off by h moves to

    x′ = x − Q (H x + h),      Q = f(H),      f(λ) = (1 − (1 − ηλ)^k)/λ  for plain gradient steps of size η,

H the curvature of its loss. For momentum and AdamW, f follows the same recursion for one eigenvalue at a time. AdamW divides every
gradient by √v, which minibatch noise dominates: v = mean² + variance/batch, a constant to first order. So parameters
are measured in units of v^¼ (:func:`adam_scale`) in which its steps are plain ones. Clipping by norm shortens steps by
the mean of min(1, limit/‖g‖) (:func:`clip_factor`). Where a quadratic's steps would diverge (ηλ > 2), networks do not: they
settle where their curvature lets them, at the edge of stability (Cohen et al. 2021), and such directions count as
trained to the end, f = 1/λ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.networks.training import learning_rate

ADAM_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a round.

    Attributes:
        training: The model's training; None: exact retraining, Q = H⁻¹.
        first_round: Number of the loop's round that the horizon's first round is; for learning rates that decay.
        shorten: Factor on every step, for clipping.
        ridge: Of exact retraining: the model's own, which weighs (ridge/2)‖θ‖² in its loss.
    """

    training: Training | None
    first_round: int = 1
    shorten: float = 1.0
    ridge: float = 0.0

    @property
    def decay(self) -> float:
        """What weight decay, or the model's own ridge, adds to every eigenvalue of the curvature."""
        return self.ridge if self.training is None else self.training.weight_decay

    @property
    def changes(self) -> bool:
        """Whether rounds differ: the learning rate decays from some round on."""
        return self.training is not None and self.training.decay_from is not None

    @property
    def largest_rate(self) -> float:
        """The largest learning rate of a step; 0 for exact retraining."""
        return 0.0 if self.training is None else max(self._rates(0))

    def respond(self, curvature: Tensor, round: int) -> Tensor:
        """f(λ) for eigenvalues (r,) of the curvature, weight decay included, in round ``round`` of the horizon (from 0).

        Example:
            >>> plain = Steps(Training(steps=3, optimizer="sgd", learning_rate=0.1, gradient_clip=None))
            >>> f = plain.respond(torch.tensor([2.0]), 0)
            >>> round(float(f), 6), round((1 - 0.8**3) / 2, 6)
            (0.244, 0.244)
        """
        if self.training is None:
            return 1 / curvature
        found = _recursion(curvature, self.training, self._rates(round))
        return torch.where(_overshot(curvature, found), 1 / curvature, found)

    def beyond(self, curvature: Tensor, round: int) -> Tensor:
        """(r,) bool: where a round's steps would end farther from the minimum than they began, and count as trained to the end.

        For plain steps that is ηλ > 2; momentum and averages of gradients move the edge.
        """
        if self.training is None:
            return torch.zeros_like(curvature, dtype=torch.bool)
        return _overshot(curvature, _recursion(curvature, self.training, self._rates(round)))

    def _rates(self, round: int) -> list[float]:
        training = self.training
        assert training is not None
        number = self.first_round + round if training.decay_from is not None else 1
        return [self.shorten * learning_rate(training, number, step) for step in range(training.steps)]


def _overshot(curvature: Tensor, found: Tensor) -> Tensor:
    """Steps that went to infinity, or to NaN, did so too; where the curvature is negative by rounding, its inverse is no answer."""
    return ~((1 - curvature * found).abs() <= 1) & (curvature > 0)


def _recursion(curvature: Tensor, training: Training, rates: list[float]) -> Tensor:
    adam = training.optimizer == "adamw"
    keep = training.betas[0] if adam else training.momentum
    x, velocity = torch.zeros_like(curvature), torch.zeros_like(curvature)
    for step, rate in enumerate(rates):
        gradient = curvature * x - 1
        if adam:
            velocity = keep * velocity + (1 - keep) * gradient
            x = x - rate * velocity / (1 - keep ** (step + 1))
        else:
            velocity = keep * velocity + gradient
            x = x - rate * velocity
    return x


def adam_scale(mean: Tensor, second: Tensor, samples_a_step: int) -> Tensor:
    """v^(−1/4) (d,): multiply gradients by it, and AdamW's steps become plain ones.

    Args:
        mean: (d,) mean gradient.
        second: (d,) mean of squared per-sample gradients.
        samples_a_step: Samples of one step, batch size times accumulation.
    """
    v = mean.square() + (second - mean.square()).clamp_min(0) / samples_a_step
    return (v.sqrt() + ADAM_EPS).rsqrt()


def clip_factor(limit: float | None, mean_square: float, second: float, samples_a_step: int) -> float:
    """About E[min(1, limit/‖g‖)] of a step's gradient g, from E‖g‖² = ‖mean‖² + variance/samples; 1 without a limit.

    Args:
        limit: Largest norm.
        mean_square: ‖E g‖².
        second: E‖g‖² of single samples.
        samples_a_step: Samples of one step.
    """
    if limit is None:
        return 1.0
    norm = math.sqrt(mean_square + max(0.0, second - mean_square) / samples_a_step)
    return 1.0 if norm <= limit else limit / norm


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A symmetric matrix H (r, r) by its eigenvalues and eigenvectors, for functions of it."""

    matrix: Tensor

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    @property
    def values(self) -> Tensor:
        """(r,) eigenvalues, ascending."""
        return self._parts[0]

    @property
    def vectors(self) -> Tensor:
        """(r, r) eigenvectors, one a column."""
        return self._parts[1]

    def apply(self, f: Tensor, b: Tensor) -> Tensor:
        """Σ_a f_a u_a u_aᵀ b for f (r,) on the eigenvalues and b (r, c)."""
        _, vectors = self._parts
        out: Tensor = vectors @ (f[:, None] * (vectors.T @ b))
        return out
