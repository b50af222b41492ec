r"""The curvatures H_i as passes over samples, and functions of them.

With rows h of the generalised Gauss–Newton matrix,

    H_i x = Σ_s w_s mean h (hᵀx) + (ridge + decay) x        a tangent and a gradient of every curvature sample

or the Hessian itself where a model knows it; f(H_i) b by Lanczos, or, where the rows h of few curvature samples may be kept
(:meth:`Curvatures.keep`), exactly and without a pass (:mod:`crossfeed.estimate.low_rank`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crossfeed.estimate.couplings import merged, shares_of
from crossfeed.estimate.draws import Draws, SourceDraw
from crossfeed.estimate.lanczos import KrylovInverse, Lanczos, apply_function
from crossfeed.estimate.low_rank import LowRank
from crossfeed.estimate.passes import Passes
from crossfeed.estimate.solver import Solve, Solver
from crossfeed.estimate.steps import Spectrum, Steps


class Curvatures:
    """H of every model of an ecosystem.

    Args:
        names: Of the models.
        models: Their passes.
        draws: Samples.
        mixture: Weight of every source.
        steps: By model, how a round trains it: its weight decay is added.
        ridge: By model, added.
        fisher: Share of the empirical Fisher matrix Σ_s w_s mean π φ φᵀ in the curvature of models that do not know their own.
    """

    def __init__(
        self,
        names: Sequence[str],
        models: Sequence[Passes],
        draws: Draws,
        mixture: Sequence[float],
        steps: Sequence[Steps],
        ridge: Sequence[float],
        fisher: float = 0.0,
    ) -> None:
        self.names, self.models, self.draws, self.mixture = names, models, draws, mixture
        self.steps, self.ridge, self.fisher = steps, ridge, fisher
        self._spectra: dict[int, Spectrum] = {}
        self._rows: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._kept: dict[int, LowRank] = {}
        self._inverses: dict[int, Callable[[Tensor], Tensor]] = {}

    def keep(self) -> None:
        """Keep the rows of every model's curvature: products with it then cost no pass, and f(H) b is exact, without Lanczos.

        Memory is as many vectors (d,) as there are curvature samples, and with a share of the empirical Fisher matrix as many as there
        are candidates. Models that know their curvature need none.
        """
        for i, model in enumerate(self.models):
            if not model.exact:
                rows = [weight**0.5 * model.curvature_rows(draw) for draw, weight in self._of(i)]
                self._rows[i] = torch.cat(rows), None
        self.take_over(self.fisher)

    def take_over(self, fisher: float) -> None:
        """Take this share of the empirical Fisher matrix; and the ridges and steps as they are now, where curvature is kept."""
        self.fisher = fisher
        for i, (rows, others) in self._rows.items():
            if fisher and others is None:
                others = torch.cat([self.models[i].loss_rows(draw, shares) for draw, shares in self._shares(i)])
                self._rows[i] = rows, others
            if fisher and others is not None:
                rows = torch.cat([(1 - fisher) ** 0.5 * rows, fisher**0.5 * others])
            self._kept[i] = LowRank(rows, self._floor(i))

    @property
    def kept(self) -> list[Tensor]:
        """The rows that are kept now."""
        return [part for pair in self._rows.values() for part in pair if part is not None]

    def along(self, i: int, x: Tensor) -> Tensor:
        """H_i x, (d_i, c)."""
        if self.models[i].exact:
            found: Tensor = self._spectrum(i).matrix @ x
            return found
        return _columns(x, lambda column: self._bent(i, column))

    def apply(self, i: int, f: Callable[[Tensor], Tensor], b: Tensor, solver: Solver) -> tuple[Tensor, list[Solve]]:
        """f(H_i) b, (d_i, c), column by column, and how each of them went where a model does not know its curvature.

        Args:
            i: Number of the model.
            f: Of eigenvalues (r,), each by itself.
            b: (d_i, c).
            solver: When Lanczos stops.
        """
        if self.models[i].exact:
            spectrum = self._spectrum(i)
            return spectrum.apply(f(spectrum.values), b), []
        solves: list[Solve] = []

        def one(column: Tensor) -> Tensor:
            if i in self._kept:
                solves.append(Solve(self.names[i], "converged", 0.0, 0))
                return self._kept[i].apply(f, column)
            found = apply_function(
                lambda x: self._bent(i, x),
                column,
                f,
                tolerance=solver.tolerance,
                most=solver.most,
                floor=self._floor(i),
            )
            solves.append(Solve(self.names[i], found.result, found.residual, found.steps))
            return found.value

        return _columns(b, one), solves

    def inverse(self, i: int, solver: Solver) -> Callable[[Tensor], Tensor]:
        """H_i⁻¹ where a model knows its curvature, else a Krylov inverse (:class:`~crossfeed.estimate.lanczos.KrylovInverse`); kept."""
        if i not in self._inverses:
            if self.models[i].exact:
                spectrum = self._spectrum(i)
                self._inverses[i] = lambda b: spectrum.apply(1 / spectrum.values, b)
            else:
                start = self._start(i, solver.seed)
                self._inverses[i] = KrylovInverse(lambda x: self._bent(i, x), start, solver.restart, self._floor(i))
        return self._inverses[i]

    def largest(self, i: int, most: int, seed: int) -> float:
        """About the largest eigenvalue of H_i: exact where it is known or kept, else by ``most`` Lanczos steps from a seeded start."""
        if self.models[i].exact:
            return float(self._spectrum(i).values[-1])
        if i in self._kept:
            return self._kept[i].largest
        run = Lanczos(lambda x: self._bent(i, x), self._start(i, seed), most)
        while not run.done:
            run.step()
        return float(run.ritz()[0][-1])

    def trace(self, i: int) -> float:
        """Trace of H_i without ridge and decay: by per-sample gradients of the curvature samples."""
        if i in self._rows:
            return float(self._rows[i][0].double().square().sum())
        return sum(weight * self.models[i].curvature_trace(draw) for draw, weight in self._of(i))

    # --- inside ---

    def _of(self, i: int) -> list[tuple[SourceDraw, float]]:
        """Samples and weight of model i's sources that have a weight."""
        pairs = zip(self.draws.sources, self.mixture, strict=True)
        return [(draw, weight) for draw, weight in pairs if draw.consumer == self.names[i] and weight]

    def _shares(self, i: int) -> list[tuple[SourceDraw, Tensor]]:
        """The same samples with the weight (n·K,) of every candidate, shared ones once."""
        return merged([(draw, shares_of(draw) * weight) for draw, weight in self._of(i)])

    def _floor(self, i: int) -> float:
        """What is added to the curvature of model i."""
        return self.ridge[i] + self.steps[i].decay

    def _start(self, i: int, seed: int) -> Tensor:
        """(d_i,) random."""
        model, random = self.models[i], torch.Generator().manual_seed(seed)
        return torch.randn(model.size, dtype=torch.float64, generator=random).to(model.device, model.dtype)

    def _bent(self, i: int, x: Tensor) -> Tensor:
        out = self._floor(i) * x
        if i in self._kept:
            return out + self._kept[i].product(x)
        for draw, weight in self._of(i):
            out = out + (1 - self.fisher) * weight * self.models[i].curvature(draw, x)
        if self.fisher:
            for draw, shares in self._shares(i):
                met = self.models[i].loss_products(draw, x)
                out = out + self.models[i].loss_gradient(draw, self.fisher * shares * met)
        return out

    def _spectrum(self, i: int) -> Spectrum:
        if i not in self._spectra:
            parts = [weight * self.models[i].hessian(draw) for draw, weight in self._of(i)]
            matrix = torch.stack(parts).sum(0)
            matrix.diagonal().add_(self._floor(i))
            self._spectra[i] = Spectrum(matrix)
        return self._spectra[i]


def _columns(x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of vectors, column by column; columns of zeros stay zeros."""
    return torch.stack([fn(column) if bool(column.any()) else torch.zeros_like(column) for column in x.T], 1)
