r"""Outliers in couplings: the gradients of largest leverage are shortened.

B = E[φ sᵀ] has products of gradients: a single output that its consumer finds next to impossible outweighs thousands of others, from some
samples the linearised loop explodes, and from most it does not. So of every set of rows, the
:data:`SHARE` · √n of largest leverage, φᵀ H⁻¹ φ with H the model's own curvature, are shortened to the leverage of the next one
(winsorised means, Tukey 1962; here by norm). As n grows their share falls as 1/√n, so the estimate tends to the same limit. Leverage
is measured through :data:`SKETCH` random directions (Johnson and Lindenstrauss 1984). Pushes and alignments keep
their gradients as they are, and so do models that know their curvature exactly. Ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from crossfeed.estimate.bank import Bank, SourceRows
from crossfeed.estimate.draws import marginal
from crossfeed.estimate.system import outer

SHARE = 3.0
SKETCH = 64
FLOOR = 1e-3
"""Of the mean eigenvalue of H, added to it."""
ENOUGH = 4
"""Rows of the curvature for every coordinate, from all sources together, from which H is worked out; more are left out."""


def shortened(bank: Bank, seed: int = 0) -> Bank:
    """The bank with :attr:`SourceRows.loss_factor` and :attr:`SourceRows.score_factor`.

    Args:
        bank: Gradients.
        seed: Of the random directions.
    """
    known: dict[tuple[int, int], Tensor] = {}
    sketches: dict[int, Tensor | None] = {}

    def factor(rows: Tensor | None, model: int | None) -> Tensor | None:
        if rows is None or model is None:
            return None
        if model not in sketches:
            sketches[model] = _sketch(bank, model, seed)
        sketch = sketches[model]
        if sketch is None:
            return None
        key = (rows.data_ptr(), model)
        if key not in known:
            known[key] = _factor((rows @ sketch.to(rows.dtype)).double().square().sum(1))
        return known[key]

    sources = [
        replace(rows, loss_factor=factor(rows.loss, rows.consumer), score_factor=factor(rows.score, rows.producer))
        for rows in bank.sources
    ]
    return replace(bank, sources=sources)


def _factor(leverage: Tensor) -> Tensor:
    """(n,) √(limit/leverage), at most 1."""
    limit = leverage.topk(min(len(leverage), 1 + int(SHARE * len(leverage) ** 0.5))).values[-1]
    return (limit / leverage.clamp_min(1e-300)).sqrt().clamp_max(1)


def _sketch(bank: Bank, model: int, seed: int) -> Tensor | None:
    """(r, SKETCH) L⁻ᵀ times random directions, H = L Lᵀ; None where H is known exactly, or is 0."""
    mine = [rows for rows in bank.sources if rows.consumer == model and rows.draw.weight]
    if not mine or any(rows.hessian is not None for rows in mine):
        return None
    size = bank.models[model].basis.size
    matrix = torch.zeros(size, size, dtype=torch.float64)
    found = _shares(mine)
    for rows, share in found:
        some = _some(share, max(1, ENOUGH * size // len(found)))
        matrix += outer(rows[some], share[some]) * float(share.sum() / share[some].sum())
    floor = FLOOR * float(matrix.diagonal().mean())
    if not floor > 0:
        return None
    matrix.diagonal().add_(floor)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(size, SKETCH, dtype=torch.float64, generator=generator)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(matrix).T, directions, upper=True)


def _shares(mine: list[SourceRows]) -> list[tuple[Tensor, Tensor]]:
    """Curvature rows that several sources share, once each, with their weights in the mixture."""
    out: dict[int, tuple[Tensor, Tensor]] = {}
    for rows in mine:
        part = marginal(rows.draw)[rows.curved]
        share, key = rows.draw.weight * part / part.sum(), rows.curvature.data_ptr()
        out[key] = rows.curvature, out[key][1] + share if key in out else share
    return list(out.values())


def _some(share: Tensor, most: int) -> Tensor:
    """At most ``most`` rows that have a weight."""
    some = share.nonzero()[:, 0]
    return some[:: max(1, len(some) // most)]
