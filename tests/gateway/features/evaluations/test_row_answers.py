"""An engine's whole answer, as an evaluation reads it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.features.evaluations.messages import body_of
from gateway.features.evaluations.row_asking import read_answer
from monitoring.evaluation.answer_metrics import metric_of
from monitoring.evaluation.dataset import CallError, row_of
from monitoring.training.rows import as_line, make_request_key
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


def test_calls_of_tools_are_compared_by_names_and_arguments_as_json() -> None:
    def called(*calls: tuple[str, str]) -> bytes:
        functions = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        return answer(None, "tool_calls", message={"tool_calls": functions})

    refund, look = ("refund", '{ "eur": 12.5, "order": "A-7" }'), ("look", "{}")
    row = row_of(
        {
            "messages": [
                {"role": "user", "content": "Refund A-7."},
                {"role": "assistant", "tool_calls": [
                    {"function": {"name": "look", "arguments": "{}"}},
                    {"function": {"name": "refund", "arguments": '{"order":"A-7","eur":12.5}'}},
                ]},
            ],
            "tools": [{"type": "function", "function": {"name": name}} for name in ("look", "refund")],
            "parallel_tool_calls": False,
        }, 1, 0,
    )  # fmt: skip
    right = metric_of("normal").right
    assert right(row.expected, read_answer(called(refund, look), CONTRACT).text or "")
    assert not right(row.expected, read_answer(called(refund), None).text or "")
    assert not right(
        row.expected, read_answer(called(look, ("refund", '{"order":"A-7","eur":"12.5"}')), None).text or ""
    )
    assert not right(row.expected, read_answer(called(look, ("refund", "{")), None).text or "")
    assert read_answer(called(look), CONTRACT).contract_kept is None, "a contract is about texts"
    unknown = read_answer(answer(None, message={"tool_calls": [{"function": "look"}]}), None)
    assert (unknown.fault, right(row.expected, unknown.text or "")) == (None, False), "a call without a name is wrong"
    sent = body_of(row, "returns@v1").read
    assert (len(sent.tools or ()), sent.parallel_tool_calls, len(sent.messages)) == (2, False, 1)
    assert body_of(row, "returns@v1").tool_choice() is None
    line = as_line(row, "new")
    assert line["messages"][-1]["tool_calls"][1]["function"]["name"] == "refund"
    assert row_of(line, 1, 0).expected == row.expected, "the trainer's file says the same"


def test_a_row_is_sent_and_trained_with_its_tool_choice() -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Refund A-7."}]}
    asked["tools"] = [{"type": "function", "function": {"name": name}} for name in ("look", "refund")]
    call, named = {"name": "refund", "arguments": {}}, {"type": "function", "function": {"name": "refund"}}
    for choice, expected in (
        ("none", "I may not."),
        ("required", {"tool_calls": [call]}),
        (named, {"tool_calls": [call]}),
    ):
        row = row_of({**asked, "expected": expected, "tool_choice": choice}, 1, 0)
        assert msgspec.json.decode(body_of(row, "returns@v1").tool_choice() or b"") == choice
        assert row_of(as_line(row, "new"), 1, 0).tool_choice == choice
        assert make_request_key(row) != make_request_key(msgspec.structs.replace(row, tool_choice=None))
    free = row_of({**asked, "expected": "I may not.", "tool_choice": "auto"}, 1, 0)
    assert "tool_choice" not in as_line(free, "new"), "it is what a row without one has"
    other = {"type": "function", "function": {"name": "look"}}
    for choice, expected in (
        ("required", "I may not."),
        ("none", {"tool_calls": [call]}),
        (other, {"tool_calls": [call]}),
    ):
        row = row_of({**asked, "expected": expected, "tool_choice": choice}, 1, 0)
        assert row.tool_choice is None, "with it the right answer could not come"
    for choice in ("any", {"type": "any"}, {"type": "function", "function": {"name": "burn"}}, [named]):
        with pytest.raises(
            CallError, match="Line 1: its tool_choice is neither none, auto nor required, nor names one"
        ):
            row_of({**asked, "expected": "I may not.", "tool_choice": choice}, 1, 0)


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
        ({"token_logprobs": 5}, []),
        (logprobs(-(10**400)), []),
        (None, []),
        ("much", []),
    ],
)
def test_logprobs_are_all_there_or_none(told: Any, found: list[float]) -> None:
    assert read_answer(answer(logprobs=told), None).logprobs == found


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [3]}', b"\xff", b"[" * 5000])
def test_what_is_no_answer_has_failed(body: bytes) -> None:
    assert read_answer(body, CONTRACT).fault == "failed"
