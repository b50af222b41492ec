r"""Data that a model keeps from round to round: all samples so far, or n drawn from all so far.

What is kept is what the regime needs and no more. ``accumulate``: the mean statistic of everything drawn so far, since
the fit depends on nothing else. ``subsample``: on a finite outcome set how often each outcome was drawn, from which n
draws with replacement are one multinomial; on vectors and pairs the samples themselves.

A model's pool grows when that model is retrained. A model left out of a round neither trains nor collects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossfeed.dynamics.program import Program
from crossfeed.families.finite import Finite


@dataclass(frozen=True)
class Pool:
    """What the models have collected.

    Attributes:
        sizes: (N,) how often each model has been retrained; its pool holds ``sizes`` · n samples.
        kept: Mean statistic (..., G, M), or mean count of each outcome (..., G, outcomes), by model group; for
            subsampled vectors and pairs, the samples (..., sizes · n, k) by model. A scalar where there is none yet.
    """

    sizes: Tensor
    kept: tuple[Tensor, ...]

    def take(self, rows: Tensor) -> Pool:
        """The pool of some seeds; ``rows`` indexes the leading dimension."""
        return Pool(self.sizes, tuple(k[rows] if k.ndim else k for k in self.kept))


def accumulated(program: Program, part: Program, fresh: list[Tensor], pool: Pool | None) -> tuple[list[Tensor], Pool]:
    """Moments of all that the part's models have drawn so far, the fresh round included, and the pool that holds them.

    Args:
        program: The whole ecosystem.
        part: The block that is retrained now.
        fresh: Mean statistic of this round's samples, (..., G, M) a model group of ``part``.
        pool: What was kept; None before the first round.
    """
    pool = pool or _empty(program, len(program.model_groups))
    sizes, kept, moments = pool.sizes.clone(), list(pool.kept), []
    for group, new in zip(part.model_groups, fresh, strict=True):
        number, rows = _place(program, group.members)
        size = len(program.model_groups[number].members)
        kept[number] = kept[number].expand(*new.shape[:-2], size, new.shape[-1]).clone()
        old = kept[number][..., rows, :]
        mean = old + (new - old) / (sizes[group.members] + 1)[:, None]
        kept[number][..., rows, :] = mean
        sizes[group.members] += 1
        moments.append(mean)
    return moments, Pool(sizes, tuple(kept))


def subsampled(
    program: Program,
    part: Program,
    theta: Tensor,
    num: int,
    rngs: Sequence[np.random.Generator],
    fixed: bool,
    pool: Pool | None,
) -> tuple[list[Tensor], Pool]:
    """Add ``num`` fresh samples a model to its pool, then draw ``num`` from the pool with replacement.

    Args:
        program: The whole ecosystem.
        part: The block that is retrained now.
        theta: (..., D).
        num: n.
        rngs: One generator a source group of ``part``, one for counts, one for the draw from the pool.
        fixed: Counts by largest remainder instead of multinomial.
        pool: What was kept; None before the first round.

    Returns:
        Mean statistic of the drawn samples, (..., G, M) a model group of ``part``, and the grown pool.
    """
    counts = part._counts(theta.shape[:-1], num, rngs[-2], fixed)
    if isinstance(part.model_groups[0].family, Finite):
        return _from_tallies(program, part, theta, num, counts, rngs, pool)
    return _from_samples(program, part, theta, num, counts, rngs, pool)


def _from_tallies(
    program: Program,
    part: Program,
    theta: Tensor,
    num: int,
    counts: Tensor,
    rngs: Sequence[np.random.Generator],
    pool: Pool | None,
) -> tuple[list[Tensor], Pool]:
    parts = []
    for source, rng in zip(part.source_groups, rngs, strict=False):
        k = source.kernel
        p = k.p if source.theta_index is None else k.distribution(theta[..., source.theta_index], part.settings)
        c = counts[..., source.source]
        p = p.expand(*c.shape, -1)
        parts.append(torch.from_numpy(rng.multinomial(c.numpy(), _normalised(p))).double())
    tallies = part._mix(parts, [torch.ones(len(s.source), dtype=torch.float64) for s in part.source_groups])
    means, grown = accumulated(program, part, tallies, pool)  # the mean tally is n times the pool's distribution
    moments = []
    for group, mean in zip(part.model_groups, means, strict=True):
        drawn = torch.from_numpy(rngs[-1].multinomial(num, _normalised(mean))).double() / num
        moments.append(group.family.mean_statistic(drawn))
    return moments, grown


def _from_samples(
    program: Program,
    part: Program,
    theta: Tensor,
    num: int,
    counts: Tensor,
    rngs: Sequence[np.random.Generator],
    pool: Pool | None,
) -> tuple[list[Tensor], Pool]:
    drawn: dict[int, Tensor] = {}
    for source, rng in zip(part.source_groups, rngs, strict=False):
        # n of each source, whatever their counts, so that a replicate's draws do not depend on the others' counts
        if source.theta_index is None:
            z = source.kernel.sample(counts.shape[:-1], num, rng)
        else:
            z = source.kernel.sample(theta[..., source.theta_index], part.settings, num, rng)
        drawn |= {int(s): z[..., e, :, :] for e, s in enumerate(source.source)}
    pool = pool or _empty(program, program.num_models)
    sizes, kept, moments = pool.sizes.clone(), list(pool.kept), []
    for group in part.model_groups:
        means = []
        for row, model in enumerate(group.members.tolist()):
            own = [s for s in drawn if part.sources[s].consumer == model]
            fresh = _in_order([drawn[s] for s in own], counts[..., own], num)
            kept[model] = torch.cat([kept[model], fresh], -2) if int(sizes[model]) else fresh
            sizes[model] += 1
            at = torch.from_numpy(rngs[-1].integers(0, kept[model].shape[-2], size=fresh.shape[:-1]))
            chosen = _rows_at(kept[model], at)
            statistic = group.family.take(torch.tensor([row])).statistic(chosen[..., None, :, :])
            means.append(statistic.mean(-2)[..., 0, :])
        moments.append(torch.stack(means, -2))
    return moments, Pool(sizes, tuple(kept))


def _in_order(samples: list[Tensor], counts: Tensor, num: int) -> Tensor:
    """The first ``counts[..., s]`` samples of each source s, one source after another: (..., num, k)."""
    ends = counts.cumsum(-1)
    slot = torch.arange(num)
    which = (slot >= ends[..., None]).sum(-2)
    within = slot - (ends - counts).gather(-1, which)
    starts = torch.tensor([0, *(z.shape[-2] for z in samples)]).cumsum(0)[:-1]
    return _rows_at(torch.cat(samples, -2), starts[which] + within)


def _rows_at(z: Tensor, index: Tensor) -> Tensor:
    """Rows of z (..., m, k) at indices (..., n): (..., n, k)."""
    return z.gather(-2, index[..., None].expand(*index.shape, z.shape[-1]))


def _empty(program: Program, parts: int) -> Pool:
    nothing = torch.zeros((), dtype=torch.float64)
    return Pool(torch.zeros(program.num_models, dtype=torch.long), (nothing,) * parts)


def _normalised(p: Tensor) -> np.ndarray:
    values = p.numpy()
    out: np.ndarray = values / values.sum(-1, keepdims=True)
    return out


def _place(program: Program, members: Tensor) -> tuple[int, Tensor]:
    """Where a block's group stands in the whole program: number of the group, and rows."""
    for number, group in enumerate(program.model_groups):
        at = torch.nonzero(group.members == members[:, None])
        if len(at):
            return number, at[:, 1]
    raise ValueError("a block's models are the program's")
