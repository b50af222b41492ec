"""Pydantic's findings in this package's words: where in the spec, what stands there, what is needed."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crossfeed.describe.wording import Complaint, Loc, known, short

_KINDS = {"union_tag_not_found", "model_attributes_type", "union_tag_invalid"}
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": ("≥", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("≤", "le"),
}
_NAME = "need a name of 1 to 200 characters without dots and brackets that does not start with a space"


def complaints_of(error: ValidationError, node: type[BaseModel]) -> list[Complaint]:
    """Every error of a failed validation of ``node``, one complaint a mistake."""
    found: dict[tuple[Loc, str], Complaint] = {}
    repeats: dict[tuple[Loc, str], int] = {}
    for detail in error.errors(include_url=False):
        complaint = _complaint(detail, *_place(detail["loc"], node))
        entry = bool(complaint.loc) and isinstance(complaint.loc[-1], int)  # alike entries of a list count as one
        key = (complaint.loc[:-1], complaint.need) if entry else (complaint.loc, "")
        found.setdefault(key, complaint)
        repeats[key] = repeats.get(key, -1) + entry
    more = {key: f" ({n:,} more such entr{'y' if n == 1 else 'ies'})" for key, n in repeats.items() if n > 0}
    return [c._replace(found=c.found + more.get(key, "")) for key, c in found.items()]


def plain_type(hint: Any) -> Any:
    """A type without Annotated and without None."""
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, types.UnionType):
            members = [m for m in get_args(hint) if m is not type(None)]
            if len(members) > 1:
                return hint
            hint = members[0]
        else:
            return hint


def kinds_of(hint: Any) -> dict[str, type[BaseModel]]:
    """Nodes of a union by their ``kind``; empty for any other type."""
    members = [plain_type(m) for m in get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else []
    nodes = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return {str(m.model_fields["kind"].default): m for m in nodes}


def _place(loc: tuple[int | str, ...], node: type[BaseModel]) -> tuple[Loc, Any, type[BaseModel]]:
    """Keys and indices without the tags that pydantic puts between; the type expected there; the innermost node."""
    out: list[int | str] = []
    hint: Any = node
    owner = node
    for index, part in enumerate(loc):
        hint = plain_type(hint)
        kinds = kinds_of(hint)
        if kinds:
            hint = kinds.get(str(part))
        elif isinstance(hint, type) and issubclass(hint, BaseModel):
            out.append(part)
            owner = hint
            field = hint.model_fields.get(str(part))
            hint = None if field is None else field.annotation
        elif get_origin(hint) is dict:
            if part == "[key]":
                continue
            out.append(part)
            hint = get_args(hint)[1] if loc[index + 1 :] != ("[key]",) else dict
        elif get_origin(hint) in (list, tuple):
            out.append(part)
            hint = get_args(hint)[0]
        elif isinstance(part, int):
            out.append(part)
    return tuple(out), plain_type(hint), owner


def _complaint(detail: ErrorDetails, loc: Loc, hint: Any, owner: type[BaseModel]) -> Complaint:
    kind, value, ctx = detail["type"], detail.get("input"), detail.get("ctx", {})
    found = f"found {short(value)}"
    if kind == "spec":
        return Complaint((*loc, *ctx["index"]), ctx["found"], ctx["need"])
    if detail["loc"][-1:] == ("[key]",):
        need = _need(kind, ctx, value) if kind == "literal_error" else _NAME
        return Complaint(loc, f"found the name {short(value)}", need)
    if kind == "missing":
        return _missing(loc, value, owner)
    if kind == "extra_forbidden":
        return Complaint(loc, f"found an unknown key {short(loc[-1])}", known(owner.model_fields, loc[-1]))
    if kind in _KINDS:
        return _kind(loc, value, kinds_of(hint))
    return Complaint(loc, found, _need(kind, ctx, value))


def _missing(loc: Loc, value: Any, owner: type[BaseModel]) -> Complaint:
    if isinstance(loc[-1], int):
        return Complaint(loc[:-1], f"found {short(value)}", "need one entry more")
    meaning = (owner.model_fields[loc[-1]].description or "").split(";")[0].rstrip(".")
    return Complaint(loc, f"found no `{loc[-1]}`", f"need `{loc[-1]}: …` here" + (f" ({meaning})" if meaning else ""))


def _kind(loc: Loc, value: Any, kinds: dict[str, type[BaseModel]]) -> Complaint:
    if isinstance(value, BaseModel):
        return Complaint(loc, f"found a {type(value).__name__}", known(node.__name__ for node in kinds.values()))
    if not isinstance(value, dict):
        return Complaint(
            loc, f"found {short(value)}", f"need a mapping with `kind`, {known(kinds).removeprefix('need ')}"
        )
    if "kind" not in value:
        return Complaint(
            (*loc, "kind"), "found no `kind`", f"need `kind: …` here, {known(kinds).removeprefix('need ')}"
        )
    return Complaint((*loc, "kind"), f"found {short(value['kind'])}", known(kinds, value["kind"]))


def _need(kind: str, ctx: dict[str, Any], value: Any) -> str:
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return f"need a number {sign} {ctx[key]:g}"
    if kind in ("float_type", "float_parsing"):
        return "need a number"
    if kind in ("int_type", "int_parsing", "int_from_float", "finite_number", "int_parsing_size"):
        return "need a whole number"
    if kind == "string_type":
        return "need text" + (": put it in quotes" if isinstance(value, (int, float)) else "")
    if kind in ("string_too_short", "string_too_long", "string_pattern_mismatch"):
        if "pattern" in ctx and ":" in ctx["pattern"]:
            return "need `module:function`"
        return f"need at most {ctx['max_length']:,} characters" if "max_length" in ctx else _NAME
    if kind == "literal_error":
        options = [option.strip("'") for option in ctx["expected"].replace(" or ", ", ").split(", ")]
        return known(options, value) if len(options) > 1 else f"need {options[0]}"
    if kind in ("list_type", "tuple_type"):
        return "need a list"
    if kind in ("dict_type", "model_type"):
        return "need a mapping of keys to values"
    if kind == "too_short":
        return f"need at least {ctx['min_length']}"
    if kind == "too_long":
        return f"need at most {ctx['max_length']}"
    return "need something else here"
