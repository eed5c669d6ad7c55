"""The shop for the monitor's demo: cases that no training row has, sent at a rate, and a desk that judges the answers.

The desk knows the policy of the day exactly (`policy.py`), so every answer can be called right or wrong; of a share of
them it says so, as people would, and of some it says what the answer should have been.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from make_data import draw_facts
from policy import Facts, Season, answer_for
from templates import TEMPLATES, fill

# More than elsewhere of the two rules that the season decides otherwise: what comes back after the holidays.
TRAFFIC_SHARES = {
    "gift-card": 5, "outside-eu": 10, "defect": 9, "hygiene": 9, "no-receipt": 18, "used": 9, "window-30": 14,
    "goodwill-60": 18, "too-late": 8,
}  # fmt: skip
AT_ONCE_MAX = 6
"""An engine on two cores that is asked more at once has no room left for shadows."""
REQUEST_SECONDS_MAX = 60.0
TRIES_MAX = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A customer's message, and the facts that it tells."""

    text: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Sent:
    """A case that is sent, on the day of a season: whether its answer gets feedback, and whether that shows the right
    one."""

    number: int
    case: Case
    season: Season
    told: bool
    shown: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer and whether it decides as the policy of its day does. `at` is in Unix seconds, when it had come.

    `arm` is the version that answered, or its pool where none did; `told` says whether feedback was given on it.
    """

    at: float
    season: Season
    arm: str
    reason: str
    wrong: bool
    told: bool


def drawn_cases(seed: int, of_rules: Mapping[str, int] = TRAFFIC_SHARES) -> Iterator[Case]:
    """New cases without end, told in the templates and words that no training row has; so many of each rule's."""
    draw = random.Random(f"{seed}-customers")
    rules, shares = list(of_rules), list(of_rules.values())
    number = 0
    while True:
        number += 1
        facts = draw_facts(draw.choices(rules, shares)[0], draw)
        yield Case(fill(draw.choice(TEMPLATES["heldout"]), facts, f"{seed}-customers-{number}"), facts)


def cases_from(path: Path, seed: int) -> Iterator[Case]:
    """The rows of a file (`text` and `facts`, as in data/*.jsonl) in an order of the seed's, over and over.

    Raises ValueError where a line is no such row, or there are none.
    """
    cases = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            cases.append(Case(row["text"], Facts(**row["facts"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: give text and facts, as in data/dev.jsonl ({error}).") from error
    if not cases:
        raise ValueError(f"{path} has no rows.")
    draw = random.Random(f"{seed}-customers")
    while True:
        yield from draw.sample(cases, len(cases))


def decides(text: str, case: Case, season: Season) -> bool:
    """True if an answer decides the case as the policy does in this season."""
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("decision") == json.loads(answer_for(case.facts, season))["decision"]


class Shop:
    """Sends cases by several applications in turn, each with a key of its own, and judges what comes back.

    `season` is the policy of the day; whoever runs the story moves it. `judged` are all answers so far, oldest first.
    """

    def __init__(
        self, url: str, keys: Sequence[str], cases: Iterator[Case], *, season: Season, rate: float,
        told_share: float, shown_share: float, seed: int, task: str = "returns",
    ) -> None:  # fmt: skip
        self.season = season
        self.judged: list[Judged] = []
        self.failures: deque[str] = deque(maxlen=20)
        self.failed = 0
        self._clients = [
            httpx.AsyncClient(
                base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=REQUEST_SECONDS_MAX, trust_env=False
            )
            for key in keys
        ]
        self._cases = cases
        self.rate = rate
        self._told_share, self._shown_share = told_share, shown_share
        self._draw = random.Random(f"{seed}-desk")
        self._task = task

    async def trade(self) -> None:
        """Send cases at the rate, or as fast as AT_ONCE_MAX at a time are answered. Runs until cancelled."""
        places = asyncio.Semaphore(AT_ONCE_MAX)
        number = 0
        next_at = time.monotonic()
        try:
            async with asyncio.TaskGroup() as under_way:
                while True:
                    await places.acquire()
                    client = self._clients[number % len(self._clients)]
                    told, shown = self._draw.random() < self._told_share, self._draw.random() < self._shown_share
                    sent = Sent(number, next(self._cases), self.season, told, shown)
                    under_way.create_task(self._serve(client, sent)).add_done_callback(lambda _: places.release())
                    number += 1
                    next_at = max(next_at + 1.0 / self.rate, time.monotonic() - 1.0)
                    await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        finally:
            for client in self._clients:
                await client.aclose()

    async def _serve(self, client: httpx.AsyncClient, sent: Sent) -> None:
        """One case: asked, judged, and told of if it is to be. What fails is counted, and the shop goes on."""
        body = {"model": self._task, "messages": [{"role": "user", "content": sent.case.text}], "max_tokens": 64}
        try:
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            wrong = not decides(answer.json()["choices"][0]["message"]["content"] or "", sent.case, sent.season)
            if sent.told:
                await self._tell(client, sent, answer.headers["x-request-id"], wrong)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            self.failed += 1
            self.failures.append(repr(error))
            return
        arm = answer.headers.get("x-apprentice-version") or answer.headers.get("x-apprentice-pool", "none")
        reason = answer.headers["x-apprentice-reason"]
        self.judged.append(Judged(time.time(), sent.season, arm, reason, wrong, sent.told))

    async def _tell(self, client: httpx.AsyncClient, sent: Sent, request_id: str, wrong: bool) -> None:
        """Feedback on an answer, sent again where it may not be stored. Raises httpx.HTTPStatusError."""
        given: dict[str, Any] = {"request_id": request_id, "metric": "correct", "value": not wrong}
        given["feedback_id"] = f"desk-{sent.number}"
        if sent.shown:
            given["demonstration"] = json.loads(answer_for(sent.case.facts, sent.season))
        for tried in range(TRIES_MAX):
            stored = await client.post("/v1/feedback", json=given)
            if stored.status_code != 503 or tried == TRIES_MAX - 1:
                break
        stored.raise_for_status()
