"""Outputs that a team has on file already: prompts with the candidates that a model gave, their rewards or what people picked.

One row a prompt, Parquet, JSONL or CSV, in one of two forms:

    prompt, candidates [, rewards] [, picked]     candidates and rewards are lists of equal length, picked counts from 0
    prompt, chosen, rejected                      TRL's preference format: two candidates, the first one picked

The candidates must be what the model gives *as it is now*: the score of samples of an older checkpoint is not zero on average, which
the audit checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Text
from crossfeed.describe.wording import short
from crossfeed.errors import DataError, NotAvailableError
from crossfeed.networks.texts import clean, open_table
from crossfeed.networks.world import World


@dataclass(frozen=True, eq=False)
class Recorded:
    """Outputs of one model on file.

    Attributes:
        file: Where they stand.
        prompts: (n,) int64 indices into the table of inputs.
        outputs: n·K texts.
        candidates: K.
        rewards: (n, K) float64 by the model's own people; None: not on file.
        picked: (n,) int64 which candidate people picked; None: not on file.
    """

    file: str
    prompts: Tensor
    outputs: list[str]
    candidates: int
    rewards: Tensor | None
    picked: Tensor | None


def read_recorded(model: str, file: str | Path, world: World) -> Recorded:
    """Read one model's outputs; prompts that the world does not know are added to its table of inputs.

    Args:
        model: Its name, for errors.
        file: Parquet, JSONL or CSV.
        world: Text only.

    Raises:
        NotAvailableError: outcomes are no texts.
        DataError: names the file, the column and the row that cannot be used.
    """
    where = f"outputs of {model}: {file}"
    if not isinstance(world.eco.space, Text):
        raise NotAvailableError(
            f"{where}: recorded outputs are read for texts only; leave the option out to sample them"
        )
    names, read = open_table(str(file))
    if "prompt" not in names:
        raise DataError(f"{where}: found no column 'prompt'; need prompt with candidates, or with chosen and rejected")
    if "candidates" in names:
        extra = [name for name in ("rewards", "picked") if name in names]
        table = dict(zip(["prompt", "candidates", *extra], read(["prompt", "candidates", *extra]), strict=True))
    elif {"chosen", "rejected"} <= set(names):
        prompts, chosen, rejected = read(["prompt", "chosen", "rejected"])
        pairs = [[a, b] for a, b in zip(chosen, rejected, strict=True)]
        table = {"prompt": prompts, "candidates": pairs, "picked": [0] * len(pairs)}
    else:
        raise DataError(f"{where}: found columns {', '.join(names[:8])}; need candidates, or chosen and rejected")
    if not table["prompt"]:
        raise DataError(f"{where}: found no rows; need at least two")
    size = len(table["candidates"][0]) if isinstance(table["candidates"][0], list) else 0
    outputs: list[str] = []
    for row, cell in enumerate(table["candidates"]):
        if not isinstance(cell, list) or len(cell) != size or size < 1 or not all(isinstance(c, str) for c in cell):
            need = f"a list of {size} texts, as in row 0" if size else "a list of texts"
            raise DataError(
                f"{where}, column 'candidates', row {row} (counted from 0): found {short(cell)}; need {need}"
            )
        outputs += [clean(text) for text in cell]
    return Recorded(
        str(file),
        _prompts(where, table["prompt"], world),
        outputs,
        size,
        _rewards(where, table.get("rewards"), size),
        _picked(where, table.get("picked"), size),
    )


def _prompts(where: str, cells: list[Any], world: World) -> Tensor:
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise DataError(f"{where}, column 'prompt', row {row} (counted from 0): found {short(cell)}; need text")
    texts = [clean(cell) for cell in cells]
    known = {text: i for i, text in reversed(list(enumerate(world.prompts.texts)))}
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        known |= dict(zip(new, world.prompts.add("recorded", new, new, [-1] * len(new)).tolist(), strict=True))
    return torch.tensor([known[text] for text in texts])


def _rewards(where: str, cells: list[Any] | None, size: int) -> Tensor | None:
    if cells is None:
        return None
    for row, cell in enumerate(cells):
        good = isinstance(cell, list) and len(cell) == size and all(isinstance(v, (int, float)) for v in cell)
        if not good or not bool(torch.tensor(cell, dtype=torch.float64).isfinite().all()):
            need = f"a list of {size} finite numbers, one a candidate"
            raise DataError(f"{where}, column 'rewards', row {row} (counted from 0): found {short(cell)}; need {need}")
    return torch.tensor(cells, dtype=torch.float64)


def _picked(where: str, cells: list[Any] | None, size: int) -> Tensor | None:
    if cells is None:
        return None
    for row, cell in enumerate(cells):
        if isinstance(cell, bool) or not isinstance(cell, int) or not 0 <= cell < size:
            need = f"a whole number from 0 to {size - 1}"
            raise DataError(f"{where}, column 'picked', row {row} (counted from 0): found {short(cell)}; need {need}")
    return torch.tensor(cells)
