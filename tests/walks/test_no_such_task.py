"""Whatever admins and reviewers ask of a task that the configuration does not have, they are told which ones it has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway

NONE = "The configuration has no task 'piano'. It has clauses, returns."
TASKS: dict[str, Any] = {"returns": {}, "clauses": {}}


ASKED: list[tuple[str, str, dict[str, Any] | None, str | None]] = [
    ("GET", "/admin/v1/aliases/piano", None, None),
    ("PUT", "/admin/v1/aliases/piano", {"version": "piano@v1"}, None),
    ("POST", "/admin/v1/aliases/piano/rollback", {}, None),
    ("PUT", "/admin/v1/overrides/a", {"action": "refuse", "task": "piano"}, "task"),
    ("GET", "/admin/v1/tasks/piano/quality", None, "task"),
    ("GET", "/admin/v1/reviews?task=piano", None, "task"),
    ("GET", "/v1/reviews/next?task=piano", None, "task"),
    ("GET", "/admin/v1/suites?task=piano", None, "task"),
    ("GET", "/admin/v1/adapters?task=piano", None, "task"),
    ("GET", "/admin/v1/pulls?task=piano", None, "task"),
    ("GET", "/admin/v1/trainings?task=piano", None, "task"),
    ("GET", "/admin/v1/datasets?task=piano", None, "task"),
    ("GET", "/admin/v1/retraining?task=piano", None, "task"),
]


async def test_who_asks_for_a_task_that_is_not_there_is_told_those_that_are(
    configure: Configure, subtests: pytest.Subtests
) -> None:
    async with run_gateway(configure(tasks=TASKS)) as running, running.http() as http:
        for method, path, body, param in ASKED:
            with subtests.test(method=method, path=path, body=body, param=param):
                answer = await http.request(method, path, json=body)
                refused = answer.json()["error"]
                assert (answer.status_code, refused["code"], refused["param"]) == (404, "not_found", param)
                assert refused["message"] == NONE


async def test_a_state_says_which_of_its_objects_is_of_a_task_that_is_not_there(configure: Configure) -> None:
    async with run_gateway(configure(tasks=TASKS)) as running, running.http() as http:
        state = (await http.get("/admin/v1/state")).json()
        state["overrides"] = {"vases": {"generation": 0, "value": {"action": "refuse", "task": "piano"}}}
        answer = await http.post("/admin/v1/state/apply", json={"state": state})
    refused = answer.json()["error"]
    assert (answer.status_code, refused["code"], refused["param"]) == (404, "not_found", "overrides")
    assert refused["message"] == f"vases: {NONE}"


async def test_an_adapter_is_added_to_no_task_that_is_not_there(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks=TASKS)) as running, running.http() as http:
        answer = await http.post("/admin/v1/adapters", json={"task": "piano", "path": str(make_adapter(1))})
    refused = answer.json()["error"]
    assert (answer.status_code, refused["code"], refused["param"]) == (404, "not_found", "task")
    assert refused["message"] == NONE


async def test_an_upload_without_a_task_is_told_that_the_task_is_missing(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    files = [("file", (path.name, path.read_bytes())) for path in make_adapter(1).iterdir()]
    async with run_gateway(configure(tasks=TASKS)) as running, running.http() as http:
        answer = await http.post("/admin/v1/adapters", files=files)
    refused = answer.json()["error"]
    assert (answer.status_code, refused["code"], refused["param"]) == (400, "missing_field", "task")
    assert refused["message"] == "The form has no field task: add it."


async def test_a_version_is_not_evaluated_once_its_task_is_configured_no_more(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
    async with run_gateway(configure(tasks={"clauses": {}})) as running, running.http() as http:
        answer = await http.post("/admin/v1/evaluations", params={"version": "returns@v1"}, content=b"{}\n")
    refused = answer.json()["error"]
    assert (answer.status_code, refused["code"], refused["param"]) == (404, "not_found", "version")
    assert refused["message"] == "The configuration has no task 'returns'. It has clauses."


async def test_of_many_tasks_the_first_are_named_and_the_others_counted(configure: Configure) -> None:
    tasks = {f"task-{number:02}": {} for number in range(12)}
    async with run_gateway(configure(tasks=tasks)) as running, running.http() as http:
        refused = (await http.get("/admin/v1/tasks/task-00@v1/quality")).json()["error"]
    there = ", ".join(sorted(tasks)[:10])
    assert refused["message"] == f"The configuration has no task 'task-00@v1'. It has {there} and 2 more."


async def test_a_task_that_was_removed_lets_go_of_its_versions(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with run_gateway(configure()) as running:
        name = await running.place(make_adapter(1))
    async with run_gateway(configure(tasks={"clauses": {}})) as running, running.http() as http:
        held = await http.post(f"/admin/v1/adapters/{name}/unload")
        assert held.json()["error"]["code"] == "state_conflict", held.text
        assert (await http.get("/admin/v1/aliases/returns")).json()["weights"] == {name: 1.0}
        assert (await http.put("/admin/v1/aliases/returns", json={"version": name})).status_code == 404
        removed = await http.delete("/admin/v1/aliases/returns")
        assert (removed.status_code, removed.json().get("weights")) == (200, {}), removed.text
        unloaded = await http.post(f"/admin/v1/adapters/{name}/unload")
        assert (unloaded.status_code, unloaded.json()["state"], unloaded.json()["ready"]) == (200, "verified", [])
        assert (await http.delete("/admin/v1/aliases/returns")).status_code == 404
