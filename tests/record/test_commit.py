"""Whole or not at all: full disks, read-only folders, two writers, killed writers."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import made_runs as made
import pytest

from crossfeed.errors import CrossfeedError
from crossfeed.record import commit
from crossfeed.record.folder import RunFolder


def test_replacing_a_file_is_all_or_nothing(tmp_path):
    path = tmp_path / "a"
    commit.replace_file(path, b"one")
    with contextlib.suppress(ZeroDivisionError), commit.whole_file(path) as file:
        file.write(b"half of two")
        raise ZeroDivisionError
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_filling_a_folder_is_all_or_nothing(tmp_path):
    with contextlib.suppress(ZeroDivisionError), commit.whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with commit.whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
    assert os.listdir(tmp_path) == ["a"]


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """The order that a power cut needs: files, their folder, the rename, the parent."""
    happened = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(handle):
        happened.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def noted_rename(a, b):
        happened.append(f"rename to {Path(b).name}")
        rename(a, b)

    folder = made.folder(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with folder.writing():
        folder.commit(made.record(0))
    at = happened.index("rename to 0000")
    files = set(os.listdir(tmp_path / "run" / "rounds" / "0000"))
    assert set(happened[: at - 1]) >= files
    assert happened[at - 2] == "round.json"
    assert happened[at - 1].startswith(".partial-0000-")
    assert happened[at + 1] == "rounds"


# --- disks that are full --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The kernel refuses to let files grow beyond a size (EFBIG), as with a quota on files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def big(number: int):
    """A round of some 100 kB."""
    return made.record(number, size=1500)


def check_full_disk(run: Path, folder: RunFolder, message: str) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with folder.writing(), pytest.raises(CrossfeedError) as caught:
        list(map(folder.commit, map(big, range(2, 100))))
    error = str(caught.value)
    last = folder.rounds[-1]
    assert error.startswith(f"{run}: round {last + 1} cannot be written ({message}); make room")
    assert f"go on with `crossfeed run {run} --resume`; rounds 0 to {last} are safe" in error
    assert sorted(os.listdir(run / "rounds")) == [f"{n:04d}" for n in range(last + 1)]
    assert all(p.read_bytes() == data for p, data in before.items() if "rounds" in p.parts)
    assert RunFolder.open(run).verify() == []


def test_files_that_may_not_grow(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    with no_file_beyond(20_000):
        check_full_disk(tmp_path / "run", folder, "File too large")
    with folder.writing():
        folder.commit(big(2))
    assert folder.rounds == [0, 1, 2]


@contextlib.contextmanager
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A real file system of 600 kB; None where none can be mounted (needs root)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode
    ):
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """On a real full disk where one can be mounted; elsewhere the system call for writing to disk is made to fail."""
    with small_disk(tmp_path) as disk:
        run = (disk or tmp_path) / "run"
        spec_folder = tmp_path / "specs"
        spec_folder.mkdir()
        folder = RunFolder.create(run, made.ecosystem(spec_folder))
        folder.world = made.world("vectors")
        with folder.writing():
            folder.commit(made.record(0))
            folder.commit(made.record(1))
        if disk is not None:
            check_full_disk(run, folder, "No space left on device")
            return
        calls = iter(range(10**9))
        fsync = os.fsync

        def full(handle: int) -> None:
            if next(calls) > 30:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        check_full_disk(run, folder, "No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("after", range(0, 14, 4))
def test_any_failure_at_any_file_loses_nothing(tmp_path, monkeypatch, number, after):
    folder = made.folder(tmp_path / "run", rounds=1)
    calls = iter(range(10**9))
    fsync = os.fsync

    def failing(handle: int) -> None:
        if next(calls) == after:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with folder.writing():
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with contextlib.suppress(CrossfeedError):
                folder.commit(made.record(1))
        assert not [n for n in os.listdir(tmp_path / "run" / "rounds") if n.startswith(".")]
        assert folder.rounds in ([0], [0, 1])
        if folder.rounds == [0]:
            folder.commit(made.record(1))
        folder.commit(made.record(2))
    assert folder.verify() == []
    assert folder.rounds == [0, 1, 2]


# --- folders that cannot be written ---------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody() -> Iterator[Path]:
    """A folder of a user without rights; root loses its rights meanwhile."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_a_folder_that_became_read_only():
    with nobody() as place:
        folder = made.folder(place / "run", rounds=2)
        with folder.writing():
            (place / "run" / "rounds").chmod(0o500)
            with pytest.raises(
                CrossfeedError, match=r"round 2 cannot be written \(Permission denied\); make the folder wri"
            ):
                folder.commit(made.record(2))
            assert folder.rounds == [0, 1]
            (place / "run" / "rounds").chmod(0o700)
            folder.commit(made.record(2))
        for path in (place / "run").rglob("*"):
            path.chmod(0o500 if path.is_dir() else 0o400)
        (place / "run").chmod(0o500)
        again = RunFolder.open(place / "run")
        assert again.rounds == [0, 1, 2]
        assert again.verify() == []
        with (
            pytest.raises(
                CrossfeedError, match=r"the lock cannot be written \(Permission denied\); make the folder writable"
            ),
            again.writing(),
        ):
            pass


