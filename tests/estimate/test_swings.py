"""Pushes by what models are asked: against recursions, fresh samples of other compositions, passes, re-weighting and adjoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import t as student
from tiny_estimates import crossed, opened
from torch import Tensor

from crossfeed.describe.schema import Cycle, Ecosystem, Sequential, Simultaneous, Update, source_names
from crossfeed.describe.settings import get, put
from crossfeed.estimate.attribution import source_effects
from crossfeed.estimate.audit import NetworkAudit, audit_networks
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.checks import consistency
from crossfeed.estimate.composition import Asked, composed, spread
from crossfeed.estimate.draws import Draws
from crossfeed.estimate.estimator import Estimate, directions_of, estimate_legs, prepare, rounds_ahead
from crossfeed.estimate.free_swings import free_swings
from crossfeed.estimate.influence import cluster_effects, solve_legs
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import Point
from crossfeed.estimate.swings import swings
from crossfeed.estimate.what_if import what_if
from networks import tiny

ROUNDS = 4
FALSE_ALARM = 1e-5


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    return opened(crossed(tmp_path_factory.mktemp("texts")), shift=0.02)


@pytest.fixture(scope="module")
def found(point: Point) -> Estimate:
    """One leg of four rounds, 240 outputs a model."""
    return estimated(point, 240, 0)


def asked_of(point: Point, rounds: int = ROUNDS) -> Asked:
    return composed(point.world, point.prompts, rounds_ahead(point.world.eco, rounds), 0, rounds)


def estimated(point: Point, outputs: int, seed: int) -> Estimate:
    eco, asked = point.world.eco, asked_of(point)
    draws = network_draws(point.world, point.networks, point.rewards, asked.prompts, Size(outputs, 48), seed)
    models = {name: differentiable(network) for name, network in point.networks.items()}
    bank = build_bank(models, draws, {name: node.train for name, node in eco.models.items()})
    return estimate_legs(eco, [Leg(bank, *prepare(eco, bank, rounds=ROUNDS, fisher=1.0), 0, ROUNDS, asked)])


def number_of(eco: Ecosystem, consumer: str, name: str) -> int:
    labels = [(who, label) for who, model in eco.models.items() for label in source_names(model)]
    return labels.index((consumer, name))


ORDERS = {
    "simultaneous": Simultaneous(),
    "sequential": Sequential(),
    "cycle": Cycle(rounds=[[["q"]], [["p"], ["q"]]]),
}


# --- the recursion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["simultaneous", "sequential", "cycle"])
@pytest.mark.parametrize("path", ["p.sources.raw_q.weight", "q.curation"])
def test_shares_move_as_differences_say(tmp_path: Path, order: str, path: str) -> None:
    """Central differences of polynomials in the weights."""
    eco = crossed(tmp_path, update=Update(order=ORDERS[order]))
    rounds, h = rounds_ahead(eco, 5), 1e-4
    draws = [
        type("D", (), {"consumer": who, "name": label}) for who, m in eco.models.items() for label in source_names(m)
    ]
    (slopes,) = directions_of(eco, draws, [path])  # type: ignore[arg-type]
    now = spread(eco, rounds, slopes=slopes)
    up, down = (spread(put(eco, path, get(eco, path) + s * h), rounds) for s in (1, -1))
    seen = 0.0
    for step, a, b in zip(*([step for made in x for step in made] for x in (now, up, down)), strict=True):
        for name in eco.names:
            for origin in a.shares[name] | b.shares[name]:
                slope = (a.shares[name].get(origin, 0) - b.shares[name].get(origin, 0)) / (2 * h)
                assert step.moved[name].get(origin, 0.0) == pytest.approx(slope, abs=1e-6)
                seen = max(seen, abs(slope))
            assert sum(step.moved[name].values()) == pytest.approx(0, abs=1e-12)
    assert seen > 0.1


def test_alone_nothing_comes_through_others(point: Point) -> None:
    """p's own raw outputs aside, which it lacks, its inputs move at once by its weights, and then stay there."""
    asked = asked_of(point)
    slopes = {number_of(asked.eco, "p", "raw_q"): 1.0, number_of(asked.eco, "p", "real"): -1.0}
    whole, alone = asked.moves(slopes), asked.moves(slopes, alone=True)
    assert whole[1]["p"] == alone[1]["p"]
    assert alone[2]["p"]["p"] == alone[2]["q"]["p"]
    assert not any(alone[t]["q"]["q"] for t in range(ROUNDS))
    assert whole[2]["q"]["q"]


