r"""Closed-form models as the estimator sees them: their families' losses, likelihoods, samplers and curvatures.

A closed-form ecosystem has an exact answer, so that whatever is estimated from samples of it (:mod:`crossfeed.estimate.closed_form_draws`)
can be compared with it. The only difference from networks is where the samples come from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Batch, Parameters
from crossfeed.families.base import LIKELIHOOD, RSAMPLE, Kept, hessian_of
from crossfeed.families.finite import Finite
from crossfeed.families.gaussian import GaussianMean, log_normal
from crossfeed.families.linear import LinearGaussian
from crossfeed.networks.base import Outputs

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
