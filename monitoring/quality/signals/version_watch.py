"""The state of one version's signals, and what moves it: a record, a pair of a shadow, a feedback, and time.

Everything has a fixed size, and goes through JSON unchanged. The same entries in the same order leave the same state,
to the last bit, however they are cut into batches and whoever moves it. Times are those at which entries came into
their streams, by Redis's clock.

A request's `Note` (`request_notes.py`) is kept beside the watches, for as long as it may be judged. What baselines and
verdicts make of a watch is in `signal_changes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from monitoring.metric_values import is_bad
from monitoring.quality.detectors import leave_one_out, raters, recent_values, saving
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.detectors.recent_values import DelayCounts, FadedSums, Marks, Rate
from monitoring.quality.detectors.saving import Saving
from monitoring.quality.phases import Course
from monitoring.quality.signal_table import LABELLED, is_of_feedback_metric
from monitoring.quality.signals import (
    arm_bets,
    arms,
    complaint_signal,
    fingerprints,
    label_signal,
    noted_pairs,
    pair_judge,
    pair_signal,
    repeats,
    unlabelled,
)
from monitoring.quality.signals.arm_bets import ArmBets
from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.complaint_signal import ComplaintSignal
from monitoring.quality.signals.entries import (
    GENERAL,
    Given,
    Label,
    Pair,
    Seen,
    get_class,
    get_held_out_version,
    get_labelled_version,
    get_sides,
    is_by_chance,
    is_reported,
)
from monitoring.quality.signals.fingerprints import GeneralStack
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.noted_pairs import NotedPair, Right
from monitoring.quality.signals.pair_judge import PairJudge
from monitoring.quality.signals.pair_signal import PairSignal
from monitoring.quality.signals.repeats import Latest
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.unlabelled import Languages
from monitoring.quality.verdicts.plan import Plan
from monitoring.quality.verdicts.quality import OTHER_CLASS
from monitoring.quality.verdicts.rollout import Tally

FIRST_REVIEWED = 100
FIRST_FEEDBACK = 200
FIRST_OF_CLASS = 100
PREVIOUS_MIN = 200
"""Labels that another version has at least, so that this one may be held against it."""
CLASSES_MAX = 20
MARKED_EVERY = 16
LabelledSignal = LabelSignal | PairSignal | ComplaintSignal


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """All signals of one version and how they stand; `epoch` is the reading of the streams that it belongs to.

    `form` is another only where a state of before can't be read any more (`saved_watches.py`). `roll` knows which
    callers use the version. `stack` is the one of general that `shadow`, `holdout` and `general` are compared with.
    `classes` has the signals of classes, as `SIGNAL:CLASS`. `course` is the version's phase, and the times from which
    labels count. `judged` is the rate of requests that got their first label. `agreed` is the agreement of the judge of
    pairs with people, of the judge that `judge` knows. `shadows` counts the shadows that were asked for it, which cost
    `shadow_usd`; `saving` is what it saves, and what they cost, lately. `anew` has the times of the baselines that
    admins and evaluations have set, by signal; `outdated` are those of them that were set for another metric. `canary`
    is its tally while it is a canary that is judged by a plan. `bets` are on other arms, by their names, while it is
    degraded.
    """

    form: Literal[3]
    version: str
    task: str
    epoch: str
    roll: GiverRoll
    reviewed: LabelSignal
    feedback: LabelSignal
    shadow: PairSignal
    holdout: PairSignal
    general: Arm
    stack: GeneralStack = GeneralStack()
    previous_version: Arm | None = None
    metric: str | None = None
    complaint_metric: str | None = None
    classes: dict[str, LabelSignal] = {}
    complaints: ComplaintSignal | None = None
    signals: dict[str, Signal] = {}
    languages: Languages = Languages()
    requests: int = 0
    looked_at: int = 0
    request_rate: Rate | None = None
    request_marks: Marks = ()
    labels: int = 0
    label_rate: Rate | None = None
    judged: Rate | None = None
    delays: DelayCounts = DelayCounts()
    agreed: FadedSums = FadedSums()
    judge: PairJudge = PairJudge()
    saving: Saving | None = None
    saving_usd: float = 0.0
    shadow_usd: float = 0.0
    shadows: int = 0
    course: Course = Course()
    anew: dict[str, float] = {}
    outdated: tuple[str, ...] = ()
    canary: Tally | None = None
    latest: dict[str, Latest] = {}
    bets: dict[str, ArmBets] = {}


def start(version: str, task: str, epoch: str) -> Watch:
    """The watch of a version of which nothing was seen."""
    return Watch(
        form=3,
        version=version,
        task=task,
        epoch=epoch,
        roll=raters.start_roll(version),
        reviewed=label_signal.start(FIRST_REVIEWED, version),
        feedback=label_signal.start(FIRST_FEEDBACK, version),
        shadow=pair_signal.start(version),
        holdout=pair_signal.start(version),
        general=Arm(other=GENERAL),
    )


def get_labelled(watch: Watch) -> dict[str, LabelledSignal]:
    """The labelled signals of a version by name; those of its classes, as `SIGNAL:CLASS`, come last."""
    own: dict[str, LabelledSignal | None] = {name: getattr(watch, name) for name in LABELLED}
    return {**{name: signal for name, signal in own.items() if signal is not None}, **watch.classes}


def replace_labelled(watch: Watch, signals: Mapping[str, LabelledSignal | None]) -> Watch:
    """The watch with these labelled signals instead, by the names of `get_labelled`. None: it begins again."""
    if not signals:
        return watch
    moved: dict[str, Any] = {name: signal for name, signal in signals.items() if ":" not in name}
    classes = {name: signal for name, signal in signals.items() if ":" in name}
    return replace(watch, **moved, classes={**watch.classes, **classes})


# ---- records -------------------------------------------------------------------------------------


def take_record(watch: Watch, record: Seen, plan: Plan, at: float, previous: Watch | None = None) -> Watch:
    """The watch after a request of a caller's, or a reported one, that was led to its version or answered by it."""
    if not is_by_chance(record):
        return watch
    moved: dict[str, Any] = {}
    if watch.version in (record.version, record.led_to):
        roll = leave_one_out.add_request(watch.roll, record.caller, at, is_reported(record))
        watch = replace(watch, roll=roll)
    if get_labelled_version(record) == watch.version:
        moved["requests"] = watch.requests + 1
        moved["request_rate"] = recent_values.add_event(watch.request_rate, at)
        if watch.requests % MARKED_EVERY == 0:
            moved["request_marks"] = recent_values.add_mark(watch.request_marks, watch.requests + 1, at, 0.0)
        if record.purpose == "serve":
            moved["saving"] = saving.add_request(watch.saving, at, record.saving_usd)
            moved["saving_usd"] = watch.saving_usd + (record.saving_usd or 0.0)
        if plan.complaint_metric is not None:
            watch = _with_served(watch, record, plan.complaint_metric, at, previous)
    per_day = recent_values.count_per_day(watch.request_rate, at, unlabelled.KNOWN_SECONDS_MIN)
    if unlabelled.is_looked_at(record.id, watch.requests, per_day):
        signals, languages = unlabelled.add_record(watch.signals, watch.languages, record, watch.version, at)
        moved.update(looked_at=watch.looked_at + 1, signals=signals, languages=languages)
    if record.version is None and record.led_to == watch.version:
        watch = _with_stack(watch, record.stack, at)
    return replace(watch, **moved) if moved else watch


