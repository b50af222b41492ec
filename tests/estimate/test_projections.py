"""Random projections: what they leave right in the mean, how far off they are, the way back, and estimates by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_estimates import SGD, Made, opened, trained_by
from tiny_estimates import drawn as samples_of
from torch import Tensor

from crossfeed.cli import main
from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.errors import SettingError
from crossfeed.estimate import bank as banks
from crossfeed.estimate import projection as projections
from crossfeed.estimate.audit import audit_networks
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.estimator import mean_eigenvalue
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.projection import Projection
from crossfeed.estimate.system import moments
from networks import tiny

D = 500
ADAM = Training(steps=10, batch_size=50, learning_rate=1e-3, weight_decay=0.1)


def drawn(num: int, seed: int, d: int = D) -> Tensor:
    return torch.randn(num, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(projection: Projection) -> Tensor:
    """(m, d)."""
    return projection(torch.eye(projection.num_params, dtype=torch.float64)).T


# --- the matrix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1 << 18, 70])
def test_inner_products_are_right_in_the_mean(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 600 seeds: within 4.5 standard errors; the variance under (‖a‖²‖b‖² + ⟨a, b⟩²)/m, which 600 know to 6 %."""
    monkeypatch.setattr(projections, "_BLOCK", block)
    m, num = 48, 600
    a, b = drawn(2, 1)
    b = b + 0.5 * a
    found = torch.empty(num, dtype=torch.float64)
    for seed in range(num):
        pa, pb = Projection(D, m, seed)(torch.stack([a, b]))
        found[seed] = pa @ pb
    bound = float((a @ a) * (b @ b) + (a @ b) ** 2) / m
    assert abs(float(found.mean() - a @ b)) < 4.5 * (bound / num) ** 0.5
    assert 0.7 * bound < float(found.var()) < 1.2 * bound


def test_places_and_signs() -> None:
    """Every parameter has one place ±1/2 in each quarter of the coordinates."""
    matrix = dense(Projection(D, 21, 3))
    assert matrix.shape == (21, D)
    assert set(matrix.unique().tolist()) == {-0.5, 0.0, 0.5}
    for low, high in ((0, 5), (5, 10), (10, 15), (15, 21)):
        assert bool(((matrix[low:high] != 0).sum(0) == 1).all())
    assert not torch.equal(matrix, dense(Projection(D, 21, 4)))
    assert torch.equal(matrix, dense(Projection(D, 21, 3)))


def test_scale_transpose_and_precision() -> None:
    projection = Projection(D, 32, 1)
    g, scale, x = drawn(3, 1), drawn(1, 2)[0].abs(), drawn(1, 3, 32)[0]
    matrix = dense(projection)
    torch.testing.assert_close(projection(g, scale), (g * scale) @ matrix.T)
    torch.testing.assert_close(projection.transpose(x), matrix.T @ x)
    assert projection(g.float()).dtype == torch.float32
    assert projection(g[:0]).shape == (0, 32)


def test_too_few() -> None:
    with pytest.raises(ValueError, match="projection: found 3 coordinates; need at least 4"):
        Projection(D, 3)
    with pytest.raises(SettingError, match="projection: found 3; need at least 4"):
        build_bank({}, samples_of(opened(tiny.flows(samples=10)), 4, 4), {}, projection=3)


# --- the bank -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SGD, ADAM], ids=["sgd", "adamw"])
def models(request: pytest.FixtureRequest) -> Made:
    """By their parameters."""
    eco = trained_by(tiny.flows(samples=300), request.param)
    wide = {n: m.model_copy(update={"family": Flow(width=24, bins=8)}) for n, m in eco.models.items()}
    eco = eco.model_copy(update={"models": wide})
    point = opened(eco)
    return banked(Made(eco, point, samples_of(point, 400, 300), None), limit=100_000)  # type: ignore[arg-type]


def banked(made: Made, **options: int) -> Made:
    models = {name: differentiable(network) for name, network in made.point.networks.items()}
    trainings = {name: node.train for name, node in made.eco.models.items()}
    return Made(made.eco, made.point, made.draws, build_bank(models, made.draws, trainings, **options))


