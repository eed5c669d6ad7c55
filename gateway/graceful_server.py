"""The server: its addresses, the paths of each, and its stop: readiness turns to 503 first, then answers finish."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.admin.reload import reload_on_signal
from gateway.app import Gateway
from gateway.background.interpreter_tuning import freeze_garbage, share_interpreter
from gateway.configuration.sections import ListenSettings
from gateway.configuration.settings import Settings
from gateway.errors import SettingsError
from gateway.server.accepting import Accepting
from gateway.server.connection import Connection
from gateway.server.cors import make_headers
from gateway.server.listener import ADMIN, CONSOLE, METRICS, OPENAPI, PROBES, Address, Listener
from serving.wakeable import wait_for_event

log = logging.getLogger(__name__)
ASKED_BY_COMMANDS = ("/v1/requests", "/v1/reviews", "/v1/evaluations", "/v1/feedback")
"""Addresses of callers that the command line asks too: it has one gateway's address for all its commands."""
OF_ADMINS = (ADMIN, CONSOLE, OPENAPI, PROBES, *ASKED_BY_COMMANDS)
LOOK_SECONDS = 0.05
CLOSE_LOOK_SECONDS = 0.01
TICK_SECONDS = 0.1
END_SECONDS_MAX = 2.0
CLOSE_SECONDS_MAX = 5
ALONE_SECONDS_MIN = 1.0
"""Time in which a process that stops alone still answers on its open connections."""
SECURITY_HEADERS = (("x-content-type-options", "nosniff"),)


def addresses_of(listen: ListenSettings) -> Iterator[Address]:
    """All addresses, the callers' address first."""
    elsewhere = (*([ADMIN, CONSOLE] if listen.admin else []), *([METRICS] if listen.metrics else []))
    yield Address("callers", listen.host, listen.port, None, elsewhere)
    if listen.admin is not None:
        yield Address("admins", listen.admin.host, listen.admin.port, OF_ADMINS)
    if listen.metrics is not None:
        yield Address("metrics", listen.metrics.host, listen.metrics.port, (METRICS, PROBES))


BoundSockets = Sequence[tuple[Address, Sequence[socket.socket]]]
"""The sockets of each address. An address with a host name may have several."""


def bind(listen: ListenSettings) -> BoundSockets:
    """Bound sockets for all addresses, which do not listen yet. Raises SettingsError."""
    with ExitStack() as bound:  # if one can't be bound, the earlier ones are closed
        sockets = [(address, _bind(address, bound)) for address in addresses_of(listen)]
        bound.pop_all()
    return sockets


def close(sockets: BoundSockets) -> None:
    """Close all sockets of all addresses."""
    for _, bound in sockets:
        for each in bound:
            each.close()


def _bind(address: Address, bound: ExitStack) -> list[socket.socket]:
    sockets = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in dict.fromkeys(found):
            sockets.append(bound.enter_context(socket.socket(family, kind, protocol)))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind(where)
    except OSError as error:
        there = f"{address.host}:{address.port}"
        is_of_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        advice = "Free that port, or set another" if is_of_port else "Set a host that is an address of this machine"
        text = f"The gateway can't listen on {there}: {error.strerror}. {advice} (listen in the configuration)."
        raise SettingsError(text) from error
    return sockets


