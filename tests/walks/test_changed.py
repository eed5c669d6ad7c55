"""A task that changes, as the organisation says it: its versions are stale, a rule begins, somebody is to train."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.features.quality import task_change_endpoints as changed
from gateway.features.quality.state import Quality
from gateway.features.retraining.store import RetrainingStore
from monitoring.quality.verdicts.retraining import Example, Retraining
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.review_world import monitor_elsewhere
from tests.walks.test_health import HEALTH, entries, sent, told
from tests.walks.test_retraining import stored

__all__ = ["monitor_elsewhere"]  # what a test sets stays as it is
CHANGED = "/admin/v1/tasks/returns/changed"
DAY = 86_400.0
YEAR = datetime.now(UTC).year
DECEMBER, JANUARY, FEBRUARY = f"{YEAR}-12-01", f"{YEAR + 1}-01-01", f"{YEAR + 1}-02-01"
ASK = {"model": "returns", "messages": [{"role": "user", "content": "A vase, sealed."}]}


@pytest.fixture
async def gateway(configure: Configure, make_adapter: MakeAdapter) -> Any:
    """A gateway whose task `returns` is served by `returns@v1`, and has general as its fallback."""
    async with run_gateway(
        configure(tasks={"returns": {"fallback_pool": "general"}, "clauses": {"fallback_pool": None}})
    ) as running:
        await running.place(make_adapter(1))
        yield running


async def reason(http: httpx.AsyncClient) -> str:
    answer = await http.post("/v1/chat/completions", json=ASK)
    return str(answer.headers.get("x-apprentice-reason") or answer.json()["error"]["message"])


async def rules(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    return list((await http.get("/admin/v1/overrides")).json()["overrides"])


async def requests_to_train(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    return list((await http.get("/admin/v1/retraining")).json()["retraining"])


async def test_arrived_change_marks_versions_sends_to_general_and_requests_training(
    gateway: RunningGateway,
) -> None:
    async with gateway.http() as http:
        effective = time.time() - 10
        found = await sent(http, "POST", CHANGED, effective_at=effective, note="60 days to return.")
        assert found["stale"] == ["returns@v1"]
        assert found["quality"]["versions"]["returns@v1"]["stale_from"] == effective
        assert await reason(http) == "override"
        (rule,) = await rules(http)
        assert (rule["id"], rule["action"], rule["task"]) == ("changed-returns", "general", "returns")
        assert rule["expires_at"] == pytest.approx(time.time() + 14 * DAY, abs=60)
        (asked,) = await requests_to_train(http)
        assert (asked["state"], asked["version"]) == ("open", "returns@v1")
        assert asked["because"] == "The task's rules change: 60 days to return."
        assert asked["id"] == found["changed"]["retraining"]
        assert any(one.startswith("returns@v1 is stale since") for one in found["report"]["caveats"])
        assert found["report"]["line"].count("; stale;") == 1
        (row,) = (await http.get("/admin/v1/adapters")).json()["adapters"]
        assert row["stale_from"] == effective
        assert (await told(http, f"{HEALTH}/returns@v1/baselines"))["stale"] is True
        (entry,) = await entries(http, "monitor.changed")
        metrics = (await http.get("/metrics")).text
    assert (entry["object"], entry["before"]["changed"]) == ("returns", None)
    assert entry["after"]["stale_from"] == {"returns@v1": effective}
    assert 'apprentice_version_stale{task="returns",version="returns@v1"} 1' in metrics
    assert 'apprentice_retraining_open{task="returns"} 1' in metrics


async def test_a_change_to_come_begins_at_its_time_on_its_own(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        refusing = {"override": "refuse", "message": "New rules from today on."}
        found = await sent(http, "POST", CHANGED, effective_at=time.time() + DAY, **refusing)
        assert await reason(http) == "adapter"
        assert any(one.startswith("returns@v1 gets stale on") for one in found["report"]["caveats"])
        assert 'apprentice_version_stale{task="returns",version="returns@v1"} 0' in (await http.get("/metrics")).text
        effective = time.time() + 1.0
        await sent(http, "POST", CHANGED, effective_at=effective, **refusing)

        async def has_begun() -> bool:
            return await reason(http) == "New rules from today on."

        await until(has_begun)
        assert time.time() >= effective
        assert 'apprentice_version_stale{task="returns",version="returns@v1"} 1' in (await http.get("/metrics")).text


async def test_taking_it_back_undoes_all_of_it(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        effective = time.time() - 300 * DAY
        await sent(http, "POST", CHANGED, effective_at=effective)
        found = await sent(http, "DELETE", CHANGED)
        assert found["quality"]["changed"] is None
        assert found["quality"]["versions"]["returns@v1"]["stale_from"] is None
        assert found["action"]["kind"] == "undo"
        assert (await rules(http), await reason(http)) == ([], "adapter")
        (asked,) = await requests_to_train(http)
        assert (asked["state"], asked["closed_by"]) == ("closed", found["action"]["by"])
        (entry,) = await entries(http, "monitor.undo")
        assert entry["before"]["changed"]["effective_at"] == effective
        assert (await sent(http, "DELETE", CHANGED, wanted=409))["error"]["code"] == "state_conflict"


async def test_said_again_it_replaces_what_was_said_and_keeps_the_request_to_train(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        first = await sent(http, "POST", CHANGED, effective_at=JANUARY, note="In January.")
        second = await sent(http, "POST", CHANGED, effective_at=f"{DECEMBER}T09:30:00+01:00", override="refuse")
        assert second["changed"]["retraining"] == first["changed"]["retraining"]
        (rule,) = await rules(http)
        wanted = datetime(YEAR, 12, 1, 8, 30, tzinfo=UTC).timestamp()
        assert (rule["action"], rule["starts_at"]) == ("refuse", wanted)
        assert second["quality"]["versions"]["returns@v1"]["stale_from"] == wanted
        third = await sent(http, "POST", CHANGED, effective_at=DECEMBER, override=None)
        assert (third["rule"], await rules(http)) == (None, [])
        assert len(await requests_to_train(http)) == 1


async def test_a_version_that_comes_after_the_change_is_not_stale(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    async with gateway.http() as http:
        await sent(http, "POST", CHANGED, effective_at=time.time() - 1, override=None)
        await gateway.place(make_adapter(2))
        rows = (await http.get("/admin/v1/adapters")).json()["adapters"]
    assert [(row["version"], row["stale_from"] is None) for row in rows] == [
        ("returns@v1", False),
        ("returns@v2", True),
    ]


async def test_a_task_without_a_fallback_gets_no_rule_unless_one_is_asked_for(gateway: RunningGateway) -> None:
    path = "/admin/v1/tasks/clauses/changed"
    async with gateway.http() as http:
        found = await sent(http, "POST", path, effective_at=JANUARY)
        assert (found["rule"], found["stale"], found["changed"]["retraining"]) == (None, [], None)
        refused = await sent(http, "POST", path, wanted=400, effective_at=JANUARY, override="general")
        assert refused["error"]["param"] == "override"
        found = await sent(http, "POST", path, effective_at=JANUARY, override="refuse")
        assert found["rule"]["action"] == "refuse"


async def test_who_sends_a_capped_task_to_general_is_warned_of_the_cap(configure: Configure) -> None:
    tasks = {"returns": {"general_share_max": 0.2}, "clauses": {"general_usd_per_day": 5}}
    of_returns = "tasks.returns.general_share_max is 0.2: past it the next fallback applies, or 503."
    of_clauses = "tasks.clauses.general_usd_per_day is 5: past it the next fallback applies, or 503."
    async with run_gateway(configure(tasks=tasks)) as gateway, gateway.http() as http:
        assert (await sent(http, "POST", CHANGED, effective_at=JANUARY))["warnings"] == [of_returns]
        assert (await sent(http, "POST", CHANGED, effective_at=JANUARY, override="refuse"))["warnings"] == []
        everywhere = await http.put("/admin/v1/overrides/vip", json={"action": "general", "contains": "vip"})
        assert everywhere.json()["warnings"] == [of_returns, of_clauses]


async def test_a_rule_of_somebody_else_is_left_alone(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await http.put("/admin/v1/overrides/changed-returns", json={"action": "general", "contains": "vase"})
        refused = await sent(http, "POST", CHANGED, wanted=409, effective_at=JANUARY)
        assert "There is a rule changed-returns already" in refused["error"]["message"]
        (rule,) = await rules(http)
        assert (rule["contains"], (await told(http))["quality"]["changed"]) == ("vase", None)


class Meanwhile(RetrainingStore):
    """The store, beside which somebody else does something each time that it has read or kept what a step needs."""

    async def get(self, name: str) -> tuple[Retraining | None, int]:
        found = await super().get(name)
        await self.somebody_else()
        return found

    async def keep(self, name: str, examples: Sequence[Example]) -> None:
        await super().keep(name, examples)
        await self.somebody_else()

    def __init__(self, gateway: RunningGateway, somebody_else: Callable[[], Awaitable[object]]) -> None:
        super().__init__(gateway.services.redis, 3600.0)
        self.somebody_else = somebody_else


async def test_rule_set_by_another_admin_meanwhile_is_kept_and_no_example_remains(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"action": "general", "contains": "vase"}
    async with gateway.http() as http:
        request = await http.post("/v1/chat/completions", json=ASK)
        said = {"request_id": request.headers["x-request-id"], "metric": "correct", "value": False}
        assert (await http.post("/v1/feedback", json=said)).status_code == 201
        await stored(gateway, 1)
        kept: list[set[bytes]] = []

        async def set_rule() -> None:
            kept.append(await examples(gateway))
            await gateway.services.objects.overrides.put("changed-returns", rule)

        store = Meanwhile(gateway, set_rule)
        quality = gateway.features[Quality]
        ours = replace(quality, retraining=replace(quality.retraining, store=store))
        monkeypatch.setattr(changed, "feature_of", lambda *_: ours)
        refused = await sent(http, "POST", CHANGED, wanted=409, effective_at=JANUARY)
        assert refused["error"]["code"] == "stale_generation"
        monkeypatch.undo()
        assert await gateway.services.objects.overrides.get("changed-returns") == rule
        assert await requests_to_train(http) == []
        assert (await told(http))["quality"]["changed"] is None
        assert (len(kept), bool(kept[0]), await examples(gateway)) == (1, True, set())


async def examples(gateway: RunningGateway) -> set[bytes]:
    return {key async for key in gateway.services.redis.scan_iter("apprentice:retraining:*:examples*")}


async def test_training_request_closed_meanwhile_is_not_taken_for_an_open_one(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway.http() as http:
        first = await sent(http, "POST", CHANGED, effective_at=JANUARY)
        name = first["changed"]["retraining"]
        store = Meanwhile(gateway, lambda: http.post(f"/admin/v1/retraining/{name}/close"))
        quality = gateway.features[Quality]
        ours = replace(quality, retraining=replace(quality.retraining, store=store))
        monkeypatch.setattr(changed, "feature_of", lambda *_: ours)
        refused = await sent(http, "POST", CHANGED, wanted=409, effective_at=FEBRUARY)
        assert refused["error"]["code"] == "stale_generation"
        monkeypatch.undo()
        second = await sent(http, "POST", CHANGED, effective_at=FEBRUARY)
        assert second["changed"]["retraining"] != name
        states = {one["id"]: one["state"] for one in await requests_to_train(http)}
    assert states == {name: "closed", second["changed"]["retraining"]: "open"}


async def test_a_task_that_is_not_known_is_refused_and_leaves_nothing(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        refused = await sent(http, "POST", "/admin/v1/tasks/nothing/changed", wanted=404, effective_at=JANUARY)
        assert (refused["error"]["code"], refused["error"]["param"]) == ("not_found", "task")
        assert (await rules(http), await requests_to_train(http)) == ([], [])
        assert "nothing" not in await gateway.features[Quality].store.object_store.all()


@pytest.mark.parametrize("days", [-366, 5 * 366, 1_000_000])
async def test_a_date_that_is_too_far_from_now_to_be_meant_is_refused_with_the_bounds(
    gateway: RunningGateway, days: float
) -> None:
    now = time.time()
    async with gateway.http() as http:
        refused = await sent(http, "POST", CHANGED, wanted=400, effective_at=now + days * DAY)
        assert (refused["error"]["code"], refused["error"]["param"]) == ("invalid_value", "effective_at")
        first, last = (datetime.fromtimestamp(now + years * 365.25 * DAY, UTC) for years in (-1, 5))
        assert f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}" in refused["error"]["message"]
        assert (await rules(http), await requests_to_train(http)) == ([], [])


async def test_a_rule_of_a_change_to_come_holds_14_days_from_its_date_on(gateway: RunningGateway) -> None:
    effective = time.time() + 100 * DAY
    async with gateway.http() as http:
        await sent(http, "POST", CHANGED, effective_at=effective)
        (rule,) = await rules(http)
    assert (rule["starts_at"], rule["expires_at"]) == (effective, effective + 14 * DAY)


REFUSED_CHANGES = [
    ({}, "effective_at"),
    ({"effective_at": "soon"}, "effective_at"),
    ({"effective_at": -1}, "effective_at"),
    ({"effective_at": True}, "effective_at"),
    ({"effective_at": "1960-01-01"}, "effective_at"),
    ({"effective_at": "9999-12-31T23:59:59-14:00"}, "effective_at"),
    ({"effective_at": 1, "override": "previous_version"}, "override"),
    ({"effective_at": DECEMBER, "expires_at": 2}, "expires_at"),
    ({"effective_at": JANUARY, "expires_at": f"{YEAR}-12-31"}, "expires_at"),
    ({"effective_at": DECEMBER, "message": "a"}, "message"),
    ({"effective_at": DECEMBER, "override": None, "expires_at": JANUARY}, "override"),
    ({"effective_at": 1, "note": "a" * 1001}, "note"),
    ({"effective_at": 1, "other": 1}, "other"),
]


async def test_what_can_not_be_is_refused_by_field(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for body, param in REFUSED_CHANGES:
        with subtests.test(body=body, param=param):
            async with gateway.http() as http:
                answer = await http.post(CHANGED, json=body)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
                assert (await rules(http), await requests_to_train(http)) == ([], [])


async def test_a_version_says_until_when_its_owner_has_to_look_at_it(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    folder: Path = make_adapter(2)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "review_by": "2026-01-31"}))
    await gateway.place(folder)
    due = datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    async with gateway.http() as http:
        one = (await http.get("/admin/v1/adapters/returns@v2")).json()
        found = await told(http)
        rows = (await told(http, "/admin/v1/quality"))["tasks"]
        metrics = (await http.get("/metrics")).text
    assert (one["review_by"], one["review_due"], one["manifest"]["review_by"]) == ("2026-01-31", due, "2026-01-31")
    assert found["review_by"] == {"returns@v2": due}
    assert "The review of returns@v2 by its owner is overdue since 2026-02-01 00:00 UTC." in found["report"]["caveats"]
    assert next(row["review_due"] for row in rows if row["task"] == "returns") == due
    assert 'apprentice_version_review_by_seconds{task="returns",version="returns@v2"} 1' in metrics
