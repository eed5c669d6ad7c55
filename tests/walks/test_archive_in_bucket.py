"""A gateway whose archive is in a bucket: requests are found there, learned from and forgotten; faults are told."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.features.records.archiving import archive_once
from monitoring.bucket_storage import Bucket
from monitoring.records import STREAM_KEY
from tests.fakes.sources import give_credentials, s3_server
from tests.gateway.cli.conftest import run
from tests.monitoring.test_archive import ArchiveJob
from tests.monitoring.test_bucket_archive import contents
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_datasets import all_is_stored, ended
from tests.walks.test_erasures import OTHER, SECRET, ask, forget, judge

ADDRESS = "s3://models/archive"


def in_bucket(url: str, **more: Any) -> dict[str, Any]:
    tasks = {"returns": {"texts": {"keep": "all", "redaction": "none"}, "monitor": {"retraining": "off"}}}
    return {"records": {"archive_folder": ADDRESS}, "pulls": {"s3_endpoint_url": url}, "tasks": tasks, **more}


async def holding(url: str, folder: Path, word: str) -> set[str]:
    """The datasets with objects that hold a word."""
    job = ArchiveJob("", "", 1, bucket=Bucket(ADDRESS, url))
    found = await asyncio.to_thread(lambda: [name for name, said in contents(job, folder) if word in said])
    return {name.split("/")[2] for name in found}


async def found(gateway: RunningGateway, **query: Any) -> list[str]:
    async with gateway.http() as http:
        answer = await http.get("/v1/requests", params=query)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["requests"]]


@pytest.mark.timeout(600)
async def test_requests_in_a_bucket_are_searched_made_into_a_data_set_and_forgotten(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    async with s3_server() as url, run_gateway(configure(**in_bucket(url))) as gateway:
        await gateway.place(make_adapter(1))
        request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
        await judge(gateway, request, SECRET)
        await judge(gateway, other, OTHER)
        await all_is_stored(gateway)
        archived = await archive_once(gateway.services.settings, gateway.services.meters)
        assert archived is not None
        assert (archived.records, archived.feedback) == (2, 2)
        await gateway.services.redis.xtrim(STREAM_KEY, maxlen=0, approximate=False)
        assert await found(gateway) == [other, request]
        assert await found(gateway, text="vanderbilt", texts=True) == [request]
        async with gateway.http() as http:
            build = await ended(http, {"since": 1, "heldout_share": 0})
        assert build["state"] == "done", build
        assert await holding(url, tmp_path, "Vanderbilt") == {"texts", "feedback"}
        erasure = await forget(gateway, "--request", request)
        assert (erasure["texts"], erasure["datasets"][0]["rows"]) == (1, 1)
        assert await holding(url, tmp_path, "Vanderbilt") == set()
        assert await holding(url, tmp_path, "toaster") == {"texts", "feedback"}
        config = tmp_path / "apprentice.yaml"
        config.write_text(json.dumps(configure(**in_bucket(url)), default=str))
        counted = await asyncio.to_thread(run, "records", "count", "--json", "--config", str(config))
        assert counted.json["rows"] == 2


@pytest.mark.timeout(600)
async def test_a_bucket_that_refuses_or_is_away_is_told_at_the_start_by_search_and_doctor(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    give_credentials(monkeypatch)
    caplog.set_level(logging.ERROR)
    config = tmp_path / "apprentice.yaml"

    async def doctor() -> tuple[str, str]:
        said = await asyncio.to_thread(run, "doctor", "--json", "--config", str(config))
        (each,) = [each for each in said.json["findings"] if each["check"] == "archive"]
        return each["kind"], each["found"]

    async def records(told: str) -> None:
        out = tmp_path / "out.csv"
        for command in (("count",), ("export", "--out", str(out)), ("replay",)):
            ended = await asyncio.to_thread(run, "records", *command, "--config", str(config))
            assert (ended.exit_code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
            assert ended.err.startswith(f"apprentice: {told}")
            assert not out.exists()

    async with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as url:
        configuration = configure(**in_bucket(url))
        config.write_text(json.dumps(configuration, default=str))
        async with run_gateway(configuration) as gateway:
            told = f"the archive {ADDRESS} can't be used: {ADDRESS} refuses access (403): give credentials"
            await until(lambda: any(told in record.getMessage() for record in caplog.records))
            assert await archive_once(gateway.services.settings, gateway.services.meters) is None
            kind, words = await doctor()
            assert (kind, "AWS_ACCESS_KEY_ID" in words) == ("problem", True)
            await records(f"{ADDRESS} refuses access (403): give credentials")
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "fsspec", None)
                await records("s3:// can't be read here: install the gateway with its extra")
            async with gateway.http() as http:
                answer = await http.get("/v1/requests")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert "refuses access (403)" in answer.json()["error"]["message"]
    assert (await doctor())[0] == "problem"
    async with s3_server() as url:
        config.write_text(json.dumps(configure(**in_bucket(url)), default=str))
        assert await doctor() == ("ok", f"{ADDRESS} can be listed, with 0 days of records")
        former = Path(configuration["data_folder"]) / "records"
        (former / "texts" / "day=2026-03-01").mkdir(parents=True)
        (former / ".partial-x" / "records").mkdir(parents=True)
        assert await doctor() == ("problem", f"{former} still has texts")
