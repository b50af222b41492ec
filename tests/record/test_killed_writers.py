"""SIGKILL at random moments: what was finished is whole, and a run that goes on ends as if it had never been killed.

A server process imports everything once and forks the process that is killed, so that a kill costs no imports.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROUNDS = 12
SEED = 0


def commit_rounds(path: Path) -> None:
    """Write rounds of random tensors, as many as are missing."""
    import made_runs as made

    from crossfeed.record.folder import RunFolder, is_run

    eco = made.ecosystem(path.parent)
    folder = RunFolder.open(path) if is_run(path) else RunFolder.create(path, eco, options={"checkpoints": "last"})
    folder.world = made.world("vectors")
    with folder.writing():
        for number in range(folder.rounds[-1] + 1 if folder.rounds else 0, 4 * ROUNDS):
            folder.commit(made.record(number, size=300))
        folder.finish("finished")


def run_flows(path: Path) -> None:
    """Run two small flows in the loop, from where the run was."""
    import made_runs as made

    from crossfeed.record.folder import is_run
    from crossfeed.retraining.run import run_networks

    run_networks(made.ecosystem(path.parent), path, device="cpu", rounds=ROUNDS, resume=is_run(path))


def run_kept_optimiser(path: Path) -> None:
    """The same with an optimiser that is kept and models that take turns."""
    run_kind(path, "optimiser kept")


def run_subsample(path: Path) -> None:
    """The same with training sets drawn from all rounds so far."""
    run_kind(path, "subsample")


def run_kind(path: Path, kind: str) -> None:
    """Run two small flows of one of the kinds that resuming is tested with."""
    from crossfeed.record.folder import is_run
    from crossfeed.retraining.run import run_networks
    from retraining.test_resume import ecosystem

    run_networks(ecosystem(kind), path, device="cpu", rounds=3 * ROUNDS, resume=is_run(path))


WORK = {work.__name__: work for work in (commit_rounds, run_flows, run_kept_optimiser, run_subsample)}


def contents(path: Path) -> dict[str, bytes]:
    """Everything that must be equal: metrics, samples, parameters."""
    files = [p for p in path.rglob("*") if p.suffix in (".parquet", ".safetensors")]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def rounds_of(path: Path) -> int:
    """How many rounds are finished."""
    from crossfeed.record.folder import RunFolder, is_run

    return len(RunFolder.open(path).rounds) if is_run(path) else 0


def serve(work: Callable[[Path], None], place: Path, most: int) -> None:
    """Kill the work ``most`` times, look at the folder each time, and compare the end with undisturbed work."""
    from crossfeed.record.folder import RunFolder, is_run

    def begin(path: Path) -> int:
        path.parent.mkdir(exist_ok=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(path)
                code = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return pid

    whole = place / "whole" / "run"
    start = time.monotonic()
    assert os.waitpid(begin(whole), 0)[1] == 0
    took = time.monotonic() - start
    expected = contents(whole)
    chance = random.Random(SEED)
    kills, runs, killed_in = 0, 0, set()
    path = place / "killed-0" / "run"
    while kills < most:
        # every other kill comes at any time, most of them while a run starts; the others soon after a round, whatever the machine's speed
        goal = path / "rounds" / f"{rounds_of(path) + chance.randrange(4):04d}" if kills % 2 else None
        pid = begin(path)
        ended = (0, 0)
        while goal is not None and ended == (0, 0) and not goal.exists():
            time.sleep(0.002)
            ended = os.waitpid(pid, os.WNOHANG)
        if ended == (0, 0):
            time.sleep(chance.uniform(0, 0.1 if goal else took / 4))
            ended = os.waitpid(pid, os.WNOHANG)
        if ended == (0, 0):
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
        assert ended[1] in (0, signal.SIGKILL)  # it may have come to its end by itself just before
        kills += ended[1] == signal.SIGKILL
        if is_run(path):
            folder = RunFolder.open(path)
            assert folder.verify() == []
            found = contents(path)
            for number in folder.rounds:
                names = [name for name in found if name.startswith(f"rounds/{number:04d}/")]
                assert len(names) >= 4, (number, names)  # metrics, and three files of each model that was retrained
                assert all(name not in expected or found[name] == expected[name] for name in names)
            killed_in.update(folder.rounds[-1:])
            if folder.status["result"] is not None:
                assert contents(path) == expected
                runs += 1
                path = place / f"killed-{runs}" / "run"
    assert os.waitpid(begin(path), 0)[1] == 0
    assert contents(path) == expected
    assert len(killed_in) >= max(1, most // 6)
    print(f"{kills} kills after rounds {sorted(killed_in)} in {runs + 1} runs of {took:.2f} s")


CASES = [("commit_rounds", 20), ("run_flows", 5)]
LONG = [(work, 20) for work in WORK if work != "commit_rounds"]


@pytest.mark.parametrize(("work", "kills"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)])
def test_killed_at_random_moments(tmp_path, work, kills):
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, __file__, work, str(tmp_path), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{kills} kills after rounds")
    print(done.stdout)


if __name__ == "__main__":
    serve(WORK[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]))
