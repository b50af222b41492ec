"""What the models of a run make, round by round: grids of pictures, answers in words, clouds of points."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfeed.errors import CrossfeedError
from crossfeed.report import words
from crossfeed.report.marks import Panel, Spec, padded, palette, quantity, view
from crossfeed.report.markup import Page, fold, num, paragraph, text
from crossfeed.report.run_charts import COLOURED, colours
from crossfeed.report.run_data import Facts, Measured, own_data, table_of
from crossfeed.report.run_words import called, chosen_rounds, nothing, ordered, visible, where
from crossfeed.report.theme import token

if TYPE_CHECKING:
    from crossfeed.record.folder import RunFolder

BUDGET = 1_300_000
"""Bytes of pictures on the page."""
SIDE = 96
"""Larger pictures are shrunk to this side for the page."""
SHORT, LONG = 280, 4_000
"""Characters of an answer shown at once, and behind a fold."""
TEXTS = 400_000
"""Characters of markup for answers; when they are spent, the long parts are left out."""
UNFOLDED = 4
"""Evaluations whose answers stand open on the page."""
POINTS = 250
MODELS = 12


@dataclass(frozen=True)
class Shown:
    """One output kept for showing: of which prompt, by number and in words, and its reward."""

    prompt: int
    asked: str
    output: Any
    reward: float | None


def shown(facts: Facts, folder: RunFolder, t: int, e: Measured) -> list[Shown]:
    """Outputs of one evaluation kept in a round; none where the round has none of this model."""
    table = table_of(folder, facts, t, e.model, "shown")
    if table is None:
        return []
    columns = [table.column(c).to_pylist() for c in ("domain", "prompt_id", "prompt", "output", "reward")]
    return [Shown(int(i), p or "", o, r) for d, i, p, o, r in zip(*columns, strict=True) if d == e.name]


def samples(facts: Facts, folder: RunFolder, page: Page) -> str:
    """The section: by model and evaluation, the same inputs in several rounds."""
    kept = ordered(facts)[:MODELS]
    drawn = [e for e in facts.evaluations if e.model in kept]
    kind = facts.eco.space.kind
    if kind == "vectors":
        return _clouds(facts, folder, page)
    body = _pictures(facts, folder, drawn) if kind == "images" else _answers(facts, folder, drawn)
    rest = len(facts.names) - len(kept)
    more = paragraph(f"The {rest:,} models that moved least are not shown; the record has them.", "note")
    return body + (more if rest > 0 else "") if body else ""


def _same(found: Mapping[int, list[Shown]], most: int) -> tuple[list[int], dict[int, list[Shown]]]:
    """The same inputs in every round: prompts, and by round one output each; several draws of one prompt if needed.

    Prompts come in turn, so that few labels each appear once before any appears twice.
    """
    queues = {t: _queues(items) for t, items in found.items()}
    common = [p for p in next(iter(queues.values())) if all(p in q for q in queues.values())]
    if not common:
        return [], {t: items[:most] for t, items in found.items()}
    depth = {p: min(len(q[p]) for q in queues.values()) for p in common}
    turns = sorted(((k, i, p) for i, p in enumerate(common) for k in range(depth[p])))[:most]
    picked = sorted(turns, key=lambda turn: (turn[1], turn[0]))
    return [p for _, _, p in picked], {t: [q[p][k] for k, _, p in picked] for t, q in queues.items()}


def _queues(items: Sequence[Shown]) -> dict[int, list[Shown]]:
    out: dict[int, list[Shown]] = {}
    for item in items:
        out.setdefault(item.prompt, []).append(item)
    return dict(sorted(out.items()))


def _rounds(facts: Facts, folder: RunFolder, e: Measured, most: int) -> dict[int, list[Shown]]:
    found = {t: shown(facts, folder, t, e) for t in chosen_rounds(facts.rounds, most)}
    return {t: items for t, items in found.items() if items}


def _real_of(facts: Facts, folder: RunFolder, models: Sequence[str]) -> dict[int, list[Shown]]:
    """Real outcomes by prompt, of the rows that models begin with."""
    out: dict[int, list[Shown]] = {}
    for model in models:
        table = table_of(folder, facts, 0, model, "samples", ["prompt_id", "prompt", "output", "kind"])
        if facts.rounds[0] == 0 and table is not None:
            columns = [table.column(c).to_pylist() for c in ("prompt_id", "prompt", "output", "kind")]
            for prompt, asked, output, kind in zip(*columns, strict=True):
                if kind == "real":
                    out.setdefault(int(prompt), []).append(Shown(int(prompt), asked or "", output, None))
    return out


def _round_name(t: int) -> str:
    return "start" if t == 0 else f"round {t}"


def _heading(facts: Facts, e: Measured) -> str:
    names = called(facts)
    several = sum(other.model == e.model for other in facts.evaluations) > 1
    return f"{names[e.model]}, on {where(e, names)} ({words.clean(e.name, 40)})" if several else names[e.model]


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(facts: Facts, folder: RunFolder, drawn: Sequence[Measured]) -> str:
    """One grid an evaluation: a row a round, the same labels in the same columns."""
    columns = 10 if len(drawn) <= 4 else 8
    most = 6 if len(drawn) <= 8 else 4
    out, left = [], BUDGET
    for e in drawn:
        prompts, rows = _same(found, columns) if (found := _rounds(facts, folder, e, most)) else ([], {})
        cells, spent = {}, 0
        queues = _real_of(facts, folder, [e.model])
        real = [_picture(queues[p].pop(0)) if queues.get(p) else None for p in prompts]
        spent += sum(len(uri or "") for uri in real)
        for t, items in rows.items():
            cells[t] = [_picture(item) for item in items]
            spent += sum(len(c or "") for c in cells[t])
        if not rows or spent > left:
            continue
        left -= spent
        out.append(_grid(facts, e, rows, cells, bool(prompts), real))
    if not out:
        return ""
    note = paragraph(
        "A row is a round; the first row is real data. Columns hold the same label where the record has it in every round; "
        "the pictures are made anew each time. Point at a picture for its reward.",
        "note",
    )
    return note + "".join(out)


def _grid(
    facts: Facts,
    e: Measured,
    rows: Mapping[int, Sequence[Shown]],
    cells: Mapping[int, Sequence[str | None]],
    same: bool,
    real: Sequence[str | None],
) -> str:
    """One evaluation's grid; ``real``: pictures of real data for the columns, where there are some."""
    who = called(facts)[e.model]
    head = "".join(
        f'<th scope="col">{text(item.asked, 24)}</th>' for item in (next(iter(rows.values())) if same else ())
    )
    body = []
    if any(real):
        labels = [words.clean(f"real data: {item.asked}", 40) for item in next(iter(rows.values()))]
        line = [
            f'<td><img src="{uri}" alt="{text(label)}" title="{text(label)}"></td>' if uri else "<td>–</td>"
            for uri, label in zip(real, labels, strict=False)
        ]
        body.append(f'<tr><th scope="row">real data</th>{"".join(line)}</tr>')
    for t, items in rows.items():
        line = []
        for item, uri in zip(items, cells[t], strict=True):
            label = f"{who}, {_round_name(t)}: {words.clean(item.asked, 24)}"
            label += "" if item.reward is None else f", reward {words.number(item.reward)}"
            line.append(
                f'<td><img src="{uri}" alt="{text(label)}" title="{text(label)}"></td>' if uri else "<td>–</td>"
            )
        body.append(f'<tr><th scope="row">{_round_name(t)}</th>{"".join(line)}</tr>')
    top = f'<thead><tr><th scope="col"><span class="unseen">Round</span></th>{head}</tr></thead>' if head else ""
    title = text(_heading(facts, e))
    return (
        f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" aria-label="Pictures of {title}">'
        f'<table class="pictures">{top}<tbody>{"".join(body)}</tbody></table></div>'
    )