def _with_served(watch: Watch, record: Seen, metric: str, at: float, previous: Watch | None) -> Watch:
    """The watch whose complaints have taken a request; begun with the first one."""
    track = watch.complaints
    if track is None or watch.complaint_metric != metric:
        earlier = previous.complaints if previous is not None and previous.complaint_metric == metric else None
        learned = earlier.detectors.whole.learned if earlier is not None else None
        track = complaint_signal.start(watch.version, at, learned)
    if watch.course.is_degraded and not track.is_tested:
        track = track.begin_reverse_test(watch.course.tested_from)
    if _teaches_complaints(watch, track, record):
        track = track.take_request(record.caller, at)
    return replace(watch, complaint_metric=metric, complaints=track)


def _teaches_complaints(watch: Watch, track: ComplaintSignal, record: Seen) -> bool:
    """Return whether complaints may take a request, or a complaint about it: while they learn, none of what is not to
    be learned from."""
    if not track.learns:
        return True
    return is_reported(record) == watch.roll.reported and not watch.course.is_degraded


# ---- pairs ---------------------------------------------------------------------------------------


def take_pair(
    watch: Watch, shadow: Seen, note: Note, at: float, previous_version: str | None = None
) -> tuple[Watch, Note]:
    """The watch after a shadow whose pair is in the note, and the note.

    `previous_version` is the task's previous version: pairs with other versions are not reckoned with.
    """
    if shadow.pair is None:
        return watch, note
    whose = get_sides(shadow)
    if watch.version == (whose[1] if whose[1] != GENERAL else whose[0]):
        watch = _with_cost(watch, shadow.cost_usd, at)
    watch = _with_judge(watch, shadow.pair)
    if whose[0] == GENERAL:
        watch = _with_stack(watch, shadow.stack, at, is_shadow=True)
    index = next((n for n, pair in enumerate(note.pairs) if (pair.shadow, pair.served) == whose), None)
    noted = note.pairs[index] if index is not None else None
    arm = _arm(watch, noted, previous_version) if noted is not None else None
    if index is None or noted is None or arm is None or watch.version in noted.counted:
        return watch, note
    if not fingerprints.is_compared_with(watch.stack, noted.stack):
        return watch, note
    says_right = noted_pairs.get_outright(noted, watch.version) is not None
    arm = arms.add_pair(arm, at, noted_pairs.get_guesses(noted, watch.version), says_right)
    noted = replace(noted, counted={**noted.counted, watch.version: arm.blocks[-1].begins})
    watch = _with_arm(watch, arm)
    if watch.course.came_degraded(shadow.placed_at):
        watch = _with_bets(watch, arm.other, arm_bets.add_pair)
    return _use_opinions(watch, note, index, noted, at, shadow.placed_at)


