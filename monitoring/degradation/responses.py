"""What follows from the judgements of a task's versions: verdicts, and what is done about them. Pure.

One function moves a task's health, `respond`; admins overrule it by `pin`, `release` and `undo`. Whatever is done is an
Action with its evidence and with what was there before. The verdicts' error rates are those of the streams (slip.py);
here is only hysteresis: a version gets healthy by other evidence than that whose absence would leave it degraded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.degradation.health import (
    ACTIONS_MAX,
    Action,
    ActionKind,
    ArmReport,
    Judgement,
    Pin,
    TaskHealth,
    Ticket,
    VersionHealth,
)
from monitoring.degradation.plan import Plan
from monitoring.degradation.verdicts import verdict

SAVING_HYSTERESIS = 0.8
"""Shadows that cost more than they may are drawn again once they cost less than this part of it."""
SHARE_MOVED_MIN = 0.2
"""By how much a share of reviews must move, of itself, to be set anew: each setting is told to all gateways."""
UNDOABLE = frozenset({"shadow", "reviews", "widen", "shift", "recover", "pause_canary", "roll_back", "retrain"})


class ResponseError(Exception):
    """What an admin asks for can't be done; the message says why and what to do."""


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's versions are now, by its alias; None where there is none. `general`: it has an exit pool."""

    active: str | None = None
    standby: str | None = None
    canary: str | None = None
    general: bool = False


class _Noting:
    """Collects what is done in one step, and gives each its id."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.actions: list[Action] = []

    def note(
        self,
        kind: ActionKind,
        version: str,
        because: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        **more: Any,
    ) -> None:
        self.actions.append(
            Action(
                id=f"{int(self.now * 1000):x}-{len(self.actions)}",
                at=self.now,
                kind=kind,
                version=version,
                because=because,
                before=dict(before),
                after=dict(after),
                **more,
            )
        )


def respond(
    health: TaskHealth,
    judgements: Mapping[str, Judgement],
    roles: Roles,
    plan: Plan,
    now: float,
    review_shares: tuple[float, float] = (0.0, 0.0),
) -> tuple[TaskHealth, list[Action]]:
    """The task's health after these judgements, and what is to be done, in order. `now` is in Unix seconds.

    `review_shares` are the probabilities of a review that the weekly budgets give: as ever, and while a version is
    suspect. Asked again with the same judgements and time it does nothing more.
    """
    noting = _Noting(now)
    versions = dict(health.versions)
    for name, judgement in sorted(judgements.items()):
        known = _released(versions.get(name, VersionHealth(since=now)), now)
        known = _with_verdict(noting, name, known, judgement, plan)
        versions[name] = _with_share(noting, name, known, judgement, versions, roles, plan, health.undone)
    watched = [name for name in (roles.active, roles.canary) if name in versions]
    moved = msgspec.structs.replace(health, versions=versions)
    moved = _with_ticket(noting, moved, watched, judgements, plan)
    moved = _with_levers(noting, moved, watched, judgements, plan, review_shares)
    return _with_actions(moved, noting.actions), noting.actions


def pin(health: TaskHealth, version: str, word: Pin, now: float) -> tuple[TaskHealth, Action]:
    """The health once an admin has pinned a version's verdict, or held it. Raises ResponseError."""
    known = _known(health, version)
    if word.until is not None and word.until <= now:
        raise ResponseError("The pin would be over already: give a time to come.")
    after = msgspec.structs.replace(known, pin=word)
    noting = _Noting(now)
    if word.verdict is not None and word.verdict != known.verdict:
        after = msgspec.structs.replace(
            after, verdict=word.verdict, since=now, because=f"{word.by} says so: {word.reason}", evidence={}, done=()
        )
    if word.verdict in ("healthy", "suspect"):
        after = msgspec.structs.replace(after, kept=1.0, to=None, stepped_at=now)
    noting.note("pin", version, word.reason, _told(known), _told(after), by=word.by)
    return _with(health, version, after, noting), noting.actions[0]


