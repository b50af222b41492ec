r"""Which edges and which walks through the graph carry an influence.

Cutting an edge e = (consumer, source) freezes its producer as that consumer sees it: w·B_e is taken out of D, the weights stay. With
u = D⁻ᵀ∇J_k and x = D⁻¹ push_i, the first-order share of e in I[k, i] is −u_e·B_e x_e (the derivative by the edge's strength), and the
exact influence without it follows by the Woodbury identity from solves that were made once. [beyond]

Walks: with self-loops summed into D_ii, D = D_diag − O and D⁻¹ = Σ_n (D_diag⁻¹O)ⁿ D_diag⁻¹, a sum over walks i → … → k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossfeed.influence.matrix import Influence


@dataclass(frozen=True)
class EdgeEffect:
    """What one source carries of one influence.

    Attributes:
        source: Index in ``Program.sources``.
        affected: k.
        intervened: i.
        share: First-order contribution −⟨u, B x⟩; shares of all edges do not sum to the influence.
        without: I[k, i] with the edge cut, exactly.
        value: I[k, i].
    """

    source: int
    affected: int
    intervened: int
    share: float
    without: float
    value: float


def edge_blocks(found: Influence) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """(source index, rows, cols, w·B) of every edge between models, self-loops included."""
    out = []
    for e in found.lin.edges:
        for k, source in enumerate(e.group.source.tolist()):
            out.append((source, e.rows[k], e.cols[k], e.value[k]))
    return out


def edge_effects(
    found: Influence, pairs: list[tuple[int, int]], exact: bool = True, top: int | None = None
) -> list[EdgeEffect]:
    """Effect of every edge on the influences of ``pairs`` (affected, intervened).

    Args:
        found: The influence.
        pairs: Which influences.
        exact: Cut each edge exactly (a small solve an edge); otherwise ``without`` is the first-order value − share.
        top: Only the edges with the largest |share| a pair.
    """
    primary = found.program.primary
    blocks = edge_blocks(found)
    adjoint = found.adjoint[:, primary]
    shares = {p: [-float(adjoint[r, p[0]] @ (b @ found.response[c, p[1]])) for _, r, c, b in blocks] for p in pairs}
    out = []
    columns: dict[int, Tensor] = {}
    for pair in pairs:
        ranked = sorted(range(len(blocks)), key=lambda n: -abs(shares[pair][n]))[:top]
        for n in ranked:
            source, rows, cols, block = blocks[n]
            value = float(found.matrix[pair])
            without = value - shares[pair][n]
            if exact:
                if n not in columns:
                    B = torch.zeros(found.program.num_params, block.shape[0], dtype=block.dtype)
                    B[rows] = torch.eye(block.shape[0], dtype=block.dtype)
                    columns[n] = found.lin.solve(B).value
                # (D − E_r B E_cᵀ)⁻¹ x-part: x + D⁻¹E_r (I − B E_cᵀD⁻¹E_r)⁻¹ B E_cᵀ x
                small = torch.eye(block.shape[0], dtype=block.dtype) - block @ columns[n][cols]
                extra = columns[n] @ torch.linalg.solve(small, block @ found.response[cols, pair[1]])
                gradient = found.alignment_gradient[primary[pair[0]]]
                without = float(gradient @ (found.response[:, pair[1]] + extra))
            out.append(EdgeEffect(source, *pair, shares[pair][n], without, value))
    return out


@dataclass(frozen=True)
class Walk:
    """One walk intervened → … → affected and what it carries of the influence."""

    path: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Walks:
    """The strongest walks of one pair.

    Attributes:
        affected: k.
        intervened: i.
        walks: By |value|, largest first.
        rest: The influence minus the listed walks.
        converges: Whether the sum over all walks converges; if not, single walks are still exact terms but do not add up.
    """

    affected: int
    intervened: int
    walks: list[Walk]
    rest: float
    converges: bool


def walks(
    found: Influence, affected: int, intervened: int, top: int = 6, max_length: int = 8, width: int = 200
) -> Walks:
    """The strongest walks that carry I[affected, intervened], by beam search over the graph, self-loops summed into their model.

    Args:
        found: The influence.
        affected: k.
        intervened: i.
        top: How many to list.
        max_length: Longest walk, in edges.
        width: Walks kept at each length, by the size of the response they carry.
    """
    program, lin = found.program, found.lin
    merged: dict[tuple[int, int], list[Tensor]] = {}
    for source, _, _, block in edge_blocks(found):
        info = program.sources[source]
        if info.producer is not None and info.producer != info.consumer:
            merged.setdefault((info.producer, info.consumer), []).append(block)
    out_edges: dict[int, list[tuple[int, Tensor]]] = {}
    for (producer, consumer), many in merged.items():
        out_edges.setdefault(producer, []).append((consumer, sum(many[1:], many[0])))
    inverse = {}
    for group, inv in zip(program.model_groups, lin._inverse_diagonal, strict=True):
        inverse.update({int(m): inv[row] for row, m in enumerate(group.members)})
    gradient = found.alignment_gradient[program.primary[affected]][program.span(affected)]
    start = inverse[intervened] @ found.push[program.span(intervened), intervened]
    beam: list[tuple[tuple[int, ...], Tensor]] = [((intervened,), start)]
    complete: list[Walk] = []
    for _ in range(max_length + 1):
        complete += [Walk(path, float(gradient @ x)) for path, x in beam if path[-1] == affected]
        grown = [
            ((*path, consumer), -inverse[consumer] @ (block @ x))
            for path, x in beam
            for consumer, block in out_edges.get(path[-1], [])
        ]
        beam = sorted(grown, key=lambda item: -float(item[1].norm()))[:width]
    complete.sort(key=lambda walk: -abs(walk.value))
    listed = [walk for walk in complete[:top] if abs(walk.value) > 0]
    total = float(found.matrix[affected, intervened])
    return Walks(affected, intervened, listed, total - sum(w.value for w in listed), _converges(found))


def _converges(found: Influence) -> bool:
    x = torch.ones(found.program.num_params, 1, dtype=torch.float64)
    radius = 0.0
    for _ in range(60):
        y = x - found.lin.precondition(found.lin.apply(x))
        radius = float(y.norm() / x.norm())
        if radius == 0:
            break
        x = y / y.norm()
    return radius < 1
