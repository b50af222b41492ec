r"""Influence at every point of a grid, as one dense stack: the same theorem as :mod:`crossfeed.influence.matrix`.

I[v, i] = ⟨∇J_v, D⁻¹ (−∂F/∂λ_i)⟩,    isolated_v = ⟨∇J_v, D_ii⁻¹ (−∂F/∂λ_i)⟩ for the model i that v evaluates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.describe.settings import weight_direction
from crossfeed.dynamics.batch import blocks, round_radius
from crossfeed.dynamics.program import Program
from crossfeed.errors import SettingError
from crossfeed.families.base import jacobian
from crossfeed.influence.matrix import ZERO, influence, verdict

Direction = dict[str, float] | None
"""How the weights of a model's sources move with its curation ratio; None where there is none to raise."""


class GridInfluence:
    """What is known at every point of a grid, filled in batch by batch.

    Attributes:
        radius: (P,) growth of a small disturbance a round.
        influence: (P, V, N) dJ/dλ.
        isolated: (P, V) dJ/dλ of the evaluated model itself, all others frozen.
        verdicts: Per point and evaluation, of the evaluated model's own curation.
    """

    def __init__(self, program: Program, count: int) -> None:
        width, num = len(program.evaluations), program.num_models
        self.radius = np.full(count, np.nan)
        self.influence = np.full((count, width, num), np.nan)
        self.isolated = np.full((count, width), np.nan)
        self.verdicts: list[list[str | None]] = [[None] * width for _ in range(count)]
        self._still: dict[str, Direction] = {}

    def derive(
        self,
        program: Program,
        theta: Tensor,
        eco: schema.Ecosystem,
        moves: list[dict[str, Direction]],
        at: list[int],
    ) -> list[bool]:
        """Influence at a batch of stable points, and which of them retraining returns to."""
        found = blocks(program, theta)
        radius = round_radius(program, found, eco.update)
        self.radius[at] = radius.numpy()
        push = torch.zeros(len(at), program.num_params, program.num_models, dtype=theta.dtype)
        place = {(s.consumer, s.name): k for k, s in enumerate(program.sources)}
        for i, name in enumerate(program.names):
            rates = [m[name] if name in m else self._unmoved(eco, name) for m in moves]
            for source in rates[0] or {}:
                rate = torch.tensor([(r or {}).get(source, torch.nan) for r in rates], dtype=theta.dtype)
                push[:, :, i] -= rate[:, None] * found.mean_gradient[place[i, source]]
            if rates[0] is None:
                push[:, :, i] = torch.nan
        response = torch.linalg.solve_ex(found.matrix, torch.nan_to_num(push))[0]
        own = torch.linalg.solve_ex(found.diagonal, torch.nan_to_num(push))[0]
        gradient = _alignment_gradient(program, theta)
        model = torch.tensor([e.model for e in program.evaluations])
        undefined = torch.isnan(push).any(1)  # (B, N)
        total = torch.where(undefined[:, None], torch.nan, gradient @ response)
        alone = (gradient * own.movedim(-1, 1)[:, model]).sum(-1)
        alone = torch.where(undefined[:, model], torch.nan, alone)
        largest = torch.zeros(len(at), program.num_models, dtype=theta.dtype)
        for k, info in enumerate(program.sources):
            size = found.mean_gradient[k].norm(dim=-1)
            largest[:, info.consumer] = torch.maximum(largest[:, info.consumer], size)
        # what is left of single sources' pushes that cancel is rounding
        cancelled = (largest / torch.nan_to_num(push).norm(dim=1).clamp_min(1e-300)).clamp_min(1.0)
        small = ZERO * gradient.norm(dim=-1) * (response.norm(dim=1) * cancelled)[:, model]
        good = (radius < 1) & (response.norm(dim=1).amax(-1) <= 1e9 * own.norm(dim=1).amax(-1).clamp_min(1e-300))
        for b, k in enumerate(at):
            if bool(good[b]):
                self.influence[k], self.isolated[k] = total[b].numpy(), alone[b].numpy()
                self.verdicts[k] = [
                    verdict(float(total[b, v, i]), float(alone[b, v]), float(small[b, v]))
                    for v, i in enumerate(model.tolist())
                ]
        return (radius < 1).tolist()

    def derive_one(self, program: Program, theta: Tensor, eco: schema.Ecosystem, k: int) -> None:
        """Influence at one stable point of an ecosystem too large for dense derivatives; no radius."""
        found = influence(eco, program, theta)
        model = [e.model for e in program.evaluations]
        own = found.lin.isolated(found.push)
        alone = (found.alignment_gradient * own.T[model]).sum(-1)
        defined = torch.tensor([i in found.intervened for i in range(program.num_models)])
        total = torch.where(defined, found.by_evaluation, torch.nan)
        small = ZERO * found.alignment_gradient.norm(dim=1) * (found.response.norm(dim=0) * found.cancelled)[model]
        self.influence[k], self.isolated[k] = total.numpy(), torch.where(defined[model], alone, torch.nan).numpy()
        self.verdicts[k] = [verdict(float(total[v, i]), float(alone[v]), float(small[v])) for v, i in enumerate(model)]

    def _unmoved(self, eco: schema.Ecosystem, name: str) -> Direction:
        if name not in self._still:
            self._still[name] = direction(eco, name)
        return self._still[name]


def direction(eco: schema.Ecosystem, name: str) -> Direction:
    """How a model's weights move with its curation ratio."""
    try:
        return weight_direction(eco, f"{name}.curation")
    except SettingError:
        return None


def _alignment_gradient(program: Program, theta: Tensor) -> Tensor:
    """∇J of every evaluation at a batch of Θ, (B, V, D)."""
    out = torch.zeros(len(theta), len(program.evaluations), program.num_params, dtype=theta.dtype)
    for g in program.alignment_groups:

        def value(t: Tensor, kernel: Any = g.kernel) -> Tensor:
            found: Tensor = kernel.value(t)[..., None]
            return found

        row = jacobian(value, theta[:, g.theta_index])[..., 0, :]
        for v, evaluation in enumerate(g.evaluation.tolist()):
            out[:, evaluation, g.theta_index[v]] = row[:, v]
    return out
