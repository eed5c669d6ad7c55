"""The dashboard Routing: destinations and reasons, first choices, cost and saving."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.events import make_events
from tools.dashboards.panels import Board, Query, make_dashboard, make_figure, make_graph
from tools.dashboards.queries import TASK, TASKS, compute_saving, name_missing_task, sum_increase, sum_rate

REQUESTS = "apprentice_requests_total"
COST = "apprentice_cost_usd_total"
ANSWERED = f'{TASK}, outcome="ok"'
BY_ADAPTER = f'{ANSWERED}, version!=""'


def build_routing() -> Dashboard:
    """The dashboard for Grafana."""
    return make_dashboard(
        "routing",
        "Where do requests go, why, at what cost, and what does that save?",
        {"task": TASKS},
        {
            "At a glance": _at_a_glance,
            "Where requests go": _ways,
            "Checks and fallbacks": _checks,
            "Cost and saving": _money,
        },
        events=make_events(),
    )


def _at_a_glance(board: Board) -> None:
    served = sum_increase(REQUESTS, match=ANSWERED, window="$__range")
    unknown = sum_increase("apprentice_cost_unknown_total", match="", window="$__range")
    board.add(make_figure(
        "What do adapters answer?", "Of the requests that were answered within the range that is shown.",
        "percentunit", Query(f"{sum_increase(REQUESTS, match=BY_ADAPTER, window='$__range')} / ({served} > 0)"),
    ), 5, 4).add(make_figure(
        "What share was diverted?",
        "Requests that another choice answered, as the first could not or may not, within the range that is shown.",
        "percentunit",
        Query(f"({sum_increase('apprentice_fallbacks_total', window='$__range')} or 0 * {served}) / ({served} > 0)"),
    ), 5, 4).add(make_figure(
        "What does an answer cost?", "US dollars for a thousand answers within the range that is shown.",
        "currencyUSD",
        Query(f"1000 * {sum_increase(COST, match=_spent('serve'), window='$__range')} / ({served} > 0)"),
    ), 5, 4).add(make_figure(
        "What was saved, net?",
        "The net saving in US dollars within the range that is shown: saved against general alone, less overspent, "
        "shadows, reviews, and the range's part of the tuning, which is spread over 90 days.",
        "currencyUSD", Query(compute_saving("", "$__range", "$__range_s / 86400")), steps=((None, "red"), (0, "green")),
    ), 5, 4).add(make_figure(
        "Which cost is unknown?", "Requests without a known cost: they are in no sum here.", "percentunit",
        Query(f"({unknown} or 0 * {served}) / ({sum_increase(REQUESTS, match='', window='$__range')} > 0)"),
        steps=((None, "green"), (0.01, "orange")),
    ), 4, 4)  # fmt: skip


def _ways(board: Board) -> None:
    board.add(make_graph(
        "Where do requests go?", "Requests a second by what answered: a version, or a pool's base model.", "reqps",
        Query(name_missing_task(sum_rate(REQUESTS, "task, version, pool", f'{TASK}, pool!=""')),
              "{{task}} → {{version}} {{pool}}"),
        stacked=True,
    ), 12).add(make_graph(
        "Why do they go there?", "Requests a second by reason. docs/reference/reasons.md says what each is.", "reqps",
        Query(sum_rate(REQUESTS, "reason", match=f'{TASK}, reason!=""'), "{{reason}}"), stacked=True,
    ), 12).add(make_graph(
        "What was chosen first, and left?",
        "Requests a second given to another choice before commit: from what, to what, and why.", "reqps",
        Query(sum_rate("apprentice_fallbacks_total", "from, to, reason"), "{{from}} → {{to}}: {{reason}}"),
        bars=True, stacked=True,
    ), 12).add(make_graph(
        "What share of its requests does each version keep?",
        "Below 100% the monitor has shifted the rest to another arm.", "percentunit",
        Query(f"max by (version) (apprentice_kept_ratio{{{TASK}}})", "{{version}}"), stepped=True, most=1,
    ), 12)  # fmt: skip


def _checks(board: Board) -> None:
    board.add(make_graph(
        "Which checks fire?", "Requests a second. One that is only observed changed nothing.", "reqps",
        Query(sum_rate("apprentice_check_fired_total", "check, mode"), "{{check}} ({{mode}})"),
    ), 8).add(make_graph(
        "Which checks could not judge?",
        "Requests a second that an enforced check let pass: no model, or one for another prefix.", "reqps",
        Query(sum_rate("apprentice_check_unjudged_total", "check"), "{{check}}"), bars=True,
    ), 8).add(make_graph(
        "Whose fallback is closed?",
        "Requests a second that met a cap of their task, by why they were to go there.", "reqps",
        Query(sum_rate("apprentice_fallback_capped_total", "task, reason"), "{{task}}: {{reason}}"), bars=True,
    ), 8)  # fmt: skip


def _money(board: Board) -> None:
    board.add(make_graph(
        "What is money spent on?",
        "US dollars an hour: serve (callers' answers), shadow, probe, evaluation, wasted (answers that nobody got).",
        "currencyUSD", Query(f"3600 * {sum_rate(COST, 'purpose')}", "{{purpose}}"), stacked=True,
    ), 12).add(make_graph(
        "Where is it spent?", "US dollars an hour by task and pool, whatever for.", "currencyUSD",
        Query(name_missing_task(f"3600 * {sum_rate(COST, 'task, pool')}"), "{{task}}, {{pool}}"), stacked=True,
    ), 12).add(make_graph(
        "What is saved, and what eats it up?",
        "US dollars within an hour: what adapters saved against general alone, and below 0 what dearer answers, "
        "shadows, reviews and tuning (spread over 90 days) took of it.", "currencyUSD",
        Query(compute_saving("part", "1h", "1 / 24"), "{{part}}"), least=None,
    ), 12).add(make_graph(
        "What did each task save in the last 7 days?",
        "The net saving in US dollars, as the alert SavingNegative has it. Without Prometheus' recording rules of "
        "monitoring/alerts it is empty.", "currencyUSD",
        Query(f"task:apprentice_net_saving_usd:increase7d{{{TASK}}}", "{{task}}"), least=None,
        lines=((None, "transparent"), (0, "red")),
    ), 12)  # fmt: skip


def _spent(purpose: str) -> str:
    return f'{TASK}, purpose="{purpose}"'
