from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.quality.detectors.baselines import measure
from monitoring.quality.signals.all_watches import (
    FEEDBACK,
    RECORDS,
    REPORTED,
    StreamEntry,
    Watches,
    order_entries,
    read_entry,
)
from monitoring.quality.signals.child_messages import WatchedVersion
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.stream_reader import unpack
from monitoring.quality.signals.version_watch import Watch
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.test_version_watch import Traffic, paired_traffic, together
from tests.monitoring.quality.traffic import MORNING, PLAN, V2, V3, at, held_out, said, served, step

BASELINES = {V3: {"feedback": measure("gate", 40, 1000, 1.0, "gate", "evaluation-1")}}


def mixed_traffic(count: int, seed: int) -> Traffic:
    """Everything that a task sees: labels of all kinds, late and twice, complaints, holdouts, shadows, two versions."""
    draw = random.Random(seed)
    records, feedback = [], []
    for number in range(count):
        name, when, who = f"m{number}", number * 40.0 + draw.random(), f"shop{draw.randrange(5)}"
        kind = draw.random()
        if kind < 0.15:
            records.append((at(when), held_out(name, who, language="en")))
        elif kind < 0.25:
            older: dict[str, Any] = {"version": V2, "led_to": V2, "attempts": []}
            records.append((at(when), served(name, who, **older)))
        else:
            records.append((at(when), served(name, who, completion_tokens=draw.randrange(40), language="en")))
        for _ in range(draw.choice((0, 1, 1, 2))):
            late = when + draw.expovariate(1 / 5000)
            reviewed = draw.random() < 0.2
            tags = {"kind": draw.choice(("toys", "food"))}
            feedback.append((at(late), said(name, draw.random() > 0.1, who, reviewed=reviewed, tags=tags)))
        if draw.random() < 0.1:
            late = when + draw.expovariate(1 / 9000)
            feedback.append((at(late), said(name, True, who, metric="complaint")))
    pairs = paired_traffic(count // 4, 0.2, 0.1, seed)
    return together((records, feedback), pairs)


def ordered(traffic: Traffic) -> list[tuple[tuple[int, int, int], RecordEntry | FeedbackEntry]]:
    entries: list[tuple[tuple[int, int, int], RecordEntry | FeedbackEntry]] = [
        (read_entry(0, name, {})[:3], one) for name, one in traffic[0]
    ]
    entries += [(read_entry(1, name, {})[:3], one) for name, one in traffic[1]]
    return sorted(entries, key=lambda found: found[0])


def both_versions() -> Any:
    return step(
        v3=WatchedVersion(task="returns", state="active", previous=V2),
        v2=WatchedVersion(task="returns", state="previous_version"),
    )


def reckoned(traffic: Traffic, cuts: set[int]) -> dict[str, bytes]:
    """The watches after all entries; at each cut another child takes over, from what was written as JSON."""
    placed = {
        one.id: msgspec.structs.replace(one, placed_at=read_entry(0, name, {}).milliseconds / 1000)
        for name, one in traffic[0]
    }
    watches = Watches("e")
    watches.begin(both_versions(), BASELINES)
    for place, (key, one) in enumerate(ordered(traffic)):
        if place in cuts:
            watches.tick((key[0] - 1) / 1000)
            taken_over = Watches("e")
            for name, known in watches.by_version.items():
                taken_over.by_version[name] = msgspec.json.decode(msgspec.json.encode(known), type=Watch)
            for request, note in watches.notes.items():
                taken_over.notes[request] = msgspec.json.decode(msgspec.json.encode(note), type=Note)
            watches = taken_over
            watches.begin(both_versions(), BASELINES)
        if isinstance(one, RecordEntry):
            watches.take_record(placed[one.id], key[0] / 1000)
        else:
            watches.take_feedback(one, placed[one.request], key[0] / 1000)
    watches.tick(MORNING + 100_000)
    return {name: msgspec.json.encode(known) for name, known in watches.by_version.items()}


@pytest.fixture(scope="module")
def whole() -> tuple[Traffic, dict[str, bytes]]:
    traffic = mixed_traffic(300, 1)
    return traffic, reckoned(traffic, set())


@settings(max_examples=8)
@given(cuts=st.sets(st.integers(0, 800), min_size=1, max_size=12))
def test_any_cut_and_any_child_leave_the_same_watches_to_the_last_bit(
    whole: tuple[Traffic, dict[str, bytes]], cuts: set[int]
) -> None:
    traffic, watches = whole
    assert reckoned(traffic, cuts) == watches


def taken(traffic: Traffic) -> Watches:
    """All of it reckoned with, and no more time passed than that."""
    watches = Watches("e")
    watches.begin(both_versions(), BASELINES)
    placed = {one.id: one for _, one in traffic[0]}
    for key, one in ordered(traffic):
        if isinstance(one, RecordEntry):
            watches.take_record(one, key[0] / 1000)
        else:
            watches.take_feedback(one, placed[one.request], key[0] / 1000)
    return watches


def test_a_long_silence_passes_in_parts_and_leaves_the_same_watches(whole: tuple[Traffic, dict[str, bytes]]) -> None:
    at_once, in_parts = taken(whole[0]), taken(whole[0])
    end = MORNING + 9 * 86_400
    assert at_once.tick(end)
    parts = 1
    while not in_parts.tick(end, lambda: True):
        parts += 1
    assert parts > 2 * 8 * 4, "two versions, of which each has some 8 days to go"
    assert in_parts.by_version == at_once.by_version
    known = dict(in_parts.by_version)
    assert in_parts.tick(end + 3600, lag=7200.0)
    assert in_parts.by_version == known, "they are not that far behind"


def test_versions_of_a_task_that_is_watched_no_more_take_no_part_of_the_false_alarms(
    whole: tuple[Traffic, dict[str, bytes]],
) -> None:
    usual, other = taken(whole[0]), taken(whole[0])
    gone = other.by_version[V2]
    for number in range(30):
        name = f"gone@v{number}"
        other.by_version[name] = msgspec.structs.replace(gone, version=name, task="gone")
    at_ = MORNING + 1e5
    assert other.judged([V3], at_) == usual.judged([V3], at_)


def test_a_state_that_can_not_be_reckoned_with_stops_none_of_the_others(
    whole: tuple[Traffic, dict[str, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    watches = taken(whole[0])
    known = watches.by_version[V2]
    assert known.complaints is not None
    damaged = msgspec.structs.replace(known.complaints.detectors.whole, cohorts=())
    detectors = msgspec.structs.replace(known.complaints.detectors, whole=damaged)
    complaints = msgspec.structs.replace(known.complaints, detectors=detectors)
    signals: Any = {"length": None}
    watches.by_version[V2] = msgspec.structs.replace(known, complaints=complaints, signals=signals)
    for _ in range(2):
        assert watches.tick(MORNING + 2e5)
        watches.begin(both_versions(), BASELINES)
        assert watches.judged([V2, V3], MORNING + 2e5).keys() == {V3}
    assert watches.unreadable == len(caplog.records) == 1
    broken = watches.by_version[V2]
    assert watches.unjudged == {V2}
    for count, (state, unjudged) in enumerate(((known, set()), (broken, {V2})), start=1):
        watches.by_version[V2] = state
        watches.judged([V2, V3], MORNING + 2e5)
        assert (watches.unjudged, len(caplog.records)) == (unjudged, count)


def test_the_order_in_which_entries_are_given_does_not_matter(whole: tuple[Traffic, dict[str, bytes]]) -> None:
    (records, feedback), _ = whole
    usual = replay(records, feedback, both_versions(), MORNING + 1e5, BASELINES)
    turned = replay(records[::-1], feedback[::-1], both_versions(), MORNING + 1e5, BASELINES)
    assert msgspec.json.encode(usual) == msgspec.json.encode(turned)
    assert usual.keys() == {V2, V3}


def named(stream: int, *names: str) -> list[StreamEntry]:
    return [read_entry(stream, name, {}) for name in names]


def names(entries: list[StreamEntry]) -> list[str]:
    return [f"{'rof'[one.stream]}{one.name}" for one in entries]


def test_entries_come_in_the_order_of_the_clock_and_records_first() -> None:
    records, feedback = named(RECORDS, "5-0", "7-0", "7-1"), named(FEEDBACK, "5-0", "6-3", "7-0")
    reported = named(REPORTED, "4-9", "7-0")
    found = order_entries([records, reported, feedback], 10, None)
    assert names(found) == ["o4-9", "r5-0", "f5-0", "f6-3", "r7-0", "r7-1", "o7-0", "f7-0"]


def test_what_may_still_be_overtaken_waits() -> None:
    streams = [named(RECORDS, "5-0", "7-0"), [], named(FEEDBACK, "5-0", "6-3", "7-0", "9-0")]
    assert names(order_entries(streams, 2, None)) == ["r5-0", "f5-0", "f6-3", "r7-0"]
    assert names(order_entries(streams, 4, None)) == ["r5-0", "f5-0", "f6-3", "r7-0", "f7-0", "f9-0"]
    assert names(order_entries(streams, 10, 6)) == ["r5-0", "f5-0", "f6-3"]


NUMBERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), unique=True)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.integers(1, 5))
def test_however_many_are_read_at_once_all_come_once_and_in_the_same_order(
    drawn: tuple[list[tuple[int, int]], ...], count: int
) -> None:
    streams = [named(at_, *(f"{ms}-{n}" for ms, n in sorted(one))) for at_, one in enumerate(drawn)]
    taken: list[StreamEntry] = []
    read = [0, 0, 0]
    while True:
        parts = [one[done : done + count] for one, done in zip(streams, read, strict=True)]
        found = order_entries(parts, count, None)
        if not found:
            break
        taken += found
        for one in found:
            read[one.stream] += 1
    assert taken == sorted([one for entries in streams for one in entries], key=lambda one: one[:3])


def test_packed_entries_are_taken_apart() -> None:
    found = unpack(FEEDBACK, b"5-0 2 3 6-1 -1 4", b"r1{a}{bb}")
    assert [(one.name, one.fields) for one in found] == [
        ("5-0", {"request": b"r1", "feedback": b"{a}"}),
        ("6-1", {"feedback": b"{bb}"}),
    ]
    assert unpack(RECORDS, b"", b"") == []


def test_classes_of_another_tag_take_the_place_of_those_before() -> None:
    watches = Watches("e")
    for tag in ("kind", "country"):
        watches.begin(step(msgspec.structs.replace(PLAN, class_tag=tag)), {})
        for number in range(20):
            record = served(f"{tag}-{number}")
            watches.take_record(record, MORNING)
            told = said(record.id, tags={"kind": f"k{number}", "country": f"c{number}"})
            watches.take_feedback(told, record, MORNING + 1)
    assert watches.by_version[V3].classes.keys() == {f"feedback:c{number}" for number in range(20)}
