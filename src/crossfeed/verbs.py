"""Verbs that serve closed forms and networks alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import SettingError

if TYPE_CHECKING:
    from crossfeed.dynamics.run import Run
    from crossfeed.report.audit import Audit
    from crossfeed.report.estimate_audit import EstimateAudit
    from crossfeed.retraining.run import NetworkRun


def run(
    eco: Ecosystem, rounds: int | None = None, *, out: str | Path | None = None, **options: Any
) -> Run | NetworkRun:
    """Run the retraining loop: :func:`crossfeed.dynamics.run.run` or :func:`crossfeed.retraining.run.run_networks`.

    Args:
        eco: The ecosystem. Models in closed form are run on populations or samples; networks are trained for real.
        rounds: The last round; the spec's by default.
        out: Networks: the folder of the run; None keeps it in memory and writes nothing. Closed forms: also saved there.
        options: Of the function that fits. Closed forms: samples, seeds, regime, progress, history, resume. Networks:
            resume, device, dtype, regime, progress, track.

    Returns:
        What happened, round by round, with ``summary()``.

    Raises:
        SettingError: an option that does not go with these models.

    Example:
        >>> from crossfeed.describe.schema import Categorical, Curated, Model, Outcomes, TableReward
        >>> model = Model(family=Categorical(), reward="r", sources=[Curated(producer="p", weight=1)], start=[0.0])
        >>> eco = Ecosystem(space=Outcomes(count=2), rewards={"r": TableReward(values=[0, 1])}, models={"p": model})
        >>> run(eco, rounds=2).rounds.tolist()
        [0, 1, 2]
    """
    try:
        if eco.networks:
            from crossfeed.retraining.run import run_networks

            return run_networks(eco, None if out is None else Path(out), rounds=rounds, **options)
        from crossfeed.dynamics.run import run as run_loop

        result = run_loop(eco, rounds, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        kind = "networks" if eco.networks else "models in closed form"
        raise SettingError(
            f"run: {str(error).split('() ')[-1]} with {kind}; help(crossfeed.run) lists what goes"
        ) from None
    if out is not None:
        result.save(out)
    return result


def audit(
    eco: Ecosystem,
    progress: Callable[[str, int, int], None] | None = None,
    command: str = "",
    spec_file: str | None = None,
    **options: Any,
) -> Audit | EstimateAudit:
    """Say what more curation does: :func:`crossfeed.report.audit.audit`, or for networks an estimate without retraining.

    Args:
        eco: The ecosystem. Models in closed form are solved; networks are estimated from samples and gradients
            (:func:`crossfeed.report.estimate_audit.audit_networks_report`).
        progress: Called with (stage, done, in all).
        command: How to reproduce it, for the report.
        spec_file: Name of the spec's file, for the report.
        options: Networks: run, round, rounds, samples, budget, seed, device, what_if,
            outputs, look_ahead, projection, spill, estimator, tell. Closed forms: none.

    Returns:
        The audit, with ``data`` and ``save(path)``; printed it is a summary, and in a notebook the report.

    Raises:
        SettingError: an option that does not go with these models.

    Example:
        >>> from crossfeed.describe.schema import Categorical, Curated, DistributionData, Model, Outcomes, Real, TableReward
        >>> sources = [Real(data="web", weight=0.5), Curated(producer="p", weight=0.5)]
        >>> eco = Ecosystem(
        ...     space=Outcomes(count=2),
        ...     data={"web": DistributionData(weights=[1, 1])},
        ...     rewards={"r": TableReward(values=[0, 1])},
        ...     models={"p": Model(family=Categorical(), reward="r", sources=sources)},
        ... )
        >>> audit(eco).data["influence"]["verdict"]
        [['helps']]
    """
    shared: dict[str, Any] = {"progress": progress, "command": command, "spec_file": spec_file}
    if eco.networks:
        from crossfeed.report.estimate_audit import audit_networks_report

        try:
            return audit_networks_report(eco, **shared, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise SettingError(
                f"audit: {str(error).split('() ')[-1]} with networks; help(crossfeed.audit) lists what goes"
            ) from None
    if options:
        raise SettingError(
            f"audit: found {', '.join(options)} with models in closed form, which are solved exactly; leave it out"
        )
    from crossfeed.report.audit import audit as solved

    return solved(eco, **shared)
