"""Redis Cluster: a whole installation in one slot, and connections to the node that owns it.

Names of keys begin with `apprentice:`. In a Cluster alone they begin with `{apprentice}:`, which puts all keys into one
slot. Clients translate the names, so multi-key steps, scripts and streams work as with one server. Clients follow a
failover; the other nodes do none of the work. The slot may move in one step (`CLUSTER MIGRATESLOTS`). While its keys
move one by one, clients do not connect, since a script could stop half done.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import Connection as AsyncConnection
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import AbstractConnection as AsyncAbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MasterDownError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as Silence
from redis.sentinel import MasterNotFoundError

from monitoring.redis_seeds import Seeds

PREFIX, TAGGED = "apprentice:", "{apprentice}:"
SLOT = 15982
"""The slot of all names that begin with TAGGED."""
LEFT = (AskError, TryAgainError, ClusterDownError, MasterDownError, ReadOnlyError)
"""Replies of a node that does not own the slot now. The error for MOVED is a subclass of AskError."""
LEFT_IN_SCRIPT = "access a non local key"
NOT_NAMES = frozenset({"AUTH", "ECHO", "HELLO", "PING", "PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"})
"""Commands whose first argument is not the name of a key. Names of channels are not changed in a Cluster."""
ALL_NAMES = frozenset({"DEL", "EXISTS", "MGET", "RENAME", "SCAN", "TOUCH", "UNLINK", "WATCH"})
SECOND_NAMES = frozenset({"MEMORY", "OBJECT", "XGROUP", "XINFO"})
Address = tuple[str, int]


def open_redis(seeds: Seeds, options: dict[str, Any]) -> Redis:
    """A blocking client of the node that owns the slot."""
    kind = _SecureNode if seeds.secure else _Node
    return _Client.from_pool(
        ConnectionPool(connection_class=kind, nodes=Nodes(seeds.addresses), **seeds.options | options)
    )


def open_async_redis(seeds: Seeds, options: dict[str, Any]) -> AsyncRedis:
    """A client of the node that owns the slot."""
    kind = _AsyncSecureNode if seeds.secure else _AsyncNode
    nodes = Nodes(seeds.addresses)
    return _AsyncClient.from_pool(AsyncConnectionPool(connection_class=kind, nodes=nodes, **seeds.options | options))


def is_client_of_cluster(redis: AsyncRedis) -> bool:
    """Return whether this client was opened for a Cluster."""
    return isinstance(redis, _AsyncClient)


def tag_names(command: Sequence[Any]) -> Sequence[Any]:
    """A command with the Cluster's names for its keys and for those in the text of its script."""
    name, *more = _text(command[0]).upper().split()
    places: Container[int] = (1,)
    if name in ALL_NAMES:
        places = range(1, len(command))
    elif name in ("MSET", "MSETNX"):
        places = range(1, len(command), 2)
    elif name in NOT_NAMES:
        return command
    elif name in SECOND_NAMES:
        places = (2 - len(more),)
    elif name in ("EVAL", "EVALSHA"):
        places = range(3, 3 + int(command[2]))
    changed = [_tag(word) if place in places else word for place, word in enumerate(command)]
    if name == "EVAL":
        changed[1] = tag_script(_text(command[1]))
    return changed


def tag_script(script: str) -> str:
    """A script with the Cluster's names for its keys."""
    return script.replace(f"'{PREFIX}", f"'{TAGGED}")


