"""Sixty-four small ecosystems of networks, drawn by number; half of them are held out from development.

Forty of two to four flows on the plane trained by plain SGD, twelve of the same trained by AdamW, twelve of small language models.
Mixtures, data, numbers of candidates, temperatures and rewards (from aligned to opposed) are drawn at random. Which are held out
was fixed by one seed before any of them was run.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from crossfeed.describe.network_nodes import (
    CausalLM,
    Flow,
    FreshLM,
    Lora,
    MixtureData,
    Pretraining,
    RunOptions,
    Stop,
    SummaryReward,
    Text,
    TextsData,
    Training,
)
from crossfeed.describe.schema import (
    Curated,
    Ecosystem,
    LinearReward,
    Model,
    QuadraticReward,
    Raw,
    Real,
    Samples,
    Vectors,
)
from crossfeed.estimate.points import open_point
from crossfeed.networks.language import LanguageModel

NUM = 64
SPLIT_SEED = 20261121
HELD_OUT = frozenset(random.Random(SPLIT_SEED).sample(range(NUM), NUM // 2))
ROUNDS, STEPS, PER_ROUND = 12, 60, 2000
TEXT_PRETRAINING = 300
"""Steps, of language models and of the bases of adapters."""


def kind_of(number: int) -> str:
    """``sgd``, ``adamw`` (flows) or ``language``."""
    place = number % 16
    return "sgd" if place < 10 else "adamw" if place < 13 else "language"


def ecosystem(number: int, folder: Path) -> Ecosystem:
    """Ecosystem ``number``; texts are written into ``folder``."""
    draw = random.Random(f"prediction {number}")
    return _language(number, draw, folder) if kind_of(number) == "language" else _flows(number, draw)


def _flows(number: int, draw: random.Random) -> Ecosystem:
    names = ["p", "q", "r", "s"][: draw.choice([2, 3, 4])]
    data = {f"data_{name}": _mixture(draw) for name in names}
    first = draw.uniform(0, 2 * math.pi)
    rewards: dict[str, Any] = {}
    for name in names:
        angle = first + (draw.uniform(0, math.pi) if name != "p" else 0.0)
        way = [math.cos(angle), math.sin(angle)]
        if draw.random() < 0.7:
            rewards[name] = LinearReward(vector=way)
        else:
            rewards[name] = QuadraticReward(vector=[1.5 * 0.5 * x for x in way], matrix=-0.5)
    adam = kind_of(number) == "adamw"
    train = Training(
        steps=STEPS,
        batch_size=500,
        optimizer="adamw" if adam else "sgd",
        learning_rate=1e-3 if adam else 0.01,
        gradient_clip=1.0 if adam else None,
    )
    models = {
        name: Model(
            family=Flow(width=16, layers=2, bins=8),
            reward=name,
            sources=_sources(draw, name, names),
            train=train,
            pretrain=Pretraining(steps=400, batch_size=500, learning_rate=5e-3, schedule="cosine"),
        )
        for name in names
    }
    return Ecosystem(
        name=f"prediction {number}",
        seed=number,
        space=Vectors(dim=2),
        data=data,
        rewards=rewards,
        models=models,
        samples=Samples(per_round=PER_ROUND),
        run=RunOptions(rounds=ROUNDS, evaluation_samples=8192, stop=Stop(collapse=0)),
    )


def _mixture(draw: random.Random) -> MixtureData:
    means = [[draw.uniform(-2, 2), draw.uniform(-2, 2)] for _ in range(draw.randint(3, 6))]
    return MixtureData(means=means, std=draw.uniform(0.2, 0.5))


def _sources(draw: random.Random, name: str, names: list[str], coldness: float = 1.0) -> list[Any]:
    """Real data, own and others' picks, own and others' raw outputs; 25 to 60 % picked, at least 15 % real."""
    others = [other for other in names if other != name]
    curation = draw.uniform(0.25, 0.6)
    real = draw.uniform(0.15, 1.0) * (1 - curation)
    real = max(real, 0.15)
    raw = 1 - curation - real
    picked = [name, draw.choice(others)] if draw.random() < 0.8 else [draw.choice([name, *others])]
    plain = [draw.choice(names)] if draw.random() < 0.6 else [name, draw.choice(others)]
    out: list[Any] = [Real(data=f"data_{name}", weight=real)]
    for producer, weight in zip(picked, _shares(draw, len(picked), curation), strict=True):
        temperature = coldness * draw.choice([0.0, 0.3, 1.0, 1.0, 2.0])
        candidates = draw.choice([2, 4, 8])
        out.append(Curated(producer=producer, weight=weight, candidates=candidates, temperature=temperature))
    for producer, weight in zip(plain, _shares(draw, len(plain), raw), strict=True):
        out.append(Raw(producer=producer, weight=weight))
    return out


def _shares(draw: random.Random, count: int, total: float) -> list[float]:
    if count == 1:
        return [total]
    first = draw.uniform(0.2, 0.8)
    return [total * first, total * (1 - first)]


VERBS = ["sorts", "counts", "prints", "reads", "checks", "copies", "merges", "lists", "finds", "shows"]
NOUNS = ["files", "cards", "notes", "words", "lines", "names", "parts", "codes", "keys", "maps"]


def _language(number: int, draw: random.Random, folder: Path) -> Ecosystem:
    """Small Llamas that shorten made-up sentences to one to five words; people like short or long answers.

    Every sentence stands in the data with answers of all lengths, so that a model is a distribution and picks have something to choose.
    Half of the ecosystems train every parameter, half adapters on one base that was trained on everybody's texts.
    """
    names = ["p", "q", "r"][: draw.choice([2, 2, 3])]
    data = {}
    for name in names:
        verbs, nouns = draw.sample(VERBS, 4), draw.sample(NOUNS, 4)
        odds = [draw.uniform(0.2, 1) for _ in range(5)]
        rows = []
        for _ in range(16):
            words = [draw.choice(verbs), draw.choice(nouns), "and", draw.choice(nouns), "fast"]
            for length in draw.choices(range(1, 6), odds, k=24):
                rows.append({"input": " ".join(words) + ".", "output": " ".join(words[:length])})
        path = folder / f"texts-{number}-{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data[f"data_{name}"] = TextsData(
            file=str(path), input_column="input", answer_column="output", template="{input}\n"
        )
    lengths = {name: draw.choice([1, 2, 3, 4, 5]) for name in names}
    fresh = CausalLM(
        fresh=FreshLM(width=32, layers=2, heads=2, vocabulary=300),
        max_prompt_tokens=32,
        max_new_tokens=12,
        attention="eager",
    )
    lora, adam = draw.random() < 0.5, draw.random() < 0.5
    rate = 1e-3 if adam else 0.1
    train = Training(
        steps=40, batch_size=64, optimizer="adamw" if adam else "sgd", learning_rate=rate * (2 if lora else 1)
    )
    pretrain = Pretraining(steps=TEXT_PRETRAINING, batch_size=64, learning_rate=5e-3, schedule="cosine")
    family = fresh
    if lora:
        base = _base(number, folder, fresh, data, pretrain)
        family = fresh.model_copy(update={"fresh": None, "pretrained": base, "lora": Lora(rank=8, alpha=16)})
    models = {
        name: Model(
            family=family,
            reward=name,
            sources=_sources(draw, name, names, coldness=0.2),
            train=train,
            pretrain=pretrain,
        )
        for name in names
    }
    return Ecosystem(
        name=f"prediction {number}",
        seed=number,
        space=Text(),
        data=data,
        rewards={name: SummaryReward(length=lengths[name]) for name in names},
        models=models,
        samples=Samples(per_round=512),
        run=RunOptions(rounds=ROUNDS, evaluation_samples=2048, generation_batch=1024, stop=Stop(collapse=0)),
    )


def _base(number: int, folder: Path, family: CausalLM, data: dict[str, Any], pretrain: Pretraining) -> str:
    """One network trained on everybody's texts, in the usual files; made once."""
    base = folder / f"base-{number:02d}"
    if not (base / "config.json").exists():
        own: list[Any] = [Real(data=name, weight=1 / len(data)) for name in data]
        eco = Ecosystem(
            name="base",
            seed=number,
            space=Text(),
            data=data,
            rewards={"any": SummaryReward()},
            models={
                "base": Model(family=family, reward="any", sources=own, train=Training(steps=1), pretrain=pretrain)
            },
            samples=Samples(per_round=64),
            run=RunOptions(rounds=1, evaluation_samples=8),
        )
        trained = open_point(eco, device="cpu").networks["base"]
        assert isinstance(trained, LanguageModel)
        trained.base.tokenizer.save_pretrained(base)
        trained.base.network.save_pretrained(base)
    return str(base)
