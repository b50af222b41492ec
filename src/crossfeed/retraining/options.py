"""What is settled before a run begins: device, precision, room on the disk, and whether a run may go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from crossfeed.describe import schema
from crossfeed.describe.schema import CausalLM, Curated, Ecosystem
from crossfeed.dynamics.rounds import cycle_length, steps_of_round
from crossfeed.errors import CrossfeedError, SettingError
from crossfeed.networks.base import Network
from crossfeed.networks.world import World
from crossfeed.record.spec_copy import comparable
from crossfeed.retraining.counts import rows_per_round, source_counts

_FREE = ("name", "description", "audit", "scales", "run.rounds", "run.checkpoints", "run.generation_batch")
"""Parts of a spec that may differ when a run goes on: no number of a round depends on them, beyond rounding."""

_BYTES_A_TOKEN = 5
_COMPRESSED_IMAGE = 0.8


def choose_device(name: str) -> torch.device:
    """The device by name; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        SettingError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if (device.index or 0) >= there.get(device.type, 0):
        have = [kind if number == 1 else f"cuda:0 to cuda:{number - 1}" for kind, number in there.items() if number]
        raise SettingError(f"device: found {name!r}; need auto or one that is here: {', '.join(have)}")
    return device


def choose_dtype(name: str) -> torch.dtype:
    """What forward passes compute in, by name.

    Raises:
        SettingError: neither float32 nor bfloat16.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in kinds:
        raise SettingError(f"dtype: found {name!r}; need float32 or bfloat16")
    return kinds[name]


def once_a_round(eco: Ecosystem) -> None:
    """Check that the update order trains a network at most once a round.

    Raises:
        SettingError: it does not; says where and how to write it.
    """
    order = eco.update.order
    for number in range(cycle_length(order) if isinstance(order, schema.Cycle) else 0):
        names = [i for step in steps_of_round(order, eco.names, number) for i in step]
        twice = next((i for i in names if names.count(i) > 1), None)
        if twice is not None:
            raise SettingError(
                f"update.order.rounds[{number}]: found {eco.names[twice]!r} in two steps of one round; need each network at "
                "most once a round: make two rounds of it"
            )


def refuse_other(
    eco: Ecosystem,
    there: Ecosystem,
    fresh: Mapping[str, Any],
    kept: Mapping[str, Any],
    given: Mapping[str, Any],
) -> list[str]:
    """Check that a run may go on; what the user should know.

    Args:
        eco: The spec now.
        there: The spec of the run.
        fresh: Options now, defaults filled in.
        kept: Options of the run.
        given: Options that were asked for; None where not.

    Raises:
        SettingError: something differs that the run's numbers depend on; says what.
    """
    other = [f"{path}: {was} there, {now} now" for path, was, now in differences(there, eco)]
    other += [
        f"{key}: {kept[key]} there, {given[key]} now"
        for key in ("dtype", "regime")
        if given[key] not in (None, kept[key])
    ]
    if other:
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        raise SettingError(
            f"resume: this is not the spec of the run that is there ({'; '.join(other[:5])}{more}); resume with the spec in "
            "the run's folder, or start a new run in another folder"
        )
    if kept["device"] != fresh["device"]:
        return [
            f"note: the run began on {kept['device']} and goes on on {fresh['device']}; the rounds are valid, but bit for bit "
            "as an uninterrupted run only on one device"
        ]
    return []


def differences(one: Ecosystem, other: Ecosystem) -> list[tuple[str, str, str]]:
    """(path, value in one, value in the other) of everything that differs and matters to a run."""
    a, b = _flat(comparable(one)), _flat(comparable(other))
    paths = [path for path in {**a, **b} if a.get(path) != b.get(path)]
    matter = [path for path in paths if not any(path == free or path.startswith(f"{free}.") for free in _FREE)]
    return [(path, _short(a.get(path)), _short(b.get(path))) for path in matter]


def check_room(world: World, networks: Mapping[str, Network], folder: Path, rounds: int, checkpoints: str) -> list[str]:
    """Compare what a run will write with the room there is.

    Args:
        world: Data and ecosystem.
        networks: Built networks.
        folder: Where the run is recorded.
        rounds: How many rounds are still to come.
        checkpoints: ``all`` or ``last``.

    Returns:
        A warning, if it takes more than 80 % of the room.

    Raises:
        CrossfeedError: it takes more than there is.
    """
    need = bytes_needed(world, networks, rounds, checkpoints)
    there = folder if folder.exists() else folder.parent
    free = shutil.disk_usage(there).free
    if need <= 0.8 * free:
        return []
    ways = "keep fewer checkpoints (run.checkpoints: last), no candidates (run.record_candidates: false), or use another disk"
    found = f"{folder}: the run will write about {_size(need)}, and {_size(free)} are free"
    if need > free:
        raise CrossfeedError(f"{found}; {ways}")
    return [f"note: {found}; if that is too close, {ways}"]


def bytes_needed(world: World, networks: Mapping[str, Network], rounds: int, checkpoints: str) -> float:
    """Bytes that a run of so many rounds writes, roughly: checkpoints, optimiser states, samples and candidates."""
    eco = world.eco
    total = 0.0
    for name, model in eco.models.items():
        sizes = [value.numel() * value.element_size() for value in networks[name].parameters().values()]
        keeps = model.train is not None and model.train.keep_optimizer and model.train.optimizer == "adamw"
        kept = rounds + 1 if checkpoints == "all" else min(rounds + 1, 3)
        total += kept * sum(sizes) * (3 if keeps else 1)
        one = _bytes_an_output(world, model)
        num = rows_per_round(eco, name)
        outputs = float(num)
        choice = eco.run.record_candidates
        if world.medium != "images" if choice is None else choice:
            counts = source_counts([s.weight for s in model.sources], num)
            for source, count in zip(model.sources, counts, strict=True):
                for stage in source.stages if isinstance(source, Curated) else []:
                    count *= int(stage.candidates)
                outputs += count if isinstance(source, Curated) else 0
        total += rounds * outputs * one
    return total


def _bytes_an_output(world: World, model: schema.Model) -> float:
    if isinstance(model.family, CausalLM):
        return float(_BYTES_A_TOKEN * model.family.max_new_tokens)
    size = 1.0
    for length in world.shape:
        size *= length
    return size * (_COMPRESSED_IMAGE if world.medium == "images" else 4.0)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by path; lists of plain values are leaves."""
    if isinstance(value, dict) and value:
        inside = [(f"{path}.{key}" if path else str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        inside = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for place, part in inside for key, leaf in _flat(part, place).items()}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _size(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"
