"""The dashboard Adapters: versions, their verdicts and evidence, and the monitor's actions."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.quality.signal_table import LABELLED
from tools.dashboards.events import make_events
from tools.dashboards.panels import (
    VERDICTS,
    Board,
    Column,
    Query,
    make_dashboard,
    make_figure,
    make_graph,
    make_table,
    make_timeline,
)
from tools.dashboards.queries import (
    TASK,
    VERSION,
    estimate_quantile,
    keep_serving,
    sum_increase,
    sum_rate,
    take_max,
)

BY_VERSION = "task, version"
SIGNAL = "task, version, signal"
ARMS: Mapping[str, str] = {"version": "blue", "general": "orange", "previous_version": "purple"}
STALE: Mapping[int, tuple[str, str]] = {0: ("no", "green"), 1: ("yes", "orange")}


def build_adapters() -> Dashboard:
    """The dashboard for Grafana."""
    return make_dashboard(
        "adapters",
        "How good is each version, how sure is that, and what was done about it?",
        {
            "task": "label_values(apprentice_adapter_info, task)",
            "version": 'label_values(apprentice_adapter_info{task=~"$task"}, version)',
        },
        {
            "Versions": _versions,
            "Verdicts and their evidence": _verdicts,
            "Quality": _quality,
            "Labels": _labels,
            "Shadows and reviews": _shadows,
            "Placements": _placements,
        },
        events=make_events(),
    )


def _gauge(name: str) -> str:
    return take_max(f"apprentice_{name}", BY_VERSION, VERSION)


def _quality_of(bound: str) -> str:
    return take_max("apprentice_quality_ratio", BY_VERSION, f'{VERSION}, arm="version", bound="{bound}"')


def _versions(board: Board) -> None:
    for value, (name, colour) in VERDICTS.items():
        found = keep_serving(f"{_gauge('verdict')} == {value}")
        steps = ((None, "text"), (1, colour))
        description = f"Versions that served within the hour and are {name}, by the monitor or an admin's word."
        count = Query(f"count({found}) or vector(0)")
        board.add(make_figure(f"How many {name}?", description, "none", count, steps=steps), 3, 4)
    board.add(make_figure(
        "How many unjudged?", "Versions that can't be judged: their verdicts stand still. The gateways' logs say why.",
        "none", Query(take_max("apprentice_monitor_unjudged")), steps=((None, "text"), (1, "red")),
    ), 3, 4).add(make_figure(
        "When were they judged?",
        "Time since the monitor last judged. Verdicts stand still meanwhile.",
        "s", Query(f"time() - {take_max('apprentice_monitor_judged_at_seconds')}"),
        steps=((None, "green"), (60, "orange"), (300, "red")),
    ), 4, 4).add(make_figure(
        "Is the monitor behind?", "Age of the oldest record or feedback that it has not read.", "s",
        Query(take_max("apprentice_monitor_behind_seconds")), steps=((None, "green"), (60, "orange"), (300, "red")),
    ), 4, 4).add(make_figure(
        "How many to retrain?", "Open requests for a retraining, with the examples that failed.", "none",
        Query(f"sum({take_max('apprentice_retraining_open', 'task', TASK)}) or vector(0)"),
        steps=((None, "text"), (1, "orange")),
    ), 4, 4).add(make_table(
        "How does each version stand?",
        "An empty field is not known. Found within: the time until errors risen by 10 points would be found, at "
        "today's label rate; ∞ or empty: never.",
        ("task", "version"),
        Column("verdict", "none", _gauge("verdict"), VERDICTS),
        Column("since", "dateTimeFromNow", f"1000 * {_gauge('verdict_since_seconds')}"),
        Column("keeps", "percentunit", _gauge("kept_ratio")),
        Column("right", "percentunit", _quality_of("mean")),
        Column("at least", "percentunit", _quality_of("low")),
        Column("labels", "none", _gauge("labels")),
        Column("found within", "s",
               take_max("apprentice_time_to_detect_seconds", BY_VERSION, f'{VERSION}, points="10"')),
        Column("stale", "none", _gauge("version_stale"), STALE),
        Column("review due", "dateTimeFromNow", f"1000 * {_gauge('version_review_by_seconds')}"),
    ), 24, 7).add(make_graph(
        "How is traffic split between versions?", "Requests a second by the version that answered.", "reqps",
        Query(sum_rate("apprentice_requests_total", "version", f'{VERSION}, version!=""'), "{{version}}"), stacked=True,
    ), 12).add(make_graph(
        "What share of its requests does each version keep?",
        "Below 100% the monitor has shifted the rest to general or to the previous version.", "percentunit",
        Query(_gauge("kept_ratio"), "{{version}}"), stepped=True, most=1,
    ), 12)  # fmt: skip


def _evidence(metric: str, which: str = "") -> str:
    return take_max(f"apprentice_{metric}", SIGNAL, f"{VERSION}{which}")


def _of_threshold(which: str = "") -> str:
    """E-values divided by the thresholds at which they alarm."""
    return f"{_evidence('e_value', which)} / on ({SIGNAL}) ({_evidence('e_value_threshold', which)} > 0)"


def _most(which: str, words: str) -> Query:
    """The strongest evidence on each version, from some of its signals."""
    return Query(f"clamp_min(max by (version) ({_of_threshold(which)}), 1e-4)", "{{version}}: " + words)


def _strongest(expr: str) -> str:
    return f"max by (version, signal) ({expr} and on ({SIGNAL}) topk(10, {_of_threshold()}))"


def _verdicts(board: Board) -> None:
    labelled = "|".join(sorted(LABELLED))
    board.add(make_timeline(
        "What was the verdict?", "By the monitor's evidence, or by an admin's pin.", VERDICTS,
        Query(_gauge("verdict"), "{{version}}"),
    ), 8).add(make_graph(
        "How strong is the evidence?",
        "The strongest signal's e-value as a share of its threshold: at 1 it alarms. Labels and judged pairs can make "
        "a version degraded; other signs, such as the inputs' coverage, suspect at most.", "short",
        _most(f', signal=~"{labelled}"', "labels"), _most(f', signal!~"{labelled}"', "other signs"),
        logarithmic=True, lines=((None, "transparent"), (1, "red")),
    ), 8).add(make_table(
        "Which signals say that it got worse?",
        "The ten with the strongest evidence now, as a share of the e-value at which each alarms: at 1 it does.",
        ("version", "signal"),
        Column("of threshold", "short", _strongest(_of_threshold())),
        Column("e-value", "short", _strongest(_evidence("e_value"))),
        greatest_first="of threshold",
    ), 8).add(make_graph(
        "What did the monitor do?", "Its actions by kind; those that were undone count too.", "none",
        Query(sum_increase("apprentice_monitor_actions_total", "task, kind"), "{{task}} {{kind}}"),
        bars=True, stacked=True,
    ), 8).add(make_graph(
        "More complaints than expected?",
        "Since the version's reference period: by requests, complaint rate and learned delay.", "none",
        Query(_gauge("complaints_seen"), "{{version}} came"),
        Query(_gauge("complaints_expected"), "{{version}} expected"),
    ), 8).add(make_graph(
        "What became of canaries?", "Verdicts on canaries that were carried out.", "none",
        Query(sum_increase("apprentice_canary_verdicts_total", "task, action"), "{{task}} {{action}}"),
        bars=True, stacked=True,
    ), 8)  # fmt: skip


def _quality(board: Board) -> None:
    arms = [
        Query(
            f'min by (arm) (apprentice_quality_ratio{{{VERSION}, bound="{bound}"}})',
            "{{arm}}" if bound == "mean" else "{{arm}} " + bound,
        )
        for bound in ("low", "mean", "high")
    ]
    board.add(make_graph(
        "How good is each arm on the task?",
        "Estimated share of right answers with its 95% interval. Pick one version: of several, the worst is drawn.",
        "percentunit", *arms, least=None, most=1, bands=ARMS,
    ), 12).add(make_graph(
        "How good is each version?", "Estimated share of its answers that are right.", "percentunit",
        Query(_quality_of("mean"), "{{version}}"), least=None, most=1,
    ), 12)  # fmt: skip


def _labels(board: Board) -> None:
    board.add(make_graph(
        "What share of requests gets a label?", "Labels of a version, of its requests.", "percentunit",
        Query(_gauge("label_coverage_ratio"), "{{version}}"),
    ), 8).add(make_graph(
        "Are there labels enough?", "Labels that a verdict can rest on so far, and how many it needs.", "none",
        Query(_gauge("labels"), "{{version}}"),
        Query(take_max("apprentice_labels_wanted", "task", TASK), "{{task}} needs"),
    ), 8).add(make_graph(
        "How many labels come in a day?", "At today's rate.", "none",
        Query(_gauge("labels_per_day"), "{{version}}"),
    ), 8).add(make_graph(
        "How soon would it be found if errors rose?",
        "At today's label rate, if errors rose by 5 or 10 points. No line: never, as there are no labels.", "s",
        Query(take_max("apprentice_time_to_detect_seconds", "version, points", VERSION) + " < +Inf",
              "{{version}}, {{points}} points"),
    ), 8).add(make_graph(
        "How long after a request does its label come?", "Median.", "s",
        Query(_gauge("feedback_delay_seconds"), "{{version}}"),
    ), 8).add(make_graph(
        "What becomes of feedback?",
        "Judgements a second: created, same (sent again), pending (its record is not there yet), joined, dropped.",
        "cps",
        Query(sum_rate("apprentice_feedback_total", "outcome"), "{{outcome}}"), stacked=True,
    ), 8)  # fmt: skip


def _shadows(board: Board) -> None:
    board.add(make_graph(
        "What share of requests do both arms answer?", "Probability of a shadow; the monitor raises it on suspicion.",
        "percentunit", Query(take_max("apprentice_shadow_share_ratio", "task", TASK), "{{task}}"), stepped=True,
    ), 8).add(make_graph(
        "What did the judge make of the pairs?",
        "Pairs a second: agreed, differed, failed, unjudged or passed over.", "cps",
        Query(sum_rate("apprentice_pairs_total", "outcome", VERSION), "{{outcome}}"), stacked=True,
    ), 8).add(make_graph(
        "Does the judge agree with people?", "How often, where both judged the same answer.", "percentunit",
        Query(take_max("apprentice_judge_agreement_ratio", "task", TASK), "{{task}}"), most=1,
    ), 8).add(make_graph(
        "Do shadows keep up?", "Share of a gateway's queue of shadows that is full; beyond it requests get none.",
        "percentunit",
        Query("max by (instance) (apprentice_shadow_queue_length / (apprentice_shadow_queue_max > 0))", "{{instance}}"),
        most=1, lines=((None, "transparent"), (0.9, "red")),
    ), 8).add(make_graph(
        "How many reviews wait for a person?", "Requests drawn for review that nobody has answered.", "none",
        Query(take_max("apprentice_reviews_waiting", "task", TASK), "{{task}}"),
    ), 8).add(make_graph(
        "What becomes of reviews?", "Within the interval: drawn, dropped, given to a reviewer, answered.", "none",
        Query(sum_increase("apprentice_reviews_total", "outcome"), "{{outcome}}"), bars=True,
    ), 8)  # fmt: skip


def _placements(board: Board) -> None:
    board.add(make_graph(
        "On how many replicas is each version?", "By the state that it is in there.", "none",
        Query(take_max("apprentice_adapter_placements", "version, state", 'version=~"$version"'),
              "{{version}} {{state}}"),
        stepped=True,
    ), 8).add(make_graph(
        "How full are engines of adapters?", "Versions that are to be on a replica, of the adapters that it can hold.",
        "percentunit", Query(take_max("apprentice_adapter_working_set_ratio", "pool, replica"), "{{pool}} {{replica}}"),
        lines=((None, "transparent"), (0.8, "red")),
    ), 8).add(make_graph(
        "How long does it take to load an adapter?", "95 of 100 loads within an hour are quicker.", "s",
        Query(estimate_quantile(0.95, "apprentice_adapter_load_seconds", "pool", match="", window="1h"), "{{pool}}"),
    ), 8)  # fmt: skip
