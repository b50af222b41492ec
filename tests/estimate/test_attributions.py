"""Who is behind an influence: pulls of samples add up, and are the derivatives by their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from exact_cases import pair, sampled, truth
from tiny_estimates import SGD, Made, made, opened, trained_by
from torch import Tensor

from crossfeed.describe.network_nodes import Flow
from crossfeed.estimate.attribution import sample_effects, source_effects, top_examples
from crossfeed.estimate.bank import Bank
from crossfeed.estimate.estimator import Estimate, directions_of, estimate
from crossfeed.estimate.influence import Answer, solve
from crossfeed.estimate.system import group_weights, moments
from networks import tiny


@pytest.fixture(scope="module")
def flows() -> tuple[Made, Answer]:
    eco = trained_by(tiny.flows(samples=200), SGD)
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=4)}) for name, model in eco.models.items()}
    eco = eco.model_copy(update={"models": small})
    bank = made(eco, 160, 120, point=opened(eco))
    return bank, bank.estimate(fisher=0.3).answer


@pytest.fixture(scope="module")
def closed() -> tuple[Bank, Estimate]:
    """Two log-linear models at their stable point, 200 groups a source."""
    return sampled(truth(pair(candidates=3)), 200, 1)


def pulls(bank: Bank, answer: Answer, s: int) -> Tensor:
    """(n·K, E) −w p π ⟨u, ∇ℓ⟩."""
    rows = bank.sources[s]
    share = (group_weights(rows.draw.clusters, None)[:, None] * rows.draw.probabilities).flatten()
    return -answer.system.mixture[s] * share[:, None] * (rows.loss.double() @ answer.weight[rows.consumer])


def test_pulls_add_up_to_what_the_source_does(flows: tuple[Made, Answer]) -> None:
    """Σ of all samples' pulls is −w ⟨u, mean gradient⟩; an effect is a pull less its share of that."""
    bank, answer = flows[0].bank, flows[1]
    for s, rows in enumerate(bank.sources):
        each = pulls(bank, answer, s)
        mean = answer.system.found[s].mean
        whole = -answer.system.mixture[s] * (answer.weight[rows.consumer].T @ mean)
        torch.testing.assert_close(each.sum(0), whole, rtol=1e-8, atol=1e-12)
        share = (group_weights(rows.draw.clusters, None)[:, None] * rows.draw.probabilities).flatten()[:, None]
        torch.testing.assert_close(sample_effects(bank, answer, s), each - share * whole, rtol=1e-6, atol=1e-10)
        assert float(sample_effects(bank, answer, s).sum(0).abs().max()) < 1e-9  # doubling all changes nothing


def by_weight(bank: Bank, found: Estimate, s: int, cluster: int, h: float) -> Tensor:
    """(E,) dJ by the weight of one group in one source's push, by central differences.

    Held fixed are D (curvatures, couplings), ∇J, the mixture's weights and all other sources: only the group's own share of its source
    moves, the others' falling in proportion.
    """
    rows = bank.sources[s]
    num = len(found.effects)
    ends = []
    for sign in (1, -1):
        weights = torch.ones(num, dtype=torch.float64)
        weights[cluster] += sign * h
        moved = moments(rows, weights).mean - found.answer.system.found[s].mean
        pushes = [torch.zeros(size, 1, dtype=torch.float64) for size in found.answer.system.sizes]
        pushes[rows.consumer][:, 0] -= found.answer.system.mixture[s] * moved
        ends.append(solve(bank, found.horizon, [{}], system=found.answer.system, pushes=pushes).matrix[:, 0])
    return (ends[0] - ends[1]) / (2 * h)


def test_effects_are_derivatives_by_weight(closed: tuple[Bank, Estimate]) -> None:
    """A group's candidates together, in an ecosystem of closed forms at its stable point."""
    bank, found = closed
    for s, rows in enumerate(bank.sources):
        effects = sample_effects(bank, found.answer, s).unflatten(0, rows.draw.probabilities.shape).sum(1)
        scale = float(effects.abs().max())
        for group in (0, 7, 101):
            cluster = int(rows.draw.clusters[group])
            slope = by_weight(bank, found, s, cluster, 1e-4)
            torch.testing.assert_close(slope, effects[group], rtol=1e-5, atol=1e-8 * scale)


