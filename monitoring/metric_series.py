"""Series of metrics by their label values, and the families that hold them: counters, gauges, histograms.

An update is a look-up by label values and an addition; a scrape joins lines whose beginnings are kept.
prometheus_client takes seven times as long, and a scrape stops every stream meanwhile (figures:
docs/reference/metrics.md). So only the tests use it, to check the output. Nothing in this file is thread-safe: updates
and scrapes belong to the event loop.
"""

from __future__ import annotations

import itertools
import logging
import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, TypeVar

from monitoring.metric_spec import CLOSED, Joined, Spec

log = logging.getLogger(__name__)
OTHER = "other"
JOINING: Mapping[Joined, Callable[[float, float], float]] = MappingProxyType(
    {"sum": operator.add, "greatest": max, "least": min}
)
FamilyFault = Literal["overflow", "lost"]
"""Faults of an update: no room for another series, or a number that can't be counted."""
Numbers = list[tuple[tuple[str, ...], list[float]]]
"""The content of a family's series by label values: one number, or a histogram's counts followed by its sum."""
Report = Callable[[FamilyFault, str], None]
"""Called with a fault and the name of its family."""


class Exemplar(NamedTuple):
    """The trace of a request that a bucket counted, with its measurement and time (Unix seconds)."""

    value: float
    trace_id: str
    at: float

    def __str__(self) -> str:
        return f' # {{trace_id="{self.trace_id}"}} {self.value!r} {self.at:.3f}'


Exemplars = list[tuple[tuple[str, ...], int, Exemplar]]
"""Exemplars of a histogram, each by its label values and the number of its bucket."""


class Level:
    """A series of one number, of a gauge or a counter."""

    __slots__ = ("_lost", "sample", "value")

    def __init__(self, spec: Spec, labels: str, lost: Callable[[], None]) -> None:
        self.value: float = 0
        self.sample = f"{spec.name}{{{labels}}} " if labels else f"{spec.name} "
        self._lost = lost

    def lines(self, exemplars: bool = False) -> Iterator[str]:
        """The series in Prometheus' text format. It has no exemplars."""
        yield f"{self.sample}{self.value!r}\n"

    def numbers(self) -> list[float]:
        """The number that it holds."""
        return [self.value]

    def add_numbers(self, numbers: list[float]) -> None:
        """Add those of the same series in another process."""
        self.value += numbers[0]


class Count(Level):
    """A counter's series. If labels do not change, keep this object: its `add` needs no look-up."""

    __slots__ = ()

    def add(self, amount: float) -> None:
        """Add an amount of at least 0, in the metric's unit; anything else is counted as lost instead."""
        if 0 <= amount < math.inf:
            self.value += amount
        else:
            self._lost()


