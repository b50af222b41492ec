r"""The compiled ecosystem: pure functions of (parameters, settings) on flat, batched tensors.

The joint parameters Θ are one vector (..., D), the scalar settings of the spec (weights, K, temperatures, shares,
ridges) one vector (..., S); leading dimensions batch over seeds and settings. Models of one family and size are
stacked, sources of one structure too, so the work a round does not grow with the number of Python objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.families.base import hessian_of, jacobian


@dataclass(frozen=True)
class ModelGroup:
    """Models of one family and size: their indices (G,), parameter positions (G, d) and ridge slots (G,)."""

    members: Tensor
    family: Any
    theta_index: Tensor
    ridge_slot: Tensor


@dataclass(frozen=True)
class SourceGroup:
    """Sources of one structure.

    Attributes:
        kernel: What they deliver; see the ``families`` modules.
        source: (E,) position in ``Program.sources``.
        group: Model group of the consumers.
        row: (E,) position of the consumer in its group.
        theta_index: (E, d) positions of the producers' parameters; None for real data.
        weight_slot: (E,) settings slot of the weight.
    """

    kernel: Any
    source: Tensor
    group: int
    row: Tensor
    theta_index: Tensor | None
    weight_slot: Tensor


@dataclass(frozen=True)
class AlignmentGroup:
    """Evaluations of one structure: positions (V,) in ``Program.evaluations`` and parameter positions (V, d)."""

    kernel: Any
    evaluation: Tensor
    theta_index: Tensor


@dataclass(frozen=True)
class SourceInfo:
    """Who feeds whom: consumer and producer (None for real data) by index, the source's name and kind."""

    consumer: int
    producer: int | None
    name: str
    kind: str


@dataclass(frozen=True)
class EvaluationInfo:
    """An evaluation: which model, under what name, by which reward."""

    model: int
    name: str
    reward: str


