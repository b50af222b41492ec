"""Rounds: orders, invariances, and finite samples whose mean is the population."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.pool import accumulated
from crossfeed.dynamics.rounds import (
    State,
    accumulated_round,
    child_generators,
    population_round,
    sampled_round,
    steps_of_round,
    streams,
)
from ecosystems import FAMILIES, random_ecosystem

NAMES = ["m0", "m1", "m2"]
CYCLE = s.Cycle(rounds=[[["m0", "m1"]], [["m2"], ["m0"]], [["m1"]]])
SMALL = {"num_feeds": (1, 3), "candidates": (1, 2, 3), "rewards": ("linear",), "stages": 1}


def small(family, seed, **options):
    """Three models, cheap to sample from."""
    return random_ecosystem(family, 3, seed, **{**SMALL, **options})


def changed(eco, **models):
    return eco.model_copy(update={"models": {**eco.models, **models}})


def three_rounds(eco, theta=None):
    program = compile_ecosystem(eco)
    theta = program.start if theta is None else theta
    for number in range(3):
        theta = population_round(program, theta, eco.update, number)
    return program, theta


# --- orders ---------------------------------------------------------------------------------------------------------


def test_steps_of_each_order():
    assert steps_of_round(s.Simultaneous(), NAMES, 7) == [[0, 1, 2]]
    assert steps_of_round(s.Sequential(), NAMES, 7) == [[0], [1], [2]]
    assert steps_of_round(s.Sequential(models=["m2", "m0", "m1"]), NAMES, 0) == [[2], [0], [1]]
    assert [steps_of_round(CYCLE, NAMES, t) for t in range(4)] == [[[0, 1]], [[2], [0]], [[1]], [[0, 1]]]
    random = s.RandomOrder(probability=0.5, seed=3)
    drawn = [steps_of_round(random, NAMES, t) for t in range(200)]
    assert drawn == [steps_of_round(random, NAMES, t) for t in range(200)]
    assert 250 < sum(len(steps) for steps in drawn) < 350
    assert drawn != [steps_of_round(s.RandomOrder(probability=0.5, seed=4), NAMES, t) for t in range(200)]


def test_a_sequential_round_uses_the_newest_states_and_leaves_others_stale():
    eco = small("categorical", 1)
    program = compile_ecosystem(eco)
    by_hand = program.start
    for models in ([2], [0]):
        target = program.retrain(by_hand, program.moments(by_hand))
        by_hand = by_hand.clone()
        for i in models:
            by_hand[program.span(i)] = target[program.span(i)]
    found = population_round(program, program.start, s.Update(order=CYCLE), 1)
    assert torch.allclose(found, by_hand, atol=1e-13)
    assert torch.equal(found[program.span(1)], program.start[program.span(1)])


# --- invariances on random ecosystems -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_candidate_is_no_curation(family):
    eco = small(family, 2, candidates=(1,))
    raw = {}
    for name, model in eco.models.items():
        sources = [
            s.Raw(**{k: getattr(x, k) for k in ("producer", "weight", "sampling_temperature", "map", "domain")})
            if isinstance(x, s.Curated)
            else x
            for x in model.sources
        ]
        raw[name] = model.model_copy(update={"sources": sources})
    assert any(isinstance(x, s.Curated) for m in eco.models.values() for x in m.sources)
    assert torch.allclose(three_rounds(eco)[1], three_rounds(changed(eco, **raw))[1], atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edge_may_be_split_in_two(family):
    eco = small(family, 3)
    model = eco.models["m1"]
    names = s.source_names(model)
    halves = [
        x.model_copy(update={"weight": x.weight / 2, "name": f"{names[k]} {part}"})
        for k, x in enumerate(model.sources)
        for part in "ab"
    ]
    split = changed(eco, m1=model.model_copy(update={"sources": halves}))
    assert torch.allclose(three_rounds(eco)[1], three_rounds(split)[1], atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_nobody_reads_changes_nothing(family):
    eco = small(family, 4)
    program, theta = three_rounds(eco)
    more = changed(eco, watcher=eco.models["m0"])
    wider, other = three_rounds(more)
    assert wider.num_models == 4
    assert torch.allclose(other[: program.num_params], theta, atol=1e-12)
    assert torch.allclose(wider.alignment(other)[:3], program.alignment(theta), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", ["simultaneous", "sequential"])
def test_relabelling_models_permutes_everything(family, order):
    order = s.Simultaneous() if order == "simultaneous" else s.Sequential(models=["m1", "m2", "m0"])
    eco = small(family, 5, order=order)
    program, theta = three_rounds(eco)
    shuffled = eco.model_copy(update={"models": {k: eco.models[k] for k in ("m2", "m0", "m1")}})
    other = compile_ecosystem(shuffled)
    start = torch.cat([program.start[program.span(i)] for i in (2, 0, 1)])
    assert torch.allclose(other.start, start, atol=1e-9)
    _, moved = three_rounds(shuffled, start)
    assert torch.allclose(moved, torch.cat([theta[program.span(i)] for i in (2, 0, 1)]), atol=1e-10)
    assert torch.allclose(other.alignment(moved), program.alignment(theta)[[2, 0, 1]], atol=1e-10)


# --- finite samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", ["multinomial", "fixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mean_of_the_sampled_moments_is_the_population(family, counts):
    """Every entry of the mean statistic of n samples, over 300 replicates, against the exact expectation."""
    eco = small(family, 6, best=False)
    if counts == "fixed":  # weights that n divides: the population is then what is sampled
        eco = changed(eco, **{k: _rounded(m, 20) for k, m in eco.models.items()})
    program = compile_ecosystem(eco)
    many, n = 300, 20
    rngs = streams(0, 0, 0, len(program.source_groups) + 1, range(many))
    found = program.sampled_moments(program.start.expand(many, -1), n, rngs, counts == "fixed")
    for sampled, exact in zip(found, program.moments(program.start), strict=True):
        error = sampled.std(0) / math.sqrt(many)
        assert bool(((sampled.mean(0) - exact).abs() <= 5 * error + 1e-9).all())


def _rounded(model, n):
    weights = [max(1, round(x.weight * n)) for x in model.sources]
    weights[int(np.argmax(weights))] += n - sum(weights)
    sources = [x.model_copy(update={"weight": w / n}) for x, w in zip(model.sources, weights, strict=True)]
    return model.model_copy(update={"sources": sources})


@pytest.mark.parametrize("family", ["categorical", "gaussian", "linear_gaussian"])
@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
def test_many_samples_are_a_population(family, regime):
    eco = small(family, 7, candidates=(1, 2), order=s.Sequential())
    program = compile_ecosystem(eco)
    samples = s.Samples(per_round=1_000_000 if family == "categorical" else 20_000, regime=regime)
    state = sampled_round(program, State(program.start), eco.update, samples, 1)
    population = accumulated_round(program, State(program.start), eco.update)
    assert float((state.theta - population.theta).norm() / population.theta.norm()) < 0.05
    assert torch.allclose(population.theta, population_round(program, program.start, eco.update), atol=1e-13)


@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
@pytest.mark.parametrize("family", ["categorical", "gaussian", "linear_gaussian"])
def test_a_source_without_weight_is_never_drawn_from(family, regime):
    eco = small(family, 8, kinds=("curated",), candidates=(2,))
    models = {}
    for name, model in eco.models.items():
        sources = [x.model_copy(update={"weight": 0.0}) for x in model.sources if not isinstance(x, s.Real)]
        real = next(x for x in model.sources if isinstance(x, s.Real)).model_copy(update={"weight": 1.0})
        models[name] = model.model_copy(update={"sources": [real, *sources]})
    eco = changed(eco, **models)
    program = compile_ecosystem(eco)
    state = State(program.start.expand(3, -1))
    for _ in range(2):
        state = sampled_round(program, state, eco.update, s.Samples(per_round=50, regime=regime), 1)
    assert bool(torch.isfinite(state.theta).all())
    other = program.start + 1.0  # what the producers would make does not matter
    one, two = (
        sampled_round(program, State(t), eco.update, s.Samples(per_round=50), 1).theta for t in (program.start, other)
    )
    assert torch.allclose(one, two, atol=1e-9)


# --- data regimes ---------------------------------------------------------------------------------------------------


def test_each_model_has_a_pool_of_its_own():
    """Sequential steps and stale models: a model's data are the mean of its own retrainings, not of the rounds."""
    eco = small("categorical", 9)
    program = compile_ecosystem(eco)
    state, update = State(program.start), s.Update(order=CYCLE)
    theta, seen = program.start, {i: [] for i in range(3)}
    for number in range(7):
        for step in steps_of_round(CYCLE, program.names, number):
            moments = program.moments(theta)[0]
            for i in step:
                seen[i].append(moments[i])
            pooled = torch.stack([torch.stack(seen[i]).mean(0) if seen[i] else moments[i] for i in range(3)])
            target = program.retrain(theta, [pooled])
            theta = theta.clone()
            for i in step:
                theta[program.span(i)] = target[program.span(i)]
        state = accumulated_round(program, state, update)
        assert torch.allclose(state.theta, theta, atol=1e-12)
    assert state.pool.sizes.tolist() == [len(seen[i]) for i in range(3)] == [5, 5, 2]
    assert state.round == 7


