"""The tally of a canary as a part of its version's watch: the records, feedback and pairs that count for either arm.

Only requests count that chance has sent to an arm after the canary began. Reported traffic counts for no canary.
`verdicts/canary_verdict.py` gives the verdict.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.signals import noted_pairs
from monitoring.quality.signals.entries import (
    Label,
    RecordEntry,
    get_asked_version,
    get_labelled_version,
    get_left_version,
    has_broken_contract,
)
from monitoring.quality.signals.noted_pairs import NotedPair
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.canary_verdict import CanaryArm, Outcome, ShadowPair, Tally


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A canary that is judged by a plan: its version, the active version, and its start (Unix seconds)."""

    version: str
    active: str
    started_at: float
    plan: canary_verdict.CanaryPlan

    def arm(self, version: str | None) -> CanaryArm | None:
        """The arm of a version; None if it is neither."""
        return "canary" if version == self.version else "active" if version == self.active else None


def start_tally(tally: Tally | None, canary: Canary | None, callers: GiverRoll | None) -> Tally | None:
    """The tally of a canary: a fresh one if `tally` is another canary's, None without a canary.

    `callers` are those of the active version so far.
    """
    if canary is None:
        return None
    if tally is not None and tally.started_at == canary.started_at and canary_verdict.is_of(tally, canary.plan):
        return tally
    return canary_verdict.start(canary.plan, canary.started_at, callers)


def add_record(tally: Tally, canary: Canary, record: RecordEntry, at: float) -> Tally:
    """The tally after a request that came at `at`: an outcome of the first version that was asked.

    A request that its caller ended counts with its time until then: else the slowest canary would look fast.
    """
    if record.purpose != "serve" or at < canary.started_at:
        return tally
    if (left := canary.arm(get_left_version(record))) is not None:
        outcome = Outcome(arm=left, latency_seconds=record.duration_seconds, caller=record.caller)
        return canary_verdict.observe(tally, canary.plan, outcome, at)
    version = get_asked_version(record)
    arm = canary.arm(version)
    if version is None or arm is None:
        return tally
    rejected = any(attempt.version == version and attempt.fault == "contract" for attempt in record.attempts)
    answered = record.version == version and record.outcome == "ok"
    outcome = Outcome(
        arm=arm,
        error=not (answered or rejected),
        contract_broken=has_broken_contract(record, version) if answered or rejected else None,
        latency_seconds=record.duration_seconds if answered and not rejected else None,
        caller=record.caller,
    )
    return canary_verdict.observe(tally, canary.plan, outcome, at)


def add_label(
    tally: Tally, canary: Canary, label: Label | None, record: RecordEntry, note: Note, at: float
) -> tuple[Tally, Note]:
    """The tally and the request's note after a feedback at `at`, whose label is `label`. The note already holds it.

    The first value of the canary's metric counts, and a demonstration judges the request's pair.
    """
    if record.placed_at < canary.started_at:  # else complaints would choose which of the earlier pairs count
        return tally, note
    tally, note = add_pairs(tally, canary, note)
    arm = canary.arm(get_labelled_version(record)) if record.purpose == "serve" else None
    if label is None or label.metric != canary.plan.feedback_metric or arm is None or note.canary:
        return tally, note
    outcome = Outcome(arm=arm, badness=label.badness, caller=label.caller, rater=label.rater, trusted=label.trusted)
    return canary_verdict.observe(tally, canary.plan, outcome, at), replace(note, canary=True)


def add_pairs(tally: Tally, canary: Canary, note: Note) -> tuple[Tally, Note]:
    """The tally and the note after the known opinions on a request's pairs of both arms. Each pair counts once.

    If both answers have a contract, it alone judges; else a demonstration does, if there is one.
    """
    for place, noted in enumerate(note.pairs):
        if noted.canary or {canary.arm(noted.shadow), canary.arm(noted.served)} != {"canary", "active"}:
            continue
        right = _right(noted, canary.version, note.right.get(noted.judge or ""))
        if right is None:
            continue
        callers = tuple(caller for caller in dict.fromkeys((noted.caller, *note.givers)) if caller)
        pair = ShadowPair(canary_wrong=not right[0], active_wrong=not right[1], callers=callers)
        tally = canary_verdict.observe_pair(tally, canary.plan, pair)
        pairs = (*note.pairs[:place], replace(noted, canary=True), *note.pairs[place + 1 :])
        note = replace(note, pairs=pairs)
    return tally, note


def _right(noted: NotedPair, canary: str, demonstration: str | None) -> tuple[float, float] | None:
    """The rightness of the canary's and of the active version's answer; None if nothing has judged them yet."""
    if noted.kept is not None:
        shadow, served = map(float, noted.kept)
        return (served, shadow) if noted.served == canary else (shadow, served)
    if noted.failed:
        noted = replace(noted, digest="")  # it is never right
    return noted_pairs.judge_by_demonstration(noted, canary, demonstration)
