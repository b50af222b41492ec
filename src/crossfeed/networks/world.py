"""Everything outside the models: the run's table of inputs, and the real data sets, ready to draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema as s
from crossfeed.describe.photographs import Photographs, read_images
from crossfeed.describe.shapes import full_matrix
from crossfeed.errors import DataError, NotAvailableError, Problem, SpecError
from crossfeed.networks.base import Outputs
from crossfeed.networks.randomness import passes
from crossfeed.networks.texts import read_preferences, read_texts

Medium = Literal["vectors", "images", "text"]
MAX_CLASSES = 100_000


@dataclass
class Prompts:
    """The run's table of inputs; a prompt is a position in it, the same for the same ecosystem, always.

    Vectors have one empty input. Images have one a class label (one empty input without labels). Text has one a row of
    every data set, in the order of ``data``.

    Attributes:
        domain: Data set that each comes from; empty for vectors and images.
        inputs: Text: the source text. Images: the label in words. Vectors: empty.
        texts: Text: the whole prompt, the template filled in. Otherwise the same as ``inputs``.
        labels: (m,) int64: class label of images, else 0.
        row: Row in the data set; −1 where none.
    """

    domain: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    row: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def add(self, domain: str, inputs: list[str], texts: list[str], rows: list[int]) -> Tensor:
        """Append inputs; their positions."""
        start = len(self)
        self.domain += [domain] * len(inputs)
        self.inputs += inputs
        self.texts += texts
        self.row += rows
        self.labels = torch.cat([self.labels, torch.zeros(len(inputs), dtype=torch.int64)])
        return torch.arange(start, len(self))


@dataclass
class DataSet:
    """One entry of the spec's ``data``.

    Attributes:
        name: Its name.
        size: Number of rows; None: drawn afresh, unlimited.
        rows: Each row's number in the file; empty for data drawn afresh.
        prompts: (size,) each row's prompt; (1,) for data drawn afresh.
        outputs: Each row's outcome; None for inputs without answers and for data drawn afresh.
        rejected: Preferences: the answers that were not picked, row by row; else empty.
        fresh: Draws this many outcomes; None for data with rows.
    """

    name: str
    size: int | None
    rows: list[int]
    prompts: Tensor
    outputs: Outputs | None = None
    rejected: list[str] = field(default_factory=list)
    fresh: Callable[[int, torch.Generator], Tensor] | None = None

    def draw(self, num: int, generator: torch.Generator) -> tuple[list[int | None], Tensor, Outputs]:
        """Draw samples: rows without replacement while they last, then all of them again; or afresh.

        Args:
            num: How many.
            generator: On the CPU.

        Returns:
            Rows in the file (None where drawn afresh), prompts (num,) and outcomes.

        Raises:
            DataError: the data set has inputs only.
        """
        if self.fresh is not None:
            return [None] * num, self.prompts.expand(num).clone(), self.fresh(num, generator)
        if self.outputs is None:
            raise DataError(f"data.{self.name}: found inputs without answers; need `answer_column` to draw from it")
        index = self.positions(num, generator)
        texts, order = self.outputs, index.tolist()
        outputs = [texts[i] for i in order] if isinstance(texts, list) else texts[index]
        return [self.rows[i] for i in order], self.prompts[index], outputs

    def positions(self, num: int, generator: torch.Generator) -> Tensor:
        """(num,) positions in ``rows``, in random order, none twice before all have come."""
        return passes(len(self.rows), num, generator)

    def inputs(self) -> Tensor:
        """(m,) the prompts of this data set, one a row, so that labels come as often as they do there."""
        return self.prompts


@dataclass
class World:
    """What the models of a run see.

    Attributes:
        eco: The ecosystem.
        prompts: The table of inputs.
        data: The real data sets by name.
        medium: What an outcome is.
        shape: (dim,) of vectors, (3, h, w) of images, () of text.
        num_classes: Images with labels: number of classes; else None.
        label_names: Images: names of the classes, numbers in words where the file names none; else empty.
    """

    eco: s.Ecosystem
    prompts: Prompts
    data: dict[str, DataSet]
    medium: Medium
    shape: tuple[int, ...]
    num_classes: int | None = None
    label_names: tuple[str, ...] = ()


def open_world(eco: s.Ecosystem) -> World:
    """Read everything an ecosystem's data names.

    Raises:
        DataError: a file cannot be used; names the file, the column and the row.
        SpecError: what the files hold does not go with the spec.
        NotAvailableError: outcomes that networks do not have.

    Example:
        >>> from crossfeed.describe.schema import *
        >>> sources = [Real(data="ring", weight=1)]
        >>> model = Model(family=Flow(), reward="r", sources=sources, train=Training(steps=1))
        >>> world = open_world(Ecosystem(
        ...     space=Vectors(dim=2), data={"ring": RowsData(rows=[[0, 1], [1, 0]])},
        ...     rewards={"r": LinearReward(vector=[1, 0])}, models={"p": model}))
        >>> rows, prompts, outputs = world.data["ring"].draw(3, torch.Generator().manual_seed(0))
        >>> sorted(rows[:2]), prompts.tolist(), tuple(outputs.shape)
        ([0, 1], [0, 0, 0], (3, 2))
    """
    if isinstance(eco.space, s.Images):
        return _images(eco, eco.space)
    if isinstance(eco.space, s.Text):
        return _texts(eco)
    if isinstance(eco.space, s.Vectors):
        return _vectors(eco, eco.space.dim)
    raise NotAvailableError(f"found a space of {eco.space.kind}; networks need vectors, images or text")


# --- vectors --------------------------------------------------------------------------------------------------------


def _vectors(eco: s.Ecosystem, dim: int) -> World:
    prompts = Prompts()
    one = prompts.add("", [""], [""], [-1])
    data: dict[str, DataSet] = {}
    for name, node in eco.data.items():
        if isinstance(node, s.RowsData):
            rows = torch.tensor(np.asarray(node.rows), dtype=torch.float32)
            data[name] = DataSet(name, len(rows), list(range(len(rows))), one.expand(len(rows)), rows)
        elif isinstance(node, s.MomentsData):
            data[name] = DataSet(name, None, [], one, fresh=_gaussian(node.mean, full_matrix(node.cov, dim)))
        elif isinstance(node, s.MixtureData):
            data[name] = DataSet(name, None, [], one, fresh=_mixture(node))
    return World(eco, prompts, data, "vectors", (dim,))


def _gaussian(mean: np.ndarray, cov: np.ndarray) -> Callable[[int, torch.Generator], Tensor]:
    centre, root = torch.tensor(np.asarray(mean)), torch.tensor(np.linalg.cholesky(cov))

    def draw(num: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, len(centre), generator=generator, dtype=torch.float64)
        return (centre + noise @ root.T).float()

    return draw


def _mixture(node: s.MixtureData) -> Callable[[int, torch.Generator], Tensor]:
    means = torch.tensor(np.asarray(node.means))
    weights = torch.ones(len(means), dtype=torch.float64) if node.weights is None else torch.tensor(node.weights)

    def draw(num: int, generator: torch.Generator) -> Tensor:
        if not num:
            return torch.zeros(0, means.shape[1])
        component = torch.multinomial(weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, means.shape[1], generator=generator, dtype=torch.float64)
        return (means[component] + node.std * noise).float()

    return draw


# --- images ---------------------------------------------------------------------------------------------------------


def _images(eco: s.Ecosystem, space: s.Images) -> World:
    photographs = read_images(space, seed=eco.seed)
    pixels = np.ascontiguousarray(photographs.pixels.transpose(0, 3, 1, 2))
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    images = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    names = _classes(space, photographs)
    prompts = Prompts()
    prompts.add("", list(names or ("",)), list(names or ("",)), [-1] * max(len(names), 1))
    prompts.labels = torch.arange(len(prompts))
    labels = np.zeros(len(photographs), np.int64) if photographs.labels is None else photographs.labels
    data: dict[str, DataSet] = {}
    for name, node in eco.data.items():
        if not isinstance(node, s.ImagesData):
            continue
        index = np.arange(len(labels)) if node.labels is None else _with_labels(name, node.labels, photographs)
        rows = photographs.rows[index].tolist()
        here = torch.from_numpy(labels[index])
        data[name] = DataSet(name, len(rows), rows, here, images if node.labels is None else images[index])
    world = World(eco, prompts, data, "images", tuple(images.shape[1:]), len(names) or None, names)
    _fitting(world)
    return world


def _classes(space: s.Images, photographs: Photographs) -> tuple[str, ...]:
    """Names of the classes; empty without labels."""
    labels = photographs.labels
    if labels is None:
        return ()
    names = photographs.label_names
    limit = len(names) or MAX_CLASSES
    bad = np.flatnonzero(labels >= limit)
    if len(bad):
        row, label = int(photographs.rows[bad[0]]), int(labels[bad[0]])
        why = f", the {limit} classes that the file names" if names else ""
        raise DataError(
            f"space.file: {space.file}, column {space.label_column!r}, row {row} (counted from 0): found label {label}; need "
            f"a whole number from 0 to {limit - 1:,}{why}"
        )
    return names or tuple(str(label) for label in range(int(labels.max()) + 1))


def _with_labels(name: str, labels: list[int], photographs: Photographs) -> np.ndarray:
    found = photographs.labels
    if found is None:
        raise SpecError([Problem(f"data.{name}.labels", "found labels to keep", "need images with labels")])
    there = np.unique(found)
    for place, label in enumerate(labels):
        if label not in there:
            listed = ", ".join(map(str, there[:12])) + (", …" if len(there) > 12 else "")
            problem = Problem(f"data.{name}.labels[{place}]", f"found {label}", f"need labels that occur: {listed}")
            raise SpecError([problem])
    return np.flatnonzero(np.isin(found, labels))


def _fitting(world: World) -> None:
    """Refuse diffusion models that need labels where there are none, or cannot halve images as often as they do."""
    _, height, width = world.shape
    problems = []
    for name, model in world.eco.models.items():
        family = model.family
        if not isinstance(family, s.Diffusion):
            continue
        if family.conditional and world.num_classes is None:
            need = "need labels (`space.label_column`), or `conditional: false`"
            problems.append(Problem(f"models.{name}.family.conditional", "found true for images without labels", need))
        divisor = 2 ** (len(family.channels) - 1)
        if family.pretrained is None and (height % divisor or width % divisor):
            found = f"found {len(family.channels)} levels, which halve the {height} × {width} images {len(family.channels) - 1} times"
            need = f"need fewer levels, or `space.size` that {divisor} divides"
            problems.append(Problem(f"models.{name}.family.channels", found, need))
    if problems:
        raise SpecError(problems)


# --- text -----------------------------------------------------------------------------------------------------------


def _texts(eco: s.Ecosystem) -> World:
    prompts = Prompts()
    data: dict[str, DataSet] = {}
    for name, node in eco.data.items():
        if isinstance(node, s.TextsData):
            rows, inputs, answers = read_texts(name, node, eco.seed)
            filled = [node.template.replace("{input}", text) for text in inputs]
            data[name] = DataSet(name, len(rows), rows, prompts.add(name, inputs, filled, rows), answers)
        elif isinstance(node, s.PreferencesData):
            rows, inputs, chosen, rejected = read_preferences(name, node, eco.seed)
            data[name] = DataSet(name, len(rows), rows, prompts.add(name, inputs, inputs, rows), chosen, rejected)
    return World(eco, prompts, data, "text", ())