def url_of(bound: socket.socket, tls: bool) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class GracefulServer(uvicorn.Server):
    """uvicorn on all listeners, with one lifespan. It drains before it closes. A second signal skips the wait."""

    def __init__(self, settings: Settings, gateway: Gateway, sockets: BoundSockets | None = None) -> None:
        """`sockets` are already bound. None: the server binds its own sockets."""
        siblings = gateway.siblings
        settings = siblings.part_of(settings)
        super().__init__(
            uvicorn.Config(
                gateway,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                log_config=None,
                headers=[*SECURITY_HEADERS, *make_headers(settings.listen.cors_origin)],
                timeout_keep_alive=settings.limits.keep_alive_seconds_max,  # type: ignore[arg-type]
                timeout_graceful_shutdown=CLOSE_SECONDS_MAX,
            )
        )
        self._gateway = gateway
        self._siblings = siblings
        self._sockets = sockets
        self._settings = settings
        self._listeners: list[Listener] = []
        self._signals = 0
        self._stopping = asyncio.Event()
        self._owns_process = False
        self._alone = False
        """True if only this process stops, and the gateway's other processes continue."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener, the callers' listener first."""
        return [server.sockets[0].getsockname()[:2] for server in self.servers]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal, but do not raise it again after the stop as uvicorn would: an orderly stop exits with 0.

        The second signal skips the wait. A third one from the keyboard ends the process at once. Signals before the
        begin of the stop count as one: a dying parent causes one signal for each of its threads.
        """
        self._signals += 1
        self._alone = self._siblings.count > 1 and not self.should_exit
        self.should_exit = True
        if self._signals > 2 and sig == signal.SIGINT:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, in a process that does nothing else."""
        self._owns_process = True
        super().run(sockets)

    def stop(self) -> None:
        """Begin an orderly stop at once, without a signal."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Run uvicorn's ticks until a stop begins. `stop` ends the wait for the next tick."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await wait_for_event(self._stopping, TICK_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Build the Services, then listen."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        if self._owns_process:
            share_interpreter()
            freeze_garbage()
        self.servers = []
        all_sockets: BoundSockets = []
        try:
            all_sockets = self._sockets or bind(self._settings.listen)
            certificate = self._settings.listen.load_certificate()
            if certificate is not None:
                self._gateway.state.services.control.certificates.append(certificate)
            tls = certificate.follow_in_listener() if certificate else None
            for address, bound in all_sockets:
                for each in bound:
                    await self._listen(address, each, tls)
        except (OSError, SettingsError) as error:
            log.error("the gateway can't listen: %s", error)
            close(all_sockets)
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        reload_on_signal(self._gateway.state.services)
        self._siblings.answers["stop"] = self._stop_with_others
        await self._siblings.open(lambda: self.handle_exit(signal.SIGTERM, None))
        self._siblings.tell("ready")
        self.started = True

    async def _stop_with_others(self, _: bytes) -> bytes:
        """Stop, since the whole gateway stops. The second call skips the wait."""
        if self._alone or not self.should_exit:
            if self.should_exit:  # this process has begun to stop alone
                self._gateway.state.services.admission.announce_stop()
            self.stop()
            self._alone = False
        else:
            self._signals = 2
        return b""

    async def _listen(self, address: Address, place: socket.socket, tls: ssl.SSLContext | None) -> None:
        limits, gateway = self._settings.limits, self._gateway
        preflights = self._settings.listen.cors_origin is not None
        bodies = gateway.state.services.admission.bodies
        listener = Listener(address, limits, bodies, self.server_state, gateway, tls is not None, preflights)
        self._listeners.append(listener)
        handshake_seconds_max = limits.head_seconds_max if tls else None
        server: Accepting | asyncio.Server
        if self._siblings.memory is None:
            server = await asyncio.get_running_loop().create_server(
                lambda: Connection(listener),
                sock=place,
                ssl=tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=handshake_seconds_max,
            )
        else:
            memory, connections = self._siblings.memory, self.server_state.connections
            make, count = (lambda: Connection(listener)), (lambda: len(connections))
            server = Accepting(place, make, memory, count, tls, handshake_seconds_max)
        self.servers.append(cast(asyncio.Server, server))
        if self._siblings.number == 0:
            log.info("the gateway is running on %s for %s", url_of(place, tls is not None), address.whom)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in order: not ready, no new connections, running requests finish or are ended, the Services end."""
        self._signals = 1
        admission, limits = self._gateway.state.services.admission, self._gateway.state.services.settings.limits
        if not self._alone:
            admission.announce_stop()
        for listener in self._listeners:
            listener.leaving = True
        seconds = limits.drain_seconds_min
        if self._alone:  # the other processes accept the new connections
            seconds = max(seconds, ALONE_SECONDS_MIN)
            for server in self.servers:
                server.close()
            self._siblings.tell("closed")  # now, since a parent that stops too must not wait in vain
        await self._wait(asyncio.sleep(seconds), seconds)
        for server in self.servers:
            server.close()
        self._siblings.tell("closed")
        self._close_idle()
        if not await self._wait(admission.drain(), limits.drain_seconds_max):
            log.warning("%d requests were still under way when the time to drain was over", admission.in_flight)
            admission.end()
            await self._end()
        await self._wait_for_connections()
        await self.lifespan.shutdown()

    def _close_idle(self) -> None:
        """Close each connection: at once, or after its running answer."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def _wait_for_connections(self) -> None:
        """Close all connections, each after its answer. Wait for their tasks, at most CLOSE_SECONDS_MAX."""
        state = self.server_state
        self._close_idle()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while state.connections or state.tasks:  # noqa: ASYNC110 - these sets tell nobody that they are empty
                    await asyncio.sleep(CLOSE_LOOK_SECONDS)
        except TimeoutError:
            log.error("%d tasks were still under way when the time to close was over", len(state.tasks))
            for task in state.tasks:
                task.cancel()

    async def _wait(self, ending: Awaitable[object], seconds: float) -> bool:
        """Wait for `ending`, at most `seconds`, and not after a second signal. Returns True if it has ended."""
        task = asyncio.ensure_future(ending)
        await asyncio.sleep(0)  # let it begin in any case
        until = asyncio.get_running_loop().time() + seconds
        while not task.done() and self._signals < 2 and asyncio.get_running_loop().time() < until:
            await asyncio.wait([task], timeout=LOOK_SECONDS)
        done: bool = task.done()
        task.cancel()
        return done

    async def _end(self) -> None:
        """End the requests that still run. A stream that has begun ends with the error as its last event."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS_MAX)
