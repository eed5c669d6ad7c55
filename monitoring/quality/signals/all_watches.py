"""All watches together. Entries of all streams move them in the order of arrival, live or in a replay.

The order is that of Redis's clock, with records before feedback of the same millisecond. So each reader gets the same
watches, whatever the batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.signals import (
    alarm_shares,
    canaries,
    request_notes,
    signal_changes,
    version_judgement,
    version_watch,
    watch_events,
    watch_pairs,
)
from monitoring.quality.signals.alarm_shares import SignalCounts
from monitoring.quality.signals.canaries import Canary
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask
from monitoring.quality.signals.entries import (
    GENERAL,
    FeedbackEntry,
    RecordEntry,
    get_held_out_version,
    get_labelled_version,
    get_sides,
    read_label,
)
from monitoring.quality.signals.joint_labels import decide_together
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.version_judgement import Budget
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.canary_verdict import Tally
from monitoring.quality.verdicts.quality import Judgement

log = logging.getLogger(__name__)
RETIRED = "retired"
PART_SECONDS = 6 * 3600.0
"""The longest time that passes for a watch in one go. A longer silence passes in such parts."""


RECORDS, REPORTED, FEEDBACK = range(3)
"""The streams, in the order of their entries within a millisecond."""


class StreamEntry(NamedTuple):
    """An entry of a stream: its time, its stream, its number within the millisecond, its name and its fields."""

    milliseconds: int
    stream: int
    number: int
    name: str
    fields: Mapping[str, bytes]


def read_entry(stream: int, name: str, fields: Mapping[str, bytes]) -> StreamEntry:
    """An entry from its name in its stream. Raises ValueError if the name has another form."""
    milliseconds, _, number = name.partition("-")
    return StreamEntry(int(milliseconds), stream, int(number), name, fields)


def order_entries(streams: Sequence[Sequence[StreamEntry]], count: int, until_ms: int | None) -> list[StreamEntry]:
    """The entries, in order, before which no other entry can come.

    `count` is the number requested of each stream. A stream that gave that many may have more, so entries after its
    last one have to wait. After `until_ms` (None: no limit) entries may still come.
    """
    ends = [entries[-1][:3] for entries in streams if len(entries) >= count]
    end = min(ends) if ends else None
    return sorted(
        entry
        for entries in streams
        for entry in entries
        if (end is None or entry[:3] <= end) and (until_ms is None or entry.milliseconds <= until_ms)
    )


class Watches:
    """The watches of all versions, and the notes of the requests in use. Owner of both in memory.

    `moved` and `noted` name those changed since these sets were last cleared. `unreadable` counts entries that no watch
    could take, and watches that can't be moved or judged. `unmatched` counts feedback without a record. `unjudged`
    names the versions that could not be judged at the last attempt.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.by_version: dict[str, Watch] = {}
        self.notes: dict[str, Note] = {}
        self.moved: set[str] = set()
        self.noted: set[str] = set()
        self.unreadable = 0
        self.unmatched = 0
        self.unjudged: set[str] = set()
        self._failing: set[str] = set()
        self._signal_counts: dict[str, SignalCounts] = {}
        self._all_signal_counts = SignalCounts()
        self._step = MonitorStep(tasks={}, versions={}, metrics={})
        self._baselines: Mapping[str, Mapping[str, Baseline]] = {}

    def begin(self, step: MonitorStep, baselines: Mapping[str, Mapping[str, Baseline]]) -> None:
        """Apply a new step: pass the baselines that are set, and the verdicts, to the watches."""
        self._step, self._baselines = step, baselines
        self.unjudged &= {
            name for name, version in step.versions.items() if version.state != RETIRED and version.task in step.tasks
        }
        for name, version in step.versions.items():
            if version.state == RETIRED:
                self.by_version.pop(name, None)
                continue
            if version.task not in step.tasks:
                continue
            state = self.by_version.get(name) or version_watch.start(name, version.task, self.epoch)
            try:
                if (of_version := baselines.get(name)) is not None:  # an unreadable baseline was not removed
                    state = signal_changes.hold_against(state, of_version)
                moved = signal_changes.follow(state, version.phase, version.since)
                self._put(self._with_canary(signal_changes.follow_step(moved, version.stepped_at)))
            except Exception:
                self._fails(name)
        self._signal_counts, self._all_signal_counts = {}, SignalCounts()
        for state in self.by_version.values():
            self._count(state)

    def take_record(self, record: RecordEntry, at: float) -> None:
        """Take a record that came at `at` (Unix seconds) into account."""
        task = self._task(record.task)
        if task is None:
            return
        if record.purpose == "shadow":
            self._take_shadow(record, task, at)
            return
        for version in dict.fromkeys((record.led_to, record.version)):
            state = self._watch(version, record.task)
            if state is not None:
                self._move(watch_events.take_record(state, record, task.plan, at, self._previous(state)), at)
        for canary, state, tally in self._canaries(task):
            self._put(_with_tally(state, canaries.add_record(tally, canary, record, at)))

    def take_feedback(self, feedback: FeedbackEntry, record: RecordEntry, at: float) -> None:
        """Take a feedback that came at `at` on this record into account: in all its watches, or in none of them."""
        task = self._task(record.task)
        if task is None:
            return
        label = read_label(feedback, record, task.plan, self._step.metrics)
        note = self.notes.get(feedback.request) or Note(epoch=self.epoch)
        note, feedback, label = decide_together(note, feedback, label, task.plan)
        note, all_moved = request_notes.add_feedback(note, feedback, task.plan, label), dict[str, Watch]()
        for name in dict.fromkeys((get_labelled_version(record), get_held_out_version(record), *_sides(note))):
            state = self._watch(name, record.task)
            if state is not None:
                previous = self._previous(state)
                moved, note = watch_events.take_feedback(state, feedback, label, record, note, task.plan, at, previous)
                all_moved[state.version] = moved
        for canary, state, before in self._canaries(task):
            tally, note = canaries.add_label(before, canary, label, record, note, at)
            all_moved[state.version] = _with_tally(all_moved.get(state.version, state), tally)
        for moved in all_moved.values():
            self._move(moved, at)
        self._note(feedback.request, note)

    def tick(self, at: float, enough: Callable[[], bool] | None = None, lag: float = 0.0) -> bool:
        """Let time pass up to `at`, before which no entry can still come. Return whether it has passed for all watches.

        Stops after a part if `enough` says so. Watches at most `lag` seconds behind stay as they are.
        """
        for name in list(self.by_version):
            while (moved := self._ticked(self.by_version[name], at, lag)) is not self.by_version[name]:
                self._put(moved)
                if enough is not None and enough():
                    return False
        return True

    def _ticked(self, state: Watch, at: float, lag: float) -> Watch:
        """The watch after at most one part of the time up to `at`; the same object if no time is left."""
        there = state.complaints.detectors.whole.at if state.complaints is not None else at
        if at - there <= lag:
            return state
        try:
            return watch_events.tick(state, min(at, there + PART_SECONDS))
        except Exception:
            self._fails(state.version)
            return state

    def judged(self, names: Iterable[str], at: float) -> dict[str, Judgement]:
        """The judgements of these versions at `at`. The signals of all watched tasks share the fleet's false alarms."""
        parts = [
            alarm_shares.count_signals(state) for state in self.by_version.values() if state.task in self._step.tasks
        ]
        labelled, unlabelled = sum(count for count, _ in parts), sum(count for _, count in parts)
        judgements = {}
        for name in names:
            state = self.by_version[name]
            task = self._task(state.task)
            if task is None:
                continue
            budget = Budget(
                false_alarms_per_month=task.plan.false_alarms_per_month, labelled=labelled, unlabelled=unlabelled
            )
            try:
                judgements[name] = version_judgement.judge(state, task.plan, budget, at, task.previous_version)
            except Exception:
                self._fails(name)
                self.unjudged.add(name)
                continue
            if name in self.unjudged:  # another failure is logged again
                self.unjudged.remove(name)
                self._failing.discard(name)
        return judgements

    def canaries(self, at: float) -> dict[str, canary_verdict.CanaryVerdict]:
        """The verdict on each task's canary, from entries before `at`; without canaries that can't be judged."""
        verdicts = {}
        for name, task in self._step.tasks.items():
            for canary, state, tally in self._canaries(task):
                try:
                    verdicts[name] = canary_verdict.judge_canary(tally, canary.plan, max(0.0, at - canary.started_at))
                except Exception:
                    self._fails(state.version)
        return verdicts

    def _canaries(self, task: WatchedTask) -> Iterator[tuple[Canary, Watch, Tally]]:
        """The task's canary with a plan, its watch and its tally, if there is one."""
        state = self.by_version.get(task.canary.version) if task.canary is not None else None
        if task.canary is not None and state is not None and state.canary is not None:
            yield task.canary, state, state.canary

    def _with_canary(self, state: Watch) -> Watch:
        """The watch with a tally if its version is a canary with a plan, else without one."""
        canary = self._step.tasks[state.task].canary
        canary = canary if canary is not None and canary.version == state.version else None
        active = self.by_version.get(canary.active) if canary is not None else None
        return _with_tally(
            state, canaries.start_tally(state.canary, canary, active.roll if active is not None else None)
        )

    def _take_shadow(self, shadow: RecordEntry, task: WatchedTask, at: float) -> None:
        if shadow.pair is None or shadow.shadow_of is None:
            return
        before_it = self.notes.get(shadow.shadow_of) or Note(epoch=self.epoch)
        note = request_notes.add_pair(before_it, shadow)
        for version in dict.fromkeys(get_sides(shadow)):
            state = self._watch(version, shadow.task) if version != GENERAL else None
            if state is not None:
                moved, note = watch_pairs.take_pair(state, shadow, note, at, task.previous_version)
                self._move(moved, at)
        for canary, on_trial, before in self._canaries(task):
            if at >= canary.started_at:
                tally, note = canaries.add_pairs(before, canary, note)
                self._put(_with_tally(on_trial, tally))
        self._note(shadow.shadow_of, note)

    def _task(self, name: str | None) -> WatchedTask | None:
        return self._step.tasks.get(name) if name is not None else None

    def _watch(self, version: str | None, task: str | None) -> Watch | None:
        """A version's watch: a fresh one for a new version, None for a retired one."""
        if version is None or task is None or version == GENERAL:
            return None
        state = self.by_version.get(version)
        if state is not None:
            return state if state.task == task else None
        watched = self._step.versions.get(version)
        if watched is not None and (watched.state == RETIRED or watched.task != task):
            return None
        return signal_changes.hold_against(
            version_watch.start(version, task, self.epoch), self._baselines.get(version, {})
        )

    def _previous(self, state: Watch) -> Watch | None:
        watched = self._step.versions.get(state.version)
        return self.by_version.get(watched.previous) if watched is not None and watched.previous is not None else None

    def _fails(self, version: str) -> None:
        """Log and count a version's watch that can't be moved or judged, in an except clause. The others go on."""
        if version not in self._failing:
            self._failing.add(version)
            self.unreadable += 1
            log.exception("the state of %s can't be reckoned with", version)

    def _move(self, moved: Watch, at: float) -> None:
        """Store a watch that an entry at `at` has moved."""
        before = self.by_version.get(moved.version)
        if moved is not before:
            self._count(moved)
            self._put(alarm_shares.keep_most(before, moved, self._all_signal_counts, at))

    def _count(self, state: Watch) -> None:
        """Count its signals among those of all versions in the step, so that every reader gets the same number."""
        if state.version not in self._step.versions or state.task not in self._step.tasks:
            return
        before, now = self._signal_counts.get(state.version, SignalCounts()), alarm_shares.count_signals(state)
        if now != before:
            self._signal_counts[state.version] = now
            labelled, unlabelled = self._all_signal_counts
            self._all_signal_counts = SignalCounts(
                labelled + now.labelled - before.labelled, unlabelled + now.unlabelled - before.unlabelled
            )

    def _put(self, moved: Watch) -> None:
        if self.by_version.get(moved.version) is not moved:
            self.by_version[moved.version] = moved
            self.moved.add(moved.version)

    def _note(self, request: str, note: Note) -> None:
        if self.notes.get(request) != note and note != Note(epoch=self.epoch):
            self.notes[request] = note
            self.noted.add(request)


def _with_tally(state: Watch, tally: Tally | None) -> Watch:
    return state if tally is state.canary else replace(state, canary=tally)


def find_versions(records: Iterable[RecordEntry]) -> set[str]:
    """The versions that these records may move."""
    names = {name for record in records for name in (record.version, record.led_to) if name is not None}
    return names | {record.pair.version for record in records if record.pair is not None and record.pair.version}


def _sides(note: Note) -> list[str]:
    return [name for pair in note.pairs for name in (pair.shadow, pair.served) if name != GENERAL]
