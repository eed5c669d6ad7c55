"""A gateway with an adapter, and the official SDKs of OpenAI and Anthropic pointed at it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

TEXT = "Is a sealed toaster refunded after 3 days?"


@pytest.fixture
async def running(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    async with run_gateway(configure()) as gateway:
        await gateway.place(make_adapter(1))
        yield gateway


@pytest.fixture
async def responses(running: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    async with running.openai() as client:
        yield client


@pytest.fixture
async def messages(running: RunningGateway) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=running.url, api_key=running.admin_key, max_retries=0) as client:
        yield client
