"""How matrix-free products are made and solves are stopped, and how they went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.estimate.bank import CURVATURE


@dataclass(frozen=True)
class Solver:
    """How products are made and solves are stopped.

    Attributes:
        seed: Of what is random in losses.
        curvature_samples: Most samples of a source whose curvature enters.
        tolerance: Of f(H) b, on its change over four Lanczos steps, relative to it.
        most: Most Lanczos steps; memory is as many vectors (d,).
        restart: Krylov dimension of the stable point's GMRES, and of its preconditioner; memory is twice as many vectors (D,).
        sampler_chunk: Samples that go backwards through a sampler at once, each with all its steps; None: the model's own chunk.
        dtype: Of vectors; products come in each model's own precision. float32 halves the memory.
    """

    seed: int = 0
    curvature_samples: int = CURVATURE
    tolerance: float = 1e-6
    most: int = 200
    restart: int = 40
    sampler_chunk: int | None = None
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True, eq=False)
class StableSolution:
    """D⁻¹ v by model.

    Attributes:
        value: By model, (d_i, c).
        result: ``converged`` or ``budget``.
        residual: Largest ‖v − D x‖ / ‖v‖ of a column.
        steps: Products with D.
    """

    value: list[Tensor]
    result: str
    residual: float
    steps: int


@dataclass(frozen=True)
class Solve:
    """How one f(H) b went.

    Attributes:
        model: Name.
        result: ``converged`` or ``budget``.
        residual: As :class:`crossfeed.estimate.lanczos.Applied` has it.
        steps: Products with H.
    """

    model: str
    result: str
    residual: float
    steps: int
