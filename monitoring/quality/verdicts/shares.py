"""What a verdict means for a version's requests: steps of its share to the arm that is shown to be better, and back.

An arm is taken only if the lower bound of its advantage on this task is positive, and kept as long as it can answer and
is not shown to be worse. Where none is, the version goes on, and people are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from monitoring.quality.verdicts.health import ArmReport, Judgement, VersionHealth
from monitoring.quality.verdicts.noting import Noting
from monitoring.quality.verdicts.plan import Plan


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's versions are now, by its alias; None where there is none. `canary_share` is that of its requests
    which its canary gets; `general`: it has a fallback pool. `there` are all versions that are not retired."""

    active: str | None = None
    previous_version: str | None = None
    canary: str | None = None
    canary_share: float = 0.0
    general: bool = False
    there: tuple[str, ...] = ()


class Lines(NamedTuple):
    """What a share goes by: the task's versions as they stand, their roles, its plan, and what may be done now."""

    versions: Mapping[str, VersionHealth]
    roles: Roles
    plan: Plan
    may: frozenset[str]


def with_share(noting: Noting, name: str, known: VersionHealth, judged: Judgement, lines: Lines) -> VersionHealth:
    """The version with what follows from its verdict for its requests; nothing is done about one that is held."""
    if name != lines.roles.active:
        known = _given_back(noting, name, known, "It leads its task no more.")
    if name != lines.roles.canary or lines.roles.canary_share not in (0.0, known.paused_share):
        known = unpaused(known)
    if name not in (lines.roles.active, lines.roles.canary):
        return known
    if known.pin is not None and known.pin.verdict is None:
        return known
    lines = lines._replace(may=lines.may - _undone(known))
    if known.verdict != "degraded":
        known = _resumed(noting, name, known, lines.roles)
        return _step_back(noting, name, known, lines.plan)
    if "retrain" in lines.may:
        known = noting.once("retrain", name, known, known.because, {}, {})
    if name == lines.roles.canary:
        return _paused(noting, name, known, lines)
    return _step_away(noting, name, known, judged, lines)


def _undone(known: VersionHealth) -> frozenset[str]:
    """What is not done to the version: who has undone a shift wants no roll back either, which moves all requests."""
    return frozenset(known.undone) | (frozenset({"roll_back"}) if "shift" in known.undone else frozenset())


def share_of(known: VersionHealth) -> dict[str, Any]:
    """What a version keeps, as actions note it."""
    return {"kept": known.kept, "to": known.to, "to_version": known.to_version}


def _paused(noting: Noting, name: str, known: VersionHealth, lines: Lines) -> VersionHealth:
    """A degraded canary, which gets no requests any more. Done once: an admin may give it a share again."""
    share = lines.roles.canary_share
    if "pause_canary" not in lines.may or "pause_canary" in known.done or share == 0.0:
        return known
    known = noting.once("pause_canary", name, known, known.because, {"share": share}, {"share": 0.0})
    return msgspec.structs.replace(known, paused_share=share) if "pause_canary" in known.done else known


def _resumed(noting: Noting, name: str, known: VersionHealth, roles: Roles) -> VersionHealth:
    """A canary that is no longer degraded, with the share that it had before the monitor paused it: that is known until
    the canary has it, and asked for again where it could not be given back."""
    if known.paused_share is None:
        return known
    if roles.canary_share != 0.0:
        return unpaused(known)
    return noting.once("recover", name, known, known.because, {"share": 0.0}, {"share": known.paused_share})


def unpaused(known: VersionHealth) -> VersionHealth:
    """The version without a share that is to be given back."""
    if known.paused_share is None:
        return known
    done = tuple(kind for kind in known.done if kind != "recover")
    return msgspec.structs.replace(known, paused_share=None, done=done)


def _step_away(noting: Noting, name: str, known: VersionHealth, judged: Judgement, lines: Lines) -> VersionHealth:
    """One step of a degraded version's share to the better arm; held where none is known to be better."""
    present_previous_version = (None, lines.roles.previous_version)  # a judgement may be older than the roles
    able = [arm for arm in judged.arms if _is_able(arm.arm, lines) and arm.version in present_previous_version]
    if known.to is not None and _is_able(known.to, lines) and _is_same(known, known.to, lines.roles):
        present = next((arm for arm in able if arm.arm == known.to), None)
        if present is None or present.advantage_high is None or present.advantage_high >= 0.0:
            if present is None or not _is_better(present):
                return known  # what was shifted stays where it was shown to be better, and goes no further
            return _to(noting, name, known, present, lines)
    better = max(_of_use(able, lines), key=lambda arm: arm.advantage_low or 0.0, default=None)
    if better is not None:
        return _to(noting, name, known, better, lines)
    known = _taken_from_arm(noting, name, known)
    text = f"{known.because} No other arm is known to be better on this task: it goes on, and people are told."
    return noting.once("hold_and_alert", name, known, text, {}, {})


