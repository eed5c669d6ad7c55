from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import given

from router.attempts import (
    MAY_HAVE_ENDED,
    REASON_OF,
    SAME_REPLICA_HELPS,
    Failure,
    GiveUp,
    NextAttempt,
    choose_next_attempt,
)
from router.choice import choose
from router.findings import CheckPolicy
from router.policy import AttemptLimits, Policy, TaskPolicy
from router.routing_data import Choice
from serving.fleet_view import FaultKind, FleetView
from tests.router.situations import (
    NOW,
    SECONDS,
    VERSIONS,
    Case,
    cases,
    fleet,
    many,
    moment,
    policy,
    replica,
    start,
    usual_fleet,
    version,
)

KINDS = tuple(kind for kind in get_args(FaultKind) if kind != "too_long")
ATTEMPT_SECONDS = 0.25


def after(
    choice: Choice,
    *kinds: FaultKind,
    view: FleetView | None = None,
    rules: Policy | None = None,
    retry_after: float | None = None,
    seconds_left: float = SECONDS,
) -> NextAttempt | GiveUp:
    """The next step after `choice` fails in these ways, one after the other, on the replica it names."""
    failures = tuple(Failure(kind, choice.replica.name, choice.pool.name, retry_after, NOW) for kind in kinds)
    return choose_next_attempt(choice, failures, rules or policy(), view or usual_fleet(), moment(), seconds_left)


def tried(step: NextAttempt | GiveUp) -> NextAttempt:
    assert isinstance(step, NextAttempt), step
    return step


class Step(NamedTuple):
    """An attempt that failed, and what the router made of it."""

    choice: Choice
    failure: Failure
    then: NextAttempt | GiveUp


def walked(case: Case) -> list[Step]:
    """Fail at each attempt as told, until the router gives up; nothing where there is no first attempt."""
    choice = choose(*case[:5])
    steps: list[Step] = []
    now = case.moment.now
    if not isinstance(choice, Choice):
        return steps
    for kind, retry_after in case.faults:
        now += ATTEMPT_SECONDS
        failure = Failure(kind, choice.replica.name, choice.pool.name, retry_after, now)
        failures = (*(step.failure for step in steps), failure)
        left = NOW + SECONDS - now
        then = choose_next_attempt(choice, failures, case.policy, case.view, moment(case.moment.draw, now), left)
        steps.append(Step(choice, failure, then))
        if isinstance(then, GiveUp):
            return steps
        now += then.wait_seconds
        choice = then.choice
    pytest.fail(f"no end after {len(steps)} attempts")


@pytest.mark.invariant("Attempts end within their bounds and before the deadline.")
@many
@given(cases)
def test_attempts_come_to_an_end_within_their_bounds(case: Case) -> None:
    steps = walked(case)
    attempts = Counter(step.choice.pool.name for step in steps)
    most = case.policy.limits.retries_max + 1
    assert all(count <= most + 2 for count in attempts.values()), (
        "a previous version and the base may be on the same pool"
    )
    assert len(steps) <= 2 * most + 1


@many
@given(cases)
def test_a_silent_replica_is_not_asked_twice(case: Case) -> None:
    silent: set[str] = set()
    for choice, failure, then in walked(case):
        silent |= {choice.replica.name} if failure.kind == "silent" else set()
        assert isinstance(then, GiveUp) or then.choice.replica.name not in silent


@many
@given(cases)
def test_what_the_engine_refused_is_never_sent_again(case: Case) -> None:
    for choice, failure, then in walked(case):
        given_up = isinstance(then, GiveUp) and then.because == "refused"
        if failure.kind != "too_long":
            assert (failure.kind == "refused") == given_up
        elif not given_up and isinstance(then, NextAttempt):
            assert (then.choice.pool.context_tokens_max or 0) > (choice.pool.context_tokens_max or 0)


@pytest.mark.invariant("A request keeps its version, or leaves it with a label.")
@many
@given(cases)
def test_a_request_keeps_its_version_or_leaves_it_for_the_labelled_fallback(case: Case) -> None:
    for choice, failure, then in walked(case):
        if isinstance(then, GiveUp):
            continue
        if then.choice.version == choice.version:
            assert replace(then.choice, replica=choice.replica) == choice
            continue
        if choice.version is None:  # a holdout's fallback failed: back to the version that it was led to
            assert (choice.reason, then.choice.reason) == ("holdout", "holdout")
            assert then.choice.version == choice.led_to
            continue
        assert choice.reason != "pinned"
        assert then.choice.reason == REASON_OF[failure.kind]
        assert then.choice.probability == choice.probability
        assert choice.task is not None
        fallbacks = choice.task.fallbacks_for(then.choice.reason)
        if then.choice.version is None:
            assert "general" in fallbacks
            assert then.choice.general_prompt_of == choice.version
            assert then.choice.pool.name == choice.task.fallback_pool
        else:
            assert "previous_version" in fallbacks
            assert then.choice.version.name == case.policy.aliases[choice.task.name].previous_version
        assert then.choice.override_id == choice.override_id


