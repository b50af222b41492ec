"""Rewards of image tensors against the NumPy reference, and their derivatives against differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from crossfeed.describe.images import Photographs, read_images
from crossfeed.describe.images import hue_band as reference
from crossfeed.describe.schema import Images
from crossfeed.networks.image_rewards import hue_band, in_batches, unit

WARM = [(0.92, 1.0), (0.0, 0.17)]
COOL = [(0.5, 0.72)]
WRAPPED = [(0.92, 0.17)]  # through red
BANDS = [WARM, COOL, WRAPPED, [(0.0, 1.0)], [(0.3, 0.4), (0.35, 0.5)], [(1 / 6, 1 / 6)]]


def expected(images: Tensor, bands: list[tuple[float, float]], weights: tuple[float, float]) -> np.ndarray:
    pixels = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
    return reference(Photographs(pixels, None, np.arange(len(pixels))), bands, *weights)


def agree(images: Tensor, weights: tuple[float, float] = (4.0, 1.0)) -> None:
    for bands in BANDS:
        found = hue_band(images, bands, *weights)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected(images, bands, weights), rtol=0, atol=1e-12)


def test_agrees_on_photographs() -> None:
    pixels = read_images(Images(file="sample:cifar10", rows=200)).pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    agree(images)
    agree(images[:20], (0.0, 1.0))
    agree(images[:20], (1.0, 0.0))


def test_agrees_on_every_kind_of_colour() -> None:
    """Black, white, grey, primaries, their ties, and all hues that 8 bits have near the edges of the bands."""
    levels = (0, 1, 127, 128, 254, 255)
    colours = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.uint8)
    agree(colours[:, :, None, None].expand(-1, -1, 2, 2).contiguous())
    agree(colours.T.reshape(1, 3, 6, 36).contiguous())


@pytest.mark.parametrize("edge", [0.92, 0.17, 0.5, 0.72])
def test_hues_on_an_edge_are_decided_as_the_reference_does(edge: float) -> None:
    """All bright 8-bit colours whose hue is within 1e-9 of the edge."""
    sector, rest = divmod(6 * edge, 1)
    part = rest if int(sector) % 2 == 0 else 1 - rest
    found = [
        (span, round(part * span)) for span in range(1, 256) if abs(part * span - round(part * span)) < 1e-9 * span
    ]
    assert found
    order = [(0, 2, 1), (2, 0, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0), (0, 1, 2)][int(sector) % 6]  # high, middle, low
    colours = torch.zeros(len(found), 3, dtype=torch.uint8)
    for i, (span, middle) in enumerate(found):
        high, mid, low = {0: (0, 1, 2), 1: (1, 0, 2), 2: (1, 2, 0), 3: (2, 1, 0), 4: (2, 0, 1), 5: (0, 2, 1)}[
            int(sector)
        ]
        colours[i, high], colours[i, mid], colours[i, low] = span, middle, 0
    assert order
    agree(colours[:, :, None, None].contiguous())


def test_floats_are_images_in_the_unit_interval() -> None:
    images = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kind, near in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        floats = images.to(kind) / 255
        torch.testing.assert_close(hue_band(floats, WARM), hue_band(images, WARM), rtol=0, atol=near)
        agree(floats.float())
    torch.testing.assert_close(unit(images), images.double() / 255)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = hue_band(images, WARM)
    monkeypatch.setattr("crossfeed.networks.image_rewards._PIXELS_AT_ONCE", 33)
    sizes: list[int] = []
    in_batches(images, lambda part: sizes.append(len(part)) or part.double().mean((1, 2, 3)))
    assert sizes == [2, 2, 2, 1]
    assert torch.equal(hue_band(images, WARM), whole)
    assert hue_band(images[:0], WARM).shape == (0,)


@pytest.mark.parametrize("bands", [WARM, COOL])
def test_gradient_is_that_of_saturation_and_realism(bands: list[tuple[float, float]]) -> None:
    random = torch.Generator().manual_seed(1)
    images = (0.1 + 0.8 * torch.rand(3, 3, 6, 6, dtype=torch.float64, generator=random)).requires_grad_()
    along = torch.randn(images.shape, dtype=torch.float64, generator=random)
    (slope,) = torch.autograd.grad(hue_band(images, bands, 4.0, 1.0).sum(), images)
    h = 1e-7
    with torch.no_grad():
        ends = [hue_band(images + side * h * along, bands, 4.0, 1.0).sum() for side in (1, -1)]
    assert float((slope * along).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-5)
    _, forward = torch.func.jvp(lambda y: hue_band(y, bands, 4.0, 1.0), (images.detach(),), (along,))
    assert float(forward.sum()) == pytest.approx(float((slope * along).sum()), rel=1e-9)


def test_gradient_is_finite_where_there_is_no_colour() -> None:
    """Black, grey, white and one flat colour: no spread, no hue, no saturation."""
    flat = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.4, 0.4], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    images = flat[:, :, None, None].expand(-1, -1, 4, 4).clone().requires_grad_()
    (slope,) = torch.autograd.grad(hue_band(images, WARM, 4.0, 1.0).sum(), images)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().sum()) > 0
