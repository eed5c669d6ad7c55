"""Acknowledged means durable: an acknowledgement waits until Redis has the write on disk.

Redis with `appendfsync always` answers a write after it is on the disk. With `everysec` it answers before. There an
acknowledgement waits for WAITAOF, which answers when all writes of its connection are on the disk, and on the disks
of N replicas. Replication and the append-only file have one order. A mark written after an answered write, on any
connection to the same process, is durable no sooner than that write. So one mark and one WAITAOF are enough for all
that wait at that moment. `Lives` knows whether it is the same process.

WAITAOF alone is not enough: Redis 7.4 (redis/redis#13793) and Valkey 9.1 answer it before a sync if their last sync
is less than a second old. So the gateway also waits for a sync that began after the mark. If no sync was running at
the mark, `everysec` begins one within a second. It has ended when no sync is running after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.errors import Problem, StateError
from gateway.state.redis import Lives
from monitoring.redis_cluster import is_client_of_cluster

log = logging.getLogger(__name__)
MARK_KEY = "apprentice:acknowledged"
NO_SYNC = "no-appendfsync-on-rewrite"
ASKED_KEY = "apprentice:acknowledging"
ROUNDS_MAX = 8
"""Most waits at the same time. With `everysec` each takes more than a second. Later acknowledgements share the next
one."""
SYNC_BEGUN_SECONDS = 1.2
"""Time after which a sync has begun: one second, and twice the 100 ms by which Redis's clock may be late."""
POLL_SECONDS = 0.02
NOT_SETTLED = "It may have been stored, but not durably in time. Look whether it was, or send it again."


class NotSettled(Exception):
    """A write that would be lost if Redis or its machine failed now. It can't be acknowledged."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """The persistence of a Redis, as it reports it. None: not reported. Sizes are in bytes."""

    product: str = "Redis"
    version: str | None = None
    append_only: bool | None = None
    append_fsync: str | None = None
    syncs_always: bool = True
    """False with `no-appendfsync-on-rewrite yes`: Redis does not sync while it rewrites its file."""
    eviction: str | None = None
    memory_bytes_max: int | None = None
    memory_bytes: int | None = None
    machine_bytes: int | None = None
    replicas: int | None = None
    role: str | None = None
    waits: bool = False
    """True if it has WAITAOF (Redis and Valkey from 7.2 on)."""
    is_one_of_many: bool = False
    """True for a node of a Cluster if the address does not name it as a Cluster."""

    @property
    def durable(self) -> bool:
        """Return True if acknowledged writes are on its disk."""
        if self.append_only is False or self.append_fsync == "no" or not self.syncs_always:
            return False
        return self.append_fsync == "always" or self.waits

    def lack(self) -> str | None:
        """The obstacle to its durability, as a sentence that says what to do; None if there is none."""
        if self.append_only is False:
            why = "it has no append-only file, and forgets what is acknowledged when it ends"
            advice = "Set appendonly yes and appendfsync always."
        elif self.append_fsync == "no":
            why = "appendfsync is no, so that its machine may forget what is acknowledged"
            advice = "Set appendfsync always."
        elif not self.syncs_always:
            why = "while it rewrites its file it syncs nothing"
            advice = "Set no-appendfsync-on-rewrite no."
        elif not self.durable:
            why = "it has no WAITAOF, and may forget the last second of what is acknowledged"
            advice = "Take version 7.2 or later, or set appendfsync always."
        else:
            return None
        return f"{self.product} is not durable: {why}. {advice}"

    def cluster_fault(self) -> str | None:
        """The reason why a node of a Cluster can't be used as one server; None if it can, or is no such node."""
        if not self.is_one_of_many:
            return None
        return (
            f"{self.product} is a Cluster, of which one address is one node. "
            "Name it as one: redis+cluster://HOST:PORT,HOST:PORT."
        )

    def eviction_fault(self) -> str | None:
        """The reason why this Redis may lose state by eviction, or None."""
        if self.eviction in (None, "noeviction") or not self.memory_bytes_max:
            return None
        return (
            f"{self.product} may drop what admins have set, feedback and audit: its maxmemory-policy is "
            f"{self.eviction}. Set maxmemory-policy noeviction."
        )


