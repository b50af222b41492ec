r"""Autoregressive spline flow: a small network on vectors with an exact likelihood and an exact sampler.

Coordinate i of an outcome y is carried to a standard-normal coordinate by an increasing map whose shape depends on the
coordinates before it,

    z_i = f(y_i; spline_i),   spline_1 free parameters,   (spline_2, ..., spline_d) = MLP(y_1, ..., y_{d-1}), masked,
    log q(y; θ) = Σ_i [ log N(z_i; 0, 1) + log f'(y_i; spline_i) ].

f is a monotone rational-quadratic spline on [−bound, bound] and the identity beyond, so that both directions, the
likelihood and the sampler, are analytic (Durkan, Bekasov, Murray and Papamakarios 2019, Neural Spline Flows, equations 4 to 8;
Gregory and Delbourgo 1982). Outcomes should mostly lie within the bound: beyond it the model is a standard normal's tail.

This file is all that it takes to add a kind of network: the protocol of :mod:`crossfeed.networks.base`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from crossfeed.describe.network_nodes import Flow
from crossfeed.errors import DataError, SettingError
from crossfeed.networks.base import LIKELIHOOD, RSAMPLE, Advance, Outputs

_MIN_BINS = 0.01  # of the interval is shared equally: no bin vanishes, so the map stays increasing
_MIN_SLOPE = 1e-3
_SLOPE_ONE = math.log(math.expm1(1.0 - _MIN_SLOPE))  # the free parameter 0 means slope 1
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_ROWS_AT_ONCE = 8192


class SplineFlow:
    """One model of an ecosystem: a density on R^dim that is evaluated and sampled exactly.

    It works in the precision of ``module``; ``module.double()`` makes it exact to 1e-10.

    Args:
        name: The model's name in the spec.
        family: Sizes.
        dim: d, length of an outcome.
        seed: Of the initial parameters. Every start is close to a standard normal.
        device: Where the parameters live.

    Example:
        >>> flow = SplineFlow("p", Flow(width=8), dim=2, seed=0)
        >>> once = torch.zeros(1, dtype=torch.int64)
        >>> y = flow.sample(once, torch.tensor([5]), torch.Generator().manual_seed(1))
        >>> y.shape, flow.log_prob(once.expand(5), y).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    capabilities = frozenset({LIKELIHOOD, RSAMPLE})

    def __init__(self, name: str, family: Flow, dim: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.device = torch.device(device)
        self.module = Splines(family, dim, seed).to(self.device)

    def parameters(self) -> dict[str, Tensor]:
        """All of them, live, in the order of the module."""
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def load(self, parameters: dict[str, Tensor]) -> None:
        """Copy these values into the parameters.

        Raises:
            DataError: names or shapes differ; says which.
        """
        mine = self.parameters()
        wrong = [n for n in sorted(mine.keys() | parameters.keys()) if _shape(mine, n) != _shape(parameters, n)]
        if wrong:
            raise DataError(
                f"models.{self.name}: the stored parameters do not fit this network, first {wrong[0]}: found "
                f"{_shape(parameters, wrong[0])}, need {_shape(mine, wrong[0])}; use the family that they were saved with"
            )
        for name, value in mine.items():
            value.copy_(parameters[name])

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        """−log q(y; θ) per sample, (n,); prompts play no part and nothing is random."""
        return -self.log_prob(prompts, outputs)

    def lengths(self, prompts: Tensor, outputs: Outputs) -> Tensor | None:
        """None: every sample costs the same."""
        return None

    def train(self, mode: bool) -> None:
        """Nothing to switch: there is no dropout."""
        self.module.train(mode)

    @torch.no_grad()
    def sample(
        self,
        prompts: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        evaluating: bool = False,
        batch_size: int = 64,
        advance: Advance | None = None,
    ) -> Tensor:
        """Σ candidates independent vectors, (n, dim); at least 8192 at once, whatever ``batch_size`` says.

        Raises:
            SettingError: a temperature other than 1, for which the sampler has no exact form.
        """
        if temperature != 1.0:
            raise SettingError(
                f"models.{self.name}: a flow samples at temperature 1 only, found {temperature:g}; "
                "set the sources' sampling_temperature to 1"
            )
        noise = torch.randn(int(candidates.sum()), self.module.dim, generator=generator, device=generator.device)
        parts = []
        for part in noise.split(max(batch_size, _ROWS_AT_ONCE)):
            parts.append(self.rsample(prompts, part))
            if advance is not None:
                advance(len(part))
        return torch.cat(parts)

    def log_prob(self, prompts: Tensor, outputs: Outputs) -> Tensor:
        """Log q(y; θ) per sample, (n,), differentiable."""
        assert isinstance(outputs, Tensor)
        return self.module(outputs.to(self.device, self.module.first.dtype))

    def rsample(self, prompts: Tensor, noise: Tensor) -> Tensor:
        """Outputs (n, dim) at fixed standard-normal noise (n, dim), differentiable in parameters and noise."""
        return self.module.to_outputs(noise.to(self.device, self.module.first.dtype))

    @torch.no_grad()
    def probe(self) -> Tensor:
        """What the sampler makes of a fixed grid of noise that meets every bin of every spline."""
        module = self.module
        line = torch.linspace(
            -module.bound, module.bound, 8 * module.bins, device=self.device, dtype=module.first.dtype
        )
        columns = [
            line[torch.arange(len(line), device=self.device) * (2 * i + 1) % len(line)] for i in range(module.dim)
        ]
        return module.to_outputs(torch.stack(columns, -1)).flatten()

    def base_probe(self) -> None:
        """None: every parameter is trained."""
        return None


class Splines(torch.nn.Module):
    """The network: parameters, and both directions of the map; ``torch.func`` can follow both (vmap, grad, jvp)."""

    def __init__(self, family: Flow, dim: int, seed: int) -> None:
        super().__init__()
        self.dim, self.bins, self.bound = dim, family.bins, family.bound
        random = torch.Generator().manual_seed(seed)
        numbers = 3 * family.bins - 1  # of one spline: widths and heights of the bins, slopes at the inner knots
        self.first = torch.nn.Parameter(torch.zeros(1, numbers))
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        # What a unit may see: unit of degree g depends on the first g coordinates only.
        degrees = [torch.arange(1, dim), *[torch.arange(family.width) % max(dim - 1, 1) + 1] * family.layers]
        degrees.append(torch.arange(1, dim).repeat_interleave(numbers))
        for number in range(family.layers + 1 if dim > 1 else 0):
            inner, outer = degrees[number : number + 2]
            size = 0.1 if number == family.layers else 1.0
            scale = size / math.sqrt(len(inner))
            self.weights.append(torch.nn.Parameter(scale * torch.randn(len(outer), len(inner), generator=random)))
            self.biases.append(torch.nn.Parameter(size * torch.randn(len(outer), generator=random)))
            mask = (outer[:, None] >= inner).to(torch.float32) if dim > 2 else None  # with two, all may see the first
            self.register_buffer(f"mask_{number}", mask, persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """Log q(y; θ) of outputs (..., dim), as (...)."""
        noise, log_slope = self.to_noise(outputs)
        return (log_slope - 0.5 * noise.square() - _HALF_LOG_2PI).sum(-1)

    def to_noise(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Noise z (..., dim) that gives these outputs, and log ∂z_i/∂y_i (..., dim)."""
        x0, y0, dx, dy, d0, d1 = _bins(outputs, self._knots(self._shapes(outputs)), 0)
        s, inside = dy / dx, outputs.abs() < self.bound
        t = torch.where(inside, (outputs - x0) / dx, 0.5)  # outside the result is not used, but must be finite
        square, mixed = t.square(), t * (1 - t)
        below = s + (d1 + d0 - 2 * s) * mixed
        noise = y0 + dy * (s * square + d0 * mixed) / below
        log_slope = 2 * (s / below).log() + (d1 * square + 2 * s * mixed + d0 * (1 - t).square()).log()
        return torch.where(inside, noise, outputs), torch.where(inside, log_slope, 0.0)

    def to_outputs(self, noise: Tensor) -> Tensor:
        """Outputs (..., dim) of standard-normal noise (..., dim): one coordinate after another."""
        known = torch.zeros_like(noise)
        columns: list[Tensor] = []
        for i in range(self.dim):
            z = noise[..., i : i + 1]
            x0, y0, dx, dy, d0, d1 = _bins(z, self._knots(self._shapes(known, only=i)), 1)
            s, inside = dy / dx, z.abs() < self.bound
            up = torch.where(inside, z - y0, 0.5 * dy)
            bend = up * (d1 + d0 - 2 * s)
            a, b, c = dy * (s - d0) + bend, dy * d0 - bend, s * up
            t = 2 * c / (b + (b.square() + 4 * a * c).sqrt())  # the root in [0, 1] of the bin's quadratic equation
            columns.append(torch.where(inside, x0 + dx * t, z))
            known = torch.cat([*columns, torch.zeros_like(noise[..., i + 1 :])], -1)
        return known

    def _shapes(self, outputs: Tensor, only: int | None = None) -> Tensor:
        """Free numbers of the splines, (..., dim, 3·bins − 1), or of one coordinate's, (..., 1, 3·bins − 1)."""
        first, hidden, last = self.first.expand(*outputs.shape[:-1], 1, -1), outputs[..., :-1], len(self.weights) - 1
        if only == 0 or self.dim == 1:
            return first
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            mask = getattr(self, f"mask_{number}")
            weight = weight if mask is None else weight * mask
            if number == last and only is not None:
                rows = slice((only - 1) * first.shape[-1], only * first.shape[-1])
                weight, bias = weight[rows], bias[rows]
            hidden = functional.linear(hidden, weight, bias)
            if number < last:
                hidden = functional.silu(hidden)
        rest = hidden.to(self.first.dtype).unflatten(-1, (-1, first.shape[-1]))
        return rest if only is not None else torch.cat([first, rest], -2)

    def _knots(self, shapes: Tensor) -> Tensor:
        """Knots in outputs, knots in noise and slopes there, (..., 3, bins + 1)."""
        k, bound = self.bins, self.bound
        shares = shapes[..., : 2 * k].unflatten(-1, (2, k)).softmax(-1) * (1 - _MIN_BINS) + _MIN_BINS / k
        inner = 2 * bound * shares[..., :-1].cumsum(-1) - bound
        ends = functional.pad(functional.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
        slopes = functional.softplus(shapes[..., 2 * k :] + _SLOPE_ONE) + _MIN_SLOPE
        return torch.cat([ends, functional.pad(slopes, (1, 1), value=1.0).unsqueeze(-2)], -2)


def _bins(value: Tensor, knots: Tensor, side: int) -> tuple[Tensor, ...]:
    """Bins of values (...) on the outputs' (0) or the noise's side (1): left ends x0, y0, widths dx, dy, slopes d0, d1."""
    index = (value.unsqueeze(-1) >= knots[..., side, 1:-1]).sum(-1)
    pair = torch.stack([index, index + 1], -1).unsqueeze(-2).expand(*index.shape, 3, 2)
    left, right = knots.gather(-1, pair).unbind(-1)
    (x0, y0, d0), (x1, y1, d1) = left.unbind(-1), right.unbind(-1)
    return x0, y0, x1 - x0, y1 - y0, d0, d1


def _shape(parameters: dict[str, Tensor], name: str) -> str:
    return f"shape {tuple(parameters[name].shape)}" if name in parameters else "nothing of this name"