def test_a_place_that_cannot_be_written():
    with nobody() as place:
        eco = made.ecosystem(place)
        place.chmod(0o500)
        with pytest.raises(
            CrossfeedError, match=r"the run cannot be written \(Permission denied\); make the .* --out another"
        ):
            RunFolder.create(place / "run", eco)
        assert not (place / "run").exists()


def test_a_file_in_the_way(tmp_path):
    eco = made.ecosystem(tmp_path)
    (tmp_path / "run").write_text("")
    with pytest.raises(CrossfeedError, match=r"run: the run cannot be written \(File exists\)"):
        RunFolder.create(tmp_path / "run", eco)


# --- one writer -----------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from crossfeed.record.commit import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time_and_the_lock_of_a_killed_one_is_free(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=1)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert folder.status["state"] == "running"
        with (
            pytest.raises(CrossfeedError, match=rf"another run is writing here \(process {holder.pid}\)"),
            folder.writing(),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert folder.status["state"] == "stopped"
    with folder.writing():
        folder.commit(made.record(1))
    assert folder.rounds == [0, 1]


def test_the_same_process_cannot_write_twice(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=1)
    second = RunFolder.open(tmp_path / "run").writing()
    with folder.writing(), pytest.raises(CrossfeedError, match="another run is writing here"):
        second.__enter__()


def test_leftovers_of_killed_writers_go(tmp_path):
    folder = made.folder(tmp_path / "run", rounds=2)
    rest = tmp_path / "run" / "rounds" / ".partial-0002-12345"
    shutil.copytree(tmp_path / "run" / "rounds" / "0001", rest)
    (tmp_path / "run" / ".partial-12345-metrics.parquet").write_text("half")
    assert RunFolder.open(tmp_path / "run").rounds == [0, 1]
    assert rest.exists()
    with folder.writing():
        assert not rest.exists()
        assert not list((tmp_path / "run").glob(".partial-*"))


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    import fcntl

    def missing(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = made.folder(tmp_path / "run", rounds=1)
    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.warns(RuntimeWarning, match="has no locks; see to it yourself"), folder.writing():
        folder.commit(made.record(1))
    assert folder.rounds == [0, 1]


def test_readers_see_whole_rounds_while_another_writes(tmp_path):
    made.folder(tmp_path / "run", rounds=1)
    writer = threading.Thread(target=write_ten, args=(tmp_path / "run",))
    writer.start()
    folder = RunFolder.open(tmp_path / "run")
    try:
        while writer.is_alive():
            last = folder.rounds[-1]
            assert made.equal_pools(folder.pool(last, "p"), made.record(last).pools["p"])
            assert folder.metrics().num_rows >= 4 * (last + 1)
    finally:
        writer.join()
    assert folder.rounds == list(range(11))


def write_ten(path: Path) -> None:
    folder = RunFolder.open(path)
    folder.world = made.world("vectors")
    with folder.writing():
        for number in range(1, 11):
            folder.commit(made.record(number))
