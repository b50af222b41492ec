"""Random directed ecosystems of any size: every model learns from real data and from five others."""

from __future__ import annotations

import numpy as np

from crossfeed.describe import schema as s


def gaussian(num_models: int, dim: int = 16, producers: int = 5, seed: int = 0) -> s.Ecosystem:
    """N(θ, I) models: .3 real data, four mapped raw sources of .1, one source of .3 that people picked from K = 4.

    Maps have norm .9, so that a round contracts; every model's people like a direction of their own.
    """
    rng = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(num_models)]
    models: dict[str, s.Model] = {}
    for i, name in enumerate(names):
        others = np.delete(np.arange(num_models), i)
        chosen = [names[j] for j in rng.choice(others, producers, replace=False)]
        maps = [s.Affine(matrix=0.9 * np.linalg.qr(rng.standard_normal((dim, dim)))[0]) for _ in chosen[1:]]
        raw = [s.Raw(producer=j, weight=0.4 / (producers - 1), map=m) for j, m in zip(chosen[1:], maps, strict=True)]
        models[name] = s.Model(
            family=s.GaussianMean(),
            reward=f"r{i}",
            sources=[s.Real(data=f"d{i}", weight=0.3), s.Curated(producer=chosen[0], weight=0.3, candidates=4), *raw],
        )
    return s.Ecosystem(
        space=s.Vectors(dim=dim),
        data={f"d{i}": s.MomentsData(mean=rng.standard_normal(dim), cov=1.0) for i in range(num_models)},
        rewards={f"r{i}": s.LinearReward(vector=rng.standard_normal(dim) / np.sqrt(dim)) for i in range(num_models)},
        models=models,
    )


def log_linear(
    num_models: int, features: int = 16, outcomes: int = 200, producers: int = 5, seed: int = 0
) -> s.Ecosystem:
    """Log-linear models on one outcome set: .3 real data and five sources that people picked from K = 4, one of them raw."""
    rng = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(num_models)]
    phi = rng.standard_normal((outcomes, features))
    models: dict[str, s.Model] = {}
    for i, name in enumerate(names):
        others = np.delete(np.arange(num_models), i)
        chosen = [names[j] for j in rng.choice(others, producers, replace=False)]
        share = 0.7 / producers
        fed: list[s.Source] = [s.Raw(producer=chosen[0], weight=0.7 - share * (producers - 1))]
        fed += [s.Curated(producer=j, weight=share, candidates=4) for j in chosen[1:]]
        models[name] = s.Model(
            family=s.LogLinear(features=phi), reward=f"r{i}", sources=[s.Real(data=f"d{i}", weight=0.3), *fed]
        )
    return s.Ecosystem(
        space=s.Outcomes(count=outcomes),
        data={f"d{i}": s.DistributionData(weights=rng.dirichlet(np.full(outcomes, 2.0))) for i in range(num_models)},
        rewards={f"r{i}": s.TableReward(values=rng.standard_normal(outcomes)) for i in range(num_models)},
        models=models,
    )
