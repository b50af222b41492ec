"""The ecosystem as the user describes it: frozen, validated, the same from Python and from YAML.

Every class is one node of the spec; its fields are the spec's keys. What stands here is structure, types and
bounds. What needs two places of the spec to be seen (names, sums, dimensions) is in :mod:`crossfeed.describe.check`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from crossfeed.describe.arrays import FINITE, Array, Candidates, Columns, Count, Labels, Number, Positive, Share, Whole
from crossfeed.describe.network_nodes import (
    CausalLM,
    Diffusion,
    Flow,
    FreshLM,  # noqa: F401
    Lora,  # noqa: F401
    MixtureData,
    ParaphraseReward,
    PreferencesData,
    Pretraining,
    RewardModel,
    RunOptions,
    Stop,  # noqa: F401
    SummaryReward,
    Text,
    TextsData,
    Training,
)
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


# --- rewards --------------------------------------------------------------------------------------------------------


class LinearReward(Node):
    """r(y) = constant + vector · y."""

    kind: Literal["linear"] = "linear"
    vector: Array = Field(description="(dim,); regression: (outputs,) for y or (inputs + outputs,) for (x, y).")
    constant: Number = Field(default=0.0, description="Added to every reward; changes alignment, never a pick.")


class QuadraticReward(Node):
    """r(y) = constant + vector · y + ½ yᵀ matrix y."""

    kind: Literal["quadratic"] = "quadratic"
    matrix: Array = Field(description="A number, a diagonal or a symmetric matrix; negative for a best point.")
    vector: Array | None = Field(default=None, description="As in a linear reward; null for zero.")
    constant: Number = Field(default=0.0, description="Added to every reward; changes alignment, never a pick.")


class TableReward(Node):
    """One number an outcome."""

    kind: Literal["table"] = "table"
    values: Array = Field(description="(outcomes,)")


class HueBandReward(Node):
    """band_weight · band + realism_weight · realism of a photograph (the paper's CIFAR-10 reward).

    band = mean over pixels of 1[hue in bands] · saturation^1.5; realism = −(‖channel means − CIFAR-10's‖₂ + ‖channel
    standard deviations − CIFAR-10's‖₂).
    """

    kind: Literal["hue_band"] = "hue_band"
    bands: list[tuple[Share, Share]] = Field(description="Hue intervals in [0, 1], low then high.", min_length=1)
    band_weight: Number = Field(default=1.0, description="Weight of the colour bands.")
    realism_weight: Number = Field(default=1.0, description="Weight of realism.")


class CallableReward(Node):
    """A Python function named `module:function`; imported only when code is allowed (`--allow-code`)."""

    kind: Literal["callable"] = "callable"
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = Field(
        description="Takes a float64 tensor, (m, dim) vectors, (m, c) coordinates, (m, inputs + outputs) pairs "
        "or (m, 3, h, w) images in [0, 1], and returns (m,); differentiable by torch. Text: two lists of m strings, "
        "inputs and answers, and returns m numbers."
    )


Reward = Annotated[
    LinearReward
    | QuadraticReward
    | TableReward
    | HueBandReward
    | SummaryReward
    | ParaphraseReward
    | RewardModel
    | CallableReward,
    Field(discriminator="kind"),
]


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


# --- sources --------------------------------------------------------------------------------------------------------


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


# --- models, orders, the whole --------------------------------------------------------------------------------------


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


class RandomOrder(Node):
    """Each round updates models drawn at random."""

    kind: Literal["random"] = "random"
    probability: Annotated[float, Field(gt=0, le=1), FINITE] = Field(
        default=1.0,
        description="Each model updates with this probability; those that do update one after another in random order.",
    )
    seed: Annotated[int, Field(ge=0), FINITE] = Field(default=0, description="Of the draws of the order.")


class Cycle(Node):
    """Rounds repeat this list. A round is a list of steps, a step a list of models that update at the same time."""

    kind: Literal["cycle"] = "cycle"
    rounds: list[list[list[Name]]] = Field(
        min_length=1,
        description="E.g. [[[p, q]], [[p], [q]]]: together, then p before q. A model left out of a round stays stale.",
    )


class Sequential(Node):
    """One model after another, each seeing the newest states (Gauss–Seidel)."""

    kind: Literal["sequential"] = "sequential"
    models: list[Name] | None = Field(default=None, description="The order; null: as listed under `models`.")


class Simultaneous(Node):
    """All models update at once from last round's states (Jacobi)."""

    kind: Literal["simultaneous"] = "simultaneous"


def _order_tag(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Order = Annotated[
    Annotated[Simultaneous, Tag("simultaneous")]
    | Annotated[Sequential, Tag("sequential")]
    | Annotated[Cycle, Tag("cycle")]
    | Annotated[RandomOrder, Tag("random")],
    Discriminator(_order_tag),
]


class GradientSteps(Node):
    """Inexact retraining: this many full-batch gradient steps from the current parameters."""

    count: Count = Field(description="Steps a round.")
    size: Positive = Field(description="Step size η.")


class Update(Node):
    """How a round updates the models."""

    order: Order = Field(default_factory=Simultaneous, description="Who updates when; all at once by default.")
    steps: GradientSteps | None = Field(
        default=None, description="Closed-form families; null: train to the exact minimum."
    )


class Samples(Node):
    """Finite-sample rounds."""

    per_round: Count = Field(default=1000, description="n: new samples a model and round.")
    counts: Literal["multinomial", "fixed"] | None = Field(
        default=None,
        description="How many come from each source: at random by weight, or fixed by largest remainder. "
        "Null: fixed for networks, multinomial otherwise.",
    )
    regime: Literal["replace", "accumulate", "subsample"] = Field(
        default="replace", description="Train on the new samples, on all so far, or on n drawn from all so far."
    )


class Change(Node):
    """A planned change whose consequences the audit works out: closed forms by re-solving, networks from its samples."""

    path: str = Field(description="A setting, e.g. `p.curation`.")
    to: Number = Field(description="Its new value.")


class ThresholdQuery(Node):
    """Ask where an influence changes sign while a setting moves."""

    path: str = Field(description="The setting that moves, e.g. `p.cross_share`.")
    low: Number = Field(description="Where the search starts.")
    high: Number = Field(description="Where it ends, above `low`.")
    affected: Name | None = Field(default=None, description="Whose alignment; null: every model's.")
    intervened: Name | None = Field(default=None, description="Whose curation ratio; null: every model's that has one.")


class AuditOptions(Node):
    """What the audit adds to its standard contents."""

    changes: list[Change] = Field(
        default_factory=list, description="Changes to work out: closed forms by re-solving, networks from the samples."
    )
    thresholds: list[ThresholdQuery] = Field(
        default_factory=list, description="Closed forms: sign changes to look for."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1), FINITE] = Field(
        default=0.95, description="Level of the intervals and of the smallest n."
    )
    rounds: Count = Field(default=40, description="Rounds of the trajectory that is drawn.")


class Ecosystem(Node):
    """N models that are retrained on each other's outputs and on what people picked from them.

    Raises:
        SpecError: with every problem found: path in the spec, what stands there, what is needed.
    """

    crossfeed: Literal[1] = Field(default=1, description="Version of the spec format.")
    name: str = Field(default="ecosystem", max_length=200, description="The report's title.")
    description: str = Field(default="", description="What it is about; shown in the report.")
    seed: Annotated[int, Field(ge=0, lt=2**63), FINITE] = Field(default=0, description="Root of every random draw.")
    space: Space = Field(description="What an outcome is.")
    data: dict[Name, Data] = Field(default_factory=dict, description="Real data sets by name.")
    domains: dict[Name, Domain] = Field(
        default_factory=dict, description="Regression: where inputs come from, by name."
    )
    rewards: dict[Name, Reward] = Field(min_length=1, description="What people like, by name.")
    models: dict[Name, Model] = Field(min_length=1, description="The models by name; matrices follow this order.")
    update: Update = Field(default_factory=Update, description="How a round updates the models.")
    samples: Samples = Field(default_factory=Samples, description="How many samples a round draws.")
    audit: AuditOptions = Field(default_factory=AuditOptions, description="What the audit adds to its contents.")
    run: RunOptions = Field(default_factory=RunOptions, description="Networks: how the loop is run and recorded.")
    scales: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Named sets of changes to this spec, chosen with `--scale NAME`: path and new value; `*` stands for "
        "every key, e.g. `models.*.train.steps: 50`.",
    )

    def __init__(self, **fields: Any) -> None:
        from crossfeed.describe.check import check

        super().__init__(**fields)
        check(self)

    @model_validator(mode="after")
    def _one_column(self) -> Ecosystem:
        """A list of numbers is one column where outcomes are vectors of one dimension."""
        if isinstance(self.space, Vectors) and self.space.dim == 1:
            for name, data in self.data.items():
                if isinstance(data, RowsData) and data.rows.ndim == 1 and data.rows.dtype.kind == "f":
                    self.data[name] = data.model_copy(update={"rows": data.rows[:, None]})
        return self

    @property
    def num_models(self) -> int:
        """N."""
        return len(self.models)

    @property
    def networks(self) -> list[str]:
        """Names of the models that are networks: trained by an optimiser, sampled, never solved."""
        return [name for name, model in self.models.items() if isinstance(model.family, (Flow, Diffusion, CausalLM))]

    @property
    def names(self) -> list[str]:
        """The models' names, in the order of the spec; every matrix is indexed in this order."""
        return list(self.models)


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


def candidates_label(value: float) -> str:
    """K as it is written: an integer or ∞."""
    return "∞" if math.isinf(value) else f"{value:g}"
