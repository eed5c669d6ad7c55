"""Trainings that run elsewhere: launched once, told over HTTP, and their adapters registered as a push would be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.configuration.training import RunnerName
from gateway.features.training import training_run
from gateway.features.training.launching import find_end
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_end import TrainingFault, enter_result
from tests.fakes.adapters import write_adapter
from tests.fakes.applications import run_application
from tests.fakes.certificates import Authority
from tests.fakes.ports import free_port
from tests.fakes.trainer import write_trainer
from tests.fakes.training_runner import TrainingRunner, run_elsewhere
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_training import PATH, begin, data, ended, send

JOB = Path(__file__).parents[2] / "k8s" / "training" / "job.yaml"
RUNNERS = ("webhook", "kubernetes", "ray")


def settings_of(url: str, port: int, folder: Path) -> dict[str, Any]:
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text("a-token")
    (account / "namespace").write_text("apprentice")
    (account / "ca.crt").write_bytes(Authority(folder).ca.read_bytes())
    kubernetes = {"template_file": JOB, "api_url": url, "account_folder": account}
    reached_at = f"http://127.0.0.1:{port}"
    return {"reached_at": reached_at, "kubernetes": kubernetes, "ray_url": url, "webhook_url": f"{url}/hook"}


async def test_each_runner_trains_once_and_its_adapter_is_registered(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    trainer, _ = write_trainer(tmp_path)
    port = free_port()
    with run_elsewhere(tmp_path, trainer) as (url, runner):
        configuration = configure(training=settings_of(url, port, tmp_path), listen={"port": port})
        async with run_gateway(configuration) as running, running.http() as http:
            await running.place(make_adapter(1))
            digest = await send(http, data())
            for seed, name in enumerate(RUNNERS):
                parameters = {"steps": 4, "evaluate_every": 2, "seed": seed}
                begun = await begin(http, digest, runner=name, begin="returns@v1", parameters=parameters)
                told = await ended(http, begun["id"])
                assert (told["status"], told["version"]) == ("done", f"returns@v{seed + 2}"), told["note"]
                assert (told["progress"]["step"], told["result"]["metrics"]["heldout_right"]) == (4, 0.5)
            assert [path.split("/")[1] for path, _ in runner.asked] == ["hook", "apis", "api"]
            provenance = (await http.get("/admin/v1/adapters/returns@v4")).json()["manifest"]["provenance"]
            assert (provenance["begun_from"], provenance["framework"]) == ("returns@v1", "fake 1")


async def test_failed_or_stopped_trainer_leaves_no_version_and_its_key_opens_no_more(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    trainer, plan = write_trainer(tmp_path)
    port = free_port()
    with run_elsewhere(tmp_path, trainer) as (url, runner):
        configuration = configure(training=settings_of(url, port, tmp_path), listen={"port": port})
        async with run_gateway(configuration) as running, running.http() as http:
            await running.place(make_adapter(1))
            digest = await send(http, data())
            plan.write_text('{"fail": "Halve --batch."}')
            failed = await ended(http, (await begin(http, digest, runner="webhook"))["id"])
            assert (failed["status"], failed["note"]) == ("failed", "Halve --batch.")
            plan.write_text('{"wait_at": 2}')
            name = (await begin(http, digest, status=200, runner="webhook"))["id"]
            await until(lambda: len(runner.asked) == 2)
            assert (await http.delete(f"{PATH}/{name}")).json()["status"] == "cancelled"
            await until(lambda: _refused(running.url, runner, name))
            async with running.http(key="") as nobody:
                assert (await nobody.get(f"/v1/trainings/{name}/files/rows.jsonl")).status_code == 401
            assert len((await http.get("/admin/v1/adapters")).json()["adapters"]) == 1


@asynccontextmanager
async def waiting_trainer(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient, TrainingRunner, str]]:
    """A gateway, its admin, and a trainer elsewhere that has begun the training of this id and waits in it."""
    trainer, plan = write_trainer(tmp_path)
    plan.write_text('{"wait_at": 2}')
    port = free_port()
    with run_elsewhere(tmp_path, trainer) as (url, runner):
        configuration = configure(training=settings_of(url, port, tmp_path), listen={"port": port})
        async with run_gateway(configuration) as running, running.http() as http:
            await running.place(make_adapter(1))
            name = (await begin(http, await send(http, data()), runner="webhook"))["id"]
            await until(lambda: runner.asked)
            yield running, http, runner, name


async def test_a_trainer_at_work_goes_on_though_its_runner_is_away_when_a_gateway_starts(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, plan = write_trainer(tmp_path)
    plan.write_text('{"wait_at": 2}')
    with run_elsewhere(tmp_path, trainer) as (url, runner):
        port = free_port()
        settings = settings_of(url, port, tmp_path)
        async with run_gateway(configure(training=settings, listen={"port": port})) as first, first.http() as http:
            await first.place(make_adapter(1))
            name = (await begin(http, await send(http, data()), runner="webhook"))["id"]
            await until(lambda: first.features[Trainings].store.launched(name))
        looked: list[str] = []

        async def look(_: Trainings, training: Training) -> None:
            looked.append(training.id)

        monkeypatch.setattr(training_run, "find_end", look)
        monkeypatch.setattr(training_run, "GRACE_SECONDS", 0.0)
        settings["webhook_url"] = f"http://127.0.0.1:{free_port()}/away"
        async with run_gateway(configure(training=settings, listen={"port": port})) as second, second.http() as http:

            async def read_training() -> dict[str, Any] | None:
                told = (await http.get(f"{PATH}/{name}")).json()
                return told if looked or told["status"] != "running" else None

            told = dict(await until(read_training))
        assert (told["status"], looked, len(runner.asked)) == ("running", [name], 1), told["note"]


async def test_adapter_that_comes_after_its_training_was_stopped_is_no_version(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    async with waiting_trainer(configure, make_adapter, tmp_path) as (running, http, runner, name):
        before, _ = await running.features[Trainings].store.get(name)
        assert before is not None

        async def upload() -> AsyncIterator[bytes]:
            parts = [_part(path) for path in write_adapter(tmp_path / "late", seed=7).iterdir()]
            yield b"".join(parts)
            assert (await http.delete(f"{PATH}/{name}")).json()["status"] == "cancelled"
            yield b"--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with running.http(key=runner.asked[-1][1]["token"]) as sending:
            late = await sending.post(f"/v1/trainings/{name}/result", content=upload(), headers=headers)
        assert (late.status_code, late.json()["error"]["code"]) == (409, "state_conflict")
        with pytest.raises(TrainingFault, match="runs no more"):
            await enter_result(running.features[Trainings], before, tmp_path / "late", {})
        assert len((await http.get("/admin/v1/adapters")).json()["adapters"]) == 1


def _part(path: Path) -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{path.name}"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + b"\r\n"


async def test_points_of_a_trainer_without_all_figures_can_be_read(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    async with waiting_trainer(configure, make_adapter, tmp_path) as (running, http, runner, name):
        address = f"/v1/trainings/{name}/messages"
        async with running.http(key=runner.asked[-1][1]["token"]) as sending:
            for told in ({"kind": "step"}, {"kind": "step", "step": 50}, {"kind": "heldout", "step": 50}):
                assert (await sending.post(address, json=told)).status_code == 200, told
            deep = b'{"kind": "started", "of": ' + b"[" * 300 + b"]" * 300 + b"}"
            headers = {"content-type": "application/json"}
            for wrong in (b'{"kind": "step", "loss": NaN}', b'{"kind": "step", "seconds_each": "slow"}', deep):
                refused = await sending.post(address, content=wrong, headers=headers)
                assert (refused.status_code, "JSON object" in refused.text) == (400, False), wrong
        progress = (await http.get(f"{PATH}/{name}")).json()["progress"]
        assert (progress["step"], progress["heldout"][-1]) == (50, [50, 0.0, 0.0])
        assert (await http.get(f"{PATH}/{name}/plot")).status_code == 200


@pytest.mark.parametrize("body", [b"<html>Sign in.</html>", b"[]", b'"gone"', b'{"status": 1}'])
async def test_answer_of_a_proxy_before_ray_ends_no_training(configure: Configure, tmp_path: Path, body: bytes) -> None:
    assert await end_told(configure, tmp_path, "ray", "/api/jobs/{job}", body) is None


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("Suspended", None),
        ("FailureTarget", None),
        ("SuccessCriteriaMet", None),
        ("Complete", "Its Job is complete"),
        ("Failed", "Its Job failed (None: None)"),
    ],
)
async def test_a_job_that_is_suspended_or_about_to_end_has_not_ended(
    configure: Configure, tmp_path: Path, kind: str, end: str | None
) -> None:
    body = json.dumps({"status": {"conditions": [{"type": kind, "status": "True"}]}}).encode()
    address = "/apis/batch/v1/namespaces/apprentice/jobs/{job}"
    told = await end_told(configure, tmp_path, "kubernetes", address, body)
    assert told == end or (end is not None and told is not None and told.startswith(end))


async def end_told(configure: Configure, tmp_path: Path, runner: RunnerName, address: str, body: bytes) -> str | None:
    """The end of a training as a gateway finds it, whose runner answers with this body at this address."""

    async def answer(_: Request) -> Response:
        return Response(body)

    async with (
        run_application(Starlette(routes=[Route(address, answer)])) as url,
        run_gateway(configure(training=settings_of(url, 1, tmp_path))) as running,
    ):
        training = Training(
            id="t", task="returns", pool="small", data="d", runner=runner, place="", parameters={}, manifest={}
        )
        return await find_end(running.features[Trainings], training)


async def _refused(url: str, runner: TrainingRunner, name: str) -> bool:
    headers = {"Authorization": f"Bearer {runner.asked[-1][1]['token']}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as http:
        answer = await http.post(f"/v1/trainings/{name}/messages", json={"kind": "step", "step": 3, "loss": 0.1})
        return answer.status_code == 401


@pytest.mark.parametrize("name", ["job.yaml", "access.yaml"])
def test_what_jobs_need_is_valid_for_the_api(name: str) -> None:
    import kubernetes_validate  # 2 s, for this test alone

    for described in yaml.safe_load_all((JOB.parent / name).read_text()):
        kubernetes_validate.validate(described, "1.37", strict=True)
