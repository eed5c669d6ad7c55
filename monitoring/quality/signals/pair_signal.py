"""A signal of pairs: the version's badness less another arm's on the same, or on concurrent, requests.

The reference is the mean difference of the first pairs, at its one-sided upper 95% bound. A specialist differs from a
general model from the first day on; only a growing difference counts. Once another build of general has taken over, the
reference is learned again (`fingerprints.py`). Pairs from a degraded time are not part of it: the degradation would be
the reference. Nobody moves the signal alone: each giver is left out in turn (`leave_one_out.py`), up to four
individually.

Nobody makes the reference alone, either. One giver can move a difference both ways: a reference that is too high hides
a degradation, and one that is too low makes a degradation of other callers' healthy pairs. So a detector without a
giver uses the reference without that giver's pairs. Each of these references is the least, whoever else is left out.
The bound of a reference without somebody is that of 90%. A false alarm comes more often only if all of them are below
the truth. That happens no more often than with one reference at 95%, in about 5% of cases.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from monitoring.intervals import Z_95
from monitoring.quality.detectors import dependence, estimates, leave_one_out, paired, recent_values, recoveries
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.dependence import Dependence
from monitoring.quality.detectors.estimates import Sums
from monitoring.quality.detectors.leave_one_out import OTHERS_MIN, GiverRoll, LeaveOneOut
from monitoring.quality.detectors.paired import PairedDetector
from monitoring.quality.detectors.recent_values import FadedSums
from monitoring.quality.signals.labelled import STEP_UP_MIN, BaselinedSignal, ReportTerms, begin, describe

FIRST_PAIRS = 100
TWO_SIDED, TWO_SIDED_WITHOUT = 0.9, 0.8
"""The confidences of two intervals. Their upper ends, at 95% and 90%, are the reference and one without a giver."""
GROUPS = 4
MARGIN_MAX = 0.9
WAITING_MAX = 4
"""A small number, so that labels from before an outage of feedback matter little."""


class First(msgspec.Struct, frozen=True, array_like=True):
    """The first pairs that rest on labels of these groups of givers."""

    givers: tuple[int, ...]
    sums: Sums


class DifferenceReference(NamedTuple):
    """A sum of differences, their number, and the upper bound of their mean."""

    wrong: float
    of: float
    upper: float


class PairSignal(BaselinedSignal, frozen=True, kw_only=True):
    """The state of a signal of pairs. `against` is the digest of the other arm (None: not known).

    `wrong` and `other_wrong` are the sums of badness of the version and of the other arm. `first` are the differences
    for its reference, `firsts` the same by givers; each detector leaves out one group of givers. `waiting` and
    `other_waiting` are labels and their givers that wait for a label of the other arm. `placed` and `other_placed` are
    the times of their requests. `dependence` has the clusters of its pairs.
    """

    givers: GiverRoll
    against: str | None = None
    pairs: int = 0
    other_wrong: float = 0.0
    first: Sums = Sums()
    firsts: tuple[First, ...] = ()
    detectors: LeaveOneOut[PairedDetector] | None = msgspec.field(default=None, name="guard")
    """None without a reference."""
    reverse: LeaveOneOut[PairedDetector] | None = None
    waiting: tuple[tuple[float, str], ...] = ()
    other_waiting: tuple[tuple[float, str], ...] = ()
    placed: tuple[float, ...] = ()
    other_placed: tuple[float, ...] = ()
    dependence: Dependence = Dependence()

    @property
    def dispersion(self) -> float:
        """The number of pairs that count as one, because of clusters."""
        return dependence.find_dispersion(self.dependence, dependence.PRIOR_PAIRS)

    @property
    def count(self) -> int:
        """The number of its pairs."""
        return self.pairs

    @property
    def reverse_detectors(self) -> LeaveOneOut[PairedDetector] | None:
        """The detectors of its reverse test; None without one."""
        return self.reverse

    @property
    def changed_after(self) -> int:
        """The number of pairs after which the change most likely began."""
        assert self.detectors is not None, "it has a detector"
        return self.begun + paired.find_change(self.detectors.whole)

    def log_e(self) -> float:
        """The logarithm of the evidence of all pairs now."""
        assert self.detectors is not None, "it has a detector"
        return paired.log_e(self.detectors.whole)

    def hold_against(self, baseline: Baseline) -> PairSignal:
        """Compare it with this difference from now on; the same object if it is already."""
        if self.baseline == baseline:
            return self
        detectors = leave_one_out.start(paired.start(_bound(baseline.upper)), GROUPS)
        return begin(replace(self, baseline=baseline, detectors=detectors))

    def release(self) -> PairSignal:
        """Drop a baseline that was set: the signal goes on to learn its own."""
        return begin(replace(self, baseline=None, detectors=None))

    def compare_with(self, digest: str | None) -> PairSignal:
        """Compare it with this arm from now on. With another arm it starts again, but keeps an admin's baseline."""
        if digest is None or digest == self.against:
            return self
        if self.against is None:
            return replace(self, against=digest)
        fresh = start(self.givers.salt, digest)
        baseline = self.baseline if self.baseline is not None and self.baseline.kind == "admin" else None
        return fresh.hold_against(baseline) if baseline is not None else fresh

    def take_pair(
        self,
        wrong: float,
        other_wrong: float,
        givers: tuple[str, ...],
        at: float,
        alone: str | None,
        *,
        is_degraded: bool = False,
        predates_test: bool = False,
    ) -> PairSignal:
        """The signal after a pair. `givers` are the callers who judged it, `alone` is from `leave_one_out.find_alone`.

        `predates_test`: its request came too early to show a recovery. The reverse test does not see it.
        """
        signal = self.begin_reverse_test(at) if is_degraded and self.reverse is None else self
        difference, count = wrong - other_wrong, signal.pairs + 1
        total = signal.wrong - signal.other_wrong + difference
        roll = _meet(signal.givers, givers)
        own = tuple(sorted({leave_one_out.get_group(roll, giver) for giver in givers}))
        believed = () if alone is None else (leave_one_out.get_group_of_digest(roll, alone),)
        exponent = dependence.find_exponent_of(signal.dispersion, dependence.CAUTION_OF_PAIRS)
        detectors = signal.detectors and _observe(signal.detectors, difference, exponent, own, believed)
        reverse = signal.reverse
        if reverse is not None and not predates_test:
            reverse = _observe(reverse, difference, exponent, own, believed)
        learned = signal.dependence
        if not is_degraded:
            learned = dependence.observe(learned, difference, at, own, GROUPS)
        rate = recent_values.add_event(signal.rate, at)
        signal = replace(
            signal,
            givers=roll,
            pairs=count,
            wrong=signal.wrong + wrong,
            other_wrong=signal.other_wrong + other_wrong,
            detectors=detectors,
            apart=signal.apart + (reverse is not None),
            reverse=reverse,
            recent=recent_values.add_value(signal.recent, difference),
            rate=rate,
            busiest=recent_values.find_busiest(signal.busiest, rate, at),
            marks=recent_values.add_mark(signal.marks, count, at, total),
            dependence=learned,
        )
        return signal._learn(difference, own, at) if detectors is None and not is_degraded else signal

    def take_label(
        self,
        own: bool,
        bad: float,
        giver: str,
        at: float,
        alone: str | None,
        *,
        is_degraded: bool = False,
        placed_at: float = 0.0,
        tested_from: float = 0.0,
    ) -> PairSignal:
        """The signal after a label of either arm, which waits for one of the other. Of too many the oldest is dropped.

        `placed_at` is the time of its request. The older one of a pair counts.
        """
        others = self.other_waiting if own else self.waiting
        if others:
            (other, other_giver), other_placed_at = others[0], self._placed(not own)[0]
            signal = self._with_waiting(not own, others[1:], self._placed(not own)[1:])
            wrong, other_wrong = (bad, other) if own else (other, bad)
            predates_test = min(placed_at, other_placed_at) < tested_from
            return signal.take_pair(
                wrong,
                other_wrong,
                (giver, other_giver),
                at,
                alone,
                is_degraded=is_degraded,
                predates_test=predates_test,
            )
        waiting = (*(self.waiting if own else self.other_waiting), (bad, giver))
        placed = (*self._placed(own), placed_at)
        return self._with_waiting(own, waiting[-WAITING_MAX:], placed[-WAITING_MAX:])

    def begin_reverse_test(self, since: float = 0.0) -> PairSignal:
        """Begin the reverse test, since the version is degraded."""
        if self.detectors is None:
            return self
        margin, since_then = self.detectors.whole.margin, recent_values.sum_since(self.marks, self.changed_after)
        error = margin + STEP_UP_MIN
        if since_then is not None:
            total, of = since_then
            error = max(error, total / of - Z_95 * math.sqrt(self._spread() / of))
        reverse = leave_one_out.start(paired.start(_bound((margin + error) / 2), "below"), GROUPS)
        left = self.recoveries
        if self.reverse is None:
            left = recoveries.count_left(left, self.observed - self.apart, since - self.recovered_at)
        return replace(self, reverse=reverse, recoveries=left)

    def count_apart(self) -> float:
        """The number of pairs that distinguish its margin from that of the reverse test."""
        if self.detectors is None or self.reverse is None or not self.recent.weight:
            return 0.0
        return recoveries.count_apart(self._spread(), self.reverse.whole.margin - self.detectors.whole.margin)

    def restart(self, at: float = 0.0) -> PairSignal:
        """Begin the detectors again at their margins, and drop the labels that wait.

        A recovery counts if its own reverse test has found it.
        """
        signal = replace(self, waiting=(), other_waiting=(), placed=(), other_placed=())
        if self.detectors is None:
            return signal
        without = tuple([left and paired.start(left.margin) for left in self.detectors.without])
        detectors = LeaveOneOut(whole=paired.start(self.detectors.whole.margin), without=without)
        count, recovered_at = self.recoveries, self.recovered_at
        if self.has_recovered:
            count, recovered_at = recoveries.add_recovery(count), at
        return replace(begin(signal), detectors=detectors, recoveries=count, recovered_at=recovered_at)

    def sums_since(self, total: float, of: int) -> FadedSums:
        """The sums of the newest `of` differences, with this total."""
        return FadedSums(float(of), float(of), total, of * (self._spread() + (total / of) ** 2))

    def find_interval(self, recent: FadedSums) -> tuple[float, float] | None:
        """The 95% interval of its recent differences."""
        return recent_values.find_mean_interval(recent)

    def high_without_one(self, roll: GiverRoll, high: float | None) -> float | None:
        """The upper end of the interval, if no giver could be left out: all labels are from a judge, reviewers, or the
        version's only caller. Else None."""
        return high if {*self.givers.known} <= {leave_one_out.find_alone(roll)} else None

    def describe_baseline(self, terms: ReportTerms) -> dict[str, Any]:
        """The baseline, as JSON: a difference, and the other arm."""
        described = describe(self.baseline, self.first.labelled, FIRST_PAIRS)
        return {**described, "difference": True, "other_wrong": self.other_wrong, "against": self.against}

    def _learn(self, difference: float, own: tuple[int, ...], at: float) -> PairSignal:
        """The signal after one of the first pairs. The last of them completes its references."""
        by_givers = {first.givers: first.sums for first in self.firsts}
        by_givers[own] = estimates.add_label(by_givers.get(own, Sums()), difference)
        signal = replace(
            self,
            first=estimates.add_label(self.first, difference),
            firsts=tuple([First(*row) for row in sorted(by_givers.items())]),
        )
        if signal.first.labelled < FIRST_PAIRS:
            return signal
        reference = find_reference(signal.firsts, (), signal.dispersion)
        assert reference is not None, "there are enough pairs"
        wrong, of, upper = reference
        baseline = Baseline(kind="own", wrong=wrong, of=of, upper=upper, at=at, by="monitor", source="its first pairs")
        signal = signal.hold_against(baseline)
        assert signal.detectors is not None, "it has just begun"
        left = [find_reference(signal.firsts, (place,), signal.dispersion) for place in range(GROUPS)]
        without = tuple([reference and paired.start(_bound(reference.upper)) for reference in left])
        return replace(signal, detectors=replace(signal.detectors, without=without))

    def _placed(self, own: bool) -> tuple[float, ...]:
        """The times of the requests whose labels wait: 0 if another release did not keep them."""
        waiting, placed = (self.waiting, self.placed) if own else (self.other_waiting, self.other_placed)
        return placed if len(placed) == len(waiting) else (0.0,) * len(waiting)

    def _with_waiting(self, own: bool, waiting: tuple[tuple[float, str], ...], placed: tuple[float, ...]) -> PairSignal:
        if own:
            return replace(self, waiting=waiting, placed=placed)
        return replace(self, other_waiting=waiting, other_placed=placed)

    def _spread(self) -> float:
        """The variance of its recent differences."""
        return max(
            0.0, self.recent.total_squares / self.recent.weight - (recent_values.find_mean(self.recent) or 0.0) ** 2
        )


