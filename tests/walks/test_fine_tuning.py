"""Fine-tuning by OpenAI's own client, over a real gateway, with a trainer that speaks as the real one does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.fine_tuning import FineTuningJob

from gateway.features.fine_tuning.job_view import list_checkpoints
from gateway.features.training.store import Training
from tests.fakes.trainer import write_trainer
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import audit_of

NO_FILE = "file-" + "0" * 64


def rows_of(count: int, answer: str = "yes") -> bytes:
    rows = (
        {
            "messages": [
                {"role": "system", "content": "Decide."},
                {"role": "user", "content": f"Item {number}"},
                {"role": "assistant", "content": answer},
            ]
        }
        for number in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def configuration(configure: Configure, tmp_path: Path) -> dict[str, Any]:
    parameters = {"evaluate_every": 3, "heldout_share": 0.25}
    return configure(training={"python": write_trainer(tmp_path)[0], "parameters": parameters})


@pytest.fixture
async def bare_gateway(configuration: dict[str, Any]) -> AsyncIterator[RunningGateway]:
    async with run_gateway(configuration) as running:
        yield running


@pytest.fixture
async def gateway(bare_gateway: RunningGateway, make_adapter: MakeAdapter) -> RunningGateway:
    await bare_gateway.place(make_adapter(1))
    return bare_gateway


@pytest.fixture
async def client(bare_gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    async with bare_gateway.openai() as client:
        client.base_url = f"{bare_gateway.url}/admin/v1"
        yield client


async def send(client: AsyncOpenAI, rows: bytes, name: str = "rows.jsonl") -> str:
    return (await client.files.create(file=(name, rows), purpose="fine-tune")).id


async def ended(client: AsyncOpenAI, job: FineTuningJob) -> FineTuningJob:
    async def look() -> FineTuningJob | None:
        told = await client.fine_tuning.jobs.retrieve(job.id)
        return told if told.status in ("succeeded", "failed", "cancelled") else None

    return await until(look)


async def test_a_job_of_openais_client_becomes_a_version_that_answers(
    gateway: RunningGateway, client: AsyncOpenAI
) -> None:
    file = await send(client, rows_of(40), "sént.jsonl")
    job = await client.fine_tuning.jobs.create(
        model="returns",
        training_file=file,
        seed=3,
        suffix="spring",
        metadata={"ticket": "7"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 10, "learning_rate_multiplier": 0.5}},
        },
    )
    assert (job.status in ("validating_files", "queued", "running"), job.fine_tuned_model) == (True, None)
    job = await ended(client, job)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", "returns@v2", None)
    assert (job.model, job.training_file, job.seed, job.metadata) == ("returns", file, 3, {"ticket": "7"})
    assert job.hyperparameters.n_epochs == 2

    async with gateway.http() as http:
        training = (await http.get(f"/admin/v1/trainings/{job.id.removeprefix('ftjob-')}")).json()
        used = [training["parameters"][name] for name in ("steps", "batch", "learning_rate", "warmup_steps")]
        assert used == [6, 10, 0.0005, 0]
    events = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert [event.message for event in events][:1] == ["The new version is returns@v2."]
    assert [event.data["step"] for event in events if event.type == "metrics"] == [6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]  # type: ignore[index]
    assert events[-1].message == "The training of returns has begun."
    (checkpoint,) = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert (checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.full_valid_loss) == ("returns@v2", 0.2)

    async def answer() -> str | None:
        try:
            async with gateway.openai() as caller:
                said = [{"role": "user", "content": "Item 1"}]
                return (await caller.chat.completions.create(model="returns@v2", messages=said)).model  # type: ignore[arg-type]
        except openai.InternalServerError:  # 503: it is being loaded
            return None

    assert await until(answer) == "returns@v2"


async def test_a_tasks_first_version_needs_no_manifest(bare_gateway: RunningGateway, client: AsyncOpenAI) -> None:
    job = await client.fine_tuning.jobs.create(model="returns", training_file=await send(client, rows_of(40)))
    assert (await ended(client, job)).fine_tuned_model == "returns@v1"
    async with bare_gateway.http() as http:
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
    assert (manifest["general_prompt"]["system"], manifest["contract"]) == ("Decide.", {"choices": ["yes"]})
    again = await client.fine_tuning.jobs.create(model="returns", training_file=job.training_file)
    assert (again.id, again.fine_tuned_model) == (job.id, "returns@v1")  # though there is a manifest by now


async def test_a_job_of_texts_with_characters_that_yaml_lacks_becomes_a_version(
    bare_gateway: RunningGateway, client: AsyncOpenAI
) -> None:
    system = "Don\x92t guess.\x7f\x85\uffff"
    file = await send(client, rows_of(40).replace(b"Decide.", json.dumps(system)[1:-1].encode()))
    job = await ended(client, await client.fine_tuning.jobs.create(model="returns", training_file=file))
    assert (job.fine_tuned_model, job.error) == ("returns@v1", None)
    async with bare_gateway.http() as http:
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
    assert manifest["general_prompt"]["system"] == system


@pytest.mark.usefixtures("gateway")
async def test_a_validation_file_is_what_is_held_out(gateway: RunningGateway, client: AsyncOpenAI) -> None:
    train, heldout = await send(client, rows_of(12)), await send(client, rows_of(7, "no"))
    job = await client.fine_tuning.jobs.create(
        model="returns@v1",
        training_file=train,
        validation_file=heldout,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
    )
    job = await ended(client, job)
    assert (job.status, job.validation_file, job.model) == ("succeeded", heldout, "returns@v1")
    async with gateway.http() as http:
        training = (await http.get(f"/admin/v1/trainings/{job.id.removeprefix('ftjob-')}")).json()
    prepared = training["progress"]["prepared"]
    assert (prepared["rows"], prepared["heldout"], training["parameters"]["steps"]) == (12, 7, 3)
    assert training["begin"] == "returns@v1"


async def test_files_are_listed_read_and_deleted(bare_gateway: RunningGateway, client: AsyncOpenAI) -> None:
    first, second = await send(client, rows_of(3), "a.jsonl"), await send(client, rows_of(4), "bé.jsonl")
    assert await send(client, rows_of(3), "a.jsonl") == first
    assert {file.id: file.filename async for file in client.files.list()} == {first: "a.jsonl", second: "bé.jsonl"}
    assert [file.id async for file in client.files.list(limit=1)] != []
    file = await client.files.retrieve(second)
    assert (file.bytes, file.purpose, file.status) == (len(rows_of(4)), "fine-tune", "processed")
    assert (await client.files.content(second)).content == rows_of(4)
    assert (await client.files.delete(second)).deleted
    with pytest.raises(openai.NotFoundError, match="send it again"):
        await client.files.retrieve(second)
    async with bare_gateway.http() as http:
        given, deleted = [await audit_of(http, f"file.{step}") for step in ("give", "delete")]
        assert [f"file-{entry['object']}" for entry in (*given, *deleted)] == [second, second]


async def test_a_job_that_runs_can_be_cancelled_and_keeps_its_file(
    gateway: RunningGateway, client: AsyncOpenAI, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text('{"wait_at": 2}')
    file = await send(client, rows_of(40))
    job = await client.fine_tuning.jobs.create(model="returns", training_file=file)
    with pytest.raises(openai.ConflictError, match="end that first"):
        await client.files.delete(file)
    assert (await client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="has ended"):
        await client.fine_tuning.jobs.cancel(job.id)
    assert [each.id async for each in client.fine_tuning.jobs.list(limit=1)] == [job.id]
    assert (await client.fine_tuning.jobs.list_events(job.id)).data[0].level == "warn"


@pytest.mark.usefixtures("gateway")
async def test_a_job_that_fails_says_why(client: AsyncOpenAI, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"fail": "Out of memory: lower batch."}')
    job = await client.fine_tuning.jobs.create(model="returns", training_file=await send(client, rows_of(40)))
    job = await ended(client, job)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.message) == (
        "failed",
        "training_failed",
        "Out of memory: lower batch.",
    )
    assert (await client.fine_tuning.jobs.list_events(job.id)).data[0].level == "error"


@pytest.mark.usefixtures("gateway")
async def test_what_cant_be_done_is_told_by_its_field(client: AsyncOpenAI) -> None:
    file = await send(client, rows_of(5))
    jobs = client.fine_tuning.jobs
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": "unknown", "training_file": file}, "model"),
        ({"model": "returns@v9", "training_file": file}, "model"),
        ({"model": "returns", "training_file": NO_FILE}, "training_file"),
        ({"model": "returns", "training_file": "file-abc"}, "training_file"),
        ({"model": "returns", "training_file": file, "validation_file": NO_FILE}, "validation_file"),
        ({"model": "returns", "training_file": file, "method": {"type": "dpo"}}, "method"),
        ({"model": "returns", "training_file": file, "integrations": [{"type": "wandb", "wandb": {}}]}, "integrations"),
        ({"model": "returns", "training_file": file, "hyperparameters": {"n_epochs": 0}}, "n_epochs"),
    ]
    for fields, told in refused:
        with pytest.raises(openai.APIStatusError) as refusal:
            await jobs.create(**fields)
        assert refusal.value.status_code in (400, 404), (fields, refusal.value)
        assert told in str(refusal.value.param), (fields, refusal.value)
    assert refusal.value.param == "hyperparameters.n_epochs"
    assert "hyperparameters.n_epochs: auto or a whole number from 1 to 1000 is needed." in str(refusal.value)


async def test_forms_that_are_not_one_file_are_refused(bare_gateway: RunningGateway) -> None:
    path, whole = "/admin/v1/files", {"file": ("a.jsonl", rows_of(2))}
    async with bare_gateway.http() as http:
        answers = [
            await http.post(path, data={"purpose": "batch"}, files=whole),
            await http.post(path, files=whole),
            await http.post(path, data={"purpose": "fine-tune", "other": "x"}, files=whole),
            await http.post(path, data={"purpose": "fine-tune"}, files={"rows": ("a.jsonl", rows_of(2))}),
            await http.post(path, data={"purpose": "fine-tune"}, files=[("file", ("a", b"1")), ("file", ("b", b"2"))]),
            await http.post(path, data={"purpose": "x" * 2000}, files=whole),
            await http.post(path, data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"")}),
            await http.post(path, content=b"--b\r\n", headers={"content-type": "multipart/form-data; boundary=b"}),
            await http.post(path, content=rows_of(2), headers={"content-type": "application/x-ndjson"}),
            await http.post(path, data={"purpose": "fine-tune"}, files={"file": ("a", b"x")}, headers={"x": "y"}),
        ]
        assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 400, 400, 400, 400, 415, 200]
        params = [answer.json()["error"]["param"] for answer in answers[:6]]
        assert params == ["purpose", "purpose", "other", "file", "file", "purpose"]
        kept = (await http.get(path)).json()["data"]
        assert [file["bytes"] for file in kept] == [1], "a refused file is not kept"
        caller = await bare_gateway.key()
        async with bare_gateway.http(caller) as other:
            refused = await other.post(path, data={"purpose": "fine-tune"}, files=whole)
            assert refused.status_code == 403


def test_checkpoint_of_a_trainer_that_tells_no_metrics_can_be_read() -> None:
    training = Training(
        id="t",
        task="returns",
        pool="small",
        data="d",
        runner="webhook",
        place="",
        parameters={},
        manifest={},
        result={"kind": "ended", "metrics": None},
        version="returns@v2",
    )
    (checkpoint,) = list_checkpoints(training)
    assert checkpoint["metrics"] == {"step": 0, "full_valid_loss": None}
