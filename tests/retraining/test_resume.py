"""A resumed run is the uninterrupted one, bit for bit; another run is refused."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from crossfeed.cli import main
from crossfeed.describe.schema import (
    Curated,
    Cycle,
    Ecosystem,
    Flow,
    Model,
    Pretraining,
    RandomOrder,
    Raw,
    Real,
    RunOptions,
    Samples,
    Sequential,
    Training,
    Update,
)
from crossfeed.errors import CrossfeedError, SettingError
from crossfeed.record.folder import RunFolder
from crossfeed.retraining.options import differences
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.run import run_networks
from networks.tiny import diffusions, languages
from retraining.fakes import plane

SGD = Training(steps=3, batch_size=8, optimizer="sgd", learning_rate=0.01, momentum=0.9, keep_optimizer=True)
ADAM = Training(steps=3, batch_size=8, learning_rate=0.01, keep_optimizer=True)
KINDS = {
    "simultaneous": {},
    "sequential": {"update": Update(order=Sequential(models=["q", "p"]))},
    "cycle": {"update": Update(order=Cycle(rounds=[[["p"]], [["q"], ["p"]], [["q"]]]))},
    "random order": {"update": Update(order=RandomOrder(probability=0.6, seed=4))},
    "optimiser kept": {"train": {"p": ADAM, "q": SGD}, "update": Update(order=Cycle(rounds=[[["p", "q"]], [["p"]]]))},
    "accumulate": {"samples": Samples(per_round=12, regime="accumulate")},
    "subsample": {
        "samples": Samples(per_round=12, regime="subsample", counts="multinomial"),
        "update": Update(order=Cycle(rounds=[[["p", "q"]], [["q"]]])),
    },
    "pretrained": {"pretrain": Pretraining(steps=4, batch_size=8)},
}


def ecosystem(kind="simultaneous", **changes) -> Ecosystem:
    """Two small flows that learn from each other."""
    options = KINDS[kind] | changes
    train = options.pop("train", {}) or {}
    pretrain = options.pop("pretrain", None)
    usual = Training(steps=3, batch_size=8, learning_rate=0.01)
    sources = {
        "p": [Real(data="ring", weight=0.4), Curated(producer="p", weight=0.3), Raw(producer="q", weight=0.3)],
        "q": [Real(data="ring", weight=0.4), Curated(producer="p", weight=0.6, candidates=3, noise=0.2)],
    }
    models = {
        name: Model(
            family=Flow(width=4, layers=1, bins=4),
            reward="right" if name == "p" else "up",
            train=train.get(name, usual),
            pretrain=pretrain,
            sources=mine,
        )
        for name, mine in sources.items()
    }
    base = plane(sources, samples=Samples(per_round=12), run=RunOptions(rounds=6, evaluation_samples=8))
    return base.model_copy(update={"models": models, **options})


def same_pool(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def files_of(folder):
    """SHA-256 of everything but what holds times: all Parquet and safetensors files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".parquet", ".safetensors"}:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_six_rounds_are_three_and_three(kind, tmp_path):
    eco = ecosystem(kind)
    whole = run_networks(eco, tmp_path / "whole", device="cpu")
    run_networks(eco, tmp_path / "parts", device="cpu", rounds=3)
    parts = run_networks(eco, tmp_path / "parts", device="cpu", resume=True)
    assert whole.folder.rounds == parts.folder.rounds == list(range(7))
    assert [s.round for s in parts.summaries] == [4, 5, 6]
    files = files_of(tmp_path / "whole")
    assert files == files_of(tmp_path / "parts")
    assert len(files) > 20
    for name in "pq":
        for key, value in whole.networks[name].parameters().items():
            assert torch.equal(value, parts.networks[name].parameters()[key])
        for t in range(7):
            same_pool(whole.folder.pool(t, name), parts.folder.pool(t, name))
    for t in range(7):
        one, other = (dict(run.folder.round_info(t)) for run in (whole, parts))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_memory_resumes_too_and_folders_hold_the_same_numbers(tmp_path):
    eco = ecosystem("accumulate")
    memory = Memory("all")
    run_networks(eco, memory, device="cpu", rounds=2)
    run_networks(eco, memory, device="cpu", rounds=4, resume=True)
    folder = run_networks(eco, tmp_path / "run", device="cpu", rounds=4).folder
    assert memory.metrics().to_pylist() == folder.metrics().to_pylist()
    with pytest.raises(SettingError, match=r"folder: found a record in memory that has a run"):
        run_networks(eco, memory, device="cpu")


def test_only_the_last_checkpoints_are_enough(tmp_path):
    eco = ecosystem("cycle")
    whole = run_networks(eco, tmp_path / "whole", device="cpu")
    run_networks(eco, tmp_path / "few", device="cpu", rounds=4, checkpoints="last")
    few = run_networks(eco, tmp_path / "few", device="cpu", resume=True)
    assert few.folder.options["checkpoints"] == "last"
    assert len(list((tmp_path / "few").rglob("parameters-*"))) < len(list((tmp_path / "whole").rglob("parameters-*")))
    assert whole.metrics().equals(few.metrics())


