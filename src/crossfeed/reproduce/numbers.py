"""All numbers of the figure: the library's, those of the explicit formulas, and the published ones beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.stats import t as student

import crossfeed
from crossfeed.reproduce import loops, theorem
from crossfeed.reproduce.gaussian import CURATION, NOISE, explicit, published

Numbers = dict[str, Any]
Progress = Callable[[str, int, int], None]

SEED = 2605
SIZES = (4, 12, 64)
SEEDS = 40
SWEEP_SIZES = (4, 32)
SWEEP_SEEDS = 20
SWEEP_STRENGTHS = (0.2, 0.9)
BLOCK_STRENGTH = 0.9
MODELS = ("p", "q")


def gather(progress: Progress, seeds: int = SEEDS, sweep_seeds: int = SWEEP_SEEDS) -> Numbers:
    """Every number of the figure, JSON-safe.

    Args:
        progress: Called with (stage, done, total).
        seeds: Runs for each t, n and λ ± 0.02 of the derivatives; the paper's 40, at least 4.
        sweep_seeds: Runs for each t, n and λ of the sweep; the paper's 20, at least 4.
    """
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return round(clock[-1] - clock[-2], 3)

    out: Numbers = {
        "format": "crossfeed-fig3",
        "version": 1,
        "crossfeed": crossfeed.__version__,
        "source": "Zhang, Wei, Zhang: When and How Human Curation Backfires. ICML 2026, arXiv 2605.29267, Figure 3",
        "settings": {
            "curation": CURATION,
            "noise": NOISE,
            "step": theorem.STEP,
            "rounds": loops.ROUNDS,
            "discarded": loops.DISCARDED,
            "start": "0",
            "seeds": seeds,
            "sweep_seeds": sweep_seeds,
            "root_seed": SEED,
        },
    }
    seconds = {}
    out["curves"] = curves(progress)
    seconds["curves"] = lap()
    out["zero"] = zero(progress)
    out["blocks"] = blocks()
    seconds["zeros and blocks"] = lap()
    out["finite"] = finite(progress, seeds)
    seconds["finite samples"] = lap()
    out["sweep"] = sweep(progress, sweep_seeds)
    seconds["sweep"] = lap()
    out["deviations"] = deviations(out)
    out["agreement"] = agreement(out, seeds, sweep_seeds)
    out["seconds"] = seconds
    return out


def _under(stage: str, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def curves(progress: Progress) -> Numbers:
    """Influences and directions over the published t."""
    d = published()
    found = theorem.curves(d["t"], _under("Influence over t", progress))
    hand = explicit(d["t"])
    names = {"p": "dJp_dlambda", "q": "dJq_dlambda"}
    out: Numbers = {"t": _list(d["t"])}
    for k, model in enumerate(MODELS):
        out[f"influence_{model}"] = {
            "theorem": _list(found.theorem[:, k]),
            "explicit": _list(hand.influence[:, k]),
            "difference": _list(found.difference[:, k]),
            "published": _list(d[names[model]]),
        }
    out["rho_p"] = {"library": _list(found.rho_p), "explicit": _list(hand.rho_p)}
    out["rho_p_published"] = {"explicit": _list(hand.rho_p_published), "published": _list(d["rho_p_published"])}
    out["rho_q"] = {"library": _list(found.rho_q), "explicit": _list(hand.rho_q), "published": _list(d["rho_q"])}
    return out


def zero(progress: Progress) -> Numbers:
    """Where influences change sign: over t at λ = 0.4, and over λ at the two t of the sweep."""
    d = published()
    spline = CubicSpline(d["t"], d["dJq_dlambda"])
    root = next(r for r in spline.roots(extrapolate=False).tolist() if 0.8 < r < 0.9)
    out: Numbers = {"t": {"library": theorem.zero_over_strength(0.8, 0.9), "published": float(root)}, "curation": {}}
    for number, t in enumerate(SWEEP_STRENGTHS):
        out["curation"][f"{t:g}"] = theorem.zeros_over_curation(t)
        progress("Where signs change", number + 1, len(SWEEP_STRENGTHS))
    return out


def blocks() -> Numbers:
    """The detail at t = 0.9. Published blocks are g·a and g·Sa: the library's at λ = 0, where ∇J = g."""
    d = published()
    zero, here = theorem.at_one(BLOCK_STRENGTH, 0.0), theorem.at_one(BLOCK_STRENGTH)
    turn = here.direction
    out: Numbers = {
        "t": BLOCK_STRENGTH,
        "theta": {"library": _list(here.theta), "published": _list(d["theta_star_t09"])},
        "phi": {"library": _list(here.phi), "published": _list(d["phi_star_t09"])},
        "direction": {
            "rho": float(turn.rho),
            "paper_bound": None if turn.paper_bound is None else float(turn.paper_bound),
            "sharp_bound": None if turn.sharp_bound is None else float(turn.sharp_bound),
            "turning_angle_deg": float(np.degrees(turn.turning_angle)),
            "flip_angle_deg": float(np.degrees(turn.flip_angle)),
            "sign_guaranteed": bool(turn.sign_guaranteed),
        },
    }
    for k, model in enumerate(MODELS):
        out[model] = {"influence": float(here.influence[k])}
        for kind, by_g, by_gradient in (("raw", zero.raw, here.raw), ("distorted", zero.distorted, here.distorted)):
            out[model][kind] = {
                "library": _list(by_g[k]),
                "published": _list(d[f"blocks_{kind}_{model}"]),
                "at_curation": _list(by_gradient[k]),
            }
    return out


