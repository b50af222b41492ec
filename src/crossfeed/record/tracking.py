"""Metrics to Weights & Biases, MLflow and trackio, through their own clients.

The record on disk is the truth; a tracker gets a copy of each finished round. One that fails is dropped with a warning and the
run goes on; when the run is resumed, what it has missed is sent again. Where it logs to is set as its own documentation says
(WANDB_PROJECT, MLFLOW_TRACKING_URI, …).
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol

from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.record.commit import replace_file
from crossfeed.record.folder import RunFolder
from crossfeed.record.round import to_json

PROJECT = "crossfeed"
_FILE = "tracking.json"
_FORBIDDEN = re.compile(r"[^\w\-. /]")


class Tracker(Protocol):
    """What is needed of a tracker; opened by ``(run's name, its id, config, folder)``."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Send the numbers of a round."""
        ...

    def finish(self, well: bool) -> None:
        """Send what is left and say how the run ended."""
        ...


class _Wandb:
    def __init__(self, name: str, key: str, config: dict[str, Any], folder: RunFolder) -> None:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        client = import_module("wandb")
        self.run = client.init(
            project=project, name=name, id=key, resume="allow", config=config, dir=os.fspath(folder.path)
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def finish(self, well: bool) -> None:
        self.run.finish(exit_code=0 if well else 1)


class _MLflow:
    """MLflow gives runs their ids, so that of the run is a tag by which it is found again."""

    def __init__(self, name: str, key: str, config: dict[str, Any], folder: RunFolder) -> None:
        self.client = import_module("mlflow")
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            self.client.set_experiment(PROJECT)
        nested = self.client.active_run() is not None
        found = self.client.search_runs(
            filter_string=f"tags.crossfeed_run = '{key}'", max_results=1, output_format="list"
        )
        if found:
            self.client.start_run(run_id=found[0].info.run_id, nested=nested)
        else:
            self.client.start_run(run_name=name, tags={"crossfeed_run": key}, nested=nested)
            self.client.log_params({what: str(value)[:250] for what, value in config.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self.client.log_metrics({_FORBIDDEN.sub("_", name): value for name, value in values.items()}, step=step)

    def finish(self, well: bool) -> None:
        self.client.end_run(status="FINISHED" if well else "FAILED")


class _Trackio:
    """Trackio knows runs by their names, so the id goes into the name."""

    def __init__(self, name: str, key: str, config: dict[str, Any], folder: RunFolder) -> None:
        self.client = import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.client.init(project=project, name=f"{name}-{key}", config=config, resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        self.client.log(values, step=step)

    def finish(self, well: bool) -> None:
        self.client.finish()


_KINDS: dict[str, Callable[[str, str, dict[str, Any], RunFolder], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}


def check(names: Sequence[str]) -> None:
    """Check that trackers exist and their clients are installed; imports nothing.

    Raises:
        SettingError: there is no such tracker.
        NotAvailableError: its client is not installed.
    """
    for name in names:
        if name not in _KINDS:
            raise SettingError(f"track: found {name!r}; need one of {', '.join(_KINDS)}")
        try:
            missing = find_spec(name) is None
        except ValueError:  # a module put in place by hand
            missing = False
        if missing:
            raise NotAvailableError(f"track: {name} is not installed; install it with `pip install {name}`")


class Trackers:
    """Sends finished rounds to trackers; call it after every commit. As a context manager it ends them with the block.

    Args:
        names: ``wandb``, ``mlflow`` or ``trackio``.
        folder: The run. Its tracking.json remembers what was sent, so that a resumed run goes on in the same place.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder) -> None:
        check(names)
        self._folder = folder
        self._open: dict[str, Tracker] = {}
        self._sent: dict[str, Any] = self._read()
        for name in dict.fromkeys(names):
            entry = self._sent.setdefault(name, {"id": uuid.uuid4().hex[:12], "last": -1})
            self._try(name, self._start, name, entry)
        self()

    def __call__(self, round: int | None = None) -> None:
        """Send the finished rounds that were not sent yet.

        Args:
            round: Not needed; the round that was just finished.
        """
        rounds = self._folder.rounds
        for name in list(self._open):
            missed = [number for number in rounds if number > self._sent[name]["last"]]
            self._try(name, self._send, name, missed)

    def finish(self, well: bool = True) -> None:
        """End the trackers' runs.

        Args:
            well: Whether the run ended without an error.
        """
        for name in list(self._open):
            self._try(name, self._open[name].finish, well)
        self._open.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(well=kind is None)

    def _start(self, name: str, entry: dict[str, Any]) -> None:
        eco = self._folder.eco
        config = {
            "spec": eco.name,
            "seed": eco.seed,
            "models": ", ".join(eco.names),
            "spec_sha256": self._folder.about.get("spec_sha256"),
            "crossfeed": self._folder.about.get("crossfeed"),
            **self._folder.options,
        }
        self._open[name] = _KINDS[name](self._folder.path.resolve().name, entry["id"], config, self._folder)

    def _send(self, name: str, rounds: list[int]) -> None:
        table = self._folder.metrics().to_pylist() if rounds else []
        for number in rounds:
            self._open[name].log(values_of(table, number), number)
            self._sent[name]["last"] = number
            replace_file(self._folder.path / _FILE, to_json(self._sent))

    def _try(self, name: str, step: Callable[..., None], *arguments: Any) -> None:
        """Do one step of a tracker; when it fails, say so once and do without the tracker."""
        try:
            step(*arguments)
        except Exception as error:  # no failure of a tracker, of whatever kind, may cost a run
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            warnings.warn(
                f"{name} failed ({reason}); the run goes on without it and its record is whole; resume the run with "
                f"`--track {name}` to send what is missing",
                RuntimeWarning,
                stacklevel=3,
            )

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self._folder.path / _FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


trackers = Trackers
"""Start, or take up, the trackers of a run."""


def values_of(table: list[dict[str, Any]], round: int) -> dict[str, float]:
    """A round's finite numbers by name.

    Example:
        >>> row = {"round": 2, "model": "p", "metric": "alignment", "domain": "own", "value": 1.0, "standard_error": 0.1}
        >>> values_of([row], 2)
        {'p/alignment/own': 1.0, 'p/alignment/own standard error': 0.1}
    """
    out: dict[str, float] = {}
    for row in table:
        if row["round"] == round:
            name = "/".join(part for part in (row["model"], row["metric"], row["domain"]) if part is not None)
            for key, value in ((name, row["value"]), (f"{name} standard error", row["standard_error"])):
                if value is not None and math.isfinite(value):
                    out[key] = value
    return out
