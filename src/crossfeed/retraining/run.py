"""Run real networks in the loop: from a spec to a run folder, or to a record in memory; stopped runs go on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from crossfeed.describe import schema
from crossfeed.errors import CheckFailedError, CrossfeedError, SettingError
from crossfeed.networks.base import Network
from crossfeed.networks.build import build
from crossfeed.networks.rewards import RewardFn, build_reward
from crossfeed.networks.world import World, open_world
from crossfeed.record.folder import RunFolder, is_run
from crossfeed.record.tracking import check, trackers
from crossfeed.record.training_set import Regime
from crossfeed.retraining.options import check_room, choose_device, choose_dtype, once_a_round, refuse_other
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.rounds import Loop
from crossfeed.retraining.stopping import Result
from crossfeed.retraining.summary import RoundSummary
from crossfeed.retraining.timing import Clock, Progress

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class NetworkRun:
    """A run of networks that has ended.

    Attributes:
        folder: The run folder, or the record in memory.
        eco: The ecosystem.
        result: ``finished`` (all rounds done), ``collapsed`` or ``diverged``.
        reason: Why it ended, in words.
        summaries: Of the rounds that this call ran.
        networks: The networks as they are now, by model.
    """

    folder: RunFolder | Memory
    eco: schema.Ecosystem
    result: Result
    reason: str
    summaries: list[RoundSummary] = field(default_factory=list, repr=False)
    networks: Mapping[str, Network] = field(default_factory=dict, repr=False)

    def metrics(self) -> pyarrow.Table:
        """All numbers as one long table: round, model, metric, domain, value, standard_error."""
        return self.folder.metrics()

    def summary(self) -> str:
        """What happened, in words; safe to print."""
        last = [str(self.summaries[-1])] if self.summaries else []
        return "\n".join([*last, f"{self.result}: {self.reason}"] if not last or self.result == "finished" else last)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        if isinstance(self.folder, Memory):
            from crossfeed.report.markup import text

            return f"<pre>{text(self.summary())}</pre>"
        from crossfeed.report.run_report import run_page

        return run_page(self.folder, None)


def run_networks(
    eco: schema.Ecosystem,
    folder: str | Path | Memory | None,
    *,
    rounds: int | None = None,
    resume: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] | None = None,
    regime: Regime | None = None,
    progress: Progress | None = None,
    report: Callable[[RoundSummary], None] | None = None,
    spec_text: str | None = None,
    spec_file: str | None = None,
    command: str = "",
    track: Sequence[str] = (),
    checkpoints: Literal["all", "last"] | None = None,
    minimal: bool = False,
    world: World | None = None,
    networks: Mapping[str, Network] | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
) -> NetworkRun:
    """Retrain the networks of an ecosystem on each other's outputs, round after round.

    Args:
        eco: The ecosystem; all its models are networks.
        folder: Where the run is recorded: new, or with ``resume`` the folder of a run that was stopped. None: nothing is
            written, and only metrics are kept, in memory; a :class:`Memory` likewise, with what it keeps.
        rounds: The last round, counted from 0, also when resuming. None: the spec's ``run.rounds``; when resuming a run
            that was stopped before it was done, what it was begun with.
        resume: Go on after the last finished round. A run resumed on the same device, with the same versions, continues bit
            for bit as it would have (on a CPU).
        device: ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: What forward passes compute in; parameters are float32. None: float32, or when resuming the run's.
        regime: ``replace``, ``accumulate`` or ``subsample``; None: the spec's, or when resuming the run's.
        progress: Called with (stage in words, done, in all).
        report: Called with the summary of each finished round.
        spec_text: The spec as it was written, for the record.
        spec_file: Its name.
        command: The command line, for the record.
        track: Also log metrics to ``wandb``, ``mlflow`` or ``trackio``.
        checkpoints: Keep ``all`` parameters or the ``last``; None: as the spec says.
        minimal: Measure alignment and diversity only: for many short runs in memory.
        world: The ecosystem's open world, when there is one.
        networks: Networks to use instead of new ones, by model, trained in place; for runs in memory.
        rewards: Rewards to use instead of the spec's, by name; for runs in memory.

    Returns:
        How the run ended, and its record.

    Raises:
        SettingError: an option that cannot be.
        CheckFailedError: a live check was violated; finished rounds are kept.
        CrossfeedError: the folder has another run, cannot be written, or has no room.
        KeyboardInterrupt: interrupted; says how to go on.

    Example:
        >>> from crossfeed.describe.schema import *
        >>> real, picked = Real(data="ring", weight=0.5), Curated(producer="p", weight=0.5, candidates=2)
        >>> model = Model(family=Flow(width=8), reward="right", sources=[real, picked], train=Training(steps=3))
        >>> eco = Ecosystem(
        ...     space=Vectors(dim=2), data={"ring": MixtureData(means=[[-1, 0], [1, 0]], std=0.1)},
        ...     rewards={"right": LinearReward(vector=[1, 0])}, models={"p": model}, samples=Samples(per_round=20))
        >>> done = run_networks(eco, None, rounds=2, device="cpu")
        >>> done.result, done.summaries[1].counts
        ('finished', {'p': {'real': 10, 'curated_p': 10}})
    """
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
        raise SettingError(f"rounds: found {rounds!r}; need a whole number, 1 or more")
    once_a_round(eco)
    where = choose_device(device)
    path = None if folder is None or isinstance(folder, Memory) else Path(folder)
    if path is None and track:
        raise SettingError(f"track: found {', '.join(track)} for a run in memory; give a folder")
    if path is not None and (networks is not None or rewards is not None):
        what = "networks" if networks is not None else "rewards"
        raise SettingError(f"{what}: found some together with a folder; a run in a folder is made from its spec alone")
    check(track)
    given = {"rounds": rounds, "dtype": dtype, "regime": regime, "checkpoints": checkpoints}
    options: dict[str, Any] = {"rounds": eco.run.rounds, "dtype": "float32", "regime": eco.samples.regime}
    options |= {"checkpoints": eco.run.checkpoints}
    options = {key: given[key] or value for key, value in options.items()} | {"device": str(where)}
    there, notes = _there(folder, resume), list[str]()
    if there is not None and there.options:
        notes += refuse_other(eco, there.eco or eco, options, there.options, given)
        same = there.eco is None or there.eco.run.checkpoints == eco.run.checkpoints
        chosen = checkpoints or (there.options["checkpoints"] if same else eco.run.checkpoints)  # may change on the way
        options = {**there.options, "checkpoints": chosen}
        if isinstance(there, RunFolder):
            there.checkpoints = chosen
    done = [] if there is None else there.rounds
    last = rounds or (options["rounds"] if len(done) <= options["rounds"] else eco.run.rounds)
    kind = choose_dtype(options["dtype"])
    clock = Clock(last, progress)
    with _deterministic(where), ExitStack() as stack:
        with clock.stage("models", "reading data, making the networks"):
            world = world or open_world(eco)
            models = dict(networks) if networks is not None else build(world, where, kind)
            judges = build_rewards(world, where) if rewards is None else rewards
        if path is not None:
            notes += check_room(world, models, path, last - max([0, *done]), options["checkpoints"])
        if there is None and path is not None:  # not before everything that can be wrong with the spec was found
            there = RunFolder.create(
                path, eco, spec_text=spec_text, spec_file=spec_file, command=command, options=options
            )
        recorder = there or Memory()
        if isinstance(recorder, Memory):
            recorder.eco, recorder.options = eco, options
        else:
            recorder.world = world
        stack.enter_context(recorder.writing())
        loop = Loop(
            world,
            models,
            judges,
            recorder,
            clock,
            regime=options["regime"],
            dtype=kind,
            minimal=minimal,
            keep_state=not isinstance(recorder, Memory) or recorder.keep == "all",
        )
        summaries: list[RoundSummary] = []
        told = [] if isinstance(recorder, Memory) or not track else [stack.enter_context(trackers(track, recorder))]

        def tell(summary: RoundSummary) -> None:
            summary.notes[:0] = [notes.pop(0) for _ in range(len(notes))]
            summaries.append(summary)
            if report is not None:
                report(summary)
            for tracker in told:
                tracker(summary.round)

        result, reason = _go(loop, last, tell, recorder)
    return NetworkRun(recorder, eco, result, reason, summaries, models)


def _go(
    loop: Loop, last: int, tell: Callable[[RoundSummary], None], recorder: RunFolder | Memory
) -> tuple[Result, str]:
    """All rounds up to the last, or to the end; the record is told how it ended."""
    ended: tuple[Result, str] | None = None
    try:
        if recorder.rounds:
            ended = loop.resume()
        else:
            tell(loop.start())
        while ended is None and loop.state.round < last:
            summary = loop.round()
            tell(summary)
            ended = summary.ended
    except KeyboardInterrupt:
        kept = f"interrupted in round {loop.state.round + 1}; finished rounds are kept"
        if isinstance(recorder, RunFolder):
            kept += f"; go on with `crossfeed run {shlex.quote(str(recorder.path))} --resume`"
        raise KeyboardInterrupt(kept) from None
    except CheckFailedError as error:
        recorder.finish("failed", str(error))
        raise
    how: tuple[Result, str] = ended or ("finished", f"all {loop.state.round} rounds are done")
    recorder.finish(*how)
    return how


def _there(folder: str | Path | Memory | None, resume: bool) -> RunFolder | Memory | None:
    """The record that is there already; None where a new one is to be made.

    Raises:
        SettingError, CrossfeedError: there is one and it is not to be resumed, or the other way round.
    """
    if folder is None:
        return None
    if isinstance(folder, Memory):
        if folder.records and not resume:
            raise SettingError("folder: found a record in memory that has a run; give a new Memory(), or resume=True")
        return folder
    if resume:
        return RunFolder.open(folder, allow_code=True)
    if is_run(folder):
        raise CrossfeedError(
            f"{folder}: holds a run already; go on with `crossfeed run {shlex.quote(str(folder))} --resume`, or give another "
            "folder"
        )
    return None


def build_rewards(world: World, device: torch.device) -> dict[str, RewardFn]:
    """The rewards that somebody uses, ready."""
    eco = world.eco
    used: set[str] = set()
    for model in eco.models.values():
        used |= {model.reward} | {e.reward or model.reward for e in model.evaluate or []}
        for source in model.sources:
            for stage in source.stages if isinstance(source, schema.Curated) else []:
                used |= {name for name in (stage.curator, stage.other_curator) if name}
    return {name: build_reward(node, world, device, name) for name, node in eco.rewards.items() if name in used}


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, the algorithms that give the same bits each time."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
