"""Samples of networks as they are now, and of their data: what an estimate is made of, in as few outputs as possible.

What several sources take from one producer, at one sampling temperature and on the same inputs, is generated once: groups of 8
candidates serve as four groups of 2 and as eight raw outputs too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Text
from crossfeed.describe.networks import evaluation_data
from crossfeed.describe.schema import Curated, Ecosystem, Evaluation, Picks, Raw, Real, Source, source_names
from crossfeed.describe.settings import weight_direction
from crossfeed.errors import DataError, NotAvailableError, SettingError
from crossfeed.estimate.composition import first_of_each
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, one_each, with_rules
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.picks import pick_probabilities, pick_rewards
from crossfeed.estimate.recorded import Recorded
from crossfeed.networks.base import RSAMPLE, Network, Outputs
from crossfeed.networks.randomness import generator, passes
from crossfeed.networks.rewards import RewardFn
from crossfeed.networks.world import World
from crossfeed.retraining.assembling import mapped
from crossfeed.retraining.evaluation import evaluation_inputs, finite_rewards
from crossfeed.retraining.picking import outputs_a_row

Advance = Callable[[int], None]
_IDLE = 8
_BLOCK = 64
"""Most outputs without inputs whose groups are shuffled among each other, and that count as one cluster."""
_BLOCKS = 60
"""Clusters of such outputs that there should be at least."""


@dataclass(frozen=True)
class Size:
    """How many samples.

    Attributes:
        outputs: Of every producer, for each of its inputs and sampling temperatures; and rows of every data set.
        evaluation: Answers of every model on each evaluation.
        answers: Answers to one prompt of an evaluation, where there are inputs.
    """

    outputs: int = 1500
    evaluation: int = 4000
    answers: int = 4

    @property
    def on_the_way(self) -> Size:
        """At all places but the last: of evaluations only the mean reward is asked."""
        return Size(self.outputs, max(64, self.evaluation // 2), self.answers)

    @property
    def pilot(self) -> Size:
        """What tells where the loop goes before an audit in one place."""
        return Size(max(64, self.outputs // 2), max(64, self.evaluation // 4), self.answers)


@dataclass(frozen=True)
class _Made:
    """n prompts of a producer with K outputs each, and their start noise where they were drawn pathwise."""

    prompts: Tensor
    outputs: Outputs
    size: int
    first_cluster: int
    noise: Tensor | None = None
    block: int = 1


Key = tuple[str, str | None, float, int]


class _Maker:
    def __init__(
        self,
        world: World,
        networks: Mapping[str, Network],
        rewards: Mapping[str, RewardFn],
        prompts: Mapping[str, Tensor],
        size: Size,
        seed: int,
        advance: Advance | None,
        pathwise: Collection[str],
        recorded: Mapping[str, Recorded],
        first_cluster: int,
    ) -> None:
        self.world, self.eco, self.networks, self.rewards = world, world.eco, networks, rewards
        self.smooth = {name: differentiable(networks[name]) for name in pathwise}
        self.prompts, self.size, self.seed, self.advance = prompts, size, seed, advance
        self.text = isinstance(self.eco.space, Text)
        self.next_cluster = len(world.prompts) if self.text else first_cluster
        self.first = first_of_each(world.prompts.texts) if self.text else torch.zeros(0, dtype=torch.int64)
        self.made: dict[Key, _Made] = {}
        self.judged: dict[tuple[Key, str], Tensor] = {}
        self.largest = _largest(self.eco)
        self.recorded = recorded
        self.moving = _moving(self.eco)

    def clusters(self, prompts: Tensor) -> Tensor:
        """Groups hang together by the prompt's words where prompts are texts, wherever these stand; else each stands alone."""
        if self.text:
            return self.first[prompts]
        out = torch.arange(self.next_cluster, self.next_cluster + len(prompts))
        self.next_cluster += len(prompts)
        return out

    def source(self, consumer: str, name: str, source: Source) -> SourceDraw:
        if isinstance(source, (Real, Picks)):
            return self._data(consumer, name, source)
        where = f"models.{consumer}.sources.{name}"
        size = outputs_a_row(source, where)
        key = self._key(source, size)
        made = self._make(key)
        groups = made.size // size  # of each prompt
        prompts = made.prompts.repeat_interleave(groups)
        chances = one_each(len(prompts))
        known: dict[str, Tensor] = {}
        if isinstance(source, Curated) and size > 1:
            people = self.eco.models[source.producer].reward
            known = {r: self._judge(key, r, where).view(-1, size) for r in pick_rewards(source, people)}
            chances = pick_probabilities(source, people, known).expand(len(prompts), -1)
            picked = self._picked(source, size, where)
            if picked is not None:
                chances, known = torch.nn.functional.one_hot(picked, size).double(), {}
        outputs = made.outputs if source.map is None else mapped(source.map, made.outputs)
        return SourceDraw(
            consumer=consumer,
            name=name,
            weight=source.weight,
            producer=source.producer,
            clusters=self._clusters_of(made).repeat_interleave(groups),
            prompts=prompts,
            outputs=outputs,
            probabilities=chances,
            made=None if source.map is None else made.outputs,
            temperature=source.sampling_temperature,
            rewards=known,
            noise=made.noise,
            interchangeable=True,
        )

    def evaluation(self, model: str, evaluation: Evaluation) -> EvaluationDraw:
        network = self.networks[model]
        reward = evaluation.reward or self.eco.models[model].reward
        answers = self.size.answers if self.text else 1
        asked = tuple(evaluation_data(self.eco, model, evaluation))
        prompts = evaluation_inputs(self.world, asked, max(1, self.size.evaluation // answers))
        draw = generator(self.seed, 0, model, f"estimate: answers on {evaluation.name}", network.device)
        outputs: Outputs
        noise: Tensor | None = None
        if model in self.smooth:
            outputs, noise = self._smooth(model, prompts.repeat_interleave(answers), draw, evaluating=True)
        else:
            count = torch.full((len(prompts),), answers)
            batch = self.eco.run.generation_batch
            outputs = network.sample(prompts, count, draw, evaluating=True, batch_size=batch, advance=self.advance)
        where = f"models.{model}.evaluate.{evaluation.name}"
        values = finite_rewards(self.rewards[reward], reward, where, prompts.repeat_interleave(answers), outputs)
        return EvaluationDraw(
            model, evaluation.name, self.clusters(prompts), prompts, outputs, values.view(-1, answers), noise
        )

    def _data(self, consumer: str, name: str, source: Real | Picks) -> SourceDraw:
        data = self.world.data[source.data]
        asked = self.size.outputs if (consumer, name) in self.moving or source.weight else _IDLE
        num = asked if data.size is None else min(asked, data.size)
        if not num:
            raise DataError(f"data.{source.data}: found no rows; need at least one")
        draw = generator(self.seed, 0, consumer, f"estimate: rows of {name}")
        _, prompts, outputs = data.draw(num, draw)
        return SourceDraw(
            consumer=consumer,
            name=name,
            weight=source.weight,
            producer=None,
            clusters=self.clusters(prompts),
            prompts=prompts,
            outputs=outputs,
            probabilities=one_each(num),
            picked=isinstance(source, Picks),
        )

    def _key(self, source: Raw | Curated, size: int) -> Key:
        place = (source.producer, source.inputs, source.sampling_temperature)
        if source.producer in self.recorded:
            return (*place, self._recorded_size(source.producer, size))
        largest = self.largest[place]
        return (*place, largest if largest % size == 0 else size)

    def _make(self, key: Key) -> _Made:
        if key not in self.made and key[0] in self.recorded:
            found = self.recorded[key[0]]
            keep = torch.arange(len(found.prompts))[: max(2, self.size.outputs // found.candidates)]
            texts = found.outputs[: len(keep) * found.candidates]
            self.made[key] = _Made(found.prompts[keep], texts, found.candidates, self.next_cluster, None)
        elif key not in self.made:
            producer, inputs, temperature, size = key
            network = self.networks[producer]
            num = max(2, self.size.outputs // size)
            there = self.prompts[producer] if inputs is None else self.world.data[inputs].inputs()
            purpose = f"estimate: outputs {inputs} {temperature!r} {size}"
            rows = passes(len(there), num, generator(self.seed, 0, producer, f"{purpose}, prompts"))
            prompts = there[rows]
            draw = generator(self.seed, 0, producer, purpose, network.device)
            outputs: Outputs
            noise: Tensor | None = None
            if producer in self.smooth:
                if temperature != 1.0:
                    raise SettingError(
                        f"models.{producer}: found sampling_temperature {temperature:g}; outputs that are differentiable "
                        "functions of the parameters come at temperature 1 only"
                    )
                outputs, noise = self._smooth(producer, prompts.repeat_interleave(size), draw)
            else:
                outputs = network.sample(
                    prompts,
                    torch.full((num,), size),
                    draw,
                    temperature=temperature,
                    batch_size=self.eco.run.generation_batch,
                    advance=self.advance,
                )
                outputs = outputs.cpu() if isinstance(outputs, Tensor) else outputs
            block = (
                1
                if self.text or size == 1 or len(prompts.unique()) > 1
                else max(1, min(_BLOCK, self.size.outputs // _BLOCKS) // size)
            )
            self.made[key] = _Made(prompts, outputs, size, self.next_cluster, noise, block)
            if not self.text:
                self.next_cluster += num
        return self.made[key]

    def _recorded_size(self, producer: str, size: int) -> int:
        """K on file, which must serve groups of ``size``."""
        found = self.recorded[producer]
        if found.candidates % size:
            raise DataError(
                f"outputs of {producer}: {found.file}: found {found.candidates} candidates a prompt; need a multiple of {size}, as the "
                "spec's sources have it, or change their `candidates`"
            )
        return found.candidates

    def _picked(self, source: Curated, size: int, where: str) -> Tensor | None:
        """(n,) picks on record, where the producer's own people pick by one stage among all candidates; else None."""
        found = self.recorded.get(source.producer)
        if found is None or found.picked is None:
            return None
        if source.curator not in (None, self.eco.models[source.producer].reward) or source.then is not None:
            return None
        if size != found.candidates:
            raise DataError(
                f"{where}.candidates: found {size}; need {found.candidates}, as many as people chose from in {found.file}"
            )
        return found.picked[: max(2, self.size.outputs // size)]

    def _smooth(
        self, name: str, prompts: Tensor, draw: torch.Generator, *, evaluating: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One output a prompt, floats that nothing rounds, and the start noise that they are a function of; on the CPU."""
        model = self.smooth[name]
        noise, parameters, parts = model.noise(len(prompts), draw), model.parameters(), []
        for at in torch.arange(len(prompts)).split(self.eco.run.generation_batch):
            found = model.rsample(parameters, prompts[at], noise[at], evaluating=evaluating)
            parts.append(found.detach().cpu())
            if self.advance is not None:
                self.advance(len(at))
        return torch.cat(parts), noise.cpu()

    def _clusters_of(self, made: _Made) -> Tensor:
        if self.text:
            return self.clusters(made.prompts)
        return made.first_cluster + torch.arange(len(made.prompts)) // made.block

    def _judge(self, key: Key, reward: str, where: str) -> Tensor:
        if (key, reward) not in self.judged:
            made = self.made[key]
            found = self.recorded.get(key[0])
            if found is not None and found.rewards is not None and reward == self.eco.models[key[0]].reward:
                self.judged[key, reward] = found.rewards[: len(made.prompts)].flatten()
                return self.judged[key, reward]
            prompts = made.prompts.repeat_interleave(made.size)
            self.judged[key, reward] = finite_rewards(self.rewards[reward], reward, where, prompts, made.outputs)
        return self.judged[key, reward]


def network_draws(
    world: World,
    networks: Mapping[str, Network],
    rewards: Mapping[str, RewardFn],
    prompts: Mapping[str, Tensor],
    size: Size,
    seed: int,
    advance: Advance | None = None,
    pathwise: Collection[str] = (),
    recorded: Mapping[str, Recorded] | None = None,
    first_cluster: int = 0,
) -> Draws:
    """Draw every source, those of weight 0 included, and every evaluation.

    Outputs of the models in ``pathwise`` are what their samplers make of kept start noise: floats that nothing rounds, with the
    noise in the draws, so that :mod:`crossfeed.estimate.matrix_free` can follow them as the parameters move.

    Args:
        world: Data, prompts and the ecosystem.
        networks: By model, as they are now.
        rewards: By name.
        prompts: By model, what its last training set asked; where inputs of its outputs come from.
        size: How many samples.
        seed: Of all draws.
        advance: Called with the number of outputs just made.
        recorded: Outputs on file, by model, taken instead of new ones.
        pathwise: Models that sample by :meth:`~crossfeed.estimate.base.Differentiable.rsample`.
        first_cluster: Number of the first cluster of what has no prompts, for draws that are independent of earlier ones.

    Raises:
        NotAvailableError: a model in ``pathwise`` whose sampler is not differentiable.
        SettingError: one that is sampled at a temperature other than 1.
    """
    for name in sorted(pathwise):
        if RSAMPLE not in networks[name].capabilities:
            raise NotAvailableError(
                f"models.{name}: found a model whose outputs are no differentiable function of its parameters; leave it out of "
                "`pathwise`, its likelihood is enough"
            )
    make = _Maker(world, networks, rewards, prompts, size, seed, advance, pathwise, recorded or {}, first_cluster)
    eco = world.eco
    with torch.no_grad():
        sources = [
            make.source(name, label, source)
            for name, model in eco.models.items()
            for label, source in zip(source_names(model), model.sources, strict=True)
        ]
        evaluations = [
            make.evaluation(name, node)
            for name, model in eco.models.items()
            for node in model.evaluate or [Evaluation(name="own")]
        ]
    return with_rules(Draws(sources, evaluations), eco)


def _moving(eco: Ecosystem) -> set[tuple[str, str]]:
    """Consumer and name of the sources whose weight some curation ratio moves; others of weight 0 need few samples."""
    out = set()
    for name in eco.names:
        with suppress(SettingError):
            slopes = weight_direction(eco, f"{name}.curation") or {}
            out |= {(name, source) for source, slope in slopes.items() if slope}
    return out


def _largest(eco: Ecosystem) -> dict[tuple[str, str | None, float], int]:
    """Most candidates that anyone takes of a producer, by producer, inputs and sampling temperature."""
    out: dict[tuple[str, str | None, float], int] = {}
    for name, model in eco.models.items():
        for label, source in zip(source_names(model), model.sources, strict=True):
            if isinstance(source, (Raw, Curated)):
                size = outputs_a_row(source, f"models.{name}.sources.{label}")
                key = (source.producer, source.inputs, source.sampling_temperature)
                out[key] = max(out.get(key, 1), size)
    return out
