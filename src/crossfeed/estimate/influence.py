r"""The influence matrix from a bank: estimate, standard errors, isolated counterfactual, predicted trajectories.

    I[e, c] = dJ_e/dλ_c = ⟨∇J_e, x_c⟩,

x_c from :func:`crossfeed.estimate.horizon.forward` over R rounds (or D⁻¹v_c where the horizon is the stable point). Standard errors: the
estimate is a function of the weights of its clusters (prompts); its derivative by the weight of cluster c is ψ_c, and
SE² = n/(n−1) Σ_c ψ_c² (the infinitesimal jackknife). ψ follows from the adjoint for all pushes, couplings, curvatures and
rewards at once. How Q answers to the curvature's error is exact for exact retraining, Q = H⁻¹, whose −cᵀ dH x has x as it is after the
update; for optimisers, Q = f(H), it is left out, which bootstrap intervals include.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.estimate.bank import Bank, SourceRows
from crossfeed.estimate.draws import marginal
from crossfeed.estimate.horizon import Adjoint, Path
from crossfeed.estimate.legs import Horizon, Leg, return_, travel
from crossfeed.estimate.swings import Swings
from crossfeed.estimate.system import Judged, Moments, System, advantages, group_weights, judge, moments, pushes_of


@dataclass(frozen=True, eq=False)
class Answer:
    """The influence matrix at one mixture, and one leg's part in it.

    Attributes:
        matrix: (E, C) dJ_e/dλ_c.
        isolated: (E, C) the same with every coupling between different models dropped.
        push: (E, C) one round of one unit step ahead, ⟨∇J_e, v_c⟩: the raw alignment of push and reward, not normalised.
        judged: J and ∇J by evaluation.
        system: The blocks.
        pushes: By model, (r_i, C).
        path: Forward; None at the stable point.
        adjoint: Backward; None at the stable point.
        response: By model, x (r_i, C) at the end.
        weight: By model, dJ_e/dv_i (r_i, E).
        swings: What pushes besides, round by round; None: nothing.
    """

    matrix: Tensor
    isolated: Tensor
    push: Tensor
    judged: list[Judged]
    system: System
    pushes: list[Tensor]
    path: Path | None
    adjoint: Adjoint | None
    response: list[Tensor]
    weight: list[Tensor]
    swings: Swings | None = None

    @property
    def asked(self) -> Tensor | None:
        """(E, C) of ``matrix``, what moving what models are asked does in this leg; None where it does not move."""
        return None if self.swings is None or self.adjoint is None else self.swings.effect(self.adjoint)


def outcomes(bank: Bank, judged: Sequence[Judged], sizes: Sequence[int]) -> list[Tensor]:
    """By model, ∇J (r_i, E) of every evaluation by its parameters."""
    out = [torch.zeros(size, len(judged), dtype=torch.float64) for size in sizes]
    for e, (rows, found) in enumerate(zip(bank.evaluations, judged, strict=True)):
        out[rows.model][:, e] = found.gradient
    return out


def solve(
    bank: Bank,
    horizon: Horizon,
    directions: Sequence[Mapping[int, float]],
    *,
    weights: Tensor | None = None,
    found: Sequence[Moments] | None = None,
    mixture: Sequence[float] | None = None,
    system: System | None = None,
    pushes: list[Tensor] | None = None,
) -> Answer:
    """The influence matrix.

    Args:
        bank: Gradients.
        horizon: How far ahead.
        directions: By column, d(weight)/dλ by the source's number in the bank.
        weights: (C,) of clusters, for bootstraps.
        found: Moments by source, when they are known.
        mixture: Weight of every source; None: the spec's.
        system: The blocks, when they are known.
        pushes: By model, (r_i, C) instead of those of ``directions``.
    """
    if system is None:
        found = found or [moments(rows, weights) for rows in bank.sources]
        system = System(bank, found, horizon.steps, horizon.ridge, mixture, horizon.fisher)
    pushes = system.pushes(directions) if pushes is None else pushes
    judged = [judge(rows, weights) for rows in bank.evaluations]
    if horizon.rounds is not None:
        return solve_legs([Leg(bank, horizon, system, 0, len(horizon.rounds))], [pushes], judged)[0]
    goals = outcomes(bank, judged, system.sizes)
    response, apart = system.stable(pushes), System.alone(system).stable(pushes)
    weight = system.stable(goals, transpose=True)
    matrices = meet(goals, response), meet(goals, apart), meet(goals, pushes)
    return Answer(*matrices, judged, system, pushes, None, None, response, weight)


def solve_legs(
    legs: Sequence[Leg],
    pushes: Sequence[list[Tensor]],
    judged: Sequence[Judged] | None = None,
    swings: Sequence[Swings | None] | None = None,
) -> list[Answer]:
    """The influence matrix of a horizon in legs: one answer a leg, with the same matrices.

    Args:
        legs: In order.
        pushes: By leg and model, (r_i, C).
        judged: J and ∇J by evaluation of the last leg's bank; None: at equal weights.
        swings: By leg, what pushes besides (:mod:`crossfeed.estimate.swings`); None: nothing.
    """
    last, swings = legs[-1], swings or [None] * len(legs)
    judged = [judge(rows) for rows in last.bank.evaluations] if judged is None else list(judged)
    goals = outcomes(last.bank, judged, last.system.sizes)
    paths, backs = travel(legs, pushes, swings), return_(legs, goals)
    apart = travel(legs, pushes, [None if s is None else s.isolated for s in swings], alone=True)[-1].end
    matrices = meet(goals, paths[-1].end), meet(goals, apart), meet(goals, pushes[-1])
    return [
        Answer(*matrices, judged, leg.system, list(push), path, way, path.end, way.total, swing)
        for leg, push, path, way, swing in zip(legs, pushes, paths, backs, swings, strict=True)
    ]


def meet(goals: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """Σ_i g_iᵀ x_i (E, C) of gradients (r_i, E) and states (r_i, C) by model."""
    return torch.stack([g.T @ part for g, part in zip(goals, x, strict=True)]).sum(0)


def cluster_effects(bank: Bank, answer: Answer, directions: Sequence[Mapping[int, float]], num: int) -> Tensor:
    """ψ (num, E, C): the derivative of every entry by the weight of every cluster, at equal weights.

    Args:
        bank: Gradients.
        answer: From :func:`solve` at equal weights.
        directions: As there.
        num: Number of clusters.
    """
    E, C = answer.matrix.shape
    out = torch.zeros(num, E, C, dtype=torch.float64)
    if not E * C:
        return out
    for s, rows in enumerate(bank.sources):
        weight = answer.system.mixture[s]
        slopes = torch.tensor([slopes.get(s, 0.0) for slopes in directions], dtype=torch.float64)
        if not weight and not bool(slopes.any()):
            continue
        i, j = rows.consumer, rows.producer
        p, loss = group_weights(rows.draw.clusters, None), rows.loss
        clusters, chance = rows.draw.clusters.repeat_interleave(rows.draw.candidates), marginal(rows.draw, p)
        pulled = (loss @ answer.weight[i].to(loss.dtype)).double()
        _add(out, clusters, chance, -slopes * pulled[:, :, None])
        if not weight or rows.mirrored:  # its curvature and its coupling cancel, sample by sample
            continue
        if answer.path is not None and all(model != i for _, model in answer.path.updates):
            continue  # not its turn in this leg
        if answer.swings is not None and s in answer.swings.ratios:
            _add(out, clusters, chance, -weight * _swung(rows, answer, answer.swings.ratios[s]))
        c, x, xj = _updates(answer, i, j, loss.dtype)
        share = answer.system.fisher if rows.hessian is None else 0.0
        if rows.hessian is not None:
            _add(out, rows.draw.clusters, p, -weight * _of_hessian(rows, p, c, x, E, C))
        elif share < 1:
            some = chance[rows.curved] / chance[rows.curved].sum()
            bent = _meeting(rows.curvature, c, x, E, C)
            _add(out, clusters[rows.curved], some, -weight * (1 - share) * bent)
        if share:
            flat = loss if rows.loss_factor is None else loss * rows.loss_factor.to(loss.dtype)[:, None]
            _add(out, clusters, chance, -weight * share * _meeting(flat, c, x, E, C))
        for group in (groupings := rows.draw.groupings() if rows.score is not None else []):
            grouped, scores = pushes_of(rows, group)
            centred = (grouped @ c).double().unflatten(-1, (-1, E))
            centred = (centred - torch.einsum("g,gue->ue", p, centred)) / (1 - p.square().sum())
            moved = (scores @ xj).double().unflatten(-1, (-1, C))
            moved = moved - torch.einsum("g,guc->uc", p, moved)
            _add(out, rows.draw.clusters, p, -weight / len(groupings) * torch.einsum("gue,guc->gec", centred, moved))
    for e, judged in enumerate(bank.evaluations):
        p = group_weights(judged.draw.clusters, None)
        part = advantages(judged, p) / judged.draw.rewards.shape[1]
        moved = (judged.score @ answer.response[judged.model].to(judged.score.dtype)).double().unflatten(0, part.shape)
        if part.shape[1] == 1:  # the other prompts are its baseline, and move with their weights
            moved = moved - torch.einsum("g,gkc->kc", p, moved)
        effect = torch.zeros(len(p), E, C, dtype=torch.float64)
        effect[:, e] = torch.einsum("gk,gkc->gc", part, moved)
        _add(out, judged.draw.clusters, p, effect)
    return out


def _of_hessian(rows: SourceRows, p: Tensor, c: Tensor, x: Tensor, E: int, C: int) -> Tensor:
    """Σ over updates of cᵀ C_g x by group (n, E, C), whose mean under p is that of the source's curvature."""
    assert rows.hessian is not None
    share = (p[:, None] * rows.draw.probabilities).requires_grad_()
    matrix = rows.hessian(share.flatten())
    bent = torch.einsum("rue,rs,suc->ec", _split(c, E), matrix, _split(x, C))
    out = torch.zeros(len(p), E, C, dtype=torch.float64)
    for e in range(E):
        for k in range(C):
            (slope,) = torch.autograd.grad(bent[e, k], share, retain_graph=True)
            out[:, e, k] = (slope * rows.draw.probabilities).sum(1)
    return out


