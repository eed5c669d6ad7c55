"""Evaluations in Redis: which results are taken, what is asked again, what is forgotten, and what is left to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from gateway.features.evaluations.row_batches import BATCH, RowsErased, seal_rows
from gateway.features.evaluations.store import (
    LISTED_MAX,
    LOGPROBS_EVALUATIONS,
    OPEN_KEY,
    Evaluation,
    EvaluationStore,
    Model,
    finish,
    get_coming_key,
)
from gateway.features.evaluations.suites import SuiteStore
from gateway.state.audited_step import AuditedStep, Drafts
from gateway.state.gate_store import COMPARISONS_KEY, GateStore
from monitoring.audit import Audit
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.dataset import Row, seal_row_again
from monitoring.evaluation.erasure import (
    MARKED_AT_ONCE,
    ErasedSuite,
    erase_from_evaluations,
    erase_from_suites,
    erase_from_uploads,
    mark_forgotten,
)
from monitoring.evaluation.gate import Comparison
from monitoring.evaluation.redis_keys import EVALUATIONS_KEY, get_evaluation_key, get_suite_key
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes
from monitoring.evaluation.suites import Suite
from monitoring.texts import FORGOTTEN_KEY, NO_END_MS, Resealing, Seals, Unsealable

LOGPROBS = [-0.1234567, -2.5]


def evaluation(name: str = "e", created_at: float = 1.0, classes: Classes | None = None) -> Evaluation:
    return Evaluation(
        id=name,
        version="returns@v1",
        task="returns",
        arms={"adapter": EvaluationArm("returns@v1")},
        metric="exact",
        classes=classes or Classes(),
        data_digest="d",
        rows=3,
        notes=(),
        created_at=created_at,
    )


def result(number: int, right: bool = True, outcome: str = "answered") -> RowResult:
    return RowResult(number=number, id=f"r{number}", group=number, right=right, outcome=outcome)


async def fill_list(redis: Any, at: float) -> None:
    """As many evaluations of another task as a list has, at this time, with texts."""
    for number in range(LISTED_MAX):
        other = msgspec.structs.replace(evaluation(f"other{number}", at), task="clauses", status="done")
        other.arms["general"] = EvaluationArm()
        await redis.set(get_evaluation_key(other.id), msgspec.json.encode(other))
        await redis.hset(get_evaluation_key(other.id, "texts"), "0:", b"text")
        await redis.zadd(EVALUATIONS_KEY, {other.id: at})


@pytest.fixture
def store(redis: Redis) -> EvaluationStore:
    return EvaluationStore(redis, 1000)


def step(store: EvaluationStore, action: str) -> AuditedStep:
    found = AuditedStep(store._redis, Audit(store._redis), "ada")
    found.note(action, "returns@v1")
    return found


async def begun(store: EvaluationStore, one: Evaluation, anew: bool = False) -> Evaluation:
    rows = [Row(number, f"r{number}", number + 1, "yes", None, "Once", group=number) for number in range(one.rows)]
    await store.add_rows("coming", rows, set())
    await store.begin(one, "coming", anew, step(store, "evaluation.begin"))
    return one


async def left(store: EvaluationStore, one: Evaluation) -> list[int]:
    return [row.number async for _, row in store.left(one)]


async def test_no_result_of_another_run_is_taken(store: EvaluationStore) -> None:
    first = await begun(store, evaluation(created_at=1.0))
    assert await store.keep(first, "adapter", result(0), LOGPROBS)
    second = await begun(store, evaluation(created_at=2.0), anew=True)
    assert not await store.keep(first, "adapter", result(1), LOGPROBS)
    assert await left(store, second) == [0, 1, 2]
    assert await store.keep(second, "adapter", result(1), LOGPROBS)
    assert not await store.keep(second, "adapter", result(1), LOGPROBS)
    assert (await store.progress(second))["adapter"]["done"] == 1
    await store.forget(second, step(store, "evaluation.forget"))
    assert not await store.keep(second, "adapter", result(2), LOGPROBS)


class Meanwhile(Redis):
    """A client whose next reading of a key is followed at once by something else."""

    then: Callable[[], Awaitable[object]] | None = None

    async def get(self, name: Any) -> Any:
        value, (then, self.then) = await super().get(name), (self.then, None)
        if then is not None:
            await then()
        return value


@pytest.mark.parametrize("is_kept", [True, False], ids=["ended", "expired"])
async def test_evaluation_that_is_begun_again_while_it_is_read_stays_to_be_run(
    redis: Redis, valkey_socket: str, is_kept: bool
) -> None:
    async with Meanwhile(unix_socket_path=valkey_socket) as client:
        store = EvaluationStore(client, 1000)
        first = await begun(store, evaluation(created_at=1.0))
        ended = finish(first, "cancelled")
        await redis.set(get_evaluation_key(first.id), msgspec.json.encode(ended))
        if not is_kept:
            await redis.delete(get_evaluation_key(first.id))
        client.then = lambda: begun(store, evaluation(created_at=2.0))
        assert await store.next() is None
        assert await store.next() == evaluation(created_at=2.0)
        assert await store.move(evaluation(created_at=2.0), ended, None, None)
        await redis.zadd(OPEN_KEY, {first.id: 1.0})
        assert await store.next() is None
        assert await redis.zcard(OPEN_KEY) == 0


class JustBefore(Redis):
    """A client whose next change of a list comes just after something else."""

    then: Callable[[], Awaitable[object]] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in ("ZREM", "EVAL") and self.then is not None:
            then, self.then = self.then, None
            await then()
        return await super().execute_command(*args, **options)


async def test_expired_evaluation_that_is_begun_again_while_all_are_read_stays_listed(
    redis: Redis, valkey_socket: str
) -> None:
    async with JustBefore(unix_socket_path=valkey_socket) as client:
        store = EvaluationStore(client, 1000)
        await begun(store, evaluation())
        await redis.delete(get_evaluation_key("e"))
        client.then = lambda: begun(store, evaluation())
        assert await store.all() == []
        assert await store.all() == [evaluation()], "an erasure finds its rows by the list"
        await redis.delete(get_evaluation_key("e"))
        assert await store.all() == []
        assert not await redis.zcard(EVALUATIONS_KEY)


async def test_rows_that_an_engine_failed_to_answer_are_asked_again_and_no_others(store: EvaluationStore) -> None:
    one = await begun(store, evaluation(created_at=1.0))
    assert await store.keep(one, "adapter", result(0), LOGPROBS)
    assert await store.keep(one, "adapter", result(1, False, "failed"), [])
    assert not await store.has_engine_faults(one)
    assert await store.keep(one, "adapter", result(2, False, "failed"), [], again=True)
    assert await store.has_engine_faults(one)
    assert await left(store, one) == []
    one = await begun(store, evaluation(created_at=2.0))
    assert (await left(store, one), await store.has_engine_faults(one)) == ([2], False)
    assert (await store.progress(one))["adapter"] == {"done": 2, "right": 1, "cost_usd": None}


async def test_logprobs_are_kept_to_seven_digits_and_of_the_newest_evaluations_alone(store: EvaluationStore) -> None:
    for number in range(LOGPROBS_EVALUATIONS + 1):
        one = await begun(store, evaluation(f"e{number}", created_at=1.0 + number))
        assert await store.keep(one, "adapter", result(1), LOGPROBS)
        assert await store.logprobs(one, "adapter", 0, 10) == [[], LOGPROBS, []]
        assert await store.move(one, finish(one, "done"), None, None)
    assert await store.logprobs(evaluation("e0"), "adapter", 1, 1) == [[]]
    assert await store.logprobs(evaluation("e1"), "adapter", 1, 1) == [LOGPROBS]
    assert len((await store.results(evaluation("e0"), 1, 1))["adapter"]) == 1


async def test_logprobs_of_one_that_still_runs_are_kept_however_many_are_begun(store: EvaluationStore) -> None:
    first = await begun(store, evaluation("e0"))
    assert await store.keep(first, "adapter", result(1), LOGPROBS)
    for number in range(LOGPROBS_EVALUATIONS):
        await begun(store, evaluation(f"e{number + 1}", created_at=2.0 + number))
    assert await store.logprobs(first, "adapter", 1, 1) == [LOGPROBS]


async def test_a_forgotten_row_is_asked_no_more_and_no_text_of_it_is_kept(
    store: EvaluationStore, valkey_socket: str
) -> None:
    one = await begun(store, evaluation())
    with SyncRedis(unix_socket_path=valkey_socket) as redis:
        assert erase_from_evaluations(redis, {"r1"}, []) == 1
        assert erase_from_evaluations(redis, {"r1"}, []) == 0
    assert await left(store, one) == [0, 2]
    for number in range(2):  # both were asked before
        await store.keep_texts(one, number, {f"{number}:": b"text", f"{number}:adapter": b"text"}, 1000)
    assert await store.texts(one, 0, ["", "adapter"]) == [b"text", b"text"]
    assert await store.texts(one, 1, ["", "adapter"]) == [None, None]


async def test_no_row_of_an_erased_request_comes_in_with_an_upload_under_way(
    store: EvaluationStore, valkey_socket: str
) -> None:
    rows = [Row(n, f"r{n}", n + 1, "yes", None, "Once", group=n, request=f"req{n}") for n in range(4)]
    rows.append(Row(4, "r4", 5, "yes", None, "Once", group=4, parent="r3"))
    rows.append(Row(5, "r5", 6, "yes", None, "Once", group=5, parent="r4"))
    rows.append(Row(6, "r6", 7, "yes", None, "Once", group=6, parent="r1"))
    erased = set[str]()
    await store.add_rows("coming", rows[:2], erased)
    with SyncRedis(unix_socket_path=valkey_socket) as redis:
        mark_forgotten(redis, {"req1", "req3"})
        erase_from_uploads(redis, {"req1", "req3"}, [])
    await store.add_rows("coming", rows[2:5], erased)
    await store.add_rows("coming", rows[5:], erased)
    one = evaluation()
    await store.begin(one, "coming", False, step(store, "evaluation.begin"))
    assert await left(store, one) == [0, 2], "of what came before the erasure, and of what came after it"


async def test_no_upload_is_taken_over_whose_rows_were_erased_meanwhile(redis: Redis, valkey_socket: str) -> None:
    store, suites = EvaluationStore(redis, 1000), SuiteStore(redis)
    rows = [Row(n, f"r{n}", n + 1, "yes", None, "Once", group=n, request=f"req{n}") for n in range(2)]
    await store.add_rows("coming", rows, set())
    with SyncRedis(unix_socket_path=valkey_socket) as client:
        erase_from_uploads(client, {"req0"}, [])
        suite = Suite(task="returns", digest="d", kind="newest", rows=2, groups=2)
        with pytest.raises(RowsErased):
            await suites.add(suite, "coming", step(store, "suite.add"))
        erase_from_uploads(client, {"req1"}, [])
    with pytest.raises(RowsErased):
        await store.begin(evaluation(), "coming", False, step(store, "evaluation.begin"))
    assert (await suites.all(), await store.all()) == ([], [])
    assert await Drafts(redis, Audit(redis)).written() == {}, "nor an entry"


async def test_more_requests_than_are_marked_at_once_are_all_marked(redis: Redis, valkey_socket: str) -> None:
    requests = {f"req{number}" for number in range(2 * MARKED_AT_ONCE + 1)}
    with SyncRedis(unix_socket_path=valkey_socket) as client:
        mark_forgotten(client, requests)
    assert set(await redis.mget([FORGOTTEN_KEY + request for request in requests])) == {b"%d" % NO_END_MS}


async def test_rows_that_follow_an_erased_one_are_asked_all_the_same(
    store: EvaluationStore, valkey_socket: str
) -> None:
    one = await begun(store, msgspec.structs.replace(evaluation(), rows=2 * BATCH))
    asked = []
    async for _, row in store.left(one):
        if row.number == BATCH - 1:
            with SyncRedis(unix_socket_path=valkey_socket) as redis:
                assert erase_from_evaluations(redis, {"r3", "r4", f"r{BATCH + 2}"}, []) == 3
        asked.append(row.number)
    assert asked == [number for number in range(2 * BATCH) if number != BATCH + 2]


async def test_an_evaluation_that_an_earlier_release_began_goes_on(store: EvaluationStore, redis: Redis) -> None:
    one = await begun(store, evaluation())
    earlier = msgspec.to_builtins(one) | {"arms": ["adapter", "against"], "against": "returns@v0"}
    await redis.set(get_evaluation_key(one.id), msgspec.json.encode(earlier))
    read = await store.next()
    assert read is not None
    assert {name: arm.version for name, arm in read.arms.items()} == {"adapter": "returns@v1", "against": "returns@v0"}
    assert await store.move(read, finish(read, "cancelled"), None, None), "it can be ended"


@pytest.mark.parametrize(
    "written", [b'{"id": ', b"{}", b'{"arms": {"adapter": 1}}', b'{"arms": {}, "status": "paused"}']
)
async def test_evaluation_that_can_not_be_read_hides_no_other_and_stays(
    store: EvaluationStore, redis: Redis, written: bytes
) -> None:
    await redis.set(get_evaluation_key("bad"), written)
    for name, at in (("bad", 1.0), ("good", 2.0)):
        await redis.zadd(EVALUATIONS_KEY, {name: at})
        await redis.zadd(OPEN_KEY, {name: at})
    await redis.set(get_evaluation_key("good"), msgspec.json.encode(evaluation("good", 2.0)))
    assert [each.id for each in await store.all()] == ["good"]
    following = await store.next()
    assert following is not None
    assert (following.id, await store.list_running("returns@v1")) == ("good", ["good"])
    assert await redis.zscore(OPEN_KEY, "bad") == 1.0


async def test_all_that_have_expired_leave_the_list_not_only_the_newest(store: EvaluationStore, redis: Redis) -> None:
    await redis.zadd(EVALUATIONS_KEY, {f"gone-{number}": float(number) for number in range(300)})
    await begun(store, evaluation("here", created_at=150.5))
    assert [one.id for one in await store.all(limit=1)] == ["here"]
    assert await redis.zcard(EVALUATIONS_KEY) == 1


async def test_models_are_left_to_be_put_into_force_only_by_what_ends_a_run(store: EvaluationStore) -> None:
    one = await begun(store, evaluation())
    models = [Model("confidence", b"bytes", {"rows": 3})]
    cancelled = finish(one, "cancelled")
    assert await store.move(one, cancelled, None, None)
    assert not await store.move(one, finish(one, "done"), None, None, models)
    assert await store.models.waiting() == []
    one = await begun(store, evaluation(created_at=2.0))
    assert await store.move(one, finish(one, "done"), None, None, models)
    [entry] = await store.models.waiting()
    assert (entry.name, await store.is_wanted()) == ("e", True)
    assert (entry.value.version, entry.value.models[0]) == ("returns@v1", models[0])
    assert await store.models.finish(entry)
    assert (await store.models.waiting(), await store.is_wanted()) == ([], False)


class MeanwhileWritten(Redis):
    """A client after whose next reading of comparisons something else is done at once."""

    then: Callable[[], Awaitable[object]] | None = None

    async def hget(self, name: Any, key: Any) -> Any:
        value = await super().hget(name, key)
        if name == COMPARISONS_KEY and (then := self.then) is not None:
            self.then = None
            await then()
        return value


def compared_with(other: str, by: str) -> dict[str, Comparison]:
    comparison = Comparison(
        evaluation=by,
        ended_at=1.0,
        data_digest="d",
        version=EvaluationArm("returns@v1"),
        reference=EvaluationArm(other),
        pair={},
        figures={},
        reference_figures={},
    )
    return {other: comparison}


@pytest.mark.parametrize("way", ["move", "forget"])
async def test_comparisons_that_are_written_meanwhile_are_kept(
    way: str, store: EvaluationStore, valkey_socket: str
) -> None:
    first, second = evaluation("first"), evaluation("second")
    slow = MeanwhileWritten(unix_socket_path=valkey_socket)
    try:
        slow_store, gates = EvaluationStore(slow, 1000), GateStore(store._redis)
        for one in (first, second):
            await begun(store, one)
        if way == "forget":
            assert await store.move(first, finish(first, "done"), None, None, (), compared_with("returns@v8", "first"))
        slow.then = lambda: store.move(
            second, finish(second, "done"), None, {"id": "second"}, (), compared_with("returns@v9", "second")
        )
        if way == "move":
            ended = finish(first, "done")
            assert await slow_store.move(first, ended, None, None, (), compared_with("returns@v8", "first"))
        else:
            await slow_store.forget(first, step(slow_store, "evaluation.forget"))
        kept = {"returns@v8": "first", "returns@v9": "second"} if way == "move" else {"returns@v9": "second"}
        assert {name: each.evaluation for name, each in (await gates.comparisons("returns@v1")).items()} == kept
        assert await store.latest("returns@v1") == {"id": "second"}
    finally:
        await slow.aclose()


def test_what_answers_were_compared_with_is_no_part_of_it_once_it_has_ended() -> None:
    one = evaluation(classes=Classes("label", "", ("a",), {"0123": "a"}))
    assert msgspec.json.decode(msgspec.json.encode(one), type=Evaluation) == one
    assert finish(one, "cancelled").classes == Classes("label", "", ("a",), None)


VASE = {"messages": [{"role": "user", "content": "A vase"}], "rejected": "no vase"}


async def test_rows_are_sealed_while_they_are_kept_and_come_under_the_present_key(
    redis: Redis, valkey_socket: str
) -> None:
    seals = Seals({}, None)
    store, suites = EvaluationStore(redis, 1000, lambda: seals), SuiteStore(redis, lambda: seals)
    rows = [Row(n, f"r{n}", n + 1, f"vase {n % 2}", group=n, request=f"req{n}", **VASE) for n in range(4)]
    suite = Suite(task="returns", digest="d", kind="newest", rows=4, groups=4)
    key = get_suite_key("returns", "d")
    for number, sealing in enumerate((None, "old", "new", None)):
        seals = Seals({"old": bytes(32), "new": b"n" * 32}, sealing)
        await store.add_rows("coming", [rows[number]], set())
        assert (b"vase" in (await redis.lrange(get_coming_key("coming"), -1, -1))[0]) == (sealing is None)
    await suites.add(suite, "coming", step(store, "suite.add"))
    seals = Seals({"old": bytes(32), "new": b"n" * 32}, "new")
    for expected in (Resealing(3, 0), Resealing(0, 0)):
        resealing = Resealing()
        await seal_rows(redis, seals, resealing)
        assert resealing == expected
    seals = Seals({"new": b"n" * 32}, "new")
    assert not [raw for raw in await redis.lrange(key, 0, -1) if b"vase" in raw.lower()]
    assert [batch async for batch in suites.rows(suite)] == [rows]
    with SyncRedis(unix_socket_path=valkey_socket) as client:
        assert erase_from_suites(client, {"req0"}, seals, []) == [ErasedSuite("returns", "d", 1)]
    left = await suites.find("returns", "newest")
    assert (left.rows, left.counts["class"]) == (3, {"vase 1": 2, "vase 0": 1})
    seals, lost, before = Seals({"other": bytes(32)}, "other"), Resealing(), await redis.lrange(key, 0, -1)
    await seal_rows(redis, seals, lost)
    assert (lost, await redis.lrange(key, 0, -1)) == (Resealing(0, 3), before), "rows under a lost key stay"
    with pytest.raises(Unsealable, match=r"which texts\.keys lacks"):
        [batch async for batch in suites.rows(suite)]
    with SyncRedis(unix_socket_path=valkey_socket) as client:
        assert erase_from_suites(client, {"req1"}, seals, []) == [ErasedSuite("returns", "d", 1)]
    assert (await suites.find("returns", "newest")).counts == left.counts, "of rows that can't be read"


async def test_an_erased_row_that_is_sealed_again_meanwhile_is_erased(redis: Redis, valkey_socket: str) -> None:
    seals = Seals({"old": bytes(32)}, "old")
    store = EvaluationStore(redis, 1000, lambda: seals)
    one = await begun(store, evaluation())
    seals = Seals({"old": bytes(32), "new": b"n" * 32}, "new")
    key = get_evaluation_key(one.id, "data")

    class Resealed(SyncRedis):
        """A client before whose removal of rows the job seals them again."""

        def lrem(self, name: Any, count: int, value: Any) -> Any:
            rows = super().lrange(key, 0, -1)
            for place, raw in enumerate(rows if b'"old"' in value else []):
                self.lset(key, place, seal_row_again(raw, seals))
            return super().lrem(name, count, value)

    with Resealed(unix_socket_path=valkey_socket) as client:
        assert erase_from_evaluations(client, {"r1"}, []) == 1
    assert await left(store, one) == [0, 2]


async def test_rows_get_the_group_that_a_later_one_joined_also_without_their_key(redis: Redis) -> None:
    store = EvaluationStore(redis, 1000, lambda: Seals({"k1": b"k" * 32}, "k1"))
    rows = [Row(number, f"r{number}", number + 1, "yes", None, "Once", group=number) for number in range(3 * BATCH)]
    await store.add_rows("coming", rows, set())
    await EvaluationStore(redis, 1000).join_groups("coming", dict.fromkeys(range(BATCH, 3 * BATCH), 0))
    joined = [row async for row in store.coming("coming")]
    assert [row.group for row in joined] == [*range(BATCH), *[0] * 2 * BATCH]
    assert {row.prompt for row in joined} == {"Once"}
