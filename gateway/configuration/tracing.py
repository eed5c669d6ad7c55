"""Settings of tracing: where spans go, and of which share of requests."""

from __future__ import annotations

from pydantic import Field

from gateway.configuration.sections import Section, Share


class TracingSettings(Section):
    """Spans of requests, for a collector of OpenTelemetry. It takes the extra `tracing`."""

    endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OTLP address of traces, such as http://HOST:4318/v1/traces; unset: off.",
    )
    sampled_share: Share = Field(1.0, description="Share of requests with spans, where no `traceparent` decides.")
