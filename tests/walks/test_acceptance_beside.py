"""Judged answers beside all else: continuations, shadows, caps, limits, hang-ups, the SDK."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.path.answer import READ_AT_ONCE_BYTES_MAX
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, Stalls
from tests.walks.acceptance_world import (
    ASK,
    BROKEN,
    CONFIDENCE_ENFORCED,
    CONTRACT_ENFORCED,
    KEPT,
    MODEL,
    REFUSAL_ENFORCED,
    SURE,
    UNSURE,
    V1,
    V2,
    ask,
    asked_of,
    both,
    calibrate,
    fired,
    judging,
    metrics_of,
    record_of,
    with_logprobs,
)
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.one_minute import in_one_minute
from tests.walks.scope_world import OUT_OF_SCOPE, asked, keep
from tests.walks.test_hang_up import last_record


def continuing(configure: Configure) -> Configure:
    """The same configuration, whose small engines go on with what others have begun."""

    def configured(**sections: Any) -> dict[str, Any]:
        found = configure(**sections)
        found["pools"]["small"]["continues"] = True
        return found

    return configured


async def test_an_answer_that_another_engine_went_on_with_is_judged_as_a_whole(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(continuing(configure), make_adapter, CONTRACT_ENFORCED | CONFIDENCE_ENFORCED) as gateway:
        await calibrate(gateway)
        small.answers[V1], small.twists[V1], general.answers["large"] = KEPT, with_logprobs(SURE), KEPT
        small.faults.add(Dies(3, "reset"), model=V1, times=1)
        told = await ask(gateway, True)
        record = await record_of(gateway, told)
        assert (told.text, told.model, told.reason) == (KEPT, V1, "adapter")
        assert all(choice["logprobs"] is None for choice in told.choices)
        assert (record["continued"], record["contract_kept"], fired(record)) == (1, True, [])
        small.twists[V1] = with_logprobs(UNSURE)
        small.faults.add(Dies(3, "reset"), model=V1, times=1)
        told = await ask(gateway, True)
        record = await record_of(gateway, told)
    assert (told.model, told.reason, fired(record)) == ("large", "low_confidence", ["low_confidence"])
    assert [one["fault"] for one in record["attempts"]] == ["truncated", "low_confidence", None]


async def test_a_held_answer_of_two_versions_is_not_judged_as_one(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    task = {"contract": None, "versions": 2, "fallbacks": {"engine_error": ["previous_version", "general"]}}
    async with judging(continuing(configure), make_adapter, CONFIDENCE_ENFORCED, **task) as gateway:
        for version in (V1, V2):
            await calibrate(gateway, version=version)
            small.answers[version] = " ".join(f"w{number}" for number in range(14))
        small.twists[V2], small.twists[V1] = with_logprobs(UNSURE), with_logprobs(SURE)
        small.faults.add(Dies(2, "reset"), model=V2)
        told = await ask(gateway, True)
        record = await record_of(gateway, told)
        metrics = await metrics_of(gateway)
    assert (told.status, record["version"], record["continued"]) == (200, V1, 1)
    assert [one["note"] for one in record["findings"]] == ["another engine went on with it"]
    assert f'apprentice_check_unjudged_total{{task="returns",version="{V1}",check="low_confidence"}} 1' in metrics


async def test_a_version_that_the_request_was_not_led_to_is_judged_by_its_own_scope(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    weighing = replace(MODEL, weights=(1.0, 0.0, 0.0, 0.0, 20.0, 0.0), bias=-10.0)
    fallbacks = {"contract": ["previous_version", "general"]}
    checks = CONTRACT_ENFORCED | CONFIDENCE_ENFORCED
    async with judging(configure, make_adapter, checks, versions=2, fallbacks=fallbacks) as gateway:
        for version in (V1, V2):
            await calibrate(gateway, weighing, version)
        small.answers |= {V1: KEPT, V2: BROKEN}
        small.twists |= {V1: with_logprobs(SURE), V2: with_logprobs(SURE)}
        general.answers["large"] = KEPT
        inside, outside = (
            {"messages": [{"role": "user", "content": one}]} for one in (*asked("returns"), OUT_OF_SCOPE)
        )
        told = await ask(gateway, **inside)
        assert (told.model, told.reason) == ("large", "low_confidence")  # its scope is not known
        await keep(gateway, V1)
        async with asyncio.timeout(30):
            while gateway.services.snapshot.current.policy.fitted[V1].scope is None:
                await asyncio.sleep(0.01)
        told = await ask(gateway, **inside)
        assert (told.model, told.reason) == (V1, "contract")
        told = await ask(gateway, **outside)
        assert (told.model, told.reason) == ("large", "low_confidence")
        async with gateway.http() as http:
            rule = {"action": "version", "task": "returns", "version": V1}
            assert (await http.put("/admin/v1/overrides/a", json=rule)).status_code == 200
        assert (await ask(gateway, **inside)).reason == "override"
        assert (await ask(gateway, **outside)).reason == "low_confidence"


async def test_a_rule_that_sends_where_a_task_has_nothing_is_refused(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    rule = {"action": "general", "task": "returns"}
    async with judging(configure, make_adapter, {}, fallback_pool=None) as gateway, gateway.http() as http:
        answer = await http.put("/admin/v1/overrides/a", json=rule)
        assert answer.status_code == 400, answer.text
        assert "The task returns has no fallback" in answer.json()["error"]["message"]
        state = (await http.get("/admin/v1/state")).json()
        state["overrides"] = {"a": {"generation": 0, "value": rule}}
        answer = await http.post("/admin/v1/state/apply", json={"state": state})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict"), answer.text
        assert "The task returns has no fallback" in answer.json()["error"]["message"]


async def test_a_rule_that_sends_to_general_asks_a_person_where_that_is_the_fallback(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    rule, fallbacks = {"action": "general", "task": "returns"}, {"override": ["needs_human"]}
    async with (
        judging(configure, make_adapter, {}, fallback_pool=None, fallbacks=fallbacks) as gateway,
        gateway.http() as http,
    ):
        assert (await http.put("/admin/v1/overrides/a", json=rule)).status_code == 200
        told = await ask(gateway)
    assert (told.status, told.code) == (422, "needs_human")


async def test_a_long_answer_with_logprobs_is_judged_and_sent_without_them(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, contract=None) as gateway:
        await calibrate(gateway)
        small.answers[V1] = " ".join(f"{number:0100}" for number in range(1500))
        small.twists[V1] = with_logprobs(SURE)
        told = await ask(gateway, max_tokens=1600)
        assert asked_of(small)["logprobs"] is True
        assert len(told.raw) > READ_AT_ONCE_BYTES_MAX
        assert (told.model, told.text, told.choices[0]["logprobs"]) == (V1, small.answers[V1], None)
        small.twists[V1] = with_logprobs(SURE, UNSURE)
        assert (await ask(gateway, max_tokens=1600)).reason == "low_confidence"


async def test_shadows_answer_what_was_rejected_too(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, versions=2) as gateway:
        small.answers |= {V1: KEPT, V2: BROKEN}
        general.answers["large"] = KEPT
        async with gateway.http() as http:
            answer = await http.post("/admin/v1/aliases/returns/shadow", json={"version": V1, "share": 1.0})
            assert answer.status_code == 200, answer.text
        told = await ask(gateway)
        assert told.model == "large"
        async with asyncio.timeout(30):
            while True:
                found = await gateway.services.redis.xrange("apprentice:records")
                pairs = [
                    record["pair"] for record in (json.loads(row[b"record"]) for _, row in found) if record["pair"]
                ]
                if pairs:
                    break
                await asyncio.sleep(0.01)
    assert (pairs[0]["version"], pairs[0]["contract_kept"]) == (V2, False)


async def test_a_closed_fallback_is_said_where_the_answer_can_not_be_sent(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, general_share_max=0.0) as gateway:
        small.answers[V1] = BROKEN
        told = await ask(gateway)
    assert (told.status, told.code, told.reason) == (503, "fallback_capped", "contract")
    assert not general.requests


async def test_cap_counts_what_the_fallback_cost_and_a_keys_limit_counts_everything(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, redis: Redis
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, general_usd_per_day=1) as gateway:
        small.answers[V1], general.answers["large"] = BROKEN, KEPT

        async def walk() -> None:
            before = held.used if (held := gateway.services.fallback_caps._money["returns"].now) else 0
            key = await gateway.key(models=["returns"], limits={"tokens_per_minute": 100_000})
            async with gateway.http(key) as http:
                answer = await http.post("/v1/chat/completions", json={"model": "returns", **ASK})
                assert answer.headers["x-apprentice-reason"] == "contract"
                record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
                spent = (await http.get("/v1/usage")).json()["usage"]["tokens_per_minute"]["spent"]
            held = gateway.services.fallback_caps._money["returns"].now
            assert held is not None
            assert held.used - before == round(record["cost_usd"] * 1e9)
            assert spent == record["prompt_tokens"] + record["completion_tokens"] + record["wasted_tokens"]

        await in_one_minute(redis, walk)


@both
async def test_hang_up_on_the_fallback_leaks_nothing_and_rejected_answers_are_paid(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED) as gateway:
        small.answers[V1] = BROKEN
        general.faults.add(Stalls(2, 30), model="large")
        asking = asyncio.create_task(ask(gateway, stream))
        await general.until(lambda: general.in_flight == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await general.until(lambda: general.in_flight == 0)
        replicas = gateway.services.fleet.replicas.values()
        await general.until(lambda: all(replica.in_flight == 0 for replica in replicas))
        record = await last_record(gateway)
    assert (record["outcome"], record["reason"]) == ("cancelled", "contract")
    assert [one["fault"] for one in record["attempts"]] == ["contract", "cancelled"]
    assert record["wasted_usd"] == pytest.approx((record["wasted_tokens"] - 8 + 2 * 8) / 1e6)


async def test_who_uses_the_sdk_gets_whole_answers_and_streams_as_ever(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED | CONFIDENCE_ENFORCED | REFUSAL_ENFORCED) as gateway:
        await calibrate(gateway)
        small.twists[V1], general.answers["large"] = with_logprobs(SURE), KEPT
        for wording, model in ((KEPT, V1), (BROKEN, "large")):
            small.answers[V1] = wording
            async with gateway.openai() as client:
                whole = await client.chat.completions.create(model="returns", **ASK)
                assert (whole.model, whole.choices[0].message.content, whole.choices[0].logprobs) == (model, KEPT, None)
                options = {"include_usage": True}
                stream = await client.chat.completions.create(
                    model="returns", stream=True, stream_options=options, **ASK
                )
                chunks = [chunk async for chunk in stream]
                assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == KEPT
                assert chunks[-1].usage.completion_tokens == len(KEPT.split())
