"""Reviews in Redis: the budget of seven days, what expires, what is pushed out, and how many are counted."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.reviews.store import (
    DELETED_AT_ONCE,
    UNREAD,
    KeptReview,
    Leased,
    NoneLeft,
    Review,
    ReviewStore,
    Skip,
)
from gateway.state.audited_step import AuditedStep
from monitoring.audit import Audit
from monitoring.texts import FORGOTTEN_KEY, Resealing, Seals

DAY = 86_400.0
START = 1_800_000_000.0


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis: Redis, clock: Clock) -> ReviewStore:
    return ReviewStore(redis, clock)


def review(number: int, task: str = "returns") -> Review:
    return Review(
        request_id=f"r{number}",
        task=task,
        version="returns@v1",
        pool="small",
        reason="adapter",
        at=START,
        probability=0.1,
        caller="abcdefghijkl",
        endpoint="chat",
        messages=[{"role": "user", "content": "A vase."}],
        answer="No.",
        tools=[{"type": "function", "function": {"name": "refund", "description": "Pay a vase back."}}],
        parallel_tool_calls=False,
    )


async def keep(store: ReviewStore, number: int, budget: int = 10, waiting_max: int = 100) -> KeptReview:
    return await store.keep(review(number), budget, 14 * DAY, waiting_max)


async def taken(store: ReviewStore, reviewer: str) -> str | NoneLeft:
    found = await store.next("returns", reviewer, 60.0, 14 * DAY)
    return found.review.request_id if isinstance(found, Leased) else found


async def test_what_is_kept_is_given_as_it_was_and_keeping_it_again_changes_nothing(store: ReviewStore) -> None:
    assert (await keep(store, 1)).outcome == "kept"
    assert (await keep(store, 1)).outcome == "same"
    assert (await store.counts({"returns": 14 * DAY}))["returns"].drawn == 1
    found = await store.next("returns", "anna", 60.0, 14 * DAY)
    assert isinstance(found, Leased)
    assert found == Leased(review(1), START + 60, True)
    assert await store.task_of("r1") == "returns"


@pytest.mark.invariant("No seven days have more reviews than the budget.")
async def test_no_seven_days_have_more_draws_than_the_budget_wherever_they_begin(
    store: ReviewStore, clock: Clock
) -> None:
    kept_at = []
    for number in range(400):
        clock.now += 3 * 3600 + 700
        if (await keep(store, number, budget=20, waiting_max=1000)).outcome == "kept":
            kept_at.append(clock.now)
    assert max(sum(first <= at <= first + 7 * DAY for at in kept_at) for first in kept_at) == 20
    weeks = (clock.now - START) / (7 * DAY)
    assert len(kept_at) >= 20 * (weeks - 1), "and as many are drawn as may be"


@pytest.mark.invariant("No text of a review is taken in once it is erased.")
@pytest.mark.parametrize("name", ["r1", "caller:abcdefghijkl", "a subject's handle"])
async def test_a_review_that_comes_after_its_erasure_is_not_taken_in(
    store: ReviewStore, redis: Redis, name: str
) -> None:
    await redis.set(FORGOTTEN_KEY + name, round(START * 1000))
    late = await store.keep(review(1), 10, 14 * DAY, handles=["a session's", "a subject's handle"])
    assert late.outcome == "forgotten"
    assert (await store.counts({"returns": 14 * DAY}))["returns"].drawn == 0
    newer = msgspec.structs.replace(review(1), at=START + 0.001)
    outcome = (await store.keep(newer, 10, 14 * DAY, handles=["a subject's handle"])).outcome
    assert outcome == "kept"


async def test_a_spent_budget_says_for_how_long_and_a_raised_one_is_open_at_once(
    store: ReviewStore, clock: Clock
) -> None:
    for number in range(3):
        assert (await keep(store, number, budget=3)).outcome == "kept"
    spent = await keep(store, 9, budget=3)
    assert spent.outcome == "spent"
    assert (await keep(store, 10, budget=4)).outcome == "kept"
    clock.now += spent.spent_seconds - 1
    assert (await keep(store, 11, budget=3)).outcome == "spent"
    clock.now += 1
    assert (await keep(store, 12, budget=3)).outcome == "kept"
    assert (await keep(store, 13, budget=0)).outcome == "spent"


async def test_the_budget_holds_however_many_keep_at_once(redis: Redis, clock: Clock) -> None:
    stores = [ReviewStore(redis, clock) for _ in range(4)]
    told = await asyncio.gather(*(keep(stores[number % 4], number, budget=7) for number in range(100)))
    assert [one.outcome for one in told].count("kept") == 7


async def test_more_than_may_wait_push_the_oldest_out_with_their_texts(store: ReviewStore, redis: Redis) -> None:
    for number in range(3):
        await keep(store, number, waiting_max=2)
        await asyncio.sleep(0)
    assert await store.task_of("r0") is None
    assert await taken(store, "anna") == "r1"
    assert (await keep(store, 3, waiting_max=2)).dropped == 1
    assert await redis.hgetall("apprentice:reviews:returns:leases") == {}, "its lease went with it"
    assert await taken(store, "anna") == "r2"


async def test_what_waits_for_longer_than_the_retention_is_gone_and_counted(
    store: ReviewStore, clock: Clock, redis: Redis
) -> None:
    await keep(store, 1)
    assert 13 * DAY < await redis.ttl("apprentice:review:r1") <= 14 * DAY
    clock.now += 14 * DAY + 1
    told = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (told.waiting, told.expired_now, told.expired) == (0, 1, 1)
    assert await store.task_of("r1") is None
    assert (await store.counts({"returns": 14 * DAY}))["returns"].expired_now == 0
    clock.now += 8 * DAY
    assert (await store.counts({"returns": 14 * DAY}))["returns"].expired == 0, "of the last seven days"


async def test_texts_that_redis_has_let_go_are_passed_over(store: ReviewStore, clock: Clock, redis: Redis) -> None:
    for number in (1, 2):
        await keep(store, number)
        clock.now += 1
    await redis.delete("apprentice:review:r1")
    assert await taken(store, "anna") == "r2"
    assert not await store.answer("returns", "r1", keep_on=True, retention_seconds=DAY)


async def test_an_answer_counts_once_whoever_had_the_lease(store: ReviewStore) -> None:
    await keep(store, 1)
    await taken(store, "anna")
    told = [await store.answer("returns", "r1", keep_on=True, retention_seconds=DAY) for _ in range(2)]
    assert told == [True, False]
    assert await store.kept_on("r1") == review(1)
    assert await store.kept_on("r2") is None
    assert await taken(store, "anna") == NoneLeft(0, 0)
    counts = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (counts.answered, counts.waiting, counts.leased) == (1, 0, 0)


async def test_skip_is_its_reviewers_alone_and_many_skips_do_not_hide_later_reviews(
    store: ReviewStore, clock: Clock
) -> None:
    for number in range(250):
        clock.now += 1
        await keep(store, number, budget=1000, waiting_max=1000)
    for number in range(240):
        assert await taken(store, "anna") == f"r{number}"
        skip = Skip(request_id=f"r{number}", by="anna", reason="too long")
        assert await store.skip("returns", skip, 14 * DAY) == "skipped"
    assert await store.skip("returns", Skip(request_id="r0", by="anna", reason="x"), 14 * DAY) == "other"
    assert await store.skip("returns", Skip(request_id="r999", by="anna", reason="x"), 14 * DAY) == "gone"
    assert await taken(store, "anna") == "r240"
    assert await taken(store, "ben") == "r0"
    counts = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (counts.skipped, len(counts.skips)) == (240, 20)
    assert (counts.skips[0].request_id, counts.skips[0].at) == ("r239", clock.now)


async def test_tasks_have_queues_and_budgets_of_their_own(store: ReviewStore) -> None:
    await keep(store, 1, budget=1)
    assert (await store.keep(review(2, "returns-eu"), 1, DAY)).outcome == "kept"
    found = await store.next("returns-eu", "anna", 60.0, DAY)
    assert isinstance(found, Leased)
    assert found.review.request_id == "r2"
    assert (await store.counts({"returns": DAY}))["returns"].waiting == 1


async def test_without_a_clock_of_its_own_it_goes_by_that_of_redis(redis: Redis) -> None:
    store = ReviewStore(redis)
    await keep(store, 1)
    seconds, micros = await redis.time()
    found = await store.next("returns", "anna", 60.0, DAY)
    assert isinstance(found, Leased)
    assert found.until == pytest.approx(seconds + micros / 1e6 + 60, abs=5)


def step(redis: Redis) -> AuditedStep:
    return AuditedStep(redis, Audit(redis), "ada")


async def texts(redis: Redis) -> set[str]:
    """The ids of the requests of which texts are kept."""
    keys = [key.decode() async for key in redis.scan_iter("apprentice:review*:r[0-9]*")]
    return {key.rpartition(":")[2] for key in keys}


async def test_the_texts_of_one_request_are_deleted_and_the_others_wait_on(store: ReviewStore, redis: Redis) -> None:
    for number in (1, 2, 3):
        await keep(store, number)
    assert await taken(store, "anna") == "r1"
    await store.answer("returns", "r2", True, 14 * DAY)
    assert await store.delete("returns", "r1", step(redis)) == (1, 0)
    assert await store.delete("returns", "r1", step(redis)) == (0, 0)
    assert await store.delete("clauses", "r3", step(redis)) == (0, 0)
    assert await store.delete("returns", "r2", step(redis)) == (0, 1)
    assert await texts(redis) == {"r3"}
    assert await taken(store, "anna") == "r3"
    told = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (told.waiting, told.leased, told.drawn, told.answered) == (1, 1, 3, 1)


async def test_all_texts_of_a_task_are_deleted_however_many_and_of_no_other(store: ReviewStore, redis: Redis) -> None:
    for number in range(DELETED_AT_ONCE + 5):
        await keep(store, number, budget=2000, waiting_max=2000)
    for number in range(3):
        await store.answer("returns", f"r{number}", True, 14 * DAY)
    await store.keep(review(9000, "clauses"), 10, 14 * DAY)
    assert await store.delete("returns", None, step(redis)) == (DELETED_AT_ONCE + 2, 3)
    assert await texts(redis) == {"r9000"}
    assert (await store.counts({"returns": 14 * DAY}))["returns"].drawn == DELETED_AT_ONCE + 5
    deleted = [(one.before["waiting"], one.before["answered"]) for one in await Audit(redis).read()]
    assert deleted == [(DELETED_AT_ONCE, 3), (2, 0)], "one entry for each atomic step, with what it deleted"
    assert await store.delete("returns", None, step(redis)) == (0, 0)


async def test_a_review_counts_as_entered_for_who_was_given_it_once_the_audit_has_it(store: ReviewStore) -> None:
    await keep(store, 1)
    entered = []
    for step in range(3):
        found = await store.next("returns", "anna", 60.0, 14 * DAY)
        assert isinstance(found, Leased)
        entered.append((found.new, found.entered))
        if step == 1:
            await store.note_given("anna", "r1", 14 * DAY)
    assert entered == [(True, False), (False, False), (False, True)]
    await store.skip("returns", Skip(request_id="r1", by="anna", reason=""), 14 * DAY)
    other = await store.next("returns", "ben", 60.0, 14 * DAY)
    assert isinstance(other, Leased)
    assert not other.entered


async def test_no_text_outlives_its_retention(redis: Redis, store: ReviewStore) -> None:
    await keep(store, 1)
    await keep(store, 2)
    await store.next("returns", "anna", 60.0, 14 * DAY)
    await store.answer("returns", "r2", True, 7 * DAY)
    left = {key: await redis.pttl(f"apprentice:{key}") / 1000 for key in ("review:r1", "reviewed:r2")}
    assert left["review:r1"] == pytest.approx(14 * DAY, abs=60)
    assert left["reviewed:r2"] == pytest.approx(7 * DAY, abs=60)


@pytest.mark.parametrize("damaged", [b"", b"returns", b"returns\n{", b'returns\n{"task": 5}', b"\xff\n\xff"])
async def test_a_review_that_can_not_be_read_is_skipped_and_the_next_one_is_given(
    store: ReviewStore, redis: Redis, damaged: bytes
) -> None:
    for number in (1, 2):
        await keep(store, number)
    await redis.set("apprentice:review:r1", damaged)
    assert await taken(store, "anna") == "r2"
    assert await taken(store, "bert") == NoneLeft(1, 1)
    counts = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (counts.waiting, {one.reason for one in counts.skips} <= {UNREAD}) == (2, True)


async def test_what_is_damaged_of_a_task_is_not_counted_and_hides_nothing_else(
    store: ReviewStore, redis: Redis
) -> None:
    for number in (1, 2):
        await keep(store, number)
    assert await taken(store, "anna") == "r1"
    assert await store.skip("returns", Skip(request_id="r1", by="anna", reason="unsure"), 14 * DAY) == "skipped"
    root = "apprentice:reviews:returns:"
    await redis.lpush(f"{root}skips", b"{", b"today\n{}", b'1\n{"request_id": 5}')
    await redis.hset(f"{root}leases", mapping={"r2": "damaged", "r9": "bert\nnever"})
    for kind in ("drawn", "answered"):
        await redis.hset(f"{root}{kind}", mapping={"today": "1", "499999": "many"})
    counts = (await store.counts({"returns": 14 * DAY}))["returns"]
    assert (counts.waiting, counts.leased, counts.drawn, counts.answered) == (2, 0, 2, 0)
    assert [one.request_id for one in counts.skips] == ["r1"]
    await redis.set("apprentice:reviewed:r5", b"{")
    assert await store.kept_on("r5") is None
    assert await taken(store, "anna") == "r2"


# ---- sealed ---------------------------------------------------------------------------------------------


class Keys:
    """Seals of texts under keys that a test names, and the store that uses them."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self.now = Seals({}, None)
        self.store = ReviewStore(redis, clock, lambda: self.now)

    def use(self, sealing: str | None, *known: str) -> None:
        """Seal by this key from now on, and open what these have sealed."""
        self.now = Seals({name: name.encode().ljust(32) for name in known}, sealing)

    async def reseal(self) -> Resealing:
        resealing = Resealing()
        await self.store.reseal("returns", resealing)
        return resealing


