"""Two runs that differ in one thing, compared: python -m benchmarks.compare_runs BEFORE AFTER [--samples N] [--last R]

Both must come from the same spec and seed, so that their random numbers are common and differences vary less than levels do.
For every model and evaluation: J of the last R recorded rounds averaged, and J of the last parameters on N fresh outputs
for the same prompts and noise. Intervals are 95 %: of the first over rounds (Student's t on paired differences, which takes
rounds for independent), of the second over outputs. Neither covers what another seed would give.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from crossfeed.describe.networks import evaluation_data
from crossfeed.describe.schema import Evaluation
from crossfeed.networks.build import build
from crossfeed.networks.randomness import generator, passes
from crossfeed.networks.rewards import build_reward
from crossfeed.networks.world import open_world
from crossfeed.record.folder import RunFolder
from crossfeed.retraining.counts import source_counts

Key = tuple[str, str]


def recorded(run: RunFolder, last: int) -> dict[Key, Tensor]:
    """Alignment by model and evaluation in the last rounds, (last,)."""
    found: dict[Key, dict[int, float]] = {}
    for row in run.metrics().to_pylist():
        if row["metric"] == "alignment" and row["round"] > run.rounds[-1] - last:
            found.setdefault((row["model"], row["domain"]), {})[row["round"]] = row["value"]
    return {key: torch.tensor([by[t] for t in sorted(by)], dtype=torch.float64) for key, by in found.items()}


def drawn(run: RunFolder, samples: int) -> dict[Key, Tensor]:
    """Rewards of fresh outputs of the last parameters, (samples,), by model and evaluation."""
    eco, cpu = run.eco, torch.device("cpu")
    assert eco is not None
    world = open_world(eco)
    dtype = getattr(torch, run.options["dtype"])
    networks = build(world, cpu, dtype)
    out: dict[Key, Tensor] = {}
    for name, network in networks.items():
        network.load(run.parameters(run.rounds[-1], name))
        for evaluation in eco.models[name].evaluate or [Evaluation(name="own")]:
            where = evaluation_data(eco, name, evaluation)
            counts = source_counts([1 / len(where)] * len(where), samples)
            stream = generator(eco.seed, 0, "+".join(where), "comparison inputs")
            pools = [world.data[data].inputs() for data in where]
            prompts = torch.cat([pool[passes(len(pool), n, stream)] for pool, n in zip(pools, counts, strict=True)])
            reward = build_reward(eco.rewards[evaluation.reward or eco.models[name].reward], world, cpu)
            with torch.no_grad():
                outputs = network.sample(
                    prompts,
                    torch.ones(len(prompts), dtype=torch.int64),
                    generator(eco.seed, 0, name, "comparison"),
                    evaluating=True,
                    batch_size=eco.run.generation_batch,
                )
                out[name, evaluation.name] = reward(prompts, outputs).double().cpu()
    return out


def line(what: str, key: Key, before: Tensor, after: Tensor) -> str:
    """One row of the table."""
    pair = (after - before).numpy()
    half = float(stats.t.ppf(0.975, len(pair) - 1) * np.std(pair, ddof=1) / len(pair) ** 0.5)
    levels = f"{float(before.mean()):.4f} | {float(after.mean()):.4f}"
    return f"| {what} | {key[0]} | {key[1]} | {levels} | {pair.mean():+.4f} ± {half:.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--last", type=int, default=8)
    chosen = parser.parse_args()
    runs: list[Any] = [RunFolder.open(folder) for folder in (chosen.before, chosen.after)]
    print("| | model | evaluation | J before | J after | difference |\n|---|---|---|---|---|---|")
    rounds = [recorded(run, chosen.last) for run in runs]
    for key in rounds[0]:
        print(line(f"last {chosen.last} rounds", key, rounds[0][key], rounds[1][key]), flush=True)
    if chosen.samples:
        fresh = [drawn(run, chosen.samples) for run in runs]
        for key in fresh[0]:
            print(line(f"last parameters, {chosen.samples:,} outputs", key, fresh[0][key], fresh[1][key]))


if __name__ == "__main__":
    main()
