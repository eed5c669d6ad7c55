"""The verdicts and responses that follow from the judgements of a task's versions. Pure.

`respond` moves a task's quality; admins overrule it by `pin`, `release` and `undo`. Each change is an Action with its
evidence and the state before it. The error rates of verdicts are those of the signals (rising_errors.py). Phases of
versions move by `phases.next_phase`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from monitoring.quality.phases import Phase, Pinned, Released, Verdict, next_phase
from monitoring.quality.verdicts.actions import AGAIN_SECONDS, Noting, add_actions
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import (
    ACTIONS_MAX,
    Action,
    ActionKind,
    Judgement,
    Pin,
    TaskQuality,
    Ticket,
    VersionQuality,
)
from monitoring.quality.verdicts.shares import (
    EVIDENCE_SHARE,
    Lines,
    Roles,
    describe_share,
    forget_pause,
    is_evidence_needed,
    move_share,
)
from monitoring.quality.verdicts.verdict import apply_conclusion, explain_degraded, find_verdict, list_alarmed

SAVING_HYSTERESIS = 0.8
"""Shadows over their cost limit are drawn again once they cost less than this part of it."""
NOTED_AGAIN = 1.05
"""A ticket's cost is noted again once it has grown by this factor: each note goes to all gateways."""
SHARE_MOVED_MIN = 0.2
"""The least relative change of a share of reviews that sets it again: each setting goes to all gateways."""
MOVES = ("shift", "recover")
"""Actions that move a version's share. Undoing a shift undoes all later ones too."""
AWAY = frozenset({"shift", "pause_canary", "roll_back"})
"""Actions that take requests from a version."""
OF_VERSIONS = AWAY | {"retrain"}
"""Actions about one version. An undone action is not repeated before that version is healthy."""
UNDOABLE = frozenset({"shadow", "reviews", "widen"}) | OF_VERSIONS


class ResponseError(Exception):
    """An admin's request that can't be carried out. The message says why, and what to do."""


def respond(
    task: TaskQuality,
    judgements: Mapping[str, Judgement],
    roles: Roles,
    plan: MonitorPlan,
    now: float,
    review_shares: tuple[float, float] = (0.0, 0.0),
) -> tuple[TaskQuality, list[Action]]:
    """The task's quality after these judgements, and the actions to carry out, in order. `now` is in Unix seconds.

    `review_shares` are the probabilities of a review by the weekly budgets: the usual one, and the one while a version
    is suspect. A second call with the same judgements and time does nothing more.
    """
    noting = Noting(now, task.actions)
    may = _may(task, plan)
    versions = {name: quality for name, quality in task.versions.items() if not roles.there or name in roles.there}
    for name, judgement in sorted(judgements.items()):
        quality = _released(noting, name, versions.get(name, VersionQuality(since=now)))
        versions[name] = _with_verdict(noting, name, quality, judgement, plan)
    for name, judgement in sorted(judgements.items()):  # after all verdicts: one version's arm is another version
        versions[name] = move_share(noting, name, versions[name], judgement, Lines(versions, roles, plan, may))
    watched = [name for name in (roles.active, roles.canary) if name in versions]
    after = replace(task, versions=versions)
    after = _with_ticket(noting, after, watched, judgements, plan)
    after = _with_levers(noting, after, watched, judgements, plan, review_shares)
    return add_actions(after, noting.actions), noting.actions


def pin(task: TaskQuality, version: str, new_pin: Pin, now: float) -> tuple[TaskQuality, Action]:
    """The task's quality after an admin has pinned a version's verdict, or held it. Raises ResponseError."""
    quality = _quality_of(task, version)
    if new_pin.until is not None and new_pin.until <= now:
        raise ResponseError("The pin would be over already: give a time to come.")
    noting = Noting(now)
    if new_pin.verdict is None:
        after = replace(_unpinned(quality, now), pin=new_pin)
    else:
        after = _pinned(quality, new_pin, next_phase(quality.phase, Pinned(new_pin.verdict)), now)
    if new_pin.verdict == "healthy":
        after = replace(after, undone=())
    if new_pin.verdict in ("healthy", "suspect"):
        after = replace(after, kept=1.0, to=None, to_version=None, stepped_at=now)
    noting.note("pin", version, new_pin.reason, _describe(quality), _describe(after), by=new_pin.by)
    return _with(task, version, after, noting), noting.actions[0]


