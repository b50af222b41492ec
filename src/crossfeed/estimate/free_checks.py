"""What must hold for a matrix-free estimate to mean anything: of each batch a few facts, of all together the checks of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.errors import CheckFailedError
from crossfeed.estimate.checks import (
    FALSE_ALARM,
    Check,
    kish,
    of_clipping,
    of_course,
    of_expansion,
    of_rewards,
    of_samples,
    of_stability,
    score_test,
)
from crossfeed.estimate.couplings import made_of
from crossfeed.estimate.derivatives import sampler_tangent, unflatten
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.estimator import most_expansion
from crossfeed.estimate.free_batches import Plan
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.networks.base import Outputs

PROJECTIONS = 4
"""Random directions that scores are looked at along."""
PROBED = 8
"""Outputs whose tangent is compared with a difference."""
STEP = 1e-3
"""Of that difference, relative to the parameters."""
GROWING = 1.15
"""Growth of a change in a round from which on the course is doubtful."""
OFF = 0.2
"""Relative difference from which on the check warns; cuts to the range of images make some."""


@dataclass(frozen=True)
class Facts:
    """What the checks need of a batch, without its vectors.

    Attributes:
        converged: Whether all solves did.
        residual: The worst.
        products: With curvatures, in all.
        passes: Samples gone through, whatever for.
        bytes: Of vectors and rows that were kept at one time, about.
        curvature: By model, the largest eigenvalue.
        beyond: By model, how far its steps are beyond the edge of stability (ηλ); None: they are not.
        shorten: By model, what clipping leaves of a step.
        same: By producer, the share of its outputs that equal another one.
        chances: Of score tests, by producer.
    """

    converged: bool
    residual: float
    products: int
    passes: int
    bytes: int
    curvature: list[float]
    beyond: list[float | None]
    shorten: list[float]
    same: dict[str, float]
    chances: list[tuple[float, str]]


def facts_of(loop: MatrixFree) -> Facts:
    """Look at a batch that has been solved.

    Raises:
        CheckFailedError: outputs that are not finite, or all gradients of a model zero.
    """
    for name in loop.names:
        own = [s for s, draw in enumerate(loop.draws.sources) if draw.consumer == name and loop.mixture[s]]
        if not any(bool((loop.mean(s) != 0).any()) for s in own):
            raise CheckFailedError(
                f"models.{name}: all gradients of its loss are zero; its adapter is frozen or not in use: look at `lora.target` and "
                "the checkpoint"
            )
        if not all(bool(loop.mean(s).isfinite().all()) for s in own):
            raise CheckFailedError(
                f"models.{name}: found gradients that are not finite; look at its checkpoint and its training"
            )
    curvature = [loop.largest_curvature(i) for i in range(len(loop.names))]
    beyond = []
    for steps, value in zip(loop.steps, curvature, strict=True):
        over = bool(steps.beyond(torch.tensor([value], dtype=torch.float64), 0).any())
        beyond.append(steps.largest_rate * value if over else None)
    passes = sum(sum(model.samples.values()) for model in loop.models)
    return Facts(
        all(solve.result == "converged" for solve in loop.solves),
        max((solve.residual for solve in loop.solves), default=0.0),
        sum(solve.steps for solve in loop.solves),
        passes,
        loop.nbytes,
        curvature,
        beyond,
        [steps.shorten for steps in loop.steps],
        _same(loop.draws),
        _chances(loop),
    )


def _same(draws: Draws) -> dict[str, float]:
    """By producer, the largest share of outputs that equal another one."""
    out: dict[str, float] = {}
    for draw in draws.sources:
        if draw.producer is None:
            continue
        outputs = made_of(draw)
        if isinstance(outputs, torch.Tensor) and not bool(outputs.isfinite().all()):
            raise CheckFailedError(
                f"models.{draw.producer}: found outputs that are not finite; look at its checkpoint and its training"
            )
        out[draw.producer] = max(out.get(draw.producer, 0.0), _repeats(outputs))
    return out


def _repeats(outputs: Outputs) -> float:
    different = len(set(outputs)) if isinstance(outputs, list) else len(outputs.flatten(1).unique(dim=0))
    return 1 - different / max(1, len(outputs))


def _chances(loop: MatrixFree) -> list[tuple[float, str]]:
    """Of every producer with a likelihood, P(its mean score as large by chance), along random directions."""
    out, seen = [], set[int]()
    for draw in loop.draws.sources:
        made = made_of(draw)
        if draw.producer is None or draw.producer in loop.pathwise or id(made) in seen:
            continue
        seen.add(id(made))
        j = loop.names.index(draw.producer)
        random = torch.Generator().manual_seed(loop.solver.seed)
        along = torch.randn(PROJECTIONS, loop.sizes[j], generator=random, dtype=torch.float64).to(
            loop.device, loop.solver.dtype
        )
        found = [loop.models[j].score_products(draw.all_prompts, made, draw.temperature, x) for x in along]
        _, chance = score_test(torch.stack(found, 1), torch.arange(len(found[0])))
        out.append((chance, draw.producer))
    return out


def all_checks(
    plan: Plan, facts: Sequence[Facts], draws: Sequence[Draws], course: Tensor, grown: float, fisher: float
) -> list[Check]:
    """Every check that needs no gradient bank, in the order of the report.

    Args:
        plan: What all batches have in common; its models at the parameters of the batches.
        facts: By batch.
        draws: By batch.
        course: (shown, E) predicted change of alignment if nothing changes.
        grown: By how much a round multiplied what moved.
        fisher: Share of the empirical Fisher matrix.
    """
    sets = [[batch.sources[s] for batch in draws] for s in range(len(draws[0].sources))]
    counted = [
        (
            f"{found[0].consumer}.{found[0].name}",
            kish_of([draw.clusters for draw in found], plan.point.world.medium == "text"),
            len(torch.cat([draw.prompts for draw in found]).unique()),
        )
        for found in sets
        if found[0].weight
    ]
    out = [Check("gradients", "passed", "Every model's outputs and gradients are finite, and gradients not all zero.")]
    if any(fact.chances for fact in facts):
        out.append(_scores(facts))
    out += [_tangent(plan, name, draws[0]) for name in plan.models if name in plan.pathwise]
    out += [of_samples(counted), _repeated(facts), of_rewards(draws[0].sources, draws[0].evaluations), _solved(facts)]
    pairs = list(zip(plan.models, *(zip(*(f.beyond for f in facts), strict=True),), strict=True))
    over = [(name, max((v for v in values if v is not None), default=None)) for name, values in pairs]
    out.append(of_stability([f"{name} (ηλ = {value:.2g})" for name, value in over if value is not None]))
    one = Check("expansion", "passed", "With one round ahead nothing can grow from round to round.")
    out.append(of_expansion(grown, most_expansion(len(plan.rounds)), fisher) if len(plan.rounds) > 1 else one)
    shortened = zip(plan.models, facts[0].shorten, strict=True)
    out.append(of_clipping(dict(shortened)))
    dropout = _dropout(plan)
    if dropout is not None:
        out.append(dropout)
    out.append(of_course(draws[0].evaluations, course[-1]))
    return out


def kish_of(clusters: Sequence[Tensor], shared: bool) -> float:
    """Effective number of clusters in all batches, which share their numbers (prompts) or do not."""
    return kish(torch.cat(list(clusters))) if shared else sum(kish(part) for part in clusters)


def _scores(facts: Sequence[Facts]) -> Check:
    chances = [pair for fact in facts for pair in fact.chances]
    chance, name = min(chances)
    if chance * len(chances) < FALSE_ALARM:
        return Check(
            "scores",
            "failed",
            f"The mean score of what {name} sampled is not zero (p = {chance:.1g}): its samples do not come from the likelihood that is "
            "differentiated. Look at the sampling temperature, nucleus, and dropout.",
        )
    return Check(
        "scores",
        "passed",
        f"Mean scores of samples, along {PROJECTIONS} random directions, are zero within their error (smallest of {len(chances)} "
        f"p-values {chance:.2g}): samplers and likelihoods agree.",
    )


def _tangent(plan: Plan, name: str, draws: Draws) -> Check:
    """The sampler's tangent along one random direction against a finite difference, on a few outputs."""
    model, parameters = plan.models[name], plan.models[name].parameters()
    draw = next(draw for draw in draws.evaluations if draw.model == name)
    assert draw.noise is not None
    prompts, noise = draw.all_prompts[:PROBED], draw.noise[:PROBED].to(model.device)
    random = torch.Generator().manual_seed(plan.seed)
    parts = []
    for value in parameters.values():
        part = torch.randn(value.shape, generator=random).to(value)
        parts.append((part * value.norm() / part.norm()).flatten())
    off = difference(plan, name, prompts, noise, torch.cat(parts))
    words = f"{name}'s sampler moves along a random direction as its derivative says, within {100 * off:.1g} % of the difference quotient."
    if off > OFF:
        words = (
            f"The derivative of {name}'s sampler is {100 * off:.0f} % off its difference quotient along a random direction: cuts to the "
            "range of images, or few bits, make outputs jump; its effects are rough."
        )
        return Check(f"sampler of {name}", "warning", words)
    return Check(f"sampler of {name}", "passed", words)


