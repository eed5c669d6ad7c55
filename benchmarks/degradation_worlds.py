"""How labels come: the worlds of `benchmarks.degradation`. Numpy, since there are tens of millions of labels.

A world is a rate at which requests come, a delay until a label is given, and who gives it. Requests that are labelled
are drawn by the rate, each is right or wrong by the version's error rate when it was answered, each label comes after
its delay, and detectors see labels in the order in which they come. So around a change labels of before it are among
those of after it.

steady            requests at an even rate, labelled at once
cold_start        a new version: the rate doubles every 6 hours from almost nothing; the change is at its 50th label
growth            the rate doubles every week
day_night         almost nothing at night, labels half a day later
feedback_outage   no label comes for two days from the change on, then all that waited at once
burst             one of eight raters sends 300 labels at once, half of them bad whatever the answers were

Delays are long-tailed (log-normal), and say nothing of the answer, but in `complaints_first`, a cold start where bad
labels come within the hour and good ones within days: there no detector over labels in their order can keep to its
claim, and the figure says how far it is off.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Givers = npt.NDArray[np.int8]
Shape = Literal["even", "doubling_6_hours", "doubling_week", "day_night"]

LABELS_PER_HOUR = 4.0
OUTAGE_HOURS = 48.0
GIVERS = 8
BURST_LABELS = 300
BURST_AFTER = 200
BURST_BAD = 0.5
HOURS_MAX = 20_000.0
GRID = 40_001
BEFORE = 1_000


@dataclass(frozen=True, slots=True)
class World:
    """Requests' rate over time, the median delay of a label in hours and its spread (of the logarithm)."""

    name: str
    shape: Shape
    delay_hours: float
    spread: float = 1.0
    before: int = BEFORE
    outage: bool = False
    burst: bool = False
    good_later: float = 1.0


WORLDS = (
    World("steady", "even", 0.0),
    World("cold_start", "doubling_6_hours", 6.0, before=50),
    World("growth", "doubling_week", 6.0),
    World("day_night", "day_night", 12.0),
    World("feedback_outage", "even", 2.0, outage=True),
    World("burst", "even", 0.0, burst=True),
)
COMPLAINTS_FIRST = World("complaints_first", "doubling_6_hours", 1.0, before=50, good_later=48.0)


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels in the order in which they come, runs by labels: bad or not, who gave them, of a request since the change,
    and when they come, in seconds.

    A giver is one of 8 callers.
    """

    bad: Bools
    givers: Givers
    changed: Bools
    times: Floats


def drawing(seed: int, *of: object) -> np.random.Generator:
    """The chance of one part of the benchmark: the same whatever else is measured."""
    return np.random.default_rng([seed, zlib.crc32(" ".join(map(str, of)).encode())])


def labels_of(
    world: World, draw: np.random.Generator, runs: int, count: int, rate: float, points: float | None = None
) -> Labels:
    """So many labels a run, at an error rate that rises by `points` where the world has its change, or never."""
    changed = np.zeros((runs, count), dtype=np.bool_)
    if points is not None:
        changed[:, world.before :] = True
    bad = draw.random((runs, count)) < np.where(changed, rate + (points or 0.0), rate)
    givers = draw.integers(0, GIVERS, (runs, count), dtype=np.int8)
    if not world.delay_hours:
        even = np.tile(np.arange(count) * (3600.0 / LABELS_PER_HOUR), (runs, 1))
        labels = Labels(bad, givers, changed, even)
        return _with_a_burst(labels, draw) if world.burst else labels
    asked = _times(world.shape, draw, runs, count)
    delays = world.delay_hours * np.exp(world.spread * draw.standard_normal((runs, count)))
    come = asked + delays * np.where(bad, 1.0, world.good_later)
    if world.outage:
        begin = asked[:, min(world.before, count - 1)][:, None]
        dark = (come >= begin) & (come < begin + OUTAGE_HOURS)
        come = np.where(dark, begin + OUTAGE_HOURS + 0.01 * draw.random((runs, count)), come)
    order = np.argsort(come, axis=1)
    return Labels(
        np.take_along_axis(bad, order, axis=1),
        givers,  # drawn by chance, so in any order
        np.take_along_axis(changed, order, axis=1),
        3600.0 * np.take_along_axis(come, order, axis=1),
    )


def poisoned(draw: np.random.Generator, runs: int, count: int, rate: float, share: float, honest: int) -> Labels:
    """A healthy version's labels of so many callers, and one more who gives `share` of all labels, all of them bad."""
    attacks = draw.random((runs, count)) < share
    givers = np.where(attacks, honest, draw.integers(0, honest, (runs, count))).astype(np.int8)
    bad = attacks | (draw.random((runs, count)) < rate)
    return Labels(bad, givers, np.zeros_like(bad), np.zeros(bad.shape))


def uneven(
    draw: np.random.Generator, runs: int, count: int, rate: float, points: float, shares: tuple[float, ...]
) -> Labels:
    """Honest callers that give these shares of the labels, and a change after 1,000 labels that all of them see."""
    givers = draw.choice(len(shares), size=(runs, count), p=shares).astype(np.int8)
    changed = np.zeros((runs, count), dtype=np.bool_)
    changed[:, BEFORE:] = True
    bad = draw.random((runs, count)) < np.where(changed, rate + points, rate)
    return Labels(bad, givers, changed, np.zeros(bad.shape))


def _with_a_burst(labels: Labels, draw: np.random.Generator) -> Labels:
    """Giver 0 sends its burst after the 200th label; as many labels at the end give way."""
    runs, count = labels.bad.shape
    length = max(0, min(BURST_LABELS, count - BURST_AFTER))
    ours = (
        draw.random((runs, length)) < BURST_BAD,
        np.zeros((runs, length), dtype=np.int8),
        np.zeros((runs, length), dtype=np.bool_),
    )
    whole = (labels.bad, labels.givers, labels.changed)
    parts = [
        np.concatenate([one[:, :BURST_AFTER], burst, one[:, BURST_AFTER:]], axis=1)[:, :count]
        for one, burst in zip(whole, ours, strict=True)
    ]
    return Labels(parts[0], parts[1], parts[2], labels.times)


def _times(shape: Shape, draw: np.random.Generator, runs: int, count: int) -> Floats:
    """When the labelled requests came, in hours: a Poisson process whose rate has this shape."""
    even = np.cumsum(draw.exponential(1.0, (runs, count)), axis=1)
    if shape == "even":
        return even / LABELS_PER_HOUR
    if shape == "doubling_6_hours":
        return _doubled(even, 6.0, LABELS_PER_HOUR)
    if shape == "doubling_week":
        return _doubled(even, 168.0, LABELS_PER_HOUR)
    hours = np.linspace(0.0, HOURS_MAX, GRID)
    turns = 2 * np.pi / 24.0
    so_far = LABELS_PER_HOUR * (hours + 0.95 * (1 - np.cos(turns * hours)) / turns)
    return np.interp(even, so_far, hours)


def _doubled(even: Floats, doubling_hours: float, at_start: float) -> Floats:
    """Times of a rate that doubles in so many hours: where its integral passes those of an even one."""
    growth = np.log(2.0) / doubling_hours
    return np.asarray(np.log1p(even * growth / at_start) / growth, dtype=np.float64)
