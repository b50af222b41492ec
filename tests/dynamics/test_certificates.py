"""Constants and spectra behind the certificates: bounds against brute force, spectra against dense matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import ArpackNoConvergence
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.dynamics import growth as growth_module
from crossfeed.dynamics.certificates import GlobalCertificate, all_orders, global_certificate, local_radius
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.growth import Growth, growth
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.lipschitz import TOTAL_VARIATION, pick_factor
from crossfeed.dynamics.local import order_in_words, update_jacobian
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import population_round, round_map, update_block
from crossfeed.dynamics.stable import solve
from crossfeed.errors import NotStableError, SettingError
from crossfeed.families.picks import best_of, num_nodes, plackett_luce, tilt
from ecosystems import random_ecosystem

FAST: dict[str, Any] = {"rewards": ("linear",), "num_feeds": (1, 3), "candidates": (2, 4, math.inf)}
CERTIFIED: list[tuple[str, int, dict[str, Any]]] = [
    *(("categorical", seed, {"ridge": 0.0, "sampling": False}) for seed in range(5)),
    ("categorical", 5, {"ridge": (0.3, 2.0), "sampling": False}),
    *(("loglinear", seed, {"ridge": 1.0}) for seed in range(5)),
    *(("mixed_finite", seed, {"ridge": 0.7}) for seed in range(4)),
    *(("gaussian_mean", seed, FAST) for seed in range(4)),
    ("gaussian_mean", 4, FAST | {"rewards": ("quadratic",), "stages": 1, "num_feeds": (1, 1)}),
    (
        "gaussian_mean",
        11,
        FAST | {"rewards": ("quadratic",), "stages": 1, "candidates": (math.inf,), "full_rank": True},
    ),
    *(("linear_gaussian", seed, FAST | {"stages": 1}) for seed in range(3)),
]


def certified(family: str, seed: int, options: dict[str, Any]) -> tuple[s.Ecosystem, Program, GlobalCertificate]:
    eco = random_ecosystem(family, 1 + seed % 3, seed, **options)
    program = compile_ecosystem(eco)
    found = global_certificate(eco, program)
    assert found.available, found.reason
    return eco, program, found


def pairs(program: Program, seed: int, num: int) -> tuple[Tensor, Tensor]:
    """States near and far apart, some of them at the edges of what models can be."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(num, program.num_params, dtype=torch.float64, generator=generator)

    first = torch.cat([0.3 * draw(), 2 * draw(), 6 * draw()])
    apart = torch.cat([0.01 * draw(), 2 * draw(), 6 * draw()])
    return first, first + apart


def within(actual: Tensor, bound: Tensor) -> None:
    assert bool((actual <= bound * (1 + 1e-9) + 1e-11).all()), float((actual / bound.clamp_min(1e-300)).max())


@pytest.mark.parametrize(("family", "seed", "options"), CERTIFIED)
def test_no_pair_of_states_breaks_the_bound(family: str, seed: int, options: dict[str, Any]) -> None:
    _, program, found = certified(family, seed, options)
    assert found.matrix is not None
    a, b = pairs(program, seed, 12)
    moved = found.gaps(program, round_map(program, a), round_map(program, b))
    within(moved, found.gaps(program, a, b) @ torch.from_numpy(found.matrix.toarray()).T)


@pytest.mark.parametrize(
    ("family", "seed", "options"), [c for c in CERTIFIED if "ridge" not in c[2] or c[2]["ridge"] != 0.0]
)
def test_gradients_move_no_more_than_lambda(family: str, seed: int, options: dict[str, Any]) -> None:
    _, program, found = certified(family, seed, options)
    assert found.lipschitz is not None
    a, b = pairs(program, seed + 100, 8)
    trained = pairs(program, seed + 200, 8)[0]
    change = program.gradient(trained, data=a) - program.gradient(trained, data=b)
    per_model = torch.stack([change[:, program.span(i)].norm(dim=-1) for i in range(program.num_models)], -1)
    within(per_model, found.gaps(program, a, b) @ torch.from_numpy(found.lipschitz.toarray()).T)


