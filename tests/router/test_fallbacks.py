"""Where a request goes instead: the fallbacks in their order, within the pools that its text may reach, never
itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from router.attempts import Failure, GiveUp, NextAttempt, choose_next_attempt
from router.choice import choose
from router.fallbacks import AT_LEISURE
from router.findings import CheckPolicy, FallbackName
from router.overrides import Override
from router.policy import Alias, Shift, TaskPolicy
from router.routing_data import NO_SCORES, Choice, Moment, Refusal, Scores
from serving.fleet_view import CircuitView, FleetView
from tests.router.situations import (
    NOW,
    VERSIONS,
    Case,
    asked,
    cases,
    checked_task,
    fitted,
    fleet,
    many,
    moment,
    policy,
    replica,
    usual_fleet,
    version,
)

PREVIOUS_VERSION = Alias("returns", 1, {"returns@v2": 1.0}, "salt", previous_version="returns@v1")
CLOSED = moment(fallbacks_closed=frozenset({"returns"}))
ALL: tuple[FallbackName, ...] = ("previous_version", "general", "needs_human")


def sent_away(
    fallbacks: tuple[FallbackName, ...] | None,
    view: FleetView | None = None,
    at: Moment | None = None,
    reason: str = "out_of_scope",
    **changes: Any,
) -> Choice | Refusal:
    """The route of a request that a check sends away from returns@v2."""
    share = {"degraded": 0.0, "holdout": 1.0}.get(reason, 0.5)
    rules = policy(
        tasks=checked_task({} if fallbacks is None else {reason: fallbacks}, **{reason: CheckPolicy("enforce", share)}),
        aliases={"returns": PREVIOUS_VERSION},
        fitted={"returns@v2": fitted(0.0, 0.0)},
        shifts={"returns@v2": Shift(0.0)},
        **changes,
    )
    scores = Scores("returns@v2", Score(-1.0), 1.0)  # type: ignore[arg-type]
    return choose(asked(), scores, rules, view or usual_fleet(), at or moment())


class Score:
    """A scope model with a fixed score."""

    neighbours = ()
    language = ""

    def __init__(self, score: float) -> None:
        self.score = score


def told(decision: Choice | Refusal) -> tuple[str | None, ...]:
    if isinstance(decision, Refusal):
        return decision.code, decision.reason
    return decision.engine_model, decision.reason


@pytest.mark.invariant("No text of a task reaches a pool that the task may not use.")
@many
@given(cases)
def test_no_text_of_a_task_reaches_a_pool_that_it_may_not_reach(case: Case) -> None:
    decision = choose(*case[:5])
    while isinstance(decision, Choice) and decision.task is not None:
        assert decision.task.reaches(decision.pool.name)
        failures = tuple(Failure("silent", one.name, decision.pool.name) for one in decision.pool.replicas)
        then = choose_next_attempt(decision, failures, case.policy, case.view, case.moment, 60)
        if isinstance(then, GiveUp):
            break
        assert then.choice.pool.name != decision.pool.name or then.choice.version != decision.version
        decision = then.choice


@many
@given(cases)
def test_request_sent_away_goes_to_one_of_its_fallbacks_or_keeps_its_adapter(case: Case) -> None:
    decision = choose(*case[:5])
    if isinstance(decision, Refusal):
        if decision.code == "needs_human":
            assert any(
                "needs_human" in task.fallbacks_for(decision.reason or "") for task in case.policy.tasks.values()
            )
        return
    if decision.task is None or decision.reason in ("adapter", "canary", "pinned"):
        return
    fallbacks = decision.task.fallbacks_for(decision.reason)
    if decision.version is None:
        assert "general" in fallbacks
        assert decision.pool.name == decision.task.fallback_pool
        assert decision.task.name not in case.moment.fallbacks_closed
    elif (
        decision.reason != "override"
        and decision.version.name != case.policy.aliases[decision.task.name].previous_version
    ):
        assert decision.reason in (*AT_LEISURE, "out_of_scope"), "the adapter after all"


def test_fallbacks_are_taken_in_their_order() -> None:
    assert told(sent_away(None)) == ("general-base", "out_of_scope")
    assert told(sent_away(("previous_version", "general"))) == ("returns@v1", "out_of_scope")
    assert told(sent_away(("needs_human",))) == ("needs_human", "out_of_scope")
    without = fleet(replica("small-0", "small", "returns@v2"), replica("general-0", "general"))
    assert told(sent_away(ALL, without)) == ("general-base", "out_of_scope")
    alone = fleet(replica("small-0", "small", "returns@v2"))
    assert told(sent_away(ALL, alone)) == ("needs_human", "out_of_scope")


def test_past_its_cap_the_next_fallback_applies_and_the_decision_says_so() -> None:
    to_previous_version = sent_away(("general", "previous_version"), at=CLOSED)
    assert (*told(to_previous_version), to_previous_version.fallback_capped) == ("returns@v1", "out_of_scope", True)
    to_a_person = sent_away(("general", "needs_human"), at=CLOSED)
    assert (*told(to_a_person), to_a_person.fallback_capped) == ("needs_human", "out_of_scope", True)
    nowhere = sent_away(("general",), at=CLOSED, reason="degraded")
    assert (*told(nowhere), nowhere.fallback_capped) == ("fallback_capped", "degraded", True)
    assert [one.check for one in nowhere.findings] == ["degraded"]
    open_ = sent_away(("general", "previous_version"))
    assert (*told(open_), open_.fallback_capped) == ("general-base", "out_of_scope", False)


def test_past_the_cap_a_previous_version_that_is_full_is_waited_for() -> None:
    full = usual_fleet(in_flight={"small-0": 8, "small-1": 8})
    decision = sent_away(("general", "previous_version"), full, CLOSED, reason="degraded")
    assert (*told(decision), decision.fallback_capped) == ("overload", "degraded", True)


def test_a_fallback_that_is_full_is_waited_for_rather_than_that_a_person_is_asked() -> None:
    full = usual_fleet(in_flight={"general-0": 8, "general-1": 8})
    assert told(sent_away(("general", "needs_human"), full)) == ("overload", "out_of_scope")


@pytest.mark.parametrize("reason", ["out_of_scope", "holdout", "predicted_gain"])
def test_where_no_fallback_is_there_the_adapter_answers_with_the_label(reason: str) -> None:
    gone = fleet(replica("small-0", "small", *VERSIONS))
    asleep = {"general-base": CircuitView(NOW + 9, open=True)}
    broken = fleet(replica("small-0", "small", *VERSIONS), replica("general-0", "general", circuits=asleep))
    for view in (gone, broken):
        decision = sent_away(None, view, reason=reason)
        assert isinstance(decision, Choice)
        assert (decision.engine_model, decision.reason) == ("returns@v2", reason)
        assert decision.findings[-1].fired


def test_a_fallback_is_not_waited_for_where_the_adapter_would_have_done() -> None:
    full = usual_fleet(in_flight={"general-0": 8, "general-1": 8})
    assert told(sent_away(None, full, reason="holdout")) == ("returns@v2", "holdout")
    assert told(sent_away(None, full, reason="predicted_gain")) == ("returns@v2", "predicted_gain")
    assert told(sent_away(None, full, reason="out_of_scope")) == ("overload", "out_of_scope")


def test_a_version_is_never_its_own_previous_version() -> None:
    itself = policy(
        tasks=checked_task(
            {"degraded": ("previous_version",), "engine_error": ALL}, degraded=CheckPolicy("enforce", 0.0)
        ),
        aliases={"returns": replace(PREVIOUS_VERSION, previous_version="returns@v2")},
        shifts={"returns@v2": Shift(0.0)},
    )
    assert told(choose(asked(), NO_SCORES, itself, usual_fleet(), moment())) == ("no_replica", "degraded")


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (Shift(0.0, "previous_version", "returns@v1"), "returns@v1"),
        (Shift(0.0, "previous_version"), "returns@v1"),
        (Shift(0.0, "previous_version", "returns@v9"), "general-base"),
        (Shift(0.0, "general"), "general-base"),
        (Shift(0.0), "general-base"),
    ],
)
def test_share_goes_to_the_previous_version_only_while_it_is_the_proven_one(shift: Shift, expected: str) -> None:
    rules = policy(
        tasks=checked_task(degraded=CheckPolicy("enforce", 0.0)),
        aliases={"returns": PREVIOUS_VERSION},
        shifts={"returns@v2": shift},
    )
    assert told(choose(asked(), NO_SCORES, rules, usual_fleet(), moment())) == (expected, "degraded")


def failed(choice: Choice, kind: Any, view: FleetView, rules: Any) -> NextAttempt | GiveUp:
    failures = tuple(Failure(kind, one.name, choice.pool.name) for one in choice.pool.replicas)
    return choose_next_attempt(choice, failures, rules, view, moment(), 60)


def test_previous_version_answers_after_a_failure_and_the_next_fallback_after_it() -> None:
    rules = policy(
        tasks={"returns": TaskPolicy("returns", "general", fallbacks={"engine_error": ALL})},
        aliases={"returns": PREVIOUS_VERSION},
        limits=replace(policy().limits, retries_max=0),
    )
    view = usual_fleet()
    first = choose(asked(), NO_SCORES, rules, view, moment())
    assert isinstance(first, Choice)
    second = failed(first, "failed", view, rules)
    assert isinstance(second, NextAttempt)
    assert told(second.choice) == ("returns@v1", "engine_error")
    third = failed(second.choice, "failed", view, rules)
    assert isinstance(third, NextAttempt)
    assert told(third.choice) == ("general-base", "engine_error")
    without = fleet(replica("small-0", "small", *VERSIONS))
    assert failed(second.choice, "failed", without, rules) == GiveUp("needs_human", None, "engine_error")


def test_too_long_prompt_goes_to_the_first_fallback_that_takes_more_or_a_person() -> None:
    task = TaskPolicy("returns", "general", fallbacks={"context_length": ALL})
    rules = policy(tasks={"returns": task}, aliases={"returns": PREVIOUS_VERSION})
    for most, expected in ((8192, "general-base"), (2048, None), (None, None)):
        sizes = {"small": {"context_tokens_max": 2048}, "general": {"context_tokens_max": most}}
        view = usual_fleet(pools=sizes)
        first = choose(asked(), NO_SCORES, rules, view, moment())
        assert isinstance(first, Choice)
        then = failed(first, "too_long", view, rules)
        if expected is None:
            assert then == GiveUp("needs_human", None, "context_length")
        else:
            assert isinstance(then, NextAttempt)
            assert told(then.choice) == (expected, "context_length")


def bound(*pools: str, **changes: Any) -> Any:
    task = TaskPolicy("returns", "general", pools_allowed=frozenset(pools), fallbacks={"no_replica": ALL})
    return policy(tasks={"returns": task}, aliases={"returns": PREVIOUS_VERSION}, **changes)


def test_forbidden_pools_are_closed_to_versions_pins_rules_and_fallbacks_alike() -> None:
    view = usual_fleet()
    assert told(choose(asked(), NO_SCORES, bound("general"), view, moment())) == ("general-base", "no_replica")
    assert told(choose(asked(), NO_SCORES, bound(), view, moment())) == ("needs_human", "no_replica")
    pinned = choose(asked("returns@v1"), NO_SCORES, bound("general"), view, moment())
    assert isinstance(pinned, Refusal)
    assert pinned.code == "version_not_loaded"
    assert "may not send its texts to the pool 'small'" in pinned.message
    to_version = Override(id="a", action="version", version="returns@v1")
    ruled = choose(asked(), NO_SCORES, bound("general", overrides=(to_version,)), view, moment())
    assert told(ruled) == ("general-base", "no_replica")
    to_general = Override(id="a", action="general")
    ruled = choose(asked(), NO_SCORES, bound("small", overrides=(to_general,)), view, moment())
    assert told(ruled) == ("no_replica", "override")
    elsewhere = usual_fleet(versions=["returns@v2", version("returns@v1", pool="general")])
    assert told(sent_away(("previous_version",), elsewhere)) == ("returns@v2", "out_of_scope"), "it is not loaded there"


AUTO_CASES = [
    ({"auto", "returns"}, "returns", ("returns@v1", "adapter")),
    ({"*"}, "returns", ("returns@v1", "adapter")),
    ({"returns"}, "returns", ("model_not_allowed", None)),
    ({"auto"}, "returns", ("no_task_fits", "out_of_scope")),
    ({"auto", "general"}, "returns", ("general-base", "out_of_scope")),
    ({"auto", "returns"}, None, ("no_task_fits", "out_of_scope")),
    ({"*"}, None, ("general-base", "out_of_scope")),
]


@pytest.mark.parametrize(("models", "found", "expected"), AUTO_CASES)
def test_auto_is_a_task_that_the_key_names_or_general_if_it_names_that(
    models: set[str], found: str | None, expected: tuple[str, str | None]
) -> None:
    request = asked("auto", models_allowed=frozenset(models))
    decision = choose(request, Scores(task=found), policy(auto_pool="general"), usual_fleet(), moment())
    assert told(decision) == expected


@pytest.mark.parametrize("pool", [None, "gone", "small"])
def test_auto_goes_to_no_pool_that_may_not_be_named(pool: str | None) -> None:
    decision = choose(asked("auto"), NO_SCORES, policy(auto_pool=pool), usual_fleet(), moment())
    assert told(decision) == ("no_task_fits", "out_of_scope")
