"""The audit of networks from end to end: samples within memory and time, what-ifs, results with their displays."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.report.output import save_result

if TYPE_CHECKING:
    from crossfeed.estimate.audit import NetworkAudit
    from crossfeed.estimate.free_audit import FreeAudit
    from crossfeed.estimate.network_draws import Size
    from crossfeed.estimate.points import Point
    from crossfeed.estimate.route import Route

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
MANY = 30


@dataclass(frozen=True)
class EstimateAudit:
    """An audit of networks.

    Attributes:
        data: What audit.json holds; see docs/estimate-format.md.
        found: Influence matrix, samples and models, for further questions; None where it was read from a file.
    """

    data: dict[str, Any]
    found: NetworkAudit | FreeAudit | None = None

    def save(self, path: str | Path) -> Path:
        """Write the report (.html) or the data (.json).

        Raises:
            DataError: when the path cannot be written or its suffix is unknown.
        """
        from crossfeed.report.estimate_html import html

        return save_result(path, self.json, lambda: html(self.data), errors="replace")

    def json(self) -> str:
        """audit.json's text."""
        indent = None if len(self.data["models"]) > MANY else 1
        return json.dumps(self.data, ensure_ascii=False, allow_nan=False, indent=indent) + "\n"

    def __str__(self) -> str:
        from crossfeed.report.estimate_terminal import plain

        return plain(self.data)

    def _repr_html_(self) -> str:
        import html as escape

        from crossfeed.report.estimate_html import html

        page = escape.escape(html(self.data), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:900px;border:0" title="Crossfeed audit"></iframe>'


def audit_networks_report(
    eco: Ecosystem,
    *,
    run: str | Path | None = None,
    round: int | None = None,
    rounds: int | None = None,
    samples: int | None = None,
    budget: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    what_if: Mapping[str, float] | None = None,
    outputs: Mapping[str, str | Path] | None = None,
    look_ahead: bool = True,
    projection: int | None = None,
    spill: Path | None = None,
    estimator: str = "auto",
    progress: Progress | None = None,
    tell: Tell | None = None,
    command: str = "",
    spec_file: str | None = None,
) -> EstimateAudit:
    """Estimate what more curation of every model does, from samples and gradients, without retraining.

    Args:
        eco: The ecosystem, all of networks.
        run: A run folder, to audit its models after a round; None: the models as they start.
        round: Of the run; None: its last finished one.
        rounds: How many rounds of retraining to look ahead; None: those that are left, or the spec's.
        samples: Outputs of every model at each place, and answers of every evaluation; None: 1,500 and 4,000, of language models 1,000,
            of models without a likelihood 360.
        budget: ``2000``: samples; ``10m`` or ``90s``: as many as fit into this time, from a timed pilot.
        seed: Of all draws; None: the spec's.
        device: auto, cpu, cuda, cuda:1 or mps.
        what_if: New values of settings by path, each answered by itself from the same samples.
        outputs: Files with outputs that models gave as they are now, by model (:mod:`crossfeed.estimate.recorded`).
        look_ahead: Take gradients along the course that the models are predicted to take; see docs/networks.md.
        projection: Keep gradients of models with more parameters in so many random coordinates, instead of their samples' span.
        spill: Folder for gradients that do not fit into memory; None: that of temporary files (``TMPDIR``).
        estimator: ``bank`` (gradients of every sample, which need a likelihood), ``matrix-free`` (passes over batches of samples) or
            ``auto``: the bank where every model has a likelihood.
        progress: Called with (stage, done, in all).
        tell: Called with sentences on memory and on how samples were chosen.
        command: How to reproduce it, for the report.
        spec_file: Name of the spec's file, for the report.

    Raises:
        SettingError: options that do not go together or do not fit into memory; settings that do not exist.
        NotAvailableError: models, rules or options that the estimator does not go with; before any model is trained.
    """
    from crossfeed.estimate.audit import audit_networks
    from crossfeed.estimate.changes import answer_changes, planned
    from crossfeed.estimate.data import data_of
    from crossfeed.estimate.estimator import curation_paths
    from crossfeed.estimate.points import open_point
    from crossfeed.estimate.route import choose_route

    seconds = _options(round, run, rounds, samples, budget)
    if not curation_paths(eco):
        raise NotAvailableError(
            "models: found no curation ratio that can be raised: a model needs a curated source and another one that gives way, "
            "e.g. a real source, whose weight may be 0; to see where the loop goes as it is, use `crossfeed run`"
        )
    route = choose_route(eco, estimator, outputs or {})
    if projection is not None and route.solver == "matrix-free":
        raise SettingError(f"--projection: found {projection}; the matrix-free solver keeps no gradients: leave it out")
    wanted = planned(eco, tuple((what_if or {}).items()))
    spent: dict[str, float] = {}
    begun = time.perf_counter()
    if progress is not None:
        progress("opening the models", 0, 1)
    point = open_point(eco, run, round, device, progress)
    if samples is None and budget is not None and seconds is None:
        samples = _whole(budget)
    spent["opening the models"], begun = time.perf_counter() - begun, time.perf_counter()
    size, chosen, memory = _chosen(
        point,
        route,
        samples,
        seconds,
        rounds or point.rounds_left,
        seed,
        look_ahead and not outputs,
        projection,
        spill,
        progress,
        tell,
    )
    if seconds is not None:
        spent["timing a few samples"] = time.perf_counter() - begun
    found = audit_networks(
        eco,
        run=run,
        round=round,
        rounds=rounds,
        size=size,
        seed=seed,
        device=device,
        look_ahead=look_ahead,
        projection=projection,
        spill=spill,
        memory=memory,
        point=point,
        outputs=outputs,
        estimator=route.solver,
        progress=progress,
    )
    if wanted and progress is not None:
        progress("what-ifs", 0, 1)
    begun = time.perf_counter()
    changes = answer_changes(found, wanted)
    later = {"what-ifs": time.perf_counter() - begun} if wanted else {}
    data = data_of(found, command, spec_file, changes, chosen)
    data["seconds"] = {stage: builtins.round(value, 3) for stage, value in {**spent, **found.seconds, **later}.items()}
    return EstimateAudit(data, found)


def _options(
    round: int | None, run: str | Path | None, rounds: int | None, samples: int | None, budget: str | None
) -> float | None:
    """Seconds of the budget, where it is one of time; or what is wrong."""
    if round is not None and run is None:
        raise SettingError(f"--round: found {round} without a run; give the folder of a run instead of a spec")
    if rounds is not None and rounds < 1:
        raise SettingError(f"--rounds: found {rounds}; need at least 1")
    if samples is not None and budget is not None:
        raise SettingError("--samples, --budget: found both; give one of them")
    if samples is not None and samples < 2:
        raise SettingError(f"--samples: found {samples}; need at least 2")
    return None if budget is None else budget_seconds(budget)


def budget_seconds(text: str) -> float | None:
    """``10m``, ``90s`` or ``1.5h`` as seconds; None for a number of samples.

    Raises:
        SettingError: neither.

    Example:
        >>> budget_seconds("10m"), budget_seconds("90s"), budget_seconds("2000")
        (600.0, 90.0, None)
    """
    plain = text.strip().lower()
    if plain.isdecimal() and int(plain) >= 2:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(plain[-1:])
    try:
        value = float(plain[:-1]) if unit else 0.0
    except ValueError:
        value = 0.0
    if unit is None or not 0 < value < 1e6:
        raise SettingError(
            f"--budget: found {text!r}; need a number of samples, 2 or more, or a time such as 10m or 90s"
        )
    return value * unit


def _whole(text: str) -> int:
    return int(text.strip())


def _chosen(
    point: Point,
    route: Route,
    samples: int | None,
    seconds: float | None,
    rounds: int,
    seed: int | None,
    look_ahead: bool,
    projection: int | None,
    spill: Path | None,
    progress: Progress | None,
    tell: Tell | None,
) -> tuple[Size, str | None, int | None]:
    """How many samples, why where they were chosen from a time, and the memory for what could be in files; memory is looked at first."""
    from crossfeed.estimate.audit import default_size
    from crossfeed.estimate.budget import BankBudget, affordable, free_memory, gib, sized
    from crossfeed.estimate.free_budget import FreeBudget
    from crossfeed.estimate.walk import places_of

    places = len(places_of(point, rounds, look_ahead)) if route.solver == "bank" else 1
    size, say, chosen = default_size(point, route, places), tell or (lambda text: None), None
    seed = point.world.eco.seed if seed is None else seed
    budget: BankBudget | FreeBudget = BankBudget(point, rounds, look_ahead, seed, projection, spill)
    if route.solver == "matrix-free":
        budget = FreeBudget.of(point, rounds, look_ahead, seed)
    if samples is not None:
        size = sized(samples, size)
    if seconds is not None:
        pace, free = budget.pace(size, seconds, progress), free_memory()
        fits = None if free is None else budget.fits(size, free)
        number = affordable(pace.seconds, max(0.0, seconds - pace.spent))
        why = f"about {pace.seconds(number):.0f} s at the pace of {pace.outputs} outputs that were timed"
        if fits and number > fits:
            number, why = fits, f"more would not fit into the {gib(free or 0)} of memory that are free"
        elif pace.seconds(number) + pace.spent > seconds:
            why = f"the fewest that make sense; they take {why}"
        size = sized(number, size)
        chosen = f"{number:,} outputs for a budget of {seconds:g} s: {why}"
        say(f"samples: {chosen}")
    words, memory = budget.check(size)
    say(words)
    return size, chosen, memory