@pytest.mark.parametrize("seed", range(3))
def test_an_adversary_cannot_break_the_bound_on_gradients(seed: int) -> None:
    """Pairs of states chosen by gradient ascent on the ratio itself."""
    _, program, found = certified("loglinear", seed, {"ridge": 1.0, "num_feeds": (1, 2)})
    assert found.lipschitz is not None
    bound = torch.from_numpy(found.lipschitz.toarray())
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(20, program.num_params, dtype=torch.float64, generator=generator)
    b = torch.randn(20, program.num_params, dtype=torch.float64, generator=generator)
    zero = torch.zeros(program.num_params, dtype=torch.float64)
    a.requires_grad_(True)
    b.requires_grad_(True)
    climber = torch.optim.Adam([a, b], lr=0.1)
    best = 0.0
    for _ in range(60):
        climber.zero_grad()
        change = program.gradient(zero, data=a) - program.gradient(zero, data=b)
        size = torch.stack([change[:, program.span(i)].norm(dim=-1) for i in range(program.num_models)], -1)
        limit = found.gaps(program, a, b) @ bound.T
        ratio = size / limit.clamp_min(1e-9)
        best = max(best, float(ratio.detach().max()))
        (-ratio.amax(-1).sum()).backward()
        climber.step()
    assert 0.2 < best <= 1 + 1e-9


@pytest.mark.parametrize("kind", ["plackett_luce", "best", "tilt"])
@pytest.mark.parametrize("seed", range(4))
def test_pick_factor_bounds_total_variation_and_is_reached(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward = torch.from_numpy(rng.standard_normal(5) * (0.5 + 0.2 * seed))
    k = torch.tensor(float(rng.integers(2, 9)) + (0.5 if seed == 3 else 0.0), dtype=torch.float64)
    reach = float(reward.max() - reward.min())
    factor = pick_factor(math.inf if kind == "tilt" else float(k), math.inf if kind == "best" else reach)

    def picked(p: Tensor) -> Tensor:
        if kind == "tilt":
            return tilt(p, reward)
        return best_of(p, reward, k) if kind == "best" else plackett_luce(p, reward, k, num_nodes(reach, float(k)))

    p, q = (torch.from_numpy(rng.dirichlet(np.full(5, a), 40)) for a in (0.2, 0.7))
    widened = 0.5 * (picked(p) - picked(q)).abs().sum(-1)
    within(widened, factor * 0.5 * (p - q).abs().sum(-1))
    worst = torch.zeros(5, dtype=torch.float64)
    worst[reward.argmin()] = 1.0
    moved = worst.clone()
    moved[reward.argmin()] -= 1e-8
    moved[reward.argmax()] += 1e-8
    assert float((picked(moved) - picked(worst)).abs().sum()) / 2e-8 == pytest.approx(factor, rel=1e-4)


def vectors(*, weight: float = 0.5, ridge: float = 0.0, **source: Any) -> s.Ecosystem:
    """One Gaussian mean that eats its own outputs."""
    picked = source.pop("kind", "raw") == "curated"
    own: dict[str, Any] = {"producer": "p", "weight": weight} | source
    return s.Ecosystem(
        space=s.Vectors(dim=2),
        data={"web": s.MomentsData(mean=np.zeros(2), cov=np.eye(2))},
        rewards={
            "up": s.LinearReward(vector=np.array([1.0, 2.0])),
            "near": s.QuadraticReward(matrix=-0.5 * np.eye(2)),
        },
        models={
            "p": s.Model(
                family=s.GaussianMean(),
                reward="up",
                ridge=ridge,
                sources=[s.Real(data="web", weight=1 - weight), s.Curated(**own) if picked else s.Raw(**own)],
            )
        },
    )


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ({}, 0.5),
        ({"ridge": 1.0}, 0.25),
        ({"map": s.Affine(matrix=np.array([[0.0, 0.8], [0.0, 0.0]]))}, 0.4),
        ({"kind": "curated", "candidates": 7, "temperature": 0.0}, 0.5),
        ({"kind": "curated", "candidates": 3, "temperature": 0.2, "noise": 0.4, "then": s.Pick()}, 0.5),
        # tilting N(m, I) by −¼‖y‖²: the mean shrinks by (1 + ½)⁻¹, but for a fifth of random picks
        ({"kind": "curated", "candidates": math.inf, "curator": "near"}, 0.5 / 1.5),
        ({"kind": "curated", "candidates": math.inf, "curator": "near", "noise": 0.2}, 0.5 * (0.8 / 1.5 + 0.2)),
        # two candidates: κ = ½, ‖I − ⅛I‖ + ⅛ = 1: curators who like the middle never push the mean out
        ({"kind": "curated", "candidates": 2, "curator": "near"}, 0.5),
    ],
)
def test_known_answers_for_one_gaussian(source: dict[str, Any], answer: float) -> None:
    eco = vectors(**source)
    found = global_certificate(eco, compile_ecosystem(eco))
    assert found.radius == pytest.approx(answer, abs=1e-12)
    assert found.contracts is True


