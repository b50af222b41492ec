"""The samples that an estimate is made of: one draw of every source of every model, and one of every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from crossfeed.describe.schema import Affine, Curated, Ecosystem, Pick, Raw, source_names
from crossfeed.estimate.picks import pick_probabilities
from crossfeed.networks.base import Outputs


@dataclass(frozen=True, eq=False)
class SourceDraw:
    """Samples of one source of one model: n groups of K candidates, all drawn from the producer as it is now.

    Raw outputs are groups of one. Real rows and recorded picks are groups of one without a producer.

    Attributes:
        consumer: The model that is trained on it.
        name: The source's name.
        weight: Its share of the model's training data.
        producer: Whose outputs they are; None: nobody's, they stay as they are when models change.
        clusters: (n,) int64; groups with the same number, in whatever draw of an estimate, hang together (one prompt) and are
            resampled together. Draws that are independent of each other share no numbers.
        prompts: (n,) int64 indices into the table of inputs.
        outputs: n·K outputs, as they would be trained on; candidate k of group g is number g·K + k.
        probabilities: (n, K) float64, the probability with which people pick each candidate; 1 for groups of one. Where only
            the pick itself is on record it is 1 there and 0 elsewhere.
        made: n·K outputs as the producer made them, where the source maps them; None: ``outputs``.
        temperature: The producer's sampling temperature.
        rewards: (n, K) float64 by the name of each reward that has a say in the pick.
        noise: n·K start noises, where the producer samples by :meth:`Differentiable.rsample`; else None.
        picked: Whether people picked these samples before; for records of picks.
        map: What the source does to outputs before training.
        pick: The rule of the pick, where it is known.
        people: Reward of the producer's people, who pick where the rule names nobody.
        interchangeable: Whether groups of one cluster have the same prompt, so that their candidates could be grouped otherwise.
    """

    consumer: str
    name: str
    weight: float
    producer: str | None
    clusters: Tensor
    prompts: Tensor
    outputs: Outputs
    probabilities: Tensor
    made: Outputs | None = None
    temperature: float = 1.0
    rewards: dict[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None
    picked: bool = False
    map: Affine | None = None
    pick: Pick | None = None
    people: str | None = None
    interchangeable: bool = False

    @property
    def candidates(self) -> int:
        """K."""
        return self.probabilities.shape[1]

    @property
    def curated(self) -> bool:
        """Whether people pick."""
        return self.candidates > 1

    @property
    def all_prompts(self) -> Tensor:
        """(n·K,) the prompt of every candidate."""
        return self.prompts.repeat_interleave(self.candidates)

    @property
    def all_clusters(self) -> Tensor:
        """(n·K,) the cluster of every candidate."""
        return self.clusters.repeat_interleave(self.candidates)

    def groupings(self, rule: Rule | None = None) -> list[Grouping]:
        """The groups as they were drawn, and K − 1 other groupings of the same candidates: shuffled within clusters, by a fixed seed.

        A mean over groupings has the same expectation as one over the groups drawn, and less variance: each candidate meets
        several sets of rivals (an incomplete U-statistic, Blom 1976).

        Args:
            rule: Rewards (n, K) by name to pick probabilities (n, K′), K′ ≤ K, of the first K′ of each group; None: the draw's own.
        """
        return self._own_groupings if rule is None else self._grouped(rule)

    @cached_property
    def _own_groupings(self) -> list[Grouping]:
        return self._grouped(None)

    def _grouped(self, rule: Rule | None) -> list[Grouping]:
        num, size = self.probabilities.shape
        chances = self.probabilities if rule is None else rule(self.rewards)
        own = torch.arange(num * size).view(num, size)[:, : chances.shape[1]]
        out = [Grouping(own, chances)]
        if not self.interchangeable or size == 1 or self.pick is None or self.people is None or not self.rewards:
            return out
        if len(self.clusters.unique()) == num:
            return out
        if rule is None:
            pick, people = self.pick, self.people

            def rule(rewards: Mapping[str, Tensor]) -> Tensor:
                return pick_probabilities(pick, people, rewards).expand(num, -1)

        generator = torch.Generator().manual_seed(num)
        clusters = self.clusters.repeat_interleave(size)
        for _ in range(size - 1):
            order = _shuffled(clusters, generator).view(num, size)
            chances = rule({name: values.flatten()[order] for name, values in self.rewards.items()})
            out.append(Grouping(order[:, : chances.shape[1]], chances))
        return out


@dataclass(frozen=True, eq=False)
class Grouping:
    """Candidates put together in groups.

    Attributes:
        index: (n, K) numbers of candidates.
        probabilities: (n, K) of their picks.
    """

    index: Tensor
    probabilities: Tensor


Rule = Callable[[Mapping[str, Tensor]], Tensor]


def _shuffled(clusters: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) a permutation within clusters (n,)."""
    order = torch.randperm(len(clusters), generator=generator)
    out = torch.empty_like(order)
    out[clusters.argsort(stable=True)] = order[clusters[order].argsort(stable=True)]
    return out


