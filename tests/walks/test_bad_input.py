"""Bad input gets an error that the official SDK knows, never a 500, and no engine hears of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.engine import FakeEngine
from tests.programs import program
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import record_of

CHAT = "/v1/chat/completions"
OK = {"model": "returns", "messages": [{"role": "user", "content": "A toaster"}]}


WRONG_FIELDS = [
    ({"model": 7}, "invalid_value", "model"),
    ({"model": ""}, "invalid_value", "model"),
    ({"messages": "hello"}, "invalid_value", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": None}, "missing_field", "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "parameter_not_allowed", "messages[0].role"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": 3}, "invalid_value", "temperature"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1_000_000}, "invalid_value", "max_tokens"),
    ({"n": 16384}, "invalid_value", "n"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"n": 2}, "invalid_value", "n"),
    ({"priority": 1}, "parameter_not_allowed", "priority"),
    ({"cache_salt": "x"}, "parameter_not_allowed", "cache_salt"),
    ({"kv_transfer_params": {"a": 1}}, "parameter_not_allowed", "kv_transfer_params"),
    ({"vllm_xargs": {"a": 1}}, "parameter_not_allowed", "vllm_xargs"),
    ({"frobnicate": 1}, "unknown_parameter", "frobnicate"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}],
                }
            ]
        },
        "parameter_not_allowed",
        "messages",
    ),
]


async def test_a_field_at_fault_is_named(gateway: RunningGateway, small: FakeEngine, subtests: pytest.Subtests) -> None:
    for change, code, param in WRONG_FIELDS:
        with subtests.test(change=change, code=code, param=param):
            before = small.requests_total
            async with gateway.http() as http:
                answer = await http.post(CHAT, json=OK | change)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
            assert error["message"]
            assert small.requests_total == before


WRONG_BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"[]", "invalid_value"),
    (b'"text"', "invalid_value"),
    (b"null", "invalid_value"),
    (b'{"model":"returns","messages":[{"role":"user","content":"\xff"}]}', "invalid_json"),
    (b'{"model":"returns","messages":[{"role":"user","content":"x","name":"\xff"}]}', "invalid_json"),
    (b'{"model":"returns","messages":' + b"[" * 100_000, "invalid_json"),
    (b'{"messages":[{"role":"user","content":"x"}]}', "missing_field"),
]


async def test_a_body_that_is_no_request_is_refused(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for body, code in WRONG_BODIES:
        with subtests.test(body=body, code=code):
            async with gateway.http() as http:
                answer = await http.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_an_oversize_body_is_refused_before_it_is_held(configure: Configure) -> None:
    async with run_gateway(configure(limits={"body_bytes_max": 4096})) as gateway, gateway.http() as http:
        declared = await http.post(CHAT, json=OK | {"messages": [{"role": "user", "content": "x" * 5000}]})

        async def parts() -> Any:
            for _ in range(10):
                yield b" " * 1000

        chunked = await http.post(CHAT, content=parts(), headers={"content-type": "application/json"})
        undeclared = await http.post(CHAT, content=b"a=1", headers={"content-type": "text/plain"})
        records = [await record_of(http, answer) for answer in (declared, chunked, undeclared)]
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "body_too_large")
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
    assert [(record["status"], record["error_code"], record["outcome"]) for record in records] == [
        (413, "body_too_large", "refused"),
        (413, "body_too_large", "refused"),
        (415, "unsupported_media_type", "refused"),
    ]


@pytest.mark.parametrize(("kind", "body"), [("application/x-www-form-urlencoded", b"{}"), ("application/json", b"[1]")])
@pytest.mark.parametrize("path", ["/v1/feedback", "/admin/v1/callers"])
async def test_a_body_that_is_no_object_is_told_how_to_be_sent(
    gateway: RunningGateway, kind: str, body: bytes, path: str
) -> None:
    async with gateway.http() as http:
        answer = await http.post(path, content=body, headers={"content-type": kind})
    told = "The body is not a JSON object. Send one as `Content-Type: application/json`."
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


async def test_the_wrong_media_type_method_and_address_are_told(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        answers = [
            await http.post(CHAT, content=b"a=1", headers={"content-type": "application/x-www-form-urlencoded"}),
            await http.get(CHAT),
            await http.get("/v1/nothing"),
            await http.delete("/v1/models"),
        ]
        engines_own = [
            await http.post(path, json={})
            for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations", "/sleep")
        ]
    assert [answer.status_code for answer in answers] == [415, 405, 404, 405]
    assert {answer.status_code for answer in engines_own} == {404}
    assert all("error" in answer.json() for answer in [*answers, *engines_own])


UNKNOWN_KEYS = [
    "",
    "nonsense",
    "sk-app-abcdefghijkl-wrong",
    "sk-app-abcdefghijkl",
    "sk-app-" + "x" * 300,
    "eyJ" + "x" * 1000,
]


async def test_without_a_known_key_nothing_is_told(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for key in UNKNOWN_KEYS:
        with subtests.test(key=key):
            async with gateway.http(key or "") as http:
                paths = (
                    [CHAT, "/v1/feedback"],
                    ["/v1/models", "/v1/requests/x", "/admin/v1/adapters", "/admin/v1/callers"],
                )
                answers = [await http.post(path, json=OK) for path in paths[0]] + [
                    await http.get(path) for path in paths[1]
                ]
            assert {answer.status_code for answer in answers} == {401}
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key or "x", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.chat.completions.create(model="returns", messages=OK["messages"])


async def test_roles_keep_admins_calls_to_admins(gateway: RunningGateway) -> None:
    async with (
        gateway.http(await gateway.key()) as caller,
        gateway.http(await gateway.key(role="operator")) as operator,
    ):
        assert (await caller.get("/admin/v1/adapters")).status_code == 403
        assert (await operator.get("/admin/v1/adapters")).status_code == 200
        assert (await operator.put("/admin/v1/aliases/returns", json={"version": "returns@v1"})).status_code == 403
        assert (await operator.post("/admin/v1/callers", json={"name": "x"})).status_code == 403


WRONG_FEEDBACK = [
    ({"request_id": "nope", "metric": "correct", "value": True}, 404, "request_not_found"),
    ({"request_id": "x" * 201, "metric": "correct", "value": True}, 400, "invalid_value"),
    ({"request_id": "nope", "metric": "undeclared", "value": True}, 400, "invalid_value"),
    ({"request_id": "nope", "metric": "correct", "value": "yes"}, 400, "invalid_value"),
    ({"request_id": "nope", "metric": "correct", "value": 1}, 400, "invalid_value"),
    ({"metric": "correct", "value": True}, 400, "invalid_value"),
    ({"request_id": "nope", "metric": "correct"}, 400, "missing_field"),
    ({"request_id": "nope", "metric": "correct", "value": True, "extra": 1}, 400, "unknown_parameter"),
    ([], 400, "invalid_value"),
    ({"request_id": "nope", "metric": "correct", "value": True, "tags": {"\ud800": "x"}}, 400, "invalid_value"),
    ({"request_id": "nope", "metric": "correct", "value": True, "demonstration": "\ud800"}, 400, "invalid_value"),
    (
        {"request_id": "nope", "metric": "correct", "value": True, "demonstration": "x" * 70_000},
        400,
        "invalid_value",
    ),
]


async def test_feedback_that_can_not_be_stored_is_refused_with_the_reason(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for body, status, code in WRONG_FEEDBACK:
        with subtests.test(body=body, status=status, code=code):
            async with gateway.http() as http:
                sent = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
                answer = await http.post("/v1/feedback", **sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_without_a_key_no_large_body_is_held(gateway: RunningGateway) -> None:
    sent = {"content": b" " * (5 << 20), "headers": {"content-type": "application/json"}}
    async with gateway.http("") as nobody, gateway.http() as somebody:
        without, with_key = await nobody.post("/v1/feedback", **sent), await somebody.post("/v1/feedback", **sent)
    assert (without.status_code, without.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (with_key.status_code, with_key.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("body", [b'{"name":"\xff"}', b"[" * 100_000, b"{"])
async def test_json_that_is_none_is_told_as_that_everywhere(gateway: RunningGateway, body: bytes) -> None:
    async with gateway.http() as http:
        for path in ("/v1/feedback", "/admin/v1/callers"):
            answer = await http.post(path, content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


NO_RULES: list[dict[str, Any]] = [
    {"action": "refuse", "expires_at": float("inf")},
    {"action": "refuse", "expires_at": float("nan")},
    {"action": "refuse", "metadata": {"k": "x" * 300}},
    {"action": "version", "version": "returns@v1"},
    {"action": "version", "version": "other@v1", "task": "returns"},
    {"action": "version", "task": "returns"},
    {"action": "refuse", "task": "\ud800"},
]


async def test_a_rule_that_can_not_hold_is_refused_and_changes_nothing(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for rule in NO_RULES:
        with subtests.test(rule=rule):
            async with gateway.http() as http:
                answer = await http.put(
                    "/admin/v1/overrides/r", content=json.dumps(rule), headers={"content-type": "application/json"}
                )
                assert answer.status_code in (400, 404), answer.text
                assert (await http.get("/admin/v1/overrides")).json()["overrides"] == []


async def test_too_many_prompts_in_one_request_are_refused(gateway: RunningGateway, small: FakeEngine) -> None:
    before = small.requests_total
    async with gateway.http() as http:
        answer = await http.post("/v1/completions", json={"model": "returns", "prompt": [""] * 300})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert small.requests_total == before


async def test_a_forged_id_is_unknown_however_young_it_looks(gateway: RunningGateway) -> None:
    genuine = gateway.services.ids.make(gateway.admin_key.split("-")[2])
    forged = genuine[:-16] + "".join("1" if digit == "0" else "0" for digit in genuine[-16:])
    async with gateway.http() as http:
        answers = [
            await http.post("/v1/feedback", json={"request_id": name, "metric": "correct", "value": True})
            for name in (genuine, forged)
        ]
    assert [answer.status_code for answer in answers] == [201, 404]


async def test_an_adapter_that_is_none_is_rejected_with_a_sentence(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(3)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    async with gateway.http() as http:
        answers = {
            "corrupt": await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)}),
            "absent": await http.post("/admin/v1/adapters", json={"task": "returns", "path": "/nowhere"}),
            "relative": await http.post("/admin/v1/adapters", json={"task": "returns", "path": "../x"}),
            "no_task": await http.post("/admin/v1/adapters", json={"task": "nothing", "path": str(folder)}),
            "unknown_version": await http.post("/admin/v1/adapters/returns@v9/stage"),
            "not_loaded": await http.put("/admin/v1/aliases/returns", json={"version": "returns@v9"}),
            "stale": await http.put(
                "/admin/v1/aliases/returns", json={"version": "returns@v1", "expected_generation": 40}
            ),
            "in_use": await http.post("/admin/v1/adapters/returns@v1/unload"),
        }
    told = {name: (answer.status_code, answer.json()["error"]["code"]) for name, answer in answers.items()}
    assert told == {
        "corrupt": (422, "adapter_rejected"),
        "absent": (422, "adapter_rejected"),
        "relative": (400, "invalid_value"),
        "no_task": (404, "not_found"),
        "unknown_version": (404, "not_found"),
        "not_loaded": (404, "not_found"),
        "stale": (409, "stale_generation"),
        "in_use": (409, "state_conflict"),
    }


async def test_a_slow_or_broken_off_upload_takes_no_place(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.admin_key}\r\ncontent-length: 100\r\n\r\n"
    )
    writer.write(head.encode() + json.dumps(OK)[:20].encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with gateway.openai() as client:
        answer = await client.chat.completions.create(model="returns", messages=OK["messages"])
    assert answer.choices
    assert gateway.services.admission.in_flight == 0


async def test_metrics_pass_promtools_own_check(gateway: RunningGateway) -> None:
    async with gateway.openai() as client:
        await client.chat.completions.create(model="returns", messages=OK["messages"])
    async with httpx.AsyncClient() as http:
        exposition = (await http.get(f"{gateway.url}/metrics")).content
    check = await asyncio.create_subprocess_exec(
        program("promtool"), "check", "metrics", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await check.communicate(exposition)
    assert (check.returncode, output) == (0, b"")
