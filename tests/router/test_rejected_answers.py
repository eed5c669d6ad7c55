"""The next step after an answer that a check rejected: the fallback's, sent all the same, or an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from router.attempts import GiveUp, NextAttempt, SendAnyway, choose_after_rejection
from router.choice import choose
from router.findings import CheckName
from router.policy import Policy, TaskPolicy
from router.routing_data import Choice
from serving.fleet_view import FleetView
from tests.router.situations import (
    SECONDS,
    Case,
    cases,
    fleet,
    many,
    moment,
    policy,
    replica,
    start,
    usual_fleet,
)


def rejected(
    choice: Choice,
    check: CheckName = "contract",
    view: FleetView | None = None,
    rules: Policy | None = None,
    **more: Any,
) -> NextAttempt | SendAnyway | GiveUp:
    """The next step where this check rejected the answer of `choice`."""
    left = more.pop("seconds_left", SECONDS)
    late = replace(moment(), **more)
    return choose_after_rejection(choice, check, rules or policy(), view or usual_fleet(), late, left)


def with_task(**changes: Any) -> Policy:
    return policy(tasks={"returns": replace(TaskPolicy("returns", "general"), **changes)})


@pytest.mark.parametrize("check", ["contract", "low_confidence", "refusal"])
def test_a_rejected_answer_is_the_fallbacks_to_give_and_no_replica_is_asked_again(check: CheckName) -> None:
    step = rejected(start(), check)
    assert isinstance(step, NextAttempt)
    assert (step.choice.pool.name, step.choice.version, step.choice.reason) == ("general", None, check)
    assert step.choice.general_prompt_of == start().version
    assert step.wait_seconds == 0.0


@pytest.mark.parametrize("check", ["contract", "low_confidence", "refusal"])
def test_what_was_pinned_is_sent_all_the_same(check: CheckName) -> None:
    assert rejected(start("returns@v1"), check) == SendAnyway()
    assert rejected(start("returns@v1"), check, seconds_left=0.0) == SendAnyway()


def test_a_fallbacks_own_answer_is_an_error_or_is_flagged_as_the_task_says() -> None:
    step = rejected(start())
    assert isinstance(step, NextAttempt)
    assert rejected(step.choice) == GiveUp("rejected")  # the reason for which it went there stays
    rules = with_task(fallback_breaks="flag")
    step = rejected(start(rules=rules), rules=rules)
    assert isinstance(step, NextAttempt)
    assert rejected(step.choice, rules=rules) == SendAnyway()


def test_where_nobody_else_can_answer_it_is_said_why() -> None:
    choice = start()
    alone = fleet(replica("small-0", "small", "returns@v1"))
    full = usual_fleet(in_flight={"general-0": 8, "general-1": 8})
    assert rejected(choice, view=alone) == GiveUp("no_replica", None, "contract")
    assert rejected(choice, view=full) == GiveUp("overload", None, "contract")
    assert rejected(choice, seconds_left=0.0) == GiveUp("exhausted", None, "contract")
    closed = rejected(choice, fallbacks_closed=frozenset({"returns"}))
    assert closed == GiveUp("fallback_capped", None, "contract", fallback_capped=True)
    none = with_task(fallback_pool=None)
    assert rejected(start(rules=none), rules=none) == GiveUp("rejected", None, "contract")
    assert rejected(start(rules=none), "refusal", rules=none) == GiveUp("no_replica", None, "refusal")
    human = with_task(fallbacks={"refusal": ("needs_human",)})
    assert rejected(start(rules=human), "refusal", rules=human) == GiveUp("needs_human", None, "refusal")


@pytest.mark.invariant("No answer that an enforced check rejects is sent without a label.")
@many
@given(cases)
def test_rejections_come_to_an_end_and_never_at_the_same_version(case: Case) -> None:
    choice = choose(*case[:5])
    seen: list[str | None] = []
    while isinstance(choice, Choice):
        name = choice.version.name if choice.version else None
        assert name not in seen
        seen.append(name)
        step = choose_after_rejection(choice, "contract", case.policy, case.view, case.moment, SECONDS)
        if choice.reason == "pinned":
            assert step == SendAnyway()
        if not isinstance(step, NextAttempt):
            return
        assert choice.version is not None
        choice = step.choice
