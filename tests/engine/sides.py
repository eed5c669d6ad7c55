"""An engine and the gateway in front of it, asked by the same clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.engine.words import SLOW_SECONDS_MAX


@dataclass(frozen=True)
class Side:
    """The engine itself, or the gateway in front of it, and its name of the model."""

    openai: AsyncOpenAI
    anthropic: AsyncAnthropic
    model: str

    async def respond(self, **fields: Any) -> Any:
        """A response, without chance."""
        given = {"model": self.model, "temperature": 0, "max_output_tokens": 24, "store": False}
        return await self.openai.responses.create(**given | fields)

    async def message(self, **fields: Any) -> Any:
        """A message, without chance."""
        given = {"model": self.model, "max_tokens": 24, "extra_body": {"temperature": 0}}
        return await self.anthropic.messages.create(**given | fields)

    async def embed(self, **fields: Any) -> Any:
        """Vectors."""
        return await self.openai.embeddings.create(model=self.model, **fields)


@asynccontextmanager
async def side(url: str, key: str, model: str) -> AsyncIterator[Side]:
    own: dict[str, Any] = {"api_key": key, "max_retries": 0, "timeout": SLOW_SECONDS_MAX}
    async with AsyncOpenAI(base_url=f"{url}/v1", **own) as one, AsyncAnthropic(base_url=url, **own) as other:
        yield Side(one, other, model)


@dataclass(frozen=True)
class Sides:
    engine: Side
    gateway: Side

    async def ask(self, ask: Callable[[Side], Awaitable[Any]]) -> tuple[Any, Any]:
        """The answers of the engine and of the gateway."""
        return await ask(self.engine), await ask(self.gateway)