def release(task: TaskQuality, version: str, by: str, now: float, reason: str = "") -> tuple[TaskQuality, Action]:
    """The task's quality after an admin has let the monitor judge a version again.

    Raises ResponseError if it is not pinned.
    """
    quality = _quality_of(task, version)
    if quality.pin is None:
        raise ResponseError(f"{version} is neither pinned nor held: there is nothing to release.")
    after = _unpinned(quality, now)
    noting = Noting(now)
    text = _with_reason(f"{by} lets the monitor judge it again.", reason)
    noting.note("release", version, text, _describe(quality), _describe(after), by=by)
    return _with(task, version, after, noting), noting.actions[0]


def undo(task: TaskQuality, action_id: str, by: str, now: float, reason: str = "") -> tuple[TaskQuality, Action]:
    """The task's quality without one of its actions, and the action of undoing. The latter's `after` says what must be
    put back elsewhere (an alias, a request to train). Raises ResponseError."""
    done = next((action for action in task.actions if action.id == action_id), None)
    if done is None:
        raise ResponseError(f"There is no action {action_id[:80]!r} among the newest {ACTIONS_MAX} of this task.")
    if (why := _refusal(task, done)) is not None:
        raise ResponseError(why)
    versions, quality = dict(task.versions), task.versions.get(done.version)
    before, later = done.after, _later_moves(task, done) if done.kind == "shift" else []
    if done.kind == "shift" and quality is not None:
        before = describe_share(quality)
        share = {field: done.before[field] for field in ("kept", "to", "to_version") if field in done.before}
        versions[done.version] = replace(quality, **share, stepped_at=now)
    if done.kind == "pause_canary" and quality is not None:
        versions[done.version] = forget_pause(quality)
    levers: dict[str, Any] = {}
    if done.kind in ("shadow", "reviews", "widen"):
        field = {"shadow": "shadow_share", "reviews": "review_share", "widen": "deferral_factor"}[done.kind]
        levers = {field: done.before[field]} if field in done.before else {}
    marked = [
        replace(action, undone_at=now, undone_by=by) if action.id in {action_id, *later} else action
        for action in task.actions
    ]
    of_task = task.undone
    if done.kind not in OF_VERSIONS:
        of_task = tuple(dict.fromkeys((*of_task, done.kind)))
    elif (moved := versions.get(done.version)) is not None:
        kinds = tuple(dict.fromkeys((*moved.undone, done.kind)))
        versions[done.version] = replace(moved, undone=kinds)
    after = replace(task, versions=versions, actions=marked, undone=of_task, **levers)
    noting = Noting(now)
    with_later = f" and what was done to the share since ({', '.join(later)})" if later else ""
    text = _with_reason(f"{by} undid {done.kind} ({action_id}){with_later}.", reason)
    evidence = {"undone": done.kind, "action": action_id}
    evidence |= {"failed": done.failed} if done.failed is not None else {}
    noting.note("undo", done.version, text, before, done.before, by=by, evidence=evidence)
    return add_actions(after, noting.actions), noting.actions[0]


def _with_reason(text: str, reason: str) -> str:
    return f"{text} {reason}" if reason else text


def is_asked_again(
    task: TaskQuality, failed: Action, judgements: Mapping[str, Judgement], roles: Roles, plan: MonitorPlan, now: float
) -> bool:
    """Return whether a failed action still follows from the judgements, so that it is repeated."""
    at = max(now, failed.at + AGAIN_SECONDS)
    return any(action.id == failed.id for action in respond(task, judgements, roles, plan, at)[1])


def find_last_move(task: TaskQuality, version: str) -> Action | None:
    """The newest action that took requests from a version and can be undone; None without one."""
    moves = (action for action in reversed(task.actions) if action.version == version and action.kind in AWAY)
    return next((action for action in moves if _refusal(task, action) is None), None)


