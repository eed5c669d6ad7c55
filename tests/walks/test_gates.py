"""An evaluation as the monitor's baseline: of a version that was never live, or for an admin to make."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.features.evaluations.gate_baselines import take_gate
from gateway.features.evaluations.state import Evaluations
from gateway.features.quality.state import Quality
from monitoring.quality.verdicts.quality import TaskQuality
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.monitor_world import found
from tests.walks.releases import QUICK, V1, V2, ask, audit_of, states, step
from tests.walks.test_evaluate import begin, data, decided, ended, right_but_for, with_schema
from tests.walks.test_health import BASELINE, sent, told
from tests.walks.test_suites import add

HELD = "/admin/v1/tasks/returns/quality/{}/baselines"


@pytest.fixture
async def monitor_elsewhere(redis_url: str, redis: Redis) -> None:
    """Another gateway has the monitor's job, from before this one runs: what a test sets stays as it is."""
    await redis.set("apprentice:duty:monitor", "another gateway")


@pytest.fixture
async def ready(configure: Configure, make_adapter: MakeAdapter, small: FakeEngine) -> AsyncIterator[RunningGateway]:
    """A gateway whose returns@v1 leads and whose returns@v2 is ready; each is wrong on each tenth row."""
    small.answers |= {V1: right_but_for(10), V2: right_but_for(10)}
    async with run_gateway(configure(**QUICK)) as running:
        await running.place(with_schema(make_adapter(1)))
        await running.place(with_schema(make_adapter(2)), alias=False)
        yield running


async def evaluated(running: RunningGateway, rows: int, version: str = V2, **query: Any) -> dict[str, Any]:
    async with running.http() as http:
        begun = await begin(http, data(rows), version=version, arms="adapter", **query)
        one = await ended(http, begun["id"])
    assert one["status"] == "done", one["note"]
    return one


async def held(running: RunningGateway, version: str = V2) -> dict[str, Any]:
    async with running.http() as http:
        return dict((await told(http, HELD.format(version)))["set"])


async def is_held(running: RunningGateway) -> dict[str, Any]:
    return (await held(running)).get("reviewed", {})


async def test_an_evaluation_before_a_version_goes_live_is_its_gate(ready: RunningGateway) -> None:
    one = await evaluated(ready, 100)
    gate = await until(lambda: is_held(ready))
    assert one["gate"]["taken"] is True
    assert one["gate"]["because"] == f"It is the baseline of {V2}'s reviewed labels: at most 16.4% may be wrong."
    assert (gate["kind"], gate["wrong"], gate["of"], gate["by"]) == ("gate", 10.0, 100.0, "system")
    assert gate["source"] == f"evaluation {one['id']}"
    async with ready.http() as http:
        [entry] = await until(lambda: audit_of(http, "monitor.baseline"))
        assert (entry["actor"], entry["object"], entry["after"]["signal"]) == ("system", V2, "reviewed")
        await step(http, "promote", version=V2)
    assert (await held(ready))["reviewed"] == gate


@pytest.mark.invariant("Only an evaluation from before a version was live sets its baseline.")
async def test_an_evaluation_of_a_live_version_is_no_gate_and_says_what_makes_it_one(ready: RunningGateway) -> None:
    one = await evaluated(ready, 100, V1)
    assert one["gate"]["taken"] is False
    assert one["gate"]["because"] == (
        f"It is not a baseline: {V1} was live by then, and might have been judged by what it got wrong. "
        f"`apprentice tasks baseline returns {V1} reviewed --evaluation {one['id']}` makes it one."
    )
    await take_gate(ready.features[Evaluations], one["id"])
    assert await held(ready, V1) == {}
    async with ready.http() as http:
        [entry] = await until(lambda: audit_of(http, "evaluation.end"))
        assert entry["after"]["gate"] == one["gate"]["because"]
        assert await audit_of(http, "monitor.baseline") == []


