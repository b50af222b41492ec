"""Spec nodes of models: what a model can be, and what it is trained on and judged by."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from crossfeed.describe.arrays import FINITE, Array, Columns, Count
from crossfeed.describe.network_nodes import CausalLM, Diffusion, Flow, Pretraining, Training
from crossfeed.describe.node import File, Name, Node
from crossfeed.describe.source_nodes import Curated, Raw, Source

# --- model families -------------------------------------------------------------------------------------------------


class Categorical(Node):
    """Every distribution on a finite outcome set; loss −log q."""

    kind: Literal["categorical"] = "categorical"


Statistic = Literal["mean", "std", "hue", "saturation", "brightness", "label"]


def _features_tag(value: Any) -> str:
    return "statistics" if isinstance(value, (list, tuple)) and any(isinstance(v, str) for v in value) else "array"


Features = Annotated[
    Annotated[Columns, Tag("array")] | Annotated[list[Statistic], Tag("statistics")], Discriminator(_features_tag)
]


class LogLinear(Node):
    """q(y) ∝ base(y) exp(features(y) · θ) on a finite outcome set: not every distribution fits; loss −log q."""

    kind: Literal["loglinear"] = "loglinear"
    features: Features = Field(description="(outcomes, d), or for images the statistics to use as features.")
    base: Array | None = Field(
        default=None,
        description="(outcomes,) positive base measure; null for uniform, and for images one a photograph.",
    )


class GaussianMean(Node):
    """N(θ, cov) with known covariance; loss ½‖z − θ‖²."""

    kind: Literal["gaussian_mean"] = "gaussian_mean"
    cov: Array = Field(default=1.0, validate_default=True, description="Number, diagonal (dim,) or matrix (dim, dim).")


class Gaussian(Node):
    """N(mean, covariance), both unknown; loss −log q."""

    kind: Literal["gaussian"] = "gaussian"


class LinearGaussian(Node):
    """y | x ~ N(W x, noise) with known noise; loss ½‖y − W x‖²."""

    kind: Literal["linear_gaussian"] = "linear_gaussian"
    noise: Array = Field(default=1.0, validate_default=True, description="Number, diagonal (outputs,) or matrix.")


Family = Annotated[
    Categorical | LogLinear | GaussianMean | Gaussian | LinearGaussian | Flow | Diffusion | CausalLM,
    Field(discriminator="kind"),
]


# --- models ---------------------------------------------------------------------------------------------------------


class Evaluation(Node):
    """Where a model's alignment is measured: J = E[r(y)] over a domain."""

    name: Name = Field(description="What the report calls it.")
    reward: Name | None = Field(default=None, description="Null: the model's own people's reward.")
    domain: Name | None = Field(default=None, description="Regression: where x comes from; null: the model's domain.")
    data: Name | None = Field(
        default=None,
        description="Networks: whose inputs are answered; null: the model's own real data's, else its first inputs'.",
    )
    samples: Count | None = Field(
        default=None, description="Networks: outputs a round; null: `run.evaluation_samples`."
    )


class Model(Node):
    """One model: its family, its people's reward, what it is trained on and where it is judged."""

    family: Family = Field(description="What the model can be.")
    reward: Name = Field(
        description="The reward of this model's people; curates its outputs and defines its alignment."
    )
    sources: list[Source] = Field(min_length=1, description="What it is trained on; the weights sum to 1.")
    domain: Name | None = Field(default=None, description="Regression: where its inputs come from.")
    evaluate: list[Evaluation] | None = Field(
        default=None, description="Null: once, by its own reward on its own domain."
    )
    ridge: Annotated[float, Field(ge=0), FINITE] = Field(
        default=0.0, description="Closed-form families: μ, adds (μ/2)‖θ‖² to the training loss."
    )
    gives_way: Name = Field(
        default="proportional",
        description="What shrinks when curation rises: `proportional` (all that is not curated) or a source's name.",
    )
    start: Array | None = Field(
        default=None,
        description="Closed-form families: initial parameters; null: fitted to the model's real data, else drawn near zero.",
    )
    train: Training | None = Field(default=None, description="Networks: how a round trains the model; needed there.")
    pretrain: Pretraining | None = Field(default=None, description="Networks: training on real data before round 1.")
    checkpoint: File | None = Field(
        default=None, description="Networks: start from these parameters, a .safetensors file of an earlier run."
    )
    per_round: Count | None = Field(
        default=None, description="Networks: this model's training set, samples a round; null: `samples.per_round`."
    )


def source_names(model: Model) -> list[str]:
    """Names of a model's sources, with defaults filled in: kind, or kind_producer, numbered when repeated."""
    taken = {s.name for s in model.sources if s.name}
    names: list[str] = []
    numbers: dict[str, int] = {}
    for source in model.sources:
        name = stem = source.name or (
            f"{source.kind}_{source.producer}" if isinstance(source, (Raw, Curated)) else source.kind
        )
        while source.name is None and name in taken:
            numbers[stem] = numbers.get(stem, 1) + 1
            name = f"{stem}_{numbers[stem]}"
        taken.add(name)
        names.append(name)
    return names
