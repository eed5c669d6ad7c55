"""A caller's view when an engine fails: another try, or a labelled answer from general, or a clear error."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest

from serving.replica import OUTAGE_SECONDS_UNKNOWN
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, ErrorEvent, Fault, HugeEvent, Reset, Silent, Status, Tokens
from tests.waiting import until
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
SHORT_LIMITS = {"answer_timeout_seconds": 1.0, "first_token_timeout_seconds": 1.0, "backoff_seconds": 0.01}


async def test_one_failure_is_tried_again_and_the_caller_sees_nothing_of_it(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    small.faults.add(Status(500), times=1)
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    assert answer.parse().model == "returns@v1"
    assert (answer.headers["x-apprentice-reason"], answer.headers["x-apprentice-attempts"]) == ("adapter", "2")


async def test_pause_before_another_attempt_is_no_overhead_of_the_gateway(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    small.faults.add(Status(429, retry_after=1), model="returns@*", times=1)
    began_at = time.monotonic()
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    seconds = time.monotonic() - began_at
    assert answer.headers["x-apprentice-attempts"] == "2"
    assert float(answer.headers["x-apprentice-overhead-ms"]) / 1000 < seconds - 0.5


async def test_a_rest_that_ends_before_the_body_is_there_turns_nobody_away(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    body = json.dumps({"model": "returns", **ASK}).encode()
    async with run_gateway(configure(limits=SHORT_LIMITS)) as gateway, gateway.openai() as client:
        await gateway.place(make_adapter(1))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.admin_key}\r\n"
            f"content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(*gateway.addresses[0])
        writer.write(head.encode())
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n"), "the request has begun"
        small.faults.add(Status(500), model="returns@*")
        replica = gateway.services.fleet.replicas["small-0"]
        while replica.breaker_state(time.monotonic()) == "closed":
            await client.chat.completions.create(model="returns", **ASK)
        small.faults.clear()
        await until(lambda: replica.breaker_state(time.monotonic()) == "half_open")
        writer.write(body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
    assert "x-apprentice-reason: adapter\r\n" in answer


@pytest.mark.invariant("Every fallback is labelled.")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Status(500), "engine_error"),
        (Status(503), "overload"),
        (Status(404), "engine_error"),
        (Status(401), "engine_error"),
        (Status(307), "engine_error"),
        (Reset(), "engine_error"),
        (Silent(), "timeout"),
        (Dies(0, "reset"), "engine_error"),
        (ErrorEvent(0), "engine_error"),
        (Status(200, text="<html>A proxy's page.</html>"), "engine_error"),
    ],
    ids=["500", "503", "404", "401", "307", "reset", "silent", "dies", "error_event", "html"],
)
async def test_an_engine_that_fails_for_good_is_replaced_by_general_with_a_label(
    configure: Configure,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    general: FakeEngine,
    fault: Fault,
    reason: str,
    stream: bool,
) -> None:
    async with run_gateway(configure(limits=SHORT_LIMITS)) as gateway, gateway.openai() as client:
        await gateway.place(make_adapter(1))
        rule = small.faults.add(fault, model="returns@*")
        answer = await client.chat.completions.with_raw_response.create(model="returns", stream=stream, **ASK)
        if stream:
            chunks = [chunk async for chunk in answer.parse()]
            assert chunks[-1].choices[0].finish_reason == "stop"
            model = chunks[0].model
        else:
            model = answer.parse().model
        async with gateway.http("") as http:
            metrics = (await http.get("/metrics")).text
    assert model == "large"
    assert (answer.headers["x-apprentice-pool"], answer.headers["x-apprentice-reason"]) == ("general", reason)
    assert "x-apprentice-version" not in answer.headers
    assert answer.headers["x-apprentice-task"] == "returns"
    assert general.requests[-1].body["messages"][0] == {"role": "system", "content": GENERAL_PROMPT}
    assert f'apprentice_fallbacks_total{{task="returns",from="small",to="general",reason="{reason}"}} 1' in metrics
    assert rule.shown == 1 or not isinstance(fault, (Silent, Reset))
    assert all(replica.in_flight == 0 for replica in gateway.services.fleet.replicas.values())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            SHORT_LIMITS,
            "No engine gave its whole answer within 1 s (limits.answer_timeout_seconds). Stream it (`stream`: true), "
            "or ask for fewer tokens (`max_tokens`).",
        ),
        (
            {"request_timeout_seconds": 0.3},
            "The request's time limit is over. Ask for fewer tokens (`max_tokens`).",
        ),
    ],
    ids=["answer", "request"],
)
async def test_a_whole_answer_that_takes_too_long_says_how_to_ask_for_less(
    configure: Configure, general: FakeEngine, limits: dict[str, float], said: str
) -> None:
    general.faults.add(Silent())
    async with run_gateway(configure(limits=limits)) as gateway, gateway.openai() as client:
        with pytest.raises(openai.InternalServerError) as whole:
            await client.chat.completions.create(model="general", **ASK)
        with pytest.raises(openai.InternalServerError) as streamed:
            await client.chat.completions.create(model="general", stream=True, **ASK)
    assert said in whole.value.message
    assert "fewer tokens" not in streamed.value.message


async def test_a_dead_engine_is_replaced_by_general_and_comes_back_with_its_adapter(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    await small.kill()
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
        assert answer.headers["x-apprentice-pool"] == "general"
        assert answer.headers["x-apprentice-reason"] in ("engine_error", "no_replica")
        replica = gateway.services.fleet.replicas["small-0"]
        await small.until(lambda: not replica.up)
        await small.restart()
        await small.until(lambda: "returns@v1" in replica.loaded)
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    assert answer.headers["x-apprentice-version"] == "returns@v1"


async def test_with_every_engine_down_the_error_says_when_to_try_again(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine
) -> None:
    await small.kill()
    await general.kill()
    await general.until(lambda: not any(r.up for r in gateway.services.fleet.replicas.values()))
    async with gateway.openai() as client:
        with pytest.raises(openai.InternalServerError) as told:
            await client.chat.completions.create(model="returns", **ASK)
        assert (told.value.status_code, told.value.code) == (503, "no_replica")
        assert int(told.value.response.headers["retry-after"]) >= 1
    async with gateway.http("") as http:
        assert (await http.get("/health/ready")).status_code == 503
        assert (await http.get("/health/live")).status_code == 200


async def test_retry_after_is_as_long_as_an_engine_lately_took_to_come_back(
    configure: Configure, general: FakeEngine
) -> None:
    async with run_gateway(configure()) as gateway, gateway.openai() as client:
        replica, waits = gateway.services.fleet.replicas["general-0"], []
        for _ in range(2):
            await general.kill()
            await general.until(lambda: not replica.up)
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(model="general", **ASK)
            waits.append(int(refused.value.response.headers["retry-after"]))
            await general.restart()
            await general.until(lambda: replica.up)
    first, second = waits
    assert OUTAGE_SECONDS_UNKNOWN / 2 <= first <= OUTAGE_SECONDS_UNKNOWN
    assert second < first / 2


async def test_a_request_that_fails_at_every_attempt_counts_once_against_an_engine(
    configure: Configure, general: FakeEngine
) -> None:
    rule = general.faults.add(Status(500), model="large")
    async with run_gateway(configure(limits=SHORT_LIMITS)) as gateway, gateway.openai() as client:
        replica = gateway.services.fleet.replicas["general-0"]
        for number in range(1, 4):
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="general", **ASK)
            assert replica.view().circuits["large"].open == (number == 3)
    assert rule.shown == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_longer_than_the_limit_goes_to_the_fallback_and_blames_no_engine(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    limits = {**SHORT_LIMITS, "answer_timeout_seconds": 60, "first_token_timeout_seconds": 60, "answer_bytes_max": 2048}
    async with run_gateway(configure(limits=limits)) as gateway, gateway.openai() as client:
        await gateway.place(make_adapter(1))
        rule = small.faults.add(Tokens(900), HugeEvent(after_tokens=0), model="returns@*")
        asked = {"model": "returns", "stream": stream, "max_tokens": 900, **ASK}
        answer = await client.chat.completions.with_raw_response.create(**asked)
        assert (answer.headers["x-apprentice-pool"], answer.headers["x-apprentice-reason"]) == (
            "general",
            "engine_error",
        )
        general.faults.add(Tokens(900), HugeEvent(after_tokens=0))
        with pytest.raises(openai.InternalServerError) as told:
            await client.chat.completions.create(**asked)
        assert not gateway.services.fleet.replicas["small-0"].view().circuits
    assert (told.value.status_code, told.value.code) == (502, "engine_error")
    assert "longer than the gateway takes" in str(told.value)
    assert (rule.shown, general.requests_total) == (2, 2)


async def test_a_pinned_version_is_never_replaced(gateway: RunningGateway, small: FakeEngine) -> None:
    small.faults.add(Status(500), model="returns@*")
    async with gateway.openai() as client:
        with pytest.raises(openai.InternalServerError) as told:
            await client.chat.completions.create(model="returns@v1", **ASK)
    assert told.value.code == "engine_error"


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("context_length_exceeded", {"error": {"message": "the maximum context length is 10", "code": 400}}),
        ("context_length_exceeded", {"error": {"message": "too long", "code": "context_length_exceeded"}}),
        ("content_policy", {"error": {"message": "no", "code": "content_policy_violation"}}),
        ("content_policy", {"error": {"message": "no", "code": "content_filter"}}),
        ("engine_refused", {"error": {"message": "temperature must be …", "code": 400}}),
    ],
)
async def test_what_the_engine_refuses_is_told_and_never_sent_again(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, code: str, body: dict[str, Any]
) -> None:
    rule = small.faults.add(Status(400, body), model="returns@*")
    before = general.requests_total
    async with gateway.openai() as client:
        with pytest.raises(openai.BadRequestError) as told:
            await client.chat.completions.create(model="returns", **ASK)
    assert told.value.code == code
    engine_code = body["error"]["code"]
    assert told.value.body.get("engine_code") == (engine_code if isinstance(engine_code, str) else None)
    assert rule.shown == 1
    assert general.requests_total == before


@pytest.mark.parametrize(
    "body",
    [
        {"error": "the stop is too long", "error_type": "validation"},
        {"detail": "the stop is too long"},
        [{"error": {"code": 400, "message": "the stop is too long", "status": "INVALID_ARGUMENT"}}],
    ],
    ids=["TGI and Ollama", "FastAPI", "Gemini"],
)
async def test_refusal_in_another_engines_shape_keeps_its_words(
    gateway: RunningGateway, small: FakeEngine, body: Any
) -> None:
    small.faults.add(Status(400, text=json.dumps(body)), model="returns@*")
    async with gateway.openai() as client:
        with pytest.raises(openai.BadRequestError, match="the stop is too long"):
            await client.chat.completions.create(model="returns", **ASK)


async def test_a_prompt_that_is_too_long_is_named_as_its_format_names_it(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    body = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    small.faults.add(Status(400, body), model="returns@*")
    asked = {
        "completions": ("prompt", "Hi"),
        "chat/completions": ("messages", ASK["messages"]),
        "responses": ("input", "Hi"),
    }
    async with gateway.http() as http:
        for path, (name, value) in asked.items():
            told = (await http.post(f"/v1/{path}", json={"model": "returns", name: value})).json()["error"]
            assert (told["code"], told["param"]) == ("context_length_exceeded", name)


@pytest.mark.parametrize("status", [405, 411, 413, 421, 426, 431, 499])
async def test_status_that_is_not_the_callers_fault_is_followed_by_the_next_attempt(
    gateway: RunningGateway, small: FakeEngine, status: int
) -> None:
    small.faults.add(Status(status), model="returns@*")
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    assert (answer.headers["x-apprentice-pool"], answer.headers["x-apprentice-reason"]) == ("general", "engine_error")


async def test_engines_that_can_not_be_reached_are_told_apart_from_those_that_break(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with run_gateway(configure(limits=SHORT_LIMITS, health_interval_seconds=3600)) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.openai() as client:

            async def code() -> tuple[int, str | None, bool]:
                with pytest.raises(openai.InternalServerError) as told:
                    await client.chat.completions.create(model="returns", **ASK)
                return told.value.status_code, told.value.code, "can be reached" in str(told.value)

            general.faults.add(Reset())
            small.faults.add(Reset(), model="returns@*")
            assert await code() == (502, "engine_error", False)
            await small.kill()
            assert await code() == (502, "engine_error", False)
            await general.kill()
            assert await code() == (503, "no_replica", True)
