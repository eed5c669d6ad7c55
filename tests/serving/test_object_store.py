from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from serving.object_store import (
    CHANGED_CHANNEL,
    CHANGES_KEY,
    CONVERTING_SECONDS_MAX,
    GENERATION_KEY,
    NAMES,
    Change,
    Mirror,
    ObjectStore,
    Stale,
    Unchanged,
    Unreadable,
    change_together,
)


@pytest.fixture
def object_store(redis: Redis) -> ObjectStore:
    return ObjectStore(redis, "aliases")


async def whole(redis: Redis) -> int:
    return int(await redis.get(GENERATION_KEY) or 0)


async def test_an_object_reads_back_as_it_was_put(object_store: ObjectStore) -> None:
    value = {"weights": {"returns@v1": 0.25}, "note": "ä\n✓", "none": None, "many": [1, 2.5, True]}
    assert await object_store.put("returns", value) == 1
    assert await object_store.get("returns") == value
    assert await object_store.all() == {"returns": value}


async def test_what_was_never_put_is_not_there(object_store: ObjectStore) -> None:
    assert await object_store.get("returns") is None
    assert await object_store.all() == {}
    assert await object_store.generations() == {}


async def test_every_change_raises_the_objects_generation_and_the_whole_states(
    object_store: ObjectStore, redis: Redis
) -> None:
    assert [await object_store.put("a", {"n": n}) for n in range(3)] == [1, 2, 3]
    assert await object_store.put("b", {}) == 1
    assert await object_store.generations() == {"a": 3, "b": 1}
    assert await whole(redis) == 4


@pytest.mark.invariant("No change to state happens without its generation.")
async def test_a_change_to_another_generation_than_expected_is_stale_and_changes_nothing(
    object_store: ObjectStore, redis: Redis
) -> None:
    await object_store.put("a", {"n": 1}, expected_generation=0)
    await object_store.put("a", {"n": 2}, expected_generation=1)
    for expected in (0, 1, 3):
        with pytest.raises(Stale) as raised:
            await object_store.put("a", {"n": 9}, expected_generation=expected)
        assert raised.value.generation == 2
        assert "a is at generation 2" in str(raised.value)
        with pytest.raises(Stale):
            await object_store.delete("a", expected_generation=expected)
    assert await object_store.get("a") == {"n": 2}
    assert await whole(redis) == 2


async def test_a_deleted_object_is_gone_and_its_generation_goes_on(object_store: ObjectStore) -> None:
    await object_store.put("a", {"n": 1})
    assert await object_store.delete("a", expected_generation=1) == 2
    assert await object_store.get("a") is None
    assert await object_store.all() == {}
    with pytest.raises(Stale):
        await object_store.put("a", {"n": 1}, expected_generation=0)
    assert await object_store.put("a", {"n": 3}) == 3


async def test_what_is_forgotten_leaves_no_generation(object_store: ObjectStore) -> None:
    await object_store.put("a", {"n": 1})
    await object_store.put("b", {"n": 1})
    await object_store.forget(["a", "never there"])
    assert (await object_store.all(), await object_store.generations()) == ({"b": {"n": 1}}, {"b": 1})


async def test_one_of_many_who_change_the_same_object_at_once_wins(object_store: ObjectStore) -> None:
    done = await asyncio.gather(
        *(object_store.put("a", {"n": n}, expected_generation=0) for n in range(20)), return_exceptions=True
    )
    assert [one for one in done if not isinstance(one, Stale)] == [1]
    assert await object_store.generations() == {"a": 1}


async def test_kinds_do_not_meet(redis: Redis) -> None:
    aliases, callers = ObjectStore(redis, "aliases"), ObjectStore(redis, "callers")
    await aliases.put("a", {"kind": "alias"})
    assert await callers.get("a") is None
    assert await callers.put("a", {"kind": "caller"}, expected_generation=0) == 1


async def test_every_change_is_told_with_the_new_generation_of_the_state(
    object_store: ObjectStore, redis: Redis
) -> None:
    async with redis.pubsub() as told:
        await told.subscribe(CHANGED_CHANNEL)
        await told.get_message(timeout=5)
        await object_store.put("a", {})
        await object_store.delete("a")
        with pytest.raises(Stale):
            await object_store.put("a", {}, expected_generation=0)
        heard = [await told.get_message(timeout=5) for _ in range(2)]
        assert [message["data"] for message in heard if message] == [b"1", b"2"]
        assert await told.get_message(timeout=0.05) is None