@pytest.fixture
def keys(redis: Redis, clock: Clock) -> Keys:
    return Keys(redis, clock)


async def read_raw(redis: Any) -> dict[str, bytes]:
    """All that Redis has of the texts of reviews, as it stands there."""
    names = [name async for name in redis.scan_iter("apprentice:review*:r*")]
    return {name.decode(): await redis.get(name) for name in names if await redis.type(name) == b"string"}


@pytest.mark.invariant("No text of a review is in Redis unsealed where a key is set.")
async def test_no_word_of_a_sealed_review_is_in_redis_waiting_or_kept_on(keys: Keys, redis: Redis) -> None:
    keys.use("new", "new")
    await keep(keys.store, 1)
    found = await keys.store.next("returns", "anna", 60.0, 14 * DAY)
    assert found == Leased(review(1), START + 60, True)
    assert (await keys.store.find_tasks(["r1"]), await keys.store.find_texts("r1")) == ({"r1": "returns"}, review(1))
    waiting = await read_raw(redis)
    assert await keys.store.answer("returns", "r1", True, 14 * DAY)
    kept_on = await read_raw(redis)
    assert (list(waiting), list(kept_on)) == (["apprentice:review:r1"], ["apprentice:reviewed:r1"])
    for raw in [*waiting.values(), *kept_on.values()]:
        assert b"vase" not in raw
        assert b"No." not in raw
    assert await keys.store.kept_on("r1") == review(1)


