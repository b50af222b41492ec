"""What must hold for an estimate to mean anything, looked at on the samples themselves; a check that fails says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import chi2
from torch import Tensor

from crossfeed.estimate.bank import Bank, SourceRows
from crossfeed.estimate.draws import EvaluationDraw, SourceDraw
from crossfeed.estimate.estimator import most_expansion
from crossfeed.estimate.influence import Answer
from crossfeed.estimate.legs import Leg
from crossfeed.estimate.lookahead import Course
from crossfeed.estimate.system import group_weights

FALSE_ALARM = 1e-4
FEW = 30

CUT = 0.2
"""Share of a step that clipping must leave: at .02 and .09 of them a sign that was told proved wrong (docs/findings.md)."""

Result = Literal["passed", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What is checked, in a few words.
        result: ``passed``, ``warning`` (read the words before relying on the numbers) or ``failed`` (do not).
        words: What was found and, where it did not pass, what to do.
    """

    name: str
    result: Result
    words: str


def all_checks(legs: Sequence[Leg], answers: Sequence[Answer], course: Course | None, errors: Tensor) -> list[Check]:
    """Every check, in the order of the report.

    Args:
        legs: Gradients by part of the horizon.
        answers: Point estimates by leg.
        course: Where the loop goes without any change; None: not known.
        errors: (E, C) standard errors.
    """
    bank = legs[-1].bank
    # build_bank refuses others
    found = [Check("gradients", "passed", "Every model's gradients are finite and not all zero.")]
    found += [scores(legs[0].bank), samples(bank), rewards(bank), consistency(answers)]
    if legs[0].horizon.rounds is not None:
        both = list(zip(legs, answers, strict=True))
        found.append(stability(both))
        found.append(of_expansion(*_expanding(both)))
        found.append(ridge(sum((ridge_effect(leg, answer) for leg, answer in both), torch.zeros(())), errors))
        found.append(clipping(legs))
    if course is not None:
        found.append(settled(bank, course))
    return found


def score_test(score: Tensor, clusters: Tensor) -> tuple[float, float]:
    """E[∇log q] = 0 on a model's own samples: (T, P(T as large by chance)).

    T = C‖mean‖²/mean‖·‖² over C cluster sums, compared with a χ² of ν = tr²/tr(Σ²) degrees of freedom (Satterthwaite).

    Args:
        score: (m, r) per-sample scores.
        clusters: (m,) samples with the same number hang together.
    """
    _, index = clusters.unique(return_inverse=True)
    num = int(index.max()) + 1
    sums = torch.zeros(num, score.shape[1], dtype=torch.float64).index_add(0, index, score.double())
    mean = sums.mean(0)
    total = float(sums.square().sum()) / num
    if total == 0 or num < 2:
        return 0.0, 1.0
    gram = sums @ sums.T if sums.shape[0] < sums.shape[1] else sums.T @ sums
    spread = float((gram / num).square().sum())
    dof = total**2 / spread
    t = num * float(mean.square().sum()) / total
    return t, float(chi2.sf(t * dof, dof))


def scores(bank: Bank) -> Check:
    """Sampler and likelihood agree: the mean score of what a model sampled is zero within its error.

    Scores have mean zero whatever the prompt, and answers to one prompt are drawn independently: each output counts by itself.
    """
    worst: tuple[float, str] = (1.0, "")
    tests, seen = 0, set[int]()
    for rows in bank.sources:
        if rows.score is None or rows.producer is None or rows.score.data_ptr() in seen:
            continue
        seen.add(rows.score.data_ptr())
        _, chance = score_test(rows.score, torch.arange(len(rows.score)))
        tests += 1
        if chance < worst[0]:
            worst = (chance, bank.models[rows.producer].name)
    if not tests:
        return Check("scores", "passed", "No model's samples train a model.")
    if worst[0] * tests < FALSE_ALARM:
        return Check(
            "scores",
            "failed",
            f"The mean score of what {worst[1]} sampled is not zero (p = {worst[0]:.1g}): its samples do not come from the likelihood "
            "that is differentiated. Look at the sampling temperature, nucleus, dropout, and whether the files were made by this "
            "checkpoint.",
        )
    return Check(
        "scores",
        "passed",
        f"Mean scores of samples are zero within their error (smallest of {tests} p-values {worst[0]:.2g}): samplers and "
        "likelihoods agree.",
    )


def effective(rows: SourceRows) -> float:
    """Kish's effective number of clusters of a source; without inputs, groups were only put together for shuffling and count each."""
    draw = rows.draw
    apart = draw.interchangeable and isinstance(draw.outputs, Tensor) and len(draw.prompts.unique()) == 1
    return float(len(draw.clusters)) if apart else kish(draw.clusters)


def kish(clusters: Tensor) -> float:
    """Kish's effective number of clusters (n,): 1/Σ (share of each cluster)².

    Example:
        >>> kish(torch.tensor([0, 0, 1, 1]))
        2.0
    """
    p = group_weights(clusters, None)
    _, index = clusters.unique(return_inverse=True)
    share = torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add(0, index, p)
    return float(1 / share.square().sum())