def _use_opinions(
    watch: Watch, note: Note, index: int, noted: NotedPair, at: float, asked_at: float
) -> tuple[Watch, Note]:
    """Watch and note with what is known of a pair: a person's word goes into its sums, either one into the test.

    The test sees only pairs of which both answers are judged: by a label of one alone, differences follow who answered.
    """
    version = watch.version
    arm, other = _arm(watch, noted, None), noted.shadow if noted.served == version else noted.served
    right_digest = note.right.get(noted.judge) if noted.judge is not None else None
    right = noted_pairs.judge_by_labels(noted, version, None if noted.on_trial else note.bad, right_digest)
    guessed = noted_pairs.get_guesses(noted, version)
    begins = noted.counted.get(version)
    counted_versions = noted.labelled if not note.givers else (*noted.labelled, *noted.told)
    if right is not None and arm is not None and begins is not None and version not in counted_versions:
        watch = _with_arm(watch, arms.add_label(arm, begins, right, guessed, note.givers))
        if version not in noted.told and right[0] is not None:
            watch = _with_agreement(watch, noted, right[0])
        field = "told" if note.givers else "labelled"
        noted = replace(noted, **{field: (*getattr(noted, field), version)})
    by_demonstration = noted_pairs.judge_by_demonstration(noted, version, right_digest)
    judged_both = by_demonstration if by_demonstration is not None else noted_pairs.get_outright(noted, version)
    is_new = version not in noted.tested and not watch.course.predates_restart(asked_at)
    if is_new and judged_both is not None and other == GENERAL:
        givers = note.givers if by_demonstration is not None else ()
        flags = {"is_degraded": watch.course.is_degraded, "predates_test": watch.course.predates_test(asked_at)}
        alone = leave_one_out.find_alone(watch.roll)
        wrong, other_wrong = 1.0 - judged_both[0], 1.0 - judged_both[1]
        watch = replace(watch, shadow=watch.shadow.take_pair(wrong, other_wrong, givers, at, alone, **flags))
        noted = replace(noted, tested=(*noted.tested, version))
    watch, noted = _bet(watch, noted, other, right, note.givers, asked_at)
    return watch, replace(note, pairs=(*note.pairs[:index], noted, *note.pairs[index + 1 :]))


