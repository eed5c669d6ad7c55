"""The label of a request: who decides it, what waits, and whose demonstration is taken as the right answer."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.feedback import Feedback
from monitoring.labels.request_label import LabelRules, RequestLabel, find_label
from monitoring.metric_values import Metric

RULES = LabelRules(metrics={"correct": Metric(kind="boolean")})
STRICT = LabelRules(metrics=RULES.metrics, agreed_only=True)


def said(*answers: tuple[str, bool] | tuple[str, bool, Any], reviewers: int = 1, **more: Any) -> list[Feedback]:
    """Reviewers' answers in the order of time: a rater, a value, and a demonstration if there is one."""
    return [
        Feedback(
            feedback_id=str(at),
            metric="correct",
            value=answer[1],
            at=float(at),
            caller=answer[0],
            demonstration=answer[2] if len(answer) > 2 else None,
            **{"reviewed": True, "reviewers": reviewers, **more},
        )
        for at, answer in enumerate(answers)
    ]


def label_of(feedback: list[Feedback], rules: LabelRules = RULES) -> RequestLabel:
    label = find_label(feedback, rules)
    assert label is not None
    return label


@pytest.mark.parametrize(
    ("feedback", "value", "words"),
    [
        (said(("a", False)), "wrong", "1 of 1 says wrong"),
        (said(("a", False), ("b", False), ("c", True), reviewers=3), "wrong", "2 of 3 say wrong"),
        (said(("a", True), reviewers=2), "unresolved", "1 of 2 reviewers has answered"),
        (said(("a", True), ("b", False), reviewers=2), "unresolved", "1 of 2 says wrong: unresolved"),
        (said(("a", True), ("b", False), ("b", True), reviewers=2), "right", "2 of 2 say right"),
    ],
)
def test_majority_of_latest_values_decides_once_all_asked_have_answered(
    feedback: list[Feedback], value: str, words: str
) -> None:
    label = label_of(feedback)
    assert (label.value, label.words) == (value, words)


def test_a_resolution_decides_and_tells_what_reviewers_said() -> None:
    disputed = said(("a", True), ("b", False, "x"), reviewers=2)
    assert label_of(disputed).is_disputed
    resolution = msgspec.structs.replace(said(("admin", False, "y"), reviewers=2, resolves=True)[0], at=9.0)
    label = label_of([*disputed, resolution])
    assert (label.value, label.demonstration, label.words) == ("wrong", "y", "resolved as wrong; 1 of 2 said wrong")
    assert not label.is_disputed


def test_reviewers_take_the_place_of_callers_and_their_demonstrations() -> None:
    callers = said(("x", False, "sent by a caller"), ("y", False, "sent by a caller"), reviewed=False)
    label = label_of([*callers, *said(("a", False, "seen by a reviewer"))])
    assert (label.demonstration, label.wrong) == ("seen by a reviewer", 1)


def test_only_labels_of_two_who_agree_count_where_raters_agree_too_little() -> None:
    assert label_of(said(("a", False)), STRICT).value == "unresolved"
    assert label_of(said(("a", False), ("b", False), ("c", True)), STRICT).value == "unresolved"
    assert label_of(said(("a", False, "x"), ("b", False, "y")), STRICT).demonstration is None
    agreed = label_of(said(("a", False, {"b": 1, "a": 2}), ("b", False, '{"a": 2, "b": 1}')), STRICT)
    assert (agreed.value, agreed.demonstration) == ("wrong", {"b": 1, "a": 2})
    calls = [{"name": "look", "arguments": {}}, {"name": "refund", "arguments": {"order": "A-7"}}]
    as_sent = [{"id": "c", "function": {**each, "arguments": json.dumps(each["arguments"])}} for each in calls[::-1]]
    forms = {"tool_calls": calls}, json.dumps({"tool_calls": as_sent})
    called = label_of(said(*(("ab"[at], False, form) for at, form in enumerate(forms))), STRICT)
    assert called.demonstration in forms, "the same calls, in another form and order"


def test_where_words_can_not_be_opened_nobody_knows_what_most_have_shown() -> None:
    feedback = said(("a", False, "x"), ("b", False))
    unopened = [feedback[0], msgspec.structs.replace(feedback[1], key="lost")]
    assert (label_of(feedback).demonstration, label_of(unopened).demonstration) == ("x", None)
    assert label_of(unopened).value == "wrong"
    other_side = [*said(("a", False, "x"), ("b", False)), msgspec.structs.replace(said(("c", True))[0], key="lost")]
    assert label_of(other_side).demonstration == "x"


def test_a_request_without_a_value_of_the_metric_has_no_label() -> None:
    assert find_label([], RULES) is None
    assert find_label([Feedback(feedback_id="1", metric="kind", value=0.1, at=0.0, caller="a")], RULES) is None


@pytest.mark.invariant("A lone dissenter's demonstration is never the label's.")
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.booleans(), st.sampled_from([None, "x", "y", "z"])),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_lone_dissenters_demonstration_is_never_taken(
    answers: list[tuple[str, bool, str | None]], strict: bool, chance: random.Random
) -> None:
    feedback = said(*answers)
    chance.shuffle(feedback)
    label = label_of(feedback, STRICT if strict else RULES)
    latest = {rater: value for rater, value, _ in answers}
    side = {"wrong": False, "right": True}.get(label.value)
    if label.demonstration is None:
        return
    givers = {rater for rater, value, shown in answers if shown == label.demonstration and value == side}
    agreeing = [rater for rater, value in latest.items() if value == side]
    assert 2 * len(agreeing) > len(latest)
    assert givers & set(agreeing)
    assert not strict or (len(set(latest.values())) == 1 and len(givers) >= 2)
