from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.attempts import REASON_OF, Failure, NextAttempt, choose_after_rejection, choose_next_attempt
from router.checks import AFTER_THE_ANSWER
from router.choice import choose
from router.fallbacks import ADAPTER_STANDS_IN, choose_fallback_instead
from router.findings import CheckPolicy
from router.overrides import Override, find_pattern_fault, needs_text
from router.policy import Alias, Policy, Shift, TaskPolicy
from router.routing_data import NO_SCORES, OUT_OF_SERVICE, REASONS, Choice, Moment, Reason, Refusal, RefusalCode, Scores
from router.scoring import score
from router.version_choice import place_session
from serving.fleet_view import CircuitView
from tests.router.situations import (
    ACTIVE,
    NOW,
    NOW_UNIX,
    RESERVED,
    VERSIONS,
    Case,
    Covered,
    asked,
    cases,
    checked_task,
    fitted,
    fleet,
    many,
    moment,
    policy,
    replica,
    scored,
    usual_fleet,
    version,
)

DRAWS = 100_000


def chosen(decision: Choice | Refusal | None) -> Choice:
    assert isinstance(decision, Choice), decision
    return decision


def refused(decision: Choice | Refusal) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


@pytest.mark.invariant("Every input is decided, and always in the same way.")
@many
@given(cases)
def test_every_request_is_decided_and_the_same_one_always_in_the_same_way(case: Case) -> None:
    decision = choose(*case[:5])
    assert decision == choose(*case[:5])
    if isinstance(decision, Refusal):
        assert decision.code in get_args(RefusalCode)
        assert decision.message.endswith(".")
    else:
        assert decision.reason in REASONS
        assert 0 < decision.probability <= 1


@pytest.mark.invariant("No request goes where its version is not loaded.")
@many
@given(cases)
def test_no_request_goes_where_its_version_is_not_loaded(case: Case) -> None:
    decision = choose(*case[:5])
    if isinstance(decision, Choice):
        assert decision.replica.up
        assert decision.replica in decision.pool.replicas
        assert case.view.in_flight[decision.replica.name] < decision.replica.in_flight_max
        if decision.version is not None:
            assert decision.version.state not in OUT_OF_SERVICE
            assert decision.version.name in decision.replica.loaded
            assert decision.engine_model == decision.version.name
        else:
            assert decision.engine_model == decision.pool.base_model


@many
@given(cases)
def test_no_request_gets_a_model_that_its_key_does_not_name(case: Case) -> None:
    name = case.asked.model.partition("@")[0]
    if not case.asked.models_allowed & {"*", name}:
        assert refused(choose(*case[:5])).code == "model_not_allowed"


@pytest.mark.invariant("A pinned request is answered by its pin or an error.")
@many
@given(cases)
def test_a_pinned_request_is_never_answered_by_anything_else(case: Case) -> None:
    decision = choose(*case[:5])
    if isinstance(decision, Choice) and decision.reason == "pinned":
        if decision.task is None:
            assert (decision.pool.name, decision.version) == (case.asked.model, None)
        else:
            assert decision.version is not None
            assert decision.version.name == case.asked.model
            assert decision.version.state != "quarantined"


@many
@given(cases)
def test_a_general_prompt_is_added_for_a_base_that_stands_in_and_for_nothing_else(case: Case) -> None:
    decision = choose(*case[:5])
    if isinstance(decision, Choice) and decision.general_prompt_of is not None:
        assert decision.version is None
        assert decision.task is not None
        assert decision.pool.name == decision.task.fallback_pool


def test_fallback_serves_while_breakers_are_open_until_a_half_open_one_succeeds() -> None:
    for version_open, fallback_open, until, expected in (
        (True, False, NOW + 9, "general-0"),
        (True, True, NOW + 9, "small-0"),
        (True, False, NOW - 1, "small-0"),
        (False, False, NOW + 9, "small-0"),
    ):
        view = fleet(
            replica("small-0", "small", "returns@v1", circuits={"": CircuitView(until, open=version_open)}),
            replica(
                "general-0", "general", circuits={"": CircuitView(NOW + 9, open=fallback_open)} if fallback_open else {}
            ),
        )
        found = chosen(choose(asked(), NO_SCORES, policy(), view, moment()))
        assert (found.replica.name, found.reason == "no_replica") == (expected, expected == "general-0")


