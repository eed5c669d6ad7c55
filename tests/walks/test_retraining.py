"""Requests to train over real sockets: opened with what was judged bad, exported as a data set, closed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import msgspec
import pytest

from gateway.features.records import kept_texts
from gateway.features.retraining.requests_to_train import close_retraining, collect_examples, open_retraining
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.store import KEPT_ON, Review
from monitoring.datasets.rows_from_files import data_row_of
from monitoring.evaluation.dataset import DatasetLimits, DatasetReader
from monitoring.quality.verdicts.quality import Action
from monitoring.quality.verdicts.retraining import RETRAININGS_MAX, Retraining
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import JUDGED_OFTEN

PATH = "/admin/v1/retraining"
ANSWER = '{"decision": "refuse"}'
RETRAIN = Action(id="19d5f0a1-0", at=1.0, kind="retrain", version="returns@v1", because="It got worse.")


async def asked(http: httpx.AsyncClient, text: str) -> str:
    body = {"model": "returns", "messages": [{"role": "user", "content": text}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


async def judged(http: httpx.AsyncClient, request_id: str, value: bool, **more: Any) -> None:
    body = {"request_id": request_id, "metric": "correct", "value": value, **more}
    answer = await http.post("/v1/feedback", json=body)
    assert answer.status_code in (200, 201), answer.text


async def stored(gateway: RunningGateway, count: int) -> None:
    """Wait until so many judgements are in the stream."""
    async with asyncio.timeout(60):
        while await gateway.services.redis.xlen("apprentice:feedback") < count:
            await asyncio.sleep(0.01)


async def keep_texts(gateway: RunningGateway, request_id: str, text: str, **more: Any) -> None:
    """Keep a request's texts as those of a review that was judged wrong."""
    review = Review(
        request_id=request_id,
        task="returns",
        version="returns@v1",
        pool="small",
        reason="adapter",
        at=1.0,
        probability=0.1,
        caller="a",
        endpoint="chat",
        messages=[{"role": "user", "content": text}],
        answer=ANSWER,
        **more,
    )
    await gateway.services.redis.set(f"{KEPT_ON}{request_id}", b"returns\n" + msgspec.json.encode(review))


