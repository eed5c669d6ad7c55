from __future__ import annotations

from serving.fleet import Fleet, PoolConfig
from serving.replica import ReplicaConfig
from serving.shared_memory import SharedMemory

NOW = 100.0


def two() -> Fleet:
    names = ("small-0", "small-1")
    configs = tuple(ReplicaConfig(name, "http://127.0.0.1:8101", "small", in_flight_max=1) for name in names)
    fleet = Fleet([PoolConfig("small", "base", configs)])
    for replica in fleet.replicas.values():
        replica.up = True
    return fleet


def room(fleet: Fleet, now: float = NOW) -> list[bool]:
    return [fleet.has_room(name, now) for name in ("small-0", "small-1")]


def test_who_is_away_or_full_has_no_room() -> None:
    fleet = two()
    assert room(fleet) == [True, True]
    assert not fleet.has_room("small-7", NOW)
    fleet.replicas["small-0"].cordoned = True
    fleet.replicas["small-1"].lease(NOW, "base")
    assert room(fleet) == [False, False]


def test_who_rests_has_room_only_while_nobody_is_awake() -> None:
    fleet = two()
    fleet.replicas["small-0"].failed(NOW, "base", "unreachable", 0.0)
    assert room(fleet) == [False, True]
    fleet.replicas["small-1"].failed(NOW, "base", "unreachable", 0.0)
    assert room(fleet) == [True, True]
    assert room(fleet, NOW + 1.0) == [True, True]


def test_who_is_being_probed_has_no_room() -> None:
    fleet = two()
    config, replica = fleet.pools["small"], fleet.replicas["small-0"]
    fleet.set_pools([PoolConfig("small", "base", tuple(_wider(one) for one in config.replicas))], NOW)
    for _ in range(3):
        replica.failed(NOW, "base", "unreachable", 0.0)
    lease = replica.lease(NOW + 2.0, "base")
    assert room(fleet, NOW + 2.0) == [False, True]
    lease.give_back(NOW + 3.0)
    assert room(fleet, NOW + 3.0) == [True, True]


def _wider(config: ReplicaConfig) -> ReplicaConfig:
    return ReplicaConfig(config.name, config.url, config.pool, in_flight_max=9)


def test_another_engine_of_the_same_name_begins_anew_and_old_requests_end() -> None:
    memory = SharedMemory(2)
    fleet = Fleet([pool_at("http://10.0.0.7:8000")], memory)
    old = fleet.replicas["small-0"]
    old.up = True
    lease = old.lease(1.0, "base")
    fleet.set_pools([pool_at("http://10.0.0.9:8000")], 2.0)
    new = fleet.replicas["small-0"]
    assert (new.up, new.load, old.load) == (False, 0, 1)
    lease.give_back(3.0)
    assert (old.load, new.load) == (0, 0)
    for number in range(100):
        fleet.set_pools([pool_at(f"http://10.0.1.{number}:8000")], 4.0)
    assert len([names for names, _ in memory.rows("load")]) <= 4, "rows of engines that are gone are used again"


def test_a_busy_replica_whose_address_changes_gives_its_rows_back_once_it_is_idle() -> None:
    memory = SharedMemory(2)
    fleet = Fleet([pool_at("http://10.0.0.7:8000")], memory)
    for number in range(100):
        lease = fleet.replicas["small-0"].lease(1.0, "base")
        fleet.set_pools([pool_at(f"http://10.0.1.{number}:8000")], 2.0)
        lease.give_back(3.0)
    assert len([names for names, _ in memory.rows("load")]) <= 6


def test_an_address_that_comes_back_counts_its_old_requests_beside_its_new_ones() -> None:
    fleet = Fleet([pool_at("http://10.0.0.7:8000")], SharedMemory(2))
    old = fleet.replicas["small-0"].lease(1.0, "base")
    for number in (9, 7):
        fleet.set_pools([pool_at(f"http://10.0.0.{number}:8000")], 2.0)
    replica = fleet.replicas["small-0"]
    new = replica.lease(3.0, "base")
    assert replica.load == 2
    old.give_back(4.0)
    assert replica.load == 1
    assert new.give_back(5.0) > 0.0
    assert replica.load == 0


def test_rows_of_an_address_are_used_again_only_after_its_last_request() -> None:
    memory = SharedMemory(2)
    fleet = Fleet([pool_at("http://10.0.0.7:8000")], memory)
    idle = fleet.replicas["small-0"].lease(1.0, "base")
    fleet.set_pools([pool_at("http://10.0.0.9:8000")], 2.0)
    fleet.set_pools([pool_at("http://10.0.0.7:8000")], 3.0)
    busy = fleet.replicas["small-0"].lease(4.0, "base")
    idle.give_back(5.0)
    for number in (9, 11, 13):
        fleet.set_pools([pool_at(f"http://10.0.0.{number}:8000")], 6.0)
    assert busy.replica.load == 1
    busy.give_back(7.0)
    assert [list(row) for _, row in memory.rows("load") if any(row)] == []


def test_a_replica_that_comes_back_gets_requests_after_the_next_look() -> None:
    """Its engine may be another process: what the old one had loaded says nothing of it."""
    fleet = Fleet([pool_at("http://10.0.0.7:8000")])
    replica = fleet.replicas["small-0"]
    replica.up, replica.seen, replica.loaded, replica.life = True, {"base": "", "v1": "/v1"}, frozenset({"v1"}), "1"
    replica.looked_at = 0.5
    fleet.set_pools([PoolConfig("small", "base", ())], 1.0)
    assert replica.up, "requests that hold it see what they saw"
    fleet.set_pools([pool_at("http://10.0.0.7:8000")], 2.0)
    assert fleet.replicas["small-0"] is replica
    assert (replica.up, replica.seen, replica.loaded, replica.life) == (False, {}, frozenset(), "")
    assert replica.looked_at < 0.0, "the look is due at once"


def pool_at(url: str) -> PoolConfig:
    return PoolConfig("small", "base", (ReplicaConfig("small-0", url, "small"),))
