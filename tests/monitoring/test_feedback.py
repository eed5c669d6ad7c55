from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.feedback import (
    FEEDBACK_PER_REQUEST_MAX,
    STREAM_KEY,
    Coverage,
    Feedback,
    FeedbackStore,
    Receipt,
    WordSeals,
    handle_of,
)
from monitoring.feedback_erasure import PARTIAL_KEY, erase_feedback_words, seal_stream
from monitoring.helper_process import JobError
from monitoring.ids import RequestIds
from monitoring.records import Record, RecordStream
from monitoring.texts import Resealing, Seals
from tests.walks.review_world import find_in_redis

IDS = RequestIds(b"secret")
RETENTION_SECONDS = 3600


def judgement(feedback_id: str = "f1", value: bool | float | str = True, **fields: Any) -> Feedback:
    usual: dict[str, Any] = {"metric": "correct", "at": time.time(), "caller": "caller1"}
    return Feedback(feedback_id=feedback_id, value=value, **{**usual, **fields})


@pytest.fixture
def store(redis: Redis) -> FeedbackStore:
    return FeedbackStore(redis, RETENTION_SECONDS, 1000)


async def test_judgements_of_one_request_have_a_bound_in_bytes(redis: Redis, request_id: str) -> None:
    store = FeedbackStore(redis, RETENTION_SECONDS, 1000, request_bytes_max=10_000)

    async def give(name: str, length: int) -> str:
        told = judgement(name, comment="x" * length)
        return (await store.give(request_id, told, "caller1", young=False)).outcome

    assert [await give(name, 4000) for name in ("a", "b", "c", "a")] == ["created", "created", "full", "same"]
    assert await give("d", 100) == "created"
    assert [one.feedback_id for one in await store.of(request_id)] == ["a", "b", "d"]
    reviewed = judgement("e", comment="x" * 4000, caller="anna", reviewed=True)
    assert (await store.give(request_id, reviewed, "*", young=False)).outcome == "created"


@pytest.fixture
async def request_id(redis: Redis) -> str:
    """A request of caller1 whose record is stored."""
    made = Record(
        id=IDS.make("caller1"), at=time.time(), endpoint="chat", caller="caller1", requested_model="returns",
        task="returns", version="returns@v3", pool="small",
    )  # fmt: skip
    await RecordStream(redis, RETENTION_SECONDS, 1000, STREAM_KEY, 1000).append([made])
    return made.id


async def test_feedback_on_a_record_is_created_and_in_the_stream(
    store: FeedbackStore, request_id: str, redis: Redis
) -> None:
    given = judgement(comment="Zeile 1\nline 2 ✓", demonstration={"decision": "deny"}, tags={"a": "b"}, rater="anna")
    receipt = await store.give(request_id, given, "caller1", young=False)
    assert receipt == Receipt("created", "f1", first=True, task="returns", version="returns@v3")
    assert await store.of(request_id) == [given]
    ((_, entry),) = await redis.xrange(STREAM_KEY)
    assert entry[b"request"].decode() == request_id
    assert entry[b"index"].decode().split("\n") == ["caller1", "returns", "returns@v3", "small"]
    assert msgspec.json.decode(entry[b"feedback"], type=Feedback) == given


async def test_the_same_feedback_again_changes_nothing(store: FeedbackStore, request_id: str, redis: Redis) -> None:
    first = judgement()
    await store.give(request_id, first, "caller1", young=False)
    again = await store.give(request_id, judgement(at=time.time() + 9), "caller1", young=False)
    assert (again.outcome, again.first) == ("same", False)
    assert await store.of(request_id) == [first]
    assert await redis.xlen(STREAM_KEY) == 1


@pytest.mark.parametrize(
    "changed",
    [{"value": False}, {"metric": "rating"}, {"rater": "bob"}, {"comment": "x"}, {"tags": {"a": "b"}}, {"value": 1.0}],
    ids=str,
)
async def test_the_same_id_with_another_judgement_is_a_conflict(
    store: FeedbackStore, request_id: str, changed: dict[str, Any]
) -> None:
    await store.give(request_id, judgement(), "caller1", young=False)
    assert (await store.give(request_id, judgement(**changed), "caller1", young=False)).outcome == "conflict"
    assert len(await store.of(request_id)) == 1


