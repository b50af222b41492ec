r"""Influence of curation (the paper's Theorem 4.5), for any number of models.

At a stable point F(Θ*; λ) = 0, so for any scalar λ of the spec

    dΘ*/dλ = −D⁻¹ ∂F/∂λ,    D = ∂F/∂Θ,

and for model i's curation ratio −∂F_i/∂λ_i = m_i / (1 − λ_i), with m_i the mean of −∇ℓ_i over its curated data. The influence
matrix is

    I[k, i] = dJ_k/dλ_i = ⟨∇J_k, [D⁻¹]_{ki} m_i⟩ / (1 − λ_i),

rows the affected model k, columns the intervened model i. With two models [D⁻¹]_{pp} = S_p and [D⁻¹]_{qp} = C_q S_p are the paper's
sensitivity and cross-influence matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from crossfeed.describe import schema, settings
from crossfeed.dynamics.linearise import Linearisation, linearise
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotStableError

ZERO = 1e-10
VERDICTS = ("helps", "dampened", "no effect", "backfires")


@dataclass(frozen=True)
class Influence:
    """The influence matrix and what it was made of.

    Attributes:
        program: The compiled ecosystem.
        theta: (D,) the stable point.
        lin: Its linearisation.
        push: (D, N) column i is −∂F/∂λ_i; zero where model i has no curated source.
        response: (D, N) dΘ*/dλ_i = D⁻¹ push.
        ratios: (N,) curation ratios λ_i.
        intervened: Models that have a curated source; other columns are not defined.
    """

    program: Program
    theta: Tensor
    lin: Linearisation
    push: Tensor
    response: Tensor
    ratios: Tensor
    intervened: list[int]

    @cached_property
    def alignment_gradient(self) -> Tensor:
        """(V, D) ∇J of every evaluation."""
        return self.program.alignment_gradient(self.theta)

    @cached_property
    def by_evaluation(self) -> Tensor:
        """(V, N) dJ/dλ_i of every evaluation."""
        gradient = scipy.sparse.csr_array(self.alignment_gradient.numpy())
        return torch.from_numpy(gradient @ self.response.numpy())

    @property
    def matrix(self) -> Tensor:
        """(N, N) I[k, i] = dJ_k/dλ_i, first evaluation of each model; NaN columns where there is nothing to raise."""
        return self._defined(self.by_evaluation[self.program.primary])

    @cached_property
    def _gradient(self) -> Tensor:
        """(D,) ∇J of every model by its own parameters, one after another."""
        return self.alignment_gradient[self.program.primary].sum(0)

    @cached_property
    def _own(self) -> Tensor:
        """(D,) how every model moves when its own curation rises and everyone else is frozen."""
        return self.lin.isolated(self.push.sum(1, keepdim=True))[:, 0]

    @cached_property
    def isolated(self) -> Tensor:
        """(N,) dJ_i/dλ_i if all other models were frozen (same mixtures, B_ij = 0 for i ≠ j)."""
        block = torch.repeat_interleave(
            torch.arange(self.program.num_models), torch.diff(torch.tensor(self.program.offsets))
        )
        values = torch.zeros(self.program.num_models, dtype=self.theta.dtype).index_add(
            0, block, self._gradient * self._own
        )
        return torch.where(self._mask, values, torch.nan)

    @cached_property
    def direct(self) -> Tensor:
        """(N, N) baseline: the isolated effect on the diagonal; off it, the effect over direct edges i → k alone."""
        out = torch.zeros(self.program.num_models, self.program.num_models, dtype=self.theta.dtype)
        answer = self.lin.isolated(self._gradient[:, None], transpose=True)[:, 0]  # D_kk⁻ᵀ∇J_k
        for e in self.lin.edges:
            ends = [
                (self.program.sources[s].consumer, self.program.sources[s].producer) for s in e.group.source.tolist()
            ]
            k, i = torch.tensor(ends).T
            out.index_put_(
                (k, i), -torch.einsum("er,erc,ec->e", answer[e.rows], e.value, self._own[e.cols]), accumulate=True
            )
        out.diagonal().copy_(self.isolated)
        return self._defined(out)

    @property
    def _mask(self) -> Tensor:
        mask = torch.zeros(self.program.num_models, dtype=torch.bool)
        mask[self.intervened] = True
        return mask

    def _defined(self, matrix: Tensor) -> Tensor:
        return torch.where(self._mask, matrix, torch.nan)

    @cached_property
    def verdicts(self) -> list[list[str | None]]:
        """Per pair: ``helps``, ``dampened`` (same sign as the baseline but smaller), ``no effect``, ``backfires`` (negative)."""
        rows = self.program.primary
        scale = self.alignment_gradient[rows].norm(dim=1)[:, None] * (self.response.norm(dim=0) * self.cancelled)[None]
        return [
            [verdict(v, b, z) for v, b, z in zip(vs, bs, zs, strict=True)]
            for vs, bs, zs in zip(self.matrix.tolist(), self.direct.tolist(), (ZERO * scale).tolist(), strict=True)
        ]

    @cached_property
    def cancelled(self) -> Tensor:
        """(N,) how much larger single sources push than their sum does: what is left of a push that cancels is rounding."""
        largest = torch.zeros(self.program.num_models, dtype=self.theta.dtype)
        for group, gradients in zip(self.program.source_groups, self.lin.mean_gradient, strict=True):
            consumer = self.program.model_groups[group.group].members[group.row]
            largest.scatter_reduce_(0, consumer, gradients.norm(dim=-1), "amax")
        return (largest / self.push.norm(dim=0).clamp_min(1e-300)).clamp_min(1.0)

    @cached_property
    def adjoint(self) -> Tensor:
        """(D, V) solution of Dᵀu = ∇J: dJ/d(any setting) = −⟨u, ∂F/∂setting⟩."""
        return self.lin.solve(self.alignment_gradient.T.contiguous(), transpose=True).value

    def of(self, path: str) -> Tensor:
        """(V,) dJ/d(setting) for any scalar setting of the compiled spec: a single weight, temperature, share, K or ridge.

        A single weight moves alone; use curation ratios for moves that keep the weights' sum.
        """
        return -(self.adjoint * self.lin.setting_gradient(path)[:, None]).sum(0)

    def sensitivity(self, model: int) -> Tensor:
        """S_i = [D⁻¹]_{ii} (d_i, d_i): how model i's stable point answers a push on model i, the ecosystem reacting."""
        return self.response_block(model, model)

    def cross(self, affected: int, intervened: int) -> Tensor:
        """C = [D⁻¹]_{ki} S_i⁻¹ (d_k, d_i): how k's stable point follows i's."""
        return torch.linalg.solve(self.sensitivity(intervened), self.response_block(affected, intervened), left=False)

    def response_block(self, affected: int, intervened: int) -> Tensor:
        """[D⁻¹]_{ki}, dense, (d_k, d_i)."""
        span = self.program.span(intervened)
        eye = torch.zeros(self.program.num_params, span.stop - span.start, dtype=self.theta.dtype)
        eye[span] = torch.eye(span.stop - span.start, dtype=self.theta.dtype)
        return self.lin.solve(eye).value[self.program.span(affected)]


