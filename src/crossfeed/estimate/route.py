"""Which solver and which route an audit of networks takes, from the spec alone: before anything is trained or drawn.

The gradient bank takes scores, ∇log q, which need a likelihood. The matrix-free solver takes each model by its likelihood, or
pathwise, by its differentiable sampler, where it has none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from crossfeed.describe.schema import Curated, Ecosystem, Model, Raw, source_names
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate.networks import adapter
from crossfeed.estimate.pathwise import smooth_pick
from crossfeed.families.base import LIKELIHOOD, RSAMPLE

ESTIMATORS = ("auto", "bank", "matrix-free")


@dataclass(frozen=True)
class Route:
    """How an ecosystem is audited.

    Attributes:
        solver: ``bank`` or ``matrix-free``.
        pathwise: Models that are taken by their sampler.
    """

    solver: Literal["bank", "matrix-free"]
    pathwise: frozenset[str] = frozenset()


def choose_route(eco: Ecosystem, estimator: str = "auto", recorded: Collection[str] = ()) -> Route:
    """The solver and the routes, or why there is none.

    Args:
        eco: The ecosystem; all its models are networks.
        estimator: ``auto``: the bank where every model has a likelihood, else matrix-free; or one of the two.
        recorded: Models whose outputs come from files.

    Raises:
        SettingError: no such estimator.
        NotAvailableError: the bank, with models without a likelihood; a rule or a consumer that derivatives through a sampler cannot
            follow; recorded outputs with the matrix-free solver.
    """
    if estimator not in ESTIMATORS:
        raise SettingError(f"--estimator: found {estimator!r}; need one of {', '.join(ESTIMATORS)}")
    kinds = {name: adapter(model.family) for name, model in eco.models.items()}
    pathwise = frozenset(name for name, kind in kinds.items() if LIKELIHOOD not in kind.capabilities)
    for name in sorted(pathwise):
        if estimator == "bank":
            raise NotAvailableError(
                f"--estimator: found bank; models.{name}: a {eco.models[name].family.kind} network has no likelihood, and the gradient "
                "bank needs one: take `--estimator matrix-free`, or leave it at auto"
            )
        if RSAMPLE not in kinds[name].capabilities:
            raise NotAvailableError(
                f"models.{name}: found a {eco.models[name].family.kind} network, without likelihood and without differentiable sampler"
            )
    if estimator == "bank" or (estimator == "auto" and not pathwise):
        return Route("bank")
    for name in sorted(recorded):
        if name in pathwise:
            raise NotAvailableError(
                f"outputs of {name}: found a model that is taken by its sampler, for which outputs on file lack the noise that they "
                "were made from: leave them out, and outputs will be generated"
            )
        raise NotAvailableError(
            f"outputs of {name}: the matrix-free solver draws several batches of its own; leave them out, or take `--estimator bank`"
        )
    for name, model in eco.models.items():
        for label, source in zip(source_names(model), model.sources, strict=True):
            if isinstance(source, (Raw, Curated)) and source.producer in pathwise:
                _check(f"models.{name}.sources.{label}", eco, model, source)
    return Route("matrix-free", pathwise)


def _check(where: str, eco: Ecosystem, model: Model, source: Raw | Curated) -> None:
    """Whether derivatives through the producer's sampler reach what the source trains."""
    if not adapter(model.family).smooth_in_outputs:
        raise NotAvailableError(
            f"{where}: found a {model.family.kind} network that is trained on outputs of {source.producer}, which has no likelihood; its "
            "gradients jump as outputs move, which the pathwise route would miss"
        )
    if source.sampling_temperature != 1:
        raise SettingError(
            f"{where}.sampling_temperature: found {source.sampling_temperature:g}; outputs that are followed through their sampler come at "
            "temperature 1 only"
        )
    if isinstance(source, Curated):
        smooth_pick(source, eco.models[source.producer].reward, where)
