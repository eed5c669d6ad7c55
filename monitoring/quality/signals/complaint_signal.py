"""The signal of complaints: the detector of `complaints.py`, guarded so that no caller alone makes it alarm.

Each caller who complains is left out in turn (`leave_one_out.py`), with its requests: up to four callers one by one.
The signal learns nothing while the version is degraded. Learning that was under way begins again afterwards; if it was
an admin's own verdict, it continues. The reverse test (`complaint_recovery.py`) has to refute that still 1.5 times as
many complaints as expected come, about requests from after the verdict. It leaves nobody out. The expected number was
learned from all callers: without one who rarely complains, the others would never come down to it.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import complaint_delays, complaints, leave_one_out, recent_values, recoveries
from monitoring.quality.detectors import complaint_recovery as fewer
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.complaint_delays import HORIZON_TICKS, TICK_SECONDS, Delays
from monitoring.quality.detectors.complaints import EXPECTED_MIN, SEEN_MIN, Complaints
from monitoring.quality.detectors.detection_delay import BETWEEN_MIN
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.recent_values import Rate
from monitoring.quality.signals.labelled import ALPHA, ReportTerms, e_value_of
from monitoring.quality.verdicts.quality import SignalReport

GROUPS = 4
HORIZON_SECONDS = HORIZON_TICKS * TICK_SECONDS


class ComplaintSignal(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the complaints. `last` is the time of the last request or complaint (Unix seconds).

    `detectors` leave out the groups of `complainers`. `busiest` are the most complaints a day since it began.
    `signals`, `recoveries` and `recovered_at` are as in `BaselinedSignal`. `apart` counts complaints expected during
    earlier reverse tests, `tested_at` those before the present one. `asked` is the rate of the requests, and
    `complained` counts all complaints, including those it learns from.
    """

    detectors: LeaveOneOut[Complaints]
    complainers: GiverRoll
    last: float
    asked: Rate | None = None
    rate: Rate | None = None
    busiest: float = 0.0
    signals: int = msgspec.field(default=0, name="streams")
    recoveries: int = 0
    recovered_at: float = 0.0
    apart: float = 0.0
    tested_at: float = 0.0
    complained: int = 0

    @property
    def learns(self) -> bool:
        """Return whether it still learns the usual number and delays of complaints."""
        return complaints.learns(self.detectors.whole)

    @property
    def is_counted(self) -> bool:
        """Return whether it shares the accepted false alarms: always, since requests alone are evidence."""
        return True

    @property
    def is_reported(self) -> bool:
        """Return whether there is anything to report: always."""
        return True

    @property
    def is_tested(self) -> bool:
        """Return whether there is a reverse test."""
        return self.detectors.whole.back is not None

    @property
    def has_strong_evidence(self) -> bool:
        """Return whether its evidence now reaches `BETWEEN_MIN`, the lowest threshold that any signal may have.

        Time without a complaint reduces evidence too.
        """
        now = min(self.detectors.log_now, complaints.log_e(self.detectors.whole))
        return leave_one_out.reaches_now(replace(self.detectors, log_now=now), BETWEEN_MIN)

    @property
    def has_recovered(self) -> bool:
        """Return whether the reverse test finds that complaints have decreased. New complaints can undo that."""
        back, learned = self.detectors.whole.back, self.detectors.whole.learned
        if back is None or learned is None:
            return False
        return fewer.log_e(back) >= math.log(recoveries.count_asked(self.recoveries, _find_between(learned)))

    @property
    def evidence_since(self) -> float | None:
        """The likeliest time from which requests bring more complaints (Unix seconds); None while it learns."""
        return None if self.learns else complaints.find_change(self.detectors.whole)

    def take_request(self, caller: str, at: float) -> ComplaintSignal:
        """The signal after a request that was answered."""
        last, at = self.last, max(at, self.last)
        own = list[int]()
        if any(self.detectors.without):
            place = leave_one_out.get_group(self.complainers, caller)
            own = [place] if self.detectors.without[place] is not None else []
        moved = leave_one_out.move(
            self.detectors, lambda detector: complaints.take_requests(_catch_up(detector, last, at), at), own
        )
        return replace(self, detectors=moved, last=at, asked=recent_values.add_event(self.asked, at))

    def take_complaint(self, caller: str, request_at: float, at: float, alone: str | None) -> ComplaintSignal:
        """The signal after the first complaint about a request. `alone` is from `leave_one_out.find_alone`."""
        last, at, rate = self.last, max(at, self.last), recent_values.add_event(self.rate, at)
        whole = _catch_up(self.detectors.whole, last, at)
        detectors = replace(self.detectors, whole=whole)
        roll, own = self.complainers, list[int]()
        if not complaints.learns(whole):
            roll = leave_one_out.meet(roll, caller)
            own = [leave_one_out.get_group(roll, caller)]
        moved = leave_one_out.move(
            detectors, lambda detector: complaints.take_complaint(_catch_up(detector, last, at), request_at, at), own
        )
        believed = () if alone is None else (leave_one_out.get_group_of_digest(roll, alone),)
        return replace(
            self,
            detectors=leave_one_out.judge(moved, complaints.log_e, believed) if own else moved,
            complainers=roll,
            last=at,
            complained=self.complained + 1,
            rate=rate,
            busiest=recent_values.find_busiest(self.busiest, rate, at),
        )

    def tick(self, at: float) -> ComplaintSignal:
        """The signal at a later moment, in whole ticks. The number of calls does not change the result.

        No time passes while the signal would learn from a degraded version.
        """
        until = _tick_before(min(at, self.last + HORIZON_SECONDS))
        if until <= self.detectors.whole.at or (self.learns and self.is_tested):
            return self
        detectors = leave_one_out.move(self.detectors, lambda detector: complaints.advance(detector, until))
        return replace(self, detectors=detectors)

    def alarms(self, labels: float, alpha: float) -> bool:
        """Return whether the evidence ever reached the threshold for `labels` expected complaints, and there are
        enough."""
        whole = self.detectors.whole
        enough = whole.seen >= SEEN_MIN and whole.expected >= EXPECTED_MIN
        return enough and leave_one_out.has_alarmed(self.detectors, labels, alpha)

    def hold_against(self, baseline: Baseline) -> None:
        """Return None, as no baseline can be set: the signal begins again, and learns what is usual."""

    def release(self) -> ComplaintSignal:
        """Return the signal itself: no baseline was set."""
        return self

    def begin_reverse_test(self, since: float) -> ComplaintSignal:
        """Begin the reverse test of a version that is degraded since `since` (Unix seconds)."""
        whole, signal = self.detectors.whole, self
        if not self.is_tested:
            stood, seconds = whole.expected - self.apart, since - self.recovered_at
            left = recoveries.count_left(self.recoveries, stood, seconds, _find_between(whole.learned))
            signal = replace(self, recoveries=left, tested_at=whole.expected)
        return signal._with_whole(complaints.begin_reverse_test(whole, since))

    def restart(self, at: float) -> ComplaintSignal:
        """Begin again at `at` with the known delays: the version is no longer degraded.

        Without them it does not learn from the time before. A recovery counts if its reverse test found it.
        """
        learned = self.detectors.whole.learned
        fresh = start(self.complainers.salt, self.last if learned is not None else max(self.last, at), learned)
        count, recovered_at = self.recoveries, self.recovered_at
        if self.has_recovered:
            count, recovered_at = recoveries.add_recovery(count), at
        return replace(fresh, asked=self.asked, rate=self.rate, recoveries=count, recovered_at=recovered_at)

    def restart_if_recovered(self, at: float) -> ComplaintSignal:
        """Begin again if the reverse test has found a recovery. Unfinished learning begins again in any case."""
        return self.restart(at) if self.learns or self.has_recovered else self._without_test()

    def end_reverse_test(self, at: float) -> ComplaintSignal:
        """End the reverse test; the evidence remains.

        Unfinished learning continues at `at`. The time between is left out: its complaints were not counted.
        """
        signal = self._without_test()
        if not signal.learns:
            return signal
        at = max(signal.last, at)
        resumed = signal._with_whole(complaints.resume(signal.detectors.whole, at))
        return replace(resumed, last=at)

    def report(self, name: str, of_class: str | None, terms: ReportTerms) -> SignalReport:
        """Report it with its evidence."""
        whole = self.detectors.whole
        alarming = self.alarms(terms.threshold * ALPHA, ALPHA)
        baseline: dict[str, Any] = {"kind": "own", "learning": whole.learned is None}
        if whole.learned is not None:
            baseline |= {
                "rate": complaint_delays.get_complaint_rate(whole.learned),
                "delay_seconds": complaint_delays.find_delay_quantile(whole.learned, 0.5),
                "from": whole.learned.began,
                "to": whole.learned.ended,
                "dispersion": whole.learned.dispersion,
                "day_deviation": math.sqrt(whole.learned.day_variance),
            }
        elif whole.learning is not None:
            baseline |= complaints.describe_progress(whole.learning)
        share = None
        if per_day := recent_values.count_per_day(self.asked, terms.at):
            share = min(1.0, recent_values.count_per_day(self.rate, terms.at) / per_day)
        return SignalReport(
            signal=name,
            of_class=of_class,
            labelled=True,
            observed=float(whole.served),
            wrong=float(max(self.complained, whole.seen)),
            estimate=share,
            low=None,
            high=share,
            baseline=baseline,
            e_value=e_value_of(self.detectors.log_max if alarming else complaints.log_e(whole)),
            threshold=terms.threshold,
            alarming=alarming,
            recovered=self.has_recovered,
            since=self.evidence_since,
        )

    def _with_whole(self, whole: Complaints) -> ComplaintSignal:
        return replace(self, detectors=replace(self.detectors, whole=whole))

    def _without_test(self) -> ComplaintSignal:
        """The signal without its reverse test; the evidence remains."""
        if not self.is_tested:
            return self
        whole = self.detectors.whole
        apart = self.apart + whole.expected - self.tested_at
        return replace(self._with_whole(complaints.end_reverse_test(whole)), apart=apart)


def start(salt: str, at: float, learned: Delays | None) -> ComplaintSignal:
    """A signal without complaints, with the delays that another version's signal has learned, if any."""
    detectors = leave_one_out.start(complaints.start(at, learned), GROUPS)
    return ComplaintSignal(detectors=detectors, complainers=GiverRoll(salt=salt, groups=GROUPS), last=at)


def _catch_up(state: Complaints, last: float, at: float) -> Complaints:
    """The state after a long pause, as `tick` leaves it: so it does not matter whether `tick` was called."""
    if at - last <= HORIZON_SECONDS:
        return state
    until = _tick_before(last + HORIZON_SECONDS)
    return complaints.advance(state, until) if until > state.at else state


def _find_between(learned: Delays | None) -> float:
    """The mean number of expected complaints between two false recoveries, given their dependence."""
    return recoveries.BETWEEN * (1.0 if learned is None else learned.complaints_alike)


def _tick_before(at: float) -> float:
    return at // TICK_SECONDS * TICK_SECONDS
