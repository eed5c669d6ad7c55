"""The rungs before an answer: what each says of a request, in order, and which one sends it away. Pure.

The order is DESIGN.md's: `degraded`, `out_of_scope`, `holdout`, `predicted_gain`. Coverage comes before the predicted
gain, which knows nothing of topics that nobody labelled; the holdout between them is drawn of all that is in scope.
"""

from __future__ import annotations

from typing import NamedTuple

from router.decision import Moment
from router.placing import arm_point
from router.policy import Alias, Policy, TaskPolicy
from router.rungs import AFTER_THE_ANSWER, RUNGS, Finding, Rung, RungName
from router.scoring import Scores
from serving.view import VersionView


class Climbed(NamedTuple):
    """What the rungs found. `sent_away` is the first enforced one that fired; `probability` that of the arm which the
    request fell to, as far as it was drawn for here."""

    findings: tuple[Finding, ...]
    sent_away: RungName | None
    probability: float


BEFORE_THE_ANSWER: tuple[RungName, ...] = tuple(name for name in RUNGS if name not in AFTER_THE_ANSWER)
NOTHING_FOUND = Climbed((), None, 1.0)


def climb(
    task: TaskPolicy,
    alias: Alias,
    version: VersionView,
    scores: Scores,
    policy: Policy,
    moment: Moment,
    session: str | None,
) -> Climbed:
    """Hold a request for `version` against the task's rungs, up to the first that sends it away."""
    if not task.rungs:
        return NOTHING_FOUND
    findings: list[Finding] = []
    stays = 1.0
    for name in BEFORE_THE_ANSWER:
        rung = task.rungs.get(name)
        if rung is None:
            continue
        enforced = rung.mode == "enforce"
        if name == "degraded":
            finding = _degraded(rung, version, policy, moment, session, alias.salt)
            share = 1.0 - rung.share if version.name in policy.degraded else 0.0
        elif name == "out_of_scope":
            finding, share = _out_of_scope(rung, version, scores, policy), 0.0
        elif name == "holdout":
            place = arm_point(session, alias.salt, moment.draw, "holdout")
            finding, share = Finding("holdout", rung.mode, place < rung.share, None, rung.share), rung.share
        else:
            finding, share = _predicted_gain(rung, version, scores, policy), 0.0
        findings.append(finding)
        if finding.fired and enforced:
            return Climbed(tuple(findings), name, stays * (share or 1.0))
        if enforced:
            stays *= 1.0 - share
    return Climbed(tuple(findings), None, stays)


def _degraded(
    rung: Rung, version: VersionView, policy: Policy, moment: Moment, session: str | None, salt: str
) -> Finding:
    if version.name not in policy.degraded:
        return Finding("degraded", rung.mode, fired=False)
    explored = arm_point(session, salt, moment.draw, "explored") < rung.share
    note = "kept by the exploration share" if explored else ""
    return Finding("degraded", rung.mode, not explored, None, rung.share, note=note)


def _out_of_scope(rung: Rung, version: VersionView, scores: Scores, policy: Policy) -> Finding:
    fitted = policy.fitted.get(version.name)
    found = scores.coverage if scores.version == version.name else None
    if fitted is None or fitted.coverage is None or found is None:
        return Finding("out_of_scope", rung.mode, fired=False, note="no coverage model")
    threshold = fitted.coverage.threshold(rung.share)
    near = tuple(neighbour.id for neighbour in found.neighbours)
    return Finding("out_of_scope", rung.mode, found.score < threshold, found.score, threshold, near)


def _predicted_gain(rung: Rung, version: VersionView, scores: Scores, policy: Policy) -> Finding:
    fitted = policy.fitted.get(version.name)
    gain = scores.gain if scores.version == version.name else None
    if fitted is None or fitted.gain is None or gain is None:
        return Finding("predicted_gain", rung.mode, fired=False, note="no model of the gain")
    if not fitted.gain.shown_to_help:
        return Finding("predicted_gain", rung.mode, False, gain, note="not shown to help")
    threshold = max(0.0, fitted.gain.threshold(rung.share))
    return Finding("predicted_gain", rung.mode, gain > threshold, gain, threshold)