def test_ratios_turn_means_over_all_inputs_into_those_of_an_origin(point: Point) -> None:
    asked = asked_of(point)
    values = torch.randn(len(asked.words), generator=torch.Generator().manual_seed(3), dtype=torch.float64)[asked.words]
    lists = asked.parts["q"]
    assert len(lists) > 2
    every = asked.prompts["q"]
    for origin, part in lists.items():
        (ratio,) = asked.ratios("q", every, [{origin: 0.7}])
        assert float((ratio * values[every]).mean()) == pytest.approx(0.7 * float(values[part].mean()), rel=1e-9)


# --- forces ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forces_are_what_other_compositions_do_to_mean_gradients(point: Point, found: Estimate) -> None:
    """Fresh samples answer what is asked in round 3 with a weight up and down by .1; mean gradients differ as the forces say.

    Along the forces of yet other samples, by Student's t of 8 differences: a right force is beyond the bound once in 100,000 seeds for
    each of two models.
    """
    eco, path, round_, h, num = point.world.eco, "q.sources.named.weight", 3, 0.1, 8
    rounds, models = (
        rounds_ahead(eco, ROUNDS),
        {name: differentiable(network) for name, network in point.networks.items()},
    )

    def loop_of(prompts: Mapping[str, Tensor], seed: int) -> MatrixFree:
        draws = network_draws(point.world, point.networks, point.rewards, prompts, Size(96, 8), seed)
        return MatrixFree(models, draws, found.horizon.steps, [0, 0])

    def stated(seed: int) -> Tensor:
        loop = loop_of(asked_of(point).prompts, seed)
        swing = free_swings(loop, asked_of(point), directions_of(eco, loop.draws.sources, [path]))
        assert swing is not None
        return torch.stack([swing(round_, i)[:, 0].double() for i in range(2)])

    def shown(sign: int, seed: int) -> Tensor:
        world = replace(point.world, eco=put(eco, path, get(eco, path) + sign * h))
        loop = loop_of(composed(world, point.prompts, rounds, round_, round_ + 1).prompts, seed)
        made = list(enumerate(loop.draws.sources))
        out = torch.zeros(2, loop.sizes[0], dtype=torch.float64)
        for s, draw in made:
            if draw.producer is not None:
                out[eco.names.index(draw.consumer)] -= loop.mixture[s] * loop.mean(s).double()
        return out

    along = torch.stack([stated(5000 + seed) for seed in range(4)]).mean(0)
    said = torch.stack([(along * stated(seed)).sum(1) for seed in range(num)])
    seen = torch.stack(
        [(along * (shown(1, 1000 + seed) - shown(-1, 2000 + seed)) / (2 * h)).sum(1) for seed in range(num)]
    )
    gap = (seen - said).mean(0) / ((seen - said).std(0) / num**0.5)
    power = seen.mean(0) / (seen.std(0) / num**0.5)
    assert float(gap.abs().max()) < float(student.isf(FALSE_ALARM / 2, num - 1))
    assert float(power[0]) > 4  # p learns of q, which is asked other things; q of p only at second hand


@pytest.mark.parametrize("alone", [False, True])
def test_passes_give_the_banks_forces(point: Point, found: Estimate, alone: bool) -> None:
    leg = found.legs[0]
    models = {name: differentiable(network) for name, network in point.networks.items()}
    moved, loop = (
        swings(leg, found.directions),
        MatrixFree(models, Draws(leg.bank.draws, []), leg.horizon.steps, [0, 0]),
    )
    swing = free_swings(loop, asked_of(point), found.directions, alone=alone)
    assert moved is not None
    assert swing is not None
    for number in range(ROUNDS):
        for i, model in enumerate(leg.bank.models):
            want = model.basis.of_gradients(swing(number, i).T.float()).double().T
            got = moved.isolated(number, i) if alone else moved(number, i)
            # picks are averaged over groupings in the bank, so what q gets of p's picks differs a little
            assert float((got - want).norm()) <= (0.03 if i else 1e-4) * float(got.norm())


