"""The common part of labelled signals with a baseline: evidence against that baseline, and a reverse test for a
recovery while the version is degraded."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import baselines, leave_one_out, recent_values, recoveries
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.detection_delay import BETWEEN_MIN
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.recent_values import FadedSums, Marks, Rate
from monitoring.quality.detectors.sequential import E_VALUE_MAX
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.quality.verdicts.quality import Doubt, SignalReport

ALPHA = 0.05
STEP_UP_MIN = 0.02
"""The least distance from a degraded version's baseline to its error, for the reverse test."""


class ReportTerms(NamedTuple):
    """The terms of a report at `at` (Unix seconds).

    `labels_min` is the least number of labels for an alarm. `threshold` is the e-value of an alarm: the number of
    labels between two false alarms. `roll` knows the version's callers. `is_outdated`: its baseline was set for another
    metric.
    """

    at: float
    labels_min: int
    threshold: float
    roll: GiverRoll
    is_outdated: bool = False


class BaselinedSignal(msgspec.Struct, frozen=True, kw_only=True):
    """The shared part of signals that have a baseline and a reverse test. Abstract for mypy: a Struct is not an ABC.

    `begun` is the number of labels before the detector last began. Since then `busiest` is the most labels a day, and
    `signals` the most signals of all versions (`alarm_shares.py`): evidence and threshold are of the same time.
    `recoveries` counts recoveries in a row that have not held (`recoveries.py`), the last one at `recovered_at`.
    `apart` counts the labels that the detector saw during reverse tests: the recovery before was over by then.
    """

    wrong: float = 0.0
    baseline: Baseline | None = None
    begun: int = 0
    busiest: float = 0.0
    signals: int = msgspec.field(default=0, name="streams")
    recoveries: int = 0
    recovered_at: float = 0.0
    apart: int = 0
    recent: FadedSums = FadedSums()
    rate: Rate | None = None
    marks: Marks = ()

    # ---- what each kind says of itself

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of its labels."""

    @property
    @abstractmethod
    def detectors(self) -> LeaveOneOut[Any] | None:
        """Its detectors; None without a baseline."""

    @property
    @abstractmethod
    def reverse_detectors(self) -> LeaveOneOut[Any] | None:
        """The detectors of its reverse test; None without one."""

    @property
    @abstractmethod
    def changed_after(self) -> int:
        """The number of labels after which the change most likely began. Only with detectors."""

    @abstractmethod
    def log_e(self) -> float:
        """The logarithm of the evidence now. Only with detectors."""

    @abstractmethod
    def count_apart(self) -> float:
        """The labels that distinguish its baseline from the reverse test's bound. Only with a reverse test."""

    @abstractmethod
    def restart(self, at: float = 0.0) -> Self:
        """Begin the detectors again at their baseline, since the version is no longer degraded."""

    # ---- what they share

    @property
    def is_counted(self) -> bool:
        """Return whether it shares the accepted false alarms."""
        return self.count > 0

    @property
    def is_reported(self) -> bool:
        """Return whether there is anything to report."""
        return self.count > 0 or self.baseline is not None

    @property
    def observed(self) -> int:
        """The number of labels that its detector has seen."""
        return self.detectors.whole.observed if self.detectors is not None else 0

    @property
    def has_strong_evidence(self) -> bool:
        """Return whether its evidence now reaches `BETWEEN_MIN`, the lowest threshold that any signal may have."""
        return self.detectors is not None and leave_one_out.reaches_now(self.detectors, BETWEEN_MIN)

    @property
    def has_recovered(self) -> bool:
        """Return whether the reverse test finds that errors have decreased. New errors can undo that."""
        if self.reverse_detectors is None:
            return False
        labels = recoveries.count_asked(self.recoveries, apart=self.count_apart())
        return leave_one_out.reaches_now(self.reverse_detectors, labels)

    @property
    def evidence_since(self) -> float | None:
        """The time when the present evidence began to grow, in Unix seconds; None without a detector."""
        return None if self.detectors is None else recent_values.find_time(self.marks, self.changed_after)

    def alarms(self, labels_min: int, labels: float, alpha: float) -> bool:
        """Return whether its evidence ever reached the threshold for this number of labels, with `labels_min` or
        more."""
        enough = self.detectors is not None and self.observed >= labels_min
        return enough and self.detectors is not None and leave_one_out.has_alarmed(self.detectors, labels, alpha)

    def find_evidence(self, alarming: bool) -> float:
        """The logarithm of its evidence: the largest so far if that is an alarm, else the present one."""
        if self.detectors is None:
            return LOG_FLOOR
        return self.detectors.log_max if alarming else self.log_e()

    def restart_if_recovered(self, at: float = 0.0) -> Self:
        """Begin the detectors again if the reverse test has found a recovery; else the evidence remains."""
        return self.restart(at) if self.has_recovered else self.end_reverse_test(at)

    def end_reverse_test(self, at: float = 0.0) -> Self:
        """End the reverse test; the evidence remains."""
        return replace(self, reverse=None)

    def find_recent(self, alarming: bool) -> FadedSums:
        """Its recent values; those since its evidence began, if that is an alarm and still is one now."""
        since = None
        if alarming and self.has_strong_evidence:
            since = recent_values.sum_since(self.marks, self.changed_after)
        return self.recent if since is None else self.sums_since(*since)

    @abstractmethod
    def sums_since(self, total: float, of: int) -> FadedSums:
        """The sums of the newest `of` values, with this total."""

    def report(self, name: str, of_class: str | None, terms: ReportTerms) -> SignalReport:
        """Report it with its evidence."""
        labels = terms.threshold * ALPHA
        doubt = self.find_doubt(terms.labels_min, labels, ALPHA)
        alarming = doubt is None and self.alarms(terms.labels_min, labels, ALPHA)
        recent = self.find_recent(alarming)
        interval = self.find_interval(recent)
        low, high = interval or (None, None)
        return SignalReport(
            signal=name,
            of_class=of_class,
            labelled=True,
            observed=float(self.count),
            labels_per_day=recent_values.count_per_day(self.rate, terms.at),
            wrong=self.wrong,
            estimate=recent_values.find_mean(recent),
            low=low,
            high=high,
            high_without_one=self.high_without_one(terms.roll, high),
            baseline=self.describe_baseline(terms),
            e_value=e_value_of(self.find_evidence(alarming or doubt not in (None, "one_giver"))),
            threshold=terms.threshold,
            alarming=alarming,
            doubt=doubt,
            dispersion=self.dispersion,
            has_rhythm=self.has_rhythm,
            stricter=self.find_strictness(),
            recovered=self.has_recovered,
            since=self.evidence_since,
        )

    @abstractmethod
    def find_interval(self, recent: FadedSums) -> tuple[float, float] | None:
        """The 95% interval of its recent values; None without any."""

    @abstractmethod
    def high_without_one(self, roll: GiverRoll, high: float | None) -> float | None:
        """The greatest upper end of that interval, whichever caller is left out; None if it is not known."""

    @abstractmethod
    def describe_baseline(self, terms: ReportTerms) -> dict[str, Any]:
        """The baseline, as JSON."""

    @property
    def dispersion(self) -> float:
        """The number of labels that count as one, because of clusters."""
        return 1.0

    @property
    def has_rhythm(self) -> bool:
        """Return whether its errors follow the time of day."""
        return False

    def find_strictness(self) -> float:
        """The errors that its present reviewers would see for each one of the earlier reviewers."""
        return 1.0

    def find_doubt(self, labels_min: int, labels: float, alpha: float) -> Doubt | None:
        """The doubt that stops an alarm; None without any."""
        return None


AnySignal = TypeVar("AnySignal", bound=BaselinedSignal)


def begin(signal: AnySignal) -> AnySignal:
    """The signal with a detector that has just begun."""
    return replace(signal, begun=signal.count, busiest=0.0, signals=0, recoveries=0, apart=0, reverse=None)


def describe(baseline: Baseline | None, first: float, wanted: int) -> dict[str, Any]:
    """A baseline as JSON; without one, the number of first labels so far and the number wanted."""
    if baseline is None:
        return {"labels": int(first), "wanted": wanted}
    described: dict[str, Any] = msgspec.to_builtins(baseline)
    rate = baselines.get_rate(baseline)
    return described if rate is None else {**described, "rate": rate}


def e_value_of(log: float) -> float:
    """An e-value from its natural logarithm: at most 1e12."""
    return 0.0 if log <= LOG_FLOOR else min(E_VALUE_MAX, math.exp(min(log, 700.0)))
