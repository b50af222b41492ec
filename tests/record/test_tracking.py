"""Trackers through fakes of their clients' documented interfaces."""

from __future__ import annotations

import json
import sys
import types

import made_runs as made
import pytest

from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.record.folder import RunFolder
from crossfeed.record.tracking import check, trackers

NAMES = ("wandb", "mlflow", "trackio")


class Fakes:
    """What was called, by client; ``broken`` names calls that fail as without a network."""

    def __init__(self, monkeypatch):
        self.calls: list[tuple] = []
        self.broken: set[str] = set()
        self.runs: dict[str, str] = {}
        for name in NAMES:
            monkeypatch.setitem(sys.modules, name, getattr(self, name)())
        for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TRACKIO_PROJECT"):
            monkeypatch.delenv(variable, raising=False)

    def note(self, name, /, *arguments, **options):
        self.calls.append((name, arguments, options))
        if name in self.broken:
            raise ConnectionError("no route to host")

    def of(self, name):
        return [(arguments, options) for called, arguments, options in self.calls if called == name]

    def wandb(self):
        run = types.SimpleNamespace(
            log=lambda data, step=None, commit=None: self.note("wandb.log", data, step=step),
            finish=lambda exit_code=None, quiet=None: self.note("wandb.finish", exit_code=exit_code),
        )

        def init(entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None):
            self.note("wandb.init", project=project, dir=dir, id=id, name=name, config=config, resume=resume)
            return run

        return types.SimpleNamespace(init=init)

    def mlflow(self):
        def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None):
            self.note("mlflow.start_run", run_id=run_id, run_name=run_name, nested=nested, tags=tags)
            if run_id is None:
                self.runs[tags["crossfeed_run"]] = f"run of {tags['crossfeed_run']}"

        def search_runs(filter_string="", max_results=100, output_format="pandas"):
            assert output_format == "list"
            key = filter_string.removeprefix("tags.crossfeed_run = '").removesuffix("'")
            ids = [self.runs[key]] if key in self.runs else []
            return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=i)) for i in ids]

        return types.SimpleNamespace(
            set_experiment=lambda name: self.note("mlflow.set_experiment", name),
            active_run=lambda: None,
            search_runs=search_runs,
            start_run=start_run,
            log_params=lambda params: self.note("mlflow.log_params", params),
            log_metrics=lambda metrics, step=None: self.note("mlflow.log", metrics, step=step),
            end_run=lambda status="FINISHED": self.note("mlflow.end_run", status=status),
        )

    def trackio(self):
        def init(project, name=None, config=None, resume="never"):
            self.note("trackio.init", project=project, name=name, config=config, resume=resume)

        return types.SimpleNamespace(
            init=init,
            log=lambda metrics, step=None: self.note("trackio.log", metrics, step=step),
            finish=lambda: self.note("trackio.finish"),
        )


