"""Settings by path: read, changed, their bounds, and which way weights move, against central differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import OUTCOMES, VECTORS

from crossfeed.describe.schema import Ecosystem, source_names
from crossfeed.describe.settings import bounds, get, paths, put, weight_direction
from crossfeed.errors import SettingError

SOURCES = [
    {"kind": "real", "data": "web", "weight": 0.2},
    {"kind": "real", "data": "poll", "weight": 0.1, "name": "poll"},
    {"kind": "raw", "producer": "q", "weight": 0.2},
    {"kind": "curated", "producer": "p", "weight": 0.1},
    {"kind": "curated", "producer": "p", "weight": 0.15, "temperature": 0},
    {
        "kind": "curated",
        "producer": "q",
        "weight": 0.25,
        "name": "theirs",
        "noise": 0.1,
        "other_curator": "warm",
        "other_share": 0.2,
        "then": {"temperature": 2, "then": {"noise": 0.3}},
    },
]


def _eco(gives_way: str = "proportional", weights: list[float] | None = None) -> Ecosystem:
    plain: dict[str, Any] = yaml.safe_load(OUTCOMES)
    sources = [{**s, "weight": w} for s, w in zip(SOURCES, weights or [s["weight"] for s in SOURCES], strict=True)]
    plain["models"]["p"] |= {"sources": sources, "gives_way": gives_way}
    plain["audit"] = {}
    return Ecosystem(**plain)


def _weights(eco: Ecosystem) -> dict[str, float]:
    model = eco.models["p"]
    return dict(zip(source_names(model), [source.weight for source in model.sources], strict=True))


def test_paths_list_every_setting_once() -> None:
    found = paths(_eco())
    assert len(found) == len(set(found))
    assert [path for path in found if path.startswith("p.")] == [
        "p.curation",
        "p.cross_share",
        "p.ridge",
        "p.sources.real.weight",
        "p.sources.poll.weight",
        "p.sources.raw_q.weight",
        "p.sources.raw_q.sampling_temperature",
        *[f"p.sources.curated_p.{k}" for k in ("weight", "sampling_temperature", "candidates", "temperature", "noise")],
        *[
            f"p.sources.curated_p_2.{k}"
            for k in ("weight", "sampling_temperature", "candidates", "temperature", "noise")
        ],
        *[
            f"p.sources.theirs.{k}"
            for k in ("weight", "sampling_temperature", "candidates", "temperature", "noise", "other_share")
        ],
        *[f"p.sources.theirs.then.{k}" for k in ("candidates", "temperature", "noise")],
        *[f"p.sources.theirs.then.then.{k}" for k in ("candidates", "temperature", "noise")],
    ]
    assert [path for path in found if path.startswith("q.")] == [
        "q.ridge",
        "q.sources.real.weight",
        "q.sources.theirs.weight",
        "q.sources.theirs.sampling_temperature",
    ]


def test_get_reads_every_setting_and_put_of_it_changes_nothing() -> None:
    eco = _eco()
    values = {path: get(eco, path) for path in paths(eco)}
    assert values["p.curation"] == pytest.approx(0.5)
    assert values["p.cross_share"] == pytest.approx(0.5)
    assert values["p.sources.theirs.then.then.noise"] == 0.3
    assert get(eco, "q.curation") == 0
    for path, value in values.items():
        low, high = bounds(eco, path)
        assert low <= value <= high
        again = put(eco, path, value)
        assert _weights(again) == pytest.approx(_weights(eco), abs=1e-15)
        assert {p: get(again, p) for p in values} == pytest.approx(values, abs=1e-14)


@pytest.mark.parametrize("gives_way", ["proportional", "real", "raw_q"])
@pytest.mark.parametrize("path", [p for p in paths(_eco()) if p.startswith("p.")])
def test_put_moves_one_setting_and_directions_are_its_derivative(path: str, gives_way: str) -> None:
    eco = _eco(gives_way)
    value, h = get(eco, path), 1e-4
    if path.endswith("temperature") and value == 0:
        with pytest.raises(SettingError, match=r"another rule"):
            put(eco, path, 0.1)
        return
    up, down = (
        put(eco, path, value + h),
        put(eco, path, value - h if value > h and not path.endswith("candidates") else value),
    )
    step = get(up, path) - get(down, path)
    assert get(up, path) == pytest.approx(value + h, abs=1e-14)
    direction = weight_direction(eco, path)
    above, below = _weights(up), _weights(down)
    moved = {name: (above[name] - below[name]) / step for name in above}
    if direction is None:
        assert path.split(".")[-1] not in ("curation", "cross_share", "weight")
        assert all(slope == 0 for slope in moved.values())
    else:
        assert moved == pytest.approx(direction, abs=1e-9)
        assert sum(direction.values()) == pytest.approx(0, abs=1e-15)
    others = {p for p in paths(eco) if p != path and not p.endswith("weight")}
    others -= {"p.curation", "p.cross_share"} if direction is not None else set()
    assert {p: get(up, p) for p in others} == {p: get(eco, p) for p in others}


def test_curation_scales_and_gives_way_as_said() -> None:
    assert _weights(put(_eco(), "p.curation", 0.6)) == pytest.approx(
        {"real": 0.16, "poll": 0.08, "raw_q": 0.16, "curated_p": 0.12, "curated_p_2": 0.18, "theirs": 0.3}
    )
    assert _weights(put(_eco("real"), "p.curation", 0.6)) == pytest.approx(
        {"real": 0.1, "poll": 0.1, "raw_q": 0.2, "curated_p": 0.12, "curated_p_2": 0.18, "theirs": 0.3}
    )
    assert weight_direction(_eco("real"), "p.curation") == pytest.approx(
        {"real": -1, "poll": 0, "raw_q": 0, "curated_p": 0.2, "curated_p_2": 0.3, "theirs": 0.5}
    )
    assert bounds(_eco("real"), "p.curation") == (0, pytest.approx(0.7))
    with pytest.raises(
        SettingError, match=r"p.curation: found 0.8; need a number from 0 to 0.7: 'real', which gives way, would"
    ):
        put(_eco("real"), "p.curation", 0.8)


def test_cross_share_keeps_the_curation_ratio() -> None:
    moved = put(_eco(), "p.cross_share", 0.2)
    assert _weights(moved) == pytest.approx(
        {"real": 0.2, "poll": 0.1, "raw_q": 0.2, "curated_p": 0.16, "curated_p_2": 0.24, "theirs": 0.1}
    )
    assert get(moved, "p.curation") == pytest.approx(0.5)


def test_nothing_to_scale_is_split_equally() -> None:
    none = _eco(weights=[0.5, 0.3, 0.2, 0, 0, 0])
    assert weight_direction(none, "p.curation") == pytest.approx(
        {"real": -0.5, "poll": -0.3, "raw_q": -0.2, "curated_p": 1 / 3, "curated_p_2": 1 / 3, "theirs": 1 / 3}
    )
    assert _weights(put(none, "p.curation", 0.3))["theirs"] == pytest.approx(0.1)
    assert "p.cross_share" not in paths(none)
    for function in (get, weight_direction):
        with pytest.raises(SettingError, match=r"p.cross_share: found"):
            function(none, "p.cross_share")
    everything = put(_eco(), "p.curation", 1)
    assert _weights(put(everything, "p.curation", 0.7))["poll"] == pytest.approx(0.1)
    own = put(_eco(), "p.cross_share", 1)
    assert _weights(put(own, "p.cross_share", 0.5))["curated_p"] == pytest.approx(0.125)
    alone = put(_eco(), "p.sources.real.weight", 1)
    assert _weights(put(alone, "p.sources.real.weight", 0.5))["theirs"] == pytest.approx(0.1)


MOVABLE = [path for path in paths(_eco()) if "candidates" not in path]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(MOVABLE), st.floats(0, 1)), max_size=6))
def test_weights_stay_on_the_simplex(steps: list[tuple[str, float]]) -> None:
    eco = _eco()
    for path, value in steps:
        try:
            eco = put(eco, path, value)
        except SettingError:
            continue
        assert get(eco, path) == pytest.approx(value, abs=1e-12) or value < 1e-300
        weights = list(_weights(eco).values())
        assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) >= 0
        assert all(sum(d.values()) == pytest.approx(0, abs=1e-9) for p in paths(eco) if (d := weight_direction(eco, p)))


def test_put_leaves_the_ecosystem_and_other_models_alone() -> None:
    eco = _eco()
    before = eco.model_dump()
    moved = put(eco, "p.sources.theirs.then.then.noise", 0.5)
    assert eco.model_dump() == before
    assert moved.models["q"] is eco.models["q"]
    assert get(moved, "p.sources.theirs.then.then.noise") == 0.5


def test_candidates_take_any_real_and_infinity() -> None:
    assert get(put(_eco(), "p.sources.theirs.candidates", 2.5), "p.sources.theirs.candidates") == 2.5
    assert get(put(_eco(), "p.sources.theirs.candidates", math.inf), "p.sources.theirs.candidates") == math.inf
    with pytest.raises(SettingError, match=r"need a finite number of candidates at temperature 0"):
        put(_eco(), "p.sources.curated_p_2.candidates", math.inf)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("p.curation", 1.1, "found 1.1; need a number from 0 to 1"),
        ("p.curation", -0.1, "found -0.1; need a number from 0 to 1"),
        ("p.curation", math.nan, "found nan; need a number"),
        ("p.curation", True, "found true; need a number"),
        ("p.curation", "0.5", "found '0.5'; need a number"),
        ("p.cross_share", 2, "found 2; need a number from 0 to 1"),
        ("p.ridge", -1, "found -1; need a finite number ≥ 0"),
        ("p.ridge", math.inf, "found inf; need a finite number ≥ 0"),
        ("p.sources.theirs.candidates", 0.5, "found 0.5; need a finite number ≥ 1"),
        ("p.sources.theirs.temperature", 0, "found 0; need a number > 0, because 0 picks the best"),
        ("p.sources.theirs.temperature", -1, "found -1; need a finite number ≥ 0"),
        ("p.sources.curated_p_2.temperature", 1, "found 1; need 0, because the best is picked"),
        ("p.sources.theirs.sampling_temperature", 0, "found 0; need a finite number > 0"),
        ("p.sources.theirs.noise", 0.9, "found 0.9; need a number from 0 to 0.8"),
        ("p.sources.theirs.other_share", 0.95, "found 0.95; need a number from 0 to 0.9"),
    ],
)
def test_values_out_of_bounds(path: str, value: Any, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        put(_eco(), path, value)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("pp.curation", "found no model 'pp'; need one of p, q; did you mean 'p'?"),
        ("p.curaton", "did you mean 'curation'?"),
        ("p", "found no such setting"),
        ("", "found no model"),
        ("p.reward", "found no such setting"),
        ("p.sources.their.noise", "found no source 'their' of 'p'; need one of real, poll, raw_q"),
        ("p.sources.theirs.nois", "did you mean 'sources.theirs.noise'?"),
        ("p.sources.theirs", "found no such setting"),
        ("p.sources.theirs.then", "found no such setting"),
        ("p.sources.theirs.then.weight", "found no such setting"),
        ("p.sources.theirs.then.then.then.noise", "found no such setting"),
        ("p.sources.real.noise", "found no such setting"),
        ("p.sources.curated_p.other_share", "found no such setting"),
    ],
)
def test_unknown_paths_name_the_nearest(path: str, says: str) -> None:
    for call in (get, bounds, weight_direction, lambda eco, p: put(eco, p, 0.5)):
        with pytest.raises(SettingError) as caught:
            call(_eco(), path)
        assert says in str(caught.value)
        assert "; need " in str(caught.value)


def test_settings_that_cannot_move_say_why() -> None:
    eco = _eco()
    with pytest.raises(SettingError, match=r"q.curation: found no curated source"):
        put(eco, "q.curation", 0.5)
    with pytest.raises(SettingError, match=r"q.cross_share: found no share that can move"):
        weight_direction(eco, "q.cross_share")
    plain = yaml.safe_load(VECTORS)
    plain["models"]["q"]["sources"] = [{"kind": "curated", "producer": "p", "weight": 1}]
    only = Ecosystem(**plain)
    assert get(only, "q.curation") == 1
    assert not {"q.curation", "q.cross_share", "q.sources.curated_p.weight"} & set(paths(only))
    with pytest.raises(SettingError, match=r"q.curation: found curated sources only"):
        put(only, "q.curation", 0.5)
    with pytest.raises(SettingError, match=r"the model's only source"):
        put(only, "q.sources.curated_p.weight", 0.5)