class Distribution:
    """A histogram's series: a count for each bucket, and the sum."""

    __slots__ = ("_lost", "bounds", "counts", "exemplars", "samples", "sum")

    def __init__(self, spec: Spec, labels: str, lost: Callable[[], None]) -> None:
        self.bounds = spec.bounds
        self.counts = [0] * (len(spec.bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """The newest exemplar of each bucket, if requests are traced."""
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

    def exemplify(self, value: float, trace_id: str, at: float) -> None:
        """Keep the trace of an observed measurement as its bucket's newest exemplar."""
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(value, trace_id, at)

    def lines(self, exemplars: bool = False) -> Iterator[str]:
        """The series in Prometheus' text format: cumulative buckets, count and sum. `exemplars` is for OpenMetrics."""
        total = 0
        by_place = self.exemplars if exemplars else {}
        for place, (sample, count) in enumerate(zip(self.samples, self.counts, strict=False)):
            total += count
            yield f"{sample}{total}{by_place.get(place, '')}\n"
        yield f"{self.samples[-2]}{total}\n"
        yield f"{self.samples[-1]}{self.sum!r}\n"

    def numbers(self) -> list[float]:
        """Its counts, and then its sum."""
        return [*self.counts, self.sum]

    def add_numbers(self, numbers: list[float]) -> None:
        """Add those of the same series in another process."""
        self.counts = [count + int(more) for count, more in zip(self.counts, numbers, strict=False)]
        self.sum += numbers[-1]


Cell = TypeVar("Cell", Count, Level, Distribution)


class Family(Generic[Cell]):
    """All series of one metric, by their label values in the order of `spec.labels`."""

    _series: type[Cell]

    def __init__(self, spec: Spec, children_max: int, report: Report) -> None:
        self.spec = spec
        self._report = report
        self._own_max = children_max - spec.other_children
        self._cells: dict[tuple[str, ...], Cell] = {}
        self._others: set[tuple[str, ...]] = set()
        self._closed_values: dict[str, set[str]] = {label: {OTHER} for label in spec.labels if label in CLOSED}
        if not spec.labels and spec.kind != "gauge":
            self.cell()

    def cell(self, *labels: str) -> Cell:
        """The series of these label values, created if new; the series `other` if the metric's share is used up."""
        return self._cells.get(labels) or self._begin(labels)

    @property
    def has_room(self) -> bool:
        """True if new label values still get a series of their own."""
        return len(self._cells) - len(self._others) < self._own_max

    def remove(self, label: str, values: Collection[str]) -> None:
        """Drop every series whose label has one of these values, which frees its room."""
        place = self.spec.labels.index(label)
        for labels in [labels for labels in self._cells if labels[place] in values]:
            del self._cells[labels]
            self._others.discard(labels)

    def keep(self, label: str, values: Container[str]) -> None:
        """Drop every series whose label has another value than these or `other`."""
        place = self.spec.labels.index(label)
        self.remove(label, {labels[place] for labels in self._cells if labels[place] not in values} - {OTHER})

    def clear(self) -> None:
        """Drop every series."""
        self._cells.clear()
        self._others.clear()

    def lines(self, exemplars: bool = False) -> Iterator[str]:
        """All series in Prometheus' text format."""
        for cell in self._cells.values():
            yield from cell.lines(exemplars)

    def numbers(self) -> Numbers:
        """The content of all series."""
        return [(labels, cell.numbers()) for labels, cell in self._cells.items()]

    def add_numbers(self, numbers: Numbers) -> None:
        """Add the numbers of the same metric in another process."""
        for labels, more in numbers:
            self.cell(*labels).add_numbers(more)

    def lost(self) -> None:
        """Report an update that could not be counted."""
        self._report("lost", self.spec.name)

    def _begin(self, labels: tuple[str, ...]) -> Cell:
        names = self.spec.labels
        if len(labels) != len(names):
            raise TypeError(f"{self.spec.name} has the labels {names}: give one value for each.")
        values = tuple(map(self._within_closed, names, labels))
        if values not in self._cells and not self.has_room:
            values = tuple(value if name in CLOSED else OTHER for name, value in zip(names, values, strict=True))
            self._others.add(values)
        if values != labels:
            self._report("overflow", self.spec.name)
        if values not in self._cells:
            pairs = zip(names, values, strict=True)
            label_text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
            self._cells[values] = self._series(self.spec, label_text, self.lost)
        return self._cells[values]

    def _within_closed(self, label: str, value: str) -> str:
        values = self._closed_values.get(label)
        if values is None or value in values:
            return value
        if len(values) >= CLOSED[label]:
            return OTHER
        values.add(value)
        return value


class Counter(Family[Count]):
    """A number that only grows."""

    _series = Count

    def begin(self, first: Collection[str], second: Collection[str]) -> None:
        """Begin the series of each pair of label values at 0, while there is room."""
        for labels in itertools.product(first, second):
            if not self.has_room:
                return
            self.cell(*labels)

    def add(self, amount: float, *labels: str) -> None:
        """Add an amount of at least 0 to the series of these label values."""
        cell = self._cells.get(labels) or self._begin(labels)
        if 0 <= amount < math.inf:  # as Count.add, without its call
            cell.value += amount
        else:
            self.lost()


class Histogram(Family[Distribution]):
    """The distribution of measurements in seconds."""

    _series = Distribution

    def observe(self, value: float, *labels: str) -> None:
        """Count one measurement of at least 0 seconds in the series of these label values."""
        cell = self._cells.get(labels) or self._begin(labels)
        if 0 <= value < math.inf:  # as Distribution.observe, without its call
            cell.counts[bisect_left(cell.bounds, value)] += 1
            cell.sum += value
        else:
            self.lost()

    def exemplars(self) -> Exemplars:
        """The exemplars of all series."""
        return [(labels, place, each) for labels, cell in self._cells.items() for place, each in cell.exemplars.items()]

    def add_exemplars(self, exemplars: Exemplars) -> None:
        """Take over newer exemplars of another process."""
        for labels, place, other in exemplars:
            own = self.cell(*labels).exemplars
            own[place] = max(own.get(place, other), other, key=lambda exemplar: exemplar.at)


Reading = float | Mapping[tuple[str, ...], float]


class Gauge(Family[Level]):
    """A current value: set when it changes, or read at a scrape."""

    _series = Level

    def __init__(self, spec: Spec, children_max: int, report: Report) -> None:
        super().__init__(spec, children_max, report)
        self._read: Callable[[], Reading] | None = None

    def set(self, value: float, *labels: str) -> None:
        """Set the current value of the series of these label values."""
        self.cell(*labels).value = value

    def read_from(self, read: Callable[[], Reading]) -> None:
        """Take all series from `read` at each scrape: a number, or numbers by label values. `read` must do no I/O."""
        self._read = read

    def add_numbers(self, numbers: Numbers) -> None:
        """Merge the values of another process by `spec.merged`."""
        merge = JOINING[self.spec.merged]
        for labels, (value,) in numbers:
            is_new = labels not in self._cells
            cell = self.cell(*labels)
            cell.value = value if is_new else merge(cell.value, value)

    def refresh(self) -> None:
        """Read the series again if there is a `read` function. If it fails, no series is left."""
        if self._read is None:
            return
        self.clear()
        try:
            reading = self._read()
            written: set[Level] = set()
            for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                cell = self.cell(*labels)
                # The series `other` joins all values that overflow, by `spec.joined`.
                cell.value = JOINING[self.spec.joined](cell.value, value) if cell in written else value
                written.add(cell)
        except Exception:
            log.exception("%s could not be read", self.spec.name)
            self.clear()
            self.lost()


KINDS: Mapping[str, type[Counter] | type[Gauge] | type[Histogram]] = MappingProxyType(
    {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
