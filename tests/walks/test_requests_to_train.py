"""Requests to train: what each becomes, up to a data set, or up to the gate."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import to_builtins

from gateway.features.datasets.state import Datasets
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import finish as ended_evaluation
from gateway.features.records.archiving import archive_once
from gateway.features.texts.state import Texts
from gateway.features.training import retraining_steps
from gateway.features.training.state import Trainings
from serving.object_store import Change, ObjectStore, change_together
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import audit_of
from tests.walks.test_reload import reloadable
from tests.walks.test_retraining import asked, judged, keep_texts, opened, stored
from tests.walks.test_training import PATH, configuration, gateway, trainer

__all__ = ["configuration", "gateway", "trainer"]


async def open_with_examples(running: RunningGateway, http: httpx.AsyncClient) -> str:
    """The id of a request to train, whose twelve examples have texts and demonstrations."""
    for number in range(12):
        name = await asked(http, f"Vase {number}.")
        await judged(http, name, False, demonstration="accept")
        await keep_texts(running, name, f"Vase {number}.")
    await stored(running, 12)
    return str((await opened(http))["id"])


@pytest.mark.parametrize("mode", ["ask", "auto"])
async def test_request_to_train_leads_to_a_data_set_and_with_auto_up_to_the_gate(
    mode: str,
    configuration: dict[str, Any],
    make_adapter: MakeAdapter,
    small: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = {"retraining": mode, "class_tag": "kind"}  # it is not a field of the answers
    configuration["tasks"] = {"returns": {"monitor": monitor, "fallback_pool": "general"}}
    configuration["training"]["rows_min"] = 5
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))
        request = await open_with_examples(running, http)

        async def look() -> dict[str, Any] | None:
            told = (await http.get(f"/admin/v1/retraining/{request}")).json()
            return told if told["evaluation" if mode == "auto" else "dataset"] else None

        told = dict(await until(look))
        assert told["command"] == f"apprentice train returns --data {told['dataset']} --begin returns@v1"
        card = (await http.get(f"/admin/v1/datasets/{told['dataset']}")).json()
        assert card["task"] == "returns"
        datasets = running.features[Datasets]
        assert {build.folder for build in await datasets.builds.all()} == {datasets.name_folder()} != {""}
        if mode == "ask":
            assert (await http.get(PATH)).json()["trainings"] == []
            return
        training = (await http.get(f"{PATH}/{told['training']}")).json()
        assert (training["status"], training["by"], training["version"]) == ("done", "system", "returns@v2")
        evaluation = (await http.get(f"/admin/v1/evaluations/{told['evaluation']}")).json()
        assert (evaluation["version"], set(evaluation["arms"])) == ("returns@v2", {"adapter", "leading"})
        alias = (await http.get("/admin/v1/aliases/returns")).json()
        assert (alias["weights"], alias["canary"]) == ({"returns@v1": 1.0}, None)

        async def read_request() -> dict[str, Any]:
            return dict((await http.get(f"/admin/v1/retraining/{request}")).json())

        monkeypatch.setattr(retraining_steps, "LOOK_AGAIN_SECONDS", 0.2)
        await until(lambda: _note_has(read_request, "returns@v2 was evaluated"))
        store = running.features[Evaluations].store
        done = await store.get(evaluation["id"])
        assert done is not None
        assert await store.move(done, ended_evaluation(done, "failed", "Its report can't be made."), None, None)
        await until(lambda: _note_has(read_request, "is failed: Its report can't be made. Evaluate it by hand."))
        failed = await store.get(evaluation["id"])
        assert failed is not None
        assert await store.move(failed, ended_evaluation(failed, "cancelled"), None, None)
        await until(lambda: _note_has(read_request, "is cancelled. Evaluate it by hand."))


async def test_a_full_disk_halts_a_request_to_train_and_no_other(
    configuration: dict[str, Any], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining_steps, "LOOK_AGAIN_SECONDS", 0.2)
    configuration["tasks"] = {"returns": {"monitor": {"retraining": "ask"}, "fallback_pool": "general"}}
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))
        files = running.features[Datasets].files
        files.parent.mkdir(parents=True, exist_ok=True)
        files.write_text("what no folder can be made of")
        request = await open_with_examples(running, http)

        async def read_request() -> dict[str, Any]:
            return dict((await http.get(f"/admin/v1/retraining/{request}")).json())

        await until(lambda: _note_has(read_request, "make room for data sets"))
        files.unlink()

        async def has_dataset() -> bool:
            return bool((await read_request())["dataset"])

        await until(has_dataset)


async def test_a_task_that_is_removed_while_its_request_goes_on_is_no_fault(
    configuration: dict[str, Any],
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configuration["tasks"] = {"returns": {"monitor": {"retraining": "ask", "class_tag": "kind"}}, "other": {}}
    async with reloadable(configuration, tmp_path) as at:
        await at.gateway.place(make_adapter(1))
        builds = at.gateway.features[Datasets].builds

        async def read_late(*given: Any) -> AsyncIterator[dict[str, Any]]:
            reloaded = await at.reload(lambda content: content["tasks"].pop("returns", None))
            assert reloaded.status_code == 200, reloaded.text
            return give_row()

        async def give_row() -> AsyncIterator[dict[str, Any]]:
            yield {"messages": [{"role": "user", "content": "A vase."}], "expected": '{"kind": "accept"}'}

        monkeypatch.setattr(retraining_steps, "read_rows", read_late)
        await opened(at.http)

        async def find_end() -> bool:
            failed = any(record.exc_info for record in caplog.records)
            return failed or bool(await builds.all())

        await until(find_end)
        assert [build.options.class_field for build in await builds.all()] == ["kind"], caplog.text


async def test_a_version_that_can_not_be_loaded_is_staged_again_but_not_at_once(
    configuration: dict[str, Any], make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration["tasks"] = {"returns": {"monitor": {"retraining": "auto"}, "fallback_pool": "general"}}
    configuration["training"]["rows_min"] = 5
    configuration["pools"]["small"] |= {"max_loras": 1, "max_cpu_loras": 2}  # one place, and one that stays free
    small.max_cpu_loras = 2
    await small.restart()
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))
        request = await open_with_examples(running, http)

        async def read_request() -> dict[str, Any]:
            return dict((await http.get(f"/admin/v1/retraining/{request}")).json())

        async def count_stagings() -> int:
            return sum(entry["object"] == "returns@v2" for entry in await audit_of(http, "adapter.stage"))

        await until(lambda: _note_has(read_request, "no room in the pool small"))
        assert await count_stagings() == 1
        monkeypatch.setattr(retraining_steps, "RESTAGE_SECONDS", 0.0)
        monkeypatch.setattr(retraining_steps, "LOOK_AGAIN_SECONDS", 0.2)

        async def is_staged_again() -> bool:
            return await count_stagings() > 1

        await until(is_staged_again)


async def test_auto_waits_until_there_are_rows_enough_and_builds_the_data_set_again(
    configuration: dict[str, Any], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining_steps, "REBUILD_SECONDS", 0.2)
    monkeypatch.setattr(retraining_steps, "LOOK_AGAIN_SECONDS", 0.2)
    task = {"monitor": {"retraining": "auto"}, "fallback_pool": "general", "texts": {"keep": "all"}}
    configuration["tasks"] = {"returns": task}
    configuration["training"]["rows_min"] = 12
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))

        async def judge(numbers: range) -> None:
            for number in numbers:
                name = await asked(http, f"Vase {number}.")
                await judged(http, name, False, demonstration="accept")
            await stored(running, numbers.stop)
            await until(lambda: not len(running.features[Texts].queue))
            await archive_once(running.services.settings, running.services.meters)

        async def read_request() -> dict[str, Any]:
            return dict((await http.get(f"/admin/v1/retraining/{request}")).json())

        await judge(range(6))
        request = (await opened(http))["id"]
        await until(lambda: _note_has(read_request, "training.rows_min is 12"))
        assert (await read_request())["dataset"] == ""
        await judge(range(6, 24))

        async def is_training() -> bool:
            return bool((await read_request())["training"])

        await until(is_training)
        builds = await running.features[Trainings].datasets.builds.all()
        assert len(builds) > 1
        for build in builds:
            assert (await http.get(f"/admin/v1/datasets/builds/{build.id}")).status_code == 200, build.id


async def test_an_announced_change_keeps_a_request_that_a_slip_opens_from_no_rows(
    configuration: dict[str, Any], make_adapter: MakeAdapter
) -> None:
    configuration["tasks"] = {"returns": {"monitor": {"retraining": "ask"}, "fallback_pool": "general"}}
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))
        path, effective = "/admin/v1/tasks/returns/changed", time.time() + 86_400
        answer = await http.post(path, json={"effective_at": effective, "override": None})
        assert answer.status_code == 200, answer.text
        degradation = (await opened(http))["id"]

        async def find_builds() -> dict[str, float | None] | None:
            builds = {build.id: build.since for build in await running.features[Datasets].builds.all()}
            return builds if len(builds) == 2 else None

        found = dict(await until(find_builds))
    assert found.pop(degradation) < time.time()
    assert list(found.values()) == [effective], "what is trained for the new rules waits for them"


async def _note_has(read_request: Callable[[], Awaitable[dict[str, Any]]], text: str) -> bool:
    return text in (await read_request())["note"]


async def test_a_data_set_of_another_folder_is_left_to_its_gateway_while_that_runs(
    configuration: dict[str, Any], make_adapter: MakeAdapter
) -> None:
    configuration["tasks"] = {"returns": {"monitor": {"retraining": "off"}, "fallback_pool": "general"}}
    async with run_gateway(configuration) as running, running.http() as http:
        await running.place(make_adapter(1))
        trainings, redis = running.features[Trainings], running.services.redis
        request, _ = await trainings.retraining.store.get((await opened(http))["id"])
        assert request is not None
        monitor = running.services.settings.tasks["returns"].monitor.model_copy(update={"retraining": "auto"})
        steps = retraining_steps.RetrainingSteps(trainings, request, monitor)
        await steps.advance()
        (build,) = await trainings.datasets.builds.all()
        elsewhere = msgspec.structs.replace(build, folder="theirs", state="done", digest="0" * 64, created_at=0.0)
        await change_together(redis, [Change(ObjectStore(redis, "dataset_builds"), build.id, to_builtins(elsewhere))])
        await redis.set("apprentice:duty:datasets:theirs", "gateway-2")
        before = await trainings.retraining.store.get(request.id)
        await steps.advance()
        assert await trainings.retraining.store.get(request.id) == before, "rows may be too few, which only they know"
        await redis.delete("apprentice:duty:datasets:theirs")
        await steps.advance()
        assert {each.folder for each in await trainings.datasets.builds.all()} == {"theirs", build.folder}
