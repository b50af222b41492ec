"""Outputs on file: read in both forms, taken instead of new ones, and refused with the row that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crossfeed.errors import CrossfeedError, DataError, NotAvailableError, SettingError
from crossfeed.estimate.audit import audit_networks
from crossfeed.estimate.network_draws import Size, network_draws
from crossfeed.estimate.points import Point, open_point
from crossfeed.estimate.recorded import read_recorded
from networks import tiny

SIZE = Size(outputs=24, evaluation=16, answers=2)


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    eco = tiny.languages(tmp_path_factory.mktemp("texts"), lora=False)
    return open_point(eco, device="cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def candidates(point: Point, num: int, size: int = 2) -> list[dict[str, Any]]:
    prompts = point.prompts["q"][:num]
    texts = point.networks["q"].sample(prompts, torch.full((num,), size), torch.Generator().manual_seed(1))
    asked = [point.world.prompts.texts[i] for i in prompts.tolist()]
    return [{"prompt": text, "candidates": list(texts[k * size : (k + 1) * size])} for k, text in enumerate(asked)]


def draw(point: Point, file: Path) -> Any:
    recorded = {"q": read_recorded("q", file, point.world)}
    draws = network_draws(point.world, point.networks, point.rewards, point.prompts, SIZE, 0, recorded=recorded)
    return next(d for d in draws.of("p") if d.producer == "q")


def test_candidates_are_taken_and_judged_by_the_reward_of_the_spec(point, tmp_path):
    rows = candidates(point, 8)
    found = draw(point, write(tmp_path / "q.jsonl", rows))
    assert list(found.outputs) == [text for row in rows for text in row["candidates"]]
    assert [point.world.prompts.texts[i] for i in found.prompts.tolist()] == [row["prompt"] for row in rows]
    reward = point.rewards["long"](found.all_prompts, list(found.outputs)).view(-1, 2)
    assert torch.allclose(found.rewards["long"], reward)
    assert torch.allclose(found.probabilities, reward.softmax(1))


def test_rewards_and_picks_on_file_are_believed(point, tmp_path):
    rows = [row | {"rewards": [0.0, 3.0]} for row in candidates(point, 8)]
    found = draw(point, write(tmp_path / "rewards.jsonl", rows))
    assert torch.allclose(found.probabilities, torch.tensor([0.0, 3.0]).double().softmax(0).expand(8, 2))
    found = draw(point, write(tmp_path / "picks.jsonl", [row | {"picked": 1} for row in rows]))
    assert found.probabilities.tolist() == [[0.0, 1.0]] * 8


def test_preferences_in_trls_format_are_two_candidates_with_the_first_picked(point, tmp_path):
    rows = [
        {"prompt": row["prompt"], "chosen": row["candidates"][1], "rejected": row["candidates"][0]}
        for row in candidates(point, 8)
    ]
    found = draw(point, write(tmp_path / "trl.jsonl", rows))
    assert found.probabilities.tolist() == [[1.0, 0.0]] * 8
    assert found.outputs[:2] == [rows[0]["chosen"], rows[0]["rejected"]]


def test_new_prompts_are_added_and_equal_ones_share_a_cluster(point, tmp_path):
    before = len(point.world.prompts)
    rows = [{"prompt": "Something else entirely.", "candidates": ["a", "b"]}] * 3
    found = draw(point, write(tmp_path / "new.jsonl", rows))
    assert len(point.world.prompts) == before + 1
    assert found.clusters.unique().numel() == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}], "found no column 'prompt'"),
        ([{"prompt": "x", "answer": "y"}], "need candidates, or chosen and rejected"),
        ([{"prompt": "x", "candidates": ["a"]}, {"prompt": "x", "candidates": ["a", "b"]}], "row 1.*list of 1 texts"),
        ([{"prompt": "x", "candidates": "ab"}], "row 0.*need a list of texts"),
        ([{"prompt": 3, "candidates": ["a", "b"]}], "column 'prompt', row 0"),
        ([{"prompt": "x", "candidates": ["a", "b"], "rewards": [1]}], "column 'rewards', row 0.*2 finite numbers"),
        ([{"prompt": "x", "candidates": ["a", "b"], "rewards": [1, float("nan")]}], "column 'rewards', row 0"),
        ([{"prompt": "x", "candidates": ["a", "b"], "picked": 2}], "column 'picked', row 0.*0 to 1"),
    ],
)
def test_what_cannot_be_used_is_named_by_column_and_row(point, tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_recorded("q", write(tmp_path / "bad.jsonl", rows), point.world)


def test_candidates_that_do_not_serve_the_spec_are_refused(point, tmp_path):
    with pytest.raises(DataError, match="found 3 candidates a prompt; need a multiple of 2"):
        draw(point, write(tmp_path / "three.jsonl", candidates(point, 4, size=3)))


def test_the_audit_takes_them_and_says_when_they_are_of_no_model(point, tmp_path):
    file = write(tmp_path / "q.jsonl", candidates(point, 12))
    found = audit_networks(point.world.eco, point=point, rounds=2, size=SIZE, outputs={"q": file})
    assert torch.isfinite(found.estimate.answer.matrix).all()
    with pytest.raises(SettingError, match="outputs of z: found no such model; need one of p, q"):
        audit_networks(point.world.eco, point=point, rounds=2, size=SIZE, outputs={"z": file})


def test_texts_only(tmp_path):
    point = open_point(tiny.flows(), device="cpu")
    with pytest.raises(NotAvailableError, match="for texts only"):
        read_recorded("p", write(tmp_path / "x.jsonl", [{"prompt": "x"}]), point.world)
    assert issubclass(NotAvailableError, CrossfeedError)


def test_the_command_takes_files(point, tmp_path, capsys):
    from crossfeed.cli.audits import files_of

    assert files_of(["p=a.jsonl", "q = b c.csv"]) == {"p": Path("a.jsonl"), "q": Path("b c.csv")}
    for wrong, message in ((["p"], "need MODEL=FILE"), (["p=a", "p=b"], "'p' twice")):
        with pytest.raises(SettingError, match=message):
            files_of(wrong)
