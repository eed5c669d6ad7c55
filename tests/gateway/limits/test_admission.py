"""Places and lines: a counter while there is room, and who is next when there is none."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from gateway.configuration.settings import LimitSettings
from gateway.errors import Problem
from gateway.limits.admission import Admission, Place, Priority
from monitoring.metrics import Meters
from tests.waiting import until


class Crowd:
    """Requests of several callers that hold a place until they are told to go."""

    def __init__(self, full: frozenset[str] = frozenset(), **limits: Any) -> None:
        self.meters = Meters()
        self.full = set(full)
        self.vain: set[str] = set()
        """Of the full ones, those that seem to have room."""
        self.admission = Admission(LimitSettings(**limits), self.meters, self._has_room)
        self.served: list[str] = []
        self.looks: Counter[str] = Counter()
        self.told: list[Problem] = []
        self._going: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _has_room(self, name: str) -> bool:
        return name not in self.full or name in self.vain

    async def come(self, name: str, priority: Priority = "interactive", replica: str | None = None) -> None:
        """A request `caller-number` comes, and holds a place or waits when this returns."""
        self._going[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._walk(name, priority, replica))
        await settled()

    async def go(self, name: str) -> None:
        """It is done."""
        self._going[name].set()
        await settled()

    async def hang_up(self, name: str) -> None:
        """Its caller goes."""
        self._tasks[name].cancel()
        await settled()

    async def go_all(self) -> None:
        """All that are served go, and those after them."""
        while waiting := [name for name in self.served if not self._going[name].is_set()]:
            await self.go(waiting[0])

    async def _walk(self, name: str, priority: Priority, replica: str | None) -> None:
        try:
            with self.admission.admit(name.partition("-")[0], priority) as place:
                if not place.is_taken:
                    await place.turn()
                await self._find(name, place, replica)
                self.served.append(name)
                await self._going[name].wait()
        except Problem as problem:
            self.told.append(problem)

    async def _find(self, name: str, place: Place, replica: str | None) -> None:
        waited = False
        while replica in self.full:
            await place.turn(frozenset({replica}))
            self.looks[name] += 1
            waited = True
        if waited:
            place.go_on()


async def settled() -> None:
    """All that could run has run."""
    for _ in range(12):
        await asyncio.sleep(0)


async def test_while_places_are_free_nobody_waits() -> None:
    crowd = Crowd(in_flight_max=2)
    await crowd.come("a-1")
    await crowd.come("b-1")
    assert crowd.served == ["a-1", "b-1"]
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (2, 0)
    await crowd.go_all()
    assert crowd.admission.in_flight == 0


@pytest.mark.invariant("One caller's flood delays no other, and batch requests do not starve.")
async def test_one_callers_flood_holds_no_other_up() -> None:
    crowd = Crowd(in_flight_max=1)
    for number in range(5):
        await crowd.come(f"flood-{number}")
    await crowd.come("b-1")
    await crowd.come("c-1")
    await crowd.go_all()
    assert crowd.served[:5] == ["flood-0", "flood-1", "b-1", "c-1", "flood-2"]
    assert Counter(name.partition("-")[0] for name in crowd.served) == {"flood": 5, "b": 1, "c": 1}


async def test_who_has_its_share_of_the_places_gets_no_more_while_another_waits() -> None:
    crowd = Crowd(in_flight_max=4, caller_share_max=0.5)
    for number in range(8):
        await crowd.come(f"flood-{number}")
    for number in range(3):
        await crowd.come(f"b-{number}")
    await crowd.go("flood-0")
    await crowd.go("flood-1")
    await crowd.go("flood-2")
    assert [name for name in crowd.served if name.startswith("b")] == ["b-0", "b-1"]
    assert len(crowd.served) == 7
    await crowd.go_all()


@pytest.mark.invariant("One caller's flood delays no other, and batch requests do not starve.")
async def test_interactive_goes_before_batch_which_gets_its_small_share() -> None:
    crowd = Crowd(in_flight_max=1, batch_share_min=0.25)
    await crowd.come("a-0")
    await crowd.come("night-0", "batch")
    await crowd.come("night-1", "batch")
    for number in range(1, 12):
        await crowd.come(f"a-{number}")
    await crowd.go_all()
    places = [number for number, name in enumerate(crowd.served) if name.startswith("night")]
    assert places[0] > 1
    assert places == [4, 8]


async def test_without_others_batch_waits_for_nobody() -> None:
    crowd = Crowd(in_flight_max=1, batch_share_min=0)
    await crowd.come("a-0", "batch")
    await crowd.come("a-1", "batch")
    await crowd.go_all()
    assert crowd.served == ["a-0", "a-1"]


async def test_a_full_queue_sheds_with_503_and_a_callers_own_full_share_with_429() -> None:
    crowd = Crowd(in_flight_max=1, queue_max=4, caller_share_max=0.5)
    for name in ("a-0", "a-1", "a-2", "a-3"):
        await crowd.come(name)
    await crowd.come("b-0")
    await crowd.come("b-1")
    await crowd.come("c-0")
    assert [(problem.code, problem.status) for problem in crowd.told] == [("caller_busy", 429), ("overload", 503)]
    assert all((problem.retry_after_seconds or 0) >= 1 for problem in crowd.told)
    text = crowd.meters.exposition()[0].decode()
    assert 'apprentice_requests_shed_total{cause="caller_busy"} 1' in text
    assert 'apprentice_requests_shed_total{cause="queue_full"} 1' in text
    await crowd.go_all()
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (0, 0)


async def test_with_a_queue_of_none_there_is_no_waiting() -> None:
    crowd = Crowd(in_flight_max=1, queue_max=0)
    await crowd.come("a-0")
    await crowd.come("b-0")
    assert [problem.code for problem in crowd.told] == ["overload"]
    await crowd.go_all()


async def test_who_waits_too_long_is_told_so_and_leaves_its_place_in_line() -> None:
    crowd = Crowd(in_flight_max=1, queue_seconds_max=0.05)
    await crowd.come("a-0")
    await crowd.come("b-0")
    await until(lambda: bool(crowd.told))
    assert crowd.told[0].code == "overload"
    assert crowd.admission.waiting == 0
    await crowd.go_all()
    assert "apprentice_queue_seconds_count" in crowd.meters.exposition()[0].decode()


async def test_who_hangs_up_in_line_gives_its_place_to_the_next() -> None:
    crowd = Crowd(in_flight_max=1)
    for name in ("a-0", "b-0", "c-0"):
        await crowd.come(name)
    await crowd.hang_up("b-0")
    await crowd.go("a-0")
    assert crowd.served == ["a-0", "c-0"]
    await crowd.go_all()
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (0, 0)


async def test_who_hangs_up_just_as_its_turn_comes_passes_it_on() -> None:
    crowd = Crowd(in_flight_max=1)
    for name in ("a-0", "b-0", "c-0"):
        await crowd.come(name)
    crowd._going["a-0"].set()
    while crowd.admission.waiting == 2:
        await asyncio.sleep(0)
    await crowd.hang_up("b-0")  # called, but not yet awake
    assert crowd.served == ["a-0", "c-0"]
    await crowd.go_all()
    assert crowd.admission.in_flight == 0


async def test_who_waits_for_one_replica_does_not_stand_before_those_who_want_another() -> None:
    crowd = Crowd(full=frozenset({"small", "general"}), in_flight_max=10)
    await crowd.come("a-0")
    await crowd.come("a-1", replica="small")
    await crowd.come("a-2", replica="general")
    crowd.full.remove("general")
    await crowd.go("a-0")
    assert crowd.served == ["a-0", "a-2"]
    crowd.full.remove("small")
    await crowd.go("a-2")
    assert crowd.served == ["a-0", "a-2", "a-1"]
    await crowd.go_all()


async def test_who_looks_for_a_replica_in_vain_takes_no_call_from_who_waits_for_a_place() -> None:
    crowd = Crowd(full=frozenset({"small"}), in_flight_max=2)
    crowd.vain.add("small")
    await crowd.come("a-0")
    await crowd.come("b-0", replica="small")
    await crowd.come("c-0")
    await crowd.come("d-0", "batch")
    await crowd.go("a-0")
    assert crowd.served == ["a-0", "c-0"]
    await crowd.go("c-0")
    assert crowd.served == ["a-0", "c-0", "d-0"]
    crowd.full.clear()
    await crowd.go_all()
    await until(lambda: "b-0" in crowd.served)
    await crowd.go_all()
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (0, 0)


async def test_a_newcomer_passes_nobody_who_waits_for_a_place() -> None:
    crowd = Crowd(in_flight_max=1)
    await crowd.come("a-0")
    await crowd.come("b-0")
    crowd.admission._in_flight_max = 2
    await crowd.come("c-0")
    await crowd.go("a-0")
    assert crowd.served == ["a-0", "b-0"]
    await crowd.go_all()
    assert crowd.served == ["a-0", "b-0", "c-0"]


async def test_a_replica_that_comes_up_is_noticed_without_anybody_leaving() -> None:
    crowd = Crowd(full=frozenset({"small"}), in_flight_max=10)
    for number in range(3):
        await crowd.come(f"a-{number}", replica="small")
    crowd.full.clear()
    await until(lambda: len(crowd.served) == 3)
    assert crowd.served == ["a-0", "a-1", "a-2"]
    await crowd.go_all()


async def test_who_looks_for_a_replica_in_vain_keeps_its_turn_and_its_place_in_line() -> None:
    crowd = Crowd(full=frozenset({"small"}), in_flight_max=10)
    for name in ("b-0", "a-0", "a-1", "a-2"):
        await crowd.come(name, replica="small")
    await until(lambda: len(crowd.looks) == 4)
    crowd.full.clear()
    crowd.admission.call_next()
    await settled()
    assert crowd.served == ["b-0", "a-0", "a-1", "a-2"]
    await crowd.go_all()
    assert (crowd.admission.in_flight, crowd.admission.waiting) == (0, 0)


async def test_new_limits_leave_those_who_wait_for_a_replica_in_their_order() -> None:
    crowd = Crowd(full=frozenset({"small"}), in_flight_max=10)
    crowd.vain.add("small")
    for name in ("a-0", "a-1", "a-2"):
        await crowd.come(name, replica="small")
    crowd.admission.apply_settings(LimitSettings(in_flight_max=20))
    await settled()
    crowd.full.clear()
    crowd.admission.call_next()
    await settled()
    assert crowd.served == ["a-0", "a-1", "a-2"]
    await crowd.go_all()


async def test_those_who_wait_count_as_under_way_while_it_drains_and_newcomers_are_refused() -> None:
    crowd = Crowd(in_flight_max=1)
    await crowd.come("a-0")
    await crowd.come("b-0")
    drained = asyncio.create_task(crowd.admission.drain())
    await settled()
    await crowd.come("c-0")
    assert [problem.code for problem in crowd.told] == ["draining"]
    await crowd.go("a-0")
    assert not drained.done()
    await crowd.go("b-0")
    await asyncio.wait_for(drained, 30)
    assert crowd.served == ["a-0", "b-0"]


async def test_larger_limits_let_those_in_who_wait() -> None:
    crowd = Crowd(in_flight_max=1)
    for name in ("a-0", "b-0", "c-0"):
        await crowd.come(name)
    crowd.admission.apply_settings(LimitSettings(in_flight_max=3))
    await settled()
    assert crowd.served == ["a-0", "b-0", "c-0"]
    await crowd.go_all()


@pytest.mark.invariant("No place in a queue is left over.")
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_nothing_is_left_over(seed: int) -> None:
    import random

    chance = random.Random(seed)
    crowd = Crowd(in_flight_max=3, queue_max=8, queue_seconds_max=30)
    names = [f"{caller}-{number}" for number in range(8) for caller in "abc"]
    come: list[str] = []
    for name in names:
        crowd.full = {"x"} if chance.random() < 0.5 else set()
        await crowd.come(name, chance.choice(("interactive", "batch")), chance.choice((None, "x")))
        come.append(name)
        if chance.random() < 0.6:
            await crowd.go(chance.choice(come))
        if chance.random() < 0.2:
            await crowd.hang_up(chance.choice(come))
        assert crowd.admission.in_flight <= 3
    crowd.full = set()
    for name in come:
        await crowd.go(name)
    await until(lambda: crowd.admission.in_flight == 0 and crowd.admission.waiting == 0)
    assert crowd.admission._running == {}
    assert crowd.admission._waiting_of == {}


def test_a_share_in_which_the_longest_body_never_has_room_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Crowd(bodies_bytes_max=1 << 20, body_bytes_max=1 << 19, caller_share_max=0.5)
    assert not caplog.records
    Crowd(bodies_bytes_max=1 << 20, body_bytes_max=1 << 19, caller_share_max=0.4)
    assert "a body of more than 419430 bytes always gets 503" in caplog.text
