"""Events in a version's watch: the effects of records, feedback and time. `watch_pairs.py` has those of pairs."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from monitoring.metric_values import is_bad
from monitoring.quality.detectors import cost_saving, leave_one_out, recent_values
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.signal_table import LABELLED, is_of_feedback_metric
from monitoring.quality.signals import (
    complaint_signal,
    fingerprints,
    label_evidence,
    label_signal,
    pair_signal,
    repeats,
    unlabelled,
)
from monitoring.quality.signals.complaint_signal import ComplaintSignal
from monitoring.quality.signals.entries import (
    FeedbackEntry,
    Label,
    RecordEntry,
    get_class,
    get_held_out_version,
    get_labelled_version,
    is_by_chance,
    is_reported,
)
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.version_watch import CLASSES_MAX, FIRST_OF_CLASS, Watch, start
from monitoring.quality.signals.watch_pairs import add_fingerprint, use_opinions
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import OTHER_CLASS

PREVIOUS_MIN = 200
"""The least number of labels that another version needs to be the baseline of this one."""
MARKED_EVERY = 16


def take_record(
    watch: Watch, record: RecordEntry, plan: MonitorPlan, at: float, previous: Watch | None = None
) -> Watch:
    """The watch after a caller's or a reported request that was led to its version, or answered by it."""
    if not is_by_chance(record):
        return watch
    moved: dict[str, Any] = {}
    if watch.version in (record.version, record.led_to):
        roll = leave_one_out.add_request(watch.roll, record.caller, at, is_reported(record))
        watch = replace(watch, roll=roll)
    if record.purpose == "serve" and record.led_to == watch.version:
        moved["led_rate"] = recent_values.add_event(watch.led_rate, at)
    if get_labelled_version(record) == watch.version:
        moved["requests"] = watch.requests + 1
        moved["request_rate"] = recent_values.add_event(watch.request_rate, at)
        if watch.requests % MARKED_EVERY == 0:
            moved["request_marks"] = recent_values.add_mark(watch.request_marks, watch.requests + 1, at, 0.0)
        if record.purpose == "serve":
            moved["saving"] = cost_saving.add_request(watch.saving, at, record.saving_usd)
            moved["saving_usd"] = watch.saving_usd + (record.saving_usd or 0.0)
        if plan.complaint_metric is not None:
            watch = _with_served(watch, record, plan.complaint_metric, at, previous)
        elif watch.complaints is not None:  # nothing could show a recovery any more
            watch = replace(watch, complaint_metric=None, complaints=None)
    per_day = recent_values.count_per_day(watch.request_rate, at, unlabelled.KNOWN_SECONDS_MIN)
    if unlabelled.is_looked_at(record.id, watch.requests, per_day):
        signals, languages = unlabelled.add_record(watch.signals, watch.languages, record, watch.version, at)
        moved.update(looked_at=watch.looked_at + 1, signals=signals, languages=languages)
    if record.version is None and record.led_to == watch.version:
        watch = add_fingerprint(watch, record.fingerprint, at)
    return replace(watch, **moved) if moved else watch


def _with_served(watch: Watch, record: RecordEntry, metric: str, at: float, previous: Watch | None) -> Watch:
    """The watch after its complaints have taken a request. The first request begins them."""
    track = watch.complaints
    if track is None or watch.complaint_metric != metric:
        earlier = previous.complaints if previous is not None and previous.complaint_metric == metric else None
        learned = earlier.detectors.whole.learned if earlier is not None else None
        track = complaint_signal.start(watch.version, at, learned)
    if watch.course.is_degraded and not track.is_tested:
        track = track.begin_reverse_test(watch.course.tested_from)
    if _counts_for_complaints(watch, track, record):
        track = track.take_request(record.caller, at)
    return replace(watch, complaint_metric=metric, complaints=track)


def _counts_for_complaints(watch: Watch, track: ComplaintSignal, record: RecordEntry) -> bool:
    """Return whether complaints take a request, or a complaint about it. They take no report while requests are served
    here, and learn nothing from a degraded version."""
    return is_reported(record) == watch.roll.reported and not (track.learns and watch.course.is_degraded)


def take_feedback(
    watch: Watch,
    feedback: FeedbackEntry,
    label: Label | None,
    record: RecordEntry,
    note: Note,
    plan: MonitorPlan,
    at: float,
    previous: Watch | None = None,
) -> tuple[Watch, Note]:
    """The watch and the request's note after a feedback that the note already holds. It counts if the request is this
    version's, or was held out from it. `label` is the feedback's (`entries.read_label`).

    The first value of a signal counts.
    """
    if watch.metric != plan.feedback_metric:
        watch = _of_another_metric(watch, plan.feedback_metric)
    if watch.class_tag != plan.class_tag:
        watch = _of_another_tag(watch, plan.class_tag)
    own = get_labelled_version(record) == watch.version
    before = note
    if label is not None and label.metric == plan.complaint_metric and own:
        watch, note = _with_complaint(watch, label, record, note, at)
    if label is not None and label.metric == plan.feedback_metric:
        signal = "reviewed" if label.trusted else "feedback"
        if signal not in note.given:
            note = replace(note, given={**note.given, signal: label.badness})
            watch = _with_label(watch, label, signal, feedback, record, plan, at, previous, own)
    if note is not before and own and not before.given:
        watch = replace(
            watch,
            judged=recent_values.add_event(watch.judged, at),
            delays=recent_values.add_delay(watch.delays, max(0.0, at - record.placed_at)),
        )
    for index, noted in enumerate(note.pairs):
        if watch.version in noted.counted and fingerprints.is_compared_with(watch.fingerprint, noted.fingerprint):
            watch, note = use_opinions(watch, note, index, noted, at, record.placed_at)
    return watch, note


