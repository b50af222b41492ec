r"""The cross blocks B_ij as passes over samples, by the producer's likelihood or through its sampler; and their transposes.

With n groups of K candidates, π_k the pick's probabilities, φ = ∇ℓ_i and s = ∇log q_j (THEORY section 6),

    B_ij x  = Σ_s w_s Σ_g (Σ_k π_k φ_k)(S_g x − mean S x)/(n − 1),  S_g = Σ_k s_k        score route: a tangent, a gradient
    B_ij x  = Σ_s w_s mean_g Σ_k [π_k ∂_y(φ_k) ẏ_k + π̇_k φ_k]       pathwise route: sampler's tangent, mixed derivative, gradient

and B_ijᵀ by the same passes backwards. ẏ is the sampler's tangent at fixed start noise, π̇ that of
:mod:`crossfeed.estimate.pathwise`. Sources that share their outputs share their passes. The pathwise route is ours; both estimate the
same B where the producer has both a likelihood and a sampler and ∇ℓ_i is continuous in the outcome. Where it jumps (spline flows: their
density has kinks, at places that move with θ_i) the mixed derivative misses the jumps: for a flow of 3 bins on another flow's raw
outputs it was wrong by a factor of 3, and the score route right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from crossfeed.estimate.draws import Draws, SourceDraw
from crossfeed.estimate.passes import Passes
from crossfeed.estimate.pathwise import RewardRates, moving_rewards, pick_pull, pick_tangent, through_map
from crossfeed.networks.base import Outputs


class Couplings:
    """B of a whole ecosystem.

    Args:
        names: Of the models.
        models: Their passes.
        draws: Samples.
        mixture: Weight of every source.
        pathwise: Names of the models that are taken by their sampler.
        rates: Rewards, as functions; for picks that are taken pathwise.
        isolated: Drop all couplings between different models.
    """

    def __init__(
        self,
        names: Sequence[str],
        models: Sequence[Passes],
        draws: Draws,
        mixture: Sequence[float],
        pathwise: Collection[str],
        rates: RewardRates,
        isolated: bool = False,
    ) -> None:
        self.names, self.models, self.draws, self.mixture = list(names), models, draws, mixture
        self.pathwise, self.rates, self.isolated = pathwise, rates, isolated
        self._seen: dict[int, tuple[Tensor, dict[tuple[object, ...], Tensor]]] = {}

    def along(self, i: int, x: Sequence[Tensor]) -> Tensor:
        """Σ_j B_ij x_j, (d_i, c)."""
        return torch.stack([self._coupled(i, x, c) for c in range(x[i].shape[1])], 1)

    def _coupled(self, i: int, x: Sequence[Tensor], c: int) -> Tensor:
        pulls: list[tuple[SourceDraw, Tensor]] = []
        moved: dict[int, tuple[SourceDraw, Tensor, Tensor]] = {}
        for j, draw, weight in self._of(i):
            if not bool(x[j][:, c].any()):
                continue
            n = len(draw.probabilities)
            if self.names[j] not in self.pathwise:
                along = self._score_products(j, draw, x[j], c).view(draw.probabilities.shape).sum(1)
                slope = (along - along.mean()) / (n - 1)
                pulls.append((draw, weight * (slope[:, None] * draw.probabilities).flatten()))
                continue
            tangents = self._tangents(j, draw, x[j], c)
            shares = weight * shares_of(draw)
            if id(draw.outputs) in moved:
                _, known, before = moved[id(draw.outputs)]
                moved[id(draw.outputs)] = draw, known, before + shares
            else:
                moved[id(draw.outputs)] = draw, through_map(draw, tangents), shares
            names = moving_rewards(draw)
            if names:
                rates = {name: self._rates(j, name, draw, tangents, x[j], c) for name in names}
                pulls.append((draw, (weight / n * pick_tangent(draw, rates)).flatten()))
        out = torch.zeros_like(x[i][:, c])
        for draw, weights in merged(pulls):
            out = out + self.models[i].loss_gradient(draw, weights)
        for draw, tangents, weights in moved.values():
            out = out + self.models[i].mixed(draw, tangents, weights)
        return out

    def back(self, i: int, c: Tensor) -> dict[int, Tensor]:
        """B_ijᵀ c by j, (d_j, c).

        Raises:
            NotAvailableError: picks from a model that is taken pathwise, by a reward that was not given as a differentiable function.
        """
        columns = [self._pulled(i, c[:, k]) for k in range(c.shape[1])]
        producers = {j for j, _, _ in self._of(i)}
        return {
            j: torch.stack([column.get(j, c.new_zeros(self.models[j].size)) for column in columns], 1)
            for j in sorted(producers)
        }

    def _pulled(self, i: int, c: Tensor) -> dict[int, Tensor]:
        model = self.models[i]
        scores: dict[tuple[int, int, float], tuple[SourceDraw, Tensor]] = {}
        paths: dict[tuple[int, int], tuple[SourceDraw, Tensor]] = {}
        met: dict[int, Tensor] = {}
        bent: dict[int, Tensor] = {}
        for j, draw, weight in self._of(i) if bool(c.any()) else []:
            pick, key = draw.probabilities, id(draw.outputs)
            n, size = pick.shape
            names = moving_rewards(draw) if self.names[j] in self.pathwise else []
            if key not in met and (names or self.names[j] not in self.pathwise):
                met[key] = model.loss_products(draw, c)
            if self.names[j] not in self.pathwise:
                force = (pick * met[key].view(n, size)).sum(1)
                part = (weight * (force - force.mean()) / (n - 1))[:, None].expand(n, size).flatten()
                where = (j, id(made_of(draw)), draw.temperature)
                known = scores.get(where)
                scores[where] = draw, part if known is None else known[1] + part
                continue
            if key not in bent:
                bent[key] = model.mixed_pull(draw, c).cpu().double()
            shape = (-1, *[1] * (bent[key].ndim - 1))
            cotangents = through_map(draw, bent[key] * (weight * shares_of(draw)).view(shape), transpose=True)
            if names:
                for name, slope in pick_pull(draw, names, weight / n * met[key].view(n, size)).items():
                    made = made_of(draw)
                    assert isinstance(made, Tensor)
                    gradient = self.rates.gradient(name, draw.all_prompts, made)
                    cotangents = cotangents + slope.view(shape) * gradient
            assert draw.noise is not None
            path = paths.get((j, id(draw.noise)))
            paths[j, id(draw.noise)] = draw, cotangents if path is None else path[1] + cotangents
        out: dict[int, Tensor] = {}
        for (j, _, temperature), (draw, weights) in scores.items():
            found = self.models[j].score_gradient(draw.all_prompts, made_of(draw), temperature, weights)
            out[j] = out[j] + found if j in out else found
        for (j, _), (draw, cotangents) in paths.items():
            assert draw.noise is not None
            found = self.models[j].pull(draw.all_prompts, draw.noise, cotangents)
            out[j] = out[j] + found if j in out else found
        return out

    # --- inside ---

    def _of(self, i: int) -> list[tuple[int, SourceDraw, float]]:
        """Producer, samples and weight of model i's sources that move with a model."""
        out = []
        for draw, weight in zip(self.draws.sources, self.mixture, strict=True):
            apart = self.isolated and draw.producer != draw.consumer
            if draw.consumer == self.names[i] and draw.producer is not None and weight and not apart:
                out.append((self.names.index(draw.producer), draw, weight))
        return out

    def _memo(self, j: int, x: Tensor) -> dict[tuple[object, ...], Tensor]:
        """What is known along x, which several consumers ask for; forgotten with the next x."""
        if j not in self._seen or self._seen[j][0] is not x:
            self._seen[j] = x, {}
        return self._seen[j][1]

    def _score_products(self, j: int, draw: SourceDraw, x: Tensor, c: int) -> Tensor:
        known, key = self._memo(j, x), ("score", id(made_of(draw)), draw.temperature, c)
        if key not in known:
            known[key] = self.models[j].score_products(draw.all_prompts, made_of(draw), draw.temperature, x[:, c])
        return known[key]

    def _tangents(self, j: int, draw: SourceDraw, x: Tensor, c: int) -> Tensor:
        assert draw.noise is not None
        known, key = self._memo(j, x), ("tangent", id(draw.noise), c)
        if key not in known:
            known[key] = self.models[j].tangent(draw.all_prompts, draw.noise, x[:, c])
        return known[key]

    def _rates(self, j: int, name: str, draw: SourceDraw, tangents: Tensor, x: Tensor, c: int) -> Tensor:
        """ṙ (n, K)."""
        known, key, made = self._memo(j, x), ("rate", name, id(draw.noise), c), made_of(draw)
        assert isinstance(made, Tensor)
        if key not in known:
            known[key] = self.rates.along(name, draw.all_prompts, made, tangents)
        return known[key].view(draw.probabilities.shape)


def made_of(draw: SourceDraw) -> Outputs:
    """Outputs as the producer made them."""
    return draw.outputs if draw.made is None else draw.made


def shares_of(draw: SourceDraw) -> Tensor:
    """(n·K,) π/n."""
    return (draw.probabilities / len(draw.probabilities)).flatten()


def merged(pairs: Sequence[tuple[SourceDraw, Tensor]]) -> list[tuple[SourceDraw, Tensor]]:
    """Weights (n·K,) of sources that share their outputs, added up."""
    out: dict[int, tuple[SourceDraw, Tensor]] = {}
    for draw, weights in pairs:
        key = id(draw.outputs)
        out[key] = draw, out[key][1] + weights if key in out else weights
    return list(out.values())
