"""`apprentice serve` and `apprentice check`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from gateway.app import Gateway, build_app
from gateway.settings import ListenSettings, SettingsError, load_settings
from monitoring.logs import configure


class OrderlyServer(uvicorn.Server):
    """uvicorn, but an orderly stop exits with 0."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal, but do not raise it again after the stop as uvicorn would."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


class Server(OrderlyServer):
    """It drains before it closes: ready turns 503 first, and the requests under way finish."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, drain_seconds_max: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain_seconds_max = drain_seconds_max

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop as uvicorn does. A second signal skips the waiting."""
        house = self._gateway.state.house
        drained = asyncio.create_task(house.admission.drained())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds_max):
                while not drained.done() and not self.force_exit:
                    await asyncio.wait([drained], timeout=0.1)
        drained.cancel()
        await super().shutdown(sockets)


def serve(config: Path) -> None:
    """Run the gateway. Raises SettingsError before anything is started."""
    settings = load_settings(config)
    _see_that_it_is_free(settings.listen)
    configure(settings.log_level, settings.log_format)
    gateway = build_app(settings)
    server = Server(
        uvicorn.Config(
            gateway,
            host=settings.listen.host,
            port=settings.listen.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            timeout_graceful_shutdown=5,
        ),
        gateway,
        settings.limits.drain_seconds_max,
    )
    server.run()


def _see_that_it_is_free(listen: ListenSettings) -> None:
    """Before anything is started: raises SettingsError where the gateway can't listen."""
    try:
        socket.create_server((listen.host, listen.port), family=_family(listen.host)).close()
    except OSError as error:
        raise SettingsError(f"The gateway can't listen on {listen.host}:{listen.port}: {error.strerror}.") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def check(config: Path) -> None:
    """Print what the configuration holds. Raises SettingsError if it can't be used."""
    settings = load_settings(config)
    replicas = sum(len(pool.replicas) for pool in settings.pools.values())
    print(f"{config} is valid: {len(settings.pools)} pools, {replicas} replicas, {len(settings.tasks)} tasks.")
