"""The label of a request with several reviewers: it counts only once it is decided.

Until then none of the reviewers' answers moves a signal. A single reviewer's answer counts at once, unless the
reviewers of the task agree too little. Pure functions.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from monitoring.ids import name_rater
from monitoring.labels.request_label import RaterJudgement, decide_label
from monitoring.quality.signals.entries import FeedbackEntry, Label
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

JUDGEMENTS_MAX = 16
"""The number of latest answers that are kept for a request."""


def decide_together(
    note: Note, feedback: FeedbackEntry, label: Label | None, plan: MonitorPlan
) -> tuple[Note, FeedbackEntry, Label | None]:
    """The note with a reviewer's answer, and the feedback and label that count now. With one reviewer these are the
    answer's own, else those of all answers; None while there is no decision."""
    if label is None or not label.trusted or label.metric != plan.feedback_metric:
        return note, feedback, label
    if not (feedback.reviewers > 1 or feedback.resolves or note.judgements or plan.agreed_only):
        return note, feedback, label
    digests = feedback.demonstration_digests
    judgement = RaterJudgement(
        rater=name_rater(feedback.caller, feedback.rater),
        badness=label.badness,
        is_trusted=True,
        resolves=feedback.resolves,
        reviewers=feedback.reviewers,
        demonstration=digests or None,
        form=msgspec.json.encode(digests.get("normal") or digests, order="sorted") if digests else None,
    )
    judgements = (*note.judgements, judgement)[-JUDGEMENTS_MAX:]
    note = replace(note, judgements=judgements)
    decided = decide_label(judgements, plan.agreed_only)
    if decided is None or decided.badness is None:
        return note, replace(feedback, demonstration_digests={}), None
    feedback = replace(feedback, demonstration_digests=decided.demonstration or {})
    return note, feedback, replace(label, badness=decided.badness)
