"""The stationary law on finite samples: against the published runs, and against simulation."""

import math

import loops
import numpy as np
import pytest
import scipy.linalg
import torch

from crossfeed.describe import schema as s
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.linearise import linearise
from crossfeed.dynamics.rounds import State, sampled_round
from crossfeed.dynamics.stable import solve
from crossfeed.errors import NotAvailableError, NotStableError
from crossfeed.influence.finite_samples import FiniteSamples, curvature_term, finite_sample_theory, lyapunov
from crossfeed.influence.paths import moment_path

TOGETHER, IN_TURN = s.Simultaneous(), s.Sequential()


def theory_of(eco: s.Ecosystem) -> FiniteSamples:
    program = compile_ecosystem(eco)
    return finite_sample_theory(program, solve(program).require(), eco.update, eco.samples)


# --- the published experiment ----------------------------------------------------------------------------------------


def test_published_finite_sample_derivatives_lie_on_the_theory() -> None:
    """100 rounds, 80 discarded, 40 seeds a side, central difference ± 0.02; 18 strengths × 3 sample sizes × {p, q}.

    Nothing is fitted. Sides are taken as independent: the published standard errors agree with that.
    """
    d, h = loops.published(), 0.02
    z, by_theory, errors = [], [], []
    for k, t in enumerate(d["finite_t"]):
        up, down = (theory_of(loops.gaussian_mechanism(t, 0.4 + sign * h, 1)) for sign in (1, -1))
        variance = sum(side.time_average_cov(20, 80).diagonal() for side in (up, down))
        for n in (4, 12, 64):
            expected = (up.at(n)[0] - down.at(n)[0]) / (2 * h)
            error = (variance / n / 40).sqrt() / (2 * h)
            for j, m in enumerate("pq"):
                mean, sem = d[f"finite_n{n}_j{m}_mean"][k], d[f"finite_n{n}_j{m}_sem"][k]
                z.append((mean - float(expected[j])) / sem)
                by_theory.append((mean - float(expected[j])) / float(error[j]))
                errors.append(sem / float(error[j]))
    z, by_theory, ratio = np.array(z), np.array(by_theory), np.array(errors)
    assert len(z) == 108
    # found: 102 within 2 standard errors and 107 within 3; 113.9 where t with 39 degrees of freedom expects 113.8
    assert (abs(z) < 2).sum() >= 98
    assert (abs(z) < 3).sum() >= 106
    assert abs((z**2).sum() - 115) < 35
    assert abs((by_theory**2).sum() - 115) < 35
    # a standard error from 40 seeds scatters by 1/√78 = 11 %
    assert abs(ratio.mean() - 1) < 0.05
    assert ((ratio > 0.6) & (ratio < 1.4)).all()


def test_the_published_burn_in_leaves_less_than_a_hundredth_of_a_standard_error() -> None:
    difference = 0.0
    for sign in (1, -1):
        eco = loops.gaussian_mechanism(1.0, 0.4 + sign * 0.02, 4)
        program, theory = compile_ecosystem(eco), theory_of(eco)
        path = list(moment_path(program, program.start, eco.update, eco.samples, 100))[80:]
        late = torch.stack([program.alignment(m) + curvature_term(program, m, c) for m, c in path]).mean(0)
        difference = difference + sign * (late - theory.at()[0]) / 0.04
    assert float(difference.abs().max()) < 0.002  # published standard errors are 0.16 and more


# --- simulation ------------------------------------------------------------------------------------------------------


def compare(eco: s.Ecosystem, size: int, burn_in: int, rounds: int, covariance: float) -> torch.Tensor:
    """Run ``size`` seeds from Θ*, check E[Θ], E[J], Cov[Θ] and the spread of time averages.

    Means are held to 4 standard errors (a fresh seed fails once in 16,000 per number), Cov[Θ] to ``covariance`` in
    relative Frobenius norm (its own terms in 1/n and the runs' noise), time averages to 10 %.

    Returns:
        (D,) how many standard errors E[Θ] lies from Θ*, as if there were no shift.
    """
    theory, n = theory_of(eco), eco.samples.per_round
    program, state = theory.program, State(theory.theta.expand(size, -1).clone())
    kept = []
    for number in range(burn_in + rounds):
        state = sampled_round(program, state, eco.update, eco.samples, 11)
        if number >= burn_in:
            kept.append(state.theta)
    theta = torch.stack(kept)
    last = theta if len(theory.rounds) == 1 else theta[len(theory.rounds) - 1 :: len(theory.rounds)]
    average, values = last.mean(0), program.alignment(theta).mean(0)
    error = average.std(0) / size**0.5
    mean = average.mean(0)
    assert bool(((mean - theory.mean()).abs() < 4 * error).all()), (mean - theory.mean()) / error
    assert bool(((values.mean(0) - theory.at()[0]).abs() < 4 * values.std(0) / size**0.5).all())
    off = last - last.mean((0, 1))
    found = n * torch.einsum("rsi,rsj->ij", off, off) / off.shape[0] / off.shape[1]
    gap = torch.linalg.matrix_norm(found - theory.sigma) / torch.linalg.matrix_norm(theory.sigma)
    assert float(gap) < covariance
    ratio = values.std(0) / theory.time_average_std(n, rounds, burn_in)
    assert bool(((ratio - 1).abs() < 0.1).all()), ratio
    return (mean - theory.theta) / error