def release(health: TaskHealth, version: str, by: str, now: float) -> tuple[TaskHealth, Action]:
    """The health once a version is the monitor's to judge again. Raises ResponseError where it is not pinned."""
    known = _known(health, version)
    if known.pin is None:
        raise ResponseError(f"{version} is neither pinned nor held: there is nothing to release.")
    after = msgspec.structs.replace(known, pin=None)
    noting = _Noting(now)
    noting.note("release", version, f"{by} lets the monitor judge it again.", _told(known), _told(after), by=by)
    return _with(health, version, after, noting), noting.actions[0]


def undo(health: TaskHealth, action_id: str, by: str, now: float) -> tuple[TaskHealth, Action]:
    """The health before an action, as far as it was the task's own; and the action of undoing, whose `after` says what
    is to be put back elsewhere (an alias, a request to train). Raises ResponseError."""
    done = next((one for one in health.actions if one.id == action_id), None)
    if done is None:
        raise ResponseError(f"There is no action {action_id[:80]!r} among the newest {ACTIONS_MAX} of this task.")
    if done.undone_at is not None:
        raise ResponseError(f"It was undone already, by {done.undone_by}.")
    if done.kind not in UNDOABLE:
        raise ResponseError(f"An action of the kind {done.kind} can't be undone: pin the version's verdict instead.")
    versions, known = dict(health.versions), health.versions.get(done.version)
    if done.kind in ("shift", "recover") and known is not None:
        versions[done.version] = msgspec.structs.replace(known, kept=1.0, to=None, stepped_at=now)
    levers: dict[str, Any] = {}
    if done.kind in ("shadow", "reviews", "widen"):
        field = {"shadow": "shadow_share", "reviews": "review_share", "widen": "deferral_factor"}[done.kind]
        levers = {field: done.before[field]} if field in done.before else {}
    marked = [
        msgspec.structs.replace(one, undone_at=now, undone_by=by) if one.id == action_id else one
        for one in health.actions
    ]
    kind = "shift" if done.kind == "recover" else done.kind
    undone = health.undone if kind in health.undone else (*health.undone, kind)
    moved = msgspec.structs.replace(health, versions=versions, actions=marked, undone=undone, **levers)
    noting = _Noting(now)
    noting.note("undo", done.version, f"{by} undid {done.kind} ({action_id}).", done.after, done.before, by=by)
    return _with_actions(moved, noting.actions), noting.actions[0]


# ---- verdicts --------------------------------------------------------------------------------------


def _with_verdict(noting: _Noting, name: str, known: VersionHealth, judged: Judgement, plan: Plan) -> VersionHealth:
    """The version with the verdict that follows; one that an admin has pinned keeps it."""
    if known.pin is not None and known.pin.verdict is not None:
        return known
    found = verdict(known, judged, plan, noting.now)
    known = known if found.cleared == known.cleared else msgspec.structs.replace(known, cleared=found.cleared)
    if found.verdict == known.verdict:
        return known
    evidence = {"streams": [msgspec.to_builtins(one) for one in found.streams], "labels": judged.labels}
    after = msgspec.structs.replace(
        known,
        verdict=found.verdict,
        since=noting.now,
        because=found.because,
        evidence=evidence,
        done=() if found.verdict == "healthy" else known.done,
        labels=judged.labels,
    )
    before = {"verdict": known.verdict}
    noting.note("verdict", name, found.because, before, {"verdict": found.verdict}, evidence=evidence)
    return after


# ---- shares ----------------------------------------------------------------------------------------


def _with_share(
    noting: _Noting,
    name: str,
    known: VersionHealth,
    judged: Judgement,
    versions: Mapping[str, VersionHealth],
    roles: Roles,
    plan: Plan,
    undone: tuple[str, ...],
) -> VersionHealth:
    """The version with what follows from its verdict for its requests; nothing is done about one that is held."""
    if name not in (roles.active, roles.canary):
        return known if known.to is None else msgspec.structs.replace(known, kept=1.0, to=None)
    if known.pin is not None and known.pin.verdict is None:
        return known
    may = [one for one in plan.responses if one not in undone]
    if known.verdict != "degraded":
        return _step_back(noting, name, known, plan)
    if "retrain" in may:
        known = _once(noting, "retrain", name, known, known.because, {}, {})
    if name == roles.canary:
        if "pause_canary" not in may:
            return known
        return _once(noting, "pause_canary", name, known, known.because, {}, {"share": 0.0})
    return _step_away(noting, name, known, _better_arm(judged, versions, roles), roles, plan, may)


