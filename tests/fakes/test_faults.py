"""The fake engine's faults, as real clients meet them on the wire."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.asking import ASK, chat, events, post, read_until_broken, read_until_silent, text_of
from tests.fakes.engine import FakeEngine
from tests.fakes.fault_rules import NAMED, SHORT
from tests.fakes.faults import (
    Dies,
    Down,
    EmptyAnswer,
    Framing,
    HugeEvent,
    NoDone,
    RawEvent,
    RefusesPrefill,
    Reset,
    Silent,
    SlowFirstToken,
    SlowHeaders,
    Stalls,
    Status,
    Tokens,
)


async def test_429_comes_once_with_retry_after(http: httpx.AsyncClient) -> None:
    answer = await post(http, chat("f01-429-once"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert (await post(http, chat("f01-429-once"))).status_code == 200


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("f02-429-forever", [429] * 4),
        ("f03-500-once", [500, 200, 200]),
        ("f04-503-forever", [503] * 3),
        ("f12-context-length", [400] * 2),
        ("f13-content-policy", [400] * 2),
        ("f16-503-fallback-answers", [503] * 2),
        ("f17-404-for-a-loaded-model", [404] * 2),
        ("fault-4@v1", [503]),
    ],
)
async def test_a_model_of_that_name_answers_with_these_statuses(
    http: httpx.AsyncClient, name: str, statuses: list[int]
) -> None:
    got = [(await post(http, chat(name))) for _ in statuses]
    assert [answer.status_code for answer in got] == statuses
    assert all("retry-after" not in answer.headers for answer in got)
    assert all(answer.json()["error"]["message"] for answer in got if answer.status_code >= 400)


async def test_the_two_refusals_carry_their_codes(sdk: AsyncOpenAI) -> None:
    for name, code in (
        ("f12-x", None),
        ("f12-context-length", "context_length_exceeded"),
        ("f13-content-policy", None),
    ):
        with pytest.raises(openai.APIStatusError) as refusal:
            await sdk.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])
        assert code is None or refusal.value.code == code
    assert refusal.value.code == "content_policy_violation"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reset_comes_before_any_header(engine: FakeEngine, http: httpx.AsyncClient, stream: bool) -> None:
    with pytest.raises(httpx.ReadError):
        await post(http, chat("f05-reset-before-headers", stream=stream))
    got, error = await read_until_broken(engine.url, chat("f05-reset-before-headers", stream=stream))
    assert got == b""
    assert error is aiohttp.ClientOSError
    assert [seen.outcome for seen in engine.requests] == ["failed", "failed"]


async def test_a_silent_engine_sends_nothing_and_sees_the_caller_go(
    engine: FakeEngine, http: httpx.AsyncClient
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await post(http, chat("f06-silent"), timeout=httpx.Timeout(60, read=0.1))
    await engine.until(lambda: engine.in_flight == 0)
    assert engine.requests[0].outcome == "cancelled"


@pytest.mark.parametrize(("name", "status"), [("f07-first-token-after-20s", 200), ("f22-slow-headers", 0)])
async def test_the_first_token_or_the_headers_are_late(http: httpx.AsyncClient, name: str, status: int) -> None:
    assert await read_until_silent(http, chat(name, True), 0.1) == (status, b"")


async def test_a_late_beginning_still_ends_well(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.faults.add(SlowFirstToken(0.05), SlowHeaders(0.05))
    began = time.monotonic()
    assert events(await post(http, chat(stream=True)))[-1] == "[DONE]"
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize(
    ("name", "tokens", "error"),
    [
        ("f08-dies-after-40-of-60", 40, aiohttp.ClientPayloadError),
        ("f14-dies-and-refuses-prefill", 40, aiohttp.ClientPayloadError),
        ("f20-half-chunk", 5, aiohttp.ClientPayloadError),
        ("f21-reset-mid-stream", 5, aiohttp.ClientOSError),
    ],
)
async def test_the_engine_dies_in_the_middle(
    engine: FakeEngine, name: str, tokens: int, error: type[Exception]
) -> None:
    got, broke = await read_until_broken(engine.url, chat(name, stream=True))
    assert got.count(b'"finish_reason":null') == tokens + 1
    assert b"[DONE]" not in got
    assert broke is not None
    assert issubclass(broke, (error, aiohttp.ClientPayloadError))
    assert (engine.requests[0].tokens, engine.requests[0].outcome) == (tokens, "failed")


@pytest.mark.parametrize("how", ["close", "reset", "half_chunk", "end", "done"])
async def test_an_answer_that_is_not_streamed_breaks_too(engine: FakeEngine, how: Any) -> None:
    engine.faults.add(Dies(5, how))
    got, broke = await read_until_broken(engine.url, chat())
    assert broke is not None
    assert bool(got) == (how == "half_chunk")


@pytest.mark.parametrize("how", ["end", "done"])
async def test_a_truncation_may_look_like_a_whole_stream(engine: FakeEngine, http: httpx.AsyncClient, how: Any) -> None:
    engine.faults.add(Dies(5, how))
    found = events(await post(http, chat(stream=True)))
    assert (found[-1] == "[DONE]") == (how == "done")
    assert all(event["choices"][0]["finish_reason"] is None for event in found if event != "[DONE]")
    assert engine.requests[0].outcome == "failed"


async def test_a_stall_is_a_silence_after_which_it_goes_on(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    _, got = await read_until_silent(http, chat("f09-stalls-after-20", True), 0.2)
    assert got.count(b'"finish_reason":null') == 21
    engine.faults.add(Stalls(3, 0.05))
    assert len(text_of(events(await post(http, chat(stream=True)))).split()) == 16


@pytest.mark.parametrize("name", ["f10-malformed-event", "f27-invalid-utf8"])
async def test_one_bad_event_stands_among_the_good(http: httpx.AsyncClient, name: str) -> None:
    raw = (await post(http, chat(name, stream=True))).content
    good, bad = 0, 0
    for event in raw.split(b"\n\n")[:-2]:
        try:
            json.loads(event[6:])
            good += 1
        except ValueError:
            bad += 1
    assert (good, bad) == (17, 1)
    with pytest.raises(ValueError, match=r"."):
        (await post(http, chat(name))).json()


async def test_an_answer_ends_without_done_in_three_ways(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    body = chat("f11-no-done", stream=True, stream_options={"include_usage": True})
    found = events(await post(http, body))
    assert found[-1]["usage"]["completion_tokens"] == 16
    body["model"] = "base-model"
    rule = engine.faults.add(NoDone("close"))
    assert (await read_until_broken(engine.url, body))[1] is aiohttp.ClientPayloadError
    engine.faults.remove(rule)
    engine.faults.add(NoDone("open"))
    with pytest.raises(httpx.ReadTimeout):
        await post(http, body, timeout=httpx.Timeout(60, read=0.1))


@pytest.mark.parametrize("name", ["f14-dies-and-refuses-prefill", "f14-refuses-prefill"])
async def test_a_prefill_is_refused(engine: FakeEngine, http: httpx.AsyncClient, name: str) -> None:
    begun = chat(name, stream=True) | {"messages": [*ASK, {"role": "assistant", "content": "Well"}]}
    answer = await post(http, begun | {"continue_final_message": True, "add_generation_prompt": False})
    assert (answer.status_code, engine.requests[0].outcome) == (400, "refused")
    assert "prefill" in answer.json()["error"]["message"]


async def test_a_fallback_that_refuses_prefill_answers_else(http: httpx.AsyncClient) -> None:
    assert (await post(http, chat("f14-refuses-prefill"))).json()["usage"]["completion_tokens"] == 60


async def test_an_engine_is_down_for_a_while_and_then_healthy(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    for _ in range(2):
        with pytest.raises(httpx.ReadError):
            await post(http, chat("f15-down-60s"))
    engine.faults.add(Down(0.1), path="*")
    with pytest.raises(httpx.ReadError):
        await http.get("/health")
    rule = engine.faults.rules[0]
    await engine.until(lambda: time.monotonic() - rule.first_at > 0.1)
    assert (await http.get("/health")).status_code == 200
    assert (await post(http, chat())).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_stands_inside_a_200(http: httpx.AsyncClient, stream: bool) -> None:
    answer = await post(http, chat("f18-error-event", stream=stream))
    assert answer.status_code == (200 if stream else 500)
    if stream:
        assert events(answer)[-2]["error"]["code"] == 500
        assert events(answer)[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_empty(engine: FakeEngine, http: httpx.AsyncClient, stream: bool) -> None:
    answer = await post(http, chat("f19-empty-answer", stream=stream))
    if stream:
        assert text_of(events(answer)) == ""
        assert events(answer)[-2]["choices"][0]["finish_reason"] == "stop"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == ""
        assert answer.json()["usage"]["completion_tokens"] == 0
    assert engine.requests[0].tokens == 0


async def test_one_event_is_huge(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.faults.add(HugeEvent(300_000))
    assert max(map(len, (await post(http, chat(stream=True))).text.split("\n\n"))) > 300_000


@pytest.mark.parametrize("name", ["f24-split-writes", "f25-crlf-and-comments", "f26-two-events-a-write"])
async def test_odd_framing_says_the_same(http: httpx.AsyncClient, name: str) -> None:
    plain = (await post(http, chat(name))).json()["choices"][0]["message"]["content"]
    assert text_of(events(await post(http, chat(name, stream=True)))) == plain


async def test_framing_is_on_the_wire(engine: FakeEngine) -> None:
    async def chunks(framing: Framing) -> list[bytes]:
        engine.faults.clear()
        engine.faults.add(framing)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{engine.url}/v1/chat/completions", json=chat(stream=True)) as answer,
        ):
            found: list[bytes] = [b""]
            async for part, ended in answer.content.iter_chunks():
                found[-1] += part
                found += [b""] if ended else []
            return found[:-1]

    assert {len(one) for one in await chunks(Framing(split_bytes=7))} <= set(range(1, 8))
    both = await chunks(Framing(crlf=True, comments=True, tight=True))
    assert all(one.startswith(b": ping\r\n\r\ndata:") and b"data: " not in one for one in both)
    assert [one.count(b"data: ") for one in await chunks(Framing(together=2))] == [2] * 9


async def test_a_page_of_html_comes_instead_of_json(http: httpx.AsyncClient) -> None:
    answer = await post(http, chat("f29-html"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")


async def test_rules_choose_by_model_path_and_count(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    rule = engine.faults.add(Status(503), model="base*", times=1, skip=1)
    assert [(await post(http, chat())).status_code for _ in range(3)] == [200, 503, 200]
    assert (rule.seen, rule.shown) == (3, 1)
    engine.faults.clear()
    engine.faults.add(Status(500), path="/health")
    assert (await http.get("/health")).status_code == 500
    assert (await post(http, chat())).status_code == 200
    engine.faults.clear()
    engine.faults.add(RefusesPrefill(), Tokens(30), EmptyAnswer(), model="other")
    assert len(text_of(events(await post(http, chat(stream=True)))).split()) == 16


async def test_rules_are_set_from_outside(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    rule = {"faults": [{"kind": "status", "status": 429, "retry_after": 1}], "model": "base-model", "times": 1}
    assert (await http.post("/__faults", json=rule)).status_code == 200
    assert (await http.post("/__faults", json={"name": "fault-3", "model": "base-model"})).status_code == 200
    assert await http.post("/__faults", json={"faults": [{"kind": "raw_event", "data": "data: x\n\n"}], "skip": 9})
    assert [(await post(http, chat())).status_code for _ in range(3)] == [429, 500, 200]
    assert [one["shown"] for one in (await http.get("/__faults")).json()["rules"]] == [1, 1, 0]
    assert (await http.post("/__faults", json={"faults": [{"kind": "nonsense"}]})).status_code == 400
    await http.request("DELETE", "/__faults")
    assert engine.faults.rules == []
    assert (await http.get("/__state")).json()["requests_total"] == 3


async def test_every_row_of_the_table_has_a_name_and_is_served_unlisted(http: httpx.AsyncClient) -> None:
    assert {f"fault-{row}" for row in range(1, 17)} <= set(SHORT)
    assert all(name[0] == "f" and name[1:3].isdigit() for name in NAMED)
    assert len((await http.get("/v1/models")).json()["data"]) == 1


async def test_a_hung_control_call_does_not_hold_up_the_end() -> None:
    async with FakeEngine() as engine, httpx.AsyncClient(base_url=engine.url) as http:
        engine.faults.add(Silent(), path="/health")
        engine.faults.add(Reset(), RawEvent(), path="/version")
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/health", timeout=httpx.Timeout(60, read=0.05))
        with pytest.raises(httpx.ReadError):
            await http.get("/version")
