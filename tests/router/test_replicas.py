from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.replicas import pick
from serving.view import PoolView
from tests.router.houses import NOW, VERSIONS, Case, cases, many, replica


def pool(*replicas: object) -> PoolView:
    return PoolView("small", "base", tuple(replicas))  # type: ignore[arg-type]


@many
@given(cases, st.sampled_from(["small", "general"]), st.sampled_from([None, *VERSIONS]), st.integers(0, 7))
def test_a_picked_replica_is_up_has_the_version_a_free_place_and_the_least_to_do(
    case: Case, name: str, version: str | None, avoided: int
) -> None:
    view, there = case.view, case.view.pools[name].replicas
    avoid = frozenset(replica.name for number, replica in enumerate(there) if avoided >> number & 1)
    picked = pick(view.pools[name], version, view.in_flight, NOW, case.moment.draw, avoid)
    fit = [r for r in there if r.up and r.name not in avoid and (version is None or version in r.loaded)]
    if isinstance(picked, str):
        assert picked == ("overload" if fit else "no_replica")
        return
    assert picked in fit
    load = view.in_flight[picked.name]
    assert load < picked.in_flight_max
    awake = [r for r in fit if r.resting_until <= NOW and view.in_flight[r.name] < r.in_flight_max]
    if awake:
        assert picked in awake
        assert load == min(view.in_flight[r.name] for r in awake)


def test_replicas_that_are_equally_busy_get_equal_shares() -> None:
    three = pool(*(replica(f"small-{n}", "small") for n in range(3)))
    counted = Counter(pick(three, None, {}, NOW, draw / 300).name for draw in range(300))  # type: ignore[union-attr]
    assert set(counted.values()) == {100}


def test_a_resting_replica_is_passed_over() -> None:
    two = pool(replica("small-0", "small", resting_until=NOW + 9), replica("small-1", "small"))
    assert pick(two, None, {"small-1": 5}, NOW, 0.0) == two.replicas[1]


def test_the_one_that_rests_shortest_is_tried_when_all_rest() -> None:
    two = pool(replica("small-0", "small", resting_until=NOW + 9), replica("small-1", "small", resting_until=NOW + 3))
    assert pick(two, None, {}, NOW, 0.0) == two.replicas[1]


def test_a_pool_without_the_version_has_no_replica_and_a_full_one_is_overloaded() -> None:
    two = pool(replica("small-0", "small", "returns@v1"), replica("small-1", "small", up=False))
    assert pick(two, "returns@v2", {}, NOW, 0.0) == "no_replica"
    assert pick(two, "returns@v1", {"small-0": 8}, NOW, 0.0) == "overload"
    assert pick(pool(), None, {}, NOW, 0.0) == "no_replica"


def test_a_load_that_is_not_known_counts_as_none() -> None:
    two = pool(replica("small-0", "small"), replica("small-1", "small"))
    assert pick(two, None, {"small-0": 1}, NOW, 0.0) == two.replicas[1]
