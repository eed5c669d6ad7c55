"""Evaluations over a real gateway: both arms, what is kept, kill and resume, calibration, and data of no use."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.features.evaluations.state import Evaluations
from monitoring.texts import FORGOTTEN_KEY
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, audit_of, metric
from tests.walks.test_process import served

LEASE_KEY = "apprentice:duty:evaluations"

SCHEMA = {
    "type": "object",
    "properties": {"decision": {"enum": ["approve", "deny"]}},
    "required": ["decision"],
    "additionalProperties": False,
}
JSON_LINES = {"content-type": "application/x-ndjson"}
PATH = "/admin/v1/evaluations"


def said(decision: str) -> str:
    return json.dumps({"decision": decision})


def asked_number(body: Any) -> int:
    last = str(body["messages"][-1]["content"]).rsplit(" ", 1)[1]
    return int(last) if last.isdecimal() else 1


def items_asked(engine: FakeEngine) -> int:
    return sum("Item" in seen.prompt for seen in engine.requests)


def decided(number: int) -> str:
    return ("approve", "deny")[number % 2]


def data(count: int) -> bytes:
    """Rows whose right answer alternates between the classes."""
    rows = ({"id": f"r{n}", "text": f"Item {n}", "expected": {"decision": decided(n)}} for n in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def right_but_for(wrong: int) -> Any:
    """Answers that are wrong for one in so many numbers."""
    return lambda body: said(decided(asked_number(body) + (asked_number(body) % wrong == 0)))


def with_schema(folder: Path) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"contract": {"json_schema": SCHEMA}}))
    return folder


@pytest.fixture
async def ready(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> AsyncIterator[RunningGateway]:
    """A gateway whose returns@v1 is wrong on each tenth row, and general on each fourth."""
    small.answers[V1] = right_but_for(10)
    general.answers["*"] = right_but_for(4)
    async with run_gateway(configure()) as running:
        await running.place(with_schema(make_adapter(1)))
        yield running


async def begin(http: httpx.AsyncClient, rows: bytes, status: int = 201, **query: Any) -> dict[str, Any]:
    answer = await http.post(PATH, params={"version": V1, **query}, content=rows, headers=JSON_LINES)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def ended(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        told = (await http.get(f"{PATH}/{name}")).json()
        return told if told["status"] != "running" else None

    found = await until(look)
    return dict(found)


async def test_both_arms_are_run_judged_paid_for_and_audited(ready: RunningGateway, general: FakeEngine) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(60), class_field="decision")
        told = await ended(http, begun["id"])
        assert (told["status"], told["metric"], told["arms"]) == ("done", "fields:decision", ["adapter", "general"])
        report = told["report"]
        adapter, other = report["arms"]["adapter"], report["arms"]["general"]
        assert (adapter["rows"], adapter["accuracy"]["right"], adapter["contract_kept"]["share"]) == (60, 54, 1.0)
        assert other["accuracy"]["right"] == 45
        assert adapter["f1"]["by_class"]["deny"]["rows"] == 30
        assert adapter["latency_seconds"]["p50"] > 0
        assert 0 < adapter["cost_usd"] < other["cost_usd"]
        (pair,) = report["paired"]
        assert (pair["difference"], pair["rows"]) == (0.15, 60)
        assert any("fewer than 1,000" in one for one in report["cannot_see"])
        assert "".join(str(seen.body["messages"][0]["content"]) for seen in general.requests) == GENERAL_PROMPT * 60
        assert await metric(http, "apprentice_cost_usd_total", 'purpose="evaluation"') > 0
        assert await metric(http, "apprentice_cost_usd_total", 'purpose="serve"') == 0
        assert await metric(http, "apprentice_evaluation_rows_total", 'outcome="wrong"') == 21
        (entry,) = await audit_of(http, "evaluation.begin")
        assert (entry["object"], entry["after"]["rows"]) == (V1, 60)
        (entry,) = await until(lambda: audit_of(http, "evaluation.end"))
        assert entry["evidence"]["accuracy"]["adapter"]["right"] == 54
        shown = (await http.get(f"/admin/v1/adapters/{V1}")).json()
        assert shown["evaluation"]["accuracy"]["adapter"]["share"] == 0.9
        why = (await http.get(f"/admin/v1/adapters/{V1}/why")).json()
        assert any("adapter was right on 90.0% of 60 rows" in words for words in why["words"])


async def test_groups_that_a_later_row_joins_count_as_one_and_tools_are_sent(
    ready: RunningGateway, small: FakeEngine
) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    rows = [
        {"text": "Item 1", "expected": said("deny"), "group": "one"},
        {"text": "Item 2", "expected": said("approve"), "group": "two"},
        {"text": "Item 3", "expected": said("deny"), "group": "one", "parent": "four"},
        {"text": "Item 4", "expected": said("approve"), "group": "two", "parent": "four", "tools": tools},
    ]
    async with ready.http() as http:
        begun = await begin(http, b"".join(json.dumps(row).encode() + b"\n" for row in rows), arms="adapter")
        report = (await ended(http, begun["id"]))["report"]
    assert (report["rows"], report["groups"]) == (4, 1)
    offered = {str(seen.body["messages"][-1]["content"]): seen.body.get("tools") for seen in small.requests}
    assert (offered["Item 3"], offered["Item 4"]) == (None, tools)


@pytest.mark.invariant("No text of an evaluation is kept after its end.")
async def test_no_text_is_kept_once_it_is_done(ready: RunningGateway) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(12), class_field="decision")
        await ended(http, begun["id"])
        rows = (await http.get(f"{PATH}/{begun['id']}/rows", params={"first": 2, "limit": 4})).json()
    assert [row["id"] for row in rows["rows"]] == ["r2", "r3", "r4", "r5"]
    assert (rows["next_first"], rows["rows"][0]["arms"]["adapter"]["expected"]) == (6, "approve")
    assert len(rows["rows"][0]["arms"]["adapter"]["logprobs"]) == 2
    redis: Any = ready.services.redis
    keys = [key async for key in redis.scan_iter(match="apprentice:evaluation:*")]
    assert f"apprentice:evaluation:{begun['id']}:data".encode() not in keys
    held = [await redis.dump(key) for key in keys]
    assert not [value for value in held if b"Item" in value]
    assert min([await redis.ttl(key) for key in keys]) > 0


async def test_the_same_again_is_there_already_and_again_begins_anew(ready: RunningGateway, small: FakeEngine) -> None:
    async with ready.http() as http:
        first = await begin(http, data(8))
        await ended(http, first["id"])
        asked = small.requests_total
        second = await begin(http, data(8), status=200)
        assert (second["id"], second["status"], small.requests_total) == (first["id"], "done", asked)
        assert (await begin(http, data(8), metric="exact"))["id"] != first["id"]
        third = await begin(http, data(8), again=True)
        assert (third["id"], third["status"]) == (first["id"], "running")
        await ended(http, first["id"])
        assert small.requests_total == asked + 16
        listed = (await http.get(PATH)).json()["evaluations"]
        assert {one["id"] for one in listed} >= {first["id"]}
        assert "report" not in listed[0]


async def test_another_version_is_an_arm_too(
    ready: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    v2 = await ready.place(with_schema(make_adapter(2)), alias=False)
    small.answers[v2] = right_but_for(2)
    async with ready.http() as http:
        begun = await begin(http, data(40), arms="adapter", against=v2)
        report = (await ended(http, begun["id"]))["report"]
        beside_prompt = await begin(http, data(2), arms="general", against=v2, prompt="Decide.")
        assert beside_prompt["arms"] == ["against", "general"]
    assert list(report["arms"]) == ["adapter", "against"]
    assert report["paired"][0]["difference"] == pytest.approx(0.4)


async def test_what_leads_and_the_best_that_led_are_arms_on_the_same_rows(
    ready: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(40))
        assert list((await ended(http, begun["id"]))["asked"]) == ["adapter", "general"], "it leads itself"
        await begin(http, data(40), status=400, arms="leading,best")
        v2, v3 = [await ready.place(with_schema(make_adapter(number)), alias=number == 2) for number in (2, 3)]
        small.answers[v2], small.answers[v3] = right_but_for(5), right_but_for(1000)
        await ended(http, (await begin(http, data(40), version=v2))["id"])  # on the same rows: v1 is better than v2
        told = await ended(http, (await begin(http, data(40), version=v3))["id"])
        assert told["arms"] == ["adapter", "general", "leading", "best"]
        assert told["asked"]["leading"]["version"] == v2
        assert told["asked"]["best"] == {**told["asked"]["best"], "version": V1}
        assert told["asked"]["best"]["digest"].startswith("sha256:")
        assert [pair["second"] for pair in told["report"]["paired"]] == ["general", "leading", "best"]
        assert [pair["difference"] for pair in told["report"]["paired"][1:]] == [0.175, 0.075]
        unstaged = await http.post(f"/admin/v1/adapters/{V1}/unload")
        assert unstaged.status_code in (200, 202), unstaged.text
        told = await ended(http, (await begin(http, data(40), version=v3))["id"])
        assert (told["arms"], told["notes"]) == (
            ["adapter", "general", "leading"],
            [f"{V1}, the best that has led, is not loaded and was not asked: stage it, then evaluate again."],
        )


@pytest.mark.invariant("No row of an evaluation is asked twice because a gateway was killed.")
async def test_a_kill_in_the_middle_loses_nothing_and_the_next_gateway_goes_on(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redis: Redis, tmp_path: Path
) -> None:
    small.answers[V1] = right_but_for(10)
    small.first_token_delay_seconds = 0.05
    config, key = tmp_path / "apprentice.yaml", new_key()[0]
    content = configure(evaluation={"concurrency": 1}, listen={"port": 0}, log_format="text")
    config.write_text(yaml.safe_dump(json.loads(json.dumps(content, default=str))))
    async with run_gateway(content, key) as first:
        await first.place(with_schema(make_adapter(1)))
    async with served(config, key) as process, client_of(process.url, key) as http:
        begun = await begin(http, data(60), arms="adapter")

        async def some() -> bool:
            return int((await http.get(f"{PATH}/{begun['id']}")).json()["progress"]["adapter"]["done"]) >= 5

        await until(some)
        await process.stop(signal.SIGKILL)
    await redis.delete(LEASE_KEY)  # it would run out by itself
    assert items_asked(small) < 60
    small.first_token_delay_seconds = 0.0
    async with run_gateway(content, key) as second, second.http() as http:
        told = await ended(http, begun["id"])
        assert (told["status"], told["report"]["arms"]["adapter"]["rows"]) == ("done", 60)
        assert told["report"]["arms"]["adapter"]["accuracy"]["right"] == 54
        assert items_asked(small) <= 61, "but for the one that was under way, no row is asked twice"


@asynccontextmanager
async def client_of(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        yield http


async def test_it_can_be_stopped_goes_on_later_and_is_forgotten(ready: RunningGateway, small: FakeEngine) -> None:
    small.first_token_delay_seconds = 0.05
    async with ready.http() as http:
        begun = await begin(http, data(200), arms="adapter")

        async def some() -> bool:
            return int((await http.get(f"{PATH}/{begun['id']}")).json()["progress"]["adapter"]["done"]) >= 5

        await until(some)
        stopped = (await http.delete(f"{PATH}/{begun['id']}")).json()
        assert (stopped["status"], stopped["report"]) == ("cancelled", None)
        assert [entry["object"] for entry in await audit_of(http, "evaluation.cancel")] == [V1]
        await until(lambda: nothing_asked(small))
        done = (await http.get(f"{PATH}/{begun['id']}")).json()["progress"]["adapter"]["done"]
        assert done < 200
        small.first_token_delay_seconds = 0.0
        asked = small.requests_total
        await begin(http, data(200), status=200, arms="adapter")
        assert (await ended(http, begun["id"]))["status"] == "done"
        assert small.requests_total - asked == 200 - done
        assert (await http.delete(f"{PATH}/{begun['id']}")).json()["status"] == "forgotten"
        assert (await http.get(f"{PATH}/{begun['id']}")).status_code == 404
        assert (await http.get(f"/admin/v1/adapters/{V1}")).json()["evaluation"] is None


async def nothing_asked(engine: FakeEngine) -> bool:
    before = engine.requests_total
    await asyncio.sleep(0.3)
    return engine.in_flight == 0 and engine.requests_total == before


async def until_in_force(running: RunningGateway) -> None:
    """Wait until the models of evaluations that have ended are in force: they come after the end."""

    async def are_put() -> bool:
        return not await running.features[Evaluations].store.models.waiting()

    await until(are_put)


@pytest.mark.invariant("No text of an evaluation is kept after its end.")
async def test_rows_of_erased_requests_are_left_out_and_models_are_fitted_from_the_others(
    ready: RunningGateway,
) -> None:
    await ready.services.redis.mset({f"{FORGOTTEN_KEY}{name}": 1 for name in ("r0", "r5")})
    async with ready.http() as http:
        refused = await begin(http, data(1), status=400)
        assert "All its rows are of requests whose texts were erased" in refused["error"]["message"]
        begun = await begin(http, data(150), calibrate=True, fit_gain=True)
        assert begun["notes"][-1] == "2 of 150 rows are left out: their requests' texts were erased."
        told = await ended(http, begun["id"])
        assert (told["status"], told["note"]) == ("done", "")
        report = told["report"]
        assert (report["calibration"]["rows"], report["calibration"]["error"]) == (148, None)
        assert (report["gain"]["rows"], report["arms"]["adapter"]["accuracy"]["of"]) == (148, 148)
        page = (await http.get(f"{PATH}/{begun['id']}/rows", params={"first": 149})).json()["rows"]
        assert [(row["number"], row["id"]) for row in page] == [(149, "r149")], "the others keep their numbers"


async def test_labels_leave_no_expected_answer_behind(ready: RunningGateway) -> None:
    rows = [{"text": f"Item {n}", "expected": f"confidential {n % 60}", "label": f"kind-{n % 60}"} for n in range(120)]
    async with ready.http() as http:
        begun = await begin(http, b"".join(json.dumps(row).encode() + b"\n" for row in rows), arms="adapter")
        told = await ended(http, begun["id"])
        assert (told["status"], told["classes"]["source"]) == ("done", "label")
        assert told["report"]["arms"]["adapter"]["f1"]["macro"] == 0.0, "answers had classes"
    assert "kind-7" in await held_in(ready)
    assert "confidential" not in await held_in(ready)


async def held_in(running: RunningGateway) -> str:
    """All that evaluations have in Redis, in clear."""
    redis: Any = running.services.redis
    held: list[Any] = []
    for key in [key async for key in redis.scan_iter(match="apprentice:evaluation*")]:
        kind = (await redis.type(key)).decode()
        read = {"string": redis.get, "hash": redis.hgetall, "set": redis.smembers}.get(kind)
        held.append(await read(key) if read is not None else await redis.object("encoding", key))
    return repr(held)


async def test_it_waits_where_no_replica_can_answer_and_says_so(
    ready: RunningGateway, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.features.evaluations.row_asking.TOLD_SECONDS", 0.05)
    async with ready.http() as http:
        assert (await http.post("/admin/v1/replicas/small-0/cordon", json={})).status_code == 200
        begun = await begin(http, data(4), arms="adapter")

        async def waits() -> str | None:
            told = (await http.get(f"{PATH}/{begun['id']}")).json()
            return told["waits_for"]

        assert "no replica of the pool 'small' can answer" in str(await until(waits))
        assert (await http.post("/admin/v1/replicas/small-0/uncordon", json={})).status_code == 200
        assert (await ended(http, begun["id"]))["status"] == "done"


@pytest.mark.parametrize(
    ("step", "todo"), [("unload", "stage it, and run the evaluation again"), ("retire", "evaluate without it")]
)
async def test_a_version_that_goes_meanwhile_ends_it_with_what_to_do(
    ready: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, step: str, todo: str
) -> None:
    v2 = await ready.place(with_schema(make_adapter(2)), alias=False)
    small.first_token_delay_seconds = 0.05
    async with ready.http() as http:
        begun = await begin(http, data(300), arms="adapter", version=v2)
        assert (await http.post(f"/admin/v1/adapters/{v2}/{step}")).status_code in (200, 202)
        told = await ended(http, begun["id"])
    assert told["status"] == "failed"
    assert todo in told["note"]


NO_DATA: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", {}, 400, "no row"),
    (b"\xff\n", {}, 400, "Line 1: it is not text"),
    (data(2) + b'{"text": "x"}\n', {}, 400, "Line 3: it has no expected answer"),
    (b'{"messages": [{"role": "robot"}], "expected": "a"}\n', {}, 400, "Line 1: "),
    (b'{"messages": [{"content": "x"}], "expected": "a"}\n', {}, 400, "Line 1: "),
    (data(2), {"version": "returns@v9"}, 404, "no version"),
    (data(2), {"metric": "f1"}, 400, "is not a metric"),
    (data(2), {"metric": "fields:rule"}, 400, "Line 1: "),
    (data(2), {"class_field": "rule"}, 400, "Line 1: "),
    (data(2), {"arms": "specific"}, 400, "Arms are"),
    (data(2), {"arms": ""}, 400, "Arms are"),
    (data(2), {"arms": "base,bas", "version": "returns", "prompt": "Decide."}, 400, "the arms base and general"),
    (data(2), {"arms": "general", "calibrate": "true"}, 400, "needs the arm adapter"),
    (data(2), {"arms": "adapter", "fit_gain": "true"}, 400, "adapter and general"),
    (data(2), {"against": V1}, 400, "no other version"),
    (data(2), {"rows": "3"}, 400, "no parameter rows"),
    (data(40), {}, 400, "more than 30 rows"),
    (b'{"text": "' + b"x" * 5000 + b'", "expected": "a"}\n', {}, 400, "more than 4000 bytes"),
    (b" " * 20_000, {}, 413, "evaluation.bytes_max"),
]


async def test_data_that_can_not_be_used_begin_nothing(
    configure: Configure, make_adapter: MakeAdapter, subtests: pytest.Subtests
) -> None:
    limits = {"rows_max": 30, "row_bytes_max": 4000, "bytes_max": 10_000}
    async with run_gateway(configure(evaluation=limits)) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        for rows, query, status, text in NO_DATA:
            with subtests.test(query=query, text=text):
                answer = await http.post(PATH, params={"version": V1, **query}, content=rows, headers=JSON_LINES)
                assert answer.status_code == status, answer.text
                assert text in answer.json()["error"]["message"]
                assert (await http.get(PATH)).json() == {"evaluations": []}
                redis: Any = running.services.redis
                assert not [key async for key in redis.scan_iter(match="apprentice:evaluation*")]


async def test_it_is_for_admins_and_for_data_that_say_what_they_are(ready: RunningGateway) -> None:
    operator, caller = await ready.key(role="operator"), await ready.key()
    for key, status in ((operator, 403), (caller, 403), ("", 401)):
        async with ready.http(key) as http:
            answer = await http.post(PATH, params={"version": V1}, content=data(2), headers=JSON_LINES)
            assert answer.status_code == status
    async with ready.http(operator) as http:
        assert (await http.get(PATH)).status_code == 200
        assert (await http.get(f"{PATH}/no-such")).status_code == 404
    async with ready.http() as http:
        answer = await http.post(PATH, params={"version": V1}, json={"text": "x"})
        assert answer.status_code == 415


@pytest.mark.invariant("No evaluation keeps a caller waiting.")
async def test_while_callers_wait_no_row_is_asked(ready: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.features.evaluations.row_asking.TOLD_SECONDS", 0.05)
    ready.services.admission.waiting += 1
    try:
        async with ready.http() as http:
            begun = await begin(http, data(4), arms="adapter")

            async def waits() -> str | None:
                told = (await http.get(f"{PATH}/{begun['id']}")).json()
                assert told["progress"]["adapter"]["done"] == 0
                return told["waits_for"]

            assert await until(waits) == "callers wait for a place, and go first"
    finally:
        ready.services.admission.waiting -= 1
    async with ready.http() as http:
        assert (await ended(http, begun["id"]))["status"] == "done"
