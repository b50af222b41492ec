r"""The blocks of D and the pushes, as moments of the bank's rows, for any weights of sources and of samples.

With p_g the weights of a source's groups (1/n each, or a bootstrap's), π_k the pick's probabilities, φ = ∇ℓ_i and s = ∇log q_j,

    a = Σ_g p_g Σ_k π_k φ_k                       mean gradient of the source
    C = Σ_g p_g Σ_k π_k E_u[h_k h_kᵀ]             its curvature: generalised Gauss–Newton, or the Hessian itself
    B = Σ_g p_g (Σ_k π_k φ_k − a)(Σ_k s_k)ᵀ / (1 − Σ p²)      how a moves with the producer's parameters

(E[s] = 0, and all K scores count, not the winner's alone). All three are means over several groupings of the same candidates where these
are interchangeable (:meth:`~crossfeed.estimate.draws.SourceDraw.groupings`). A model's mean gradient on its own raw outputs is 0
whatever its parameters, so for these B = −C, and no sample is needed to say so; ours, as is the shortening of outliers in B
(:mod:`crossfeed.estimate.outliers`). Mixtures add them up by weight: H_i = Σ w_s C_s + ridge,
B_ij = Σ w_s B_s over the sources that j makes for i, F_i = Σ w_s a_s. Alignment: J_k = E[r] and ∇J_k = E[(r − b) s], b the mean
reward of the prompt's other answers, or of the other prompts where there is one answer each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crossfeed.errors import NotStableError
from crossfeed.estimate.bank import Bank, EvaluationRows, SourceRows
from crossfeed.estimate.draws import Grouping, Rule, marginal
from crossfeed.estimate.steps import Spectrum, Steps


@dataclass(frozen=True, eq=False)
class Moments:
    """What one source contributes; see the module.

    Attributes:
        mean: (r_i,) a.
        curvature: (r_i, r_i) C.
        coupling: (r_i, r_j) B; None without a producer, and where it is −C.
        work_out_fisher: Gives :attr:`fisher`.
    """

    mean: Tensor
    curvature: Tensor
    coupling: Tensor | None
    work_out_fisher: Callable[[], Tensor] | None = None

    @cached_property
    def fisher(self) -> Tensor | None:
        """(r_i, r_i) Σ_g p_g Σ_k π_k φ_k φ_kᵀ, the empirical Fisher matrix, worked out when asked for; None where C is the Hessian."""
        return None if self.work_out_fisher is None else self.work_out_fisher()


def group_weights(clusters: Tensor, weights: Tensor | None) -> Tensor:
    """(n,) weights of groups, which sum to 1, from weights (C,) of clusters; None: equal ones."""
    if weights is None:
        return torch.full((len(clusters),), 1 / len(clusters), dtype=torch.float64)
    own = weights[clusters]
    return own / own.sum()


def moments(rows: SourceRows, weights: Tensor | None = None, rule: Rule | None = None) -> Moments:
    """Moments of one source.

    Args:
        rows: Its rows in the bank.
        weights: (C,) of clusters; None for equal ones.
        rule: Rewards of the groups to pick probabilities (n, K′) among the first K′ candidates, instead of the draw's.
    """
    p, dtype = group_weights(rows.draw.clusters, weights), rows.loss.dtype
    share = marginal(rows.draw, p, rule)
    if rows.hessian is not None:
        curvature = rows.hessian(share).double()
    else:
        curvature = outer(rows.curvature, share[rows.curved] / share[rows.curved].sum())
    mean = (share.to(dtype) @ rows.loss).double()

    def fisher() -> Tensor:
        return outer(rows.loss, share if rows.loss_factor is None else share * rows.loss_factor.square())

    coupling = None
    if rows.score is not None and not rows.mirrored:
        found = rows.draw.groupings(rule)
        for group in found:
            grouped, scores = pushes_of(rows, group)
            centred = (grouped - p.to(dtype) @ grouped) * p.to(dtype)[:, None]
            part = (centred.T @ scores).double() / (len(found) * (1 - p.square().sum()))
            coupling = part if coupling is None else coupling + part
    return Moments(mean, curvature, coupling, None if rows.hessian is not None else fisher)


def outer(rows: Tensor, share: Tensor) -> Tensor:
    """Σ share h hᵀ (r, r), float64."""
    some = share > 0
    root = share[some].sqrt().to(rows.dtype)[:, None] * rows[some]
    return (root.T @ root).double()


def pushes_of(rows: SourceRows, group: Grouping) -> tuple[Tensor, Tensor]:
    """Σ_k π_k φ_k (n, r_i) and Σ_k s_k (n, r_j) of every group, outliers shortened."""
    assert rows.score is not None
    loss, score = rows.loss[group.index], rows.score[group.index]
    pick = group.probabilities if rows.loss_factor is None else group.probabilities * rows.loss_factor[group.index]
    ones = torch.ones(group.index.shape) if rows.score_factor is None else rows.score_factor[group.index]
    return (
        torch.einsum("gk,gkr->gr", pick.to(loss.dtype), loss),
        torch.einsum("gk,gkr->gr", ones.to(score.dtype), score),
    )


@dataclass(frozen=True, eq=False)
class Judged:
    """One evaluation.

    Attributes:
        value: J.
        gradient: (r_k,) ∇J.
    """

    value: float
    gradient: Tensor


def judge(rows: EvaluationRows, weights: Tensor | None = None) -> Judged:
    """J and ∇J of one evaluation."""
    p = group_weights(rows.draw.clusters, weights)
    part = advantages(rows, p)
    answers = rows.draw.rewards.shape[1]
    flat = (p[:, None] * part / answers).flatten().to(rows.score.dtype)
    return Judged(float(p @ rows.draw.rewards.mean(1)), (flat @ rows.score).double())


def advantages(rows: EvaluationRows, p: Tensor) -> Tensor:
    """(n, K) r − b, with what keeps the estimate unbiased."""
    rewards = rows.draw.rewards
    answers = rewards.shape[1]
    if answers > 1:  # the prompt's other answers
        return (rewards - rewards.mean(1, keepdim=True)) * (answers / (answers - 1))
    return (rewards - (p @ rewards)) / (1 - p.square().sum())


def blend(part: Moments, fisher: float) -> Tensor:
    """(r, r) (1 − share) C + share · empirical Fisher, where there is one."""
    if fisher == 0 or part.fisher is None:
        return part.curvature
    return (1 - fisher) * part.curvature + fisher * part.fisher


ITERATIONS = 10
"""Steps of Arnoldi's method for :attr:`System.expansion`."""


