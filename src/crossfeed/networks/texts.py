"""Reading tables of texts: Parquet, JSONL, CSV or a data set on a hub; and picks in TRL's preference format."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossfeed.describe.files import check_file
from crossfeed.describe.hub import HUB, open_hub
from crossfeed.describe.network_nodes import PreferencesData, TextsData
from crossfeed.describe.wording import did_you_mean, known, short
from crossfeed.errors import DataError
from crossfeed.networks.randomness import child_seed

KINDS = (".parquet", ".jsonl", ".ndjson", ".csv")
_BLOCK = 1 << 28


def read_texts(name: str, data: TextsData, seed: int) -> tuple[list[int], list[str], list[str] | None]:
    """Rows, inputs and answers (None: the data set has none) of a table of texts, in the order of the file.

    Args:
        name: The data set's name in the spec, for errors and for the draw of ``rows``.
        data: The node.
        seed: The spec's seed.

    Raises:
        DataError: names the file, the column and the row that cannot be used.
    """
    columns = [data.input_column, *([data.answer_column] if data.answer_column is not None else [])]
    rows, table = _table(name, data, columns, seed)
    texts = [[_text(name, data.file, column, row, cell) for row, cell in zip(rows, cells, strict=True)]
             for column, cells in zip(columns, table, strict=True)]  # fmt: skip
    if data.strip is not None:
        try:
            start = re.compile(data.strip)
        except re.error as error:
            raise DataError(f"data.{name}.strip: found {data.strip!r} ({error}); need a regular expression") from None
        texts[0] = [start.sub("", text, count=1) if start.match(text) else text for text in texts[0]]
    return rows, texts[0], texts[1] if len(texts) > 1 else None


def read_preferences(name: str, data: PreferencesData, seed: int) -> tuple[list[int], list[str], list[str], list[str]]:
    """Rows, prompts, chosen and rejected answers, in the order of the file.

    A cell is text, or a list of chat messages ``{role, content}``. A prompt of one user message is its content; a longer
    conversation becomes paragraphs ``role: content``. An answer is one message of the assistant.

    Args:
        name: The data set's name in the spec, for errors and for the draw of ``rows``.
        data: The node.
        seed: The spec's seed.

    Raises:
        DataError: names the file, the column and the row that cannot be used; prompts that stand only inside ``chosen`` and
            ``rejected`` (TRL's implicit prompts) are refused with what to do.
    """
    columns = [data.prompt_column, data.chosen_column, data.rejected_column]
    rows, (prompts, chosen, rejected) = _table(name, data, columns, seed, implicit=data.prompt_column)
    out_prompts = [_prompt(name, data, row, cell) for row, cell in zip(rows, prompts, strict=True)]
    answers = [[_answer(name, data, column, row, cell) for row, cell in zip(rows, cells, strict=True)]
               for column, cells in ((data.chosen_column, chosen), (data.rejected_column, rejected))]  # fmt: skip
    return rows, out_prompts, answers[0], answers[1]


# --- cells ----------------------------------------------------------------------------------------------------------


def _bad(name: str, file: str, column: str, row: int, found: str, need: str) -> DataError:
    return DataError(f"data.{name}: {file}, column {column!r}, row {row} (counted from 0): found {found}; need {need}")


def clean(text: str) -> str:
    """The text as valid Unicode: lone surrogates, which no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text(name: str, file: str, column: str, row: int, cell: Any) -> str:
    if not isinstance(cell, str):
        raise _bad(name, file, column, row, short(cell), "text")
    return clean(cell)


def _messages(name: str, data: PreferencesData, column: str, row: int, cell: list[Any]) -> list[tuple[str, str]]:
    out = []
    for message in cell:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            need = "messages of the form {role: …, content: …}, both of them text"
            raise _bad(name, data.file, column, row, f"the message {short(message)}", need)
        out.append((clean(role), clean(content)))
    if not out:
        raise _bad(name, data.file, column, row, "no messages", "one or more")
    return out


def _prompt(name: str, data: PreferencesData, row: int, cell: Any) -> str:
    if not isinstance(cell, list):
        return _text(name, data.file, data.prompt_column, row, cell)
    messages = _messages(name, data, data.prompt_column, row, cell)
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)


def _answer(name: str, data: PreferencesData, column: str, row: int, cell: Any) -> str:
    if not isinstance(cell, list):
        return _text(name, data.file, column, row, cell)
    messages = _messages(name, data, column, row, cell)
    if len(messages) > 1 or messages[0][0] != "assistant":
        roles = ", ".join(role for role, _ in messages[:4]) + (", …" if len(messages) > 4 else "")
        need = f"one message of the assistant: move what comes before it to {data.prompt_column!r} (TRL's extract_prompt does)"
        raise _bad(name, data.file, column, row, f"a conversation ({roles})", need)
    return messages[0][1]


# --- tables ---------------------------------------------------------------------------------------------------------


