"""From the described ecosystem to the compiled one: models and sources of one structure are stacked."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.program import (
    AlignmentGroup,
    EvaluationInfo,
    ModelGroup,
    Program,
    SourceGroup,
    SourceInfo,
)
from crossfeed.dynamics.support import live_outcomes
from crossfeed.errors import NotAvailableError
from crossfeed.families import spaces
from crossfeed.families.alignment import FiniteAlignment, LinearAlignment, VectorAlignment
from crossfeed.families.finite import Finite, FiniteReal, FiniteSource
from crossfeed.families.gaussian import GaussianFull, GaussianMean, VectorReal, VectorSource
from crossfeed.families.gaussian_picks import Stage, VectorReward, directions
from crossfeed.families.linear import Inputs, LinearGaussian, LinearReal, LinearSource

STACKED_BASES = 64
STAGE_KEYS = ("candidates", "temperature", "noise", "other_share")


def compile_ecosystem(eco: schema.Ecosystem) -> Program:
    """Read the data a spec names and turn it into tensors.

    Raises:
        SpecError, DataError: when photographs or callables cannot be read.
        NotAvailableError: its models are networks, which are run and not solved.
    """
    networks = eco.networks
    if networks:
        more = f" and {len(networks) - 3:,} more" if len(networks) > 3 else ""
        named = f"model{'s' if len(networks) > 1 else ''} {', '.join(map(repr, networks[:3]))}{more}"
        found = f"found the {named}, of a kind that is trained and sampled (flow, diffusion, causal_lm)"
        raise NotAvailableError(f"{found}; need closed-form families: networks are retrained by `crossfeed run`")
    return _Compiler(eco).program()


def stage_kind(pick: schema.Pick) -> str:
    """``best`` for τ = 0, ``tilt`` for K = ∞, else ``plackett_luce``."""
    return "best" if pick.temperature == 0 else "tilt" if math.isinf(pick.candidates) else "plackett_luce"


class _Compiler:
    def __init__(self, eco: schema.Ecosystem) -> None:
        self.eco = eco
        self.models = list(eco.models.items())
        self.index = {name: i for i, (name, _) in enumerate(self.models)}
        self.slots: dict[str, int] = {}
        self.values: list[float] = []
        self.cache: dict[Any, Any] = {}
        finite = isinstance(eco.space, (schema.Outcomes, schema.Images))
        self.outcomes = spaces.outcome_set(eco) if finite else None
        self.live = self.live_outcomes() if finite else np.ones((len(self.models), 0), dtype=bool)

    def slot(self, path: str, value: float) -> int:
        self.slots[path] = len(self.values)
        self.values.append(value)
        return self.slots[path]

    def cached(self, key: Any, make: Any) -> Any:
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    # --- models ----------------------------------------------------------------------------------------------------

    def live_outcomes(self) -> np.ndarray:
        """(N, n) outcomes that each model can have; all but for categorical models that lack real data for some."""
        assert self.outcomes
        everything = np.ones(self.outcomes.size, dtype=bool)
        brought: list[np.ndarray | None] = []
        for _, model in self.models:
            data = [s.data for s in model.sources if isinstance(s, schema.Real)]
            if not isinstance(model.family, schema.Categorical) or model.start is not None:
                brought.append(everything)
            else:
                found = [
                    self.cached(("data", name), lambda n=name: self.real_distribution(n)).numpy() > 0 for name in data
                ]
                brought.append(np.any(found, 0) if found else None)
        real = [b for b in brought if b is not None]
        edges = [
            (i, self.index[s.producer])
            for i, (_, model) in enumerate(self.models)
            for s in model.sources
            if isinstance(s, (schema.Raw, schema.Curated))
        ]
        return live_outcomes(brought, edges, np.any(real, 0) if real else everything)

    def family(self, index: int, model: schema.Model) -> tuple[Any, Any]:
        """A stacking key and what this member brings to the stack."""
        family, space = model.family, self.eco.space
        if isinstance(family, schema.Categorical):
            assert self.outcomes
            live = self.live[index]
            # few outcomes: one stack, a basis a member; many: a stack for each set of live outcomes, with one basis
            return ("categorical", self.outcomes.size, live.tobytes() if live.size > STACKED_BASES else None), live
        if isinstance(family, schema.LogLinear):
            assert self.outcomes
            values = self._features(family)
            images = self.outcomes.images
            counts = torch.ones(len(values)) if images is None else spaces.tensor(images.counts)
            base = (counts if family.base is None else spaces.tensor(family.base)).log()
            return ("loglinear", *values.shape), (values, base)
        if isinstance(family, schema.GaussianMean):
            assert isinstance(space, schema.Vectors)
            return ("gaussian_mean", space.dim), spaces.as_matrix(family.cov, space.dim)
        if isinstance(family, schema.Gaussian):
            assert isinstance(space, schema.Vectors)
            return ("gaussian", space.dim), None
        assert isinstance(space, schema.Regression)
        assert isinstance(family, schema.LinearGaussian)
        return ("linear_gaussian",), spaces.as_matrix(family.noise, space.outputs)

    def _features(self, family: schema.LogLinear) -> Tensor:
        if isinstance(family.features, list):
            from crossfeed.describe import images

            assert self.outcomes
            names = tuple(family.features)
            found: Tensor = self.cached(
                ("features", names),
                lambda: spaces.tensor(images.features(self.outcomes.images, names).values),
            )
            return found
        key = ("features", family.features.tobytes())
        given: Tensor = self.cached(key, lambda: spaces.tensor(family.features))
        return given

    def stack(self, key: tuple[Any, ...], members: list[Any]) -> Any:
        if key[0] == "categorical":
            return Finite.categorical(key[1], torch.from_numpy(np.stack(members)))
        if key[0] == "loglinear":
            if all(f is members[0][0] and torch.equal(b, members[0][1]) for f, b in members):
                return Finite(members[0][0][None], members[0][1][None].double())
            return Finite(torch.stack([f for f, _ in members]), torch.stack([b for _, b in members]).double())
        if key[0] == "gaussian_mean":
            return GaussianMean(torch.stack(members))
        if key[0] == "gaussian":
            return GaussianFull(key[1])
        assert isinstance(self.eco.space, schema.Regression)
        return LinearGaussian(torch.stack(members), self.eco.space.inputs)

    def program(self) -> Program:
        groups: dict[Any, list[int]] = defaultdict(list)
        brought = []
        for i, (_, model) in enumerate(self.models):
            key, member = self.family(i, model)
            groups[key].append(i)
            brought.append(member)
        families = {key: self.stack(key, [brought[i] for i in ids]) for key, ids in groups.items()}
        size = {i: families[key].num_params for key, ids in groups.items() for i in ids}
        offsets = [0]
        for i in range(len(self.models)):
            offsets.append(offsets[-1] + size[i])
        self.place = {i: (g, row) for g, ids in enumerate(groups.values()) for row, i in enumerate(ids)}
        self.params = {i: torch.arange(offsets[i], offsets[i + 1]) for i in size}
        self.families = list(families.values())
        model_groups = [
            ModelGroup(
                torch.tensor(ids),
                families[key],
                torch.stack([self.params[i] for i in ids]),
                torch.tensor([self.slot(f"{self.models[i][0]}.ridge", self.models[i][1].ridge) for i in ids]),
            )
            for key, ids in groups.items()
        ]
        sources, source_groups = self.sources()
        evaluations, alignment_groups, primary = self.evaluations()
        settings = torch.tensor(self.values, dtype=torch.float64)
        words = self.outcomes.words if self.outcomes else _space_words(self.eco.space)
        program = Program(
            [name for name, _ in self.models],
            offsets,
            settings,
            self.slots,
            model_groups,
            source_groups,
            alignment_groups,
            sources,
            evaluations,
            torch.tensor(primary),
            torch.zeros(offsets[-1], dtype=torch.float64),
            words,
            self.outcomes,
        )
        program.start.copy_(self.start(program))
        return program

    # --- sources ---------------------------------------------------------------------------------------------------

    def sources(self) -> tuple[list[SourceInfo], list[SourceGroup]]:
        infos: list[SourceInfo] = []
        stacks: dict[Any, list[tuple[int, int, schema.Real | schema.Raw | schema.Curated, int]]] = defaultdict(list)
        for i, (model_name, model) in enumerate(self.models):
            for name, source in zip(schema.source_names(model), model.sources, strict=True):
                prefix = f"{model_name}.sources.{name}"
                weight = self.slot(f"{prefix}.weight", source.weight)
                assert not isinstance(source, schema.Picks)  # of text, which has networks only
                producer = None if isinstance(source, schema.Real) else self.index[source.producer]
                if not isinstance(source, schema.Real):
                    self.slot(f"{prefix}.sampling_temperature", source.sampling_temperature)
                    for depth, stage in enumerate(source.stages if isinstance(source, schema.Curated) else []):
                        for key in STAGE_KEYS:
                            self.slot(f"{prefix}.{'then.' * depth}{key}", getattr(stage, key))
                infos.append(SourceInfo(i, producer, name, source.kind))
                stacks[self.signature(i, source)].append((len(infos) - 1, i, source, weight))
        groups = []
        for members in stacks.values():
            consumers = [i for _, i, _, _ in members]
            nodes = [s for _, _, s, _ in members]
            consumer_group = self.place[consumers[0]][0]
            row = torch.tensor([self.place[i][1] for i in consumers])
            consumer = self.families[consumer_group].take(row)
            ids = torch.tensor([k for k, _, _, _ in members])
            weights = torch.tensor([w for _, _, _, w in members])
            if isinstance(nodes[0], schema.Real):
                kernel, index = self.real_kernel(consumer, nodes), None
            else:
                producers = [self.index[s.producer] for s in nodes]  # type: ignore[union-attr]
                made = self.families[self.place[producers[0]][0]].take(
                    torch.tensor([self.place[j][1] for j in producers])
                )
                prefixes = [f"{self.models[i][0]}.sources.{infos[k].name}" for k, i, _, _ in members]
                kernel = self.source_kernel(made, consumer, consumers, nodes, prefixes)
                index = torch.stack([self.params[j] for j in producers])
            groups.append(SourceGroup(kernel, ids, consumer_group, row, index, weights))
        return infos, groups

    def signature(self, consumer: int, source: schema.Real | schema.Raw | schema.Curated) -> Any:
        group = self.place[consumer][0]
        domain = self.input_key(consumer, source)
        if isinstance(source, schema.Real):
            data = self.eco.data[source.data]
            pairs = (source.data,) if isinstance(data, (schema.PairsData, schema.TeacherData)) else ()
            return ("real", group, pairs)
        j = self.index[source.producer]
        stages = tuple(
            (
                stage_kind(p),
                p.candidates,
                self.reward_kind(self.curator(j, p)),
                p.other_curator and self.reward_kind(p.other_curator),
            )
            for _, p in _stages(source)
        )
        ranks: tuple[int, ...] = ()
        if self.outcomes is not None:
            stages = tuple((kind, other is not None) for kind, _, _, other in stages)  # type: ignore[misc]
        else:  # quadrature rules depend on it, and no source's numbers may depend on what it is stacked with
            names = [n for _, p in _stages(source) for n in (self.curator(j, p), p.other_curator) if n]
            ranks = (
                tuple(self.num_directions((n,)) for n in names)
                if len(stages) < 2
                else (self.num_directions(tuple(names)),)
            )
        depths = tuple(depth for depth, _ in _stages(source))
        mapped = source.map is not None and (source.map.matrix is not None, source.map.shift is not None)
        return ("model", group, self.place[j][0], stages, ranks, depths, mapped, domain)

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

        found: int = self.cached(("directions", names), count)
        return found

    def reward_kind(self, name: str) -> Any:
        reward = self.eco.rewards[name]
        return (reward.kind, reward.function) if isinstance(reward, schema.CallableReward) else reward.kind

    def curator(self, producer: int, pick: schema.Pick) -> str:
        return pick.curator or self.models[producer][1].reward

    def slots_of(self, sources: list[schema.Raw | schema.Curated], prefixes: list[str]) -> dict[str, Tensor]:
        keys = {"sampling_temperature": "sampling_temperature"}
        for number, (depth, _) in enumerate(_stages(sources[0])):
            keys |= {f"{number}.{key}": f"{'then.' * depth}{key}" for key in STAGE_KEYS}
        return {key: torch.tensor([self.slots[f"{p}.{path}"] for p in prefixes]) for key, path in keys.items()}

    def source_kernel(
        self, made: Any, consumer: Any, consumers: list[int], sources: list[Any], prefixes: list[str]
    ) -> Any:
        slots = self.slots_of(sources, prefixes)
        depth = len(_stages(sources[0]))
        producers = [self.index[s.producer] for s in sources]
        picks = [[_stages(s)[number][1] for s in sources] for number in range(depth)]
        if self.outcomes is not None:
            tables: list[Any] = []
            for level in picks:
                table = torch.stack([self.table(self.curator(j, p)) for j, p in zip(producers, level, strict=True)])
                others = [p.other_curator for p in level]
                other = torch.stack([self.table(o) for o in others if o]) if all(others) else None
                tables.append((stage_kind(level[0]), table, other))
            return FiniteSource(made, consumer, tables, slots)
        dim = self.outcome_dim()
        stages = [
            Stage(
                stage_kind(level[0]),
                self.vector_reward([self.curator(j, p) for j, p in zip(producers, level, strict=True)]),
                self.vector_reward([str(p.other_curator) for p in level]) if level[0].other_curator else None,
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
        if isinstance(self.eco.space, schema.Vectors):
            return VectorSource(made, consumer, stages, U, matrix, shift, slots, self.eco.seed)
        inputs = spaces.stack_inputs(
            [self.inputs(self.domain_of(i, s)) for i, s in zip(consumers, sources, strict=True)]
        )
        cross = [
            (
                self.cross_reward([self.curator(j, p) for j, p in zip(producers, level, strict=True)]),
                self.cross_reward([str(p.other_curator) for p in level]) if level[0].other_curator else None,
            )
            for level in picks
        ]
        return LinearSource(made, consumer, inputs, stages, cross, U, matrix, shift, slots, self.eco.seed)

    def real_kernel(self, consumer: Any, sources: list[Any]) -> Any:
        data = [self.eco.data[s.data] for s in sources]
        if self.outcomes is not None:
            p = [self.cached(("data", s.data), lambda s=s: self.real_distribution(s.data)) for s in sources]
            return FiniteReal(consumer, torch.stack(p))
        if isinstance(self.eco.space, schema.Vectors):
            dim = self.eco.space.dim
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
        assert isinstance(self.eco.space, schema.Regression)
        outs = self.eco.space.outputs
        first = data[0]
        if isinstance(first, schema.TeacherData):
            inputs = self.inputs(first.domain)
            answers = inputs.nodes[0] @ spaces.tensor(first.matrix).reshape(outs, -1).T
            noise = spaces.as_matrix(first.noise, outs)
        else:
            assert isinstance(first, schema.PairsData)
            x = spaces.tensor(first.x).reshape(-1, self.eco.space.inputs)
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

    def real_distribution(self, name: str) -> Tensor:
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

    # --- rewards and domains ---------------------------------------------------------------------------------------

    def table(self, name: str) -> Tensor:
        found: Tensor = self.cached(("table", name), lambda: spaces.reward_table(self.eco, name, self.outcomes))  # type: ignore[arg-type]
        return found

    def outcome_dim(self) -> int:
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

    def domain_of(self, consumer: int, source: Any) -> str:
        producer = self.models[self.index[source.producer]][1]
        name = source.domain or producer.domain or self.models[consumer][1].domain
        assert name is not None
        return str(name)

    def input_key(self, consumer: int, source: Any) -> Any:
        if not isinstance(self.eco.space, schema.Regression) or isinstance(source, schema.Real):
            return None
        inputs = self.inputs(self.domain_of(consumer, source))
        return (tuple(inputs.nodes.shape[1:]), inputs.cov is not None)

    def inputs(self, name: str) -> Inputs:
        assert isinstance(self.eco.space, schema.Regression)
        dim = self.eco.space.inputs
        found: Inputs = self.cached(("domain", name), lambda: spaces.inputs_of(self.eco.domains[name], dim))
        return found

    # --- alignment and start ---------------------------------------------------------------------------------------

    def evaluations(self) -> tuple[list[EvaluationInfo], list[AlignmentGroup], list[int]]:
        infos: list[EvaluationInfo] = []
        primary = []
        stacks: dict[Any, list[tuple[int, int, str, str | None]]] = defaultdict(list)
        for i, (_, model) in enumerate(self.models):
            primary.append(len(infos))
            for e in model.evaluate or [schema.Evaluation(name="own")]:
                reward, domain = e.reward or model.reward, e.domain or model.domain
                shape = None
                if isinstance(self.eco.space, schema.Regression):
                    inputs = self.inputs(str(domain))
                    shape = (tuple(inputs.nodes.shape[1:]), inputs.cov is not None)
                kind = None if self.outcomes is not None else self.reward_kind(reward)
                stacks[(self.place[i][0], kind, shape)].append((len(infos), i, reward, domain))
                infos.append(EvaluationInfo(i, e.name, reward))
        groups = []
        for (group, _, _), members in stacks.items():
            family = self.families[group].take(torch.tensor([self.place[i][1] for _, i, _, _ in members]))
            rewards = [reward for _, _, reward, _ in members]
            kernel = self.alignment_kernel(family, rewards, [d for *_, d in members])
            index = torch.stack([self.params[i] for _, i, _, _ in members])
            groups.append(AlignmentGroup(kernel, torch.tensor([k for k, *_ in members]), index))
        return infos, groups, primary

    def alignment_kernel(self, family: Any, rewards: list[str], domains: list[str | None]) -> Any:
        if self.outcomes is not None:
            return FiniteAlignment(family, torch.stack([self.table(r) for r in rewards]))
        dim = self.outcome_dim()
        first = self.eco.rewards[rewards[0]]
        fn = spaces.callable_reward(first, rewards[0]) if isinstance(first, schema.CallableReward) else None
        parts = [self.polynomial(r, dim) for r in rewards]
        g = torch.stack([p[0] for p in parts])
        Q = torch.stack([p[1] for p in parts if p[1] is not None]) if parts[0][1] is not None else None
        constant = torch.tensor([p[2] for p in parts], dtype=torch.float64)
        if isinstance(self.eco.space, schema.Vectors):
            return VectorAlignment(family, g, Q, constant, fn)
        return LinearAlignment(family, spaces.stack_inputs([self.inputs(str(d)) for d in domains]), g, Q, constant, fn)

    def start(self, program: Program) -> Tensor:
        """Given parameters, else those fitted to the model's real data, else to all real data, else near zero."""
        theta = torch.zeros(program.num_params, dtype=torch.float64)
        seeds = np.random.SeedSequence(self.eco.seed).spawn(program.num_models)
        for i, seed in enumerate(seeds):
            theta[program.span(i)] = torch.from_numpy(
                0.01 * np.random.default_rng(seed).standard_normal(len(self.params[i]))
            )
        weights = program.settings
        for number, group in enumerate(program.model_groups):
            finite = isinstance(group.family, Finite)  # members may have features of their own: average distributions
            width = group.family.num_outcomes if finite else group.family.num_moments
            total = torch.zeros(len(group.members), width, dtype=torch.float64)
            mass = torch.zeros(len(group.members), dtype=torch.float64)
            for s in program.source_groups:
                if s.group == number and s.theta_index is None:
                    w = weights[s.weight_slot]
                    total.index_add_(0, s.row, (s.kernel.p if finite else s.kernel.moments()) * w[:, None])
                    mass.index_add_(0, s.row, w)
            if not bool((mass > 0).any()):
                continue
            everyone = total[mass > 0].sum(0) / mass[mass > 0].sum()
            moments = torch.where((mass > 0)[:, None], total / mass.clamp_min(1e-300)[:, None], everyone)
            moments = group.family.mean_statistic(moments) if finite else moments
            tiny = 1e-9 if isinstance(group.family, LinearGaussian) else 0.0  # real inputs may not span the space
            theta[group.theta_index] = group.family.fit(
                moments, weights[group.ridge_slot] + tiny, theta[group.theta_index]
            )
        for i, (_, model) in enumerate(self.models):
            if model.start is not None:
                theta[program.span(i)] = spaces.tensor(model.start).reshape(-1)
        return theta


def _stages(source: schema.Raw | schema.Curated) -> list[tuple[int, schema.Pick]]:
    """Picking stages with their depth in the spec; one candidate is no choice, so such a stage is left out."""
    stages = source.stages if isinstance(source, schema.Curated) else []
    return [(depth, pick) for depth, pick in enumerate(stages) if pick.candidates != 1]


def _space_words(space: Any) -> str:
    if isinstance(space, schema.Vectors):
        return f"vectors in R^{space.dim}"
    return f"answers in R^{space.outputs} to inputs in R^{space.inputs}"
