"""The door itself, on bare sockets: how large a head may be, how slow a request, how many connections; and what of
engines can't be reached through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway

GET = b"GET /health/live HTTP/1.1\r\nhost: gateway\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
ASK: dict[str, Any] = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}


@asynccontextmanager
async def connected(gateway: RunningGateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*gateway.addresses[0])
    try:
        yield reader, writer
    finally:
        writer.close()


async def head_and_body(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def closed(reader: asyncio.StreamReader) -> bytes:
    """The bytes until the gateway closes the connection."""
    async with asyncio.timeout(30):
        return await reader.read()


async def test_a_request_that_comes_byte_by_byte_is_answered(gateway: RunningGateway) -> None:
    body = json.dumps(ASK).encode()
    key = f"authorization: Bearer {gateway.admin_key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    async with connected(gateway) as (reader, writer):
        for byte in CHAT + key + body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        status, headers, answer = await head_and_body(reader)
    assert (status, json.loads(answer)["object"]) == (200, "chat.completion")
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


@pytest.mark.invariant("No slow caller keeps a connection open.")
@pytest.mark.parametrize("sent", [b"", GET, b"GE"], ids=["nothing", "half a head", "half a line"])
async def test_a_head_that_does_not_come_to_its_end_closes_the_connection(configure: Configure, sent: bytes) -> None:
    async with (
        run_gateway(configure(limits={"head_seconds_max": 0.2})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        writer.write(sent)
        assert await closed(reader) == b""


async def test_a_slow_head_behind_an_answer_closes_the_connection_too(configure: Configure) -> None:
    async with (
        run_gateway(configure(limits={"head_seconds_max": 1.0})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        writer.write(GET + b"\r\n")
        assert (await head_and_body(reader))[0] == 200
        trickle = asyncio.create_task(_trickle(writer))
        assert await closed(reader) == b""
        trickle.cancel()


async def test_body_that_comes_late_is_no_overhead_of_the_gateway(gateway: RunningGateway) -> None:
    body, pause_seconds = json.dumps(ASK).encode(), 0.3
    key = f"authorization: Bearer {gateway.admin_key}\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
    async with connected(gateway) as (reader, writer):
        began_at = time.monotonic()
        writer.write(CHAT + key.encode())
        assert (await head_and_body(reader))[0] == 100
        await asyncio.sleep(pause_seconds)  # so slow is the caller
        writer.write(body)
        status, headers, _ = await head_and_body(reader)
        seconds = time.monotonic() - began_at
    assert status == 200
    assert float(headers["x-apprentice-overhead-ms"]) / 1000 < seconds - pause_seconds


async def _trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(GET)
    while True:
        writer.write(b"x: y\r\n")
        await asyncio.sleep(0.05)


async def test_an_unfinished_body_gets_408_and_its_connection_closes(configure: Configure) -> None:
    async with run_gateway(configure(limits={"body_seconds_max": 0.2})) as gateway:
        async with connected(gateway) as (reader, writer):
            key = f"authorization: Bearer {gateway.admin_key}\r\ncontent-length: 100\r\n\r\n".encode()
            writer.write(CHAT + key + b'{"model":')
            status, _, body = await head_and_body(reader)
            assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")
            assert await closed(reader) == b""
        assert gateway.services.admission.in_flight == 0


@pytest.mark.invariant("No slow caller keeps a connection open.")
async def test_an_answered_body_that_goes_on_for_ever_closes_the_connection(configure: Configure) -> None:
    async with (
        run_gateway(configure(limits={"body_seconds_max": 0.3})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        writer.write(CHAT + b"content-length: 1000000\r\n\r\n{")
        status, _, _ = await head_and_body(reader)
        assert status == 401
        trickle = asyncio.create_task(_trickle(writer))
        with contextlib.suppress(ConnectionResetError):  # what trickles in as it is closed has it reset
            assert await closed(reader) == b""
        trickle.cancel()


async def test_an_upload_may_take_longer_than_other_bodies(configure: Configure) -> None:
    async with run_gateway(configure(limits={"body_seconds_max": 0.1})) as gateway:
        form = b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 200000\r\n"
        key = f"authorization: Bearer {gateway.admin_key}\r\n\r\n".encode()
        async with connected(gateway) as (reader, writer):
            writer.write(b"POST /admin/v1/adapters HTTP/1.1\r\nhost: gateway\r\n" + form + key + b"--x\r\n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read(1)


BODY_MAX = 1 << 20


@pytest.mark.invariant("No call acts on a body that was not read to its end.")
async def test_a_body_without_room_is_refused_and_never_taken_for_an_empty_one(configure: Configure) -> None:
    limits = {"bodies_bytes_max": BODY_MAX, "caller_share_max": 1}
    async with run_gateway(configure(limits=limits)) as gateway, gateway.http() as http:
        key = await gateway.key(name="leaked")
        rotate = f"/admin/v1/callers/{key.split('-')[2]}/rotate"
        async with connected(gateway) as (_, writer):
            head = f"authorization: Bearer {key}\r\ncontent-length: {BODY_MAX}\r\n\r\n".encode()
            writer.write(CHAT + head + b" " * (BODY_MAX - 1))
            await until(lambda: _is_full(http), "the room is full")
            for path, body in [(rotate, {"overlap_seconds": 0}), ("/v1/feedback", {"request_id": "a"})]:
                answer = await http.post(path, json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload"), path
                assert answer.headers["retry-after"] == "1"
        await until(lambda: _has_room(http), "there is room again")
        assert (await http.post(rotate, json={"overlap_seconds": 0})).status_code == 200
        assert (await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 401


async def _is_full(http: httpx.AsyncClient) -> bool:
    return (await http.post("/v1/chat/completions", json={"model": "nothing"})).status_code == 503


async def _has_room(http: httpx.AsyncClient) -> bool:
    return not await _is_full(http)


async def test_a_body_with_too_many_trailers_changes_nothing(configure: Configure) -> None:
    async with (
        run_gateway(configure(limits={"headers_max": 32})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        key = await gateway.key(name="leaked")
        head = f"POST /admin/v1/callers/{key.split('-')[2]}/rotate HTTP/1.1\r\nhost: gateway\r\n".encode()
        ours = f"authorization: Bearer {gateway.admin_key}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        writer.write(head + ours + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 40 + b"\r\n")
        status, _, body = await head_and_body(reader)
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")


async def test_a_connection_that_is_idle_between_requests_is_closed_after_its_time(configure: Configure) -> None:
    async with (
        run_gateway(configure(limits={"keep_alive_seconds_max": 1.0})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(GET + b"\r\n")
            assert (await head_and_body(reader))[0] == 200
        assert await closed(reader) == b""


async def test_a_stream_that_is_slow_itself_is_not_taken_for_a_slow_caller(
    configure: Configure, general: FakeEngine
) -> None:
    general.token_delay_seconds = 0.25
    limits = {"head_seconds_max": 1.0, "body_seconds_max": 1.0, "keep_alive_seconds_max": 1.0}
    async with run_gateway(configure(limits=limits)) as gateway, gateway.http() as http:
        answer = await http.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "head",
    [
        GET + b"".join(b"x-%d: y\r\n" % number for number in range(40)) + b"\r\n",
        GET + b"x: " + b"y" * 5000 + b"\r\n\r\n",
        b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\nhost: gateway\r\n\r\n",
        GET + b"x: " + b"y" * 5000,
    ],
    ids=["too many headers", "a long header", "a long address", "one without an end"],
)
async def test_a_head_that_is_too_large_is_refused_and_the_connection_closed(configure: Configure, head: bytes) -> None:
    limits = {"headers_max": 32, "head_bytes_max": 4096}
    async with run_gateway(configure(limits=limits)) as gateway, connected(gateway) as (reader, writer):
        writer.write(head)
        status, headers, body = await head_and_body(reader)
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")
        assert headers["connection"] == "close"
        assert await closed(reader) == b""


async def test_a_head_is_measured_and_not_the_body_that_came_with_it(configure: Configure) -> None:
    async with run_gateway(configure(limits={"head_bytes_max": 1024})) as gateway, gateway.http() as http:
        long = {"role": "user", "content": "word " * 1000}
        answer = await http.post("/v1/chat/completions", json=ASK | {"messages": [long]})
    assert answer.status_code == 200, answer.text


async def test_one_connection_too_many_is_refused_and_others_go_on(configure: Configure) -> None:
    async with (
        run_gateway(configure(limits={"connections_max": 1})) as gateway,
        connected(gateway) as (reader, writer),
    ):
        writer.write(GET + b"\r\n")
        assert (await head_and_body(reader))[0] == 200
        async with connected(gateway) as (other, _):
            status, headers, body = await head_and_body(other)
            assert (status, json.loads(body)["error"]["code"]) == (503, "overload")
            assert headers["retry-after"] == "1"
            assert await closed(other) == b""
        writer.write(GET + b"connection: close\r\n\r\n")
        assert (await head_and_body(reader))[0] == 200
        assert await closed(reader) == b""
        async with connected(gateway) as (again, asking):
            asking.write(GET + b"\r\n")
            assert (await head_and_body(again))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        b"GET / HTTP/1.1\r\nhost: gateway\r\nbad header: x\r\n\r\n",
        CHAT + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        CHAT + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        CHAT + b"content-length: -1\r\n\r\n",
        CHAT + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        GET + b"x-apprentice-session: a\x00b\r\n\r\n",
        GET + b"x: a\r\n folded\r\n\r\n",
        GET + b"x: a\nx-apprentice-session: b\r\n\r\n",
    ],
    ids=[
        "TLS", "a space in a name", "two lengths of a body", "two contents", "a negative length", "no chunk",
        "a null", "a folded line", "a bare line feed",
    ],
)  # fmt: skip
async def test_what_is_no_http_is_refused_in_our_shape_and_reaches_nobody(
    configure: Configure, general: FakeEngine, sent: bytes
) -> None:
    async with run_gateway(configure()) as gateway, connected(gateway) as (reader, writer):
        writer.write(
            sent.replace(b"content-type", b"authorization: Bearer %b\r\ncontent-type" % gateway.admin_key.encode())
        )
        status, headers, body = await head_and_body(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")
        assert headers["connection"] == "close"
        assert await closed(reader) == b""
    assert general.requests_total == 0


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_no_http_behind_a_request_is_refused_after_its_answer(
    configure: Configure, general: FakeEngine, at_once: bool
) -> None:
    general.token_delay_seconds = 0.02
    body = json.dumps(ASK).encode()
    async with run_gateway(configure()) as gateway, connected(gateway) as (reader, writer):
        key = f"authorization: Bearer {gateway.admin_key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(CHAT + key + body + (b"\x00\x01\x02" if at_once else b""))
        await general.until(lambda: general.in_flight == 1)
        writer.write(b"\x00\x01\x02")
        assert (await head_and_body(reader))[0] == 200
        status, _, refusal = await head_and_body(reader)
        assert (status, json.loads(refusal)["error"]["code"]) == (400, "invalid_http")
        assert await closed(reader) == b""


OUR_HEADERS = ["x-apprentice-session", "x-apprentice-subject", "x-apprentice-priority"]


async def test_control_characters_in_our_headers_are_refused(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for value in ["a\x1bb", "a\x7fb", "a\u2028b", "a\u0085b", "a\tb"]:
        for name in OUR_HEADERS:
            with subtests.test(value=value, name=name):
                async with gateway.http() as http:
                    answer = await http.post("/v1/chat/completions", json=ASK, headers={name: value.encode()})
                assert (answer.status_code, answer.json()["error"]["code"]) in (
                    (400, "invalid_value"),
                    (400, "invalid_http"),
                )


async def test_a_trace_context_that_is_none_is_not_passed_on_nor_echoed(
    gateway: RunningGateway, general: FakeEngine
) -> None:
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with gateway.http() as http:
        for value in (sent, f"{sent} x: y", f"{sent}-more", "data: [DONE]"):
            answer = await http.post("/v1/chat/completions", json=ASK, headers={"traceparent": value})
            assert (answer.headers["traceparent"] == value) == (value == sent)


async def test_the_state_of_a_trace_goes_to_the_engine_with_its_context_alone(
    gateway: RunningGateway, general: FakeEngine
) -> None:
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with gateway.http() as http:
        for traceparent, state in ((sent, "rojo=1,congo=2"), ("none", None)):
            headers = [("traceparent", traceparent), ("tracestate", "rojo=1"), ("tracestate", "congo=2")]
            answer = await http.post("/v1/chat/completions", json=ASK, headers=headers)
            assert answer.status_code == 200, answer.text
            seen = general.requests[-1].headers
            assert (seen["traceparent"] == sent, seen.get("tracestate")) == (state is not None, state)


FORGED_NAMES = ['a"} 1\nfake_metric 1', "a\r\nset-cookie: b", "../../admin", "a\u2028b", "returns@v1\n"]


async def test_a_models_name_becomes_no_header_no_label_and_no_path(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, subtests: pytest.Subtests
) -> None:
    for model in FORGED_NAMES:
        with subtests.test(model=model):
            before = small.requests_total + general.requests_total
            async with gateway.http() as http:
                answer = await http.post("/v1/chat/completions", json=ASK | {"model": model, "stream": True})
                metrics = (await http.get("/metrics")).text
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert "fake_metric" not in metrics
            assert "set-cookie" not in answer.headers
            assert small.requests_total + general.requests_total == before


async def test_an_engines_own_words_are_one_line_of_json_whatever_they_hold(
    configure: Configure, general: FakeEngine
) -> None:
    said = 'no\n\ndata: {"choices": []}\r\n\r\ndata: [DONE]\n\n'
    general.faults.add(Status(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}}))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        answer = await http.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == said
    assert "\n" not in answer.text
    assert "\r" not in answer.text
    assert answer.headers["content-type"] == "application/json"


ENGINES_OWN = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/is_sleeping", "/tokenize",
    "/detokenize", "/pause", "/resume", "/is_paused", "/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc",
    "/server_info", "/start_profile", "/stop_profile", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/invocations",
    "/ping", "/load", "/version", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank",
    "/v2/rerank", "/v1/messages/batches", "/v1/responses/render",
    "/v1/audio/transcriptions", "/v1/audio/translations",
    "/inference/v1/generate", "/update_weights", "/init_weight_transfer_engine", "/get_world_size", "/abort_requests",
    "/tokenizer_info", "/v1/chat/completions/render", "/docs", "/redoc",
)  # fmt: skip


@pytest.mark.invariant("No address of an engine is reached through the gateway.")
@pytest.mark.parametrize("prefix", ["", "//", "/v1/..", "/v1/chat/completions/.."])
async def test_what_engines_offer_beside_completions_is_nowhere_here(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, prefix: str
) -> None:
    seen = len(small.calls) + len(general.calls), small.requests_total + general.requests_total
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {gateway.admin_key}"}) as http:
        for path in ENGINES_OWN:
            for method in ("GET", "POST"):
                url = httpx.URL(gateway.url).copy_with(raw_path=(prefix + path).encode())
                answer = await http.request(method, url, json={"lora_name": "x"} if method == "POST" else None)
                assert answer.status_code == 404, (method, path)
    asked = [call.path for engine in (small, general) for call in engine.calls]
    assert not set(asked) & (set(ENGINES_OWN) - {"/v1/load_lora_adapter", "/health", "/version"})
    assert small.requests_total + general.requests_total == seen[1]


async def test_answers_of_the_admin_api_are_kept_by_nobody(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        for path in ("/admin/v1/callers", "/admin/v1/nothing", "/v1/models", "/v1/requests/none"):
            answer = await http.get(path)
            assert answer.headers["cache-control"] == "no-store", path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "server" not in answer.headers
