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

from monitoring.degradation.verdicts.health import (
    ACTIONS_MAX,
    Action,
    Judgement,
    Pin,
    TaskHealth,
    Ticket,
    VersionHealth,
)
from monitoring.degradation.verdicts.noting import Noting
from monitoring.degradation.verdicts.plan import Plan
from monitoring.degradation.verdicts.shares import Lines, Roles, share_of, with_share
from monitoring.degradation.verdicts.verdict import verdict

SAVING_HYSTERESIS = 0.8
"""Shadows that cost more than they may are drawn again once they cost less than this part of it."""
SHARE_MOVED_MIN = 0.2
"""By how much a share of reviews must move, of itself, to be set anew: each setting is told to all gateways."""
UNDOABLE = frozenset({"shadow", "reviews", "widen", "shift", "recover", "pause_canary", "roll_back", "retrain"})


class ResponseError(Exception):
    """What an admin asks for can't be done; the message says why and what to do."""


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
    noting = Noting(now)
    may = frozenset(plan.responses) - frozenset(health.undone)
    versions = {name: one for name, one in health.versions.items() if not roles.there or name in roles.there}
    for name, judgement in sorted(judgements.items()):
        known = _released(versions.get(name, VersionHealth(since=now)), now)
        known = _with_verdict(noting, name, known, judgement, plan)
        versions[name] = with_share(noting, name, known, judgement, Lines(versions, roles, plan, may))
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
    noting = Noting(now)
    if word.verdict is not None and word.verdict != known.verdict:
        after = msgspec.structs.replace(
            after, verdict=word.verdict, since=now, because=f"{word.by} says so: {word.reason}", evidence={}, done=()
        )
    if word.verdict in ("healthy", "suspect"):
        after = msgspec.structs.replace(after, kept=1.0, to=None, to_version=None, stepped_at=now)
    noting.note("pin", version, word.reason, _told(known), _told(after), by=word.by)
    return _with(health, version, after, noting), noting.actions[0]


def release(health: TaskHealth, version: str, by: str, now: float) -> tuple[TaskHealth, Action]:
    """The health once a version is the monitor's to judge again. Raises ResponseError where it is not pinned."""
    known = _known(health, version)
    if known.pin is None:
        raise ResponseError(f"{version} is neither pinned nor held: there is nothing to release.")
    after = msgspec.structs.replace(known, pin=None)
    noting = Noting(now)
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
        share = {field: done.before[field] for field in ("kept", "to", "to_version") if field in done.before}
        versions[done.version] = msgspec.structs.replace(known, **share, stepped_at=now)
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
    noting = Noting(now)
    text = f"{by} undid {done.kind} ({action_id})."
    evidence = {"undone": done.kind, "action": action_id}
    noting.note("undo", done.version, text, done.after, done.before, by=by, evidence=evidence)
    return _with_actions(moved, noting.actions), noting.actions[0]


# ---- verdicts --------------------------------------------------------------------------------------


def _with_verdict(noting: Noting, name: str, known: VersionHealth, judged: Judgement, plan: Plan) -> VersionHealth:
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


# ---- what is set for the task -----------------------------------------------------------------------


def _with_ticket(
    noting: Noting, health: TaskHealth, watched: list[str], judgements: Mapping[str, Judgement], plan: Plan
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
            pairs_before=_pairs(judgements),
        )
    elif spent - ticket.shadow_usd_before > 1.05 * ticket.shadow_usd_spent:
        ticket = msgspec.structs.replace(ticket, shadow_usd_spent=spent - ticket.shadow_usd_before)
    return msgspec.structs.replace(health, ticket=ticket)


def _with_levers(
    noting: Noting,
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
    suspect = raised and all(health.versions[name].verdict != "degraded" for name in watched)
    may = frozenset(plan.responses) - frozenset(health.undone)
    wanted = {
        "shadow": ("shadow_share", _shadow_share(health, judgements, plan, raised and "shadow" in may)),
        "reviews": ("review_share", review_shares[1] if raised and "reviews" in may else review_shares[0]),
        "widen": ("deferral_factor", plan.deferral_factor_suspect if suspect and "widen" in may else 1.0),
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
    """The probability of a shadow: raised while a ticket has money for it. All shadows together may cost as much as one
    ticket and a share of the saving; where no saving is known nothing bounds the usual share."""
    ticket = health.ticket
    share = plan.shadow_share
    if raised and ticket is not None and ticket.shadow_usd_spent < ticket.shadow_usd_max:
        over = _pairs(judgements) - ticket.pairs_before >= plan.shadow_pairs_per_ticket
        share = share if over else plan.shadow_share_suspect
    saving = math.fsum(one.saving_usd for one in judgements.values())
    spent = math.fsum(one.shadow_usd for one in judgements.values())
    most = plan.shadow_usd_per_ticket + plan.shadow_saving_share_max * max(0.0, saving)
    if saving != 0.0 and spent > (most if health.shadow_share > 0.0 else SAVING_HYSTERESIS * most):
        return 0.0
    return share


def _pairs(judgements: Mapping[str, Judgement]) -> int:
    """How many of the task's requests both arms have answered so far, about."""
    return sum(max([arm.pairs for arm in one.arms], default=0) for one in judgements.values())


def _is_held(known: VersionHealth) -> bool:
    return known.pin is not None and known.pin.verdict is None


# ---- small steps -------------------------------------------------------------------------------------


def _released(known: VersionHealth, now: float) -> VersionHealth:
    """The version without a pin that is over."""
    over = known.pin is not None and known.pin.until is not None and known.pin.until <= now
    return msgspec.structs.replace(known, pin=None) if over else known


def _known(health: TaskHealth, version: str) -> VersionHealth:
    return health.versions.get(version, VersionHealth())


def _with(health: TaskHealth, version: str, after: VersionHealth, noting: Noting) -> TaskHealth:
    moved = msgspec.structs.replace(health, versions={**health.versions, version: after})
    return _with_actions(moved, noting.actions)


def _with_actions(health: TaskHealth, actions: list[Action]) -> TaskHealth:
    if not actions:
        return health
    return msgspec.structs.replace(health, actions=[*health.actions, *actions][-ACTIONS_MAX:])


def _told(known: VersionHealth) -> dict[str, Any]:
    return {"verdict": known.verdict, "pin": msgspec.to_builtins(known.pin), **share_of(known)}
