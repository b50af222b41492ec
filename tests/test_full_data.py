"""On the full data sets: make test-data CROSSFEED_DATA=folder."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfeed as cf
from crossfeed.describe.load import load
from crossfeed.retraining.run import run_networks

pytestmark = pytest.mark.shared
DATA = Path(os.environ.get("CROSSFEED_DATA", ""))
EXAMPLES = Path(__file__).parents[1] / "examples"
PLAIN = {"where": {}, "strip": None}  # sentences without instructions, unlike the hub's


def test_published_constants_are_the_packaged_ones() -> None:
    with (
        np.load(DATA / "gaussian_mechanism.npz") as full,
        np.load(str(files("crossfeed.reproduce") / "gaussian_mechanism.npz")) as ours,
    ):
        assert set(full.files) == set(ours.files)
        for key in full.files:
            np.testing.assert_array_equal(full[key], ours[key])


def test_audit_of_fifty_thousand_photographs_in_cells(tmp_path: Path) -> None:
    spec = (Path(__file__).parents[1] / "examples" / "cifar10" / "A3.yaml").read_text()
    spec = spec.replace(
        "  file: sample:cifar10",
        f"  file: {DATA / 'cifar10' / 'train.parquet'}\n  cells: {{hue: 16, saturation: 4, brightness: 4}}",
    )
    path = tmp_path / "full.yaml"
    path.write_text(spec[: spec.index("  thresholds:")])
    audit = cf.audit(cf.load(path))
    assert audit.data["stable"]["result"] == "converged"
    assert "50,000 photographs" in audit.data["space"]
    assert audit.data["influence"]["verdict"][0][0] in ("helps", "dampened", "backfires")
    page = audit.save(tmp_path / "report.html")
    assert page.stat().st_size < 5_000_000


def test_real_photographs_of_two_halves_agree(tmp_path: Path) -> None:
    """The shipped sample stands for the whole: self-influence of p in A3 within a factor of 1.5 of two other samples of 2,000."""
    spec = (Path(__file__).parents[1] / "examples" / "cifar10" / "A3.yaml").read_text()
    spec = spec[: spec.index("audit:")].replace("band_weight: 4", "band_weight: 1")
    values = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.yaml"
        path.write_text(
            spec.replace(
                "  file: sample:cifar10", f"  file: {DATA / 'cifar10' / 'train.parquet'}\n  rows: 2000"
            ).replace("seed: 0", f"seed: {seed}")
        )
        values.append(cf.audit(cf.load(path)).data["influence"]["matrix"][0][0])
    path = tmp_path / "sample.yaml"
    path.write_text(spec)
    ours = cf.audit(cf.load(path)).data["influence"]["matrix"][0][0]
    for value in values:
        assert 1 / 1.5 < value / ours < 1.5


def test_language_models_learn_from_each_others_answers_to_real_texts(tmp_path: Path) -> None:
    files = {"articles": "debian_synopsis_train", "new_articles": "debian_synopsis_validation"}
    files |= {"sentences": "coedit_paraphrase_train", "new_sentences": "coedit_paraphrase_validation"}
    changes: dict[str, Any] = {f"data.{name}.file": str(DATA / f"{file}.parquet") for name, file in files.items()}
    changes |= {f"data.{name}.input_column": "article" for name in ("articles", "new_articles")}
    changes |= {f"data.{name}.{key}": value for name in ("sentences", "new_sentences") for key, value in PLAIN.items()}
    changes |= {"models.*.family.pretrained": None, "models.*.family.fresh": {"width": 32, "vocabulary": 600}}
    changes |= {"p.curation": 0.2, "q.curation": 0.2, "run.rounds": 2}
    eco = load(EXAMPLES / "language" / "mismatch.yaml", scale="smoke", overrides=changes)
    run = run_networks(eco, tmp_path / "run", device="cpu")
    assert (run.result, run.folder.rounds) == ("finished", [0, 1, 2])
    for name, asked in (("p", "sentences"), ("q", "articles")):
        pool = run.folder.pool(2, name)
        assert set(pool.data) == {asked}
        assert pool.kind.count("curated") == 2
    assert run.folder.verify() == []


def test_diffusion_models_on_all_training_photographs(tmp_path: Path) -> None:
    changes = {"space.file": str(DATA / "cifar10" / "train.parquet"), "run.rounds": 1, "models.*.pretrain.steps": 20}
    eco = load(EXAMPLES / "diffusion" / "A4.yaml", scale="smoke", overrides=changes)
    run = run_networks(eco, tmp_path / "run", device="cpu")
    assert (run.result, run.folder.rounds) == ("finished", [0, 1])
    pool = run.folder.pool(1, "p")
    assert [pool.source.count(name) for name in ("real", "own", "cross")] == [32, 10, 22]  # ½, .15 and .35 of 64 rows
    assert max(row for row in pool.row if row is not None) > 10_000
