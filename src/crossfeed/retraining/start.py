"""What there is before round 1: data to pretrain on, and the pools that the first prompts are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor

from crossfeed.describe.networks import initial_data
from crossfeed.describe.schema import Ecosystem, Real
from crossfeed.networks.base import Outputs
from crossfeed.networks.randomness import generator
from crossfeed.networks.world import World
from crossfeed.record.pool import Pool, concatenate
from crossfeed.record.training_set import join
from crossfeed.retraining.assembling import data_rows
from crossfeed.retraining.counts import rows_per_round, source_counts

FRESH_ROWS = 1 << 18
"""Most rows drawn for pretraining from data that is drawn afresh."""


def shares_of(eco: Ecosystem, model: str, data: list[str]) -> dict[str, float]:
    """Shares of data sets, which sum to 1: by the weights of the model's real sources, equal where those are 0."""
    weights = dict.fromkeys(data, 0.0)
    for source in eco.models[model].sources:
        if isinstance(source, Real) and source.data in weights:
            weights[source.data] += source.weight
    total = sum(weights.values())
    return {name: weight / total if total else 1 / len(weights) for name, weight in weights.items()}


def start_pool(world: World, model: str) -> Pool:
    """The pool of round 0: as many rows of the model's first data as a round has. Nothing is trained on it."""
    shares = shares_of(world.eco, model, initial_data(world.eco, model))
    counts = source_counts(list(shares.values()), rows_per_round(world.eco, model))
    return _rows(world, model, dict(zip(shares, counts, strict=True)))


def pretraining_rows(world: World, model: str) -> tuple[Tensor, Outputs]:
    """Prompts and outcomes to pretrain on: all rows of the data, or as many as training will see.

    Several data sets are mixed by the weights of the real sources.
    """
    pretrain = world.eco.models[model].pretrain
    assert pretrain is not None
    everything = shares_of(world.eco, model, initial_data(world.eco, model))
    shares = {name: share for name, share in everything.items() if share > 0}
    seen = pretrain.steps * pretrain.batch_size * pretrain.accumulate
    sizes = [world.data[name].size for name in shares]
    limits = [(size or FRESH_ROWS) / share for size, share in zip(sizes, shares.values(), strict=True)]
    counts = source_counts(list(shares.values()), min(seen, int(min(limits))))
    prompts, outputs = [], []
    for (name, _), count in zip(shares.items(), counts, strict=True):
        stream = generator(world.eco.seed, 0, model, f"pretraining rows of {name}")
        _, some, answers = world.data[name].draw(count, stream)
        prompts.append(some)
        outputs.append(answers)
    return torch.cat(prompts), concatenate(outputs)


def _rows(world: World, model: str, counts: dict[str, int]) -> Pool:
    parts: list[Pool] = []
    for data, count in counts.items():
        if count:
            start = sum(map(len, parts))
            parts.append(data_rows(world, data, (model, data, "real"), count, 0, start))
    return join(parts)
