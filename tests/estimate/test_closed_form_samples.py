"""Samples of closed-form ecosystems against what the compiled ecosystem works out exactly.

Every statistical test compares means with exact values by z-scores and fails when the largest exceeds the Bonferroni bound:
each test's false-alarm rate, over all numbers it compares, is FALSE_ALARM if the seed were drawn (means taken as normal; the
seeds are fixed).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from scipy.stats import t as student
from torch import Tensor
from torch.func import grad, hessian, vmap

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import Linearisation, linearise
from crossfeed.dynamics.program import Program
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Batch, Differentiable
from crossfeed.estimate.closed_form import ClosedForm, closed_form_models
from crossfeed.estimate.closed_form_draws import closed_form_samples
from crossfeed.estimate.draws import Draws, SourceDraw
from crossfeed.estimate.reward_functions import reward_function
from crossfeed.families.base import hessian_of
from crossfeed.families.finite import Finite
from crossfeed.families.linear import LinearGaussian
from ecosystems import FAMILIES, random_ecosystem

FALSE_ALARM = 1e-4
GROUPS = 3000


def impossible() -> s.Ecosystem:
    """Categorical models that lack outcomes, each others of them; a source of weight 0; stages of one candidate."""
    return s.Ecosystem(
        space=s.Outcomes(count=6),
        data={
            "few": s.DistributionData(weights=[2, 0, 1, 0, 1, 0]),
            "more": s.DistributionData(weights=[1, 1, 0, 2, 0, 0]),
        },
        rewards={"a": s.TableReward(values=[0, 1, 1, -1, 0.5, 9]), "b": s.TableReward(values=[1, 0, 2, 0, 0, 9])},
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="a",
                sources=[
                    s.Real(data="few", weight=0.6),
                    s.Curated(producer="p", weight=0.4, candidates=3, temperature=0, noise=0.1),
                ],
            ),
            "q": s.Model(
                family=s.Categorical(),
                reward="b",
                evaluate=[s.Evaluation(name="own"), s.Evaluation(name="theirs", reward="a")],
                sources=[
                    s.Real(data="more", weight=0.5),
                    s.Raw(producer="p", weight=0.0, sampling_temperature=0.5),
                    s.Curated(producer="p", weight=0.25, candidates=1),
                    s.Curated(producer="q", weight=0.25, candidates=2, then=s.Pick(candidates=2, curator="a")),
                ],
            ),
        },
    )


def photographs(cells: dict[str, int] | None) -> s.Ecosystem:
    """Photographs as outcomes, one by one or in cells."""
    fields: Any = {"cells": cells}
    return s.Ecosystem(
        space=s.Images(file="sample:cifar10", rows=24, **fields),
        data={"all": s.ImagesData()},
        rewards={
            "warm": s.HueBandReward(bands=[(0.92, 1.0), (0.0, 0.17)]),
            "cool": s.HueBandReward(bands=[(0.5, 0.72)], band_weight=3.0),
        },
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="warm",
                sources=[
                    s.Real(data="all", weight=0.5),
                    s.Curated(producer="q", weight=0.5, candidates=3, temperature=0.1),
                ],
            ),
            "q": s.Model(
                family=s.LogLinear(features=["saturation", "brightness"]),
                reward="cool",
                sources=[s.Real(data="all", weight=0.5), s.Raw(producer="p", weight=0.5)],
            ),
        },
    )


def curated(family: str, seed: int) -> s.Ecosystem:
    return random_ecosystem(family, 3, seed, candidates=(1, 2, 3, 4), curation=True)


ECOSYSTEMS: dict[str, Callable[[], s.Ecosystem]] = {
    **{family: lambda family=family: curated(family, 1) for family in FAMILIES},
    "impossible outcomes": impossible,
    "photographs": lambda: photographs(None),
    "cells of photographs": lambda: photographs({"hue": 2, "brightness": 3}),
}
every = pytest.mark.parametrize("name", ECOSYSTEMS)


class Case(NamedTuple):
    eco: s.Ecosystem
    program: Program
    theta: Tensor
    lin: Linearisation
    models: dict[str, ClosedForm]
    draws: Draws


@cache
def case(name: str) -> Case:
    eco = ECOSYSTEMS[name]()
    program = compile_ecosystem(eco)
    theta = program.start + torch.from_numpy(0.2 * np.random.default_rng(5).normal(size=program.num_params))
    return Case(eco, program, theta, linearise(program, theta), *closed_form_samples(eco, theta, GROUPS, 7))


def gradients(model: ClosedForm, fn: Callable[..., Tensor], batch: Batch) -> Tensor:
    """(n, d) per-sample gradients of ``fn``."""
    one = grad(lambda theta, *z: fn({"theta": theta}, tuple(x[None] for x in z))[0])
    in_dims = (None, *[0] * len(batch))
    return vmap(one, in_dims=in_dims, chunk_size=model.chunk)(model.parameters()["theta"], *batch)


def loss_batch(model: ClosedForm, draw: SourceDraw) -> Batch:
    return model.loss_batch(draw.all_prompts, draw.outputs)


def group_gradients(model: ClosedForm, draw: SourceDraw) -> Tensor:
    """(n, d) Σ_k π_k ∇ℓ(y_k)."""
    rows = gradients(model, model.losses, loss_batch(model, draw))
    return (draw.probabilities[..., None] * rows.unflatten(0, (-1, draw.candidates))).sum(1)


def scores(model: ClosedForm, draw: SourceDraw) -> Tensor:
    """(n·K, d) ∇log q of the candidates as they were made."""
    batch = model.score_batch(draw.all_prompts, draw.outputs if draw.made is None else draw.made)
    return gradients(model, lambda p, b: model.log_probs(p, b, draw.temperature), batch)


def positions(program: Program) -> dict[int, tuple[int, int]]:
    """Source to its group and its row there."""
    return {int(k): (g, e) for g, group in enumerate(program.source_groups) for e, k in enumerate(group.source)}


def excess(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Largest |mean − exact| over (n, …) samples, in standard errors, as a multiple of the Bonferroni bound."""
    count = sum(want.numel() for _, want in pairs)
    worst = 0.0
    for samples, want in pairs:
        bound = float(student.isf(FALSE_ALARM / (2 * count), len(samples) - 1))
        error = samples.std(0) / math.sqrt(len(samples))
        scale = 1e-10 * (1 + want.abs())  # what does not vary must agree but for rounding
        worst = max(worst, float(((samples.mean(0) - want).abs() / (bound * error + scale)).max()))
    return worst


