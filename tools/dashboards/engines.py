"""The dashboard Engines: vLLM's own series. They name the base model and the engine, but not task and version."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.events import make_events
from tools.dashboards.panels import (
    UP,
    Board,
    Column,
    Query,
    make_dashboard,
    make_figure,
    make_graph,
    make_table,
    make_timeline,
)
from tools.dashboards.queries import MODEL, estimate_quantile, sum_gauge, sum_increase, sum_rate, take_max

RUNNING = "vllm:num_requests_running"
BY_ENGINE = "{{instance}}"
FULL = ((None, "green"), (0.8, "orange"), (0.95, "red"))
STEPS: Mapping[str, str] = {"queue": "waits", "prefill": "reads the prompt", "decode": "makes tokens"}


def build_engines() -> Dashboard:
    """The dashboard for Grafana."""
    return make_dashboard(
        "engines",
        "What do engines do with their requests? vLLM's own series; the gateway's are on Service and Adapters.",
        {
            "model": f"label_values({RUNNING}, model_name)",
            "instance": f'label_values({RUNNING}{{model_name=~"$model"}}, instance)',
        },
        {
            "At a glance": _at_a_glance,
            "Load": _load,
            "Speed": _speed,
            "Work": _work,
        },
        events=make_events(match=""),
    )


def _at_a_glance(board: Board) -> None:
    board.add(make_figure(
        "How many engines?", "Engines of which Prometheus got the metrics lately.", "none",
        Query(f"count(count by (instance) ({RUNNING}{{{MODEL}}}))"), steps=((None, "red"), (1, "green")),
    ), 4, 4).add(make_figure(
        "How many requests run?", "In the batches of all engines now.", "none", Query(f"sum({RUNNING}{{{MODEL}}})"),
    ), 4, 4).add(make_figure(
        "How many wait there?", "The gateway keeps its own queue: what waits here has left it.", "none",
        Query(f"sum(vllm:num_requests_waiting{{{MODEL}}})"), steps=((None, "green"), (1, "orange")),
    ), 4, 4).add(make_figure(
        "The fullest cache?", "KV cache in use. A full one puts requests off, or throws their work away.",
        "percentunit", Query(take_max("vllm:kv_cache_usage_perc", match=MODEL)), steps=FULL,
    ), 4, 4).add(make_figure(
        "Prefix cache hits?", "Share of the prompts' tokens within the range that is shown.",
        "percentunit", Query(_hits("", "$__range")),
    ), 4, 4).add(make_figure(
        "Tokens a second?", "Tokens of answers, over all engines.", "none",
        Query(sum_rate("vllm:generation_tokens_total", match=MODEL)),
    ), 4, 4)  # fmt: skip


def _load(board: Board) -> None:
    board.add(make_timeline(
        "Which engines answer Prometheus?", "Whether the last scrape of the jobs that begin with engine was answered.",
        UP, Query('min by (instance) (up{job=~"engine.*", instance=~"$instance"})', BY_ENGINE),
    ), 8).add(make_graph(
        "What runs on each engine?", "Requests in its batch.", "none",
        Query(sum_gauge(RUNNING, "instance", MODEL), BY_ENGINE), stacked=True,
    ), 8).add(make_graph(
        "What waits, and for what?",
        "capacity: for room in the batch or the cache. deferred: for room among the adapters, or for a transfer.",
        "none",
        Query(sum_gauge("vllm:num_requests_waiting_by_reason", "instance, reason", MODEL), "{{instance}} {{reason}}"),
        stacked=True,
    ), 8).add(make_graph(
        "How full are the caches?", "KV cache in use.", "percentunit",
        Query(take_max("vllm:kv_cache_usage_perc", "instance", MODEL), BY_ENGINE), most=1,
        lines=((None, "transparent"), (0.95, "red")),
    ), 6).add(make_graph(
        "Is work thrown away?", "Requests that lost their cache to others, and are read again.", "none",
        Query(sum_increase("vllm:num_preemptions_total", "instance", MODEL), BY_ENGINE), bars=True,
    ), 6).add(make_table(
        "Which adapters ran last?",
        "Adapters with a request in the batch, when vLLM last said so. No row: none so far, or no adapters at all.",
        ("instance", "running_lora_adapters", "max_lora"),
        Column("said", "dateTimeFromNow", "1000 * max by (instance, running_lora_adapters, max_lora) "
               '(topk by (instance) (1, '
               'vllm:lora_requests_info{instance=~"$instance", running_lora_adapters!=""}))'),
        greatest_first="said",
    ), 12)  # fmt: skip


def _speed(board: Board) -> None:
    shares = {0.5: "half", 0.95: "95%", 0.99: "99%"}
    for title, description, metric in (
        ("How soon does an engine's first token come?", "From its arrival at the engine, streamed or not.",
         "time_to_first_token"),
        ("How fast do an engine's tokens follow?", "Time between two tokens of an answer.", "inter_token_latency"),
        ("How long do requests wait in an engine?", "Before they are first in a batch.", "request_queue_time"),
        ("How long are requests in an engine?", "From arrival to the last token.", "e2e_request_latency"),
    ):  # fmt: skip
        name = f"vllm:{metric}_seconds"
        queries = [
            Query(estimate_quantile(share, name, match=MODEL), f"{words} are quicker")
            for share, words in shares.items()
        ]
        board.add(make_graph(title, description, "s", *queries), 12)


def _work(board: Board) -> None:
    board.add(make_graph(
        "Where does a request's time go?", "Mean of the requests that ended.", "s",
        *(Query(_mean(f"vllm:request_{step}_time_seconds"), words) for step, words in STEPS.items()), stacked=True,
    ), 8).add(make_graph(
        "How many tokens do engines read and make?", "Tokens a second of prompts and of answers.", "none",
        Query(sum_rate("vllm:prompt_tokens_total", match=MODEL), "prompt"),
        Query(sum_rate("vllm:generation_tokens_total", match=MODEL), "completion"),
    ), 8).add(make_graph(
        "How do requests end in engines?",
        "Requests a second: stop, length (the limit of tokens), abort (the gateway hung up), error.", "reqps",
        Query(sum_rate("vllm:request_success_total", "finished_reason", MODEL), "{{finished_reason}}"), stacked=True,
    ), 8).add(make_graph(
        "How much does each engine's prefix cache save?", "Share of the prompts' tokens.", "percentunit",
        Query(_hits("instance", "$__rate_interval"), BY_ENGINE), most=1,
    ), 8).add(make_graph(
        "How long are prompts?", "Tokens.", "none",
        *_lengths("vllm:request_prompt_tokens"),
    ), 8).add(make_graph(
        "How long are answers?", "Tokens.", "none", *_lengths("vllm:request_generation_tokens"),
    ), 8)  # fmt: skip


def _hits(by: str, window: str) -> str:
    asked = sum_rate("vllm:prefix_cache_queries_total", by, MODEL, window)
    return f"{sum_rate('vllm:prefix_cache_hits_total', by, MODEL, window)} / ({asked} > 0)"


def _mean(histogram: str) -> str:
    return f"{sum_rate(f'{histogram}_sum', match=MODEL)} / ({sum_rate(f'{histogram}_count', match=MODEL)} > 0)"


def _lengths(histogram: str) -> tuple[Query, Query]:
    half = Query(estimate_quantile(0.5, histogram, match=MODEL), "half are shorter")
    return half, Query(estimate_quantile(0.95, histogram, match=MODEL), "95% are shorter")