def test_uneven_inputs_do_not_spoil_linear_answers() -> None:
    """One domain with very different directions: λ_max(C)/λ_min(C) = 400, yet the fit is half the producer's."""
    eco = s.Ecosystem(
        space=s.Regression(inputs=2, outputs=1),
        data={"law": s.TeacherData(matrix=np.array([[1.0, 2.0]]), domain="here")},
        domains={"here": s.GaussianDomain(mean=np.zeros(2), cov=np.array([20.0, 0.05]))},
        rewards={"r": s.LinearReward(vector=np.array([1.0]))},
        models={
            "p": s.Model(
                family=s.LinearGaussian(),
                reward="r",
                domain="here",
                sources=[s.Real(data="law", weight=0.5), s.Curated(producer="p", weight=0.5, candidates=5)],
            )
        },
    )
    found = global_certificate(eco, compile_ecosystem(eco))
    assert found.radius == pytest.approx(0.5, abs=1e-9)
    assert found.lipschitz is not None
    assert found.lipschitz.toarray()[0, 0] == pytest.approx(10.0)
    assert found.constants[0].gamma == pytest.approx(0.05)


def test_categorical_without_ridge_is_measured_in_total_variation() -> None:
    eco = random_ecosystem("categorical", 3, 2, ridge=0.0, kinds=("raw",), sampling=False)
    found = global_certificate(eco, compile_ecosystem(eco))
    assert [c.norm for c in found.constants] == [TOTAL_VARIATION] * 3
    assert found.matrix is not None
    synthetic = [sum(x.weight for x in m.sources if not isinstance(x, s.Real)) for m in eco.models.values()]
    assert found.matrix.toarray().sum(1) == pytest.approx(synthetic)
    assert found.contracts
    assert found.assumptions[-1] == "Measured in total variation: m0, m1, m2."


def test_root_of_candidates_after_an_exponential_family() -> None:
    """Best of nine from a log-linear model: a factor of three, not nine."""
    options: dict[str, Any] = {"ridge": 1.0, "num_feeds": (1, 1), "sampling": False, "curators": False, "stages": 1}
    plain = random_ecosystem("loglinear", 1, 0, kinds=("raw",), **options)
    source = plain.models["m0"].sources[-1]
    best = s.Curated(producer="m0", weight=source.weight, candidates=9, temperature=0)
    model = plain.models["m0"].model_copy(update={"sources": [*plain.models["m0"].sources[:-1], best]})
    picked = plain.model_copy(update={"models": {"m0": model}})
    radii = [global_certificate(eco, compile_ecosystem(eco)).radius for eco in (plain, picked)]
    assert None not in radii
    assert radii[1] == pytest.approx(3 * radii[0])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("loglinear", {"ridge": 0.0}, "m0: no strong convexity without ridge"),
        ("gaussian", {}, "m0: −log q of a Gaussian with unknown covariance is not convex"),
    ],
)
def test_says_why_it_is_not_available(family: str, options: dict[str, Any], reason: str) -> None:
    eco = random_ecosystem(family, 1, 0, **options)
    found = global_certificate(eco, compile_ecosystem(eco))
    assert not found.available
    assert reason in found.reason
    assert found.contracts is None
    assert found.summary()["radius"] is None
    with pytest.raises(SettingError, match="found none"):
        found.rate(s.Simultaneous())
    with pytest.raises(SettingError, match="found no contraction"):
        found.distance(compile_ecosystem(eco), torch.zeros(1), torch.zeros(1))


def test_says_what_has_no_bound() -> None:
    second = vectors(kind="curated", candidates=3, then=s.Pick(curator="near"))
    found = global_certificate(second, compile_ecosystem(second))
    assert found.reason.startswith(
        "p: source 'curated_p': no bound is known for a quadratic reward after another stage"
    )
    hot = random_ecosystem("categorical", 1, 0, ridge=0.0, kinds=("raw",), num_feeds=(1, 1), sampling=False)
    source = hot.models["m0"].sources[-1].model_copy(update={"sampling_temperature": 1.2})
    model = hot.models["m0"].model_copy(update={"sources": [*hot.models["m0"].sources[:-1], source]})
    hot = hot.model_copy(update={"models": {"m0": model}})
    assert "samples at a temperature above 1" in global_certificate(hot, compile_ecosystem(hot)).reason


