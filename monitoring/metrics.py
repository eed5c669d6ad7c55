"""What the gateway counts for Prometheus: the meters made from the table of metrics (metric_table.py).

An update is a look-up by label values and an addition; a scrape joins lines begun with their series.
prometheus_client does the same in seven times the time, and a scrape stops every stream while it lasts
(docs/reference/metrics.md has the figures): so here it only judges, in the tests, what we write. Nothing in this file
is thread-safe: updates and scrapes belong to the event loop.

The number of series has a bound whatever callers send: each metric has its share of one budget, and what goes
beyond it is counted under `other`.
"""

from __future__ import annotations

import itertools
import logging
import math
import operator
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

from monitoring.metric_spec import CLOSED, Joined, Spec, evaluate
from monitoring.metric_table import METRICS

log = logging.getLogger(__name__)

OTHER = "other"
PREFIX = "apprentice_"
SERIES_MAX_DEFAULT = 32_000
SERIES_MAX_LEAST = 2_000
ACTIONS_EXPECTED = (
    *("verdict", "shadow", "reviews", "widen", "shift", "roll_back", "pause_canary", "retrain"),
    *("recover", "hold_and_alert"),
)
"""What the monitor does by itself; what admins do is not waited for."""
JOINING: Mapping[Joined, Callable[[float, float], float]] = MappingProxyType(
    {"sum": operator.add, "greatest": max, "least": min}
)


class Count:
    """One counter series. Keep it where the labels do not change: its `add` needs no look-up."""

    __slots__ = ("_lost", "sample", "value")

    def __init__(self, spec: Spec, labels: str, lost: Callable[[], None]) -> None:
        self.value: float = 0
        self.sample = f"{spec.name}{{{labels}}} " if labels else f"{spec.name} "
        self._lost = lost

    def add(self, amount: float) -> None:
        """Add an amount of at least 0, in the metric's unit; anything else is counted as lost instead."""
        if 0 <= amount < math.inf:
            self.value += amount
        else:
            self._lost()

    def lines(self) -> Iterator[str]:
        """The series as Prometheus reads it."""
        yield f"{self.sample}{self.value!r}\n"


class Level:
    """One gauge series."""

    __slots__ = ("sample", "value")

    def __init__(self, spec: Spec, labels: str) -> None:
        self.value: float = 0
        self.sample = f"{spec.name}{{{labels}}} " if labels else f"{spec.name} "

    def set(self, value: float) -> None:
        """Say what it is now, in the metric's unit."""
        self.value = value

    def lines(self) -> Iterator[str]:
        """The series as Prometheus reads it."""
        yield f"{self.sample}{self.value!r}\n"


class Distribution:
    """One histogram: a count for each bucket, and the sum."""

    __slots__ = ("_lost", "bounds", "counts", "samples", "sum")

    def __init__(self, spec: Spec, labels: str, lost: Callable[[], None]) -> None:
        self.bounds = spec.bounds
        self.counts = [0] * (len(spec.bounds) + 1)
        self.sum = 0.0
        self._lost = lost
        comma, braced = ("," if labels else ""), (f"{{{labels}}}" if labels else "")
        bounds = (*map(repr, spec.bounds), "+Inf")
        buckets = [f'{spec.name}_bucket{{{labels}{comma}le="{bound}"}} ' for bound in bounds]
        self.samples = (*buckets, f"{spec.name}_count{braced} ", f"{spec.name}_sum{braced} ")

    def observe(self, value: float) -> None:
        """Count one measurement of at least 0, in seconds; anything else is counted as lost instead."""
        if 0 <= value < math.inf:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value
        else:
            self._lost()

    def lines(self) -> Iterator[str]:
        """The series as Prometheus reads them: buckets that add up, count and sum."""
        total = 0
        for sample, count in zip(self.samples, self.counts, strict=False):
            total += count
            yield f"{sample}{total}\n"
        yield f"{self.samples[-2]}{total}\n"
        yield f"{self.samples[-1]}{self.sum!r}\n"


Cell = TypeVar("Cell", Count, Level, Distribution)


