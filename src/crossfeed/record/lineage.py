r"""Where samples come from: one sample's ancestry, and what share of each training set is how far from real data.

Let D_j,r be the law of the number of generations of a sample drawn from model j's training set of round r: real data and picks
that people made are generation 0, and an output of j, trained last in round r, is one generation further than a draw from what
j was trained on,

    D_i,t = Σ over rows z of i's training set of round t of (1/n) · (δ_0 if z is real, else 1 + D_producer(z),producer_round(z)).

What was trained before round 1 (the start, r = 0) counts as real data. The recursion is exact: rows are grouped by producer and
round, and every training set is worked out once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfeed.errors import DataError
from crossfeed.record.folder import RunFolder
from crossfeed.record.training_set import Recipe

_ID = re.compile(r"r([0-9]+)-(.+)-([0-9]+)", re.DOTALL)
_GROUP = ["kind", "producer", "producer_round", "data"]
Group = tuple[str, str | None, int | None, str | None]
Key = TypeVar("Key", bound=Hashable)
Law = dict[Key, float]


def ancestry(folder: RunFolder, sample_id: str) -> list[dict[str, Any]]:
    """A sample, the row whose input it answers, that row's own, and so on back to real data.

    Args:
        folder: The run.
        sample_id: E.g. ``r0003-p-000017``.

    Returns:
        The sample first. Each entry has the columns of the samples (``sample_id``, ``round``, ``model``, ``prompt``, ``output``,
        ``source``, ``kind``, ``producer``, ``producer_round``, ``data``, ``row``, ``parent``, ``picker``, ``why``…); images as
        PNG bytes, vectors as lists. ``candidates`` is a list of ``{"reward", "picked", "output"}``, the output None where
        candidates were not kept.

    Raises:
        DataError: there is no such sample, or a file is damaged.
    """
    found = [_sample(folder, sample_id)]
    seen = {sample_id}
    while (parent := found[-1]["parent"]) is not None:
        if parent in seen:
            raise DataError(
                f"{folder.path}: the ancestry of {sample_id} goes in a circle at {parent}; check with verify()"
            )
        seen.add(parent)
        found.append(_sample(folder, parent))
    return found


def descent(folder: RunFolder) -> pa.Table:
    """How far training sets are from real data.

    Args:
        folder: The run.

    Returns:
        Columns round, model, generation, share: for every round after the start and every model trained in it, the share of its
        training set that is that many generations from real data. Shares of a round and model sum to 1.

    Raises:
        DataError: a file is damaged.
    """
    laws = _Laws(folder, start=lambda model: 0, leaf=lambda group: 0, further=lambda generation: generation + 1)
    rows = [(t, m, d, share) for t, m, law in laws.all() for d, share in sorted(law.items())]
    return _table(rows, ("generation", pa.int32()))


def origins(folder: RunFolder) -> pa.Table:
    """Which real data training sets go back to, through however many generations.

    Args:
        folder: The run.

    Returns:
        Columns round, model, data, share: data is the name of a data set, null for what goes back to a model's start, that is to
        whatever it was trained on before round 1. Shares of a round and model sum to 1.

    Raises:
        DataError: a file is damaged.
    """
    laws = _Laws(folder, start=lambda model: "", leaf=lambda group: group[3] or "", further=lambda data: data)
    rows = [(t, m, data or None, share) for t, m, law in laws.all() for data, share in sorted(law.items())]
    return _table(rows, ("data", pa.string()))


class _Laws:
    """Laws of something that rows pass on to what is made from them, by training set.

    Args:
        folder: The run.
        start: Its value for what a model was trained on before round 1.
        leaf: For a real row or a pick.
        further: For an output, from the value of what its producer was trained on.
    """

    def __init__(
        self,
        folder: RunFolder,
        start: Callable[[str], Any],
        leaf: Callable[[Group], Any],
        further: Callable[[Any], Any],
    ) -> None:
        self.folder, self.start, self.leaf, self.further = folder, start, leaf, further
        self._laws: dict[tuple[str, int], Law[Any]] = {}
        self._groups: dict[tuple[str, int], tuple[np.ndarray, list[Group]]] = {}
        self._open: set[tuple[str, int]] = set()

    def all(self) -> Iterator[tuple[int, str, Law[Any]]]:
        """Round, model and law, by round."""
        recorded = {model: set(self.folder.recorded(model)) for model in self.folder.eco.names}
        for number in self.folder.rounds:
            for model in self.folder.eco.names:
                if number > 0 and number in recorded[model]:
                    yield number, model, self.of(model, number)

    def of(self, model: str, number: int) -> Law[Any]:
        """The law of the training set of a model, trained last in round ``number``."""
        key = model, number
        if number == 0:
            return {self.start(model): 1.0}
        if key not in self._laws:
            if key in self._open:
                raise DataError(
                    f"{self.folder.path}: {model} of round {number} descends from itself; check with verify()"
                )
            self._open.add(key)
            self._laws[key] = self._mixture(model, number)
            self._open.remove(key)
        return self._laws[key]

    def _mixture(self, model: str, number: int) -> Law[Any]:
        counts = self._counts(model, number)
        total = sum(counts.values())
        law: Law[Any] = {}
        for group, count in counts.items():
            _, producer, producer_round, _ = group
            if producer is None or producer_round is None:
                parts = {self.leaf(group): 1.0}
            else:
                parts = {self.further(value): share for value, share in self.of(producer, producer_round).items()}
            for value, share in parts.items():
                law[value] = law.get(value, 0.0) + share * count / total
        return law

    def _counts(self, model: str, number: int) -> dict[Group, int]:
        """Rows of a training set by group; the training set may reach back to rows of earlier rounds."""
        about = self.folder.round_info(number).get("training_sets") or {}
        recipe = Recipe.read(about[model]) if model in about else Recipe([number])
        parts = [self._rows(model, at) for at in recipe.rounds]
        groups = [group for _, found in parts for group in found]
        starts = np.cumsum([0, *(len(found) for _, found in parts)])
        codes = np.concatenate([code + start for (code, _), start in zip(parts, starts[:-1], strict=True)])
        if recipe.index is not None:
            codes = codes[np.asarray(recipe.index)]
        counts: dict[Group, int] = {}
        for group, count in zip(groups, np.bincount(codes, minlength=len(groups)).tolist(), strict=True):
            if count:
                counts[group] = counts.get(group, 0) + count
        return counts

    def _rows(self, model: str, number: int) -> tuple[np.ndarray, list[Group]]:
        """The group of each new row of a round, and the groups."""
        key = model, number
        if key not in self._groups:
            table = self.folder.samples(number, model, _GROUP)
            columns = [table.column(c).combine_chunks().dictionary_encode() for c in _GROUP]
            values = [[*column.dictionary.to_pylist(), None] for column in columns]
            packed = np.zeros(table.num_rows, np.int64)
            for column, known in zip(columns, values, strict=True):
                codes = column.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)
                packed = packed * len(known) + codes
            distinct, inverse = np.unique(packed, return_inverse=True)
            places = np.unravel_index(distinct, [len(known) for known in values])
            found = [tuple(known[i] for known, i in zip(values, at, strict=True)) for at in zip(*places, strict=True)]
            self._groups[key] = inverse, found
        return self._groups[key]


def _sample(folder: RunFolder, sample_id: str) -> dict[str, Any]:
    """One row, as plain values."""
    match = _ID.fullmatch(sample_id)
    if match is None or match[2] not in folder.eco.models:
        models = ", ".join(folder.eco.names)
        raise DataError(
            f"{folder.path}: found no sample {sample_id!r}; ids look like r0003-p-000017; the models are {models}"
        )
    number, model = int(match[1]), match[2]
    table = folder.samples(number, model)
    table = table.filter(pc.equal(table.column("sample_id"), sample_id))
    if table.num_rows == 0:
        have = folder.samples(number, model, ["sample_id"]).column("sample_id")
        span = f"{have[0]} to {have[-1]}" if len(have) else "none"
        raise DataError(f"{folder.path}: found no sample {sample_id!r}; {model} has {span} in round {number}")
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    kept = row["candidates"] or [None] * len(row["rewards"])
    row["candidates"] = [
        {"reward": reward, "picked": at == row["picked"], "output": _shown(output)}
        for at, (reward, output) in enumerate(zip(row["rewards"], kept, strict=True))
    ]
    row["output"] = _shown(row["output"])
    return row


def _shown(output: Any) -> Any:
    """An image as its PNG bytes, anything else as it is."""
    return output["bytes"] if isinstance(output, dict) else output


def _table(rows: list[tuple[int, str, Any, float]], third: tuple[str, pa.DataType]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 4
    types = [("round", pa.int32()), ("model", pa.string()), third, ("share", pa.float64())]
    return pa.table({name: pa.array(values, kind) for (name, kind), values in zip(types, columns, strict=True)})
