"""Rules: what they look for, in which order they are tried, and that long texts and many rules stay cheap."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choice import choose
from router.overrides import (
    ADDED_MAX,
    HELD_WORK_MAX,
    NO_RULE,
    PATTERN_WORK_MAX,
    PIECE_CHARACTERS_MAX,
    Override,
    Subject,
    apply_rules,
    find_pattern_fault,
    fold,
    match_texts,
    needs_text,
)
from router.routing_data import NO_SCORES, Choice
from tests.router.situations import NOW_UNIX, asked, moment, policy, usual_fleet

SUBJECT = Subject("returns", "caller1", {"shop": "de"})
PIECE = "The vase\t was  worn once. "


def matches(one: Override, text: str) -> bool:
    return one.id in match_texts((one,), text)


@given(st.text(st.sampled_from("aß\u00a0 \t\nİK"), max_size=12), st.integers(0, 9))
def test_a_long_text_is_folded_as_a_short_one_is(part: str, shift: int) -> None:
    text = "x" * shift + part * (2 * PIECE_CHARACTERS_MAX // max(1, len(part)) + 1)
    assert fold(text) == " ".join(text.split()).casefold()


@pytest.mark.parametrize("before", [0, PIECE_CHARACTERS_MAX - 4, PIECE_CHARACTERS_MAX, 3 * PIECE_CHARACTERS_MAX - 1])
def test_a_text_is_found_wherever_it_stands_in_a_long_one(before: int) -> None:
    text = "y" * before + " Fragile \n VASE" + " z" * PIECE_CHARACTERS_MAX
    assert matches(Override("a", "general", contains="fragile vase"), text)
    assert matches(Override("a", "general", pattern=r"(?i)fragile\s+vase"), text)
    assert not matches(Override("a", "general", contains="fragile vases"), text)


def test_a_pattern_reads_all_alphabets_and_halves_of_characters() -> None:
    assert matches(Override("a", "general", pattern=r"^花.\p{Greek}+$"), "花瓶αβγ")
    assert not matches(Override("a", "general", pattern=r"^花.\p{Greek}+$"), "花瓶abc")
    assert matches(Override("a", "general", pattern="vase"), "\ud800 vase \udfff")


def test_what_is_wrong_with_a_pattern_is_told_in_the_words_of_re2() -> None:
    for pattern, words in (("(a", "missing )"), ("[z-a]", "z-a"), ("(?=a)", "(?="), ("a{1001}", "repetition size")):
        assert words in str(find_pattern_fault(pattern))
    assert "too large" in str(find_pattern_fault(r"(\pL{100}){9}"))
    assert "surrogate" in str(find_pattern_fault("\ud800"))
    assert find_pattern_fault(".*") is None


def test_a_pattern_that_would_have_re_go_back_for_ever_takes_linear_time() -> None:
    began = time.perf_counter()
    assert not matches(Override("a", "general", pattern="(x+x+)+y"), "x" * 100_000)
    assert time.perf_counter() - began < 5


def test_rules_are_tried_in_their_order_and_the_first_that_decides_ends_it() -> None:
    rules = (
        Override("a", "refuse", caller="somebody"),
        Override("b", "system", system="One."),
        Override("c", "general", mode="observe"),
        Override("d", "version", task="returns", version="returns@v2"),
        Override("e", "system", system="Two."),
        Override("f", "refuse"),
    )
    found = apply_rules(rules, SUBJECT, frozenset(), NOW_UNIX)
    assert found.deciding is rules[3]
    assert (found.adding, found.observed) == ((rules[1],), (rules[2],))


def test_no_more_messages_are_added_than_the_bound_and_the_rest_is_noted() -> None:
    rules = tuple(Override(f"{number:02}", "system", system="A message.") for number in range(ADDED_MAX + 2))
    found = apply_rules(rules, SUBJECT, frozenset(), NOW_UNIX)
    assert (found.deciding, found.adding, found.observed) == (None, rules[:ADDED_MAX], rules[ADDED_MAX:])


def test_a_rule_matches_until_it_expires() -> None:
    one = Override("a", "refuse", expires_at=NOW_UNIX)
    assert apply_rules((one,), SUBJECT, frozenset(), NOW_UNIX - 0.001).deciding is one
    assert apply_rules((one,), SUBJECT, frozenset(), NOW_UNIX) is NO_RULE


def test_a_rule_matches_nothing_until_it_begins() -> None:
    one = Override("a", "refuse", starts_at=NOW_UNIX, expires_at=NOW_UNIX + 1)
    assert apply_rules((one,), SUBJECT, frozenset(), NOW_UNIX - 0.001) is NO_RULE
    assert apply_rules((one,), SUBJECT, frozenset(), NOW_UNIX).deciding is one
    assert apply_rules((one,), SUBJECT, frozenset(), NOW_UNIX + 1) is NO_RULE


def test_a_text_is_not_read_for_a_rule_that_has_not_begun() -> None:
    one = Override("a", "general", task="returns", contains="x", starts_at=NOW_UNIX)
    rules = replace(policy(), overrides=(one,))
    assert rules.rules_reading("returns", NOW_UNIX - 1) == ()
    assert rules.rules_reading("returns", NOW_UNIX) == (one,)
    assert not rules.takes_long("returns", "x" * (HELD_WORK_MAX + 1), NOW_UNIX - 1)


def test_a_pattern_that_is_found_in_everything_is_a_rule_for_all() -> None:
    one = Override("a", "general", pattern=".*")
    assert matches(one, "")
    assert matches(one, "whatever")


def test_each_task_is_held_against_its_rules_in_the_order_of_all() -> None:
    rules = (
        Override("a", "general", task="clauses"),
        Override("b", "general", task="returns"),
        Override("c", "general", task="returns", caller="somebody"),
    )
    own = replace(policy(), overrides=rules)
    assert own.rules_for("returns") == rules[1:]
    assert own.rules_for("clauses") == rules[:1]
    assert own.rules_for("other") == ()
    both = replace(policy(), overrides=(*rules, Override("d", "general")))
    assert both.rules_for("returns") == both.overrides
    assert both.rules_for("other") == both.overrides[3:]
    assert both.rules_named("auto") == both.overrides
    assert both.rules_named("other@v1") == both.overrides[3:]


@pytest.mark.invariant("No text or pattern of a rule holds the event loop.")
def test_a_text_that_rules_take_long_to_read_is_told() -> None:
    contains = replace(policy(), overrides=(Override("a", "general", contains="vase"),))
    assert not contains.takes_long("returns", "x" * HELD_WORK_MAX, NOW_UNIX)
    assert contains.takes_long("returns", "x" * (HELD_WORK_MAX + 1), NOW_UNIX)
    counting = replace(policy(), overrides=(Override("a", "general", pattern="[ab]*a[ab]{900}x"),))
    assert not counting.takes_long("returns", "ab" * 50, NOW_UNIX)
    assert counting.takes_long("returns", "ab" * 100, NOW_UNIX)
    assert not policy().takes_long("returns", "x" * 10_000_000, NOW_UNIX)


def test_rules_of_other_tasks_and_expired_ones_are_not_read_and_have_no_weight() -> None:
    text = "x" * HELD_WORK_MAX
    own = Override("a", "general", task="returns", contains="x")
    others = (
        Override("b", "general", task="clauses", contains="x"),
        Override("c", "general", task="returns", contains="x", expires_at=NOW_UNIX),
        Override("d", "general", caller="somebody"),
    )
    rules = replace(policy(), overrides=(own, *others))
    assert rules.rules_reading("returns", NOW_UNIX) == (own,)
    assert not rules.takes_long("returns", text, NOW_UNIX)
    assert not rules.takes_long("returns@v1", text, NOW_UNIX)
    assert rules.takes_long("returns", text, NOW_UNIX - 1)
    assert rules.takes_long("auto", text, NOW_UNIX)


@pytest.mark.invariant("No text or pattern of a rule holds the event loop.")
def test_pattern_of_too_many_steps_is_refused_at_once_and_others_end_soon() -> None:
    for pattern in (r"(?i)(?:\bglas\b|\pL+vase){20}", r"[\pL ]{0,20}a"):
        began = time.thread_time()
        assert "KiB compiled" in str(find_pattern_fault(pattern))
        assert time.thread_time() - began < 0.01
    assert "steps compiled" in str(find_pattern_fault(r"\pL\pL\pL\pL"))
    one = Override("a", "general", pattern="[ab]*a[ab]{900}c|z")
    assert find_pattern_fault(one.pattern or "") is None
    far = PATTERN_WORK_MAX // one.compiled.programsize
    assert matches(one, "." * (far - 1) + "z")
    assert not matches(one, "." * far + "z")


@pytest.mark.invariant("No text or pattern of a rule holds the event loop.")
def test_a_text_that_is_not_long_holds_nobody_up_whatever_the_pattern() -> None:
    one = Override("a", "general", pattern="[ab]*a[ab]{900}x")
    text = "".join("ab"[(number * number // 7) % 2] for number in range(HELD_WORK_MAX // one.weight))
    spent = []
    for _ in range(5):
        began = time.thread_time()
        match_texts((one,), text)
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.002


def test_a_thousand_rules_are_held_against_a_request_within_a_millisecond() -> None:
    rules = tuple(
        Override(f"{number:04}", "general", task="returns", contains=f"vase {number}") for number in range(1000)
    )
    many = replace(policy(), overrides=rules, text_needed=needs_text(rules))
    view, request, at = usual_fleet(), asked(text=PIECE * 30), moment()
    spent = []
    for _ in range(7):
        began = time.thread_time()
        decision = choose(request, NO_SCORES, many, view, at)
        spent.append(time.thread_time() - began)
        assert isinstance(decision, Choice)
        assert decision.reason == "adapter"
    assert min(spent) < 0.001