@many
@given(cases)
def test_a_step_is_taken_only_where_somebody_can_answer(case: Case) -> None:
    for _, _, then in walked(case):
        if isinstance(then, NextAttempt):
            there = then.choice.replica
            assert there.up
            assert then.choice.version is None or then.choice.version.name in there.loaded
            assert case.view.in_flight[there.name] < there.in_flight_max


@pytest.mark.invariant("Attempts end within their bounds and before the deadline.")
@many
@given(cases)
def test_waits_end_before_the_deadline(case: Case) -> None:
    for _, failure, then in walked(case):
        if isinstance(then, NextAttempt):
            assert 0 <= then.wait_seconds <= max(case.policy.limits.retry_after_seconds_max, 8 * 0.2 * 1.5)
            assert failure.at + then.wait_seconds < NOW + SECONDS
            assert failure.kind in SAME_REPLICA_HELPS or then.wait_seconds == 0


@many
@given(cases)
def test_no_replica_is_asked_again_before_the_time_that_it_named(case: Case) -> None:
    steps = walked(case)
    for number, (choice, failure, then) in enumerate(steps):
        if isinstance(then, NextAttempt) and then.choice.version == choice.version:
            asked_at = failure.at + then.wait_seconds
            told = [step.failure for step in steps[: number + 1] if step.choice.version == choice.version]
            for earlier in (one for one in told if one.replica == then.choice.replica.name):
                assert asked_at >= earlier.at + (earlier.retry_after_seconds or 0.0) - 1e-6


@many
@given(cases)
def test_a_step_that_goes_on_with_an_answer_is_to_a_pool_that_can(case: Case) -> None:
    for choice, failure, _ in walked(case):
        step = choose_next_attempt(
            choice, (failure,), case.policy, case.view, moment(now=failure.at), SECONDS, going_on=True
        )
        assert isinstance(step, GiveUp) or failure.kind == "too_long" or step.choice.pool.continues


def test_answer_that_is_longer_than_we_take_is_asked_for_at_the_fallback_alone() -> None:
    first = start()
    step = tried(after(first, "oversize"))
    assert (step.choice.pool.name, step.choice.reason) == ("general", "engine_error")
    failures = tuple(Failure("oversize", one.replica.name, one.pool.name) for one in (first, step.choice))
    assert choose_next_attempt(step.choice, failures, policy(), usual_fleet(), moment(), SECONDS) == GiveUp("exhausted")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "refused"])
def test_request_that_may_have_ended_an_engine_is_sent_to_no_other(kind: FaultKind) -> None:
    choice = start()
    failure = Failure(kind, choice.replica.name, choice.pool.name, None, NOW, fragile=True)
    step = choose_next_attempt(choice, (failure,), policy(), usual_fleet(), moment(), SECONDS)
    assert isinstance(step, GiveUp) == (kind in MAY_HAVE_ENDED)


@pytest.mark.parametrize(("status", "ends"), [(302, False), (401, False), (405, False), (500, True), (502, True)])
def test_status_below_500_shows_that_no_engine_ended(status: int, ends: bool) -> None:
    choice = start()
    failure = Failure("failed", choice.replica.name, choice.pool.name, None, NOW, fragile=True, status=status)
    step = choose_next_attempt(choice, (failure,), policy(), usual_fleet(), moment(), SECONDS)
    assert isinstance(step, GiveUp) == ends


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("refused", "oversize")])
def test_another_replica_of_the_same_version_comes_first_and_at_once(kind: FaultKind) -> None:
    choice = start()
    step = tried(after(choice, kind))
    assert step == NextAttempt(replace(choice, replica=usual_fleet().pools["small"].replicas[1]), 0.0)


@pytest.mark.parametrize("kind", sorted(SAME_REPLICA_HELPS))
def test_the_same_replica_is_asked_again_after_a_wait_where_that_can_help(kind: FaultKind) -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    step = tried(after(start(view=alone), kind, view=alone))
    assert step.choice.replica.name == "small-0"
    assert step.wait_seconds == pytest.approx(AttemptLimits().backoff_seconds)
    again = tried(after(start(view=alone), kind, kind, view=alone))
    assert again.wait_seconds == pytest.approx(2 * AttemptLimits().backoff_seconds)


