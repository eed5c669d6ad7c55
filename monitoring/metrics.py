"""The meters of a gateway: one family of series for each metric of the table (metric_table.py).

Requests can't raise the number of series without bound: each metric has its share of one budget. Label values beyond it
are counted under `other`.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

from monitoring.metric_series import KINDS, Counter, Exemplars, FamilyFault, Gauge, Histogram, Numbers
from monitoring.metric_spec import evaluate
from monitoring.metric_table import METRICS, MetricFamilies

PREFIX = "apprentice_"
SERIES_MAX_DEFAULT = 32_000
SERIES_MAX_LEAST = 2_000
ACTIONS_EXPECTED = (
    *("verdict", "shadow", "reviews", "widen", "shift", "roll_back", "pause_canary", "retrain"),
    *("recover", "hold_and_alert"),
)
"""The monitor's own actions. Their series begin at 0, unlike those of admins' actions."""


class Measurements(msgspec.Struct, array_like=True):
    """The measurements of one process, by the names of the metrics."""

    numbers: dict[str, Numbers]
    exemplars: dict[str, Exemplars]


class Meters(MetricFamilies):
    """All metrics of one gateway process. Attributes have the metrics' names, without prefix and `_total`.

    `series_max` bounds the series of one scrape; each metric gets its share. Raises ValueError if it is below
    SERIES_MAX_LEAST.
    """

    def __init__(self, series_max: int = SERIES_MAX_DEFAULT) -> None:
        if series_max < SERIES_MAX_LEAST:
            raise ValueError(f"{series_max} series are too few: give at least {SERIES_MAX_LEAST}.")
        always = sum(spec.other_children * spec.width for spec in METRICS)
        share = (series_max - always) / (SERIES_MAX_DEFAULT - always)
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        for spec in METRICS:
            kept_free = spec.other_children
            children_max = kept_free + int((evaluate(spec.children) - kept_free) * share)
            family = self._families[spec.name] = KINDS[spec.kind](spec, children_max, self._count_fault)
            setattr(self, spec.name.removeprefix(PREFIX).removesuffix("_total"), family)

    def expect(self, tasks: Collection[str]) -> None:
        """Begin the series of rare events of these tasks at 0 while there is room, so the first event is an increase.

        These are verdicts on canaries, the monitor's actions, outcomes of reviews, and messages to the webhook.
        """
        for outcome in ("sent", "retried", "dropped"):
            self.webhooks.cell(outcome)
        self.canary_verdicts.begin(tasks, ("promote", "roll_back", "hold"))
        self.monitor_actions.begin(tasks, ACTIONS_EXPECTED)
        self.reviews.begin(tasks, ("drawn", "dropped", "given", "skipped", "answered", "expired"))

    def saved(self, task: str, usd: float) -> None:
        """Count a saving in US dollars. A negative one is added to overspend, since a counter can't decrease."""
        if usd < 0:
            self.overspend_usd.add(-usd, task)
        else:
            self.saving_usd.add(usd, task)

    def note_adapter_load(self, pool: str, seconds: float) -> None:
        """Count the time that an engine of a pool took to load an adapter."""
        self.adapter_load_seconds.observe(seconds, pool)

    def forget(self, *versions: str) -> None:
        """Drop the series of retired versions, which frees their room. Kept series objects of them no longer count."""
        gone = frozenset(versions)
        for family in self._families.values() if gone else ():
            if "version" in family.spec.labels:
                family.remove("version", gone)

    def keep_callers(self, callers: Container[str]) -> None:
        """Drop the series of all other keys, which were revoked. This frees their room."""
        self.caller_cost_usd.keep("caller", callers)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series, and their content type: OpenMetrics if `accept` names it, else text 0.0.4."""
        openmetrics = "application/openmetrics-text" in accept
        self._refresh()
        parts: list[str] = []
        for spec in METRICS:
            name = spec.name.removesuffix("_total") if openmetrics else spec.name
            parts.append(f"# HELP {name} {spec.help}\n# TYPE {name} {spec.kind}\n")
            parts.extend(self._families[spec.name].lines(openmetrics))
        if openmetrics:
            parts.append("# EOF\n")
        content_type = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4
        return "".join(parts).encode(errors="replace"), content_type

    def measured(self) -> bytes:
        """All numbers, for `add` of another process's meters."""
        self._refresh()
        exemplars = {
            name: family.exemplars() for name, family in self._families.items() if isinstance(family, Histogram)
        }
        return msgspec.msgpack.encode(
            Measurements({name: family.numbers() for name, family in self._families.items()}, exemplars)
        )

    def add(self, measured: bytes, with_gauges: bool = True) -> None:
        """Add the `measured` of another process: counters and histograms as a sum, gauges by their `spec.merged`."""
        other = msgspec.msgpack.decode(measured, type=Measurements)
        for name, numbers in other.numbers.items():
            family = self._families[name]
            if with_gauges or not isinstance(family, Gauge):
                family.add_numbers(numbers)
            if isinstance(family, Histogram):
                family.add_exemplars(other.exemplars[name])

    def totals(self) -> dict[str, dict[str, float]]:
        """Requests, cost and saving (US dollars) by task, "" if there is none; and cost by key, named `@` and the key's
        public part."""
        totals: dict[str, dict[str, float]] = {}
        for family in (self.requests, self.cost_usd, self.saving_usd, self.caller_cost_usd):
            label, sign = ("caller", "@") if family is self.caller_cost_usd else ("task", "")
            place = family.spec.labels.index(label)
            for labels, (value,) in family.numbers():
                row = totals.setdefault(sign + labels[place], {})
                row[family.spec.name] = row.get(family.spec.name, 0.0) + value
        return totals

    def versions(self) -> frozenset[str]:
        """The known versions that are not retired."""
        place = self.adapter_info.spec.labels.index("version")
        return frozenset(labels[place] for labels, _ in self.adapter_info.numbers())

    def forget_all_but(self, versions: Collection[str]) -> None:
        """Drop the series of versions other than these."""
        for family in self._families.values():
            if "version" in family.spec.labels:
                place = family.spec.labels.index("version")
                named = {labels[place] for labels, _ in family.numbers() if "@" in labels[place]}
                family.remove("version", named.difference(versions))

    def _refresh(self) -> None:
        for family in self._families.values():
            if isinstance(family, Gauge):
                family.refresh()

    def _count_fault(self, fault: FamilyFault, family: str) -> None:
        counter = self.series_overflow if fault == "overflow" else self.measurements_lost
        counter.add(1, family)


def merge_processes(measured: Iterable[bytes], ended: Meters, series_max: int) -> Meters:
    """Merge the meters of a gateway's processes. `ended` are those of ended processes; its old versions are dropped."""
    merged = Meters(series_max)
    for each in measured:
        merged.add(each)
    ended.forget_all_but(merged.versions())
    merged.add(ended.measured(), with_gauges=False)
    return merged
