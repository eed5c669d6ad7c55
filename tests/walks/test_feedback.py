"""Feedback and records: stored before they are acknowledged, found by whoever may, on any gateway."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest

from gateway.callers import new_key
from monitoring.records import Record
from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import APPENDS, valkey
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


async def ask(gateway: RunningGateway, key: str | None = None, **more: object) -> str:
    """Ask the task, and return the request's id."""
    async with gateway.openai(key) as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK, **more)
    return str(answer.headers["x-request-id"])


async def test_a_thousand_judgements_sent_at_once_to_two_gateways_are_all_found(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    admin_key = new_key()[0]
    async with run_gateway(configure(), admin_key) as one, run_gateway(configure(), admin_key) as two:
        await one.place(make_adapter(1))
        async with one.http() as asking, two.http() as judging:

            async def ask_and_judge() -> list[int]:
                statuses = []
                for number in range(50):
                    asked, judged = (asking, judging) if number % 2 else (judging, asking)
                    answer = await asked.post("/v1/chat/completions", json={"model": "returns", **ASK})
                    feedback = {"request_id": answer.json()["id"], "metric": "correct", "value": number % 3 > 0}
                    statuses.append((await judged.post("/v1/feedback", json=feedback)).status_code)
                return statuses

            statuses = [
                status for some in await asyncio.gather(*(ask_and_judge() for _ in range(20))) for status in some
            ]
            assert statuses == [201] * 1000
            async with asyncio.timeout(60):
                while await one.services.redis.xlen("apprentice:feedback") < 1000:
                    await asyncio.sleep(0.05)
        assert await one.services.redis.xlen("apprentice:records") == 1000
        assert await one.services.redis.xlen("apprentice:feedback") == 1000
        ratios = [gateway.services.coverage.ratios()["returns",] for gateway in (one, two)]
        assert sum(ratios) == pytest.approx(2)  # of 500 each; most judgements come before their record


async def test_a_record_tells_all_of_its_request_and_its_feedback(gateway: RunningGateway) -> None:
    request_id = await ask(gateway)
    async with gateway.http() as http:
        feedback = {"request_id": request_id, "metric": "correct", "value": True, "rater": "reviewer-1"}
        assert (await http.post("/v1/feedback", json=feedback)).status_code == 201
        told = (await http.get(f"/v1/requests/{request_id}")).json()
    record = told["record"]
    assert (record["task"], record["version"], record["pool"]) == ("returns", "returns@v1", "small")
    assert (record["outcome"], record["status"], record["reason"]) == ("ok", 200, "adapter")
    assert record["prompt_tokens"] > 0
    assert record["cost_usd"] == pytest.approx(
        record["prompt_tokens"] * 1e-6 + record["completion_tokens"] * 2e-6, rel=1e-6
    )
    assert record["saving_usd"] == pytest.approx(9 * record["cost_usd"], rel=1e-6)
    assert record["stack"].startswith("sha256:")
    assert record["adapter_digest"].startswith("sha256:")
    assert len(record["request_digest"]) == len(record["answer_digest"]) == 32
    assert record["attempts"][0]["replica"] == "small-0"
    assert told["feedback"][0]["value"] is True
    assert any("returns@v1" in sentence for sentence in told["explanation"])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
async def test_a_demonstration_that_json_can_not_hold_is_refused(gateway: RunningGateway, number: str) -> None:
    request_id = await ask(gateway)
    body = f'{{"request_id": "{request_id}", "metric": "correct", "value": true, "demonstration": [{number}]}}'
    async with gateway.http() as http:
        answer = await http.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "demonstration"), answer.text
    assert await gateway.services.redis.xlen("apprentice:feedback") == 0


async def test_the_same_feedback_again_is_harmless_and_another_under_its_id_is_refused(gateway: RunningGateway) -> None:
    request_id = await ask(gateway)
    feedback = {"request_id": request_id, "metric": "correct", "value": True, "feedback_id": "order-7"}
    async with gateway.http() as http:
        statuses = [(await http.post("/v1/feedback", json=feedback)).status_code for _ in range(3)]
        other = await http.post("/v1/feedback", json={**feedback, "value": False})
        batch = await http.post(
            "/v1/feedback",
            json={"feedback": [feedback, {"request_id": "nope", "metric": "correct", "value": True}]},
        )
    assert statuses == [201, 200, 200]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "feedback_conflict")
    assert [result["status"] for result in batch.json()["results"]] == [200, 404]


