"""The retraining loop of networks, one round after another.

A round maps a state to the next: for every step of the update order, the new rows of its models are made from the networks and
training sets before the step, then each is trained on its own from its current parameters. Random numbers come from streams
keyed by (seed, round, model, purpose), so that a resumed run continues as the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossfeed.dynamics.rounds import steps_of_round
from crossfeed.errors import SettingError
from crossfeed.networks.base import LIKELIHOOD, Network, Outputs
from crossfeed.networks.randomness import child_seed, generator
from crossfeed.networks.rewards import RewardFn
from crossfeed.networks.training import Trained, train
from crossfeed.networks.world import World
from crossfeed.record.pool import Pool
from crossfeed.record.round import Metric, RoundRecord, Shown
from crossfeed.record.training_set import Regime
from crossfeed.retraining.assembling import new_rows
from crossfeed.retraining.checks import check_trained
from crossfeed.retraining.evaluation import Evaluator
from crossfeed.retraining.recorder import Recorder, copies
from crossfeed.retraining.requests import Want, generate, wants_of
from crossfeed.retraining.start import pretraining_rows, start_pool
from crossfeed.retraining.state import State, read_state
from crossfeed.retraining.stopping import Result
from crossfeed.retraining.summary import RoundSummary, alignment_of
from crossfeed.retraining.timing import Clock


@dataclass
class Findings:
    """What a round found out, besides the next state.

    Attributes:
        trained: What training did, by model; the models that were retrained.
        before: ‖θ‖ before the round, of those.
        checks: What the live checks saw, by model.
        counts: New rows by model and source.
        rows: New rows by model.
        shown: Outputs to show.
        outputs: How many outputs of each evaluation are distinct or empty, by model.
        evaluations: Prompts and rewards of each evaluation of texts, by model.
    """

    trained: dict[str, Trained] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, Pool] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Any] = field(default_factory=dict)

    @property
    def deltas(self) -> dict[str, float]:
        """Δ = ‖θ' − θ‖/‖θ‖ of the models that were retrained; none from the origin."""
        return {n: done.moved / self.before[n] for n, done in self.trained.items() if self.before[n] > 0}

    @property
    def losses(self) -> dict[str, float]:
        """Mean training loss of the models that were retrained."""
        return {name: done.mean_loss for name, done in self.trained.items()}