def _better_arm(judged: Judgement, versions: Mapping[str, VersionHealth], roles: Roles) -> ArmReport | None:
    """The arm whose advantage over this version, on this task, is positive with confidence; the surest one."""
    found = [one for one in judged.arms if one.advantage_low is not None and one.advantage_low > 0.0]
    standby = versions.get(roles.standby or "", VersionHealth())
    able = [
        one
        for one in found
        if (one.arm == "general" and roles.general)
        or (one.arm == "standby" and roles.standby is not None and standby.verdict == "healthy")
    ]
    return max(able, key=lambda one: one.advantage_low or 0.0, default=None)


def _step_away(
    noting: _Noting,
    name: str,
    known: VersionHealth,
    better: ArmReport | None,
    roles: Roles,
    plan: Plan,
    may: list[Any],
) -> VersionHealth:
    """One step of a degraded version's share to the better arm; held where none is known to be better."""
    if better is None or better.arm == "version":
        if known.to is not None:
            return known  # what was shifted stays where it was known to be better
        text = f"{known.because} No other arm is known to be better on this task: it goes on, and people are told."
        return _once(noting, "hold_and_alert", name, known, text, {}, {})
    evidence = {"arm": msgspec.to_builtins(better), **known.evidence}
    lead = f"{_arm_words(better)} is better by at least {100 * (better.advantage_low or 0.0):.1f} points"
    if "shift" in may and plan.enforced:
        kept = _next_down(known.kept, plan)
        first = known.to != better.arm
        if not first and (kept >= known.kept or noting.now - known.stepped_at < plan.step_seconds):
            return known
        kept = min(kept, known.kept) if not first or known.to is None else known.kept
        after = msgspec.structs.replace(known, kept=kept, to=better.arm, stepped_at=noting.now)
        noting.note("shift", name, f"{lead}.", _share(known), _share(after), evidence=evidence)
        return after
    if "roll_back" in may and better.arm == "standby":
        text = f"{lead}, and shares are not shifted by the rung degraded."
        return _once(noting, "roll_back", name, known, text, {"leading": name}, {"leading": roles.standby})
    text = f"{lead}, but the task's settings let nothing be shifted."
    return _once(noting, "hold_and_alert", name, known, text, {}, {})


