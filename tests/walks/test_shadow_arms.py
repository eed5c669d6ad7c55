"""Both arms of a watched task: who is drawn, who answers beside whom, and what that may never do to a caller."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from gateway.features.shadows.draws import QUEUE_MAX
from gateway.features.shadows.job import AT_ONCE_MAX
from gateway.features.shadows.state import Shadows
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Silent, Status
from tests.waiting import until
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.monitor_world import arms, found, watch, watching
from tests.walks.releases import V1, V2, as_many, ask, metric, record_of, shadows, step

HELD_OUT = {"checks": {"holdout": {"mode": "enforce", "share": 1.0}}}
CONTRACT_ENFORCED = {"commit": "complete", "checks": {"contract": {"mode": "enforce"}}}
TOOL = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object", "properties": {}}}}
DROPPED = ("apprentice_shadow_requests_total", 'outcome="dropped"')


# ---- who is drawn --------------------------------------------------------------------------------


@pytest.mark.invariant("Draws for shadows and reviews depend on chance alone.")
async def test_shadows_and_reviews_are_drawn_independently_and_records_show_probability(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with watching(configure, make_adapter, shadow_share=0.4, review_share=0.3) as (_, http):
        records = [await record_of(http, await ask(http, "one session")) for _ in range(120)]
    assert {(one["shadow_probability"], one["review_probability"]) for one in records} == {(0.4, 0.3)}
    drawn = {(one["shadowed"], one["reviewed"]) for one in records}
    assert drawn == {(False, False), (False, True), (True, False), (True, True)}


async def test_unwatched_task_draws_nothing_and_neither_do_pins_nor_rules(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with watching(configure, make_adapter, review_share=1.0) as (running, http):
        rule = {"action": "general", "task": "returns", "metadata": {"team": "testers"}}
        assert (await http.put("/admin/v1/overrides/testers", json=rule)).status_code == 200
        sent: tuple[dict[str, Any], ...] = ({"model": V1}, {"metadata": {"team": "testers"}})
        records = [await record_of(http, await ask(http, **more)) for more in sent]
        await watch(running)
        records.append(await record_of(http, await ask(http)))
        names = ("shadow_probability", "shadowed", "review_probability", "reviewed")
        assert [[one[name] for name in names] for one in records] == [[None, False, None, False]] * 3
        assert await shadows(running) == []


async def test_the_language_that_a_caller_names_is_noted_for_watched_tasks(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    named: list[Any] = [{"language": "de"}, {"language": "German, as spoken"}, {"language": 7}, None]
    async with watching(configure, make_adapter, shadow_share=0.0) as (running, http):
        records = [await record_of(http, await ask(http, metadata=one)) for one in named]
        assert [one["language"] for one in records] == ["de", None, None, None]
        assert await shadows(running) == []


# ---- who answers beside whom ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_version_answered_general_answers_too_with_its_general_prompt(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    small.answers[V1], general.answers["large"] = "approve it", "reject it"
    async with watching(configure, make_adapter) as (running, http):
        answer = await ask(http, stream=stream)
        primary = await record_of(http, answer)
        [shadow] = await arms(running)
        assert "reject" not in answer.text
        assert (primary["version"], primary["shadowed"]) == (V1, True)
        assert (shadow["version"], shadow["pool"], shadow["led_to"], shadow["general_prompt"]) == (
            None,
            "general",
            V1,
            True,
        )
        assert (shadow["shadow_of"], shadow["caller"], shadow["agrees"]) == (primary["id"], "", False)
        assert (shadow["pair"]["version"], shadow["pair"]["arm"], shadow["pair"]["judge"]) == (V1, "general", "normal")
        assert shadow["pair"]["served_digest"] == primary["text_digest"]
        assert shadow["pair"]["digest"] == shadow["text_digest"] != primary["text_digest"]
        assert (shadow["pair"]["right"], shadow["pair"]["score"], shadow["pair"]["served_score"]) == (None, 0.0, 0.0)
        assert GENERAL_PROMPT in str(general.requests[-1].body["messages"])
        booked = await metric(http, "apprentice_cost_usd_total", 'purpose="shadow"')
        assert booked == pytest.approx(shadow["cost_usd"])
        assert await metric(http, "apprentice_cost_usd_total", 'purpose="serve"') == pytest.approx(primary["cost_usd"])
        assert await metric(http, "apprentice_requests_total") == 1
        assert await metric(http, "apprentice_pairs_total", f'version="{V1}"', 'outcome="differed"') == 1


async def test_version_is_the_shadow_of_the_fallback_that_answered_in_its_place(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1] = general.answers["large"] = "approve it"
    async with watching(configure, make_adapter, task=HELD_OUT) as (running, http):
        primary = await record_of(http, await ask(http))
        [shadow] = await arms(running)
        assert (primary["reason"], primary["version"], shadow["version"]) == ("holdout", None, V1)
        pair = shadow["pair"]
        assert (pair["version"], pair["arm"], pair["score"], pair["served_score"]) == ("", "version", 1.0, 1.0)
        assert pair["digest"] == pair["served_digest"]
        assert pair["served_stack"] == primary["stack"] != shadow["stack"]


async def test_rejected_answer_is_the_versions_arm_and_is_not_requested_again(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1], general.answers["large"] = "well, approve", "approve"
    async with watching(configure, make_adapter, contract=True, task=CONTRACT_ENFORCED) as (running, http):
        asked = small.requests_total
        primary = await record_of(http, await ask(http))
        [shadow] = await arms(running)
        assert (primary["reason"], primary["version"]) == ("contract", None)
        assert (shadow["version"], shadow["attempts"], shadow["cost_usd"]) == (V1, [], 0.0)
        pair = shadow["pair"]
        assert (shadow["contract_kept"], pair["contract_kept"]) == (False, True)
        assert (pair["right"], pair["served_right"]) == (False, None)
        assert (pair["score"], pair["served_score"]) == (0.0, 0.0)
        assert small.requests_total == asked + 1


async def test_a_version_that_is_looked_into_has_its_previous_version_answer_too(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with watching(configure, make_adapter, versions=2) as (running, http):
        await ask(http)
        assert {one["version"] for one in await arms(running)} == {None}
        await watch(running, shadow_share=1.0, versions={V2: found("suspect")})
        answer = await ask(http)
        told = [one for one in await arms(running, 3) if one["shadow_of"] == answer.headers["x-request-id"]]
        assert {(one["version"], one["pair"]["arm"], one["pair"]["version"]) for one in told} == {
            (None, "general", V2),
            (V1, "version", V2),
        }


async def test_a_request_has_a_pair_with_general_and_one_with_a_version_on_trial(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with watching(configure, make_adapter, versions=2) as (running, http):
        await step(http, "shadow", version=V1, share=1.0)
        primary = await record_of(http, await ask(http))
        told = await until(lambda: as_many(shadows(running), 2))
        assert {(one["version"], one["pair"]["arm"]) for one in told} == {(None, "general"), (V1, None)}
        assert {(one["pair"]["version"], one["pair"]["caller"]) for one in told} == {(V2, primary["caller"])}


async def test_a_text_goes_to_no_pool_that_its_task_may_not_reach(
    configure: Configure, make_adapter: MakeAdapter, general: FakeEngine
) -> None:
    task = {"pools_allowed": ["small"], "fallback_pool": "small"}
    async with watching(configure, make_adapter, task=task) as (running, http):
        await ask(http)
        [shadow] = await arms(running)
        assert (shadow["version"], shadow["pool"]) == (None, "small")
        assert not [seen for seen in general.requests if "toaster" in str(seen.body)]


# ---- what it never does --------------------------------------------------------------------------


async def test_arms_that_hang_keep_no_caller_waiting_and_what_can_not_be_held_is_counted(
    configure: Configure, make_adapter: MakeAdapter, general: FakeEngine
) -> None:
    general.faults.add(Silent(), model="large")
    async with watching(configure, make_adapter) as (running, http):
        for _ in range(AT_ONCE_MAX):
            await ask(http)
        await general.until(lambda: general.in_flight == AT_ONCE_MAX)
        for _ in range(QUEUE_MAX):
            await ask(http)
        assert await metric(http, *DROPPED) == 0
        assert running.features[Shadows].draws.waiting == QUEUE_MAX
        waiting = (await http.get("/metrics")).text
        assert f"apprentice_shadow_queue_length {QUEUE_MAX}" in waiting
        assert f"apprentice_shadow_queue_max {QUEUE_MAX}" in waiting
        assert 'apprentice_shadow_share_ratio{task="returns"} 1' in waiting
        began = time.monotonic()
        for _ in range(7):
            assert (await ask(http)).json()["model"] == V1
        assert time.monotonic() - began < 30
        assert await metric(http, *DROPPED) == 7
        assert await shadows(running) == []


async def test_an_arm_is_not_asked_where_its_replica_has_no_room_beside_callers(
    configure: Configure, make_adapter: MakeAdapter, general: FakeEngine
) -> None:
    configuration = configure()
    pools = configuration["pools"]
    pools["general"]["replicas"][0]["in_flight_max"] = 2
    async with watching(configure, make_adapter, pools=pools) as (running, http):
        held = running.services.fleet.replicas["general-0"].lease(time.monotonic(), "large")
        await ask(http)

        async def dropped() -> bool:
            return await metric(http, *DROPPED) == 1

        await until(dropped)
        held.give_back(time.monotonic())
        await ask(http)
        assert len(await arms(running)) == 1


async def test_a_replica_that_holds_one_request_has_no_place_for_a_shadow_of_either_kind(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    pools = configure()["pools"]
    for name in ("small", "general"):
        pools[name]["replicas"][0]["in_flight_max"] = 1
    async with watching(configure, make_adapter, versions=2, pools=pools) as (running, http):
        await step(http, "shadow", version=V1, share=1.0)
        for number in range(3):
            await ask(http)

            async def dropped(count: int = 2 * (number + 1)) -> bool:
                return await metric(http, *DROPPED) == count

            await until(dropped)
        assert await shadows(running) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_a_tool_is_no_text_that_could_be_judged(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, stream: bool
) -> None:
    small.answers[V2] = "approve it"
    tools = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "refund"}}}
    async with watching(configure, make_adapter, versions=2, contract=True) as (running, http):
        await step(http, "shadow", version=V1, share=1.0)
        await ask(http, stream=stream, **tools)
        told = await until(lambda: as_many(shadows(running), 2))
        for one in told:
            assert (one["outcome"], one["text_digest"], one["agrees"], one["contract_kept"]) == ("ok", None, None, None)
        [pair] = [one["pair"] for one in told if one["pair"]["arm"] is not None]
        assert [pair[name] for name in ("digest", "right", "score", "served_score")] == [None] * 4
        assert await metric(http, "apprentice_pairs_total", 'outcome="passed_over"') == 1
        assert await metric(http, "apprentice_shadow_requests_total", 'outcome="differed"') == 2


async def test_an_arm_that_fails_leaves_its_pair_without_a_word(
    configure: Configure, make_adapter: MakeAdapter, general: FakeEngine
) -> None:
    general.faults.add(Status(500), model="large")
    async with watching(configure, make_adapter, contract=True) as (running, http):
        await ask(http)
        [shadow] = await arms(running)
        pair = shadow["pair"]
        assert (shadow["outcome"], pair["right"], pair["score"], pair["digest"]) == ("failed", None, None, None)
        assert (pair["served_right"], pair["served_score"]) == (None, None)
        assert await metric(http, "apprentice_pairs_total", 'outcome="failed"') == 1


async def test_an_answer_that_is_not_one_text_has_no_other_arm(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with watching(configure, make_adapter, task={"n_max": 2}) as (running, http):
        answer: httpx.Response = await ask(http, n=2)
        assert (await record_of(http, answer))["shadowed"] is True
        assert await metric(http, *DROPPED) == 1
        assert await shadows(running) == []