class Nodes:
    """The nodes to ask for the slot, likely owners first. A client's connections share this object."""

    def __init__(self, seeds: Iterable[Address]) -> None:
        self._seeds = [*dict.fromkeys(seeds)]
        self._order = [*self._seeds]
        self._doubted: set[Address] = set()

    def next(self, asked: Container[Address]) -> Address | None:
        """The next node to ask; those that did not answer the last time come last."""
        left = [address for address in self._order if address not in asked]
        return min(left, key=self._doubted.__contains__, default=None)

    def doubt(self, address: Address) -> None:
        """Ask the other nodes first, until this one answers again."""
        self._doubted.add(address)

    def believe(self, owner_and_replicas: Sequence[Address]) -> None:
        """Ask these nodes first, and forget former owners."""
        self._order = [*dict.fromkeys([*owner_and_replicas, *self._seeds])]
        self._doubted.intersection_update(self._order)

    def trust(self, address: Address) -> None:
        """Note that this node has answered."""
        self._doubted.discard(address)

    @contextmanager
    def note(self, address: Address, asked: dict[Address, BaseException]) -> Iterator[None]:
        """Note how a node answers within the block, and put into `asked` why it can't be used. Raises errors other than
        a connection's."""
        try:
            yield
            self.trust(address)
        except _Elsewhere as error:
            asked[address] = error
            self.trust(address)
            self.believe(error.owner_and_replicas)
        except BaseException as error:
            self.doubt(address)
            if not isinstance(error, (Disconnected, Silence)):
                raise
            asked[address] = error


class _Elsewhere(Disconnected):
    """The answer of a node that does not own the slot. `owner_and_replicas` are the nodes that have it."""

    def __init__(self, owner_and_replicas: Sequence[Address]) -> None:
        super().__init__("it does not own the slot")
        self.owner_and_replicas = owner_and_replicas


class _AsyncNodeConnection(AsyncAbstractConnection):
    """A connection to the node that reports itself as the slot's owner."""

    host: str
    port: int

    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        self._nodes = nodes
        super().__init__(**options)

    def pack_command(self, *args: Any) -> list[bytes]:
        return super().pack_command(*tag_names(args))

    async def connect(self) -> None:
        await self.retry.call_with_retry(self._find, _nothing_async)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self._find()  # redis-py would connect to the former node again
        await super().send_packed_command(command, check_health)

    async def _find(self) -> None:
        asked: dict[Address, BaseException] = {}
        while not self.is_connected and (address := self._nodes.next(asked)) is not None:
            self.host, self.port = address
            with self._nodes.note(address, asked):
                await self.connect_check_health(check_health=False, retry_socket_connect=False)
        if not self.is_connected:
            raise _not_found(asked, AsyncMasterNotFoundError)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("CLUSTER", "NODES", check_health=False)
        if not is_slot_owner(_text(await self._told())):
            await self.send_command("CLUSTER", "SLOTS", check_health=False)
            raise _Elsewhere(read_shard(await self._told(), self.host))

    async def _told(self) -> Any:
        try:
            return await self.read_response(disable_decoding=True)
        except ResponseError as error:
            raise Disconnected(f"it is not a node of a Cluster, or says nothing about it: {error}") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if not _is_left(error):
                raise
            await self.disconnect(nowait=True)
            raise Disconnected(f"{self.host}:{self.port} does not serve slot {SLOT} now: {error}") from error


class _AsyncNode(_AsyncNodeConnection, AsyncConnection):
    pass


class _AsyncSecureNode(_AsyncNodeConnection, AsyncSSLConnection):
    pass


