"""The fake engine's /metrics: vLLM's current names, as many as a gateway could want to read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine


def exposition(engine: FakeEngine) -> str:
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
    add("kv_cache_usage_perc", "gauge", f"kv_cache_usage_perc{{{label}}} {min(engine.in_flight / 256, 1.0)}")
    add("prompt_tokens", "counter", f"prompt_tokens_total{{{label}}} {count.prompt_tokens}")
    add("generation_tokens", "counter", f"generation_tokens_total{{{label}}} {count.generation_tokens}")
    finished = (f'request_success_total{{{label},finished_reason="{why}"}} {n}' for why, n in count.finished.items())
    add("request_success", "counter", *finished)
    number, seconds = count.first_token_seconds
    name = "time_to_first_token_seconds"
    add(
        name,
        "histogram",
        f'{name}_bucket{{{label},le="+Inf"}} {number}',
        f"{name}_count{{{label}}} {number}",
        f"{name}_sum{{{label}}} {seconds}",
    )
    names = ",".join(adapters.running)
    labels = f'max_lora="{engine.max_loras}",running_lora_adapters="{names}",waiting_lora_adapters="{names}"'
    add("lora_requests_info", "gauge", *([f"lora_requests_info{{{labels}}} {time.time()}"] if names else []))
    return "\n".join(lines) + "\n"
