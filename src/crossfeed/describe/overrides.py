"""Changing a spec before it is validated: the places that a path names, and putting values there.

A path is keys joined by dots with entries of lists in brackets, ``models.p.sources[0].weight``; ``*`` is every key or entry at
that place, ``models.*.train.steps``. A spec's ``scales`` are named sets of such changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from crossfeed.describe import settings
from crossfeed.describe.reader import Mark
from crossfeed.describe.schema import Ecosystem
from crossfeed.describe.translate import kinds_of, plain_type
from crossfeed.describe.wording import Complaint, Loc, known, short
from crossfeed.errors import Problem, SettingError, SpecError

OVERRIDE = "override"
_STAR = object()
_PART = re.compile(r"(?:^|\.)(?P<key>[^.\[\]]+)|\[(?P<index>\*|[0-9]{1,9})\]")


class PathError(Exception):
    """A path that names no place in a spec: what was found and what is needed."""

    def __init__(self, found: str, need: str) -> None:
        self.found, self.need = found, need
        super().__init__(f"{found}; {need}")


def places(value: dict[str, Any], path: str) -> list[Loc]:
    """Where in a spec's plain values a path leads; keys that are not written but could be are places too.

    After a ``*`` only what is written counts, up to the last key.

    Raises:
        PathError: it leads nowhere.

    Example:
        >>> places({"models": {"p": {"train": {"steps": 9}}, "q": {"train": {}}}}, "models.*.train.steps")
        [('models', 'p', 'train', 'steps'), ('models', 'q', 'train', 'steps')]
    """
    parts = _parts(path)
    here: list[tuple[Loc, Any, Any]] = [((), value, Ecosystem)]
    starred = False
    for depth, part in enumerate(parts):
        after: list[tuple[Loc, Any, Any]] = []
        failed: PathError | None = None
        for loc, node, hint in here:
            try:
                found = _inside(node, hint, part)
            except PathError as error:
                if not starred:
                    raise
                failed = failed or error
                continue
            if starred or part is _STAR:
                last = depth == len(parts) - 1
                found = [entry for entry in found if last or entry[1] is not None]
            after += [((*loc, key), child, of) for key, child, of in found]
        if not after:
            raise failed or PathError(f"found no place of this name: {short(path)}", "need keys that the spec has")
        starred, here = starred or part is _STAR, after
    return [loc for loc, _, _ in here]


def _parts(path: str) -> list[Any]:
    parts: list[Any] = []
    at = 0
    while at < len(path):
        match = _PART.match(path, at) if at == 0 or path[at] in ".[" else None
        if match is None:
            break
        key, index = match["key"], match["index"]
        parts.append(_STAR if "*" in (key, index) else key if key is not None else int(index))
        at = match.end()
    if at < len(path) or not parts or isinstance(parts[0], int):
        raise PathError(
            f"found the path {short(path)}", "need keys joined by dots, such as models.*.train.steps or a.b[0].c"
        )
    return parts


def _inside(node: Any, hint: Any, part: Any) -> list[tuple[str | int, Any, Any]]:
    """Keys or entries that one part of a path names: key, value (None: not written) and type."""
    hint = plain_type(hint)
    kinds = kinds_of(hint)
    if kinds:
        hint = kinds.get(str(node.get("kind")) if isinstance(node, dict) else "")
    is_node = isinstance(hint, type) and issubclass(hint, BaseModel)
    if isinstance(node, list):
        of = get_args(hint)[0] if get_origin(hint) in (list, tuple) else None
        entries: list[tuple[str | int, Any, Any]] = [(i, entry, of) for i, entry in enumerate(node)]
        if part is _STAR:
            return entries
        if isinstance(part, int) and part < len(node):
            return [entries[part]]
        found = f"found entry {part}" if isinstance(part, int) else f"found the key {short(part)} of a list"
        raise PathError(
            f"{found} of {len(node)}" if isinstance(part, int) else found, f"need [0] to [{len(node) - 1}], or [*]"
        )
    if isinstance(part, int):
        raise PathError(f"found [{part}] of what is no list", "need a key")
    written = node if isinstance(node, dict) else {}
    if is_node:
        types = {key: field.annotation for key, field in hint.model_fields.items()}
    else:
        of = get_args(hint)[1] if get_origin(hint) is dict else None
        types = dict.fromkeys(written, of)
        if hint is None and node is None and part is not _STAR:  # below something whose kind is not written
            return [(part, None, None)]
    if part is _STAR:
        return [(key, child, types.get(key)) for key, child in written.items()]
    if part not in types:
        what = "an unknown key" if is_node else "no entry"
        raise PathError(f"found {what} {short(part)}", known(types, part))
    return [(part, written.get(part), types[part])]


def put(value: Any, loc: Loc, new: Any) -> Any:
    """The same plain values with another at ``loc``; what is shared with other places is copied, not changed."""
    if not loc:
        return new
    key, rest = loc[0], loc[1:]
    if isinstance(value, list):
        return [put(entry, rest, new) if i == key else entry for i, entry in enumerate(value)]
    written = value if isinstance(value, dict) else {}
    return {**written, key: put(written.get(str(key)), rest, new)}


def _mark(marks: Mark, loc: Loc, entry: Mark) -> Mark:
    """The same lines with another at ``loc``."""
    if not loc:
        return entry
    below = marks.items.get(loc[0], Mark(marks.line))
    return Mark(marks.line, {**marks.items, loc[0]: _mark(below, loc[1:], entry)})


# --- scales and overrides -------------------------------------------------------------------------------------------


def scale_complaints(value: dict[str, Any]) -> list[Complaint]:
    """Paths of every scale that lead nowhere."""
    scales = value.get("scales")
    out = []
    for name, changes in scales.items() if isinstance(scales, dict) else ():
        for path in changes if isinstance(changes, dict) else ():
            try:
                _own_place(value, path)
            except PathError as error:
                out.append(Complaint(("scales", name, path), error.found, error.need))
    return out


def _own_place(value: dict[str, Any], path: str) -> list[Loc]:
    """As :func:`places`, but never a scale."""
    found = places(value, path)
    if found[0][0] == "scales":
        raise PathError("found a change of scales themselves", "need a path outside `scales`")
    return found


def apply_scale(value: dict[str, Any], marks: Mark, name: str) -> tuple[dict[str, Any], Mark]:
    """The spec at one of its scales, and its lines: those of the scale's entries where it changes something.

    Raises:
        PathError: there is no such scale.
    """
    scales = value.get("scales")
    scales = scales if isinstance(scales, dict) else {}
    if name not in scales:
        need = (
            known(scales, name) if scales else "need a spec with `scales: {NAME: {PATH: VALUE, …}}`, or none asked for"
        )
        raise PathError(f"found no scale {short(name)}", need)
    entries = marks.items["scales"].items[name]
    for path, new in (scales[name] if isinstance(scales[name], dict) else {}).items():
        for loc in _own_place(value, path):
            value, marks = put(value, loc, new), _mark(marks, loc, entries.items[path])
    return value, marks


def apply_overrides(
    value: dict[str, Any], marks: Mark, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], Mark, dict[str, Any]]:
    """The spec with changes from outside; their lines are 0. What is left over are settings, for :func:`apply_settings`.

    Raises:
        SpecError: a path that leads nowhere.
    """
    left: dict[str, Any] = {}
    models = value.get("models")
    for path, new in overrides.items():
        first = re.split(r"[.\[]", path)[0]
        if first not in Ecosystem.model_fields and isinstance(models, dict) and first in models:
            left[path] = new
            continue
        try:
            if first not in Ecosystem.model_fields:
                options = [*Ecosystem.model_fields, *(models if isinstance(models, dict) else ())]
                raise PathError(f"found {short(first)}, which is no key of a spec and no model", known(options, first))
            for loc in _own_place(value, path):
                value, marks = put(value, loc, new), _mark(marks, loc, Mark(0))
        except PathError as error:
            raise SpecError([Problem(path, error.found, error.need, OVERRIDE)]) from None
    return value, marks, left


def apply_settings(eco: Ecosystem, changes: Mapping[str, Any]) -> Ecosystem:
    """The ecosystem with settings such as ``p.curation`` changed; what must give way does.

    Raises:
        SpecError: no such setting, or a value that it cannot take.
    """
    for path, new in changes.items():
        try:
            eco = settings.put(eco, path, new)
        except SettingError as error:
            found, _, need = str(error)[str(error).index(": found ") + 2 :].partition("; need ")
            raise SpecError([Problem(path, found, f"need {need}", OVERRIDE)]) from None
    return eco
