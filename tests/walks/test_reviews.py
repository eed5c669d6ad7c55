"""The queue of reviews: what is drawn waits with its texts, is judged once, and is gone."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from gateway.features.reviews.state import Reviews
from monitoring.feedback import STREAM_KEY, Feedback
from tests.fakes.engine import FakeEngine
from tests.gateway.features.reviews.test_store import review
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.review_world import (
    ASK,
    LIST,
    NEXT,
    ask,
    counts,
    monitor_elsewhere,
    outcomes,
    reviewing,
    tasks,
    until_settled,
    watch,
)

__all__ = ["monitor_elsewhere"]

TOOL = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object", "properties": {}}}}


async def test_drawn_request_waits_with_its_texts_and_only_the_public_part_of_its_caller(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        small.answers["returns@v1"] = "Yes, refund it."
        key = await gateway.key(name="the web shop")
        request_id = await ask(gateway, key)
        await until_settled(gateway, 1)
        async with gateway.http() as http:
            told = (await http.get(NEXT)).json()
            record = (await http.get(f"/v1/requests/{request_id}")).json()["record"]
        review = told["review"]
        assert (review["request_id"], review["task"], review["version"]) == (request_id, "returns", "returns@v1")
        assert (review["pool"], review["reason"], review["probability"]) == ("small", "adapter", 1.0)
        assert (review["messages"], review["answer"]) == (ASK["messages"], "Yes, refund it.")
        assert review["caller"] == key.split("-")[2]
        assert (record["reviewed"], record["review_probability"]) == (True, 1.0)
        assert told["leased_until"] == pytest.approx(time.time() + 600, abs=60)
        assert (told["say"]["metric"], told["say"]["kind"]) == ("correct", "boolean")
        raw = await gateway.services.redis.get(f"apprentice:review:{request_id}")
        assert b"web shop" not in raw
        assert key.encode() not in raw
        assert outcomes(gateway) == {"drawn": 1, "given": 1}


@pytest.mark.invariant("No text of a review is kept once it was judged right.")
async def test_an_answered_review_is_marked_as_one_paid_for_and_its_texts_are_gone(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, usd_each=0.5) as gateway:
        request_id = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as http:
            right, wrong = (await http.get(NEXT)).json()["examples"]
            assert (right["value"], wrong["value"]) == (True, False)
            assert (await http.post("/v1/feedback", json=right)).status_code == 201
            assert (await http.post("/v1/feedback", json=right)).status_code == 200
            none = await http.get(NEXT)
            metrics = (await http.get("/metrics")).text
        ((_, entry),) = await gateway.services.redis.xrange(STREAM_KEY)
        assert msgspec.json.decode(entry[b"feedback"], type=Feedback).reviewed
        assert (none.status_code, none.json()["error"]["code"]) == (404, "no_review")
        assert not [key async for key in gateway.services.redis.scan_iter(f"apprentice:review*:{request_id}")]
        assert outcomes(gateway) == {"drawn": 1, "given": 1, "answered": 1}
        assert 'apprentice_review_cost_usd_total{task="returns"} 0.5' in metrics
        told = await counts(gateway)
        assert (told["waiting"], told["leased"], told["answered"], told["left"]) == (0, 0, 1, 99)


async def test_what_is_judged_wrong_keeps_its_texts_for_who_retrains_the_version(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        request_id = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as http:
            wrong = (await http.get(NEXT)).json()["examples"][1]
            assert (await http.post("/v1/feedback", json=wrong)).status_code == 201
        kept = await gateway.features[Reviews].store.kept_on(request_id)
        assert kept is not None
        assert kept.messages == ASK["messages"]
        assert 0 < await gateway.services.redis.ttl(f"apprentice:reviewed:{request_id}") <= 14 * 86_400
        assert await gateway.features[Reviews].store.task_of(request_id) is None


async def test_a_reviewer_who_thinks_better_of_it_has_still_reviewed_it(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, usd_each=0.5) as gateway:
        key = await gateway.key()
        request_id = await ask(gateway, key)
        await until_settled(gateway, 1)
        waits = await gateway.services.redis.ttl(f"apprentice:review:{request_id}")
        assert 0 < waits <= gateway.services.settings.records.retention_seconds  # it can't be judged later
        async with gateway.http() as http, gateway.http(key) as of_caller:
            right, wrong = (await http.get(NEXT)).json()["examples"]
            for giver, said in ((http, wrong), (http, right), (of_caller, wrong)):
                assert (await giver.post("/v1/feedback", json=said)).status_code == 201
        entries = await gateway.services.redis.xrange(STREAM_KEY)
        said = [msgspec.json.decode(entry[b"feedback"], type=Feedback) for _, entry in entries]
        assert [(one.value, one.reviewed) for one in said] == [(False, True), (True, True), (False, False)]
        assert (await counts(gateway))["answered"] == 1
        left = await gateway.services.redis.ttl(f"apprentice:answered:{request_id}")
        assert 0 < left <= gateway.services.settings.records.retention_seconds


async def test_feedback_of_callers_on_other_metrics_and_on_what_was_not_drawn_is_no_review(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    metrics = {"correct": {"kind": "boolean"}, "polite": {"kind": "boolean"}}
    async with run_gateway(configure(tasks=tasks(), feedback_metrics=metrics)) as gateway:
        await gateway.place(make_adapter(1))
        unseen = await ask(gateway)
        await watch(gateway, 1.0)
        key = await gateway.key()
        drawn = await ask(gateway, key)
        await until_settled(gateway, 1)
        async with gateway.http() as http, gateway.http(key) as of_caller:
            for judging, request_id, metric in (
                (of_caller, drawn, "correct"),
                (http, drawn, "polite"),
                (http, unseen, "correct"),
            ):
                body = {"request_id": request_id, "metric": metric, "value": False}
                assert (await judging.post("/v1/feedback", json=body)).status_code == 201
        entries = await gateway.services.redis.xrange(STREAM_KEY)
        assert not [1 for _, entry in entries if msgspec.json.decode(entry[b"feedback"], type=Feedback).reviewed]
        assert (await counts(gateway))["waiting"] == 1


async def test_a_lease_is_one_reviewers_until_its_time_is_over_and_the_oldest_goes_first(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, lease_seconds=60) as gateway:
        now = time.time()
        gateway.features[Reviews].store.now = lambda: now
        first = await ask(gateway)
        await until_settled(gateway, 1)
        now += 1
        second = await ask(gateway)
        await until_settled(gateway, 2)
        async with gateway.http() as one, gateway.http(await gateway.key(role="operator")) as two:

            async def given(http: Any) -> str | None:
                answer = (await http.get(NEXT)).json()
                return str(answer["review"]["request_id"]) if "review" in answer else None

            assert [await given(http) for http in (one, two, one, two)] == [first, second, first, second]
            now += 59
            assert await given(one) == first, "asking again renews it"
            now += 59
            assert await given(two) == second, "its lease was over, and nobody had taken it"
            now += 2
            await gateway.features[Reviews].store.answer("returns", second, keep_on=False, retention_seconds=60)
            assert await given(two) == first, "the time of the other lease was over"
            assert await given(one) is None
            assert outcomes(gateway)["given"] == 3
            told = (await one.get(NEXT)).json()["error"]["message"]
            assert told == "Of returns 1 reviews are leased to others, and 0 you have skipped or answered."


async def test_who_has_a_review_of_one_task_gets_no_older_one_of_another(configure: Configure) -> None:
    async with run_gateway(configure(tasks=tasks() | {"spare": {"fallback_pool": "general"}})) as gateway:
        for number, task in ((1, "spare"), (2, "returns")):
            kept = await gateway.features[Reviews].store.keep(review(number, task), 10, 86_400.0)
            assert kept.outcome == "kept"
        async with gateway.http() as one, gateway.http(await gateway.key(role="operator")) as two:
            assert (await two.get("/v1/reviews/next")).json()["review"]["request_id"] == "r1"
            assert (await one.get("/v1/reviews/next")).json()["review"]["request_id"] == "r2"
            assert (await two.post("/v1/reviews/r1/skip", json={"reason": "not mine"})).status_code == 200
            assert (await one.get("/v1/reviews/next")).json()["review"]["request_id"] == "r2"


async def test_who_skips_a_review_gives_its_lease_back_and_does_not_get_it_again(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        request_id = await ask(gateway)
        await until_settled(gateway, 1)
        path = f"/v1/reviews/{request_id}/skip"
        async with gateway.http() as one, gateway.http(await gateway.key(role="operator")) as two:
            early = await one.post(path, json={"reason": "not mine"})
            assert (early.status_code, early.json()["error"]["code"]) == (409, "state_conflict")
            await one.get(NEXT)
            skipped = await one.post(path, json={"reason": "in Danish"})
            assert skipped.json() == {"request_id": request_id, "task": "returns", "skipped": True}
            mine, others = await one.get(NEXT), await two.get(NEXT)
            assert (await two.post(path, json={"reason": "  "})).json()["error"]["param"] == "reason"
            gone = await one.post("/v1/reviews/nothing/skip", json={"reason": "x"})
        assert (
            mine.json()["error"]["message"]
            == "Of returns 0 reviews are leased to others, and 1 you have skipped or answered."
        )
        assert others.json()["review"]["request_id"] == request_id
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "no_review")
        told = await counts(gateway)
        assert (told["skipped"], told["waiting"], told["leased"]) == (1, 1, 1)
        assert [(one["reason"], one["by"]) for one in told["skips"]] == [("in Danish", gateway.admin_key.split("-")[2])]
        assert outcomes(gateway)["skipped"] == 1


async def test_streams_tool_calls_alternatives_and_prompts_are_shown_as_they_were_said(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        small.answers["returns@v1"] = "Yes, refund it."
        choice = {"type": "function", "function": {"name": "refund"}}

        async def shown(path: str = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
            async with gateway.http() as http:
                body = {**(ASK if "chat" in path else {"model": "returns", "prompt": "A toaster"}), **more}
                answer = await http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                await until_settled(gateway, int(outcomes(gateway).get("drawn", 0)) or 1)
                review = (await http.get(NEXT)).json()["review"]
                body = {"request_id": review["request_id"], "metric": "correct", "value": True}
                assert (await http.post("/v1/feedback", json=body)).status_code == 201
            return dict(review)

        assert (await shown(stream=True))["answer"] == "Yes, refund it."
        assert (await shown(n=2))["answer"] == "[1] Yes, refund it.\n\n[2] Yes, refund it."
        completed = await shown("/v1/completions", stream=True)
        assert (completed["prompt"], completed["messages"], completed["answer"]) == ("A toaster", [], "Yes, refund it.")
        del small.answers["returns@v1"]
        for stream in (False, True):
            review = await shown(tools=[TOOL], tool_choice=choice, stream=stream)
            (call,) = review["tool_calls"]
            assert (review["answer"], call["name"], review["tools"]) == ("", "refund", [TOOL])
            assert json.loads(call["arguments"]) is not None


async def test_texts_that_are_too_long_are_cut_and_that_is_said(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        small.max_model_len = 1 << 20
        small.answers["returns@v1"] = "é" * 50_000
        long = [{"role": "user", "content": "x" * 50_000}, {"role": "assistant", "content": "y"}]
        await ask(gateway, messages=[*long, {"role": "user", "content": "z" * 30_000}])
        await until_settled(gateway, 1)
        async with gateway.http() as http:
            review = (await http.get(NEXT)).json()["review"]
        assert [len(message["content"]) for message in review["messages"]] == [1, 30_000]
        assert len(review["answer"].encode()) <= 65_536
        assert review["answer"].endswith("é […]")
        assert review["cut"] == [
            "The first 1 of 3 messages are left out: they are too long.",
            "The answer is cut: it is longer than 65,536 bytes.",
        ]


async def test_a_message_that_is_nested_deeply_is_shown_like_others(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        deep = '{"role": "user", "content": "A toaster", "name": ' + "[" * 400 + "]" * 400 + "}"
        async with gateway.http() as http:
            body = f'{{"model": "returns", "messages": [{deep}]}}'
            asked = await http.post("/v1/chat/completions", content=body)
            assert asked.status_code == 200, asked.text
            await until_settled(gateway, 1)
            told = await http.get(NEXT)
        assert told.status_code == 200
        assert told.json()["review"]["messages"] == [json.loads(deep)]


async def test_a_caller_without_the_role_sees_and_moves_no_review(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        request_id = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http(await gateway.key()) as http:
            answers = [
                await http.get(NEXT),
                await http.get(LIST),
                await http.post(f"/v1/reviews/{request_id}/skip", json={"reason": "x"}),
            ]
        assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(403, "role_required")] * 3
        assert (await counts(gateway))["leased"] == 0


async def test_a_reviewers_key_judges_what_is_drawn_and_does_nothing_else(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        await watch(gateway, 0.0)
        not_drawn = await ask(gateway)
        await watch(gateway, 1.0)
        drawn = await ask(gateway)
        await until_settled(gateway, 1)
        keys = [await gateway.key(role="reviewer", models=models) for models in (["*"], ["clauses"], ["returns"])]
        http_of = [gateway.http(key) for key in keys]
        async with http_of[0] as http, http_of[1] as other, http_of[2] as without_lease:
            told = (await http.get(NEXT)).json()
            review = told["review"]
            assert (review["request_id"], review["answer"] != "", review["messages"]) == (drawn, True, ASK["messages"])
            assert [review[name] for name in ("version", "pool", "reason", "caller")] == [None] * 4
            body = {"metric": "correct", "value": False}
            refused = [
                await http.post("/v1/chat/completions", json=ASK),
                await http.get(f"/v1/requests/{drawn}"),
                await http.get("/v1/models"),
                await http.get("/admin/v1/callers"),
                await http.get("/admin/v1/reviews/returns/disputed"),
                await other.get(NEXT, params={"task": "returns"}),
            ]
            assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(403, "role_required")] * 6
            for judging, request_id in ((http, not_drawn), (other, drawn), (without_lease, drawn)):
                answer = await judging.post("/v1/feedback", json={**body, "request_id": request_id})
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_review")
            assert (await other.get("/admin/v1/reviews")).json()["reviews"] == []
            assert (await http.post("/v1/feedback", json={**body, "request_id": drawn})).status_code == 201
            assert (await http.get(LIST)).json()["reviews"][0]["answered"] == 1
