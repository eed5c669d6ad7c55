"""A Valkey Cluster of a test's own: three owners of a third of the slots each, and replicas of the one that matters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from monitoring.redis_cluster import SLOT
from tests.fakes.ports import free_port
from tests.fakes.valkey import Valkey, valkey
from tests.waiting import until

RANGES = ((0, 5460), (5461, 10922), (10923, 16383))
OWNER = 2
"""The place of the node that has the slot at first."""


@dataclass
class Node:
    """A node, and a client of it alone."""

    valkey: Valkey
    port: int
    bus_port: int
    client: Any
    id: str = ""

    async def tell(self, *command: Any) -> Any:
        return await self.client.execute_command("CLUSTER", *command)


@dataclass
class Cluster:
    """Its nodes: three owners, then the replicas."""

    nodes: list[Node] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address for `redis_url`, by two nodes that do not have the slot."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:OWNER])

    @property
    def owner(self) -> Node:
        """The node that had the slot at first."""
        return self.nodes[OWNER]

    async def move_slot(self, target: Node) -> None:
        """Move the slot with its keys one by one, as `valkey-cli --cluster reshard` does."""
        source = self.owner
        await target.tell("SETSLOT", SLOT, "IMPORTING", source.id)
        await source.tell("SETSLOT", SLOT, "MIGRATING", target.id)
        while keys := await source.tell("GETKEYSINSLOT", SLOT, 100):
            for key in keys:
                await source.client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        for node in (target, source, *self.nodes[:OWNER]):
            await node.tell("SETSLOT", SLOT, "NODE", target.id)


@asynccontextmanager
async def valkey_cluster(*options: str, replicas: int = 0) -> AsyncIterator[Cluster]:
    """A Cluster for as long as the block runs, with `replicas` of the node that has the slot."""
    async with AsyncExitStack() as stack:
        cluster = Cluster()
        for _ in range(len(RANGES) + replicas):
            port, bus_port = free_port(), free_port()
            ports = ("--port", str(port), "--cluster-port", str(bus_port))
            own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")
            kept = ("--cluster-allow-replica-migration", "no", "--cluster-replica-validity-factor", "0")
            process = await stack.enter_async_context(valkey(*ports, *own, *kept, *options))
            client = await stack.enter_async_context(Redis(unix_socket_path=str(process.socket), socket_timeout=60))
            cluster.nodes.append(Node(process, port, bus_port, client))
        for place, node in enumerate(cluster.nodes):
            node.id = (await node.tell("MYID")).decode()
            await node.tell("SET-CONFIG-EPOCH", place + 1)
            if place < len(RANGES):
                await node.tell("ADDSLOTSRANGE", *RANGES[place])
        for node in cluster.nodes[1:]:
            await node.tell("MEET", "127.0.0.1", cluster.nodes[0].port, cluster.nodes[0].bus_port)
        for node in cluster.nodes[len(RANGES) :]:
            await _follow(node, cluster.owner)
        for node in cluster.nodes:
            await until(lambda node=node: _is_whole(node, cluster), "a node that knows the whole Cluster")  # type: ignore[misc]
        yield cluster


async def _follow(replica: Node, owner: Node) -> None:
    while True:
        with contextlib.suppress(RedisError):  # it has not met the owner yet
            await replica.tell("REPLICATE", owner.id)
            return
        await asyncio.sleep(0.01)


async def _is_whole(node: Node, cluster: Cluster) -> bool:
    info = (await node.client.execute_command("CLUSTER INFO"))["cluster_state"]
    ranges = await node.client.execute_command("CLUSTER SLOTS")
    replicas = len(cluster.nodes) - len(RANGES)
    return info == "ok" and len(ranges) == len(RANGES) and sum(len(entry) - 3 for entry in ranges) == replicas
