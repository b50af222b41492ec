r"""Who is behind an influence: single examples, sources and pickers, by the adjoint.

u_i = dJ_e/dv_i is how evaluation e answers, over the horizon, to a constant force on model i. Sample z of weight w_s p_z in i's training
data pulls with −w_s p_z ∇ℓ_i(z), so its share of what training does to J_e is −w_s p_z ⟨u_i, ∇ℓ_i(z)⟩; summed over a source it is w_s
times what that source does. Curated examples count by the pick: candidate k with its probability π_k. Ours; the single-round form
is the influence function of Koh and Liang 2017 with the loop's D instead of the loss's Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from crossfeed.estimate.bank import Bank, SourceRows
from crossfeed.estimate.draws import marginal
from crossfeed.estimate.influence import Answer, meet
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.swings import swings


@dataclass(frozen=True)
class Example:
    """One training sample and what it does in the long run.

    Attributes:
        evaluation: Number of the evaluation in the bank.
        source: Number of the source in the bank.
        sample: Candidate g·K + k.
        effect: Change of J if the sample's weight in its source rises from p to 2p, the others' falling in proportion.
        probability: π_k.
    """

    evaluation: int
    source: int
    sample: int
    effect: float
    probability: float


def sample_effects(bank: Bank, answer: Answer, source: int) -> Tensor:
    """(n·K, E) effects of every candidate of a source on every evaluation, as in :class:`Example`."""
    rows = bank.sources[source]
    share = marginal(rows.draw)[:, None]
    pull = -answer.system.mixture[source] * (rows.loss.double() @ answer.weight[rows.consumer])
    return share * (pull - (share * pull).sum(0))


def top_examples(bank: Bank, answer: Answer, evaluation: int, num: int, curated_only: bool = True) -> list[Example]:
    """The ``num`` samples that push an evaluation up most and the ``num`` that push it down most, strongest first."""
    found: list[Example] = []
    for s, rows in enumerate(bank.sources):
        if not answer.system.mixture[s] or (curated_only and not _picked(rows)):
            continue
        effects = sample_effects(bank, answer, s)[:, evaluation]
        chances = rows.draw.probabilities.flatten()
        order = effects.argsort()
        for k in dict.fromkeys([*order[:num].tolist(), *order[-num:].tolist()]):
            found.append(Example(evaluation, s, k, float(effects[k]), float(chances[k])))
    found.sort(key=lambda example: example.effect)
    down = [example for example in found[:num] if example.effect < 0]
    up = [example for example in found[::-1][:num] if example.effect > 0]
    return up + down


def source_effects(leg: Leg, answer: Answer) -> Tensor:
    """(S, E) what each source does to each evaluation: dJ per unit of weight moved to it from the rest of its model's mixture."""
    system = leg.system
    directions = []
    for s, rows in enumerate(leg.bank.sources):
        mine = {k: system.mixture[k] for k, other in enumerate(leg.bank.sources) if other.consumer == rows.consumer}
        slopes = {k: -weight / sum(mine.values()) for k, weight in mine.items()}
        directions.append(slopes | {s: 1 + slopes[s]})
    out = meet(answer.weight, system.pushes(directions))
    moved = swings(leg, directions)
    if moved is not None and answer.adjoint is not None:
        out = out + moved.effect(answer.adjoint)
    return out.T


def _picked(rows: SourceRows) -> bool:
    return rows.draw.candidates > 1 or rows.draw.picked