def test_a_round_that_fails_half_way_is_done_again(tmp_path, monkeypatch):
    eco = ecosystem()
    whole = run_networks(eco, tmp_path / "whole", device="cpu", rounds=3)
    commit = RunFolder.commit

    def fail(self, record):
        if record.round == 2:
            raise KeyboardInterrupt
        commit(self, record)

    monkeypatch.setattr(RunFolder, "commit", fail)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"in round 2; finished rounds are kept; go on with `crossfeed run .*parts --resume`",
    ):
        run_networks(eco, tmp_path / "parts", device="cpu", rounds=3)
    monkeypatch.undo()
    parts = run_networks(eco, tmp_path / "parts", device="cpu", rounds=3, resume=True)
    assert [s.round for s in parts.summaries] == [2, 3]
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    assert parts.folder.verify() == []
    assert whole.folder.status["result"] == parts.folder.status["result"] == "finished"


def test_a_run_stopped_before_its_start_was_over_begins_anew(tmp_path):
    eco = ecosystem("pretrained")
    options = {"rounds": 6, "dtype": "float32", "regime": "replace", "checkpoints": "all", "device": "cpu"}
    RunFolder.create(tmp_path / "run", eco, options=options)
    run = run_networks(eco, tmp_path / "run", device="cpu", rounds=1, resume=True)
    assert run.folder.rounds == [0, 1]


def test_a_finished_run_goes_on_with_more_rounds_or_says_it_is_done(tmp_path):
    eco = ecosystem()
    run_networks(eco, tmp_path / "run", device="cpu", rounds=2)
    done = run_networks(eco, tmp_path / "run", device="cpu", rounds=2, resume=True)
    assert (done.result, done.reason, done.summaries) == ("finished", "all 2 rounds are done", [])
    assert done.summary() == "finished: all 2 rounds are done"
    with pytest.raises(CrossfeedError, match="holds a run already"):
        run_networks(eco, tmp_path / "run", device="cpu", rounds=2)
    with pytest.raises(CrossfeedError, match="nothing"):
        run_networks(eco, tmp_path / "nothing", device="cpu", resume=True)


def test_a_run_is_finished_as_it_was_begun_and_then_as_the_spec_says():
    memory = Memory("all")
    told = []

    def stop(summary):
        told.append(summary.round)
        if summary.round == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="in round 5"):
        run_networks(ecosystem(), memory, device="cpu", rounds=5, report=stop)
    run_networks(ecosystem(), memory, device="cpu", resume=True, report=stop)
    assert told == [0, 1, 2, 3, 4, 5]
    run_networks(ecosystem(), memory, device="cpu", resume=True)
    assert memory.rounds[-1] == 6


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    from crossfeed.retraining import run as module

    def fail(*_):
        raise CrossfeedError("no such model")

    for name in ("open_world", "build", "check_room"):
        monkeypatch.setattr(module, name, fail)
        with pytest.raises(CrossfeedError, match="no such model"):
            run_networks(ecosystem(), tmp_path / "run", device="cpu")
        monkeypatch.undo()
    assert not (tmp_path / "run").exists()


def test_trackers_get_every_round(tmp_path, monkeypatch):
    from crossfeed.record import tracking

    sent = []

    class Fake:
        def __init__(self, *about):
            pass

        def log(self, values, step):
            sent.append((step, values["p/alignment/own"]))

        def finish(self, well):
            sent.append(well)

    monkeypatch.setitem(tracking._KINDS, "wandb", Fake)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    run = run_networks(ecosystem(), tmp_path / "run", device="cpu", rounds=2, track=["wandb"])
    values = [row["value"] for row in run.metrics().to_pylist() if (row["model"], row["metric"]) == ("p", "alignment")]
    assert sent == [(0, values[0]), (1, values[1]), (2, values[2]), True]
    with pytest.raises(SettingError, match="track: found 'nobody'"):
        run_networks(ecosystem(), tmp_path / "other", device="cpu", track=["nobody"])


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"seed": 5}, {}, r"seed: 0 there, 5 now"),
        ({"samples": Samples(per_round=13)}, {}, r"samples\.per_round: 12 there, 13 now"),
        ({}, {"dtype": "bfloat16"}, r"dtype: float32 there, bfloat16 now"),
        ({}, {"regime": "accumulate"}, r"regime: replace there, accumulate now"),
        ({"train": {"p": ADAM}}, {}, r"models\.p\.train\.keep_optimizer: False there, True now"),
        ({"run": RunOptions(evaluation_samples=9)}, {}, r"run\.evaluation_samples: 8 there, 9 now"),
    ],
)
def test_another_run_is_not_resumed(change, options, words):
    memory = Memory("all")
    run_networks(ecosystem(), memory, device="cpu", rounds=1)
    with pytest.raises(SettingError, match=rf"resume: this is not the spec of the run that is there \({words}"):
        run_networks(ecosystem(**change), memory, device="cpu", resume=True, **options)
    assert memory.rounds == [0, 1]


