"""Trainings over a real gateway, with a trainer that speaks as the real one does: begun, resumed, registered once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.configuration.training import TrainingParameters
from gateway.features.datasets.state import Build, Datasets
from gateway.features.erasures import job
from gateway.features.erasures.job import list_versions_of
from gateway.features.erasures.state import Erasures
from gateway.features.records.append_file_rewrites import rewrite_now
from gateway.features.releases.adding import Pusher
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_end import end_training
from gateway.features.training.training_run import LocalRun
from gateway.features.training.training_start import WantedTraining, begin_run, draft_training
from gateway.state.audited_step import AuditedStep
from gateway.state.snapshot import object_store_of
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.rows_from_files import SourceFile
from serving.object_store import ObjectStore, Stale
from tests.fakes.trainer import write_trainer
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.console_browsing import browsing, take
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import audit_of

PATH = "/admin/v1/trainings"


def data(count: int = 40, answer: str = "yes") -> bytes:
    rows = (
        {"messages": [{"role": "user", "content": f"Item {n}"}, {"role": "assistant", "content": answer}]}
        for n in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def trainer(tmp_path: Path) -> tuple[Path, Path]:
    return write_trainer(tmp_path)


@pytest.fixture
def configuration(configure: Configure, trainer: tuple[Path, Path]) -> dict[str, Any]:
    return configure(training={"python": trainer[0]})


@pytest.fixture
async def gateway(configuration: dict[str, Any], make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    async with run_gateway(configuration) as running:
        await running.place(make_adapter(1))
        yield running


async def send(http: httpx.AsyncClient, rows: bytes) -> str:
    answer = await http.post("/admin/v1/datasets/files", content=rows)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["digest"])


async def begin(http: httpx.AsyncClient, digest: str, status: int = 201, **fields: Any) -> dict[str, Any]:
    fields = {"task": "returns", "data": digest, "parameters": {"steps": 6, "evaluate_every": 3}, **fields}
    answer = await http.post(PATH, json=fields)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def ended(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        told = (await http.get(f"{PATH}/{name}")).json()
        return told if told["status"] != "running" else None

    return dict(await until(look))


async def test_file_becomes_a_version_with_provenance_and_the_same_again_is_it(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        digest = await send(http, data())
        begun = await begin(http, digest)
        told = await ended(http, begun["id"])
        assert (told["status"], told["version"], told["note"]) == ("done", "returns@v2", "")
        assert told["progress"]["prepared"] == {
            "kind": "prepared",
            "rows": 36,
            "heldout": 4,
            "rehearsed": 0,
            "older": [],
            "error": "",
        }
        assert [step for step, _ in told["progress"]["losses"]] == [1, 2, 3, 4, 5, 6]
        version = (await http.get("/admin/v1/adapters/returns@v2")).json()
        provenance = version["manifest"]["provenance"]
        assert (provenance["dataset"], provenance["training"], provenance["seed"]) == (digest, begun["id"], 7)
        assert provenance["code"].startswith("sha256:")
        assert provenance["parameters"]["steps"] == 6
        assert version["manifest"]["golden"] == [{"prompt": "A toaster, sealed, after 3 days.", "expected": None}]
        assert (version["state"], version["rank"]) == ("verified", 8)
        assert (await begin(http, digest, status=200))["version"] == "returns@v2"
        picture = await http.get(f"{PATH}/{begun['id']}/plot")
        assert picture.headers["content-type"] == "image/svg+xml"
        assert "held-out loss" in picture.text
        await until(lambda: audit_of(http, "training.end"))
        assert [len(await audit_of(http, f"training.{step}")) for step in ("begin", "end")] == [1, 1]


async def test_same_training_that_several_begin_at_once_is_begun_once(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        trainings = gateway.features[Trainings]
        parameters = TrainingParameters().model_dump() | {"steps": 6}
        wanted = WantedTraining("returns", await send(http, data()), parameters)
        draft = await draft_training(trainings, wanted, Pusher("x", None))
        begun = await asyncio.gather(*(begin_run(trainings, draft) for _ in range(4)))
        assert sorted(is_known for _, is_known in begun) == [False, True, True, True]
        told = await ended(http, draft.id)
        assert (told["status"], told["version"]) == ("done", "returns@v2")
        assert len(await audit_of(http, "training.begin")) == 1


async def test_training_that_ends_while_it_is_begun_again_keeps_its_progress(
    gateway: RunningGateway, trainer: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer[1].write_text('{"wait_at": 3}')
    async with gateway.http() as http:
        name = (await begin(http, await send(http, data())))["id"]
        await until(lambda: _step_of(http, name, 3))
        trainings = gateway.features[Trainings]
        running, generation = await trainings.store.get(name)
        assert running is not None
        await end_training(trainings, running, "failed", "Out of memory.")

        async def get_late(_: str) -> tuple[Training | None, int]:
            monkeypatch.undo()
            return running, generation

        monkeypatch.setattr(trainings.store, "get", get_late)
        with pytest.raises(Stale):
            await begin_run(trainings, running, again=True)
        assert (await trainings.store.progress(name))["prepared"]["rows"] == 36


async def test_another_manifest_is_another_training_and_the_version_has_it(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        digest = await send(http, data())
        first = await ended(http, (await begin(http, digest))["id"])
        manifest = (await http.get(f"/admin/v1/adapters/{first['version']}")).json()["manifest"]
        manifest |= {"contract": {"choices": ["yes", "no"]}}
        second = await ended(http, (await begin(http, digest, manifest=manifest))["id"])
        assert (second["status"], second["version"]) == ("done", "returns@v3")
        made = (await http.get("/admin/v1/adapters/returns@v3")).json()["manifest"]
        assert made["contract"]["choices"] == ["yes", "no"]
        assert (await begin(http, digest, status=200, manifest=manifest))["id"] == second["id"]


@pytest.mark.parametrize("golden", [[7], [{"expected": "x"}], 7])
async def test_golden_prompts_of_a_manifest_that_are_none_are_told(gateway: RunningGateway, golden: Any) -> None:
    async with gateway.http() as http:
        digest = await send(http, data())
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
        error = (await begin(http, digest, 400, manifest={**manifest, "golden": golden}))["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "manifest")
    assert "golden" in error["message"]


async def test_manifest_that_is_too_large_for_its_file_is_refused_before_the_training(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        digest = await send(http, data())
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
        manifest["general_prompt"]["system"] = "決" * 90_000
        error = (await begin(http, digest, 400, manifest=manifest))["error"]
    assert (error["param"], "over the limit" in error["message"]) == ("manifest", True)


async def test_trainer_renders_prompts_as_the_version_will_be_served(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        trainings, digest = gateway.features[Trainings], await send(http, data())
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
        manifest["sampling"] = {"chat_template_kwargs": {"enable_thinking": False}}
        wanted = WantedTraining("returns", digest, TrainingParameters().model_dump(), manifest=manifest)
        draft = await draft_training(trainings, wanted, Pusher("x", None))
        assert json.loads(LocalRun(trainings, draft).job()["template"]) == {"enable_thinking": False}


async def test_manifest_of_an_earlier_release_trains_the_next_version(gateway: RunningGateway) -> None:
    redis = gateway.services.redis
    written = json.loads(await redis.hget("apprentice:versions", "returns@v1") or "")
    written["manifest"]["blueprint"] = prompt = written["manifest"].pop("general_prompt")
    await object_store_of(redis, "versions").put("returns@v1", written)
    await gateway.services.snapshot.refresh()
    async with gateway.http() as http:
        told = await ended(http, (await begin(http, await send(http, data())))["id"])
        assert (told["status"], told["version"]) == ("done", "returns@v2"), told["note"]
        assert (await http.get("/admin/v1/adapters/returns@v2")).json()["manifest"]["general_prompt"] == prompt


async def test_a_building_leaves_the_file_that_a_training_waits_for(gateway: RunningGateway) -> None:
    redis, datasets = gateway.services.redis, gateway.features[Datasets]
    turn = f"apprentice:duty:training-{gateway.features[Trainings].place}"
    async with gateway.http() as http:
        digest = await send(http, data())
        await redis.set(turn, "another gateway")
        begun = await begin(http, digest)
        build = Build(
            id="r1-2.rows",
            task="returns",
            by="system",
            created_at=1.0,
            files=[SourceFile("cases.jsonl", str(datasets.files / digest), {})],
            options=DatasetOptions(),
            since=None,
            until=1.0,
        )
        step = AuditedStep(redis, gateway.services.control.audit, "system")
        step.note("dataset.build", "returns")
        await datasets.builds.begin(build, step)
        await gateway.services.snapshot.refresh()

        async def is_built() -> bool:
            answer = await http.get(f"/admin/v1/datasets/builds/{build.id}")
            assert answer.status_code == 200, answer.text
            return bool(answer.json()["state"] == "done")

        await until(is_built)
        await until(lambda: audit_of(http, "building.done"))
        await redis.delete(turn)
        assert (await ended(http, begun["id"]))["status"] == "done"


async def test_trainer_that_is_killed_goes_on_from_its_checkpoint(
    gateway: RunningGateway, trainer: tuple[Path, Path]
) -> None:
    trainer[1].write_text('{"die_at": 4}')
    async with gateway.http() as http:
        told = await ended(http, (await begin(http, await send(http, data())))["id"])
        assert (told["status"], told["progress"]["started"]["from_step"]) == ("done", 4)
        assert [step for step, _ in told["progress"]["losses"]] == [1, 2, 3, 4, 5, 6]


async def test_training_goes_on_with_the_next_gateway_and_is_registered_once(
    configuration: dict[str, Any], make_adapter: MakeAdapter, trainer: tuple[Path, Path]
) -> None:
    admin_key, _, name = await _stop_gateway_at_step_4(configuration, make_adapter, trainer)
    async with run_gateway(configuration, admin_key) as second, second.http() as http:
        told = await ended(http, name)
        assert (told["status"], told["version"]) == ("done", "returns@v2")
        assert told["progress"]["started"]["from_step"] == 4
        assert len((await http.get("/admin/v1/adapters")).json()["adapters"]) == 2


async def test_training_of_a_task_that_is_gone_says_so_and_goes_on_once_it_is_back(
    configuration: dict[str, Any], make_adapter: MakeAdapter, trainer: tuple[Path, Path]
) -> None:
    admin_key, digest, name = await _stop_gateway_at_step_4(configuration, make_adapter, trainer)
    without = configuration | {"tasks": {"claims": {}}}
    async with run_gateway(without, admin_key) as second, second.http() as http:
        told = await ended(http, name)
        note = "The configuration has no task 'returns' any more: add it, and train again."
        assert (told["status"], told["note"]) == ("failed", note)
    async with run_gateway(configuration, admin_key) as third, third.http() as http:
        await begin(http, digest, status=200)
        told = await ended(http, name)
        assert (told["version"], told["progress"]["started"]["from_step"]) == ("returns@v2", 4)


async def test_training_from_a_version_that_can_not_be_read_begins_no_fresh_adapter(
    configuration: dict[str, Any], make_adapter: MakeAdapter, trainer: tuple[Path, Path], redis: Redis
) -> None:
    admin_key, _, name = await _stop_gateway_at_step_4(configuration, make_adapter, trainer, begin="returns@v1")
    await redis.hset(ObjectStore(redis, "versions").values, "returns@v1", b"{")
    async with run_gateway(configuration, admin_key) as second, second.http() as http:
        told = await ended(http, name)
        assert (told["status"], "returns@v1" in told["note"]) == ("failed", True)


async def _stop_gateway_at_step_4(
    configuration: dict[str, Any], make_adapter: MakeAdapter, trainer: tuple[Path, Path], **fields: Any
) -> tuple[str, str, str]:
    """Stop a gateway in the middle of a training, which would go on now: the admin's key, the data's digest, its id."""
    trainer[1].write_text('{"wait_at": 4}')
    async with run_gateway(configuration) as first:
        await first.place(make_adapter(1))
        async with first.http() as http:
            digest = await send(http, data())
            name = (await begin(http, digest, **fields))["id"]
            await until(lambda: _step_of(http, name, 4))
    trainer[1].unlink()
    return first.admin_key, digest, name


async def _step_of(http: httpx.AsyncClient, name: str, step: int) -> bool:
    return bool((await http.get(f"{PATH}/{name}")).json()["progress"]["step"] == step)


async def test_failure_is_told_as_advice_and_the_same_command_goes_on(
    gateway: RunningGateway, trainer: tuple[Path, Path]
) -> None:
    trainer[1].write_text('{"fail": "The memory was not enough: halve --batch."}')
    async with gateway.http() as http:
        digest = await send(http, data())
        told = await ended(http, (await begin(http, digest))["id"])
        assert (told["status"], told["note"]) == ("failed", "The memory was not enough: halve --batch.")
        assert (await http.get("/admin/v1/adapters")).json()["adapters"][-1]["version"] == "returns@v1"
        again = await begin(http, digest, status=200)
        assert (await ended(http, again["id"]))["version"] == "returns@v2"


async def test_stopped_training_leaves_no_version_and_no_texts(
    gateway: RunningGateway, trainer: tuple[Path, Path], configuration: dict[str, Any]
) -> None:
    trainer[1].write_text('{"wait_at": 2}')
    folder = Path(configuration["data_folder"]) / "trainings"
    async with gateway.http() as http:
        name = (await begin(http, await send(http, data())))["id"]
        await until(lambda: _step_of(http, name, 2))
        assert list(folder.glob("*/rows.jsonl"))
        async with browsing(gateway, gateway.admin_key) as browser:
            page = await browser.get(f"/console/trainings/{name}")
            assert ("2 of 6" in page.text, "Stop the training" in page.text, "<polyline" in page.text) == (True,) * 3
            assert f"/console/trainings/{name}" in (await browser.get("/console/datasets")).text
            stopped = await take(browser, f"/console/do/stop-training?training={name}")
            assert (stopped.status_code, "Stop the training</a>" in stopped.text) == (200, False), stopped.text
        await until(lambda: not list(folder.glob("*/rows.jsonl")))
        assert len((await http.get("/admin/v1/adapters")).json()["adapters"]) == 1


@pytest.mark.parametrize(
    ("name", "begin_of_id"), [("request", "r"), ("id", "0190aaaa-0000-7000-8000-000000000000-00000000000000")]
)
async def test_a_version_is_named_when_rows_of_its_file_are_forgotten(
    gateway: RunningGateway, name: str, begin_of_id: str
) -> None:
    lines = enumerate(data().splitlines())
    rows = (json.dumps({**json.loads(line), name: f"{begin_of_id}{n:02}"}) for n, line in lines)
    async with gateway.http() as http:
        digest = await send(http, "\n".join(rows).encode())
        told = await ended(http, (await begin(http, digest))["id"])
        erasure = (await http.post("/admin/v1/erasures", json={"request": f"{begin_of_id}03"})).json()["id"]
        done = await until(lambda: _erased(http, erasure))
    assert done["datasets"] == [{"digest": digest, "requests": 1, "rows": 0}]
    assert done["versions"] == [told["version"]]


@pytest.mark.parametrize(("plan", "status"), [({"wait_at": 4}, "cancelled"), ({"fail": "No memory."}, "failed")])
async def test_erased_rows_stop_their_training_and_what_it_learned_goes(
    gateway: RunningGateway,
    trainer: tuple[Path, Path],
    plan: dict[str, Any],
    status: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer[1].write_text(json.dumps(plan))
    faults: list[RedisError | None] = [RedisError("away"), None]  # the erasure is done twice

    async def rewrite(redis: Redis) -> str | None:
        if fault := faults.pop(0):
            raise fault
        return await rewrite_now(redis)

    monkeypatch.setattr(job, "rewrite_now", rewrite)
    async with gateway.http() as http:
        named = b"".join(
            json.dumps({**json.loads(line), "request": f"r{number}"}).encode() + b"\n"
            for number, line in enumerate(data().splitlines())
        )
        name = (await begin(http, await send(http, named)))["id"]
        await (until(lambda: _step_of(http, name, 4)) if "wait_at" in plan else ended(http, name))
        folders = gateway.services.settings.training_folder
        assert [path for path in folders.iterdir() if path.name.startswith(name)]
        erasure = (await http.post("/admin/v1/erasures", json={"request": "r3"})).json()["id"]
        done = await until(lambda: _erased(http, erasure))
        assert (done["trained"], done["trainings"]) == (1, [name])
        assert (await ended(http, name))["status"] == status
        await until(lambda: not [path for path in folders.iterdir() if path.name.startswith(name)])


async def test_what_an_erasure_has_stopped_begins_anew_without_what_it_had_learned(
    gateway: RunningGateway, trainer: tuple[Path, Path]
) -> None:
    trainer[1].write_text('{"wait_at": 4}')
    turn = f"apprentice:duty:training-{gateway.features[Trainings].place}"
    rows = b"".join(
        json.dumps({**json.loads(line), "request": f"r{number:02}"}).encode() + b"\n"
        for number, line in enumerate(data().splitlines())
    )
    async with gateway.http() as http:
        digest = await send(http, rows)
        name = (await begin(http, digest))["id"]
        await until(lambda: _step_of(http, name, 4))
        await gateway.services.redis.set(turn, "another gateway")  # which removes no folder meanwhile
        erasure = (await http.post("/admin/v1/erasures", json={"request": "r03"})).json()["id"]
        assert (await until(lambda: _erased(http, erasure)))["trainings"] == [name]
        assert (await ended(http, name))["status"] == "cancelled"
        trainer[1].unlink()
        await begin(http, digest, status=200)
        await gateway.services.redis.delete(turn)
        told = await ended(http, name)
        assert (told["status"], told["progress"]["started"]["from_step"]) == ("done", 0)
        assert told["progress"]["prepared"]["rows"] + told["progress"]["prepared"]["heldout"] == 39


async def _erased(http: httpx.AsyncClient, erasure: str) -> dict[str, Any] | None:
    told = (await http.get(f"/admin/v1/erasures/{erasure}")).json()
    return told if told["state"] == "done" else None


async def test_folder_of_a_training_that_a_newer_release_wrote_stays(gateway: RunningGateway) -> None:
    trainings = gateway.features[Trainings]
    await gateway.services.redis.hset("apprentice:trainings", "newer", b'{"id": 1}')
    for name in ("newer-1", "gone-1"):
        (trainings.folder / name).mkdir()
    async with gateway.http() as http:
        await ended(http, (await begin(http, await send(http, data())))["id"])
    await until(lambda: not (trainings.folder / "gone-1").exists())
    assert (trainings.folder / "newer-1").exists()


async def test_what_is_wrong_is_said_before_anything_runs_or_with_its_line(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        digest = await send(http, data())
        assert "There is no data set" in (await begin(http, "0" * 64, 404))["error"]["message"]
        assert "max_lora_rank" in (await begin(http, digest, 400, parameters={"rank": 512}))["error"]["message"]
        assert (await begin(http, digest, 404, begin="returns@v9"))["error"]["param"] == "begin"
        assert (await begin(http, digest, 404, task="refunds"))["error"]["param"] == "task"
        broken = data(3) + b'{"messages": []}\n'
        told = await ended(http, (await begin(http, await send(http, broken)))["id"])
        assert told["status"] == "failed"
        assert told["note"].startswith("Line 4: ")


async def test_older_data_is_rehearsed_but_for_requests_that_have_a_new_answer(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        first = await begin(http, await send(http, data(60, "old")))
        await ended(http, first["id"])
        shares = {"steps": 6, "rehearsal_share": 0.5, "heldout_share": 0.0}
        second = await begin(http, await send(http, data(40, "new")), parameters=shares)
        told = await ended(http, second["id"])
        prepared = told["progress"]["prepared"]
        assert (prepared["rows"], prepared["rehearsed"]) == (40, 20)
        version = (await http.get(f"/admin/v1/adapters/{told['version']}")).json()
        assert version["manifest"]["provenance"]["rehearsed"] == [first["data"]]
        versions = sorted(str(one["version"]) for one in (await ended(http, first["id"]), told))
    assert list_versions_of(gateway.features[Erasures], {str(first["data"])}) == versions


async def test_rows_of_the_version_that_a_training_begins_from_are_rehearsed(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    async with gateway.http() as http:
        older = await send(http, data(60, "old"))
        adapter = make_adapter(2)
        manifest = yaml.safe_load((adapter / "manifest.yaml").read_text()) | {"provenance": {"dataset": older}}
        (adapter / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        await gateway.place(adapter)
        shares = {"steps": 6, "rehearsal_share": 0.5, "heldout_share": 0.0}
        digest = await send(http, data(40, "new"))
        told = await ended(http, (await begin(http, digest, begin="returns@v2", parameters=shares))["id"])
        assert (told["progress"]["prepared"]["rehearsed"], told["progress"]["prepared"]["older"]) == (20, [older])
