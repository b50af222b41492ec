r"""Exact pick probabilities of given candidates: what :mod:`crossfeed.retraining.picking` draws from.

A stage's picker is the curator, the other curator with probability ``other_share``, or nobody in particular with
probability ``noise``:

    π_k = (1 − noise − other_share) ρ_k(r) + other_share ρ_k(r′) + noise/K,    ρ_k(r) = exp(r_k/τ) / Σ_l exp(r_l/τ),

and at τ = 0 ρ is uniform on the best candidates. A second stage picks among independent picks of the first, one out of
each of its K₂ groups. Its candidate k of group j is picked with probability

    π_{jk} = Σ_{c : c_j = k} (Π_i π^{(i)}_{c_i}) π_j(r_{1 c_1}, …, r_{K₂ c_{K₂}}),

a sum over the combinations c of first-stage picks, one a group; and so on for later stages.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crossfeed.describe.schema import Pick
from crossfeed.errors import NotAvailableError

MAX_COMBINATIONS = 4096
AT_ONCE = 2_000_000  # doubles that are held while combinations are summed over


def pick_rewards(pick: Pick, people: str) -> list[str]:
    """Names of the rewards that have a say in the pick, each once, in the order of the stages.

    A stage of one candidate, or one that is all noise, asks nobody; a curator without a share is not asked.

    Args:
        pick: The rule, with the stages that follow.
        people: Reward of the producer's people, who pick where no curator is named.

    Example:
        >>> pick_rewards(Pick(candidates=2, other_curator="b", other_share=0.1, then=Pick(candidates=3)), "a")
        ['a', 'b']
        >>> pick_rewards(Pick(candidates=2, noise=1.0), "a")
        []
    """
    names: list[str] = []
    for stage in pick.stages:
        if stage.candidates != 1:
            names += [name for name, _ in _pickers(stage, people)]
    return list(dict.fromkeys(names))


def pick_candidates(pick: Pick, where: str = "source") -> int:
    """K, the candidates of a group of all stages together: the product of the stages' own.

    Args:
        pick: The rule, with the stages that follow.
        where: What an error calls it.

    Raises:
        NotAvailableError: infinitely many candidates, or a number that is not whole.
    """
    total = 1
    for depth, stage in enumerate(pick.stages):
        if stage.candidates != float("inf") and stage.candidates == int(stage.candidates):
            total *= int(stage.candidates)
            continue
        raise NotAvailableError(
            f"{where}: found {'then.' * depth}candidates: {stage.candidates:g}; samples are groups of finitely many "
            "candidates: give a whole number (K = 32 comes near inf where rewards spread over a few τ), or use what is "
            "worked out in closed form"
        )
    return total


def pick_probabilities(pick: Pick, people: str, rewards: Mapping[str, Tensor], where: str = "source") -> Tensor:
    """Probability that each of a group's K candidates is picked, for the full rule.

    Differentiable in the rewards where every stage has τ > 0; at τ = 0 a stage's picks do not move with them.

    Args:
        pick: The rule, with the stages that follow.
        people: Reward of the producer's people, who pick where no curator is named.
        rewards: By name, (n, K) each: the rewards of all n·K candidates, in the order of
            :func:`crossfeed.retraining.picking.pick_among` (with two stages, candidate k of first-stage group j is number
            j·K₁ + k). Those of :func:`pick_rewards` are needed, others are ignored.
        where: What an error calls the source.

    Returns:
        (n, K), rows sum to 1; (1, K) where ``rewards`` is empty since no reward has a say.

    Raises:
        NotAvailableError: K = inf; or a later stage with more than 4,096 combinations of earlier picks a group.
        ValueError: a reward is missing, or is not (n, K).

    Example:
        >>> import math
        >>> r = {"a": torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)}
        >>> pick_probabilities(Pick(candidates=2, noise=0.2), "a", r)  # 0.8 · (1/4, 3/4) + 0.2 · (1/2, 1/2)
        tensor([[0.3000, 0.7000]], dtype=torch.float64)
    """
    total = pick_candidates(pick, where)
    values = _checked(pick, people, rewards, total)
    num = max((len(r) for r in rewards.values()), default=1)
    first = next(iter(values.values()), torch.zeros((), dtype=torch.float64))
    out = torch.ones(num, total, 1, dtype=first.dtype, device=first.device)  # (n, blocks, candidates a block)
    for depth, stage in enumerate(pick.stages):
        size, inside = int(stage.candidates), out.shape[-1]
        if size == 1:
            continue
        if inside**size > MAX_COMBINATIONS:
            raise NotAvailableError(
                f"{where}: {'then.' * depth}candidates: found {size} independent picks among {inside} candidates each, "
                f"{float(inside**size):.3g} combinations a group; pick probabilities are summed over at most "
                f"{MAX_COMBINATIONS:,}: give fewer candidates to this stage or to those before it"
            )
        seen = {
            name: values[name].unflatten(1, (-1, size, inside)).flatten(0, 1) for name, _ in _pickers(stage, people)
        }
        groups = out.unflatten(1, (-1, size)).flatten(0, 1)  # (m, size, inside)
        width = max(1, AT_ONCE // (inside**size * size))
        parts = [
            _stage(stage, people, groups[at], {name: r[at] for name, r in seen.items()})
            for at in torch.arange(len(groups), device=out.device).split(width)
        ]
        out = torch.cat(parts).reshape(num, -1, size * inside)
    return out.reshape(num, total)


def _pickers(stage: Pick, people: str) -> list[tuple[str, float]]:
    """Rewards that decide a share of this stage's picks, with the share."""
    main = 1 - stage.noise - stage.other_share
    pairs = [(stage.curator or people, main), (stage.other_curator, stage.other_share)]
    return [(name, share) for name, share in pairs if name is not None and share > 1e-12]


