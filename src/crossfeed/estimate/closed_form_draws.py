"""Samples of closed-form ecosystems, from every source and every evaluation at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.estimate.closed_form import ClosedForm, closed_form_models
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, one_each
from crossfeed.estimate.picks import pick_candidates, pick_probabilities, pick_rewards
from crossfeed.estimate.reward_functions import reward_function
from crossfeed.families import spaces
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean, square_root
from crossfeed.families.linear import LinearGaussian
from crossfeed.networks.randomness import child_seed


def closed_form_samples(
    eco: schema.Ecosystem,
    theta: Tensor,
    num: int,
    seed: int,
    evaluation_candidates: int = 2,
    program: Program | None = None,
) -> tuple[dict[str, ClosedForm], Draws]:
    """Models at given parameters and fresh samples of every source and every evaluation, each group a cluster of its own.

    Clusters are numbered source by source, then evaluation by evaluation, groups in order. Where models have no inputs every answer of
    an evaluation is a group of its own, judged against the mean of all others: scores then have mean zero over all of them, and
    ∇J = Cov(r, s) from N answers has variance Var((r − J) s)/N, where N/2 pairs have Var((r₁ − r₂)(s₁ − s₂)/2)/(N/2), twice as much
    for uncorrelated Gaussian r and s. With inputs, answers to one input are compared with each other, which takes out what
    the input is worth.

    Candidates come from the producers at θ, at the source's sampling temperature and on its domain; real samples from the
    data's distribution, rows with replacement. Start noise is kept where the producer has reparameterised samples and the
    source does not map them.

    Args:
        eco: Of closed-form families.
        theta: (D,).
        num: n, groups of each source (those of weight 0 too) and prompts of each evaluation (of whose
            n · ``evaluation_candidates`` answers each is a group, where models have no inputs).
        seed: Of all draws; 0 ≤ seed < 2^64.
        evaluation_candidates: Answers a prompt of an evaluation.
        program: The compiled ecosystem, where there is one already.

    Returns:
        The models, with the table of inputs that the draws' prompts index, and the draws, in the order of the spec.

    Raises:
        NotAvailableError: networks, K = inf, or pick probabilities that take too many terms.
        ValueError: θ of another length.
    """
    program = compile_ecosystem(eco) if program is None else program
    sampler = _Sampler(eco, program, closed_form_models(eco, theta, None, program), num, seed)
    sources = sampler.sources()
    evaluations = sampler.evaluations(evaluation_candidates)
    for model in sampler.models.values():
        model.inputs = sampler.table
    return sampler.models, Draws(sources, evaluations)


class _Sampler:
    """Draws of one ecosystem, and the table of the inputs they were made for."""

    def __init__(
        self, eco: schema.Ecosystem, program: Program, models: dict[str, ClosedForm], num: int, seed: int
    ) -> None:
        self.eco, self.program, self.models, self.num, self.seed = eco, program, models, num, seed
        self.table = torch.zeros(0, eco.space.inputs) if isinstance(eco.space, schema.Regression) else None
        self._used = 0  # clusters
        self._rewards: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {}
        self._at = {
            source: (group.kernel, row)
            for group in program.source_groups
            for row, source in enumerate(group.source.tolist())
        }

    def sources(self) -> list[SourceDraw]:
        """Every source of every model."""
        out: list[SourceDraw] = []
        for consumer, model in self.eco.models.items():
            for name, source in zip(schema.source_names(model), model.sources, strict=True):
                rng = self._rng(consumer, f"estimate source {name}")
                if isinstance(source, schema.Real):
                    out.append(self._real(consumer, name, source, len(out), rng))
                else:
                    assert isinstance(source, (schema.Raw, schema.Curated))  # picks on record are of text
                    out.append(self._made(consumer, name, source, rng))
        return out

    def evaluations(self, candidates: int) -> list[EvaluationDraw]:
        """Every evaluation of every model."""
        out = []
        for name, model in self.eco.models.items():
            for evaluation in model.evaluate or [schema.Evaluation(name="own")]:
                rng = self._rng(name, f"estimate evaluation {evaluation.name}")
                x = self._draw_inputs(evaluation.domain or model.domain, rng)
                outputs, noise = self._sample(name, x, candidates, 1.0, rng)
                rewards = self._reward(evaluation.reward or model.reward, outputs, x)
                prompts = self._prompts(x)
                if x is None:
                    rewards, prompts = rewards.reshape(-1, 1), prompts.repeat_interleave(candidates)
                clusters = self._clusters(len(rewards))
                out.append(EvaluationDraw(name, evaluation.name, clusters, prompts, outputs, rewards, noise))
        return out

    def _made(
        self, consumer: str, name: str, source: schema.Raw | schema.Curated, rng: np.random.Generator
    ) -> SourceDraw:
        where = f"models.{consumer}.sources.{name}"
        producer, temperature = source.producer, source.sampling_temperature
        maker = self.eco.models[producer]
        pick = source if isinstance(source, schema.Curated) else None
        candidates = 1 if pick is None else pick_candidates(pick, where)
        x = self._draw_inputs(source.domain or maker.domain or self.eco.models[consumer].domain, rng)
        made, noise = self._sample(producer, x, candidates, temperature, rng)
        rewards: dict[str, Tensor] = {}
        probabilities = one_each(self.num)
        if pick is not None and candidates > 1:
            rewards = {n: self._reward(n, made, x) for n in pick_rewards(pick, maker.reward)}
            probabilities = pick_probabilities(pick, maker.reward, rewards, where).expand(self.num, -1)
        outputs = made if source.map is None else self._mapped(source.map, made)
        return SourceDraw(
            consumer=consumer,
            name=name,
            weight=source.weight,
            producer=producer,
            clusters=self._clusters(self.num),
            prompts=self._prompts(x),
            outputs=outputs,
            probabilities=probabilities,
            made=None if source.map is None else made,
            temperature=temperature,
            rewards=rewards,
            noise=noise if source.map is None else None,
        )

    def _real(
        self, consumer: str, name: str, source: schema.Real, position: int, rng: np.random.Generator
    ) -> SourceDraw:
        kernel, row = self._at[position]
        data, space, x = self.eco.data[source.data], self.eco.space, None
        if self.program.outcomes is not None:
            outputs = _choose(kernel.p[row], self.num, rng)
        elif isinstance(data, schema.PairsData):
            at = torch.from_numpy(rng.integers(0, len(data.x), size=self.num))
            x, outputs = spaces.tensor(data.x)[at], spaces.tensor(data.y)[at]
        elif isinstance(data, schema.TeacherData):
            assert isinstance(space, schema.Regression)
            x = self._draw_inputs(data.domain, rng)
            assert x is not None
            noise = torch.from_numpy(rng.standard_normal((self.num, space.outputs)))
            outputs = x @ spaces.tensor(data.matrix).reshape(space.outputs, -1).T
            outputs = outputs + noise @ square_root(spaces.as_matrix(data.noise, space.outputs)).T
        else:
            outputs = kernel.take(torch.tensor([row])).sample((), self.num, rng)[0]
        clusters, prompts = self._clusters(self.num), self._prompts(x)
        return SourceDraw(consumer, name, source.weight, None, clusters, prompts, outputs, one_each(self.num))

    def _sample(
        self, name: str, x: Tensor | None, candidates: int, temperature: float, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Candidates of every group, all of group 0 first, and their start noise."""
        model, num = self.models[name], self.num * candidates
        family, theta = model.family, model.parameters()
        if isinstance(family, Finite):
            at = torch.full((1,), temperature, dtype=torch.float64)
            return _choose(family.log_probs(theta["theta"][None], at)[0].exp(), num, rng), None
        assert isinstance(family, (GaussianMean, GaussianFull, LinearGaussian))
        size = family.outputs if isinstance(family, LinearGaussian) else family.dim
        noise = torch.from_numpy(rng.standard_normal((num, size))) * temperature**0.5
        return model.answer(theta, None if x is None else x.repeat_interleave(candidates, 0), noise), noise

    def _reward(self, name: str, outputs: Tensor, x: Tensor | None) -> Tensor:
        """(n, K) float64."""
        if name not in self._rewards:
            self._rewards[name] = reward_function(self.eco, name, self.program.outcomes)
        wide = None if x is None else x.repeat_interleave(len(outputs) // self.num, 0)
        return self._rewards[name](outputs, wide).detach().to(torch.float64).view(self.num, -1)

    def _mapped(self, affine: schema.Affine, made: Tensor) -> Tensor:
        dim = made.shape[-1]
        out = made if affine.matrix is None else made @ spaces.as_matrix(affine.matrix, dim).T
        return out if affine.shift is None else out + spaces.tensor(affine.shift).expand(dim)

    def _draw_inputs(self, domain: str | None, rng: np.random.Generator) -> Tensor | None:
        """(num, inputs) from a domain; None where models have no inputs."""
        if not isinstance(self.eco.space, schema.Regression):
            return None
        assert domain is not None  # checked with the spec
        return spaces.inputs_of(self.eco.domains[domain], self.eco.space.inputs).draw((), self.num, rng)[0]

    def _clusters(self, num: int) -> Tensor:
        """The next ``num`` numbers of clusters."""
        self._used += num
        return torch.arange(self._used - num, self._used)

    def _prompts(self, x: Tensor | None) -> Tensor:
        """Indices of inputs (num, inputs) that are added to the table; 0 where there are none."""
        if x is None or self.table is None:
            return torch.zeros(self.num, dtype=torch.int64)
        begin = len(self.table)
        self.table = torch.cat([self.table.to(x.dtype), x])
        return torch.arange(begin, begin + self.num)

    def _rng(self, model: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng(child_seed(self.seed, 0, model, purpose))


def _choose(p: Tensor, num: int, rng: np.random.Generator) -> Tensor:
    """(num,) indices drawn from a distribution (size,)."""
    q = p.numpy()
    return torch.from_numpy(rng.choice(len(q), size=num, p=q / q.sum()))
