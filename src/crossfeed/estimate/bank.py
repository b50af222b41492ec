r"""The gradient bank: per-sample gradients, worked out once, from which every what-if is a re-weighting.

Of every model i it holds the gradients ∇ℓ_i of its own sources' samples, the scores ∇log q_i of the samples it made for others,
and those of its evaluations, all in coordinates of the model's own (:mod:`crossfeed.estimate.coordinates`): its parameters where
they are few, else an orthonormal basis of the samples' span, in which every product between them is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import CheckFailedError
from crossfeed.estimate.base import Differentiable, ExactCurvature
from crossfeed.estimate.coordinates import Coordinates, coordinates
from crossfeed.estimate.derivatives import flatten, in_order, indexed_rows
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, some_picks
from crossfeed.estimate.steps import adam_scale
from crossfeed.record.pool import take

Advance = Callable[[int], None]

LIMIT = 3000
"""Models with more parameters are kept in their samples' span."""
CURVATURE = 2000
"""Most samples of a source whose curvature is worked out."""


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
        groups: (m,) the group of each of them, whose pick it was worked out on.
        hessian: (n·K,) weights to Σ w ∇²ℓ_i (r_i, r_i), where a model knows it; else None.
    """

    draw: SourceDraw
    consumer: int
    producer: int | None
    loss: Tensor
    score: Tensor | None
    curvature: Tensor
    groups: Tensor
    hessian: Callable[[Tensor], Tensor] | None = None


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
    curvature_samples: int = CURVATURE,
    advance: Advance | None = None,
) -> Bank:
    """Work out every gradient once.

    Args:
        models: By name, in the order of the spec; all with a likelihood.
        draws: Samples.
        trainings: By name, how a round trains the model; None: to the minimum.
        seed: Of what is random in losses.
        limit: Models with at most this many parameters keep them as coordinates; those that know their curvature exactly
            always do.
        curvature_samples: Most samples of a source whose curvature is worked out.
        advance: Called with the number of gradients just worked out.

    Raises:
        CheckFailedError: gradients that are not finite, or all zero.
    """
    names = list(models)
    out: list[ModelRows] = []
    loss: dict[int, Tensor] = {}
    score: dict[int, Tensor] = {}
    judged: dict[int, Tensor] = {}
    bent: dict[int, tuple[Tensor, Tensor]] = {}
    exact: dict[int, Callable[[Tensor], Tensor]] = {}
    for name, model in models.items():
        rows = _Rows(model, seed, advance)
        mine = {k: rows.loss(d) for k, d in enumerate(draws.sources) if d.consumer == name}
        if not any(bool((raw != 0).any()) for raw in mine.values()):
            raise CheckFailedError(
                f"models.{name}: all gradients of its loss are zero; its adapter is frozen or not in use: look at `lora.target` and the "
                "checkpoint"
            )
        made = {k: rows.score(d) for k, d in enumerate(draws.sources) if d.producer == name}
        answers = {k: rows.answers(d) for k, d in enumerate(draws.evaluations) if d.model == name}
        curved: dict[int, tuple[Tensor, Tensor]] = {}
        if isinstance(model, ExactCurvature):
            exact |= {k: rows.hessian(model, d) for k, d in enumerate(draws.sources) if d.consumer == name}
        else:
            curved = {
                k: rows.curvature(d, curvature_samples) for k, d in enumerate(draws.sources) if d.consumer == name
            }
        theta = flatten(model.parameters())
        scale = None
        training = trainings[name]
        if training is not None and training.optimizer == "adamw":
            scale = _scale(draws, mine, training)
        basis = coordinates(list(mine.values()), scale, len(theta) if isinstance(model, ExactCurvature) else limit)
        done: dict[int, Tensor] = {}  # what several sources share is turned once

        def turn(raw: Tensor, basis: Coordinates = basis, done: dict[int, Tensor] = done) -> Tensor:
            if id(raw) not in done:
                done[id(raw)] = basis.of_gradients(raw)
            return done[id(raw)]

        loss |= {k: turn(raw) for k, raw in mine.items()}
        score |= {k: turn(raw) for k, raw in made.items()}
        judged |= {k: turn(raw) for k, raw in answers.items()}
        bent |= {k: (turn(raw), groups) for k, (raw, groups) in curved.items()}
        out.append(ModelRows(name, len(theta), basis, basis.of_parameters(theta)))
    none = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    sources = [
        SourceRows(
            draw=d,
            consumer=names.index(d.consumer),
            producer=None if d.producer is None else names.index(d.producer),
            loss=loss[k],
            score=score.get(k),
            curvature=bent.get(k, none)[0],
            groups=bent.get(k, none)[1],
            hessian=exact.get(k),
        )
        for k, d in enumerate(draws.sources)
    ]
    evaluations = [EvaluationRows(d, names.index(d.model), judged[k]) for k, d in enumerate(draws.evaluations)]
    return Bank(out, sources, evaluations)


class _Rows:
    """Gradients of one model on the samples it has to do with; the same outputs are gone through once."""

    def __init__(self, model: Differentiable, seed: int, advance: Advance | None) -> None:
        self.model, self.seed, self.advance = model, seed, advance
        self.parameters = model.parameters()
        self.known: dict[tuple[Any, ...], Tensor] = {}
        self.kept: list[Any] = []  # so that ids stay those of living objects

    def loss(self, draw: SourceDraw) -> Tensor:
        """(n·K, d) ∇ℓ of a source's candidates."""
        key = ("loss", id(draw.outputs))
        if key not in self.known:
            generator = torch.Generator(self.model.device).manual_seed(self.seed)
            batch = self.model.loss_batch(draw.all_prompts, draw.outputs, generator)
            self._keep(key, draw.outputs, self._rows(self.model.losses, batch, f"losses on {draw.name}"))
        return self.known[key]

    def score(self, draw: SourceDraw) -> Tensor:
        """(n·K, d) ∇log q of a source's candidates, as this model made them."""
        made = draw.outputs if draw.made is None else draw.made
        return self._score(draw.all_prompts, made, draw.temperature, draw.name)

    def curvature(self, draw: SourceDraw, most: int) -> tuple[Tensor, Tensor]:
        """(m, d) rows of the Gauss–Newton matrix on one pick of every group, and their groups (m,)."""
        groups, pick = some_picks(draw, most, self.seed)
        outputs = take(draw.outputs, groups * draw.candidates + pick)
        own = torch.Generator(self.model.device).manual_seed(self.seed)
        batch = self.model.curvature_batch(draw.prompts[groups], outputs, own)
        return self._rows(self.model.curvature_terms, batch, f"curvature on {draw.name}"), groups

    def hessian(self, model: ExactCurvature, draw: SourceDraw) -> Callable[[Tensor], Tensor]:
        """Weights (n·K,) of a source's candidates to their mean Hessian."""
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        batch = self.model.loss_batch(draw.all_prompts, draw.outputs, generator)
        return lambda weights: model.mean_hessian(self.parameters, batch, weights)

    def answers(self, draw: EvaluationDraw) -> Tensor:
        """(n·K, d) ∇log q of the answers of an evaluation."""
        return self._score(draw.all_prompts, draw.outputs, 1.0, draw.name)

    def _score(self, prompts: Tensor, outputs: Any, temperature: float, name: str) -> Tensor:
        key = ("score", id(outputs), temperature)
        if key not in self.known:
            if self.model.loss_is_score and temperature == 1 and ("loss", id(outputs)) in self.known:
                found = -self.known["loss", id(outputs)]
            else:
                batch = self.model.score_batch(prompts, outputs)
                found = self._rows(
                    lambda p, b: self.model.log_probs(p, b, temperature), batch, f"log-likelihoods on {name}"
                )
            self._keep(key, outputs, found)
        return self.known[key]

    def _keep(self, key: tuple[Any, ...], outputs: Any, rows: Tensor) -> None:
        self.known[key] = rows
        self.kept.append(outputs)

    def _rows(self, fn: Callable[..., Tensor], batch: Any, what: str) -> Tensor:
        rows: Tensor | None = None
        split = getattr(self.model, "chunks", in_order)
        for index, part in indexed_rows(fn, self.parameters, batch, self.model.chunk, split):
            if rows is None:
                rows = torch.empty(len(batch[0]), part.shape[1], dtype=part.dtype)
            rows[index] = part.cpu()
            if self.advance is not None:
                self.advance(len(part))
        assert rows is not None
        bad = int((~torch.isfinite(rows).all(1)).sum())
        if bad:
            raise CheckFailedError(
                f"models.{self.model.name}: gradients of its {what} are not finite for {bad:,} of {len(rows):,} samples; look at "
                "the checkpoint, or estimate in float32"
            )
        return rows


def _scale(draws: Draws, rows: Mapping[int, Tensor], training: Training) -> Tensor:
    """AdamW's scale of every parameter, from the mixture's first and second moments."""
    mean = second = torch.zeros(())
    for k, raw in rows.items():
        draw = draws.sources[k]
        share = (draw.weight * draw.probabilities / len(draw.probabilities)).flatten().to(raw.dtype)
        mean = mean + share @ raw
        second = second + share @ raw.square()
    return adam_scale(mean, second, training.batch_size * training.accumulate)
