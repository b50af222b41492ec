"""Photographs as a finite outcome set: rewards, features, distributions and thumbnails by outcome."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crossfeed.describe.colour import HUE_NAMES, Floats, band_share
from crossfeed.describe.photographs import Photographs, read_images
from crossfeed.describe.schema import Images, ImagesData
from crossfeed.errors import Problem, SpecError

__all__ = [
    "Features",
    "ImageOutcomes",
    "Photographs",
    "distribution",
    "features",
    "hue_band",
    "in_words",
    "outcome_set",
    "read_images",
    "thumbnail",
]

CIFAR10_MEAN = np.array([0.4914, 0.4822, 0.4465])
CIFAR10_STD = np.array([0.2470, 0.2435, 0.2616])
MAGENTA = 5 / 6
DEPENDENCE_TOLERANCE = 1e-6

Statistic = Literal["mean", "std", "hue", "saturation", "brightness", "label"]


def hue_band(
    photographs: Photographs,
    bands: Sequence[tuple[float, float]],
    band_weight: float = 1.0,
    realism_weight: float = 1.0,
) -> Floats:
    """The paper's CIFAR-10 reward of each photograph: band_weight · band + realism_weight · realism.

    band = mean over pixels of 1[hue in bands] · saturation^1.5; realism = −(‖channel means − m‖₂ + ‖channel standard
    deviations − s‖₂) with CIFAR-10's m = (.4914, .4822, .4465) and s = (.2470, .2435, .2616). The standard deviation is
    over the pixels of the one image, with divisor h·w.

    Args:
        photographs: n photographs.
        bands: Hue intervals, both ends included; one with low > high runs from low through red (1 = 0) to high.
        band_weight: α.
        realism_weight: β.

    Returns:
        (n,) rewards; more is better.

    Example:
        A uniform pure red has band 1, channel means (1, 0, 0) and standard deviations 0:

        >>> red = np.zeros((1, 2, 2, 3), np.uint8); red[..., 0] = 255
        >>> one = Photographs(red, None, np.arange(1))
        >>> float(hue_band(one, [(0.92, 1), (0, 0.17)], realism_weight=0)[0])
        1.0
        >>> means, stds = (1 - .4914) ** 2 + .4822 ** 2 + .4465 ** 2, .2470 ** 2 + .2435 ** 2 + .2616 ** 2
        >>> bool(np.isclose(hue_band(one, [(0, 0.17)])[0], 1 - means ** .5 - stds ** .5))
        True

    Reference: Zhang, Wei, Zhang 2026, arXiv 2605.29267, the CIFAR-10 experiments.
    """
    stats = photographs.statistics
    realism = -np.linalg.norm(stats.mean - CIFAR10_MEAN, axis=1) - np.linalg.norm(stats.std - CIFAR10_STD, axis=1)
    return np.asarray(band_weight * band_share(photographs.pixels, bands) + realism_weight * realism, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class ImageOutcomes:
    """Photographs sorted into outcomes.

    Args:
        photographs: n photographs.
        outcome: (n,) each photograph's outcome, 0 ≤ outcome < num_outcomes.
        counts: (outcomes,) photographs by outcome, each at least 1.
        representative: (outcomes,) index of the photograph that stands for the outcome: the one whose colour statistics
            are closest to the outcome's average.
        merged: Whether outcomes are cells of colour statistics (True) or single photographs.
    """

    photographs: Photographs
    outcome: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    representative: npt.NDArray[np.int64]
    merged: bool

    @property
    def num_outcomes(self) -> int:
        """Number of outcomes."""
        return len(self.counts)

    def per_outcome(self, values: npt.ArrayLike) -> Floats:
        """Average by outcome: (n, ...) to (outcomes, ...)."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) != len(self.outcome):
            raise ValueError(f"values has {len(array)} rows; need one a photograph, {len(self.outcome)}")
        sums = np.zeros((self.num_outcomes, *array.shape[1:]))
        np.add.at(sums, self.outcome, array)
        return sums / self.counts.reshape(-1, *[1] * (array.ndim - 1))


