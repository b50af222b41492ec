r"""Derivatives of per-sample functions by the parameters: rows, products with them, curvature, tangents of samplers.

With f_n(θ) the value of sample n, all of these by torch.func, a chunk of samples at a time, so that no more than a chunk is ever held:

    rows           ∇f_n                       reverse mode, vmapped
    products       ⟨∇f_n, v⟩                  forward mode
    weighted       Σ_n w_n ∇f_n               reverse mode
    hessian        Σ_n w_n ∇²f_n v            forward over reverse
    tangent        ∂_θ y_n(θ; ε_n) v          forward mode through a sampler
    pull           Σ_n (∂_θ y_n)ᵀ c_n         its transpose, reverse mode
    mixed          Σ_n w_n ∇_θ[∂_y ℓ(θ; y_n) ẏ_n]   and its transpose   ∂_y⟨∇_θ ℓ(θ; y_n), v⟩

Results are detached, on the parameters' device and in their precision, which must be the same for all of them. A sample's value may
not depend on the samples beside it. Vectors given in another precision are converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from crossfeed.estimate.base import Batch, Differentiable, Parameters

Fn = Callable[[Parameters, Batch], Tensor]
"""(parameters, batch of n samples) → (n,): :meth:`Differentiable.losses` and the like."""

Split = Callable[[Batch, int], Iterable[tuple[Tensor, Batch]]]
"""(batch, chunk) → (index (m,) int64, these samples), m ≤ chunk; every sample in exactly one part."""

ROWS_BYTES = 1 << 28
"""Of gradients that are worked out at once, besides what the function itself keeps."""


def flatten(parameters: Parameters) -> Tensor:
    """The parameters as one vector (d,), in their order.

    Example:
        >>> flatten({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
        tensor([1., 2., 3.])
    """
    return torch.cat([value.detach().reshape(-1) for value in parameters.values()])


def unflatten(like: Parameters, v: Tensor) -> dict[str, Tensor]:
    """A vector (d,) as tensors with the names, shapes, precision and device of ``like``: the inverse of :func:`flatten`.

    Raises:
        ValueError: v has another length than the parameters together.
    """
    sizes = [value.numel() for value in like.values()]
    if v.shape != (sum(sizes),):
        raise ValueError(f"v: found shape {tuple(v.shape)}; need ({sum(sizes)},), one number a parameter")
    parts = v.detach().split(sizes)
    return {name: part.view(like[name].shape).to(like[name]) for name, part in zip(like, parts, strict=True)}


def rows_at_once(parameters: Parameters, most: int) -> int:
    """Samples whose gradients together take at most 256 MiB; at least 1, at most ``most``."""
    row = sum(value.numel() * value.element_size() for value in parameters.values())
    return max(1, min(most, ROWS_BYTES // max(row, 1)))


def in_order(batch: Batch, chunk: int) -> Iterator[tuple[Tensor, Batch]]:
    """A batch in parts of ``chunk`` consecutive samples, as they are; the plain :data:`Split`.

    Raises:
        ValueError: chunk below 1, or tensors of different length.
    """
    if chunk < 1:
        raise ValueError(f"chunk: found {chunk}; need at least 1")
    sizes = {len(part) for part in batch}
    if len(sizes) != 1:
        raise ValueError(f"batch: found tensors of {sorted(sizes)} samples; need the same number in all")
    for start in range(0, sizes.pop(), chunk):
        parts = tuple(part[start : start + chunk] for part in batch)
        yield torch.arange(start, start + len(parts[0])), parts


# --- one function of the samples ------------------------------------------------------------------------------------


def gradient_rows(fn: Fn, parameters: Parameters, batch: Batch, chunk: int) -> Iterator[Tensor]:
    """Gradients ∇f_n as rows, (m, d) at a time with m ≤ chunk, in the order of the samples.

    A chunk takes about twice the room of its rows, besides what the function itself keeps for m samples.
    """
    for _, rows in indexed_rows(fn, parameters, batch, chunk):
        yield rows


def indexed_rows(
    fn: Fn, parameters: Parameters, batch: Batch, chunk: int, split: Split = in_order
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in whatever order ``split`` takes the samples: (m,) which samples they are, on the CPU, and their rows (m, d)."""
    theta = _detached(parameters)

    def one(values: Parameters, *sample: Tensor) -> Tensor:
        return fn(values, tuple(part[None] for part in sample))[0]

    each = vmap(grad(one), in_dims=(None, *(0 for _ in batch)))
    for index, part in split(batch, chunk):
        slopes = each(theta, *part)
        yield index, torch.cat([slopes[name].detach().flatten(1) for name in theta], 1)


def products(fn: Fn, parameters: Parameters, batch: Batch, v: Tensor, chunk: int, split: Split = in_order) -> Tensor:
    """⟨∇f_n, v⟩ of every sample, (n,), without any gradient: the tangent of fn along v (d,)."""
    theta, along = _detached(parameters), unflatten(parameters, v)
    out = _like(theta, _num(batch))
    for index, part in split(batch, chunk):

        def value(values: Parameters, part: Batch = part) -> Tensor:
            return fn(values, part)

        _, tangent = _jvp(value, theta, along)
        out[index.to(out.device)] = tangent.detach().to(out.dtype)
    return out


def weighted_gradient(
    fn: Fn, parameters: Parameters, batch: Batch, weights: Tensor, chunk: int, split: Split = in_order
) -> Tensor:
    """Σ_n w_n ∇f_n, (d,), for weights (n,): one backward pass a chunk.

    Raises:
        ValueError: not one weight a sample.
    """
    theta, weights = _detached(parameters), _weights(weights, batch, parameters)
    total = _like(theta)
    for index, part in split(batch, chunk):
        total += flatten(grad(_weighted(fn, part, weights, index))(theta))
    return total


def hessian_product(
    fn: Fn, parameters: Parameters, batch: Batch, weights: Tensor, v: Tensor, chunk: int, split: Split = in_order
) -> Tensor:
    """Σ_n w_n ∇²f_n v, (d,), for weights (n,) and v (d,): the tangent of the weighted gradient along v.

    Raises:
        ValueError: not one weight a sample, or one number a parameter.
    """
    theta, along = _detached(parameters), unflatten(parameters, v)
    weights, total = _weights(weights, batch, parameters), _like(theta)
    for index, part in split(batch, chunk):
        _, tangent = _jvp(grad(_weighted(fn, part, weights, index)), theta, along)
        total += flatten(tangent)
    return total


# --- samplers -------------------------------------------------------------------------------------------------------


def sampler_tangent(
    model: Differentiable,
    parameters: Parameters,
    prompts: Tensor,
    noise: Tensor,
    v: Tensor,
    chunk: int,
    evaluating: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs y_n(θ; ε_n) and their tangents ẏ_n = ∂_θ y_n v, both (n, …), at fixed prompts (n,) and noise (n, …)."""
    theta, along = _detached(parameters), unflatten(parameters, v)
    outputs, tangents = [], []
    for _, (x, e) in in_order((prompts, noise), chunk):

        def sampler(values: Parameters, x: Tensor = x, e: Tensor = e) -> Tensor:
            return model.rsample(values, x, e, evaluating=evaluating)

        y, dy = _jvp(sampler, theta, along)
        outputs.append(y.detach())
        tangents.append(dy.detach())
    return _joined(outputs, noise), _joined(tangents, noise)


def sampler_pull(
    model: Differentiable,
    parameters: Parameters,
    prompts: Tensor,
    noise: Tensor,
    cotangents: Tensor,
    chunk: int,
    evaluating: bool = False,
) -> Tensor:
    """Σ_n (∂_θ y_n)ᵀ c_n, (d,), for cotangents (n, …) like the outputs: the transpose of :func:`sampler_tangent`.

    A chunk keeps every step of its samples' sampler: chunks much smaller than for tangents may be needed.
    """
    theta = _detached(parameters)
    total = _like(theta)
    for _, (x, e, c) in in_order((prompts, noise, cotangents), chunk):

        def weighted(values: Parameters, x: Tensor = x, e: Tensor = e, c: Tensor = c) -> Tensor:
            y = model.rsample(values, x, e, evaluating=evaluating)
            return (y * c.to(y)).sum()

        total += flatten(grad(weighted)(theta))
    return total


def mixed_gradient(
    model: Differentiable,
    parameters: Parameters,
    batch: Batch,
    outputs: Tensor,
    tangents: Tensor,
    weights: Tensor,
    chunk: int,
) -> Tensor:
    """Σ_n w_n ∇_θ[∂_y ℓ(θ; y_n) ẏ_n], (d,): how the weighted gradient of the loss moves when outputs move along ẏ.

    Args:
        model: Whose loss ℓ; its ``replace_outputs`` says how the loss depends on the outputs.
        parameters: θ.
        batch: Loss batch of n samples, which holds what else the loss depends on.
        outputs: (n, …) floats y.
        tangents: (n, …) ẏ.
        weights: (n,).
        chunk: Samples at once.

    Raises:
        ValueError: not one weight a sample.
    """
    theta, weights = _detached(parameters), _weights(weights, batch, parameters)
    total = _like(theta)
    for index, (y, dy, *rest) in in_order((outputs.detach(), tangents.detach(), *batch), chunk):

        def slope(y: Tensor, index: Tensor = index, rest: Batch = tuple(rest)) -> dict[str, Tensor]:
            return grad(_weighted(model.losses, model.replace_outputs(rest, y), weights, index))(theta)

        _, tangent = _jvp(slope, y, dy.to(y))
        total += flatten(tangent)
    return total


def mixed_pull(
    model: Differentiable, parameters: Parameters, batch: Batch, outputs: Tensor, v: Tensor, chunk: int
) -> Tensor:
    """∂_y⟨∇_θ ℓ(θ; y_n), v⟩ of every sample, (n, …) like the outputs: the transpose of :func:`mixed_gradient`.

    ⟨v, mixed_gradient(…, ẏ, w)⟩ = Σ_n w_n ⟨ẏ_n, mixed_pull(…, v)_n⟩.
    """
    theta, along = _detached(parameters), unflatten(parameters, v)
    found = []
    for _, (y, *rest) in in_order((outputs.detach(), *batch), chunk):

        def slope(values: Parameters, y: Tensor = y, rest: Batch = tuple(rest)) -> Tensor:
            return grad(lambda z: model.losses(values, model.replace_outputs(rest, z)).sum())(y)

        _, tangent = _jvp(slope, theta, along)
        found.append(tangent.detach())
    return _joined(found, outputs)


# --- inside ---------------------------------------------------------------------------------------------------------


def _weighted(fn: Fn, part: Batch, weights: Tensor, index: Tensor) -> Callable[[Parameters], Tensor]:
    """Σ w_n f_n of the samples ``part``, which are numbers ``index``."""
    mine = weights[index.to(weights.device)]

    def total(values: Parameters) -> Tensor:
        found = fn(values, part)
        return (found * mine.to(found)).sum()

    return total


def _jvp(fn: Callable[[Any], Any], at: Any, along: Any) -> tuple[Any, Any]:
    """Fn there, and its tangent."""
    found = jvp(fn, (at,), (along,))
    return found[0], found[1]


def _weights(weights: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    if weights.shape != (_num(batch),):
        raise ValueError(f"weights: found shape {tuple(weights.shape)}; need ({_num(batch)},), one a sample")
    return weights.detach().to(next(iter(parameters.values())).device)


def _detached(parameters: Parameters) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parameters.items()}


def _num(batch: Batch) -> int:
    return len(batch[0])


def _like(theta: Parameters, num: int | None = None) -> Tensor:
    """Zeros (num,), or one a parameter."""
    first = next(iter(theta.values()))
    return first.new_zeros(sum(value.numel() for value in theta.values()) if num is None else num)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros_like(like)
