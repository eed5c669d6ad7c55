"""A signal of labels: its baseline, the guarded detector against that, and the reverse test.

Without a baseline the signal claims nothing. An admin's or the gate's baseline holds at once, and another version's as
soon as that has enough labels. Else the signal's own first labels become the baseline, but none while the version is
degraded. The reverse test would compare with the degraded state, and find a false recovery.

A degraded version is compared with the rate half-way between its baseline and its error then. The reverse test has to
refute that the error is still at least so high (`guards.py` with side `below`). The error then is the lower bound of
the labels since the likeliest change, because that is chosen where errors are most frequent. If a degraded version gets
another baseline, or its first, the reverse test begins with the next label. The test sees only labels of requests from
after the verdict: once traffic is shifted, late praise of earlier requests would show a recovery.

Labels depend on each other, so detectors weigh them (`dependence.py`). Six kinds of evidence are a doubt instead of an
alarm: it rests on one giver, or on one session; less than a day was seen, and the errors may be those of a bad hour;
days differ so much that some bad ones may explain it; the present reviewers are stricter than the earlier ones; or no
label shows fewer errors before, so that the evaluation's labellers may differ from the present ones. A doubt makes the
version suspect at most. An alarm from the first day is judged again after it.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math
from typing import Any

from msgspec.structs import replace

from monitoring import intervals
from monitoring.ids import name_rater
from monitoring.quality.detectors import (
    dependence,
    guards,
    leave_one_out,
    recent_values,
    recoveries,
    reviewers_mix,
    rising_errors,
    sessions,
)
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.dependence import Dependence
from monitoring.quality.detectors.guards import Guarded, Shares
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.recent_values import FadedSums
from monitoring.quality.detectors.reviewers_mix import ReviewersMix
from monitoring.quality.detectors.rising_errors import BASELINE_MIN, RateDetector, find_threshold
from monitoring.quality.detectors.sessions import AlikeMarks, Likeness, Worst
from monitoring.quality.signals import own_baseline
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_evidence import may_teach, observe_label
from monitoring.quality.signals.labelled import ALPHA, STEP_UP_MIN, BaselinedSignal, ReportTerms, begin, describe
from monitoring.quality.signals.own_baseline import Parts
from monitoring.quality.verdicts.quality import Doubt

BASELINE_MAX = 1.0 - BASELINE_MIN
DOUBT_CONFIDENCE = 0.999
"""The confidence of the lower bound that must refute a doubt: a doubtful alarm is tested after many labels."""
BAD_HOUR_POINTS, OWN_BAD_HOUR_POINTS = 0.05, 0.1
"""A bad hour has up to twice the baseline's errors, but at most the first number of points more. Over a baseline that
was learned within a day it may have the second number of points more, at any baseline."""
BAD_HOUR_COMES_SECONDS = 4 * 3600.0
"""A bad hour that did not begin with the first labels develops within this time, and not at once."""
LABELLERS_POINTS = 0.1
"""The greatest difference between labellers, in points."""
FIRST_LABELS = 50
"""A change within this number of labels began with the first ones."""
RISE_CONFIDENCE = 0.975
"""The confidence of the bounds that show more errors after a change than before it."""
SETTLED_LOG = math.log(20.0)
"""The logarithm of evidence below which there is no hint at a degradation, or at a recovery."""
FIRST_CONFIDENCE = 0.995
"""The confidence of the error that a reverse test begins with: its labels are few, and selected for errors."""
MOVED_EACH = 25
"""The number of labels between moves of the reverse test's bound."""
PART_MIN = 0.5
"""Labels with a smaller total weight count as none."""


