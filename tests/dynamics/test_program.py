"""The compiled ecosystem against the one written out source by source, and against itself in batches, blocks and stacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from slow import ECOSYSTEMS, Slow
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program, largest_remainder
from crossfeed.errors import NotAvailableError
from ecosystems import FAMILIES, random_ecosystem

written_out = pytest.mark.parametrize("kind", list(ECOSYSTEMS))
every_family = pytest.mark.parametrize("family", FAMILIES)


def real(x: object) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def somewhere(program: Program, seed: int, *batch: int) -> Tensor:
    """Parameters near the start."""
    rng = np.random.default_rng(seed)
    return program.start + torch.from_numpy(0.3 * rng.normal(size=(*batch, program.num_params)))


# --- against the reference ----------------------------------------------------------------------------------------


@written_out
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_is_the_sum_over_sources(kind: str, seed: int) -> None:
    eco = ECOSYSTEMS[kind]()
    program = compile_ecosystem(eco)
    theta = somewhere(program, seed)
    want = Slow(eco).whole_gradient(theta.numpy(), program.offsets)
    np.testing.assert_allclose(program.gradient(theta), want, atol=1e-9 if kind == "vectors" else 1e-11)


@written_out
def test_gradient_tells_the_trained_argument_from_the_data(kind: str) -> None:
    """∇₁: the data is made by one Θ, the loss is differentiated at another."""
    eco = ECOSYSTEMS[kind]()
    program, slow = compile_ecosystem(eco), Slow(eco)
    trained, makers = somewhere(program, 2), somewhere(program, 3)
    own, thetas = (slow.split(t.numpy(), program.offsets) for t in (trained, makers))
    want = np.concatenate([slow.gradient(name, thetas, own[name]) for name in eco.models])
    np.testing.assert_allclose(program.gradient(trained, data=makers), want, atol=1e-9)


@written_out
def test_alignment_is_the_expected_reward(kind: str) -> None:
    eco = ECOSYSTEMS[kind]()
    program, slow = compile_ecosystem(eco), Slow(eco)
    theta = somewhere(program, 4)
    thetas = slow.split(theta.numpy(), program.offsets)
    want = []
    for name, model in eco.models.items():
        for e in model.evaluate or [s.Evaluation(name="own")]:
            want.append(slow.alignment(name, thetas[name], e.reward, e.domain))
    np.testing.assert_allclose(program.alignment(theta), want, atol=1e-12)
    first = np.cumsum([0] + [len(m.evaluate or [0]) for m in eco.models.values()])[:-1]
    np.testing.assert_array_equal(program.primary, first)


@written_out
def test_retraining_is_the_minimum_of_the_written_out_loss(kind: str) -> None:
    eco = ECOSYSTEMS[kind]()
    program, slow = compile_ecosystem(eco), Slow(eco)
    makers = somewhere(program, 5)
    trained = program.retrain(makers, program.moments(makers))
    own, thetas = (slow.split(t.numpy(), program.offsets) for t in (trained, makers))
    for name in eco.models:
        assert np.abs(slow.gradient(name, thetas, own[name])).max() < 1e-9


@written_out
def test_gradient_steps_follow_the_written_out_gradient(kind: str) -> None:
    eco = ECOSYSTEMS[kind]()
    program, slow = compile_ecosystem(eco), Slow(eco)
    theta = somewhere(program, 6)
    after = program.descend(theta, program.moments(theta), 3, 0.05)
    thetas = slow.split(theta.numpy(), program.offsets)
    for i, name in enumerate(eco.models):
        own = thetas[name]
        for _ in range(3):
            own = own - 0.05 * slow.gradient(name, thetas, own)
        np.testing.assert_allclose(after[program.span(i)], own, atol=1e-9)


def test_edges_and_slots_are_named_as_in_the_spec() -> None:
    program = compile_ecosystem(ECOSYSTEMS["finite"]())
    assert [(i.consumer, i.producer, i.name) for i in program.sources[:5]] == [
        (0, None, "real"),
        (0, 0, "raw_p"),
        (0, 1, "raw_q"),
        (0, 0, "curated_p"),
        (0, 2, "curated_l"),
    ]
    value = {path: float(program.settings[slot]) for path, slot in program.slots.items()}
    assert value["q.ridge"] == 0.2
    assert value["p.sources.curated_l.other_share"] == 0.35
    assert value["q.sources.curated_m.then.noise"] == 0.2
    assert value["q.sources.curated_q.sampling_temperature"] == 1.5


# --- batches, blocks, stacks --------------------------------------------------------------------------------------


def moved_settings(program: Program, seed: int, *batch: int) -> Tensor:
    """Settings scaled at random; whole numbers of candidates, infinite ones and temperatures of zero kept."""
    rng = np.random.default_rng(seed)
    value = program.settings.expand(*batch, -1).clone()
    for path, slot in program.slots.items():
        if not path.endswith("candidates"):
            value[..., slot] *= torch.from_numpy(rng.uniform(0.8, 1.0, size=batch))
    return value


@every_family
def test_a_batch_is_as_one_by_one(family: str) -> None:
    eco = random_ecosystem(family, 4, 0)
    program = compile_ecosystem(eco)
    theta, settings = somewhere(program, 0, 2, 1), moved_settings(program, 1, 3)
    batch = program.with_settings(settings)
    results = (
        batch.gradient(theta),
        batch.retrain(theta, batch.moments(theta)),
        batch.descend(theta, batch.moments(theta), 2, 0.1),
    )
    assert results[0].shape == (2, 3, program.num_params)
    assert batch.alignment(theta).shape[:2] == (2, 1)
    for a in range(2):
        torch.testing.assert_close(batch.alignment(theta)[a, 0], program.alignment(theta[a, 0]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(batch.entropy(theta)[a, 0], program.entropy(theta[a, 0]), rtol=1e-12, atol=1e-12)
        for b in range(3):
            one, t = program.with_settings(settings[b]), theta[a, 0]
            alone = (one.gradient(t), one.retrain(t, one.moments(t)), one.descend(t, one.moments(t), 2, 0.1))
            for whole, single in zip(results, alone, strict=True):
                torch.testing.assert_close(whole[a, b], single, rtol=1e-9, atol=1e-9)


@every_family
def test_settings_may_be_batched_where_parameters_are_not(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, 1))
    theta, settings = somewhere(program, 0), moved_settings(program, 1, 4)
    batch = program.with_settings(settings)
    whole = batch.gradient(theta)
    again = batch.retrain(theta, batch.moments(theta))
    for b in range(4):
        one = program.with_settings(settings[b])
        torch.testing.assert_close(whole[b], one.gradient(theta), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(again[b], one.retrain(theta, one.moments(theta)), rtol=1e-9, atol=1e-9)


@every_family
def test_a_block_is_its_part_of_the_whole(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 5, 2))
    theta = somewhere(program, 0)
    whole = program.retrain(theta, program.moments(theta))
    for models in ([0], [3, 1], [2, 3, 4], [0, 1, 2, 3, 4]):
        part = program.block(models)
        after = part.retrain(theta, part.moments(theta))
        for i in range(5):
            want = whole if i in models else theta
            torch.testing.assert_close(after[program.span(i)], want[program.span(i)], rtol=1e-9, atol=1e-9)
    assert program.block([1, 3]) is program.block([3, 1])
    moved = program.with_settings(program.settings * 0.9)
    assert moved.block([1]) is not program.block([1])


@every_family
def test_relabelling_models_permutes_everything(family: str) -> None:
    eco = random_ecosystem(family, 4, 3)
    order = [2, 0, 3, 1]
    names = list(eco.models)
    turned = eco.model_copy(update={"models": {names[i]: eco.models[names[i]] for i in order}})
    a, b = compile_ecosystem(eco), compile_ecosystem(turned)
    theta = somewhere(a, 4)
    moved = torch.cat([theta[a.span(i)] for i in order])
    F, G = a.gradient(theta), b.gradient(moved)
    torch.testing.assert_close(torch.cat([F[a.span(i)] for i in order]), G, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        a.alignment(theta)[a.primary][torch.tensor(order)], b.alignment(moved)[b.primary], rtol=1e-12, atol=1e-12
    )


@every_family
def test_a_model_does_not_depend_on_what_it_is_stacked_with(family: str) -> None:
    """Two unconnected ecosystems in one spec are the two ecosystems."""
    one, two = random_ecosystem(family, 3, 5), random_ecosystem(family, 3, 5)
    rename = {name: f"x{name}" for name in two.models}

    def again(source: s.Source) -> s.Source:
        return source if isinstance(source, s.Real) else source.model_copy(update={"producer": rename[source.producer]})

    doubled = {
        rename[name]: m.model_copy(update={"sources": [again(x) for x in m.sources], "ridge": m.ridge + 0.1})
        for name, m in two.models.items()
    }
    both = one.model_copy(update={"models": {**doubled, **one.models}})
    small, large = compile_ecosystem(one), compile_ecosystem(both)
    theta = somewhere(large, 6)
    half = theta[large.offsets[3] :]
    torch.testing.assert_close(large.gradient(theta)[large.offsets[3] :], small.gradient(half), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        large.retrain(theta, large.moments(theta))[large.offsets[3] :],
        small.retrain(half, small.moments(half)),
        rtol=1e-9,
        atol=1e-9,
    )


@written_out
def test_settings_may_be_written_to_and_differentiated_again(kind: str) -> None:
    """Pick operators are kept for the settings last seen, but not beyond a change, and not with a graph that is freed."""
    program = compile_ecosystem(ECOSYSTEMS[kind]())
    settings = program.settings.clone()
    before = program.gradient(program.start, settings)
    for path, slot in program.slots.items():
        settings[slot] = 0.05 if path.endswith("noise") else settings[slot]
    after = program.gradient(program.start, settings)
    torch.testing.assert_close(after, program.gradient(program.start, settings.clone()), rtol=0, atol=0)
    assert float((after - before).abs().max()) > 1e-4
    recorded = program.settings.clone().requires_grad_(True)
    first, second = (
        torch.autograd.grad(program.gradient(program.start, recorded).sum(), recorded)[0] for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_no_coupling_decouples() -> None:
    eco = random_ecosystem("categorical", 3, 7, kinds=("curated",))
    lonely = {
        name: m.model_copy(update={"sources": [x for x in m.sources if isinstance(x, s.Real)]})
        for name, m in eco.models.items()
    }
    program = compile_ecosystem(eco.model_copy(update={"models": lonely}))
    theta = somewhere(program, 0)
    other = theta.clone()
    other[program.span(1)] += 1.0
    difference = program.gradient(theta) - program.gradient(other)
    assert float(difference[program.span(0)].abs().max()) == 0 == float(difference[program.span(2)].abs().max())


def test_one_candidate_is_no_curation() -> None:
    def program(source: s.Raw | s.Curated) -> Program:
        return compile_ecosystem(
            s.Ecosystem(
                space=s.Outcomes(count=4),
                data={"web": s.DistributionData(weights=[1, 2, 3, 4])},
                rewards={"r": s.TableReward(values=[0, 1, 2, 3])},
                models={
                    "p": s.Model(family=s.Categorical(), reward="r", sources=[s.Real(data="web", weight=0.5), source])
                },
            )
        )

    raw = program(s.Raw(producer="p", weight=0.5))
    theta = somewhere(raw, 8)
    for stage in (
        s.Curated(producer="p", weight=0.5, candidates=1),
        s.Curated(producer="p", weight=0.5, candidates=3, noise=1.0),
    ):
        torch.testing.assert_close(program(stage).gradient(theta), raw.gradient(theta), rtol=0, atol=1e-15)


# --- outcomes that nothing brings in ------------------------------------------------------------------------------


def loop(weights: list[float], rewards: list[float], **model: object) -> s.Ecosystem:
    return s.Ecosystem(
        space=s.Outcomes(count=len(weights)),
        data={"web": s.DistributionData(weights=weights)},
        rewards={"r": s.TableReward(values=rewards)},
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="r",
                sources=[s.Real(data="web", weight=0.5), s.Curated(producer="p", weight=0.5, candidates=4)],
                **model,
            )
        },
    )


def test_outcomes_without_real_data_are_as_if_they_were_not_there() -> None:
    """Curators would love the missing outcomes, but no model can make them: same round, same alignment, whatever their reward."""
    from crossfeed.dynamics.linearise import linearise
    from crossfeed.dynamics.stable import solve

    full = compile_ecosystem(loop([2.0, 0.0, 1.0, 3.0, 0.0], [0.0, 9.0, 1.0, 0.5, -9.0]))
    small = compile_ecosystem(loop([2.0, 1.0, 3.0], [0.0, 1.0, 0.5]))
    found = [solve(program) for program in (full, small)]
    assert [point.result for point in found] == ["converged", "converged"]
    for program, point in zip((full, small), found, strict=True):
        assert float(program.alignment(point.theta)) == pytest.approx(float(small.alignment(found[1].theta)), abs=1e-13)
        G = linearise(program, point.theta).round_jacobian().toarray()
        radius = np.abs(np.linalg.eigvals(G)).max()
        want = np.abs(np.linalg.eigvals(linearise(small, found[1].theta).round_jacobian().toarray())).max()
        assert radius == pytest.approx(want, abs=1e-12)
    assert float(full.model_groups[0].family.log_probs(found[0].theta[None]).exp()[0, [1, 4]].max()) == 0


def test_outcomes_come_through_other_models_and_given_starts() -> None:
    def alive(eco: s.Ecosystem) -> list[list[bool]]:
        program = compile_ecosystem(eco)
        theta = program.start
        for _ in range(3):
            theta = program.retrain(theta, program.moments(theta))
        out = []
        for i in range(program.num_models):
            group = next(g for g in program.model_groups if i in g.members.tolist())
            row = group.members.tolist().index(i)
            q = group.family.log_probs(theta[group.theta_index]).exp()[row]
            out.append((q > 1e-20).tolist())
        return out

    base = loop([1.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert alive(base) == [[True, True, False]]
    assert alive(loop([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], start=[0.0, 0.0])) == [[True, True, True]]
    data = {"web": base.data["web"], "rare": s.DistributionData(weights=[0.0, 1.0, 1.0])}
    chain = {
        "p": base.models["p"],
        "q": s.Model(
            family=s.Categorical(),
            reward="r",
            sources=[s.Real(data="web", weight=0.5), s.Raw(producer="x", weight=0.5)],
        ),
        "x": s.Model(family=s.Categorical(), reward="r", sources=[s.Real(data="rare", weight=1.0)]),
        "l": s.Model(
            family=s.LogLinear(features=[0.0, 1.0, 2.0]), reward="r", sources=[s.Real(data="web", weight=1.0)]
        ),
    }
    assert alive(base.model_copy(update={"data": data, "models": chain})) == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
        [True, True, True],
    ]


def test_many_outcomes_share_a_basis_for_each_set_of_live_ones() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((3, 80))
    weights[:2, :30] = 0
    eco = s.Ecosystem(
        space=s.Outcomes(count=80),
        data={f"d{i}": s.DistributionData(weights=w) for i, w in enumerate(weights)},
        rewards={"r": s.TableReward(values=rng.normal(size=80))},
        models={
            f"m{i}": s.Model(
                family=s.Categorical(),
                reward="r",
                sources=[s.Real(data=f"d{i}", weight=0.6), s.Curated(producer=f"m{i}", weight=0.4)],
            )
            for i in range(3)
        },
    )
    program = compile_ecosystem(eco)
    assert sorted(len(g.members) for g in program.model_groups) == [1, 2]
    theta = program.retrain(program.start, program.moments(program.start))
    for g in program.model_groups:
        q = g.family.log_probs(theta[g.theta_index]).exp().numpy()
        for i, row in zip(g.members.tolist(), q, strict=True):
            assert ((row > 0) == (weights[i] > 0)).all()


def test_models_without_real_data_start_at_everyones_average_in_their_own_features() -> None:
    """Features differ from model to model: distributions are averaged, not their moments."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 5, 2))
    eco = s.Ecosystem(
        space=s.Outcomes(count=5),
        data={"web": s.DistributionData(weights=[1, 2, 3, 4, 5])},
        rewards={"r": s.TableReward(values=np.arange(5.0))},
        models={
            "p": s.Model(
                family=s.LogLinear(features=features[0]), reward="r", sources=[s.Real(data="web", weight=1.0)]
            ),
            "q": s.Model(
                family=s.LogLinear(features=features[1]), reward="r", sources=[s.Raw(producer="p", weight=1.0)]
            ),
        },
    )
    program = compile_ecosystem(eco)
    group = program.model_groups[0]
    q = group.family.log_probs(program.start[group.theta_index]).exp()[1].numpy()
    np.testing.assert_allclose(features[1].T @ q, features[1].T @ (np.arange(1, 6) / 15), atol=1e-12)


