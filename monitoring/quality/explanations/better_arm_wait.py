"""The wait of a degraded version for an arm that is shown to be better, in plain words. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from monitoring.quality.detectors import estimates
from monitoring.quality.phrases import format_count, format_evidence, format_percent, format_span
from monitoring.quality.signals.arms import ALPHA
from monitoring.quality.verdicts.quality import (
    E_VALUE_MIN,
    E_VALUE_WITHOUT_ONE_MIN,
    ArmEvidence,
    ArmReport,
    Judgement,
    TaskQuality,
    VersionQuality,
)
from monitoring.quality.verdicts.shares import is_evidence_first

PAIRS_MIN = 5
"""With fewer pairs the report says nothing about the time left."""
POINTS = 0.1


def describe_wait(
    name: str, quality: VersionQuality, judged: Judgement | None, task_quality: TaskQuality, now: float
) -> Iterator[str]:
    """The evidence that traffic waits for, on each other arm, and the time left. `now` is in Unix seconds."""
    arms = [arm for arm in judged.arms if arm.arm != "version" and not arm.is_better] if judged is not None else []
    with_evidence = [(arm, arm.evidence) for arm in arms if arm.evidence is not None]
    waited = format_span(max(0.0, now - quality.since))
    if not with_evidence:
        yield f"Traffic of {name} waits for pairs with another arm: none has come since the verdict, {waited} ago."
    for arm, evidence in with_evidence:
        yield f"{_describe(name, arm, evidence)}; {_describe_time(evidence, now - quality.since)}."
    if is_evidence_first(task_quality, name):
        yield f"Evidence about the arms of {name} comes first: shadows may take places before callers."


def ask_for_labels(judged: Judgement | None) -> str:
    """The step that lets arms be compared: about how many right answers are needed, given the judge's agreement."""
    agreement = judged.judge_agreement if judged is not None else None
    labels = estimates.find_labels_to_compare(POINTS, agreement, ALPHA)
    judge = ""
    if agreement is not None:
        saved = format_percent(estimates.find_saved_share(agreement))
        judge = f" The judge agrees with people on {format_percent(agreement)} of answers, which saves {saved} of them."
    return (
        "Have people say what the right answers were (`demonstration`, in reviews or feedback), so that arms can be "
        f"compared: about {labels} labels show an arm that is {100 * POINTS:g} points better.{judge}"
    )


def _describe(name: str, arm: ArmReport, evidence: ArmEvidence) -> str:
    who = "general" if arm.version is None else arm.version
    pairs = format_count(evidence.pairs, "judged pair", "judged pairs")
    more = f" ({format_count(evidence.unjudged, 'more is', 'more are')} not judged)" if evidence.unjudged else ""
    return (
        f"Traffic of {name} moves to {who} at an e-value of {format_evidence(E_VALUE_MIN)}, and of "
        f"{format_evidence(E_VALUE_WITHOUT_ONE_MIN)} without any one caller; since the verdict {pairs}{more} "
        f"gave {format_evidence(evidence.e_value)} and {format_evidence(evidence.e_value_without_one)}"
    )


def _describe_time(evidence: ArmEvidence, waited_seconds: float) -> str:
    """The time left, if evidence keeps its rate of growth."""
    if evidence.unjudged > evidence.pairs:
        return "most pairs lack a judgement of both answers (`demonstration`, or a model as judge)"
    if evidence.pairs < PAIRS_MIN:
        return "with so few pairs nothing is known of the time that is left"
    grown = min(
        math.log(max(evidence.e_value, 1e-9)) / math.log(E_VALUE_MIN),
        math.log(max(evidence.e_value_without_one, 1e-9)) / math.log(E_VALUE_WITHOUT_ONE_MIN),
    )
    if grown <= 0.0:
        return "so far they do not speak for it"
    return f"at this rate that takes about {format_span(waited_seconds * max(0.0, 1.0 / grown - 1.0))} more"
