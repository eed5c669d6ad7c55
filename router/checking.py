"""The checks before an answer: what each says of a request, in order, and which one sends it away. Pure.

The order is DESIGN.md's: `degraded`, `out_of_scope`, `holdout`, `predicted_gain`. Scope comes before the predicted
gain, which knows nothing of topics that nobody labelled; the holdout between them is drawn of all that is in scope.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from router.checks import AFTER_THE_ANSWER, CHECKS, Check, CheckName, Finding
from router.decision import Moment
from router.fitted import OTHER_SELECTOR
from router.placing import arm_point
from router.policy import UNWATCHED, Alias, Policy, TaskPolicy
from router.scoring import Scores
from serving.view import VersionView


class Climbed(NamedTuple):
    """What the checks found. `sent_away` is the first enforced one that fired; `probability` that of what was drawn,
    for a request that is led to this version: the probabilities of all that it could come to add up to 1."""

    findings: tuple[Finding, ...]
    sent_away: CheckName | None
    probability: float


BEFORE_THE_ANSWER: tuple[CheckName, ...] = tuple(name for name in CHECKS if name not in AFTER_THE_ANSWER)
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
    """Hold a request for `version` against the task's checks, up to the first that sends it away."""
    if not task.checks:
        return NOTHING_FOUND
    findings: list[Finding] = []
    probability = 1.0
    for name in BEFORE_THE_ANSWER:
        check = task.checks.get(name)
        if check is None:
            continue
        drawn: float | None = None
        if name == "degraded":
            finding, drawn = _degraded(check, version, policy, moment, session, alias.salt)
        elif name == "out_of_scope":
            finding = _out_of_scope(check, task, version, scores, policy)
        elif name == "holdout":
            finding, drawn = _holdout(check, version, moment, session, alias.salt)
        else:
            finding = _predicted_gain(check, task, version, scores, policy)
        findings.append(finding)
        if check.mode != "enforce":
            continue
        if drawn is not None:
            probability *= drawn
        if finding.fired:
            return Climbed(tuple(findings), name, probability)
    return Climbed(tuple(findings), None, probability)


def _degraded(
    check: Check, version: VersionView, policy: Policy, moment: Moment, session: str | None, salt: str
) -> tuple[Finding, float | None]:
    """What it found, and the probability of what it drew for that; None where it drew nothing."""
    name = version.name
    shift = policy.shifts.get(name)
    if shift is None:
        return Finding("degraded", check.mode, fired=False, version=name), None
    kept = max(check.share, shift.kept)
    explored = arm_point(session, salt, moment.draw, "explored") < kept
    note = "kept by the exploration share" if explored else ""
    found = Finding("degraded", check.mode, not explored, None, kept, (), note, name)
    return found, kept if explored else 1.0 - kept


def _out_of_scope(check: Check, task: TaskPolicy, version: VersionView, scores: Scores, policy: Policy) -> Finding:
    name = version.name
    fitted = policy.fitted.get(name)
    found = scores.scope if scores.version == name else None
    if fitted is None or fitted.scope is None or found is None:
        note = "no scope model" if fitted is None else _unread(fitted.scope_selector, task, "no scope model")
        return Finding("out_of_scope", check.mode, fired=False, note=note, version=name)
    widened = policy.watched.get(task.name, UNWATCHED).deferral_factor
    threshold = fitted.scope.threshold(min(1.0, check.share * widened))
    near = tuple(neighbour.id for neighbour in found.neighbours)
    if threshold == -math.inf:
        note = "too few training prompts for so small a share"
        return Finding("out_of_scope", check.mode, False, found.score, None, near, note, name)
    return Finding("out_of_scope", check.mode, found.score < threshold, found.score, threshold, near, "", name)


def _holdout(
    check: Check, version: VersionView, moment: Moment, session: str | None, salt: str
) -> tuple[Finding, float]:
    """What it found, and the probability of what it drew."""
    held_out = arm_point(session, salt, moment.draw, "holdout") < check.share
    found = Finding("holdout", check.mode, held_out, None, check.share, version=version.name)
    return found, check.share if held_out else 1.0 - check.share


def _unread(selector: str | None, task: TaskPolicy, otherwise: str) -> str:
    """Why there is no score by a model that was fitted with this selector (None: there is none)."""
    return otherwise if selector in (None, task.selector) else OTHER_SELECTOR


def _predicted_gain(check: Check, task: TaskPolicy, version: VersionView, scores: Scores, policy: Policy) -> Finding:
    name = version.name
    fitted = policy.fitted.get(name)
    gain = scores.gain if scores.version == name else None
    if fitted is None or fitted.gain is None or gain is None:
        none = "no model of the gain"
        note = none if fitted is None else _unread(fitted.gain_selector, task, none)
        return Finding("predicted_gain", check.mode, fired=False, note=note, version=name)
    if not fitted.gain.shown_to_help:
        return Finding("predicted_gain", check.mode, False, gain, note="not shown to help", version=name)
    threshold = max(0.0, fitted.gain.threshold(check.share))
    return Finding("predicted_gain", check.mode, gain > threshold, gain, threshold, version=name)