# --- through the estimate -------------------------------------------------------------------------------------------


def test_adjoint_and_forward_agree(found: Estimate) -> None:
    assert found.answer.swings is not None
    assert consistency(found.answers).result == "passed"
    plain = solve_legs(found.legs, [answer.pushes for answer in found.answers])[0]
    asked = found.answer.asked
    assert asked is not None
    torch.testing.assert_close(found.answer.matrix - plain.matrix, asked, rtol=1e-9, atol=1e-12)
    assert plain.asked is None
    assert float(asked.abs().max()) > 0.05 * float(found.answer.matrix.abs().max())


def test_errors_are_derivatives_by_the_weights_of_prompts(found: Estimate) -> None:
    """What swings add to ψ, of three prompts, against differences; the rest is held."""
    leg, answer = found.legs[0], found.answer
    num = len(found.effects)
    used = torch.cat([rows.draw.clusters for rows in leg.bank.sources]).unique()
    effects = cluster_effects(leg.bank, answer, found.directions, num) - cluster_effects(
        leg.bank, replace(answer, swings=None), found.directions, num
    )

    def at(weights: Tensor) -> Tensor:
        moved = swings(leg, found.directions, weights=weights)
        return solve_legs([leg], [answer.pushes], answer.judged, [moved])[0].matrix

    for cluster in used[:: len(used) // 3].tolist():
        h = 0.3
        up, down = (torch.ones(num, dtype=torch.float64) for _ in range(2))
        up[cluster] += h
        down[cluster] -= h
        slope = (at(up) - at(down)) / (2 * h)
        torch.testing.assert_close(effects[cluster], slope, rtol=1e-3, atol=1e-5 * float(effects.abs().max()))


def test_small_changes_are_the_matrix_times_the_change(found: Estimate) -> None:
    h = 1e-5
    for c, path in enumerate(found.paths):
        changed = what_if(found, put(found.eco, path, get(found.eco, path) + h))
        torch.testing.assert_close(changed.first_order, found.answer.matrix[:, c] * h, rtol=1e-6, atol=1e-13)
        torch.testing.assert_close(changed.change, found.answer.matrix[:, c] * h, rtol=1e-2, atol=1e-9)
        torch.testing.assert_close(changed.errors, found.errors[:, c] * h, rtol=1e-5, atol=1e-12)


def test_sources_by_weight(found: Estimate) -> None:
    """A source's effect is the influence of its weight where all others of the model give way in proportion."""
    leg = found.legs[0]
    effects = source_effects(leg, found.answer)
    for path in ("q.sources.curated_p.weight", "p.sources.raw_q.weight"):
        (slopes,) = directions_of(found.eco, leg.bank.draws, [path])
        (s,) = [s for s, slope in slopes.items() if slope > 0]
        answer = solve_legs([leg], [leg.system.pushes([slopes])], found.answer.judged, [swings(leg, [slopes])])[0]
        weight = answer.system.mixture[s]
        torch.testing.assert_close(effects[s] / (1 - weight), answer.matrix[:, 0], rtol=1e-6, atol=1e-9)


def test_no_swings_without_inputs(tmp_path: Path) -> None:
    audit = audit_networks(tiny.flows(samples=50), size=Size(64, 32), rounds=2)
    assert isinstance(audit, NetworkAudit)
    assert all(answer.swings is None for answer in audit.estimate.answers)


def test_what_a_file_answers_does_not_move(point: Point) -> None:
    rounds = rounds_ahead(point.world.eco, ROUNDS)
    asked = composed(point.world, point.prompts, rounds, 0, ROUNDS, ["p"])
    eco = point.world.eco
    assert asked_of(point).moving == {number_of(eco, "p", "raw_q"), number_of(eco, "q", "curated_p")}
    assert asked.moving == {number_of(eco, "p", "raw_q")}