def _refusal(task: TaskQuality, done: Action) -> str | None:
    """The reason why an action can't be undone, with what to do instead; None if it can."""
    if done.undone_at is not None:
        return f"It was undone already, by {done.undone_by}."
    pinning = f"`apprentice tasks pin {done.version.partition('@')[0]} {done.version} --reason TEXT`"
    if done.kind == "recover":
        return (
            "A share that was given back is not taken away again by undoing that: hold the version as it is "
            f"({pinning}), or say that it is degraded (the same with `--verdict degraded`)."
        )
    if done.kind not in UNDOABLE:
        return f"An action of the kind {done.kind} can't be undone: pin the version's verdict instead."
    if done.kind in ("shift", "pause_canary") and _has_come_back(task, done):
        return (
            f"{done.version} has as much of its share again as before that: there is nothing to undo. To have nothing "
            f"more done about it, hold it ({pinning})."
        )
    return None


def _has_come_back(task: TaskQuality, done: Action) -> bool:
    """Return whether a version has since got back the requests that a shift or a pause took."""
    if done.kind == "pause_canary":
        after = task.actions[task.actions.index(done) + 1 :]
        back = (
            action
            for action in after
            if action.version == done.version and action.kind == "recover" and action.failed is None
        )
        return any("share" in action.after for action in back)
    quality = task.versions.get(done.version)
    if quality is None or quality.to is None:
        return True
    share = done.before.get("kept", 1.0)
    return quality.kept > share or (quality.kept == share and quality.to == done.before.get("to"))


def _later_moves(task: TaskQuality, done: Action) -> list[str]:
    """The later moves of the version's share that were not undone."""
    after = task.actions[task.actions.index(done) + 1 :]
    return [
        action.id
        for action in after
        if action.version == done.version and action.kind in MOVES and action.undone_at is None
    ]


# ---- verdicts --------------------------------------------------------------------------------------


def _with_verdict(
    noting: Noting, name: str, quality: VersionQuality, judged: Judgement, plan: MonitorPlan
) -> VersionQuality:
    """The version with the verdict that follows. A verdict that an admin has pinned stays."""
    if quality.phase.pinned == "degraded":
        return replace(quality, alarmed=list_alarmed(quality, judged))
    if quality.phase.pinned is not None:
        return quality
    conclusion = find_verdict(quality, judged, plan, noting.now)
    after = apply_conclusion(quality, conclusion, judged, noting.now)
    evidence = {"signals": [msgspec.to_builtins(report) for report in conclusion.reports], "labels": judged.labels}
    moved = {"verdict": quality.verdict}, {"verdict": conclusion.verdict}
    if conclusion.verdict == quality.verdict:
        if conclusion.verdict != "degraded" or quality.evidence or not conclusion.reports:
            return after
        because = explain_degraded(conclusion.reports)  # evidence of labels replaces an admin's reason
        noting.note("verdict", name, because, *moved, evidence=evidence)
        return replace(after, because=because, evidence=evidence)
    noting.note("verdict", name, conclusion.because, *moved, evidence=evidence)
    return replace(after, evidence=evidence, done=() if conclusion.verdict == "healthy" else quality.done)


# ---- tickets and shares -----------------------------------------------------------------------------


def _with_ticket(
    noting: Noting, task: TaskQuality, watched: list[str], judgements: Mapping[str, Judgement], plan: MonitorPlan
) -> TaskQuality:
    """The task with its ticket. A suspicion opens one, which limits its cost. It closes once all versions are
    healthy."""
    worse = [name for name in watched if task.versions[name].verdict != "healthy"]
    ticket = task.ticket
    if not worse:
        if ticket is not None and ticket.closed_at is None:
            ticket = replace(ticket, closed_at=noting.now)
        return replace(task, ticket=ticket, undone=())
    if ticket is None or ticket.closed_at is not None:
        first = task.versions[worse[0]]
        ticket = Ticket(
            id=f"{int(noting.now * 1000):x}",
            version=worse[0],
            opened_at=noting.now,
            because=first.because,
            shadow_usd_max=plan.shadow_usd_per_ticket,
            shadow_usd_before=math.fsum(judgement.shadow_usd for judgement in judgements.values()),
            usd_before={name: judgement.shadow_usd for name, judgement in judgements.items()},
            shadows_before={name: judgement.shadows for name, judgement in judgements.items()},
        )
    else:
        ticket = _spent(ticket, judgements)
    return replace(task, ticket=ticket)