def projected(made: Made, size: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> Made:
    """With nothing else random that differs."""
    monkeypatch.setattr(banks, "Projection", lambda d, m, _: Projection(d, m, seed))
    return banked(made, limit=0, projection=size)


def ridges(made: Made, like: Made) -> list[float]:
    """Shares of the mean eigenvalue that are the same ridge in all coordinates."""
    out = []
    for i in range(len(made.bank.models)):
        means = [mean_eigenvalue(m.bank, [moments(rows) for rows in m.bank.sources], i) for m in (like, made)]
        out.append(1e-3 * means[0] / means[1])
    return out


def test_rows_are_projections_of_the_rows(models: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the optimiser's units, θ in theirs."""
    found = projected(models, 40, 5, monkeypatch)
    for one, two in zip(models.bank.sources, found.bank.sources, strict=True):
        for name in ("loss", "score", "curvature"):
            whole, small = getattr(one, name), getattr(two, name)
            if whole is not None:
                torch.testing.assert_close(small, Projection(whole.shape[1], 40, 5)(whole), rtol=1e-5, atol=1e-7)
    for left, right in zip(models.bank.models, found.bank.models, strict=True):
        assert right.basis.words == f"random projection of {left.num_params:,} parameters"
        torch.testing.assert_close(right.theta, Projection(left.num_params, 40, 5)(left.theta[None])[0])
    assert found.bank.nbytes < models.bank.nbytes / 20


def test_only_models_with_more_parameters(models: Made) -> None:
    d = models.bank.models[0].num_params
    assert banked(models, projection=8).bank.models[0].basis.words == "parameters"  # not more than LIMIT
    assert banked(models, limit=0, projection=d - 1).bank.models[0].basis.size == d - 1
    assert banked(models, limit=0, projection=d).bank.models[0].basis.projection is None


def test_estimates(models: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 512 of 1,246 coordinates and one ridge: each within two standard errors, their mean within half a one.

    Measured with 1,500 outputs over 8 projections: biases up to .27, spreads of .3 to .55 standard errors (benchmarks/README.md).
    """
    whole = models.estimate(rounds=4, ridge=ridges(models, models))
    found = []
    for seed in range(3):
        made = projected(models, 512, seed, monkeypatch)
        found.append(made.estimate(rounds=4, ridge=ridges(made, models)).answer.matrix)
    away = (torch.stack(found) - whole.answer.matrix) / whole.errors.clamp_min(1e-12)
    assert float(away.abs().max()) < 2
    assert float(away.mean(0).abs().max()) < 0.6


def test_audits_stay_where_the_models_are(models: Made) -> None:
    eco, before = models.eco, {n: flatten(x.parameters()) for n, x in models.point.networks.items()}
    audit = audit_networks(eco, point=models.point, size=Size(64, 64), rounds=3, limit=0, projection=100)
    assert [model.basis.size for model in audit.bank.models] == [100, 100]
    assert audit.findings.places == [0]
    assert audit.rougher is None
    assert bool(torch.isfinite(audit.estimate.answer.matrix).all())
    assert all(torch.equal(flatten(x.parameters()), before[n]) for n, x in models.point.networks.items())


SPEC = """
crossfeed: 1
space: {kind: vectors, dim: 2}
data:
  ring: {kind: mixture, std: 0.2, means: [[2, 0], [0, 2], [-2, 0], [0, -2]]}
rewards:
  right: {kind: linear, vector: [1.0, 0.0]}
models:
  p:
    family: {kind: flow, width: 64, bins: 8}
    reward: right
    train: {steps: 10, batch_size: 50, learning_rate: 3.0e-3}
    sources:
      - {kind: real, data: ring, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.5, candidates: 2}
samples: {per_round: 100}
run: {rounds: 2, evaluation_samples: 64}
"""


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(SPEC, encoding="utf-8")
    assert main(["audit", "one.yaml", "--samples", "64", "--projection", "80", "--json", "--out", "found"]) == 0
    out, err = capsys.readouterr()
    model = json.loads(out)["models"][0]
    assert model["num_params"] > 3000
    assert model["coordinates"] == 80
    assert model["coordinates_are"] == f"random projection of {model['num_params']:,} parameters"
    assert "up to 80 coordinates" in err
    assert "--projection 80" in json.loads(out)["command"]
