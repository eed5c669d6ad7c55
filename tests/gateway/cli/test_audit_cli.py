"""The audit, searched: over the API and by `apprentice audit`."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from monitoring.audit import Audit
from tests.gateway.cli.conftest import Command
from tests.walks.gateway import RunningGateway


async def test_the_audit_is_searched_by_action_object_actor_and_time(gateway: RunningGateway) -> None:
    began = time.time()
    key = await gateway.key(role="admin")
    async with gateway.http(key) as http:
        await http.put("/admin/v1/overrides/a", json={"action": "general"})
        await http.put("/admin/v1/overrides/b", json={"action": "general"})
        await http.delete("/admin/v1/overrides/a")

    async def found(**query: Any) -> list[tuple[str, str]]:
        async with gateway.http() as http:
            entries = (await http.get("/admin/v1/audit", params=query)).json()["entries"]
        return [(entry["action"], entry["object"]) for entry in entries]

    ours = [("override.set", "a"), ("override.set", "b"), ("override.delete", "a")]
    assert await found(actor=key.split("-")[2]) == ours
    assert await found(action="override.set") == ours[:2]
    assert await found(object="a") == [ours[0], ours[2]]
    assert await found(object="a", action="override.set") == ours[:1]
    assert await found(newest="true", limit=2) == ours[:0:-1]
    assert (await found(since=began))[1:] == ours
    assert await found(since=time.time() + 60, newest="true") == []


async def test_a_search_goes_on_where_it_ended(gateway: RunningGateway) -> None:
    seen, after = [], 0
    async with gateway.http() as http:
        for name in ("a", "b", "c"):
            await http.put(f"/admin/v1/overrides/{name}", json={"action": "general"})
        while after is not None:
            query: dict[str, Any] = {"action": "override.set", "after": after, "limit": 1}
            told = (await http.get("/admin/v1/audit", params=query)).json()
            seen += [entry["object"] for entry in told["entries"]]
            after = told["next_after"]
    assert seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/v1/audit?actions=alias.rollback&limit=5"),
        ("GET", "/admin/v1/replicas?actions=x"),
        ("POST", "/admin/v1/adapters/returns@v1/stage?actions=1"),
        ("GET", "/v1/requests?actions=x&limit=200"),
        ("GET", "/v1/requests/nope?actions=x"),
        ("GET", "/v1/usage?actions=x"),
        ("POST", "/v1/route?actions=x"),
    ],
)
async def test_an_address_that_says_what_is_not_known_is_refused_by_name(
    gateway: RunningGateway, method: str, path: str
) -> None:
    async with gateway.http() as http:
        answer = await http.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_parameter", "actions")
    assert "has no parameter actions: it takes " in error["message"]
    async with gateway.http("") as http:
        assert (await http.request(method, path)).status_code == 401


async def test_clients_of_the_wire_formats_add_to_the_address(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        assert (await http.get("/v1/models?limit=1000&beta=true")).status_code == 200


async def test_times_are_told_as_times(gateway: RunningGateway, apprentice: Command) -> None:
    words = ("--verdict", "suspect", "--reason", "Wrong labels.", "--until", "2099-01-01")
    assert (await apprentice("tasks", "pin", "returns", "returns@v1", *words)).exit_code == 0
    shown = (await apprentice("audit", "--action", "monitor.pin")).out
    assert "e+09" not in shown
    assert "pin until 2099-01-01 00:00:00Z" in shown or "pin at 20" in shown


async def test_what_was_deleted_is_told(gateway: RunningGateway, apprentice: Command) -> None:
    assert (await apprentice("reviews", "delete", "returns", "--yes")).exit_code == 0
    assert (await apprentice("overrides", "set", "a", "--action", "general")).exit_code == 0
    assert (await apprentice("overrides", "delete", "a")).exit_code == 0
    (line,) = (await apprentice("audit", "--action", "review.delete")).out.splitlines()[1:]
    assert line.endswith("returns  deleted: answered 0, waiting 0")
    (line,) = (await apprentice("audit", "--action", "override.delete")).out.splitlines()[1:]
    assert "  deleted: action general" in line


async def test_lines_are_cut_at_a_width_that_people_read(apprentice: Command) -> None:
    long = ("tasks", "pin", "returns", "returns@v1", "--verdict", "suspect", "--reason", "Wrong labels. " * 20)
    assert (await apprentice(*long)).exit_code == 0
    narrow, wide = await apprentice("audit", COLUMNS="80"), await apprentice("audit", COLUMNS="150")
    for said, width in ((narrow, 100), (wide, 150)):
        assert max(len(line) for line in said.out.splitlines()) == width
        assert said.out.splitlines()[-1].endswith("…")


async def test_the_command_shows_the_newest_last(gateway: RunningGateway, apprentice: Command) -> None:
    async with gateway.http() as http:
        await http.put("/admin/v1/overrides/a", json={"action": "general"})
    said = await apprentice("audit")
    columns = said.out.splitlines()[0].split()
    assert columns == ["NUMBER", "WHEN", "WHO", "ACTION", "OBJECT", "BECAME"]
    assert "override.set" in said.out.splitlines()[-1]
    only = await apprentice("audit", "--action", "adapter.stage", "--object", "returns@v1", "--since", "1h")
    (line,) = only.out.splitlines()[1:]
    assert "adapter.stage" in line
    told = json.loads((await apprentice("audit", "--json", "--limit", "1")).out)
    assert [entry["action"] for entry in told["entries"]] == ["override.set"]
    assert (await apprentice("audit", "--action", "piano.play")).out == "There is no such entry.\n"
    wrong = await apprentice("audit", "--since", "yesterday")
    assert (wrong.exit_code, wrong.out) == (2, "")
    assert "is not a time: write" in wrong.err


async def test_a_search_of_the_newest_goes_on_past_a_part_and_an_entry_that_came_late(
    gateway: RunningGateway, apprentice: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.audit.SEARCHED_MAX", 2)
    chain = gateway.services.control.audit
    await chain.append("system", "piano.play", "etude")
    late = Audit(gateway.services.redis, lambda: time.time() - 7200)  # drafted by a gateway that was killed then
    for _ in range(5):
        await late.append("system", "piano.tune", "etude")
    told = json.loads((await apprentice("audit", "--object", "etude", "--since", "1h", "--json")).out)
    assert [entry["action"] for entry in told["entries"]] == ["piano.play"]
