"""Exact pick probabilities against numbers by hand, drawn picks and the operators of crossfeed.families.picks."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare, norm
from torch import Tensor

from crossfeed.describe.schema import Pick
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.picks import pick_candidates, pick_probabilities, pick_rewards
from crossfeed.families.picks import operator
from crossfeed.retraining.picking import pick_among

FALSE_ALARM = 1e-4  # of each test, if the seed were drawn; the seeds are fixed

CASES = {
    "one candidate": Pick(candidates=1),
    "two": Pick(candidates=2),
    "six, τ = 0.3": Pick(candidates=6, temperature=0.3),
    "best of four": Pick(candidates=4, temperature=0),
    "noise": Pick(candidates=3, noise=0.3),
    "noise alone": Pick(candidates=3, noise=1.0),
    "named curator": Pick(candidates=3, curator="other"),
    "other curator": Pick(candidates=4, other_curator="other", other_share=0.4),
    "best, noise, other": Pick(candidates=3, temperature=0, noise=0.2, other_curator="other", other_share=0.5),
    "two stages": Pick(candidates=2, then=Pick(candidates=3, curator="other")),
    "two stages, all of it": Pick(
        candidates=3,
        noise=0.1,
        other_curator="other",
        other_share=0.2,
        then=Pick(candidates=2, temperature=0, curator="other", noise=0.25),
    ),
    "three stages": Pick(candidates=2, then=Pick(candidates=2, curator="other", then=Pick(candidates=2, noise=0.1))),
    "stages of one": Pick(candidates=1, then=Pick(candidates=3, then=Pick(candidates=1, curator="other"))),
}


def some_rewards(num: int, total: int, seed: int = 0, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn(num, total, dtype=torch.float64, generator=generator) for name in ("people", "other")}
    return {name: r.round() for name, r in draw.items()} if ties else draw


# --- by hand --------------------------------------------------------------------------------------------------------


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_numbers_by_hand() -> None:
    r = {"people": rows([0.0, math.log(3.0)], [1.0, 1.0]), "other": rows([math.log(4.0), 0.0], [0.0, 0.0])}

    def check(pick: Pick, want: Tensor) -> None:
        torch.testing.assert_close(pick_probabilities(pick, "people", r), want, rtol=0, atol=1e-15)

    check(Pick(candidates=2), rows([1 / 4, 3 / 4], [1 / 2, 1 / 2]))
    check(Pick(candidates=2, temperature=0.5), rows([1 / 10, 9 / 10], [1 / 2, 1 / 2]))
    check(Pick(candidates=2, temperature=0), rows([0, 1], [1 / 2, 1 / 2]))
    check(Pick(candidates=2, curator="other"), rows([4 / 5, 1 / 5], [1 / 2, 1 / 2]))
    mixed = Pick(candidates=2, noise=0.2, other_curator="other", other_share=0.5)
    check(mixed, rows([0.3 / 4 + 0.5 * 4 / 5 + 0.1, 0.3 * 3 / 4 + 0.5 / 5 + 0.1], [1 / 2, 1 / 2]))


def test_two_stages_by_hand() -> None:
    """Groups (a, b) and (c, d): the first stage takes b with 3/4 and c, d evenly; b beats c, d beats b and c, c beats a."""
    r = {"people": rows([0.0, math.log(3.0), 5.0, 5.0]), "other": rows([0.0, 2.0, 1.0, 3.0])}
    pick = Pick(candidates=2, then=Pick(candidates=2, temperature=0, curator="other"))
    want = rows([0.0, 3 / 4 * 1 / 2, 1 / 2 * 1 / 4, 1 / 2])
    torch.testing.assert_close(pick_probabilities(pick, "people", r), want, rtol=0, atol=1e-15)


def test_ties_are_shared_by_the_best() -> None:
    r = {"people": rows([2.0, 2.0, 1.0, 2.0])}
    want = rows([1 / 3, 1 / 3, 0.0, 1 / 3])
    torch.testing.assert_close(pick_probabilities(Pick(candidates=4, temperature=0), "people", r), want)


@pytest.mark.parametrize("name", CASES)
def test_rows_sum_to_one_and_only_what_has_a_say_is_needed(name: str) -> None:
    pick = CASES[name]
    r = some_rewards(7, pick_candidates(pick))
    found = pick_probabilities(pick, "people", r)
    assert found.shape == (7, pick_candidates(pick))
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-13)
    needed = {key: r[key] for key in pick_rewards(pick, "people")}
    torch.testing.assert_close(pick_probabilities(pick, "people", needed).expand(7, -1), found)
    for key in needed:
        with pytest.raises(ValueError, match=f"need '{key}' too"):
            pick_probabilities(pick, "people", {k: v for k, v in needed.items() if k != key})


def test_who_has_a_say() -> None:
    assert pick_rewards(CASES["one candidate"], "people") == []
    assert pick_rewards(CASES["noise alone"], "people") == []
    assert pick_rewards(CASES["named curator"], "people") == ["other"]
    assert pick_rewards(Pick(candidates=2, other_curator="other", other_share=0.0), "people") == ["people"]
    assert pick_rewards(Pick(candidates=2, noise=0.4, other_curator="other", other_share=0.6), "people") == ["other"]
    assert pick_rewards(CASES["two stages, all of it"], "people") == ["people", "other"]
    assert pick_rewards(CASES["stages of one"], "people") == ["people"]


@pytest.mark.parametrize("name", [n for n, p in CASES.items() if all(s.temperature > 0 for s in p.stages)])
def test_differentiable_in_the_rewards(name: str) -> None:
    pick = CASES[name]
    names = pick_rewards(pick, "people")
    if not names:
        return
    inputs = tuple(some_rewards(2, pick_candidates(pick))[n].requires_grad_(True) for n in names)
    assert torch.autograd.gradcheck(
        lambda *r: pick_probabilities(pick, "people", dict(zip(names, r, strict=True))), inputs
    )


def test_many_candidates_and_many_groups() -> None:
    """One stage has no combinations to sum over; many groups are gone through in parts."""
    r = some_rewards(3, 1000)
    found = pick_probabilities(Pick(candidates=1000), "people", r)
    torch.testing.assert_close(found, torch.softmax(r["people"], 1))
    pick = Pick(candidates=4, then=Pick(candidates=6, curator="other"))
    r = some_rewards(500, 24)
    found = pick_probabilities(pick, "people", r)
    alone = pick_probabilities(pick, "people", {name: x[-1:] for name, x in r.items()})
    torch.testing.assert_close(found[-1:], alone)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(NotAvailableError, match=r"models\.p\.sources\.s: found candidates: inf; .*give a whole number"):
        pick_candidates(Pick(candidates=float("inf")), "models.p.sources.s")
    with pytest.raises(NotAvailableError, match=r"found then\.candidates: inf"):
        pick_probabilities(Pick(candidates=2, then=Pick(candidates=float("inf"))), "people", {})
    large = Pick(candidates=8, then=Pick(candidates=5))
    with pytest.raises(
        NotAvailableError, match=r"then\.candidates: found 5 independent picks among 8 .*fewer candidates"
    ):
        pick_probabilities(large, "people", some_rewards(1, 40))
    with pytest.raises(ValueError, match=r"need one \(n, 2\) a reward"):
        pick_probabilities(Pick(candidates=2), "people", some_rewards(1, 3))


# --- against drawn picks and the exact operators ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_picks_are_drawn_with_these_probabilities(name: str) -> None:
    """20,000 picks out of one and the same group (with ties), χ²."""
    pick, groups = CASES[name], 20_000
    total = pick_candidates(pick)
    r = some_rewards(1, total, seed=3, ties=True)
    picked = pick_among(pick, "people", groups, lambda who, at: r[who][0, at % total], torch.Generator().manual_seed(1))
    want = pick_probabilities(pick, "people", r)[0].numpy()
    count = picked.index.bincount(minlength=total).numpy()
    assert count[want == 0].sum() == 0
    if (want > 0).sum() > 1:
        assert chisquare(count[want > 0], want[want > 0] * groups).pvalue > FALSE_ALARM


def test_the_chi_square_test_would_notice() -> None:
    """The two groups of a two-stage pick, swapped."""
    pick, groups = CASES["two stages"], 20_000
    r = some_rewards(1, 6, seed=3)
    picked = pick_among(pick, "people", groups, lambda who, at: r[who][0, at % 6], torch.Generator().manual_seed(1))
    want = pick_probabilities(pick, "people", r)[0].view(3, 2).T.flatten().numpy()
    assert chisquare(picked.index.bincount(minlength=6).numpy(), want * groups).pvalue < FALSE_ALARM


P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
TABLE = {
    "people": torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=torch.float64),  # two outcomes are equally liked
    "other": torch.tensor([1.0, 0.5, -1.0, -2.0], dtype=torch.float64),
}


def exact(pick: Pick) -> Tensor:
    """The pick's distribution, stage by stage, for candidates from P."""
    p = P
    for stage in pick.stages:
        k, tau = (torch.tensor(float(x), dtype=torch.float64) for x in (stage.candidates, stage.temperature))
        kind = "best" if stage.temperature == 0 else "plackett_luce"
        out = (1 - stage.noise - stage.other_share) * operator(kind, TABLE[stage.curator or "people"], k, tau)(p)
        out = out + stage.noise * p
        if stage.other_curator:
            out = out + stage.other_share * operator(kind, TABLE[stage.other_curator], k, tau)(p)
        p = out
    return p


@pytest.mark.parametrize("name", CASES)
def test_averaged_over_candidates_they_are_the_exact_operators(name: str) -> None:
    """Σ_k π_k 1[y_k = y], averaged over 20,000 groups from P: z-scores, Bonferroni over the outcomes."""
    pick, groups = CASES[name], 20_000
    total = pick_candidates(pick)
    generator = torch.Generator().manual_seed(2)
    y = torch.multinomial(P, groups * total, replacement=True, generator=generator).view(groups, total)
    pi = pick_probabilities(pick, "people", {who: table[y] for who, table in TABLE.items()})
    mass = torch.zeros(groups, len(P), dtype=torch.float64).scatter_add(1, y, pi)
    z = (mass.mean(0) - exact(pick)) / (mass.std(0) / math.sqrt(groups))
    assert float(z.abs().max()) < norm.isf(FALSE_ALARM / (2 * len(P)))