@dataclass(frozen=True, eq=False)
class EvaluationDraw:
    """Outputs of one model on one of its evaluations: n prompts, K answers each.

    Attributes:
        model: Whose.
        name: The evaluation's name.
        clusters: (n,) int64, as in :class:`SourceDraw`, and counted with them.
        prompts: (n,) int64.
        outputs: n·K.
        rewards: (n, K) float64.
        noise: n·K start noises, where the model samples by :meth:`Differentiable.rsample`; else None.
        reward: The reward's name, where it is known.
    """

    model: str
    name: str
    clusters: Tensor
    prompts: Tensor
    outputs: Outputs
    rewards: Tensor
    noise: Tensor | None = None
    reward: str | None = None

    @property
    def all_prompts(self) -> Tensor:
        """(n·K,) the prompt of every answer."""
        return self.prompts.repeat_interleave(self.rewards.shape[1])

    @property
    def all_clusters(self) -> Tensor:
        """(n·K,) the cluster of every answer."""
        return self.clusters.repeat_interleave(self.rewards.shape[1])


@dataclass(frozen=True, eq=False)
class Draws:
    """All samples of an estimate; clusters are numbered over all of them."""

    sources: list[SourceDraw]
    evaluations: list[EvaluationDraw]

    def of(self, consumer: str) -> list[SourceDraw]:
        """The sources of one model."""
        return [draw for draw in self.sources if draw.consumer == consumer]

    @property
    def num_outputs(self) -> int:
        """Samples in all."""
        return sum(len(d.outputs) for d in self.sources) + sum(len(d.outputs) for d in self.evaluations)


def one_each(num: int) -> Tensor:
    """(num, 1) probabilities of groups of one."""
    return torch.ones(num, 1, dtype=torch.float64)


def with_rules(draws: Draws, eco: Ecosystem) -> Draws:
    """The same samples with maps, pick rules and the names of evaluations' rewards, as the spec has them."""
    sources = []
    nodes = {
        (consumer, name): node
        for consumer, model in eco.models.items()
        for name, node in zip(source_names(model), model.sources, strict=True)
    }
    for draw in draws.sources:
        node = nodes[draw.consumer, draw.name]
        if isinstance(node, (Raw, Curated)):
            pick = node if isinstance(node, Curated) and draw.candidates > 1 else None
            draw = replace(draw, map=node.map, pick=pick, people=eco.models[node.producer].reward)
        sources.append(draw)
    evaluations = []
    for answers in draws.evaluations:
        model = eco.models[answers.model]
        asked = {node.name: node.reward for node in model.evaluate or []}
        evaluations.append(replace(answers, reward=asked.get(answers.name) or model.reward))
    return Draws(sources, evaluations)


def marginal(draw: SourceDraw, weights: Tensor | None = None, rule: Rule | None = None) -> Tensor:
    """(n·K,) how often each candidate is trained on, mean over groupings of p_g π_k; sums to 1.

    Args:
        draw: The samples.
        weights: (n,) p of the groups, which sum to 1; None: equal ones.
        rule: As for :meth:`SourceDraw.groupings`.
    """
    num = len(draw.probabilities)
    p = torch.full((num, 1), 1 / num, dtype=torch.float64) if weights is None else weights[:, None]
    found = draw.groupings(rule)
    out = torch.zeros(draw.probabilities.numel(), dtype=torch.float64)
    for group in found:
        out.index_add_(0, group.index.flatten(), (p * group.probabilities / len(found)).flatten())
    return out


def some_candidates(draw: SourceDraw, most: int, seed: int) -> Tensor:
    """At most ``most`` of the n·K candidates (m,), ascending."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(draw.probabilities.numel(), generator=generator)[:most].sort().values


def some_picks(draw: SourceDraw, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` groups (m,), ascending, and the candidate (m,) of each that is picked, drawn by the probabilities."""
    generator = torch.Generator().manual_seed(seed)
    num, size = draw.probabilities.shape
    groups = torch.randperm(num, generator=generator)[:most].sort().values
    pick = torch.zeros(len(groups), dtype=torch.int64)
    if size > 1:
        pick = torch.multinomial(draw.probabilities[groups], 1, generator=generator)[:, 0]
    return groups, pick
