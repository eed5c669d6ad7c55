"""The monitor's word on a task over real sockets: read, overruled, held, released, undone; each change in the audit."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import msgspec
import pytest

from gateway.features.quality.state import Quality
from gateway.state.audited_step import Drafts
from monitoring.quality.verdicts.quality import Action, Judgement, SignalReport, Summary, TaskQuality, VersionQuality
from serving.object_store import Change, change_together
from tests.waiting import until
from tests.walks.gateway import RunningGateway
from tests.walks.review_world import monitor_elsewhere

__all__ = ["monitor_elsewhere"]  # what a test sets stays as it is

HEALTH = "/admin/v1/tasks/returns/quality"
PIN = f"{HEALTH}/returns@v1/pin"
BASELINE = f"{HEALTH}/returns@v1/baseline"
SHIFT = Action(
    id="19d5f0a1-0",
    at=1_795_680_000.0,
    kind="shift",
    version="returns@v1",
    because="General is better by at least 4.1 points.",
    before={"kept": 1.0, "to": None},
    after={"kept": 0.2, "to": "general"},
)
DEGRADED = VersionQuality(
    verdict="degraded", since=1_795_680_000.0, because="It got worse.", kept=0.2, to="general", stepped_at=time.time()
)


async def told(http: httpx.AsyncClient, path: str = HEALTH) -> dict[str, Any]:
    answer = await http.get(path)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def sent(http: httpx.AsyncClient, method: str, path: str, wanted: int = 200, **body: Any) -> dict[str, Any]:
    answer = await http.request(method, path, **({"json": body} if method == "POST" else {"params": body}))
    assert answer.status_code == wanted, answer.text
    return dict(answer.json())


async def become(gateway: RunningGateway, *actions: Action, **known: Any) -> None:
    """Have the version be degraded, as the monitor would have found it."""
    services = gateway.services
    version = msgspec.structs.replace(DEGRADED, **known)
    _, generation = await gateway.features[Quality].store.of("returns")
    await gateway.features[Quality].store.put(
        "returns", TaskQuality(versions={"returns@v1": version}, actions=list(actions)), generation
    )
    await services.snapshot.refresh()


async def judged(gateway: RunningGateway, *streams: SignalReport) -> None:
    """Have every gateway be told of a judgement with these streams."""
    one = Judgement(task="returns", version="returns@v1", at=time.time(), labels=100, reports=list(streams))
    async with asyncio.timeout(60):
        while (
            known := gateway.features[Quality].monitored.summary.judgements.get("returns@v1")
        ) is None or known.reports != one.reports:
            writing = gateway.features[Quality].monitored.summary.writing + 1_000
            await gateway.features[Quality].store.tell(
                Summary(at=time.time(), writing=writing), {"returns@v1": one}, ()
            )
            await asyncio.sleep(0.05)


async def entries(http: httpx.AsyncClient, action: str) -> list[dict[str, Any]]:
    return list((await http.get("/admin/v1/audit", params={"action": action})).json()["entries"])


# ---- read --------------------------------------------------------------------------------------------


async def test_all_tasks_are_told_in_a_line_each(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    async with gateway.http() as http:
        (row,) = (await told(http, "/admin/v1/quality"))["tasks"]
    assert (row["task"], row["version"], row["verdict"], row["kept"]) == ("returns", "returns@v1", "degraded", 0.2)
    assert row["line"].startswith("returns@v1 is degraded since 2026-11-26 08:00 UTC")
    assert (row["pinned"], row["stale_from"], row["review_due"]) == (False, None, None)


async def test_a_task_is_told_in_words_and_in_numbers_with_its_generation(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    async with gateway.http() as http:
        found = await told(http)
    assert found["report"]["verdict"] == "degraded"
    assert "returns@v1 answers 20% of its requests; the general model gets the rest." in found["report"]["known"]
    assert any("apprentice tasks undo returns 19d5f0a1-0" in one for one in found["report"]["next"])
    assert found["quality"]["versions"]["returns@v1"]["to"] == "general"
    assert found["roles"]["active"] == "returns@v1"
    assert found["plan"]["labels_min"] == 30
    assert found["generation"] >= 1


async def test_operators_read_and_only_admins_change(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    reads = ("/admin/v1/quality", HEALTH, f"{HEALTH}/returns@v1/baselines", "/admin/v1/retraining")
    changes = (
        *(("POST", PIN), ("DELETE", PIN), ("POST", BASELINE), ("POST", f"{HEALTH}/actions/19d5f0a1-0/undo")),
        *(("POST", "/admin/v1/tasks/returns/changed"), ("DELETE", "/admin/v1/tasks/returns/changed")),
        *(("POST", "/admin/v1/retraining"), ("POST", "/admin/v1/retraining/a/close")),
    )
    async with gateway.http(await gateway.key(role="operator")) as http:
        assert [(await http.get(path)).status_code for path in reads] == [200] * len(reads)
        for method, path in changes:
            answer = await http.request(method, path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_required"), path
    async with gateway.http(await gateway.key()) as http:
        assert [(await http.get(path)).status_code for path in reads] == [403] * len(reads)


# ---- overruled, held, released -------------------------------------------------------------------------


async def test_a_verdict_is_overruled_and_its_share_comes_back_at_once(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    assert gateway.services.snapshot.current.policy.shifts["returns@v1"].kept == 0.2
    async with gateway.http() as http:
        ends_at = time.time() + 3600
        found = await sent(http, "POST", PIN, verdict="healthy", reason="The labels are wrong.", until=ends_at)
        known = found["quality"]["versions"]["returns@v1"]
        assert (known["verdict"], known["kept"], known["to"]) == ("healthy", 1.0, None)
        assert (known["pin"]["reason"], known["pin"]["until"]) == ("The labels are wrong.", ends_at)
        assert any("is pinned as healthy until" in one for one in found["report"]["caveats"])
        assert not gateway.services.snapshot.current.policy.shifts
        (entry,) = await entries(http, "monitor.pin")
    assert (entry["object"], entry["before"]["verdict"], entry["after"]["verdict"]) == (
        "returns@v1",
        "degraded",
        "healthy",
    )
    assert entry["after"]["because"] == "The labels are wrong."


async def test_a_version_is_held_and_released(gateway: RunningGateway) -> None:
    await become(gateway)
    async with gateway.http() as http:
        found = await sent(http, "POST", PIN, reason="An experiment.")
        assert found["quality"]["versions"]["returns@v1"]["verdict"] == "degraded"
        assert any("is held" in one for one in found["report"]["caveats"])
        found = await sent(http, "DELETE", PIN)
        assert found["quality"]["versions"]["returns@v1"]["pin"] is None
        refused = await sent(http, "DELETE", PIN, wanted=409)
        assert refused["error"]["code"] == "state_conflict"
        (entry,) = await entries(http, "monitor.release")
    assert (entry["before"]["pin"]["reason"], entry["after"]["pin"]) == ("An experiment.", None)


async def test_releases_and_undoings_keep_their_reason(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    async with gateway.http() as http:
        await sent(http, "POST", PIN, reason="An experiment.")
        await sent(http, "DELETE", PIN, reason="It is over.")
        path = f"{HEALTH}/actions/19d5f0a1-0/undo"
        blank = await http.post(path, params={"reason": " "})
        undone = await http.post(path, params={"reason": "The labels were wrong."})
        (released,) = await entries(http, "monitor.release")
        told = (await http.get(HEALTH)).json()["report"]["done"][0]
    assert (blank.status_code, undone.status_code) == (400, 200)
    assert released["after"]["because"].endswith(" lets the monitor judge it again. It is over.")
    assert told.endswith(" undid shift (19d5f0a1-0). The labels were wrong.")


async def test_what_was_done_is_undone_once(gateway: RunningGateway) -> None:
    path = f"{HEALTH}/actions/19d5f0a1-0/undo"
    async with gateway.http() as http:
        await become(gateway, SHIFT)
        found = await sent(http, "POST", path)
        version = found["quality"]["versions"]["returns@v1"]
        assert (version["verdict"], version["kept"], version["to"]) == ("degraded", 1.0, None)
        assert version["undone"] == ["shift"]
        assert not gateway.services.snapshot.current.policy.shifts
        done = next(one for one in found["quality"]["actions"] if one["id"] == "19d5f0a1-0")
        assert done["undone_by"] == found["action"]["by"]
        assert (await sent(http, "POST", path, wanted=409))["error"]["code"] == "state_conflict"
        assert len(await entries(http, "monitor.undo")) == 1


async def test_a_change_to_a_health_that_has_moved_on_is_stale_and_changes_nothing(gateway: RunningGateway) -> None:
    await become(gateway, SHIFT)
    async with gateway.http() as http:
        old = (await told(http))["generation"]
        await sent(http, "POST", PIN, reason="First.", expected_generation=old)
        for method, path, body in (
            ("POST", PIN, {"reason": "Second.", "expected_generation": old}),
            ("DELETE", PIN, {"expected_generation": old}),
            ("DELETE", "/admin/v1/tasks/returns/changed", {"expected_generation": old}),
            ("POST", "/admin/v1/tasks/returns/changed", {"effective_at": time.time(), "expected_generation": old}),
        ):
            answer = await sent(http, method, path, wanted=409, **body)
            assert answer["error"]["code"] == "stale_generation", path
        undo = await http.post(f"{HEALTH}/actions/19d5f0a1-0/undo", params={"expected_generation": old})
        assert undo.json()["error"]["code"] == "stale_generation"
        found = await told(http)
        rules = (await http.get("/admin/v1/overrides")).json()["overrides"]
    assert found["quality"]["versions"]["returns@v1"]["pin"]["reason"] == "First."
    assert (found["quality"]["changed"], rules) == (None, [])


REFUSED_CALLS = [
    ("GET", "/admin/v1/tasks/nothing/quality", {}, 404),
    ("POST", "/admin/v1/tasks/nothing/quality/returns@v1/pin", {"reason": "a"}, 404),
    ("POST", f"{HEALTH}/returns@v9/pin", {"reason": "a"}, 404),
    ("POST", f"{HEALTH}/clauses@v1/pin", {"reason": "a"}, 404),
    ("POST", PIN, {}, 400),
    ("POST", PIN, {"reason": ""}, 400),
    ("POST", PIN, {"reason": "a", "verdict": "fine"}, 400),
    ("POST", PIN, {"reason": "a", "until": 1.0}, 400),
    ("POST", PIN, {"reason": "a", "until": True}, 400),
    ("POST", PIN, {"reason": "a", "until": "tomorrow"}, 400),
    ("POST", PIN, {"reason": "a", "more": 1}, 400),
    ("DELETE", PIN, {}, 409),
    ("POST", f"{HEALTH}/actions/nothing/undo", {}, 404),
    ("GET", f"{HEALTH}/returns@v9/baselines", {}, 404),
    ("POST", f"{HEALTH}/returns@v9/baseline", {"signal": "feedback", "accept": True, "reason": "a"}, 404),
    ("POST", BASELINE, {"signal": "weather", "accept": True, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 5, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 5, "of": 4, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 5, "of": 40, "accept": True, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "length", "wrong": 5, "of": 40, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "accept": True, "reason": "a"}, 409),
    ("POST", BASELINE, {"signal": "length", "of_class": "vases", "accept": True, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 5, "of": 40}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 5, "of": 40, "reason": " \n"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 40, "of": 40, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 0, "of": 1e-9, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 0, "of": 19, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": 1, "of": 40.5, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "wrong": True, "of": 40, "reason": "a"}, 400),
    ("POST", BASELINE, {"signal": "feedback", "of_class": "a\n", "wrong": 1, "of": 40, "reason": "a"}, 400),
]


async def test_what_can_not_be_done_is_refused_and_changes_nothing(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for method, path, body, status in REFUSED_CALLS:
        with subtests.test(method=method, path=path, body=body, status=status):
            async with gateway.http() as http:
                answer = await http.request(method, path, **({"json": body} if method == "POST" else {}))
                assert answer.status_code == status, answer.text
                assert answer.json()["error"]["message"]
                assert await entries(http, "monitor.pin") == []
                assert await gateway.services.objects.baselines.all() == {}


# ---- baselines -----------------------------------------------------------------------------------------


async def test_a_baseline_is_set_with_its_evidence_and_its_reason(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        first = await sent(http, "POST", BASELINE, signal="feedback", wrong=12, of=240, reason="Counted by hand.")
        held = first["set"]["feedback"]
        assert (held["kind"], held["wrong"], held["of"], held["source"]) == ("admin", 12.0, 240.0, "Counted by hand.")
        assert held["upper"] == pytest.approx(0.0797, abs=0.001)
        more = {"signal": "length", "accept": True, "reason": "Longer answers are wanted."}
        assert (await sent(http, "POST", BASELINE, wanted=409, expected_generation=0, **more))["error"][
            "code"
        ] == "stale_generation"
        second = await sent(http, "POST", BASELINE, expected_generation=first["generation"], **more)
        assert second["generation"] == first["generation"] + 1
        found = await told(http, f"{HEALTH}/returns@v1/baselines")
        assert (set(found["set"]), found["stale"]) == ({"feedback", "length"}, False)
        audited = await entries(http, "monitor.baseline")
    assert [one["after"]["signal"] for one in audited] == ["feedback", "length"]
    assert (audited[0]["before"], audited[0]["after"]["reason"]) == (None, "Counted by hand.")


async def test_what_a_killed_gateway_has_done_and_not_audited_is_entered(gateway: RunningGateway) -> None:
    services = gateway.services
    draft = services.control.audit.draft(
        "ada", "monitor.baseline", "returns@v1", after={"signal": "feedback"}, generation=1
    )
    step = [
        Change(services.objects.baselines, "returns@v1", {}),
        Drafts(services.redis, services.control.audit).change(draft),
    ]
    await change_together(services.redis, step)
    await services.redis.delete("apprentice:duty:monitor")  # it is this gateway's job from now on
    async with gateway.http() as http:
        found = await until(lambda: entries(http, "monitor.baseline"))
    assert [(one["actor"], one["object"], one["at"]) for one in found] == [("ada", "returns@v1", draft.at)]


async def test_what_was_seen_lately_is_accepted_at_its_upper_bound(gateway: RunningGateway) -> None:
    seen = SignalReport(signal="feedback", labelled=True, observed=400, wrong=90, estimate=0.22, low=0.18, high=0.27)
    of_class = msgspec.structs.replace(seen, of_class="vases", high=0.9)
    await judged(gateway, of_class, seen)
    async with gateway.http() as http:
        found = await sent(http, "POST", BASELINE, signal="feedback", accept=True, reason="As good as it gets.")
    held = found["set"]["feedback"]
    assert (held["kind"], held["upper"]) == ("admin", 0.27)
    assert held["source"] == "18.0% to 27.0% lately: As good as it gets."
    async with gateway.http() as http:
        more = {"signal": "feedback", "of_class": "vases", "accept": True, "reason": "Vases are hard."}
        found = await sent(http, "POST", BASELINE, **more)
        assert (found["set"]["feedback:vases"]["upper"], found["set"]["feedback"]["upper"]) == (0.9, 0.27)


async def test_pairs_are_accepted_at_their_difference(gateway: RunningGateway) -> None:
    report = SignalReport(signal="shadow", labelled=True, observed=400, estimate=-0.05, low=-0.09, high=-0.01)
    await judged(gateway, report)
    async with gateway.http() as http:
        found = await sent(http, "POST", BASELINE, signal="shadow", accept=True, reason="General was changed.")
    assert {name: one["upper"] for name, one in found["set"].items()} == {"shadow": -0.01}