class Family(ABC, Generic[Cell]):
    """All series of one metric, by their label values in the order of `spec.labels`."""

    def __init__(self, spec: Spec, children_max: int, meters: Meters) -> None:
        self.spec = spec
        self._meters = meters
        self._own_max = children_max - spec.other_children
        self._cells: dict[tuple[str, ...], Cell] = {}
        self._others: set[tuple[str, ...]] = set()
        self._closed_seen: dict[str, set[str]] = {label: {OTHER} for label in spec.labels if label in CLOSED}
        if not spec.labels and spec.kind != "gauge":
            self.cell()

    def cell(self, *labels: str) -> Cell:
        """The series of these label values, begun if new; `other` once the metric's share is used up."""
        return self._cells.get(labels) or self._begin(labels)

    @property
    def has_room(self) -> bool:
        """Whether new label values still get a series of their own."""
        return len(self._cells) - len(self._others) < self._own_max

    def remove(self, label: str, values: Collection[str]) -> None:
        """Drop every series whose label has one of these values, and so give back its room."""
        place = self.spec.labels.index(label)
        for labels in [labels for labels in self._cells if labels[place] in values]:
            del self._cells[labels]
            self._others.discard(labels)

    def clear(self) -> None:
        """Drop every series."""
        self._cells.clear()
        self._others.clear()

    def lines(self) -> Iterator[str]:
        """All series as Prometheus reads them."""
        for cell in self._cells.values():
            yield from cell.lines()

    def lost(self) -> None:
        """Report an update that could not be counted."""
        self._meters.measurements_lost.add(1, self.spec.name)

    @abstractmethod
    def _new(self, labels: str) -> Cell: ...

    def _begin(self, labels: tuple[str, ...]) -> Cell:
        names = self.spec.labels
        if len(labels) != len(names):
            raise TypeError(f"{self.spec.name} has the labels {names}: give one value for each.")
        kept = tuple(map(self._within_closed, names, labels))
        if kept not in self._cells and not self.has_room:
            kept = tuple(value if name in CLOSED else OTHER for name, value in zip(names, kept, strict=True))
            self._others.add(kept)
        if kept != labels:
            self._meters.series_overflow.add(1, self.spec.name)
        if kept not in self._cells:
            pairs = zip(names, kept, strict=True)
            self._cells[kept] = self._new(",".join(f'{name}="{_escaped(value)}"' for name, value in pairs))
        return self._cells[kept]

    def _within_closed(self, label: str, value: str) -> str:
        seen = self._closed_seen.get(label)
        if seen is None or value in seen:
            return value
        if len(seen) >= CLOSED[label]:
            return OTHER
        seen.add(value)
        return value


class Counter(Family[Count]):
    """A number that only grows."""

    def begin(self, first: Collection[str], second: Collection[str]) -> None:
        """Begin the series of each pair of label values at 0, while there is room."""
        for labels in itertools.product(first, second):
            if not self.has_room:
                return
            self.cell(*labels)

    def add(self, amount: float, *labels: str) -> None:
        """Add an amount of at least 0 to the series of these label values."""
        (self._cells.get(labels) or self._begin(labels)).add(amount)

    def _new(self, labels: str) -> Count:
        return Count(self.spec, labels, self.lost)


class Histogram(Family[Distribution]):
    """How measurements in seconds are distributed."""

    def observe(self, value: float, *labels: str) -> None:
        """Count one measurement of at least 0 seconds in the series of these label values."""
        (self._cells.get(labels) or self._begin(labels)).observe(value)

    def _new(self, labels: str) -> Distribution:
        return Distribution(self.spec, labels, self.lost)


Reading = float | Mapping[tuple[str, ...], float]


class Gauge(Family[Level]):
    """A number that is what it is now: set when it changes, or read when Prometheus asks."""

    def __init__(self, spec: Spec, children_max: int, meters: Meters) -> None:
        super().__init__(spec, children_max, meters)
        self._read: Callable[[], Reading] | None = None

    def set(self, value: float, *labels: str) -> None:
        """Say what the series of these label values is now."""
        self.cell(*labels).value = value

    def read_from(self, read: Callable[[], Reading]) -> None:
        """Take all series from `read` at each scrape: a number, or numbers by label values. No I/O in it."""
        self._read = read

    def refresh(self) -> None:
        """Read anew, where there is something to read from. A reading that fails leaves no series."""
        if self._read is None:
            return
        self.clear()
        try:
            reading = self._read()
            told: set[Level] = set()
            for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                cell = self.cell(*labels)
                # Of what overflows, `other` shows all that fell to it, as the metric has it joined.
                cell.value = JOINING[self.spec.joined](cell.value, value) if cell in told else value
                told.add(cell)
        except Exception:
            log.exception("%s could not be read", self.spec.name)
            self.clear()
            self.lost()

    def _new(self, labels: str) -> Level:
        return Level(self.spec, labels)


Kind = TypeVar("Kind", Counter, Gauge, Histogram)