def _picture(item: Shown) -> str | None:
    """A picture as a data URL; None where the record's bytes are no picture."""
    from PIL import Image

    raw = item.output.get("bytes") if isinstance(item.output, dict) else item.output
    if not isinstance(raw, bytes):
        return None
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


# --- answers --------------------------------------------------------------------------------------------------------


def _answers(facts: Facts, folder: RunFolder, drawn: Sequence[Measured]) -> str:
    """For a few inputs of each evaluation: the input, and its answer in several rounds."""
    few = 3 if len(drawn) <= UNFOLDED else 2
    real = _real_of(facts, folder, facts.names[:MODELS])
    out: list[str] = []
    spent = 0
    for e in drawn:
        found = _rounds(facts, folder, e, 4)
        if not found:
            continue
        prompts, rows = _same(found, few)
        long = LONG if spent < TEXTS else 0
        parts = [
            _asked({t: items[k] for t, items in rows.items() if k < len(items)}, bool(prompts), long, real)
            for k in range(max(len(items) for items in rows.values()))
        ]
        spent += sum(map(len, parts))
        if len(out) < UNFOLDED:
            title = f"<h3>{text(_heading(facts, e))}</h3>"
            out.append(title + parts[0] + (fold("More inputs", "".join(parts[1:])) if parts[1:] else ""))
        else:
            out.append(fold(_heading(facts, e), "".join(parts)))
    if not out:
        return ""
    note = paragraph(
        "The same inputs, answered in several rounds. Control and invisible characters are shown by their code in brackets, "
        "e.g. ⟨U+202E⟩; � stands for what is no valid text.",
        "note",
    )
    return note + "".join(out)


