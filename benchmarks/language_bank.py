"""What the audit of a real language model costs: gradients a second, memory, seconds a what-if, and how they grow.

``python -m benchmarks.language_bank MODEL DATA [--outputs 16 32]``: MODEL a folder of a transformers model (SmolLM2-135M-Instruct in
benchmarks/README.md), DATA the folder with debian_synopsis_train.parquet and coedit_paraphrase_train.parquet. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch

from crossfeed.describe.load import load
from crossfeed.describe.settings import put
from crossfeed.estimate.audit import audit_networks
from crossfeed.estimate.derivatives import products, weighted_gradient
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.points import open_point
from crossfeed.estimate.what_if import what_if

EXAMPLE = Path(__file__).parents[1] / "examples/language/mismatch.yaml"


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


def measure(eco: Any, outputs: int) -> dict[str, float]:
    """One audit and one what-if."""
    size = Size(outputs=outputs, evaluation=outputs, answers=2)
    point = open_point(eco, device="cpu")
    audit = audit_networks(eco, point=point, size=size, rounds=4, look_ahead=False)
    start = time.perf_counter()
    what_if(audit.estimate, put(eco, "p.curation", 0.3))
    took = time.perf_counter() - start
    bank = audit.bank
    rows = {id(r): len(r) for s in bank.sources for r in (s.loss, s.score, s.curvature) if r is not None}
    rows |= {id(e.score): len(e.score) for e in bank.evaluations}
    return {
        "outputs": outputs,
        "parameters": bank.models[0].num_params,
        "coordinates": bank.models[0].basis.size,
        "gradients": sum(rows.values()),
        "sampling": audit.seconds["sampling"],
        "gradients a second": sum(rows.values()) / audit.seconds["gradients"],
        "solving": audit.seconds["solving"],
        "what-if": took,
        "raw gradients, MB": sum(rows.values()) * bank.models[0].num_params * 4 / 1e6,
        "bank, MB": bank.nbytes / 1e6,
    }


def matrix_free(eco: Any, num: int) -> tuple[float, float]:
    """Samples a second of a tangent and of a weighted gradient, which a matrix-free product is made of."""
    point = open_point(eco, device="cpu")
    model = differentiable(point.networks["p"])
    texts = point.world.data["articles"].outputs
    assert isinstance(texts, list)
    prompts = point.world.data["articles"].prompts[:num]
    batch = model.loss_batch(prompts, texts[:num], torch.Generator().manual_seed(0))
    theta = model.parameters()
    v = torch.randn(sum(p.numel() for p in theta.values()), generator=torch.Generator().manual_seed(1))
    split = getattr(model, "chunks")  # noqa: B009
    rates = []
    for work in (
        lambda: products(model.losses, theta, batch, v, 8, split),
        lambda: weighted_gradient(model.losses, theta, batch, torch.ones(num), 8, split),
    ):
        start = time.perf_counter()
        work()
        rates.append(num / (time.perf_counter() - start))
    return rates[0], rates[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--outputs", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    args = parser.parse_args()
    found = [measure(ecosystem(args.model, args.data, rank), n) for rank in args.ranks for n in args.outputs]
    print("| " + " | ".join(found[0]) + " |\n|" + "--:|" * len(found[0]))
    for row in found:
        print("| " + " | ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()) + " |")
    tangent, gradient = matrix_free(ecosystem(args.model, args.data, args.ranks[-1]), 16)
    print(
        f"\nMatrix-free, rank {args.ranks[-1]}: {tangent:.2f} tangents and {gradient:.2f} weighted gradients a second."
    )
    print(f"Peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB.")


if __name__ == "__main__":
    main()
