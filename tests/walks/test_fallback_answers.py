"""Fallback answers of a task that judges answers: their reasons, their checks, and their time until commit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.limits.fallback_caps import FallbackCaps
from gateway.path import opening
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Stalls, Status, Tokens
from tests.walks.acceptance_world import (
    BROKEN,
    CONFIDENCE_ENFORCED,
    CONTRACT_ENFORCED,
    KEPT,
    SURE,
    V1,
    V2,
    ask,
    both,
    calibrate,
    judging,
    metrics_of,
    record_of,
    with_logprobs,
)
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.scope_world import OUT_OF_SCOPE, keep

SCOPE_ENFORCED: dict[str, Any] = {"out_of_scope": {"mode": "enforce"}}
ALL_HELD_OUT: dict[str, Any] = {"holdout": {"mode": "enforce", "share": 1.0}}
FOREIGN: dict[str, Any] = {"messages": [{"role": "user", "content": OUT_OF_SCOPE}]}


async def explained(gateway: RunningGateway, told: Any) -> str:
    """Why it went where it went, in sentences."""
    async with gateway.http() as http:
        found = (await http.get(f"/v1/requests/{told.headers['x-request-id']}")).json()
    return "\n".join(found["explanation"])


@both
@pytest.mark.parametrize("where", ["before it is sent", "once it is rejected"])
async def test_a_fault_of_the_gateway_leaves_no_place_at_a_replica_taken(
    configure: Configure,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    where: str,
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    async with judging(configure, make_adapter, CONTRACT_ENFORCED) as gateway:
        small.answers[V1] = BROKEN
        if where == "before it is sent":
            monkeypatch.setattr(FallbackCaps, FallbackCaps.hold_for.__name__, fail)
        else:
            monkeypatch.setattr(opening, "choose_after_rejection", fail)
        told = await ask(gateway, stream)
        assert (told.status, told.code) == (500, "internal_error")
        assert {replica.in_flight for replica in gateway.services.fleet.replicas.values()} == {0}


@both
@pytest.mark.parametrize("reason", ["holdout", "engine_error", "low_confidence"])
async def test_reason_for_the_fallback_stays_where_its_answer_breaks_the_contract(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool, reason: str
) -> None:
    checks = CONTRACT_ENFORCED | {"holdout": ALL_HELD_OUT["holdout"] if reason == "holdout" else {"mode": "off"}}
    if reason == "low_confidence":
        checks |= CONFIDENCE_ENFORCED
    async with judging(configure, make_adapter, checks) as gateway:
        small.answers[V1], general.answers["large"] = KEPT, BROKEN
        if reason == "low_confidence":
            await calibrate(gateway)
            small.twists[V1] = with_logprobs(-6.0)
        if reason == "engine_error":
            small.faults.add(Status(500), model=V1)
        told = await ask(gateway, stream)
        record, metrics, words = (
            await record_of(gateway, told),
            await metrics_of(gateway),
            await explained(gateway, told),
        )
    assert (told.status, told.code, told.reason) == (502, "contract_violation", reason)
    assert (record["reason"], record["error_code"], record["contract_kept"]) == (reason, "contract_violation", False)
    counted = f'task="returns",version="",pool="general",reason="{reason}",outcome="failed"'
    assert f"apprentice_requests_total{{{counted}}} 1" in metrics
    assert 'apprentice_check_fired_total{task="returns",version="",check="contract",mode="enforce"} 1' in metrics
    if reason != "holdout":
        gone = f'task="returns",from="small",to="general",reason="{reason}"'
        assert f"apprentice_fallbacks_total{{{gone}}} 1" in metrics
    assert 'reason="contract"' not in metrics
    assert "contract: the answer broke the contract (the fallback's answer)" in words
    assert "the base model of the pool general was to answer it" in words
    assert "with status 502 (contract_violation)" in words


@both
async def test_answer_to_an_out_of_scope_request_need_not_keep_the_contract(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED | SCOPE_ENFORCED) as gateway:
        await keep(gateway, V1)
        general.answers["large"] = BROKEN
        told = await ask(gateway, stream, **FOREIGN)
        record, metrics, words = (
            await record_of(gateway, told),
            await metrics_of(gateway),
            await explained(gateway, told),
        )
        assert (told.status, told.text, told.model, told.reason) == (200, BROKEN, "large", "out_of_scope")
        assert stream or told.headers["x-apprentice-contract"] == "broken"
        assert "x-apprentice-rejected" not in told.headers
        assert (record["reason"], record["contract_kept"], record["outcome"]) == ("out_of_scope", False, "ok")
        assert [(one["check"], one["mode"]) for one in record["findings"] if one["fired"]] == [
            ("out_of_scope", "enforce"),
            ("contract", "observe"),
        ]
        assert 'apprentice_check_fired_total{task="returns",version="",check="contract",mode="observe"} 1' in metrics
        assert "the base model of the pool general answered it" in words
        general.answers["large"] = KEPT
        assert "x-apprentice-contract" not in (await ask(gateway, stream, **FOREIGN)).headers


async def test_previous_version_need_not_keep_the_contract_of_out_of_scope_requests(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    fallbacks, checks = {"out_of_scope": ["previous_version"]}, CONTRACT_ENFORCED | SCOPE_ENFORCED
    async with judging(configure, make_adapter, checks, fallbacks=fallbacks, versions=2) as gateway:
        await keep(gateway, V2)
        small.answers[V1] = BROKEN
        told = await ask(gateway, **FOREIGN)
    assert (told.status, told.text, told.model, told.reason) == (200, BROKEN, V1, "out_of_scope")
    assert told.headers["x-apprentice-contract"] == "broken"


async def test_a_fallback_has_the_time_that_is_left_and_not_the_adapters_hold(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    task = {"commit": "complete", "hold_seconds_max": 0.4}
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, **task) as gateway:
        await calibrate(gateway)
        small.twists[V1] = with_logprobs(SURE)
        small.faults.add(Tokens(20), Stalls(3, 30), model=V1)
        general.faults.add(Tokens(20), Stalls(3, 1), model="large")
        body = {"model": "returns", "stream": True, "messages": [{"role": "user", "content": "A toaster."}]}
        asking = gateway.http()
        async with asyncio.timeout(60), asking as http, http.stream("POST", "/v1/chat/completions", json=body) as came:
            assert (came.status_code, came.headers["x-apprentice-reason"]) == (200, "timeout")
            lines = came.aiter_lines()
            assert (await anext(lines)).startswith("data: {")
            rest = [line async for line in lines]
    assert "data: [DONE]" in rest


async def test_fallback_with_an_enforced_contract_is_held_longer_than_the_adapter(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, hold_seconds_max=0.3) as gateway:
        general.answers["large"] = KEPT
        small.faults.add(Tokens(20), Stalls(3, 30), model=V1)
        general.faults.add(Stalls(3, 1), model="large")
        async with asyncio.timeout(60):
            told = await ask(gateway, True)
    assert (told.status, told.text, told.reason) == (200, KEPT, "timeout")


@pytest.mark.parametrize("pinned", [True, False], ids=["adapter", "exit"])
async def test_what_is_late_names_the_hold_and_its_setting(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, pinned: bool
) -> None:
    limits = {"answer_timeout_seconds": 1.5, "retries_max": 0}
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, hold_seconds_max=0.4, limits=limits) as gateway:
        for engine in (small, general):
            engine.faults.add(Tokens(20), Stalls(3, 30))
        async with asyncio.timeout(60), gateway.http() as http:
            body = {
                "model": V1 if pinned else "returns",
                "stream": True,
                "messages": [{"role": "user", "content": "A."}],
            }
            answer = await http.post("/v1/chat/completions", json=body)
    said = "tasks.returns.hold_seconds_max of 0.4 s" if pinned else "limits.answer_timeout_seconds of 1.5 s"
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.json()["error"]["message"].startswith(f"The answer was not complete within {said}.")
