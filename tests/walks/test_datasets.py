"""Data sets of a live gateway's requests: what people confirmed or corrected goes in, and what nobody did does not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.background import jobs
from gateway.features.datasets import endpoints, job
from gateway.features.datasets.state import Build, Datasets
from gateway.features.records.archiving import archive_once
from gateway.features.texts.state import Texts
from gateway.state.audited_step import AuditedStep
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.folder import CARD_FILE
from monitoring.datasets.rows_from_files import SourceFile
from monitoring.evaluation.dataset import row_of
from tests.fakes.answers import Called
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import run
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.console_browsing import browsing
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import audit_of

PATH = "/admin/v1/datasets"
GOODS = ("a vase", "one toaster", "three novels", "my kettle", "this kite", "an umbrella", "two jackets", "the lamp")


async def ask(http: httpx.AsyncClient, model: str, text: str, **more: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "metadata": {"session": text}, **more}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


async def judge(http: httpx.AsyncClient, request: str, value: bool, **more: Any) -> None:
    body = {"request_id": request, "metric": "correct", "value": value, **more}
    answer = await http.post("/v1/feedback", json=body)
    assert answer.status_code in (200, 201), answer.text


async def ended(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(PATH, json={"task": "returns", **body})
    assert answer.status_code == 202, answer.text
    return await end_of(http, str(answer.json()["id"]))


async def end_of(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """The building, once it has ended."""

    async def look() -> dict[str, Any] | None:
        build: dict[str, Any] = (await http.get(f"{PATH}/builds/{name}")).json()
        return None if build["state"] == "running" else build

    return dict(await until(look))


async def all_is_stored(gateway: RunningGateway) -> None:
    texts = gateway.features[Texts]
    await until(lambda: not len(texts.queue) and not texts.spool.records and not gateway.services.flow.pending)


@pytest.mark.parametrize("sealing", [None, "k1"])
async def test_requests_go_in_with_the_answer_that_people_confirmed_or_gave(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, sealing: str | None
) -> None:
    small.answers["*"] = "deny"
    keys = {"keys": {"k1": base64.b64encode(bytes(32)).decode()}, "key": sealing}
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}}, texts=keys)) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http:
            ids = [await ask(http, "returns", f"May {text} go back after {n} weeks?") for n, text in enumerate(GOODS)]
            for request in ids[:3]:
                await judge(http, request, True)
            await judge(http, ids[3], False, demonstration="approve")
            await judge(http, ids[4], False)
            await judge(http, ids[5], True, rater="a")
            await judge(http, ids[5], False, rater="b", demonstration="approve")
            await all_is_stored(gateway)
            build = await ended(http, {"since": 1, "heldout_share": 0})
            assert build["state"] == "done", build
            card = (await http.get(f"{PATH}/{build['digest']}")).json()
            counts = {"right": 3, "demonstrated": 1, "wrong": 1, "unresolved": 1, "unlabelled": 2}
            assert card["kept_texts"] == counts
            assert card["coverage"]["requests"] == 8
            folder = gateway.services.settings.dataset_folder / build["digest"]
            rows = {row["request"]: row for row in map(json.loads, (folder / "train.jsonl").read_text().splitlines())}
            assert sorted(rows) == sorted(ids[:4])
            assert sorted((folder / "requests.txt").read_text().split()) == sorted(ids[:4])
            corrected = rows[ids[3]]
            assert (corrected["origin"], corrected["rejected"]) == ("demonstrated", "deny")
            assert corrected["messages"][-1] == {"role": "assistant", "content": "approve"}
            pairs = await http.get(f"{PATH}/{build['digest']}/export", params={"format": "dpo"})
            assert (pairs.headers["x-rows"], pairs.text.count("\n")) == ("1", 1)
            page = await http.get(f"{PATH}/{build['digest']}/card.html")
            assert page.headers["content-type"].startswith("text/html")
            await archive_once(gateway.services.settings, gateway.services.meters)
            redis: Any = gateway.services.redis
            for request in ids:  # as after the time in which they can be judged
                await redis.delete(f"apprentice:feedback:{request}")
            again = await ended(http, {"since": 1, "heldout_share": 0})
            assert again["digest"] == build["digest"]
            none = await ended(http, {"since": 1, "until": 2})
            assert none["error"].startswith("There is no row: no text of a request is kept")
            assert (await http.delete(f"{PATH}/{build['digest'][:10]}")).status_code == 200
            assert (await http.get(f"{PATH}/{build['digest']}")).status_code == 404


async def test_a_right_answer_that_people_gave_to_a_request_of_several_answers_goes_in(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks={"returns": {"n_max": 2, "texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http:
            confirmed, corrected, _ = [await ask(http, "returns", goods, n=2) for goods in GOODS[:3]]
            await judge(http, confirmed, True)
            await judge(http, corrected, False, demonstration="approve")
            await all_is_stored(gateway)
            build = await ended(http, {"since": 1, "heldout_share": 0})
            assert build["state"] == "done", build
            card = (await http.get(f"{PATH}/{build['digest']}")).json()
            assert card["kept_texts"] == {"cut": 1, "demonstrated": 1, "unlabelled": 1}
            exported = await http.get(f"{PATH}/{build['digest']}/export", params={"format": "sft"})
            (row,) = map(json.loads, exported.text.splitlines())
            assert [each["content"] for each in row["messages"]] == [GOODS[1], "approve"]
            pairs = await http.get(f"{PATH}/{build['digest']}/export", params={"format": "dpo"})
            assert pairs.status_code == 409, "none of its answers is known to be the rejected one"


TOOL: dict[str, Any] = {"name": "refund", "description": "Pay back, ask jo@shop.example."}
ARGUMENTS = {"type": "object", "properties": {"order": {"type": "string"}}}
ASKS_TOOLS: dict[str, dict[str, Any]] = {
    "chat/completions": {
        "tools": [{"type": "function", "function": TOOL | {"parameters": ARGUMENTS}}],
        "parallel_tool_calls": False,
    },
    "responses": {"tools": [{"type": "function", **TOOL, "parameters": ARGUMENTS}], "parallel_tool_calls": False},
    "messages": {
        "tools": [TOOL | {"input_schema": ARGUMENTS}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "max_tokens": 100,
    },
}


async def ask_with_tools(http: httpx.AsyncClient, path: str, text: str, **more: Any) -> str:
    asked = {"input" if path == "responses" else "messages": [{"role": "user", "content": text}]}
    answer = await http.post(f"/v1/{path}", json={"model": "returns", **asked, **ASKS_TOOLS[path], **more})
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKS_TOOLS)
async def test_requests_with_tools_give_rows_with_tools_and_calls(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, path: str, stream: bool
) -> None:
    small.auto_tool_choice = True
    small.answers["*"] = lambda _: Called("refund", {"order": "A-7"})
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http:
            ids = [await ask_with_tools(http, path, f"Refund {goods}.", stream=stream) for goods in GOODS[:4]]
            await judge(http, ids[0], True)
            shown = [("refund", '{"order": "A-8"}'), ("burn", "{}")]
            for request, (name, arguments) in zip(ids[1:], shown, strict=False):
                call = {"name": name, "arguments": json.loads(arguments)}
                await judge(http, request, False, demonstration={"tool_calls": [call]})
            await judge(http, ids[3], False, demonstration="I may not.")
            await all_is_stored(gateway)
            build = await ended(http, {"since": 1, "heldout_share": 0})
            assert build["state"] == "done", build
            card = (await http.get(f"{PATH}/{build['digest']}")).json()
            assert card["kept_texts"] == {"right": 1, "demonstrated": 2, "bad_call": 1}
            assert card["tools"] == {"rows": 3, "sets": 1, "calls": 2}
            page = (await http.get(f"{PATH}/{build['digest']}/card.html")).text
            assert ("Different sets of tools" in page, "bad call" in page) == (True, True)
            lines = await http.get(f"{PATH}/{build['digest']}/export", params={"format": "sft"})
            found = (await http.get(f"/v1/requests/{ids[0]}", params={"texts": True})).json()["text"]
    rows = {row["messages"][0]["content"]: row for row in map(json.loads, lines.text.splitlines())}
    masked = TOOL | {"description": "Pay back, ask [email].", "parameters": ARGUMENTS}
    answers = {}
    for goods in (GOODS[0], GOODS[1], GOODS[3]):
        row = rows[f"Refund {goods}."]
        assert (row["tools"], row["parallel_tool_calls"]) == ([{"type": "function", "function": masked}], False)
        calls = row["messages"][-1].get("tool_calls", [])
        answers[goods] = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    assert answers == {GOODS[0]: [("refund", {"order": "A-7"})], GOODS[1]: [("refund", {"order": "A-8"})], GOODS[3]: []}
    assert found["tools"] == [{"type": "function", "function": masked}]
    assert [call["name"] for call in found["tool_calls"]] == ["refund"]


ASKS_CHOICES: dict[str, list[Any]] = {
    "chat/completions": [{"type": "function", "function": {"name": "refund"}}, "required", "none", "auto"],
    "responses": [{"type": "function", "name": "refund"}, "required", "none", "auto"],
    "messages": [{"type": "tool", "name": "refund"}, {"type": "any"}, {"type": "none"}, {"type": "auto"}],
}


@pytest.mark.parametrize("path", ASKS_CHOICES)
async def test_a_row_has_the_choice_of_tools_that_its_request_had(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, path: str
) -> None:
    small.auto_tool_choice = True
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http, browsing(gateway, gateway.admin_key) as page:
            ids = []
            for goods, choice in zip(GOODS, ASKS_CHOICES[path], strict=False):
                ids.append(await ask_with_tools(http, path, f"Refund {goods}.", tool_choice=choice))
                await judge(http, ids[-1], True)
            forced = await ask_with_tools(http, path, "Refund this hat.", tool_choice=ASKS_CHOICES[path][0])
            await judge(http, forced, False, demonstration="I may not.")
            await all_is_stored(gateway)
            build = await ended(http, {"since": 1, "heldout_share": 0})
            assert build["state"] == "done", build
            card = (await http.get(f"{PATH}/{build['digest']}")).json()
            folder = gateway.services.settings.dataset_folder / build["digest"]
            rows = [row_of(json.loads(line), 1, 0) for line in (folder / "train.jsonl").read_text().splitlines()]
            found = [(await http.get(f"/v1/requests/{each}", params={"texts": True})).json()["text"] for each in ids]
            shown = (await page.get(f"/console/requests/{ids[1]}?texts=true")).text
            await http.post("/admin/v1/diagnoses", params={"request": ids[0]})
            asked_again = small.requests[-1].body
    named, *words = ASKS_CHOICES["chat/completions"]
    assert card["kept_texts"] == {"right": 4, "demonstrated": 1}
    choices = dict(zip(ids, [named, "required", "none", None], strict=True)) | {forced: None}
    assert {row.request: row.tool_choice for row in rows} == choices, "who gave a text would not have forced a call"
    assert [text["tool_choice"] for text in found] == [named, *words]
    assert ("tool_choice required" in shown, asked_again["tool_choice"]) == (True, named)


async def test_a_call_that_was_wrong_is_shown_diagnosed_and_an_example(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.auto_tool_choice = True
    small.answers["*"] = lambda _: Called("refund", {"order": "A-7"})
    right = {"tool_calls": [{"name": "refund", "arguments": {"order": "A-8"}}]}
    written = '{"tool_calls":[{"arguments":{"order":"A-%d"},"name":"refund"}]}'
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http, browsing(gateway, gateway.admin_key) as page:
            request = await ask_with_tools(http, "chat/completions", "Refund a vase.")
            await judge(http, request, False, demonstration=json.dumps(right))
            await all_is_stored(gateway)
            case = (await http.post("/admin/v1/diagnoses", params={"request": request})).json()["case"]
            assert (case["answer"], case["expected"]) == (written % 7, written % 8)
            assert {each["kind"]: each["text"] for each in case["answers"]}["own"] == written % 7
            assert small.requests[-1].body["tools"][0]["function"]["name"] == "refund"
            opened = (await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})).json()
            lines = (await http.get(f"/admin/v1/retraining/{opened['id']}/examples")).text
            added = await http.post(
                "/admin/v1/suites",
                params={"task": "returns"},
                content=lines,
                headers={"content-type": "application/x-ndjson"},
            )
            assert added.status_code == 201, added.text
            query = {"task": "returns", "kind": "hard", "since": 1}
            hard = await http.post("/admin/v1/suites", params=query)
            assert (hard.status_code, hard.json()["rows"]) == (201, 1), hard.text
            connection = ("--gateway", gateway.url, "--key", gateway.admin_key)
            listed = await asyncio.to_thread(run, "requests", "--texts", *connection)
            assert 'refund({"order": "A-7"})' in listed.out
            shown = (await page.get(f"/console/requests/{request}?texts=true")).text
            assert ("Pay back, ask [email]." in shown, "1 tool, one call at a time" in shown) == (True, True)
            assert "What was asked and answered" in (await page.get(f"/console/requests/{request}")).text
            assert {"requests": [request]} in [each["evidence"] for each in await audit_of(http, "texts.give")]
    row = row_of(json.loads(lines), 1, 0)
    assert (len(row.tools or ()), row.expected, row.parallel_tool_calls) == (1, written % 8, False)
    assert row.answer["tool_calls"][0]["function"] == {"name": "refund", "arguments": '{"order":"A-8"}'}


async def test_a_building_whose_gateway_ends_is_begun_again_and_leaves_one_set(
    configure: Configure, tmp_path: Path, redis: Redis
) -> None:
    rows = "".join(json.dumps({"text": f"Item {n} of {n * n}", "expected": "yes"}) + "\n" for n in range(200))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        sent = (await http.post(f"{PATH}/files", content=rows.encode())).json()["digest"]
        body = {"task": "returns", "files": [{"digest": sent, "name": "rows.jsonl"}]}
        build = (await http.post(PATH, json=body)).json()
        folder = gateway.services.settings.dataset_folder
    left = folder / ".partial-killed"
    left.mkdir(parents=True)
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        found = await end_of(http, build["id"])
        assert found["state"] == "done", found
        await until(lambda: not left.exists())
        assert [card["digest"] for card in (await http.get(PATH)).json()["datasets"]] == [found["digest"]]
        assert len(await until(lambda: audit_of(http, "building.done"))) == 1
        missing = await http.post(PATH, json=body)
        assert missing.json()["error"]["message"].startswith(f"There is no file {sent!r}, or it was removed")


async def test_a_gateway_without_the_files_of_a_building_leaves_it_to_one_that_has_them(
    configure: Configure, tmp_path: Path
) -> None:
    rows = "".join(json.dumps({"text": f"Item {n} of {n * n}", "expected": "yes"}) + "\n" for n in range(200))
    elsewhere = configure(data_folder=tmp_path / "elsewhere")
    async with run_gateway(elsewhere) as other, run_gateway(configure()) as gateway:
        for owner in (other, gateway):
            async with owner.http() as http:
                sent = (await http.post(f"{PATH}/files", content=rows.encode())).json()["digest"]
                found = await ended(http, {"files": [{"digest": sent, "name": "rows.jsonl"}]})
                assert (found["state"], found["error"]) == ("done", "")
                assert (owner.services.settings.dataset_folder / found["digest"]).is_dir()
    async with run_gateway(elsewhere) as other, run_gateway(configure()) as sharing:
        assert other.features[Datasets].name_folder() != sharing.features[Datasets].name_folder()
        assert sharing.features[Datasets].name_folder() == gateway.features[Datasets].name_folder()


async def test_a_file_that_was_sent_goes_after_a_day_though_nothing_changes(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = gateway.features[Datasets]
    work = job.BuildingWork(datasets, datasets.name_folder())
    async with gateway.http() as http:
        sent = (await http.post(f"{PATH}/files", content=b"{}")).json()["digest"]
    await work.step()
    path = datasets.require_file(sent, "files")
    os.utime(path, (0.0, 0.0))
    monkeypatch.setattr(jobs, "UNCHANGED_SECONDS_MAX", 0.0)
    await work.step()
    assert not path.exists()


async def test_a_building_whose_folder_has_no_gateway_any_more_fails_and_others_wait(
    gateway: RunningGateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "ABANDONED_SECONDS", 0.0)
    monkeypatch.setattr(job, "ABANDONED_INTERVAL_SECONDS", 0.0)
    builds = gateway.features[Datasets].builds
    await redis.set("apprentice:duty:datasets:away", "a gateway that is slow")
    for at, folder in enumerate(("away", "gone")):
        step = AuditedStep(redis, gateway.services.control.audit, "ada")
        step.note("building.begin", "returns", None, {"build": folder})
        build = Build(
            id=folder,
            task="returns",
            by="ada",
            created_at=float(at),
            files=[SourceFile("rows.jsonl", "/elsewhere/rows.jsonl", {})],
            options=DatasetOptions(),
            since=None,
            until=0.0,
            folder=folder,
        )
        await builds.begin(build, step)

    async def ended() -> bool:
        build = await builds.get("gone")
        return build is not None and build.state == "failed" and "build it again" in build.error

    await until(ended)
    waiting = await builds.get("away")
    assert waiting is not None
    assert waiting.state == "running"


def children_building() -> list[int]:
    """The processes of this one that build a data set."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"monitoring.datasets.build_run" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def fill_disk(child: int) -> None:
    """Let the child write 1,000 bytes at most into a file: Python ignores the signal, and gets the error."""
    resource.prlimit(child, resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.usefixtures("started_helpers")
@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda child: os.kill(child, signal.SIGKILL), "The process ended with exit code -9"),
        (fill_disk, "The data set can't be written: File too large"),
    ],
    ids=["killed", "full disk"],
)
async def test_a_building_that_is_killed_or_has_no_room_fails_with_a_sentence(
    configure: Configure, harm: Callable[[int], None], text: str
) -> None:
    rows = "".join(json.dumps({"text": f"Item {n} of {n * n}", "expected": "yes"}) + "\n" for n in range(3000))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        sent = (await http.post(f"{PATH}/files", content=rows.encode())).json()["digest"]
        building = asyncio.create_task(ended(http, {"files": [{"digest": sent, "name": "rows.jsonl"}]}))
        harm((await until(children_building))[0])
        build = await building
        assert build["state"] == "failed"
        assert build["error"].startswith(text)
        folder = gateway.services.settings.dataset_folder
        await until(
            lambda: {path.name for path in folder.iterdir()} <= {".files", ".lock", ".name"}, "no part of it is left"
        )
        assert (await http.get(PATH)).json()["datasets"] == []


