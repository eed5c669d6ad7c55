"""Canaries judged by themselves: rolled back, promoted, held, or left to people; by one gateway or the next."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
import uuid
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from gateway.callers import new_key
from gateway.features.quality.state import Quality
from monitoring.records import STREAM_KEY
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import SlowHeaders, Status
from tests.waiting import until
from tests.walks import releases
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.releases import (
    EASY,
    JUDGED_OFTEN,
    QUICK,
    SECONDS_MAX,
    STRICT,
    V1,
    V2,
    alias,
    as_many,
    ask,
    asked_until_it_ends,
    audit_of,
    judged_by_now,
    loads_of,
    metric,
    of_task,
    record_of,
    rolled_back,
    shadows,
    states,
    step,
)
from tests.walks.served import client, served

two_versions = partial(releases.two_versions, **JUDGED_OFTEN)

# ---- bad canaries --------------------------------------------------------------------------------


async def test_a_canary_that_fails_is_rolled_back_by_itself_and_quarantined(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        loads = loads_of(small)
        small.faults.add(Status(500), model=V2)
        await step(http, "canary", version=V2, share=0.5, plan=STRICT)
        entry = await rolled_back(http, await asked_until_it_ends(running, http), "error")
        assert "errors are more than 2 points more frequent" in entry["after"]["because"]
        assert await metric(http, "apprentice_canary_verdicts_total", 'action="roll_back"') == 1
        assert loads_of(small) == loads
        why = (await http.get(f"/admin/v1/adapters/{V2}/why")).json()
        assert why["words"][0] == f"{V2} is quarantined: {entry['after']['because']}"
        assert [one["action"] for one in why["audit"]][-1] == "alias.rollback"
        assert (await step(http, "promote", 409, version=V2))["error"]["message"].endswith("stage it first.")


async def test_a_record_that_can_not_be_read_is_passed_over_and_the_canary_is_judged_on(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        small.faults.add(Status(500), model=V2)
        await step(http, "canary", version=V2, share=0.5, plan=STRICT)
        await running.services.redis.xadd(STREAM_KEY, {"record": b'{"id": 5, "task": "returns"}'})
        await running.services.redis.xadd(STREAM_KEY, {"no": "record"})
        await rolled_back(http, await asked_until_it_ends(running, http), "error")
        summary = await running.features[Quality].store.read_last_summary()
        assert summary is not None
        assert summary.unreadable == 2


@pytest.mark.invariant("No caller and no rater moves a canary alone.")
async def test_one_caller_alone_rolls_no_canary_back_and_several_do(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http), AsyncExitStack() as stack:
        shops = [await stack.enter_async_context(running.http(await running.key(name=f"shop {n}"))) for n in range(3)]
        sessions = itertools.count()

        async def some_rounds(complaining: list[httpx.AsyncClient]) -> None:
            """Each shop asks a few times, and gives feedback; those that complain find the canary bad."""
            for shop in shops * 4:
                answer = await ask(shop, f"session {next(sessions)}")
                good = answer.headers["x-apprentice-version"] == V1 or shop not in complaining
                body = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": good}
                assert (await shop.post("/v1/feedback", json=body)).status_code == 201

        async def rests_on_one() -> bool:
            await some_rounds(shops[:1])
            return bool((await judged_by_now(http))["signals"]["feedback"]["harm"]["rests_on_one"])

        await step(http, "canary", version=V2, share=0.5, plan=STRICT)
        await until(rests_on_one)
        await some_rounds(shops[:1])
        because = (await alias(http))["canary"]["because"]
        assert "one caller or rater alone shows it to be worse, which is not enough: feedback" in because
        while (shown := await alias(http))["canary"] is not None:
            await some_rounds(shops)
        await rolled_back(http, shown, "feedback")


async def test_a_canary_that_breaks_its_contract_is_rolled_back_by_itself(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "approve", V2: "well, approve"}
    async with two_versions(configure, make_adapter, contract=True) as (running, http):
        await step(http, "canary", version=V2, share=0.5, plan=STRICT)
        entry = await rolled_back(http, await asked_until_it_ends(running, http), "contract")
        assert "broken contracts are more than 2 points more frequent" in entry["after"]["because"]


async def test_a_canary_that_can_not_be_judged_keeps_no_other_waiting(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter, tasks={"alarms": {}, "returns": {}}) as (running, http):
        await running.services.control.registry.canary("returns", V2, 0.5, "a newer release", {"its": "plan"})
        for number in (3, 4):
            await running.place(of_task("alarms", make_adapter(number)), task="alarms", alias=number == 3)
        small.faults.add(Status(500), model="alarms@v2")
        body = {"version": "alarms@v2", "share": 0.5, "plan": STRICT}
        assert (await http.post("/admin/v1/aliases/alarms/canary", json=body)).status_code == 200
        async with asyncio.timeout(SECONDS_MAX):
            while "alarms@v2" in running.services.snapshot.current.policy.aliases["alarms"].weights:
                await ask(http, uuid.uuid4().hex, model="alarms")
        assert (await states(http))["alarms@v2"] == "quarantined"


async def test_a_canary_that_is_slow_is_rolled_back_by_itself(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        small.faults.add(SlowHeaders(0.3), model=V2)
        await step(http, "canary", version=V2, share=0.5, plan={"latency_ratio_max": 2})
        entry = await rolled_back(http, await asked_until_it_ends(running, http), "latency")
        assert "take over 2 times as long" in entry["after"]["because"]


async def test_a_canary_that_feedback_finds_worse_is_rolled_back_by_itself(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):

        async def judge(answer: httpx.Response) -> None:
            good = answer.headers["x-apprentice-version"] == V1
            body = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": good}
            assert (await http.post("/v1/feedback", json=body)).status_code == 201

        await step(http, "canary", version=V2, share=0.5, plan=STRICT | {"feedback_metric": "correct"})
        entry = await rolled_back(http, await asked_until_it_ends(running, http, judge), "feedback")
        assert "feedback is more than 2 points worse" in entry["after"]["because"]


async def test_canary_worse_on_the_same_inputs_is_rolled_back_though_few_meet_it(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "approve", V2: "well, approve"}
    async with two_versions(configure, make_adapter, contract=True) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        shown = await step(http, "canary", version=V2, share=1e-9, plan=STRICT)
        assert shown["shadow"] == {V2: 1.0}
        await rolled_back(http, await asked_until_it_ends(running, http), "shadow")
        assert (await alias(http))["shadow"] == {}
        assert {one["version"] for one in await shadows(running)} == {V2}


async def test_a_demonstration_judges_both_answers_to_a_request_that_was_shadowed(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "approve", V2: "reject"}
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "canary", version=V2, share=1e-9, plan=STRICT)
        await step(http, "shadow", version=V2, share=1.0)

        async def demonstrate(answer: httpx.Response) -> None:
            body = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": True}
            body |= {"demonstration": " approve "}
            assert (await http.post("/v1/feedback", json=body)).status_code == 201
            again = await http.post("/v1/feedback", json=body | {"rater": "somebody else"})
            assert again.status_code == 201

        entry = await rolled_back(http, await asked_until_it_ends(running, http, demonstrate), "shadow")
        assert entry["evidence"]["signals"]["shadow"]["pairs"] <= len(await shadows(running))
        assert entry["evidence"]["signals"]["shadow"]["mean_difference"] == 1.0


async def test_a_pair_that_contracts_have_judged_is_not_judged_again(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "approve", V2: "reject"}
    async with two_versions(configure, make_adapter, contract=True) as (running, http):
        await step(http, "canary", version=V2, share=1e-9, plan=STRICT)
        await step(http, "shadow", version=V2, share=1.0)
        answer = await ask(http)
        await until(lambda: shadows(running))
        body = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": True}
        assert (await http.post("/v1/feedback", json=body | {"demonstration": "approve"})).status_code == 201
        told = (await judged_by_now(http))["signals"]["shadow"]
        assert (told["pairs"], told["mean_difference"]) == (1, 0.0)


async def test_a_shadow_whose_engine_was_only_busy_is_no_evidence(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "approve"}
    async with two_versions(configure, make_adapter, contract=True) as (running, http):
        small.faults.add(Status(503), model=V2)
        await step(http, "canary", version=V2, share=1e-9, plan=STRICT)
        await step(http, "shadow", version=V2, share=1.0)
        await ask(http)
        [shadow] = await until(lambda: shadows(running))
        assert shadow["attempts"][0]["fault"] == "overloaded"
        assert (await judged_by_now(http))["signals"]["shadow"]["pairs"] == 0


async def test_requests_that_name_the_canary_or_follow_a_rule_are_no_evidence(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "canary", version=V2, share=0.5, plan=STRICT | {"feedback_metric": "correct"})
        rule = {"action": "version", "task": "returns", "version": V2, "metadata": {"team": "testers"}}
        assert (await http.put("/admin/v1/overrides/testers", json=rule)).status_code == 200
        for more in ({"model": V2}, {"metadata": {"team": "testers"}}):
            answer = await ask(http, **more)
            assert answer.json()["model"] == V2
            body = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": False}
            await record_of(http, answer)
            assert (await http.post("/v1/feedback", json=body)).status_code == 201
        await until(lambda: running.services.redis.xlen("apprentice:feedback"))
        evidence = await judged_by_now(http)
        assert (evidence["canary_requests"], evidence["signals"]["feedback"]["waiting"]) == (0, 0)


# ---- good ones, and those that are left to people -------------------------------------------------


async def test_equally_good_canary_is_promoted_by_itself_with_the_evidence_in_the_audit(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        loads = loads_of(small)
        await step(http, "canary", version=V2, share=0.5, plan=EASY)
        shown = await asked_until_it_ends(running, http)
        assert (shown["weights"], shown["previous"]) == ({V2: 1.0}, [V1])
        assert await states(http) == {V1: "previous_version", V2: "active"}
        [entry] = await until(lambda: audit_of(http, "alias.promote"))
        assert entry["actor"] == "system"
        assert entry["evidence"]["canary_requests"] >= EASY["requests_min"]
        assert all(entry["evidence"]["signals"][name]["no_worse"]["shown"] for name in ("error", "latency"))
        assert (await step(http, "rollback"))["weights"] == {V1: 1.0}
        assert loads_of(small) == loads


async def test_a_canary_without_a_plan_is_never_moved_by_itself(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        small.faults.add(Status(500), model=V2)
        await step(http, "canary", version=V2, share=0.5)
        before = await alias(http)
        for number in range(60):
            await ask(http, f"session {number}")
        await until(lambda: as_many(running.services.redis.xrange(STREAM_KEY), 60))
        asked_at = time.time()

        async def judged_all() -> bool:
            summary = await running.features[Quality].store.read_last_summary()
            return summary is not None and summary.at > asked_at

        await until(judged_all)
        assert await alias(http) == before
        assert before["canary"]["verdict"] == "continue"
        words = (await http.get(f"/admin/v1/adapters/{V2}/why")).json()["words"]
        assert words[-1] == "Its canary: judged by people, since it has no plan."


async def test_canary_without_a_verdict_in_its_time_is_held_and_why_names_its_wait(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        await step(http, "canary", version=V2, share=0.5, plan={"seconds_max": 1})
        [entry] = await until(lambda: audit_of(http, "alias.hold"))
        because = entry["after"]["because"]
        assert because.startswith("No verdict after 1 s (0 of 200 canary requests were seen; ")
        for _ in range(3):
            await judged_by_now(http)
        assert len(await audit_of(http, "alias.hold")) == 1
        assert (await alias(http))["weights"] == {V2: 0.5, V1: 0.5}
        words = (await http.get(f"/admin/v1/adapters/{V2}/why")).json()["words"]
        assert words[-1] == f"Its canary: {because}"


async def test_a_plan_that_can_not_be_used_is_refused_and_named(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        for plan, word in (({"alpha": 2}, "alpha"), ({"alhpa": 0.1}, "alhpa"), ({"feedback_metric": "x"}, "'x'")):
            error = (await step(http, "canary", 400, version=V2, share=0.5, plan=plan))["error"]
            assert (error["code"], word in error["message"]) == ("invalid_value", True)
        assert (await alias(http))["canary"] is None


# ---- two gateways --------------------------------------------------------------------------------


async def test_a_second_gateway_goes_on_with_the_judgement_where_a_killed_one_stopped(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    key = new_key()[0]
    configuration = configure(**QUICK | JUDGED_OFTEN, listen={"port": 0})
    config = tmp_path / "apprentice.yaml"
    plain = msgspec.to_builtins(configuration, enc_hook=str)
    config.write_text(yaml.safe_dump(plain))
    plan = STRICT | {"alpha": 1e-6}
    async with served(config, key) as first:
        async with client(first, key) as http:
            for number in (1, 2):
                body = {"task": "returns", "path": str(make_adapter(number))}
                assert (await http.post("/admin/v1/adapters", json=body)).status_code == 201
                assert (await http.post(f"/admin/v1/adapters/returns@v{number}/stage")).status_code == 200
            await step(http, "promote", version=V1)
            small.faults.add(Status(500), model=V2)
            await step(http, "canary", version=V2, share=0.5, plan=plan)
            for number in range(20):
                await ask(http, f"before {number}")
            evidence = await until(lambda: _evidence_of(http, 20))
        await first.stop(signal.SIGKILL)
        async with run_gateway(configuration, key) as second, second.http() as http:
            begun = (await alias(http))["canary"]
            later = {"seconds_running": begun["evidence"]["seconds_running"]}  # it was judged once more meanwhile
            assert begun["evidence"] == evidence | later
            asked = len(small.requests)
            entry = await rolled_back(http, await asked_until_it_ends(second, http), "error")
            told = entry["evidence"]["signals"]["error"]
            assert told["pairs"] > evidence["signals"]["error"]["pairs"]
            records = await second.services.redis.xlen(STREAM_KEY)
            seen = entry["evidence"]["canary_requests"] + entry["evidence"]["active_requests"]
            assert 20 < seen <= records
            assert len(small.requests) > asked


async def _evidence_of(http: httpx.AsyncClient, requests: int) -> dict[str, Any] | None:
    evidence: dict[str, Any] = (await alias(http))["canary"]["evidence"]
    seen = evidence and evidence["canary_requests"] + evidence["active_requests"]
    return evidence if seen == requests else None
