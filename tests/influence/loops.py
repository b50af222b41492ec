"""Ecosystems for the finite-sample tests: the published Gaussian experiment and three small nonlinear ones."""

from __future__ import annotations

from importlib import resources

import numpy as np

from crossfeed.describe import schema as s


def published() -> dict[str, np.ndarray]:
    """The authors' constants and curves."""
    with resources.files("crossfeed.reproduce").joinpath("gaussian_mechanism.npz").open("rb") as file:
        return dict(np.load(file))


def gaussian_mechanism(t: float, curation: float, n: int) -> s.Ecosystem:
    """p: φ, plus the shift a with probability λ; q: N(A(t) θ, σ²).

    The authors add q's noise after A, so p's known covariance is σ²(AᵀA)⁻¹: what q receives, mapped by A, then has σ².
    p itself never sees its own spread.
    """
    d = published()
    dim, var, A = len(d["a"]), float(d["sigma"]) ** 2, t * d["A"]
    cov = {"p": var * np.linalg.inv(A.T @ A), "q": var * np.eye(dim)}
    rewards = {
        m: s.QuadraticReward(
            matrix=-float(d[f"eta_{m}"]), vector=d[f"g_{m}"], constant=0.5 * float(d[f"eta_{m}"]) * np.trace(cov[m])
        )
        for m in "pq"
    }
    picked = s.Curated(producer="q", curator="p", candidates=1, weight=curation, map=s.Affine(shift=d["a"]))
    copied = s.Raw(producer="p", weight=1.0, map=s.Affine(matrix=A))
    sources = {"p": [s.Raw(producer="q", weight=1 - curation), picked], "q": [copied]}
    models = {
        m: s.Model(family=s.GaussianMean(cov=cov[m]), reward=m, start=np.zeros(dim), sources=sources[m]) for m in "pq"
    }
    return s.Ecosystem(
        space=s.Vectors(dim=dim),
        rewards=rewards,
        models=models,
        update=s.Update(order=s.Sequential()),
        samples=s.Samples(per_round=n),
    )


def loglinear(order: s.Order, counts: str, n: int, steps: s.GradientSteps | None = None) -> s.Ecosystem:
    """Two log-linear models on six outcomes that train on each other's best of four by choice."""
    features = np.array([[1.0, 0.2], [-0.6, 1.0], [0.3, -1.1], [-1.0, -0.4], [0.5, 0.9], [-0.2, -0.6]])
    p = [s.Real(data="web", weight=0.35), s.Curated(producer="q", candidates=4, weight=0.4)]
    p.append(s.Curated(producer="p", candidates=4, weight=0.25))
    q = [s.Real(data="web", weight=0.4), s.Curated(producer="p", candidates=4, weight=0.4)]
    q.append(s.Raw(producer="q", weight=0.2))
    return s.Ecosystem(
        space=s.Outcomes(count=6),
        data={"web": s.DistributionData(weights=[3, 1, 2, 1, 1, 2])},
        rewards={
            "r": s.TableReward(values=[0.0, 1.2, -0.5, 0.8, 0.3, -1.0]),
            "u": s.TableReward(values=[1.0, -0.7, 0.6, -1.0, 0.2, 0.4]),
        },
        models={
            "p": s.Model(family=s.LogLinear(features=features), reward="r", ridge=0.05, sources=p),
            "q": s.Model(family=s.LogLinear(features=features[:, ::-1].copy()), reward="u", ridge=0.05, sources=q),
        },
        update=s.Update(order=order, steps=steps),
        samples=s.Samples(per_round=n, counts=counts),
    )


