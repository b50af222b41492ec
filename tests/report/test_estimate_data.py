"""What an audit of networks writes: every documented key, JSON only, and numbers that agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from crossfeed.describe.network_nodes import RunOptions
from crossfeed.describe.schema import Curated, Ecosystem, Evaluation, Real
from crossfeed.estimate.audit import NetworkAudit, audit_networks
from crossfeed.estimate.budget import need_of, rounded
from crossfeed.estimate.data import data_of
from crossfeed.estimate.network_draws import Size
from crossfeed.report.estimate_html import html
from crossfeed.report.estimate_terminal import plain
from networks.tiny import flows, languages

DOC = Path(__file__).parents[2] / "docs" / "estimate-format.md"


def divided() -> Ecosystem:
    """Two flows, p curated by several kinds of people and judged twice."""
    eco = flows(steps=5)
    p = eco.models["p"]
    sources = [
        Real(data="ring", weight=0.5),
        Curated(producer="p", weight=0.3, candidates=4, noise=0.1, other_curator="up", other_share=0.2),
        Curated(producer="q", weight=0.2, candidates=2),
    ]
    judged = [Evaluation(name="theirs", reward="up"), Evaluation(name="own")]
    return eco.model_copy(
        update={"models": {**eco.models, "p": p.model_copy(update={"sources": sources, "evaluate": judged})}}
    )


@pytest.fixture(scope="module")
def flow_audit() -> NetworkAudit:
    return audit_networks(divided(), size=Size(128, 128, 1), limit=100)


@pytest.fixture(scope="module")
def flow_data(flow_audit: NetworkAudit) -> dict[str, Any]:
    return data_of(flow_audit, "crossfeed audit x.yaml", "x.yaml")


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    eco = languages(tmp_path_factory.mktemp("texts"), run=RunOptions(rounds=1, generation_batch=16))
    return data_of(audit_networks(eco, size=Size(24, 24, 2), limit=100))


def keys_of(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", text))


def undocumented(data: dict[str, Any]) -> set[str]:
    """Keys, at any depth, that docs/estimate-format.md does not name; stages and rewards are named by specs."""
    documented = keys_of(DOC.read_text(encoding="utf-8"))

    def missing(value: Any, inside: str = "") -> set[str]:
        if isinstance(value, list):
            return set().union(*(missing(v, inside) for v in value))
        if not isinstance(value, dict) or inside in ("seconds", "rewards"):
            return set()
        return {k for k in value if k not in documented} | set().union(*(missing(v, k) for k, v in value.items()))

    return missing(data)


@pytest.mark.parametrize("kind", ["flow_data", "text_data"])
def test_plain_json_and_every_key_documented(kind: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(kind)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert undocumented(data) == set()
    assert "audit" in html(data)
    assert plain(data)


def test_parts_agree(flow_data: dict[str, Any]) -> None:
    data = flow_data
    E, C = len(data["evaluations"]), len(data["settings"])
    assert (E, C) == (3, 1)
    for key in ("matrix", "errors", "low", "high", "isolated", "verdict", "needed"):
        assert [len(row) for row in data["influence"][key]] == [C] * E
    assert [found["main"] for found in data["evaluations"]] == [False, True, True]
    course = data["trajectory"]
    assert course["rounds"] == [0, 1, 2]
    assert course["base"][0] == pytest.approx([found["now"] for found in data["evaluations"]])
    torch.testing.assert_close(torch.tensor(course["influence"][-1]), torch.tensor(data["influence"]["matrix"]))
    assert data["models"][0]["coordinates_are"].startswith("span")
    assert data["models"][0]["curation"] == pytest.approx(0.5)
    assert {check["result"] for check in data["checks"]} <= {"passed", "warning", "failed"}
    assert data["command"] == "crossfeed audit x.yaml"


def test_pickers_and_examples(flow_audit: NetworkAudit, flow_data: dict[str, Any]) -> None:
    mine = [found for found in flow_data["pickers"] if found["source"] == "curated_p"]
    assert [(found["picker"], found["reward"]) for found in mine] == [
        ("curator", "right"),
        ("other curator", "up"),
        ("random picks", None),
    ]
    assert sum(found["share"] for found in mine) == pytest.approx(1)
    total = torch.tensor([found["effects"] for found in mine], dtype=torch.float64)
    assert total.sum(0).tolist() == pytest.approx([0] * 3, abs=1e-6 * float(total.abs().max()))
    for found in flow_data["examples"]:
        assert found["evaluation"] in (1, 2)
        assert len(found["output"]) == 2
        assert len(next(iter(found["rewards"].values()))) in (2, 4)
    for source in ("p", "q"):
        effects = [f["weight"] * f["effects"][1] for f in flow_data["sources"] if f["consumer"] == source]
        assert sum(effects) == pytest.approx(0, abs=1e-9)
    assert [found["main"] for found in flow_data["mismatch"]] == [1]
    assert 0 <= flow_data["mismatch"][0]["index"] <= 1


def test_texts_are_kept(text_data: dict[str, Any]) -> None:
    assert all(isinstance(found["output"], str) for found in text_data["examples"])
    assert any(found["input"].startswith("Tool") for found in text_data["examples"])
    assert text_data["samples"]["cluster"] == "prompt"
    assert {found["model"] for found in text_data["mismatch"]} == {"p", "q"}


def test_memory_is_foreseen(flow_audit: NetworkAudit) -> None:
    need = need_of(flow_audit.point, flow_audit.size, limit=100)
    bank = flow_audit.bank
    rows = sum({r.loss.data_ptr(): len(r.loss) for r in bank.sources if r.consumer == 0}.values())
    assert bank.models[0].basis.size <= need.coordinates["p"] <= rows
    assert need.bytes > bank.nbytes
    assert need.gradients["p"] >= rows
    assert [rounded(n) for n in (7, 99, 4321, 98765)] == [7, 99, 4300, 98000]