@dataclass(frozen=True)
class Program:
    """A compiled ecosystem; made by :func:`crossfeed.dynamics.compile.compile_ecosystem`.

    Attributes:
        names: Models, in the order of the spec.
        offsets: (N + 1,) where each model's parameters begin in Θ.
        settings: (S,) or (..., S) values of the scalar settings.
        slots: Settings path to position.
        sources: Who feeds whom, in the order of the spec.
        evaluations: All evaluations; the first of each model is its alignment.
        primary: (N,) position of each model's first evaluation.
        start: (D,) initial parameters.
        space: The outcome space in words.
    """

    names: list[str]
    offsets: list[int]
    settings: Tensor
    slots: dict[str, int]
    model_groups: list[ModelGroup]
    source_groups: list[SourceGroup]
    alignment_groups: list[AlignmentGroup]
    sources: list[SourceInfo]
    evaluations: list[EvaluationInfo]
    primary: Tensor
    start: Tensor
    space: str
    outcomes: Any = None
    _blocks: dict[tuple[int, ...], Program] = field(default_factory=dict, repr=False)

    @property
    def num_models(self) -> int:
        """N."""
        return len(self.names)

    @property
    def num_params(self) -> int:
        """D, all models together."""
        return self.offsets[-1]

    def span(self, model: int) -> slice:
        """Where a model's parameters stand in Θ."""
        return slice(self.offsets[model], self.offsets[model + 1])

    def with_settings(self, settings: Tensor) -> Program:
        """The same ecosystem with other values of the settings, (S,) or a batch (..., S)."""
        return replace(self, settings=settings, _blocks={})

    def block(self, models: Sequence[int]) -> Program:
        """The part of the ecosystem that retrains ``models``: their groups and sources, same Θ and settings."""
        key = tuple(sorted(models))
        if len(key) == self.num_models:
            return self
        if key not in self._blocks:
            self._blocks[key] = self._restrict(set(key))
        return self._blocks[key]

    def _restrict(self, models: set[int]) -> Program:
        groups: list[ModelGroup] = []
        sources: list[SourceGroup] = []
        for number, group in enumerate(self.model_groups):
            keep = torch.tensor([i for i, m in enumerate(group.members.tolist()) if m in models], dtype=torch.long)
            if not len(keep):
                continue
            new_row = torch.full((len(group.members),), -1, dtype=torch.long)
            new_row[keep] = torch.arange(len(keep))
            groups.append(
                ModelGroup(
                    group.members[keep], group.family.take(keep), group.theta_index[keep], group.ridge_slot[keep]
                )
            )
            for s in self.source_groups:
                if s.group != number:
                    continue
                kept = torch.nonzero(new_row[s.row] >= 0)[:, 0]
                if len(kept):
                    index = None if s.theta_index is None else s.theta_index[kept]
                    sources.append(
                        SourceGroup(
                            s.kernel.take(kept),
                            s.source[kept],
                            len(groups) - 1,
                            new_row[s.row[kept]],
                            index,
                            s.weight_slot[kept],
                        )
                    )
        return replace(self, model_groups=groups, source_groups=sources, _blocks={})

    # --- one round -------------------------------------------------------------------------------------------------

    def source_moments(self, group: SourceGroup, theta: Tensor, settings: Tensor) -> Tensor:
        """(..., E, M) expected statistic of each source of a group."""
        if group.theta_index is None:
            moments: Tensor = group.kernel.moments()
        else:
            moments = group.kernel.moments(theta[..., group.theta_index], settings)
        return moments

    def moments(self, theta: Tensor, settings: Tensor | None = None) -> list[Tensor]:
        """Expected statistic of each model's mixture, (..., G, M) a model group."""
        s = self.settings if settings is None else settings
        parts = [self.source_moments(g, theta, s) for g in self.source_groups]
        return self._mix(parts, [s[..., g.weight_slot] for g in self.source_groups])

    def _mix(self, parts: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        mixed: list[Tensor | None] = [None] * len(self.model_groups)
        for source, part, weight in zip(self.source_groups, parts, weights, strict=True):
            size = len(self.model_groups[source.group].members)
            weighted = part * weight[..., None]
            zero = torch.zeros(*weighted.shape[:-2], size, weighted.shape[-1], dtype=weighted.dtype)
            added = zero.index_add(-2, source.row, weighted)
            old = mixed[source.group]
            mixed[source.group] = added if old is None else old + added
        return [m for m in mixed if m is not None]

    def sampled_moments(
        self, theta: Tensor, num: int, rngs: Sequence[np.random.Generator], fixed: bool = False
    ) -> list[Tensor]:
        """Mean statistic of ``num`` samples a model, drawn from the mixtures; one generator a source group plus one
        for counts.

        Args:
            theta: (..., D).
            num: n, samples a model.
            rngs: ``len(source_groups) + 1`` generators.
            fixed: Counts by largest remainder instead of multinomial.
        """
        counts = self._counts(theta.shape[:-1], num, rngs[-1], fixed)
        parts = []
        for group, rng in zip(self.source_groups, rngs, strict=False):
            c = counts[..., group.source].to(torch.float64)
            if group.theta_index is None:
                parts.append(group.kernel.sample_moments(c, rng))
            else:
                parts.append(group.kernel.sample_moments(theta[..., group.theta_index], self.settings, c, rng))
        return self._mix(parts, [counts[..., g.source].to(torch.float64) / num for g in self.source_groups])

    def _counts(self, batch: torch.Size, num: int, rng: np.random.Generator, fixed: bool) -> Tensor:
        shape = torch.broadcast_shapes(batch, self.settings.shape[:-1])
        settings = self.settings.numpy()
        out = np.zeros((*shape, len(self.sources)), dtype=np.int64)
        for source, slot in self._mixtures:
            if source.shape[1] == 1:
                out[..., source] = num
                continue
            w = settings[..., slot].clip(0)
            w = np.broadcast_to(w / w.sum(-1, keepdims=True), (*shape, *slot.shape))
            out[..., source] = largest_remainder(w, num) if fixed else rng.multinomial(num, w)
        return torch.from_numpy(out)

    @cached_property
    def _mixtures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Source positions and weight slots, (models, sources) each, of models with equally many sources."""
        by_consumer: dict[int, list[tuple[int, int]]] = {}
        for g in self.source_groups:
            for source, slot in zip(g.source.tolist(), g.weight_slot.tolist(), strict=True):
                by_consumer.setdefault(self.sources[source].consumer, []).append((source, slot))
        by_count: dict[int, list[list[tuple[int, int]]]] = {}
        for _, pairs in sorted(by_consumer.items()):
            by_count.setdefault(len(pairs), []).append(pairs)
        tables = [np.array(rows) for _, rows in sorted(by_count.items())]
        return [(table[..., 0], table[..., 1]) for table in tables]

    def retrain(self, theta: Tensor, moments: list[Tensor]) -> Tensor:
        """Θ with every model of this program at the exact minimum of its loss for the given moments."""
        shape = torch.broadcast_shapes(theta.shape[:-1], *(m.shape[:-2] for m in moments))
        out = theta.expand(*shape, -1).clone()
        for group, m in zip(self.model_groups, moments, strict=True):
            ridge = self.settings[..., group.ridge_slot].expand(*m.shape[:-1])
            out[..., group.theta_index] = group.family.fit(m, ridge, out[..., group.theta_index])
        return out

    def descend(self, theta: Tensor, moments: list[Tensor], steps: int, size: float) -> Tensor:
        """Θ after ``steps`` full-batch gradient steps of ``size`` from the current parameters, on fixed data."""
        shape = torch.broadcast_shapes(theta.shape[:-1], *(m.shape[:-2] for m in moments))
        out = theta.expand(*shape, -1).clone()
        for group, m in zip(self.model_groups, moments, strict=True):
            ridge = self.settings[..., group.ridge_slot][..., None]
            t = out[..., group.theta_index]
            for _ in range(steps):
                t = t - size * (group.family.gradient(t, m) + ridge * t)
            out[..., group.theta_index] = t
        return out

    # --- what derivatives are made of ------------------------------------------------------------------------------

    def gradient(self, theta: Tensor, settings: Tensor | None = None, data: Tensor | None = None) -> Tensor:
        """F_i(Θ) = ∇₁L_i(θ_i; Θ), all models, (..., D); zero at a stable point.

        Args:
            theta: (..., D) the trained argument, and the data's unless ``data`` is given.
            settings: (..., S) in place of the program's.
            data: (..., D) parameters of the models that make the data.
        """
        s = self.settings if settings is None else settings
        moments = self.moments(theta if data is None else data, s)
        pieces, order = [], []
        for group, m in zip(self.model_groups, moments, strict=True):
            t = theta[..., group.theta_index]
            g = group.family.gradient(t, m) + s[..., group.ridge_slot][..., None] * t
            pieces.append(g.flatten(-2))
            order.append(group.theta_index.flatten())
        shape = torch.broadcast_shapes(*(p.shape[:-1] for p in pieces))
        inverse = torch.argsort(torch.cat(order))
        return torch.cat([p.expand(*shape, -1) for p in pieces], -1)[..., inverse]

    def curvature(self, theta: Tensor, moments: list[Tensor] | None = None) -> list[Tensor]:
        """H_i = ∇₁²L_i with ridge, (G, d, d) a model group."""
        out = []
        for group, m in zip(self.model_groups, moments or self.moments(theta), strict=True):
            ridge = self.settings[..., group.ridge_slot]
            eye = torch.eye(group.family.num_params, dtype=theta.dtype)
            h = hessian_of(group.family, theta[..., group.theta_index], m)
            out.append(h + ridge[..., None, None] * eye)
        return out

    # --- alignment ------------------------------------------------------------------------------------------

    def alignment(self, theta: Tensor) -> Tensor:
        """J of every evaluation, (..., V); ``[..., primary]`` are the models' alignments (..., N)."""
        values = [g.kernel.value(theta[..., g.theta_index]) for g in self.alignment_groups]
        shape = torch.broadcast_shapes(*(v.shape[:-1] for v in values))
        inverse = torch.argsort(torch.cat([g.evaluation for g in self.alignment_groups]))
        return torch.cat([v.expand(*shape, -1) for v in values], -1)[..., inverse]

    def alignment_gradient(self, theta: Tensor) -> Tensor:
        """∇J of every evaluation by its own model's parameters, placed in a (V, D) matrix; sparse by construction."""
        out = torch.zeros(len(self.evaluations), self.num_params, dtype=theta.dtype)
        for g in self.alignment_groups:
            row = jacobian(lambda t, k=g.kernel: k.value(t)[..., None], theta[g.theta_index])[..., 0, :]
            out[g.evaluation[:, None], g.theta_index] = row
        return out

    def entropy(self, theta: Tensor) -> Tensor:
        """(..., N) entropy of each model in nats: the collapse indicator."""
        shape = theta.shape[:-1]
        out = torch.zeros(*shape, self.num_models, dtype=theta.dtype)
        for g in self.model_groups:
            out[..., g.members] = g.family.entropy(theta[..., g.theta_index])
        return out


def largest_remainder(weights: np.ndarray, num: int) -> np.ndarray:
    """Whole counts that sum to ``num`` and differ from num·weights by less than one; (..., m)."""
    exact = weights * num
    base = np.floor(exact + 1e-9).astype(np.int64)
    missing = num - base.sum(-1, keepdims=True)
    rank = np.argsort(np.argsort(-(exact - base), axis=-1, kind="stable"), axis=-1)
    out: np.ndarray = base + (rank < missing)
    return out