def _checked(pick: Pick, people: str, rewards: Mapping[str, Tensor], total: int) -> dict[str, Tensor]:
    """The rewards that have a say, all of one shape."""
    names = pick_rewards(pick, people)
    missing = [name for name in names if name not in rewards]
    if missing:
        raise ValueError(f"rewards: found {sorted(rewards)}; need {', '.join(map(repr, missing))} too, which has a say")
    sizes = {tuple(r.shape) for r in rewards.values()}
    if any(len(size) != 2 or size[1] != total for size in sizes) or len(sizes) > 1:
        raise ValueError(f"rewards: found shapes {sorted(sizes)}; need one (n, {total}) a reward")
    return {name: rewards[name] for name in names}


def _stage(stage: Pick, people: str, groups: Tensor, rewards: Mapping[str, Tensor]) -> Tensor:
    """One stage's groups (m, size, inside) of probabilities, and rewards, to (m, size · inside) probabilities."""
    num, size, inside = groups.shape
    one = torch.arange(inside, device=groups.device)
    place = one.expand(1, size) if inside == 1 else torch.cartesian_prod(*[one] * size).view(-1, size)
    slot = torch.arange(size, device=groups.device)
    weight = groups[:, slot, place].prod(-1)  # (m, combinations)
    vote = torch.full_like(weight, stage.noise / size)[..., None].expand(*weight.shape, size)
    for name, share in _pickers(stage, people):
        vote = vote + share * _rule(rewards[name][:, slot, place], stage.temperature)
    out = torch.zeros(num, size * inside, dtype=groups.dtype, device=groups.device)
    return out.index_add(1, (slot * inside + place).flatten(), (weight[..., None] * vote).flatten(1))


def _rule(values: Tensor, temperature: float) -> Tensor:
    """ρ over the last dimension."""
    if temperature > 0:
        return torch.softmax(values / temperature, -1)
    best = (values == values.amax(-1, keepdim=True)).to(values.dtype)
    return best / best.sum(-1, keepdim=True)
