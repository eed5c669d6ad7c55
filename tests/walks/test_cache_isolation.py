"""Whose prompts share an engine's prefix cache: vLLM shares blocks among requests with the same `cache_salt` only."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.ids import digest
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: Any = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


async def salts(gateway: RunningGateway, engine: FakeEngine, model: str, keys: list[str]) -> list[Any]:
    """The salts that the engine got for a request of each key."""
    engine.requests.clear()
    for number, key in enumerate(keys):
        async with gateway.openai(key) as client:
            stream = bool(number % 2)
            answer = await client.chat.completions.create(model=model, stream=stream, **ASK)
            if stream:
                assert [chunk async for chunk in answer]
    return [seen.body.get("cache_salt") for seen in engine.requests]


@pytest.mark.invariant("No caller finds another caller's prompt in an engine's cache.")
async def test_each_caller_has_a_salt_of_its_own_which_stays_and_tells_no_name(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine
) -> None:
    one, two = [await gateway.key(name=name) for name in ("one", "two")]
    found = await salts(gateway, small, "returns", [one, two, one, two])
    assert found[:2] == found[2:]
    assert found[0] != found[1]
    assert await salts(gateway, general, "general", [one, two]) == found[:2]
    assert not any(key.removeprefix("sk-app-")[:12] in salt for key in (one, two) for salt in found)


async def test_one_input_of_two_callers_has_one_digest_which_proves_the_request(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    keys = [await gateway.key(name=name) for name in ("one", "two")]
    digests = []
    for key in keys:
        async with gateway.openai(key) as client:
            answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
        request_id = answer.headers["x-request-id"]
        async with gateway.http() as http:
            digests.append((await http.get(f"/v1/requests/{request_id}")).json()["record"]["request_digest"])
    asked = [dict(seen.body) for seen in list(small.requests)[-2:]]
    assert len({one.pop("cache_salt") for one in asked}) == 2
    proof = digest(gateway.services.digest_secret, msgspec.json.encode(asked[0]))
    assert digests == [proof, proof]


@pytest.mark.parametrize("where", ["gateway", "task"])
async def test_it_can_be_shared_by_all_or_for_a_task(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, where: str
) -> None:
    shared = {"cache_isolation": "none"}
    more: dict[str, Any] = shared if where == "gateway" else {"tasks": {"returns": shared}}
    async with run_gateway(configure(**more)) as gateway:
        await gateway.place(make_adapter(1))
        keys = [await gateway.key(name=name) for name in ("one", "two")]
        assert await salts(gateway, small, "returns", keys) == [None, None]
        apart = len(set(await salts(gateway, general, "general", keys)))
        assert apart == (1 if where == "gateway" else 2)