def start(salt: str, against: str | None = None) -> PairSignal:
    """A signal without pairs; `salt` is the version."""
    return PairSignal(givers=GiverRoll(salt=salt, groups=GROUPS), against=against)


def find_reference(
    firsts: tuple[First, ...], left_out: tuple[int, ...], dispersion: float
) -> DifferenceReference | None:
    """The reference from the first pairs without these givers: the least one, whoever else is left out.

    Pairs in clusters count as fewer. None if too few pairs remain. Another giver without whom too few remain is not
    left out.
    """
    two_sided = TWO_SIDED_WITHOUT if left_out else TWO_SIDED
    others = ((), *[(place,) for place in range(GROUPS)])
    references = [_measure(firsts, {*left_out, *more}, two_sided, dispersion) for more in others]
    there = [reference for reference in references if reference is not None]
    return min(there, key=lambda reference: reference.upper) if references[0] is not None else None


def _measure(
    firsts: tuple[First, ...], left_out: set[int], two_sided: float, dispersion: float
) -> DifferenceReference | None:
    """The mean difference of the first pairs without these givers, with its bound; None if too few remain."""
    sums = [first.sums for first in firsts if left_out.isdisjoint(first.givers)]
    of = sum([part.labelled for part in sums])
    if of < OTHERS_MIN * sum([first.sums.labelled for first in firsts]):
        return None
    wrong = math.fsum([part.y for part in sums])
    yy, counted = math.fsum([part.yy for part in sums]), round(of / dispersion)
    as_fewer = Sums(labelled=counted, y=wrong * counted / of, yy=yy * counted / of)
    mean = estimates.estimate_difference(as_fewer, two_sided)
    return None if mean is None else DifferenceReference(wrong, float(of), mean.high)


def _meet(roll: GiverRoll, givers: tuple[str, ...]) -> GiverRoll:
    for giver in sorted(givers, key=partial(leave_one_out.make_digest, roll)):
        roll = leave_one_out.meet(roll, giver)
    return roll


def _observe(
    detectors: LeaveOneOut[PairedDetector],
    difference: float,
    exponent: float,
    own: tuple[int, ...],
    believed: tuple[int, ...],
) -> LeaveOneOut[PairedDetector]:
    moved = leave_one_out.move(detectors, lambda detector: paired.observe(detector, difference, exponent), own)
    return leave_one_out.judge(moved, paired.log_e, believed)


def _bound(margin: float) -> float:
    return min(MARGIN_MAX, max(-MARGIN_MAX, margin))
