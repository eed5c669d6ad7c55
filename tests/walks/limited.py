"""Clients of keys with limits, over real sockets: what they get, and what `/v1/usage` says of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import openai
from openai import AsyncOpenAI

from tests.walks.gateway import RunningGateway

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "How many days are in a week?"}], "max_tokens": 8}
MANY = {"requests_per_minute": 1000, "tokens_per_minute": 10_000_000}
PATIENT = {"lease_timeout_seconds": 20}
"""On a machine however busy, a slow answer of Redis is not taken for none."""


@asynccontextmanager
async def clients(key: str, *gateways: RunningGateway) -> AsyncIterator[list[AsyncOpenAI]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(gateway.openai(key)) for gateway in gateways]


async def ask(client: AsyncOpenAI, model: str = "general") -> Any:
    """An answer, or the error that the SDK made of the refusal."""
    try:
        return await client.chat.completions.create(model=model, **ASK)
    except openai.APIStatusError as error:
        return error


async def usage(gateway: RunningGateway, key: str) -> dict[str, Any]:
    async with gateway.http(key) as http:
        answer = await http.get("/v1/usage")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["usage"])
