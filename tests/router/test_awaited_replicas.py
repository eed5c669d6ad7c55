"""A request waits for the replicas that could answer it: a property over all cases of the router's tests."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import find, given

from router.awaited_replicas import list_awaited_replicas
from router.choice import choose
from router.routing_data import Choice, Refusal
from tests.router.situations import Case, cases, many


def is_full(case: Case) -> bool:
    decision = choose(*case[:5])
    return isinstance(decision, Refusal) and decision.code == "overload"


def once_there_is_room(case: Case) -> Choice | Refusal:
    return choose(case.asked, case.scores, case.policy, replace(case.view, in_flight={}), case.moment)


@many
@given(cases)
def test_whoever_would_answer_once_it_has_room_is_waited_for(case: Case) -> None:
    if is_full(case):
        decision = once_there_is_room(case)
        awaited = list_awaited_replicas(case.asked, case.scores, case.policy, case.view, case.moment.now_unix)
        assert isinstance(decision, Choice)
        assert decision.replica.name in awaited
        assert awaited <= {replica.name for pool in case.view.pools.values() for replica in pool.replicas}


def test_there_are_such_cases_with_tasks_pools_and_pins() -> None:
    for wanted in ("", "@"):
        find(cases, lambda case, wanted=wanted: is_full(case) and wanted in case.asked.model)  # type: ignore[misc]