def gaussian(order: s.Order, counts: str, n: int, steps: s.GradientSteps | None = None) -> s.Ecosystem:
    """Two Gaussians with unknown mean and covariance, on real data and on each other, mapped and cooled."""
    turn = s.Affine(matrix=[[0.8, 0.3], [-0.2, 0.9]], shift=[0.5, 0.0])
    rows = np.random.default_rng(1).normal(size=(9, 2)) * 1.3
    p = [s.Real(data="web", weight=0.4), s.Raw(producer="q", weight=0.6, map=turn)]
    q = [s.Real(data="rows", weight=0.5), s.Raw(producer="p", weight=0.3, sampling_temperature=0.8)]
    q.append(s.Raw(producer="q", weight=0.2))
    return s.Ecosystem(
        space=s.Vectors(dim=2),
        data={"web": s.MomentsData(mean=[0.3, -0.2], cov=[[1.0, 0.3], [0.3, 0.6]]), "rows": s.RowsData(rows=rows)},
        rewards={"r": s.QuadraticReward(matrix=-0.5, vector=[1.0, 0.5]), "u": s.LinearReward(vector=[-0.4, 1.0])},
        models={
            "p": s.Model(family=s.Gaussian(), reward="r", sources=p),
            "q": s.Model(family=s.Gaussian(), reward="u", sources=q),
        },
        update=s.Update(order=order, steps=steps),
        samples=s.Samples(per_round=n, counts=counts),
    )


def regression(order: s.Order, counts: str, n: int, steps: s.GradientSteps | None = None) -> s.Ecosystem:
    """Two linear models of answers to inputs, each with a domain of its own, one on picked answers of the other."""
    p = [s.Real(data="teacher", weight=0.4), s.Curated(producer="q", candidates=2, weight=0.6, curator="u")]
    q = [s.Real(data="teacher", weight=0.3), s.Raw(producer="p", weight=0.7, domain="far")]
    return s.Ecosystem(
        space=s.Regression(inputs=2, outputs=2),
        domains={
            "near": s.GaussianDomain(mean=[1.0, 0.2], cov=[[0.6, 0.2], [0.2, 0.5]]),
            "far": s.PointsDomain(points=[[1.0, 0.0], [0.5, 1.0], [1.0, 1.5], [-1.0, 0.5]]),
        },
        data={"teacher": s.TeacherData(matrix=[[1.0, 0.5], [-0.3, 0.8]], noise=0.3, domain="near")},
        rewards={"r": s.QuadraticReward(matrix=-0.3, vector=[1.0, -0.5]), "u": s.LinearReward(vector=[0.5, 0.7])},
        models={
            "p": s.Model(family=s.LinearGaussian(noise=0.5), reward="r", domain="near", sources=p),
            "q": s.Model(family=s.LinearGaussian(noise=0.4), reward="u", domain="far", sources=q),
        },
        update=s.Update(order=order, steps=steps),
        samples=s.Samples(per_round=n, counts=counts),
    )


def means(n: int, counts: str = "multinomial", curation: float = 0.3, start: float = 0.0) -> s.Ecosystem:
    """Two Gaussian means in the plane: an affine loop whose sources' distance from each other moves with Θ."""
    turn = s.Affine(matrix=[[0.6, 0.5], [-0.5, 0.6]], shift=[0.8, 0.1])
    p = [s.Real(data="web", weight=0.3), s.Raw(producer="q", weight=0.7 - curation)]
    p.append(s.Curated(producer="q", curator="r", candidates=3, weight=curation))
    q = [s.Real(data="web", weight=0.2), s.Raw(producer="p", weight=0.8, map=turn)]
    made = {"p": (p, 0.5, "r"), "q": (q, 0.8, "u")}
    return s.Ecosystem(
        space=s.Vectors(dim=2),
        data={"web": s.MomentsData(mean=[1.0, -1.0], cov=0.4)},
        rewards={
            "r": s.LinearReward(vector=[1.0, 0.4]),
            "u": s.QuadraticReward(matrix=-1.5, vector=[0.3, -0.2]),
        },
        models={
            m: s.Model(family=s.GaussianMean(cov=cov), reward=r, sources=sources, start=[start, start])
            for m, (sources, cov, r) in made.items()
        },
        update=s.Update(order=s.Sequential()),
        samples=s.Samples(per_round=n, counts=counts),
    )
