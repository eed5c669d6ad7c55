"""The worlds of the benchmark of late feedback: traffic, callers, and when they complain. See `late_feedback.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.complaint_runs import Events, Numbers, Places
from benchmarks.harness import Unmeasurable
from monitoring.quality.detectors.complaint_delays import TICK_SECONDS

TICKS_PER_HOUR = int(3600 / TICK_SECONDS)
TICKS_PER_DAY = 24 * TICKS_PER_HOUR
FIRST_TICK = 5_750_208
FIRST_WEEKDAY = 5
OFFICES = ("office hours", "quiet weekends")
OUTAGE_DAYS = 8
GROWTH_DAYS = 8
QUIET_DAYS = 2
PRAISE_HOURS = 24.0
OPENS, CLOSES, SATURDAY = 9, 17, 5
READINESS_MAX = 2.0


@dataclass(frozen=True, slots=True)
class World:
    """Traffic and callers: requests an hour, how often answers are wrong, who says so, and after how long.

    `complain` is the share of wrong answers with a complaint, `praise` that of right ones with praise. Delays are
    lognormal, of a median of `delay_hours` and so many nepers. `ready_sd` is the deviation of a readiness that lasts
    `ready_days`, `callers` have each their own, and complaints come in clusters of `cluster`.
    """

    shape: str = "steady"
    per_hour: float = 100.0
    error: float = 0.10
    complain: float = 0.50
    praise: float = 0.05
    delay_hours: float = 2.0
    delay_sigma: float = 1.5
    doubled_from: int | None = None
    ready_sd: float = 0.0
    ready_days: int = 1
    callers: int = 1
    cluster: int = 1

    @property
    def complaint_rate(self) -> float:
        """Of all requests, while nothing is wrong."""
        return self.error * self.complain


STILL: dict[str, dict[str, Any]] = {
    **{name: {"shape": name} for name in ("steady", "new version", "cold start", "growth", "day/night", "outage")},
    **{name: {"shape": name} for name in ("office hours", "quiet weekends")},
    "ready by day": {"ready_sd": 0.2},
    "ten callers": {"callers": 10},
    "pairs": {"cluster": 2},
    "fives": {"cluster": 5},
}
DOUBLED: tuple[dict[str, Any], ...] = (
    {},
    {"shape": "day/night"},
    {"delay_hours": 12.0},
    {"complain": 0.25},
    {"shape": "office hours"},
    {"shape": "quiet weekends"},
    {"ready_sd": 0.2},
    {"callers": 10},
    {"cluster": 2},
    {"cluster": 5},
)


def read_worlds(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The worlds in a file, by name: of each the fields of `World` that differ. Raises Unmeasurable for others."""
    try:
        worlds = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
        for fields in worlds.values():
            msgspec.convert(fields, World)
            if unknown := fields.keys() - World.__dataclass_fields__.keys():
                raise Unmeasurable(f"{path}: a world has no {', '.join(sorted(unknown))}.")
    except OSError as error:
        raise Unmeasurable(f"{path} can't be read: {error.strerror or error}.") from error
    except msgspec.MsgspecError as error:
        raise Unmeasurable(f"{path} holds no worlds: {error}.") from error
    return worlds


def traffic(world: World, ticks: int) -> Numbers:
    """The requests that are to be expected in each tick."""
    days = np.arange(ticks) / TICKS_PER_DAY
    shape = np.ones(ticks)
    if world.shape == "cold start":
        shape = np.where(days < QUIET_DAYS, 0.1, 1.0)
    elif world.shape == "growth":
        shape = 2.0 ** (days / GROWTH_DAYS) / 4
    elif world.shape == "day/night":
        shape = 1.0 - 0.9 * np.cos(2 * np.pi * days)
    elif world.shape in OFFICES:
        shape = np.where(is_open(world, np.arange(ticks)), 1.0, 0.05)
        shape = shape / shape[: 7 * TICKS_PER_DAY].mean()
    return world.per_hour / TICKS_PER_HOUR * shape


