"""Tracing: the spans of requests at a real collector, the trace at the engine, and exemplars in the metrics."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import AsyncOpenAI
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.configuration.settings import Settings
from gateway.errors import SettingsError
from gateway.features.tracing.feature import TRACING
from gateway.path.ledger import Ledger
from gateway.services import Services
from monitoring.records import Record
from monitoring.trace_context import TraceContext, make_context
from tests.fakes.collector import Collector, ReceivedSpan, run_collector
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.fakes.ports import free_port
from tests.fakes.prometheus import asked, prometheus
from tests.style.source import ROOT
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

QUESTION, ANSWER = "A toaster, unsealed, after ninety days.", "Refused, since ninety days are over."
ASK: dict[str, Any] = {
    "model": "returns",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0.25,
    "max_tokens": 20,
    "extra_headers": {"x-apprentice-session": "order-4711"},
}
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
async def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with run_collector(tmp_path) as collector:
        yield collector


@pytest.fixture
async def traced(
    configure: Configure, make_adapter: MakeAdapter, collector: Collector
) -> AsyncIterator[RunningGateway]:
    async with run_gateway(configure(tracing={"endpoint": collector.endpoint})) as gateway:
        await gateway.place(make_adapter(1))
        yield gateway


async def ask(client: AsyncOpenAI, traceparent: str | None = None, **fields: Any) -> tuple[str, str]:
    """The trace and the span of the gateway, as the answer's header has them."""
    headers = ASK["extra_headers"] | ({"traceparent": traceparent, "tracestate": STATE} if traceparent else {})
    answer = await client.chat.completions.with_raw_response.create(**ASK | {"extra_headers": headers} | fields)
    if fields.get("stream"):
        assert [chunk async for chunk in answer.parse()]
    _, trace, span, flags = answer.headers["traceparent"].split("-")
    assert flags == "01"
    return trace, span


