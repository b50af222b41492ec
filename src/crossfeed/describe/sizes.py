"""What fits the space: kinds of data, rewards and families, and the sizes of their arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossfeed.describe import schema as s
from crossfeed.describe.files import check_file
from crossfeed.describe.hub import HUB, hub_parts
from crossfeed.describe.networks import family_complaints as network_complaints
from crossfeed.describe.networks import text_complaints
from crossfeed.describe.shapes import (
    covariance,
    masses,
    more,
    sized,
    symmetric,
    table,
    twice_at,
    vector,
    wrong_shape,
)
from crossfeed.describe.wording import Complaint, Loc, known, parts, short
from crossfeed.errors import DataError

FAMILIES = {
    "outcomes": ("categorical", "loglinear"),
    "images": ("categorical", "loglinear", "diffusion"),
    "vectors": ("gaussian_mean", "gaussian", "flow"),
    "regression": ("linear_gaussian",),
    "text": ("causal_lm",),
}
DATA: dict[str, tuple[str, ...]] = {
    "outcomes": ("rows", "distribution"),
    "images": ("images", "distribution"),
    "vectors": ("rows", "moments"),
    "regression": ("pairs", "teacher"),
}
NETWORK_DATA: dict[str, tuple[str, ...]] = {
    "images": ("images",),
    "vectors": ("rows", "moments", "mixture"),
    "text": ("texts", "preferences"),
}
REWARDS: dict[str, tuple[str, ...]] = {
    "outcomes": ("table", "linear", "quadratic", "callable"),
    "images": ("hue_band", "table", "callable"),
    "vectors": ("linear", "quadratic", "callable"),
    "regression": ("linear", "quadratic", "callable"),
}
NETWORK_REWARDS: dict[str, tuple[str, ...]] = {
    "images": ("hue_band", "callable"),
    "vectors": ("linear", "quadratic", "callable"),
    "text": ("summary", "paraphrase", "reward_model", "callable"),
}


@dataclass(frozen=True)
class Layout:
    """The space in numbers; None where it has no such number or it is not known before a file is read.

    ``networks`` tells whether its models are networks: they take other data and other rewards.
    """

    kind: str
    size: int | None = None
    labels: tuple[str, ...] | None = None
    dim: int | None = None
    inputs: int = 0
    outputs: int = 0
    networks: bool = False


def layout_of(space: s.Space, networks: bool = False) -> tuple[Layout | None, list[Complaint]]:
    """The space's numbers, None when it contradicts itself; ``dim`` of outcomes is that of their coordinates."""
    if isinstance(space, s.Text):
        return Layout("text", networks=True), []
    if isinstance(space, s.Vectors):
        return Layout("vectors", dim=space.dim, networks=networks), []
    if isinstance(space, s.Regression):
        return Layout("regression", inputs=space.inputs, outputs=space.outputs), []
    if isinstance(space, s.Images):
        found = _images(space)
        size = None if found or networks else _num_images(space)
        return (None if found else Layout("images", size=size, networks=networks)), found
    found = _outcomes(space)
    if found:
        return None, found
    sizes = [space.count, *(len(x) for x in (space.labels, space.coordinates) if x is not None)]
    size = next(n for n in sizes if n is not None)
    dim = None if space.coordinates is None else space.coordinates.shape[1]
    return Layout("outcomes", size, None if space.labels is None else tuple(space.labels), dim), []


def _outcomes(space: s.Outcomes) -> list[Complaint]:
    coordinates, labels = space.coordinates, space.labels
    if coordinates is not None and (coordinates.ndim != 2 or coordinates.shape[0] < 2 or coordinates.shape[1] < 1):
        return [wrong_shape(("space", "coordinates"), coordinates, "(outcomes, c), one row an outcome, 2 rows or more")]
    if labels is not None:
        twice = twice_at(labels)
        if twice is not None:
            return [
                Complaint(("space", "labels", twice), f"found {short(labels[twice])} twice", "need each label once")
            ]
        if len(labels) < 2:
            return [Complaint(("space", "labels"), f"found {short(labels)}", "need 2 labels or more")]
    numbers = {
        key: len(x) if not isinstance(x, int) else x
        for key, x in (("count", space.count), ("labels", labels), ("coordinates", coordinates))
        if x is not None
    }
    if not numbers:
        need = "need `count`, `labels` or `coordinates`"
        return [Complaint(("space",), "found a set of outcomes of unknown size", need)]
    (first, number), *others = numbers.items()
    for key, other in others:
        if other != number:
            return [
                Complaint(
                    ("space", key),
                    f"found {other:,} {key} and {first} of {number:,}",
                    "need the same number of outcomes",
                )
            ]
    return []


