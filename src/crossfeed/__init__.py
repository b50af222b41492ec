"""Crossfeed: will more human curation of this model help it, do nothing, or backfire?

Generative models are retrained on each other's outputs and on what people picked from them. Describe such an ecosystem
(:class:`Ecosystem`, or a YAML spec with :func:`load`), then :func:`audit` it, :func:`run` it or :func:`sweep` it.

Example:
    >>> import crossfeed as cf
    >>> eco = cf.Ecosystem(
    ...     space=cf.Outcomes(labels=["warm", "cool"]),
    ...     data={"web": cf.DistributionData(weights=[1, 1])},
    ...     rewards={"people": cf.TableReward(values=[1, 0])},
    ...     models={"p": cf.Model(family=cf.Categorical(), reward="people", sources=[
    ...         cf.Real(data="web", weight=0.5),
    ...         cf.Curated(producer="p", weight=0.5, candidates=2)])})
    >>> audit = cf.audit(eco)
    >>> audit.data["influence"]["verdict"]
    [['helps']]

Names are imported when they are first used, so that ``import crossfeed`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfeed.describe.load import load as load
    from crossfeed.describe.schema import *  # noqa: F403
    from crossfeed.dynamics.compile import compile_ecosystem as compile_ecosystem
    from crossfeed.dynamics.linearise import linearise as linearise
    from crossfeed.dynamics.stable import solve as solve
    from crossfeed.dynamics.sweep import sweep as sweep
    from crossfeed.influence.threshold import threshold as threshold
    from crossfeed.report.audit import Audit as Audit
    from crossfeed.report.estimate_audit import EstimateAudit as EstimateAudit
    from crossfeed.verbs import audit as audit
    from crossfeed.verbs import run as run

__version__ = "0.1.0"

_SCHEMA = """Affine AuditOptions CallableReward Categorical CausalLM Change Curated Cycle Diffusion DistributionData
Ecosystem Evaluation Flow FreshLM Gaussian GaussianDomain GaussianMean GradientSteps HueBandReward Images ImagesData
LinearGaussian LinearReward LogLinear Lora MixtureData Model MomentsData Outcomes PairsData ParaphraseReward Pick
Picks PointsDomain PreferencesData Pretraining QuadraticReward RandomOrder Raw Real Regression RewardModel RowsData
RunOptions Samples Sequential Simultaneous Stop SummaryReward TableReward TeacherData Text TextsData ThresholdQuery
Training Update Vectors"""
_HOME = dict.fromkeys(_SCHEMA.split(), "crossfeed.describe.schema") | {
    "load": "crossfeed.describe.load",
    "compile_ecosystem": "crossfeed.dynamics.compile",
    "linearise": "crossfeed.dynamics.linearise",
    "solve": "crossfeed.dynamics.stable",
    "run": "crossfeed.verbs",
    "sweep": "crossfeed.dynamics.sweep",
    "threshold": "crossfeed.influence.threshold",
    "audit": "crossfeed.verbs",
    "EstimateAudit": "crossfeed.report.estimate_audit",
    "Audit": "crossfeed.report.audit",
    "CrossfeedError": "crossfeed.errors",
    "SpecError": "crossfeed.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crossfeed' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
