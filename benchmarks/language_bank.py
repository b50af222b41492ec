"""What the audit of language models costs: gradients a second, matrix-free products a second, seconds a what-if, memory, and growth.

``python -m benchmarks.language_bank [MODEL DATA] [--quick] [--long] [--only TABLE …]``: MODEL a folder of a transformers model
(SmolLM2-135M-Instruct in benchmarks/README.md), DATA the folder with debian_synopsis_train.parquet and
coedit_paraphrase_train.parquet; without them only the tables of a tiny model. Every line is measured in a process of its own, on one
thread, in processor seconds. Prints Markdown. About twenty minutes; ``--quick`` a fifth, ``--long`` three times as long.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from crossfeed.describe.load import load
from crossfeed.describe.network_nodes import CausalLM, FreshLM, Lora, SummaryReward, Text, TextsData, Training
from crossfeed.describe.schema import Curated, Ecosystem, Evaluation, Model, Raw, Real, RunOptions
from crossfeed.describe.settings import put
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.derivatives import indexed_rows, products, weighted_gradient
from crossfeed.estimate.estimator import estimate
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import open_point
from crossfeed.estimate.what_if import what_if

EXAMPLE = Path(__file__).parents[1] / "examples/language/mismatch.yaml"
REPEATS = 3
"""Of rates, of which the best counts."""
SCALES = {"quick": 0.25, "usual": 1.0, "long": 3.0}


def ecosystem(model: Path, data: Path, rank: int) -> Any:
    """The shipped example with a local model and local texts, at 10 % curation so that what-ifs have something to move."""
    articles, sentences = str(data / "debian_synopsis_train.parquet"), str(data / "coedit_paraphrase_train.parquet")
    changes: dict[str, Any] = {}
    for name, file, column in (("articles", articles, "article"), ("new_articles", articles, "article")):
        changes |= {f"data.{name}.file": file, f"data.{name}.input_column": column, f"data.{name}.rows": 400}
    changes["data.articles.answer_column"] = "summary"
    for name in ("sentences", "new_sentences"):
        changes |= {f"data.{name}.file": sentences, f"data.{name}.rows": 400, f"data.{name}.where": {}}
    for name in ("p", "q"):
        family = f"models.{name}.family"
        changes |= {f"{family}.pretrained": str(model), f"{family}.lora.rank": rank, f"{family}.lora.dropout": 0.0}
        changes |= {f"{family}.max_prompt_tokens": 96, f"{family}.max_new_tokens": 32, f"models.{name}.pretrain": None}
        changes |= {f"models.{name}.train.optimizer": "sgd", f"models.{name}.train.steps": 16}
    eco = load(EXAMPLE, overrides=changes)
    return put(put(eco, "p.curation", 0.1), "q.curation", 0.1)


def tiny(num: int, rank: int) -> Ecosystem:
    """A ring of models with adapters on one tiny Llama, made on the spot; each is trained on the next one's answers."""
    folder = Path(tempfile.mkdtemp(prefix="crossfeed-bench-"))
    names = [f"m{i}" for i in range(num)]
    data: dict[str, Any] = {}
    models: dict[str, Any] = {}
    family = CausalLM(
        fresh=FreshLM(width=64, layers=2, heads=4, vocabulary=400),
        lora=Lora(rank=rank, alpha=2 * rank, dropout=0.0),
        max_prompt_tokens=48,
        max_new_tokens=12,
        attention="eager",
    )
    for i, name in enumerate(names):
        rows = [
            {"input": f"Tool {k} of {name} sorts cards of kind {k % 7}.", "output": f"sorts {k % 7}"}
            for k in range(400)
        ]
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data[name] = TextsData(
            file=str(file),
            input_column="input",
            answer_column="output",
            template="Summarise: {input}\nSummary:",
        )
        other = names[(i + 1) % num]
        models[name] = Model(
            family=family,
            reward=("short", "long")[i % 2],
            train=Training(steps=8, batch_size=8, learning_rate=3e-3, optimizer="sgd", gradient_clip=None),
            sources=[
                Real(data=name, weight=0.5),
                Raw(producer=other, inputs=other, weight=0.25),
                Curated(producer=other, inputs=other, weight=0.25, candidates=2),
            ],
            evaluate=[Evaluation(name="own", data=name)],
        )
    return Ecosystem(
        seed=0,
        space=Text(),
        data=data,
        rewards={"short": SummaryReward(length=3), "long": SummaryReward(length=8)},
        models=models,
        run=RunOptions(rounds=4),
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and what came out."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def point_of(eco: Ecosystem) -> Any:
    """The models as they start, moved a little, as nothing is the same for two models then and no gradient is zero."""
    point = open_point(eco, device="cpu")
    generator = torch.Generator().manual_seed(5)
    for network in point.networks.values():
        with torch.no_grad():
            for value in network.parameters().values():
                value += 0.02 * torch.randn(value.shape, generator=generator)
    return point


def whole(eco: Ecosystem, outputs: int, **keeping: Any) -> dict[str, float]:
    """All of an audit at the present parameters, and one what-if."""
    point = point_of(eco)
    models = {name: differentiable(network) for name, network in point.networks.items()}
    trainings = {name: model.train for name, model in eco.models.items()}
    size = Size(outputs=outputs, evaluation=outputs, answers=2)
    sampling, draws = timed(lambda: network_draws(point.world, point.networks, point.rewards, point.prompts, size, 0))
    if keeping.get("memory") == 0:
        keeping["spill"] = Path(tempfile.gettempdir())
    done = [0]

    def advance(count: int) -> None:
        done[0] += count

    gradients, bank = timed(lambda: build_bank(models, draws, trainings, advance=advance, **keeping))
    solving, found = timed(lambda: estimate(eco, bank, rounds=4))
    path = f"{eco.names[0]}.curation"
    answering, _ = timed(lambda: what_if(found, put(eco, path, 0.3)))
    return {
        "parameters": bank.models[0].num_params,
        "coordinates": bank.models[0].basis.size,
        "gradients": done[0],
        "sampling, s": sampling,
        "gradients, s": gradients,
        "gradients a second": done[0] / gradients,
        "solving, s": solving,
        "what-if, s": answering,
        "bank, MB": bank.nbytes / 1e6,
    }


def rates(eco: Ecosystem, num: int) -> dict[str, float]:
    """Samples a second of rows, and of what a matrix-free product is made of."""
    point = point_of(eco)
    model: Any = differentiable(point.networks["p"])
    texts = point.world.data["articles"].outputs
    assert isinstance(texts, list)
    batch = model.loss_batch(point.world.data["articles"].prompts[:num], texts[:num], torch.Generator().manual_seed(0))
    theta = model.parameters()
    v = torch.randn(sum(p.numel() for p in theta.values()), generator=torch.Generator().manual_seed(1))

    def drain(parts: Iterator[Any]) -> None:
        for _ in parts:
            pass

    drain(indexed_rows(model.losses, theta, tuple(part[:2] for part in batch), 2, model.chunks))  # the first call
    works: dict[str, Callable[[], Any]] = {
        "rows a second": lambda: drain(indexed_rows(model.losses, theta, batch, 8, model.chunks)),
        "tangents": lambda: products(model.losses, theta, batch, v, 8, model.chunks),
        "weighted gradients": lambda: weighted_gradient(model.losses, theta, batch, torch.ones(num), 8, model.chunks),
    }
    tokens = float((batch[2].amax(1) + 1).float().mean())
    best = dict.fromkeys(works, math.inf)
    for _ in range(REPEATS):  # in turns, as the machine is not equally fast all the time
        for name, work in works.items():
            best[name] = min(best[name], timed(work)[0])
    return {"parameters": len(v), "tokens a sample": tokens, **{name: num / best[name] for name in works}}


# --- tables ---------------------------------------------------------------------------------------------------------


def cases(model: Path | None, data: Path | None, scale: float) -> dict[str, list[tuple[str, float, dict[str, Any]]]]:
    """By table: name of a line, what grows, and what to measure."""

    def of(number: int) -> int:
        return max(4, int(number * scale))

    out: dict[str, list[tuple[str, float, dict[str, Any]]]] = {}
    if model is not None:
        real = {"model": str(model), "data": str(data)}
        out["SmolLM2-135M, rates by rank"] = [
            (f"rank {r}", r, {"what": "rates", "rank": r, "num": of(8), **real}) for r in (4, 8, 16)
        ]
        out["SmolLM2-135M, two models, rank 8, by outputs"] = [
            (f"{n} outputs", n, {"what": "whole", "rank": 8, "outputs": n, **real}) for n in (of(4), of(8), of(16))
        ]
    n = of(128)
    base = {"what": "whole", "rank": 8, "models": 2, "outputs": n}
    out["tiny model, two of them, rank 8, by outputs"] = [
        (f"{k} outputs", k, {**base, "outputs": k}) for k in (n // 2, n, 2 * n, 4 * n)
    ]
    out[f"tiny model, two of them, {n} outputs, by rank"] = [(f"rank {r}", r, {**base, "rank": r}) for r in (4, 8, 16)]
    out[f"tiny model, rank 8, {n} outputs, by models"] = [(f"{k} models", k, {**base, "models": k}) for k in (1, 2, 4)]
    out[f"tiny model, two of them, rank 8, {4 * n} outputs, kept in other ways"] = [
        (words, 0, {**base, "outputs": 4 * n, "keeping": keeping})
        for words, keeping in (
            ("samples' span, in memory", {"memory": 1 << 40}),
            ("samples' span, in files", {"memory": 0}),
            ("projection to 512", {"projection": 512}),
        )
    ]
    return out


def one(case: dict[str, Any]) -> dict[str, float]:
    """A line."""
    torch.set_num_threads(1)
    real = "model" in case
    eco = (
        ecosystem(Path(case["model"]), Path(case["data"]), case["rank"]) if real else tiny(case["models"], case["rank"])
    )
    keeping = case.get("keeping", {})
    found = rates(eco, case["num"]) if case["what"] == "rates" else whole(eco, case["outputs"], **keeping)
    return {**found, "peak, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Least-squares slope of log value against log size."""
    if len(set(sizes)) < 2 or min(values) <= 0:
        return None
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean = sum(x) / len(x)
    return sum((a - mean) * b for a, b in zip(x, y, strict=True)) / sum((a - mean) ** 2 for a in x)


def table(title: str, names: Sequence[str], sizes: Sequence[float], lines: Sequence[dict[str, float]]) -> str:
    """Markdown, with the exponents in the last line."""
    heads = list(lines[0])
    rows = [
        [name, *(f"{v:,.0f}" if v >= 1000 or v == int(v) else f"{v:.3g}" for v in line.values())]
        for name, line in zip(names, lines, strict=True)
    ]
    slopes = [exponent(sizes, [line[head] for line in lines]) for head in heads]
    if any(slope is not None for slope in slopes):
        rows.append(["grows as", *("" if slope is None else f"^{round(slope, 2) + 0.0:.2f}" for slope in slopes)])
    out = [f"**{title}**", "", "| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    return "\n".join(out + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_const", dest="scale", const="quick", default="usual")
    parser.add_argument("--long", action="store_const", dest="scale", const="long")
    parser.add_argument("--only", nargs="+", help="Tables whose title has one of these words.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print("\n" + json.dumps(one(json.loads(args.case))))
        return
    if args.model is not None and args.data is None:
        parser.error("MODEL without DATA")
    begun = time.perf_counter()
    for title, lines in cases(args.model, args.data, SCALES[args.scale]).items():
        if args.only and not any(word in title for word in args.only):
            continue
        found = []
        for name, _, case in lines:
            print(f"{title}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.language_bank", "--case", json.dumps(case)]
            done = subprocess.run(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True, text=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        print(table(title, [name for name, _, _ in lines], [size for _, size, _ in lines], found), flush=True)
    print(f"{time.perf_counter() - begun:,.0f} s in all, load {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
