"""Progress: drawn on a terminal's stderr only, and safe to look at."""

from __future__ import annotations

import io
import sys

import pytest

from crossfeed.report.progress import plain, progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Call it in the test itself: pytest's capture replaces stderr between a fixture and its test."""

    def attach(term="xterm"):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", "100")
        return screen

    return attach


def test_stages_are_drawn_on_stderr(terminal, capsys):
    screen = terminal()
    with progress() as report:
        report("solving [red]", 0, 0)
        for done in range(5):
            report("solving [red]", done + 1, 5)
        report("draw\x1b[2Jing", 1, 2)
    drawn = screen.getvalue()
    assert "solving [red]" in drawn
    assert "5/5" in drawn
    assert "draw[2Jing" in drawn
    assert "\x1b[2J" not in drawn
    assert capsys.readouterr().out == ""


def test_what_is_printed_meanwhile_goes_to_stdout(terminal, capsys):
    screen = terminal()
    with progress():
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in screen.getvalue()


def test_quiet_draws_nothing(terminal):
    screen = terminal()
    with progress(quiet=True) as report:
        report("solving", 1, 2)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_terminals_that_cannot_draw_get_nothing(term, terminal):
    screen = terminal(term)
    with progress() as report:
        report("solving", 1, 2)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("stderr", [io.StringIO(), None])
def test_no_terminal_gets_nothing(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress() as report:
        report("solving", 1, 2)
    assert not stderr or stderr.getvalue() == ""


def test_errors_pass_through(terminal):
    terminal()
    with pytest.raises(ZeroDivisionError), progress():
        raise ZeroDivisionError


def test_plain_keeps_what_a_reader_needs():
    assert plain("Θ ≤ 1\n\tünï 猫") == "Θ ≤ 1\n\tünï 猫"
    assert plain("\x00\x1b\x7f\x85\x9b\u202e\u2066") == ""
    assert plain(3) == "3"


def test_stages_that_differ_in_numbers_share_a_line(terminal, monkeypatch):
    from rich.progress import Progress as Bars

    lines = []
    add = Bars.add_task
    monkeypatch.setattr(
        Bars, "add_task", lambda self, what, **options: lines.append(what) or add(self, what, **options)
    )
    screen = terminal()
    with progress() as report:
        report("round 2/10 · q: training", 5, 5)
        report("rounds", 2, 10)
        report("round 3/10 · p: generating · 41/s", 1, 7)
        report("rounds · about 2 min left", 2, 10)
    assert lines == ["round 2/10 · q: training", "rounds"]
    assert "round 3/10 · p: generating · 41/s" in screen.getvalue()
    assert "rounds · about 2 min left" in screen.getvalue()