class Meters:
    """All that one gateway process measures. Attributes have the metrics' names, without prefix and `_total`.

    `series_max` bounds the series of one scrape; each metric gets its share. Raises ValueError where it is
    below SERIES_MAX_LEAST.
    """

    def __init__(self, series_max: int = SERIES_MAX_DEFAULT) -> None:  # noqa: PLR0915 - one line a metric
        if series_max < SERIES_MAX_LEAST:
            raise ValueError(f"{series_max} series are too few: give at least {SERIES_MAX_LEAST}.")
        always = sum(spec.other_children * spec.width for spec in METRICS)
        self._share = (series_max - always) / (SERIES_MAX_DEFAULT - always)
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        make = self._make
        self.series_overflow = make(Counter, "series_overflow_total")
        self.measurements_lost = make(Counter, "measurements_lost_total")
        self.requests = make(Counter, "requests_total")
        self.request_duration_seconds = make(Histogram, "request_duration_seconds")
        self.time_to_first_token_seconds = make(Histogram, "time_to_first_token_seconds")
        self.time_per_output_token_seconds = make(Histogram, "time_per_output_token_seconds")
        self.overhead_seconds = make(Histogram, "overhead_seconds")
        self.tokens = make(Counter, "tokens_total")
        self.cost_usd = make(Counter, "cost_usd_total")
        self.cost_unknown = make(Counter, "cost_unknown_total")
        self.saving_usd = make(Counter, "saving_usd_total")
        self.overspend_usd = make(Counter, "overspend_usd_total")
        self.fallbacks = make(Counter, "fallbacks_total")
        self.check_fired = make(Counter, "check_fired_total")
        self.check_unjudged = make(Counter, "check_unjudged_total")
        self.route_asked = make(Counter, "route_asked_total")
        self.refusals = make(Counter, "refusals_total")
        self.requests_shed = make(Counter, "requests_shed_total")
        self.queue_length = make(Gauge, "queue_length")
        self.queue_seconds = make(Histogram, "queue_seconds")
        self.configuration_reloads = make(Counter, "configuration_reloads_total")
        self.configuration_loaded_at_seconds = make(Gauge, "configuration_loaded_at_seconds")
        self.limits_unenforced = make(Counter, "limits_unenforced_total")
        self.fallback_capped = make(Counter, "fallback_capped_total")
        self.attempts = make(Counter, "attempts_total")
        self.feedback = make(Counter, "feedback_total")
        self.feedback_coverage_ratio = make(Gauge, "feedback_coverage_ratio")
        self.adapter_info = make(Gauge, "adapter_info")
        self.adapter_load_seconds = make(Histogram, "adapter_load_seconds")
        self.adapter_placements = make(Gauge, "adapter_placements")
        self.adapter_loads_left = make(Gauge, "adapter_loads_left")
        self.adapter_working_set_ratio = make(Gauge, "adapter_working_set_ratio")
        self.shadow_requests = make(Counter, "shadow_requests_total")
        self.reported_records = make(Counter, "reported_records_total")
        self.rollout_verdicts = make(Counter, "rollout_verdicts_total")
        self._make_of_monitor()
        self.evaluation_rows = make(Counter, "evaluation_rows_total")
        self.fitting = make(Counter, "fitting_total")
        self.fitting_seconds = make(Histogram, "fitting_seconds")
        self.fitted_unused = make(Counter, "fitted_unused_total")
        self.replica_cordoned = make(Gauge, "replica_cordoned")
        self.breaker_state = make(Gauge, "breaker_state")
        self.replica_up = make(Gauge, "replica_up")
        self.in_flight = make(Gauge, "in_flight")
        self.tasks = make(Gauge, "tasks")
        self.records_pending = make(Gauge, "records_pending")
        self.records_dropped = make(Counter, "records_dropped_total")
        self.records_flush_seconds = make(Histogram, "records_flush_seconds")
        self.records_oldest_age_seconds = make(Gauge, "records_oldest_age_seconds")
        self.records_spool_bytes = make(Gauge, "records_spool_bytes")
        self.records_spool_bytes_max = make(Gauge, "records_spool_bytes_max")
        self.records_archived = make(Counter, "records_archived_total")
        self.records_unarchived_dropped = make(Counter, "records_unarchived_dropped_total")
        self.redis_up = make(Gauge, "redis_up")
        self.state_durable = make(Gauge, "state_durable")
        self.event_loop_lag_seconds = make(Histogram, "event_loop_lag_seconds")
        self.snapshot_generation = make(Gauge, "snapshot_generation")
        self.snapshot_age_seconds = make(Gauge, "snapshot_age_seconds")
        self.build_info = make(Gauge, "build_info")

    def _make_of_monitor(self) -> None:
        make = self._make
        self.verdict = make(Gauge, "verdict")
        self.verdict_since_seconds = make(Gauge, "verdict_since_seconds")
        self.evidence_rests_on_one = make(Gauge, "evidence_rests_on_one")
        self.kept_ratio = make(Gauge, "kept_ratio")
        self.e_value = make(Gauge, "e_value")
        self.e_value_threshold = make(Gauge, "e_value_threshold")
        self.quality_ratio = make(Gauge, "quality_ratio")
        self.label_coverage_ratio = make(Gauge, "label_coverage_ratio")
        self.labels_per_day = make(Gauge, "labels_per_day")
        self.labels = make(Gauge, "labels")
        self.labels_wanted = make(Gauge, "labels_wanted")
        self.time_to_detect_seconds = make(Gauge, "time_to_detect_seconds")
        self.feedback_delay_seconds = make(Gauge, "feedback_delay_seconds")
        self.complaints_expected = make(Gauge, "complaints_expected")
        self.complaints_seen = make(Gauge, "complaints_seen")
        self.monitor_actions = make(Counter, "monitor_actions_total")
        self.monitor_unmatched = make(Counter, "monitor_unmatched_total")
        self.monitor_judged_at_seconds = make(Gauge, "monitor_judged_at_seconds")
        self.monitor_behind_seconds = make(Gauge, "monitor_behind_seconds")
        self.shadow_queue_length = make(Gauge, "shadow_queue_length")
        self.shadow_queue_max = make(Gauge, "shadow_queue_max")
        self.shadow_share_ratio = make(Gauge, "shadow_share_ratio")
        self.judge_agreement_ratio = make(Gauge, "judge_agreement_ratio")
        self.pairs = make(Counter, "pairs_total")
        self.reviews = make(Counter, "reviews_total")
        self.reviews_waiting = make(Gauge, "reviews_waiting")
        self.review_cost_usd = make(Counter, "review_cost_usd_total")
        self.tuning_cost_usd = make(Gauge, "tuning_cost_usd")
        self.version_stale = make(Gauge, "version_stale")
        self.version_review_by_seconds = make(Gauge, "version_review_by_seconds")
        self.retraining_open = make(Gauge, "retraining_open")
        self.webhooks = make(Counter, "webhooks_total")

    def expect(self, tasks: Collection[str]) -> None:
        """Begin rare events of these tasks at 0, so that the first is seen as an increase; while there is room.

        Those are canaries' verdicts, what the monitor does, what becomes of reviews, and messages to the webhook.
        """
        for outcome in ("sent", "retried", "dropped"):
            self.webhooks.cell(outcome)
        self.rollout_verdicts.begin(tasks, ("promote", "roll_back", "hold"))
        self.monitor_actions.begin(tasks, ACTIONS_EXPECTED)
        self.reviews.begin(tasks, ("drawn", "dropped", "given", "skipped", "answered", "expired"))

    def saved(self, task: str, usd: float) -> None:
        """Count a saving in US dollars; one below 0 goes to overspend, since a counter never goes down."""
        if usd < 0:
            self.overspend_usd.add(-usd, task)
        else:
            self.saving_usd.add(usd, task)

    def forget(self, *versions: str) -> None:
        """Drop the series of retired versions and give their room back. Cells kept of them count no more."""
        gone = frozenset(versions)
        for family in self._families.values():
            if "version" in family.spec.labels:
                family.remove("version", gone)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series, and their content type: OpenMetrics where `accept` names it, else text 0.0.4."""
        openmetrics = "application/openmetrics-text" in accept
        for family in self._families.values():
            if isinstance(family, Gauge):
                family.refresh()
        parts: list[str] = []
        for spec in METRICS:
            name = spec.name.removesuffix("_total") if openmetrics else spec.name
            parts.append(f"# HELP {name} {spec.help}\n# TYPE {name} {spec.kind}\n")
            parts.extend(self._families[spec.name].lines())
        if openmetrics:
            parts.append("# EOF\n")
        content_type = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4
        return "".join(parts).encode(errors="replace"), content_type

    def _make(self, kind: type[Kind], name: str) -> Kind:
        spec = next(spec for spec in METRICS if spec.name == PREFIX + name)
        family = kind(spec, self._children_max(spec), self)
        self._families[spec.name] = family
        return family

    def _children_max(self, spec: Spec) -> int:
        kept_free = spec.other_children
        return kept_free + int((evaluate(spec.children) - kept_free) * self._share)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
