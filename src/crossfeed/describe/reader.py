"""YAML and JSON text to plain values, with the line of every key and entry.

Built on the YAML parser's events, not its constructors: no tag ever makes an object, keys cannot repeat, nesting and
aliases are bounded. Plain words follow YAML 1.2: ``no`` and ``on`` are text, ``1e-3`` is a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from crossfeed.describe.wording import Loc, path_text, short
from crossfeed.errors import Problem

MAX_DEPTH = 40
MAX_VALUES = 3_000_000
_MAX_DIGITS = 400
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_JSON_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|.)", re.DOTALL)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAG = "tag:yaml.org,2002:"
_STANDARD = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass(slots=True)
class Mark:
    """The line of a key or entry, and the marks of what is inside."""

    line: int
    items: dict[str | int, Mark] = field(default_factory=dict)

    def at(self, loc: Loc) -> int:
        """The line of the deepest part of ``loc`` that is there."""
        mark = self
        for part in loc:
            if part not in mark.items:
                break
            mark = mark.items[part]
        return mark.line


class ReadError(Exception):
    """The text is no YAML of the kind a spec needs; holds the problems found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    line: int
    value: dict[str, Any] | list[Any]
    anchor: str | None
    marks: dict[str | int, Mark] = field(default_factory=dict)
    key: str | None = None
    key_line: int = 0
    merges: list[_Done] = field(default_factory=list)
    size: int = 1
    height: int = 1


@dataclass(slots=True)
class _Done:
    """A finished value."""

    value: Any
    mark: Mark
    size: int = 1
    height: int = 0


def read(text: str, json: bool = False) -> tuple[Any, Mark]:
    """Plain values (dict, list, str, int, float, bool, None) and their lines.

    Args:
        text: YAML, of which JSON is a part.
        json: Allow what JSON allows and YAML does not: tabs between values, surrogate pairs in escapes.

    Raises:
        ReadError: with every problem found.
    """
    bad = _CONTROL.search(text)
    if bad:
        found = f"found the control character U+{ord(bad.group()):04X}"
        raise ReadError([Problem("", found, "need plain text", line=text.count("\n", 0, bad.start()) + 1)])
    if json:
        text = _JSON_ESCAPE.sub(_join_surrogates, text.replace("\t", " "))
    return _Reader().read(text)


def _join_surrogates(match: re.Match[str]) -> str:
    escape = match.group()
    if len(escape) != 12:
        return escape
    return (bytes.fromhex(escape[2:6]) + bytes.fromhex(escape[8:12])).decode("utf-16-be")