async def test_several_reviewers_of_a_sealed_review_are_counted(keys: Keys) -> None:
    keys.use("new", "new")
    shared = msgspec.structs.replace(review(1), reviewers=2, fields=["decision"])
    await keys.store.keep(shared, 10, 14 * DAY)
    assert await keys.store.find_texts("r1") == shared
    assert await keys.store.find_drawn("r1") == ("returns", 2)


async def test_a_review_of_before_the_key_is_read_and_sealed_when_written_again(keys: Keys, redis: Redis) -> None:
    await keep(keys.store, 1)
    await keep(keys.store, 2)
    await keys.store.answer("returns", "r2", True, 14 * DAY)
    plain = await read_raw(redis)
    keys.use("new", "new")
    assert (await keys.store.find_texts("r1"), await keys.store.kept_on("r2")) == (review(1), review(2))
    assert await keys.reseal() == Resealing(2, 0)
    sealed = await read_raw(redis)
    assert plain.keys() == sealed.keys()
    assert not any(b"vase" in raw for raw in sealed.values())
    assert (await keys.store.find_texts("r1"), await keys.store.kept_on("r2")) == (review(1), review(2))


async def test_rotation_brings_reviews_under_the_present_key(keys: Keys, redis: Redis) -> None:
    keys.use("old", "old")
    for number in (1, 2):
        await keep(keys.store, number)
    await keys.store.answer("returns", "r2", True, 14 * DAY)
    keys.use("lost", "lost")
    await keep(keys.store, 3)
    keys.use("new", "old", "new")
    await keep(keys.store, 4)
    before = await read_raw(redis)
    assert await keys.reseal() == Resealing(2, 1), "one lies under a key that is not set"
    after = await read_raw(redis)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"apprentice:review:r3", "apprentice:review:r4"}
    keys.use("new", "new")
    texts = [await keys.store.find_texts(f"r{number}") for number in (1, 2, 3, 4)]
    assert texts == [review(1), review(2), None, review(4)]
    for name in after:
        assert 0 < await redis.pttl(name) <= 14 * DAY * 1000
    keys.use(None, "new")
    await keys.reseal()
    assert await read_raw(redis) == after, "nothing is unsealed where keys are no longer used"


