"""Suites over a real gateway: kept by digest, told apart by kind, evaluated again and again, and asked repeatedly."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.features.evaluations.state import Evaluations
from gateway.features.readiness.endpoints import find_prompted
from gateway.features.texts.state import Texts
from monitoring.evaluation.suites import Suite
from monitoring.synced_files import lock_folder
from monitoring.texts import FORGOTTEN_KEY
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import run
from tests.gateway.features.evaluations.test_store import fill_list
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, audit_of
from tests.walks.test_datasets import ask, judge
from tests.walks.test_evaluate import JSON_LINES, begin, data, ended, right_but_for, said, with_schema

PATH = "/admin/v1/suites"


@pytest.fixture
async def ready(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> AsyncIterator[RunningGateway]:
    """A gateway whose returns@v1 is wrong on each tenth row."""
    small.answers[V1] = right_but_for(10)
    general.answers["*"] = right_but_for(4)
    async with run_gateway(configure()) as running:
        await running.place(with_schema(make_adapter(1)))
        yield running


async def add(http: httpx.AsyncClient, rows: bytes, status: int = 201, **query: Any) -> dict[str, Any]:
    answer = await http.post(PATH, params={"task": "returns", **query}, content=rows, headers=JSON_LINES)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def test_suites_are_kept_by_digest_and_the_newest_makes_the_last_one_older(ready: RunningGateway) -> None:
    async with ready.http() as http:
        first = await add(http, data(20), class_field="decision")
        assert first["counts"]["class"] == {"approve": 10, "deny": 10}
        assert first["counts"]["length"] == {"up to 200 characters": 20}
        assert await add(http, data(20), status=200, class_field="decision") == first
        second = await add(http, data(30))
        assert (await add(http, data(20), class_field="decision"))["kind"] == "newest", "the rules are as before again"
        assert (await http.get(f"{PATH}/returns/older")).json()["digest"] == second["digest"]
        assert (await add(http, data(30)))["kind"] == "newest"
        hard = await add(http, data(10), kind="hard")
        listed = (await http.get(PATH, params={"task": "returns"})).json()["suites"]
        kinds = {suite["digest"]: suite["kind"] for suite in listed}
        assert kinds == {first["digest"]: "older", second["digest"]: "newest", hard["digest"]: "hard"}
        shown = (await http.get(f"{PATH}/returns/{first['digest'][:12]}")).json()
        assert (shown["rows"], shown["kind"]) == (20, "older")
        assert (await http.delete(f"{PATH}/returns/newest")).json()["digest"] == second["digest"]
        assert (await http.get(f"{PATH}/returns/newest")).json()["digest"] == first["digest"]
        missing = await http.get(f"{PATH}/returns/general")
        assert (missing.status_code, "it has" in missing.json()["error"]["message"]) == (404, True)
        assert [entry["after"]["rows"] for entry in await audit_of(http, "suite.add")] == [20, 30, 20, 30, 10]
        assert [entry["before"]["digest"] for entry in await audit_of(http, "suite.remove")] == [second["digest"]]
    held = [key async for key in ready.services.redis.scan_iter(match=f"*{second['digest']}*")]
    assert held == [], "no row of a suite outlives it"


async def test_a_suite_has_no_row_of_an_erased_request_and_says_how_many_it_has(ready: RunningGateway) -> None:
    await ready.services.redis.set(f"{FORGOTTEN_KEY}r1", 1)
    async with ready.http() as http:
        whole = await begin(http, data(20), arms="adapter", class_field="decision")
        assert (await ended(http, whole["id"]))["report"]["arms"]["adapter"]["accuracy"]["of"] == 19
        suite = await add(http, data(20), class_field="decision")
        assert (suite["rows"], suite["groups"], suite["erased"]) == (19, 19, 1)
        assert suite["counts"]["class"] == {"approve": 10, "deny": 9}
        query = {"version": V1, "suite": "newest", "arms": "adapter"}
        begun = await http.post("/admin/v1/evaluations", params=query)
        told = await ended(http, begun.json()["id"])
        assert (told["status"], told["rows"], told["id"] != whole["id"]) == ("done", 19, True)
        assert told["report"]["arms"]["adapter"]["accuracy"]["of"] == 19
        await ready.services.redis.mset({f"{FORGOTTEN_KEY}r{number}": 1 for number in range(20)})
        on_suite = (await http.post("/admin/v1/evaluations", params=query)).json()
        for refused in (await add(http, data(20), 400), on_suite):
            assert "All its rows are of requests whose texts were erased" in refused["error"]["message"]


async def test_a_version_is_evaluated_on_a_suite_as_on_the_same_data(ready: RunningGateway) -> None:
    async with ready.http() as http:
        await add(http, data(40), class_field="decision")
        begun = await http.post("/admin/v1/evaluations", params={"version": V1, "suite": "newest", "arms": "adapter"})
        assert begun.status_code == 201, begun.text
        told = await ended(http, begun.json()["id"])
        assert (told["status"], told["suite"], told["rows"]) == ("done", "newest", 40)
        assert told["report"]["arms"]["adapter"]["accuracy"]["right"] == 36
        assert told["report"]["arms"]["adapter"]["confusion"]["approve"] == {"approve": 16, "deny": 4}
        same = await begin(http, data(40), status=200, arms="adapter", class_field="decision")
        assert same["id"] == told["id"]
        unknown = await http.post("/admin/v1/evaluations", params={"version": V1, "suite": "hard"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "suite")


async def test_data_that_became_a_suite_count_as_the_suite_once_they_are_evaluated_as_it(ready: RunningGateway) -> None:
    async with ready.http() as http:
        as_file = await begin(http, data(40), arms="adapter")
        await ended(http, as_file["id"])
        await add(http, data(40))
        query = {"version": V1, "suite": "newest", "arms": "adapter"}
        as_suite = await http.post("/admin/v1/evaluations", params=query)
        assert (as_suite.status_code, as_suite.json()["id"]) == (200, as_file["id"])
        told = await ended(http, as_file["id"])
        assert (told["suite"], told["progress"]["adapter"]["done"]) == ("newest", 40), "no row is asked again"
        assert (await begin(http, data(40), status=200, arms="adapter"))["suite"] == "newest"


async def test_repeats_show_how_often_answers_flip(ready: RunningGateway, small: FakeEngine) -> None:
    turns = count()
    small.answers[V1] = lambda body: json.dumps({"decision": ("approve", "deny")[next(turns) % 3 == 0]})
    async with ready.http() as http:
        begun = await begin(http, data(20), arms="adapter", repeats=3)
        told = await ended(http, begun["id"])
        adapter = told["report"]["arms"]["adapter"]
        assert (told["rows"], told["repeats"], adapter["accuracy"]["of"]) == (60, 3, 20)
        flips = adapter["consistency"]["repeats"]
        assert flips["of"] == 20
        assert flips["right"] > 0
        assert (await begin(http, data(20), arms="adapter"))["id"] != begun["id"]


async def test_rows_that_can_not_be_used_add_no_suite(ready: RunningGateway) -> None:
    async with ready.http() as http:
        for rows, query, text in (
            (b'{"text": "x"}\n', {}, "Line 1: it has no expected answer"),
            (data(2), {"metric": "fields:rule"}, "Line 1: its expected answer is without the field 'rule'"),
            (data(2), {"kind": "worst"}, "kind"),
        ):
            refused = await add(http, rows, status=400, **query)
            assert text in refused["error"]["message"]
        unknown = await http.post(PATH, params={"task": "none"}, content=data(2), headers=JSON_LINES)
        assert unknown.status_code == 404
        assert (await http.get(PATH)).json() == {"suites": []}
    caller = await ready.key(role="operator")
    async with ready.http(caller) as http:
        await add(http, data(2), status=403)


async def test_texts_of_wrong_rows_are_read_back_where_the_task_keeps_texts(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers[V1] = right_but_for(10)
    key = base64.b64encode(b"k" * 32).decode()
    kept = {"tasks": {"returns": {"texts": {"keep": "all"}}}, "texts": {"keys": {"k1": key}, "key": "k1"}}
    async with run_gateway(configure(**kept)) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        rows = data(20).replace(b'"Item 10"', b'"Of ann@example.org: Item 10"')
        begun = await begin(http, rows, arms="adapter")
        await ended(http, begun["id"])
        path = f"/admin/v1/evaluations/{begun['id']}/texts"
        wrong = (await http.get(path, params={"wrong": True})).json()["rows"]
        assert [row["number"] for row in wrong] == [0, 10]
        assert (wrong[1]["expected"], wrong[1]["answers"]) == ('{"decision":"approve"}', {"adapter": said("deny")})
        assert "Item 10" in wrong[1]["messages"][0]["content"]
        assert "ann@example.org" not in str(wrong), "texts are redacted"
        assert len((await http.get(path)).json()["rows"]) == 20
        assert [entry["evidence"]["id"] for entry in await audit_of(http, "evaluation.give")] == [begun["id"]] * 2
        raw = await running.services.redis.dump(f"apprentice:evaluation:{begun['id']}:texts")
        assert b"Item" not in raw, "texts are sealed"
        async with running.http(await running.key(role="operator")) as operator:
            assert (await operator.get(path)).status_code == 403


async def test_a_suite_of_hard_cases_does_not_say_how_well_a_prompt_does(ready: RunningGateway) -> None:
    evaluations = ready.features[Evaluations]
    async with ready.http() as http:
        whole = (await ended(http, (await begin(http, data(20)))["id"]))["id"]
        await add(http, data(10), kind="hard")
        hard = await ended(http, (await begin(http, b"", suite="hard"))["id"])
    assert hard["suite"] == "hard"
    prompted = await find_prompted(evaluations, "returns")
    assert prompted is not None
    assert (prompted.evaluation, prompted.arm, prompted.version) == (whole, "general", V1)


async def test_rows_of_the_training_set_are_told_with_the_figures_without_them(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers[V1] = right_but_for(10)
    digest = "d" * 64
    folder = with_schema(make_adapter(1))
    provenance = {"dataset": digest, "rehearsed": ["e" * 64, "f" * 64]}
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"provenance": provenance}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    async with run_gateway(configure()) as running, running.http() as http:
        await running.place(folder)
        own = write_train(running, digest, range(5))
        rehearsed = write_train(running, "e" * 64, range(5, 10))
        begun = await begin(http, data(30), arms="adapter")
        report = (await ended(http, begun["id"]))["report"]
        leaks = report["leaks"]
        assert (leaks["trained_on"], leaks["same"], leaks["right_without"]) == (10, 10, {"adapter": 0.9})
        assert any("Of its 3 training sets 1 can't be read here" in sentence for sentence in report["cannot_see"])
        write_train(running, "f" * 64, range(10, 12))
        begun = await begin(http, data(30), arms="adapter", again=True)
        report = (await ended(http, begun["id"]))["report"]
        assert report["leaks"]["same"] == 12
        assert not any("it was trained on" in sentence for sentence in report["cannot_see"])
        for train in (own, rehearsed, own.parent.parent / ("f" * 64) / "train.jsonl"):
            train.unlink()
        begun = await begin(http, data(30), arms="adapter", again=True)
        report = (await ended(http, begun["id"]))["report"]
        assert report["leaks"] is None
        assert any("training set is not known here" in sentence for sentence in report["cannot_see"])


async def test_readiness_holds_a_prompt_against_rows_that_the_version_did_not_learn(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1], general.answers["*"] = right_but_for(10), right_but_for(4)
    folder = with_schema(make_adapter(1))
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"provenance": {"dataset": "d" * 64}}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    async with run_gateway(configure()) as running, running.http() as http:
        await running.place(folder)
        write_train(running, "d" * 64, range(20))
        await ended(http, (await begin(http, data(30)))["id"])
        await fill_list(running.services.redis, time.time() + 60)  # newer ones of another task
        prompted = await find_prompted(running.features[Evaluations], "returns")
    assert prompted is not None
    assert prompted.tuned is not None
    assert (prompted.right.value, prompted.right.of, prompted.tuned.value, prompted.tuned.of) == (0.7, 10, 0.9, 10)


def write_train(running: RunningGateway, digest: str, numbers: range) -> Path:
    """The training rows of a data set: items of these numbers."""
    train = running.services.settings.dataset_folder / digest / "train.jsonl"
    train.parent.mkdir(parents=True)
    chats = {n: [{"role": "user", "content": f"Item {n}"}, {"role": "assistant", "content": "x"}] for n in numbers}
    train.write_text("".join(json.dumps({"id": str(n), "messages": chat}) + "\n" for n, chat in chats.items()))
    return train


async def test_prompts_are_evaluated_on_a_task_that_has_no_version(
    configure: Configure, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers["*"], general.answers["*"] = right_but_for(2), right_but_for(4)
    async with run_gateway(configure()) as running, running.http() as http:
        lacking = await begin(http, data(2), status=400, version="returns")
        assert "give a prompt" in lacking["error"]["message"]
        begun = await begin(http, data(40), version="returns", prompt="Decide by the rules: & no more.")
        told = await ended(http, begun["id"])
        assert (told["status"], told["version"], told["arms"]) == ("done", "returns", ["base", "general"])
        right = {arm: figures["accuracy"]["right"] for arm, figures in told["report"]["arms"].items()}
        assert right == {"base": 20, "general": 30}
    for engine in (small, general):
        asked = [seen.body for seen in engine.requests if "Item" in seen.prompt]
        systems = {body["messages"][0]["content"] for body in asked if body["messages"][0]["role"] == "system"}
        assert (systems, {body["temperature"] for body in asked}) == ({"Decide by the rules: & no more."}, {0})


async def test_a_prompt_alone_is_judged_as_the_version_that_leads(ready: RunningGateway, small: FakeEngine) -> None:
    small.answers["*"] = lambda body: right_but_for(2)(body).replace("{", '{"why": "as I see it", ', 1)
    async with ready.http() as http:
        told = await ended(http, (await begin(http, data(20), version="returns", prompt="Decide."))["id"])
        assert (told["metric"], (await ended(http, (await begin(http, data(20)))["id"]))["metric"]) == (
            "fields:decision",
            "fields:decision",
        )
        assert told["report"]["arms"]["base"]["accuracy"]["right"] == 10


async def test_a_prompt_joins_a_version_as_the_arms_base_and_general(ready: RunningGateway, small: FakeEngine) -> None:
    small.answers["*"] = right_but_for(2)
    async with ready.http() as http:
        begun = await begin(http, data(20), prompt="Decide.")
        told = await ended(http, begun["id"])
        assert told["arms"] == ["adapter", "general", "base"]
        assert told["asked"]["general"]["prompt"] == "Decide."
        assert told["report"]["arms"]["base"]["accuracy"]["right"] == 10


async def test_hard_cases_are_what_people_corrected_and_the_report_tells_what_lacks(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers["*"] = said("deny")
    async with run_gateway(configure(tasks={"returns": {"texts": {"keep": "all"}}})) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        none = await add(http, b"", status=400, kind="hard", since="2026-01-01")
        assert "(no text is kept): have requests labelled" in none["error"]["message"]
        requests = [await ask(http, "returns", f"Item {n}") for n in range(12, 24)]
        requests += [await ask(http, "returns", f"Which invoice currency, customer {n}?") for n in range(4)]
        await judge(http, requests[0], True)
        await judge(http, requests[1], False)
        await judge(http, requests[2], False, demonstration={"decision": "approve"})
        texts = running.features[Texts]
        await until(lambda: not len(texts.queue) and not texts.spool.records)
        refused = await add(http, b"", status=400, kind="general", since="2026-01-01")
        assert "the kind is hard" in refused["error"]["message"]
        cli = ("suites", "add", "returns", "--from-production", "--json")
        folder = running.services.settings.dataset_folder
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):  # an erasure goes on: it would not find the texts that the suite comes to hold
            adding = asyncio.create_task(add(http, b"", kind="hard", since="2026-01-01"))
            assert not (await asyncio.wait({adding}, timeout=0.5))[0]
        await adding
        connection = ("--gateway", running.url, "--key", running.admin_key)
        told = await asyncio.to_thread(run, *cli, "--since", "7d", *connection)
        assert told.exit_code == 0, told.err
        suite = told.json
        assert (suite["rows"], suite["counts"]["source"]) == (1, {"requests": 1})
        [[row]] = [rows async for rows in running.features[Evaluations].suites.rows(Suite(**suite))]
        assert (row.request, json.loads(row.expected)) == (requests[2], {"decision": "approve"})
        lacking = await asyncio.to_thread(run, *cli, *connection)
        assert "--from-production with --since" in lacking.err

        begun = await begin(http, data(40), arms="adapter")
        production = (await ended(http, begun["id"]))["report"]["production"]
        assert (production["requests"], production["unlike"]) == (16, 4)
        assert production["words"].startswith("25.0% of 16 requests of production are unlike any row")
        assert "nvoice" not in production["words"]
