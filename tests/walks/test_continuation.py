"""An answer that breaks is gone on with by another engine, where engines can, as one stream with one bill."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, ErrorEvent, Fault, RawEvent, Silent, Stalls, Tokens
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.fault_world import SHORT, World, ask, calls, world
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import find_record

__all__ = ["world"]

CONTINUES = {"continues": True}
BOTH: dict[str, Any] = {"small_pool": CONTINUES, "general_pool": CONTINUES}
BREAKS: dict[str, Fault] = {
    "dies": Dies(40),
    "reset": Dies(40, "reset"),
    "half_chunk": Dies(40, "half_chunk"),
    "done": Dies(40, "done"),
    "error_event": ErrorEvent(40),
}

DECIDE = {"name": "decide", "parameters": {"type": "object", "properties": {"decision": {"type": "string"}}}}


def prefilled(engine: FakeEngine) -> list[dict[str, Any]]:
    """The bodies of the requests to go on with an answer."""
    return [dict(seen.body) for seen in calls(engine) if seen.body["messages"][-1]["role"] == "assistant"]


async def record_of(gateway: RunningGateway, request_id: str) -> dict[str, Any]:
    async with gateway.http() as http:
        return await find_record(http, request_id)


@pytest.mark.parametrize("commit", ["first_token", "tokens:10", "tokens:50", "complete"])
@pytest.mark.parametrize("fault", BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_is_gone_on_with_as_if_nothing_had_been(
    world: World, small: FakeEngine, general: FakeEngine, commit: str, fault: Fault
) -> None:
    async with world(commit=commit, **BOTH) as gateway:
        plain = await ask(gateway, max_tokens=100)
        small.faults.add(Tokens(60), fault, model="returns@*", times=1)
        told = await ask(gateway, max_tokens=100)
        record = await record_of(gateway, told.headers["x-request-id"])
    assert (told.text, told.finish_reason, told.done, told.error) == (plain.text, "stop", True, None)
    assert (told.models, len(told.ids), told.roles) == ({"returns@v1"}, 1, 1)
    (again,) = prefilled(small)
    assert (again["continue_final_message"], again["add_generation_prompt"], again["max_tokens"]) == (True, False, 60)
    assert again["messages"][-1]["content"] == " ".join(plain.text.split()[:40])
    assert not calls(general)
    assert told.usage is not None
    assert told.usage["completion_tokens"] == 60
    assert told.usage["total_tokens"] == told.usage["prompt_tokens"] + 60
    assert abs(told.usage["prompt_tokens"] - plain.usage["prompt_tokens"]) <= 1
    assert told.apprentice is not None
    assert (told.apprentice["continued"], told.apprentice["pool"]) == (1, "small")
    assert (record["continued"], record["completion_tokens"], record["outcome"]) == (1, 60, "ok")
    assert len(record["attempts"]) == 2
    cost = told.usage["prompt_tokens"] * 2 + 40 + 2 * 60  # both read the prompt, the second the first 40 tokens too
    assert record["cost_usd"] == pytest.approx(cost / 1e6)


async def test_another_replica_of_the_version_comes_first(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with FakeEngine("tiny-base", n_tokens=60) as second:
        small.n_tokens = 60
        config = configure(limits=SHORT)
        config["pools"]["small"]["replicas"].append({"name": "small-1", "url": second.url})
        config["pools"]["small"]["continues"] = True
        async with run_gateway(config) as gateway:
            await gateway.place(make_adapter(1))
            for engine in (small, second):  # the one that goes on has 10 tokens to make, and does not come to its fault
                engine.faults.add(Tokens(60), Dies(20), model="returns@*")
            told = await ask(gateway)
            record = await record_of(gateway, told.headers["x-request-id"])
    assert (told.whole, told.words, record["continued"]) == (True, 30, 1), "the version's own limit is 30"
    first, other = (attempt["replica"] for attempt in record["attempts"][:2])
    assert first != other


async def test_where_the_version_can_not_go_on_the_fallback_does_and_the_caller_is_told(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    async with world(**BOTH) as gateway:
        small.faults.add(Tokens(60), Stalls(20, 30), model="returns@*")
        told = await ask(gateway)
        record = await record_of(gateway, told.headers["x-request-id"])
    assert (told.whole, told.words, told.models) == (True, 60, {"returns@v1"})
    assert told.headers["x-apprentice-reason"] == "adapter"
    assert told.apprentice is not None
    assert (told.apprentice["continued"], told.apprentice["pool"], told.apprentice["version"]) == (1, "general", None)
    assert (record["pool"], record["reason"], record["continued"]) == ("general", "timeout", 1)
    assert record["cost_usd"] is None, "how long the prompt was for the other pool's template is not known"
    assert [attempt["fault"] for attempt in record["attempts"]] == [None, None]
    (again,) = prefilled(general)
    assert again["model"] == "large"
    assert again["messages"][0]["role"] == "system"


async def test_a_stream_that_breaks_again_is_gone_on_with_again(world: World, small: FakeEngine) -> None:
    async with world(**BOTH) as gateway:
        plain = await ask(gateway)
        small.faults.add(Tokens(60), Dies(20), model="returns@*", times=2)
        told = await ask(gateway)
    assert (told.text, told.apprentice and told.apprentice["continued"]) == (plain.text, 2)
    assert told.usage is not None
    assert told.usage["completion_tokens"] == 60
    assert [len(body["messages"][-1]["content"].split()) for body in prefilled(small)] == [20, 40]


async def test_a_part_of_an_engine_that_went_on_and_failed_is_its_own(world: World, small: FakeEngine) -> None:
    more = {"index": 0, "delta": {"content": " more"}, "finish_reason": None}
    events = ({"id": "x", "model": "m", "choices": [more]}, {"error": {"message": "It broke.", "code": 500}})
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    async with world(**BOTH) as gateway:
        small.faults.add(Tokens(60), Dies(20), model="returns@*", times=1)
        small.faults.add(RawEvent(0, data), Dies(0), model="returns@*", times=1)
        told = await ask(gateway, max_tokens=100)
        record = await record_of(gateway, told.headers["x-request-id"])
    assert (told.whole, told.words, len(record["attempts"])) == (True, 60, 3)
    assert [len(body["messages"][-1]["content"].split()) for body in prefilled(small)] == [20, 21]
    assert told.usage is not None
    cost = told.usage["prompt_tokens"] * 3 + 20 + 21 + 2 * 60  # all three read the prompt and what there was before
    assert record["cost_usd"] == pytest.approx(cost / 1e6)


async def test_unreadable_event_is_told_where_another_engine_goes_on(world: World, small: FakeEngine) -> None:
    async with world(**BOTH) as gateway:
        small.faults.add(Tokens(60), RawEvent(20), Dies(40), model="returns@*", times=1)
        told = await ask(gateway, max_tokens=100)
        record = await record_of(gateway, told.headers["x-request-id"])
    assert (told.whole, told.done) == (True, True)
    assert told.apprentice is not None
    assert (told.apprentice["skipped_events"], told.apprentice["continued"]) == (1, 1)
    assert record["skipped_events"] == 1


async def test_one_that_breaks_for_ever_ends_with_the_clear_error_within_the_retries(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    async with world(fallback_pool=None, **BOTH) as gateway:
        small.faults.add(Tokens(60), Dies(10), model="returns@*")
        told = await ask(gateway)
        record = await record_of(gateway, told.headers["x-request-id"])
        assert all(replica.in_flight == 0 for replica in gateway.services.fleet.replicas.values())
    assert told.error is not None
    assert (told.error["code"], told.done, told.words) == ("stream_broken", False, 30)
    assert (len(calls(small)), record["outcome"], record["completion_tokens"]) == (3, "truncated", 30)
    assert not calls(general)


@pytest.mark.invariant("No engine continues an answer where that is not safe.")
@pytest.mark.parametrize(
    "more",
    [
        {"stop": ["never"]},
        {"logprobs": True},
        {"response_format": {"type": "text"}},
        {"tools": [{"type": "function", "function": DECIDE}], "tool_choice": "required"},
        {"messages": [{"role": "user", "content": "A toaster."}, {"role": "assistant", "content": "Well"}]},
        {"max_tokens": 10},
    ],
    ids=["stop", "logprobs", "response_format", "tools", "begun_by_the_caller", "no_tokens_left"],
)
async def test_what_can_not_be_gone_on_with_safely_ends_with_the_clear_error(
    world: World, small: FakeEngine, general: FakeEngine, more: dict[str, Any]
) -> None:
    async with world(**BOTH) as gateway:
        small.answers["returns@v1"] = " ".join(f"word{number}" for number in range(60))
        if "tools" in more:
            del small.answers["returns@v1"]
        small.faults.add(Tokens(60), Dies(1 if "tools" in more else 10), model="returns@*")
        told = await ask(gateway, **more)
    assert told.error is None or told.error["code"] == "stream_broken"
    assert (told.error is not None) or "max_tokens" in more
    assert len(calls(small)) == 1
    assert not calls(general)


async def test_an_answer_that_reasons_is_not_gone_on_with(world: World, small: FakeEngine) -> None:
    async with world(**BOTH) as gateway:
        choice = {"index": 0, "delta": {"reasoning": "Hm."}, "finish_reason": None}
        thought = f"data: {json.dumps({'id': 'chatcmpl-x', 'model': 'm', 'choices': [choice]})}\n\n"
        rule = {"faults": [{"kind": "tokens", "count": 60}, {"kind": "raw_event", "data": thought}]}
        rule["faults"].append({"kind": "dies", "after_tokens": 10})
        small.faults.add_json(rule | {"model": "returns@*"})
        told = await ask(gateway)
    assert told.error is not None
    assert len(calls(small)) == 1


async def test_engine_refusing_a_continuation_gives_the_clear_error_and_is_tried_once(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    async with world(general_pool=CONTINUES) as gateway:
        general.continue_final_message = False
        small.faults.add(Tokens(60), Dies(40), model="returns@*")
        told = await ask(gateway)
    assert told.error is not None
    assert (told.error["code"], "prefill" in str(told.error)) == ("stream_broken", False)
    assert (len(calls(small)), len(calls(general))) == (1, 1)


async def test_a_caller_who_hangs_up_while_another_engine_is_to_go_on_frees_everything(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    limits = {"first_token_timeout_seconds": 20}
    async with world(limits=limits, general_pool=CONTINUES) as gateway, gateway.http() as http:
        small.faults.add(Tokens(60), Dies(40), model="returns@*")
        general.faults.add(Silent(), model="large")
        body = {"model": "returns", "stream": True, "messages": [{"role": "user", "content": "A toaster."}]}
        async with http.stream("POST", "/v1/chat/completions", json=body):
            await general.until(lambda: general.in_flight == 1)
        await general.until(lambda: general.in_flight == 0)
        replicas = gateway.services.fleet.replicas.values()
        await general.until(lambda: all(replica.in_flight == 0 for replica in replicas))
    assert general.cancelled


async def test_tokens_that_are_held_go_out_when_holding_is_over(world: World, small: FakeEngine) -> None:
    async with world(commit="tokens:50", hold_seconds_max=0.4, limits={"inter_token_timeout_seconds": 5}) as gateway:
        small.faults.add(Tokens(60), Stalls(20, 1.0), model="returns@*", times=1)
        told = await ask(gateway)
    assert (told.whole, told.words, told.models) == (True, 60, {"returns@v1"})
    assert told.headers["x-apprentice-attempts"] == "1"


async def test_a_complete_answer_that_takes_longer_than_may_be_held_comes_from_elsewhere(
    world: World, small: FakeEngine
) -> None:
    limits = {"inter_token_timeout_seconds": 60, "first_token_timeout_seconds": 60}
    async with world(commit="complete", hold_seconds_max=0.4, limits=limits) as gateway:
        small.faults.add(Tokens(60), Stalls(20, 60), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "timeout")
    assert told.seconds < 30


async def test_our_own_limit_on_holding_back_counts_against_no_engine(world: World, small: FakeEngine) -> None:
    small.token_delay_seconds = 0.02
    async with world(commit="complete", hold_seconds_max=0.3, limits={"inter_token_timeout_seconds": 5}) as gateway:
        for _ in range(3):
            told = await ask(gateway)
            assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "timeout")
        assert not gateway.services.fleet.replicas["small-0"].view().circuits


@pytest.mark.parametrize(("commit", "events"), [("first_token", 1), ("tokens:7", 7), ("complete", 60)])
async def test_so_many_tokens_are_held_back_and_no_more(
    world: World, small: FakeEngine, commit: str, events: int
) -> None:
    small.token_delay_seconds = 0.01
    async with world(commit=commit, limits={"answer_timeout_seconds": 60}) as gateway, gateway.http() as http:
        body = {"model": "returns", "stream": True, "messages": [{"role": "user", "content": "A toaster."}]}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            made = calls(small)[0].tokens
            await answer.aread()
    assert events <= made <= min(events + 25, 60)
