from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.adapters import placement_plan
from serving.adapters.placement_plan import BALANCE_MAX, Demand, Room, spread

TARGET = 8
many = settings(max_examples=max(300, settings().max_examples))


def rooms(count: int, max_loras: int = 4, places: int = 15) -> list[Room]:
    return [Room(f"small-{number}", max_loras, places) for number in range(count)]


def asked(count: int, in_flight: float = 0.0, priority: int = 0) -> dict[str, Demand]:
    return {f"task{number}@v1": Demand(in_flight, priority) for number in range(count)}


def sets(placed: Mapping[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    return {version: frozenset(replicas) for version, replicas in placed.items()}


def on(placed: Mapping[str, tuple[str, ...]]) -> Counter[str]:
    return Counter(replica for replicas in placed.values() for replica in replicas)


def any_rooms(chance: random.Random) -> list[Room]:
    return [
        Room(f"small-{number}", chance.randint(0, 4), chance.randint(-1, 6)) for number in range(chance.randint(0, 6))
    ]


def any_demands(chance: random.Random, priorities: int = 4) -> dict[str, Demand]:
    loads = [0.0, 0.4, 7.9, 8.0, 8.1, 30.0, 1e9, math.inf, -1.0, math.nan]
    return {
        f"task{number}@v{chance.randint(1, 2)}": Demand(chance.choice(loads), chance.randrange(priorities))
        for number in range(chance.randint(0, 12))
    }


def any_before(chance: random.Random, demands: Mapping[str, Demand], replicas: list[Room]) -> dict[str, frozenset[str]]:
    names = [*(room.name for room in replicas), "gone-0"]
    return {
        version: frozenset(chance.sample(names, chance.randint(0, len(names))))
        for version in [*demands, "retired@v1"]
        if chance.random() < 0.7
    }


chances = st.integers(0, (1 << 32) - 1).map(random.Random)


@many
@given(chances)
def test_no_replica_holds_more_than_its_places_whatever_is_asked(chance: random.Random) -> None:
    replicas, demands = any_rooms(chance), any_demands(chance)
    before = any_before(chance, demands, replicas)
    placed = spread(demands, replicas, chance.randint(0, 4), chance.randint(0, 10), before)
    assert placed.keys() == demands.keys()
    known = {room.name: room for room in replicas}
    for names in placed.values():
        assert len(set(names)) == len(names)
        assert set(names) <= known.keys()
    for name, count in on(placed).items():
        assert count <= known[name].places


@many
@given(chances)
def test_what_is_decided_once_is_decided_the_same_again(chance: random.Random) -> None:
    replicas, demands, least = any_rooms(chance), any_demands(chance), chance.randint(0, 4)
    before = any_before(chance, demands, replicas)
    placed = spread(demands, replicas, least, TARGET, before)
    turned = spread(dict(reversed(demands.items())), replicas[::-1], least, TARGET, dict(reversed(before.items())))
    assert turned == placed
    assert spread(demands, replicas, least, TARGET, sets(placed)) == placed, "it moves something for nothing"


@many
@given(chances)
def test_a_replica_that_leaves_takes_at_most_its_own_copies_with_it(chance: random.Random) -> None:
    replicas, demands, least = any_rooms(chance), any_demands(chance, priorities=1), chance.randint(0, 4)
    placed = sets(spread(demands, replicas, least, TARGET, {}))
    for lost in replicas:
        left = [room for room in replicas if room != lost]
        after = sets(spread(demands, left, least, TARGET, placed))
        for version, names in placed.items():
            assert names - {lost.name} <= after[version]
            assert len(after[version] - names) <= (1 if lost.name in names else 0)


@many
@given(chances)
def test_a_replica_that_joins_moves_nothing_away(chance: random.Random) -> None:
    replicas, demands, least = any_rooms(chance), any_demands(chance, priorities=1), chance.randint(0, 4)
    placed = sets(spread(demands, replicas, least, TARGET, {}))
    after = sets(spread(demands, [*replicas, Room("small-9", 4, 6)], least, TARGET, placed))
    for version, names in placed.items():
        assert names <= after[version]
        assert after[version] - names <= {"small-9"}


@many
@given(chances)
def test_a_version_loses_a_place_only_to_one_of_higher_priority(chance: random.Random) -> None:
    replicas, demands, least = any_rooms(chance), any_demands(chance), chance.randint(1, 4)
    placed = sets(spread(demands, replicas, least, TARGET, {}))
    demands["new@v1"] = Demand(chance.choice([0.0, 30.0]), chance.randrange(4))
    after = sets(spread(demands, replicas, least, TARGET, placed))
    for version, names in placed.items():
        if demands[version].priority >= demands["new@v1"].priority:
            assert names <= after[version]


def test_without_a_least_number_every_replica_holds_every_version() -> None:
    placed = spread(asked(3), rooms(4), 0, TARGET, {})
    assert all(len(names) == 4 for names in placed.values())


def test_every_version_has_its_own_first_choice() -> None:
    placed = spread(asked(200), rooms(8, max_loras=200, places=200), 2, TARGET, {})
    first = Counter(names[0] for names in placed.values())
    assert len(first) == 8
    assert max(first.values()) <= 2 * 200 / 8
    assert len(set(placed.values())) > 30


def test_two_hundred_versions_are_spread_evenly_over_eight_replicas() -> None:
    for least in (1, 2, 3):
        counted = on(spread(asked(200), rooms(8, max_loras=200, places=200), least, TARGET, {}))
        mean = 200 * least / 8
        assert sum(counted.values()) == 200 * least
        assert max(counted.values()) <= math.ceil(BALANCE_MAX * mean)
        assert min(counted.values()) >= mean / 2


def test_a_batch_is_filled_everywhere_before_any_replica_holds_more_than_one() -> None:
    counted = on(spread(asked(16), rooms(4, max_loras=4, places=15), 1, TARGET, {}))
    assert set(counted.values()) == {4}
    over = on(spread(asked(24), rooms(4, max_loras=4, places=15), 1, TARGET, {}))
    assert sum(over.values()) == 24


def test_a_version_for_which_there_is_no_place_gets_none() -> None:
    placed = spread(asked(5), rooms(2, places=2), 1, TARGET, {})
    assert sorted(len(names) for names in placed.values()) == [0, 1, 1, 1, 1]
    assert spread(asked(2), [], 1, TARGET, {}) == {"task0@v1": (), "task1@v1": ()}


def test_the_higher_priority_takes_the_place_of_the_lowest() -> None:
    demands = {"returns@v1": Demand(1.0, 3), "clauses@v1": Demand(0.0, 1), "claims@v1": Demand(0.0, 2)}
    placed = spread(demands, rooms(1, places=3), 1, TARGET, {})
    assert all(placed.values())
    demands["returns@v2"] = Demand(0.0, 3)
    after = spread(demands, rooms(1, places=3), 1, TARGET, sets(placed))
    assert [version for version, names in after.items() if not names] == ["clauses@v1"]


def test_a_new_version_does_not_drive_out_copies_that_others_need_for_their_load() -> None:
    busy = {"returns@v1": Demand(4.0 * TARGET, 3)}
    placed = spread(busy, rooms(4, places=1), 1, TARGET, {})
    assert len(placed["returns@v1"]) == 4
    both = {**busy, "returns@v2": Demand(0.0, 1)}
    assert spread(both, rooms(4, places=1), 1, TARGET, sets(placed)) == {**placed, "returns@v2": ()}


def test_copies_for_load_take_only_what_nobody_needs() -> None:
    demands = {"returns@v1": Demand(100.0, 3), "clauses@v1": Demand(0.0, 0)}
    placed = spread(demands, rooms(3, places=1), 1, TARGET, {})
    assert len(placed["returns@v1"]) == 2
    assert len(placed["clauses@v1"]) == 1


def copies_under(loads: list[float], least: int = 1) -> list[int]:
    """The number of copies that a version has while its load goes so."""
    before: dict[str, frozenset[str]] = {}
    counts = []
    for load in loads:
        before = sets(spread({"returns@v1": Demand(load, 0)}, rooms(6), least, TARGET, before))
        counts.append(len(before["returns@v1"]))
    return counts


def test_copies_grow_with_the_load_and_go_only_well_below() -> None:
    assert copies_under([0, 8, 8.1, 17, 30, 48, 1000]) == [1, 1, 2, 3, 4, 6, 6]
    assert copies_under([17, 16, 14, 10, 9.5, 5, 4.8, 4, 0]) == [3, 3, 3, 3, 2, 2, 1, 1, 1]
    assert copies_under([0, 30, 0], least=3) == [3, 4, 3]


def test_a_load_that_swings_about_a_step_does_not_make_copies_come_and_go() -> None:
    chance = random.Random(7)
    counts = copies_under([8 + chance.uniform(-2, 2) for _ in range(200)])
    assert counts == sorted(counts)
    assert counts[-1] == 2


def test_the_copy_that_goes_is_the_last_choice() -> None:
    three = spread({"returns@v1": Demand(20.0, 0)}, rooms(6), 1, TARGET, {})["returns@v1"]
    one = spread({"returns@v1": Demand(0.0, 0)}, rooms(6), 1, TARGET, {"returns@v1": frozenset(three)})["returns@v1"]
    assert one == three[:1]


def test_a_replica_that_has_fewer_places_than_before_gives_up_what_matters_least() -> None:
    demands = {"returns@v1": Demand(0.0, 3), "clauses@v1": Demand(0.0, 1), "claims@v1": Demand(0.0, 2)}
    here = {version: frozenset({"small-0"}) for version in demands}
    placed = spread(demands, [Room("small-0", 4, 2)], 1, TARGET, here)
    assert placed == {"returns@v1": ("small-0",), "clauses@v1": (), "claims@v1": ("small-0",)}


def test_a_plan_of_what_is_placed_already_ranks_no_other_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    demands, replicas = asked(200), rooms(100)
    before = sets(spread(demands, replicas, 2, TARGET, {}))
    ranked: list[str] = []
    weight = placement_plan._weight
    monkeypatch.setattr(
        placement_plan, "_weight", lambda version, replica: ranked.append(replica) or weight(version, replica)
    )
    assert sets(spread(demands, replicas, 2, TARGET, before)) == before
    assert len(ranked) == 2 * sum(map(len, before.values()))
