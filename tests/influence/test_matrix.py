"""Influence by implicit differentiation against brute force: central differences of re-solved stable points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossfeed.describe import schema, settings
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import solve
from crossfeed.errors import NotStableError
from crossfeed.influence.matrix import Influence, influence, setting_response
from crossfeed.influence.threshold import with_settings_of
from ecosystems import FAMILIES, random_ecosystem


def solved(eco: schema.Ecosystem) -> tuple[Program, Influence]:
    program = compile_ecosystem(eco)
    return program, influence(eco, program, solve(program, tolerance=1e-14).require())


def alignment_at(eco: schema.Ecosystem, found: Influence, path: str, value: float) -> np.ndarray:
    """Alignments of the stable point re-solved after a setting was put to a value, followed from the old stable point."""
    program = with_settings_of(found.program, eco, settings.put(eco, path, value))
    point = solve(program, found.theta, tolerance=1e-14)
    return program.alignment(point.require()).numpy()


def central(eco: schema.Ecosystem, found: Influence, path: str, step: float = 2e-4) -> np.ndarray:
    """dJ/d(setting) by a five-point central difference (error of order step⁴)."""
    at = settings.get(eco, path)
    j = {k: alignment_at(eco, found, path, at + k * step) for k in (-2, -1, 1, 2)}
    return (8 * (j[1] - j[-1]) - (j[2] - j[-2])) / (12 * step)


CASES = [(family, n) for family in FAMILIES for n in (1, 2, 3, 4, 5, 6)]
# two-dimensional quadrature under every re-solve, or many models: minutes, or half of one
LONG = (
    {("gaussian", n) for n in (2, 4, 5, 6)}
    | {("linear_gaussian", 6)}
    | {("mixed_vectors", n) for n in (5, 6)}
    | {(f, n) for f in FAMILIES for n in (4, 5)}
)


@pytest.mark.parametrize(
    ("family", "num_models"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case in LONG else []) for case in CASES],
)
def test_influence_equals_central_differences(family: str, num_models: int) -> None:
    eco = random_ecosystem(family, num_models, seed=3, curation=True)
    _, found = solved(eco)
    assert found.intervened == list(range(num_models))
    scale = float(found.by_evaluation.abs().max())
    for i, name in enumerate(eco.names):
        truth = central(eco, found, f"{name}.curation")
        np.testing.assert_allclose(found.by_evaluation[:, i], truth, rtol=1e-6, atol=1e-7 * scale + 1e-14)


# the mixed ecosystems have models of these families too
ALONE = {"gaussian", "gaussian_mean", "linear_gaussian", "categorical"}


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] if f in ALONE else []) for f in FAMILIES])
def test_every_setting_equals_central_differences(family: str) -> None:
    eco = random_ecosystem(family, 3, seed=5, curation=True)
    program, found = solved(eco)
    checked = 0
    for path in settings.paths(eco):
        value = settings.get(eco, path)
        kind = path.rsplit(".", 1)[-1]
        step = 2e-4 * max(1.0, value)
        inside = value - 2 * step > {"candidates": 1.0}.get(kind, 0.0) and value + 2 * step < {
            "candidates": np.inf,
            "temperature": np.inf,
            "sampling_temperature": np.inf,
            "ridge": np.inf,
        }.get(kind, 1.0)
        if not inside or (kind == "candidates" and not np.isfinite(value)):
            continue
        if kind in ("candidates", "sampling_temperature") and family not in (
            "categorical",
            "loglinear",
            "mixed_finite",
        ):
            continue
        response = setting_response(eco, found, path)
        predicted = (program.alignment_gradient(found.theta) @ response).numpy()
        try:
            truth = central(eco, found, path, step)
        except NotStableError:
            raise AssertionError(f"no stable point beside {path}") from None
        np.testing.assert_allclose(predicted, truth, rtol=2e-6, atol=1e-8 + 1e-7 * np.abs(truth).max(), err_msg=path)
        checked += 1
    assert checked >= 6


@pytest.mark.parametrize("family", FAMILIES)
def test_isolated_is_the_influence_with_everyone_else_frozen(family: str) -> None:
    eco = random_ecosystem(family, 3, seed=8, curation=True)
    program, found = solved(eco)
    for i in range(3):
        only = program.span(i)
        keep = torch.zeros(program.num_params, dtype=torch.bool)
        keep[only] = True
        dense = torch.from_numpy(found.lin.matrix.toarray())[keep][:, keep]
        g = program.alignment_gradient(found.theta)[program.primary[i], only]
        expected = g @ torch.linalg.solve(dense, found.push[only, i])
        torch.testing.assert_close(found.isolated[i], expected, rtol=1e-9, atol=1e-12)


def test_adjoint_gives_the_same_as_forward_for_every_weight() -> None:
    eco = random_ecosystem("mixed_finite", 4, seed=2, curation=True)
    program, found = solved(eco)
    for path in program.slots:
        if path.endswith(".weight"):
            forward = found.lin.solve(-found.lin.setting_gradient(path)[:, None]).value[:, 0]
            torch.testing.assert_close(
                found.of(path), program.alignment_gradient(found.theta) @ forward, rtol=1e-8, atol=1e-10
            )


def test_two_models_blocks_are_the_papers_schur_complements() -> None:
    eco = random_ecosystem("loglinear", 2, seed=4, curation=True)
    program, found = solved(eco)
    D = torch.from_numpy(found.lin.matrix.toarray())
    p, q = program.span(0), program.span(1)
    S = torch.linalg.inv(D[p, p] - D[p, q] @ torch.linalg.solve(D[q, q], D[q, p]))
    torch.testing.assert_close(found.sensitivity(0), S, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.cross(1, 0), -torch.linalg.solve(D[q, q], D[q, p]), rtol=1e-8, atol=1e-10)
    m = found.push[p, 0] * (1 - found.ratios[0])
    theorem = (
        program.alignment_gradient(found.theta)[program.primary[1], q]
        @ found.cross(1, 0)
        @ S
        @ m
        / (1 - found.ratios[0])
    )
    torch.testing.assert_close(found.matrix[1, 0], theorem, rtol=1e-8, atol=1e-10)


def test_a_point_that_is_not_stable_is_refused() -> None:
    eco = random_ecosystem("loglinear", 2, seed=4, curation=True)
    program = compile_ecosystem(eco)
    with pytest.raises(NotStableError, match="no stable point"):
        influence(eco, program, program.start + 1.0)


def test_a_singular_point_is_refused() -> None:
    # a model that only consumes itself: every mean is a stable point, so none is hyperbolic
    eco = schema.Ecosystem(
        space=schema.Vectors(dim=2),
        rewards={"r": schema.LinearReward(vector=[1, 0])},
        models={
            "p": schema.Model(
                family=schema.GaussianMean(),
                reward="r",
                sources=[
                    schema.Raw(producer="p", weight=0.5),
                    schema.Curated(producer="p", weight=0.5, candidates=1),
                ],
            )
        },
    )
    program = compile_ecosystem(eco)
    with pytest.raises(NotStableError, match=r"not hyperbolic|singular"):
        influence(eco, program, program.start)
