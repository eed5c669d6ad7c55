"""The gate in front of canaries and promotions: what it holds up, what it lets through, and what passes it by force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis.asyncio import Redis

from gateway.features.releases import alias_endpoints
from gateway.release_gate import GatePass
from gateway.state.gate_store import COMPARISONS_KEY
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import command_for, ok
from tests.gateway.cli.exported_state import exported, refused
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.console_browsing import browsing
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, V2, alias, audit_of, step
from tests.walks.test_evaluate import asked_number, begin, data, decided, ended, right_but_for, said, with_schema
from tests.walks.test_suites import add as add_suite
from tools.example_adapter import AdminApi, place_adapter

ROWS = 120
FLOOR = {"gate": "enforce", "margin": 0.15, "class_loss_max": 0.5, "latency_ratio_max": 100}
RELEASE = {**FLOOR, "floor": "off"}
PAST = {"past_gate": "The old version is unsafe."}


@pytest.fixture
async def two(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> AsyncIterator[RunningGateway]:
    """A gateway that enforces the gate: returns@v1 leads, and returns@v2 is loaded."""
    small.answers[V1], small.answers[V2] = right_but_for(10), right_but_for(12)
    async with run_gateway(configure(release=RELEASE)) as running:
        await running.place(with_schema(make_adapter(1)))
        await running.place(with_schema(make_adapter(2)), alias=False)
        yield running


async def evaluate(http: httpx.AsyncClient, version: str, rows: int = ROWS, **query: Any) -> dict[str, Any]:
    wanted = {"arms": "adapter,leading,best", "class_field": "decision", "version": version} | query
    return await ended(http, (await begin(http, data(rows), **wanted))["id"])


def after_gate(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[Any]]) -> None:
    """Have something happen between the gate's verdict and the step that it is for."""
    pass_gate = alias_endpoints.pass_gate

    async def pass_and_act(*asked: Any) -> GatePass:
        passed = await pass_gate(*asked)
        await act()
        return passed

    monkeypatch.setattr(alias_endpoints, "pass_gate", pass_and_act)


async def gate(http: httpx.AsyncClient, version: str) -> dict[str, Any]:
    return dict((await http.get(f"/admin/v1/adapters/{version}/gate")).json())


@pytest.mark.invariant("Nothing answers requests that the gate was not shown, but by force.")
async def test_a_version_without_a_report_is_held_up_at_every_door(two: RunningGateway) -> None:
    async with two.http() as http:
        assert (await gate(http, V1))["because"] == "It leads its task, or has led it: a way back is never blocked."
        doors: list[tuple[str, dict[str, Any]]] = [
            ("canary", {"version": V2, "share": 0.2}),
            ("promote", {"version": V2}),
            ("rollback", {"version": V2}),
        ]
        for name, body in doors:
            error = (await step(http, name, 409, **body))["error"]
            assert error["code"] == "gate_not_passed"
            assert "No evaluation compares it with returns@v1, which leads" in error["message"]
        moved = await http.put("/admin/v1/aliases/returns", json={"weights": {V1: 0.5, V2: 0.5}})
        assert moved.json()["error"]["code"] == "gate_not_passed"
        await http.delete("/admin/v1/aliases/returns")
        assert (await step(http, "promote", 409, version=V2))["error"]["code"] == "gate_not_passed"
        assert (await step(http, "promote", version=V1))["weights"] == {V1: 1.0}
        assert (await step(http, "shadow", version=V2, share=0.5))["shadow"] == {V2: 0.5}, "nobody sees its answers"


