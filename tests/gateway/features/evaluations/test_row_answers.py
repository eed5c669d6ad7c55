"""An engine's whole answer, as an evaluation reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.features.evaluations.row_answers import read_answer
from router.contract import compile_contract

CONTRACT = compile_contract({"choices": ["approve", "deny"]})


def answer(content: Any = "approve", finish_reason: str = "stop", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason, **more}]}).encode()


def logprobs(*values: float | None) -> dict[str, Any]:
    return {"content": [{"token": "a", "logprob": value} for value in values]}


def test_a_chat_says_its_content_and_a_completion_its_text() -> None:
    assert read_answer(answer("approve"), CONTRACT).text == "approve"
    assert read_answer(b'{"choices": [{"text": "Once"}]}', None).text == "Once"
    assert read_answer(answer(None), None).text == ""


@pytest.mark.parametrize(
    ("body", "kept"),
    [(answer("deny"), True), (answer("perhaps"), False), (answer(""), False)],
)
def test_the_contract_is_that_of_the_version(body: bytes, kept: bool) -> None:
    assert read_answer(body, CONTRACT).contract_kept is kept
    assert read_answer(body, None).contract_kept is None


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (answer("", message={"refusal": "No."}), True),
        (answer("x", finish_reason="content_filter"), True),
        (answer("I'm sorry, but I can't assist with that."), True),
        (answer("deny"), False),
    ],
)
def test_a_refusal_is_seen(body: bytes, refused: bool) -> None:
    assert read_answer(body, None).refused is refused


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (logprobs(-0.1, -2), [-0.1, -2.0]),
        ({"token_logprobs": [-0.5, -0.25]}, [-0.5, -0.25]),
        (logprobs(-0.1, None), []),
        (logprobs(), []),
        ({"content": ["x"]}, []),
        (None, []),
        ("much", []),
    ],
)
def test_logprobs_are_all_there_or_none(told: Any, found: list[float]) -> None:
    assert read_answer(answer(logprobs=told), None).logprobs == found


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [3]}', b"\xff", b"[" * 5000])
def test_what_is_no_answer_has_failed(body: bytes) -> None:
    assert read_answer(body, CONTRACT).fault == "failed"