def _asked(answers: Mapping[int, Shown], same: bool, long: int, real: Mapping[int, Sequence[Shown]]) -> str:
    """An input, its answer in real data, and its answers by round; where rounds answered different inputs, each with its own."""
    first = next(iter(answers.values()))
    asked = f'<dt>Input</dt><dd class="asked">{said(first.asked, long)}</dd>' if same else ""
    if same and first.prompt in real:
        asked += f"<dt>In the real data</dt><dd>{said(str(real[first.prompt][0].output), long)}</dd>"
    body = "".join(
        f"<dt>{_round_name(t).capitalize()}"
        + (f'<span class="note"> · reward {num(a.reward, of="reward")}</span>' if a.reward is not None else "")
        + f"</dt><dd>{said(str(a.output), long)}</dd>"
        + ("" if same else f'<dd class="asked">{said(a.asked, long)}</dd>')
        for t, a in answers.items()
    )
    return f'<dl class="answered">{asked}{body}</dl>'


def said(value: str, long: int = LONG) -> str:
    """Text of a model or a data set as markup: escaped and cut, ``long`` characters of it behind a fold."""
    empty = nothing(value)
    if empty:
        return f'<p class="said none">{text(empty)}</p>'
    first = f'<p class="said" dir="auto">{escape(visible(value, SHORT))}</p>'
    if len(value) <= SHORT:
        return first
    size = f"{len(value):,} characters"
    if not long:
        return first + paragraph(f"{size}; the record has them.", "note")
    whole = f'<p class="said" dir="auto">{escape(visible(value, long))}</p>'
    return first + fold(size if len(value) <= long else f"{size}; the first {long:,}", whole)


# --- points ---------------------------------------------------------------------------------------------------------


def _real(facts: Facts, folder: RunFolder, model: str) -> np.ndarray | None:
    """Points of a model's real data, drawn anew; None where the data are not at hand any more."""
    import torch

    try:
        world = folder.world
    except (CrossfeedError, OSError):
        return None
    for name in [*sorted(own_data(facts.eco, model)), *world.data]:
        drawn = world.data[name].draw(2 * POINTS, torch.Generator().manual_seed(0))[2]
        return np.asarray(drawn, dtype=float)
    return None


