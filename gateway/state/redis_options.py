"""The client of Redis that the gateway uses, and the options of its connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as Silence

from gateway.errors import SettingsError
from monitoring.redis_address import open_async_redis

CONNECTION: Mapping[str, Any] = MappingProxyType(
    {
        "socket_connect_timeout": 2,
        "socket_timeout": 6,
        "driver_info": None,  # redis-py would read its own version from disk for each connection, and tell it
        "retry": Retry(ConstantBackoff(0.1), 1, supported_errors=(Disconnected, ReadOnlyError)),
    }
)
"""One retry and no more, and none after silence: a caller waits for its feedback to be stored, and is better told than
kept. It leaves a primary that has become a replica: new connections lead to the new one."""


def address_of(socket_path: Path) -> str:
    """The address of a Redis at a Unix socket."""
    return f"unix://{quote(str(socket_path))}"


def make_client(
    address: str,
    password: Callable[[], str | None] = lambda: None,
    sentinel_password: Callable[[], str | None] = lambda: None,
    **options: Any,
) -> Redis:
    """A client of the Redis at an address, such as `unix:///run/valkey.sock`. Raises ValueError for a wrong one.

    `password`, and that of its Sentinels, is asked at each connection, since it may be rotated; None: it is that of the
    address.
    """
    client = open_async_redis(address, **CONNECTION, **options)
    pool, *of_sentinels = _list_pools(client)
    for each, read in ((pool, password), *((one, sentinel_password) for one in of_sentinels)):
        each.connection_class = type(
            "Cancellable", (_Cancellable, each.connection_class), {"read_password": staticmethod(read)}
        )
    return client


async def close_client(client: Redis) -> None:
    """Close the connections of a client from `make_client`, and prevent new ones: a job that has not stopped in time
    would open one, which nobody would close."""
    for pool in _list_pools(client):
        pool.connection_class.is_closed = True
    await client.aclose()


def _list_pools(client: Redis) -> list[Any]:
    """Its pool of connections, and those of its Sentinels; not all of them have types."""
    pool: Any = client.connection_pool
    sentinels = pool.sentinel_manager.sentinels if hasattr(pool, "sentinel_manager") else ()
    return [pool, *(each.connection_pool for each in sentinels)]


class _Cancellable(AbstractConnection):
    """A connection whose commands end with the task that they are cancelled with.

    redis-py sends in `asyncio.wait_for`, which in Python 3.11 makes a task of each command, and drops a cancellation
    that comes as the sending ends: a job that was cancelled then would go on for ever, and hold its lease.
    """

    read_password: Callable[[], str | None]
    is_closed = False

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call, safe-super]
        except Silence as error:  # of the handshake over a Unix socket: redis-py takes it for a lost connection
            await self.disconnect(nowait=True)
            raise TimeoutError from error
        if self.is_closed:
            await self.disconnect(nowait=True)
            raise Disconnected("this client is closed")

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with contextlib.suppress(SettingsError):  # the file is being replaced
            self.password = self.read_password() or self.password
        await super().on_connect_check_health(check_health)

    def _connection_arguments(self) -> Mapping[str, Any]:
        if isinstance(self, SSLConnection):
            self.ssl_context.context = None  # else one that is opened again would show the earlier certificate
        arguments: Mapping[str, Any] = super()._connection_arguments()  # type: ignore[misc]
        return arguments

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self.socket_timeout):
                packed = command.encode() if isinstance(command, str) else command
                await self._send_packed_command([packed] if isinstance(packed, bytes) else packed)
        except BaseException as error:
            await self.disconnect(nowait=True)  # half a command may be sent
            if isinstance(error, TimeoutError):
                raise Silence("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise Disconnected(f"Error while writing to socket: {error}.") from error
            raise
