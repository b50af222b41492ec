"""The tool that runs the README's commands: what it picks out, and that it stops where a command fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "tools" / "readme_commands.py"
spec = importlib.util.spec_from_file_location("readme_commands", PATH)
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)

README = """
```bash
not marked
```
```console run
$ echo one \\
  two
one two
$ echo three
three
```
~~~bash run
# a comment

touch made
~~~
```python run
import pathlib

assert pathlib.Path("made").exists()
```
"""


def test_only_marked_commands_are_picked():
    found = [(c.line, c.language, c.text) for c in tool.commands(README)]
    assert found[:3] == [
        (6, "console", "echo one \\\n  two"),
        (9, "console", "echo three"),
        (15, "bash", "touch made"),
    ]
    assert found[3][:2] == (18, "python")
    assert len(found) == 4


def test_commands_share_one_fresh_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert tool.main([str(readme)]) == 0
    assert "4 commands of README.md ran" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()


def test_failure_shows_the_command_and_stops(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("```bash run\necho why; exit 3\necho later\n```\n")
    assert tool.main([str(readme)]) == 1
    out, err = capsys.readouterr()
    assert "why" in err
    assert "README.md:2: failed with exit code 3:\necho why; exit 3" in err
    assert "later" not in out


def test_command_that_does_not_end_is_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "SECONDS", 0.2)
    readme = tmp_path / "README.md"
    readme.write_text("```bash run\nsleep 20\n```\n")
    assert tool.main([str(readme)]) == 1
    assert "failed with exit code none after 0.2 s" in capsys.readouterr().err


def test_readme_without_marked_commands_fails(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("```bash\nls\n```\n")
    assert tool.main([str(readme)]) == 1
    assert "no block is marked to be run" in capsys.readouterr().err


def test_block_that_is_not_closed(tmp_path):
    with pytest.raises(SystemExit, match="not closed; add ```"):
        tool.commands("```bash run\nls\n")
