"""Picks against the exact operators of crossfeed.families.picks, and who is asked for what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from crossfeed.describe.schema import Pick
from crossfeed.errors import CheckFailedError, NotAvailableError
from crossfeed.families.picks import operator
from crossfeed.retraining.picking import pick_among, whole_candidates

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = {
    "people": torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=torch.float64),  # two outcomes are equally liked
    "other": torch.tensor([1.0, 0.5, -1.0, -2.0], dtype=torch.float64),
}
GROUPS = 20_000
FALSE_ALARM = 1e-4  # of each test, if the seed were drawn; the seeds are fixed


def exact(pick: Pick, people: str = "people") -> Tensor:
    """The pick's distribution, stage by stage, for candidates from P."""
    p = P
    for stage in pick.stages:

        def op(name: str, p: Tensor = p, stage: Pick = stage) -> Tensor:
            if stage.candidates == 1:
                return p
            kind = "best" if stage.temperature == 0 else "plackett_luce"
            k, tau = (torch.tensor(float(x), dtype=torch.float64) for x in (stage.candidates, stage.temperature))
            return operator(kind, REWARDS[name], k, tau)(p)

        out = (1 - stage.noise - stage.other_share) * op(stage.curator or people) + stage.noise * p
        p = out + stage.other_share * op(stage.other_curator) if stage.other_curator else out
    return p


def drawn(pick: Pick, seed: int = 0, groups: int = GROUPS):
    """Outcomes of the candidates (groups, K), and what was picked among them."""
    total = int(np.prod(whole_candidates(pick, "here")))
    generator = torch.Generator().manual_seed(seed)
    outcome = torch.multinomial(P, groups * total, replacement=True, generator=generator)
    asked: list[tuple[str, Tensor]] = []

    def rewards(name: str, index: Tensor) -> Tensor:
        asked.append((name, index))
        return REWARDS[name][outcome[index]]

    return outcome.view(groups, total), pick_among(pick, "people", groups, rewards, generator), asked


CASES = {
    "one candidate": Pick(candidates=1),
    "two": Pick(candidates=2),
    "six": Pick(candidates=6),
    "six, τ = 0.3": Pick(candidates=6, temperature=0.3),
    "best of two": Pick(candidates=2, temperature=0),
    "best of six": Pick(candidates=6, temperature=0),
    "noise": Pick(candidates=4, noise=0.3),
    "noise alone": Pick(candidates=4, noise=1.0),
    "named curator": Pick(candidates=4, curator="other"),
    "other curator": Pick(candidates=4, other_curator="other", other_share=0.4),
    "both": Pick(candidates=3, temperature=0, noise=0.2, other_curator="other", other_share=0.5),
    "two stages": Pick(candidates=2, then=Pick(candidates=3, curator="other")),
    "two stages, all of it": Pick(
        candidates=3,
        noise=0.1,
        other_curator="other",
        other_share=0.2,
        then=Pick(candidates=2, temperature=0, curator="other", noise=0.25),
    ),
    "three stages": Pick(candidates=2, then=Pick(candidates=2, curator="other", then=Pick(candidates=2))),
}


@pytest.mark.parametrize("name", CASES)
def test_picks_have_the_exact_distribution(name):
    pick = CASES[name]
    outcome, picked, _ = drawn(pick)
    found = outcome.gather(1, picked.index[:, None])[:, 0].bincount(minlength=len(P)).numpy()
    assert chisquare(found, exact(pick).numpy() * GROUPS).pvalue > FALSE_ALARM


def test_the_chi_square_test_would_notice():
    outcome, picked, _ = drawn(CASES["six"])
    found = outcome.gather(1, picked.index[:, None])[:, 0].bincount(minlength=len(P)).numpy()
    assert chisquare(found, exact(CASES["two"]).numpy() * GROUPS).pvalue < FALSE_ALARM


def test_who_picks_has_the_right_shares_and_is_recorded():
    _, picked, _ = drawn(CASES["both"])
    shares = [picked.picker.count(name) for name in ("uniform", "other", "people")]
    assert sum(shares) == GROUPS
    assert chisquare(shares, np.array([0.2, 0.5, 0.3]) * GROUPS).pvalue > FALSE_ALARM
    assert {why for who, why in zip(picked.picker, picked.why, strict=True) if who == "uniform"} == {"uniform"}
    assert {why for who, why in zip(picked.picker, picked.why, strict=True) if who != "uniform"} == {"best of 3"}


def test_best_of_k_picks_a_best_candidate_and_breaks_ties_evenly():
    outcome, picked, _ = drawn(CASES["best of six"])
    rewards = REWARDS["people"][outcome]
    assert torch.equal(rewards.gather(1, picked.index[:, None])[:, 0], rewards.amax(1))
    tied = (rewards == rewards.amax(1, keepdim=True)).sum(1) == 6
    assert 0 < tied.sum() < GROUPS
    places = picked.index[tied].bincount(minlength=6).numpy()
    assert chisquare(places).pvalue > FALSE_ALARM


def test_rewards_are_the_first_curators_and_asked_for_once():
    pick = Pick(candidates=3, other_curator="other", other_share=0.25, then=Pick(candidates=2))
    outcome, picked, asked = drawn(pick, groups=400)
    assert torch.equal(picked.rewards, REWARDS["people"][outcome])
    for name in ("people", "other"):
        index = torch.cat([i for who, i in asked if who == name])
        assert len(index) == len(index.unique())
    others = torch.cat([i for who, i in asked if who == "other"])
    assert len(others) < 0.4 * outcome.numel()  # a quarter of the groups is the other curator's


def test_stages_are_told_in_words():
    _, picked, _ = drawn(CASES["two stages"], groups=5)
    assert picked.picker == ["other"] * 5
    assert picked.why == ["people (Plackett–Luce, τ = 1), then other (Plackett–Luce, τ = 1)"] * 5


def test_reasons_follow_the_pick_through_the_stages():
    pick = Pick(candidates=2, temperature=0, noise=0.5, then=Pick(candidates=3, temperature=0, curator="other"))
    outcome, picked, _ = drawn(pick, groups=300)
    rewards = REWARDS["people"][outcome]
    by_chance = "uniform, then other (best of 3)"
    assert set(picked.why) == {"people (best of 2), then other (best of 3)", by_chance}
    pairs = rewards.view(300, 3, 2).amax(2).repeat_interleave(2, 1)  # the best of each candidate's first group
    against = (rewards < pairs).gather(1, picked.index[:, None])[:, 0]
    assert against.sum() > 20
    assert {picked.why[row] for row in against.nonzero()[:, 0].tolist()} == {by_chance}


def test_seeds():
    first, again, other = (drawn(CASES["six"], seed, 100)[1].index for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_extreme_rewards_pick_the_best():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([1e300, -1e300, 0.0, 1e300], dtype=torch.float64)
    picked = pick_among(Pick(candidates=2), "people", 2, lambda name, index: values[index], generator)
    assert picked.index.tolist() == [0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused(bad):
    values = torch.tensor([0.0, 1.0, bad, 2.0])
    with pytest.raises(CheckFailedError, match=r"rewards\.people: 1 of 4 rewards are not finite.* candidate 2"):
        pick_among(Pick(candidates=2), "people", 2, lambda name, index: values[index], torch.Generator())


def test_infinitely_many_candidates_cannot_be_generated():
    with pytest.raises(NotAvailableError, match=r"models.p.sources.c: .*give a whole number"):
        whole_candidates(Pick(candidates=2, then=Pick(candidates="inf")), "models.p.sources.c")
