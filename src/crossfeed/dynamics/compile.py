"""From the described ecosystem to the compiled one: models and sources of one structure are stacked."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.kernels import alignment_kernel, real_kernel, source_kernel, stage_kind, stages_of
from crossfeed.dynamics.program import (
    AlignmentGroup,
    EvaluationInfo,
    ModelGroup,
    Program,
    SourceGroup,
    SourceInfo,
)
from crossfeed.dynamics.support import live_outcomes
from crossfeed.dynamics.tensors import SpecTensors
from crossfeed.errors import NotAvailableError
from crossfeed.families import spaces
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean
from crossfeed.families.linear import LinearGaussian

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


class _Compiler:
    def __init__(self, eco: schema.Ecosystem) -> None:
        self.eco = eco
        self.models = list(eco.models.items())
        self.index = {name: i for i, (name, _) in enumerate(self.models)}
        self.slots: dict[str, int] = {}
        self.values: list[float] = []
        self.spec = SpecTensors(eco)
        self.outcomes = self.spec.outcomes
        self.live = self.live_outcomes() if self.outcomes else np.ones((len(self.models), 0), dtype=bool)

    def slot(self, path: str, value: float) -> int:
        self.slots[path] = len(self.values)
        self.values.append(value)
        return self.slots[path]

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
                found = [self.spec.distribution(name).numpy() > 0 for name in data]
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
            values = self.spec.features(family)
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
            nodes: list[Any] = [s for _, _, s, _ in members]
            consumer_group = self.place[consumers[0]][0]
            row = torch.tensor([self.place[i][1] for i in consumers])
            consumer = self.families[consumer_group].take(row)
            ids = torch.tensor([k for k, _, _, _ in members])
            weights = torch.tensor([w for _, _, _, w in members])
            if isinstance(nodes[0], schema.Real):
                kernel, index = real_kernel(self.spec, consumer, nodes), None
            else:
                producers = [self.index[s.producer] for s in nodes]
                made = self.families[self.place[producers[0]][0]].take(
                    torch.tensor([self.place[j][1] for j in producers])
                )
                prefixes = [f"{self.models[i][0]}.sources.{infos[k].name}" for k, i, _, _ in members]
                described = [self.models[i][1] for i in consumers]
                kernel = source_kernel(self.spec, made, consumer, described, nodes, self.slots_of(nodes, prefixes))
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
                self.spec.reward_kind(self.spec.curator(source, p)),
                p.other_curator and self.spec.reward_kind(p.other_curator),
            )
            for _, p in stages_of(source)
        )
        ranks: tuple[int, ...] = ()
        if self.outcomes is not None:
            stages = tuple((kind, other is not None) for kind, _, _, other in stages)  # type: ignore[misc]
        else:  # quadrature rules depend on it, and no source's numbers may depend on what it is stacked with
            names = [n for _, p in stages_of(source) for n in (self.spec.curator(source, p), p.other_curator) if n]
            ranks = (
                tuple(self.spec.num_directions((n,)) for n in names)
                if len(stages) < 2
                else (self.spec.num_directions(tuple(names)),)
            )
        depths = tuple(depth for depth, _ in stages_of(source))
        mapped = source.map is not None and (source.map.matrix is not None, source.map.shift is not None)
        return ("model", group, self.place[j][0], stages, ranks, depths, mapped, domain)

    def slots_of(self, sources: list[schema.Raw | schema.Curated], prefixes: list[str]) -> dict[str, Tensor]:
        keys = {"sampling_temperature": "sampling_temperature"}
        for number, (depth, _) in enumerate(stages_of(sources[0])):
            keys |= {f"{number}.{key}": f"{'then.' * depth}{key}" for key in STAGE_KEYS}
        return {key: torch.tensor([self.slots[f"{p}.{path}"] for p in prefixes]) for key, path in keys.items()}

    def input_key(self, consumer: int, source: Any) -> Any:
        if not isinstance(self.eco.space, schema.Regression) or isinstance(source, schema.Real):
            return None
        inputs = self.spec.inputs(self.spec.domain_of(self.models[consumer][1], source))
        return (tuple(inputs.nodes.shape[1:]), inputs.cov is not None)

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
                    inputs = self.spec.inputs(str(domain))
                    shape = (tuple(inputs.nodes.shape[1:]), inputs.cov is not None)
                kind = None if self.outcomes is not None else self.spec.reward_kind(reward)
                stacks[(self.place[i][0], kind, shape)].append((len(infos), i, reward, domain))
                infos.append(EvaluationInfo(i, e.name, reward))
        groups = []
        for (group, _, _), members in stacks.items():
            family = self.families[group].take(torch.tensor([self.place[i][1] for _, i, _, _ in members]))
            rewards = [reward for _, _, reward, _ in members]
            kernel = alignment_kernel(self.spec, family, rewards, [d for *_, d in members])
            index = torch.stack([self.params[i] for _, i, _, _ in members])
            groups.append(AlignmentGroup(kernel, torch.tensor([k for k, *_ in members]), index))
        return infos, groups, primary

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


def _space_words(space: Any) -> str:
    if isinstance(space, schema.Vectors):
        return f"vectors in R^{space.dim}"
    return f"answers in R^{space.outputs} to inputs in R^{space.inputs}"
