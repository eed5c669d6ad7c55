"""What the judging of canaries keeps in Redis: pairs that wait for a demonstration, and verdicts not yet entered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.duties import rollouts
from gateway.duties.rollouts import PAIR_SECONDS, Rollouts
from monitoring.audit import Audit
from monitoring.degradation.verdicts import rollout
from monitoring.evaluation.comparing import normal
from monitoring.ids import digest
from monitoring.metrics import Meters
from monitoring.records import AttemptRecord, PairRecord, Record, RecordStream
from serving.adapters.registry import Registry
from serving.shelf import Shelf


def judging(redis: Redis) -> Rollouts:
    records = RecordStream(redis, 60, 1000, "apprentice:feedback", 1000)
    return Rollouts(redis, b"secret", Registry(redis), records, {}, Audit(redis), Meters())


def shadow(request: str, task: str = "returns", **more: Any) -> Record:
    """The record of a shadow's answer to a request that no contract judges."""
    return Record(
        id=f"shadow of {request}",
        at=1.0,
        endpoint="/v1/chat/completions",
        caller="",
        model_asked=task,
        purpose="shadow",
        shadow_of=request,
        task=task,
        version=f"{task}@v2",
        outcome="ok",
        text_digest="b" * 64,
        pair=PairRecord(f"{task}@v1", None, "a" * 64),
        **more,
    )


async def kept(redis: Redis) -> set[str]:
    """The requests whose pairs are in Redis."""
    return {key.decode().removeprefix("apprentice:pair:") async for key in redis.scan_iter("apprentice:pair:*")}


async def test_a_pair_is_kept_for_its_time(redis: Redis) -> None:
    await judging(redis).keep_pair(shadow("one"))
    raw = await redis.get("apprentice:pair:one")
    assert msgspec.json.decode(raw or b"") == {"texts": {"returns@v1": "a" * 64, "returns@v2": "b" * 64}}
    assert PAIR_SECONDS - 60 < await redis.ttl("apprentice:pair:one") <= PAIR_SECONDS
    assert PAIR_SECONDS - 60 < await redis.ttl("apprentice:pairs:returns") <= PAIR_SECONDS


async def test_of_a_flood_of_pairs_the_newest_are_kept_and_no_other_tasks_are_lost(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "PAIRS_MAX", 5)
    judge = judging(redis)
    await judge.keep_pair(shadow("of another task", task="contracts"))
    for number in range(20):
        await judge.keep_pair(shadow(f"{number}"))
    assert await kept(redis) == {"of another task", "15", "16", "17", "18", "19"}
    assert await redis.llen("apprentice:pairs:returns") == 5


async def test_two_shadows_of_one_request_take_one_place(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "PAIRS_MAX", 2)
    judge = judging(redis)
    for request in ("one", "two", "two", "two"):
        await judge.keep_pair(shadow(request))
    assert await kept(redis) == {"one", "two"}
    assert await redis.llen("apprentice:pairs:returns") == 2


async def test_a_verdict_that_was_left_is_entered_also_where_its_task_has_no_alias_any_more(redis: Redis) -> None:
    draft = Audit(redis).draft("system", "alias.rollback", "returns", evidence={"pairs": 3}, generation=7)
    await Shelf(redis, "verdicts").put("returns", msgspec.to_builtins(draft))
    judge = judging(redis)
    for _ in range(2):
        await judge.step()
    [entry] = await Audit(redis).read()
    assert (entry.action, entry.evidence, entry.generation, entry.at) == ("alias.rollback", {"pairs": 3}, 7, draft.at)


async def test_a_verdict_that_can_not_be_entered_keeps_no_other_waiting(redis: Redis) -> None:
    verdicts = Shelf(redis, "verdicts")
    await verdicts.put("alarms", {"no": "draft"})
    await verdicts.put("returns", msgspec.to_builtins(Audit(redis).draft("system", "alias.hold", "returns")))
    await judging(redis).step()
    assert [entry.object for entry in await Audit(redis).read()] == ["returns"]
    assert set(await verdicts.all()) == {"alarms"}


def seen(*attempts: tuple[str | None, str | None], **more: Any) -> rollouts.Seen:
    """A record of a request: which versions were tried, and with what fault."""
    tried = [AttemptRecord("small", "small-0", version, fault, 0.1) for version, fault in attempts]
    return rollouts.Seen("returns", "ok", task="returns", version=attempts[-1][0], attempts=tried, **more)