async def test_error_in_one_of_a_batch_is_its_own_result_and_the_others_are_stored(
    gateway: RunningGateway,
) -> None:
    request_id = await ask(gateway)
    good = {"request_id": request_id, "metric": "correct", "value": True}
    bad: list[Any] = [{"request_id": request_id, "value": True}, {**good, "colour": "red"}, 7, {**good, "metric": 7}]
    async with gateway.http() as http:
        told = await http.post("/v1/feedback", json={"feedback": [*bad, good]})
    results = told.json()["results"]
    assert [result["status"] for result in results] == [400, 400, 400, 400, 201]
    assert [result["error"]["code"] for result in results[:-1]] == [
        "missing_field",
        "unknown_parameter",
        "invalid_value",
        "invalid_value",
    ]
    assert [result["error"]["param"] for result in results[:-1]] == ["metric", "colour", None, "metric"]


async def test_only_its_own_caller_operators_and_admins_see_and_judge_a_request(gateway: RunningGateway) -> None:
    mine, other = await gateway.key(), await gateway.key()
    operator = await gateway.key(role="operator")
    request_id = await ask(gateway, mine)
    feedback = {"request_id": request_id, "metric": "correct", "value": True}
    statuses = {}
    async with gateway.http(mine) as http:
        assert (await http.get(f"/v1/requests/{request_id}")).status_code == 200
    for name, key in (("other", other), ("operator", operator), ("admin", gateway.admin_key)):
        async with gateway.http(key) as http:
            read = await http.get(f"/v1/requests/{request_id}")
            judged = await http.post("/v1/feedback", json=feedback)
            statuses[name] = (read.status_code, judged.status_code)
    assert statuses == {"other": (404, 404), "operator": (200, 201), "admin": (200, 201)}


async def test_a_session_and_a_subject_name_their_latest_request(gateway: RunningGateway) -> None:
    headers = {"x-apprentice-session": "chat-1", "x-apprentice-subject": "order-17"}
    await ask(gateway, extra_headers=headers)
    request_id = await ask(gateway, extra_headers=headers)
    async with gateway.http() as http:
        assert (await http.get(f"/v1/requests/{request_id}")).status_code == 200
        for name, value in (("session", "chat-1"), ("subject", "order-17")):
            async with asyncio.timeout(30):
                while True:
                    answer = await http.post("/v1/feedback", json={name: value, "metric": "correct", "value": False})
                    if answer.json().get("request_id") == request_id:
                        break
                    await asyncio.sleep(0.02)
        unknown = await http.post("/v1/feedback", json={"subject": "order-18", "metric": "correct", "value": False})
    assert unknown.status_code == 404