def _images(space: s.Images) -> list[Complaint]:
    from crossfeed.describe.photographs import SAMPLES

    loc: Loc = ("space", "file")
    if space.file.startswith("sample:"):
        samples = [f"sample:{path.stem}" for path in sorted(SAMPLES.glob("*.parquet"))]
        return [] if space.file in samples else [Complaint(loc, f"found {space.file}", known(samples, space.file))]
    if space.file.startswith(HUB):
        need = "need hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT"
        return [] if hub_parts(space.file) else [Complaint(loc, f"found {short(space.file)}", need)]
    if Path(space.file).suffix not in (".parquet", ".npy", ".npz"):
        need = "need a .parquet, .npy or .npz file, or sample:cifar10"
        return [Complaint(loc, f"found {short(Path(space.file).name)}", need)]
    try:
        check_file(Path(space.file).expanduser(), space.file)
    except DataError as error:
        return [Complaint(loc, *parts(str(error)))]
    return []


def _num_images(space: s.Images) -> int | None:
    """Number of photographs where each is an outcome, as far as the file's header tells."""
    if space.cells is not None or space.rows is not None:
        return None if space.cells is not None else space.rows
    if space.file.startswith(HUB):
        return None
    from crossfeed.describe.photographs import SAMPLES

    sample = space.file.removeprefix("sample:")
    path = Path(space.file).expanduser() if sample == space.file else SAMPLES / f"{sample}.parquet"
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return int(pq.read_metadata(path).num_rows)
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) if path.suffix == ".npy" else None
    except Exception:  # whoever reads the images says what is wrong with the file
        return None


# --- data, domains, rewards -----------------------------------------------------------------------------------------


def data_complaints(loc: Loc, data: s.Data, space: s.Space, at: Layout) -> list[Complaint]:
    """What is wrong with one data set."""
    kinds = _kinds(at, DATA, NETWORK_DATA)
    if data.kind not in kinds:
        return [_misfit((*loc, "kind"), data.kind, at, kinds, DATA, NETWORK_DATA)]
    if isinstance(data, (s.TextsData, s.PreferencesData)):
        return text_complaints(loc, data)
    if isinstance(data, s.MixtureData):
        wrong = table((*loc, "means"), data.means, at.dim or 0, "dim")
        if not wrong and data.weights is not None:
            wrong = masses((*loc, "weights"), data.weights, len(data.means), "one a component")
        return wrong
    if isinstance(data, s.RowsData):
        return _rows((*loc, "rows"), data.rows, at)
    if isinstance(data, s.DistributionData):
        return masses((*loc, "weights"), data.weights, at.size, "(outcomes,)")
    if isinstance(data, s.MomentsData) and at.dim is not None:
        wrong = vector((*loc, "mean"), data.mean, (at.dim,), "dim")
        return [*wrong, *covariance((*loc, "cov"), data.cov, at.dim)]
    if isinstance(data, s.ImagesData) and isinstance(space, s.Images) and data.labels is not None:
        if space.label_column is None:
            return [
                Complaint((*loc, "labels"), "found labels to keep", "need `label_column` in `space`, or no labels here")
            ]
        if not data.labels or min(data.labels) < 0:
            found = f"found {short(data.labels) if not data.labels else min(data.labels)}"
            return [
                Complaint((*loc, "labels"), found, "need one label or more, integers from 0; leave out to keep all")
            ]
    if isinstance(data, s.PairsData):
        wrong = table((*loc, "x"), data.x, at.inputs, "inputs") + table((*loc, "y"), data.y, at.outputs, "outputs")
        if not wrong and len(data.x) != len(data.y):
            wrong = [Complaint((*loc, "y"), f"found {len(data.y):,} rows and {len(data.x):,} of x", "need one y an x")]
        return wrong
    if isinstance(data, s.TeacherData):
        wrong = vector((*loc, "matrix"), data.matrix, (at.outputs, at.inputs), "outputs, inputs")
        return [*wrong, *covariance((*loc, "noise"), data.noise, at.outputs, semi=True)]
    return []