@pytest.mark.parametrize("kind", ["unreachable", "silent", "missing"])
def test_the_fallback_takes_over_where_the_same_replica_can_not_help(kind: FaultKind) -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    step = tried(after(start(view=alone), kind, view=alone))
    assert (step.choice.replica.name, step.choice.reason, step.wait_seconds) == ("general-0", REASON_OF[kind], 0.0)


def test_a_wait_that_the_engine_asks_for_is_kept() -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    step = tried(after(start(view=alone), "overloaded", view=alone, retry_after=3.0))
    assert (step.choice.replica.name, step.wait_seconds) == ("small-0", 3.0)


def test_a_wait_that_is_over_leaves_the_usual_one_between_attempts() -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    failures = (
        Failure("overloaded", "small-0", "small", 0.5, NOW - 0.6),
        Failure("failed", "small-0", "small", None, NOW),
    )
    step = tried(choose_next_attempt(start(view=alone), failures, policy(), alone, moment(), SECONDS))
    assert (step.choice.replica.name, step.wait_seconds) == (
        "small-0",
        pytest.approx(2 * AttemptLimits().backoff_seconds),
    )


def test_an_engine_that_is_full_is_not_asked_for_its_base_instead() -> None:
    view = fleet(replica("small-0", "small", "returns@v1"))
    rules = policy(tasks={"returns": TaskPolicy("returns", "small")})
    assert after(start(view=view, rules=rules), "overloaded", view=view, rules=rules, retry_after=30.0) == GiveUp(
        "exhausted", 30.0
    )


def test_a_wait_that_is_too_long_sends_the_request_to_the_fallback() -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    for retry_after, left in ((5.1, SECONDS), (3.0, 2.9)):
        step = tried(after(start(view=alone), "overloaded", view=alone, retry_after=retry_after, seconds_left=left))
        assert (step.choice.replica.name, step.choice.reason) == ("general-0", "overload")


def test_retries_are_counted_for_each_pool() -> None:
    kinds: list[FaultKind] = ["failed"] * (AttemptLimits().retries_max + 1)
    step = tried(after(start(), *kinds))
    assert (step.choice.pool.name, step.choice.reason) == ("general", "engine_error")
    none = policy(limits=AttemptLimits(retries_max=0))
    assert tried(after(start(), "failed", rules=none)).choice.pool.name == "general"


def test_nothing_is_tried_once_the_time_is_over() -> None:
    assert after(start(), "failed", seconds_left=0.0) == GiveUp("exhausted")
    assert after(start(), "overloaded", seconds_left=-1.0, retry_after=2.0) == GiveUp("exhausted")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("refused", "oversize")])
def test_a_pinned_request_never_goes_to_general(kind: FaultKind) -> None:
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    choice = start("returns@v1", alone)
    assert choice.reason == "pinned"
    kinds = [kind] * 3
    assert after(choice, *kinds, view=alone, retry_after=1.0) == GiveUp("exhausted", 1.0)


def test_a_task_without_a_fallback_gives_up() -> None:
    rules = policy(tasks={"returns": TaskPolicy("returns", None)})
    alone = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    assert after(start(rules=rules, view=alone), "silent", view=alone, rules=rules) == GiveUp("exhausted")


def test_a_fallback_that_fails_too_gives_up_and_does_not_go_back() -> None:
    view = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    first = start(view=view)
    second = tried(after(first, "unreachable", view=view)).choice
    failures = (Failure("unreachable", "small-0", "small"), Failure("unreachable", "general-0", "general"))
    assert choose_next_attempt(second, failures, policy(), view, moment(), SECONDS) == GiveUp("exhausted")


def pools_of(small: dict[str, Any], general: dict[str, Any]) -> FleetView:
    return fleet(
        replica("small-0", "small", "returns@v1"),
        replica("general-0", "general"),
        pools={"small": small, "general": general},
    )


@pytest.mark.parametrize(
    ("small", "general", "goes_on"),
    [(2048, 8192, True), (8192, 2048, False), (2048, 2048, False), (None, 8192, False), (2048, None, False)],
)
def test_a_prompt_that_is_too_long_goes_to_a_fallback_that_is_known_to_take_more(
    small: int | None, general: int | None, goes_on: bool
) -> None:
    view = pools_of({"context_tokens_max": small}, {"context_tokens_max": general})
    step = after(start(view=view), "too_long", view=view)
    if goes_on:
        assert (tried(step).choice.pool.name, tried(step).choice.reason) == ("general", "context_length")
    else:
        assert step == GiveUp("refused")