class _NodeConnection(AbstractConnection):
    """The blocking form of _AsyncNodeConnection."""

    host: str
    port: int

    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        self._nodes = nodes
        super().__init__(**options)

    def _construct_command_packer(self, packer: Any) -> Any:
        return _Packer(super()._construct_command_packer(packer))  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        self.retry.call_with_retry(self._find, lambda _: None)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            self._find()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def _find(self) -> None:
        asked: dict[Address, BaseException] = {}
        while not self.is_connected and (address := self._nodes.next(asked)) is not None:
            self.host, self.port = address
            with self._nodes.note(address, asked):
                self.connect_check_health(check_health=False, retry_socket_connect=False)
        if not self.is_connected:
            raise _not_found(asked, MasterNotFoundError)

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health)
        self.send_command("CLUSTER", "NODES", check_health=False)  # type: ignore[no-untyped-call]
        if not is_slot_owner(_text(self._told())):
            self.send_command("CLUSTER", "SLOTS", check_health=False)  # type: ignore[no-untyped-call]
            raise _Elsewhere(read_shard(self._told(), self.host))

    def _told(self) -> Any:
        try:
            return self.read_response(disable_decoding=True)
        except ResponseError as error:
            raise Disconnected(f"it is not a node of a Cluster, or says nothing about it: {error}") from error

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not _is_left(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise Disconnected(f"{self.host}:{self.port} does not serve slot {SLOT} now: {error}") from error


class _Node(_NodeConnection, Connection):
    pass


class _SecureNode(_NodeConnection, SSLConnection):
    pass


class _Packer:
    """redis-py's packer, with the Cluster's names in commands."""

    def __init__(self, packer: Any) -> None:
        self._packer = packer

    def pack(self, *args: Any) -> Any:
        return self._packer.pack(*tag_names(args))


class _PlainNames:
    """Translation for clients: scripts get the Cluster's names, and SCAN returns names as without a Cluster."""

    response_callbacks: Any
    set_response_callback: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_response_callback("SCAN", _untagging(self.response_callbacks["SCAN"]))

    def register_script(self, script: Any) -> Any:
        return super().register_script(tag_script(_text(script)))  # type: ignore[misc]


class _Client(_PlainNames, Redis):
    pass


class _AsyncClient(_PlainNames, AsyncRedis):  # type: ignore[misc]  # within redis-py
    pass


def is_slot_owner(nodes: str) -> bool:
    """Return whether a node's own line in CLUSTER NODES has the slot. Raises ConnectionError while its keys move."""
    own = next((fields for line in nodes.splitlines() if "myself" in (fields := line.split(" "))[2].split(",")), [])
    if any(place.startswith(f"[{SLOT}->-") for place in own[8:]):
        raise Disconnected(f"the keys of slot {SLOT} are being moved one by one")
    ranges = (place.partition("-") for place in own[8:] if not place.startswith("["))
    return any(int(first) <= SLOT <= int(last or first) for first, _, last in ranges)


def read_shard(slots: Iterable[Sequence[Any]], asked_host: str) -> list[Address]:
    """The addresses of the slot's owner and of its replicas. Raises ConnectionError if nobody owns it."""
    for first, last, *nodes in slots:
        if first <= SLOT <= last:
            hosts = [(_text(host or asked_host), int(port)) for host, port, *_ in nodes]
            return [(host, port) for host, port in hosts if host != "?"]
    raise Disconnected(f"no node owns slot {SLOT}")


def _not_found(asked: dict[Address, BaseException], kind: type[Exception]) -> Exception:
    """The error if no node could be used. If a node timed out, it is a TimeoutError, so there is no retry at once."""
    faults = "; ".join(f"{host}:{port}: {error}" for (host, port), error in asked.items())
    silent = any(isinstance(error, Silence) for error in asked.values())
    return (Silence if silent else kind)(f"No node of the Cluster owns slot {SLOT}: {faults}")


def _is_left(error: ResponseError) -> bool:
    return isinstance(error, LEFT) or LEFT_IN_SCRIPT in str(error)


def _untagging(callback: Callable[..., Any]) -> Callable[..., Any]:
    def read(response: Any, **options: Any) -> Any:
        cursor, names = callback(response, **options)
        return cursor, [name.replace(TAGGED.encode(), PREFIX.encode(), 1) for name in names]

    return read


def _tag(word: Any) -> Any:
    if isinstance(word, str) and word.startswith(PREFIX):
        return TAGGED + word.removeprefix(PREFIX)
    if isinstance(word, bytes) and word.startswith(PREFIX.encode()):
        return TAGGED.encode() + word.removeprefix(PREFIX.encode())
    return word


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


async def _nothing_async(_: Exception) -> None:
    """Do nothing: before the nodes are asked again there is nothing to undo."""
