"""What a round did, in a line or a few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from crossfeed.record.round import Metric
from crossfeed.retraining.stopping import Result
from crossfeed.retraining.timing import in_words


@dataclass(frozen=True)
class RoundSummary:
    """What happened in a round.

    Attributes:
        round: 0 for the start.
        rounds: The last round.
        alignment: By model and evaluation: mean reward and its standard error.
        loss: Mean training loss of the models that were retrained.
        delta: Δ_t = ‖θ^t − θ^{t−1}‖ / ‖θ^{t−1}‖ of the models that were retrained.
        counts: New rows by model and source.
        seconds: By stage.
        took: Seconds of the whole round.
        left: Seconds until the last round is over, roughly; None when not known.
        ended: How and why the run ends with this round; None when it goes on.
        notes: What the user should know.
    """

    round: int
    rounds: int
    alignment: dict[str, dict[str, tuple[float, float | None]]]
    loss: dict[str, float]
    delta: dict[str, float]
    counts: dict[str, dict[str, int]]
    seconds: dict[str, float]
    took: float
    left: float | None = None
    ended: tuple[Result, str] | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Safe to print: nothing but names and numbers, without control characters."""
        head = f"round {self.round}/{self.rounds} · {in_words(self.took)}"
        if self.left and self.ended is None:
            head += f" · about {in_words(self.left)} left"
        lines = [*self.notes, head]
        for model, domains in self.alignment.items():
            parts = [f"{model}:"]
            parts += [f"{domain} {_with_error(*value)}" for domain, value in domains.items()]
            parts += [f"loss {self.loss[model]:.4g}"] if model in self.loss else []
            parts += [f"Δ {self.delta[model]:.2g}"] if model in self.delta else []
            lines.append("  " + "  ".join(parts))
        if self.ended is not None:
            lines.append(f"{self.ended[0]}: {self.ended[1]}")
        return "\n".join(_plain(line) for line in lines)


def alignment_of(metrics: list[Metric]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Alignment by model and evaluation."""
    out: dict[str, dict[str, tuple[float, float | None]]] = {}
    for m in metrics:
        if m.metric == "alignment":
            out.setdefault(m.model, {})[m.domain or ""] = (m.value, m.standard_error)
    return out


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _plain(text: Any) -> str:
    from crossfeed.report.progress import plain

    return plain(text)
