"""Versions on trial: which answers are looked at, what they say, whether they keep their contract, and the queue of
requests that a shadow is to answer too.

Only answers of a task that has a canary or a shadow are looked at, and after they were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.answers.events import EventChoice, body_of, payload_of
from gateway.asked.request_body import RequestBody
from monitoring.records import PairRecord, Record
from router.decision import Choice
from router.policy import Policy

QUEUE_MAX = 200
WAITING_BYTES_MAX = 64 << 20
LIVE = frozenset({"adapter", "canary"})


@dataclass(frozen=True, slots=True)
class ShadowJob:
    """A request that a shadow is to answer too, and what is known of the answer that its caller got."""

    version: str
    probability: float
    policy: Policy
    body: RequestBody
    choice: Choice
    record: Record
    text: str
    pair: PairRecord

    @property
    def size(self) -> int:
        """Bytes that it holds while it waits, or a little less."""
        return self.body.size + len(self.text)


class Trials:
    """Which answers are looked at. Owner of the queue of shadow requests."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[ShadowJob] = asyncio.Queue(QUEUE_MAX)
        self._bytes = 0

    def watches(self, policy: Policy, choice: Choice) -> bool:
        """Whether the text of this answer is needed once it has been sent."""
        if choice.task is None or choice.version is None or choice.reason not in LIVE:
            return False
        alias = policy.aliases.get(choice.task.name)
        return alias is not None and (alias.canary is not None or bool(alias.shadow))

    def offer(self, job: ShadowJob) -> bool:
        """Have a shadow answer this request too; False where too many wait, or too much of them."""
        if self._bytes + job.size > WAITING_BYTES_MAX:
            return False
        try:
            self._jobs.put_nowait(job)
        except asyncio.QueueFull:
            return False
        self._bytes += job.size
        return True

    async def next(self) -> ShadowJob:
        """The request that has waited the longest."""
        job = await self._jobs.get()
        self._bytes -= job.size
        return job


def text_of(kept: Sequence[bytes], stream: bool) -> str | None:
    """What an answer says: that of its one choice. None where it calls tools, or says nothing that is text."""
    try:
        if not stream:
            return _said(msgspec.json.decode(b"".join(kept)).get("choices", [{}])[0])
        payloads = (payload_of(event) for event in b"".join(kept).split(b"\n\n") if event)
        bodies = [body_of(payload) for payload in payloads if payload and payload != b"[DONE]"]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, IndexError, RecursionError):
        return None
    choices = [choice for body in bodies for choice in body.choices]
    if any(choice.delta is not None and choice.delta.tool_calls for choice in choices):
        return None
    return "".join(_added(choice) for choice in choices)


def _said(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    said = message.get("content") if isinstance(message, dict) else choice.get("text")
    return said if isinstance(said, str) else None


def _added(choice: EventChoice) -> str:
    return (choice.delta.content if choice.delta is not None else choice.text) or ""
