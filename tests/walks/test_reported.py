"""Traffic that another gateway served, taken in to be judged here: stored once, and never taken for served traffic."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import httpx
import pytest

from gateway.callers import new_key
from gateway.features.reported.reports import REPORTS_MAX
from router.confidence_model import Calibration, ConfidenceModel
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import (
    STRICT,
    V2,
    judged_by_now,
    step,
    two_versions,
    with_contract,
)
from tests.walks.scope_world import OUT_OF_SCOPE, keep, prompts

MESSAGES = [{"role": "user", "content": "A toaster, sealed, after 3 days."}]
CHECKS = {name: {"mode": "enforce"} for name in ("out_of_scope", "contract", "refusal", "holdout", "degraded")}
COMMIT = {"commit": "complete"}
CALIBRATION = Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))


def report(**more: Any) -> dict[str, Any]:
    """A report of a request that was served well, a minute ago."""
    return {"source_id": uuid.uuid4().hex, "task": "returns", "at": time.time() - 60, **more}


async def send(http: httpx.AsyncClient, wanted: int = 201, **more: Any) -> dict[str, Any]:
    answer = await http.post("/v1/records", json=report(**more))
    assert answer.status_code == wanted, answer.text
    return dict(answer.json())


async def batch(http: httpx.AsyncClient, *entries: Any) -> list[dict[str, Any]]:
    answer = await http.post("/v1/records", json={"records": entries})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


async def record_of(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    return dict((await http.get(f"/v1/requests/{name}")).json())


async def test_a_report_is_stored_as_a_record_that_is_found_by_both_its_names(gateway: RunningGateway) -> None:
    key = await gateway.key()
    told = report(
        version="returns@v1",
        pool="small",
        messages=MESSAGES,
        answer="approve",
        finish_reason="stop",
        prompt_tokens=12,
        completion_tokens=3,
        cost_usd=0.25,
        duration_seconds=1.5,
        first_token_seconds=0.5,
        probability=0.25,
        session="a session",
    )
    async with gateway.http(key) as http:
        answer = await http.post("/v1/records", json=told)
        assert answer.status_code == 201
        request_id = answer.json()["request_id"]
        assert answer.json() == {"request_id": request_id, "source_id": told["source_id"]}
        by_ours, by_theirs = await record_of(http, request_id), await record_of(http, told["source_id"])
    record = by_ours["record"]
    assert by_ours == by_theirs
    same = ("task", "version", "pool", "at", "finish_reason", "prompt_tokens", "completion_tokens", "cost_usd")
    more = ("duration_seconds", "first_token_seconds", "probability")
    assert {name: record[name] for name in (*same, *more)} == {name: told[name] for name in (*same, *more)}
    assert (record["purpose"], record["reason"], record["outcome"], record["status"]) == ("reported", None, "ok", 200)
    assert (record["attempts"], record["saving_usd"], record["replica"]) == ([], None, None)
    assert "Another gateway served it" in " ".join(by_ours["explanation"])
    assert await gateway.services.redis.xlen("apprentice:records") == 0
    assert "toaster" not in str(await gateway.services.redis.xrange("apprentice:reported"))


async def test_each_check_says_what_it_would_have_done_and_none_is_enforced(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    task = {"checks": CHECKS, **COMMIT}
    async with run_gateway(configure(tasks={"returns": task})) as gateway, gateway.http() as http:
        await gateway.place(with_contract(make_adapter(1)))
        await keep(gateway, "returns@v1")

        async def findings(text: str, answer: str, **more: Any) -> dict[str, Any]:
            told = await send(http, messages=[{"role": "user", "content": text}], answer=answer, **more)
            record = (await record_of(http, told["request_id"]))["record"]
            assert {one["mode"] for one in record["findings"]} == {"observe"}
            assert {one["version"] for one in record["findings"]} == {"returns@v1"}
            return {one["check"]: one for one in record["findings"]} | {"kept": record["contract_kept"]}

        inside = await findings(prompts("returns")[0], "approve", version="returns@v1")
        assert inside.keys() == {"out_of_scope", "contract", "refusal", "kept"}
        assert not any(inside[name]["fired"] for name in ("out_of_scope", "contract", "refusal"))
        assert inside["kept"] is True
        assert len(inside["out_of_scope"]["neighbours"]) == 3
        outside = await findings(OUT_OF_SCOPE, "I'm sorry, but I can't help with that.", version="returns@v1")
        assert all(outside[name]["fired"] for name in ("out_of_scope", "contract", "refusal"))
        by_general = await findings(OUT_OF_SCOPE, "approve", pool="general")
        assert [by_general[name]["fired"] for name in ("out_of_scope", "contract", "refusal")] == [True, False, False]


async def test_an_answers_logprobs_are_judged_by_its_versions_calibration(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    task = {"checks": {"low_confidence": {"mode": "observe"}}, **COMMIT}
    async with run_gateway(configure(tasks={"returns": task})) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))

        async def finding(**more: Any) -> dict[str, Any]:
            told = await send(http, messages=MESSAGES, answer="approve", **more)
            (found,) = (await record_of(http, told["request_id"]))["record"]["findings"]
            return dict(found)

        assert (await finding(version="returns@v1", logprobs=[-0.1]))["note"] == "no calibration"
        model = ConfidenceModel((0.5, 0.3, 0.8, -0.2, 1.5, -2.0), 0.4, 0.6, CALIBRATION)
        await gateway.services.control.fitted.put("returns@v1", "confidence", model.to_json(), "", {})
        async with asyncio.timeout(60):
            while gateway.services.snapshot.current.policy.fitted.get("returns@v1") is None:
                await asyncio.sleep(0.01)
        assert (await finding(version="returns@v1"))["note"] == "logprobs could not be asked for"
        assert (await finding(version="returns@v1", logprobs=[-0.1, 0.0]))["score"] is not None


async def test_a_report_is_taken_for_as_long_as_a_request_can_be_judged(gateway: RunningGateway) -> None:
    kept_seconds = gateway.services.settings.records.retention_seconds
    async with gateway.http() as http:
        told = await send(http, at=time.time() - kept_seconds + 60)
        judged = {"request_id": told["request_id"], "metric": "correct", "value": True}
        assert (await http.post("/v1/feedback", json=judged)).status_code == 201
        late = await send(http, 400, at=time.time() - kept_seconds - 60)
        assert f"(records.retention_seconds: {kept_seconds} s)" in late["error"]["message"]


async def test_a_second_sending_is_the_same_and_another_report_under_its_name_a_conflict(
    gateway: RunningGateway,
) -> None:
    told = report(messages=MESSAGES, answer="approve")
    async with gateway.http() as http:
        answers = await asyncio.gather(*(http.post("/v1/records", json=told) for _ in range(10)))
        assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
        assert len({answer.json()["request_id"] for answer in answers}) == 1
        other = await http.post("/v1/records", json={**told, "answer": "reject"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "record_conflict")
        assert other.headers["x-should-retry"] == "false"
        async with gateway.http(await gateway.key()) as another:
            assert (await another.post("/v1/records", json={**told, "answer": "reject"})).status_code == 201
    assert await gateway.services.redis.xlen("apprentice:reported") == 2


async def test_report_whose_gateway_died_after_claiming_it_is_stored_by_the_second_try(
    gateway: RunningGateway,
) -> None:
    told = report()
    async with gateway.http() as http:
        request_id = (await http.post("/v1/records", json=told)).json()["request_id"]
        await gateway.services.redis.delete("apprentice:reported", f"apprentice:record:{request_id}")
        again = await http.post("/v1/records", json=told)
        assert (again.status_code, again.json()["request_id"]) == (200, request_id)
        assert (await record_of(http, request_id))["record"]["purpose"] == "reported"


async def test_in_a_batch_each_entry_has_a_result_and_a_wrong_one_refuses_only_itself(gateway: RunningGateway) -> None:
    good = report()
    wrong = [
        "no object",
        report(piano=1),
        {name: value for name, value in report().items() if name != "source_id"},
        report(task="clauses"),
        report(version="returns@v9"),
        report(version="clauses@v1"),
        report(pool="nowhere"),
        report(at=time.time() + 3600),
        report(at=1.0),
        report(messages=MESSAGES, prompt="A toaster."),
        report(messages=[{"role": 5}]),
        report(logprobs=[0.5]),
        report(probability=0),
        report(source_id="x" * 201),
        report(status=99),
    ]
    async with gateway.http() as http:
        results = await batch(http, good, *wrong, report(), good)
    codes = [one.get("error", {}).get("code") for one in results[1:-2]]
    assert codes[:3] == ["invalid_value", "unknown_parameter", "missing_field"]
    assert codes[3:7] == ["model_not_found"] * 4
    assert codes[7:] == ["invalid_value"] * 8
    params = [one["error"]["param"] for one in results[1:-2]]
    assert params[1:9] == ["piano", "source_id", "task", "version", "version", "pool", "at", "at"]
    assert params[9:] == ["prompt", "messages[0].role", "logprobs[0]", "probability", "source_id", "status"]
    assert [results[at]["status"] for at in (0, -2, -1)] == [201, 201, 200]
    assert results[0]["request_id"] == results[-1]["request_id"]
    counted = gateway.services.meters.reported_records
    assert [counted.cell("returns", "", outcome).value for outcome in ("created", "same")] == [2, 1]
    assert counted.cell("", "", "refused").value == len(wrong)


NO_REPORTS: list[tuple[bytes, str, str | None]] = [
    (b"{", "invalid_json", None),
    (b'{"records": []}', "invalid_value", "records"),
    (b'{"records": 1}', "invalid_value", "records"),
    (b'{"records": [{}], "piano": 1}', "unknown_parameter", "piano"),
    (b"[]", "invalid_value", "records"),
    (b"\xff", "invalid_json", None),
    (b'{"records": [' + b"1," * REPORTS_MAX + b"1]}", "invalid_value", "records"),
    (b'{"source_id": "a", "task": "returns"}', "missing_field", "at"),
]


async def test_a_body_that_is_no_report_is_refused(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for body, code, param in NO_REPORTS:
        with subtests.test(code=code, param=param):
            async with gateway.http() as http:
                answer = await http.post("/v1/records", content=body, headers={"content-type": "application/json"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


async def test_a_key_reports_only_the_tasks_that_it_may_use(gateway: RunningGateway) -> None:
    async with gateway.http(await gateway.key(models=["general"])) as http:
        assert (await send(http, 403))["error"]["code"] == "model_not_allowed"
    async with gateway.http("") as http:
        assert (await http.post("/v1/records", json=report())).status_code == 401


async def test_a_full_batch_is_taken_in_and_holds_up_nobody(gateway: RunningGateway) -> None:
    entries = [report(messages=MESSAGES, answer="approve") for _ in range(REPORTS_MAX)]
    async with gateway.http() as http:
        sending = asyncio.create_task(batch(http, *entries))
        answered = 0
        while not sending.done():
            await http.post("/v1/chat/completions", json={"model": "returns", "messages": MESSAGES})
            answered += 1
        assert {one["status"] for one in await sending} == {201}
    assert answered > 1


@pytest.mark.invariant("Reported traffic counts as nothing that was served, and judges no canary.")
async def test_what_is_reported_counts_as_nothing_that_was_served(gateway: RunningGateway) -> None:
    key = await gateway.key(limits={"requests_per_minute": 10, "tokens_per_minute": 1000, "usd_per_day": 1})
    async with gateway.http(key) as http, gateway.http() as admin:
        before = [line for line in (await admin.get("/metrics")).text.splitlines() if is_of_requests(line)]
        told = await send(http, version="returns@v1", prompt_tokens=500, completion_tokens=500, cost_usd=0.9)
        judged = {"request_id": told["source_id"], "metric": "correct", "value": True}
        assert (await http.post("/v1/feedback", json=judged)).status_code == 201
        usage = (await http.get("/v1/usage")).json()["usage"]
        assert {usage[name]["spent"] for name in ("tokens_per_minute", "usd_per_day")} == {0}
        after = [line for line in (await admin.get("/metrics")).text.splitlines() if is_of_requests(line)]
        assert after == before
        assert gateway.services.coverage.ratios() == {}
        assert (await record_of(http, told["request_id"]))["feedback"][0]["value"] is True


def is_of_requests(line: str) -> bool:
    kinds = ("requests_total", "tokens_total", "cost_", "saving", "overspend", "duration", "check_fired", "coverage")
    return line.startswith("apprentice_") and any(kind in line.partition("{")[0] for kind in kinds)


@pytest.mark.invariant("Reported traffic counts as nothing that was served, and judges no canary.")
async def test_reports_of_its_version_and_feedback_on_them_do_not_judge_a_canary(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        await step(http, "canary", version=V2, share=0.5, plan=STRICT | {"feedback_metric": "correct"})
        for number in range(20):
            told = await send(http, version=V2, at=time.time(), status=500 if number % 2 else 200)
            judged = {"request_id": told["request_id"], "metric": "correct", "value": False}
            assert (await http.post("/v1/feedback", json=judged)).status_code == 201
        evidence = await judged_by_now(http)
    assert evidence["canary_requests"] == 0
    assert evidence["signals"]["feedback"]["waiting"] == 0


async def test_nothing_is_acknowledged_that_redis_did_not_take(configure: Configure, make_adapter: MakeAdapter) -> None:
    admin_key = new_key()[0]
    async with run_gateway(configure(), admin_key) as gateway, gateway.http() as http:
        told = report()
        await gateway.services.redis.config_set("maxmemory", "1")
        try:
            answer = await http.post("/v1/records", json=told)
        finally:
            await gateway.services.redis.config_set("maxmemory", "0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert (await http.post("/v1/records", json=told)).status_code == 201