def outcome_set(space: Images, folder: str | Path | None = None, seed: int = 0) -> ImageOutcomes:
    """Read an ``images`` space and sort its photographs into outcomes.

    Without ``cells`` each photograph is an outcome, in the order of the file. With ``cells`` each named statistic is
    cut at its own quantiles into bins of roughly equal numbers of photographs (equal values share a bin), and an
    outcome is a combination of bins that occurs, in the order hue, saturation, brightness. A photograph's hue is the
    circular mean over its pixels weighted by saturation, counted from magenta (5/6), so that red is not cut in two.

    Args:
        space: The space.
        folder: Where a relative ``file`` starts.
        seed: Seed of the draw of ``rows``; nothing else is random.

    Returns:
        The outcomes.

    Raises:
        SpecError: As :func:`read_images`, and when fewer than two outcomes are left.
        DataError: As :func:`read_images`.

    Example:
        >>> cells = outcome_set(Images(file="sample:cifar10", cells={"brightness": 4}))
        >>> cells.counts.tolist()
        [500, 500, 500, 500]
    """
    photographs = read_images(space, folder, seed)
    n = len(photographs)
    if n < 2:
        need = "need at least two outcomes; use a file with more, or raise space.rows"
        raise SpecError([Problem("space.file", f"{space.file} gives {n} photograph", need)])
    if space.cells is None:
        order = np.arange(n, dtype=np.int64)
        return ImageOutcomes(photographs, order, np.ones(n, np.int64), order, merged=False)
    stats = photographs.statistics
    values: dict[Literal["hue", "saturation", "brightness"], Floats] = {
        "hue": (stats.mean_hue - MAGENTA) % 1.0,
        "saturation": stats.saturation,
        "brightness": stats.brightness,
    }
    code = np.zeros(n, np.int64)
    for name, value in values.items():
        num_bins = space.cells.get(name, 1)
        code = np.unique(code * num_bins + _equal_mass_bins(value, num_bins), return_inverse=True)[1]
    counts = np.bincount(code).astype(np.int64)
    if len(counts) < 2:
        need = "need at least two cells; ask for more bins"
        raise SpecError([Problem("space.cells", "all photographs fall into one cell", need)])
    raw = ImageOutcomes(photographs, code, counts, np.empty(0, np.int64), merged=True)
    return ImageOutcomes(photographs, code, counts, _closest_to_average(raw), merged=True)


