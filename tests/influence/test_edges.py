from __future__ import annotations

import numpy as np
import pytest
import torch

from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.stable import solve
from crossfeed.influence.edges import edge_effects, walks
from crossfeed.influence.matrix import Influence, influence
from ecosystems import random_ecosystem


def found_for(family: str, num_models: int, seed: int) -> Influence:
    eco = random_ecosystem(family, num_models, seed=seed, curation=True)
    program = compile_ecosystem(eco)
    return influence(eco, program, solve(program).require())


@pytest.mark.parametrize("family", ["gaussian_mean", "mixed_finite", "linear_gaussian"])
def test_cutting_an_edge_is_a_dense_solve_without_it(family: str) -> None:
    found = found_for(family, 3, 4)
    pairs = [(k, i) for k in range(3) for i in found.intervened]
    for effect in edge_effects(found, pairs):
        without = torch.from_numpy(found.lin.sparse(lambda s, cut=effect.source: s != cut).toarray())
        response = torch.linalg.solve(without, found.push[:, effect.intervened])
        gradient = found.alignment_gradient[found.program.primary[effect.affected]]
        assert effect.without == pytest.approx(float(gradient @ response), rel=1e-8, abs=1e-12)
        assert effect.value == pytest.approx(float(found.matrix[effect.affected, effect.intervened]))


def test_share_is_the_derivative_by_the_edges_strength() -> None:
    found = found_for("gaussian_mean", 3, 6)
    base = torch.from_numpy(found.lin.matrix.toarray())
    step = 1e-5
    for effect in edge_effects(found, [(0, 1), (2, 2)]):
        block = base - torch.from_numpy(found.lin.sparse(lambda s, cut=effect.source: s != cut).toarray())
        gradient = found.alignment_gradient[found.program.primary[effect.affected]]
        push = found.push[:, effect.intervened]
        up, down = (float(gradient @ torch.linalg.solve(base + sign * step * block, push)) for sign in (1, -1))
        assert effect.share == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-9)


def test_walks_sum_to_the_influence_where_the_series_converges() -> None:
    found = found_for("gaussian_mean", 2, 3)
    for k in range(2):
        for i in found.intervened:
            w = walks(found, k, i, top=10_000, max_length=200)
            assert w.converges
            assert w.rest == pytest.approx(0, abs=1e-9 * (1 + abs(float(found.matrix[k, i]))))
            assert all(walk.path[0] == i and walk.path[-1] == k for walk in w.walks)


def test_direct_baseline_is_the_walk_of_one_edge() -> None:
    found = found_for("mixed_finite", 4, 5)
    direct = found.direct.numpy()
    for k in range(4):
        for i in found.intervened:
            listed = walks(found, k, i, top=1000, max_length=1).walks
            assert sum(w.value for w in listed) == pytest.approx(direct[k, i], rel=1e-9, abs=1e-13)
    assert np.allclose(np.diag(direct), found.isolated.numpy())
