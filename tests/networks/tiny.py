"""Ecosystems of networks small enough for tests, made on the spot: one function a kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import (
    CausalLM,
    Diffusion,
    Flow,
    FreshLM,
    Lora,
    MixtureData,
    RunOptions,
    SummaryReward,
    Text,
    TextsData,
    Training,
)
from crossfeed.describe.schema import (
    Curated,
    Ecosystem,
    Evaluation,
    HueBandReward,
    Images,
    ImagesData,
    LinearReward,
    Model,
    Raw,
    Real,
    Samples,
    Vectors,
)

RING = [[2 * math.cos(a * math.pi / 4), 2 * math.sin(a * math.pi / 4)] for a in range(8)]
STD = 0.2


def ring(num: int, seed: int) -> Tensor:
    """(num, 2) draws of the eight Gaussians."""
    random = torch.Generator().manual_seed(seed)
    means = torch.tensor(RING)[torch.randint(8, (num,), generator=random)]
    return means + STD * torch.randn(num, 2, generator=random)


def ring_log_prob(y: Tensor) -> Tensor:
    """Log-density of the eight Gaussians at y (n, 2)."""
    square = (y[:, None] - torch.tensor(RING)).square().sum(-1)
    return torch.logsumexp(-square / (2 * STD**2), 1) - math.log(8 * 2 * math.pi * STD**2)


def flows(*, share_real: float = 0.5, steps: int = 20, samples: int = 200, seed: int = 0, **changes: Any) -> Ecosystem:
    """Two flows on eight Gaussians: p takes real data, its own curated outputs and q's; q real data and p's raw outputs."""
    train = Training(steps=steps, batch_size=50, learning_rate=3e-3)
    family = Flow(width=16, bins=8)
    other = (1 - share_real) / 2
    fields: dict[str, Any] = {
        "seed": seed,
        "space": Vectors(dim=2),
        "data": {"ring": MixtureData(means=RING, std=STD)},
        "rewards": {"right": LinearReward(vector=[1.0, 0.0]), "up": LinearReward(vector=[0.0, 1.0])},
        "models": {
            "p": Model(
                family=family,
                reward="right",
                train=train,
                sources=[
                    Real(data="ring", weight=1 - 2 * other),
                    Curated(producer="p", weight=other, candidates=4),
                    Curated(producer="q", weight=other, candidates=4),
                ],
            ),
            "q": Model(
                family=family,
                reward="up",
                train=train,
                sources=[Real(data="ring", weight=1 - 2 * other), Raw(producer="p", weight=2 * other)],
            ),
        },
        "samples": Samples(per_round=samples),
        "run": RunOptions(rounds=2, evaluation_samples=64),
    }
    return Ecosystem(**(fields | changes))


def diffusions(*, steps: int = 4, samples: int = 16, seed: int = 0, **changes: Any) -> Ecosystem:
    """Two class-conditional diffusion models on the bundled photographs at 8 × 8."""
    family = Diffusion(
        channels=[8, 16], attention=[False, False], norm_groups=4, noise_levels=50, sampling_steps=3, head_dim=8
    )
    train = Training(steps=steps, batch_size=8, learning_rate=1e-3)
    fields: dict[str, Any] = {
        "seed": seed,
        "space": Images(file="sample:cifar10", rows=64, size=8),
        "data": {"photographs": ImagesData()},
        "rewards": {
            "warm": HueBandReward(bands=[(0.92, 1.0), (0.0, 0.17)]),
            "cool": HueBandReward(bands=[(0.5, 0.72)]),
        },
        "models": {
            name: Model(
                family=family,
                reward=reward,
                train=train,
                sources=[
                    Real(data="photographs", weight=0.5),
                    Curated(producer=name, weight=0.25, candidates=2),
                    Curated(producer=other, weight=0.25, candidates=2),
                ],
            )
            for name, other, reward in (("p", "q", "warm"), ("q", "p", "cool"))
        },
        "samples": Samples(per_round=samples),
        "run": RunOptions(rounds=2, evaluation_samples=8, generation_batch=8),
    }
    return Ecosystem(**(fields | changes))


def languages(
    folder: Path, *, lora: bool = True, dropout: float = 0.0, steps: int = 4, samples: int = 12, **changes: Any
) -> Ecosystem:
    """Two small language models with a vocabulary made on the spot; the texts are written into ``folder``."""
    for name, (verb, noun) in {"tools": ("sorts", "files"), "games": ("counts", "cards")}.items():
        rows = [
            {"input": f"Tool {i} {verb} {noun} of kind {i % 5}.", "output": f"{verb} {noun} {i % 5}"} for i in range(24)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    family = CausalLM(
        fresh=FreshLM(width=32, layers=1, heads=2, vocabulary=280),
        lora=Lora(rank=4, alpha=8, dropout=dropout) if lora else None,
        max_prompt_tokens=64,
        max_new_tokens=12,
        attention="eager",
    )
    train = Training(steps=steps, batch_size=6, learning_rate=3e-3)
    fields: dict[str, Any] = {
        "seed": 0,
        "space": Text(),
        "data": {
            name: TextsData(
                file=str(folder / f"{name}.jsonl"),
                input_column="input",
                answer_column="output",
                template="Summarise: {input}\nSummary:",
            )
            for name in ("tools", "games")
        },
        "rewards": {"short": SummaryReward(length=3), "long": SummaryReward(length=8)},
        "models": {
            name: Model(
                family=family,
                reward=reward,
                train=train,
                sources=[
                    Real(data=own, weight=0.5),
                    Raw(producer=name, weight=0.25),
                    Curated(producer=other, weight=0.25, candidates=2),
                ],
                evaluate=[Evaluation(name="own", data=own), Evaluation(name="cross", data=their)],
            )
            for name, other, reward, own, their in (
                ("p", "q", "short", "tools", "games"),
                ("q", "p", "long", "games", "tools"),
            )
        },
        "samples": Samples(per_round=samples),
        "run": RunOptions(rounds=2, evaluation_samples=8, generation_batch=8),
    }
    return Ecosystem(**(fields | changes))
