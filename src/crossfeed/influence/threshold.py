"""At which value of a setting does a verdict flip? Root-finding on the exact derivative, the stable point re-solved at each value."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from crossfeed.describe import schema, settings
from crossfeed.dynamics.compile import compile_ecosystem
from crossfeed.dynamics.program import Program
from crossfeed.dynamics.stable import newton, solve
from crossfeed.errors import CrossfeedError, NotStableError, SettingError
from crossfeed.influence.matrix import Influence, influence, setting_response


@dataclass(frozen=True)
class Threshold:
    """Where influences change sign while one setting moves.

    Attributes:
        path: The setting.
        values: (G,) grid.
        influence: (G, N, N) influence matrices; NaN where there is no stable point or nothing to raise.
        alignment: (G, N) alignments at the stable points.
        roots: (affected, intervened) to the values where the influence crosses zero.
        notes: Why grid points are missing, by value.
    """

    path: str
    values: np.ndarray
    influence: np.ndarray
    alignment: np.ndarray
    roots: dict[tuple[int, int], list[float]]
    notes: dict[float, str]


class Mover:
    """An ecosystem with one setting moved: compiled once where the structure stays, stable points continued from the last one."""

    def __init__(
        self, eco: schema.Ecosystem, program: Program | None = None, theta: torch.Tensor | None = None
    ) -> None:
        self.eco = eco
        self.program = program or compile_ecosystem(eco)
        self.theta = self.program.start if theta is None else theta
        self.last: tuple[schema.Ecosystem, Influence] | None = None

    def at(self, changes: dict[str, float]) -> tuple[schema.Ecosystem, Influence]:
        """The ecosystem with settings put to values, and its influence at the stable point.

        Raises:
            SettingError, NotStableError: as the settings and the solver say.
        """
        eco, program = self.moved(changes)
        point = newton(program, self._ahead(changes), max_steps=6)
        if point.result != "converged":
            point = solve(program, self.theta)
        if point.result != "converged":
            point = solve(program)
        theta = point.require()
        found = influence(eco, program, theta)
        self.theta, self.last = theta, (eco, found)
        return eco, found

    def _ahead(self, changes: dict[str, float]) -> torch.Tensor:
        """Where the stable point will be to first order, when one setting moves on from the last value."""
        if self.last is None or len(changes) != 1 or self.last[1].theta is not self.theta:
            return self.theta
        (path, value), (eco, found) = next(iter(changes.items())), self.last
        try:
            ahead = self.theta + setting_response(eco, found, path) * (value - settings.get(eco, path))
        except SettingError:
            return self.theta
        return ahead if bool(torch.isfinite(ahead).all()) else self.theta

    def moved(self, changes: dict[str, float]) -> tuple[schema.Ecosystem, Program]:
        """The ecosystem and its program with settings put to values."""
        eco = self.eco
        for path, value in changes.items():
            eco = settings.put(eco, path, value)
        return eco, with_settings_of(self.program, self.eco, eco)


def with_settings_of(program: Program, old: schema.Ecosystem, new: schema.Ecosystem) -> Program:
    """``program`` of ``old`` with the settings of ``new``; compiled anew where a pick rule changes or needs more nodes."""
    values = program.settings.clone()
    for (name, before), after in zip(old.models.items(), new.models.values(), strict=True):
        if before is after:
            continue
        values[program.slots[f"{name}.ridge"]] = after.ridge
        for source_name, s, t in zip(schema.source_names(before), before.sources, after.sources, strict=True):
            prefix = f"{name}.sources.{source_name}"
            values[program.slots[f"{prefix}.weight"]] = t.weight
            if not isinstance(t, (schema.Raw, schema.Curated)):
                continue
            values[program.slots[f"{prefix}.sampling_temperature"]] = t.sampling_temperature
            if isinstance(t, schema.Curated) and isinstance(s, schema.Curated):
                for depth, (a, b) in enumerate(zip(s.stages, t.stages, strict=True)):
                    if a.candidates != b.candidates or a.temperature > b.temperature:
                        return compile_ecosystem(new)
                    for key in ("candidates", "temperature", "noise", "other_share"):
                        values[program.slots[f"{prefix}.{'then.' * depth}{key}"]] = getattr(b, key)
    return program.with_settings(values)


def threshold(
    eco: schema.Ecosystem,
    path: str,
    low: float,
    high: float,
    pairs: list[tuple[int, int]] | None = None,
    grid: int = 25,
    mover: Mover | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Threshold:
    """Values of a setting at which influences change sign.

    The influence is evaluated exactly on a grid (stable points followed from today's value) and every sign change is refined by
    Brent's method to 1e-8 of the range. An influence that only touches zero, at an end of the range say, does not flip. Two roots
    between neighbouring grid points are not seen: refine the grid where that matters.

    Args:
        eco: The ecosystem.
        path: A settings path, e.g. ``p.cross_share``, ``p.curation``, ``p.sources.own.candidates``.
        low: Lower end; for weights and shares exclude ends where the move is undefined.
        high: Upper end.
        pairs: (affected, intervened) pairs to find roots for; all by default.
        grid: Number of grid values, ends included.
        mover: To re-use a compiled ecosystem.
        progress: Called with (done, total).
    """
    mover = mover or Mover(eco)
    n = len(eco.models)
    values = np.linspace(low, high, grid)
    found = np.full((grid, n, n), np.nan)
    alignment = np.full((grid, n), np.nan)
    notes: dict[float, str] = {}
    thetas: dict[int, torch.Tensor] = {}
    # from the present value outwards, so that the stable point is followed and not jumped to
    here = int(np.abs(values - settings.get(eco, path)).argmin())
    begin = mover.theta, mover.last
    for done, g in enumerate([*range(here, grid), *range(here - 1, -1, -1)]):
        value = values[g]
        if g == here - 1:
            mover.theta, mover.last = begin
        try:
            _, at = mover.at({path: float(value)})
        except (NotStableError, SettingError) as error:
            notes[float(value)] = str(error)
        else:
            found[g] = at.matrix.numpy()
            alignment[g] = at.program.alignment(at.theta)[at.program.primary].numpy()
            thetas[g] = at.theta
        if progress:
            progress(done + 1, grid)
    roots: dict[tuple[int, int], list[float]] = {}
    for k, i in pairs or [(k, i) for k in range(n) for i in range(n)]:
        roots[k, i] = []
        series = found[:, k, i]
        scale = np.nanmax(np.abs(series)) if np.isfinite(series).any() else 0.0
        solid = [g for g in range(grid) if np.isfinite(series[g]) and abs(series[g]) > 1e-9 * scale]
        for g, h in itertools.pairwise(solid):
            if series[g] * series[h] < 0:
                mover.theta = thetas[g]
                root = _root(mover, path, (k, i), float(values[g]), float(values[h]), 1e-8 * abs(high - low))
                if root is not None:
                    roots[k, i].append(root)
    return Threshold(path, values, found, alignment, roots, notes)


def _root(mover: Mover, path: str, pair: tuple[int, int], a: float, b: float, tolerance: float) -> float | None:
    try:
        return float(
            brentq(lambda x: float(mover.at({path: float(x)})[1].matrix[pair]), a, b, xtol=max(tolerance, 1e-14))
        )
    except (CrossfeedError, ValueError):
        return None
