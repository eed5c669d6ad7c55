"""What the gateway counts for Prometheus: one table of metrics, and the meters made from it.

An update is a look-up by label values and an addition; a scrape joins lines begun with their series.
prometheus_client does the same in seven times the time, and a scrape stops every stream while it lasts
(docs/metrics.md has the figures): so here it only judges, in the tests, what we write. Nothing in this file
is thread-safe: updates and scrapes belong to the event loop.

The number of series has a bound whatever callers send: each metric has its share of one budget, and what goes
beyond it is counted under `other`.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

log = logging.getLogger(__name__)

OTHER = "other"
PREFIX = "apprentice_"
SERIES_MAX_DEFAULT = 24_000
SERIES_MAX_LEAST = 1_000

SECONDS_OF_A_REQUEST = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
SECONDS_OF_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
SECONDS_OF_OVERHEAD = (5e-05, 1e-04, 2e-04, 3e-04, 5e-04, 1e-03, 2e-03, 5e-03, 0.01, 0.02, 0.05, 0.1)
SECONDS_OF_A_LOAD = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SECONDS_OF_A_WRITE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS_OF_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

SCALE: Mapping[str, int] = {"T": 40, "V": 3, "P": 2, "R": 8, "M": 3}
"""The deployment that the default budget is made for: tasks, versions of each, pools, replicas in all, and
metrics that a task takes feedback on. A larger one raises the budget, and every share grows with it."""

CLOSED: Mapping[str, int] = {
    "reason": 18,
    "outcome": 14,
    "type": 3,
    "purpose": 6,
    "code": 56,
    "cause": 6,
    "priority": 3,
    "state": 11,
    "action": 4,
    "rung": 9,
    "mode": 3,
    "family": 64,
}
"""Labels whose values are a closed list in our own code, and how many values each may have, with `other`.
Every other label is open: its values come from configuration or from admins."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A metric as declared. `children` is a formula over SCALE for the most combinations of label values that
    it may have; `bounds` are a histogram's upper bounds in seconds, +Inf left out."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    children: str = "1"
    bounds: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Series to a combination of label values: 1, or a histogram's buckets with +Inf, sum and count."""
        return len(self.bounds) + 3 if self.kind == "histogram" else 1

    @property
    def series_max(self) -> int:
        """The most series this metric may have at SCALE."""
        return evaluate(self.children) * self.width

    @property
    def other_children(self) -> int:
        """Combinations kept free for `other`: one for each combination of this metric's closed labels."""
        return math.prod(CLOSED.get(label, 1) for label in self.labels)


def evaluate(formula: str, scale: Mapping[str, int] = SCALE) -> int:
    """The value of a formula like `(T+1)*V*5 + 8`: a sum of products; a factor may be a sum in brackets."""
    return sum(
        math.prod(
            sum(scale[term] if term in scale else int(term) for term in factor.strip("()").split("+"))
            for factor in product.split("*")
        )
        for product in formula.split(" + ")
    )


TASK_POOL = ("task", "pool")
BY_TASK_AND_POOL = "(T+1)*P + 1"

