"""The command line: exit codes, messages, what lands on which stream, and what is not imported."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

import crossfeed
from crossfeed.cli import main
from crossfeed.errors import NotStableError, Problem, SpecError

AUDIT = {
    "format": "crossfeed-audit",
    "version": 1,
    **dict.fromkeys(["spec_name", "models", "edges", "stable", "stability", "influence", "direction", "changes"]),
    "thresholds": [],
}
VERBS = ["audit", "run", "sweep", "reproduce", "validate", "schema", "report"]


class FakeAudit:
    """What ``crossfeed.report.audit.audit`` returns."""

    data = AUDIT

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.data) if path.suffix == ".json" else "<!doctype html>")


class FakeResult:
    """What the loop and the sweep return."""

    def save(self, folder: Path) -> None:
        (folder / "result.json").write_text("{}")

    def summary(self) -> str:
        return "summary of the result"


def fake_ecosystem():
    models = {
        "p": SimpleNamespace(sources=[SimpleNamespace(kind="real"), SimpleNamespace(kind="curated")]),
        "q": SimpleNamespace(sources=[SimpleNamespace(kind="raw")]),
    }
    return SimpleNamespace(
        models=models,
        networks=[],
        rewards={"r": None},
        space=SimpleNamespace(kind="vectors"),
        audit=SimpleNamespace(rounds=40),
        samples=SimpleNamespace(per_round=1000, regime="replace"),
    )


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Every module behind the verbs replaced by one that records how it was called; the working folder is fresh."""
    recorded = {}

    def module(name, **functions):
        fake = types.ModuleType(name)
        fake.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, name, fake)

    def record(name, result):
        def called(*args, **kwargs):
            recorded[name] = (args, kwargs)
            if "progress" in kwargs:
                kwargs["progress"]("working", 1, 2)
            return result

        return called

    def reproduce(out, progress):
        progress("working", 1, 2)
        (out / "figure.html").write_text("")
        return {"files": [out / "figure.html"], "summary": ["within 0.01 of the published numbers"]}

    module("crossfeed.describe.load", load=record("load", fake_ecosystem()), schema=lambda: {"type": "object"})
    module("crossfeed.report.audit", audit=record("audit", FakeAudit()))
    module("crossfeed.report.terminal", summary=lambda data: "summary of the audit")
    module("crossfeed.report.html", html=lambda data: "<!doctype html><title>Θ</title>")
    module("crossfeed.dynamics.run", run=record("run", FakeResult()))
    module("crossfeed.dynamics.sweep", sweep=record("sweep", FakeResult()))
    module("crossfeed.reproduce.fig3", run=reproduce)
    monkeypatch.chdir(tmp_path)
    return recorded


def failing(monkeypatch, error):
    """``load`` raises this error."""

    def load(path, **options):
        raise error

    monkeypatch.setattr(sys.modules["crossfeed.describe.load"], "load", load)


# --- start-up --------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "crossfeed", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pydantic", "altair", "scipy", "pyarrow", "yaml", "rich", "PIL"}
    assert all(verb in done.stdout for verb in VERBS)


def test_importing_crossfeed_imports_no_torch():
    code = "import sys, crossfeed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_entry_point_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="crossfeed")
    assert script.load() is main


