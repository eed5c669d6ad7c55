"""Live parts of the console over HTTP: they are sent when they change, and end with their session."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from jinja2 import Template

from gateway.console import live
from tests.waiting import until
from tests.walks.console_browsing import browsing, gateway, token_in
from tests.walks.gateway import RunningGateway
from tests.walks.review_world import monitor_elsewhere

__all__ = ["gateway", "monitor_elsewhere"]  # with the latter a gateway that soon stops starts no monitor
pytestmark = pytest.mark.timeout(600)  # the machine may be busy


async def test_a_live_page_is_sent_again_when_it_changes_and_ends_with_the_session(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin, asyncio.timeout(300):
        page = await http.get("/console/")
        assert (await admin.post("/admin/v1/replicas/small-0/cordon", json={"reason": "a driver"})).status_code == 200
        async with http.stream("GET", "/console/live/fleet") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            parts = 0
            async for line in stream.aiter_lines():  # it ends
                if "a driver" in line:
                    assert (await admin.post("/admin/v1/replicas/small-0/uncordon")).status_code == 200
                if 'id="replica-small-0"' in line:
                    parts += 1
                if parts == 2:
                    await http.post("/console/sign-out", data={"csrf": token_in(page)})
            assert parts == 2


async def test_a_page_that_is_not_live_is_told_so(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        no_task = await http.get("/console/live/tasks/nothing")
        monkeypatch.setattr(live, "STREAMS_MAX", 0)
        too_many = await http.get("/console/live/fleet")
    for answer in (no_task, too_many):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == "event: old\nretry: 10000\n\n"


async def test_a_live_page_ends_with_the_key_of_its_session(gateway: RunningGateway) -> None:
    key = await gateway.key(role="operator")
    async with (
        browsing(gateway, key) as http,
        gateway.http() as admin,
        asyncio.timeout(60),
        http.stream("GET", "/console/live/fleet") as stream,
    ):
        revoked = 0
        async for line in stream.aiter_lines():  # it ends
            if line.startswith("data:") and not revoked:
                revoked = (await admin.delete(f"/admin/v1/callers/{key.split('-')[2]}")).status_code
        assert revoked == 200


@pytest.mark.parametrize("page", ["/console/fleet", "/console/live/fleet"])
async def test_callers_are_answered_while_a_long_page_is_made(
    gateway: RunningGateway, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, going, make = threading.Event(), threading.Event(), Template.render

    def make_slowly(template: Template, *context: Any, **more: Any) -> str:
        begun.set()
        assert going.wait(10), "the event loop is held"
        return make(template, *context, **more)

    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as caller:
        monkeypatch.setattr(Template, "render", make_slowly)
        async with asyncio.TaskGroup() as tasks:
            shown = tasks.create_task(read_begin(http, page))
            await until(begun.is_set)
            assert (await caller.get("/v1/models")).status_code == 200
            going.set()
        assert "small-0" in shown.result()


async def read_begin(http: httpx.AsyncClient, page: str) -> str:
    """The beginning of an answer, which may go on and on."""
    async with http.stream("GET", page) as stream:
        return await anext(stream.aiter_text())