@pytest.mark.parametrize(
    ("order", "counts"), [(TOGETHER, "multinomial"), (IN_TURN, "fixed")], ids=["together", "in turn"]
)
def test_loglinear_models_on_each_others_picks(order, counts) -> None:
    unshifted = compare(loops.loglinear(order, counts, 41), 1200, 8, 12, 0.1)
    assert float(unshifted.abs().max()) > 3  # the shift is there to be seen


@pytest.mark.parametrize("order", [TOGETHER, IN_TURN], ids=["together", "in turn"])
@pytest.mark.parametrize("counts", ["multinomial", "fixed"])
def test_gaussians_that_learn_their_covariance(order, counts) -> None:
    unshifted = compare(loops.gaussian(order, counts, 43), 600, 8, 12, 0.1)
    assert float(unshifted.abs().max()) > 15


def test_covariances_are_sharp_at_many_samples() -> None:
    compare(loops.gaussian(IN_TURN, "multinomial", 1000), 1000, 8, 12, 0.03)


def test_linear_models_of_answers() -> None:
    compare(loops.regression(IN_TURN, "fixed", 43), 600, 10, 10, 0.13)


@pytest.mark.slow
@pytest.mark.parametrize("make", [loops.loglinear, loops.gaussian, loops.regression])
def test_gradient_steps_and_cycles(make) -> None:
    steps = s.GradientSteps(count=3, size=0.3)
    compare(make(IN_TURN, "multinomial", 100, steps), 1500, 20, 10, 0.08)
    cycle = s.Cycle(rounds=[[["p", "q"]], [["q"], ["p"]], [["p"]]])
    compare(make(cycle, "multinomial", 100), 1500, 12, 12, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("order", [TOGETHER, IN_TURN], ids=["together", "in turn"])
@pytest.mark.parametrize("counts", ["multinomial", "fixed"])
@pytest.mark.parametrize("make", [loops.loglinear, loops.regression])
def test_orders_and_counts(make, order, counts) -> None:
    compare(make(order, counts, 83), 2000, 10, 12, 0.1)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_affine_loops_are_exact_by_hand() -> None:
    """θ ← ½(θ + 1) + N(0, 1/n): half of the data from N(1, 1), half from N(θ, 1), fixed counts."""
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[1.0], cov=1.0)},
        rewards={"r": s.QuadraticReward(matrix=-1.0)},
        models={
            "p": s.Model(
                family=s.GaussianMean(cov=1.0),
                reward="r",
                sources=[s.Real(data="web", weight=0.5), s.Raw(producer="p", weight=0.5)],
            )
        },
        samples=s.Samples(per_round=8, counts="fixed"),
    )
    theory = theory_of(eco)
    # Σ = 1 / (1 − 1/4); J = −½(θ² + 1), so E[J] = −1 − Σ/2n and sd = |θ*| √(Σ/n)
    assert float(theory.sigma) == pytest.approx(4 / 3)
    assert float(theory.radius) == pytest.approx(0.5)
    mean, std = theory.at()
    assert float(mean) == pytest.approx(-1 - 4 / 3 / 16)
    assert float(std) == pytest.approx(math.sqrt(4 / 3 / 8))
    # two rounds in a row: (2Σ + 2·½Σ)/4n = ¾Σ/n; from a start without spread the first error counts 1½ times
    assert float(theory.time_average_std(8, 2)) == pytest.approx(math.sqrt(1 / 8))
    assert float(theory.time_average_std(8, 2, burn_in=0)) == pytest.approx(math.sqrt((1.5**2 + 1) / 4 / 8))


def test_doubling_solves_the_lyapunov_equation() -> None:
    rng = np.random.default_rng(0)
    G = rng.normal(size=(30, 30))
    G *= 0.98 / abs(np.linalg.eigvals(G)).max()
    root = rng.normal(size=(30, 30))
    found, radius = lyapunov(torch.from_numpy(G), torch.from_numpy(root @ root.T))
    truth = scipy.linalg.solve_discrete_lyapunov(G, root @ root.T)
    assert np.allclose(found, truth, rtol=1e-8, atol=1e-8 * abs(truth).max())
    assert radius == pytest.approx(0.98, rel=1e-2)


