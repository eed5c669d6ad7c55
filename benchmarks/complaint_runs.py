"""Many simulated versions at once through the complaints detector, and labels in the order in which they come.

`Many` does what `monitoring/quality/detectors/complaints.py` does, for a version a column: a test compares them.
Requests are answered, and complaints come, at the beginning of a tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitoring.quality.detectors import complaints, delays
from monitoring.quality.detectors import rising_errors as slip
from monitoring.quality.detectors.delays import AGES, HORIZON_TICKS, HOURS, TICK_SECONDS, Delays, Reference

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


class Many:
    """The detectors of many versions, which all begin at the same tick."""

    def __init__(self, first_tick: int, versions: int, learned: Delays | None = None) -> None:
        self.first_tick = self.tick = first_tick
        self.begins = [first_tick]
        self.requests = np.zeros((1, versions))
        self.mass = np.zeros((len(complaints.RATIOS), 1, versions))
        self.learns = np.full(versions, learned is None)
        self.watched, self.events = np.zeros((HOURS, AGES, versions)), np.zeros((AGES, versions))
        self.by_hour = np.zeros((HOURS, versions))
        self.hazards, self.weights = np.zeros((AGES, versions)), np.ones((AGES, versions))
        self.hours, self.rhythm_variance = np.ones((HOURS, versions)), np.zeros(versions)
        self.seen, self.expected = np.zeros(versions), np.zeros(versions)
        self.in_tick = np.zeros(versions)
        self.log_max = np.full(versions, -math.inf)
        self.learned_at = np.full(versions, math.inf)
        if learned is not None:
            self._teach(np.arange(versions), [learned] * versions)

    def ages(self) -> list[int]:
        """The age bucket of each cohort."""
        ends = [*(begin - 1 for begin in self.begins[1:]), self.tick]
        return [
            delays.get_age_bucket((2 * self.tick - begin - end) // 2)
            for begin, end in zip(self.begins, ends, strict=True)
        ]

    def pass_tick(self) -> None:
        """Reckon with the whole tick, and begin the next one."""
        ages = self.ages()
        firsts = [at for at in range(len(ages)) if at == 0 or ages[at] != ages[at - 1]]
        hour = delays.get_part_of_day(self.tick)
        if self.learns.any():
            self.watched[hour, [ages[at] for at in firsts]] += np.add.reduceat(self.requests, firsts) * self.learns
        behind = self._expected(ages, firsts) * self.hours[hour]
        kept = np.exp(-0.5 * behind)
        self.mass[0] *= kept
        for at in range(1, 4):
            kept *= kept
            self.mass[at] *= kept
        self.expected += behind[0]
        self._begin_tick(behind[0])

    def _expected(self, ages: list[int], firsts: list[int]) -> Numbers:
        """`delays.expected`, but for the rhythm: of each cohort with all younger ones."""
        mean = np.cumsum((self.hazards[ages] * self.requests)[::-1], axis=0)[::-1]
        ends = [*firsts[1:], len(ages)]
        group = np.repeat(np.arange(len(firsts)), np.subtract(ends, firsts))
        younger = np.concatenate([mean, np.zeros((1, mean.shape[1]))])[ends]
        known = self.weights[[ages[at] for at in firsts]]
        whole = np.divide((mean[firsts] - younger) ** 2, known, out=np.zeros_like(younger), where=known > 0)
        before = np.cumsum(whole[::-1], axis=0)[::-1] - whole
        part = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)
        squares = before[group] + (mean - younger[group]) ** 2 * part[group]
        variance = np.divide(squares, mean**2, out=np.ones_like(mean), where=mean > 0) + self.rhythm_variance
        found: Numbers = mean * widening(1.0 / variance)
        return found

    def _begin_tick(self, bet: Numbers) -> None:
        self.tick += 1
        self.begins.append(self.tick)
        for at in complaints.choose_joins(self.begins):
            del self.begins[at + 1]
            self._join(at)
        self.requests = np.concatenate([self.requests, np.zeros((1, self.requests.shape[1]))])
        new = np.broadcast_to(bet, (self.mass.shape[0], 1, len(bet)))
        self.mass = np.concatenate([self.mass, new], axis=1)
        if len(self.begins) > 1 and self.begins[1] <= self.tick - HORIZON_TICKS:
            del self.begins[0]
            self.mass[:, 1] += self.mass[:, 0]
            self.requests, self.mass = self.requests[1:], self.mass[:, 1:]
        if self.learns.any():
            self._end_references()

    def _join(self, at: int) -> None:
        self.requests[at] += self.requests[at + 1]
        self.mass[:, at] += self.mass[:, at + 1]
        self.requests = np.delete(self.requests, at + 1, axis=0)
        self.mass = np.delete(self.mass, at + 1, axis=1)

    def _end_references(self) -> None:
        seconds = (self.tick - self.first_tick) * TICK_SECONDS
        count = self.events.sum(axis=0)
        soon = (count >= complaints.REFERENCE_SEEN) & (seconds >= complaints.REFERENCE_SECONDS_MIN)
        late = (count >= complaints.REFERENCE_SEEN_MIN) & (seconds >= complaints.REFERENCE_SECONDS_MAX)
        done = np.flatnonzero(self.learns & (soon | late))
        self._teach(done, [delays.learn(self.reference(int(version))) for version in done])

    def reference(self, version: int) -> Reference:
        """The reference period of one version."""
        return Reference(
            began=self.first_tick * TICK_SECONDS,
            ended=self.tick * TICK_SECONDS,
            watched=tuple(self.watched[:, :, version].ravel().tolist()),
            events=tuple(int(one) for one in self.events[:, version]),
            by_hour=tuple(int(one) for one in self.by_hour[:, version]),
        )

    def _teach(self, versions: Places, learned: list[Delays]) -> None:
        for version, one in zip(versions, learned, strict=True):
            self.hazards[:, version], self.weights[:, version] = one.hazards, one.weights
            self.hours[:, version], self.rhythm_variance[version] = one.hours, one.rhythm_variance
        self.learns[versions] = False
        self.learned_at[versions] = self.tick

    def complain(self, version: Places, request: Places) -> None:
        """A complaint about each of these versions, about a request of this tick."""
        cohort = np.searchsorted(self.begins, request, "right") - 1
        there = (cohort >= 0) & (self.requests[cohort, version] >= 0.5)
        version, cohort = version[there], cohort[there]
        age = np.array(self.ages())[cohort]
        self.requests[cohort, version] -= 1
        learning = self.learns[version]
        self.events[age[learning], version[learning]] += 1
        self.by_hour[delays.get_part_of_day(self.tick), version[learning]] += 1
        tested = ~learning & (self.hazards[age, version] > 0)
        version, cohort = version[tested], cohort[tested]
        behind = np.arange(len(self.begins))[:, None] <= cohort
        for at, ratio in enumerate(complaints.RATIOS):
            part = self.mass[at][:, version]
            self.mass[at][:, version] = np.minimum(np.where(behind, ratio * part, part), MASS_MAX)
        self.seen[version] += 1
        with np.errstate(divide="ignore"):
            now = np.log(self.mass[:, :, version].sum(axis=(0, 1)) / len(complaints.RATIOS))
        self.log_max[version] = np.maximum(self.log_max[version], now)

    def serve(self, count: npt.NDArray[np.int64]) -> None:
        """So many requests of each version, answered now."""
        self.requests[-1] += count

    def enough(self) -> npt.NDArray[np.bool_]:
        """Which of them may alarm at all."""
        return (self.seen >= complaints.SEEN_MIN) & (self.expected >= complaints.EXPECTED_MIN)


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
    """`delays.widening` of many."""
    more = counts + 1.0
    found: Numbers = more * (1.0 - 1.0 / (9.0 * more) + delays.Z_UPPER / (3.0 * np.sqrt(more))) ** 3 / counts
    return found


def first_alarms(many: Many, events: Events, thresholds: Numbers) -> Numbers:
    """At which tick, from 0 on, each version first alarms; infinite where it never does."""
    found = np.full(len(thresholds), math.inf)
    for at in through(many, events):
        hit = np.isinf(found) & (many.log_max >= thresholds) & many.enough()
        found[hit] = at
    return found


def in_order_of_arrival(bad: list[Numbers], baselines: Numbers, thresholds: Numbers) -> Numbers:
    """After how many labels `slip.py` first alarms, a version a column: `bad` are its labels as they come, 0 or 1."""
    longest = max(len(labels) for labels in bad)
    labels = np.full((longest, len(bad)), np.nan)
    for column, one in enumerate(bad):
        labels[: len(one), column] = one
    p1 = np.array([slip.list_alternatives(float(m), "above") for m in baselines]).T
    if_bad, if_good = p1 / baselines, (1 - p1) / (1 - baselines)
    sums, found = np.zeros_like(p1), np.full(len(bad), math.inf)
    weights = np.array(slip.WEIGHTS)
    for at, row in enumerate(labels):
        factor = np.where(row > 0, if_bad, if_good)
        sums = np.where(np.isnan(row), sums, np.minimum((sums + 1) * factor, MASS_MAX))
        hit = np.isinf(found) & (weights @ sums >= np.exp(thresholds))
        found[hit] = at + 1
    return found
