r"""A grid of settings: stable points, alignment and the verdict on more curation at every point, as one batch.

Settings that keep the structure (weights, shares, temperatures, K between 2 and ∞, ridges) are columns of one tensor;
K = 1 and K = ∞ are other pick rules and get a batch of their own. All points start from the spec's own start, so where
several stable points exist the map shows the one that retraining from there leads to.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from crossfeed.describe import schema
from crossfeed.describe import settings as paths
from crossfeed.dynamics.batch import DENSE_LIMIT, points_at_once, solve_batch
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.errors import SettingError

if TYPE_CHECKING:
    import pyarrow

Result = Literal["converged", "unstable", "budget", "diverged", "oscillating", "non-finite"]
Progress = Callable[[str, int, int], None]
QUANTITIES = ("alignment", "influence")
NUDGE = 1e-9


@dataclass(frozen=True)
class Sweep:
    """What was found at every point of a grid; the last path varies fastest.

    Attributes:
        eco: The ecosystem that was varied.
        program: The same, compiled.
        paths: Settings that move.
        values: By path: its values.
        points: (P, len(paths)) the settings at each point.
        theta: (P, D) stable points; where there is none, the last iterate.
        results: Per point: ``converged``; ``unstable`` (a fixed point that retraining moves away from); ``budget``,
            ``diverged``, ``oscillating``, ``non-finite`` (none was found).
        residual: (P,) ‖T(Θ) − Θ‖ / (1 + ‖Θ‖).
        radius: (P,) growth of a small disturbance a round, in the spec's own update order; NaN where not worked out.
        alignment: (P, V) alignment of every evaluation; NaN where no stable point was found.
        influence: (P, V, N) dJ/dλ_i; NaN at points that did not converge and for models without curation to raise.
        isolated: (P, V) dJ/dλ of the evaluated model itself if all other models were frozen.
        verdicts: Per point and evaluation: what more curation of the model does to itself; None if not defined.
        seconds: Wall time.
    """

    eco: schema.Ecosystem
    program: Program
    paths: list[str]
    values: list[np.ndarray]
    points: np.ndarray
    theta: Tensor
    results: list[Result]
    residual: np.ndarray
    radius: np.ndarray
    alignment: np.ndarray
    influence: np.ndarray
    isolated: np.ndarray
    verdicts: list[list[str | None]]
    seconds: float

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each path has; ``sweep.alignment[:, v].reshape(sweep.shape)`` is a map."""
        return tuple(len(v) for v in self.values)

    def table(self) -> pyarrow.Table:
        """One row a point and evaluation: settings, alignment, influences, verdict, result."""
        from crossfeed.report.phase_map import sweep_table

        return sweep_table(self)

    def save(self, folder: str | Path) -> Path:
        """Write sweep.parquet, sweep.json and sweep.html, each whole or not at all.

        Raises:
            CrossfeedError: the folder cannot be written.
        """
        from crossfeed.report.phase_map import save

        return save(self, Path(folder))

    def chart(self, name: str) -> Any:
        """An ``altair`` chart: ``alignment``, ``influence``; for two paths ``verdict:MODEL``, ``alignment:MODEL``.

        Raises:
            NotAvailableError: no such chart, or nothing to draw; names those there are.
        """
        from crossfeed.report.phase_map import chart

        return chart(self, name)

    def summary(self) -> str:
        """What was found, in words."""
        from crossfeed.report.phase_map import summary

        return summary(self)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from crossfeed.report.phase_map import body

        return body(self)


