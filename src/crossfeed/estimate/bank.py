r"""The gradient bank: per-sample gradients, worked out once, from which every what-if is a re-weighting.

Of every model i it holds the gradients ∇ℓ_i of its own sources' samples, the scores ∇log q_i of the samples it made for others,
and those of its evaluations, all in coordinates of the model's own (:mod:`crossfeed.estimate.coordinates`): its parameters where
they are few, else an orthonormal basis of the samples' span, in which every product between them is exact, or a random projection.
What does not fit into memory is in files (:mod:`crossfeed.estimate.spill`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import SettingError
from crossfeed.estimate.base import Differentiable, ExactCurvature
from crossfeed.estimate.coordinates import Coordinates
from crossfeed.estimate.derivatives import flatten
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw
from crossfeed.estimate.projection import PLACES, Projection
from crossfeed.estimate.rows import Rows
from crossfeed.estimate.spill import Room
from crossfeed.networks.base import Advance

LIMIT = 3000
"""Models with more parameters are kept in their samples' span."""
CURVATURE = 4000
"""Most outputs whose curvature is worked out, of those that a model is trained on from one producer."""


@dataclass(frozen=True, eq=False)
class SourceRows:
    """One source in the bank: n groups of K candidates.

    Attributes:
        draw: The samples.
        consumer: Index of the model that is trained on it.
        producer: Index of the model that made it; None: nobody.
        loss: (n·K, r_i) ∇ℓ_i of every candidate, in the consumer's coordinates.
        score: (n·K, r_j) ∇log q_j of every candidate, in the producer's; None without one.
        curvature: (m, r_i) rows h of the generalised Gauss–Newton matrix, in the consumer's; empty where ``hessian`` is there.
        curved: (m,) the candidate of each of them.
        mirrored: The consumer's own raw outputs, at the temperature of its likelihood: B = −C (see
            :mod:`crossfeed.estimate.system`).
        loss_factor: (n·K,) in (0, 1], what ∇ℓ is shortened by in couplings; None: by nothing (:mod:`crossfeed.estimate.outliers`).
        score_factor: (n·K,) the same of the scores.
        hessian: (n·K,) weights to Σ w ∇²ℓ_i (r_i, r_i), where a model knows it; else None.
    """

    draw: SourceDraw
    consumer: int
    producer: int | None
    loss: Tensor
    score: Tensor | None
    curvature: Tensor
    curved: Tensor
    hessian: Callable[[Tensor], Tensor] | None = None
    mirrored: bool = False
    loss_factor: Tensor | None = None
    score_factor: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EvaluationRows:
    """One evaluation in the bank: n prompts with K answers.

    Attributes:
        draw: The answers.
        model: Index of the model.
        score: (n·K, r_k) ∇log q_k of every answer, in the model's coordinates.
    """

    draw: EvaluationDraw
    model: int
    score: Tensor


@dataclass(frozen=True, eq=False)
class ModelRows:
    """One model in the bank.

    Attributes:
        name: In the spec.
        num_params: d.
        basis: Its coordinates.
        theta: (r,) its parameters in them; for weight decay.
    """

    name: str
    num_params: int
    basis: Coordinates
    theta: Tensor


@dataclass(frozen=True, eq=False)
class Bank:
    """Gradients of all samples; see the module.

    Attributes:
        models: In the order of the spec.
        sources: All sources of all models.
        evaluations: All evaluations of all models.
    """

    models: list[ModelRows]
    sources: list[SourceRows]
    evaluations: list[EvaluationRows]

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return [model.name for model in self.models]

    @property
    def draws(self) -> list[SourceDraw]:
        """The samples of all sources."""
        return [rows.draw for rows in self.sources]

    @property
    def nbytes(self) -> int:
        """Memory that the rows take."""
        found = [rows.loss for rows in self.sources] + [rows.score for rows in self.evaluations]
        found += [rows.score for rows in self.sources if rows.score is not None]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in found}.values())


