"""Functions named in a spec, and arrays read without a spec around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossfeed.describe.files import load_callable, read_array
from crossfeed.describe.reader import ReadError, read
from crossfeed.errors import DataError, SpecError


def test_a_function_beside_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_rewards.py").write_text("def first(y):\n    return y[0]\nnumber = 3\n")
    (tmp_path / "broken_rewards.py").write_text("import math\nraise RuntimeError('no luck; today')\n")
    (tmp_path / "needy_rewards.py").write_text("import not_a_module_of_anyone\n")
    (tmp_path / "odd_rewards.py").write_text("def first(:\n")
    monkeypatch.chdir(tmp_path)
    assert load_callable("some_rewards:first")([5, 6]) == 5
    for name, says in [
        ("some_rewards:frist", "found no 'frist' in 'some_rewards'; need one of first; did you mean 'first'?"),
        ("some_rewards:number", "found 'some_rewards:number', a int; need a function"),
        ("no_rewards_here:first", "found no module 'no_rewards_here'; need a module that is installed or"),
        ("needy_rewards:first", "found no module 'not_a_module_of_anyone', which 'needy_rewards' imports"),
        ("broken_rewards:first", "'broken_rewards' that fails: RuntimeError: no luck, today; need one that imports"),
        ("odd_rewards:first", "'odd_rewards' that fails: SyntaxError"),
        ("first", "found 'first'; need `module:function`"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_callable(name, "rewards.r.function")
        assert str(caught.value).startswith("rewards.r.function: found ")
        assert says in str(caught.value)


def test_the_import_path_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(SpecError):
        load_callable("nothing_here_at_all:f")
    assert sys.path == before


def test_numbers_keep_their_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "a.npy", values)
    np.savetxt(tmp_path / "a.csv", values, delimiter=",", header="x,y,z", comments="", fmt="%.17g")
    assert np.array_equal(read_array({"file": "a.npy"}, tmp_path), values)
    assert np.array_equal(read_array({"file": "a.csv"}, tmp_path), values)
    assert np.array_equal(read_array({"file": "a.csv", "columns": ["z", "x"]}, tmp_path), values[:, [2, 0]])


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    np.save(path, [1, 2])

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        DataError, match=r"found 'a.npy', which cannot be read \(Permission denied\); need a readable file"
    ):
        read_array({"file": "a.npy"}, tmp_path)


def test_a_header_that_claims_too_much_is_no_memory_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(
        raw.replace(b"'shape': (3,), }             ", b"'shape': (3000000000000,), }"[:29].ljust(29))
    )
    with pytest.raises(DataError, match=r"no readable .npy file"):
        read_array({"file": "a.npy"}, tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, -2, 0x1f, 0o17, +3, 007]", [1, -2, 31, 15, 3, 7]),
        ("[1., .5, 1e3, -2.5E-3, 1e+2]", [1.0, 0.5, 1000.0, -0.0025, 100.0]),
        ("[.inf, -.INF, +.Inf]", [np.inf, -np.inf, np.inf]),
        ("[true, False, TRUE, ~, null, NULL]", [True, False, True, None, None, None]),
        ("[yes, no, on, off, y, 1_000, 1:30, 2024-01-01, 0b1, =, 'true', \"1\"]",
         ["yes", "no", "on", "off", "y", "1_000", "1:30", "2024-01-01", "0b1", "=", "true", "1"]),
        ("[!!str 1, !!int 2, !!float 3e0, ! 4]", ["1", 2, 3.0, "4"]),
        ("a: |\n  x\n  y\nb: >\n  x\n  y\n", {"a": "x\ny\n", "b": "x y\n"}),
        ("'<<': 1", {"<<": 1}),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert read(text)[0] == value


def test_the_pure_python_parser_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml
    from specs import VALID

    from crossfeed.describe import reader

    fast = [read(text) for text in VALID.values()]
    monkeypatch.setattr(reader, "_LOADER", yaml.SafeLoader)
    assert [read(text) for text in VALID.values()] == fast
    for bad, line in (("a: [1,\nb: 2", 1), ("a:\n\tb: 1", 2), ("a: 'x\nb: 1", 1), ("- " * 999, 1)):
        with pytest.raises(ReadError) as caught:
            read(bad)
        assert [problem.line for problem in caught.value.problems] == [line]
