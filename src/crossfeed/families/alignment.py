r"""Alignment J(θ) = E_x E_{y ∼ q(·|x; θ)}[r(x, y)] in closed form, one stack of models at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.gaussian_picks import nodes_and_weights
from crossfeed.families.linear import Inputs, LinearGaussian


class FiniteAlignment:
    """J = Σ_y q(y; θ) r(y) with reward tables (V, n)."""

    def __init__(self, family: Finite, table: Tensor) -> None:
        self.family, self.table = family, table

    def value(self, theta: Tensor) -> Tensor:
        """(..., V)."""
        return (self.family.log_probs(theta).exp() * self.table).sum(-1)


class VectorAlignment:
    """J = constant + g·m + ½ tr(Q (Σ + mmᵀ)) for N(m, Σ); any other function by quadrature nodes.

    Args:
        family: The models, one an evaluation.
        g: (V, d).
        Q: (V, d, d) or None.
        constant: (V,).
        fn: (m, d) ↦ (m,), instead of g and Q.
    """

    def __init__(
        self,
        family: GaussianMean | GaussianFull,
        g: Tensor,
        Q: Tensor | None,
        constant: Tensor,
        fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.family, self.g, self.Q, self.constant, self.fn = family, g, Q, constant, fn

    def value(self, theta: Tensor) -> Tensor:
        """(..., V)."""
        mean, cov = self.family.mean_cov(theta)
        if self.fn is not None:
            return _expect(self.fn, mean, cov)
        return _quadratic(self.g, self.Q, self.constant, mean, cov)


class LinearAlignment:
    """J over an input domain, for rewards on (x, y): g and Q act on the concatenated vector.

    Args:
        family: The models, one an evaluation.
        inputs: The evaluation domains.
        g: (V, inputs + outputs).
        Q: (V, inputs + outputs, inputs + outputs) or None.
        constant: (V,).
        fn: (m, inputs + outputs) ↦ (m,), instead of g and Q.
    """

    def __init__(
        self,
        family: LinearGaussian,
        inputs: Inputs,
        g: Tensor,
        Q: Tensor | None,
        constant: Tensor,
        fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.family, self.inputs, self.g, self.Q, self.constant, self.fn = family, inputs, g, Q, constant, fn

    def value(self, theta: Tensor) -> Tensor:
        """(..., V)."""
        x = self.inputs.nodes
        y = self.family.answer(theta, x)
        mean = torch.cat([x.expand(*y.shape[:-1], -1), y], -1)
        dim, inputs = mean.shape[-1], x.shape[-1]
        cov = torch.zeros(self.family.noise.shape[0], 1, dim, dim, dtype=y.dtype)
        cov[..., inputs:, inputs:] = self.family.noise[:, None]
        if self.fn is not None:
            z, w = nodes_and_weights(self.family.outputs)
            scale = torch.linalg.cholesky(self.family.noise)
            answers = y[..., None, :] + torch.einsum("vde,ne->vnd", scale, z)[:, None]
            points = torch.cat([x[:, :, None].expand(*answers.shape[:-1], inputs), answers], -1)
            inner = (self.fn(points.reshape(-1, dim)).reshape(points.shape[:-1]) * w).sum(-1)
        else:
            Q = None if self.Q is None else self.Q[:, None]
            inner = _quadratic(self.g[:, None], Q, self.constant[:, None], mean, cov)
        return (inner * self.inputs.weights).sum(-1)


def _quadratic(g: Tensor, Q: Tensor | None, constant: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    value = constant + (g * mean).sum(-1)
    if Q is not None:
        value = value + 0.5 * (torch.einsum("...i,...ij,...j->...", mean, Q, mean) + (Q * cov).sum((-1, -2)))
    return value


def _expect(fn: Callable[[Tensor], Tensor], mean: Tensor, cov: Tensor) -> Tensor:
    z, w = nodes_and_weights(mean.shape[-1])
    y = mean[..., None, :] + torch.einsum("...de,ne->...nd", torch.linalg.cholesky(cov), z)
    return (fn(y.reshape(-1, y.shape[-1])).reshape(y.shape[:-1]) * w).sum(-1)
