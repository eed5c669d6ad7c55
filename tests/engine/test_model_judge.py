"""A model that judges pairs on real vLLM: its words are read and paid for, and one that is down loses no pair."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from gateway.features.shadows import judges
from tests.engine.conftest import ADAPTER, BASE_MODEL, RealEngines
from tests.engine.words import SLOW_SECONDS_MAX, listed_by
from tests.fakes.ports import free_port
from tests.gateway.cli.conftest import command_for, ok
from tests.waiting import until
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import metric, shadows
from tools.engines.process import EngineProcess

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
PRICE = {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 4.0}
REST_SECONDS = 1.0
SECONDS_MAX = 1200.0
PLEASES = 740
"""Of two tokens each: the general prompt fits beside them into 2,048 tokens, and all that a judge is told does not."""


class Line:
    """A line to an engine, there in its block, which can be cut and mended: the engine itself goes on for others."""

    def __init__(self, engine_url: str) -> None:
        self._to = httpx.URL(engine_url)
        self._port = free_port()
        self._under_way: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Take connections, as at first."""
        self._listening = await asyncio.start_server(self._carry, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """Take no connection any more, and break those that there are."""
        assert self._listening is not None
        self._listening.close()
        for writer in self._under_way:
            writer.transport.abort()
        await self._listening.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._to.host, self._to.port)
        ends = {writer, back}
        self._under_way |= ends
        try:
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        finally:
            self._under_way -= ends


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one end to the other, until either is gone."""
    with suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.close()


def adapter_without_contract(folder: Path, task: str) -> Path:
    """The example's adapter as a version of a task, of whose answers only the judge says which are wrong."""
    shutil.copytree(ADAPTER / "adapter", folder)
    manifest = yaml.safe_load((ADAPTER / "manifest.yaml").read_text(encoding="utf-8")) | {"task": task}
    del manifest["contract"]
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return folder


@asynccontextmanager
async def unloaded_at_the_end(engine: EngineProcess, task: str) -> AsyncIterator[None]:
    """The task's versions leave the engine with their gateway: those of other tests need the places."""
    try:
        yield
    finally:
        async with httpx.AsyncClient(base_url=engine.url, timeout=SLOW_SECONDS_MAX) as http:
            for name in await asyncio.to_thread(listed_by, engine):
                if name.startswith(f"{task}@"):
                    answer = await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
                    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def judged_by(
    engines: RealEngines, folder: Path, task: str, url: str, model: str = BASE_MODEL
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient]]:
    """A gateway with a version of the task, of which each request has a pair that the model at this address judges."""
    configuration = engines.configuration(folder / "d")
    configuration["pools"]["judges"] = {
        "base_model": model,
        "replicas": [{"name": "judge-0", "url": url}],
        "price": PRICE,
    }
    monitor = {"shadow_share": 1.0, "shadow_saving_share_max": 1.0, "judge": {"kind": "model", "pool": "judges"}}
    configuration["tasks"] = {task: {"max_tokens_max": 64, "monitor": monitor | {"feedback_metric": "correct"}}}
    configuration["monitor"] = {"interval_seconds": 0.5}
    configuration["feedback_metrics"] = {"correct": {"kind": "boolean"}}
    async with unloaded_at_the_end(engines.small, task), run_gateway(configuration) as running, running.http() as http:
        await running.place(adapter_without_contract(folder / "adapter", task), task)

        async def is_watched() -> bool:
            health = running.services.snapshot.current.quality.get(task)
            return health is not None and health.shadow_share == 1.0

        await until(is_watched)
        yield running, http


async def asked(http: httpx.AsyncClient, task: str, rows: list[dict[str, Any]]) -> list[str]:
    """Ask for each of these to be decided; the requests' ids."""
    ids = []
    for row in rows:
        body = {"model": task, "messages": [{"role": "user", "content": row["text"]}]}
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-request-id"])
    return ids


async def pairs(running: RunningGateway, count: int) -> list[dict[str, Any]]:
    """The records of shadows, once there are so many: on a CPU one of them takes seconds, and its judge as well."""
    async with asyncio.timeout(SECONDS_MAX):
        while len(found := await shadows(running)) < count:
            await asyncio.sleep(0.1)
    return found


async def demonstrate(http: httpx.AsyncClient, request_id: str, right: str) -> None:
    """Say what the answer should have been, and that the version's was right."""
    body = {"request_id": request_id, "metric": "correct", "value": True, "demonstration": right}
    answer = await http.post("/v1/feedback", json=body)
    assert answer.status_code == 201, answer.text


async def told_of(http: httpx.AsyncClient, task: str) -> dict[str, Any]:
    """The monitor's view of the task."""
    found: dict[str, Any] = (await http.get(f"/admin/v1/tasks/{task}/quality")).json()
    return found