def test_a_pinned_prompt_that_is_too_long_is_refused() -> None:
    view = pools_of({"context_tokens_max": 2048}, {"context_tokens_max": 8192})
    assert after(start("returns@v1", view), "too_long", view=view) == GiveUp("refused")


@pytest.mark.parametrize(
    ("small", "general", "kind", "expected"),
    [
        (True, True, "truncated", "small-0"),
        (True, True, "silent", "general-0"),
        (False, True, "truncated", "general-0"),
        (True, False, "silent", None),
        (False, False, "truncated", None),
    ],
)
def test_an_answer_goes_on_only_in_a_pool_that_continues(
    small: bool, general: bool, kind: FaultKind, expected: str | None
) -> None:
    view = pools_of({"continues": small}, {"continues": general})
    choice = start(view=view)
    failures = (Failure(kind, "small-0", "small", None, NOW),)
    step = choose_next_attempt(choice, failures, policy(), view, moment(), SECONDS, going_on=True)
    assert (step.choice.replica.name if isinstance(step, NextAttempt) else None) == expected


def test_a_silent_engine_is_not_asked_again_where_it_is_the_fallback_too() -> None:
    view = fleet(replica("small-0", "small", "returns@v1"))
    rules = policy(tasks={"returns": TaskPolicy("returns", "small")})
    assert after(start(view=view, rules=rules), "silent", view=view, rules=rules) == GiveUp("exhausted")


def test_past_the_cap_an_adapter_that_fails_is_given_up_and_says_why() -> None:
    view = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    failures = (Failure("silent", "small-0", "small"),)
    late = replace(moment(), fallbacks_closed=frozenset({"returns"}))
    step = choose_next_attempt(start(view=view), failures, policy(), view, late, SECONDS)
    assert step == GiveUp("fallback_capped", None, "timeout", fallback_capped=True)


HELD_OUT = policy(tasks={"returns": TaskPolicy("returns", "general", checks={"holdout": CheckPolicy("enforce", 1.0)})})


def test_holdout_whose_fallback_fails_returns_once_to_the_version_it_left() -> None:
    choice = start(rules=HELD_OUT)
    assert (choice.reason, choice.version, choice.led_to) == ("holdout", None, version("returns@v1"))
    silent = tuple(Failure("silent", f"general-{number}", "general", None, NOW) for number in range(2))
    back = tried(choose_next_attempt(choice, silent, HELD_OUT, usual_fleet(), moment(), SECONDS)).choice
    assert (back.engine_model, back.reason, back.general_prompt_of) == ("returns@v1", "holdout", None)
    assert back.probability == choice.probability
    failed = tuple(Failure("failed", f"general-{number % 2}", "general", None, NOW) for number in range(3))
    again = tried(choose_next_attempt(choice, failed, HELD_OUT, usual_fleet(), moment(), SECONDS)).choice
    assert again.engine_model == "returns@v1"
    both = (*failed, *(Failure("failed", f"small-{number % 2}", "small", None, NOW) for number in range(3)))
    assert isinstance(choose_next_attempt(again, both, HELD_OUT, usual_fleet(), moment(), SECONDS), GiveUp)


def test_fallback_failing_for_another_reason_is_not_followed_by_its_version() -> None:
    away = replace(start(), version=None, general_prompt_of=version("returns@v1"), reason="out_of_scope")
    silent = tuple(Failure("silent", f"general-{number}", "general", None, NOW) for number in range(2))
    choice = replace(away, pool=usual_fleet().pools["general"], replica=usual_fleet().pools["general"].replicas[1])
    assert isinstance(choose_next_attempt(choice, silent, policy(), usual_fleet(), moment(), SECONDS), GiveUp)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_form_is_tried_at_one_more_replica(count: int) -> None:
    """At another one where there is; else once more at the same, and then at the fallback."""
    small = (replica(f"small-{at}", "small", *VERSIONS) for at in range(count))
    view = fleet(*small, *(replica(f"general-{at}", "general") for at in range(2)))
    choice, failures = start(view=view), list[Failure]()
    while True:
        failures.append(Failure("failed", choice.replica.name, choice.pool.name, None, NOW, status=500, has_form=True))
        then = choose_next_attempt(choice, tuple(failures), policy(), view, moment(), SECONDS)
        if isinstance(then, GiveUp):
            break
        choice = then.choice
    names = [failure.pool for failure in failures]
    assert (then.because, names) == ("exhausted", ["small", "small", *(["general"] if count == 1 else [])])
    assert len({failure.replica for failure in failures}) == 2
