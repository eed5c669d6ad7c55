"""Waiting for a gateway's background work: the placement of a version, the verdict on a canary."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import quote

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from gateway.cli.admin_client import CommandError, Unusable
from gateway.cli.command import Api
from gateway.cli.tables import Printer, format_age, format_time, frame_table, make_readable, share
from monitoring.quality.phrases import format_evidence
from serving.adapters.versions_and_aliases import PLACED

POLL_SECONDS = 0.5
TIME_NAME = re.compile(r"([a-z_]+_)?(at|from|until|since|due)")
TIMES_FROM = 1_000_000_000
"""Smallest number that is a time in Unix seconds, if the name says so: smaller ones are counts or durations."""
VERDICTS: Mapping[str, str] = {
    "continue": "none yet",
    "hold": "held, for people to judge",
    "promote": "promote",
    "roll_back": "roll back",
}
"""A verdict in words."""
CANARY_FIELDS = frozenset({"version", "share", "started_at", "by", "plan", "verdict", "because", "evidence"})
"""The canary's fields that watching needs. A gateway of another release may lack them."""
CANARY_POLL_SECONDS = 1.0
PIPE_SECONDS = 30.0
"""Without a terminal, what a verdict waits for is printed at most so often; the verdict and the share at once."""


class WatchFailed(CommandError):
    """The awaited work failed; the text says why."""

    exit_code = 1


def wait(seconds: float) -> None:
    """Let time pass."""
    time.sleep(seconds)  # noqa: TID251 - a command waits for a gateway: it has no event loop to block


def make_columns() -> tuple[ProgressColumn, ...]:
    """Progress columns of work whose done share is known."""
    return SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()


def make_waiting_columns() -> tuple[ProgressColumn, ...]:
    """Progress columns of work of which only the elapsed time is known."""
    return SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()


