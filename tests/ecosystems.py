"""Random small ecosystems, the same for the same seed: every family, every kind of source, random graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfeed.describe import schema as s

FAMILIES = (
    "gaussian_mean",
    "gaussian",
    "categorical",
    "loglinear",
    "linear_gaussian",
    "mixed_finite",
    "mixed_vectors",
)
_FINITE = ("categorical", "loglinear", "mixed_finite")
_SPREADING = ("gaussian", "mixed_vectors")
_VECTORS = ("gaussian_mean", "gaussian", "mixed_vectors")


def random_ecosystem(
    family: str,
    num_models: int,
    seed: int,
    *,
    real: float | None = None,
    num_without_real: int = 0,
    ridge: float | tuple[float, float] = (0.0, 0.3),
    dim: int | None = None,
    kinds: tuple[str, ...] = ("raw", "curated"),
    rewards: tuple[str, ...] | None = None,
    full_rank: bool = False,
    candidates: tuple[float, ...] = (1, 2, 3, 4, 8, float("inf")),
    best: bool = True,
    stages: int = 2,
    sampling: bool = True,
    curators: bool = True,
    maps: bool = True,
    map_size: float = 0.9,
    num_feeds: tuple[int, int] = (1, 4),
    curation: bool = False,
    order: s.Order | None = None,
    steps: s.GradientSteps | None = None,
) -> s.Ecosystem:
    """A seeded random ecosystem of N models named ``m0``, ``m1``, … with enough real data to have a stable point.

    Args:
        family: One of :data:`FAMILIES`; ``mixed_finite`` mixes categorical and log-linear models, ``mixed_vectors`` the
            two Gaussian families.
        num_models: N.
        seed: Of everything.
        real: Every model's least weight of real data; the weight is uniform between it and 0.35 more. 0.25 by default,
            0.5 where covariances are learnt: curators who like outliers make spread grow, and more of it makes more
            outliers.
        num_without_real: This many models, the last ones, get no real data (they need others that have some).
        ridge: The models' ridge, or an interval that it is drawn from for half of the models, 0 for the others.
        dim: Dimension of vectors, features or inputs; vectors 2, others 2 or 3 by default (outcomes: 5 to 7 in number).
        kinds: Kinds of the sources that are no real data.
        rewards: Kinds of the rewards, ``linear``, ``quadratic`` (bending down), ``table`` (finite); all that fit by
            default.
        full_rank: Whether quadratic rewards of vectors look in all directions or in one, and those of answers pick
            among finitely many candidates or tilt only (both slow).
        candidates: What K is drawn from.
        best: Whether curators may pick the best of K (on vectors and answers: one stage of a linear reward).
        stages: 1, or 2 to let one curated source in eight have a second stage.
        sampling: Whether producers may sample at another temperature.
        curators: Whether sources may have noise, curators other than the producer's people, and a share of others.
        maps: Whether sources may be mapped affinely (vectors and answers), by matrices of norm at most ``map_size``.
        map_size: See ``maps``.
        num_feeds: Least and most sources of a model that are no real data; producers repeat, the model itself included.
        curation: Give every model a curated source and, where it would have neither, real or raw data, so that each has
            a curation ratio.
        order: Update order; simultaneous by default.
        steps: Gradient steps; the exact minimum by default.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, FAMILIES.index(family), num_models]))
    world = _World(family, dim, rewards, full_rank, rng)
    names = [f"m{i}" for i in range(num_models)]
    real = (0.5 if family in _SPREADING else 0.25) if real is None else real
    models: dict[str, s.Model] = {}
    own = {name: world.pick(list(world.rewards)) for name in names}
    for i, name in enumerate(names):
        sources: list[s.Source] = []
        given = 0.0
        if i < num_models - num_without_real:
            given = round(float(rng.uniform(real, min(real + 0.35, 0.9))), 3)
            parts = [given] if rng.random() < 0.75 else [round(0.4 * given, 6), round(0.6 * given, 6)]
            sources += [s.Real(data=world.pick(list(world.data)), weight=w) for w in parts]
        count = int(rng.integers(num_feeds[0], num_feeds[1] + 1))
        shares = rng.dirichlet(np.full(count, 2.0))
        weights = [round(float(w), 6) for w in (1 - given) * shares[:-1]]
        weights.append(1 - given - sum(weights))
        chosen = [world.pick(list(kinds)) for _ in weights]
        if curation:
            chosen[0] = "curated"
            if given == 0 and "raw" not in chosen:
                weights, chosen = [0.5 * weights[0], *weights[1:], 0.5 * weights[0]], [*chosen, "raw"]
        for weight, kind in zip(weights, chosen, strict=True):
            producer = world.pick(names)
            fields: dict[str, Any] = {"producer": producer, "weight": weight}
            if sampling and rng.random() < 0.3:
                fields["sampling_temperature"] = round(float(rng.uniform(0.8, 1.15)), 3)
            if maps and not world.finite and rng.random() < 0.4:
                fields["map"] = world.affine(map_size)
            if kind == "raw":
                sources.append(s.Raw(**fields))
                continue
            pick = world.pick_rule(own[producer], candidates, best, curators, multiple=False)
            if stages > 1 and rng.random() < 0.125:
                pick = world.pick_rule(own[producer], candidates, best, curators, multiple=True)
                pick["then"] = s.Pick(**world.pick_rule(own[producer], candidates, best, curators, multiple=True))
            sources.append(s.Curated(**fields, **pick))
        strength = ridge if isinstance(ridge, (int, float)) else float(rng.uniform(*ridge)) * (rng.random() < 0.5)
        models[name] = s.Model(
            family=world.family_node(),
            reward=own[name],
            sources=sources,
            ridge=round(float(strength), 6),
            domain=world.pick(list(world.domains)) if world.domains else None,
        )
    return s.Ecosystem(
        name=f"{family} {num_models} {seed}",
        seed=seed,
        space=world.space,
        data=world.data,
        domains=world.domains,
        rewards=world.rewards,
        models=models,
        update=s.Update(order=order or s.Simultaneous(), steps=steps),
    )


