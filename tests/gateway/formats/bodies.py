"""Requests as callers send them, and the choices of the router that they are made ready for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.formats.chat import CHAT
from gateway.formats.request_body import RequestBody, read_body
from gateway.formats.wire_format import WireFormat
from router.policy import TaskPolicy
from router.routing_data import Choice
from serving.fleet_view import GeneralPromptView, PoolView
from tests.router.situations import replica, version

MESSAGES = [{"role": "user", "content": "Sealed laptop, 10 days."}]
TASK = TaskPolicy("returns", "general", max_tokens_max=512, n_max=2)
DEFAULTS = TaskPolicy("", None, max_tokens_max=64)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "decision", "schema": {"type": "object"}}}
GENERAL_PROMPT = GeneralPromptView("You decide returns.", SCHEMA, {"temperature": 0})
VERSION = replace(version("returns@v3"), sampling={"temperature": 0, "max_tokens": 60}, general_prompt=GENERAL_PROMPT)


def read(wire_format: WireFormat = CHAT, **fields: Any) -> RequestBody:
    usual: dict[str, Any] = {"messages": MESSAGES} if wire_format is CHAT else {"prompt": "Sealed laptop."}
    return read_body(wire_format, json.dumps({"model": "returns", **usual, **fields}).encode())


def problem(body: bytes | RequestBody, wire_format: WireFormat = CHAT, task: TaskPolicy | None = TASK) -> Problem:
    with pytest.raises(Problem) as raised:
        (read_body(wire_format, body) if isinstance(body, bytes) else body).check(task, DEFAULTS)
    assert raised.value.status == 400
    assert raised.value.message.endswith(".")
    return raised.value


def by_adapter() -> Choice:
    there = replica("small-0", "small", VERSION.name)
    return Choice(TASK, VERSION, PoolView("small", "small-base", (there,)), there, "adapter")


def by_general(general_prompt: bool = True) -> Choice:
    there = replica("general-0", "general")
    pool = PoolView("general", "general-base", (there,))
    return Choice(
        TASK if general_prompt else None, None, pool, there, "no_replica", VERSION if general_prompt else None
    )


def by_openai(general_prompt: bool = True) -> Choice:
    """A pool of which no more is known than that it speaks OpenAI's API."""
    choice = by_general(general_prompt)
    return replace(choice, pool=replace(choice.pool, engine="openai"))


def sent(body: RequestBody, choice: Choice) -> dict[str, Any]:
    """The body as the engine reads it."""
    found: dict[str, Any] = json.loads(body.for_engine(choice))
    return found
