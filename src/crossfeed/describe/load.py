"""A spec file to an ecosystem, with every problem at its file and line; and the JSON Schema of a spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crossfeed.describe import reader
from crossfeed.describe.check import complaints
from crossfeed.describe.overrides import (
    OVERRIDE,
    PathError,
    apply_overrides,
    apply_scale,
    apply_settings,
    scale_complaints,
)
from crossfeed.describe.schema import CallableReward, Ecosystem
from crossfeed.describe.translate import complaints_of
from crossfeed.describe.wording import Complaint, did_you_mean, short
from crossfeed.errors import Problem, SpecError

MAX_BYTES = 1 << 25


def load(
    path: str | os.PathLike[str],
    *,
    allow_code: bool = False,
    scale: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Ecosystem:
    """Read a spec: YAML or JSON, with the arrays in files beside it.

    Nothing in the file is ever executed; a reward that names a Python function is refused unless code is allowed, and
    even then it is imported only when the ecosystem is computed.

    Args:
        path: The spec.
        allow_code: Accept rewards that name Python functions.
        scale: Which of the spec's ``scales`` to apply; None for the spec as it stands.
        overrides: Changes on top, path and value: places in the spec (``models.*.train.steps``, ``run.rounds``), or settings
            (``p.curation``), which move what must give way.

    Returns:
        The validated, frozen ecosystem.

    Raises:
        SpecError: with every problem found, each with file, line, path in the spec, what was found and what is needed.

    Example:
        >>> import tempfile
        >>> spec = Path(tempfile.mkdtemp()) / "spec.yaml"
        >>> _ = spec.write_text('''
        ... space: {kind: vectors, dim: 1}
        ... rewards: {r: {kind: linear, vector: [1]}}
        ... models:
        ...   p: {family: {kind: gaussian_mean}, reward: r, sources: [{kind: raw, producer: q, weight: 1}]}
        ... ''')
        >>> try:
        ...     load(spec)
        ... except SpecError as error:
        ...     print(error.problems[0].line, error.problems[0].path)
        5 models.p.sources[0].producer
    """
    file = os.fspath(path)
    text = _text(file)
    try:
        value, marks = reader.read(text, json=Path(file).suffix.lower() == ".json" or text.lstrip()[:1] == "{")
    except reader.ReadError as error:
        raise SpecError([replace(problem, file=file) for problem in error.problems]) from None
    if not isinstance(value, dict):
        found = "found an empty file" if value is None else f"found {short(value)}"
        need = "need a mapping with `space`, `rewards` and `models`"
        raise SpecError([Problem("", found, need, file, marks.line)])

    def located(found: list[Complaint]) -> SpecError:
        problems = []
        for complaint in found:
            line = marks.at(complaint.loc)
            problems.append(complaint.problem(file, line) if line else complaint.problem(OVERRIDE))
        return SpecError(sorted(problems, key=lambda problem: problem.line or 0))

    odd = scale_complaints(value)
    if odd:
        raise located(odd)
    if scale is not None:
        try:
            value, marks = apply_scale(value, marks, scale)
        except PathError as error:
            raise located([Complaint(("scales",), error.found, error.need)]) from None
    value, marks, left = apply_overrides(value, marks, overrides or {})
    eco = Ecosystem.__new__(Ecosystem)
    folder = os.path.dirname(os.path.abspath(file))
    try:  # as BaseModel.__init__ does, but with the folder that file names start from
        Ecosystem.__pydantic_validator__.validate_python(value, self_instance=eco, context={"folder": folder})
    except ValidationError as error:
        raise located(complaints_of(error, Ecosystem)) from None
    wrong = complaints(eco) + ([] if allow_code else _code(eco))
    if wrong:
        raise located(wrong)
    if left:
        eco = apply_settings(eco, left)
        wrong = complaints(eco)
        if wrong:
            raise SpecError([complaint.problem(OVERRIDE) for complaint in wrong])
    return eco


def schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of a spec: structure, types and bounds, for editors and generators."""
    out = Ecosystem.model_json_schema()
    out["description"] = out["description"].split("\n")[0]
    for definition in out["$defs"].values():
        kind = definition.get("properties", {}).get("kind", {})
        if "const" in kind:  # pydantic has a default for Python; a spec must say it
            kind.pop("default", None)
            definition["required"] = ["kind", *definition.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_any_of(out)}


def _any_of(node: Any) -> Any:
    """``oneOf`` without a discriminator as ``anyOf``: such branches may overlap."""
    if isinstance(node, list):
        return [_any_of(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    out = {key: _any_of(value) for key, value in node.items()}
    if "oneOf" in out and "discriminator" not in out:
        out["anyOf"] = out.pop("oneOf")
    return out


def _code(eco: Ecosystem) -> list[Complaint]:
    need = "need leave to run code: pass `--allow-code` (in Python allow_code=True) if you trust this spec"
    return [
        Complaint(("rewards", name, "function"), f"found the Python function {short(reward.function)}", need)
        for name, reward in eco.rewards.items()
        if isinstance(reward, CallableReward)
    ]


def _text(file: str) -> str:
    """The file's text, or an error that says why there is none."""

    def refuse(found: str, need: str, line: int | None = None) -> SpecError:
        return SpecError([Problem("", found, need, file, line)])

    path = Path(file)
    try:
        if path.is_dir():
            specs = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json"))[:5]
            raise refuse(
                "found a folder", "need a spec file" + (f", such as {', '.join(specs)} in it" if specs else "")
            )
        if not path.exists():
            others = sorted(p.name for p in path.parent.iterdir())[:500] if path.parent.is_dir() else []
            near = did_you_mean(path.name, others)
            raise refuse("found no such file", f"need the name of a spec file{near}")
        if not path.is_file():
            raise refuse("found no ordinary file", "need a spec file")
        if path.stat().st_size > MAX_BYTES:
            found = f"found {path.stat().st_size:,} bytes"
            raise refuse(
                found, f"need at most {MAX_BYTES:,}: put large arrays into .npz or .parquet files beside the spec"
            )
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse(f"found a file that cannot be read ({reason})", "need a readable spec file") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise refuse("found bytes that are not UTF-8", "need text saved as UTF-8", line) from None