class Loop:
    """The loop over the networks of one ecosystem.

    Args:
        world: Data, prompts and the ecosystem.
        networks: By model, in the order of the spec; trained in place.
        rewards: By name.
        recorder: Gets every finished round.
        clock: Told what is going on; knows the last round.
        regime: What a model is trained on.
        dtype: Of forward passes.
        minimal: Measure alignment and diversity only, and keep nothing to show.
        keep_state: Give parameters and rows to the record; False when nobody will resume.
    """

    def __init__(
        self,
        world: World,
        networks: Mapping[str, Network],
        rewards: Mapping[str, RewardFn],
        recorder: Recorder,
        clock: Clock,
        *,
        regime: Regime = "replace",
        dtype: torch.dtype = torch.float32,
        minimal: bool = False,
        keep_state: bool = True,
    ) -> None:
        self.world, self.networks, self.recorder, self.clock = world, networks, recorder, clock
        self.eco, self.rewards, self.regime, self.dtype = world.eco, rewards, regime, dtype
        self.keep_state = keep_state
        self.evaluator = Evaluator(world, rewards, minimal)
        self.state = State()
        choice = self.eco.run.record_candidates
        self.keep_candidates = keep_state and (world.medium != "images" if choice is None else choice)

    def start(self) -> RoundSummary:
        """Round 0: pretrain where asked, draw the pools of the first prompts, evaluate."""
        found = self.prepare()
        self.state.watch.begin(self._evaluate(self.eco.names, 0, found))
        return self._finish(0, found, None)

    def prepare(self) -> Findings:
        """The part of round 0 before evaluation: pretrain where asked, draw the pools of the first prompts."""
        self.clock.begin(0)
        found = Findings()
        for name, model in self.eco.models.items():
            self.state.begin(name, start_pool(self.world, name))
            found.rows[name] = self.state.pools[name]
            if model.pretrain is not None:
                with self.clock.stage("data", f"{name}: reading data"):
                    prompts, outputs = pretraining_rows(self.world, name)
                self._train(name, prompts, outputs, 0, found)
        return found

    def round(self) -> RoundSummary:
        """The next round, committed when it is over."""
        state, eco = self.state, self.eco
        number = state.round + 1
        self.clock.begin(number)
        found = Findings()
        for index, step in enumerate(steps_of_round(eco.update.order, eco.names, number - 1)):
            names = [eco.names[i] for i in step]
            wants = {name: wants_of(eco, name, number) for name in names}
            found.counts |= {name: {w.name: w.count for w in mine} for name, mine in wants.items()}
            rows = self._rows([w for mine in wants.values() for w in mine], number, index)
            found.rows |= rows
            for name in names:
                pool = state.collect(name, rows[name], number, self.regime, eco.seed)
                self._train(name, pool.prompts, pool.outputs, number, found)
        diversity = self._evaluate(list(found.trained), number, found)
        scale = {n: 1.0 if LIKELIHOOD in self.networks[n].capabilities else 0.0 for n in found.trained}
        ended = state.watch.after(eco.run.stop, number, diversity, found.losses, scale)
        return self._finish(number, found, ended)

    def resume(self) -> tuple[Result, str] | None:
        """Take up the state after the last finished round of the record; how the run ended with it, if it did."""
        self.state = read_state(self.recorder, self.networks, self.regime)
        ended = self.recorder.round_info(self.state.round).get("ended")
        return None if ended is None else (ended["result"], ended["reason"])

    # --- parts of a round ------------------------------------------------------------------------------------------

    def _rows(self, wants: list[Want], number: int, step: int) -> dict[str, Pool]:
        """New rows of the models of a step."""
        state = self.state
        with self._seeded(number, None, f"generation {step}"), torch.no_grad():
            made = generate(self.world, wants, self.networks, state.pools, number, step, self.clock)
            keep = self.keep_candidates
            return new_rows(self.world, self.rewards, wants, made, state.pools, state.trained, number, keep, self.clock)

    def _train(self, name: str, prompts: Tensor, outputs: Outputs, number: int, found: Findings) -> None:
        """Train one network, in place, and check that it took."""
        network, model = self.networks[name], self.eco.models[name]
        training = model.train if number else model.pretrain
        if training is None:
            raise SettingError(f"models.{name}.train: missing; networks need it, e.g. `train: {{steps: 500}}`")
        found.before[name], probe = norm(network), network.probe()
        what = f"{name}: {'training' if number else 'pretraining'}"
        with self._seeded(number, name, "training"), self.clock.stage("training", what, training.steps) as advance:
            done = train(
                network,
                prompts,
                outputs,
                training,
                number,
                generator(self.eco.seed, number, name, "training", network.device),
                dtype=self.dtype,
                optimizer_state=self.state.optimizers[name],
                advance=advance,
            )
        if number:  # pretraining has an optimiser of its own
            self.state.optimizers[name] = done.optimizer_state
        found.trained[name] = done
        found.checks[name] = check_trained(network, number, done.moved, found.before[name], probe)

    def _evaluate(self, names: list[str], number: int, found: Findings) -> dict[str, float]:
        """Evaluate these models; the diversity of all, the others' from before."""
        measured = self.state.measured
        for name in names:
            with self._seeded(number, name, "evaluation"), torch.no_grad():
                result = self.evaluator.of(self.networks[name], number, self.clock)
            measured[name] = result.metrics
            found.shown += result.shown
            found.outputs[name] = result.counts
            found.evaluations |= {name: result.rewards} if result.rewards else {}
        return {m.model: m.value for mine in measured.values() for m in mine if m.metric == "diversity"}

    def _finish(self, number: int, found: Findings, ended: tuple[Result, str] | None) -> RoundSummary:
        """Commit the round and say what happened."""
        metrics = [m for name in self.eco.models for m in self._metrics(name, number, found)]
        info = {
            "updated": list(found.trained),
            "counts": found.counts,
            "checks": found.checks,
            "outputs": found.outputs,
            **({"evaluations": found.evaluations} if found.evaluations else {}),
            "ended": None if ended is None else {"result": ended[0], "reason": ended[1]},
            **self.state.info(),
        }
        record = RoundRecord(number, metrics, shown=found.shown, seconds=dict(self.clock.seconds), info=info)
        if self.keep_state:
            record.pools = found.rows
            record.parameters = {name: copies(self.networks[name].parameters()) for name in found.rows}
            kept = {name: self.state.optimizers[name] for name in found.rows}
            record.optimizers = {name: copies(tensors) for name, tensors in kept.items() if tensors}
        with self.clock.stage("record", "writing"):
            self.recorder.commit(record)
        self.state.round = number
        took = self.clock.end()
        return RoundSummary(
            number,
            self.clock.rounds,
            alignment_of(metrics),
            found.losses,
            found.deltas if number else {},
            found.counts,
            dict(self.clock.seconds),
            took,
            self.clock.left,
            ended,
        )

    def _metrics(self, name: str, number: int, found: Findings) -> list[Metric]:
        """A model's metrics of a round: of its training, where it was retrained, and of its outputs."""
        out = [Metric(name, "curation", None, share, None) for share in curated_share(found.rows.get(name), number)]
        done = found.trained.get(name)
        if done is not None:
            out += [Metric(name, "loss", "first", done.first_loss, None)]
            out += [Metric(name, "loss", "last", done.last_loss, None)]
            out += [Metric(name, "gradient_norm", None, done.gradient_norm, None)]
        if number:
            out += [Metric(name, "moved", None, done.moved if done else 0.0, None)]
            delta = found.deltas.get(name) if done else 0.0
            out += [] if delta is None else [Metric(name, "delta", None, delta, None)]
        return out + self.state.measured[name]

    @contextmanager
    def _seeded(self, number: int, model: str | None, purpose: str) -> Iterator[None]:
        """Give torch's own generators a seed of this stage, and put them back: dropout draws from them."""
        seed = child_seed(self.eco.seed, number, model, f"global {purpose}")
        devices = {network.device for network in self.networks.values() if network.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            before = torch.default_generator.get_state()
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would look for devices, which takes longer
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            try:
                yield
            finally:
                torch.default_generator.set_state(before)


def norm(network: Network) -> float:
    """‖θ‖ of the trained parameters."""
    with torch.no_grad():
        return float(torch.nn.utils.get_total_norm(list(network.parameters().values())))


def curated_share(rows: Pool | None, number: int) -> list[float]:
    """The share of new rows that people picked, as a list: empty in round 0 and for models that were left out."""
    if rows is None or number == 0:
        return []
    return [sum(kind in ("curated", "picks") for kind in rows.kind) / len(rows)]