@pytest.mark.parametrize("family", ["loglinear", "mixed_vectors", "linear_gaussian"])
def test_accumulated_samples_are_averaged_over_a_models_own_retrainings(family):
    eco = small(family, 10)
    program = compile_ecosystem(eco)
    samples, update = s.Samples(per_round=40, regime="accumulate"), s.Update(order=CYCLE)
    state, seen, theta = State(program.start.expand(2, -1)), {}, program.start.expand(2, -1)
    for number in range(5):
        for index, step in enumerate(steps_of_round(CYCLE, program.names, number)):
            part = program.block(step)
            rngs = streams(3, number, index, len(part.source_groups) + 2, range(2))
            fresh = part.sampled_moments(theta, 40, rngs[:-1])
            means = []
            for group, moments in zip(part.model_groups, fresh, strict=True):
                for row, i in enumerate(group.members.tolist()):
                    seen.setdefault(i, []).append(moments[:, row])
                means.append(torch.stack([torch.stack(seen[i]).mean(0) for i in group.members.tolist()], 1))
            theta = part.retrain(theta, means)
        state = sampled_round(program, state, update, samples, 3)
        assert torch.allclose(state.theta, theta, atol=1e-9)


@pytest.mark.parametrize("family", ["categorical", "gaussian", "linear_gaussian"])
def test_a_pool_for_subsampling_holds_every_sample(family):
    eco = small(family, 11)
    program = compile_ecosystem(eco)
    samples, update = s.Samples(per_round=30, regime="subsample"), s.Update(order=CYCLE)
    state = State(program.start.expand(2, -1))
    for _ in range(4):
        state = sampled_round(program, state, update, samples, 0)
    sizes = state.pool.sizes.tolist()
    assert sizes == [3, 3, 1]
    if family == "categorical":
        tallies = state.pool.kept[0] * torch.tensor(sizes)[:, None]
        assert torch.allclose(tallies.sum(-1), 30.0 * torch.tensor(sizes).double().expand(2, 3))
        assert torch.allclose(tallies, tallies.round(), atol=1e-9)
    else:
        assert [k.shape[:2] for k in state.pool.kept] == [(2, 30 * size) for size in sizes]


