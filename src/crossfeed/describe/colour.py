"""Colour statistics of images: hue, saturation, brightness, and how much of an image lies in a band of hues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HUE_NAMES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")
_PIXELS_AT_ONCE = 1 << 19


@dataclass(frozen=True, eq=False)
class Statistics:
    """Colour statistics of n images; every number lies in [0, 1].

    Args:
        mean: (n, 3) mean of red, green, blue over the pixels.
        std: (n, 3) standard deviation of each channel over the pixels (divisor h·w).
        hue: (n, 8) mean over the pixels of saturation · 1[hue in bin]; each bin is an eighth of the colour circle, the
            first is centred on red. Sums over the bins to ``saturation``.
        saturation: (n,) mean saturation.
        brightness: (n,) mean brightness, the largest of the three channels.
        mean_hue: (n,) circular mean of hue, weighted by saturation; 0 for an image without colour.
    """

    mean: Floats
    std: Floats
    hue: Floats
    saturation: Floats
    brightness: Floats
    mean_hue: Floats


def hsv(rgb: npt.NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Hue, saturation and brightness of colours (the HSV cone, as in the standard library's colorsys).

    Args:
        rgb: (..., 3) nonnegative, on any scale.

    Returns:
        Hue in [0, 1] (red is 0, green 1/3, blue 2/3; 0 for greys), saturation in [0, 1] (0 for black), and
        brightness, the largest channel, on the scale of ``rgb``; each (...,).

    Example:
        >>> [value.tolist() for value in hsv(np.array([0, 255, 255]))]
        [0.5, 1.0, 255.0]
    """
    r, g, b = (np.asarray(rgb[..., c], dtype=np.float64) for c in range(3))
    brightness = np.maximum(np.maximum(r, g), b)
    span = brightness - np.minimum(np.minimum(r, g), b)
    safe = np.where(span > 0, span, 1.0)
    not_red = np.where(brightness == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    hue = np.where(brightness == r, (g - b) / safe, not_red) / 6
    hue += hue < 0
    return hue, span / np.where(brightness > 0, brightness, 1.0), brightness


def _batches(pixels: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of images small enough to work on in float64."""
    step = max(1, _PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))
    return (slice(start, min(start + step, len(pixels))) for start in range(0, len(pixels), step))


def statistics(pixels: npt.NDArray[Any]) -> Statistics:
    """Colour statistics of images (n, h, w, 3), uint8 or floats in [0, 1].

    Example:
        >>> red = np.zeros((1, 2, 2, 3), np.uint8); red[..., 0] = 255
        >>> statistics(red).hue.tolist()
        [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    n, bins = len(pixels), len(HUE_NAMES)
    mean, std, histogram = np.empty((n, 3)), np.empty((n, 3)), np.empty((n, bins))
    mean_saturation, mean_brightness, mean_hue = np.empty(n), np.empty(n), np.empty(n)
    for part in _batches(pixels):
        m = part.stop - part.start
        flat = pixels[part].reshape(m, -1, 3)
        values = flat.astype(np.float64)
        mean[part] = values.mean(1) / scale
        std[part] = values.std(1) / scale
        hue, saturation, brightness = hsv(values)
        mean_saturation[part] = saturation.mean(1)
        mean_brightness[part] = brightness.mean(1) / scale
        index = np.floor(hue * bins + 0.5).astype(np.int64) % bins + bins * np.arange(m)[:, None]
        counted = np.bincount(index.ravel(), saturation.ravel(), bins * m).reshape(m, bins)
        histogram[part] = counted / flat.shape[1]
        angle = 2 * np.pi * hue
        mean_hue[part] = np.arctan2((saturation * np.sin(angle)).sum(1), (saturation * np.cos(angle)).sum(1))
    return Statistics(mean, std, histogram, mean_saturation, mean_brightness, mean_hue / (2 * np.pi) % 1.0)


def band_share(pixels: npt.NDArray[Any], bands: Sequence[tuple[float, float]]) -> Floats:
    """Mean over pixels of 1[hue in a band] · saturation^1.5, by image.

    Args:
        pixels: (n, h, w, 3) uint8 or floats in [0, 1].
        bands: Hue intervals, both ends included; one with low > high runs from low through red to high. A hue in
            several bands counts once.

    Returns:
        (n,) in [0, 1].
    """
    share = np.empty(len(pixels))
    for part in _batches(pixels):
        hue, saturation, _ = hsv(pixels[part].reshape(part.stop - part.start, -1, 3))
        inside = np.zeros(hue.shape, bool)
        for low, high in bands:
            inside |= (hue >= low) & (hue <= high) if low <= high else (hue >= low) | (hue <= high)
        share[part] = (inside * saturation * np.sqrt(saturation)).mean(1)
    return share
