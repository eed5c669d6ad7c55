"""Any error of ours over a real socket, told by the code that tells it in the gateway; the `model` says which."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn

from gateway.answers.relay import STREAM_HEADERS, refuse
from gateway.door.wire import Call, Receive, Scope, Send
from gateway.errors import Problem

MESSAGE = "It did not work."
BEGUN = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Appr"}}]}\n\n'


@dataclass
class StandIn:
    """Answers every request with the error that its `model` names, inside a stream where one is asked for."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """How many requests came for each model."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send)
        body = json.loads(await call.body(1 << 20))
        self.asked[body["model"]] += 1
        problem = Problem(body["model"], MESSAGE, "messages")
        if body.get("stream"):
            await call.begin(200, list(STREAM_HEADERS))
            await call.write(BEGUN)
        await refuse(call, problem, None)


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    """Run one for as long as the block does."""
    app = StandIn()
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield app
    finally:
        server.should_exit = True
        await serving
