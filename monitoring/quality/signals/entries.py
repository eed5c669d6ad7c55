"""The fields of records and feedback that the monitor reads, and the version that each entry is evidence on.

Only requests that chance has led to a version show its behaviour. A caller's pin, an admin's rule and a version that
replaces another select the requests. The share of a degraded version that goes to the previous one is drawn too, so
these requests count for the previous version. Reported traffic (`reported`) reached its version by chance, as far as is
known, but neither its time nor its price is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.metric_values import Metric, measure_badness
from monitoring.quality.detectors.sessions import Past
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import OTHER_CLASS

GENERAL = "general"
OUR_FAULTS = frozenset({"cancelled", "refused", "overloaded"})
"""Faults of an attempt that say nothing about the version that was asked."""
NOT_THERE = frozenset({"no_replica", "overload"})
"""Reasons why another version than the drawn one may have been asked."""
BY_CHANCE_TO_GENERAL = frozenset({"holdout", "degraded"})
"""Reasons why a random share of a version's requests goes to the fallback."""
LABELLED_PURPOSES = frozenset({"serve", "reported"})
TEXT_MAX = 64


class Attempt(msgspec.Struct):
    """One try at an engine."""

    version: str | None = None
    fault: str | None = None


class RecordedFinding(msgspec.Struct):
    """A check's finding."""

    check: str = ""  # empty: from an earlier release, with another name
    fired: bool = False
    score: float | None = None
    version: str | None = None


class JudgedPair(msgspec.Struct, frozen=True, kw_only=True):
    """A judge's opinions on a shadow's and on the caller's answer, and the digests of both in the judge's form."""

    judge: str | None = None
    digest: str | None = None
    served_digest: str | None = None
    right: bool | None = None
    served_right: bool | None = None
    score: float | None = None
    served_score: float | None = None
    judge_digest: str | None = None


class Pair(JudgedPair, frozen=True, kw_only=True, rename={"served_fingerprint": "served_stack"}):
    """The pair on a shadow's record: the answer that the caller got, and a judge's opinions on both.

    `version` gave the caller's answer (empty or None: general), and `contract_kept` is about that answer. `caller` sent
    the request. Without `arm` the shadow is a version on trial, without a judge.
    """

    version: str | None = None
    contract_kept: bool | None = None
    caller: str | None = None
    text_digest: str | None = None
    arm: str | None = None
    judge_answered: bool | None = None
    served_fingerprint: str | None = None


class RecordEntry(msgspec.Struct, rename={"requested_model": "model_asked", "fingerprint": "stack"}):
    """The fields of a record that are read. `placed_at` is its time of arrival in the stream, by Redis's clock."""

    id: str
    caller: str = ""
    requested_model: str = ""
    purpose: str = "serve"
    shadow_of: str | None = None
    task: str | None = None
    led_to: str | None = None
    version: str | None = None
    reason: str | None = None
    outcome: str = "failed"
    override_id: str | None = None
    attempts: list[Attempt] = []
    findings: list[RecordedFinding] = []
    fingerprint: str | None = None
    text_digest: str | None = None
    contract_kept: bool | None = None
    pair: Pair | None = None
    language: str | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    saving_usd: float | None = None
    duration_seconds: float = 0.0
    placed_at: float = 0.0
    request_digest: str | None = None
    answer_id: str | None = None
    handles: list[str] = []


class FeedbackEntry(msgspec.Struct):
    """The fields of a feedback that are read, and the id of its request."""

    metric: str
    value: Any
    caller: str = ""
    rater: str | None = None
    tags: dict[str, str] | None = None
    reviewed: bool = False
    reviewers: int = 1
    resolves: bool = False
    demonstration_digests: dict[str, str] = {}
    request: str = ""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A label: a value of a metric as badness, from 0 (right) to 1 (wrong), with its giver.

    `trusted`: its giver counts like a reviewer. `reported`: its request was not served here. `weight` is under 1 for a
    repeat (`repeats.py`), and `session` has the earlier labels of its session (None: no session).
    """

    metric: str = ""
    badness: float
    caller: str = ""
    rater: str | None = None
    trusted: bool = False
    reported: bool = False
    weight: float = 1.0
    session: Past | None = None


def read_label(
    feedback: FeedbackEntry, record: RecordEntry, plan: MonitorPlan, metrics: Mapping[str, Metric]
) -> Label | None:
    """The label in a feedback on this request; None if its metric is not declared, or has no order."""
    metric = metrics.get(feedback.metric)
    bad = measure_badness(metric, feedback.value) if metric is not None else None
    if bad is None:
        return None
    return Label(
        metric=feedback.metric,
        badness=bad,
        caller=feedback.caller,
        rater=feedback.rater,
        trusted=is_trusted(feedback, plan),
        reported=is_reported(record),
    )


def is_trusted(feedback: FeedbackEntry, plan: MonitorPlan) -> bool:
    """Return whether this feedback counts like a reviewer's."""
    return feedback.reviewed or feedback.caller in plan.trusted_callers