async def test_a_name_is_its_callers_alone(store: FeedbackStore, request_id: str) -> None:
    given = [
        (await store.give(request_id, judgement("f1", value, caller=caller), "*", young=False)).outcome
        for caller, value in (("anna", True), ("ben", True), ("carl", False), ("ben", True), ("ben", False))
    ]
    assert given == ["created", "created", "created", "same", "conflict"], "none is told what another one said"
    assert [(one.feedback_id, one.caller) for one in await store.of(request_id)] == [
        ("f1", "anna"), ("f1", "ben"), ("f1", "carl")
    ]  # fmt: skip
    unnamed = judgement("g", caller="dora", named=False)
    assert (await store.give(request_id, unnamed, "*", young=False)).feedback_id == "g"
    again = await store.give(request_id, judgement("h", caller="dora", named=False), "*", young=False)
    assert (again.outcome, again.feedback_id) == ("same", "g")


async def test_a_name_that_an_earlier_release_kept_is_still_its_callers(
    store: FeedbackStore, request_id: str, redis: Redis
) -> None:
    given = judgement(caller="anna")
    await store.give(request_id, given, "*", young=False)
    key = f"apprentice:feedback:{request_id}"
    ((field, kept),) = (await redis.hgetall(key)).items()
    await redis.delete(key, f"{key}:latest")
    await redis.hset(key, field.partition(b"\t")[2], kept)  # as it was kept
    again = await store.give(request_id, given, "*", young=False)
    assert (again.outcome, again.feedback_id) == ("same", "f1")
    other = judgement(value=False, caller="anna")
    assert (await store.give(request_id, other, "*", young=False)).outcome == "conflict"
    assert (await store.give(request_id, judgement(caller="bob"), "*", young=False)).outcome == "created"


async def test_a_second_judgement_is_created_but_not_the_first(store: FeedbackStore, request_id: str) -> None:
    await store.give(request_id, judgement("f1"), "caller1", young=False)
    second = await store.give(request_id, judgement("f2", value=False), "caller1", young=False)
    assert (second.outcome, second.first) == ("created", False)
    assert [one.feedback_id for one in await store.of(request_id)] == ["f1", "f2"]


@pytest.mark.invariant("Feedback is stored once, and only from those who may judge.")
async def test_nobody_judges_anothers_request_but_operators_do(store: FeedbackStore, request_id: str) -> None:
    for young in (False, True):
        assert (await store.give(request_id, judgement(), "caller2", young=young)).outcome == "unknown"
    assert await store.of(request_id) == []
    assert (await store.give(request_id, judgement(), "*", young=False)).outcome == "created"


async def test_an_old_id_without_a_record_is_unknown(store: FeedbackStore, redis: Redis) -> None:
    for giver in ("caller1", "*"):
        assert (await store.give(IDS.make("caller1"), judgement(), giver, young=False)).outcome == "unknown"
    assert await redis.dbsize() == 0


async def test_a_young_id_without_a_record_is_pending_and_then_the_same(store: FeedbackStore, redis: Redis) -> None:
    request_id = IDS.make("caller1")
    first = await store.give(request_id, judgement(), "caller1", young=True)
    assert first == Receipt("pending", "f1", first=True)
    assert (await store.give(request_id, judgement(), "caller1", young=True)).outcome == "same"
    assert (await store.give(request_id, judgement(value=False), "caller1", young=True)).outcome == "conflict"
    assert await redis.xlen(STREAM_KEY) == 0
    for key in [key async for key in redis.scan_iter()]:
        assert 0 < await redis.pttl(key) <= RETENTION_SECONDS * 1000


async def test_a_request_is_judged_only_so_often(store: FeedbackStore, request_id: str) -> None:
    for number in range(FEEDBACK_PER_REQUEST_MAX):
        assert (await store.give(request_id, judgement(f"f{number}"), "caller1", young=False)).outcome == "created"
    assert (await store.give(request_id, judgement("one more"), "caller1", young=False)).outcome == "full"
    assert (await store.give(request_id, judgement("f7"), "caller1", young=False)).outcome == "same"
    reviewed = judgement("a reviewer's", caller="anna", reviewed=True)
    assert (await store.give(request_id, reviewed, "*", young=False)).outcome == "created", (
        "its caller can't prevent it"
    )


