from __future__ import annotations

import numpy as np
import pytest

from crossfeed.describe import schema as s
from crossfeed.describe import settings
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.stable import solve
from crossfeed.influence.matrix import influence
from crossfeed.influence.threshold import threshold


def opposed(cross: float = 0.5, candidates: float = 4) -> s.Ecosystem:
    """Two categorical models whose people like opposite outcomes; p takes much of its curated data from q."""

    def model(reward: str, other: str, me: str, cross: float) -> s.Model:
        return s.Model(
            family=s.Categorical(),
            reward=reward,
            sources=[
                s.Real(data="web", weight=0.5),
                s.Curated(name="own", producer=me, weight=0.5 * (1 - cross), candidates=candidates, temperature=0.3),
                s.Curated(name="cross", producer=other, weight=0.5 * cross, candidates=candidates, temperature=0.3),
            ],
        )

    return s.Ecosystem(
        space=s.Outcomes(count=3),
        data={"web": s.DistributionData(weights=[3, 5, 2])},
        rewards={"left": s.TableReward(values=[1, 0.4, 0]), "right": s.TableReward(values=[0, 0.3, 1])},
        models={"p": model("left", "q", "p", cross), "q": model("right", "p", "q", 0.2)},
    )


def self_influence(eco: s.Ecosystem) -> float:
    program = compile_ecosystem(eco)
    return float(influence(eco, program, solve(program).require()).matrix[0, 0])


def test_the_sign_flips_exactly_at_the_root() -> None:
    eco = opposed()
    found = threshold(eco, "p.cross_share", 0.02, 0.98, [(0, 0)], grid=9)
    (root,) = found.roots[0, 0]
    below, above = (self_influence(settings.put(eco, "p.cross_share", root + d)) for d in (-1e-5, 1e-5))
    assert below > 0 > above
    assert abs(self_influence(settings.put(eco, "p.cross_share", root))) < 1e-8


def test_the_grid_is_the_influence_at_each_value() -> None:
    eco = opposed()
    found = threshold(eco, "p.curation", 0.1, 0.9, grid=5)
    for value, row in zip(found.values, found.influence, strict=True):
        assert row[0, 0] == pytest.approx(self_influence(settings.put(eco, "p.curation", float(value))), rel=1e-8)


def test_thresholds_in_the_number_of_candidates() -> None:
    eco = opposed(cross=0.62)
    found = threshold(eco, "p.sources.cross.candidates", 1.2, 12, [(0, 0)], grid=7)
    assert np.isfinite(found.influence[:, 0, 0]).all()
    for root in found.roots[0, 0]:
        assert 1.2 <= root <= 12


def test_values_without_a_stable_point_are_named() -> None:
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[0.0], cov=1.0)},
        rewards={"r": s.LinearReward(vector=[1.0])},
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="r",
                sources=[
                    s.Real(data="web", weight=0.5),
                    s.Curated(producer="p", weight=0.5, candidates=2, map=s.Affine(matrix=1.0)),
                ],
            )
        },
    )
    found = threshold(eco, "p.curation", 0.5, 1.0, grid=3)
    assert list(found.notes) == [1.0]
