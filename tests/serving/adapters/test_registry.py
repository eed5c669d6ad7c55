import asyncio
from dataclasses import replace
from typing import Literal

import pytest
from redis.asyncio import Redis

from serving.adapters.manifest import from_json
from serving.adapters.registry import Registry
from serving.adapters.verification import Artifact
from serving.object_store import Change, ObjectStore, Stale, Unchanged

ARTIFACT = Artifact("sha256:" + "a" * 64, 4, 8.0, ("q_proj",), "F32", 100, "sha256:" + "b" * 64)
MANIFEST = from_json({"task": "returns", "general_prompt": {"system": "Decide."}})


async def test_the_same_adapter_is_the_same_version_in_one_pool_and_another_in_the_next(redis: Redis) -> None:
    registry = Registry(redis)
    names = [
        (await registry.register("returns", pool, ARTIFACT, MANIFEST, "admin")).name for pool in ("one", "one", "two")
    ]
    assert names == ["returns@v1", "returns@v1", "returns@v2"]


async def test_adapter_of_a_version_that_was_given_up_makes_a_new_one_at_once(redis: Redis) -> None:
    registry = Registry(redis)
    await registry.register("returns", "one", ARTIFACT, MANIFEST, "admin")
    await registry.withdraw("returns@v1", "draining")
    assert (await registry.register("returns", "one", ARTIFACT, MANIFEST, "admin")).name == "returns@v2"
    assert (await registry.register("returns", "one", ARTIFACT, MANIFEST, "admin")).name == "returns@v2"


async def test_an_alias_of_0_1_0_is_read_with_its_way_back(redis: Redis) -> None:
    object_store = ObjectStore(redis, "aliases")
    await object_store.put("returns", {"weights": {"returns@v2": 1.0}, "salt": "a", "previous": "returns@v1"})
    await object_store.put("contracts", {"weights": {"contracts@v1": 1.0}, "salt": "b", "previous": None})
    aliases = await Registry(redis).aliases()
    assert aliases["returns"].previous == ["returns@v1"]
    assert aliases["contracts"].previous == []
    assert (await Registry(redis).alias("returns"))[0] == aliases["returns"]


async def test_a_new_version_takes_no_name_that_a_newer_release_has_taken(redis: Redis) -> None:
    await ObjectStore(redis, "versions").put("returns@v2", {"state": "paused"})
    await ObjectStore(redis, "versions").put("returns-eu@v7", {"state": "paused"})
    made = await Registry(redis).register("returns", "one", ARTIFACT, MANIFEST, "admin")
    assert made.name == "returns@v3"


async def test_to_read_one_alias_of_many_asks_redis_no_more_than_of_few(redis: Redis) -> None:
    registry = Registry(redis)

    async def count_commands() -> int:
        before = (await redis.info("stats"))["total_commands_processed"]
        await registry.alias("returns")
        await registry.generation("returns@v1")
        after = (await redis.info("stats"))["total_commands_processed"]
        return int(after - before)

    of_few = await count_commands()
    await redis.hset("apprentice:aliases:generations", mapping={f"task-{at}": 1 for at in range(2000)})
    await redis.hset("apprentice:versions:generations", mapping={f"task-{at}@v1": 1 for at in range(2000)})
    assert await count_commands() == of_few


async def test_an_alias_does_not_move_where_what_goes_with_it_has_moved_on(redis: Redis) -> None:
    registry, noted = Registry(redis), ObjectStore(redis, "noted")
    for artifact in (ARTIFACT, replace(ARTIFACT, digest="sha256:" + "c" * 64)):
        await registry.register("returns", "one", artifact, MANIFEST, "admin")
    states: tuple[Literal["staging"], Literal["ready"]] = ("staging", "ready")
    for name in ("returns@v1", "returns@v2"):
        for state in states:
            await registry.move(name, state)
        await registry.promote("returns", name)
    await noted.put("a", {})
    with pytest.raises(Stale):
        await registry.roll_back("returns", "returns@v1", 2, beside=Change(noted, "a", {}, 0))
    assert await registry.roll_back("returns", "returns@v1", 2, beside=Change(noted, "a", {"done": True}, 1))
    assert await noted.get("a") == {"done": True}


async def test_a_signature_that_comes_while_its_upload_is_called_off_is_not_taken(redis: Redis) -> None:
    registry, work = Registry(redis), ObjectStore(redis, "work")
    await registry.register("returns", "one", ARTIFACT, MANIFEST, "admin")
    await work.put("upload", {"state": "running"})
    await work.put("upload", {"state": "failed"})
    async with asyncio.timeout(60):
        with pytest.raises(Stale):
            await registry.register(
                *("returns", "one", ARTIFACT, MANIFEST, "admin", "ada", "signature"),
                noted=lambda *_: [Unchanged(work, "upload", 1)],
            )
    assert (await registry.version("returns@v1")).signed_by is None
