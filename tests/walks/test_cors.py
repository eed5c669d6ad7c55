"""A browser's cross-origin requests: off by default; with a setting, preflights need no key and answers may be read."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.configuration.settings import Settings
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

ORIGIN = "https://desk.example.com"
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "general", "messages": [{"role": "user", "content": "A toaster"}]}
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize("allowed", ["*", ORIGIN])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/feedback", "/admin/v1/callers"])
async def test_a_preflight_needs_no_key(configure: Configure, path: str, allowed: str) -> None:
    async with run_gateway(configure(listen={"cors_origin": allowed})) as gateway, gateway.http("") as http:
        answer = await http.options(path, headers=PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == allowed
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert answer.headers["access-control-max-age"] == "600"


async def test_answers_streams_and_errors_may_be_read_by_the_page(configure: Configure) -> None:
    async with (
        run_gateway(configure(listen={"cors_origin": "*"})) as gateway,
        gateway.http() as http,
        gateway.http("") as keyless,
    ):
        answers = [
            await http.post(CHAT, json=ASK, headers={"origin": ORIGIN}),
            await http.post(CHAT, json=ASK | {"stream": True}, headers={"origin": ORIGIN}),
            await http.post(CHAT, json=ASK | {"temperature": 9}, headers={"origin": ORIGIN}),
            await keyless.post(CHAT, json=ASK, headers={"origin": ORIGIN}),
            await http.get("/v1/models", headers={"origin": ORIGIN}),
            await http.get("/v1/nothing", headers={"origin": ORIGIN}),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 401, 200, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


async def test_a_preflight_repeats_no_header_that_is_no_name(configure: Configure) -> None:
    async with run_gateway(configure(listen={"cors_origin": "*"})) as gateway, gateway.http("") as http:
        answer = await http.options(CHAT, headers=PREFLIGHT | {"access-control-request-headers": "a; b=<c>"})
    assert answer.status_code == 204
    assert "access-control-allow-headers" not in answer.headers


async def test_without_the_setting_no_page_of_another_origin_may_call(configure: Configure) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        answers = [
            await http.options(CHAT, headers=PREFLIGHT),
            await http.post(CHAT, json=ASK, headers={"origin": ORIGIN}),
        ]
    assert [answer.status_code for answer in answers] == [405, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["", "desk.example.com", "https://desk.example.com/app", "https://a, https://b"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    pools = {"general": {"base_model": "m", "replicas": [{"name": "a", "url": "http://127.0.0.1:9"}]}}
    with pytest.raises(ValueError, match="cors_origin"):
        Settings(pools=pools, listen={"cors_origin": origin})  # type: ignore[arg-type]
