"""Picks of a run as preferences: prompt, chosen, rejected, in the format that TRL trains on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from crossfeed.errors import CrossfeedError, NotAvailableError, SettingError
from crossfeed.record.commit import storage, whole_file
from crossfeed.record.folder import RunFolder

Pairs = Literal["all", "worst"]
_COLUMNS = ["sample_id", "prompt", "kind", "rewards", "picked", "output", "candidates"]
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def export_preferences(
    folder: RunFolder,
    path: str | os.PathLike[str],
    rounds: Sequence[int] | None = None,
    models: Sequence[str] | None = None,
    *,
    pairs: Pairs = "all",
    conversational: bool = False,
) -> int:
    """Write the picks in a run's training sets as preferences.

    A pick is set against candidates that were offered with it and lost. Candidates equal to the pick word for word are left
    out, since they say nothing.

    Args:
        folder: A run on text whose candidates were kept.
        path: The file, .parquet or .jsonl; replaced where it exists, whole or not at all.
        rounds: Only these; None for all.
        models: Only what these were trained on; None for all.
        pairs: ``all``: one row a loser; ``worst``: one row a pick, against the loser with the lowest reward, the first of
            equals.
        conversational: Lists of messages with role and content instead of texts.

    Returns:
        Rows written: prompt, chosen, rejected, reward_chosen, reward_rejected (of the first curator), sample_id, round, model.

    Raises:
        NotAvailableError: outcomes are images or vectors, or candidates were not kept.
        SettingError: the name ends otherwise, or there is no such round or model.
        CrossfeedError: the file cannot be written, or there is no pick.
    """
    target = Path(path)
    _check(folder, target, rounds, models)
    kind = _MESSAGES if conversational else pa.string()
    schema = pa.schema(
        [
            *((name, kind) for name in ("prompt", "chosen", "rejected")),
            *((name, pa.float64()) for name in ("reward_chosen", "reward_rejected")),
            *(("sample_id", pa.string()), ("round", pa.int32()), ("model", pa.string())),
        ]
    )
    total = 0
    with storage(target, "the preferences", ""), whole_file(target) as file:
        batches = _batches(folder, rounds, models, pairs, conversational)
        if target.suffix == ".jsonl":
            for batch in batches:
                total += len(batch)
                file.write("".join(json.dumps(row) + "\n" for row in batch).encode("ascii"))
        else:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for batch in filter(None, batches):  # `datasets` cannot read row groups without rows
                    total += len(batch)
                    writer.write_table(pa.Table.from_pylist(batch, schema))
        if total == 0:
            raise CrossfeedError(
                f"{folder.path}: holds no picks in the chosen rounds and models that beat another answer; choose others, or "
                "run with a curated source"
            )
    return total


def _check(folder: RunFolder, target: Path, rounds: Sequence[int] | None, models: Sequence[str] | None) -> None:
    """Refuse what cannot be written before anything is."""
    if target.suffix not in (".parquet", ".jsonl"):
        raise SettingError(
            f"{target}: ends in {target.suffix or 'nothing'!r}; need a name that ends in .parquet or .jsonl"
        )
    if folder.eco.space.kind != "text":
        raise NotAvailableError(
            f"{folder.path}: its outcomes are {folder.eco.space.kind}; the preference format (prompt, chosen, rejected) holds "
            "texts. Read candidates, rewards and picks of images and vectors from rounds/*/samples-*.parquet"
        )
    for found, have, what in ((rounds, folder.rounds, "round"), (models, folder.eco.names, "model")):
        wrong = [one for one in found or () if one not in have]
        if wrong:
            raise SettingError(f"{folder.path}: found no {what} {wrong[0]!r}; need one of {', '.join(map(str, have))}")


def _batches(
    folder: RunFolder,
    rounds: Sequence[int] | None,
    models: Sequence[str] | None,
    pairs: Pairs,
    conversational: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Rows by round and model."""
    for model in models or folder.eco.names:
        for number in folder.recorded(model):
            if rounds is None or number in rounds:
                table = folder.samples(number, model, _COLUMNS)
                yield [
                    _row(sample, loser, number, model, conversational)
                    for sample in table.to_pylist()
                    for loser in _losers(folder, sample, pairs)
                ]


def _losers(folder: RunFolder, sample: dict[str, Any], pairs: Pairs) -> list[int]:
    """Indices of the candidates a pick is set against."""
    if sample["kind"] != "curated" or sample["picked"] < 0:
        return []
    offered = sample["candidates"]
    if offered is None:
        raise NotAvailableError(
            f"{folder.path}: the candidates of {sample['sample_id']} were not kept, so there is nothing to set its pick "
            "against; run again with `run.record_candidates: true`"
        )
    losers = [i for i, text in enumerate(offered) if i != sample["picked"] and text != sample["output"]]
    return [min(losers, key=lambda i: sample["rewards"][i])] if pairs == "worst" and losers else losers


def _row(sample: dict[str, Any], loser: int, number: int, model: str, conversational: bool) -> dict[str, Any]:
    texts = {
        "prompt": ("user", sample["prompt"]),
        "chosen": ("assistant", sample["output"]),
        "rejected": ("assistant", sample["candidates"][loser]),
    }
    return {
        **{name: [{"role": role, "content": text}] if conversational else text for name, (role, text) in texts.items()},
        "reward_chosen": sample["rewards"][sample["picked"]],
        "reward_rejected": sample["rewards"][loser],
        "sample_id": sample["sample_id"],
        "round": number,
        "model": model,
    }
