"""What the names in a spec stand for, as tensors: real data, rewards, features and domains, each read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.families import spaces
from crossfeed.families.gaussian_picks import VectorReward, directions
from crossfeed.families.linear import Inputs


class SpecTensors:
    """Tensors by name; defaults of the spec filled in.

    Attributes:
        eco: The ecosystem as described.
        outcomes: Its finite outcome set; None for vectors and regression.
    """

    def __init__(self, eco: schema.Ecosystem) -> None:
        self.eco = eco
        finite = isinstance(eco.space, (schema.Outcomes, schema.Images))
        self.outcomes = spaces.outcome_set(eco) if finite else None
        self._cache: dict[Any, Any] = {}

    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # --- finite outcome sets ---------------------------------------------------------------------------------------

    def distribution(self, name: str) -> Tensor:
        """(outcomes,) probabilities of a data set."""
        found: Tensor = self._cached(("data", name), lambda: self._distribution(name))
        return found

    def _distribution(self, name: str) -> Tensor:
        data = self.eco.data[name]
        assert self.outcomes is not None
        if isinstance(data, schema.ImagesData):
            from crossfeed.describe import images

            return spaces.tensor(images.distribution(self.outcomes.images, data, f"data.{name}"))
        if isinstance(data, schema.DistributionData):
            weights = spaces.tensor(data.weights)
        else:
            assert isinstance(data, schema.RowsData)
            rows = data.rows
            if rows.dtype.kind in "US":
                place = {label: k for k, label in enumerate(self.outcomes.labels or [])}
                rows = np.array([place[str(label)] for label in rows])
            weights = torch.from_numpy(np.bincount(rows.astype(np.int64), minlength=self.outcomes.size)).double()
        return weights / weights.sum()

    def features(self, family: schema.LogLinear) -> Tensor:
        """(outcomes, d) features of a log-linear family."""
        if isinstance(family.features, list):
            from crossfeed.describe import images

            assert self.outcomes
            photographs, names = self.outcomes.images, tuple(family.features)
            found: Tensor = self._cached(
                ("features", names), lambda: spaces.tensor(images.features(photographs, names).values)
            )
            return found
        key = ("features", family.features.tobytes())
        given: Tensor = self._cached(key, lambda: spaces.tensor(family.features))
        return given

    def table(self, name: str) -> Tensor:
        """(outcomes,) values of a reward."""
        found: Tensor = self._cached(("table", name), lambda: spaces.reward_table(self.eco, name, self.outcomes))  # type: ignore[arg-type]
        return found

    # --- rewards of vectors and answers ----------------------------------------------------------------------------

    def outcome_dim(self) -> int:
        """Dimension of a vector, or of a regression's answer."""
        space = self.eco.space
        return space.dim if isinstance(space, schema.Vectors) else space.outputs  # type: ignore[union-attr]

    def polynomial(self, name: str, dim: int) -> tuple[Tensor, Tensor | None, float]:
        """Vector g (dim,), Q (dim, dim) or None, and constant; in regression rewards on y alone are padded in front."""
        reward = self.eco.rewards[name]
        if isinstance(reward, schema.CallableReward):
            return torch.zeros(dim, dtype=torch.float64), None, 0.0
        assert isinstance(reward, (schema.LinearReward, schema.QuadraticReward))
        full = self.eco.space.inputs + self.eco.space.outputs if isinstance(self.eco.space, schema.Regression) else dim
        small = self.outcome_dim()

        def place(v: Tensor) -> Tensor:
            if v.shape[-1] == full:
                return v
            pad = full - small
            return torch.nn.functional.pad(v, (pad, 0) if v.ndim == 1 else (pad, 0, pad, 0))

        Q = None
        given = None if reward.vector is None else spaces.tensor(reward.vector).reshape(-1)
        if isinstance(reward, schema.QuadraticReward):
            matrix = spaces.tensor(reward.matrix)
            Q = place(spaces.as_matrix(matrix, small if matrix.ndim == 0 else matrix.shape[-1]))
        g = torch.zeros(full, dtype=torch.float64) if given is None else place(given)
        return g, Q, reward.constant

    def vector_reward(self, names: list[str]) -> VectorReward:
        """Rewards of a stack as functions of y; parts that depend on x are in :meth:`cross_reward`."""
        dim = self.outcome_dim()
        first = self.eco.rewards[names[0]]
        if isinstance(first, schema.CallableReward):
            fn = spaces.callable_reward(first, names[0])
            reward = VectorReward(torch.zeros(len(names), dim, dtype=torch.float64), None, fn)
        else:
            parts = [self.polynomial(n, dim) for n in names]
            Q = (
                torch.stack([p[1][-dim:, -dim:] for p in parts if p[1] is not None])
                if parts[0][1] is not None
                else None
            )
            reward = VectorReward(torch.stack([p[0][-dim:] for p in parts]), Q)
        return VectorReward(reward.g, reward.Q, reward.fn, directions([reward], dim))

    def cross_reward(self, names: list[str]) -> Tensor | None:
        """Q_yx (E, outputs, inputs) of rewards on (x, y), or None when no reward couples x and y."""
        dim = self.outcome_dim()
        parts = [self.polynomial(n, dim)[1] for n in names]
        found = [q[-dim:, :-dim] for q in parts if q is not None]
        return torch.stack(found) if found and any(bool((q != 0).any()) for q in found) else None

    def num_directions(self, names: tuple[str, ...]) -> int:
        """In how many directions of the outcome these rewards can look."""

        def count() -> int:
            dim = self.outcome_dim()
            if any(isinstance(self.eco.rewards[n], schema.CallableReward) for n in names):
                return dim
            columns = []
            for g, Q, _ in (self.polynomial(n, dim) for n in names):
                columns += [g[-dim:, None]] + ([] if Q is None else [Q[-dim:]])
            return int(torch.linalg.matrix_rank(torch.cat(columns, -1), rtol=1e-12))

        found: int = self._cached(("directions", names), count)
        return found

    def reward_kind(self, name: str) -> Any:
        """What must agree for rewards to be stacked."""
        reward = self.eco.rewards[name]
        return (reward.kind, reward.function) if isinstance(reward, schema.CallableReward) else reward.kind

    # --- defaults and domains --------------------------------------------------------------------------------------

    def curator(self, source: schema.Raw | schema.Curated, pick: schema.Pick) -> str:
        """Name of the reward that picks at a stage of a source."""
        return pick.curator or self.eco.models[source.producer].reward

    def domain_of(self, consumer: schema.Model, source: schema.Raw | schema.Curated) -> str:
        """Name of the domain that a source's inputs come from."""
        producer = self.eco.models[source.producer]
        name = source.domain or producer.domain or consumer.domain
        assert name is not None
        return name

    def inputs(self, name: str) -> Inputs:
        """A domain as nodes and weights."""
        assert isinstance(self.eco.space, schema.Regression)
        dim = self.eco.space.inputs
        found: Inputs = self._cached(("domain", name), lambda: spaces.inputs_of(self.eco.domains[name], dim))
        return found