@pytest.mark.invariant("A task's first version beats the most frequent answer, or is not shown.")
async def test_a_first_version_is_held_up_until_it_beats_the_most_frequent_answer(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1], general.answers["*"] = lambda _: said("approve"), right_but_for(4)
    async with run_gateway(configure(release=FLOOR)) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)), alias=False)
        unseen = (await step(http, "promote", 409, version=V1))["error"]
        assert "No evaluation compares it with the most frequent answer" in unseen["message"]
        await evaluate(http, V1, arms="adapter")
        told = await gate(http, V1)
        assert (told["verdict"], told["lines"][0]["subject"]) == ("failed", "floor")
        assert "+0.0 points to the most frequent answer, which is right on 50.0% of 120 rows" in told["because"]
        assert (await step(http, "promote", 409, version=V1))["error"]["code"] == "gate_not_passed"
        small.answers[V1] = right_but_for(10)
        await evaluate(http, V1, arms="adapter,general")
        told = await gate(http, V1)
        assert told["because"] == "It is shown to be better than the most frequent answer, and no worse than general."
        assert told["held_against"] == {"floor": "the most frequent answer", "general": "general"}
        redis = running.services.redis
        known = json.loads(await redis.hget(COMPARISONS_KEY, V1) or "")
        former = {name: each for name, each in known.items() if not name.startswith("the most frequent")}
        await redis.hset(COMPARISONS_KEY, V1, json.dumps(former))  # as an earlier release left it
        told = await gate(http, V1)
        last = (await http.get("/admin/v1/evaluations")).json()["evaluations"][0]["id"]
        assert told["because"].startswith(f"The evaluation {last} ended before the gate held first versions against")
        await evaluate(http, V1, arms="adapter,general", again=True)
        assert (await gate(http, V1))["verdict"] == "passed"
        why = (await http.get(f"/admin/v1/adapters/{V1}/why")).json()["words"]
        assert any(words.startswith("The gate holds it against the most frequent answer") for words in why), why
        assert (await step(http, "promote", version=V1))["weights"] == {V1: 1.0}


async def test_what_is_shown_to_be_no_worse_passes_and_the_audit_has_the_evidence(two: RunningGateway) -> None:
    async with two.http() as http:
        name = (await evaluate(http, V2))["id"]
        told = await gate(http, V2)
        assert (told["verdict"], told["evaluations"], told["mode"]) == ("passed", [name], "enforce")
        assert {line["subject"] for line in told["lines"]} == {"accuracy", "classes", "contract", "latency", "cost"}
        assert (await step(http, "canary", version=V2, share=0.2))["weights"][V2] == 0.2
        assert (await step(http, "promote", version=V2))["weights"] == {V2: 1.0}
        (entry,) = await audit_of(http, "alias.promote")
        (evidence,) = entry["evidence"]["gate"]
        assert (evidence["verdict"], evidence["evaluations"], evidence["forced"]) == ("passed", [name], None)
        assert (await step(http, "rollback"))["weights"] == {V1: 1.0}
        await http.delete(f"/admin/v1/evaluations/{name}")
        assert (await gate(http, V2))["verdict"] == "cannot_tell", "a report that was forgotten is none"


@pytest.mark.invariant("Nothing answers requests that the gate was not shown, but by force.")
async def test_of_two_promotions_at_one_moment_the_gate_lets_one_through(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    v3, both_passed = "returns@v3", asyncio.Barrier(2)
    small.answers[v3] = right_but_for(12)
    await two.place(with_schema(make_adapter(3)), alias=False)
    async with two.http() as http, two.http() as other:
        for name in (V2, v3):
            await evaluate(http, name)
        after_gate(monkeypatch, both_passed.wait)
        bodies = ((http, V2), (other, v3))
        moves = (client.post("/admin/v1/aliases/returns/promote", json={"version": name}) for client, name in bodies)
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*moves)
        assert sorted(answer.status_code for answer in answers) == [200, 409], "neither was compared with the other"
        assert (await alias(http))["previous"] == [V1]


