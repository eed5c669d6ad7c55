"""Clients for Node as people use them: OpenAI's own, and Vercel's AI SDK with each of its ways to speak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.fakes.answers import Called
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import RawEvent
from tests.walks.gateway import RunningGateway
from tests.walks.node_packages import install_node_packages
from tests.walks.sdk_world import running

__all__ = ["running"]

pytestmark = pytest.mark.timeout(600)
PROVIDERS = ("default", "chat", "compatible", "anthropic")
STREAMED = {"same": True, "tokens": True, "end": "stop"}
ROUND = {"results": ["rain in Paris"], "streamed": ["rain in Paris"], "same": True, "text": True}
EXPECTED: Mapping[str, Any] = {
    "openai chat": {"same": True, "model": "returns@v1", "end": "stop", "usage": True},
    "openai responses": {
        "same": True, "usage": True, "status": "completed", "last": "response.completed", "logprobs": True,
    },
    "openai responses tools": {"kind": "function_call", "arguments": {"city": "Paris"}, "text": True},
    "openai responses reasoning": ["reasoning_text", "output_text"],
    "openai responses parsed": ["city"],
    "openai embeddings": True,
    "openai files": {"name": "réws.jsonl", "same": True, "job": "state_conflict", "deleted": True},
    **{f"vercel {name} text": {"text": True, "finishReason": "stop", "model": "returns@v1", "tokens": True}
       for name in PROVIDERS},
    **{f"vercel {name} stream": STREAMED for name in PROVIDERS},
    **{f"vercel {name} tools": ROUND for name in PROVIDERS},
    **{f"vercel {name} object": ["city"] for name in PROVIDERS},
    **{f"vercel {name} conversation": True for name in PROVIDERS},
    **{f"vercel {name} embeddings": [[0.04, 0], [0.03, 0.01]] for name in ("default", "compatible")},
}  # fmt: skip
"""The values of cases in tests/walks/node/clients.mjs."""
NOT_FOUND = {
    "kind": "NotFoundError",
    "status": 404,
    "code": "model_not_found",
    "param": "model",
    "type": "not_found_error",
}


THOUGHT = b'data: {"id": "chatcmpl-x", "choices": [{"index": 0, "delta": {"reasoning": "Hm."}}]}\n\n'


def call_first_tool(body: Mapping[str, Any]) -> Called | None:
    """A call of the first tool, until it has given something back."""
    if not body.get("tools") or body.get("tool_choice", "auto") != "auto" or body["messages"][-1]["role"] == "tool":
        return None
    return Called(body["tools"][0]["function"]["name"], {"city": "Paris"})


async def run_cases(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    """All cases in one process: each with its `value`, or its `error`."""
    folder = install_node_packages()
    process = await asyncio.create_subprocess_exec(
        "node", str(folder / "clients.mjs"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(json.dumps({"url": gateway.url, "key": gateway.admin_key}).encode())
    assert process.returncode == 0
    told = [json.loads(line) for line in output.splitlines()]
    return {each["case"]: each for each in told}


async def test_clients_for_node_work_as_with_their_own_apis(
    running: RunningGateway, small: FakeEngine, general: FakeEngine, subtests: pytest.Subtests
) -> None:
    general.faults.add(RawEvent(0, THOUGHT))
    small.auto_tool_choice = True
    small.max_model_len = 8192  # the AI SDK asks for 4,096 tokens of a model of Anthropic's that it does not know
    small.answers["returns@v1"] = call_first_tool
    cases = await run_cases(running)
    for name, expected in EXPECTED.items():
        with subtests.test(case=name):
            assert cases.pop(name) == {"case": name, "value": expected}
    with subtests.test(case="openai chat tools"):
        told = cases.pop("openai chat tools")["value"]
        assert told.pop("text")
        assert told == {"asked": ["Paris"], "turns": ["user", "assistant", "tool", "assistant"]}
    for name in ("chat", "responses", "embeddings"):
        with subtests.test(case=name):
            error = cases.pop(f"openai {name}: unknown model")["error"]
            assert {field: error[field] for field in NOT_FOUND} == NOT_FOUND
            error = cases.pop(f"openai {name}: wrong field")["error"]
            assert (error["kind"], error["status"], error["param"]) == ("BadRequestError", 400, "user")
    for name in PROVIDERS:
        for case in (f"vercel {name}: unknown model", f"vercel {name}: unknown model, streamed"):
            with subtests.test(case=case):
                error = cases.pop(case)["error"]
                assert (error["kind"], error["status"], error["isRetryable"]) == ("APICallError", 404, False)
                assert "'nothing'" in error["message"]
    with subtests.test(case="stored conversation"):
        error = cases.pop("vercel default: stored conversation")["error"]
        assert (error["kind"], error["status"]) == ("APICallError", 400)
        assert "`store`: false" in error["message"]
    assert not cases