def _bet(
    watch: Watch, noted: NotedPair, other: str, right: Right | None, givers: tuple[str, ...], asked_at: float
) -> tuple[Watch, NotedPair]:
    """Watch and pair after a bet on the first opinion on it: a person's (`right`), else a judge's on both answers."""
    version, opinion = watch.version, right or noted_pairs.get_outright(noted, watch.version)
    is_new = version in noted.counted and version not in noted.bet_on
    if opinion is None or not (is_new and watch.course.came_degraded(asked_at)):
        return watch, noted
    difference, told_by = arms.find_differences(opinion)[0], () if right is None else givers
    watch = _with_bets(watch, other, lambda bets: arm_bets.add_difference(bets, difference, told_by, watch.roll))
    return watch, replace(noted, bet_on=(*noted.bet_on, version))


def _with_bets(watch: Watch, other: str, step: Callable[[ArmBets], ArmBets]) -> Watch:
    """The watch whose bets on another arm have moved."""
    against = watch.stack.digest if other == GENERAL else None
    bets = arm_bets.move(watch.bets, other, watch.course.since, against, watch.roll.groups, step)
    return replace(watch, bets=bets)


def _with_stack(watch: Watch, digest: str | None, at: float, is_shadow: bool = False) -> Watch:
    """The watch after one more answer of general's: a shadow, or what a caller got."""
    is_degraded = watch.course.is_degraded
    moved = fingerprints.add_answer(
        watch.stack, digest, watch.shadow, watch.holdout, watch.general, at, is_shadow, is_degraded
    )
    return replace(watch, **moved) if moved else watch


def _with_cost(watch: Watch, usd: float | None, at: float) -> Watch:
    """The watch after a shadow that was asked for it, and what that cost, where it is known."""
    moved: dict[str, Any] = {"shadows": watch.shadows + 1}
    if usd:
        moved |= {"shadow_usd": watch.shadow_usd + usd, "saving": saving.add_shadow(watch.saving, at, usd)}
    return replace(watch, **moved)


def _with_judge(watch: Watch, pair: Pair) -> Watch:
    """The watch once it is known which judge its pairs have: what another one has agreed with says nothing of it."""
    judge = pair_judge.add_pair(watch.judge, pair)
    if judge is watch.judge:
        return watch
    agreed = watch.agreed if pair_judge.is_judged_by(watch.judge, judge.judge, judge.digest) else FadedSums()
    return replace(watch, judge=judge, agreed=agreed)


def _with_agreement(watch: Watch, noted: NotedPair, right: float) -> Watch:
    """Compare the judge's opinion on the version's answer with a person's; that of an earlier judge is left out."""
    guessed = noted_pairs.get_guesses(noted, watch.version)
    if guessed is None or not pair_judge.is_judged_by(watch.judge, noted.judge, noted.judge_digest):
        return watch
    agrees = float((guessed[0] >= 0.5) == (right >= 0.5))
    return replace(watch, agreed=recent_values.add_value(watch.agreed, agrees))


def _arm(watch: Watch, noted: NotedPair, previous_version: str | None) -> Arm | None:
    """The arm that a pair is with: general, or the previous version; None for any other."""
    other = noted.shadow if noted.served == watch.version else noted.served
    if other == GENERAL:
        return watch.general
    if watch.previous_version is not None and watch.previous_version.other == other:
        return watch.previous_version
    return Arm(other=other) if other == previous_version else None


def _with_arm(watch: Watch, arm: Arm) -> Watch:
    if arm.other == GENERAL:
        return replace(watch, general=arm)
    return replace(watch, previous_version=arm)


# ---- feedback ------------------------------------------------------------------------------------


def take_feedback(
    watch: Watch,
    feedback: Given,
    label: Label | None,
    record: Seen,
    note: Note,
    plan: Plan,
    at: float,
    previous: Watch | None = None,
) -> tuple[Watch, Note]:
    """The watch after a feedback that its request's note has heard, and the note. It counts where the request is one of
    this version, or was held out of it. `label` is the feedback's (`entries.read_label`).

    The first value of a signal counts.
    """
    if watch.metric != plan.feedback_metric:
        watch = _of_another_metric(watch, plan.feedback_metric)
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
        if watch.version in noted.counted and fingerprints.is_compared_with(watch.stack, noted.stack):
            watch, note = _use_opinions(watch, note, index, noted, at, record.placed_at)
    return watch, note


