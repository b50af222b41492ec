"""Spec nodes of outcomes: the space they live in, real data, and domains of inputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from crossfeed.describe.arrays import FINITE, Array, Columns, Count, Labels, Whole
from crossfeed.describe.network_nodes import MixtureData, PreferencesData, Text, TextsData
from crossfeed.describe.node import File, Name, Node

# --- what an outcome is ---------------------------------------------------------------------------------------------


class Outcomes(Node):
    """A finite outcome set. Give ``count``, ``labels`` or ``coordinates`` (one row an outcome)."""

    kind: Literal["outcomes"] = "outcomes"
    count: Annotated[int, Field(ge=2), FINITE] | None = Field(default=None, description="Number of outcomes.")
    labels: list[str] | None = Field(default=None, description="One name an outcome.")
    coordinates: Columns | None = Field(
        default=None, description="(outcomes, c): where each outcome lies; linear and quadratic rewards act on it."
    )


class Images(Node):
    """Photographs as outcomes: each image, or with ``cells``, each cell of colour statistics is an outcome."""

    kind: Literal["images"] = "images"
    file: File = Field(
        description="Parquet in the hub's image schema, .npy (n, h, w, 3), `hub:NAME:SPLIT`, or `sample:cifar10`."
    )
    image_column: str = Field(default="img", description="Parquet column with the images.")
    label_column: str | None = Field(default="label", description="Parquet column with integer labels; null for none.")
    rows: Count | None = Field(
        default=None, description="Use this many rows, drawn with the spec's seed; null for all."
    )
    cells: dict[Literal["hue", "saturation", "brightness"], Count] | None = Field(
        default=None,
        description="Merge images into cells: this many equal-mass bins by statistic. Null: each image is an outcome.",
    )
    size: Count | None = Field(
        default=None,
        description="Photographs are resized to size × size (box averages down, bilinear up); null keeps their own size.",
    )

    @model_serializer(mode="wrap")
    def _as_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A label column that nobody wrote may be missing from the file, so it is not written out either."""
        out: dict[str, Any] = handler(self)
        if "label_column" not in self.model_fields_set:
            out.pop("label_column", None)
        return out


class Vectors(Node):
    """Outcomes are vectors in R^dim."""

    kind: Literal["vectors"] = "vectors"
    dim: Annotated[int, Field(ge=1), FINITE] = Field(description="Dimension of an outcome.")


class Regression(Node):
    """Outcomes are pairs (x, y): an input x in R^inputs and an answer y in R^outputs."""

    kind: Literal["regression"] = "regression"
    inputs: Annotated[int, Field(ge=1), FINITE] = Field(
        description="Dimension of x; add a column of ones for an intercept."
    )
    outputs: Annotated[int, Field(ge=1), FINITE] = Field(description="Dimension of y.")


Space = Annotated[Outcomes | Images | Vectors | Regression | Text, Field(discriminator="kind")]


# --- real data and input domains ------------------------------------------------------------------------------------


class RowsData(Node):
    """Rows of an array: vectors (n, dim), or for outcome sets indices or labels (n,)."""

    kind: Literal["rows"] = "rows"
    rows: Labels = Field(description="Vectors: (n, dim). Outcomes: (n,) indices from 0, or labels.")


class MomentsData(Node):
    """A Gaussian given by its mean and covariance (vectors only)."""

    kind: Literal["moments"] = "moments"
    mean: Array = Field(description="(dim,)")
    cov: Array = Field(description="A number, a diagonal (dim,) or a matrix (dim, dim).")


class DistributionData(Node):
    """A distribution over a finite outcome set."""

    kind: Literal["distribution"] = "distribution"
    weights: Array = Field(description="(outcomes,) nonnegative; counts or probabilities, normalised to sum 1.")


class ImagesData(Node):
    """The photographs of an ``images`` space, or those with some labels only."""

    kind: Literal["images"] = "images"
    labels: list[Whole] | None = Field(default=None, description="Keep only these labels; null keeps all.")


class PairsData(Node):
    """Pairs (x, y) for regression."""

    kind: Literal["pairs"] = "pairs"
    x: Columns = Field(description="(n, inputs)")
    y: Columns = Field(description="(n, outputs)")


class TeacherData(Node):
    """Answers of a fixed linear teacher, y = matrix x + noise, on a domain (regression)."""

    kind: Literal["teacher"] = "teacher"
    matrix: Array = Field(description="(outputs, inputs)")
    noise: Array = Field(
        default=0.0, validate_default=True, description="Covariance of the noise: number, diagonal or matrix."
    )
    domain: Name = Field(description="Where x comes from.")


Data = Annotated[
    RowsData
    | MomentsData
    | MixtureData
    | DistributionData
    | ImagesData
    | PairsData
    | TeacherData
    | TextsData
    | PreferencesData,
    Field(discriminator="kind"),
]


class PointsDomain(Node):
    """Inputs drawn from a finite list."""

    kind: Literal["points"] = "points"
    points: Columns = Field(description="(m, inputs)")
    weights: Array | None = Field(default=None, description="(m,) nonnegative, normalised; null for equal.")


class GaussianDomain(Node):
    """Inputs drawn from a Gaussian."""

    kind: Literal["gaussian"] = "gaussian"
    mean: Array = Field(description="(inputs,)")
    cov: Array = Field(description="A number, a diagonal or a matrix.")


Domain = Annotated[PointsDomain | GaussianDomain, Field(discriminator="kind")]