def domain_complaints(loc: Loc, domain: s.Domain, at: Layout) -> list[Complaint]:
    """What is wrong with one domain of a regression."""
    if isinstance(domain, s.PointsDomain):
        wrong = table((*loc, "points"), domain.points, at.inputs, "inputs")
        if not wrong and domain.weights is not None:
            wrong = masses((*loc, "weights"), domain.weights, len(domain.points), "one a point")
        return wrong
    wrong = vector((*loc, "mean"), domain.mean, (at.inputs,), "inputs")
    return [*wrong, *covariance((*loc, "cov"), domain.cov, at.inputs, semi=True)]


def reward_complaints(loc: Loc, reward: s.Reward, at: Layout) -> list[Complaint]:
    """What is wrong with one reward."""
    kinds = _kinds(at, REWARDS, NETWORK_REWARDS)
    if reward.kind not in kinds:
        return [_misfit((*loc, "kind"), reward.kind, at, kinds, REWARDS, NETWORK_REWARDS)]
    if isinstance(reward, s.TableReward):
        return [] if at.size is None else vector((*loc, "values"), reward.values, (at.size,), "outcomes")
    if isinstance(reward, s.HueBandReward):
        for index, (low, high) in enumerate(reward.bands):
            if low >= high:
                return [
                    Complaint(
                        (*loc, "bands", index),
                        f"found [{low:g}, {high:g}]",
                        "need low before high; split a band that passes 0",
                    )
                ]
        return []
    if at.kind == "outcomes" and at.dim is None:
        return [
            Complaint(
                (*loc, "kind"),
                f"found {reward.kind!r} for outcomes without coordinates",
                "need `coordinates` in `space`, or a table",
            )
        ]
    if not isinstance(reward, (s.LinearReward, s.QuadraticReward)) or at.kind == "images":
        return []
    dims = (at.outputs, at.inputs + at.outputs) if at.kind == "regression" else (at.dim or 0,)
    meaning = (
        "outputs,) or (inputs + outputs"
        if at.kind == "regression"
        else "coordinates"
        if at.kind == "outcomes"
        else "dim"
    )
    wrong = [] if reward.vector is None else sized((*loc, "vector"), reward.vector, dims, meaning)
    if isinstance(reward, s.QuadraticReward):
        matrix = reward.matrix
        if reward.vector is not None and not wrong and at.kind == "regression":
            dims = (len(reward.vector),)
        fits = [d for d in dims if matrix.shape in ((), (d,), (d, d))]
        if not fits:
            wrong.append(
                wrong_shape(
                    (*loc, "matrix"),
                    matrix,
                    f"a number, a diagonal or a matrix for {' or '.join(map(str, dims))} dimensions",
                )
            )
        elif matrix.ndim == 2 and not symmetric(matrix):
            wrong.append(
                Complaint((*loc, "matrix"), "found a matrix that is not symmetric", "need matrix[i][j] = matrix[j][i]")
            )
    return wrong


# --- families -------------------------------------------------------------------------------------------------------


def family_complaints(loc: Loc, model: s.Model, space: s.Space, at: Layout) -> list[Complaint]:
    """What is wrong with a model's family and its start."""
    family = model.family
    if family.kind not in FAMILIES[at.kind]:
        return [_misfit((*loc, "family", "kind"), family.kind, at, FAMILIES[at.kind])]
    wrong: list[Complaint] = []
    if isinstance(family, s.LogLinear):
        wrong = _loglinear((*loc, "family"), family, space, at)
    elif isinstance(family, s.GaussianMean) and at.dim is not None:
        wrong = covariance((*loc, "family", "cov"), family.cov, at.dim)
    elif isinstance(family, s.LinearGaussian):
        wrong = covariance((*loc, "family", "noise"), family.noise, at.outputs)
    elif isinstance(family, (s.Flow, s.Diffusion, s.CausalLM)):
        return network_complaints((*loc, "family"), family, space)
    if model.start is not None and not wrong:
        number = num_params(family, at)
        shape = None if number is None else (number,)
        wrong = vector((*loc, "start"), model.start, shape, "parameters")
    return wrong


