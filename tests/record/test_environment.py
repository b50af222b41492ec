"""Versions and hardware, without names of people or machines."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import made_runs as made
import pytest
import torch

from crossfeed.record.environment import commit, environment


def test_what_is_noted():
    found = environment()
    assert found["libraries"]["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gib"] > 0
    assert json.loads(json.dumps(found)) == found


def test_no_names_of_people_machines_or_homes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    made.ecosystem(tmp_path)
    from crossfeed.record.folder import RunFolder

    command = "crossfeed run /home/alice/specs/a.yaml"
    eco = made.ecosystem(tmp_path)
    RunFolder.create(tmp_path / "run", eco, command=command, spec_file="/home/alice/specs/a.yaml")
    text = (tmp_path / "run" / "run.json").read_text()
    about = json.loads(text)
    assert about["command"] == "crossfeed run ~/specs/a.yaml"
    assert about["spec_file"] == "a.yaml"
    for name in ("alice", platform.node(), os.environ.get("HOSTNAME")):
        assert not name or name not in text
    if getpass.getuser() not in ("root", "user"):  # words that may stand there for other reasons
        assert getpass.getuser() not in text


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in it, and one whose environment has a package that is not its own."""
    package = tmp_path / "repo" / "src" / "crossfeed"
    foreign = tmp_path / "repo" / ".venv" / "crossfeed"
    for folder in (package, foreign):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (tmp_path / "repo" / ".gitignore").write_text(".venv\n")
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return package, foreign


def test_the_commit_is_that_of_the_package(checkout):
    package, foreign = checkout
    found = commit(package)
    assert len(found["id"]) == 40
    assert found["modified"] is False
    (package / "__init__.py").write_text("changed")
    assert commit(package) == {"id": found["id"], "modified": True}
    assert commit(foreign) is None


def test_no_commit_is_no_failure(tmp_path, monkeypatch):
    assert commit(tmp_path) is None
    assert commit(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("git") is None
    assert commit(Path(__file__).parent) is None