# --- samples ------------------------------------------------------------------------------------------------------


def streams(program: Program, seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, k]) for k in range(len(program.source_groups) + 1)]


@written_out
@pytest.mark.parametrize("fixed", [False, True], ids=["multinomial", "fixed"])
def test_sampled_moments_are_unbiased(kind: str, fixed: bool) -> None:
    """4,000 repetitions of n = 20 against the population, 5 standard errors; fixed counts by the fixed shares."""
    eco = ECOSYSTEMS[kind]()
    models = {
        name: m.model_copy(update={"sources": [drawable(x) for x in m.sources]}) for name, m in eco.models.items()
    }
    program = compile_ecosystem(eco.model_copy(update={"models": models}))
    theta, count, num = somewhere(program, 9), 4000, 20
    got = program.sampled_moments(theta.expand(count, -1), num, streams(program, 0), fixed)
    if fixed:
        settings = program.settings.clone()
        for i in range(program.num_models):
            at = [
                g.weight_slot[k]
                for g in program.source_groups
                for k, m in enumerate(g.source)
                if program.sources[int(m)].consumer == i
            ]
            slots = torch.stack(at)
            settings[slots] = real(largest_remainder(settings[slots].numpy(), num)) / num
        program = program.with_settings(settings)
    for sample, want in zip(got, program.moments(theta), strict=True):
        assert sample.shape == (count, *want.shape)
        band = 5 * sample.std(0) / math.sqrt(count) + 1e-12
        assert bool(((sample.mean(0) - want).abs() <= band).all())


