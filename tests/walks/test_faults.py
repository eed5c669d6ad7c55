"""The sixteen faults of an engine, each by the name of a model that shows it; limits are shrunk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.fault_rules import NAMED
from tests.fakes.faults import Dies, Down, Fault, Moment, RawEvent, RefusesPrefill, SlowFirstToken, Stalls, Tokens
from tests.fakes.wire import AnswerOver
from tests.walks.fault_world import World, ask, calls, gaps, world

__all__ = ["world"]

GENERAL = "large#"
"""The beginning of every answer of the general engine."""

both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@both
async def test_fault_1_429_with_retry_after_is_waited_for_and_the_same_engine_retried(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f01-429-once") as gateway:
        told = await ask(gateway, "f01-429-once", stream)
    assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "adapter")
    assert len(calls(small)) == 2
    assert 1.9 <= gaps(calls(small))[0] < 20
    assert not calls(general)


@both
async def test_fault_2_a_429_for_ever_is_backed_off_from_and_then_left(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f02-429-forever", limits={"backoff_seconds": 0.2}) as gateway:
        told = await ask(gateway, "f02-429-forever", stream)
    assert (told.whole, told.text.startswith(GENERAL)) == (True, True)
    assert told.headers["x-apprentice-reason"] == "overload"
    assert len(calls(small)) == 3
    first, second = gaps(calls(small))
    assert first >= 0.1
    assert second >= 0.2
    assert len(calls(general)) == 1


@both
async def test_fault_3_a_500_is_tried_once_more_in_the_same_pool(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f03-500-once") as gateway:
        told = await ask(gateway, "f03-500-once", stream)
    assert (told.whole, told.headers["x-apprentice-attempts"]) == (True, "2")
    assert (len(calls(small)), len(calls(general))) == (2, 0)


@both
async def test_fault_4_a_503_for_ever_is_left_within_the_retries(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f04-503-forever") as gateway:
        told = await ask(gateway, "f04-503-forever", stream)
    assert (told.whole, told.text.startswith(GENERAL)) == (True, True)
    assert (len(calls(small)), len(calls(general))) == (3, 1)


@both
async def test_fault_5_a_connection_that_is_reset_is_made_up_for(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f05-reset-before-headers") as gateway:
        told = await ask(gateway, "f05-reset-before-headers", stream)
    assert (told.whole, told.text.startswith(GENERAL)) == (True, True)
    assert 1 <= len(calls(small)) <= 3


@both
async def test_fault_6_a_silent_engine_is_not_asked_twice(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f06-silent") as gateway:
        told = await ask(gateway, "f06-silent", stream)
        await small.until(lambda: small.in_flight == 0)
    assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "timeout")
    assert len(calls(small)) == 1


async def test_fault_7_a_first_token_that_is_late_is_not_waited_for(world: World, small: FakeEngine) -> None:
    async with world() as gateway:
        small.faults.add(SlowFirstToken(30), model="returns@*")
        told = await ask(gateway)
        await small.until(lambda: small.in_flight == 0)
    assert (told.whole, told.text.startswith(GENERAL)) == (True, True)
    assert told.seconds < 25
    assert len(calls(small)) == 1


@pytest.mark.parametrize("commit", ["first_token", "tokens:20", "tokens:50", "complete"])
async def test_fault_8_an_engine_that_dies_inside_an_answer_never_looks_like_success(
    world: World, commit: str, small: FakeEngine
) -> None:
    async with world("f08-dies-after-40-of-60", commit=commit) as gateway:
        told = await ask(gateway, "f08-dies-after-40-of-60")
        whole = await ask(gateway, "f08-dies-after-40-of-60", stream=False)
    assert (whole.whole, whole.words) == (True, 60)
    if commit in ("first_token", "tokens:20"):
        assert told.error is not None
        assert (told.error["code"], told.done, told.words) == ("stream_broken", False, 40)
    else:
        assert (told.whole, told.words, told.text.startswith(GENERAL)) == (True, 60, True)
        assert "dies" not in "".join(told.models)


async def test_fault_9_stalled_engine_is_left_within_the_limit_and_healthy_afterwards(
    world: World, small: FakeEngine
) -> None:
    async with world(commit="complete") as gateway:
        rule = small.faults.add(Tokens(60), Stalls(20, 30), model="returns@*", times=1)
        told = await ask(gateway)
        await small.until(lambda: small.in_flight == 0)
        assert (told.whole, told.words, told.text.startswith(GENERAL), rule.shown) == (True, 60, True, 1)
        assert told.seconds < 25
        replica = gateway.services.fleet.replicas["small-0"]
        await small.until(lambda: replica.resting_until < time.monotonic())
        assert (await ask(gateway)).models == {"returns@v1"}


async def test_fault_10_a_malformed_event_is_skipped(world: World, small: FakeEngine, general: FakeEngine) -> None:
    async with world() as gateway:
        plain = await ask(gateway)
        small.faults.add(RawEvent(), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, told.done, told.text) == (True, True, plain.text)
    assert not calls(general)


@pytest.mark.parametrize("ending", ["end", "close", "open"])
async def test_fault_11_an_answer_without_done_ends_at_once_with_its_usage(
    world: World, small: FakeEngine, general: FakeEngine, ending: str
) -> None:
    async with world(limits={"inter_token_timeout_seconds": 60, "first_token_timeout_seconds": 60}) as gateway:
        rule = {"faults": [{"kind": "no_done", "ending": ending}], "model": "returns@*"}
        small.faults.add_json(rule)
        told = await ask(gateway)
        await small.until(lambda: small.in_flight == 0)
    assert (told.whole, told.done, told.words) == (True, True, 60)
    assert told.usage is not None
    assert told.usage["completion_tokens"] == 60
    assert told.seconds < 30
    assert not calls(general)


@both
@pytest.mark.parametrize(("here", "there"), [(2048, 8192), (8192, 2048), (None, None)])
async def test_fault_12_a_prompt_that_is_too_long_is_sent_on_only_to_where_it_may_fit(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool, here: int | None, there: int | None
) -> None:
    pools = {"small_pool": {"context_tokens_max": here}, "general_pool": {"context_tokens_max": there}}
    async with world("f12-context-length", **pools) as gateway:
        told = await ask(gateway, "f12-context-length", stream)
        assert gateway.services.fleet.replicas["small-0"].breaker_state(time.monotonic()) == "closed"
    assert len(calls(small)) == 1
    if here == 2048:
        assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "context_length")
    else:
        assert (told.status, (told.error or {})["code"], calls(general)) == (400, "context_length_exceeded", [])


async def test_fault_12_engines_that_tell_their_context_need_no_setting_for_it(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    general.max_model_len = 2 * small.max_model_len
    async with world("f12-context-length") as gateway:
        told = await ask(gateway, "f12-context-length")
    assert (told.whole, told.headers["x-apprentice-reason"]) == (True, "context_length")


@both
async def test_fault_13_what_the_content_policy_refuses_is_told_and_goes_nowhere_else(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world("f13-content-policy") as gateway:
        told = await ask(gateway, "f13-content-policy", stream)
    assert (told.status, (told.error or {})["code"]) == (400, "content_policy")
    assert (len(calls(small)), len(calls(general))) == (1, 0)


@pytest.mark.parametrize("commit", ["first_token", "complete"])
@pytest.mark.parametrize("flagged", [False, True])
async def test_fault_14_refused_prefill_leads_to_a_new_request_or_a_clear_error(
    world: World, small: FakeEngine, general: FakeEngine, commit: str, flagged: bool
) -> None:
    pool = {"general_pool": {"continues": flagged}}
    async with world("f14-dies-and-refuses-prefill", commit=commit, **pool) as gateway:
        general.faults.add(RefusesPrefill(), model="large")
        told = await ask(gateway, "f14-dies-and-refuses-prefill")
    prefills = [seen for seen in (*calls(small), *calls(general)) if seen.body["messages"][-1]["role"] == "assistant"]
    assert len(prefills) == (1 if flagged else 0)
    if commit == "complete":
        assert (told.whole, told.words, told.text.startswith(GENERAL)) == (True, 60, True)
        assert told.headers["x-apprentice-reason"] == "engine_error"
    else:
        assert told.error is not None
        assert (told.error["code"], told.done) == ("stream_broken", False)
    assert "prefill" not in json.dumps(told.error)


@pytest.mark.invariant("No request goes to an open breaker while another replica can answer.")
async def test_fault_15_circuit_opens_probes_are_few_and_the_primary_returns(world: World, small: FakeEngine) -> None:
    async with world(limits={"answer_timeout_seconds": 20}) as gateway:
        rule = small.faults.add(Down(4.0), model="returns@*")
        down_until: float | None = None
        asked_while_down = back = 0
        deadline = time.monotonic() + 60
        while back < 3 and time.monotonic() < deadline:
            told = await ask(gateway)
            assert told.whole
            back += told.models == {"returns@v1"}
            down_until = rule.first_at + 4.0
            is_down = time.monotonic() < down_until
            asked_while_down += is_down
            async with gateway.http("") as http:
                metrics = (await http.get("/metrics")).text
            if is_down and asked_while_down == 6:
                assert 'apprentice_breaker_state{pool="small",replica="small-0"} 0' not in metrics
        assert back == 3
        assert down_until is not None
        assert time.monotonic() - down_until < 30
        assert 'apprentice_breaker_state{pool="small",replica="small-0"} 0' in metrics
    probes = [seen for seen in calls(small) if seen.at < down_until]
    assert asked_while_down > 6
    assert len(probes) <= 6


@dataclass(frozen=True)
class UnusableForm(Fault):
    """Answers 500 to a form that refers to itself, as vLLM 0.32 does."""

    async def on_request(self, moment: Moment) -> None:
        if moment.body.get("response_format"):
            await moment.exchange.whole(500, {"error": {"message": "Internal server error", "code": 500}})
            raise AnswerOver("refused")


@both
async def test_form_that_no_engine_can_use_takes_the_adapter_from_no_other_request(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    small.faults.add(UnusableForm())
    general.faults.add(UnusableForm())
    async with world() as gateway:
        for _ in range(4):
            assert (await ask(gateway, stream=stream, response_format=form)).status == 502
            told = await ask(gateway)
            assert (told.whole, told.models) == (True, {"returns@v1"})
        for _ in range(4):
            assert (await ask(gateway, stream=stream, response_format=form)).status == 502
        assert gateway.services.fleet.replicas["small-0"].breaker_state(time.monotonic()) == "closed"
        told = await ask(gateway)
    assert (told.whole, told.models) == (True, {"returns@v1"})


@both
async def test_fault_16_the_model_that_served_is_named_and_what_failed_is_no_completion(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    task = "f16-503-fallback-answers"
    async with world(task) as gateway:
        told = await ask(gateway, task, stream)
        async with gateway.http() as http:
            record = (await http.get(f"/v1/requests/{told.headers['x-request-id']}")).json()["record"]
            metrics = (await http.get("/metrics")).text
    assert (told.whole, told.models) == (True, {"large"})
    assert told.usage is not None
    assert told.usage["completion_tokens"] == 60
    assert [attempt["fault"] for attempt in record["attempts"]] == ["overloaded"] * 3 + [None]
    assert (record["completion_tokens"], record["wasted_usd"]) == (60, None)
    completions = [line for line in metrics.splitlines() if "apprentice_tokens_total{" in line and "completion" in line]
    assert len(completions) == 1
    assert completions[0].endswith(" 60")


def test_every_row_of_the_table_has_its_fake() -> None:
    assert {f"f{row:02}" for row in range(1, 17)} <= {name[:3] for name in NAMED}
    assert isinstance(NAMED["f08-dies-after-40-of-60"]().faults[1], Dies)
