"""The demo's story: a season ends and comes back, and what the monitor finds and does about it is watched."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from customers import Shop
from policy import Season

WINDOW = 50
LOOK_SECONDS = 2.0
LINE_SECONDS = 10.0


class Untold(Exception):
    """The story did not come to its end; the message says what was waited for."""


@dataclass(frozen=True)
class Chapter:
    """A season of the story: how long it lasts at least, what it waits for, and for how many answers it goes on."""

    name: str
    season: Season
    waits_for: str
    seconds_min: float
    answers_after: int


@dataclass(frozen=True)
class Health:
    """The monitor's quality of a version: verdict, reason, kept share of requests, labelled evidence."""

    verdict: str
    because: str
    kept: float
    to: str | None
    e_value: float
    threshold: float
    labels: int


@dataclass
class Seen:
    """All that was seen, as the picture and the JSON want it; times are in seconds since the story began."""

    phases: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)


class Story:
    """Tells it: moves the season, looks at the monitor's health of the task, and says what it sees.

    `leading` is the version whose season ends, `previous_version` the one that led before.
    """

    def __init__(
        self, admin: httpx.AsyncClient, shop: Shop, leading: str, previous_version: str, floor: float,
        say: Callable[[str], None], wait_seconds_max: float, task: str = "returns",
    ) -> None:  # fmt: skip
        self.seen = Seen()
        self.took: list[float] = []
        self._admin, self._shop, self._say, self._task = admin, shop, say, task
        self._leading, self._previous_version, self._floor = leading, previous_version, floor
        self._wait_seconds_max = wait_seconds_max
        self.began_at = time.time()
        self._known: dict[str, Health] = {}
        self._said_at = 0.0

    async def chapter(self, chapter: Chapter) -> None:
        """Let a season be, until what it waits for is seen, and on for its `answers_after`.

        Raises Untold where either takes longer than `wait_seconds_max`, httpx.HTTPError where nothing answers.
        """
        self._shop.season = chapter.season
        began = time.monotonic()
        phase = {"name": chapter.name, "season": chapter.season, "from": self._now(), "to": self._now()}
        self.seen.phases.append(phase)
        self._say(f"{_clock(self._now())}  The policy of the day is now the {chapter.season} one.")
        wanted: int | None = None
        while True:
            await self._look()
            phase["to"] = self._now()
            spent, answers = time.monotonic() - began, len(self._shop.judged)
            if wanted is None and spent >= chapter.seconds_min and self._has_come(chapter.waits_for):
                wanted, began = answers + chapter.answers_after, time.monotonic()
                self.took.append(round(spent, 1))
            if wanted is not None and answers >= wanted:
                return
            if spent > chapter.seconds_min + self._wait_seconds_max:
                what = f"that {chapter.waits_for}" if wanted is None else "enough answers after that"
                raise Untold(f"{self._wait_seconds_max:.0f} s were not enough to see {what}: {self._known}")
            await asyncio.sleep(LOOK_SECONDS)

    def _has_come(self, what: str) -> bool:
        found = self._known.get(self._leading)
        if found is None:
            return False
        if what == DEGRADED:
            return found.verdict == "degraded" and found.kept <= self._floor + 1e-9
        return found.verdict == "healthy" and found.kept == 1.0

    async def _look(self) -> None:
        """One point of the series, and what moved since the last."""
        told = await health_of(self._admin, self._task)
        for version, health in told.items():
            before = self._known.get(version)
            if (before.verdict if before else "healthy") != health.verdict:
                self._moved(version, health)
        self._known = told
        window = self._shop.judged[-WINDOW:]
        shares = Counter(one.arm for one in window)
        point = {
            "at": self._now(),
            "season": self._shop.season,
            "answers": len(self._shop.judged),
            "error": round(sum(one.wrong for one in window) / len(window), 4) if window else None,
            "shares": {arm: round(count / len(window), 4) for arm, count in sorted(shares.items())},
            "health": {version: asdict(health) for version, health in told.items()},
        }
        self.seen.points.append(point)
        if time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            self._say(self._line(point))

    def _moved(self, version: str, health: Health) -> None:
        at = self._now()
        one = {"at": at, "version": version, "verdict": health.verdict, "because": health.because}
        self.seen.verdicts.append(one)
        self._say(f"{_clock(at)}  {version} is {health.verdict}: {health.because}")

    def _line(self, point: Mapping[str, Any]) -> str:
        error = "  -  " if point["error"] is None else f"{point['error']:5.1%}"
        shares = ", ".join(f"{arm} {share:.0%}" for arm, share in point["shares"].items())
        found = self._known.get(self._leading)
        words = "" if found is None else (
            f"  {self._leading} {found.verdict}, keeps {found.kept:.0%}, "
            f"e-value {found.e_value:,.2f} of {found.threshold:,.0f}, {found.labels} labels"
        )  # fmt: skip
        return f"{_clock(point['at'])}  {point['season']:7}  error {error}  {shares or 'no answers yet'}{words}"

    def _now(self) -> float:
        return round(time.time() - self.began_at, 1)


DEGRADED = "its version is degraded and keeps the explored share"
HEALTHY = "its version is healthy and keeps all of its requests"


async def health_of(admin: httpx.AsyncClient, task: str) -> dict[str, Health]:
    """The quality of each version of a task. Raises httpx.HTTPError."""
    answer = await admin.get(f"/admin/v1/tasks/{task}/quality")
    answer.raise_for_status()
    told = answer.json()
    return {
        name: _health(found, told["judgements"].get(name, {})) for name, found in told["quality"]["versions"].items()
    }


def _health(found: Mapping[str, Any], judged: Mapping[str, Any]) -> Health:
    signals = [one for one in judged.get("reports", []) if one["labelled"]]
    leading = max(signals, key=lambda one: one["e_value"], default={"e_value": 0.0, "threshold": 0.0})
    return Health(
        found["verdict"], found["because"], found["kept"], found["to"], leading["e_value"], leading["threshold"],
        judged.get("labels", 0),
    )  # fmt: skip


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):2}:{int(seconds % 60):02}"
