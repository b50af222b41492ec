"""The run folder: written round by round, each round whole or not at all, and read by anyone at any time.

run.json says what was run, on what, with which versions; spec.yaml is the spec as given and spec.json the same with everything
filled in; status.json says how the run ended; rounds/0007 holds the metrics, samples, outputs to show and checkpoints of
round 7; metrics.parquet holds those of all rounds and is made anew from them. docs/run-folder.md has the details.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import Tensor

from crossfeed.describe.schema import CallableReward, Ecosystem
from crossfeed.errors import CrossfeedError, DataError
from crossfeed.record import checkpoints, spec_copy, tables
from crossfeed.record.commit import clean, is_locked, locked, replace_file, storage, sync_folder, whole_folder
from crossfeed.record.environment import environment
from crossfeed.record.pool import Pool
from crossfeed.record.round import METRICS, Metric, RoundRecord, Shown, to_json, write_round
from crossfeed.record.rounds import NAME, Rounds

if TYPE_CHECKING:
    from crossfeed.networks.world import Prompts, World

__all__ = ["Metric", "RoundRecord", "RunFolder", "Shown", "is_run"]


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a run."""
    return os.path.isfile(os.path.join(path, "run.json"))


class RunFolder:
    """A run on disk.

    Everything read from a round is checked against its SHA-256 first. Reading works while another process writes.

    Attributes:
        path: The folder.
        eco: The resolved spec.
        options: How it was started: rounds, device, dtype, regime, checkpoints…
        checkpoints: ``all``, or ``last``: those of round 0 and of the last two rounds are kept.
    """

    def __init__(self, path: Path, eco: Ecosystem, options: dict[str, Any]) -> None:
        self.path, self.eco, self.options = path, eco, options
        self.checkpoints = options.get("checkpoints") or eco.run.checkpoints
        code = " --allow-code" if any(isinstance(reward, CallableReward) for reward in eco.rewards.values()) else ""
        self._resume = f"crossfeed run {shlex.quote(str(path))} --resume{code}"
        self._rounds = Rounds(path / "rounds", eco.names, self._resume)
        self._world: World | None = None
        self._metrics: dict[str, pa.Table] = {}
        self._writing = False

    # --- making and opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        eco: Ecosystem,
        *,
        spec_text: str | None = None,
        spec_file: str | None = None,
        command: str = "",
        options: dict[str, Any] | None = None,
    ) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: New, or without a run in it.
            eco: The ecosystem.
            spec_text: The spec as given; None when it was made in Python.
            spec_file: Its file name.
            command: How to do it again.
            options: How it is started, as JSON.

        Raises:
            CrossfeedError: there is a run already, or the folder cannot be written.
        """
        folder = Path(path)
        with storage(folder, "the run", ", or give --out another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                _refuse_used(folder)
                spec = spec_copy.to_json(eco, folder)
                if spec_text is not None:
                    replace_file(folder / "spec.yaml", spec_text.encode("utf-8", "replace"))
                replace_file(folder / "spec.json", spec)
                (folder / "rounds").mkdir(exist_ok=True)
                home = os.path.expanduser("~")
                about = {
                    "format": "crossfeed-run",
                    "version": 1,
                    "name": eco.name,
                    "command": command.replace(home, "~") if len(home) > 1 else command,
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seed": eco.seed,
                    "spec_file": None if spec_file is None else os.path.basename(spec_file),
                    "spec_sha256": spec_copy.digest(eco),
                    "spec_json_sha256": hashlib.sha256(spec).hexdigest(),
                    "options": options or {},
                    **environment(),
                }
                replace_file(folder / "run.json", to_json(about))
                sync_folder(folder)
        return cls(folder, eco, dict(options or {}))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, allow_code: bool = False) -> RunFolder:
        """Open the folder of a run that is active, finished or was killed. Nothing in it is executed.

        Args:
            path: The folder.
            allow_code: Accept rewards that name Python functions. They are imported only when the run is continued, so
                True is safe for reading.

        Raises:
            DataError: there is no run, or run.json or spec.json are damaged.
            CrossfeedError: a reward names a Python function, and code is not allowed.
        """
        folder = Path(path)
        if not is_run(folder):
            what = (
                "is no folder of a run" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
            )
            raise DataError(f"{folder}: {what}; give the folder that `crossfeed run SPEC --out DIR` made")
        try:
            about = json.loads((folder / "run.json").read_bytes())
            spec = (folder / "spec.json").read_bytes()
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); restore it from a copy") from None
        except (ValueError, RecursionError):
            raise DataError(f"{folder / 'run.json'}: was cut short or changed; restore it from a copy") from None
        if not isinstance(about, dict) or about.get("format") != "crossfeed-run":
            raise DataError(f"{folder / 'run.json'}: describes no run; give the folder that `crossfeed run` made")
        if about.get("version") != 1:
            raise DataError(
                f"{folder}: found a run of version {about.get('version')!r}; this Crossfeed reads version 1"
            )
        if hashlib.sha256(spec).hexdigest() != about.get("spec_json_sha256"):
            raise DataError(
                f"{folder / 'spec.json'}: was changed after the run began, so it no longer says what was run; restore it, "
                "or start another run with the changed spec"
            )
        eco = spec_copy.from_json(spec, folder / "spec.json")
        functions = [reward.function for reward in eco.rewards.values() if isinstance(reward, CallableReward)]
        if functions and not allow_code:
            raise CrossfeedError(
                f"{folder}: its rewards name Python functions ({', '.join(functions[:3])}); pass --allow-code (in Python "
                "allow_code=True) if you trust this run"
            )
        return cls(folder, eco, dict(about["options"]))

    @property
    def world(self) -> World:
        """Data and prompts of the run; read when first asked for, or set by who has them."""
        if self._world is None:
            from crossfeed.networks.world import open_world

            self._world = open_world(self.eco)
        return self._world

    @world.setter
    def world(self, world: World) -> None:
        self._world = world

    @property
    def prompts(self) -> Prompts:
        """The run's table of inputs."""
        return self.world.prompts

    @cached_property
    def about(self) -> dict[str, Any]:
        """run.json: versions, hardware, command."""
        found: dict[str, Any] = json.loads((self.path / "run.json").read_bytes())
        return found

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[RunFolder]:
        """Keep other writers out, and clean up after killed ones, while the block commits rounds.

        Raises:
            CrossfeedError: another process writes here, or the folder cannot be written.
            DataError: a round is damaged; says how to go back to the one before.
        """
        with ExitStack() as stack:
            with self._storage("the lock"):
                stack.enter_context(locked(self.path))
            with self._storage("the folder, for cleaning up after a killed run,"):
                clean(self.path)
                clean(self._rounds.path)
                for problem in self._rounds.unfinished():
                    raise DataError(problem)
                if self.checkpoints == "last":
                    self._rounds.prune()
                if self.rounds:
                    self._derive()
            self._writing = True
            try:
                yield self
            finally:
                self._writing = False

    def commit(self, record: RoundRecord) -> None:
        """Add a finished round: as a whole or, when anything fails, not at all. Then drop checkpoints not to be kept.

        Raises:
            CrossfeedError: the disk is full or the folder cannot be written; what was finished before is untouched.
        """
        if not self._writing:
            raise CrossfeedError(f"{self.path}: round {record.round} is committed outside of `with folder.writing():`")
        rounds = self.rounds
        if record.round != (rounds[-1] + 1 if rounds else 0):
            have = f"has rounds 0 to {rounds[-1]}" if rounds else "has no rounds yet"
            raise CrossfeedError(f"{self.path}: {have}; found round {record.round}; need the one that follows")
        world = self.world if record.pools or record.shown else None
        with self._storage(f"round {record.round}"), whole_folder(self._rounds.folder(record.round)) as partial:
            write_round(partial, record, self._rounds.names, world)
        if self.checkpoints == "last":
            self._rounds.prune()
        with suppress(OSError):  # the round is safe; a full disk will show at the next one
            self._derive()
            if self._read_status().get("result") is not None:
                replace_file(self.path / "status.json", to_json({"result": None, "reason": ""}))

    def finish(self, result: str, reason: str = "") -> None:
        """Note how the run ended: ``finished``, ``collapsed``, ``diverged`` or ``failed``, and why."""
        with self._storage("status.json"):
            replace_file(self.path / "status.json", to_json({"result": result, "reason": reason}))

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> list[int]:
        """Finished rounds, 0 for the start; without those whose round.json is damaged (see :meth:`verify`)."""
        return self._rounds.finished

    @property
    def status(self) -> dict[str, Any]:
        """``state`` (running, stopped or ended), ``result`` and ``reason`` where it ended, and the last ``round``."""
        found, rounds = self._read_status(), self.rounds
        result = found.get("result")
        state = "running" if is_locked(self.path) else "stopped" if result is None else "ended"
        last = rounds[-1] if rounds else None
        return {"state": state, "result": result, "reason": found.get("reason") or "", "round": last}

    def round_info(self, round: int) -> dict[str, Any]:
        """What the round noted (:attr:`RoundRecord.info`), and its ``round``, ``seconds``, ``models`` and ``files``."""
        about = self._rounds.about(round)
        return {**about["info"], **{key: about[key] for key in ("round", "seconds", "models", "files")}}

    def parameters(self, round: int, model: str) -> dict[str, Tensor]:
        """A model's parameters after a round, on the CPU: those of its last training up to that round.

        Raises:
            DataError: damaged, not kept, or no such round or model.
        """
        return self._tensors(self._rounds.last(round, model, "parameters"), model, "parameters")

    def optimizer(self, round: int, model: str) -> dict[str, Tensor] | None:
        """The optimiser's state that goes with :meth:`parameters`; None where it is not kept."""
        found = self._rounds.last(round, model, "parameters")
        has = "optimizer" in self._rounds.about(found)["models"][model]
        return self._tensors(found, model, "optimizer") if has else None

    def pool(self, round: int, model: str) -> Pool:
        """A model's new rows of a round, or of the last round before it that has some, exactly as they were committed."""
        found = self._rounds.last(round, model, "samples")
        return tables.pool_of(self._table(found, model, "samples"), str(self._rounds.file(found, model, "samples")))

    def samples(self, round: int, model: str, columns: list[str] | None = None) -> pa.Table:
        """A model's new rows of a round, as a table.

        Raises:
            DataError: damaged, or the model was left out of that round.
        """
        return self._table(round, model, "samples", columns)

    def shown(self, round: int, model: str) -> pa.Table:
        """Outputs kept for showing: round, model, domain, prompt_id, prompt, output, reward (images: label).

        Raises:
            DataError: damaged, or none were kept in that round.
        """
        return self._table(round, model, "shown")

    def recorded(self, model: str) -> list[int]:
        """Rounds that have samples of a model."""
        return self._rounds.holding(model, "samples")

    def metrics(self) -> pa.Table:
        """All rounds: round, model, metric, domain, value, standard_error."""
        tables_by_round = [self._round_metrics(number) for number in self.rounds]
        return pa.concat_tables(tables_by_round) if tables_by_round else tables.METRICS.empty_table()

    def verify(self, rounds: Sequence[int] | None = None) -> list[str]:
        """Check every file against its SHA-256.

        Args:
            rounds: Which; None for all, and whether rounds are missing or unfinished.

        Returns:
            Problems, each with the file and what to do; empty when all is well.
        """
        return self._rounds.problems(rounds)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _table(self, number: int, model: str, what: str, columns: list[str] | None = None) -> pa.Table:
        file = str(self._rounds.file(number, model, what))
        return tables.decode(self._rounds.read(number, model, what), file, columns)

    def _tensors(self, number: int, model: str, what: str) -> dict[str, Tensor]:
        return checkpoints.decode(self._rounds.read(number, model, what), str(self._rounds.file(number, model, what)))

    def _round_metrics(self, number: int) -> pa.Table:
        key = self._rounds.about(number)["files"][METRICS]["sha256"]
        if key not in self._metrics:
            self._metrics[key] = tables.decode(self._rounds.checked(number, METRICS), f"round {number}: {METRICS}")
        return self._metrics[key]

    def _derive(self) -> None:
        """Make the metrics.parquet of all rounds anew where it is not up to date."""
        data, file = tables.encode(self.metrics()), self.path / METRICS
        with suppress(OSError):
            if file.read_bytes() == data:
                return
        replace_file(file, data)

    def _read_status(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _storage(self, what: str) -> Any:
        rounds = self.rounds
        safe = f"rounds 0 to {rounds[-1]} are safe" if rounds else "no round was finished yet"
        return storage(self.path, what, f", then go on with `{self._resume}`; {safe}")


def _refuse_used(folder: Path) -> None:
    if is_run(folder):
        again = f"crossfeed run {shlex.quote(str(folder))} --resume"
        raise CrossfeedError(f"{folder}: holds a run already; go on with `{again}`, or give --out another folder")
    if (folder / "rounds").is_dir() and any(NAME.fullmatch(name) for name in os.listdir(folder / "rounds")):
        raise CrossfeedError(f"{folder}: holds rounds without a run.json; restore it, or give --out another folder")
