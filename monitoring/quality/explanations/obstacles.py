"""Obstacles between a task's versions and its callers, in plain words: rules, versions ready nowhere, pauses. Pure.

A verdict says nothing about them: a healthy version answers nobody if a rule bypasses it, or no replica has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal, assert_never

import msgspec

from monitoring.quality.phrases import format_count, format_moment, format_part
from monitoring.quality.verdicts.quality import VersionQuality
from monitoring.quality.verdicts.shares import is_to_be_paused


class ActiveRule(msgspec.Struct, frozen=True, kw_only=True):
    """An admin's rule in force that sends requests of a task elsewhere: all of them or, with `some`, those that
    match."""

    name: str
    action: Literal["general", "version", "refuse"]
    version: str | None = None
    some: bool = False
    ends_at: float | None = None


class Obstacles(msgspec.Struct, frozen=True, kw_only=True):
    """The obstacles of a task's versions. `ready` has two numbers for each version with a role: replicas on which it
    can answer, and its replicas that are up. `reviews` counts waiting reviews (None: not known)."""

    rules: list[ActiveRule] = []
    ready: dict[str, tuple[int, int]] = {}
    reviews: int | None = None


def is_nowhere(obstacles: Obstacles, name: str | None) -> bool:
    """Return whether it is known that no replica can answer with this version."""
    return name is not None and obstacles.ready.get(name, (1, 1))[0] == 0


def find_rule_for_all(obstacles: Obstacles) -> ActiveRule | None:
    """The rule that sends all of the task's requests elsewhere, if there is one."""
    return next((rule for rule in obstacles.rules if not rule.some), None)


def list_for_line(obstacles: Obstacles, name: str) -> list[str]:
    """The obstacles in the one-line report on a task that this version leads."""
    rule = find_rule_for_all(obstacles)
    return [
        *(["ready nowhere"] if is_nowhere(obstacles, name) else []),
        *([f"the rule {rule.name} keeps its requests from it"] if rule is not None else []),
    ]


def describe_obstacles(task: str, obstacles: Obstacles, names: Iterable[str]) -> Iterator[str]:
    """A sentence for each rule that sends requests elsewhere, and for each of these versions that is ready nowhere."""
    for rule in obstacles.rules:
        yield _rule(task, rule)
    for name in names:
        if is_nowhere(obstacles, name):
            yield describe_nowhere(name, obstacles.ready[name][1])


def describe_nowhere(name: str, up: int) -> str:
    """The sentence on a version that is ready nowhere; `up` is the number of its replicas that are up."""
    return (
        f"{name} is ready on none of its replicas ({format_count(up, 'is up', 'are up')}): what is meant for it goes "
        "to the task's fallback, or is refused."
    )


def describe_canary(name: str, share: float, quality: VersionQuality, responses: Collection[str]) -> Iterator[str]:
    """A sentence on a canary with this share, if it is paused or degraded. `responses` are those of the monitor."""
    if share and quality.verdict != "degraded":
        return
    why = f"it is {quality.verdict}" + (f": {quality.because}" if quality.because else ".")
    if not share:
        yield f"The monitor has paused the canary {name}, which stands at 0% of the requests: {why}"
    elif is_to_be_paused(quality, responses):
        yield f"The monitor's next step pauses the canary {name}, which then stands at 0% of the requests: {why}"
    else:
        yield f"The canary {name} gets {format_part(share)} of the requests, and {why}"


def list_steps(task: str, obstacles: Obstacles, name: str, stale: bool, set_for_change: str | None) -> Iterator[str]:
    """The steps against the obstacles of the leading version. `set_for_change` is the rule of an announced change."""
    if is_nowhere(obstacles, name):
        yield f"See why {name} is ready nowhere, and bring it back: `apprentice adapters why {name}`."
    rule = find_rule_for_all(obstacles)
    if rule is not None and rule.name == set_for_change and not stale:
        yield (
            f"End the rule that the change of {task} set, now that {name} leads, which is not stale: "
            f"`apprentice overrides delete {rule.name}`."
        )
    elif rule is not None:
        yield f"Let {name} answer again once that is right: `apprentice overrides delete {rule.name}`."


def _rule(task: str, rule: ActiveRule) -> str:
    until = f" until {format_moment(rule.ends_at)}" if rule.ends_at is not None else ""
    whose = f"requests of {task} that fit it" if rule.some else f"all requests of {task}"
    match rule.action:
        case "refuse":
            return f"The rule {rule.name} refuses {whose}{until}."
        case "general" | "version":
            to = rule.version or "the general model"
            return f"The rule {rule.name} sends {whose} to {to}{until}, whatever leads the task."
        case _:
            assert_never(rule.action)