def test_doubling_a_weight_is_the_effect_to_first_order(closed: tuple[Bank, Estimate]) -> None:
    """From p to 2p: of 200 groups the others lose 1/200, so first order is right to that."""
    bank, found = closed
    s = next(s for s, rows in enumerate(bank.sources) if rows.draw.curated)
    rows = bank.sources[s]
    effects = sample_effects(bank, found.answer, s).unflatten(0, rows.draw.probabilities.shape).sum(1)
    group = int(effects[:, 0].abs().argmax())
    weights = torch.ones(len(found.effects), dtype=torch.float64)
    weights[rows.draw.clusters[group]] = 2
    moved = moments(rows, weights).mean - found.answer.system.found[s].mean
    change = -rows.draw.weight * (found.answer.weight[rows.consumer].T @ moved)
    torch.testing.assert_close(change, effects[group], rtol=0.02, atol=1e-6)


def test_sources_by_weight(flows: tuple[Made, Answer]) -> None:
    """A source's effect is the influence of its weight where all others of the model give way in proportion."""
    made_, answer = flows
    effects = source_effects(made_.estimate(fisher=0.3).legs[0], answer)
    for path in ("p.sources.curated_q.weight", "p.sources.real.weight", "q.sources.raw_p.weight"):
        (slopes,) = directions_of(made_.eco, made_.bank.draws, [path])
        (s,) = [s for s, slope in slopes.items() if slope > 0]
        column = estimate(made_.eco, made_.bank, rounds=3, fisher=0.3, paths=[path]).answer.matrix[:, 0]
        weight = answer.system.mixture[s]
        torch.testing.assert_close(effects[s] / (1 - weight), column, rtol=1e-6, atol=1e-9)


def test_source_effects_cancel_in_the_mixture(flows: tuple[Made, Answer]) -> None:
    made_, answer = flows
    effects = source_effects(made_.estimate(fisher=0.3).legs[0], answer)
    for i in range(2):
        mine = [s for s, rows in enumerate(made_.bank.sources) if rows.consumer == i]
        whole = sum(answer.system.mixture[s] * effects[s] for s in mine)
        assert isinstance(whole, Tensor)
        assert float(whole.abs().max()) < 1e-10 * float(effects.abs().max())


def top(made_: Made, answer: Answer, **options: Any) -> list[Any]:
    return top_examples(made_.bank, answer, 0, 5, **options)


def test_top_examples_are_the_largest_and_sorted(flows: tuple[Made, Answer]) -> None:
    made_, answer = flows
    for curated_only in (True, False):
        wanted: dict[tuple[int, int], float] = {}
        for s, rows in enumerate(made_.bank.sources):
            if rows.draw.curated or not curated_only:
                effects = sample_effects(made_.bank, answer, s)[:, 0]
                wanted |= {(s, k): float(value) for k, value in enumerate(effects)}
        found = top(made_, answer, curated_only=curated_only)
        assert len(found) == 10
        for example in found:
            assert example.effect == wanted[example.source, example.sample]
            chances = made_.bank.sources[example.source].draw.probabilities.flatten()
            assert example.probability == float(chances[example.sample])
        down, up = [e.effect for e in found if e.effect < 0], [e.effect for e in found if e.effect > 0]
        ordered = sorted(wanted.values())
        assert down == ordered[:5]
        assert up == ordered[::-1][:5]


def test_sources_of_weight_zero_have_no_examples(flows: tuple[Made, Answer]) -> None:
    made_, _ = flows
    nothing: Mapping[int, float] = {}
    mixture = [rows.draw.weight for rows in made_.bank.sources]
    mixture[1], mixture[0] = 0.0, mixture[0] + mixture[1]
    found = made_.estimate(fisher=0.3)
    answer = solve(made_.bank, found.horizon, [nothing], mixture=mixture)
    assert {example.source for example in top(made_, answer)} == {2}
