"""The sidecar's HTTP application: it answers whether an adapter is in the engine's folder, and pulls missing ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from serving.adapters.errors import ArtifactError
from serving.adapters.sidecar import NotThere, Puller, PullError
from serving.adapters.store import Store
from serving.tls import Trust, TrustingTransport


def build_sidecar(store: Store, gateway_url: str, key_path: Path, trust: Trust | None = None) -> FastAPI:
    """The sidecar's application, with its own store. `trust` verifies an https:// gateway; None: the system's."""
    trusted = trust or Trust(lambda: ())

    async def renew(request: httpx.Request) -> None:
        for context in trusted.contexts:
            await asyncio.to_thread(context.renew)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        transport, hooks = TrustingTransport(trusted), {"request": [renew]}
        async with httpx.AsyncClient(trust_env=False, transport=transport, event_hooks=hooks) as http:
            app.state.puller = Puller(store, gateway_url, key_path, http)
            try:
                yield
            finally:
                await app.state.puller.close()

    app = FastAPI(title="Apprentice sidecar", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route("/adapters/{digest}", _look, methods=["GET"])
    app.add_api_route("/adapters/{digest}", _ensure, methods=["POST"])
    return app


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve the application until a signal stops it."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    _Orderly(config).run()


class _Orderly(uvicorn.Server):
    """uvicorn, but with exit code 0 after a stop by a signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


async def _health() -> dict[str, str]:
    return {"status": "live"}


def _look(request: Request, digest: str) -> JSONResponse:
    """Answer 200 if the adapter is in the folder, else 404."""
    puller: Puller = request.app.state.puller
    try:
        is_there = puller.holds(digest)
    except ArtifactError as error:
        return _refusal(404, str(error))
    return _held_answer(digest) if is_there else _refusal(404, f"{digest} is not here: POST to this address pulls it.")


async def _ensure(request: Request, digest: str) -> JSONResponse:
    """Answer 200 once the adapter is in the folder, 404 if the gateway has none, 502 if the pull failed."""
    puller: Puller = request.app.state.puller
    try:
        await puller.ensure(digest)
    except (ArtifactError, NotThere) as error:
        return _refusal(404, str(error))
    except PullError as error:
        return _refusal(502, str(error))
    return _held_answer(digest)


def _held_answer(digest: str) -> JSONResponse:
    return JSONResponse({"digest": digest, "state": "held"})


def _refusal(status: int, sentence: str) -> JSONResponse:
    error: dict[str, Any] = {"message": sentence, "code": "not_found" if status == 404 else "pull_failed"}
    return JSONResponse({"error": error}, status)
