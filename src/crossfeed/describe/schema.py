"""The ecosystem as the user describes it: frozen, validated, the same from Python and from YAML.

Every class is one node of the spec; its fields are the spec's keys. This module is the one door to all of them: the
nodes are defined by topic in ``space_nodes``, ``reward_nodes``, ``source_nodes``, ``model_nodes``, ``update_nodes`` and
``network_nodes`` beside it. What stands there is structure, types and bounds. What needs two places of the spec to be
seen (names, sums, dimensions) is in :mod:`crossfeed.describe.check`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from crossfeed.describe.arrays import FINITE, Count, Number
from crossfeed.describe.model_nodes import (
    Categorical,
    Evaluation,
    Family,
    Gaussian,
    GaussianMean,
    LinearGaussian,
    LogLinear,
    Model,
    source_names,
)
from crossfeed.describe.network_nodes import (
    CausalLM,
    Diffusion,
    Flow,
    FreshLM,
    Lora,
    MixtureData,
    ParaphraseReward,
    PreferencesData,
    Pretraining,
    RewardModel,
    RunOptions,
    Stop,
    SummaryReward,
    Text,
    TextsData,
    Training,
)
from crossfeed.describe.node import Name, Node
from crossfeed.describe.reward_nodes import (
    CallableReward,
    HueBandReward,
    LinearReward,
    QuadraticReward,
    Reward,
    TableReward,
)
from crossfeed.describe.source_nodes import (
    Affine,
    Curated,
    Pick,
    Picks,
    Raw,
    Real,
    Source,
    candidates_label,
)
from crossfeed.describe.space_nodes import (
    Data,
    DistributionData,
    Domain,
    GaussianDomain,
    Images,
    ImagesData,
    MomentsData,
    Outcomes,
    PairsData,
    PointsDomain,
    Regression,
    RowsData,
    Space,
    TeacherData,
    Vectors,
)
from crossfeed.describe.update_nodes import (
    Cycle,
    GradientSteps,
    Order,
    RandomOrder,
    Samples,
    Sequential,
    Simultaneous,
    Update,
)

__all__ = [
    "Affine",
    "AuditOptions",
    "CallableReward",
    "Categorical",
    "CausalLM",
    "Change",
    "Curated",
    "Cycle",
    "Data",
    "Diffusion",
    "DistributionData",
    "Domain",
    "Ecosystem",
    "Evaluation",
    "Family",
    "Flow",
    "FreshLM",
    "Gaussian",
    "GaussianDomain",
    "GaussianMean",
    "GradientSteps",
    "HueBandReward",
    "Images",
    "ImagesData",
    "LinearGaussian",
    "LinearReward",
    "LogLinear",
    "Lora",
    "MixtureData",
    "Model",
    "MomentsData",
    "Node",
    "Order",
    "Outcomes",
    "PairsData",
    "ParaphraseReward",
    "Pick",
    "Picks",
    "PointsDomain",
    "PreferencesData",
    "Pretraining",
    "QuadraticReward",
    "RandomOrder",
    "Raw",
    "Real",
    "Regression",
    "Reward",
    "RewardModel",
    "RowsData",
    "RunOptions",
    "Samples",
    "Sequential",
    "Simultaneous",
    "Source",
    "Space",
    "Stop",
    "SummaryReward",
    "TableReward",
    "TeacherData",
    "Text",
    "TextsData",
    "ThresholdQuery",
    "Training",
    "Update",
    "Vectors",
    "candidates_label",
    "source_names",
]


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
