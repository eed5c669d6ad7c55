"""A browser without scripts at the console: it signs in, and answers forms as people would."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.walks.conftest import Configure
from tests.walks.gateway import NO_AUTHORITIES, RunningGateway, run_gateway

CSRF = re.compile(r'name="csrf" value="([^"]+)"')


@pytest.fixture
async def gateway(configure: Configure) -> AsyncIterator[RunningGateway]:
    """A gateway without a version: sessions and forms need none."""
    async with run_gateway(configure()) as running:
        yield running


def token_in(page: httpx.Response) -> str:
    found = CSRF.search(page.text)
    assert found is not None, page.text[:500]
    return found[1]


@asynccontextmanager
async def browsing(gateway: RunningGateway, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without scripts; signed in where a key is given."""
    async with httpx.AsyncClient(
        base_url=gateway.url, follow_redirects=True, verify=NO_AUTHORITIES, timeout=60
    ) as http:
        if key is not None:
            page = await sign_in(http, key)
            assert page.status_code == 200, page.text
            assert "Sign out" in page.text
        yield http


async def sign_in(http: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    page = await http.get("/console/sign-in")
    return await http.post("/console/sign-in/key", data={"csrf": token_in(page), "key": key, **fields})


async def take(http: httpx.AsyncClient, question: str, **fields: Any) -> httpx.Response:
    """Answer the page that asks before a step, as its form would."""
    page = await http.get(question)
    assert page.status_code == 200, page.text
    hidden = dict(re.findall(r'type="hidden" name="(@?[\w]+)" value="([^"]*)"', page.text.partition("<main")[2]))
    return await http.post(question.partition("?")[0], data=hidden | fields)
