"""Engine cases: each has a task of its own, and is judged by its caller's answer and its engines' logs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.fault_cases import FALLBACK, Told, ask
from benchmarks.wire_format import EngineCase, EngineExpect, Range
from benchmarks.wire_script import TOKENS, words
from benchmarks.wire_worlds import World, task_of

SLACK_SECONDS = 1.0
"""What a busy machine may add to a time limit."""


@dataclass(frozen=True)
class Outcome:
    """A row of the report: `why` is empty where it passed."""

    group: str
    case: str
    says: str
    why: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return not self.why


@dataclass(frozen=True)
class Seen:
    """What came of an engine case."""

    told: Told
    attempts: int
    attempts_fallback: int
    then: Told | None
    connections: int


def marker(name: str) -> str:
    """The text by which an engine's log tells whose request it was."""
    return f"[{name}]"


async def play_engine_case(world: World, number: int, case: EngineCase) -> Outcome:
    """Ask (`requests` times, `at_once` each time), and judge the last answer."""
    primary, fallback = world.primaries[case.name], world.fallbacks[case.name]
    messages = [{"role": "user", "content": f"A toaster, sealed. {marker(case.name)}"}]

    async def asked() -> Told:
        more = {"messages": messages, **case.request}
        return await asyncio.to_thread(ask, world.port, task_of(number), world.keys["caller"], case.stream, **more)

    began = time.monotonic()
    for _ in range(case.requests):
        told = (await asyncio.gather(*(asked() for _ in range(case.at_once))))[-1]
    await asyncio.sleep(case.idle_seconds)
    attempts = sum(marker(case.name) in one.prompt for one in primary.requests)
    instead = sum(marker(case.name) in one.prompt for one in fallback.requests)
    then = None
    if any(one.then for one in case.expect):
        primary.faults.clear()
        await asyncio.sleep(SLACK_SECONDS)  # a replica rests after a fault
        then = await asked()
    connections = primary.connections
    seen = Seen(told, attempts, instead, then, connections)
    found = [reasons_against(one, seen) for one in case.expect]
    why = [] if any(not one for one in found) else min(found, key=len)
    why = [*_never(told), *why]
    return Outcome("engine", case.name, case.says, "; ".join(why), time.monotonic() - began)


def _never(told: Told) -> list[str]:
    """What holds of no answer whatever."""
    found = []
    if "internal_error" in told.error or told.status == 500:
        found.append(f"an internal error: {told.status} {told.error[:120]}")
    if told.error and not told.broke:
        try:
            error = json.loads(told.error)
            if not {"message", "type", "param", "code"} <= error.keys():
                found.append(f"an error without OpenAI's fields: {told.error[:120]}")
        except (ValueError, AttributeError):
            found.append(f"an error that is not JSON: {told.error[:120]}")
    return found


def reasons_against(expect: EngineExpect, seen: Seen) -> list[str]:
    """What does not hold of what is expected."""
    told = seen.told
    code = _code(told)
    usage = told.usage if isinstance(told.usage, dict) else {}
    rules: list[tuple[bool, str]] = [
        (expect.answer != "whole" or is_whole(told), f"no whole answer: {_short(told)}"),
        (expect.answer != "error" or (not told.looks_whole and bool(told.error)), f"no clear error: {_short(told)}"),
        (expect.by is None or by(told) == expect.by, f"answered by the {by(told)}: {_short(told)}"),
        (expect.status in (None, told.status), f"status {told.status}, not {expect.status}"),
        (expect.code in (None, code), f"code {code}, not {expect.code}"),
        (expect.text in (None, told.text), f"text {told.text[:80]!r}"),
        (expect.done in (None, told.done), f"[DONE]: {told.done}"),
        (expect.ends in (None, told.ends), f"ends {told.ends}"),
        (
            expect.completion_tokens in (None, usage.get("completion_tokens")),
            f"usage {told.usage}",
        ),
        *_timed(expect, told.seconds),
        (holds(expect.attempts, seen.attempts), f"{seen.attempts} attempts at the primary, not {expect.attempts}"),
        (
            holds(expect.attempts_fallback, seen.attempts_fallback),
            f"{seen.attempts_fallback} attempts at the fallback, not {expect.attempts_fallback}",
        ),
        (holds(expect.connections, seen.connections), f"{seen.connections} connections, not {expect.connections}"),
    ]
    raw = told.raw.decode(errors="replace")
    rules += [(one in raw, f"{one!r} is not in the answer: {raw[-200:]}") for one in expect.present]
    rules += [(one not in raw, f"{one!r} is in the answer") for one in expect.absent]
    rules += [
        (re.fullmatch(pattern, told.headers.get(name, "")) is not None, f"{name}: {told.headers.get(name)}")
        for name, pattern in expect.headers.items()
    ]
    if expect.then and seen.then is not None:
        rules.append((is_whole(seen.then) and by(seen.then) == expect.then, f"then: {_short(seen.then)}"))
    return [text for right, text in rules if not right]


def _timed(expect: EngineExpect, seconds: float) -> list[tuple[bool, str]]:
    longest = None if expect.seconds_max is None else expect.seconds_max + SLACK_SECONDS
    return [
        (longest is None or seconds <= longest, f"took {seconds:.1f} s, over {expect.seconds_max}"),
        (
            expect.seconds_min is None or seconds >= expect.seconds_min - 0.1,
            f"took {seconds:.1f} s, under {expect.seconds_min}",
        ),
    ]


def is_whole(told: Told) -> bool:
    """Whether it is one engine's answer from its beginning to its end, and says so."""
    return told.is_whole or (told.looks_whole and told.text == words() and told.finish_reason == "stop")


def by(told: Told) -> str:
    """Which engine the answer begins with."""
    return "fallback" if told.text.startswith(f"{FALLBACK}#") else "primary"


def holds(wanted: Range | None, found: int) -> bool:
    """Whether a count is the one that is wanted, or within the two."""
    if wanted is None:
        return True
    lowest, highest = (wanted, wanted) if isinstance(wanted, int) else wanted
    return lowest <= found <= highest


def _code(told: Told) -> Any:
    try:
        return json.loads(told.error)["code"]
    except (ValueError, TypeError, KeyError):
        return None


def _short(told: Told) -> str:
    why = told.error or told.broke
    count = len(told.text.split())
    return f"{told.status}, {count} of {TOKENS} tokens, {told.finish_reason}{', ' if why else ''}{why[:200]}"