def _with_levers(
    noting: Noting,
    task: TaskQuality,
    watched: list[str],
    judgements: Mapping[str, Judgement],
    plan: MonitorPlan,
    review_shares: tuple[float, float],
) -> TaskQuality:
    """The shares of shadows and reviews, and the deferral, that follow from the verdicts.

    Only raising one of them is a response to a verdict, and noted. The usual value, and the raised one, follow from the
    settings and the traffic.
    """
    worse = task.looked_into(watched)
    suspect = bool(worse) and all(task.versions[name].verdict == "suspect" for name in worse)
    may = _may(task, plan) if worse else frozenset()
    usual = _shadow_share(task, judgements, plan, plan.shadow_share)
    shadow = _shadow_share(task, judgements, plan, _raised_shadow_share(task, worse, judgements, plan, may))
    review = review_shares[1] if "reviews" in may else review_shares[0]
    deferral = plan.deferral_factor_suspect if suspect and "widen" in may else 1.0
    levers: list[tuple[ActionKind, str, float, float]] = [
        ("shadow", "shadow_share", usual, shadow),
        ("reviews", "review_share", review_shares[0], review),
        ("widen", "deferral_factor", 1.0, deferral),
    ]
    moved: dict[str, float] = {}
    raised: list[str] = []
    for kind, field, as_ever, value in levers:
        before = getattr(task, field)
        stays = value == before or (field == "review_share" and abs(value - before) < SHARE_MOVED_MIN * value)
        if not stays:
            moved[field] = value
        if value <= as_ever or (stays and value != before and kind not in task.raised):
            continue
        raised.append(kind)
        if value > before and kind not in task.raised:
            noting.note(kind, worse[0], task.versions[worse[0]].because, {field: before}, {field: value})
    if not moved and tuple(raised) == task.raised:
        return task
    return replace(task, **moved, raised=tuple(raised))


def _raised_shadow_share(
    task: TaskQuality, worse: list[str], judgements: Mapping[str, Judgement], plan: MonitorPlan, may: frozenset[str]
) -> float:
    """The share of shadows that these versions need: all requests while evidence about other arms comes first."""
    if "shadow" not in may:
        return plan.shadow_share
    is_first = any(is_evidence_needed(task.versions[name], judgements.get(name)) for name in worse)
    return EVIDENCE_SHARE if is_first and plan.shadow_room_share > 0.0 else plan.shadow_share_suspect


def _shadow_share(task: TaskQuality, judgements: Mapping[str, Judgement], plan: MonitorPlan, raised: float) -> float:
    """The probability of a shadow: `raised` while a ticket has money left, else the usual one.

    All shadows together may cost as much as one ticket plus a share of the saving. If no saving is known, nothing
    limits the usual share.
    """
    ticket = task.ticket
    share = plan.shadow_share
    if raised > share and ticket is not None and ticket.shadow_usd_spent < ticket.shadow_usd_max:
        over = _shadows_asked(ticket, judgements) >= plan.shadow_pairs_per_ticket
        share = share if over else raised
    saving = math.fsum(judgement.saving_usd for judgement in judgements.values())
    spent = math.fsum(judgement.shadow_usd for judgement in judgements.values())
    most = plan.shadow_usd_per_ticket + plan.shadow_saving_share_max * max(0.0, saving)
    if saving != 0.0 and spent > (most if task.shadow_share > 0.0 else SAVING_HYSTERESIS * most):
        return 0.0
    return share


def _spent(ticket: Ticket, judgements: Mapping[str, Judgement]) -> Ticket:
    """The ticket with its cost; the same object if hardly more than noted. Retired versions' noted costs stay."""
    usd = {name: judgement.shadow_usd for name, judgement in judgements.items()}
    spent = ticket.shadow_usd_spent + _since(usd if ticket.usd_before is None else ticket.usd_before, usd)
    shadows = _shadows_asked(ticket, judgements)
    is_more = spent > NOTED_AGAIN * ticket.shadow_usd_spent or shadows > NOTED_AGAIN * ticket.shadows_asked
    if ticket.usd_before is not None and not is_more:
        return ticket
    return replace(
        ticket,
        shadow_usd_spent=spent,
        shadows_asked=shadows,
        usd_before={**(ticket.usd_before or {}), **usd},
        shadows_before={**ticket.shadows_before, **{name: judgement.shadows for name, judgement in judgements.items()}},
    )


