"""What is settled before a run: devices, precision, rounds, room on the disk."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch

from crossfeed.describe.schema import Curated, Real
from crossfeed.errors import CrossfeedError, SettingError
from crossfeed.networks.world import open_world
from crossfeed.retraining.options import bytes_needed, check_room, choose_device, choose_dtype
from crossfeed.retraining.run import run_networks
from crossfeed.retraining.summary import RoundSummary
from crossfeed.retraining.timing import Clock, in_words
from retraining.fakes import Points, plane, rewards_of

Usage = namedtuple("Usage", "total used free")


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "meta", "cpu:3"])
def test_devices_that_are_not_here(name):
    with pytest.raises(SettingError, match=r"device: found .*; need auto or one that is here: .*cpu"):
        choose_device(name)


def test_dtypes():
    assert choose_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(SettingError, match="dtype: found 'half'; need float32 or bfloat16"):
        choose_dtype("half")


@pytest.mark.parametrize("rounds", [0, -1, 2.0, True])
def test_rounds_are_whole_and_positive(rounds):
    with pytest.raises(SettingError, match=r"rounds: found .*; need a whole number, 1 or more"):
        run_networks(plane({"p": [Real(data="ring", weight=1)]}), None, rounds=rounds)


def test_ready_networks_do_not_go_with_a_folder(tmp_path):
    eco = plane({"p": [Real(data="ring", weight=1)]})
    with pytest.raises(SettingError, match="networks: found some together with a folder"):
        run_networks(eco, tmp_path / "run", networks={"p": Points("p")}, rewards=rewards_of(eco))
    with pytest.raises(SettingError, match="track: found wandb for a run in memory"):
        run_networks(eco, None, networks={"p": Points("p")}, rewards=rewards_of(eco), track=["wandb"])


def test_room_is_estimated_before_the_run(tmp_path, monkeypatch):
    eco = plane({"p": [Real(data="ring", weight=0.5), Curated(producer="p", weight=0.5, candidates=4)]})
    world, networks = open_world(eco), {"p": Points("p")}
    # 11 checkpoints of 8 bytes; 10 rounds of 20 rows and 40 candidates of 8 bytes
    assert bytes_needed(world, networks, 10, "all") == 11 * 8 + 10 * 60 * 8
    assert bytes_needed(world, networks, 10, "last") == 3 * 8 + 10 * 60 * 8
    assert check_room(world, networks, tmp_path, 10, "all") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 5000))
    (note,) = check_room(world, networks, tmp_path / "new", 10, "all")
    assert "will write about 0.00489 MB, and 0.005 MB are free" in note
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 4000))
    with pytest.raises(CrossfeedError, match=r"0\.004 MB are free; keep fewer checkpoints \(run\.checkpoints: last\)"):
        check_room(world, networks, tmp_path, 10, "all")


def test_summaries_are_safe_to_print():
    summary = RoundSummary(
        1,
        2,
        {"p\x1b[2J": {"own\u202e": (0.5, 0.01), "cross": (1.0, None)}},
        {},
        {},
        {},
        {},
        2.0,
        None,
        None,
        ["note\x07"],
    )
    assert str(summary) == "note\nround 1/2 · 2.0 s\n  p[2J:  own 0.5 ± 0.01  cross 1"


def test_time_left_is_the_median_of_recent_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock(10)
    assert clock.left is None
    for number, took in enumerate([3.0, 1.0, 2.0], start=1):
        clock.begin(number)
        with clock.stage("training", "p: training", 5) as advance:
            now[0] += took
            advance(5)
        assert clock.end() == took
        assert clock.seconds == {"training": took}
    assert clock.left == 2.0 * 7
    assert [in_words(s) for s in (0.04, 59, 89.6, 5399, 86400)] == ["0.0 s", "59 s", "90 s", "90.0 min", "24.0 h"]
