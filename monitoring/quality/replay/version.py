"""A version as the monitor judges it, fed from a stream of labels.

The signals are those of `signals/label_signal.py`, over all labels and over those of each class. The verdict is that of
`verdicts/monitor_responses.py`. If one signal alarms, the reverse tests of all begin. If they find a recovery, all
detectors begin again, and labels of earlier requests are no evidence.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from monitoring.quality.detectors import guards, leave_one_out
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.phases import Verdict
from monitoring.quality.replay.label_times import format_time
from monitoring.quality.replay.rows import LabelRow
from monitoring.quality.signals import label_signal
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.labelled import ALPHA, ReportTerms
from monitoring.quality.signals.version_watch import CLASSES_MAX
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import OTHER_CLASS, Doubt, Judgement, SignalReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles

CALLER = "file"
"""The caller of rows that don't name one."""
ALL = "all"
LABELS = "labels"
VERSION = "replay"
UNJUDGED = "too few labels for a baseline"


class Claim(NamedTuple):
    """P(any false alarm within `labels` labels, over all signals together) is at most `alpha`. A signal alarms only
    with `labels_min` labels or more since its detector began."""

    labels: float
    alpha: float
    labels_min: int


class Standing(NamedTuple):
    """The standing of a signal: whether it alarms, the doubt that stops an alarm, and whether it has recovered."""

    alarms: bool = False
    doubt: Doubt | None = None
    recovered: bool = False


class SignalEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of one signal at a change of the verdict: its labels, the label from which errors are more (or
    fewer), the logarithm of the e-value, and the share of wrong answers since then."""

    signal: str
    signal_labels: int
    since_label: int
    log_e: float
    wrong_share_since: float


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """A change of the verdict: its label in the file, the labels since the change before, and the reason."""

    label: int
    line: int
    at: float
    before: Verdict
    after: Verdict
    lasted: int
    because: str
    evidence: tuple[SignalEvidence, ...]

    def describe(self) -> dict[str, Any]:
        """The change as JSON."""
        return {
            "label": self.label,
            "line": self.line,
            "time": format_time(self.at),
            "from": self.before,
            "to": self.after,
            "labels_before": self.lasted,
            "because": self.because,
            "evidence": [msgspec.to_builtins(entry) for entry in self.evidence],
        }


class SignalReplay:
    """One signal: all labels, or those of a class. `_places` are its labels' positions in the file, `_tested` the
    indexes of those that its reverse test has seen."""

    def __init__(self, of_class: str | None, track: LabelSignal, claim: Claim) -> None:
        self.name = ALL if of_class is None else f"class {of_class}"
        self.of_class = of_class
        self.track = track
        self._claim = claim
        self._places = array("L")
        self._wrong = array("L", [0])
        self._tested = array("L")

    def observe(
        self,
        label: int,
        row: LabelRow,
        roll: GiverRoll,
        is_degraded: bool,
        predates_restart: bool,
        predates_test: bool,
        is_anonymous: bool,
    ) -> None:
        """Take a label. `is_anonymous`: no caller or rater can be left out."""
        if is_degraded and not predates_test:
            self._tested.append(len(self._places))
        self._places.append(label)
        self._wrong.append(self._wrong[-1] + row.wrong)
        row_label = Label(badness=float(row.wrong), caller=row.caller or CALLER, rater=row.rater, trusted=is_anonymous)
        self.track = self.track.take(
            row_label, row.at, roll, is_degraded, predates_restart=predates_restart, predates_test=predates_test
        )

    def turn(self, is_degraded: bool, at: float) -> None:
        """Begin the reverse test of a degraded version, or else the detectors again."""
        self._tested = array("L")
        self.track = self.track.begin_reverse_test(at) if is_degraded else self.track.restart(at)

    def find_standing(self) -> Standing:
        """The standing of the signal now."""
        labels, alpha, labels_min = self._claim
        doubt = self.track.find_doubt(labels_min, labels, alpha)
        alarms = doubt is None and self.track.alarms(labels_min, labels, alpha)
        return Standing(alarms, doubt, self.track.has_recovered)

    def rests_on_one(self) -> bool:
        """Return whether all labels would alarm, but not without one caller or rater alone."""
        return self.track.rests_on_one(self._claim.labels, self._claim.alpha)

    def report(self, at: float, roll: GiverRoll) -> SignalReport:
        """The signal as the verdict sees it."""
        threshold = self._claim.labels / self._claim.alpha
        return self.track.report(LABELS, self.of_class, ReportTerms(at, self._claim.labels_min, threshold, roll))

    def find_evidence(self, recovered: bool) -> SignalEvidence:
        """The signal's evidence for a degradation, or for a recovery."""
        count = len(self._places)
        guard = self.track.reverse if recovered else self.track.guard
        assert guard is not None, "it alarms, or has recovered"
        since = guards.find_change(guard)
        since = self._tested[min(since, len(self._tested) - 1)] if recovered else self.track.begun + since
        since = min(since, count - 1)
        share = (self._wrong[count] - self._wrong[since]) / (count - since)
        return SignalEvidence(
            signal=self.name,
            signal_labels=count,
            since_label=self._places[since],
            log_e=guards.log_e(guard),
            wrong_share_since=share,
        )