@pytest.mark.parametrize("args", [["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)])
def test_help(args, capsys):
    assert main(args) == 0
    assert "Usage: crossfeed" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"crossfeed {crossfeed.__version__}\n"


# --- mistakes on the command line ------------------------------------------------------------------------------------


def test_unknown_verb_suggests_the_nearest(capsys):
    assert main(["adit", "spec.yaml"]) == 2
    assert "Did you mean 'audit'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["audit"], "Missing argument 'SPEC'"),
        (["audit", "a.yaml", "--jsn"], "--json"),
        (["run", "a.yaml", "--rounds", "0"], "--rounds"),
        (["run", "a.yaml", "--seeds", "two"], "--seeds"),
        (["run", "a.yaml", "--regime", "forget"], "accumulate"),
        (["run", "a.yaml", "--samples", "0"], "--samples: found '0'; need a whole number, 1 or more, or inf"),
        (["run", "a.yaml", "--samples", "1.5"], "--samples: found '1.5'; need a whole number"),
        (["sweep", "a.yaml"], "--vary"),
        (["sweep", "a.yaml", "--vary", "p.curation"], "--vary: found 'p.curation'; need PATH=A:B:N"),
        (["sweep", "a.yaml", "--vary", "p.curation=0:1"], "need PATH=A:B:N with numbers A, B and a whole number N"),
        (["sweep", "a.yaml", "--vary", "p.curation=0:1:2.5"], "a whole number N"),
        (["sweep", "a.yaml", "--vary", "p.curation=0:1:1"], "with N from 2 to 100,000"),
        (["sweep", "a.yaml", "--vary", "p.curation=0:inf:3"], "with finite A and B"),
        (["sweep", "a.yaml", "--vary", "=0:1:3"], "the setting that moves before '='"),
        (["sweep", "a.yaml", "--vary", "a=0:1:3", "--vary", "a=0:1:4"], "--vary: found 'a' twice"),
        (["reproduce", "fig33"], "found 'fig33', which is no figure Crossfeed can reproduce; did you mean 'fig3'?"),
        (["reproduce", "table"], "use one of: fig3"),
    ],
)
def test_usage_errors_name_the_argument(args, message, calls, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert not set(calls) - {"load"}


# --- audit -----------------------------------------------------------------------------------------------------------


def test_audit_writes_both_files_and_ends_with_the_path(calls, capsys):
    assert main(["audit", "specs/two.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "summary of the audit\nreport: crossfeed-two/report.html\n"
    assert err == ""  # no progress where there is no terminal
    assert sorted(p.name for p in Path("crossfeed-two").iterdir()) == ["audit.json", "report.html"]
    assert calls["load"] == ((Path("specs/two.yaml"),), {"allow_code": False, "scale": None, "overrides": {}})
    assert calls["audit"][1]["command"] == "crossfeed audit specs/two.yaml"


def test_audit_passes_options_on(calls, capsys):
    assert main(["audit", "my spec.yaml", "--out", "deep/er", "--allow-code", "--quiet"]) == 0
    assert capsys.readouterr().out == "report: deep/er/report.html\n"
    assert calls["load"][1] == {"allow_code": True, "scale": None, "overrides": {}}
    assert calls["audit"][1]["command"] == "crossfeed audit 'my spec.yaml' --allow-code"


def test_audit_json_is_all_that_stdout_gets(calls, capsys):
    assert main(["audit", "two.yaml", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == AUDIT
    assert err == "report: crossfeed-two/report.html\n"
    assert Path("crossfeed-two/audit.json").exists()


def test_audit_replaces_an_earlier_one(calls):
    assert main(["audit", "two.yaml"]) == 0
    Path("crossfeed-two/report.html").write_text("old")
    assert main(["audit", "two.yaml"]) == 0
    assert Path("crossfeed-two/report.html").read_text() == "<!doctype html>"


def test_out_that_is_a_file(calls, capsys):
    Path("taken").write_text("mine")
    assert main(["audit", "two.yaml", "--out", "taken"]) == 2
    assert "--out: found taken, which is a file; give a folder" in capsys.readouterr().err
    assert Path("taken").read_text() == "mine"
    assert "audit" not in calls  # seen before the work


@pytest.mark.parametrize("out", ["taken/below", "/proc/crossfeed", "x" * 300])
def test_out_that_cannot_be_written(out, calls, capsys):
    Path("taken").write_text("mine")
    assert main(["audit", "two.yaml", "--out", out]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert "audit" not in calls


def test_failed_audit_leaves_no_folder(calls, monkeypatch, capsys):
    def audit(eco, progress, command, spec_file):
        raise NotStableError("models.p: the stable point was not reached; raise the budget")

    monkeypatch.setattr(sys.modules["crossfeed.report.audit"], "audit", audit)
    assert main(["audit", "two.yaml"]) == 2
    assert "error: models.p: the stable point was not reached" in capsys.readouterr().err
    assert not Path("crossfeed-two").exists()


def test_failed_write_keeps_the_earlier_file(calls, monkeypatch, capsys):
    def save(self, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    assert main(["audit", "two.yaml"]) == 0
    monkeypatch.setattr(FakeAudit, "save", save)
    assert main(["audit", "two.yaml"]) == 2
    assert "audit.json: cannot be written (No space left on device)" in capsys.readouterr().err
    assert json.loads(Path("crossfeed-two/audit.json").read_text()) == AUDIT
    assert len(list(Path("crossfeed-two").iterdir())) == 2


# --- the other verbs -------------------------------------------------------------------------------------------------


def test_run_takes_what_is_not_given_from_the_spec(calls, capsys):
    assert main(["run", "two.yaml"]) == 0
    assert capsys.readouterr().out == "summary of the result\nresults: crossfeed-two-run\n"
    options = calls["run"][1]
    assert (options["rounds"], options["samples"], options["seeds"], options["regime"]) == (40, 1000, 1, "replace")


def test_run_passes_options_on(calls):
    args = ["--rounds", "3", "--samples", "inf", "--seeds", "5", "--regime", "accumulate", "--out", "here"]
    assert main(["run", "two.yaml", *args]) == 0
    options = calls["run"][1]
    assert (options["rounds"], options["samples"], options["seeds"]) == (3, float("inf"), 5)
    assert options["regime"] == "accumulate"
    assert type(options["regime"]) is str
    assert Path("here/result.json").exists()


def test_sweep_grid_includes_both_ends(calls, capsys):
    assert main(["sweep", "two.yaml", "--vary", "p.curation=0:1:5", "--vary", "q.sources[a=b].weight=-1:1:3"]) == 0
    assert capsys.readouterr().out == "summary of the result\nresults: crossfeed-two-sweep\n"
    assert calls["sweep"][0][1] == {"p.curation": [0, 0.25, 0.5, 0.75, 1], "q.sources[a=b].weight": [-1, 0, 1]}


def test_disk_full_is_no_bug(calls, monkeypatch, capsys):
    def save(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeResult, "save", save)
    assert main(["run", "two.yaml"]) == 2
    assert "crossfeed-two-run: cannot be written (No space left on device)" in capsys.readouterr().err


def test_reproduce(calls, capsys):
    assert main(["reproduce", "fig3"]) == 0
    assert capsys.readouterr().out == "within 0.01 of the published numbers\nfile: crossfeed-fig3/figure.html\n"


def test_validate(calls, capsys):
    assert main(["validate", "two.yaml"]) == 0
    assert capsys.readouterr().out == "OK: 2 models, 3 sources (1 curated), 1 reward, outcomes: vectors\n"


def test_schema(calls, capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == {"type": "object"}


def test_report_is_drawn_again(calls, capsys):
    assert main(["audit", "two.yaml", "--out", "done"]) == 0
    Path("done/report.html").unlink()
    assert main(["report", "done/audit.json"]) == 0
    assert "Θ" in Path("done/report.html").read_text(encoding="utf-8")
    assert main(["report", "done", "--out", "page.html"]) == 0
    assert Path("page.html").exists()
    assert capsys.readouterr().out.endswith("report: done/report.html\nreport: page.html\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "audit.json: cannot be read (No such file or directory)"),
        ("{", "audit.json: is no JSON file"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "is no JSON file"),
        ("[]", "is JSON, but no audit: its `format` is not `crossfeed-audit`"),
        (json.dumps(AUDIT | {"version": 2}), "found audit version 2; this Crossfeed reads version 1"),
        ('{"format": "crossfeed-audit", "version": 1, "models": []}', "lacks spec_name, edges"),
    ],
)
def test_report_of_what_is_no_audit(text, message, calls, capsys):
    if text is not None:
        Path("audit.json").write_text(text)
    assert main(["report", "audit.json"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("report.html").exists()


@pytest.mark.parametrize(("out", "what"), [("audit.json", "the audit itself"), (".", "a folder")])
def test_report_spares_the_audit(out, what, calls, capsys):
    Path("audit.json").write_text(json.dumps(AUDIT))
    assert main(["report", "audit.json", "--out", out]) == 2
    assert f"which is {what}" in capsys.readouterr().err
    assert json.loads(Path("audit.json").read_text()) == AUDIT


def test_report_of_a_name_no_file_can_have(calls, capsys):
    assert main(["report", "x" * 5000]) == 2
    assert "cannot be read" in capsys.readouterr().err


# --- errors, signals, pipes ------------------------------------------------------------------------------------------


def test_every_problem_is_printed_and_no_traceback(calls, monkeypatch, capsys):
    problems = [Problem("models.p.reward", "found 'x'", "need one of: r", "two.yaml", 7), Problem("seed", "a", "b")]
    failing(monkeypatch, SpecError(problems))
    assert main(["validate", "two.yaml"]) == 2
    out, err = capsys.readouterr()
    assert err == f"crossfeed: error: {problems[0]}\n{problems[1]}\n"
    assert out == ""


def test_messages_cannot_steer_the_terminal(calls, monkeypatch, capsys):
    failing(monkeypatch, SpecError([Problem("models", "found '\x1b]0;owned\x07\x9b2J\u202e[red]\r'", "need\ta name")]))
    assert main(["validate", "two.yaml"]) == 2
    assert capsys.readouterr().err == "crossfeed: error: models: found ']0;owned2J[red]'; need\ta name\n"


def test_a_bug_says_so_in_two_lines(calls, monkeypatch, capsys):
    failing(monkeypatch, ZeroDivisionError("of two"))
    assert main(["validate", "two.yaml"]) == 1
    err = capsys.readouterr().err
    assert "this is a bug in Crossfeed, not in your spec: ZeroDivisionError: of two\n" in err
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [["--debug", "validate", "two.yaml"], ["validate", "two.yaml", "--debug"]])
@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("of two"), 1), (NotStableError("no"), 2)])
def test_debug_shows_the_traceback(args, error, code, calls, monkeypatch, capsys):
    failing(monkeypatch, error)
    assert main(args) == code
    assert "Traceback" in capsys.readouterr().err


def test_debug_after_two_dashes_is_an_argument(calls):
    assert main(["validate", "--", "--debug"]) == 0
    assert calls["load"][0] == (Path("--debug"),)


def test_interrupt(calls, monkeypatch, capsys):
    failing(monkeypatch, KeyboardInterrupt())
    assert main(["validate", "two.yaml"]) == 130
    assert capsys.readouterr().err == "crossfeed: interrupted\n"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_reader_that_leaves_is_no_error(size):
    code = (
        "import sys, types; fake = types.ModuleType('crossfeed.describe.load');"
        f"fake.schema = lambda: {{'x': 'y' * {size}}}; sys.modules[fake.__name__] = fake;"
        "from crossfeed.cli import main; sys.exit(main(['schema']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()
