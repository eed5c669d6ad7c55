"""Shared state of one address's connections: their number, the check of keys, and the room for bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Literal, Protocol, cast
from urllib.parse import unquote

from uvicorn.server import ServerState

from gateway.callers import Caller
from gateway.configuration.sections import DoorLimits
from gateway.errors import Problem
from gateway.server.exchange import Exchange
from gateway.server.shared_capacity import SharedCapacity

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PROBES = "/health"
METRICS = "/metrics"
ADMIN = "/admin/"
CONSOLE = "/console"
CONSOLE_PATH = CONSOLE.encode()
OPENAPI = "/openapi.json"
KEYLESS = frozenset({b"/health", b"/health/live", b"/health/ready", b"/metrics", b"/openapi.json"})
"""Addresses that need no key."""
RESERVED_SECONDS_MAX = 1.0
"""Longest time until the first head of a connection in the reserved room."""

Standing = Literal["open", "reserved", "none"]
Answers = Callable[[Exchange], Awaitable[None]]


class Application(Protocol):
    """The application behind a listener."""

    def identify(self, exchange: Exchange) -> Caller:
        """The caller whose key is in the request's head. Raises Problem (401) if there is none."""

    def answer(self, exchange: Exchange) -> Answers:
        """The function that answers a request."""

    def may_be_slow(self, exchange: Exchange) -> bool:
        """True if the reader of the request's body limits its time."""

    def refused(self, exchange: Exchange, problem: Problem) -> None:
        """Note a request that was refused because of its head."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address on which the gateway listens: its audience, and its shown or hidden paths (None: all are shown)."""

    whom: str
    host: str
    port: int
    shown: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()

    def shows(self, path: str) -> bool:
        """True if this address shows this path."""
        return not path.startswith(self.hidden) and (self.shown is None or path.startswith(self.shown))


class Listener:
    """One address, and its connections. Its owner is the server."""

    def __init__(
        self,
        address: Address,
        limits: DoorLimits,
        bodies: SharedCapacity,
        state: ServerState,
        application: Application,
        tls: bool = False,
        preflights: bool = False,
    ) -> None:
        """With `preflights`, a browser may send an OPTIONS request without a key (CORS)."""
        self.address = address
        self.limits = limits
        self.bodies = bodies
        self.application = application
        self.tls = tls
        self._preflights = preflights
        self.leaving = False
        """True if the gateway stops soon: each answer is the last on its connection."""
        self.tasks: set[asyncio.Task[None]] = state.tasks
        self._capacities: dict[Standing, SharedCapacity] = {
            "open": SharedCapacity(limits.connections_max, limits.address_share_max),
            "reserved": SharedCapacity(limits.connections_reserved, limits.address_share_max),
        }
        self._state = state
        self._common: list[tuple[bytes, bytes]] = []
        self._common_lines = b""

    def enter(self, connection: object, host: str) -> Standing:
        """The standing of a new connection from this host: in the open room, in the reserved room, or in no room."""
        self._state.connections.add(cast("HttpToolsProtocol", connection))  # it calls `shutdown` alone
        for standing, capacity in self._capacities.items():
            if capacity.take(host):
                return standing
        return "none"  # the connection is closed at once, and takes no place until then

    def leave(self, connection: object, host: str, standing: Standing) -> None:
        """Remove a connection that has ended."""
        self._state.connections.discard(cast("HttpToolsProtocol", connection))
        if standing != "none":
            self._capacities[standing].give_back(host)

    def check_head(self, exchange: Exchange, standing: Standing) -> Problem | None:
        """Check a request's head: its path, its key, its connection's standing. Sets `exchange.caller`.

        Returns the problem if the request is refused, else None.
        """
        path = exchange.path
        if not self.address.shows(decode_path(path)):
            text = "This listener has nothing at this address: see the settings listen.admin and listen.metrics."
            return Problem("not_found", text)
        if path in KEYLESS or (self._preflights and exchange.method == "OPTIONS"):
            return None
        try:
            exchange.caller = self.application.identify(exchange)
        except Problem as problem:
            if standing == "open" and (path in (b"/", CONSOLE_PATH) or path.startswith(CONSOLE_PATH + b"/")):
                return None  # the console uses sessions instead of keys
            return problem
        if standing != "open" and exchange.caller.role not in ("operator", "admin"):
            return refuse_connection()
        return None

    @property
    def connections(self) -> int:
        """Connections that have a place."""
        return sum(capacity.taken for capacity in self._capacities.values())

    def server_headers(self) -> bytes:
        """The lines of the headers that every answer has."""
        if self._common is not self._state.default_headers:
            self._common = self._state.default_headers
            self._common_lines = b"".join([b"%b: %b\r\n" % header for header in self._common])
        return self._common_lines


@lru_cache(maxsize=1024)  # most connections come from few addresses
def network_of(host: str) -> str:
    """The network whose connections count together: an IPv4 address, or 64 bits of an IPv6 one."""
    address = ip_address(host.partition("%")[0])
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address) >> 64 << 64, 64)))


def decode_path(path: bytes) -> str:
    """A path with its percent-encoded characters, as an application reads it."""
    text = path.decode("latin-1")
    return unquote(text) if "%" in text else text


def refuse_connection() -> Problem:
    """The problem for a connection over the limit."""
    return Problem("overload", "Too many connections. Try again later.")