def _plane(real: np.ndarray | None, clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and two directions to draw along: the coordinates in 2-D, else the widest directions of the real data."""
    base = real if real is not None and len(real) > 2 else np.concatenate(list(clouds))
    dim = base.shape[1]
    if dim <= 2:
        return np.zeros(dim), np.eye(dim)
    centre = base.mean(0)
    return centre, np.linalg.svd(base - centre, full_matrices=False)[2][:2]


def _clouds(facts: Facts, folder: RunFolder, page: Page) -> str:
    """Outputs over real data: a panel a round for each of the models that moved most."""
    tone, names, out = colours(facts), called(facts), []
    dim = facts.eco.space.dim if facts.eco.space.kind == "vectors" else 0
    kept = [n for n in facts.names if n in ordered(facts)[:COLOURED]]
    for number, name in enumerate(kept):
        e = facts.primary(name)
        found = {} if e is None else _rounds(facts, folder, e, 4 if len(kept) <= 2 else 3 if len(kept) == 3 else 2)
        clouds = {t: _finite([s.output for s in items[:POINTS]], dim) for t, items in found.items()}
        clouds = {t: cloud for t, cloud in clouds.items() if len(cloud)}
        if not clouds:
            continue
        real = _real(facts, folder, name)
        centre, axes = _plane(real, list(clouds.values()))
        ground = None if real is None else (real[:POINTS] - centre) @ axes.T
        flat = {t: (cloud - centre) @ axes.T for t, cloud in clouds.items()}
        draw = _histograms if dim == 1 else _scatter
        panels = draw(names[name], flat, ground, tone.get(name, "first"), dim)
        title = f"<h3>{text(names[name])}</h3>" if len(kept) > 1 else ""
        caption = "Each point is an output: in colour the model’s, in grey real data. All panels have the same scale."
        if dim == 1:
            caption = "How often each value occurs, in the model’s outputs and in real data."
        if dim > 2:
            caption += f" Of {dim:,} dimensions the two are drawn along which real data vary most."
        out.append(title + page.figure(f"cloud{number}", panels, caption, titled=True))
    rest = len(facts.names) - len(kept)
    more = paragraph(f"The {rest:,} models that moved least are not drawn.", "note") if rest > 0 else ""
    return "".join(out) + more if out else ""


def _finite(outputs: Sequence[Any], dim: int) -> np.ndarray:
    rows = [o for o in outputs if isinstance(o, (list, tuple)) and len(o) == dim and all(map(math.isfinite, o))]
    return np.array(rows, dtype=float).reshape(len(rows), dim)


def _scatter(who: str, clouds: Mapping[int, np.ndarray], real: np.ndarray | None, tone: str, dim: int) -> list[Panel]:
    """Points of each round over real data."""
    every = [*clouds.values(), *([] if real is None else [real])]
    limits = [padded(np.concatenate([c[:, k] for c in every]).tolist()) for k in (0, 1)]
    titles = ["first coordinate", "second coordinate"] if dim == 2 else ["first direction", "second direction"]
    x, y = (
        quantity(f, title, scale={"domain": lim, "nice": False}, axis={"grid": False, "tickCount": 4})
        for f, title, lim in zip("xy", titles, limits, strict=True)
    )
    out = []
    for t, cloud in clouds.items():
        rows = [{"x": _short(a), "y": _short(b)} for a, b in cloud.tolist()]
        ground = [] if real is None else [{"x": _short(a), "y": _short(b)} for a, b in real.tolist()]
        dot: Spec = {"type": "circle", "size": 14, "clip": True}
        layers: list[Spec] = [
            {
                "data": {"values": ground},
                "mark": {**dot, "color": token("sixth"), "opacity": 0.35},
                "encoding": {"x": x, "y": y},
            },
            {"mark": {**dot, "size": 16, "color": token(tone), "opacity": 0.75}, "encoding": {"x": x, "y": y}},
        ]
        middle = ", ".join(words.number(float(v)) for v in cloud.mean(0))
        alt = f"{who}, {_round_name(t)}: {len(rows)} outputs around ({middle}) over real data."
        out.append(Panel(_round_name(t).capitalize(), alt, view(rows, 250, layer=layers)))
    return out


def _histograms(
    who: str, clouds: Mapping[int, np.ndarray], real: np.ndarray | None, tone: str, dim: int
) -> list[Panel]:
    """Histogram of each round over that of real data, for outputs of one dimension."""
    every = np.concatenate([c[:, 0] for c in (*clouds.values(), *([] if real is None else [real]))])
    low, high = padded(every.tolist())
    bins = np.linspace(low, high, 31)
    kinds = {"outputs": tone, "real data": "sixth"}
    out = []
    for t, cloud in clouds.items():
        rows = []
        for kind, values in (("real data", real), ("outputs", cloud)):
            if values is not None:
                density, _ = np.histogram(values[:, 0], bins, density=True)
                rows += [
                    {"x": _short(a), "density": _short(d), "kind": kind}
                    for a, d in zip((bins[:-1] + bins[1:]) / 2, density.tolist(), strict=True)
                ]
        encoding = {
            "x": quantity("x", "outcome", axis={"grid": False}),
            "y": quantity("density", "density", axis={"tickCount": 4}, stack=None),
            "color": palette(kinds),
        }
        mark = {"type": "line", "interpolate": "step", "strokeWidth": 2}
        alt = f"{who}, {_round_name(t)}: mean {words.number(float(cloud.mean()))}."
        out.append(Panel(_round_name(t).capitalize(), alt, view(rows, 200, mark=mark, encoding=encoding)))
    return out


def _short(value: float) -> float:
    return float(f"{value:.4g}")
