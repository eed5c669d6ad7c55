from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from serving.fleet import LEAVING_SECONDS_MAX, Fleet, PoolConfig
from serving.replica import ReplicaConfig
from serving.shared_memory import ROWS_MAX, SharedMemory

POOLS = [PoolConfig("small", "base", (ReplicaConfig("small-0", "http://127.0.0.1:8101", "small", in_flight_max=3),))]


def in_process(memory: SharedMemory, number: int, act: Callable[[], object]) -> None:
    """Do this in another process that has the memory, as its process of this number."""
    pid = os.fork()
    if not pid:
        memory.process = number
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_rows_begun_by_another_process_are_the_same_rows() -> None:
    memory = SharedMemory(2)
    mine = memory.row("load", "one")
    in_process(memory, 1, lambda: (memory.row("load", "two").__setitem__(1, 5.0), memory.touch()))
    mine[0] = 2.0
    assert {names: list(row[:2]) for names, row in memory.rows("load")} == {("one",): [2, 0], ("two",): [0, 5]}
    assert memory.changes == 1


def test_a_row_without_room_is_not_shared_and_still_counts() -> None:
    memory = SharedMemory(2)
    row = memory.row("load", "x" * 600)
    row[0] = 1.0
    assert list(memory.rows("load")) == []
    assert row[0] == 1.0


def test_rows_of_replicas_that_have_left_are_used_again() -> None:
    memory = SharedMemory(2)
    for number in range(3 * ROWS_MAX):
        memory.row("load", f"small-{number}", "http://x")[0] = 7.0
        memory.release(f"small-{number}", "http://x")
    last = memory.row("load", "last", "http://x")
    assert list(last[:2]) == [0.0, 0.0]
    assert dict(memory.rows("load")) == {("last", "http://x"): last}
    memory.row("generations")
    memory.release()
    assert [names for names, _ in memory.rows("generations")] == [()]


def test_a_row_is_used_again_only_when_no_process_uses_it() -> None:
    memory = SharedMemory(2)
    in_process(memory, 1, lambda: memory.row("load", "one", "http://x").__setitem__(1, 5.0))
    mine = memory.row("load", "one", "http://x")
    memory.release("one", "http://x")
    memory.row("load", "two", "http://x")[0] = 3.0
    assert list(mine[:2]) == [0.0, 5.0], "the other process uses it still"
    memory.forget(1)
    in_process(memory, 1, lambda: memory.row("load", "three", "http://x").__setitem__(1, 9.0))
    assert {names[0]: list(row[:2]) for names, row in memory.rows("load")} == {"three": [0, 9], "two": [3, 0]}


def test_a_replica_that_has_long_left_gives_its_rows_back() -> None:
    memory = SharedMemory(2)
    fleet = Fleet(POOLS, memory)
    fleet.replicas["small-0"].failed(1.0, "base", "unreachable", 0.0)
    fleet.set_pools([PoolConfig("small", "base", ())], 1.0)
    assert all(any(memory.rows(kind)) for kind in ("load", "looks", "breaker"))
    fleet.set_pools([PoolConfig("small", "base", ())], 2.0 + LEAVING_SECONDS_MAX)
    for number in range(4):
        memory.row("load", str(number))
    assert not any(memory.rows("looks"))
    assert not any(memory.rows("breaker"))


@pytest.mark.invariant("The bounds of a gateway are of all its processes together.")
def test_a_replicas_load_is_that_of_all_processes_until_one_dies() -> None:
    memory = SharedMemory(2)
    fleet = Fleet(POOLS, memory)
    replica = fleet.replicas["small-0"]
    replica.lease(0.0, "base")
    second = Fleet(POOLS, memory).replicas["small-0"]
    in_process(memory, 1, lambda: [second.lease(0.0, "base") for _ in range(2)])
    assert (replica.load, replica.in_flight, fleet.view().in_flight["small-0"]) == (3, 1, 3)
    assert not replica.has_room
    memory.forget(1)
    assert replica.load == 1


def pair() -> tuple[SharedMemory, Fleet, Fleet]:
    """Two fleets on one memory, in one process; each is of the process that made it."""
    memory = SharedMemory(2)
    first = Fleet(POOLS, memory)
    return memory, first, Fleet(POOLS, memory)


def fail(memory: SharedMemory, fleet: Fleet, number: int, now: float) -> None:
    memory.process = number
    fleet.replicas["small-0"].failed(now, "base", "unreachable", 0.0)


@pytest.mark.invariant("The processes of a gateway try a sick engine no more often than one process does.")
def test_faults_of_all_processes_open_a_breaker_and_one_process_sees_about_it() -> None:
    memory, first, second = pair()
    for number, fleet in enumerate((first, second, first)):
        fleet.view()
        fail(memory, fleet, number % 2, 100.0)
    circuits = [fleet.view().pools["small"].replicas[0].circuits[""] for fleet in (first, second)]
    assert [circuit.open for circuit in circuits] == [True, True]
    assert sorted(circuit.resting_until for circuit in circuits) == [101.0, 101.0]  # as one process sees both
    lease = first.replicas["small-0"].lease(101.0, "base")
    assert [fleet.view().pools["small"].replicas[0].circuits[""].probing for fleet in (first, second)] == [True, True]
    first.replicas["small-0"].answered(101.5, "base")
    lease.give_back(101.5)
    assert all(not f.view().pools["small"].replicas[0].circuits.get("", circuits[0]).probing for f in (first, second))
    assert second.replicas["small-0"].breaker_state(102.0) == "closed"


def test_another_process_may_try_after_the_turn_of_the_one_that_saw_it_open() -> None:
    memory, first, second = pair()
    in_process(memory, 1, lambda: [fail(memory, second, 1, 100.0) for _ in range(3)])
    replica = first.view().pools["small"].replicas[0]
    assert replica.circuits[""].open
    assert replica.circuits[""].resting_until == 101.25


def test_a_probe_whose_process_died_is_no_probe_any_more() -> None:
    memory, first, second = pair()
    for _ in range(3):
        fail(memory, first, 0, 100.0)
    second.view()
    in_process(memory, 1, lambda: second.replicas["small-0"].lease(102.0, "base"))
    assert first.replicas["small-0"].breaker_state(100.5) == "half_open"
    memory.forget(1)
    assert first.replicas["small-0"].breaker_state(100.5) == "open"


def test_one_process_at_a_time_looks_at_a_replica() -> None:
    memory, first, second = pair()
    assert first.replicas["small-0"].may_look(10.0, 1.0)
    memory.process = 1
    assert not second.replicas["small-0"].may_look(10.0, 1.0)
    assert second.replicas["small-0"].looked_at == 10.0
    assert second.replicas["small-0"].may_look(11.0, 1.0)


def test_models_that_have_failed_once_and_are_well_keep_no_rows_in_any_process() -> None:
    memory, first, second = pair()
    for number in range(40):
        now, model = 100.0 * number, f"task-{number}@v1"
        for process, fleet in enumerate((first, second)):
            memory.process = process
            fleet.view()
            fleet.replicas["small-0"].failed(now, model, "failed", 0.0)
        for process, fleet in enumerate((first, second)):
            memory.process = process
            fleet.view()
            fleet.replicas["small-0"].answered(now + 50.0, model)
    assert len(dict(memory.rows("breaker"))) <= 2
