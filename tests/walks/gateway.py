"""A real gateway for the walks: the application under uvicorn, on a free port, in the test's own event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from gateway.app import build_app
from gateway.callers import Caller, new_key
from gateway.configuration.settings import Settings
from gateway.feature import Features
from gateway.graceful_server import GracefulServer
from gateway.services import Services

DEADLINE_SECONDS = 60.0
CLIENT_SECONDS_MAX = 60.0
"""Longest wait of a client for an answer."""
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of an http:// address: each would else read all certificates of the machine."""


@dataclass(repr=False)  # asyncio writes out the result of each task that ends
class RunningGateway:
    """A gateway that answers at `url`; `services` and `features` are what it is made of."""

    url: str
    admin_key: str
    services: Services
    features: Features
    addresses: tuple[tuple[str, int], ...] = ()
    """Of all its listeners, that of callers first."""

    def openai(self, key: str | None = None, retries: int = 0) -> AsyncOpenAI:
        """The official SDK, pointed at this gateway."""
        http = DefaultAsyncHttpxClient(timeout=CLIENT_SECONDS_MAX, verify=NO_AUTHORITIES)
        key = key or self.admin_key
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, http_client=http)

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """A plain client with a key; `""` sends none."""
        headers = {} if key == "" else {"Authorization": f"Bearer {key or self.admin_key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=CLIENT_SECONDS_MAX, verify=NO_AUTHORITIES)

    async def key(self, **caller: Any) -> str:
        """A new caller's key."""
        async with self.http() as http:
            answer = await http.post("/admin/v1/callers", json={"name": "someone", **caller})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["key"])

    async def admin_of(self, owner: str) -> str:
        """The key of an admin with this owner, as one that was there before `release.approver_must_differ` was set."""
        key, public, digest = new_key()
        caller = Caller(public, f"{owner}'s key", "admin", digest, frozenset({"*"}), owner=owner)
        await self.services.objects.callers.put(public, caller.to_json(), 0)
        await self.services.snapshot.refresh()
        return key

    async def place(self, folder: Path, task: str = "returns", alias: bool = True) -> str:
        """Import an adapter, load it, and move the task's alias to it."""
        async with self.http() as http:
            answer = await http.post("/admin/v1/adapters", json={"task": task, "path": str(folder)})
            assert answer.status_code == 201, answer.text
            version = str(answer.json()["version"])
            answer = await http.post(f"/admin/v1/adapters/{version}/stage")
            assert answer.status_code == 200, answer.text
            if alias:
                answer = await http.put(f"/admin/v1/aliases/{task}", json={"version": version})
                assert answer.status_code == 200, answer.text
            return version


@asynccontextmanager
async def run_gateway(
    configuration: dict[str, Any], admin_key: str | None = None, config: Path | None = None
) -> AsyncIterator[RunningGateway]:
    """Run a gateway with this configuration for as long as the block does; `config` is what a reload reads."""
    admin_key = admin_key or new_key()[0]
    settings = Settings(
        **{
            "import_folders": ["/"],
            **configuration,
            "admin_key": admin_key,
            "listen": {"port": 0, **configuration.get("listen", {})},
        }
    )
    app = build_app(settings, config)
    server = GracefulServer(settings, app)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not server.started:
                if serving.done():
                    serving.result()
                    raise RuntimeError("the gateway did not start")
                await asyncio.sleep(0.01)
        addresses = tuple(server.addresses)
        yield RunningGateway(
            f"http://127.0.0.1:{addresses[0][1]}", admin_key, app.state.services, app.state.features, addresses
        )
    finally:
        server.stop()
        await serving