def drawable(source: s.Source) -> s.Source:
    """Infinitely many candidates cannot be drawn on vectors: three instead."""
    if isinstance(source, s.Curated) and math.isinf(source.candidates):
        return source.model_copy(update={"candidates": 3.0})
    return source


@written_out
def test_sampled_moments_have_the_spread_of_their_covariances(kind: str) -> None:
    """Cov of the mean of n samples of one source is that of one, over n."""
    eco = ECOSYSTEMS[kind]()
    program = compile_ecosystem(eco)
    theta, repeats, num = somewhere(program, 10), 3000, 12
    refused: set[str] = set()
    for group in program.source_groups:
        counts = torch.full((repeats, len(group.source)), float(num)).double()
        rng = np.random.default_rng(3)
        try:
            if group.theta_index is None:
                drawn, cov = group.kernel.sample_moments(counts, rng), group.kernel.moments_cov()
            else:
                at = theta[group.theta_index].expand(repeats, -1, -1)
                cov = group.kernel.moments_cov(at[0], program.settings)
                drawn = group.kernel.sample_moments(at, program.settings, counts, rng)
        except NotAvailableError as error:
            refused.add(str(error))
            continue
        off = drawn - drawn.mean(0)
        products = off[..., :, None] * off[..., None, :]
        band = 5 * products.std(0) / math.sqrt(repeats) + 1e-10
        assert bool(((products.mean(0) * repeats / (repeats - 1) - cov / num).abs() <= band).all())
    assert all("no closed form is known" in why or "no candidates can be drawn" in why for why in refused)