async def test_a_gateway_without_the_key_leaves_reviews_to_one_that_has_it(redis: Redis, clock: Clock) -> None:
    having, lacking = Keys(redis, clock), Keys(redis, clock)
    having.use("new", "new")
    for number in (1, 2):
        await keep(having.store, number)
    assert await taken(lacking.store, "anna") == NoneLeft(0, 0, 2)
    assert await taken(having.store, "anna") == "r1"
    assert await taken(having.store, "bert") == "r2"
    assert await taken(lacking.store, "anna") == NoneLeft(1, 0, 1)
    assert await taken(having.store, "carl") == "r1", "the lease is given back"
    lacking.use("old", "old")
    await keep(lacking.store, 3)
    assert await taken(lacking.store, "dora") == "r3", "what can be read is given"
    counts = (await having.store.counts({"returns": 14 * DAY}))["returns"]
    assert (counts.waiting, counts.skipped, counts.skips) == (3, 0, [])


@pytest.mark.parametrize("number", [1, 2])
async def test_a_sealed_review_opens_under_no_other_id(keys: Keys, redis: Redis, number: int) -> None:
    keys.use("new", "new")
    await keep(keys.store, 1)
    place, _, content = (await redis.get("apprentice:review:r1")).partition(b"\n")
    await redis.set("apprentice:review:r1", place + b"\n" + content.replace(b'"r1"', f'"r{number}"'.encode()))
    assert await keys.store.find_texts("r1") == (review(1) if number == 1 else None)


