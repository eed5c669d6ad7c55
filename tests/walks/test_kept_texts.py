"""Texts of requests: kept where the task says so, masked, sealed, and nowhere else."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.features.evaluations.store import EvaluationStore
from gateway.features.records.archiving import archive_once, text_source_of
from gateway.features.texts.state import Texts
from monitoring.text_reader import TextReader
from monitoring.texts import KeptText
from monitoring.time_units import DAY_SECONDS
from tests.fakes.engine import FakeEngine
from tests.gateway.features.evaluations.test_store import begun, evaluation
from tests.live_folder import find_paths
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_erasures import holding
from tests.walks.test_evaluate import ended

SECRET = "The vase of jo@shop.example is broken"
ASK = {"model": "returns", "messages": [{"role": "user", "content": SECRET}]}
KEY = base64.b64encode(bytes(32)).decode()


def keeping(**texts: Any) -> dict[str, Any]:
    return {"returns": {"texts": {"keep": "all", **texts}}}


async def ask(gateway: RunningGateway, count: int = 1, **more: Any) -> list[str]:
    async with gateway.http() as http:
        ids = []
        for _ in range(count):
            answer = await http.post("/v1/chat/completions", json=ASK | more)
            assert answer.status_code == 200, answer.text
            ids.append(answer.headers["x-request-id"])
    return ids


async def kept(gateway: RunningGateway, requests: list[str]) -> dict[str, KeptText]:
    """The texts of these requests, once none is on its way."""
    queue = gateway.features[Texts].queue
    await until(lambda: not len(queue) and not gateway.features[Texts].spool.records)
    with TextReader(text_source_of(gateway.services.settings)) as reader:
        return reader.of_requests(requests)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_kept_text_is_what_was_asked_and_answered_and_masked(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, stream: bool
) -> None:
    small.answers["returns@v1"] = "Call +49 30 901820."
    async with run_gateway(configure(tasks=keeping())) as gateway:
        await gateway.place(make_adapter(1))
        (request,) = await ask(gateway, stream=stream)
        before = (await kept(gateway, [request]))[request]
        assert before.messages == [{"role": "user", "content": "The vase of [email] is broken"}]
        assert (before.answer, before.version, before.reason) == ("Call [phone].", "returns@v1", "adapter")
        await archive_once(gateway.services.settings, gateway.services.meters)
        assert await kept(gateway, [request]) == {request: before}


async def test_a_redaction_that_fails_is_in_the_log_whatever_it_raises(
    configure: Configure,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "lossy.py").write_text("def redact(text):\n    return {}[text]\n")
    (tmp_path / "lossy-1.dist-info").mkdir()
    (tmp_path / "lossy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lossy\nVersion: 1\n")
    (tmp_path / "lossy-1.dist-info" / "entry_points.txt").write_text("[apprentice.redaction]\nlossy = lossy:redact\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with run_gateway(configure(tasks=keeping(redaction="lossy"))) as gateway:
        await gateway.place(make_adapter(1))
        (request,) = await ask(gateway)
        assert not await kept(gateway, [request])
    (told,) = [record for record in caplog.records if record.getMessage() == "a text was not kept"]
    assert (told.exc_info is not None and told.exc_info[0], getattr(told, "request_id", "")) == (KeyError, request)


async def test_with_a_key_no_word_is_in_redis_or_on_disk(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    settings = {"keys": {"k1": KEY}, "key": "k1"}
    async with run_gateway(configure(tasks=keeping(redaction="none"), texts=settings)) as gateway:
        await gateway.place(make_adapter(1))
        (request,) = await ask(gateway)
        assert (await kept(gateway, [request]))[request].messages == ASK["messages"]
        raw = await redis.get(f"apprentice:text:{request}")
        assert b"vase" not in raw
        await archive_once(gateway.services.settings, gateway.services.meters)
        assert (await kept(gateway, [request]))[request].messages == ASK["messages"]
    assert not [path for path in find_paths(tmp_path / "data") if path.is_file() and b"vase" in path.read_bytes()]


async def test_with_a_key_no_word_that_people_give_is_in_redis_or_on_disk(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    word = "Vanderbilt-Oxenstierna"
    said = {"metric": "correct", "value": False, "comment": word, "demonstration": {"to": word}, "tags": {"who": word}}
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        settings = configure(data_folder=Path(name), redis_url=None, texts={"keys": {"k1": KEY}, "key": "k1"})
        async with run_gateway(settings) as gateway:
            services = gateway.services
            await services.redis.config_set("rdbcompression", "no")
            await gateway.place(make_adapter(1))
            (request,) = await ask(gateway)
            await until(lambda: not services.flow.pending)
            async with gateway.http() as http:
                answers = [await http.post("/v1/feedback", json={"request_id": request, **said}) for _ in range(2)]
                assert [answer.status_code for answer in answers] == [201, 200]
                retraining = await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
                assert retraining.json()["examples"] == 1
                line = json.dumps({"id": "r1", "text": word, "expected": word, "label": "deny", "rejected": word})
                headers = {"content-type": "application/x-ndjson"}
                suite = {"params": {"task": "returns"}, "content": line, "headers": headers}
                assert (await http.post("/admin/v1/suites", **suite)).status_code == 201
                await archive_once(services.settings, services.meters)
                await services.redis.save()
                assert holding(Path(name), word) == []
                assert "dump.rdb" in holding(Path(name), request)
                (given,) = (await http.get(f"/v1/requests/{request}")).json()["feedback"]
                assert said.items() <= given.items()
                rows = await http.get(f"/admin/v1/retraining/{retraining.json()['id']}/examples")
                assert [(row["comment"], row["expected"]) for row in map(json.loads, rows.text.splitlines())] == [
                    (word, json.dumps({"to": word}, separators=(",", ":")))
                ]
                await services.redis.delete(f"apprentice:feedback:{request}")
                found = (await http.get("/v1/requests", params={"label": "wrong"})).json()["requests"]
                assert [each["id"] for each in found] == [request]


async def test_rows_under_a_lost_key_stay_and_wait_for_a_gateway_that_has_it(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.evaluations.job.UNREADABLE_SECONDS", 1)
    keys = {name: base64.b64encode(name.encode().ljust(32)).decode() for name in ("k1", "k2")}
    line = json.dumps({"id": "r1", "text": "A vase", "expected": "yes"})
    headers = {"content-type": "application/x-ndjson"}
    config = configure(texts={"keys": {"k1": keys["k1"]}, "key": "k1"})
    query = {"version": "returns@v1", "suite": "newest", "arms": "adapter"}
    async with run_gateway(config) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        added = await http.post("/admin/v1/suites", params={"task": "returns"}, content=line, headers=headers)
        assert added.status_code == 201, added.text
        seals = gateway.services.settings.texts.make_seals()
        store, one = EvaluationStore(redis, 1000, lambda: seals), evaluation()
    config["texts"] = {"keys": {"k2": keys["k2"]}, "key": "k2"}
    async with run_gateway(config) as gateway, gateway.http() as http:
        await begun(store, one)

        async def says_why() -> bool:
            return "which texts.keys lacks" in await store.waiting(one)

        await until(says_why)
        refused = await http.post("/admin/v1/evaluations", params=query)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "state_conflict")
        now = await store.get(one.id)
        assert now is not None
        assert now.status == "running"
        config["texts"] = {"keys": keys, "key": "k2"}
        async with run_gateway(config) as other, other.http() as its_http:
            assert (await ended(its_http, one.id))["status"] == "done"
            assert (await its_http.post("/admin/v1/evaluations", params=query)).status_code == 201


async def test_a_share_is_kept_or_none_by_the_requests_id_alone(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks=keeping(keep="share", share=0.5))) as gateway:
        await gateway.place(make_adapter(1))
        requests = await ask(gateway, 40)
        assert 5 < len(await kept(gateway, requests)) < 35
    async with run_gateway(configure(tasks={"returns": {}})) as gateway:
        assert await kept(gateway, await ask(gateway, 3)) == {}
        assert gateway.features[Texts].shares == {}


async def test_texts_wait_on_the_disk_while_redis_takes_none_and_are_kept_once(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure(tasks=keeping())) as gateway:
        await gateway.place(make_adapter(1))
        texts = gateway.features[Texts]
        await redis.set("apprentice:texts:bytes", gateway.services.settings.texts.unarchived_bytes_max)
        requests = await ask(gateway, 5)
        await until(lambda: texts.spool.records == 5)
        await redis.set("apprentice:texts:bytes", 0)
        assert sorted(await kept(gateway, requests)) == sorted(requests)
        assert await redis.xlen("apprentice:texts") == 5


async def test_a_spool_that_its_disk_does_not_keep_holds_up_no_text_for_redis(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    async with run_gateway(configure(tasks=keeping())) as gateway:
        await gateway.place(make_adapter(1))
        texts = gateway.features[Texts]
        with monkeypatch.context() as broken:
            broken.setattr(texts.spool, "is_dirty", True)
            broken.setattr(texts.spool, "sync", fail)
            broken.setattr(texts.spool, "append", fail)
            asked = await ask(gateway)
            await until(lambda: not len(texts.queue), seconds=20)
        assert [*await kept(gateway, asked)] == asked


async def test_a_spool_that_a_stopped_gateway_left_is_taken_over(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure(tasks=keeping())) as gateway:
        await gateway.place(make_adapter(1))
        full = gateway.services.settings.texts.unarchived_bytes_max
        await redis.set("apprentice:texts:bytes", full)
        requests = await ask(gateway, 3)
    await redis.set("apprentice:texts:bytes", 0)
    async with run_gateway(configure(tasks=keeping())) as gateway:
        await until(lambda: redis.xlen("apprentice:texts"))
        assert sorted(await kept(gateway, requests)) == sorted(requests)


async def test_damaged_texts_of_the_spool_go_once_every_retention_is_over(configure: Configure, tmp_path: Path) -> None:
    settings = configure(tasks=keeping(retention_days=2) | {"other": {"texts": {"retention_days": 4}}})
    spool = tmp_path / "data" / "spool-texts"
    spool.mkdir(parents=True)
    old, new = (spool / f"dead.0000000{days}.spool.damaged" for days in (5, 3))
    for path, days in ((old, 5), (new, 3)):
        path.write_text("A text.")
        os.utime(path, (time.time() - days * DAY_SECONDS,) * 2)
    async with run_gateway(settings):
        await until(lambda: not old.exists())
        assert new.exists()


async def test_examples_to_train_on_have_the_texts_that_the_task_keeps(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks=keeping())) as gateway:
        await gateway.place(make_adapter(1))
        (request,) = await ask(gateway)
        await kept(gateway, [request])
        async with gateway.http() as http:
            said = {"request_id": request, "metric": "correct", "value": False, "demonstration": "Refund."}
            assert (await http.post("/v1/feedback", json=said)).status_code == 201
            opened = await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
            rows = await http.get(f"/admin/v1/retraining/{opened.json()['id']}/examples", params={"complete": True})
        (row,) = map(json.loads, rows.text.splitlines())
        assert row["messages"] == [{"role": "user", "content": "The vase of [email] is broken"}]
        assert (row["id"], row["expected"]) == (request, "Refund.")
