"""What curators can be asked to do: shares that add up, rules whose expectation exists, tilting that stays Gaussian."""

from __future__ import annotations

import math

import numpy as np

from crossfeed.describe import schema as s
from crossfeed.describe.shapes import full_matrix
from crossfeed.describe.sizes import Layout
from crossfeed.describe.wording import Complaint, Loc

_CONTINUOUS = ("vectors", "regression")
_HUGE = 1e150


def pick_complaints(
    loc: Loc, source: s.Curated, people: str | None, producer: s.Model | None, rewards: dict[str, s.Reward], at: Layout
) -> list[Complaint]:
    """What is wrong with the picks of one curated source.

    Args:
        loc: Where the source stands.
        source: The source.
        people: The reward of the producer's people; None when the producer is unknown.
        producer: The producing model; None when its family does not go with the space.
        rewards: Rewards that are defined and go with the space.
        at: The space in numbers.
    """
    out: list[Complaint] = []
    number = len(source.stages)
    for depth, stage in enumerate(source.stages):
        where = (*loc, *["then"] * depth)
        out += _shares(where, stage)
        if stage.temperature == 0 and stage.candidates > 1:
            names = [stage.curator or people, *([stage.other_curator] if stage.other_curator else [])]
            out += _best(where, stage, [rewards[n] for n in names if n in rewards], number, at)
    if not out and producer is not None and at.kind in _CONTINUOUS:
        out = _tilting(loc, source, people, producer, rewards, at)
    return out


def _shares(loc: Loc, stage: s.Pick) -> list[Complaint]:
    total = stage.noise + stage.other_share
    if total > 1 + 1e-12:
        return [Complaint((*loc, "other_share"), f"found noise + other_share = {total:.10g}", "need at most 1")]
    if stage.other_share > 0 and stage.other_curator is None:
        found = f"found {stage.other_share:g} without `other_curator`"
        return [Complaint((*loc, "other_share"), found, "need `other_curator: REWARD`, or no other_share")]
    if stage.other_curator is not None and "other_share" not in stage.model_fields_set:
        found = f"found {stage.other_curator!r} without `other_share`"
        return [Complaint((*loc, "other_curator"), found, "need `other_share: …`, the share of picks it makes")]
    return []


def _best(loc: Loc, stage: s.Pick, rewards: list[s.Reward], number: int, at: Layout) -> list[Complaint]:
    """Best of K: never of infinitely many, and on continuous outcomes only where its expectation is known."""
    where = (*loc, "temperature")
    if math.isinf(stage.candidates):
        return [
            Complaint(where, "found 0 with infinitely many candidates", "need a temperature > 0, or a finite number")
        ]
    if at.kind not in _CONTINUOUS or at.networks:
        return []
    if number > 1:
        found = "found 0 (best of K) in several stages of picking"
    elif any(not isinstance(reward, s.LinearReward) for reward in rewards):
        found = f"found 0 (best of K) by a {next(r.kind for r in rewards if r.kind != 'linear')} reward"
    else:
        return []
    known = "its expectation is known only for one stage of linear rewards"
    need = f"need a temperature > 0: on a space of {at.kind}, {known}"
    return [Complaint(where, found, need)]


def _tilting(
    loc: Loc, source: s.Curated, people: str | None, producer: s.Model, rewards: dict[str, s.Reward], at: Layout
) -> list[Complaint]:
    """Tilting by exp(r/τ) with a quadratic reward needs Σ⁻¹ − Q/τ to be positive definite, at every stage."""
    family = producer.family
    if isinstance(family, s.GaussianMean) and at.dim is not None:
        cov, dim = family.cov, at.dim
    elif isinstance(family, s.LinearGaussian):
        cov, dim = family.noise, at.outputs
    else:
        return []
    if not any(math.isinf(stage.candidates) for stage in source.stages):
        return []
    precisions: list[np.ndarray] = [np.linalg.inv(full_matrix(cov, dim) * source.sampling_temperature)]
    for depth, stage in enumerate(source.stages):
        if not math.isinf(stage.candidates):
            continue
        names = [stage.curator or people, *([stage.other_curator] if stage.other_curator else [])]
        with np.errstate(over="ignore"):
            tilts = [_curvature(rewards.get(name or ""), dim) / stage.temperature for name in names]
        tilts = [np.clip(tilt, -_HUGE, _HUGE) for tilt in tilts]
        after: list[np.ndarray] = [precision - tilt for precision in precisions for tilt in tilts]
        low = min(float(np.linalg.eigvalsh(matrix).min()) for matrix in after)
        if low <= 0:
            grows = f"exp(r/τ) outgrows the producer's Gaussian: Σ⁻¹ − Q/τ has the eigenvalue {low:.4g}"
            found = f"found inf, where {grows}"
            need = "need a higher temperature, a finite number of candidates, or a reward that bends down"
            return [Complaint((*loc, *["then"] * depth, "candidates"), found, need)]
        precisions = (after + precisions if stage.noise > 0 else after)[:64]
    return []


def _curvature(reward: s.Reward | None, dim: int) -> np.ndarray:
    """Q of a reward as far as it concerns the last ``dim`` coordinates; zero unless it is quadratic."""
    if not isinstance(reward, s.QuadraticReward):
        return np.zeros((dim, dim))
    size = len(reward.matrix) if reward.matrix.ndim else dim
    return full_matrix(reward.matrix, size)[-dim:, -dim:]