# --- against the compiled ecosystem ------------------------------------------------------------------------------------


@every
def test_mean_gradients_of_every_source(name: str) -> None:
    _, program, _, lin, models, draws = case(name)
    at = positions(program)
    pairs = [
        (group_gradients(models[d.consumer], d), lin.mean_gradient[at[k][0]][at[k][1]])
        for k, d in enumerate(draws.sources)
    ]
    assert excess(pairs) < 1


@pytest.mark.parametrize("name", ["gaussian_mean", "categorical", "linear_gaussian"])
def test_the_test_of_mean_gradients_would_notice(name: str) -> None:
    """Candidates picked evenly instead."""
    _, program, _, lin, models, draws = case(name)
    at, pairs = positions(program), []
    for k, d in enumerate(draws.sources):
        if d.curated:
            rows = gradients(models[d.consumer], models[d.consumer].losses, loss_batch(models[d.consumer], d))
            pairs.append((rows.unflatten(0, (-1, d.candidates)).mean(1), lin.mean_gradient[at[k][0]][at[k][1]]))
    assert excess(pairs) > 1


@every
def test_scores_have_mean_zero(name: str) -> None:
    _, _, _, _, models, draws = case(name)
    pairs = []
    for d in draws.sources:
        if d.producer is not None:
            found = scores(models[d.producer], d)
            pairs.append((found, torch.zeros(found.shape[1], dtype=torch.float64)))
    for e in draws.evaluations:
        model = models[e.model]
        found = gradients(model, model.log_probs, model.score_batch(e.all_prompts, e.outputs))
        pairs.append((found, torch.zeros(found.shape[1], dtype=torch.float64)))
    assert excess(pairs) < 1


@every
def test_gradients_times_scores_are_the_edges(name: str) -> None:
    """w E[ḡ_i (Σ_k s_j(y_k))ᵀ] = B_ij: temperatures, maps and candidates are all in it."""
    _, _, _, lin, models, draws = case(name)
    edges = {int(k): e.value[row] for e in lin.edges for row, k in enumerate(e.group.source)}
    pairs = []
    for k, d in enumerate(draws.sources):
        if d.producer is not None and d.weight > 0:
            g = group_gradients(models[d.consumer], d)
            total = scores(models[d.producer], d).unflatten(0, (-1, d.candidates)).sum(1)
            products = (g - g.mean(0))[..., :, None] * total[..., None, :]
            pairs.append((products, edges[k] / d.weight))
    assert excess(pairs) < 1


