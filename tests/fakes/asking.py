"""Asking an engine over HTTP, and reading what comes of it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import httpx

ASK = [{"role": "user", "content": "May I return it?"}]


def chat(model: str = "base-model", stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASK, "stream": stream, **more}


async def post(http: httpx.AsyncClient, body: dict[str, Any], **more: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body, **more)


def events(answer: httpx.Response) -> list[Any]:
    """The data of a stream's events, JSON decoded but for [DONE]."""
    found = [line[5:].strip() for line in answer.text.splitlines() if line.startswith("data:")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def text_of(found: list[Any]) -> str:
    choices = [choice for event in found if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def read_until_broken(url: str, body: dict[str, Any]) -> tuple[bytes, type[Exception] | None]:
    """The received part of an answer, and the error that broke it."""
    got = b""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                async for part in answer.content.iter_any():
                    got += part
        except aiohttp.ClientError as error:
            return got, type(error)
    return got, None


async def read_until_silent(http: httpx.AsyncClient, body: dict[str, Any], seconds: float) -> tuple[int, bytes]:
    """The status (0 without headers) and what came of an answer until nothing came for so long."""
    status, got = 0, b""
    try:
        async with http.stream(
            "POST", "/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=seconds)
        ) as answer:
            status = answer.status_code
            async for part in answer.aiter_bytes():
                got += part
    except httpx.ReadTimeout:
        return status, got
    raise AssertionError("the answer was whole")
