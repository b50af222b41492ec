"""Closed-form ecosystems whose influence matrix is known, and estimates of it from many independent samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import solve as solve_stable
from crossfeed.estimate.bank import Bank, build_bank
from crossfeed.estimate.closed_form_draws import closed_form_samples
from crossfeed.estimate.draws import Draws, one_each
from crossfeed.estimate.estimator import Estimate, estimate
from crossfeed.estimate.influence import solve
from crossfeed.influence.matrix import influence
from ecosystems import FAMILIES, random_ecosystem

FINITE_SIZE = 8
MAP = s.Affine(matrix=[[0.6, -0.3], [0.3, 0.6]], shift=[0.2, -0.1])


def pair(kind: str = "finite", edges: str = "both", ridge: float = 0.0, raw: Any = None, **pick: Any) -> s.Ecosystem:
    """Two models p and q with .3 real data.

    Args:
        kind: ``finite`` (log-linear, two features of eight outcomes) or ``vectors`` (N(θ, Σ), two dimensions).
        edges: ``both``: .1 raw and .3 curated of themselves, the same of the other; ``raw``: .4 raw of the other, .3
            curated of themselves; ``curated``: .7 curated of the other, no loops.
        ridge: Of both.
        raw: Further fields of raw sources.
        pick: Further fields of curated sources.
    """
    rng = np.random.default_rng(0 if kind == "finite" else 1)
    pick = {"candidates": 2, **pick}
    rewards: dict[str, s.Reward]
    data: dict[str, s.Data]
    if kind == "finite":
        features = rng.standard_normal((FINITE_SIZE, 2)).round(2)
        spaces: Any = s.Outcomes(count=FINITE_SIZE)
        data = {n: s.DistributionData(weights=rng.dirichlet(np.full(FINITE_SIZE, 3.0)).round(3)) for n in "pq"}
        tilt = {"p": [0.9, 0.2], "q": [-0.3, 0.8]}
        rewards = {
            n: s.TableReward(values=(features @ v + 0.5 * rng.standard_normal(FINITE_SIZE)).round(3))
            for n, v in tilt.items()
        }
        family: dict[str, s.Family] = dict.fromkeys("pq", s.LogLinear(features=features))
    else:
        spaces = s.Vectors(dim=2)
        data = {n: s.MomentsData(mean=rng.standard_normal(2).round(2), cov=0.5) for n in "pq"}
        rewards = {"p": s.LinearReward(vector=[0.9, 0.2]), "q": s.LinearReward(vector=[-0.3, 0.8])}
        family = {"p": s.GaussianMean(cov=[[1.0, 0.3], [0.3, 0.7]]), "q": s.GaussianMean(cov=0.8)}
    models = {}
    for name, other in (("p", "q"), ("q", "p")):
        sources: list[s.Source] = [s.Real(data=name, weight=0.3)]
        shares = {
            "both": (0.1, 0.1, 0.25, 0.25),
            "raw": (0.0, 0.4, 0.3, 0.0),
            "curated": (0.0, 0.0, 0.0, 0.7),
        }[edges]
        for producer, weight in zip((name, other), shares[:2], strict=True):
            if weight:
                sources.append(s.Raw(producer=producer, weight=weight, **(raw or {})))
        for producer, weight in zip((name, other), shares[2:], strict=True):
            if weight:
                sources.append(s.Curated(producer=producer, weight=weight, **pick))
        models[name] = s.Model(family=family[name], reward=name, ridge=ridge, sources=sources)
    return s.Ecosystem(space=spaces, data=data, rewards=rewards, models=models)


def lacking() -> s.Ecosystem:
    """Categorical models that lack outcomes, so that some of their parameters are idle, each others of them."""
    sources = {
        "p": [
            s.Real(data="few", weight=0.6),
            s.Curated(producer="p", weight=0.4, candidates=3, temperature=0, noise=0.1),
        ],
        "q": [
            s.Real(data="more", weight=0.4),
            s.Raw(producer="p", weight=0.2, sampling_temperature=0.7),
            s.Curated(producer="p", weight=0.2, candidates=2),
            s.Curated(producer="q", weight=0.2, candidates=2, then=s.Pick(candidates=2, curator="p")),
        ],
    }
    return s.Ecosystem(
        space=s.Outcomes(count=6),
        data={
            "few": s.DistributionData(weights=[2, 0, 1, 0, 1, 0]),
            "more": s.DistributionData(weights=[1, 1, 0, 2, 0, 0]),
        },
        rewards={"p": s.TableReward(values=[0, 1, 1, -1, 0.5, 9]), "q": s.TableReward(values=[1, 0, 2, 0, 0, 9])},
        models={name: s.Model(family=s.Categorical(), reward=name, sources=sources[name]) for name in "pq"},
    )


def of_family(family: str) -> s.Ecosystem:
    """Three models drawn at random, with the first seed that has raw and curated edges between models."""
    for seed in range(1, 100):
        eco = random_ecosystem(family, 3, seed, candidates=(2, 3, 4), curation=True)
        made = [(name, x) for name, m in eco.models.items() for x in m.sources if isinstance(x, s.Raw | s.Curated)]
        if {type(x) for name, x in made if x.producer != name} == {s.Raw, s.Curated}:
            return eco
    raise AssertionError(family)


CASES: dict[str, Callable[[], s.Ecosystem]] = {
    **{family: lambda family=family: of_family(family) for family in FAMILIES},
    **{
        f"{kind}, K = {K}": lambda k=kind, K=K: pair(k, candidates=K)
        for kind in ("finite", "vectors")
        for K in (2, 4, 8)
    },
    **{
        f"{kind}, best of {K}": lambda k=kind, K=K: pair(k, candidates=K, temperature=0.0)
        for kind in ("finite", "vectors")
        for K in (4, 8)
    },
    "finite, raw edges": lambda: pair(edges="raw", candidates=4),
    "vectors, raw edges": lambda: pair("vectors", edges="raw", candidates=4),
    "finite, curated edges": lambda: pair(edges="curated", candidates=4),
    "vectors, curated edges": lambda: pair("vectors", edges="curated", candidates=4),
    "outcomes that models lack": lacking,
    "finite, noise": lambda: pair(candidates=3, noise=0.3, other_curator="q", other_share=0.2),
    "finite, two stages": lambda: pair(candidates=2, then=s.Pick(candidates=3, temperature=0.5)),
    "vectors, maps": lambda: pair("vectors", candidates=3, raw={"map": MAP}, map=MAP),
    "finite, temperature": lambda: pair(candidates=3, raw={"sampling_temperature": 1.4}, sampling_temperature=0.8),
    "finite, ridge": lambda: pair(candidates=3, ridge=0.2),
    "vectors, ridge": lambda: pair("vectors", candidates=3, ridge=0.3),
}


class Truth(NamedTuple):
    """An ecosystem at its stable point, with the exact matrix (E, C)."""

    eco: s.Ecosystem
    program: Program
    theta: Tensor
    matrix: Tensor


class Repeats(NamedTuple):
    """R estimates from independent samples, entries that are not zero by structure alone.

    Attributes:
        exact: (M,).
        plain: (R, M) estimates.
        corrected: (R′, M) of the first R′ repetitions, 2 T(all) − (T(first half) + T(second half))/2, whose O(1/n) bias is gone
            and whose first-order error is T's own.
        errors: (R, M) standard errors of T.
    """

    exact: Tensor
    plain: Tensor
    corrected: Tensor
    errors: Tensor


def truth(eco: s.Ecosystem) -> Truth:
    """The exact influence of every model's curation on every evaluation."""
    program = compile_ecosystem(eco)
    theta = solve_stable(program).require()
    found = influence(eco, program, theta)
    return Truth(eco, program, theta, found.by_evaluation[:, found.intervened])