def difference(plan: Plan, name: str, prompts: Tensor, noise: Tensor, v: Tensor) -> float:
    """‖ẏ − δ‖/‖δ‖, δ = (y(θ + hv) − y(θ − hv))/2h, for the sampler of a model, h = :data:`STEP`."""
    model = plan.models[name]
    parameters, step = model.parameters(), unflatten(model.parameters(), v)
    _, tangent = sampler_tangent(model, parameters, prompts, noise, v, model.chunk, True)
    ends = []
    for sign in (1, -1):
        there = {key: value + sign * STEP * step[key] for key, value in parameters.items()}
        with torch.no_grad():
            ends.append(model.rsample(there, prompts, noise, evaluating=True).double())
    want = (ends[0] - ends[1]) / (2 * STEP)
    return float((tangent.double() - want).norm() / want.norm().clamp_min(1e-300))


def _repeated(facts: Sequence[Facts]) -> Check:
    share = {name: max(fact.same.get(name, 0.0) for fact in facts) for fact in facts for name in fact.same}
    bad = [f"{name} ({100 * value:.0f} %)" for name, value in share.items() if value > 0.05]
    if bad:
        words = f"Outputs repeat each other: {', '.join(bad)}; the model has collapsed or its sampler is stuck."
        return Check("repeats", "warning", words)
    return Check("repeats", "passed", "Outputs differ from each other.")