REMOVED_BY = {
    "folder": "shutil.rmtree(target.parent)",
    "file": "target.touch(); target.unlink()",
    "folder before": "shutil.rmtree(target.parent); told = {'error': 'No such file.'}",
}
"""The acts of an erasure on an export that is under way."""


@pytest.mark.parametrize("removed", REMOVED_BY)
async def test_an_export_that_an_erasure_removes_ends_in_an_error_that_says_to_ask_again(
    configure: Configure, removed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, pathlib, shutil; target = pathlib.Path(json.loads(input())['target']); told = {'rows': 1}"
    monkeypatch.setattr(
        endpoints, "COMMAND", (sys.executable, "-c", f"{code}; {REMOVED_BY[removed]}; print(json.dumps(told))")
    )
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        sent = (await http.post(f"{PATH}/files", content=b'{"text": "a vase", "expected": "yes"}\n')).json()["digest"]
        build = await ended(http, {"files": [{"digest": sent, "name": "rows.jsonl"}]})
        answer = await http.get(f"{PATH}/{build['digest']}/export")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload"), answer.text
        assert answer.json()["error"]["message"] == "Texts were erased while the file was made: ask again."
        assert not list(gateway.services.settings.dataset_folder.glob(".files/.partial-*"))


async def test_a_damaged_card_hides_no_other_data_set_and_its_set_can_be_deleted(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        digests = []
        for word in ("yes", "no"):
            content = json.dumps({"text": f"a vase, {word}", "expected": word}).encode() + b"\n"
            sent = (await http.post(f"{PATH}/files", content=content)).json()["digest"]
            digests.append((await ended(http, {"files": [{"digest": sent, "name": "rows.jsonl"}]}))["digest"])
        whole, damaged = digests
        (gateway.services.settings.dataset_folder / damaged / CARD_FILE).write_bytes(b'{"task": "retu')
        listed = await http.get(PATH)
        assert [card["digest"] for card in listed.json()["datasets"]] == [whole], listed.text
        for answer in (
            await http.get(f"{PATH}/{damaged}"),
            await http.get(f"{PATH}/{damaged}/card.html"),
            await http.get(f"{PATH}/{damaged}/export"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict"), answer.text
            assert damaged in answer.json()["error"]["message"]
        deleted = await http.delete(f"{PATH}/{damaged}")
        assert (deleted.status_code, deleted.json()["state"]) == (200, "deleted"), deleted.text
        assert (await http.get(f"{PATH}/{damaged}")).status_code == 404
