"""The texts of reviews: who was given which is in the audit, and they are deleted, sealed and redacted."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.records.archiving import archive_once
from gateway.features.reviews.state import Reviews
from gateway.features.texts.sealing_job import seal_again
from gateway.features.texts.state import Texts
from monitoring.audit import STREAM
from monitoring.feedback import REDIS_SEALED_KEY, Feedback, SealingLook
from monitoring.texts import SEALED_SECONDS
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.review_world import (
    LIST,
    NEXT,
    WAIT_SECONDS,
    ask,
    counts,
    find_in_redis,
    monitor_elsewhere,
    outcomes,
    reviewing,
    tasks,
    until_settled,
    watch,
)

__all__ = ["monitor_elsewhere"]


async def entries(gateway: RunningGateway, action: str) -> list[dict[str, Any]]:
    async with gateway.http() as http:
        return list((await http.get("/admin/v1/audit", params={"action": action})).json()["entries"])


async def test_the_audit_has_who_was_given_which_text_once_each(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        request_id = await ask(gateway)
        await until_settled(gateway, 1)
        keys = [await gateway.key(name=name, role="operator") for name in ("anna", "ben")]
        for key in keys:
            async with gateway.http(key) as http:
                for _ in range(3):
                    assert (await http.get(NEXT)).status_code == 200
                skipped = await http.post(f"/v1/reviews/{request_id}/skip", json={"reason": "in Danish"})
                assert skipped.status_code == 200
        told = await entries(gateway, "review.give")
        assert [(one["actor"], one["object"]) for one in told] == [(key.split("-")[2], request_id) for key in keys]
        assert "toaster" not in json.dumps(told)


@pytest.mark.invariant("Nobody is given a text that the audit could not note.")
async def test_a_text_that_the_audit_could_not_note_is_not_given(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        await ask(gateway)
        await until_settled(gateway, 1)
        stream = await redis.dump(STREAM)
        await redis.delete(STREAM)
        await redis.set(STREAM, "damaged")
        async with gateway.http() as http:
            refused = await http.get(NEXT)
            assert refused.status_code >= 500
            assert "toaster" not in refused.text
            await redis.restore(STREAM, 0, stream, replace=True)
            assert "toaster" in (await http.get(NEXT)).text
        assert len(await entries(gateway, "review.give")) == 1


async def test_an_admin_deletes_texts_and_the_audit_says_how_many(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        ids = [await ask(gateway) for _ in range(3)]
        await until_settled(gateway, 3)
        operator = await gateway.key(role="operator")
        async with gateway.http() as http, gateway.http(operator) as other:
            given = (await http.get(NEXT)).json()
            assert (await http.post("/v1/feedback", json=given["examples"][1])).status_code == 201
            path = "/admin/v1/reviews/returns"
            assert (await other.delete(path)).status_code == 403
            one = await http.delete(path, params={"request_id": ids[1]})
            assert (one.status_code, one.json()["waiting"], one.json()["answered"]) == (200, 1, 0)
            assert (await http.delete(path, params={"request_id": ids[1]})).status_code == 404
            rest = await http.delete(path)
            assert (rest.json()["waiting"], rest.json()["answered"]) == (1, 1)
            assert (await http.delete(path)).json()["waiting"] == 0
            assert (await http.delete("/admin/v1/reviews/nothing")).status_code == 404
            assert (await http.get(NEXT)).status_code == 404
            late = await http.post("/v1/feedback", json={**given["examples"][0], "request_id": ids[2]})
            assert late.status_code == 201
        assert not [key async for key in gateway.services.redis.scan_iter("apprentice:review*:*-*-*")]
        told = await entries(gateway, "review.delete")
        assert [(one["object"], one["before"]["request_id"]) for one in told] == [
            ("returns", ids[1]), ("returns", None), ("returns", None)
        ]  # fmt: skip
        assert outcomes(gateway) == {"drawn": 3, "given": 1, "answered": 1, "dropped": 2}
        line = await counts(gateway)
        assert (line["waiting"], line["drawn"], line["left"]) == (0, 3, 97)


async def test_texts_of_a_task_that_is_configured_no_more_can_be_deleted(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        await ask(gateway)
        await until_settled(gateway, 1)
    async with run_gateway(configure(tasks={"clauses": {}})) as gateway, gateway.http() as http:
        assert (await http.delete("/admin/v1/reviews/returns")).json()["waiting"] == 1
        assert (await http.delete("/admin/v1/reviews/returns")).status_code == 404


async def test_with_a_key_no_word_of_a_review_is_in_redis_from_its_draw_to_its_end(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    keys = {number: base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)}
    asked = [{"role": "user", "content": "A broken samovar."}]
    config = configure(tasks=tasks(gold_share=0.0), texts={"keys": {"k1": keys[1]}, "key": "k1"})
    async with run_gateway(config) as gateway:
        await gateway.place(make_adapter(1))
        await watch(gateway, 1.0)
        small.answers["returns@v1"] = "Yes, refund the samovar."  # after its placing: probes keep their answer
        first, second = await ask(gateway, messages=asked), await ask(gateway, messages=asked)
        await until_settled(gateway, 2)
        async with gateway.http() as http:
            told = (await http.get(NEXT)).json()
            assert (told["review"]["messages"], told["review"]["answer"]) == (asked, "Yes, refund the samovar.")
            gold = {"request_id": second, "value": False, "comment": "a samovar"}
            assert (await http.post("/admin/v1/reviews/returns/gold", json=gold)).status_code == 201
            said = told["examples"][1] | {"comment": "a samovar"}
            assert (await http.post("/v1/feedback", json=said)).status_code == 201
            assert (await http.get(NEXT)).json()["review"]["request_id"] == second
            skipped = await http.post(f"/v1/reviews/{second}/skip", json={"reason": "a samovar"})
            assert skipped.status_code == 200
        assert await find_in_redis(gateway.services.redis, b"samovar") == []
        held = await find_in_redis(gateway.services.redis, b'"key":"k1"')
    texts = ["apprentice:gold", f"apprentice:review:{second}", f"apprentice:reviewed:{first}"]
    feedback = ["apprentice:feedback", f"apprentice:feedback:{first}"]
    assert held == [*feedback, *texts, "apprentice:reviews:returns:skips"]
    config["texts"] = {"keys": {"k1": keys[1], "k2": keys[2]}, "key": "k2"}
    async with run_gateway(config) as gateway, asyncio.timeout(WAIT_SECONDS):
        while await find_in_redis(gateway.services.redis, b'"key":"k1"') not in ([], ["apprentice:feedback"]):
            await asyncio.sleep(0.05)
        await archive_once(gateway.services.settings, gateway.services.meters)
        assert await find_in_redis(gateway.services.redis, b'"key":"k1"') == []
    config["texts"] = {"keys": {"k2": keys[2]}, "key": "k2"}
    async with run_gateway(config) as gateway, gateway.http() as http:
        (question,) = (await http.get("/admin/v1/reviews/returns/gold")).json()["questions"]
        assert (question["review"]["messages"], question["comment"]) == (asked, "a samovar")
        (line,) = (await http.get(LIST)).json()["reviews"]
        assert [skip["reason"] for skip in line["skips"]] == ["a samovar"]
        (given,) = (await http.get(f"/v1/requests/{first}")).json()["feedback"]
        assert given["comment"] == "a samovar"
        found = await gateway.features[Reviews].store.find_texts(second)
        assert found is not None
        assert found.messages == asked
        kept_on = await gateway.features[Reviews].store.kept_on(first)
        assert kept_on is not None
        assert kept_on.messages == asked


async def test_what_can_not_be_read_does_not_have_all_be_looked_through_again(configure: Configure) -> None:
    key = base64.b64encode(bytes(32)).decode()
    async with run_gateway(configure(texts={"keys": {"k1": key}, "key": "k1"})) as gateway:
        redis = gateway.services.redis
        await until(lambda: redis.exists(REDIS_SEALED_KEY), "the first look of the gateway's own job")
        lost = Feedback(
            feedback_id="f", metric="correct", value=True, at=time.time(), caller="c", key="lost", sealed=""
        )
        await redis.hset("apprentice:feedback:r1", "c\tf", b"\n\n" + msgspec.json.encode(lost))
        await redis.delete(REDIS_SEALED_KEY)
        words, looks = gateway.services.configuration.words, list[bytes]()
        for _ in range(2):
            await seal_again(gateway.features[Texts])
            looks.append(await redis.get(REDIS_SEALED_KEY))
        look = msgspec.json.decode(looks[0], type=SealingLook)
        assert (looks[0], look.mark, look.frees_keys()) == (looks[1], words.mark, False)
        day_ago = SealingLook(words.mark, look.at - SEALED_SECONDS, look.since - SEALED_SECONDS)
        await redis.set(REDIS_SEALED_KEY, msgspec.json.encode(day_ago))
        await seal_again(gateway.features[Texts])
        look = msgspec.json.decode(await redis.get(REDIS_SEALED_KEY), type=SealingLook)
        assert (look.frees_keys(), look.since) == (True, day_ago.since)


@pytest.mark.parametrize("redaction", ["mask", "none"])
async def test_reviews_and_reviewers_words_are_redacted_before_they_are_stored(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redaction: str
) -> None:
    mail, of_task = "jo@shop.example", tasks(gold_share=0.0)
    seen = "[email]" if redaction == "mask" else mail
    of_task["returns"]["texts"] = {"redaction": redaction}
    async with run_gateway(configure(tasks=of_task)) as gateway:
        await gateway.place(make_adapter(1))
        await watch(gateway, 1.0)
        small.answers["returns@v1"] = f"I mail {mail}."  # after its placing: probes keep their answer
        request_id = await ask(gateway, messages=[{"role": "user", "content": f"Ask {mail}, please."}])
        await until_settled(gateway, 1)
        async with gateway.http() as http:
            told = (await http.get(NEXT)).json()
            assert told["review"]["messages"] == [{"role": "user", "content": f"Ask {seen}, please."}]
            assert told["review"]["answer"] == f"I mail {seen}."
            skip, question = {"reason": f"{mail} is a friend"}, {"request_id": request_id, "value": False}
            gold = question | {"comment": f"{mail} again"}
            added = await http.post("/admin/v1/reviews/returns/gold", json=gold)
            assert (added.status_code, added.json()["comment"]) == (201, f"{seen} again")
            assert (await http.post(f"/v1/reviews/{request_id}/skip", json=skip)).status_code == 200
            (line,) = (await http.get(LIST)).json()["reviews"]
            assert line["skips"][0]["reason"] == f"{seen} is a friend"
            words = {"comment": f"{mail} is the buyer.", "demonstration": {"to": mail}}
            wrong = told["examples"][1] | words
            assert [(await http.post("/v1/feedback", json=wrong)).status_code for _ in range(2)] == [201, 200]
            (given,) = (await http.get(f"/v1/requests/{request_id}")).json()["feedback"]
        assert (given["comment"], given["demonstration"]) == (f"{seen} is the buyer.", {"to": seen})
        stored = await find_in_redis(gateway.services.redis, mail.encode())
        assert bool(stored) == (redaction == "none"), stored
