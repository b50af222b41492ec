"""Colour statistics against the standard library and plain loops."""

import colorsys
import math

import numpy as np
import pytest

from crossfeed.describe import colour
from crossfeed.describe.colour import band_share, hsv, statistics

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (4, 5, 3, 3), dtype=np.uint8)
BYTES[0, 0] = [[0, 0, 0], [255, 255, 255], [9, 9, 9]]
BYTES[1, 0] = [[0, 255, 255], [255, 0, 3], [200, 200, 10]]
IMAGES = {"bytes": BYTES, "floats": RNG.random((4, 5, 3, 3)).astype(np.float32)}
BANDS = {
    "warm": [(0.92, 1), (0, 0.17)],
    "cool": [(0.5, 0.72)],
    "wrap": [(0.92, 0.17)],
    "twice": [(0.2, 0.6), (0.5, 0.9)],
}


def pixels_of(image):
    scale = 255 if image.dtype == np.uint8 else 1
    return [tuple(float(v) / scale for v in pixel) for pixel in image.reshape(-1, 3)]


def circle_distance(a, b):
    return abs((a - b + 0.5) % 1 - 0.5)


def test_hsv_is_colorsys():
    levels = np.array([0, 1, 2, 60, 127, 128, 200, 254, 255])
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    hue, saturation, brightness = hsv(grid)
    for k, (r, g, b) in enumerate(grid / 255):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        assert circle_distance(hue[k], h) < 1e-12
        assert saturation[k] == pytest.approx(s, abs=1e-12)
        assert brightness[k] / 255 == pytest.approx(v, abs=1e-12)
    assert hue.min() >= 0
    assert hue.max() <= 1


@pytest.mark.parametrize("kind", IMAGES)
def test_statistics_are_the_plain_loops(kind, monkeypatch):
    monkeypatch.setattr(colour, "_PIXELS_AT_ONCE", 40)  # two images a batch
    images = IMAGES[kind]
    found = statistics(images)
    for k, image in enumerate(images):
        pixels = pixels_of(image)
        n = len(pixels)
        for c in range(3):
            mean = sum(p[c] for p in pixels) / n
            assert found.mean[k, c] == pytest.approx(mean)
            assert found.std[k, c] == pytest.approx(math.sqrt(sum((p[c] - mean) ** 2 for p in pixels) / n))
        hsvs = [colorsys.rgb_to_hsv(*p) for p in pixels]
        assert found.saturation[k] == pytest.approx(sum(s for _, s, _ in hsvs) / n)
        assert found.brightness[k] == pytest.approx(sum(v for _, _, v in hsvs) / n)
        histogram = [0.0] * 8
        for h, s, _ in hsvs:
            histogram[min(range(8), key=lambda b: circle_distance(h, b / 8))] += s / n
        assert found.hue[k].tolist() == pytest.approx(histogram)
        x = sum(s * math.cos(2 * math.pi * h) for h, s, _ in hsvs)
        y = sum(s * math.sin(2 * math.pi * h) for h, s, _ in hsvs)
        assert circle_distance(found.mean_hue[k], math.atan2(y, x) / (2 * math.pi)) < 1e-9
    np.testing.assert_allclose(found.hue.sum(1), found.saturation)


def test_hue_turns_with_the_colours():
    turned = statistics(np.roll(BYTES, 1, axis=-1))  # red to green to blue: a third of the circle
    assert np.max(np.abs((turned.mean_hue - statistics(BYTES).mean_hue - 1 / 3 + 0.5) % 1 - 0.5)) < 1e-9


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", BANDS)
def test_band_share_is_the_plain_loop(kind, name):
    def inside(h):
        return any(low <= h <= high if low <= high else (h >= low or h <= high) for low, high in BANDS[name])

    found = band_share(IMAGES[kind], BANDS[name])
    for k, image in enumerate(IMAGES[kind]):
        hsvs = [colorsys.rgb_to_hsv(*p) for p in pixels_of(image)]
        assert found[k] == pytest.approx(sum(inside(h) * s**1.5 for h, s, _ in hsvs) / len(hsvs))


def test_a_band_that_wraps_is_its_two_halves():
    np.testing.assert_array_equal(band_share(BYTES, BANDS["wrap"]), band_share(BYTES, BANDS["warm"]))


def test_grey_has_no_colour():
    grey = np.full((1, 2, 2, 3), 77, np.uint8)
    found = statistics(grey)
    assert found.hue.sum() == found.saturation[0] == found.mean_hue[0] == 0
    assert band_share(grey, [(0, 1)])[0] == 0