def _equal_mass_bins(values: Floats, num_bins: int) -> npt.NDArray[np.int64]:
    """Bin of each value, cut at the quantiles 1/num_bins, 2/num_bins, …; equal values share a bin."""
    edges = np.quantile(values, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(edges, values, side="right")


def _closest_to_average(outcomes: ImageOutcomes) -> npt.NDArray[np.int64]:
    """By outcome, the photograph closest to the average of mean, std and hue histogram; the first of equals."""
    stats = outcomes.photographs.statistics
    values = np.column_stack([stats.mean, stats.std, stats.hue])
    spread = values.std(0)
    scaled = values / np.where(spread > 0, spread, 1.0)
    distance = np.linalg.norm(scaled - outcomes.per_outcome(scaled)[outcomes.outcome], axis=1)
    order = np.lexsort((distance, outcomes.outcome))
    return np.asarray(order[np.cumsum(outcomes.counts) - outcomes.counts], dtype=np.int64)


class Features(NamedTuple):
    """Features of a log-linear model.

    Args:
        values: (outcomes, d) mean 0 and variance 1 over the outcomes, linearly independent columns.
        names: (d,) what each column is.
    """

    values: Floats
    names: tuple[str, ...]


def features(outcomes: ImageOutcomes, names: Sequence[Statistic], path: str = "features") -> Features:
    """Statistics of the outcomes as features: centred, scaled to unit variance, linearly independent.

    Each outcome has the average over its photographs; ``label`` gives one column for each label that occurs, the share
    of the outcome's photographs with it. A column is left out when it is constant, or when at most 1e-6 of its length
    (after scaling) is not a linear combination of the columns kept before it: QR in the given order by Gram–Schmidt,
    applied twice for stability. So the hue histogram makes ``saturation`` redundant, one label column always goes,
    and the features' covariance (the Fisher matrix at the uniform distribution) is invertible.

    Args:
        outcomes: The outcomes.
        names: Which statistics, in order; repeats count once.
        path: Where in the spec they are named, for error messages.

    Returns:
        The features and their names; unpacks as ``values, names``.

    Raises:
        SpecError: When labels are asked for and there are none, or no column is left.

    Example:
        >>> values, names = features(outcome_set(Images(file="sample:cifar10")), ["hue", "saturation"])
        >>> values.shape, names[0]
        ((2000, 8), 'hue red')
    """
    columns, labels = _columns(outcomes, names, path)
    values = outcomes.per_outcome(columns)
    values -= values.mean(0)
    spread = values.std(0)
    varies = np.flatnonzero(spread > 1e-9)  # the statistics lie in [0, 1]
    kept: list[int] = []
    basis = np.empty((len(values), 0))
    for j in varies.tolist():
        values[:, j] /= spread[j]
        rest = values[:, j].copy()
        for _ in range(2):
            rest -= basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length > DEPENDENCE_TOLERANCE * np.sqrt(len(values)):
            basis = np.column_stack([basis, rest / length])
            kept.append(j)
    if not kept:
        raise SpecError([Problem(path, f"{', '.join(names)} do not vary between outcomes", "need features that do")])
    result = np.ascontiguousarray(values[:, kept])
    result.setflags(write=False)
    return Features(result, tuple(labels[j] for j in kept))


def _columns(outcomes: ImageOutcomes, names: Sequence[Statistic], path: str) -> tuple[Floats, list[str]]:
    """The statistics of every photograph (n, columns) and the columns' names."""
    photographs = outcomes.photographs
    stats = photographs.statistics
    parts: list[npt.NDArray[Any]] = []
    titles: list[str] = []
    for name in dict.fromkeys(names):
        if name == "label":
            labels = _labels_of(photographs, path)
            present = np.unique(labels)
            parts.append(labels[:, None] == present)
            titles += [f"label {_label_name(photographs, int(label))}" for label in present]
        elif name in ("mean", "std"):
            parts.append(getattr(stats, name))
            titles += [f"{name} {channel}" for channel in ("red", "green", "blue")]
        elif name == "hue":
            parts.append(stats.hue)
            titles += [f"hue {colour}" for colour in HUE_NAMES]
        elif name in ("saturation", "brightness"):
            parts.append(getattr(stats, name)[:, None])
            titles.append(name)
        else:
            need = "need mean, std, hue, saturation, brightness or label"
            raise SpecError([Problem(path, f"found {name!r}", need)])
    if not parts:
        raise SpecError([Problem(path, "found an empty list", "name at least one statistic")])
    return np.column_stack(parts).astype(np.float64), titles


def _labels_of(photographs: Photographs, path: str) -> npt.NDArray[np.int64]:
    if photographs.labels is None:
        need = "set space.label_column to a column of integer labels, or do without labels"
        raise SpecError([Problem(path, "asks for labels, but the photographs have none", need)])
    return photographs.labels


def _label_name(photographs: Photographs, label: int) -> str:
    return photographs.label_names[label] if label < len(photographs.label_names) else str(label)


def distribution(outcomes: ImageOutcomes, data: ImagesData, path: str = "data") -> Floats:
    """How the photographs, or those with some labels, are distributed over the outcomes.

    Args:
        outcomes: The outcomes.
        data: Which labels to keep; None keeps all.
        path: Where in the spec this data stands, for error messages.

    Returns:
        (outcomes,) shares of the photographs kept; sums to 1.

    Raises:
        SpecError: When there are no labels, or no photograph has a label asked for.

    Example:
        >>> weights = distribution(outcome_set(Images(file="sample:cifar10")), ImagesData(labels=[3, 5]))
        >>> int((weights > 0).sum()), round(float(weights.sum()), 12)
        (400, 1.0)
    """
    keep = np.ones(len(outcomes.outcome), bool)
    if data.labels is not None:
        labels = _labels_of(outcomes.photographs, path)
        present = np.unique(labels)
        missing = sorted(set(data.labels) - set(present.tolist()))
        if missing or not data.labels:
            found = f"no photograph has the label {missing[0]}" if missing else "found an empty list of labels"
            need = f"the labels are {', '.join(map(str, present))}; null keeps all"
            raise SpecError([Problem(f"{path}.labels", found, need)])
        keep = np.isin(labels, data.labels)
    counts = np.bincount(outcomes.outcome[keep], minlength=outcomes.num_outcomes)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def thumbnail(outcomes: ImageOutcomes, index: int, size: int = 48) -> str:
    """The photograph that stands for an outcome, as a data URL.

    Args:
        outcomes: The outcomes.
        index: Which outcome.
        size: Longest side in pixels; smaller photographs are enlarged.

    Returns:
        ``data:image/jpeg;base64,…``
    """
    from PIL import Image

    pixels = outcomes.photographs.pixels[outcomes.representative[index]]
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * pixels).astype(np.uint8)
    height, width = pixels.shape[:2]
    ratio = size / max(height, width)
    shape = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def in_words(outcomes: ImageOutcomes) -> str:
    """The outcome set in one line.

    Example:
        >>> in_words(outcome_set(Images(file="sample:cifar10")))
        '2,000 photographs as outcomes'
    """
    if outcomes.merged:
        return f"{outcomes.num_outcomes:,} cells of colour statistics from {len(outcomes.photographs):,} photographs"
    return f"{outcomes.num_outcomes:,} photographs as outcomes"
