"""Where an audit starts from: networks at their start, or after a round of a run, with the inputs that they answer next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import DataError, SettingError
from crossfeed.networks.base import Network
from crossfeed.networks.build import build
from crossfeed.networks.rewards import RewardFn
from crossfeed.networks.world import World, open_world
from crossfeed.record.folder import RunFolder
from crossfeed.retraining.options import choose_device
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.rounds import Loop
from crossfeed.retraining.run import build_rewards
from crossfeed.retraining.timing import Clock

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Point:
    """The models of an ecosystem at one moment of their loop.

    Attributes:
        world: Data, prompts and the ecosystem.
        networks: By model, with the parameters of that moment.
        rewards: By name.
        prompts: By model, (n,) what its last training set asked: inputs of its next outputs are drawn from there.
        round: Finished rounds; 0: the start.
        rounds_left: Rounds of the plan that are still to come, or the whole plan where none is.
        folder: The run; None: none.
        words: Where this is, in words.
    """

    world: World
    networks: Mapping[str, Network]
    rewards: Mapping[str, RewardFn]
    prompts: Mapping[str, Tensor]
    round: int
    rounds_left: int
    folder: RunFolder | None
    words: str


def open_point(
    eco: Ecosystem,
    run: str | Path | None = None,
    round: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Point:
    """Open the models.

    Args:
        eco: The ecosystem; of a run, its own.
        run: A run folder, finished, stopped or running; None: the models at their start, pretrained first where the spec asks for it.
        round: Of the run; None: its last finished one.
        device: Where the models go.
        progress: Called with (stage, done, in all).

    Raises:
        SettingError: a round without a run, or one that the run does not have.
        DataError: no round is finished, or files are damaged.
    """
    where = choose_device(device)
    world = open_world(eco)
    if run is None:
        if round is not None:
            raise SettingError(f"round: found {round} without a run; give the folder of a run")
        networks = build(world, where)
        rewards = build_rewards(world, where)
        loop = Loop(world, networks, rewards, Memory(), Clock(1, progress), minimal=True, keep_state=False)
        loop.prepare()
        prompts = {name: pool.prompts for name, pool in loop.state.pools.items()}
        trained = [name for name, model in eco.models.items() if model.pretrain is not None]
        words = "the models at their start" + (f", {', '.join(trained)} pretrained" if trained else "")
        return Point(world, networks, rewards, prompts, 0, eco.run.rounds, None, words)
    folder = RunFolder.open(run, allow_code=True)
    have = folder.rounds
    if not have:
        raise DataError(f"{folder.path}: no round is finished yet; wait for round 0")
    number = have[-1] if round is None else round
    if number not in have:
        raise SettingError(f"round: found {number}; {folder.path} has rounds {have[0]} to {have[-1]}")
    networks = build(world, where)
    for name, network in networks.items():
        network.load(folder.parameters(number, name))
    prompts = {name: folder.pool(number, name).prompts for name in eco.names}
    planned = int(folder.options.get("rounds") or eco.run.rounds)
    left = planned - number if planned > number else planned
    words = f"round {number} of the run in {folder.path}"
    return Point(world, networks, build_rewards(world, where), prompts, number, left, folder, words)
