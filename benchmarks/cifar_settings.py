"""Settings A1–A6 in closed form for several weights of the reward, as a Markdown table: python -m benchmarks.cifar_settings."""

from __future__ import annotations

from pathlib import Path

from crossfeed.describe.load import load
from crossfeed.describe.schema import Ecosystem
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.stable import solve
from crossfeed.influence.matrix import influence
from crossfeed.influence.threshold import Mover, threshold

FOLDER = Path(__file__).parents[1] / "examples" / "cifar10"
WEIGHTS = ((1, 0), (1, 1), (2, 1), (4, 1), (10, 1))
PAPER = {  # (J_p, J_q) before and after, read off the paper's figure 6
    "A1": (0.65, 0.93, -0.06, -0.08),
    "A2": (0.35, 0.64, -0.03, -0.055),
    "A3": (0.21, 0.36, 0.025, 0.01),
    "A4": (0.11, 0.075, 0.17, 0.32),
    "A5": (0.35, 0.43, 0.26, 0.04),
    "A6": (0.155, 0.163, 0.006, -0.005),
}


def weighted(name: str, band: float, realism: float) -> Ecosystem:
    eco = load(FOLDER / f"{name}.yaml")
    rewards = {k: r.model_copy(update={"band_weight": band, "realism_weight": realism}) for k, r in eco.rewards.items()}
    return eco.model_copy(update={"rewards": rewards})


def main() -> None:
    print(
        "| weights | setting | I_pp | isolated | verdict p | I_qp | verdict q | J_p .5 → .6 | J_q .5 → .6 | flips for p at cross share |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for band, realism in WEIGHTS:
        for name in PAPER:
            eco = weighted(name, band, realism)
            program = compile_ecosystem(eco)
            theta = solve(program).require()
            found = influence(eco, program, theta)
            mover = Mover(eco, program, theta)
            before = program.alignment(theta)
            _, moved = mover.at({"p.curation": 0.6})
            after = moved.program.alignment(moved.theta)
            roots = threshold(eco, "p.cross_share", 0.0, 1.0, [(0, 0)], 13, Mover(eco, program, theta)).roots[0, 0]
            matrix, verdicts = found.matrix, found.verdicts
            print(
                f"| {band} : {realism} | {name} | {matrix[0, 0]:.3g} | {found.isolated[0]:.3g} | {verdicts[0][0]} | {matrix[1, 0]:.3g} "
                f"| {verdicts[1][0]} | {before[0]:.4f} → {after[0]:.4f} | {before[1]:.4f} → {after[1]:.4f} "
                f"| {', '.join(f'{r:.3f}' for r in roots) or 'none in [0, 1]'} |",
                flush=True,
            )
    print("\nPaper (diffusion networks, read off figure 6):", PAPER)


if __name__ == "__main__":
    main()
