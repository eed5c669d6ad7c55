"""The callers and admins of the durability benchmark: they ask, judge and change, and note what was acknowledged."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import ask

ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}
RULES_OF_AN_ADMIN = 5
PAUSE_SECONDS = 0.01
AWAY_SECONDS = 0.05
ANSWER_SECONDS_MAX = 15.0
REPEATS_MAX = 20
"""So many judgements that were not acknowledged are sent again at a time."""


@dataclass(slots=True)
class Answered:
    """A request whose whole answer its caller has. Times are those of the monotonic clock."""

    id: str
    sent_at: float
    at: float


@dataclass(slots=True)
class Judged:
    """A judgement under its own id."""

    request_id: str
    feedback_id: str
    value: bool
    acknowledged: bool = False


@dataclass(slots=True)
class Rule:
    """What one admin has done with a rule: the last that was acknowledged, and all that was sent after it.

    A value of None says that the rule was removed.
    """

    known: bool = False
    value: str | None = None
    sent_since: list[str | None] = field(default_factory=list)

    def may_be(self, found: str | None) -> bool:
        """Whether this value is what was acknowledged last, or was sent later."""
        return (found == self.value or not self.known) or found in self.sent_since


@dataclass(slots=True)
class Noted:
    """All that was acknowledged, and what was not."""

    answered: list[Answered] = field(default_factory=list)
    requests_failed: int = 0
    judged: list[Judged] = field(default_factory=list)
    rules: dict[str, Rule] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    changes: list[tuple[str, str, str | None]] = field(default_factory=list)
    """The admins' changes that were acknowledged: action, object, and the value of a rule."""
    waits_seconds: list[float] = field(default_factory=list)
    """How long judgements waited for their acknowledgement, those that got it."""
    refused: int = 0
    """Judgements and changes that were answered with 503, or not at all."""


class Crowd:
    """Callers and admins as threads, from `begin` until `end`. They go on asking while nobody answers."""

    def __init__(self, port: int, key: str, callers: int, admins: int, seed: int) -> None:
        self.port = port
        self._key = key
        self._seed = seed
        self._noted = Noted()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._gateway_is_there = threading.Event()
        self._gateway_is_there.set()
        loops: list[Callable[[int], None]] = [*[self._call] * callers, *[self._administer] * admins]
        self._threads = [threading.Thread(target=loop, args=(number,)) for number, loop in enumerate(loops)]

    def begin(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def gateway_goes(self) -> None:
        """From now on a request without an answer is not a fault."""
        self._gateway_is_there.clear()

    def gateway_is_back(self) -> None:
        """From now on every request is to be answered."""
        self._gateway_is_there.set()

    def has_something_to_lose(self) -> bool:
        """Whether a judgement and a change were acknowledged."""
        with self._lock:
            return bool(self._noted.changes) and any(each.acknowledged for each in self._noted.judged)

    def end(self) -> Noted:
        """Let them end, and tell what they noted."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self._noted

    def _call(self, number: int) -> None:
        draw = random.Random(f"{self._seed}-{number}")
        open_judgements: list[Judged] = []
        count = 0
        while not self._over.is_set():
            count += 1
            there = self._gateway_is_there.is_set()
            sent_at = time.monotonic()
            status, headers = self._asked("POST", "/v1/chat/completions", ASK)[:2]
            if status == 200:
                with self._lock:
                    self._noted.answered.append(Answered(headers["x-request-id"], sent_at, time.monotonic()))
                judgement = Judged(headers["x-request-id"], f"{number}-{count}", draw.random() < 0.5)
                with self._lock:
                    self._noted.judged.append(judgement)
                open_judgements.append(judgement)
                self._judge(open_judgements)
            elif there and self._gateway_is_there.is_set():
                with self._lock:
                    self._noted.requests_failed += 1
            self._over.wait(PAUSE_SECONDS * draw.random() if status else AWAY_SECONDS)

    def _judge(self, waiting: list[Judged]) -> None:
        """Send what is not acknowledged yet, once more."""
        for judgement in waiting[-REPEATS_MAX:]:
            body = {
                "request_id": judgement.request_id,
                "feedback_id": judgement.feedback_id,
                "metric": "correct",
                "value": judgement.value,
            }
            began = time.monotonic()
            status = self._asked("POST", "/v1/feedback", body)[0]
            if status in (200, 201):
                judgement.acknowledged = True
                self._noted.waits_seconds.append(time.monotonic() - began)
                waiting.remove(judgement)
            elif status in (404, 409, 429):
                waiting.remove(judgement)  # its record was lost before it had any
            else:
                with self._lock:
                    self._noted.refused += 1
                return

    def _administer(self, number: int) -> None:
        draw = random.Random(f"{self._seed}-admin-{number}")
        count = 0
        while not self._over.is_set():
            count += 1
            name = f"rule-{number}-{draw.randrange(RULES_OF_AN_ADMIN)}"
            kind = draw.random()
            if kind < 0.2:
                done = self._make_key(f"key-{number}-{count}")
            elif kind < 0.35:
                done = self._set_rule(name, None)
            else:
                done = self._set_rule(name, f"text {number} {count}")
            self._over.wait(PAUSE_SECONDS * draw.random() if done else AWAY_SECONDS)

    def _make_key(self, name: str) -> bool:
        status, _, body = self._asked("POST", "/admin/v1/callers", {"name": name})
        with self._lock:
            if status == 201:
                public = str(json.loads(body)["public"])
                self._noted.keys.append(public)
                self._noted.changes.append(("caller.make", public, None))
            else:
                self._noted.refused += 1
        return status == 201

    def _set_rule(self, name: str, value: str | None) -> bool:
        """Set a rule, which matches no request, or remove it. Each rule has one admin, who waits for the answer."""
        with self._lock:
            rule = self._noted.rules.setdefault(name, Rule())
        rule.sent_since.append(value)
        if value is None:
            status = self._asked("DELETE", f"/admin/v1/overrides/{name}")[0]
        else:
            body = {"action": "refuse", "task": "returns", "contains": value, "message": value}
            status = self._asked("PUT", f"/admin/v1/overrides/{name}", body)[0]
        if status == 200 or (status == 404 and value is None):
            rule.known, rule.value, rule.sent_since = True, value, []
        with self._lock:
            if status == 200:
                action = "override.set" if value is not None else "override.delete"
                self._noted.changes.append((action, name, value))
            elif status != 404:
                self._noted.refused += 1
        return status in (200, 404)

    def _asked(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """Status 0 where there is no answer."""
        try:
            return ask(self.port, method, path, body, self._key, timeout_seconds=ANSWER_SECONDS_MAX)
        except OSError:
            return 0, {}, b""
