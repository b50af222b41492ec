"""Where one training sample came from, as text: the sample, who picked it and why, and its ancestors up to real data.

An ancestry is a list of entries, the sample first. Each holds the columns of its row in the record: ``sample_id``,
``round``, ``model``, ``prompt``, ``output``, ``source``, ``kind``, ``producer``, ``producer_round``, ``data``, ``row``,
``parent``, ``picker``, ``why``, and ``candidates``, a list of ``{"reward", "picked", "output"}``.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from crossfeed.errors import NotAvailableError
from crossfeed.report import words
from crossfeed.report.run_words import nothing, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Entry = Mapping[str, Any]
LETTERS = 300
"""Characters of a text that are shown."""
CANDIDATES = 12
NUMBERS = 8
ENTRIES = 60
DEEPEST = 8
"""Indentation stops here; ancestries may be as long as the run."""


def lineage_text(chain: Sequence[Entry]) -> RenderableType:
    """An ancestry as an indented tree.

    Args:
        chain: The sample, then its ancestors.

    Returns:
        What ``rich.console.Console.print`` takes; nothing in it is read as markup or obeyed by a terminal.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for depth, entry in enumerate(chain[:ENTRIES]):
        shown = Group(*_entry(entry, first=depth == 0))
        parts.append(Padding(shown, (0, 0, 0, 3 * min(depth, DEEPEST)), expand=False))
    if len(chain) > ENTRIES:
        parts.append(Text(f"… and {len(chain) - ENTRIES:,} more ancestors; --json has them all", style="dim"))
    if chain:
        parts.append(Padding(_end(chain[-1]), (0, 0, 0, 3 * min(len(chain), DEEPEST)), expand=False))
    if any(isinstance(entry.get("output"), bytes) for entry in chain):
        parts += [Text(), Text("--save DIR writes the pictures to files", style="dim")]
    return Group(*parts)


def lineage_plain(chain: Sequence[Entry], width: int = 100) -> str:
    """The same as text without colour or control characters."""
    from crossfeed.report.run_report import plain

    return plain(lineage_text(chain), width)