def sweep(
    eco: schema.Ecosystem,
    vary: Mapping[str, Sequence[float]],
    progress: Progress | None = None,
    what: Sequence[str] | None = None,
) -> Sweep:
    """Stable points over a grid of settings.

    Args:
        eco: The ecosystem.
        vary: Settings (:mod:`crossfeed.describe.settings`) and the values of each; all combinations are worked out.
        progress: Called with (stage, points done, points in all).
        what: ``alignment`` alone, or ``influence`` too; by default both, up to 1,500 parameters.

    Raises:
        SettingError: no such setting, a value out of bounds, or settings that move one another.

    Example:
        >>> from crossfeed.describe.schema import *
        >>> sources = [Real(data="web", weight=1), Curated(producer="p", weight=0, candidates="inf")]
        >>> eco = Ecosystem(
        ...     space=Vectors(dim=1),
        ...     data={"web": MomentsData(mean=[0], cov=1)},
        ...     rewards={"r": LinearReward(vector=[1])},
        ...     models={"p": Model(family=GaussianMean(), reward="r", sources=sources)},
        ... )
        >>> found = sweep(eco, {"p.curation": [0.0, 0.5, 0.75]})
        >>> found.alignment[:, 0].round(6).tolist()  # θ = λ (θ + 1), so J = λ/(1 − λ)
        [0.0, 1.0, 3.0]
        >>> found.influence[:, 0, 0].round(6).tolist()  # and dJ/dλ = 1/(1 − λ)²
        [1.0, 4.0, 16.0]
    """
    from crossfeed.influence.grid import GridInfluence

    begun = time.perf_counter()
    names, values = _grid(eco, vary)
    wanted = _wanted(what)
    points = np.array(list(itertools.product(*values)), dtype=np.float64)
    placed = [_placed(eco, names, point) for point in points]
    program = compile_ecosystem(eco)
    touched = {name.split(".", 1)[0] for name in names}
    count = len(points)
    theta = torch.zeros(count, program.num_params, dtype=torch.float64)
    residual = torch.zeros(count, dtype=torch.float64)
    results: list[Result] = ["converged"] * count
    batches: dict[tuple[str, ...], list[int]] = {}
    for k, point in enumerate(points):
        batches.setdefault(_structure(names, point), []).append(k)
    alignment = np.full((count, len(program.evaluations)), np.nan)
    found = GridInfluence(program, count)
    done = 0
    for rows in batches.values():
        part = compile_ecosystem(placed[rows[0]])
        table = torch.stack([_settings_of(part, placed[k], touched) for k in rows])
        say = None if progress is None else _said(progress, "stable points", done, count)
        solved = solve_batch(part, table, program.start, progress=say)
        theta[rows], residual[rows] = solved.theta, solved.residual
        for k, result in zip(rows, solved.results, strict=True):
            results[k] = result
        settled = [j for j, result in enumerate(solved.results) if result == "converged"]
        small = program.num_params <= DENSE_LIMIT
        for group in torch.split(torch.tensor(settled, dtype=torch.long), points_at_once(part)):
            if not len(group):
                continue
            at = [rows[j] for j in group.tolist()]
            here = part.with_settings(table[group].contiguous())
            alignment[at] = here.alignment(solved.theta[group]).numpy()
            if small and "influence" in wanted:
                moves = [_directions(eco, names, points[k], placed[k], touched) for k in at]
                for k, stable in zip(at, found.derive(here, solved.theta[group], eco, moves, at), strict=True):
                    results[k] = "converged" if stable else "unstable"
            elif what is not None and "influence" in wanted:
                for k, j in zip(at, group.tolist(), strict=True):
                    found.derive_one(part.with_settings(table[j]), solved.theta[j], placed[k], k)
            if progress is not None:
                progress("influence", done + int(group[-1]) + 1, count)
        done += len(rows)
    return Sweep(
        eco,
        program,
        names,
        values,
        points,
        theta,
        results,
        residual.numpy(),
        found.radius,
        alignment,
        found.influence,
        found.isolated,
        found.verdicts,
        time.perf_counter() - begun,
    )


