"""A list of requests: newest first, from Redis and the archive alike, each once; a caller sees its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.features.records import kept_texts
from gateway.features.records.archiving import archive_once
from gateway.features.requests.search import Searches
from gateway.features.texts.state import Texts
from monitoring.records import STREAM_KEY, Record
from tests.gateway.cli.conftest import run
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway


async def ask(gateway: RunningGateway, text: str, key: str | None = None) -> str:
    body = {"model": "returns", "messages": [{"role": "user", "content": text}]}
    async with gateway.http(key) as http:
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-request-id"])


async def found(gateway: RunningGateway, key: str | None = None, **query: Any) -> list[str]:
    async with gateway.http(key) as http:
        answer = await http.get("/v1/requests", params=query)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["requests"]]


async def settled(gateway: RunningGateway) -> None:
    texts = gateway.features[Texts]
    await until(lambda: not len(texts.queue) and not texts.spool.records and not gateway.services.flow.pending)


async def test_a_search_in_texts_reads_feedback_on_what_it_tells_alone(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        requests = [await ask(gateway, f"Vase {number}.") for number in range(9)]
        await settled(gateway)
        redis = gateway.services.redis
        for query in ({"text": "vase 4"}, {"text": "vase", "label": "none"}):
            await redis.config_resetstat()
            ids = await found(gateway, **query)
            assert ids == ([requests[4]] if query == {"text": "vase 4"} else requests[::-1])
            assert (await redis.info("commandstats"))["cmdstat_hvals"]["calls"] == len(ids)


async def test_requests_are_found_newest_first_whether_they_are_archived_or_not(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        key = await gateway.key()
        requests = [await ask(gateway, f"Vase {number}, BLUE.", key if number % 2 else None) for number in range(6)]
        async with gateway.http() as http:
            said = {"request_id": requests[1], "metric": "correct", "value": False}
            assert (await http.post("/v1/feedback", json=said)).status_code == 201
        await settled(gateway)
        await archive_once(gateway.services.settings, gateway.services.meters)
        requests += [await ask(gateway, f"Bowl {number}, blue.", key) for number in range(2)]
        await settled(gateway)
        newest_first = requests[::-1]

        assert await found(gateway) == newest_first
        await gateway.services.redis.xtrim(STREAM_KEY, maxlen=3, approximate=False)
        assert await found(gateway) == newest_first, "older ones are in the archive"
        assert await found(gateway, limit=3) == newest_first[:3]
        assert await found(gateway, before=newest_first[2]) == newest_first[3:]
        assert await found(gateway, text="vase 4, blue") == [requests[4]]
        assert await found(gateway, text="bowl") == newest_first[:2]
        assert await found(gateway, label="wrong") == [requests[1]]
        assert len(await found(gateway, label="none", task="returns", version="returns@v1", outcome="ok")) == 7
        assert await found(gateway, reason="canary") == []
        assert await found(gateway, caller=key.split("-")[2]) == [*newest_first[:2], *requests[5::-2]]
        own = [requests[7], requests[6], requests[5], requests[3], requests[1]]
        assert await found(gateway, key) == own, "a caller sees its own"
        assert await found(gateway, key, caller="somebody") == own
        connection = ("--gateway", gateway.url, "--key", gateway.admin_key)
        shown = await asyncio.to_thread(run, "requests", "--label", "wrong", "--texts", *connection)
        assert "wrong" in shown.out
        assert "Vase 1, BLUE." in shown.out
        async with gateway.http() as http:
            (entry, *_) = (await http.get("/admin/v1/audit", params={"newest": True})).json()["entries"]
        assert (entry["action"], entry["evidence"]["requests"]) == ("texts.give", [requests[1]])


async def test_the_text_of_a_request_is_read_in_a_turn_of_its_caller(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading is a process: one key has one at a time."""
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        key = await gateway.key()
        path = f"/v1/requests/{await ask(gateway, 'A blue vase.', key)}?texts=true"
        await settled(gateway)
        caller = gateway.services.snapshot.current.callers[key.split("-")[2]]
        async with gateway.http(key) as http:
            async with gateway.features[Searches].turns.turn(caller):
                monkeypatch.setattr(kept_texts, "READ_SECONDS_MAX", 0.1)
                waited = await http.get(path)
                assert (waited.status_code, waited.json()["error"]["code"]) == (504, "timeout")
            monkeypatch.undo()
            assert (await http.get(path)).json()["text"]["messages"][0]["content"] == "A blue vase."