def check(reason: str) -> Choice:
    """A decision that has this reason; every active one has an entry here."""
    empty = fleet(replica("small-0", "small"), replica("general-0", "general"))
    full = usual_fleet(in_flight={"small-0": 8, "small-1": 8})
    canary = policy(aliases={"returns": Alias("returns", 1, {"returns@v1": 0.9, "returns@v2": 0.1}, "salt")})
    rule = policy(overrides=(Override(id="r", action="general", task="returns"),))
    match reason:
        case "override":
            return chosen(choose(asked(), NO_SCORES, rule, usual_fleet(), moment()))
        case "pinned":
            return chosen(choose(asked("returns@v2"), NO_SCORES, policy(), usual_fleet(), moment()))
        case "adapter":
            return chosen(choose(asked(), NO_SCORES, policy(), usual_fleet(), moment()))
        case "canary":
            return chosen(choose(asked(), NO_SCORES, canary, usual_fleet(), moment(0.95)))
        case "degraded" | "out_of_scope" | "holdout" | "predicted_gain":
            share = {"holdout": 1.0, "degraded": 0.0}.get(reason, 0.05)
            ill = policy(
                tasks=checked_task(**{reason: CheckPolicy("enforce", share)}),
                fitted={"returns@v1": fitted(0.0, 0.1)},
                shifts={"returns@v1": Shift(0.0)},
            )
            return chosen(choose(asked(), scored(scope=-1.0, gain=0.2), ill, usual_fleet(), moment()))
        case "other_language":
            rules = policy(
                tasks=checked_task(out_of_scope=CheckPolicy("enforce", 0.05)), fitted={"returns@v1": fitted(0.0)}
            )
            scores = Scores("returns@v1", Covered(-1.0, language="German"))  # type: ignore[arg-type]
            return chosen(choose(asked(), scores, rules, usual_fleet(), moment()))
        case "contract" | "low_confidence" | "refusal":
            begun = chosen(choose(asked(), NO_SCORES, policy(), usual_fleet(), moment()))
            then = choose_after_rejection(begun, reason, policy(), usual_fleet(), moment(), 60)
            assert isinstance(then, NextAttempt)
            return then.choice
        case "no_replica":
            return chosen(choose(asked(), NO_SCORES, policy(), empty, moment()))
        case "overload":
            return chosen(choose(asked(), NO_SCORES, policy(), full, moment()))
    kind = next(kind for kind, named in REASON_OF.items() if named == reason)
    larger = usual_fleet(pools={"small": {"context_tokens_max": 2048}, "general": {"context_tokens_max": 8192}})
    start = chosen(choose(asked(), NO_SCORES, policy(), larger, moment()))
    alone = policy(limits=policy().limits.__class__(retries_max=0))
    failures = (Failure(kind, start.replica.name, "small"),)
    step = choose_next_attempt(start, failures, alone, larger, moment(), 60)
    assert isinstance(step, NextAttempt)
    return step.choice


def test_every_reason_is_either_given_before_an_answer_or_after_it() -> None:
    assert sorted(ACTIVE + RESERVED) == sorted(REASONS)
    assert set(RESERVED) == AFTER_THE_ANSWER


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_can_be_reached(reason: str) -> None:
    assert check(reason).reason == reason


@many
@given(cases)
def test_no_reason_that_comes_after_an_answer_is_given_before_it(case: Case) -> None:
    decision = choose(*case[:5])
    assert not isinstance(decision, Choice) or decision.reason in ACTIVE


def weighted(**shares: float) -> Policy:
    weights = {f"returns@{name}": share for name, share in shares.items()}
    return policy(aliases={"returns": Alias("returns", 1, weights, "salt")})


def within(count: int, share: float, draws: int = DRAWS) -> bool:
    """True where a count is within five standard deviations of this share (missed once in 1.7 million)."""
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share))


