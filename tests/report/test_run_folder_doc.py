"""docs/run-folder.md against real runs: every file, column and key that is written stands there, and nothing else."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from crossfeed.record.folder import RunFolder
from crossfeed.record.preferences import export_preferences
from crossfeed.retraining.run import run_networks
from networks.tiny import diffusions, flows, languages

DOCUMENT = Path(__file__).parents[2] / "docs" / "run-folder.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
ROUNDS = 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    home = tmp_path_factory.mktemp("runs")
    (home / "data").mkdir()
    made = {
        "vectors": flows(steps=2, samples=20),
        "images": diffusions(steps=2, samples=8),
        "text": languages(home / "data", steps=2),
    }
    for eco in made.values():
        for model in eco.models.values():
            assert model.train is not None
            object.__setattr__(model.train, "keep_optimizer", True)
    return {
        kind: run_networks(eco, home / kind, rounds=ROUNDS, device="cpu", spec_text="name: x\n").folder  # type: ignore[misc]
        for kind, eco in made.items()
    }


def section(title: str) -> str:
    """A section of the document."""
    return re.split(r"\n## ", TEXT.split(f"\n## {title}\n")[1])[0]


def listed(part: str, table: int = 0) -> dict[str, str]:
    """What the first column of a table names, with the next column."""
    tables = re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)
    out = {}
    for line in tables[table].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        kinds = re.split(r", (?!image)", cells[1])
        names = re.findall(r"`([^`]+)`", cells[0])
        out |= {name: kinds[k] if len(kinds) == len(names) else cells[1] for k, name in enumerate(names)}
    return out


def columns(run: RunFolder, pattern: str) -> dict[str, Any]:
    """Columns of the Parquet files of a run, with their types."""
    out = {}
    for file in sorted(run.path.glob(pattern)):
        with pq.ParquetFile(file) as parquet:
            out |= {field.name: field.type for field in parquet.schema_arrow}
    assert out
    return out


@pytest.mark.parametrize(
    ("pattern", "title"),
    [
        ("metrics.parquet", "metrics.parquet"),
        ("rounds/*/metrics.parquet", "metrics.parquet"),
        ("rounds/*/samples-*.parquet", "samples-MODEL.parquet"),
        ("rounds/*/shown-*.parquet", "shown-MODEL.parquet"),
    ],
)
def test_every_column_is_described(runs: dict[str, RunFolder], pattern: str, title: str) -> None:
    told = listed(section(title))
    for kind, run in runs.items():
        found = columns(run, pattern)
        assert list(found) == [name for name in told if name != "label" or kind == "images" or "label" in found]
        for name, dtype in found.items():
            if name not in {"output", "candidates", "rewards"}:
                assert told[name] == str(dtype), name
    assert "label" in columns(runs["images"], "rounds/*/shown-*.parquet")


def test_every_metric_is_described(runs: dict[str, RunFolder]) -> None:
    found = {name for run in runs.values() for name in run.metrics().column("metric").to_pylist()}
    assert found == set(listed(section("metrics.parquet"), 1))


def test_every_file_is_described(runs: dict[str, RunFolder]) -> None:
    layout = TEXT.split("```")[1]
    told = {line.split()[0].removeprefix("rounds/0000/") for line in layout.splitlines()[2:]}
    patterns = {name.replace("MODEL", "*") for name in told if name}
    for run in runs.values():
        files = {file.name for file in run.path.rglob("*") if file.is_file()}
        unknown = {name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)}
        assert unknown == set()
        missing = {p for p in patterns if "." in p and not any(fnmatch(name, p) for name in files)}
        assert missing == {"tracking.json", "report.html"}  # made by --track and by `crossfeed report`
        assert sorted(p.name for p in (run.path / "rounds").iterdir()) == ["0000", "0001"]


def test_every_key_is_described(runs: dict[str, RunFolder]) -> None:
    for run in runs.values():
        about = json.loads((run.path / "run.json").read_text())
        assert set(listed(section("Files of the run"))) >= set(about)
        for part in ("options", "hardware"):
            assert all(f"`{key}`" in section("Files of the run") for key in about[part])
        assert set(json.loads((run.path / "status.json").read_text())) == {"result", "reason"}
        for number in run.rounds:
            note = json.loads((run.path / "rounds" / f"{number:04d}" / "round.json").read_text())
            assert set(listed(section("round.json"))) == set(note)
            only_texts = set() if run.eco.space.kind == "text" else {"evaluations"}
            assert set(listed(section("round.json"), 1)) == set(note["info"]) | only_texts
            assert set(note["seconds"]) <= set(re.findall(r"`(\w+)`", listed(section("round.json"))["seconds"]))
            inside = [*note["info"]["stopping"], *note["info"]["checks"].get("p", ())]
            inside += [*note["info"]["outputs"]["p"]["own"], *note["models"]["p"], *note["files"]["metrics.parquet"]]
            assert all(f"`{key}`" in section("round.json") for key in inside)


def test_kinds_of_samples_are_described(runs: dict[str, RunFolder]) -> None:
    said = listed_cell("kind")
    for run in runs.values():
        for model in run.eco.names:
            for number in run.recorded(model):
                assert all(f"`{kind}`" in said for kind in run.samples(number, model).column("kind").to_pylist())


def listed_cell(name: str) -> str:
    return next(line for line in section("samples-MODEL.parquet").splitlines() if line.startswith(f"| `{name}` |"))


def test_preferences_are_as_described(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    assert export_preferences(runs["text"], tmp_path / "picks.parquet") > 0
    with pq.ParquetFile(tmp_path / "picks.parquet") as parquet:
        assert parquet.schema_arrow.names == list(listed(section("Preferences for TRL")))


def test_the_code_works(runs: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    known: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        code = code.replace("runs/a", str(runs["text"].path)).replace("0005", "0001").replace("r0003", "r0001")
        exec(code.replace("000017", "000001"), known)
    assert known["run"].verify() == []
    assert known["people"].num_rows == ROUNDS * 3
    assert set(known["metrics"]["metric"]) >= {"alignment", "delta"}