@pytest.fixture
def fakes(monkeypatch):
    return Fakes(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    return made.folder(tmp_path / "first run", rounds=1)


def go(folder, names, rounds):
    with folder.writing(), trackers(names, folder) as track:
        for number in rounds:
            folder.commit(made.record(number))
            track(number)


@pytest.mark.parametrize("name", NAMES)
def test_every_round_is_sent_once(fakes, folder, name):
    go(folder, [name], [1, 2])
    sent = fakes.of(f"{name}.log")
    assert [options["step"] for _, options in sent] == [0, 1, 2]
    assert sent[2][0][0] == {
        "p/alignment/own": 2.0,
        "p/alignment/own standard error": 0.25,
        "p/delta": pytest.approx(1 / 3),
        "q/alignment/own": pytest.approx(2 + 1 / 3),
        "q/alignment/own standard error": 0.25,
        "q/delta": pytest.approx(1 / 3),
    }


def test_runs_are_named_after_the_folder_and_say_what_they_are(fakes, folder):
    go(folder, NAMES, [1])
    wandb = fakes.of("wandb.init")[0][1]
    assert (wandb["project"], wandb["name"], wandb["resume"]) == ("crossfeed", "first run", "allow")
    assert wandb["dir"] == str(folder.path)
    assert wandb["config"]["seed"] == 3
    assert fakes.of("mlflow.set_experiment") == [(("crossfeed",), {})]
    assert fakes.of("mlflow.start_run")[0][1]["run_name"] == "first run"
    assert fakes.of("mlflow.log_params")[0][0][0]["seed"] == "3"
    assert fakes.of("trackio.init")[0][1]["name"].startswith("first run-")
    assert fakes.of("wandb.finish") == [((), {"exit_code": 0})]
    assert fakes.of("mlflow.end_run") == [((), {"status": "FINISHED"})]
    assert fakes.of("trackio.finish") == [((), {})]


def test_their_own_settings_are_respected(fakes, folder, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    go(folder, NAMES, [])
    assert fakes.of("wandb.init")[0][1]["project"] == "mine"
    assert fakes.of("mlflow.set_experiment") == []


def test_a_resumed_run_goes_on_where_it_was(fakes, folder):
    go(folder, NAMES, [1])
    with folder.writing():
        folder.commit(made.record(2))  # a round that was committed, but not sent
    again = RunFolder.open(folder.path)
    again.world = made.world("vectors")
    go(again, NAMES, [3])
    for name in NAMES:
        assert [options["step"] for _, options in fakes.of(f"{name}.log")] == [0, 1, 2, 3]
    first, second = fakes.of("wandb.init")
    assert first[1]["id"] == second[1]["id"]
    assert fakes.of("mlflow.start_run")[1][1]["run_id"] == next(iter(fakes.runs.values()))
    assert len({options["name"] for _, options in fakes.of("trackio.init")}) == 1
    assert len(fakes.of("mlflow.log_params")) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", ["init", "log", "finish"])
def test_one_that_fails_is_warned_about_once(fakes, folder, name, step):
    call = {"init": "start_run", "finish": "end_run"}.get(step, step) if name == "mlflow" else step
    fakes.broken.add(f"{name}.{call}")
    with pytest.warns(
        RuntimeWarning, match=rf"{name} failed \(no route to host\); the run goes on without it"
    ) as caught:
        go(folder, NAMES, [1, 2, 3])
    assert len(caught) == 1
    assert folder.rounds == [0, 1, 2, 3]
    for other in set(NAMES) - {name}:
        assert len(fakes.of(f"{other}.log")) == 4
    if step == "log":
        assert len(fakes.of(f"{name}.log")) == 1
        fakes.broken.clear()
        go(folder, [name], [4])
        assert [options["step"] for _, options in fakes.of(f"{name}.log")] == [0, 0, 1, 2, 3, 4]


def test_a_run_that_fails_is_marked_so(fakes, folder):
    with pytest.raises(ZeroDivisionError), trackers(NAMES, folder):
        raise ZeroDivisionError
    assert fakes.of("wandb.finish") == [((), {"exit_code": 1})]
    assert fakes.of("mlflow.end_run") == [((), {"status": "FAILED"})]


def test_names_are_made_fit_for_mlflow(fakes, tmp_path):
    text = made.SPEC.replace("  p:\n", "  'p (β)':\n").replace("producer: p", "producer: 'p (β)'")
    folder = RunFolder.create(tmp_path / "run", made.ecosystem(tmp_path, text))
    record = made.record(0)
    record.metrics[0] = made.Metric("p (β)", "alignment", "a%b", 1.0, float("nan"))
    record.pools, record.shown = {}, []
    with folder.writing():
        folder.commit(record)
    trackers(["mlflow"], folder)
    assert "p _β_/alignment/a_b" in fakes.of("mlflow.log")[0][0][0]
    assert not any("standard" in key and "a_b" in key for key in fakes.of("mlflow.log")[0][0][0])


def test_a_damaged_tracking_json_starts_anew(fakes, folder):
    (folder.path / "tracking.json").write_text("{")
    go(folder, ["trackio"], [])
    assert [options["step"] for _, options in fakes.of("trackio.log")] == [0]
    assert json.loads((folder.path / "tracking.json").read_text())["trackio"]["last"] == 0


def test_unknown_and_missing_ones_are_refused(monkeypatch, folder):
    with pytest.raises(SettingError, match="track: found 'tensorboard'; need one of wandb, mlflow, trackio"):
        check(["tensorboard"])
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            NotAvailableError, match=f"track: {name} is not installed; install it with `pip install {name}`"
        ):
            trackers([name], folder)
