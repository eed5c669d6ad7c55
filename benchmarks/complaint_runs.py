"""Many simulated versions at once through the complaints detector, and labels in the order in which they come.

`Many` does what `monitoring/quality/detectors/complaints.py` does, for a version a column: a test compares them.
Requests are answered, and complaints come, at the beginning of a tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from monitoring.intervals import Z_95
from monitoring.quality.detectors import complaint_delays, complaints, rising_errors
from monitoring.quality.detectors.complaint_delays import (
    AGES,
    HORIZON_TICKS,
    HOUR_TICKS,
    TICK_SECONDS,
    WEEK_HOURS,
    Delays,
    Reference,
)
from monitoring.quality.detectors.complaint_learning import learn
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.time_units import DAY_SECONDS

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
MASS_MAX = 1e200


@dataclass(frozen=True, slots=True)
class Events:
    """Of many versions: requests by tick and version, and complaints by the tick at which they come, in order.

    Complaints of a tick stand in rounds: in each of these a version has at most one. `rounds[tick]` holds for each
    round the versions, and the ticks of the requests that they complain about.
    """

    first_tick: int
    requests: npt.NDArray[np.int64]
    rounds: dict[int, list[tuple[Places, Places]]]

    @classmethod
    def of(
        cls, first_tick: int, requests: npt.NDArray[np.int64], version: Places, request: Places, comes: Places
    ) -> Events:
        """From complaints in any order: their version, the ticks of the request and of the complaint, from 0 on."""
        inside = comes < len(requests)
        version, request, comes = version[inside], request[inside], comes[inside]
        order = np.lexsort((request, version, comes))
        version, request, comes = version[order], request[order], comes[order]
        key = comes * (int(version.max(initial=0)) + 1) + version
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, np.intp)
        rank = np.arange(len(key)) - np.repeat(starts, np.diff(np.r_[starts, len(key)]))
        found: dict[int, list[tuple[Places, Places]]] = {}
        order = np.lexsort((version, rank, comes))
        cuts = np.flatnonzero(np.diff(comes[order]) | np.diff(rank[order])) + 1
        for part in np.split(order, cuts):
            if len(part):
                found.setdefault(int(comes[part[0]]), []).append((version[part], request[part]))
        return cls(first_tick, requests, found)


def join(parts: Sequence[Events]) -> Events:
    """The events of several worlds as those of one: all versions side by side, up to the end of the longest world."""
    ticks = max(len(part.requests) for part in parts)
    requests = [np.pad(part.requests, ((0, ticks - len(part.requests)), (0, 0))) for part in parts]
    rounds: dict[int, list[tuple[Places, Places]]] = {}
    before = np.cumsum([0, *(part.requests.shape[1] for part in parts)])
    for at in range(ticks):
        found = [
            [(v + first, r) for v, r in part.rounds.get(at, ())] for part, first in zip(parts, before, strict=False)
        ]
        if any(found):
            rounds[at] = [
                (np.concatenate([v for v, _ in one]), np.concatenate([r for _, r in one]))
                for one in ([pair for pair in row if pair is not None] for row in zip_longest(*found))
            ]
    return Events(parts[0].first_tick, np.concatenate(requests, axis=1), rounds)


class Many:
    """The detectors of many versions, which all begin at the same tick: with these delays, or (None) with none."""

    def __init__(self, first_tick: int, learned: Sequence[Delays | None]) -> None:
        versions = len(learned)
        self.first_tick = self.tick = first_tick
        self.begins = [first_tick]
        self.requests, self.since, self.due = (np.zeros((1, versions)) for _ in range(3))
        self.logs = np.full((len(complaints.RATIOS), 1, versions), LOG_FLOOR)
        self.references = [complaint_delays.start_reference(first_tick * TICK_SECONDS)] * versions
        self.learned: list[Delays | None] = [None] * versions
        self.learns = np.full(versions, True)
        self.hazards, self.weights = np.zeros((AGES, versions)), np.ones((AGES, versions))
        self.week, self.clock = np.ones((WEEK_HOURS, versions)), np.zeros((WEEK_HOURS + 1, versions))
        self.variance, self.dispersion, self.shape = np.zeros(versions), np.ones(versions), np.ones(versions)
        self.seen, self.expected, self.in_tick = (np.zeros(versions) for _ in range(3))
        self.day_seen, self.day_expected = np.zeros(versions), np.zeros(versions)
        self.log_max = np.full(versions, -math.inf)
        self.learned_at = np.full(versions, math.inf)
        there = [(version, one) for version, one in enumerate(learned) if one is not None]
        self._teach(np.array([version for version, _ in there], int), [one for _, one in there])

    def ages(self) -> Places:
        """The age bucket of each cohort, a version a column."""
        middles = complaints.list_middles([*self.begins, self.tick + 1])
        hours, part = np.divmod(np.array([*middles, self.tick]), HOUR_TICKS)
        weeks, at = np.divmod(hours + complaint_delays.MONDAY_HOURS, WEEK_HOURS)
        clock = weeks[:, None] * self.clock[-1] + self.clock[at]
        clock += part[:, None] / HOUR_TICKS * (self.clock[at + 1] - self.clock[at])
        found: Places = np.minimum(np.frexp(np.floor(clock[-1] - clock[:-1]))[1], AGES - 1).astype(np.intp)
        return found

    def pass_tick(self) -> None:
        """Reckon with the whole tick, and begin the next one."""
        if not self.learns.all():
            due, mean = self._expected()
            self.due += due
            self.expected += due[0]
            self.in_tick = due[0]
            self.day_expected += mean
        self._begin_tick()

    def _expected(self) -> tuple[Numbers, Numbers]:
        """`complaint_delays.find_expected`: of each cohort with all younger ones at most, and of all on average."""
        ages = self.ages()
        own = np.take_along_axis(self.hazards, ages, axis=0) * self.requests
        mean = _from_the_youngest(own)
        younger = np.concatenate([mean[1:], np.zeros((1, mean.shape[1]))])
        is_last = np.concatenate([ages[1:] != ages[:-1], np.ones((1, mean.shape[1]), bool)])
        before = np.maximum.accumulate(np.where(is_last, younger, 0.0)[::-1], axis=0)[::-1]
        known = np.take_along_axis(self.weights, ages, axis=0)
        part = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)
        squares = _from_the_youngest(((mean - before) ** 2 - (younger - before) ** 2) * part)
        chance = np.divide(squares, mean**2, out=np.ones_like(mean), where=mean > 0) * self.dispersion
        hour = self.week[(self.tick // HOUR_TICKS + complaint_delays.MONDAY_HOURS) % WEEK_HOURS]
        usual = mean[0] * np.where(hour > complaint_delays.CLOSED_MAX, hour, 0.0)
        return mean * widening(1.0 / (chance + self.variance)) * hour, usual

    def _begin_tick(self) -> None:
        self.tick += 1
        if self.tick * TICK_SECONDS % DAY_SECONDS == 0:
            self._end_day()
        with np.errstate(divide="ignore"):
            bet = np.maximum(LOG_FLOOR, np.log(self.in_tick))
        self.in_tick = np.zeros_like(bet)
        self.begins.append(self.tick)
        for at in complaints.choose_joins(self.begins):
            del self.begins[at + 1]
            self._join(at, self.requests[at] + self.requests[at + 1])
        new = np.zeros((1, len(bet)))
        self.requests, self.since, self.due = (
            np.concatenate([one, new]) for one in (self.requests, self.since, self.due)
        )
        self.logs = np.concatenate([self.logs, np.broadcast_to(bet, (len(self.logs), 1, len(bet)))], axis=1)
        if len(self.begins) > 1 and self.begins[1] <= self.tick - HORIZON_TICKS:
            del self.begins[0]
            self._join(0, self.requests[1])
        if self.learns.any() and self.tick % HOUR_TICKS == 0:
            self._end_references()

    def _join(self, at: int, requests: Numbers) -> None:
        today = self._today(slice(at, at + 2))
        both = np.logaddexp(self.logs[:, at] + today[:, 0], self.logs[:, at + 1] + today[:, 1])
        self.logs[:, at] = np.maximum(LOG_FLOOR, both - today[:, 0])
        self.requests[at] = requests
        self.requests, self.since, self.due = (
            np.delete(one, at + 1, axis=0) for one in (self.requests, self.since, self.due)
        )
        self.logs = np.delete(self.logs, at + 1, axis=1)

    def _today(self, cohorts: slice, versions: Places | slice = slice(None)) -> Numbers:
        """What the bets of these cohorts have won today, a ratio a row."""
        seen = self.since[cohorts, versions] / self.dispersion[versions]
        mu, shape = self.due[cohorts, versions] / self.dispersion[versions], self.shape[versions]
        ratios = np.array(complaints.RATIOS)[:, None, None]
        more = (ratios - 1.0) * mu
        found: Numbers = seen * np.log(ratios) - np.maximum(more, (seen + shape) * np.log1p(more / (shape + mu)))
        return found

    def _end_day(self) -> None:
        self.logs = np.maximum(LOG_FLOOR, self.logs + self._today(slice(None)))
        self.since[:], self.due[:] = 0.0, 0.0
        for version in np.flatnonzero(~self.learns & (self.day_expected > 0.0)):
            found = self.learned[version]
            assert found is not None
            found = complaint_delays.learn_day(found, self.day_seen[version], self.day_expected[version])
            self.learned[version] = found
            self.variance[version], self.shape[version] = found.variance, found.day_shape
        self.day_seen[:], self.day_expected[:] = 0.0, 0.0

    def _end_references(self) -> None:
        seconds = (self.tick - self.first_tick) * TICK_SECONDS
        if seconds < complaints.REFERENCE_SECONDS_MIN:
            return
        count = np.array([one.complaints for one in self.references])
        is_late = seconds >= complaints.REFERENCE_SECONDS_MAX
        enough = (count >= complaints.REFERENCE_SEEN) | (is_late & (count >= complaints.REFERENCE_SEEN_MIN))
        done = np.flatnonzero(self.learns & enough)
        self._teach(done, [learn(self.reference(int(version))) for version in done])

    def reference(self, version: int) -> Reference:
        """The reference period of one version."""
        return complaint_delays.add_watched(self.references[version], self.tick * TICK_SECONDS)

    def _teach(self, versions: Places, learned: list[Delays]) -> None:
        for version, one in zip(versions, learned, strict=True):
            self.learned[version] = one
            self.hazards[:, version], self.weights[:, version] = one.hazards, one.weights
            self.week[:, version], self.clock[:, version] = (
                complaint_delays.list_week(one.hours),
                complaint_delays.list_clock(one.hours),
            )
            self.variance[version], self.dispersion[version] = one.variance, one.dispersion
            self.shape[version] = one.day_shape
        self.learns[versions] = False
        self.learned_at[versions] = self.tick

    def complain(self, version: Places, request: Places) -> None:
        """A complaint about each of these versions, about a request of this tick."""
        cohort = np.searchsorted(self.begins, request, "right") - 1
        there = (cohort >= 0) & (self.requests[cohort, version] >= 0.5)
        version, cohort, request = version[there], cohort[there], request[there]
        self.requests[cohort, version] -= 1
        learning = self.learns[version]
        for one, asked in zip(version[learning], request[learning], strict=True):
            self.references[one] = complaint_delays.add_complaint(self.references[one], int(asked), self.tick)
        if learning.all():
            return
        tested = ~learning & (self.hazards[self.ages()[cohort, version], version] > 0)
        version, cohort = version[tested], cohort[tested]
        self.since[:, version] += np.arange(len(self.begins))[:, None] <= cohort
        self.seen[version] += 1
        self.day_seen[version] += 1
        self.log_max[version] = np.maximum(self.log_max[version], self.log_e(version))

    def log_e(self, versions: Places) -> Numbers:
        """The evidence about these versions now."""
        logs = self.logs[:, :, versions] + self._today(slice(None), versions)
        found: Numbers = np.logaddexp.reduce(logs, axis=(0, 1)) - math.log(len(complaints.RATIOS))
        return found

    def serve(self, count: npt.NDArray[np.int64]) -> None:
        """So many requests of each version, answered now."""
        self.requests[-1] += count
        for version in np.flatnonzero(self.learns & (count > 0)):
            self.references[version] = complaint_delays.add_requests(
                self.references[version], self.tick, int(count[version])
            )

    def enough(self) -> npt.NDArray[np.bool_]:
        """Which of them may alarm at all."""
        return (self.seen >= complaints.SEEN_MIN) & (self.expected >= complaints.EXPECTED_MIN)


def _from_the_youngest(values: Numbers) -> Numbers:
    """The sums of each cohort and all younger ones."""
    found: Numbers = np.cumsum(values[::-1], axis=0)[::-1]
    return found


def through(many: Many, events: Events) -> Iterator[int]:
    """All events, tick after tick; after each the number of the tick is given."""
    for at in range(len(events.requests)):
        if at:
            many.pass_tick()
        for version, request in events.rounds.get(at, ()):
            many.complain(version, request + events.first_tick)
        many.serve(events.requests[at])
        yield at


def widening(counts: Numbers) -> Numbers:
    """`complaint_delays.widening` of many."""
    more = counts + 1.0
    found: Numbers = more * (1.0 - 1.0 / (9.0 * more) + Z_95 / (3.0 * np.sqrt(more))) ** 3 / counts
    return found


def first_alarms(many: Many, events: Events, thresholds: Numbers) -> Numbers:
    """At which tick, from 0 on, each version first alarms; infinite where it never does."""
    found = np.full(len(thresholds), math.inf)
    for at in through(many, events):
        hit = np.isinf(found) & (many.log_max >= thresholds) & many.enough()
        found[hit] = at
    return found


def in_order_of_arrival(bad: list[Numbers], baselines: Numbers, thresholds: Numbers) -> Numbers:
    """After how many labels `rising_errors.py` first alarms, a version a column: `bad` are its labels, 0 or 1."""
    longest = max(len(labels) for labels in bad)
    labels = np.full((longest, len(bad)), np.nan)
    for column, one in enumerate(bad):
        labels[: len(one), column] = one
    p1 = np.array([rising_errors.list_alternatives(float(m), "above") for m in baselines]).T
    if_bad, if_good = p1 / baselines, (1 - p1) / (1 - baselines)
    sums, found = np.zeros_like(p1), np.full(len(bad), math.inf)
    weights = np.array(rising_errors.WEIGHTS)
    for at, row in enumerate(labels):
        factor = np.where(row > 0, if_bad, if_good)
        sums = np.where(np.isnan(row), sums, np.minimum((sums + 1) * factor, MASS_MAX))
        hit = np.isinf(found) & (weights @ sums >= np.exp(thresholds))
        found[hit] = at + 1
    return found