def test_names_rounds_and_checkpoints_may_differ():
    memory = Memory("all")
    run_networks(ecosystem(), memory, device="cpu", rounds=1)
    eco = ecosystem(
        name="another name",
        description="more words",
        run=RunOptions(rounds=2, evaluation_samples=8, checkpoints="last"),
    )
    assert run_networks(eco, memory, device="cpu", resume=True).folder.rounds == [0, 1, 2]


def test_another_device_is_noted():
    memory = Memory("all")
    run_networks(ecosystem(), memory, device="cpu", rounds=1)
    memory.options["device"] = "cuda"
    run = run_networks(ecosystem(), memory, device="cpu", rounds=2, resume=True)
    assert "the run began on cuda and goes on on cpu" in run.summaries[0].notes[0]
    assert str(run.summaries[0]).startswith("note: the run began on cuda")


def test_torch_is_left_as_it_was():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run_networks(ecosystem(), None, device="cpu", rounds=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_torchs_own_random_state_plays_no_part():
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(run_networks(ecosystem(), None, device="cpu", rounds=2).metrics().to_pylist())
    assert values[0] == values[1]


def test_a_folder_that_cannot_be_written(tmp_path):
    if os.geteuid() == 0:
        target = tmp_path / "file"
        target.write_text("here")
    else:
        target = tmp_path / "closed" / "run"
        (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CrossfeedError, match="cannot be written"):
        run_networks(ecosystem(), target, device="cpu", rounds=1)


def test_files_may_be_named_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    eco = diffusions()
    run_networks(eco, "sub/run", device="cpu", rounds=1)
    there = RunFolder.open(tmp_path / "sub" / "run").eco
    assert differences(there, eco) == []
    texts = languages(Path("sub"))
    run = RunFolder.create("sub/texts", texts)
    for folder in (Path("sub/texts"), tmp_path / "sub" / "texts"):
        assert differences(RunFolder.open(folder).eco, texts) == []
    moved = texts.data["tools"].model_copy(update={"file": "sub/games.jsonl"})
    other = texts.model_copy(update={"data": texts.data | {"tools": moved}})
    ((path, _, _),) = differences(run.eco, other)
    assert path == "data.tools.file"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "lora", "all parameters"])
@pytest.mark.parametrize(("dtype", "regime"), [("float32", "accumulate"), ("bfloat16", "replace")])
def test_images_and_texts_resume_bit_for_bit(kind, dtype, regime, tmp_path):
    eco = diffusions() if kind == "diffusion" else languages(tmp_path, lora=kind == "lora", dropout=0.1)
    eco = eco.model_copy(update={"samples": eco.samples.model_copy(update={"regime": regime})})
    whole = run_networks(eco, tmp_path / "whole", device="cpu", rounds=3, dtype=dtype)
    run_networks(eco, tmp_path / "parts", device="cpu", rounds=1, dtype=dtype)
    parts = run_networks(eco, tmp_path / "parts", device="cpu", rounds=3, resume=True)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    for name in "pq":
        for t in range(4):
            same_pool(whole.folder.pool(t, name), parts.folder.pool(t, name))
        assert whole.folder.round_info(3)["checks"][name]["generation_changed"]


def test_the_command_line_goes_on_with_what_a_run_was_begun_with(tmp_path, capsys):
    spec = Path(__file__).resolve().parents[2] / "examples" / "eight_gaussians.yaml"
    small = ["--set", "models.*.pretrain.steps=2", "--set", "models.*.train.steps=2", "--set", "samples.per_round=20"]
    begun = ["--scale", "smoke", *small, "--rounds", "1", "--regime", "accumulate", "--dtype", "bfloat16"]
    folder = str(tmp_path / "run")
    assert main(["run", str(spec), *begun, "--out", folder, "-q"]) == 0
    command = RunFolder.open(folder).about["command"]
    assert command.endswith(shlex.join(begun))
    assert main(["run", folder, "--resume", "--rounds", "2", "-q"]) == 0
    run = RunFolder.open(folder)
    assert run.rounds == [0, 1, 2]
    assert run.options["dtype"] == "bfloat16"
    capsys.readouterr()
    for option, value in (("--dtype", "float32"), ("--regime", "replace")):
        assert main(["run", folder, "--resume", "--rounds", "3", "-q", option, value]) == 2
        assert f"{option[2:]}: " in capsys.readouterr().err
