from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.attempts import Failure, NextAttempt, choose_next_attempt
from router.choice import choose
from router.replica_choice import BALANCE_MAX, DRAWN, PLACES, SCANNED_MAX, pick
from router.routing_data import NO_SCORES, Choice
from serving.fleet_view import CircuitView, PoolView, ReplicaView
from tests.router.situations import NOW, VERSIONS, Case, asked, cases, fleet, many, moment, policy, replica, usual_fleet


def pool(*replicas: object) -> PoolView:
    return PoolView("small", "base", tuple(replicas))  # type: ignore[arg-type]


def keyed(there: PoolView, key: str, in_flight: dict[str, int] | None = None, draw: float = 0.0) -> str:
    """The name of the replica that a key gets."""
    picked = pick(there, None, in_flight or {}, NOW, draw, key=key)
    assert not isinstance(picked, str)
    return picked.name


def alike(count: int, **changes: object) -> PoolView:
    return pool(*(replica(f"http://10.0.0.{n}:8000", "small", **changes) for n in range(count)))


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
    model = version or view.pools[name].base_model
    awake = [r for r in fit if not rests(r, model) and view.in_flight[r.name] < r.in_flight_max]
    if awake:
        assert picked in awake
        assert load == min(view.in_flight[r.name] for r in awake)


def rests(there: ReplicaView, model: str) -> bool:
    circuits = [there.circuits[name] for name in ("", model) if name in there.circuits]
    return there.resting_until > NOW or any(one.probing or one.resting_until > NOW for one in circuits)


def test_what_one_model_failed_at_keeps_nobody_else_from_its_replica() -> None:
    failed = {"returns@v2": CircuitView(NOW + 9, open=True)}
    two = pool(
        replica("small-0", "small", "returns@v1", "returns@v2", circuits=failed),
        replica("small-1", "small", "returns@v1", "returns@v2"),
    )
    busy = {"small-1": 5}
    assert pick(two, "returns@v1", busy, NOW, 0.0) == two.replicas[0]
    assert pick(two, "returns@v2", busy, NOW, 0.0) == two.replicas[1]


def test_version_on_trial_is_tried_despite_failures_but_not_on_a_failed_replica() -> None:
    for failed, expected in (("returns@v2", "small-0"), ("", None)):
        circuits = {failed: CircuitView(NOW + 9, open=True)}
        one = pool(replica("small-0", "small", "returns@v2", circuits=circuits))
        found = pick(one, "returns@v2", {}, NOW, 0.0, spare_open=True, on_trial=True)
        assert (None if isinstance(found, str) else found.name) == expected


def test_a_half_open_replica_takes_one_request_and_no_second_beside_it() -> None:
    for probing in (False, True):
        one = pool(replica("small-0", "small", circuits={"": CircuitView(NOW - 1, open=True, probing=probing)}))
        spared = pick(one, None, {}, NOW, 0.0, spare_open=True)
        assert spared == ("no_replica" if probing else one.replicas[0])


def test_where_all_are_open_the_least_bad_is_tried_by_who_has_nowhere_else_to_go() -> None:
    two = pool(
        replica("small-0", "small", circuits={"": CircuitView(NOW + 3, open=True)}),
        replica("small-1", "small", circuits={"": CircuitView(NOW + 2, open=True)}),
    )
    assert pick(two, None, {}, NOW, 0.0) == two.replicas[1]
    assert pick(two, None, {}, NOW, 0.0, spare_open=True) == "no_replica"
    rests_only = pool(*two.replicas, replica("small-2", "small", circuits={"": CircuitView(NOW + 9)}))
    assert pick(rests_only, None, {}, NOW, 0.0, spare_open=True) == rests_only.replicas[2]


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


