"""From spec nodes to tensors: outcome sets, reward tables, input domains, covariances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.errors import DataError
from crossfeed.families.gaussian_picks import nodes_and_weights
from crossfeed.families.linear import Inputs


def tensor(array: Any) -> Tensor:
    """A float64 copy."""
    if isinstance(array, Tensor):
        return array.to(torch.float64)
    return torch.from_numpy(np.array(array, dtype=np.float64))


def as_matrix(array: Any, dim: int) -> Tensor:
    """A number, a diagonal or a matrix, as a (dim, dim) matrix."""
    value = tensor(array)
    if value.ndim == 0:
        return value * torch.eye(dim, dtype=torch.float64)
    return torch.diag(value) if value.ndim == 1 else value


@dataclass(frozen=True)
class OutcomeSet:
    """A finite outcome set: its size, coordinates (n, c) or None, and the photographs behind it or None."""

    size: int
    coordinates: Tensor | None
    labels: list[str] | None
    images: Any
    words: str


def outcome_set(eco: schema.Ecosystem) -> OutcomeSet:
    """The outcome set of an ``outcomes`` or ``images`` space."""
    space = eco.space
    if isinstance(space, schema.Images):
        from crossfeed.describe import images

        found = images.outcome_set(space, None, eco.seed)
        return OutcomeSet(found.num_outcomes, None, None, found, images.in_words(found))
    assert isinstance(space, schema.Outcomes)
    coordinates = None if space.coordinates is None else tensor(space.coordinates)
    if coordinates is not None and coordinates.ndim == 1:
        coordinates = coordinates[:, None]
    sizes = [space.count, space.labels and len(space.labels), None if coordinates is None else len(coordinates)]
    size = next(int(s) for s in sizes if s)
    return OutcomeSet(size, coordinates, space.labels, None, f"{size:,} outcomes")


def reward_table(eco: schema.Ecosystem, name: str, outcomes: OutcomeSet) -> Tensor:
    """(n,) the reward of each outcome."""
    reward = eco.rewards[name]
    if isinstance(reward, schema.TableReward):
        return tensor(reward.values)
    if isinstance(reward, schema.HueBandReward):
        from crossfeed.describe.images import hue_band

        values = hue_band(outcomes.images.photographs, reward.bands, reward.band_weight, reward.realism_weight)
        return tensor(outcomes.images.per_outcome(values))
    if isinstance(reward, schema.CallableReward):
        fn = callable_reward(reward, name)
        if outcomes.images is not None:
            pixels = torch.from_numpy(np.asarray(outcomes.images.photographs.pixels)).double()
            pixels = pixels / 255 if pixels.max() > 1 else pixels
            return tensor(outcomes.images.per_outcome(fn(pixels.permute(0, 3, 1, 2)).detach().numpy()))
        assert outcomes.coordinates is not None
        return fn(outcomes.coordinates).detach()
    assert outcomes.coordinates is not None
    assert isinstance(reward, (schema.LinearReward, schema.QuadraticReward))  # others do not go with outcomes
    y = outcomes.coordinates
    value = torch.full((len(y),), reward.constant, dtype=torch.float64)
    if reward.vector is not None:
        value = value + y @ tensor(reward.vector).reshape(-1)
    if isinstance(reward, schema.QuadraticReward):
        value = value + 0.5 * torch.einsum("ni,ij,nj->n", y, as_matrix(reward.matrix, y.shape[1]), y)
    return value


def callable_reward(reward: schema.CallableReward, name: str) -> Callable[[Tensor], Tensor]:
    """The user's function, with its output checked on every call."""
    from crossfeed.describe.files import load_callable

    fn = load_callable(reward.function)

    def checked(y: Tensor) -> Tensor:
        value = fn(y)
        if not isinstance(value, Tensor) or value.shape != y.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"rewards.{name}: {reward.function} returned {got} for {len(y)} outcomes; "
                f"need a float64 tensor ({len(y)},)"
            )
        return value.to(torch.float64)

    return checked


def inputs_of(domain: schema.Domain, dim: int) -> Inputs:
    """One input domain as nodes and weights: its points, or Gaussian quadrature nodes exact for the moments in use."""
    if isinstance(domain, schema.PointsDomain):
        points = tensor(domain.points).reshape(-1, dim)
        weights = torch.ones(len(points), dtype=torch.float64) if domain.weights is None else tensor(domain.weights)
        return Inputs(points[None], (weights / weights.sum())[None])
    mean, cov = tensor(domain.mean).expand(dim), as_matrix(domain.cov, dim)
    if dim <= 3:
        grid, weight = np.polynomial.hermite_e.hermegauss(7)
        z = tensor(np.stack(np.meshgrid(*[grid] * dim, indexing="ij"), -1).reshape(-1, dim))
        w = tensor(np.prod(np.stack(np.meshgrid(*[weight] * dim, indexing="ij"), -1).reshape(-1, dim), -1))
    else:
        z, w = nodes_and_weights(dim)
        z, w = torch.cat([z, -z]), torch.cat([w, w])
        z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.einsum("n,ni,nj->ij", w / w.sum(), z, z))).T
    nodes = mean + z @ torch.linalg.cholesky(cov).T
    return Inputs(nodes[None], (w / w.sum())[None], mean[None], cov[None])


def stack_inputs(many: list[Inputs]) -> Inputs:
    """Domains of equal structure as one stack."""
    gaussian = many[0].cov is not None

    def together(key: str) -> Tensor | None:
        return torch.cat([getattr(i, key) for i in many]) if gaussian else None

    return Inputs(
        torch.cat([i.nodes for i in many]), torch.cat([i.weights for i in many]), together("mean"), together("cov")
    )