async def opened(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await http.post(PATH, json={"task": "returns", "reason": "The season changes.", **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def rows(http: httpx.AsyncClient, name: str, complete: bool = False) -> list[dict[str, Any]]:
    answer = await http.get(f"{PATH}/{name}/examples", params={"complete": complete})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_what_was_judged_bad_is_there_with_its_texts_and_what_was_expected(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        ids = [await asked(http, f"Vase {number}.") for number in range(4)]
        await judged(http, ids[0], False, comment="It was sealed.", demonstration={"decision": "accept"})
        await judged(http, ids[1], False)
        await judged(http, ids[2], True)
        await judged(http, ids[3], False)
        await judged(http, ids[3], True)  # who judged it thinks better of it
        await stored(gateway, 5)
        await keep_texts(gateway, ids[0], "Vase 0.")
        await keep_texts(gateway, ids[1], "Vase 1.", cut=["The middle was left out."])
        found = await opened(http)
        assert (found["version"], found["examples"], found["state"]) == ("returns@v1", 2, "open")
        (second, first) = await rows(http, found["id"])
        assert (first["id"], first["messages"][0]["content"], first["answer"]) == (ids[0], "Vase 0.", ANSWER)
        assert json.loads(first["expected"]) == {"decision": "accept"}
        assert (first["comment"], first["value"]) == ("It was sealed.", False)
        assert (second["id"], "messages" in second, "expected" in second) == (ids[1], False, False)
        shown = (await http.get(f"{PATH}/{found['id']}")).json()
        assert (shown["kept"], shown["complete"]) == (2, 1)
        answer = await http.get(f"{PATH}/{found['id']}/examples", params={"complete": True})
    reader = DatasetReader(DatasetLimits(10, 10_000, 10_000))
    (row,) = [*reader.feed(answer.content), *reader.end()]
    assert (row.id, row.expected) == (ids[0], '{"decision":"accept"}')
    made = data_row_of(first, 1, "examples")
    assert (made.origin, made.rejected) == ("demonstrated", ANSWER)


async def test_feedback_that_can_not_be_read_is_passed_over(gateway: RunningGateway) -> None:
    index = b"1-0\nreturns\nreturns@v1\n\nlive\n"
    whole = {b"request": b"r", b"index": index, b"feedback": b"{}"}
    damaged: list[dict[Any, Any]] = [
        *({name: one for name, one in whole.items() if name != left_out} for left_out in whole),
        *({**whole, name: b"\xff"} for name in whole),
        {**whole, b"feedback": b"[" * 5000},
        whole,
    ]
    async with gateway.http() as http:
        name = await asked(http, "Vase 1.")
        await judged(http, name, False)
        await stored(gateway, 1)
        for fields in damaged:
            await gateway.services.redis.xadd("apprentice:feedback", fields)
        (found,) = await collect_examples(gateway.features[RetrainingRequests], "returns", "returns@v1")
    assert found.request_id == name


@pytest.mark.parametrize("damaged", [b"torn", b"a\n*\n{not json", b"a\n*\n{}"], ids=["torn", "no json", "no fields"])
async def test_a_stored_judgement_that_can_not_be_read_stops_no_request_to_train(
    gateway: RunningGateway, damaged: bytes
) -> None:
    async with gateway.http() as http:
        names = [await asked(http, f"Vase {number}.") for number in range(2)]
        for name in names:
            await judged(http, name, False)
        await stored(gateway, 2)
        await gateway.services.redis.hset(f"apprentice:feedback:{names[0]}", "x\ty", damaged)
        assert (await http.get(f"/v1/requests/{names[0]}")).status_code == 200
        assert (await opened(http))["examples"] == 2


async def test_a_request_that_can_not_be_read_hides_none_of_the_others(gateway: RunningGateway) -> None:
    store = gateway.features[RetrainingRequests].store
    await store.object_store.put("broken", {"id": "broken", "state": "of another time"})
    await gateway.services.redis.hset(store.object_store.values, "torn", b"{")
    one = await open_retraining(gateway.features[RetrainingRequests], "returns", RETRAIN)
    assert [each.id for each in await store.all()] == [one.id]


async def test_two_gateways_that_open_what_the_monitor_asks_for_open_one(gateway: RunningGateway) -> None:
    found = await asyncio.gather(
        *(open_retraining(gateway.features[RetrainingRequests], "returns", RETRAIN) for _ in range(4))
    )
    assert {one.id for one in found} == {found[0].id}
    assert [one.id for one in await gateway.features[RetrainingRequests].store.all()] == [found[0].id]
    assert (await open_retraining(gateway.features[RetrainingRequests], "clauses", RETRAIN)).id != found[0].id


async def test_what_the_monitor_asks_for_is_opened_once_and_closed_when_it_is_undone(gateway: RunningGateway) -> None:
    one = await open_retraining(gateway.features[RetrainingRequests], "returns", RETRAIN)
    assert (await open_retraining(gateway.features[RetrainingRequests], "returns", RETRAIN)).id == one.id
    async with gateway.http() as http:
        other = await opened(http)
    undoing = msgspec.structs.replace(
        RETRAIN, id="b", kind="undo", by="somebody", evidence={"undone": "retrain", "action": RETRAIN.id}
    )
    await close_retraining(gateway.features[RetrainingRequests], "returns", undoing)
    found = {each.id: each.state for each in await gateway.features[RetrainingRequests].store.all()}
    assert found == {one.id: "closed", other["id"]: "open"}


@pytest.mark.parametrize("word", ["release", "healthy", "hold", "over"])
async def test_pin_as_degraded_that_ends_closes_its_requests_and_leaves_those_of_labels(
    configure: Configure, make_adapter: MakeAdapter, word: str
) -> None:
    pin = "/admin/v1/tasks/returns/quality/returns@v1/pin"
    of_labels = msgspec.structs.replace(RETRAIN, id="19d5f0a2-0", evidence={"labels": 40})
    async with run_gateway(configure(**JUDGED_OFTEN)) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        ends = {"until": time.time() + 2.0} if word == "over" else {}
        for _ in range(2):
            assert (await http.post(pin, json={"verdict": "degraded", "reason": "x", **ends})).status_code == 200
        requests = gateway.features[RetrainingRequests]
        opened = [await open_retraining(requests, "returns", action) for action in (RETRAIN, of_labels)]
        if word == "release":
            await http.delete(pin)
        elif word != "over":
            verdict = {} if word == "hold" else {"verdict": word}
            assert (await http.post(pin, json={"reason": "A mistake.", **verdict})).status_code == 200

        async def is_closed() -> bool:
            states = {one["id"]: one["state"] for one in (await http.get(PATH)).json()["retraining"]}
            return [states.pop(one.id) for one in opened] == ["closed", "open"] and {*states.values()} <= {"closed"}

        await until(is_closed)


async def test_requests_are_listed_newest_first_shown_and_closed_once(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        first, second = await opened(http), await opened(http, reason="Another one.")
        listed = (await http.get(PATH)).json()["retraining"]
        assert [one["id"] for one in listed] == [second["id"], first["id"]]
        assert (await http.get(PATH, params={"task": "returns", "state": "closed"})).json()["retraining"] == []
        assert (await http.get(PATH, params={"task": "clauses"})).status_code == 404  # it is not configured
        stale = await http.post(f"{PATH}/{first['id']}/close", params={"expected_generation": 7})
        assert stale.json()["error"]["code"] == "stale_generation"
        closed = (await http.post(f"{PATH}/{first['id']}/close")).json()
        assert closed["state"] == "closed"
        again = await http.post(f"{PATH}/{first['id']}/close")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "state_conflict")
        listed = (await http.get(PATH, params={"state": "open"})).json()["retraining"]
        assert [one["id"] for one in listed] == [second["id"]]
        entries = (await http.get("/admin/v1/audit?object=returns@v1")).json()["entries"]
        metrics = (await http.get("/metrics")).text
    names = [one["action"] for one in entries]
    assert names[-3:] == ["retraining.open", "retraining.open", "retraining.close"]
    assert entries[-1]["before"]["state"] == "open"
    assert 'apprentice_retraining_open{task="returns"} 1' in metrics


async def test_of_too_many_requests_the_oldest_closed_ones_go_first(gateway: RunningGateway) -> None:
    store = gateway.features[RetrainingRequests].store
    for number in range(RETRAININGS_MAX):
        one = Retraining(
            id=f"{number:04}",
            task="returns",
            version="returns@v1",
            opened_at=float(number),
            by="a",
            because="",
            state="closed" if number % 2 else "open",
        )
        await store.object_store.put(one.id, msgspec.to_builtins(one))
    one = await open_retraining(gateway.features[RetrainingRequests], "returns", RETRAIN)
    kept = {each.id for each in await store.all()}
    assert len(kept) == RETRAININGS_MAX
    assert {one.id, "0000", "0003"} <= kept
    assert "0001" not in kept


async def test_only_the_newest_examples_are_collected_and_those_since_a_time(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        ids = [await asked(http, f"Vase {number}.") for number in range(3)]
        for request_id in ids:
            await judged(http, request_id, False)
        await stored(gateway, 3)
        found = await collect_examples(gateway.features[RetrainingRequests], "returns", "returns@v1", examples_max=2)
        assert [one.request_id for one in found] == [ids[2], ids[1]]
        assert await collect_examples(gateway.features[RetrainingRequests], "returns", "returns@v2") == []
        assert (
            await collect_examples(
                gateway.features[RetrainingRequests], "returns", "returns@v1", since=found[0].at + 3600
            )
            == []
        )


NO_REQUESTS: list[tuple[str, str, dict[str, Any] | None, int]] = [
    ("GET", f"{PATH}/nothing", None, 404),
    ("GET", f"{PATH}/no-thing", None, 404),
    ("GET", f"{PATH}/nothing/examples", None, 404),
    ("POST", f"{PATH}/nothing/close", None, 404),
    ("GET", f"{PATH}?state=half", None, 400),
    ("POST", PATH, {"task": "nothing", "reason": "a"}, 404),
    ("POST", PATH, {"task": "returns", "version": "returns@v9", "reason": "a"}, 404),
    ("POST", PATH, {"task": "returns"}, 400),
    ("POST", PATH, {"task": "returns", "reason": "a", "since": -1}, 400),
]


async def test_what_can_not_be_done_is_refused(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for method, path, body, status in NO_REQUESTS:
        with subtests.test(method=method, path=path, body=body, status=status):
            async with gateway.http() as http:
                answer = await http.request(method, path, json=body)
                assert answer.status_code == status, answer.text
                assert await gateway.features[RetrainingRequests].store.all() == []


async def test_the_audit_has_who_was_given_the_examples(gateway: RunningGateway) -> None:
    operator = await gateway.key(role="operator")
    async with gateway.http() as http, gateway.http(operator) as other:
        request_id = await asked(http, "A vase.")
        await judged(http, request_id, False)
        await keep_texts(gateway, request_id, "A vase.")
        await stored(gateway, 1)
        name = (await opened(http))["id"]
        assert len(await rows(other, name)) == 1
        found = (await http.get("/admin/v1/audit", params={"action": "retraining.give"})).json()["entries"]
    assert [(one["actor"], one["object"], one["evidence"]) for one in found] == [
        (operator.split("-")[2], "returns@v1", {"id": name, "examples": 1})
    ]


async def test_examples_whose_texts_can_not_be_read_now_are_not_given_without_them(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"returns": {"texts": {"keep": "all"}}}
    async with run_gateway(configure(tasks=tasks)) as running, running.http() as http:
        await running.place(make_adapter(1))
        await judged(http, await asked(http, "A vase."), False, demonstration="accept")
        await stored(running, 1)
        name = (await opened(http))["id"]
        monkeypatch.setattr(kept_texts, "READ_SECONDS_MAX", 0.001)
        for path in (f"{PATH}/{name}", f"{PATH}/{name}/examples"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "retraining.give" not in (await http.get("/admin/v1/audit")).text
        monkeypatch.undo()
        assert (await http.get(f"{PATH}/{name}")).json()["kept"] == 1
        assert len(await rows(http, name)) == 1


async def test_of_a_request_that_could_not_be_opened_no_example_is_left(gateway: RunningGateway) -> None:
    redis = gateway.services.redis
    async with gateway.http() as http:
        request_id = await asked(http, "A vase.")
        await judged(http, request_id, False)
        await stored(gateway, 1)
        await redis.set("apprentice:admins:audit:generations", "damaged")
        answer = await http.post(PATH, json={"task": "returns", "reason": "a"})
        assert answer.status_code >= 500, answer.text
        await redis.delete("apprentice:admins:audit:generations")
        assert (await http.get(PATH)).json()["retraining"] == []
        assert [key async for key in redis.scan_iter("apprentice:retraining:*:examples*")] == []
        name = (await opened(http))["id"]
        assert len(await rows(http, name)) == 1


async def test_a_request_whose_words_can_not_be_opened_here_is_no_example_yet(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        request_id = await asked(http, "A vase.")
        await judged(http, request_id, False)
        await stored(gateway, 1)
        key = f"apprentice:feedback:{request_id}"
        ((name, raw),) = (await gateway.services.redis.hgetall(key)).items()
        digest, giver, body = raw.split(b"\n", 2)
        sealed = msgspec.json.encode(msgspec.json.decode(body) | {"key": "of-another-gateway", "sealed": "x"})
        await gateway.services.redis.hset(key, name, b"\n".join((digest, giver, sealed)))
        assert await rows(http, (await opened(http))["id"]) == []
        await gateway.services.redis.hset(key, name, raw)
        assert len(await rows(http, (await opened(http))["id"])) == 1


@pytest.mark.invariant("A lone dissenter's demonstration is never exported as the right answer.")
async def test_a_lone_dissenters_demonstration_is_never_exported(gateway: RunningGateway) -> None:
    keys = [await gateway.key(role="operator") for _ in range(3)]
    said = {
        "dissent": [(False, "refuse"), (True, None), (True, None)],
        "agreed": [(False, "refuse"), (False, "refuse"), (True, None)],
        "apart": [(False, "refuse"), (False, "accept"), (False, None)],
        "tie": [(False, "refuse"), (True, None)],
    }
    ids: dict[str, str] = {}
    async with gateway.http() as http:
        for name, answers in said.items():
            ids[name] = await asked(http, f"Vase {name}.")
            for key, (value, shown) in zip(keys, answers, strict=False):
                async with gateway.http(key) as reviewer:
                    more = {} if shown is None else {"demonstration": shown, "comment": f"{name} {shown}"}
                    await judged(reviewer, ids[name], value, **more)
        await stored(gateway, 11)
        exported = {row["id"]: row for row in await rows(http, (await opened(http))["id"])}
    assert exported.keys() == {ids["agreed"], ids["apart"]}
    assert exported[ids["agreed"]]["expected"] == "refuse"
    assert exported[ids["agreed"]]["label_words"] == "2 of 3 say wrong"
    assert "expected" not in exported[ids["apart"]]