@many
@given(cases, st.sampled_from(["small", "general"]), st.sampled_from([None, *VERSIONS]), st.text(max_size=9))
def test_a_key_gets_a_replica_that_fits_and_is_within_the_bound(
    case: Case, name: str, version: str | None, key: str
) -> None:
    view, there = case.view, case.view.pools[name]
    picked = pick(there, version, view.in_flight, NOW, case.moment.draw, key=key)
    anyhow = pick(there, version, view.in_flight, NOW, case.moment.draw)
    if isinstance(picked, str) or isinstance(anyhow, str):
        assert picked == anyhow
        return
    assert pick(there, version, view.in_flight, NOW, 0.25, key=key) == picked, "chance has no say in it"
    fit = [r for r in there.replicas if r.up and (version is None or version in r.loaded)]
    awake = [r for r in fit if not rests(r, version or view.pools[name].base_model)]
    assert picked in (awake or fit)
    free = [r for r in awake if view.in_flight[r.name] < r.in_flight_max]
    if len(free) > 1:
        held = sum(view.in_flight[r.name] for r in free)
        assert view.in_flight[picked.name] < math.ceil(BALANCE_MAX * (held + 1) / len(free))


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["session-{}", "{:032x}", "returns@v{}", "user{}@example.com"])
def test_keys_are_shared_out_evenly(count: int, form: str) -> None:
    there = alike(count)
    counted = Counter(keyed(there, form.format(n)) for n in range(10_000))
    mean = 10_000 / count
    assert sum((got - mean) ** 2 / mean for got in counted.values()) < 40
    assert len(counted) == count


def moved_keys(whole: PoolView, rest: PoolView, gone: str, keys: int) -> Counter[str]:
    """The keys that each replica takes over from the one that is gone; no other key moves."""
    moved: Counter[str] = Counter()
    for n in range(keys):
        before, after = keyed(whole, f"session-{n}"), keyed(rest, f"session-{n}")
        assert before in (after, gone)
        moved[after] += before == gone
    return moved


def test_keys_of_a_leaving_replica_are_spread_evenly_and_no_other_key_moves() -> None:
    four = alike(4)
    moved = moved_keys(four, alike(3), four.replicas[3].name, 10_000)
    assert all(0.9 < got / (sum(moved.values()) / 3) < 1.1 for got in moved.values())


def test_a_busy_first_choice_gives_way_to_the_second_and_gets_its_keys_back() -> None:
    there = alike(3, in_flight_max=100)
    first = keyed(there, "a session")
    assert keyed(there, "a session", {r.name: 4 for r in there.replicas}) == first
    busy = {r.name: 4 for r in there.replicas} | {first: 9}
    second = keyed(there, "a session", busy)
    assert second != first
    assert keyed(pool(*(r for r in there.replicas if r.name != first)), "a session") == second
    assert keyed(there, "a session", dict.fromkeys(busy, 9)) == first


def test_one_key_alone_never_loads_a_replica_far_above_the_others() -> None:
    there, in_flight = alike(4, in_flight_max=1000), Counter[str]()
    for _ in range(400):
        in_flight[keyed(there, "returns@v1", in_flight)] += 1
    assert max(in_flight.values()) <= math.ceil(BALANCE_MAX * 400 / 4)
    assert sum(in_flight.values()) == 400


def test_keys_are_shared_out_over_hundreds_of_replicas() -> None:
    hundreds = alike(500)
    counted = Counter(keyed(hundreds, f"session-{n}") for n in range(20_000))
    assert len(counted) > 480, "those that few places are before get what is over the others' bound"
    assert max(counted.values()) < 2 * 20_000 / 500


def test_of_hundreds_one_that_leaves_moves_its_own_keys_alone_and_spreads_them() -> None:
    many_, fewer = alike(500), pool(*(r for n, r in enumerate(alike(500).replicas) if n != 77))
    moved = moved_keys(many_, fewer, many_.replicas[77].name, 20_000)
    assert len([name for name, count in moved.items() if count]) > 10


def test_of_hundreds_only_some_are_looked_at_and_all_once_those_are_full() -> None:
    class Looked(dict[str, int]):
        count = 0

        def get(self, name: str, default: int = 0) -> int:  # type: ignore[override]
            Looked.count += 1
            return super().get(name, default)

    hundreds = alike(500)
    for key in (None, "a session"):
        Looked.count = 0
        assert not isinstance(pick(hundreds, None, Looked(), NOW, 0.3, key=key), str)
        assert Looked.count <= DRAWN + PLACES
        full = {r.name: r.in_flight_max for r in hundreds.replicas}
        assert pick(hundreds, None, full, NOW, 0.3, key=key) == "overload"
        for only in (hundreds.replicas[0], hundreds.replicas[499]):
            assert pick(hundreds, None, full | {only.name: 0}, NOW, 0.3, key=key) == only


