"""Random streams: the same for ever, and different for every seed, round, model, purpose."""

from __future__ import annotations

import itertools

import torch

from crossfeed.networks.randomness import child_seed, generator


def test_streams_are_those_of_the_first_version() -> None:
    # A change of these numbers is a change of every run that was ever recorded; no process may have others.
    assert child_seed(0, 0, None, "rows") == 7452322668425767859
    assert child_seed(2**63 - 1, 55, "p's people ☃", "candidates") == 5572435668576818540


def test_every_part_of_the_name_makes_another_stream() -> None:
    names = list(itertools.product(range(4), range(8), (None, "p", "q", "pq", ""), ("picks", "qpicks", "noise", "")))
    seeds = [child_seed(*name) for name in names]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(names)  # torch's CPU generator uses the low half alone
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert child_seed(0, 1, "11", "a") != child_seed(0, 11, "1", "a")
    assert child_seed(1, 0, "p", "a") != child_seed(2**32, 0, "p", "a")


def test_streams_of_neighbouring_names_are_uncorrelated() -> None:
    # 64 streams of 4,096 normals: the largest of 2,016 correlations exceeds 5/64 with probability 1e-3 at most.
    draws = torch.stack([torch.randn(4096, generator=generator(0, r, "p", "noise")) for r in range(64)])
    correlations = torch.corrcoef(draws) - torch.eye(64)
    assert float(correlations.abs().max()) < 5 / 64
