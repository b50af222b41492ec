"""How well a model does: alignment on every evaluation domain, diversity, distance to real data, and outputs to show.

The inputs are fixed by the seed and the same in every round and for every model; the outputs are fresh. Evaluations of one
model on the same inputs share their outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.networks import evaluation_data
from crossfeed.describe.schema import Evaluation
from crossfeed.errors import CheckFailedError
from crossfeed.networks import measures
from crossfeed.networks.base import Network, Outputs
from crossfeed.networks.randomness import generator, passes
from crossfeed.networks.rewards import RewardFn
from crossfeed.networks.world import World
from crossfeed.record.pool import concatenate, take
from crossfeed.record.round import Metric, Shown
from crossfeed.retraining.counts import source_counts
from crossfeed.retraining.start import shares_of
from crossfeed.retraining.timing import Clock

SHOWN = {"vectors": 256, "images": 48, "text": 48}
"""Outputs kept for showing, a model and round, all its evaluations together."""


@dataclass(frozen=True)
class Evaluated:
    """What one model's evaluation found.

    Attributes:
        metrics: With standard errors.
        shown: Outputs to show.
        diversity: Of the first evaluation's outputs.
        counts: How many outputs there are, differ and are empty, by evaluation.
        rewards: Of texts, prompts and rewards by evaluation: inputs differ much, so that rounds are compared input by input.
    """

    metrics: list[Metric]
    shown: list[Shown]
    diversity: float | None
    counts: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Evaluates models on the evaluations of a spec.

    Args:
        world: Data and prompts.
        rewards: By name.
        minimal: Alignment and diversity only: no distance, no further measures, nothing to show.
    """

    def __init__(self, world: World, rewards: Mapping[str, RewardFn], minimal: bool = False) -> None:
        self.world, self.rewards, self.minimal = world, rewards, minimal
        self._real: dict[str, Outputs] = {}
        self._inputs: dict[tuple[tuple[str, ...], int], Tensor] = {}

    def of(self, network: Network, round: int, clock: Clock) -> Evaluated:
        """Evaluate one network after a round.

        Raises:
            CheckFailedError: outputs or rewards that are not finite.
        """
        eco, name = self.world.eco, network.name
        metrics: list[Metric] = []
        shown: list[Shown] = []
        counts: dict[str, Any] = {}
        rewards: dict[str, Any] = {}
        nodes = eco.models[name].evaluate or [Evaluation(name="own")]
        outputs: dict[tuple[tuple[str, ...], int], Outputs] = {}
        room = SHOWN[self.world.medium] // len(nodes)
        first: tuple[Tensor, Outputs] | None = None
        for evaluation in nodes:
            key = (tuple(evaluation_data(eco, name, evaluation)), evaluation.samples or eco.run.evaluation_samples)
            prompts = self.inputs(*key)
            if key not in outputs:
                outputs[key] = self._answers(network, prompts, f"evaluation {'+'.join(key[0])} {key[1]}", round, clock)
                counts[evaluation.name] = degenerate(outputs[key])
            answers = outputs[key]
            first = first or (prompts, answers)
            reward = evaluation.reward or eco.models[name].reward
            with clock.stage("rewards", f"{name}: rewards", len(prompts)):
                where = f"round {round}, models.{name}.evaluate.{evaluation.name}"
                values = finite_rewards(self.rewards[reward], reward, where, prompts, answers)
            error = standard_error(values, prompts if self.world.medium == "text" else None)
            metrics.append(Metric(name, "alignment", evaluation.name, float(values.mean()), error))
            if self.world.medium == "text" and not self.minimal:
                rewards[evaluation.name] = {"prompts": prompts.tolist(), "rewards": values.tolist()}
            if room and not self.minimal:
                some = take(answers, torch.arange(min(room, len(prompts))))
                few = some.cpu() if isinstance(some, Tensor) else some
                shown.append(Shown(name, evaluation.name, prompts[:room], few, values[:room].tolist()))
        assert first is not None
        diversity = self._measure(name, *first, metrics, clock)
        return Evaluated(metrics, shown, diversity, counts, rewards)

    def _measure(self, name: str, prompts: Tensor, answers: Outputs, metrics: list[Metric], clock: Clock) -> float:
        """Diversity, and what else is measured on the first evaluation's outputs."""
        medium = self.world.medium
        with clock.stage("measures", f"{name}: measuring"):
            diversity = float(measures.diversity(answers, medium))
            metrics.append(Metric(name, "diversity", None, diversity, None))
            if self.minimal:
                return diversity
            real = self.real_outputs(name)
            if real is not None:
                value, error = measures.distance(answers, real, medium)
                metrics.append(Metric(name, "distance_to_data", None, value, error))
            for key, (value, error) in measures.extras(answers, prompts, self.world).items():
                metrics.append(Metric(name, key, None, value, error))
        return diversity

    def inputs(self, data: tuple[str, ...], num: int) -> Tensor:
        """``num`` prompts out of the inputs of some data sets: fixed by the seed, none twice before all came once."""
        if (data, num) not in self._inputs:
            self._inputs[data, num] = evaluation_inputs(self.world, data, num)
        return self._inputs[data, num]

    def real_outputs(self, model: str) -> Outputs | None:
        """As many rows of a model's own real data as are evaluated, drawn once; None where it has none."""
        if model not in self._real:
            eco = self.world.eco
            shares = shares_of(eco, model, evaluation_data(eco, model))
            counts = source_counts(list(shares.values()), eco.run.evaluation_samples)
            parts = []
            for name, count in zip(shares, counts, strict=True):
                data = self.world.data[name]
                num = count if data.size is None else min(count, data.size)
                if num and (data.outputs is not None or data.fresh is not None):
                    parts.append(data.draw(num, generator(eco.seed, 0, name, "real rows to compare with"))[2])
            self._real[model] = concatenate(parts) if parts else []
        found = self._real[model]
        return found if len(found) else None

    def _answers(self, network: Network, prompts: Tensor, purpose: str, round: int, clock: Clock) -> Outputs:
        eco = self.world.eco
        with clock.stage("evaluation", f"{network.name}: answering for evaluation", len(prompts)) as advance:
            outputs = network.sample(
                prompts,
                torch.ones(len(prompts), dtype=torch.int64),
                generator(eco.seed, round, network.name, purpose, network.device),
                evaluating=True,
                batch_size=eco.run.generation_batch,
                advance=advance,
            )
        if isinstance(outputs, Tensor) and outputs.is_floating_point() and not bool(torch.isfinite(outputs).all()):
            raise CheckFailedError(
                f"round {round}, models.{network.name}: outputs are not finite; lower train.learning_rate, set "
                "train.gradient_clip, or add real data"
            )
        return outputs


