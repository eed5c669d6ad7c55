"""Answers of two arms side by side: blind, each reviewer in an order of their own, and counted in the report."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.evaluation.erasure import erase_from_evaluations
from monitoring.redis_address import open_redis
from tests.fakes.answers import Called
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import run
from tests.gateway.features.evaluations.test_store import fill_list
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.console_browsing import browsing
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, audit_of
from tests.walks.test_evaluate import begin, data, ended, right_but_for, said, with_schema

ROWS = 20
KEY = base64.b64encode(b"k" * 32).decode()
KEPT = {"tasks": {"returns": {"texts": {"keep": "all"}}}, "texts": {"keys": {"k1": KEY}, "key": "k1"}}


@pytest.fixture
async def compared(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> AsyncIterator[tuple[RunningGateway, str]]:
    """A gateway, and the path of pairs of an evaluation: the arms differ on each fourth row."""
    small.answers[V1] = right_but_for(100)
    general.answers["*"] = right_but_for(4)
    async with run_gateway(configure(**KEPT)) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        told = await ended(http, (await begin(http, data(ROWS), class_field="decision"))["id"])
        yield running, f"/v1/evaluations/{told['id']}/pair"


async def judge_all(http: httpx.AsyncClient, path: str, right: dict[int, str]) -> list[dict[str, Any]]:
    """Prefer the right answer of each pair, until none is left."""
    pairs = []
    while (answer := await http.get(path)).status_code == 200:
        pairs.append(pair := answer.json())
        better = "a" if pair["a"] == right[pair["number"]] else "b"
        kept = await http.post(path, json={"number": pair["number"], "better": better})
        assert kept.status_code == 200, kept.text
    assert answer.json()["error"]["code"] == "no_review"
    return pairs


async def test_people_compare_what_differs_and_the_report_counts_it(compared: tuple[RunningGateway, str]) -> None:
    running, path = compared
    right = {number: said(("approve", "deny")[number % 2]) for number in range(ROWS)}
    orders = set()
    for _ in range(4):
        async with running.http(await running.key(role="operator")) as reviewer:
            pairs = await judge_all(reviewer, path, right)
            assert {pair["number"] for pair in pairs} == {4, 8, 12, 16}  # both are wrong on row 0
            assert all("Item" in str(pair["messages"]) and "expected" not in pair for pair in pairs)
            orders |= {(pair["number"], pair["a"] == right[pair["number"]]) for pair in pairs}
    assert {is_first for _, is_first in orders} == {True, False}, "the arm can't be told by its place"
    async with running.http() as http:
        evaluation = path.split("/")[3]
        [told] = (await http.get(f"/admin/v1/evaluations/{evaluation}")).json()["preferences"]
        assert (told["first"], told["second"], told["reviewers"]) == ("adapter", "general", 4)
        assert (told["rows"], told["first_better"], told["second_better"], told["share"]) == (4, 4, 0, 1.0)
        assert len(await audit_of(http, "evaluation.give")) == 16
        place = {"APPRENTICE_URL": running.url, "APPRENTICE_KEY": running.admin_key}
        shown = await asyncio.to_thread(run, "evaluations", "show", evaluation, **place)
        assert "adapter is better on 4, general on 0" in shown.out
        pair = await asyncio.to_thread(run, "evaluations", "compare", evaluation, "--json", **place)
        given = json.loads(pair.out)["number"]
        assert given in {4, 8, 12, 16}
        again = await http.post(path, json={"number": given, "better": "same"}, params={"second": "general"})
        assert again.status_code == 200
        for unseen in {0, 4, 8, 12, 16} - {given}:
            stuffed = await http.post(path, json={"number": unseen, "better": "a"})
            assert (stuffed.status_code, stuffed.json()["error"]["code"]) == (409, "state_conflict")


async def test_a_person_compares_at_the_command_line(compared: tuple[RunningGateway, str]) -> None:
    running, path = compared
    evaluation = path.split("/")[3]
    place = {"APPRENTICE_URL": running.url, "APPRENTICE_KEY": await running.key(role="reviewer", models=["returns"])}
    compare = partial(asyncio.to_thread, run, "evaluations", "compare", evaluation, **place)
    said_so = await compare(typed="both\nA\ns\nk\nq\n")
    assert (said_so.exit_code, said_so.err.count("Better: a, b, s (same), k (skip) or q (quit)")) == (0, 5)
    assert said_so.out.count("Item") == 4
    async with running.http() as http:
        [told] = (await http.get(f"/admin/v1/evaluations/{evaluation}")).json()["preferences"]
    assert (told["rows"], told["skipped"]) == (2, 1)
    left = await compare(typed="b\n")  # what was skipped does not come again
    assert (left.exit_code, left.err.endswith("Nothing is left to compare: thank you.\n")) == (0, True)


async def test_two_arms_in_either_order_are_one_comparison(compared: tuple[RunningGateway, str]) -> None:
    running, path = compared
    right = {number: said(("approve", "deny")[number % 2]) for number in range(ROWS)}
    async with running.http(await running.key(role="operator")) as reviewer:
        assert len(await judge_all(reviewer, path, right)) == 4
        turned = await reviewer.get(path, params={"first": "general", "second": "adapter"})
        assert (turned.status_code, turned.json()["error"]["code"]) == (404, "no_review")


async def test_a_reviewer_compares_blind_and_for_the_keys_tasks_alone(compared: tuple[RunningGateway, str]) -> None:
    running, path = compared
    own, other = [await running.key(role="reviewer", models=[name]) for name in ("returns", "clauses")]
    async with running.http(own) as reviewer, running.http(other) as of_others:
        pair = (await reviewer.get(path)).json()
        word = {"number": pair["number"], "better": "a"}
        refused = [
            await reviewer.get(path, params={"first": "adapter"}),
            await reviewer.post(path, params={"second": "nobody"}, json=word),
            await of_others.get(path),
            await of_others.post(path, params={"first": "nobody"}, json=word),
        ]
        assert [(each.status_code, each.json()["error"]["code"]) for each in refused] == [(403, "role_required")] * 4
        assert not [each for each in refused if "general" in each.text]
        assert (await reviewer.post(path, json=word)).status_code == 200
        [listed] = (await reviewer.get("/v1/evaluations")).json()["evaluations"]
        assert (f"/v1/evaluations/{listed['id']}/pair", listed["task"]) == (path, "returns")
        assert listed.keys() == {"id", "task", "created_at"}, "arms are not told"
        assert (await of_others.get("/v1/evaluations")).json() == {"evaluations": []}


async def test_evaluations_to_compare_are_found_behind_newer_ones_of_other_tasks(
    compared: tuple[RunningGateway, str],
) -> None:
    running, path = compared
    await fill_list(running.services.redis, time.time() + 60)
    async with running.http(await running.key(role="reviewer", models=["returns"])) as reviewer:
        listed = (await reviewer.get("/v1/evaluations")).json()["evaluations"]
    assert [each["id"] for each in listed] == [path.split("/")[3]]


async def test_bad_words_are_refused(compared: tuple[RunningGateway, str]) -> None:
    running, path = compared
    async with running.http() as http:
        for body, query, param in (
            ({"number": 99, "better": "a"}, {}, "number"),
            ({"number": 1, "better": "c"}, {}, "better"),
            ({"number": 1, "better": "a"}, {"first": "leading"}, "first"),
            ({"number": 1, "better": "a"}, {"second": "adapter", "first": "adapter"}, "second"),
        ):
            refused = await http.post(path, json=body, params=query)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
        assert (await http.get("/v1/evaluations/none/pair")).status_code == 404


async def test_without_kept_texts_it_is_told_how_to_keep_them(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1], general.answers["*"] = right_but_for(100), right_but_for(4)
    async with run_gateway(configure()) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        told = await ended(http, (await begin(http, data(ROWS)))["id"])
        answer = await http.get(f"/v1/evaluations/{told['id']}/pair")
        assert (await http.get("/v1/evaluations")).json() == {"evaluations": []}
    assert "set tasks.returns.texts" in answer.json()["error"]["message"]


def call_or_refuse(arguments: dict[str, Any], body: dict[str, Any]) -> Called | str:
    return Called("refund", arguments) if "A-7" in str(body["messages"]) else "I may not."


async def list_texts(running: RunningGateway, evaluation: str, erased: str | None) -> list[int]:
    """The number of kept texts by row, tools first, once this row is erased."""

    url = running.services.settings.redis_url
    assert url is not None

    def look() -> list[int]:
        with open_redis(url.get_secret_value()) as redis:
            if erased is not None:
                erase_from_evaluations(redis, {erased}, [])
            fields: Any = redis.hkeys(f"apprentice:evaluation:{evaluation}:texts")
        counts = Counter(int(field.split(b":")[0]) for field in fields)
        return [counts[number] for number in sorted(counts)]

    return await asyncio.to_thread(look)


async def test_texts_of_an_evaluation_have_the_tools_and_the_calls(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, tmp_path: Path
) -> None:
    tool: dict[str, Any] = {"type": "function", "function": {"name": "refund", "description": "Ask jo@shop.example."}}
    right, wrong = ({"tool_calls": [{"name": "refund", "arguments": {"order": order}}]} for order in ("A-7", "A-8"))
    row = {"id": "r0", "text": "Refund A-7.", "tools": [tool], "tool_choice": "required", "expected": right}
    other = {"id": "r1", "text": "Refund B-7.", "tools": [tool], "expected": "I may not."}
    small.auto_tool_choice = general.auto_tool_choice = True
    rows = b"".join(json.dumps(each).encode() + b"\n" for each in (row, other))
    small.answers[V1], general.answers["*"] = (
        partial(call_or_refuse, said["tool_calls"][0]["arguments"]) for said in (wrong, right)
    )
    async with (
        run_gateway(configure(**KEPT)) as running,
        running.http() as http,
        browsing(running, running.admin_key) as page,
    ):
        await running.place(make_adapter(1))
        evaluation = (await ended(http, (await begin(http, rows))["id"]))["id"]
        read, _ = (await http.get(f"/admin/v1/evaluations/{evaluation}/texts")).json()["rows"]
        place = {"APPRENTICE_URL": running.url, "APPRENTICE_KEY": running.admin_key}
        file, as_json = tmp_path / "report.md", tmp_path / "report.json"
        for path in (file, as_json):
            await asyncio.to_thread(run, "evaluations", "show", evaluation, "--out", str(path), **place)
        pair = (await http.get(f"/v1/evaluations/{evaluation}/pair")).json()
        shown = (await page.get(f"/console/compare/{evaluation}")).text
        left = [await list_texts(running, evaluation, erased) for erased in (None, "r1", "r0")]
    masked = tool | {"function": tool["function"] | {"description": "Ask [email]."}}
    assert (read["tools"], read["tool_choice"], read["right"]) == (
        [masked],
        "required",
        {"adapter": False, "general": True},
    )
    assert (pair["tools"], pair["tool_choice"]) == ([masked], "required")
    assert json.loads(as_json.read_text())["wrong_rows"][0] == read
    assert left == [[1, 3, 3], [1, 3], []], "tools are kept once, and go with the last row that has them"
    assert [json.loads(each) for each in (read["expected"], *read["answers"].values())] == [right, wrong, right]
    assert 'tools: refund() tool_choice: "required" user: Refund A-7.' in file.read_text()
    assert '|refund({"order":"A-7"})|refund({"order":"A-8"})|refund({"order":"A-7"})|' in file.read_text()
    assert ("1 tool, tool_choice required" in shown, "Ask [email]." in shown) == (True, True)
