"""When a run ends before its last round: collapse and divergence, with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crossfeed.describe.network_nodes import Stop

Result = Literal["finished", "collapsed", "diverged"]


@dataclass
class Watch:
    """What is watched from round to round; goes with each round's record, so that a resumed run sees the same.

    Attributes:
        first_diversity: Of each model's outputs in round 0.
        first_loss: Mean training loss of the first round in which each model was retrained.
        collapsed_rounds: Rounds in a row, up to now, in which every model was collapsed.
        collapsed: Models that are collapsed now.
    """

    first_diversity: dict[str, float] = field(default_factory=dict)
    first_loss: dict[str, float] = field(default_factory=dict)
    collapsed_rounds: int = 0
    collapsed: list[str] = field(default_factory=list)

    def begin(self, diversity: Mapping[str, float]) -> None:
        """Round 0 was evaluated."""
        self.first_diversity = dict(diversity)

    def after(
        self,
        stop: Stop,
        round: int,
        diversity: Mapping[str, float],
        loss: Mapping[str, float],
        scale: Mapping[str, float],
    ) -> tuple[Result, str] | None:
        """How the run ends with this round, and why; None when it goes on.

        Args:
            stop: When to stop.
            round: The round that was just evaluated.
            diversity: By model, all models.
            loss: Mean training loss of the models that were retrained in this round.
            scale: Smallest loss to compare with, by model: 1 nat where the loss is −log q, whose zero means nothing.
        """
        for name, value in loss.items():
            first = self.first_loss.setdefault(name, value)
            level = stop.divergence * max(abs(first), scale[name])
            if value > level:
                return "diverged", (
                    f"{name}'s training loss rose to {value:.4g} in round {round}, above {stop.divergence:g} times its first "
                    f"round's ({first:.4g}); lower its learning rate, or add real data"
                )
        self.collapsed = [n for n, d in diversity.items() if d < stop.collapse * self.first_diversity[n]]
        self.collapsed_rounds = self.collapsed_rounds + 1 if len(self.collapsed) == len(diversity) else 0
        if self.collapsed_rounds < stop.patience:
            return None
        share = max(d / self.first_diversity[n] for n, d in diversity.items())
        return "collapsed", (
            f"every model's outputs have had less than {stop.collapse:.3g} of round 0's diversity for "
            f"{self.collapsed_rounds} rounds (at most {share:.2g} of it in round {round})"
        )

    def info(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Watch:
        """From JSON."""
        watch = cls(**info)
        for values in (watch.first_diversity, watch.first_loss):  # JSON has no nan
            values.update({name: math.nan for name, value in values.items() if value is None})
        return watch