def test_constants_of_the_user_are_used_and_marked() -> None:
    eco = random_ecosystem("gaussian", 2, 1, kinds=("raw",), maps=False)
    program = compile_ecosystem(eco)
    fed = {(c.consumer, c.producer) for c in program.sources if c.producer is not None}
    lipschitz = {(f"m{i}", f"m{j}"): 0.1 for i, j in fed}
    found = global_certificate(eco, program, constants={"gamma": {"m0": 0.5, "m1": 0.25}, "lipschitz": lipschitz})
    assert found.available
    assert found.matrix is not None
    assert found.matrix.toarray()[0].max() in (0.0, pytest.approx(0.2))
    assert found.matrix.toarray()[1].max() in (0.0, pytest.approx(0.4))
    assert "γ of m0 = 0.5 was given and is not checked." in found.unchecked
    assert len(found.unchecked) == 2 + len(lipschitz)
    assert found.reason == " ".join(found.unchecked)


def test_a_given_gamma_measures_a_categorical_model_in_parameters() -> None:
    eco = random_ecosystem("categorical", 2, 0, ridge=0.0)
    found = global_certificate(eco, compile_ecosystem(eco), constants={"gamma": {"m0": 0.1}})
    assert [c.norm for c in found.constants] == ["euclidean", TOTAL_VARIATION]
    assert found.constants[0].gamma == 0.1


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"gama": {}}, "found 'gama'; need one of gamma, lipschitz; did you mean 'gamma'"),
        ({"gamma": {"x": 1.0}}, "constants.gamma: found no model 'x'; need one of p"),
        ({"gamma": {"p": 0.0}}, "need a finite number > 0"),
        ({"gamma": {"p": True}}, "need a finite number > 0"),
        ({"lipschitz": {"p": 1.0}}, r"found the key 'p'; need \(consumer, producer\)"),
        ({"lipschitz": {("p", "p"): -1.0}}, "need a finite number ≥ 0"),
        ({"lipschitz": {("p", "p"): math.inf}}, "need a finite number ≥ 0"),
    ],
)
def test_refuses_constants_that_are_none(constants: Any, message: str) -> None:
    eco = vectors()
    with pytest.raises(SettingError, match=message):
        global_certificate(eco, compile_ecosystem(eco), constants=constants)


@pytest.mark.parametrize(("family", "count"), [("gaussian_mean", 1), ("linear_gaussian", 3), ("loglinear", 4)])
def test_gradient_steps_have_a_certificate_of_their_own(family: str, count: int) -> None:
    steps = s.GradientSteps(count=count, size=0.15)
    eco = random_ecosystem(family, 2, 3, ridge=0.8, steps=steps, **(FAST | {"stages": 1}))
    program = compile_ecosystem(eco)
    found = global_certificate(eco, program)
    assert found.available, found.reason
    assert found.matrix is not None
    a, b = pairs(program, 5, 10)
    moved = found.gaps(program, *(update_block(program, x, [0, 1], steps) for x in (a, b)))
    within(moved, found.gaps(program, a, b) @ torch.from_numpy(found.matrix.toarray()).T)
    exact = global_certificate(eco.model_copy(update={"update": s.Update()}), program)
    assert exact.radius is not None
    assert found.radius is not None
    assert (exact.radius < 1) == (found.radius < 1)


def test_gradient_steps_that_are_too_long_or_without_curvature_are_refused() -> None:
    eco = vectors().model_copy(update={"update": s.Update(steps=s.GradientSteps(count=2, size=1.5))})
    assert "p: its gradient steps of 1.5 are longer than 1" in global_certificate(eco, compile_ecosystem(eco)).reason
    eco = random_ecosystem("categorical", 1, 0, ridge=0.0, steps=s.GradientSteps(count=2, size=0.5))
    assert "no strong convexity without ridge" in global_certificate(eco, compile_ecosystem(eco)).reason


@pytest.mark.parametrize("family", ["gaussian_mean", "loglinear", "linear_gaussian"])
def test_the_derivative_at_a_point_is_below_the_worst_case(family: str) -> None:
    eco = random_ecosystem(family, 3, 7, ridge=1.0, **(FAST | {"stages": 1}))
    program = compile_ecosystem(eco)
    found = global_certificate(eco, program, theta=solve(program).require())
    assert found.matrix is not None
    assert found.at_point is not None
    assert bool((found.at_point.toarray() <= found.matrix.toarray() + 1e-9).all())
    assert found.at_point.toarray().max() > 0.05