def _to(noting: Noting, name: str, known: VersionHealth, better: ArmReport, lines: Lines) -> VersionHealth:
    """A step to this arm, as far as the task's settings and its admins let it."""
    plan = lines.plan
    lead = f"{_words(better.arm)} is better by at least {100 * (better.advantage_low or 0.0):.1f} points"
    if "shift" in plan.responses and plan.enforced:
        if "shift" in lines.may:
            return _shifted(noting, name, known, better, lines, f"{lead}.")
        why = "an admin has undone the shift"
    elif "roll_back" in lines.may and better.arm == "previous_version":
        text = f"{lead}, and shares are not shifted by the check degraded."
        return noting.once("roll_back", name, known, text, {"leading": name}, {"leading": lines.roles.previous_version})
    elif "roll_back" in plan.responses and better.arm == "previous_version":
        why = "an admin has undone the way back to it"
    else:
        why = "the task's settings let nothing be shifted"
    if known.to == better.arm and _is_same(known, known.to, lines.roles):
        return known
    known = _taken_from_arm(noting, name, known)
    return noting.once("hold_and_alert", name, known, f"{lead}, but {why}.", {}, {})


def _shifted(
    noting: Noting, name: str, known: VersionHealth, better: ArmReport, lines: Lines, because: str
) -> VersionHealth:
    """The next step of the share to this arm, once it is time."""
    assert better.arm != "version", "it is no other arm"
    plan, roles = lines.plan, lines.roles
    another = known.to is not None and not (better.arm == known.to and _is_same(known, known.to, roles))
    kept = known.kept if another else _next_down(known.kept, plan)
    waits = known.to is not None and noting.now - known.stepped_at < plan.step_seconds
    if waits or (kept >= known.kept and not another):
        return known
    to_version = roles.previous_version if better.arm == "previous_version" else None
    after = msgspec.structs.replace(known, kept=kept, to=better.arm, to_version=to_version, stepped_at=noting.now)
    evidence = {"arm": msgspec.to_builtins(better), **known.evidence}
    noting.note("shift", name, because, share_of(known), share_of(after), evidence=evidence)
    return after


def _step_back(noting: Noting, name: str, known: VersionHealth, plan: Plan) -> VersionHealth:
    """One step of a version's share back to it, once it is no longer degraded."""
    if known.to is None or noting.now - known.stepped_at < plan.step_seconds:
        return known
    kept = min([step for step in (*plan.kept_steps, 1.0) if step > known.kept], default=1.0)
    if kept >= 1.0:
        return _given_back(noting, name, known, known.because)
    after = msgspec.structs.replace(known, kept=kept, stepped_at=noting.now)
    noting.note("recover", name, known.because, share_of(known), share_of(after), evidence=known.evidence)
    return after


def _given_back(noting: Noting, name: str, known: VersionHealth, because: str) -> VersionHealth:
    """The version with all of its requests."""
    if known.to is None:
        return known
    after = msgspec.structs.replace(known, kept=1.0, to=None, to_version=None, stepped_at=noting.now)
    noting.note("recover", name, because, share_of(known), share_of(after), evidence=known.evidence)
    return after


def _taken_from_arm(noting: Noting, name: str, known: VersionHealth) -> VersionHealth:
    """The version with all of its requests, where another arm had some and may not go on with them."""
    if known.to is None:
        return known
    text = f"{_words(known.to)}, which had the rest of its requests, can't answer them, isn't healthy or is worse."
    return _given_back(noting, name, known, text)


def _is_able(arm: str, lines: Lines) -> bool:
    """Whether this arm could answer the version's requests now: a previous version has to be healthy itself."""
    if arm == "general":
        return lines.roles.general
    previous_version = lines.roles.previous_version
    return (
        arm == "previous_version"
        and previous_version is not None
        and lines.versions.get(previous_version, HEALTHY).verdict == "healthy"
    )


def _of_use(able: list[ArmReport], lines: Lines) -> list[ArmReport]:
    """The better ones of these arms; where no share may be shifted, and it may be rolled back, the previous version
    goes first: that is all that can be done."""
    better = [arm for arm in able if _is_better(arm)]
    if lines.plan.enforced and "shift" in lines.plan.responses:
        return better
    previous_version = [arm for arm in better if arm.arm == "previous_version" and "roll_back" in lines.may]
    return previous_version or better


def _is_better(arm: ArmReport) -> bool:
    return arm.advantage_low is not None and arm.advantage_low > 0.0


def _is_same(known: VersionHealth, arm: str, roles: Roles) -> bool:
    """Whether the arm that has the rest of the version's requests is still the same version."""
    return arm != "previous_version" or known.to_version in (None, roles.previous_version)


def _next_down(kept: float, plan: Plan) -> float:
    return max([step for step in (*plan.kept_steps, plan.explored_share) if step < kept], default=kept)


def _words(arm: str) -> str:
    return "The previous version" if arm == "previous_version" else "General"


HEALTHY = VersionHealth()