def _with_label(
    watch: Watch,
    label: Label,
    signal: str,
    feedback: Given,
    record: Seen,
    plan: Plan,
    at: float,
    previous: Watch | None,
    own: bool,
) -> Watch:
    """The watch after the first label of a request in a signal."""
    roll = watch.roll if label.trusted else leave_one_out.add_label(watch.roll, label.caller, label.reported, at)
    alone, moved = leave_one_out.find_alone(roll), dict[str, Any](roll=roll)
    is_degraded, predates_restart = watch.course.is_degraded, watch.course.predates_restart(record.placed_at)
    is_compared = fingerprints.is_compared_with(watch.stack, record.stack)
    held_out = get_held_out_version(record) == watch.version and is_compared
    at_the_time = (own and not label.reported) or held_out
    if signal == "feedback" and not predates_restart and at_the_time:
        times = {"placed_at": record.placed_at, "tested_from": watch.course.tested_from}
        moved["holdout"] = watch.holdout.take_label(
            own, label.badness, label.caller, at, alone, is_degraded=is_degraded, **times
        )
    if own:
        label, moved["latest"] = repeats.weigh(watch.latest, signal, label, record)
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
    """Return whether the evidence of labels or pairs would make it degraded, whatever an admin's verdict is."""
    names = [name for name, row in LABELLED.items() if row.measure != "complaints"]
    return any(getattr(watch, name).has_strong_evidence for name in names)


def _with_previous(track: LabelSignal, previous: Watch | None, plan: Plan, at: float) -> LabelSignal:
    """The signal held against the version before, once that has labels enough of the same metric."""
    if previous is None or previous.metric != plan.feedback_metric or previous.feedback.steady < PREVIOUS_MIN:
        return track
    baseline = previous.feedback.make_baseline(at, "monitor", previous.version)
    return track if baseline is None else track.hold_against(baseline)


def _with_class(
    watch: Watch, signal: str, of_class: str, label: Label, at: float, roll: GiverRoll, flags: dict[str, bool]
) -> dict[str, LabelSignal]:
    """The signals of classes after a label: the first twenty by themselves, all others together. A report beside what
    is served here begins none."""
    name = f"{signal}:{of_class}"
    is_new = name not in watch.classes
    if is_new and not label_signal.may_teach(label, roll):
        return watch.classes
    if is_new and sum(class_name.startswith(f"{signal}:") for class_name in watch.classes) >= CLASSES_MAX:
        name = f"{signal}:{OTHER_CLASS}"
    track = watch.classes.get(name) or label_signal.start(FIRST_OF_CLASS, watch.version)
    moved = track.take(label, at, roll, watch.course.is_degraded, **flags)
    return {**watch.classes, name: moved}


def _with_complaint(watch: Watch, label: Label, record: Seen, note: Note, at: float) -> tuple[Watch, Note]:
    """The watch after the first value of the complaint metric for a request; only a bad one is a complaint."""
    if "complaints" in note.given:
        return watch, note
    note = replace(note, given={**note.given, "complaints": label.badness})
    track = watch.complaints
    if not is_bad(label.badness) or track is None or not _teaches_complaints(watch, track, record):
        return watch, note
    roll = leave_one_out.add_label(watch.roll, label.caller, label.reported, at)
    track = track.take_complaint(label.caller, record.placed_at, at, leave_one_out.find_alone(roll))
    return replace(watch, roll=roll, complaints=track), note


def _of_another_metric(watch: Watch, metric: str | None) -> Watch:
    """The watch without the labels of the metric that it went by before, if any, and what was set for these."""
    if watch.metric is None:
        return replace(watch, metric=metric)
    fresh, holdout = start(watch.version, watch.task, watch.epoch), pair_signal.start(watch.version, watch.stack.digest)
    return replace(
        watch,
        metric=metric,
        reviewed=fresh.reviewed,
        feedback=fresh.feedback,
        holdout=holdout,
        classes={},
        outdated=tuple(sorted([name for name in watch.anew if is_of_feedback_metric(name)])),
    )


# ---- time --------------------------------------------------------------------------------------------


def tick(watch: Watch, at: float) -> Watch:
    """The watch at a later moment at which nothing came. Asked more or less often, the same comes of it."""
    if watch.complaints is None:
        return watch
    track = watch.complaints.tick(at)
    return watch if track is watch.complaints else replace(watch, complaints=track)
