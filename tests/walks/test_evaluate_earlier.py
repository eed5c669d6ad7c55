"""Answers of an earlier evaluation: taken over after a sample, in full and without being paid for twice."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from gateway.features.evaluations.earlier_answers import SAMPLE_ROWS
from tests.fakes.engine import FakeEngine
from tests.gateway.features.evaluations.test_store import fill_list
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_evaluate import PATH, begin, data, ended, items_asked, ready, right_but_for, said, with_schema

__all__ = ["ready"]
ROWS = 90
TAKEN = ROWS - SAMPLE_ROWS


async def evaluate_twice(ready: RunningGateway, make_adapter: MakeAdapter, **second: Any) -> dict[str, Any]:
    """The second of two evaluations on the same rows, of v3 after v2; both have v1 and general as arms."""
    v2, v3 = [await ready.place(with_schema(make_adapter(number)), alias=False) for number in (2, 3)]
    query = {"version": v3, "class_field": "decision"} | second
    async with ready.http() as http:
        await ended(http, (await begin(http, data(ROWS), version=v2, class_field="decision"))["id"])
        return await ended(http, (await begin(http, data(ROWS), **query))["id"])


def count_taken(told: dict[str, Any], arm: str) -> list[str]:
    return [words for words in told["report"]["cannot_see"] if f"answers of {arm} were given in" in words]


async def test_arms_that_answered_before_are_asked_a_sample_alone(
    ready: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers["*"] = right_but_for(7)
    told = await evaluate_twice(ready, make_adapter)
    leading = told["report"]["arms"]["leading"]
    assert (leading["rows"], leading["accuracy"]["right"]) == (ROWS, 81)
    assert told["progress"]["leading"]["done"] == ROWS
    assert items_asked(general) == ROWS + SAMPLE_ROWS
    assert items_asked(small) == 3 * ROWS + SAMPLE_ROWS, "twice the version, and v1 as the one that leads"
    assert [words[: len("50 of 90")] for words in count_taken(told, "leading")] == [f"{TAKEN} of {ROWS}"]
    assert len(count_taken(told, "general")) == 1
    async with ready.http() as http:
        rows = (await http.get(f"{PATH}/{told['id']}/rows")).json()["rows"]
    assert sum(bool(row["arms"]["leading"].get("earlier")) for row in rows) == TAKEN
    assert not any(row["arms"]["adapter"].get("earlier") for row in rows)
    assert leading["latency_seconds"]["p50"] > 0
    assert told["progress"]["general"]["cost_usd"] < told["report"]["arms"]["general"]["cost_usd"], (
        "it was not paid twice"
    )


async def test_answers_are_found_behind_newer_evaluations_of_other_tasks(
    ready: RunningGateway, make_adapter: MakeAdapter
) -> None:
    v2, v3 = [await ready.place(with_schema(make_adapter(number)), alias=False) for number in (2, 3)]
    async with ready.http() as http:
        await ended(http, (await begin(http, data(ROWS), version=v2))["id"])
        await fill_list(ready.services.redis, time.time())
        told = await ended(http, (await begin(http, data(ROWS), version=v3))["id"])
    assert count_taken(told, "leading")


async def test_an_arm_that_answers_otherwise_now_is_asked_all_rows(
    ready: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers["*"] = right_but_for(7)
    v2, v3 = [await ready.place(with_schema(make_adapter(number)), alias=False) for number in (2, 3)]
    async with ready.http() as http:
        await ended(http, (await begin(http, data(ROWS), version=v2))["id"])
        general.answers["*"] = right_but_for(2)
        told = await ended(http, (await begin(http, data(ROWS), version=v3))["id"])
    assert items_asked(general) == 2 * ROWS
    assert told["report"]["arms"]["general"]["accuracy"]["right"] == ROWS // 2
    assert not count_taken(told, "general")
    assert count_taken(told, "leading")


@pytest.mark.parametrize("second", [{"again": True}, {"repeats": 2}, {"metric": "exact"}], ids=str)
async def test_whoever_asks_again_or_otherwise_takes_nothing_over(
    ready: RunningGateway, make_adapter: MakeAdapter, second: dict[str, Any]
) -> None:
    told = await evaluate_twice(ready, make_adapter, **second)
    assert told["status"] == "done"
    assert not count_taken(told, "leading")


async def test_one_begun_again_that_was_stopped_and_goes_on_takes_nothing_over(
    ready: RunningGateway, make_adapter: MakeAdapter
) -> None:
    v2, v3 = [await ready.place(with_schema(make_adapter(number)), alias=False) for number in (2, 3)]
    async with ready.http() as http:
        await ended(http, (await begin(http, data(ROWS), version=v2))["id"])
        await ready.services.redis.set("apprentice:duty:evaluations", "another gateway")
        stopped = await begin(http, data(ROWS), version=v3, again=True)
        assert (await http.delete(f"{PATH}/{stopped['id']}")).json()["status"] == "cancelled"
        await ready.services.redis.delete("apprentice:duty:evaluations")
        told = await ended(http, (await begin(http, data(ROWS), 200, version=v3))["id"])
    assert (told["id"], told["status"]) == (stopped["id"], "done")
    assert not count_taken(told, "leading")


async def test_general_with_another_contract_is_asked_all_rows(
    ready: RunningGateway, make_adapter: MakeAdapter, general: FakeEngine
) -> None:
    v2 = await ready.place(with_schema(make_adapter(2)), alias=False)
    v3 = await ready.place(make_adapter(3), alias=False)
    async with ready.http() as http:
        for version in (v2, v3):
            await ended(http, (await begin(http, data(ROWS), version=version, metric="exact"))["id"])
    assert items_asked(general) == 2 * ROWS


@pytest.mark.parametrize("second", [{}, {"arms": "general,leading"}], ids=str)
async def test_texts_of_answers_that_are_taken_over_are_there_to_be_read(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, second: dict[str, Any]
) -> None:
    small.answers["*"] = general.answers["*"] = right_but_for(10)
    key = base64.b64encode(b"k" * 32).decode()
    kept = {"tasks": {"returns": {"texts": {"keep": "all"}}}, "texts": {"keys": {"k1": key}, "key": "k1"}}
    async with run_gateway(configure(**kept)) as running:
        await running.place(with_schema(make_adapter(1)))
        told = await evaluate_twice(running, make_adapter, **second)
        async with running.http() as http:
            wrong = (await http.get(f"{PATH}/{told['id']}/texts", params={"wrong": True})).json()["rows"]
    assert count_taken(told, "leading")
    assert [row["number"] for row in wrong] == list(range(0, ROWS, 10))
    assert all(row["answers"].keys() == set(told["arms"]) for row in wrong)
    assert {row["answers"]["leading"] for row in wrong} == {said("deny")}
