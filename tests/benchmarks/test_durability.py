"""The durability benchmark's counts: what may stand where a change was not acknowledged, lost records, the chain."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from benchmarks.durability_counts import broken, lost_ages, repeated
from benchmarks.durability_load import Answered, Rule
from monitoring.audit import Audit


@pytest.mark.parametrize(
    ("rule", "found", "right"),
    [
        (Rule(known=True, value="a"), "a", True),
        (Rule(known=True, value="a"), None, False),
        (Rule(known=True, value="a"), "b", False),
        (Rule(known=True, value="a", sent_since=["b", None]), "b", True),
        (Rule(known=True, value="a", sent_since=["b", None]), None, True),
        (Rule(known=True, value="a", sent_since=["b"]), "a", True),
        (Rule(known=True, value=None), "a", False),
        (Rule(known=True, value=None), None, True),
        (Rule(sent_since=["a"]), None, True),
    ],
)
def test_what_was_acknowledged_last_or_sent_later_may_stand(rule: Rule, found: str | None, right: bool) -> None:
    assert rule.may_be(found) == right


def test_lost_record_is_as_old_as_at_the_next_kill_and_needs_a_kill_as_excuse() -> None:
    times = {"a": (0.9, 1.0), "b": (1.8, 1.9), "c": (2.4, 2.5), "d": (2.99, 3.01), "e": (3.4, 3.5)}
    answered = [Answered(name, *both) for name, both in times.items()]
    known = {"a": None, "b": None, "c": {}, "d": None, "e": None}
    assert lost_ages(answered, known, [2.0, 3.0]) == [1.0, pytest.approx(0.1), 0.0, None]


async def test_the_chain_is_judged_as_the_audit_seals_it(redis: Redis) -> None:
    audit = Audit(redis, time.time)
    for number in range(5):
        await audit.append("admin", "override.set", f"rule-{number}", before=None, after={"é": [1.5, None]})
    entries: list[dict[str, Any]] = [msgspec.to_builtins(entry) for entry in await audit.read()]
    assert broken(entries) == 0
    assert broken([entries[0], *entries[2:]]) == 3
    assert broken([{**entries[0], "actor": "somebody"}, *entries[1:]]) == 1
    assert broken([*entries[:4], {**entries[4], "previous": entries[0]["digest"]}]) == 1


def test_what_stands_twice_is_counted_once_too_often() -> None:
    assert repeated(["a", "b", "a", "c", "a"]) == 2
