"""The dashboard Service: traffic, errors, latency and saturation, over all gateways."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.events import make_events
from tools.dashboards.panels import (
    BREAKERS,
    UP,
    Board,
    Column,
    Link,
    Query,
    make_dashboard,
    make_figure,
    make_graph,
    make_table,
    make_timeline,
)
from tools.dashboards.queries import (
    TASK,
    TASKS,
    compute_failed_share,
    count_shown,
    estimate_quantile,
    find_last,
    name_missing_task,
    sum_gauge,
    sum_increase,
    sum_rate,
    take_max,
)

BY_PLACE = "{{pool}} {{replica}}"
CONSOLE = "http://127.0.0.1:8080"
"""The address of the console with compose.yaml and `make up`. The chart writes another one."""
REQUESTS = "${console:raw}/console/requests"
OF_ROW = "&".join(f"{name}=${{__data.fields.{name}:percentencode}}" for name in ("task", "reason", "outcome"))
FAILED = f'{TASK}, outcome=~"refused|failed|truncated"'


def build_service() -> Dashboard:
    """The dashboard for Grafana."""
    return make_dashboard(
        "service",
        "Does the gateway serve its callers? Traffic, errors, latency and saturation.",
        {"task": TASKS},
        {
            "At a glance": _at_a_glance,
            "Traffic": _traffic,
            "Errors": _errors,
            "Latency": _latency,
            "Saturation": _saturation,
        },
        events=make_events(),
        texts={"console": CONSOLE},
    )


def _at_a_glance(board: Board) -> None:
    board.add(make_figure(
        "How much is asked?", "Finished requests a second, whatever became of them.", "reqps",
        Query(sum_rate("apprentice_requests_total")),
    ), 4, 4).add(make_figure(
        "What share fails?",
        "Requests that failed (5xx) or broke off, of those that callers sent well, within the range that is shown.",
        "percentunit", Query(compute_failed_share("$__range")),
        steps=((None, "green"), (0.001, "orange"), (0.01, "red")),
    ), 4, 4).add(make_figure(
        "Error budget used up?",
        "The share that fails within the range that is shown, of the 0.1% that the service's level allows. "
        "Above 100% the level is missed.",
        "percentunit", Query(f"({compute_failed_share('$__range')}) / 0.001"),
        steps=((None, "green"), (0.5, "orange"), (1, "red")),
    ), 4, 4).add(make_figure(
        "How long do 95% take?", "95 of 100 requests end sooner, from first byte to last.", "s",
        Query(estimate_quantile(0.95, "apprentice_request_duration_seconds")),
    ), 4, 4).add(make_figure(
        "How many gateways?", "Gateways of which Prometheus got the metrics lately.", "none",
        Query("count(apprentice_build_info)"), steps=((None, "red"), (1, "green")),
    ), 4, 4).add(make_figure(
        "Do all reach Redis?", "No: at least one gateway can't store feedback, nor take what admins set.",
        "none", Query("min(apprentice_redis_up)"), names=UP,
    ), 4, 4)  # fmt: skip


def _traffic(board: Board) -> None:
    board.add(make_graph(
        "What is asked of which task?",
        "Finished requests a second by task; those that asked for a pool have none.", "reqps",
        Query(name_missing_task(sum_rate("apprentice_requests_total", "task")), "{{task}}"), stacked=True,
    ), 8).add(make_graph(
        "How do requests end?",
        "By outcome: ok, refused (the caller's fault), failed (ours or an engine's), truncated (a stream that broke), "
        "cancelled (the caller went).", "reqps",
        Query(sum_rate("apprentice_requests_total", "outcome"), "{{outcome}}"), stacked=True,
    ), 8).add(make_graph(
        "How many tokens are read and made?", "Tokens a second: prompt and completion.", "none",
        Query(sum_rate("apprentice_tokens_total", "type"), "{{type}}"),
    ), 8)  # fmt: skip


def _errors(board: Board) -> None:
    board.add(make_graph(
        "Which errors do callers get?", "Errors a second by code. docs/reference/errors.md says what each is.",
        "reqps", Query(sum_rate("apprentice_refusals_total", "code", match=""), "{{code}}"), bars=True, stacked=True,
    ), 8).add(make_graph(
        "What goes wrong at engines?",
        "Attempts a second that did not end in an answer, by pool. One request may make several.", "reqps",
        Query(sum_rate("apprentice_attempts_total", "pool, outcome", match='outcome!="answered"'),
              "{{pool}} {{outcome}}"),
        bars=True, stacked=True,
    ), 8).add(make_graph(
        "Who gets no place, and why?", "Requests a second that were turned away before any engine was asked.",
        "reqps", Query(sum_rate("apprentice_requests_shed_total", "cause", match=""), "{{cause}}"),
        bars=True, stacked=True,
    ), 8).add(make_table(
        "Which requests were refused or failed last?",
        "The newest first, within the range that is shown. A row leads to its requests in the console, whose address "
        "stands above the panels.", ("task", "reason", "outcome"),
        *_last("apprentice_requests_total", "task, reason, outcome", FAILED), greatest_first="last",
        link=Link("Requests in the console", REQUESTS, f"?{OF_ROW}"),
    ), 14).add(make_table(
        "Which errors came last?", "The newest first. docs/reference/errors.md says what each is.", ("code",),
        *_last("apprentice_refusals_total", "code", 'code!=""'), greatest_first="last",
    ), 10).add(make_timeline(
        "Which replicas are up?", "Yes: the last health check passed at every gateway. No: it failed at one.", UP,
        Query("min by (pool, replica) (apprentice_replica_up)", BY_PLACE),
    ), 8).add(make_timeline(
        "Whose circuit is open?", "The worst of a replica's breakers at any gateway. An open one gets no requests.",
        BREAKERS, Query(take_max("apprentice_breaker_state", "pool, replica"), BY_PLACE),
    ), 8).add(make_graph(
        "Is anything lost?",
        "Records dropped, feedback whose record was gone, and measurements that could not be counted. All should "
        "stay at nothing.", "none",
        Query(sum_increase("apprentice_records_dropped_total", match=""), "records"),
        Query(sum_increase("apprentice_records_unarchived_dropped_total", match=""),
              "records before they were archived"),
        Query(sum_increase("apprentice_monitor_unmatched_total", match=""), "feedback without its record"),
        Query(sum_increase("apprentice_measurements_lost_total", "family", match=""), "{{family}}"), bars=True,
    ), 8)  # fmt: skip


def _last(metric: str, by: str, match: str) -> tuple[Column, Column]:
    return (
        Column("last", "dateTimeFromNow", find_last(metric, by, match)),
        Column("how many", "none", count_shown(metric, by, match)),
    )


def _latency(board: Board) -> None:
    shares = {0.5: "half", 0.95: "95%", 0.99: "99%"}
    for title, description, metric in (
        ("How long do requests take?", "From first byte to last, engines' time included.", "request_duration"),
        ("How soon does the first token come?", "Of streams, from the request's first byte.", "time_to_first_token"),
        ("How fast do tokens follow?", "Time for each token of an answer after the first.", "time_per_output_token"),
        ("How much of it is our own time?", "Time until commit that was not spent on an engine. 20 ms is the level "
         "that 99% of answers are to keep.", "overhead"),
    ):  # fmt: skip
        name = f"apprentice_{metric}_seconds"
        queries = [Query(estimate_quantile(share, name), f"{words} are quicker") for share, words in shares.items()]
        lines = ((None, "transparent"), (0.02, "red")) if metric == "overhead" else ()
        board.add(make_graph(title, description, "s", *queries, lines=lines), 12)


def _saturation(board: Board) -> None:
    board.add(make_graph(
        "How much do engines hold?", "Requests under way on each replica, over all gateways.", "none",
        Query(sum_gauge("apprentice_in_flight", "pool, replica"), BY_PLACE), stacked=True,
    ), 8).add(make_graph(
        "How much waits for a place?", "Requests that wait in gateways, by class.", "none",
        Query(sum_gauge("apprentice_queue_length", "priority"), "{{priority}}"), stacked=True,
    ), 8).add(make_graph(
        "How long do they wait?", "95 of 100 that had to wait waited less.", "s",
        Query(estimate_quantile(0.95, "apprentice_queue_seconds", "priority", match=""), "{{priority}}"),
    ), 8).add(make_graph(
        "Do the event loops keep up?", "How late timers fire: 99 of 100 less than this. Every stream waits as long.",
        "s", Query(estimate_quantile(0.99, "apprentice_event_loop_lag_seconds", "instance", match=""), "{{instance}}"),
    ), 8).add(make_graph(
        "Do records reach Redis?", "Records in memory and spool that are not stored yet.", "none",
        Query(sum_gauge("apprentice_records_pending", "instance"), "{{instance}}"),
    ), 8).add(make_graph(
        "Do gateways know what admins set?",
        "Time since a gateway last confirmed its policy in Redis. It goes on with what it has.", "s",
        Query(take_max("apprentice_snapshot_age_seconds", "instance"), "{{instance}}"),
    ), 8)  # fmt: skip