def make_sending_columns() -> tuple[ProgressColumn, ...]:
    """Progress columns of an upload."""
    return (
        *(TextColumn("{task.description}"), BarColumn()),
        *(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )


def follow_work(api: Api, answer: dict[str, Any], path: str, title: str) -> dict[str, Any]:
    """Work of a background job once it has ended; how far it is meanwhile. `path` leads to all of its kind. Raises
    CommandError."""
    with api.out.progress(*make_columns()) as progress:
        bar = progress.add_task(title, total=1)
        while answer["state"] == "running":
            progress.update(bar, completed=answer["progress"]["share"], description=answer["progress"]["stage"])
            wait(POLL_SECONDS)
            answer = api.get(f"{path}/{answer['id']}")
    return answer


def until_ended(
    api: Api, answer: dict[str, Any], path: str, show: Callable[[dict[str, Any]], None], so_far: Callable[..., str]
) -> dict[str, Any]:
    """An evaluation or a training once it has ended. Meanwhile `show` draws it, and where there is no terminal a line
    tells how far it is, in the words of `so_far`. `path` leads to all of its kind. Raises CommandError."""
    told_at = time.monotonic()
    while answer["status"] == "running":
        show(answer)
        if time.monotonic() - told_at >= PIPE_SECONDS and not api.out.stderr.is_terminal:
            told_at = time.monotonic()
            api.out.note(f"{answer['id']}: {so_far(answer)}")
        wait(POLL_SECONDS)
        answer = api.get(f"{path}/{answer['id']}")
    return answer


def until_placed(api: Api, answer: dict[str, Any], wait_seconds: float) -> dict[str, Any]:
    """The version once it is no longer staging, or as it is when `wait_seconds` are over. Raises CommandError."""
    name = str(answer["version"])
    deadline = time.monotonic() + wait_seconds
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
        *(TextColumn("{task.completed:g} of {task.total:g} replicas"), TimeElapsedColumn()),
        TextColumn("[dim]{task.fields[hint]}"),
    )
    with api.out.progress(*columns) as progress:
        bar = progress.add_task(f"Placing {name}", total=1, hint="")
        while answer["state"] == "staging" and time.monotonic() < deadline:
            total, done = len(answer["wanted"]) or 1, len(answer["ready"])
            progress.update(bar, total=total, completed=done, hint=_hint(answer).replace("[", "("))
            wait(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            answer = api.get(f"/adapters/{quote(name, safe='@')}")
    return answer


@contextmanager
def explain_interrupt(out: Printer, what: str, look: str) -> Iterator[None]:
    """After Ctrl-C, say that only the waiting has ended, and where to look."""
    try:
        yield
    except KeyboardInterrupt:
        out.warn(f"{what}: see how far it is with `apprentice {look}`.")
        raise


@contextmanager
def explain_leaving(out: Printer, kind: str, name: str) -> Iterator[None]:
    """After Ctrl-C or a lost gateway, say that only the watching has ended, and how to come back.

    `kind` is `evaluation` or `training`: its commands are named so.
    """
    try:
        yield
    except (KeyboardInterrupt, Unusable):
        out.warn(
            f"The {kind} goes on, on the gateway: see it with `apprentice {kind}s show {name}`, end it with "
            f"`apprentice {kind}s stop {name}`, or run the same command again."
        )
        raise


def _hint(answer: dict[str, Any]) -> str:
    """The states of the replicas that are not ready yet."""
    states = [f"{item['replica']} {item['state']}" for item in answer["placements"] if item["state"] != "ready"]
    return make_readable(", ".join(states))[:100]


def see_that_it_is_placed(answer: dict[str, Any], wait_seconds: float) -> str:
    """A sentence about a version's placement. Raises WatchFailed if it is not placed after the wait."""
    name, state = answer["version"], answer["state"]
    ready, wanted = len(answer["ready"]), len(answer["wanted"])
    if state in PLACED:
        return f"{name} is {state}, on {ready} of {wanted} replicas."
    if state == "staging" and not wait_seconds:
        return f"{name} is being loaded and probed. See how far it is: apprentice adapters show {name}"
    if state == "staging":
        placed = f"{name} is on {ready} of {wanted} replicas after {wait_seconds:g} s"
        begun = _hint(answer)
        left = f"still being loaded: {begun}" if begun else "no replica has begun to load it"
        raise WatchFailed(f"{placed}, and {left}. See why: apprentice adapters why {name}")
    notes = [answer["note"]] if answer.get("note") else [item.get("note") for item in answer["placements"]]
    reasons = "; ".join(dict.fromkeys(str(note) for note in notes if note)) or "no replica took it"
    raise WatchFailed(f"{name} could not be placed and is {state}: {reasons.rstrip('.')}.")


def until_judged(api: Api, alias: dict[str, Any], version: str) -> dict[str, Any]:
    """The task's `alias` once the canary has ended, or is held for people to judge; its state meanwhile, live.

    Raises Unusable where the gateway, of another release, does not say how the canary is.
    """
    on_terminal = api.out.stderr.is_terminal and not api.out.json_only
    last, told_at = ("", ""), -PIPE_SECONDS
    screen = Live(console=api.out.stderr, auto_refresh=False, transient=True) if on_terminal else nullcontext()
    with screen as live, explain_interrupt(api.out, f"The canary {version} goes on", f"adapters show {alias['task']}"):
        while True:
            canary = alias.get("canary", {})
            if canary is not None and CANARY_FIELDS - canary.keys():
                look = f"apprentice adapters show {alias['task']}"
                raise Unusable(f"{version} is a canary, but this gateway does not say how it is judged: see `{look}`.")
            if canary is None or canary["version"] != version or canary["verdict"] == "hold":
                return alias
            if live is not None:
                parts = [Text(line) for line in describe_canary(alias)]
                columns, rows = make_evidence_table(canary["evidence"])
                live.update(
                    Group(*parts, frame_table(columns, rows), Text("Ctrl-C only ends the watching.")), refresh=True
                )
            else:
                now = (f"{canary['share']} {canary['verdict']}", canary["because"])
                if now[0] != last[0] or (now != last and time.monotonic() - told_at >= PIPE_SECONDS):
                    api.out.note(" ".join(describe_canary(alias)))
                    last, told_at = now, time.monotonic()
            wait(CANARY_POLL_SECONDS)
            alias = api.get(f"/aliases/{quote(alias['task'], safe='')}")


def describe_canary(alias: dict[str, Any]) -> list[str]:
    """Sentences about a running canary."""
    canary = alias["canary"]
    begun = f"since {format_age(canary['started_at'])}, by {canary['by']}"
    lines = [f"Canary: {canary['version']} has {share(canary['share'])} of {alias['task']}, {begun}."]
    if canary["plan"] is None:
        return [*lines, "It has no plan: promote or rollback ends it."]
    verdict = VERDICTS.get(canary["verdict"], canary["verdict"])
    return [*lines, f"Verdict: {verdict}. {canary['because']}".strip()]


def make_evidence_table(evidence: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The evidence of a verdict, a row for each signal: e-values, each beside the threshold."""
    columns = ("signal", "pairs", "canary minus active", "shown worse", "shown no worse", "needed")
    return columns, [_signal_row(name, signal) for name, signal in (evidence.get("signals") or {}).items()]


def _signal_row(name: str, signal: dict[str, Any]) -> list[str]:
    mean = signal["mean_difference"]
    if name == "latency":
        slower = signal.get("share_slower")
        difference = "-" if slower is None else f"{100 * slower:.0f} % over {signal['ratio']:g} times as long"
    else:
        difference = "-" if mean is None else f"{100 * mean:+.1f} points"
    row = [name, signal["pairs"], difference, _test(signal["harm"]), _test(signal["no_worse"]), signal["required"]]
    return [make_readable(cell) for cell in row]


def _test(test: dict[str, Any]) -> str:
    if test["threshold"] is None:
        return "not looked at"
    answer = f"e {format_evidence(test['e_value'])} of {format_evidence(test['threshold'])}"
    return f"yes, {answer}" if test["shown"] else answer


def list_evidence(evidence: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All parts of a JSON value, a row each, named by their place in it."""
    if isinstance(evidence, dict):
        for key, value in evidence.items():
            yield from list_evidence(value, f"{name} {key}".strip())
    elif isinstance(evidence, list) and any(isinstance(item, dict | list) for item in evidence):
        for at, value in enumerate(evidence, 1):
            yield from list_evidence(value, f"{name} {at}".strip())
    else:
        value = ", ".join(map(make_readable, evidence)) if isinstance(evidence, list) else make_readable(evidence)
        if isinstance(evidence, int | float) and evidence >= TIMES_FROM and any(map(TIME_NAME.fullmatch, name.split())):
            value = format_time(evidence)
        yield name.replace("_", " "), value or "-"