async def look_at(redis: Redis) -> Persistence:
    """The persistence of this Redis. Values that a provider does not allow to read are None. Raises RedisError."""
    info = {**await _info(redis, "server"), **await _info(redis, "persistence")}
    info |= {**await _info(redis, "memory"), **await _info(redis, "replication")}
    settings = {name: await _configured(redis, name) for name in ("appendonly", "appendfsync", NO_SYNC)}
    enabled = info.get("aof_enabled")
    append_only = settings["appendonly"] == "yes" if settings["appendonly"] is not None else None
    clustered = "cluster" in (info.get("server_mode"), info.get("redis_mode"))  # Valkey, Redis
    version = info.get("valkey_version") or info.get("redis_version")
    return Persistence(
        product="Valkey" if "valkey_version" in info else "Redis",
        version=None if version is None else str(version),
        append_only=append_only if enabled is None else bool(enabled),
        append_fsync=settings["appendfsync"],
        syncs_always=settings[NO_SYNC] != "yes",
        eviction=info.get("maxmemory_policy"),
        memory_bytes_max=info.get("maxmemory"),
        memory_bytes=info.get("used_memory"),
        machine_bytes=info.get("total_system_memory"),
        replicas=info.get("connected_slaves"),
        role=info.get("role"),
        waits=await _takes_waitaof(redis),
        is_one_of_many=clustered and not is_client_of_cluster(redis),
    )


async def _ask_if_allowed(reply: Awaitable[Any], otherwise: Any) -> Any:
    """The reply of a Redis, or `otherwise` if its provider forbids the command. Raises RedisError."""
    try:
        return await reply
    except ResponseError:
        return otherwise


async def _info(redis: Redis, section: str) -> dict[str, Any]:
    content: dict[str, Any] = await _ask_if_allowed(redis.info(section), {})
    return content


async def _configured(redis: Redis, name: str) -> str | None:
    settings = await _ask_if_allowed(redis.config_get(name), {})
    return {_text(key): _text(value) for key, value in settings.items()}.get(name)


async def _takes_waitaof(redis: Redis) -> bool:
    command = redis.execute_command("WAITAOF", 0, 0, 1)  # type: ignore[no-untyped-call]
    return await _ask_if_allowed(command, None) is not None


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


