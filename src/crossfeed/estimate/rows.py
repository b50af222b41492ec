r"""One model's per-sample gradients, that the bank keeps: of its own samples' losses and curvatures, and of outputs' likelihoods.

The model's own samples come first, as their gradients make its coordinates (:mod:`crossfeed.estimate.coordinates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.errors import CheckFailedError
from crossfeed.estimate.base import Batch, Differentiable, ExactCurvature
from crossfeed.estimate.coordinates import Coordinates, coordinates
from crossfeed.estimate.derivatives import Fn, in_order, indexed_rows
from crossfeed.estimate.draws import EvaluationDraw, SourceDraw, some_candidates
from crossfeed.estimate.kinds import COPIES, kinds_of, some_of
from crossfeed.estimate.projection import Projection
from crossfeed.estimate.spill import Room
from crossfeed.estimate.steps import adam_scale
from crossfeed.networks.base import Advance

HELD = 1 << 28
"""Bytes of gradients that are gone through at once."""


class Rows:
    """Gradients of one model on the samples it has to do with, in its coordinates; the same outputs are gone through once.

    Args:
        model: At its current parameters.
        seed: Of what is random in losses and curvatures.
        advance: Called with the number of gradients just worked out.
        room: Where they are kept.
    """

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

        Raises:
            CheckFailedError: gradients that are not finite, or all zero.
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