@every
def test_mean_rewards_are_the_alignment(name: str) -> None:
    _, program, theta, _, _, draws = case(name)
    want = program.alignment(theta)
    assert [(e.model, e.name) for e in draws.evaluations] == [
        (program.names[e.model], e.name) for e in program.evaluations
    ]
    assert excess([(e.rewards.mean(1), want[k]) for k, e in enumerate(draws.evaluations)]) < 1


@every
def test_mean_hessian_is_that_of_the_losses(name: str) -> None:
    """Exactly, for weights of any sum and sign."""
    _, _, _, _, models, draws = case(name)
    for d in draws.sources:
        model, theta = models[d.consumer], models[d.consumer].parameters()["theta"]
        batch = tuple(x[:7] for x in loss_batch(model, d))
        weights = torch.from_numpy(np.random.default_rng(0).normal(size=7))

        def total(t: Tensor, m: ClosedForm = model, b: Batch = batch, w: Tensor = weights) -> Tensor:
            return (w * m.losses({"theta": t}, b)).sum()

        found = model.mean_hessian(model.parameters(), batch, weights)
        torch.testing.assert_close(found, hessian(total)(theta), rtol=1e-9, atol=1e-9)


@every
def test_mean_hessian_of_every_source_is_the_exact_one(name: str) -> None:
    """Twenty parts of a source's groups are twenty samples of it."""
    _, program, theta, _, models, draws = case(name)
    at, pairs = positions(program), []
    for k, d in enumerate(draws.sources):
        model, group = models[d.consumer], program.source_groups[at[k][0]]
        moments = program.source_moments(group, theta, program.settings)[at[k][1]]
        want = hessian_of(model.family, model.parameters()["theta"][None], moments[None])[0]
        batch, weights = loss_batch(model, d), d.probabilities.flatten()
        parts = [
            model.mean_hessian(model.parameters(), tuple(x[rows] for x in batch), weights[rows] * 20 / GROUPS)
            for rows in torch.arange(len(weights)).chunk(20)
        ]
        pairs.append((torch.stack(parts), want))
    assert excess(pairs) < 1


@every
def test_curvature_terms_have_the_fisher_matrix_or_the_hessian_as_second_moment(name: str) -> None:
    _, _, _, _, models, draws = case(name)
    pairs = []
    for key, model in models.items():
        d, theta = draws.of(key)[0], model.parameters()["theta"][None]
        batch = model.curvature_batch(d.all_prompts, d.outputs, torch.Generator().manual_seed(0))
        h = gradients(model, model.curvature_terms, batch)
        products = h[..., :, None] * h[..., None, :]
        if isinstance(model.family, LinearGaussian):  # given the inputs: I ⊗ xxᵀ
            x = batch[0]
            squares = x[:, :, None] * x[:, None, :]
            eye = torch.eye(model.family.outputs, dtype=torch.float64)
            products = products - torch.kron(eye, squares)
            want = torch.zeros_like(products[0])
        elif isinstance(model.family, Finite):
            want = model.family.hessian(theta, theta)[0]
        else:  # the Hessian where data has the model's own moments
            mean, cov = model.family.mean_cov(theta)
            own = torch.cat([mean, (cov + mean[..., :, None] * mean[..., None, :]).flatten(-2)], -1)
            want = hessian_of(model.family, theta, own[..., : model.family.num_moments])[0]
        pairs.append((products, want))
    assert excess(pairs) < 1


# --- models one by one ---------------------------------------------------------------------------------------------------


@every
def test_models_are_what_the_estimator_asks_for(name: str) -> None:
    _, program, theta, _, models, _ = case(name)
    assert list(models) == program.names
    for k, model in enumerate(models.values()):
        asked: Differentiable = model
        assert torch.equal(asked.parameters()["theta"], theta[program.span(k)])
        assert asked.chunk > 0


