"""The run's table of inputs and the real data: what is read, what is drawn, and one clear error a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crossfeed.describe import schema as s
from crossfeed.describe.photographs import read_images, resized
from crossfeed.errors import DataError, NotAvailableError, SpecError
from crossfeed.networks import extras
from crossfeed.networks.build import build
from crossfeed.networks.texts import read_preferences, read_texts
from crossfeed.networks.world import World, open_world


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _eco(space: s.Space, data: dict[str, s.Data], reward: s.Reward, family: s.Family, seed: int = 0) -> s.Ecosystem:
    sources = [s.Real(data=next(iter(data)), weight=1)]
    model = s.Model(family=family, reward="r", sources=sources, train=s.Training(steps=1))
    return s.Ecosystem(space=space, data=data, rewards={"r": reward}, models={"p": model}, seed=seed)


def _vectors(**data: s.Data) -> World:
    return open_world(_eco(s.Vectors(dim=2), dict(data), s.LinearReward(vector=[1, 0]), s.Flow(width=4)))


def _texts(seed: int = 0, **data: s.Data) -> World:
    family = s.CausalLM(fresh=s.FreshLM())
    return open_world(_eco(s.Text(), dict(data), s.SummaryReward(), family, seed))


# --- vectors --------------------------------------------------------------------------------------------------------


def test_rows_come_without_replacement_and_then_again() -> None:
    world = _vectors(web=s.RowsData(rows=[[0, 1], [1, 0], [2, 2]]))
    rows, prompts, outputs = world.data["web"].draw(8, _generator())
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]  # type: ignore[type-var]
    assert len(set(rows[6:])) == 2
    assert prompts.tolist() == [0] * 8
    assert torch.equal(outputs, torch.tensor([[0.0, 1], [1, 0], [2, 2]])[torch.tensor(rows)])  # type: ignore[arg-type]
    assert rows == world.data["web"].draw(8, _generator())[0]
    assert [rows] != [world.data["web"].draw(8, _generator(seed))[0] for seed in range(1, 5)]
    assert world.data["web"].draw(0, _generator())[0] == []
    assert (world.medium, world.shape, world.num_classes, len(world.prompts)) == ("vectors", (2,), None, 1)


def test_moments_and_mixtures_are_drawn_afresh_with_the_moments_they_say() -> None:
    moments = s.MomentsData(mean=[1, -1], cov=[[2, 0.5], [0.5, 1]])
    mixture = s.MixtureData(means=[[3, 0], [0, 3]], std=0.5, weights=[3, 1])
    world = _vectors(law=moments, ring=mixture)
    num = 40_000  # every bound is 5 standard errors: false alarm below 1e-5
    for name, mean, cov in (
        ("law", [1, -1], [[2, 0.5], [0.5, 1]]),
        ("ring", [2.25, 0.75], [[0.25 + 27 / 16, -27 / 16], [-27 / 16, 0.25 + 27 / 16]]),
    ):
        rows, _, outputs = world.data[name].draw(num, _generator(1))
        assert isinstance(outputs, torch.Tensor)
        assert outputs.dtype == torch.float32
        assert rows[:2] == [None, None]
        assert world.data[name].size is None
        torch.testing.assert_close(
            outputs.mean(0), torch.tensor(mean, dtype=torch.float32), atol=5 * (2 / num) ** 0.5, rtol=0
        )
        torch.testing.assert_close(outputs.T.cov(), torch.tensor(cov), atol=5 * 3 * num**-0.5, rtol=0)
        assert len(world.data[name].draw(0, _generator())[2]) == 0


def test_networks_have_no_finite_outcomes() -> None:
    model = s.Model(family=s.Categorical(), reward="r", sources=[s.Raw(producer="p", weight=1)])
    eco = s.Ecosystem(space=s.Outcomes(count=2), rewards={"r": s.TableReward(values=[0, 1])}, models={"p": model})
    with pytest.raises(NotAvailableError, match="space of outcomes; networks need vectors, images or text"):
        open_world(eco)


def test_networks_are_built_from_the_seed_and_their_name_and_load_checkpoints(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    eco = _eco(s.Vectors(dim=2), {"w": s.RowsData(rows=[[0, 0]])}, s.LinearReward(vector=[1, 0]), s.Flow(width=4))
    model = eco.models["p"]
    eco = eco.model_copy(update={"models": {"p": model, "q": model}})
    built = [build(open_world(eco)) for _ in range(2)]
    assert list(built[0]) == ["p", "q"]
    first = {name: torch.cat([v.flatten() for v in n.parameters().values()]) for name, n in built[0].items()}
    again = torch.cat([v.flatten() for v in built[1]["p"].parameters().values()])
    assert torch.equal(first["p"], again)
    assert not torch.equal(first["p"], first["q"])
    save_file({k: v.detach() + 1 for k, v in built[0]["p"].parameters().items()}, tmp_path / "a.safetensors")
    moved = model.model_copy(update={"checkpoint": str(tmp_path / "a.safetensors")})
    loaded = build(open_world(eco.model_copy(update={"models": {"p": moved}})))["p"]
    after = torch.cat([v.flatten() for v in loaded.parameters().values()])
    assert torch.equal(after, first["p"] + 1)
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"models.p.checkpoint: .*a.safetensors: found no readable safetensors file"):
        build(open_world(eco.model_copy(update={"models": {"p": moved}})))
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(DataError, match=r"found no such file; need a .safetensors file"):
        build(open_world(eco.model_copy(update={"models": {"p": moved}})))


# --- images ---------------------------------------------------------------------------------------------------------

UNET = s.Diffusion(channels=[8, 8], norm_groups=4)


def _images(space: s.Images, family: s.Diffusion = UNET, **data: s.Data) -> World:
    data = data or {"all": s.ImagesData()}
    return open_world(_eco(space, data, s.HueBandReward(bands=[(0, 0.2)]), family))


def test_images_keep_their_pixels_rows_and_labels() -> None:
    space = s.Images(file="sample:cifar10", rows=30)
    world = _images(space, all=s.ImagesData(), some=s.ImagesData(labels=[0, 3]))
    photographs = read_images(space)
    assert (world.shape, world.num_classes, world.label_names[3]) == ((3, 32, 32), 10, "cat")
    assert (world.prompts.inputs, world.prompts.labels.tolist()) == (list(world.label_names), list(range(10)))
    assert photographs.labels is not None
    for name in ("all", "some"):
        rows, prompts, outputs = world.data[name].draw(5, _generator())
        assert isinstance(outputs, torch.Tensor)
        assert (outputs.dtype, tuple(outputs.shape)) == (torch.uint8, (5, 3, 32, 32))
        at = [photographs.rows.tolist().index(row) for row in rows]
        assert prompts.tolist() == photographs.labels[at].tolist()
        np.testing.assert_array_equal(outputs.permute(0, 2, 3, 1).numpy(), photographs.pixels[at])
    assert world.data["all"].inputs().tolist() == photographs.labels.tolist()
    assert set(world.data["some"].inputs().tolist()) <= {0, 3}


def test_images_are_resized_and_floats_become_bytes(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 2 * 8 * 6 * 3, dtype=np.float32).reshape(2, 8, 6, 3)
    np.save(tmp_path / "a.npy", pixels)
    family = s.Diffusion(channels=[8, 8], norm_groups=4, conditional=False)
    world = _images(s.Images(file=str(tmp_path / "a.npy"), size=4), family)
    assert (world.shape, world.num_classes, len(world.prompts)) == ((3, 4, 4), None, 1)
    _, prompts, outputs = world.data["all"].draw(2, _generator())
    assert isinstance(outputs, torch.Tensor)
    assert prompts.tolist() == [0, 0]
    rows = torch.tensor(world.data["all"].draw(2, _generator())[0])
    expected = resized(pixels, 4)[rows]
    assert np.abs(outputs.permute(0, 2, 3, 1).numpy() / 255 - expected).max() <= 0.5 / 255 + 1e-6
    small = resized(pixels, 2)  # boxes of 4 × 3 pixels: plain means
    np.testing.assert_allclose(small[:, 0, 0], pixels[:, :4, :3].mean((1, 2)), atol=1e-6)
    assert resized(pixels, 16).shape == (2, 16, 16, 3)


def _parquet(file: Path, labels: list[int], names: list[str] | None = None) -> str:
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8).tolist()
    table = pa.table({"img": pixels, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file)
    return str(file)


def test_labels_out_of_range_and_labels_that_do_not_occur(tmp_path: Path) -> None:
    named = s.Images(file=_parquet(tmp_path / "a.parquet", [0, 2, 1], ["cat", "dog"]))
    with pytest.raises(
        DataError, match=r"row 1 \(counted from 0\): found label 2; need a whole number from 0 to 1, the 2"
    ):
        _images(named)
    huge = s.Images(file=_parquet(tmp_path / "b.parquet", [0, 10**12]))
    with pytest.raises(DataError, match=r"column 'label', row 1 .*found label 1000000000000; need .* 0 to 99,999"):
        _images(huge)
    fine = s.Images(file=_parquet(tmp_path / "c.parquet", [0, 2]))
    with pytest.raises(SpecError, match=r"data.few.labels\[1\]: found 1; need labels that occur: 0, 2"):
        _images(fine, few=s.ImagesData(labels=[0, 1]))
    assert _images(fine).label_names == ("0", "1", "2")


def test_images_without_labels_and_sizes_that_cannot_be_halved(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 6, 6, 3), np.uint8))
    space = s.Images(file=str(tmp_path / "a.npy"))
    with pytest.raises(SpecError) as caught:
        _images(space, s.Diffusion(channels=[8, 8, 8], norm_groups=4))
    assert [p.path for p in caught.value.problems] == ["models.p.family.conditional", "models.p.family.channels"]
    assert "3 levels, which halve the 6 × 6 images 2 times; need fewer levels" in str(caught.value)


# --- text -----------------------------------------------------------------------------------------------------------

ROWS = [{"input": f"in {i}", "answer": f"out {i}", "more": i} for i in range(6)]


def _table(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> str:
    file = folder / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        import csv

        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(file)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_tables_of_texts_read_alike(kind: str, tmp_path: Path) -> None:
    odd = {"input": 'a "quoted"\nline, {x}', "answer": "", "more": 1}
    file = _table(tmp_path, kind, [*ROWS, odd])
    world = _texts(
        first=s.TextsData(file=file, answer_column="answer", template="Do {input}!"), bare=s.TextsData(file=file)
    )
    assert len(world.prompts) == 14
    assert world.prompts.domain == ["first"] * 7 + ["bare"] * 7
    assert world.prompts.texts[:2] == ["Do in 0!", "Do in 1!"]
    assert world.prompts.texts[6] == 'Do a "quoted"\nline, {x}!'
    assert world.prompts.inputs[6] == world.prompts.texts[13] == odd["input"]
    assert world.prompts.row == [*range(7), *range(7)]
    rows, prompts, outputs = world.data["first"].draw(7, _generator())
    assert outputs == [f"out {row}" if row is not None and row < 6 else "" for row in rows]
    assert prompts.tolist() == rows
    assert world.data["bare"].inputs().tolist() == list(range(7, 14))
    with pytest.raises(DataError, match=r"data.bare: found inputs without answers"):
        world.data["bare"].draw(1, _generator())


def test_some_rows_are_drawn_with_the_seed_and_the_name(tmp_path: Path) -> None:
    data = s.TextsData(file=_table(tmp_path, "csv", [ROWS[0]] * 60), rows=10, answer_column="answer")
    found = [_texts(seed, a=data, b=data).prompts.row for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0][:10] == sorted(set(found[0][:10])) != found[0][10:]


def test_rows_by_the_value_of_a_column(tmp_path: Path) -> None:
    tasks = ["sum", "para", "sum", "para", "fix", "sum"]
    file = _table(tmp_path, "csv", [{**row, "task": task} for row, task in zip(ROWS, tasks, strict=True)])
    rows, inputs, answers = read_texts("web", s.TextsData(file=file, answer_column="answer", where={"task": "sum"}), 0)
    assert (rows, inputs, answers) == ([0, 2, 5], ["in 0", "in 2", "in 5"], ["out 0", "out 2", "out 5"])
    some = s.TextsData(file=file, where={"task": "sum", "input": "in 2"}, rows=1)
    assert read_texts("web", some, 0) == ([2], ["in 2"], None)
    for where, says in (
        ({"tsk": "sum"}, "found no column 'tsk'; need .*did you mean 'task'"),
        ({"task": "Sum"}, r"data.web.where: found no row of .* with \{'task': 'Sum'\}"),
    ):
        with pytest.raises(DataError, match=says):
            read_texts("web", s.TextsData(file=file, where=where), 0)
    with pytest.raises(DataError, match=r"data.web.rows: found 4; need at most 3"):
        read_texts("web", s.TextsData(file=file, where={"task": "sum"}, rows=4), 0)


def test_what_is_not_the_input_is_taken_off(tmp_path: Path) -> None:
    rows = [{"input": "Rewrite this: a: b"}, {"input": "plain"}, {"input": "x Rewrite: y"}]
    file = _table(tmp_path, "jsonl", rows)
    assert read_texts("web", s.TextsData(file=file, strip=r"Rewrite[^:]*:\s*"), 0)[1] == [
        "a: b",
        "plain",
        "x Rewrite: y",
    ]
    with pytest.raises(DataError, match=r"data.web.strip: found '\(' .*need a regular expression"):
        read_texts("web", s.TextsData(file=file, strip="("), 0)


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "a\\ud800b", "answer": "\\u0000\\u001b[31m"}\n', encoding="ascii")
    world = _texts(a=s.TextsData(file=str(tmp_path / "a.jsonl"), answer_column="answer"))
    assert world.prompts.inputs == ["a?b"]
    assert world.data["a"].outputs == ["\0\x1b[31m"]


BAD_TEXTS = [
    ("a.jsonl", '{"input": 3}\n', r"column 'input', row 0 \(counted from 0\): found 3; need text"),
    ("a.jsonl", '{"input": "a"}\n{"input": null}\n', r"column 'input', row 1 .*found nothing \(null\); need text"),
    ("a.jsonl", '{"input": "a"}\n{"inpt": "b"}\n', "found no 'input' in line 2; need it in every line"),
    ("a.jsonl", '{"input": "a"}\n{"input": \n', "found line 2 that is no JSON"),
    ("a.jsonl", "[1]\n", "found a list of 1 in line 1; need one JSON object a line"),
    ("a.jsonl", "[" * 100_000, "found line 1 that is no JSON"),
    ("a.jsonl", "\n", "found no column 'input'; need one that is defined"),
    ("a.csv", "input\n", "found no rows; need at least one"),
    ("a.csv", "inpt\na\n", "found no column 'input'; need one of inpt; did you mean 'inpt'?"),
    ("a.csv", "input,b\na\n", r"found no readable CSV .*need comma-separated texts with a header line"),
    ("a.parquet", "PAR1", r"a.parquet: found no readable Parquet"),
]


@pytest.mark.parametrize(("file", "text", "says"), BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_bad_tables_have_one_clear_error(file: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        read_texts("web", s.TextsData(file=str(tmp_path / file)), 0)
    assert str(caught.value).startswith("data.web")
    assert file in str(caught.value)


def test_bad_files_have_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"input": "\xe9"}')
    (tmp_path / "latin.csv").write_bytes(b"input\n\xe9\n")
    pq.write_table(pa.table({"input": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"input": [b"raw"]}), tmp_path / "bytes.parquet")
    for file, says in (
        ("latin.jsonl", "not UTF-8"),
        ("latin.csv", "UTF-8"),
        ("none.parquet", "found no rows"),
        ("bytes.parquet", "found b'raw'; need text"),
        ("gone.parquet", "which does not exist; need a file"),
        ("a.txt", "need a file that ends in .parquet"),
    ):
        with pytest.raises(DataError, match=says):
            read_texts("web", s.TextsData(file=str(tmp_path / file)), 0)
    with pytest.raises(DataError, match=r"data.web.rows: found 7; need at most 6"):
        read_texts("web", s.TextsData(file=_table(tmp_path, "csv"), rows=7), 0)


# --- picks ----------------------------------------------------------------------------------------------------------


def _say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _preferences(
    folder: Path, rows: list[dict[str, Any]], **more: Any
) -> tuple[list[int], list[str], list[str], list[str]]:
    file = folder / "picks.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_preferences("votes", s.PreferencesData(file=str(file), **more), 0)


def test_picks_are_texts_or_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "why?", "chosen": "because", "rejected": "no"},
        {
            "prompt": [_say("user", "how?")],
            "chosen": [_say("assistant", "so")],
            "rejected": [_say("assistant", "never")],
        },
        {"prompt": [_say("system", "Be brief."), _say("user", "who?")], "chosen": "me", "rejected": ""},
    ]
    found = _preferences(tmp_path, rows)
    assert found == (
        [0, 1, 2],
        ["why?", "how?", "system: Be brief.\n\nuser: who?"],
        ["because", "so", "me"],
        ["no", "never", ""],
    )
    pq.write_table(pa.Table.from_pylist(rows[1:2]), tmp_path / "picks.parquet")
    world = _texts(
        web=s.TextsData(file=_table(tmp_path, "csv"), answer_column="answer"),
        votes=s.PreferencesData(file=str(tmp_path / "picks.parquet")),
    )
    assert world.prompts.texts[6:] == ["how?"]
    assert (world.data["votes"].outputs, world.data["votes"].rejected) == (["so"], ["never"])
    assert world.data["votes"].draw(2, _generator())[1].tolist() == [6, 6]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "u: a", "rejected": "u: b"}, r"found no column 'prompt'; need the prompts in a column of their own.*extract_prompt"),
        (
            {"prompt": "a", "chosen": [_say("user", "a"), _say("assistant", "b")], "rejected": "c"},
            r"column 'chosen', row 0 .*found a conversation \(user, assistant\); need one message of the assistant",
        ),
        ({"prompt": "a", "chosen": [_say("user", "a")], "rejected": "c"}, r"found a conversation \(user\)"),
        ({"prompt": "a", "chosen": "b", "rejected": []}, "column 'rejected', row 0 .*found no messages"),
        ({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "need messages of the form"),
        ({"prompt": [_say("user", [{"type": "image"}])], "chosen": "b", "rejected": "c"}, "both of them text"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, r"found nothing \(null\); need text"),
        ({"prompt": "a", "chosen": "b"}, "found no column 'rejected'; need one of prompt, chosen"),
    ],
)  # fmt: skip
def test_bad_picks_have_one_clear_error(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        _preferences(tmp_path, [row])


# --- hub and libraries ------------------------------------------------------------------------------------------------


def test_hub_data_sets_are_read_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "web").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "web" / "train.parquet")
    file = f"hub:{tmp_path / 'web'}:train[:4]"
    rows, inputs, answers = read_texts("web", s.TextsData(file=file, answer_column="answer"), 0)
    assert (rows, inputs[3], answers and answers[3]) == ([0, 1, 2, 3], "in 3", "out 3")
    with pytest.raises(DataError, match=r"found 'hub:.*:nothing', which cannot be loaded"):
        read_texts("web", s.TextsData(file=f"hub:{tmp_path / 'web'}:nothing"), 0)
    (tmp_path / "pixels").mkdir()
    _parquet(tmp_path / "pixels" / "train.parquet", [1, 0, 1])
    found = read_images(s.Images(file=f"hub:{tmp_path / 'pixels'}:train"))
    assert (found.pixels.shape, found.labels is not None and found.labels.tolist()) == ((3, 4, 4, 3), [1, 0, 1])
    sample = Path(str(extras.__file__)).parents[1] / "samples" / "cifar10.parquet"
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train.parquet").write_bytes(sample.read_bytes())
    ours, theirs = (
        read_images(s.Images(file=name, rows=7)) for name in ("sample:cifar10", f"hub:{tmp_path / 'cifar'}:train")
    )
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.labels is not None
    assert theirs.labels is not None
    assert (ours.labels.tolist(), ours.label_names) == (theirs.labels.tolist(), theirs.label_names)


def test_missing_libraries_say_how_to_get_them() -> None:
    with pytest.raises(
        NotAvailableError, match=r"needs no_such_library; install it with `pip install 'crossfeed\[lm\]'`"
    ):
        extras.need("no_such_library.part", "lm")
