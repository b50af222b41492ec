r"""What curators do to a distribution: exact pick operators on finite outcome sets.

K candidates are drawn independently from p and one is picked by the Plackett–Luce rule. The distribution of the
pick is

    q(x) = p(x) · K · E_{y_2..y_K ∼ p}[ e^{r(x)} / (e^{r(x)} + Σ_l e^{r(y_l)}) ],

a sum over n^{K-1} terms. With 1/s = ∫_0^∞ e^{-us} du the candidates separate and it is one integral,

    q(x) = p(x) · K · ∫_0^∞ e^{r(x)} e^{-u e^{r(x)}} M(u)^{K-1} du,    M(u) = Σ_y p(y) e^{-u e^{r(y)}},

which costs O(n · nodes) for any K. On u = e^v the integrand is analytic for |Im v| < π/2 and decays on both sides,
so the trapezoid rule with step h errs by e^{-π²/h}: below 1e-14 at h = 0.3.

Every function here broadcasts over leading dimensions and is differentiable by torch in all real arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEP = 0.3
LEFT = 37.0
RIGHT = 3.8


def num_nodes(spread: float, candidates: float) -> int:
    """Quadrature nodes that keep the step at 0.3 for rewards (in units of τ) spread over ``spread``."""
    return max(16, math.ceil((LEFT + RIGHT + math.log(max(candidates, 1.0)) + spread) / STEP) + 1)


def plackett_luce(p: Tensor, r: Tensor, candidates: Tensor, nodes: int) -> Tensor:
    r"""Distribution of the pick among K candidates, exactly for any real K ≥ 1.

    Args:
        p: (..., n) distribution the candidates are drawn from.
        r: (..., n) reward divided by the curation temperature τ.
        candidates: (...) K; need not be whole, which makes thresholds in K differentiable.
        nodes: Quadrature nodes; see :func:`num_nodes`.

    Returns:
        (..., n) distribution of the pick; sums to 1.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.5, 0.5], dtype=torch.float64)
        >>> r = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> q = plackett_luce(p, r, torch.tensor(2.0, dtype=torch.float64), num_nodes(1.0, 2.0))
        >>> # by hand: both differ half of the time, then e/(1+e); q(1) = 1/4 + 1/2 · e/(1+e)
        >>> abs(float(q[1]) - (0.25 + 0.5 * 2.718281828459045 / 3.718281828459045)) < 1e-13
        True

    Reference: Ferbach et al. 2024 (the operator); Plackett–Luce choice. The integral form is ours.
    """
    top = r.detach().amax(-1, keepdim=True)
    r = r - top
    spread = -r.detach().amin(-1)
    log_k = torch.log(candidates.detach())
    low, high = -LEFT - log_k, RIGHT + spread
    step = ((high - low) / (nodes - 1))[..., None]
    v = low[..., None] + step * torch.arange(nodes, dtype=p.dtype, device=p.device)
    tiny = torch.finfo(p.dtype).tiny
    rate = torch.exp(v[..., None] + r[..., None, :])  # (..., nodes, n): u e^{r}
    log_m = torch.logsumexp(torch.log(p.clamp_min(tiny))[..., None, :] - rate, -1)
    outer = step * torch.exp((candidates[..., None] - 1) * log_m)
    integral = torch.einsum("...v,...vn->...n", outer, rate * torch.exp(-rate))
    q = p * candidates[..., None] * integral
    return q / q.sum(-1, keepdim=True)


def best_of(p: Tensor, r: Tensor, candidates: Tensor) -> Tensor:
    """Distribution of the best of K candidates (τ → 0); ties are broken uniformly among the tied candidates.

    P(best reward ≤ r) = F(r)^K with F the distribution function of the reward under p; within one level of the reward
    the pick is distributed as p.

    Args:
        p: (..., n) distribution the candidates are drawn from.
        r: (n,) or broadcastable; only its order matters.
        candidates: (...) K ≥ 1.
    """
    r = r.detach().expand(p.shape)
    order = torch.argsort(r, dim=-1, stable=True)
    sorted_r, sorted_p = r.gather(-1, order), p.gather(-1, order)
    new = torch.ones_like(sorted_r, dtype=torch.long)
    new[..., 1:] = (sorted_r[..., 1:] > sorted_r[..., :-1]).long()
    level = new.cumsum(-1) - 1
    mass = torch.zeros_like(p).scatter_add(-1, level, sorted_p)
    total = mass.cumsum(-1)
    below = total - mass
    k = candidates[..., None]
    some = mass > 0
    ratio = (total**k - below.clamp_min(0.0) ** k) / torch.where(some, mass, torch.ones_like(mass))
    factor = torch.where(some, ratio, k * total.clamp_min(1e-300) ** (k - 1)).gather(-1, level)
    q = torch.zeros_like(p).scatter(-1, order, sorted_p * factor)
    return q / q.sum(-1, keepdim=True)


def tilt(p: Tensor, r: Tensor) -> Tensor:
    """Exponential tilting q ∝ p e^r, the limit K → ∞.

    Args:
        p: (..., n) distribution.
        r: (..., n) reward divided by the curation temperature τ.
    """
    q = p * torch.exp(r - r.detach().amax(-1, keepdim=True))
    return q / q.sum(-1, keepdim=True)


def pick(kind: str, p: Tensor, reward: Tensor, candidates: Tensor, temperature: Tensor, nodes: int) -> Tensor:
    """One stage by its kind: ``plackett_luce``, ``best`` (τ = 0) or ``tilt`` (K = ∞)."""
    if kind == "best":
        return best_of(p, reward, candidates)
    r = reward / temperature[..., None]
    return tilt(p, r) if kind == "tilt" else plackett_luce(p, r, candidates, nodes)
