"""Audits without a gradient bank: models without a likelihood from end to end, agreement with the bank, what is refused and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from free_examples import SGD
from scipy.stats import t as student

from crossfeed.describe.network_nodes import Diffusion, Flow, Training
from crossfeed.describe.schema import Curated, Ecosystem, HueBandReward, Images, Model, Real
from crossfeed.describe.settings import put
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate import audit as audits
from crossfeed.estimate import free_audit, free_batches
from crossfeed.estimate.audit import NetworkAudit, audit_networks
from crossfeed.estimate.budget import sized
from crossfeed.estimate.free_audit import FreeAudit
from crossfeed.estimate.free_batches import BATCHES, Grown, Plan, parts_of, solve_batch
from crossfeed.estimate.free_budget import FreeBudget
from crossfeed.estimate.free_what_if import what_if_by_batches
from crossfeed.estimate.lookahead import shifted
from crossfeed.estimate.low_rank import LowRank
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.points import Point, open_point
from crossfeed.estimate.route import choose_route
from crossfeed.estimate.solver import Solver
from networks import tiny

PATHS = ["p.curation", "q.curation"]


def images(**changes: Any) -> Ecosystem:
    """Two diffusion networks of one level and two sampling steps."""
    family = Diffusion(channels=[4], attention=[False], norm_groups=2, noise_levels=20, sampling_steps=2, head_dim=4)
    train = Training(steps=3, batch_size=8, learning_rate=1e-3)
    fields: dict[str, Any] = {
        "space": Images(file="sample:cifar10", rows=40, size=8),
        "rewards": {name: HueBandReward(bands=bands) for name, bands in BANDS.items()},
        "models": {
            "p": Model(family=family, reward="warm", train=train, sources=mixture("p")),
            "q": Model(family=family, reward="cool", train=train, sources=mixture("p")),
        },
    }
    return tiny.diffusions().model_copy(update=fields | changes)


BANDS: dict[str, Any] = {"warm": [(0.92, 1.0), (0.0, 0.17)], "cool": [(0.5, 0.72)]}


def mixture(producer: str, **rule: Any) -> list[Any]:
    return [Real(data="photographs", weight=0.6), Curated(producer=producer, weight=0.4, candidates=2, **rule)]


@pytest.fixture(scope="module")
def found() -> FreeAudit:
    audit = audit_networks(images(), size=Size(48, 12), rounds=2)
    assert isinstance(audit, FreeAudit)
    return audit


def test_networks_without_a_likelihood(found: FreeAudit) -> None:
    findings = found.findings
    assert (findings.paths, findings.rounds, findings.shown) == (PATHS, 2, [0, 1, 2])
    assert found.batches.shape == (BATCHES, 2, 2)
    torch.testing.assert_close(findings.matrix, found.batches.mean(0))
    torch.testing.assert_close(findings.errors, found.batches.std(0) / BATCHES**0.5)
    assert findings.quantile == pytest.approx(student.ppf(0.975, BATCHES - 1))
    torch.testing.assert_close(found.half_width, findings.quantile * torch.hypot(findings.errors, found.linearisation))
    assert found.rougher is not None
    assert findings.matrix[0, 1] == 0  # q trains nobody
    assert found.verdicts()[0][1] == "no effect"
    assert findings.matrix[1, 0] != 0
    assert findings.isolated[1, 0] == 0
    assert findings.isolated[0, 0] == pytest.approx(float(findings.matrix[0, 0]), rel=1e-5)  # p takes nothing of q
    torch.testing.assert_close(findings.unfolding[-1], findings.matrix)
    assert [found.route for found in findings.models] == ["pathwise", "pathwise"]
    assert {"looking ahead", "solving", "checking"} <= set(found.seconds)
    results = {check.name: check for check in found.checks}
    assert {"gradients", "sampler of p", "repeats", "rewards", "solver", "step size", "reach"} <= set(results)
    assert "exactly from its kept rows" in results["solver"].words
    assert "scores" not in results
    assert not any(check.result == "failed" for check in found.checks)


def test_the_models_stay_as_they_are_and_seeds_matter(monkeypatch: Any) -> None:
    for module in (free_audit, free_batches):
        monkeypatch.setattr(module, "BATCHES", 2)
    point = open_point(images(), device="cpu")
    before = {key: value.clone() for key, value in point.networks["p"].parameters().items()}
    first, again, other = (
        audit_networks(images(), point=point, size=sized(8, Size()), rounds=1, seed=seed).findings.matrix
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(before[key], value) for key, value in point.networks["p"].parameters().items())
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_what_ifs_of_networks_without_a_likelihood(found: FreeAudit) -> None:
    """The first order of a change of weights is the influence times the change, from the same batches."""
    answer = found.what_if(put(found.eco, "p.curation", 0.5))
    torch.testing.assert_close(answer.first_order, 0.1 * found.findings.matrix[:, 0], rtol=1e-4, atol=1e-9)
    assert answer.matrix is None
    assert bool((answer.errors[0] > 0) & answer.change.isfinite().all())
    with shifted(found.point.networks, found.shift):
        picks = what_if_by_batches(found.plan, found.draws[:2], found.size, found.fisher, rule(noise=1.0))
    assert bool(picks.change.isfinite().all())
    assert picks.change[0] != 0
    with pytest.raises(NotAvailableError, match="temperature: found 0"):
        found.what_if(rule(temperature=0))
    other = {**found.eco.models, "p": found.eco.models["p"].model_copy(update={"train": SGD})}
    with pytest.raises(SettingError, match=r"models\.p\.train: found a change of the model"):
        found.what_if(found.eco.model_copy(update={"models": other}))


# --- against the bank -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors() -> Point:
    """Two flows near rest, trained by plain steps: the loop does not expand, so that no empirical Fisher matrix is mixed in."""
    train = Training(steps=10, batch_size=50, optimizer="sgd", learning_rate=5e-3, gradient_clip=None, weight_decay=0.3)
    small = {
        name: model.model_copy(update={"family": Flow(width=4, bins=3), "train": train})
        for name, model in tiny.flows().models.items()
    }
    return open_point(tiny.flows().model_copy(update={"models": small}), device="cpu")


def test_both_solvers_agree(vectors: Point) -> None:
    """Differences in units of both errors, Student's t with 5 degrees of freedom for the one: false alarm 1e-3 in all."""
    eco = vectors.world.eco
    options: dict[str, Any] = {"point": vectors, "rounds": 2, "look_ahead": False}
    bank = audit_networks(eco, size=Size(3000, 3000), seed=1, **options)
    free_one = audit_networks(eco, size=Size(3000, 3000), seed=2, estimator="matrix-free", **options)
    assert isinstance(bank, NetworkAudit)
    assert isinstance(free_one, FreeAudit)
    assert (bank.solver, [m.route for m in free_one.findings.models]) == ("gradient bank", ["score function"] * 2)
    a, b = bank.findings, free_one.findings
    some = a.errors > 0
    off = (a.matrix - b.matrix)[some].abs() / torch.hypot(a.errors, b.errors)[some]
    assert float(off.max()) < student.isf(1e-3 / 2 / int(some.sum()), BATCHES - 1)
    assert float((b.matrix / b.errors)[some].abs().max()) > 5  # there is something to tell apart
    assert bool((b.matrix[~some] == 0).all())
    assert 0.3 < float((b.errors / a.errors)[some].log().mean().exp()) < 3
    assert free_one.findings.shown == [0, 1, 2]
    assert "scores" in {check.name for check in free_one.checks}
    change = put(eco, "p.curation", 0.6)
    one, other = bank.what_if(change), free_one.what_if(change)
    apart = (one.change - other.change).abs() / torch.hypot(one.errors, other.errors)
    assert float(apart.max()) < student.isf(1e-3 / 4, BATCHES - 1)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_functions_of_a_curvature_of_few_samples() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 9, generator=random, dtype=torch.float64)
    rows[3] = rows[0]  # a zero eigenvalue
    b = torch.randn(9, generator=random, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(rows.T @ rows + 0.1 * torch.eye(9, dtype=torch.float64))
    kept = LowRank(rows, 0.1)
    torch.testing.assert_close(kept.apply(torch.exp, b), vectors @ (values.exp() * (vectors.T @ b)))
    torch.testing.assert_close(kept.product(b), rows.T @ rows @ b)
    assert kept.largest == pytest.approx(float(values[-1]))


@pytest.mark.parametrize("fisher", [0.0, 0.4])
def test_kept_rows_are_lanczos_without_passes(vectors: Point, fisher: float) -> None:
    plan = Plan.of(vectors, frozenset(), 2, PATHS[:1], 0)
    draws = plan.draws(Size(180, 60), 0, 0)
    loops = [plan.loop(draws, keep, fisher) for keep in (True, False)]
    loops[1].solver = Solver(0, loops[0].solver.curvature_samples, 1e-8, 200)
    x = [torch.randn(d, 1, generator=torch.Generator().manual_seed(d), dtype=torch.float64) for d in loops[0].sizes]
    for i in range(2):
        for one, other in ((loop.respond(i, x[i], 1) for loop in loops), (loop.curvature(i, x[i]) for loop in loops)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
        assert loops[0].trace(i) == pytest.approx(loops[1].trace(i), rel=1e-4)
        assert loops[0].largest_curvature(i) == pytest.approx(loops[1].largest_curvature(i), rel=0.02)
    passes = dict(loops[0].models[0].samples)
    loops[0].respond(0, x[0], 1)
    assert loops[0].models[0].samples == passes


def test_progress_counts_what_there_is(vectors: Point) -> None:
    plan = Plan.of(vectors, frozenset(), 2, PATHS[:1], 0)
    counted: list[int] = []
    solve_batch(
        plan, plan.loop(plan.draws(Size(60, 60), 0, 0), True), course=True, isolated=True, advance=counted.append
    )
    assert sum(counted) == parts_of(plan, course=True, isolated=True)


def test_growth_is_the_largest_eigenvalue() -> None:
    M, x, grown = torch.diag(torch.tensor([1.3, 0.5])), torch.zeros(2, 1), Grown()
    for _ in range(12):
        x = M @ x + 1
        grown.add([x])
    assert grown.factor == pytest.approx(1.3, rel=1e-3)


def test_budgets(vectors: Point) -> None:
    budget = FreeBudget.of(vectors, 3, True, 0)
    words, kept = budget.check(Size(600, 600))
    assert "6 batches" in words
    assert kept is None
    assert budget.bytes(Size(6000, 600)) > budget.bytes(Size(600, 600))
    fits = budget.fits(Size(), 50 * 2**20)
    assert budget.bytes(sized(fits, Size())) <= 50 * 2**20
    pace = budget.pace(Size(), 10.0, None)
    assert 0 < pace.seconds(100) <= pace.seconds(10_000)


# --- refusals, before anything is opened ----------------------------------------------------------------------------


def rule(**changes: Any) -> Ecosystem:
    eco = images()
    return eco.model_copy(
        update={"models": {**eco.models, "p": eco.models["p"].model_copy(update={"sources": mixture("p", **changes)})}}
    )


@pytest.mark.parametrize(
    ("eco", "options", "message"),
    [
        (images(), {"estimator": "bank"}, r"models\.p: a diffusion network has no likelihood.*--estimator matrix-free"),
        (rule(temperature=0), {}, r"models\.p\.sources\.curated_p: temperature: found 0; the best of K"),
        (images(), {"outputs": {"p": "x.parquet"}}, "outputs of p: found a model that is taken by its sampler"),
        (tiny.flows(), {"estimator": "matrix-free", "outputs": {"p": "x.parquet"}}, "take `--estimator bank`"),
        (tiny.flows(), {"estimator": "none"}, "need one of auto, bank, matrix-free"),
    ],
)
def test_what_is_refused(monkeypatch: Any, eco: Ecosystem, options: Any, message: str) -> None:
    monkeypatch.setattr(audits, "open_point", lambda *_: pytest.fail("opened the models"))
    with pytest.raises((NotAvailableError, SettingError), match=message):
        audit_networks(eco, **options)


def test_routes() -> None:
    assert choose_route(tiny.flows()).solver == "bank"
    assert choose_route(tiny.flows(), "matrix-free").pathwise == frozenset()
    assert choose_route(images()).pathwise == {"p", "q"}
    mixed = {**images().models, "q": tiny.flows().models["p"].model_copy(update={"sources": mixture("p")})}
    with pytest.raises(
        NotAvailableError, match=r"models\.q\.sources\.curated_p: found a flow network that is trained on outputs of p"
    ):
        choose_route(images(models=mixed))
