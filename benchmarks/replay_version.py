"""A version as the monitor judges it, fed from a stream of labels: for `benchmarks.replay`.

Each stream is a track (`monitoring/quality/signals/label_signal.py`), over all labels and over those of each class. The
verdict is the version's (`responses.py`): where one stream alarms, the reverse tests of all begin, and where they find
a recovery, all detectors begin anew; labels of requests from before that are then no evidence.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.replay_rows import Row, told
from monitoring.quality.detectors import leave_one_out, raters, recent_values
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.phases import Verdict
from monitoring.quality.signals import label_signal
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.watch import CLASSES_MAX
from monitoring.quality.verdicts.plan import Plan
from monitoring.quality.verdicts.quality import OTHER_CLASS, Judgement, StreamReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.responses import respond
from monitoring.quality.verdicts.shares import Roles

CALLER = "file"
ALL = "all"
LABELS = "labels"
VERSION = "replay"
LOG_E_TOLD_MAX = 27.0


@dataclass(frozen=True, slots=True)
class Claim:
    """P(any false alarm within so many labels, over all streams together) is at most alpha; nothing alarms before a
    stream has `labels_min` labels since its detector began."""

    labels: float
    alpha: float
    labels_min: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one stream says where the verdict moves: since which label, how strongly, and how wrong it was since."""

    stream: str
    labels: int
    since_label: int
    log_e: float
    wrong_share_since: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A verdict that moved: at which label of the file, when, after how many labels of the verdict before, and why."""

    label: int
    line: int
    at: float
    before: Verdict
    after: Verdict
    lasted: int
    because: str
    evidence: tuple[Evidence, ...]

    def told(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {
            "label": self.label,
            "line": self.line,
            "time": told(self.at),
            "from": self.before,
            "to": self.after,
            "labels_before": self.lasted,
            "because": self.because,
            "evidence": [
                {
                    "stream": one.stream,
                    "stream_labels": one.labels,
                    "since_label": one.since_label,
                    "log_e": one.log_e,
                    "wrong_share_since": one.wrong_share_since,
                }
                for one in self.evidence
            ],
        }


class Stream:
    """One labelled stream: all labels, or those of a class. `places` are where its labels stand in the file, `tested`
    which of them its reverse test has seen."""

    def __init__(self, of_class: str | None, track: LabelSignal, labels_min: int) -> None:
        self.name = ALL if of_class is None else f"class {of_class}"
        self.of_class = of_class
        self.track = track
        self._labels_min = labels_min
        self._roll = raters.start_roll(track.salt)
        for _ in range(leave_one_out.ALONE_MIN):  # nobody else sends requests
            self._roll = leave_one_out.add_request(self._roll, CALLER)
        self._places = array("L")
        self._wrong = array("L", [0])
        self._tested = array("L")

    def observe(self, label: int, row: Row, is_degraded: bool, is_late: bool, is_early: bool) -> None:
        """Take a label."""
        if is_degraded and not is_early:
            self._tested.append(len(self._places))
        self._places.append(label)
        self._wrong.append(self._wrong[-1] + row.wrong)
        label = Label(badness=float(row.wrong), caller=CALLER, rater=row.rater)
        self.track = self.track.take(label, row.at, self._roll, is_degraded, is_late, is_early=is_early)

    def turn(self, is_degraded: bool, at: float) -> None:
        """The version is degraded from now on, or no longer."""
        self._tested = array("L")
        self.track = self.track.begin_reverse_test(at) if is_degraded else self.track.restart(at)

    def stands(self, labels: float, alpha: float) -> tuple[bool, bool]:
        """Whether it alarms, and whether its reverse test has found a recovery."""
        doubt = self.track.find_doubt(self._labels_min, labels, alpha)
        alarms = doubt is None and self.track.alarms(self._labels_min, labels, alpha)
        return alarms, self.track.has_recovered

    def rests_on_one(self, labels: float, alpha: float) -> bool:
        """Whether all labels would alarm, and do not without one rater alone."""
        return self.track.guard is not None and raters.rests_on_one(self.track.guard, labels, alpha)

    def report(self, labels: float, alpha: float) -> StreamReport:
        """The stream as the verdict looks at it."""
        alarming, recovered = self.stands(labels, alpha)
        baseline = self.track.baseline
        return StreamReport(
            stream=LABELS,
            of_class=self.of_class,
            labelled=True,
            observed=float(self.track.labels),
            wrong=self.track.wrong,
            estimate=recent_values.find_mean(self.track.recent),
            baseline={} if baseline is None else msgspec.to_builtins(baseline),
            e_value=math.exp(min(LOG_E_TOLD_MAX, self.track.find_evidence(alarming))),
            threshold=labels / alpha,
            alarming=alarming,
            recovered=recovered,
        )

    def evidence(self, recovered: bool) -> Evidence:
        """What it says of a slip, or of a recovery."""
        count = len(self._places)
        guard = self.track.reverse if recovered else self.track.guard
        assert guard is not None, "it alarms, or has recovered"
        since = raters.find_change(guard)
        since = self._tested[min(since, len(self._tested) - 1)] if recovered else self.track.begun + since
        since = min(since, count - 1)
        share = (self._wrong[count] - self._wrong[since]) / (count - since)
        return Evidence(self.name, count, self._places[since], raters.log_e(guard), share)


class Version:
    """All streams of a version, and its verdict."""

    def __init__(
        self, classes: Sequence[str], warm_up: int, class_warm_up: int, baseline: Baseline | None, claim: Claim
    ) -> None:
        """`warm_up` and `class_warm_up` are how many first labels of all, and of a class, make a baseline; `baseline`
        is what all labels are held against instead."""
        whole = label_signal.start(warm_up, "replay")
        whole = whole if baseline is None else whole.hold_against(baseline)
        self._streams: dict[str | None, Stream] = {None: Stream(None, whole, claim.labels_min)}
        own = [*classes[:CLASSES_MAX], *([OTHER_CLASS] if len(classes) > CLASSES_MAX else [])]
        for kind in own:
            self._streams[kind] = Stream(kind, label_signal.start(class_warm_up, "replay"), claim.labels_min)
        self._labels, self._alpha = claim.labels * len(self._streams), claim.alpha
        self._health = VersionQuality()
        self._restored_at = self._degraded_since = 0.0
        self._turned_after = 0
        self._stands: dict[str | None, tuple[bool, bool]] = {}

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams by their names."""
        return {one.name: one for one in self._streams.values()}

    def rests_on_one(self, stream: Stream) -> bool:
        """Whether a stream would alarm, but for one rater alone."""
        return stream.rests_on_one(self._labels, self._alpha)

    @property
    def verdict(self) -> str:
        """The verdict now."""
        judged = any(one.track.guard is not None for one in self._streams.values())
        return self._health.verdict if judged else "too few labels for a baseline"

    def observe(self, label: int, row: Row) -> Turn | None:
        """Take a label; the verdict that moved, if one did."""
        is_degraded, moved = self._health.verdict == "degraded", False
        for name in (None, *self._class_of(row)):
            stream = self._streams[name]
            is_early = row.asked < self._degraded_since
            stream.observe(label, row, is_degraded, row.asked < self._restored_at, is_early)
            stands = stream.stands(self._labels, self._alpha)
            moved = moved or self._stands.get(name, (False, False)) != stands
            self._stands[name] = stands
        return self._judged(label, row) if moved else None

    def _class_of(self, row: Row) -> tuple[str, ...]:
        if row.kind is None or len(self._streams) == 1:
            return ()
        return (row.kind if row.kind in self._streams else OTHER_CLASS,)

    def _judged(self, label: int, row: Row) -> Turn | None:
        """The verdict that follows from the streams. Where it moves, the streams turn with it."""
        reports = [one.report(self._labels, self._alpha) for one in self._streams.values()]
        judged = Judgement(task=VERSION, version=VERSION, at=row.at, labels=label, streams=reports)
        known = self._health
        health, _ = respond(TaskQuality(versions={VERSION: known}), {VERSION: judged}, Roles(), Plan(), row.at)
        found = self._health = health.versions[VERSION]
        if found.verdict == known.verdict:
            return None
        recovered = found.verdict == "healthy"
        rests_on = msgspec.convert(found.evidence["streams"], list[StreamReport])
        evidence = tuple(self._streams[one.of_class].evidence(recovered) for one in rests_on)
        self._restored_at = row.at if recovered else self._restored_at
        self._degraded_since = self._degraded_since if recovered else row.at
        for stream in self._streams.values():
            stream.turn(not recovered, row.at)
        self._stands = {name: one.stands(self._labels, self._alpha) for name, one in self._streams.items()}
        lasted, self._turned_after = label - self._turned_after, label
        return Turn(label, row.line, row.at, known.verdict, found.verdict, lasted, found.because, evidence)
