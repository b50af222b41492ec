"""From members of one structure to one stack: sources of models, real data, and alignments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.tensors import SpecTensors
from crossfeed.families import spaces
from crossfeed.families.alignment import FiniteAlignment, LinearAlignment, VectorAlignment
from crossfeed.families.finite import FiniteReal, FiniteSource
from crossfeed.families.gaussian_picks import Stage, directions
from crossfeed.families.gaussian_sources import VectorReal, VectorSource
from crossfeed.families.linear import Inputs, LinearReal, LinearSource


def stage_kind(pick: schema.Pick) -> str:
    """``best`` for τ = 0, ``tilt`` for K = ∞, else ``plackett_luce``."""
    return "best" if pick.temperature == 0 else "tilt" if math.isinf(pick.candidates) else "plackett_luce"


def stages_of(source: schema.Raw | schema.Curated) -> list[tuple[int, schema.Pick]]:
    """Picking stages with their depth in the spec; one candidate is no choice, so such a stage is left out."""
    stages = source.stages if isinstance(source, schema.Curated) else []
    return [(depth, pick) for depth, pick in enumerate(stages) if pick.candidates != 1]


def source_kernel(
    spec: SpecTensors,
    made: Any,
    consumer: Any,
    consumers: list[schema.Model],
    sources: list[Any],
    slots: dict[str, Tensor],
) -> Any:
    """Sources of one structure that models feed.

    Args:
        spec: Where rewards and domains are read.
        made: The producers, a stack with one member a source.
        consumer: The consumers, likewise.
        consumers: The consumers as described.
        sources: Raw or curated sources as described, of one structure.
        slots: Positions of their scalar settings.
    """
    depth = len(stages_of(sources[0]))
    picks = [[stages_of(s)[number][1] for s in sources] for number in range(depth)]
    if spec.outcomes is not None:
        tables: list[Any] = []
        for level in picks:
            table = torch.stack([spec.table(spec.curator(s, p)) for s, p in zip(sources, level, strict=True)])
            others = [p.other_curator for p in level]
            other = torch.stack([spec.table(o) for o in others if o]) if all(others) else None
            tables.append((stage_kind(level[0]), table, other))
        return FiniteSource(made, consumer, tables, slots)
    dim = spec.outcome_dim()
    stages = [
        Stage(
            stage_kind(level[0]),
            spec.vector_reward([spec.curator(s, p) for s, p in zip(sources, level, strict=True)]),
            spec.vector_reward([str(p.other_curator) for p in level]) if level[0].other_curator else None,
        )
        for level in picks
    ]
    rewards = [r for s in stages for r in (s.reward, s.other) if r is not None]
    U = directions(rewards, dim) if depth > 1 else None
    matrix = shift = None
    if sources[0].map is not None:
        if sources[0].map.matrix is not None:
            matrix = torch.stack([spaces.as_matrix(s.map.matrix, dim) for s in sources])
        if sources[0].map.shift is not None:
            shift = torch.stack([spaces.tensor(s.map.shift).expand(dim) for s in sources])
    if isinstance(spec.eco.space, schema.Vectors):
        return VectorSource(made, consumer, stages, U, matrix, shift, slots, spec.eco.seed)
    inputs = spaces.stack_inputs([spec.inputs(spec.domain_of(m, s)) for m, s in zip(consumers, sources, strict=True)])
    cross = [
        (
            spec.cross_reward([spec.curator(s, p) for s, p in zip(sources, level, strict=True)]),
            spec.cross_reward([str(p.other_curator) for p in level]) if level[0].other_curator else None,
        )
        for level in picks
    ]
    return LinearSource(made, consumer, inputs, stages, cross, U, matrix, shift, slots, spec.eco.seed)


def real_kernel(spec: SpecTensors, consumer: Any, sources: list[Any]) -> Any:
    """Sources of real data; in a regression all of one data set."""
    data = [spec.eco.data[s.data] for s in sources]
    if spec.outcomes is not None:
        return FiniteReal(consumer, torch.stack([spec.distribution(s.data) for s in sources]))
    if isinstance(spec.eco.space, schema.Vectors):
        dim = spec.eco.space.dim
        means: list[Tensor] = []
        covs: list[Tensor] = []
        rows: list[Tensor | None] = []
        for d in data:
            if isinstance(d, schema.MomentsData):
                means.append(spaces.tensor(d.mean).expand(dim))
                covs.append(spaces.as_matrix(d.cov, dim))
                rows.append(None)
            else:
                assert isinstance(d, schema.RowsData)
                row = spaces.tensor(d.rows).reshape(-1, dim)
                rows.append(row)
                means.append(row.mean(0))
                covs.append(torch.cov(row.T, correction=0).reshape(dim, dim) + 1e-300 * torch.eye(dim))
        return VectorReal(consumer, torch.stack(means), torch.stack(covs), rows)
    assert isinstance(spec.eco.space, schema.Regression)
    outs = spec.eco.space.outputs
    first = data[0]
    if isinstance(first, schema.TeacherData):
        inputs = spec.inputs(first.domain)
        answers = inputs.nodes[0] @ spaces.tensor(first.matrix).reshape(outs, -1).T
        noise = spaces.as_matrix(first.noise, outs)
    else:
        assert isinstance(first, schema.PairsData)
        x = spaces.tensor(first.x).reshape(-1, spec.eco.space.inputs)
        inputs = Inputs(x[None], torch.full((1, len(x)), 1 / len(x), dtype=torch.float64))
        answers = spaces.tensor(first.y).reshape(-1, outs)
        noise = torch.zeros(outs, outs, dtype=torch.float64)
    n = len(sources)
    return LinearReal(
        consumer,
        spaces.stack_inputs([inputs] * n),
        answers.expand(n, *answers.shape),
        noise.expand(n, 1, outs, outs),
    )


def alignment_kernel(spec: SpecTensors, family: Any, rewards: list[str], domains: list[str | None]) -> Any:
    """Evaluations of one structure: a member of the family, a reward and a domain each."""
    if spec.outcomes is not None:
        return FiniteAlignment(family, torch.stack([spec.table(r) for r in rewards]))
    dim = spec.outcome_dim()
    first = spec.eco.rewards[rewards[0]]
    fn = spaces.callable_reward(first, rewards[0]) if isinstance(first, schema.CallableReward) else None
    parts = [spec.polynomial(r, dim) for r in rewards]
    g = torch.stack([p[0] for p in parts])
    Q = torch.stack([p[1] for p in parts if p[1] is not None]) if parts[0][1] is not None else None
    constant = torch.tensor([p[2] for p in parts], dtype=torch.float64)
    if isinstance(spec.eco.space, schema.Vectors):
        return VectorAlignment(family, g, Q, constant, fn)
    return LinearAlignment(family, spaces.stack_inputs([spec.inputs(str(d)) for d in domains]), g, Q, constant, fn)
