"""Scales and overrides: which places a path names, what is changed and what is not, and whose line an error has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfeed.describe.load import load
from crossfeed.describe.overrides import PathError, places, put
from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import SpecError

SPEC = """\
space: {kind: vectors, dim: 1}
data: {web: {kind: rows, rows: [1, 2]}}
rewards: {r: {kind: linear, vector: [1]}}
models:
  p: &p
    family: {kind: flow, width: 8}
    reward: r
    sources:
      - {kind: real, data: web, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.5, candidates: 4}
    train: {steps: 100}
    pretrain: {steps: 50}
  q:
    <<: *p
    pretrain: null
scales:
  smoke:
    models.*.train.steps: 2
    models.*.pretrain.steps: 1
    models.p.sources[1].candidates: 2
    models.*.sources[*].weight: 0.5
    run.rounds: 3
    run.stop.collapse: 0
  big: {models.q.train: {steps: 900, batch_size: 7}}
"""


def _write(folder: Path, text: str = SPEC) -> Path:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return folder / "spec.yaml"


def _problem(spec: Path, **options: Any) -> tuple[str, int | None, str, str]:
    with pytest.raises(SpecError) as caught:
        load(spec, **options)
    assert len(caught.value.problems) == 1, str(caught.value)
    problem = caught.value.problems[0]
    return problem.path, problem.line, problem.found + "; " + problem.need, problem.file or ""


def test_a_scale_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    plain, smoke, big = (load(_write(tmp_path), scale=scale) for scale in (None, "smoke", "big"))
    steps = {name: m.train.steps for name, m in smoke.models.items() if m.train}
    assert steps == {"p": 2, "q": 2}
    assert [m.pretrain and m.pretrain.steps for m in smoke.models.values()] == [1, None]
    assert [m.sources[1].candidates for m in smoke.models.values()] == [2, 4]  # p's and q's sources are one YAML alias
    assert (smoke.run.rounds, smoke.run.stop.collapse, smoke.run.stop.patience) == (3, 0.0, 2)
    assert [m.train and (m.train.steps, m.train.batch_size) for m in big.models.values()] == [(100, 64), (900, 7)]
    assert [m.train and m.train.steps for m in plain.models.values()] == [100, 100]
    assert plain.run.rounds == 10
    assert smoke.scales == big.scales == plain.scales


def test_overrides_come_after_the_scale_and_settings_after_all(tmp_path: Path) -> None:
    changes = {"models.p.train.steps": 7, "run.rounds": 1, "q.curation": 0.75}
    eco = load(_write(tmp_path), scale="smoke", overrides=changes)
    assert [m.train and m.train.steps for m in eco.models.values()] == [7, 2]
    assert eco.run.rounds == 1
    assert [[s.weight for s in m.sources] for m in eco.models.values()] == [[0.5, 0.5], [0.25, 0.75]]


def test_errors_have_the_line_of_what_they_come_from(tmp_path: Path) -> None:
    bad = SPEC.replace("models.*.train.steps: 2", "models.*.train.steps: 0")
    with pytest.raises(SpecError) as caught:
        load(_write(tmp_path, bad), scale="smoke")
    assert [(p.path, p.line) for p in caught.value.problems] == [
        ("models.p.train.steps", 18),
        ("models.q.train.steps", 18),
    ]
    assert isinstance(load(_write(tmp_path, bad)), Ecosystem)  # only paths of scales that are not chosen are looked at
    path, line, says, file = _problem(_write(tmp_path), overrides={"models.p.train.steps": 0})
    assert (path, line, file) == ("models.p.train.steps", None, "override")
    assert "found 0; need a number ≥ 1" in says
    path, line, says, file = _problem(_write(tmp_path, SPEC.replace("{steps: 50}", "{steps: 0}")), scale="big")
    assert (path, line, Path(file).name) == ("models.p.pretrain.steps", 12, "spec.yaml")
    assert "found 0" in says


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("models.*.train.stepz", "found an unknown key 'stepz'; need"),
        ("models.r.train.steps", "found no entry 'r'; need one of p, q"),
        ("models.p.sources[2].weight", "found entry 2 of 2; need [0] to [1], or [*]"),
        ("models.p.sources.weight", "found the key 'weight' of a list; need [0]"),
        ("models[0].train", "found [0] of what is no list; need a key"),
        ("models.*.domain.x", "found no place of this name"),
        ("moddels.p.train", "found an unknown key 'moddels'; need"),
        ("models..p", "found the path 'models..p'; need keys joined by dots"),
        ("scales.smoke", "found a change of scales themselves"),
    ],
)
def test_paths_that_lead_nowhere_in_a_scale_that_is_not_chosen(path: str, says: str, tmp_path: Path) -> None:
    spec = _write(tmp_path, SPEC.replace("    run.rounds: 3", f"    {path}: 3"))
    where, line, text, _ = _problem(spec)
    assert (where, line) == (f"scales.smoke.{path}", 22)
    assert says in text


def test_near_names(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    assert "did you mean 'smoke'?" in _problem(spec, scale="smok")[2]
    assert _problem(spec, scale="tiny")[1] == 16
    assert "did you mean 'steps'?" in _problem(spec, overrides={"models.p.train.step": 1})[2]
    assert "did you mean 'models'?" in _problem(spec, overrides={"model.p.train.steps": 1})[2]
    assert "did you mean 'curation'?" in _problem(spec, overrides={"p.curatoin": 1})[2]
    path, line, says, file = _problem(spec, overrides={"p.curation": 2})
    assert (path, line, file) == ("p.curation", None, "override")
    assert "need a number from 0 to 1" in says
    bare = _write(tmp_path, SPEC[: SPEC.index("scales:")])
    assert "found no scale 'smoke'; need a spec with `scales:" in _problem(bare, scale="smoke")[2]
    half = _problem(spec, overrides={"p.sources.curated_p.candidates": 2.5})
    assert half[0] == "models.p.sources[1].candidates"
    assert "2.5 candidates of a network" in half[2]


def test_places_and_put_on_plain_values() -> None:
    value: dict[str, Any] = {"models": {"p": {"sources": [{"kind": "raw", "weight": 1}, {"kind": "real"}]}}}
    assert places(value, "models.p.sources[*].weight") == [
        ("models", "p", "sources", 0, "weight"),
        ("models", "p", "sources", 1, "weight"),
    ]
    assert places(value, "update.order.kind") == [("update", "order", "kind")]
    after = put(value, ("models", "p", "sources", 1, "weight"), 2)
    assert after["models"]["p"]["sources"] == [{"kind": "raw", "weight": 1}, {"kind": "real", "weight": 2}]
    assert value["models"]["p"]["sources"][1] == {"kind": "real"}
    for path in ("", ".", "a..b", "models.p.sources[-1]", "models.p.sources[x]", "[0]", "models.p.", "models p"):
        with pytest.raises(PathError):
            places(value, path)