class Durability:
    """Delays acknowledgements until their writes are durable. Waiting acknowledgements share their WAITAOFs."""

    def __init__(self, redis: Redis, lives: Lives, replicas_acked_min: int, timeout_seconds: float) -> None:
        self._redis = redis
        self._lives = lives
        self._replicas_min = replicas_acked_min
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(ROUNDS_MAX)
        self._group: asyncio.Future[str] | None = None
        self._rounds: set[asyncio.Task[None]] = set()
        self._looked_in = -1
        self.storage = Persistence()

    async def look(self) -> Persistence:
        """Read Redis's persistence again, and log each change for the worse. Raises RedisError."""
        count = self._lives.count
        storage = await look_at(self._redis)
        if (lack := storage.lack()) != self.storage.lack() or self._looked_in < 0:
            level = logging.WARNING if lack else logging.INFO
            log.log(level, "%s", lack or f"{storage.product} {storage.version} keeps on disk what is acknowledged")
        if (fault := storage.eviction_fault()) is not None and self._looked_in >= 0:
            log.error("%s", fault)
        self.storage, self._looked_in = storage, count
        return storage

    async def begin(self) -> None:
        """Check Redis at the start. Raises StateError if it can't keep state or is named wrongly, and RedisError."""
        storage = await self.look()
        if (fault := storage.cluster_fault() or storage.eviction_fault()) is not None:
            raise StateError(fault)
        if storage.eviction is None:
            log.warning("%s does not say what its maxmemory-policy is: see that it is noeviction", storage.product)

    def mark(self) -> int:
        """Take a mark before the first write that is to be acknowledged. Give it to `settle`."""
        return self._lives.count

    async def settle(self, mark: int) -> None:
        """Wait until all writes since `mark` are as durable as configured.

        Raises NotSettled if that takes too long, or if Redis has become another process meanwhile.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if self._looked_in != self._lives.count:
                    await self.look()
                if self._command() is None:
                    return
                failed = await asyncio.shield(self._next_round())
        except TimeoutError:
            raise NotSettled(f"{NOT_SETTLED} (no answer in {self._timeout_seconds:g} s)") from None
        except (RedisError, OSError) as error:
            raise NotSettled(f"{NOT_SETTLED} ({type(error).__name__})") from error
        if failed:
            raise NotSettled(f"{NOT_SETTLED} ({failed})")
        if mark != self._lives.count:
            raise NotSettled(f"{NOT_SETTLED} (Redis was started again, or another one took over)")

    def _command(self) -> tuple[Any, ...] | None:
        """The command to wait with, or None if there is nothing to wait for."""
        milliseconds = max(1, int(self._timeout_seconds * 1000))
        syncs = self.storage.append_only is not False and self.storage.append_fsync != "no"
        if self.storage.waits and (self._replicas_min or (syncs and self.storage.append_fsync != "always")):
            return ("WAITAOF", int(syncs), self._replicas_min, milliseconds)
        return ("WAIT", self._replicas_min, milliseconds) if self._replicas_min else None

    def _next_round(self) -> asyncio.Future[str]:
        """The next round, which has not asked yet. It covers all writes that are answered before it asks."""
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._round(self._group))
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        return self._group

    async def _round(self, group: asyncio.Future[str]) -> None:
        """Ask once for the whole group. Its result is the missing durability as text; empty if none is missing."""
        try:
            async with self._slots:
                self._group = None  # later acknowledgements wait for the next round
                group.set_result(await self._ask())
        except (RedisError, OSError, TimeoutError) as error:
            group.set_result(f"Redis: {type(error).__name__}")
        except Exception as error:
            log.exception("a wait for what is written to be durable failed")
            group.set_result(f"a fault of the gateway: {type(error).__name__}")
        except BaseException:
            group.cancel()
            raise

    async def _ask(self) -> str:
        command = self._command()
        if command is None:
            return ""
        late = self.storage.append_only is not False and self.storage.append_fsync not in ("always", "no")
        asked_at = await self._mark_between_syncs() if late else 0.0
        missing = await self._waited(command)
        return missing or (await self._synced_since(asked_at) if late and self.storage.append_only is not False else "")

    async def _mark_between_syncs(self) -> float:
        """Write a mark while no sync runs, so that the next sync covers it. Returns the latest time of that write."""
        while True:
            async with self._redis.pipeline(transaction=False) as one_connection:
                one_connection.incr(ASKED_KEY)
                one_connection.info("persistence")
                _, info = await one_connection.execute(raise_on_error=False)
            if isinstance(info, Exception) or not info.get("aof_pending_bio_fsync"):
                return time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    async def _synced_since(self, marked_at: float) -> str:
        """Wait until the sync after a mark has begun and ended. Returns the missing durability; empty if none."""
        await asyncio.sleep(marked_at + SYNC_BEGUN_SECONDS - time.monotonic())
        await self._redis.ping()  # Redis begins a sync that is due before it answers
        while True:
            info = await _info(self._redis, "persistence")
            if not info.get("aof_pending_bio_fsync"):
                return "" if info.get("aof_last_write_status", "ok") == "ok" else "Redis can't write its file"
            await asyncio.sleep(POLL_SECONDS)

    async def _waited(self, command: tuple[Any, ...]) -> str:
        async with self._redis.pipeline(transaction=False) as one_connection:
            one_connection.incr(MARK_KEY)
            one_connection.execute_command(*command)
            try:
                _, reached = await one_connection.execute()
            except ResponseError as error:
                if "appendonly is disabled" not in str(error):
                    raise
                self.storage = replace(self.storage, append_only=False)  # Redis had not reported it
                log.warning("%s", self.storage.lack())
                return "" if (again := self._command()) is None else await self._waited(again)
        copies = reached if isinstance(reached, list) else [1, reached]
        if copies[0] < int(command[0] == "WAITAOF" and command[1]):
            return "it is not on the disk of Redis"
        if copies[1] < self._replicas_min:
            return f"{copies[1]} of {self._replicas_min} replicas have it"
        return ""

    async def close(self) -> None:
        """Cancel the running rounds, for which no acknowledgement waits now."""
        for task in self._rounds:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._rounds, return_exceptions=True)


def explain_not_settled(error: NotSettled, more: str = "") -> Problem:
    """The problem for a caller, who must not believe that the write is stored."""
    return Problem("storage_unavailable", f"{error}{more}")