def test_samples_depend_on_their_seed_only() -> None:
    program = compile_ecosystem(ECOSYSTEMS["finite"]())
    theta = somewhere(program, 11)
    a, b, c = (program.sampled_moments(theta, 50, streams(program, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


shares = st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda v: sum(v) > 1e-6)


@given(shares, st.integers(1, 10_000))
@hypothesis_settings(max_examples=200, deadline=None)
def test_largest_remainder_is_fair(weights: list[float], num: int) -> None:
    w = np.array(weights) / np.sum(weights)
    counts = largest_remainder(w, num)
    assert counts.sum() == num
    assert (counts >= 0).all()
    assert (np.abs(counts - num * w) < 1 + 1e-6).all()
    left = num * w - np.floor(num * w + 1e-9)
    up, down = left[counts > np.floor(num * w + 1e-9)], left[counts == np.floor(num * w + 1e-9)]
    assert not len(up) or not len(down) or up.min() >= down.max() - 1e-9


def test_largest_remainder_by_hand() -> None:
    np.testing.assert_array_equal(largest_remainder(np.array([0.5, 0.3, 0.2]), 10), [5, 3, 2])
    np.testing.assert_array_equal(
        largest_remainder(np.array([[0.46, 0.34, 0.2], [1 / 3, 1 / 3, 1 / 3]]), 4), [[2, 1, 1], [2, 1, 1]]
    )


# --- derivatives --------------------------------------------------------------------------------------------------


@every_family
def test_alignment_gradient_is_a_central_difference(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, 8))
    theta, h = somewhere(program, 12), 1e-5
    eye = h * torch.eye(program.num_params, dtype=torch.float64)
    slope = (program.alignment(theta + eye) - program.alignment(theta - eye)).T / (2 * h)
    torch.testing.assert_close(program.alignment_gradient(theta), slope, rtol=1e-6, atol=1e-8)


@every_family
def test_curvature_is_a_central_difference_of_the_trained_argument(family: str) -> None:
    program = compile_ecosystem(random_ecosystem(family, 3, 9))
    theta, h = somewhere(program, 13), 1e-5
    eye = h * torch.eye(program.num_params, dtype=torch.float64)
    slope = (program.gradient(theta + eye, data=theta) - program.gradient(theta - eye, data=theta)).T / (2 * h)
    dense = torch.zeros_like(slope)
    for group, blocks in zip(program.model_groups, program.curvature(theta), strict=True):
        for index, block in zip(group.theta_index, blocks, strict=True):
            dense[index[:, None], index] = block
    torch.testing.assert_close(dense, slope, rtol=1e-6, atol=1e-8)