async def test_a_text_that_is_not_kept_is_given_to_nobody(gateway: RunningGateway) -> None:
    request = await ask(gateway, "A blue vase.")
    async with gateway.http() as http:
        assert (await http.get(f"/v1/requests/{request}?texts=true")).json()["text"] is None
        assert "texts.give" not in (await http.get("/admin/v1/audit")).text


async def test_a_request_that_took_long_is_in_its_place_and_told_once(gateway: RunningGateway) -> None:
    """It was made before others that ended before it, and are archived."""
    long = Record(id=gateway.services.ids.make("c"), at=0.0, endpoint="chat", caller="c", requested_model="returns")
    first = await ask(gateway, "One.")
    await settled(gateway)
    await archive_once(gateway.services.settings, gateway.services.meters)
    second = await ask(gateway, "Two.")
    await settled(gateway)
    gateway.services.flow.buffer.put(long)
    await settled(gateway)
    assert await found(gateway) == [second, first, long.id]
    assert await found(gateway, before=first) == [long.id]


async def test_a_before_that_is_no_id_is_refused(gateway: RunningGateway) -> None:
    await ask(gateway, "One.")
    async with gateway.http() as http:
        refused = await http.get("/v1/requests", params={"before": "-" * 53})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "before")


async def test_requests_of_no_task_and_of_a_removed_one_are_found_by_their_label(gateway: RunningGateway) -> None:
    make, terms = gateway.services.ids.make, {"at": 0.0, "endpoint": "chat", "caller": "c", "requested_model": "m"}
    records = [Record(id=make("c"), task=task, **terms) for task in (None, "gone")]
    for record in records:
        gateway.services.flow.buffer.put(record)
    await settled(gateway)
    async with gateway.http() as http:
        for record in records:
            said = {"request_id": record.id, "metric": "correct", "value": False}
            assert (await http.post("/v1/feedback", json=said)).status_code == 201
            assert (await http.get(f"/v1/requests/{record.id}")).json()["label"]["value"] == "wrong"
    assert await found(gateway, label="wrong") == sorted((record.id for record in records), reverse=True)


@pytest.mark.parametrize(
    ("query", "there"),
    [({"task": "return"}, "returns"), ({"outcome": "success"}, "cancelled"), ({"reason": "x"}, "adapter")],
)
async def test_a_name_that_is_unknown_is_an_error_with_those_that_exist(
    gateway: RunningGateway, query: dict[str, str], there: str
) -> None:
    (name, value) = next(iter(query.items()))
    options = (f"--{name}", value, "--gateway", gateway.url, "--key", gateway.admin_key)
    shown = await asyncio.to_thread(run, "requests", *options)
    assert (shown.exit_code, shown.out) == (1, "")
    assert value in shown.err
    assert there in shown.err
    async with gateway.http(await gateway.key()) as http:
        answer = await http.get("/v1/requests", params=query)
        assert (answer.status_code in (400, 404), answer.json()["error"]["param"]) == (True, name)


async def test_an_empty_list_names_what_to_do(gateway: RunningGateway) -> None:
    connection = ("--gateway", gateway.url, "--key", gateway.admin_key)
    shown = await asyncio.to_thread(run, "requests", "--text", "vase", *connection)
    assert "tasks.NAME.texts.keep" in shown.err
    await ask(gateway, "A vase.")
    await settled(gateway)
    shown = await asyncio.to_thread(run, "requests", "--texts", *connection)
    assert "No text of these is kept" in shown.err
    shown = await asyncio.to_thread(run, "requests", "--label", "wrong", *connection)
    assert "No request matches" in shown.err


@pytest.mark.parametrize("query", [{"label": "good"}, {"limit": 0}, {"before": "yesterday"}, {"text": "a"}])
async def test_what_no_search_can_use_is_refused(gateway: RunningGateway, query: dict[str, Any]) -> None:
    async with gateway.http() as http:
        answer = await http.get("/v1/requests", params=query)
        assert answer.status_code == 400
        assert json.loads(answer.content)["error"]["param"] == next(iter(query))
