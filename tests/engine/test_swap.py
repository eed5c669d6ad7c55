"""Swaps on real vLLM: two replicas, two gateways, callers that stream and callers that do not, and a replica killed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from benchmarks.swap_callers import Crowd, under_load
from benchmarks.swap_counts import Swap
from tests.engine.conftest import SNAPSHOT_SECONDS, TwoReplicas
from tests.engine.words import TASK, Desk, assert_no_fault, in_a_thread, life_of, loads_of, target, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
SWAPS = 4
KILLED = "small-1"


def swap_and_ask(first: Desk) -> list[Swap]:
    """Forwards by a new alias and backwards by a rollback, each followed by two requests, and by more until others'
    answers that begin are one version's for certain: for longer than either door lags."""
    made = []
    for number in [2, 1] * (SWAPS // 2):
        sent_at = time.monotonic()
        if number == 2:
            first.point(f"{TASK}@v2")
        else:
            first.roll_back()
        made.append(Swap(number, sent_at, time.monotonic()))
        asked, certain_at = 0, time.monotonic() + 6 * SNAPSHOT_SECONDS
        while asked < 2 or time.monotonic() < certain_at:
            assert first.ask()[0] == f"{TASK}@v{number}"
            asked += 1
    return made


@pytest.mark.invariant("A swap drops, breaks and mixes no answer, and loads nothing.")
@in_a_thread
def test_swaps_under_load_drop_break_and_mix_nothing_and_load_nothing(two_replicas: TwoReplicas) -> None:
    first, second = two_replicas.desks
    swaps: list[Swap] = []

    def swap() -> None:
        swaps.extend(swap_and_ask(first))

    first.point(f"{TASK}@v1")
    loads = two_replicas.loads()
    asked = target(first, second, lag_seconds=2 * SNAPSHOT_SECONDS)
    answers = under_load(asked, Crowd(6, 0.5), 1, swap)
    counts = assert_no_fault(first, answers, swaps)
    assert counts["answers_that_could_be_stale"], "besides those that were asked for after each swap"
    assert two_replicas.loads() == loads


@in_a_thread
def test_killed_replicas_streams_continue_elsewhere_until_it_is_loaded_and_probed(
    two_replicas: TwoReplicas,
) -> None:
    first, _ = two_replicas.desks
    engine = two_replicas.engines.general
    replica = two_replicas.gateways[0].services.fleet.replicas[KILLED]
    live = f"{TASK}@v1"
    killed_at = 0.0

    def ready() -> list[str]:
        return list(first.call("GET", f"adapters/{live}")["ready"])

    def kill_and_wait_until_it_is_out() -> None:
        nonlocal killed_at
        wait_until(lambda: replica.in_flight > 0, f"something is under way on {KILLED}")
        assert engine.pid is not None
        os.killpg(os.getpgid(engine.pid), signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until(lambda: ready() == ["small-0"], f"{KILLED} is out of rotation")
        for _ in range(3):
            assert first.ask()[0] == live

    first_life = life_of(engine)
    first.point(live)
    loaded_before = loads_of(engine)
    answers = under_load(target(first), Crowd(6, 0.5), 3, kill_and_wait_until_it_is_out)
    assert_no_fault(first, answers, [])
    assert any(each.sent_at < killed_at < each.ended_at for each in answers)
    wait_until(lambda: ready() == ["small-0", KILLED], f"{KILLED} is back")
    assert life_of(engine) != first_life
    again = loads_of(engine)[len(loaded_before) :]
    assert live in again
    assert len(again) == len(set(again)), "each once"