async def test_an_evaluation_of_a_canary_is_no_gate(ready: RunningGateway) -> None:
    async with ready.http() as http:
        await step(http, "canary", version=V2, share=0.5)
    one = await evaluated(ready, 100)
    assert (one["gate"]["taken"], await held(ready)) == (False, {})
    assert f"{V2} was live by then" in one["gate"]["because"]


@pytest.mark.invariant("Only an evaluation from before a version was live sets its baseline.")
async def test_once_requests_of_a_version_were_judged_its_failures_are_no_gate(ready: RunningGateway) -> None:
    async with ready.http() as http:
        await step(http, "canary", version=V2, share=0.9)

        async def is_judged() -> bool:
            await ask(http, f"session {next(numbers)}")
            known = (await ready.features[Quality].store.judgements()).get(V2)
            return known is not None and known.requests > 0

        numbers = itertools.count()
        await until(is_judged)
        await step(http, "rollback")
        assert (await states(http))[V2] == "ready"
    one = await evaluated(ready, 100)
    assert (one["gate"]["taken"], await held(ready)) == (False, {})
    assert f"{V2} was live by then" in one["gate"]["because"]


@pytest.mark.usefixtures("monitor_elsewhere")
async def test_while_a_version_is_not_healthy_an_evaluation_is_no_gate(ready: RunningGateway) -> None:
    store = ready.features[Quality].store
    _, generation = await store.of("returns")
    await store.put("returns", TaskQuality(versions={V2: found("degraded")}), generation)
    one = await evaluated(ready, 100)
    assert (one["gate"]["taken"], await held(ready)) == (False, {})
    assert one["gate"]["because"].startswith(f"It is not a baseline: {V2} is degraded. ")


@pytest.mark.parametrize("kind", ["hard", "general"])
async def test_a_suite_that_is_no_sample_of_production_is_no_gate(ready: RunningGateway, kind: str) -> None:
    async with ready.http() as http:
        await add(http, data(40), kind=kind)
        one = await ended(http, (await begin(http, b"", version=V2, arms="adapter", suite=kind))["id"])
    because = f"It is not a baseline: its suite is {kind}, and not a sample of what the version is asked now. "
    assert one["gate"]["because"].startswith(because)
    assert await held(ready) == {}
    assert (await evaluated(ready, 100))["gate"]["taken"] is True, "nothing is in the way of the right one"


async def test_rows_that_were_not_answered_are_in_no_baseline(ready: RunningGateway, small: FakeEngine) -> None:
    small.max_model_len = 200
    long = {"id": "long", "text": "Item 1 " + "and so on " * 200, "expected": {"decision": "deny"}}
    rows = data(100) + b"".join(json.dumps(long | {"id": f"long {n}"}).encode() + b"\n" for n in range(50))
    async with ready.http() as http:
        one = await ended(http, (await begin(http, rows, version=V2, arms="adapter"))["id"])
    assert one["report"]["arms"]["adapter"]["failed"] == 50
    gate = await until(lambda: is_held(ready))
    assert (gate["wrong"], gate["of"]) == (10.0, 100.0)


async def test_rows_of_one_parent_that_err_together_are_one_in_a_baseline(ready: RunningGateway) -> None:
    rows = (
        {"text": f"Again {at}: Item {n}", "expected": {"decision": decided(n)}} for n in range(60) for at in "abcde"
    )
    grouped = (row | {"group": row["text"].rsplit(" ", 1)[1]} for row in rows)
    sent_rows = b"".join(json.dumps(row).encode() + b"\n" for row in grouped)
    async with ready.http() as http:
        one = await ended(http, (await begin(http, sent_rows, version=V2, arms="adapter"))["id"])
    assert one["report"]["groups"] == 60
    gate = await until(lambda: is_held(ready))
    assert 50 < gate["of"] < 62
    assert gate["wrong"] / gate["of"] == pytest.approx(0.1)


