"""Pairs in a version's watch: the effects of a shadow, and of each later opinion on a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from monitoring.quality.detectors import cost_saving, leave_one_out, recent_values
from monitoring.quality.detectors.recent_values import FadedSums
from monitoring.quality.signals import arm_bets, arms, fingerprints, noted_pairs, pair_judge
from monitoring.quality.signals.arm_bets import ArmBets
from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.entries import GENERAL, Pair, RecordEntry, get_sides
from monitoring.quality.signals.noted_pairs import NotedPair, Right
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.version_watch import Watch


def take_pair(
    watch: Watch, shadow: RecordEntry, note: Note, at: float, previous_version: str | None = None
) -> tuple[Watch, Note]:
    """The watch and the note after a shadow whose pair is in the note.

    `previous_version` is the task's previous version: pairs with other versions are ignored.
    """
    if shadow.pair is None:
        return watch, note
    whose = get_sides(shadow)
    if watch.version == (whose[1] if whose[1] != GENERAL else whose[0]):
        watch = _with_cost(watch, shadow.cost_usd, at)
    watch = _with_judge(watch, shadow.pair)
    if whose[0] == GENERAL:
        watch = add_fingerprint(watch, shadow.fingerprint, at, is_shadow=True)
    index = next((n for n, pair in enumerate(note.pairs) if (pair.shadow, pair.served) == whose), None)
    noted = note.pairs[index] if index is not None else None
    arm = _arm(watch, noted, previous_version) if noted is not None else None
    if index is None or noted is None or arm is None or watch.version in noted.counted:
        return watch, note
    if not fingerprints.is_compared_with(watch.fingerprint, noted.fingerprint):
        return watch, note
    says_right = noted_pairs.get_outright(noted, watch.version) is not None
    arm = arms.add_pair(arm, at, noted_pairs.get_guesses(noted, watch.version), says_right)
    noted = replace(noted, counted={**noted.counted, watch.version: arm.blocks[-1].begins})
    watch = _with_arm(watch, arm)
    if watch.course.came_degraded(shadow.placed_at):
        watch = _with_bets(watch, arm.other, arm_bets.add_pair)
    return use_opinions(watch, note, index, noted, at, shadow.placed_at)


def use_opinions(
    watch: Watch, note: Note, index: int, noted: NotedPair, at: float, asked_at: float
) -> tuple[Watch, Note]:
    """Watch and note after all opinions on a pair: they enter its arm's sums, the test, and a bet."""
    right_digest = note.right.get(noted.judge) if noted.judge is not None else None
    right = noted_pairs.judge_by_labels(noted, watch.version, None if noted.on_trial else note.bad, right_digest)
    watch, noted = _add_label(watch, noted, right, note.givers)
    watch, noted = _test(watch, noted, right_digest, note.givers, at, asked_at)
    watch, noted = _bet(watch, noted, right, note.givers, asked_at)
    return watch, replace(note, pairs=(*note.pairs[:index], noted, *note.pairs[index + 1 :]))


def _add_label(watch: Watch, noted: NotedPair, right: Right | None, givers: tuple[str, ...]) -> tuple[Watch, NotedPair]:
    """Watch and pair after a person's label: it enters the sums of the pair's arm, and is compared with the judge's."""
    version, arm = watch.version, _arm(watch, noted, None)
    begins = noted.counted.get(version)
    counted_versions = noted.labelled if not givers else (*noted.labelled, *noted.told)
    if right is None or arm is None or begins is None or version in counted_versions:
        return watch, noted
    watch = _with_arm(watch, arms.add_label(arm, begins, right, noted_pairs.get_guesses(noted, version), givers))
    if version not in noted.told and right[0] is not None:
        watch = _with_agreement(watch, noted, right[0])
    if givers:
        return watch, replace(noted, told=(*noted.told, version))
    return watch, replace(noted, labelled=(*noted.labelled, version))


