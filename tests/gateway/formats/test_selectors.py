"""The selectors' parts of a conversation."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.features.fitting import prompts
from gateway.formats.fields import Message
from gateway.formats.selectors import select_from_messages, select_from_text
from router.fitting import scope

TALK = [
    ("system", "Be kind."),
    ("user", "I want to return a lamp."),
    ("assistant", "Which one?"),
    ("user", "yes, the blue one"),
]


def said(*turns: tuple[str, Any]) -> list[Message]:
    return msgspec.convert([{"role": role, "content": content} for role, content in turns], list[Message])


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ("last_user", "yes, the blue one"),
        ("user_turns", "I want to return a lamp.\nyes, the blue one"),
        ("dialogue", "I want to return a lamp.\nWhich one?\nyes, the blue one"),
        ("field:order", "yes, the blue one"),
    ],
)
def test_each_selector_takes_its_part_of_the_conversation(selector: str, taken: str) -> None:
    assert select_from_messages(selector, said(*TALK)) == taken


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("note", "It broke."),
        ("order.lines.0.name", "a lamp"),
        ("order.lines", '[{"name":"a lamp"}]'),
        ("order.total", "12"),
    ],
)
def test_a_field_is_taken_of_the_last_message_or_of_a_prompt(path: str, taken: str) -> None:
    text = '{"note": "It broke.", "order": {"total": 12, "lines": [{"name":"a lamp"}]}}'
    assert select_from_messages(f"field:{path}", said(("user", "earlier"), ("user", text))) == taken
    assert select_from_text(f"field:{path}", text) == taken


@pytest.mark.parametrize("path", ["nothing", "note.more", "order.lines.1.name", "order.lines.x", ".", "note."])
def test_where_there_is_no_such_field_the_whole_text_is_read(path: str) -> None:
    text = json.dumps({"note": "It broke.", "order": {"lines": [{"name": "a lamp"}]}})
    assert select_from_text(f"field:{path}", text) == text


def test_text_in_parts_is_put_together_and_no_user_means_nothing() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert select_from_messages("last_user", said(("user", parts))) == "one\ntwo"
    assert select_from_messages("last_user", said(("system", "Be kind."))) == ""


def test_of_a_long_text_both_ends_are_read() -> None:
    taken = select_from_messages("last_user", said(("user", "a" * 500_000 + "b" * 500_000)))
    assert taken == "a" * 1_100 + "\n" + "b" * 1_100


@given(st.text(), st.text(min_size=1, max_size=20))
def test_whatever_the_text_and_the_path_something_is_taken(text: str, path: str) -> None:
    assert isinstance(select_from_text(f"field:{path}", text), str)


def test_the_bounds_of_a_sample_are_those_of_the_fitting() -> None:
    assert (prompts.PROMPTS_MIN, prompts.PROMPTS_MAX) == (scope.PROMPTS_MIN, scope.PROMPTS_MAX)
    assert prompts.BACKGROUND_MAX == scope.BACKGROUND_MAX
