r"""The linearised loop of networks without any matrix: every block of D as passes over samples.

What :mod:`crossfeed.estimate.system` makes of kept gradients, this makes of products, one column at a time; besides the samples it keeps
vectors only: H_i x and Q_i b = f(H_i) b by :mod:`crossfeed.estimate.curvatures`, B_ij and its transpose by
:mod:`crossfeed.estimate.couplings`.
Passes per product and sample, with a plain forward pass as unit: a tangent about 2, a gradient about 3, a mixed derivative about 6, a
tangent through a sampler of T steps about 2T.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.dynamics.krylov import gmres
from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Differentiable
from crossfeed.estimate.couplings import Couplings, merged, shares_of
from crossfeed.estimate.curvatures import Curvatures
from crossfeed.estimate.draws import Draws, SourceDraw
from crossfeed.estimate.passes import Passes
from crossfeed.estimate.pathwise import RewardRates, moving_rewards
from crossfeed.estimate.solver import Solve, Solver, StableSolution
from crossfeed.estimate.steps import Steps, clip_factor
from crossfeed.families.base import LIKELIHOOD, RSAMPLE


class MatrixFree:
    """A :class:`crossfeed.estimate.horizon.LinearLoop` on whole parameter vectors.

    Args:
        models: By name, in the order of the spec.
        draws: Samples. What comes from a model that is taken pathwise must carry its start noise.
        steps: By model, how a round trains it. AdamW's scale is worked out here, by one pass of per-sample gradients.
        ridge: By model, added to the curvature; above 0 unless weight decay or the samples make it definite.
        mixture: Weight of every source; None: the draws'.
        rates: Rewards, as functions; needed where picks or alignment are taken pathwise.
        pathwise: Names of the models that are taken by their sampler; None: those without a likelihood.
        solver: See there.
        trainings: By name, whose AdamW scale the coordinates have; None: those of ``steps``.
        fisher: Share of the empirical Fisher matrix Σ_s w_s mean π φ φᵀ in the curvature of models that do not know their own.

    Attributes:
        sizes: d_i by model.
        solves: How every f(H) b went so far.

    Raises:
        NotAvailableError: a model that cannot be taken that way; start noise is missing; outputs of a model that is taken pathwise
            are picked by the best of K (τ = 0), or train a model whose gradients jump with them, a spline flow
            (:mod:`crossfeed.estimate.couplings`).
    """

    def __init__(
        self,
        models: Mapping[str, Differentiable],
        draws: Draws,
        steps: Sequence[Steps],
        ridge: Sequence[float],
        mixture: Sequence[float] | None = None,
        *,
        rates: RewardRates | None = None,
        pathwise: Collection[str] | None = None,
        solver: Solver | None = None,
        trainings: Mapping[str, Training | None] | None = None,
        fisher: float = 0.0,
    ) -> None:
        self.names, self.draws, self.steps, self.ridge = list(models), draws, list(steps), list(ridge)
        self.mixture = [draw.weight for draw in draws.sources] if mixture is None else list(mixture)
        self.rates, self.solver = rates or RewardRates(), solver or Solver()
        if pathwise is None:
            pathwise = {name for name, model in models.items() if LIKELIHOOD not in model.capabilities}
        self.pathwise = frozenset(pathwise)
        places = {model.device for model in models.values()}
        self.device = places.pop() if len(places) == 1 else torch.device("cpu")
        own = self.solver
        self.models = [
            Passes(model, own.seed, own.curvature_samples, self.device, own.dtype, own.sampler_chunk)
            for model in models.values()
        ]
        self.sizes = [model.size for model in self.models]
        self.solves: list[Solve] = []
        self._means: dict[int, Tensor] = {}
        self._check(models)
        parts = (self.names, self.models, draws, self.mixture)
        self._couplings = Couplings(*parts, self.pathwise, self.rates)
        self._curvatures = Curvatures(*parts, self.steps, self.ridge, fisher)
        for i, name in enumerate(self.names):
            training = self.steps[i].training if trainings is None else trainings[name]
            if training is not None and training.optimizer == "adamw":
                pairs = merged([(draw, shares_of(draw) * weight) for _, draw, weight in self._of(i)])
                self.models[i].set_scale(training, pairs)

    @classmethod
    def alone(cls, other: MatrixFree) -> MatrixFree:
        """The same with all couplings between different models dropped; shares samples, means and the record of solves."""
        new = cls.__new__(cls)
        new.__dict__ |= other.__dict__
        known = other._couplings
        parts = (known.names, known.models, known.draws, known.mixture, known.pathwise, known.rates)
        new._couplings = Couplings(*parts, isolated=True)
        return new

    def changed(self, draws: Draws, mixture: Sequence[float]) -> MatrixFree:
        """The same models, coordinates, steps and ridges with the same outputs picked or mixed otherwise.

        Args:
            draws: These draws with other probabilities, in the same order.
            mixture: Weight of every source.

        Raises:
            NotAvailableError: as for a new one.
        """
        new = type(self).__new__(type(self))
        new.__dict__ |= self.__dict__
        new.draws, new.mixture = draws, list(mixture)
        new._means = {}
        new._check({name: model.model for name, model in zip(self.names, self.models, strict=True)})
        parts = (new.names, new.models, draws, new.mixture)
        new._couplings = Couplings(*parts, new.pathwise, new.rates)
        new._curvatures = Curvatures(*parts, new.steps, new.ridge, self._curvatures.fisher)
        if self._curvatures.kept:
            new.keep_curvature()
        return new

    # --- curvature ---

    def keep_curvature(self) -> None:
        """Keep the rows of every model's curvature (:meth:`crossfeed.estimate.curvatures.Curvatures.keep`)."""
        self._curvatures.keep()

    def take_over(self, fisher: float) -> None:
        """Take this share of the empirical Fisher matrix; and the ridges and steps as they are now, where curvature is kept."""
        self._curvatures.take_over(fisher)

    @property
    def nbytes(self) -> int:
        """Of the rows and mean gradients that are kept now."""
        return sum(part.nbytes for part in [*self._curvatures.kept, *self._means.values()])

    def largest_curvature(self, i: int, most: int = 12) -> float:
        """About the largest eigenvalue of H_i, ridge and decay included: exact where it is kept, else by a few Lanczos steps."""
        return self._curvatures.largest(i, most, self.solver.seed)

    def curvature(self, i: int, x: Tensor) -> Tensor:
        """H_i x, (d_i, c)."""
        return self._curvatures.along(i, x)

    def respond(self, i: int, b: Tensor, round: int) -> Tensor:
        """Q_i b, (d_i, c), column by column: by Lanczos, or exactly; how each went is added to ``solves``."""
        steps = self.steps[i]
        found, solves = self._curvatures.apply(i, lambda values: steps.respond(values, round), b, self.solver)
        self.solves += solves
        return found

    def mean_eigenvalue(self, i: int) -> float:
        """Trace of H_i without ridge and decay, over d_i: by per-sample gradients of the curvature samples."""
        return self.trace(i) / self.sizes[i]

    def trace(self, i: int) -> float:
        """Trace of H_i without ridge and decay."""
        return self._curvatures.trace(i)

    def clipping(self, i: int, training: Training) -> float:
        """``shorten`` of :class:`~crossfeed.estimate.steps.Steps` for plain gradient steps that are clipped by their norm."""
        mean = sum((weight * self.mean(s) for s, _, weight in self._of(i)), torch.zeros(()))
        samples = training.batch_size * training.accumulate
        return clip_factor(training.gradient_clip, float(mean.square().sum()), self.trace(i), samples)

    # --- couplings ---

    def coupling(self, i: int, x: Sequence[Tensor]) -> Tensor:
        """Σ_j B_ij x_j, (d_i, c)."""
        return self._couplings.along(i, x)

    def coupling_transpose(self, i: int, c: Tensor) -> dict[int, Tensor]:
        """B_ijᵀ c by j, (d_j, c).

        Raises:
            NotAvailableError: picks from a model that is taken pathwise, by a reward that was not given as a differentiable function.
        """
        return self._couplings.back(i, c)

    # --- right-hand sides ---

    def mean(self, s: int) -> Tensor:
        """(d_i,) a_s, mean gradient of a source; one gradient of every candidate, kept."""
        if s not in self._means:
            draw = self.draws.sources[s]
            self._means[s] = self.models[self.names.index(draw.consumer)].loss_gradient(draw, shares_of(draw))
        return self._means[s]

    def pushes(self, directions: Sequence[Mapping[int, float]]) -> list[Tensor]:
        """By model, v_i = −Σ_s (dw_s/dλ) a_s, (d_i, c).

        Args:
            directions: By column, d(weight)/dλ of the sources that move, by their number in the draws.
        """
        out = [torch.zeros(d, len(directions), dtype=self.solver.dtype, device=self.device) for d in self.sizes]
        for column, slopes in enumerate(directions):
            for s, slope in slopes.items():
                out[self.names.index(self.draws.sources[s].consumer)][:, column] -= slope * self.mean(s)
        return out

    def drift(self) -> list[Tensor]:
        """By model, −F_i (d_i, 1): minus the mean gradient now, with weight decay; 0 at a stable point."""
        out = [-self.steps[i].decay * model.theta[:, None] for i, model in enumerate(self.models)]
        for i in range(len(self.models)):
            for s, _, weight in self._of(i):
                if weight:
                    out[i] = out[i] - weight * self.mean(s)[:, None]
        return out

    def stable(self, pushes: Sequence[Tensor], transpose: bool = False) -> StableSolution:
        """D⁻¹ v (or D⁻ᵀ v), for exact retraining until nothing moves, by restarted GMRES.

        Preconditioned from the right by a Krylov inverse of every H_i (:class:`~crossfeed.estimate.lanczos.KrylovInverse`), the
        inverse itself where a model knows its curvature; so residuals are those of D x = v.
        """
        inverses = [self._curvatures.inverse(i, self.solver) for i in range(len(self.sizes))]

        def precondition(y: Tensor) -> list[Tensor]:
            parts = y.to(self.device).split(self.sizes)
            return [inverse(part) for inverse, part in zip(inverses, parts, strict=True)]

        def product(y: Tensor) -> Tensor:
            x = precondition(y)
            out = [self.curvature(i, part) for i, part in enumerate(x)]
            for i in range(len(x)):
                if not transpose:
                    out[i] = out[i] + self.coupling(i, x)
                    continue
                for j, part in self.coupling_transpose(i, x[i]).items():
                    out[j] = out[j] + part
            return torch.cat(out).cpu()

        found = gmres(product, torch.cat(list(pushes)).cpu(), self.solver.tolerance, self.solver.restart)
        return StableSolution(precondition(found.value), found.result, found.residual, found.steps)

    def to_parameters(self, i: int, x: Tensor) -> Tensor:
        """(d_i,) coordinates to the change of model i's parameters that they stand for."""
        return self.models[i].to_parameters(x)

    # --- inside ---

    def _of(self, i: int) -> list[tuple[int, SourceDraw, float]]:
        """Number, samples and weight of model i's sources."""
        pairs = enumerate(zip(self.draws.sources, self.mixture, strict=True))
        return [(s, draw, weight) for s, (draw, weight) in pairs if draw.consumer == self.names[i]]

    def _check(self, models: Mapping[str, Differentiable]) -> None:
        for name, model in models.items():
            need = RSAMPLE if name in self.pathwise else LIKELIHOOD
            if need not in model.capabilities:
                other = "a differentiable sampler" if need == RSAMPLE else "a likelihood"
                hint = "leave it out of `pathwise`" if need == RSAMPLE else "put it into `pathwise`"
                raise NotAvailableError(f"models.{name}: found a model without {other}; {hint}, if it has the other")
        for draw, weight in zip(self.draws.sources, self.mixture, strict=True):
            if draw.producer not in self.pathwise or not weight:
                continue
            if draw.noise is None:
                raise NotAvailableError(
                    f"models.{draw.consumer}.sources.{draw.name}: found outputs of {draw.producer} without the noise that they "
                    f"were made from; draw with `network_draws(…, pathwise={{{draw.producer!r}}})`"
                )
            if not models[draw.consumer].smooth_in_outputs:
                raise NotAvailableError(
                    f"models.{draw.consumer}.sources.{draw.name}: found a model whose gradients jump as outputs move (a spline flow's do "
                    f"where they cross its knots), trained on outputs of {draw.producer}, which is taken pathwise; that route misses "
                    f"the jumps: take {draw.producer} by its likelihood (leave it out of `pathwise`)"
                )
            moving_rewards(draw)