@pytest.mark.parametrize("key", [None, "returns@v1"])
def test_requests_one_after_the_other_load_hundreds_of_replicas_evenly(key: str | None) -> None:
    hundreds, in_flight, chance = alike(500, in_flight_max=1000), Counter[str](), random.Random(1)
    for _ in range(10_000):
        picked = pick(hundreds, None, in_flight, NOW, chance.random(), key=key)
        in_flight[picked.name] += 1  # type: ignore[union-attr]
    assert max(in_flight.values()) <= 2 * 10_000 / 500
    assert len(in_flight) == 500


def test_of_hundreds_those_that_rest_or_are_avoided_are_passed_over() -> None:
    awake = alike(SCANNED_MAX + 3).replicas[5].name
    resting = pool(
        *(
            r if r.name == awake else replica(r.name, "small", resting_until=NOW + 9)
            for r in alike(SCANNED_MAX + 3).replicas
        )
    )
    for key in (None, "a session"):
        for draw in (0.0, 0.4, 0.9):
            found = pick(resting, None, {}, NOW, draw, key=key)
            assert not isinstance(found, str)
            assert found.name == awake
        everyone = alike(SCANNED_MAX + 3)
        first = pick(everyone, None, {}, NOW, 0.4, key=key)
        assert not isinstance(first, str)
        again = pick(everyone, None, {}, NOW, 0.4, frozenset({first.name}), key=key)
        assert not isinstance(again, str)
        assert again.name != first.name


def test_a_new_picture_of_a_pool_forgets_what_was_derived_of_the_one_before() -> None:
    two = pool(replica("small-0", "small", "returns@v1"), replica("small-1", "small"))
    assert pick(two, "returns@v1", {}, NOW, 0.0) == two.replicas[0]
    later = replace(two, replicas=(replica("small-0", "small"), replica("small-1", "small", "returns@v1")))
    assert pick(later, "returns@v1", {}, NOW, 0.0) == later.replicas[1]


def four_small() -> list[object]:
    return [replica(f"small-{n}", "small", *VERSIONS) for n in range(4)]


def chosen(session: str | None, draw: float) -> Choice:
    general = [replica(f"general-{n}", "general") for n in range(4)]
    found = choose(asked(session=session), NO_SCORES, policy(), fleet(*four_small(), *general), moment(draw))  # type: ignore[arg-type]
    assert isinstance(found, Choice)
    return found


def test_conversation_stays_on_its_replica_and_other_requests_on_their_versions() -> None:
    assert len({chosen("a conversation", draw / 9).replica.name for draw in range(9)}) == 1
    assert len({chosen(None, draw / 9).replica.name for draw in range(9)}) == 1
    assert chosen(None, 0.5).key == chosen("", 0.5).key == "returns@v1"
    assert len({chosen(f"conversation {n}", 0.5).replica.name for n in range(99)}) == 4


def test_a_retry_takes_the_keys_next_choice_in_the_pool_and_at_the_fallback() -> None:
    replicas = [*four_small(), *(replica(f"general-{n}", "general") for n in range(4))]
    view = fleet(*replicas)  # type: ignore[arg-type]
    choice = chosen("a conversation", 0.5)
    failed = Failure("unreachable", choice.replica.name, "small", None, NOW)
    steps = [choose_next_attempt(choice, (failed,), policy(), view, moment(draw / 9), 60.0) for draw in range(9)]
    assert len({step.choice.replica.name for step in steps if isinstance(step, NextAttempt)}) == 1
    gone = fleet(*(r for r in replicas if r.pool == "general"))  # type: ignore[attr-defined,arg-type]
    fallbacks = [choose_next_attempt(choice, (failed,), policy(), gone, moment(draw / 9), 60.0) for draw in range(9)]
    assert len({step.choice.replica.name for step in fallbacks if isinstance(step, NextAttempt)}) == 1
    assert all(isinstance(step, NextAttempt) and step.choice.key == "a conversation" for step in fallbacks)


def test_the_base_is_asked_by_session_and_without_one_wherever_it_is_quiet() -> None:
    view = usual_fleet(in_flight={"general-0": 1})
    for draw in (0.0, 0.9):
        choice = choose(asked("general"), NO_SCORES, policy(), view, moment(draw))
        assert isinstance(choice, Choice)
        assert (choice.replica.name, choice.key) == ("general-1", None)
    in_session = asked("general", session="s")
    by_session = {
        choice.replica.name
        for draw in range(9)
        if isinstance(choice := choose(in_session, NO_SCORES, policy(), view, moment(draw / 9)), Choice)
    }
    assert len(by_session) == 1