def test_accumulating_nothing_new_leaves_the_mean():
    eco = small("categorical", 12)
    program = compile_ecosystem(eco)
    fresh = program.moments(program.start)
    first, pool = accumulated(program, program, fresh, None)
    second, pool = accumulated(program, program, fresh, pool)
    assert torch.equal(first[0], fresh[0])
    assert torch.allclose(second[0], fresh[0], atol=1e-16)
    assert pool.sizes.tolist() == [2, 2, 2]


# --- random streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
@pytest.mark.parametrize("family", ["categorical", "mixed_finite", "gaussian_mean"])
def test_a_replicate_is_the_same_alone_and_among_others(family, regime):
    eco = small(family, 13, kinds=("raw",) if family == "gaussian_mean" else ("raw", "curated"))
    program = compile_ecosystem(eco)
    samples = s.Samples(per_round=400, regime=regime)
    together, alone = State(program.start.expand(5, -1)), State(program.start.expand(1, -1))
    for _ in range(3):
        together = sampled_round(program, together, eco.update, samples, 8)
        alone = sampled_round(program, alone, eco.update, samples, 8, [3])
    assert torch.allclose(together.theta[3], alone.theta[0], atol=1e-10)
    assert len({tuple(t) for t in together.theta.round(decimals=9).tolist()}) == 5


@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
@pytest.mark.parametrize("family", ["categorical", "gaussian", "linear_gaussian"])
def test_the_seed_changes_every_model(family, regime):
    eco = small(family, 14)
    program = compile_ecosystem(eco)
    samples = s.Samples(per_round=25, regime=regime)
    one, same, other = (sampled_round(program, State(program.start), eco.update, samples, seed) for seed in (1, 1, 2))
    assert torch.equal(one.theta, same.theta)
    for i in range(3):
        assert not torch.allclose(one.theta[program.span(i)], other.theta[program.span(i)])


def test_streams_depend_on_every_part_of_the_key():
    base = streams(1, 2, 3, 2)
    draws = [g.random() for g in base]
    for key in ((2, 2, 3, 2), (1, 3, 3, 2), (1, 2, 4, 2)):
        draws += [g.random() for g in streams(*key)]
    draws += [g.random() for g in child_generators([1, 2, 3, 0], [1, 5, 1023, 1024, 3000])]
    assert len(set(draws)) == len(draws)