async def test_a_name_may_be_any_text(object_store: ObjectStore) -> None:
    for name in ("returns@v1", "ä ✓", "a:b\nc", "*", "0"):
        await object_store.put(name, {"name": name})
        assert await object_store.get(name) == {"name": name}


# ---- mirrors ---------------------------------------------------------------------------------------


class Converted:
    """The mirror's view of an object; all that were made stand in `made`, in order."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, name: str, value: dict[str, Any]) -> tuple[str, int]:
        self.made.append(name)
        return name, value["n"]


async def test_a_mirror_converts_again_only_what_has_changed(object_store: ObjectStore) -> None:
    converted = Converted()
    mirror = Mirror(object_store, converted)
    assert await mirror.all() == {}
    for n, name in enumerate("abc"):
        await object_store.put(name, {"n": n})
    first = await mirror.all()
    assert first == {"a": ("a", 0), "b": ("b", 1), "c": ("c", 2)}
    await object_store.put("b", {"n": 9})
    await object_store.put("c", {"n": 2})  # another generation, the same bytes
    second = await mirror.all()
    assert second == first | {"b": ("b", 9)}
    assert (second["a"] is first["a"], second["c"] is first["c"]) == (True, True)
    assert sorted(converted.made) == ["a", "b", "b", "c"]


async def test_what_is_deleted_is_gone_from_a_mirror_and_converted_anew_when_it_comes_back(
    object_store: ObjectStore,
) -> None:
    converted = Converted()
    mirror = Mirror(object_store, converted)
    await object_store.put("a", {"n": 1})
    first = await mirror.all()
    await object_store.delete("a")
    assert await mirror.all() == {}
    await object_store.put("a", {"n": 1})
    assert await mirror.all() == first
    assert converted.made == ["a", "a"]


async def test_a_mirror_reads_again_only_what_a_step_has_changed(object_store: ObjectStore, redis: Redis) -> None:
    mirror, other = Mirror(object_store, Converted()), ObjectStore(redis, "versions")
    await object_store.put("a", {"n": 1})
    first, generations = await mirror.all(), await mirror.generations()
    await other.put("a", {"n": 2})
    await redis.hset(object_store.values, "a", b'{"n":7}')  # to see when it is read
    await redis.hset(object_store.generation_names, "a", 7)
    assert await mirror.all() is first
    assert await mirror.generations() is generations
    await change_together(redis, [Change(other, "a", {"n": 3}), Change(object_store, "b", {"n": 4})])
    assert await mirror.all() == {"a": ("a", 1), "b": ("b", 4)}
    assert await mirror.generations() == {"a": 1, "b": 1}
    assert first == {"a": ("a", 1)}, "who has an older reading keeps it"
    await change_together(redis, [Change(object_store, "c", {"n": 5})])
    await change_together(redis, [Change(object_store, "b", None), Change(object_store, "c", {"n": 6})])
    assert await mirror.all() == {"a": ("a", 1), "c": ("c", 6)}
    assert await mirror.generations() == {"a": 1, "b": 2, "c": 2}


async def test_a_mirror_is_read_by_one_at_a_time(redis: Redis) -> None:
    """Or else one that had nothing to read would set its mark over the objects of an older reading."""
    entered, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(ObjectStore):
        async def written(self, names: Collection[str] | None = None) -> dict[str, bytes]:
            values = await super().written(names)
            if not entered.is_set():
                entered.set()
                await goes_on.wait()
            return values

    object_store = Slow(redis, "aliases")
    mirror = Mirror(object_store, Converted())
    await object_store.put("a", {"n": 1})
    first = asyncio.create_task(mirror.all())
    await entered.wait()
    await object_store.put("b", {"n": 2})
    second = asyncio.create_task(mirror.all())
    for _ in range(20):  # more answers of Redis than a reading takes
        await redis.ping()
    assert not second.done()
    goes_on.set()
    assert await first == {"a": ("a", 1)}
    assert await second == {"a": ("a", 1), "b": ("b", 2)}


async def test_what_is_forgotten_is_gone_from_a_mirror_with_its_generation(object_store: ObjectStore) -> None:
    mirror = Mirror(object_store, Converted())
    for name in "ab":
        await object_store.put(name, {"n": 1})
    await object_store.put("a", {"n": 2})
    assert await mirror.generations() == {"a": 2, "b": 1}
    assert len(await mirror.all()) == 2
    await object_store.forget(["a"])
    assert await mirror.generations() == {"b": 1}
    assert await mirror.all() == {"b": ("b", 1)}
    assert await object_store.put("a", {"n": 3}, expected_generation=0) == 1


async def test_a_mirror_reads_all_after_more_changes_than_names_are_kept(
    object_store: ObjectStore, redis: Redis
) -> None:
    mirror = Mirror(object_store, Converted())
    await object_store.put("a", {"n": 1})
    await mirror.all()
    await redis.hset(object_store.values, "a", b'{"n":7}')  # to see when it is read
    for some in range(5):
        await change_together(redis, [Change(object_store, f"{some}-{n}", {"n": n}) for n in range(200)])
    assert (await mirror.all())["a"] == ("a", 7)
    assert len(await mirror.all()) == 1001
    assert await redis.hstrlen(CHANGES_KEY, object_store.values + NAMES) <= 16384


async def test_a_mirror_reads_all_where_a_release_left_no_names(object_store: ObjectStore, redis: Redis) -> None:
    mirror = Mirror(object_store, Converted())
    await object_store.put("a", {"n": 1})
    for n, follows in enumerate((False, True)):
        await mirror.all()
        await redis.hset(object_store.values, "a", msgspec.json.encode({"n": n}))
        await redis.hset(CHANGES_KEY, object_store.values, f"token{n}")
        if follows:
            await object_store.put("b", {"n": n})
        assert (await mirror.all())["a"] == ("a", n)


async def test_a_mirror_reads_what_a_release_has_changed_that_leaves_no_token(
    object_store: ObjectStore, redis: Redis
) -> None:
    mirror = Mirror(object_store, Converted())
    for n in range(3):
        await redis.hset(object_store.values, "a", msgspec.json.encode({"n": n}))
        await redis.incr(GENERATION_KEY)
        assert (await mirror.all())["a"] == ("a", n)
        await object_store.put("b", {"n": n})
        assert await mirror.all() == {"a": ("a", n), "b": ("b", n)}


async def test_a_mirror_reads_again_where_redis_has_lost_what_it_had(object_store: ObjectStore, redis: Redis) -> None:
    """As many steps as before are not the same steps."""
    mirror = Mirror(object_store, Converted())
    await object_store.put("a", {"n": 1})
    await mirror.all()
    await redis.flushdb()
    await object_store.put("a", {"n": 2})
    assert await mirror.all() == {"a": ("a", 2)}
    await redis.flushdb()
    assert await mirror.all() == {}


async def test_a_mirror_has_one_that_can_not_be_read_as_it_was_and_says_so_once(
    object_store: ObjectStore, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(object_store, lambda _, raw: msgspec.convert(raw, dict[str, int]))
    for name in "abc":
        await object_store.put(name, {"n": 1})
    first = await mirror.all()
    await object_store.put("a", {"n": "of another time"})
    for name, damaged in (("b", b"{"), ("d", b"\xff")):
        await object_store.put(name, {})
        await redis.hset(object_store.values, name, damaged)
    await object_store.put("c", {"n": 2})
    for _ in range(3):
        assert await mirror.all() == first | {"c": {"n": 2}}
    assert len(caplog.records) == 3
    for name in "abd":
        await object_store.put(name, {"n": 3})
    assert await mirror.all() == {"a": {"n": 3}, "b": {"n": 3}, "c": {"n": 2}, "d": {"n": 3}}
    await object_store.put("a", {"n": "again"})
    assert (await mirror.all())["a"] == {"n": 3}
    assert len(caplog.records) == 4


async def test_a_mirror_that_keeps_nothing_leaves_out_what_can_not_be_read(
    object_store: ObjectStore, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(object_store, lambda _, raw: msgspec.convert(raw, dict[str, int]), keeps=False)
    for name in "ab":
        await object_store.put(name, {"n": 1})
    await mirror.all()
    await object_store.put("a", {"n": "of another time"})
    await object_store.put("c", {})
    await redis.hset(object_store.values, "c", b"[]")
    for _ in range(3):
        assert await mirror.all() == {"b": {"n": 1}}
    assert mirror.unreadable == {"a", "c"}
    assert len(caplog.records) == 2
    await object_store.put("a", {"n": 2})
    await object_store.delete("c")
    assert await mirror.all() == {"a": {"n": 2}, "b": {"n": 1}}
    assert not mirror.unreadable


async def test_what_moves_just_after_it_was_looked_at_is_looked_at_again(redis: Redis) -> None:
    moving = ObjectStore(redis, "aliases")

    class Moved(ObjectStore):
        """Another gateway writes in between, three times."""

        left = 3

        def see_that_it_can_be_read(self, name: str, raw: bytes) -> None:
            self.left -= 1
            super().see_that_it_can_be_read(name, raw)

    object_store = Moved(redis, "aliases", lambda _, raw: msgspec.convert(raw, dict[str, int]))
    await moving.put("a", {"n": 0})

    async def move() -> None:
        while object_store.left > 0:
            await moving.put("a", {"n": 1})

    await asyncio.gather(move(), *(object_store.put("a", {"n": n}) for n in range(3)))
    assert object_store.left <= 0


async def test_a_step_that_rests_on_what_can_not_be_read_is_not_taken(redis: Redis) -> None:
    object_store = ObjectStore(redis, "aliases", lambda _, raw: msgspec.convert(raw, dict[str, int]))
    generation = await ObjectStore(redis, "aliases").put("a", {"n": "of another time"})
    with pytest.raises(Unreadable, match="newer release"):
        await change_together(redis, [Change(object_store, "b", {"n": 1}), Unchanged(object_store, "a", generation)])
    assert await object_store.get("b") is None


async def test_one_that_can_not_be_converted_is_an_error_until_it_is_mended(object_store: ObjectStore) -> None:
    mirror = Mirror(object_store, Converted())
    await object_store.put("a", {"n": 1})
    first = await mirror.all()
    await object_store.put("b", {})
    for _ in range(2):
        with pytest.raises(KeyError):
            await mirror.all()
    await object_store.put("b", {"n": 2})
    second = await mirror.all()
    assert second["a"] is first["a"]
    assert second["b"] == ("b", 2)


async def test_others_have_the_loop_while_a_mirror_converts_many(object_store: ObjectStore, redis: Redis) -> None:
    many = 20
    await change_together(redis, [Change(object_store, f"{n}", {"n": n}) for n in range(many)])
    seen: set[int] = set()

    class Slow(Converted):
        def __call__(self, name: str, value: dict[str, Any]) -> tuple[str, int]:
            until = time.monotonic() + CONVERTING_SECONDS_MAX
            while time.monotonic() < until:
                pass
            return super().__call__(name, value)

    converted = Slow()

    async def look() -> None:
        while True:
            seen.add(len(converted.made))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    assert len(await Mirror(object_store, converted).all()) == many
    looking.cancel()
    assert seen >= set(range(many))


async def test_what_is_damaged_of_one_object_hides_no_other(object_store: ObjectStore, redis: Redis) -> None:
    assert await object_store.put("a", {}) == 1
    await redis.hset(object_store.values, mapping={b"\xff": b"{}"})
    await redis.hset(object_store.generation_names, mapping={"b": b"many", b"\xff": b"1"})
    assert (await object_store.written())["a"] == b"{}"
    assert (await object_store.generations())["a"] == 1
    assert [await object_store.generation(name) for name in ("a", "c")] == [1, 0]
    with pytest.raises(Unreadable):
        await object_store.generation("b")
    await redis.hset(object_store.values, mapping={"d": b"{", "e": b"[]"})
    assert (await object_store.all())["a"] == {}
    assert not {"d", "e"} & (await object_store.all()).keys()
    for name in ("d", "e"):
        with pytest.raises(Unreadable):
            await object_store.get(name)