def is_drawn(record: RecordEntry) -> bool:
    """Return whether chance decided here on the arm for a caller's request."""
    if record.purpose != "serve" or "@" in record.requested_model or record.override_id is not None:
        return False
    first_version = record.attempts[0].version if record.attempts else None
    if record.reason == "degraded" and first_version is not None:
        return True
    if record.led_to is not None and first_version is not None:
        return record.led_to == first_version
    return record.reason not in NOT_THERE or first_version != record.version


def is_by_chance(record: RecordEntry) -> bool:
    """Return whether labels of this request are evidence on the arm that answered it."""
    return is_drawn(record) if record.purpose == "serve" else record.purpose in LABELLED_PURPOSES


def is_reported(record: RecordEntry) -> bool:
    """Return whether the request was served elsewhere, and only reported here."""
    return record.purpose == "reported"


def get_labelled_version(record: RecordEntry) -> str | None:
    """The version that a label of this request is evidence on: the one that answered; None if there is none."""
    if record.version is None or not is_by_chance(record):
        return None
    is_own = record.led_to in (None, record.version) or get_shifted_version(record) == record.version
    return record.version if is_own else None


def get_shifted_version(record: RecordEntry) -> str | None:
    """The version that got this request from the share that a degraded version gives up; None if none did."""
    first_version = record.attempts[0].version if record.attempts else None
    if record.reason != "degraded" or first_version == record.led_to or not is_drawn(record):
        return None
    return first_version


def get_held_out_version(record: RecordEntry) -> str | None:
    """The version from which chance sent this request to general: a label compares general with that version."""
    if record.version is not None or record.reason not in BY_CHANCE_TO_GENERAL or not is_drawn(record):
        return None
    return record.led_to if get_shifted_version(record) is None else None


def get_asked_version(record: RecordEntry) -> str | None:
    """The version that was asked first, if the request's outcome is evidence on it; else None."""
    if record.purpose == "reported":
        return record.version
    first = record.attempts[0] if record.attempts else None
    if first is None or says_nothing(record) or not is_drawn(record):
        return None
    return None if record.outcome == "cancelled" and first.fault is None else first.version


def get_left_version(record: RecordEntry) -> str | None:
    """The version whose answer a caller did not wait to the end for; None without one, or if chance did not choose
    it."""
    first = record.attempts[0] if record.attempts else None
    if record.outcome != "cancelled" or first is None or first.fault not in (None, "cancelled"):
        return None
    return first.version if is_drawn(record) else None


def get_led_version(record: RecordEntry) -> str | None:
    """The version to which chance led the request, whatever answered it then; None if that is not known."""
    if record.purpose == "reported":
        return record.version
    return (get_shifted_version(record) or record.led_to) if is_drawn(record) else None


def get_score(record: RecordEntry, check: str, version: str | None) -> float | None:
    """The score of the task's check, by the models of this version; None without one."""
    for finding in record.findings:
        if finding.check == check and finding.score is not None and finding.version in (None, version):
            return finding.score
    return None


def has_broken_contract(record: RecordEntry, version: str) -> bool | None:
    """Return whether this version's answer broke its contract, even if the caller got another one's answer."""
    if any(attempt.version == version and attempt.fault == "contract" for attempt in record.attempts):
        return True
    if record.version != version or record.contract_kept is None:
        return None
    return not record.contract_kept


def says_nothing(record: RecordEntry) -> bool:
    """Return whether the result of the first attempt says nothing about the version that was asked."""
    return bool(record.attempts) and record.attempts[0].fault in OUR_FAULTS


def have_kept_contracts(shadow: RecordEntry) -> tuple[bool, bool] | None:
    """Return whether the shadow's and the caller's answer kept their contracts; None unless both have one. A shadow
    that failed by its own fault did not keep it."""
    if shadow.pair is None or shadow.pair.contract_kept is None or says_nothing(shadow):
        return None
    if shadow.outcome == "ok" and shadow.contract_kept is None:
        return None
    return shadow.outcome == "ok" and bool(shadow.contract_kept), shadow.pair.contract_kept


def get_sides(shadow: RecordEntry) -> tuple[str, str]:
    """The givers of the shadow's answer and of the caller's: versions, or `general`."""
    assert shadow.pair is not None, "it is a shadow's"
    general = shadow.pair.arm == GENERAL or shadow.version is None
    return GENERAL if general else str(shadow.version), shadow.pair.version or GENERAL


def list_sessions(record: RecordEntry) -> list[str]:
    """The handles of its session and subject, which other requests may share; without those of its answer or report."""
    if is_reported(record):
        return record.handles[2:]
    return record.handles if record.id in (record.answer_id or record.id) else record.handles[:-1]


def get_general_fingerprint(shadow: RecordEntry) -> str | None:
    """The fingerprint of general's answer, if the pair has one; None if it is not known."""
    assert shadow.pair is not None, "it is a shadow's"
    other, served = get_sides(shadow)
    if other == GENERAL:
        return shadow.fingerprint
    return shadow.pair.served_fingerprint if served == GENERAL else None


def get_class(feedback: FeedbackEntry, tag: str | None) -> str | None:
    """The class that the feedback names for its request; None if it names none, or `tag` is None."""
    named = (feedback.tags or {}).get(tag) if tag is not None else None
    return named[:TEXT_MAX] if named and named != OTHER_CLASS else None
