"""Mean and covariance of a loop on finite samples, round by round from a known start; ours."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.rounds import steps_of_round
from crossfeed.families.gaussian import GaussianMean
from crossfeed.influence.moments import Expansion, affine_source, expand, refuse_regime, share_errors


def is_affine(program: Program) -> bool:
    """Whether a round is affine in Θ, with errors whose covariance depends on Θ through the sources' means only."""
    return all(isinstance(g.family, GaussianMean) for g in program.model_groups) and all(
        affine_source(g.kernel) for g in program.source_groups
    )


def moment_path(
    program: Program, start: Tensor, update: schema.Update, samples: schema.Samples, rounds: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean (D,) and covariance (D, D) of Θ after each round from a given start, on ``samples.per_round`` samples.

    Exact at every n for affine maps (Gaussian means, raw or picked by linear rewards); otherwise a closure that drops
    terms beyond 1/n, expanded anew at the mean of every update. Ours.

    Args:
        program: Compiled ecosystem with unbatched settings.
        start: (D,) known start.
        update: Order, and gradient steps if any.
        samples: Only the ``replace`` regime.
        rounds: How many rounds.

    Yields:
        Mean and covariance after round 1, 2, ….
    """
    refuse_regime(samples)
    n, affine = samples.per_round, is_affine(program)
    if samples.counts == "fixed":
        program = _with_shares(program, share_errors(program, n))
    mean, cov = start, torch.zeros(len(start), len(start), dtype=start.dtype)
    known: dict[tuple[int, ...], Expansion] = {}
    for number in range(rounds):
        for models in steps_of_round(update.order, program.names, number):
            key = tuple(models)
            e = expand(program, mean, models, update.steps, samples.counts or "multinomial", known.get(key))
            if affine:
                known.setdefault(key, e)
            mean = e.mean if affine else e.mean + e.bias(n * cov) / n
            cov = e.spread(cov, (e.noise + (e.drift_noise(cov) if affine else 0.0)) / n)
        yield mean, cov


def _with_shares(program: Program, errors: Tensor) -> Program:
    settings = program.settings.clone()
    for g in program.source_groups:
        settings[g.weight_slot] += errors[g.source]
    return program.with_settings(settings)