def _once(
    noting: _Noting,
    kind: ActionKind,
    name: str,
    known: VersionHealth,
    because: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> VersionHealth:
    """The version after what is done but once while its verdict lasts."""
    if kind in known.done:
        return known
    noting.note(kind, name, because, before, after, evidence=known.evidence)
    return msgspec.structs.replace(known, done=(*known.done, kind))


def _step_back(noting: _Noting, name: str, known: VersionHealth, plan: Plan) -> VersionHealth:
    """One step of a version's share back to it, once it is no longer degraded."""
    if known.to is None or noting.now - known.stepped_at < plan.step_seconds:
        return known
    kept = _next_up(known.kept, plan)
    after = msgspec.structs.replace(known, kept=kept, to=None if kept >= 1.0 else known.to, stepped_at=noting.now)
    noting.note("recover", name, known.because, _share(known), _share(after), evidence=known.evidence)
    return after


def _next_down(kept: float, plan: Plan) -> float:
    return max([step for step in (*plan.kept_steps, plan.explored_share) if step < kept], default=kept)


def _next_up(kept: float, plan: Plan) -> float:
    return min([step for step in (*plan.kept_steps, 1.0) if step > kept], default=1.0)


def _arm_words(arm: ArmReport) -> str:
    return "The standby version" if arm.arm == "standby" else "General"


# ---- what is set for the task -----------------------------------------------------------------------


def _with_ticket(
    noting: _Noting, health: TaskHealth, watched: list[str], judgements: Mapping[str, Judgement], plan: Plan
) -> TaskHealth:
    """A suspicion opens a ticket, which bounds what looking into it may cost; it is closed once all is well."""
    worse = [name for name in watched if health.versions[name].verdict != "healthy"]
    ticket, spent = health.ticket, math.fsum(one.shadow_usd for one in judgements.values())
    if not worse:
        if ticket is not None and ticket.closed_at is None:
            ticket = msgspec.structs.replace(ticket, closed_at=noting.now)
        return msgspec.structs.replace(health, ticket=ticket, undone=())
    if ticket is None or ticket.closed_at is not None:
        first = health.versions[worse[0]]
        ticket = Ticket(
            id=f"{int(noting.now * 1000):x}",
            version=worse[0],
            opened_at=noting.now,
            because=first.because,
            shadow_usd_max=plan.shadow_usd_per_ticket,
            shadow_usd_before=spent,
        )
    elif spent - ticket.shadow_usd_before > 1.05 * ticket.shadow_usd_spent:
        over = max(0.0, spent - ticket.shadow_usd_before)
        ticket = msgspec.structs.replace(ticket, shadow_usd_spent=over)
    return msgspec.structs.replace(health, ticket=ticket)


def _with_levers(
    noting: _Noting,
    health: TaskHealth,
    watched: list[str],
    judgements: Mapping[str, Judgement],
    plan: Plan,
    review_shares: tuple[float, float],
) -> TaskHealth:
    """The shares of shadows and reviews, and the deferral, that follow from the verdicts."""
    worse = next((name for name in watched if health.versions[name].verdict != "healthy"), None)
    held = worse is not None and _is_held(health.versions[worse])
    raised = worse is not None and not held
    may = [one for one in plan.responses if one not in health.undone]
    wanted = {
        "shadow": ("shadow_share", _shadow_share(health, judgements, plan, raised and "shadow" in may)),
        "reviews": ("review_share", review_shares[1] if raised and "reviews" in may else review_shares[0]),
        "widen": ("deferral_factor", plan.deferral_factor_suspect if raised and "widen" in may else 1.0),
    }
    moved: dict[str, float] = {}
    for kind, (field, value) in wanted.items():
        before = getattr(health, field)
        if value == before or (field == "review_share" and value and abs(value - before) < SHARE_MOVED_MIN * value):
            continue
        moved[field] = value
        if worse is not None and raised and value > before:
            because = health.versions[worse].because
            noting.note(kind, worse, because, {field: before}, {field: value})  # type: ignore[arg-type]
    return msgspec.structs.replace(health, **moved) if moved else health


def _shadow_share(health: TaskHealth, judgements: Mapping[str, Judgement], plan: Plan, raised: bool) -> float:
    """The probability of a shadow: raised while a ticket has money for it, and within the share of the saving."""
    ticket = health.ticket
    share = plan.shadow_share
    if raised and ticket is not None and ticket.shadow_usd_spent < ticket.shadow_usd_max:
        share = plan.shadow_share_suspect
    saving = math.fsum(one.saving_usd for one in judgements.values())
    spent = math.fsum(one.shadow_usd for one in judgements.values())
    most = plan.shadow_saving_share_max * saving
    if saving > 0.0 and spent > (most if health.shadow_share > 0.0 else SAVING_HYSTERESIS * most):
        return 0.0
    return share


def _is_held(known: VersionHealth) -> bool:
    return known.pin is not None and known.pin.verdict is None


# ---- small steps -------------------------------------------------------------------------------------


def _released(known: VersionHealth, now: float) -> VersionHealth:
    """The version without a pin that is over."""
    over = known.pin is not None and known.pin.until is not None and known.pin.until <= now
    return msgspec.structs.replace(known, pin=None) if over else known


def _known(health: TaskHealth, version: str) -> VersionHealth:
    return health.versions.get(version, VersionHealth())


def _with(health: TaskHealth, version: str, after: VersionHealth, noting: _Noting) -> TaskHealth:
    moved = msgspec.structs.replace(health, versions={**health.versions, version: after})
    return _with_actions(moved, noting.actions)


def _with_actions(health: TaskHealth, actions: list[Action]) -> TaskHealth:
    if not actions:
        return health
    return msgspec.structs.replace(health, actions=[*health.actions, *actions][-ACTIONS_MAX:])


def _told(known: VersionHealth) -> dict[str, Any]:
    return {"verdict": known.verdict, "pin": msgspec.to_builtins(known.pin), **_share(known)}


def _share(known: VersionHealth) -> dict[str, Any]:
    return {"kept": known.kept, "to": known.to}
