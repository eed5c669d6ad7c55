"""Metrics of the versions that were judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from gateway.features.quality.state import Quality
from monitoring.quality.verdicts.quality import Judgement, SignalReport, Summary
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.releases import metric
from tests.walks.review_world import monitor_elsewhere

__all__ = ["monitor_elsewhere"]  # what a test sets stays as it is
V1, V2 = "returns@v1", "returns@v2"


async def judged(gateway: RunningGateway, *versions: str, reports: Sequence[SignalReport] = ()) -> None:
    """Have the gateway be told of a judgement of each version with a hundred labels."""
    found = {
        name: Judgement(task="returns", version=name, at=time.time(), labels=100, reports=[*reports])
        for name in versions
    }
    async with asyncio.timeout(60):
        while gateway.features[Quality].monitored.summary.judgements != found:
            writing = gateway.features[Quality].monitored.summary.writing + 1_000
            await gateway.features[Quality].store.tell(Summary(at=time.time(), writing=writing), found, ())
            await asyncio.sleep(0.05)


async def test_a_version_without_a_role_is_judged_and_in_no_gauge_until_it_has_one(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    assert await gateway.place(make_adapter(2), alias=False) == V2
    await judged(gateway, V1, V2)
    async with gateway.http() as http:
        assert await metric(http, "apprentice_labels", f'version="{V1}"') == 100
        assert await metric(http, "apprentice_labels", f'version="{V2}"') == 0
        text = (await http.get("/metrics")).text
        assert f'apprentice_version_stale{{task="returns",version="{V1}"}}' in text
        assert f'apprentice_version_stale{{task="returns",version="{V2}"}}' not in text
        answer = await http.put("/admin/v1/aliases/returns", json={"version": V2})
        assert answer.status_code == 200, answer.text
        await gateway.services.snapshot.refresh()
        assert await metric(http, "apprentice_labels", f'version="{V2}"') == 100
        assert await metric(http, "apprentice_labels", f'version="{V1}"') == 100, "it is the previous version now"


async def test_labels_that_rest_on_one_giver_are_told(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        for rests in (False, True):
            one = SignalReport(signal="feedback", labelled=True, observed=90, doubt="one_giver" if rests else None)
            await judged(gateway, V1, reports=[one])
            assert await metric(http, "apprentice_evidence_rests_on_one", f'version="{V1}"') == rests


async def test_what_the_monitor_is_to_do_first_stands_at_zero(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        text = (await http.get("/metrics")).text
    assert 'apprentice_webhooks_total{outcome="retried"} 0\n' in text
    assert 'apprentice_canary_verdicts_total{task="returns",action="hold"} 0\n' in text
    assert 'apprentice_monitor_actions_total{task="returns",kind="shift"} 0\n' in text