async def test_a_model_judges_each_arm_and_how_often_people_agree_is_told(
    engines: RealEngines, tmp_path: Path, sample: list[dict[str, Any]]
) -> None:
    task = "judged"
    async with judged_by(engines, tmp_path, task, engines.general.url) as (running, http):
        rows = sample[:6]
        ids = await asked(http, task, rows)
        told = await pairs(running, len(ids))
        for shadow in told:
            pair = shadow["pair"]
            assert (shadow["outcome"], pair["judge"]) == ("ok", "model")
            assert {pair["right"], pair["served_right"]} <= {True, False}
            assert (pair["score"], pair["served_score"]) == (float(pair["right"]), float(pair["served_right"]))
            assert 0 < pair["judge_usd"] < shadow["cost_usd"]
        by_judge = await metric(http, "apprentice_cost_usd_total", 'pool="judges"', 'purpose="shadow"')
        assert by_judge == pytest.approx(sum(shadow["pair"]["judge_usd"] for shadow in told))
        booked = await metric(http, "apprentice_cost_usd_total", 'purpose="shadow"')
        assert booked == pytest.approx(sum(shadow["cost_usd"] for shadow in told))
        judged = [await metric(http, "apprentice_pairs_total", f'outcome="{one}"') for one in ("agreed", "differed")]
        assert sum(judged) == await metric(http, "apprentice_pairs_total") == len(ids)
        for request_id, row in zip(ids, rows, strict=True):
            await demonstrate(http, request_id, json.dumps(row["label"]))

        async def agreement() -> float | None:
            found: float | None = (await told_of(http, task))["judgements"][f"{task}@v1"]["judge_agreement"]
            return found

        async def is_told() -> bool:
            return await agreement() is not None

        await until(is_told)
        assert 0 <= (await agreement() or 0.0) <= 1
        said = await ok(command_for(running), "why", task)
        assert "The judge of pairs agrees with people on " in said.out


async def test_a_judge_that_is_down_rests_judges_again_and_every_pair_is_there_for_people(
    engines: RealEngines,
    tmp_path: Path,
    sample: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(judges, "REST_SECONDS", REST_SECONDS)
    caplog.set_level(logging.WARNING)
    task = "unjudged"
    async with (
        Line(engines.general.url) as line,
        judged_by(engines, tmp_path, task, line.url) as (running, http),
    ):
        await line.cut()
        rows = sample[: judges.FAILURES_MAX + 1]
        ids = await asked(http, task, rows)
        for shadow in await pairs(running, len(ids)):
            pair = shadow["pair"]
            assert (shadow["outcome"], pair["served_right"], pair["served_score"]) == ("ok", None, None)
            assert (pair["judge_usd"], pair["judge"]) == (None, "model")
            assert all(pair[name] for name in ("digest", "served_digest"))
        assert await metric(http, "apprentice_pairs_total", 'outcome="unjudged"') == len(ids)
        assert len([one for one in caplog.messages if one.startswith(f"the judge of {task} rests: ")]) == 1
        for request_id, row in zip(ids, rows, strict=True):
            await demonstrate(http, request_id, json.dumps(row["label"]))
        await line.mend()

        async with asyncio.timeout(SECONDS_MAX):
            count = len(ids)
            while f"the judge of {task} judges again" not in caplog.messages:
                count += len(await asked(http, task, rows[:1]))
                again = await pairs(running, count)
        assert any(shadow["pair"]["judge_usd"] for shadow in again)

        async def all_count() -> bool:
            return bool((await told_of(http, task))["judgements"][f"{task}@v1"]["labels"] == len(ids))

        await until(all_count)


async def test_judge_unknown_to_its_engine_leaves_pairs_unjudged_and_costs_nothing(
    engines: RealEngines, tmp_path: Path, sample: list[dict[str, Any]]
) -> None:
    task = "misjudged"
    async with judged_by(engines, tmp_path, task, engines.general.url, "somebody-else") as (running, http):
        ids = await asked(http, task, sample[:4])
        for shadow in await pairs(running, len(ids)):
            pair = shadow["pair"]
            assert (shadow["outcome"], pair["served_right"], pair["judge_usd"]) == ("ok", None, None)
        assert await metric(http, "apprentice_pairs_total", 'outcome="unjudged"') == len(ids)


async def test_text_too_long_for_the_judges_engine_is_skipped_and_not_held_against_it(
    engines: RealEngines, tmp_path: Path, sample: list[dict[str, Any]]
) -> None:
    """The version's engine and general's take it; the judge is asked with the answer and its own rules beside it."""
    task = "long"
    async with judged_by(engines, tmp_path, task, engines.general.url) as (running, http):
        await asked(http, task, [{"text": sample[0]["text"] + " Please." * PLEASES}])
        [shadow] = await pairs(running, 1)
        assert (shadow["outcome"], shadow["pair"]["judge_usd"]) == ("ok", None)
        assert await metric(http, "apprentice_pairs_total", 'outcome="passed_over"') == 1
