"""What people like, and how what they are offered is drawn, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfeed.describe.network_nodes import Diffusion, ParaphraseReward, RewardModel, SummaryReward
from crossfeed.describe.schema import (
    CallableReward,
    Curated,
    Ecosystem,
    HueBandReward,
    LinearReward,
    QuadraticReward,
    Vectors,
)
from crossfeed.report.words import clean, join, number, plural


def liked(eco: Ecosystem, reward: str) -> str:
    """What people with a reward like, in words."""
    node = eco.rewards[reward]
    said = f"what the reward “{clean(reward, 40)}” gives much for"
    if isinstance(node, LinearReward) and np.ndim(node.vector) == 1 and np.size(node.vector) <= 3:
        said = f"outputs far in the direction {_tuple(np.asarray(node.vector))}"
    elif isinstance(node, QuadraticReward):
        best = _peak(node, eco.space.dim or 0) if isinstance(eco.space, Vectors) else None
        said = said if best is None or len(best) > 3 else f"outputs near {_tuple(best)}"
    elif isinstance(node, HueBandReward):
        bands = join([f"{360 * low:.0f}° to {360 * high:.0f}°" for low, high in node.bands])
        said = f"pictures with saturated colours of hue {bands} (red is 0°, green 120°, blue 240°)"
        said += ", and with the brightness and contrast of photographs" if node.realism_weight > 0 else ""
    elif isinstance(node, SummaryReward):
        said = f"summaries of about {number(node.length)} words that name what the source repeats and copy little of it"
    elif isinstance(node, ParaphraseReward):
        said = "formal paraphrases as long as their source that copy some of it"
    elif isinstance(node, RewardModel):
        said = f"what the network {clean(node.pretrained, 80)} scores high"
    elif isinstance(node, CallableReward):
        said = f"what the Python function {clean(node.function, 80)} scores high"
    return said


def drawn_otherwise(eco: Ecosystem) -> str:
    """How candidates are drawn otherwise than outputs for evaluation, in words; empty where they are drawn alike."""
    ways = []
    for model in eco.models.values():
        family = model.family
        if isinstance(family, Diffusion) and family.evaluation_steps not in (None, family.sampling_steps):
            ways.append(f"in {plural(family.sampling_steps, 'step')}, not {family.evaluation_steps}")
        temperatures = {s.sampling_temperature for s in model.sources if isinstance(s, Curated)}
        ways += [f"at {number(t)} times the temperature" for t in sorted(temperatures - {1.0})]
    if not ways:
        return ""
    return (
        f"Candidates are drawn otherwise than outputs for evaluation ({join(list(dict.fromkeys(ways))[:4])}), so these "
        "rewards and alignment may lie apart."
    )


def _tuple(values: Any) -> str:
    return f"({', '.join(number(float(v)) for v in values)})"


def _peak(node: QuadraticReward, dim: int) -> Any:
    """The best point of a quadratic reward; None where it has none."""
    matrix = np.asarray(node.matrix, dtype=float)
    whole = matrix if matrix.ndim == 2 else np.diag(np.broadcast_to(matrix, (dim,)))
    if not len(whole) or np.linalg.eigvalsh(whole).max() >= 0:
        return None
    vector = np.zeros(len(whole)) if node.vector is None else np.asarray(node.vector, dtype=float)
    return np.linalg.solve(whole, -vector) + 0.0
