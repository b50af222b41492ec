"""The library's influence against the published curves, explicit formulas, and stable points solved anew."""

from __future__ import annotations

import numpy as np
import pytest

from crossfeed.reproduce import theorem
from crossfeed.reproduce.gaussian import CURATION, constants, explicit, published

EVERY = slice(None, None, 5)
"""Every fifth t here; test_fig3 holds all 250 against the published numbers."""


@pytest.fixture(scope="module")
def d():
    arrays = published()
    return arrays | {key: arrays[key][EVERY] for key in ("t", "dJp_dlambda", "dJq_dlambda", "rho_q")}


@pytest.fixture(scope="module")
def curves(d):
    return theorem.curves(d["t"])


def test_influence_matrix_gives_the_published_curves(curves, d):
    np.testing.assert_allclose(curves.theorem[:, 0], d["dJp_dlambda"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(curves.theorem[:, 1], d["dJq_dlambda"], rtol=0, atol=1e-10)


def test_central_differences_give_the_published_curves(curves, d):
    for k, name in enumerate(("dJp_dlambda", "dJq_dlambda")):
        np.testing.assert_allclose(curves.difference[:, k], d[name], rtol=1e-6, atol=0)


def test_directions(curves, d):
    hand = explicit(d["t"])
    np.testing.assert_allclose(curves.rho_p, hand.rho_p, rtol=0, atol=1e-10)
    np.testing.assert_allclose(curves.rho_q, d["rho_q"], rtol=0, atol=1e-10)
    assert np.abs(hand.rho_p - hand.rho_p_published).max() > 0.1


def test_the_scripts_rho_has_the_sign_of_the_influence():
    """cos(∇J_p, θ*) is the influence over positive lengths, whatever the loop does."""
    for share in (0.4, 0.7):
        hand = explicit(published()["t"], share)
        np.testing.assert_array_equal(np.sign(hand.rho_p_published), np.sign(hand.influence[:, 0]))
    assert (hand.influence[:, 0] < 0).any()
    assert (hand.rho_p[hand.influence[:, 0] < 0] > 0).all()


def test_detail_at_one_strength(d):
    here, zero = theorem.at_one(0.9), theorem.at_one(0.9, 0.0)
    np.testing.assert_allclose(here.theta, d["theta_star_t09"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(here.phi, d["phi_star_t09"], rtol=0, atol=1e-10)
    for k, model in enumerate("pq"):
        np.testing.assert_allclose(zero.raw[k], d[f"blocks_raw_{model}"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(zero.distorted[k], d[f"blocks_distorted_{model}"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(here.distorted.sum(1), here.influence, rtol=0, atol=1e-12)
    np.testing.assert_allclose(here.influence, explicit(np.array([0.9])).influence[0], rtol=0, atol=1e-12)
    assert zero.influence[1] > 0 > here.influence[1]


def test_zero_over_strength():
    d = published()
    root = theorem.zero_over_strength(0.8, 0.9)
    k = np.searchsorted(d["t"], root)
    assert d["dJq_dlambda"][k - 1] > 0 > d["dJq_dlambda"][k]
    assert abs(explicit(np.array([root])).influence[0, 1]) < 1e-10


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_zeros_over_curation(t):
    """∂J/∂λ = g·v − ηλ‖v‖² with v = ∂θ*/∂λ, so the zero is g·v / (η‖v‖²)."""
    c, hand = constants(), explicit(np.array([t]))
    expected = {
        "p": c.g_p @ (v := hand.theta[0] / CURATION) / (c.eta_p * v @ v),
        "q": c.g_q @ (v := hand.phi[0] / CURATION) / (c.eta_q * v @ v),
    }
    found = theorem.zeros_over_curation(t)
    for model, root in expected.items():
        assert found[model] == pytest.approx([root] if 0.01 < root < 0.99 else [], abs=1e-9)