@pytest.mark.invariant("Feedback is stored once, and only from those who may judge.")
async def test_one_of_many_who_send_the_same_at_once_creates_it(store: FeedbackStore, request_id: str) -> None:
    sent = [store.give(request_id, judgement(), "caller1", young=False) for _ in range(20)]
    given = [receipt.outcome for receipt in await asyncio.gather(*sent)]
    assert sorted(given) == ["created"] + ["same"] * 19


NAME = "Vanderbilt"
WORDED: dict[str, Any] = {
    "comment": f"{NAME} says no",
    "demonstration": {"to": NAME},
    "tags": {"class": "wool", "note": NAME},
    "demonstration_digests": {"judge": "0badcafe"},
}


class Keys:
    """A store whose keys change: those that are known, and the one that seals."""

    def __init__(self, redis: Redis) -> None:
        self.store = FeedbackStore(redis, RETENTION_SECONDS, 1000, seals=lambda: self.words)
        self.use(None)

    def use(self, sealing: str | None, *others: str) -> None:
        known = {name: name.encode().ljust(32) for name in (sealing, *others) if name is not None}
        self.words = WordSeals(Seals(known, sealing), frozenset({"class"}))

    async def reseal(self) -> Resealing:
        resealing = Resealing()
        await self.store.reseal(resealing)
        return resealing

    async def give(self, request: str, feedback: Feedback) -> str:
        return (await self.store.give(request, feedback, "caller1", young=False)).outcome


@pytest.fixture
def keys(redis: Redis) -> Keys:
    return Keys(redis)


async def test_sealed_words_are_in_no_byte_of_redis_and_known_again(keys: Keys, request_id: str, redis: Redis) -> None:
    named, unnamed = judgement(**WORDED), judgement("f2", **WORDED, named=False, rater="bob")
    keys.use("k1")
    assert [await keys.give(request_id, each) for each in (named, unnamed, named)] == ["created", "created", "same"]
    assert await keys.give(request_id, judgement("f3", **WORDED, named=False, rater="bob")) == "same"
    plain = hashlib.sha256(named.content()).hexdigest()
    assert await find_in_redis(redis, NAME.encode()) == await find_in_redis(redis, plain.encode()) == []
    assert await keys.store.of(request_id) == [named, unnamed]
    (_, entry), _ = await redis.xrange(STREAM_KEY)
    given = msgspec.json.decode(entry[b"feedback"], type=Feedback)
    assert (given.key, given.tags, given.demonstration_digests) == ("k1", {"class": "wool"}, {"judge": "0badcafe"})
    assert await keys.give(request_id, judgement(**WORDED | {"comment": "no"})) == "conflict"


async def test_words_of_before_or_under_an_old_key_come_under_the_present_one(
    keys: Keys, request_id: str, redis: Redis
) -> None:
    feedback = [judgement(f"f{n}", **WORDED, named=n != 2, rater=f"r{n}") for n in range(3)] + [judgement("bare")]
    assert [await keys.give(request_id, each) for each in feedback[:2]] == ["created"] * 2
    keys.use("k1")
    assert [await keys.give(request_id, each) for each in feedback[:3]] == ["same", "same", "created"]
    assert await keys.give(request_id, feedback[3]) == "created"
    for known, old in ((("k1",), 2), (("k2", "k1"), 3), (("k1", "k2"), 3)):
        keys.use(*known)
        assert await keys.store.of(request_id) == feedback
        assert [await keys.reseal() for _ in range(2)] == [Resealing(old, 0), Resealing(0, 0)]
        keys.use(known[0])
        assert await keys.store.of(request_id) == feedback
        assert [await keys.give(request_id, each) for each in feedback] == ["same"] * 4
        hashes = [key for key in await find_in_redis(redis, NAME.encode()) if key != STREAM_KEY]
        digests = await find_in_redis(redis, hashlib.sha256(feedback[0].content()).hexdigest().encode())
        assert hashes == digests == []
    keys.use("k1")
    assert await keys.give(request_id, judgement("f9", **WORDED, named=False, rater="r2")) == "same"
    assert 0 < await redis.pttl(f"apprentice:feedback:{request_id}") <= RETENTION_SECONDS * 1000


