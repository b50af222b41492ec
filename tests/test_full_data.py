"""On the full data sets: make test-data CROSSFEED_DATA=folder."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import crossfeed as cf

pytestmark = pytest.mark.shared
DATA = Path(os.environ.get("CROSSFEED_DATA", ""))


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
