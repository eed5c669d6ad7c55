"""A part of an answer: what another engine is asked, what it adds, and how the two are counted together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.formats.chat import CHAT
from gateway.formats.request_body import read_body
from gateway.formats.server_sent_events import Progress, TokenDetails, Usage
from gateway.path.partial_answer import PartialAnswer, head_of
from router.choice import choose
from router.routing_data import NO_SCORES, Choice
from tests.router.situations import asked, moment, policy, usual_fleet

HEAD = {"id": "chatcmpl-1", "model": "returns@v1", "created": 7}


def partial(tokens: int = 40) -> PartialAnswer:
    return PartialAnswer("It may be", tokens, HEAD, (), committed=True)


def event(**choice: Any) -> bytes:
    told = {"id": "chatcmpl-2", "model": "large", "created": 9, "choices": [{"index": 0, **choice}]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def choice() -> Choice:
    found = choose(asked(), NO_SCORES, policy(), usual_fleet(), moment())
    assert isinstance(found, Choice)
    return found


def sent(tokens: int = 40, **more: Any) -> dict[str, Any] | None:
    raw = {"model": "returns", "stream": True, "messages": [{"role": "user", "content": "A toaster."}], **more}
    body = partial(tokens).body(read_body(CHAT, json.dumps(raw).encode()), choice())
    return None if body is None else dict(json.loads(body))


def test_the_request_to_go_on_ends_with_what_there_is_and_asks_for_the_rest_alone() -> None:
    body = sent(max_tokens=100, min_tokens=50)
    assert body is not None
    assert body["messages"][1:] == [{"role": "assistant", "content": "It may be"}]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["max_tokens"], body["min_tokens"]) == (60, 10)


@pytest.mark.parametrize("more", [{"max_tokens": 40}, {"max_completion_tokens": 39}, {"stop": "x"}, {"logprobs": True}])
def test_there_is_no_request_where_no_token_is_left_or_the_form_would_break(more: dict[str, Any]) -> None:
    assert sent(**more) is None


def test_another_engines_events_go_on_under_the_same_name_without_a_second_opening() -> None:
    opening = event(delta={"role": "assistant", "content": ""}, finish_reason=None)
    token = event(delta={"role": "assistant", "content": " kept"}, finish_reason=None)
    last = event(delta={}, finish_reason="stop")
    told = [json.loads(one[6:]) for one in partial().spliced([opening + token, last])]
    assert [one["choices"][0]["delta"] for one in told] == [{"content": " kept"}, {}]
    assert all({name: one[name] for name in HEAD} == HEAD for one in told)
    assert head_of(opening + token) == {"id": "chatcmpl-2", "model": "large", "created": 9}


def test_the_prompt_counts_once_and_the_completion_is_that_of_both() -> None:
    rest = Progress()
    rest.usage = Usage(112, 20, TokenDetails(96))
    rest.usage_payload = b'{"id":"x","model":"large","choices":[],"usage":{"prompt_tokens":112}}'
    rest.chunks = 20
    total = partial().total(rest)
    assert total.usage is not None
    assert (total.usage.prompt_tokens, total.usage.completion_tokens, total.chunks) == (72, 60, 60)
    assert total.usage.prompt_tokens_details == TokenDetails(72), "the rest is a part of the completion here"
    told = json.loads(total.usage_payload or b"")
    assert told["usage"] == {"prompt_tokens": 72, "completion_tokens": 60, "total_tokens": 132}
    assert told["model"] == "returns@v1"


def test_without_usage_the_events_with_a_token_are_what_is_known() -> None:
    rest = Progress()
    rest.chunks = 5
    assert (partial().total(rest).chunks, partial().total(rest).usage) == (45, None)