async def test_a_name_of_two_lines_is_known_again(keys: Keys, request_id: str) -> None:
    keys.use("k1")
    assert await keys.give(request_id, judgement("one\ntwo", **WORDED)) == "created"
    assert await keys.give(request_id, judgement("f2", **WORDED, named=False)) == "same"
    keys.use("k2", "k1")
    assert await keys.reseal() == Resealing(1, 0)
    keys.use("k2")
    assert await keys.give(request_id, judgement("f3", **WORDED, named=False)) == "same"


async def test_words_under_a_lost_key_stay_and_stop_nothing(keys: Keys, request_id: str, redis: Redis) -> None:
    keys.use("lost")
    lost, plain = judgement("lost", **WORDED), judgement("plain", **WORDED, rater="bob")
    await keys.give(request_id, lost)
    keys.use(None)
    await keys.give(request_id, plain)
    key = f"apprentice:feedback:{request_id}"
    before = await redis.hgetall(key)
    keys.use("new")
    assert await keys.reseal() == Resealing(1, 1)
    after = await redis.hgetall(key)
    assert {name for name in after if after[name] != before[name]} == {b"caller1\tplain"}
    first, second = await keys.store.of(request_id)
    assert (first.value, first.key, first.comment, first.tags) == (True, "lost", None, {"class": "wool"})
    assert second == plain
    keys.use("new", "lost")
    assert await keys.store.of(request_id) == [lost, plain]


async def test_the_stream_is_sealed_under_the_same_ids(
    keys: Keys, request_id: str, redis: Redis, valkey_socket: str
) -> None:
    feedback = [judgement(f"f{n}", **WORDED, rater=f"r{n}") for n in range(2)]
    await keys.give(request_id, feedback[0])
    keys.use("k1")
    await keys.give(request_id, feedback[1])
    await redis.xadd(STREAM_KEY, {"request": "x"})
    before = await redis.xrange(STREAM_KEY)
    with Client(unix_socket_path=valkey_socket) as client:
        keys.use("k2", "k1")
        for is_left in (True, False):
            seal_stream(client, keys.words, resealing := Resealing())
            assert bool(resealing.sealed) == is_left
    after = await redis.xrange(STREAM_KEY)
    assert [entry for entry, _ in after] == [entry for entry, _ in before]
    given = [msgspec.json.decode(fields[b"feedback"], type=Feedback) for _, fields in after[:2]]
    assert [each.key for each in given] == ["k2", "k2"]
    assert [keys.words.read(each, request_id) for each in given] == feedback
    assert after[2] == before[2], "what nobody can read stays"


async def test_a_stream_without_room_beside_it_stays_and_leaves_nothing(redis: Redis, valkey_socket: str) -> None:
    body = msgspec.json.encode(judgement(comment="x" * 1000))
    async with redis.pipeline() as pipe:
        for number in range(2000):
            pipe.xadd(STREAM_KEY, {"request": f"r{number}", "feedback": body})
        await pipe.execute()
    words, resealing = WordSeals(Seals({"k1": bytes(32)}, "k1")), Resealing()
    with Client(unix_socket_path=valkey_socket) as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)
        try:
            with pytest.raises(JobError, match="raise its maxmemory"):
                erase_feedback_words(client, {"r1999"})
            assert not client.exists(PARTIAL_KEY)
            seal_stream(client, words, resealing)
            assert (resealing.sealed > 0, client.exists(PARTIAL_KEY)) == (True, 0), "it is looked at again"
        finally:
            client.config_set("maxmemory", 0)
        ((_, entry),) = client.xrange(STREAM_KEY, count=1)
        assert entry[b"feedback"] == body
        seal_stream(client, words, resealing)
        ((_, entry),) = client.xrange(STREAM_KEY, count=1)
    assert msgspec.json.decode(entry[b"feedback"], type=Feedback).key == "k1"


