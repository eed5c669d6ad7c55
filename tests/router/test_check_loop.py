"""The checks before an answer: what each finds, which one acts, and that the shares of all arms add up."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from router.checks import REQUEST_CHECKS
from router.choice import choose
from router.findings import CheckPolicy, Finding
from router.policy import Alias, Policy, Shift
from router.routing_data import NO_SCORES, Choice, Refusal, Scores
from tests.router.situations import Case, asked, cases, checked_task, fitted, many, moment, policy, scored, usual_fleet

REQUEST_NAMES = tuple(check.name for check in REQUEST_CHECKS)
DRAWS = 100_000
HALVES = {"returns@v1": 0.7, "returns@v2": 0.3}


def ruled(scores: Scores = NO_SCORES, draw: float = 0.5, session: str | None = None, **changes: Any) -> Choice:
    decision = choose(asked(session=session), scores, policy(**changes), usual_fleet(), moment(draw))
    assert isinstance(decision, Choice), decision
    return decision


def findings(decision: Choice | Refusal) -> dict[str, Finding]:
    return {finding.check: finding for finding in decision.findings}


def within(count: float, share: float, draws: int = DRAWS) -> bool:
    """True where a count is within five standard deviations of this share."""
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share)) + 1e-9


@pytest.mark.invariant("A check that only observes changes nothing.")
@many
@given(cases)
def test_checks_that_are_only_observed_change_nothing_but_the_findings(case: Case) -> None:
    seen = {
        name: replace(task, checks={check: replace(one, mode="observe") for check, one in task.checks.items()})
        for name, task in case.policy.tasks.items()
    }
    unseen = {name: replace(task, checks={}) for name, task in seen.items()}
    with_checks, without = (
        choose(case.asked, case.scores, replace(case.policy, tasks=tasks), case.view, case.moment)
        for tasks in (seen, unseen)
    )
    assert type(with_checks) is type(without)
    found = {check for task in seen.values() for check in task.checks}
    assert {one.check for one in with_checks.findings} - {one.check for one in without.findings} - {"override"} <= found
    plain = replace(with_checks, findings=without.findings)
    if isinstance(plain, Choice) and plain.task is not None:
        plain = replace(plain, task=unseen[plain.task.name])
    assert plain == without


@many
@given(cases)
def test_the_first_enforced_check_that_fires_is_the_reason_and_the_last_finding(case: Case) -> None:
    decision = choose(*case[:5])
    found = [one for one in decision.findings if one.check != "override"]
    assert [one.check for one in found] == [name for name in REQUEST_NAMES if name in {one.check for one in found}]
    acted = [one.check for one in found if one.fired and one.mode == "enforce"]
    assert acted == [one.check for one in found[-1:] if acted]
    if acted and not (isinstance(decision, Refusal) and decision.reason is None):
        lacks = {"overload", "no_replica"} if isinstance(decision, Refusal) else set()
        assert decision.reason in {*acted, *lacks}
    elif isinstance(decision, Choice):
        assert decision.reason not in REQUEST_NAMES or decision.task is None


def test_input_under_the_threshold_is_out_of_scope_with_score_and_neighbours() -> None:
    rules: dict[str, Any] = {
        "tasks": checked_task(out_of_scope=CheckPolicy("enforce", 0.05)), "fitted": {"returns@v1": fitted(scope=0.25)}
    }  # fmt: skip
    outside = ruled(scored(scope=0.2), **rules)
    assert (outside.reason, outside.pool.name, outside.probability) == ("out_of_scope", "general", 1.0)
    assert findings(outside)["out_of_scope"] == Finding(
        "out_of_scope", "enforce", True, 0.2, 0.25, ("p1", "p2", "p3"), "", "returns@v1"
    )
    inside = ruled(scored(scope=0.25), **rules)
    assert (inside.reason, findings(inside)["out_of_scope"].fired) == ("adapter", False)


@pytest.mark.parametrize(
    ("scores", "fit", "note"),
    [
        (NO_SCORES, fitted(scope=0.25), "no scope model"),
        (scored("returns@v2", scope=-9.0), fitted(scope=0.25), "no scope model"),
        (scored(scope=-9.0), fitted(), "no scope model"),
        (NO_SCORES, replace(fitted(scope=0.25), scope_selector="dialogue"), "fitted with another selector"),
        (scored(scope=-9.0), fitted(scope=-math.inf), "too few training prompts for so small a share"),
    ],
)
def test_what_can_not_be_judged_stays_with_the_adapter_and_says_why(scores: Scores, fit: Any, note: str) -> None:
    rules = {"tasks": checked_task(out_of_scope=CheckPolicy("enforce", 0.05)), "fitted": {"returns@v1": fit}}
    decision = ruled(scores, **rules)
    assert (decision.reason, findings(decision)["out_of_scope"].note) == ("adapter", note)


def test_a_gain_counts_only_where_it_was_shown_to_help_and_is_above_nothing() -> None:
    tasks = checked_task(predicted_gain=CheckPolicy("enforce", 0.2))

    def reason(gain: float, threshold: float, shown: bool = True) -> str:
        fit = fitted(gain=threshold, shown_to_help=shown)
        return ruled(scored(gain=gain), tasks=tasks, fitted={"returns@v1": fit}).reason

    assert reason(0.3, 0.2) == "predicted_gain"
    assert reason(0.2, 0.2) == "adapter"
    assert reason(-0.1, -0.5) == "adapter"
    assert reason(0.3, 0.2, shown=False) == "adapter"


def drawn(rules: Policy, seed: int, sessions: bool = False) -> dict[tuple[str, str], list[Choice]]:
    """The routes of 100,000 requests: by reason, and by the version that they were led to."""
    chance, view = random.Random(seed), usual_fleet()
    arms: dict[tuple[str, str], list[Choice]] = defaultdict(list)
    for number in range(DRAWS):
        request = asked(session=f"session {number}" if sessions else None)
        decision = choose(request, NO_SCORES, rules, view, moment(chance.random()))
        assert isinstance(decision, Choice)
        led_to = decision.version or decision.general_prompt_of
        assert led_to is not None
        arms[decision.reason, led_to.name].append(decision)
    return arms


@pytest.mark.parametrize("sessions", [False, True])
def test_the_shares_of_all_arms_add_up_and_each_request_carries_that_of_its_own(sessions: bool) -> None:
    rules = policy(
        tasks=checked_task(degraded=CheckPolicy("enforce", 0.2), holdout=CheckPolicy("enforce", 0.1)),
        aliases={"returns": Alias("returns", 1, HALVES, "salt", previous_version="returns@v2")},
        shifts={"returns@v2": Shift(0.0)},
    )
    arms = drawn(rules, 3, sessions)
    expected = {
        ("adapter", "returns@v1"): 0.7 * 0.9,
        ("holdout", "returns@v1"): 0.7 * 0.1,
        ("degraded", "returns@v2"): 0.3 * 0.8,
        ("holdout", "returns@v2"): 0.3 * 0.2 * 0.1,
        ("canary", "returns@v2"): 0.3 * 0.2 * 0.9,
    }
    assert arms.keys() == expected.keys()
    for arm, share in expected.items():
        assert within(len(arms[arm]), share), arm
        assert {round(choice.probability, 12) for choice in arms[arm]} == {round(share, 12)}
    assert math.isclose(sum(choices[0].probability for choices in arms.values()), 1.0)


def test_a_share_that_is_only_observed_is_found_and_draws_nobody_away() -> None:
    rules = policy(tasks=checked_task(holdout=CheckPolicy("observe", 0.1)))
    arms = drawn(rules, 4)
    (choices,) = arms.values()
    assert {choice.probability for choice in choices} == {1.0}
    assert within(sum(findings(choice)["holdout"].fired for choice in choices), 0.1)


def test_named_session_stays_in_its_arm_and_an_empty_name_is_no_session() -> None:
    tasks = checked_task(holdout=CheckPolicy("enforce", 0.5))
    for number in range(50):
        arms = {ruled(draw=draw, session=f"session {number}", tasks=tasks).reason for draw in (0.1, 0.4, 0.9)}
        assert len(arms) == 1
    chance = random.Random(5)
    unnamed = Counter(ruled(draw=chance.random(), session="", tasks=tasks).reason for _ in range(200))
    assert 50 < unnamed["holdout"] < 150


def test_a_version_that_is_degraded_keeps_its_exploration_share_alone() -> None:
    rules = {"tasks": checked_task(degraded=CheckPolicy("enforce", 1.0)), "shifts": {"returns@v1": Shift(0.0)}}
    kept = ruled(**rules)
    assert (kept.reason, kept.probability) == ("adapter", 1.0)
    assert findings(kept)["degraded"].note == "kept by the exploration share"
    assert (
        ruled(tasks=checked_task(degraded=CheckPolicy("enforce", 0.0)), shifts={"returns@v1": Shift(0.0)}).reason
        == "degraded"
    )
    assert ruled(tasks=checked_task(degraded=CheckPolicy("enforce", 0.0))).reason == "adapter"
