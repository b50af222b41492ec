"""Where the loop is between two rounds: exactly what resuming needs, as it is kept and as it is read back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from crossfeed.networks.base import Network
from crossfeed.networks.randomness import child_seed
from crossfeed.record.pool import Pool
from crossfeed.record.round import Metric
from crossfeed.record.training_set import Recipe, Regime, recipe
from crossfeed.retraining.recorder import Recorder
from crossfeed.retraining.stopping import Watch

OF_TRAINING = ("loss", "delta", "moved", "gradient_norm", "curation")
"""Metrics of a round's training; all others are measured on the model's outputs and hold until it is retrained."""


@dataclass
class State:
    """Everything but the parameters, which the networks hold.

    Attributes:
        round: Finished rounds; −1 before the start.
        pools: What each model was trained on last; in round 0, where its first prompts come from.
        trained: Round in which each model was retrained last; 0 for never.
        recipes: Of which recorded rows each pool is made.
        collected: By model, the new rows of all its rounds, where the regime looks back.
        optimizers: State of optimisers that are kept.
        measured: What the last evaluation of each model found.
        watch: What stopping watches.
    """

    round: int = -1
    pools: dict[str, Pool] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    collected: dict[str, dict[int, Pool]] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Tensor] | None] = field(default_factory=dict)
    measured: dict[str, list[Metric]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)

    def begin(self, name: str, pool: Pool) -> None:
        """A model's start, with the pool of its first prompts."""
        self.pools[name], self.trained[name], self.recipes[name] = pool, 0, Recipe([0])
        self.collected[name], self.optimizers[name] = {}, None

    def collect(self, name: str, rows: Pool, round: int, regime: Regime, seed: int) -> Pool:
        """Add a model's new rows of a round; its training set.

        Args:
            name: The model.
            rows: The new rows.
            round: The round.
            regime: What of all rows it trains on.
            seed: The spec's seed.
        """
        kept = {} if regime == "replace" else self.collected[name]
        sizes = [*map(len, kept.values()), len(rows)]
        made = recipe(regime, list(kept), round, sizes, child_seed(seed, round, name, "subsample"))
        kept[round] = rows
        self.pools[name], self.trained[name], self.recipes[name] = made.of(kept.__getitem__), round, made
        return self.pools[name]

    def info(self) -> dict[str, Any]:
        """What the record of a round keeps of it, as JSON: all that is neither tensors nor rows."""
        return {
            "trained": dict(self.trained),
            "training_sets": {name: made.info() for name, made in self.recipes.items()},
            "stopping": copy.deepcopy(self.watch.info()),
        }


def read_state(recorder: Recorder, networks: Mapping[str, Network], regime: Regime) -> State:
    """The state after the last finished round of a record; the networks get their parameters.

    Raises:
        DataError: a file of the record is damaged, or belongs to other networks.
    """
    last = recorder.rounds[-1]
    info = recorder.round_info(last)
    state = State(last, watch=Watch.read(copy.deepcopy(info["stopping"])))
    rows = [row for row in recorder.metrics().to_pylist() if row["round"] == last]
    for name, network in networks.items():
        network.load(recorder.parameters(last, name))
        state.optimizers[name] = recorder.optimizer(last, name)
        state.trained[name] = info["trained"][name]
        state.recipes[name] = made = Recipe.read(info["training_sets"][name])
        new = {round: recorder.pool(round, name) for round in made.rounds}
        state.pools[name] = made.of(new.__getitem__)
        state.collected[name] = new if regime != "replace" and state.trained[name] else {}
        state.measured[name] = [
            Metric(name, row["metric"], row["domain"], row["value"], row["standard_error"])
            for row in rows
            if row["model"] == name and row["metric"] not in OF_TRAINING
        ]
    return state