def verdict(value: float, baseline: float, zero: float = ZERO) -> str | None:
    """One pair's verdict from its influence and its baseline; None where the influence is not defined."""
    if value != value:
        return None
    if abs(value) <= zero:
        return "no effect"
    if value < 0:
        return "backfires"
    return "dampened" if value < baseline * (1 - 1e-6) else "helps"


def curation_push(eco: schema.Ecosystem, lin: Linearisation) -> tuple[Tensor, list[int]]:
    """(D, N) −∂F/∂λ_i for every model with a curated source, and which those are."""
    program = lin.program
    at = {int(s): (number, row) for number, g in enumerate(program.source_groups) for row, s in enumerate(g.source)}
    place = {(s.consumer, s.name): k for k, s in enumerate(program.sources)}
    push = torch.zeros(program.num_params, program.num_models, dtype=lin.theta.dtype)
    found = []
    for i, (name, model) in enumerate(eco.models.items()):
        if not any(isinstance(s, schema.Curated) for s in model.sources):
            continue
        moves = settings.weight_direction(eco, f"{name}.curation")
        assert moves is not None
        found.append(i)
        for source, change in moves.items():
            number, row = at[place[i, source]]
            push[program.span(i), i] -= change * lin.mean_gradient[number][row]
    return push, found


def influence(eco: schema.Ecosystem, program: Program, theta: Tensor, lin: Linearisation | None = None) -> Influence:
    """The influence matrix at a stable point.

    Args:
        eco: The described ecosystem (whose curation rules say what gives way).
        program: The same, compiled.
        theta: (D,) a stable point, from :meth:`StablePoint.require`.
        lin: Its linearisation, when there is one already.

    Raises:
        NotStableError: when Θ is no stable point (‖F‖ too large), or is non-hyperbolic (D singular), so that no derivative exists.
    """
    lin = lin or linearise(program, theta)
    gap = float(program.gradient(theta).norm())
    size = float(torch.cat([g.norm(dim=-1) for g in lin.mean_gradient]).norm())
    if not gap <= 1e-6 * max(size, 1e-12):
        raise NotStableError(
            f"the parameters are no stable point: the mean gradient is {gap:.2g} where single sources push with {size:.2g}; "
            "solve for a stable point first"
        )
    push, found = curation_push(eco, lin)
    solution = lin.solve(push)
    own = float(lin.isolated(push.sum(1, keepdim=True)).norm())  # column i is a push on model i alone
    grown = float(solution.value.norm()) / max(own, 1e-300)
    if solution.result != "converged" or not np.isfinite(grown) or grown > 1e9:
        raise NotStableError(
            f"the stable point is not hyperbolic: D is singular to working precision (residual {solution.residual:.2g}, "
            f"amplification {grown:.2g}), so it does not move smoothly with the settings; add real data or a ridge"
        )
    ratios = torch.tensor([curation_ratio(m) for m in eco.models.values()], dtype=torch.float64)
    return Influence(program, theta, lin, push, solution.value, ratios, found)


def curation_ratio(model: schema.Model) -> float:
    """λ: total weight of a model's curated sources."""
    return sum(s.weight for s in model.sources if isinstance(s, schema.Curated))


def setting_response(eco: schema.Ecosystem, found: Influence, path: str) -> Tensor:
    """(D,) dΘ*/d(setting) for any settings path, moves that keep weights' sums included.

    Args:
        eco: The described ecosystem.
        found: Its influence.
        path: As in :mod:`crossfeed.describe.settings`, e.g. ``p.cross_share`` or ``p.sources.own.temperature``.
    """
    moves = settings.weight_direction(eco, path)
    if moves is None:
        change = found.lin.setting_gradient(path)
    else:
        model = path.split(".", 1)[0]
        change = torch.zeros(found.program.num_params, dtype=torch.float64)
        for source, rate in moves.items():
            change += rate * found.lin.setting_gradient(f"{model}.sources.{source}.weight")
    return found.lin.solve(-change[:, None]).value[:, 0]
