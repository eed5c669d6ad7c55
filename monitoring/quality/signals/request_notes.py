"""The note on one request, kept for as long as the request may be judged.

It holds what has already counted, and the pair that waits for a person's label, or the label that waits for the pair.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from monitoring.labels.request_label import RaterJudgement
from monitoring.quality.signals.entries import (
    FeedbackEntry,
    JudgedPair,
    Label,
    RecordEntry,
    get_general_fingerprint,
    get_sides,
    have_kept_contracts,
    is_trusted,
    says_nothing,
)
from monitoring.quality.signals.noted_pairs import NotedPair
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

PAIRS_MAX = 4
"""The number of pairs that are kept for a request."""
KEPT_SECONDS_MAX = 30 * 86_400
"""The longest time for which a request may be judged."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The note on one request. `given` has the first value in each labelled signal, as badness.

    `bad` is the label of the answer that its caller got, `right` the digests of the right answer by judge. `givers` are
    the callers who gave these, without trusted ones. `canary`: a canary's tally has its feedback. `judgements` are the
    answers of several reviewers (`joint_labels.py`).
    """

    epoch: str = ""
    given: dict[str, float] = {}
    bad: float | None = None
    right: dict[str, str] = {}
    givers: tuple[str, ...] = ()
    pairs: tuple[NotedPair, ...] = ()
    canary: bool = False
    judgements: tuple[RaterJudgement, ...] = ()


def add_pair(note: Note, shadow: RecordEntry) -> Note:
    """The note with a shadow's pair, if it can ever be judged."""
    pair = shadow.pair
    if pair is None or len(note.pairs) >= PAIRS_MAX:
        return note
    other, served = get_sides(shadow)
    on_trial = pair.arm is None
    opinion = {name: getattr(pair, name) for name in JudgedPair.__struct_fields__}
    if on_trial:
        opinion |= {"judge": "normal", "digest": shadow.text_digest, "served_digest": pair.text_digest}
    noted = NotedPair(
        **opinion,
        shadow=other,
        served=served,
        on_trial=on_trial,
        fingerprint=get_general_fingerprint(shadow),
        caller=pair.caller or "",
        failed=shadow.outcome != "ok" and not says_nothing(shadow),
        kept=have_kept_contracts(shadow),
    )
    if any((earlier.shadow, earlier.served) == (other, served) for earlier in note.pairs):
        return note
    return replace(note, pairs=(*note.pairs, noted))


def add_feedback(note: Note, feedback: FeedbackEntry, plan: MonitorPlan, label: Label | None) -> Note:
    """The note with the first label and the first demonstration that may judge pairs.

    If the task has reviews or trusted callers, only their labels judge pairs: they are less biased. Else a reviewer's
    label replaces those of other callers on the request.
    """
    trusted = is_trusted(feedback, plan)
    bad = label.badness if label is not None and label.metric == plan.feedback_metric else None
    is_judged = note.bad is not None or bool(note.right)
    if not trusted and (plan.reviews_per_week or plan.trusted_callers or (is_judged and not note.givers)):
        return note
    if trusted and note.givers and (bad is not None or feedback.demonstration_digests):
        note = replace(note, bad=None, right={}, givers=())
    moved: dict[str, Any] = {}
    if bad is not None and note.bad is None:
        moved["bad"] = bad
    if feedback.demonstration_digests and not note.right:
        moved["right"] = feedback.demonstration_digests
    if not moved:
        return note
    if not trusted and feedback.caller not in note.givers:
        moved["givers"] = (*note.givers, feedback.caller)
    return replace(note, **moved)
