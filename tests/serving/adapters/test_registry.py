from redis.asyncio import Redis

from serving.adapters.artifact import Artifact
from serving.adapters.manifest import from_json
from serving.adapters.registry import Registry
from serving.shelf import Shelf

ARTIFACT = Artifact("sha256:" + "a" * 64, 4, 8.0, ("q_proj",), "F32", 100, "sha256:" + "b" * 64)
MANIFEST = from_json({"task": "returns", "blueprint": {"system": "Decide."}})


async def test_the_same_adapter_is_the_same_version_in_one_pool_and_another_in_the_next(redis: Redis) -> None:
    registry = Registry(redis)
    names = [
        (await registry.register("returns", pool, ARTIFACT, MANIFEST, "admin")).name for pool in ("one", "one", "two")
    ]
    assert names == ["returns@v1", "returns@v1", "returns@v2"]


async def test_an_alias_of_0_1_0_is_read_with_its_way_back(redis: Redis) -> None:
    shelf = Shelf(redis, "aliases")
    await shelf.put("returns", {"weights": {"returns@v2": 1.0}, "salt": "a", "previous": "returns@v1"})
    await shelf.put("contracts", {"weights": {"contracts@v1": 1.0}, "salt": "b", "previous": None})
    aliases = await Registry(redis).aliases()
    assert aliases["returns"].previous == ["returns@v1"]
    assert aliases["contracts"].previous == []
    assert (await Registry(redis).alias("returns"))[0] == aliases["returns"]


async def test_a_new_version_takes_no_name_that_a_newer_release_has_taken(redis: Redis) -> None:
    await Shelf(redis, "versions").put("returns@v2", {"state": "paused"})
    await Shelf(redis, "versions").put("returns-eu@v7", {"state": "paused"})
    made = await Registry(redis).register("returns", "one", ARTIFACT, MANIFEST, "admin")
    assert made.name == "returns@v3"
