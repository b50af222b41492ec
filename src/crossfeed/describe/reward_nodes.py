"""Spec nodes of rewards: what people like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crossfeed.describe.arrays import Array, Number, Share
from crossfeed.describe.network_nodes import ParaphraseReward, RewardModel, SummaryReward
from crossfeed.describe.node import Node


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
