"""The recipe of the guide: a backup of the data folder under load, and a gateway that goes on from it."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from gateway.callers import new_key
from tests.programs import needs
from tests.style.source import ROOT
from tests.waiting import until
from tests.walks.served import ASK, client, config, served

__all__ = ["config"]
GUIDE = ROOT / "docs" / "guides" / "durability-and-backup.md"


@pytest.fixture
def backup() -> Iterator[Path]:
    """An empty folder; its path is short, as a socket's has to be."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


def recipe() -> str:
    """The commands of the guide that make a backup."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if "appendonlydir" in block]
    return str(found)


async def make_key(http: httpx.AsyncClient, name: str) -> str:
    answer = await http.post("/admin/v1/callers", json={"name": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


async def judge(http: httpx.AsyncClient) -> str:
    """Ask, and judge the answer; the request's id."""
    answer = await http.post("/v1/chat/completions", json={**ASK, "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    told = await http.post("/v1/feedback", json={"request_id": request_id, "metric": "correct", "value": True})
    assert told.status_code == 201, told.text
    return request_id


async def is_recorded(http: httpx.AsyncClient, request_id: str) -> bool:
    return (await http.get(f"/v1/requests/{request_id}")).status_code == 200


async def is_stored(http: httpx.AsyncClient) -> bool:
    """True once all records are in Redis: nothing that is acknowledged waits for them."""
    return "\napprentice_records_pending 0\n" in (await http.get("/metrics")).text


@pytest.mark.invariant("A backup made by the guide's recipe has all that was acknowledged before it.")
@needs("sh", "cmp", "tar")
async def test_a_gateway_goes_on_from_a_backup_that_was_made_under_load(config: Path, backup: Path) -> None:
    key = new_key()[0]
    async with served(config, key) as process, client(process, key) as http:
        early = await make_key(http, "early")
        judged = [await judge(http) for _ in range(3)]
        for request_id in judged:
            await until(partial(is_recorded, http, request_id), f"the record of {request_id}")
        await until(partial(is_stored, http), "no record is in memory or in the spool alone")
        loading = asyncio.create_task(keep_judging(http))
        environment = os.environ | {"DATA": str(config.parent), "BACKUP": str(backup)}
        copying = await asyncio.create_subprocess_exec("sh", "-euc", recipe(), env=environment)
        assert await copying.wait() == 0
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        late = await make_key(http, "late")
    content = yaml.safe_load(config.read_text()) | {"data_folder": str(backup)}
    restored = backup / "apprentice.yaml"
    restored.write_text(yaml.safe_dump(content))
    async with served(restored, key) as process, client(process, key) as http:
        names = {caller["name"] for caller in (await http.get("/admin/v1/callers")).json()["callers"]}
        assert "early" in names
        assert "late" not in names
        for request_id in judged:
            shown = (await http.get(f"/v1/requests/{request_id}")).json()
            assert shown["feedback"], shown
        entries = (await http.get("/admin/v1/audit")).json()["entries"]
        assert "early" in str(entries)
        async with client(process, early) as again, client(process, late) as refused:
            await judge(again)
            assert (await refused.get("/v1/usage")).status_code == 401


async def keep_judging(http: httpx.AsyncClient) -> None:
    while True:
        await judge(http)
