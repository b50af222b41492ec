"""New rows of a training set with their origin: real rows, outputs as they come, and what people picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.schema import Affine, Curated, Ecosystem, Picks, Raw, Real
from crossfeed.errors import CheckFailedError
from crossfeed.families.spaces import as_matrix, tensor
from crossfeed.networks.base import Outputs
from crossfeed.networks.randomness import generator
from crossfeed.networks.rewards import RewardFn
from crossfeed.networks.world import World
from crossfeed.record.pool import Pool, take
from crossfeed.record.training_set import join
from crossfeed.retraining.picking import Picked, pick_among
from crossfeed.retraining.requests import Made, Want
from crossfeed.retraining.timing import Clock


def data_rows(world: World, data: str, want: tuple[str, str, str], num: int, round: int, start: int = 0) -> Pool:
    """``num`` rows of a data set, without replacement while rows last.

    Args:
        world: Where the data is.
        data: Name of the data set.
        want: Model, name of the source, and kind.
        num: How many rows.
        round: The round they are for.
        start: Number of the first row in the round's new rows.
    """
    model, source, kind = want
    there, draw = world.data[data], generator(world.eco.seed, round, model, f"rows of {source}")
    if there.outputs is None and there.fresh is None:  # inputs without answers: prompts of round 0
        index = there.positions(num, draw)
        chosen = [there.rows[i] for i in index.tolist()]
        return _pool(model, round, start, there.prompts[index], [""] * num, source, kind, data=[data] * num, row=chosen)
    rows, prompts, outputs = there.draw(num, draw)
    return _pool(model, round, start, prompts, outputs, source, kind, data=[data] * num, row=list(rows))


def new_rows(
    world: World,
    rewards: Mapping[str, RewardFn],
    wants: Sequence[Want],
    made: Mapping[int, Made],
    pools: Mapping[str, Pool],
    trained: Mapping[str, int],
    round: int,
    keep: bool,
    clock: Clock,
) -> dict[str, Pool]:
    """The new rows of every model of a step, by model, in the order of their sources.

    Args:
        world: Data, prompts and the ecosystem.
        rewards: By name.
        wants: Of all models of the step.
        made: What was generated for them, by position.
        pools: What each model was trained on last; where prompts came from.
        trained: The round in which each model was trained last; 0 for its start.
        round: From 1.
        keep: Keep candidates.
        clock: Told what is going on.

    Raises:
        CheckFailedError: rewards that are not finite.
    """
    parts: dict[str, list[Pool]] = {}
    for i, want in enumerate(wants):
        mine = parts.setdefault(want.consumer, [])
        start = sum(map(len, mine))
        source = want.source
        if not want.count:
            continue
        if isinstance(source, (Real, Picks)):
            kind = "real" if isinstance(source, Real) else "picks"
            mine.append(data_rows(world, source.data, (want.consumer, want.name, kind), want.count, round, start))
        else:
            producer, rows = source.producer, made[i].rows.tolist()
            origin: dict[str, Any] = {
                "producer": [producer] * want.count,
                "producer_round": [trained[producer]] * want.count,
            }
            if source.inputs is None:
                origin["parent"] = [pools[producer].ids[row] for row in rows]
            else:
                known = world.data[source.inputs].rows
                origin |= {"data": [source.inputs] * want.count, "row": [known[row] for row in rows]}
            with clock.stage("picking", f"{want.consumer}: {want.name}", want.count):
                mine.append(_from_model(world.eco, rewards, want, made[i], origin, round, start, keep))
    return {model: join(found) for model, found in parts.items()}


def _from_model(
    eco: Ecosystem,
    rewards: Mapping[str, RewardFn],
    want: Want,
    made: Made,
    origin: dict[str, Any],
    round: int,
    start: int,
    keep: bool,
) -> Pool:
    source, columns, outputs = want.source, dict(origin), made.outputs
    assert isinstance(source, (Raw, Curated))
    if isinstance(source, Curated):
        picked = _pick(eco, rewards, want, made, round)
        size = want.candidates
        outputs = take(outputs, torch.arange(want.count) * size + picked.index)
        columns |= {
            "num_candidates": [size] * want.count,
            "rewards": picked.rewards.tolist(),
            "picked": picked.index.tolist(),
            "picker": picked.picker,
            "why": picked.why,
            "candidates": _on_cpu(made.outputs) if keep else None,
        }
    if source.map is not None:
        outputs = mapped(source.map, outputs)
    return _pool(want.consumer, round, start, made.prompts, _on_cpu(outputs), want.name, source.kind, **columns)


def _pick(eco: Ecosystem, rewards: Mapping[str, RewardFn], want: Want, made: Made, round: int) -> Picked:
    source, size = want.source, want.candidates
    assert isinstance(source, Curated)

    def reward(name: str, index: Tensor) -> Tensor:
        some = made.outputs if len(index) == want.count * size else take(made.outputs, index)
        return rewards[name](made.prompts[index // size], some)

    draw = generator(eco.seed, round, want.consumer, f"picks of {want.name}")
    try:
        return pick_among(source, eco.models[source.producer].reward, want.count, reward, draw)
    except CheckFailedError as error:
        raise CheckFailedError(f"round {round}, models.{want.consumer}.sources.{want.name}: {error}") from error


def mapped(map: Affine, outputs: Outputs) -> Tensor:
    """Z ↦ matrix z + shift on vectors (n, dim), in double precision; as in the closed forms, after the pick."""
    assert isinstance(outputs, Tensor)
    z = outputs.to("cpu", torch.float64)
    if map.matrix is not None:
        z = z @ as_matrix(map.matrix, z.shape[-1]).T
    if map.shift is not None:
        z = z + tensor(map.shift)
    return z.to(outputs.dtype)


def _pool(
    model: str, round: int, start: int, prompts: Tensor, outputs: Outputs, source: str, kind: str, **columns: Any
) -> Pool:
    """Rows of one source; what is not given is as for rows that nobody made and nobody picked."""
    num = len(prompts)
    nothing: list[Any] = [None] * num
    usual: dict[str, Any] = {
        **dict.fromkeys(("producer", "producer_round", "data", "row", "parent", "picker", "why"), nothing),
        "num_candidates": [0] * num,
        "rewards": [[] for _ in range(num)],
        "picked": [-1] * num,
    }
    ids = [f"r{round:04d}-{model}-{row:06d}" for row in range(start, start + num)]
    return Pool(
        ids=ids, prompts=prompts, outputs=outputs, source=[source] * num, kind=[kind] * num, **(usual | columns)
    )


def _on_cpu(outputs: Outputs) -> Outputs:
    return outputs.cpu() if isinstance(outputs, Tensor) else outputs
