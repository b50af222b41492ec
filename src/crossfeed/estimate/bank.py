r"""The gradient bank: per-sample gradients, worked out once, from which every what-if is a re-weighting.

Of every model i it holds the gradients ∇ℓ_i of its own sources' samples, the scores ∇log q_i of the samples it made for others,
and those of its evaluations, all in coordinates of the model's own (:mod:`crossfeed.estimate.coordinates`): its parameters where
they are few, else an orthonormal basis of the samples' span, in which every product between them is exact, or a random projection.
What does not fit into memory is in files (:mod:`crossfeed.estimate.spill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import CheckFailedError, SettingError
from crossfeed.estimate.base import Batch, Differentiable, ExactCurvature
from crossfeed.estimate.coordinates import Coordinates, coordinates
from crossfeed.estimate.derivatives import Fn, flatten, in_order, indexed_rows
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, some_candidates
from crossfeed.estimate.kinds import COPIES, kinds_of, some_of
from crossfeed.estimate.projection import PLACES, Projection
from crossfeed.estimate.spill import Room
from crossfeed.estimate.steps import adam_scale

Advance = Callable[[int], None]

LIMIT = 3000
"""Models with more parameters are kept in their samples' span."""
CURVATURE = 4000
"""Most outputs whose curvature is worked out, of those that a model is trained on from one producer."""
HELD = 1 << 28
"""Bytes of gradients that are gone through at once."""


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
        rows = _Rows(model, seed, advance, room)
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


