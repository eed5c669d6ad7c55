"""Dashboards and rules are asked of a Prometheus that scrapes a gateway while it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.fakes.prometheus import asked, prometheus
from tests.monitoring.test_alerts import ALERTS
from tests.tools.dashboards.boards import all_panels, filled
from tests.waiting import until
from tests.walks.gateway import RunningGateway

RANGE_SECONDS = 120
SEEN_UNDER_LOAD = frozenset({
    "How much is asked?", "What share fails?", "Error budget used up?",
    "How long do 95% take?", "How many gateways?", "Do all reach Redis?",
    "What is asked of which task?", "How do requests end?", "How many tokens are read and made?",
    "Which errors came last?", "Which errors do callers get?", "Which replicas are up?", "Whose circuit is open?",
    "Is anything lost?",
    "How long do requests take?", "How soon does the first token come?", "How fast do tokens follow?",
    "How much of it is our own time?", "How much do engines hold?", "Do the event loops keep up?",
    "Do records reach Redis?", "Do gateways know what admins set?", "What do adapters answer?",
    "What share was diverted?", "What does an answer cost?", "What was saved, net?",
    "Which cost is unknown?", "Where do requests go?", "Why do they go there?", "What is money spent on?",
    "Where is it spent?", "What is saved, and what eats it up?", "How is traffic split between versions?",
    "What becomes of feedback?", "On how many replicas is each version?", "How full are engines of adapters?",
    "How long does it take to load an adapter?",
})  # fmt: skip
"""A gateway's dashboards without a monitor's verdict, a canary, a queue or a fault."""


async def load(gateway: RunningGateway) -> None:
    """A dozen requests: streamed or not, to a task and to a pool, one that is refused, and feedback."""
    async with gateway.http() as http:
        for number in range(12):
            model = "general" if number % 4 == 3 else "returns"
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"Toaster {number}"}],
                "stream": number % 2 == 0,
            }
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            judged = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": True}
            assert (await http.post("/v1/feedback", json=judged)).status_code < 300
        assert (await http.post("/v1/chat/completions", json={"model": "nothing"})).status_code >= 400


def scrapes(client: httpx.Client) -> int:
    """The number of times that Prometheus has read the gateway's metrics."""
    found = asked(client, "query", query="count_over_time(up[2m])")["result"]
    return int(found[0]["value"][1]) if found else 0


def shown(client: httpx.Client) -> set[str]:
    """The titles of the panels that have something to draw."""
    titles = set()
    for _, panel in all_panels():
        for one in panel["targets"]:
            found = asked(client, "query", query=filled(one["expr"], RANGE_SECONDS))["result"]
            titles |= {panel["title"]} if found else set()
    return titles


async def test_what_a_gateway_shows_under_load_is_drawn_and_no_query_fails(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    target = gateway.url.removeprefix("http://")
    configuration = tmp_path / "prometheus.yaml"
    scrape = {"job_name": "apprentice", "static_configs": [{"targets": [target]}]}
    every: dict[str, Any] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    rules = [str(path) for path in ALERTS]
    configuration.write_text(yaml.safe_dump({"global": every, "rule_files": rules, "scrape_configs": [scrape]}))
    with prometheus(configuration, tmp_path / "data") as client:

        async def all_are_drawn() -> bool:
            await load(gateway)
            return await asyncio.to_thread(lambda: scrapes(client) >= 4 and shown(client) >= SEEN_UNDER_LOAD)

        await until(all_are_drawn, "all panels are drawn")
        faulty = [
            group for group in asked(client, "rules")["groups"] for rule in group["rules"] if rule.get("lastError")
        ]
        assert not faulty