def _test(
    watch: Watch, noted: NotedPair, right_digest: str | None, givers: tuple[str, ...], at: float, asked_at: float
) -> tuple[Watch, NotedPair]:
    """Watch and pair after the test against general has seen it.

    It sees only pairs with both answers judged: with one label alone, the difference depends on which arm answered.
    """
    version, course = watch.version, watch.course
    by_demonstration = noted_pairs.judge_by_demonstration(noted, version, right_digest)
    judged_both = by_demonstration if by_demonstration is not None else noted_pairs.get_outright(noted, version)
    is_new = version not in noted.tested and not course.predates_restart(asked_at)
    if judged_both is None or not is_new or _other(watch, noted) != GENERAL:
        return watch, noted
    told_by = givers if by_demonstration is not None else ()
    flags = {"is_degraded": course.is_degraded, "predates_test": course.predates_test(asked_at)}
    wrong, other_wrong = 1.0 - judged_both[0], 1.0 - judged_both[1]
    shadow = watch.shadow.take_pair(wrong, other_wrong, told_by, at, leave_one_out.find_alone(watch.roll), **flags)
    return replace(watch, shadow=shadow), replace(noted, tested=(*noted.tested, version))


def _bet(
    watch: Watch, noted: NotedPair, right: Right | None, givers: tuple[str, ...], asked_at: float
) -> tuple[Watch, NotedPair]:
    """Watch and pair after a bet on its first opinion: a person's (`right`), else a judge's on both answers."""
    version, opinion = watch.version, right or noted_pairs.get_outright(noted, watch.version)
    is_new = version in noted.counted and version not in noted.bet_on
    if opinion is None or not (is_new and watch.course.came_degraded(asked_at)):
        return watch, noted
    difference, told_by = arms.find_differences(opinion)[0], () if right is None else givers
    watch = _with_bets(
        watch, _other(watch, noted), lambda bets: arm_bets.add_difference(bets, difference, told_by, watch.roll)
    )
    return watch, replace(noted, bet_on=(*noted.bet_on, version))


def _with_bets(watch: Watch, other: str, step: Callable[[ArmBets], ArmBets]) -> Watch:
    """The watch after a step of its bets on another arm."""
    against = watch.fingerprint.digest if other == GENERAL else None
    bets = arm_bets.move(watch.bets, other, watch.course.since, against, watch.roll.groups, step)
    return replace(watch, bets=bets)


def add_fingerprint(watch: Watch, digest: str | None, at: float, is_shadow: bool = False) -> Watch:
    """The watch after one more answer of general: a shadow, or a caller's answer."""
    is_degraded = watch.course.is_degraded
    moved = fingerprints.add_answer(
        watch.fingerprint, digest, watch.shadow, watch.holdout, watch.general, at, is_shadow, is_degraded
    )
    return replace(watch, **moved) if moved else watch


def _with_cost(watch: Watch, usd: float | None, at: float) -> Watch:
    """The watch after a shadow that was requested for it, with the shadow's cost, if known."""
    moved: dict[str, Any] = {"shadows": watch.shadows + 1}
    if usd:
        moved |= {"shadow_usd": watch.shadow_usd + usd, "saving": cost_saving.add_shadow(watch.saving, at, usd)}
    return replace(watch, **moved)


def _with_judge(watch: Watch, pair: Pair) -> Watch:
    """The watch after a pair of this judge. The agreement of an earlier judge says nothing about it."""
    judge = pair_judge.add_pair(watch.judge, pair)
    if judge is watch.judge:
        return watch
    agreed = watch.agreed if pair_judge.is_judged_by(watch.judge, judge.judge, judge.digest) else FadedSums()
    return replace(watch, judge=judge, agreed=agreed)


def _with_agreement(watch: Watch, noted: NotedPair, right: float) -> Watch:
    """Compare the judge's opinion on the version's answer with a person's. Opinions of an earlier judge are ignored."""
    guessed = noted_pairs.get_guesses(noted, watch.version)
    if guessed is None or not pair_judge.is_judged_by(watch.judge, noted.judge, noted.judge_digest):
        return watch
    agrees = float((guessed[0] >= 0.5) == (right >= 0.5))
    return replace(watch, agreed=recent_values.add_value(watch.agreed, agrees))


def _other(watch: Watch, noted: NotedPair) -> str:
    """The name of the arm that a pair is with."""
    return noted.shadow if noted.served == watch.version else noted.served


def _arm(watch: Watch, noted: NotedPair, previous_version: str | None) -> Arm | None:
    """The arm that a pair is with: general, or the previous version; None for any other."""
    other = _other(watch, noted)
    if other == GENERAL:
        return watch.general
    if watch.previous_version is not None and watch.previous_version.other == other:
        return watch.previous_version
    return Arm(other=other) if other == previous_version else None


def _with_arm(watch: Watch, arm: Arm) -> Watch:
    if arm.other == GENERAL:
        return replace(watch, general=arm)
    return replace(watch, previous_version=arm)