def _entry(entry: Entry, first: bool) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    head = Text("" if first else "└ its input is that of ", style="dim")
    head.append(_clean(entry.get("sample_id"), 120), style="bold")
    head.append(f", {_clean(entry.get('model'), 60)}’s training set of round {_clean(entry.get('round'), 10)}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("  origin", Text(_origin(entry)))
    if entry.get("prompt"):
        facts.add_row("  input", Text(said(entry["prompt"])))
    facts.add_row("  sample", Text(said(entry.get("output"))))
    return [head, facts, *_offered(entry)]


def _origin(entry: Entry) -> str:
    """Whose output it is and how it got into the training set, in words."""
    kind = entry.get("kind")
    source = _clean(entry.get("source"), 60)
    if kind in {"real", "picks"}:
        what = "real data" if kind == "real" else "picked by people before"
        row = "drawn afresh from" if entry.get("row") is None else f"row {entry['row']:,} of"
        return f"{what}: {row} {_clean(entry.get('data'), 60)} (source {source})"
    when = "at the start" if entry.get("producer_round") == 0 else f"as trained in round {entry.get('producer_round')}"
    made = f"output of {_clean(entry.get('producer'), 60)} {when} (source {source})"
    if kind != "curated":
        return f"{made}, as it came"
    why = f": {_clean(entry['why'], 120)}" if entry.get("why") else ""
    return f"{made}, picked by {_clean(entry.get('picker') or 'people not recorded', 60)}{why}"


def _offered(entry: Entry) -> list[RenderableType]:
    """Candidates with their rewards, the picked one marked."""
    from rich.table import Table
    from rich.text import Text

    offers = entry.get("candidates") or []
    if not offers:
        return []
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right"):
        grid.add_column(justify=justify, no_wrap=True)
    grid.add_column()
    shown = [k for k, offer in enumerate(offers) if k < CANDIDATES or offer["picked"]]
    for k in shown:
        reward, chosen, output = offers[k]["reward"], offers[k]["picked"], offers[k]["output"]
        value = words.number(reward, 4, minus="-") if reward is not None and math.isfinite(reward) else str(reward)
        kept = said(output, LETTERS // 2) if output is not None else "picked" if chosen else "not kept"
        style = "bold" if chosen else "dim"
        grid.add_row(*(Text(t, style=style) for t in ("  >" if chosen else "", str(k + 1), value, kept)))
    more = f"; {len(offers) - len(shown):,} are not shown" if len(offers) > len(shown) else ""
    head = f"  {words.plural(len(offers), 'candidate')}, with rewards (> was picked){more}"
    return [Text(head, style="dim"), grid]


def _end(entry: Entry) -> Text:
    from rich.text import Text

    if entry.get("kind") in {"real", "picks"}:
        return Text("└ real data: the line ends here", style="dim")
    if entry.get("parent"):
        return Text(f"└ its parent {_clean(entry['parent'], 120)} is not in the record", style="dim")
    if entry.get("data"):
        row = "" if entry.get("row") is None else f"row {entry['row']:,} of "
        return Text(f"└ its input is that of {row}{_clean(entry['data'], 60)}: the line ends here", style="dim")
    return Text("└ no parent was recorded", style="dim")


def _clean(value: Any, limit: int) -> str:
    return words.clean(visible("–" if value is None else value, 4 * limit, breaks=False), limit)


def said(value: Any, letters: int = LETTERS) -> str:
    """An output in one line: a text with its signs made visible, a picture by its size, a vector by its numbers."""
    if isinstance(value, str):
        shown = nothing(value) or visible(value, letters, breaks=False)
        return shown if len(value) <= letters or nothing(value) else f"{shown} ({len(value):,} characters)"
    raw = _picture(value)
    if raw is not None:
        return _size(raw)
    if isinstance(value, (list, tuple)):
        shown = ", ".join(words.number(n, minus="-") if math.isfinite(n) else str(n) for n in value[:NUMBERS])
        return f"({shown}{', …' if len(value) > NUMBERS else ''})"
    return "not recorded" if value is None else visible(value, letters, breaks=False)


# --- pictures -------------------------------------------------------------------------------------------------------


def _picture(value: Any) -> bytes | None:
    """A picture's bytes; None for what is no picture."""
    return value if isinstance(value, bytes) else None


def _size(raw: bytes) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as picture:
            return f"picture, {picture.width} × {picture.height} pixels"
    except (OSError, ValueError, Image.DecompressionBombError):
        return f"{len(raw):,} bytes that are no picture"


def save_pictures(chain: Sequence[Entry], folder: Path) -> list[Path]:
    """Write the pictures of an ancestry as PNG files, candidates too.

    Args:
        chain: The sample, then its ancestors.
        folder: An existing folder.

    Returns:
        The files, named by sample id and, for candidates, ``-candidate-K``.

    Raises:
        NotAvailableError: there is no picture among them.
    """
    from crossfeed.report.output import write_whole

    found: dict[str, bytes] = {}
    for entry in chain:
        stem = quote(str(entry.get("sample_id")), safe="")[:150]
        outputs = {stem: entry.get("output")}
        outputs |= {f"{stem}-candidate-{k + 1}": c["output"] for k, c in enumerate(entry.get("candidates") or [])}
        found |= {name: raw for name, value in outputs.items() if (raw := _picture(value)) is not None}
    if not found:
        raise NotAvailableError(
            "--save: these samples are no pictures; leave it out, and use --json for texts and vectors"
        )
    files = [folder / f"{name}.png" for name in found]
    for file, raw in zip(files, found.values(), strict=True):
        write_whole(file, lambda path, raw=raw: Path(path).write_bytes(raw))  # type: ignore[misc]
    return files


def lineage_json(chain: Sequence[Entry]) -> str:
    """An ancestry as JSON in ASCII; pictures as base64 of their PNG, numbers that are not finite as null."""
    return json.dumps([_plain(entry) for entry in chain], indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    raw = _picture(value)
    if raw is not None:
        return {"png": base64.b64encode(raw).decode()}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