class _Rows:
    """Gradients of one model on the samples it has to do with, in its coordinates; the same outputs are gone through once."""

    def __init__(self, model: Differentiable, seed: int, advance: Advance | None, room: Room) -> None:
        self.model, self.seed, self.advance, self.room = model, seed, advance, room
        self.parameters = model.parameters()
        self.basis: Coordinates | None = None
        self.large = False
        self.known: dict[tuple[Any, ...], Tensor] = {}
        self.kept: list[Any] = []  # so that ids stay those of living objects

    def settle(
        self, own: list[SourceDraw], training: Training | None, limit: int, projection: Projection | None
    ) -> Coordinates:
        """Choose the coordinates, from the gradients of the model's own samples.

        Args:
            own: Its sources.
            training: By AdamW; None: another optimiser.
            limit: Up to so many parameters they are the coordinates.
            projection: To use instead of the samples' span.
        """
        unique = {id(draw.outputs): draw for draw in own}
        shares = {key: torch.zeros(len(draw.outputs), dtype=torch.float64) for key, draw in unique.items()}
        for draw in own:
            shares[id(draw.outputs)] += (draw.weight * draw.probabilities / len(draw.probabilities)).flatten()
        found = _Scale(training)
        if projection is not None:
            if training is not None:
                for key, draw in unique.items():
                    for index, part in self._parts(*self._loss_of(draw)):
                        found.add(part.cpu(), shares[key][index])
            scale = found.scale()
            self.basis = Coordinates(scale, None, [], projection.size, projection)
            self._check_any([self.loss(draw) for draw in unique.values()])
            return self.basis
        self.large = sum(p.numel() for p in self.parameters.values()) > limit
        apart = {key: kinds_of(draw.all_clusters, draw.outputs) for key, draw in unique.items()}
        raw = {key: self._stored(*self._loss_of(draw, apart[key].first)) for key, draw in unique.items()}
        self._check_any(list(raw.values()))
        if training is not None:
            for key, rows_ in raw.items():
                chance = apart[key].summed(shares[key])
                for part, share in zip(*(t.split(_at_once(rows_)) for t in (rows_, chance)), strict=True):
                    found.add(part, share)
        self.basis = coordinates(list(raw.values()), found.scale(), limit)
        for k, (key, draw) in enumerate(unique.items()):
            rows = self._turned(raw[key]) if self.basis.own is None else self._copied(self.basis.own[k])
            self._keep(("loss", key), draw.outputs, apart[key].every(rows))
        return self.basis

    def loss(self, draw: SourceDraw) -> Tensor:
        """(n·K, r) ∇ℓ of a source's candidates."""
        key = ("loss", id(draw.outputs))
        if key not in self.known:
            apart = kinds_of(draw.all_clusters, draw.outputs)
            self._keep(key, draw.outputs, apart.every(self._stored(*self._loss_of(draw, apart.first))))
        return self.known[key]

    def score(self, draw: SourceDraw) -> Tensor:
        """(n·K, r) ∇log q of a source's candidates, as this model made them."""
        made = draw.outputs if draw.made is None else draw.made
        return self._score(draw, made, draw.temperature)

    def curvature(self, draw: SourceDraw, most: int) -> tuple[Tensor, Tensor]:
        """(m, r) rows of the Gauss–Newton matrix on a source's candidates, and which these are (m,)."""
        some, key = some_candidates(draw, most, self.seed), ("curvature", id(draw.outputs))
        if key not in self.known:
            own = torch.Generator(self.model.device).manual_seed(self.seed)
            prompts, outputs = some_of(draw.all_prompts, draw.outputs, some)
            apart = kinds_of(draw.all_clusters[some], outputs, COPIES)
            batch = self.model.curvature_batch(*some_of(prompts, outputs, apart.first), own)
            rows = self._stored(self.model.curvature_terms, batch, f"curvature on {draw.name}")
            self._keep(key, draw.outputs, apart.every(rows))
        return self.known[key], some

    def hessian(self, model: ExactCurvature, draw: SourceDraw) -> Callable[[Tensor], Tensor]:
        """Weights (n·K,) of a source's candidates to their mean Hessian."""
        batch = self._loss_of(draw)[1]
        return lambda weights: model.mean_hessian(self.parameters, batch, weights)

    def answers(self, draw: EvaluationDraw) -> Tensor:
        """(n·K, r) ∇log q of the answers of an evaluation."""
        return self._score(draw, draw.outputs, 1.0)

    def _score(self, draw: SourceDraw | EvaluationDraw, outputs: Any, temperature: float) -> Tensor:
        key = ("score", id(outputs), temperature)
        if key not in self.known:
            if self.model.loss_is_score and temperature == 1 and ("loss", id(outputs)) in self.known:
                known = self.known["loss", id(outputs)]
                found = torch.neg(known, out=self._empty(*known.shape, dtype=known.dtype))
            else:
                apart = kinds_of(draw.all_clusters, outputs, sampled=True)
                batch = self.model.score_batch(*some_of(draw.all_prompts, outputs, apart.first))
                found = apart.every(
                    self._stored(
                        lambda p, b: self.model.log_probs(p, b, temperature), batch, f"log-likelihoods on {draw.name}"
                    )
                )
            self._keep(key, outputs, found)
        return self.known[key]

    def _loss_of(self, draw: SourceDraw, some: Tensor | None = None) -> tuple[Fn, Batch, str]:
        """Of all candidates, or of some."""
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        prompts, outputs = some_of(draw.all_prompts, draw.outputs, some)
        return self.model.losses, self.model.loss_batch(prompts, outputs, generator), f"losses on {draw.name}"

    def _check_any(self, rows: list[Tensor]) -> None:
        if not any(bool((part != 0).any()) for whole in rows for part in whole.split(_at_once(whole))):
            raise CheckFailedError(
                f"models.{self.model.name}: all gradients of its loss are zero; its adapter is frozen or not in use: look at "
                "`lora.target` and the checkpoint"
            )

    def _keep(self, key: tuple[Any, ...], outputs: Any, rows: Tensor) -> None:
        self.known[key] = rows
        self.kept.append(outputs)

    def _empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self.room.empty(*shape, dtype=dtype) if self.large else torch.empty(*shape, dtype=dtype)

    def _copied(self, rows: Tensor) -> Tensor:
        return self._empty(*rows.shape, dtype=rows.dtype).copy_(rows)

    def _turned(self, raw: Tensor) -> Tensor:
        """Rows in the optimiser's units, in place."""
        assert self.basis is not None
        return raw if self.basis.scale is None else raw.mul_(self.basis.scale)

    def _stored(self, fn: Fn, batch: Batch, what: str) -> Tensor:
        """Gradients (n, r) of all samples, as they are while there are no coordinates yet."""
        rows: Tensor | None = None
        held: list[tuple[Tensor, Tensor]] = []

        def put() -> None:
            nonlocal rows
            index, part = torch.cat([i for i, _ in held]), torch.cat([p for _, p in held])
            part = part.cpu() if self.basis is None else self.basis.of_gradients(part)
            if rows is None:
                rows = self._empty(len(batch[0]), part.shape[1], dtype=part.dtype)
            rows[index] = part
            held.clear()

        bad = 0
        for index, part in self._parts(fn, batch, what):
            bad += int((~torch.isfinite(part).all(1)).sum())
            held.append((index, part))
            # all own samples are gone through for every block that is turned into their span: the fewer, the better
            if self.basis is None or self.basis.basis is None or sum(len(p) for _, p in held) >= _at_once(part):
                put()
        if held:
            put()
        assert rows is not None
        if bad:
            raise CheckFailedError(
                f"models.{self.model.name}: gradients of its {what} are not finite for {bad:,} of {len(rows):,} samples; look at "
                "the checkpoint, or estimate in float32"
            )
        return rows

    def _parts(self, fn: Fn, batch: Batch, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Which samples, and their gradients as they are."""
        split = getattr(self.model, "chunks", in_order)
        for index, part in indexed_rows(fn, self.parameters, batch, self.model.chunk, split):
            yield index, part
            if self.advance is not None:
                self.advance(len(part))


class _Scale:
    """AdamW's scale of every parameter, from the mixture's first and second moments."""

    def __init__(self, training: Training | None) -> None:
        self.training = training
        self.mean = self.second = torch.zeros(())

    def add(self, rows: Tensor, share: Tensor) -> None:
        """Count rows (m, d) with these shares (m,) of the mixture."""
        share = share.to(rows.dtype)
        self.mean = self.mean + share @ rows
        self.second = self.second + share @ rows.square()

    def scale(self) -> Tensor | None:
        """(d,); None with another optimiser."""
        if self.training is None:
            return None
        return adam_scale(self.mean, self.second, self.training.batch_size * self.training.accumulate)


def _at_once(rows: Tensor) -> int:
    """How many rows as long as these are gone through at once."""
    return max(1, HELD // max(1, rows.shape[1] * rows.element_size()))
