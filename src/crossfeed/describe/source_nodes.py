"""Spec nodes of sources: what a model is trained on, and how people pick among candidates."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from crossfeed.describe.arrays import FINITE, Array, Candidates, Positive, Share
from crossfeed.describe.node import Name, Node


class Affine(Node):
    """z ↦ matrix z + shift, applied to what a source delivers (vectors; regression: to y)."""

    matrix: Array | None = Field(default=None, description="Number, diagonal or matrix; null for the identity.")
    shift: Array | None = Field(default=None, description="(dim,); null for zero.")


class Pick(Node):
    """Offer K candidates to curators, who pick one: P(k) = exp(r(y_k)/τ) / Σ_l exp(r(y_l)/τ) (Plackett–Luce)."""

    curator: Name | None = Field(
        default=None, description="Name of the reward that picks; null: the producer's people."
    )
    candidates: Candidates = Field(
        default=2, description="K ≥ 1, or `inf` (closed-form families) for exponential tilting by exp(r/τ)."
    )
    temperature: Annotated[float, Field(ge=0), FINITE] = Field(default=1.0, description="τ; 0 picks the best of K.")
    noise: Share = Field(default=0.0, description="Share of picks made uniformly at random.")
    other_curator: Name | None = Field(
        default=None, description="Reward behind a share of the picks (adversaries, other people)."
    )
    other_share: Share = Field(default=0.0, description="Share of picks made with `other_curator`.")
    then: Pick | None = Field(
        default=None, description="Second stage: independent picks of this stage are its candidates."
    )

    @property
    def stages(self) -> list[Pick]:
        """This stage and all that follow it."""
        return [self, *(self.then.stages if self.then else [])]


class SourceBase(Node):
    """What every source has."""

    name: Name | None = Field(
        default=None, description="Unique in its model; null: kind, or kind_producer, numbered when repeated."
    )
    weight: Share = Field(description="Share of the model's training data; a model's weights sum to 1.")
    domain: Name | None = Field(
        default=None, description="Regression: where x comes from; null: the producer's domain."
    )


class Real(SourceBase):
    """A fixed real data set."""

    kind: Literal["real"] = "real"
    data: Name = Field(description="Name under `data`.")


class Raw(SourceBase):
    """Outputs of a model, as they come."""

    kind: Literal["raw"] = "raw"
    producer: Name = Field(description="The model whose outputs these are; the model itself for self-consumption.")
    sampling_temperature: Positive = Field(
        default=1.0,
        description="The producer samples from q^(1/T), normalised; language models token by token, other networks at 1.",
    )
    map: Affine | None = Field(default=None, description="Vectors and regression: applied to what the source delivers.")
    inputs: Name | None = Field(
        default=None,
        description="Networks: data set whose inputs are answered; null: those of the producer's previous training set.",
    )


class Curated(Pick, SourceBase):
    """Outputs of a model after people picked among candidates."""

    kind: Literal["curated"] = "curated"
    producer: Name = Field(description="The model whose outputs are offered.")
    sampling_temperature: Positive = Field(
        default=1.0,
        description="The producer samples from q^(1/T), normalised; language models token by token, other networks at 1.",
    )
    map: Affine | None = Field(default=None, description="Vectors and regression: applied to what the source delivers.")
    inputs: Name | None = Field(
        default=None,
        description="Networks: data set whose inputs are answered; null: those of the producer's previous training set.",
    )


class Picks(SourceBase):
    """Picks that people made before, read from a file: the chosen answers, counted as curated (text)."""

    kind: Literal["picks"] = "picks"
    data: Name = Field(description="Name under `data`, of kind `preferences`.")


Source = Annotated[Real | Raw | Curated | Picks, Field(discriminator="kind")]


def candidates_label(value: float) -> str:
    """K as it is written: an integer or ∞."""
    return "∞" if math.isinf(value) else f"{value:g}"
