"""Small ecosystems with kept start noise, and what brute force makes of their loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from small_networks import seeded
from torch import Tensor
from torch.func import hessian

from crossfeed.describe.schema import Affine, Pick
from crossfeed.estimate.base import Differentiable, Parameters
from crossfeed.estimate.derivatives import flatten, gradient_rows, in_order, indexed_rows, unflatten, weighted_gradient
from crossfeed.estimate.draws import Draws, EvaluationDraw, SourceDraw, one_each, some_picks
from crossfeed.estimate.matrix_free import MatrixFree
from crossfeed.estimate.picks import pick_candidates, pick_probabilities, pick_rewards
from crossfeed.families.spaces import as_matrix, tensor

Reward = Callable[[Tensor, Tensor], Tensor]
Point = Mapping[str, Parameters]


@dataclass(frozen=True)
class Source:
    """One source of a :class:`Common` ecosystem: of a producer, or of fixed data."""

    consumer: str
    weight: float
    producer: str | None = None
    pick: Pick | None = None
    map: Affine | None = None
    data: Tensor | None = None


class Common:
    """An ecosystem whose producers' start noise is drawn once, so that everything is a smooth function of all parameters."""

    def __init__(
        self,
        models: Mapping[str, Differentiable],
        sources: Sequence[Source],
        people: Mapping[str, str],
        rewards: Mapping[str, Reward],
        num: int,
        noise: float = 1.0,
        decay: float = 0.0,
    ) -> None:
        self.models, self.sources, self.people, self.rewards = dict(models), list(sources), people, rewards
        self.num, self.decay = num, decay
        self.noises: list[Tensor | None] = []
        for k, source in enumerate(sources):
            size = 1 if source.pick is None else pick_candidates(source.pick)
            made = source.producer and noise * models[source.producer].noise(num * size, seeded(k))
            self.noises.append(made if isinstance(made, Tensor) else None)
        self.asked = {name: noise * model.noise(num, seeded(100 + k)) for k, (name, model) in enumerate(models.items())}
        self.prompts = torch.arange(num) % 3

    @property
    def here(self) -> dict[str, Parameters]:
        return {name: model.parameters() for name, model in self.models.items()}

    def draws(self, at: Point | None = None) -> Draws:
        """All samples at these parameters."""
        at = at or self.here
        sources, evaluations = [], []
        for k, source in enumerate(self.sources):
            if source.producer is None:
                assert source.data is not None
                n, chances = len(source.data), one_each(len(source.data))
                prompts = torch.arange(n) % 3
                sources.append(
                    SourceDraw(
                        source.consumer, f"s{k}", source.weight, None, torch.arange(n), prompts, source.data, chances
                    )
                )
                continue
            noise, people, known = self.noises[k], self.people[source.producer], dict[str, Tensor]()
            assert noise is not None
            size = len(noise) // self.num
            asked = self.prompts.repeat_interleave(size)
            made = self.models[source.producer].rsample(at[source.producer], asked, noise).detach()
            chances = one_each(self.num)
            if source.pick is not None:
                for name in pick_rewards(source.pick, people):
                    known[name] = self.rewards[name](asked, made.double()).view(self.num, size)
                chances = pick_probabilities(source.pick, people, known).expand(self.num, -1)
            outputs = made
            if source.map is not None:
                assert source.map.matrix is not None
                assert source.map.shift is not None
                outputs = made @ as_matrix(source.map.matrix, made.shape[1]).T.to(made)
                outputs = outputs + tensor(source.map.shift).to(made)
            sources.append(
                SourceDraw(
                    consumer=source.consumer,
                    name=f"s{k}",
                    weight=source.weight,
                    producer=source.producer,
                    clusters=torch.arange(self.num),
                    prompts=self.prompts,
                    outputs=outputs,
                    probabilities=chances,
                    made=None if source.map is None else made,
                    rewards=known,
                    noise=noise,
                    map=source.map,
                    pick=source.pick,
                    people=people,
                )
            )
        for name, noise in self.asked.items():
            made = self.models[name].rsample(at[name], self.prompts, noise, evaluating=True).detach()
            rewards = self.rewards[self.people[name]](self.prompts, made.double())
            evaluations.append(
                EvaluationDraw(
                    name, "own", torch.arange(self.num), self.prompts, made, rewards[:, None], noise, self.people[name]
                )
            )
        return Draws(sources, evaluations)

    def force(self, at: Point, mixture: Sequence[float] | None = None, own: Point | None = None) -> list[Tensor]:
        """F_i, by model: the mean gradient of i's loss at ``own`` (or ``at``) on samples made at ``at``."""
        out = []
        draws = self.draws(at).sources
        weights = [source.weight for source in self.sources] if mixture is None else mixture
        for name, model in self.models.items():
            theta = (own or at)[name]
            total = self.decay * flatten(theta)
            for draw, weight in zip(draws, weights, strict=True):
                if draw.consumer == name:
                    batch = model.loss_batch(draw.all_prompts, draw.outputs, seeded(0))
                    share = (weight * draw.probabilities / len(draw.probabilities)).flatten()
                    total = total + weighted_gradient(model.losses, theta, batch, share, model.chunk)
            out.append(total)
        return out

    def values(self, at: Point) -> Tensor:
        """J by evaluation."""
        return torch.stack([draw.rewards.mean() for draw in self.draws(at).evaluations])

    def moved(self, x: Sequence[Tensor], size: float = 1.0, at: Point | None = None) -> dict[str, Parameters]:
        """Parameters plus ``size`` times x_i (d_i,)."""
        at = at or self.here
        return {
            name: {key: at[name][key] + size * part for key, part in unflatten(at[name], v).items()}
            for name, v in zip(at, x, strict=True)
        }