def _solved(facts: Sequence[Facts]) -> Check:
    products, worst = sum(fact.products for fact in facts), max(fact.residual for fact in facts)
    if not all(fact.converged for fact in facts):
        words = f"A solve with the curvature stopped at its budget with a residual of {worst:.1g}; sizes are rough."
        return Check("solver", "warning", words)
    if not products:
        return Check("solver", "passed", "Functions of the curvature were worked out exactly from its kept rows.")
    return Check(
        "solver",
        "passed",
        f"All solves with the curvature converged (worst residual {worst:.1g}; {products:,} products).",
    )


def _dropout(plan: Plan) -> Check | None:
    rates = {
        name: getattr(getattr(model.family, "lora", None), "dropout", 0.0) for name, model in plan.eco.models.items()
    }
    bad = [f"{name} ({rate:g})" for name, rate in rates.items() if rate]
    if not bad:
        return None
    return Check("dropout", "warning", f"Trained with dropout, which derivatives leave out: {', '.join(bad)}.")


def of_reach(names: Sequence[str], reach: Sequence[float], farthest: float) -> Check:
    """How far the loop is predicted to carry the models to the middle of the horizon, in lengths of their parameters."""
    far = [f"{name} ({100 * value:.0f} %)" for name, value in zip(names, reach, strict=False) if value > farthest]
    if far:
        return Check(
            "reach",
            "warning",
            f"The linearised loop would carry {', '.join(far)} of the length of their parameters by the middle of the horizon, farther "
            "than it can be trusted: these stay where they are for the estimate. Use a shorter horizon or more samples.",
        )
    if not reach:
        return Check("reach", "passed", "Gradients are taken at the present parameters, without looking ahead.")
    most = max(reach)
    return Check(
        "reach",
        "passed",
        f"By the middle of the horizon models move by up to {100 * most:.2g} % of the length of their parameters.",
    )


def of_pilot(factor: float) -> Check:
    """The loop that told where the models go, at their present parameters, does not explode."""
    if factor > GROWING:
        return Check(
            "course",
            "warning",
            f"At the present parameters a round of the linearised loop multiplies some change by {factor:.2g}: where the loop goes by "
            "itself is hardly known beyond the first rounds, nor how the answer hangs on it. More samples, a shorter horizon, or "
            "models that have settled tell more.",
        )
    return Check(
        "course", "passed", "At the present parameters, too, no round multiplies any change by much more than 1."
    )