def _said(progress: Progress, stage: str, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(stage, before + done, total)


# --- the grid -------------------------------------------------------------------------------------------------------


def _grid(eco: schema.Ecosystem, vary: Mapping[str, Sequence[float]]) -> tuple[list[str], list[np.ndarray]]:
    if not vary:
        raise SettingError(
            "sweep: found nothing to vary; give settings and their values, e.g. {'p.curation': [0.1, 0.5]}"
        )
    out = []
    for path, given in vary.items():
        values = np.asarray(list(given), dtype=np.float64).reshape(-1)
        if not len(values):
            raise SettingError(f"{path}: found no values; need at least one")
        for value in values:  # each alone, so that a value out of bounds is reported as such
            paths.put(eco, path, float(value))
        out.append(values)
    return list(vary), out


def _wanted(what: Sequence[str] | None) -> tuple[str, ...]:
    wanted = QUANTITIES if what is None else (what,) if isinstance(what, str) else tuple(what)
    for one in wanted:
        if one not in QUANTITIES:
            raise SettingError(f"what: found {one!r}; need some of {', '.join(QUANTITIES)}")
    return wanted


def _placed(
    eco: schema.Ecosystem, names: Sequence[str], point: Sequence[float], check: bool = True
) -> schema.Ecosystem:
    """The ecosystem with every path at its value: shares inside the curated data first, they are lost where it is 0."""
    found = eco
    for k in sorted(range(len(names)), key=lambda k: not names[k].endswith(".cross_share")):
        found = paths.put(found, names[k], float(point[k]))
    if not check or len(names) < 2:
        return found
    for name, value in zip(names, point, strict=True):
        try:
            got = paths.get(found, name)
        except SettingError:  # a cross share of no curated data
            continue
        if got != value and abs(got - value) > 1e-9 * max(1.0, abs(value)):
            others = ", ".join(n for n in names if n != name)
            raise SettingError(
                f"{name}: found {value:g}, but {others} moves it to {got:g}, because a model's weights sum to 1; vary "
                "settings that do not move one another"
            )
    return found


def _structure(names: Sequence[str], point: Sequence[float]) -> tuple[str, ...]:
    """Which pick rules the point has: one candidate is no choice, infinitely many tilt."""
    ks = [v for n, v in zip(names, point, strict=True) if n.endswith(".candidates")]
    return tuple("raw" if k == 1 else "tilt" if math.isinf(k) else "picks" for k in ks)


def _settings_of(program: Program, eco: schema.Ecosystem, touched: set[str]) -> Tensor:
    """The settings vector of ``eco``, which differs from what was compiled in the touched models only."""
    values = program.settings.clone()
    for name in touched:
        model = eco.models[name]
        values[program.slots[f"{name}.ridge"]] = model.ridge
        for label, source in zip(schema.source_names(model), model.sources, strict=True):
            prefix = f"{name}.sources.{label}"
            values[program.slots[f"{prefix}.weight"]] = source.weight
            if not isinstance(source, (schema.Raw, schema.Curated)):
                continue
            values[program.slots[f"{prefix}.sampling_temperature"]] = source.sampling_temperature
            for depth, stage in enumerate(source.stages if isinstance(source, schema.Curated) else []):
                for key in ("candidates", "temperature", "noise", "other_share"):
                    values[program.slots[f"{prefix}.{'then.' * depth}{key}"]] = getattr(stage, key)
    return values


def _directions(
    eco: schema.Ecosystem, names: Sequence[str], point: Sequence[float], placed: schema.Ecosystem, touched: set[str]
) -> dict[str, Any]:
    """How the weights of each touched model move with its curation ratio; None where there is none to raise.

    At a ratio of exactly 0 or 1 the shares among the sources without weight are those just inside.
    """
    shares = [
        n.rsplit(".", 1)[-1] in ("curation", "weight") and v in (0.0, 1.0) for n, v in zip(names, point, strict=True)
    ]
    if any(shares):
        inside = [abs(v - NUDGE) if at else v for v, at in zip(point, shares, strict=True)]
        placed = _placed(eco, names, inside, check=False)
    from crossfeed.influence.grid import direction

    return {name: direction(placed, name) for name in touched}