def is_open(world: World, ticks: Places) -> npt.NDArray[np.bool_]:
    """Whether the office is open."""
    hours, days = ticks / TICKS_PER_HOUR % 24, (ticks // TICKS_PER_DAY + FIRST_WEEKDAY) % 7
    found: npt.NDArray[np.bool_] = (hours >= OPENS) & (hours < CLOSES)
    return found & (days < SATURDAY) if world.shape == "quiet weekends" else found


def put_off(world: World, comes: Places, draw: np.random.Generator) -> Places:
    """What would come while the office is closed comes within two hours after it opens."""
    opens = comes
    for _ in range(4):
        day = opens // TICKS_PER_DAY + (opens // TICKS_PER_HOUR % 24 >= OPENS)
        opens = np.where(is_open(world, opens), opens, day * TICKS_PER_DAY + OPENS * TICKS_PER_HOUR)
    late = draw.integers(0, 2 * TICKS_PER_HOUR, len(comes))
    return np.where(opens > comes, opens + late, comes)


def arrivals(world: World, asked: Places, delay_hours: float, draw: np.random.Generator) -> Places:
    """At which tick feedback comes on requests that were answered at these ticks, at the earliest the next one."""
    hours = delay_hours * np.exp(world.delay_sigma * draw.standard_normal(len(asked)))
    comes = asked + np.maximum(1.0, np.ceil(hours * TICKS_PER_HOUR))
    if world.shape == "day/night":
        hour = comes / TICKS_PER_HOUR % 24
        late = np.where(hour < 7, 7 - hour, np.where(hour >= 22, 31 - hour, 0.0))
        waits = late + 3.0 * draw.random(len(asked))
        comes = np.where(late > 0, np.ceil(comes + waits * TICKS_PER_HOUR), comes)
    if world.shape == "outage":
        day = comes / TICKS_PER_DAY % OUTAGE_DAYS
        left = (OUTAGE_DAYS - day) * TICKS_PER_DAY + draw.integers(0, TICKS_PER_HOUR, len(asked))
        comes = np.where(day >= OUTAGE_DAYS - 1, np.ceil(comes + left), comes)
    if world.shape in OFFICES:
        return put_off(world, comes.astype(np.intp), draw)
    return comes.astype(np.intp)


def readiness(world: World, days: int, versions: int, draw: np.random.Generator) -> Numbers:
    """How ready callers are to complain, a day a row: about requests of that day, where there are several callers."""
    nepers = 0.8
    ready = np.exp(nepers * draw.standard_normal((world.callers, versions)))
    parts = draw.standard_gamma(1.0, (days, world.callers, versions))
    found: Numbers = (parts * ready / ready.mean(axis=0)).sum(axis=1) / parts.sum(axis=1)
    return found


def kept(
    world: World, comes: Places, version: Places, versions: int, draw: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which complaints are made, where on some days callers are readier than on others."""
    days = comes // (TICKS_PER_DAY * world.ready_days)
    nepers = math.sqrt(math.log1p(world.ready_sd**2))
    ready = np.exp(nepers * draw.standard_normal((int(days.max(initial=0)) + 1, versions)) - nepers**2 / 2)
    found: npt.NDArray[np.bool_] = draw.random(len(comes)) < ready[days, version] / READINESS_MAX
    return found


@dataclass(frozen=True, slots=True)
class Drawn:
    """Feedback of many versions: the version, the tick of the request, the tick at which it comes."""

    version: Places
    request: Places
    comes: Places

    @classmethod
    def of(cls, world: World, counts: npt.NDArray[np.int64], delay_hours: float, draw: np.random.Generator) -> Drawn:
        """From how many requests of each tick (a row) and version (a column) bring some."""
        request, version = np.nonzero(counts)
        times = counts[request, version]
        request, version = np.repeat(request, times), np.repeat(version, times)
        return cls(version, request, arrivals(world, request, delay_hours, draw))


def drawn(world: World, ticks: int, versions: int, seed: int) -> tuple[Events, Drawn, Drawn]:
    """Many versions in one world: their requests and complaints, the complaints again, and the praise."""
    draw = np.random.default_rng((seed, world.cluster, world.callers, *world.shape.encode()))
    requests = draw.poisson(traffic(world, ticks)[:, None], (ticks, versions))
    error = np.full((ticks, 1), world.error)
    if world.doubled_from is not None:
        error[world.doubled_from :] *= 2
    wrong = draw.binomial(requests, error)
    share = np.full((ticks, versions), world.complain)
    if world.callers > 1:
        days = np.arange(ticks) // TICKS_PER_DAY
        share *= readiness(world, int(days[-1]) + 1, versions, draw)[days]
    share *= READINESS_MAX if world.ready_sd else 1.0
    bad = Drawn.of(world, draw.binomial(wrong, np.minimum(1.0, share / world.cluster)), world.delay_hours, draw)
    if world.ready_sd:
        made = kept(world, bad.comes, bad.version, versions, draw)
        bad = Drawn(bad.version[made], bad.request[made], bad.comes[made])
    if world.cluster > 1:
        version, request, comes = (np.repeat(one, world.cluster) for one in (bad.version, bad.request, bad.comes))
        within = draw.integers(0, TICKS_PER_HOUR // 2, (2, len(comes)))
        bad = Drawn(version, np.maximum(0, request - within[0]), comes + within[1])
    good = Drawn.of(world, draw.binomial(requests - wrong, world.praise), PRAISE_HOURS, draw)
    return Events.of(FIRST_TICK, requests, bad.version, bad.request, bad.comes), bad, good


def describe(world: World) -> str:
    """A world in a few words."""
    parts = [world.shape, f"{world.complaint_rate * world.per_hour:g} an hour", f"after {world.delay_hours:g} h"]
    parts += [f"sd {world.ready_sd:.0%} by day"] * bool(world.ready_sd)
    parts += [f"{world.callers} callers"] * (world.callers > 1) + [f"clusters of {world.cluster}"] * (world.cluster > 1)
    return ", ".join(parts)
