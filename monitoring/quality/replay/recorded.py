"""A replay of records: the same watches and verdicts as the monitor's, from entries in their order. Pure.

The monitor looks after each reading. The replay looks at the end of every `look_seconds` with an entry. While a version
is not healthy, it also looks in each quarter of a day of a silence. An alarm is not lost between looks, so rare looks
delay a verdict by no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.phases import Phase, Verdict
from monitoring.quality.signals.all_watches import PART_SECONDS, Watches
from monitoring.quality.signals.child_messages import MonitorStep, WatchedVersion
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.signals.request_notes import KEPT_SECONDS_MAX
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import Judgement, SignalReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles

FORGET_EVERY_SECONDS = 86_400.0


class Placed(NamedTuple):
    """An entry: its time, its stream (as in `all_watches.py`), its number within the millisecond, and its record.
    `feedback` comes with the record that it is on (None without one)."""

    milliseconds: int
    stream: int
    number: int
    record: RecordEntry | None
    feedback: FeedbackEntry | None = None


class Turn(NamedTuple):
    """A change of a verdict: the version, the time, the reason, and the signals that it rests on."""

    version: str
    at: float
    before: Verdict
    after: Verdict
    because: str
    requests: int
    labels: int
    reports: list[SignalReport]


class Replaying:
    """One replay. Owner of the watches, and of each version's quality.

    `records` and `feedback` count entries; `unmatched` counts feedback without a record.
    """

    def __init__(self, step: MonitorStep, baselines: Mapping[str, Mapping[str, Baseline]], look_seconds: float) -> None:
        """`step` has the tasks and their versions; verdicts follow from the replay."""
        self.watches = Watches("replay")
        self.qualities: dict[str, VersionQuality] = {}
        self.records = self.feedback = self.unmatched = 0
        self._step, self._baselines = step, baselines
        self._look_ms = max(1, round(look_seconds * 1000))
        self._noted: dict[str, float] = {}
        self._forgotten_at = 0.0
        self.watches.begin(step, baselines)

    def run(self, entries: Iterable[Placed]) -> Iterator[Turn]:
        """Yield every change of a verdict when it happens. Pass the entries in their order."""
        looked_ms: int | None = None
        for entry in entries:
            if looked_ms is not None and entry.milliseconds >= looked_ms:
                yield from self._look(looked_ms / 1000)
                yield from self._wait(looked_ms / 1000, entry.milliseconds / 1000)
            looked_ms = (entry.milliseconds // self._look_ms + 1) * self._look_ms
            self.take(entry)
        if looked_ms is not None:
            yield from self._look(looked_ms / 1000)

    def judged(self, at: float) -> dict[str, Judgement]:
        """The judgements of all versions at `at`."""
        self.watches.tick(at)
        return self.watches.judged(list(self.watches.by_version), at)

    def take(self, entry: Placed) -> None:
        """Take an entry into account, without a look."""
        at = entry.milliseconds / 1000
        if entry.feedback is None:
            self.records += 1
            if entry.record is not None:
                self.watches.take_record(entry.record, at)
        else:
            self.feedback += 1
            if entry.record is None:
                self.unmatched += 1
            else:
                self.watches.take_feedback(entry.feedback, entry.record, at)

    def _look(self, at: float) -> Iterator[Turn]:
        """Judge the versions that have moved, and apply the verdicts that follow."""
        self.watches.tick(at - 0.001)
        moved, step = sorted(self.watches.moved), self._step
        self.watches.moved.clear()
        self._forget(at)
        for name, judged in self.watches.judged(moved, at).items():
            before = self.qualities.get(name, VersionQuality(since=at))
            plan = replace(step.tasks[judged.task].plan, responses=[])
            task_quality, _ = respond(TaskQuality(versions={name: before}), {name: judged}, Roles(), plan, at)
            quality = self.qualities[name] = task_quality.versions[name]
            if quality.verdict == before.verdict:
                continue
            self._follow(name, judged.task, quality.phase, at)
            reports = msgspec.convert(quality.evidence.get("signals", []), list[SignalReport])
            yield Turn(
                name, at, before.verdict, quality.verdict, quality.because, judged.requests, judged.labels, reports
            )

    def _wait(self, at: float, until: float) -> Iterator[Turn]:
        """Let a silence pass: time is evidence too."""
        while at + PART_SECONDS < until and any(quality.verdict != "healthy" for quality in self.qualities.values()):
            at += PART_SECONDS
            self.watches.moved |= {name for name, quality in self.qualities.items() if quality.verdict != "healthy"}
            yield from self._look(at)

    def _follow(self, name: str, task: str, phase: Phase, since: float) -> None:
        version = self._step.versions.get(name) or WatchedVersion(task=task, state="active")
        version = replace(version, phase=phase, since=since)
        self._step = replace(self._step, versions={**self._step.versions, name: version})
        self.watches.begin(self._step, self._baselines)

    def _forget(self, at: float) -> None:
        """Delete the notes of requests that can no longer be judged."""
        self._noted.update(dict.fromkeys(self.watches.noted, at))
        self.watches.noted.clear()
        if at - self._forgotten_at < FORGET_EVERY_SECONDS:
            return
        self._forgotten_at = at
        for request in [name for name, noted_at in self._noted.items() if at - noted_at > KEPT_SECONDS_MAX]:
            del self._noted[request]
            self.watches.notes.pop(request, None)
