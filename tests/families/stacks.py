"""One small stack of every family, with parameters, for the conformance sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.linear import LinearGaussian


@dataclass(frozen=True)
class Stack:
    """A family of two members, their parameters (2, d), and data that no member made, (2, n, ·)."""

    name: str
    family: Any
    theta: Tensor
    data: Tensor

    @property
    def moments(self) -> Tensor:
        """(2, M) mean statistic of the data."""
        mean: Tensor = self.family.statistic(self.data).mean(-2)
        return mean

    @property
    def finite(self) -> bool:
        """Whether outcomes are indices."""
        return isinstance(self.family, Finite)


def covariance(rng: np.random.Generator, dim: int) -> np.ndarray:
    """A random covariance matrix, well conditioned."""
    root = rng.normal(size=(dim, dim)) * 0.4 + np.eye(dim)
    out: np.ndarray = root @ root.T
    return out


def stacks() -> list[Stack]:
    """Every family."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape))

    live = torch.tensor([[True, False, True, True, False, True], [True, True, True, False, True, False]])
    covs = torch.from_numpy(np.stack([covariance(rng, 3) for _ in range(2)]))
    indices = torch.from_numpy(rng.integers(0, 6, size=(2, 400)))
    alive = torch.stack([torch.nonzero(m)[:, 0][torch.from_numpy(rng.integers(0, 4, size=400))] for m in live])
    full = GaussianFull(2)
    return [
        Stack("categorical", Finite.categorical(6), normal(2, 5), indices),
        Stack("categorical with impossible outcomes", Finite.categorical(6, live), normal(2, 5), alive),
        Stack("loglinear", Finite(normal(2, 6, 2), normal(2, 6)), normal(2, 2), indices),
        Stack("loglinear, shared features", Finite(normal(1, 6, 3), normal(1, 6)), normal(2, 3), indices),
        Stack("gaussian_mean", GaussianMean(covs), normal(2, 3), normal(2, 300, 3) * 2 + 1),
        Stack("gaussian", full, normal(2, 5) * 0.7, normal(2, 300, 2) @ normal(2, 2) + 1),
        Stack("linear_gaussian", LinearGaussian(covs[:, :2, :2], 3), normal(2, 6), normal(2, 300, 5)),
    ]


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def moments_of(mean: np.ndarray, cov: np.ndarray) -> Tensor:
    return real(np.concatenate([mean, (cov + np.outer(mean, mean)).ravel()]))[None]