# --- spectra ---------------------------------------------------------------------------------------------------------


def singles(count: int) -> list[np.ndarray]:
    return [np.array([i]) for i in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_sequential_is_no_slower_than_simultaneous(seed: int) -> None:
    """Stein–Rosenberg for regular splittings: on one side of 1 both, and sequential further from it."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 7))
    matrix = rng.random((count, count)) * (rng.random((count, count)) < 0.7)
    matrix *= (0.4 + 0.06 * seed) / max(float(np.abs(np.linalg.eigvals(matrix)).max()), 0.1)
    names = [f"m{i}" for i in range(count)]
    radius = growth(scipy.sparse.csr_array(matrix), s.Simultaneous(), names, singles(count)).radius
    assert radius == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(), abs=1e-9)
    for _ in range(4):
        order = [names[i] for i in rng.permutation(count)]
        rate = growth(scipy.sparse.csr_array(matrix), s.Sequential(models=order), names, singles(count)).radius
        place = [names.index(n) for n in order]
        turned = matrix[np.ix_(place, place)]
        lower = np.tril(turned, -1)
        splitting = np.linalg.solve(np.eye(count) - lower, turned - lower)
        assert rate == pytest.approx(np.abs(np.linalg.eigvals(splitting)).max(), abs=1e-7)
        assert (rate <= radius + 1e-9) if radius < 1 else (rate >= radius - 1e-9)


def random_jacobian(size: int, seed: int) -> scipy.sparse.csr_array:
    rng = np.random.default_rng(seed)
    matrix = scipy.sparse.random_array((size, size), density=0.05, rng=rng, data_sampler=rng.standard_normal)
    return scipy.sparse.csr_array(0.3 * matrix)


@pytest.mark.parametrize(
    "order", [s.Simultaneous(), s.Sequential(), s.Cycle(rounds=[[["m0"], ["m2", "m1"]], [["m1"]]])]
)
@pytest.mark.parametrize("seed", range(3))
def test_arnoldi_agrees_with_dense_eigenvalues(order: s.Order, seed: int) -> None:
    matrix, names = random_jacobian(150, seed), ["m0", "m1", "m2"]
    blocks = [np.arange(50 * i, 50 * i + 50) for i in range(3)]
    dense = growth(matrix, order, names, blocks)
    sparse = growth(matrix, order, names, blocks, dense_limit=20)
    assert (dense.method, sparse.method) == ("dense", "arnoldi")
    assert sparse.radius == pytest.approx(dense.radius, rel=1e-8)
    assert dense.leading is not None
    assert sparse.leading is not None
    assert sparse.leading == pytest.approx(dense.leading, rel=1e-6)


def test_without_convergence_it_is_an_estimate_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise ArpackNoConvergence("%d", np.zeros(0), np.zeros((0, 0)))

    matrix, block = random_jacobian(150, 1), [np.arange(150)]
    exact = growth(matrix, s.Simultaneous(), ["p"], block)
    monkeypatch.setattr(growth_module, "eigs", none)
    found = growth(matrix, s.Simultaneous(), ["p"], block, dense_limit=20)
    assert (found.method, found.estimated, found.leading) == ("power", True, None)
    assert found.radius == pytest.approx(exact.radius, rel=0.05)


def test_chains_have_radius_zero_and_stale_models_radius_one() -> None:
    chain = scipy.sparse.csr_array(np.tril(np.full((6, 6), 3.0), -1))
    names = [f"m{i}" for i in range(6)]
    assert growth(chain, s.Simultaneous(), names, singles(6)) == Growth(0.0, 1, 0j, "components")
    half = scipy.sparse.csr_array(0.5 * np.eye(2))
    stale = s.Cycle(rounds=[[["m0"]]])
    assert growth(half, stale, names[:2], singles(2)).radius == 1.0
    twice = s.Cycle(rounds=[[["m0"], ["m1"], ["m0"]], [["m1"]]])
    assert growth(half, twice, names[:2], singles(2)).radius == pytest.approx(0.5)


def test_random_orders_have_a_known_exponent_where_models_are_apart() -> None:
    """Uncoupled models that halve, or shrink to 0.7, with probability 0.6 a round: exponent 0.6 log 0.7."""
    order = s.RandomOrder(probability=0.6, seed=4)
    found = growth(scipy.sparse.csr_array(np.diag([0.5, 0.7])), order, ["p", "q"], singles(2))
    assert found.estimated
    assert found.standard_error is not None
    assert abs(found.radius - 0.7**0.6) < 4 * found.standard_error + 1e-4
    assert 0 < found.standard_error < 0.02
    nothing = growth(scipy.sparse.csr_array((2, 2)), s.RandomOrder(), ["p", "q"], singles(2))
    assert nothing.radius == 0.0


@pytest.mark.parametrize("family", ["gaussian_mean", "loglinear", "mixed_finite", "gaussian"])
@pytest.mark.parametrize("steps", [None, s.GradientSteps(count=1, size=0.3), s.GradientSteps(count=6, size=0.2)])
def test_the_jacobian_of_a_round_is_its_derivative(family: str, steps: s.GradientSteps | None) -> None:
    eco = random_ecosystem(family, 2, 4, **(FAST | {"stages": 1}))
    program = compile_ecosystem(eco)
    star = solve(program).require()
    jacobian = torch.from_numpy(update_jacobian(linearise(program, star), steps).toarray())
    change = torch.randn(program.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-6 / float(change.norm())
    ends = [population_round(program, star + sign * step * change, s.Update(steps=steps)) for sign in (1, -1)]
    assert float((jacobian @ change - (ends[0] - ends[1]) / (2 * step)).norm() / change.norm()) < 1e-6


def test_all_orders_begins_with_the_specs_own_and_repeats_none() -> None:
    eco = random_ecosystem("loglinear", 3, 1, order=s.Sequential(models=["m2", "m1", "m0"]))
    program = compile_ecosystem(eco)
    lin = linearise(program, solve(program).require())
    words = [c.order for c in all_orders(program, lin, eco.update)]
    assert words == ["sequential: m2, m1, m0", "simultaneous", "sequential: m0, m1, m2"]
    own = local_radius(program, lin, eco.update.order)
    assert own == all_orders(program, lin, eco.update)[0]
    assert own.stable
    assert own.rounds_to_halve is not None
    assert own.radius**own.rounds_to_halve == pytest.approx(0.5)
    one = random_ecosystem("loglinear", 1, 1)
    alone = compile_ecosystem(one)
    assert len(all_orders(alone, linearise(alone, solve(alone).require()), one.update)) == 1


def test_orders_in_words() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert order_in_words(s.Sequential(), names) == "sequential: as listed"
    assert order_in_words(s.Sequential(models=names[::-1]), names) == "sequential: reversed"
    assert order_in_words(s.RandomOrder(probability=0.5), names) == "random order, each with probability 0.5"
    assert order_in_words(s.Cycle(rounds=[[["a"]]]), names, s.GradientSteps(count=1, size=1)) == (
        "cycle of 1 round; 1 step of 1"
    )


def test_an_unstable_point_has_no_time_to_halve() -> None:
    matrix = np.array([[0.0, 2.0], [1.0, 0.0]])
    found = growth(scipy.sparse.csr_array(matrix), s.Simultaneous(), ["p", "q"], singles(2))
    assert found.radius == pytest.approx(2**0.5)
    eco = vectors(weight=1.0, map=s.Affine(matrix=np.array(1.5)))
    program = compile_ecosystem(eco)
    certificate = local_radius(program, linearise(program, program.start), s.Simultaneous())
    assert (certificate.stable, certificate.rounds_to_halve) == (False, None)
    assert certificate.radius == pytest.approx(1.5)
    assert global_certificate(eco, program).contracts is False


def test_flat_directions_are_an_error() -> None:
    """Two equal features: exact retraining is not determined, gradient steps are."""
    features = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    eco = s.Ecosystem(
        space=s.Outcomes(count=3),
        data={"web": s.DistributionData(weights=np.ones(3))},
        rewards={"r": s.TableReward(values=np.arange(3.0))},
        models={
            "p": s.Model(family=s.LogLinear(features=features), reward="r", sources=[s.Real(data="web", weight=1)])
        },
    )
    program = compile_ecosystem(eco)
    lin = linearise(program, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(NotStableError, match="p"):
        local_radius(program, lin, s.Simultaneous())
    steps = s.GradientSteps(count=3, size=0.1)
    assert local_radius(program, lin, s.Simultaneous(), steps).radius == pytest.approx(1.0)