async def test_a_version_that_has_a_gate_keeps_it(ready: RunningGateway) -> None:
    first = await evaluated(ready, 100)
    gate = await until(lambda: is_held(ready))
    second = await evaluated(ready, 40)
    assert second["gate"]["because"].startswith(
        f"It is not a baseline: {V2} has one already (evaluation {first['id']}). "
    )
    await take_gate(ready.features[Evaluations], first["id"])
    assert await held(ready) == {"reviewed": gate}


async def test_an_evaluation_that_an_admin_could_not_set_is_no_gate_either(
    ready: RunningGateway, small: FakeEngine
) -> None:
    few = await evaluated(ready, 19)
    assert few["gate"]["because"] == "It is not a baseline: 19 were judged, and a baseline takes at least 20."
    small.answers[V2] = right_but_for(1)
    bad = await evaluated(ready, 30)
    assert "As many as 100.0% may be wrong by that, so that the signal could never alarm." in bad["gate"]["because"]
    assert await held(ready) == {}


async def test_the_gate_of_a_gateway_that_was_killed_at_its_end_is_taken_by_the_next(ready: RunningGateway) -> None:
    one = await evaluated(ready, 100)
    services = ready.services
    await until(lambda: is_held(ready))
    await services.objects.baselines.delete(V2)
    kept = await ready.features[Evaluations].store.get(one["id"])
    assert kept is not None
    entry = services.control.audit.draft("system", "evaluation.end", V2)
    assert await ready.features[Evaluations].store.move(kept, kept, entry, None)
    assert (await until(lambda: is_held(ready)))["of"] == 100.0


async def test_a_gate_of_which_the_baselines_are_damaged_ends_no_evaluation(
    ready: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    await ready.services.redis.hset("apprentice:baselines", V2, b"{")
    one = await evaluated(ready, 100)
    assert one["gate"]["because"].startswith(f"It is not a baseline: {V2}, or what is set for it, can't be read. ")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and "evaluation" in record.msg]


async def test_a_version_that_was_not_asked_has_no_gate(ready: RunningGateway) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(30), version=V2, arms="general")
        assert (await ended(http, begun["id"]))["gate"] is None


# ---- an admin's -------------------------------------------------------------------------------------


async def test_an_admin_has_a_stream_held_against_an_evaluation(ready: RunningGateway) -> None:
    one = await evaluated(ready, 100, V1)
    async with ready.http() as http:
        body = {"signal": "reviewed", "evaluation": one["id"], "reason": "Drawn at random last week."}
        set_to = (await sent(http, "POST", BASELINE, **body))["set"]["reviewed"]
        [entry] = await audit_of(http, "monitor.baseline")
    assert (set_to["kind"], set_to["wrong"], set_to["of"]) == ("admin", 10.0, 100.0)
    assert set_to["source"] == f"evaluation {one['id']}: Drawn at random last week."
    assert (entry["after"]["reason"], entry["after"]["source"]) == ("Drawn at random last week.", set_to["source"])


async def test_an_evaluation_that_can_not_be_a_baseline_is_refused(ready: RunningGateway, small: FakeEngine) -> None:
    other, few = await evaluated(ready, 100), await evaluated(ready, 19, V1)
    small.answers[V1] = right_but_for(1)
    bad = await evaluated(ready, 30, V1)
    async with ready.http() as http:
        begun = await begin(http, data(30), arms="general")
        general = await ended(http, begun["id"])
        for name, status in (
            ("nothing", 404),
            ("no-thing", 404),
            (other["id"], 404),
            (few["id"], 400),
            (bad["id"], 400),
            (general["id"], 409),
        ):
            body = {"signal": "reviewed", "evaluation": name, "reason": "a"}
            error = (await sent(http, "POST", BASELINE, wanted=status, **body))["error"]
            assert error["param"] == "evaluation", error
        for more in ({"accept": True}, {"wrong": 1, "of": 40}, {"signal": "length"}, {"of_class": "vases"}):
            body = {"signal": "reviewed", "evaluation": few["id"], "reason": "a", **more}
            await sent(http, "POST", BASELINE, wanted=400, **body)
    assert await held(ready, V1) == {}
