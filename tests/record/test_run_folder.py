"""The run folder: what is committed comes back, whole rounds only, damage is found and named."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import made_runs as made
import pytest

from crossfeed.errors import CrossfeedError, DataError
from crossfeed.record.folder import RoundRecord, RunFolder, is_run
from crossfeed.record.round import _digest


def test_what_is_committed_comes_back(tmp_path):
    made.folder(tmp_path / "run", rounds=3)
    back = RunFolder.open(tmp_path / "run")
    assert back.rounds == [0, 1, 2]
    for number in back.rounds:
        wanted = made.record(number)
        for model in ("p", "q"):
            assert made.equal_pools(back.pool(number, model), wanted.pools[model])
            assert made.equal_tensors(back.parameters(number, model), wanted.parameters[model])
            assert made.equal_tensors(back.optimizer(number, model), wanted.optimizers[model])
            shown = back.shown(number, model).to_pylist()
            assert [row["reward"] for row in shown] == [0.5, -1.0]
            assert {row["domain"] for row in shown} == {"own"}
        rows = [row for row in back.metrics().to_pylist() if row["round"] == number]
        assert [(r["model"], r["metric"], r["domain"], r["value"], r["standard_error"]) for r in rows] == [
            (m.model, m.metric, m.domain, m.value, m.standard_error) for m in wanted.metrics
        ]
        info = back.round_info(number)
        assert info["round"] == number
        assert info["counts"] == {"p": {"real": 3}}
        assert info["odd"] is None
        assert info["seconds"] == {"training": 1.5}
    assert back.verify() == []


def test_the_spec_comes_back_with_its_files(tmp_path, monkeypatch):
    text = "space: {kind: text}\ndata:\n  news: {kind: texts, file: news.jsonl, answer_column: answer}\n" + (
        "rewards:\n  short: {kind: summary}\nmodels:\n  p:\n    family: {kind: causal_lm, fresh: {}}\n    reward: short\n"
        "    train: {steps: 1}\n    sources: [{kind: real, data: news, weight: 1}]\n"
    )
    for name in ("here", "there", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "news.jsonl").write_text('{"input": "a", "answer": "b"}\n')
    monkeypatch.chdir(tmp_path)
    eco = made.ecosystem(Path("here"), text)
    RunFolder.create(Path("there/run"), eco, spec_text=text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "here" / "news.jsonl").rename(tmp_path / "here" / "away.jsonl")
    found = RunFolder.open("../there/run").eco
    assert Path(found.data["news"].file).resolve() == (tmp_path / "here" / "news.jsonl").resolve()
    assert (tmp_path / "there" / "run" / "spec.yaml").read_text() == text
    stored = json.loads((tmp_path / "there" / "run" / "spec.json").read_text())
    assert stored["data"]["news"]["file"] == "../../here/news.jsonl"


def test_a_run_can_be_read_without_its_data(tmp_path):
    text = made.SPEC.replace("{kind: mixture, means: [[1, 0], [0, 1], [-1, 0], [0, -1]], std: 0.1}", ROWS)
    (tmp_path / "rows.csv").write_text("0,0\n1,2\n")
    made.folder(tmp_path / "run", rounds=2, text=text)
    (tmp_path / "rows.csv").unlink()
    assert RunFolder.open(tmp_path / "run").pool(1, "p").ids[0] == "r0001-p-000000"


ROWS = "{kind: rows, rows: {file: rows.csv}}"


def test_arrays_in_the_spec_come_back(tmp_path):
    folder = made.folder(tmp_path / "run")
    again = RunFolder.open(tmp_path / "run").eco
    assert again.model_dump(mode="json") == folder.eco.model_dump(mode="json")


def test_models_left_out_of_a_round_keep_their_last_state(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    with folder.writing():
        folder.commit(made.record(2, models=("q",)))
        folder.commit(made.record(3, models=("p",)))
    assert made.equal_tensors(folder.parameters(2, "p"), made.record(1).parameters["p"])
    assert made.equal_pools(folder.pool(2, "p"), made.record(1).pools["p"])
    assert made.equal_tensors(folder.optimizer(3, "q"), made.record(2, models=("q",)).optimizers["q"])
    assert folder.recorded("p") == [0, 1, 3]
    with pytest.raises(DataError, match=r"0002: holds no samples of 'p'; it has those of q"):
        folder.samples(2, "p")


def test_two_runs_are_byte_identical(tmp_path):
    for name in ("one", "two"):
        made.folder(tmp_path / name / "run", rounds=3)
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    kinds = {p.name for p in files if (tmp_path / "one" / p).read_bytes() == (tmp_path / "two" / p).read_bytes()}
    assert {"metrics.parquet", "samples-p.parquet", "shown-q.parquet", "parameters-p.safetensors"} <= kinds
    assert {p.name for p in files} - kinds <= {"run.json", ".lock"}


def test_file_names_are_safe_for_any_name(tmp_path):
    text = made.SPEC.replace("  p:\n", "  'Q/ü é':\n").replace("producer: p", "producer: 'Q/ü é'")
    folder = RunFolder.create(tmp_path / "run", made.ecosystem(tmp_path, text))
    folder.world = made.world("vectors")
    record = made.record(0)
    for part in (record.pools, record.parameters):
        part["Q/ü é"] = part.pop("p")
    with folder.writing():
        folder.commit(record)
    assert made.equal_tensors(folder.parameters(0, "Q/ü é"), record.parameters["Q/ü é"])
    assert (tmp_path / "run" / "rounds" / "0000" / "parameters-Q%2F%C3%BC%20%C3%A9.safetensors").is_file()


def test_names_that_differ_in_capitals_only_have_files_that_differ_otherwise():
    from crossfeed.record.round import file_names

    found = file_names(["p", "P", "x" * 200, "x" * 199 + "y"])
    assert len({name.lower() for name in found.values()}) == 4
    assert all(len(name) < 150 for name in found.values())


def test_create_refuses_a_folder_with_a_run(tmp_path):
    made.folder(tmp_path / "run", rounds=1)
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with pytest.raises(CrossfeedError, match=r"holds a run already; go on with `crossfeed run .*run --resume`"):
        RunFolder.create(tmp_path / "run", made.ecosystem(tmp_path))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_create_takes_over_what_a_killed_create_left(tmp_path):
    (tmp_path / "run" / "rounds").mkdir(parents=True)
    (tmp_path / "run" / "spec.json").write_text("{")
    assert not is_run(tmp_path / "run")
    made.folder(tmp_path / "run", rounds=1)
    assert RunFolder.open(tmp_path / "run").rounds == [0]


def test_create_keeps_other_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    made.folder(tmp_path / "run", rounds=1)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "does not exist; give the folder"),
        (lambda run: (run / "run.json").unlink(), "is no folder of a run"),
        (lambda run: (run / "run.json").write_text('{"a": '), r"run\.json: was cut short or changed"),
        (lambda run: (run / "run.json").write_text("{}"), r"run\.json: describes no run"),
        (lambda run: (run / "spec.json").write_text("{}"), r"spec\.json: was changed after the run began"),
        (lambda run: (run / "spec.json").unlink(), r"spec\.json: cannot be read"),
    ],
)
def test_open_says_what_is_wrong(tmp_path, spoil, message):
    made.folder(tmp_path / "run", rounds=1)
    spoil(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        RunFolder.open(tmp_path / "run")


def test_open_names_another_version(tmp_path):
    made.folder(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text()) | {"version": 2}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="found a run of version 2; this Crossfeed reads version 1"):
        RunFolder.open(tmp_path / "run")


def test_code_is_refused_unless_allowed(tmp_path):
    text = made.SPEC.replace(
        "right: {kind: linear, vector: [1, 0]}", "right: {kind: callable, function: 'mine:reward'}"
    )
    RunFolder.create(tmp_path / "run", made.ecosystem(tmp_path, text))
    with pytest.raises(CrossfeedError, match=r"name Python functions \(mine:reward\); pass --allow-code"):
        RunFolder.open(tmp_path / "run")
    assert RunFolder.open(tmp_path / "run", allow_code=True).eco.rewards["right"].function == "mine:reward"


def test_status(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    assert folder.status == {"state": "stopped", "result": None, "reason": "", "round": 1}
    with folder.writing():
        assert RunFolder.open(tmp_path / "run").status["state"] == "running"
        folder.finish("collapsed", "diversity fell to 0.01")
    assert folder.status == {"state": "ended", "result": "collapsed", "reason": "diversity fell to 0.01", "round": 1}
    with folder.writing():
        folder.commit(made.record(2))
    assert folder.status["result"] is None


def test_commits_follow_each_other(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    with (
        folder.writing(),
        pytest.raises(CrossfeedError, match="has rounds 0 to 1; found round 3; need the one that follows"),
    ):
        folder.commit(made.record(3))
    with folder.writing(), pytest.raises(CrossfeedError, match="has rounds 0 to 1; found round 1"):
        folder.commit(made.record(1))
    with pytest.raises(CrossfeedError, match="committed outside of"):
        folder.commit(made.record(2))


def test_a_failing_commit_leaves_nothing(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    bad = made.record(2)
    bad.pools["q"] = None  # fails after p's files were written
    with folder.writing(), pytest.raises(AttributeError):
        folder.commit(bad)
    assert sorted(os.listdir(tmp_path / "run" / "rounds")) == ["0000", "0001"]
    with folder.writing():
        folder.commit(made.record(2))
    assert folder.verify() == []


def test_metrics_at_the_top_are_derived(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=3)
    file = tmp_path / "run" / "metrics.parquet"
    right = file.read_bytes()
    for spoil in (file.unlink, lambda: file.write_bytes(b"stale")):
        spoil()
        assert folder.metrics().num_rows == 12
        assert folder.verify() == []
        with folder.writing():
            pass
        assert file.read_bytes() == right


# --- checkpoints that are not kept ----------------------------------------------------------------------------------


def test_only_the_last_checkpoints_are_kept_when_asked(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=3, checkpoints="last")
    with folder.writing():
        for number, models in ((3, ("q",)), (4, ("q",)), (5, ("p", "q"))):
            folder.commit(made.record(number, models=models))
    have = {
        m: [n for n in range(6) if (tmp_path / f"run/rounds/{n:04d}/parameters-{m}.safetensors").exists()] for m in "pq"
    }
    assert have == {"p": [0, 2, 5], "q": [0, 4, 5]}
    assert folder.verify() == []
    assert made.equal_tensors(folder.parameters(4, "p"), made.record(2).parameters["p"])
    with pytest.raises(
        DataError, match=r"parameters-q.*was not kept; there are rounds 0, 4, 5 \(`run.checkpoints: all`"
    ):
        folder.parameters(3, "q")
    assert folder.pool(3, "q").ids[0] == "r0003-q-000000"


def test_checkpoints_that_a_killed_run_had_no_time_to_drop_go_when_it_is_opened_to_write(tmp_path, monkeypatch):
    from crossfeed.record.rounds import Rounds

    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "prune", lambda self: None)  # as if killed between the rename and the pruning
        folder = made.folder(tmp_path / "run", rounds=4, checkpoints="last")
    kept = tmp_path / "run/rounds/0001/parameters-q.safetensors"
    assert kept.exists()
    with folder.writing():
        assert not kept.exists()
    assert folder.verify() == []


def test_the_way_back_goes_to_a_round_whose_checkpoints_are_there(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=6, checkpoints="last")
    (tmp_path / "run/rounds/0003/samples-p.parquet").unlink()
    with pytest.raises(DataError, match="go back to round 0 with `rm -r"):
        folder.pool(3, "p")


# --- damage ---------------------------------------------------------------------------------------------------------

FILES = (
    "samples-p.parquet",
    "metrics.parquet",
    "parameters-q.safetensors",
    "optimizer-q.safetensors",
    "shown-p.parquet",
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def read(folder: RunFolder, file: str, number: int) -> None:
    {
        "samples-p.parquet": lambda: folder.pool(number, "p"),
        "metrics.parquet": folder.metrics,
        "parameters-q.safetensors": lambda: folder.parameters(number, "q"),
        "optimizer-q.safetensors": lambda: folder.optimizer(number, "q"),
        "shown-p.parquet": lambda: folder.shown(number, "p"),
        "round.json": lambda: folder.round_info(number),
    }[file]()


@pytest.fixture(scope="module")
def four_rounds(tmp_path_factory):
    path = tmp_path_factory.mktemp("four") / "run"
    made.folder(path, rounds=4)
    return path


@pytest.mark.parametrize("file", [*FILES, "round.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda p: p.write_bytes(b"")])
def test_damage_is_found_named_and_undone(tmp_path, four_rounds, file, damage):
    shutil.copytree(four_rounds, tmp_path / "my run")
    path = tmp_path / "my run" / "rounds" / "0002" / file
    damage(path)
    folder = RunFolder.open(tmp_path / "my run")
    with pytest.raises(DataError) as caught:
        read(folder, file, 2)
    message = str(caught.value)
    assert message.startswith(str(path))
    commands = re.findall(r"`([^`]*)`", message)
    assert commands[-1] == f"crossfeed run {shlex.quote(str(tmp_path / 'my run'))} --resume"
    assert [m for m in folder.verify() if m.startswith(str(path))]
    subprocess.run(commands[-2], shell=True, check=True)  # the exact command that the message gives
    assert folder.rounds == [0, 1]
    assert folder.verify() == []
    folder.world = made.world("vectors")
    with folder.writing():
        folder.commit(made.record(2))
    assert folder.rounds == [0, 1, 2]


def test_a_checksum_that_fits_a_changed_file_does_not_help(tmp_path):
    """round.json carries a checksum of its own."""
    folder = made.folder(tmp_path / "run", rounds=2)
    path = tmp_path / "run" / "rounds" / "0001" / "round.json"
    path.write_text(path.read_text().replace('"real": 3', '"real": 4'))
    assert folder.rounds == [0]
    assert len(folder.verify()) == 1
    assert "its SHA-256 is not the one it names" in folder.verify()[0]
    with pytest.raises(DataError, match="was changed or damaged"), folder.writing():
        pass


def test_without_a_good_round_the_run_starts_again(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    cut(tmp_path / "run" / "rounds" / "0000" / "samples-p.parquet")
    with pytest.raises(DataError, match="start the run again in another folder"):
        folder.pool(0, "p")


def test_a_missing_round_is_reported_and_stops_writing(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=4)
    shutil.rmtree(tmp_path / "run" / "rounds" / "0001")
    assert "0001: is missing, though later rounds are there; go back to round 0" in folder.verify()[0]
    with pytest.raises(DataError, match="is missing, though later rounds are there"), folder.writing():
        pass


def test_questions_about_what_is_not_there(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    with pytest.raises(DataError, match="found no round 7; need one of 0 to 1"):
        folder.parameters(7, "p")
    with pytest.raises(DataError, match="found no model 'z'; need one of p, q"):
        folder.pool(1, "z")
    empty = made.folder(tmp_path / "empty" / "run")
    with pytest.raises(DataError, match="found no round 0; no round is finished yet"):
        empty.round_info(0)
    assert empty.metrics().num_rows == 0


def test_a_round_without_samples_needs_no_world(tmp_path):
    folder = RunFolder.create(tmp_path / "run", made.ecosystem(tmp_path))
    with folder.writing():
        folder.commit(RoundRecord(0))
    assert folder.rounds == [0]


@pytest.mark.parametrize("name", ["../../../victim.txt", "/victim.txt", "sub/x", "..", ""])
def test_a_folder_of_somebody_elses_names_its_own_files_only(tmp_path, name):
    """Checksums can be made anew by anybody; a name that leads out of the folder must neither be read nor dropped."""

    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    path = made.folder(tmp_path / "run", rounds=2).path
    file = path / "rounds" / "0001" / "round.json"
    about = json.loads(file.read_text())
    del about["sha256"]
    about["models"]["p"]["parameters"] = str(victim) if name.startswith("/") else name
    file.write_text(json.dumps(about | {"sha256": _digest(about)}))
    run = RunFolder.open(path)
    assert any("which is no file of this folder" in problem for problem in run.verify())
    run.checkpoints = "last"
    with suppress(CrossfeedError), run.writing():
        run.world = made.world("vectors")
        for number in range(len(run.rounds), 5):
            run.commit(made.record(number))
    assert victim.read_text() == "mine"