class Bent:
    """A small smooth network: y = b + ε + tanh(ε V) W, with ℓ = ½‖y − b‖² + ½‖tanh(y V) W − y/2‖², and its Hessian."""

    capabilities = frozenset({"rsample"})
    loss_is_score = False
    smooth_in_outputs = True
    device = torch.device("cpu")
    chunk = 64

    def __init__(self, name: str, seed: int) -> None:
        self.name, random = name, seeded(seed)
        shapes = {"V": (2, 3), "W": (3, 2), "b": (2,)}
        self.theta = {k: 0.5 * torch.randn(v, generator=random, dtype=torch.float64) for k, v in shapes.items()}

    def parameters(self) -> dict[str, Tensor]:
        return dict(self.theta)

    def loss_batch(self, prompts: Tensor, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (outputs,)

    def losses(self, parameters: Parameters, batch: tuple[Tensor, ...]) -> Tensor:
        y, V, W = batch[0], parameters["V"], parameters["W"]
        rest = torch.tanh(y @ V) @ W - y / 2
        return ((y - parameters["b"]).square().sum(-1) + rest.square().sum(-1)) / 2

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, 2, generator=generator, dtype=torch.float64)

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        return parameters["b"] + noise + torch.tanh(noise @ parameters["V"]) @ parameters["W"]

    def replace_outputs(self, batch: tuple[Tensor, ...], outputs: Tensor) -> tuple[Tensor, ...]:
        return (outputs,)

    def mean_hessian(self, parameters: Parameters, batch: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        def total(theta: Tensor) -> Tensor:
            parts, values = theta.split([value.numel() for value in parameters.values()]), {}
            for part, (name, value) in zip(parts, parameters.items(), strict=True):
                values[name] = part.view(value.shape)
            return self.losses(values, batch) @ weights

        return hessian(total)(flatten(parameters))


class Flat:
    """A diffusion network whose outcomes are vectors of pixels."""

    def __init__(self, model: Any, shape: tuple[int, ...]) -> None:
        self._model, self._shape = model, shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def loss_batch(self, prompts: Tensor, outputs: Tensor, generator: torch.Generator) -> Any:
        return self._model.loss_batch(prompts, outputs.unflatten(1, self._shape).float(), generator)

    def curvature_batch(self, prompts: Tensor, outputs: Tensor, generator: torch.Generator) -> Any:
        return self._model.curvature_batch(prompts, outputs.unflatten(1, self._shape).float(), generator)

    def rsample(self, *arguments: Any, **options: Any) -> Tensor:
        found: Tensor = self._model.rsample(*arguments, **options)
        return found.flatten(1)

    def replace_outputs(self, batch: Any, outputs: Tensor) -> Any:
        return self._model.replace_outputs(batch, outputs.unflatten(1, self._shape))


def dense(loop: MatrixFree, models: Mapping[str, Differentiable], coupled: bool = True) -> Tensor:
    """D by the formulas of THEORY section 6 on per-sample gradients, all of them kept; score route."""
    names = list(models)
    spans = torch.tensor([0, *loop.sizes]).cumsum(0).tolist()
    D = torch.zeros(spans[-1], spans[-1], dtype=torch.float64)

    def rows(name: str, fn: object, batch: tuple[Tensor, ...]) -> Tensor:
        model = models[name]
        assert callable(fn)
        out: dict[int, Tensor] = {}
        for index, part in indexed_rows(fn, model.parameters(), batch, 8, getattr(model, "chunks", in_order)):
            out |= dict(zip(index.tolist(), part.double(), strict=True))
        found = torch.stack([out[k] for k in sorted(out)])
        scale = loop.models[names.index(name)].scale
        return found if scale is None else found * scale

    for draw in loop.draws.sources:
        i, model = names.index(draw.consumer), models[draw.consumer]
        here = slice(spans[i], spans[i + 1])
        groups, pick = some_picks(draw, loop.solver.curvature_samples, loop.solver.seed)
        at = (groups * draw.candidates + pick).tolist()
        some = draw.outputs[at] if isinstance(draw.outputs, Tensor) else [draw.outputs[k] for k in at]
        h = rows(draw.consumer, model.curvature_terms, model.curvature_batch(draw.prompts[groups], some, seeded(0)))
        D[here, here] += draw.weight * h.T @ h / len(h)
        if draw.producer is None or not coupled:
            continue
        j, maker = names.index(draw.producer), models[draw.producer]
        phi = rows(draw.consumer, model.losses, model.loss_batch(draw.all_prompts, draw.outputs, seeded(0)))
        made, T = draw.outputs if draw.made is None else draw.made, draw.temperature
        scores = maker.score_batch(draw.all_prompts, made)
        s = rows(draw.producer, lambda p, b, maker=maker, T=T: maker.log_probs(p, b, T), scores)
        n, K = draw.probabilities.shape
        mean = torch.einsum("gk,gkd->gd", draw.probabilities, phi.view(n, K, -1))
        B = (mean - mean.mean(0)).T @ s.view(n, K, -1).sum(1) / (n - 1)
        D[here, spans[j] : spans[j + 1]] += draw.weight * B
    for i in range(len(names)):
        D[range(spans[i], spans[i + 1]), range(spans[i], spans[i + 1])] += loop.ridge[i] + loop.steps[i].decay
    return D


def product(loop: MatrixFree, v: Tensor, transpose: bool = False) -> Tensor:
    """D v or Dᵀ v, (D, c)."""
    x = list(v.split(loop.sizes))
    out = [loop.curvature(i, part) for i, part in enumerate(x)]
    for i in range(len(x)):
        if not transpose:
            out[i] = out[i] + loop.coupling(i, x)
            continue
        for j, part in loop.coupling_transpose(i, x[i]).items():
            out[j] = out[j] + part
    return torch.cat(out)


def own_rows(model: Differentiable, fn: object, batch: tuple[Tensor, ...]) -> Tensor:
    """(n, d) gradients."""
    assert callable(fn)
    return torch.cat([*gradient_rows(fn, model.parameters(), batch, 8)])