def samples(bank: Bank) -> Check:
    """There are enough different prompts, and not the same ones under different numbers."""
    return of_samples(
        [(f"{r.draw.consumer}.{r.draw.name}", effective(r), len(r.draw.prompts.unique())) for r in bank.sources]
    )


def of_samples(sources: Sequence[tuple[str, float, int]]) -> Check:
    """The same from each source's name, effective number of groups and number of different prompts."""
    thin, repeated = [], []
    for name, groups, asked in sources:
        if groups < FEW:
            thin.append(f"{name} ({groups:.0f})")
        elif asked > 1 and groups < asked / 2:
            repeated.append(f"{name} ({groups:.0f} of {asked:,})")
    if thin:
        words = f"Fewer than {FEW} different prompts or groups: {', '.join(thin[:6])}; intervals are rough. Use more prompts or samples."
        return Check("samples", "warning", words)
    if repeated:
        words = f"Prompts repeat, so fewer count: {', '.join(repeated[:6])}. Intervals take it into account; more prompts would help."
        return Check("samples", "warning", words)
    return Check("samples", "passed", "Every source has enough different prompts or groups.")


def rewards(bank: Bank) -> Check:
    """Rewards tell outputs apart."""
    return of_rewards([rows.draw for rows in bank.sources], [judged.draw for judged in bank.evaluations])


def of_rewards(sources: Sequence[SourceDraw], evaluations: Sequence[EvaluationDraw]) -> Check:
    """The same from the samples."""
    flat = []
    for draw in sources:
        for name, values in draw.rewards.items():
            if values.numel() and bool((values.amax(1) == values.amin(1)).all()):
                flat.append(f"{name} on candidates of {draw.consumer}.{draw.name}")
    for judged in evaluations:
        if float(judged.rewards.amax()) == float(judged.rewards.amin()):
            flat.append(f"the reward of evaluation {judged.model}.{judged.name}")
    if flat:
        words = (
            f"Constant: {', '.join(flat[:6])}. Picks by it are random and alignment cannot move; look at the reward."
        )
        return Check("rewards", "warning", words)
    return Check("rewards", "passed", "Every reward is finite and tells candidates apart.")


