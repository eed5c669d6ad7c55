"""Any error of ours over a real socket, told by the code that tells it in the gateway; the `model` says which."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.errors import Problem
from gateway.path.answer_headers import STREAM_HEADERS
from gateway.path.relay import refuse
from gateway.server.exchange import Exchange
from tests.gateway.server.listening import Listening, listening

MESSAGE = "It did not work."
BEGUN = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Appr"}}]}\n\n'


@dataclass
class StandIn:
    """Answers every request with the error that its `model` names, inside a stream where one is asked for."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """The number of requests for each model."""

    async def answer(self, exchange: Exchange) -> None:
        body = json.loads(await exchange.body(1 << 20))
        self.asked[body["model"]] += 1
        problem = Problem(body["model"], MESSAGE, "messages")
        if body.get("stream"):
            await exchange.begin(200, list(STREAM_HEADERS))
            await exchange.write(BEGUN)
        await refuse(exchange, problem, None)


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    """Run one for as long as the block does."""
    app = StandIn()
    async with listening(Listening(app.answer, key_for_all=True)) as port:
        app.url = f"http://127.0.0.1:{port}/v1"
        yield app
