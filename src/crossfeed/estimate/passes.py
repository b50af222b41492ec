r"""One model's passes over samples: every product that the matrix-free solver makes, none of which keeps a gradient.

Vectors are in coordinates that the model's optimiser steps plainly in (:func:`crossfeed.estimate.steps.adam_scale`): a parameter's is
θ/s, a gradient's is g·s, with s = 1 for plain gradient steps. They are those of :mod:`crossfeed.estimate.bank` where that keeps the
parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.estimate.base import Batch, Differentiable, ExactCurvature
from crossfeed.estimate.derivatives import (
    Fn,
    flatten,
    in_order,
    indexed_rows,
    mixed_gradient,
    mixed_pull,
    products,
    sampler_pull,
    sampler_tangent,
    weighted_gradient,
)
from crossfeed.estimate.draws import SourceDraw, some_picks
from crossfeed.estimate.steps import adam_scale
from crossfeed.networks.base import Outputs
from crossfeed.record.pool import take


class Passes:
    """A model and its samples.

    What is random in losses and curvatures is drawn once, by the seed, as :func:`crossfeed.estimate.bank.build_bank` draws it; batches
    are kept, so that memory grows with the samples, not with samples times parameters.

    Args:
        model: At its current parameters.
        seed: Of what is random in losses.
        curvature_samples: Most samples of a source whose curvature enters.
        device: Where vectors are.
        dtype: Of vectors.
        sampler_chunk: Samples that go backwards through the sampler at once; None: the model's own chunk.

    Attributes:
        size: d.
        exact: Whether the model knows its curvature itself.
        scale: (d,) s; None for 1.
        samples: Samples gone through so far, by kind: ``forward`` (tangents), ``backward`` (gradients), ``rows`` (per-sample
            gradients), ``sampler`` (tangents or gradients through the sampler), ``mixed`` (second derivatives).
    """

    def __init__(
        self,
        model: Differentiable,
        seed: int,
        curvature_samples: int,
        device: torch.device,
        dtype: torch.dtype,
        sampler_chunk: int | None = None,
    ) -> None:
        self.model, self.seed, self.most, self.device, self.dtype = model, seed, curvature_samples, device, dtype
        self.parameters, self.sampler_chunk = model.parameters(), sampler_chunk or model.chunk
        self.size = sum(value.numel() for value in self.parameters.values())
        self.exact = isinstance(model, ExactCurvature)
        self.scale: Tensor | None = None
        self.samples: dict[str, int] = {}
        self._split = getattr(model, "chunks", in_order)
        self._known: dict[Hashable, Any] = {}
        self._kept: list[Any] = []  # so that ids stay those of living objects

    @property
    def theta(self) -> Tensor:
        """(d,) θ in these coordinates."""
        values = self._out(flatten(self.parameters))
        return values if self.scale is None else values / self.scale

    def to_parameters(self, x: Tensor) -> Tensor:
        """(d,) coordinates to the change of θ that they stand for."""
        return x if self.scale is None else x * self.scale

    # --- losses ---

    def loss_gradient(self, draw: SourceDraw, weights: Tensor) -> Tensor:
        """Σ w ∇ℓ over a source's n·K candidates, (d,)."""
        return self._gradient(self.model.losses, self._losses(draw), weights)

    def loss_products(self, draw: SourceDraw, c: Tensor) -> Tensor:
        """⟨∇ℓ, c⟩ of every candidate, (n·K,) float64."""
        return self._products(self.model.losses, self._losses(draw), c)

    def mixed(self, draw: SourceDraw, tangents: Tensor, weights: Tensor) -> Tensor:
        """Σ w ∂_y(∇ℓ) ẏ, (d,), for tangents (n·K, …) of a source's outputs."""
        self._count("mixed", len(weights))
        y = self._tensor(draw.outputs)
        found = mixed_gradient(
            self.model, self.parameters, self._losses(draw), y, tangents.to(y), weights, self.model.chunk
        )
        return self._scaled(self._out(found))

    def mixed_pull(self, draw: SourceDraw, c: Tensor) -> Tensor:
        """∂_y ⟨∇ℓ, c⟩ of every candidate, (n·K, …) like the outputs."""
        y = self._tensor(draw.outputs)
        self._count("mixed", len(y))
        return mixed_pull(self.model, self.parameters, self._losses(draw), y, self._scaled(c), self.model.chunk)

    def loss_rows(self, draw: SourceDraw, weights: Tensor) -> Tensor:
        """(m, d) rows √w ∇ℓ of the candidates whose weight is above 0, by per-sample gradients."""
        place = weights.gt(0).long().cumsum(0) - 1
        out = torch.empty(int(weights.gt(0).sum()), self.size, dtype=self.dtype, device=self.device)
        self._count("rows", len(weights))
        batch, split = self._losses(draw), self._split
        for index, rows in indexed_rows(self.model.losses, self.parameters, batch, self.model.chunk, split):
            index = index.cpu()
            here = weights[index] > 0
            share = weights[index][here].sqrt().to(rows)
            out[place[index][here].to(out.device)] = self._scaled(
                self._out(share[:, None] * rows[here.to(rows.device)])
            )
        return out

    def moments(self, pairs: Sequence[tuple[SourceDraw, Tensor]]) -> tuple[Tensor, Tensor]:
        """Σ w ∇ℓ and Σ w (∇ℓ)² (d,) of sources with weights (n·K,), by per-sample gradients, without the scale."""
        mean = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        second = torch.zeros_like(mean)
        for draw, weights in pairs:
            batch = self._losses(draw)
            self._count("rows", len(weights))
            for index, rows in indexed_rows(self.model.losses, self.parameters, batch, self.model.chunk, self._split):
                share = weights[index].to(rows)
                mean += self._out(share @ rows)
                second += self._out(share @ rows.square())
        return mean, second

    def set_scale(self, training: Training, pairs: Sequence[tuple[SourceDraw, Tensor]]) -> None:
        """Take AdamW's scale from the mixture's per-sample gradients: one pass of rows."""
        self.scale = adam_scale(*self.moments(pairs), training.batch_size * training.accumulate)

    # --- curvature ---

    def curvature(self, draw: SourceDraw, x: Tensor) -> Tensor:
        """C x, (d,): C = mean of h hᵀ over the curvature samples of a source; one tangent and one gradient of each."""
        batch, num = self._curved(draw)
        found = self._products(self.model.curvature_terms, batch, x)
        return self._gradient(self.model.curvature_terms, batch, found / num)

    def curvature_rows(self, draw: SourceDraw) -> Tensor:
        """(m, d) rows R of the curvature samples of a source with C = RᵀR, by per-sample gradients."""
        batch, num = self._curved(draw)
        self._count("rows", num)
        out = torch.empty(num, self.size, dtype=self.dtype, device=self.device)
        split = self._split
        for index, rows in indexed_rows(self.model.curvature_terms, self.parameters, batch, self.model.chunk, split):
            out[index.to(out.device)] = self._scaled(self._out(rows)) / num**0.5
        return out

    def curvature_trace(self, draw: SourceDraw) -> float:
        """Trace of C, by per-sample gradients."""
        if self.exact:
            return float(self.hessian(draw).trace())
        batch, num = self._curved(draw)
        self._count("rows", num)
        total = 0.0
        split = self._split
        for _, rows in indexed_rows(self.model.curvature_terms, self.parameters, batch, self.model.chunk, split):
            total += float((rows if self.scale is None else rows * self.scale.to(rows)).double().square().sum())
        return total / num

    def hessian(self, draw: SourceDraw) -> Tensor:
        """(d, d) mean Hessian of a source, where the model knows it."""
        assert isinstance(self.model, ExactCurvature)
        shares = (draw.probabilities / len(draw.probabilities)).flatten()
        found = self._out(self.model.mean_hessian(self.parameters, self._losses(draw), shares))
        return found if self.scale is None else self.scale[:, None] * found * self.scale

    # --- likelihood ---

    def score_gradient(self, prompts: Tensor, outputs: Outputs, temperature: float, weights: Tensor) -> Tensor:
        """Σ w ∇log q, (d,)."""
        return self._gradient(self._log_probs(temperature), self._scores(prompts, outputs), weights)

    def score_products(self, prompts: Tensor, outputs: Outputs, temperature: float, x: Tensor) -> Tensor:
        """⟨∇log q, x⟩ of every output, (n·K,) float64."""
        return self._products(self._log_probs(temperature), self._scores(prompts, outputs), x)

    # --- sampler ---

    def tangent(self, prompts: Tensor, noise: Tensor, x: Tensor, evaluating: bool = False) -> Tensor:
        """ẏ along x, (n, …), on the model's device."""
        self._count("sampler", len(prompts))
        v, chunk = self._scaled(x), self.model.chunk
        _, found = sampler_tangent(
            self.model, self.parameters, prompts, noise.to(self.model.device), v, chunk, evaluating
        )
        return found

    def pull(self, prompts: Tensor, noise: Tensor, cotangents: Tensor, evaluating: bool = False) -> Tensor:
        """Σ (∂_θ y)ᵀ c, (d,)."""
        self._count("sampler", len(prompts))
        c, chunk = cotangents.to(self.model.device), self.sampler_chunk
        e = noise.to(self.model.device)
        return self._scaled(self._out(sampler_pull(self.model, self.parameters, prompts, e, c, chunk, evaluating)))

    # --- inside ---

    def _losses(self, draw: SourceDraw) -> Batch:
        def make() -> Batch:
            generator = torch.Generator(self.model.device).manual_seed(self.seed)
            return self.model.loss_batch(draw.all_prompts, self._own(draw.outputs), generator)

        found: Batch = self._once(("loss", id(draw.outputs)), draw.outputs, make)
        return found

    def _scores(self, prompts: Tensor, outputs: Outputs) -> Batch:
        found: Batch = self._once(("score", id(outputs)), outputs, lambda: self.model.score_batch(prompts, outputs))
        return found

    def _curved(self, draw: SourceDraw) -> tuple[Batch, int]:
        def make() -> tuple[Batch, int]:
            groups, pick = some_picks(draw, self.most, self.seed)
            outputs = take(self._own(draw.outputs), groups * draw.candidates + pick)
            generator = torch.Generator(self.model.device).manual_seed(self.seed)
            return self.model.curvature_batch(draw.prompts[groups], outputs, generator), len(groups)

        found: tuple[Batch, int] = self._once(("curvature", id(draw)), draw, make)
        return found

    def _once(self, key: Hashable, alive: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
            self._kept.append(alive)
        return self._known[key]

    def _log_probs(self, temperature: float) -> Fn:
        return lambda parameters, batch: self.model.log_probs(parameters, batch, temperature)

    def _products(self, fn: Fn, batch: Batch, x: Tensor) -> Tensor:
        self._count("forward", len(batch[0]))
        return products(fn, self.parameters, batch, self._scaled(x), self.model.chunk, self._split).cpu().double()

    def _gradient(self, fn: Fn, batch: Batch, weights: Tensor) -> Tensor:
        self._count("backward", len(weights))
        found = weighted_gradient(fn, self.parameters, batch, weights, self.model.chunk, self._split)
        return self._scaled(self._out(found))

    def _count(self, kind: str, num: int) -> None:
        self.samples[kind] = self.samples.get(kind, 0) + num

    def _out(self, v: Tensor) -> Tensor:
        return v.to(self.device, self.dtype)

    def _scaled(self, v: Tensor) -> Tensor:
        return v if self.scale is None else v * self.scale

    def _tensor(self, outputs: Outputs) -> Tensor:
        found = self._own(outputs)
        assert isinstance(found, Tensor)
        return found.to(self.model.device)

    def _own(self, outputs: Outputs) -> Outputs:
        """Vectors and images in floats in the model's own precision, whoever made them."""
        if isinstance(outputs, Tensor) and outputs.is_floating_point():
            return outputs.to(next(iter(self.parameters.values())).dtype)
        return outputs
