"""A version that degrades on real vLLM: the policy of the day moves on, feedback follows, and the monitor acts on
it."""

from __future__ import annotations

import asyncio
import importlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.conftest import ADAPTER, RealEngines
from tests.engine.words import SLOW_SECONDS_MAX
from tests.walks.gateway import RunningGateway, run_gateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
TASK = "seasons"
FLOOR = 0.25
CALLERS = 5
CALM_SECONDS = 10.0
WAIT_SECONDS_MAX = 1200.0
RULES = {"goodwill-60": 4, "no-receipt": 4, "window-30": 2, "used": 2}
"""Mostly what the season decides otherwise: the error moves by more than half, so that few answers tell of it."""
SETTINGS = {
    "fallback_pool": None,
    "fallbacks": {"degraded": ["previous_version"]},
    "max_tokens_max": 64,
    "checks": {"degraded": {"mode": "enforce", "explored_share": FLOOR}},
    "monitor": {
        "labels_min": 20,
        "kept_steps": [0.5],
        "step_seconds": 3,
        "shadow_share_suspect": 0.6,
        "shadow_saving_share_max": 1.0,
        "responses": ["shadow", "shift", "retrain"],
        "judge": {"kind": "fields", "fields": ["decision"]},
    },
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The example's customers and story: scripts in a folder, and not a package."""
    sys.path.insert(0, str(ADAPTER))
    try:
        found = {name: importlib.import_module(name) for name in ("customers", "story")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(found["customers"], "REQUEST_SECONDS_MAX", SLOW_SECONDS_MAX)
            yield found
    finally:
        sys.path.remove(str(ADAPTER))


@dataclass(frozen=True)
class Told:
    """A gateway with two versions of the task, the shop that sends cases to it, and the story that is told."""

    task: str
    gateway: RunningGateway
    story: Any
    shop: Any
    versions: tuple[str, str]

    async def health(self, http: httpx.AsyncClient) -> dict[str, Any]:
        answer = await http.get(f"/admin/v1/tasks/{self.task}/quality")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def adapter_of(season: str, task: str, folder: Path) -> Path:
    """The example's adapter for a season, as a version of a task."""
    source = ADAPTER / ("holiday" if season == "holiday" else "adapter")
    manifest = source if season == "holiday" else ADAPTER
    to = folder / season
    to.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(source / name, to / name)
    text = (manifest / "manifest.yaml").read_text(encoding="utf-8")
    (to / "manifest.yaml").write_text(text.replace("task: returns", f"task: {task}"), encoding="utf-8")
    return to


@asynccontextmanager
async def in_season(engines: RealEngines, task: str, folder: Path, scripts: Any) -> AsyncIterator[Told]:
    """The holiday's version leads, the regular one is the previous version, and customers come, in the holiday
    season."""
    configuration = engines.configuration(folder / "d")
    configuration["tasks"] = {task: SETTINGS}
    configuration["monitor"] = {"interval_seconds": 0.5}
    configuration["feedback_metrics"] = {"correct": {"kind": "boolean"}}
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        previous_version = await gateway.place(adapter_of("regular", task, folder), task)
        leading = await gateway.place(adapter_of("holiday", task, folder), task)
        wrong = {"signal": "feedback", "wrong": 20, "of": 100, "reason": "Wrong of the rows that it was tested on."}
        held = await http.post(f"/admin/v1/tasks/{task}/quality/{leading}/baseline", json=wrong)
        assert held.is_success, held.text
        keys = [await gateway.key(name=f"application {number}") for number in range(CALLERS)]
        cases = scripts["customers"].drawn_cases(11, RULES)
        shop = scripts["customers"].Shop(
            gateway.url, keys, cases, season="holiday", rate=20.0, told_share=1.0, shown_share=1.0, seed=11, task=task
        )
        story = scripts["story"].Story(http, shop, leading, previous_version, FLOOR, print, WAIT_SECONDS_MAX, task)
        trading = asyncio.create_task(shop.trade())
        try:
            yield Told(task, gateway, story, shop, (leading, previous_version))
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)


async def audited(http: httpx.AsyncClient, action: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/admin/v1/audit?limit=1000&action={action}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["entries"]
    return found


async def test_version_out_of_season_is_degraded_keeps_the_floor_and_recovers_in_season(
    engines: RealEngines, tmp_path: Path, scripts: Any
) -> None:
    story_ = scripts["story"]
    async with in_season(engines, TASK, tmp_path, scripts) as told, told.gateway.http() as http:
        leading, previous_version = told.versions
        await told.story.chapter(story_.Chapter("season", "holiday", story_.HEALTHY, CALM_SECONDS, 0))
        assert not told.story.seen.verdicts
        await told.story.chapter(story_.Chapter("over", "regular", story_.DEGRADED, 0.0, 0))
        found = await told.health(http)
        version = found["quality"]["versions"][leading]
        assert (version["verdict"], version["kept"], version["to"]) == ("degraded", FLOOR, "previous_version")
        stream = version["evidence"]["signals"][0]
        assert stream["labelled"]
        assert stream["e_value"] >= stream["threshold"] > 1
        verdict = next(entry for entry in await audited(http, "monitor.verdict") if entry["object"] == leading)
        assert verdict["actor"] == "system"
        assert verdict["evidence"]["signals"]
        shifts = [entry["after"]["kept"] for entry in await audited(http, "monitor.shift")]
        assert shifts == [0.5, FLOOR]
        began = len(told.shop.judged)
        await told.story.chapter(story_.Chapter("next", "holiday", story_.HEALTHY, 0.0, 0))
        floor = [one.arm for one in told.shop.judged[began:]]
        assert floor.count(previous_version) > floor.count(leading) > 0
        assert [entry["after"]["kept"] for entry in await audited(http, "monitor.recover")][-1] == 1.0
        assert told.shop.failed == 0, told.shop.failures