class _Reader:
    """One pass over the parser's events with an explicit stack."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.anchors: dict[str, _Done | None] = {}
        self.problems: list[Problem] = []
        self.root: _Done | None = None
        self.num_documents = 0

    def read(self, text: str) -> tuple[Any, Mark]:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                self.take(event)
        except yaml.MarkedYAMLError as error:
            self.invalid(error, text)
        except yaml.YAMLError as error:
            self.problem(None, f"found invalid YAML ({' '.join(str(error).split())})", "need valid YAML", loc=())
        if self.problems:
            raise ReadError(self.problems)
        root = self.root or _Done(None, Mark(1))
        return root.value, root.mark

    def invalid(self, error: yaml.MarkedYAMLError, text: str) -> None:
        """Note a syntax error, where the bracket or quote that never closes is, or else where it shows."""
        at, start = error.problem_mark or error.context_mark, error.context_mark
        reason = (error.problem or error.context or "").replace(";", ",")
        line = None if at is None else at.line + 1
        unclosed = any(word in (error.context or "") for word in ("flow", "quoted"))
        if unclosed and start is not None and line is not None and start.line + 1 < line:
            reason += f", noticed in line {line}"
            line = start.line + 1
        row = "" if line is None else (text.split("\n") + [""])[line - 1]
        need = "spaces, not tabs, for indentation" if "\t" in row else "valid YAML: check indentation, quotes, brackets"
        self.problem(line, f"found invalid YAML ({reason})", f"need {need}", loc=())

    def problem(self, line: int | None, found: str, need: str, loc: Loc | None = None) -> None:
        """Note a problem at ``loc``, by default at the place that is being read."""
        self.problems.append(Problem(path_text(self.place() if loc is None else loc), found, need, line=line))

    def stop(self, line: int, found: str, need: str) -> ReadError:
        """A problem after which reading on makes no sense."""
        self.problem(line, found, need)
        return ReadError(self.problems)

    def place(self) -> Loc:
        """Keys and indices of the value that comes next."""
        parts: list[str | int] = []
        for entry in self.open:
            if isinstance(entry.value, list):
                parts.append(len(entry.value))
            elif entry.key is not None:
                parts.append(entry.key)
        return tuple(parts)

    def take(self, event: Any) -> None:
        """Work on one event of the parser."""
        kind, line = type(event), event.start_mark.line + 1
        if kind is yaml.ScalarEvent:
            self.scalar(event, line)
        elif kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
            self.start(event, line, {} if kind is yaml.MappingStartEvent else [])
        elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
            self.end()
        elif kind is yaml.AliasEvent:
            self.alias(event.anchor, line)
        elif kind is yaml.DocumentStartEvent:
            self.num_documents += 1
            if self.num_documents > 1:
                raise self.stop(line, "found a second document", "need one document a file: remove the `---`")

    def scalar(self, event: Any, line: int) -> None:
        tag, text = event.tag, event.value
        plain = event.implicit[0] and not event.style
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            merge = plain and text == "<<"
            value = text if merge else self.scalar_value(tag, text, plain, line)
            if not isinstance(value, str):
                found = f"found the key {short(text) if plain and not text else text[:60]}, which is not text"
                self.problem(line, found, "need text as a key: put it in quotes")
            self.key(text, line, merge)
            return
        value = self.scalar_value(tag, text, plain, line)
        done = _Done(value, Mark(line))
        if event.anchor:
            self.anchors[event.anchor] = done
        self.add(done, line)

    def scalar_value(self, tag: str | None, text: str, plain: bool, line: int) -> Any:
        """The value of a scalar by YAML 1.2's core schema."""
        if tag not in (None, "!") and tag not in _STANDARD:
            self.foreign(tag or "", line)
            return None
        if tag in ("!", f"{_TAG}str") or (tag is None and not plain):
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self.problem(line, f"found a whole number of {len(text):,} digits", "need a number of ordinary size")
                return 0
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                found = f"found {text[:40]}, which is too large for a number"
                self.problem(line, found, "need a number of ordinary size")
            return number
        special = _SPECIAL.fullmatch(text)
        return text if special is None else float("".join(special.groups()))

    def foreign(self, tag: str, line: int) -> None:
        name = tag.replace(_TAG, "!!")
        self.problem(line, f"found the tag {short(name)}", "need plain YAML: a spec makes no objects and runs no code")

    def key(self, text: str, line: int, merge: bool) -> None:
        top = self.open[-1]
        assert isinstance(top.value, dict)
        if text in top.value or (merge and top.merges):
            first = top.marks[text].line if text in top.marks else top.line
            self.problem(
                line, f"found this key twice, first in line {first}", "need it once", loc=(*self.place(), text)
            )
        top.key, top.key_line = ("<<", -line) if merge else (text, line)

    def start(self, event: Any, line: int, value: dict[str, Any] | list[Any]) -> None:
        if event.tag not in (None, "!") and event.tag not in _STANDARD:
            self.foreign(event.tag, line)
        if len(self.open) >= MAX_DEPTH:
            self.problem(line, f"found more than {MAX_DEPTH} levels of nesting", "need fewer", loc=self.place()[:4])
            raise ReadError(self.problems)
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            raise self.stop(line, "found a mapping or list as a key", "need text as a key")
        if event.anchor:
            self.anchors[event.anchor] = None
        self.open.append(_Open(line, value, event.anchor))

    def end(self) -> None:
        top = self.open.pop()
        if isinstance(top.value, dict):
            for merged in top.merges:
                for key, value in merged.value.items():
                    if key not in top.value:
                        top.value[key] = value
                        top.marks[key] = merged.mark.items[key]
        done = _Done(top.value, Mark(top.line, top.marks), top.size, top.height)
        if top.anchor:
            self.anchors[top.anchor] = done
        self.add(done, top.line)

    def alias(self, anchor: str, line: int) -> None:
        done = self.anchors.get(anchor)
        if done is None:
            why = "inside the value it names" if anchor in self.anchors else "which nothing names"
            raise self.stop(line, f"found *{anchor}, {why}", f"need an earlier value marked &{anchor}")
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            raise self.stop(line, f"found *{anchor} as a key", "need text as a key")
        self.add(done, line)

    def add(self, done: _Done, line: int) -> None:
        """Put a finished value where it belongs."""
        if not self.open:
            self.root = done
            return
        top = self.open[-1]
        top.size += done.size
        top.height = max(top.height, done.height + 1)
        if top.size > MAX_VALUES or len(self.open) + done.height > MAX_DEPTH:
            found = f"{MAX_VALUES:,} values" if top.size > MAX_VALUES else f"{MAX_DEPTH} levels"
            raise self.stop(
                line,
                f"found more than {found}, aliases counted",
                "need fewer: put large arrays into files beside the spec",
            )
        if isinstance(top.value, list):
            top.marks[len(top.value)] = Mark(line, done.mark.items)
            top.value.append(done.value)
        elif top.key_line < 0:
            self.merge(done, line)
            top.key = None
        elif top.key is not None:
            top.value[top.key] = done.value
            top.marks[top.key] = Mark(top.key_line, done.mark.items)
            top.key = None

    def merge(self, done: _Done, line: int) -> None:
        """Remember mappings under a merge key ``<<``."""
        values = done.value if isinstance(done.value, list) else [done.value]
        if not all(isinstance(value, dict) for value in values):
            self.problem(line, f"found {short(done.value)} under `<<`", "need a mapping, or a list of mappings")
            return
        marks = [done.mark.items[i] for i in range(len(values))] if isinstance(done.value, list) else [done.mark]
        self.open[-1].merges += [_Done(value, mark) for value, mark in zip(values, marks, strict=True)]
