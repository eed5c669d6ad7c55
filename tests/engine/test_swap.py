"""Swaps on real vLLM: two replicas, two gateways, callers that stream and callers that do not, and a replica killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from benchmarks.swap_callers import Crowd, under_load
from benchmarks.swap_counts import FAULTS, Answer, Swap, count
from tests.engine.conftest import SNAPSHOT_SECONDS, TwoReplicas
from tests.engine.words import TASK, Desk, life_of, loads_of, references, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
SWAPS = 12
NO_FAULTS = dict.fromkeys(FAULTS, 0)
KILLED = "small-1"


def swap_and_ask(first: Desk, second: Desk) -> list[Swap]:
    """Forwards by a new alias and backwards by a rollback, each followed by one request to either gateway."""
    made = []
    for number in [2, 1] * (SWAPS // 2):
        sent_at = time.monotonic()
        if number == 2:
            first.point(f"{TASK}@v2")
        else:
            first.roll_back()
        made.append(Swap(number, sent_at, time.monotonic()))
        assert first.ask()[0] == f"{TASK}@v{number}"
        wait_until(lambda number=number: second.ask()[0] == f"{TASK}@v{number}", "the second gateway follows")  # type: ignore[misc]
    return made


async def test_swaps_under_load_drop_break_and_mix_nothing_and_load_nothing(two_replicas: TwoReplicas) -> None:
    first, second = two_replicas.desks
    swaps: list[Swap] = []
    at_second: list[Answer] = []

    def swap() -> None:
        swaps.extend(swap_and_ask(first, second))

    def ask_the_second_too() -> None:
        at_second.extend(under_load(second.target(), Crowd(2, 0.5), 2, swap))

    await asyncio.to_thread(first.point, f"{TASK}@v1")
    loads = two_replicas.loads()
    at_first = await asyncio.to_thread(under_load, first.target(), Crowd(4, 0.5), 1, ask_the_second_too)
    found = count(at_first, swaps, references(), 1, TASK + "@v{}")
    assert {name: found[name] for name in FAULTS} == NO_FAULTS
    assert found["answers_that_could_be_stale"] >= SWAPS / 2
    seen_late = [Swap(each.number, each.sent_at, each.done_at + 2 * SNAPSHOT_SECONDS) for each in swaps]
    found = count(at_second, seen_late, references(), 1, TASK + "@v{}")
    assert {name: found[name] for name in FAULTS} == NO_FAULTS
    assert two_replicas.loads() == loads


async def test_a_killed_replica_is_out_of_rotation_until_its_versions_are_loaded_and_probed_again(
    two_replicas: TwoReplicas,
) -> None:
    first, _ = two_replicas.desks
    engine = two_replicas.engines.general
    replica = two_replicas.gateways[0].house.fleet.replicas[KILLED]
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

    first_life = await asyncio.to_thread(life_of, engine)
    await asyncio.to_thread(first.point, live)
    loaded_before = loads_of(engine)
    answers = await asyncio.to_thread(under_load, first.target(), Crowd(6, 0.5), 3, kill_and_wait_until_it_is_out)
    cut = [each for each in answers if each.broken]
    assert all(each.stream and each.sent_at < each.began_at <= killed_at for each in cut), cut
    found = count([each for each in answers if not each.broken], [], references(), 1, TASK + "@v{}")
    assert {name: found[name] for name in FAULTS} == NO_FAULTS
    await asyncio.to_thread(wait_until, lambda: ready() == ["small-0", KILLED], f"{KILLED} is back")
    assert await asyncio.to_thread(life_of, engine) != first_life
    again = loads_of(engine)[len(loaded_before) :]
    assert live in again
    assert len(again) == len(set(again)), "each once"
    placed = {row["replica"]: row["state"] for row in first.call("GET", f"adapters/{live}")["placements"]}
    assert placed == {"small-0": "ready", KILLED: "ready"}
