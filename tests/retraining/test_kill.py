"""A run that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossfeed.record.folder import RunFolder, is_run
from retraining.test_resume import files_of

SCRIPT = """
import sys
from pathlib import Path
from crossfeed.record.folder import is_run
from crossfeed.retraining.run import run_networks
from retraining.test_resume import ecosystem
print("ready", flush=True)
folder = Path(sys.argv[1])
run_networks(ecosystem(sys.argv[2]), folder, device="cpu", rounds=40, resume=is_run(folder))
"""
KILLS = 20


def start(folder: Path, kind: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), kind]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["optimiser kept", "subsample"])
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(kind, tmp_path):
    begun = time.monotonic()
    assert start(tmp_path / "whole", kind).wait() == 0
    took = time.monotonic() - begun
    expected = files_of(tmp_path / "whole")
    chance = random.Random(0)
    kills, number, rounds = 0, 0, []
    while kills < KILLS:
        folder = tmp_path / f"killed-{number}"
        process = start(folder, kind)
        try:
            process.wait(chance.uniform(0, took / 4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            if is_run(folder):
                there = RunFolder.open(folder)
                assert there.verify() == []  # readable at once, before anything was cleaned up
                rounds.append(there.rounds[-1:])
            continue
        assert process.returncode == 0
        number += 1
        assert files_of(folder) == expected
    assert start(folder, kind).wait() == 0
    assert files_of(folder) == expected
    assert len({tuple(r) for r in rounds}) > 5  # the kills fell into different rounds
