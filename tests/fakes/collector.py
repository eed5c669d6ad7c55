"""A real OpenTelemetry collector (rotel) for tests, and behind it a receiver that decodes what it passes on."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes.ports import free_port
from tests.fakes.wire import Exchange, HttpListener
from tests.waiting import until


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came, ids in hexadecimal. `resource` has the attributes of its sender."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    begin: int
    end: int
    attributes: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]
    failed: bool
    resource: Mapping[str, Any]


@dataclass
class Collector:
    """Spans that came through the collector at `endpoint`, and the bytes that they came in."""

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    raw: bytes = b""

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace, in the order of their begin."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.begin)

    def take(self, body: bytes) -> None:
        """Decode one export."""
        self.raw += body
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(sent.resource.attributes)
            self.spans += [_received(span, resource) for scope in sent.scope_spans for span in scope.spans]


def _received(span: Span, resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        tuple({"name": event.name, **_values(event.attributes)} for event in span.events),
        span.status.code == 2,
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind or "")


@asynccontextmanager
async def run_collector(folder: Path) -> AsyncIterator[Collector]:
    """Run rotel, which passes on to a receiver of ours over OTLP/HTTP. Leaves the test out where it is missing."""
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        pytest.skip("rotel is missing: pip install rotel")
    http, grpc = free_port(), free_port()
    collector = Collector(f"http://127.0.0.1:{http}/v1/traces")

    async def answer(exchange: Exchange) -> None:
        collector.take(gzip.decompress(exchange.request.body))
        await exchange.whole(200, b"", content_type="application/x-protobuf")

    listener = HttpListener(answer, "127.0.0.1", 0)
    await listener.start()
    program = Path(spec.origin).parent / "rotel-agent"
    program.chmod(0o755)
    options = {
        "otlp-http-endpoint": f"127.0.0.1:{http}",
        "otlp-grpc-endpoint": f"127.0.0.1:{grpc}",
        "exporter": "otlp",
        "otlp-exporter-protocol": "http",
        "otlp-exporter-endpoint": f"http://127.0.0.1:{listener.port}",
        "otlp-exporter-compression": "gzip",
        "traces-batch-timeout": "50ms",
    }
    command = [str(program), "start", *(word for name, value in options.items() for word in (f"--{name}", value))]
    with (folder / "rotel.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        await until(lambda: _listens(collector.endpoint), "the collector listens")
        yield collector
    finally:
        process.terminate()
        await process.wait()
        await listener.stop()
        listener.release()


async def _listens(endpoint: str) -> bool:
    async with httpx.AsyncClient() as http:
        try:
            await http.post(endpoint, content=b"", headers={"content-type": "application/x-protobuf"})
        except httpx.TransportError:
            return False
    return True
