"""What retraining shows: every ecosystem run with the curation ratio of each model up and down, several seeds.

``python -m benchmarks.prediction.truth FOLDER [NUMBER …]`` writes one JSON file an ecosystem; what is there is kept.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.prediction.ecosystems import NUM, ROUNDS, ecosystem, kind_of
from crossfeed.describe.schema import Ecosystem
from crossfeed.describe.settings import get, put
from crossfeed.retraining.recorder import Memory, copies
from crossfeed.retraining.run import run_networks

BURN_IN = 8
STEP = 0.15
SEEDS = 4


def settle(eco: Ecosystem, folder: Path) -> dict[str, str]:
    """Pretrain, run ``BURN_IN`` rounds as the spec says, and keep the parameters: files by model."""
    files = {name: str(folder / f"{name}.safetensors") for name in eco.names}
    if not all(Path(file).exists() for file in files.values()):
        memory = Memory("metrics")
        done = run_networks(eco, memory, rounds=BURN_IN, device="cpu", minimal=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settled.json").write_text(json.dumps(alignment(memory)))
        for name, network in done.networks.items():
            save_file(copies(network.parameters()), files[name])
    return files


def settled(eco: Ecosystem, files: dict[str, str]) -> Ecosystem:
    """The ecosystem that starts where :func:`settle` ended."""
    models = {}
    for name, model in eco.models.items():
        pretrain = model.pretrain
        assert pretrain is not None
        models[name] = model.model_copy(update={"checkpoint": files[name], "pretrain": None})
    return eco.model_copy(update={"models": models})


def alignment(memory: Memory) -> list[list[float]]:
    """J by round and model."""
    table = memory.metrics().to_pylist()
    rounds = sorted({row["round"] for row in table})
    names: list[str] = list(dict.fromkeys(row["model"] for row in table))
    found = {(row["round"], row["model"]): row["value"] for row in table if row["metric"] == "alignment"}
    return [[found[t, name] for name in names] for t in rounds]


def one(eco: Ecosystem, seed: int) -> list[list[float]]:
    """J by round and model of one run."""
    memory = Memory("metrics")
    eco = eco.model_copy(update={"seed": 1000 + seed})
    run_networks(eco, memory, rounds=ROUNDS, device="cpu", minimal=True)
    return alignment(memory)


def truth(number: int, folder: Path) -> dict[str, Any]:
    """All runs of one ecosystem."""
    eco = ecosystem(number, folder)
    start = time.perf_counter()
    files = settle(eco, folder / f"settled-{number:02d}")
    after, used = time.perf_counter(), time.process_time()
    eco = settled(eco, files)
    out: dict[str, Any] = {
        "number": number,
        "kind": kind_of(number),
        "names": eco.names,
        "curation": {name: get(eco, f"{name}.curation") for name in eco.names},
        "step": STEP,
        "settle_seconds": after - start,
        "base": [one(eco, seed) for seed in range(SEEDS)],
        "up": {},
        "down": {},
    }
    for name in eco.names:
        for key, sign in (("up", 1), ("down", -1)):
            changed = put(eco, f"{name}.curation", out["curation"][name] + sign * STEP)
            out[key][name] = [one(changed, seed) for seed in range(SEEDS)]
    out["seconds"], out["cpu_seconds"] = time.perf_counter() - after, time.process_time() - used
    return out


def main() -> None:
    """Run those that are asked for, or all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number in [int(n) for n in sys.argv[2:]] or range(NUM):
        file = folder / f"truth-{number:02d}.json"
        if file.exists():
            continue
        found = truth(number, folder)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(file)
        print(f"{number}: {found['kind']}, {len(found['names'])} models, {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