def _with_label(
    watch: Watch,
    label: Label,
    signal: str,
    feedback: FeedbackEntry,
    record: RecordEntry,
    plan: MonitorPlan,
    at: float,
    previous: Watch | None,
    own: bool,
) -> Watch:
    """The watch after the first label of a request in a signal."""
    roll = watch.roll if label.trusted else leave_one_out.add_label(watch.roll, label.caller, label.reported, at)
    alone, moved = leave_one_out.find_alone(roll), dict[str, Any](roll=roll)
    is_degraded, predates_restart = watch.course.is_degraded, watch.course.predates_restart(record.placed_at)
    is_compared = fingerprints.is_compared_with(watch.fingerprint, record.fingerprint)
    held_out = get_held_out_version(record) == watch.version and is_compared
    at_the_time = (own and not label.reported) or held_out
    if signal == "feedback" and not predates_restart and at_the_time:
        times = {"placed_at": record.placed_at, "tested_from": watch.course.tested_from}
        moved["holdout"] = watch.holdout.take_label(
            own, label.badness, label.caller, at, alone, is_degraded=is_degraded, **times
        )
    if own:
        label, moved["latest"], moved["sessions"] = repeats.weigh(watch.latest, watch.sessions, signal, label, record)
        track: LabelSignal = getattr(watch, signal)
        if signal == "feedback" and track.guard is None:
            track = _with_previous(track, previous, plan, at)
        flags = {"predates_restart": predates_restart, "predates_test": watch.course.predates_test(record.placed_at)}
        is_strong = _has_strong_evidence(watch)
        moved[signal] = track.take(label, at, roll, is_degraded, has_strong_evidence=is_strong, **flags)
        moved["labels"] = watch.labels + 1
        moved["label_rate"] = recent_values.add_event(watch.label_rate, at)
        of_class = get_class(feedback, plan.class_tag)
        if of_class is not None:
            moved["classes"] = _with_class(watch, signal, of_class, label, at, roll, flags)
    return replace(watch, **moved)


def _has_strong_evidence(watch: Watch) -> bool:
    """Return whether the evidence of labels or pairs is strong, whatever an admin's verdict is."""
    names = [name for name, row in LABELLED.items() if row.measure != "complaints"]
    return any(getattr(watch, name).has_strong_evidence for name in names)


def _with_previous(track: LabelSignal, previous: Watch | None, plan: MonitorPlan, at: float) -> LabelSignal:
    """The signal with the previous version's baseline, once that has enough labels of the same metric."""
    if previous is None or previous.metric != plan.feedback_metric or previous.feedback.steady < PREVIOUS_MIN:
        return track
    baseline = previous.feedback.make_baseline(at, "monitor", previous.version)
    return track if baseline is None else track.hold_against(baseline)


def _with_class(
    watch: Watch, signal: str, of_class: str, label: Label, at: float, roll: GiverRoll, flags: dict[str, bool]
) -> dict[str, LabelSignal]:
    """The signals of classes after a label: one each for the first twenty, one for all others. A report begins none
    while requests are served here."""
    name = f"{signal}:{of_class}"
    is_new = name not in watch.classes
    if is_new and not label_evidence.may_teach(label, roll):
        return watch.classes
    if is_new and sum(class_name.startswith(f"{signal}:") for class_name in watch.classes) >= CLASSES_MAX:
        name = f"{signal}:{OTHER_CLASS}"
    track = watch.classes.get(name) or label_signal.start(FIRST_OF_CLASS, watch.version)
    moved = track.take(label, at, roll, watch.course.is_degraded, **flags)
    return {**watch.classes, name: moved}


def _with_complaint(watch: Watch, label: Label, record: RecordEntry, note: Note, at: float) -> tuple[Watch, Note]:
    """The watch after the complaint metric's first value for a request. Only a bad value is a complaint."""
    if "complaints" in note.given:
        return watch, note
    note = replace(note, given={**note.given, "complaints": label.badness})
    track = watch.complaints
    if not is_bad(label.badness) or track is None or not _counts_for_complaints(watch, track, record):
        return watch, note
    roll = leave_one_out.add_label(watch.roll, label.caller, label.reported, at)
    track = track.take_complaint(label.caller, record.placed_at, at, leave_one_out.find_alone(roll))
    return replace(watch, roll=roll, complaints=track), note


def _of_another_metric(watch: Watch, metric: str | None) -> Watch:
    """The watch for another metric, without the labels of an earlier one and the baselines set for them."""
    if watch.metric is None:
        return replace(watch, metric=metric)
    fresh, holdout = (
        start(watch.version, watch.task, watch.epoch),
        pair_signal.start(watch.version, watch.fingerprint.digest),
    )
    return replace(
        watch,
        metric=metric,
        sessions={},
        reviewed=fresh.reviewed,
        feedback=fresh.feedback,
        holdout=holdout,
        classes={},
        outdated=tuple(sorted([name for name in watch.set_at if is_of_feedback_metric(name)])),
    )


def _of_another_tag(watch: Watch, tag: str | None) -> Watch:
    """The watch for another class tag, without the classes of an earlier one and the baselines set for them."""
    moved = replace(watch, class_tag=tag)
    if watch.class_tag is None:
        return moved
    of_classes = [name for name in watch.set_at if ":" in name]
    return replace(moved, classes={}, outdated=tuple(sorted({*watch.outdated, *of_classes})))


def tick(watch: Watch, at: float) -> Watch:
    """The watch at a later moment without an entry. The number of calls does not change the result."""
    if watch.complaints is None:
        return watch
    track = watch.complaints.tick(at)
    return watch if track is watch.complaints else replace(watch, complaints=track)