@every
def test_losses_that_are_scores_say_so(name: str) -> None:
    _, _, _, _, models, draws = case(name)
    for d in draws.sources:
        model = models[d.consumer]
        batch = tuple(x[:20] for x in loss_batch(model, d))
        loss, score = gradients(model, model.losses, batch), gradients(model, model.log_probs, batch)
        assert torch.allclose(loss, -score, atol=1e-12) == model.loss_is_score


def test_unit_covariances_make_squared_errors_scores() -> None:
    eco = random_ecosystem("gaussian_mean", 2, 0)
    models = {
        name: m.model_copy(update={"family": s.GaussianMean(cov=c)})
        for (name, m), c in zip(eco.models.items(), (1.0, 2.0), strict=True)
    }
    found = closed_form_models(eco.model_copy(update={"models": models}), torch.zeros(4, dtype=torch.float64))
    assert [m.loss_is_score for m in found.values()] == [True, False]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", ["categorical", "loglinear", "impossible outcomes"])
def test_finite_likelihoods_are_tempered_and_sum_to_one(name: str, temperature: float) -> None:
    for model in case(name).models.values():
        everything = (torch.arange(model.family.num_outcomes),)
        plain = model.log_probs(model.parameters(), everything).exp()
        want = plain ** (1 / temperature)
        found = model.log_probs(model.parameters(), everything, temperature).exp()
        torch.testing.assert_close(found, want / want.sum())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", ["gaussian_mean", "gaussian", "linear_gaussian"])
def test_continuous_likelihoods_are_scipys_with_tempered_covariance(name: str, temperature: float) -> None:
    _, _, _, _, models, draws = case(name)
    for d in draws.sources[:4]:
        model, theta = models[d.consumer], models[d.consumer].parameters()["theta"][None]
        batch = tuple(x[:5] for x in loss_batch(model, d))
        found = model.log_probs(model.parameters(), batch, temperature)
        for k in range(5):
            if len(batch) == 2:
                mean, cov = model.family.answer(theta, batch[0][None])[0, k], model.family.noise[0]
            else:
                mean, cov = (x[0] for x in model.family.mean_cov(theta))
            want = multivariate_normal(mean.numpy(), temperature * cov.numpy()).logpdf(batch[-1][k].numpy())
            assert float(found[k]) == pytest.approx(float(want), rel=1e-10)


@every
def test_noise_gives_the_outputs_again_and_maps_are_applied(name: str) -> None:
    eco, _, _, _, models, draws = case(name)
    for d in draws.sources:
        source = dict(zip(s.source_names(eco.models[d.consumer]), eco.models[d.consumer].sources, strict=True))[d.name]
        mapped = getattr(source, "map", None)
        assert (d.made is not None) == (mapped is not None)
        if d.made is not None:
            A = np.eye(2) if mapped.matrix is None else np.asarray(mapped.matrix)
            b = 0.0 if mapped.shift is None else np.asarray(mapped.shift)
            np.testing.assert_allclose(d.outputs.numpy(), d.made.numpy() @ A.T + b, rtol=1e-12, atol=1e-12)
        able = d.producer is not None and "rsample" in models[d.producer].capabilities and mapped is None
        assert (d.noise is not None) == able
        if d.noise is not None:
            model = models[d.producer]
            torch.testing.assert_close(model.rsample(model.parameters(), d.all_prompts, d.noise), d.outputs)
    for e in draws.evaluations:
        if e.noise is not None:
            model = models[e.model]
            torch.testing.assert_close(model.rsample(model.parameters(), e.all_prompts, e.noise), e.outputs)


def test_shapes_names_and_weights_follow_the_spec() -> None:
    eco, _, _, _, _, draws = case("linear_gaussian")
    names = [(c, n) for c, m in eco.models.items() for n in s.source_names(m)]
    assert [(d.consumer, d.name) for d in draws.sources] == names
    assert [d.weight for d in draws.sources] == [x.weight for m in eco.models.values() for x in m.sources]
    for d in draws.sources:
        assert d.probabilities.shape == (GROUPS, d.candidates)
        assert len(d.outputs) == GROUPS * d.candidates
        assert all(r.shape == d.probabilities.shape for r in d.rewards.values())
        torch.testing.assert_close(d.probabilities.sum(1), torch.ones(GROUPS, dtype=torch.float64))
    clusters = torch.cat([d.clusters for d in [*draws.sources, *draws.evaluations]])
    assert clusters.tolist() == list(range(len(clusters)))  # of one group each, counted over all draws
    assert len({int(p) for d in [*draws.sources, *draws.evaluations] for p in d.prompts}) == GROUPS * (
        len(draws.sources) + len(draws.evaluations)
    )
    assert [d.candidates for d in case("impossible outcomes").draws.of("q")] == [1, 1, 1, 4]