def build_bank(
    models: Mapping[str, Differentiable],
    draws: Draws,
    trainings: Mapping[str, Training | None],
    *,
    seed: int = 0,
    limit: int = LIMIT,
    projection: int | None = None,
    curvature_samples: int = CURVATURE,
    spill: Path | None = None,
    memory: int | None = None,
    advance: Advance | None = None,
) -> Bank:
    """Work out every gradient once.

    Models with many parameters are kept in the span of their own samples' gradients: these are all kept as they are, in memory or in
    files, and of all others only coordinates. With a projection nothing is kept but coordinates; what it leaves right and what not is in
    :mod:`crossfeed.estimate.projection`. Models trained by AdamW then go through their own samples' gradients twice, as its scale has to be
    known before the first is projected.

    Args:
        models: By name, in the order of the spec; all with a likelihood.
        draws: Samples.
        trainings: By name, how a round trains the model; None: to the minimum.
        seed: Of what is random in losses, and of the projection.
        limit: Models with at most this many parameters keep them as coordinates; those that know their curvature exactly
            always do.
        projection: Models with more parameters than this and than ``limit`` are kept in so many random coordinates; None: in their
            samples' span.
        curvature_samples: Most samples of a source whose curvature is worked out.
        spill: Folder for gradients that do not fit into memory; None: that of temporary files.
        memory: Bytes of memory that gradients of models in their samples' span may take, the rest goes to files; None: 40 % of
            what is free.
        advance: Called with the number of gradients just worked out.

    Raises:
        CheckFailedError: gradients that are not finite, or all zero.
        SettingError: gradients fit neither into memory nor on the disk; a projection to fewer than 4 coordinates.
    """
    if projection is not None and projection < PLACES:
        raise SettingError(f"projection: found {projection}; need at least {PLACES} coordinates")
    names, room = list(models), Room(memory, spill)
    out: list[ModelRows] = []
    loss: dict[int, Tensor] = {}
    score: dict[int, Tensor] = {}
    judged: dict[int, Tensor] = {}
    bent: dict[int, tuple[Tensor, Tensor]] = {}
    exact: dict[int, Callable[[Tensor], Tensor]] = {}
    for name, model in models.items():
        rows = Rows(model, seed, advance, room)
        own = {k: d for k, d in enumerate(draws.sources) if d.consumer == name}
        theta, training = flatten(model.parameters()), trainings[name]
        d = len(theta)
        most = d if isinstance(model, ExactCurvature) else limit
        project = None
        if projection is not None and d > max(projection, most):
            project = Projection(d, projection, seed)
        adam = training if training is not None and training.optimizer == "adamw" else None
        basis = rows.settle(list(own.values()), adam, most, project)
        loss |= {k: rows.loss(draw) for k, draw in own.items()}
        score |= {k: rows.score(draw) for k, draw in enumerate(draws.sources) if draw.producer == name}
        judged |= {k: rows.answers(draw) for k, draw in enumerate(draws.evaluations) if draw.model == name}
        if isinstance(model, ExactCurvature):
            exact |= {k: rows.hessian(model, draw) for k, draw in own.items()}
        else:
            bent |= {k: rows.curvature(draw, curvature_samples) for k, draw in own.items()}
        out.append(ModelRows(name, d, basis, basis.of_parameters(theta)))
    none = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    sources = [
        SourceRows(
            draw=d,
            consumer=names.index(d.consumer),
            producer=None if d.producer is None else names.index(d.producer),
            loss=loss[k],
            score=score.get(k),
            curvature=bent.get(k, none)[0],
            curved=bent.get(k, none)[1],
            hessian=exact.get(k),
            mirrored=mirrors(models[d.consumer], d),
        )
        for k, d in enumerate(draws.sources)
    ]
    evaluations = [EvaluationRows(d, names.index(d.model), judged[k]) for k, d in enumerate(draws.evaluations)]
    return Bank(out, sources, evaluations)


def plain(model: Differentiable, limit: int) -> bool:
    """Whether a model's coordinates are its parameters: gradients of n samples cannot tell a course in more dimensions than n."""
    num = sum(value.numel() for value in model.parameters().values())
    return isinstance(model, ExactCurvature) or num <= limit


def mirrors(model: Differentiable, draw: SourceDraw) -> bool:
    """Whether a source holds the consumer's own raw outputs, as its likelihood has them."""
    own = draw.producer == draw.consumer and not draw.curated and draw.map is None and draw.made is None
    return own and model.loss_is_score and draw.temperature == 1 and not isinstance(model, ExactCurvature)