def _table(
    name: str, data: TextsData | PreferencesData, columns: Sequence[str], seed: int, implicit: str | None = None
) -> tuple[list[int], list[list[Any]]]:
    """The rows that are used and their cells by column."""
    where, file = f"data.{name}: {data.file}", data.file
    try:
        names, read = open_table(file)
    except DataError as error:
        text = str(error)
        raise DataError(f"data.{name}.file: {text}" if file in text else f"{where}: {text}") from None
    conditions = data.where if isinstance(data, TextsData) else {}
    for column in dict.fromkeys([*columns, *conditions]):
        if column in names:
            continue
        need = known(names, column).removeprefix("need ")
        if column == implicit and "chosen" in names:
            need = (
                "the prompts in a column of their own: where `chosen` and `rejected` hold the whole conversation, split its "
                f"beginning off (TRL's extract_prompt does){did_you_mean(column, names)}"
            )
        raise DataError(f"{where}: found no column {short(column)}; need {need}")
    try:
        table = read([*columns, *conditions])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not table[0]:
        raise DataError(f"{where}: found no rows; need at least one")
    rows = [row for row, cells in enumerate(zip(*table[len(columns) :], strict=True))
            if cells == tuple(conditions.values())] if conditions else list(range(len(table[0])))  # fmt: skip
    if not rows:
        raise DataError(
            f"data.{name}.where: found no row of {file} with {conditions}; need texts that its columns hold"
        )
    if data.rows is not None:
        if data.rows > len(rows):
            raise DataError(f"data.{name}.rows: found {data.rows:,}; need at most {len(rows):,}, the rows of {file}")
        draw = np.random.default_rng(child_seed(seed, 0, name, "rows"))
        rows = [rows[i] for i in np.sort(draw.choice(len(rows), data.rows, replace=False)).tolist()]
    return rows, [[cells[row] for row in rows] for cells in table[: len(columns)]]


def open_table(file: str) -> tuple[list[str], Any]:
    """The names of a table's columns and a function that reads some of them: column names to lists of cells.

    Raises:
        DataError: no such file, another kind, or one that cannot be read.
    """
    if file.startswith(HUB):
        dataset = open_hub(file)
        return list(dataset.column_names), lambda columns: [_python(dataset, column) for column in columns]
    path = Path(file).expanduser()
    if path.suffix.lower() not in KINDS:
        raise DataError(f"found {file!r}; need a file that ends in {', '.join(KINDS)}, or hub:NAME:SPLIT")
    check_file(path, file, "texts")
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path)
    return _open_csv(path) if path.suffix.lower() == ".csv" else _open_jsonl(path)


def _python(dataset: Any, column: str) -> list[Any]:
    return list(dataset.data.column(column).to_pylist()) if dataset._indices is None else list(dataset[column])


def _reason(error: Exception) -> str:
    return " ".join(str(error).replace(";", ",").split())[:160] or type(error).__name__


def _open_parquet(path: Path) -> tuple[list[str], Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(columns: Sequence[str]) -> list[list[Any]]:
        try:
            table = pq.read_table(path, columns=list(dict.fromkeys(columns)))
            return [table.column(column).to_pylist() for column in columns]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"found no readable Parquet ({_reason(error)}); need a whole Parquet file") from None

    try:
        return list(pq.read_schema(path).names), read
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"found no readable Parquet ({_reason(error)}); need a whole Parquet file") from None


def _open_csv(path: Path) -> tuple[list[str], Any]:
    import pyarrow as pa
    import pyarrow.csv as pc

    options = {
        "read_options": pc.ReadOptions(block_size=min(path.stat().st_size + 1024, _BLOCK), use_threads=False),
        "parse_options": pc.ParseOptions(newlines_in_values=True),
    }
    try:
        with path.open("rb") as first, pc.open_csv(first, **options) as reader:
            names = list(reader.schema.names)
        convert = pc.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        table = pc.read_csv(path, convert_options=convert, **options)
    except (pa.ArrowException, OSError, ValueError) as error:
        need = "comma-separated texts with a header line, saved as UTF-8"
        raise DataError(f"found no readable CSV ({_reason(error)}); need {need}") from None
    return names, lambda columns: [table.column(column).to_pylist() for column in columns]


def _open_jsonl(path: Path) -> tuple[list[str], Any]:
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    found = f"line {number} that is no JSON ({_reason(error)})"
                    raise DataError(f"found {found}; need one JSON object a line") from None
                if not isinstance(value, dict):
                    raise DataError(f"found {short(value)} in line {number}; need one JSON object a line")
                rows.append((number, value))
    except UnicodeDecodeError:
        raise DataError("found bytes that are not UTF-8; need JSON lines saved as UTF-8") from None
    names = list(dict.fromkeys(key for _, row in rows for key in row))

    def read(columns: Sequence[str]) -> list[list[Any]]:
        for number, row in rows:
            missing = next((column for column in columns if column not in row), None)
            if missing is not None:
                raise DataError(f"found no {short(missing)} in line {number}; need it in every line")
        return [[row[column] for _, row in rows] for column in columns]

    return (names if rows else []), read
