"""Callers of many streams: they see an engine's pace, and whether they are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from benchmarks.scale_streams import Callers, request_of
from benchmarks.subjects import Subject, set_pace, start_engine
from tests.programs import needs

pytestmark = needs("gcc", "taskset")


@pytest.fixture(scope="module")
def engine() -> Iterator[Subject]:
    with ExitStack() as stack:
        yield start_engine(stack, None)


def read_until(callers: Callers, done: Callable[[], bool]) -> None:
    """Read for at most a minute, and hang up."""
    until = time.monotonic() + 60
    while not done() and time.monotonic() < until:
        callers.read(0.05)
    callers.close()
    assert done()


def test_callers_see_the_pace_and_begin_again(engine: Subject) -> None:
    set_pace(engine, 2_000)
    callers = Callers(engine.port, request_of(engine))
    callers.connect(4)
    read_until(callers, lambda: len(callers.gaps) > 4 * 65)
    assert callers.refused == 0
    assert sorted(callers.gaps)[len(callers.gaps) // 2] >= 0.001


def test_refused_streams_are_counted(engine: Subject) -> None:
    callers = Callers(engine.port, request_of(replace(engine, model="unknown")))
    callers.connect(2)
    read_until(callers, lambda: callers.refused == 2)
    assert callers.gaps == []
