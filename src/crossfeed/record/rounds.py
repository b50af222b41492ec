"""The rounds of a run on disk: which are finished, every file checked when it is read, and the way back from damage."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossfeed.errors import DataError
from crossfeed.record.checkpoints import not_kept
from crossfeed.record.round import CHECKPOINTS, INFO, file_names, read_info, read_whole

NAME = re.compile(r"[0-9]{4,}")


class Rounds:
    """The folder `rounds` of a run.

    Args:
        path: The folder.
        models: Names of the models.
        resume: The command that continues the run, for errors.
    """

    def __init__(self, path: Path, models: Sequence[str], resume: str) -> None:
        self.path, self.names, self._resume = path, file_names(models), resume
        self._seen: dict[int, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def folder(self, number: int) -> Path:
        """Where a round is or will be."""
        return self.path / f"{number:04d}"

    def numbers(self) -> list[int]:
        """Rounds that have a folder, finished or not."""
        try:
            return sorted(int(name) for name in os.listdir(self.path) if NAME.fullmatch(name))
        except OSError:
            return []

    @property
    def finished(self) -> list[int]:
        """Rounds with a good round.json."""
        return [number for number in self.numbers() if self._info(number) is not None]

    def about(self, number: int) -> dict[str, Any]:
        """A round's round.json.

        Raises:
            DataError: there is no such round, or its round.json is damaged; says how to go back.
        """
        found = self._info(number)
        if found is not None:
            return found
        if self.folder(number).is_dir():
            try:
                return read_info(self.folder(number))
            except DataError as error:
                raise DataError(f"{error}; {self.way_back(number)}") from None
        have = self.finished
        need = f"need one of 0 to {have[-1]}" if have else "no round is finished yet"
        raise DataError(f"{self.path.parent}: found no round {number}; {need}")

    def holding(self, model: str, what: str) -> list[int]:
        """Rounds that have, or had, a file of a model: ``samples``, ``shown``, ``parameters`` or ``optimizer``."""
        self._check(model)
        return [number for number in self.finished if what in self.about(number)["models"].get(model, {})]

    def last(self, number: int, model: str, what: str) -> int:
        """The last round up to ``number`` that has a file of a model."""
        self.about(number)
        found = [n for n in self.holding(model, what) if n <= number]
        if not found:
            raise DataError(
                f"{self.path.parent}: holds no {what} of {model!r} up to round {number}; none were recorded"
            )
        return found[-1]

    def file(self, number: int, model: str, what: str) -> Path:
        """Where a model's file of a round is.

        Raises:
            DataError: the model has none in that round.
        """
        about = self.about(number)
        self._check(model)
        if what not in about["models"].get(model, {}):
            had = ", ".join(n for n, files in about["models"].items() if what in files) or "no model"
            raise DataError(f"{self.folder(number)}: holds no {what} of {model!r}; it has those of {had}")
        return self.folder(number) / str(about["models"][model][what])

    def read(self, number: int, model: str, what: str) -> bytes:
        """A model's file of a round, checked.

        Raises:
            DataError: there is none, it was not kept, or it is damaged; says what to do.
        """
        path = self.file(number, model, what)
        if path.name in self.dropped(number):
            kept = [n for n in self.holding(model, what) if self.file(n, model, what).exists()]
            raise DataError(
                f"{path}: was not kept; there are rounds {', '.join(map(str, kept))} (`run.checkpoints: all` keeps every "
                "round's)"
            )
        return self.checked(number, path.name)

    def checked(self, number: int, name: str) -> bytes:
        """A file of a round by its name, checked against its SHA-256."""
        try:
            return read_whole(self.folder(number) / name, self.about(number)["files"][name])
        except DataError as error:
            raise DataError(f"{error}; {self.way_back(number)}") from None

    def dropped(self, number: int) -> set[str]:
        """Checkpoints of a round that are gone because only round 0's and the last two of each model are kept."""
        out = set()
        for model, files in self.about(number)["models"].items():
            for what in CHECKPOINTS:
                gone = what in files and not (self.folder(number) / files[what]).exists()
                if gone and number in not_kept(self.holding(model, what)):
                    out.add(files[what])
        return out

    def prune(self) -> None:
        """Drop checkpoints but round 0's and the last two of each model; what cannot be dropped stays."""
        for model in self.names:
            for what in CHECKPOINTS:
                for number in not_kept(self.holding(model, what)):
                    with suppress(OSError):
                        self.file(number, model, what).unlink(missing_ok=True)

    def problems(self, rounds: Sequence[int] | None = None) -> list[str]:
        """What a check of every file against its SHA-256 finds, each with what to do.

        Args:
            rounds: Which; None for all, and whether rounds are missing or unfinished.
        """
        found = self.unfinished() if rounds is None else []
        for number in self.finished if rounds is None else rounds:
            try:
                files = set(self.about(number)["files"]) - self.dropped(number)
            except DataError as error:
                found.append(str(error))
                continue
            for name in sorted(files):
                try:
                    self.checked(number, name)
                except DataError as error:
                    found.append(str(error))
        return found

    def unfinished(self) -> list[str]:
        """Rounds that are missing or have no good round.json, with what to do."""
        numbers, found = self.numbers(), []
        for number in range(numbers[-1] + 1 if numbers else 0):
            if number not in numbers:
                missing = f"{self.folder(number)}: is missing, though later rounds are there"
                found.append(f"{missing}; {self.way_back(number)}")
            elif self._info(number) is None:
                try:
                    read_info(self.folder(number))
                except DataError as error:
                    found.append(f"{error}; {self.way_back(number)}")
        return found

    def way_back(self, number: int) -> str:
        """The commands that take up the run before a damaged round, in words."""
        good = [n for n in self.finished if n < number and self._complete(n)]
        if not good:
            return "start the run again in another folder"
        doomed = [shlex.quote(str(self.folder(n))) for n in self.numbers() if n > good[-1]]
        return f"go back to round {good[-1]} with `rm -r {' '.join(doomed)}` and `{self._resume}`"

    def _check(self, model: str) -> None:
        if model not in self.names:
            raise DataError(f"{self.path.parent}: found no model {model!r}; need one of {', '.join(self.names)}")

    def _complete(self, number: int) -> bool:
        """Whether the run can be taken up after this round: the parameters of every model are there."""
        try:
            return all(self.file(self.last(number, m, "parameters"), m, "parameters").exists() for m in self.names)
        except DataError:
            return False

    def _info(self, number: int) -> dict[str, Any] | None:
        """round.json, read again only when the file is another; None when it is no good."""
        try:
            stat = os.stat(self.folder(number) / INFO)
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if number not in self._seen or self._seen[number][0] != mark:
                self._seen[number] = mark, read_info(self.folder(number))
        except (OSError, DataError):
            self._seen.pop(number, None)
            return None
        return self._seen[number][1]
