"""The fake engine's /metrics: vLLM's current names with their labels, those that a dashboard or a gateway reads."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
TIMES = (
    *("time_to_first_token", "inter_token_latency", "e2e_request_latency"),
    *("request_queue_time", "request_prefill_time", "request_decode_time"),
)


class Buckets:
    """A histogram of vLLM's."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one measurement."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value

    def samples(self, name: str, label: str) -> list[str]:
        """Its lines."""
        ends, total, lines = (*map(str, self._bounds), "+Inf"), 0, []
        for end, count in zip(ends, self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{label},le="{end}"}} {total}')
        return [*lines, f"{name}_count{{{label}}} {total}", f"{name}_sum{{{label}}} {self.sum}"]


def _histograms() -> dict[str, Buckets]:
    lengths = {f"request_{kind}_tokens": Buckets(TOKENS) for kind in ("prompt", "generation")}
    return {f"{name}_seconds": Buckets(SECONDS) for name in TIMES} | lengths


@dataclass
class Count:
    """The counts of /metrics since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error"), 0))
    prefix_hits: int = 0
    preemptions: int = 0
    adapters_ran: dict[str, float] = field(default_factory=dict)
    """Unix time at which these adapters, joined by commas, were last in the batch together."""
    histograms: Mapping[str, Buckets] = field(default_factory=_histograms)

    def end(
        self, began_at: float, first_at: float, prompt: int, made: int, *, queued: float = 0.0, now: float | None = None
    ) -> None:
        """Count a request that ended well. Times are of the monotonic clock."""
        self.prompt_tokens += prompt
        self.generation_tokens += made
        now = time.monotonic() if now is None else now
        for name, value in (
            ("e2e_request_latency_seconds", now - began_at),
            ("request_queue_time_seconds", queued),
            ("request_prefill_time_seconds", first_at - began_at - queued),
            ("request_decode_time_seconds", now - first_at),
            ("request_prompt_tokens", prompt),
            ("request_generation_tokens", made),
        ):
            self.histograms[name].observe(value)


class Placed(Protocol):
    """An engine's adapters: how many requests wait for a place among them."""

    @property
    def waiting(self) -> int: ...


class Measured(Protocol):
    """An engine of which /metrics tells: a fake one, or one of a story."""

    @property
    def model(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def max_loras(self) -> int: ...
    @property
    def count(self) -> Count: ...
    @property
    def adapters(self) -> Placed: ...


def exposition(engine: Measured) -> str:
    """The Prometheus text. As in vLLM, the model's label is the base model's name alone."""
    label = f'engine="0",model_name="{engine.model}"'
    count, adapters = engine.count, engine.adapters
    lines: list[str] = []

    def add(name: str, kind: str, *samples: str) -> None:
        told = f"{name}_total" if kind == "counter" else name
        lines.append(f"# HELP vllm:{told} As vLLM names it.")
        lines.append(f"# TYPE vllm:{told} {kind}")
        lines.extend(f"vllm:{sample}" for sample in samples)

    lines.append("# TYPE process_start_time_seconds gauge")
    lines.append(f"process_start_time_seconds {engine.started_at}")
    add("num_requests_running", "gauge", f"num_requests_running{{{label}}} {engine.in_flight - adapters.waiting}")
    add("num_requests_waiting", "gauge", f"num_requests_waiting{{{label}}} {adapters.waiting}")
    waiting = {"capacity": 0, "deferred": adapters.waiting}
    by_reason = (f'num_requests_waiting_by_reason{{{label},reason="{why}"}} {n}' for why, n in waiting.items())
    add("num_requests_waiting_by_reason", "gauge", *by_reason)
    add("kv_cache_usage_perc", "gauge", f"kv_cache_usage_perc{{{label}}} {min(engine.in_flight / 256, 1.0)}")
    for name, value in (
        ("prompt_tokens", count.prompt_tokens),
        ("generation_tokens", count.generation_tokens),
        ("prefix_cache_queries", count.prompt_tokens),
        ("prefix_cache_hits", count.prefix_hits),
        ("num_preemptions", count.preemptions),
    ):
        add(name, "counter", f"{name}_total{{{label}}} {value}")
    finished = (f'request_success_total{{{label},finished_reason="{why}"}} {n}' for why, n in count.finished.items())
    add("request_success", "counter", *finished)
    for name, histogram in count.histograms.items():
        add(name, "histogram", *histogram.samples(name, label))
    places = f'max_lora="{engine.max_loras}",waiting_lora_adapters=""'
    ran = (
        f'lora_requests_info{{{places},running_lora_adapters="{who}"}} {at}' for who, at in count.adapters_ran.items()
    )
    add("lora_requests_info", "gauge", *ran)
    return "\n".join(lines) + "\n"
