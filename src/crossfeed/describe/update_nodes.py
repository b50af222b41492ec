"""Spec nodes of a round: who is retrained when, how far, and on how many samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from crossfeed.describe.arrays import FINITE, Count, Positive
from crossfeed.describe.node import Name, Node


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