def _loglinear(loc: Loc, family: s.LogLinear, space: s.Space, at: Layout) -> list[Complaint]:
    features, base = family.features, family.base
    if isinstance(features, list):
        where = (*loc, "features")
        if not isinstance(space, s.Images):
            return [
                Complaint(
                    where, "found names of image statistics", "need an array (outcomes, d): the space has no images"
                )
            ]
        twice = twice_at(features)
        if twice is not None:
            return [Complaint((*where, twice), f"found {features[twice]!r} twice", "need each statistic once")]
        if "label" in features and space.label_column is None:
            return [
                Complaint(
                    (*where, features.index("label")),
                    "found 'label' for images without labels",
                    "need `label_column` in `space`",
                )
            ]
    elif features.ndim != 2 or 0 in features.shape or (at.size is not None and len(features) != at.size):
        return [wrong_shape((*loc, "features"), features, f"({at.size or 'outcomes'}, d), one row an outcome")]
    if base is not None:
        wrong = vector((*loc, "base"), base, (at.size or base.size,), "outcomes")
        if not wrong and base.min() <= 0:
            index = int(base.argmin())
            wrong = [Complaint((*loc, "base", index), f"found {base[index]:g}", "need positive numbers")]
        return wrong
    return []


def num_params(family: s.Family, at: Layout) -> int | None:
    """Number of parameters; None where it is not known before images are read."""
    if isinstance(family, s.Categorical):
        return None if at.size is None else at.size - 1
    if isinstance(family, s.LogLinear):
        return None if isinstance(family.features, list) else family.features.shape[1]
    if isinstance(family, s.LinearGaussian):
        return at.outputs * at.inputs
    dim = at.dim or 0
    return dim if isinstance(family, s.GaussianMean) else dim + dim * (dim + 1) // 2


def map_complaints(loc: Loc, affine: s.Affine, at: Layout) -> list[Complaint]:
    """What is wrong with a source's map."""
    if at.kind not in ("vectors", "regression"):
        return [Complaint(loc, f"found a map of {at.kind}", "need vectors or a regression: leave it out")]
    dim = at.outputs if at.kind == "regression" else at.dim or 0
    matrix, shift = affine.matrix, affine.shift
    if matrix is not None and matrix.shape not in ((), (dim,), (dim, dim)):
        return [wrong_shape((*loc, "matrix"), matrix, f"a number, a diagonal ({dim},) or a matrix ({dim}, {dim})")]
    return [] if shift is None else vector((*loc, "shift"), shift, (dim,), "dim")


def _rows(loc: Loc, rows: np.ndarray, at: Layout) -> list[Complaint]:
    if at.kind == "vectors":
        if rows.dtype.kind != "f":
            return [Complaint(loc, "found labels", "need numbers (n, dim)")]
        return table(loc, rows, at.dim or 0, "dim")
    if rows.ndim != 1 or not len(rows):
        return [wrong_shape(loc, rows, "(n,) indices from 0, or labels")]
    if rows.dtype.kind == "f":
        bad = np.flatnonzero((rows < 0) | (rows != np.floor(rows)) | (rows >= (at.size or math.inf)))
        if len(bad):
            found = f"found {rows[bad[0]]:g}{more(bad)}"
            return [
                Complaint(
                    (*loc, int(bad[0])),
                    found,
                    f"need indices of outcomes, whole numbers from 0 to {(at.size or 0) - 1:,}",
                )
            ]
        return []
    if at.labels is None:
        return [Complaint(loc, "found labels", "need indices from 0, or `labels` in `space`")]
    bad = np.flatnonzero(~np.isin(rows, np.array(at.labels)))
    if not len(bad):
        return []
    return [
        Complaint(
            (*loc, int(bad[0])), f"found {short(str(rows[bad[0]]))}{more(bad)}", known(at.labels, str(rows[bad[0]]))
        )
    ]


def _kinds(at: Layout, closed: dict[str, tuple[str, ...]], networks: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The kinds that go with the space and its models."""
    return networks.get(at.kind, closed.get(at.kind, ())) if at.networks else closed[at.kind]


def _misfit(
    loc: Loc,
    kind: str,
    at: Layout,
    kinds: tuple[str, ...],
    closed: dict[str, tuple[str, ...]] | None = None,
    networks: dict[str, tuple[str, ...]] | None = None,
) -> Complaint:
    space = {"outcomes": "a set of outcomes", "regression": "a regression"}.get(at.kind, at.kind)
    found = f"found {kind!r}, which does not go with a space of {space}".replace("a space of a", "a")
    if kind in ((closed if at.networks else networks) or {}).get(at.kind, ()):
        found = f"found {kind!r}, which {'networks cannot use' if at.networks else 'only networks can use'}"
    return Complaint(loc, found, known(kinds))