def evaluation_inputs(world: World, data: tuple[str, ...], num: int) -> Tensor:
    """``num`` prompts out of the inputs of some data sets, by the seed alone; none twice before all came once."""
    pool = torch.cat([world.data[name].inputs() for name in data])
    return pool[passes(len(pool), num, generator(world.eco.seed, 0, "+".join(data), "evaluation inputs"))]


def degenerate(outputs: Outputs) -> dict[str, int]:
    """How many outputs there are, how many differ, and of texts how many are empty.

    Example:
        >>> degenerate(["a", "", "a"])
        {'outputs': 3, 'distinct': 2, 'empty': 1}
    """
    if isinstance(outputs, list):
        return {"outputs": len(outputs), "distinct": len(set(outputs)), "empty": sum(not t.strip() for t in outputs)}
    rows = outputs.reshape(len(outputs), -1).cpu().contiguous().numpy()
    return {"outputs": len(outputs), "distinct": len({row.tobytes() for row in rows})}


def standard_error(values: Tensor, prompts: Tensor | None = None) -> float | None:
    r"""Standard error of the mean over prompts; answers to one prompt count as one observation.

    With C prompts and u_c the sum of value − mean over prompt c's answers, √(C/(C−1) Σ_c u_c²)/n. Where every prompt is
    answered once it is the usual s/√n.

    Args:
        values: (n,).
        prompts: (n,) the prompt of each; None: all count as different.

    Returns:
        None for fewer than two prompts.

    Example:
        >>> standard_error(torch.tensor([1.0, 3.0]))
        1.0
    """
    off = (values - values.mean()).double()
    if prompts is not None:
        _, group = prompts.unique(return_inverse=True)
        off = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, off)
    count = len(off)
    return math.sqrt(count / (count - 1) * float(off.square().sum())) / len(values) if count > 1 else None


def finite_rewards(reward: RewardFn, name: str, where: str, prompts: Tensor, outputs: Outputs) -> Tensor:
    """Rewards (n,) float64, checked to be finite.

    Raises:
        CheckFailedError: some are not; says which reward, where and how many.
    """
    try:
        values = reward(prompts, outputs).to("cpu", torch.float64)
    except CheckFailedError as error:
        raise CheckFailedError(f"{where}: {error}") from error
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise CheckFailedError(
            f"{where}: {int(bad.sum()):,} of {len(values):,} rewards by {name} are not finite, the first of output "
            f"{int(bad.nonzero()[0, 0])}; mend the reward so that every output gets a finite number"
        )
    return values