def _shadows_asked(ticket: Ticket, judgements: Mapping[str, Judgement]) -> int:
    """The number of shadows since the ticket was opened."""
    now = {name: judgement.shadows for name, judgement in judgements.items()}
    return ticket.shadows_asked + round(_since(ticket.shadows_before, now))


def _since(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """The growth of a number over all versions. If a version counts again from 0, its whole number."""
    more = ((value, value - before.get(name, 0)) for name, value in now.items())
    return math.fsum(value if rise < 0 else rise for value, rise in more)


# ---- small steps -------------------------------------------------------------------------------------


def _may(task: TaskQuality, plan: MonitorPlan) -> frozenset[str]:
    """The responses that the plan and the task allow now; a version may allow fewer."""
    return frozenset(plan.responses) - frozenset(task.undone)


def _released(noting: Noting, name: str, quality: VersionQuality) -> VersionQuality:
    """The version without an expired pin."""
    if quality.pin is None or quality.pin.until is None or quality.pin.until > noting.now:
        return quality
    after = _unpinned(quality, noting.now)
    noting.note("release", name, "The pin is over.", _describe(quality), _describe(after))
    return after


def _pinned(quality: VersionQuality, new_pin: Pin, phase: Phase, now: float) -> VersionQuality:
    """The version in the phase that follows from an admin's verdict."""
    new_pin = replace(new_pin, instead_of=phase.own, alarmed=_own_alarms(quality))
    after = replace(quality, pin=new_pin, quiet_since=None)  # nothing moves it while it is pinned
    if phase.verdict == quality.verdict:
        return after
    after = _with_holding(after, phase.verdict, now, f"{new_pin.by} says so: {new_pin.reason}")
    return replace(after, alarmed=new_pin.alarmed) if phase.own == phase.verdict == "degraded" else after


def _unpinned(quality: VersionQuality, now: float) -> VersionQuality:
    """The version without its pin."""
    pin, phase = quality.pin, quality.phase
    after = replace(quality, pin=None)
    if pin is None or pin.verdict is None or pin.instead_of is None:
        return after
    stands = next_phase(phase, Released()).verdict
    if stands != pin.verdict:
        return _with_holding(after, stands, now, f"The pin as {quality.verdict} is over.")
    if phase.own != stands:
        return after
    if pin.instead_of != phase.own:
        because = f"Labels have spoken against it while it was pinned as {pin.verdict} ({', '.join(quality.alarmed)})."
        return replace(after, because=because)
    is_explained = bool(quality.evidence) or stands == "healthy"
    return after if is_explained else replace(after, because=f"It was {stands} before its pin.")


def _with_holding(quality: VersionQuality, verdict: Verdict, now: float, because: str) -> VersionQuality:
    """The version with another verdict in force, and without the previous one's evidence and actions."""
    since = max(now, quality.since)  # the clock may have been set back
    return replace(
        quality, verdict=verdict, since=since, because=because, evidence={}, done=(), alarmed=(), observed=None
    )


def _own_alarms(quality: VersionQuality) -> tuple[str, ...]:
    """The signals behind the monitor's own degraded verdict, whatever admins have set since."""
    pin = quality.pin
    if pin is None or pin.verdict is None or (quality.verdict == "degraded" and quality.alarmed):
        return quality.alarmed
    return pin.alarmed


def _quality_of(task: TaskQuality, version: str) -> VersionQuality:
    return task.versions.get(version, VersionQuality())


def _with(task: TaskQuality, version: str, after: VersionQuality, noting: Noting) -> TaskQuality:
    whole = replace(task, versions={**task.versions, version: after})
    return add_actions(whole, noting.actions)


def _describe(quality: VersionQuality) -> dict[str, Any]:
    return {"verdict": quality.verdict, "pin": msgspec.to_builtins(quality.pin), **describe_share(quality)}
