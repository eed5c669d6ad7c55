"""The swap benchmark: whose an answer is, which versions may give it, how a stream ended, and a small run of it all."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from benchmarks import swap
from benchmarks.swap_callers import Crowd, read_stream
from benchmarks.swap_counts import FAULTS, Answer, Class, Nearest, Swap, Tokens, class_of, count, may_be, quantile

FAKE = Tokens({1: ["a#1", " says:", " elm", " fir"], 2: ["a#2", " says:", " elm", " oak"]})
REAL = Nearest({1: "apple pear plum", 2: "hammer nail screw"})


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["a#1", " says:", " elm", " fir"], Class(1, mixed=False)),
        (["a#2", " says:"], Class(2, mixed=False)),
        (["a#1", " says:", " elm", " oak"], Class(None, mixed=True)),
        (["a#1", " says:", " yew"], Class(None, mixed=True)),
        (["a#1", " says:", " elm", " fir", " and more"], Class(None, mixed=True)),
        (["a#3", " says:", " elm", " fir"], Class(None, mixed=False)),
        ([" says:", "a#1"], Class(None, mixed=False)),
        ([], Class(None, mixed=False)),
    ],
)
def test_a_fake_engines_answer_is_classed_by_what_stands_where(chunks: list[str], expected: Class) -> None:
    assert class_of(FAKE, chunks) == expected


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["apple", " pear", " plum", ""], Class(1, mixed=False)),
        (["app", "le", " pe", "ar"], Class(1, mixed=False)),
        (["plum apple", " pear"], Class(1, mixed=False)),
        (["hammer nail", " screws"], Class(2, mixed=False)),
        (["apple", " nail"], Class(None, mixed=True)),
        (["apple nail"], Class(None, mixed=True)),
        (["toy", " apple"], Class(None, mixed=False)),
    ],
)
def test_a_real_engines_answer_is_classed_by_the_nearest_text(chunks: list[str], expected: Class) -> None:
    assert class_of(REAL, chunks) == expected


@pytest.mark.parametrize(
    ("sent_at", "began_at", "allowed"),
    [
        (0.5, 0.6, {1}),
        (0.9, 1.05, {1, 2}),
        (1.05, 1.5, {1, 2}),
        (1.1, 1.5, {2}),
        (1.2, 2.5, {2, 1}),
        (2.2, 2.3, {1}),
    ],
)
def test_request_after_a_confirmed_swap_is_never_answered_by_the_version_before(
    sent_at: float, began_at: float, allowed: set[int]
) -> None:
    swaps = [Swap(2, 1.0, 1.1), Swap(1, 2.0, 2.1)]
    assert may_be(swaps, 1, Answer(True, 0, sent_at, began_at)) == allowed


def test_through_another_gateway_a_swap_may_take_the_snapshot_interval() -> None:
    swaps = [Swap(2, 1.0, 1.1)]
    older = {"status": 200, "chunks": ["apple"], "models": {"returns@v1"}, "lag_seconds": 1.0}
    counted = count([answer(**older, sent_at=sent_at) for sent_at in (2.0, 2.2)], swaps, [REAL], 1, "returns@v{}")
    assert (counted["older_within_lag"], counted["stale"]) == (1, 1)


def answer(**changes: Any) -> Answer:
    """A good answer of version 1, sent after a swap to it."""
    good = {"status": 200, "chunks": ["apple", " pear"], "models": {"returns@v1"}, "pool": "small"}
    made = Answer(True, 0, 3.0, 3.1, 3.2)
    for name, value in {**good, **changes}.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "counted_as"),
    [
        ({}, None),
        ({"status": 404, "chunks": [], "models": set()}, "refused"),
        ({"broken": "the stream ended early"}, "broken"),
        ({"status": 0, "broken": "ConnectionRefusedError()"}, "broken"),
        ({"pool": "general"}, "fallbacks"),
        ({"chunks": ["apple", " nail"]}, "mixed"),
        ({"models": {"returns@v1", "returns@v2"}}, "mixed"),
        ({"models": {"returns@v2"}}, "mislabelled"),
        ({"chunks": ["toy"]}, "of_neither"),
        ({"chunks": ["hammer"], "models": {"returns@v2"}}, "stale"),
    ],
)
def test_each_kind_of_fault_is_counted_as_what_it_is(changes: dict[str, Any], counted_as: str | None) -> None:
    swaps = [Swap(2, 1.0, 1.1), Swap(1, 2.0, 2.1)]
    counted = count([answer(**changes)], swaps, [REAL], 1, "returns@v{}")
    faults = {name: counted[name] for name in FAULTS}
    assert faults == dict.fromkeys(FAULTS, 0) | ({counted_as: 1} if counted_as else {})


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"model": "returns@v1", "choices": [choice]}).encode() + b"\n"


def test_a_stream_is_whole_only_with_a_reason_and_an_end() -> None:
    whole = [event("apple"), b"\n", event(" pear", "stop"), b"data: [DONE]\n"]
    read = Answer(True, 0, 0.0)
    assert read_stream(whole, read) == ""
    assert (read.chunks, read.models) == (["apple", " pear"], {"returns@v1"})
    assert read_stream(whole[:3], Answer(True, 0, 0.0)) == "the stream ended early"
    assert read_stream([event("apple"), b"data: [DONE]\n"], Answer(True, 0, 0.0)) == "the stream ended early"


def test_an_error_event_within_a_good_status_is_an_error() -> None:
    lines = [event("apple"), b'data: {"error": {"message": "died"}}\n', b"data: [DONE]\n"]
    assert read_stream(lines, Answer(True, 0, 0.0)).startswith("error event")


def test_a_quantile_of_nothing_is_nothing() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.99) == 2.0


@pytest.mark.parametrize(("callers", "streams"), [(2, 1), (3, 2), (6, 4)])
def test_of_any_crowd_some_stream_and_some_do_not(callers: int, streams: int) -> None:
    assert Crowd(callers, 0.0).streams == streams


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the benchmark takes two cores")
def test_swaps_through_the_gateway_drop_nothing_and_each_naive_way_does(capsys: pytest.CaptureFixture[str]) -> None:
    code = swap.main(["--json", "--swaps", "10", "--swap-seconds", "0.06", "--quiet-seconds", "0.4"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, report["reasons"]) == (0, [])
    subjects = report["subjects"]
    assert {name: subjects["gateway"][name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert subjects["gateway"]["answers_that_could_be_stale"] > 0
    assert subjects["unload_and_load"]["refused"] > 0
    assert subjects["same_folder"]["of_neither"] > 0
    assert subjects["load_inplace"]["mixed"] > 0
    assert {one["swaps"] for one in subjects.values()} == {10}
