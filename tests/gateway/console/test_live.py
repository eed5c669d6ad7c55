"""Streams of live pages: however many look, each page is loaded once a time."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from starlette.requests import Request

from gateway.callers import Caller
from gateway.console import live
from gateway.console.signed_in_request import Visit


def visit(path: str, role: Literal["operator", "admin"] = "admin") -> Visit:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    nothing: Any = None
    person = Caller("abcdefghijkl", "Ada", role, "", frozenset({"*"}))
    return Visit(Request(scope), nothing, "", nothing, person, nothing)


async def test_streams_of_a_page_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, loads = live.LiveParts(), []

    async def load(visit: Visit) -> dict[str, Any]:
        loads.append((visit.request.url.path, visit.person.role))
        await asyncio.sleep(0)
        return {"number": len(loads)}

    looks = [visit("/live/overview") for _ in range(20)]
    shown = await asyncio.gather(*(parts._look(load, each) for each in looks))
    assert shown == [{"number": 1}] * 20
    await parts._look(load, visit("/live/overview", "operator"))
    await parts._look(load, visit("/live/tasks/returns"))
    assert loads == [("/live/overview", "admin"), ("/live/overview", "operator"), ("/live/tasks/returns", "admin")]
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.0)
    assert await parts._look(load, visit("/live/overview")) == {"number": 4}
    assert len(parts._loads) == 1, "what nobody looks at is let go"


async def test_a_stream_counts_as_it_begins_so_that_no_two_take_the_last_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def load(visit: Visit) -> dict[str, Any]:
        raise AssertionError("it is one too many")

    parts = live.LiveParts()
    answer = await parts.stream(load, "fleet_live.html", visit("/live/fleet"))
    monkeypatch.setattr(live, "STREAMS_MAX", 0)  # others have begun meanwhile
    assert [part async for part in answer.body_iterator] == [live.OLD]
