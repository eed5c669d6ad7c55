"""The connection to the runtime state: the configured Redis, or the embedded Valkey. Both use the same code."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError, ResponseError

from gateway.errors import StateError
from gateway.state.embedded_valkey import run_embedded_valkey
from gateway.state.redis_options import address_of, close_client, make_client

INSTALLATION_KEY = "apprentice:installation"
SECRET_KEY = "apprentice:secret"  # noqa: S105 - the name of a key, not a secret
ANOTHER_STATE = (
    "it has lost the state of this installation, or has another one: give it its data back, or start all gateways again"
)
REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
"""
RUN_ID = re.compile(rb"run_id:([0-9a-f]+)")


class Lives:
    """The process of Redis behind the connections. `count` goes up when a new connection finds another process.

    A write to one process may be missing in another: it may have restarted without its last second, or be a promoted
    replica. A write under one count is not confirmed under another count. After `stay_with`, a process that has lost
    the state, or has another state, counts as not reachable.
    """

    def __init__(self, *passwords: Callable[[], str | None]) -> None:
        """`passwords` are the functions for make_client that read the passwords of Redis and its Sentinels."""
        self.count = 0
        self._passwords = passwords
        self._installation: str | None = None
        self._run_id = b""
        self._redis: Redis | None = None

    def client_at(self, redis_url: str) -> Redis:
        """A client whose connections report the process behind them. Raises ValueError for an invalid address."""
        self._redis = make_client(redis_url, *self._passwords, redis_connect_func=self._connected)
        return self._redis

    async def stay_with(self, redis: Redis) -> None:
        """From now on, connect only to the state that this Redis has now. Raises RedisError."""
        self._installation = await read_installation_id(redis)

    async def see_that_it_is_ours(self, installation: bytes | None) -> None:
        """Raise Disconnected if the running Redis has lost the state, for example by FLUSHALL. From then on this Redis
        counts as not reachable."""
        if self._installation not in (None, (installation or b"").decode()):
            await self._leave_the_other()
            raise Disconnected(ANOTHER_STATE)

    async def _connected(self, connection: Connection) -> None:
        await connection.on_connect()
        if self._installation is not None:
            await connection.send_command("GET", INSTALLATION_KEY)
            if await connection.read_response(disable_decoding=True) != self._installation.encode():
                raise Disconnected(ANOTHER_STATE)
        await connection.send_command("INFO", "server")
        try:
            answer = await connection.read_response(disable_decoding=True)
        except ResponseError:  # the provider forbids the command: assume one process
            return
        match = RUN_ID.search(answer) if isinstance(answer, bytes) else None
        run_id = match[1] if match else b""
        if run_id != self._run_id:
            self.count += bool(self._run_id)
            self._run_id = run_id
            await self._leave_the_other()

    async def _leave_the_other(self) -> None:
        """Close the connections to the former process, each after the answer to its running command."""
        if self._redis is not None:
            pool: Any = self._redis.connection_pool  # not all of it has types
            await pool.update_active_connections_for_reconnect()
            await pool.disconnect(inuse_connections=False)


@asynccontextmanager
async def open_state(redis_url: str | None, data_folder: Path, lives: Lives | None = None) -> AsyncIterator[Redis]:
    """A connection to the Redis with the state, while the block runs. Raises StateError if it can't be opened."""
    if redis_url is not None:
        try:
            client = (lives or Lives()).client_at(redis_url)
        except ValueError as error:
            raise StateError(f"redis_url can't be used: {error}.") from error
        async with _connected(client) as redis:
            yield redis
        return
    async with (
        run_embedded_valkey(data_folder) as socket_path,
        _connected(make_client(address_of(socket_path))) as redis,
    ):
        yield redis


async def read_shared_secret(redis: Redis) -> bytes:
    """The secret for ids and digests. It is made once, and shared by all gateways on one Redis."""
    await redis.set(SECRET_KEY, secrets.token_bytes(32), nx=True)
    secret = await redis.get(SECRET_KEY)
    assert isinstance(secret, bytes)
    return secret


async def read_installation_id(redis: Redis) -> str:
    """The id of the state in this Redis, made once: 16 hex digits."""
    await redis.set(INSTALLATION_KEY, secrets.token_hex(8), nx=True)
    identifier = await redis.get(INSTALLATION_KEY)
    assert isinstance(identifier, bytes)
    return identifier.decode()


async def replace_value(redis: Redis, key: str, before: bytes, after: bytes) -> bool:
    """Replace a value if it is unchanged since it was read, and keep its expiry. Returns True if it was replaced. An
    expired value does not come back. Raises RedisError."""
    caller: Any = redis  # redis-py's types do not know the reply of a script
    return bool(await caller.eval(REPLACE, 1, key, before, after))


@asynccontextmanager
async def _connected(redis: Redis) -> AsyncIterator[Redis]:
    try:
        try:
            await redis.ping()
        except (RedisError, OSError, OverflowError) as error:
            raise StateError(_explain(error)) from error
        yield redis
    finally:
        await close_client(redis)


def _explain(error: Exception) -> str:
    text = str(error).rstrip(".")
    if "HELLO" in text or "NOAUTH" in text:  # without a password the first command is refused
        return "Redis asks for a password: set redis_password_file."
    if "username-password" in text:  # over a Unix socket no error of its own
        return f"Redis refuses the password ({text}): fix it in redis_password_file or redis_url."
    return f"Redis can't be reached: {text}. Start it, or fix or unset redis_url."
