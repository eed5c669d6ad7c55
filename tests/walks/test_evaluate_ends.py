"""Evaluations whose engine fails, that are stopped at their end, or whose gateway is killed there."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import EvaluationStore, Model
from gateway.state.fitted_store import FittedStore
from monitoring.evaluation.dataset import Row
from monitoring.texts import Seals
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Moment, Status
from tests.gateway.features.evaluations.test_store import evaluation, step
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, audit_of
from tests.walks.test_evaluate import PATH, asked_number, begin, data, ended, right_but_for, until_in_force, with_schema


@pytest.fixture
async def ready(configure: Configure, make_adapter: MakeAdapter, small: FakeEngine) -> AsyncIterator[RunningGateway]:
    """A gateway whose returns@v1 is wrong on each tenth row."""
    small.answers[V1] = right_but_for(10)
    async with run_gateway(configure()) as running:
        await running.place(with_schema(make_adapter(1)))
        yield running


async def test_while_an_engine_fails_rows_wait_and_none_counts_as_failed(
    ready: RunningGateway, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.evaluations.row_asking.RETRY_SECONDS", (0.01, 0.05))
    monkeypatch.setattr("gateway.features.evaluations.row_asking.TOLD_SECONDS", 0.05)
    small.faults.add(Status(500), model=V1, times=10**6)
    async with ready.http() as http:
        begun = await begin(http, data(20), arms="adapter")

        async def waits() -> str | None:
            return (await http.get(f"{PATH}/{begun['id']}")).json()["waits_for"]

        told = str(await until(waits))
        assert "fails at the rows (failed)" in told or "no replica of the pool 'small' can answer" in told
        small.faults.clear()
        report = (await ended(http, begun["id"]))["report"]
    assert (report["arms"]["adapter"]["failed"], report["arms"]["adapter"]["accuracy"]["right"]) == (0, 18)


async def test_rows_that_failed_for_long_are_asked_again_by_the_same_command(
    ready: RunningGateway, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.evaluations.row_asking.FAILING_SECONDS_MAX", 0.0)
    small.faults.add(Status(500), model=V1, times=2)
    async with ready.http() as http:
        begun = await begin(http, data(20), arms="adapter")
        assert (await ended(http, begun["id"]))["report"]["arms"]["adapter"]["failed"] == 2
        asked = small.requests_total
        assert (await begin(http, data(20), status=200, arms="adapter"))["status"] == "running"
        report = (await ended(http, begun["id"]))["report"]
        assert (report["arms"]["adapter"]["failed"], small.requests_total - asked) == (0, 2)
        assert (await begin(http, data(20), status=200, arms="adapter"))["status"] == "done"


class FailsAtOne(Status):
    """Fails at the row of this number, and at no other."""

    async def on_request(self, moment: Moment) -> None:
        if asked_number(moment.body) == 7:
            await super().on_request(moment)


async def test_a_row_at_which_an_engine_fails_that_answers_others_ends_as_failed(
    ready: RunningGateway, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.evaluations.row_asking.RETRY_SECONDS", (0.0, 0.0))
    small.faults.add(FailsAtOne(500), model=V1, times=10**6)
    async with ready.http() as http:
        begun = await begin(http, data(300), arms="adapter")
        report = (await ended(http, begun["id"]))["report"]
    assert report["arms"]["adapter"]["failed"] == 1


@pytest.mark.invariant("No stopped evaluation puts a model into force, and no finished one loses its models.")
async def test_one_that_is_stopped_while_its_report_is_made_puts_nothing_into_force(
    ready: RunningGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told_to = tmp_path / "process"
    waits = f"import os, time; open({str(told_to)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr("gateway.features.evaluations.job.COMMAND", (sys.executable, "-c", waits))
    async with ready.http() as http:
        begun = await begin(http, data(150), calibrate=True, arms="adapter")

        async def process() -> int:
            return int(told_to.read_text() or 0) if told_to.exists() else 0

        number = await until(process)
        assert (await http.delete(f"{PATH}/{begun['id']}")).json()["status"] == "cancelled"

        async def has_ended() -> bool:
            return not Path(f"/proc/{number}").exists()

        await until(has_ended)
        assert (await http.get(f"{PATH}/{begun['id']}")).json()["status"] == "cancelled"
        assert await FittedStore(ready.services.redis).get(V1, "confidence") is None
        assert await audit_of(http, "evaluation.end") == []


@pytest.mark.invariant("No stopped evaluation puts a model into force, and no finished one loses its models.")
async def test_models_of_a_gateway_killed_at_the_end_are_put_into_force_by_the_next(
    ready: RunningGateway,
) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(8), arms="adapter")
        await ended(http, begun["id"])
        one = await ready.features[Evaluations].store.get(begun["id"])
        assert one is not None
        assert await ready.features[Evaluations].store.move(
            one, one, None, None, [Model("confidence", b"bytes", {"rows": 8})]
        )

        async def is_put() -> bool:
            return await FittedStore(ready.services.redis).get(V1, "confidence") == b"bytes"

        await until(is_put)
        await until_in_force(ready)


async def test_one_under_a_lost_key_waits_and_others_are_run(ready: RunningGateway) -> None:
    redis, lost = ready.services.redis, Seals({"lost": bytes(32)}, "lost")
    store, one = EvaluationStore(redis, 1000, lambda: lost), evaluation()
    await store.add_rows("coming", [Row(0, "r0", 1, "yes", None, "Once", group=0)], set())
    await store.begin(one, "coming", False, step(store, "evaluation.begin"))
    async with ready.http() as http:
        begun = await begin(http, data(8), arms="adapter")
        assert (await ended(http, begun["id"]))["status"] == "done"
        waiting = (await http.get(f"{PATH}/{one.id}")).json()
    assert (waiting["status"], "which texts.keys lacks" in waiting["waits_for"]) == ("running", True)