async def test_a_share_that_moves_behind_the_gate_holds_up_no_promotion(
    two: RunningGateway, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.place(with_schema(make_adapter(3)), alias=False)
    async with two.http() as http, two.http() as other:
        after_gate(monkeypatch, lambda: step(other, "shadow", version="returns@v3", share=0.5))
        moved = await step(http, "promote", version=V2, **PAST)
        assert moved["warnings"][0].startswith(f"{V2} was let past the gate by force.")
        assert (await alias(http))["weights"] == {V2: 1.0}


async def test_a_worse_version_fails_and_is_forced_with_a_reason_that_stays(
    two: RunningGateway, small: FakeEngine
) -> None:
    small.answers[V2] = right_but_for(2)
    async with two.http() as http:
        await evaluate(http, V2)
        assert (await gate(http, V2))["verdict"] == "failed"
        assert "points to returns@v1 on 120 rows" in (await step(http, "promote", 409, version=V2))["error"]["message"]
        for blank in ("", " "):
            await step(http, "promote", 400, version=V2, past_gate=blank)
        moved = await step(http, "promote", version=V2, **PAST)
        assert moved["warnings"][0].startswith(f"{V2} was let past the gate by force. Right answers: ")
        (entry,) = await audit_of(http, "alias.promote")
        assert entry["evidence"]["gate"][0]["forced"] == PAST["past_gate"]
        report = (await http.get("/admin/v1/tasks/returns/quality")).json()["report"]
        told = report["caveats"]
        assert any(words.startswith(f"{V2} was let past the gate by force") for words in told), told
        assert any(
            "passes it now (`apprentice gate returns returns@v2`), else go back" in one for one in report["next"]
        )
        assert (await step(http, "rollback"))["weights"] == {V1: 1.0}
        why = (await http.get(f"/admin/v1/adapters/{V2}/why")).json()
        assert any("by force" in words and "The old version is unsafe." in words for words in why["words"])
        assert (await gate(http, V2))["forced"]["reason"] == PAST["past_gate"]
        assert (await step(http, "promote", 409, version=V2))["error"]["code"] == "gate_not_passed", "each step anew"


async def test_gate_lets_a_forced_version_that_has_led_through_as_a_rollback_does(
    two: RunningGateway, small: FakeEngine
) -> None:
    small.answers[V2] = right_but_for(2)
    async with two.http() as http:
        await evaluate(http, V2)
        await step(http, "promote", version=V2, **PAST)
        await step(http, "promote", version=V1)
        told = await gate(http, V2)
        way_back = "It leads its task, or has led it: a way back is never blocked."
        assert told["verdict"] == "passed"
        assert told["because"].startswith(f"{way_back} By comparisons alone it is: failed. Right answers: ")
        assert any(line["verdict"] == "failed" for line in told["lines"])
        assert (await step(http, "rollback"))["weights"] == {V2: 1.0}


async def test_a_forced_version_that_passes_since_has_no_step_left(two: RunningGateway, small: FakeEngine) -> None:
    small.answers[V2] = right_but_for(2)
    async with two.http() as http:
        await evaluate(http, V2)
        await step(http, "promote", version=V2, **PAST)
        assert (await gate(http, V2))["verdict"] == "failed", "that it leads its task shows nothing"
        small.answers[V2] = right_but_for(12)
        await evaluate(http, V2, arms="adapter,best")
        assert (await gate(http, V2))["verdict"] == "passed"
        report = (await http.get("/admin/v1/tasks/returns/quality")).json()["report"]
        assert not any("by force" in step for step in report["next"]), report["next"]
        assert f"{V2} passes the gate now." in report["caveats"]


@pytest.mark.invariant("An older suite never passes for a task's newest one.")
async def test_a_report_on_an_older_suite_passes_no_version(two: RunningGateway, small: FakeEngine) -> None:
    older, newest = data(ROWS), data(2 * ROWS)
    small.answers[V2] = lambda body: said(decided(asked_number(body) + (asked_number(body) >= ROWS)))
    async with two.http() as http:

        async def evaluate_on(suite: str, **query: Any) -> dict[str, Any]:
            wanted = {"version": V2, "arms": "adapter,leading,best", "suite": suite, **query}
            begun = await http.post("/admin/v1/evaluations", params=wanted)
            assert begun.status_code == 201, begun.text
            return await ended(http, begun.json()["id"])

        first = await add_suite(http, older, class_field="decision")
        await evaluate_on("newest")
        assert (await gate(http, V2))["verdict"] == "passed"
        await add_suite(http, newest, class_field="decision")
        told = await gate(http, V2)
        assert (told["verdict"], "on an older suite" in told["because"]) == ("cannot_tell", True)
        assert (await step(http, "promote", 409, version=V2))["error"]["code"] == "gate_not_passed"
        await evaluate_on("newest")
        assert (await gate(http, V2))["verdict"] == "failed"
        again = await evaluate_on(first["digest"][:12], again=True)
        assert again["suite"] == "older"
        told = await gate(http, V2)
        assert (told["verdict"], len(told["evaluations"])) == ("failed", 2), "both are looked at"


async def test_rows_that_a_version_was_trained_on_do_not_pass_it(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers[V1], small.answers[V2] = right_but_for(1000), right_but_for(110)
    digest = "d" * 64
    folder = with_schema(make_adapter(2))
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"provenance": {"dataset": digest}}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    async with run_gateway(configure(release=RELEASE)) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        await running.place(folder, alias=False)
        train = running.services.settings.dataset_folder / digest / "train.jsonl"
        train.parent.mkdir(parents=True)
        chats = [[{"role": "user", "content": f"Item {n}"}, {"role": "assistant", "content": "x"}] for n in range(100)]
        train.write_text("".join(json.dumps({"id": str(n), "messages": chat}) + "\n" for n, chat in enumerate(chats)))
        name = (await evaluate(http, V2))["id"]
        told = await gate(http, V2)
        assert (told["verdict"], told["evaluations"]) == ("cannot_tell", [name])
        assert f"100 of {ROWS} rows are left out: {V2} or {V1} was trained on them" in told["because"]
        refused_step = (await step(http, "canary", 409, version=V2, share=0.2))["error"]
        assert "rows are left out" in refused_step["message"]
        baseline = (await running.services.objects.baselines.get(V2) or {})["reviewed"]
        assert (baseline["wrong"], baseline["of"]) == (1, 20), "nor are they a baseline of reviewed labels"
        train.unlink()
        await evaluate(http, V2, again=True)
        assert (await gate(http, V2))["verdict"] == "passed"


async def test_few_rows_can_not_tell_and_say_how_many_would(two: RunningGateway) -> None:
    async with two.http() as http:
        await evaluate(http, V2, rows=12)
        told = await gate(http, V2)
    assert told["verdict"] == "cannot_tell"
    assert told["because"].startswith("About ")
    assert max(line["rows_more"] for line in told["lines"]) > 0


async def place_two_that_err(two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine) -> str:
    """Have V2 err on three rows, and place a third version that does; its name."""
    small.answers[V2], small.answers["returns@v3"] = right_but_for(3), right_but_for(3)
    return await two.place(with_schema(make_adapter(3)), alias=False)


async def test_it_is_held_against_the_best_that_led_as_well(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    v3 = await place_two_that_err(two, make_adapter, small)
    async with two.http() as http:
        await evaluate(http, V1)
        await evaluate(http, V2)
        await step(http, "promote", version=V2, **PAST)
        await evaluate(http, v3)
        told = await gate(http, v3)
    assert {line["reference"] for line in told["lines"]} == {V1, V2}
    assert {line["reference"] for line in told["lines"] if line["verdict"] == "failed"} == {V1}


async def test_the_best_that_led_is_remembered_when_aliases_are_removed(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    v3 = await place_two_that_err(two, make_adapter, small)
    async with two.http() as http:
        await evaluate(http, V2)
        for _ in range(2):
            await http.delete("/admin/v1/aliases/returns")
            await step(http, "promote", version=V2, **PAST)
        told = await gate(http, v3)
        assert told["held_against"] == {"leading": V2, "best": V1}
        why = (await http.get(f"/admin/v1/adapters/{v3}/why")).json()
        assert f"The gate holds it against {V2}, which leads, and {V1}, the best that has led." in why["words"]
        await evaluate(http, v3)
        assert {line["reference"] for line in (await gate(http, v3))["lines"] if line["verdict"] == "failed"} == {V1}


async def test_where_it_warns_nothing_is_held_up(configure: Configure, make_adapter: MakeAdapter, redis: Redis) -> None:
    async with run_gateway(configure(release={"gate": "warn", "floor": "off"})) as running:
        for number in (1, 2):
            await running.place(make_adapter(number), alias=number == 1)
        async with running.http() as http:
            moved = await step(http, "promote", version=V2)
            assert moved["warnings"][0].startswith(f"The gate would not let {V2} through. No evaluation compares it")
            assert (await alias(http))["weights"] == {V2: 1.0}


async def test_a_new_adapter_of_the_example_is_loaded_and_left_to_an_evaluation(
    two: RunningGateway, make_adapter: MakeAdapter
) -> None:
    async with httpx.AsyncClient(base_url=two.url, timeout=60) as client:
        placed = await place_adapter(AdminApi(client, two.admin_key), "returns", make_adapter(3), lambda _: None)
    assert placed == f"returns is {V1}; returns@v3 is loaded: evaluate it, then promote it"


async def test_a_state_file_is_held_up_too(
    two: RunningGateway, configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    apprentice = command_for(two)
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    content = json.loads(path.read_text())
    content["aliases"]["returns"]["value"]["weights"] = {V2: 1.0}
    path.write_text(json.dumps(content))
    await refused(apprentice, "state", "apply", str(path), code="gate_not_passed")
    await ok(apprentice, "state", "apply", str(path), "--past-gate", "Set back by hand.")
    async with two.http() as http:
        assert (await alias(http))["weights"] == {V2: 1.0}
        assert (await gate(http, V2))["forced"]["reason"] == "Set back by hand."


async def test_a_running_evaluation_is_told_beside_the_gates_verdict(two: RunningGateway, small: FakeEngine) -> None:
    small.first_token_delay_seconds = 60.0
    async with two.http() as http:
        running = (await begin(http, data(ROWS), version=V2, arms="adapter,leading"))["id"]
        await begin(http, data(ROWS), version=V1, arms="adapter")
        assert (await gate(http, V2))["running"] == [running]
        said = await command_for(two)("gate", "returns", V2)
        assert f"Running: {running} (`apprentice evaluations show ID`)." in said.out
        async with browsing(two, two.admin_key) as page:
            shown = (await page.get(f"/console/versions/{V2}")).text
        assert f"Evaluation {running} is running: see <code>apprentice evaluations show {running}</code>." in shown
        await http.delete(f"/admin/v1/evaluations/{running}")
        assert (await gate(http, V2))["running"] == []


async def test_the_command_tells_it_line_by_line_and_by_its_exit_code(two: RunningGateway) -> None:
    apprentice = command_for(two)
    said = await apprentice("gate", "returns", "v2")
    assert (said.exit_code, said.err) == (1, "")
    assert said.out.startswith(f"{V2}: cannot tell.\n\ncannot tell  report    No evaluation compares it with {V1}")
    assert said.out.count("No evaluation compares it") == 1
    held = (await apprentice("adapters", "promote", V2)).err.rstrip()
    assert held.endswith(f"See `apprentice gate returns {V2}`; --force with a reason passes it. (gate_not_passed)")
    async with two.http() as http:
        await evaluate(http, V2)
    told = await ok(apprentice, "gate", "returns", V2)
    assert told.out.startswith(f"{V2}: passed. It is shown to be no worse than {V1}.")
    assert "passed       accuracy  Right answers: " in told.out
    assert "The setting release.gate is enforce" in told.out
    assert (await ok(apprentice, "gate", "returns", V2, "--json")).json["verdict"] == "passed"
    assert (await apprentice("gate", "other", V2)).exit_code == 2
    assert (await apprentice("adapters", "promote", V2, "--force")).exit_code == 2
    await ok(apprentice, "adapters", "promote", V2)