@pytest.mark.invariant("No text of a review is in Redis unsealed where a key is set.")
async def test_reasons_of_skips_are_sealed_and_come_under_the_present_key(keys: Keys, redis: Redis) -> None:
    async def skip(number: int) -> None:
        await keep(keys.store, number)
        assert await taken(keys.store, "anna") == f"r{number}"
        said = Skip(request_id=f"r{number}", by="anna", reason=f"a vase {number}")
        assert await keys.store.skip("returns", said, DAY) == "skipped"

    async def reasons() -> list[str]:
        return [skip.reason for skip in (await keys.store.counts({"returns": DAY}))["returns"].skips]

    name = "apprentice:reviews:returns:skips"
    await skip(1)
    keys.use("old", "old")
    await skip(2)
    keys.use("lost", "lost")
    await skip(3)
    before = await redis.lrange(name, 0, -1)
    assert [b"vase" in raw for raw in before] == [False, False, True]
    keys.use("new", "new", "old")
    assert await reasons() == [UNREAD, "a vase 2", "a vase 1"]
    resealing = await keys.reseal()
    after = await redis.lrange(name, 0, -1)
    assert (resealing, [b"vase" in raw for raw in after]) == (Resealing(4, 2), [False] * 3), "of each its review too"
    assert after[0] == before[0]
    keys.use("new", "new")
    assert await reasons() == [UNREAD, "a vase 2", "a vase 1"]
    assert 0 < await redis.pttl(name) <= DAY * 1000
