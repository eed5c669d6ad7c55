"""The load of the swap benchmark: callers that stream and callers that do not, each asking all the time."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Unmeasurable
from benchmarks.swap_counts import Answer, tokens_of

PATH = "/v1/chat/completions"
PLAIN_TOKENS = 4
STREAM_TOKENS = 64
REFUSED_PAUSE_SECONDS = 0.01
UNREACHED_PAUSE_SECONDS = 1.0
ANSWER_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes: ports, a model's name and a key; and what is asked. Callers go to the ports in turn.

    An answer through another port than the first may be `lag_seconds` behind a swap, which the first confirms.
    """

    ports: Sequence[int]
    model: str
    key: str
    prompts: Sequence[str]
    lag_seconds: float = 0.0

    def body(self, prompt: int, stream: bool) -> dict[str, Any]:
        """The request for one of the prompts."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompts[prompt]}],
            "max_tokens": STREAM_TOKENS if stream else PLAIN_TOKENS,
            "temperature": 0,
            **({"stream": True} if stream else {}),
        }


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many ask, and how. Two in three stream, and one who does not lets up to `pause_seconds_max` pass, at random,
    before it asks again: its requests come at any point of an engine's step."""

    callers: int
    pause_seconds_max: float

    @property
    def streams(self) -> int:
        """Callers that stream: never all of them."""
        return self.callers - max(1, self.callers // 3)


class Caller(threading.Thread):
    """Asks one request after another over one connection until it is told to stop."""

    def __init__(self, target: Target, crowd: Crowd, number: int, seed: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self._stream = number < crowd.streams
        self._pause_seconds_max = 0.0 if self._stream else crowd.pause_seconds_max
        self._target = target
        door = number % len(target.ports)
        self._port = target.ports[door]
        self._lag_seconds = target.lag_seconds if door else 0.0
        self._draw = random.Random(seed)
        self._over = over

    def run(self) -> None:
        """Until it is over."""
        connection: http.client.HTTPConnection | None = None
        while not self._over.is_set():
            connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS_MAX)
            answer = Answer(self._stream, self._draw.randrange(len(self._target.prompts)), time.monotonic())
            answer.lag_seconds = self._lag_seconds
            try:
                self._ask(connection, answer)
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                answer.broken = repr(error)
            answer.ended_at = time.monotonic()
            answer.began_at = answer.began_at or answer.ended_at
            self.answers.append(answer)
            if answer.broken or answer.status >= 300:
                connection.close()
                connection = None
                self._over.wait(REFUSED_PAUSE_SECONDS if answer.status else UNREACHED_PAUSE_SECONDS)
            self._over.wait(self._draw.random() * self._pause_seconds_max)
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, answer: Answer) -> None:
        body = json.dumps(self._target.body(answer.prompt, self._stream))
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._target.key}"}
        connection.request("POST", PATH, body, headers)
        got = connection.getresponse()
        answer.status, answer.began_at = got.status, time.monotonic()
        answer.pool = got.getheader("x-apprentice-pool") or ""
        answer.request_id = got.getheader("x-request-id") or ""
        if not self._stream or got.status >= 300:
            whole = json.loads(got.read())
            if got.status < 300:
                answer.chunks = tokens_of(whole["choices"][0]["message"]["content"])
                answer.models = {whole["model"]}
            return
        answer.broken = read_stream(got, answer)


def read_stream(lines: Iterable[bytes], answer: Answer) -> str:
    """Read the events of an answer into it; returns what is wrong with them, if anything."""
    finished = done = False
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            done = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return f"error event: {event['error']}"
        answer.models.add(event["model"])
        for choice in event["choices"]:
            finished = finished or choice["finish_reason"] is not None
            if choice["delta"].get("content"):
                answer.chunks.append(choice["delta"]["content"])
    return "" if done and finished else "the stream ended early"


def under_load(target: Target, crowd: Crowd, seed: int, during: Callable[[], None]) -> list[Answer]:
    """Ask all the time while something is done; returns every answer that began in that time. Raises Unmeasurable."""
    over = threading.Event()
    callers = [Caller(target, crowd, number, seed * 100 + number, over) for number in range(crowd.callers)]
    for caller in callers:
        caller.start()
    try:
        during()
    finally:
        over.set()
        for caller in callers:
            caller.join(ANSWER_SECONDS_MAX)
    if any(caller.is_alive() for caller in callers):
        raise Unmeasurable("A caller got no end of its answer.")
    return [answer for caller in callers for answer in caller.answers]