def consistency(answers: Sequence[Answer]) -> Check:
    """The matrix from the forward solve equals that from the adjoint: two ways through all blocks."""
    answer = answers[-1]
    backward = sum(
        (u.T @ v for part in answers for u, v in zip(part.weight, part.pushes, strict=True)),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    for part in answers:
        if part.asked is not None:
            backward = backward + part.asked
    size = float(answer.matrix.abs().max().clamp_min(1e-300))
    gap = float((backward - answer.matrix).abs().max()) / size
    if not gap < 1e-6:
        words = f"Forward and adjoint solve differ by {gap:.1g} of the largest entry; a larger ridge or float64 may mend it."
        return Check("solver", "failed", words)
    return Check("solver", "passed", f"Forward and adjoint solve agree to {gap:.1g} of the largest entry.")


def stability(legs: Sequence[tuple[Leg, Answer]]) -> Check:
    """Steps are short enough for a quadratic, in every leg; for plain ones ηλ ≤ 2 (Adam's λ in its own units)."""
    beyond: dict[str, float] = {}
    for leg, answer in legs:
        for i, model in enumerate(leg.bank.models):
            steps, values = leg.horizon.steps[i], answer.system.spectrum(i)
            if bool(steps.beyond(values, leg.first).any()):
                beyond[model.name] = max(beyond.get(model.name, 0.0), steps.largest_rate * float(values[-1]))
    return of_stability([f"{name} (ηλ = {size:.2g})" for name, size in beyond.items()])


def of_stability(beyond: Sequence[str]) -> Check:
    """The same from the models that are beyond the edge, with how far."""
    if beyond:
        return Check(
            "step size",
            "warning",
            f"Beyond the edge of stability along the steepest directions: {', '.join(beyond)}. These count as trained to the end; "
            "alignments that hang on them are less sure. A smaller learning rate would help training too.",
        )
    return Check("step size", "passed", "Learning rates are below the edge of stability everywhere.")


def _expanding(legs: Sequence[tuple[Leg, Answer]]) -> tuple[float, float, float]:
    """Of all legs, the largest expansion, how much there may be, and the largest share of the empirical Fisher matrix."""
    share = max(answer.system.fisher for _, answer in legs)
    reach = max(leg.stop - leg.first for leg, _ in legs)
    return max(answer.system.expansion for _, answer in legs), most_expansion(reach), share


def of_expansion(factor: float, most: float, share: float) -> Check:
    """The linearised loop does not explode: a round multiplies no change by much more than what is allowed.

    Args:
        factor: By how much it does.
        most: By how much it may (:func:`crossfeed.estimate.estimator.most_expansion`).
        share: Of the empirical Fisher matrix.
    """
    mixed = (
        f" {100 * share:.0f} % of the empirical Fisher matrix were mixed into the curvature for it." if share else ""
    )
    if factor > most + 0.05:
        return Check(
            "expansion",
            "warning",
            f"A round of the linearised loop multiplies some change by {factor:.2g}: either the loop runs away, or there are too few "
            f"samples.{mixed} Sizes are rough; use more samples, or a shorter horizon.",
        )
    if share:
        return Check(
            "expansion",
            "warning",
            f"A round of the linearised loop multiplies no change by more than {factor:.3g}, but only with {100 * share:.0f} % of the "
            "empirical Fisher matrix mixed into the curvature, which is too stiff. Effects are likely larger than they seem, and signs "
            "less sure; use more samples, or a shorter horizon.",
        )
    return Check(
        "expansion", "passed", f"A round of the linearised loop multiplies no change by more than {factor:.3g}."
    )


def ridge_effect(leg: Leg, answer: Answer) -> Tensor:
    """(E, C) what doubling every ridge μ_i changes, to first order: −Σ μ_i ⟨c, x⟩ over updates; what it does to Q is left out."""
    assert answer.path is not None
    assert answer.adjoint is not None
    change = torch.zeros_like(answer.matrix)
    for (_, i), before, c in zip(answer.path.updates, answer.path.before, answer.adjoint.answer, strict=True):
        change -= leg.horizon.ridge[i] * (c.T @ before[i])
    return change


def ridge(effect: Tensor, errors: Tensor) -> Check:
    """The ridge, a share of the curvature's mean eigenvalue, decides nothing: doubling it moves every entry by less than its error."""
    moved = effect.abs()
    ratio = float((moved / errors.clamp_min(1e-300))[errors > 0].max()) if bool((errors > 0).any()) else 0.0
    words = f"Doubling the ridge on the curvature moves no entry by more than {ratio:.2g} of its standard error."
    if ratio > 1:
        words = (
            f"Doubling the ridge on the curvature moves an entry by {ratio:.2g} of its standard error: curvature is too flat where it "
            "counts; use more samples."
        )
        return Check("ridge", "warning", words)
    return Check("ridge", "passed", words)


def clipping(legs: Sequence[Leg]) -> Check:
    """Gradient clipping shortens steps by little."""
    cut: dict[str, float] = {}
    for leg in legs:
        for model, steps in zip(leg.bank.models, leg.horizon.steps, strict=True):
            cut[model.name] = min(cut.get(model.name, 1.0), steps.shorten)
    return of_clipping(cut)


def of_clipping(factors: Mapping[str, float]) -> Check:
    """The same from how much the steps of each model are shortened."""
    cut = {name: factor for name, factor in factors.items() if factor < 0.5}
    if cut:
        shown = ", ".join(f"{name} (× {factor:.2g})" for name, factor in cut.items())
        words = (
            f"Clipping shortens most steps: {shown}; it is treated as a constant factor, which is rough when it varies."
        )
        if min(cut.values()) >= CUT:
            return Check("clipping", "warning", words)
        more = "Do not trust sizes and signs: train the models further first, or raise `gradient_clip`."
        return Check("clipping", "failed", f"{words} {more}")
    return Check("clipping", "passed", "Gradient clipping is off or rarely acts.")


def way(held: Mapping[str, float]) -> Check:
    """No model was held back on its predicted way.

    Args:
        held: By model, the smallest share of a way that it was let go (:func:`crossfeed.estimate.lookahead.held_back`).
    """
    back = [f"{name} ({100 * share:.0f} %)" for name, share in held.items() if share < 1]
    if back:
        return Check(
            "course",
            "warning",
            f"The predicted course led out of the valley of the loss, and models were held back on it: {', '.join(back)} of a way gone. "
            "Where the loop goes is less sure for them; use more samples, or a shorter horizon.",
        )
    return Check("course", "passed", "Along the predicted course losses rise and fall as their curvature says.")


def settled(bank: Bank, course: Course) -> Check:
    """The models are near a stable point: what is predicted to move without any change is small beside what curation moves."""
    return of_course([judged.draw for judged in bank.evaluations], course.alignment[-1])


def of_course(evaluations: Sequence[EvaluationDraw], drift: Tensor) -> Check:
    """The same from the answers and how much every alignment (E,) is predicted to move."""
    moving: list[str] = []
    for e, judged in enumerate(evaluations):
        spread = float(judged.rewards.std())
        if float(drift[e].abs()) > 0.25 * spread:
            moving.append(f"{judged.model} on {judged.name} ({float(drift[e]):+.2g})")
    if moving:
        return Check(
            "stable point",
            "warning",
            f"Far from a stable point: without any change alignment is predicted to move by more than a quarter of its spread: "
            f"{', '.join(moving[:6])}. Gradients are taken where the models are predicted to be; signs of small influences "
            "and sizes of large ones are less sure. Audit again after some rounds.",
        )
    return Check("stable point", "passed", "Near a stable point: without any change, alignment is predicted to stay.")


def worst(checks: Sequence[Check]) -> Result:
    """The worst result of all."""
    order: list[Result] = ["passed", "warning", "failed"]
    return max((check.result for check in checks), key=order.index, default="passed")
