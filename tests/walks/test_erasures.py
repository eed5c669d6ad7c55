"""Texts that are to be forgotten leave every file, down to its bytes; all others stay."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import msgspec
import pytest
from redis.exceptions import RedisError

from gateway.features.datasets.endpoints import send_export
from gateway.features.datasets.state import Datasets
from gateway.features.erasures import job
from gateway.features.erasures.state import Erasures
from gateway.features.erasures.store import Erasure
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.suite_endpoints import find_hard_cases
from gateway.features.fitting.job import FittingWork
from gateway.features.fitting.state import WaitingSample
from gateway.features.records.archiving import archive_once
from gateway.features.texts.state import Texts
from monitoring.datasets.folder import CARD_FILE, REQUESTS_FILE
from monitoring.erasure import ERASED_FILE
from monitoring.feedback import STREAM_KEY
from monitoring.synced_files import lock_folder
from monitoring.texts import FORGOTTEN_KEY
from router.fitting_job import FittingLine
from tests.gateway.cli.conftest import run
from tests.live_folder import find_paths
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_evaluate import ended

SECRET, OTHER = "the cracked amphora of Mrs. Vanderbilt-Oxenstierna", "a plain toaster that was never opened at all"
DIGEST = "a" * 64


def body(text: str) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "look", "description": f"Look at {text}."}}
    turn = {"role": "user", "content": f"A return of {text}."}
    return {"model": "returns", "messages": [turn], "tools": [tool], "tool_choice": "none"}


async def ask(gateway: RunningGateway, text: str, key: str | None = None, **headers: str) -> str:
    async with gateway.http(key) as http:
        answer = await http.post("/v1/chat/completions", json=body(text), headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-request-id"])


async def judge(gateway: RunningGateway, request: str, text: str) -> None:
    said = {"request_id": request, "metric": "correct", "value": False, "comment": text, "demonstration": text}
    said["tags"] = {"note": text}
    async with gateway.http() as http:
        assert (await http.post("/v1/feedback", json=said)).status_code == 201


def kept_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """All that is written below a folder: files as they are, Parquet as the rows that it holds."""
    for path in sorted(find_paths(folder)):
        with contextlib.suppress(
            FileNotFoundError, duckdb.IOException
        ):  # the spool and the archive are written meanwhile
            if path.suffix == ".parquet":
                yield path, str(duckdb.execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchall())
            elif path.is_file():
                yield path, path.read_bytes().decode(errors="replace")


def holding(folder: Path, text: str) -> list[str]:
    return [path.name for path, content in kept_in(folder) if text in content]


def write_set(folder: Path, request: str, other: str) -> Path:
    """A data set that has rows of each request, one that was made from the first, and one that was left out; and a file
    that waits for a build."""
    target = folder / "datasets" / DIGEST
    target.mkdir(parents=True)
    row = {"id": "r1", "request": request, **body(SECRET)}
    derived = {"id": "s1", "parent": "r1", "origin": "synthetic", **body(SECRET.upper())}
    (target / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, derived)))
    rest = [{"id": "r2", "request": other, **body(OTHER)}, {"id": request, **body(SECRET)}]
    (target / "heldout.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rest))
    (target.parent / ".files" / ".incoming-1").mkdir(parents=True)
    for name in ("b" * 64, ".incoming-1/rows"):  # the second by a gateway that was killed
        (target.parent / ".files" / name).write_text("".join(json.dumps(each) + "\n" for each in rest))
    (target / "left_out.jsonl").write_text(json.dumps({"because": "exact_duplicate", "row": row}) + "\n")
    (target / REQUESTS_FILE).write_text(f"{request}\n{other}\n")
    (target / CARD_FILE).write_text(
        json.dumps(
            {
                "digest": DIGEST,
                "longest": [body(SECRET)["messages"][0]["content"]],
                "classes": {f"A return of {SECRET}": 1},
            }
        )
    )
    (target / "card.html").write_text(f"<p>{SECRET}</p>")
    return target


async def add_suite(http: httpx.AsyncClient, request: str, other: str) -> None:
    """A suite that has a row of each request, and one that was made from the first; and an evaluation on it."""
    rows = [
        {"id": "r1", "request": request, "text": SECRET, "expected": "approve"},
        {"id": "s1", "parent": "r1", "text": SECRET.upper(), "expected": "approve"},
        {"id": "r2", "request": other, "text": OTHER, "expected": "deny"},
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    headers = {"content-type": "application/x-ndjson"}
    added = await http.post("/admin/v1/suites", params={"task": "returns"}, content=content, headers=headers)
    assert added.status_code == 201, added.text
    texts = await http.get(f"/admin/v1/evaluations/{(await evaluate_suite(http))['id']}/texts")
    assert len(texts.json()["rows"]) == 3


async def evaluate_suite(http: httpx.AsyncClient) -> dict[str, Any]:
    query = {"version": "returns@v1", "suite": "newest", "arms": "adapter"}
    begun = await http.post("/admin/v1/evaluations", params=query)
    assert begun.status_code == 201, begun.text
    return await ended(http, begun.json()["id"])


@pytest.fixture
async def world(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[tuple[RunningGateway, Path]]:
    """A gateway with a Valkey of its own that keeps all texts as they are, in a folder of its own."""
    async with running(configure, make_adapter) as found:
        yield found


@contextlib.asynccontextmanager
async def running(
    configure: Configure, make_adapter: MakeAdapter, **texts: Any
) -> AsyncIterator[tuple[RunningGateway, Path]]:
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        monitor = {"reviews": {"per_week": 100}, "retraining": "off"}
        tasks = {"returns": {"texts": {"keep": "all", "redaction": "none"}, "monitor": monitor}}
        settings = configure(tasks=tasks, data_folder=Path(name), redis_url=None, texts=texts)
        async with run_gateway(settings) as gateway:
            await gateway.services.redis.config_set("rdbcompression", "no")  # a rewritten text is found as it is
            folder = make_adapter(1)
            manifest = folder / "manifest.yaml"
            manifest.write_text(manifest.read_text().replace("number: 1", f"dataset: {DIGEST}"))
            await gateway.place(folder)
            yield gateway, Path(name)


async def settled(gateway: RunningGateway) -> None:
    texts = gateway.features[Texts]
    await until(lambda: not len(texts.queue) and not texts.spool.records and not gateway.services.flow.pending)


async def forget(gateway: RunningGateway, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """The result of `apprentice records forget`."""
    connection = ("--gateway", gateway.url, "--key", gateway.admin_key, "--json", "--yes")
    said = await asyncio.to_thread(run, "records", "forget", *options, *connection)
    assert said.exit_code == exit_code, said.err
    assert ("Nothing was erased" in said.err) == bool(exit_code)
    result: dict[str, Any] = said.json
    return result


@pytest.mark.invariant("A forgotten text is in no file, down to its bytes, and every other text is where it was.")
async def test_a_forgotten_request_leaves_every_file_and_no_other_does(world: tuple[RunningGateway, Path]) -> None:
    gateway, folder = world
    request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
    await judge(gateway, request, f"No: {SECRET}")
    await judge(gateway, other, f"No: {OTHER}")
    await settled(gateway)
    await archive_once(gateway.services.settings, gateway.services.meters)
    async with gateway.http() as http:
        opened = await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
        assert (opened.status_code, opened.json()["examples"]) == (201, 2)
        await add_suite(http, request, other)
    dataset = write_set(folder, request, other)
    await send_export(gateway.features[Datasets], dataset, "train", "sft")  # as a gateway leaves it that is killed then
    await gateway.services.redis.set("apprentice:duty:datasets:of-another", "gateway-b")
    for task in ("returns", "removed"):
        skip = f"1790000000\n0badcafe\nWhat is {SECRET}?"
        await gateway.services.redis.lpush(f"apprentice:reviews:{task}:skips", skip)
    before, labels = holding(folder, OTHER), await gateway.services.redis.xrange(STREAM_KEY)
    assert {"train.jsonl", "card.html", CARD_FILE} < set(holding(folder, SECRET))

    erasure = await forget(gateway, "--request", request)

    assert holding(folder, SECRET) == []
    assert holding(folder, SECRET.upper()) == [], "what was made from it is gone too"
    kept = {name for name in before if not name.startswith("appendonly")} - {"rows"}  # what was half sent goes whole
    assert kept <= set(holding(folder, OTHER))
    counted = {name: erasure[name] for name in ("found", "texts", "feedback", "examples", "append_only_file")}
    assert counted == {"found": 1, "texts": 1, "feedback": 1, "examples": 1, "append_only_file": "rewritten"}
    assert {"digest": DIGEST, "requests": 1, "rows": 4} in erasure["datasets"]
    assert erasure["versions"] == ["returns@v1"]
    assert erasure["elsewhere"] == ["gateway-b"], "whose own folder was not looked at"
    assert [(suite["task"], suite["rows"]) for suite in erasure["suites"]] == [("returns", 2)]
    assert erasure["evaluated"] == 2
    assert json.loads((dataset / ERASED_FILE).read_bytes())["rows"] == 4
    async with gateway.http() as http:
        suite = (await http.get("/admin/v1/suites/returns/newest")).json()
        assert (suite["rows"], suite["erased"], suite["counts"]["class"]) == (1, 2, {"deny": 1})
        assert (await evaluate_suite(http))["rows"] == 1, "its rows are numbered again"
        told = (await http.get(f"/v1/requests/{request}")).json()
        audit = (await http.get("/admin/v1/audit", params={"newest": True})).json()["entries"]
    assert [(each["value"], each.get("comment")) for each in told["feedback"]] == [(False, None)]
    of_request = await gateway.services.redis.hvals(f"apprentice:feedback:{request}")
    assert [value.split(b"\n")[0] for value in of_request] == [b""], "no digest of it is left to be guessed at"
    assert not await gateway.services.redis.exists(f"apprentice:feedback:{request}:latest")
    left = await gateway.services.redis.xrange(STREAM_KEY)
    assert [entry for entry, _ in left] == [entry for entry, _ in labels], "every label is where it was"
    actions = [entry["action"] for entry in audit if entry["action"].startswith("texts.")]
    assert actions == ["texts.erased", "texts.erase"]
    assert (await forget(gateway, "--request", request))["texts"] == 0, "its record is known"
    for options in (("--request", "nope"), ("--caller", "zzz"), ("--subject", "nobody")):
        assert (await forget(gateway, *options, exit_code=1))["state"] == "done"


async def test_rows_for_a_suite_that_a_killed_gateway_has_left_are_forgotten(
    world: tuple[RunningGateway, Path],
) -> None:
    gateway, folder = world
    request = await ask(gateway, SECRET)
    await judge(gateway, request, SECRET)
    await settled(gateway)
    finding = find_hard_cases(gateway.features[Evaluations], "returns", 0.0)
    path = await finding.__aenter__()
    assert SECRET in path.read_text()
    assert folder in path.parents
    await forget(gateway, "--request", request)
    assert not path.exists()
    await finding.__aexit__(None, None, None)


async def test_a_subject_or_a_caller_is_forgotten_and_what_comes_later_is_kept(
    world: tuple[RunningGateway, Path],
) -> None:
    gateway, folder = world
    key = await gateway.key()
    of_subject = await ask(gateway, SECRET, key, **{"x-apprentice-subject": "order-4711"})
    await ask(gateway, OTHER, key)
    await settled(gateway)
    assert (await forget(gateway, "--subject", "order-4711"))["found"] == 1
    assert holding(folder, SECRET) == []
    assert holding(folder, OTHER)
    assert of_subject in "".join(content for _, content in kept_in(folder)), "its record stays"
    erasure = await forget(gateway, "--caller", key.split("-")[2])
    assert (erasure["found"], erasure["texts"]) == (2, 1)
    assert holding(folder, OTHER) == []
    await ask(gateway, SECRET, key)
    await settled(gateway)
    assert holding(folder, SECRET)


async def test_a_subject_is_forgotten_also_where_its_key_was_revoked_since(world: tuple[RunningGateway, Path]) -> None:
    gateway, folder = world
    key, subject = await gateway.key(), "order-" + 506 * "4"
    await ask(gateway, SECRET, key, **{"x-apprentice-subject": subject})
    await settled(gateway)
    async with gateway.http() as http:
        assert (await http.delete(f"/admin/v1/callers/{key.split('-')[2]}")).is_success
    erasure = await forget(gateway, "--subject", subject)
    assert (erasure["found"], holding(folder, SECRET)) == (1, [])
    kept = await gateway.features[Erasures].store.get(erasure["id"])
    assert kept is not None
    assert kept.names == [], "there may be one for each key that ever was"


async def test_a_subject_of_more_keys_than_can_be_marked_is_erased_by_key(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.erasures.endpoints.CALLERS_MAX", 1)
    keys = [await gateway.key() for _ in range(2)]
    async with gateway.http() as http:
        refused = await http.post("/admin/v1/erasures", json={"subject": "order-4711"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "caller")
        named = {"subject": "order-4711", "caller": keys[0].split("-")[2]}
        assert (await http.post("/admin/v1/erasures", json=named)).status_code == 202


async def test_an_erasure_that_failed_is_done_once_it_can_be(world: tuple[RunningGateway, Path]) -> None:
    gateway, folder = world
    request = await ask(gateway, SECRET)
    await settled(gateway)
    await archive_once(gateway.services.settings, gateway.services.meters)
    lock = folder / "records" / ".lock"
    lock.unlink()
    lock.mkdir()
    async with gateway.http() as http:
        name = (await http.post("/admin/v1/erasures", json={"request": request})).json()["id"]
        store = gateway.features[Erasures].store
        failed = await until(lambda: _with_error(store, name))
        assert (failed.state, holding(folder, SECRET) != []) == ("waiting", True)
        lock.rmdir()
        gateway.features[Erasures].wake.set()
        await until(lambda: _is_done(store, name))
    assert holding(folder, SECRET) == []


async def test_an_erasure_waits_for_a_damaged_place_with_all_others_erased(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "AGAIN_SECONDS", 0.0)
    gateway, folder = world
    request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
    await settled(gateway)
    await archive_once(gateway.services.settings, gateway.services.meters)
    async with gateway.http() as http:
        await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
        dataset = write_set(folder, request, other)
        train = dataset / "train.jsonl"
        train.write_text(f'{{"id": "torn", "text": "{SECRET}\n{train.read_text()}')
        damaged = gateway.services.settings.text_spool / "gw.00000001.spool.damaged"
        damaged.mkdir()
        name = (await http.post("/admin/v1/erasures", json={"request": request})).json()["id"]
        store = gateway.features[Erasures].store
        waiting = await until(lambda: _with_error(store, name))
        assert (waiting.state, str(damaged) in waiting.error) == ("waiting", True)
        assert holding(folder, SECRET) == []
        assert (waiting.found, waiting.datasets[-1]["rows"]) == (1, 5)
        damaged.rmdir()
        gateway.features[Erasures].wake.set()
        await until(lambda: _is_done(store, name))


async def test_an_incomplete_erasure_is_not_tried_at_each_look(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = world
    store, erase_files, tried = gateway.features[Erasures].store, job._erase_files, list[str]()

    async def note(erasures: Erasures, erasure: Erasure) -> dict[str, Any]:
        tried.append(erasure.requests[0])
        return await erase_files(erasures, erasure)

    monkeypatch.setattr(job, "_erase_files", note)
    damaged = gateway.services.settings.text_spool / "gw.00000001.spool.damaged"
    damaged.mkdir()
    async with gateway.http() as http:
        for request in ("r1", "r2", "r3"):
            name = (await http.post("/admin/v1/erasures", json={"request": request})).json()["id"]
            await until(lambda name=name: _with_error(store, name))
    assert tried == ["r1", "r2", "r3"]


async def test_an_erasure_that_begins_again_counts_what_was_erased_before(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, folder = world
    request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
    await judge(gateway, request, SECRET)
    await settled(gateway)
    await archive_once(gateway.services.settings, gateway.services.meters)
    store, rewrite, faults = gateway.features[Erasures].store, job.rewrite_now, [RedisError("away"), None]

    async def rewrite_now(redis: Any) -> Any:
        if fault := faults.pop(0):
            raise fault
        return await rewrite(redis)

    monkeypatch.setattr(job, "rewrite_now", rewrite_now)
    async with gateway.http() as http:
        await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
        write_set(folder, request, other)
        name = (await http.post("/admin/v1/erasures", json={"request": request})).json()["id"]
        await until(lambda: _is_done(store, name))
        erasure = (await http.get(f"/admin/v1/erasures/{name}")).json()
    assert faults == []
    assert {"digest": DIGEST, "requests": 1, "rows": 4} in erasure["datasets"]
    assert [erasure[each] for each in ("texts", "feedback", "examples")] == [1, 1, 1]
    assert erasure["versions"] == ["returns@v1"]


async def test_an_erasure_whose_process_can_not_begin_tells_why(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = world
    store = gateway.features[Erasures].store
    async with gateway.http() as http:
        with monkeypatch.context() as broken:
            broken.setattr(job, "COMMAND", ("/nowhere/python",))
            name = (await http.post("/admin/v1/erasures", json={"request": "nope"})).json()["id"]
            failed = await until(lambda: _with_error(store, name))
        assert "/nowhere/python" in failed.error
        gateway.features[Erasures].wake.set()
        await until(lambda: _is_done(store, name))


async def test_ctrl_c_while_texts_are_erased_says_that_it_goes_on_and_it_does(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, folder = world
    store, datasets, looks = gateway.features[Erasures].store, folder / "datasets", asyncio.Event()
    read = store.get

    async def get(name: str) -> Erasure | None:
        looks.set()
        return await read(name)

    monkeypatch.setattr(store, "get", get)
    variables = {**os.environ, "APPRENTICE_URL": gateway.url, "APPRENTICE_KEY": gateway.admin_key}
    datasets.mkdir(exist_ok=True)
    with lock_folder(datasets):
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("apprentice"), "records", "forget", "--request", "nope", "--yes"),
            env=variables,
            stderr=asyncio.subprocess.PIPE,
        )
        await looks.wait()
        (erasure,) = await store.all()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert f"The erasure goes on: see GET /admin/v1/erasures/{erasure.id}." in err.decode()
    await until(lambda: _is_done(store, erasure.id))


async def test_prompts_that_wait_for_a_fitting_lose_those_of_an_erased_request(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = world
    monkeypatch.setattr(FittingWork, "_fit", lambda _, sample: asyncio.sleep(math.inf))  # it takes long
    request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
    rows = [FittingLine(SECRET, request), FittingLine(OTHER, other), FittingLine(SECRET, f"chatcmpl-{request}")]
    packed = gzip.compress(b"\n".join(map(msgspec.json.encode, rows)))
    samples = gateway.features[Erasures].fitting.samples
    waiting = WaitingSample(version="returns@v1", digest="a", packed=packed, by="admin", counts={})
    step = gateway.services.begin_step("admin")
    step.note("adapter.prompts", "returns@v1")
    await samples.put(waiting, step)
    assert await samples.first() == waiting
    await forget(gateway, "--request", request)
    left = await samples.first()
    assert left is not None
    assert gzip.decompress(left.packed) == msgspec.json.encode(rows[1])


async def test_an_erasure_whose_gateway_ends_while_it_is_entered_keeps_late_texts_out(
    world: tuple[RunningGateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = world
    store, redis = gateway.features[Erasures].store, gateway.services.redis
    set_marks, faults = store.mark, [RedisError("away"), None]

    async def mark(erasure: Erasure) -> None:
        if fault := faults.pop(0):
            raise fault
        await set_marks(erasure)

    monkeypatch.setattr(store, "mark", mark)
    request = await ask(gateway, SECRET)
    async with gateway.http() as http:
        assert (await http.post("/admin/v1/erasures", json={"request": request})).status_code == 503
        (erasure,) = (await http.get("/admin/v1/erasures")).json()["erasures"]
    gateway.features[Erasures].wake.set()
    await until(lambda: _is_done(store, erasure["id"]))
    assert await redis.exists(FORGOTTEN_KEY + request)


async def _with_error(store: Any, name: str) -> Any:
    erasure = await store.get(name)
    return erasure if erasure.error else None


async def _is_done(store: Any, name: str) -> bool:
    return bool((await store.get(name)).state == "done")


@pytest.mark.parametrize("given", [{}, {"request": "r", "caller": "c"}, {"subject": ""}])
async def test_an_erasure_names_one_request_or_a_subject_or_a_caller(
    gateway: RunningGateway, given: dict[str, str]
) -> None:
    async with gateway.http() as http:
        assert (await http.post("/admin/v1/erasures", json=given)).status_code == 400


async def test_ids_of_a_removed_data_set_go_after_a_quarter_unless_a_version_learned_it(
    world: tuple[RunningGateway, Path],
) -> None:
    gateway, folder = world
    learned, old, new = (folder / "datasets" / f".gone-{digest}" for digest in (DIGEST, "b" * 64, "c" * 64))
    for place in (learned, old, new):
        place.mkdir(parents=True)
        (place / REQUESTS_FILE).write_text("a-request\n")
    for place in (learned, old):
        os.utime(place, (time.time() - 91 * 86_400,) * 2)
    async with gateway.http() as http:
        assert (await http.put("/admin/v1/overrides/a", json={"action": "general"})).status_code == 200
    await until(lambda: not old.exists())
    assert learned.exists()
    assert new.exists()


async def test_what_is_sealed_is_forgotten_and_nothing_else(configure: Configure, make_adapter: MakeAdapter) -> None:
    keys = {"k1": base64.b64encode(bytes(32)).decode()}
    async with running(configure, make_adapter, keys=keys, key="k1") as (gateway, folder):
        request, other = await ask(gateway, SECRET), await ask(gateway, OTHER)
        await judge(gateway, request, f"No: {SECRET}")
        await judge(gateway, other, f"No: {OTHER}")
        await settled(gateway)
        redis = gateway.services.redis
        rows = [json.loads(await redis.get(f"apprentice:text:{each}") or "") for each in (request, other)]
        tools, others_tools = (row["tools"] for row in rows)
        await archive_once(gateway.services.settings, gateway.services.meters)
        async with gateway.http() as http:
            opened = await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a test"})
            await add_suite(http, request, other)
        assert holding(folder, SECRET) == holding(folder, OTHER) == []
        given = {each[b"request"].decode(): each[b"feedback"] for _, each in await redis.xrange(STREAM_KEY)}
        gone = msgspec.json.decode(given[request])["sealed"]
        assert {path.rpartition(".")[2] for path in holding(folder, gone)} >= {"parquet", "aof"}

        erasure = await forget(gateway, "--request", request)

        assert holding(folder, gone) == holding(folder, tools) == []
        assert "parquet" in {name.rpartition(".")[2] for name in holding(folder, others_tools)}
        assert {name: erasure[name] for name in ("texts", "feedback", "examples")} == dict.fromkeys(
            ("texts", "feedback", "examples"), 1
        )
        assert [(suite["task"], suite["rows"]) for suite in erasure["suites"]] == [("returns", 2)]
        async with gateway.http() as http:
            suite = (await http.get("/admin/v1/suites/returns/newest")).json()
            assert (suite["rows"], suite["counts"]["class"]) == (1, {"deny": 1})
            assert (await evaluate_suite(http))["rows"] == 1
            (judged,) = (await http.get(f"/v1/requests/{request}")).json()["feedback"]
            assert {"comment", "demonstration", "tags", "key", "sealed"}.isdisjoint(judged)
            (judged,) = (await http.get(f"/v1/requests/{other}")).json()["feedback"]
            assert judged["comment"] == f"No: {OTHER}"
            (row,) = (await http.get(f"/admin/v1/retraining/{opened.json()['id']}/examples")).text.splitlines()
            assert json.loads(row)["comment"] == f"No: {OTHER}"
