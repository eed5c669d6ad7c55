"""Answers that checks judge before they are sent: who answers instead, what it costs, and what the caller is told."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gateway.configuration.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Stalls, Tokens
from tests.walks.acceptance_world import (
    ASK,
    BROKEN,
    CONFIDENCE_ENFORCED,
    CONTRACT,
    CONTRACT_ENFORCED,
    KEPT,
    MODEL,
    REFUSAL_ENFORCED,
    SCHEMA,
    SURE,
    UNSURE,
    V1,
    V2,
    ask,
    asked_of,
    both,
    calibrate,
    fired,
    judging,
    metrics_of,
    record_of,
    with_logprobs,
)
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter


@both
async def test_answer_that_breaks_its_contract_goes_to_general_and_costs_both(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED) as gateway:
        small.answers[V1], general.answers["large"] = BROKEN, KEPT
        told = await ask(gateway, stream)
        record, metrics = await record_of(gateway, told), await metrics_of(gateway)
        replica = gateway.services.fleet.replicas["small-0"]
        assert (replica.in_flight, replica.view().circuits) == (0, {})
    assert (told.text, told.model, told.reason) == (KEPT, "large", "contract")
    assert BROKEN.split()[0] not in told.raw
    assert "x-apprentice-contract" not in told.headers
    assert asked_of(general)["messages"][0] == {"role": "system", "content": GENERAL_PROMPT}
    assert [one["fault"] for one in record["attempts"]] == ["contract", None]
    assert (record["contract_kept"], record["outcome"], record["general_prompt"]) == (True, "ok", True)
    assert [(one["version"], one["fired"]) for one in record["findings"]] == [(V1, True), (None, False)]
    assert BROKEN not in json.dumps(record)
    prompt, made = record["wasted_tokens"] - 8, 8
    assert prompt > 0
    assert record["wasted_usd"] == pytest.approx((prompt * 1 + made * 2) / 1e6)
    assert record["cost_usd"] == pytest.approx((record["prompt_tokens"] * 10 + record["completion_tokens"] * 20) / 1e6)
    assert f'cost_usd_total{{task="returns",version="{V1}",pool="small",purpose="wasted"}}' in metrics
    assert 'version="",pool="general",purpose="wasted"' not in metrics
    assert f'apprentice_check_fired_total{{task="returns",version="{V1}",check="contract",mode="enforce"}} 1' in metrics
    assert 'apprentice_fallbacks_total{task="returns",from="small",to="general",reason="contract"} 1' in metrics
    assert 'apprentice_attempts_total{pool="small",outcome="rejected"} 1' in metrics


@both
async def test_an_answer_that_keeps_its_contract_is_sent_and_noted(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED | REFUSAL_ENFORCED) as gateway:
        small.answers[V1] = KEPT
        told = await ask(gateway, stream)
        record = await record_of(gateway, told)
    assert (told.text, told.model, told.reason) == (KEPT, V1, "adapter")
    assert (record["contract_kept"], record["wasted_usd"], record["wasted_tokens"]) == (True, None, None)
    assert [(one["check"], one["fired"]) for one in record["findings"]] == [("contract", False), ("refusal", False)]
    assert not general.requests


@both
@pytest.mark.parametrize("breaks", ["error", "flag"])
async def test_where_general_breaks_the_contract_too_the_task_says_what_becomes_of_it(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool, breaks: str
) -> None:
    checks = {"contract": {"mode": "enforce", "fallback_breaks": breaks}}
    async with judging(configure, make_adapter, checks) as gateway:
        small.answers[V1], general.answers["large"] = BROKEN, BROKEN
        told = await ask(gateway, stream)
        record = await record_of(gateway, told)
    assert [one["fired"] for one in record["findings"]] == [True, True]
    assert record["contract_kept"] is False
    if breaks == "error":
        assert (told.status, told.code, told.reason) == (502, "contract_violation", "contract")
        assert told.headers["x-should-retry"] == "false"
        assert (record["outcome"], record["cost_usd"]) == ("failed", None)
        assert [one["fault"] for one in record["attempts"]] == ["contract", "contract"]
        assert record["wasted_usd"] > 10 * 8 / 1e6
    else:
        assert (told.status, told.text, told.model) == (200, BROKEN, "large")
        assert (told.headers["x-apprentice-contract"], told.headers["x-apprentice-rejected"]) == ("broken", "contract")
        assert [one["fault"] for one in record["attempts"]] == ["contract", None]


@both
async def test_what_stands_in_for_a_dead_engine_is_held_against_the_contract_too(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED) as gateway:
        general.answers["large"] = BROKEN
        await small.kill()
        told = await ask(gateway, stream)
    assert (told.status, told.code) == (502, "contract_violation")


@both
async def test_a_person_is_asked_where_the_task_says_so(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    fallbacks = {"contract": ["needs_human"]}
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, fallbacks=fallbacks) as gateway:
        small.answers[V1] = BROKEN
        told = await ask(gateway, stream)
        record = await record_of(gateway, told)
    assert (told.status, told.code, told.reason) == (422, "needs_human", "contract")
    assert (record["contract_kept"], record["outcome"], len(record["attempts"])) == (False, "refused", 1)
    assert record["wasted_usd"] > 0
    assert not general.requests


@both
async def test_previous_version_answers_where_the_task_says_so_and_is_judged_itself(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    fallbacks = {"contract": ["previous_version", "general"]}
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, fallbacks=fallbacks, versions=2) as gateway:
        small.answers |= {V1: KEPT, V2: BROKEN}
        general.answers["large"] = KEPT
        told = await ask(gateway, stream)
        assert (told.text, told.model, told.reason) == (KEPT, V1, "contract")
        small.answers[V1] = BROKEN
        told = await ask(gateway, stream)
        record = await record_of(gateway, told)
    assert (told.text, told.model, told.reason) == (KEPT, "large", "contract")
    assert [(one["version"], one["fault"]) for one in record["attempts"]] == [
        (V2, "contract"),
        (V1, "contract"),
        (None, None),
    ]


@both
async def test_a_task_without_a_fallback_has_an_error_and_a_dead_fallback_another(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    fallbacks = {"contract": ["previous_version"]}
    async with judging(configure, make_adapter, CONTRACT_ENFORCED, fallback_pool=None, fallbacks=fallbacks) as gateway:
        small.answers[V1] = BROKEN
        told = await ask(gateway, stream)
    assert (told.status, told.code, told.reason) == (502, "contract_violation", "contract")


@both
async def test_a_pinned_version_answers_whatever_its_checks_say_with_a_label(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONTRACT_ENFORCED | REFUSAL_ENFORCED) as gateway:
        small.answers[V1] = BROKEN
        told = await ask(gateway, stream, V1)
        record = await record_of(gateway, told)
        assert (told.text, told.model, told.reason) == (BROKEN, V1, "pinned")
        assert (told.headers["x-apprentice-contract"], told.headers["x-apprentice-rejected"]) == ("broken", "contract")
        assert (fired(record), record["contract_kept"], record["wasted_usd"]) == (["contract"], False, None)
        small.answers[V1] = ""
        told = await ask(gateway, stream, V1)
    assert told.status == 200
    assert not general.requests


async def test_a_stream_that_is_only_observed_is_not_held_back_and_judged_once_it_was_sent(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    checks = {name: {"mode": "observe"} for name in ("contract", "low_confidence", "refusal")}
    async with judging(configure, make_adapter, checks, commit="first_token") as gateway:
        await calibrate(gateway)
        small.answers[V1], small.twists[V1] = BROKEN, with_logprobs(UNSURE)
        rule = small.faults.add(Stalls(3, 30), model=V1)
        body = {"model": "returns", "stream": True, **ASK}
        asking = gateway.http()
        async with (
            asyncio.timeout(60),
            asking as http,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            assert "You" in await read_until(answer, "You")
            assert small.in_flight == 1
        small.faults.clear()
        assert rule.shown == 1
        told = await ask(gateway, True)
        record = await record_of(gateway, told)
    assert (told.text, told.model, told.reason) == (BROKEN, V1, "adapter")
    assert fired(record) == ["contract", "low_confidence"]
    assert (record["contract_kept"], record["attempts"][0]["fault"]) == (False, None)
    assert all(choice["logprobs"] is None for choice in told.choices)
    assert not general.requests


async def read_until(stream: httpx.Response, wanted: str) -> str:
    text = ""
    async for part in stream.aiter_text():
        text += part
        if wanted in text:
            break
    return text


# ---- confidence ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_unsure_answer_goes_to_general_and_nobody_sees_unrequested_logprobs(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool, path: str
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED) as gateway:
        await calibrate(gateway)
        small.twists[V1] = with_logprobs(SURE)
        sure = await ask(gateway, stream, path=path)
        assert asked_of(small)["logprobs"] == (True if path.startswith("chat") else 0)
        assert (sure.model, sure.reason) == (V1, "adapter")
        assert all(choice["logprobs"] is None for choice in sure.choices)
        small.twists[V1] = with_logprobs(SURE, UNSURE)
        unsure = await ask(gateway, stream, path=path)
        record = await record_of(gateway, unsure)
    assert (unsure.model, unsure.reason) == ("large", "low_confidence")
    assert "logprobs" not in asked_of(general)
    (found,) = record["findings"]
    assert (found["check"], found["fired"], found["threshold"], found["version"]) == ("low_confidence", True, 0.9, V1)
    assert 0 < found["score"] < 0.9


@both
async def test_logprobs_that_the_caller_asks_for_are_used_and_stay(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, stream: bool
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED) as gateway:
        await calibrate(gateway)
        small.twists[V1] = with_logprobs(SURE)
        told = await ask(gateway, stream, logprobs=True, top_logprobs=2)
        record = await record_of(gateway, told)
        assert asked_of(small)["top_logprobs"] == 2
        assert any(choice["logprobs"] and choice["logprobs"]["content"] for choice in told.choices)
        assert [(one["fired"], one["note"]) for one in record["findings"]] == [(False, "")]
        small.twists[V1] = with_logprobs(UNSURE)
        assert (await ask(gateway, stream, logprobs=True)).reason == "low_confidence"


async def test_missing_calibration_never_fires_and_an_uncertified_threshold_always_does(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED) as gateway:
        small.twists[V1] = with_logprobs(SURE)
        told = await ask(gateway)
        assert "logprobs" not in asked_of(small)
        assert told.reason == "adapter"
        assert (await record_of(gateway, told))["findings"][0]["note"] == "no calibration"
        await calibrate(gateway, replace(MODEL, calibration=replace(MODEL.calibration, wrong=(50, 100))))
        told = await ask(gateway)
        record = await record_of(gateway, told)
    assert told.reason == "low_confidence"
    assert record["findings"][0]["note"] == "no threshold can be certified"


async def test_after_the_first_tokens_a_stream_is_judged_by_them_and_then_flows(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, commit="tokens:3") as gateway:
        await calibrate(gateway, replace(MODEL, tokens=3))
        small.twists[V1] = with_logprobs(SURE, SURE, SURE, UNSURE)
        small.faults.add(Tokens(20), model=V1)
        told = await ask(gateway, True)
        assert (told.model, told.reason) == (V1, "adapter")
        assert all(choice["logprobs"] is None for choice in told.choices)
        assert len((await record_of(gateway, told))["findings"]) == 1
        small.twists[V1] = with_logprobs(SURE, UNSURE, SURE)
        small.faults.clear()
        small.faults.add(Tokens(20), Stalls(3, 30), model=V1)  # the rest is not waited for
        async with asyncio.timeout(60):
            told = await ask(gateway, True)
        record = await record_of(gateway, told)
        assert (told.model, told.reason) == ("large", "low_confidence")
        assert (record["wasted_tokens"], record["wasted_usd"]) == (3, None)
        await small.until(lambda: small.in_flight == 0)


async def test_a_calibration_for_more_tokens_than_are_held_back_does_not_fire_and_says_so(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, commit="tokens:3") as gateway:
        await calibrate(gateway)
        small.twists[V1] = with_logprobs(UNSURE)
        told = await ask(gateway, True)
        assert told.reason == "adapter"
        assert (await record_of(gateway, told))["findings"][0]["note"] == "calibrated for another prefix"
        unjudged = f'apprentice_check_unjudged_total{{task="returns",version="{V1}",check="low_confidence"}} 1'
        assert unjudged in await metrics_of(gateway)
        assert (await ask(gateway, False)).reason == "low_confidence"  # that is there as a whole


@pytest.mark.parametrize("commit", ["complete", "tokens:5"])
async def test_answer_not_judged_within_the_hold_time_goes_to_general_as_late(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, commit: str
) -> None:
    task = {"commit": commit, "hold_seconds_max": 0.4}
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, **task) as gateway:
        await calibrate(gateway, replace(MODEL, tokens=5))
        small.twists[V1] = with_logprobs(SURE)
        small.faults.add(Tokens(20), Stalls(3, 30), model=V1)
        async with asyncio.timeout(60):
            told = await ask(gateway, True)
        record = await record_of(gateway, told)
        assert (told.model, told.reason) == ("large", "timeout")
        assert (record["attempts"][0]["fault"], record["findings"]) == ("late", [])
        await small.until(lambda: small.in_flight == 0)


@pytest.mark.parametrize(("logprob", "model"), [(SURE, V1), (UNSURE, "large")])
async def test_what_is_there_when_the_hold_is_over_is_judged_where_that_is_enough(
    configure: Configure,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    general: FakeEngine,
    logprob: float,
    model: str,
) -> None:
    task = {"commit": "tokens:10", "hold_seconds_max": 1.0}
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, **task) as gateway:
        await calibrate(gateway, replace(MODEL, tokens=3))
        small.twists[V1] = with_logprobs(logprob)
        small.faults.add(Tokens(20), Stalls(6, 2.5), model=V1)
        async with asyncio.timeout(60):
            told = await ask(gateway, True)
        record = await record_of(gateway, told)
    assert told.model == model
    assert record["attempts"][0]["fault"] == (None if model == V1 else "low_confidence")


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("commit", ["tokens:5", "tokens:1000"])
async def test_each_of_several_alternatives_is_judged_by_its_first_tokens(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, n: int, commit: str
) -> None:
    task = {"commit": commit, "n_max": 3}
    async with judging(configure, make_adapter, CONFIDENCE_ENFORCED, contract=None, **task) as gateway:
        await calibrate(gateway, replace(MODEL, tokens=5))
        small.answers[V1] = " ".join(f"w{number}" for number in range(20))
        small.twists[V1] = with_logprobs(SURE, SURE, SURE, SURE, UNSURE)
        told = await ask(gateway, True, n=n)
        assert (told.model, told.reason) == ("large", "low_confidence")
        small.twists[V1] = with_logprobs(SURE, SURE, SURE, SURE, SURE, UNSURE)
        told = await ask(gateway, True, n=n)
        record = await record_of(gateway, told)
        assert (told.model, told.reason) == (V1, "adapter")
        assert [(one["fired"], one["note"]) for one in record["findings"]] == [(False, "")]
        small.answers[V1] = "No."
        assert (await ask(gateway, True, n=n)).model == V1
        metrics = await metrics_of(gateway)
    assert "apprentice_check_unjudged_total{" not in metrics


# ---- refusals and tools --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["words", "field", "filter", "empty"])
async def test_refusals_and_empty_answers_go_to_general(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, how: str, stream: bool
) -> None:
    def twist(said: Any) -> None:
        said.refuses = how == "field"
        said.finish_reason = "content_filter" if how == "filter" else said.finish_reason

    async with judging(configure, make_adapter, REFUSAL_ENFORCED, contract=None) as gateway:
        small.answers[V1] = {"words": "I'm sorry, but I can't help with that.", "empty": ""}.get(how, "No.")
        small.twists[V1] = twist
        told = await ask(gateway, stream)
        record = await record_of(gateway, told)
    assert (told.model, told.reason) == ("large", "refusal")
    assert fired(record) == ["refusal"]


TOOL = {"type": "function", "function": {"name": "decide", "parameters": SCHEMA}}


@both
@pytest.mark.parametrize("wrong", ["", "name", "arguments", "json", "none"])
async def test_calls_of_tools_are_held_against_those_that_were_offered(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, wrong: str, stream: bool
) -> None:
    def twist(said: Any) -> None:
        said.tool = None if wrong == "none" else "other" if wrong == "name" else "decide"

    arguments = {"arguments": '{"decision": "keep"}', "json": '{"decision": "acc', "none": "It is accepted."}
    async with judging(configure, make_adapter, CONTRACT_ENFORCED | REFUSAL_ENFORCED, contract=None) as gateway:
        small.answers[V1], small.twists[V1] = arguments.get(wrong, KEPT), twist
        told = await ask(gateway, stream, tools=[TOOL], tool_choice="required")
        record = await record_of(gateway, told)
    assert told.reason == ("refusal" if wrong else "adapter")
    assert told.model == ("large" if wrong else V1)
    assert fired(record) == (["refusal"] if wrong else [])
    assert record["contract_kept"] is None


@pytest.mark.invariant("No caller's schema holds the event loop.")
async def test_a_callers_schema_holds_nobody_up_however_it_is_made(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    def twist(said: Any) -> None:
        said.tool = "decide"

    depth = 26
    twice: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(depth)}
    nested = {"$defs": {**twice, f"d{depth}": {}}, "properties": {"decision": {"$ref": "#/$defs/d0"}}}
    tool = {"type": "function", "function": {"name": "decide", "parameters": nested}}
    async with judging(configure, make_adapter, REFUSAL_ENFORCED, contract=None) as gateway:
        small.answers[V1], small.twists[V1] = KEPT, twist
        began_at = time.thread_time()
        told = await ask(gateway, tools=[tool], tool_choice="required")
        assert told.reason == "adapter"
        assert time.thread_time() - began_at < 0.5


# ---- constrained decoding ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contract", "form"),
    [
        (CONTRACT, {"json": SCHEMA}),
        ({"choices": ["accept", "refuse"]}, {"choice": ["accept", "refuse"]}),
        ({"regex": "accept|refuse"}, {"regex": "accept|refuse"}),
    ],
    ids=["schema", "choices", "regex"],
)
async def test_an_engine_is_told_to_keep_the_contract_unless_the_caller_wants_another_form(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, contract: Any, form: Any
) -> None:
    checks = {"contract": {"constrained": True}}
    async with judging(configure, make_adapter, checks, contract=contract, commit="first_token") as gateway:
        await ask(gateway)
        assert asked_of(small)["structured_outputs"] == form
        await ask(gateway, True)
        assert asked_of(small)["structured_outputs"] == form
        await ask(gateway, response_format={"type": "text"})
        assert "structured_outputs" not in asked_of(small)
        await ask(gateway, tools=[TOOL], tool_choice="required")
        assert "structured_outputs" not in asked_of(small)
        await small.kill()
        told = await ask(gateway)
        assert told.model == "large"
        assert asked_of(general)["structured_outputs"] == form


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "commit", "fits"),
    [
        ("contract", "first_token", False),
        ("contract", "tokens:5", False),
        ("contract", "complete", True),
        ("refusal", "first_token", False),
        ("refusal", "tokens:5", False),
        ("low_confidence", "first_token", False),
        ("low_confidence", "tokens:5", True),
        ("low_confidence", "complete", True),
    ],
)
def test_check_too_late_for_the_commit_policy_is_refused_unless_it_only_observes(
    configure: Configure, check: str, commit: str, fits: bool
) -> None:
    for mode in ("enforce", "observe"):
        configuration = configure(tasks={"returns": {"commit": commit, "checks": {check: {"mode": mode}}}})
        if fits or mode == "observe":
            Settings(**configuration)
            continue
        with pytest.raises(ValueError, match=f"tasks.returns.checks.{check}.mode: enforce needs .* to observe"):
            Settings(**configuration)
