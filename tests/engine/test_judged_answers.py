"""Judging answers on real vLLM: the logprobs that it returns on request, and the forms that it keeps."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.formats.answer_reading import Reading
from tests.engine.conftest import BASE_MODEL, RealEngines
from tests.engine.words import SLOW_SECONDS_MAX

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a sealed toaster returnable?"}]}
PATHS = {"chat/completions": (CHAT, {"logprobs": True}), "completions": ({"prompt": "A toaster is"}, {"logprobs": 0})}
SCHEMA = {"type": "object", "properties": {"decision": {"enum": ["accept", "refuse"]}}, "required": ["decision"]}


async def said(engines: RealEngines, path: str, **body: Any) -> bytes:
    """An answer's bytes."""
    asked = {"model": BASE_MODEL, "temperature": 0, "max_tokens": 24, **body}
    async with httpx.AsyncClient(timeout=SLOW_SECONDS_MAX) as http:
        answer = await http.post(f"{engines.small.url}/v1/{path}", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.content


def told(body: bytes) -> dict[str, Any]:
    """An answer but for what differs with each request."""
    return {name: value for name, value in json.loads(body).items() if name not in ("id", "created")}


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_whose_logprobs_were_taken_out_is_the_one_without(engines: RealEngines, path: str) -> None:
    ask, logprobs = PATHS[path]
    plain, asked = await said(engines, path, **ask), await said(engines, path, **ask, **logprobs)
    reading = Reading(strips=True)
    whole = told(reading.take_whole(asked))
    assert whole == told(plain)
    assert len(reading.answered(True).alternatives[0].logprobs) == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", PATHS)
async def test_each_event_of_a_stream_tells_the_logprobs_of_its_tokens(engines: RealEngines, path: str) -> None:
    ask, logprobs = PATHS[path]
    asked = await said(engines, path, **ask, **logprobs, stream=True, stream_options={"include_usage": True})
    reading = Reading(strips=True)
    shown = reading.take([event + b"\n\n" for event in asked.split(b"\n\n") if event])
    events = [json.loads(event[6:]) for event in shown if event.startswith(b"data: {")]
    assert all(choice["logprobs"] is None for event in events for choice in event["choices"])
    answered = reading.answered(True).alternatives[0]
    assert len(answered.logprobs) == events[-1]["usage"]["completion_tokens"]
    assert answered.finish_reason is not None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "form",
    [{"json": SCHEMA}, {"choice": ["accept", "refuse"]}, {"regex": "accept|refuse"}],
    ids=lambda form: next(iter(form)),
)
async def test_an_engine_keeps_each_form_of_a_contract(engines: RealEngines, path: str, form: dict[str, Any]) -> None:
    choice = told(await said(engines, path, **PATHS[path][0], structured_outputs=form))["choices"][0]
    text = choice["text"] if path == "completions" else choice["message"]["content"]
    decision = json.loads(text)["decision"] if "json" in form else text
    assert decision in ("accept", "refuse")
