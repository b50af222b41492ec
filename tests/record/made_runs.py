"""Ecosystems and rounds made by hand for the tests of the record."""

from __future__ import annotations

from pathlib import Path

import torch

from crossfeed.describe import schema as s
from crossfeed.describe.load import load
from crossfeed.networks.world import Prompts, World
from crossfeed.record.folder import Metric, RoundRecord, RunFolder, Shown
from crossfeed.record.pool import Pool

SPEC = """\
name: two flows
seed: 3
space: {kind: vectors, dim: 2}
data:
  ring: {kind: mixture, means: [[1, 0], [0, 1], [-1, 0], [0, -1]], std: 0.1}
rewards:
  right: {kind: linear, vector: [1, 0]}
  up: {kind: linear, vector: [0, 1]}
models:
  p:
    family: {kind: flow, width: 8, bins: 4}
    reward: right
    train: {steps: 3, batch_size: 16}
    sources:
      - {kind: real, data: ring, weight: 0.5}
      - {kind: curated, producer: q, weight: 0.5, candidates: 3}
  q:
    family: {kind: flow, width: 8, bins: 4}
    reward: up
    train: {steps: 3, batch_size: 16}
    sources:
      - {kind: raw, producer: p, weight: 0.5}
      - {kind: real, data: ring, weight: 0.5}
samples: {per_round: 32}
"""


def ecosystem(folder: Path, text: str = SPEC) -> s.Ecosystem:
    spec = folder / "spec.yaml"
    spec.write_text(text)
    return load(spec, allow_code=True)


def world(medium: str, eco: s.Ecosystem | None = None, num: int = 5) -> World:
    """A world without data: ``num`` prompts."""
    if medium == "vectors":
        table = Prompts([""], [""], [""], torch.zeros(1, dtype=torch.int64), [-1])
        return World(eco, table, {}, medium, (2,))
    words = [f"prompt {i}" for i in range(num)]
    labels = torch.arange(num) if medium == "images" else torch.zeros(num, dtype=torch.int64)
    table = Prompts(["" if medium == "images" else "news"] * num, words, words, labels, list(range(num)))
    if medium == "images":
        return World(eco, table, {}, medium, (3, 8, 8), num, tuple(words))
    return World(eco, table, {}, medium, ())


def outputs(medium: str, num: int, generator: torch.Generator):
    if medium == "vectors":
        return torch.randn(num, 2, generator=generator)
    if medium == "images":
        return torch.randint(0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=generator)
    codes = torch.randint(0, 1000, (num,), generator=generator).tolist()
    return [f"answer {c} ü 漢 \x1b[31m\x00\n" if c % 7 else "" for c in codes]


def pool(medium: str, round: int, model: str, producer: str, *, num: int = 6, seed: int = 0, keep: bool = True) -> Pool:
    """Thirds of real rows, raw rows and picks among three; in round 0 real rows only."""
    g = torch.Generator().manual_seed(seed)
    kind = [("real", "raw", "curated")[i % 3 if round else 0] for i in range(num)]
    made = [k != "real" for k in kind]
    picks = [k == "curated" for k in kind]
    rewards = [torch.randn(3, dtype=torch.float64, generator=g).tolist() if p else [] for p in picks]
    prompts = torch.randint(0, 1 if medium == "vectors" else 5, (num,), generator=g)
    before = round - 1
    return Pool(
        ids=[f"r{round:04d}-{model}-{i:06d}" for i in range(num)],
        prompts=prompts,
        outputs=outputs(medium, num, g),
        source=[f"from {k}" for k in kind],
        kind=kind,
        producer=[producer if m else None for m in made],
        producer_round=[before if m else None for m in made],
        data=[None if m else "ring" for m in made],
        row=[None if m else i for i, m in enumerate(made)],
        parent=[f"r{before:04d}-{producer}-{i:06d}" if m else None for i, m in enumerate(made)],
        num_candidates=[3 if p else 0 for p in picks],
        rewards=rewards,
        picked=[i % 3 if p else -1 for i, p in enumerate(picks)],
        picker=["right" if p else None for p in picks],
        why=["Plackett–Luce, τ = 1" if p else None for p in picks],
        candidates=outputs(medium, 3 * sum(picks), g) if keep else None,
    )


def record(round: int, medium: str = "vectors", models: tuple[str, ...] = ("p", "q"), size: int = 6) -> RoundRecord:
    """A finished round whose numbers depend on its number alone."""
    g = torch.Generator().manual_seed(100 + round)
    other = {"p": "q", "q": "p"}
    found = RoundRecord(round)
    for at, name in enumerate(models):
        found.metrics.append(Metric(name, "alignment", "own", round + at / 3, 0.25))
        found.metrics.append(Metric(name, "delta", None, 1.0 / (round + 1)))
        found.pools[name] = pool(medium, round, name, other[name], num=size, seed=round + 7 * at)
        found.parameters[name] = {"w": torch.randn(4, 3, generator=g), "b": torch.zeros(2)}
        found.optimizers[name] = {"w.exp_avg": torch.randn(4, 3, generator=g)}
        prompts = torch.zeros(2, dtype=torch.int64)
        found.shown.append(Shown(name, "own", prompts, outputs(medium, 2, g), [0.5, -1.0]))
    found.seconds = {"training": 1.5}
    found.info = {"counts": {"p": {"real": 3}}, "odd": float("nan")}
    return found


def folder(path: Path, medium: str = "vectors", rounds: int = 0, text: str = SPEC, **options: object) -> RunFolder:
    """A new run with this many rounds, round 0 included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "news.jsonl").write_text('{"input": "a", "answer": "b"}\n')
    made = RunFolder.create(path, ecosystem(path.parent, text), spec_text=text, spec_file="spec.yaml", options=options)
    made.world = world(medium, made.eco)
    with made.writing():
        for number in range(rounds):
            made.commit(record(number, medium))
    return made


def equal_pools(one: Pool, other: Pool) -> bool:
    """Bit for bit."""
    for name in vars(one):
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, torch.Tensor):
            if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a != b:
            return False
    return True


def equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Names in the same order, types, shapes and bits."""
    return list(one) == list(other) and all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
        for a, b in zip(one.values(), other.values(), strict=True)
    )
