"""Events that all graphs mark: promotions, rollbacks, and changes of verdicts.

Grafana asks in steps of a minute at least. A query has a value at the first step after an event, and at no other.
"""

from __future__ import annotations

from tools.dashboards.panels import VERDICTS, Event
from tools.dashboards.queries import INTERVAL, TASK

BY_VERSION = "on (task, version)"


def make_events(match: str = TASK) -> tuple[Event, ...]:
    """The events of the tasks that `match` selects."""
    leads = f"{_now(match, 'active')} unless {BY_VERSION} {_earlier(match, 'active')}"
    led_before = _earlier(match, "previous_version")
    watched = f"max(max_over_time(apprentice_build_info[{INTERVAL}] offset $__interval))"
    promoted = f"{leads} unless {BY_VERSION} {led_before} and on () {watched}"
    rolled_back = f'apprentice_canary_verdicts_total{{{match}{", " if match else ""}action="roll_back"}}'
    canaries = f"sum by (task) (increase({rolled_back}[{INTERVAL}])) > 0"
    back = (
        f"{leads} and {BY_VERSION} {led_before}"
        f' or label_replace({canaries}, "version", "the version before its canary", "", "")'
    )
    verdicts = " or ".join(_changed(match, value, name) for value, (name, _) in VERDICTS.items())
    return (
        Event("Promotions", "green", promoted, "{{version}} leads {{task}}."),
        Event("Rollbacks", "orange", back, "{{task}} is back at {{version}}."),
        Event("Verdicts", "purple", verdicts, "{{version}} is {{verdict}}."),
    )


def _now(match: str, state: str) -> str:
    return f"max by (task, version) ({_info(match, state)})"


def _earlier(match: str, state: str) -> str:
    return f"max by (task, version) (max_over_time({_info(match, state)}[{INTERVAL}] offset $__interval))"


def _info(match: str, state: str) -> str:
    return f'apprentice_adapter_info{{{match}{", " if match else ""}state="{state}"}}'


def _changed(match: str, value: int, name: str) -> str:
    verdict = f"apprentice_verdict{{{match}}}"
    now = f"max by (task, version) ({verdict}) == {value}"
    before = f"max by (task, version) (last_over_time({verdict}[{INTERVAL}] offset $__interval)) != {value}"
    return f'label_replace(({now}) + 1 and {BY_VERSION} {before}, "verdict", "{name}", "", "")'
