"""An admin's baseline of a signal, over real sockets: with enough observations, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.features.quality.state import Quality
from monitoring.quality.verdicts.quality import SignalReport, TaskQuality, VersionQuality
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.review_world import monitor_elsewhere
from tests.walks.test_health import BASELINE, judged, sent

__all__ = ["monitor_elsewhere"]  # what a test sets stays as it is
ACCEPT: dict[str, Any] = {"accept": True, "reason": "As good as it gets."}


def seen(signal: str, observed: float, of_class: str | None = None) -> SignalReport:
    return SignalReport(
        signal=signal,
        of_class=of_class,
        labelled=True,
        observed=observed,
        wrong=1,
        estimate=1 / observed,
        low=0.01,
        high=0.9,
    )


@pytest.mark.parametrize(
    ("signal", "observed", "said"),
    [
        ("reviewed", 2, "reviewed of returns@v1 has 2 labels, and accepting takes at least 20: wait for more, or give"),
        ("feedback", 19, "feedback of returns@v1 has 19 labels, and accepting takes at least 20: wait for more, or"),
        ("shadow", 1, "shadow of returns@v1 has 1 pair, and accepting takes at least 20: wait for more."),
        ("holdout", 19, "holdout of returns@v1 has 19 pairs, and accepting takes at least 20: wait for more."),
    ],
)
async def test_too_few_labels_or_pairs_are_not_accepted(
    gateway: RunningGateway, signal: str, observed: float, said: str
) -> None:
    await judged(gateway, seen(signal, observed))
    async with gateway.http() as http:
        error = (await sent(http, "POST", BASELINE, 409, signal=signal, **ACCEPT))["error"]
    assert error["code"] == "state_conflict"
    assert error["message"].startswith(said)
    assert await gateway.services.objects.baselines.all() == {}


async def test_what_was_not_seen_at_all_is_not_accepted(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        error = (await sent(http, "POST", BASELINE, 409, signal="feedback", of_class="glass", **ACCEPT))["error"]
    assert error["message"].startswith("feedback, class glass, of returns@v1 has 0 labels, and accepting takes at")


async def test_twenty_labels_are_accepted_and_a_wide_bound_is_warned_of(gateway: RunningGateway) -> None:
    await judged(gateway, seen("reviewed", 20))
    async with gateway.http() as http:
        told = await sent(http, "POST", BASELINE, signal="reviewed", **ACCEPT)
    assert told["set"]["reviewed"]["upper"] == 0.9
    (warning,) = told["warnings"]
    assert warning.startswith("5.0% of the labels were wrong, and as many as 90.0% may be by them")


async def test_complaints_are_learned_anew_where_a_metric_complains(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    declared = {"correct": {"kind": "boolean"}, "returned": {"kind": "boolean", "better": "lower"}}
    tasks = {"returns": {"monitor": {"complaint_metric": "returned"}}}
    async with run_gateway(configure(tasks=tasks, feedback_metrics=declared)) as running, running.http() as http:
        await running.place(make_adapter(1))
        found = await sent(http, "POST", BASELINE, signal="complaints", **ACCEPT)
        degraded = TaskQuality(versions={"returns@v1": VersionQuality(verdict="degraded")})
        _, generation = await running.features[Quality].store.of("returns")
        await running.features[Quality].store.put("returns", degraded, generation)
        refused = await sent(http, "POST", BASELINE, 409, signal="complaints", **ACCEPT)
    assert found["set"]["complaints"]["upper"] == 1.0
    assert refused["error"]["message"].startswith("returns@v1 is degraded, and learns nothing meanwhile")


async def test_complaints_are_not_accepted_where_no_metric_complains(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        error = (await sent(http, "POST", BASELINE, 409, signal="complaints", **ACCEPT))["error"]
    assert error["message"].startswith("returns has no complaints: set tasks.returns.monitor.complaint_metric to")
    assert await gateway.services.objects.baselines.all() == {}


async def test_baseline_that_was_set_is_removed_with_its_reason_in_the_audit(gateway: RunningGateway) -> None:
    counted: dict[str, Any] = {"wrong": 10, "of": 400, "reason": "Counted."}
    remove: dict[str, Any] = {"signal": "feedback", "remove": True, "reason": "Of another season."}
    async with gateway.http() as http:
        await sent(http, "POST", BASELINE, signal="reviewed", **counted)
        held = await sent(http, "POST", BASELINE, signal="feedback", **counted)
        told = await sent(http, "POST", BASELINE, **remove)
        again = await sent(http, "POST", BASELINE, 409, **remove)
        *_, entry = (await http.get("/admin/v1/audit", params={"action": "monitor.baseline"})).json()["entries"]
    assert ([*told["set"]], told["generation"], told["warnings"]) == (["reviewed"], held["generation"] + 1, [])
    assert again["error"]["message"] == "No baseline of returns@v1's feedback was set."
    assert (entry["before"]["upper"], entry["before"]["of"]) == (held["set"]["feedback"]["upper"], 400)
    assert entry["after"] == {"signal": "feedback", "reason": "Of another season.", "removed": True}


async def test_baseline_of_a_degraded_version_is_not_removed(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await sent(http, "POST", BASELINE, signal="feedback", wrong=10, of=400, reason="Counted.")
        degraded = TaskQuality(versions={"returns@v1": VersionQuality(verdict="degraded")})
        _, generation = await gateway.features[Quality].store.of("returns")
        await gateway.features[Quality].store.put("returns", degraded, generation)
        refused = await sent(http, "POST", BASELINE, 409, signal="feedback", remove=True, reason="Of another season.")
        held = await gateway.services.objects.baselines.get("returns@v1")
    assert refused["error"]["message"].startswith("returns@v1 is degraded, and learns nothing meanwhile")
    assert [*(held or ())] == ["feedback"]


async def test_a_baseline_of_a_class_of_which_nothing_was_seen_is_set_with_a_warning(gateway: RunningGateway) -> None:
    await judged(gateway, seen("feedback", 30, "vases"))
    counted: dict[str, Any] = {"signal": "feedback", "wrong": 10, "of": 400, "reason": "Counted."}
    async with gateway.http() as http:
        glass = await sent(http, "POST", BASELINE, of_class="glass", **counted)
        vases = await sent(http, "POST", BASELINE, of_class="vases", **counted)
        whole = await sent(http, "POST", BASELINE, **counted)
    (warning,) = glass["warnings"]
    assert warning.startswith("feedback of returns@v1 has no label of the class glass yet: is that its name? ")
    assert "tasks.returns.monitor.class_tag is not set" in warning
    assert (vases["warnings"], whole["warnings"]) == ([], [])
