"""``crossfeed audit`` of networks: a spec, a run's folder, budgets, what-ifs, memory, and options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import crossfeed
from crossfeed.cli import main
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate import budget

SPEC = """
crossfeed: 1
name: two flows
seed: 3
space: {kind: vectors, dim: 2}
data:
  ring: {kind: mixture, std: 0.2, means: [[2, 0], [0, 2], [-2, 0], [0, -2]]}
rewards:
  right: {kind: linear, vector: [1.0, 0.0]}
  up: {kind: linear, vector: [0.0, 1.0]}
models:
  p:
    family: {kind: flow, width: 4, bins: 3}
    reward: right
    train: {steps: 10, batch_size: 50, learning_rate: 3.0e-3}
    sources:
      - {kind: real, data: ring, weight: 0.5}
      - {kind: curated, producer: q, weight: 0.5, candidates: 2}
  q:
    family: {kind: flow, width: 4, bins: 3}
    reward: up
    train: {steps: 10, batch_size: 50, learning_rate: 3.0e-3}
    sources:
      - {kind: real, data: ring, weight: 0.5}
      - {kind: raw, producer: p, weight: 0.3}
      - {kind: curated, producer: q, weight: 0.2, candidates: 2}
samples: {per_round: 100}
run: {rounds: 3, evaluation_samples: 64}
"""
CLOSED = str(Path(__file__).parents[2] / "examples" / "two_models.yaml")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    (folder / "two.yaml").write_text(SPEC, encoding="utf-8")
    assert main(["run", str(folder / "two.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def spec(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(SPEC, encoding="utf-8")
    return "two.yaml"


def test_spec_with_what_ifs(spec, capsys):
    with Path(spec).open("a") as file:
        file.write("audit: {changes: [{path: q.curation, to: 0.3}]}\n")
    options = ["--samples", "128", "--rounds", "2", "--seed", "7", "--what-if", "p.curation=0.6"]
    assert main(["audit", spec, *options]) == 0
    out, err = capsys.readouterr()
    assert "memory: gradients of " in err
    assert "bytes each, will take at most" in err
    assert out.endswith("report: crossfeed-two/report.html\n")
    assert "What raising a model’s curation by 10 points does" in out
    data = json.loads(Path("crossfeed-two/audit.json").read_text(encoding="utf-8"))
    assert [(c["path"], c["from"], c["to"]) for c in data["changes"]] == [
        ("q.curation", 0.2, 0.3),
        ("p.curation", 0.5, 0.6),
    ]
    for change in data["changes"]:
        assert len(change["change"]) == len(change["first_order"]) == len(change["verdict"]) == 2
    first = 0.1 * data["influence"]["matrix"][0][0]
    assert data["changes"][1]["first_order"][0] == pytest.approx(first, rel=1e-6)
    assert (data["seed"], data["horizon"], data["samples"]["outputs"]) == (7, {"rounds": 2, "first": 1}, 128)
    assert data["command"] == "crossfeed audit two.yaml --rounds 2 --samples 128 --seed 7 --what-if p.curation=0.6"
    assert "opening the models" in data["seconds"]
    page = Path("crossfeed-two/report.html").read_text(encoding="utf-8")
    assert "p.curation: 0.5 → 0.6" in page
    Path("crossfeed-two/report.html").unlink()
    assert main(["report", "crossfeed-two"]) == 0
    assert Path("crossfeed-two/report.html").read_text(encoding="utf-8") == page


def test_run_folder_beside_what_it_did(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(run_folder), "--round", "1", "--samples", "64", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["point"]["round"] == 1
    assert data["trajectory"]["rounds"] == [1, 2, 3]
    assert [found["rounds"] for found in data["trajectory"]["observed"]] == [[1, 2, 3], [1, 2, 3]]
    assert data["spec_file"] == "two.yaml"
    assert "report: run-audit/report.html" in err
    assert main(["report", str(run_folder), "--audit", "run-audit", "--out", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Change of alignment from round 1 to round 3, predicted and seen" in page
    assert "The audit is of another spec" not in page
    assert main(["audit", str(run_folder), "--round", "9"]) == 2
    assert "rounds 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"), [("70", ""), ("0.1s", "64 outputs for a budget of 0.1 s: the fewest that make sense")]
)
def test_budget(spec, capsys, text, words):
    assert main(["audit", spec, "--budget", text, "--rounds", "1"]) == 0
    err = capsys.readouterr().err
    data = json.loads(Path("crossfeed-two/audit.json").read_text(encoding="utf-8"))
    assert words in err
    assert data["samples"]["outputs"] == (64 if words else 70)
    assert (data["samples"]["chosen"] or "").startswith(words)
    assert ("timing a few samples" in data["seconds"]) == bool(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--round", "1"], "--round: found 1 without a run; give the folder of a run"),
        (["--samples", "64", "--budget", "90s"], "--samples, --budget: found both"),
        (["--budget", "soon"], "--budget: found 'soon'; need a number of samples"),
        (["--what-if", "p.curation"], "--what-if: found 'p.curation'; need PATH=NUMBER"),
        (["--what-if", "p.curation=much"], "need PATH=NUMBER"),
        (["--what-if", "p.curation=0.6", "--what-if", "p.curation=0.7"], "'p.curation' twice"),
        (["--what-if", "p.curatoin=0.6"], "did you mean 'curation'?"),
        (["--what-if", "p.curation=1.6"], "need a number from 0 to 1"),
        (["--device", "cuda:77"], "device: found 'cuda:77'"),
    ],
)
def test_wrong_options(spec, capsys, options, message):
    assert main(["audit", spec, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("crossfeed-two").exists()


def test_options_of_networks_with_closed_forms(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", CLOSED, "--rounds", "3", "--what-if", "p.curation=0.6"]) == 2
    err = capsys.readouterr().err
    assert "--rounds, --what-if: for networks; these models are closed forms" in err
    assert "`audit.changes`" in err


def test_options_of_specs_with_a_run(run_folder, capsys):
    assert main(["audit", str(run_folder), "--set", "p.curation=0.6"]) == 2
    assert "try changes with --what-if" in capsys.readouterr().err
    before = (run_folder / "report.html").read_bytes()
    assert main(["audit", str(run_folder), "--out", str(run_folder)]) == 2
    assert "the folder of the run itself" in capsys.readouterr().err
    assert (run_folder / "report.html").read_bytes() == before
    assert main(["audit", str(run_folder.parent)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_too_little_memory(spec, monkeypatch, capsys):
    monkeypatch.setattr(budget, "free_memory", lambda: 20 * 2**20)
    assert main(["audit", spec, "--samples", "500000"]) == 2
    err = capsys.readouterr().err
    assert "--samples: found 500,000 outputs of every model, whose gradients take" in err
    fits = int(err.split("--samples ")[-1].split(" would fit")[0])
    assert 1000 < fits < 500_000
    monkeypatch.setattr(budget, "free_memory", lambda: 1000)
    assert main(["audit", spec]) == 2
    assert "not even the fewest samples fit" in capsys.readouterr().err


def test_in_python(spec):
    eco = crossfeed.load(spec)
    audit = crossfeed.audit(eco, samples=64, rounds=1)
    assert isinstance(audit, crossfeed.EstimateAudit)
    assert audit.data["influence"]["matrix"] == audit.found.estimate.answer.matrix.tolist()
    assert "looks ahead  1 round" in str(audit)
    with pytest.raises(SettingError, match="unexpected keyword argument 'sample'"):
        crossfeed.audit(eco, sample=64)
    closed = crossfeed.load(CLOSED)
    with pytest.raises(SettingError, match="found samples with models in closed form"):
        crossfeed.audit(closed, samples=64)


def test_nothing_that_can_be_raised(spec):
    eco = crossfeed.load(spec, overrides={"p.curation": 0.5})
    q = eco.models["q"].model_copy(update={"sources": eco.models["q"].sources[:1]})
    p = eco.models["p"].model_copy(update={"sources": eco.models["p"].sources[1:]})
    with pytest.raises(NotAvailableError, match="no curation ratio that can be raised"):
        crossfeed.audit(eco.model_copy(update={"models": {"p": p, "q": q}}))
