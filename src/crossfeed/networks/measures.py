r"""What is watched of a network's outputs: diversity, distance to real data, and a few plain numbers by medium.

Vectors and images are points: vectors themselves, images by their 16 colour statistics (channel means and standard deviations,
the hue histogram, saturation, brightness: :mod:`crossfeed.describe.colour`).

    diversity   points  mean distance of two outputs  1/(n(n−1)) Σ_{i≠j} ‖y_i − y_j‖;   0: all outputs are the same
                text    distinct 2-grams of words over all 2-grams in 256 answers, within answers;   0: no 2-grams, and nearly 0:
                        the same answer again and again
    distance    points  energy distance  2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖  (Székely and Rizzo 2013), as a U-statistic, so
                        unbiased and around 0, also below, where both have one distribution; else positive
                text    Jensen–Shannon divergence of word frequencies in nats, H((p+q)/2) − (H(p) + H(q))/2 (Lin 1991);
                        0: the same frequencies, log 2: no word in common. Biased upwards when answers are few

Colour statistics are divided by the real images' standard deviations in the distance, and taken as they are in the diversity.
Of more than 2,048 outputs a fixed random choice of 2,048 is used, so that memory and time stay bounded and the result is the
same each time. Words are runs of letters and digits in lower case, up to 20,000 characters of an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe.colour import statistics
from crossfeed.networks.base import Outputs
from crossfeed.networks.world import Medium, World

MOST_OUTPUTS = 2048
MOST_ANSWERS = 256
_MOST_CHARACTERS = 20_000
_WORD = re.compile(r"\w+(?:['’]\w+)*")

Measured = tuple[float, float | None]


def diversity(outputs: Outputs, medium: Medium) -> float:
    """How different outputs are from each other; 0 when they are all the same. NaN for a single point.

    Example:
        >>> diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "vectors")
        5.0
        >>> diversity(["to be or not to be"], "text")
        0.8
    """
    outputs = _some(outputs, MOST_ANSWERS if isinstance(outputs, list) else MOST_OUTPUTS)
    if isinstance(outputs, list):
        return _distinct_pairs(outputs)
    points = _points(outputs, medium)
    n = len(points)
    return float(_distances(points, points).sum()) / (n * (n - 1)) if n > 1 else float("nan")


def distance(outputs: Outputs, real: Outputs, medium: Medium) -> Measured:
    """How far outputs are from real data, with a standard error.

    The standard error is the jackknife's for the energy distance (too large, by up to √2, where both distributions are
    the same) and the delta method's for word frequencies (for its random part, not the bias).

    Args:
        outputs: n outputs.
        real: m real outcomes.
        medium: What they are.

    Returns:
        Value and standard error; None for fewer than 3 outcomes on either side, and NaN for fewer than 2 points.

    Example:
        >>> value, _ = distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[3.0], [3.0]]), "vectors")
        >>> value
        6.0
        >>> round(distance(["a b"], ["a c"], "text")[0], 4)
        0.3466
    """
    outputs, real = _some(outputs, MOST_OUTPUTS), _some(real, MOST_OUTPUTS)
    if isinstance(outputs, list) and isinstance(real, list):
        return _word_divergence(outputs, real)
    x, y = _points(outputs, medium), _points(real, medium)
    if medium == "images":
        spread = y.std(0, correction=0)
        scale = torch.where(spread > 0, spread, 1.0)
        x, y = x / scale, y / scale
    return _energy_distance(x, y)


def extras(outputs: Outputs, prompts: Tensor, world: World) -> dict[str, Measured]:
    """Plain numbers worth a curve, with standard errors: mean over the outputs.

    Text: ``words`` of an answer, ``empty`` and ``copied`` (the share of answers without a word, and of those that repeat
    their input), ``distinct_2`` (the diversity). Images: ``saturation`` and ``brightness``. Vectors: nothing.

    Args:
        outputs: n outputs.
        prompts: (n,) what they answer.
        world: The run's world.

    Returns:
        Value and standard error by name.
    """
    if isinstance(outputs, list):
        words = [_words(text) for text in outputs]
        inputs = (_words(world.prompts.inputs[prompt]) for prompt in prompts.tolist())
        return {
            "words": _mean([len(answer) for answer in words]),
            "empty": _mean([not answer for answer in words]),
            "copied": _mean([bool(answer) and answer == source for answer, source in zip(words, inputs, strict=True)]),
            "distinct_2": (diversity(outputs, "text"), None),
        }
    if world.medium == "images":
        colours = statistics(_pixels(_some(outputs, MOST_OUTPUTS)))
        return {"saturation": _mean(colours.saturation), "brightness": _mean(colours.brightness)}
    return {}


def _mean(values: object) -> Measured:
    """Mean and its standard error."""
    numbers = np.asarray(values, dtype=np.float64)
    n = len(numbers)
    if n == 0:
        return float("nan"), None
    return float(numbers.mean()), float(numbers.std(ddof=1) / np.sqrt(n)) if n > 1 else None


# --- points ---------------------------------------------------------------------------------------------------------


def _some(outputs: Outputs, most: int) -> Outputs:
    """At most ``most`` outputs: always the same random choice, in the order in which they stand."""
    if len(outputs) <= most:
        return outputs
    chosen = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(0))[:most].sort().values
    return [outputs[i] for i in chosen.tolist()] if isinstance(outputs, list) else outputs[chosen.to(outputs.device)]


def _pixels(images: Outputs) -> np.ndarray:
    assert isinstance(images, Tensor)
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _points(outputs: Outputs, medium: Medium) -> Tensor:
    """(n, d) float64 on the CPU."""
    assert isinstance(outputs, Tensor)
    if medium != "images":
        return outputs.double().cpu()
    s = statistics(_pixels(outputs))
    return torch.from_numpy(np.column_stack([s.mean, s.std, s.hue, s.saturation, s.brightness]))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, m), exactly 0 between equal points."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _energy_distance(x: Tensor, y: Tensor) -> Measured:
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return float("nan"), None
    to_y, to_x = (between := _distances(x, y)).sum(1), between.sum(0)
    in_x, in_y = _distances(x, x).sum(1), _distances(y, y).sum(1)
    across = to_y.sum()

    def statistic(across: Tensor, within_x: Tensor, n: int, within_y: Tensor, m: int) -> Tensor:
        return 2 * across / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1))

    value = float(statistic(across, in_x.sum(), n, in_y.sum(), m))
    if min(n, m) < 3:
        return value, None
    without_x = statistic(across - to_y, in_x.sum() - 2 * in_x, n - 1, in_y.sum(), m)
    without_y = statistic(across - to_x, in_x.sum(), n, in_y.sum() - 2 * in_y, m - 1)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return value, float(variance.sqrt())


# --- text -----------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:_MOST_CHARACTERS].lower())


def _distinct_pairs(answers: list[str]) -> float:
    pairs: list[tuple[str, str]] = []
    for answer in answers:
        words = _words(answer)
        pairs += pairwise(words)
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _word_divergence(first: list[str], second: list[str]) -> Measured:
    counts = [[Counter(_words(text)) for text in texts] for texts in (first, second)]
    totals = [Counter(chain.from_iterable(answer.elements() for answer in side)) for side in counts]
    lengths = [sum(total.values()) for total in totals]
    if not all(lengths):  # silence on both sides is the same; on one side it shares no word with the other
        return (0.0 if not any(lengths) else float(np.log(2))), None
    p, q = (
        {word: number / length for word, number in total.items()} for total, length in zip(totals, lengths, strict=True)
    )
    value, variance = 0.0, 0.0
    for mine, other, side, length in ((p, q, counts[0], lengths[0]), (q, p, counts[1], lengths[1])):
        surprise = {word: float(np.log(2 * share / (share + other.get(word, 0.0)))) for word, share in mine.items()}
        mean = sum(share * surprise[word] for word, share in mine.items())
        value += 0.5 * mean
        # the derivative of the divergence by a word's frequency is half its surprise; frequencies are a ratio of sums
        pull = [0.5 * sum(k * (surprise[word] - mean) for word, k in answer.items()) for answer in side]
        variance += float(np.var(pull, ddof=1)) * len(side) / length**2 if len(side) > 1 else 0.0
    enough = min(len(first), len(second)) >= 3
    return max(value, 0.0), float(np.sqrt(variance)) if enough else None
