"""What the cross checks let through, what they say of things that hang together, and how long they take."""

from __future__ import annotations

import contextlib
import copy
import time
from typing import Any

import numpy as np
import pytest
import yaml
from specs import IMAGES, OUTCOMES, REGRESSION, VECTORS

from crossfeed.describe.check import check, complaints
from crossfeed.describe.schema import (
    Curated,
    Ecosystem,
    GaussianMean,
    Model,
    MomentsData,
    QuadraticReward,
    Real,
    Vectors,
    source_names,
)
from crossfeed.errors import SpecError


def _plain(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _problems(plain: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        Ecosystem(**plain)
    return [(problem.path, problem.found) for problem in caught.value.problems]


# --- what is fine ---------------------------------------------------------------------------------------------------


def test_one_candidate_at_temperature_0_is_fine_anywhere() -> None:
    plain = _plain(VECTORS)
    plain["models"]["p"]["sources"][2] = {
        "kind": "curated",
        "producer": "p",
        "weight": 0.4,
        "temperature": 0,
        "candidates": 1,
    }
    assert Ecosystem(**plain).num_models == 2


def test_best_of_k_by_linear_rewards_is_fine_on_vectors() -> None:
    plain = _plain(VECTORS)
    source = {"kind": "curated", "producer": "q", "weight": 0.3, "temperature": 0, "candidates": 8, "noise": 0.1}
    plain["models"]["q"]["sources"][1] = source
    assert Ecosystem(**plain).models["q"].sources[1].temperature == 0


def test_best_of_k_is_fine_on_outcomes_in_stages() -> None:
    plain = _plain(OUTCOMES)
    plain["models"]["p"]["sources"][2] |= {"temperature": 0, "then": {"temperature": 0, "candidates": 3}}
    assert len(Ecosystem(**plain).models["p"].sources[2].stages) == 2


def test_an_adversary_may_start_at_share_0() -> None:
    plain = _plain(OUTCOMES)
    plain["models"]["p"]["sources"][2] |= {"other_curator": "warm", "other_share": 0}
    assert Ecosystem(**plain).models["p"].sources[2].other_share == 0


def test_tilting_just_inside_the_limit_is_fine() -> None:
    plain = _plain(VECTORS)
    low = np.linalg.eigvalsh(np.linalg.inv(np.array([[1, 0.2], [0.2, 1]]))).min()  # Σ⁻¹ − 2/τ needs τ > 2/low
    picked = plain["models"]["p"]["sources"][2]
    picked |= {"curator": "steep", "temperature": 2.001 / low}
    Ecosystem(**plain)
    picked["temperature"] = 1.999 / low
    assert _problems(plain)[0][0] == "models.p.sources[2].candidates"
    picked["sampling_temperature"] = 0.9
    Ecosystem(**plain)
    picked["then"] = {"candidates": "inf", "curator": "steep", "temperature": 2.001 / low}
    assert [path for path, _ in _problems(plain)] == ["models.p.sources[2].then.candidates"]


def test_tilting_at_extreme_temperatures_is_a_plain_answer() -> None:
    plain = _plain(VECTORS)
    picked = plain["models"]["p"]["sources"][2]
    picked["temperature"] = 1e-308
    Ecosystem(**plain)
    picked["curator"] = "steep"
    assert _problems(plain)[0][0] == "models.p.sources[2].candidates"


def test_tilting_a_regression_looks_at_the_answer_only() -> None:
    plain = _plain(REGRESSION)
    plain["rewards"]["close"] = {"kind": "quadratic", "matrix": [5, 5, -1]}
    picked = plain["models"]["p"]["sources"][1]
    picked |= {"candidates": "inf", "temperature": 1, "curator": "close"}
    Ecosystem(**plain)
    plain["rewards"]["close"]["matrix"] = [0, 0, 1.5]
    assert _problems(plain)[0][0] == "models.p.sources[1].candidates"


def test_weights_may_miss_1_by_rounding() -> None:
    plain = _plain(OUTCOMES)
    plain["models"]["p"]["sources"] = [{"kind": "real", "data": "web", "weight": 0.1}] * 10
    plain["audit"] = {}
    assert source_names(Ecosystem(**plain).models["p"])[:2] == ["real", "real_2"]


def test_sizes_of_images_are_known_unless_they_are_merged() -> None:
    plain = _plain(IMAGES)
    plain["models"]["p"]["family"]["features"] = np.ones((17, 3)).tolist()
    plain["rewards"]["warm"] = {"kind": "table", "values": [1, 2, 3]}
    assert complaints(Ecosystem(**plain)) == []
    del plain["space"]["cells"]
    assert [path for path, _ in _problems(plain)] == ["rewards.warm.values", "models.p.family.features"]
    plain["space"]["rows"] = 3
    assert [path for path, _ in _problems(plain)] == ["models.p.family.features"]


def test_check_alone_takes_a_changed_ecosystem() -> None:
    eco = Ecosystem(**_plain(OUTCOMES))
    check(eco)
    model = eco.models["p"].model_copy(update={"reward": "gone"})
    with pytest.raises(SpecError, match=r"models.p.reward: found the unknown name 'gone'"):
        check(eco.model_copy(update={"models": {**eco.models, "p": model}}))


# --- one mistake, one problem ---------------------------------------------------------------------------------------


def test_a_renamed_reward_is_one_problem_for_all_its_uses() -> None:
    plain = _plain(REGRESSION)
    plain["rewards"]["hight"] = plain["rewards"].pop("high")
    found = _problems(plain)
    assert found == [("models.p.reward", "found the unknown name 'high' (also at models.q.reward)")]


def test_a_renamed_model_is_one_problem_for_all_its_uses() -> None:
    plain = _plain(VECTORS)
    plain["models"]["r"] = plain["models"].pop("q")
    plain["models"]["r"]["sources"][1]["producer"] = "q"
    ((path, found),) = _problems(plain)
    assert path == "models.p.sources[1].producer"
    assert found == "found the unknown name 'q' (also at models.r.sources[1].producer and 2 more places)"


def test_a_wrong_space_is_one_problem() -> None:
    plain = _plain(OUTCOMES)
    plain["space"]["count"] = 4
    assert [path for path, _ in _problems(plain)] == ["space.labels"]


def test_a_wrong_reward_is_not_blamed_on_its_uses() -> None:
    plain = _plain(VECTORS)
    plain["rewards"]["near"]["matrix"] = [1, 2, 3]
    assert [path for path, _ in _problems(plain)] == ["rewards.near.matrix"]


def test_a_wrong_model_is_not_blamed_on_the_audit() -> None:
    plain = _plain(OUTCOMES)
    plain["models"]["p"]["gives_way"] = "nothing"
    assert [path for path, _ in _problems(plain)] == ["models.p.gives_way"]
    plain = _plain(OUTCOMES)
    plain["models"]["p"]["sources"][0]["weight"] = 0.6
    assert [path for path, _ in _problems(plain)] == ["models.p.sources"]


def test_a_change_that_breaks_the_model_says_how() -> None:
    plain = _plain(VECTORS)
    plain["models"]["p"]["sources"][2] |= {"curator": "steep", "temperature": 10}
    plain["audit"] = {"changes": [{"path": "p.sources.curated_p.temperature", "to": 0.1}]}
    ((path, found),) = _problems(plain)
    assert path == "audit.changes[0].to"
    assert found.startswith("found 0.1, which leads to models.p.sources[2].candidates: inf, where exp(r/τ) outgrows")


ODD: list[Any] = [
    None, True, False, 0, -1, 2, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 10**30, 10**400,
    "", "x", "inf", "p", b"x", [], [[]], {}, [None], [1, "a"], ["a"], [1, [2]], (1, 2), {"a"}, range(3),
    {"kind": "real"}, {"kind": None}, {"file": "no.npy"}, {1: 2}, object(), lambda: 0, 1j,
    np.float32(1), np.int64(2), np.array(3), np.zeros((2, 2)), np.array("x"),
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inner for place in _places(entry, (*path, key)))]


@pytest.mark.parametrize(
    "text", [OUTCOMES, VECTORS, REGRESSION, IMAGES], ids=["outcomes", "vectors", "regression", "images"]
)
def test_whatever_stands_anywhere_is_fine_or_a_spec_error(text: str) -> None:
    plain = _plain(text)
    for path in _places(plain)[1:]:
        for odd in ODD:
            broken = copy.deepcopy(plain)
            inner: Any = broken
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = odd
            with contextlib.suppress(SpecError):  # any other exception fails the test
                Ecosystem(**broken)


def test_many_mistakes_do_not_take_long() -> None:
    plain = _plain(VECTORS)
    sources = [{"kind": "raw", "producer": f"gone{i}", "weight": 0.001} for i in range(1000)]
    plain["models"] |= {f"m{i}": plain["models"]["q"] for i in range(1000)} | {
        "p": {**plain["models"]["p"], "sources": sources}
    }
    plain["update"] = {}
    start = time.process_time()
    assert len(_problems(plain)) == 1000
    assert time.process_time() - start < 5


def test_a_thousand_models_take_about_a_second() -> None:
    rng = np.random.default_rng(0)
    start = time.process_time()
    models = {
        f"m{i}": Model(
            family=GaussianMean(cov=np.eye(8)),
            reward="r",
            sources=[Real(data="web", weight=0.5)]
            + [Curated(producer=f"m{j}", weight=0.1, candidates="inf") for j in rng.choice(1000, 5, replace=False)],
        )
        for i in range(1000)
    }
    eco = Ecosystem(
        space=Vectors(dim=8),
        data={"web": MomentsData(mean=np.zeros(8), cov=1.0)},
        rewards={"r": QuadraticReward(matrix=-np.eye(8))},
        models=models,
    )
    assert time.process_time() - start < 3
    assert eco.num_models == 1000
