"""An ASGI application behind a socket of its own, for as long as a test needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from tests.waiting import until


@asynccontextmanager
async def run_application(app: Any) -> AsyncIterator[str]:
    """The application's address, for as long as the block runs."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, ws="none", access_log=False, log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done(), "the server's start")
        assert not serving.done()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