METRICS: tuple[Spec, ...] = (
    Spec(
        "apprentice_requests_total", "counter", "requests",
        "Finished requests by what answered, why it was chosen and how it ended.",
        ("task", "version", "pool", "reason", "outcome"), "(T+1)*(V+1)*40 + 252",
    ),
    Spec(
        "apprentice_request_duration_seconds", "histogram", "seconds",
        "Time from a request's first byte to the end of its answer or error, in seconds.",
        TASK_POOL, "(T+1)*(P+1) + 1", SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_to_first_token_seconds", "histogram", "seconds",
        "Time from a request's first byte to the first token of its answer, in seconds; streams only.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_per_output_token_seconds", "histogram", "seconds",
        "Mean time for each token of an answer, in seconds; in a stream, for each after the first.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_TOKEN,
    ),
    Spec(
        "apprentice_overhead_seconds", "histogram", "seconds",
        "Time from a request's first byte to commit that was not spent on waiting for an engine, in seconds.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_OVERHEAD,
    ),
    Spec(
        "apprentice_tokens_total", "counter", "tokens",
        "Tokens that engines read (prompt) and made (completion).",
        ("task", "version", "pool", "type"), "(T+1)*(V+1)*2 + 3",
    ),
    Spec(
        "apprentice_cost_usd_total", "counter", "US dollars",
        "Known cost in US dollars, by what it was spent on.",
        ("task", "version", "pool", "purpose"), "(T+1)*(V+1)*5 + 6",
    ),
    Spec(
        "apprentice_cost_unknown_total", "counter", "requests",
        "Requests whose cost is not known, and which are therefore missing in the cost.",
        ("pool",), "P + 1",
    ),
    Spec(
        "apprentice_saving_usd_total", "counter", "US dollars",
        "US dollars saved against the same tokens at the general price, over requests that were cheaper.",
        ("task",), "T + 2",
    ),
    Spec(
        "apprentice_overspend_usd_total", "counter", "US dollars",
        "US dollars spent above the same tokens at the general price, over requests that were dearer.",
        ("task",), "T + 2",
    ),
    Spec(
        "apprentice_fallbacks_total", "counter", "fallbacks",
        "Requests given to another choice before commit, as the first could not or may not answer.",
        ("task", "from", "to", "reason"), "T*P*12 + 18",
    ),
    Spec(
        "apprentice_rung_fired_total", "counter", "requests",
        "Requests for which a rung fired, by the version that they were led to; observed ones changed nothing.",
        ("task", "version", "rung", "mode"), "T*V*5 + 27",
    ),
    Spec(
        "apprentice_rung_unjudged_total", "counter", "requests",
        "Requests that an enforced rung let pass as it could not judge: no model, or one for another prefix.",
        ("task", "version", "rung"), "T*V*4 + 9",
    ),
    Spec(
        "apprentice_route_asked_total", "counter", "requests",
        "Requests for a decision alone (POST /v1/route), by the reason that it had; none where it was refused.",
        ("reason",), "18",
    ),
    Spec(
        "apprentice_refusals_total", "counter", "requests",
        "Errors sent to callers, by the error's code.",
        ("code",), "56",
    ),
    Spec(
        "apprentice_requests_shed_total", "counter", "requests",
        "Requests that got no place, by why.",
        ("cause",), "6",
    ),
    Spec(
        "apprentice_queue_length", "gauge", "requests",
        "Requests that wait for a place in this gateway or on a replica, by their class.",
        ("priority",), "3",
    ),
    Spec(
        "apprentice_queue_seconds", "histogram", "seconds",
        "How long a request that had to wait waited for a place, in seconds, whatever came of it.",
        ("priority",), "3", SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_configuration_reloads_total", "counter", "reloads",
        "Readings of the configuration while the gateway runs, by what came of them.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_configuration_loaded_at_seconds", "gauge", "Unix seconds",
        "When the configuration that this gateway goes by was read, in Unix seconds.",
    ),
    Spec(
        "apprentice_limits_unenforced_total", "counter", "requests",
        "Requests let through without holding a limit, since Redis did not answer.",
    ),
    Spec(
        "apprentice_exit_capped_total", "counter", "requests",
        "Requests that met a closed exit: their task had sent as much there as it may; by why they were to go there.",
        ("task", "reason"), "T + 18",
    ),
    Spec(
        "apprentice_attempts_total", "counter", "attempts",
        "Attempts at engines by how each ended; a request may take several.",
        ("pool", "outcome"), "P*13 + 14",
    ),
    Spec(
        "apprentice_feedback_total", "counter", "judgements",
        "Feedback by what became of it.",
        ("task", "version", "metric", "outcome"), "(T+1)*(V+1)*M*5 + 14",
    ),
    Spec(
        "apprentice_feedback_coverage_ratio", "gauge", "ratio, 0 to 1",
        "Share of the task's recent requests that have feedback, from 0 to 1.",
        ("task",), "T + 2",
    ),
    Spec(
        "apprentice_adapter_info", "gauge", "always 1",
        "1 for each version known, with the digest of its bytes and its state.",
        ("task", "version", "pool", "digest", "state"), "T*V*2 + 11",
    ),
    Spec(
        "apprentice_adapter_load_seconds", "histogram", "seconds",
        "Time an engine took to load an adapter, in seconds.",
        ("pool",), "P + 1", SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_adapter_placements", "gauge", "replicas",
        "Replicas on which a version is in a state.",
        ("version", "state"), "T*V*R + 11",
    ),
    Spec(
        "apprentice_adapter_loads_left", "gauge", "loads",
        "Adapters that a replica's engine takes before something must go.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_adapter_working_set_ratio", "gauge", "ratio",
        "Versions that are to be on a replica, as a share of the adapters that its engine can hold.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_shadow_requests_total", "counter", "requests",
        "Requests that a shadow was to answer too: agreed, differed, failed or dropped.",
        ("task", "version", "outcome"), "T*V*4 + 14",
    ),
    Spec(
        "apprentice_reported_records_total", "counter", "records",
        "Reports of what another gateway served: created, same, conflict or refused.",
        ("task", "version", "outcome"), "(T+1)*(V+1)*3 + 14",
    ),
    Spec(
        "apprentice_rollout_verdicts_total", "counter", "verdicts",
        "Canaries on which a verdict was carried out: promote, roll_back or hold.",
        ("task", "action"), "T*3 + 4",
    ),
    Spec(
        "apprentice_evaluation_rows_total", "counter", "rows",
        "Rows that an evaluation had an arm answer: right, wrong, empty, refused or failed.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_total", "counter", "fittings",
        "Fittings of models that came to an end: ready or failed.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_seconds", "histogram", "seconds",
        "Time to fit a model, from its process's start to the model in Redis, in seconds.",
        bounds=SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_fitted_unused_total", "counter", "faults",
        "Fitted models that could not be read (damaged), do not go with the selector or the coverage model that there "
        "is (unsuited), or could not be asked at a request (failed), which went on without.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_replica_cordoned", "gauge", "0 or 1",
        "1 where a replica gets no requests because an admin or a recycling has cordoned it, else 0.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_breaker_state", "gauge", "0, 1 or 2",
        "State of a replica's breakers, the worst of them: 0 closed, 1 half-open, 2 open.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_replica_up", "gauge", "0 or 1",
        "1 where the replica's last health check passed, else 0.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_in_flight", "gauge", "requests",
        "Requests that this gateway holds on a replica at this moment.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_tasks", "gauge", "tasks",
        "Tasks of the event loop: those of the duties, and at most three for each connection that is served.",
    ),
    Spec("apprentice_records_pending", "gauge", "records", "Records in memory and spool that are not stored yet."),
    Spec(
        "apprentice_records_dropped_total", "counter", "records",
        "Records lost because spool or buffer was full, or the disk damaged them.",
    ),
    Spec(
        "apprentice_records_flush_seconds", "histogram", "seconds",
        "Time to write one batch of records, in seconds.",
        bounds=SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_records_oldest_age_seconds", "gauge", "seconds",
        "Age of the oldest record that is not stored yet, in seconds; 0 with none pending.",
    ),
    Spec("apprentice_records_spool_bytes", "gauge", "bytes", "Size of this gateway's spool of records on disk."),
    Spec("apprentice_records_spool_bytes_max", "gauge", "bytes", "Size at which the spool drops its oldest records."),
    Spec(
        "apprentice_records_archived_total", "counter", "records",
        "Records that this gateway wrote to Parquet files.",
    ),
    Spec(
        "apprentice_records_unarchived_dropped_total", "counter", "records",
        "Records that the stream dropped before they were written to Parquet files.",
    ),
    Spec("apprentice_redis_up", "gauge", "0 or 1", "1 where Redis has answered lately, else 0."),
    Spec(
        "apprentice_state_durable", "gauge", "0 or 1",
        "1 where what is acknowledged is on the disk of Redis, 0 where Redis may forget it when it ends.",
    ),
    Spec(
        "apprentice_event_loop_lag_seconds", "histogram", "seconds",
        "How much later than due the event loop woke a timer, in seconds.",
        bounds=SECONDS_OF_LAG,
    ),
    Spec(
        "apprentice_snapshot_generation", "gauge", "generation",
        "Generation of the policy snapshot that this gateway decides by.",
    ),
    Spec(
        "apprentice_snapshot_age_seconds", "gauge", "seconds",
        "Time since this gateway last confirmed its policy snapshot in Redis, in seconds.",
    ),
    Spec(
        "apprentice_build_info", "gauge", "always 1",
        "1, with the version of the gateway's own package.",
        ("version",), "2",
    ),
    Spec(
        "apprentice_series_overflow_total", "counter", "updates",
        "Updates counted under other because their metric had used its share of the series budget.",
        ("family",), "64",
    ),
    Spec(
        "apprentice_measurements_lost_total", "counter", "updates",
        "Updates that were no finite number of at least 0, and gauges that could not be read: our fault.",
        ("family",), "64",
    ),
)  # fmt: skip


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
            for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                # Added, not set: of what overflows, `other` shows the sum.
                self.cell(*labels).value += value
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
        self.rung_fired = make(Counter, "rung_fired_total")
        self.rung_unjudged = make(Counter, "rung_unjudged_total")
        self.route_asked = make(Counter, "route_asked_total")
        self.refusals = make(Counter, "refusals_total")
        self.requests_shed = make(Counter, "requests_shed_total")
        self.queue_length = make(Gauge, "queue_length")
        self.queue_seconds = make(Histogram, "queue_seconds")
        self.configuration_reloads = make(Counter, "configuration_reloads_total")
        self.configuration_loaded_at_seconds = make(Gauge, "configuration_loaded_at_seconds")
        self.limits_unenforced = make(Counter, "limits_unenforced_total")
        self.exit_capped = make(Counter, "exit_capped_total")
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

    def expect_verdicts(self, tasks: Collection[str]) -> None:
        """Begin the verdicts of these tasks at 0, so that the first is seen as an increase; while there is room."""
        for task in tasks:
            for action in ("promote", "roll_back", "hold"):
                if self.rollout_verdicts.has_room:
                    self.rollout_verdicts.cell(task, action)

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