class _World:
    """The space with its data, rewards and domains, and draws of what stands in a model."""

    def __init__(
        self, family: str, dim: int | None, rewards: tuple[str, ...] | None, full_rank: bool, rng: np.random.Generator
    ) -> None:
        self.kind, self.rng, self.finite, self.full_rank = family, rng, family in _FINITE, full_rank
        self.dim = dim if dim is not None else 2 if family in _VECTORS else int(rng.integers(2, 4))
        self.reward_size = 0.2 if family in _SPREADING else 0.5  # a spread that grows feeds on itself
        self.domains: dict[str, s.Domain] = {}
        self.space: s.Space
        self.data: dict[str, s.Data]
        if self.finite:
            size = int(rng.integers(5, 8))
            self.space = s.Outcomes(coordinates=self.normal(size, 2))
            self.data = {
                f"d{k}": s.DistributionData(weights=rng.dirichlet(np.full(size, 3.0)) + 0.03) for k in range(3)
            }
            self.size = size
        elif family in _VECTORS:
            self.space = s.Vectors(dim=self.dim)
            self.data = {
                "d0": s.MomentsData(mean=self.normal(self.dim), cov=self.covariance(self.dim)),
                "d1": s.RowsData(rows=self.normal(12, self.dim)),
                "d2": s.MomentsData(mean=self.normal(self.dim), cov=np.array(0.5)),
            }
        else:
            self.space = s.Regression(inputs=self.dim, outputs=2)
            self.domains = {
                "near": s.GaussianDomain(mean=0.3 * self.normal(self.dim), cov=self.covariance(self.dim)),
                "far": s.PointsDomain(points=self.normal(self.dim + 4, self.dim)),
                "wide": s.GaussianDomain(mean=np.zeros(self.dim), cov=np.array(1.2)),
            }
            self.data = {
                "d0": s.TeacherData(matrix=self.normal(2, self.dim), noise=np.array(0.1), domain="near"),
                "d1": s.PairsData(x=self.normal(9, self.dim), y=self.normal(9, 2)),
                "d2": s.TeacherData(matrix=self.normal(2, self.dim), domain="wide"),
            }
        known = ("linear", "quadratic", "table") if self.finite else ("linear", "quadratic")
        wanted = known if rewards is None else rewards
        self.rewards = {f"r{k}": self.reward(wanted[k % len(wanted)]) for k in range(4)}

    def normal(self, *shape: int) -> np.ndarray:
        return np.round(self.rng.standard_normal(shape), 4)

    def pick(self, options: list[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def covariance(self, dim: int) -> np.ndarray:
        root = self.rng.standard_normal((dim, dim)) * 0.35
        return np.asarray(np.round(root @ root.T + 0.3 * np.eye(dim), 4))

    @property
    def reward_dim(self) -> int:
        return self.dim if self.kind in _VECTORS else 2

    def reward(self, kind: str) -> s.Reward:
        if kind == "table":
            return s.TableReward(values=self.normal(self.size))
        vector = self.reward_size * self.normal(self.reward_dim)
        if kind == "linear":
            return s.LinearReward(vector=vector)
        if self.full_rank or self.finite:
            return s.QuadraticReward(matrix=-0.4 * self.covariance(self.reward_dim), vector=vector)
        return s.QuadraticReward(matrix=-0.3 * np.outer(vector, vector) / (vector @ vector), vector=vector)

    def affine(self, size: float) -> s.Affine:
        d = self.reward_dim
        matrix = self.rng.standard_normal((d, d))
        matrix *= size * self.rng.uniform(0.5, 1.0) / np.linalg.norm(matrix, 2)
        return s.Affine(matrix=matrix, shift=0.3 * self.normal(d) if self.rng.random() < 0.5 else None)

    def family_node(self) -> s.Family:
        kind = self.kind
        if kind.startswith("mixed"):
            kind = self.pick(["categorical", "loglinear"] if self.finite else ["gaussian_mean", "gaussian"])
        if kind == "categorical":
            return s.Categorical()
        if kind == "loglinear":
            base = self.rng.uniform(0.5, 2.0, self.size) if self.rng.random() < 0.3 else None
            return s.LogLinear(features=self.normal(self.size, self.dim), base=base)
        if kind == "gaussian_mean":
            return s.GaussianMean(cov=self.covariance(self.dim))
        if kind == "gaussian":
            return s.Gaussian()
        return s.LinearGaussian(noise=self.covariance(2))

    def pick_rule(
        self, people: str, candidates: tuple[float, ...], best: bool, curators: bool, multiple: bool
    ) -> dict[str, Any]:
        """Fields of one stage of picking, of which ``multiple`` follow each other."""
        rng, linear = self.rng, [n for n, r in self.rewards.items() if isinstance(r, s.LinearReward)]
        fields: dict[str, Any] = {
            "candidates": self.pick(list(candidates)),
            "temperature": round(float(rng.uniform(0.6, 1.6)), 3),
        }
        options = list(self.rewards)
        curator = people
        finite = [k for k in candidates if 1 < k < float("inf")]
        if best and finite and rng.random() < 0.2 and (self.finite or (linear and not multiple)):
            few = min(finite) if self.kind in _SPREADING else self.pick(finite)
            fields |= {"temperature": 0.0, "candidates": few}
            options = options if self.finite else linear
        elif (
            self.kind == "linear_gaussian" and not self.full_rank and (multiple or fields["candidates"] != float("inf"))
        ):
            options = linear or options  # other picks take quadrature at every input
        if curator not in options or (curators and rng.random() < 0.3):
            curator = self.pick(options)
        if curator != people:
            fields["curator"] = curator
        if curators and rng.random() < 0.3:
            fields["noise"] = round(float(rng.uniform(0.05, 0.3)), 3)
        if curators and rng.random() < 0.3:
            fields |= {"other_curator": self.pick(options), "other_share": round(float(rng.uniform(0.05, 0.3)), 3)}
        return fields
