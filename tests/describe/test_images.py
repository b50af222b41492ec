"""Photographs as outcomes: the paper's reward, cells, features, distributions, thumbnails, example specs."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from crossfeed.describe.images import distribution, features, hue_band, in_words, outcome_set, read_images, thumbnail
from crossfeed.describe.schema import AuditOptions, HueBandReward, Images, ImagesData, Model
from crossfeed.errors import SpecError

ALL = ["mean", "std", "hue", "saturation", "brightness", "label"]
WARM, COOL = [(0.92, 1.0), (0.0, 0.17)], [(0.5, 0.72)]
CELLS = {"hue": 12, "saturation": 3, "brightness": 3}
EXAMPLES = Path(__file__).parents[2] / "examples" / "cifar10"


@pytest.fixture(scope="module")
def sample():
    return outcome_set(Images(file="sample:cifar10"))


@pytest.fixture(scope="module")
def cells():
    return outcome_set(Images(file="sample:cifar10", cells=CELLS))


def outcomes_of(folder, pixels, labels=None, **fields):
    arrays = {"img": pixels} | ({} if labels is None else {"label": np.asarray(labels)})
    np.savez(folder / "x.npz", **arrays)
    return outcome_set(Images(file="x.npz", **fields), folder)


def test_reward_is_linear_in_its_weights_and_matches_a_loop(sample):
    photographs = sample.photographs
    band, realism = hue_band(photographs, WARM, 1, 0), hue_band(photographs, WARM, 0, 1)
    np.testing.assert_allclose(hue_band(photographs, WARM, 0.7, -2), 0.7 * band - 2 * realism)
    for k in (0, 7, 1999):
        image = photographs.pixels[k] / 255
        means, stds = image.mean((0, 1)), image.std((0, 1))
        distance = np.sqrt(((means - [0.4914, 0.4822, 0.4465]) ** 2).sum())
        distance += np.sqrt(((stds - [0.2470, 0.2435, 0.2616]) ** 2).sum())
        assert realism[k] == pytest.approx(-distance)


def test_warm_and_cool_bands_pull_apart(sample):
    warm, cool = (hue_band(sample.photographs, bands, 1, 0) for bands in (WARM, COOL))
    assert np.corrcoef(warm, cool)[0, 1] < -0.2
    ships, cats = (sample.photographs.labels == label for label in (8, 3))
    assert warm[cats].mean() > warm[ships].mean()
    assert cool[cats].mean() < cool[ships].mean()


def test_each_photograph_is_an_outcome(sample):
    assert sample.num_outcomes == 2000
    assert in_words(sample) == "2,000 photographs as outcomes"
    assert sample.counts.tolist() == [1] * 2000
    values = np.random.default_rng(0).random((2000, 2, 3))
    np.testing.assert_array_equal(sample.per_outcome(values), values)


def test_cells_partition_the_photographs(cells):
    assert in_words(cells) == f"{cells.num_outcomes} cells of colour statistics from 2,000 photographs"
    assert 80 <= cells.num_outcomes <= 108
    assert cells.counts.min() >= 1
    assert cells.counts.sum() == 2000
    np.testing.assert_array_equal(np.bincount(cells.outcome, minlength=cells.num_outcomes), cells.counts)
    np.testing.assert_array_equal(cells.outcome[cells.representative], np.arange(cells.num_outcomes))
    brightness = cells.photographs.statistics.brightness
    means = [brightness[cells.outcome == k].mean() for k in range(cells.num_outcomes)]
    np.testing.assert_allclose(cells.per_outcome(brightness), means)
    again = outcome_set(Images(file="sample:cifar10", cells=dict(reversed(CELLS.items()))))
    np.testing.assert_array_equal(again.outcome, cells.outcome)


@pytest.mark.parametrize("name", ["hue", "saturation", "brightness"])
def test_bins_have_equal_mass(name):
    bins = outcome_set(Images(file="sample:cifar10", cells={name: 8}))
    assert bins.num_outcomes == 8
    np.testing.assert_allclose(bins.counts, 250, atol=2)


def test_hue_bins_do_not_cut_red(tmp_path):
    reds = np.zeros((4, 2, 2, 3), np.uint8)
    reds[..., 0] = 200
    reds[0, ..., 2] = 10  # just below hue 0
    reds[1, ..., 1] = 10  # just above
    reds[2:, ..., 0], reds[2:, ..., 2] = 0, 200
    assert outcomes_of(tmp_path, reds, cells={"hue": 2}).outcome.tolist() == [0, 0, 1, 1]


def test_equal_photographs_share_a_cell(tmp_path):
    pixels = np.repeat(np.array([10, 10, 10, 200], np.uint8), 12).reshape(4, 2, 2, 3)
    found = outcomes_of(tmp_path, pixels, cells={"brightness": 4})
    assert found.outcome.tolist() == [0, 0, 0, 1]
    with pytest.raises(SpecError, match=r"space\.cells: all photographs fall into one cell"):
        outcomes_of(tmp_path, pixels[:3], cells={"brightness": 4})
    with pytest.raises(SpecError, match="need at least two outcomes"):
        outcomes_of(tmp_path, pixels[:1])


def test_representative_is_closest_to_the_average(cells):
    stats = cells.photographs.statistics
    values = np.column_stack([stats.mean, stats.std, stats.hue])
    values = values / values.std(0)
    for k in (0, 5, cells.num_outcomes - 1):
        members = np.flatnonzero(cells.outcome == k)
        distance = np.linalg.norm(values[members] - values[members].mean(0), axis=1)
        assert cells.representative[k] == members[distance.argmin()]


@pytest.mark.parametrize("which", ["sample", "cells"])
def test_features_are_standardised_and_independent(which, request):
    values, names = features(request.getfixturevalue(which), ALL)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(values.var(0), 1)
    assert values.shape[1] == len(names) == len(set(names)) == 24
    assert np.linalg.cond(values) < 100
    assert "saturation" not in names  # the sum of the hue histogram
    assert "label truck" not in names  # labels sum to one
    assert "label cat" in names
    assert not values.flags.writeable


def test_features_keep_the_span_and_the_first_of_dependent_columns(sample):
    stats = sample.photographs.statistics
    values, names = features(sample, ["saturation", "hue", "saturation"])
    assert names[0] == "saturation"
    assert len(names) == 8
    full = np.column_stack([np.ones(2000), values])
    for column in (*stats.hue.T, stats.saturation):
        assert np.linalg.norm(full @ np.linalg.lstsq(full, column)[0] - column) < 1e-10


def test_few_outcomes_give_few_features():
    values, _ = features(outcome_set(Images(file="sample:cifar10", cells={"hue": 4})), ALL)
    assert values.shape == (4, 3)
    assert np.linalg.matrix_rank(values) == 3


def test_features_that_cannot_be(tmp_path, sample):
    grey = outcomes_of(tmp_path, np.full((3, 2, 2, 3), 8, np.uint8))
    with pytest.raises(SpecError, match=r"models\.p\.family\.features: asks for labels, but the photographs have none"):
        features(grey, ["label"], "models.p.family.features")
    with pytest.raises(SpecError, match="features: mean, hue do not vary"):
        features(grey, ["mean", "hue"])
    with pytest.raises(SpecError, match="empty list"):
        features(sample, [])
    with pytest.raises(SpecError, match="found 'colour'"):
        features(sample, ["colour"])


def test_cell_features_are_averages_over_photographs(cells):
    values, names = features(cells, ["brightness", "label"])
    share = np.array([(cells.photographs.labels[cells.outcome == k] == 3).mean() for k in range(cells.num_outcomes)])
    np.testing.assert_allclose(values[:, names.index("label cat")], (share - share.mean()) / share.std())


def test_distribution(cells, tmp_path):
    np.testing.assert_allclose(distribution(cells, ImagesData()), cells.counts / 2000)
    weights = distribution(cells, ImagesData(labels=[3, 8]))
    keep = np.isin(cells.photographs.labels, [3, 8])
    assert weights.sum() == pytest.approx(1)
    assert weights[4] == pytest.approx((keep & (cells.outcome == 4)).sum() / 400)
    with pytest.raises(SpecError, match=r"data\.real\.labels: no photograph has the label 10; the labels are 0, 1"):
        distribution(cells, ImagesData(labels=[3, 10]), "data.real")
    with pytest.raises(SpecError, match="empty list"):
        distribution(cells, ImagesData(labels=[]))
    plain = outcomes_of(tmp_path, np.random.default_rng(0).random((3, 2, 2, 3)))
    np.testing.assert_allclose(distribution(plain, ImagesData()), 1 / 3)
    with pytest.raises(SpecError, match="the photographs have none"):
        distribution(plain, ImagesData(labels=[0]))


def test_names_of_labels_without_metadata(tmp_path):
    outcomes = outcomes_of(tmp_path, np.random.default_rng(0).random((3, 2, 2, 3)), [4, 4, 9])
    assert features(outcomes, ["label"]).names == ("label 4",)


def test_thumbnail_shows_the_representative(cells):
    url = thumbnail(cells, 5, size=48)
    head, data = url.split(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (48, 48)
    shown = np.asarray(image.resize((32, 32)), dtype=float)
    assert np.abs(shown - cells.photographs.pixels[cells.representative[5]]).mean() < 12


def test_thumbnail_keeps_proportions_and_takes_floats(tmp_path):
    outcomes = outcomes_of(tmp_path, np.full((2, 10, 20, 3), 0.5) * [[[[1]]], [[[2]]]])
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(outcomes, 1).split(",")[1])))
    assert image.size == (48, 24)
    assert image.getpixel((20, 10)) == (255, 255, 255)


def test_per_outcome_names_a_wrong_length(cells):
    with pytest.raises(ValueError, match="values has 3 rows; need one a photograph, 2000"):
        cells.per_outcome(np.zeros(3))


def test_rows_are_drawn_by_seed():
    space = Images(file="sample:cifar10", rows=50)
    first, second = read_images(space, seed=1), read_images(space, seed=2)
    assert first.rows.tolist() != second.rows.tolist()
    assert outcome_set(space, seed=1).photographs.rows.tolist() == first.rows.tolist()


@pytest.mark.parametrize(
    ("setting", "p_share", "q_share"),
    [("A1", 0, 0.1), ("A2", 0.2, 0.8), ("A3", 0.3, 0.4), ("A4", 0.7, 0.3), ("A5", 0.2, 0.3), ("A6", 0.7, 0.8)],
)
def test_examples_hold_the_papers_mixtures(setting, p_share, q_share):
    spec = yaml.safe_load((EXAMPLES / f"{setting}.yaml").read_text())
    assert Images.model_validate(spec["space"]).file == "sample:cifar10"
    assert HueBandReward.model_validate(spec["rewards"]["warm"]).bands == WARM
    assert HueBandReward.model_validate(spec["rewards"]["cool"]).bands == COOL
    assert {query.path for query in AuditOptions.model_validate(spec["audit"]).thresholds} == {
        "p.cross_share",
        "q.cross_share",
    }
    for name, other, share in (("p", "q", p_share), ("q", "p", q_share)):
        model = Model.model_validate(spec["models"][name])
        assert model.reward == {"p": "warm", "q": "cool"}[name]
        real, own, cross = model.sources
        assert (real.kind, own.producer, cross.producer) == ("real", name, other)
        assert all((s.candidates, s.temperature, s.curator) == (6, 1, None) for s in (own, cross))
        assert real.weight == 0.5
        assert cross.weight / (own.weight + cross.weight) == pytest.approx(share)
        assert real.weight + own.weight + cross.weight == pytest.approx(1)
