"""The ecosystem written out model by model and source by source, from the theory alone: the reference for the compiled one.

Nothing here is shared with the package but the description of the ecosystem. Candidates are enumerated on finite outcome sets;
on vectors and answers, rewards that look in one direction are integrated on a dense grid, two candidates at a time.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from scipy import stats
from scipy.linalg import helmert

from crossfeed.describe import schema as s

Array = np.ndarray


def matrix_of(value: Array, dim: int) -> Array:
    value = np.asarray(value, dtype=float)
    return value * np.eye(dim) if value.ndim == 0 else np.diag(value) if value.ndim == 1 else value


class Slow:
    """F, J and T of an ecosystem, for parameters given model by model."""

    def __init__(self, eco: s.Ecosystem) -> None:
        self.eco = eco

    # --- distributions on outcomes --------------------------------------------------------------------------------

    def table(self, name: str) -> Array:
        reward = self.eco.rewards[name]
        if isinstance(reward, s.TableReward):
            return np.asarray(reward.values)
        y = np.asarray(self.eco.space.coordinates)
        value = np.full(len(y), reward.constant)
        for k, row in enumerate(y):
            if reward.vector is not None:
                value[k] += row @ reward.vector
            if isinstance(reward, s.QuadraticReward):
                value[k] += 0.5 * row @ matrix_of(reward.matrix, len(row)) @ row
        return value

    def features(self, name: str) -> tuple[Array, Array]:
        family, n = self.eco.models[name].family, self.size
        if isinstance(family, s.LogLinear):
            return np.asarray(family.features), np.ones(n) if family.base is None else np.asarray(family.base)
        return helmert(n).T, np.ones(n)

    @property
    def size(self) -> int:
        space = self.eco.space
        return space.count or len(space.labels if space.labels is not None else space.coordinates)

    def model(self, name: str, theta: Array) -> Array:
        features, base = self.features(name)
        weight = np.array([base[y] * math.exp(features[y] @ theta) for y in range(self.size)])
        return weight / weight.sum()

    def picked(self, p: Array, stage: s.Pick, people: str) -> Array:
        def by(name: str) -> Array:
            r, q = self.table(name), np.zeros(len(p))
            if math.isinf(stage.candidates):
                q = p * np.exp(r / stage.temperature)
                return q / q.sum()
            for chosen in product(range(len(p)), repeat=int(stage.candidates)):
                at = list(chosen)
                if stage.temperature == 0:
                    votes = (r[at] == r[at].max()).astype(float)
                else:
                    votes = np.exp(r[at] / stage.temperature)
                for y, vote in zip(at, votes / votes.sum(), strict=True):
                    q[y] += np.prod(p[at]) * vote
            return q

        out = (1 - stage.noise - stage.other_share) * by(stage.curator or people) + stage.noise * p
        if stage.other_curator is not None:
            out = out + stage.other_share * by(stage.other_curator)
        return np.asarray(out)

    def distribution(self, source: s.Source, thetas: dict[str, Array]) -> Array:
        if isinstance(source, s.Real):
            data = self.eco.data[source.data]
            if isinstance(data, s.DistributionData):
                return np.asarray(data.weights) / np.sum(data.weights)
            labels = self.eco.space.labels
            found = [labels.index(r) if labels else int(r) for r in data.rows]
            return np.bincount(found, minlength=self.size) / len(found)
        p = self.model(source.producer, thetas[source.producer]) ** (1 / source.sampling_temperature)
        p = p / p.sum()
        for stage in source.stages if isinstance(source, s.Curated) else []:
            p = self.picked(p, stage, self.eco.models[source.producer].reward)
        return p

    # --- Gaussian outcomes: (mean, covariance) -------------------------------------------------------------------------

    def polynomial(self, name: str, dim: int) -> tuple[Array, Array, float]:
        reward = self.eco.rewards[name]
        g = np.zeros(dim) if reward.vector is None else np.asarray(reward.vector, dtype=float)
        Q = np.zeros((dim, dim))
        if isinstance(reward, s.QuadraticReward):
            width = len(g) if reward.vector is not None else (len(reward.matrix) if reward.matrix.ndim else dim)
            Q = matrix_of(reward.matrix, width)
        size = max(len(g), len(Q), dim)
        g = np.concatenate([np.zeros(size - len(g)), g])
        wide = np.zeros((size, size))
        wide[size - len(Q) :, size - len(Q) :] = Q
        return g, wide, reward.constant

    def gaussian(self, name: str, theta: Array) -> tuple[Array, Array]:
        family = self.eco.models[name].family
        dim = self.eco.space.dim
        if isinstance(family, s.GaussianMean):
            return theta, matrix_of(family.cov, dim)
        scale = np.diag(np.exp(theta[dim : 2 * dim]))
        k = 2 * dim
        for i in range(dim):
            for j in range(i):
                scale[i, j] = theta[k]
                k += 1
        return theta[:dim], scale @ scale.T

    def picked_gaussian(
        self, mean: Array, cov: Array, stages: list[s.Pick], people: str, x: Array | None = None
    ) -> tuple[Array, Array]:
        """Moments of the pick when every reward of every stage looks along one and the same direction, or in closed form."""
        dim = len(mean)

        def given(name: str) -> tuple[Array, Array]:
            g, Q, _ = self.polynomial(name, dim)
            inputs = len(g) - dim
            if inputs and x is not None:
                return g[inputs:] + Q[inputs:, :inputs] @ x, Q[inputs:, inputs:]
            return g, Q

        def pure(stage: s.Pick, name: str) -> tuple[Array, Array]:
            g, Q = given(name)
            if math.isinf(stage.candidates):
                precision = np.linalg.inv(cov) - Q / stage.temperature
                return (
                    np.linalg.solve(precision, np.linalg.solve(cov, mean) + g / stage.temperature),
                    np.linalg.inv(precision),
                )
            if stage.temperature == 0:
                k, (z, w) = int(stage.candidates), grid()
                top = w * k * stats.norm.cdf(z) ** (k - 1)
                return regress(
                    mean, cov, g, (top @ z) * math.sqrt(g @ cov @ g) + g @ mean, variance(top, z) * (g @ cov @ g)
                )
            return along(
                [stage.model_copy(update={"noise": 0.0, "other_share": 0.0, "other_curator": None, "curator": name})]
            )

        def along(chain: list[s.Pick]) -> tuple[Array, Array]:
            names = [n for stage in chain for n in (stage.curator or people, stage.other_curator) if n is not None]
            columns = np.concatenate([np.column_stack([given(n)[0], given(n)[1]]) for n in names], 1)
            left, values, _ = np.linalg.svd(columns)
            if values[0] == 0:
                return mean, cov
            assert values[1:].max(initial=0) < 1e-9 * values[0], "the reference integrates one direction only"
            a = left[:, 0]
            z, p = grid()
            u = a @ mean + math.sqrt(a @ cov @ a) * z

            def pick(p: Array, stage: s.Pick, name: str) -> Array:
                g, Q = given(name)
                r = ((g @ a) * u + 0.5 * (a @ Q @ a) * u**2) / stage.temperature
                if math.isinf(stage.candidates):
                    q = p * np.exp(r - r.max())
                    return np.asarray(q / q.sum())
                assert stage.candidates == 2
                return np.asarray(2 * p * (p[None, :] / (1 + np.exp(r[None, :] - r[:, None]))).sum(1))

            for stage in chain:
                q = (1 - stage.noise - stage.other_share) * pick(p, stage, stage.curator or people) + stage.noise * p
                if stage.other_curator is not None:
                    q = q + stage.other_share * pick(p, stage, stage.other_curator)
                p = q
            return regress(mean, cov, a, float(p @ u), variance(p, u))

        if len(stages) != 1:
            return along(stages) if stages else (mean, cov)
        stage = stages[0]
        parts = [(1 - stage.noise - stage.other_share, *pure(stage, stage.curator or people)), (stage.noise, mean, cov)]
        if stage.other_curator is not None:
            parts.append((stage.other_share, *pure(stage, stage.other_curator)))
        total = sum((w * m for w, m, _ in parts), np.zeros(dim))
        spread = sum((w * (c + np.outer(m - total, m - total)) for w, m, c in parts), np.zeros((dim, dim)))
        return total, spread

    def mapped(self, source: s.Raw | s.Curated, mean: Array, cov: Array) -> tuple[Array, Array]:
        if source.map is None:
            return mean, cov
        A = np.eye(len(mean)) if source.map.matrix is None else matrix_of(source.map.matrix, len(mean))
        b = np.zeros(len(mean)) if source.map.shift is None else source.map.shift
        return A @ mean + b, A @ cov @ A.T

    def vectors(self, source: s.Source, thetas: dict[str, Array]) -> tuple[Array, Array]:
        if isinstance(source, s.Real):
            data = self.eco.data[source.data]
            if isinstance(data, s.MomentsData):
                return np.asarray(data.mean), matrix_of(data.cov, self.eco.space.dim)
            return data.rows.mean(0), np.cov(data.rows.T, bias=True).reshape(self.eco.space.dim, -1)
        mean, cov = self.gaussian(source.producer, thetas[source.producer])
        cov = cov * source.sampling_temperature
        stages = source.stages if isinstance(source, s.Curated) else []
        return self.mapped(source, *self.picked_gaussian(mean, cov, stages, self.eco.models[source.producer].reward))

    # --- answers to inputs: (E[yxᵀ], E[xxᵀ]) -----------------------------------------------------------------------------

    def points(self, name: str) -> tuple[Array, Array]:
        domain = self.eco.domains[name]
        weights = np.ones(len(domain.points)) if domain.weights is None else np.asarray(domain.weights)
        return np.asarray(domain.points), weights / weights.sum()

    def pairs(self, source: s.Source, consumer: str, thetas: dict[str, Array]) -> tuple[Array, Array]:
        space = self.eco.space
        if isinstance(source, s.Real):
            data = self.eco.data[source.data]
            if isinstance(data, s.PairsData):
                return data.y.T @ data.x / len(data.x), data.x.T @ data.x / len(data.x)
            x, w = self.points(data.domain)
            return np.einsum("m,mo,mi->oi", w, x @ np.asarray(data.matrix).T, x), np.einsum("m,mi,mj->ij", w, x, x)
        producer = self.eco.models[source.producer]
        domain = source.domain or producer.domain or self.eco.models[consumer].domain
        x, w = self.points(domain)
        W = thetas[source.producer].reshape(space.outputs, space.inputs)
        noise = matrix_of(producer.family.noise, space.outputs) * source.sampling_temperature
        stages = source.stages if isinstance(source, s.Curated) else []
        cross, second = np.zeros((space.outputs, space.inputs)), np.zeros((space.inputs, space.inputs))
        for point, weight in zip(x, w, strict=True):
            mean, cov = self.picked_gaussian(W @ point, noise, stages, producer.reward, point)
            mean, _ = self.mapped(source, mean, cov)
            cross += weight * np.outer(mean, point)
            second += weight * np.outer(point, point)
        return cross, second

    # --- F, J, T ----------------------------------------------------------------------------------------------------------

    def gradient(self, name: str, thetas: dict[str, Array], own: Array | None = None) -> Array:
        """∇₁L_i: sources weighed one by one, then the ridge; ``own`` is the trained argument where it differs."""
        model = self.eco.models[name]
        theta = thetas[name] if own is None else own
        out = model.ridge * theta
        for source in model.sources:
            out = out + source.weight * self.source_gradient(name, source, theta, thetas)
        return np.asarray(out)

    def source_gradient(self, name: str, source: s.Source, theta: Array, thetas: dict[str, Array]) -> Array:
        family = self.eco.models[name].family
        if isinstance(family, (s.Categorical, s.LogLinear)):
            features, _ = self.features(name)
            return np.asarray(features.T @ (self.model(name, theta) - self.distribution(source, thetas)))
        if isinstance(family, s.LinearGaussian):
            cross, second = self.pairs(source, name, thetas)
            return np.asarray((theta.reshape(cross.shape) @ second - cross).ravel())
        mean, cov = self.vectors(source, thetas)
        if isinstance(family, s.GaussianMean):
            return np.asarray(theta - mean)
        return self.full_gradient(theta, mean, cov)

    def full_gradient(self, theta: Array, mean: Array, cov: Array) -> Array:
        """Central differences, extrapolated, of E[−log q] = ½ log det Σ + ½ tr Σ⁻¹(cov + (mean − m)(mean − m)ᵀ)."""
        name = next(n for n, m in self.eco.models.items() if isinstance(m.family, s.Gaussian))

        def loss(t: Array) -> float:
            m, own = self.gaussian(name, t)
            rest = cov + np.outer(mean - m, mean - m)
            return float(0.5 * np.linalg.slogdet(own)[1] + 0.5 * np.trace(np.linalg.solve(own, rest)))

        def slope(h: float) -> Array:
            steps = h * np.eye(len(theta))
            return np.array([(loss(theta + e) - loss(theta - e)) / (2 * h) for e in steps])

        return np.asarray((4 * slope(1e-3) - slope(2e-3)) / 3)

    def alignment(self, name: str, theta: Array, reward: str | None = None, domain: str | None = None) -> float:
        model = self.eco.models[name]
        reward = reward or model.reward
        if isinstance(model.family, (s.Categorical, s.LogLinear)):
            return float(self.model(name, theta) @ self.table(reward))
        if isinstance(model.family, s.LinearGaussian):
            space, total = self.eco.space, 0.0
            W, noise = theta.reshape(space.outputs, space.inputs), matrix_of(model.family.noise, space.outputs)
            for x, w in zip(*self.points(domain or model.domain), strict=True):
                g, Q, constant = self.polynomial(reward, space.outputs)
                inputs = len(g) - space.outputs
                z = np.concatenate([x[:inputs], W @ x])
                total += w * (constant + g @ z + 0.5 * (z @ Q @ z + np.trace(Q[inputs:, inputs:] @ noise)))
            return total
        mean, cov = self.gaussian(name, theta)
        g, Q, constant = self.polynomial(reward, len(mean))
        return float(constant + g @ mean + 0.5 * (mean @ Q @ mean + np.trace(Q @ cov)))

    def whole_gradient(self, theta: Array, offsets: list[int]) -> Array:
        """F for the joint parameters."""
        thetas = self.split(theta, offsets)
        return np.concatenate([self.gradient(name, thetas) for name in self.eco.models])

    def split(self, theta: Array, offsets: list[int]) -> dict[str, Array]:
        return {name: theta[a:b] for name, a, b in zip(self.eco.models, offsets, offsets[1:], strict=False)}


def grid() -> tuple[Array, Array]:
    z = np.linspace(-8.5, 8.5, 901)
    w = stats.norm.pdf(z)
    return z, w / w.sum()


def variance(p: Array, u: Array) -> float:
    return float(p @ (u - p @ u) ** 2)


def regress(mean: Array, cov: Array, a: Array, new_mean: float, new_variance: float) -> tuple[Array, Array]:
    """What becomes of y when u = a·y gets a new mean and variance: y − E[y|u] does not move."""
    gain = cov @ a / (a @ cov @ a)
    return mean + gain * (new_mean - a @ mean), cov + np.outer(gain, gain) * (new_variance - a @ cov @ a)


# --- ecosystems with every kind of source -------------------------------------------------------------------------------


def finite() -> s.Ecosystem:
    """Categorical and log-linear models on five labelled outcomes with coordinates, every kind of source."""
    rng = np.random.default_rng(0)
    curated: Any = s.Curated
    return s.Ecosystem(
        space=s.Outcomes(coordinates=rng.normal(size=(5, 2)), labels=list("abcde")),
        data={
            "web": s.DistributionData(weights=[3, 1, 2, 2, 1]),
            "books": s.RowsData(rows=["a", "b", "c", "d", "e", "c"]),
        },
        rewards={
            "table": s.TableReward(values=[1.0, 0.5, -0.3, 0.5, 0.0]),
            "line": s.LinearReward(vector=[0.8, -0.4], constant=0.2),
            "bowl": s.QuadraticReward(matrix=-0.6, vector=[0.3, 0.0]),
        },
        models={
            "p": s.Model(
                family=s.Categorical(),
                reward="table",
                sources=[
                    s.Real(data="web", weight=0.3),
                    s.Raw(producer="p", weight=0.1),
                    s.Raw(producer="q", weight=0.15, sampling_temperature=0.6),
                    curated(producer="p", weight=0.2, candidates=3, temperature=0.7, noise=0.1),
                    curated(
                        producer="l", weight=0.25, candidates=2, curator="bowl", other_curator="line", other_share=0.35
                    ),
                ],
            ),
            "q": s.Model(
                family=s.Categorical(),
                reward="line",
                ridge=0.2,
                sources=[
                    s.Real(data="books", weight=0.25),
                    s.Real(data="web", weight=0.15),
                    curated(producer="p", weight=0.2, candidates=4, temperature=0),
                    curated(producer="q", weight=0.2, candidates=math.inf, temperature=2.0, sampling_temperature=1.5),
                    curated(
                        producer="m",
                        weight=0.2,
                        candidates=2,
                        then=s.Pick(candidates=3, curator="table", noise=0.2, then=s.Pick(candidates=1)),
                    ),
                ],
            ),
            "l": s.Model(
                family=s.LogLinear(features=rng.normal(size=(5, 2)), base=[1.0, 2.0, 1.0, 0.5, 1.0]),
                reward="bowl",
                ridge=0.05,
                evaluate=[s.Evaluation(name="own"), s.Evaluation(name="theirs", reward="line")],
                sources=[
                    s.Real(data="web", weight=0.4),
                    curated(producer="q", weight=0.6, candidates=3, temperature=0.5),
                ],
            ),
            "m": s.Model(
                family=s.LogLinear(features=rng.normal(size=(5, 2))),
                reward="line",
                sources=[
                    s.Real(data="books", weight=0.5),
                    s.Raw(producer="l", weight=0.2),
                    s.Raw(producer="p", weight=0.3),
                ],
            ),
        },
    )


def vectors() -> s.Ecosystem:
    """Gaussian models with known and unknown covariance, every kind of source."""
    rng = np.random.default_rng(1)
    a = np.array([0.6, -0.8])
    curated: Any = s.Curated
    return s.Ecosystem(
        space=s.Vectors(dim=2),
        data={
            "web": s.MomentsData(mean=[0.5, -0.2], cov=[[1.0, 0.2], [0.2, 0.7]]),
            "rows": s.RowsData(rows=rng.normal(size=(7, 2))),
        },
        rewards={
            "line": s.LinearReward(vector=[0.9, 0.4]),
            "other": s.LinearReward(vector=[-0.5, 1.0], constant=3.0),
            "ridge": s.QuadraticReward(matrix=-0.8 * np.outer(a, a), vector=0.5 * a),
            "along": s.LinearReward(vector=-1.2 * a),
            "bowl": s.QuadraticReward(matrix=[-0.5, -0.2], vector=[0.2, 0.1], constant=1.0),
        },
        models={
            "p": s.Model(
                family=s.GaussianMean(cov=[[0.8, 0.1], [0.1, 0.5]]),
                reward="line",
                sources=[
                    s.Real(data="web", weight=0.3),
                    s.Raw(producer="q", weight=0.2, map=s.Affine(matrix=[[0.5, -0.2], [0.1, 0.6]], shift=[0.3, 0.0])),
                    curated(producer="p", weight=0.2, candidates=2, temperature=0.6, noise=0.2),
                    curated(
                        producer="f",
                        weight=0.3,
                        candidates=3,
                        temperature=0,
                        curator="line",
                        other_curator="other",
                        other_share=0.3,
                    ),
                ],
            ),
            "q": s.Model(
                family=s.GaussianMean(cov=0.6),
                reward="ridge",
                ridge=0.3,
                sources=[
                    s.Real(data="rows", weight=0.4),
                    curated(producer="q", weight=0.3, candidates=2, map=s.Affine(matrix=0.7)),
                    curated(
                        producer="p",
                        weight=0.3,
                        candidates=2,
                        curator="along",
                        then=s.Pick(candidates=2, curator="ridge"),
                    ),
                ],
            ),
            "f": s.Model(
                family=s.Gaussian(),
                reward="bowl",
                evaluate=[s.Evaluation(name="own"), s.Evaluation(name="other", reward="other")],
                sources=[
                    s.Real(data="web", weight=0.35),
                    s.Real(data="rows", weight=0.1),
                    s.Raw(producer="f", weight=0.15, sampling_temperature=0.8),
                    curated(producer="f", weight=0.2, candidates=math.inf, temperature=1.5),
                    curated(
                        producer="p", weight=0.2, candidates=2, sampling_temperature=1.3, map=s.Affine(shift=[0.1, 0.2])
                    ),
                ],
            ),
            "h": s.Model(
                family=s.Gaussian(),
                reward="line",
                ridge=0.1,
                sources=[
                    s.Real(data="web", weight=0.6),
                    curated(producer="f", weight=0.4, candidates=4, temperature=0, noise=0.1, curator="other"),
                ],
            ),
        },
    )


def regression() -> s.Ecosystem:
    """Linear-Gaussian models with domains of their own, every kind of source."""
    rng = np.random.default_rng(2)
    Q = np.zeros((4, 4))
    Q[2:, :2] = np.outer([1.0, -0.5], [0.4, 0.3])
    Q = Q + Q.T
    Q[2:, 2:] = -0.7 * np.outer([1.0, -0.5], [1.0, -0.5])
    curated: Any = s.Curated
    return s.Ecosystem(
        space=s.Regression(inputs=2, outputs=2),
        domains={
            "a": s.PointsDomain(points=[[1.0, 1.0], [-0.5, 1.0], [0.3, 1.0]], weights=[1, 2, 1]),
            "b": s.PointsDomain(points=[[2.0, 1.0], [1.0, 0.5], [0.0, -1.0]]),
            "c": s.PointsDomain(points=rng.normal(size=(4, 2))),
        },
        data={
            "school": s.TeacherData(matrix=[[1.0, -0.3], [0.2, 0.8]], noise=0.3, domain="a"),
            "pairs": s.PairsData(x=rng.normal(size=(6, 2)), y=rng.normal(size=(6, 2))),
        },
        rewards={
            "line": s.LinearReward(vector=[0.7, -0.6]),
            "both": s.LinearReward(vector=[2.0, 1.0, 0.7, 0.2], constant=0.5),
            "taste": s.QuadraticReward(matrix=Q, vector=[0.0, 0.0, 0.0, 0.0]),
        },
        models={
            "p": s.Model(
                family=s.LinearGaussian(noise=[[0.5, 0.1], [0.1, 0.4]]),
                reward="line",
                domain="a",
                sources=[
                    s.Real(data="school", weight=0.4),
                    s.Raw(producer="q", weight=0.2, map=s.Affine(matrix=0.5, shift=[0.2, 0.0])),
                    curated(producer="p", weight=0.4, candidates=2, temperature=0.7, noise=0.2, domain="c"),
                ],
            ),
            "q": s.Model(
                family=s.LinearGaussian(noise=0.6),
                reward="taste",
                domain="b",
                ridge=0.2,
                evaluate=[s.Evaluation(name="own"), s.Evaluation(name="away", reward="both", domain="a")],
                sources=[
                    s.Real(data="pairs", weight=0.4),
                    curated(producer="q", weight=0.2, candidates=2),
                    curated(producer="p", weight=0.2, candidates=3, temperature=0, sampling_temperature=1.5),
                    curated(producer="p", weight=0.2, candidates=math.inf, temperature=2.0, curator="both", domain="b"),
                ],
            ),
        },
    )


ECOSYSTEMS = {"finite": finite, "vectors": vectors, "regression": regression}