def test_rounds_of_a_cycle_end_in_the_same_law_wherever_it_starts() -> None:
    rounds = [[["p", "q"]], [["q"]], [["p"]]]
    first = theory_of(loops.gaussian(s.Cycle(rounds=rounds), "multinomial", 10))
    turned = theory_of(loops.gaussian(s.Cycle(rounds=rounds[1:] + rounds[:1]), "multinomial", 10))
    assert torch.allclose(first.shift, turned.shift)
    assert torch.allclose(first.std, turned.std)
    assert torch.allclose(first.rounds[0].sigma, turned.rounds[2].sigma)
    assert torch.allclose(first.rounds[0].delta, turned.rounds[2].delta)


def test_a_given_linearisation_changes_nothing() -> None:
    eco = loops.loglinear(IN_TURN, "fixed", 41)
    program = compile_ecosystem(eco)
    theta = solve(program).require()
    one = finite_sample_theory(program, theta, eco.update, eco.samples)
    two = finite_sample_theory(program, theta, eco.update, eco.samples, linearise(program, theta))
    assert torch.equal(one.at()[0], two.at()[0])


def test_rounding_of_fixed_counts_is_resolving_with_the_shares_counted() -> None:
    eco = loops.loglinear(IN_TURN, "fixed", 41)
    theory = theory_of(eco)
    shares = {"p": [14, 17, 10], "q": [17, 16, 8]}  # of 14.35, 16.4, 10.25 and 16.4, 16.4, 8.2; ties to the first
    models = {
        m: model.model_copy(
            update={
                "sources": [
                    x.model_copy(update={"weight": c / 41}) for x, c in zip(model.sources, shares[m], strict=True)
                ]
            }
        )
        for m, model in eco.models.items()
    }
    moved = theory_of(eco.model_copy(update={"models": models}))
    change = theory.at()[0] - theory.value - theory.shift / 41
    assert torch.allclose(change, moved.value - theory.value, rtol=0.1, atol=2e-4)
    assert bool((change.abs() <= theory.largest_rounding / 41).all())


# --- refusals --------------------------------------------------------------------------------------------------------


def _categorical(count: int, real: float = 0.5, **samples: object) -> s.Ecosystem:
    sources = [s.Raw(producer="p", weight=1 - real)] + ([s.Real(data="web", weight=real)] if real else [])
    return s.Ecosystem(
        space=s.Outcomes(count=count),
        data={"web": s.DistributionData(weights=np.arange(1.0, count + 1))},
        rewards={"r": s.TableReward(values=np.linspace(0, 1, count))},
        models={"p": s.Model(family=s.Categorical(), reward="r", sources=sources, start=np.zeros(count - 1))},
        samples=s.Samples(**samples),
    )


def test_a_loop_without_fresh_data_has_no_stationary_law() -> None:
    eco = _categorical(4, real=0.0)
    program = compile_ecosystem(eco)
    with pytest.raises(NotAvailableError, match=r"spectral radius is 1 ≥ 1.*add real data or a ridge"):
        finite_sample_theory(program, program.start, eco.update, eco.samples)


def test_what_has_no_closed_form_is_refused() -> None:
    eco = _categorical(4)
    program = compile_ecosystem(eco)
    theta = solve(program).require()
    with pytest.raises(NotAvailableError, match="random order"):
        finite_sample_theory(program, theta, s.Update(order=s.RandomOrder()), eco.samples)
    with pytest.raises(NotAvailableError, match="'subsample'"):
        finite_sample_theory(program, theta, eco.update, s.Samples(regime="subsample"))
    with pytest.raises(NotStableError, match="solve for a stable point first"):
        finite_sample_theory(program, theta + 0.1, eco.update, eco.samples)
    large = compile_ecosystem(_categorical(1600))
    with pytest.raises(NotAvailableError, match=r"1,599 parameters.*stops at 1,500"):
        finite_sample_theory(large, large.start, eco.update, eco.samples)


def test_picks_for_a_learnt_covariance_are_refused() -> None:
    sources = [s.Real(data="web", weight=0.6), s.Curated(producer="p", weight=0.4)]
    eco = s.Ecosystem(
        space=s.Vectors(dim=1),
        data={"web": s.MomentsData(mean=[1.0], cov=1.0)},
        rewards={"r": s.LinearReward(vector=[1.0])},
        models={"p": s.Model(family=s.Gaussian(), reward="r", sources=sources)},
    )
    with pytest.raises(NotAvailableError, match="no closed form"):
        theory_of(eco)


def test_rare_outcomes_are_told() -> None:
    theory = theory_of(_categorical(4, per_round=20))
    assert theory.notes() == [
        "p expects 2 samples a round of its rarest outcome; below about 5 the terms beyond 1/n are not small"
    ]
    assert theory.notes(60) == []