@pytest.mark.parametrize("name", ["categorical", "gaussian", "linear_gaussian"])
def test_draws_depend_on_their_seed_and_on_nothing_else(name: str) -> None:
    eco, program, theta, _, _, _ = case(name)
    (_, a), (_, b), (_, c) = (closed_form_samples(eco, theta, 200, seed, 3, program) for seed in (1, 1, 2))
    every_draw = [[*d.sources, *d.evaluations] for d in (a, b, c)]
    for x, y, z in zip(*every_draw, strict=True):
        assert torch.equal(x.outputs, y.outputs)
        assert not torch.equal(x.outputs, z.outputs)
    shape = (200, 3) if name == "linear_gaussian" else (600, 1)  # without inputs every answer is a group
    assert all(e.rewards.shape == shape and len(e.clusters) == len(e.prompts) == shape[0] for e in a.evaluations)
    rest = eco.model_copy(
        update={
            "models": {
                **eco.models,
                "m2": eco.models["m2"].model_copy(update={"sources": eco.models["m2"].sources[:1]}),
            }
        }
    )
    _, d = closed_form_samples(rest, theta, 200, 1, 3)
    for x, y in zip(a.of("m0"), d.of("m0"), strict=True):
        assert torch.equal(x.outputs, y.outputs)


# --- rewards, refusals -----------------------------------------------------------------------------------------------------


def test_rewards_on_answers_and_on_pairs() -> None:
    """By hand: g·y, g·(x, y) and ½ (x, y)ᵀQ(x, y)."""
    rewards: dict[str, s.Reward] = {
        "y": s.LinearReward(vector=[2.0], constant=1.0),
        "xy": s.LinearReward(vector=[1.0, 10.0, 2.0]),
        "cross": s.QuadraticReward(matrix=[[0, 0, 1.0], [0, 0, 0], [1.0, 0, 0]], vector=[0.0, 0.0, 3.0]),
        "square": s.QuadraticReward(matrix=-2.0),
    }
    eco = s.Ecosystem(
        space=s.Regression(inputs=2, outputs=1),
        domains={"d": s.PointsDomain(points=[[1.0, 0.0], [0.0, 1.0]])},
        data={"t": s.TeacherData(matrix=[[1.0, 1.0]], domain="d")},
        rewards=rewards,
        models={
            "p": s.Model(family=s.LinearGaussian(), reward="y", domain="d", sources=[s.Real(data="t", weight=1.0)])
        },
    )
    x, y = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    found = {name: float(reward_function(eco, name)(y, x)) for name in rewards}
    assert found == {"y": 7.0, "xy": 27.0, "cross": 12.0, "square": -9.0}
    _, draws = closed_form_samples(eco, torch.zeros(2, dtype=torch.float64), 50, 0)
    assert set(draws.sources[0].outputs.flatten().tolist()) == {1.0}  # a teacher without noise


def test_refusals_say_what_to_do() -> None:
    eco = impossible()
    endless = s.Curated(producer="p", weight=0.4, candidates=float("inf"))
    p = eco.models["p"].model_copy(update={"sources": [eco.models["p"].sources[0], endless]})
    theta = compile_ecosystem(eco).start
    with pytest.raises(
        NotAvailableError, match=r"models\.p\.sources\.curated_p: found candidates: inf; .*whole number"
    ):
        closed_form_samples(eco.model_copy(update={"models": {**eco.models, "p": p}}), theta, 10, 0)
    with pytest.raises(ValueError, match=r"found shape \(3,\); need \(10,\)"):
        closed_form_models(eco, torch.zeros(3, dtype=torch.float64))
    model = case("categorical").models["m0"]
    with pytest.raises(NotAvailableError, match="use the likelihood"):
        model.noise(3, torch.Generator())
    lonely = closed_form_models(case("linear_gaussian").eco, case("linear_gaussian").theta)["m0"]
    with pytest.raises(ValueError, match="none was given"):
        lonely.loss_batch(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.float64))