def finite(progress: Progress, seeds: int) -> Numbers:
    """Derivatives by central differences of simulated loops, and what the finite-sample theory says of them."""
    d = published()
    t = np.repeat(d["finite_t"], 2).tolist()
    shares = [CURATION + theorem.STEP, CURATION - theorem.STEP] * len(d["finite_t"])
    law = loops.expected(t, shares, progress=_under("Finite-sample theory", progress))
    one = _slope(law.std**2, plus=True) ** 0.5 / np.sqrt(seeds)
    start = float(np.abs(_slope(law.population - law.value)).max())
    out: Numbers = {"t": _list(d["finite_t"]), "n": {}, "start_effect": start}
    for n in SIZES:
        runs = loops.simulate(t, shares, n, seeds, SEED + n, _under(f"Simulation, n = {n}", progress))
        slopes = _slope(runs)
        mean, error = slopes.mean(0), slopes.std(0, ddof=1) / np.sqrt(seeds)
        theory = _slope(law.mean(n))
        out["n"][str(n)] = {
            model: {
                "theory": _list(theory[:, k]),
                "theory_std_error": _list(one[:, k] / np.sqrt(n)),
                "simulated": _list(mean[:, k]),
                "simulated_std_error": _list(error[:, k]),
                "published": _list(d[f"finite_n{n}_j{model}_mean"]),
                "published_std_error": _list(d[f"finite_n{n}_j{model}_sem"]),
            }
            for k, model in enumerate(MODELS)
        }
    return out


def _slope(values: np.ndarray, plus: bool = False) -> np.ndarray:
    """(…, pairs, 2), λ + h and λ − h in turn, to (J₊ − J₋) / 2h; with ``plus``, variances to the slope's variance."""
    up, down = values[..., 0::2, :], values[..., 1::2, :]
    change: np.ndarray = (up + down) / (2 * theorem.STEP) ** 2 if plus else (up - down) / (2 * theorem.STEP)
    return change


def sweep(progress: Progress, seeds: int) -> Numbers:
    """J over λ: at the stable point, and on finite samples by simulation and theory."""
    d = published()
    grid = d["lambda_grid"]
    t = np.repeat(SWEEP_STRENGTHS, len(grid)).tolist()
    shares = np.tile(grid, len(SWEEP_STRENGTHS)).tolist()
    law = loops.expected(t, shares, progress=_under("Theory of the sweep", progress))
    runs = {}
    for n in SWEEP_SIZES:
        runs[n] = loops.simulate(t, shares, n, seeds, SEED + 1000 + n, _under(f"Sweep of λ, n = {n}", progress))
    out: Numbers = {"curation": _list(grid), "t": {}}
    for number, strength in enumerate(SWEEP_STRENGTHS):
        rows = slice(number * len(grid), (number + 1) * len(grid))
        key = f"{strength:g}"
        out["t"][key] = {}
        for k, model in enumerate(MODELS):
            name = f"J{model}_t{key.replace('.', '')}"
            out["t"][key][model] = {
                "library": _list(law.value[rows, k]),
                "published": _list(d[name]),
                "n": {
                    str(n): {
                        "theory": _list(law.mean(n)[rows, k]),
                        "theory_std_error": _list(law.std[rows, k] / np.sqrt(n * seeds)),
                        "simulated": _list(runs[n][:, rows, k].mean(0)),
                        "simulated_std_error": _list(runs[n][:, rows, k].std(0, ddof=1) / np.sqrt(seeds)),
                    }
                    for n in SWEEP_SIZES
                },
            }
    return out


