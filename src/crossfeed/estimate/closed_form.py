r"""Closed-form models as the estimator sees them, and samples drawn from them.

A closed-form ecosystem has an exact answer, so that whatever is estimated from these samples can be compared with it.
The only difference from networks is where the samples come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Batch, Parameters
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, one_each
from crossfeed.estimate.picks import pick_candidates, pick_probabilities, pick_rewards
from crossfeed.families import spaces
from crossfeed.families.base import LIKELIHOOD, RSAMPLE, Kept, hessian_of
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianFull, GaussianMean, _root, log_normal
from crossfeed.families.linear import LinearGaussian
from crossfeed.networks.base import Outputs
from crossfeed.networks.randomness import child_seed

CHUNK_DOUBLES = 4_000_000


class ClosedForm:
    """One closed-form model: its family's loss, likelihood and sampler at parameters ``{"theta": (d,)}``, float64.

    Outputs are indices (n,) int64 on finite outcome sets, vectors (n, dim), or answers (n, outputs) of a regression, whose
    inputs x are rows of one table that all models of an ecosystem share. Ridges are no part of the loss.

    Args:
        name: The model's name in the spec.
        family: A stack of one.
        theta: (d,).
        inputs: (m, inputs) the table that ``prompts`` index; None where models have no inputs.
    """

    smooth_in_outputs = True

    def __init__(self, name: str, family: Any, theta: Tensor, inputs: Tensor | None = None) -> None:
        self.name, self.family, self.inputs = name, family, inputs
        self.device = torch.device("cpu")
        self._theta = theta.detach().clone()
        self._bends = Kept()
        if isinstance(family, Finite):
            self.loss_is_score = family.idle is None or not bool(family.idle.any())
            width = family.num_outcomes
        else:
            known = {GaussianMean: "cov", LinearGaussian: "noise"}.get(type(family))
            spread = None if known is None else getattr(family, known)[0]
            self.loss_is_score = spread is None or torch.equal(spread, torch.eye(len(spread), dtype=spread.dtype))
            width = family.num_params
        self.capabilities: frozenset[str] = family.capabilities & {LIKELIHOOD, RSAMPLE}
        self.chunk = min(4096, max(1, CHUNK_DOUBLES // width))

    def parameters(self) -> dict[str, Tensor]:
        """``{"theta": (d,)}``."""
        return {"theta": self._theta}

    def loss_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Batch:
        """(outputs,), or (x, outputs) for a regression; nothing is random in these losses."""
        assert isinstance(outputs, Tensor)
        if not isinstance(self.family, LinearGaussian):
            return (outputs,)
        return (self._inputs(prompts), outputs)

    def losses(self, parameters: Parameters, batch: Batch) -> Tensor:
        """The family's loss per sample, (n,)."""
        loss: Tensor = self.family.loss(parameters["theta"][None], torch.cat(batch, -1)[None])[0]
        return loss

    def score_batch(self, prompts: Tensor, outputs: Outputs) -> Batch:
        """As :meth:`loss_batch`."""
        return self.loss_batch(prompts, outputs)

    def log_probs(self, parameters: Parameters, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log q^(1/T)(y | x; θ), normalised, (n,): logits over T, or covariance times T."""
        family, theta = self.family, parameters["theta"][None]
        if isinstance(family, Finite):
            at = torch.full((1,), temperature, dtype=theta.dtype)
            return family.log_probs(theta, at).gather(-1, batch[0][None])[0]
        if isinstance(family, LinearGaussian):
            x, y = batch
            return log_normal(y[None], family.answer(theta, x[None]), family.noise * temperature)[0]
        mean, cov = family.mean_cov(theta)
        return log_normal(batch[0][None], mean[:, None], cov * temperature)[0]

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, dim) standard normal; times √T it makes samples at temperature T."""
        return torch.randn(num, self._dim(), dtype=self._theta.dtype, generator=generator)

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """m(x; θ) + L(θ) noise, (n, dim), with LLᵀ the covariance."""
        self._dim()
        regression = isinstance(self.family, LinearGaussian)
        return self.answer(parameters, self._inputs(prompts) if regression else None, noise)

    def answer(self, parameters: Parameters, x: Tensor | None, noise: Tensor) -> Tensor:
        """:meth:`rsample` at inputs x (n, inputs) that need not stand in the table."""
        family, theta = self.family, parameters["theta"][None]
        if x is not None:
            scale = torch.linalg.cholesky(family.noise)
            mean: Tensor = family.answer(theta, x[None])
            return mean[0] + noise @ scale[0].T
        centre, scale = family.mean_scale(theta)
        return centre + noise @ scale[0].T

    def replace_outputs(self, batch: Batch, outputs: Tensor) -> Batch:
        """The same batch with other outputs."""
        self._dim()
        return (*batch[:-1], outputs)

    def curvature_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Batch:
        """What :meth:`curvature_terms` draws: own outputs for log-likelihoods, u ~ N(0, I) for squared errors."""
        family, num = self.family, len(outputs)
        if isinstance(family, (GaussianMean, LinearGaussian)):
            return self.loss_batch(prompts, self.noise(num, generator))
        own = family.sample(self._theta[None], num, generator)[0]
        if not isinstance(family, Finite) or family.idle is None:
            return (own,)
        return (own, family.idle * torch.randn(num, family.num_params, dtype=self._theta.dtype, generator=generator))

    def curvature_terms(self, parameters: Parameters, batch: Batch) -> Tensor:
        """(n,) h with E[∇h ∇hᵀ] = the Fisher matrix of log-likelihoods, the Hessian of squared errors.

        Idle coordinates of a categorical model, whose loss is ½θ², add ⟨θ, u⟩.
        """
        theta = parameters["theta"]
        if isinstance(self.family, GaussianMean):
            return (batch[0] * theta).sum(-1)
        if isinstance(self.family, LinearGaussian):
            answers: Tensor = self.family.answer(theta[None], batch[0][None])[0]
            return (answers * batch[1]).sum(-1)
        terms = self.log_probs(parameters, batch[:1])
        return terms if len(batch) == 1 else terms + (batch[1] * theta).sum(-1)

    def mean_hessian(self, parameters: Parameters, batch: Batch, weights: Tensor) -> Tensor:
        """Σ_n w_n ∇²ℓ(θ; z_n), (d, d), exactly: ∇²ℓ is affine in T(z), by coefficients that are kept where they take little room.

        Args:
            parameters: θ.
            batch: A loss batch of n samples.
            weights: (n,), of any sum and sign.
        """
        theta = parameters["theta"][None]
        moments = weights @ self.family.statistic(torch.cat(batch, -1)[None])[0]
        size, width = self.family.num_moments, self.family.num_params
        zero = torch.zeros(1, size, dtype=theta.dtype)
        if (size + 1) * width**2 > CHUNK_DOUBLES:
            rest = hessian_of(self.family, theta, zero)
            total: Tensor = (hessian_of(self.family, theta, moments[None]) + (weights.sum() - 1) * rest)[0]
            return total

        def bends() -> Tensor:
            points = torch.cat([zero, torch.eye(size, dtype=theta.dtype)])[:, None]
            found = hessian_of(self.family, theta.expand(size + 1, 1, width), points)[:, 0]
            return torch.cat([found[:1], found[1:] - found[:1]])

        kept: Tensor = self._bends.get(parameters["theta"], bends)
        return weights.sum() * kept[0] + torch.tensordot(moments, kept[1:], 1)

    def _dim(self) -> int:
        """Length of an output; refuses finite outcomes."""
        if isinstance(self.family, Finite):
            raise NotAvailableError(
                f"models.{self.name}: outcomes of a finite set have no reparameterised samples; use the likelihood"
            )
        return int(self.family.outputs if isinstance(self.family, LinearGaussian) else self.family.dim)

    def _inputs(self, prompts: Tensor) -> Tensor:
        if self.inputs is None:
            raise ValueError(f"models.{self.name}: prompts index a table of inputs; none was given")
        return self.inputs[prompts]


def closed_form_models(
    eco: schema.Ecosystem, theta: Tensor, inputs: Tensor | None = None, program: Program | None = None
) -> dict[str, ClosedForm]:
    """Every model of an ecosystem at given parameters.

    Args:
        eco: Of closed-form families.
        theta: (D,) all models' parameters as :class:`crossfeed.dynamics.program.Program` lays them out.
        inputs: (m, inputs) table of inputs (regression).
        program: The compiled ecosystem, where there is one already.

    Raises:
        NotAvailableError: its models are networks.
        ValueError: θ of another length.
    """
    program = compile_ecosystem(eco) if program is None else program
    if theta.shape != (program.num_params,):
        raise ValueError(f"theta: found shape {tuple(theta.shape)}; need ({program.num_params},), all models together")
    made: dict[str, ClosedForm] = {}
    for group in program.model_groups:
        for row, member in enumerate(group.members.tolist()):
            one = group.family.take(torch.tensor([row]))
            made[program.names[member]] = ClosedForm(program.names[member], one, theta[program.span(member)], inputs)
    return {name: made[name] for name in program.names}


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


def reward_function(
    eco: schema.Ecosystem, name: str, outcomes: Any = None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A reward as a function of outputs (n, ·) and inputs (n, inputs) or None: (n,), constants included.

    Differentiable in vectors and answers.

    Args:
        eco: The ecosystem.
        name: Under ``rewards``.
        outcomes: ``Program.outcomes``, for finite outcome sets.
    """
    reward = eco.rewards[name]
    if outcomes is not None:
        table = spaces.reward_table(eco, name, outcomes)
        return lambda y, x: table[y]
    if isinstance(reward, schema.CallableReward):
        fn = spaces.callable_reward(reward, name)
        return lambda y, x: fn(y if x is None else torch.cat([x, y], -1))
    assert isinstance(reward, (schema.LinearReward, schema.QuadraticReward))  # others need outcomes
    vector = None if reward.vector is None else spaces.tensor(reward.vector).reshape(-1)
    matrix = spaces.tensor(reward.matrix) if isinstance(reward, schema.QuadraticReward) else None
    constant = reward.constant

    def value(y: Tensor, x: Tensor | None) -> Tensor:
        def part(size: int) -> Tensor:
            return y if x is None or size == y.shape[-1] else torch.cat([x, y], -1)

        total = torch.full(y.shape[:1], constant, dtype=y.dtype)
        if vector is not None:
            total = total + part(len(vector)) @ vector
        if matrix is not None:
            z = part(len(matrix) if matrix.ndim else y.shape[-1])
            total = total + 0.5 * torch.einsum("ni,ij,nj->n", z, spaces.as_matrix(matrix, z.shape[-1]), z)
        return total

    return value


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
            outputs = outputs + noise @ _root(spaces.as_matrix(data.noise, space.outputs)).T
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