class VersionReplay:
    """All signals of a version, and its verdict."""

    def __init__(
        self,
        classes: Sequence[str],
        warm_up: int,
        class_warm_up: int,
        baseline: Baseline | None,
        claim: Claim,
        has_callers: bool = False,
    ) -> None:
        """The first `warm_up` labels make a baseline, and the first `class_warm_up` of a class. `baseline` replaces
        that of all labels. `has_callers`: some rows name a caller; the others count as one more."""
        named = [*classes[:CLASSES_MAX], *([OTHER_CLASS] if len(classes) > CLASSES_MAX else [])]
        labels = max(claim.alpha / ALPHA, claim.labels * (1 + len(named)))  # a report takes no lower threshold
        claim = claim._replace(labels=labels)
        whole = label_signal.start(warm_up, VERSION)
        whole = whole if baseline is None else whole.hold_against(baseline)
        self._signals: dict[str | None, SignalReplay] = {None: SignalReplay(None, whole, claim)}
        for kind in named:
            self._signals[kind] = SignalReplay(kind, label_signal.start(class_warm_up, VERSION), claim)
        self._has_callers = has_callers
        self._roll = guards.start_roll(VERSION)
        self._quality = VersionQuality()
        self._restored_at = self._degraded_since = 0.0
        self._changed_at_label = 0
        self._standings: dict[str | None, Standing] = {}

    @property
    def signals(self) -> Mapping[str, SignalReplay]:
        """The signals by their names."""
        return {signal.name: signal for signal in self._signals.values()}

    @property
    def verdict(self) -> str:
        """The verdict now."""
        judged = any(signal.track.guard is not None for signal in self._signals.values())
        return self._quality.verdict if judged else UNJUDGED

    def observe(self, label: int, row: LabelRow) -> VerdictChange | None:
        """Take a label. Returns the change of the verdict, if any."""
        is_degraded, has_moved = self._quality.verdict == "degraded", self._quality.verdict == "suspect"
        caller = row.caller or CALLER
        is_anonymous = row.caller is None and row.rater is None and not self._has_callers
        if row.caller is None and not self._roll.known and not self._has_callers:
            for _ in range(leave_one_out.ALONE_MIN):  # nobody else sends requests
                self._roll = leave_one_out.add_request(self._roll, caller, row.at)
        self._roll = leave_one_out.add_request(self._roll, caller, row.at)
        self._roll = leave_one_out.add_label(self._roll, caller, at=row.at)
        predates_restart, predates_test = row.asked < self._restored_at, row.asked < self._degraded_since
        for name in (None, *self._class_of(row)):
            signal = self._signals[name]
            signal.observe(label, row, self._roll, is_degraded, predates_restart, predates_test, is_anonymous)
            standing = signal.find_standing()
            has_moved = has_moved or self._standings.get(name, Standing()) != standing
            self._standings[name] = standing
        return self._judge(label, row) if has_moved else None

    def _class_of(self, row: LabelRow) -> tuple[str, ...]:
        if row.kind is None or len(self._signals) == 1:
            return ()
        return (row.kind if row.kind in self._signals else OTHER_CLASS,)

    def _judge(self, label: int, row: LabelRow) -> VerdictChange | None:
        """The verdict that follows from the signals. If it changes to degraded or back, the signals follow (`turn`)."""
        reports = [signal.report(row.at, self._roll) for signal in self._signals.values()]
        judged = Judgement(task=VERSION, version=VERSION, at=row.at, labels=label, reports=reports)
        before = self._quality
        quality, _ = respond(TaskQuality(versions={VERSION: before}), {VERSION: judged}, Roles(), MonitorPlan(), row.at)
        after = self._quality = quality.versions[VERSION]
        if after.verdict == before.verdict:
            return None
        recovered = before.verdict == "degraded"
        rests_on = msgspec.convert(after.evidence.get("signals", []), list[SignalReport])
        evidence = tuple(self._signals[report.of_class].find_evidence(recovered) for report in rests_on)
        if recovered or after.verdict == "degraded":
            self._restored_at = row.at if recovered else self._restored_at
            self._degraded_since = self._degraded_since if recovered else row.at
            for signal in self._signals.values():
                signal.turn(not recovered, row.at)
            self._standings = {name: signal.find_standing() for name, signal in self._signals.items()}
        lasted, self._changed_at_label = label - self._changed_at_label, label
        return VerdictChange(label, row.line, row.at, before.verdict, after.verdict, lasted, after.because, evidence)