class LabelSignal(BaselinedSignal, frozen=True, kw_only=True):
    """The state of a signal of labels.

    `labels` and `wrong` count all labels. `steady` and `steady_wrong` are the weight and the badness of labels that may
    become another version's baseline: they may teach one (`may_teach`), and came while the version was neither degraded
    nor doubted. `first` and `first_wrong` are those of the labels for its own baseline, which takes `wanted`. `firsts`
    and `steadies` have both by groups of callers. `shares` has its raters while it has no detector. `by_caller` is each
    group's part of `recent`, `dependence` the clusters of its labels, `likeness` their sessions. Five fields were noted
    when the evidence was largest. `shows_rise`: labels before the change had fewer errors (None: not known yet, as in
    states of earlier releases). `times_stronger`: the factor by which evidence had to be stronger, since days differ.
    `one_session`: the evidence rested on `worst`, the worst session since the change. `stricter`: the multiple of
    earlier errors that its reviewers would see, and `part_left` the part of the evidence that this does not explain.
    `alike_marks` are the likeness of a session's labels over time, `mix` its reviewers. `reverse_bound` is the bound
    with which its reverse test last began.
    """

    wanted: int
    salt: str
    labels: int = 0
    steady: float = 0.0
    steady_wrong: float = 0.0
    first: float = 0.0
    first_wrong: float = 0.0
    firsts: Parts = ()
    steadies: Parts = ()
    guard: Guarded | None = None
    reverse: Guarded | None = None
    by_caller: tuple[FadedSums, ...] = ()
    shares: Shares | None = None
    dependence: Dependence = Dependence()
    likeness: Likeness = Likeness()
    shows_rise: bool | None = None
    reverse_bound: float = 0.0
    times_stronger: float = 1.0
    worst: Worst = Worst()
    one_session: bool = False
    alike_marks: AlikeMarks = ()
    mix: ReviewersMix = ReviewersMix()
    stricter: float = 1.0
    part_left: float = 1.0

    @property
    def count(self) -> int:
        """The number of its labels."""
        return self.labels

    @property
    def dispersion(self) -> float:
        """The number of labels that count as one, because of clusters."""
        return dependence.find_dispersion(self.dependence)

    @property
    def has_rhythm(self) -> bool:
        """Return whether its errors follow the time of day."""
        return self.dependence.has_rhythm

    @property
    def detectors(self) -> LeaveOneOut[RateDetector] | None:
        """Its detectors; None without a baseline."""
        return self.guard.detectors if self.guard is not None else None

    @property
    def reverse_detectors(self) -> LeaveOneOut[RateDetector] | None:
        """The detectors of its reverse test; None without one."""
        return self.reverse.detectors if self.reverse is not None else None

    @property
    def changed_after(self) -> int:
        """The number of labels after which the change most likely began."""
        assert self.guard is not None, "it has a detector"
        return self.begun + guards.find_change(self.guard)

    def log_e(self) -> float:
        """The logarithm of the evidence now, whichever caller or rater is left out."""
        assert self.guard is not None, "it has a detector"
        return guards.log_e(self.guard)

    def hold_against(self, baseline: Baseline) -> LabelSignal:
        """Compare it with this baseline from now on; the same object if it is already."""
        if self.baseline == baseline:
            return self
        upper = min(BASELINE_MAX, max(BASELINE_MIN, baseline.upper))
        if self.guard is not None:
            guard = guards.restart(self.guard, upper)
        else:
            guard = guards.start_knowing(upper, self.salt, self.shares or guards.start_shares(self.salt))
        return begin(replace(self, baseline=baseline, guard=guard, shares=None))

    def release(self) -> LabelSignal:
        """Drop a baseline that was set: the signal goes on to learn its own."""
        if self.guard is None:
            return self
        shares = Shares(raters=self.guard.raters, labels=self.guard.labels, heavy=self.guard.heavy)
        return begin(replace(self, baseline=None, guard=None, shares=shares))

    def take(
        self,
        label: Label,
        at: float,
        roll: GiverRoll,
        is_degraded: bool,
        *,
        predates_restart: bool = False,
        has_strong_evidence: bool = False,
        predates_test: bool = False,
    ) -> LabelSignal:
        """The signal after a label at `at` (Unix seconds). `roll` knows which callers use the version.

        `predates_restart`: its request came before detectors last began again. It is counted, but no detector sees it.
        `predates_test`: its request came too early to show a recovery. `has_strong_evidence`: the version has it now,
        so the label is in no other version's baseline.
        """
        own = None if label.trusted else leave_one_out.get_group(roll, label.caller)
        if predates_restart:
            late = self._with_count(label.badness, own, at)
            return replace(late, dependence=dependence.pass_over(self.dependence, at))
        signal = self.begin_reverse_test(at) if is_degraded and self.reverse is None else self
        bad, counts = label.badness, may_teach(label, roll) and not is_degraded
        taught = label.weight if counts and not has_strong_evidence else 0.0
        guard, seen = signal.guard, signal.likeness
        if guard is not None:
            guard = observe_label(guard, label, at, roll, dependence.find_terms(signal.dependence, at), seen)
            if label.session is not None:
                worst = sessions.follow_worst(signal.worst, bad, label.session, guard.detectors.whole)
                signal = replace(signal, worst=worst)
        reverse = signal.reverse
        if reverse is not None and not predates_test:
            settled = dependence.forget_slip(signal.dependence)
            reverse = observe_label(reverse, label, at, roll, dependence.find_reverse_terms(settled, at), seen)
            reverse = signal._move_half_way(reverse)
        before = signal
        likeness = signal._liken(label, own, is_degraded)
        signal = replace(
            signal._with_count(bad, own, at),
            steady=signal.steady + taught,
            steady_wrong=signal.steady_wrong + taught * bad,
            steadies=own_baseline.add_part(signal.steadies, own, taught, taught * bad),
            begun=signal.begun,
            apart=signal.apart + (reverse is not None),
            guard=guard,
            reverse=reverse,
            shares=signal._shares_after(label, at, roll) if guard is None else None,
            dependence=signal._depend(label, own, at, is_degraded),
            likeness=likeness,
            alike_marks=sessions.add_mark(signal.alike_marks, signal.labels + 1, likeness),
        )
        if label.trusted and not is_degraded:
            change = signal.changed_after if guard is not None else signal.labels
            giver = name_rater(label.caller, label.rater)
            signal = replace(signal, mix=reviewers_mix.add_label(signal.mix, giver, bad, signal.labels, change))
        if signal._is_at_its_largest:
            signal = signal._note_largest()
        if counts and before._is_learning:
            signal = signal._learn(label, own, at)
        return signal._follow_day(before, at, is_degraded)

    def make_baseline(self, at: float, by: str, source: str) -> Baseline | None:
        """The baseline from these labels for another version; None without any."""
        if not self.steady:
            return None
        return own_baseline.measure_least(
            "previous", self.steady_wrong, self.steady, self.steadies, self.dependence, at, by, source
        )

    def begin_reverse_test(self, since: float = 0.0) -> LabelSignal:
        """Begin the reverse test, since the version is degraded."""
        if self.guard is None or self.baseline is None:
            return self
        wrong, of = recent_values.sum_since(self.marks, self.changed_after) or (0.0, 0)
        error = intervals.find_lower_bound(min(of, max(0.0, wrong)), of, FIRST_CONFIDENCE) if of else 0.0
        left = self.recoveries
        if self.reverse is None:
            left = recoveries.count_left(left, self.observed - self.apart, since - self.recovered_at)
        bound = self._find_half_way(error)
        reverse = guards.restart(self.guard, bound, "below")
        return replace(self, reverse=reverse, reverse_bound=bound, recoveries=left)

    def _find_half_way(self, error: float) -> float:
        """The bound of the reverse test for a version with this error."""
        assert self.guard is not None, "it has a detector"
        bound = self.guard.detectors.whole.baseline
        return min(BASELINE_MAX, (bound + max(bound + STEP_UP_MIN, error)) / 2)

    def _move_half_way(self, reverse: Guarded) -> Guarded:
        """The reverse test. Its bound follows the error that its labels show, until they hint at a recovery.

        It never falls below its first value, so right labels of one caller don't lower it.
        """
        if reverse.detectors.whole.observed % MOVED_EACH or reverse.detectors.log_now >= SETTLED_LOG:
            return reverse
        return guards.move_baseline(
            reverse, max(self.reverse_bound, self._find_half_way(guards.find_least_error(reverse)))
        )

    def count_apart(self) -> float:
        """The number of labels that distinguish its baseline from the bound of the reverse test."""
        if self.guard is None or self.reverse is None:
            return 0.0
        bound = self.reverse.detectors.whole.baseline
        return recoveries.count_apart(bound * (1.0 - bound), bound - self.guard.detectors.whole.baseline)

    def restart(self, at: float = 0.0) -> LabelSignal:
        """Begin the detector again at its baseline, since the version is no longer degraded.

        A recovery counts if its own reverse test has found it.
        """
        if self.guard is None:
            return self
        guard = guards.restart(self.guard, self.guard.detectors.whole.baseline)
        restarted = replace(begin(self), guard=guard, recoveries=self.recoveries)
        if not self.has_recovered:
            return restarted
        return replace(
            restarted,
            recoveries=recoveries.add_recovery(self.recoveries),
            recovered_at=at,
            dependence=dependence.forget_slip(self.dependence),
        )

    def end_reverse_test(self, at: float = 0.0) -> LabelSignal:
        """End the reverse test; the evidence remains."""
        return replace(self, reverse=None, reverse_bound=0.0)

    def find_strictness(self) -> float:
        """The errors that its present reviewers would see for each one of the earlier reviewers."""
        return self.stricter

    def find_doubt(self, labels_min: int, labels: float, alpha: float) -> Doubt | None:
        """The doubt that stops an alarm; None without a doubt, or without evidence for an alarm."""
        if self.guard is None or self.observed < labels_min:
            return None
        if guards.rests_on_most(self.guard, labels, alpha, dependence.find_relief(self.dependence)):
            return "one_giver"
        if not leave_one_out.has_alarmed(self.guard.detectors, labels, alpha):
            return None
        most, enough = self.guard.detectors.log_max, find_threshold(labels, alpha)
        if most < enough * self.times_stronger:
            return "days_differ"
        if self.one_session:
            return "one_session"
        return "reviewers" if most * self.part_left < enough else self._find_early_doubt()

    def _find_early_doubt(self) -> Doubt | None:
        """The doubt about evidence from the first day, or from the first labels on."""
        assert self.guard is not None, "it has a detector"
        rises = self.changed_after > FIRST_LABELS if self.shows_rise is None else self.shows_rise
        began_at_first = self.baseline is not None and self.baseline.kind == "gate" and not rises
        if not (self._is_first_day or began_at_first):
            return None
        bound = self.guard.detectors.whole.baseline
        more = self._find_least_error() - bound
        if self._is_first_day and more <= self._find_bad_hour(bound):
            return "first_day"
        return "labellers" if began_at_first and more <= LABELLERS_POINTS else None

    def rests_on_one(self, labels: float, alpha: float) -> bool:
        """Return whether all labels would alarm, but not without one caller or rater alone."""
        relief = dependence.find_relief(self.dependence)
        return self.guard is not None and guards.rests_on_one(self.guard, labels, alpha, relief)

    def sums_since(self, total: float, of: int) -> FadedSums:
        """The sums of the newest `of` labels, with this total badness."""
        return FadedSums(float(of), float(of), max(0.0, total), total)

    def find_interval(self, recent: FadedSums) -> tuple[float, float] | None:
        """The 95% interval of its recent errors."""
        return recent_values.find_share_interval(recent)

    def high_without_one(self, roll: GiverRoll, high: float | None) -> float | None:
        """The greatest upper end of the interval of its recent errors, whichever caller may be left out."""
        if not self.recent.weight:
            return None
        believed = set(leave_one_out.find_believed(roll))
        parts = [part for place, part in enumerate(self.by_caller) if place not in believed and part.weight >= PART_MIN]
        left = [self.recent, *[recent_values.take_away(self.recent, part) for part in parts]]
        intervals = [
            recent_values.find_share_interval(sums) if sums.weight >= PART_MIN else (0.0, 1.0) for sums in left
        ]
        return max([interval[1] for interval in intervals if interval is not None], default=None)

    def describe_baseline(self, terms: ReportTerms) -> dict[str, Any]:
        """The baseline, as JSON, with the doubts about its labels."""
        described = describe(self.baseline, self.first, self.wanted)
        if self.guard is not None and self.rests_on_one(terms.threshold * ALPHA, ALPHA):
            described["rests_on_one"] = True
        if terms.is_outdated:
            described["set_for_another_metric"] = True
        return described

    @property
    def _is_first_day(self) -> bool:
        """Return whether all of its labels came within less than a day."""
        state = self.dependence
        return state.is_first_day and state.whole.labels + state.passed == self.labels

    @property
    def _is_learning(self) -> bool:
        """Return whether labels go into its own baseline: the first ones, and all others of the first day."""
        return self.baseline is None or (self.baseline.kind == "own" and self._is_first_day)

    @property
    def _is_at_its_largest(self) -> bool:
        """Return whether its evidence is strong, and has never been larger."""
        if self.guard is None or not self.has_strong_evidence:
            return False
        return self.guard.detectors.log_now >= self.guard.detectors.log_max

    def _note_largest(self) -> LabelSignal:
        """The signal, with the facts about its evidence noted, which is the largest so far."""
        assert self.guard is not None, "it has a detector"
        whole, stricter = self.guard.detectors.whole, reviewers_mix.find_times(self.mix)
        return replace(
            self,
            shows_rise=self._find_rise(),
            times_stronger=dependence.find_times_stronger(self.dependence),
            one_session=sessions.rests_on_one(self.worst, self.alike_marks, self.changed_after, whole),
            stricter=stricter,
            part_left=reviewers_mix.find_part_left(whole, stricter),
        )

    def _find_rise(self) -> bool:
        """Return whether the labels up to the largest evidence show a rise."""
        assert self.guard is not None, "it has a detector"
        if self.changed_after <= FIRST_LABELS:
            return False
        whole, (bad, of) = self.guard.detectors.whole, rising_errors.sum_since_change(self.guard.detectors.whole)
        before, bad_before = max(0.0, whole.weight - of), max(0.0, whole.total - bad)
        if self.begun > FIRST_LABELS or before < PART_MIN:
            return True
        least = intervals.find_lower_bound(min(bad, of), of, RISE_CONFIDENCE) if of else 0.0
        return least > intervals.find_upper_bound(min(bad_before, before), before, RISE_CONFIDENCE)

    def _find_bad_hour(self, bound: float) -> float:
        """The greatest rise in errors that a bad hour of the first day may explain."""
        is_own = self.baseline is not None and self.baseline.kind == "own"
        points = OWN_BAD_HOUR_POINTS if is_own else min(bound, BAD_HOUR_POINTS)
        if not is_own and self.changed_after <= FIRST_LABELS:
            return points
        elapsed = (self.rate.at if self.rate is not None else 0.0) - (self.dependence.began_at or 0.0)
        return points * min(1.0, elapsed / BAD_HOUR_COMES_SECONDS)

    def _find_least_error(self) -> float:
        """The lower bound of the error since the change, or of the recent error, if that is greater."""
        assert self.guard is not None, "it has a detector"
        since, lately = rising_errors.sum_since_change(self.guard.detectors.whole), self.recent
        parts = [since, (max(0.0, lately.total), lately.weight)]
        return max(intervals.find_lower_bound(min(bad, of), of, DOUBT_CONFIDENCE) if of else 0.0 for bad, of in parts)

    def _depend(self, label: Label, own: int | None, at: float, is_degraded: bool) -> Dependence:
        if label.weight < 1.0 or is_degraded:
            return dependence.pass_over(self.dependence, at)
        places = () if own is None else (own,)
        observed = dependence.observe(self.dependence, label.badness, at, places, guards.GROUPS)
        is_settled = self.guard is None or self.guard.detectors.log_now < SETTLED_LOG
        return dependence.settle(observed) if is_settled else observed

    def _liken(self, label: Label, own: int | None, is_degraded: bool) -> Likeness:
        if is_degraded or label.session is None:
            return self.likeness
        places = () if own is None else (own,)
        return sessions.observe(self.likeness, label.badness, label.session, places, guards.GROUPS)

    def _follow_day(self, before: LabelSignal, at: float, is_degraded: bool) -> LabelSignal:
        """The signal after a label: `before` is the one before it. The first day may have ended, or a rhythm shown."""
        signal, is_new = self, self.dependence.has_rhythm and not before.dependence.had_rhythm
        ends = before._is_first_day and not self._is_first_day
        if ends and self.guard is not None:
            detectors = replace(self.guard.detectors, log_max=self.guard.detectors.log_now)
            signal = replace(self, guard=replace(self.guard, detectors=detectors))
            if before._is_learning and before.baseline is not None and not is_degraded:
                lately = recent_values.find_share_interval(self.recent)
                if lately is not None and lately[0] > before.baseline.upper:  # no bad hour: it has lasted for a day
                    return replace(signal, dependence=dependence.forget_rhythm(self.dependence))
                return signal.hold_against(signal._measure_first(at))
        # Evidence of a lasting degradation is kept: the degradation itself may have made the rhythm.
        restarts = is_new and not is_degraded and self.reverse is None and (ends or not signal.has_strong_evidence)
        return signal.restart(at) if restarts else signal

    def _with_count(self, bad: float, own: int | None, at: float) -> LabelSignal:
        """The signal with a label that no detector has seen."""
        parts = self.by_caller or (() if own is None else (FadedSums(),) * guards.GROUPS)
        count, wrong, rate = self.labels + 1, self.wrong + bad, recent_values.add_event(self.rate, at)
        return replace(
            self,
            labels=count,
            wrong=wrong,
            begun=self.begun + 1,
            recent=recent_values.add_value(self.recent, bad),
            by_caller=recent_values.add_value_of(parts, own, bad),
            rate=rate,
            busiest=recent_values.find_busiest(self.busiest, rate, at),
            marks=recent_values.add_mark(self.marks, count, at, wrong),
        )

    def _shares_after(self, label: Label, at: float, roll: GiverRoll) -> Shares | None:
        """The shares of its raters after a label that no detector has seen."""
        if label.trusted:
            return self.shares
        shares = self.shares or guards.start_shares(self.salt)
        shares = replace(shares, raters=leave_one_out.count_kind(shares.raters, roll.reported))
        return guards.add_label(shares, label.caller, label.rater, label.reported, at=at)[0]

    def _learn(self, label: Label, own: int | None, at: float) -> LabelSignal:
        """The signal after one of the first labels. The last one wanted completes its baseline."""
        bad = label.weight * label.badness
        first, wrong = self.first + label.weight, self.first_wrong + bad
        firsts = own_baseline.add_part(self.firsts, own, label.weight, bad)
        signal = replace(self, first=first, first_wrong=wrong, firsts=firsts)
        if self.baseline is not None or first < self.wanted:
            return signal
        return signal.hold_against(signal._measure_first(at))

    def _measure_first(self, at: float) -> Baseline:
        parts = (self.first_wrong, self.first, self.firsts, self.dependence)
        return own_baseline.measure_least("own", *parts, at, "monitor", "its first labels")


def start(wanted: int, salt: str) -> LabelSignal:
    """A signal without labels. Without another baseline its own first `wanted` labels make one."""
    return LabelSignal(wanted=wanted, salt=salt)