def sampled(known: Truth, num: int, seed: int, change: Callable[[Draws], Draws] | None = None) -> tuple[Bank, Estimate]:
    """Bank and estimate from fresh samples; ``change`` spoils them."""
    models, draws = closed_form_samples(known.eco, known.theta, num, seed, program=known.program)
    bank = build_bank(models, draws if change is None else change(draws), dict.fromkeys(models))
    return bank, estimate(known.eco, bank)


def halves(bank: Bank, found: Estimate) -> Tensor:
    """(E, C) mean of the estimates from either half of every draw's groups."""
    num = found.effects.shape[0]
    first = torch.zeros(num, dtype=torch.float64)
    for rows in (*bank.sources, *bank.evaluations):
        first[rows.draw.clusters[: len(rows.draw.clusters) // 2]] = 1.0
    parts = [solve(bank, found.horizon, found.directions, weights=w).matrix for w in (first, 1 - first)]
    return (parts[0] + parts[1]) / 2


def repeat(known: Truth, num: int, repeats: int, seed: int, corrected: int = 0) -> Repeats:
    """Estimates from samples of seeds ``seed``, ``seed + 1``, …, n groups a source each; bias taken out of the first ``corrected``."""
    plain, errors = [], []
    better = [torch.zeros(0, *known.matrix.shape, dtype=torch.float64)]
    for number in range(repeats):
        bank, found = sampled(known, num, seed + number)
        plain.append(found.answer.matrix)
        errors.append(found.errors)
        if number < corrected:
            better.append((2 * found.answer.matrix - halves(bank, found))[None])
    free = (known.matrix.abs() > 1e-12) | (torch.stack(errors).amax(0) > 1e-12)
    return Repeats(
        known.matrix[free], *(x[:, free] for x in (torch.stack(plain), torch.cat(better), torch.stack(errors)))
    )


def z_scores(samples: Tensor, exact: Tensor) -> Tensor:
    """(M,) error of the mean of (R, M) in its standard errors; Student's t with R − 1 degrees of freedom if normal."""
    return (samples.mean(0) - exact) / (samples.std(0) / len(samples) ** 0.5)


def covered(found: Repeats, level: float = 1.959964) -> Tensor:
    """(M,) share of the normal 95 % intervals that cover the exact value."""
    return ((found.plain - found.exact).abs() < level * found.errors).double().mean(0)


def slope(found: dict[int, Repeats]) -> float:
    """Of log RMSE, averaged over entries, against log n, by least squares."""
    x = torch.tensor(sorted(found), dtype=torch.float64).log()
    y = torch.stack([(found[n].plain - found[n].exact).square().mean(0).log().mean() / 2 for n in sorted(found)])
    return float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())


def winners_only(draws: Draws) -> Draws:
    """A wrong estimator: groups replaced by one pick each, whose score alone then counts."""
    rng = torch.Generator().manual_seed(0)
    sources = []
    for d in draws.sources:
        if d.curated:
            K = d.candidates
            at = torch.arange(len(d.prompts)) * K + torch.multinomial(d.probabilities, 1, generator=rng)[:, 0]
            made = None if d.made is None else d.made[at]
            d = replace(d, outputs=d.outputs[at], made=made, probabilities=one_each(len(at)), rewards={}, noise=None)
        sources.append(d)
    return replace(draws, sources=sources)
