"""Requests of several reviewers: unseen by each other, decided together, resolved, measured, and gold questions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from gateway.audit import change_objects
from gateway.features.quality.job import step_of
from gateway.features.quality.state import Quality
from gateway.features.reviews import agreement_job, label_endpoints
from gateway.features.reviews.agreement_job import keep_agreement, read_agreement
from gateway.features.reviews.budgets import settings_of
from gateway.features.reviews.gold import HELD, GoldQuestion
from gateway.features.reviews.state import Reviews
from gateway.request_labels import list_agreed_only
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import audit_of
from tests.walks.review_world import (
    NEXT,
    ask,
    counts,
    find_in_redis,
    monitor_elsewhere,
    reviewing,
    until_settled,
    watch,
)

__all__ = ["monitor_elsewhere"]
DISPUTED, GOLD = "/admin/v1/reviews/returns/disputed", "/admin/v1/reviews/returns/gold"


@pytest.fixture
async def several(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    """A gateway of which each review goes to two reviewers."""
    async with reviewing(configure, make_adapter, several_share=1.0) as gateway:
        yield gateway


async def given(http: httpx.AsyncClient, path: str = NEXT) -> str | None:
    answer = (await http.get(path)).json()
    return str(answer["review"]["request_id"]) if "review" in answer else None


async def say(http: httpx.AsyncClient, request_id: str, value: bool, **more: Any) -> None:
    body = {"request_id": request_id, "metric": "correct", "value": value, **more}
    answer = await http.post("/v1/feedback", json=body)
    assert answer.status_code == 201, answer.text


@pytest.mark.invariant("Reviewers of one request do not see each other's answers before all have answered.")
async def test_two_reviewers_judge_unseen_and_a_dispute_is_resolved(several: RunningGateway) -> None:
    keys = [await several.key(role="operator") for _ in range(3)]
    request_id = await ask(several)
    await until_settled(several, 1)
    async with (
        several.http(keys[0]) as one,
        several.http(keys[1]) as two,
        several.http(keys[2]) as third,
        several.http() as admin,
    ):
        assert await given(one) == request_id
        await say(one, request_id, False, demonstration="refuse", comment="It is opened.")
        assert await given(one) is None
        assert await given(two) == request_id
        seen = (await two.get(f"/v1/requests/{request_id}")).json()
        assert (seen["feedback"], seen["label"]["words"]) == ([], "1 of 2 reviewers has answered")
        assert (seen["label"]["right"], seen["label"]["wrong"]) == (0, 0)
        assert "opened" not in json.dumps(seen)
        assert len((await one.get(f"/v1/requests/{request_id}")).json()["feedback"]) == 1
        await say(two, request_id, True)
        assert await given(third) is None
        (dispute,) = (await third.get(DISPUTED)).json()["disputed"]
        assert dispute["label"]["words"] == "1 of 2 says wrong: unresolved"
        assert [(one["value"], one["demonstration"]) for one in dispute["answers"]] == [(False, "refuse"), (True, None)]
        assert dispute["review"]["messages"][0]["content"] == "Be brief."
        path = f"{DISPUTED}/{request_id}/resolve"
        assert (await admin.post(path, json={"value": "no", "comment": "x"})).status_code == 400
        decision = {"value": False, "comment": "Opened by jo@shop.example.", "demonstration": "refuse"}
        resolved = await admin.post(path, json=decision)
        assert resolved.json()["label"]["words"] == "resolved as wrong; 1 of 2 said wrong"
        assert resolved.json()["label"]["is_resolved"] is True
        assert await find_in_redis(several.services.redis, b"jo@shop.example") == []
        otherwise = await admin.post(path, json={"value": True, "comment": "A mistake."})
        assert otherwise.json()["label"]["words"] == "resolved as right; 1 of 2 said wrong"
        assert (await admin.post(path, json=decision)).json()["label"] == resolved.json()["label"]
        assert (await third.get(DISPUTED)).json()["count"] == 0
        told = (await one.get(f"/v1/requests/{request_id}")).json()["explanation"][-1]
        assert told == "Its label is wrong: resolved as wrong; 1 of 2 said wrong."
        entries = (await admin.get("/admin/v1/audit", params={"object": request_id})).json()["entries"]
    assert [entry["action"] for entry in entries] == ["review.give"] * 3 + ["review.resolve"] * 3
    assert "Opened goods" not in json.dumps(entries), "what quotes a text could not be erased from the audit"
    assert (await counts(several))["answered"] == 2


async def test_reviewers_of_two_keys_who_name_themselves_alike_are_two(several: RunningGateway) -> None:
    keys = [await several.key(role="operator") for _ in range(2)]
    request_id = await ask(several)
    await until_settled(several, 1)
    async with several.http(keys[0]) as one, several.http(keys[1]) as two:
        await say(one, request_id, False, rater="desk")
        sent = {"request_id": request_id, "metric": "correct", "value": False, "rater": "desk"}
        assert (await one.post("/v1/feedback", json=sent)).status_code == 200, "the same again"
        await say(two, request_id, False, rater="desk")
        assert (await one.get(f"/v1/requests/{request_id}")).json()["label"]["words"] == "2 of 2 say wrong"


async def test_low_agreement_is_measured_and_then_only_agreed_labels_count(several: RunningGateway) -> None:
    keys = [await several.key(role="operator") for _ in range(2)]
    ids = [await ask(several) for _ in range(22)]
    await until_settled(several, 22)
    async with several.http(keys[0]) as one, several.http(keys[1]) as two:
        for number, request_id in enumerate(ids):
            await say(one, request_id, number % 2 == 0, tags={"kind": "odd"})
            await say(two, request_id, number % 3 == 0)
        await keep_agreement(several.features[Reviews])
        told = (await one.get("/admin/v1/reviews/returns/agreement")).json()
        report = told["agreement"]["report"]
        assert (report["agreement"]["items"], report["agreed_only"]) == (22, True)
        assert report["agreement"]["alpha"] < 0.667
        assert {rater["rater"] for rater in report["raters"]} == {key.split("-")[2] for key in keys}
        why = (await one.get("/admin/v1/tasks/returns/quality")).json()["report"]["caveats"]
    assert any("only labels of two who agree count" in sentence for sentence in why)
    assert any("says wrong" in sentence for sentence in why)
    agreed_only = await list_agreed_only(several.services)
    step = step_of(several.features[Quality], several.services.snapshot.current, 0.0, agreed_only)
    assert step.tasks["returns"].plan.agreed_only


async def test_a_report_that_can_not_be_made_ends_no_job_and_is_made_later(
    several: RunningGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request_id = await ask(several)
    await until_settled(several, 1)
    for key in [await several.key(role="operator") for _ in range(2)]:
        async with several.http(key) as reviewer:
            await say(reviewer, request_id, True)
    monkeypatch.setattr(agreement_job, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    await keep_agreement(several.features[Reviews])
    assert "the agreement of returns is not measured" in caplog.text
    monkeypatch.undo()
    await keep_agreement(several.features[Reviews])
    assert await read_agreement(several.features[Reviews], "returns")


async def test_agreement_of_a_class_counts_requests_whose_class_their_caller_named(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    tasks = {"returns": {"monitor": {"class_tag": "kind", "reviews": {"per_week": 100, "several_share": 1.0}}}}
    async with run_gateway(configure(tasks=tasks)) as gateway:
        await gateway.place(make_adapter(1))
        await watch(gateway, 1.0)
        keys = [await gateway.key(), *[await gateway.key(role="operator") for _ in range(2)]]
        ids = [await ask(gateway, keys[0]) for _ in range(2)]
        await until_settled(gateway, 2)
        async with gateway.http(keys[0]) as caller, gateway.http(keys[1]) as one, gateway.http(keys[2]) as two:
            for request_id, kind in zip(ids, ("shoes", "toys"), strict=True):
                await say(one, request_id, True)
                await say(two, request_id, False, **({"tags": {"kind": "books"}} if kind == "toys" else {}))
                await say(caller, request_id, True, tags={"kind": kind})
            await keep_agreement(gateway.features[Reviews])
            agreement = (await one.get("/admin/v1/reviews/returns/agreement")).json()["agreement"]
        assert {each["class_name"] for each in agreement["report"]["classes"]} == {"shoes", "books"}


async def test_a_changed_answer_is_measured_again_and_leads_to_a_dispute(several: RunningGateway) -> None:
    keys = [await several.key(role="operator") for _ in range(2)]
    request_id = await ask(several)
    await until_settled(several, 1)
    async with several.http(keys[0]) as one, several.http(keys[1]) as two, several.http() as admin:
        await say(one, request_id, False)
        await say(two, request_id, False)
        await keep_agreement(several.features[Reviews])
        await say(two, request_id, True)
        await keep_agreement(several.features[Reviews])
        why = (await admin.get("/admin/v1/tasks/returns/quality")).json()["report"]["caveats"]
        disputed = (await admin.get(DISPUTED)).json()
    told = "1 review waits to be resolved: see them with `apprentice reviews disputed returns`."
    assert told in why
    assert [dispute["request_id"] for dispute in disputed["disputed"]] == [request_id]


async def test_what_low_agreement_leaves_unresolved_can_be_resolved(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_endpoints, "DISPUTED_TOLD_MAX", 2)
    async with reviewing(configure, make_adapter, several_share=1.0, reviewers=3) as gateway:
        keys = [await gateway.key(role="operator") for _ in range(3)]
        ids = [await ask(gateway) for _ in range(20)]
        await until_settled(gateway, 20)
        for at, key in enumerate(keys):
            async with gateway.http(key) as http:
                for number, request_id in enumerate(ids):
                    await say(http, request_id, number % 3 == at)
        async with gateway.http() as admin:
            assert (await admin.get(DISPUTED)).json()["count"] == 0, "two of three say wrong"
            for _ in range(2):  # the first finds that single labels should not count, the second what that leaves
                await keep_agreement(gateway.features[Reviews])
            why = (await admin.get("/admin/v1/tasks/returns/quality")).json()["report"]["caveats"]
            assert (await admin.delete(f"/admin/v1/reviews/returns?request_id={ids[-1]}")).status_code == 200
            told = (await admin.get(DISPUTED)).json()
            listed = [(one["request_id"], one["review"] is None) for one in told["disputed"]]
            assert (told["count"], listed) == (20, [(ids[-1], True), (ids[-2], False)]), "the newest first"
            entries = [entry for entry in await audit_of(admin, "review.give") if entry["evidence"].get("disputed")]
            assert [entry["object"] for entry in entries] == [ids[-2]], "of the other no text was given"
            assert any(sentence.startswith("20 reviews wait to be resolved") for sentence in why)
            path = f"{DISPUTED}/{ids[0]}/resolve"
            assert (await admin.post(path, json={"value": False, "comment": "Opened goods."})).status_code == 200


async def test_texts_of_a_dissent_stay_for_who_resolves_it_once_agreement_is_low(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, several_share=1.0, reviewers=3) as gateway:
        keys = [await gateway.key(role="operator") for _ in range(3)]
        ids = [await ask(gateway) for _ in range(20)]
        await until_settled(gateway, 20)
        for at, key in enumerate(keys):
            async with gateway.http(key) as http:
                for number, request_id in enumerate(ids):
                    await say(http, request_id, number == 0 or number % 3 != at)
        async with gateway.http() as admin:
            for _ in range(2):
                await keep_agreement(gateway.features[Reviews])
            told = (await admin.get(DISPUTED)).json()
        assert told["count"] == 19, "two of three say right, where only agreed labels count"
        assert all(one["review"] is not None for one in told["disputed"])
        assert await gateway.features[Reviews].store.kept_on(ids[0]) is None, "all say right"


async def test_gold_answers_score_their_reviewer_and_are_no_feedback(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, gold_share=1.0) as gateway:
        key = await gateway.key(role="operator")
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin, gateway.http(key) as reviewer:
            added = await admin.post(GOLD, json={"request_id": known, "value": False, "comment": "Opened goods."})
            assert added.status_code == 201, added.text
            assert (await reviewer.get(GOLD)).status_code == 403
            assert await given(reviewer) == known
            assert await given(reviewer) == known
            await say(reviewer, known, True)
            scores = (await admin.get(GOLD)).json()["scores"]
            assert scores == [{"rater": key.split("-")[2], "answered": 1, "right": 0}]
            assert (await admin.get(f"/v1/requests/{known}")).json()["feedback"] == []
            assert await given(reviewer) == known, "it still waits as a review"
            await say(reviewer, known, False)
            assert len((await admin.get(f"/v1/requests/{known}")).json()["feedback"]) == 1
            assert await gateway.features[Reviews].gold.forget([known]) == 1
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            assert (await admin.delete(f"{GOLD}/{known}")).status_code == 200
            assert (await admin.get(GOLD)).json()["questions"] == []
            assert (await admin.delete(f"{GOLD}/{known}")).status_code == 404


async def test_a_text_that_is_erased_while_it_becomes_a_gold_question_is_not_kept(
    several: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, reviews = await ask(several), several.features[Reviews]
    await until_settled(several, 1)

    async def change_late(*given: Any, **more: Any) -> None:
        await reviews.store.delete("returns", known, several.services.begin_step("ada"))
        await reviews.gold.forget([known])
        await change_objects(*given, **more)

    monkeypatch.setattr(label_endpoints, "change_objects", change_late)
    async with several.http() as admin:
        added = await admin.post(GOLD, json={"request_id": known, "value": False})
        assert (added.status_code, added.json()["error"]["code"]) == (404, "no_review")
    assert await reviews.gold.list_questions("returns") == []


async def test_the_lease_of_a_gold_question_looks_like_that_of_a_review(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reviewing(configure, make_adapter, gold_share=1.0) as gateway:
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin, gateway.http(await gateway.key(role="operator")) as reviewer:
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            own = time.time
            monkeypatch.setattr(time, "time", lambda: own() + 86_400.0)  # one gateway's clock is no other's
            gold = (await reviewer.get(NEXT)).json()["leased_until"]
            await say(reviewer, known, True)
            until = (await reviewer.get(NEXT)).json()["leased_until"]
        assert gold == pytest.approx(until, abs=60)
        assert all(at == round(at, 3) for at in (gold, until)), "by its digits none is told from the other"


async def test_a_gold_question_is_not_given_to_who_has_judged_it_as_a_review(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, gold_share=1.0) as gateway:
        keys = [await gateway.key(role="reviewer", models=["returns"]) for _ in range(2)]
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin, gateway.http(keys[0]) as first, gateway.http(keys[1]) as second:
            assert await given(first) == known
            await say(first, known, False)
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            assert await given(first) is None
            assert await given(second) == known


async def test_a_gold_answer_that_comes_twice_is_scored_once_and_never_feedback(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, gold_share=1.0) as gateway:
        key, other = await gateway.key(role="operator"), await gateway.key(role="operator")
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin, gateway.http(key) as reviewer, gateway.http(other) as another:
            await say(another, known, False)
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            assert await given(reviewer) == known
            await say(reviewer, known, True)
            sent = {"request_id": known, "metric": "correct", "value": True}
            assert (await reviewer.post("/v1/feedback", json=sent)).status_code == 200, "its answer was lost"
            (score,) = (await admin.get(GOLD)).json()["scores"]
            assert score["answered"] == 1
            told = (await admin.get(f"/v1/requests/{known}")).json()
            assert (len(told["feedback"]), told["label"]["words"]) == (1, "1 of 1 says wrong")


@pytest.mark.parametrize("how", ["skipped", "removed", "other_metric"])
async def test_feedback_that_answers_no_gold_question_is_kept(
    how: str, configure: Configure, make_adapter: MakeAdapter
) -> None:
    metrics = {"correct": {"kind": "boolean"}, "polite": {"kind": "boolean"}}
    configured = partial(configure, feedback_metrics=metrics)
    async with reviewing(configured, make_adapter, gold_share=1.0) as gateway:
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin, gateway.http(await gateway.key(role="operator")) as reviewer:
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            assert await given(reviewer) == known
            if how == "skipped":
                assert (await reviewer.post(f"/v1/reviews/{known}/skip", json={"reason": "x"})).status_code == 200
            if how == "removed":
                assert (await admin.delete(f"{GOLD}/{known}")).status_code == 200
            await say(reviewer, known, True)
            if how == "other_metric":
                await say(reviewer, known, True, metric="polite")
            (feedback,) = (await admin.get(f"/v1/requests/{known}")).json()["feedback"]
            assert feedback["metric"] == ("polite" if how == "other_metric" else "correct")
            assert len((await admin.get(GOLD)).json()["scores"]) == (1 if how == "other_metric" else 0)


async def test_a_gold_answer_after_the_lease_is_scored_once_and_no_feedback(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with reviewing(configure, make_adapter, gold_share=1.0) as gateway:
        known = await ask(gateway)
        await until_settled(gateway, 1)
        key = await gateway.key(role="operator")
        async with gateway.http() as admin, gateway.http(key) as reviewer:
            assert (await admin.post(GOLD, json={"request_id": known, "value": False})).status_code == 201
            assert await given(reviewer) == known
            assert await redis.delete(f"{HELD}{key.split('-')[2]}") == 1, "as when its lease is over"
            sent = {"request_id": known, "metric": "correct", "value": True}
            answers = [(await reviewer.post("/v1/feedback", json=sent)).status_code for _ in range(2)]
            (score,) = (await admin.get(GOLD)).json()["scores"]
            assert (answers, score["answered"], score["right"]) == ([201, 200], 1, 0)
            assert (await admin.get(f"/v1/requests/{known}")).json()["feedback"] == []


@pytest.mark.parametrize("shares", [{}, {"gold_share": 0.0}])
async def test_gold_questions_are_given_unless_their_share_is_zero_which_is_told(
    configure: Configure, make_adapter: MakeAdapter, shares: dict[str, float]
) -> None:
    async with reviewing(configure, make_adapter, **shares) as gateway:
        known = await ask(gateway)
        await until_settled(gateway, 1)
        async with gateway.http() as admin:
            added = (await admin.post(GOLD, json={"request_id": known, "value": False})).json()
        reviews, never = gateway.features[Reviews], bool(shares)
        share = settings_of(reviews, "returns").gold_share
        drawn = [
            await reviews.gold.draw("returns", f"reviewer{at}", None, share, 60.0) for at in range(0 if never else 600)
        ]
        assert any(drawn) is not never
        told = "It is given to nobody: tasks.returns.monitor.reviews.gold_share is 0."
        assert added["warnings"] == ([told] if never else [])


async def test_gold_questions_of_many_tasks_are_no_greater_share_of_reviews(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    names = [f"task-{number}" for number in range(12)]
    tasks = {name: {"monitor": {"reviews": {"per_week": 100, "gold_share": 0.05}}} for name in ("returns", *names)}
    async with run_gateway(configure(tasks=tasks)) as gateway:
        await gateway.place(make_adapter(1))
        await watch(gateway, 1.0)
        known, reviews = await ask(gateway), gateway.features[Reviews]
        await until_settled(gateway, 1)
        review = await reviews.store.find_texts(known)
        assert review is not None
        for name in names:
            of_task = msgspec.structs.replace(review, task=name, request_id=f"{known}-{name}")
            question = GoldQuestion(review=of_task, value=True, by="admin", at=0.0)
            await reviews.gold.questions.put(name, reviews.gold.change(question, name).value or {})
        await reviews.store.delete("returns", known, gateway.services.begin_step("ada"))
        key, questions = await gateway.key(role="operator"), 0
        async with gateway.http(key) as reviewer:
            for _ in range(200):
                questions += await given(reviewer, "/v1/reviews/next") is not None
                await gateway.services.redis.delete(HELD + key.split("-")[2])
    assert questions < 50, "of 200, at a share of 5%"


async def test_a_rater_file_is_reported_on_and_its_faults_are_told_with_their_lines(several: RunningGateway) -> None:
    async with several.http() as http:
        answer = await http.post("/admin/v1/ratings", json={"text": "item,A,B\n1,x,x\n2,x,\n3,x,y\n4,y,y\n"})
        bad = await http.post("/admin/v1/ratings", json={"text": "item,rater,label\n1,a,x\n,b,x\n"})
    report = answer.json()
    assert (report["items"], report["agreement"]["items"]) == (4, 3)
    assert report["votes"]["recommended"] == "majority"
    assert bad.json()["error"]["message"] == "Line 3: item is empty."