async def test_feedback_by_session_judges_the_latest_answer_however_soon_it_comes(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        for name in ("x-apprentice-session", "x-apprentice-subject"):
            kind = name.removeprefix("x-apprentice-")
            for _ in range(20):
                asked = await http.post(
                    "/v1/chat/completions", json={"model": "returns", **ASK}, headers={name: "Gespräch-1".encode()}
                )
                request_id = asked.headers["x-request-id"]
                judged = await http.post("/v1/feedback", json={kind: "Gespräch-1", "metric": "correct", "value": True})
                assert (judged.status_code, judged.json().get("request_id")) == (201, request_id)


async def test_a_request_whose_stream_still_runs_is_judged_by_its_id_alone(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    small.token_delay_seconds = 0.5
    body = {"model": "returns", **ASK, "stream": True}
    async with (
        gateway.http() as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers={"x-apprentice-session": "chat-2"}) as asked,
    ):
        judged = {"metric": "correct", "value": True}
        by_session = await http.post("/v1/feedback", json={"session": "chat-2", **judged})
        by_id = await http.post("/v1/feedback", json={"request_id": asked.headers["x-request-id"], **judged})
    assert (by_session.status_code, by_id.status_code) == (404, 201)
    assert "judge it by its request_id" in by_session.json()["error"]["message"]


async def test_a_rater_who_changes_back_is_heard(gateway: RunningGateway) -> None:
    request_id = await ask(gateway)
    async with gateway.http() as http:
        statuses = []
        for value in (True, True, False, True):
            feedback = {"request_id": request_id, "metric": "correct", "value": value}
            statuses.append((await http.post("/v1/feedback", json=feedback)).status_code)
        told = (await http.get(f"/v1/requests/{request_id}")).json()["feedback"]
    assert statuses == [201, 200, 201, 201]
    assert [feedback["value"] for feedback in told] == [True, False, True]


async def test_judgement_waits_for_a_record_however_long_it_lies_in_another_spool(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a request's id is all that this gateway can know: genuine, and made a while ago."""
    services = gateway.services
    caller = gateway.admin_key.split("-")[2]
    retention_seconds = services.settings.records.retention_seconds
    made_at = time.time() - retention_seconds / 2
    with monkeypatch.context() as earlier:
        earlier.setattr("monitoring.ids.time.time_ns", lambda: int(made_at * 1e9))
        request_id = services.ids.make(caller)
        earlier.setattr("monitoring.ids.time.time_ns", lambda: int((time.time() - retention_seconds - 60) * 1e9))
        too_old = services.ids.make(caller)
    feedback = {"request_id": request_id, "metric": "correct", "value": True}
    async with gateway.http() as http:
        assert (await http.post("/v1/feedback", json=feedback)).status_code == 201
        assert (await http.post("/v1/feedback", json={**feedback, "request_id": too_old})).status_code == 410
        assert await services.redis.xlen("apprentice:feedback") == 0
        record = Record(id=request_id, at=made_at, endpoint="chat", caller=caller, requested_model="returns")
        await services.flow.stream.append([record])
        told = (await http.get(f"/v1/requests/{request_id}")).json()
    assert await services.redis.xlen("apprentice:feedback") == 1
    assert [one["value"] for one in told["feedback"]] == [True]


@pytest.mark.invariant("Feedback is acknowledged only when stored.")
async def test_without_redis_requests_go_on_and_feedback_is_refused_not_lost(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with valkey(*APPENDS) as state, run_gateway(configure(redis_url=state.url)) as gateway:
        await gateway.place(make_adapter(1))
        before = await ask(gateway)
        await state.end()
        during = await ask(gateway)
        async with gateway.http() as http:
            refused = await http.post("/v1/feedback", json={"request_id": before, "metric": "correct", "value": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "retry-after" in refused.headers
        await state.start()
        async with gateway.http() as http:

            async def is_found() -> bool:
                return (await http.get(f"/v1/requests/{during}")).status_code == 200

            await until(is_found)
            judged = await http.post("/v1/feedback", json={"request_id": during, "metric": "correct", "value": True})
        assert judged.status_code == 201


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_of_too_few_or_too_many_is_told_how_many_it_takes(gateway: RunningGateway, count: int) -> None:
    one = {"request_id": "a", "metric": "correct", "value": True}
    async with gateway.http() as http:
        refused = await http.post("/v1/feedback", json={"feedback": [one] * count})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "feedback")
    assert error["message"] == "feedback: it holds 1 to 1000 entries."


@pytest.mark.parametrize("value", [None, ["yes"], {"correct": True}])
async def test_a_value_that_no_metric_takes_is_named_as_such(gateway: RunningGateway, value: object) -> None:
    one = {"request_id": "a", "metric": "correct", "value": value}
    async with gateway.http() as http:
        refused = await http.post("/v1/feedback", json=one)
        several = await http.post("/v1/feedback", json={"feedback": [one]})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "value")
    assert error["message"] == "value: it is true or false, a number or a text, as its metric declares."
    assert several.json()["results"][0]["error"] == error


async def test_who_changes_their_mind_has_both_judgements_stored(gateway: RunningGateway) -> None:
    request_id = await ask(gateway)
    async with gateway.http() as http:
        for value in (True, False):
            one = {"request_id": request_id, "metric": "correct", "value": value}
            assert (await http.post("/v1/feedback", json=one)).status_code == 201
        told = (await http.get(f"/v1/requests/{request_id}")).json()
    assert [one["value"] for one in told["feedback"]] == [True, False]


async def test_a_record_of_a_failed_request_says_what_failed(gateway: RunningGateway, small: FakeEngine) -> None:
    async with gateway.openai() as client:
        with pytest.raises(openai.BadRequestError) as told:
            await client.chat.completions.create(model="returns", temperature=9, **ASK)
    request_id = told.value.response.headers["x-request-id"]
    async with gateway.http() as http:
        record = (await http.get(f"/v1/requests/{request_id}")).json()["record"]
    assert (record["outcome"], record["error_code"], record["status"]) == ("refused", "invalid_value", 400)
