"""Reading specs: YAML and JSON, arrays from files, several problems at once, code only with leave, the JSON Schema."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from specs import OUTCOMES, REGRESSION, VALID, VECTORS

from crossfeed.describe.load import load, schema
from crossfeed.describe.schema import (
    CallableReward,
    Curated,
    Ecosystem,
    GaussianMean,
    LinearReward,
    Model,
    MomentsData,
    Pick,
    Raw,
    Real,
    RowsData,
    TableReward,
    Vectors,
)
from crossfeed.errors import SpecError

ROOT = Path(__file__).parents[2]


def _same(one: Ecosystem, other: Ecosystem) -> bool:
    return one.model_dump() == other.model_dump()


def _write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_yaml_json_and_python_give_the_same(name: str, tmp_path: Path) -> None:
    eco = load(_write(tmp_path, VALID[name]))
    plain = yaml.safe_load(VALID[name])
    assert _same(eco, Ecosystem(**plain))
    for number, text in enumerate((json.dumps(plain), json.dumps(plain, indent="\t"))):
        assert _same(eco, load(_write(tmp_path, text, f"spec{number}.json")))
    assert _same(eco, load(_write(tmp_path, json.dumps(plain, indent=1), "json.yaml")))
    assert _same(
        eco, load(_write(tmp_path, yaml.safe_dump(eco.model_dump(mode="json"), sort_keys=False), "again.yaml"))
    )


def test_python_objects_give_the_same_as_yaml(tmp_path: Path) -> None:
    eco = Ecosystem(
        space=Vectors(dim=2),
        data={
            "web": RowsData(rows=np.array([[0, 0], [1, 1], [2, 0]])),
            "law": MomentsData(mean=[0, 0], cov=[1, 2]),
        },
        rewards={"far": LinearReward(vector=(1, 0))},
        models={
            "p": Model(
                family=GaussianMean(),
                reward="far",
                sources=[Real(data="web", weight=0.5), Curated(producer="p", weight=0.5, candidates=np.int64(3))],
            )
        },
    )
    text = """
    space: {kind: vectors, dim: 2}
    data:
      web: {kind: rows, rows: [[0, 0], [1, 1], [2, 0]]}
      law: {kind: moments, mean: [0, 0], cov: [1, 2]}
    rewards: {far: {kind: linear, vector: [1, 0]}}
    models:
      p:
        family: {kind: gaussian_mean}
        reward: far
        sources: [{kind: real, data: web, weight: 0.5}, {kind: curated, producer: p, weight: 0.5, candidates: 3}]
    """
    assert _same(load(_write(tmp_path, text)), eco)


def test_yaml_1_2_words_and_numbers(tmp_path: Path) -> None:
    text = (
        VECTORS.replace("far", "no")
        .replace("near:", "on:")
        .replace(": near", ": on")
        .replace("cov: [1, 2]", "cov: [1e-3, 0x10]")
    )
    eco = load(_write(tmp_path, text.replace("reward: on", "reward: on\n    ridge: 1e-4")))
    assert set(eco.rewards) == {"no", "on", "steep"}
    assert eco.data["law"].cov.tolist() == [0.001, 16]
    assert eco.models["p"].ridge == 1e-4


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = VECTORS.replace("[0, 1]}}", "&up [0, 1]}}").replace("start: [0, 1]", "start: *up")
    text = text.replace(
        "{kind: curated, producer: p, weight: 0.3, then",
        "{<<: {weight: 1, candidates: 7}, kind: curated, producer: p, weight: 0.3, then",
    )
    eco = load(_write(tmp_path, text))
    picked = eco.models["q"].sources[1]
    assert (picked.weight, picked.candidates) == (0.3, 7)
    assert eco.models["p"].start.tolist() == [0, 1]


def test_a_mistake_in_an_anchor_is_at_its_own_line(tmp_path: Path) -> None:
    text = VECTORS.replace("reward: near", "<<: &common\n      ridge: -1\n    reward: near")
    with pytest.raises(SpecError, match=r"spec.yaml:13: models.p.ridge: found -1; need a number ≥ 0"):
        load(_write(tmp_path, text))


def test_byte_order_mark_crlf_unicode_and_surrogates(tmp_path: Path) -> None:
    text = OUTCOMES.replace("good", "gut 😀").replace("web", "Ünïcødé 网")
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    eco = load(path)
    assert eco.space.labels[0] == "gut 😀"
    assert _same(eco, load(_write(tmp_path, json.dumps(yaml.safe_load(text)), "spec.json")))
    with pytest.raises(SpecError, match=r"spec.yaml:16: models.p.sources\[0\].data: found the unknown name '网'"):
        load(_write(tmp_path, OUTCOMES.replace("data: web", "data: 网")))


def test_json_mistakes_have_lines(tmp_path: Path) -> None:
    plain = yaml.safe_load(OUTCOMES)
    plain["models"]["p"]["rewrad"] = 1
    spec = _write(tmp_path, json.dumps(plain, indent=1), "spec.json")
    with pytest.raises(SpecError) as caught:
        load(spec)
    line = caught.value.problems[0].line
    assert "rewrad" in spec.read_text().split("\n")[line - 1]
    with pytest.raises(SpecError, match=r"spec.json:3: a: found this key twice, first in line 2"):
        load(_write(tmp_path, '{\n"a": 1,\n"a": 2}', "spec.json"))


def test_arrays_from_every_kind_of_file(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    values = np.array([1.0, 0.0, -1.0])
    np.save(folder / "a.npy", values.astype(np.float32))
    np.savez(folder / "one.npz", a=values)
    np.savez_compressed(folder / "two.npz", a=values, b=-values)
    (folder / "a.csv").write_text("1\n0\n-1\n")
    (folder / "b.csv").write_text("﻿x, y\n5,1\n5,0\n\n5,-1\n", encoding="utf-8")
    pq.write_table(pa.table({"x": [5, 5, 5], "y": pa.array([1, 0, -1], pa.int8())}), folder / "a.parquet")
    entries = [
        "{file: a.npy}",
        "{file: one.npz}",
        "{file: two.npz, key: a}",
        "{file: a.csv}",
        "{file: b.csv, columns: [y]}",
        "{file: b.csv, columns: y}",
        "{file: a.parquet, columns: [y]}",
        f"{{file: '{folder / 'a.npy'}'}}",
    ]
    for entry in entries:
        spec = _write(folder, OUTCOMES.replace("values: [1, 0, -1]", f"values: {entry}"))
        array = load(spec).rewards["warm"].values
        assert array.tolist() == values.tolist(), entry
        assert array.dtype == np.float64
        assert not array.flags.writeable


def test_tables_labels_and_lists_from_files(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\n0,0,1\n1,1,1\n2,0,1\n")
    pq.write_table(pa.table({"v": [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]}), tmp_path / "rows.parquet")
    for entry in ("{file: rows.csv, columns: [a, b]}", "{file: rows.parquet}"):
        eco = load(_write(tmp_path, VECTORS.replace("[[0, 0], [1, 1], [2, 0]]", entry)))
        assert eco.data["web"].rows.tolist() == [[0, 0], [1, 1], [2, 0]]
    (tmp_path / "labels.csv").write_text("label\ngood\nfine\nbad\n")
    pq.write_table(pa.table({"l": pa.array(["good", "fine", "bad"]).dictionary_encode()}), tmp_path / "labels.parquet")
    for entry in ("{file: labels.csv, columns: [label]}", "{file: labels.parquet}"):
        eco = load(_write(tmp_path, OUTCOMES.replace("[good, fine, fine, bad]", entry)))
        assert eco.data["web"].rows.tolist() == ["good", "fine", "bad"]
    with pytest.raises(SpecError, match=r"labels in 'labels.csv' without `columns`"):
        load(_write(tmp_path, OUTCOMES.replace("[good, fine, fine, bad]", "{file: labels.csv}")))


def test_a_list_is_one_column(tmp_path: Path) -> None:
    eco = load(_write(tmp_path, REGRESSION))
    assert eco.data["seen"].y.tolist() == [[1], [2]]
    one = Ecosystem(
        space=Vectors(dim=1),
        data={"web": RowsData(rows=[1, 2, 3])},
        rewards={"r": LinearReward(vector=[1])},
        models={"p": Model(family=GaussianMean(), reward="r", sources=[Real(data="web", weight=1)])},
    )
    assert one.data["web"].rows.tolist() == [[1], [2], [3]]


def test_image_files_are_beside_the_spec(tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", np.zeros((4, 2, 2, 3), np.uint8))
    spec = _write(tmp_path, VALID["images"].replace("sample:cifar10", "photos.npy"))
    assert Path(load(spec).space.file) == tmp_path / "photos.npy"


# --- what is refused ------------------------------------------------------------------------------------------------


def test_every_problem_is_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        OUTCOMES.replace("weight: 0.5", "weight: -1")
        .replace("kind: categorical", "kind: cat")
        .replace("weight: 0.6", "wieght: 0.6")
    )
    with pytest.raises(SpecError) as caught:
        load(_write(tmp_path, text))
    assert [(p.line, p.path) for p in caught.value.problems] == [
        (13, "models.p.family.kind"),
        (16, "models.p.sources[0].weight"),
        (25, "models.q.sources[0].weight"),
        (25, "models.q.sources[0].wieght"),
    ]
    text = (
        OUTCOMES.replace("data: web", "data: wbe").replace("[1, 0, -1]", "[1, 0]").replace("weight: 0.6", "weight: 0.5")
    )
    with pytest.raises(SpecError) as caught:
        load(_write(tmp_path, text))
    assert [(p.line, p.path) for p in caught.value.problems] == [
        (9, "rewards.warm.values"),
        (16, "models.p.sources[0].data"),
        (24, "models.q.sources"),
    ]


def test_alike_entries_of_a_list_are_one_problem(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(_write(tmp_path, OUTCOMES.replace("labels: [good, fine, bad]", "labels: [1, 2, 3]")))
    assert [p.found for p in caught.value.problems] == ["found 1 (2 more such entries)"]


def test_code_needs_leave(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef reward(y): return y[:, 0]\n")
    spec = _write(
        tmp_path, VECTORS.replace("{kind: linear, vector: [1, 0]}", "{kind: callable, function: 'evil:reward'}")
    )
    with pytest.raises(SpecError, match="allow_code=True"):
        load(spec)
    assert load(spec, allow_code=True).rewards["far"] == CallableReward(function="evil:reward")
    assert not marker.exists()


def test_python_mistakes_have_the_same_words_without_a_line() -> None:
    plain = yaml.safe_load(OUTCOMES)
    plain["models"]["p"]["reward"] = "wrm"
    with pytest.raises(SpecError) as caught:
        Ecosystem(**plain)
    assert str(caught.value).startswith(
        "models.p.reward: found the unknown name 'wrm'; need a name under `rewards`: warm, cool"
    )
    plain["models"]["p"]["reward"] = 3
    with pytest.raises(SpecError, match=r"^models.p.reward: found 3; need text: put it in quotes$"):
        Ecosystem(**plain)
    plain["models"] = {1: plain["models"]["p"]}
    with pytest.raises(SpecError, match="without dots and brackets"):
        Ecosystem(**plain)


def test_a_node_on_its_own_names_its_class() -> None:
    with pytest.raises(SpecError, match=r"^Vectors.dim: found 0; need a number ≥ 1$"):
        Vectors(dim=0)
    with pytest.raises(SpecError, match=r"^Curated.candidates: found 2.5; need a whole number of candidates"):
        Curated(producer="p", weight=1, candidates=2.5)
    with pytest.raises(SpecError, match=r"^Curated.then.noise: found 3; need a number ≤ 1$"):
        Curated(producer="p", weight=1, then={"noise": 3})
    with pytest.raises(SpecError, match=r"^Real.data: found no `data`; need `data: …` here"):
        Real(weight=1)
    with pytest.raises(SpecError, match=r"^TableReward.values\[1\]: found nan at \[1\]; need finite numbers$"):
        TableReward(values=[1, float("nan")])
    with pytest.raises(SpecError, match=r"^Model.family: found a LinearReward; need one of Categorical, LogLinear"):
        Model(family=LinearReward(vector=[1]), reward="r", sources=[Raw(producer="p", weight=1)])
    with pytest.raises(SpecError, match=r"^TableReward.values: found a whole number of about 6,000 digits"):
        TableReward(values=10**6000 - 1)
    with pytest.raises(SpecError, match=r"^Raw.weight: found a whole number of about 6,000 digits"):
        Raw(producer="p", weight=10**6000 - 1)
    with pytest.raises(SpecError, match=r"^TableReward.values: found an array of complex128"):
        TableReward(values=np.array([1j]))
    with pytest.raises(SpecError, match=r"^Pick.candidates: found a whole number of about 6,000 digits"):
        Pick(candidates=10**6000 - 1)


# --- JSON Schema and reference --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("name", VALID)
def test_the_json_schema_takes_valid_specs(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(json.loads(json.dumps(yaml.safe_load(VALID[name]))))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight: 0.5", "weight: 1.5"),
        ("weight: 0.5", "weight: '0.5'"),
        ("reward: warm", "rewrad: warm"),
        ("kind: categorical", "kind: cat"),
        ("{kind: real, data: web, weight: 0.5}", "{data: web, weight: 0.5}"),
        ("data: web", "producer: web"),
        ("candidates: 4", "candidates: 0"),
        ("candidates: 4", "candidates: many"),
        ("kind: outcomes", "kind: outcome"),
        ("kind: sequential", "kind: sequentially"),
        ("update:", "seed: -1\nupdate:"),
    ],
)  # fmt: skip
def test_the_json_schema_refuses_broken_specs(old: str, new: str, validator: jsonschema.Draft202012Validator) -> None:
    assert old in OUTCOMES
    broken = json.loads(json.dumps(yaml.safe_load(OUTCOMES.replace(old, new, 1))))
    assert not validator.is_valid(broken)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spec_reference", ROOT / "tools" / "spec_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_fresh_and_its_check_notices(reference: ModuleType, tmp_path: Path) -> None:
    assert reference.main(["--check"]) == 0, "run tools/spec_reference.py"
    page = tmp_path / "spec.md"
    assert reference.main(["--check", "--out", str(page)]) == 1
    assert reference.main(["--out", str(page)]) == 0
    assert reference.main(["--check", "--out", str(page)]) == 0
    page.write_text(page.read_text() + "x")
    assert reference.main(["--check", "--out", str(page)]) == 1


def test_the_reference_shows_every_node_and_key_and_its_examples_are_valid(reference: ModuleType) -> None:
    page = reference.page()
    for name, node in reference.nodes().items():
        assert f"## {name}" in page or f"### {name}" in page
        for key in node.model_fields:
            assert f"| `{key}` |" in page
        node.model_validate(yaml.safe_load(reference.EXAMPLES[name]))
