"""What makes couplings less noisy: several groupings of the same candidates, own raw outputs exactly, outliers shortened."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from exact_cases import Truth, pair, sampled, truth
from scipy.stats import chi2
from scipy.stats import t as student
from tiny_estimates import SGD, Made, made, opened, trained_by
from torch import Tensor

from crossfeed.describe.network_nodes import Flow
from crossfeed.estimate.bank import Bank
from crossfeed.estimate.draws import Draws, SourceDraw, marginal, with_rules
from crossfeed.estimate.outliers import SHARE, shortened
from crossfeed.estimate.system import moments
from networks import tiny

FALSE_ALARM = 1e-4  # of every statistical test here
K, BLOCK = 4, 4
ECO = pair("vectors", candidates=K, temperature=0.5)


def in_blocks(draws: Draws) -> Draws:
    """Curated groups of one producer shuffled in blocks of four, which are their clusters; raw outputs of these keep to them."""
    sources = []
    for draw in draws.sources:
        if draw.producer is None:
            sources.append(draw)
            continue
        size = BLOCK if draw.curated else BLOCK * K
        clusters = int(draw.clusters[0]) + torch.arange(len(draw.clusters)) // size
        sources.append(replace(draw, interchangeable=True, clusters=clusters))
    found = with_rules(replace(draws, sources=sources), ECO)
    assert all(len(draw.groupings()) == draw.candidates for draw in found.sources)
    return found


@pytest.fixture(scope="module")
def here() -> Truth:
    return truth(ECO)


@pytest.fixture(scope="module")
def flows() -> Made:
    eco = trained_by(tiny.flows(samples=200), SGD)
    small = {name: model.model_copy(update={"family": Flow(width=6, bins=4)}) for name, model in eco.models.items()}
    eco = eco.model_copy(update={"models": small})
    return made(eco, 2000, 500, point=opened(eco))


def curated(bank: Bank) -> SourceDraw:
    return next(rows.draw for rows in bank.sources if len(rows.draw.groupings()) > 1)


# --- groupings ------------------------------------------------------------------------------------------------------


def test_groupings_keep_to_blocks(flows: Made) -> None:
    """K of them, each with every candidate once, and never one from another block, which is a cluster."""
    draw = curated(flows.bank)
    found = draw.groupings()
    clusters = draw.clusters.repeat_interleave(draw.candidates)
    assert len(found) == draw.candidates
    for group in found:
        assert torch.equal(group.index.flatten().sort().values, torch.arange(draw.probabilities.numel()))
        assert torch.equal(clusters[group.index], draw.clusters[:, None].expand_as(group.index))
        assert torch.allclose(group.probabilities.sum(1), torch.ones(len(group.index), dtype=torch.float64))
    assert not torch.equal(found[1].index, found[2].index)
    assert torch.equal(found[1].index, draw.groupings()[1].index)
    assert float(marginal(draw).sum()) == pytest.approx(1)


def test_moments_are_means_over_groupings(flows: Made) -> None:
    """By hand, from the rows."""
    rows = next(rows for rows in flows.bank.sources if len(rows.draw.groupings()) > 1)
    loss, score = rows.loss.double(), rows.score
    assert score is not None
    mean, coupling = torch.zeros(loss.shape[1]), torch.zeros(loss.shape[1], score.shape[1])
    found = rows.draw.groupings()
    for group in found:
        push = torch.einsum("gk,gkr->gr", group.probabilities, loss[group.index])
        mean = mean + push.mean(0) / len(found)
        part = (push - push.mean(0)).T @ score.double()[group.index].sum(1) / (len(push) - 1)
        coupling = coupling + part / len(found)
    got = moments(rows)
    torch.testing.assert_close(got.mean, mean.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got.coupling, coupling.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_groupings_are_unbiased_and_their_errors_honest(here: Truth) -> None:
    """150 estimates of known influence, n = 512: mean by Student's t, and mean squared standard errors against the variance by F.

    The variance is below that of the groups as drawn.
    """
    runs = [sampled(here, 512, 400 + seed, in_blocks)[1] for seed in range(150)]
    found = torch.stack([run.answer.matrix for run in runs])
    miss = (found.mean(0) - here.matrix) / (found.std(0) / len(runs) ** 0.5)
    assert float(miss.abs().max()) < float(student.isf(FALSE_ALARM / (2 * miss.numel()), len(runs) - 1))
    stated = torch.stack([run.errors.square() for run in runs]).mean(0)
    ratio = found.var(0) / stated
    tail, dof = FALSE_ALARM / (2 * ratio.numel()), len(runs) - 1
    slack = 1.25  # standard errors of 32 clusters are a little too small, by about 1/32 each
    assert float(ratio.max()) < slack * float(chi2.isf(tail, dof)) / dof
    assert float(ratio.min()) > float(chi2.ppf(tail, dof)) / dof / slack
    plain = torch.stack([sampled(here, 512, 400 + seed)[1].answer.matrix for seed in range(150)])
    assert bool((found.var(0) < plain.var(0)).all())


# --- own raw outputs ------------------------------------------------------------------------------------------------


def test_own_raw_outputs_have_no_say(flows: Made) -> None:
    """B = −C exactly, which is what samples of B tend to: largest difference of whitened blocks falls as 1/√n."""
    eco = flows.eco
    q = eco.models["q"]
    own = [q.sources[0], q.sources[1].model_copy(update={"producer": "q"})]
    eco = eco.model_copy(update={"models": {**eco.models, "q": q.model_copy(update={"sources": own})}})
    gaps = []
    for num in (2000, 32000):
        bank = made(eco, num, 200, point=opened(eco)).bank
        rows = next(rows for rows in bank.sources if rows.mirrored)
        assert (rows.draw.consumer, rows.draw.producer) == ("q", "q")
        assert moments(rows).coupling is None
        C, B = moments(rows).curvature, moments(replace(rows, mirrored=False)).coupling
        assert B is not None
        values, vectors = torch.linalg.eigh(C)
        keep = values > 0.01 * values[-1]
        root = vectors[:, keep] * values[keep].rsqrt()
        gaps.append(float((root.T @ (B + C) @ root).norm()))
    assert gaps[1] < gaps[0] / 2  # 1/4 in expectation
    assert not any(rows.mirrored for rows in flows.bank.sources)  # p's are picked, and q's are not its own


# --- outliers -------------------------------------------------------------------------------------------------------


def leverage(bank: Bank, rows: Tensor, model: int) -> Tensor:
    mine = [r for r in bank.sources if r.consumer == model]
    H = sum((r.draw.weight * moments(r).curvature for r in mine), torch.zeros(()))
    H = H + 1e-3 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    return (rows.double() @ torch.linalg.inv(H) * rows.double()).sum(1)


def test_the_largest_are_shortened(flows: Made) -> None:
    """3√n of them, by leverage, to that of the next; everything else stays, and so do pushes."""
    bank = shortened(flows.bank)
    for rows in bank.sources:
        assert rows.loss_factor is not None
        num = int((rows.loss_factor < 1).sum())
        assert num == int(SHARE * len(rows.loss) ** 0.5)
        exact = leverage(bank, rows.loss, rows.consumer)
        short = exact[rows.loss_factor < 1]
        assert float((short > exact.quantile(0.8)).double().mean()) > 0.9  # leverage is measured to about a sixth
        after = exact * rows.loss_factor.double() ** 2
        assert float(after.max()) < 3 * float(exact.quantile(1 - num / len(exact)))
        plain = replace(rows, loss_factor=None, score_factor=None)
        assert torch.equal(moments(rows).mean, moments(plain).mean)
        assert torch.equal(moments(rows).curvature, moments(plain).curvature)
        if rows.score is not None:
            assert rows.score_factor is not None
            assert not torch.equal(moments(rows).coupling, moments(plain).coupling)  # type: ignore[arg-type]


def test_one_outlier_has_little_say(flows: Made) -> None:
    """A gradient and score of a thousand times their size move the shortened coupling by a small part of what they did."""
    k = next(k for k, rows in enumerate(flows.bank.sources) if rows.score is not None and not rows.draw.curated)
    rows = flows.bank.sources[k]
    assert rows.score is not None
    loss, score = rows.loss.clone(), rows.score.clone()
    loss[7] *= 1000
    score[7] *= 1000
    spoilt = replace(rows, loss=loss, score=score)
    sources = [spoilt if n == k else other for n, other in enumerate(flows.bank.sources)]

    def gap(one: Bank, other: Bank) -> float:
        a, b = (moments(bank.sources[k]).coupling for bank in (one, other))
        assert a is not None
        assert b is not None
        return float((a - b).norm())

    clean, bad = flows.bank, replace(flows.bank, sources=sources)
    assert gap(shortened(bad), shortened(clean)) < 1e-3 * gap(bad, clean)


def test_closed_forms_stay_as_they_are(here: Truth) -> None:
    """They know their curvature; nothing is shortened."""
    bank, _ = sampled(here, 200, 3)
    assert all(rows.loss_factor is None and rows.score_factor is None for rows in shortened(bank).sources)
