"""`apprentice sidecar`: beside an engine that does not share the gateway's store, it pulls adapters by digest."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import httpx
import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.configuration.pools import ADDRESS
from gateway.settings import SettingsError
from monitoring.logs import configure
from serving.adapters.errors import ArtifactError
from serving.adapters.pull import NotThere, Puller, PullError
from serving.adapters.store import Store

LISTEN = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):([0-9]{1,5})")


def build_sidecar(store: Store, gateway_url: str, key_path: Path) -> FastAPI:
    """The sidecar's application, for a store of its own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False) as http:
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


def sidecar(
    store: Annotated[Path, typer.Option(help="The folder that the engine reads adapters from.")],
    gateway: Annotated[str, typer.Option(help="The gateway's address, such as https://apprentice:8080.")],
    key_file: Annotated[Path, typer.Option(help="A file that holds an operator's key.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT that the gateway reaches this at.")] = "127.0.0.1:8090",
) -> None:
    """Pull adapters by digest from the gateway, for an engine that does not share its store."""
    host, port = _listen(listen)
    if not re.fullmatch(ADDRESS, gateway):
        raise SettingsError(f"--gateway {gateway} is no address of the form http://host:port, without a path.")
    if not key_file.is_file():
        raise SettingsError(f"--key-file {key_file} is not there: put an operator's key into it.")
    try:
        held = Store(store)
    except OSError as error:
        raise SettingsError(f"--store {store} can't be made: {error.strerror}.") from error
    configure("INFO", "json")
    config = uvicorn.Config(
        build_sidecar(held, gateway, key_file),
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
    """uvicorn, but an orderly stop exits with 0: it does not raise the signal again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def _listen(text: str) -> tuple[str, int]:
    found = LISTEN.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise SettingsError(f"--listen {text} is not of the form HOST:PORT.")
    return found[1].strip("[]"), int(found[2])


async def _health() -> dict[str, str]:
    return {"status": "live"}


def _look(request: Request, digest: str) -> JSONResponse:
    """200 if the adapter is in place, 404 if not."""
    puller: Puller = request.app.state.puller
    try:
        held = puller.holds(digest)
    except ArtifactError as error:
        return _refusal(404, str(error))
    return _held(digest) if held else _refusal(404, f"{digest} is not here: POST to this address pulls it.")


async def _ensure(request: Request, digest: str) -> JSONResponse:
    """200 once the adapter is in place; 404 where the gateway has none, 502 where it could not be pulled."""
    puller: Puller = request.app.state.puller
    try:
        await puller.ensure(digest)
    except (ArtifactError, NotThere) as error:
        return _refusal(404, str(error))
    except PullError as error:
        return _refusal(502, str(error))
    return _held(digest)


def _held(digest: str) -> JSONResponse:
    return JSONResponse({"digest": digest, "state": "held"})


def _refusal(status: int, sentence: str) -> JSONResponse:
    error: dict[str, Any] = {"message": sentence, "code": "not_found" if status == 404 else "pull_failed"}
    return JSONResponse({"error": error}, status)