class Meanwhile(Client):
    """A client whose first reading of a request's feedback is followed at once by something else."""

    then: Callable[[], object] | None = None

    def hgetall(self, name: str) -> Any:
        entries, (then, self.then) = super().hgetall(name), (self.then, None)
        if then is not None:
            then()
        return entries


async def test_erasure_brings_back_no_feedback_that_expired_meanwhile(
    store: FeedbackStore, request_id: str, redis: Redis, valkey_socket: str
) -> None:
    await store.give(request_id, judgement(comment="red"), "caller1", young=False)
    with Meanwhile(unix_socket_path=valkey_socket) as client:
        client.then = lambda: client.delete(f"apprentice:feedback:{request_id}")
        erase_feedback_words(client, {request_id})
    assert await redis.exists(f"apprentice:feedback:{request_id}") == 0


async def test_erasure_takes_the_words_of_feedback_that_comes_or_changes_meanwhile(
    store: FeedbackStore, request_id: str, redis: Redis, valkey_socket: str
) -> None:
    await store.give(request_id, judgement(comment="red"), "caller1", young=False)
    key, name = f"apprentice:feedback:{request_id}", "caller1\tf1"
    with Meanwhile(unix_socket_path=valkey_socket) as client:

        def change() -> None:
            entry = client.hget(key, name)
            client.hset(key, mapping={name: entry.replace(b"red", b"blue"), "caller1\tf2": entry})

        client.then = change
        erase_feedback_words(client, {request_id})
    entries = await redis.hgetall(key)
    assert (len(entries), any(b"red" in entry or b"blue" in entry for entry in entries.values())) == (2, False)


async def test_a_class_tag_that_is_named_later_gets_plain(keys: Keys, request_id: str, redis: Redis) -> None:
    keys.use("k1")
    given = judgement(**WORDED | {"tags": {"class": "wool", "colour": "red"}})
    await keys.give(request_id, given)
    mark, keys.words = keys.words.mark, WordSeals(keys.words.seals, frozenset({"class", "colour"}))
    assert keys.words.mark != mark
    assert [await keys.reseal() for _ in range(2)] == [Resealing(1, 0), Resealing(0, 0)]
    (raw,) = await redis.hvals(f"apprentice:feedback:{request_id}")
    stored = msgspec.json.decode(raw.split(b"\n", 2)[2], type=Feedback)
    assert (stored.key, stored.tags, stored.comment) == ("k1", given.tags, None)
    assert await keys.store.of(request_id) == [given]


@given(st.sampled_from([True, False, 0.0, 1.0, "true", "1"]), st.sampled_from([True, False, 0.0, 1.0, "true", "1"]))
def test_values_of_different_kinds_are_different_judgements(one: Any, other: Any) -> None:
    same = (type(one), one) == (type(other), other)
    assert (judgement(value=one).content() == judgement(value=other).content()) == same


def test_the_order_of_keys_makes_no_other_judgement() -> None:
    one = judgement(tags={"a": "1", "b": "2"}, demonstration={"x": 1, "y": {"p": 1, "q": 2}})
    other = judgement(tags={"b": "2", "a": "1"}, demonstration={"y": {"q": 2, "p": 1}, "x": 1})
    assert one.content() == other.content()


def test_coverage_is_of_what_was_served() -> None:
    coverage = Coverage()
    assert coverage.ratios() == {}
    for _ in range(4):
        coverage.served("returns")
    coverage.judged("returns")
    coverage.judged("elsewhere")
    assert coverage.ratios() == {("returns",): 0.25}


def test_a_handle_tells_nothing_and_belongs_to_one_caller_and_one_kind() -> None:
    handles = {
        handle_of(secret, caller, kind, "order 7")
        for secret in (b"one", b"two")
        for caller in ("caller1", "caller2")
        for kind in ("session", "subject", "answer")
    }
    assert len(handles) == 12
    assert all(len(handle) == 32 and "order" not in handle for handle in handles)
