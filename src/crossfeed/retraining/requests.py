"""What a step needs, and its generation in as few calls as possible.

All models of a step see the networks and training sets from before the step. What they want of one producer is gathered
over all of them and made in one call a sampling temperature, with as many candidates a prompt as will be offered: K for
picks, K₁·K₂ for two stages, 1 for raw outputs. Nothing else is generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.describe.schema import Curated, Ecosystem, Picks, Raw, Real, Source, source_names
from crossfeed.networks.base import Network, Outputs
from crossfeed.networks.randomness import child_seed, generator, passes
from crossfeed.networks.world import World
from crossfeed.record.pool import Pool
from crossfeed.retraining.counts import rows_per_round, source_counts
from crossfeed.retraining.picking import outputs_a_row
from crossfeed.retraining.timing import Clock


@dataclass(frozen=True)
class Want:
    """Rows that one source of one model has to deliver in a round."""

    consumer: str
    name: str
    source: Source
    count: int

    @property
    def candidates(self) -> int:
        """Outputs to generate a row."""
        return outputs_a_row(self.source, f"models.{self.consumer}.sources.{self.name}")


@dataclass(frozen=True)
class Made:
    """Outputs for one want.

    Attributes:
        rows: Where each row's prompt comes from: a row of the producer's pool, or of the data set whose inputs are answered.
        prompts: The prompts.
        outputs: ``candidates`` of each row.
    """

    rows: Tensor
    prompts: Tensor
    outputs: Outputs


def wants_of(eco: Ecosystem, model: str, round: int) -> list[Want]:
    """What a model's sources have to deliver in a round, in the order of the spec."""
    sources = eco.models[model].sources
    seed = child_seed(eco.seed, round, model, "counts")
    counts = source_counts([s.weight for s in sources], rows_per_round(eco, model), eco.samples.counts, seed)
    names = source_names(eco.models[model])
    return [Want(model, name, s, count) for name, s, count in zip(names, sources, counts, strict=True)]


def generate(
    world: World,
    wants: Sequence[Want],
    networks: Mapping[str, Network],
    pools: Mapping[str, Pool],
    round: int,
    step: int,
    clock: Clock,
) -> dict[int, Made]:
    """Outputs for all wants of a step that are generated, by position in ``wants``.

    Prompts are drawn from the producer's pool, or from the data set that a source names, for all wants of the producer
    together, without replacement while rows last, then in whole passes again.

    Args:
        world: Data, prompts and the ecosystem.
        wants: Of all models of the step.
        networks: By model.
        pools: What each model was trained on last.
        round: From 1.
        step: Of the round, from 0: a part of the streams' keys.
        clock: Told what is going on.
    """
    made: dict[int, Made] = {}
    eco = world.eco
    for producer in eco.names:
        mine = {i: w for i, w in enumerate(wants) if w.count and _producer(w.source) == producer}
        if not mine:
            continue
        network = networks[producer]
        by_temperature: dict[float, list[int]] = {}
        by_inputs: dict[str | None, list[int]] = {}
        for i, want in mine.items():
            assert isinstance(want.source, (Raw, Curated))
            by_temperature.setdefault(want.source.sampling_temperature, []).append(i)
            by_inputs.setdefault(want.source.inputs, []).append(i)
        rows: dict[int, Tensor] = {}
        asked: dict[int, Tensor] = {}
        for data, members in by_inputs.items():
            pool = pools[producer].prompts if data is None else world.data[data].inputs()
            purpose = f"prompts {step}" if data is None else f"prompts {step} of {data}"
            sizes = [mine[i].count for i in members]
            drawn = passes(len(pool), sum(sizes), generator(eco.seed, round, producer, purpose))
            rows |= dict(zip(members, drawn.split(sizes), strict=True))
            asked |= {i: pool[rows[i]] for i in members}
        for temperature, members in by_temperature.items():
            prompts = torch.cat([asked[i] for i in members])
            candidates = torch.cat([torch.full((mine[i].count,), mine[i].candidates) for i in members])
            sizes = [mine[i].count * mine[i].candidates for i in members]
            stream = generator(eco.seed, round, producer, f"generation {step} {temperature!r}", network.device)
            with clock.stage("generation", f"{producer}: generating", sum(sizes)) as advance:
                outputs = network.sample(
                    prompts,
                    candidates,
                    stream,
                    temperature=temperature,
                    batch_size=eco.run.generation_batch,
                    advance=advance,
                )
            for i, part in zip(members, _split(outputs, sizes), strict=True):
                made[i] = Made(rows[i], asked[i], part)
    return made


def _producer(source: Source) -> str | None:
    return None if isinstance(source, (Real, Picks)) else source.producer


def _split(outputs: Outputs, sizes: Sequence[int]) -> list[Outputs]:
    if isinstance(outputs, Tensor):
        return list(outputs.split(list(sizes)))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [outputs[a : a + n] for a, n in zip(starts, sizes, strict=True)]
