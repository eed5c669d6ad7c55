"""A Redis Cluster: real nodes, of which one promotes itself or hands over the slot under load."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError

from gateway.app import open_gateway
from gateway.background.lease import FOLDER_KEY, list_folder_holders
from gateway.cli.doctor_state import check_state
from gateway.configuration.settings import Settings
from gateway.errors import StateError
from gateway.state.redis_options import make_client
from monitoring.redis_address import open_async_redis, open_redis
from monitoring.redis_cluster import SLOT, Nodes, is_slot_owner, read_shard, tag_names
from serving.object_store import CHANGED_CHANNEL
from tests.fakes.certificates import Authority
from tests.fakes.ports import free_port
from tests.fakes.valkey import Valkey, valkey
from tests.fakes.valkey_cluster import Cluster, Node, valkey_cluster
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.failovers import KEEPS, check_failover, check_nothing_is_lost, loaded
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_tls import RULES, before, files

LINE = "id 10.0.0.1:6379@16379,name {flags} - 0 0 3 connected {places}"
ONE_NODE = ("--cluster-enabled", "yes")


@pytest.mark.timeout(300)
@pytest.mark.invariant("What is acknowledged is on disk.")
async def test_a_promoted_node_of_a_cluster_has_all_that_was_acknowledged(configure: Configure) -> None:
    async with valkey_cluster(*KEEPS, replicas=2) as cluster:
        await check_failover(configure(redis_url=cluster.url), cluster.owner.valkey)


async def move_in_one_step(cluster: Cluster, target: Node) -> None:
    await cluster.owner.tell("MIGRATESLOTS", "SLOTSRANGE", SLOT, SLOT, "NODE", target.id)
    await until(lambda: holds_all(target), "the slot at its new node")


async def is_up(redis: Any) -> bool:
    return bool((await redis.execute_command("CLUSTER INFO"))["cluster_state"] == "ok")


async def holds_all(node: Node) -> bool:
    return is_slot_owner((await node.tell("NODES")).decode())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("move", [move_in_one_step, Cluster.move_slot], ids=["in_one_step", "key_by_key"])
async def test_a_slot_that_moves_under_load_loses_nothing_that_was_acknowledged(
    configure: Configure, move: Any
) -> None:
    async with valkey_cluster(*KEEPS) as cluster:
        async with run_gateway(configure(redis_url=cluster.url)) as gateway:
            async with loaded(gateway) as load:
                await move(cluster, cluster.nodes[0])
                await load.goes_on()
            await check_nothing_is_lost(load, cluster.url)
        names = await cluster.nodes[0].client.keys("*")
        assert names
        assert {name.partition(b":")[0] for name in names} == {b"{apprentice}"}
        assert [await node.client.dbsize() for node in cluster.nodes[1:]] == [0, 0]


async def test_a_gateway_goes_on_from_the_files_of_the_node_that_had_the_slot(
    configure: Configure, tmp_path: Path
) -> None:
    port = free_port()
    restored = Valkey(*KEEPS, *ONE_NODE, "--port", str(port), "--cluster-port", str(free_port()))
    async with valkey_cluster(*KEEPS) as cluster, run_gateway(configure(redis_url=cluster.url)) as gateway:
        async with loaded(gateway) as load:
            pass
        await until(lambda: is_recorded(gateway, load.acknowledged), "the records of all requests")
        shutil.copytree(cluster.owner.valkey.folder / "appendonlydir", restored.folder / "appendonlydir")
    try:
        await restored.start()
        async with Redis(unix_socket_path=str(restored.socket)) as direct:
            assert is_slot_owner((await direct.execute_command("CLUSTER", "NODES")).decode()), (
                "it has keys of this slot"
            )
            await direct.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOT - 1, SLOT + 1, 16383)
            await until(lambda: is_up(direct))
        url = f"redis+cluster://127.0.0.1:{port}"
        async with run_gateway(configure(redis_url=url, data_folder=tmp_path / "again")) as gateway:
            for request in load.acknowledged:
                async with gateway.http() as http:
                    assert (await http.get(f"/v1/requests/{request}")).json()["feedback"]
    finally:
        await restored.end()
        shutil.rmtree(restored.folder)


async def is_recorded(gateway: RunningGateway, requests: set[str]) -> bool:
    async with gateway.http() as http:
        answers = [await http.get(f"/v1/requests/{request}") for request in requests]
    return {answer.status_code for answer in answers} == {200}


async def test_a_client_of_a_cluster_does_all_that_one_of_a_server_does() -> None:
    async with valkey_cluster(*KEEPS) as cluster, make_client(cluster.url) as redis, redis.pubsub() as channel:
        await channel.subscribe(CHANGED_CHANNEL)
        script = redis.register_script("return {redis.call('GET', 'apprentice:a'), KEYS[1], ARGV[1]}")
        replies = [b"1", b"{apprentice}:b", b"apprentice:c"]
        async with redis.pipeline(transaction=True) as pipe:
            pipe.set("apprentice:a", "1").hset("apprentice:b", "apprentice:field", "apprentice:value")
            await script(keys=["apprentice:b"], args=["apprentice:c"], client=pipe)
            pipe.publish(CHANGED_CHANNEL, "7")
            assert (await pipe.execute())[2] == replies
        assert await script(keys=["apprentice:b"], args=["apprentice:c"]) == replies
        assert await redis.hgetall("apprentice:b") == {b"apprentice:field": b"apprentice:value"}
        assert await redis.eval("return redis.call('GET', 'apprentice:a')", 0) == b"1"
        assert {name async for name in redis.scan_iter("apprentice:*")} == {b"apprentice:a", b"apprentice:b"}
        assert await redis.memory_usage("apprentice:a")
        assert await redis.execute_command("WAITAOF", 1, 0, 5000) == [1, 0]
        notices = [await channel.get_message(timeout=5) for _ in range(2)]
        assert [notice["data"] for notice in notices] == [1, b"7"]
        await redis.set(f"{FOLDER_KEY}/data", "gateway-1")
        assert await list_folder_holders(redis) == {"/data": "gateway-1"}
        assert await asyncio.to_thread(ask_blocking, cluster.url) == ([b"1", None], [b"apprentice:a"])


def ask_blocking(url: str) -> tuple[Any, Any]:
    with open_redis(url) as redis:
        pipe = redis.pipeline(transaction=False)
        pipe.get("apprentice:a")
        redis.register_script("return redis.call('GET', 'apprentice:none')")(client=pipe)
        return pipe.execute(), list(redis.scan_iter("apprentice:a*"))


async def test_doctor_finds_a_cluster_well_and_refuses_a_node_that_is_named_as_a_server(configure: Configure) -> None:
    async with valkey_cluster(*KEEPS) as cluster:
        found = [finding async for finding in check_state(Settings(**configure(redis_url=cluster.url)))]
        assert {finding.kind for finding in found} == {"ok"}, found
        settings = Settings(**configure(redis_url=f"redis://127.0.0.1:{cluster.owner.port}"))
        with pytest.raises(StateError, match=r"is a Cluster.*redis\+cluster://HOST:PORT,HOST:PORT"):
            async with open_gateway(settings):
                pass
        found = [finding async for finding in check_state(settings)]
    assert [finding.kind for finding in found if finding.check == "redis"] == ["problem"]


@pytest.mark.parametrize("address", ["redis+cluster://", "redis+cluster://h,", "redis+cluster://h/state"])
def test_a_cluster_without_a_host_or_with_a_name_is_refused(configure: Configure, address: str) -> None:
    with pytest.raises(ValueError, match=r"redis_url: A Cluster is given as redis\+cluster://HOST:PORT"):
        Settings(**configure(redis_url=address))


async def test_a_server_that_is_named_as_a_cluster_is_refused() -> None:
    port = free_port()
    async with valkey("--port", str(port)), make_client(f"redis+cluster://127.0.0.1:{port}") as redis:
        with pytest.raises(RedisError, match="not a node of a Cluster"):
            await redis.ping()


async def test_a_cluster_is_reached_by_tls_as_an_acl_user_whose_password_is_in_a_file(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    authority, file = Authority(tmp_path), tmp_path / "password"
    file.write_text("pass/word@1\n")
    ports = ("--port", str(free_port()), "--cluster-port", str(free_port()))
    async with (
        valkey(*KEEPS, *ONE_NODE, *ports) as node,
        Redis(unix_socket_path=str(node.socket)) as direct,
        before(str(node.socket), authority.listening(wants_certificate=True)) as port,
    ):
        await direct.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: is_up(direct))
        rules = [rule.replace("~apprentice:", "~{apprentice}:") for rule in RULES]
        await direct.execute_command("ACL", "SETUSER", "apprentice", "reset", "on", ">pass/word@1", *rules)
        given = {"redis_url": f"rediss+cluster://apprentice@127.0.0.1:{port}", "redis_password_file": file}
        tls = files(authority, authority.sign("gateway"))
        async with run_gateway(configure(**given, redis_tls=tls)) as gateway, gateway.http() as http:
            await gateway.place(make_adapter(1))
            answer = await http.post(
                "/v1/chat/completions",
                json={
                    "model": "returns",
                    "messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}],
                },
            )
            told = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": True}
            assert (await http.post("/v1/feedback", json=told)).status_code == 201
            assert (await http.get("/admin/v1/audit")).status_code == 200
        assert await direct.execute_command("ACL", "LOG") == []


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "apprentice:a"),
        ("HSET", b"apprentice:a", "apprentice:field", b"apprentice:value"),
        ("MGET", "apprentice:a", "apprentice:b"),
        ("DEL", "apprentice:a", b"apprentice:b"),
        ("MSET", "apprentice:a", "apprentice:value", "apprentice:b", "apprentice:value"),
        ("RENAME", "apprentice:a", "apprentice:b"),
        ("EVALSHA", "0" * 40, 2, "apprentice:a", "apprentice:b", "apprentice:value"),
        ("XADD", "apprentice:a", "*", "apprentice:field", "apprentice:value"),
        ("XINFO STREAM", "apprentice:a"),
        ("MEMORY", "USAGE", "apprentice:a"),
    ],
    ids=lambda command: command[0],
)
async def test_names_of_keys_are_tagged_and_nothing_else(redis: Redis, command: Sequence[Any]) -> None:
    tagged = tag_names(command)
    plain = [word for part in tagged for word in (part.split() if part == command[0] else [part])]
    names = await redis.execute_command("COMMAND GETKEYS", *plain)
    assert names
    assert all(name.startswith("{apprentice}:") for name in names)
    assert sum("{" in str(word) for word in tagged) == len(names)


@pytest.mark.parametrize(
    "command", [("AUTH", "apprentice:user", "apprentice:password"), ("PUBLISH", "apprentice:c", 1)]
)
def test_what_names_no_key_stays_as_it_is(command: Sequence[Any]) -> None:
    assert tag_names(command) == command


@pytest.mark.parametrize(
    ("flags", "places", "owns"),
    [
        ("myself,master", "10923-16383", True),
        ("myself,master", f"1 {SLOT}", True),
        ("myself,master", "0-5460 [93->-other]", False),
        ("myself,slave", "", False),
        ("master", "10923-16383", False),
    ],
)
def test_a_node_owns_the_slot_where_its_own_line_has_it(flags: str, places: str, owns: bool) -> None:
    assert is_slot_owner(LINE.format(flags=flags, places=places).strip()) == owns


def test_there_is_no_connection_while_the_keys_of_the_slot_move() -> None:
    with pytest.raises(Disconnected, match="moved one by one"):
        is_slot_owner(LINE.format(flags="myself,master", places=f"10923-16383 [{SLOT}->-other]"))


def test_the_owner_of_the_slot_and_its_replicas_are_read_from_the_list_of_slots() -> None:
    nodes = [[b"owner", 7000, b"id"], [None, 7001, b"id"], [b"?", 7002, b"id"]]
    slots = [[0, 10922, [b"other", 7003, b"id"]], [10923, 16383, *nodes]]
    assert read_shard(slots, "asked") == [("owner", 7000), ("asked", 7001)]
    with pytest.raises(Disconnected, match="no node owns"):
        read_shard(slots[:1], "asked")


def test_nodes_that_likely_own_the_slot_are_asked_first() -> None:
    nodes = Nodes([("a", 1), ("b", 1)])
    assert nodes.next(()) == ("a", 1)
    nodes.doubt(("a", 1))
    assert nodes.next(()) == ("b", 1)
    nodes.believe([("c", 1), ("a", 1)])
    assert [nodes.next(()), nodes.next({("c", 1)})] == [("c", 1), ("b", 1)], "a did not answer"
    nodes.trust(("a", 1))
    assert nodes.next({("c", 1)}) == ("a", 1)
    assert nodes.next({("a", 1), ("b", 1), ("c", 1)}) is None


async def test_a_node_that_is_away_is_asked_last() -> None:
    async with valkey_cluster() as cluster:
        url = cluster.url.replace("://", f"://127.0.0.1:{free_port()},")
        async with open_async_redis(url) as redis:
            assert await redis.ping()
