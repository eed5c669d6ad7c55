"""Streams of live pages: however many look, each page is loaded once a time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from jinja2 import DictLoader, Environment
from starlette.requests import Request

from gateway.callers import Caller
from gateway.console import live
from gateway.console.signed_in_request import Visit

TEMPLATE = "{{ number }}: {{ is_admin }} {{ person }}{{ csrf }}"
"""All of a role get the same part: it has nothing of a person."""


def visit(path: str, role: Literal["operator", "admin"] = "admin") -> Visit:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    nothing: Any = None
    console: Any = SimpleNamespace(templates=Environment(loader=DictLoader({"part": TEMPLATE}), autoescape=True))
    person = Caller("abcdefghijkl", "Ada", role, "", frozenset({"*"}))
    return Visit(Request(scope), console, "", nothing, person, nothing)


async def test_streams_of_a_page_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, loads = live.LiveParts(), []

    async def load(visit: Visit) -> dict[str, Any]:
        loads.append((visit.request.url.path, visit.person.role))
        await asyncio.sleep(0)
        return {"number": len(loads)}

    looks = [visit("/live/overview") for _ in range(20)]
    shown = await asyncio.gather(*(parts._look(load, "part", each) for each in looks))
    assert shown == ["1: True "] * 20
    assert await parts._look(load, "part", visit("/live/overview", "operator")) == "2: False "
    await parts._look(load, "part", visit("/live/tasks/returns"))
    assert loads == [("/live/overview", "admin"), ("/live/overview", "operator"), ("/live/tasks/returns", "admin")]
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.0)
    assert await parts._look(load, "part", visit("/live/overview")) == "4: True "
    assert len(parts._looks) == 1, "what nobody looks at is let go"


async def test_a_stream_counts_as_it_begins_so_that_no_two_take_the_last_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def load(visit: Visit) -> dict[str, Any]:
        raise AssertionError("it is one too many")

    parts = live.LiveParts()
    answer = await parts.stream(load, "fleet_live.html", visit("/live/fleet"))
    monkeypatch.setattr(live, "STREAMS_MAX", 0)  # others have begun meanwhile
    assert [part async for part in answer.body_iterator] == [live.OLD]
