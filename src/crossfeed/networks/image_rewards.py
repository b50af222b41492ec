"""What people like about images, on batches of images on any device; :mod:`crossfeed.describe.images` in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crossfeed.describe.images import CIFAR10_MEAN, CIFAR10_STD

_PIXELS_AT_ONCE = 1 << 19


def unit(images: Tensor) -> Tensor:
    """Images as float64 in [0, 1]: uint8 is divided by 255, floats are taken to be there already."""
    images = images.cpu() if images.device.type == "mps" else images  # which has no float64
    return images.to(torch.float64) / 255 if images.dtype == torch.uint8 else images.to(torch.float64)


def in_batches(images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores (n,) of images (n, 3, h, w), half a million pixels at a time; memory does not grow with n."""
    size = max(1, _PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.float64, device=images.device)
    return torch.cat([score(part) for part in images.split(size)])


def hue_band(
    images: Tensor, bands: Sequence[tuple[float, float]], band_weight: float = 1.0, realism_weight: float = 1.0
) -> Tensor:
    """The paper's CIFAR-10 reward of each image: band_weight · band + realism_weight · realism.

    band = mean over pixels of 1[hue in bands] · saturation^1.5; realism = −(‖channel means − CIFAR-10's‖₂ + ‖channel
    standard deviations − CIFAR-10's‖₂), as :func:`crossfeed.describe.images.hue_band`.

    Args:
        images: (n, 3, h, w) uint8, or floats in [0, 1]; the latter may carry gradients. Which pixels lie in a band
            is piecewise constant and has derivative zero; saturation and realism have theirs.
        bands: Hue intervals, both ends included; one with low > high runs from low through red (1 = 0) to high.
        band_weight: α.
        realism_weight: β.

    Returns:
        (n,) float64 on the images' device; more is better.

    Example:
        A uniform pure red has band 1:

        >>> red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8); red[:, 0] = 255
        >>> hue_band(red, [(0.92, 1), (0, 0.17)], realism_weight=0).tolist()
        [1.0]
    """

    def score(part: Tensor) -> Tensor:
        pixels = part.to(torch.float64) if part.dtype == torch.uint8 else unit(part)
        scale = 255.0 if part.dtype == torch.uint8 else 1.0
        band = _in_bands(pixels, bands) * _saturation(pixels).pow(1.5)
        means, stds = pixels.mean((2, 3)) / scale, pixels.std((2, 3), correction=0) / scale
        off = [
            torch.linalg.vector_norm(found - torch.as_tensor(real).to(found), dim=1)
            for found, real in ((means, CIFAR10_MEAN), (stds, CIFAR10_STD))
        ]
        return band_weight * band.mean((1, 2)) - realism_weight * (off[0] + off[1])

    return in_batches(images.cpu() if images.device.type == "mps" else images, score)


def _saturation(pixels: Tensor) -> Tensor:
    """(n, 3, h, w) on any scale to (n, h, w) in [0, 1]; 0 for black."""
    brightness = pixels.amax(1)
    return (brightness - pixels.amin(1)) / torch.where(brightness > 0, brightness, 1.0)


@torch.no_grad()
def _in_bands(pixels: Tensor, bands: Sequence[tuple[float, float]]) -> Tensor:
    """1[hue in a band], (n, h, w); in the reference's order of operations, so that hues on an edge agree to the bit."""
    red, green, blue = pixels.unbind(1)
    brightness = pixels.amax(1)
    span = brightness - pixels.amin(1)
    span = torch.where(span > 0, span, 1.0)
    not_red = torch.where(brightness == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    hue = torch.where(brightness == red, (green - blue) / span, not_red) / 6
    hue = torch.where(hue < 0, hue + 1, hue)
    inside = torch.zeros_like(hue, dtype=torch.bool)
    for low, high in bands:
        inside |= (hue >= low) & (hue <= high) if low <= high else (hue >= low) | (hue <= high)
    return inside.to(pixels.dtype)
