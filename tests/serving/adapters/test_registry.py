from redis.asyncio import Redis

from serving.adapters.artifact import Artifact
from serving.adapters.manifest import from_json
from serving.adapters.registry import Registry

ARTIFACT = Artifact("sha256:" + "a" * 64, 4, 8.0, ("q_proj",), "F32", 100, "sha256:" + "b" * 64)
MANIFEST = from_json({"task": "returns", "blueprint": {"system": "Decide."}})


async def test_the_same_adapter_is_the_same_version_in_one_pool_and_another_in_the_next(redis: Redis) -> None:
    registry = Registry(redis)
    names = [
        (await registry.register("returns", pool, ARTIFACT, MANIFEST, "admin")).name for pool in ("one", "one", "two")
    ]
    assert names == ["returns@v1", "returns@v1", "returns@v2"]