def deviations(numbers: Numbers) -> list[Numbers]:
    """For every published array: how many numbers, how large, and the largest absolute deviation of ours."""
    c, b = numbers["curves"], numbers["blocks"]
    rows = []

    def add(what: str, how: str, ours: Any, theirs: Any) -> None:
        mine, other = np.atleast_1d(ours), np.atleast_1d(theirs)
        gap = np.abs(mine - other)
        scale = float(np.abs(other).max())
        rows.append(
            {
                "what": what,
                "how": how,
                "count": int(mine.size),
                "size": scale,
                "largest": float(gap.max()),
                "relative": float(gap.max() / scale),
            }
        )

    ways = {"theorem": "influence matrix", "explicit": "explicit formula", "difference": "central differences"}
    for model in MODELS:
        curve = c[f"influence_{model}"]
        for key, how in ways.items():
            add(f"∂J_{model}/∂λ over t", how, curve[key], curve["published"])
    script = c["rho_p_published"]
    add("ρ_p as published, cos(∇J_p, θ*)", "explicit formula", script["explicit"], script["published"])
    add("ρ_q = cos(∇J_q, A a)", "library", c["rho_q"]["library"], c["rho_q"]["published"])
    add("θ* at t = 0.9", "library", b["theta"]["library"], b["theta"]["published"])
    add("φ* at t = 0.9", "library", b["phi"]["library"], b["phi"]["published"])
    for model in MODELS:
        for kind in ("raw", "distorted"):
            add(f"blocks of {model}, {kind}", "library", b[model][kind]["library"], b[model][kind]["published"])
    for t, models in numbers["sweep"]["t"].items():
        for model, values in models.items():
            add(f"J_{model} over λ at t = {t}", "library", values["library"], values["published"])
    root = numbers["zero"]["t"]
    add("t where ∂J_q/∂λ = 0", "root over t; published: spline", root["library"], root["published"])
    return rows


def agreement(numbers: Numbers, seeds: int, sweep_seeds: int) -> Numbers:
    """How many Monte-Carlo means lie within 2 and 3 of their own standard errors of the theory, and how many should."""
    finite = [values for models in numbers["finite"]["n"].values() for values in models.values()]
    sweep = [v for t in numbers["sweep"]["t"].values() for m in t.values() for v in m["n"].values()]

    def join(rows: list[Numbers], key: str) -> np.ndarray:
        return np.concatenate([np.asarray(row[key]) for row in rows])

    def within(mean: np.ndarray, error: np.ndarray, theory: np.ndarray, runs: int) -> Numbers:
        z = np.abs(mean - theory) / error
        return {
            "count": int(z.size),
            "within_2": int((z < 2).sum()),
            "within_3": int((z < 3).sum()),
            "expected_2": float(z.size * (1 - 2 * student.sf(2, runs - 1))),
            "expected_3": float(z.size * (1 - 2 * student.sf(3, runs - 1))),
            "mean_square": float((z**2).mean()),
            "expected_mean_square": (runs - 1) / (runs - 3),
            "largest": float(z.max()),
        }

    theory, spread = join(finite, "theory"), join(finite, "theory_std_error")
    published_error, ours_error = join(finite, "published_std_error"), join(finite, "simulated_std_error")
    difference = np.hypot(published_error, ours_error)
    return {
        "published": within(join(finite, "published"), published_error, theory, SEEDS),
        "simulated": within(join(finite, "simulated"), ours_error, theory, seeds),
        "sweep": within(
            join(sweep, "simulated"), join(sweep, "simulated_std_error"), join(sweep, "theory"), sweep_seeds
        ),
        "published_minus_simulated": {
            "within_2": int((np.abs(join(finite, "published") - join(finite, "simulated")) < 2 * difference).sum()),
            "count": int(theory.size),
        },
        "published_std_error_over_theory": float(np.sqrt(np.mean((published_error / spread) ** 2) * SEEDS / seeds)),
        "simulated_std_error_over_theory": float(np.sqrt(np.mean((ours_error / spread) ** 2))),
    }


def _list(values: np.ndarray) -> list[float]:
    return [float(v) for v in values]