async def test_a_fault_of_the_tracer_costs_no_record(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def begin(self, request_id: str, traceparent: str | None) -> TraceContext | None:
            return make_context(request_id, traceparent, 0.0, 1.0)

        def end(self, ledger: Ledger, trace: TraceContext, now: float) -> None:
            raise ValueError("an attribute")

    async with run_gateway(configure()) as gateway, gateway.http() as http:
        gateway.services.observers.tracing = Faulty()
        kept: list[Record] = []
        monkeypatch.setattr(gateway.services.flow.buffer, "put", lambda record: kept.append(record) or True)
        answer = await http.post("/v1/chat/completions", json={"model": "general", "messages": ASK["messages"]})
        await until(lambda: kept)
    assert (answer.status_code, [record.outcome for record in kept]) == (200, ["ok"])


async def spans_of(collector: Collector, trace: str, number: int) -> list[ReceivedSpan]:
    await until(lambda: len(collector.trace(trace)) >= number, f"{number} spans of {trace}")
    spans = collector.trace(trace)
    assert len(spans) == number
    return spans


@pytest.mark.invariant("Spans hold no text of callers and engines.")
async def test_a_request_is_a_span_in_its_callers_trace_with_its_steps_as_children(
    traced: RunningGateway, small: FakeEngine, collector: Collector
) -> None:
    small.answers["*"] = ANSWER
    async with traced.openai() as client:
        trace, span = await ask(client, f"00-{TRACE}-{PARENT}-01", stream=True, seed=7)
    assert trace == TRACE
    request, score, choose, attempt = await spans_of(collector, TRACE, 4)
    assert (request.name, request.kind, request.span_id, request.parent_id) == ("chat returns", "SERVER", span, PARENT)
    assert (score.name, choose.name, attempt.name) == ("score", "choose", "chat returns@v1")
    assert {one.parent_id for one in (score, choose, attempt)} == {request.span_id}
    assert len({one.span_id for one in (request, score, choose, attempt)}) == 4
    assert request.begin <= score.begin <= score.end <= choose.end <= attempt.begin < attempt.end <= request.end
    assert small.requests[-1].headers["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert small.requests[-1].headers["tracestate"] == STATE
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "returns",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.25,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": "returns@v1",
        "gen_ai.response.finish_reasons": ["stop"],
        "http.response.status_code": 200,
        "apprentice.version": "returns@v1",
        "apprentice.reason": "adapter",
        "apprentice.outcome": "ok",
    }
    assert {name: request.attributes[name] for name in wanted} == wanted
    assert request.attributes["gen_ai.usage.output_tokens"] > 1
    assert request.attributes["apprentice.cost_usd"] > 0
    assert 0 < attempt.attributes["gen_ai.response.time_to_first_chunk"] < 60
    assert (attempt.kind, attempt.attributes["gen_ai.provider.name"]) == ("CLIENT", "vllm")
    assert choose.attributes == {"apprentice.reason": "adapter", "apprentice.led_to": "returns@v1"}
    assert request.resource["service.name"] == "apprentice-gateway"
    assert request.resource["deployment.environment.name"] == "test"
    for text in (QUESTION, ANSWER, "order-4711", traced.admin_key.split("-", 3)[3]):
        assert text.encode() not in collector.raw


async def test_each_attempt_is_a_span_and_a_check_an_event(
    configure: Configure, make_adapter: MakeAdapter, collector: Collector, small: FakeEngine, general: FakeEngine
) -> None:
    small.faults.add(Status(500), model="returns@*")
    task = {"fallback_pool": "general", "checks": {"holdout": {"mode": "observe", "share": 0.5}}}
    async with (
        run_gateway(configure(tracing={"endpoint": collector.endpoint}, tasks={"returns": task})) as gateway,
        gateway.openai() as client,
    ):
        small.faults.clear()
        await gateway.place(make_adapter(1))
        small.faults.add(Status(500), model="returns@*")
        answer = await client.chat.completions.with_raw_response.create(**ASK)
    attempts, trace = int(answer.headers["x-apprentice-attempts"]), answer.headers["traceparent"].split("-")[1]
    request, score, choose, *all_attempts = await spans_of(collector, trace, 3 + attempts)
    first, second = all_attempts[-2:]
    assert (request.parent_id, request.failed, score.failed) == ("", False, False)
    assert (first.name, first.failed, first.attributes["error.type"]) == ("chat returns@v1", True, "failed")
    assert (second.name, second.failed, second.attributes["apprentice.pool"]) == ("chat large", False, "general")
    assert first.end <= second.begin
    assert general.requests[-1].headers["traceparent"].split("-")[2] == second.span_id
    assert choose.attributes["apprentice.reason"] == "adapter"
    assert request.attributes["apprentice.reason"] == "engine_error"
    assert [event["apprentice.check"] for event in choose.events] == ["holdout"]


@pytest.mark.parametrize(("traceparent", "share"), [(f"00-{TRACE}-{PARENT}-00", 1.0), (None, 0.0)])
async def test_what_is_not_sampled_has_no_span_and_passes_as_it_came(
    configure: Configure, collector: Collector, general: FakeEngine, traceparent: str | None, share: float
) -> None:
    tracing = {"endpoint": collector.endpoint, "sampled_share": share}
    async with run_gateway(configure(tracing=tracing)) as gateway, gateway.openai() as client:
        headers = {"traceparent": traceparent} if traceparent else {}
        answer = await client.chat.completions.with_raw_response.create(
            **ASK | {"model": "general", "extra_headers": headers}
        )
        sent = answer.headers["traceparent"]
        assert sent.endswith("-00")
        assert sent == (traceparent or sent) == general.requests[-1].headers["traceparent"]
        sampled, _ = await ask(client, f"00-{'1' * 32}-{PARENT}-01", model="general")
    await spans_of(collector, sampled, 4)
    assert {span.trace_id for span in collector.spans} == {sampled}


async def test_a_refused_request_is_a_span_without_what_its_caller_wrote(
    traced: RunningGateway, collector: Collector
) -> None:
    async with traced.http() as http:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = ASK | {"model": "a word of the caller"}
        body.pop("extra_headers")
        assert (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 404
    spans = await spans_of(collector, TRACE, 3)
    assert (spans[0].name, spans[0].failed) == ("chat", False)
    assert (spans[0].attributes["error.type"], spans[0].attributes["apprentice.outcome"]) == (
        "model_not_found",
        "refused",
    )
    assert b"a word of the caller" not in collector.raw


@pytest.mark.parametrize("time", ["request_duration", "overhead", "time_to_first_token", "time_per_output_token"])
async def test_each_time_has_a_trace_as_exemplar_where_openmetrics_is_asked(traced: RunningGateway, time: str) -> None:
    async with traced.openai() as client, traced.http("") as http:
        trace, _ = await ask(client, stream=True)
        accept = {"accept": "application/openmetrics-text;version=1.0.0"}
        openmetrics = (await http.get("/metrics", headers=accept)).text
        assert "trace_id" not in (await http.get("/metrics")).text
    families = text_string_to_metric_families(openmetrics)
    (family,) = [one for one in families if one.name == f"apprentice_{time}_seconds"]
    (exemplar,) = [sample.exemplar for sample in family.samples if sample.exemplar]
    assert exemplar.labels == {"trace_id": trace}
    assert 0 < exemplar.value < 60


async def test_the_prometheus_of_compose_gives_the_trace_of_a_slow_request(
    traced: RunningGateway, tmp_path: Path
) -> None:
    command = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["prometheus"]["command"]
    features = [option for option in command if option.startswith("--enable-feature=")]
    scrape = {"job_name": "apprentice", "static_configs": [{"targets": [traced.url.removeprefix("http://")]}]}
    configuration = tmp_path / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    async with traced.openai() as client:
        trace, _ = await ask(client)
    with prometheus(configuration, tmp_path / "stored", options=features) as stored:
        query = {"query": "apprentice_request_duration_seconds_bucket", "start": "0", "end": str(time.time() + 600)}

        async def kept() -> list[dict[str, str]]:
            series = await asyncio.to_thread(asked, stored, "query_exemplars", **query)
            return [exemplar["labels"] for one in series for exemplar in one["exemplars"]]

        await until(kept, "an exemplar")
        assert await kept() == [{"trace_id": trace}]


async def test_a_collector_that_is_gone_costs_spans_and_nothing_else(configure: Configure) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces"
    async with run_gateway(configure(tracing={"endpoint": endpoint})) as gateway, gateway.openai() as client:
        for _ in range(3):
            await ask(client, model="general")


async def test_without_the_sdk_the_gateway_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    monkeypatch.delitem(sys.modules, "gateway.features.tracing.tracer", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)

    class OnlySettings:
        settings = Settings(**configure(tracing={"endpoint": "http://127.0.0.1:4318/v1/traces"}))

    services: Services = OnlySettings()  # type: ignore[assignment]
    with pytest.raises(SettingsError, match=r"apprentice-gateway\[tracing\]"):
        TRACING.open(services, None)  # type: ignore[arg-type]
