"""A dry run of a rule over the latest requests: nothing is set, sent or recorded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import msgspec

from gateway.formats.request_body import RequestBody
from gateway.services import Services
from monitoring.records import Record
from router.overrides import Override, Subject, apply_rules, match_texts
from router.policy import Policy

REQUESTS_MAX = 1000
READ_MAX = 10_000
"""Records that are read for them: the stream has shadows beside requests."""
WAITED_SECONDS_MAX = 1.0
"""Where not all processes have answered and it took longer, no more is asked of them."""
AT_ONCE = 50
"""Records that are looked at before others get the event loop."""
EXAMPLES_MAX = 20
BEFORE_RULES = frozenset(
    {"rate_limit_exceeded", "budget_exceeded", "caller_busy", "draining", "storage_unavailable", "model_not_allowed"}
)
"""Codes of refusals that come before all rules."""


@dataclass
class Tried:
    """The results of a dry run. `unknown`: this gateway lacks the parts of these requests that the rule reads."""

    looked_at: int = 0
    matched: int = 0
    unknown: int = 0
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Numbers of requests by their outcome without the rule and with it."""
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The results as admins see them."""
        return {
            "looked_at": self.looked_at,
            "matched": self.matched,
            "would_change": self.changed.total(),
            "unknown": self.unknown,
            "changes": [{"from": a, "to": b, "requests": count} for (a, b), count in self.changed.most_common()],
            "examples": self.examples,
            "words": self._words(),
        }

    def change(self, record: Record, after: str) -> None:
        """Note the outcome of a request with the rule, if it differs from the real one."""
        before = _before(record)
        if before != after:
            self.changed[before, after] += 1
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(record.id)

    def _words(self) -> str:
        text = f"Of the last {self.looked_at} requests it would have matched {self.matched} and changed "
        text += f"{self.changed.total()}."
        if self.unknown:
            text += f" For {self.unknown} this is unknown: what they said is not in this gateway's memory."
        return text


async def try_rule(services: Services, rule: Override) -> Tried:
    """Apply a rule to the last REQUESTS_MAX requests that all gateways have served. Raises RedisError."""
    tried = Tried()
    bare = replace(rule, mode="enforce", starts_at=None, expires_at=None)
    policy = services.snapshot.current.policy
    place: str | None = None
    others = services.control.siblings.count - 1
    for _ in range(READ_MAX // AT_ONCE):
        records, place = await services.flow.stream.newest(AT_ONCE, place)
        part = [record for record in records if record.purpose == "serve" and record.task is not None]
        part = part[: REQUESTS_MAX - tried.looked_at]
        bodies = {record.id: services.recent.get(record.id) for record in part}
        away = [name for name, body in bodies.items() if body is None] if others and _reads_body(bare) else []
        if away:
            began = time.monotonic()
            answers = await services.control.siblings.ask("bodies", msgspec.msgpack.encode(away))
            bodies |= services.recent.read(answers)
            if len(answers) < others and time.monotonic() - began > WAITED_SECONDS_MAX:
                others = 0  # one hangs, and would delay each batch
        await asyncio.to_thread(_try_on, tried, bare, part, [bodies[record.id] for record in part], policy)
        if place is None or tried.looked_at >= REQUESTS_MAX:
            break
    return tried


def _try_on(
    tried: Tried, rule: Override, records: Sequence[Record], bodies: Sequence[RequestBody | None], policy: Policy
) -> None:
    for record, body in zip(records, bodies, strict=True):
        tried.looked_at += 1
        if record.override_id is not None and record.override_id < rule.id:
            continue  # an earlier rule decided
        if record.pool is None and record.error_code in BEFORE_RULES:
            continue
        if body is None and _reads_body(rule):
            bare = replace(rule, contains=None, pattern=None, metadata={})
            tried.unknown += _matches(bare, record, {}, "")
            continue
        metadata, text = (body.metadata(), body.text()) if body is not None else ({}, "")
        if _matches(rule, record, metadata, text):
            tried.matched += 1
            tried.change(record, _after(rule, record, policy))
        elif record.override_id == rule.id:
            tried.change(record, "as without the rule")


def _reads_body(rule: Override) -> bool:
    return rule.reads_text or bool(rule.metadata)


def _matches(rule: Override, record: Record, metadata: dict[str, str], text: str) -> bool:
    texts = match_texts((rule,), text) if rule.reads_text else frozenset()
    outcome = apply_rules((rule,), Subject(record.task, record.caller, metadata), texts, time.time())
    return outcome.deciding is not None or bool(outcome.adding)


def _before(record: Record) -> str:
    if record.pool is None:
        return record.outcome if record.error_code is None else f"refused ({record.error_code})"
    return record.version or record.pool


def _after(rule: Override, record: Record, policy: Policy) -> str:
    match rule.action:
        case "general":
            return _fallback(record.task or "", policy)
        case "version":
            return rule.version or ""
        case "refuse":
            return "refused (refused_by_override)"
        case "system":
            return f"{_before(record)}, with the message"
        case _:
            assert_never(rule.action)


def _fallback(name: str, policy: Policy) -> str:
    """The first fallback to which rules may send the task's requests."""
    task, alias = policy.tasks.get(name), policy.aliases.get(name)
    first = task.fallbacks_for("override")[0] if task is not None else "general"
    if first == "needs_human":
        return "refused (needs_human)"
    there = (
        (alias.previous_version if alias is not None else None)
        if first == "previous_version"
        else task and task.fallback_pool
    )
    return there or "refused (no fallback)"
