"""``crossfeed audit`` of diffusion networks, which have no likelihood: files, page and terminal, and what is refused before pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossfeed.cli import main
from crossfeed.estimate import points
from crossfeed.report.estimate_html import html
from crossfeed.report.estimate_terminal import plain
from crossfeed.report.output import read_audit
from report.test_estimate_data import undocumented
from report.test_page import Outline

SPEC = """
crossfeed: 1
name: two painters
space: {kind: images, file: "sample:cifar10", rows: 40, size: 8}
data:
  photographs: {kind: images}
rewards:
  warm: {kind: hue_band, bands: [[0.92, 1], [0, 0.17]]}
  cool: {kind: hue_band, bands: [[0.5, 0.72]]}
models:
  p:
    family: &family
      {kind: diffusion, channels: [4], attention: [false], norm_groups: 2, noise_levels: 20, sampling_steps: 2, head_dim: 4}
    reward: warm
    train: &train {steps: 3, batch_size: 8, learning_rate: 1.0e-3}
    pretrain: {steps: 2, batch_size: 4}
    sources:
      - {kind: real, data: photographs, weight: 0.6}
      - {kind: curated, producer: p, candidates: 2, weight: 0.4}
  q:
    family: *family
    reward: cool
    train: *train
    sources:
      - {kind: real, data: photographs, weight: 0.6}
      - {kind: curated, producer: p, candidates: 2, weight: 0.4}
samples: {per_round: 20}
run: {rounds: 3, evaluation_samples: 8, generation_batch: 32}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command has put an audit."""
    place = tmp_path_factory.mktemp("painters")
    (place / "two.yaml").write_text(SPEC, encoding="utf-8")
    options = ["--samples", "24", "--rounds", "1", "--estimator", "matrix-free", "--out", str(place / "out")]
    assert main(["audit", str(place / "two.yaml"), *options]) == 0
    return place / "out"


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text(encoding="utf-8"))


def test_the_file_says_how(data: dict[str, Any]) -> None:
    assert (data["route"], data["solver"]) == ("pathwise", "matrix-free, 6 independent batches")
    assert [model["route"] for model in data["models"]] == ["pathwise"] * 2
    assert (
        data["command"].endswith("--samples 24 --estimator matrix-free") or "--estimator matrix-free" in data["command"]
    )
    assert (data["examples"], data["sources"], data["pickers"]) == ([], [], [])
    assert "takes a gradient of every sample" in data["not_attributed"]
    assert data["trajectory"]["rounds"] == [0, 1]
    assert len(data["trajectory"]["influence"]) == len(data["trajectory"]["base"]) == 2
    assert [s["groups"] for s in data["models"][0]["sources"]] == [24, 12]
    assert {check["name"] for check in data["checks"]} >= {
        "sampler of p",
        "sampler of q",
        "expansion",
        "reach",
        "repeats",
    }


def test_every_key_is_documented(data: dict[str, Any]) -> None:
    assert undocumented(data) == set()


def test_the_page_and_the_terminal_say_it_too(folder: Path, data: dict[str, Any]) -> None:
    assert read_audit(folder / "audit.json") == data
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page == html(data)
    Outline(page)
    assert data["not_attributed"] in page
    assert "pathwise, matrix-free, 6 independent batches" in page
    assert "Memory of vectors" in page
    text = plain(data)
    assert "pathwise, matrix-free" in text
    assert "passes of a sample" in text


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", ["--estimator", "bank"], "has no likelihood, and the gradient bank needs one"),
        ("", ["--projection", "100"], "--projection: found 100; the matrix-free solver keeps no gradients"),
        ("", ["--estimator", "best"], "--estimator: found 'best'; need one of auto, bank, matrix-free"),
        ("", ["--outputs", "p=x.parquet"], "outputs of p: found a model that is taken by its sampler"),
        ("candidates: 2, temperature: 0", [], "models.p.sources.curated_p: temperature: found 0"),
    ],
)
def test_refused_before_pretraining(
    tmp_path: Path, monkeypatch: Any, capsys: Any, change: str, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(points, "open_point", lambda *_: pytest.fail("opened the models"))
    Path("two.yaml").write_text(SPEC.replace("candidates: 2", change or "candidates: 2"), encoding="utf-8")
    assert main(["audit", "two.yaml", *options]) == 2
    assert message in capsys.readouterr().err