@pytest.mark.parametrize(
    ("record", "broken", "error"),
    [
        (seen(("returns@v2", None), contract_kept=True), False, False),
        (seen(("returns@v2", None), contract_kept=False), True, False),
        (seen(("returns@v2", "contract"), (None, None), contract_kept=True), True, False),
        (seen(("returns@v2", "failed"), ("returns@v2", "contract"), (None, None), contract_kept=True), True, False),
        (seen(("returns@v2", "contract"), ("returns@v1", None), contract_kept=True), True, False),
        (seen(("returns@v2", "low_confidence"), (None, None), contract_kept=True), None, True),
        (seen(("returns@v2", "refusal"), (None, None)), None, True),
        (seen(("returns@v2", "silent"), (None, None), contract_kept=True), None, True),
    ],
)
def test_an_answer_that_was_rejected_counts_against_its_version_whoever_answered_in_the_end(
    record: rollouts.Seen, broken: bool | None, error: bool
) -> None:
    outcome = rollouts._outcome(record, {"returns@v2": "canary", "returns@v1": "active"})
    assert outcome is not None
    assert (outcome.arm, outcome.contract_broken, outcome.error) == ("canary", broken, error)


@pytest.mark.parametrize(
    ("record", "counts"),
    [
        (seen(("returns@v1", None), reason="adapter", led_to="returns@v1"), True),
        (seen(("returns@v1", None), reason="out_of_scope", led_to="returns@v2"), False),
        (seen(("returns@v1", None), reason="holdout", led_to="returns@v1"), True),
        (seen(("returns@v1", None), reason="no_replica"), False),
        (seen(("returns@v1", None), reason="no_replica", led_to="returns@v2"), False),
        (seen(("returns@v1", None), reason="overload", led_to="returns@v2"), False),
        (seen(("returns@v2", "failed"), ("returns@v0", None), reason="engine_error", led_to="returns@v2"), True),
        (seen(("returns@v1", "failed"), (None, None), reason="engine_error"), True),
    ],
)
def test_a_version_that_stood_in_for_the_one_that_was_drawn_is_no_evidence(record: rollouts.Seen, counts: bool) -> None:
    outcome = rollouts._outcome(record, {"returns@v2": "canary", "returns@v1": "active"})
    assert (outcome is not None) == counts


def of_arms(request: str, version: str | None, served: str | None, **judged: Any) -> Record:
    """The record of a shadow that was drawn for both arms to answer."""
    record = shadow(request)
    record.version = version
    record.pair = PairRecord(served, None, "a" * 64, "general" if version is None else "version", "normal", **judged)
    return record


async def test_all_shadows_of_one_request_are_remembered_together(redis: Redis) -> None:
    judge = judging(redis)
    v1, v2 = "returns@v1", "returns@v2"
    await judge.keep_pair(of_arms("one", None, v2, digest="g", served_digest="2", score=0.0, served_score=0.5))
    await judge.keep_pair(of_arms("one", v1, v2, digest="1", served_digest="2", score=1.0, served_score=1.0))
    await judge.keep_pair(shadow("one"))
    assert msgspec.json.decode(await redis.get("apprentice:pair:one") or b"") == {
        "judge": "normal",
        "digests": {"general": "g", v1: "1", v2: "2"},
        "scores": {"general": 0, v1: 1, v2: 1},
        "texts": {v1: "a" * 64, v2: "b" * 64},
    }
    assert await redis.llen("apprentice:pairs:returns") == 1


async def test_an_answer_without_the_judges_form_is_remembered_as_one_that_is_never_right(redis: Redis) -> None:
    await judging(redis).keep_pair(of_arms("one", None, "returns@v1", digest="", served_digest="1"))
    kept = msgspec.json.decode(await redis.get("apprentice:pair:one") or b"")
    assert kept == {"judge": "normal", "digests": {"general": "", "returns@v1": "1"}}


async def test_an_arm_that_failed_leaves_nothing_to_be_judged(redis: Redis) -> None:
    failed = of_arms("one", None, "returns@v1", served_digest="1")
    failed.outcome = "failed"
    await judging(redis).keep_pair(failed)
    assert await kept(redis) == set()


async def test_an_answer_that_is_no_text_leaves_nothing_to_be_judged(redis: Redis) -> None:
    on_trial = shadow("two")
    on_trial.text_digest = None
    for calling in (of_arms("one", None, "returns@v1", served_digest="1"), on_trial):
        await judging(redis).keep_pair(calling)
    assert await kept(redis) == set()


async def test_a_demonstration_judges_a_pair_that_an_older_gateway_has_kept(redis: Redis) -> None:
    judge, right = judging(redis), digest(b"secret", normal("approve it"))
    plan = rollout.Plan()
    judged = rollouts.Judged(id="a", state=rollout.start(plan), records_read="0-0", feedback_read="0-0")
    before = judged.state
    await redis.set("apprentice:pair:one", msgspec.json.encode({"returns@v1": right, "returns@v2": "b" * 64}))
    arms = {"returns@v1": "active", "returns@v2": "canary"}
    await judge._take_demonstration(judged, plan, "one", "approve it", arms)
    wanted = rollout.observe_pair(before, plan, rollout.ShadowPair(canary_wrong=True, active_wrong=False))
    assert judged.state == wanted != before