class System:
    """The linearised loop of an ecosystem around its parameters (:class:`crossfeed.estimate.horizon.LinearLoop`).

    Args:
        bank: The rows.
        found: Moments by source.
        mixture: (S,) weight of every source; None: the spec's.
        steps: By model, how a round trains it.
        ridge: By model, added to the curvature.
        fisher: Share of the empirical Fisher matrix in the curvature of networks.
    """

    def __init__(
        self,
        bank: Bank,
        found: Sequence[Moments],
        steps: Sequence[Steps],
        ridge: Sequence[float],
        mixture: Sequence[float] | None = None,
        fisher: float = 0.0,
    ) -> None:
        self.bank, self.found, self.steps = bank, found, steps
        self.sizes = [model.basis.size for model in bank.models]
        self.mixture = [rows.draw.weight for rows in bank.sources] if mixture is None else list(mixture)
        self.fisher = fisher
        self._answers: dict[tuple[int, int], Tensor] = {}
        self._spectra: list[Spectrum] = []
        for i, size in enumerate(self.sizes):
            matrix = torch.zeros(size, size, dtype=torch.float64)
            for rows, part, weight in zip(bank.sources, found, self.mixture, strict=True):
                if rows.consumer == i and weight:
                    matrix += weight * blend(part, fisher)
            matrix.diagonal().add_(ridge[i] + steps[i].decay)
            self._spectra.append(Spectrum(matrix))
        self.couplings: dict[tuple[int, int], Tensor] = {}
        for rows, part, weight in zip(bank.sources, found, self.mixture, strict=True):
            matrix = -blend(part, fisher) if rows.mirrored else part.coupling  # type: ignore[assignment]
            if matrix is None or rows.producer is None or not weight:
                continue
            key = (rows.consumer, rows.producer)
            self.couplings[key] = self.couplings.get(key, torch.zeros(())) + weight * matrix

    @classmethod
    def alone(cls, other: System) -> System:
        """The same with all couplings between different models dropped; shares the curvatures."""
        new = cls.__new__(cls)
        new.__dict__ |= {key: value for key, value in other.__dict__.items() if key != "expansion"}
        new.couplings = {key: value for key, value in other.couplings.items() if key[0] == key[1]}
        return new

    def curvature(self, i: int, x: Tensor) -> Tensor:
        """H_i x."""
        return self._spectra[i].matrix @ x

    def coupling(self, i: int, x: Sequence[Tensor]) -> Tensor:
        """Σ_j B_ij x_j."""
        out = torch.zeros_like(x[i])
        for (consumer, producer), matrix in self.couplings.items():
            if consumer == i:
                out = out + matrix @ x[producer]
        return out

    def coupling_transpose(self, i: int, c: Tensor) -> dict[int, Tensor]:
        """B_ijᵀ c by j."""
        return {j: matrix.T @ c for (consumer, j), matrix in self.couplings.items() if consumer == i}

    def respond(self, i: int, b: Tensor, round: int) -> Tensor:
        """Q_i b."""
        spectrum, key = self._spectra[i], (i, round if self.steps[i].changes else 0)
        if key not in self._answers:
            self._answers[key] = self.steps[i].respond(spectrum.values, round)
        return spectrum.apply(self._answers[key], b)

    def shrink(self, i: int, force: Tensor, noise: Tensor) -> Tensor:
        """A force (r_i, 1) whose error has covariance ``noise`` (r_i, r_i), shrunk along each eigenvector of the curvature."""
        vectors = self._spectra[i].vectors
        parts = vectors.T @ force
        variance = torch.einsum("ra,rs,sa->a", vectors, noise, vectors)[:, None]
        keep = (1 - variance / parts.square().clamp_min(1e-300)).clamp_min(0)
        out: Tensor = vectors @ (keep * parts)
        return out

    @cached_property
    def expansion(self) -> float:
        """By how much one round of all models at once multiplies what it multiplies most: the largest Ritz value in absolute size
        after a few of Arnoldi's steps from a seeded start.
        """
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(sum(self.sizes), 1, generator=generator, dtype=torch.float64)
        most = min(ITERATIONS, len(start))
        basis = torch.zeros(most + 1, len(start), dtype=torch.float64)
        basis[0] = start[:, 0] / start.norm()
        ritz = torch.zeros(most + 1, most, dtype=torch.float64)
        for k in range(most):
            x = list(basis[k][:, None].split(self.sizes))
            y = torch.cat(
                [v + self.respond(i, -self.curvature(i, v) - self.coupling(i, x), 0) for i, v in enumerate(x)]
            )[:, 0]
            for _ in range(2):
                part = basis[: k + 1] @ y
                y, ritz[: k + 1, k] = y - part @ basis[: k + 1], ritz[: k + 1, k] + part
            size = float(y.norm())
            if not math.isfinite(size):
                return math.inf
            if size <= 1e-12 * float(ritz[: k + 1, k].norm()):
                most = k + 1
                break
            ritz[k + 1, k], basis[k + 1] = size, y / size
        return float(torch.linalg.eigvals(ritz[:most, :most]).abs().max())

    def spectrum(self, i: int) -> Tensor:
        """(r_i,) eigenvalues of H_i."""
        return self._spectra[i].values

    def zeros(self, columns: int) -> list[Tensor]:
        """By model, (r_i, columns)."""
        return [torch.zeros(size, columns, dtype=torch.float64) for size in self.sizes]

    def pushes(self, directions: Sequence[Mapping[int, float]]) -> list[Tensor]:
        """By model, v_i = −Σ_s (dw_s/dλ) a_s, (r_i, c).

        Args:
            directions: By column, d(weight)/dλ of the sources that move, by their number in the bank.
        """
        out = self.zeros(len(directions))
        for column, slopes in enumerate(directions):
            for s, slope in slopes.items():
                out[self.bank.sources[s].consumer][:, column] -= slope * self.found[s].mean
        return out

    @cached_property
    def drift(self) -> list[Tensor]:
        """By model, −F_i (r_i, 1): minus the mean gradient now, with weight decay; 0 at a stable point."""
        out = [-self.steps[i].decay * model.theta.double()[:, None] for i, model in enumerate(self.bank.models)]
        for rows, part, weight in zip(self.bank.sources, self.found, self.mixture, strict=True):
            out[rows.consumer] = out[rows.consumer] - weight * part.mean[:, None]
        return out

    def stable(self, pushes: Sequence[Tensor], transpose: bool = False) -> list[Tensor]:
        """D⁻¹ v (or D⁻ᵀ v) by model, for exact retraining until nothing moves; dense.

        Raises:
            NotStableError: D is singular: some direction is determined by nobody's training data.
        """
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        D = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
        for i, spectrum in enumerate(self._spectra):
            D[ends[i] : ends[i + 1], ends[i] : ends[i + 1]] = spectrum.matrix
        for (i, j), matrix in self.couplings.items():
            D[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] += matrix
        x, failed = torch.linalg.solve_ex(D.T if transpose else D, torch.cat(list(pushes)))
        if int(failed) or not bool(torch.isfinite(x).all()):
            raise NotStableError(
                "the estimated D is singular: some direction of the parameters is not determined by the training data, so that it "
                "does not move smoothly with the settings; add real data, a ridge or samples, or drop collinear features"
            )
        return list(x.split(self.sizes))