def test_shares_of_an_alias_come_out_over_many_requests_without_a_session() -> None:
    rules, view = weighted(v1=0.7, v2=0.3), usual_fleet()
    chance = random.Random(1)
    counted = Counter(
        chosen(choose(asked(), NO_SCORES, rules, view, moment(chance.random()))).engine_model for _ in range(DRAWS // 5)
    )
    assert within(counted["returns@v2"], 0.3, DRAWS // 5)
    assert sum(counted.values()) == DRAWS // 5


def test_shares_of_an_alias_come_out_over_many_sessions() -> None:
    points = [place_session(f"session {number}", "salt") for number in range(DRAWS)]
    for low, high in ((0.0, 0.7), (0.7, 0.9), (0.9, 1.0)):
        assert within(sum(low <= point < high for point in points), high - low)


def test_a_new_salt_draws_the_sessions_anew() -> None:
    both = sum(
        place_session(f"session {n}", "one") < 0.5 and place_session(f"session {n}", "two") < 0.5
        for n in range(DRAWS // 5)
    )
    assert within(both, 0.25, DRAWS // 5)


@given(st.text(min_size=1, max_size=40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_session_keeps_its_version_whatever_is_drawn(session: str, one: float, other: float) -> None:
    rules, view = weighted(v1=0.5, v2=0.5), usual_fleet()
    first = chosen(choose(asked(session=session), NO_SCORES, rules, view, moment(one)))
    again = chosen(choose(asked(session=session), NO_SCORES, rules, view, moment(other)))
    assert first.version == again.version


def test_the_share_of_the_arm_stands_on_the_choice() -> None:
    rules = weighted(v1=0.9, v2=0.1)
    assert (check("canary").probability, check("canary").engine_model) == (0.1, "returns@v2")
    leading = chosen(choose(asked(), NO_SCORES, rules, usual_fleet(), moment(0.1)))
    assert (leading.reason, leading.probability) == ("adapter", 0.9)


def test_version_with_the_greatest_share_is_the_adapter_however_small_it_is() -> None:
    rules = weighted(v1=0.25, v2=0.375, v3=0.375)
    view = fleet(replica("small-0", "small", "returns@v1", "returns@v2"), versions=["returns@v1", "returns@v2"])
    assert chosen(choose(asked(), NO_SCORES, rules, view, moment(0.5))).reason == "adapter"
    assert chosen(choose(asked(), NO_SCORES, rules, view, moment(0.1))).reason == "canary"


def test_a_share_ends_where_the_next_begins() -> None:
    rules = weighted(v1=0.75, v2=0.25)
    below = chosen(choose(asked(), NO_SCORES, rules, usual_fleet(), moment(math.nextafter(0.75, 0))))
    at = chosen(choose(asked(), NO_SCORES, rules, usual_fleet(), moment(0.75)))
    assert (below.engine_model, at.engine_model) == ("returns@v1", "returns@v2")


@many
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=2), st.floats(0, 1, exclude_max=True))
def test_rounding_in_the_weights_leaves_no_gap(shares: list[float], draw: float) -> None:
    total = sum(shares) * (1 + 1e-9)
    rules = weighted(v1=shares[0] / total, v2=shares[1] / total)
    assert chosen(choose(asked(), NO_SCORES, rules, usual_fleet(), moment(draw))).version is not None
    assert (
        chosen(choose(asked(), NO_SCORES, rules, usual_fleet(), moment(math.nextafter(1, 0)))).engine_model
        == "returns@v2"
    )


def ruled(*rules: Override, **request: object) -> Choice | Refusal:
    set_, view = policy(overrides=rules, text_needed=needs_text(rules)), usual_fleet()
    return choose(asked(**request), score(asked(**request), set_, view, moment()), set_, view, moment())


def test_the_first_override_that_matches_decides() -> None:
    to_version = Override(id="a", action="version", version="returns@v2")
    to_general = Override(id="b", action="general")
    assert chosen(ruled(to_version, to_general)).engine_model == "returns@v2"
    decision = chosen(ruled(to_general, to_version))
    assert (decision.engine_model, decision.override_id, decision.reason) == ("general-base", "b", "override")
    assert decision.general_prompt_of == version("returns@v1")


def test_an_override_holds_until_the_second_at_which_it_expires() -> None:
    def rule(expires_at: float) -> Override:
        return Override(id="a", action="general", expires_at=expires_at)

    assert chosen(ruled(rule(NOW_UNIX + 0.001))).reason == "override"
    assert chosen(ruled(rule(NOW_UNIX))).reason == "adapter"
    assert chosen(ruled(rule(NOW_UNIX - 60))).reason == "adapter"


def test_an_override_looks_at_text_without_regard_to_case_and_spaces() -> None:
    rule = Override(id="a", action="general", contains="FRAGILE  Vase")
    assert chosen(ruled(rule, text="my fragile vase broke")).reason == "override"
    assert chosen(ruled(rule, text="my sturdy vase broke")).reason == "adapter"


def test_an_override_looks_for_a_pattern_in_the_text_as_it_is() -> None:
    one = Override(id="a", action="general", pattern=r"\b[Ff]ragile\s+vase\b")
    assert chosen(ruled(one, text="my Fragile\nvase broke")).reason == "override"
    assert chosen(ruled(one, text="my FRAGILE vase broke")).reason == "adapter"
    both = Override(id="a", action="general", pattern="vase", contains="BROKE")
    assert chosen(ruled(both, text="my vase broke")).reason == "override"
    assert chosen(ruled(both, text="my vase")).reason == "adapter"


def test_a_pattern_that_can_not_be_compiled_matches_nothing_and_is_told() -> None:
    for pattern in ("(a", r"(a)\1", "(?=a)", "a{1000}{1000}", "\ud800"):
        assert chosen(ruled(Override(id="a", action="general", pattern=pattern), text="aaa")).reason == "adapter"
        assert find_pattern_fault(pattern)
    assert find_pattern_fault(r"(?i)a\b") is None


def test_a_rule_that_adds_a_message_lets_the_later_ones_decide() -> None:
    adds = Override(id="a", action="system", system="Mind the new policy.")
    alone = chosen(ruled(adds))
    assert (alone.reason, alone.system, alone.override_id) == ("adapter", "Mind the new policy.", None)
    assert [(one.check, one.mode, one.fired, one.note) for one in alone.findings] == [
        ("override", "enforce", True, "a: system")
    ]
    sent = chosen(
        ruled(adds, Override(id="b", action="system", system="And smile."), Override(id="c", action="general"))
    )
    assert (sent.reason, sent.system, sent.override_id) == ("override", "Mind the new policy.\n\nAnd smile.", "c")


def test_an_observed_rule_changes_nothing_and_is_noted() -> None:
    decision = chosen(ruled(Override(id="a", action="refuse", mode="observe")))
    assert decision.reason == "adapter"
    assert [(one.check, one.mode, one.fired, one.note) for one in decision.findings] == [
        ("override", "observe", True, "a: refuse")
    ]


def test_an_override_matches_only_where_all_its_conditions_hold() -> None:
    rule = Override(id="a", action="general", task="returns", caller="caller1", metadata={"shop": "de"})
    assert chosen(ruled(rule, metadata={"shop": "de", "x": "y"})).reason == "override"
    assert chosen(ruled(rule, metadata={"shop": "fr"})).reason == "adapter"
    assert chosen(ruled(rule, metadata=None)).reason == "adapter"
    assert chosen(ruled(rule, metadata={"shop": "de"}, caller="caller2")).reason == "adapter"


def test_an_override_that_refuses_says_what_the_admin_wrote() -> None:
    decision = refused(ruled(Override(id="a", action="refuse", message="Closed for stocktaking.")))
    assert (decision.code, decision.message) == ("refused_by_override", "Closed for stocktaking.")


def test_an_override_comes_before_a_pin() -> None:
    assert chosen(ruled(Override(id="a", action="general"), model="returns@v2")).reason == "override"


def test_an_override_to_a_version_that_is_nowhere_goes_to_the_fallback() -> None:
    decision = chosen(ruled(Override(id="a", action="version", version="returns@v9")))
    assert (decision.engine_model, decision.reason) == ("general-base", "no_replica")


def test_a_pin_reaches_no_quarantined_version() -> None:
    view = usual_fleet(versions=[version("returns@v1", state="quarantined")])
    assert refused(choose(asked("returns@v1"), NO_SCORES, policy(), view, moment())).code == "version_not_loaded"


def test_a_pin_to_a_version_that_is_not_loaded_is_refused() -> None:
    view = fleet(replica("small-0", "small", "returns@v1"), replica("general-0", "general"))
    assert refused(choose(asked("returns@v2"), NO_SCORES, policy(), view, moment())).code == "version_not_loaded"


def test_a_task_without_an_alias_goes_to_its_fallback_without_a_general_prompt() -> None:
    decision = chosen(choose(asked(), NO_SCORES, policy(aliases={}), usual_fleet(), moment()))
    assert (decision.engine_model, decision.reason, decision.general_prompt_of) == ("general-base", "no_replica", None)


def test_a_task_without_a_fallback_is_refused_when_its_version_is_nowhere() -> None:
    rules = policy(tasks={"returns": TaskPolicy("returns", None)}, aliases={})
    decision = refused(choose(asked(), NO_SCORES, rules, usual_fleet(), moment()))
    assert decision.code == "no_replica"
    assert "no fallback" in decision.message


def test_a_pool_may_be_named_only_where_it_is_callable() -> None:
    assert chosen(choose(asked("general"), NO_SCORES, policy(), usual_fleet(), moment())).reason == "pinned"
    assert refused(choose(asked("small"), NO_SCORES, policy(), usual_fleet(), moment())).code == "model_not_found"


@pytest.mark.parametrize("model", ["", "@", "nobody", "returns@v9", "general@v1", "Returns", "returns@v1@v2"])
def test_what_does_not_exist_is_not_found(model: str) -> None:
    assert (
        refused(choose(asked(model), NO_SCORES, policy(), usual_fleet(versions=VERSIONS), moment())).code
        == "model_not_found"
    )


def test_a_full_fleet_is_overloaded_and_an_empty_one_has_no_replica() -> None:
    full = usual_fleet(in_flight=dict.fromkeys(("small-0", "small-1", "general-0", "general-1"), 8))
    assert refused(choose(asked(), NO_SCORES, policy(), full, moment())).code == "overload"
    assert refused(choose(asked(), NO_SCORES, policy(), fleet(), moment())).code == "no_replica"


def test_fallback_instead_names_the_general_prompt_of_the_version_it_stands_in_for() -> None:
    start = check("adapter")
    decision = chosen(
        choose_fallback_instead(start, policy(), usual_fleet(), moment(), "engine_error", frozenset({"general-0"}))
    )
    assert (decision.replica.name, decision.reason) == ("general-1", "engine_error")
    assert decision.general_prompt_of == start.version


def test_a_caller_of_a_pool_has_no_fallback() -> None:
    start = chosen(choose(asked("general"), NO_SCORES, policy(), usual_fleet(), moment()))
    assert (
        refused(choose_fallback_instead(start, policy(), usual_fleet(), moment(), "engine_error")).code == "no_replica"
    )


def closed(*tasks: str) -> Moment:
    return replace(moment(), fallbacks_closed=frozenset(tasks))


def test_past_its_cap_a_task_goes_to_its_adapter_or_nowhere_and_others_are_free() -> None:
    full = usual_fleet(in_flight=dict.fromkeys(("small-0", "small-1"), 8))
    assert chosen(choose(asked(), NO_SCORES, policy(), usual_fleet(), closed("returns"))).reason == "adapter"
    refusal = refused(choose(asked(), NO_SCORES, policy(), full, closed("returns")))
    assert (refusal.code, refusal.reason) == ("fallback_capped", "overload")
    assert chosen(choose(asked(), NO_SCORES, policy(), full, closed("other"))).pool.name == "general"
    assert chosen(choose(asked("general"), NO_SCORES, policy(), full, closed("returns"))).pool.name == "general"


@pytest.mark.parametrize("reason", sorted(ADAPTER_STANDS_IN))
def test_past_the_cap_the_adapter_answers_where_the_reason_allows_it(reason: Reason) -> None:
    start = check("adapter")
    decision = chosen(choose_fallback_instead(start, policy(), usual_fleet(), closed("returns"), reason))
    assert (decision.version, decision.reason, decision.general_prompt_of) == (start.version, reason, None)
    assert (
        refused(choose_fallback_instead(start, policy(), usual_fleet(), closed("returns"), "engine_error")).code
        == "fallback_capped"
    )
    gone = fleet(replica("general-0", "general"))
    assert refused(choose_fallback_instead(start, policy(), gone, closed("returns"), reason)).code == "fallback_capped"