def _meeting(rows: Tensor, c: Tensor, x: Tensor, E: int, C: int) -> Tensor:
    """Σ over updates of (cᵀ h)(hᵀ x) by row h, (m, E, C)."""
    left, right = ((rows @ z).double().unflatten(-1, (-1, n)) for z, n in ((c, E), (x, C)))
    return torch.einsum("mue,muc->mec", left, right)


def _swung(rows: SourceRows, answer: Answer, ratios: Tensor) -> Tensor:
    """Σ over updates of ρ cᵀ(φ − mean φ) by candidate (m, E, C)."""
    assert answer.adjoint is not None
    assert answer.swings is not None
    chance, out = marginal(rows.draw), torch.zeros(())
    for (number, model), c in zip(answer.adjoint.updates, answer.adjoint.answer, strict=True):
        if model == rows.consumer:
            met = (rows.loss @ c.to(rows.loss.dtype)).double()
            ratio = ratios[number - answer.swings.first].repeat_interleave(rows.draw.candidates, 0)
            out = out + (met - chance @ met)[:, :, None] * ratio[:, None, :]
    return out


def _split(columns: Tensor, size: int) -> Tensor:
    """(r, U·size) as (r, U, size), float64."""
    return columns.double().unflatten(-1, (-1, size))


def _updates(answer: Answer, i: int, j: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of all updates of model i: c (r_i, U·E), the x_i that the curvature meets and the x_j that they saw (r, U·C)."""
    if answer.path is None or answer.adjoint is None:
        found = [answer.weight[i]], [answer.response[i]], [answer.response[i if j is None else j]]
    else:
        mine = [u for u, (_, model) in enumerate(answer.path.updates) if model == i]
        found = (
            [answer.adjoint.answer[u] for u in mine],
            [_met(answer, answer.path, u) for u in mine],
            [answer.path.before[u][i if j is None else j] for u in mine],
        )
    c, x, xj = (torch.cat(parts, 1).to(dtype) for parts in found)
    return c, x, xj


def _met(answer: Answer, path: Path, u: int) -> Tensor:
    """The x_i that an update's error in H_i multiplies: before the update, or after it where it is exact."""
    number, i = path.updates[u]
    if answer.system.steps[i].training is not None:
        return path.before[u][i]
    return path.before[u][i] + answer.system.respond(i, path.force[u], number)


def _add(out: Tensor, clusters: Tensor, p: Tensor, effect: Tensor) -> None:
    """A mean over groups, or candidates, moves by p (t − mean) when the weight of one of them moves."""
    mean = torch.einsum("g,gec->ec", p, effect)
    out.index_add_(0, clusters, p[:, None, None] * (effect - mean))


def standard_errors(effects: Tensor, num: int) -> Tensor:
    """(E, C) √(n/(n−1) Σ_c ψ_c²), n clusters that occur."""
    return (effects.square().sum(0) * (num / max(1, num - 1))).sqrt()


def bootstrap(
    bank: Bank,
    horizon: Horizon,
    directions: Sequence[Mapping[int, float]],
    num_clusters: int,
    repeats: int,
    seed: int,
) -> Tensor:
    """(repeats, E, C) the estimate at random weights of the clusters, through everything (Rubin 1981, the Bayesian bootstrap)."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(repeats):
        weights = -torch.rand(num_clusters, dtype=torch.float64, generator=generator).clamp_min(1e-300).log()
        out.append(solve(bank, horizon, directions, weights=weights).matrix)
    return torch.stack(out)
